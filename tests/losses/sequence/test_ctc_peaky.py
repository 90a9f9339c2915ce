"""CTC with a label prior against torch and all alignments; the table model's fixed points."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch.nn.functional import ctc_loss

from steepest.losses.sequence.ctc_peaky import (
    LabelPriorCTCLoss,
    ctc_occupancy,
    ctc_peaky_experiment,
    ctc_peaky_table,
)

TARGETS, FRAMES, LENGTHS = torch.tensor([[1, 1, 2], [2, 0, 0]]), torch.tensor([6, 4]), torch.tensor([3, 1])


def logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)).requires_grad_()


def collapse(alignment):
    return [label for label, _ in itertools.groupby(alignment) if label]


def by_enumeration(scores, target):
    """-log of the sum over all alignments of one sequence, and the share of each label at each frame."""
    frames, labels = scores.shape
    total, shares = 0.0, torch.zeros(frames, labels, dtype=torch.float64)
    for alignment in itertools.product(range(labels), repeat=frames):
        if collapse(alignment) == target:
            weight = math.exp(sum(scores[t, s].item() for t, s in enumerate(alignment)))
            total += weight
            for t, s in enumerate(alignment):
                shares[t, s] += weight
    return -math.log(total), shares / total


@functools.cache
def plain():
    """Card settings of gradient descent without a prior, trained once."""
    sizes = ((2, 8), (4, 8), (8, 8), (4, 3), (4, 5), (4, 10), (3, 6))
    return dict(zip(sizes, ctc_peaky_table(sizes, 4000, 1.0)))


@functools.cache
def with_prior():
    sizes = ((2, 8), (4, 8), (8, 8), (6, 12), (10, 20))
    return dict(zip(sizes, ctc_peaky_table(sizes, 4000, 1.0, 1.0)))


@pytest.mark.holds("ctc-peaky", 1)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_a_prior_it_is_ctc(reduction):
    z = logits()
    wanted = ctc_loss(z.log_softmax(-1), TARGETS, FRAMES, LENGTHS, reduction=reduction)
    found = LabelPriorCTCLoss(prior_scale=0.0, reduction=reduction)(z.log_softmax(-1), TARGETS, FRAMES, LENGTHS)
    assert torch.allclose(found, wanted, atol=1e-12)
    slopes = [torch.autograd.grad(v.sum(), z, retain_graph=True)[0] for v in (found, wanted)]
    assert torch.allclose(*slopes, atol=1e-12)


def divided(z, kappa):
    """Scores over the prior, by the definition."""
    p = z.detach().softmax(-1)
    valid = torch.cat([p[:6, 0], p[:4, 1]])
    return p.log() - kappa * valid.mean(0).log()


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_all_alignments(kappa):
    z = logits(1)
    scores = divided(z, kappa)
    each, shares = zip(by_enumeration(scores[:6, 0], [1, 1, 2]), by_enumeration(scores[:4, 1], [2]))
    loss = LabelPriorCTCLoss(prior_scale=kappa, reduction="none")(z.log_softmax(-1), TARGETS, FRAMES, LENGTHS)
    assert loss.tolist() == pytest.approx(each, abs=1e-10)
    mean = LabelPriorCTCLoss(prior_scale=kappa)(z.log_softmax(-1), TARGETS, FRAMES, LENGTHS).item()
    assert mean == pytest.approx((each[0] / 3 + each[1]) / 2, abs=1e-10)
    gamma = ctc_occupancy(scores, TARGETS, FRAMES, LENGTHS)
    assert torch.allclose(gamma[:, 0], shares[0], atol=1e-10)
    assert torch.allclose(gamma[:4, 1], shares[1], atol=1e-10)
    assert gamma[4:, 1].abs().max() == 0


@pytest.mark.holds("ctc-peaky", 6)
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_occupancy_and_gradient(kappa):
    z = logits(2)
    loss = LabelPriorCTCLoss(prior_scale=kappa, reduction="sum")(z.log_softmax(-1), TARGETS, FRAMES, LENGTHS)
    (slope,) = torch.autograd.grad(loss, z)
    gamma = ctc_occupancy(divided(z, kappa), TARGETS, FRAMES, LENGTHS)
    inside = torch.arange(6)[:, None] < FRAMES
    assert torch.allclose(gamma.sum(-1), inside.double(), atol=1e-12)
    wanted = torch.where(inside[..., None], z.softmax(-1) - slope, 0.0)
    assert torch.allclose(gamma, wanted, atol=1e-12)


def test_uniform_start_in_closed_form():
    for frames in (1, 4, 5, 12):
        n = torch.tensor([frames])
        gamma = ctc_occupancy(torch.zeros(frames, 1, 2, dtype=torch.float64), torch.tensor([[1]]), n, torch.tensor([1]))
        t = torch.arange(1, frames + 1).double()
        wanted = 2 * t * (frames + 1 - t) / (frames * (frames + 1))
        assert gamma[:, 0, 1].tolist() == pytest.approx(wanted.tolist(), abs=1e-12)
        assert gamma[:, 0, 1].mean().item() == pytest.approx((frames + 2) / (3 * frames), abs=1e-12)


@pytest.mark.holds("ctc-peaky", 2)
@pytest.mark.parametrize("m", [2, 4, 8])
def test_plain_ctc_is_stuck(m):
    row = plain()[m, 8]
    assert row["p_a_given_1"] == pytest.approx(0.1470, abs=1e-4)
    assert row["p_a_given_0"] < 2e-4
    assert row["loss"] == pytest.approx(0.7882, abs=1e-4)
    assert row["error"] == 1.0


@pytest.mark.holds("ctc-peaky", 3)
@pytest.mark.parametrize("m", [2, 4, 8])
def test_a_prior_frees_it(m):
    row = with_prior()[m, 8]
    assert row["p_a_given_1"] > 0.999
    assert row["p_a_given_0"] < 0.001
    assert row["error"] == 0.0


@pytest.mark.holds("ctc-peaky", 4)
def test_second_minimum_from_five_frames_on():
    rows = plain()
    assert rows[4, 3]["p_a_given_1"] > 0.999
    for n, q, loss in ((5, 0.28265, 0.6199), (10, 0.11286, 0.8355)):
        assert rows[4, n]["p_a_given_1"] == pytest.approx(q, abs=2e-5)
        assert rows[4, n]["loss"] == pytest.approx(loss, abs=1e-4)
        # the stationary point of P(q) = sum_k (n - k + 1) q^k (1 - q)^(n - k), by a fine grid
        grid = torch.linspace(1e-4, 0.45, 450_000, dtype=torch.float64)
        value = sum((n - k + 1) * grid**k * (1 - grid) ** (n - k) for k in range(1, n + 1))
        top = int(value.argmax())
        assert rows[4, n]["p_a_given_1"] == pytest.approx(grid[top].item(), abs=5e-5)
        assert rows[4, n]["loss"] == pytest.approx(-math.log(value[top].item()), abs=2e-4)
    row = ctc_peaky_experiment(4, 4, 6000, 1.0)
    assert row["p_a_given_1"] == pytest.approx(0.498, abs=5e-4)
    assert row["loss"] == pytest.approx(0.4701, abs=5e-5)


@pytest.mark.holds("ctc-peaky", 5)
def test_layout_of_the_paper():
    sizes = [(n, 2 * n) for n in (3, 4, 5)]
    p = [row["p_a_given_1"] for row in ctc_peaky_table(sizes, 100, 0.1, optimizer="adam")]
    assert p == pytest.approx([0.998, 0.111, 0.062], abs=5e-4)
    assert plain()[3, 6]["p_a_given_1"] == pytest.approx(0.2137, abs=5e-5)
    assert plain()[4, 8]["p_a_given_1"] == pytest.approx(0.1470, abs=1e-4)
    for n, loss in ((4, -11.09), (6, -16.64), (10, -27.73)):
        row = with_prior()[n, 2 * n]
        assert row["p_a_given_1"] > 0.999
        assert row["loss"] == pytest.approx(-4 * n * math.log(2), abs=5e-3)
        assert row["loss"] == pytest.approx(loss, abs=0.01)


def test_the_gradient_through_the_prior_has_the_same_outcome():
    row = ctc_peaky_experiment(2, 8, 500, 1.0, 1.0, detach=False)
    assert row["error"] == 0.0
    assert row["p_a_given_1"] > 0.99


def test_greedy_decoding_counts_each_run():
    """Untrained, no label is above the blank; the target is missed."""
    assert ctc_peaky_experiment(1, 1, 0, 1.0)["error"] == 1.0


def test_running_prior():
    z = logits(3)
    arguments = (z.detach().log_softmax(-1), TARGETS, FRAMES, LENGTHS)
    loss = LabelPriorCTCLoss(momentum=0.25, num_labels=3)
    batch = LabelPriorCTCLoss()
    assert loss.eval()(*arguments).item() == batch(*arguments).item()
    loss.train()
    assert loss(*arguments).item() == pytest.approx(batch(*arguments).item(), abs=1e-12)
    first = loss.log_prior.exp()
    p = arguments[0].exp()
    assert torch.allclose(first, torch.cat([p[:6, 0], p[:4, 1]]).mean(0), atol=1e-12)
    other = (torch.full((6, 2, 3), 1 / 3, dtype=torch.float64).log(), *arguments[1:])
    loss(*other)
    assert torch.allclose(loss.log_prior.exp(), 0.75 * first + 0.25 / 3, atol=1e-12)
    kept = loss.log_prior.clone()
    wanted = ctc_loss((other[0] - kept).log_softmax(-1), *arguments[1:], reduction="none")
    mass = (other[0] - kept).logsumexp(-1)[0, 0] * FRAMES
    found = loss.eval()(*other).item()
    assert found == pytest.approx(((wanted - mass) / LENGTHS).mean().item(), abs=1e-12)
    assert torch.equal(loss.log_prior, kept)
    with pytest.raises(ValueError, match="num_labels: expected the number of labels"):
        LabelPriorCTCLoss(momentum=0.1)
    with pytest.raises(ValueError, match="log_probs: expected 2 labels"):
        LabelPriorCTCLoss(momentum=0.1, num_labels=2)(*arguments)


@pytest.mark.parametrize("detach", [True, False])
def test_a_label_of_probability_zero(detach):
    log_probs = torch.tensor([0.5, 0.5, 0.0]).log().expand(6, 2, 3).clone().requires_grad_()
    targets = torch.tensor([[1, 1, 1], [1, 0, 0]])
    loss = LabelPriorCTCLoss(detach=detach)(log_probs, targets, FRAMES, LENGTHS)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, log_probs)[0].isfinite().all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": torch.tensor([[1, 0, 2], [2, 0, 0]])}, "targets: expected labels other than the blank 0"),
        ({"targets": torch.tensor([[1, 3, 2], [2, 0, 0]])}, "targets: expected values in 0..2"),
        ({"targets": torch.tensor([1, 2, 1])}, "targets: expected 4 labels, the sum of target_lengths"),
        ({"targets": torch.tensor([[1, 2, 1]])}, r"targets: expected shape \(2, \*\)"),
        ({"input_lengths": torch.tensor([7, 4])}, "input_lengths: expected values in 0..6"),
        ({"input_lengths": (6,)}, r"input_lengths: expected shape \(2\)"),
        ({"input_lengths": torch.tensor([[6, 4]])}, r"input_lengths: expected shape \(2\)"),
        ({"target_lengths": torch.tensor([4, 1])}, "target_lengths: expected values in 0..3"),
        ({"log_probs": torch.zeros(6, 3)}, "targets: expected 1 dimensions"),
        ({"log_probs": torch.zeros(6, 1, 2, 3)}, "log_probs: expected 2 or 3 dimensions"),
        ({"log_probs": torch.ones(6, 2, 3)}, "log_probs: expected log-probabilities <= 0, got 1"),
    ],
)
def test_refused(changed, message):
    given = {"log_probs": torch.zeros(6, 2, 3), "targets": TARGETS, "input_lengths": FRAMES, "target_lengths": LENGTHS}
    with pytest.raises(ValueError, match=message):
        LabelPriorCTCLoss()(**{**given, **changed})
    with pytest.raises(ValueError, match=r"blank: expected a label in 0\.\.2"):
        LabelPriorCTCLoss(blank=3)(**given)


@pytest.mark.parametrize("lengths", [6, 6.0, (6.0, 4.0)])
def test_refused_lengths(lengths):
    with pytest.raises(TypeError, match="input_lengths: expected"):
        LabelPriorCTCLoss()(torch.zeros(6, 2, 3), TARGETS, lengths, LENGTHS)


def forms():
    """Everything that torch documents as the arguments of its loss, batched and not."""
    log_probs = logits(4).detach().log_softmax(-1)
    flat = torch.tensor([1, 1, 2, 2])
    batched = [
        (log_probs, flat, FRAMES, LENGTHS),
        (log_probs, TARGETS, (6, 4), (3, 1)),
        (log_probs, flat.int(), FRAMES.int(), LENGTHS.int()),
        (log_probs, TARGETS, FRAMES, torch.tensor([3, 0])),
        (log_probs, flat[:3], (6, 4), (3, 0)),
        (log_probs, torch.zeros(2, 0, dtype=torch.long), (6, 4), (0, 0)),
    ]
    one = log_probs[:, 0]
    lengths = ((torch.tensor(6), torch.tensor(3)), (torch.tensor([6]), torch.tensor([3])), ((6,), (3,)))
    return [*batched, *((one, TARGETS[0], *pair) for pair in lengths)]


@pytest.mark.parametrize("case", range(9))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_takes_what_torch_takes(case, reduction):
    log_probs, *rest = forms()[case]
    found = LabelPriorCTCLoss(prior_scale=0.0, reduction=reduction)(log_probs, *rest)
    wanted = ctc_loss(log_probs, *rest, reduction=reduction)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert ctc_occupancy(log_probs, *rest).shape == log_probs.shape


def test_the_form_of_the_arguments_changes_nothing():
    log_probs = logits(4).detach().log_softmax(-1)
    wanted = LabelPriorCTCLoss()(log_probs, TARGETS, FRAMES, LENGTHS)
    assert LabelPriorCTCLoss()(log_probs, torch.tensor([1, 1, 2, 2]), (6, 4), [3, 1]).item() == wanted.item()
    one = LabelPriorCTCLoss(reduction="none")(log_probs[:, :1], TARGETS[:1], FRAMES[:1], LENGTHS[:1])
    assert LabelPriorCTCLoss(reduction="none")(log_probs[:, 0], TARGETS[0], 6, 3).item() == one.item()


@pytest.mark.parametrize("kappa", [0.0, 1.0])
@pytest.mark.parametrize("detach", [True, False])
def test_a_target_that_nothing_aligns_with(kappa, detach):
    """Two equal labels need a blank between them: two frames are too few."""
    z = logits(5)[:2].detach().requires_grad_()
    rest = (torch.tensor([[1, 1], [1, 2]]), torch.tensor([2, 2]), torch.tensor([2, 2]))
    options = {"prior_scale": kappa, "detach": detach}
    assert LabelPriorCTCLoss(**options)(z.log_softmax(-1), *rest).item() == math.inf
    each = LabelPriorCTCLoss(**options, reduction="none", zero_infinity=True)(z.log_softmax(-1), *rest)
    plain = LabelPriorCTCLoss(**options, reduction="none")(z.log_softmax(-1), *rest)
    assert each.tolist() == [0.0, plain[1].item()]
    loss = LabelPriorCTCLoss(**options, zero_infinity=True)(z.log_softmax(-1), *rest)
    assert loss.item() == pytest.approx(plain[1].item() / 4)
    (slope,) = torch.autograd.grad(loss, z)
    assert slope.isfinite().all()
    assert slope[:, 1].abs().max() > 0
    if not kappa:
        wanted = ctc_loss(z.log_softmax(-1), *rest, zero_infinity=True)
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(slope, torch.autograd.grad(wanted, z)[0])


def test_refused_settings():
    for arguments, message in (
        (([], 1, 1.0), "sizes: expected at least one pair"),
        (([(0, 3)], 1, 1.0), "m: expected an integer >= 1"),
        (([(1, 3)], 1, 0.0), "lr: expected a number > 0"),
        (([(1, 3)], -1, 1.0), "steps: expected an integer >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ctc_peaky_table(*arguments)
