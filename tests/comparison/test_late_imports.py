"""A comparison starts without what it needs later: its import costs little more than torch's."""

from __future__ import annotations

import ast
from pathlib import Path

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
