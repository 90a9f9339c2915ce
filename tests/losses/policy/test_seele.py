"""Hints that keep a problem half solved: the curve and its inverse, fits, degenerate rounds, the loss's two halves."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from steepest.core.group_policy import clipped_policy_loss
from steepest.losses import AccuracyHintModel, HintScheduler, fit_3pl, seele_loss


@pytest.mark.holds("seele", 1)
def test_the_curve_of_the_card():
    curve = AccuracyHintModel(10.0, -0.5, 0.1)
    assert curve.predict(0.6) == pytest.approx(0.757953, abs=5e-7)
    assert curve.predict(0.6) == pytest.approx(0.1 + 0.9 / (1 + math.exp(-1)), rel=1e-14)
    assert curve.inverse(0.5) == pytest.approx(0.477686, abs=5e-7)
    for mu in (-0.3, -0.77):
        assert AccuracyHintModel(7.0, mu, 0.0).inverse(0.5) == -mu


@pytest.mark.holds("seele", 2)
@pytest.mark.parametrize("truth", [(12.0, -0.4, 0.05), (5.0, -0.6, 0.0), (30.0, -0.2, 0.3)])
def test_noise_free_pairs_are_refitted(truth):
    shares = [0.95, 0.5, 0.3, 0.4] if truth[0] == 12 else [0.9, 0.6, 0.3, 0.2, 0.1, 0.0]
    accuracies = [AccuracyHintModel(*truth).predict(p) for p in shares]
    assert fit_3pl(shares, accuracies) == pytest.approx(truth, abs=1e-3)
    assert fit_3pl(torch.tensor(shares), np.array(accuracies), init=truth) == pytest.approx(truth, abs=1e-3)


def test_the_fit_is_that_of_scipys_curve_fit():
    """Noisy pairs, of which one share comes three times: as with its mean."""
    shares = [0.9, 0.6, 0.5, 0.5, 0.5, 0.2]
    accuracies = [1.0, 0.75, 0.25, 0.5, 0.375, 0.125]

    def formula(p, k, mu, b):
        return b + (1 - b) / (1 + np.exp(-k * (p + mu)))

    places, means = [0.9, 0.6, 0.5, 0.2], [1.0, 0.75, statistics.fmean(accuracies[2:5]), 0.125]
    wanted, _ = curve_fit(formula, places, means, p0=(10, -0.5, 0.1), bounds=((0.1, -2, 0), (50, 1, 0.95)))
    assert fit_3pl(shares, accuracies) == pytest.approx(wanted, rel=2e-3, abs=1e-3)


def test_a_fit_that_pairs_leave_open_stays_where_it_starts():
    truth = (8.0, -0.45, 0.12)
    shares = [0.3, 0.6]
    accuracies = [AccuracyHintModel(*truth).predict(p) for p in shares]
    assert fit_3pl(shares, accuracies, init=truth) == pytest.approx(truth, rel=1e-12)
    alone = fit_3pl(shares, accuracies)
    assert alone != pytest.approx(truth, rel=1e-3)
    assert [AccuracyHintModel(*alone).predict(p) for p in shares] == pytest.approx(accuracies, abs=1e-6)


def test_fits_stay_within_their_bounds():
    generator = np.random.default_rng(0)
    for _ in range(20):
        k, mu, b = fit_3pl(generator.random(4), generator.integers(0, 9, 4) / 8)
        assert 0.1 <= k <= 50
        assert -2 <= mu <= 1
        assert 0 <= b <= 0.95


@pytest.mark.holds("seele", 3)
@pytest.mark.parametrize("b", [0.0, 0.2])
def test_the_inverse(b):
    curve = AccuracyHintModel(9.0, -0.55, b)
    values = [curve.predict(p) for p in np.linspace(0, 1, 50)]
    assert all(x < y for x, y in itertools.pairwise(values))
    for a in np.linspace(curve.predict(0.0) + 1e-6, curve.predict(1.0) - 1e-6, 30):
        assert curve.predict(curve.inverse(a)) == pytest.approx(a, rel=1e-12)
    for a in (b, b - 0.1, -1.0):
        assert curve.inverse(a, length=8) == 0.0
    for a in (1.0, 1.5):
        assert curve.inverse(a, length=8) == 7 / 8
        assert curve.inverse(a) == 1.0
    assert curve.inverse(0.999, length=8) == 7 / 8
    assert curve.inverse(b + 1e-4, length=8) == 0.0


@pytest.mark.holds("seele", 4)
@pytest.mark.parametrize("acc", [0.0, 1.0])
def test_rounds_that_say_all_or_nothing(acc):
    hints = HintScheduler()
    hints.next("x", length=20)
    share, shares = 0.5, [0.5]
    for _ in range(3):
        hints.update("x", share, acc)
        share = hints.next("x")
        shares.append(share)
    assert all(0 <= s < 1 for s in shares)
    moved = [y - x for x, y in itertools.pairwise(shares)]
    assert all(m > 0 for m in moved) if acc == 0 else all(m < 0 for m in moved)


@pytest.mark.holds("seele", 4)
@pytest.mark.parametrize(("acc", "sign"), [(0.125, 1), (0.375, 1), (0.5, 0), (0.875, -1), (0.001, 1), (0.999, -1)])
def test_one_pair(acc, sign):
    hints = HintScheduler()
    hints.next("x", length=20)
    hints.update("x", 0.5, acc)
    share = hints.next("x")
    assert 0 <= share < 1
    assert (share > 0.5) - (share < 0.5) == sign
    mean = min(max(acc, 0.02), 0.98)
    expected = 0.5 - math.log(mean / (1 - mean)) / 10
    assert share == pytest.approx(expected, rel=1e-12)


def test_a_step_of_rounds():
    """The rule of the publication on a learner whose curve is known: half solved from the second fit on."""
    truth, hints = AccuracyHintModel(14.0, -0.35, 0.0), HintScheduler()
    shares = []
    for _ in range(8):
        shares.append(hints.next(3, length=400))
        hints.update(3, shares[-1], truth.predict(shares[-1]))
    assert shares[0] == 399 / 400
    assert [truth.predict(s) for s in shares[3:]] == pytest.approx([0.5] * 5, abs=0.02)
    assert shares[4] == hints.next(3) or len(hints.state_dict()["pairs"]) == 0
    harder = HintScheduler(target=0.25, rounds=8)
    for _ in range(8):
        share = harder.next(3, length=400)
        harder.update(3, share, truth.predict(share))
    assert truth.predict(harder.next(3)) == pytest.approx(0.25, abs=0.02)
    other = HintScheduler(target=0.7, rounds=1)
    other.next("y", length=10)
    other.update("y", 0.4, 0.7)
    assert other.next("y") == pytest.approx(0.4, rel=1e-12)
    assert other.next("y", length=2) == pytest.approx(0.4, rel=1e-12)
    assert other.next("y", length=1) == 0.0


def test_the_state_goes_on_in_the_middle_of_a_step():
    first, second = HintScheduler(), HintScheduler()
    for hints in (first,):
        hints.next("a", length=16)
        hints.update("a", 0.9, 0.8)
        hints.update("a", 0.4, 0.1)
        hints.next("b", length=5)
    second.load_state_dict(first.state_dict())
    first.update("a", 0.6, 0.3)
    second.update("a", 0.6, 0.3)
    assert first.next("a") == second.next("a")
    assert second.next("b") == 4 / 5
    assert first.state_dict() == second.state_dict()


def drawn():
    generator = torch.Generator().manual_seed(0)
    gen, shift, hint, ref = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (6, 6, 3, 6))
    gen, hint = -gen.abs(), -hint.abs()
    masks = [torch.arange(n) < torch.tensor(own)[:, None] for n, own in ((6, [6, 2, 4, 0]), (3, [3, 0, 1, 2]))]
    return (
        gen,
        torch.tensor([0.5, -0.5, 0.25, 1.0], dtype=torch.float64),
        masks[0],
        hint,
        masks[1],
        gen + 0.4 * shift,
        ref,
    )


@pytest.mark.holds("seele", 5)
@pytest.mark.parametrize("imitation", ["mean_log_likelihood", "probability"])
def test_each_kind_of_token_has_its_own_gradient(imitation):
    gen, adv, gen_mask, hint, hint_mask, old, _ = drawn()
    leaves = [t.clone().requires_grad_() for t in (gen, hint)]
    value = seele_loss(leaves[0], adv, gen_mask, leaves[1], hint_mask, 0.3, old_logp=old, imitation=imitation)
    of_gen, of_hint = torch.autograd.grad(value, leaves)
    alone = gen.clone().requires_grad_()
    (plain,) = torch.autograd.grad(clipped_policy_loss(alone, old, adv, gen_mask, "grpo"), alone)
    assert torch.equal(of_gen, plain)
    if imitation == "probability":
        likelihood = (hint * hint_mask).sum(1).exp()[:, None] * hint_mask
        expected = -0.3 * likelihood / 3
    else:
        expected = -0.3 * hint_mask.double() / hint_mask.sum(1, keepdim=True).clamp_min(1) / 3
    torch.testing.assert_close(of_hint, expected, rtol=1e-12, atol=0)
    changed = seele_loss(gen, -2 * adv, gen_mask, (other := hint.clone().requires_grad_()), hint_mask, 0.3)
    torch.testing.assert_close(
        torch.autograd.grad(changed, other)[0],
        torch.autograd.grad(seele_loss(gen, adv, gen_mask, other, hint_mask, 0.3), other)[0],
        rtol=0,
        atol=0,
    )


def test_the_loss_in_parts():
    gen, adv, gen_mask, hint, hint_mask, old, ref = drawn()
    given = {"epsilon": 0.1, "epsilon_high": 0.3}
    value = seele_loss(gen, adv, gen_mask, hint, hint_mask, 0.3, beta=0.2, old_logp=old, ref_logp=ref, **given)
    policy = clipped_policy_loss(gen, old, adv, gen_mask, "grpo", beta=0.2, ref_logp=ref, **given)
    means = [statistics.fmean(hint[i][hint_mask[i]].tolist()) for i in (0, 2, 3)]
    assert float(value) == pytest.approx(float(policy) - 0.3 * statistics.fmean(means), rel=1e-12)
    hint_mask = hint_mask & torch.tensor([[True], [True], [True], [False]])
    for imitation in ("mean_log_likelihood", "probability"):
        whole = seele_loss(gen, adv, gen_mask, hint, hint_mask, 0.3, imitation=imitation)
        parts = [
            seele_loss(
                gen[s], adv[s], gen_mask[s], hint[s], hint_mask[s], 0.3,
                imitation=imitation, num_items=torch.tensor(3), num_hints=2,
            )
            for s in ([0, 3], [1, 2])
        ]  # fmt: skip
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    assert seele_loss(gen.half(), adv, gen_mask, hint.half(), hint_mask).dtype == torch.float32


def test_what_masks_exclude_does_no_harm():
    gen, adv, gen_mask, hint, hint_mask, old, _ = drawn()
    clean = seele_loss(gen, adv, gen_mask, hint, hint_mask, 0.3, old_logp=old)
    gen, hint = torch.where(gen_mask, gen, math.nan), torch.where(hint_mask, hint, math.inf)
    for imitation in ("mean_log_likelihood", "probability"):
        leaves = [gen.clone().requires_grad_(), hint.clone().requires_grad_()]
        value = seele_loss(leaves[0], adv, gen_mask, leaves[1], hint_mask, 0.3, old_logp=old, imitation=imitation)
        assert all(s.isfinite().all() for s in torch.autograd.grad(value, leaves))
        if imitation == "mean_log_likelihood":
            assert torch.equal(value, clean)
        nothing = seele_loss(leaves[0], adv, gen_mask & False, leaves[1], hint_mask & False, imitation=imitation)
        assert nothing == 0
        assert not any(s.any() for s in torch.autograd.grad(nothing, leaves))


def test_refused():
    gen, adv, gen_mask, hint, hint_mask, old, _ = drawn()
    call = (gen, adv, gen_mask, hint, hint_mask)
    for options, words in (
        ({"gamma": -1.0}, "gamma: expected a number >= 0"),
        ({"beta": -1.0}, "beta: expected a number >= 0"),
        ({"beta": 1.0}, "ref_logp: expected log-probabilities"),
        ({"epsilon": 2.0}, "epsilon: expected a number"),
        ({"epsilon_high": -2.0}, "epsilon_high: expected a number"),
        ({"imitation": "sum"}, "imitation: expected one of"),
        ({"old_logp": old[:2]}, "old_logp: expected shape"),
        ({"num_items": 4}, "num_hints: expected a count of a whole step"),
        ({"num_hints": 4}, "num_hints: expected a count of a whole step"),
    ):
        with pytest.raises(ValueError, match=words):
            seele_loss(*call, **options)
    with pytest.raises(ValueError, match="logp_hint: expected shape"):
        seele_loss(gen, adv, gen_mask, hint[:2], hint_mask)
    with pytest.raises(ValueError, match="hint_mask: expected shape"):
        seele_loss(gen, adv, gen_mask, hint, hint_mask[:2])
    for curve, words in (((0.0, -0.5, 0.1), "k: "), ((1.0, math.inf, 0.1), "mu: "), ((1.0, 0.0, 1.0), "b: ")):
        with pytest.raises(ValueError, match=words):
            AccuracyHintModel(*curve)
    for p, a, words in (
        ([], [], "acc: "),
        ([0.1], [0.1, 0.2], "acc: "),
        ([1.1], [0.1], "p: "),
        ([0.1], [-0.1], "acc: "),
    ):
        with pytest.raises(ValueError, match=words):
            fit_3pl(p, a)
    with pytest.raises(ValueError, match="init: expected three numbers"):
        fit_3pl([0.1], [0.2], (1.0, 2.0))
    for options, words in (({"target": 1.0}, "target: "), ({"rounds": 0}, "rounds: ")):
        with pytest.raises(ValueError, match=words):
            HintScheduler(**options)
    hints = HintScheduler()
    with pytest.raises(ValueError, match="length: expected the tokens"):
        hints.next("new")
    with pytest.raises(ValueError, match="length: expected an integer >= 1"):
        hints.next("new", length=0)
    with pytest.raises(ValueError, match="problem_id: expected a problem"):
        hints.update("new", 0.5, 0.5)
    hints.next("new", length=3)
    for share, acc, words in ((1.5, 0.5, "share: "), (0.5, 1.5, "acc: ")):
        with pytest.raises(ValueError, match=words):
            hints.update("new", share, acc)
