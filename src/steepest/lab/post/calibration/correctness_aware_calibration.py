"""Correctness-aware calibration: a temperature from transformed copies tells right answers from wrong ones.

The gain is claimed above all on shifted data. Set-up: a small convolutional network; MNIST digits at 14 x 14 pixels
take the place of Fashion-MNIST (2,000 train, 3,000 calibrate, 3,000 test). Views are the image turned by 15 degrees,
moved by a pixel (two at full size) and with 60% of its contrast. Test sets are the clean rows, and as shifted data the
same rows turned by 30 degrees and with Gaussian noise of deviation 0.4; effects on shifted data are means over the two.
Arms: uncalibrated, temperature scaling, the network of views trained with cross-entropy, and with the correctness-aware
loss, balanced as in the official code. "About equal" on clean data is less than one point of ECE.

The baselines are fair: both trainings of the network of views run 3,600 steps of Adam on batches of 1,000 (the paper's
500 epochs of 25,000 rows are 12,500), each at the rate of 1e-4 (the paper's, in the official code as well), 1e-3 or
1e-2 that has the highest AUROC on the shifted test sets of two seeds that are not reported, after 900 steps
(:func:`choose_rates`); temperature scaling has no rate. Before, they ran 900 steps at 1e-2, where the network of views
fits the clean rows and fails on the others. The classifier must reach an accuracy of 90% on clean rows, which every
seed checks.

ECE on clean rows is contradicted by far, and what was checked is the length: after 900 steps (ten seeds, same rates) it
differs by 0.9 points [0.4, 1.5] and ECE on shifted rows by -0.8 [-2.5, 0.8]. The official balance gives wrong answers,
7% of clean rows, the weight of right ones, so the longer the training, the lower the confidence: a loss on clean rows
and a gain on shifted ones, where more answers are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....post.calibration.calibration_benchmark import TemperatureCalibrator, ece
from ....post.calibration.correctness_aware_calibration import (
    CorrectnessAwareLoss,
    TransformTemperatureCalibrator,
    contrast,
    rotate,
    shift,
)
from ...classify import Arm, small_cnn, train
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, best_setting, check_sane

SEEDS = 7
EPOCHS = 1200
SANITY = 90.0
SHIFTED = ("turned", "noisy")
GRID = (1e-4, 1e-3, 1e-2)
AWARE, SAME, SCALED = "views, correctness-aware", "views, cross-entropy", "temperature scaling"
CLAIMS = (
    Claim(
        "auroc",
        "on shifted data AUROC of confidence against correctness is above temperature scaling by more than 1 point "
        "(1 to 5 expected)",
        size=2.0,
        threshold=1.0,
    ),
    Claim("auroc, same network", "the same network trained with cross-entropy has a lower AUROC there", size=1.0),
    Claim(
        "ece, clean",
        "on clean data ECE differs from that of temperature scaling by less than 1 point",
        size=0.5,
        threshold=1.0,
        greater=False,
        ours=True,
    ),
    Claim("ece, shifted", "on shifted data ECE is below that of temperature scaling (points)", size=1.0, greater=False),
)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    SAME: nn.CrossEntropyLoss(),
    AWARE: CorrectnessAwareLoss(),
}
RATES = {SAME: 1e-4, AWARE: 1e-4}
"""The rate of each network of views: what :func:`choose_rates` gives."""
VIEWS = (partial(rotate, degrees=15.0), partial(shift, down=1, right=0), partial(contrast, factor=0.6))


def data(full: bool, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images ``[N, 1, side, side]`` in [0, 1] and labels: training, calibration, test.

    In float64 at smoke scale, where networks have hardly begun to learn: rounding then swaps no ranks of confidences.
    """
    if full:
        x, y = mnist_10k()
        x, sizes = halved(x), (2000, 3000)
    else:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x, sizes = x / 16.0, (400, 600)
    side = int(x.shape[1] ** 0.5)
    dtype = torch.float32 if full else torch.float64
    images, labels = torch.as_tensor(x, dtype=dtype).reshape(-1, 1, side, side), torch.as_tensor(y).long()
    first, rest = train_test_split(np.arange(len(y)), train_size=sizes[0], stratify=y, random_state=seed)
    second, third = train_test_split(rest, train_size=sizes[1], stratify=y[rest], random_state=seed)
    return images[first], labels[first], images[second], labels[second], images[third], labels[third]


