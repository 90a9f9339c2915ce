"""The stand-ins take the same calls and give the same numbers as what they stand for."""

from __future__ import annotations

import itertools

import pytest
import torch

from steepest.kernels import cce_linear_cross_entropy, torch_linear_cross_entropy

N, D, C = 23, 6, 31


def tensors(dtype=torch.float64):
    return (torch.randn(s).to(dtype).requires_grad_() for s in ((N, D), (C, D), (C,)))


def same(ours, theirs, leaves):
    upstream = torch.rand_like(ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((ours * upstream).sum(), leaves),
        torch.autograd.grad((theirs * upstream).sum(), leaves, retain_graph=True),
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.holds("linear-cross-entropy-stand-ins")
@pytest.mark.parametrize("memory", ["auto", 8 * C * 5])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_torchs_function(kind, reduction, memory):
    theirs = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if theirs is None:  # before torch 2.13

        def theirs(h, w, y, *, linear_bias=None, **options):
            return torch.nn.functional.cross_entropy(torch.nn.functional.linear(h, w, linear_bias), y, **options)

    target = torch.randint(C, (N,)) if kind == "index" else torch.rand(N, C).double().softmax(1)
    for smoothing, use in itertools.product((0.0, 0.3), (False, True)):
        h, w, b = tensors()
        options = {"reduction": reduction, "label_smoothing": smoothing, "linear_bias": b}
        if use:
            options["weight"] = torch.rand(C, dtype=torch.float64)
        if kind == "index":
            target[::5] = -100 if not use else 3
            options |= {"ignore_index": 3} if use else {}
        ours = torch_linear_cross_entropy(h, w, target, memory=memory, **options)
        same(ours, theirs(h, w, target, **options), (h, w, b))


def test_torchs_corners():
    h, w, _ = tensors()
    plain = torch.nn.functional.cross_entropy
    one = torch_linear_cross_entropy(h[0], w, torch.tensor(4), reduction="none")
    torch.testing.assert_close(one, plain(w @ h[0], torch.tensor(4), reduction="none"))
    assert one.shape == ()
    assert torch_linear_cross_entropy(h, w, torch.full((N,), -100)).isnan()
    half = torch_linear_cross_entropy(h.bfloat16(), w.bfloat16(), torch.zeros(N, dtype=torch.long))
    assert half.dtype == torch.bfloat16
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        wide, target = torch.randn(C, 2, D, dtype=torch.float64), torch.randint(C, (N, 2))
        torch.testing.assert_close(
            torch_linear_cross_entropy(h, wide, target), torch.nn.functional.linear_cross_entropy(h, wide, target)
        )


@pytest.mark.parametrize("shift", [0, 1, True, 2])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_cces_function(softcap, reduction, shift):
    h = torch.randn(3, 8, D, dtype=torch.float64, requires_grad=True)
    _, w, b = tensors()
    y = torch.randint(C, (3, 8))
    y[0, 2] = y[2, 7] = -100
    z = h @ w.T + b
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    k = int(shift)
    z, t = z[:, : 8 - k], y[:, k:]
    plain = torch.nn.functional.cross_entropy(z.flatten(0, 1), t.flatten(), reduction=reduction)
    plain = plain.reshape(t.shape) if reduction == "none" else plain
    for memory in ("auto", 8 * C * 5):
        options = {"bias": b, "softcap": softcap, "reduction": reduction, "shift": shift, "memory": memory}
        same(cce_linear_cross_entropy(h, w, y, **options), plain + 0 * w.sum(), (h, w, b))
        loss, lse = cce_linear_cross_entropy(h, w, y, return_lse=True, **options)
        same(loss, plain + 0 * w.sum(), (h, w, b))
        same(cce_linear_cross_entropy(h, w, y, return_lse=True, **options)[1], z.logsumexp(-1) * (t >= 0), (h, w, b))
        assert lse.shape == t.shape


def test_cces_filter_is_for_half_types():
    h, w, _ = tensors(torch.bfloat16)
    sharp = (8 * w.detach()).requires_grad_()
    y = torch.randint(C, (N,))
    found = {}
    for name, eps in (("auto", "auto"), ("high", "high"), ("none", None), ("coarse", 0.3)):
        loss = cce_linear_cross_entropy(h, sharp, y, filter_eps=eps)
        found[name] = torch.autograd.grad(loss, sharp)[0].float()
    far = {name: float((found[name] - found["none"]).norm() / found["none"].norm()) for name in found}
    assert far["auto"] < 0.02
    assert far["coarse"] > far["auto"]
    single = torch.autograd.grad(cce_linear_cross_entropy(h, sharp, y, filter_eps=0.3, filter_c_grad=False), sharp)[0]
    assert torch.equal(single.float(), found["none"])
