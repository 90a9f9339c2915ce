"""Negative preference optimization against its formula token by token, its limits, and what is kept besides."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.losses.unlearning import (
    NPOLoss,
    UnlearningObjective,
    gradient_ascent_loss,
    npo_loss,
    sequence_logp,
    unlearning_objective,
)

S, S0 = torch.tensor([-3.0, -5.0], dtype=torch.float64), torch.tensor([-2.0, -2.0], dtype=torch.float64)


def drawn(rows=3, steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, steps, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (rows, steps), generator=generator)
    labels[:, 0] = labels[-1, -1] = -100
    return logits, labels


def naive_logp(logits, labels):
    """A token after the other."""
    sums = []
    for z, y in zip(logits, labels):
        log_p = [row[int(label)] - torch.logsumexp(row, 0) for row, label in zip(z, y) if label != -100]
        sums.append(sum(log_p))
    return torch.stack(sums)


def slope(loss, logp, *further, **options):
    leaf = logp.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, *further, **options), leaf)[0]


@pytest.mark.holds("npo", 1)
def test_numbers_of_the_card():
    assert npo_loss(S, S0).item() == pytest.approx(11.987519, abs=1e-6)
    assert slope(npo_loss, S, S0).tolist() == pytest.approx([0.4750, 0.4256], abs=5e-5)
    assert slope(npo_loss, S, S0, reduction="sum").tolist() == pytest.approx([0.9500, 0.8511], abs=5e-5)
    naive = sum(-(2 / 0.1) * math.log(1 / (1 + math.exp(0.1 * (s - s0)))) for s, s0 in ((-3, -2), (-5, -2))) / 2
    assert NPOLoss()(S, S0).item() == pytest.approx(naive, rel=1e-14)


@pytest.mark.holds("npo", 2)
@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_at_the_reference_it_is_gradient_ascent(beta):
    assert npo_loss(S, S, beta=beta).item() == pytest.approx(2 / beta * math.log(2), rel=1e-14)
    assert torch.equal(slope(npo_loss, S, S, beta=beta), slope(gradient_ascent_loss, S))
    assert npo_loss(S, S).item() == pytest.approx(13.862944, abs=1e-6)


@pytest.mark.holds("npo", 3)
def test_small_beta_is_gradient_ascent_and_a_constant():
    value = npo_loss(S, S0, beta=1e-4).item() - 2e4 * math.log(2)
    assert value == pytest.approx(-1.999875, abs=1e-6)
    assert gradient_ascent_loss(S - S0) == -2


@pytest.mark.holds("npo", 4)
def test_it_has_a_lower_bound():
    far = torch.tensor([-1e3, -1e4])
    assert 0 <= npo_loss(far, torch.zeros(2)) < 1e-10
    assert gradient_ascent_loss(far) < -5e3


@pytest.mark.holds("npo", 5)
def test_the_reference_gets_no_gradient_and_nothing_overflows():
    ref = S0.clone().requires_grad_()
    npo_loss(S.clone().requires_grad_(), ref).backward()
    assert ref.grad is None
    for dtype in (torch.float16, torch.float32, torch.float64):
        logp = torch.tensor([1e4, -1e4], dtype=dtype)
        weights = slope(npo_loss, logp, torch.zeros(2, dtype=dtype), reduction="sum")
        assert weights.tolist() == [2, 0]
        assert npo_loss(logp, torch.zeros(2, dtype=dtype), reduction="none").tolist() == pytest.approx(
            [2e4, 0], rel=1e-3
        )


@pytest.mark.holds("npo", 6)
def test_shapes_must_match():
    for logp, ref in ((S, S0[:1]), (S, S0.unsqueeze(1)), (S.unsqueeze(1), S0)):
        with pytest.raises(ValueError, match="logp: expected"):
            npo_loss(logp, ref)
    with pytest.raises(ValueError, match="beta: expected a number > 0"):
        npo_loss(S, S0, beta=0.0)


def test_log_probabilities_of_rows():
    logits, labels = drawn()
    torch.testing.assert_close(sequence_logp(logits, labels), naive_logp(logits, labels), rtol=1e-13, atol=0)


def test_ways_to_forget():
    (forget, y), (retain, yr), (other, yo) = drawn(), drawn(2, 4, 1), drawn(3, 3, 2)
    logp, ref = naive_logp(forget, y), torch.tensor([-5.0, -7.0, -6.0], dtype=torch.float64)
    counts = (y != -100).sum(1)
    ce = -naive_logp(retain, yr).sum() / (yr != -100).sum()
    npo = sum(20 * math.log1p(math.exp(0.1 * u)) for u in (logp - ref).tolist()) / 3
    assert UnlearningObjective()(forget, y, forget_ref_logp=ref).item() == pytest.approx(npo, rel=1e-13)
    kept = UnlearningObjective("npo", "ce", 0.7)(forget, y, retain, yr, forget_ref_logp=ref)
    assert kept.item() == pytest.approx(npo + 0.7 * ce.item(), rel=1e-13)
    graddiff = unlearning_objective("GradDiff")(forget, y, retain, yr)
    assert graddiff.item() == pytest.approx(logp.mean().item() + ce.item(), rel=1e-13)
    simnpo = UnlearningObjective("simnpo", beta=2.5, gamma=0.3)(forget, y)
    wanted = sum(2 / 2.5 * math.log1p(math.exp(2.5 * u + 0.3)) for u in (logp / counts).tolist()) / 3
    assert simnpo.item() == pytest.approx(wanted, rel=1e-13)
    margin = 0.1 * ((naive_logp(other, yo) - ref / 2) - (logp - ref))
    dpo = UnlearningObjective("dpo")(
        forget, y, forget_ref_logp=ref, alternative=other, alternative_labels=yo, alternative_ref_logp=ref / 2
    )
    assert dpo.item() == pytest.approx(torch.log1p(torch.exp(-margin)).mean().item(), rel=1e-13)


def test_the_divergence_of_rows_to_keep_is_from_the_reference():
    """KL(reference || model), not the other direction, which is .368064 here."""
    theta, ref = torch.tensor([[[0.9, 0.1]]]).double().log(), torch.tensor([[[0.5, 0.5]]]).double().log()
    y = torch.zeros(1, 1, dtype=torch.long)
    loss = unlearning_objective("ga+kl")
    loss(theta, y, theta, y, retain_reference=ref)
    assert loss.terms["retain"].item() == pytest.approx(0.510826, abs=1e-6)
    head = torch.randn(6, 3, dtype=torch.float64)
    hidden, reference, states = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    labels = torch.randint(6, (2, 4))
    labels[0, 1] = -100
    by_head = loss(hidden, labels, states, labels, head, retain_reference=reference, reference_head=head + 1)
    by_logits = loss(hidden @ head.T, labels, states @ head.T, labels, retain_reference=reference @ (head + 1).T)
    assert by_head.item() == pytest.approx(by_logits.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["npo", "npo+rt", "npo+kl", "simnpo", "ga+rt"])
def test_masks_padding_micro_batches_and_constants(name):
    (forget, y), (retain, yr) = drawn(), drawn(2, 4, 1)
    reference = drawn(2, 4, 3)[0]
    ref = torch.tensor([-5.0, -7.0, -6.0], dtype=torch.float64)
    loss = unlearning_objective(name)
    options = {"forget_ref_logp": ref} if "npo" in name[:3] else {}
    rows = (retain, yr) if "+" in name else ()
    kl = {"retain_reference": reference} if name.endswith("kl") else {}
    wanted = loss(forget, y, *rows, **options, **kl)
    dirty, dirty_retain = forget.masked_fill((y == -100).unsqueeze(-1), math.nan), retain.clone()
    dirty_retain[yr == -100] = math.inf
    dirty_kl = {key: value.masked_fill((yr == -100).unsqueeze(-1), math.nan) for key, value in kl.items()}
    leaf = dirty.clone().requires_grad_()
    value = loss(leaf, y, *((dirty_retain, yr) if rows else ()), **options, **dirty_kl)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-14)
    assert torch.autograd.grad(value, leaf)[0].isfinite().all()
    shifted = loss(forget + 3.0, y, *((retain - 2.0, yr) if rows else ()), **options, **kl)
    assert shifted.item() == pytest.approx(wanted.item(), rel=1e-12)
    if rows:
        tokens = int((yr != -100).sum())
        parts = [
            loss(
                forget[a:b], y[a:b], retain[c:d], yr[c:d], num_forget=3, num_retain=tokens,
                **{k: v[a:b] for k, v in options.items()}, **{k: v[c:d] for k, v in kl.items()},
            )
            for a, b, c, d in ((0, 1, 0, 1), (1, 3, 1, 2))
        ]  # fmt: skip
        assert sum(parts).item() == pytest.approx(wanted.item(), rel=1e-12)
        only = loss(forget[:0], y[:0], *rows, **{k: v[:0] for k, v in options.items()}, **kl)
        assert only.item() == pytest.approx(loss.terms["retain"].item(), rel=1e-14)
        assert loss.terms["forget"] == 0


def test_refusals():
    (forget, y), (retain, yr) = drawn(), drawn(2, 4, 1)
    with pytest.raises(ValueError, match="forget_ref_logp: expected a tensor"):
        UnlearningObjective()(forget, y)
    with pytest.raises(ValueError, match="retain: expected None with a loss that keeps nothing"):
        UnlearningObjective("ga")(forget, y, retain, yr)
    with pytest.raises(ValueError, match="retain and retain_labels: expected rows to keep"):
        UnlearningObjective("ga", "ce")(forget, y)
    with pytest.raises(ValueError, match="retain_reference: expected logits of the reference"):
        UnlearningObjective("ga", "kl")(forget, y, retain, yr)
    with pytest.raises(ValueError, match='gamma: expected 0 but with forget="simnpo"'):
        UnlearningObjective("npo", gamma=1.0)
    with pytest.raises(ValueError, match="alternative: expected a tensor"):
        UnlearningObjective("dpo")(forget, y, forget_ref_logp=torch.zeros(3).double())
    with pytest.raises(ValueError, match="name: expected one of"):
        unlearning_objective("npo+x")


def test_options_that_would_do_nothing_are_refused():
    (forget, y), (retain, yr) = drawn(), drawn(2, 4, 1)
    ref = torch.zeros(3).double()
    for options, words in (
        ({"forget": "ga", "beta": 0.2}, 'beta: expected None with forget="ga"'),
        ({"forget": "npo", "weight": 2.0}, "weight: expected 1 with a loss that keeps nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            UnlearningObjective(**options)
    for loss, rows, further, words in (
        (UnlearningObjective("ga"), (), {"forget_ref_logp": ref}, "forget_ref_logp: expected None"),
        (UnlearningObjective("npo"), (), {"forget_ref_logp": ref, "alternative": forget}, "alternative: expected None"),
        (UnlearningObjective("ga"), (), {"num_retain": 3}, "num_retain: expected None"),
        (
            UnlearningObjective("ga", "ce"),
            (retain, yr),
            {"retain_reference": retain},
            "retain_reference: expected None",
        ),
        (
            UnlearningObjective("ga", "kl"),
            (retain, yr),
            {"retain_reference": retain, "reference_head": torch.zeros(7, 7).double()},
            "reference_head: expected None without a head",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            loss(forget, y, *rows, **further)
    with pytest.raises(ValueError, match="name: expected one of"):
        unlearning_objective("ga+")


def test_a_reference_of_another_shape_is_refused():
    """It would broadcast over rows and tokens."""
    (forget, y), (retain, yr) = drawn(), drawn(2, 4, 1)
    loss = UnlearningObjective("ga", "kl")
    for wrong in (retain[:1], retain[:, :1], retain[..., :5]):
        with pytest.raises(ValueError, match="retain_reference: expected shape"):
            loss(forget, y, retain, yr, retain_reference=wrong)


def test_a_pair_has_tokens_in_both_answers():
    (forget, y), (instead, yi) = drawn(), drawn(3, 3, 2)
    ref, own = torch.tensor([-5.0, -7.0, -6.0]).double(), torch.tensor([-2.0, math.nan, -3.0]).double()
    loss = UnlearningObjective("dpo")
    yi[1] = -100
    both = torch.tensor([0, 2])
    value = loss(forget, y, forget_ref_logp=ref, alternative=instead, alternative_labels=yi, alternative_ref_logp=own)
    wanted = loss(
        forget[both], y[both], forget_ref_logp=ref[both], alternative=instead[both], alternative_labels=yi[both],
        alternative_ref_logp=own[both],
    )  # fmt: skip
    assert value.item() == pytest.approx(wanted.item(), rel=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", [lambda p, **o: npo_loss(p, p.detach(), **o), gradient_ascent_loss])
def test_the_mean_of_no_answers_is_zero_with_a_graph(loss, weighted):
    for count in (0, 3) if weighted else (0,):
        logp = (-torch.rand(count, dtype=torch.float64)).requires_grad_()
        value = loss(logp, weight=torch.zeros(count, dtype=torch.float64) if weighted else None)
        assert value == 0
        assert not torch.autograd.grad(value, logp)[0].any()
