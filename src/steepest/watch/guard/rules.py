"""Rules of the guard: what says that a step is not to be taken, each with what stands behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.arguments import Arguments
from ...core.checks import check_number, refuse, refuse_type


@dataclass(frozen=True)
class Signals:
    """What is known of a step before it is taken: tensors of no dimension on the device of the gradients.

    Args:
        loss: of the batch; NaN where nobody told it.
        told: whether the loss was told.
        norm: length of all gradients, without a scaler's factor.
        loss_score, norm_score: robust z-scores of their logarithms; NaN while there is too little to compare with.
        peak: the largest absolute logit of the batch; NaN where nobody told the outputs.
        partition: the mean of the squared log-partition; NaN likewise.
        peak_score, partition_score: robust z-scores of these.
    """

    loss: Tensor
    told: bool
    norm: Tensor
    loss_score: Tensor
    norm_score: Tensor
    peak: Tensor
    partition: Tensor
    peak_score: Tensor
    partition_score: Tensor


class Rule(Arguments):
    """Says of a step, before it is taken, whether it is to be skipped.

    Class attributes:
        name: snake_case, unique: the word for the guard's ``rules``.
        theory: what stands behind it.
        source: where the threshold comes from.
    """

    name: ClassVar[str] = ""
    theory: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def suspicious(self, signals: Signals) -> Tensor:
        """A boolean tensor of no dimension; nothing here waits for the device."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What it keeps between steps: numbers, lists and tensors on the CPU, copies."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class NonFinite(Rule):
    """The loss or a gradient is NaN or infinite; of weights that are, the loss or the gradient tells."""

    name = "non_finite"
    theory = "No step along a gradient that is not finite goes anywhere."
    source = "Arithmetic."

    def suspicious(self, signals: Signals) -> Tensor:
        """Whether loss or gradient norm is not finite."""
        broken = ~signals.norm.isfinite()
        return broken | ~signals.loss.isfinite() if signals.told else broken


class _Score(Rule):
    """A z-score above a threshold.

    Args:
        threshold: robust standard deviations of the logarithm, > 0.
    """

    def __init__(self, threshold: float = 6.0) -> None:
        check_number("threshold", threshold, low=0.0, open_low=True)
        self.threshold = float(threshold)

    def score(self, signals: Signals) -> Tensor:
        """The z-score that is judged."""
        raise NotImplementedError

    def suspicious(self, signals: Signals) -> Tensor:
        """Whether the score is above the threshold; NaN is not."""
        return self.score(signals) > self.threshold


class LossSpike(_Score):
    r"""The logarithm of the loss lies far above those of the steps before.

    .. math:: z = \frac{\log L - \operatorname{median}}{\max(1.4826 \operatorname{MAD}, \text{floor})} > 6

    Args:
        threshold: robust standard deviations, > 0.
    """

    name = "loss_spike"
    theory = "None: a batch, or weights, far outside of what the last steps were like."
    source = "6 deviations of 128 steps as in OLMo-core's SkipStepAdamW; of logarithms, with median and MAD."

    def score(self, signals: Signals) -> Tensor:
        """That of the loss."""
        return signals.loss_score


class GradientSpike(_Score):
    """The logarithm of the gradient norm lies far above those of the steps before; see :class:`LossSpike`.

    Args:
        threshold: robust standard deviations, > 0.
    """

    name = "gradient_spike"
    theory = "None: an update along one far gradient stays in Adam's second moment for 1 / (1 - beta2) steps."
    source = LossSpike.source

    def score(self, signals: Signals) -> Tensor:
        """That of the gradient norm."""
        return signals.norm_score


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (NonFinite, LossSpike, GradientSpike)}
"""The rules by name."""


def read_rules(rules: object) -> list[Rule]:
    """Rules from ``"default"``, or from names and rules.

    Raises:
        ValueError: a name that no rule has, the same rule twice.
        TypeError: neither names nor rules.
    """
    if rules == "default":
        return [rule() for rule in RULES.values()]
    if isinstance(rules, (str, Rule)) or not isinstance(rules, (list, tuple)):
        refuse_type("rules", "'default', or a list of names and rules", rules)
    chosen: list[Rule] = []
    for rule in rules:
        if isinstance(rule, str):
            if rule not in RULES:
                refuse("rules", f"names of {', '.join(RULES)}", rule)
            rule = RULES[rule]()
        if not isinstance(rule, Rule):
            refuse_type("rules", "names and rules", rule)
        chosen.append(rule)
    names = [rule.name for rule in chosen]
    if len(set(names)) < len(names):
        refuse("rules", "each rule once", names)
    return chosen


def logit_sizes(outputs: Tensor) -> tuple[Tensor, Tensor]:
    r"""The largest absolute logit, and the mean of :math:`\log^2 Z`, of logits ``[..., classes]``, in float64."""
    logits = outputs.detach().float()
    return logits.abs().amax().double(), torch.logsumexp(logits, -1).square().mean().double()
