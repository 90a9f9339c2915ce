"""ND loss: a student that also follows the norm and direction of features, against knowledge distillation alone.

Set-up of the claim, smaller: MNIST digits at 14 x 14 pixels in place of Fashion-MNIST; a convolutional teacher (16 and
32 channels, 64 features) trained on 5,000 images (card: 20,000), a student of a quarter of its channels and as many
features on 750 of them (3,000), 4,000 others test. Class means and features are the teacher's, taken before the
classifier, in evaluation mode. The loss is CE + w KD + b ND with T = 4 and w = min(1, epoch / 20). Arms: CE, KD, KD +
ND with b = 1, and with b = 2, which the published code takes where teacher and student have one architecture; and KD
with each half of ND alone (b = 1), without a claim.

Claims, from the card's "KD + ND at least KD by 0 to 1 point" and "mean feature norm higher, mean cosine to e_y higher",
all for b = 1 over the test rows: accuracy is higher (size: 1 point); the mean norm of features is higher, in percent
(size: 5, the card has no number); their mean cosine to the teacher's class mean is higher (size: .02). The same for
accuracy at the published b = 2. Ours: KD is above CE (.3 points in the card's trial). A first record of the same seeds
had half a point for the size of accuracy, but ten seeds find no less than .8; it is changed to 1, the upper end of the
card's and just below the least gain over KD on CIFAR-100 that the published code reports (1.05 to 2.35 points). Nothing
else is changed, no threshold among it.

What was checked of accuracy at b = 2, which is contradicted by a third of a point: the loss agrees with a loop over
samples (the tests), and in the record it does to the features what it should (norm from 19 to 47, the teacher's is 30;
cosine from .29 to .73). Each half alone is no more accurate than KD either (92.8 and 92.8%, KD 92.9%). The
publication has 100 classes, SGD and 240 epochs, which were not tried here.

The baseline is fair: each arm has the best of the rates :data:`GRID` by accuracy over two seeds that are not reported
(:func:`choose_rates`); the teacher must reach 93%, CE 85%. Ten seeds take the place of three.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as nnf

from ....core.teacher_cache import teacher_cache
from ....losses.distillation.knowledge_distillation import distillation_divergence
from ....losses.distillation.nd_loss import NDLoss
from ....nn.networks import Network
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, best_setting, check_sane
from ._students import Data, accuracy, convolutional, fit

SEEDS = 10
TEACHER_ROWS, ROWS, TEST_ROWS = 5000, 750, 4000
TEMPERATURE, WARM_UP, EPOCHS, TEACHER_EPOCHS, BATCH = 4.0, 20, 40, 10, 50
TEACHER_RATE = 2e-3
CE, KD, ND, PUBLISHED = "CE", "KD", "KD + ND", "KD + ND, b = 2"
ARMS: dict[str, tuple[float, float, str]] = {
    CE: (0.0, 0.0, "norm_and_direction"),
    KD: (1.0, 0.0, "norm_and_direction"),
    ND: (1.0, 1.0, "norm_and_direction"),
    PUBLISHED: (1.0, 2.0, "norm_and_direction"),
    "KD + direction": (1.0, 1.0, "direction"),
    "KD + norm": (1.0, 1.0, "norm"),
}
"""Factors of KD and of ND, and which form of ND."""
GRID = (1e-3, 3e-3, 1e-2, 3e-2)
RATES = {CE: 0.01, KD: 0.01, ND: 0.03, PUBLISHED: 0.01, "KD + direction": 0.01, "KD + norm": 0.03}
"""What :func:`choose_rates` gives."""
SANITY = {"teacher": 93.0, CE: 85.0}
CLAIMS = (
    Claim("accuracy", "KD + ND is more accurate than KD (0 to 1 points)", size=1.0),
    Claim("norm", "KD + ND has longer features than KD, in percent", size=5.0),
    Claim("cosine", "KD + ND has a higher cosine between features and the teacher's class means than KD", size=0.02),
    Claim("accuracy, b = 2", "with the published weight of 2 it is more accurate than KD (0 to 1 points)", size=1.0),
    Claim("KD", "KD is more accurate than CE (.3 points)", size=0.3, ours=True),
)


class Lesson(NamedTuple):
    """Data of a student, and what its teacher says of the rows to train."""

    data: Data
    logits: Tensor
    features: Tensor
    class_means: Tensor
    accuracy: float
    norm: float


def run(scale: str, seed: int) -> Evidence:
    """Accuracy, norm and cosine of the features of each arm."""
    full = scale == "full"
    lesson = taught_by(seed, full)
    rows = [measure(arm, student(arm, RATES[arm], seed, full), lesson) for arm in ARMS]
    by_arm = {row["arm"]: row for row in rows}
    if full:
        check_sane("accuracy of the teacher", lesson.accuracy, SANITY["teacher"])
        check_sane("accuracy of CE", float(by_arm[CE]["accuracy"]), SANITY[CE])

    def gain(arm: str, over: str, key: str) -> float:
        return float(by_arm[arm][key]) - float(by_arm[over][key])

    effects = {
        "accuracy": gain(ND, KD, "accuracy"),
        "norm": 100 * gain(ND, KD, "norm") / float(by_arm[KD]["norm"]),
        "cosine": gain(ND, KD, "cosine"),
        "accuracy, b = 2": gain(PUBLISHED, KD, "accuracy"),
        "KD": gain(KD, CE, "accuracy"),
    }
    rows.append({"arm": "teacher", "accuracy": lesson.accuracy, "norm": lesson.norm})
    return Evidence(rows, effects)


def images(seed: int, full: bool, train: int, test: int) -> Data:
    """MNIST digits at 14 x 14 pixels; scikit-learn's at 8 x 8 in float64 at smoke scale, a twentieth of the rows."""
    if full:
        x, y = mnist_10k()
        x = halved(x)
    else:
        x, y = load_digits(return_X_y=True)
        x, train, test = x / 16, train // 20, test // 20
    a, b, ya, yb = train_test_split(x, y, train_size=train, test_size=test, stratify=y, random_state=seed)
    dtype = torch.float32 if full else torch.float64
    return (*_tensors(a, ya, dtype), *_tensors(b, yb, dtype))


