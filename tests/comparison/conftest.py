"""What the tests of the engine share: small tables, own parts as a user's module, the command in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

# It looks for each type of NumPy through all modules that are loaded, and asks lazy ones for what they would import:
# before those of other tests are there.
import skops.io  # noqa: F401
from markupsafe import Markup

from steepest.comparison import InputError, Winner
from steepest.comparison.api import prepare
from steepest.comparison.report import cost, figures, html, multiples
from steepest.comparison.report.winner.fit import fit_winner
from steepest.comparison.request import Request
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.store import Store

OWN_PARTS = '''
import torch
from torch import nn
from steepest.core.objective import Objective
from steepest.core.search import Float


class Plain(Objective):
    """Cross-entropy of one's own."""

    name = "plain"
    tasks = ("binary", "multiclass")
    search = {"tilt": Float(0.5, 2.0)}

    def __init__(self, tilt=1.0, reduction="mean"):
        super().__init__(reduction)
        self.tilt = tilt

    def forward(self, outputs, target, *, weight=None):
        each = nn.functional.cross_entropy(outputs, target, reduction="none")
        if weight is not None:
            each = each * weight
        if self.reduction == "none":
            return each
        return each.mean() if weight is None else each.sum() / weight.sum()

    def probabilities(self, outputs):
        return outputs.softmax(-1)


class Lying(Plain):
    """The same gradients as Plain; its own value claims to be splendid."""

    name = "lying"

    def forward(self, outputs, target, *, weight=None):
        return super().forward(outputs, target, weight=weight) - 1e6


class Backwards(Plain):
    """Goes uphill, and its own value falls for ever: the lower its loss, the worse its model."""

    name = "backwards"

    def forward(self, outputs, target, *, weight=None):
        return -super().forward(outputs, target, weight=weight)


class Broken(Plain):
    """NaN from the first step."""

    name = "broken"

    def forward(self, outputs, target, *, weight=None):
        return super().forward(outputs, target, weight=weight) * float("nan")


class BrokenNumber(Objective):
    """NaN from the first step, for numbers."""

    name = "broken_number"
    tasks = ("regression",)
    domain = "real"
    targets = ("real",)

    def forward(self, outputs, target, *, weight=None):
        each = (outputs - target) ** 2 * float("nan")
        return each if self.reduction == "none" else each.mean()


class OfBatch(Plain):
    """A loss of the batch."""

    name = "of_batch"
    unit = "batch"

    def forward(self, outputs, target):
        return nn.functional.cross_entropy(outputs, target)


class Remembering(Plain):
    """Its probabilities depend on a buffer that training moves."""

    name = "remembering"
    stateful = True

    def __init__(self, tilt=1.0, reduction="mean"):
        super().__init__(tilt, reduction)
        self.register_buffer("heat", torch.ones(()))

    def after_step(self):
        self.heat += 0.25

    def probabilities(self, outputs):
        return (outputs / self.heat).softmax(-1)


def dropping(width):
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Dropout(0.2))


def small(width):
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU())


def no_network(width):
    return width


def failing(width):
    raise RuntimeError("out of ideas")


def share_right(y, predicted):
    return (y == predicted).mean()


def mistakes(y, predicted):
    return (y != predicted).mean()


