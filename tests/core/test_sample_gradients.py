"""Gradients of samples: loops of autograd, the scale of a mean loss, layers that join samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from steepest.core.sample_gradients import chunks_of_gradients, count_samples, rows_of, sample_gradients, sample_losses


class Attention(nn.Module):
    """Causal attention of one head and a readout, after a normalisation that keeps samples apart."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)).mean(1)


def one_by_one(model, loss_fn, x, y, call=None):
    call = call or (lambda x, y: model(x))
    losses = [loss_fn(call(x[i : i + 1], y[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    rows = [torch.autograd.grad(loss, model.parameters()) for loss in losses]
    return {name: torch.stack([row[k] for row in rows]) for k, (name, _) in enumerate(model.named_parameters())}


def test_a_loop_over_samples():
    model = Attention().double()
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    wanted = one_by_one(model, cross_entropy, x, y)
    rows = sample_gradients(model, cross_entropy, x, y)
    pieces = list(chunks_of_gradients(model, cross_entropy, x, y, chunk=4))
    assert [len(piece["norm.bias"]) for piece in pieces] == [4, 2]
    assert set(rows) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(rows[name], value)
        torch.testing.assert_close(torch.cat([piece[name] for piece in pieces]), value)
    assert all(p.grad is None for p in model.parameters())


def test_a_mean_loss_does_not_shrink_them():
    """Gradients (1, 0), (3, 0), (1, 2), (3, 2): a variance of 4/3 each, not 4/3 over the square of the batch."""
    model = nn.Linear(2, 1, bias=False)
    slopes = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 2.0], [3.0, 2.0]])
    rows = sample_gradients(model, lambda out, y: out.mean(), slopes, torch.zeros(4))["weight"]
    torch.testing.assert_close(rows.flatten(1).var(0), torch.tensor([4 / 3, 4 / 3]))


def test_batch_normalisation():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    x, y = torch.randn(5, 2), torch.randn(5, 1)
    with pytest.raises(ValueError, match="model: expected no layer that joins samples: evaluation mode, got"):
        sample_gradients(model, mse_loss, x, y)
    model.eval()
    before = model[1].running_mean.clone()
    rows, wanted = sample_gradients(model, mse_loss, x, y), one_by_one(model, mse_loss, x, y)
    for name in wanted:
        torch.testing.assert_close(rows[name], wanted[name])
    assert torch.equal(model[1].running_mean, before)
    with pytest.raises(ValueError, match="model: expected no layer"):
        sample_gradients(nn.BatchNorm1d(2, track_running_stats=False).eval(), mse_loss, x, x)


class Shifted(nn.Module):
    """A loss of its own, of named arguments; one of them is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, x, y, *, power=1):
        return {"loss": (self.line(x)[:, 0] - y).abs().pow(power).mean()}


@pytest.mark.parametrize("inputs", [dict, tuple])
def test_models_of_several_arguments_that_give_a_loss(inputs):
    model, x, y = Shifted(), torch.randn(5, 2), torch.randn(5)
    batch = {"x": x, "y": y, "power": 2} if inputs is dict else (x, y)
    rows = torch.cat([piece["line.weight"] for piece in chunks_of_gradients(model, own_loss, batch, chunk=2)])
    power = 2 if inputs is dict else 1
    wanted = one_by_one(model, lambda out, y: out["loss"], x, y, lambda x, y: model(x, y, power=power))
    torch.testing.assert_close(rows, wanted["line.weight"])


def own_loss(outputs, _):
    return outputs["loss"]


def test_losses_of_samples_at_other_weights():
    model = Attention().double()
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(
        sample_losses(model, cross_entropy, x, y), cross_entropy(model(x), y, reduction="none").detach()
    )
    moved = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    before = [p.clone() for p in model.parameters()]
    there = sample_losses(model, cross_entropy, x, y, weights=moved)
    assert all(map(torch.equal, before, model.parameters()))
    model.load_state_dict(moved)
    torch.testing.assert_close(there, cross_entropy(model(x), y, reduction="none").detach())


def test_rows_of_batches():
    batch = {"x": torch.arange(6.0).view(3, 2), "scale": 2.0}
    assert rows_of(batch, slice(1, 2))["x"].tolist() == [[2.0, 3.0]]
    assert rows_of((batch["x"], None), slice(0, 2))[0].shape == (2, 2)
    assert (count_samples(batch), count_samples(batch["x"], torch.ones(2)), count_samples(None)) == (3, 2, 0)


def test_frozen_parameters_are_left_out_unless_they_are_named():
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    x, y = torch.randn(3, 2), torch.randn(3, 1)
    assert set(sample_gradients(model, mse_loss, x, y)) == {"weight"}
    assert sample_gradients(model, mse_loss, x, y, names=["bias"])["bias"].shape == (3, 1)


def test_what_it_refuses():
    model, x = nn.Linear(2, 1), torch.randn(3, 2)
    for rows, y in ((x, torch.ones(2, 1)), (x[:0], x[:0]), ((x, x[:2]), None), ({}, None)):
        with pytest.raises(ValueError, match="inputs, targets: expected tensors of equally many samples"):
            sample_gradients(model, mse_loss, rows, y)
    with pytest.raises(ValueError, match="names: expected parameters of the model"):
        sample_gradients(model, mse_loss, x, torch.ones(3, 1), names=["head"])
    with pytest.raises(ValueError, match="chunk: expected an integer >= 1"):
        list(chunks_of_gradients(model, mse_loss, x, torch.ones(3, 1), chunk=0))
