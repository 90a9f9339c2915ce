"""The pages' view of evidence: a section for each system, and the gallery of all experiments."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steepest.catalogue import System
from steepest.lab import gallery

VERDICTS = ("shown", "not shown", "contradicted")
STALE = "stale: the code has changed since, so it counts as no verdict until the experiment has run again"


def number(value: float) -> str:
    """A number with four digits."""
    return f"{value:.4g}"


def cell(text: object) -> str:
    """Text that may stand in a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def section(system: System, target: Path) -> list[str]:
    """The evidence of a system as lines of its page; its figure goes to ``target/evidence``. Empty without evidence."""
    found = gallery.read(system)
    if found is None:
        return []
    stale = gallery.stale(system)
    lines = ["", "## Evidence", "", f"**{found['verdict']}**" + (f" ({STALE})" if stale else ""), ""]
    if not found["finished"]:
        lines += ["The seeds could not have found every claimed effect: the experiment is not finished.", ""]
    lines += ["| claim | mean | 95% interval | claimed | verdict | detectable |", "|---|---|---|---|---|---|"]
    for claim in found["claims"]:
        row = (
            cell(claim["text"]),
            number(claim["mean"]),
            f"{number(claim['low'])} to {number(claim['high'])}",
            f"{'>' if claim['greater'] else '<'} {number(claim['threshold'])}",
            claim["verdict"],
            number(claim["detectable"]),
        )
        lines.append("| " + " | ".join(row) + " |")
    seeds = len(found["seeds"])
    ran = f"{seeds} seeds, {found['date']}, {found['machine']}, {found['seconds']:g} s"
    lines += ["", f"{ran}; module `steepest.{system.experiment}`.", *figure(system, found, target, "../")]
    return lines


def figure(system: System, found: dict[str, Any], target: Path, up: str) -> list[str]:
    """The figure as an image with its findings as alternative text; none where there is no file."""
    file = gallery.folder() / f"{system.slug}.svg"
    if not file.is_file():
        return []
    (target / "evidence").mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target / "evidence")
    said = "; ".join(f"{claim['text']}: {claim['verdict']}, mean {number(claim['mean'])}" for claim in found["claims"])
    text = f"{system.slug}: {said}".replace("[", "(").replace("]", ")").replace("\n", " ")
    return ["", f"![{text}]({up}evidence/{system.slug}.svg)"]


def counts(experiments: Sequence[System]) -> dict[str, int]:
    """How many experiments have each verdict, are stale, or have no evidence yet; each counts once."""
    found: Counter[str] = Counter()
    for system in experiments:
        evidence = gallery.read(system)
        found["no evidence yet" if evidence is None else "stale" if gallery.stale(system) else evidence["verdict"]] += 1
    return {key: found[key] for key in (*VERDICTS, "stale", "no evidence yet")}


def page(present: Sequence[System], target: Path) -> str:
    """Every experiment by name, with its verdict and its figure."""
    known = {system.slug for system in present}
    experiments = sorted((s for s in gallery.experiments() if s.slug in known), key=lambda system: system.slug)
    total = ", ".join(f"{count} {what}" for what, count in counts(experiments).items())
    lines = [
        "# Gallery",
        "",
        "Each experiment tests the central claim of a publication, with numbers fixed before its first run, over at "
        "least five seeds. *Shown*: the 95% interval over seeds lies on the claimed side; *contradicted*: on the "
        "other; else *not shown*. One contradicted claim makes a system's verdict.",
        "",
        f"{len(experiments)} experiment{'' if len(experiments) == 1 else 's'}: {total}.",
        "",
        "| system | verdict | publication |",
        "|---|---|---|",
    ]
    sections: list[str] = []
    for system in experiments:
        found = gallery.read(system)
        verdict = "no evidence yet" if found is None else found["verdict"]
        verdict += " (stale)" if found is not None and gallery.stale(system) else ""
        lines.append(
            f"| [{system.slug}](systems/{system.slug}.md) | {verdict} | {cell(system.title)} ({system.year}) |"
        )
        if found is not None:
            sections += ["", f"## {system.slug}", "", f"**{verdict}**. {cell(system.title)}."]
            sections += figure(system, found, target, "")
    return "\n".join([*lines, *sections]) + "\n"
