"""What a call asks of a comparison: refused, where it is wrong whatever the data say, before anything slow is imported.

The functions that read, plan and train check the same again, with these checks, for those who call them directly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError
from .names import check_names, check_text_names, check_varied
from .read.builtin import BUILTIN
from .read.images.source import check_image_options, idx_pair, is_image_folder, is_image_source, open_bytes
from .read.options import check_options, read_options
from .read.source import open_file
from .read.texts import TEXTS_BUILT_IN
from .read.texts.source import open_text
from .request import READING, Request

TABLES = (".csv", ".tsv", ".parquet")
"""What is taken from a folder of tables."""


def check_asked(request: Request) -> None:
    """Refuse a source that cannot be opened, and words that stand for nothing.

    Raises:
        InputError: the first that is wrong, in one line.
    """
    folds = 5 if request.folds is None else request.folds
    check_options("auto" if request.of_text else request.task, request.rare, folds)
    read_options(**{name: getattr(request, name) for name in READING})
    (check_text_names if request.of_text else check_names)(request.objectives, request.metric, request.model)
    check_varied(request.vary, request.arms, request.objectives)
    if request.device != "cpu" and not request.device.startswith("cuda"):
        raise InputError(f"--device: {request.device!r} is not here; use cpu or cuda")
    source = str(request.data)
    if request.of_retrieval:
        request.refuse_for_retrieval()
    if request.of_text:
        request.refuse_for_texts()
        if source not in TEXTS_BUILT_IN:
            open_text(Path(source))
        return
    if is_image_source(source):
        request.refuse_for_images()
        check_image_options(request.split, request.size, folds)
    else:
        request.refuse_for_tables()
    open_source(source)
    if request.test is not None:
        open_source(str(request.test))


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
    if source in (*BUILTIN, *TEXTS_BUILT_IN):
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
