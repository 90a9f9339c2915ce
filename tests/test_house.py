"""Rules of the house that no single module can keep alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from steepest.catalogue import NO_NUMBER, find, marks, missing, systems, there

ROOT = Path(__file__).parents[1]
PRESENT = [pytest.param(system, id=system.slug) for system in systems() if there(system)]


def text_files():
    """What git tracks or would track; without git, the folders that hold text of ours."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        files = [file for folder in ("src", "tests", "docs", "benchmarks") for file in (ROOT / folder).rglob("*")]
    kinds = {".py", ".toml", ".md", ".txt", ".yml", ".yaml", ".json", ".html", ".css", ".js", ".svg", ".csv", ""}
    return [file for file in files if file.is_file() and file.suffix in kinds]


def test_there_is_text_to_read():
    names = {file.relative_to(ROOT).as_posix() for file in text_files()}
    assert {"src/steepest/catalogue.toml", "tests/test_house.py", "Makefile", ".ci/run"} <= names


def test_files_are_short():
    source = [file for file in text_files() if "src" in file.relative_to(ROOT).parts[:1] and file.suffix != ".csv"]
    lengths = {file: file.read_text(encoding="utf-8").count("\n") for file in source if file.name != "catalogue.toml"}
    assert {str(file): lines for file, lines in lengths.items() if lines > 400} == {}


def test_no_machine_paths():
    """Nothing that only exists on the machine where it was written."""
    path = re.compile(r"(?<![\w.~}])/(?:home|work|root|Users|tmp)/\w")
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in text_files()
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if path.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("system", PRESENT)
def test_a_system_that_is_there_is_checked(system):
    """Tests prove each fact that its row counts."""
    assert missing(system, marks(ROOT / "tests")) == []


def test_marks_name_facts_that_exist():
    for slug, numbers in marks(ROOT / "tests").items():
        holds = find(slug).holds
        assert numbers <= (set(range(1, holds + 1)) if holds else {NO_NUMBER}), slug


HEAVY = {"torch", "sklearn", "pandas", "matplotlib"}


def loaded(statement):
    """The modules loaded after a statement in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_loads_nothing_heavy():
    modules = loaded("import steepest")
    assert "steepest" in modules
    assert not modules & {*HEAVY, "numpy", "scipy", "typer", "rich"}


def test_rooms_load_lazily():
    assert not loaded("import steepest.losses, steepest.losses.classification") & {
        "torch",
        "sklearn",
        "pandas",
        "matplotlib",
    }


def test_the_command_starts_light():
    assert not loaded("from steepest.cli import run; run(['--version'])") & HEAVY


def test_the_catalogue_lies_below_every_room():
    modules = {name for name in loaded("import steepest.catalogue") if name.partition(".")[0] == "steepest"}
    assert modules == {"steepest", "steepest.catalogue"}


def test_the_top_level_is_lazy_and_honest():
    modules = loaded("import steepest; steepest.catalogue; assert 'compare' in dir(steepest)")
    assert "steepest.catalogue" in modules
    assert "torch" not in modules
    import steepest

    with pytest.raises(AttributeError, match="has no attribute 'comparee'"):
        _ = steepest.comparee


def test_checks_switch_is_at_the_top():
    import steepest
    from steepest.core.checks import checks

    assert steepest.checks is checks
