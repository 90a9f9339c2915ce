"""Which calibration measures rank networks alike, and does the ranking transfer between data sets?

Set-up of the claim: 60 small architectures (multilayer perceptrons of depth 1 to 4 and eight widths, with and without
residual layers; convolutions of two widths and kernels), each trained for 240 steps on two data sets. MNIST digits at
14 x 14 pixels take the place of Fashion-MNIST (3,000 train, 1,000 fit the temperature, 1,000 test); the other set is
scikit-learn's digits (900, 300, 597). The published Kendall taus come from 15,625 networks on three data sets; their
order is the claim. Where a claim speaks of several measures or bins, the lowest decides; taus are means over the two
data sets. Thresholds are halfway to, or just under, the published numbers, which stand in each claim's text. The
published test sets hold 10,000 rows and more; with these here, sampling alone moves an ECE by about a point.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.stats import kendalltau
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ....nn.networks import Residual
from ....post.calibration.calibration_benchmark import (
    classwise_ece,
    ece,
    ece_equal_mass,
    kde_calibration_error,
    ks_calibration_error,
    mmce,
    temperature_scale,
)
from ...data import digits, halved, mnist_10k, split
from ...experiment import Claim, Evidence

CLAIMS = (
    Claim(
        "accuracy minus ece",
        "between data sets the tau of accuracy is above that of ECE (published for ECE .14 to .66)",
        size=0.2,
    ),
    Claim("bins 10, 25", "ECE of 15 bins against 10 and 25: tau above .9 (published .98)", size=0.08, threshold=0.9),
    Claim("bins 500", "500 bins agree less with 15 than 10 and 25 do (published .70 against .98)", size=0.28),
    Claim(
        "scaling",
        "ECE before against after temperature scaling: tau below .3 (published .07)",
        size=0.23,
        threshold=0.3,
        greater=False,
    ),
    Claim(
        "other measures",
        "equal mass, KS, MMCE and KDE against ECE: tau above .8 (published .86 to 1)",
        size=0.13,
        threshold=0.8,
    ),
    Claim(
        "odd one",
        "class-wise equal mass agrees less with ECE than class-wise does (published -.35 to .26 against .8)",
        size=0.5,
    ),
)
WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96)
Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def architectures(features: int, full: bool) -> Iterator[tuple[str, nn.Module]]:
    """Named networks, each drawn anew from torch's generator."""
    for width in WIDTHS if full else WIDTHS[::4]:
        for depth in (1, 2, 3, 4) if full else (1, 2):
            for skip in (False, True)[: 1 if depth == 1 else 2]:
                inner: list[nn.Module] = [nn.Linear(features, width), nn.ReLU()]
                for _ in range(depth - 1):
                    layer = nn.Sequential(nn.Linear(width, width), nn.ReLU())
                    inner.append(Residual(layer) if skip else layer)
                name = f"mlp {depth} x {width}" + (" skip" if skip else "")
                yield name, nn.Sequential(*inner, nn.Linear(width, 10))
    side = int(features**0.5)
    for width in (4, 8) if full else ():
        for kernel in (3, 5):
            convolution = nn.Conv2d(1, width, kernel, stride=2, padding=kernel // 2)
            yield (
                f"cnn {width} kernel {kernel}",
                nn.Sequential(
                    nn.Unflatten(1, (1, side, side)),
                    convolution,
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(width * ((side + 1) // 2) ** 2, 10),
                ),
            )


def parts(data: tuple[np.ndarray, ...], held: int, test: int, seed: int) -> Parts:
    """Training, held-out and test rows as tensors."""
    x, y, x_test, y_test = data
    x_held, x_test, y_held, y_test = train_test_split(
        x_test, y_test, train_size=held, test_size=test, stratify=y_test, random_state=seed
    )
    rows = [torch.as_tensor(a, dtype=torch.float32) for a in (x, x_held, x_test)]
    labels = [torch.as_tensor(a).long() for a in (y, y_held, y_test)]
    return rows[0], labels[0], rows[1], labels[1], rows[2], labels[2]


def fit(net: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int) -> None:
    """Adam over batches of 100."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, fused=True)
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(1 + 100 * steps // len(x))])
    for rows in order[: 100 * steps].split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()


def measure(net: nn.Module, data: Parts) -> dict[str, float]:
    """The measures that the claims speak of."""
    _, _, x_held, y_held, x, y = data
    with torch.no_grad():
        held, z = net(x_held).double(), net(x).double()
    p = z.softmax(1)
    return {
        "accuracy": float((z.argmax(1) == y).double().mean()),
        **{f"ece {bins}": ece(p, y, bins=bins) for bins in (5, 10, 15, 25, 50, 100, 200, 500)},
        "equal mass": ece_equal_mass(p, y),
        "ks": ks_calibration_error(p, y),
        "mmce": mmce(p, y),
        "kde": kde_calibration_error(p, y),
        "class-wise": classwise_ece(p, y),
        "class-wise equal mass": classwise_ece(p, y, equal_mass=True),
        "ece scaled": ece((z / temperature_scale(held, y_held)).softmax(1), y),
    }


def run(scale: str, seed: int) -> Evidence:
    """Kendall's tau between measures, bins, data sets, before and after scaling."""
    full = scale == "full"
    sets = {"digits": parts(digits(seed, train=900 if full else 300), 300, 597, seed)}
    if full:
        x, y = mnist_10k()
        sets["mnist"] = parts(split(halved(x), y, seed, train=3000), 1000, 1000, seed)
    else:
        sets["other digits"] = parts(digits(seed + 1, train=150), 300, 300, seed)
    values: dict[str, list[dict[str, float]]] = {}
    for name, data in sets.items():
        torch.manual_seed(seed)
        values[name] = []
        for _, net in architectures(data[0].shape[1], full):
            fit(net, data[0], data[1], 240 if full else 20, seed)
            values[name].append(measure(net, data))
    return taus(values)


def taus(values: dict[str, list[dict[str, float]]]) -> Evidence:
    """The evidence of one seed."""
    one, two = values.values()

    def across(key: str) -> float:
        return tau([v[key] for v in one], [v[key] for v in two])

    def within(key: str) -> float:
        return float(np.mean([tau([v["ece 15"] for v in own], [v[key] for v in own]) for own in (one, two)]))

    by_measure = {key: within(key) for key in one[0] if key != "ece 15"}
    rows = [{"arm": f"ECE 15 against {key}", "tau": value} for key, value in by_measure.items()]
    rows += [{"arm": f"{key} between data sets", "tau": across(key)} for key in ("accuracy", "ece 15", "ece scaled")]
    rows += [
        {
            "arm": f"mean over networks, {name}",
            "accuracy": float(np.mean([v["accuracy"] for v in own])),
            "ece 15": float(np.mean([v["ece 15"] for v in own])),
            "ece scaled": float(np.mean([v["ece scaled"] for v in own])),
        }
        for name, own in values.items()
    ]
    near = min(by_measure["ece 10"], by_measure["ece 25"])
    effects = {
        "accuracy minus ece": across("accuracy") - across("ece 15"),
        "bins 10, 25": near,
        "bins 500": near - by_measure["ece 500"],
        "scaling": by_measure["ece scaled"],
        "other measures": min(by_measure[key] for key in ("equal mass", "ks", "mmce", "kde")),
        "odd one": by_measure["class-wise"] - by_measure["class-wise equal mass"],
    }
    return Evidence(rows, effects)


def tau(a: list[float], b: list[float]) -> float:
    """Kendall's tau-b, 0 where one side is constant."""
    value = float(kendalltau(a, b).statistic)
    return value if np.isfinite(value) else 0.0
