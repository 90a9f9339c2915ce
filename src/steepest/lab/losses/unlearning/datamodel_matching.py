"""Datamodel matching: nearer to retrained models than ascent and fine-tuning on what is retained.

Two set-ups of the claim. *Least squares*: 400 rows of 10 features whose second moments fall evenly on a logarithmic
scale from 1 to 1e-4, labels with noise of 1, of which 20 rows are to be forgotten; 50,000 steps of stochastic gradient
descent with batches of 20 from the least squares solution of all rows. Matching takes exact predictions of the
retrained solution's outputs, half of a batch from the forget rows; the others are descent on the retained rows and
ascent on the forget rows. "Far below" is taken as a tenth of the distance to the retrained weights.

*Digits*: 400 training rows of scikit-learn's digits, of which 20 are to be forgotten, networks of one layer of 64
rectified units, 40 epochs of AdamW at 3e-3 with batches of 50. A datamodel is estimated from 200 networks on random
halves, at the forget rows and 100 of the retained rows, as a ridge. 30 networks that were trained on all rows are
unlearned for 100 steps of Adam with batches of 64, and compared with 30 that were trained without the forget rows, by
KLoM on forget rows, on other retained rows and on test rows. Arms: matching, matching of the mean outputs of the
retrained networks themselves (the bound), descent on retained rows, ascent on forget rows, nothing; and 30 other
retrained networks, which show what KLoM is of equals. The claim names no size; half a nat is taken.

Learning rates are chosen alike for all arms on two seeds that are not reported (:func:`choose_rates`): the least
distance, and the least mean KLoM on forget rows; the penalty of the ridge with the rate of matching, of which
3e-4 and 1e-3 were tried with all penalties. The networks on all rows must have 90% of the test rows right.

A first run had rates in steps of ten for ascent, and the penalty of the least error of leaving one network out: it
showed all four claims over five seeds (KLoM .43 below ascent, .67 below retain descent). Ascent has its best rate,
3e-5, between two of these steps and is there as near as matching, so the grid is now finer, and seeds are eight. Least
squares has constant rates: what retain descent is left with is the noise of its steps, which matching doesn't have, as
its targets leave no residual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ....descent import Descent, Stack, StackedAdamW, StackedBatches, StackedObjective, StackedStep
from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....losses.unlearning.datamodel_matching import (
    Datamodel,
    DatamodelMatching,
    fit_datamodel,
    klom,
    log_odds_margin,
    ridge_removal,
)
from ....nn.networks import Network, mlp
from ...data import digits
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, best_setting, check_sane

MATCHING, BOUND, DESCENT, ASCENT = "matching", "matching of retrained outputs", "retain descent", "ascent"
NOTHING, EQUALS = "nothing", "retrained again"
CLAIMS = (
    Claim(
        "distance, descent",
        "least squares: matching ends at less than a tenth of the distance of retain descent (log10)",
        size=0.5,
        threshold=-1.0,
        greater=False,
    ),
    Claim(
        "distance, ascent",
        "least squares: matching ends at less than a tenth of the distance of ascent (log10)",
        size=0.5,
        threshold=-1.0,
        greater=False,
    ),
    Claim("klom, ascent", "digits: KLoM on forget rows is lower than after ascent (half a nat)", size=0.5),
    Claim("klom, descent", "digits: KLoM on forget rows is lower than after retain descent (half a nat)", size=0.5),
)
SANITY = 90.0
SEEDS = 8
PENALTIES = (0.01, 1.0, 10.0, 30.0, 300.0)
PENALTY = 30.0
"""What :func:`choose_rates` gives."""
LEAST_SQUARES_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 3e-1, 1.0)
DIGITS_GRID = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
LEAST_SQUARES_RATES = {MATCHING: 1.0, DESCENT: 0.3, ASCENT: 1e-6}
DIGITS_RATES = {MATCHING: 1e-3, BOUND: 1e-3, DESCENT: 3e-6, ASCENT: 3e-5}
"""The rates of each arm: what :func:`choose_rates` gives."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    steps: int = 50_000
    rows: int = 400
    forget: int = 20
    retain: int = 100
    test: int = 200
    subsets: int = 200
    models: int = 30
    epochs: int = 40
    unlearning: int = 100
    dtype: torch.dtype = torch.float32


