"""Run other libraries' own tests against steepest, and keep which pass.

Their sources are unpacked beside each other, each under its repository's name, with the commit in a file ``.commit``:

    git -C REPOSITORY archive HEAD tests test src | tar -x -C SOURCE/NAME
    git -C REPOSITORY rev-parse HEAD > SOURCE/NAME/.commit
    python tests/peers/suites/run.py --source SOURCE

Each ``of_LIBRARY.py`` here says which of their files run, what answers to the names that those import, which tests are
left out and why, and for tests that fail why they do. Test files are copied to a temporary folder, where on a CPU the
device in them is changed; nothing of theirs is kept. Results go to ``benchmarks/results/peer-suites.json``: those of
the libraries and the device that ran take the place of earlier ones.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peer-suites.json"
LIBRARIES = (
    "torchtune", "cce", "liger", "quack", "torch", "verl", "openrlhf", "allrank", "pml", "lightly",
    "sentence_transformers",
)  # fmt: skip
NAMES = {
    "cce": "cut-cross-entropy",
    "liger": "Liger-Kernel",
    "quack": "QuACK",
    "openrlhf": "OpenRLHF",
    "allrank": "allRank",
    "pml": "pytorch-metric-learning",
    "sentence_transformers": "Sentence Transformers",
}
ABOUT = "Tests of other libraries, run against steepest through tests/peers/suites."
UNEXPLAINED = "unexplained"


def loaded(file: Path) -> Any:
    """A module from its path."""
    spec = importlib.util.spec_from_file_location(f"suites_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def adapter(library: str) -> Any:
    """The module of a library."""
    return loaded(HERE / f"of_{library}.py")


def install(given: dict[str, dict[str, Any]]) -> None:
    """Modules under the names that tests import, and the packages above them."""
    for name, attributes in given.items():
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            path = ".".join(parts[:count])
            if path not in sys.modules or not hasattr(sys.modules[path], "__steepest__"):
                module: Any = ModuleType(path)
                module.__path__, module.__steepest__ = [], True
                sys.modules[path] = module
                if count > 1:
                    setattr(sys.modules[".".join(parts[: count - 1])], parts[count - 1], module)
        # what an adapter takes from a file of theirs keeps its names, the module its own
        vars(sys.modules[name]).update(
            {k: v for k, v in attributes.items() if k == "__version__" or not k.startswith("__")}
        )


def unpack(ours: Any, source: Path, to: Path, device: str) -> None:
    """Copy what runs, with the device changed."""
    for name in (*ours.FILES, *ours.SUPPORT):
        start, end = source / ours.FOLDER / name, to / name
        end.parent.mkdir(parents=True, exist_ok=True)
        text = start.read_text(encoding="utf-8")
        if device == "cpu" and name in ours.FILES:
            for pattern, instead in ours.ON_CPU:
                text = re.sub(pattern, instead, text)
        end.write_text(text, encoding="utf-8")
    if hasattr(ours, "after"):
        ours.after(to)


def first(reasons: dict[str, str], test: str) -> str | None:
    """The reason whose pattern the name of a test has."""
    return next((why for pattern, why in reasons.items() if re.search(pattern, test)), None)


class Collector:
    """A pytest plugin that leaves out what the adapter says, and notes the rest."""

    def __init__(self, left_out: dict[str, str]) -> None:
        self.reasons = left_out
        self.found: dict[str, Any] = {"outcomes": {}, "said": {}, "left_out": {}}

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Leave out tests, each with its reason."""
        gone = [item for item in items if first(self.reasons, item.nodeid)]
        self.found["left_out"] = {item.nodeid: first(self.reasons, item.nodeid) for item in gone}
        items[:] = [item for item in items if item.nodeid not in self.found["left_out"]]
        config.hook.pytest_deselected(items=gone)

    def _note(self, report: Any, name: str) -> None:
        if report.failed or report.skipped or report.when == "call":
            self.found["outcomes"][name] = report.outcome
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.found["said"][name] = str(crash.message if crash else report.longrepr).strip()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """How a test ended."""
        self._note(report, report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that can't be imported has failed."""
        if report.failed:
            report.when = "collect"
            self._note(report, report.nodeid)


def inside(library: str, folder: Path, file: str, limit: str, out: Path) -> int:
    """In a process of its own: names in place, one of their files run."""
    ours = adapter(library)
    install(ours.modules(folder))
    collector = Collector(ours.LEFT_OUT)
    (folder / "empty.ini").write_text("[pytest]\n", encoding="utf-8")
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-c", str(folder / "empty.ini"), "--rootdir", str(folder)]
    options += ["--tb=short", "--disable-warnings", *(["-k", limit] if limit else [])]
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    code = pytest.main([*options, file], plugins=[collector])
    out.write_text(json.dumps(collector.found), encoding="utf-8")
    return int(code)


def run_file(library: str, folder: Path, file: str, device: str, limit: str) -> tuple[dict[str, Any], float]:
    """One of their files in a process of its own: how its tests ended, and the seconds."""
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "run.py"), "--inside", library, str(folder), file, limit, str(out)]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    start = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", **hidden}, check=False)
    if not out.is_file():
        raise RuntimeError(f"{file} of {library} ended with code {done.returncode} and no result")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found, time.perf_counter() - start


