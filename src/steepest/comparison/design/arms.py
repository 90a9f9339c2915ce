"""What a comparison may vary beside objectives: optimizers, schedules, aggregators, by name.

All else is the same for all arms: objective, network, folds, batches, number of trials. The first of each kind is the
baseline.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...core.search import Choice, Float, Space
from ...gradients.aggregation.jacobian_descent import UPGrad
from ...gradients.aggregation.simple import Mean
from ...gradients.surgery.gcond import GCond
from ...gradients.surgery.pcgrad import PCGrad
from ...gradients.surgery.sam_gs import SAMGS
from ...optim.optimizers.adamw import SGDW
from ...optim.optimizers.gravity import Gravity
from ...optim.optimizers.momo import Momo, MomoAdam
from ...optim.optimizers.muon import MuonAndAdamW
from ...optim.optimizers.perp_grad import PerpGrad
from ...optim.optimizers.preconditioned_sps import PSPSL1
from ...optim.optimizers.random_scaling_momentum import RandomScalingSGDM
from ...optim.schedules.one_cycle import OneCycle
from ...optim.schedules.wsd_cooldown import WSD
from ...optim.schedules.wsd_s import WSDS
from ...optim.sharpness.gradient_regularization import GradientRegularization
from ...optim.sharpness.sam import SAM
from ..errors import InputError, nearest
from ..names import arm_words
from .trials import RATES, WEIGHT_DECAY, Rates, Trial, design_of

Parameters = Sequence[torch.nn.Parameter]
Build = Callable[[Parameters, Trial], Optimizer]


def adamw(parameters: Parameters, trial: Trial) -> Optimizer:
    """What trains wherever the optimizer does not vary."""
    return torch.optim.AdamW(parameters, lr=trial.lr, weight_decay=trial.weight_decay)


@dataclass(frozen=True)
class Arm:
    """One of what is compared.

    Attributes:
        title: what it is, and where it is from, for people.
        build: the optimizer of these parameters, with a trial's settings.
        rates: of its trials.
        search: its own settings beside rate and decay, by name; ``build`` finds them in ``trial.options``.
        schedule: of an optimizer, over so many steps.
        aggregator: what makes one direction of the gradients of several losses.
        average: the decay of the averaged weights that are scored, None for the weights themselves; a trial's
            ``average`` goes before it.
        needs: the package that it is from, where that is no dependency.
        asked: whether it runs where it is asked for by name, or by ``"all"``, and not by default.
    """

    title: str
    build: Build = adamw
    rates: Rates = RATES
    search: Mapping[str, Space] = field(default_factory=dict)
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None
    aggregator: Callable[[], Callable[[Tensor], Tensor]] | None = None
    average: float | None = None
    needs: str = ""
    asked: bool = False

    def trials(self, count: int, seed: int) -> list[Trial]:
        """Its defaults at three learning rates, then a seeded Sobol design, as many as every other arm has."""
        drawn = [Trial(rate, WEIGHT_DECAY) for rate in self.rates.first[:count]]
        for values in design_of({**self.rates.space, **self.search}, count - len(drawn), seed, "trials"):
            drawn.append(Trial(values.pop("lr"), values.pop("weight_decay"), options=values))
        return drawn


def _sgd(parameters: Parameters, trial: Trial) -> Optimizer:
    momentum = trial.options.get("momentum", 0.9)
    return torch.optim.SGD(parameters, trial.lr, momentum=momentum, weight_decay=trial.weight_decay, nesterov=True)


def _adam_like(name: str) -> Build:
    """One of torch's with decoupled decay."""

    def build(parameters: Parameters, trial: Trial) -> Optimizer:
        kind: Any = getattr(torch.optim, name)
        return kind(parameters, lr=trial.lr, weight_decay=trial.weight_decay, decoupled_weight_decay=True)

    return build


def _muon(parameters: Parameters, trial: Trial) -> Optimizer:
    return MuonAndAdamW(parameters, trial.lr, trial.weight_decay, trial.options.get("momentum", 0.95))


def _lion(parameters: Parameters, trial: Trial) -> Optimizer:
    return importlib.import_module("lion_pytorch").Lion(parameters, lr=trial.lr, weight_decay=trial.weight_decay)


def _schedule_free(parameters: Parameters, trial: Trial) -> Optimizer:
    package = importlib.import_module("schedulefree")
    optimizer = package.AdamWScheduleFree(parameters, lr=trial.lr, weight_decay=trial.weight_decay)
    optimizer.train()
    return optimizer  # type: ignore[no-any-return]


def _of(kind: Callable[..., Optimizer]) -> Build:
    """One of ours with rate, decay and its own settings."""

    def build(parameters: Parameters, trial: Trial) -> Optimizer:
        return kind(parameters, lr=trial.lr, weight_decay=trial.weight_decay, **trial.options)

    return build


