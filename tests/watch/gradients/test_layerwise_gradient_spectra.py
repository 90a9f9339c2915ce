"""Spectra of gradients: the numbers of the card, NumPy on gradients in closed form, and what a probe reads of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.probe import Moment
from steepest.watch.gradients import (
    SpectrumMonitor,
    effective_rank,
    gradient_similarity,
    gradient_spectrum,
    nuclear_norm,
)


class Attention(nn.Module):
    """Four projections of one width, or queries, keys and values in one."""

    def __init__(self, width=4, fused=False):
        super().__init__()
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        return x + self.o_proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class Empty(nn.Module):
    """A matrix without entries."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, 2))


def tower(layers=2, width=4):
    return nn.Sequential(*(Attention(width) for _ in range(layers))).double()


def loss_fn(model, x):
    return model(x).square().mean()


def tokens(count=7, width=4):
    return torch.randn(1, count, width, dtype=torch.float64)


@pytest.mark.holds("layerwise-gradient-spectra", 1)
def test_spectra_of_the_card():
    s = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert float(nuclear_norm(torch.diag(s))) == pytest.approx(4.0, rel=1e-12)
    assert float(effective_rank(s)) == pytest.approx(1.754765, abs=5e-7)
    outer = torch.outer(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([2.0, 5.0])).double()
    assert float(effective_rank(torch.linalg.svdvals(outer))) == pytest.approx(1.0, abs=1e-12)
    for r in (1, 2, 6):
        assert float(effective_rank(torch.full((r,), 0.7, dtype=torch.float64))) == pytest.approx(r, rel=1e-12)


@pytest.mark.holds("layerwise-gradient-spectra", 2)
def test_the_scale_of_the_loss_and_bounds():
    model, x = tower(), tokens()
    plain = gradient_spectrum(model, loss_fn, x)
    scaled = gradient_spectrum(model, lambda m, batch: 1e-9 * loss_fn(m, batch), x)
    assert len(plain) == 8
    for name, spectrum in plain.items():
        torch.testing.assert_close(scaled[name]["effective_rank"], spectrum["effective_rank"])
        torch.testing.assert_close(scaled[name]["nuclear"], 1e-9 * spectrum["nuclear"], atol=0.0, rtol=1e-9)
        assert 1.0 <= spectrum["effective_rank"] <= 4.0 + 1e-12
        assert spectrum["frobenius"] <= spectrum["nuclear"] * (1 + 1e-12)
        assert spectrum["nuclear"] <= 2.0 * spectrum["frobenius"] * (1 + 1e-12)


@pytest.mark.holds("layerwise-gradient-spectra", 3)
def test_orthogonal_changes_of_basis():
    """y = W x with turned inputs and outputs: the loss is the same function of turned weights."""
    layer = nn.Linear(4, 4, bias=False).double()
    x, y = tokens()[0], tokens()[0]
    turns = [torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] for _ in range(2)]
    turned = nn.Linear(4, 4, bias=False).double()
    turned.weight.data = turns[1] @ layer.weight.data @ turns[0].T

    def squares(module, batch):
        return (module(batch[0]) - batch[1]).square().mean()

    spectra = [
        gradient_spectrum(module, squares, batch, None)["weight"]
        for module, batch in ((layer, (x, y)), (turned, (x @ turns[0].T, y @ turns[1].T)))
    ]
    for name in ("nuclear", "effective_rank", "frobenius", "s"):
        torch.testing.assert_close(spectra[0][name], spectra[1][name])


