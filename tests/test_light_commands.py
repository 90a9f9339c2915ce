"""What a command lists, shows or refuses without computing costs no slow import; nothing here asserts a time."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from steepest import cli
from steepest.catalogue import systems, there
from steepest.comparison import metrics
from steepest.comparison.cli import compare_command
from steepest.comparison.completion import complete_data, complete_file, complete_metric, complete_objectives
from steepest.comparison.design.models import MODELS
from steepest.comparison.design.objectives import known_objectives
from steepest.comparison.metrics.ranking import OF_LISTS
from steepest.comparison.metrics.retrieval import OF_RETRIEVAL
from steepest.comparison.metrics.several import MULTILABEL, multitask_metrics
from steepest.comparison.metrics.texts import OF_ANSWERS
from steepest.comparison.names import metric_names, model_names, objective_names
from steepest.comparison.parts import Part
from steepest.comparison.work.store import Store
from steepest.core.objective import Objective

SLOW = {"torch", "sklearn", "pandas", "scipy", "matplotlib", "pyarrow"}
DONE = {
    "--help": "Which objective to use",
    "--version": "steepest",
    "compare --help": "Which objective to use on your data",
    "runs --help": "newest first",
    "work --help": "Join a run",
    "report --help": "Write the report",
    "predict --help": "Predict new rows",
    "lr-find --help": "a short training with a rising rate",
    "data --help": "which of them are suspicious",
    "data score --help": "Which rows are suspicious",
    "schedules --help": "how each schedule moves the learning rate",
    "systems --help": "how far each one is",
    "show --help": "Show one system",
    "lab --help": "lab",
    "lab list --help": "how many of their claims are shown",
    "lab check --help": "evidence still stands",
    "lab show --help": "draw its figure",
    "lab run --help": "Run one experiment",
    "lab gallery --help": "stale or missing",
    "systems": "with fresh evidence",
    "systems --room losses.ranking --json": "losses.ranking",
    "systems --missing": "systems",
    "show ldr": "LDRLoss",
    "lab list": "comp-sum",
    "runs": "data.csv  0/8 cells  goes on with: steepest compare data.csv",
    "runs --out nowhere": "no runs under 'nowhere'",
}
REFUSED = {
    "systems --room loses": "no room 'loses'; did you mean 'losses'?",
    "show squentropi": "no system 'squentropi'; did you mean 'squentropy'?",
    "schedules one-cylce": "no schedule 'one-cylce'; did you mean 'one-cycle'?",
    "schedules --steps 0": "--steps: expected an integer in 1..10000000, got 0",
    "schedules --lr=-1": "--lr: expected a rate above 0, got -1.0",
    "schedules --with shape=sqrt": "--with: expected one schedule by name, whose argument it is",
    "schedules one-cycle --with div": "--with: expected NAME=VALUE, got 'div'",
    "schedules --at 1,x": "--at: expected steps >= 0 with commas between, got 'x'",
    "schedules --figure a.txt": "--figure: expected a file that ends in .svg, .png, .pdf, got 'a.txt'",
    "schedules --figure no/where.svg": "--figure: cannot write 'no/where.svg': there is no folder 'no'",
    "lr-find nowhere.csv": "no file 'nowhere.csv'; built-in names are",
    "lr-find wine --optimizer adam": "--optimizer: expected one of adamw, sgd, got 'adam'; did you mean 'adamw'?",
    "lr-find wine --start 1 --end 0.1": "--start, --end: expected rates with 0 < start < end, got 1 and 0.1",
    "lr-find wine --accumulate 0": "--accumulate: expected an integer in 1..100000, got 0",
    "lr-find wine --objective focal,ldr": "--objective: expected one name, got 'focal,ldr'",
    "lr-find wine --objective squentropi": "unknown objective 'squentropi'; did you mean 'squentropy'?",
    "lr-find wine --figure a.txt": "--figure: expected a file that ends in .svg, .png, .pdf, got 'a.txt'",
    "data score nowhere.csv": "no file 'nowhere.csv'; built-in names are",
    "data score wine --score los": "--score: expected one of loss, el2n, forgetting, influence, got 'los'; did",
    "data score wine --top 0": "--top: expected an integer in 1..10000, got 0",
    "data score wine --leave-out 0.9": "--leave-out: expected a share in [0, 0.5], got 0.9",
    "data score wine --repeats 0": "--repeats: expected an integer in 1..100, got 0",
    "data score wine --metric acuracy": "unknown metric 'acuracy'; did you mean 'accuracy'?",
    "data score wine --out no/where.csv": "--out: cannot write 'no/where.csv': there is no folder 'no'",
    "data score wine --task text": "data score: for tables and images, not for texts",
    "lab run comp-sun": "no experiment 'comp-sun'; did you mean 'comp-sum'?",
    "lab run comp-sum --scale smok": "--scale: expected one of smoke, full, got 'smok'; did you mean 'smoke'?",
    "lab run comp-sum --seeds 1": "--seeds: expected at least 5 at full scale, got 1",
    "lab run comp-sum --scale smoke --seeds 1": "--seeds: expected at least 2 at smoke scale, got 1",
    "lab run comp-sum --workers 0": "--workers: expected an integer in 1..256, got 0",
    "lab show comp-sun": "no experiment 'comp-sun'; did you mean 'comp-sum'?",
    "lab check comp-sum comp-sun": "no experiment 'comp-sun'; did you mean 'comp-sum'?",
    "lab gallery --workers 0": "--workers: expected an integer in 1..256, got 0",
    "compare nowhere.csv": "no file 'nowhere.csv'; built-in names are",
    "compare wime": "no file 'wime'; did you mean 'wine'?",
    "compare nowhere.npz": "no file 'nowhere.npz'",
    "compare a.gz:b.gz": "no file 'a.gz'",
    "compare folder": "'folder' is a folder; expected a CSV or TSV file",
    "compare wine nowhere.csv": "no file 'nowhere.csv'",
    "compare wine --objectives focal,squentropi": "unknown objective 'squentropi'; did you mean 'squentropy'?",
    "compare wine --objectives ,": "--objectives: expected default, all, or names",
    "compare wine --metric acuracy": "unknown metric 'acuracy'; did you mean 'accuracy'?",
    "compare wine --metric Balanced-Acuracy": "unknown metric 'Balanced-Acuracy'",
    "compare wine --model residul": "unknown model 'residul'; did you mean 'residual'?",
    "compare wine --task clasification": "task: expected one of auto, classification,",
    "compare wine --rare keep": "rare: expected drop or merge, got 'keep'",
    "compare wine --folds 1": "--folds: expected an integer in 2..50, got 1",
    "compare wine --trials 0": "--trials: expected an integer in 1..1024, got 0",
    "compare wine --batch 0": "--batch: expected an integer in 1..1000000, got 0",
    "compare wine --seed=-1": "--seed: expected an integer in 0..2147483647, got -1",
    "compare wine --noise 2": "--noise: expected a share in [0, 1), got 2.0",
    "compare wine --budget 0": "--budget: expected a time above 0 (90s, 10m, 2h, 1h30m, plain minutes), got '0'",
    "compare wine --workers 0": "--workers: expected an integer in 1..256, got 0",
    "compare wine --device abacus": "--device: 'abacus' is not here; use cpu",
    "compare wine --split pool": "--split and --pool are for images that carry their own test part",
    "compare wine --encoding klingon": "encoding: 'klingon' is unknown",
    "compare wine --separator abc": "separator: expected one character or",
    "compare wine --types nowhere.txt": "types: cannot read 'nowhere.txt'",
    "compare wine --drop @nowhere.txt": "--drop: cannot read 'nowhere.txt'",
    "compare wine --test nowhere.csv": "no file 'nowhere.csv'",
    "compare wine --out data.csv": "cannot keep the run in 'data.csv'",
    "compare images --target y": "--target is for tables, and 'images' holds images",
    "compare images --size 1": "size: expected an integer of at least 4, got '1'",
    "compare wine --store runs.sqlite": "--store: expected postgresql://user@host:port/database, got 'runs.sqlite'",
    "compare wine --executor dask": "--executor: expected local, ray or ray://ADDRESS, got 'dask'",
    "work --workers 0": "--workers: expected an integer in 1..256, got 0",
    "work --data nowhere.csv": "--data: no file 'nowhere.csv'",
    "work --wait soon": "--wait: expected a time above 0",
    "report zzz": "no run 'zzz' under 'steepest-runs'; there are: abc",
    "predict zzz data.csv": "no run 'zzz' under 'steepest-runs'; there are: abc",
    "predict abc nowhere.csv": "no file 'nowhere.csv'; built-in names are",
    "predict abc data.csv --to no/where.csv": "--to: cannot write 'no/where.csv'",
    "predict abc data.csv --header perhaps": "header: expected auto, yes or no, got 'perhaps'",
}
RUN_ALL = """
import contextlib, io, json, os, sys
from steepest.cli import run
commands, slow, seen, said = json.loads(sys.argv[1]), set(json.loads(sys.argv[2])), set(), {}
for command in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(command.split())
    said[command] = [code, out.getvalue(), err.getvalue(), sorted(slow & set(sys.modules) - seen)]
    seen |= set(sys.modules)
