"""Whole comparisons of rankings: lists with grades, what is refused, the folds, the saved winner, the command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import steepest
from steepest.cli import app
from steepest.comparison import InputError, Winner
from steepest.comparison.api import prepare
from steepest.comparison.asked import check_asked
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.objectives import choose_objectives, find_objective, known_objectives, why_not
from steepest.comparison.design.ranking import SHORTLIST, is_pointwise, of_lists
from steepest.comparison.joining import join
from steepest.comparison.metrics.ranking import RankedLists
from steepest.comparison.read import load_table
from steepest.comparison.read.lists import generated_lists
from steepest.comparison.report import report_html
from steepest.comparison.report.stored import check_results
from steepest.comparison.request import Request
from steepest.comparison.work.cells import run_job
from steepest.comparison.work.run import Run
from steepest.comparison.work.store import Store
from steepest.core.list_loss import ListLoss
from steepest.core.objective import TaskInfo

TINY = {"task": "ranking", "epochs": 2, "trials": 1, "folds": 2, "repeats": 1, "batch_size": 200}
RUN = {**TINY, "workers": 1, "quiet": True, "budget": 60}
NAMES = ["squared_error", "listnet", "huber"]


@pytest.fixture(scope="module")
def frame():
    """Lists whose rows are mixed, named by words, beside a group that each lies within."""
    lists = generated_lists(16).sample(frac=1, random_state=0).reset_index(drop=True)
    return lists.assign(shop=lists["list"].str[-1].astype(int) % 5)[["list", "shop", "x1", "x2", "x3", "x4", "grade"]]


@pytest.fixture(scope="module")
def file(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "lists.csv"
    frame.drop(columns="shop").to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def done(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return steepest.compare(file, query="list", objectives="listnet,huber", classical=False, out=out, **RUN)


def context_of(data, **options):
    return prepare(Request(data, **{**TINY, "query": "list", **options}))[0]


def test_losses_of_lists_are_compared_with_pointwise_regression(done):
    results = done.results
    assert [row["name"] for row in results["rows"][1:]] == NAMES
    assert results["metric"] == {"name": "ndcg@10", "label": "NDCG@10", "greater_is_better": True, "best": 1.0}
    assert results["data"]["task"] == "ranking"
    assert results["data"]["columns"] == ["x1", "x2", "x3", "x4"]
    assert set(results["rows"][1]["metrics"]) == {"ndcg@10", "ndcg", "map", "mrr", "kendall", "spearman"}
    assert "grouped folds" in results["protocol"]["outer design"]
    assert "pointwise" in results["protocol"]["losses of numbers"]
    assert any("16" in line and "lists:" in line for line in results["data"]["decisions"])


def test_no_list_is_on_both_sides_of_any_split(frame):
    context = context_of(frame, folds=4)
    queries = context.table.queries
    assert "list" not in context.table.frame.columns
    seen = []
    for pair, fold in context.folds.items():
        assert not {*queries[fold.train]} & {*queries[fold.test]}
        seen += [*fold.test]
        for fit, valid in context.inner(pair):
            assert not {*queries[fit]} & {*queries[valid]}
    assert sorted(seen) == list(range(len(queries)))


def test_a_group_holds_whole_lists(frame):
    context = context_of(frame, group="shop")
    shops = frame["shop"].to_numpy()
    for fold in context.folds.values():
        assert not {*shops[fold.train]} & {*shops[fold.test]}
    other = {"target": "grade"}
    with pytest.raises(InputError, match="group: the list of row 1 has rows of several groups in 'x'"):
        context_of(frame.assign(x=np.arange(len(frame)) % 2), group="x", **other)
    with pytest.raises(InputError, match="time: the list of row 1 has rows of several times"):
        context_of(frame.assign(x=np.arange(len(frame))), time="x", **other)
    by_time = context_of(frame.assign(x=frame["list"].str[1:].astype(int)), time="x", **other)
    for fold in by_time.folds.values():
        queries = by_time.table.queries
        assert not {*queries[fold.train]} & {*queries[fold.test]}


def test_fewer_rows_are_whole_lists_and_lie_within_more(frame):
    context = context_of(frame)
    pair = next(iter(context.folds))
    level = context.level
    parts = [set(context.at(replace(level, rows=rows)).folds[pair].train) for rows in (40, 80)]
    assert [len(part) for part in parts] == [40, 80]
    assert parts[0] < parts[1] < {*context.folds[pair].train}
    queries = context.table.queries
    for part in parts:
        cut = [q for q in {*queries[[*part]]} if not {*np.flatnonzero(queries == q)} <= part]
        assert len(cut) <= 1
    assert context.at(replace(level, rows=40)).level.rows == 40


def test_the_stored_score_is_the_metric_of_the_stored_scores(done, file):
    context, (name, pair) = context_of(file), ("listnet", (0, 1))
    store = Store(done.folder)
    outcome = store.outcome(name, *pair, context.level)
    store.close()
    fold = context.folds[pair]
    y = np.stack([context.table.target[fold.test], context.table.queries[fold.test]], 1)
    value = float(RankedLists.of(y, outcome.predicted).ndcg(10).mean())
    assert done.results["fold_scores"][name][1] == pytest.approx(value, abs=1e-6)


def test_rows_by_themselves_learn_standardised_grades(frame):
    huber = of_lists(find_objective("huber"))
    assert is_pointwise(huber)
    assert huber is of_lists(find_objective("huber"))
    assert not is_pointwise(of_lists(find_objective("listnet")))
    assert of_lists(find_objective("listnet")) is find_objective("listnet")
    info = TaskInfo("ranking", num_samples=5, feature_dim=3)
    head = huber.from_task(info).head(3, info)
    assert head(torch.zeros(5, 3)).shape == (5,)
    context = context_of(frame, objectives="squared_error", epochs=30)
    (cell,) = run_job(context, Job("objective", "squared_error", ((0, 0),)))
    grades = context.table.target
    assert abs(cell.outcome.predicted.mean() - grades.mean()) < 0.5 * grades.std()  # in the units of grades


def test_every_loss_of_numbers_can_learn_row_by_row():
    info = TaskInfo("ranking", num_samples=12, feature_dim=3, epochs=2, steps_per_epoch=1)
    features, grades = torch.randn(12, 3), torch.randn(12)
    names = [name for name, (cls, _) in known_objectives().items() if not why_not(cls, "ranking", False)]
    pointwise = [name for name in names if is_pointwise(of_lists(find_objective(name)))]
    assert {"squared_error", "huber"} < {*pointwise}
    for name in pointwise:
        objective = of_lists(find_objective(name)).from_task(info)
        outputs = objective.head(3, info)(features)
        assert objective.predict(outputs).shape == (12,), name
        if not objective.needs:
            assert objective(outputs, grades).isfinite(), name


def test_which_objectives_there_are():
    names, _ = choose_objectives("default", "ranking")
    assert names == ["squared_error", *SHORTLIST]
    everyone, notes = choose_objectives("all", "ranking")
    assert all(issubclass(find_objective(name), ListLoss) for name in everyone[1:])
    assert {*SHORTLIST} < {*everyone}
    assert notes == []
    with pytest.raises(InputError, match="'focal' does not fit a ranking target"):
        choose_objectives("focal", "ranking")
    with pytest.raises(InputError, match="'listnet' does not fit a regression target"):
        choose_objectives("listnet", "regression")


def test_classical_learners_learn_grades(frame):
    context = context_of(frame, classical=True, objectives="squared_error")
    assert "ridge" in context.settings.classical
    (cell,) = run_job(context, Job("classical", "ridge", ((0, 0),)))
    assert cell.values["score"] > 0.5
    assert cell.outcome.predicted.shape == (len(context.folds[0, 0].test),)


def test_a_winner_that_is_a_classical_learner_ranks_too(frame, tmp_path):
    from steepest.comparison.report.winner.fit import fit_winner

    context = context_of(frame, classical=True, objectives="squared_error")
    run = Run(replace_classical(context, ("ridge",)), tmp_path)
    with run.opened() as store:
        for name, kind in (("squared_error", "objective"), ("ridge", "classical")):
            for pair in context.folds:
                store.put(run_job(run.context, Job(kind, name, (pair,))))
        winner = fit_winner(run.context, store, "classical")
    winner.save(tmp_path / "winner")
    first = winner.predict(frame)
    pd.testing.assert_frame_equal(Winner.load(tmp_path / "winner").predict(frame), first)
    assert list(first.columns) == ["list", "score", "rank"]


def replace_classical(context, names):
    return context.trained_by(replace(context.settings, classical=names))


def test_the_page_draws_lists(done):
    page = done.report.read_text(encoding="utf-8")
    assert 'id="lists"' in page
    assert "Gain of every list" in page
    lists = done.results["lists"]
    assert lists["counted"] + lists["equal"] == 16
    assert [*lists["ndcg"]] == NAMES
    assert [*lists["gains"]] == NAMES[1:]
    for own in lists["gains"].values():
        assert own["values"] == sorted(own["values"])
        assert own["better"] + own["worse"] <= 1
    label, k = lists["label"], lists["depth"].index(10)
    assert label == "NDCG@10"
    for name in NAMES:
        assert lists["ndcg"][name]["mean"][k] == pytest.approx(np.mean(done.results["fold_scores"][name]), abs=1e-5)


def test_results_whose_lists_do_not_fit_are_refused(done):
    lists = done.results["lists"]
    short = {"mean": [0.5], "low": [0.4], "high": [0.6]}
    with pytest.raises(InputError, match=r"lists\.ndcg"):
        check_results({**done.results, "lists": {**lists, "ndcg": {**lists["ndcg"], "huber": short}}})
    assert "NDCG@k" in report_html(done.results)


def test_the_saved_winner_scores_and_ranks(done, frame, tmp_path):
    saved = Winner.load(done.folder)
    predictions = saved.predict(frame)
    assert list(predictions.columns) == ["list", "score", "rank"]
    assert predictions["list"].tolist() == frame["list"].tolist()
    for _, own in predictions.groupby("list"):
        assert sorted(own["rank"]) == list(range(1, len(own) + 1))
        assert own.sort_values("rank")["score"].is_monotonic_decreasing
    other = frame.set_index(np.arange(len(frame)) + 100)
    assert saved.predict(other).index.tolist() == other.index.tolist()
    path = tmp_path / "new.csv"
    frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(saved.predict_file(path), predictions, check_dtype=False)
    alone = saved.predict(frame.drop(columns="list"))
    assert list(alone.columns) == ["score", "rank"]
    assert sorted(alone["rank"]) == list(range(1, len(frame) + 1))
    assert saved.warnings == ["no column 'list': all rows are ranked as one list"]
    with pytest.raises(InputError, match="it gives scores and ranks"):
        saved.predict_proba(frame)


def test_the_command_predicts(done, frame, tmp_path):
    path, to = tmp_path / "new.csv", tmp_path / "out.csv"
    frame.assign(list=[f"0{i % 3}" for i in range(len(frame))]).to_csv(path, index=False)
    result = CliRunner().invoke(app, ["predict", str(done.folder), str(path), "--to", str(to)])
    assert result.exit_code == 0, result.output
    written = pd.read_csv(to, dtype={"list": str})
    assert {*written["list"]} == {"00", "01", "02"}
    assert written.groupby("list")["rank"].max().sum() == len(frame)
    assert "probabilities" not in result.output


def test_others_can_join_and_the_same_call_computes_nothing(done, file, capsys):
    store = Store(done.folder)
    context = join(done.folder.name, store)
    store.close()
    assert context.settings.objectives == tuple(NAMES)
    assert context.table.query_name == "list"
    steepest.compare(
        file,
        query="list",
        objectives="listnet,huber",
        classical=False,
        out=done.folder.parent,
        **{**RUN, "quiet": False},
    )
    assert "nothing is computed" in capsys.readouterr().out


def test_another_query_is_another_run(frame):
    first = context_of(frame, drop="shop")
    second = context_of(frame.assign(shop=frame["list"]), query="shop", drop="list")
    third = context_of(frame, query="shop", drop="list")
    assert Run(first, Path()).folder.name != Run(third, Path()).folder.name
    assert second.table.query_name == "shop"


def test_arrays_take_queries(frame):
    features = frame[["x1", "x2", "x3", "x4"]].to_numpy()
    request = Request(features, frame["grade"].to_numpy(), queries=frame["list"].to_numpy(), **TINY)
    context, _ = prepare(request)
    named = context_of(frame.drop(columns="shop"))
    assert np.array_equal(context.table.target, named.table.target)
    same = pd.crosstab(context.table.queries, named.table.queries)
    assert (same.to_numpy() > 0).sum() == 16


def test_the_built_in_lists_need_no_query():
    table = load_table("lists", task="ranking")
    assert table.query_name == "list"
    assert table.groups is table.queries
    assert len(np.unique(table.queries)) == 240


REFUSED = [
    ({}, "--task ranking: expected --query COLUMN"),
    ({"query": "list", "weight": "x1"}, "--weight does not go with --task ranking"),
    ({"query": "list", "positive": "1"}, "--positive does not go with"),
    ({"query": "list", "rare": "drop"}, "--rare does not go with"),
    ({"query": "list", "test": "x.csv"}, "--test does not go with"),
    ({"query": "list", "noise": 0.1}, "label noise is for classes"),
    ({"query": "list", "prompt": "x"}, "--prompt is for JSON lines"),
    ({"query": "list", "metric": "rmse"}, "metric 'rmse' is for regression, not for ranking"),
    ({"query": "list", "model": "tabm"}, "these are lists; use plain"),
    ({"query": "lists"}, "no column 'lists'; did you mean 'list'"),
    ({"query": "grade"}, "query: 'grade' is the target"),
    ({"query": "list", "target": "grade,x1"}, "expected one column of grades"),
    ({"query": "list", "vary": "aggregator"}, "needs several targets"),
    ({"query": "list", "folds": 20}, "expected at least 20 lists with two different grades for 20 folds, got 1"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_is_refused_by_name(frame, file, options, message):
    def ask():
        request = Request(file, **{**TINY, **options})
        check_asked(request)
        prepare(request)

    with pytest.raises(InputError) as raised:
        ask()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


CELLS = [
    ("list", None, "the query 'list' is missing in 1 row (first: row 4)"),
    ("grade", None, "the grade 'grade' is missing in 1 row (first: row 4)"),
    ("grade", -1, "is -1 in row 4: expected numbers in 0..30"),
    ("grade", 31, "is 31 in row 4: expected numbers in 0..30"),
    ("grade", "good", "holds no numbers"),
]


@pytest.mark.parametrize(("column", "cell", "message"), CELLS)
def test_cells_that_cannot_be_are_named(frame, column, cell, message):
    wrong = frame.astype({column: object})
    wrong.loc[3, column] = cell
    with pytest.raises(InputError) as raised:
        context_of(wrong)
    assert message in str(raised.value)


def test_long_numbers_of_queries_are_exact(frame, tmp_path):
    path = tmp_path / "long.csv"
    names = {name: 1556559573141592653 + i for i, name in enumerate(sorted(frame["list"].unique()))}
    frame.assign(list=frame["list"].map(names)).to_csv(path, index=False)
    table = load_table(path, task="ranking", query="list", target="grade")
    assert len(np.unique(table.queries)) == 16


def test_grades_of_one_value_order_nothing(frame):
    with pytest.raises(InputError, match="has one value only"):
        context_of(frame.assign(grade=2))


def test_a_query_is_for_rankings_and_lists_are_rankings(file):
    for options, message in (
        ({"query": "list"}, "--query is for --task ranking"),
        ({"task": "text", "query": "list"}, "--query is for tables"),
    ):
        with pytest.raises(InputError, match=message):
            check_asked(Request(file, **options))
    with pytest.raises(InputError, match="add --task ranking"):
        check_asked(Request("lists"))
    result = CliRunner().invoke(app, ["lr-find", "lists", "--task", "ranking"])
    assert "lr-find: for classes and numbers" in str(result.exception)


def test_the_optimizer_may_vary(frame):
    context = context_of(frame, vary="optimizer", arms="adamw,sgd", objectives="listnet")
    assert context.settings.objective == "listnet"
    (cell,) = run_job(context, Job("objective", "sgd", ((0, 0),)))
    assert "failed" not in cell.values
    assert cell.values["score"] is not None
