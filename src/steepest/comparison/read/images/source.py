"""What a source of images is, by its name and folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from ....core.scalars import is_number
from ...errors import InputError, nearest
from ..wording import show

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
SPLITS = ("auto", "file", "pool")
SMALLEST = 4
_IDX_NAME = re.compile(r"(\.gz|ubyte|\.idx|idx\d(-\w+)?)$", re.IGNORECASE)


def is_image_source(source: str | Path) -> bool:
    """Whether a source names images: an NPZ file, ``images:labels`` in IDX format, or a folder of images.

    A folder with CSV files is none.

    >>> is_image_source("digits.npz"), is_image_source("images.gz:labels.gz"), is_image_source("data.csv.gz")
    (True, True, False)
    """
    text = str(source)
    if text.lower().endswith(".npz") or idx_pair(text) is not None:
        return True
    return bool(text) and is_image_folder(Path(text))


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds images, directly or in class folders, and no CSV file."""
    try:
        entries = list(path.iterdir())
        if any(e.suffix.lower() in (".csv", ".tsv") for e in entries):
            return False
        folders = folders_in(path)
        return any(map(is_image, entries)) or any(
            any(is_image(e) or (e.is_dir() and any(map(is_image, e.iterdir()))) for e in f.iterdir()) for f in folders
        )
    except OSError:
        return False


def idx_pair(source: str) -> tuple[str, str] | None:
    """The two paths of ``images:labels``, or None if ``source`` is no such pair.

    >>> idx_pair("train-images-idx3-ubyte.gz:train-labels-idx1-ubyte.gz")
    ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz')
    >>> idx_pair("data.csv") is None
    True
    """
    for at in (i for i, letter in enumerate(source) if letter == ":"):
        pair = source[:at], source[at + 1 :]
        if all(_IDX_NAME.search(path) for path in pair):
            return pair
    return None


def check_image_options(split: str, size: int | None, folds: int) -> None:
    """Refuse an unknown split, sizes and folds that are none."""
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, got {show(split)}{nearest(str(split), SPLITS)}")
    for option, value, low in (("size", size, SMALLEST), ("folds", folds, 2)):
        if not (is_number(value, integer=True) and value >= low) and not (option == "size" and value is None):
            raise InputError(f"{option}: expected an integer of at least {low}, got {show(value)}")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; see :func:`open_bytes`."""
    with open_bytes(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise InputError(f"cannot read {show(path, limit=200)}: {error.strerror or error}") from None


def open_bytes(path: Path) -> BinaryIO:
    """A file of images, opened to read.

    Raises:
        InputError: for a file that is missing, a folder, or unreadable.
    """
    named = show(path, limit=200)
    try:
        if path.is_dir():
            raise InputError(f"{named} is a folder; expected a file of images")
        return path.open("rb")
    except InputError:
        raise
    except FileNotFoundError:
        beside = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise InputError(f"no file {named}{nearest(path.name, beside)}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {named}: {getattr(error, 'strerror', None) or error}") from None


def folders_in(path: Path) -> list[Path]:
    """The folders directly inside, by name; not those that begin with a dot or an underscore."""
    return sorted((f for f in path.iterdir() if f.is_dir() and not re.match(r"[._]", f.name)), key=lambda f: f.name)


def images_in(path: Path) -> list[Path]:
    """The files of images directly inside, by name."""
    return sorted((f for f in path.iterdir() if is_image(f)), key=lambda f: f.name)


def is_image(path: Path) -> bool:
    """Whether a path is a file of an image, by its suffix."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
