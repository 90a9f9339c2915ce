"""Gradient collision: the target task stays, the source task is harder to learn again.

Set-up of the claim: scikit-learn's digits, 1,200 rows to train; the source task is the ten classes, the target task the
parity, on a shared extractor of 64 and 32 tanh units with a head each. The network learns the source task (30 epochs of
Adam at 1e-3), is adapted to the target task (10 epochs), and then the source task is disposed of in 6 epochs of 12
steps: a step takes 100 rows of either task, the source rows in 4 chunks, Adam with gradients clipped at 1. Piggyback
accuracy: a fresh head and a copy of the extractor, 60 steps of gradient descent at .05 on 60 images, ten classes;
the mean of five draws of images and head.

Arms: fine-tuning on the target alone, gradient collision with cosines and with inner products, ascent on the source
loss up to ln 10, random labels for the source rows; and random weights, which is the reference of the piggyback
recipe. Learning rates, and the factors of what is added to the target loss, are chosen alike for all arms on three
seeds that are not reported (:func:`choose_settings`): of the target alone the one with the best target accuracy; of the
others the lowest piggyback accuracy among those that cost at most one point of it. The publication's factor is not
known; the setting of an earlier trial here (cosines, factor 10, rate 1e-3) is an arm of its own. The adapted network
must reach 95% on the target task.

The claims are measured against fine-tuning on the target alone, in points. A drop of 4 points at a cost of 1 is what
that trial measured; at most 2 points is claimed of the cost. The publication's networks, image sets and lengths are
far larger, and so are its drops.

The pilot seeds, and one of the reported seeds in a first look, spoke against the drop; then the last claim was added:
the same at the setting of the earlier trial in both arms (rate 1e-3, factor 10), from a network that was adapted to the
target task while it went on with the source task, as its source accuracy of 96% was that of the trial. Pilots gave the
same sign with adaptation at 3e-4 for 5 epochs, with pixels in [0, 1], with the extractor's gradients alone, a frozen or
a fresh source head, no clipping, and factors up to 100 of inner products. Value and gradient are those of a loop over
pairs, and of differences (in the tests). The reason: unit gradients nearly sum to 0 wherever the source loss is
stationary, and from a network that knows the source task the nearest such place is a minimum of the source loss. Fine-
tuning on the target alone forgets more. The form of the loss is read from the publication's description, so this may
not be its loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ....core.objective import Batch
from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....losses.unlearning.gradient_collision import (
    GradientCollisionLoss,
    gradient_collision_loss,
    piggyback_accuracy,
)
from ....nn.networks import Network
from ...data import digits
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, check_sane

ALONE, COSINE, INNER, TRIAL = "target alone", "collision", "collision, inner products", "collision, earlier trial"
TRIAL_ALONE = "target alone, earlier trial"
ASCENT, RANDOM, FRESH = "ascent", "random labels", "random weights"
SHORT, LONG = 6, 24
SANITY = 95.0
SEEDS = 6
RATES = (3e-4, 1e-3, 3e-3)
FACTORS = {ALONE: (0.0,), COSINE: (1.0, 10.0), INNER: (0.1, 1.0), ASCENT: (0.1, 1.0), RANDOM: (0.1, 1.0)}
COST = 1.0
"""Points of target accuracy that a setting may cost on the seeds that choose it."""
CLAIMS = (
    Claim(
        "piggyback drop",
        "gradient collision lowers piggyback accuracy (4 points) below that of fine-tuning on the target alone",
        size=4.0,
    ),
    Claim(
        "target cost",
        "it costs less than 2 points of target accuracy",
        size=1.0,
        threshold=2.0,
        greater=False,
    ),
    Claim(
        "growth",
        "the drop after 24 epochs is larger than that after 6",
        size=2.0,
        ours=True,
    ),
    Claim(
        "drop, inner products",
        "with inner products piggyback accuracy falls too (4 points)",
        size=4.0,
        ours=True,
    ),
    Claim(
        "agreement",
        "the mean cosine of gradients on source rows that were not trained on falls (.1)",
        size=0.1,
        ours=True,
    ),
    Claim(
        "drop, both tasks",
        "piggyback accuracy falls (4 points) from a network that knows both tasks, at rate 1e-3 and factor 10",
        size=4.0,
        ours=True,
    ),
)


class Setting(NamedTuple):
    """Of an arm: its learning rate, and the factor of what it adds to the target loss."""

    rate: float
    factor: float


SETTINGS: dict[str, Setting] = {
    ALONE: Setting(3e-3, 0.0),
    COSINE: Setting(3e-3, 1.0),
    INNER: Setting(3e-3, 0.1),
    ASCENT: Setting(3e-3, 0.1),
    RANDOM: Setting(3e-3, 0.1),
}
"""What :func:`choose_settings` gives."""


@dataclass
class Tasks:
    """Rows of both tasks, and the network after adaptation."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    extractor: nn.Module
    source: nn.Module
    target: nn.Module
    fresh: nn.Module
    batch: int
    draws: int

    def copies(self) -> tuple[Network, Network]:
        """The network of the source task and that of the target task, on one extractor."""
        extractor, source, target = copy.deepcopy((self.extractor, self.source, self.target))
        return Network(extractor, source), Network(extractor, target)


