"""A run in a PostgreSQL database, which any number of machines write to; each run is a schema of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from ..errors import InputError
from ..request import without_password
from .store import TABLES, Execute, Store

try:
    import psycopg
except ImportError as error:
    raise InputError(f"--store: {error}; pip install 'steepest[postgres]'") from error

T = TypeVar("T")

PREFIX = "steepest_2_"
"""Of the schemas; the number is the format of the tables."""
PATIENCE = 300.0
"""Seconds for which a database that is away is waited for."""
OPTIONS = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
"""So that the server drops the lock of a machine that is gone."""


class PostgresStore(Store):
    """The store of one run in a database: the same tables, and leases by the clock of the server.

    A connection that is lost is made again, and what it was doing is done again, for up to :data:`PATIENCE` seconds.

    Args:
        folder: named as the run; its report and winner live there.
        holder: who claims jobs by it; None is a new one.
        url: ``postgresql://user@host:port/database``.
        make: whether the run is made where it is missing.

    Raises:
        InputError: there is no such database, or no such run.
    """

    NOW = "extract(epoch from clock_timestamp())::double precision"

    def __init__(self, folder: Path, holder: str | None = None, *, url: str, make: bool = True) -> None:
        self.url, self._make = check_url(url), make
        self._locked = False
        super().__init__(folder, holder)

    def _open(self) -> None:
        self.schema = schema_of(self.folder.name)
        try:
            self._connect()
        except psycopg.Error as error:
            raise InputError(f"cannot keep the run in {shown(self.url)}: {_line(error)}") from error

    def _connect(self) -> None:
        self.connection = connect(self.url)
        with self.connection.transaction():
            there = self.connection.execute(
                "select 1 from information_schema.schemata where schema_name = %s", (self.schema,)
            ).fetchone()
            if not there and not self._make:
                raise InputError(f"no run {self.folder.name!r} in {shown(self.url)}")
            if not there:
                self.connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 1))", (self.schema,))
                self.connection.execute(f"create schema if not exists {self.schema}")
                self.connection.execute(f"set local search_path to {self.schema}")
                self.connection.execute(TABLES.format(blob="bytea"))
        self.connection.execute(f"set search_path to {self.schema}")
        self._make = False
        before = time.time()
        (now,) = self.connection.execute(f"select {self.NOW}").fetchone()
        self.skew = now - (before + time.time()) / 2
        if self._locked and not self._lock():
            raise psycopg.OperationalError("the lock of this run is still with a lost connection")

    def again(self) -> Self:
        """Another connection of the same holder, for another thread."""
        return type(self)(self.folder, self.holder, url=self.url, make=False)

    @property
    def place(self) -> str:
        """What another process is told to find this run."""
        return shown(self.url)

    def _patiently(self, what: Callable[[bool], T]) -> T:
        """``what(again)``, as often as the connection is lost on the way."""
        started, pause, again = time.monotonic(), 0.1, False
        while True:
            try:
                if self.connection.closed:
                    self._connect()
                return what(again)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if time.monotonic() - started > PATIENCE:
                    raise ConnectionError(f"{shown(self.url)} is away: {_line(error)}") from error
                again = True
                self.connection.close()
                time.sleep(pause)
                pause = min(2.0, 2 * pause)

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._patiently(lambda _: self.connection.execute(_adapted(query), values).fetchall())

    def _together(self, write: Callable[[Execute, bool], T], *, durable: bool = True) -> T:
        def execute(query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
            cursor = self.connection.execute(_adapted(query), values)
            return cursor.fetchall() if cursor.description else []

        def tried(again: bool) -> T:
            with self.connection.transaction():
                if not durable:
                    self.connection.execute("set local synchronous_commit to off")
                return write(execute, again)

        return self._patiently(tried)

    def _lock(self) -> bool:
        query = "select pg_try_advisory_lock(hashtextextended(%s, 0))"
        return bool(self.connection.execute(query, (self.schema,)).fetchone()[0])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: a second ``steepest compare`` of it is refused; workers may join.

        Raises:
            InputError: another process computes this run.
        """
        if not self._patiently(lambda _: self._lock()):
            raise InputError(f"run {self.folder.name} is being computed by another process")
        self._locked = True
        try:
            yield
        finally:
            self._locked = False
            with suppress(psycopg.Error):  # a connection that is lost holds nothing
                self.connection.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", (self.schema,))


def connect(url: str) -> Any:
    """A connection, each statement a transaction unless it says otherwise; a server that starts is waited for."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return psycopg.connect(url, autocommit=True, connect_timeout=10, options=OPTIONS)
        except psycopg.OperationalError as error:
            if "is starting up" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.2)


def check_url(url: str) -> str:
    """Refuse what is no address of a database."""
    if not re.match(r"postgres(ql)?://", url):
        raise InputError(f"--store: expected postgresql://user@host:port/database, got {url!r:.80}")
    return url


def shown(url: str) -> str:
    """An address without its password.

    >>> shown("postgresql://me:secret@host:5432/runs?sslmode=require")
    'postgresql://me@host:5432/runs'
    """
    return without_password(url).partition("?")[0]


def schema_of(run: str) -> str:
    """The schema of a run, whose ID is checked: it stands in statements."""
    if not re.fullmatch(r"[a-z0-9_]{1,40}", run):
        raise InputError(f"expected the ID of a run, got {run!r:.80}")
    return PREFIX + run


def postgres_runs(url: str) -> list[str]:
    """The IDs of all runs in a database."""
    try:
        with connect(check_url(url)) as connection:
            rows = connection.execute(
                "select schema_name from information_schema.schemata where starts_with(schema_name, %s) order by 1",
                (PREFIX,),
            ).fetchall()
    except psycopg.Error as error:
        raise InputError(f"cannot list the runs in {shown(url)}: {_line(error)}") from error
    return [name.removeprefix(PREFIX) for (name,) in rows]


def latest_run(url: str) -> str | None:
    """The run that was begun last, or None."""
    return next(iter(latest_runs(url)), None)


def latest_runs(url: str) -> list[str]:
    """The IDs of all runs in a database, the one that was begun last first."""
    begun: list[tuple[float, str]] = []
    try:
        with connect(check_url(url)) as connection:
            for name in postgres_runs(url):
                query = f"select value from {schema_of(name)}.facts where key = 'begun'"
                row = connection.execute(query).fetchone()
                begun.append((float(row[0]) if row else 0.0, name))
    except (psycopg.Error, ValueError) as error:
        raise InputError(f"cannot list the runs in {shown(url)}: {_line(error)}") from error
    return [name for _, name in sorted(begun, reverse=True)]


def _adapted(query: str) -> str:
    """A statement with the placeholders of psycopg."""
    return query.replace("?", "%s")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
