"""Clipped policy gradients of groups of answers: GRPO and the forms that came of it, under the names they go by.

A form is a level of the ratio, a way to clip it and an average; advantages are rewards less the mean of their group.
"""

from __future__ import annotations

from ...core.group_advantages import group_advantages
from ...core.group_policy import GroupPolicyLoss, clipped_policy_loss

__all__ = ["GroupPolicyLoss", "clipped_policy_loss", "group_advantages"]
