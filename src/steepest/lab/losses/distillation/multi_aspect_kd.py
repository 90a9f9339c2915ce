"""Multi-aspect distillation: soft answers to questions about an image make a classifier of few images more accurate.

Set-up of the claim, smaller: scikit-learn's digits, 150 images train, 597 test. Twenty questions of the kind "is there
more ink in the upper half than in the lower" ask whether a statistic of the pixels lies above its median
(:func:`statistics`); a logistic teacher, trained on 1,200 images (the 150 among them), answers each with a probability,
as a multi-modal language model does in the publication. The student is one hidden layer of 64 units with 10 + 20
outputs, 100 epochs of Adam in batches of 32.

Claims, from the card's "+0.5 to +3 points over cross-entropy at this size; with thousands of images the gain shrinks":
accuracy with answers is above cross-entropy's, in points (size: 0.5, the lower end). Controls and expectations of ours:
it is above that of the same outputs trained with the hard labels of the classes, each twice, in place of answers (size:
0.5); the gain is smaller with 1,200 images than with 150 (size: 0.5). alpha = 1; the factor 4 of the published
configuration for pets and answers that are shuffled over the images are further arms.

The baseline is fair: each arm has, at each size, the best of five rates by accuracy on the test rows of three seeds
that are not reported (:func:`choose_rates`). Cross-entropy must reach 85% with 150 images and 95% with 1,200, which
every seed checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from ....losses.distillation.multi_aspect_kd import MultiAspectKDLoss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import UNREPORTED, best_setting, check_sane
from ._taught import Student, accuracies, taught

SEEDS, CLASSES, QUESTIONS, FEW, MANY = 30, 10, 20, 150, 1200
ENTROPY, ANSWERS, LOUD = "cross-entropy", "answers", "answers, alpha 4"
REPEATED, SHUFFLED = "repeated labels", "shuffled answers"
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATES = {
    FEW: {ENTROPY: 3e-3, ANSWERS: 1e-2, LOUD: 1e-2, REPEATED: 3e-3, SHUFFLED: 3e-3},
    MANY: {ENTROPY: 1e-2, ANSWERS: 1e-3},
}
"""By images, the rate of each arm: what :func:`choose_rates` gives."""
SANITY = {FEW: 85.0, MANY: 95.0}
CLAIMS = (
    Claim("gain", "150 images: accuracy with answers is above cross-entropy's, in points", size=0.5),
    Claim(
        "over labels",
        "150 images: accuracy with answers is above that with repeated labels, in points",
        size=0.5,
        ours=True,
    ),
    Claim("shrinks", "the gain with 150 images is above that with 1,200, in points", size=0.5, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Test accuracy of each arm at each size."""
    full = scale == "full"
    rows: list[dict[str, Any]] = []
    right: dict[tuple[str, int], float] = {}
    for images, rates in RATES.items():
        for (arm, rate), accuracy in zip(rates.items(), accuracies_of(list(rates.items()), images, seed, full)):
            rows.append({"arm": f"{arm}, {images} images", "rate": rate, "accuracy": accuracy})
            right[arm, images] = accuracy
    gains = {images: right[ANSWERS, images] - right[ENTROPY, images] for images in RATES}
    if full:
        for images, least in SANITY.items():
            check_sane(f"accuracy of cross-entropy, {images} images", right[ENTROPY, images], least)
    return Evidence(
        rows,
        {
            "gain": gains[FEW],
            "over labels": right[ANSWERS, FEW] - right[REPEATED, FEW],
            "shrinks": gains[FEW] - gains[MANY],
        },
    )


def statistics(images: np.ndarray) -> np.ndarray:
    """Twenty numbers of each image ``[N, 8, 8]``, ink in [0, 1]: where the ink is, symmetry, loops, strokes, slant."""
    ink = images.sum((1, 2)) + 1e-9
    places = np.arange(8) - 3.5
    down, right = images.sum(2) / ink[:, None], images.sum(1) / ink[:, None]  # shares of rows and of columns
    y, x = down @ places, right @ places
    dark = images > 0.3
    crossings = [np.abs(np.diff(np.pad(dark.astype(int), ((0, 0), (1, 1), (1, 1))), axis=axis)) for axis in (1, 2)]
    halves = [slice(0, 4), slice(4, 8)]
    columns = [
        down[:, :4].sum(1) - down[:, 4:].sum(1),
        right[:, :4].sum(1) - right[:, 4:].sum(1),
        ink,
        images[:, 2:6, 2:6].sum((1, 2)),
        images[:, :, 3:5].sum((1, 2)),
        images[:, 3:5].sum((1, 2)),
        *(images[:, rows, cols].sum((1, 2)) for rows in halves for cols in halves),
        np.abs(images - images[:, :, ::-1]).sum((1, 2)),
        np.abs(images - images[:, ::-1]).sum((1, 2)),
        np.abs(images - images[:, ::-1, ::-1]).sum((1, 2)),
        np.array([loops(image) for image in dark], dtype=float),
        crossings[0].sum((1, 2)),
        crossings[1].sum((1, 2)),
        (down * places**2).sum(1) - y**2,
        (right * places**2).sum(1) - x**2,
        np.einsum("nij,i,j->n", images, places, places) / ink - x * y,
        down[:, :2].sum(1) - down[:, 6:].sum(1),
    ]
    return np.stack(columns, 1)


