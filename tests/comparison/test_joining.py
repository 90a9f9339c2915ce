"""Who joins a run makes the same comparison from what the run says, and imports nothing that it was not told to."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steepest.comparison import joining
from steepest.comparison.api import prepare
from steepest.comparison.errors import InputError
from steepest.comparison.joining import join, tell
from steepest.comparison.request import Request
from steepest.comparison.work import run as run_module
from steepest.comparison.work.postgres import PostgresStore
from steepest.comparison.work.run import Run
from steepest.comparison.work.store import Store

CANARY = "steepest_canary"
OPTIONS = {"objectives": "comp_sum", "repeats": 1, "folds": 2, "trials": 2, "epochs": 1, "classical": False}
Command = Callable[..., tuple[int, str, str]]


def begun(folder: Path, url: str | None, data: Any, **options: Any) -> tuple[Run, Store]:
    """A run and its store, as a command leaves them before it computes."""
    request = Request(data, store=url, **{**OPTIONS, "seed": int(uuid.uuid4().hex[:6], 16), **options})
    context, _ = prepare(request)
    run = Run(context, folder, request.typed, url)
    store = Store(run.folder) if url is None else PostgresStore(run.folder, url=url)
    tell(run, store, request)
    return run, store


def arrays(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    return {
        "data": x,
        "y": (x[:, 0] > 0).astype(int),
        "groups": np.arange(60) // 2,
        "sample_weight": rng.uniform(1, 2, 60),
    }


def frame(folder: Path) -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(60, 2))
    kinds = {"a": x[:, 0], "when": pd.date_range("2020-01-01", periods=60), "kind": pd.Series(["u", "v"] * 30)}
    table = pd.DataFrame(kinds).assign(goal=np.where(x[:, 0] > 0, "P", "N"))
    table.loc[3, "a"] = np.nan
    return {"data": table, "target": "goal", "time": "when"}


def series(folder: Path) -> dict[str, Any]:
    table = frame(folder)["data"]
    return {"data": table[["a", "kind"]], "y": table["goal"]}


def two_files(folder: Path) -> dict[str, Any]:
    table = series(folder)["data"].assign(goal=series(folder)["y"])
    folder.mkdir()
    table.to_csv(folder / "train.csv", index=False, sep=";")
    table[:30].to_csv(folder / "test.csv", index=False, sep=";")
    (folder / "kinds.txt").write_text("kind: category\n")
    options = {"separator": ";", "types": folder / "kinds.txt", "drop": [], "missing": ["-9"], "positive": "N"}
    return {"data": folder / "train.csv", "test": folder / "test.csv", "repeats": 2, **options}


def built_in(folder: Path) -> dict[str, Any]:
    return {"data": "wine"}


def images(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.savez(folder / "x.npz", x=rng.integers(0, 255, (40, 8, 8), dtype=np.uint8), y=np.arange(40) % 2)
    return {"data": folder / "x.npz", "augment": False}


@pytest.mark.parametrize("source", [arrays, frame, series, two_files, built_in, images])
def test_a_database_holds_what_a_member_needs(postgres: Any, tmp_path: Path, source: Callable[..., Any]) -> None:
    given = source(tmp_path / "data")
    run, store = begun(tmp_path / "here", postgres.url, **given)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)  # another machine
    context = join(run.folder.name, store)
    assert context.settings == run.context.settings
    assert np.array_equal(context.table.target, run.context.table.target)
    assert list(context.folds) == list(run.context.folds)
    store.close()


def test_beside_a_file_the_data_are_read_where_they_are_and_compared(csv: Path, tmp_path: Path) -> None:
    run, store = begun(tmp_path, None, csv)
    assert store.kept_data() == []
    assert join(run.folder.name, store).settings == run.context.settings
    copied = tmp_path / "copy.csv"
    shutil.copy(csv, copied)
    csv.unlink()
    with pytest.raises(InputError, match="no file"):
        join(run.folder.name, store)
    assert join(run.folder.name, store, data=copied).table.name == "copy.csv"
    copied.write_text(copied.read_text().replace("red", "blue", 1))
    with pytest.raises(
        InputError, match=r"has other data, settings, own code, learners .* or another version of steepest"
    ):
        join(run.folder.name, store, data=copied)
    store.close()


def test_another_version_is_refused(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, store = begun(tmp_path, None, csv)
    monkeypatch.setattr(run_module, "__version__", "0.0.0")
    with pytest.raises(InputError, match="another version of steepest than are here: nothing is done"):
        join(run.folder.name, store)
    store.close()


def test_own_parts_need_trust(csv: Path, tmp_path: Path, own: str) -> None:
    run, store = begun(tmp_path, None, csv, objectives=["comp_sum", f"{own}:Plain"])
    assert join(run.folder.name, store, trust=True).settings == run.context.settings
    with pytest.raises(InputError, match=f"names '{own}:Plain', which is not built in: its module would be imported"):
        join(run.folder.name, store)
    store.close()


@pytest.mark.parametrize("place", ["objectives", "metric", "model"])
def test_what_a_store_names_is_not_imported(csv: Path, tmp_path: Path, place: str) -> None:
    run, store = begun(tmp_path, None, csv)
    name = f"{CANARY}:thing"
    store.set_fact("asked", {**store.fact("asked"), place: [name] if place == "objectives" else name})
    with pytest.raises(InputError, match="is not built in"):
        join(run.folder.name, store)
    assert CANARY not in sys.modules
    store.close()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"out": "/tmp"}, "fields that no request has"),
        ({"paths": {"data": "wine", "command": "x"}}, "expected paths of"),
        ({"paths": {"data": 3}}, "expected paths of"),
        ({"paths": {}}, "its data were no file"),
        ({"folds": 10**9}, "--folds"),
        ({"folds": "2"}, "--folds"),
        ({"seed": 1}, "has other data, settings"),
        ({"objectives": ["os.system"]}, "unknown objective"),
    ],
)
def test_what_was_asked_for_is_checked(csv: Path, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    run, store = begun(tmp_path, None, csv)
    store.set_fact("asked", {**store.fact("asked"), **changed})
    with pytest.raises(InputError, match=said):
        join(run.folder.name, store)
    store.close()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("data/0", "file", "../x.csv", b"a,b\n1,2\n"), "is no name of a file"),
        (("data/../x", "file", "x.csv", b"a,b\n1,2\n"), "is no name of a file"),
        (("out/0", "file", "x.csv", b""), "data of 'out'"),
        (("data", "pickle", "", b""), "data of the kind 'pickle'"),
    ],
)
def test_kept_data_stay_in_their_folder(csv: Path, tmp_path: Path, row: Any, said: str) -> None:
    run, store = begun(tmp_path, None, csv)
    store.keep_data([row])
    with pytest.raises(InputError, match=said):
        join(run.folder.name, store)
    store.close()


def test_objects_in_an_array_are_not_unpickled(csv: Path, tmp_path: Path) -> None:
    import io

    run, store = begun(tmp_path, None, csv)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object))
    store.keep_data([("data", "array", "", buffer.getvalue())])
    with pytest.raises(InputError, match=r"damaged.*allow_pickle=False"):
        join(run.folder.name, store)
    store.close()


def test_data_that_do_not_come_back_are_refused_at_the_start(
    postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = joining._packed
    monkeypatch.setattr(
        joining, "_packed", lambda field, value: real(field, value + 1e-9 if field == "data" else value)
    )
    with pytest.raises(InputError, match="do not come back from a database as they were"):
        begun(tmp_path, postgres.url, **arrays(tmp_path))
    with pytest.raises(InputError, match="--store: y: expected a file, a frame with names, or an array of numbers"):
        begun(tmp_path, postgres.url, **{**arrays(tmp_path), "y": ["a", "b"] * 30})


def test_the_command_joins_and_says_what_it_did(command: Command, csv: Path, tmp_path: Path) -> None:
    run, store = begun(tmp_path / "steepest-runs", None, csv)
    store.close()
    code, out, err = command("work", run.folder.name, "--workers", "1", "--wait", "0.01s")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"run {run.folder.name}: 1 process at work",
        f"run {run.folder.name}: 0 jobs done; none was posted for 0.01s",
    ]


def test_the_command_refuses_in_one_line(command: Command, csv: Path, tmp_path: Path, postgres: Any) -> None:
    for words, said in (
        (("work", "zzz", "--wait", "0.01s"), "no run 'zzz' under 'steepest-runs'"),
        (("work", "zzz", "--wait", "0.01s", "--store", postgres.url), "run 'zzz' is not there"),
        (("work", "--wait", "soon"), "--wait: expected a time above 0"),
        (("work", "--lease", "0"), "--lease: expected a time above 0"),
    ):
        code, out, err = command(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    Store(tmp_path / "steepest-runs" / "abc").close()
    with Store(tmp_path / "steepest-runs" / "def") as store:
        store.set_facts({"asked": {}, "begun": 1.0, "ended": 2.0})
    (tmp_path / "steepest-runs" / "def" / "lock").touch()
    code, _, err = command("work", "--wait", "0.01s")
    assert (code, err) == (2, "steepest: error: run def is over, and none has begun since\n")
    code, _, err = command("work", "abc", "--wait", "0.01s")
    assert (code, "run abc was not begun by `steepest compare`" in err) == (2, True)


def test_the_last_run_of_a_database_is_the_one_that_began_last(postgres: Any, tmp_path: Path) -> None:
    from steepest.comparison.work.postgres import latest_run

    for name, at in (("z_first", 4e12), ("a_second", 5e12)):
        with PostgresStore(tmp_path / f"{name}{uuid.uuid4().hex[:4]}", url=postgres.url) as store:
            store.set_fact("begun", at)
            assert latest_run(postgres.url) == store.folder.name
