"""The file of a run from anywhere: what cannot be this run's is refused in one line, and nothing in it is imported."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import steepest
from steepest.comparison import InputError
from steepest.comparison.api import prepare
from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import make_jobs
from steepest.comparison.request import Request
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.store import Store
from steepest.comparison.work.stored import check_cells, read_outcome

Command = Callable[..., tuple[int, str, str]]
Change = Callable[..., None]
CANARY = "steepest_canary"
OPTIONS = {"objectives": "comp_sum", "repeats": 1, "folds": 2, "trials": 2, "epochs": 1, "classical": False}
TRIAL = {
    "scores": [0.1], "epochs": [1], "curves": [[0.5]], "seconds": 0.1, "point": {"threshold": 0.0, "temperature": 1.0},
}  # fmt: skip
PACKED = Outcome(np.array([0, 1, 1]), np.full((3, 2), 0.5), np.array([0.1, -0.2, 0.3]))


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    return pd.DataFrame(x, columns=["u", "v"]).assign(goal=np.where(x[:, 0] > 0, "P", "N"))


@pytest.fixture(scope="module")
def context() -> Context:
    return prepare(Request(frame(), **OPTIONS))[0]


def values(context: Context, name: str) -> dict[str, Any]:
    return {
        "score": 0.5, "metrics": {"accuracy": 0.5, "ece": None}, "inner": [0.1, None], "recall": [0.5, 0.5],
        "threshold": 0.0, "temperature": 1.0, "trial": 0, "trial_text": "lr 0.001", "epochs": 1, "inner_epochs": [1.0],
        "curve": [0.5], "diverged": 0, "seconds": 0.1, "seconds_per_epoch": 0.1, "peak_memory_mb": 100.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(context: Context, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose cells are made up."""
    store = Store(tmp_path_factory.mktemp("stored") / "run")
    jobs = make_jobs(context)
    course = {"level": context.level.text, "objectives": ["comp_sum"], "repeats": 1, "last": [], "learners": []}
    course |= {"budget": 60.0, "fixed": True}
    store.set_facts({"course": course, "command": "steepest compare x.csv", "cells": 4, "seconds": 1.5})
    store.put(
        [
            CellResult(job.kind, job.name, *pair, values(context, job.name), PACKED, context.level.text, {0: TRIAL})
            for job in jobs
            for pair in job.cells
        ]
    )
    store.close()
    return store.folder


def read_all(folder: Path, context: Context) -> tuple[Any, Any]:
    """What a command that goes on reads before it computes."""
    store = Store(folder)
    try:
        cells = store.cells(context.level)
        trials = [store.trials(name, pair, context.level) for name in cells for pair in cells[name]]
        check_cells(cells, context, "run")
        facts = [store.fact(key) for key in ("course", "command", "cells", "seconds", "sentence")]
        outcomes = [store.outcome(name, *pair, context.level) for name in cells for pair in cells[name]]
        return cells, (facts, trials, outcomes)
    finally:
        store.close()


def change_run(folder: Path, rng: random.Random, change: Change) -> None:
    """One change in the file of a run."""
    file = folder / "run.sqlite"
    kind = rng.randrange(6)
    if kind == 0 and rng.random() < 0.3:
        data = bytearray(file.read_bytes())
        for _ in range(20):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data)
        return
    connection = sqlite3.connect(file)

    def changed(text: str) -> str:
        tree = [json.loads(text)]
        change(tree, rng)
        return json.dumps(tree[0]) if tree else ""

    if kind == 1:
        key, text = rng.choice(connection.execute("select key, value from facts").fetchall())
        connection.execute("update facts set value = ? where key = ?", (changed(text), key))
    elif kind in (2, 3):
        table = ("cells", "trials")[kind - 2]
        row, text = rng.choice(connection.execute(f"select rowid, content from {table}").fetchall())
        connection.execute(f"update {table} set content = ? where rowid = ?", (changed(text), row))
    elif kind == 4:
        column = rng.choice(["kind", "name", "repeat", "fold", "content"])
        value = rng.choice([b"\xff", "x", 3, -1, 1.5, f"{CANARY}:Loss", "9" * 30])
        connection.execute(f"update or ignore cells set {column} = ? where rowid = 1", (value,))
    else:
        row, data = rng.choice(connection.execute("select rowid, outcome from cells").fetchall())
        place = rng.randrange(len(data))
        other = rng.choice([data[:place], data[:place] + b"\x07" + data[place + 1 :], b"", "text", packed_objects()])
        connection.execute("update cells set outcome = ? where rowid = ?", (other, row))
    connection.commit()
    connection.close()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, (CANARY,)


