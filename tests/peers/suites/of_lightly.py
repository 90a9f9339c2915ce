"""lightly's tests of NT-Xent: steepest in its place, with its memory bank made of a queue and the pair kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.cosine import unit_rows
from steepest.core.embedding_queue import EmbeddingQueue
from steepest.kernels.pair_log_partition import pair_log_partition
from steepest.losses.contrastive import nt_xent_loss

FOLDER = "lightly"
FILES = ("tests/loss/test_ntx_ent_loss.py",)
SUPPORT: tuple[str, ...] = ()
ON_CPU: tuple[tuple[str, str], ...] = ()
LEFT_OUT = {
    r"test__gather_distributed": "about whether they look for torch.distributed",
    r"_cuda": "wants a GPU",
}
EXPLAINED = {r"test_forward_pass_neg_temp": "a temperature of -1 is refused here"}
NOT_RUN = {"tests/loss/test_dcl_loss.py": "decoupled contrastive learning of two views, which is not here"}


class NTXentLoss(nn.Module):
    """Their call: two tensors of views; with a memory bank its rows are the negatives of the first one."""

    def __init__(self, temperature: float = 0.5, memory_bank_size: int = 0, gather_distributed: bool = False) -> None:
        super().__init__()
        self.temperature, self.size = temperature, memory_bank_size
        self.queue: EmbeddingQueue | None = None

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss, and the second tensor into the bank."""
        if not self.size:
            return nt_xent_loss(torch.stack([out0, out1]), temperature=self.temperature)
        self.queue = self.queue or EmbeddingQueue(self.size, out0.shape[1])
        first, second = unit_rows(out0), unit_rows(out1)
        rows = len(first)
        mask = torch.cat([torch.eye(rows, dtype=torch.bool), self.queue.written.expand(rows, -1)], 1)
        both = torch.cat([second, self.queue.rows])
        pairs = pair_log_partition(first, both, scale=1 / self.temperature, mask=mask)
        self.queue.put(second, torch.arange(rows))
        assert pairs.log_p is not None
        return -pairs.log_p.mean()


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    return {"lightly.loss": {"NTXentLoss": NTXentLoss}, "pytest_mock": {"MockerFixture": object}}
