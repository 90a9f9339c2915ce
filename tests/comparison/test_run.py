"""A comparison from Python; and one that is killed and goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import steepest
from steepest.comparison import InputError, OverBudget
from steepest.comparison.design import resolve
from steepest.comparison.design.context import Context
from steepest.comparison.design.levels import Level
from steepest.comparison.metrics.tables import MULTICLASS
from steepest.comparison.work import schedule, timing
from steepest.comparison.work.classical import learners_of
from steepest.comparison.work.store import Store

FAST = {"repeats": 1, "folds": 2, "trials": 2, "epochs": 2, "workers": 1, "classical": False, "quiet": True}


def test_arrays_own_parts_and_what_comes_back(
    blobs: Callable, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import own_parts  # type: ignore[import-not-found]

    x, y = blobs(60, 3)
    few = {"constant", "lda", "knn"}  # of the learners, which no part of this is about
    known = learners_of("multiclass", 60)
    monkeypatch.setattr(resolve, "classical_learners", lambda *_: [known[name] for name in known if name in few])
    options = {**FAST, "classical": True, "trials": 1}
    names = [own_parts.Plain, "comp_sum"]
    torch.manual_seed(3)
    torch.set_num_threads(2)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), os.environ.get("OMP_NUM_THREADS")  # noqa: NPY002
    found = steepest.compare(
        x, y, objectives=names, metric=own_parts.share_right, model=own_parts.dropping, out=tmp_path, **options
    )
    assert "for cross_entropy (" in found.sentence, "one trial tunes nothing"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.get_num_threads() == 2
    assert os.environ.get("OMP_NUM_THREADS") == before[2]
    board, scores = found.leaderboard, found.fold_scores
    metrics = [found.results["metric"]["name"], *MULTICLASS, "macro_f1_tuned", "ece_calibrated"]
    texts = ["name", "title", "kind", "tier"]
    probabilities = ["prob_better", "prob_same", "prob_worse"]
    numbers = ["difference", "low", "high", "p", "p_holm", *probabilities, "detectable", *metrics]
    costs = ["seconds", "seconds_per_epoch", "peak_memory_mb"]
    assert board.columns.tolist() == [*texts, *numbers, *costs, "diverged", "settings"]
    dtypes = dict.fromkeys([*texts, "settings"], "str") | {"diverged": "int64"}
    assert board.dtypes.astype(str).to_dict() == dict.fromkeys(board.columns, "float64") | dtypes
    assert board[metrics[0]].is_monotonic_decreasing
    assert set(board["kind"]) == {"procedure", "objective", "classical"}
    assert len(scores) == 2
    assert set(scores.columns) == {*board["name"]} - {"selected procedure"}
    by_name = board.set_index("name")
    assert by_name.loc["comp_sum", "settings"] == next(
        row["settings"] for row in found.results["rows"] if row["name"] == "comp_sum"
    )
    trained = by_name.loc[["cross_entropy", "own_parts:Plain", "comp_sum"], "seconds"]
    assert (trained > 0).all()
    assert by_name.loc["selected procedure", "seconds"] == pytest.approx(trained.sum())
    own_row = board[board["name"] == "own_parts:Plain"].iloc[0]
    assert own_row["accuracy"] == pytest.approx(scores["own_parts:Plain"].mean(), abs=1e-5)
    assert own_row["own_parts:share_right"] == pytest.approx(own_row["accuracy"], abs=1e-9)
    assert found.sentence in repr(found)
    assert found.sentence in found._repr_html_()
    assert found.advice == found.results["advice"]
    assert found.advice in found._repr_html_()
    assert found.report.is_file()
    predicted = found.predict(pd.DataFrame(x, columns=["c1", "c2", "c3", "c4"]))
    assert len(predicted) == 60
    assert set(predicted["prediction"]) <= {0, 1, 2}
    assert predicted["prediction"].dtype == y.dtype
    pd.testing.assert_frame_equal(predicted, found.winner.predict(pd.DataFrame(x, columns=["c1", "c2", "c3", "c4"])))


def test_a_frame_and_a_metric_where_smaller_is_better(blobs: Callable, own: str, tmp_path: Path) -> None:
    import own_parts  # type: ignore[import-not-found]

    x, y = blobs(60, 2)
    frame = pd.DataFrame(x, columns=list("abcd")).assign(goal=np.array(["no", "yes"])[y])
    found = steepest.compare(frame, objectives=f"{own}:Backwards", metric=own_parts.mistakes, out=tmp_path, **FAST)
    assert found.results["metric"]["greater_is_better"] is False
    scores = found.fold_scores
    assert scores[f"{own}:Backwards"].mean() > scores["cross_entropy"].mean()
    assert found.results["headline"]["selected"] == {"cross_entropy": 2}  # the lower loss does not win
    assert found.winner.facts["objective"] == "cross_entropy"


def test_a_diverging_objective_ends_as_the_worst(blobs: Callable, own: str, tmp_path: Path) -> None:
    x, y = blobs(60, 2, spread=0.5)
    options = {**FAST, "epochs": 8, "folds": 6}
    found = steepest.compare(x, y, objectives=f"{own}:Broken", metric="accuracy", out=tmp_path, **options)
    row = found.leaderboard.set_index("name").loc[f"{own}:Broken"]
    assert row["tier"] == "worse"
    assert {r["name"]: r["diverged"] for r in found.results["rows"]}[f"{own}:Broken"] == 6 * (2 * 3 + 1)
    assert found.winner.facts["objective"] == "cross_entropy"
    assert np.isfinite(found.fold_scores.to_numpy()).all()
    numbers = steepest.compare(
        x, x @ [3.0, 1.0, 0.0, 0.0], task="regression", objectives=f"{own}:BrokenNumber", out=tmp_path,
        **{**options, "epochs": 20, "trials": 1},
    )  # fmt: skip
    row = numbers.leaderboard.set_index("name").loc[f"{own}:BrokenNumber"]
    assert row["tier"] == "worse"
    assert row["difference"] > 0


def test_weights_refuse_a_loss_of_the_batch(blobs: Callable, own: str, tmp_path: Path) -> None:
    x, y = blobs(60, 2)
    frame = pd.DataFrame(x, columns=list("abcd")).assign(w=1.5, goal=y)
    frame.loc[::2, "w"] = 0.5
    with pytest.raises(InputError, match="'own_parts:OfBatch' does not fit"):
        steepest.compare(frame, objectives=f"{own}:OfBatch", weight="w", out=tmp_path, **FAST)
    assert list(tmp_path.iterdir()) == []
    assert steepest.compare(frame, objectives="comp_sum", weight="w", out=tmp_path, **FAST).sentence


def test_over_budget_trains_nothing(blobs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time_job", lambda context, job: 1e5)
    with pytest.raises(OverBudget, match="over the budget of 1m") as caught:
        steepest.compare(*blobs(60, 2), objectives="comp_sum", budget=1, strict=True, out=tmp_path, **FAST)
    assert caught.value.commands
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thing", [lambda y, p: 0.0, 3, type("Local", (), {})])
def test_what_has_no_name_in_a_module_is_refused(blobs: Callable, tmp_path: Path, thing: object) -> None:
    with pytest.raises(InputError):
        steepest.compare(*blobs(60, 2), objectives="comp_sum", metric=thing, out=tmp_path, **FAST)


# ---- killed, and going on ----

WORDS = [
    "compare", "wine", "--objectives", "comp_sum", "--no-classical", "--repeats", "2", "--folds", "4",
    "--trials", "3", "--workers", "2", "--quiet", "--batch", "8", "--budget", "2h", "--strict",
]  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "steepest", *WORDS, *more], cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # jobs in the background ignore it
    )  # fmt: skip


def finished(folder: Path) -> int:
    """Stored cells, read from outside as the run goes on."""
    files = list((folder / "steepest-runs").glob("*/run.sqlite"))
    if not files:
        return 0
    try:
        connection = sqlite3.connect(f"file:{files[0]}?mode=ro", uri=True, timeout=5)
        try:
            return int(connection.execute("select count(*) from cells").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error:
        return 0


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(own) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def nobody_left(session: int) -> bool:
    deadline = time.monotonic() + 60
    while members(session) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not members(session)


def scores_of(folder: Path) -> dict:
    """Every number of every cell but the costs, and the fitted winner's bytes."""
    (run,) = (folder / "steepest-runs").iterdir()
    store = Store(run)
    costs = ("seconds", "seconds_per_epoch", "peak_memory_mb")
    cells = {n: {p: {k: v for k, v in c.items() if k not in costs} for p, c in own.items()}
             for n, own in store.cells(Level.of_text(store.fact("levels")[0])).items()}  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    keep = ("sentence", "headline", "fold_scores", "curves", "winner", "id")
    return {
        "cells": cells,
        "counters": set(store.counters()),
        "results": {k: results[k] for k in keep},
        "weights": (run / "winner" / "winner.safetensors").read_bytes(),
    }


