"""Rules of the guard: what says that a step is not to be taken, each with what stands behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.arguments import Arguments
from ...core.checks import check_number, refuse, refuse_type
from ...core.probe import Probe
from ..stability.adam_instability import AdamUpdateMonitor
from ..stability.spectral_alignment import SpectralAlignmentMonitor
from ..vital_signs import classes_last


@dataclass(frozen=True)
class Signals:
    """What is known of a step before it is taken: tensors of no dimension on the device of the gradients.

    Args:
        loss: of the batch; NaN where nobody told it.
        told: whether the loss was told.
        norm: length of all gradients, without a scaler's factor.
        loss_score, norm_score: robust z-scores of their logarithms; NaN while there is too little to compare with.
        peak: 1 + the largest absolute logit of the batch; NaN where nobody told the outputs.
        partition: 1 + the mean of the squared log-partition; NaN likewise.
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


class LogitGrowth(_Score):
    r"""Logits, or their log-partition, lie far above those of the steps before; silent where nobody tells outputs.

    .. math:: \log (1 + \max |z|), \qquad \log (1 + \operatorname{mean} \log^2 Z)

    are scored as in :class:`LossSpike`.

    Args:
        threshold: robust standard deviations, > 0.
    """

    name = "logit_growth"
    theory = "Softmax ignores a common shift, so that log Z may drift until it loses digits; large logits saturate it."
    source = "Small-scale proxies, arXiv:2309.14322 (growth of output logits); deviations as in loss_spike."

    def score(self, signals: Signals) -> Tensor:
        """The larger one of both."""
        return torch.maximum(signals.peak_score, signals.partition_score)