def commit(ours: Any, source: Path) -> str:
    """Which version of theirs it is."""
    if not ours.FOLDER:
        return f"{torch.__version__} {str(torch.version.git_version)[:10]}"
    kept = source / ours.FOLDER / ".commit"
    return kept.read_text(encoding="utf-8").strip()[:10] if kept.is_file() else "unknown"


def run_library(library: str, source: Path, device: str, limit: str) -> dict[str, list[dict[str, Any]]]:
    """All files of a library, as tables."""
    ours, name = adapter(library), NAMES.get(library, library)
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "failures": [], "left_out": [], "not_run": []}
    facts = {"library": name, "device": device}
    kind = loaded(ROOT / "benchmarks" / "_record.py").machine_kind(device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        unpack(ours, source if ours.FOLDER else HERE, folder, device)
        for file in ours.FILES:
            seen, seconds = run_file(library, folder, file, device, limit)
            counts = Counter(seen["outcomes"].values())
            where = {
                "commit": commit(ours, source),
                "date": datetime.date.today().isoformat(),
                "machine": kind,
                "torch": torch.__version__,
            }
            numbers = {key: counts[key] for key in ("passed", "failed", "skipped")}
            row = {**facts, "file": file, **numbers, "left_out": len(seen["left_out"]), "seconds": round(seconds, 1)}
            found["rows"].append({**row, **where})
            for test, said in seen["said"].items():
                short = re.sub(r"\s+", " ", said.replace(str(folder), ""))[:200]
                why = first(ours.EXPLAINED, test) or UNEXPLAINED
                found["failures"].append(
                    {**facts, "file": file, "test": test.partition("::")[2], "reason": why, "said": short}
                )
            for why, count in Counter(seen["left_out"].values()).items():
                found["left_out"].append({**facts, "file": file, "tests": count, "reason": why})
    found["not_run"] = [{**facts, "file": file, "reason": why} for file, why in ours.NOT_RUN.items()]
    return found


def keep(found: dict[str, list[dict[str, Any]]], file: Path = RESULTS) -> None:
    """Put results in the place of earlier ones of the same libraries and device."""
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    new = {(row["library"], row["device"]) for row in found["rows"]}
    tables = {
        name: [row for row in old.get(name, []) if (row["library"], row["device"]) not in new] + rows
        for name, rows in found.items()
    }
    file.write_text(json.dumps({"what": ABOUT, **tables}, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder of the unpacked sources")
    parser.add_argument("--library", choices=LIBRARIES, action="append", help="this one; can be given again")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-k", dest="limit", default="", help="only tests that match, as of pytest; keeps nothing")
    parser.add_argument("--inside", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        library, folder, file, limit, out = given.inside
        inside(library, Path(folder), file, limit, Path(out))
        return 0
    chosen = tuple(given.library or LIBRARIES)
    if given.source is None and chosen != ("torch",):
        parser.error("--source is needed")
    unexplained = 0
    for library in chosen:
        found = run_library(library, given.source, given.device, given.limit)
        if not given.limit:
            keep(found)
        for row in found["rows"]:
            print(*(f"{key}={row[key]}" for key in ("library", "file", "passed", "failed", "skipped", "left_out")))
        for row in found["failures"]:
            print("FAILED", row["file"], row["test"], "|", row["reason"], "|", row["said"])
            unexplained += row["reason"] == UNEXPLAINED
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