def packed_objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, predicted=np.array([Evil()], dtype=object))
    return buffer.getvalue()


def outcomes(run: Path, context: Context, numbers: range, folder: Path, change: Change) -> dict[str, int]:
    counts = {"refused": 0, "same": 0, "changed": 0}
    whole = read_all(run, context)
    for number in numbers:
        rng, copied = random.Random(number), folder / "changed"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(run, copied)
        change_run(copied, rng, change)
        found, refusal = None, ""
        try:
            found = read_all(copied, context)
        except InputError as error:
            refusal = str(error)
        assert "\n" not in refusal
        if found is None:
            counts["refused"] += 1
            continue
        names = context.settings.objectives
        assert all(name in names and set(own) <= set(context.folds) for name, own in found[0].items()), number
        counts["same" if repr(found) == repr(whole) else "changed"] += 1
    assert CANARY not in sys.modules
    return counts


def test_changed_runs_are_refused_or_read_as_they_are(
    run: Path, context: Context, tmp_path: Path, change: Change
) -> None:
    counts = outcomes(run, context, range(100), tmp_path, change)
    assert min(counts["refused"], counts["changed"]) > 0, counts


@pytest.mark.slow
def test_two_thousand_changed_runs(run: Path, context: Context, tmp_path: Path, change: Change) -> None:
    counts = outcomes(run, context, range(2000), tmp_path, change)
    print(f"\n2,000 changed runs: {counts}")


def test_what_was_decided_names_no_code(tmp_path: Path) -> None:
    """``steepest compare`` goes on with what stands in a folder: names in it are not imported, cells are checked."""
    out = tmp_path / "runs"
    found = steepest.compare(frame(), out=out, workers=1, quiet=True, **OPTIONS)
    store = Store(found.folder)
    course = store.fact("course")
    names = [f"{CANARY}:Loss", "os:system", "focal"]
    store.set_fact("course", {**course, "objectives": names, "last": names})
    store.connection.execute("delete from cells where fold = 0 and name = 'comp_sum'")
    assert steepest.compare(frame(), out=out, workers=1, quiet=True, **OPTIONS).sentence == found.sentence
    store.connection.execute("update cells set content = json_remove(content, '$.curve') where fold = 0")
    with pytest.raises(InputError, match="'curve' is missing; move the folder away"):
        steepest.compare(frame(), out=out, workers=1, quiet=True, **OPTIONS)
    store.close()
    assert CANARY not in sys.modules


def test_an_outcome_is_not_unpickled_and_takes_no_memory() -> None:
    with pytest.raises(InputError, match="outcome"):
        read_outcome(packed_objects(), "outcome")
    with pytest.raises(InputError, match="outcome"):
        read_outcome(pickle.dumps(Evil()), "outcome")
    assert CANARY not in sys.modules
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("predicted.npy", header.getvalue())
    with pytest.raises(InputError, match="predicted: expected 8,000,000,000,000 bytes of float64, got '0'"):
        read_outcome(buffer.getvalue(), "outcome")


def test_probabilities_that_are_none_are_refused() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, predicted=np.arange(3), probabilities=np.arange(6.0).reshape(3, 2))
    with pytest.raises(InputError, match=r"^outcome: probabilities: expected probabilities in 0..1"):
        read_outcome(buffer.getvalue(), "outcome")


def test_arrays_come_back_in_their_order() -> None:
    cell = CellResult(
        "objective", "a", 0, 0, {}, Outcome(np.arange(3), np.asfortranarray(np.arange(6).reshape(3, 2) / 8))
    )
    back = read_outcome(cell.arrays(), "outcome")
    assert back.probabilities.tolist() == [[0.0, 0.125], [0.25, 0.375], [0.5, 0.625]]
    assert back.predicted.tolist() == [0, 1, 2]


def test_a_damaged_run_is_one_line_among_others(command: Command, run: Path, tmp_path: Path) -> None:
    home = tmp_path / "steepest-runs"
    shutil.copytree(run, home / "good")
    shutil.copytree(run, home / "bad")
    (home / "bad" / "run.sqlite").write_bytes(b"no database" * 100)
    store = Store(home / "good")
    store.set_facts({"data": "a\x1b[2Jb", "sentence": "two\nlines"})
    store.close()
    code, out, err = command("runs")
    assert (code, err) == (0, "")
    assert sorted(out.splitlines())[0].startswith("bad  cannot be read: ")
    assert sorted(out.splitlines())[1] == "good  a [2Jb  4/4 cells  two lines"
    code, out, err = command("report", "bad")
    assert (code, out, err.count("\n")) == (2, "", 1)
