"""The page of a run: curves, spectra, alarms on one time axis, in one file that works offline."""

from __future__ import annotations

import errno
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..core.lazy import late
from ..core.pages import page_environment, page_parts
from ..core.pages.palette import LIGHT
from ..core.pages.svg import NARROW, WIDE, canvas, css_class, inline
from ..core.stored import LARGEST
from .journal import RunRecord

ticker, colors = late("matplotlib.ticker"), late("matplotlib.colors")
POINTS = 1200
"""Of a curve; longer ones are thinned, least and largest of each stretch kept."""
NOTES, ENTRIES, COLUMNS = 200, 48, 160
"""Most alarms of the table, entries and steps of a map."""
LOGARITHMIC = 30.0
FIRST = 5
"""Steps whose median is where a loss began: soon it falls."""


def write_page(record: RunRecord, path: str | Path) -> Path:
    """Write the page of a run, whole or not at all.

    Args:
        record: of the run, as :func:`steepest.watch.read_run` gives it.
        path: of the page.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    new = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        new.write_text(run_page(record), encoding="utf-8")
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)
    return file


def run_page(record: RunRecord) -> str:
    """The page of a run as HTML; whatever the file of the run says is escaped."""
    from importlib.metadata import version

    marks = [int(note["step"]) for note in record.notes if isinstance(note.get("step"), int)]
    span = _span(record, marks)
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, (name, (steps, values)) in enumerate(sorted(record.series.items())):
        probe, _, short = name.rpartition("/")
        figure = small_curve(name, steps, values, span, marks, f"s{number}")
        last = f"{compact(values[-1])} at step {steps[-1]}" if values else ""
        groups.setdefault(probe or "logged", []).append({"name": short, "figure": figure, "last": last})
    losses = record.losses
    loss = [loss_curve(*losses, span, marks, width, f"loss{width}") for width in (WIDE, NARROW)] if losses[0] else []
    return str(
        page_environment(Path(__file__).parent)
        .get_template("page.html")
        .render(
            record=record,
            version=version("steepest"),
            page=page_parts(),
            sentence=sentence(record),
            facts=_facts(record),
            marks=marks,
            loss=loss,
            notes=[_note(note) for note in record.notes[-NOTES:]],
            more_notes=max(0, len(record.notes) - NOTES),
            groups=[
                {"ident": f"g{k}", "title": probe.replace("_", " "), "rows": items}
                for k, (probe, items) in enumerate(groups.items())
            ],
            spectra=_spectra(record),
            last=_last(record),
        )
    )


def compact(value: float) -> str:
    """A number to four digits, as people write it.

    >>> compact(0.000012345), compact(1234567.0), compact(0.5), compact(-3.0), compact(float("nan"))
    ('1.234e−5', '1.235e6', '0.5', '−3', 'not a number')
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{value + 0.0:.4g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def sentence(record: RunRecord) -> str:
    """What a run did, in words."""
    steps, values = record.losses
    finite = [value for value in values if math.isfinite(value)]
    words = []
    if finite:
        window = max(1, min(50, len(finite) // 5))
        first, last = statistics.median(finite[: min(window, FIRST)]), statistics.median(finite[-window:])
        how = "fell" if last < 0.98 * first else "rose" if last > 1.02 * first else "stayed near"
        path = f"from {compact(first)} to {compact(last)}" if how != "stayed near" else compact(last)
        words.append(f"The loss {how} {path} in {_count(steps[-1], 'step')}.")
    elif not values:
        words.append("No loss was told yet.")
    if len(finite) < len(values):
        at = next(step for step, value in zip(steps, values) if not math.isfinite(value))
        words.append(f"{_count(len(values) - len(finite), 'loss', 'losses')} not finite, first at step {at}.")
    actions: dict[str, int] = {}
    for note in record.notes:
        if note["kind"] == "action" and note.get("action") != "note":
            actions[str(note.get("action"))] = actions.get(str(note.get("action")), 0) + 1
    if actions:
        told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(actions.items()))
        words.append(f"The guard acted: {told}.")
    warnings = sum(note["kind"] == "warning" for note in record.notes)
    if warnings:
        words.append(f"{_count(warnings, 'warning')}.")
    return " ".join(words)


def _count(number: int, one: str, several: str = "") -> str:
    return f"{_whole(number)} {one if number == 1 else several or one + 's'}"


def _whole(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _facts(record: RunRecord) -> list[tuple[str, str, str]]:
    facts, rows = record.facts, []
    steps = max([*record.losses[0][-1:], *(s[-1] for s, _ in record.series.values() if s)], default=0)
    rows.append(("Steps", _whole(steps), "ended" if record.ended else "not ended"))
    if isinstance(facts.get("parameters"), int):
        trained = facts.get("trained")
        small = f"{_whole(trained)} trained" if isinstance(trained, int) and trained != facts["parameters"] else ""
        rows.append(("Parameters", _whole(facts["parameters"]), small))
    rows += [
        (title, str(facts[key]), "")
        for key, title in (("objective", "Objective"), ("optimizer", "Optimizer"), ("by", "Recorded by"))
        if facts.get(key)
    ]
    started = facts.get("started")
    if isinstance(started, float) and math.isfinite(record.last) and record.last > started and steps:
        seconds = (record.last - started) / steps
        told = f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
        rows.append(("A step", told, "on average, all included"))
    return rows


def _note(note: Mapping[str, Any]) -> dict[str, Any]:
    known = {"kind", "step", "action", "cause", "text", "at"}
    cause = note.get("cause", note.get("text", ""))
    more = [f"{key} {_short(value)}" for key, value in note.items() if key not in known]
    return {
        "step": note.get("step", ""),
        "what": str(note.get("action", note["kind"])).replace("_", " "),
        "cause": ", ".join(map(str, cause)) if isinstance(cause, list) else str(cause),
        "more": "; ".join(more)[:300],
    }


def _short(value: Any) -> str:
    if isinstance(value, float):
        return compact(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return ", ".join(map(_short, value)) if isinstance(value, list) else str(value)


def _span(record: RunRecord, marks: Sequence[int]) -> tuple[float, float]:
    """The first and the last step of all drawings."""
    steps = [s for own in (record.losses[0], *(s for s, _ in record.series.values())) for s in own[:1] + own[-1:]]
    steps += marks
    low, high = min(steps, default=0), max(steps, default=1)
    return float(low), float(high if high > low else low + 1)


# ------------------------------------------------------------------------------------------------------------- drawings


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """A curve of few points: of each stretch the least and the largest.

    >>> steps, values = thinned(range(10_000), [k % 100 for k in range(10_000)])
    >>> len(steps) <= 1200, min(values), max(values)
    (True, 0, 99)
    """
    if len(steps) <= POINTS:
        return list(steps), list(values)
    size = -(-len(steps) // (POINTS // 2))
    chosen: list[int] = []
    for start in range(0, len(steps), size):
        places = [k for k in range(start, min(start + size, len(steps))) if math.isfinite(values[k])]
        if places:
            chosen += sorted({min(places, key=values.__getitem__), max(places, key=values.__getitem__)})
    return [steps[k] for k in chosen], [values[k] for k in chosen]


def running_median(values: Sequence[float], window: int) -> list[float]:
    """The median of the last ``window`` finite values, at each."""
    recent: list[float] = []
    medians = []
    for value in values:
        if math.isfinite(value):
            recent = [*recent[-window + 1 :], value]
        medians.append(statistics.median(recent) if recent else math.nan)
    return medians


def _logarithmic(values: Sequence[float]) -> bool:
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > LOGARITHMIC * min(finite)


def _dress(axes: Any, values: Sequence[float], span: tuple[float, float], marks: Sequence[int], bins: int) -> None:
    if _logarithmic(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.yaxis.set_major_locator(ticker.LogLocator(numticks=4))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        low, high = (f([v for v in values if math.isfinite(v)]) for f in (min, max))
        if math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1:
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3), numticks=4))
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: compact(value))
    pad = 0.02 * (span[1] - span[0])
    axes.set_xlim(span[0] - pad, span[1] + pad)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(bins, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    places = sorted(set(marks))[:200]
    if places:
        axes.plot(places, [1.02] * len(places), "v", color=LIGHT["worse"], markersize=6, clip_on=False,
                  transform=axes.get_xaxis_transform(), linewidth=0)  # fmt: skip


def loss_curve(
    steps: Sequence[int],
    values: Sequence[float],
    span: tuple[float, float],
    marks: Sequence[int],
    width: int,
    ident: str,
) -> Markup:
    """The loss of every batch, and its running median."""
    values = _drawable(values)
    window = max(1, min(50, len(values) // 20))
    narrow = width < 500
    with canvas(width, 240 if narrow else 280, 12) as figure:
        axes = figure.add_axes((0.16 if narrow else 0.08, 0.12, 0.82 if narrow else 0.905, 0.80))
        axes.plot(*thinned(steps, values), color=LIGHT["neutral"], linewidth=0.8, alpha=0.6)
        axes.plot(*thinned(steps, running_median(values, window)), color=LIGHT["better"], linewidth=1.9)
        _dress(axes, values, span, marks, 4 if narrow else 8)
        finite = [value for value in values if math.isfinite(value)]
        text = f"loss {compact(finite[-1])} at step {steps[-1]}" if finite else "no finite loss"
        return inline(figure, ident, "Loss over steps", text, css_class(width))


def small_curve(
    name: str,
    steps: Sequence[int],
    values: Sequence[float],
    span: tuple[float, float],
    marks: Sequence[int],
    ident: str,
) -> Markup:
    """One number over the steps."""
    with canvas(168, 132, 10) as figure:
        axes = figure.add_axes((0.25, 0.17, 0.72, 0.74))
        shape = "-" if len(steps) > 30 else "-o"
        drawn = _drawable(values)
        axes.plot(*thinned(steps, drawn), shape, color=LIGHT["better"], linewidth=1.4, markersize=2.6)
        _dress(axes, drawn, span, marks, 3)
        text = f"{compact(values[-1])} at step {steps[-1]}" if values else "no values"
        return inline(figure, ident, name, text)


def _drawable(values: Sequence[float]) -> list[float]:
    """Without those that are not finite, or so large that the length of an axis is not."""
    return [value if abs(value) <= LARGEST else math.nan for value in values]


def _spectra(record: RunRecord) -> list[dict[str, Any]]:
    """Maps of arrays: of one axis over the steps, of two the last one."""
    items = []
    for number, (name, rows) in enumerate(sorted(record.arrays.items())):
        last = rows[-1]
        axes = list(last["axes"].items())
        if len(axes) == 1:
            rows = [row for row in rows if len(row["axes"]) == 1 and len(row["values"]) == len(last["values"])]
            rows = rows[:: -(-len(rows) // COLUMNS)]
            chosen = _chosen(len(last["values"]))
            labels = [str(label) for label in (axes[0][1] or range(len(last["values"])))]
            grid = [[float(row["values"][k]) for row in rows] for k in chosen]
            xlabels = [str(row["step"]) for row in rows]
            labels = [labels[k] for k in chosen]
        elif len(axes) == 2:
            grid = [[float(value) for value in row] for row in last["values"]]
            (_, down), (_, across) = axes
            columns = range(0, len(grid[0]), -(-len(grid[0]) // COLUMNS)) if grid and grid[0] else range(0)
            chosen = _chosen(len(grid))
            named = [down or range(len(grid)), across or range(len(grid[0]) if grid else 0)]
            labels, xlabels = (
                [compact(names[k]) if isinstance(names[k], float) else str(names[k]) for k in places]
                for names, places in zip(named, (chosen, columns))
            )
            grid = [[grid[i][j] for j in columns] for i in chosen]
        else:
            continue
        finite = [value for row in grid for value in row if math.isfinite(value)]
        if not finite:
            continue
        bounds = f"{compact(min(finite))} to {compact(max(finite))}"
        figures = [heat_map(name, grid, labels, xlabels, width, f"a{number}{width}") for width in (WIDE, NARROW)]
        items.append({"name": name, "range": bounds, "figures": figures})
    return items


def _chosen(count: int) -> list[int]:
    """At most so many entries, evenly."""
    if count <= ENTRIES:
        return list(range(count))
    return sorted({round(k * (count - 1) / (ENTRIES - 1)) for k in range(ENTRIES)})


def heat_map(
    name: str, grid: list[list[float]], labels: Sequence[str], across: Sequence[str], width: int, ident: str
) -> Markup:
    """A table of numbers as shades; the colour scale is logarithmic where that is needed to tell them apart."""
    narrow = width < 500
    values = [value for row in grid for value in row]
    logarithmic = _logarithmic(values)
    low, high = (f([v for v in values if math.isfinite(v)]) for f in (min, max))

    def shade(value: float) -> float:
        if not math.isfinite(value):
            return math.nan
        if high == low:
            return 0.5
        return math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)

    height = 14 * len(grid) + 26
    with canvas(width, height, 10) as figure:
        left = 0.42 if narrow else 0.26
        axes = figure.add_axes((left, 20 / height, 0.98 - left, 1 - 26 / height))
        rows, columns = len(grid), len(grid[0])
        for i, row in enumerate(grid):
            start = 0
            tones = [None if math.isnan(shade(v)) else round(shade(v) * 12) for v in row]
            for j in range(1, columns + 1):  # neighbours of one shade are one bar
                if j == columns or tones[j] != tones[start]:
                    tone = tones[start]
                    face = LIGHT["worse"] if tone is None else LIGHT["better"]
                    axes.barh(i, j - start, left=start, height=0.92, color=face, linewidth=0,
                              alpha=1.0 if tone is None else 0.06 + 0.94 * tone / 12)  # fmt: skip
                    start = j
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_xlim(0, columns)
        most = 22 if narrow else 40
        axes.set_yticks(range(rows), [label if len(label) <= most else "…" + label[1 - most :] for label in labels])
        places = sorted({round(k * (columns - 1) / 5) for k in range(6)})
        axes.set_xticks([p + 0.5 for p in places], [across[p] for p in places])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return inline(figure, ident, name, f"{rows} entries, {columns} columns", css_class(width))


def _last(record: RunRecord) -> list[dict[str, str]]:
    rows = []
    for name, (steps, values) in sorted(record.series.items()):
        finite = [value for value in values if math.isfinite(value)]
        if not values:
            continue
        rows.append({
            "name": name, "step": str(steps[-1]), "value": compact(values[-1]),
            "least": compact(min(finite)) if finite else "", "largest": compact(max(finite)) if finite else "",
        })  # fmt: skip
    return rows