print(json.dumps(said))
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with a table, an empty folder, a folder of images, and a run that was begun."""
    folder = tmp_path_factory.mktemp("door")
    (folder / "data.csv").write_text("a,b\n1,2\n")
    (folder / "folder").mkdir()
    (folder / "images" / "cat").mkdir(parents=True)
    (folder / "images" / "cat" / "1.png").touch()
    store = Store(folder / "steepest-runs" / "abc")
    store.set_facts({"data": "data.csv", "cells": 8, "command": "steepest compare data.csv"})
    store.close()
    return folder


def in_process(folder: Path, code: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.fixture(scope="session")
def said(folder):
    """What each command said, its exit code, and the slow modules that it was the first to import, all in one process.

    The terminal is wide, so that help is read as one line.
    """
    done = in_process(folder, RUN_ALL, json.dumps([*DONE, *REFUSED]), json.dumps(sorted(SLOW)), COLUMNS="300")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", DONE)
def test_listing_and_help_import_nothing_slow(said, command):
    code, out, err, slow = said[command]
    assert (code, err) == (0, "")
    assert DONE[command] in " ".join(out.split(" ")), out
    assert slow == []


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_wrong_by_itself_is_refused_before_anything_slow(said, command):
    code, out, err, slow = said[command]
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert REFUSED[command] in err
    assert slow == []


FIRST = """
import json, os, sys
from steepest.cli import run
class First:
    def write(self, text):
        if not text + "":  # typer probes, with bytes too
            return
        os.write(2, json.dumps([text, sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]).encode() + b"\\n")
        os._exit(7)
    def flush(self): pass
    def isatty(self): return False
