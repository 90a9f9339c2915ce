"""Policies that learn from answers of their own: rollouts in groups, rewards that can be checked, any policy loss."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..core.checks import check_choice, check_number, refuse_type
from ..core.group_advantages import SCALES, group_advantages
from ..core.method import Method
from ..core.objective import Batch, Objective
from ..core.policy_loss import PolicyLoss
from ..descent import ArrayBatches, Descent
from ..kernels.token_statistics import token_statistics
from .language import IGNORED, LanguageModel, Vocabulary, complete, language_descent

Reward = Callable[[Tensor, Tensor], Tensor]


class Rollouts(NamedTuple):
    """Answers to a batch of prompts, row by row; the groups follow each other.

    Attributes:
        tokens: prompt, answer and ends ``[B, T]``.
        labels: the answer's tokens up to its end, each where it is predicted, else -100 ``[B, T]``.
        old_logp: under the policy that drew them ``[B, T]``, 0 where there is no label.
        ref_logp: under the reference, likewise.
        rewards: ``[B]``.
        group_ids: numbers of the prompts ``[B]``.
    """

    tokens: Tensor
    labels: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    rewards: Tensor
    group_ids: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each answer, its end included ``[B]``."""
        return (self.labels != IGNORED).sum(1)

    @property
    def dead(self) -> Tensor:
        """The share of groups whose answers are all worth the same."""
        groups = self.rewards.view(int(self.group_ids[-1]) + 1, -1)
        return (groups.amax(1) == groups.amin(1)).to(self.rewards.dtype).mean()


def exact(answers: Tensor, right: Tensor) -> Tensor:
    """1 where an answer is the right one to its end, else 0.

    >>> exact(torch.tensor([[4, 0, 0], [4, 4, 0], [4, 5, 6]]), torch.tensor([[4, 0], [4, 0], [4, 5]]))
    tensor([1., 0., 0.])
    """
    steps = answers.shape[1]
    filled = nn.functional.pad(right, (0, max(steps - right.shape[1], 0)))[:, :steps]
    ended = (filled == 0).any(1)
    return ((answers == filled).all(1) & ended).to(torch.float32)


