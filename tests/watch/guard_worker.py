"""One of two ranks whose runs are guarded; writes what it saw to a file of its own."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from torch import nn

from steepest.watch import Guard


def main(rank: int, folder: Path) -> None:
    """NaN on rank 1 at step 5, and a far loss on rank 0 at steps 26 to 28, which takes both ranks back."""
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    objective = nn.CrossEntropyLoss()
    guard = Guard(model, optimizer, objective, every=10, replays=False)
    generator = torch.Generator().manual_seed(rank)
    moved = []
    for step in range(1, 36):
        x, y = torch.randn(8, 3, generator=generator), torch.randint(2, (8,), generator=generator)
        loss = objective(model(x), y)
        told = math.nan if (rank, step) == (1, 5) else 1e3 if rank == 0 and 26 <= step <= 28 else 1.0
        guard.observe(loss * told, x, y)
        optimizer.zero_grad()
        loss.backward()
        for p in model.parameters():
            torch.distributed.all_reduce(p.grad)
        before = model.weight.detach().clone()
        optimizer.step()
        moved.append(not torch.equal(before, model.weight))
    actions = [(line["step"], line["action"]) for line in guard.actions]
    causes = [line["cause"] for line in guard.actions]
    weight = model.weight.detach().tolist()
    facts = {"moved": moved, "actions": actions, "causes": causes, "weight": weight}
    (folder / f"{rank}.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