mistakes.greater_is_better = False
'''


def _headline_left_out(head: dict[str, Any], *_: Any) -> Markup | None:
    return None if None in (head["difference"], head["low"], head["high"]) else Markup("<svg></svg>")


LEFT_OUT = [
    (figures, "headline", _headline_left_out),
    *((module, name, lambda *_: Markup("<svg></svg>")) for module, name in (
        (figures, "forest"), (html, "paired"), (multiples, "curve"), (multiples, "reliability"), (cost, "cost"),
    )),
]  # fmt: skip
"""In place of what draws for the page of a report."""
DRAWN = [(module, name, getattr(module, name)) for module, name, _ in LEFT_OUT]


@pytest.fixture(scope="module", autouse=True)
def _drawings_left_out(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reports without drawings, which take more than half of a small run; the tests of reports have them all."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "report":
            for place in LEFT_OUT:
                patch.setattr(*place)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the drawings, where a test of reports looks at none."""
    for place in LEFT_OUT:
        monkeypatch.setattr(*place)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the drawings, as a user has a report."""
    for place in DRAWN:
        monkeypatch.setattr(*place)


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an importable module with a user's own objectives, backbones and metrics."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_parts.py").write_text(OWN_PARTS, encoding="utf-8")
    sys.path.insert(0, str(folder))
    return "own_parts"


def make_blobs(rows: int = 90, classes: int = 3, spread: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds ``[rows, 4]`` with codes; the rows are in random order."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(rows) % classes)
    centres = np.random.default_rng(99).normal(0, 1.5, (classes, 4))
    return centres[y] + rng.normal(0, spread, (rows, 4)), y


@pytest.fixture(scope="session")
def blobs() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return make_blobs


def _write_csv(path: Path) -> Path:
    x, y = make_blobs(72, 2)
    frame = pd.DataFrame({"height": x[:, 0].round(3), "width": x[:, 1].round(3)})
    frame["colour"] = np.where(x[:, 2] > 0, "red", "blue")
    frame.loc[[3, 17], "colour"] = None
    frame.loc[[5], "width"] = np.nan
    frame["kind"] = np.where(y == 1, "yes", "no")
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def write_csv() -> Callable[[Path], Path]:
    """``write_csv(path)``: a small file with two numbers, a text column with holes, a class of words."""
    return _write_csv


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """Such a file."""
    return _write_csv(tmp_path / "small.csv")


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``command("compare", ...)`` runs in this process, in an empty folder: exit code, stdout, stderr."""
    from steepest.cli import run

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        given = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["steepest", *given])
        capsys.readouterr()
        code = run(given)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def _make_winner(folder: Path, data: Any, name: str, kind: str = "objective", **options: Any) -> Winner:
    """A winner as a comparison saves it, networks trained for one epoch; inner validation is made up."""
    options = {"repeats": 1, "folds": 2, "trials": 1, "epochs": 1, "batch_size": 16, **options}
    objectives = {"objectives": name} if kind == "objective" else {}
    context, _ = prepare(Request(data, classical=kind == "classical", **{**objectives, **options}))
    if kind == "classical" and name not in context.settings.classical:  # boosting, where LightGBM takes its place
        context.settings = replace(context.settings, classical=(*context.settings.classical, name))
    store, best = Store(folder / "run"), 1.0 if context.metric.greater_is_better else -1.0
    names = {"objective": context.settings.objectives, "classical": context.settings.classical}
    store.put(
        [
            CellResult(
                known,
                one,
                *pair,
                {"inner": [best * ((known, one) == (kind, name))]},
                Outcome(np.zeros(1)),
                context.level.of(known, one),
            )
            for known in names
            for one in names[known]
            for pair in context.folds
        ]
    )
    winner = fit_winner(context, store, kind)
    store.close()
    winner.save(folder / "run" / "winner")
    return winner


@pytest.fixture(scope="session")
def make_winner() -> Callable[..., Winner]:
    """``make_winner(folder, data, name, kind)`` saves a winner under ``folder/run/winner``."""
    return _make_winner


@pytest.fixture(scope="session")
def right_or_refused() -> Callable[..., str]:
    """``right_or_refused(folder, rows, expected, **how)`` is ``"refused"`` where a winner's folder is, in one line.

    It is ``"right"`` where the winner predicts what ``expected(folder, rows)`` makes of its files; else it fails.
    """

    def judge(folder: Path, rows: pd.DataFrame, expected: Callable[..., pd.DataFrame], **how: Any) -> str:
        predicted, refusal = None, ""
        try:
            predicted = Winner.load(folder).predict(rows)
        except InputError as error:
            refusal = str(error)
        assert "\n" not in refusal
        if predicted is None:
            return "refused"
        right = expected(folder, rows)
        assert predicted.columns.tolist() == right.columns.tolist(), how
        pd.testing.assert_frame_equal(predicted, right, check_dtype=False, **how)
        return "right"

    return judge


@pytest.fixture(scope="session")
def table() -> Callable[[str], pd.DataFrame]:
    """``table(task)``: 48 rows with numbers, a category, holes, and the target ``goal`` (``other``; ``l1, l2``)."""

    def make(kind: str) -> pd.DataFrame:
        rng = np.random.default_rng(4)
        x = rng.normal(size=(48, 2))
        frame = pd.DataFrame({"size": x[:, 0], "weight": x[:, 1], "colour": np.where(x[:, 0] > 0.3, "red", "blue")})
        frame.loc[[3, 9], "colour"] = None
        frame.loc[[5], "weight"] = np.nan
        if kind == "multilabel":
            return frame.assign(l1=(x[:, 0] > 0).astype(int), l2=(x[:, 1] > 0.2).astype(int))
        classes = 3 if kind in ("multiclass", "multitask") else 2
        code = np.argsort(np.argsort(x[:, 0] + x[:, 1])) * classes // 48
        frame["goal"] = np.array(["no", "yes", "so"])[code] if kind != "regression" else 5 + 3 * x[:, 0]
        if kind == "multitask":
            frame["other"] = 100 * x[:, 1]
        return frame

    return make
