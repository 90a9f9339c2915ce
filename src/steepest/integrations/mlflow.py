"""MLflow: of a comparison a run with a child for each objective and learner, of a run that is watched its metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InputError

try:
    import mlflow
    from mlflow.entities import Metric, Run
except ImportError as error:
    raise InputError(f"tracking: {error}; pip install 'steepest[mlflow]'") from error

RUN, PARENT = "steepest.run", "mlflow.parentRunId"
"""Tags: the ID of the comparison, and the run that a child belongs to."""
ARTIFACTS = ("report.html", "results.json", "leaderboard.csv")
NUMBERS = ("difference", "low", "high", "p", "p_holm", "detectable", "seconds", "seconds_per_epoch", "peak_memory_mb")


class MLflowTracker:
    """A hook for ``steepest.compare(..., track=...)`` that writes by the IDs of runs: no run of MLflow becomes active.

    A comparison that goes on goes on in the same runs. A :class:`~steepest.watch.Recorder` takes it as a sink: losses
    and the numbers of readings become metrics of one run.

    Args:
        experiment: its name.
        uri: of the tracking server or folder; None is MLflow's own choice, ``$MLFLOW_TRACKING_URI``.
        run_id: a run that is there, to be the parent; None makes one for each comparison.

    Example::

        steepest.compare("wine", track=MLflowTracker("objectives"))
    """

    def __init__(self, experiment: str = "steepest", uri: str | None = None, run_id: str | None = None) -> None:
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self.experiment, self.run_id = experiment, run_id
        self._parent = ""
        self._experiment_id = ""
        self._children: dict[str, str] = {}

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write what has happened in a comparison (``begin``, ``cell``, ``end``) or a run (see ``Recorder``)."""
        known = {
            "begin": self._begin, "cell": self._cell, "end": self._end, "run_begin": self._run_begin,
            "losses": self._losses, "reading": self._reading, "run_end": self._run_end,
        }  # fmt: skip
        if event in known:
            known[event](facts)

    def _run_begin(self, facts: Mapping[str, Any]) -> None:
        self._begin({"id": facts["id"], "data": facts["model"], "settings": dict(facts)})

    def _losses(self, facts: Mapping[str, Any]) -> None:
        metrics = [Metric("loss", value, _now(), step) for step, value in zip(facts["steps"], facts["values"])]
        self.client.log_batch(self._parent, metrics=metrics)

    def _reading(self, facts: Mapping[str, Any]) -> None:
        metrics = [
            Metric(_word(f"{facts['probe']}/{name}"), value, _now(), facts["step"])
            for name, value in facts["numbers"].items()
        ]
        self.client.log_batch(self._parent, metrics=metrics)

    def _run_end(self, facts: Mapping[str, Any]) -> None:
        if self.run_id is None:
            self.client.set_terminated(self._parent)

    def _begin(self, facts: Mapping[str, Any]) -> None:
        experiment = self.client.get_experiment_by_name(self.experiment)
        if self.run_id is not None:
            parent = self.client.get_run(self.run_id)
            self._experiment_id = parent.info.experiment_id
        else:
            self._experiment_id = (
                experiment.experiment_id if experiment else self.client.create_experiment(self.experiment)
            )
            parent = self._kept(f"tags.`{RUN}` = '{facts['id']}'", PARENT) or self.client.create_run(
                self._experiment_id, run_name=f"{facts['data']} {facts['id']}", tags={RUN: facts["id"]}
            )
        self._parent = parent.info.run_id
        self._children = {
            run.info.run_name: run.info.run_id
            for run in self.client.search_runs([self._experiment_id], f"tags.`{PARENT}` = '{self._parent}'")
        }
        for key, value in facts["settings"].items():
            if key not in parent.data.params:
                self.client.log_param(self._parent, key, str(value)[:500])
        self.client.log_param(self._parent, "data", facts["data"])

    def _kept(self, query: str, without: str) -> Run | None:
        runs = self.client.search_runs([self._experiment_id], query)
        return next((run for run in runs if without not in run.data.tags), None)

    def _child(self, name: str) -> str:
        if name not in self._children:
            run = self.client.create_run(self._experiment_id, run_name=name, tags={PARENT: self._parent})
            self._children[name] = run.info.run_id
        return self._children[name]

    def _cell(self, facts: Mapping[str, Any]) -> None:
        child, step = self._child(facts["name"]), facts["number"]
        if facts["score"] is not None:
            self.client.log_metric(child, f"fold_{_word(facts['metric'])}", facts["score"], step=step)
        self.client.log_metric(child, "fold_seconds", facts["seconds"], step=step)

    def _end(self, facts: Mapping[str, Any]) -> None:
        results, folder = facts["results"], Path(facts["folder"])
        for row in results["rows"]:
            child = self._child(row["name"])
            for key in NUMBERS:
                if row.get(key) is not None:
                    self.client.log_metric(child, key, row[key])
            for name, interval in row["metrics"].items():
                if interval and interval.get("mean") is not None:
                    self.client.log_metric(child, _word(name), interval["mean"])
            self.client.set_tag(child, "tier", row["tier"])
            self.client.set_tag(child, "kind", row["kind"])
            self.client.set_tag(child, "settings", row["settings"])
            self.client.set_terminated(child)
        for key in ("sentence", "advice"):
            self.client.set_tag(self._parent, key, results.get(key) or "")
        self.client.log_metric(self._parent, "seconds", results["seconds"])
        for file in ARTIFACTS:
            if (folder / file).is_file():
                self.client.log_artifact(self._parent, str(folder / file))
        if self.run_id is None:
            self.client.set_terminated(self._parent)


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _word(name: str) -> str:
    """A name as MLflow takes it."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in name)
