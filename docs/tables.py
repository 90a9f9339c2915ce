"""Tables that are made from the code and from kept results: tasks with their losses and metrics, benchmarks."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from findings import cell

from steepest.catalogue import System, owners
from steepest.comparison import metrics
from steepest.comparison.design.objectives import known_objectives
from steepest.comparison.metrics.ranking import OF_LISTS
from steepest.comparison.metrics.several import MULTILABEL, multitask_metrics
from steepest.comparison.read.several import Part
from steepest.core.objective import TASKS, Objective
from steepest.core.search import Choice, Float, Int, Space

WORDS = {
    "binary": "two classes",
    "multiclass": "several classes, one a row",
    "multilabel": "several labels a row, each 0 or 1",
    "regression": "a number",
    "ranking": "a grade a row, in lists; losses of numbers learn each row by itself",
    "multitask": "several targets of any kinds, here classes A and numbers B; each target takes a loss of its own kind",
}


def space(name: str, values: Space) -> str:
    """A search space in words.

    >>> space("gamma", Float(0.25, 5.0, log=True)), space("p", Choice((1, 2)))
    ('`gamma` 0.25 to 5, log', '`p` 1, 2')
    """
    if isinstance(values, Choice):
        return f"`{name}` {', '.join(map(str, values.options))}"
    kind = ", integer" if isinstance(values, Int) else ", log" if isinstance(values, Float) and values.log else ""
    return f"`{name}` {values.low:g} to {values.high:g}{kind}"


def notes(cls: type[Objective]) -> str:
    """What else matters about the range of an objective: its reductions, its gradient, the checks it is exempt from."""
    words = ["mean only, no sample weights"] if cls.unit == "batch" else []
    words += ["surrogate gradient"] if cls.gradient == "surrogate" else []
    words += ["keeps state"] if cls.stateful else []
    words += [f"{cls.views} views of each input"] if cls.views > 1 else []
    words += [f"exempt from {', '.join(cls.exempt)}"] if cls.exempt else []
    return "; ".join(words) or "–"


def metric_tables() -> dict[str, dict[str, metrics.Metric]]:
    """The metrics of each task that a comparison takes."""
    example = [Part("A", "multiclass", ("a", "b", "c")), Part("B", "regression")]
    return {
        **metrics.METRICS,
        "multilabel": MULTILABEL,
        "multitask": multitask_metrics(example),
        "ranking": OF_LISTS,
    }


def tasks_page(present: Sequence[System]) -> str:
    """Each task: its losses with what they declare, and its metrics."""
    slugs = {system.slug for system in present}
    lines = [
        "# Tasks, losses, metrics",
        "",
        "What is there, by task. A bold name is in the shortlist that `--objectives default` tries; *search* is what a "
        "comparison tunes beside learning rate and weight decay; *unit* says whether rows or batches are scored.",
    ]
    scored = metric_tables()
    for task in TASKS:
        members = {n: (c, d) for n, (c, d) in known_objectives().items() if c.fits(task)}
        if not members and task not in scored:
            continue
        lines += ["", f"## {task}", "", f"Target: {WORDS.get(task, task)}."]
        if members:
            lines += ["", "| loss | outputs | unit | needs | search | notes |", "|---|---|---|---|---|---|"]
        for name, (cls, rank) in members.items():
            row = owners().get(cls.__name__) or next((s for s in present if cls.__module__.endswith(s.module)), None)
            word = f"**{name}**" if rank is not None else name
            link = f"[{word}](systems/{row.slug}.md)" if row is not None and row.slug in slugs else word
            search = "<br>".join(space(key, value) for key, value in cls.search.items()) or "–"
            cells = (link, cls.domain, cls.unit, ", ".join(cls.needs) or "–", search, notes(cls))
            lines.append("| " + " | ".join(map(cell, cells)) + " |")
        if task in scored:
            lines += ["", "| metric | word | better |", "|---|---|---|"]
            for metric in scored[task].values():
                better = "greater" if metric.greater_is_better else "smaller"
                lines.append(f"| {metric.label} | `{metric.name}` | {better} |")
        else:
            lines += ["", "These losses are for your own loop; a comparison has no metrics for this task."]
    lines += ["", "A function of your own is a metric too: [Bring your own parts](guides/own-parts.md#a-metric)."]
    return "\n".join(lines) + "\n"


def benchmarks_page(folder: Path) -> str:
    """Every kept result of ``folder/results``, as it is."""
    lines = [
        "# Benchmarks",
        "",
        "`make bench` runs all. Times are those of the machine that is named; compare ratios, not milliseconds.",
    ]
    files = sorted((folder / "results").glob("*.json"))
    if not files:
        lines += ["", "No results are kept."]
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        results = results if isinstance(results, dict) else {"rows": results}
        lines += ["", f"## {file.stem}", ""]
        script = folder / f"{results.get('benchmark', file.stem)}.py"
        if script.is_file() and (said := ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))):
            lines += [said.splitlines()[0], ""]
        flat, rows = flattened(results)
        lines += ["| what | value |", "|---|---|", *(f"| {cell(k)} | {cell(v)} |" for k, v in flat.items())]
        for name, table in rows.items():
            columns = list(dict.fromkeys(key for row in table for key in row))
            lines += ["", f"**{name.replace('_', ' ')}**", "", "| " + " | ".join(map(cell, columns)) + " |"]
            lines.append("|" + "---|" * len(columns))
            lines += ["| " + " | ".join(cell(plain(row.get(key, "–"))) for key in columns) + " |" for row in table]
    return "\n".join(lines) + "\n"


def flattened(results: dict[str, Any], prefix: str = "") -> tuple[dict[str, str], dict[str, list[dict[str, Any]]]]:
    """Values by their path in words, and the lists of rows apart.

    >>> flattened({"a": 1, "b": {"c_d": 2.50001}, "e": [{"x": 1}]})
    ({'a': '1', 'b, c d': '2.5'}, {'e': [{'x': 1}]})
    """
    flat: dict[str, str] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for key, value in results.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, dict):
            inner, tables = flattened(value, name + ", ")
            flat |= inner
            rows |= tables
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            rows[name] = value
        else:
            flat[name] = ", ".join(map(plain, value)) if isinstance(value, list) else plain(value)
    return flat, rows


def plain(value: Any) -> str:
    """A value as text; floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
