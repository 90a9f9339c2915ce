"""What is derived from the text of single files, once for each content of a file.

A checkout keeps it between processes under ``build/``, an installed package brings it along. An entry holds for one
content of its file and one version of the deriving code alone, so that none can be stale.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent
"""The folder of the package."""

SHIPPED = SOURCE / "catalogue" / "status.json"
"""What a build writes, for a package that is installed without tests and evidence."""


def checkout() -> Path | None:
    """The root of the source checkout that this package runs from, or None where it is installed without its tests."""
    root = SOURCE.parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "tests").is_dir() else None


def derive(purpose: str, file: Path, function: Callable[[str], Any]) -> Any:
    """``function`` of a file's text, a value that JSON keeps as it is; computed where this content is new.

    Args:
        purpose: the name under which the value is kept; it stands for ``function``.
        file: Python source or another text, in UTF-8.
        function: it depends on the text alone.
    """
    data = file.read_bytes()
    key = f"{purpose} {file.as_posix().removeprefix(_root())}"
    digest = hashlib.sha256(data).hexdigest()
    entry = _entries().get(key)
    if not (isinstance(entry, list) and len(entry) == 2 and entry[0] == digest):
        with _without_collection():
            entry = [digest, function(data.decode("utf-8"))]
        _entries()[key] = entry
        _new.add(key)
    return entry[1]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Syntax trees are many small objects that live: collecting garbage among them costs most of a parser's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep() -> None:
    """Write what was newly derived, where there is a checkout; a folder that cannot be written is no error."""
    root = checkout()
    if root is None or not _new:
        return
    file = root / "build" / "derived.json"
    try:
        file.parent.mkdir(exist_ok=True)
        new = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        new.write_text(json.dumps({"code": code_version(), "entries": _entries()}), encoding="utf-8")
        os.replace(new, file)
    except OSError:
        return
    _new.clear()


def entries_of(purposes: tuple[str, ...]) -> dict[str, Any]:
    """The entries that may go along with a built package: those of its own files for some purposes."""
    prefix = f"{SOURCE.as_posix().removeprefix(_root())}/"
    shipped = {}
    for key, entry in _entries().items():
        purpose, _, path = key.partition(" ")
        if purpose in purposes and path.startswith(prefix):
            shipped[f"{purpose} {SOURCE.name}/{path.removeprefix(prefix)}"] = entry
    return shipped


@cache
def shipped() -> dict[str, Any]:
    """What the build wrote; empty in a checkout."""
    return read_object(SHIPPED) if checkout() is None else {}


def shipped_row(slug: str) -> dict[str, Any]:
    """What the build found out about a system."""
    proved = shipped().get("proved")
    row = proved.get(slug) if isinstance(proved, dict) else None
    return row if isinstance(row, dict) else {}


def read_object(file: Path) -> dict[str, Any]:
    """The object of a JSON file of our own; empty where there is none, or it is damaged."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


_new: set[str] = set()


@cache
def _root() -> str:
    """What the paths of files begin with, here."""
    return f"{(checkout() or SOURCE.parent).as_posix()}/"


@cache
def _entries() -> dict[str, Any]:
    root = checkout()
    known = read_object(root / "build" / "derived.json") if root is not None else shipped()
    entries = known.get("entries")
    return entries if known.get("code") == code_version() and isinstance(entries, dict) else {}


@cache
def code_version() -> str:
    """A hash of the deriving code."""
    digest = hashlib.sha256()
    beside = (SOURCE / "sources.py", SOURCE / "local_names.py")
    for file in (Path(__file__), *beside, *sorted((SOURCE / "catalogue").glob("*.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()
