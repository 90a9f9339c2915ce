"""What a call asks of a comparison: refused, where it is wrong whatever the data say, before anything slow is imported.

The functions that read, plan and train check the same again, with these checks, for those who call them directly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .images.source import check_image_options, idx_pair, is_image_folder, is_image_source, open_bytes
from .names import check_names
from .read.builtin import BUILTIN
from .read.options import check_options, read_options
from .read.source import open_file
from .settings import LIMITS, check_effort, check_numbers

TABLES = (".csv", ".tsv", ".parquet")
"""What is taken from a folder of tables."""

READING = ("encoding", "separator", "header", "missing", "dayfirst", "types")
"""Options that say how a file is read."""

FOR_TABLES = ("drop", "group", "time", "weight", "rare", "positive", *READING, "target", "test")
"""Options that mean nothing for images."""


def check_asked(sources: Sequence[str], options: Mapping[str, Any], *, budget: float, workers: int | None) -> None:
    """Refuse sources that cannot be opened, words that stand for nothing, numbers out of range.

    Args:
        sources: of the command, folders of tables expanded.
        options: of :func:`~steepest.comparison.preparing.prepare`.
        budget, workers: of the run.

    Raises:
        InputError: the first that is wrong, in one line.
    """
    check_numbers(**{name: options[name] for name in (*LIMITS, "noise")})
    check_effort(budget, workers)
    folds = 5 if options["folds"] is None else options["folds"]
    check_options(options["task"], options["rare"], folds)
    read_options(**{name: options[name] for name in READING})
    check_names(options["objectives"], options["metric"], options["model"])
    device = options["device"]
    if device != "cpu" and not device.startswith("cuda"):
        raise InputError(f"--device: {device!r} is not here; use cpu or cuda")
    for source in sources:
        if is_image_source(source):
            refuse_for_images(source, options)
            check_image_options(options["split"], options["size"], folds)
        else:
            refuse_for_tables(options["split"])
        open_source(source)
    if options["test"] is not None:
        open_source(options["test"])


def open_source(source: str) -> None:
    """Refuse a source that cannot be opened: neither built in, nor a file, a pair of files, or a folder of images."""
    if source in BUILTIN or is_image_folder(Path(source)):
        return
    for path in idx_pair(source) or (source,):
        (open_bytes if is_image_source(source) else open_file)(Path(path)).close()


def check_folder(folder: Path) -> None:
    """Refuse a folder for runs that is none, or in which nothing can be written."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"cannot keep the run in {str(folder)!r}: {str(there)!r} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot keep the run in {str(folder)!r}: nothing can be written in {str(there)!r}")


def refuse_for_images(source: str, options: Mapping[str, Any]) -> None:
    """Refuse options of tables for a source of images."""
    wrong = [name for name in FOR_TABLES if options.get(name)]
    if wrong:
        raise InputError(f"--{wrong[0]} is for tables, and {source!r} holds images")


def refuse_for_tables(split: str) -> None:
    """Refuse options of images for a table."""
    if split != "auto":
        raise InputError("--split and --pool are for images that carry their own test part")


def expand(source: str) -> list[str]:
    """A folder of tables as its files, in order of name; anything else as it is.

    >>> expand("wine")
    ['wine']
    """
    path = Path(source)
    if not path.is_dir() or is_image_source(source):
        return [source]
    return sorted(str(file) for file in path.iterdir() if file.suffix.lower() in TABLES) or [source]


def what_is_read(sources: Sequence[str]) -> str:
    """The first line of a comparison: what is going to be read.

    >>> what_is_read(["wine"]), what_is_read(["wine", "iris", "digits"])
    ('reading wine, which is built in', 'reading 3 data sets: wine, iris, digits')
    """
    if len(sources) > 1:
        return f"reading {len(sources)} data sets: {', '.join(sources)}"
    (source,) = sources
    if source in BUILTIN:
        return f"reading {source}, which is built in"
    files = [Path(path) for path in idx_pair(source) or (source,)]
    if all(file.is_file() for file in files):
        return f"reading {source} ({_size(sum(file.stat().st_size for file in files))})"
    return f"reading the images in {source}"


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(900), _size(1_500_000)
    ('900 bytes', '1.5 MB')
    """
    units = ("bytes", "kB", "MB", "GB")
    place = min((len(str(count)) - 1) // 3, len(units) - 1)
    return f"{count / 1000**place:.3g} {units[place]}"
