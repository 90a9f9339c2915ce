"""What is finished stays finished."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steepest.comparison.design.deadline import EVER
from steepest.comparison.design.levels import Level
from steepest.comparison.errors import InputError
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.store import Store, find_run, runs

LEVEL = Level(900, 60, 8)
TRIAL = {"scores": [0.25, None], "epochs": [3, 0], "curves": [[1 / 3], [None]], "seconds": 0.5}


def cell(fold: int, name: str = "cross_entropy", score: float = 0.5) -> CellResult:
    outcome = Outcome(np.array([0, 1, 1]), np.full((3, 2), 0.5), np.array([0.1, -0.2, 0.3]))
    values = {"score": score, "inner": [0.1, None]}
    return CellResult("objective", name, 0, fold, values, outcome, LEVEL.text, {1: TRIAL})


def test_cells_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.put([cell(0), cell(1, score=1 / 3)])
    store.close()
    again = Store(tmp_path / "run")
    assert again.finished() == {("cross_entropy", 0, 0, LEVEL.text), ("cross_entropy", 0, 1, LEVEL.text)}
    assert again.cells(LEVEL)["cross_entropy"][0, 1] == {"score": 1 / 3, "inner": [0.1, None], "kind": "objective"}
    assert again.outcome("cross_entropy", 0, 0, LEVEL).predicted.tolist() == [0, 1, 1]
    assert again.outcome("cross_entropy", 0, 0, LEVEL).decision == pytest.approx([0.1, -0.2, 0.3])
    with pytest.raises(KeyError):
        again.outcome("cross_entropy", 0, 7, LEVEL)


def test_the_folder_is_made_with_those_around_it(tmp_path: Path) -> None:
    Store(tmp_path / "runs" / "one").close()
    assert (tmp_path / "runs" / "one" / "run.sqlite").is_file()


def test_tuned_learners_are_those_of_a_number_of_trials(tmp_path: Path) -> None:
    """A cell of a time when it was not tuned is not taken for one that was."""
    store, tuned, stale = Store(tmp_path), cell(0, "forest"), cell(0, "forest")
    for own, level in ((tuned, LEVEL.of("classical", "forest")), (stale, LEVEL.of("classical"))):
        own.kind, own.level, own.trials = "classical", level, {}
    stale.values = {**stale.values, "score": 0.25}
    store.put([tuned, stale])
    fewer, shorter, smaller = Level(900, 60, 4), Level(900, 30, 8), Level(450, 60, 8)
    names = [set(store.cells(level)) for level in (LEVEL, shorter, fewer, smaller)]
    assert names == [{"forest"}, {"forest"}, set(), set()]
    assert store.cells(shorter)["forest"][0, 0]["score"] == tuned.values["score"] != 0.25
    with pytest.raises(KeyError):
        store.outcome("forest", 0, 0, fewer)


def test_cells_and_trials_are_those_of_a_level(tmp_path: Path) -> None:
    """Trials are shared by the levels of their rows and epochs; learners by those of their rows."""
    store = Store(tmp_path)
    learner = cell(0, "knn")
    learner.kind, learner.level, learner.trials = "classical", LEVEL.of("classical"), {}
    store.put([cell(0), learner])
    fewer, shorter, smaller = Level(900, 60, 4), Level(900, 30, 8), Level(450, 60, 8)
    assert [set(store.cells(level)) for level in (LEVEL, fewer, shorter, smaller)] == [
        {"cross_entropy", "knn"}, {"knn"}, {"knn"}, set(),
    ]  # fmt: skip
    assert [store.trials("cross_entropy", (0, 0), level) for level in (LEVEL, fewer, shorter, smaller)] == [
        {1: TRIAL}, {1: TRIAL}, {}, {},
    ]  # fmt: skip
    assert store.trials("cross_entropy", (0, 1), LEVEL) == {}
    with pytest.raises(KeyError):
        store.outcome("cross_entropy", 0, 0, fewer)
    assert store.done == 2


def test_a_run_of_another_format_is_one_line(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "run.sqlite")
    connection.execute("create table cells (name text)")
    connection.close()
    with pytest.raises(InputError, match="was kept by another version of steepest; move its folder away"):
        Store(tmp_path)


def test_a_cell_that_is_computed_again_is_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put([cell(0), cell(1)])
    assert store.counters() == [1, 1]
    store.put([cell(1, score=0.9)])
    assert sorted(store.counters()) == [1, 2]
    assert store.cells(LEVEL)["cross_entropy"][0, 1]["score"] == 0.5, "the first stays"


def test_a_time_without_end_is_kept_and_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.set_facts({"answered": EVER, "ends_at": EVER, "needed": EVER})
    assert [store.fact(key) for key in ("answered", "ends_at", "needed")] == [EVER] * 3


def test_facts_are_json_and_all_or_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.set_facts({"a": [1, None], "b": "x"})
    assert (store.fact("a"), store.fact("b"), store.fact("c")) == ([1, None], "x", None)
    with pytest.raises(ValueError):
        store.set_facts({"a": 2, "b": float("nan")})
    assert store.fact("a") == [1, None]


def test_nothing_of_a_job_is_written_when_a_part_fails(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put([cell(0)])
    bad = cell(2)
    bad.name = None  # type: ignore[assignment]  # violates "not null" after the first row is in
    with pytest.raises(sqlite3.IntegrityError):
        store.put([cell(1), bad])
    assert store.finished() == {("cross_entropy", 0, 0, LEVEL.text)}
    store.put([cell(1)])
    assert store.counters() == [1, 1]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put([cell(0)])
    pages = store.connection.execute("pragma page_count").fetchone()[0]
    store.connection.execute(f"pragma max_page_count = {pages}")  # sqlite's own "database or disk is full"
    big = cell(1)
    big.values["text"] = "x" * 200_000
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.put([big])
    store.close()
    again = Store(tmp_path)
    assert again.finished() == {("cross_entropy", 0, 0, LEVEL.text)}
    assert again.connection.execute("pragma integrity_check").fetchone() == ("ok",)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from steepest.comparison.work.cells import CellResult
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work.store import Store
store = Store(Path(sys.argv[1]))
for fold in range(5):
    store.put([CellResult("objective", "a", 0, fold, {"score": 0.5}, Outcome(np.zeros(3)), "9/9/9")])
store.connection.execute("begin immediate")
store.connection.execute("insert into cells values ('objective', 'b', 0, 0, '9/9/9', 1, '{}', x'00')")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_loses_nothing_that_it_had_finished(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert store.finished() == {("a", 0, fold, "9/9/9") for fold in range(5)}
    assert store.counters() == [1] * 5


def test_a_second_process_on_the_run_is_refused(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "abc"), Store(tmp_path / "abc")
    with (
        first.locked(),
        pytest.raises(InputError, match="run abc is being computed by another process"),
        second.locked(),
    ):
        pass
    with second.locked():
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot keep the run"):
        Store(tmp_path / "file" / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(InputError, match="cannot keep the run"):
        Store(tmp_path / "run")


def begin(folder: Path, at: float) -> None:
    store = Store(folder)
    with store.locked():
        pass
    store.close()
    os.utime(folder / "lock", (at, at))


def test_runs_are_found_by_start_path_and_last(tmp_path: Path) -> None:
    for name, at in (("aa11", 3e8), ("aa22", 5e8), ("bb33", 4e8)):
        begin(tmp_path / name, at)
    assert [p.name for p in runs(tmp_path)] == ["aa22", "bb33", "aa11"]
    assert find_run("last", tmp_path).name == "aa22"
    assert find_run("bb", tmp_path).name == "bb33"
    assert find_run(str(tmp_path / "aa11"), tmp_path).name == "aa11"
    with pytest.raises(InputError, match="fits 2 runs"):
        find_run("aa", tmp_path)
    with pytest.raises(InputError, match="no run 'zz'"):
        find_run("zz", tmp_path)
    with pytest.raises(InputError, match="there are: none"):
        find_run("last", tmp_path / "nowhere")


def test_reading_a_run_does_not_make_it_the_last(tmp_path: Path) -> None:
    begin(tmp_path / "old", 3e8)
    begin(tmp_path / "new", 4e8)
    store = Store(tmp_path / "old")
    store.finished()
    store.close()
    assert find_run("last", tmp_path).name == "new"
