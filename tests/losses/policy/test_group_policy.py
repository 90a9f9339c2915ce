"""The forms of the clipped surrogate where a user finds them: one step of each, from its definition."""

from __future__ import annotations

import pytest
import torch

from steepest.losses import GroupPolicyLoss, clipped_policy_loss, group_advantages


@pytest.mark.holds("group-policy")
@pytest.mark.parametrize(
    ("form", "by_hand"),
    [
        ("grpo", (-1.2 + 1) / 2),
        ("bnpo", (-1.2 + 4) / 5),
        ("dapo", (-1.28 + 4) / 5),
        ("dr_grpo", (-1.2 / 4 + 1) / 2),
        ("gspo", (-1.2 + 1) / 2),
        ("cispo", (1.28 - 4) / 5),
    ],
)
def test_each_form_by_hand(form, by_hand):
    """One answer of a token, one of four; ratios 1.5 and 1, 1, 1, 1; advantages 1 and -1; log-probabilities -1."""
    logp = torch.full((2, 4), -1.0, dtype=torch.float64)
    old = logp.clone()
    old[0, 0] -= torch.tensor(1.5, dtype=torch.float64).log()
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    advantages = group_advantages(torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor([0, 0]))
    assert advantages.tolist() == [1.0, -1.0]
    options = {"length": 4.0} if form == "dr_grpo" else {}
    value = GroupPolicyLoss(form, **options)(logp, old, advantages, mask)
    assert float(value) == pytest.approx(by_hand, rel=1e-12)
    assert float(clipped_policy_loss(logp, old, advantages, mask, form, **options)) == float(value)
