"""A comparison tells one hook how it goes: a function, MLflow, TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from steepest.comparison.errors import InputError
from steepest.comparison.tracking import hook_of

OPTIONS = {
    "objectives": "comp_sum", "classical": False, "repeats": 1, "folds": 2, "trials": 1, "epochs": 2, "workers": 1,
    "quiet": True, "winner": "network",
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(60, 3))
    return {"data": x, "y": (x[:, 0] > 0).astype(int)}


def test_a_function_is_told_what_happens_in_order(data: dict[str, Any], tmp_path: Path) -> None:
    told: list[tuple[str, Mapping[str, Any]]] = []
    found = steepest.compare(**data, out=tmp_path, track=lambda event, facts: told.append((event, facts)), **OPTIONS)
    assert [event for event, _ in told] == ["begin", *["cell"] * 4, "end"]
    begin, *cells, end = (facts for _, facts in told)
    assert (begin["id"], begin["data"], begin["settings"]["folds"]) == (found.folder.name, "data", 2)
    names = ("cross_entropy", "comp_sum")
    assert {(c["name"], c["repeat"], c["fold"], c["number"]) for c in cells} == {
        (n, 0, f, f) for n in names for f in (0, 1)
    }
    for cell in cells:
        assert cell["score"] == pytest.approx(found.fold_scores[cell["name"]][cell["number"]], abs=1e-6)
    assert end["results"]["sentence"] == found.sentence
    assert end["folder"] == found.folder


def test_a_hook_that_fails_is_said_once_and_the_comparison_goes_on(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def failing(event: str, facts: Mapping[str, Any]) -> None:
        told.append(event)
        if event == "cell":
            raise OSError("the server is\naway")

    found = steepest.compare(**data, out=tmp_path, track=failing, **{**OPTIONS, "quiet": False})
    assert found.sentence
    assert told == ["begin", "cell"]
    assert capsys.readouterr().out.count("warning: tracking failed and has ended: OSError: the server is away") == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [("wandb", "--track: expected mlflow, tensorboard or module:function"), ("no_such_module:hook", "cannot import")],
)
def test_what_is_no_hook_is_refused_before_anything_is_computed(
    data: dict[str, Any], tmp_path: Path, word: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        steepest.compare(**data, out=tmp_path, track=word, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_hook_is_named_as_any_own_part() -> None:
    assert hook_of("math:hypot")(3.0, 4.0) == 5.0  # type: ignore[misc, arg-type]
    assert hook_of(None) is None


def test_mlflow_has_a_parent_a_child_an_objective_and_the_report(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    from steepest.integrations.mlflow import MLflowTracker

    uri = (tmp_path / "tracked").as_uri()
    active = mlflow.active_run()
    found = steepest.compare(**data, out=tmp_path / "runs", track=MLflowTracker("exp", uri), **OPTIONS)
    assert mlflow.active_run() is active
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("exp")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(f"data {found.folder.name}")
    assert set(runs) == {"selected procedure", "cross_entropy", "comp_sum"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    assert parent.data.tags["sentence"] == found.sentence
    assert (parent.data.params["folds"], parent.data.params["data"]) == ("2", "data")
    board = found.leaderboard.set_index("name")
    metric = found.results["metric"]["name"]
    for name in ("cross_entropy", "comp_sum"):
        assert runs[name].data.metrics[metric] == pytest.approx(board.loc[name, metric])
        history = client.get_metric_history(runs[name].info.run_id, f"fold_{metric}")
        assert [point.value for point in sorted(history, key=lambda point: point.step)] == pytest.approx(
            found.fold_scores[name].tolist(), abs=1e-6
        )
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {"report.html", "results.json"}
    steepest.compare(  # it goes on in the same runs
        **data, out=tmp_path / "runs", track=MLflowTracker("exp", uri), **{**OPTIONS, "budget": 20}
    )
    assert len(client.search_runs([experiment.experiment_id])) == 4
    mine = client.create_run(experiment.experiment_id, run_name="mine")
    steepest.compare(
        **data, out=tmp_path / "runs", track=MLflowTracker(uri=uri, run_id=mine.info.run_id), **{**OPTIONS, "seed": 1}
    )
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{mine.info.run_id}'")
    assert len(children) == 3
    assert client.get_run(mine.info.run_id).info.status == "RUNNING", "who made it ends it"


def test_tensorboard_has_a_curve_an_objective(data: dict[str, Any], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = steepest.compare(**data, out=tmp_path / "runs", track=f"tensorboard:{tmp_path / 'logs'}", **OPTIONS)
    metric = found.results["metric"]["name"]
    for name in ("cross_entropy", "comp_sum"):
        events = EventAccumulator(str(tmp_path / "logs" / found.folder.name / name)).Reload()
        points = sorted(events.Scalars(f"folds/{metric}"), key=lambda point: point.step)
        assert [point.value for point in points] == pytest.approx(found.fold_scores[name].tolist(), abs=1e-6)
        (mean,) = events.Scalars(f"mean/{metric}")
        assert mean.value == pytest.approx(found.leaderboard.set_index("name").loc[name, metric], abs=1e-6)
    texts = EventAccumulator(str(tmp_path / "logs" / found.folder.name / "comparison")).Reload()
    assert "sentence/text_summary" in texts.Tags()["tensors"]


def test_the_command_names_a_hook(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.cli import run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_hook.py").write_text(
        "import pathlib\n\n\ndef hook(event, facts):\n    with pathlib.Path('told').open('a') as file:\n"
        "        print(event, file=file)\n"
    )
    words = ["--objectives", "comp_sum", "--folds", "2", "--repeats", "1", "--trials", "1", "--epochs", "1", "--quiet"]
    assert run(["compare", "iris", "--no-classical", "--workers", "1", "--track", "own_hook:hook", *words]) == 0
    assert (tmp_path / "told").read_text().split() == ["begin", *["cell"] * 4, "end"]
