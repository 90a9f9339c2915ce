"""Trainers of TRL on two ranks, run by test_trl.py: ``python trl_ranks.py FOLDER``; forks the ranks."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parent))

import trl_parts
from two_ranks import on_two_ranks

from steepest.core.group_policy import GroupPolicyLoss
from steepest.losses import DirectCoverageLoss, TokenCrossEntropyLoss

SAME = {
    "SFT": (TokenCrossEntropyLoss(), {}),
    "DPO": ("sigmoid", {}),
    "GRPO": (GroupPolicyLoss("dapo"), {"epsilon_high": 0.28}),
    "Distillation": ("reverse_kl", {}),
}


def rank(number: int, folder: Path) -> None:
    for kind, (loss, options) in SAME.items():
        for who in ("ours", "trl"):
            mine = who == "ours"
            AcceleratorState._reset_state(reset_partial_state=True)
            own = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", **({} if mine else options)}
            trainer = trl_parts.trainer(
                kind, folder / "runs", copy.deepcopy(loss), options=own, accumulation=2, mine=mine, rows=24
            )
            trainer.train()
            assert trainer.accelerator.num_processes == 2
            if number == 0:
                torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), folder / f"{kind}.{who}.pt")
    AcceleratorState._reset_state(reset_partial_state=True)
    own = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    trainer = trl_parts.trainer("SFT", folder / "runs", DirectCoverageLoss(4.0), options=own, accumulation=2, rows=24)
    trainer.train()
    if number == 0:
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), folder / "sequences.pt")


if __name__ == "__main__":
    on_two_ranks(lambda number: rank(number, Path(sys.argv[1])))
