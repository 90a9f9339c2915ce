"""A regular text file read block by block, so that memory holds the numbers and little else."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from typing import BinaryIO

import numpy as np

from ...core.lazy import late
from .raw import Column, Text, stripped
from .threads import workers

pa = late("pyarrow")
pc = late("pyarrow.compute")
pyarrow_csv = late("pyarrow.csv")

_BLOCK, _LONGEST = 1 << 20, 1 << 26


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


@dataclass(frozen=True)
class Kinds:
    """What the columns hold, as far as lines from all over a file say.

    Attributes:
        numeric: positions of columns that look like numbers throughout, and not like codes.
        repeated: of columns with few distinct cells.
        wordy: of columns with a word that is neither a number nor true or false.
    """

    numeric: frozenset[int]
    repeated: frozenset[int]
    wordy: frozenset[int]


def read_blocks(
    stream: BinaryIO,
    layout: Layout,
    numeric: Collection[int],
    repeated: Collection[int],
    size: int,
    seen: Callable[[bytes], object],
) -> list[Column]:
    """Columns of the rows from where ``stream`` stands: those in ``numeric`` as float64, others as text.

    The calling thread reads, cuts and calls ``seen``; others parse, and put what they parsed where it belongs.

    Args:
        stream: bytes.
        layout: how rows are cut.
        numeric: positions of columns to read as numbers at once.
        repeated: positions of columns of text with few distinct words.
        size: about how many bytes follow.
        seen: is called with all bytes, in order.

    Raises:
        IrregularError: the text is not UTF-8, or not regular.
        NotANumber: a column of ``numeric`` holds a word.
    """
    parse = _Parser(layout, numeric, repeated)
    columns = _Columns(layout.width, numeric, repeated, size)

    def work(turn: int, block: bytes) -> None:
        try:
            table = parse(block)
            words, cells = columns.words(table), columns.stripped(table)
        except BaseException:
            columns.skip(turn)
            raise
        columns.put(turn, table, words, cells, len(block))

    blocks = enumerate(_blocks(stream, layout, seen))
    if size <= 2 * _BLOCK or workers() == 1:
        for turn, block in blocks:
            work(turn, block)
        return columns.whole()
    with ThreadPoolExecutor(workers()) as pool:
        waiting: deque[Future[None]] = deque()
        for turn, block in blocks:
            waiting.append(pool.submit(work, turn, block))
            if len(waiting) > workers() + 1:
                waiting.popleft().result()
        for job in waiting:
            job.result()
    return columns.whole()


def read_lines(lines: bytes, layout: Layout) -> list[Text]:
    """Columns of a few whole lines, all as text.

    Raises:
        IrregularError: they are not UTF-8, or not regular.
    """
    table = _Parser(layout, (), ())(lines if lines.endswith(layout.end) else lines + layout.end)
    return [Text.of(column) for column in table.columns]


class _Columns:
    """Columns that grow by blocks: threads that come in any order put theirs in turn.

    Args:
        width: how many.
        numeric, repeated: as of :func:`read_blocks`.
        size: about how many bytes the blocks have together.
    """

    def __init__(self, width: int, numeric: Collection[int], repeated: Collection[int], size: int) -> None:
        self.width, self.size = width, size
        self.numeric, self.repeated = sorted(numeric), sorted(repeated)
        self.numbers = np.empty((len(self.numeric), 0))
        self.codes = np.empty((len(self.repeated), 0), dtype=np.int32)
        self.places: list[dict[str | None, int]] = [{None: -1} for _ in self.repeated]
        texts = {*range(width)} - {*numeric, *repeated}
        self.cells: dict[int, list[pa.Array]] = {i: [] for i in texts}
        self.rows = self.done = self.next = self.writing = 0
        self.changed = Condition()

    def skip(self, turn: int) -> None:
        """Let the next ones pass: there is no block of this turn."""
        with self.changed:
            self._wait(turn)
            self._pass()

    def words(self, table: pa.Table) -> list[list[str | None]]:
        """The distinct words of each column of few."""
        return [stripped(_whole(table.column(i)).dictionary).to_pylist() for i in self.repeated]

    def stripped(self, table: pa.Table) -> list[pa.Array]:
        """The cells of each other column of text."""
        return [stripped(_whole(table.column(i))) for i in self.cells]

    def put(
        self, turn: int, table: pa.Table, words: list[list[str | None]], cells: list[pa.Array], length: int
    ) -> None:
        """Take a parsed block of so many bytes."""
        with self.changed:
            self._wait(turn)
            try:
                start = self.rows
                self.rows, self.done = start + table.num_rows, self.done + length
                self._make_room()
                codes = [self._coded(places, some) for places, some in zip(self.places, words)]
                for own, some in zip(self.cells.values(), cells):
                    own.append(some)
                rows = slice(start, self.rows)
                self.writing += 1
            finally:
                self._pass()
        try:
            for row, i in zip(self.numbers, self.numeric):
                row[rows] = _whole(table.column(i)).to_numpy(zero_copy_only=False)
            for row, i, own in zip(self.codes, self.repeated, codes):
                row[rows] = own[pc.fill_null(_whole(table.column(i)).indices, -1).to_numpy(zero_copy_only=False)]
        finally:
            with self.changed:
                self.writing -= 1
                self.changed.notify_all()

    def whole(self) -> list[Column]:
        """The columns."""
        columns: dict[int, Column] = {i: row[: self.rows] for i, row in zip(self.numeric, self.numbers)}
        for i, codes, places in zip(self.repeated, self.codes, self.places):
            columns[i] = Text.from_codes(codes[: self.rows], [word for word in places if word is not None])
        for i, cells in self.cells.items():
            columns[i] = Text(_whole(pa.chunked_array(cells, type=pa.string())))
        return [columns[i] for i in range(self.width)]

    def _wait(self, turn: int) -> None:
        self.changed.wait_for(lambda: self.next == turn)

    def _pass(self) -> None:
        self.next += 1
        self.changed.notify_all()

    def _make_room(self) -> None:
        """Arrays of as many rows as there are, and about as many as will come."""
        if self.rows <= max(self.numbers.shape[1], self.codes.shape[1]):
            return
        self.changed.wait_for(lambda: not self.writing)
        room = max(self.rows, int(self.rows * max(self.size, self.done) / max(self.done, 1) * 1.02))
        self.numbers, self.codes = _longer(self.numbers, room), _longer(self.codes, room)

    @staticmethod
    def _coded(places: dict[str | None, int], words: list[str | None]) -> np.ndarray:
        """Codes of a block's words, a missing cell last; new words get the next ones."""
        for word in words:
            places.setdefault(word, len(places) - 1)
        return np.array([*(places[word] for word in words), -1], dtype=np.int32)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _longer(rows: np.ndarray, room: int) -> np.ndarray:
    longer = np.empty((len(rows), room), dtype=rows.dtype)
    longer[:, : rows.shape[1]] = rows
    return longer


