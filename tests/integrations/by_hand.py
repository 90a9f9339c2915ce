"""A small network, and training loops written out: what the front doors in other libraries must come to."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

RHO = 0.125


class Net(nn.Module):
    """Two targets through one hidden layer; gives the mean of both losses, and the losses.

    Args:
        plain: without running statistics and dropout.
        dtype: of the weights.
    """

    def __init__(self, plain=False, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Linear(4, 8), nn.Identity() if plain else nn.BatchNorm1d(8), nn.Tanh())
            self.drop = nn.Identity() if plain else nn.Dropout(0.25)
            self.head = nn.Linear(8, 2)
        self.to(dtype)
        self.calls, self.inf_at = 0, ()

    def forward(self, x, labels=None):
        outputs = self.head(self.drop(self.stem(x)))
        if labels is None:
            return {"logits": outputs}
        outputs = outputs.to(labels.dtype)
        first, second = (outputs - labels).unbind(1)
        away = outputs[:, 0] + labels[:, 0]  # conflicts with the other loss
        losses = {"square": first.square().mean(), "slope": away.abs().mean() + second.square().mean()}
        loss = (losses["square"] + losses["slope"]) / 2
        if self.training:
            loss = loss * (torch.inf if self.calls in self.inf_at else 1.0)
            self.calls += 1
        return {"loss": loss, "logits": outputs, "losses": losses}


def data(count=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(count, n, generator=generator, dtype=dtype) for n in (4, 2))
    return [{"x": a, "labels": b} for a, b in zip(x, y)]


def batches(rows, size):
    """Rows in their order."""
    return [
        {name: torch.stack([row[name] for row in rows[at : at + size]]) for name in rows[0]}
        for at in range(0, len(rows), size)
    ]


def windows(rows, size, accumulation, steps):
    """The micro-batches of each step; the last of an epoch may have fewer."""
    own = batches(rows, size)
    epoch = [own[at : at + accumulation] for at in range(0, len(own), accumulation)]
    return [epoch[step % len(epoch)] for step in range(steps)]


def mean_loss(model, batch, window):
    return model(**batch)["loss"] / len(window)


def train(model, optimizer, steps, *, schedule=None, clip=None, sam=True, loss_of=mean_loss, autocast=None, seeds=True):
    """SAM, or the optimizer alone, over windows of micro-batches; gives the loss and the length of each gradient."""
    weights, log = list(model.parameters()), []

    def backward(batch, window):
        with contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast):
            loss = loss_of(model, batch, window)
        loss.backward()
        return loss.item()

    model.train()
    for number, window in enumerate(steps):
        if seeds:
            torch.manual_seed(number)
        states, total = [], 0.0
        for batch in window:
            states.append(torch.get_rng_state())
            total += backward(batch, window)
        if sam:
            norm = torch.sqrt(sum(w.grad.double().square().sum() for w in weights))
            start = [w.detach().clone() for w in weights]
            buffers = [b.clone() for b in model.buffers()]
            with torch.no_grad():
                for w in weights:
                    w += (RHO / norm).to(w.dtype) * w.grad
            model.zero_grad()
            after = torch.get_rng_state()
            for batch, state in zip(window, states):
                torch.set_rng_state(state)
                backward(batch, window)
            torch.set_rng_state(after)
            with torch.no_grad():
                for w, before in zip(weights, start):
                    w.copy_(before)
                for b, before in zip(model.buffers(), buffers):
                    b.copy_(before)
        length = torch.nn.utils.clip_grad_norm_(weights, torch.inf if clip is None else clip)
        log.append((total, length.item()))
        optimizer.step()
        if schedule is not None:
            schedule.step()
        model.zero_grad()
    return log


class Polyak(torch.optim.Optimizer):
    """The step whose length is loss over squared length of the gradient, at most the rate."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None, loss=None):
        assert closure is None
        weights = [p for group in self.param_groups for p in group["params"]]
        square = sum(p.grad.square().sum() for p in weights)
        for group in self.param_groups:
            for p in group["params"]:
                p -= min(group["lr"], loss / square) * p.grad


class PolyakByHand:
    """The same, told the loss by the loop."""

    def __init__(self, model, losses):
        self.weights, self.losses = list(model.parameters()), losses

    def step(self):
        length = self.losses.pop() / sum(w.grad.square().sum() for w in self.weights)
        with torch.no_grad():
            for w in self.weights:
                w -= min(0.5, length) * w.grad


def adding(losses):
    """The mean loss, whose sum over a window is left in ``losses``."""

    def loss_of(model, batch, window):
        loss = mean_loss(model, batch, window)
        losses[:] = [loss.item() + (losses[0] if batch is not window[0] else 0.0)]
        return loss

    return loss_of


def upgrad_of_two(jacobian):
    """UPGrad of two losses in closed form."""
    gram = jacobian @ jacobian.T
    u = torch.tensor([0.5, 0.5], dtype=jacobian.dtype)
    weights = [u[i] + u[1 - i] * max(0.0, float(-gram[0, 1] / gram[i, i])) for i in range(2)]
    return weights[0] * jacobian[0] + weights[1] * jacobian[1]


def jointly(model, steps, shared=None, rate=0.25):
    """SGD along UPGrad of both losses; parameters that are not shared go along their sum."""
    weights = list(model.parameters())
    own = [w for w in weights if shared is None or any(w is s for s in shared(model))]
    rest = [w for w in weights if not any(w is s for s in own)]
    conflicts = 0
    for window in steps:
        rows = [
            torch.cat([
                g.flatten()
                for g in torch.autograd.grad(
                    sum(model(**batch)["losses"][name] for batch in window) / len(window), own + rest, allow_unused=True
                )
            ])
            for name in ("square", "slope")
        ]  # fmt: skip
        count = sum(w.numel() for w in own)
        jacobian = torch.stack(rows)
        conflicts += float(jacobian[0, :count] @ jacobian[1, :count]) < 0
        direction = torch.cat([upgrad_of_two(jacobian[:, :count]), jacobian[:, count:].sum(0)])
        with torch.no_grad():
            for w, piece in zip(own + rest, direction.split([w.numel() for w in own + rest])):
                w -= rate * piece.view_as(w)
    return conflicts


def same(model, twin, exact=False):
    for (name, value), wanted in zip(model.state_dict().items(), twin.state_dict().values()):
        assert torch.equal(value, wanted) or not exact, name
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12, msg=name)
