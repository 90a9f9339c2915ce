"""What each objective gets to try: the same number of trials, fixed before the first training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.lazy import late
from ...core.objective import Objective
from ...core.search import Float, Space
from .models import TABMS
from .twins import is_twin

qmc = late("scipy.stats.qmc")


@dataclass(frozen=True)
class Rates:
    """The learning rates of the first trials, and the least and the greatest of the others."""

    first: tuple[float, ...]
    low: float
    high: float

    @property
    def space(self) -> dict[str, Space]:
        """What the optimizer's settings are drawn from."""
        return {"lr": Float(self.low, self.high, log=True), "weight_decay": Float(1e-6, 1e-1, log=True)}


RATES = Rates((1e-3, 3e-3, 3e-4), 1e-4, 1e-2)
RATES_OF = dict.fromkeys(TABMS, Rates((2e-3, 5e-3, 1e-3), 5e-4, 2e-2))
"""Those of networks that want others."""
RATES_OF_TEXT = (Rates((1e-5, 4e-6, 2.5e-5), 2e-6, 1e-4), Rates((1e-3, 4e-4, 2e-3), 2e-4, 4e-3))
"""Of language models: one that is trained on, and the small one."""
WEIGHT_DECAY = 1e-4
PEAK = 5.0
"""A cycle's highest learning rate over the constant one that takes its place."""

ROLES = (
    "folds",
    "inner",
    "backbone",
    "head",
    "order",
    "objective",
    "noise",
    "trials",
    "bootstrap",
    "classical",
    "twins",
    "prefix",
    "learners",
)


@dataclass(frozen=True)
class Trial:
    """One setting: learning rate, weight decay, and the objective's own hyper-parameters."""

    lr: float
    weight_decay: float
    hyper: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """What an optimizer takes beside rate and decay."""

    def describe(self) -> str:
        """For people.

        >>> Trial(0.001, 0.0001, {"tau": 1.25}).describe()
        'lr 0.001, weight decay 0.0001, tau 1.25'
        """
        parts = {"lr": self.lr, "weight decay": self.weight_decay, **self.hyper, **self.options}
        return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in parts.items())


def seed_of(seed: int, repeat: int, fold: int, role: str) -> int:
    """The integer seed of one role in one fold.

    >>> seed_of(0, 1, 2, "order") == seed_of(0, 1, 2, "order") != seed_of(0, 1, 2, "head")
    True
    """
    words = np.random.SeedSequence([seed, repeat, fold, ROLES.index(role)]).generate_state(2, np.uint32)
    return int(words[0]) << 31 ^ int(words[1])


def trials(
    objective: type[Objective], count: int, seed: int, model: str = "plain", rates_of: Rates | None = None
) -> list[Trial]:
    """The trials of an objective: its defaults at the three learning rates of the network, then a seeded Sobol design.

    Where the defaults make the objective the baseline itself (:func:`~steepest.comparison.design.twins.is_twin`), those
    three trials keep their learning rates and take the objective's own hyper-parameters from points of their own
    design: else a comparison with few trials would train the baseline twice.

    Args:
        objective: the class; its ``search`` spans the design together with learning rate and weight decay.
        count: how many, >= 1.
        seed: of the design; the same for every objective and fold.
        model: the network.
        rates_of: learning rates; None is those of the network.

    >>> from steepest.losses import FocalLoss
    >>> [t.lr for t in trials(FocalLoss, 3, 0)], len(trials(FocalLoss, 8, 0))
    ([0.001, 0.003, 0.0003], 8)
    """
    own_rates = RATES_OF.get(model, RATES) if rates_of is None else rates_of
    rates = own_rates.first[:count]
    own: list[dict[str, Any]] = [{} for _ in rates]
    if objective.search and is_twin(objective):
        own = design_of(objective.search, len(rates), seed, "twins")
    drawn = [Trial(rate, WEIGHT_DECAY, hyper) for rate, hyper in zip(rates, own)]
    for values in design_of({**own_rates.space, **objective.search}, count - len(drawn), seed, "trials"):
        drawn.append(Trial(values.pop("lr"), values.pop("weight_decay"), values))
    return drawn


def learner_trials(space: dict[str, Space], count: int, seed: int) -> list[dict[str, Any]]:
    """What a classical learner gets to try: its defaults, then a seeded Sobol design; the defaults alone without space.

    Args:
        space: of the arguments that are tuned.
        count: how many, >= 1.
        seed: of the design; the same for every fold.

    >>> learner_trials({}, 8, 0), len(learner_trials({"rate": Float(0.1, 1.0)}, 8, 0))
    ([{}], 8)
    """
    return [{}, *design_of(space, count - 1, seed, "learners")] if space else [{}]


def words_of_trial(hyper: dict[str, Any]) -> str:
    """A learner's trial for people.

    >>> words_of_trial({"rate": 0.0512345, "leaves": 12}), words_of_trial({})
    ('rate 0.0512, leaves 12', 'defaults')
    """
    parts = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in hyper.items()]
    parts = [text.replace("_", " ") for text in parts]
    return ", ".join(parts) or "defaults"


def design_of(space: dict[str, Space], count: int, seed: int, role: str) -> list[dict[str, Any]]:
    """The first ``count`` points of a scrambled Sobol sequence over a space; fewer are the start of more."""
    if count <= 0:
        return []
    engine = qmc.Sobol(len(space), rng=np.random.default_rng([seed, ROLES.index(role)]))
    points = engine.random(1 << math.ceil(math.log2(count)))[:count]
    return [{name: s.at(float(u)) for (name, s), u in zip(space.items(), point)} for point in points]
