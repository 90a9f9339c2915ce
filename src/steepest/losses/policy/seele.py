"""Hints that keep a problem half solved: an item-response curve of accuracy over the share of a solution shown."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.group_policy import clipped_surrogate
from ...core.kl_estimators import kl_of_samples
from ...core.policy_loss import Mask, policy_inputs
from ...core.reductions import widen
from ...core.token_reductions import aggregate_tokens, sequence_sums

K_RANGE, MU_RANGE, B_RANGE = (0.1, 50.0), (-2.0, 1.0), (0.0, 0.95)
"""Where the parameters of a fitted curve lie."""
IMITATIONS = ("mean_log_likelihood", "probability")
USUAL_K = 10.0
"""Steepness that is assumed where one pair is all there is."""
Numbers = Sequence[float] | np.ndarray | Tensor
Curve = tuple[float, float, float]


class AccuracyHintModel:
    r"""The three-parameter logistic curve of accuracy over hint share.

    .. math:: f(p) = b + \frac{1 - b}{1 + e^{-k (p + \mu)}}, \qquad
        f^{-1}(a) = -\mu - \frac1k \log \frac{1 - a}{a - b}

    Args:
        k: steepness > 0.
        mu: minus the share at which half of what hints can add is reached.
        b: accuracy without any hint, in [0, 1).

    Raises:
        ValueError: a number out of range.

    Example:
        >>> curve = AccuracyHintModel(k=10.0, mu=-0.5, b=0.1)
        >>> round(curve.predict(0.6), 6), round(curve.inverse(0.5), 6)
        (0.757953, 0.477686)

    Source: Staying in the Sweet Spot: Responsive Reasoning Evolution via Capability-Adaptive Hint Scaffolding,
    arXiv:2509.06923.
    """

    def __init__(self, k: float, mu: float, b: float) -> None:
        self.k, self.mu, self.b = _checked_curve((k, mu, b))

    def predict(self, p: float) -> float:
        """Accuracy at a share."""
        check_number("p", p)
        return float(_curve(np.float64(p), self.k, self.mu, self.b))

    def inverse(self, target: float, length: int | None = None) -> float:
        """The share at which an accuracy is reached, within [0, (length - 1) / length].

        Args:
            target: the accuracy; at most b gives 0, at least 1 the largest share.
            length: tokens of the solution, >= 1, of which one at least stays hidden; None: shares up to 1.
        """
        check_number("target", target)
        largest = _largest(length)
        if target <= self.b:
            return 0.0
        if target >= 1.0:
            return largest
        share = -self.mu - math.log((1.0 - target) / (target - self.b)) / self.k
        return min(max(share, 0.0), largest)

    def __repr__(self) -> str:
        return f"AccuracyHintModel(k={self.k!r}, mu={self.mu!r}, b={self.b!r})"


def fit_3pl(p: Numbers, acc: Numbers, init: Curve | None = None) -> Curve:
    r"""Least-squares fit of :class:`AccuracyHintModel` to pairs of hint share and accuracy.

    Bounded to k in [.1, 50], mu in [-2, 1] and b in [0, .95]. Pairs of the same share count as one, with the mean of
    their accuracies. It starts from the best point of a grid, or from ``init`` where that is better.

    Args:
        p: hint shares in [0, 1] ``[N]``.
        acc: accuracies in [0, 1] ``[N]``.
        init: a start (k, mu, b), or None.

    Returns:
        k, mu, b.

    Raises:
        ValueError: no pair, numbers out of range, lengths that differ.

    Example:
        >>> curve = AccuracyHintModel(10.0, -0.5, 0.1)
        >>> shares = [0.2, 0.4, 0.5, 0.7]
        >>> [round(v, 3) for v in fit_3pl(shares, [curve.predict(p) for p in shares])]
        [10.0, -0.5, 0.1]

    Source: Staying in the Sweet Spot: Responsive Reasoning Evolution via Capability-Adaptive Hint Scaffolding,
    arXiv:2509.06923.
    """
    from scipy import optimize  # where it is needed: hints are scheduled in loops that train on their own

    shares, accuracies = (_numbers(name, values) for name, values in (("p", p), ("acc", acc)))
    if len(shares) != len(accuracies) or not len(shares):
        refuse("acc", f"as many numbers as p ({len(shares)}), one at least", accuracies)
    places, groups = np.unique(shares, return_inverse=True)
    means = np.bincount(groups, accuracies) / np.bincount(groups)
    low, high = (np.array(ends) for ends in zip(K_RANGE, MU_RANGE, B_RANGE))

    def residuals(curve: np.ndarray) -> np.ndarray:
        return np.asarray(_curve(places, *curve) - means)

    def slopes(curve: np.ndarray) -> np.ndarray:
        k, mu, b = curve
        s = _curve(places, k, mu, 0.0)
        rise = (1.0 - b) * s * (1.0 - s)
        return np.stack([rise * (places + mu), rise * k, 1.0 - s], 1)

    grid = np.stack(np.meshgrid(_STEEPNESS, _MIDDLES, _FLOORS, indexing="ij"), -1).reshape(-1, 3)
    errors = np.square(_curve(places, *(grid[:, n, None] for n in range(3))) - means).sum(1)
    start = grid[int(errors.argmin())]
    if init is not None:
        given = np.array(_checked_curve(init))
        start = given if np.square(residuals(given)).sum() <= errors.min() else start
    start = np.clip(start, low + 1e-6, high - 1e-6)
    tolerances = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-10)
    end = optimize.least_squares(
        residuals, start, slopes, bounds=(low, high), method="dogbox", max_nfev=60, **tolerances
    )
    k, mu, b = (float(v) for v in end.x)
    return k, mu, b


class HintScheduler:
    """Hint shares of problems, steered within a step towards a target accuracy.

    A step has several rounds of rollouts for a problem. The first round shows the share that the last step ended with,
    or all of the solution but a token; each later one shows the share at which the curve that is fitted to the rounds
    before has the target accuracy. After the last round the next such share is kept for the next step. A single pair is
    extended with a usual steepness; accuracies that are all 0 halve the way to the whole solution, all 1 that to none.

    Args:
        target: accuracy in (0, 1).
        rounds: of a step, >= 1.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> hints = HintScheduler(rounds=2)
        >>> hints.next("a", length=8)
        0.875
        >>> hints.update("a", 0.875, 1.0)
        >>> round(hints.next("a", length=8), 3)
        0.438

    Source: Staying in the Sweet Spot: Responsive Reasoning Evolution via Capability-Adaptive Hint Scaffolding,
    arXiv:2509.06923.
    """

    def __init__(self, target: float = 0.5, rounds: int = 4) -> None:
        check_number("target", target, low=0.0, high=1.0, open_low=True, open_high=True)
        check_number("rounds", rounds, low=1, integer=True)
        self.target, self.rounds = float(target), int(rounds)
        self._stored: dict[Hashable, float] = {}
        self._pairs: dict[Hashable, list[tuple[float, float]]] = {}
        self._lengths: dict[Hashable, int] = {}

    def next(self, problem_id: Hashable, length: int | None = None) -> float:
        """The share for the coming round.

        Args:
            problem_id: what tells problems apart.
            length: tokens of the solution, >= 1; needed the first time, and kept.
        """
        if length is not None:
            check_number("length", length, low=1, integer=True)
            self._lengths[problem_id] = int(length)
        if problem_id not in self._lengths:
            refuse("length", "the tokens of the solution where a problem is new", length)
        largest = _largest(self._lengths[problem_id])
        pairs = self._pairs.get(problem_id)
        if not pairs:
            return min(self._stored.get(problem_id, largest), largest)
        return self._steered(pairs, self._lengths[problem_id])

    def update(self, problem_id: Hashable, share: float, acc: float) -> None:
        """What a round measured: the share that was shown, and the accuracy of its rollouts."""
        if problem_id not in self._lengths:
            refuse("problem_id", "a problem that next() was asked for", problem_id)
        check_number("share", share, low=0.0, high=1.0)
        check_number("acc", acc, low=0.0, high=1.0)
        pairs = self._pairs.setdefault(problem_id, [])
        pairs.append((float(share), float(acc)))
        if len(pairs) >= self.rounds:
            self._stored[problem_id] = self._steered(pairs, self._lengths[problem_id])
            del self._pairs[problem_id]

    def _steered(self, pairs: list[tuple[float, float]], length: int) -> float:
        largest = _largest(length)
        shares, accuracies = [p for p, _ in pairs], [a for _, a in pairs]
        if max(accuracies) == 0.0:
            share = 0.5 * (max(shares) + largest)
        elif min(accuracies) == 1.0:
            share = 0.5 * min(shares)
        elif len(set(shares)) == 1:
            mean = min(max(sum(accuracies) / len(accuracies), 0.02), 0.98)
            share = shares[0] + (_logit(self.target) - _logit(mean)) / USUAL_K
        else:
            share = AccuracyHintModel(*fit_3pl(shares, accuracies)).inverse(self.target, length)
        return min(max(share, 0.0), largest)

    def state_dict(self) -> dict[str, Any]:
        """Shares and unfinished rounds of all problems."""
        return {
            "stored": dict(self._stored),
            "pairs": {name: list(pairs) for name, pairs in self._pairs.items()},
            "lengths": dict(self._lengths),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._stored, self._lengths = dict(state["stored"]), dict(state["lengths"])
        self._pairs = {name: [(float(p), float(a)) for p, a in pairs] for name, pairs in state["pairs"].items()}


def seele_loss(
    logp_gen: F[Tensor, "batch generated"],
    adv: Tensor,
    gen_mask: Mask,
    logp_hint: F[Tensor, "batch hinted"],
    hint_mask: Mask,
    gamma: float = 1e-3,
    *,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    imitation: str = "mean_log_likelihood",
    old_logp: F[Tensor, "batch generated"] | None = None,
    ref_logp: F[Tensor, "batch generated"] | None = None,
    num_items: float | Tensor | None = None,
    num_hints: float | Tensor | None = None,
) -> Tensor:
    r"""The clipped surrogate on generated tokens, imitation on the tokens of the hint.

    .. math:: L = L_{\mathrm{GRPO}}(\mathrm{generated}) - \gamma\, \overline{\log \pi(\mathrm{hint})}
        + \beta\, \mathrm{KL}

    The publication's imitation term is the probability of the hint, which vanishes for long hints; the mean
    log-likelihood of its tokens is the default.

    Args:
        logp_gen: log-probabilities of generated tokens ``[B, T]``.
        adv: advantages ``[B]`` or ``[B, T]``: rewards less their mean over all rounds of a step, without a deviation.
        gen_mask: generated tokens that count ``[B, T]``.
        logp_hint: log-probabilities of the hint's tokens ``[B, H]``.
        hint_mask: those that count ``[B, H]``; of the last round in the publication.
        gamma: weight of the imitation, >= 0.
        beta: weight of the k3 estimate against ``ref_logp`` on generated tokens, >= 0 (1e-3 in the publication).
        epsilon, epsilon_high: bounds of the ratio; None is ``epsilon``.
        imitation: "mean_log_likelihood", or "probability" of the whole hint.
        old_logp: under the policy that generated ``[B, T]``; None is this one.
        ref_logp: under the reference ``[B, T]``, where ``beta`` > 0.
        num_items: answers with generated tokens of a whole step; None: those of this batch.
        num_hints: answers with hints of a whole step, given together with ``num_items``; None: those of this batch.

    Returns:
        A scalar in float32 or wider; 0 with a graph where nothing is valid.

    Raises:
        ValueError: shapes that differ, a number out of range, one count of a step without the other.

    Example:
        >>> import torch
        >>> gen, hint = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-0.5, -1.5, -9.0]])
        >>> ones, shown = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[True, True, False]])
        >>> seele_loss(gen, torch.tensor([0.5]), ones, hint, shown, gamma=0.1)
        tensor(-0.4000)

    Source: Staying in the Sweet Spot: Responsive Reasoning Evolution via Capability-Adaptive Hint Scaffolding,
    arXiv:2509.06923.
    """
    check_number("gamma", gamma, low=0.0)
    check_number("beta", beta, low=0.0)
    check_number("epsilon", epsilon, low=0.0, high=1.0)
    if epsilon_high is not None:
        check_number("epsilon_high", epsilon_high, low=0.0)
    check_choice("imitation", imitation, IMITATIONS)
    if beta > 0 and ref_logp is None:
        refuse("ref_logp", "log-probabilities of the reference where beta > 0", None)
    if (num_items is None) != (num_hints is None):
        refuse("num_hints", "a count of a whole step where num_items is one, and None where it is None", num_hints)
    check_tensor("logp_gen", logp_gen, ndim=2, floating=True)
    check_tensor("logp_hint", logp_hint, floating=True, shape=(logp_gen.shape[0], None))
    check_tensor("hint_mask", hint_mask, floating=False, shape=tuple(logp_hint.shape))
    batch = policy_inputs(logp_gen, logp_gen if old_logp is None else old_logp, adv, gen_mask, ref_logp)
    losses = clipped_surrogate(
        batch.logp - batch.old_logp, batch.logp, batch.advantages, epsilon=epsilon, epsilon_high=epsilon_high
    )
    if beta > 0 and batch.ref_logp is not None:
        losses = losses + beta * kl_of_samples(batch.logp, batch.ref_logp, "k3")
    policy = aggregate_tokens(losses, batch.mask, "sequence_mean_token_mean", num_items=num_items)
    shown, hint = hint_mask.bool(), widen(logp_hint).to(policy.dtype)
    if imitation == "mean_log_likelihood":
        return policy - gamma * aggregate_tokens(hint, shown, "sequence_mean_token_mean", num_items=num_hints)
    sums, counts = sequence_sums(hint, shown)
    likelihood = aggregate_tokens(sums.exp()[:, None], (counts > 0)[:, None], "sequence_sum", num_items=num_hints)
    return policy - gamma * likelihood


_STEEPNESS = np.array([1.0, 3.0, 6.0, 10.0, 16.0, 25.0, 40.0])
_MIDDLES = -np.linspace(-0.4, 1.2, 17)
_FLOORS = np.array([0.0, 0.05, 0.15, 0.3, 0.6])


def _curve(p: Any, k: Any, mu: Any, b: Any) -> Any:
    return b + (1.0 - b) * 0.5 * (1.0 + np.tanh(0.5 * k * (p + mu)))


def _logit(p: float) -> float:
    return math.log(p / (1.0 - p))


def _largest(length: int | None) -> float:
    if length is None:
        return 1.0
    check_number("length", length, low=1, integer=True)
    return (length - 1) / length


def _checked_curve(curve: Curve) -> Curve:
    if len(curve) != 3:
        refuse("init", "three numbers k, mu, b", curve)
    k, mu, b = curve
    check_number("k", k, low=0.0, open_low=True, high=math.inf, open_high=True)
    check_number("mu", mu, low=-math.inf, open_low=True, high=math.inf, open_high=True)
    check_number("b", b, low=0.0, high=1.0, open_high=True)
    return float(k), float(mu), float(b)


def _numbers(name: str, values: Numbers) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64).reshape(-1)
    if not bool(((array >= 0) & (array <= 1)).all()):
        refuse(name, "numbers in [0, 1]", array)
    return array