for command in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        sys.stdout = First()
        run(command.split())
        os._exit(1)
    os.write(1, b"%d " % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_first_line_says_what_is_read_before_anything_slow(folder):
    """Each command in a process forked from one that has imported no more than the command line."""
    lines = {
        "compare wine": "reading wine, which is built in",
        "compare data.csv --dry-run": "reading data.csv (8 bytes)",
        "compare data.csv wine": "reading 2 data sets: data.csv, wine",
        "compare images": "reading the images in images",
    }
    done = in_process(folder, FIRST, json.dumps(list(lines)), json.dumps(sorted(SLOW)))
    assert list(map(json.loads, done.stderr.splitlines())) == [[f"{line}\n", []] for line in lines.values()]
    assert done.stdout.split() == ["7"] * len(lines)


def test_quiet_and_json_say_nothing_first(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    for words in (["--quiet"], ["--json"]):
        assert cli.run(["compare", "data.csv", "--dry-run", *words]) == 2  # one row is too few
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)


def test_names_of_objectives_metrics_and_models_are_those_that_are_there():
    assert list(objective_names()) == list(known_objectives())
    values = (
        *metrics.METRICS.values(),
        MULTILABEL,
        OF_ANSWERS,
        OF_LISTS,
        OF_RETRIEVAL,
        multitask_metrics([Part("a", "regression")]),
    )
    tables = [table for table in values if isinstance(table, dict)]
    known = {name for table in tables for name, of in table.items() if isinstance(of, metrics.Metric)}
    assert {"accuracy", "rmse", "exact_match", "mean_score"} <= known
    assert set(metric_names()) == {name for name in known if " of " not in name}
    assert list(model_names()) == list(MODELS)


def test_objectives_read_from_the_text_are_the_classes_of_the_modules():
    defined = {}
    for row in filter(there, systems("losses")):
        module = importlib.import_module(f"steepest.{row.module}")
        classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Objective) and c.name]
        own = [c for c in classes if c.__module__ == module.__name__ and (c.__name__ in row.names or c.tasks)]
        defined |= {c.name: c for c in own if not inspect.isabstract(c)}
    assert {name: cls for name, (cls, _) in known_objectives().items()} == defined