def loops(dark: np.ndarray) -> int:
    """Closed loops: connected parts of the ground that don't reach the border."""
    return int(ndimage.label(~np.pad(dark, 1))[1]) - 1


@cache
def data_of(seed: int, full: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows and labels that don't test, test rows and labels, and the teacher's answers about the former.

    The rows are standardised by the first 150 of them; in float64 at smoke scale.
    """
    pixels, labels = load_digits(return_X_y=True)
    rows = MANY if full else 300
    a, b, y, y_test = train_test_split(pixels / 16, labels, train_size=rows, stratify=labels, random_state=seed)
    numbers = statistics(a.reshape(-1, 8, 8))
    asked = torch.tensor(numbers > np.median(numbers, 0), dtype=torch.float64)
    mean, scale = a[:FEW].mean(0), a[:FEW].std(0)
    x, x_test = (torch.tensor((v - mean) / np.where(scale > 0, scale, 1.0)) for v in (a, b))
    answers = answered(x.clamp(-5, 5), asked, 100 if full else 5)
    dtype = torch.float32 if full else torch.float64
    return x.to(dtype), torch.tensor(y), x_test.to(dtype), torch.tensor(y_test), answers.to(dtype)


def answered(x: Tensor, asked: Tensor, steps: int) -> Tensor:
    """What a logistic regression of each question, with a small ridge, answers about its own rows ``[N, Q]``."""
    weight = torch.zeros(x.shape[1] + 1, asked.shape[1], dtype=x.dtype, requires_grad=True)
    inputs = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(inputs @ weight, asked, reduction="sum")
        loss = loss / len(x) + 1e-3 * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (inputs @ weight).detach().sigmoid()


def accuracies_of(settings: Sequence[tuple[str, float]], images: int, seed: int, full: bool) -> list[float]:
    """Test accuracy of students of 64 hidden units, each with its arm and rate."""
    x, y, x_test, y_test, answers = data_of(seed, full)
    few = images == FEW
    rows = images if full else (50 if few else 100)
    x, y, answers = x[:rows], y[:rows], answers[:rows]
    turned = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    labels = functional.one_hot(y, CLASSES).to(x.dtype).repeat(1, QUESTIONS // CLASSES)
    of_arm = {ENTROPY: answers[:, :0], REPEATED: labels, SHUFFLED: answers[turned]}

    def student(arm: str, rate: float) -> Student:
        own = of_arm.get(arm, answers)
        objective = MultiAspectKDLoss(CLASSES, own.shape[1], 4.0 if arm == LOUD else 1.0)
        return Student(objective, rate, CLASSES + own.shape[1], {"attributes": own})

    stack = taught(
        [student(arm, rate) for arm, rate in settings],
        x,
        y,
        width=64,
        epochs=(100 if few else 40) if full else 2,
        seed=seed,
        batch_size=32 if few else 64,
    )
    return accuracies(stack, x_test, y_test, CLASSES)


def choose_rates() -> dict[int, dict[str, float]]:
    """The rate of each arm with the best mean accuracy over three seeds that are not reported, at each size."""
    pilots = range(UNREPORTED, UNREPORTED + 3)
    chosen: dict[int, dict[str, float]] = {}
    for images, rates in RATES.items():
        settings = [(arm, rate) for arm in rates for rate in GRID]
        right = {seed: dict(zip(settings, accuracies_of(settings, images, seed, True))) for seed in pilots}
        chosen[images] = {
            arm: best_setting(GRID, lambda rate, seed, arm=arm, right=right: right[seed][arm, rate], pilots)
            for arm in rates
        }
    return chosen


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Test accuracy by arm."""
    return bars_figure(evidence, y="accuracy")
