"""Seeding is torch's own, without what torch keeps of each call for accelerators that are not there."""

from __future__ import annotations

import traceback

import torch

from steepest.core.random import seed_all


def test_seeding_keeps_no_traceback(monkeypatch):
    torch.manual_seed(5)
    own = torch.rand(3)
    calls = []
    monkeypatch.setattr(traceback, "format_stack", lambda *_, **__: calls.append(1) or [])
    seed_all(5)
    assert torch.equal(torch.rand(3), own)
    assert not calls
