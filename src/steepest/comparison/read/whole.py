"""A long regular text file parsed as a whole by pandas, which does so in several threads from version 3.1 on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from ...core.lazy import late
from ..errors import InputError
from .blocks import IrregularError, Kinds, Layout
from .raw import Column, Text, missing_cells, true
from .threads import side_by_side
from .wording import show

pd = late("pandas")
pa = late("pyarrow")
pc = late("pyarrow.compute")

SHORTEST = 5 << 20
"""Bytes from which on pandas takes several threads."""

_PIECE, _MOST_TEXT = 1 << 20, 0.25


class Hashing(Thread):
    """The SHA-256 of a file, computed, once started, while others work with what was read.

    Args:
        path: of the file.
        read: its state (``os.stat``) when reading began.
    """

    def __init__(self, path: Path, read: os.stat_result) -> None:
        super().__init__(daemon=True)
        self.path, self.read = path, read
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def run(self) -> None:
        piece = bytearray(_PIECE)
        try:
            with self.path.open("rb", buffering=0) as stream:
                while size := stream.readinto(piece):
                    self.digest.update(memoryview(piece)[:size])
        except OSError as error:
            self.failure = error

    def hexdigest(self) -> str:
        """The hash, once it is there; the thread must have been started.

        Raises:
            InputError: the file has changed since it was read, or can't be read any more.
        """
        self.join()
        name = show(self.path.name)
        if self.failure is not None:
            raise InputError(f"{name} cannot be read: {self.failure.strerror}")
        now = self.path.stat()
        if (now.st_mtime_ns, now.st_size) != (self.read.st_mtime_ns, self.read.st_size):
            raise InputError(f"{name} has changed while it was read")
        return self.digest.hexdigest()


def takes_whole(size: int, layout: Layout, kinds: Kinds) -> bool:
    """Whether pandas reads such a file in several threads, its numbers to the last digit, and within thrice its size.

    Blocks take less memory where many columns are neither numbers nor a few words.

    Args:
        size: bytes of the file.
        layout: how its rows are cut.
        kinds: what its columns hold.
    """
    texts = layout.width - len(kinds.numeric | kinds.repeated)
    if texts > max(1, _MOST_TEXT * layout.width):
        return False
    modern = tuple(int(number) for number in pd.__version__.split(".")[:2]) >= (3, 1)
    return modern and size >= SHORTEST and layout.width > 1 and layout.separator.isascii() and layout.end == b"\n"


def read_whole(path: Path, offset: int, lines: int, layout: Layout, kinds: Kinds) -> tuple[list[Column], Hashing]:
    """Columns of the rows after the first ``lines``: those of numbers as float64, others as text.

    Args:
        path: of a file of UTF-8 text.
        offset: where its rows begin.
        lines: before the rows.
        layout: how rows are cut.
        kinds: what the columns hold.

    Raises:
        IrregularError: the text is not UTF-8 or not regular, or a column of numbers holds a word.
    """
    texts = [i for i in range(layout.width) if i not in kinds.numeric]
    state = path.stat()
    try:
        frame = pd.read_csv(
            path,
            sep=layout.separator,
            header=None,
            skiprows=lines,
            # what is no number, or has a word, comes so by itself, and sooner than if pandas is told
            dtype={i: str for i in texts if i not in kinds.wordy},
            keep_default_na=False,
            na_values=[""],
            encoding="utf-8",
        )
    except (ValueError, OverflowError):  # what pandas raises of a parser or a decoder are ValueErrors
        raise IrregularError from None
    if frame.shape[1] != layout.width:
        raise IrregularError
    if any(frame[i].dtype.kind not in "iuf" for i in kinds.numeric):
        raise IrregularError
    columns: dict[int, Column] = {i: frame[i].to_numpy(np.float64, copy=False) for i in kinds.numeric}
    columns |= zip(texts, side_by_side(lambda i: _text(frame[i], i in kinds.repeated), texts))
    # pandas refuses a row that is longer than those before it, and fills a shorter one: the last cell is then missing
    short = missing_cells(columns[layout.width - 1]).any()
    if short and _separators(path, offset, layout) != len(frame) * (layout.width - 1):
        raise IrregularError
    return [columns[i] for i in range(layout.width)], Hashing(path, state)


def _text(column: pd.Series[Any], few: bool) -> Text:
    """Text of a column; ``few``: it has few distinct words."""
    if not isinstance(column.dtype, pd.StringDtype):
        raise IrregularError
    cells = pa.chunked_array(pa.array(column.array))
    if few:
        encoded = pc.dictionary_encode(cells)
        codes = [pc.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
        text = Text.from_codes(np.concatenate(codes), encoded.chunk(0).dictionary)
    else:
        text = Text.of(cells)
    words = text.words if few else text.cells
    if any(true(pc.match_substring(words, sign)).any() for sign in ('"', "\0")):  # a quote behind blanks, for one
        raise IrregularError
    return text


def _separators(path: Path, offset: int, layout: Layout) -> int:
    """How many separators stand among the rows."""
    number, piece = 0, bytearray(_PIECE)
    array = np.frombuffer(piece, dtype=np.uint8)
    with path.open("rb", buffering=0) as stream:
        stream.seek(offset)
        while size := stream.readinto(piece):
            number += int(np.count_nonzero(array[:size] == ord(layout.separator)))
    return number
