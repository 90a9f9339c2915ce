"""What is finished stays finished: a row a cell, in one SQLite file a run, or in a database that machines share.

Any number of processes may write to it: each claims a job before it computes it, and of two results of one cell the
first stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import InputError
from ..request import RUNS
from .facts import read_fact

if TYPE_CHECKING:
    from ..design.jobs import Job
    from ..design.levels import Level
    from ..scores.outcome import Outcome
    from .cells import CellResult

_UNREADABLE = (sqlite3.Error, UnicodeError)
"""What sqlite3 raises on a damaged file; its messages quote bytes that need not be text."""
_FORMAT = 2
"""Of the file; a run of another one is not read."""
TABLES = """
create table if not exists facts (key text primary key, value text not null);
create table if not exists cells (
  kind text not null, name text not null, repeat integer not null, fold integer not null, level text not null,
  computed integer not null, content text not null, outcome {blob} not null,
  primary key (name, repeat, fold, level)
);
create table if not exists trials (
  name text not null, repeat integer not null, fold integer not null, rows integer not null, epochs integer not null,
  trial integer not null, content text not null,
  primary key (name, repeat, fold, rows, epochs, trial)
);
create table if not exists claims (
  kind text not null, name text not null, repeat integer not null, fold integer not null, level text not null,
  size text not null, holder text not null, until double precision not null, ends_at double precision not null,
  seconds double precision not null,
  primary key (name, repeat, fold, level)
);
create table if not exists members (
  holder text primary key, processes integer not null, until double precision not null
);
create table if not exists data (
  field text primary key, kind text not null, label text not null, content {blob} not null
);
"""
_PATIENCE = 30.0
"""Seconds that a process waits for others who write to the file."""
LONGEST = 1e12
"""Seconds in place of infinity."""

T = TypeVar("T")
Execute = Callable[..., list[tuple[Any, ...]]]
"""``execute(query, values)`` inside a transaction: the rows that it returns."""


@dataclass(frozen=True)
class Posted:
    """A job that somebody waits for.

    Attributes:
        kind, name, repeat, fold: of its cell.
        level: of the cell, as it is stored.
        size: level and stacks of the job, as :func:`size_of` writes them.
        ends_at: when it is over, by the store's clock.
        seconds: that it may take at most; 0 where it was given up.
        taken: whether somebody holds it.
    """

    kind: str
    name: str
    repeat: int
    fold: int
    level: str
    size: str
    ends_at: float
    seconds: float
    taken: bool

    @property
    def cell(self) -> tuple[str, int, int, str]:
        """As :meth:`Store.finished` names it."""
        return self.name, self.repeat, self.fold, self.level


_CELL = "name = ? and repeat = ? and fold = ? and level = ?"


def _level(job: Job) -> Level:
    """The level of a job that says it."""
    if job.level is None:
        raise ValueError("job: expected one with a level")
    return job.level


def cell_of(job: Job) -> tuple[str, int, int, str]:
    """The cell of a job, as :meth:`Store.finished` names it."""
    ((repeat, fold),) = job.cells
    return job.name, repeat, fold, _level(job).of(job.kind, job.name)


def size_of(job: Job) -> str:
    """The level of a job, and where its trials are parted into stacks.

    >>> from steepest.comparison.design.jobs import Job
    >>> from steepest.comparison.design.levels import Level
    >>> size_of(Job("objective", "focal", ((0, 0),), Level(900, 60, 8), (4, 8)))
    '900/60/8;4,8'
    """
    return f"{_level(job).text};{','.join(map(str, job.groups))}"


class Store:
    """The finished cells of one run at each level, its trials, and its facts (settings, what was decided, data).

    ``computed`` counts how often a cell was computed: 1 for every row of a run that lost nothing, however often it was
    killed. A transaction holds all cells of one job. Leases run by the clock of the store, which for a file is that of
    its machine.

    Args:
        folder: of the run; made if it is missing.
        holder: who claims jobs by it; None is a new one.

    Raises:
        InputError: the folder or file cannot be used.
    """

    connection: Any
    """Of the module that speaks with it."""

    NOW = "(julianday('now') - 2440587.5) * 86400.0"
    """The clock of the store: seconds since 1970."""

    def __init__(self, folder: Path, holder: str | None = None) -> None:
        self.folder = folder
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._open()

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path = self.folder / "run.sqlite"
            self.connection = sqlite3.connect(self.path, isolation_level=None, timeout=_PATIENCE)
            self.connection.execute("pragma trusted_schema=off")  # a file may come from anywhere
            _write_ahead(self.connection)
            self.connection.execute("pragma synchronous=full")
            # both at once: another process may be making them
            query = "select user_version, (select count(*) from sqlite_master where type = 'table') "
            known, tables = self.connection.execute(query + "from pragma_user_version").fetchone()
            if tables and known != _FORMAT:
                raise InputError(
                    f"{self._where} was kept by another version of steepest; move its folder away to begin anew"
                )
            if tables < TABLES.count("create table"):
                script = TABLES.format(blob="blob") + f"pragma user_version = {_FORMAT};"
                self.connection.executescript(f"begin immediate; {script} commit;")
        except (OSError, *_UNREADABLE) as error:
            raise InputError(f"cannot keep the run in {str(self.folder)!r}: {error}") from error

    def again(self) -> Self:
        """Another connection of the same holder, for another thread."""
        return type(self)(self.folder, self.holder)

    @property
    def place(self) -> str:
        """What another process is told to find this run."""
        return str(self.folder)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fact(self, key: str) -> Any:
        """A stored fact, or None."""
        rows = self._rows("select value from facts where key = ?", (key,))
        return read_fact(rows[0][0], key, self._where) if rows else None

    @property
    def _where(self) -> str:
        return f"run {self.folder.name}"

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            InputError: the file is damaged.
        """
        try:
            rows: list[tuple[Any, ...]] = self.connection.execute(query, values).fetchall()
            return rows
        except _UNREADABLE as error:
            raise InputError(f"{self._where} cannot be read: {error}") from error

    def set_fact(self, key: str, value: Any) -> None:
        """Store a fact (JSON)."""
        self.set_facts({key: value})

    def set_facts(self, facts: dict[str, Any]) -> None:
        """Store facts (JSON), all or none."""
        rows = [(key, json.dumps(value, allow_nan=False)) for key, value in facts.items()]
        query = "insert into facts values (?, ?) on conflict (key) do update set value = excluded.value"

        def write(execute: Execute, _: bool) -> None:
            for row in rows:
                execute(query, row)

        self._together(write)

    def _together(self, write: Callable[[Execute, bool], T], *, durable: bool = True) -> T:
        """``write(execute, again)`` in one transaction, all or none of it.

        ``again`` says that an earlier try may have been written, though nobody heard of it. What is not ``durable`` may
        be gone after the database was killed, and nothing waits for the disk. Who computes what is durable: a member
        outlives the database, and what it computes would be computed twice.
        """

        def execute(query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = self.connection.execute(query, values).fetchall()
            return rows

        if not durable:
            (before,) = self.connection.execute("pragma synchronous").fetchone()
            self.connection.execute(f"pragma synchronous={min(before, 1)}")
        self.connection.execute("begin immediate")
        try:
            value = write(execute, False)
            self.connection.execute("commit")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("rollback")
            raise
        finally:
            if not durable:
                self.connection.execute(f"pragma synchronous={before}")
        return value

    def put(self, results: Sequence[CellResult]) -> int:
        """Write the cells of one job with their trials, all or none; of one cell the first stays.

        Returns:
            how many of them were the first.
        """
        rows = [
            (r.kind, r.name, r.repeat, r.fold, r.level, json.dumps(r.values, allow_nan=False), r.arrays())
            for r in results
        ]
        trials = [
            [
                (
                    r.name,
                    r.repeat,
                    r.fold,
                    *map(int, r.level.split("/")[:2]),
                    number,
                    json.dumps(record, allow_nan=False),
                )
                for number, record in r.trials.items()
            ]
            for r in results
        ]

        def write(execute: Execute, again: bool) -> int:
            first = 0
            for row, records in zip(rows, trials):
                cell = row[1:5]
                if execute(
                    "insert into cells values (?, ?, ?, ?, ?, 1, ?, ?) "
                    "on conflict (name, repeat, fold, level) do nothing returning computed",
                    row,
                ):
                    first += 1
                    for record in records:
                        execute(
                            "insert into trials values (?, ?, ?, ?, ?, ?, ?) on conflict "
                            "(name, repeat, fold, rows, epochs, trial) do update set content = excluded.content",
                            record,
                        )
                elif not again:
                    execute(f"update cells set computed = computed + 1 where {_CELL}", cell)
                execute(f"delete from claims where {_CELL}", cell)
            return first

        return self._together(write)

    # ---- who computes what ----

    def now(self) -> float:
        """The time by the clock of the store."""
        return float(self._rows(f"select {self.NOW}")[0][0])

    skew = 0.0
    """The clock of the store less that of this machine."""

    def claim(self, job: Job, lease: float) -> bool:
        """Take a job for ``lease`` seconds, so that nobody else computes it.

        Returns:
            False where it is finished, or somebody else holds it and its lease is not over.
        """
        cell = cell_of(job)
        values = (job.kind, *cell, size_of(job), self.holder)
        query = (
            f"insert into claims select ?, ?, ?, ?, ?, ?, ?, {self.NOW} + ?, ?, ? "
            f"where not exists (select 1 from cells where {_CELL}) "
            "on conflict (name, repeat, fold, level) do update set holder = excluded.holder, until = excluded.until "
            f"where claims.until < {self.NOW} or claims.holder = excluded.holder returning holder"
        )
        row = (*values, float(lease), LONGEST, LONGEST, *cell)
        return bool(self._together(lambda execute, _: execute(query, row)))

    def release(self, job: Job) -> None:
        """Give a claimed job back, for others to take."""
        query = f"update claims set until = 0 where {_CELL} and holder = ?"
        self._together(lambda execute, _: execute(query, (*cell_of(job), self.holder)), durable=False)

    def give_up(self, job: Job) -> None:
        """Say that a claimed job was not done in its time: nobody takes it, and who waits for it is told."""
        query = f"update claims set until = 0, seconds = 0 where {_CELL} and holder = ?"
        self._together(lambda execute, _: execute(query, (*cell_of(job), self.holder)), durable=False)

    def renew(self, lease: float, processes: int = 0) -> None:
        """Hold all that is claimed for ``lease`` seconds from now, and say that so many processes are at work."""

        def write(execute: Execute, _: bool) -> None:
            execute(
                f"update claims set until = {self.NOW} + ? where holder = ? and until > 0", (float(lease), self.holder)
            )
            execute(
                f"insert into members select ?, ?, {self.NOW} + ? where true on conflict (holder) do update set "
                "processes = excluded.processes, until = excluded.until",
                (self.holder, processes, float(lease)),
            )

        self._together(write, durable=False)

    def leave(self) -> None:
        """Give everything back, and be no member any more."""

        def write(execute: Execute, _: bool) -> None:
            execute("update claims set until = 0 where holder = ?", (self.holder,))
            execute("delete from members where holder = ?", (self.holder,))

        self._together(write, durable=False)

    def helpers(self) -> int:
        """Processes that others have at work on this run."""
        query = f"select coalesce(sum(processes), 0) from members where holder != ? and until > {self.NOW}"
        return int(self._rows(query, (self.holder,))[0][0])

    def over(self) -> bool:
        """Whether the command that computed it last has come to its end."""
        begun, ended = self.fact("begun"), self.fact("ended")
        return ended is not None and (begun is None or ended >= begun)

    def post(self, job: Job, ends_at: float, seconds: float) -> None:
        """Have a job computed by whoever claims it.

        Args:
            job: of one cell.
            ends_at: when it is over, by the clock of the store.
            seconds: that it may take.
        """
        row = (job.kind, *cell_of(job), size_of(job), "", 0.0, min(ends_at, LONGEST), min(seconds, LONGEST))
        query = (
            "insert into claims values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (name, repeat, fold, level) "
            "do update set ends_at = excluded.ends_at, seconds = excluded.seconds"
        )
        self._together(lambda execute, _: execute(query, row), durable=False)

    def posted(self) -> list[Posted]:
        """All jobs that somebody waits for or holds."""
        columns = "kind, name, repeat, fold, level, size, ends_at, seconds"
        rows = self._rows(f"select {columns}, until > {self.NOW} from claims order by repeat, fold, name")
        return [
            Posted(
                str(kind),
                str(name),
                int(repeat),
                int(fold),
                str(level),
                str(size),
                float(ends_at),
                float(seconds),
                bool(taken),
            )
            for kind, name, repeat, fold, level, size, ends_at, seconds, taken in rows
        ]

    def withdraw(self, jobs: Sequence[Job], *, taken: bool = False) -> None:
        """Nobody waits for these jobs any more; those that somebody else has begun stay, unless ``taken`` too."""
        free = "" if taken else f" and (until < {self.NOW} or holder = ?)"
        own = () if taken else (self.holder,)

        def write(execute: Execute, _: bool) -> None:
            for job in jobs:
                execute(f"delete from claims where {_CELL}{free}", (*cell_of(job), *own))

        self._together(write, durable=False)

    def take_back(self, job: Job) -> bool:
        """Withdraw a posted job that nobody holds; whether that was so."""
        query = f"delete from claims where {_CELL} and until < {self.NOW} returning name"
        return bool(self._together(lambda execute, _: execute(query, cell_of(job))))

    # ---- the data themselves ----

    def keep_data(self, rows: Sequence[tuple[str, str, str, bytes]]) -> None:
        """Keep what the data are read from: field of the request, kind, label, bytes."""

        def write(execute: Execute, _: bool) -> None:
            for row in rows:
                execute(
                    "insert into data values (?, ?, ?, ?) on conflict (field) do update set "
                    "kind = excluded.kind, label = excluded.label, content = excluded.content",
                    row,
                )

        self._together(write)

    def kept_data(self) -> list[tuple[str, str, str, bytes]]:
        """What :meth:`keep_data` has kept."""
        return [(str(a), str(b), str(c), bytes(d)) for a, b, c, d in self._rows("select * from data order by field")]

    # ---- what is finished ----

    def finished(self) -> set[tuple[str, int, int, str]]:
        """``(name, repeat, fold, level)`` of every finished cell."""
        return set(self._rows("select name, repeat, fold, level from cells"))

    @property
    def done(self) -> int:
        """How many cells are finished at one level at least."""
        return len({cell[:3] for cell in self.finished()})

    def trials(self, name: str, pair: tuple[int, int], level: Level) -> dict[int, dict[str, Any]]:
        """The records of the trials of a cell that are known at the rows and epochs of a level, by number."""
        from .stored import read_trial

        query = (
            "select trial, content from trials where name = ? and repeat = ? and fold = ? and rows = ? and epochs = ?"
        )
        rows = self._rows(query, (name, *pair, level.rows, level.epochs))
        where = f"{self._where}: {name}, repeat {pair[0]}, fold {pair[1]}"
        return dict(read_trial(row, where) for row in rows)

    def counters(self) -> list[int]:
        """How often each finished cell was computed."""
        return [row[0] for row in self._rows("select computed from cells")]

    def cells(self, level: Level) -> dict[str, dict[tuple[int, int], dict[str, Any]]]:
        """``name -> (repeat, fold) -> values`` of the cells at a level, with ``kind`` among the values."""
        from .stored import read_cell

        cells: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
        query = (
            "select kind, name, repeat, fold, content, level from cells where (kind = 'classical' and level in (?, ?)) "
            "or (kind != 'classical' and level = ?) order by name, repeat, fold"
        )
        levels = (f"{level.rows}/0/0", f"{level.rows}/0/{level.trials}", level.of("objective"))
        for *row, own in self._rows(query, levels):
            kind, name, pair, values = read_cell(row, self._where)
            if own != level.of(kind, name):
                continue
            cells.setdefault(name, {})[pair] = {**values, "kind": kind}
        return cells

    def outcome(self, name: str, repeat: int, fold: int, level: Level) -> Outcome:
        """What a cell said about its test rows."""
        from .stored import read_outcome

        query = "select outcome from cells where name = ? and repeat = ? and fold = ? and level in (?, ?)"
        rows = self._rows(query, (name, repeat, fold, level.of("objective"), level.of("classical", name)))
        if not rows:
            raise KeyError((name, repeat, fold, level))
        return read_outcome(rows[0][0], f"{self._where}: {name}, repeat {repeat}, fold {fold}: outcome")

    def result(self, job: Job) -> CellResult | None:
        """The cell of a job that somebody has put, or None."""
        from .cells import CellResult
        from .stored import read_cell, read_outcome

        columns = "kind, name, repeat, fold, content, outcome"
        rows = self._rows(f"select {columns} from cells where {_CELL}", cell_of(job))
        if not rows:
            return None
        kind, name, pair, values = read_cell(rows[0][:5], self._where)
        outcome = read_outcome(rows[0][5], f"{self._where}: {name}, repeat {pair[0]}, fold {pair[1]}: outcome")
        took = float(values.get("seconds", 0.0))
        return CellResult(kind, name, *pair, values, outcome, cell_of(job)[3], took=took, stored=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: a second command on the same run is refused.

        Raises:
            InputError: another process computes this run.
        """
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"run {self.folder.name} is being computed by another process") from error
            yield


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Keep the journal apart from the file, so that readers and writers do not wait for each other.

    SQLite waits for others who write, but not with this one statement: where another process is just changing the
    journal too, it says at once that the file is locked.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("pragma journal_mode=wal")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def open_store(folder: Path, url: str | None = None) -> Store:
    """The store of a run: the file in its folder, or a database.

    Args:
        folder: of the run, named as the run.
        url: ``postgresql://...``; None is a file.
    """
    if url is None:
        return Store(folder)
    from .postgres import PostgresStore

    return PostgresStore(folder, url=url)


def runs(root: Path = RUNS) -> list[Path]:
    """The folders of all runs under ``root``, newest first."""
    folders = [path.parent for path in root.glob("*/run.sqlite")]

    def begun(folder: Path) -> float:  # reading a run touches its folder, computing it its lock
        lock = folder / "lock"
        return (lock if lock.exists() else folder / "run.sqlite").stat().st_mtime

    return sorted(folders, key=begun, reverse=True)


def find_winner(name: str, root: Path = RUNS) -> Path:
    """The folder of a winner, or of the run that holds one: a path, wherever it was copied, or as :func:`find_run`."""
    here = Path(name)
    if (here / "winner.json").is_file() or (here / "winner" / "winner.json").is_file():
        return here
    return find_run(name, root)


def find_run(name: str, root: Path = RUNS) -> Path:
    """The folder of a run: a path, an ID, the start of one, or ``"last"``.

    Raises:
        InputError: none, or more than one fits.
    """
    if any((Path(name) / file).is_file() for file in ("run.sqlite", "results.json")):
        return Path(name)
    known = runs(root)
    if name == "last" and known:
        return known[0]
    fitting = [path for path in known if path.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(f"run {name!r} fits {len(fitting)} runs: {', '.join(p.name for p in fitting)}")
    listed = ", ".join(path.name for path in known[:5]) or "none"
    raise InputError(f"no run {name!r} under {str(root)!r}; there are: {listed}")
