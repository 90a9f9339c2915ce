"""A comparison on a Ray cluster of two nodes, of which a process, a node and the command are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import steepest
from steepest.comparison.design.levels import Level
from steepest.comparison.errors import InputError
from steepest.comparison.work.store import Store

COSTS = ("seconds", "seconds_per_epoch", "peak_memory_mb")
OPTIONS = {
    "objectives": "comp_sum", "repeats": 1, "folds": 6, "trials": 3, "epochs": 24, "patience": 24, "batch_size": 8,
    "workers": 1, "quiet": True, "strict": True, "budget": 120,
}  # fmt: skip
WORDS = [
    "compare", "wine", "--objectives", "comp_sum", "--repeats", "1", "--folds", "6", "--trials", "3", "--epochs", "24",
    "--patience", "24", "--batch", "8", "--quiet", "--strict", "--budget", "2h", "--no-classical",
]  # fmt: skip
CELLS = 12
NODE = {"include_dashboard": False}


def numbers_of(folder: Path) -> dict[str, Any]:
    """Every number of every cell but the costs, its outcome, how often it was computed, and the winner's bytes."""
    with Store(folder) as store:
        level = Level.of_text(store.fact("levels")[0])
        cells = {
            (name, pair): {k: v for k, v in values.items() if k not in COSTS}
            for name, own in store.cells(level).items()
            for pair, values in own.items()
        }
        outcomes = {cell: store.outcome(cell[0], *cell[1], level).predicted.tobytes() for cell in cells}
        counters = store.counters()
    weights = (folder / "winner" / "winner.safetensors").read_bytes()
    return {"cells": cells, "outcomes": outcomes, "counters": set(counters), "count": len(cells), "weights": weights}


def finished(folder: Path) -> int:
    runs = list(folder.glob("*/run.sqlite"))
    if not runs:
        return 0
    with Store(runs[0].parent) as store:
        return len(store.finished())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **NODE})
    yield cluster
    cluster.shutdown()


def computing() -> list[int]:
    """Processes of the cluster that compute now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_compute") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def when(true: Callable[[], Any], do: Callable[[Any], Any]) -> threading.Thread:
    """Do something once, as soon as something is true."""

    def watch() -> None:
        until = time.monotonic() + 120
        while not (value := true()):
            assert time.monotonic() < until
            time.sleep(0.05)
        do(value)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_process_a_node_and_the_command_are_killed_and_nothing_is_lost(cluster: Any, tmp_path: Path) -> None:
    here = steepest.compare("wine", classical=False, out=tmp_path / "here", **OPTIONS)
    expected = numbers_of(here.folder)
    assert (expected["count"], expected["counters"]) == (CELLS, {1})
    second = cluster.add_node(num_cpus=1, **NODE)
    out = tmp_path / "there"
    words = [*WORDS, "--executor", f"ray://{cluster.address}", "--out", str(out)]
    command = subprocess.Popen([sys.executable, "-m", "steepest", *words], cwd=tmp_path)
    until = time.monotonic() + 240
    while finished(out) < 3:
        assert command.poll() is None
        assert time.monotonic() < until or command.kill()
        time.sleep(0.05)
    command.kill()
    command.wait()
    before = finished(out)
    assert before < CELLS
    killed: list[int] = []

    def kill(pids: list[int]) -> None:
        os.kill(pids[0], signal.SIGKILL)
        killed.append(pids[0])

    threads = [
        when(lambda: finished(out) > before and computing(), kill),
        when(lambda: finished(out) > before + 2 and computing(), lambda _: cluster.remove_node(second, False)),
    ]
    subprocess.run([sys.executable, "-m", "steepest", *words], cwd=tmp_path, check=True, timeout=300)
    for thread in threads:
        thread.join()
    assert len(killed) == 1
    (there,) = out.iterdir()
    assert numbers_of(there) == expected
    assert not [node for node in cluster.list_all_nodes() if node is second]


@pytest.mark.slow
def test_learners_and_a_budget_on_a_cluster_that_ends_with_the_command(tmp_path: Path) -> None:
    words = ["compare", "wine", "--executor", "ray", "--workers", "2", "--objectives", "comp_sum", "--budget", "10m"]
    words += ["--repeats", "1", "--folds", "3", "--trials", "1", "--epochs", "4", "--quiet"]
    started = [sys.executable, "-m", "steepest", *words]
    done = subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, "Choosing the objective" in done.stdout) == (0, True), done.stdout + done.stderr
    (file,) = tmp_path.glob("steepest-runs/*/results.json")
    results = json.loads(file.read_text())
    assert {"objective", "classical"} <= {row["kind"] for row in results["rows"]}
    assert results["basis"]["cut"] == []


@pytest.mark.slow
def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--executor: no Ray cluster at '127\.0\.0\.1:1'"):
        steepest.compare("wine", classical=False, executor="ray://127.0.0.1:1", out=tmp_path, **OPTIONS)
