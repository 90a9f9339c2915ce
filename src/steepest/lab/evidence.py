"""The evidence of an experiment as ``evidence/SLUG.json`` keeps it: compact, checked when read, and known to be stale.

The file holds a row of the experiment a line, for all seeds at once: a value that all seeds share stands once, one that
differs is a list in the order of the seeds. Numbers have six significant digits, and verdicts are those of the numbers
as they stand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalogue import VERDICTS, Judged, System, checkout, evidence_file, evidence_folder, shown_of
from ..catalogue.evidence import OWN_FILES
from ..core.stored import (
    Flag,
    Listed,
    Named,
    Number,
    Record,
    Shape,
    Text,
    Whole,
    Word,
    inside,
    read_json,
    refuse_stored,
)
from ..sources import source_hash
from .experiment import SCALES, Claim, Evidence, Finding

DIGITS = 6
"""Significant digits of a number in evidence."""


class Cell(Shape):
    """A text, a number, true or false, null, or a list of these, one for each seed."""

    def check(self, value: object, where: str) -> None:
        for item in value if isinstance(value, list) else [value]:
            if not (item is None or isinstance(item, bool)):
                (Text() if isinstance(item, str) else Number()).check(item, where)


_ROWS = {"columns": Listed(Text()), "rows": Listed(Listed(Cell()), least=1)}
_CLAIM = Record(
    {
        "effect": Text(),
        "text": Text(),
        "greater": Flag(),
        "verdict": Word(VERDICTS),
        **dict.fromkeys(("size", "threshold", "mean", "low", "high", "detectable"), Number()),
    },
    {"ours": Flag()},
)
FORM = Record(
    {
        **dict.fromkeys(("slug", "title", "date", "machine", "source_hash"), Text()),
        "scale": Word(SCALES),
        "seconds": Number(low=0.0),
        "claims": Listed(_CLAIM, least=1),
        "seeds": Listed(Whole(), least=1),
        "effects": Named(Listed(Number(), least=1)),
        **_ROWS,
        "smoke": Record({"seed": Whole(), "effects": Named(Number()), **_ROWS}),
    },
    {"stale": Text()},
)
"""What ``evidence/SLUG.json`` holds."""


@dataclass(frozen=True)
class StoredRun:
    """One run of an experiment.

    Args:
        slug, title: of the system.
        scale: ``"smoke"`` or ``"full"``.
        date, machine, seconds: when, where, and how much processor time, all seeds together.
        source_hash: of the code that ran.
        findings: the claims with their verdicts.
        seeds: by number.
        evidence: what each of them measured.
        smoke: what the smoke scale measures with the same code, of one seed.
        stale: why it counts no longer, or ``""``.
    """

    slug: str
    title: str
    scale: str
    date: str
    machine: str
    seconds: float
    source_hash: str
    findings: list[Finding]
    seeds: list[int]
    evidence: list[Evidence]
    smoke: Evidence
    stale: str = ""
    smoke_seed: int = 0

    @property
    def judged(self) -> tuple[Judged, ...]:
        """The claims as the catalogue counts them."""
        return tuple(Judged(f.claim.effect, f.claim.text, f.verdict, f.claim.ours) for f in self.findings)

    @property
    def shown(self) -> str:
        """For example ``5 of 6 claims shown``."""
        return shown_of(self.judged, " claims shown")

    @property
    def finished(self) -> bool:
        """Whether the seeds could have found every claimed size, or did not need to."""
        return all(finding.finished for finding in self.findings)


def folder() -> Path:
    """Where evidence is written."""
    return evidence_folder()


def file_of(slug: str) -> Path:
    """Where the evidence of a system is kept."""
    return folder() / f"{slug}.json"


def read(system: System) -> StoredRun | None:
    """Committed evidence of a system, or None.

    Raises:
        InputError: its file is no evidence of this system.
    """
    file = file_of(system.slug)
    file = evidence_file(system) if checkout() is None and not file.is_file() else file
    if not file.is_file():
        return None
    values = read_json(file, f"evidence of {system.slug}")
    FORM.check(values, file.name)
    if values["slug"] != system.slug:
        refuse_stored(inside(file.name, "slug"), repr(system.slug), values["slug"])
    return unpacked(values, file.name)


def write(record: StoredRun) -> Path:
    """Write ``evidence/SLUG.json``, whole or not at all, and say where."""
    file = file_of(record.slug)
    write_text(file, text_of(packed(record)))
    return file


def stale(system: System) -> bool:
    """Whether there is no evidence, own files have changed since, or it says itself that smoke rows have moved."""
    record = read(system)
    return record is None or why_stale(system, record) != ""


def why_stale(system: System, record: StoredRun) -> str:
    """Why evidence counts no longer; ``""`` where it does."""
    return record.stale or (OWN_FILES if record.source_hash != source_hash(system) else "")


SMOKE_ROWS = "the smoke rows have changed since"


# ------------------------------------------------------------------------------------------------------ the file's form


def rounded(evidence: Evidence) -> Evidence:
    """The same with six significant digits, as the file will hold it.

    >>> rounded(Evidence([{"arm": "a", "n": 1234567, "error": 1 / 3}], {"gain": 123456.789}))
    Evidence(rows=[{'arm': 'a', 'n': 1234567, 'error': 0.333333}], effects={'gain': 123457.0})
    """
    return Evidence(
        [{name: _short(value) for name, value in row.items()} for row in evidence.rows],
        {name: _short(value) for name, value in evidence.effects.items()},
    )


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def packed(record: StoredRun) -> dict[str, Any]:
    """Evidence as plain values, in the form of the file."""
    values: dict[str, Any] = {
        "slug": record.slug,
        "title": record.title,
        "scale": record.scale,
        "date": record.date,
        "machine": record.machine,
        "seconds": round(record.seconds, 1),
        "source_hash": record.source_hash,
    }
    if record.stale:
        values["stale"] = record.stale
    values["claims"] = [_plain(finding) for finding in record.findings]
    values["seeds"] = list(record.seeds)
    names = list(record.evidence[0].effects)
    values["effects"] = {name: [_short(of_seed.effects[name]) for of_seed in record.evidence] for name in names}
    values |= _table([of_seed.rows for of_seed in record.evidence])
    smoke = rounded(record.smoke)
    values["smoke"] = {"seed": record.smoke_seed, "effects": smoke.effects, **_table([smoke.rows])}
    return values


def _plain(finding: Finding) -> dict[str, Any]:
    claim = finding.claim
    values = {
        "effect": claim.effect,
        "text": claim.text,
        "size": claim.size,
        "threshold": claim.threshold,
        "greater": claim.greater,
        "verdict": finding.verdict,
        "mean": finding.mean,
        "low": finding.low,
        "high": finding.high,
        "detectable": finding.detectable,
    }
    if claim.ours:
        values["ours"] = True
    return {name: _short(value) for name, value in values.items()}


def _table(by_seed: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Rows of several seeds as columns and lines.

    A column that a row lacks is null there; so is a whole line for a seed that has fewer rows.

    >>> _table([[{"arm": "a", "error": 0.5}], [{"arm": "a", "error": 0.25}, {"arm": "b"}]])
    {'columns': ['arm', 'error'], 'rows': [['a', [0.5, 0.25]], [[None, 'b'], None]]}
    """
    columns = list(dict.fromkeys(name for rows in by_seed for row in rows for name in row))
    lines = []
    for place in range(max(map(len, by_seed))):
        rows = [seed_rows[place] if place < len(seed_rows) else {} for seed_rows in by_seed]
        line = []
        for name in columns:
            cells = [_short(row.get(name)) for row in rows]
            same = all(type(cell) is type(cells[0]) and cell == cells[0] for cell in cells)
            line.append(cells[0] if same else cells)
        lines.append(line)
    return {"columns": columns, "rows": lines}