SMOKE = Sizes(200, 80, 8, 16, 20, 12, 4, 3, 10, torch.float64)


def run(scale: str, seed: int) -> Evidence:
    """Distances of least squares, and KLoM of digits, by arm."""
    sizes = Sizes() if scale == "full" else SMOKE
    distances = least_squares(seed, sizes.steps, {arm: (rate,) for arm, rate in LEAST_SQUARES_RATES.items()})
    arms, start = {arm: float(values[0]) for arm, values in distances.items() if arm != NOTHING}, distances[NOTHING]
    rows: list[dict[str, str | float]] = [
        {"setting": "least squares", "arm": arm, "distance": value} for arm, value in arms.items()
    ]
    rows.append({"setting": "least squares", "arm": NOTHING, "distance": float(start[0])})
    study = Study(seed, sizes)
    if scale == "full":
        check_sane("test accuracy of networks on all rows", study.accuracy, SANITY)
    measured = {arm: study.unlearned(arm, rate) for arm, rate in DIGITS_RATES.items()}
    measured |= {NOTHING: study.judged(study.networks), EQUALS: study.judged(study.equals)}
    rows += [{"setting": "digits", "arm": arm, **values} for arm, values in measured.items()]
    forget = {arm: values["forget"] for arm, values in measured.items()}
    effects = {
        "distance, descent": math.log10(arms[MATCHING] / arms[DESCENT]),
        "distance, ascent": math.log10(arms[MATCHING] / arms[ASCENT]),
        "klom, ascent": forget[ASCENT] - forget[MATCHING],
        "klom, descent": forget[DESCENT] - forget[MATCHING],
    }
    return Evidence(rows, effects)


def choose_rates() -> tuple[dict[str, float], dict[str, float], float]:
    """The rates of least squares and of digits, each arm's by two pilot seeds; and the penalty of the datamodel."""
    grid = LEAST_SQUARES_GRID
    distances = {
        seed: least_squares(seed, Sizes().steps, dict.fromkeys(LEAST_SQUARES_RATES, grid)) for seed in PILOTS[:2]
    }

    def nearness(arm: str, rate: float, seed: int) -> float:
        value = float(distances[seed][arm][grid.index(rate)])
        return -math.log(value) if math.isfinite(value) else -math.inf

    studies = {seed: Study(seed, Sizes()) for seed in PILOTS[:2]}

    def likeness(arm: str, setting: tuple[float, float], seed: int) -> float:
        penalty, rate = setting
        study = studies[seed]
        if arm == MATCHING:
            study.datamodel = fit_datamodel(study.inclusion, study.on_halves, penalty)
        return -study.unlearned(arm, rate)["forget"]

    of_digits: dict[str, tuple[float, float]] = {}
    for arm in DIGITS_RATES:
        settings = [(p, rate) for p in (PENALTIES if arm == MATCHING else (PENALTY,)) for rate in DIGITS_GRID]
        of_digits[arm] = best_setting(settings, lambda s, seed, own=arm: likeness(own, s, seed), PILOTS[:2])
    of_least_squares = {
        arm: best_setting(grid, lambda rate, seed, own=arm: nearness(own, rate, seed), PILOTS[:2])
        for arm in LEAST_SQUARES_RATES
    }
    return of_least_squares, {arm: rate for arm, (_, rate) in of_digits.items()}, of_digits[MATCHING][0]