def answer_labels(answers: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Labels ``[B, width]`` of answers that follow prompts of these lengths, each up to its first end.

    >>> answer_labels(torch.tensor([[7, 8, 0, 0], [9, 9, 9, 9]]), torch.tensor([3, 1]), 6)
    tensor([[-100, -100,    7,    8,    0, -100],
            [   9,    9,    9,    9, -100, -100]])
    """
    ends = (answers == 0).cumsum(1)
    counted = (ends == 0) | ((ends == 1) & (answers == 0))
    places = lengths[:, None] - 1 + torch.arange(answers.shape[1], device=answers.device)
    labels = answers.new_full((len(answers), width), IGNORED)
    return labels.scatter(1, places, torch.where(counted, answers, IGNORED))


def log_probabilities(model: LanguageModel, tokens: Tensor, labels: Tensor, *more: str) -> Any:
    """Statistics of the labels under a model, from hidden states and its head: log_p and what else is named."""
    return token_statistics(model.hidden(tokens), labels, model.head.weight, want=("log_p", *more))


@torch.no_grad()
def roll_out(
    model: LanguageModel,
    reference: LanguageModel,
    prompts: Tensor,
    lengths: Tensor,
    right: Tensor,
    *,
    group: int,
    steps: int,
    reward: Reward = exact,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Answers that the model draws, ``group`` to each prompt and all at once, with their rewards and log-probabilities.

    Args:
        model: the policy.
        reference: what it shall stay near.
        prompts: ``[P, T]``, filled up at the right.
        lengths: how many tokens each has ``[P]``.
        right: the right answers ``[P, A]``, ended and filled up with 0.
        group: answers a prompt.
        steps: the most tokens of an answer, its end included.
        reward: of answers and right answers ``[P * group, ...]``, one number an answer.
        generator: of the draws.
    """
    prompts, lengths, right = (rows.repeat_interleave(group, 0) for rows in (prompts, lengths, right))
    answers = complete(model, prompts, lengths, steps, temperature=1.0, generator=generator)
    tokens = torch.cat([prompts, prompts.new_zeros(len(prompts), steps)], 1)
    tokens = tokens.scatter(1, lengths[:, None] + torch.arange(steps, device=lengths.device), answers)
    labels = answer_labels(answers, lengths, tokens.shape[1])
    old, ref = (log_probabilities(policy, tokens, labels).log_p for policy in (model, reference))
    ids = torch.arange(len(prompts) // group, device=prompts.device).repeat_interleave(group)
    return Rollouts(tokens, labels, old, ref, reward(answers, right).to(old.dtype), ids)


class PolicyMethod(Method):
    """Draws groups of answers from the model itself, and learns each batch of them several times.

    The objective of the run is a :class:`~steepest.core.policy_loss.PolicyLoss`. A batch has prompts as inputs, right
    answers as target and the prompts' ``lengths`` among its extra tensors. Of ``updates`` batches the prompts of the
    first are answered; the steps between learn its answers again, whose old log-probabilities stay. All of it is in
    ``state_dict``: a resumed run draws and learns on bit for bit.

    Args:
        reference: the model that divergences are measured from; a frozen copy is kept.
        group: answers a prompt.
        steps: the most tokens of an answer, its end included.
        updates: steps on the same answers.
        scale_rewards: of :func:`~steepest.core.group_advantages.group_advantages`.
        reward: of answers and right answers.
        generator: of the draws; None is torch's own.
    """

    name = "policy"

    def __init__(
        self,
        reference: LanguageModel,
        *,
        group: int = 8,
        steps: int = 4,
        updates: int = 1,
        scale_rewards: str = "group",
        reward: Reward = exact,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("group", group), ("steps", steps), ("updates", updates)):
            check_number(name, value, low=1, integer=True)
        check_choice("scale_rewards", scale_rewards, SCALES)
        self.reference = copy.deepcopy(reference).requires_grad_(False)
        self.group, self.steps, self.updates = group, steps, updates
        self.scale_rewards, self.reward, self.generator = scale_rewards, reward, generator
        self.rollouts: Rollouts | None = None
        self.age = 0
        self.history: list[dict[str, float]] = []
        """Of each batch of answers: mean reward, mean length, share of dead groups."""

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        policy, loss = cast(LanguageModel, model), cast(Any, objective)
        if not isinstance(loss, PolicyLoss):
            refuse_type("objective", "a PolicyLoss", objective)
        if self.rollouts is None or self.age >= self.updates:
            self.rollouts, self.age = self._drawn(policy, batch), 0
        self.age += 1
        rows = self.rollouts
        logp = log_probabilities(policy, rows.tokens, rows.labels).log_p
        return policy_loss(loss, logp, rows, self.scale_rewards)

    def _drawn(self, policy: LanguageModel, batch: Batch) -> Rollouts:
        rows = roll_out(
            policy,
            self.reference,
            batch.inputs,
            batch.extra["lengths"],
            batch.target,
            group=self.group,
            steps=self.steps,
            reward=self.reward,
            generator=self.generator,
        )
        facts = {"reward": rows.rewards.mean(), "length": rows.lengths.to(rows.rewards.dtype).mean(), "dead": rows.dead}
        self.history.append({name: float(value) for name, value in facts.items()})
        return rows

    def get_extra_state(self) -> dict[str, Any]:
        """What the next step needs beside tensors of modules."""
        return {
            "rollouts": None if self.rollouts is None else list(self.rollouts),
            "age": self.age,
            "history": [dict(line) for line in self.history],
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`get_extra_state` gave."""
        self.rollouts = None if state["rollouts"] is None else Rollouts(*state["rollouts"])
        self.age, self.history = state["age"], [dict(line) for line in state["history"]]
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())


def policy_loss(loss: PolicyLoss, logp: Tensor, rows: Rollouts, scale_rewards: str) -> Tensor:
    """A policy loss of whichever signature: advantages, or rewards and groups; a reference where it takes one."""
    mask = rows.labels != IGNORED
    if loss.grouped:
        return cast(Tensor, loss(logp, rows.old_logp, rows.rewards, mask, group_ids=rows.group_ids))
    advantages = group_advantages(rows.rewards, rows.group_ids, scale_rewards)
    named = {"ref_logp": rows.ref_logp} if "ref_logp" in inspect.signature(loss.forward).parameters else {}
    return cast(Tensor, loss(logp, rows.old_logp, advantages, mask, **named))


def policy_descent(
    model: LanguageModel,
    loss: PolicyLoss,
    problems: Problems,
    *,
    rate: float,
    prompts: int = 32,
    seed: int = 0,
    warmup: int = 1,
    **method: Any,
) -> Descent:
    """A run that learns a policy by a loss, on a batch of prompts a step; its reference is the model as it is now.

    Args:
        model: trained in place.
        loss: of log-probabilities, advantages and a mask.
        problems: what is asked.
        rate: the learning rate, constant after ``warmup`` steps.
        prompts: of a step.
        seed: of the prompts' order and of the draws.
        warmup: steps.
        **method: what :class:`PolicyMethod` takes.
    """
    drawn = torch.Generator().manual_seed(seed)
    method = {"steps": problems.right.shape[1], "generator": drawn, **method}
    batches = ArrayBatches(
        problems.prompts, problems.right, batch_size=prompts, seed=seed, extra={"lengths": problems.lengths}
    )
    by_policy = PolicyMethod(model, **method)

    def share(number: int) -> float:
        return min(1.0, (number + 1) / warmup)

    return language_descent(model, loss, batches, by_policy, rate=rate, share=share)


class Problems(NamedTuple):
    """Prompts and their right answers as tokens.

    Attributes:
        prompts: ``[N, T]``, filled up at the right.
        lengths: tokens of each ``[N]``.
        right: right answers ``[N, A]``, ended and filled up with 0.
    """

    prompts: Tensor
    lengths: Tensor
    right: Tensor

    @property
    def context(self) -> int:
        """Tokens of the longest row."""
        return self.prompts.shape[1] + self.right.shape[1]


def problems_of(words: Vocabulary, pairs: Sequence[tuple[str, str]]) -> Problems:
    """Of prompts and right answers in characters.

    >>> problems_of(Vocabulary("0123456789+="), [("1+2=", "3"), ("9+9=", "18")]).right
    tensor([[4, 0, 0],
            [2, 9, 0]])
    """
    prompts, lengths = words.prompts([prompt for prompt, _ in pairs])
    answers, _ = words.prompts([answer for _, answer in pairs])
    return Problems(prompts, lengths, nn.functional.pad(answers, (0, 1)))


def all_sums(below: int) -> list[tuple[str, str]]:
    """Every sum of two numbers below a bound.

    >>> all_sums(2)
    [('0+0=', '0'), ('0+1=', '1'), ('1+0=', '1'), ('1+1=', '2')]
    """
    return [(f"{a}+{b}=", f"{a + b}") for a in range(below) for b in range(below)]


@torch.no_grad()
def chance_right(model: LanguageModel, problems: Problems) -> float:
    """The probability of the right answer, the mean over problems: the exact mean reward of drawn answers."""
    rows = len(problems.prompts)
    tokens = torch.cat([problems.prompts, problems.right.new_zeros(rows, problems.right.shape[1])], 1)
    tokens = tokens.scatter(
        1,
        problems.lengths[:, None] + torch.arange(problems.right.shape[1], device=problems.right.device),
        problems.right,
    )
    labels = answer_labels(problems.right, problems.lengths, tokens.shape[1])
    return float(log_probabilities(model, tokens, labels).log_p.sum(1).exp().mean())


class Spread(NamedTuple):
    """What a policy's own answers show: entropy and divergence a token, in nats; tokens an answer."""

    entropy: float
    divergence: float
    length: float


@torch.no_grad()
def spread_of(
    model: LanguageModel,
    reference: LanguageModel,
    problems: Problems,
    *,
    group: int = 4,
    generator: torch.Generator | None = None,
) -> Spread:
    """Entropy, KL(policy || reference) and length, means over answers that the policy draws.

    At each token of a drawn answer both are sums over the whole vocabulary, not estimates of the token alone.
    """
    rows = roll_out(model, reference, *problems, group=group, steps=problems.right.shape[1], generator=generator)
    valid = rows.labels != IGNORED
    log_p, log_q = (policy(rows.tokens)[valid].double().log_softmax(-1) for policy in (model, reference))
    p = log_p.exp()
    return Spread(
        float(-(p * log_p).sum(-1).mean()),
        float((p * (log_p - log_q)).sum(-1).mean()),
        float(np.mean(rows.lengths.tolist())),
    )
