"""Processes that join a run, and are killed: every cell is computed, none is twice in the result, bits stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from steepest.comparison.design.levels import Level
from steepest.comparison.work.postgres import latest_run, postgres_runs, schema_of
from steepest.comparison.work.store import Store, open_store

COSTS = ("seconds", "seconds_per_epoch", "peak_memory_mb")
WORDS = [
    "compare", "wine", "--objectives", "comp_sum", "--no-classical", "--repeats", "1", "--folds", "5", "--trials", "3",
    "--epochs", "20", "--patience", "20", "--batch", "8", "--workers", "1", "--quiet", "--budget", "2h", "--strict",
]  # fmt: skip
CELLS = 10


def cells_of(store: Store) -> dict[str, Any]:
    """Every number of every cell but the costs, its outcome, and how often it was computed."""
    level = Level.of_text(store.fact("levels")[0])
    cells = {
        (name, pair): {k: v for k, v in values.items() if k not in COSTS}
        for name, own in store.cells(level).items()
        for pair, values in own.items()
    }
    outcomes = {cell: store.outcome(cell[0], *cell[1], level).probabilities.tobytes() for cell in cells}
    return {"cells": cells, "outcomes": outcomes}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = subprocess.run([sys.executable, "-m", "steepest", *WORDS], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "steepest-runs").iterdir()
    with Store(run) as store:
        found = cells_of(store)
    return {**found, "weights": (run / "winner" / "winner.safetensors").read_bytes()}


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen]]:
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        if process.poll() is None:
            kill(process)


def start(started: list[subprocess.Popen], folder: Path, *words: str) -> subprocess.Popen:
    """A process in a folder of its own, with caches of its own: another machine, as far as one can play it."""
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "steepest", *words], cwd=folder, env=environment, start_new_session=True,
        stdout=(folder / "out").open("a"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    started.append(process)
    return process


def kill(process: subprocess.Popen) -> None:
    """Kill a process and its own workers at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(true: Any, *living: subprocess.Popen) -> None:
    until = time.monotonic() + 240
    while not true():
        assert time.monotonic() < until
        assert all(process.poll() is None for process in living)
        time.sleep(0.05)


def emptied(url: str) -> str:
    """The address of a database in which no run is left."""
    with psycopg.connect(url, autocommit=True) as connection:
        for name in postgres_runs(url):
            connection.execute(f"drop schema {schema_of(name)} cascade")
    return url


def begun(url: str) -> Path | None:
    name = latest_run(url)
    return Path(name) if name else None


@pytest.mark.slow
def test_members_and_the_command_are_killed_and_nothing_is_lost(
    postgres: Any, tmp_path: Path, alone: dict[str, Any], processes: list[subprocess.Popen]
) -> None:
    url, home = emptied(postgres.url), tmp_path / "command"
    command = start(processes, home, *WORDS, "--store", url)
    join = ("work", "last", "--store", url, "--workers", "1", "--wait", "1m", "--lease", "3s")
    first, second = (start(processes, tmp_path / name, *join) for name in ("one", "two"))
    wait_until(lambda: begun(url), command, first, second)
    run = begun(url)
    assert run is not None
    with open_store(run, url) as store:
        wait_until(lambda: len(store.finished()) >= 2 and store.helpers() >= 2, command, first, second)
        wait_until(lambda: any(posted.taken for posted in store.posted()), command, second)
        kill(first)
        before = len(store.finished())
        wait_until(lambda: len(store.finished()) > before, command, second)
        kill(command)
        assert len(store.finished()) < CELLS
        again = start(processes, home, *WORDS, "--store", url)
        assert again.wait(timeout=300) == 0, (home / "out").read_text()
        found = cells_of(store)
        assert len(found["cells"]) == CELLS
        assert found == {key: alone[key] for key in found}
        assert len(store.counters()) == CELLS
    (folder,) = (home / "steepest-runs").iterdir()
    assert (folder / "winner" / "winner.safetensors").read_bytes() == alone["weights"]
    second.send_signal(signal.SIGINT)
    second.wait(timeout=60)
    ended = (tmp_path / "two" / "out").read_text()
    assert " done; " in ended or "given back" in ended, "it ends orderly, whatever was left for it to compute"


@pytest.mark.slow
def test_the_database_is_killed_while_members_write(
    postgres: Any, tmp_path: Path, alone: dict[str, Any], processes: list[subprocess.Popen]
) -> None:
    words = [*WORDS, "--store", emptied(postgres.url)]
    command = start(processes, tmp_path / "command", *words)
    wait_until(lambda: begun(postgres.url), command)
    join = ("work", "last", "--store", postgres.url, "--workers", "1", "--wait", "30s", "--lease", "5m")
    member = start(processes, tmp_path / "member", *join)
    run = begun(postgres.url)
    assert run is not None
    with open_store(run, postgres.url) as store:
        for count in (2, 4):
            wait_until(lambda count=count: len(store.finished()) >= count, command, member)
            postgres.kill()
            time.sleep(1.0)
            postgres.start()
        assert command.wait(timeout=300) == 0, (tmp_path / "command" / "out").read_text()
        found = cells_of(store)
        assert set(store.counters()) == {1}
    assert found == {key: alone[key] for key in found}
