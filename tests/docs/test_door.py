"""What a stranger types first: the targets of the Makefile that the README names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from steepest.cli import run
from steepest.comparison.budget import seconds_of
from steepest.comparison.work import timing

ROOT = Path(__file__).parents[2]


def make(*words: str) -> list[str]:
    """The lines that make prints where nobody's make runs around it: within one it speaks of folders too."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(["make", *words], cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()


def recipe(target: str, *words: str) -> list[list[str]]:
    """What a target runs once everything is installed, a list of words a line."""
    ready = [word for kind in ("run", "test", "docs", "lint") for word in ("-o", f".venv/.installed-{kind}")]
    return [shlex.split(line) for line in make("-n", *ready, target, *words)]


def test_make_compare_is_never_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """On a machine on which it would take years less is computed; on any other all of it."""
    ((program, *words),) = recipe("compare")
    assert program == ".venv/bin/steepest"
    assert "--strict" not in words
    assert seconds_of(words[words.index("--budget") + 1]) <= 150  # with the end of a run, within 3 minutes
    monkeypatch.chdir(tmp_path)
    for seconds, less in ((1e9, True), (0.0, False)):
        monkeypatch.setattr(timing, "time_learner", lambda context, job, seconds=seconds: seconds)
        monkeypatch.setattr(timing, "time_job", lambda context, job, seconds=seconds: seconds)
        assert run([*words, "--dry-run"]) == 0
        assert ("less is computed, as much as fits" in capsys.readouterr().out) is less


def test_make_compare_takes_other_data_and_budgets() -> None:
    ((_, *words),) = recipe("compare", "DATA=digits", "BUDGET=3")
    assert words[:4] == ["compare", "digits", "--budget", "3"]


def test_the_picture_is_of_the_comparison_that_make_compare_runs() -> None:
    compared, drawn, trained, *of_run = recipe("picture")
    assert [compared] == recipe("compare")
    assert drawn == [".venv/bin/python", "docs/picture.py"]
    assert trained == [".venv/bin/python", "docs/watched.py", "build/watched"]
    assert [words[2] for words in of_run] == ["build/watched/run.html"] * 2
    assert all((ROOT / words[3]).is_file() for words in of_run)


def test_make_compare_takes_no_data_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe("compare")
    for name in ("DATA", "BUDGET", "WORKERS"):
        monkeypatch.setenv(name, "/mnt/data")
    assert recipe("compare") == wanted


def test_quick_and_slow_tests_are_all_tests() -> None:
    quick, slow, everything = (recipe(target)[0] for target in ("test", "test-slow", "test-all"))
    assert [w for w in quick if w not in everything] == ["--dist", "loadfile", "not slow and not browser"]
    assert [w for w in slow if w not in everything] == ["slow or browser"]


def test_targets_that_are_named_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    there = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {line.split()[0] for line in make("help")} == there
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"):
        named = set(re.findall(r"(?:\$ |`|step )make ([a-z-]+)", file.read_text(encoding="utf-8")))
        assert named
        assert named <= there, file.name


def test_the_gate_begins_with_the_commands_of_the_readme() -> None:
    steps = re.findall(r"^step (.+?)(?:  #.*)?$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert steps[:2] == re.findall(r"^\$ (make [a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"make lint", "make test-slow", "make docs", "installed"} <= set(steps)


def test_the_wheel_takes_every_file_of_the_package() -> None:
    """What is not Python is named in pyproject.toml, or an installed package lacks it."""
    package = ROOT / "src" / "steepest"
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    taken = {file for pattern in patterns["steepest"] for file in package.glob(pattern)}
    made = {"__pycache__"}
    files = {file for file in package.rglob("*") if file.is_file() and not made & set(file.parts)}
    assert {file for file in files if file.suffix != ".py"} - taken == set()
    assert {
        folder
        for file in files
        if file.suffix == ".py"
        for folder in (file.parent,)
        if not (folder / "__init__.py").is_file()
    } == set()
