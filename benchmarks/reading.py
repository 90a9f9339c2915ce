"""A CSV file read as typed columns beside pandas and pyarrow, and by all of ``load_table``: leaks, copies and hash too.

Every reading is a process of its own, and rounds take turns, so that all see the same machine. Prints the smallest and
the median seconds of wall clock and of processor, what the reading added to the process's peak memory, and both as
multiples: at most 1.5 times pandas in time and 3 times the file in memory are the aims. ``--words 0.01`` writes a word
for missing into that share of the numbers; ``--quoted`` puts every text into quotes.

    python benchmarks/reading.py [--rows 1000000] [--columns 20] [--rounds 5] [--words 0] [--quoted]
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.csv
from _options import read_options
from _record import keep

READERS = ("pandas", "pyarrow", "steepest", "load_table")
LIMITS = {"time": 1.5, "memory": 3.0}


def write(path: Path, rows: int, columns: int, words: float, quoted: bool) -> None:
    """A table of numbers with six decimals, a fifth of it integers and text, and a class as the last column."""
    rng = np.random.default_rng(0)
    data: dict[str, np.ndarray] = {}
    for i in range(columns - 1):
        if i % 10 == 8:
            data[f"integer {i}"] = rng.integers(0, 10 ** (2 + i % 5), rows)
        elif i % 10 == 9:
            data[f"text {i}"] = np.array([f"city {k}" for k in range(50)])[rng.integers(0, 50, rows)]
        else:
            data[f"number {i}"] = rng.normal(size=rows).round(6)
    frame = pd.DataFrame(data)
    if words:
        numbers = [c for c in frame if c.startswith("number")]
        for column in numbers:
            frame[column] = frame[column].astype(object).where(rng.random(rows) >= words, "N/A")
    frame["y"] = np.array(["no", "yes"])[rng.integers(0, 2, rows)]
    frame.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL)


def read(reader: str, path: str) -> dict[str, float]:
    """Seconds and megabytes of one reading in this process, once everything is imported."""
    if reader in ("steepest", "load_table"):
        from steepest.comparison.read import load_table

        load_table("iris")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = megabytes("VmRSS")
    processor, clock = time.process_time(), time.perf_counter()
    if reader == "load_table":
        table: object = load_table(path)
    elif reader == "steepest":
        table = typed(path)
    else:
        table = pd.read_csv(path) if reader == "pandas" else pyarrow.csv.read_csv(path)
    costs = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
    del table
    return costs | {"peak_mb": megabytes("VmHWM") - before}


def typed(path: str) -> pd.DataFrame:
    """Every column read and typed, as pandas does."""
    from steepest.comparison.read.build import typed_frame
    from steepest.comparison.read.options import ReadOptions
    from steepest.comparison.read.table import read_source
    from steepest.comparison.read.threads import side_by_side
    from steepest.comparison.read.types import infer

    raw, options = read_source(path), ReadOptions()
    columns = side_by_side(lambda i: infer(raw.columns[i], raw.names[i], options, raw.comma), range(len(raw.names)))
    return typed_frame(dict(zip(raw.names, columns)))


def megabytes(what: str) -> float:
    """The memory that this process has (``VmRSS``) or had at its peak (``VmHWM``), on Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(what))) / 1024


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(
        __doc__,
        rows=(1_000_000, 200),
        columns=(20, 5),
        rounds=(5, 1),
        words=(0.0, 0.0),
        quoted=(False, False),
        reader=("", ""),
        file=("", ""),
    )
    if options.reader:
        print(json.dumps(read(options.reader, options.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, options.rows, options.columns, options.words, options.quoted)
        size = path.stat().st_size / 2**20
        runs_of: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
        for _ in range(options.rounds):
            for reader in READERS:
                command = [sys.executable, __file__, "--reader", reader, "--file", str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs_of[reader].append(json.loads(done.stdout))
    rows = []
    for reader, runs in runs_of.items():
        row: dict[str, object] = {"reader": reader}
        for key in ("seconds", "cpu_seconds"):
            row[f"min_{key}"] = round(min(run[key] for run in runs), 3)
            row[f"median_{key}"] = round(statistics.median(run[key] for run in runs), 3)
            ratios = [run[key] / of_pandas[key] for run, of_pandas in zip(runs, runs_of["pandas"])]
            row[f"{key}_of_pandas"] = round(statistics.median(ratios), 2)
        row["peak_mb"] = round(max(run["peak_mb"] for run in runs))
        row["peak_of_file"] = round(max(run["peak_mb"] for run in runs) / size, 2)
        rows.append(row)
        time_said = (
            f"{row['min_seconds']:>7.2f} s (median {row['median_seconds']:.2f}), {row['seconds_of_pandas']:.2f}x"
        )
        cpu_said = f"processor {row['min_cpu_seconds']:.2f} s, {row['cpu_seconds_of_pandas']:.2f}x"
        print(f"{reader:<10} {time_said}  {cpu_said}  {row['peak_mb']:>6} MB, {row['peak_of_file']:.2f}x the file")
    facts = {"rows": options.rows, "columns": options.columns, "words": options.words, "quoted": options.quoted}
    name = "reading" + "-words" * bool(options.words) + "-quoted" * options.quoted
    keep(name, {"benchmark": "reading", **facts, "file_mb": round(size, 1), "limits": LIMITS, "readers": rows}, options)


if __name__ == "__main__":
    main()
