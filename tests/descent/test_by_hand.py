"""Layers that give their gradients themselves give those of their written-out form, by torch in float64."""

from __future__ import annotations

import pytest
import torch

from steepest.descent.by_hand import Affine, Chain, CosinePower, Differentiated, Last, Rectified

MODELS, ROWS, INPUTS, UNITS = 3, 5, 4, 6


def affine(parameters, x):
    return x @ parameters["weight"].mT + parameters["bias"].unsqueeze(1)


def cosine_power(parameters, x):
    cosine = torch.nn.functional.cosine_similarity(x.unsqueeze(2), parameters["weight"].unsqueeze(1), dim=-1)
    return -3.0 * torch.log(1.0 - cosine + 1e-4)


CASES = {
    "affine": ([Affine("")], affine, UNITS),
    "rectified": ([Rectified(over=False), Affine("")], lambda p, x: affine(p, x.relu()), UNITS),
    "over its input": ([Affine(""), Rectified(over=True)], lambda p, x: affine(p, x).relu(), UNITS),
    "last": ([Affine(""), Last()], lambda p, x: affine(p, x).squeeze(-1), 1),
    "cosine": ([CosinePower("", 3.0, 1e-4)], cosine_power, UNITS),
    "cosine over others": (
        [Rectified(over=False), CosinePower("", 3.0, 1e-4)],
        lambda p, x: cosine_power(p, x.relu()),
        6,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_chain_gives_the_gradients_of_the_written_out_form(name):
    layers, written_out, units = CASES[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(MODELS, ROWS, INPUTS, generator=g, dtype=torch.float64).requires_grad_()
    names = {"weight": (MODELS, units, INPUTS), "bias": (MODELS, units)}
    parameters = {
        key: torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
        for key, shape in names.items()
        if key == "weight" or "cosine" not in name
    }
    wanted = written_out(parameters, x)
    upstream = torch.randn(wanted.shape, generator=g, dtype=torch.float64)
    slopes = torch.autograd.grad(wanted, [*parameters.values(), x], upstream)
    with torch.no_grad():
        chain = Chain(layers)
        torch.testing.assert_close(chain.forward(parameters, x.detach().clone()), wanted, rtol=1e-12, atol=1e-12)
        gradients = chain.backward(parameters, upstream.clone())
        _, saved = layers[0].forward(parameters, x.detach().clone())
    for key, slope in zip(parameters, slopes):
        torch.testing.assert_close(gradients[key], slope, rtol=1e-10, atol=1e-10)
    if len(layers) == 1:  # what a layer below would get
        with torch.no_grad():
            below = layers[0].backward(parameters, saved, upstream.clone(), {}, needed=True)
        torch.testing.assert_close(below, slopes[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("needed", [True, False])
def test_a_layer_by_autograd_gives_the_slope_below_only_where_that_is_needed(needed):
    w, x = torch.tensor([[2.0], [3.0]], requires_grad=True), torch.tensor([[5.0], [7.0]])
    layer, gradients = Differentiated(lambda parameters, x: parameters["w"] * x, ["w"]), {}
    y, saved = layer.forward({"w": w}, x)
    below = layer.backward({"w": w}, saved, torch.tensor([[1.0], [10.0]]), gradients, needed)
    assert y.tolist() == [[10.0], [21.0]]
    assert gradients["w"].tolist() == [[5.0], [70.0]]
    assert (below is None) == (not needed)
    if needed:
        assert below.tolist() == [[2.0], [30.0]]
