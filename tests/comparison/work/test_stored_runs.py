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
from steepest.comparison.design.jobs import from_json, make_jobs, to_json
from steepest.comparison.request import Request
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.store import Store
from steepest.comparison.work.stored import check_cells, check_plan, read_outcome

Command = Callable[..., tuple[int, str, str]]
Change = Callable[..., None]
CANARY = "steepest_canary"
OPTIONS = {"objectives": "comp_sum", "repeats": 1, "folds": 2, "trials": 2, "epochs": 1, "classical": False}
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
    store.set_facts({"plan": to_json(jobs), "command": "steepest compare x.csv", "cells": 4, "seconds": 1.5})
    store.add(
        [CellResult(job.kind, job.name, *pair, values(context, job.name), PACKED) for job in jobs for pair in job.cells]
    )
    store.close()
    return store.folder


def read_all(folder: Path, context: Context) -> tuple[Any, Any, Any]:
    """What a command that goes on reads before it computes."""
    store = Store(folder)
    try:
        plan = from_json(store.fact("plan"))
        check_plan(plan, context, "run")
        cells = store.cells()
        check_cells(cells, context, "run")
        facts = [store.fact(key) for key in ("command", "cells", "seconds", "sentence")]
        return plan, cells, (facts, [store.outcome(name, *pair) for name in cells for pair in cells[name]])
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
        row, text = rng.choice(connection.execute("select rowid, content from cells").fetchall())
        connection.execute("update cells set content = ? where rowid = ?", (changed(text), row))
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
        plan, cells, rest = found
        assert plan == whole[0], number
        assert {name: set(own) for name, own in cells.items()} == {name: set(own) for name, own in whole[1].items()}
        counts["same" if repr((cells, rest)) == repr(whole[1:]) else "changed"] += 1
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


def test_a_plan_names_no_code(run: Path, context: Context, tmp_path: Path) -> None:
    """``steepest compare`` goes on with the plan of a folder: what stands there is not imported."""
    out = tmp_path / "runs"
    found = steepest.compare(frame(), out=out, workers=1, quiet=True, **OPTIONS)
    store = Store(found.folder)
    plan = store.fact("plan")
    for name in (f"{CANARY}:Loss", "os:system", "focal"):
        store.set_fact("plan", [[plan[0][0], name, plan[0][2]], *plan[1:]])
        with pytest.raises(InputError, match="its plan is not that of these settings"):
            steepest.compare(frame(), out=out, workers=1, quiet=True, **OPTIONS)
    store.set_fact("plan", [*plan, [plan[0][0], f"{CANARY}:Loss", plan[0][2]]])
    with pytest.raises(InputError, match="its plan is not that of these settings"):
        steepest.compare(frame(), out=out, workers=1, quiet=True, **OPTIONS)
    store.set_fact("plan", plan)
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