def run(scale: str, seed: int) -> Evidence:
    """What is left of either task after disposal, by arm."""
    full = scale == "full"
    tasks, able = _adapted(seed, full), _adapted(seed, full, both=True)
    short, long = (SHORT, LONG) if full else (1, 2)
    settings = {arm: SETTINGS[arm] for arm in (ALONE, COSINE, INNER, ASCENT, RANDOM)}
    settings |= {TRIAL_ALONE: Setting(1e-3, 0.0), TRIAL: Setting(1e-3, 10.0)}
    arms = {
        arm: _measured(_disposed(tasks, arm, setting, short, seed), tasks, seed) for arm, setting in settings.items()
    }
    longer = {arm: _measured(_disposed(tasks, arm, settings[arm], long, seed), tasks, seed) for arm in (ALONE, COSINE)}
    trial = {
        arm: _measured(_disposed(able, arm, settings[arm], short, seed), able, seed) for arm in (TRIAL_ALONE, TRIAL)
    }
    untrained = Network(tasks.fresh, tasks.source)
    fresh = {"piggyback": _piggyback(untrained.backbone, tasks, seed)}
    if full:
        check_sane("target accuracy of the target alone", arms[ALONE]["target"], SANITY)
    drop = arms[ALONE]["piggyback"] - arms[COSINE]["piggyback"]
    effects = {
        "piggyback drop": drop,
        "target cost": arms[ALONE]["target"] - arms[COSINE]["target"],
        "growth": longer[ALONE]["piggyback"] - longer[COSINE]["piggyback"] - drop,
        "drop, inner products": arms[ALONE]["piggyback"] - arms[INNER]["piggyback"],
        "agreement": arms[ALONE]["mean cosine"] - arms[COSINE]["mean cosine"],
        "drop, both tasks": trial[TRIAL_ALONE]["piggyback"] - trial[TRIAL]["piggyback"],
    }
    rows = [{"arm": arm, "epochs": short, **values} for arm, values in arms.items()]
    rows += [{"arm": f"{arm}, longer", "epochs": long, **values} for arm, values in longer.items()]
    rows += [{"arm": f"{arm}, both tasks", "epochs": short, **values} for arm, values in trial.items()]
    return Evidence([*rows, {"arm": FRESH, "epochs": 0, **fresh}], effects)


def choose_settings() -> dict[str, Setting]:
    """Rate and factor of each arm, by its means over three pilot seeds."""
    pilots = [(seed, _adapted(seed, True)) for seed in PILOTS]

    def means(arm: str, setting: Setting) -> tuple[float, float]:
        measured = [_measured(_disposed(tasks, arm, setting, SHORT, seed), tasks, seed) for seed, tasks in pilots]
        return (
            sum(values["target"] for values in measured) / len(measured),
            sum(values["piggyback"] for values in measured) / len(measured),
        )

    chosen: dict[str, Setting] = {}
    best = 0.0
    for arm, factors in FACTORS.items():
        grid = [Setting(rate, factor) for rate in RATES for factor in factors]
        scores = {setting: means(arm, setting) for setting in grid}
        if arm == ALONE:
            chosen[arm] = max(grid, key=lambda s, of=scores: of[s][0])
            best = scores[chosen[arm]][0]
            continue
        cheap = [setting for setting in grid if best - scores[setting][0] <= COST]
        if cheap:
            chosen[arm] = min(cheap, key=lambda s, of=scores: of[s][1])
        else:
            chosen[arm] = max(grid, key=lambda s, of=scores: of[s][0])
    return chosen