def _tensors(x: np.ndarray, y: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(x, dtype=dtype), torch.as_tensor(y).long()


@cache
def taught_by(seed: int, full: bool) -> Lesson:
    """A teacher after its epochs, and what it says of the rows that its students train on."""
    data = images(seed, full, TEACHER_ROWS, TEST_ROWS)
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    net = convolutional(x.shape[1], 16, 64).to(x.dtype)
    fit(
        net.parameters(),
        lambda rows, _: nnf.cross_entropy(net(x[rows]), y[rows]).backward(),
        len(x),
        rate=TEACHER_RATE,
        epochs=TEACHER_EPOCHS if full else 2,
        batch=BATCH,
        seed=seed,
    )
    kinds = ("logits", "features", "class_means")
    cache = teacher_cache(net, [(x, y)], keep=kinds, num_classes=10)
    few = ROWS if full else len(x) // 2  # the rows come shuffled
    with torch.no_grad():
        right, norm = accuracy(net(x_test), y_test), float(net.backbone(x_test).norm(dim=1).mean())
    positions = torch.arange(few)
    return Lesson(
        (x[:few], y[:few], x_test, y_test),
        cache.logits(positions).to(x.dtype),
        cache.features(positions).to(x.dtype),
        cache.class_means().to(x.dtype),
        right,
        norm,
    )


def student(arm: str, rate: float, seed: int, full: bool) -> Network:
    """A student after its epochs; all arms of a seed have one start and the same batches."""
    lesson, (kd, nd, form) = taught_by(seed, full), ARMS[arm]
    x, y = lesson.data[:2]
    torch.manual_seed(seed + 1)
    net = convolutional(x.shape[1], 4, 64).to(x.dtype)
    penalty = NDLoss(lesson.class_means, form=form)

    def gradients(rows: Tensor, epoch: int) -> None:
        features = net.backbone(x[rows])
        outputs = net.head(features)
        loss = nnf.cross_entropy(outputs, y[rows])
        if kd:
            share = kd * min(1.0, epoch / WARM_UP)
            loss = loss + share * distillation_divergence(outputs, lesson.logits[rows], temperature=TEMPERATURE)
        if nd:
            loss = loss + nd * penalty(features, y[rows], lesson.features[rows])
        loss.backward()

    epochs = EPOCHS if full else 3
    fit(net.parameters(), gradients, len(x), rate=rate, epochs=epochs, batch=BATCH, seed=seed)
    return net


@torch.no_grad()
def measure(arm: str, net: Network, lesson: Lesson) -> dict[str, float | str]:
    """Accuracy, and the mean norm of features and their cosine to the teacher's class mean, over the test rows."""
    _, _, x, y = lesson.data
    features = net.backbone(x)
    cosines = nnf.cosine_similarity(features, lesson.class_means[y])
    return {
        "arm": arm,
        "accuracy": accuracy(net.head(features), y),
        "norm": float(features.norm(dim=1).mean()),
        "cosine": float(cosines.mean()),
    }


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the best mean accuracy over two seeds that are not reported."""

    def score(arm: str, rate: float, seed: int) -> float:
        return float(measure(arm, student(arm, rate, seed, True), taught_by(seed, True))["accuracy"])

    return {arm: best_setting(GRID, lambda rate, seed, arm=arm: score(arm, rate, seed), PILOTS[:2]) for arm in ARMS}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy of each arm."""
    rows = [row for one in evidence for row in one.rows if row["arm"] != "teacher"]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="accuracy")
    return drawn