def kill_and_go_on(folder: Path, kills: int, *more: str) -> tuple[int, int]:
    """SIGKILL the parent so often, in turn at once and right after a cell; gives kills after a cell, and cells."""
    late = 0
    for number in range(kills):
        before = finished(folder)
        process = start(folder, *more)
        deadline = time.monotonic() + (0.3 + 0.25 * (number % 9) if number % 4 == 3 else 300)
        while process.poll() is None and finished(folder) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        late += finished(folder) > before
        if process.poll() is None:
            process.kill()
        process.communicate()
        assert nobody_left(process.pid), f"workers outlived kill {number}"
    return late, finished(folder)


def finish(folder: Path, *more: str) -> None:
    process = start(folder, *more)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert "Choosing the objective" in out


def check_kills(tmp_path: Path, kills: int, *more: str) -> None:
    hurt, whole = tmp_path / "hurt", tmp_path / "whole"
    hurt.mkdir()
    whole.mkdir()
    late, cells = kill_and_go_on(hurt, kills, *more)
    assert late >= kills / 2
    finish(hurt, *more)
    finish(whole, *more, "--workers", "1")  # nor do the workers matter
    found, expected = scores_of(hurt), scores_of(whole)
    assert found["counters"] == {1}
    assert found == expected
    assert 0 < cells < sum(map(len, found["cells"].values()))