def _without_decay(kind: Callable[..., Optimizer]) -> Build:
    """One of ours that knows no decay."""

    def build(parameters: Parameters, trial: Trial) -> Optimizer:
        return kind(parameters, lr=trial.lr, **trial.options)

    return build


def _over_adamw(kind: Callable[..., Optimizer]) -> Build:
    """A wrapper of ours over AdamW."""

    def build(parameters: Parameters, trial: Trial) -> Optimizer:
        return kind(adamw(parameters, trial), **trial.options)

    return build


def _sam(parameters: Parameters, trial: Trial) -> Optimizer:
    rho = trial.options.get("rho", 0.05)
    return SAM(parameters, torch.optim.AdamW, rho, lr=trial.lr, weight_decay=trial.weight_decay)


OPTIMIZERS: dict[str, Arm] = {
    "adamw": Arm("AdamW: decoupled weight decay, arXiv:1711.05101; torch's"),
    "sgd": Arm(
        "Stochastic gradient descent with Nesterov's momentum; torch's",
        _sgd,
        Rates((3e-2, 1e-1, 1e-2), 1e-3, 1.0),
        {"momentum": Float(0.5, 0.98)},
    ),
    "nadam": Arm("NAdam: Adam with Nesterov's momentum, and decoupled decay; torch's", _adam_like("NAdam")),
    "radam": Arm("RAdam: rectified Adam, arXiv:1908.03265, with decoupled decay; torch's", _adam_like("RAdam")),
    "muon": Arm("Muon: orthogonal updates of matrices, AdamW for all else; torch's", _muon, search=MuonAndAdamW.search),
    "lion": Arm(
        "Lion: the sign of an interpolated momentum, arXiv:2302.06675; lion-pytorch's",
        _lion,
        Rates((3e-4, 1e-4, 1e-3), 1e-5, 3e-3),
        needs="lion_pytorch",
    ),
    "schedule_free": Arm(
        "Schedule-Free AdamW: averaging in place of a schedule, arXiv:2405.15682; schedulefree's",
        _schedule_free,
        Rates((3e-3, 1e-2, 1e-3), 3e-4, 3e-2),
        needs="schedulefree",
    ),
    "ema": Arm(
        "AdamW, of whose weights an exponential moving average is scored; torch's",
        search={"average": Choice((0.9, 0.99, 0.998))},
        average=0.99,
    ),
    "sam": Arm(
        "SAM: sharpness-aware minimization over AdamW, arXiv:2010.01412",
        _sam,
        search={"rho": Float(0.01, 0.5, log=True)},
    ),
    "momo": Arm(
        "MoMo: momentum whose rate a model of the loss limits, arXiv:2305.07583",
        _of(Momo),
        Rates((1.0, 0.1, 0.01), 1e-3, 10.0),
        Momo.search,
        asked=True,
    ),
    "momo_adam": Arm(
        "MoMo-Adam: Adam whose rate a model of the loss limits, arXiv:2305.07583",
        _of(MomoAdam),
        Rates((1e-2, 3e-3, 3e-2), 1e-3, 0.3),
        asked=True,
    ),
    "gradient_regularization": Arm(
        "AdamW with a penalty on the gradient's length, arXiv:2210.02720",
        _over_adamw(GradientRegularization),
        search=GradientRegularization.search,
        asked=True,
    ),
    "gravity": Arm(
        "Gravity: large gradients count for less, arXiv:2101.09192",
        _without_decay(Gravity),
        Rates((0.1, 0.3, 0.03), 1e-2, 3.0),
        Gravity.search,
        asked=True,
    ),
    "perp_grad": Arm(
        "AdamW along the gradient's part across the weights, arXiv:2501.04697",
        _over_adamw(PerpGrad),
        asked=True,
    ),
    "psps": Arm(
        "Polyak's step with a preconditioner and a slack, arXiv:2310.02093; rates are shares of that step",
        _without_decay(PSPSL1),
        Rates((1.0, 0.3, 0.1), 0.03, 1.0),
        PSPSL1.search,
        asked=True,
    ),
    "random_scaling_sgdm": Arm(
        "Momentum with steps of random length, arXiv:2405.09742",
        _without_decay(RandomScalingSGDM),
        Rates((3e-2, 1e-1, 1e-2), 1e-3, 1.0),
        RandomScalingSGDM.search,
        asked=True,
    ),
    "sgdw": Arm(
        "SGD with momentum and decoupled decay, arXiv:1711.05101",
        _of(SGDW),
        Rates((3e-2, 1e-1, 1e-2), 1e-3, 1.0),
        asked=True,
    ),
}
"""Optimizers, the baseline first; those that are ``asked`` for run by name, or with ``all``."""
NO_ARMS = {
    "adamw": "torch's is the baseline, and the same step",
    "dot": "its step needs the gradients of two losses",
    "frugal": "it needs to know which weights lie in blocks",
    "frugal_adamw": "frugal",
    "ghost_radius": "a guard of steps, which reads the network's outputs",
    "ignite": "it reads the network's outputs",
    "ignite_2": "it reads the network's outputs",
    "lisa": "it needs to know which layers are blocks",
    "muon_and_adamw": "muon",
    "optimistic_ascent_descent": "its step is that of two players, one of whom goes up",
    "optimistic_omd": "it plays in a ball whose size is known",
    "psps_l1": "psps",
    "psps_l2": "psps: its slack shrinks with the loss",
    "small_fc_lopt": "its network was trained for small networks and 200 steps",
}
"""Optimizers of the catalogue that are no arms, or are under another name."""


