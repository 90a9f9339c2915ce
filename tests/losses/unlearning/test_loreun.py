"""LoReUn: the weights and their limits, both modes, and what a base loss gets."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from steepest.losses.unlearning.loreun import LoReUn, loreun_weights

LOSSES = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)


def batch(rows=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=generator)


def single(logits, labels):
    return [math.log(sum(map(math.exp, z))) - z[y] for z, y in zip(logits.tolist(), labels.tolist())]


@pytest.mark.holds("loreun", 1)
def test_card_values():
    raw, summed, mean = (loreun_weights(LOSSES, 1.0, n).tolist() for n in (None, "sum", "mean"))
    assert raw == pytest.approx([0.904837, 0.367879, 0.049787], abs=5e-7)
    assert summed == pytest.approx([0.684185, 0.278169, 0.037646], abs=5e-7)
    assert mean == pytest.approx([2.052555, 0.834507, 0.112938], abs=5e-7)


def test_naive_weights():
    for temperature in (0.2, 1.0, 7.0):
        plain = [math.exp(-v / temperature) for v in LOSSES.tolist()]
        assert loreun_weights(LOSSES, temperature, None).tolist() == pytest.approx(plain, rel=1e-12)
        for normalize, total in (("mean", 3.0), ("sum", 1.0)):
            wanted = [w * total / sum(plain) for w in plain]
            assert loreun_weights(LOSSES, temperature, normalize).tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.holds("loreun", 2)
def test_limits_of_the_temperature():
    logits, labels = batch()
    base = -cross_entropy(logits, labels)
    assert LoReUn("ascent", temperature=1e6)(logits, labels).item() == pytest.approx(base.item(), rel=1e-5)
    assert loreun_weights(LOSSES, math.inf).tolist() == [1.0, 1.0, 1.0]
    assert loreun_weights(LOSSES, 1e-3).tolist() == [3.0, 0.0, 0.0]
    least = min(single(logits, labels))
    assert LoReUn("ascent", temperature=1e-4)(logits, labels).item() == pytest.approx(-least, rel=1e-12)


@pytest.mark.holds("loreun", 3)
def test_weights_have_no_gradient_and_fall_with_the_loss():
    losses = LOSSES.clone().requires_grad_()
    for normalize in (None, "sum", "mean"):
        weights = loreun_weights(losses, 0.7, normalize)
        assert not weights.requires_grad
        assert bool((weights[1:] < weights[:-1]).all())
        if normalize:
            assert torch.allclose(loreun_weights(losses + 40, 0.7, normalize), weights, rtol=1e-12)
    logits, labels = batch()
    leaf = logits.clone().requires_grad_()
    LoReUn("ascent", temperature=0.7)(leaf, labels).backward()
    weights = loreun_weights(cross_entropy(logits, labels, reduction="none"), 0.7)
    slope = logits.softmax(1) - torch.nn.functional.one_hot(labels, 3)
    assert torch.allclose(leaf.grad, -weights[:, None] * slope / 5, atol=1e-14)


@pytest.mark.holds("loreun", 4)
def test_static_weights_come_from_the_cache():
    logits, labels = batch()
    cached = torch.tensor([0.3, math.nan, 2.0, 0.0, 1.0, 5.0], dtype=torch.float64)
    index = torch.tensor([5, 0, 3, 2, 4])
    loss = LoReUn("ascent", "static", 0.5, cached)
    for scale in (1.0, -3.0):  # whatever the model has become
        wanted = 0.0
        plain = [math.exp(-cached[i].item() / 0.5) for i in index.tolist()]
        for weight, term in zip(plain, single(scale * logits, labels)):
            wanted -= weight / sum(plain) * term
        assert loss(scale * logits, labels, index).item() == pytest.approx(wanted, rel=1e-12)
    cached[:] = 7.0  # its own copy, which a state keeps
    fresh = LoReUn("ascent", "static", 0.5, torch.zeros(6, dtype=torch.float64))
    fresh.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(fresh(logits, labels, index), loss(logits, labels, index))
    for bad, message in (
        (torch.tensor([5, 0, 3, 2, 6]), r"index: expected values in 0..5"),
        (torch.tensor([5, 0, 3, 2, -1]), r"index: expected values in 0..5"),
        (torch.tensor([5, 1, 3, 2, 4]), r"index: expected places whose loss was measured, got \[1\]"),
        (torch.tensor([5, 0, 3]), r"index: expected shape \(5"),
        (None, "index: expected places in cached_losses"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(logits, labels, bad)


@pytest.mark.holds("loreun", 5)
@pytest.mark.parametrize("normalize", ["mean", "sum", None])
def test_large_and_infinite_losses(normalize):
    losses = torch.tensor([1e4, 1e4 + 1, math.inf, 2e4])
    weights = loreun_weights(losses, 1.0, normalize)
    assert weights.isfinite().all()
    assert weights[2] == 0.0
    if normalize:
        total = 4.0 if normalize == "mean" else 1.0
        wanted = [total / (1 + math.exp(-1)), total / (1 + math.e), 0.0, 0.0]
        assert weights.tolist() == pytest.approx(wanted, rel=1e-5)
        assert loreun_weights(losses[2:3], 1.0, normalize).item() == 1.0
    assert loreun_weights(losses[:0], 1.0, normalize).shape == (0,)
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    LoReUn("ascent")(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.holds("loreun", 6)
def test_one_sample_is_the_base_method():
    logits, labels = batch(1)
    for temperature in (0.01, 1.0):
        wanted = -cross_entropy(logits, labels).item()
        assert LoReUn("ascent", temperature=temperature)(logits, labels).item() == pytest.approx(wanted, rel=1e-14)
        cached = torch.tensor([9.0])
        static = LoReUn("ascent", "static", temperature, cached)
        assert static(logits, labels, torch.tensor([0])).item() == pytest.approx(wanted, rel=1e-14)


def test_any_base_loss_and_what_it_takes():
    """Random labels come by keyword; weights look at the true ones."""
    logits, labels = batch()
    drawn = torch.tensor([2, 1, 0, 0, 1])

    def random_labels(z, y, other_labels):
        return cross_entropy(z, other_labels, reduction="none")

    loss = LoReUn(random_labels, temperature=0.5)
    weights = [math.exp(-v / 0.5) for v in single(logits, labels)]
    wanted = sum(w * u for w, u in zip(weights, single(logits, drawn))) / sum(weights)
    assert loss(logits, labels, other_labels=drawn).item() == pytest.approx(wanted, rel=1e-12)
    effect = sum(weights) ** 2 / sum(w * w for w in weights)
    assert loss.terms["samples in effect"].item() == pytest.approx(effect, rel=1e-12)
    assert LoReUn("ascent")(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: loreun_weights(LOSSES, 0.0), ValueError, "temperature: expected a number > 0"),
        (lambda: loreun_weights(LOSSES, math.nan), ValueError, "temperature: expected a number > 0"),
        (lambda: loreun_weights(LOSSES, 1.0, "max"), ValueError, "normalize: expected one of 'mean', 'sum', None"),
        (lambda: loreun_weights(LOSSES[None]), ValueError, "losses: expected 1 dimensions"),
        (lambda: LoReUn("ascent", temperature=-1.0), ValueError, "temperature: expected a number > 0"),
        (lambda: LoReUn("descent"), ValueError, "base_loss: expected one of 'ascent'"),
        (lambda: LoReUn(3), TypeError, "base_loss: expected"),
        (lambda: LoReUn("ascent", "cached"), ValueError, "mode: expected one of 'dynamic', 'static'"),
        (lambda: LoReUn("ascent", "static"), ValueError, "cached_losses: expected losses with mode"),
        (lambda: LoReUn("ascent", cached_losses=LOSSES), ValueError, "cached_losses: expected losses with mode"),
        (lambda: LoReUn("ascent", "static", 1.0, LOSSES[None]), ValueError, "cached_losses: expected 1 dimensions"),
        (lambda: LoReUn(lambda z, y: z.sum())(*batch()), ValueError, "base_loss: expected one number a sample"),
        (lambda: LoReUn("ascent")(batch()[0], batch()[1] + 9), ValueError, "labels: expected values in 0..2"),
        (
            lambda: LoReUn("ascent", "static", 1.0, LOSSES)(*batch(), torch.ones(5, dtype=torch.bool)),
            TypeError,
            "index: expected places of an integer type",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
