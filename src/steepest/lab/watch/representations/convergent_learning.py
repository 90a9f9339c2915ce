"""Which units two networks of different seeds both learn: one to one, as sums of a few, and as spaces.

Set-up of the claim: pairs of perceptrons of two layers of 96 rectified units (as many as filters in the publication's
first layer) that differ in initial weights and order, both trained on the same 8,000 of the 10,000 MNIST digits of
14 x 14 pixels (in place of Fashion-MNIST), 10 epochs of AdamW with batches of 64. All is measured on layer 1: matchings
and spaces on the 2,000 digits held out, Lasso fitted on 4,000 training digits and measured on those held out. Layer 2
stands in the rows. 40 clusters of the 192 units, as in the publication. All pixels have one mean and deviation: where
each had its own, a first run's correlations were decided in some seeds by a few digits that touch pixels of the border.

Claims of the card: the mean correlation of units matched one to one is clearly (.2) above the mean over random
permutations, which is that of all pairs, and below .95; among the quarter of units that are matched worst the best
partner exceeds the match by more than among the quarter matched best; for over half of the units Lasso with 3 to 6
weights predicts better than the best single unit (its squared correlation on the digits held out); some units recur and
others don't: the two quarters differ by .2 or more; spaces recur more than units: of the variance of units in clusters
of both networks more lies in the space of the other network's units of the cluster than in that of the matched unit.
Ours: least squares on the units that Lasso chose (its penalty shrinks weights: a single unit of correlation c is given
c - alpha) does so for over half; training raises the mean correlation of matched units beyond that of the same networks
before training.

The card gives no measure for the claim on spaces. In a pilot the mean over all canonical correlations of clusters was
.57, below the .63 of matched units, the mean over the first of each cluster .81: the last directions of a cluster hold
little variance. Therefore it is variance that counts; the canonical correlations stand in the rows.

Nothing is compared but networks with one another, so there is no baseline arm; they are sane where they come above 93%
on the digits held out. Their rate is the one of four with the highest such accuracy on two seeds that are not reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....nn.networks import Network, mlp
from ....watch.representations.convergent_learning import (
    cluster_spans,
    cluster_units,
    match_units,
    sparse_unit_prediction,
    unit_correlation,
)
from ...classify import Arm, train
from ...data import digits, halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import best_setting, check_sane

WIDTH, EPOCHS, CLUSTERS, TRAINED, FITTED = 96, 10, 40, 8000, 4000
RATES, PILOTS, LEARNING_RATE = (3e-4, 1e-3, 3e-3, 1e-2), (101, 102), 3e-3
ALPHAS = np.logspace(-2, -0.15, 30)
FEW = (3, 6)
SANITY = 93.0
SEEDS = 8
CLAIMS = (
    Claim("above", "matched units correlate by .2 more than randomly permuted ones", size=0.2, threshold=0.2),
    Claim("below 1", "and by less than .95", size=0.05, threshold=0.95, greater=False),
    Claim("tail", "the best partner exceeds the match by more where units match worst", size=0.02),
    Claim("lasso", "for over half of the units 3 to 6 predict better than the best one", size=0.25, threshold=0.5),
    Claim("some recur", "the best and the worst quarter of matched units differ by .2", size=0.1, threshold=0.2),
    Claim("spaces", "spaces of clusters explain more variance than matched units", size=0.05),
    Claim("refitted", "the 3 to 6 units of Lasso by least squares: over half", size=0.25, threshold=0.5, ours=True),
    Claim("learned", "matched units correlate more than before training", size=0.05, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Matchings, predictions and clusters of a pair of networks."""
    full = scale == "full"
    networks, (x, x_test), accuracy = pair(seed, LEARNING_RATE, full)
    if full:
        check_sane("accuracy", accuracy, SANITY)
    rows: list[dict[str, Any]] = []
    scores: dict[str, Tensor] = {}
    curves: dict[str, Tensor] = {}
    for arm, layers in (("layer 1", 2), ("layer 2", 4)):
        a, b = (activations(network.backbone, x_test, layers) for network in networks)
        c = unit_correlation(a, b)
        scores[arm] = torch.stack([match_units(c)[1], match_units(c, "semi")[1]])
        curve = scores[arm][:, scores[arm][0].isfinite()]
        curve = curves[arm] = curve[:, curve[0].argsort(descending=True)]
        for place, (one, best) in enumerate(zip(*(side.chunk(8) for side in curve))):
            rows.append({"arm": arm, "eighth": place + 1, "matched": float(one.mean()), "best": float(best.mean())})
        rows.append({"arm": arm, "random": float(c.nanmean()), "units": curve.shape[1], "accuracy": accuracy})
    one, best = curves["layer 1"]
    quarter = len(one) // 4
    gap = best - one
    a, b = (activations(network.backbone, x_test, 2) for network in networks)
    untrained = [fresh(x.shape[1], network, number, seed) for number, network in enumerate(networks)]
    before = match_units(unit_correlation(*(activations(body, x_test, 2) for body in untrained)))[1]
    few, refitted, single = predictions(networks, x[:FITTED], x_test)
    labels = cluster_units(a, b, CLUSTERS if full else 4)
    spans = cluster_spans(a, b, labels)
    both = (spans["units"] > 0).all(1)
    canonical = spans["canonical"][both]
    members = spans["units"][both, 0]
    explained = float((spans["explained"][both, 0] * members).sum() / members.sum())
    of_matched = float(scores["layer 1"][0][torch.isin(labels[: a.shape[1]], both.nonzero())].square().nanmean())
    rows.append(
        {
            "arm": "few units",
            "Lasso": float(few.nanmean()),
            "least squares": float(refitted.nanmean()),
            "best unit": float(single.nanmean()),
            "units": int(few.isfinite().sum()),
        }
    )
    rows.append(
        {
            "arm": "clusters",
            "of both": int(both.sum()),
            "first canonical": float(canonical[:, 0].mean()),
            "canonical": float(canonical.nanmean()),
            "explained": explained,
            "by the matched": of_matched,
            "matched units": float(one.mean()),
            "before training": float(before.nanmean()),
        }
    )
    effects = {
        "above": float(one.mean()) - next(row["random"] for row in rows if "random" in row),
        "below 1": float(one.mean()),
        "tail": float(gap[-quarter:].mean() - gap[:quarter].mean()),
        "lasso": float((few > single).double().mean()),
        "some recur": float(one[:quarter].mean() - one[-quarter:].mean()),
        "spaces": explained - of_matched,
        "refitted": float((refitted > single).double().mean()),
        "learned": float(one.mean() - before.nanmean()),
    }
    return Evidence(rows, effects)


