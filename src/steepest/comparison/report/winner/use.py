"""The lines that use a saved winner, each of which runs as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...design.objectives import find_objective
from ...read.images import ImageScaler
from ...read.texts.source import is_json_lines
from .retrieval import RetrievalWinner
from .texts import TextWinner
from .winner import Winner

READING = ("encoding", "separator", "header")


def shell_line(
    winner: Winner | TextWinner | RetrievalWinner,
    folder: Path,
    source: str | None,
    reading: Mapping[str, Any],
    own_parts: Collection[str],
) -> str:
    """The command that predicts rows with it.

    Args:
        winner: what was saved.
        folder: of the run.
        source: what the data were read from, the example of rows to predict; None: a file that is yet to come.
        reading: how the source was read, where the user said so.
        own_parts: names of the user's own code that it needs.
    """
    words = ["steepest", "predict", str(folder), _rows(winner, source)]
    for name, value in _said(source, reading).items():
        words += [f"--{name}", {True: "yes", False: "no"}.get(value, value)]
    return shlex.join([*words, *(["--trust"] if own_parts else [])])


def python_lines(
    winner: Winner | TextWinner | RetrievalWinner,
    folder: Path,
    source: str | None,
    reading: Mapping[str, Any],
    own_parts: Collection[str],
) -> str:
    """The Python lines that predict rows with it and, for a network, make its objective anew; arguments as above."""
    trust = ", trust=True" if own_parts else ""
    options = "".join(f", {name}={value!r}" for name, value in _said(source, reading).items())
    lines = [
        "import steepest",
        "",
        f"winner = steepest.Winner.load({str(folder / 'winner')!r}{trust})",
        f"print(winner.predict_file({_rows(winner, source)!r}{options}))",
    ]
    facts = winner.facts
    if isinstance(winner, RetrievalWinner):
        lines[0] = "from steepest.comparison import RetrievalWinner"
        lines[2] = f"winner = RetrievalWinner.load({str(folder / 'winner')!r}{trust})"
        return "\n".join(lines) + "\n"
    if isinstance(winner, TextWinner):
        lines = [
            "from steepest.comparison import TextWinner",
            "",
            f"winner = TextWinner.load({str(folder / 'winner')!r})",
            f"print(winner.predict_file({_rows(winner, source)!r}))",
        ]
        return "\n".join(lines) + "\n"
    if "objective" in facts and facts["info"]["task"] != "multitask":
        cls = find_objective(facts["objective"], trust=own_parts)
        home = "steepest.losses" if cls.__module__.startswith("steepest.losses") else cls.__module__
        info = {**facts["info"], "class_counts": tuple(facts["info"]["class_counts"])}
        arguments = ", ".join(["info", *(f"{name}={value!r}" for name, value in facts["hyper"].items())])
        lines += [
            "",
            "# or its objective in your own loop; info says what training rows there are",
            "from steepest.core.objective import TaskInfo",
            f"from {home} import {cls.__name__}",
            "",
            f"info = TaskInfo({', '.join(f'{name}={value!r}' for name, value in info.items())})",
            f"objective = {cls.__name__}.from_task({arguments})",
        ]
    return "\n".join(lines) + "\n"


def _rows(winner: Winner | TextWinner | RetrievalWinner, source: str | None) -> str:
    """The example of rows: the source itself, unless its columns have no names and the features are not its first.

    Of a text it is a file of prompts that is yet to come.
    """
    if isinstance(winner, TextWinner):
        return source if source is not None and is_json_lines(source) else "prompts.txt"
    names = winner.facts["columns"]
    unnamed = all(re.fullmatch("c[0-9]+", name) for name in (*names, winner.facts["target"]))
    if source is not None and (not unnamed or names == [f"c{i + 1}" for i in range(len(names))]):
        return source
    return "new-images.npz" if isinstance(winner.prepared, ImageScaler) else "new-rows.csv"


def _said(source: str | None, reading: Mapping[str, Any]) -> dict[str, Any]:
    """How a user said that the source is to be read."""
    return {name: reading[name] for name in READING if source is not None and reading.get(name) is not None}
