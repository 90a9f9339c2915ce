"""The pages' view of evidence: a section for each system, and the gallery of all experiments, figures drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steepest.catalogue import VERDICTS, System, find, open_claims
from steepest.lab import evidence, figures, gallery
from steepest.lab.evidence import StoredRun


def number(value: float) -> str:
    """A number with four digits."""
    return f"{value:.4g}"


def cell(text: object) -> str:
    """Text that may stand in a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def section(system: System) -> list[str]:
    """The evidence of a system as lines of its page. Empty without evidence."""
    record = evidence.read(system)
    if record is None:
        return []
    lines = ["", "## Evidence", "", f"**{record.shown}**{staleness(system, record)}", ""]
    if not record.finished:
        lines += ["The seeds could not have found every claimed effect: the experiment is not finished.", ""]
    lines += ["| claim | of | mean | 95% interval | claimed | verdict | detectable |", "|---|---|---|---|---|---|---|"]
    for finding in record.findings:
        claim = finding.claim
        row = (
            cell(claim.text),
            "ours" if claim.ours else "the publication",
            number(finding.mean),
            f"{number(finding.low)} to {number(finding.high)}",
            f"{'>' if claim.greater else '<'} {number(claim.threshold)}",
            finding.verdict,
            number(finding.detectable),
        )
        lines.append("| " + " | ".join(row) + " |")
    ran = f"{len(record.seeds)} seeds, {record.date}, {record.machine}, {record.seconds:g} s"
    return [*lines, "", f"{ran}; module `steepest.{system.experiment}`.", *figure(record, "../")]


def table(slug: str, label: str, columns: Sequence[str]) -> str:
    """Rows of a system's evidence, numbers as means over seeds, blank where there are none; or that it has none yet."""
    system = find(slug)
    record = evidence.read(system)
    if record is None:
        return f"No evidence of {slug} yet."
    rows = [row for of_seed in record.evidence for row in of_seed.rows]
    lines = ["| " + " | ".join(map(cell, (label, *columns))) + " |", "|---" * (1 + len(columns)) + "|"]
    for name in dict.fromkeys(row[label] for row in rows):
        own = [row for row in rows if row[label] == name]
        means = (number(sum(r[column] for r in own) / len(own)) if column in own[0] else "" for column in columns)
        lines.append("| " + " | ".join((cell(name), *means)) + " |")
    return "\n".join([*lines, "", f"Means over {len(record.seeds)} seeds{staleness(system, record)}."])


def staleness(system: System, record: StoredRun) -> str:
    """What to add where evidence is stale."""
    reason = evidence.why_stale(system, record)
    return f" (stale: {reason}; it counts again when the experiment has run again)" if reason else ""


def figure(record: StoredRun, up: str) -> list[str]:
    """The figure as an image with its findings as alternative text."""
    said = "; ".join(f"{f.claim.text}: {f.verdict}, mean {number(f.mean)}" for f in record.findings)
    text = f"{record.slug}: {said}".replace("[", "(").replace("]", ")").replace("\n", " ")
    return ["", f"![{text}]({up}evidence/{record.slug}.svg)"]


def draw_figures(present: Sequence[System], target: Path) -> None:
    """Draw the figure of all evidence under ``target/evidence``."""
    (target / "evidence").mkdir(parents=True)
    for system in present:
        record = evidence.read(system)
        if record is not None:
            drawn = figures.draw(gallery.load(system), record.evidence, record.findings)
            (target / "evidence" / f"{system.slug}.svg").write_text(drawn, encoding="utf-8")


def page(present: Sequence[System]) -> str:
    """Every experiment by name, with how many of its claims are shown, which are not, and its figure."""
    known = {system.slug for system in present}
    experiments = sorted((s for s in gallery.experiments() if s.slug in known), key=lambda system: system.slug)
    by_slug = {system.slug: evidence.read(system) for system in experiments}
    stale = {system.slug for system in experiments if (of := by_slug[system.slug]) and evidence.why_stale(system, of)}
    fresh = [claim for slug, of in by_slug.items() if of and slug not in stale for claim in of.judged]
    counts = {
        whose: ", ".join(f"{sum(c.verdict == word for c in fresh if c.ours is ours)} {word}" for word in VERDICTS)
        for whose, ours in (("Claims of the publications", False), ("Expectations of ours", True))
    }
    missing = sum(of is None for of in by_slug.values())
    lines = [
        "# Gallery",
        "",
        "Each experiment tests the claims of a publication, with numbers fixed before its first run, over at least "
        "five seeds. *Shown*: the 95% interval over seeds lies on the claimed side; *contradicted*: on the other; else "
        "*not shown*. Expectations of ours, which the publication does not state, are counted apart.",
        "",
        f"{len(experiments)} experiment{'' if len(experiments) == 1 else 's'}, {len(stale)} stale, {missing} without "
        "evidence yet. In fresh evidence: " + "; ".join(f"{whose}: {said}" for whose, said in counts.items()) + ".",
        "",
        "| system | shown | not shown | contradicted | publication |",
        "|---|---|---|---|---|",
    ]
    sections: list[str] = []
    for system in experiments:
        of = by_slug[system.slug]
        row = [f"[{system.slug}](systems/{system.slug}.md)"]
        if of is None:
            row += ["no evidence yet", "", ""]
        else:
            said = of.shown.replace(" claims shown", "") + (" (stale)" if system.slug in stale else "")
            rest = open_claims(of.judged)
            row += [said, *(cell("; ".join(c.label for c in rest.get(word, ()))) for word in VERDICTS[1:])]
            sections += ["", f"## {system.slug}", "", f"**{of.shown}**. {cell(system.title)}.", *figure(of, "")]
        lines.append("| " + " | ".join([*row, f"{cell(system.title)} ({system.year})"]) + " |")
    return "\n".join([*lines, *sections]) + "\n"