def pair(seed: int, rate: float, full: bool) -> tuple[list[Network], tuple[Tensor, Tensor], float]:
    """Two trained networks, the inputs, and their mean accuracy on those held out in percent."""
    if full:
        images, labels = mnist_10k()
        images = halved(images)
        order = np.random.default_rng(seed).permutation(len(labels))
        rows, rest = order[:TRAINED], order[TRAINED:]
        mean, deviation = images[rows].mean(), images[rows].std()
        data = (images[rows] - mean) / deviation, labels[rows], (images[rest] - mean) / deviation, labels[rest]
    else:
        data = digits(seed, train=300)
    dtype = torch.float32 if full else torch.float64
    arms = [Arm(f"network {number}", CrossEntropyLoss, lr=rate, seed=own_seed(seed, number)) for number in range(2)]
    train(arms, data, epochs=EPOCHS if full else 2, seed=seed, width=WIDTH if full else 12, dtype=dtype)
    networks = [arm.network for arm in arms if isinstance(arm.network, Network)]
    accuracy = 100 * float(np.mean([arm.accuracy(data[3]) for arm in arms]))
    return networks, (torch.as_tensor(data[0], dtype=dtype), torch.as_tensor(data[2], dtype=dtype)), accuracy


def own_seed(seed: int, number: int) -> int:
    """Of each network of a pair."""
    return 10 * seed + 5 * number


def fresh(features: int, network: Network, number: int, seed: int) -> nn.Module:
    """The same network's layers before training."""
    first = next(network.backbone.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own_seed(seed, number))
        return mlp(features, width=len(first)).to(first)


@torch.no_grad()
def activations(backbone: nn.Module, x: Tensor, layers: int) -> Tensor:
    """What the first modules of a perceptron give."""
    assert isinstance(backbone, nn.Sequential)
    out: Tensor = backbone[:layers](x)
    return out


def predictions(networks: Sequence[Network], x: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R2 of units of layer 1 on other rows: by Lasso with 3 to 6 weights, refitted by least squares, by the best."""
    (a, b), (a_test, b_test) = ([activations(net.backbone, rows, 2) for net in networks] for rows in (x, x_test))
    fit = sparse_unit_prediction(a, b, ALPHAS.tolist(), test=(a_test, b_test))
    inside = (fit["nnz"] >= FEW[0]) & (fit["nnz"] <= FEW[1])
    single = unit_correlation(a_test, b_test).square().nan_to_num(0.0).amax(0)
    few, refitted = torch.full_like(single, torch.nan), torch.full_like(single, torch.nan)
    for unit in range(len(single)):
        places = inside[:, unit].nonzero()
        if len(places):
            place = int(places[0])  # the smallest penalty
            few[unit] = fit["r2"][place, unit]
            chosen = fit["weights"][place, :, unit].nonzero()[:, 0]
            own = sparse_unit_prediction(
                a[:, chosen], b[:, unit : unit + 1], (0.0,), test=(a_test[:, chosen], b_test[:, unit : unit + 1])
            )
            refitted[unit] = own["r2"][0, 0]
    return few, refitted, single


def choose_rate() -> float:
    """The rate with the highest accuracy over seeds that are not reported."""
    return best_setting(RATES, lambda rate, seed: pair(seed, rate, True)[2], PILOTS)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Matched units from best to worst."""
    rows = [
        Evidence(
            [
                {"arm": f"{row['arm']}, {kind}", "eighth": row["eighth"], "correlation": row[kind]}
                for row in of_seed.rows if "eighth" in row
                for kind in ("matched", "best")
            ],
            {},
        )
        for of_seed in evidence
    ]  # fmt: skip
    drawn: Figure = arms_figure(rows, x="eighth", y="correlation")
    return drawn