@pytest.mark.slow
def test_eight_kills_change_nothing(tmp_path: Path) -> None:
    """Two rounds of :func:`kill_and_go_on`; each start costs as much as many cells."""
    check_kills(tmp_path, 8, "--epochs", "8", "--folds", "5", "--repeats", "2")


@pytest.mark.slow  # processes
def test_worker_processes_before_a_deadline_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it matter whether the budget was enlarged on the way."""
    monkeypatch.setattr(schedule, "ALONE", 0.0)  # processes start for little work too
    monkeypatch.setattr(schedule, "SPAWN", 0.0)
    processes = []

    class Counted(schedule.Executor):
        def __init__(self, context: Context, workers: int) -> None:
            processes.append(workers)
            super().__init__(context, workers)

    monkeypatch.setattr(schedule, "Executor", Counted)
    options = {"objectives": "comp_sum", "classical": False, "folds": 3, "repeats": 2, "trials": 2, "epochs": 4}

    def compared(name: str, *budgets: str, workers: int) -> dict:
        for budget in budgets:
            (tmp_path / name).mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / name)
            steepest.compare("wine", budget=budget, workers=workers, quiet=True, **options)
        return scores_of(tmp_path / name)

    alone = compared("alone", "5m", workers=1)
    assert compared("together", "5m", workers=2) == alone
    enlarged = compared("enlarged", "6s", "5m", workers=2)
    assert (enlarged["cells"], enlarged["counters"]) == (alone["cells"], {1})
    assert {"comp_sum", "cross_entropy"} <= set(alone["cells"])
    assert {len(own) for own in alone["cells"].values()} == {6}
    assert processes == [1, 2, 2, 2]


@pytest.mark.slow
def test_ctrl_c_is_130_one_line_and_goes_on(tmp_path: Path) -> None:
    options = ("--epochs", "40", "--patience", "40", "--folds", "4", "--repeats", "2")
    process = start(tmp_path, *options)
    while process.poll() is None and finished(tmp_path) == 0:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err == "steepest: interrupted; what is finished is kept, and the same command goes on\n"
    assert nobody_left(process.pid)
    kept = finished(tmp_path)
    assert kept > 0
    finish(tmp_path, *options)
    assert scores_of(tmp_path)["counters"] == {1}


@pytest.mark.slow  # processes
def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """Worker processes do not run the caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import steepest\n"
        "print('once')\n"
        "done = steepest.compare('iris', objectives='squentropy', classical=False, trials=1, epochs=1, repeats=1,\n"
        f"                        folds=3, workers=2, budget=500, strict=True, quiet=True,\n"
        f"                        out={str(tmp_path / 'runs')!r})\n"
        "print(done.sentence, __file__)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("once") == 1
    assert "Choosing the objective" in done.stdout
