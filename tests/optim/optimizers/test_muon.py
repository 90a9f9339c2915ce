"""Muon for matrices, AdamW for all else: torch's two, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.optim.optimizers import MuonAndAdamW


@pytest.mark.holds("muon")
def test_muon_takes_matrices_and_adamw_the_rest():
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(3)]
    slopes = [[torch.randn_like(p) for p in start] for _ in range(4)]
    ours = [nn.Parameter(p.clone()) for p in start]
    both = MuonAndAdamW(ours, 0.01, 0.1)
    theirs = [nn.Parameter(p.clone()) for p in start]
    alone = [
        torch.optim.Muon(theirs[:1], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(theirs[1:], lr=0.01, weight_decay=0.1),
    ]
    for number, grads in enumerate(slopes):
        rate = 0.01 * (1 + number)
        for optimizer in (both, *alone):
            for group in optimizer.param_groups:
                group["lr"] = rate
        for p, q, g in zip(ours, theirs, grads):
            p.grad, q.grad = g.clone(), g.clone()
        both.step()
        for optimizer in alone:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs))


def test_a_torch_without_muon_is_told(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RuntimeError, match="PyTorch 2"):
        MuonAndAdamW([nn.Parameter(torch.ones(2, 2))])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"momentum": 1.0}, ValueError),
        ({"eps": 0.0}, ValueError),
        ({"betas": 0.9}, TypeError),
        ({"betas": (0.9, 1.0)}, ValueError),
    ],
)
def test_options_outside_their_range_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        MuonAndAdamW([nn.Parameter(torch.ones(2, 2))], **options)