class _Parser:
    """Arrow's parser for one block of whole rows."""

    def __init__(self, layout: Layout, numeric: Collection[int], repeated: Collection[int]) -> None:
        self.layout = layout
        kinds = {f"f{i}": pa.string() for i in range(layout.width)}
        kinds |= {f"f{i}": pa.float64() for i in numeric}
        kinds |= {f"f{i}": pa.dictionary(pa.int32(), pa.string()) for i in repeated}
        self.convert = pyarrow_csv.ConvertOptions(
            column_types=kinds, null_values=[""], strings_can_be_null=True, check_utf8=False
        )
        self.inner_blank = re.compile(rb"(?:^|[\r\n]|" + re.escape(layout.separator.encode()) + rb') +"')

    def __call__(self, block: bytes) -> pa.Table:
        quoted = b'"' in block
        if b"\0" in block or (b' "' in block and self.inner_blank.search(block)):  # Arrow keeps blanks before a quote
            raise IrregularError
        if not block.isascii():
            try:
                block.decode()
            except UnicodeDecodeError:
                raise IrregularError from None
        try:
            table = pyarrow_csv.read_csv(
                pa.BufferReader(block),
                read_options=pyarrow_csv.ReadOptions(
                    autogenerate_column_names=True, use_threads=False, block_size=len(block) + 1
                ),
                parse_options=pyarrow_csv.ParseOptions(
                    delimiter=self.layout.separator, quote_char='"' if quoted else False, newlines_in_values=quoted
                ),
                convert_options=self.convert,
            )
        except pa.ArrowInvalid as error:
            place = re.search(r"column #(\d+): CSV conversion error", str(error))
            if place:
                raise NotANumber(int(place[1])) from None
            if not block.strip():
                return pa.table({name: pa.array([], kind) for name, kind in self.convert.column_types.items()})
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
    if _quotes(rest) % 2:
        raise IrregularError
    if rest.strip():
        yield rest if rest.endswith(layout.end) else rest + layout.end  # Arrow takes one row without an end for none


def _quotes(text: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == ord('"')))  # bytes.count goes from one to one


def _last_end(text: bytes, end: bytes) -> int:
    """Behind the last end of a line before which quotes are closed; 0 where there is none."""
    cut = text.rfind(end)
    quotes = _quotes(text[: cut + 1]) if b'"' in text else 0
    while cut >= 0 and quotes % 2:
        last, cut = cut, text.rfind(end, 0, cut)
        quotes -= text.count(b'"', cut + 1, last + 1)
    return cut + 1
