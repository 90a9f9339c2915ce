"""Run by a test: the loss of two ranks, of which one has two rows of a batch and the other the rest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from steepest.losses.contrastive import AdaptiveMarginCosineLoss


def rank(number: int, folder: Path) -> None:
    """Value, half the gradient, and margin of a rank, into a file."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    cosines, labels = torch.load(folder / "batch.pt", weights_only=True)
    own = slice(0, 2) if number == 0 else slice(2, None)
    leaf = cosines[own].clone().requires_grad_()
    loss = AdaptiveMarginCosineLoss()
    value = loss(leaf, labels[own], ranks=torch.distributed.group.WORLD)
    torch.save([value.detach(), torch.autograd.grad(value, leaf)[0] / 2, loss.terms["margin"]], folder / f"{number}.pt")


if __name__ == "__main__":
    child = os.fork()
    rank(1 if child == 0 else 0, Path(sys.argv[1]))
    if child:
        sys.exit(os.waitpid(child, 0)[1] != 0)