def run(scale: str, seed: int) -> Evidence:
    """AUROC and ECE of each arm on clean and shifted rows."""
    full = scale == "full"
    model, held, tests, y_test = classifier(full, seed)
    views = {name: with_views(name, rate, model, held, EPOCHS if full else 20, seed) for name, rate in RATES.items()}
    with torch.no_grad():
        scaling = TemperatureCalibrator().fit(model(held[0]), held[1])
    rows: list[dict[str, Any]] = []
    for kind, images in tests.items():
        with torch.no_grad():
            logits = model(images)
        answers = {"uncalibrated": logits.softmax(1), SCALED: scaling.transform(logits)}
        for name, calibrator in views.items():
            answers[name] = calibrator.transform(logits, views=calibrator.view_logits(model, images))
        rows += [{"arm": f"{name}, {kind}", **measure(p, y_test)} for name, p in answers.items()]
    by_arm = {str(row["arm"]): row for row in rows}
    if full:
        check_sane("accuracy of the classifier, clean rows", by_arm["uncalibrated, clean"]["accuracy"], SANITY)

    def gap(one: str, two: str, key: str, kinds: Sequence[str]) -> float:
        return float(np.mean([by_arm[f"{one}, {k}"][key] - by_arm[f"{two}, {k}"][key] for k in kinds]))

    effects = {
        "auroc": gap(AWARE, SCALED, "auroc", SHIFTED),
        "auroc, same network": gap(AWARE, SAME, "auroc", SHIFTED),
        "ece, clean": abs(gap(AWARE, SCALED, "ece", ["clean"])),
        "ece, shifted": gap(AWARE, SCALED, "ece", SHIFTED),
    }
    return Evidence(rows, effects)


def classifier(full: bool, seed: int) -> tuple[nn.Module, tuple[Tensor, Tensor], dict[str, Tensor], Tensor]:
    """The trained classifier, calibration rows, test images by kind and their labels."""
    x, y, x_held, y_held, x_test, y_test = data(full, seed)
    arm = Arm("network", CrossEntropyLoss, lr=3e-3)
    flat = (x.flatten(1).numpy(), y.numpy(), x_test.flatten(1).numpy(), y_test.numpy())
    epochs = 12 if full else 2
    train([arm], flat, epochs=epochs, seed=seed, width=64, backbone=small_cnn, dtype=x.dtype, alone=True)
    assert arm.network is not None
    model = nn.Sequential(nn.Flatten(), arm.network).eval()
    noise = torch.randn(x_test.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    tests = {"clean": x_test, "turned": rotate(x_test, 30.0), "noisy": x_test + 0.4 * noise}
    return model, (x_held, y_held), tests, y_test


def with_views(
    name: str, rate: float, model: nn.Module, held: tuple[Tensor, Tensor], epochs: int, seed: int
) -> TransformTemperatureCalibrator:
    """The network of views, fitted to calibration rows with the loss of this arm."""
    calibrator = TransformTemperatureCalibrator(
        VIEWS, loss=LOSSES[name], lr=rate, batch_size=1000, epochs=epochs, seed=seed
    )
    return calibrator.to(held[0].dtype).fit_model(model, *held)


def choose_rates() -> dict[str, float]:
    """The rate with the best mean AUROC on the shifted test sets of two pilot seeds, for each network of views."""
    pilots = {seed: classifier(True, seed) for seed in PILOTS[:2]}

    def auroc(name: str, rate: float, seed: int) -> float:
        model, held, tests, y = pilots[seed]
        calibrator = with_views(name, rate, model, held, 300, seed)
        shifted = [tests[kind] for kind in SHIFTED]
        with torch.no_grad():
            answers = [calibrator.transform(model(x), views=calibrator.view_logits(model, x)) for x in shifted]
        return float(np.mean([measure(p, y)["auroc"] for p in answers]))

    return {name: best_setting(GRID, lambda r, seed, name=name: auroc(name, r, seed), PILOTS[:2]) for name in RATES}


def measure(p: Tensor, y: Tensor) -> dict[str, float]:
    """In per cent."""
    right = p.argmax(1) == y
    return {
        "auroc": 100 * float(roc_auc_score(right.numpy(), p.max(1).values.numpy())),
        "ece": 100 * ece(p, y),
        "accuracy": 100 * float(right.double().mean()),
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """AUROC of the arms on each test set."""
    return bars_figure(evidence, y="auroc")
