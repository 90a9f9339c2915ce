"""The loop: what reaches an objective, the closure, vector losses, hooks, autocast, early stopping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core.method import Method
from steepest.core.objective import Batch, Objective
from steepest.descent import ArrayBatches, Checkpoint, Descent, EarlyStopping, Hook
from steepest.losses import CompSumLoss, CrossEntropyLoss
from steepest.nn.networks import Network, mlp

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


class Spy(Objective):
    name = "spy"

    def __init__(self, needs):
        super().__init__()
        self.needs, self.calls = needs, []

    def start_epoch(self, epoch, epochs):
        self.calls.append((epoch, epochs, self.training))

    def after_step(self):
        self.calls.append("step")

    def forward(self, outputs, target, **named):
        self.named, self.outputs, self.target = named, outputs, target
        self.calls.append(self.training)
        return outputs.sum()


def network():
    return Network(mlp(3, width=4, depth=1), nn.Linear(4, 2))


def batches(**kwargs):
    return ArrayBatches(X, Y, batch_size=4, **kwargs)


@pytest.mark.parametrize(
    ("needs", "weight"), [((), False), (("index",), False), (("features", "head"), True), (("inputs", "teacher"), True)]
)
def test_exactly_what_is_declared(needs, weight):
    spy, model = Spy(needs), network()
    extra = {"teacher": torch.arange(12.0), "mask": torch.ones(12)}
    Descent(model, spy, batches(extra=extra, weight=Y.float() + 1 if weight else None)).fit(1)
    assert set(spy.named) == {*needs, *(["weight"] if weight else [])}
    if "index" in needs:
        assert torch.equal(Y[spy.named["index"]], spy.target)
    if "features" in needs:
        assert spy.named["features"].shape == (4, 4)
        assert spy.named["features"].requires_grad
        assert spy.named["head"] is model.head
        assert torch.equal(spy.named["weight"], spy.target.float() + 1)
    if "teacher" in needs:
        assert torch.equal(X[spy.named["teacher"].long()], spy.named["inputs"])


def test_features_need_a_backbone_and_a_head():
    with pytest.raises(ValueError, match="model: expected attributes 'backbone' and 'head', because spy needs feat"):
        Descent(nn.Linear(3, 2), Spy(("features",)), batches()).fit(1)
    with pytest.raises(ValueError, match="batch: expected 'teacher', which spy needs"):
        Descent(nn.Linear(3, 2), Spy(("teacher",)), batches()).fit(1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)
    with pytest.raises(ValueError, match="batch: expected 'index'"):
        Descent(nn.Linear(3, 2), Spy(("index",)), loader).fit(1)


def test_the_objective_hears_of_epochs_and_steps_while_training():
    spy, model = Spy(()), network()

    class Eval(Hook):
        def on_epoch_end(self, descent):
            descent.model.eval()
            descent.objective.eval()

    Descent(model, spy, batches(), hooks=[Eval()]).fit(2)
    assert spy.calls == [(1, 2, True), *[True, "step"] * 3, (2, 2, True), *[True, "step"] * 3]


class SAM(torch.optim.Optimizer):
    """Gradient at the point that is ``radius`` up the slope."""

    def __init__(self, parameters, lr, radius):
        super().__init__(parameters, {"lr": lr})
        self.radius, self.seen = radius, []

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        self.seen.append((float(loss), float(closure.loss().detach()), closure.inputs))
        p = self.param_groups[0]["params"]
        norm = torch.cat([w.grad.flatten() for w in p]).norm()
        moves = [self.radius * w.grad / norm for w in p]
        with torch.no_grad():
            for w, move in zip(p, moves):
                w += move
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for w, move in zip(p, moves):
                w -= move + self.param_groups[0]["lr"] * w.grad
        return loss


def test_closure_serves_an_optimizer_that_evaluates_twice():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    w, b = model.weight.detach().double().requires_grad_(), model.bias.detach().double().requires_grad_()
    optimizer = SAM(model.parameters(), 0.5, 0.1)
    run = Descent(model, CrossEntropyLoss(), ArrayBatches(X, Y, batch_size=12), optimizer=optimizer).fit(5)
    for _ in range(5):
        gw, gb = torch.autograd.grad(nn.functional.cross_entropy(X.double() @ w.T + b, Y), (w, b))
        norm = (gw.square().sum() + gb.square().sum()).sqrt()
        up_w, up_b = w + 0.1 * gw / norm, b + 0.1 * gb / norm
        gw, gb = torch.autograd.grad(nn.functional.cross_entropy(X.double() @ up_w.T + up_b, Y), (up_w, up_b))
        w, b = (w - 0.5 * gw).detach().requires_grad_(), (b - 0.5 * gb).detach().requires_grad_()
    torch.testing.assert_close(model.weight.double(), w, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bias.double(), b, rtol=1e-5, atol=1e-6)
    for (loss, forward_only, inputs), row in zip(optimizer.seen, run.history):
        assert loss == forward_only == row["loss"]
        assert isinstance(inputs, Batch)
        assert len(inputs.target) == 12


def test_lbfgs_reaches_the_minimum():
    model = nn.Linear(3, 1).double()

    class Square(Objective):
        name = "square"

        def forward(self, outputs, target):
            return ((outputs.squeeze(-1) - target) ** 2).mean()

    x, y = X.double(), X.double() @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.3 + torch.linspace(-1, 1, 12).double()
    Descent(
        model,
        Square(),
        ArrayBatches(x, y, batch_size=12),
        optimizer=torch.optim.LBFGS(  # to the last place, not to where its usual tolerances stop
            model.parameters(), line_search_fn="strong_wolfe", tolerance_grad=1e-13, tolerance_change=0.0
        ),
    ).fit(5)
    wanted = torch.linalg.lstsq(torch.cat([x, torch.ones(12, 1)], 1), y).solution
    torch.testing.assert_close(torch.cat([model.weight[0], model.bias]), wanted, rtol=1e-5, atol=1e-6)


class Two(Method):
    def loss(self, model, batch, objective):
        out = model(batch.inputs)
        return torch.stack([objective(out, batch.target), (out**2).mean()])


def test_several_losses_need_an_aggregator():
    with pytest.raises(ValueError, match="gradients: expected an aggregator, because the method returns several"):
        Descent(nn.Linear(3, 2), CrossEntropyLoss(), batches(), method=Two()).fit(1)
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    data = ArrayBatches(X, Y, batch_size=12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Descent(
        model,
        CrossEntropyLoss(),
        data,
        method=Two(),
        optimizer=optimizer,
        gradients=lambda losses, _: (losses * torch.tensor([1.0, 2.0])).sum().backward(),
    ).fit(1)
    out = twin(X)
    first, second = nn.functional.cross_entropy(out, Y), (out**2).mean()
    (first + 2 * second).backward()
    torch.testing.assert_close(model.weight, twin.weight - 0.1 * twin.weight.grad)
    assert run.history[0]["loss"] == pytest.approx((first + second).item(), rel=1e-5)


class Log(Hook):
    def __init__(self, log, name):
        self.log, self.name = log, name

    def on_start(self, descent):
        self.log.append((self.name, "start", descent.epoch))

    def on_epoch_start(self, descent):
        self.log.append((self.name, "epoch_start", descent.epoch))

    def on_step(self, descent, batch, loss):
        self.log.append((self.name, "step", descent.step))

    def on_epoch_end(self, descent):
        self.log.append((self.name, "epoch_end", descent.epoch))

    def on_end(self, descent):
        self.log.append((self.name, "end", descent.epoch))


def test_hooks_in_order_checkpoints_last_and_first_at_the_end(tmp_path):
    log = []

    class Saved(Log, Checkpoint):
        def __init__(self):
            Log.__init__(self, log, "c")

    Descent(network(), CrossEntropyLoss(), batches(steps=1), hooks=[Saved(), Log(log, "a"), Log(log, "b")]).fit(1)
    moments = [("start", 0), ("epoch_start", 0), ("step", 1), ("epoch_end", 1)]
    wanted = [(name, *moment) for moment in moments for name in "abc"]
    assert log == wanted + [(name, "end", 1) for name in "cab"]


def test_a_hook_may_stop_within_an_epoch():
    class Stop(Hook):
        def on_step(self, descent, batch, loss):
            descent.stop = descent.step == 2

    run = Descent(network(), CrossEntropyLoss(), batches(), hooks=[Stop()]).fit(5)
    assert (run.epoch, len(run.history)) == (1, 1)


def test_autocast_runs_the_model_in_half_and_the_loss_in_float():
    class Types(Method):
        def loss(self, model, batch, objective):
            self.outputs = model(batch.inputs)
            return objective(self.outputs, batch.target)

    method = Types()
    run = Descent(nn.Linear(3, 2), CompSumLoss(), batches(), method=method, autocast=torch.bfloat16).fit(2)
    assert method.outputs.dtype == torch.bfloat16
    assert run.model.weight.dtype == torch.float32
    assert math.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize(
    ("values", "greater", "patience", "epochs", "best"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.9], True, 2, 4, 2),  # equal is no improvement
        ([0.5, 0.4, 0.6, 0.3, 0.5, 0.5, 0.1], False, 2, 6, 4),
        ([math.nan, 0.2, math.nan, 0.1], True, 2, 4, 2),
        ([math.nan, math.nan, math.nan], True, 1, 2, 1),
        ([0.3, math.nan, 0.5, 0.4], False, 3, 4, 1),
        ([0.3, 0.2, 0.1], True, None, 3, 1),
    ],
)
def test_early_stopping_stops_at_its_epoch_with_the_best_state(values, greater, patience, epochs, best):
    states = []

    def evaluate(descent):
        states.append({k: v.clone() for k, v in descent.model.state_dict().items()})
        return values[descent.epoch - 1]

    stopping = EarlyStopping(evaluate, patience=patience, greater_is_better=greater, keep_best=True)
    run = Descent(network(), CrossEntropyLoss(), batches(), hooks=[stopping]).fit(len(values))
    assert (run.epoch, stopping.best_epoch) == (epochs, [best])
    assert all(torch.equal(v, states[best - 1][k]) for k, v in run.model.state_dict().items())
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])
    assert math.isnan(values[best - 1]) or stopping.best == [values[best - 1]]
    assert len(stopping.curves[0]) == epochs


def test_early_stopping_takes_tensors_and_refuses_another_count():
    found = [torch.tensor(0.5), [0.5, 0.6]]
    stopping = EarlyStopping(lambda descent: found[descent.epoch - 1])
    run = Descent(network(), CrossEntropyLoss(), batches(), hooks=[stopping])
    assert run.fit(1).hooks[0].best == [0.5]
    with pytest.raises(ValueError, match="evaluate: expected 1 values, one for each model still there"):
        run.fit(2)
    with pytest.raises(ValueError, match="keep_best: expected False for a stack"):
        Descent(
            network(), CrossEntropyLoss(), batches(), hooks=[EarlyStopping(lambda _: [1.0, 2.0], keep_best=True)]
        ).fit(1)
    with pytest.raises(ValueError, match="patience: expected an integer >= 1"):
        EarlyStopping(lambda _: 0.0, patience=0)


def test_the_plain_loop_written_out():
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    data = batches(seed=3)
    run = Descent(model, CrossEntropyLoss(), data).fit(3)
    optimizer, means = torch.optim.AdamW(twin.parameters()), []
    for epoch in (1, 2, 3):
        losses = []
        for batch in data.epoch(epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(twin(X[batch.index]), Y[batch.index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-6, atol=1e-7)
    assert [row["loss"] for row in run.history] == pytest.approx(means, rel=1e-5)
    assert run.epoch == Descent(model, CrossEntropyLoss(), data).fit(0).epoch + 3
    with pytest.raises(ValueError, match="epochs: expected an integer >= 0"):
        run.fit(-1)
