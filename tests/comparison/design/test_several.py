"""Several targets: reading, metrics against scikit-learn, the sum of objectives, whole comparisons."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

import steepest
from steepest.comparison.api import prepare
from steepest.comparison.design.several import SeveralFactory, counts_of, target_scale
from steepest.comparison.errors import InputError
from steepest.comparison.metrics.several import MULTILABEL, multitask_metrics
from steepest.comparison.metrics.tables import metric_of
from steepest.comparison.parts import Part
from steepest.comparison.read import load_table
from steepest.comparison.request import Request
from steepest.comparison.scores.outcome import Outcome
from steepest.core.objective import TaskInfo
from steepest.losses import SquaredErrorLoss, SquentropyLoss

RNG = np.random.default_rng(3)
PARTS = (Part("size", "regression"), Part("kind", "multiclass", ("a", "b", "c")), Part("sick", "binary", ("0", "1")))


def write(tmp_path, frame):
    file = tmp_path / "table.csv"
    frame.to_csv(file, index=False)
    return str(file)


def labels_frame(rows=60):
    x = RNG.normal(size=(rows, 3))
    frame = pd.DataFrame(x, columns=["u", "v", "w"])
    for name, column in zip("abc", x.T):
        frame[name] = (column > 0).astype(int)
    return frame


def test_columns_of_zeros_and_ones_are_label_sets(tmp_path):
    frame = labels_frame()
    table = load_table(write(tmp_path, frame), target="a,c")
    assert (table.task, table.classes, table.target_name) == ("multilabel", ("a", "c"), "a, c")
    assert (table.target == frame[["a", "c"]].to_numpy()).all()
    assert list(table.frame.columns) == ["u", "v", "w", "b"]


def test_a_mix_of_targets_is_multitask(tmp_path):
    frame = labels_frame().assign(kind=np.array(["x", "y", "z"])[RNG.integers(0, 3, 60)])
    table = load_table(write(tmp_path, frame), target=["u", "kind", "a"])
    assert table.task == "multitask"
    assert [(p.name, p.task, p.classes) for p in table.parts] == [
        ("u", "regression", ()),
        ("kind", "multiclass", ("x", "y", "z")),
        ("a", "binary", ("0", "1")),
    ]
    assert np.allclose(table.target[:, 0], frame["u"])
    assert (np.array(["x", "y", "z"])[table.target[:, 1].astype(int)] == frame["kind"]).all()


def test_a_name_with_a_comma_is_one_target(tmp_path):
    frame = labels_frame().rename(columns={"c": "c,d"})
    assert load_table(write(tmp_path, frame), target="c,d").task == "binary"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a,zz", "no column 'zz'"),
        ("a,rare", "'rare' has 2 positive rows of 60"),
        ("u,missing", "'missing' is missing in"),
    ],
)
def test_bad_targets_are_one_line(tmp_path, target, message):
    frame = labels_frame().assign(rare=[1, 1] + [0] * 58, missing=[None] + [1.5, 2.5] * 29 + [1.0])
    if "rare" in target:
        frame["rare"] = [1, 1, *[0] * 58]
    with pytest.raises(InputError, match=message) as caught:
        load_table(write(tmp_path, frame), target=target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weighted", [False, True])
def test_label_metrics_agree_with_scikit_learn(weighted):
    y = RNG.integers(0, 2, (80, 4))
    scores = RNG.normal(size=(80, 4)) + y
    p = 1 / (1 + np.exp(-scores))
    outcome = Outcome((scores > 0).astype(int), p, scores)
    w = RNG.uniform(0.1, 2, 80) if weighted else None
    wanted = {
        "average_precision": sk.average_precision_score(y, scores, average="macro", sample_weight=w),
        "auroc": sk.roc_auc_score(y, scores, average="macro", sample_weight=w),
        "macro_f1": sk.f1_score(y, scores > 0, average="macro", sample_weight=w),
        "exact_match": sk.accuracy_score(y, scores > 0, sample_weight=w),
        "nll": np.mean([sk.log_loss(y[:, k], p[:, k], sample_weight=w) for k in range(4)]),
    }
    for name, value in wanted.items():
        assert MULTILABEL[name](y, outcome, w) == pytest.approx(value, rel=1e-9), name


def test_mean_score_is_the_mean_of_r2_and_accuracies():
    y = np.column_stack([RNG.normal(size=50), RNG.integers(0, 3, 50), RNG.integers(0, 2, 50)])
    said = y + np.column_stack([RNG.normal(size=50), np.zeros(50), np.r_[np.zeros(40), np.ones(10)]])
    said[:, 2] %= 2
    found = {name: metric(y, Outcome(said)) for name, metric in multitask_metrics(PARTS).items()}
    assert found["r2 of size"] == pytest.approx(sk.r2_score(y[:, 0], said[:, 0]))
    assert found["accuracy of kind"] == 1.0
    assert found["accuracy of sick"] == pytest.approx(0.8)
    assert found["mean_score"] == pytest.approx((found["r2 of size"] + 1.8) / 3)


def test_the_loss_is_the_plain_sum_of_the_members():
    info = TaskInfo("multitask", 40, 6, (20, 12, 8, 30, 10), feature_dim=5, epochs=3, steps_per_epoch=2)
    factory = SeveralFactory(SquentropyLoss, PARTS, lambda task: SquaredErrorLoss)
    loss = factory.from_task(info)
    outputs = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.5, 2, 1], [1, 0, 0], [0, 1, 1], [2, 2, 0], [1, 1, 1], [0, 0, 0], [3, 2, 1]])
    found = loss(outputs, target.double())
    wanted = (
        SquaredErrorLoss()(outputs[:, 0], target[:, 0].double())
        + SquentropyLoss()(outputs[:, 1:4], target[:, 1].long())
        + SquentropyLoss()(outputs[:, 4:], target[:, 2].long())
    )
    assert torch.allclose(found, wanted, rtol=1e-12)
    assert loss.head(5, info)(torch.randn(7, 5)).shape == (7, 6)
    assert loss.predict(outputs).tolist() == [
        [o[0], float(np.argmax(o[1:4])), float(np.argmax(o[4:]))] for o in outputs.tolist()
    ]


def test_scaling_touches_numbers_only():
    y = np.array([[1.0, 0], [3.0, 2], [5.0, 1]])
    scaled, (mean, deviation) = target_scale(y, "multitask", PARTS[:2])
    assert np.allclose(scaled * deviation + mean, y)
    assert np.allclose(scaled[:, 0].mean(), 0)
    assert (scaled[:, 1] == y[:, 1]).all()


def test_counts():
    y = torch.tensor([[0.1, 2, 1], [0.3, 2, 0], [0.2, 0, 0]])
    assert counts_of(y, "multitask", 0, PARTS) == (1, 0, 2, 2, 1)
    assert counts_of(torch.tensor([[1.0, 0], [1.0, 0]]), "multilabel", 2, ()) == (2, 0)
    assert TaskInfo("multilabel", 2, 2, (2, 0)).class_counts == (2, 1)  # what objectives divide by


def test_unknown_metric(tmp_path):
    table = load_table(write(tmp_path, labels_frame()), target="a,b")
    with pytest.raises(InputError, match="did you mean 'auroc'"):
        metric_of("auroq", table)


SMALL = {"trials": 2, "epochs": 3, "repeats": 1, "folds": 3, "workers": 1, "quiet": True, "budget": 60}


@pytest.mark.slow  # every classical learner, once a label
def test_a_multilabel_comparison(tmp_path):
    frame = labels_frame(90)
    done = steepest.compare(frame[["u", "v", "w"]], frame[["a", "b", "c"]], out=tmp_path, **SMALL)
    assert done.results["data"]["task"] == "multilabel"
    assert done.results["headline"]["baseline"] == "binary_cross_entropy"
    assert {"binary_cross_entropy", "asymmetric", "forest", "svm"} <= set(done.leaderboard["name"])
    assert done.results["classical"] is not None
    assert done.results["metric"]["name"] == "average_precision"
    assert done.report.is_file()
    found = done.predict(frame.head(5))
    assert list(found.columns) == ["a", "b", "c", "p_a", "p_b", "p_c"]
    assert set(found["a"]) <= {0, 1}


def test_a_label_that_is_absent_from_a_test_part_does_not_count_there(tmp_path):
    frame = labels_frame(60)
    frame["c"] = (np.arange(60) < 4).astype(int)
    options = {**SMALL, "folds": 4, "epochs": 2, "trials": 1, "classical": False, "objectives": "asymmetric"}
    given = frame[["u", "v", "w"]], frame[["a", "b", "c"]]
    context, _ = prepare(Request(*given, **{name: options[name] for name in ("folds", "repeats", "classical")}))
    assert [int(frame["c"].iloc[fold.test].sum()) for fold in context.folds.values()].count(0) == 1
    done = steepest.compare(*given, out=tmp_path, **options)
    assert done.report.is_file()
    assert done.results["data"]["task"] == "multilabel"
    assert done.results["headline"]["baseline"] == "binary_cross_entropy"
    assert done.results["metric"]["name"] == "average_precision"
    assert list(done.predict(frame.head(5)).columns) == ["a", "b", "c", "p_a", "p_b", "p_c"]
    assert bool((done.fold_scores > 0.3).all(axis=None))


def test_ranking_metrics_are_means_over_labels_with_both_values():
    y = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    outcome = Outcome(y, None, np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.7, 0.2, 0.3], [0.1, 0.3, 0.4]]))
    assert MULTILABEL["average_precision"](y, outcome, None) == pytest.approx((1 + 2 / 3) / 2)
    assert MULTILABEL["auroc"](y, outcome, None) == pytest.approx(0.75)
    nowhere = Outcome(y[:, 1:], None, outcome.decision[:, 1:])
    assert MULTILABEL["auroc"](y[:, 1:], nowhere, None) == -np.inf


def test_a_multitask_comparison(tmp_path):
    frame = labels_frame(90).assign(y=lambda f: 3 * f["u"] + 1)
    done = steepest.compare(
        frame[["u", "v", "w", "y", "a"]], target="y,a", objectives="squentropy,huber", out=tmp_path, **SMALL
    )
    assert done.results["metric"]["name"] == "mean_score"
    assert set(done.fold_scores) == {"cross_entropy", "squentropy", "huber"}
    rows = {row["name"]: row["metrics"] for row in done.results["rows"]}
    assert rows["huber"]["r2 of y"]["mean"] > 0
    found = done.predict(frame)
    assert found["y"].dtype.kind == "f"
    assert set(found["a"]) <= {0, 1}


def test_only_numbers_have_squared_error_for_a_baseline(tmp_path):
    frame = labels_frame(60).assign(y=lambda f: f["u"], z=lambda f: f["v"] * 2)
    options = {**SMALL, "folds": 2, "trials": 1, "objectives": "huber"}
    done = steepest.compare(frame[["u", "v", "w", "y", "z"]], target="y,z", out=tmp_path, **options)
    assert done.results["headline"]["baseline"] == "squared_error"
