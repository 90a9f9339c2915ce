"""The saved winner predicts as it did before, from safetensors and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import steepest
from steepest.comparison import Comparison, InputError, Winner
from steepest.comparison.api import prepare
from steepest.comparison.design import levels
from steepest.comparison.design.context import Context
from steepest.comparison.design.deadline import OutOfTime
from steepest.comparison.design.settings import Settings
from steepest.comparison.read import table_from_arrays
from steepest.comparison.report.winner.fit import fit_winner
from steepest.comparison.request import Request
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work import training
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.run import Run
from steepest.comparison.work.store import Store

FAST = {"repeats": 1, "folds": 2, "trials": 2, "epochs": 3, "workers": 1, "classical": False, "quiet": True}


Compared = dict[str, tuple[pd.DataFrame, Comparison]]


def frame_of(blobs: Callable, task: str) -> pd.DataFrame:
    x, y = blobs(80, 3 if task == "multiclass" else 2, spread=2.0)
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["colour"] = np.where(x[:, 0] > 0, "red", "blue")
    frame["goal"] = x @ [1, 2, 3, 4] * 100 if task == "regression" else np.array(["no", "yes", "so"])[y]
    return frame


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, blobs: Callable) -> Compared:
    """For each task its rows and a comparison of them, which no test changes."""
    finished = {}
    for task in ("binary", "multiclass", "regression"):
        frame, names = frame_of(blobs, task), "squared_error,huber" if task == "regression" else "comp_sum"
        out = tmp_path_factory.mktemp(task)
        finished[task] = frame, steepest.compare(frame, target="goal", objectives=names, out=out, **FAST)
    return finished


@pytest.fixture(params=["binary", "multiclass", "regression"])
def finished(request: pytest.FixtureRequest, compared: Compared) -> tuple[str, pd.DataFrame, Comparison]:
    return request.param, *compared[request.param]


def test_saved_and_loaded_predict_the_same_bits(finished: tuple[str, pd.DataFrame, Comparison], tmp_path: Path) -> None:
    task, frame, comparison = finished
    folder = comparison.folder / "winner"
    assert sorted(p.name for p in folder.iterdir()) == ["winner.json", "winner.safetensors"]
    loaded = Winner.load(folder)
    loaded.save(tmp_path / "copy")
    first, again = loaded.predict(frame), Winner.load(tmp_path / "copy").predict(frame)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    pd.testing.assert_frame_equal(comparison.predict(frame), first, check_exact=True)
    assert (folder / "winner.safetensors").read_bytes() == (tmp_path / "copy" / "winner.safetensors").read_bytes()
    if task == "regression":
        assert first.columns.tolist() == ["prediction"]
        assert first["prediction"].std() > 0
        return
    p = first[[c for c in first if c.startswith("p_")]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1)
    assert set(first["prediction"]) <= set(frame["goal"])


def test_a_file_gives_what_a_frame_gives(finished: tuple[str, pd.DataFrame, Comparison], tmp_path: Path) -> None:
    _, frame, comparison = finished
    frame.drop(columns="goal").to_csv(tmp_path / "rows.csv", index=False)
    again = pd.read_csv(tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(comparison.winner.predict_file(tmp_path / "rows.csv"), comparison.predict(again))


def test_two_classes_are_cut_at_the_tuned_threshold(compared: Compared) -> None:
    frame, comparison = compared["binary"]
    winner = Winner.load(comparison.folder / "winner")
    decision = winner.outcome(frame).decision
    for threshold in (winner.facts["threshold"], float(np.median(decision)), 1e9):
        winner.facts["threshold"] = threshold
        expected = np.where(decision > threshold, "yes", "no")
        assert winner.predict(frame)["prediction"].tolist() == expected.tolist()


def test_probabilities_are_after_temperature(compared: Compared) -> None:
    frame, comparison = compared["multiclass"]
    winner = comparison.winner
    raw = np.log(winner.outcome(frame).probabilities) / winner.facts["temperature"]
    cooled = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    np.testing.assert_allclose(winner.predict(frame)[["p_no", "p_so", "p_yes"]], cooled, rtol=1e-6)


def test_what_an_objective_learned_is_saved_with_the_network(blobs: Callable, own: str, tmp_path: Path) -> None:
    x, y = blobs(60, 2)
    context = Context(
        table_from_arrays(x, y),
        Settings(
            objectives=(f"{own}:Remembering",), baseline=f"{own}:Remembering", metric="nll",
            repeats=1, folds=2, trials=1, epochs=2, model=f"{own}:small",
        ),
    )  # fmt: skip
    from steepest.comparison.design.jobs import make_jobs
    from steepest.comparison.work.cells import run_job

    store = Store(tmp_path / "run")
    for job in make_jobs(context):
        store.put(run_job(context, job))
    winner = fit_winner(context, store)
    winner.save(tmp_path / "w")
    assert float(load_file(tmp_path / "w" / "winner.safetensors")["objective.heat"]) > 1
    loaded = Winner.load(tmp_path / "w", trust=True)
    frame = context.table.frame
    assert np.array_equal(loaded.outcome(frame).probabilities, winner.outcome(frame).probabilities)


def test_the_winner_is_fitted_on_all_rows_and_repeats(compared: Compared, tmp_path: Path) -> None:
    frame, first = compared["binary"]
    torch.manual_seed(9)
    second = steepest.compare(frame, target="goal", objectives="comp_sum", out=tmp_path / "b", **FAST)
    assert first.winner.facts == second.winner.facts
    assert first.winner.facts["info"]["num_samples"] == len(frame)
    assert sum(first.winner.facts["info"]["class_counts"]) == len(frame)
    pd.testing.assert_frame_equal(first.predict(frame), second.predict(frame), check_exact=True)


def damaged(folder: Path, how: str) -> None:
    path = folder / "winner.json"
    facts = json.loads(path.read_text())
    if how == "cut":
        path.write_text(path.read_text()[:200])
    elif how == "lacking":
        del facts["preprocessing"]
        path.write_text(json.dumps(facts))
    elif how == "a list":
        path.write_text("[]")
    elif how == "width":
        path.write_text(json.dumps({**facts, "width": 99}))
    elif how == "tensors":
        (folder / "winner.safetensors").write_bytes(b"\xff" * 64)
    elif how == "gone":
        (folder / "winner.safetensors").unlink()


def test_a_damaged_winner_is_one_clear_line(compared: Compared, tmp_path: Path) -> None:
    _, comparison = compared["binary"]
    for how in ("cut", "lacking", "a list", "width", "tensors", "gone"):
        comparison.winner.save(tmp_path / how)
        Winner.load(tmp_path / how)
        damaged(tmp_path / how, how)
        with pytest.raises(InputError, match="winner"):
            Winner.load(tmp_path / how)


def test_a_missing_column_is_named(compared: Compared) -> None:
    frame, comparison = compared["binary"]
    with pytest.raises(InputError, match="have no column 'c'"):
        comparison.predict(frame.drop(columns="c"))


def fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels go down to 20 rows, and a training asks whether its time is over at each step."""
    for name, value in {"FEWEST_ROWS": 20, "ROWS_A_CLASS": 10}.items():
        monkeypatch.setattr(levels, name, value)
    monkeypatch.setattr(training, "SILENT", 0.0)


