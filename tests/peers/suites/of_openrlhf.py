"""OpenRLHF's aggregation and policy loss, answered by steepest; their test reads files, which say where these are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.core.group_policy import clipped_surrogate
from steepest.core.policy_loss import count_items, policy_inputs
from steepest.core.token_reductions import aggregate_tokens

FOLDER = "OpenRLHF"
FILES = ("tests/test_loss_aggregation.py",)
SUPPORT: tuple[str, ...] = ()
ON_CPU: tuple[tuple[str, str], ...] = ((r"torch\.cuda\.current_device\(\)", '"cpu"'),)
LEFT_OUT: dict[str, str] = {}
EXPLAINED: dict[str, str] = {}
NOT_RUN: dict[str, str] = {}
SEQUENCES = "sequence_mean_token_mean"


def aggregate_loss(
    loss: Tensor,
    loss_mask: Tensor,
    token_level_loss: bool = True,
    dp_size: int = 1,
    batch_num_tokens: Any = None,
    global_batch_size: Any = None,
) -> Tensor:
    """By ``aggregate_tokens``; their ranks average gradients, so a rank's loss is multiplied by their number."""
    mode, count = ("token_mean", batch_num_tokens) if token_level_loss else (SEQUENCES, global_batch_size)
    return dp_size * aggregate_tokens(loss, loss_mask.bool(), mode, num_items=count)


class PolicyLoss:
    """The clipped surrogate of tokens; with it, as there, three numbers to watch."""

    def __init__(
        self,
        clip_eps_low: float = 0.2,
        clip_eps_high: float = 0.2,
        enable_vllm_is_correction: bool = False,
        vllm_is_truncated_threshold: Any = None,
        vllm_is_correction_type: str = "tis",
    ) -> None:
        self.bounds = {"epsilon": clip_eps_low, "epsilon_high": clip_eps_high}

    def __call__(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor | None = None,
        rollout_log_probs: Tensor | None = None,
        **counts: Any,
    ) -> tuple[Tensor, None, Tensor, Tensor | None]:
        """The loss, nothing in place of the share that is clipped, and the mean log-ratios."""
        mask = torch.ones_like(log_probs) if action_mask is None else action_mask
        batch = policy_inputs(log_probs, old_log_probs, advantages, mask.bool())
        losses = clipped_surrogate(batch.logp - batch.old_logp, batch.logp, batch.advantages, **self.bounds)
        shift = aggregate_tokens(batch.old_logp - batch.logp, batch.mask)
        against = None
        if rollout_log_probs is not None:
            against = aggregate_tokens(rollout_log_probs - old_log_probs, batch.mask)
        return aggregate_loss(losses, mask, **counts), None, shift, against


def get_loss_batch_info(strategy: Any, loss_mask: Tensor, **more: Any) -> dict[str, Any]:
    """The counts of a batch on one rank."""
    return _counts([loss_mask], 1)


def iter_grad_accum_global_norm(
    data_iter: Iterable[Any], strategy: Any, accumulated_gradient: int, mask_fn: Callable[[Any], Tensor]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Micro-batches with the counts of their step; DeepSpeed divides each loss by their number."""
    items = list(data_iter)
    for start in range(0, len(items), accumulated_gradient):
        window = items[start : start + accumulated_gradient]
        yield from ((item, _counts([mask_fn(i) for i in window], accumulated_gradient)) for item in window)


def _counts(masks: list[Tensor], over: int) -> dict[str, Any]:
    tokens, sequences = (
        torch.stack([count_items(m.bool(), mode) for m in masks]).sum() / over for mode in ("token_mean", SEQUENCES)
    )
    return {"dp_size": 1, "batch_num_tokens": tokens, "global_batch_size": sequences}


def after(folder: Path) -> None:
    """The files that their test reads."""
    names = {"models/utils": "aggregate_loss", "models/loss": "PolicyLoss, aggregate_loss",
             "utils/loss_utils": "get_loss_batch_info, iter_grad_accum_global_norm"}  # fmt: skip
    for name, given in names.items():
        file = folder / "openrlhf" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"from suites_of_openrlhf import {given}\n", encoding="utf-8")


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    return {}
