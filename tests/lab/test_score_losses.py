"""The fixed binary losses that experiments compare with, against torch's and sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as nnf

from steepest.lab.score_losses import KINDS, ScoreLoss

SCORES = torch.tensor([2.0, -0.5, 0.3, -1.0, 40.0], dtype=torch.float64)
LABELS = torch.tensor([1, 1, 0, 0, 0])


def by_hand(kind: str, f: float, y: int) -> float:
    s = f if y else -f
    return {
        "logistic": math.log1p(math.exp(-s)),
        "hinge": max(0.0, 1 - s),
        "exponential": math.exp(-s),
        "squared": (1 / (1 + math.exp(-f)) - y) ** 2,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_values(kind):
    wanted = [by_hand(kind, f, y) for f, y in zip(SCORES.tolist(), LABELS.tolist())]
    assert ScoreLoss(kind, reduction="none")(SCORES, LABELS).tolist() == pytest.approx(wanted, rel=1e-12)


def test_logistic_is_binary_cross_entropy():
    wanted = nnf.binary_cross_entropy_with_logits(SCORES, LABELS.double())
    torch.testing.assert_close(ScoreLoss()(SCORES, LABELS), wanted)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind"):
        ScoreLoss("absolute")
