"""Answers that a policy draws, what they are worth, and runs of the training loop that learn from them."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from steepest.core.group_policy import GroupPolicyLoss
from steepest.descent import Hook
from steepest.lab.data import here
from steepest.lab.language import IGNORED, Vocabulary, batches, by_loss, characters, fresh, train, windows
from steepest.lab.rollouts import (
    PolicyMethod,
    Rollouts,
    all_sums,
    chance_right,
    exact,
    policy_descent,
    policy_loss,
    problems_of,
    roll_out,
    spread_of,
)
from steepest.losses import DeltaLNormalization, GroupREINFORCE, RPGLoss, TokenCrossEntropyLoss

WORDS = Vocabulary("0123456789+=")
WITH_TEXT = pytest.mark.skipif(not here("tiny-shakespeare.txt"), reason="the text is not here")


def drawn(seed=0, below=6, group=4, width=8, smoke=False):
    """A model that knows nothing, a reference, problems and answers."""
    problems = problems_of(WORDS, [*all_sums(below)[3:9], ("10+9=", "19")])
    model, reference = (fresh(seed + n, len(WORDS), problems.context, width=width, smoke=smoke) for n in range(2))
    generator = torch.Generator().manual_seed(seed)
    rows = roll_out(model, reference, *problems, group=group, steps=3, generator=generator)
    return model, reference, problems, rows


def warmed(below, steps, width=16, seed=0):
    """Problems and a model that has learned a part of them."""
    pairs = all_sums(below)
    problems = problems_of(WORDS, pairs)
    model = fresh(seed, len(WORDS), problems.context, width=width, depth=1, heads=2)
    rows = batches(*WORDS.rows(pairs), 32, torch.Generator().manual_seed(seed))
    train(model, rows, by_loss(TokenCrossEntropyLoss()), rate=1e-2, steps=steps, decay=False)
    return model, problems


def test_rows_are_prompts_with_answers_to_their_end():
    model, reference, problems, rows = drawn(group=30)
    for number in range(len(rows.tokens)):
        prompt = problems.prompts[number // 30][: problems.lengths[number // 30]].tolist()
        row, labels = rows.tokens[number].tolist(), rows.labels[number].tolist()
        answer = row[len(prompt) : len(prompt) + 3]
        assert row[: len(prompt)] == prompt
        counted = answer[: answer.index(0) + 1] if 0 in answer else answer
        wanted = [IGNORED] * (len(prompt) - 1) + counted
        assert labels == wanted + [IGNORED] * (len(row) - len(wanted))
        assert int(rows.lengths[number]) == len(counted)
        right = WORDS.text(problems.right[number // 30].tolist())
        assert float(rows.rewards[number]) == (0 in answer and WORDS.text(answer) == right)
        for policy, log_p in ((model, rows.old_logp), (reference, rows.ref_logp)):
            own = policy(rows.tokens[number : number + 1])[0].log_softmax(-1).detach()
            by_place = [float(own[t, label]) if label != IGNORED else 0.0 for t, label in enumerate(labels)]
            assert log_p[number].tolist() == pytest.approx(by_place, abs=1e-5)
    assert rows.group_ids.tolist() == [n // 30 for n in range(len(rows.tokens))]
    assert not rows.old_logp.requires_grad


def test_a_seed_gives_the_same_answers():
    assert torch.equal(drawn()[3].tokens, drawn()[3].tokens)
    assert not torch.equal(drawn()[3].tokens, drawn(seed=5)[3].tokens)


@pytest.mark.parametrize(
    ("answer", "right", "worth"),
    [
        ([4, 0, 0], [4, 0], 1.0),
        ([4, 0], [4, 0, 0], 1.0),
        ([4, 5, 0], [4, 0, 0], 0.0),
        ([4, 5], [4, 5, 0], 0.0),
        ([0, 0], [0, 0], 1.0),
    ],
)
def test_worth(answer, right, worth):
    assert exact(torch.tensor([answer]), torch.tensor([right])).tolist() == [worth]


def test_dead_groups():
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    tokens = torch.zeros(6, 2, dtype=torch.long)
    ids = torch.tensor([0, 0, 1, 1, 2, 2])
    assert float(Rollouts(tokens, tokens, rewards, rewards, rewards, ids).dead) == pytest.approx(2 / 3)


def test_the_exact_reward_is_the_mean_over_all_answers():
    words = Vocabulary("ab")
    problems = problems_of(words, [("a", "b"), ("ba", "")])
    model = fresh(3, len(words), problems.context, width=8, smoke=True)
    total = 0.0
    for row in range(2):
        prompt = problems.prompts[row][: problems.lengths[row]].tolist()
        for first in range(3):
            for second in range(3) if first else (0,):
                answer = [first, second]
                p = model(torch.tensor([prompt + answer]))[0].softmax(-1).detach()
                chance = float(p[len(prompt) - 1, first]) * (float(p[len(prompt), second]) if first else 1.0)
                total += chance * float(exact(torch.tensor([answer]), problems.right[row : row + 1]))
    assert chance_right(model, problems) == pytest.approx(total / 2, rel=1e-5)


def test_divergence_and_entropy_are_those_of_whole_vocabularies():
    model, reference, problems, _ = drawn()
    generator = torch.Generator().manual_seed(4)
    rows = roll_out(model, reference, *problems, group=4, steps=3, generator=torch.Generator().manual_seed(4))
    spread = spread_of(model, reference, problems, generator=generator)
    entropies, divergences = [], []
    for tokens, labels in zip(rows.tokens, rows.labels, strict=True):
        p, q = (policy(tokens[None])[0].softmax(-1).double().detach() for policy in (model, reference))
        for place in (labels != IGNORED).nonzero().flatten().tolist():
            entropies.append(-sum(float(x) * math.log(x) for x in p[place]))
            divergences.append(sum(float(x) * math.log(x / y) for x, y in zip(p[place], q[place], strict=True)))
    assert spread.entropy == pytest.approx(np.mean(entropies), rel=1e-5)
    assert spread.divergence == pytest.approx(np.mean(divergences), rel=1e-5)
    assert spread.length == pytest.approx(float((rows.labels != IGNORED).sum(1).double().mean()))
    assert spread_of(model, model, problems).divergence == 0.0


@pytest.mark.parametrize(
    "loss", [GroupPolicyLoss("grpo", beta=0.1), RPGLoss(), DeltaLNormalization(3.0), GroupREINFORCE()]
)
def test_losses_of_each_signature(loss):
    rows = drawn(smoke=True)[3]
    rows = rows._replace(rewards=(torch.arange(len(rows.rewards)) % 3 == 0).double())
    logp = rows.old_logp.clone().requires_grad_()
    value = policy_loss(loss, logp, rows, "none")
    (slope,) = torch.autograd.grad(value, logp)
    mask = rows.labels != IGNORED
    assert not slope[~mask].any()
    assert slope[mask].any()
    if loss.name == "group_policy":
        means = rows.rewards.view(-1, 4).mean(1).repeat_interleave(4)
        direct = loss(logp, rows.old_logp, rows.rewards - means, mask, ref_logp=rows.ref_logp)
        torch.testing.assert_close(value, direct)


def test_rewards_rise_from_a_warm_start():
    model, problems = warmed(6, 60)
    reference = copy.deepcopy(model)
    before = chance_right(model, problems)
    run = policy_descent(model, GroupPolicyLoss("grpo"), problems, rate=3e-3, prompts=12, updates=2, seed=1)
    run.fit(25)
    after = chance_right(model, problems)
    assert 0.1 < before < 0.8
    assert after > before + 0.1
    assert isinstance(run.method, PolicyMethod)
    assert len(run.method.history) == 25 * 3 // 2 + 1
    assert spread_of(model, reference, problems).divergence > 0.01
    for own, kept in zip(run.method.reference.parameters(), reference.parameters(), strict=True):
        assert torch.equal(own, kept)


class Saved(Hook):
    """The state after a step."""

    def __init__(self, step):
        self.step, self.state = step, None

    def on_step(self, descent, batch, loss):
        if self.step == descent.epoch * 3 + descent.step:
            self.state = copy.deepcopy(descent.state_dict())


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_resumed_run_is_the_same_bit_for_bit(step, tmp_path):
    """Between two updates on the same answers, and at the end of an epoch."""
    model, problems = warmed(6, 30)

    def begun(hooks, seed):
        policy = copy.deepcopy(model)
        run = policy_descent(policy, GroupPolicyLoss("dapo"), problems, rate=1e-3, prompts=12, updates=2, seed=0)
        if seed:
            assert isinstance(run.method, PolicyMethod)
            assert run.method.generator is not None
            run.method.generator.manual_seed(seed)
        run.hooks = hooks
        return run

    saved = Saved(step)
    whole = begun([saved], 0).fit(3)
    file = tmp_path / "run.pt"
    torch.save(saved.state, file)
    again = begun([Saved(step)], 99).resume(file).fit(3)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert whole.method.history == again.method.history
    assert whole.history == again.history


def test_objectives_of_other_kinds_are_refused():
    model, _, problems, _ = drawn()
    with pytest.raises(TypeError, match="objective: expected a PolicyLoss"):
        policy_descent(model, TokenCrossEntropyLoss(), problems, rate=1e-3).fit(1)
    for options, words in (
        ({"group": 0}, "group: "),
        ({"updates": 0}, "updates: "),
        ({"scale_rewards": "x"}, "scale_"),
    ):
        with pytest.raises(ValueError, match=words):
            PolicyMethod(model, **options)


@pytest.mark.parametrize("made_up", [True, pytest.param(False, marks=WITH_TEXT)])
def test_a_language_model_learns_more_than_how_frequent_characters_are(made_up):
    """By the training loop of the package: below the entropy of single characters, of tiny Shakespeare too."""
    text, count = characters(made_up)
    p = torch.bincount(text, minlength=count).double() / len(text)
    unigram = float(-(p * p.clamp_min(1e-300).log()).sum())
    model = fresh(0, count, 32, width=32, depth=1, heads=2)
    generator = torch.Generator().manual_seed(0)

    def rows():
        while True:
            yield windows(text, 16, 32, generator)

    loss = by_loss(TokenCrossEntropyLoss())
    train(model, rows(), loss, rate=1e-2, steps=120)
    with torch.no_grad():
        value = float(loss(model, *windows(text, 64, 32, generator)))
    assert unigram == pytest.approx(4.17 if made_up else 3.31, abs=0.02)
    assert value < unigram - 0.3