def test_where_the_time_is_over_the_winner_is_fitted_on_fewer_rows_until_there_is_more(
    blobs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewest(monkeypatch)
    x, y = blobs(100, 2)
    options = {"objectives": "focal", "classical": False, "repeats": 1, "folds": 2, "trials": 1, "epochs": 2}
    options |= {"quiet": True, "workers": 1, "out": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(Run, "fit_ends_at", 0.0)
        first = steepest.compare(x, y, budget="20m", **options)
    assert first.results["basis"]["cut"] == []
    said = "the winner is fitted on 25 rows: the time was over before it was fitted on as many as were compared"
    assert [text for text in first.results["data"]["warnings"] if text.startswith(said)]
    assert first.winner.facts["info"]["num_samples"] == 25
    again = steepest.compare(x, y, budget="20m", **options)  # the same answer
    assert again.winner.facts == first.winner.facts
    more = steepest.compare(x, y, budget="21m", **options)
    assert more.winner.facts["info"]["num_samples"] == 100
    assert not [text for text in more.results["data"]["warnings"] if "the winner is fitted on" in text]
    assert {**more.results["headline"]} == first.results["headline"]


def test_a_learner_is_not_fitted_where_its_cells_say_that_it_takes_too_long(blobs: Callable, tmp_path: Path) -> None:
    x, y = blobs(60, 2)
    context, _ = prepare(Request(x, y, objectives="focal", repeats=1, folds=2, trials=1, epochs=1))
    store = Store(tmp_path / "run")
    store.put(
        [
            CellResult("classical", "lda", *pair, {"inner": [0.9], "seconds": 100.0}, Outcome(np.zeros(1)), level)
            for pair in context.folds
            for level in [context.level.of("classical")]
        ]
    )
    now = time.time()
    with pytest.raises(OutOfTime):
        fit_winner(context, store, "classical", ends_at=now + 60)
    assert fit_winner(context, store, "classical", ends_at=now + 3600).name == "lda"
    fewer = fit_winner(context, store, "classical", rows=20)
    assert fewer.fitted.learners[0].rows == 20