def test_an_objective_is_found_without_the_modules_of_the_others():
    code = (
        "import sys; from steepest.comparison.design.objectives import find_objective, shortlist\n"
        "for name in shortlist(): find_objective(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "steepest.losses.classification.focal" in loaded
    assert "steepest.losses.classification.gradient_starvation" not in loaded
    assert not {"scipy", "sklearn"} & set(loaded)


COMPLETED = {
    "steepest compare wi": ["wine"],
    "steepest compare dat": ["data.csv"],
    "steepest compare wine --objectives focal,squ": ["focal,squared_error", "focal,squentropy"],
    "steepest compare wine --metric rm": ["rmse"],
    "steepest compare wine --model res": ["residual", "resnet"],
    "steepest show comp-s": ["comp-sum"],
    "steepest systems --room losses.r": ["losses.ranking", "losses.regression", "losses.robust"],
    "steepest lab run comp-s": ["comp-sum"],
    "steepest report ab": ["abc"],
    "steepest predict la": ["last"],
}
COMPLETE = """
import json, os, sys
from steepest.cli import main
for line in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os.environ |= {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        try:
            main()
        finally:
            print(sorted(set(json.loads(sys.argv[2])) & set(sys.modules)))
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
    os.write(1, b"\\0")
"""


@pytest.fixture(scope="module")
def completed(folder):
    """What a shell is given for each line, and the slow modules that were imported for it; a process a line."""
    environment = {"_STEEPEST_COMPLETE": "complete_bash"}
    done = in_process(folder, COMPLETE, json.dumps(list(COMPLETED)), json.dumps(sorted(SLOW)), **environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(COMPLETED, done.stdout.split("\0")))


@pytest.mark.parametrize("line", COMPLETED)
def test_a_shell_completes(completed, line):
    *words, slow = completed[line].splitlines()
    assert (sorted(words), slow) == (COMPLETED[line], "[]")


def test_completion_installs(folder, tmp_path):
    code = "from steepest.cli import main; main()"
    environment = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = in_process(folder, code, "--install-completion", "bash", **environment)
    assert done.returncode == 0
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_STEEPEST_COMPLETE=complete_bash" in script.read_text()


def test_files_are_completed_with_their_folder(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wide.csv").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    assert complete_data("") == ["breast_cancer", "diabetes", "digits", "iris", "lists", "wine", "sums", "in/"]
    assert complete_file("in/w") == ["in/wide.csv"]
    assert complete_file("nowhere/x") == complete_metric("zzz") == complete_objectives("x,zzz") == []


def test_the_units_of_a_plan_are_defined_once():
    """The help of the command says what the glossary says."""
    page = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
    section = page.split("\n## The units of a plan\n")[1].split("\n## ")[0]
    definitions = dict(re.findall(r"^(\w+)\n:   (.+)\.$", section, re.MULTILINE))
    assert list(definitions) == ["Training", "Cell", "Level", "Round", "Look"]
    helped = " ".join((compare_command.__doc__ or "").split())
    for noun, text in definitions.items():
        assert f"{noun}: {text}." in helped