def _adapted(seed: int, full: bool, both: bool = False) -> Tasks:
    """A network that learned the source task, and then the target task; ``both``: and the source task further on."""
    x, y, x_test, y_test = digits(seed)
    if not full:
        x, y, x_test, y_test = x[:200], y[:200], x_test[:100], y_test[:100]
    inputs, test_inputs = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(x_test, dtype=torch.float64)
    labels, test_labels = torch.as_tensor(y).long(), torch.as_tensor(y_test).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extractor = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
        source, target = nn.Linear(32, 10), nn.Linear(32, 2)
    for module in (extractor, source, target):
        module.double()
    fresh = copy.deepcopy(extractor)
    tasks = Tasks(inputs, labels, test_inputs, test_labels, extractor, source, target, fresh, 100, 5 if full else 1)
    generator = torch.Generator().manual_seed(seed)
    labels_of = {source: labels, target: labels % 2}
    for heads, epochs in (([source], 30), ([target, source] if both else [target], 10)):
        parameters = [p for module in (extractor, *heads) for p in module.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        for _ in range(epochs if full else 3):
            for rows in torch.randperm(len(inputs), generator=generator).split(tasks.batch):
                features = extractor(inputs[rows])
                optimizer.zero_grad()
                torch.stack([cross_entropy(head(features), labels_of[head][rows]) for head in heads]).sum().backward()
                optimizer.step()
    return tasks


def _disposed(tasks: Tasks, arm: str, setting: Setting, epochs: int, seed: int) -> tuple[Network, Network]:
    """Both networks after an arm's epochs: that of the source task, that of the target task."""
    source, target = tasks.copies()
    params = [*source.parameters(), *target.head.parameters()]
    optimizer = torch.optim.Adam(params, lr=setting.rate)
    generator = torch.Generator().manual_seed(seed + 1)
    objective = CrossEntropyLoss()
    for _ in range(epochs):
        orders = [torch.randperm(len(tasks.x), generator=generator).split(tasks.batch) for _ in range(2)]
        for of_target, of_source in zip(*orders):
            x, y = tasks.x[of_source], tasks.y[of_source]
            wrong = torch.randint(10, (len(of_source),), generator=generator)
            retain = _target_loss(target, tasks, of_target)
            if arm in (COSINE, INNER, TRIAL):
                method = GradientCollisionLoss(4, lam=setting.factor, normalize=arm != INNER, retain=retain)
                loss = method.loss(source, Batch(x, y), objective)
            else:
                loss = retain(source)
                if arm == ASCENT:
                    loss = loss - setting.factor * cross_entropy(source(x), y).clamp_max(math.log(10))
                elif arm == RANDOM:
                    loss = loss + setting.factor * cross_entropy(source(x), wrong)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
    return source, target


def _target_loss(target: Network, tasks: Tasks, rows: Tensor) -> Callable[[nn.Module], Tensor]:
    """The loss of the target task at some rows; it shares the extractor of the model that is given."""
    return lambda _: cross_entropy(target(tasks.x[rows]), tasks.y[rows] % 2)


def _measured(networks: tuple[Network, Network], tasks: Tasks, seed: int) -> dict[str, float]:
    """Accuracies on test rows in percent, and the mean cosine of gradients on four chunks of them."""
    source, target = networks
    with torch.no_grad():
        right = {
            "target": target(tasks.x_test).argmax(1) == tasks.y_test % 2,
            "source": source(tasks.x_test).argmax(1) == tasks.y_test,
        }
    chunks = zip(tasks.x_test[:100].chunk(4), tasks.y_test[:100].chunk(4))
    losses = [cross_entropy(source(x), y) for x, y in chunks]
    agreement = gradient_collision_loss(losses, list(source.parameters()))
    return {
        **{name: 100 * float(rows.double().mean()) for name, rows in right.items()},
        "piggyback": _piggyback(source.backbone, tasks, seed),
        "mean cosine": float(agreement.detach()),
    }


def _piggyback(extractor: nn.Module, tasks: Tasks, seed: int) -> float:
    """Mean piggyback accuracy in percent over draws of 60 images and a head."""
    total = 0.0
    for draw in range(tasks.draws):
        generator = torch.Generator().manual_seed(1000 * seed + draw)
        rows = torch.randperm(len(tasks.x), generator=generator)[:60]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + draw)
            total += piggyback_accuracy(
                extractor,
                lambda: nn.Linear(32, 10).double(),
                (tasks.x[rows], tasks.y[rows]),
                (tasks.x_test, tasks.y_test),
            )
    return 100 * total / tasks.draws


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Piggyback accuracy by arm."""
    return bars_figure(evidence, y="piggyback")
