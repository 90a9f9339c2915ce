"""Steps of this package in Lightning come to what a loop written out comes to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from steepest.gradients import GCond, UPGrad
from steepest.integrations.lightning import RecorderCallback

sys.path.insert(0, str(Path(__file__).parent))
from by_hand import Net, Polyak, PolyakByHand, adding, data, jointly, same, train, windows

sys.path.pop(0)

SGD = {"lr": 0.25, "momentum": 0.5}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def models():
    """Imported where these tests run, not where they are collected: it takes seconds."""
    pytest.importorskip("lightning")
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module("lightning_models")
    finally:
        sys.path.pop(0)


def constant(model, batch, window):
    """Lightning divides by the number of micro-batches of a whole step, also where the last one has fewer."""
    return model(**batch)["loss"] / 4


@pytest.mark.parametrize("accumulation", [1, 4])
def test_sam_is_that_of_a_loop_written_out(models, accumulation):
    """Weights, running statistics, the clipped gradient, rates, what is logged; 10 micro-batches an epoch."""
    model, twin = models.Model(models.sam, schedule=True, accumulation=accumulation), Net()
    trainer = models.fit(model, 6, gradient_clip_val=0.5)
    base = torch.optim.SGD(twin.parameters(), **SGD)
    rates = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 1 / (1 + step))
    options = {"loss_of": constant} if accumulation == 4 else {}
    log = train(twin, base, windows(data(), 4, accumulation, 6), schedule=rates, clip=0.5, **options)
    same(model.net, twin)
    assert model.lengths == pytest.approx([length for _, length in log])
    assert max(model.lengths) > 0.5
    assert trainer.global_step == 6
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25 / 7)
    assert model.calls == 2 * len(model.seen)
    if accumulation == 1:
        assert model.seen == pytest.approx([loss for loss, _ in log])


def test_manual_optimization(models):
    model, twin = models.Manual(models.sam), Net()
    models.fit(model, 4)
    base = torch.optim.SGD(twin.parameters(), **SGD)
    log = train(twin, base, windows(data(), 4, 1, 4))
    same(model.net, twin)
    assert model.seen == pytest.approx([loss for loss, _ in log])


@pytest.mark.parametrize("cls", ["Model", "Manual"])
def test_a_scaler(models, cls):
    """A scale that is a power of two changes no bit; the radius is that of gradients without it."""
    ends = [getattr(models, cls)(models.sam) for _ in range(2)]
    clip = {"gradient_clip_val": 0.5} if cls == "Model" else {}
    for model, plugins in zip(ends, ([], [models.Float16()])):
        models.fit(model, 4, plugins=plugins, **clip)
    same(ends[0].net, ends[1].net, exact=True)
    assert ends[0].lengths == ends[1].lengths


@pytest.mark.parametrize("cls", ["Model", "Manual"])
@pytest.mark.parametrize("call", [2, 3], ids=["first pass", "second pass"])
def test_an_overflow_in_either_pass_skips_the_step(models, call, cls):
    """Weights, statistics and momenta as before; the scale halves."""
    net, twin = Net(), Net()
    net.inf_at = (call,)
    model, plugin = getattr(models, cls)(models.sam, net), models.Float16()
    trainer = models.fit(model, 2, plugins=[plugin])
    assert net.calls == 4
    base = torch.optim.SGD(twin.parameters(), **SGD)
    train(twin, base, windows(data(), 4, 1, 1))
    same(net, twin)
    (optimizer,) = trainer.optimizers
    for own, wanted in zip(optimizer.state.values(), base.state.values()):
        torch.testing.assert_close(own["momentum_buffer"], wanted["momentum_buffer"], rtol=1e-9, atol=1e-12)
    assert optimizer.skipped == 1
    assert plugin.scaler.get_scale() == 512.0


def test_resumed_is_uninterrupted(models, tmp_path):
    ends = []
    for resume in (None, str(tmp_path / "at" / "epoch=0-step=5.ckpt")):
        model = models.Model(models.sam, schedule=True, accumulation=2)
        keeping = models.lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path / "at", every_n_train_steps=5, save_top_k=-1
        )
        models.fit(model, 7, folder=tmp_path, resume=resume, enable_checkpointing=True, callbacks=[keeping])
        ends.append(model)
    assert (ends[0].calls, ends[1].calls) == (28, 8)
    same(ends[0].net, ends[1].net, exact=True)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_a_step_that_takes_the_loss(models, scaled):
    """It is that of all micro-batches, without the scale."""
    model, twin = models.Model(lambda params: Polyak(params, lr=0.5), accumulation=2), Net()
    models.fit(model, 4, plugins=[models.Float16()] if scaled else [])
    losses = []
    train(twin, PolyakByHand(twin, losses), windows(data(), 4, 2, 4), sam=False, loss_of=adding(losses))
    same(model.net, twin)


def test_a_step_that_takes_the_loss_by_hand(models):
    model, twin = models.Manual(lambda params: Polyak(params, lr=0.5)), Net()
    models.fit(model, 3)
    losses = []
    train(twin, PolyakByHand(twin, losses), windows(data(), 4, 1, 3), sam=False, loss_of=adding(losses))
    same(model.net, twin)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("shared", [None, lambda net: list(net.stem.parameters())], ids=["all", "stem"])
def test_several_losses_are_joined_once_a_step(models, shared, scaled):
    model, twin = models.Model(models.sgd, Net(plain=True), losses=True, accumulation=2), Net(plain=True)
    model.aggregator = UPGrad()
    model.shared = None if shared is None else shared(model.net)
    models.fit(model, 5, plugins=[models.Float16()] if scaled else [])
    assert jointly(twin, windows(data(), 4, 2, 5), shared) > 0
    same(model.net, twin)


def test_an_aggregator_is_saved_with_the_model(models):
    model = models.Model(models.sgd, Net(plain=True), losses=True)
    model.aggregator = GCond()
    models.fit(model, 2)
    assert model.state_dict()["aggregator.steps"] == 2


def test_sam_over_several_losses(models):
    model, twin = models.Model(models.sam, losses=True, accumulation=2), Net()
    model.aggregator = lambda jacobian: jacobian.sum(0)
    models.fit(model, 3)

    def both(own, batch, window):
        return sum(own(**batch)["losses"].values()) / len(window)

    train(twin, torch.optim.SGD(twin.parameters(), **SGD), windows(data(), 4, 2, 3), loss_of=both)
    same(model.net, twin)


def test_losses_are_asked_for(models):
    model = models.Model(models.sgd, Net(plain=True))
    model.aggregator = UPGrad()
    with pytest.raises(ValueError, match="training_step"):
        models.fit(model, 1)


def test_what_needs_no_help_stays_lightnings_own(models):
    model, plain = models.Model(models.sgd), models.Plain()
    for own in (model, plain):
        models.fit(own, 3)
    same(model.net, plain.net, exact=True)
    assert not hasattr(model, "_steps_window")


def test_a_step_that_calls_that_of_its_base_is_one(models):
    ends = [cls(models.sam) for cls in (models.CallsItsBase, models.Model)]
    for model in ends:
        models.fit(model, 3)
    same(ends[0].net, ends[1].net, exact=True)
    assert ends[0].calls == ends[1].calls == 6


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_recorder_changes_nothing_and_has_every_loss(models, accumulation):
    ends, watch = [], RecorderCallback(every=2)
    for callbacks in ([], [watch]):
        model = models.Labelled()
        models.plain(model, callbacks, accumulate_grad_batches=accumulation)
        ends.append(model)
    same(ends[0], ends[1], exact=True)
    frame = watch.recorder.frame()
    losses = torch.tensor(ends[1].seen[: 6 * accumulation]).view(6, accumulation).mean(1)
    assert frame["loss"].tolist() == pytest.approx(losses.tolist(), rel=1e-6)
    assert frame["gradient_norms/norm"].dropna().index.tolist() == [1, 3, 5]
    assert not watch.recorder.failures
    assert frame["unit_activity/dead"].notna().any()
    assert frame["logit_spread/accuracy"].notna().any()


def test_a_guard_skips_a_step_that_is_not_finite_and_a_checkpoint_holds_both(models, tmp_path):
    watch = RecorderCallback(guard=True)
    model = models.Labelled(inf_at=(2,))
    trainer = models.plain(model, [watch])
    assert [(a["step"], a["cause"]) for a in watch.guard.actions] == [(3, ["non_finite"])]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = RecorderCallback(guard=True)
    models.plain(models.Labelled(), [again], steps=8, checkpoint=tmp_path / "a.ckpt")
    assert again.recorder.step == again.guard.step == 8
