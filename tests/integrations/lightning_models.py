"""Modules of Lightning that test_lightning.py trains; apart, because Lightning takes seconds to import."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import lightning
import torch

from steepest.integrations.lightning import StepsMixin
from steepest.optim import SAM

sys.path.insert(0, str(Path(__file__).parent))
from by_hand import RHO, Net, data

sys.path.pop(0)

SGD = {"lr": 0.25, "momentum": 0.5}


class Model(StepsMixin, lightning.LightningModule):
    """A step, its loss logged, random numbers that begin anew with each step."""

    def __init__(self, make, net=None, schedule=False, losses=False, accumulation=1):
        super().__init__()
        self.net = Net() if net is None else net
        self.make, self.schedule, self.losses, self.accumulation = make, schedule, losses, accumulation
        self.calls, self.lengths, self.seen = 0, [], []

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx % self.accumulation == 0:
            torch.manual_seed(self.global_step)

    def training_step(self, batch, batch_idx):
        self.calls += 1
        outputs = self.net(**batch)
        losses = outputs["losses"]
        self.log("loss", outputs["loss"])
        return {"loss": sum(losses.values()), "losses": losses} if self.losses else outputs["loss"]

    def on_before_optimizer_step(self, optimizer):
        grads = [p.grad.flatten() for p in self.parameters()]
        self.lengths.append(torch.cat(grads).norm().item())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(self.trainer.callback_metrics["loss"].item())

    def configure_optimizers(self):
        optimizer = self.make(self.net.parameters())
        if not self.schedule:
            return optimizer
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


class Manual(Model):
    """The same by hand: a batch a step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            loss = self.net(**batch)["loss"]
            self.manual_backward(loss)
            return loss

        self.log("loss", self.manual_step(optimizer, closure))


def sam(params):
    return SAM(params, torch.optim.SGD, rho=RHO, **SGD)


def sgd(params):
    return torch.optim.SGD(params, lr=0.25)


class Float16(lightning.pytorch.plugins.precision.MixedPrecision):
    """As on a GPU; weights of float64 are not cast."""

    def __init__(self):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
        super().__init__("16-mixed", "cpu", scaler)


def fit(model, steps, rows=None, folder=None, resume=None, **kw):
    loader = torch.utils.data.DataLoader(data() if rows is None else rows, batch_size=4)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, **kw}
    options.setdefault("enable_checkpointing", False)
    options.setdefault("accumulate_grad_batches", model.accumulation)
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", default_root_dir=folder, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader, ckpt_path=resume)
    return trainer


class Plain(lightning.LightningModule):
    """Without the mixin."""

    accumulation = 1

    def __init__(self):
        super().__init__()
        self.net = Net()

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.global_step)

    def training_step(self, batch, batch_idx):
        return self.net(**batch)["loss"]

    def configure_optimizers(self):
        return sgd(self.net.parameters())


class CallsItsBase(Model):
    """Watched twice, and one step."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class Labelled(lightning.LightningModule):
    """Batches of inputs and targets, AdamW; infinite at one batch."""

    def __init__(self, inf_at=()):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        self.inf_at, self.seen = inf_at, []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self(x), y) * (torch.inf if batch_idx in self.inf_at else 1.0)
        self.seen.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def plain(model, callbacks, steps=6, checkpoint=None, **options):
    """A trainer that has trained it."""
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(4, generator=generator), k % 3) for k in range(48)]
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, **options,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=4), ckpt_path=checkpoint)
    return trainer
