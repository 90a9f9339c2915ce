"""What the kernels are measured against, and the instruction levels of their C++ forms."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from steepest.core import native
from steepest.kernels import _native_softmax
from steepest.kernels.chronicals import _native as _native_chronicals


def materialised(hidden, weight, target, *, bias=None, dtype=torch.float64, **options):
    """The loss as its definition says, of a whole matrix of logits, in ``dtype``; losses are float32 or wider."""
    o = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "z_loss": 0.0, "softcap": None}
    o |= {"temperature": 1.0, "class_weight": None, "token_weight": None, "shift": 0, "num_items": None} | options
    z = functional.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    z = z.to(torch.promote_types(dtype, torch.float32))
    token = torch.ones(target.shape) if o["token_weight"] is None else o["token_weight"]
    if o["shift"]:
        z, target, token = z[..., : -o["shift"], :], target[..., o["shift"] :], token[..., o["shift"] :]
    if o["softcap"] is not None:
        z = o["softcap"] * torch.tanh(z / o["softcap"])
    z, token = z / o["temperature"], token.to(z.dtype)
    shape, flat, y = target.shape, z.flatten(0, -2), target.reshape(-1)
    token = (token.reshape(-1) * (y != o["ignore_index"])).to(z.dtype)
    c = None if o["class_weight"] is None else o["class_weight"].to(z.dtype)
    losses = functional.cross_entropy(
        flat, y, weight=c, ignore_index=o["ignore_index"], reduction="none", label_smoothing=o["label_smoothing"]
    )
    penalty = flat.logsumexp(1).square()
    counted = token > 0
    losses, penalty = torch.where(counted, losses, 0.0) * token, torch.where(counted, penalty, 0.0) * token
    if o["reduction"] == "none":
        return (losses + o["z_loss"] * penalty).reshape(shape)
    above = below = torch.tensor(1.0)
    if o["reduction"] == "mean":
        below = token.sum()
        above = below if c is None else (token * c[y.clamp_min(0)]).sum()
        if o["num_items"] is not None:
            above = below = torch.as_tensor(o["num_items"])
    return losses.sum() / above + o["z_loss"] * penalty.sum() / below


def gradients(loss: Callable, tensors: list[torch.Tensor], upstream: torch.Tensor) -> list[torch.Tensor]:
    """The value and its gradients; ``upstream`` weighs the losses."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream.to(value.dtype).expand_as(value))]


def as_exact(got, exact, plain, *, constant=3.0, luck=0.0):
    """Each error is at most a constant times that of the materialised loss in the same type, plus rounding.

    ``luck`` is added for the value: the error of one mean over half-rounded logits is one draw, and may be small.
    """
    for place, (mine, truth, theirs) in enumerate(zip(got, exact, plain)):
        assert mine.shape == truth.shape
        scale = truth.abs().max().item() if truth.numel() else 0.0
        # values are float32 or wider; gradients have the type of their tensors
        eps = torch.finfo(mine.dtype).eps
        mine_off = (mine.double() - truth.double()).abs().max().item() if truth.numel() else 0.0
        plain_off = (theirs.double() - truth.double()).abs().max().item() if truth.numel() else 0.0
        allowed = constant * plain_off + 4 * eps * scale + (0.0 if place else luck)
        assert mine_off <= allowed, (place, mine_off, plain_off, scale)


@pytest.fixture(scope="session")
def truth():
    """References for the kernels' tests: ``materialised``, ``gradients``, ``as_exact``."""
    return SimpleNamespace(materialised=materialised, gradients=gradients, as_exact=as_exact)


@pytest.fixture(params=native.levels())
def level(request, monkeypatch):
    """The C++ forms as they are built for each instruction level that the processor has."""
    caches = [_native_softmax.available, _native_softmax._function]
    caches += [_native_chronicals._library, _native_chronicals._function]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)
    for kept in caches:
        kept.cache_clear()
    yield request.param
    for kept in caches:
        kept.cache_clear()
