"""A comparison starts without what it needs later: its import costs little more than torch's."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steepest.comparison import api
from steepest.comparison.cli import compare_command
from steepest.core.lazy import import_late, late

SOURCE = Path(__file__).parents[2] / "src" / "steepest"
LATE = {"jinja2", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn", "skops"}
"""Packages that take from a tenth of torch's time to all of it."""


def imported_at_once(file: Path) -> set[str]:
    """Packages that importing a module imports."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found}


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    files = [file for room in ("comparison", "core", "descent", "nn") for file in (SOURCE / room).rglob("*.py")]
    early = {file.relative_to(SOURCE).as_posix(): imported_at_once(file) & LATE for file in files}
    assert len(files) > 100
    assert {name: packages for name, packages in early.items() if packages} == {}


def test_importing_a_comparison_imports_none_of_them() -> None:
    """Statements are not all: a module that makes an array of Arrow at once has imported it."""
    code = "import sys, steepest.comparison.api; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not LATE & set(loaded)


def test_what_was_put_off_can_be_imported_at_once() -> None:
    name = "wsgiref.headers"
    sys.modules.pop(name, None)
    headers = late(name)
    assert name not in sys.modules
    import_late()
    assert name in sys.modules
    assert headers.Headers([("a", "b")])["a"] == "b"


def test_no_import_is_counted_by_the_clock_of_a_comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    imported, clocks = [], []
    monkeypatch.setattr(api, "import_all", lambda: imported.append(time.time()))
    monkeypatch.setattr(api, "prepare", lambda request: (None, []))

    def execute(*arguments: object) -> None:
        clocks.append(arguments[-1])

    monkeypatch.setattr(api, "execute", execute)
    compare_command(["wine"], out=tmp_path)
    with pytest.raises(AssertionError):  # nothing came back
        api.compare("wine")
    assert len(imported) == len(clocks) == 2
    assert all(clock >= done for clock, done in zip(clocks, imported))
