"""Noise by robust statistics, the layers it goes to, and divergences between predictions, against loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import nn

from steepest.losses.language import (
    AdaptiveNoise,
    NoiseFiTLoss,
    adaptive_noise,
    noise_deviation,
    noisefit_loss,
    select_layers_by_snr,
)

TOKEN = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 10.0]]])


def drawn():
    generator = torch.Generator().manual_seed(0)
    clean, noisy1, noisy2 = torch.randn(3, 3, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (3, 5), generator=generator)
    labels[0, 0] = labels[2, 3:] = -100
    return clean, noisy1, noisy2, labels


def softmax(row, temperature=1.0):
    weights = [math.exp(v / temperature) for v in row]
    return [w / sum(weights) for w in weights]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def by_definition(clean, noisy1, noisy2, labels, alpha, lam, temperature):
    """A token after the other."""
    terms = []
    for z, z1, z2, y in zip(*(t.flatten(0, 1).tolist() for t in (clean, noisy1, noisy2)), labels.flatten().tolist()):
        if y == -100:
            continue
        p, p1, p2 = softmax(z, temperature), softmax(z1), softmax(z2)
        soft = 0.5 * (divergence(p, p1) + divergence(p, p2))
        terms.append(-alpha * math.log(softmax(z)[y]) + (1 - alpha) * soft + lam * divergence(p2, p1))
    return sum(terms) / len(terms)


@pytest.mark.holds("noisefit", 1)
def test_numbers_of_the_card():
    z, z1, z2 = (torch.tensor([[row]]).double() for row in ([2.0, 0, -1], [1.5, 0.2, -1], [2.2, -0.1, -0.8]))
    y = torch.tensor([[0]])

    def loss(**options):
        return noisefit_loss(z, z1, z2, y, **options).item()

    assert loss(alpha=1.0, lam=0.0) == pytest.approx(0.169846, abs=1e-6)
    assert loss(alpha=0.0, lam=0.0) == pytest.approx(0.018473, abs=1e-6)
    assert loss(alpha=0.0, lam=1.0) - loss(alpha=0.0, lam=0.0) == pytest.approx(0.054893, abs=1e-6)
    assert loss() == pytest.approx(0.099649, abs=1e-6)


@pytest.mark.holds("noisefit", 2)
def test_equal_predictions_leave_cross_entropy():
    clean, _, _, labels = drawn()
    wanted = nn.functional.cross_entropy(clean.flatten(0, 1), labels.flatten()).item()
    for alpha in (0.3, 0.5, 1.0):
        assert noisefit_loss(clean, clean, clean, labels, alpha=alpha).item() == pytest.approx(
            alpha * wanted, rel=1e-12
        )


@pytest.mark.holds("noisefit", 3)
def test_noise_has_mean_zero_and_the_deviation_of_the_formula():
    wanted = [0.7868, 0.8696, 0.9611, 0.8696, 0.4772]
    assert noise_deviation(TOKEN)[0, 0].tolist() == pytest.approx(wanted, abs=5e-5)
    token = [1.0, 2.0, 3.0, 4.0, 10.0]
    middle = statistics.median_low(token)
    mad = statistics.median_low([abs(v - middle) for v in token])
    s = 0.1 * statistics.stdev(token)
    naive = [s * mad * math.exp(-0.1 * abs(v - middle) / (mad + 1e-6)) * math.e for v in token]
    assert noise_deviation(TOKEN.double())[0, 0].tolist() == pytest.approx(naive, rel=1e-6)
    draws = adaptive_noise(TOKEN.expand(1, 40_000, 5).contiguous(), generator=torch.Generator().manual_seed(0)) - TOKEN
    deviation = noise_deviation(TOKEN.expand(1, 40_000, 5).contiguous())[0, 0]
    assert (draws.mean((0, 1)).abs() < 4 * deviation / 200).all()
    torch.testing.assert_close(draws.std((0, 1)), deviation, rtol=0.02, atol=0)


def test_the_factor_and_the_options_of_noise():
    h = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = h.var(-1, keepdim=True)
    plain = noise_deviation(h) / (spread / (spread.mean() + 1e-6)).exp().clamp(max=5)
    logits = torch.zeros(2, 3, 4, dtype=torch.float64)
    logits[0, 0, 1] = 50.0
    with_logits = noise_deviation(h, logits=logits) / plain
    assert with_logits[0, 0].tolist() == pytest.approx([1.0] * 6)
    assert with_logits[1, 2].tolist() == pytest.approx([4.0] * 6)
    wide = noise_deviation(h, logits=torch.zeros(2, 3, 100, dtype=torch.float64)) / plain
    assert wide.flatten().tolist() == pytest.approx([5.0] * 36), "5 at most"
    torch.testing.assert_close(noise_deviation(h, scale=2.0), 2 * noise_deviation(h))
    torch.testing.assert_close(noise_deviation(h, gate=0.25), 0.25 * noise_deviation(h))
    torch.testing.assert_close(noise_deviation(h, gate=7.0), noise_deviation(h))
    torch.testing.assert_close(noise_deviation(h, squared=True), 0.1 * noise_deviation(h))
    torch.testing.assert_close(noise_deviation(h, base_std=0.3), 0.3 / (0.1 * h.std()) * noise_deviation(h))
    level = noise_deviation(torch.full((1, 1, 4), 3.0), base_std=1.0)
    assert level[0, 0].tolist() == pytest.approx([6e-6] * 4), "a constant vector has a MAD of a millionth of its length"


@pytest.mark.holds("noisefit", 4)
def test_no_noise_leaves_the_bits_and_hooks_go():
    h = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    h[0, 0, 0] = -0.0
    for options in ({"gate": 0.0}, {"noise_std": 0.0}, {"scale": 0.0}):
        assert torch.equal(adaptive_noise(h, **options).view(torch.int32), h.view(torch.int32))
    layer = nn.Linear(4, 4)
    plain = layer(h)
    noise = AdaptiveNoise([layer], generator=torch.Generator().manual_seed(0))
    with noise:
        assert not torch.equal(layer(h), plain)
        layer.eval()
        assert torch.equal(layer(h), plain), "nothing happens in evaluation mode"
        noise.enabled = True
        assert not torch.equal(layer(h), plain)
    assert not layer._forward_hooks
    with pytest.raises(RuntimeError, match="inside"), noise:
        raise RuntimeError("inside")
    assert not layer._forward_hooks
    assert torch.equal(layer.train()(h), plain)
    with noise, pytest.raises(ValueError, match="one block at a time"), noise:
        pass


@pytest.mark.holds("noisefit", 5)
def test_nothing_to_learn():
    clean, noisy1, noisy2, labels = drawn()
    clean.requires_grad_()
    value = noisefit_loss(clean, noisy1, noisy2, torch.full_like(labels, -100))
    value.backward()
    assert value == 0
    assert not clean.grad.any()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_against_a_loop_over_tokens(temperature):
    *logits, labels = drawn()
    wanted = by_definition(*logits, labels, 0.4, 0.3, temperature)
    value = noisefit_loss(*logits, labels, alpha=0.4, lam=0.3, temperature=temperature)
    assert value.item() == pytest.approx(wanted, rel=1e-12)


def test_gradients_go_to_all_predictions_unless_stopped():
    clean, noisy1, noisy2, labels = (t.requires_grad_() if t.is_floating_point() else t for t in drawn())
    slopes = torch.autograd.grad(noisefit_loss(clean, noisy1, noisy2, labels, alpha=0.0), (clean, noisy1, noisy2))
    assert all(slope.any() for slope in slopes)
    value = noisefit_loss(clean, noisy1, noisy2, labels, alpha=0.0, detach_targets=True)
    slopes = torch.autograd.grad(value, (clean, noisy1, noisy2), allow_unused=True)
    assert slopes[0] is None or not slopes[0].any()
    assert slopes[1].any()


def test_a_head_of_the_noisy_states():
    clean, noisy1, _, labels = drawn()
    head, bias = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    states = torch.randn(3, 3, 5, 3, dtype=torch.float64)
    loss = NoiseFiTLoss()
    by_head = loss(states[0], labels, head, noisy1=states[1], noisy2=states[2], noisy_head=head, bias=bias)
    logits = states @ head.T + bias
    assert by_head.item() == pytest.approx(loss(logits[0], labels, noisy1=logits[1], noisy2=logits[2]).item())
    with pytest.raises(ValueError, match="noisy1: expected shape"):
        loss(states[0], labels, head, noisy1=states[1], noisy2=states[2])
    with pytest.raises(TypeError, match="noisy2: expected a tensor"):
        loss(clean, labels, noisy1=noisy1)


class Scaled(nn.Module):
    """A layer that gives a tuple, its input times a number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return (torch.sign(x) + self.factor * (x - torch.sign(x)),)


def test_layers_by_their_signal():
    """All vectors near their signs have little spread, and so little noise."""
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    layers = nn.ModuleList([Scaled(1.0), Scaled(0.1), Scaled(3.0), Scaled(0.3)])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return [layer(x) for layer in self.layers]

    model = Model()
    options = {"generator": torch.Generator().manual_seed(0)}
    ratios = []
    for layer in layers:
        (h,) = layer(x)
        moved = [(adaptive_noise(h, generator=torch.Generator().manual_seed(s)) - h).abs().mean() for s in range(30)]
        ratios.append(float(h.abs().mean() / sum(moved) * 30))
    order = sorted(range(4), key=ratios.__getitem__)
    assert select_layers_by_snr(model, list(layers), x, k=2, **options) == sorted(order[2:])
    assert select_layers_by_snr(model, list(layers), {"x": x}, k=1, strategy="Lowest", **options) == order[:1]
    assert model.training
    assert not layers[0]._forward_hooks
    with pytest.raises(ValueError, match="k: expected an integer"):
        select_layers_by_snr(model, list(layers), x, k=5)
    with pytest.raises(ValueError, match="layers: expected modules that the model runs"):
        select_layers_by_snr(model, [*layers, nn.Linear(2, 2)], x, k=1)
