"""Soft Bellman residuals against loops over tokens, dynamic programming and the numbers of one small case."""

from __future__ import annotations

import itertools

import pytest
import torch

from steepest.kernels import token_statistics
from steepest.losses.policy import ShiQLoss, shiq_loss

L = torch.tensor([[[1.0, 0, -1], [0.5, 0.5, 0]]], dtype=torch.float64)
L0 = torch.tensor([[[0.5, 0, 0], [0.0, 1, 0]]], dtype=torch.float64)
ACTIONS, REWARDS = torch.tensor([[0, 1]]), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
WHOLE = torch.ones(1, 2, dtype=torch.bool)


def drawn():
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 4, 6, 5, generator=generator, dtype=torch.float64)
    actions = torch.randint(5, (4, 6), generator=generator)
    rewards = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, 0] = mask[1, 2:4] = mask[2, 5] = False
    return logits, reference, actions, rewards, mask


def by_definition(logits, reference, actions, rewards, mask, beta, gamma, multi_step):
    """A token after the other, from the last to the first; of each sequence the sum of squares."""
    losses = []
    for row in range(len(actions)):
        places = [t for t in range(actions.shape[1]) if mask[row, t]]
        residuals = []
        for number, t in enumerate(places):
            later = 0.0
            if number + 1 < len(places):
                after = places[number + 1]
                later = torch.logsumexp(logits[row, after], 0) - torch.logsumexp(reference[row, after], 0)
            a = actions[row, t]
            residuals.append(rewards[row, t] + gamma * beta * later - beta * (logits[row, t, a] - reference[row, t, a]))
        if multi_step:
            residuals = [sum(residuals[k:]) for k in range(len(residuals))]
        losses.append(sum(r**2 for r in residuals))
    return torch.stack(losses)


@pytest.mark.holds("shiq", 1)
def test_numbers_of_the_card():
    one = shiq_loss(L, L0, ACTIONS, REWARDS, WHOLE, beta=0.5, multi_step=False)
    several = shiq_loss(L, L0, ACTIONS, REWARDS, WHOLE, beta=0.5)
    assert one.item() == pytest.approx(1.6505, abs=5e-5)
    assert several.item() == pytest.approx(2.4713, abs=5e-5)
    last = shiq_loss(L[:, 1:], L0[:, 1:], ACTIONS[:, 1:], REWARDS[:, 1:], WHOLE[:, 1:], beta=0.5)
    assert last.item() == pytest.approx(1.25**2, abs=1e-12)
    assert several.item() - 1.25**2 == pytest.approx(0.9533**2, abs=1e-4)
    assert one.item() - 1.25**2 == pytest.approx(0.2967**2, abs=1e-4)


@pytest.mark.holds("shiq", 2)
@pytest.mark.parametrize(("gamma", "multi_step"), [(1.0, True), (1.0, False), (0.7, False)])
def test_residuals_of_several_steps_are_sums_of_those_of_one(gamma, multi_step):
    logits, reference, actions, rewards, mask = drawn()
    wanted = by_definition(logits, reference, actions, rewards, mask, 0.3, gamma, multi_step)
    options = {"beta": 0.3, "gamma": gamma, "multi_step": multi_step}
    losses = shiq_loss(logits, reference, actions, rewards, mask, **options, reduction="none")
    torch.testing.assert_close(losses, wanted, rtol=1e-12, atol=0)
    assert shiq_loss(logits, reference, actions, rewards, mask, **options).item() == pytest.approx(wanted.mean().item())
    total = shiq_loss(logits, reference, actions, rewards, mask, **options, reduction="sum")
    assert total.item() == pytest.approx(wanted.sum().item())
    log_pi, log_pi0 = (z.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1) for z in (logits, reference))
    if multi_step:  # the telescoped form, of a row without masked tokens
        v, v0 = logits.logsumexp(-1), reference.logsumexp(-1)
        to_go = (rewards - 0.3 * (log_pi - log_pi0)).flip(1).cumsum(1).flip(1) - 0.3 * (v - v0)
        assert losses[3].item() == pytest.approx(to_go[3].square().sum().item(), rel=1e-12)


