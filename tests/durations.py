"""Processor seconds of each system's tests: ``python tests/durations.py [SLUG ...]`` measures and keeps them.

To a system belong the tests that prove a fact of its card, all others of the file named as its module, the items of its
members in the conformance suites, and its experiment at smoke scale. ``tests/durations.json`` has a line a system:
seconds among the quick tests, and in all.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from steepest.catalogue import System, find, systems, there

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests" / "durations.json"


def own_tests(system: System) -> str:
    """How the files begin that are named as its module."""
    folder, _, stem = f"tests.{system.module}".replace(".", "/").rpartition("/")
    return f"{folder}/test_{stem}"


def members(system: System) -> set[str]:
    """What its classes call themselves, which names their items of the conformance suites."""
    import importlib

    module = importlib.import_module(f"steepest.{system.module}")
    said = {name: getattr(getattr(module, name), "name", name) for name in system.names}
    return {called if isinstance(called, str) else name for name, called in said.items()}


def of_system(system: System, tests: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """Seconds of its quick tests and of all."""
    own, named, sums = own_tests(system), members(system), collections.Counter()
    for test, said in tests.items():
        file, _, function = test.partition("::")
        item = function.rpartition("[")[2].rstrip("]")
        proves = system.slug in said["slugs"]
        beside = not said["slugs"] and file.startswith(own)
        conforms = file == "tests/test_conformance.py" and item in named
        shown = function == f"test_smoke[{system.slug}]"
        if proves or beside or conforms or shown:
            share = said["seconds"] / max(1, len(said["slugs"]))
            sums["all"] += share
            sums["quick"] += 0 if said["slow"] else share
    return round(sums["quick"], 1), round(sums["all"], 1)


def measure(asked: list[System]) -> dict[str, dict[str, Any]]:
    """Run what may belong to these systems, one test after another."""
    words = ["tests/test_conformance.py", "tests/lab/test_experiments.py"]
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        name, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
        if any(f'holds("{system.slug}"' in text or name.startswith(own_tests(system)) for system in asked):
            words.append(name)
    named = {name for system in asked for name in (system.slug, *members(system))}
    words += ["-k", " or ".join(sorted(named | {Path(file).stem for file in words[2:]}))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not browser", *words]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"STEEPEST_SECONDS": str(file)}, check=True)
        return json.loads(file.read_text(encoding="utf-8"))


def main(slugs: list[str]) -> None:
    """Measure these systems, or all that are there, and write the file."""
    asked = [find(slug) for slug in slugs] or [system for system in systems() if there(system)]
    tests = measure(asked)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    kept |= {system.slug: of_system(system, tests) for system in asked}
    lines = ",\n".join(f"{json.dumps(slug)}: {json.dumps(kept[slug])}" for slug in sorted(kept))
    KEPT.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
