"""What a source of texts is: a file of text, JSON lines with prompts and answers, or a built-in set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....core.stored import parse_json
from ...errors import InputError, nearest
from ..wording import listing, show

TEXTS_BUILT_IN = ("sums",)
"""Sets of prompts and answers that are made, by name."""
JSON_LINES = (".jsonl", ".ndjson")
SUMS, BELOW = 3000, 100
"""Rows of the sums, and what their terms are below."""

Pairs = list[tuple[str, str]]


def sums() -> Pairs:
    """Prompts and answers such as ``("34+58=", "92")``.

    >>> len(sums()), sums()[0]
    (3000, ('85+63=', '148'))
    """
    terms = np.random.default_rng(0).integers(BELOW, size=(SUMS, 2)).tolist()
    return [(f"{a}+{b}=", f"{a + b}") for a, b in terms]


def is_json_lines(source: str | Path) -> bool:
    """Whether a source holds prompts and answers: JSON lines, or a built-in set.

    >>> is_json_lines("rows.jsonl"), is_json_lines("sums"), is_json_lines("book.txt")
    (True, True, False)
    """
    return str(source) in TEXTS_BUILT_IN or Path(source).suffix.lower() in JSON_LINES


def open_text(path: Path) -> None:
    """Refuse a file of text that is missing, a folder, or cannot be read."""
    named = show(path, limit=200)
    try:
        if path.is_dir():
            raise InputError(f"{named} is a folder; expected a text file or JSON lines")
        path.open("rb").close()
    except FileNotFoundError:
        beside = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        hint = nearest(path.name, [*TEXTS_BUILT_IN, *beside])
        raise InputError(f"no file {named}{hint or '; built-in texts are ' + ', '.join(TEXTS_BUILT_IN)}") from None
    except OSError as error:
        raise InputError(f"cannot read {named}: {error.strerror or error}") from None


def read_text(path: Path, encoding: str | None = None) -> tuple[str, str]:
    """The text of a file, its lines ended alike, and the SHA-256 of its bytes.

    Args:
        path: of the file.
        encoding: None is UTF-8, with or without a mark.

    Raises:
        InputError: it cannot be read, is empty, or holds no text.
    """
    open_text(path)
    data = path.read_bytes()
    named = show(path.name)
    if (at := data.find(b"\0")) >= 0 and encoding is None:
        raise InputError(f"{named} holds no text: byte {at + 1} is 0; another encoding is named by --encoding")
    try:
        text = data.decode(encoding or "utf-8-sig")
    except LookupError:  # an unknown name, or one of no encoding of texts
        raise InputError(f"encoding: {show(str(encoding))} is unknown; use utf-8, cp1252, utf-16, ...") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{named} is not {encoding or 'UTF-8'}: line {line} has the byte 0x{data[error.start]:02x}; if it is text, "
            "name its encoding by --encoding"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InputError(f"{named} is empty: expected text")
    return text, hashlib.sha256(data).hexdigest()


def rows_of_lines(text: str, name: str, keys: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The line and the texts under ``keys`` of each row of JSON lines; empty lines are passed over.

    Raises:
        InputError: a line is no object, lacks a key, or has something else than text there; it says which line.

    >>> list(rows_of_lines('{"prompt": "1+1=", "answer": "2"}', "sums.jsonl", ["prompt", "answer"]))
    [(1, ['1+1=', '2'])]
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{show(name)}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object with {' and '.join(keys)}, got {show(line.strip())}")
        yield number, [_value(row, key, where) for key in keys]


def _value(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        others = listing([*row], limit=6) if row else "none"
        hint = nearest(key, list(row))
        raise InputError(f"{where}: no key {show(key)}{hint or '; --prompt and --answer name others'} (keys: {others})")
    value = row[key]
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {show(key)}: expected text, got {show(value) if value != '' else 'none'}")
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        raise InputError(f"{where}: {show(key)}: expected text, got half of a sign: {show(value)}")
    return value