@pytest.mark.holds("shiq", 3)
def test_at_the_reference_residuals_are_rewards_to_go():
    logits, reference, actions, rewards, _ = drawn()
    mask = torch.ones_like(actions, dtype=torch.bool)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    for start in (logits, reference):
        losses = shiq_loss(start, start, actions, rewards, mask, beta=0.2, reduction="none")
        torch.testing.assert_close(losses, to_go.square().sum(1), rtol=1e-12, atol=0)


@pytest.mark.holds("shiq", 4)
def test_a_constant_on_all_logits_is_a_value():
    logits, reference, actions, rewards, mask = drawn()
    before = shiq_loss(logits, reference, actions, rewards, mask)
    assert abs(shiq_loss(logits + 1.0, reference, actions, rewards, mask) - before) > 1e-3
    both = shiq_loss(logits + 1.0, reference + 1.0, actions, rewards, mask)
    assert both.item() == pytest.approx(before.item(), rel=1e-12)


@pytest.mark.holds("shiq", 5)
@pytest.mark.parametrize("multi_step", [True, False])
def test_its_minimum_is_the_best_policy_with_a_divergence(multi_step):
    """Two steps of three tokens each, every sequence once; the optimum by backward induction."""
    generator = torch.Generator().manual_seed(1)
    beta, count = 0.4, 3
    first0, second0 = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((count,), (count, count))
    )
    reward1, reward2 = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((count,), (count, count))
    )
    paths = torch.tensor(list(itertools.product(range(count), repeat=2)))
    first, second = first0.clone().requires_grad_(), second0.clone().requires_grad_()
    rewards = torch.stack([reward1[paths[:, 0]], reward2[paths[:, 0], paths[:, 1]]], 1)
    reference = torch.stack([first0.expand(9, 3), second0[paths[:, 0]]], 1)
    mask = torch.ones(9, 2, dtype=torch.bool)
    optimizer = torch.optim.LBFGS([first, second], max_iter=500, tolerance_grad=1e-14, tolerance_change=0.0)

    def closure():
        optimizer.zero_grad()
        logits = torch.stack([first.expand(9, 3), second[paths[:, 0]]], 1)
        loss = shiq_loss(logits, reference, paths, rewards, mask, beta=beta, multi_step=multi_step)
        loss.backward()
        return loss

    for _ in range(3):
        assert optimizer.step(closure) < 10
    assert closure() < 1e-18
    log_pi2 = second0.log_softmax(1)
    value = beta * (log_pi2 + reward2 / beta).logsumexp(1)
    best2 = (log_pi2 + reward2 / beta).softmax(1)
    best1 = (first0.log_softmax(0) + (reward1 + value) / beta).softmax(0)
    torch.testing.assert_close(first.softmax(0), best1, rtol=0, atol=1e-8)
    torch.testing.assert_close(second.softmax(1), best2, rtol=0, atol=1e-8)


@pytest.mark.holds("shiq", 6)
def test_padding_contributes_nothing():
    logits, reference, actions, rewards, mask = drawn()
    wanted = shiq_loss(logits, reference, actions, rewards, mask)
    spoiled = [v.clone() for v in (logits, reference, rewards)]
    for value in spoiled:
        value[~mask] = float("nan")
    z = spoiled[0].requires_grad_()
    result = shiq_loss(z, spoiled[1], torch.where(mask, actions, 99), spoiled[2], mask)
    result.backward()
    assert result.item() == wanted.item()
    assert not z.grad[~mask].any()
    assert shiq_loss(logits[:, :4], reference[:, :4], actions[:, :4], rewards[:, :4], mask[:, :4]) != wanted