@pytest.mark.holds("layerwise-gradient-spectra", 4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_token_gives_a_gradient_of_rank_1(dtype):
    layer = nn.ModuleDict({"q_proj": nn.Linear(6, 5)}).to(dtype)
    x = torch.randn(1, 6, dtype=dtype)
    spectrum = gradient_spectrum(layer, lambda m, batch: m["q_proj"](batch).exp().sum(), x)["q_proj"]
    # four values of rounding beside one: a rank of 1 + O(eps log eps)
    assert float(spectrum["effective_rank"]) == pytest.approx(1.0, abs=200 * torch.finfo(dtype).eps)
    torch.testing.assert_close(spectrum["nuclear"], spectrum["frobenius"])


@pytest.mark.holds("layerwise-gradient-spectra", 5)
def test_a_gradient_of_0_has_no_rank():
    model = tower()
    spectra = gradient_spectrum(model, lambda m, batch: 0.0 * loss_fn(m, batch), tokens())
    spectra |= {"unused": gradient_spectrum(model, lambda m, batch: m[0](batch).sum(), tokens())["1.q_proj"]}
    for spectrum in spectra.values():
        assert math.isnan(spectrum["effective_rank"])
        assert float(spectrum["nuclear"]) == 0.0
    assert float(gradient_spectrum(model, lambda m, batch: batch.sum(), tokens())["0.q_proj"]["nuclear"]) == 0.0


def test_numpy_on_a_gradient_in_closed_form():
    """Mean of squares of X W^T - Y: the gradient is 2 / (n d) (X W^T - Y)^T X."""
    layer = nn.ModuleDict({"v_proj": nn.Linear(4, 3, bias=False)}).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    spectrum = gradient_spectrum(layer, lambda m, b: (m["v_proj"](b[0]) - b[1]).square().mean(), (x, y))["v_proj"]
    w = layer["v_proj"].weight.detach().numpy()
    gradient = 2 / 27 * (x.numpy() @ w.T - y.numpy()).T @ x.numpy()
    s = np.linalg.svd(gradient, compute_uv=False)
    p = s / s.sum()
    wanted = {
        "nuclear": np.linalg.norm(gradient, "nuc"),
        "effective_rank": math.exp(-sum(v * math.log(v) for v in p)),
        "frobenius": np.linalg.norm(gradient),
        "max": gradient.max(),
        "min": gradient.min(),
        "mean": gradient.mean(),
    }
    np.testing.assert_allclose(spectrum["s"], s, rtol=1e-12)
    for name, value in wanted.items():
        assert float(spectrum[name]) == pytest.approx(value, rel=1e-12)


def test_fused_projections_are_split_first():
    model = nn.Sequential(Attention(4, fused=True), Attention(4, fused=True)).double()
    apart = tower()
    for layer, own in zip(model, apart):
        for place, name in enumerate(("q_proj", "k_proj", "v_proj")):
            getattr(own, name).weight.data = layer.qkv.weight.data[4 * place : 4 * place + 4].clone()
            getattr(own, name).bias.data = layer.qkv.bias.data[4 * place : 4 * place + 4].clone()
        own.o_proj.load_state_dict(layer.o_proj.state_dict())
    x, fused = tokens(), {"qkv": {"q_proj": 4, "k_proj": 4, "v_proj": 4}}
    spectra, wanted = gradient_spectrum(model, loss_fn, x, fused=fused), gradient_spectrum(apart, loss_fn, x)
    assert set(spectra) == set(wanted)
    for name in wanted:
        torch.testing.assert_close(spectra[name]["s"], wanted[name]["s"])
    # transposed, as some libraries keep it
    holder = nn.Module()
    holder.qkv = nn.Parameter(torch.randn(4, 12, dtype=torch.float64))
    spectra = gradient_spectrum(holder, lambda m, b: (b[0] @ m.qkv).square().sum(), x, fused=fused)
    assert [spectrum["s"].shape for spectrum in spectra.values()] == [(4,)] * 3
    with pytest.raises(ValueError, match=r"fused: expected sizes whose sum is a dimension of '0\.qkv\.weight'"):
        gradient_spectrum(model, loss_fn, x, fused={"qkv": {"q_proj": 5}})


def test_it_leaves_no_trace():
    model = nn.Sequential(nn.BatchNorm1d(7), Attention(), nn.Dropout(0.5)).double()
    x = tokens()
    loss_fn(model, x).backward()
    slopes = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    buffers, before = [b.clone() for b in model.buffers()], torch.get_rng_state()
    gradient_spectrum(model, loss_fn, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, slopes, [p.grad for p in model.parameters() if p.grad is not None]))
    assert all(map(torch.equal, buffers, model.buffers()))


