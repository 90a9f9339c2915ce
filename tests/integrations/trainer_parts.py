"""A Trainer for test_trainer.py and trainer_ranks.py; apart, because it takes seconds to import."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from steepest.integrations.transformers import RecorderCallback, SteepestTrainer, StepsMixin
from steepest.optim import SAM

sys.path.insert(0, str(Path(__file__).parent))
from by_hand import RHO

sys.path.pop(0)

SGD = {"lr": 0.25, "momentum": 0.5}
__all__ = ["SGD", "Order", "RecorderCallback", "SteepestTrainer", "StepsMixin", "Trainer", "arguments", "sam"]


class Order(StepsMixin, Trainer):
    """Rows in their order, and random numbers that begin anew with each step."""

    def __init__(self, *args, seeds=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = Calls(seeds)
        self.add_callback(self.calls)

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Calls(TrainerCallback):
    def __init__(self, seeds):
        self.seeds, self.names = seeds, []

    def on_step_begin(self, args, state, control, **_):
        if self.seeds:
            torch.manual_seed(state.global_step)

    def on_pre_optimizer_step(self, *_, **__):
        self.names.append("before")

    def on_optimizer_step(self, *_, **__):
        self.names.append("after")


def arguments(tmp_path, steps=6, accumulation=1, **kw):
    given = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "save_strategy": "no", **kw}
    return TrainingArguments(
        str(tmp_path), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation,
        use_cpu=True, report_to=[], logging_steps=1, disable_tqdm=True, logging_nan_inf_filter=False, **given,
    )  # fmt: skip


def sam(model, **kw):
    return SAM(model.parameters(), torch.optim.SGD, rho=RHO, **{**SGD, **kw})
