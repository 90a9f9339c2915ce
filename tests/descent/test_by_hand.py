"""Layers that give their gradients themselves give those of their written-out form, by torch in float64."""

from __future__ import annotations

import pytest
import torch

from steepest.descent import by_hand
from steepest.descent.by_hand import FEW, Affine, Chain, CosinePower, Differentiated, Last, Rectified

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
        chain.hold(parameters)
        torch.testing.assert_close(chain.forward(x.detach().clone()), wanted, rtol=1e-12, atol=1e-12)
        gradients = chain.backward(upstream.clone())
        _, saved = layers[0].forward(x.detach().clone())
    for key, slope in zip(parameters, slopes):
        torch.testing.assert_close(gradients[key], slope, rtol=1e-10, atol=1e-10)
    if len(layers) == 1:  # what a layer below would get
        with torch.no_grad():
            below = layers[0].backward(saved, upstream.clone(), {}, needed=True)
        torch.testing.assert_close(below, slopes[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", [1, FEW[0], FEW[-1], FEW[-1] + 1])
def test_a_few_outputs_are_those_of_the_product_of_rows(outputs):
    g = torch.Generator().manual_seed(0)
    shapes = (MODELS, ROWS, INPUTS), (MODELS, outputs, INPUTS), (MODELS, outputs)
    x, weight, bias = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    result = by_hand.affine(x, weight, bias)
    torch.testing.assert_close(result, torch.einsum("mbi,moi->mbo", x, weight) + bias[:, None], rtol=1e-12, atol=1e-12)
    assert result.is_contiguous()


@pytest.mark.parametrize("needed", [True, False])
def test_a_layer_by_autograd_gives_the_slope_below_only_where_that_is_needed(needed):
    w, x = torch.tensor([[2.0], [3.0]], requires_grad=True), torch.tensor([[5.0], [7.0]])
    layer, gradients = Differentiated(lambda parameters, x: parameters["w"] * x, ["w"]), {}
    layer.hold({"w": w})
    y, saved = layer.forward(x)
    below = layer.backward(saved, torch.tensor([[1.0], [10.0]]), gradients, needed)
    assert y.tolist() == [[10.0], [21.0]]
    assert gradients["w"].tolist() == [[5.0], [70.0]]
    assert (below is None) == (not needed)
    if needed:
        assert below.tolist() == [[2.0], [30.0]]