def test_similarity_by_numpy_and_the_default_pairs():
    model = tower(3)
    loss_fn(model, tokens()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.ndim == 2}
    cosines = gradient_similarity(grads)
    same = {
        (f"{k}.{a}.weight", f"{k}.{b}.weight")
        for k in range(3)
        for a, b in (("k_proj", "v_proj"), ("q_proj", "o_proj"))
    }
    near = {(f"{k}.{a}_proj.weight", f"{k + 1}.{a}_proj.weight") for k in range(2) for a in "qkvo"}
    assert set(cosines) == same | near
    for (a, b), cosine in cosines.items():
        u, v = grads[a].numpy().ravel(), grads[b].numpy().ravel()
        assert float(cosine) == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v), rel=1e-12)
    tiny = {"0.k_proj": torch.full((2, 2), 1e-30), "0.v_proj": torch.full((2, 2), -1e30), "1.k_proj": torch.ones(2, 3)}
    assert {pair: round(float(value), 6) for pair, value in gradient_similarity(tiny).items()} == {
        ("0.k_proj", "0.v_proj"): -1.0
    }
    assert math.isnan(gradient_similarity({"a": torch.zeros(2, 2), "b": torch.ones(2, 2)}, [("a", "b")])["a", "b"])
    with pytest.raises(ValueError, match="pairs: expected names of gradients, got 'c'"):
        gradient_similarity(tiny, [("0.k_proj", "c")])
    with pytest.raises(ValueError, match="pairs: expected equal shapes"):
        gradient_similarity(tiny, [("0.k_proj", "1.k_proj")])


def test_the_monitor_reads_what_the_function_computes():
    model, x = tower(), tokens()
    loss_fn(model, x).backward()
    spectra = gradient_spectrum(model, loss_fn, x)
    for p in model.parameters():
        p.grad *= 65536.0
    reading = SpectrumMonitor(("q_proj", "k_proj", "v_proj", "o_proj")).measure(
        Moment(1, "gradients", model, scale=65536.0)
    )
    assert reading.arrays["nuclear"].axes == {"matrix": list(spectra)}
    for name in ("nuclear", "effective_rank", "frobenius"):
        wanted = torch.stack([spectrum[name] for spectrum in spectra.values()])
        torch.testing.assert_close(reading.arrays[name].values, wanted)
        if name != "frobenius":
            torch.testing.assert_close(reading.numbers[name], wanted.mean())
    assert float(reading.numbers["without_rank"]) == 0


def test_a_matrix_with_an_entry_that_is_not_finite_has_no_norm():
    matrices = torch.eye(3).repeat(3, 1, 1)
    matrices[0, 1, 2], matrices[2, 0, 0] = math.nan, math.inf
    norms = nuclear_norm(matrices)
    assert norms.isnan().tolist() == [True, False, True]
    assert float(norms[1]) == pytest.approx(3.0)


def test_the_monitor_counts_what_has_no_rank():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2), Empty())
    for layer, value in zip(model, (math.nan, 0.0, 1.0, 1.0)):
        layer.weight.grad = torch.full_like(layer.weight, value)
    reading = SpectrumMonitor().measure(Moment(1, "gradients", model))
    assert float(reading.numbers["without_rank"]) == 3
    assert float(reading.numbers["effective_rank"]) == pytest.approx(1.0, abs=1e-5)
    assert float(reading.numbers["nuclear"]) == pytest.approx(math.sqrt(6.0))
    nothing = SpectrumMonitor().measure(Moment(1, "gradients", nn.Linear(2, 2)))
    assert math.isnan(nothing.numbers["nuclear"])
    assert nothing.arrays["nuclear"].values.shape == (0,)


def test_what_it_refuses():
    model, x = tower(), tokens()
    with pytest.raises(ValueError, match="modules: expected last parts of names of trained matrices"):
        gradient_spectrum(model, loss_fn, x, ("query",))
    with pytest.raises(ValueError, match="modules: expected last parts of names of trained matrices"):
        SpectrumMonitor(("query",)).check(model, None)
    with pytest.raises(ValueError, match="loss_fn"):
        gradient_spectrum(model, lambda m, batch: m(batch), x)
    model[0].q_proj.requires_grad_(False)
    with pytest.raises(ValueError, match=r"model: expected a gradient for '0.q_proj.weight'"):
        gradient_spectrum(model, loss_fn, x)
    with pytest.raises(ValueError, match="gradient: expected at least two dimensions"):
        nuclear_norm(torch.ones(3))
    with pytest.raises(ValueError, match="every: expected an integer >= 1"):
        SpectrumMonitor(every=0)
