"""Multimodal competition: accuracy against joint training and an ensemble, and how much the weak modality counts.

Generated: two modalities of 10 numbers. The easy one is a normal law whose mean moves with the label along one
direction (alone 85% right at best); the hard one hides the label in the product of two noisy signs (alone 87% at best);
one further number of each follows a common cause, so that the modalities are correlated beyond the label. 1000 rows
train, 500 choose, 4000 test. Digits: upper and lower halves of 8 x 8 images, normal noise of three quarters of a
standard deviation a pixel on the lower ones; 900 rows train, 300 choose, 597 test. The weak modality is the hard one,
the noisy half.

Each modality has an encoder, two layers of 64 rectified units and a linear one to 16; a linear layer on both makes the
logits, as in the released presets. Adam, batches of 64, 25 epochs, of which the best on the choosing rows counts, for
every arm:

* joint: cross-entropy of the fused logits;
* ensemble: each modality trained alone with a head of its own, logits added;
* competition: joint plus the greedy term with 6 permutations, partners of another label; contrastive and reconstruction
  terms off, as in the presets. The heads of single modalities, which see detached features, are left out: they change
  nothing here.

The baselines are fair: on each data set every arm has the rate of :data:`RATES`, and competition the weight of 0.1 (the
preset), 0.3 or 1 at that rate, with the best mean accuracy on the choosing rows of three seeds that are not reported
(:func:`choose_settings`); both members of the ensemble share a rate. Joint training must reach 85% on the generated
data, what the easy modality alone allows, and 90% on digits, which every seed checks.

"A clearly larger divergence" has no number on the card: it is taken as half as large again, on test rows, one
permutation. The encoders start from the seed, not from pretrained ones as in the released runs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ....losses.dependence.mcr import (
    MultimodalCompetitionRegularizer,
    permutation_divergence,
    permutation_pairs,
)
from ...data import digits
from ...experiment import Claim, Evidence
from ...settings import PILOTS, best_setting, check_sane

RATES, WEIGHTS = (1e-3, 3e-3, 1e-2), (0.1, 0.3, 1.0)
SETTINGS = {
    "generated": {"joint": (1e-3, 0.0), "ensemble": (1e-3, 0.0), "competition": (1e-3, 1.0)},
    "digits": {"joint": (3e-3, 0.0), "ensemble": (1e-2, 0.0), "competition": (3e-3, 0.1)},
}
"""Rate and weight of each arm on each data set: what :func:`choose_settings` gives."""
SANITY = {"generated": 85.0, "digits": 90.0}
EPOCHS, WIDTH = 25, 64
WEAK = 1
DATA = ("generated", "digits")
ARMS = ("joint", "ensemble", "competition")
SEEDS = 12

CLAIMS = tuple(
    claim
    for data in DATA
    for claim in (
        Claim(f"{data} over joint", f"{data}: accuracy is above that of joint training by 1 to 5 points", size=1.0,
              threshold=1.0),
        Claim(f"{data} over ensemble", f"{data}: and above that of the ensemble (points)", size=1.0),
        Claim(f"{data} weak", f"{data}: the weak modality's divergence is clearly larger than when joint (ratio)",
              size=0.5, threshold=1.0),
    )
)  # fmt: skip


@dataclass
class _Rows:
    """Both modalities and the labels."""

    x: list[Tensor]
    y: Tensor


class _Net(nn.Module):
    """An encoder for each modality and one linear layer on all features."""

    def __init__(self, columns: Sequence[int], classes: int, width: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(
                nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 16)
            )
            for d in columns
        )  # fmt: skip
        self.head = nn.Linear(16 * len(columns), classes)

    def features(self, x: Sequence[Tensor]) -> list[Tensor]:
        return [encoder(own) for encoder, own in zip(self.encoders, x, strict=True)]

    def fuse(self, *features: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat(features, 1))
        return out

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        return self.fuse(*self.features(x))


def run(scale: str, seed: int) -> Evidence:
    """Accuracy of every arm on both data sets, and the divergences of joint training and competition."""
    full = scale == "full"
    epochs, width = (EPOCHS, WIDTH) if full else (3, 16)
    rows: list[dict[str, Any]] = []
    effects: dict[str, float] = {}
    for data in DATA:
        parts = _rows(data, seed)
        test = parts[2]
        joint, competition = (fit(parts, data, arm, epochs, width, seed).net for arm in ("joint", "competition"))
        alone = [fit(parts, data, "ensemble", epochs, width, seed, (m,)).net for m in (0, 1)]
        accuracy = {
            "joint": _accuracy(joint, test),
            "ensemble": _accuracy(lambda x, nets=alone: sum(n([own]) for n, own in zip(nets, x, strict=True)), test),
            "competition": _accuracy(competition, test),
        }
        for m, net in enumerate(alone):
            accuracy[f"modality {m} alone"] = _accuracy(lambda x, net=net, m=m: net([x[m]]), test)
        moved = {arm: _divergences(net, test, seed) for arm, net in (("joint", joint), ("competition", competition))}
        for arm, points in accuracy.items():
            extra = {f"divergence {m}": d for m, d in enumerate(moved.get(arm, ()))}
            rows.append({"data": data, "arm": arm, "accuracy": points, **extra})
        if full:
            check_sane(f"accuracy of joint training, {data}", accuracy["joint"], SANITY[data])
        effects |= {
            f"{data} over joint": accuracy["competition"] - accuracy["joint"],
            f"{data} over ensemble": accuracy["competition"] - accuracy["ensemble"],
            f"{data} weak": moved["competition"][WEAK] / max(moved["joint"][WEAK], 1e-3),
        }
    return Evidence(rows, effects)


def fit(
    parts: tuple[_Rows, ...],
    data: str,
    arm: str,
    epochs: int,
    width: int,
    seed: int,
    modalities: Sequence[int] = (0, 1),
    setting: tuple[float, float] | None = None,
) -> _Fitted:
    """One arm, trained on some modalities, at its setting or another."""
    rate, weight = setting or SETTINGS[data][arm]
    own = [_Rows([split.x[m] for m in modalities], split.y) for split in parts]
    return _train(own[0], own[1], rate, weight, epochs, width, seed)


def choose_settings() -> dict[str, dict[str, tuple[float, float]]]:
    """Rate, then weight, with the best mean accuracy on the choosing rows of the pilot seeds, by data set and arm."""
    chosen: dict[str, dict[str, tuple[float, float]]] = {}
    for data in DATA:
        rows = {seed: _rows(data, seed) for seed in PILOTS}

        def accuracy(arm: str, setting: tuple[float, float], seed: int, data: str = data, rows: Any = rows) -> float:
            groups = ((0,), (1,)) if arm == "ensemble" else ((0, 1),)
            return sum(fit(rows[seed], data, arm, EPOCHS, WIDTH, seed, own, setting).chosen for own in groups)

        chosen[data] = {}
        for arm in ARMS:
            first = WEIGHTS[0] if arm == "competition" else 0.0
            settings = [(rate, first) for rate in RATES]
            best = best_setting(settings, lambda own, seed, arm=arm: accuracy(arm, own, seed))
            if arm == "competition":
                settings = [(best[0], weight) for weight in WEIGHTS]
                best = best_setting(settings, lambda own, seed, arm=arm: accuracy(arm, own, seed))
            chosen[data][arm] = best
    return chosen


def _rows(data: str, seed: int) -> tuple[_Rows, _Rows, _Rows]:
    """To train, to choose, to test."""
    return generated(seed) if data == "generated" else halves(seed)


@dataclass
class _Fitted:
    """The net of the best epoch, and its accuracy on the choosing rows."""

    net: _Net
    chosen: float


def _train(train: _Rows, choose: _Rows, rate: float, weight: float, epochs: int, width: int, seed: int) -> _Fitted:
    torch.manual_seed(seed)
    net = _Net([x.shape[1] for x in train.x], int(train.y.max()) + 1, width)
    regularizer = MultimodalCompetitionRegularizer(weight, num_permutations=6)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    best, most = copy.deepcopy(net.state_dict()), -math.inf
    for _ in range(epochs):
        for own in torch.randperm(len(train.y), generator=generator).split(64):
            target = train.y[own]
            features = net.features([x[own] for x in train.x])
            logits = net.fuse(*features)
            loss = cross_entropy(logits, target)
            if weight:
                loss = loss + regularizer(features, net.fuse, target, logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = _accuracy(net, choose)
        if score > most:
            best, most = copy.deepcopy(net.state_dict()), score
    net.load_state_dict(best)
    return _Fitted(net, most)


@torch.no_grad()
def _accuracy(model: Callable[[list[Tensor]], Tensor], rows: _Rows) -> float:
    return 100 * float((model(rows.x).argmax(1) == rows.y).double().mean())


@torch.no_grad()
def _divergences(net: _Net, rows: _Rows, seed: int) -> list[float]:
    pairs = permutation_pairs(rows.y, generator=torch.Generator().manual_seed(seed))
    features = net.features(rows.x)
    return [float(permutation_divergence(features, net.fuse, pairs, permuted=m)) for m in (0, 1)]


def generated(seed: int) -> tuple[_Rows, _Rows, _Rows]:
    """Rows to train, choose and test: a linear modality and one of a product of signs."""
    rng = np.random.default_rng([seed, 13])
    sizes = (1000, 500, 4000)
    y = rng.integers(2, size=sum(sizes))
    sign = 2 * y - 1
    easy, hard = rng.normal(size=(2, len(y), 10))
    easy[:, 0] += 1.04 * sign
    first = rng.choice([-1, 1], size=len(y))
    hard[:, 0] += 1.5 * first
    hard[:, 1] += 1.5 * first * sign
    common = rng.normal(size=len(y))
    for x in (easy, hard):
        x[:, 9] = 0.9 * common + math.sqrt(1 - 0.9**2) * x[:, 9]
    return _parts([easy, hard], y, np.cumsum(sizes)[:-1])


def halves(seed: int) -> tuple[_Rows, _Rows, _Rows]:
    """Rows to train, choose and test: upper and noisy lower halves of digits."""
    x, y, x_test, y_test = digits(seed, train=1200)
    pixels, labels = np.concatenate([x, x_test]), np.concatenate([y, y_test])
    rng = np.random.default_rng([seed, 17])
    lower = pixels[:, 32:]
    noisy = lower + 0.75 * lower.std() * rng.normal(size=lower.shape)
    return _parts([pixels[:, :32], noisy], labels, np.array([900, 1200]))


def _parts(x: Sequence[np.ndarray], y: np.ndarray, ends: np.ndarray) -> tuple[_Rows, _Rows, _Rows]:
    pieces = [np.split(array, ends) for array in (*x, y)]
    splits = [_Rows([torch.as_tensor(m, dtype=torch.float32) for m in own], torch.as_tensor(labels))
             for *own, labels in zip(*pieces, strict=True)]  # fmt: skip
    return splits[0], splits[1], splits[2]


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy of the arms, and the divergences of both modalities: dots are seeds, lines the means."""
    drawn = Figure(figsize=(7.2, 4.6), layout="constrained")
    rows = [row for of_seed in evidence for row in of_seed.rows]
    for line, data in zip(drawn.subplots(2, 2), DATA, strict=True):
        of_data = [row for row in rows if row["data"] == data]
        values = {arm: [r["accuracy"] for r in of_data if r["arm"] == arm] for arm in ARMS}
        _dots(line[0], values)
        line[0].set_title(data, fontsize=9, loc="left")
        line[0].set_xlabel("test accuracy, %", fontsize=8)
        moved = {
            f"{name}, {arm}": [r[f"divergence {m}"] for r in of_data if r["arm"] == arm]
            for m, name in enumerate(("strong", "weak"))
            for arm in ("joint", "competition")
        }
        _dots(line[1], moved)
        line[1].set_xlabel("divergence when the modality is permuted, nats", fontsize=8)
    return drawn


def _dots(axes: Axes, values: dict[str, list[float]]) -> None:
    for place, own in enumerate(values.values()):
        axes.plot(own, [place] * len(own), "o", color="#0b5c94", alpha=0.4, markersize=4)
        axes.plot([np.mean(own)] * 2, [place - 0.3, place + 0.3], color="#1d2126", linewidth=2)
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.invert_yaxis()
    axes.spines[["right", "top"]].set_visible(False)
