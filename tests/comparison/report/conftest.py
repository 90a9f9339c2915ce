"""Results of a made-up comparison, from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

NAMES = [
    "cross_entropy",
    "ldr",
    "harmonic",
    "focal",
    "comp_sum",
    "label_smoothing",
    "ldam",
    "elasticface",
    "anyloss",
    "soft_infonce",
    "poly_loss",
    "generalized_cross_entropy",
    "stablemax",
    "hyperspherical_embedding",
    "dice",
    "pairwise_softmax",
    "groco",
    "mann_whitney",
    "isogclr",
    "decoupled_softmax",
]
REGRESSION = ["squared_error", "absolute_error", "huber", "log_cosh", "quantile"]
CHANCES = ("prob_better", "prob_same", "prob_worse")
EVIL = "<script>alert(1)</script>"


def _interval(centre: float, half: float) -> dict[str, float]:
    return {"mean": centre, "low": centre - half, "high": centre + half}


def _row(name: str, position: int, task: str, random: np.random.Generator) -> dict[str, Any]:
    shift = (0.004, 0.011, -0.021)[position % 3] * random.uniform(0.6, 1.4) if position else 0.0
    half = random.uniform(0.003, 0.008)
    tier = "baseline" if not position else "better" if shift > half else "worse" if shift < -half else "not told apart"
    if task == "regression":
        metrics = {
            "rmse": _interval(52.0 - 300 * shift, 1.4),
            "mae": _interval(41.0 - 200 * shift, 1.1),
            "r2": _interval(0.48 + shift, 0.03),
        }
        shift, half = -300 * shift, 300 * half
    else:
        metrics = {
            "accuracy": _interval(0.968 + shift, 0.006),
            "balanced_accuracy": _interval(0.966 + shift, 0.007),
            "macro_f1": _interval(0.965 + shift, 0.007),
            "log_loss": _interval(0.11 - shift, 0.012),
            "ece": _interval(0.02, 0.004),
        }
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize() + " loss",
        "source": f"arXiv:2301.{10000 + position}; code a/b" if position else "",
        "kind": "objective",
        "tier": tier,
        "difference": shift if position else None,
        "low": shift - half if position else None,
        "high": shift + half if position else None,
        "p": float(random.uniform(0, 0.02)) if tier in ("better", "worse") else 0.3 if position else None,
        "p_holm": 0.045 if tier in ("better", "worse") else 1.0 if position else None,
        "detectable": 1.3 * half if position else None,
        **(dict(zip(CHANCES, random.dirichlet((2, 5, 1)).tolist())) if position else dict.fromkeys(CHANCES)),
        "metrics": metrics,
        "seconds_per_epoch": float(random.uniform(0.03, 0.09)),
        "peak_memory_mb": float(random.uniform(500, 900)),
        "diverged": int(position == 3),
        "settings": f"lr 0.00{1 + position % 9}, weight decay 0.0001, lam {0.1 * position:.1f} (typical choice)",
    }


def build(
    objectives: int = 8,
    classes: int = 10,
    folds: int = 15,
    task: str = "multiclass",
    evil: bool = False,
    seed: int = 0,
    multiples: bool = True,
) -> dict[str, Any]:
    """A results dict of the given size.

    Args:
        objectives, classes, folds, task: its size and kind.
        evil: puts markup into all that a user names.
        seed: of the numbers.
        multiples: with the curves and the reliability of each objective, which take the longest to draw.
    """
    random = np.random.default_rng(seed)
    regression = task == "regression"
    names = REGRESSION[:objectives] if regression else NAMES[:objectives]
    metric = {"name": "accuracy", "label": "Accuracy", "greater_is_better": True}
    if regression:
        metric = {"name": "rmse", "label": "RMSE", "greater_is_better": False}
    rows = [_row(name, position, task, random) for position, name in enumerate(names)]
    procedure = _row("chosen", 1, task, random) | {"title": "The whole procedure", "kind": "procedure"}
    procedure["tier"] = "not told apart"
    svm = _row("svm", 1, task, random) | {"title": "Support vector machine", "kind": "classical", "tier": ""}
    svm |= dict.fromkeys(("difference", "low", "high", "p", "p_holm", *CHANCES, "detectable", "seconds_per_epoch"))
    labels = [] if regression else [f"class {i}" for i in range(classes)]
    columns = [f"pixel {i}" for i in range(64)]
    if evil:
        columns[0] = EVIL
        if labels:
            labels[0] = EVIL
    epochs = np.arange(1, 41)
    recall = {row["name"]: random.uniform(0.7, 1.0, classes).tolist() for row in rows}
    curves, reliability = {}, {}
    for row in rows if multiples else []:
        top = row["metrics"][metric["name"]]["mean"]
        valid = top * (1 - 0.5 * np.exp(-epochs / 5)) + 0.004 * random.standard_normal(40)
        if regression:
            valid = top * (1 + 0.8 * np.exp(-epochs / 5))
        spread = 0.01 * top
        curves[row["name"]] = {
            "epoch": epochs.tolist(),
            "valid": valid.tolist(),
            "low": (valid - spread).tolist(),
            "high": (valid + spread).tolist(),
        }
        confidence = np.linspace(0.15, 0.985, 10)
        reliability[row["name"]] = {
            "confidence": confidence.tolist(),
            "accuracy": np.clip(confidence + 0.07 * random.standard_normal(10), 0, 1).tolist(),
            "count": np.round(2000 * confidence**6).astype(int).tolist(),
            "ece": float(random.uniform(0.01, 0.05)),
            "ece_calibrated": 0.009,
            "temperature": 1.3,
        }
    unit = -300 if regression else 1
    head = {
        "verdict": "not told apart",
        "difference": 0.004 * unit,
        "low": min(-0.001 * unit, 0.009 * unit),
        "high": max(-0.001 * unit, 0.009 * unit),
        "p": 0.11,
        **dict(zip(CHANCES, (0.31, 0.66, 0.03))),
        "detectable": 0.006 * abs(unit),
        "test": f"corrected resampled t test, {folds} differences",
        "baseline": names[0],
        "selected": dict(zip(names[1:4], (folds - 8, 5, 3))),
        "procedure_mean": 0.972 if not regression else 50.8,
        "baseline_mean": 0.968 if not regression else 52.0,
    }
    counts = 9 * np.eye(classes) + random.uniform(0, 1, (classes, classes))
    shares = (counts / counts.sum()).round(6).tolist()
    return {
        "version": "0.1.0",
        "id": "3f2a91c07d44",
        "created": "2026-11-24T10:00:00+00:00",
        "command": f"steepest compare {EVIL if evil else 'digits'} --seed 0",
        "seconds": 312.5,
        "peak_memory_mb": 812.0,
        "machine": {"python": "3.11.9", "platform": "Linux", "processor": "x86_64", "cores": 2, "device": "cpu"},
        "versions": {"steepest": "0.1.0", "torch": "2.13.0", "scikit-learn": "1.9.0", "numpy": "2.4.0"},
        "data": {
            "name": EVIL if evil else "digits",
            "sha256": "9c1185a5c5e9fc54612808977ee8f548b2258d31c0f2b0e1f8d0f5c1a6b0b4aa",
            "rows": 1797,
            "features": 64,
            "columns": columns,
            "target": EVIL if evil else "digit",
            "task": task,
            "classes": labels,
            "class_counts": [int(n) for n in random.integers(40, 400, len(labels))],
            "decisions": ["Numeric columns are standardised on each training split.", "The column ‘id’ is left out."],
            "warnings": ["Class ‘class 3’ has 41 rows: its recall is uncertain."] if labels else [],
        },
        "protocol": {
            "repeats": 3,
            "folds": folds // 3,
            "trials": 8,
            "epochs": 40,
            "patience": 8,
            "metric": metric["name"],
            "model": "MLP 128-128",
            "batch size": 64,
            "optimizer": "AdamW",
            "inner validation": "20%, stratified",
            "seed": 0,
            "noise": "none",
            "workers": 2,
        },
        "metric": metric,
        "rope": {"value": 0.52 if regression else 0.01, "asked": False, "words": "differences up to 0.01"},
        "question": "Does choosing the objective help?",
        "sentence": "Choosing the objective is not told apart from always using the baseline: the difference is "
        "small, and these data do not settle its sign.",
        "headline": head,
        "classical": {
            "sentence": "A support vector machine scores about as high as the best network here.",
            "best": "svm",
            "mean": svm["metrics"][metric["name"]]["mean"],
            "difference": 0.002 * unit,
            "low": min(-0.003 * unit, 0.007 * unit),
            "high": max(-0.003 * unit, 0.007 * unit),
            "p": 0.4,
        },
        "rows": [*rows, procedure, svm],
        "fold_scores": {
            row["name"]: (row["metrics"][metric["name"]]["mean"] + 0.01 * random.standard_normal(folds)).tolist()
            for row in [*rows, procedure, svm]
        },
        "folds": [[place // 5, place % 5] for place in range(folds)],
        "expected": {"by_fold": [names[1]] * folds, **rows[1]["metrics"][metric["name"]]},
        "confusion": None if regression else {"classes": labels, "winner": shares, "baseline": shares},
        "curves": curves,
        "reliability": {} if regression else reliability,
        "recall": None if regression else {"classes": labels, "rows": recall},
        "usage": 'import steepest\n\nmodel = steepest.load("steepest-runs/3f2a91c07d44/model")\nmodel.predict(table)\n',
        "winner": {"objective": names[1], "settings": rows[1]["settings"], "kind": "objective"},
    }


@pytest.fixture(scope="session")
def make_results() -> Callable[..., dict[str, Any]]:
    return build


@dataclass
class Element:
    """An element of a page: its tag, attributes, and what it holds in order, texts among it."""

    tag: str
    attributes: dict[str, str]
    inside: list[Element | str] = field(default_factory=list)

    def all(self, tag: str = "", css: str = "", **attributes: str) -> list[Element]:
        """The elements within it of that tag, class and attributes, in order."""
        return [
            element
            for element in self.elements()
            if tag in ("", element.tag)
            and (not css or css in element.attributes.get("class", "").split())
            and all(element.attributes.get(name) == value for name, value in attributes.items())
        ]

    def one(self, tag: str = "", css: str = "", **attributes: str) -> Element:
        """The only such element."""
        (element,) = self.all(tag, css, **attributes)
        return element

    def elements(self) -> Iterator[Element]:
        for child in self.inside:
            if isinstance(child, Element):
                yield child
                yield from child.elements()

    @property
    def text(self) -> str:
        """All its text, spaces joined."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for child in self.inside:
            yield from (child,) if isinstance(child, str) else child._texts()


class _Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in ("meta", "link", "wbr", "br", "img"):
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("meta", "link", "wbr", "br", "img"):
            return
        assert self.open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


@pytest.fixture(scope="session")
def parsed() -> Callable[[str], Element]:
    """``parsed(html)`` is the root of a page's elements; every element must be closed."""
    return lambda text: _Reader(text).open[0]