class GhostCap(Rule):
    r"""Makes an update shorter that leaves the radius within which cross-entropy is analytic along it.

    .. math:: w \leftarrow w_{old} + s (w_{new} - w_{old}), \qquad
        s = \min(r_{max} / r, \|p\|_{usual} / \|p\|) \text{ where } r > slack \, r_{max}, \qquad r = \|p\| / \rho

    The usual length is the median of the last updates that kept theirs. An update that is not shortened keeps its bits:
    single ones a little beyond the radius are common in sound training. r costs a forward derivative, so that it is
    computed only where :math:`r_{last} \|p\| / \|p_{last}\| >` ``look``, and every ``every`` steps. Where more than
    half of the last ``memory`` steps were shortened it is the rate that is too high: it is cut to half the median of s.

    Args:
        r_max: r of an update that was shortened, at most, > 0; above 1 nothing is bounded.
        slack: how far beyond ``r_max`` an update is shortened, >= 1.
        usual: updates whose median is the usual length, once 8 are there; 0 compares with none.
        look: from which r, by the length alone, it is computed, > 0.
        every: steps after which it is computed anyhow.
        memory: steps that tell whether the rate is too high; 0 never cuts it.
    """

    name = "ghost_radius"
    theory = "The loss is analytic in the step only up to the nearest zero of the softmax partition function."
    source = "Ghosts of Softmax, arXiv:2603.13552."

    def __init__(
        self,
        r_max: float = 1.0,
        *,
        slack: float = 2.0,
        usual: int = 32,
        look: float = 0.5,
        every: int = 100,
        memory: int = 10,
    ) -> None:
        check_number("r_max", r_max, low=0.0, open_low=True)
        check_number("slack", slack, low=1.0)
        check_number("usual", usual, low=0, integer=True)
        check_number("look", look, low=0.0, open_low=True)
        check_number("every", every, low=1, integer=True)
        check_number("memory", memory, low=0, integer=True)
        self.r_max, self.slack, self.look = float(r_max), float(slack), float(look)
        self.usual, self.every, self.memory = usual, every, memory
        self.lengths: deque[float] = deque(maxlen=max(usual, 1))
        self.scales: deque[float] = deque(maxlen=max(memory, 1))
        self.r = self.length = 0.0
        self.ago = every

    def suspicious(self, signals: Signals) -> Tensor:
        """No step is skipped."""
        return torch.zeros_like(signals.norm, dtype=torch.bool)

    def due(self, expected: float) -> bool:
        """Whether r is to be computed, from what the length alone says it is."""
        self.ago += 1
        return self.ago > self.every or expected > self.look

    def measured(self, r: float, length: float) -> float:
        """Take r of an update of a length; gives s."""
        self.r, self.length, self.ago = r, length, 0
        if r <= self.slack * self.r_max:
            return 1.0
        s = self.r_max / r
        return min(s, median(self.lengths) / length) if self.usual and len(self.lengths) >= 8 else s

    def cut(self, scale: float, length: float) -> float:
        """Take s and the length of a step; gives the factor of the rate that the last steps ask for, 1 for none."""
        self.scales.append(scale)
        if scale == 1.0:
            self.lengths.append(length)
        shorter = sorted(s for s in self.scales if s < 1.0)
        if not self.memory or len(self.scales) < self.memory or 2 * len(shorter) <= self.memory:
            return 1.0
        self.scales.clear()
        return 0.5 * shorter[len(shorter) // 2]

    def state_dict(self) -> dict[str, Any]:
        """The last measurement, the last scales and lengths."""
        return {
            "scales": list(self.scales),
            "lengths": list(self.lengths),
            "r": self.r,
            "length": self.length,
            "ago": self.ago,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        if state:
            self.scales = deque(state["scales"], maxlen=self.scales.maxlen)
            self.lengths = deque(state["lengths"], maxlen=self.lengths.maxlen)
            self.r, self.length, self.ago = state["r"], state["length"], state["ago"]


class ProbeRule(Rule):
    """Cuts the rate where a probe gives the alarm: the number ``alarm`` of its reading rises above 0.

    The probe is asked at its own cadence, which costs what it costs and one look from the host. Its alarm comes before
    a loss that jumps, so that no step is skipped. One that stays on cuts once.

    Args:
        probe: that measures; None is one of the defaults.
    """

    monitor: ClassVar[type[Probe]]

    def __init__(self, probe: Probe | None = None) -> None:
        probe = self.monitor() if probe is None else probe
        if not isinstance(probe, self.monitor):
            refuse_type("probe", self.monitor.__name__, probe)
        self.probe, self.high = probe, False

    def suspicious(self, signals: Signals) -> Tensor:
        """No step is skipped."""
        return torch.zeros_like(signals.norm, dtype=torch.bool)

    def due(self, step: int, phase: str) -> bool:
        """Whether the probe is asked."""
        return phase in self.probe.phases and (step - 1) % self.probe.every == 0

    def rises(self, alarm: float) -> bool:
        """Take what it gave; whether the alarm has just begun."""
        before, self.high = self.high, alarm > 0
        return self.high and not before

    def state_dict(self) -> dict[str, Any]:
        """That of the probe, and whether its alarm is on."""
        return {"probe": self.probe.state_dict(), "high": self.high}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        if state:
            self.probe.load_state_dict(state["probe"])
            self.high = state["high"]


class SpectralAlignment(ProbeRule):
    """Cuts the rate where the inputs of a type of layers align with their top singular directions.

    Args:
        probe: a :class:`steepest.watch.SpectralAlignmentMonitor`.
    """

    name = "spectral_alignment"
    theory = (
        "Where all tokens lie on one side of the top singular direction, weights grow along it before the loss does."
    )
    source = "Spectral Alignment as Predictor of Loss Explosion, arXiv:2510.04202; the alarm is this library's."
    monitor = SpectralAlignmentMonitor


class AdamInstability(ProbeRule):
    """Cuts the rate where Adam's ratio m / sqrt(v) piles up near 1 and -1.

    Args:
        probe: a :class:`steepest.watch.AdamUpdateMonitor`.
    """

    name = "adam_instability"
    theory = "Components of the update that move in step make it long; then the loss jumps."
    source = "A Theory on Adam Instability, arXiv:2304.09871; the alarm is this library's."
    monitor = AdamUpdateMonitor


_ALL: tuple[type[Rule], ...] = (
    NonFinite,
    LossSpike,
    GradientSpike,
    LogitGrowth,
    GhostCap,
    SpectralAlignment,
    AdamInstability,
)
RULES: dict[str, Callable[[], Rule]] = {rule.name: rule for rule in _ALL}
"""The rules by name."""


def of_logits(objective: object) -> bool:
    """Whether an objective is known to be a cross-entropy of logits."""
    if isinstance(objective, nn.CrossEntropyLoss) or objective is nn.functional.cross_entropy:
        return True
    return getattr(objective, "domain", None) == "logits"


def read_rules(rules: object, objective: object = None) -> list[Rule]:
    """Rules from ``"default"``, or from names and rules.

    Args:
        rules: as the guard takes them.
        objective: of a cross-entropy the ghost radius is among the default ones.

    Raises:
        ValueError: a name that no rule has, the same rule twice.
        TypeError: neither names nor rules.
    """
    if isinstance(rules, str) and rules == "default":
        plain: list[Rule] = [NonFinite(), LossSpike(), GradientSpike(), LogitGrowth()]
        return [*plain, GhostCap()] if of_logits(objective) else plain
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


def logit_sizes(outputs: Tensor, targets: Any = None) -> tuple[Tensor, Tensor]:
    r"""1 + the largest absolute logit, and 1 + the mean of :math:`\log^2 Z`; NaN where there are none.

    Args:
        outputs: logits ``[..., classes]``, or ``[N, classes, ...]`` where targets have that shape without the classes.
        targets: that tell so.
    """
    logits = classes_last(outputs.detach(), targets).float()
    if not logits.numel() or not logits.ndim:
        return logits.new_full((), torch.nan).double(), logits.new_full((), torch.nan).double()
    return 1 + logits.abs().amax().double(), 1 + torch.logsumexp(logits, -1).square().mean().double()
