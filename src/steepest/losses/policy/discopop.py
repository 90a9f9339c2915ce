"""DiscoPOP: a preference loss that a search found, the losses that the search starts from, and the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float as F
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ...core.checks import check_choice, check_number, refuse_type
from ...core.loss import Sample
from ...core.preference import (
    LogProbabilityLoss,
    MarginLoss,
    PreferenceLoss,
    check_preference_options,
    log_probability_samples,
    margin_losses,
    preference_loss,
    preference_terms,
    reduce_pairs,
)
from ...core.reductions import REDUCTIONS

__all__ = [
    "DiscoPOPLoss",
    "Discovery",
    "ObjectiveCandidate",
    "PreferenceLoss",
    "RandomExpressions",
    "discopop_loss",
    "discover_objective",
    "preference_loss",
    "preference_losses",
]

Losses = Callable[[Tensor], Tensor]
"""Losses of margins x."""
preference_losses: dict[str, MarginLoss] = margin_losses()
"""Losses of pairs by name, each a function of margins rho (log-ratio of the chosen less that of the rejected answer)
and beta: those named losses of :func:`preference_loss` that need nothing else."""


def discopop_loss(
    policy_chosen: F[Tensor, " pairs"],
    policy_rejected: F[Tensor, " pairs"],
    ref_chosen: F[Tensor, " pairs"],
    ref_rejected: F[Tensor, " pairs"],
    beta: float = 0.05,
    tau: float = 0.05,
    *,
    reduction: str = "mean",
) -> Tensor:
    r"""The logistic and the exponential loss of preferences, blended by the margin itself.

    .. math:: x = \beta \left[\log\frac{\pi(y_w)}{\pi_{ref}(y_w)} - \log\frac{\pi(y_l)}{\pi_{ref}(y_l)}\right],
        \qquad L = (1 - g) \log(1 + e^{-x}) + g\, e^{-x}, \qquad g = \sigma(x / \tau)

    The gradient flows through g as well, and the loss is not convex: with the published numbers it has a minimum at
    x = -0.1186 and a maximum at x = 0.0720, so that pairs between them, those at the start (x = 0) included, are pushed
    to the minimum. It is the logistic loss far below 0 and the exponential one far above.

    Args:
        policy_chosen: log-probability of each chosen answer under the policy, summed over its tokens ``[B]``.
        policy_rejected: the same of the rejected answers ``[B]``.
        ref_chosen, ref_rejected: under the reference ``[B]``; no gradient flows into them.
        beta: > 0.
        tau: > 0, the width of the blend in x; for :math:`\tau > 1` the exponential part overflows below
            :math:`x = -88 \tau / (\tau - 1)` in float32.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: shapes that differ, ``beta`` or ``tau`` not above 0.

    Example:
        >>> zero = torch.zeros(3)
        >>> discopop_loss(torch.tensor([-20.0, 0.0, 20.0]), zero, zero, zero, reduction="none")
        tensor([1.3133, 0.8466, 0.3679])

    Source: Discovering Preference Optimization Algorithms with and for Large Language Models, arXiv:2406.08414.
    """
    losses, _, _ = preference_loss(
        policy_chosen, policy_rejected, ref_chosen, ref_rejected, "discopop", beta=beta, tau=tau
    )
    return reduce_pairs(losses, reduction)


class DiscoPOPLoss(LogProbabilityLoss):
    """DiscoPOP as a module; see :func:`discopop_loss`.

    Args:
        beta: > 0.
        tau: > 0, the width of the blend.
        reduction: ``"mean"`` over pairs, ``"sum"`` or ``"none"``.

    ``terms`` has the mean rewards, their margin and the share of pairs in order, as those of ``PreferenceLoss``.

    Example:
        >>> loss = DiscoPOPLoss()
        >>> zero = torch.zeros(2)
        >>> loss(torch.tensor([1.0, -1.0]), zero, zero, zero)
        tensor(0.8416)
    """

    name = "discopop"

    def __init__(self, beta: float = 0.05, tau: float = 0.05, reduction: str = "mean") -> None:
        super().__init__()
        check_preference_options("discopop", beta, {"tau": tau})
        check_choice("reduction", reduction, REDUCTIONS)
        self.beta, self.tau, self.reduction = beta, tau, reduction

    def forward(
        self,
        policy_chosen: F[Tensor, " pairs"],
        policy_rejected: F[Tensor, " pairs"],
        ref_chosen: F[Tensor, " pairs"],
        ref_rejected: F[Tensor, " pairs"],
    ) -> Tensor:
        """The loss of log-probabilities under policy and reference."""
        losses, chosen, rejected = preference_loss(
            policy_chosen, policy_rejected, ref_chosen, ref_rejected, "discopop", beta=self.beta, tau=self.tau
        )
        self.terms = preference_terms(chosen, rejected)
        return reduce_pairs(losses, self.reduction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[DiscoPOPLoss, Sample]]:
        scores = tuple(log_probability_samples(4, generator, dtype, device))
        return [(cls(), (scores, {})), (cls(0.5, 0.3, "sum"), (scores, {}))]


# ------------------------------------------------------------------------------------------------------------- search


@dataclass(frozen=True)
class ObjectiveCandidate:
    """A loss of margins x in a search.

    Args:
        text: its formula, or its name.
        losses: the losses of margins ``[B]``, ``[B]``.
        score: of validation, higher is better; -inf where a test of the candidate failed.
        failure: what failed, or ``""``.
    """

    text: str
    losses: Losses
    score: float = -math.inf
    failure: str = ""


@dataclass(frozen=True)
class Discovery:
    """What a search went through.

    Args:
        archive: all candidates in the order of their trial; first those it started from.
        started_from: how many these are.
    """

    archive: tuple[ObjectiveCandidate, ...]
    started_from: int

    @property
    def best(self) -> ObjectiveCandidate:
        """The candidate with the highest score, the first of equal ones."""
        return max(self.archive, key=lambda candidate: candidate.score)

    @property
    def best_so_far(self) -> list[float]:
        """The highest score after each generation; first that of the losses it started from."""
        scores = [candidate.score for candidate in self.archive]
        return [max(scores[:count]) for count in range(self.started_from, len(scores) + 1)]


Proposer = Callable[[Sequence[ObjectiveCandidate], torch.Generator], ObjectiveCandidate]
"""Proposes the next candidate from the archive with its scores: a language model, or :class:`RandomExpressions`."""


def discover_objective(
    evaluate: Callable[[Losses], float],
    proposer: Proposer | None = None,
    generations: int = 30,
    seed: int = 0,
    *,
    start: Mapping[str, Losses] | None = None,
) -> Discovery:
    """A search for a preference loss: propose a formula, test it, train with it, remember its score.

    The archive starts with known losses and their scores. In each generation the proposer sees the archive and gives
    one candidate. A candidate whose losses of margins in [-10, 10] have another shape, or that are not finite in value
    or gradient there, or don't depend on the margin, is remembered with what failed and is not trained with.

    Args:
        evaluate: trains with losses of margins x ``[B]`` and gives the validation score, higher is better.
        proposer: gives the next candidate; None is :class:`RandomExpressions`.
        generations: candidates to try, >= 0.
        seed: of the generator that the proposer gets.
        start: known losses by name; None are ``preference_losses`` with beta 1.

    Returns:
        The archive and its best.

    Raises:
        ValueError: a negative number of generations.
        TypeError: a proposer that gives something else than a candidate.

    Example:
        >>> def nearest_to_one(losses):
        ...     return -float(losses(torch.zeros(1)).sub(1).abs())
        >>> search = discover_objective(nearest_to_one, generations=5, start={"square": lambda x: (x - 2) ** 2})
        >>> len(search.archive), search.best_so_far[0], search.best.score >= -3.0
        (6, -3.0, True)

    Source: Discovering Preference Optimization Algorithms with and for Large Language Models, arXiv:2406.08414.
    """
    check_number("generations", generations, low=0, integer=True)
    check_number("seed", seed, integer=True)
    propose = RandomExpressions() if proposer is None else proposer
    known = {name: _with_beta_1(loss) for name, loss in preference_losses.items()} if start is None else start
    generator = torch.Generator().manual_seed(seed)
    archive: list[ObjectiveCandidate] = []
    for text, losses in known.items():
        archive.append(_tried(ObjectiveCandidate(text, losses), evaluate))
    started_from = len(archive)
    for _ in range(generations):
        candidate = propose(tuple(archive), generator)
        if not isinstance(candidate, ObjectiveCandidate):
            refuse_type("proposer", "a function that gives an ObjectiveCandidate", candidate)
        archive.append(_tried(candidate, evaluate))
    return Discovery(tuple(archive), started_from)


def _with_beta_1(loss: MarginLoss) -> Losses:
    return lambda x: loss(x, 1.0)


def _tried(candidate: ObjectiveCandidate, evaluate: Callable[[Losses], float]) -> ObjectiveCandidate:
    failure = failed_test(candidate.losses)
    score = -math.inf if failure else float(evaluate(candidate.losses))
    if not failure and not math.isfinite(score):
        failure, score = f"a score of {score}", -math.inf
    return ObjectiveCandidate(candidate.text, candidate.losses, score, failure)


def failed_test(losses: Losses) -> str:
    """What is wrong with losses of margins in [-10, 10]; ``""`` where nothing is.

    >>> failed_test(torch.relu), failed_test(torch.log), failed_test(torch.sum)
    ('', 'a value that is not finite', 'another shape')
    """
    x = torch.linspace(-10.0, 10.0, 81, requires_grad=True)
    try:
        with torch.enable_grad():
            values = losses(x)
        if not isinstance(values, Tensor) or values.shape != x.shape:
            return "another shape"
        if not bool(values.isfinite().all()):
            return "a value that is not finite"
        (slope,) = torch.autograd.grad(values, x, torch.ones_like(values))
    except Exception as error:  # whatever a proposed formula does
        return f"{type(error).__name__}: {error}"
    if not bool(slope.isfinite().all()):
        return "a gradient that is not finite"
    return "" if bool(slope.any()) else "a gradient of 0"


class RandomExpressions:
    """Proposes random formulas: new ones, and blends and rescalings of the best so far.

    A formula is built from losses of x (logistic, exponential, sigmoid, hinge, squared distance) by sums, products,
    changes of scale and blends, whose weight is a sigmoid of x. Half of the proposals change one of the three best of
    the archive.

    Args:
        depth: the most operations inside each other of a new formula, >= 0.

    Example:
        >>> propose = RandomExpressions(depth=1)
        >>> candidate = propose((), torch.Generator().manual_seed(1))
        >>> candidate.losses(torch.zeros(2)).shape
        torch.Size([2])
    """

    def __init__(self, depth: int = 2) -> None:
        check_number("depth", depth, low=0, integer=True)
        self.depth = depth

    def __call__(self, archive: Sequence[ObjectiveCandidate], generator: torch.Generator) -> ObjectiveCandidate:
        """The next candidate."""
        best = sorted((c for c in archive if not c.failure), key=lambda c: -c.score)[:3]
        if best and _draw(2, generator):
            base = best[_draw(len(best), generator)]
            return self._joined((base.text, base.losses), self._random(self.depth - 1, generator), generator)
        return ObjectiveCandidate(*self._random(self.depth, generator))

    def _random(self, depth: int, generator: torch.Generator) -> tuple[str, Losses]:
        if depth <= 0:
            return _LEAVES[_draw(len(_LEAVES), generator)]
        first, second = self._random(depth - 1, generator), self._random(depth - 1, generator)
        joined = self._joined(first, second, generator)
        return joined.text, joined.losses

    def _joined(
        self, first: tuple[str, Losses], second: tuple[str, Losses], generator: torch.Generator
    ) -> ObjectiveCandidate:
        (a, f), (b, g) = first, second
        scale = _SCALES[_draw(len(_SCALES), generator)]
        kind = _draw(4, generator)
        if kind == 0:
            return ObjectiveCandidate(f"({a} + {scale:g} {b})", lambda x: f(x) + scale * g(x))
        if kind == 1:
            return ObjectiveCandidate(f"({a} {b})", lambda x: f(x) * g(x))
        if kind == 2:
            return ObjectiveCandidate(f"{a}[{scale:g} x]", lambda x: f(scale * x))
        return ObjectiveCandidate(
            f"blend({a}, {b}; {scale:g} x)",
            lambda x: torch.sigmoid(-scale * x) * f(x) + torch.sigmoid(scale * x) * g(x),
        )


_SCALES = (0.1, 0.3, 0.5, 2.0, 5.0, 20.0)
_LEAVES: tuple[tuple[str, Losses], ...] = (
    ("logistic", lambda x: softplus(-x)),
    ("exp(-x)", lambda x: torch.exp(-x)),
    ("sigmoid(-x)", lambda x: torch.sigmoid(-x)),
    ("hinge", lambda x: torch.relu(1 - x)),
    ("(x - 1)^2", lambda x: (x - 1).square()),
    ("logistic^2", lambda x: logsigmoid(x).square()),
)


def _draw(choices: int, generator: torch.Generator) -> int:
    return int(torch.randint(choices, (), generator=generator))
