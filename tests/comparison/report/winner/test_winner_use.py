"""The lines under "Use the winner" run as they stand, whether a classical learner won or a network is served."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steepest.cli import run
from steepest.comparison import InputError, Winner
from steepest.comparison.design import resolve
from steepest.comparison.work.classical import learners_of

Run = tuple[Path, dict[str, Any], str]
COMPARE = (
    "compare iris --objectives squared_error --folds 5 --repeats 1 --trials 1 --epochs 1 --workers 1 --model plain"
)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def steepest(line: str, folder: Path) -> tuple[int, str, str]:
    """A command line of ``steepest``, in a folder of its own: exit code, what it printed, what it warned of."""
    words = shlex.split(line)
    out, err = io.StringIO(), io.StringIO()
    with inside(folder), pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["steepest", *words])
        code = run(words)
    return code, out.getvalue(), err.getvalue()


def compared(folder: Path, *more: str) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        few = {"constant", "lda", "svm"}
        patch.setattr(
            resolve,
            "classical_learners",
            lambda task, rows: [b for n, b in learners_of(task, rows).items() if n in few],
        )
        code, out, err = steepest(shlex.join([*shlex.split(COMPARE), *more]), folder)
    assert code == 0, err
    (page,) = folder.glob("steepest-runs/*/report.html")
    results = json.loads(page.with_name("results.json").read_text())
    return page.parent, results, out


@pytest.fixture(scope="module")
def won_by_a_learner(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return compared(tmp_path_factory.mktemp("learner"))


@pytest.fixture(scope="module")
def network_served(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return compared(tmp_path_factory.mktemp("network"), "--winner", "network")


@pytest.fixture(params=["won_by_a_learner", "network_served"])
def finished(request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue(request.param)
    return found


def test_a_learner_that_wins_is_what_is_saved_and_named(won_by_a_learner: Run) -> None:
    folder, results, screen = won_by_a_learner
    assert results["classical"]["wins"]
    assert results["winner"]["kind"] == "classical"
    assert results["winner"]["objective"] in ("lda", "svm")
    winner = Winner.load(folder)
    assert (winner.facts["kind"], winner.name) == ("classical", results["winner"]["objective"])
    assert f"winner: the classical learner {winner.name}, fitted on all rows" in screen
    assert sorted(path.name for path in (folder / "winner").iterdir()) == ["winner.json", "winner.skops"]
    text = (folder / "report.html").read_text()
    assert "Use the winner" in text
    assert "steepest.Winner.load(" in text


def test_the_network_is_there_for_whoever_asks(network_served: Run) -> None:
    folder, results, screen = network_served
    assert results["classical"]["wins"]
    assert results["winner"]["kind"] == "objective"
    assert Winner.load(folder).facts["kind"] == "objective"
    assert "winner: a network trained with" in screen
    assert sorted(path.name for path in (folder / "winner").iterdir()) == ["winner.json", "winner.safetensors"]


def test_the_lines_under_use_the_winner_run_as_they_stand(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder, results, _ = finished
    home = folder.parents[1]
    code, out, _ = steepest(results["winner"]["command"].removeprefix("steepest "), home)
    assert code == 0
    table = pd.read_csv(io.StringIO(out))
    assert len(table) == 150
    names: dict[str, Any] = {}
    with inside(home):
        exec(results["usage"], names)
    assert "prediction" in capsys.readouterr().out
    if results["winner"]["kind"] == "objective":
        assert names["objective"].name == results["winner"]["objective"]
    predicted = names["winner"].predict_file("iris")
    np.testing.assert_allclose(table.iloc[:, 1:], predicted.iloc[:, 1:], rtol=1e-12)
    np.testing.assert_allclose(predicted.iloc[:, 1:].sum(axis=1), 1, rtol=1e-12)


def test_python_and_the_command_say_the_same_with_and_without_probabilities(finished: Run, tmp_path: Path) -> None:
    folder, results, _ = finished
    winner = Winner.load(folder)
    frame = pd.DataFrame(np.random.default_rng(0).uniform(1, 6, (9, 4)), columns=winner.facts["columns"])
    frame = frame.round(3).set_axis(list("ihgfedcba"))
    frame.to_csv(tmp_path / "new.csv", index=False)
    line = f"predict {shlex.quote(str(folder))} new.csv"
    expected = winner.predict(frame)
    assert expected.index.equals(frame.index)
    assert expected["prediction"].map(type).eq(str).all()
    for option, columns in (
        ("", expected.columns),
        ("--probabilities", expected.columns),
        ("--no-probabilities", ["prediction"]),
    ):
        code, out, err = steepest(f"{line} {option}", tmp_path)
        assert (code, err) == (0, "")
        pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(out)), expected[columns].reset_index(drop=True))
    p = winner.predict_proba(frame)
    np.testing.assert_array_equal(p, expected.iloc[:, 1:])
    assert p.columns.tolist() == results["data"]["classes"]


def test_a_winner_without_probabilities_says_why(
    make_winner: Callable[..., Winner], table: Callable[[str], pd.DataFrame], tmp_path: Path
) -> None:
    frame = table("binary").iloc[:18]
    winner = make_winner(tmp_path, frame, "squared_error", target="goal", model="plain")
    reason = winner.facts["no_probabilities"]
    assert reason.endswith("held-out rows are too few to calibrate its scores: 20 are needed")
    assert winner.predict(frame).columns.tolist() == ["prediction"]
    with pytest.raises(InputError, match=f"^no probabilities: {reason}$"):
        Winner.load(tmp_path / "run").predict_proba(frame)
    frame.to_csv(tmp_path / "new.csv", index=False)
    code, out, err = steepest("predict run new.csv", tmp_path)
    assert (code, err) == (0, f"warning: squared_error gives no probabilities: {reason}\n")
    assert out.startswith("prediction\n")
    code, out, err = steepest("predict run new.csv --probabilities", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"steepest: error: --probabilities: squared_error gives none: {reason}\n"


def test_an_unknown_winner_is_refused(tmp_path: Path) -> None:
    code, _, err = steepest(f"{COMPARE} --winner learner", tmp_path)
    assert code == 2
    assert err.splitlines()[-1] == "steepest: error: --winner: expected best or network, got 'learner'"