def _linear(optimizer: Optimizer, steps: int) -> LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / steps))


def _cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def _constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


_PEAKS = Rates((3e-3, 1e-3, 1e-2), 3e-4, 3e-2)
"""Highest rates: the same range for every schedule."""
SCHEDULES: dict[str, Arm] = {
    "constant": Arm("A constant rate", rates=_PEAKS, schedule=_constant),
    "linear": Arm("Linear decay to 0", rates=_PEAKS, schedule=_linear),
    "cosine": Arm("Cosine decay to 0, arXiv:1608.03983; torch's", rates=_PEAKS, schedule=_cosine),
    "one_cycle": Arm("One cycle: super-convergence, arXiv:1708.07120", rates=_PEAKS, schedule=OneCycle.spanning),
    "wsd": Arm("Warm-up, stable, decay: its cooldown, arXiv:2508.01483", rates=_PEAKS, schedule=WSD.spanning),
    "wsd_s": Arm("Warm-up, stable, decay, simplified, arXiv:2410.05192", rates=_PEAKS, schedule=WSDS.spanning),
}
"""Schedules over a training of fixed length, the baseline first."""


def _mgda() -> Callable[[Tensor], Tensor]:
    from ...gradients.aggregation.mgda import MGDA  # which imports a part of SciPy

    return MGDA()


AGGREGATORS: dict[str, Arm] = {
    "mean": Arm("The mean of the gradients", aggregator=Mean),
    "upgrad": Arm("UPGrad: Jacobian descent, arXiv:2406.16232", aggregator=UPGrad),
    "mgda": Arm("MGDA: the shortest combination of the gradients", aggregator=_mgda),
    "pcgrad": Arm("PCGrad: conflicting parts are projected away, arXiv:2001.06782", aggregator=PCGrad),
    "gcond": Arm("GCond: the gradient conductor", aggregator=GCond),
    "sam_gs": Arm("SAM-GS: similarity-aware momentum surgery", aggregator=SAMGS),
}
"""Aggregators of the losses of several targets, the baseline first."""
PLAIN = Arm("AdamW at a constant rate")
"""How all train where objectives are compared."""
ARMS = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "aggregator": AGGREGATORS}
EXTRA = "optimizers"
"""What installs the packages of optimizers."""


def find_arm(vary: str, name: str) -> Arm:
    """The arm of a name.

    Raises:
        InputError: unknown, or of a package that is not installed.
    """
    known = ARMS[vary]
    if name not in known:
        raise InputError(f"unknown {vary} {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}")
    if reason := why_missing(known[name]):
        raise InputError(f"{vary} {name!r}: {reason}")
    return known[name]


def why_missing(arm: Arm) -> str:
    """Why an arm cannot run here; empty where it can."""
    if arm.needs and importlib.util.find_spec(arm.needs) is None:
        return f"it needs the package {arm.needs}: pip install 'steepest[{EXTRA}]'"
    if arm.build is _muon and not hasattr(torch.optim, "Muon"):
        return "it needs PyTorch 2.9 or later"
    return ""


def choose_arms(vary: str, asked: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of arms to run, the baseline first, and a line for each that was left out.

    Args:
        vary: what varies.
        asked: ``"default"``, the well-known ones; ``"all"``; or names. What cannot run here is left out of both.

    Raises:
        InputError: an unknown name, or one that cannot run here.
    """
    known = ARMS[vary]
    names, notes = [next(iter(known))], []
    for word in arm_words(asked):
        if word in ("default", "all"):
            for name, arm in known.items():
                if word == "default" and arm.asked:
                    continue
                if reason := why_missing(arm):
                    notes.append(f"left out {name}: {reason}")
                else:
                    names.append(name)
        else:
            find_arm(vary, word)
            names.append(word)
    return list(dict.fromkeys(names)), notes
