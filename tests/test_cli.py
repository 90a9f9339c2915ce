"""The command: what it prints, and with which code it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer

from steepest import __version__, cli
from steepest.catalogue import Judged, systems
from steepest.comparison.errors import InputError


def complaint(capsys) -> str:
    """The one line on stderr, without its prefix."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("steepest: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("steepest: error: ").strip()


@pytest.fixture
def command(monkeypatch):
    """Registers a command ``boom`` that does what it is given, for one test."""
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))

    def register(act):
        @cli.app.command("boom")
        def boom() -> None:
            act()

    return register


def raising(error):
    def act():
        raise error

    return act


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"steepest {__version__}\n"


def test_help_documents_exit_codes(capsys):
    assert cli.run(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "0 done; 1 failed while running; 2 bad input or over budget; 130 interrupted" in text


def test_no_command_is_help_and_2(capsys):
    assert cli.run([]) == 2
    assert capsys.readouterr().out.count("Usage:") == 1


def test_systems_lists_every_row(capsys):
    assert cli.run(["systems"]) == 0
    head, *rows, count = capsys.readouterr().out.splitlines()
    assert head.split() == ["slug", "room", "kind", "there", "checked", "shown"]
    assert [row.split()[0] for row in rows] == [system.slug for system in systems()]
    there = sum(row.split()[3] == "yes" for row in rows)
    assert count.startswith(f"{len(rows)} systems: {there} there, ")
    assert {line.index(word) for line, word in [(head, "room"), (rows[0], systems()[0].room)]} == {head.index("room")}


def test_a_package_that_was_built_without_its_tests_says_what_it_cannot_know(capsys, monkeypatch):
    monkeypatch.setattr("steepest.catalogue.checkout", lambda: None)
    assert cli.run(["systems", "--room", "losses"]) == 0
    count = capsys.readouterr().out.splitlines()[-1]
    assert " there, checked and shown are not known here" in count
    assert "0 checked" not in count


def test_systems_of_a_room(capsys):
    assert cli.run(["systems", "--room", "losses.ranking", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["slug"] for row in rows] == [s.slug for s in systems() if s.room == "losses.ranking"]
    assert set(rows[0]) == {"slug", "room", "kind", "there", "checked", "claims"}


def test_missing_and_there_make_all(capsys):
    cli.run(["systems", "--json"])
    everything = json.loads(capsys.readouterr().out)
    cli.run(["systems", "--json", "--missing"])
    missing = json.loads(capsys.readouterr().out)
    assert missing == [row for row in everything if not row["there"]]


def test_table_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.run(["systems", "--room", "losses.regression"]) == 0
    head, *rows, _ = capsys.readouterr().out.splitlines()
    assert head.startswith("\x1b[1mslug ")
    assert "classification-helps-regression" in [row.split()[0] for row in rows]


def test_show(capsys):
    assert cli.run(["show", "mahalanobis-ood"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mahalanobis-ood\n")
    for part in ("arXiv:", "steepest.post.ood.mahalanobis_ood", "MahalanobisDetector", "steepest.lab.post.ood"):
        assert part in out


def test_show_counts_claims_and_names_those_that_are_not_shown(capsys, monkeypatch):
    judged = (Judged("a", "it gains", "shown"), Judged("b", "it is fast", "contradicted"),
              Judged("c", "it is small", "not shown", ours=True))  # fmt: skip
    monkeypatch.setattr("steepest.catalogue.claims", lambda system: judged)
    assert cli.run(["show", "comp-sum"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "claims 1 of 2 claims shown, ours 0 of 1",
        "not shown it is small (ours)",
        "contradicted it is fast",
    ):
        assert line in lines
    assert cli.run(["systems", "--room", "losses.transport"]) == 0
    assert " yes      1 of 2, ours 0 of 1\n" in capsys.readouterr().out
    assert cli.run(["systems", "--room", "losses.transport", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["claims"][1] == {
        "name": "b",
        "text": "it is fast",
        "verdict": "contradicted",
        "ours": False,
    }


def test_unknown_words_get_a_suggestion(capsys):
    assert cli.run(["show", "squentropi"]) == 2
    assert complaint(capsys) == "no system 'squentropi'; did you mean 'squentropy'?"
    assert cli.run(["systems", "--room", "loses"]) == 2
    assert complaint(capsys) == "no room 'loses'; did you mean 'losses'?"
    assert cli.run(["show", "##"]) == 2
    assert complaint(capsys) == "no system '##'; see `steepest systems`"


@pytest.mark.parametrize("arguments", [["systems", "--jsn"], ["sytems"], ["show"], ["show", "a", "b"], ["--nope"]])
def test_usage_errors_are_one_line(capsys, arguments):
    assert cli.run(arguments) == 2
    complaint(capsys)


def test_input_errors_are_one_line(capsys, command):
    command(raising(InputError("no column 'y'\nin data.csv")))
    assert cli.run(["boom"]) == 2
    assert complaint(capsys) == "no column 'y' in data.csv"


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (typer.Abort(), 130), (typer.Exit(1), 1), (typer.Exit(2), 2)]
)
def test_exit_codes(command, error, code):
    command(raising(error))
    assert cli.run(["boom"]) == code


@pytest.mark.parametrize("error", [ValueError("a defect"), RuntimeError("a defect")])
def test_defects_are_not_dressed_up(command, error):
    command(raising(error))
    with pytest.raises(type(error), match="a defect"):
        cli.run(["boom"])


@pytest.mark.parametrize(
    "statement",
    ["sys.exit(cli.run(['show', 'ldr']))", "cli.app.command('boom')(lambda: print('x')); sys.exit(cli.run(['boom']))"],
    ids=["flushed at once", "flushed at the end"],
)
def test_a_reader_that_leaves_is_no_noise(statement):
    """The pipe is closed before the command writes."""
    pipe = "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1)"
    code = f"{pipe}\nfrom steepest import cli; {statement}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=buffered)
    assert (done.returncode, done.stderr) == (1, "")


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "steepest", "nope"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
