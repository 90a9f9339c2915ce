"""Steps that draw a further batch: which rows they see, how the loop goes on, resumed runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steepest.descent import ArrayBatches, Descent, Hook
from steepest.losses import CrossEntropyLoss

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


class Averaged(torch.optim.Optimizer):
    """Descends along the mean gradient of the batch and of the one after it, where there is one."""

    def __init__(self, parameters, lr=0.5):
        super().__init__(parameters, {"lr": lr})
        self.seen = []

    def step(self, closure):
        loss = closure()
        weights = self.param_groups[0]["params"]
        mean = [w.grad.clone() for w in weights]
        further = closure.next_batch()
        self.seen.append([closure.inputs.inputs, None if further is None else further.inputs.inputs])
        if further is not None:
            further()
            mean = [(g + w.grad) / 2 for g, w in zip(mean, weights)]
        with torch.no_grad():
            for w, g in zip(weights, mean):
                w -= self.param_groups[0]["lr"] * g
        return loss


def arrays():
    return ArrayBatches(X, Y, batch_size=4)


def loader():
    generator = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, generator=generator)


def descent(batches, hooks=()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 2))
    return Descent(model, CrossEntropyLoss(), batches, optimizer=Averaged(model.parameters()), hooks=hooks)


def test_a_step_gets_the_batch_after_its_own_and_the_loop_the_one_after_that():
    run = descent(arrays()).fit(2)
    for epoch in (1, 2):
        rows = [batch.inputs for batch in arrays().epoch(epoch)]
        seen = run.optimizer.seen[3 * (epoch - 1) : 3 * epoch]
        for step, (own, further) in enumerate(seen):
            assert torch.equal(own, rows[2 * step])
            assert further is None if step == 2 else torch.equal(further, rows[2 * step + 1])
    assert len(run.optimizer.seen) == 6
    assert (run.epoch, run.step, run.drawn) == (2, 0, 0)


def test_its_gradient_is_that_of_its_rows():
    """Two steps by hand in double precision, of a network without noise."""
    torch.manual_seed(2)
    model = nn.Linear(3, 2).double()
    w, b = (p.detach().clone().requires_grad_() for p in model.parameters())
    batches = ArrayBatches(X.double(), Y, batch_size=5)
    Descent(model, CrossEntropyLoss(), batches, optimizer=Averaged(model.parameters())).fit(1)
    rows = [(batch.inputs, batch.target) for batch in batches.epoch(1)]
    for pair in (rows[:2], rows[2:]):
        loss = sum(nn.functional.cross_entropy(x @ w.T + b, y) for x, y in pair) / 2
        gw, gb = torch.autograd.grad(loss, (w, b))
        w, b = (w - 0.5 * gw).detach().requires_grad_(), (b - 0.5 * gb).detach().requires_grad_()
    torch.testing.assert_close(model.weight.detach(), w.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.bias.detach(), b.detach(), rtol=1e-6, atol=1e-7)


class Kept(Hook):
    """The state of a run after some step."""

    def __init__(self, at):
        self.at, self.steps, self.state = at, 0, None

    def on_step(self, descent, batch, loss):
        self.steps += 1
        if self.steps == self.at:
            self.state = copy.deepcopy(descent.state_dict())


@pytest.mark.parametrize("batches", [arrays, loader])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_resumed_run_goes_on_with_the_batch_after_those_that_were_drawn(batches, at):
    keeper = Kept(at)
    whole = descent(batches(), [keeper]).fit(3)
    assert keeper.state["drawn"] == (at - 1) % 3 + 1
    again = descent(batches(), [Hook()])
    again.load_state_dict(keeper.state)
    again.fit(3)
    assert len(again.optimizer.seen) == 9 - at
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters()):
        assert torch.equal(mine, theirs)
    assert again.history == whole.history


def test_a_state_of_runs_that_drew_nothing_is_taken():
    run = descent(arrays()).fit(1)
    state = run.state_dict()
    del state["drawn"]
    run.load_state_dict(state)
    assert run.drawn == 0
    with pytest.raises(ValueError, match="drawn: expected an integer >= 0"):
        run.load_state_dict(state | {"drawn": -1})


def test_a_step_that_fails_leaves_nothing_drawn():
    class Fails(Averaged):
        def step(self, closure):
            closure.next_batch()
            raise RuntimeError("no")

    run = descent(arrays())
    run.optimizer = Fails(run.model.parameters())
    with pytest.raises(RuntimeError, match="no"):
        run.fit(1)
    run.optimizer = Averaged(run.model.parameters())
    run.fit(1)
    assert torch.equal(run.optimizer.seen[0][0], next(iter(arrays().epoch(1))).inputs)
    assert len(run.optimizer.seen) == 3


def test_outside_of_an_epoch_there_is_none():
    run = descent(arrays())
    assert run.draw() is None
    assert run.fit(1).draw() is None
