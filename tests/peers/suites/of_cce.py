"""cut-cross-entropy's names, answered by steepest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from steepest import kernels

FOLDER = "ml-cross-entropy"
FILES = tuple(
    f"tests/test_{name}.py"
    for name in (
        "cce_loss_forward", "cce_loss_backward", "cce_lse", "cce_indexed_dot", "compute_z_loss", "vocab_parallel",
    )
)  # fmt: skip
SUPPORT: tuple[str, ...] = ()
ON_CPU = (
    (r'device="cuda"', 'device="cpu"'),
    (r"skipif\(not torch\.cuda\.is_available\(\)", "skipif(False"),
    (r"dtype == torch\.bfloat16 and not torch\.cuda\.is_available\(\)", "False"),
    (r"torch\.cuda\.manual_seed", "torch.manual_seed"),
    # four interpreters that each import torch again take longer than the test
    (r"from torch\.multiprocessing\.spawn import spawn as mp_spawn", "from cut_cross_entropy.forked import mp_spawn"),
)
LEFT_OUT = {
    r"test_loss_(forward|backward)\[.*torch_compile": "impl is accepted and changes nothing but the filter: 'cce' and "
    "'cce_exact' run both",
}
EXPLAINED = {
    r"test_lse\[.*dtype[12]\]": "logits of half inputs are rounded to their type, as in torch's product, which their "
    "test takes as the worst; theirs stay in float32. compute_dtype=torch.float32 does so in the loss",
}
NOT_RUN: dict[str, str] = {}


def softcapping(logits: Tensor, softcap: float) -> Tensor:
    """The cap by itself, for their references."""
    return softcap * torch.tanh(logits / softcap)


def compute_z_loss(
    lse: Tensor, targets: Tensor | None = None, shift: bool | int = 0, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """By ``log_partition_penalty``, with weights 0 for ignored targets."""
    counts = None if targets is None else (targets[..., int(shift) :] != ignore_index).to(lse.dtype)
    return kernels.log_partition_penalty(lse, token_weight=counts, reduction=reduction)


def neg_dot(e: Tensor, c: Tensor, inds: Tensor, bias: Tensor | None = None, softcap: float | None = None) -> Tensor:
    """By ``indexed_dot``."""
    found = -kernels.indexed_dot(e, c, inds, bias=bias)
    return found if softcap is None else softcapping(found, softcap)


def lse(e: Tensor, c: Tensor, bias: Tensor | None = None, softcap: float | None = None) -> Any:
    """By ``linear_logsumexp``."""
    return kernels.linear_logsumexp(e, c, bias=bias, softcap=softcap)


def partition(n: int, rank: int, world_size: int) -> tuple[int, int]:
    """Parts whose sizes differ by one at most, the larger ones first."""
    each, more = divmod(n, world_size)
    return rank * each + min(rank, more), (rank + 1) * each + min(rank + 1, more)


@dataclass
class VocabParallelOptions:
    """A rank's part of the vocabulary."""

    start: int
    stop: int
    group: Any = None
    reduce_e_grad: bool = True

    @classmethod
    def from_vocab(cls, vocab_size: int, group: Any = None, reduce_e_grad: bool = True) -> VocabParallelOptions:
        """This rank's."""
        rank, ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        return cls(*partition(vocab_size, rank, ranks), group, reduce_e_grad)


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    forked = partial(start_processes, start_method="fork")
    return {
        "cut_cross_entropy": {
            "linear_cross_entropy": kernels.cce_linear_cross_entropy,
            "VocabParallelOptions": VocabParallelOptions,
        },
        "cut_cross_entropy.constants": {"IGNORE_INDEX": -100},
        "cut_cross_entropy.utils": {"compute_z_loss": compute_z_loss, "softcapping": softcapping},
        "cut_cross_entropy.indexed_dot": {"indexed_neg_dot_forward_kernel": neg_dot},
        "cut_cross_entropy.cce_lse_forward": {"cce_lse_forward_kernel": lse},
        "cut_cross_entropy.vocab_parallel": {},
        "cut_cross_entropy.vocab_parallel.utils": {
            "partition_n_into_range": partition,
            "VocabParallelOptions": VocabParallelOptions,
        },
        "cut_cross_entropy.forked": {"mp_spawn": forked},
    }
