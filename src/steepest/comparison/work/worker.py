"""A process of one thread that computes for this one, a call at a time, and can be ended in the middle of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from ..design.context import Context
from ..design.settings import Settings
from ..read.inputs import Data


class Worker:
    """Such a process; it is ready when it has imported what it needs, and waits for calls.

    It reads nothing but what it is given. It ends itself when its parent is gone, however that died.

    Args:
        table, settings, test: of the context that its calls get.
    """

    def __init__(self, table: Data, settings: Settings, test: Data | None) -> None:
        self._preparing, self._prepared = 1, False
        start = multiprocessing.get_context("spawn")
        self.connection, others = start.Pipe()
        self._process = start.Process(target=_serve, args=(others,))
        with _no_interrupt(), _without_main():
            self._process.start()
        others.close()
        self._told = self._send((table, settings, test))

    @property
    def ready(self) -> bool:
        """Whether a call begins as soon as it is given."""
        return not self._preparing

    def prepare(self, call: Callable[[Context], Any]) -> None:
        """Have ``call(context)`` done once before it is ready, for what comes next; its answer counts for nothing."""
        if not self._prepared:
            self._prepared = True
            self._preparing += 1
            self.give(call)

    def give(self, call: Callable[..., Any], *args: Any) -> None:
        """Have ``call(context, *args)`` computed; ``call`` is the function of a module."""
        self._told = self._send((call, args), after=self._told)

    def _send(self, what: Any, after: threading.Thread | None = None) -> threading.Thread:
        """Send in a thread: it waits until the process takes what it is sent, which starts with its imports."""
        pickled = ForkingPickler.dumps(what)

        def send() -> None:
            if after is not None:
                after.join()
            try:
                self.connection.send_bytes(pickled)
            except OSError:
                return  # the process has ended; who waits for its answer is told

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        return thread

    def answer(self) -> Any:
        """What came back: nothing that counts until it is ready, then the value of a call; waits for it.

        Raises:
            Exception: what the call raised.
            BrokenExecutor: the process has ended.
        """
        try:
            value, error = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise BrokenExecutor(f"a process that computes has ended with code {self._process.exitcode}") from None
        if error is not None:
            raise error
        self._preparing = max(0, self._preparing - 1)
        return value

    def end(self) -> None:
        """End the process, whatever it is doing: all that it knows is here too."""
        self._process.kill()
        self._process.join()
        self._told.join()
        self.connection.close()
        self._process.close()


def _serve(connection: Connection) -> None:
    """What a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    try:
        context = Context(*connection.recv())
        connection.send((None, None))  # ready
        while True:
            call, args = connection.recv()
            _answer(connection, *_outcome(call, context, args))
    except (EOFError, ConnectionError):
        return  # nobody asks any more


def _outcome(call: Callable[..., Any], context: Context, args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return call(context, *args), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        return None, error


def _answer(connection: Connection, value: Any, error: BaseException | None) -> None:
    try:
        connection.send((value, error))
    except (EOFError, ConnectionError):
        raise
    except Exception as unsent:  # no answer that a pipe can carry
        connection.send((None, RuntimeError(f"{type(error or unsent).__name__}: {error or unsent}")))


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, and never hear of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that don't run the caller's script again: a script needs no ``if __name__ == "__main__"``."""
    main = sys.modules["__main__"]
    names_of_main = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    for name in names_of_main:
        delattr(main, name)
    main.__spec__ = None
    try:
        yield
    finally:
        del main.__spec__
        vars(main).update(names_of_main)