def least_squares(seed: int, steps: int, rates: dict[str, tuple[float, ...]]) -> dict[str, Tensor]:
    """Distance to the retrained weights after so many steps, of each arm at each of its rates; and at the start."""
    generator = torch.Generator().manual_seed(seed)
    count, width, forget = 400, 10, 20
    scales = torch.logspace(0, -2, width, dtype=torch.float64)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64) * scales
    truth = torch.randn(width, generator=generator, dtype=torch.float64)
    y = x @ truth + torch.randn(count, generator=generator, dtype=torch.float64)
    gone = torch.arange(forget)
    start = torch.linalg.lstsq(x, y.unsqueeze(1)).solution.squeeze(1)
    retrained = ridge_removal(x, y, gone)
    targets = {MATCHING: x @ retrained, DESCENT: y, ASCENT: y}
    kinds = [(arm, rate) for arm, own in rates.items() for rate in own]
    rate = torch.tensor([-r if arm == ASCENT else r for arm, r in kinds], dtype=torch.float64).view(-1, 1, 1)
    weights = start.repeat(len(kinds), 1).unsqueeze(1)
    target_rows = torch.stack([targets[arm] for arm, _ in kinds])
    batch = 20
    member = torch.arange(len(kinds)).unsqueeze(1)
    places = {arm: torch.tensor([kind == arm for kind, _ in kinds]) for arm in rates}
    drawn = torch.zeros(len(kinds), batch, dtype=torch.long)
    for first in range(0, steps, 1000):
        size = min(1000, steps - first)
        of_forget = torch.randint(forget, (size, batch), generator=generator)
        of_retain = torch.randint(forget, count, (size, batch), generator=generator)
        half = torch.cat([of_forget[:, : batch // 2], of_retain[:, : batch // 2]], 1)
        by_arm = {MATCHING: half, DESCENT: of_retain, ASCENT: of_forget}
        for step in range(size):
            for arm, own in places.items():
                drawn[own] = by_arm[arm][step]
            rows = x[drawn]
            errors = torch.bmm(rows, weights.mT).squeeze(2) - target_rows[member, drawn]
            weights = weights - rate * torch.bmm(errors.unsqueeze(1), rows) / batch
    distances = torch.linalg.vector_norm(weights.squeeze(1) - retrained, dim=1)
    result = {arm: distances[own] for arm, own in places.items()}
    return result | {NOTHING: torch.linalg.vector_norm(start - retrained).unsqueeze(0)}


class _Together(nn.Module):
    """Networks as one: inputs ``[B, D]`` to logits ``[B, K, C]``."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.stack = Stack(networks)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.stack(x.expand(len(self.stack), *x.shape))
        return outputs.transpose(0, 1)


class Study:
    """Networks of one seed: on all rows, without the forget rows, on random halves; and the datamodel."""

    def __init__(self, seed: int, sizes: Sizes) -> None:
        self.sizes, self.seed = sizes, seed
        x, y, x_test, y_test = digits(seed, train=sizes.rows)
        self.x, self.y = torch.as_tensor(x, dtype=sizes.dtype), torch.as_tensor(y).long()
        self.x_test = torch.as_tensor(x_test[: sizes.test], dtype=sizes.dtype)
        self.y_test = torch.as_tensor(y_test[: sizes.test]).long()
        count, forget = sizes.rows, sizes.forget
        whole, left = torch.arange(count), torch.arange(forget, count)  # rows are in random order
        models = sizes.models
        trained = self._trained([whole] * models + [left] * 2 * models, seed)
        self.networks, retrained, self.equals = trained[:models], trained[models : 2 * models], trained[2 * models :]
        generator = torch.Generator().manual_seed(seed)
        halves = [torch.randperm(count, generator=generator)[: count // 2] for _ in range(sizes.subsets)]
        self.points = torch.arange(forget + sizes.retain)
        on_halves = self._outputs(self._trained(halves, seed + 500), self.x[self.points])
        inclusion = torch.zeros(len(halves), count)
        for row, half in zip(inclusion, halves):
            row[half] = 1
        self.inclusion, self.on_halves = inclusion, on_halves
        self.datamodel: Datamodel = fit_datamodel(inclusion, on_halves, PENALTY)
        self.retrained = self._margins(retrained)
        self.mean_retrained = self._outputs(retrained, self.x[self.points]).mean(0)
        outputs = self._outputs(self.networks, self.x_test)
        self.accuracy = 100 * float((outputs.argmax(2) == self.y_test).double().mean())

    def _trained(self, sets: list[Tensor], seed: int) -> list[Network]:
        """A network on each set of rows, all as one stack."""
        networks = []
        with torch.random.fork_rng(devices=[]):
            for number in range(len(sets)):
                torch.manual_seed(10_000 * seed + number)
                networks.append(Network(mlp(64, width=64, depth=1), nn.Linear(64, 10)).to(self.sizes.dtype))
        batch = min(50, min(map(len, sets)))
        data = [(self.x[rows], self.y[rows], None) for rows in sets]
        seeds = [10_000 * seed + number for number in range(len(sets))]
        steps = -(-max(map(len, sets)) // batch)
        batches = StackedBatches(data, range(len(sets)), seeds, batch_size=batch, steps=steps)
        stack = Stack(networks)
        optimizer = StackedAdamW(stack, lr=[3e-3] * len(sets), weight_decay=[1e-4] * len(sets))
        objective = StackedObjective([CrossEntropyLoss() for _ in sets])
        Descent(stack, objective, batches, method=StackedStep(), optimizer=optimizer).fit(self.sizes.epochs)
        for number, network in enumerate(networks):
            network.load_state_dict(stack.member(number))
        return networks

    @torch.no_grad()
    def _outputs(self, networks: Sequence[Network], x: Tensor) -> Tensor:
        """Logits ``[K, B, C]``."""
        return torch.stack([network(x) for network in networks])

    def _margins(self, networks: Sequence[Network]) -> dict[str, Tensor]:
        """Margins ``[K, P]`` at forget rows, at retained rows that nothing was matched at, at test rows."""
        forget, retain = self.sizes.forget, self.sizes.retain
        rest = slice(forget + retain, forget + 2 * retain)
        places = {
            "forget": (self.x[:forget], self.y[:forget]),
            "retain": (self.x[rest], self.y[rest]),
            "test": (self.x_test, self.y_test),
        }
        return {name: log_odds_margin(self._outputs(networks, x), y) for name, (x, y) in places.items()}

    def judged(self, networks: Sequence[Network]) -> dict[str, float]:
        """Mean KLoM, and its 95th percentile on forget rows."""
        divergences = {name: klom(own, self.retrained[name]) for name, own in self._margins(networks).items()}
        means = {name: float(values.mean()) for name, values in divergences.items()}
        return means | {"forget, 95th percentile": float(np.percentile(divergences["forget"].numpy(), 95))}

    def unlearned(self, arm: str, rate: float) -> dict[str, float]:
        """KLoM of the networks on all rows after an arm's steps."""
        together = _Together(self.networks)
        sizes, forget = self.sizes, self.sizes.forget
        generator = torch.Generator().manual_seed(self.seed + 1)
        if arm in (MATCHING, BOUND):
            points = self.x[self.points]
            models = len(self.networks)
            exact = self.mean_retrained.unsqueeze(1).expand(-1, models, -1)
            matching = DatamodelMatching(
                together,
                self.datamodel if arm == MATCHING else exact,
                points[:forget],
                points[forget:],
                torch.arange(forget) if arm == MATCHING else None,
            )
            matching.run(sizes.unlearning, rate, generator=generator)
        else:
            optimizer = torch.optim.Adam(together.parameters(), lr=rate)
            for _ in range(sizes.unlearning):
                low, high = (0, forget) if arm == ASCENT else (forget, sizes.rows)
                rows = torch.randint(low, high, (64,), generator=generator)
                outputs = together(self.x[rows])
                loss = cross_entropy(outputs.flatten(0, 1), self.y[rows].repeat_interleave(outputs.shape[1]))
                optimizer.zero_grad()
                (loss if arm == DESCENT else -loss).backward()
                optimizer.step()
        networks = [Network(mlp(64, width=64, depth=1), nn.Linear(64, 10)).to(sizes.dtype) for _ in self.networks]
        for number, network in enumerate(networks):
            network.load_state_dict(together.stack.member(number))
        return self.judged(networks)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """KLoM on forget rows by arm."""
    digits_alone = [
        Evidence([row for row in of_seed.rows if row["setting"] == "digits"], of_seed.effects) for of_seed in evidence
    ]
    drawn = bars_figure(digits_alone, y="forget")
    drawn.axes[0].set_xlabel("mean KLoM on forget rows")
    return drawn
