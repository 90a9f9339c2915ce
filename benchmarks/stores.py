"""Many writers on one store: what is lost, what is twice, and what keeping books costs beside cells of two seconds.

Eight processes claim jobs of one run and put their cells as fast as they can, each job wanted by two of them; halfway
the database is killed and started again. What every writer was told is kept is compared with what the store holds.
Then eight members keep books as `steepest work` and the command do, around cells of two seconds that sleep: what that
takes for a cell, over two seconds, is its share.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _options import read_options
from _postgres import PostgresServer, programs
from _record import keep

from steepest.comparison.design.jobs import Job
from steepest.comparison.design.levels import Level
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.store import cell_of, open_store

LEVEL = Level(4000, 60, 8)
CELL = 2.0
"""Seconds that a cell takes, of which keeping books is a share."""


def job_of(number: int) -> Job:
    """A job of its own for each number."""
    return Job("objective", f"objective_{number % 10}", ((number // 100, number // 10 % 10),), LEVEL, (4, 8))


def cell(job: Job, writer: int) -> CellResult:
    """As large as one of a table of 5,000 rows and three classes."""
    rng = np.random.default_rng(writer)
    values: dict[str, Any] = {
        "score": 0.5,
        "inner": [0.5] * 8,
        "curve": [0.5] * 60,
        "metrics": {str(i): 0.5 for i in range(12)},
    }
    values |= {"seconds": CELL, "epochs": writer, "recall": [0.5] * 3}
    probabilities = rng.dirichlet(np.ones(3), 1000)
    record = {"scores": [0.5] * 3, "epochs": [60] * 3, "curves": [[0.5] * 60] * 3, "seconds": CELL}
    (pair,) = job.cells
    outcome = Outcome(probabilities.argmax(1), probabilities)
    return CellResult("objective", job.name, *pair, values, outcome, LEVEL.text, dict.fromkeys(range(8), record))


def write(folder: str, url: str | None, writer: int, seconds: float, told: Any) -> None:
    """Claim and put until the time is over; every third job without a claim, as one whose lease was over."""
    kept, first, tries = [], 0, 0
    with open_store(Path(folder), url) as store:
        until, number = time.monotonic() + seconds, writer // 2 * 1_000_000
        while time.monotonic() < until:
            job, number = job_of(number), number + 1
            tries += 1
            if number % 3 and not store.claim(job, 30.0):
                continue
            first += store.put([cell(job, writer)])
            kept.append(cell_of(job))
    told.put((kept, first, tries))


def drill(folder: Path, url: str | None, writers: int, seconds: float, server: PostgresServer | None) -> dict[str, Any]:
    """Eight writers, and a database that is killed halfway; gives counts."""
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    open_store(folder, url).close()
    processes = [
        spawn.Process(target=write, args=(str(folder), url, number, seconds, told)) for number in range(writers)
    ]
    for process in processes:
        process.start()
    kills = 0
    if server is not None:
        time.sleep(10 + seconds / 2)  # they import first
        server.kill()
        time.sleep(1.0)
        server.start()
        kills += 1
    answers = [told.get() for _ in processes]
    for process in processes:
        process.join()
    kept = {cell for cells, *_ in answers for cell in cells}
    with open_store(folder, url) as store:
        finished, counters = store.finished(), store.counters()
        content = sum(len(own) for own in store.cells(LEVEL).values())
    numbers = {
        "writers": writers, "seconds": seconds, "kills": kills, "claims": sum(tries for *_, tries in answers),
        "puts": sum(len(cells) for cells, *_ in answers), "cells": len(finished), "lost": len(kept - finished),
        "unasked": len(finished - kept), "twice_in_the_store": content - len(finished),
        "told_first": sum(first for _, first, _ in answers), "computed_twice": sum(count > 1 for count in counters),
    }  # fmt: skip
    assert numbers["lost"] == numbers["unasked"] == numbers["twice_in_the_store"] == 0, numbers
    return numbers


def keep_books(folder: str, url: str | None, member: int, cells: int, pause: float, told: Any) -> None:
    """What a member does for each cell besides computing it."""
    with open_store(Path(folder), url) as store:
        results = [cell(job_of(1000 * member + number), member) for number in range(cells)]
        took = []
        for number, result in enumerate(results):
            time.sleep(pause * (1 + member / 100 if number else member / 8))  # they don't come at once
            began = time.perf_counter()
            job = job_of(1000 * member + number)
            store.post(job, store.now() + 1000, 1e9)
            store.posted()
            store.claim(job, 60.0)
            store.trials(job.name, job.cells[0], LEVEL)
            if number % 10 == 0:
                store.renew(60.0, 1)
            store.put([result])
            store.result(job)
            took.append(time.perf_counter() - began)
        told.put(took)


def share(folder: Path, url: str | None, members: int, cells: int, pause: float) -> dict[str, Any]:
    """Seconds of books for a cell, of members that are at work at the same time."""
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    open_store(folder, url).close()
    processes = [
        spawn.Process(target=keep_books, args=(str(folder), url, member, cells, pause, told))
        for member in range(members)
    ]
    for process in processes:
        process.start()
    took = [seconds for _ in processes for seconds in told.get()]
    for process in processes:
        process.join()
    mean = float(np.mean(took))
    numbers = {"members": members, "cells": len(took), "seconds_of_a_cell": CELL, "mean_seconds": round(mean, 5)}
    return {**numbers, "median_seconds": round(float(np.median(took)), 5), "share": round(mean / CELL, 5)}


def main() -> None:
    """Run, print and keep the drills on a file and, where PostgreSQL is installed, on a database."""
    options = read_options(
        __doc__ or "",
        writers=(8, 2),
        seconds=(60.0, 1.0),
        cells=(20, 3),
        pause=(CELL, 0.01),
        parts=("drill,books", "drill,books"),
    )
    where, parts = programs(), options.parts.split(",")
    server = None if where is None else PostgresServer(where)
    numbers: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, url in (("sqlite", None), *((("postgres", server.url),) if server else ())):
                numbers[name] = {}
                if "drill" in parts:
                    killed = server if url and not options.quick else None
                    run = Path(folder) / f"run_{name}"
                    numbers[name]["drill"] = drill(run, url, options.writers, options.seconds, killed)
                if "books" in parts:
                    books = Path(folder) / f"books_{name}"
                    numbers[name]["books"] = share(books, url, options.writers, options.cells, options.pause)
                print(name, json.dumps(numbers[name]))
    finally:
        if server is not None:
            server.stop()
    keep("stores" if len(parts) > 1 else f"stores-{parts[0]}", numbers, options)


if __name__ == "__main__":
    main()
