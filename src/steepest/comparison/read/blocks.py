"""A regular text file read block by block, so that memory holds the numbers and little else."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv

from .raw import Column, Text

_BLOCK, _LONGEST = 1 << 20, 1 << 26
_MOST_WORKERS = 4


class IrregularError(Exception):
    """The bytes are not what a parser of whole blocks can read: another encoding, another number of cells, quotes."""


class NotANumber(Exception):
    """A column that looked like numbers holds something else; ``args[0]`` is its position."""


@dataclass(frozen=True)
class Layout:
    """How rows are cut.

    Attributes:
        separator: between cells.
        end: of a line: a line feed, or a carriage return alone.
        width: cells a row.
        longest: bytes of a long row.
    """

    separator: str
    end: bytes
    width: int
    longest: int


def read_blocks(
    stream: BinaryIO, layout: Layout, numeric: set[int], size: int, seen: Callable[[bytes], object]
) -> list[Column]:
    """Columns of the rows from where ``stream`` stands: those in ``numeric`` as float64, others as text.

    Args:
        stream: bytes.
        layout: how rows are cut.
        numeric: positions of columns to read as numbers at once.
        size: about how many bytes follow.
        seen: is called with all bytes, in order.

    Raises:
        IrregularError: the text is not UTF-8, or not regular.
        NotANumber: a column of ``numeric`` holds a word.
    """
    parse = _Parser(layout, numeric)
    order = sorted(numeric)
    numbers = np.empty((len(order), 0))
    words: list[list[pa.Array]] = [[] for _ in range(layout.width)]
    rows = done = 0
    for table, length in _tables(_blocks(stream, layout, seen), parse, size):
        done += length
        if rows + table.num_rows > numbers.shape[1]:
            room = max(rows + table.num_rows, int((rows + table.num_rows) * max(size, done) / max(done, 1) * 1.02))
            larger = np.empty((len(order), room))
            larger[:, :rows] = numbers[:, :rows]
            numbers = larger
        for k, i in enumerate(order):
            numbers[k, rows : rows + table.num_rows] = table.column(i).combine_chunks().to_numpy(zero_copy_only=False)
        for i in range(layout.width):
            if i not in numeric:
                words[i] += table.column(i).chunks
        rows += table.num_rows
    place = {i: k for k, i in enumerate(order)}
    return [
        numbers[place[i], :rows] if i in numeric else Text.of(pa.chunked_array(words[i], type=pa.string()))
        for i in range(layout.width)
    ]


class _Parser:
    """Arrow's parser for one block of whole rows."""

    def __init__(self, layout: Layout, numeric: set[int]) -> None:
        self.layout = layout
        kinds = {f"f{i}": pa.float64() if i in numeric else pa.string() for i in range(layout.width)}
        self.convert = pa.csv.ConvertOptions(
            column_types=kinds, null_values=[""], strings_can_be_null=True, check_utf8=False
        )
        self.inner_blank = re.compile(rb"(?:^|[\r\n]|" + re.escape(layout.separator.encode()) + rb') +"')

    def __call__(self, block: bytes) -> pa.Table:
        quoted = b'"' in block
        if b"\0" in block or (quoted and self.inner_blank.search(block)):  # Arrow keeps blanks before a quote
            raise IrregularError
        if not block.isascii():
            try:
                block.decode()
            except UnicodeDecodeError:
                raise IrregularError from None
        try:
            table = pa.csv.read_csv(
                pa.BufferReader(block),
                read_options=pa.csv.ReadOptions(
                    autogenerate_column_names=True, use_threads=False, block_size=len(block) + 1
                ),
                parse_options=pa.csv.ParseOptions(
                    delimiter=self.layout.separator, quote_char='"' if quoted else False, newlines_in_values=quoted
                ),
                convert_options=self.convert,
            )
        except pa.ArrowInvalid as error:
            place = re.search(r"column #(\d+): CSV conversion error", str(error))
            if place:
                raise NotANumber(int(place[1])) from None
            if not block.strip():
                return pa.table({f"f{i}": pa.array([], pa.string()) for i in range(self.layout.width)})
            raise IrregularError from None
        if table.num_columns != self.layout.width:
            raise IrregularError
        return table


def _blocks(stream: BinaryIO, layout: Layout, seen: Callable[[bytes], object]) -> Iterator[bytes]:
    """Pieces of whole rows; a line that ends inside quotes is no end of a row."""
    rest, size = b"", max(_BLOCK, 16 * layout.longest)
    while piece := stream.read(size):
        seen(piece)
        rest += piece
        cut = _last_end(rest, layout.end)
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
        elif len(rest) > _LONGEST:
            raise IrregularError
    if rest.count(b'"') % 2:
        raise IrregularError
    if rest.strip():
        yield rest if rest.endswith(layout.end) else rest + layout.end  # Arrow takes one row without an end for none


def _last_end(text: bytes, end: bytes) -> int:
    """Behind the last end of a line before which quotes are closed; 0 where there is none."""
    cut = text.rfind(end)
    quotes = text.count(b'"', 0, cut + 1) if cut >= 0 else 0
    while cut >= 0 and quotes % 2:
        last, cut = cut, text.rfind(end, 0, cut)
        quotes -= text.count(b'"', cut + 1, last + 1)
    return cut + 1


def _tables(blocks: Iterator[bytes], parse: _Parser, size: int) -> Iterator[tuple[pa.Table, int]]:
    """Parsed blocks in order, with their lengths; several at a time where there are several."""
    workers = min(_MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    if size <= 2 * _BLOCK or workers == 1:
        yield from ((parse(block), len(block)) for block in blocks)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for block in blocks:
            waiting.append((pool.submit(parse, block), len(block)))
            if len(waiting) > workers + 1:
                job, length = waiting.popleft()
                yield job.result(), length
        for job, length in waiting:
            yield job.result(), length
