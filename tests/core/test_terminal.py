"""Tables and lines on narrow terminals: words wrap, names stay whole, nothing is lost."""

from __future__ import annotations

import os
import random
import sys

import pytest

from steepest import cli
from steepest.catalogue import systems
from steepest.comparison.report.terminal import Terminal, summary
from steepest.comparison.work.store import Store
from steepest.core.terminal import table_lines, wrapped


def words(rng, most, least=0):
    """So many made-up words, with blanks between."""
    count = rng.randint(least, most)
    return " ".join("".join(rng.choices("abcdefgh-_.0123456789", k=rng.randint(1, 12))) for _ in range(count))


def test_lines_are_cut_between_words():
    rng = random.Random(0)
    for _ in range(300):
        text, width = words(rng, 12, least=1), rng.randint(1, 40)
        lines = wrapped(text, width, indent="  ")
        assert " ".join(" ".join(lines).split()) == text
        assert all(len(line) <= width or len(line.split()) == 1 for line in lines)


def test_tables_keep_every_word_and_every_name():
    rng = random.Random(0)
    for _ in range(300):
        columns, width = rng.randint(2, 5), rng.randint(10, 80)
        rows = [
            (words(rng, 1, least=1), *(words(rng, 6) for _ in range(columns - 1))) for _ in range(rng.randint(1, 5))
        ]
        head = tuple(f"h{place}" for place in range(columns))
        _, *lines_by_row = table_lines(head, rows, width)
        for row, lines in zip(rows, lines_by_row, strict=True):
            assert lines[0].split()[0] == row[0]
            on_screen = [word for line in lines for word in line.split() if word not in {f"{name}:" for name in head}]
            assert sorted(on_screen) == sorted(word for cell in row for word in cell.split())
            assert all(len(line) <= width or max(map(len, line.split())) + 4 >= width for line in lines)


def plain(text):
    return text.replace("\x1b[1m", "").replace("\x1b[0m", "")


@pytest.fixture
def run_folder(tmp_path):
    store = Store(tmp_path / "steepest-runs" / "abcdefabcdef")
    sentence = "Choosing the objective among 9 changes balanced accuracy by +0.0123 [0.0011, 0.0235] in your data."
    store.set_facts({"data": "a-file-with-a-long-name.csv", "cells": 8, "command": "c", "sentence": sentence})
    store.close()
    return tmp_path / "steepest-runs"


@pytest.mark.parametrize("command", [["systems"], ["show", "cut-cross-entropy"], ["lab", "list"], ["runs"]])
def test_at_60_columns_names_stay_whole(run_folder, capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    more = ["--out", str(run_folder)] if command == ["runs"] else []
    assert cli.run([*command, *more]) == 0
    lines = plain(capsys.readouterr().out).splitlines()
    text = " ".join(" ".join(lines).split())
    assert [line for line in lines if len(line) > 60 and len(line.split()) > 1] == []
    names = {
        "systems": [system.slug for system in systems()],
        "show": ["steepest.kernels.cut_cross_entropy", "linear_cross_entropy,"],
        "lab": ["aggregate-responses", "correctness-aware-calibration"],
        "runs": ["abcdefabcdef", "a-file-with-a-long-name.csv", "balanced"],
    }[command[0]]
    words_on_screen = set(text.split())
    assert [name for name in names if name not in words_on_screen] == []


def test_help_is_wrapped_by_the_terminal_alone(capsys, monkeypatch):
    """A line of a docstring is no line on screen."""
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.run(["compare", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    first = lines.index("One question is declared beforehand and tested alone: does")
    assert lines[first + 1].startswith("choosing the objective help? The answer is one sentence")


def results():
    row = {"kind": "objective", "low": -0.01, "high": 0.03, "p_holm": 0.04, "detectable": 0.05}
    row |= {"prob_better": 0.8004, "prob_same": 0.1969, "prob_worse": 0.0027}
    names = ("cross_entropy", "regression_with_classification", "ldr")
    rows = [
        {**row, "name": name, "tier": tier, "difference": None if tier == "baseline" else 0.01,
         "metrics": {"balanced_accuracy": {"mean": 0.9}}}
        for name, tier in zip(names, ("baseline", "not told apart", "better"))
    ]  # fmt: skip
    metric = {"name": "balanced_accuracy", "label": "Balanced accuracy", "greater_is_better": True}
    return {"metric": metric, "headline": {"baseline": "cross_entropy"}, "rows": rows}


@pytest.mark.parametrize("columns", [60, 100, 120, 200])
def test_the_result_table_and_its_lines_fit(monkeypatch, capsys, columns):
    monkeypatch.setitem(os.environ, "COLUMNS", str(columns))
    monkeypatch.setitem(os.environ, "FORCE_COLOR", "1")
    monkeypatch.setitem(os.environ, "TERM", "xterm")
    terminal = Terminal()
    terminal.console.legacy_windows = False
    assert terminal.console.is_terminal
    terminal.table(summary(results()))
    terminal.line("plan: 9 objectives and 7 classical learners in 15 outer folds; 1080 trainings in 24 jobs to do")
    import re

    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert all(len(line) <= columns for line in lines)
    said = set(" ".join(lines).split())
    assert {
        "regression_with_classification",
        "cross_entropy",
        "ldr",
        "+0.0100",
        "0.9000",
        "0.80,",
        "0.20,",
        "<0.01",
    } <= said
    if columns == 200:
        assert lines[1].split()[:3] == ["ldr", "0.9000", "+0.0100"]


def test_a_pipe_keeps_rows_whole(capsys):
    terminal = Terminal()
    terminal.table(summary(results()))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    assert out[0].split()[:3] == ["objective", "Balanced", "accuracy"]
