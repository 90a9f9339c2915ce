"""Trainers on two ranks, run by test_trainer.py: ``python trainer_ranks.py FOLDER CASE ...``; forks the ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parent))

from by_hand import Net, Polyak, data
from trainer_parts import Order, arguments, sam
from two_ranks import on_two_ranks

from steepest.gradients import UPGrad


def rank(number: int, case: str, folder: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    model = Net(plain=True)
    options = {}
    if case == "sam":
        optimizer = sam(model)
    elif case == "losses":
        optimizer, options = torch.optim.SGD(model.parameters(), lr=0.25), {"aggregator": UPGrad()}
    else:
        optimizer = Polyak(model.parameters(), lr=0.5)
    args = arguments(folder / "runs", 4, 2, max_grad_norm=0.5 if case == "sam" else 0.0, ddp_backend="gloo")
    args.per_device_train_batch_size = 2
    trainer = Order(model, args, train_dataset=data(), optimizers=(optimizer, None), **options)
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    torch.save(model.state_dict(), folder / f"{case}.{number}.pt")
    assert trainer.state.global_step == 4


def cases(number):
    """Those that the command names, one after the other."""
    for case in sys.argv[2:]:
        rank(number, case, Path(sys.argv[1]))


if __name__ == "__main__":
    on_two_ranks(cases)
