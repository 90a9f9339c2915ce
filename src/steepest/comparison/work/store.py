"""What is finished stays finished: one SQLite file a run, written by the parent process alone, a row a cell."""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..request import RUNS
from .facts import read_fact

if TYPE_CHECKING:
    from ..design.levels import Level
    from ..scores.outcome import Outcome
    from .cells import CellResult

_UNREADABLE = (sqlite3.Error, UnicodeError)
"""What sqlite3 raises on a damaged file; its messages quote bytes that need not be text."""
_FORMAT = 2
"""Of the file; a run of another one is not read."""
_SCHEMA = f"""
create table if not exists facts (key text primary key, value text not null);
create table if not exists cells (
  kind text not null, name text not null, repeat integer not null, fold integer not null, level text not null,
  computed integer not null, content text not null, outcome blob not null,
  primary key (name, repeat, fold, level)
);
create table if not exists trials (
  name text not null, repeat integer not null, fold integer not null, rows integer not null, epochs integer not null,
  trial integer not null, content text not null,
  primary key (name, repeat, fold, rows, epochs, trial)
);
pragma user_version = {_FORMAT};
"""


class Store:
    """The finished cells of one run at each level, its trials, and its facts (settings, what was decided, data).

    ``computed`` counts how often a cell was computed: 1 for every row of a run that lost nothing, however often it was
    killed. A transaction holds all cells of one job.

    Args:
        folder: of the run; made if it is missing.

    Raises:
        InputError: the folder or file cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / "run.sqlite"
            self.connection = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            self.connection.execute("pragma trusted_schema=off")  # a file may come from anywhere
            self.connection.execute("pragma journal_mode=wal")
            self.connection.execute("pragma synchronous=full")
            (known,), (tables,) = (
                self.connection.execute(query).fetchone()
                for query in ("pragma user_version", "select count(*) from sqlite_master where type = 'table'")
            )
            if tables and known != _FORMAT:
                raise InputError(
                    f"{self._where} was kept by another version of steepest; move its folder away to begin anew"
                )
            self.connection.executescript(_SCHEMA)
        except (OSError, *_UNREADABLE) as error:
            raise InputError(f"cannot keep the run in {str(folder)!r}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

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
            return self.connection.execute(query, values).fetchall()
        except _UNREADABLE as error:
            raise InputError(f"{self._where} cannot be read: {error}") from error

    def set_fact(self, key: str, value: Any) -> None:
        """Store a fact (JSON)."""
        self.set_facts({key: value})

    def set_facts(self, facts: dict[str, Any]) -> None:
        """Store facts (JSON), all or none."""
        rows = [(key, json.dumps(value, allow_nan=False)) for key, value in facts.items()]
        with self._transaction():
            self.connection.executemany("insert or replace into facts values (?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("begin immediate")
        try:
            yield
            self.connection.execute("commit")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("rollback")
            raise

    def add(self, results: Sequence[CellResult]) -> None:
        """Write the cells of one job with their trials, all or none."""
        rows = [
            (r.kind, r.name, r.repeat, r.fold, r.level, json.dumps(r.values, allow_nan=False), r.arrays())
            for r in results
        ]
        trials = [
            (r.name, r.repeat, r.fold, *r.level.split("/")[:2], number, json.dumps(record, allow_nan=False))
            for r in results
            for number, record in r.trials.items()
        ]
        with self._transaction():
            self.connection.executemany(
                "insert into cells values (?, ?, ?, ?, ?, 1, ?, ?) on conflict (name, repeat, fold, level) do update "
                "set computed = computed + 1, content = excluded.content, outcome = excluded.outcome",
                rows,
            )
            self.connection.executemany("insert or replace into trials values (?, ?, ?, ?, ?, ?, ?)", trials)

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
            "select kind, name, repeat, fold, content from cells where (kind = 'classical' and level = ?) "
            "or (kind != 'classical' and level = ?) order by name, repeat, fold"
        )
        for row in self._rows(query, (level.of("classical"), level.of("objective"))):
            kind, name, pair, values = read_cell(row, self._where)
            cells.setdefault(name, {})[pair] = {**values, "kind": kind}
        return cells

    def outcome(self, name: str, repeat: int, fold: int, level: Level) -> Outcome:
        """What a cell said about its test rows."""
        from .stored import read_outcome

        query = "select outcome from cells where name = ? and repeat = ? and fold = ? and level in (?, ?)"
        rows = self._rows(query, (name, repeat, fold, level.of("objective"), level.of("classical")))
        if not rows:
            raise KeyError((name, repeat, fold, level))
        return read_outcome(rows[0][0], f"{self._where}: {name}, repeat {repeat}, fold {fold}: outcome")

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
