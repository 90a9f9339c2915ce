"""A run that a database keeps is the run that a file keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import steepest
from steepest.comparison.design.levels import Level
from steepest.comparison.errors import InputError
from steepest.comparison.work.postgres import PostgresStore, postgres_runs
from steepest.comparison.work.store import Store

OPTIONS = {"objectives": "comp_sum", "repeats": 1, "folds": 2, "trials": 2, "epochs": 2, "classical": False}
COSTS = ("seconds", "seconds_per_epoch", "peak_memory_mb")


def numbers_of(store: Store) -> dict[str, Any]:
    """Every number of every cell but the costs, and how often each was computed."""
    level = Level.of_text(store.fact("levels")[0])
    cells = {
        name: {pair: {k: v for k, v in values.items() if k not in COSTS} for pair, values in own.items()}
        for name, own in store.cells(level).items()
    }
    rows = {
        (name, pair): store.outcome(name, *pair, level).predicted.tolist()
        for name, own in cells.items()
        for pair in own
    }
    return {"cells": cells, "rows": rows, "counters": set(store.counters())}


def test_a_run_in_a_database_is_the_run_in_a_file(csv: Path, tmp_path: Path, postgres: Any) -> None:
    here = steepest.compare(csv, out=tmp_path / "here", workers=1, quiet=True, **OPTIONS)
    there = steepest.compare(csv, out=tmp_path / "there", workers=1, quiet=True, store=postgres.url, **OPTIONS)
    assert there.folder.name == here.folder.name
    assert there.folder.name in postgres_runs(postgres.url)
    assert not (there.folder / "run.sqlite").exists()
    with Store(here.folder) as file, PostgresStore(there.folder, url=postgres.url) as database:
        assert numbers_of(database) == numbers_of(file)
        assert numbers_of(file)["counters"] == {1}
        assert database.cells(Level.of_text(database.fact("levels")[0]))["comp_sum"][0, 0]["capability"]
    keep = ("sentence", "headline", "fold_scores", "curves", "winner", "id")
    results = [json.loads((run.folder / "results.json").read_text()) for run in (here, there)]
    assert {k: results[0][k] for k in keep if k != "winner"} == {k: results[1][k] for k in keep if k != "winner"}
    winners = [(run.folder / "winner" / "winner.safetensors").read_bytes() for run in (here, there)]
    assert winners[0] == winners[1]
    again = steepest.compare(csv, out=tmp_path / "there", workers=1, quiet=True, store=postgres.url, **OPTIONS)
    assert again.sentence == there.sentence


def test_a_report_says_that_processors_of_two_capabilities_computed_it(csv: Path, tmp_path: Path) -> None:
    found = steepest.compare(csv, out=tmp_path, workers=1, quiet=True, **OPTIONS)
    assert "processors with" not in " ".join(found.results["data"]["warnings"])
    with Store(found.folder) as store:
        changed = "update cells set content = json_set(content, '$.capability', 'ANOTHER') where fold = 0"
        store.connection.execute(changed)
        store.set_fact("results", None)
    again = steepest.compare(csv, out=tmp_path, workers=1, quiet=True, **OPTIONS)
    own = torch.backends.cpu.get_cpu_capability()
    assert f"processors with {' and '.join(sorted(['ANOTHER', own]))} computed it" in " ".join(
        again.results["data"]["warnings"]
    )
    assert again.sentence == found.sentence


@pytest.mark.parametrize(
    ("package", "module", "option"),
    [
        ("psycopg", "steepest.comparison.work.postgres", {"store": "postgresql://127.0.0.1/x"}),
        ("ray", "steepest.comparison.work.on_ray", {"executor": "ray"}),
        ("mlflow", "steepest.integrations.mlflow", {"track": "mlflow"}),
        ("torch.utils.tensorboard", "steepest.integrations.tensorboard", {"track": "tensorboard"}),
    ],
)
def test_what_is_not_installed_names_its_extra(
    csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, module: str, option: dict[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(InputError, match=r"pip install 'steepest\[(postgres|ray|mlflow|tensorboard)\]'"):
        steepest.compare(csv, out=tmp_path, workers=1, quiet=True, **option, **OPTIONS)


def test_the_command_takes_a_database_and_keeps_no_password(
    command: Callable[..., tuple[int, str, str]], csv: Path, postgres: Any
) -> None:
    url = postgres.url.replace("steepest@", "steepest:secret@")
    words = ["--objectives", "comp_sum", "--folds", "2", "--repeats", "1", "--trials", "1", "--epochs", "1"]
    code, out, err = command("compare", csv, "--store", url, "--no-classical", "--workers", "1", "--seed", "3", *words)
    assert (code, err) == (0, "")
    (folder,) = Path("steepest-runs").iterdir()
    kept = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"secret" not in kept
    assert "secret" not in out
    with PostgresStore(folder, url=postgres.url) as store:
        assert "--store postgresql://steepest@127" in store.fact("command")


def test_runs_of_a_database_are_listed(command: Callable[..., tuple[int, str, str]], postgres: Any) -> None:
    url, names = postgres.url.replace("steepest@", "steepest:secret@"), ("first", "second")
    for at, name in enumerate(names, start=1):
        with PostgresStore(Path(name), url=url) as store:
            facts = {"begun": 1e9 + at, "data": f"{name}.csv", "cells": 8, "command": "steepest compare x"}
            store.set_facts(facts)
    code, out, err = command("runs", "--store", url)
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith(names)] == [
        f"{name}  {name}.csv  0/8 cells  goes on with: steepest compare x" for name in reversed(names)
    ]
    code, _, err = command("runs", "--store", "postgresql://a:secret@127.0.0.1:1/x")
    assert (code, err.count("\n"), "secret" in err) == (2, 1, False)


def test_what_is_no_address_is_refused_at_once(command: Callable[..., tuple[int, str, str]], csv: Path) -> None:
    code, _, err = command("compare", csv, "--store", "runs.sqlite")
    assert (code, err) == (
        2,
        "steepest: error: --store: expected postgresql://user@host:port/database, got 'runs.sqlite'\n",
    )
    with pytest.raises(InputError, match="cannot keep the run in postgresql://127"):
        steepest.compare(csv, store="postgresql://127.0.0.1:1/x", quiet=True, **OPTIONS)
