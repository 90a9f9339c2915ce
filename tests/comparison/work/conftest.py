"""Stores of one run, in a file and in a database."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steepest.comparison.work.store import Store


@pytest.fixture(params=["file", "database"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """``opening()`` is one more member of the same run."""
    stores: list[Store] = []
    name = f"run_{uuid.uuid4().hex[:8]}"
    url = request.getfixturevalue("postgres").url if request.param == "database" else None

    def make() -> Store:
        if url is None:
            store = Store(tmp_path / name)
        else:
            from steepest.comparison.work.postgres import PostgresStore

            store = PostgresStore(tmp_path / name, url=url)
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()