def _rows(table: Mapping[str, Any], seeds: int, where: str) -> list[list[dict[str, Any]]]:
    """The rows of each seed: :func:`_table` undone."""
    columns = table["columns"]
    by_seed: list[list[dict[str, Any]]] = [[] for _ in range(seeds)]
    for number, line in enumerate(table["rows"]):
        place = f"{inside(where, 'rows')}[{number}]"
        if len(line) != len(columns):
            refuse_stored(place, f"{len(columns)} cells", line)
        for cell in line:
            if isinstance(cell, list) and len(cell) != seeds:
                refuse_stored(place, f"a value for each of {seeds} seeds", cell)
        for seed, rows in enumerate(by_seed):
            cells = [cell[seed] if isinstance(cell, list) else cell for cell in line]
            row = {name: cell for name, cell in zip(columns, cells) if cell is not None}
            if row:
                rows.append(row)
    return by_seed


def unpacked(values: Mapping[str, Any], where: str) -> StoredRun:
    """Evidence from the values of a file that fits :data:`FORM`: :func:`packed` undone.

    Raises:
        InputError: its lists don't belong together.
    """
    seeds, effects = values["seeds"], values["effects"]
    for name, numbers in effects.items():
        if len(numbers) != len(seeds):
            refuse_stored(inside(inside(where, "effects"), name), f"a number for each of {len(seeds)} seeds", numbers)
    findings = []
    for number, plain in enumerate(values["claims"]):
        if plain["effect"] not in effects:
            refuse_stored(f"{inside(where, 'claims')}[{number}].effect", "one of the effects", plain["effect"])
        names = ("effect", "text", "size", "threshold", "greater")
        claim = Claim(**{name: plain[name] for name in names}, ours=plain.get("ours", False))
        measured = {name: plain[name] for name in ("mean", "low", "high", "verdict", "detectable")}
        findings.append(Finding(claim, **measured, values=list(effects[plain["effect"]])))
    by_seed = _rows(values, len(seeds), where)
    smoke = values["smoke"]
    return StoredRun(
        **{name: values[name] for name in ("slug", "title", "scale", "date", "machine", "seconds", "source_hash")},
        findings=findings,
        seeds=list(seeds),
        evidence=[
            Evidence(rows, {name: numbers[place] for name, numbers in effects.items()})
            for place, rows in enumerate(by_seed)
        ],
        smoke=Evidence(_rows(smoke, 1, inside(where, "smoke"))[0], dict(smoke["effects"])),
        smoke_seed=smoke["seed"],
        stale=values.get("stale", ""),
    )


def text_of(values: Mapping[str, Any]) -> str:
    """Plain values as JSON with a line for each claim, effect and row."""

    def block(value: Any, depth: int) -> str:
        if depth and isinstance(value, Mapping) and value:
            lines = [f"{_dumped(name)}: {block(inner, depth - 1)}" for name, inner in value.items()]
            return "{\n" + ",\n".join(lines) + "\n}"
        if isinstance(value, list) and value and isinstance(value[0], (list, Mapping)):
            return "[\n" + ",\n".join(map(_dumped, value)) + "\n]"
        return _dumped(value)

    lines = [f"{_dumped(name)}: {block(value, 2 if name == 'smoke' else 1)}" for name, value in values.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
