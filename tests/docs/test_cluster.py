"""What the guide for clusters says, as far as one machine shows: commands, the compose file, the Slurm script."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from steepest.cli import app
from steepest.comparison.request import Request

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "on-a-cluster.md"
COMPOSE = ROOT / "docs" / "cluster" / "compose.yaml"
SLURM = ROOT / "docs" / "cluster" / "slurm.py"


def taken(words: list[str]) -> dict[str, Any]:
    """The options of a command as the command line reads them; nothing runs."""
    assert words[0] == "steepest"
    command = typer.main.get_command(app)
    with command.make_context("steepest", words[1:]) as top:
        _, sub, rest = command.resolve_command(top, [*top._protected_args, *top.args])  # type: ignore[attr-defined]
        assert sub is not None
        with sub.make_context(words[1], list(rest), parent=top) as context:
            return dict(context.params)


def in_guide() -> list[list[str]]:
    lines = re.findall(r"^\$ (steepest .+)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    rows = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    lines += re.findall(r"`(steepest [^`]+)`", "\n".join(rows))
    return [shlex.split(line, comments=True) for line in lines]


def in_compose() -> list[list[str]]:
    found = []
    for service in yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"].values():
        for text in service.get("command", []):
            plain = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text.replace("\\\n", " "))
            found += [shlex.split(line) for line in plain.splitlines() if line.strip().startswith("steepest ")]
    return found


@pytest.mark.parametrize("words", [*in_guide(), *in_compose()], ids=lambda words: " ".join(words)[:60])
def test_commands_are_taken_as_they_stand(words: list[str]) -> None:
    options = taken(words)
    named = {key: options[key] for key in ("store", "executor", "track") if options.get(key)}
    if words[1] == "compare":
        Request(options["data"][0], budget=options["budget"], **named)
    else:
        assert words[1] == "work"


def test_the_guide_and_the_compose_file_have_commands_of_both_kinds() -> None:
    assert {words[1] for words in in_guide()} == {words[1] for words in in_compose()} == {"compare", "work"}
    assert len(in_guide()) > 8


def test_the_compose_file_fits_together() -> None:
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    services = compose["services"]
    assert set(services) == {"database", "command", "member"}
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source == "." or source in compose["volumes"]
        if service.get("command"):
            shell, option, text = service["command"]
            assert (shell, option) == ("sh", "-c")
            subprocess.run(["sh", "-n", "-c", text], check=True)
    database = services["database"]["environment"]
    for words in in_compose():
        address = taken(words)["store"]
        assert address == f"postgresql://{database['POSTGRES_USER']}@database/{database['POSTGRES_DB']}"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slurm_script", SLURM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_script_for_slurm_submits_is_taken(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Slurm itself submitit writes a batch script; its options are checked as it is made."""
    submitted: list[Any] = []
    ran: list[list[str]] = []

    class Job:
        state = "PENDING"
        cancelled = False

        def done(self) -> bool:
            return False

        def cancel(self) -> None:
            self.cancelled = True

    class Recorded(script.AutoExecutor):  # type: ignore[name-defined, misc]
        def submit(self, function: Any) -> Any:
            submitted.append((function, Job(), self._executor.parameters))
            return submitted[-1][1]

    monkeypatch.setattr(script, "AutoExecutor", Recorded)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")  # submitit looks for Slurm there
    monkeypatch.setattr(
        script.subprocess, "run", lambda words, check: ran.append(words) or subprocess.CompletedProcess(words, 3)
    )
    store = "postgresql://me@db/runs"
    words = [
        "--store",
        store,
        "--members",
        "3",
        "--cores",
        "2",
        "--partition",
        "cpu",
        "--folder",
        str(tmp_path / "jobs"),
    ]
    monkeypatch.setattr(sys, "argv", ["slurm.py", *words, "--", "clinic.csv", "--target", "y", "--budget", "50m"])
    assert script.main() == 3
    assert len(submitted) == 3
    assert all(job.cancelled for _, job, _ in submitted)
    for function, _, parameters in submitted:
        assert (parameters["time"], parameters["cpus_per_task"], parameters["partition"]) == (60, 2, "cpu")
        assert function.command[:3] == [sys.executable, "-m", "steepest"]
        options = taken(["steepest", *function.command[3:]])
        assert (options["run"], options["store"], options["workers"], options["wait"]) == ("last", store, 2, "60m")
    ((*start, _), *_) = [words[:4] for words in ran]
    assert start == [sys.executable, "-m", "steepest"]
    options = taken(["steepest", *ran[0][3:]])
    assert (options["data"], options["target"], options["store"], options["budget"]) == (
        ["clinic.csv"],
        "y",
        store,
        "50m",
    )


@pytest.mark.slow
def test_the_script_runs_on_this_machine(postgres: Any, tmp_path: Path) -> None:
    words = ["--store", postgres.url, "--members", "2", "--cluster", "local", "--minutes", "5"]
    compared = ["wine", "--objectives", "comp_sum", "--no-classical", "--repeats", "1", "--folds", "5", "--trials", "3"]
    compared += ["--epochs", "30", "--patience", "30", "--batch", "8", "--strict", "--budget", "2h", "--seed", "7"]
    command = [sys.executable, str(SLURM), *words, "--", *compared]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Choosing the objective" in done.stdout
    counts = re.findall(r"^run \w+: (\d+) jobs? done; it is over$", done.stdout, re.MULTILINE)
    assert len(counts) == 2, done.stdout + done.stderr
    assert sum(map(int, counts)) > 0