def test_the_reference_is_a_constant_however_it_comes():
    logits, reference, actions, rewards, mask = drawn()
    labels = torch.where(mask, actions, -100)
    loss = ShiQLoss(0.3)
    live = reference.clone().requires_grad_()
    value = loss(logits.requires_grad_(), labels, rewards=rewards, reference=live)
    value.backward()
    assert live.grad is None
    once = token_statistics(reference, labels, want=("label", "log_z"))
    cached = loss(logits, labels, rewards=rewards, reference_label=once.label, reference_log_z=once.log_z)
    assert cached.item() == pytest.approx(value.item(), rel=1e-14)
    head, states = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 6, 3, dtype=torch.float64)
    by_head = loss(logits, labels, rewards=rewards, reference=states, reference_head=head)
    assert by_head.item() == pytest.approx(loss(logits, labels, rewards=rewards, reference=states @ head.T).item())


def test_options():
    logits, reference, actions, rewards, mask = drawn()
    labels = torch.where(mask, actions, -100)
    further = {"rewards": rewards, "reference": reference}
    plain = shiq_loss(logits, reference, actions, rewards, mask, beta=0.3, reduction="none")
    over = ShiQLoss(0.3, over_beta=True)(logits, labels, **further)
    assert over.item() == pytest.approx(plain.mean().item() / 0.09)
    per_token = ShiQLoss(0.3, per_token=True)(logits, labels, **further)
    assert per_token.item() == pytest.approx((plain / mask.sum(1)).mean().item())


def test_refusals():
    logits, reference, actions, rewards, mask = drawn()
    with pytest.raises(ValueError, match="gamma: expected 1 with multi_step"):
        ShiQLoss(gamma=0.9)
    with pytest.raises(ValueError, match="beta: expected a number > 0"):
        ShiQLoss(0.0)
    with pytest.raises(ValueError, match="reference: expected logits of the reference"):
        ShiQLoss()(logits, actions, rewards=rewards)
    with pytest.raises(ValueError, match="reference: expected logits of the reference"):
        ShiQLoss()(
            logits, actions, rewards=rewards, reference=reference, reference_label=rewards, reference_log_z=rewards
        )
    with pytest.raises(TypeError, match="rewards: expected a tensor"):
        ShiQLoss()(logits, actions, reference=reference)
    with pytest.raises(ValueError, match="reduction: expected one of"):
        shiq_loss(logits, reference, actions, rewards, mask, reduction="median")


def test_a_reference_with_head_bias_and_softcap():
    _, _, actions, rewards, mask = drawn()
    labels = torch.where(mask, actions, -100)
    generator = torch.Generator().manual_seed(1)
    states, states0 = torch.randn(2, 4, 6, 3, generator=generator, dtype=torch.float64)
    (head, head0), (bias, bias0) = (torch.randn(2, 5, *n, generator=generator, dtype=torch.float64) for n in ((3,), ()))
    result = ShiQLoss(0.3)(
        states, labels, head, bias=bias, softcap=2.0, rewards=rewards,
        reference=states0, reference_head=head0, reference_bias=bias0,
    )  # fmt: skip
    logits, reference = (
        2 * torch.tanh((h @ w.T + b) / 2) for h, w, b in ((states, head, bias), (states0, head0, bias0))
    )
    wanted = by_definition(logits, reference, actions, rewards, mask, 0.3, 1.0, True)
    assert result.item() == pytest.approx(float(torch.as_tensor(wanted).mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": torch.zeros(4, 6, 4, dtype=torch.float64)}, "reference: expected shape"),
        ({"reference_head": torch.zeros(4, 5, dtype=torch.float64)}, "reference_head: expected shape"),
        ({"reference_bias": torch.zeros(5)}, "reference_bias: expected None without reference_head"),
        ({"reference_label": torch.zeros(4, 6)}, "reference: expected logits of the reference, or"),
        ({"reference": None, "reference_head": torch.zeros(5, 3)}, "reference: expected logits of the reference, or"),
        (
            {"reference": None, "reference_label": torch.zeros(4, 6), "reference_log_z": torch.zeros(4, 6),
             "reference_head": torch.zeros(5, 3)},
            "reference: expected hidden states, beside reference_head",
        ),
    ],
)  # fmt: skip
def test_references_that_do_not_belong_together(change, message):
    logits, reference, actions, rewards, _ = drawn()
    with pytest.raises(ValueError, match=message):
        ShiQLoss()(logits, actions, **{"rewards": rewards, "reference": reference, **change})
