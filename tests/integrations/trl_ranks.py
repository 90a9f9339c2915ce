"""Trainers of TRL on two ranks, run by test_trl.py: ``python trl_ranks.py FOLDER``; forks the ranks."""

from __future__ import annotations

import copy
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parent))

import trl_parts

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
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(port.getsockname()[1])
    children = []
    for number in range(2):
        if (child := os.fork()) == 0:
            try:
                os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
                rank(number, Path(sys.argv[1]))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(1)
