"""The generated pages say what the evidence, the kept results and the catalogue say."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from steepest.catalogue import find
from steepest.comparison.design.objectives import known_objectives
from steepest.comparison.metrics.tables import METRICS
from steepest.lab import evidence, gallery
from steepest.lab.evidence import StoredRun
from steepest.lab.experiment import Claim, Evidence, Finding
from steepest.sources import source_hash

DOCS = Path(__file__).parents[2] / "docs"
COMP_SUM = find("comp-sum")


@pytest.fixture
def docs(monkeypatch):
    """Imports a module of the documentation's generator."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module


def kept_evidence(*, fresh=True, verdict="shown"):
    """Evidence of comp-sum."""
    claim = Claim("gap", "a | b", size=1.0, threshold=0.5, greater=False)
    finding = Finding(claim, mean=0.92, low=0.5, high=1.3456789, verdict=verdict, detectable=0.53, values=[0.92] * 7)
    extra = replace(finding, claim=Claim("top", "c", size=1.0, ours=True), verdict="not shown")
    of_seed = Evidence([{"arm": "a", "tau": 1.0, "accuracy": 90.0}], {"gap": 0.92, "top": 0.92})
    return StoredRun(
        slug="comp-sum",
        title="Comp-sum losses",
        scale="full",
        date="2001-02-03",
        machine="a machine",
        seconds=65.25,
        source_hash=source_hash(COMP_SUM) if fresh else "old",
        findings=[finding, extra],
        seeds=list(range(7)),
        evidence=[of_seed] * 7,
        smoke=of_seed,
    )


@pytest.fixture
def keep(monkeypatch):
    """Sets what is kept of comp-sum."""
    return lambda kept: monkeypatch.setattr(evidence, "read", lambda system: kept)


def test_evidence_section(docs, tmp_path, keep):
    findings = docs("findings")
    keep(None)
    assert findings.section(COMP_SUM) == []
    findings.draw_figures([COMP_SUM], tmp_path / "none")
    assert list((tmp_path / "none" / "evidence").iterdir()) == []
    keep(kept_evidence())
    text = "\n".join(findings.section(COMP_SUM))
    assert "**1 of 1 claims shown, ours 0 of 1**\n" in text
    assert "| a \\| b | the publication | 0.92 | 0.5 to 1.346 | < 0.5 | shown | 0.53 |" in text
    assert "| c | ours | 0.92 |" in text
    assert "7 seeds, 2001-02-03, a machine, 65.25 s" in text
    assert "](../evidence/comp-sum.svg)" in text
    assert "stale" not in text
    findings.draw_figures([COMP_SUM], tmp_path / "out")
    assert "</svg>" in (tmp_path / "out" / "evidence" / "comp-sum.svg").read_text()


def test_stale_evidence_is_marked_and_counts_for_nothing(docs, monkeypatch, keep):
    monkeypatch.setattr(gallery, "experiments", lambda: [COMP_SUM])
    findings = docs("findings")
    keep(None)
    assert "1 experiment, 0 stale, 1 without evidence yet." in findings.page([COMP_SUM])
    keep(kept_evidence(verdict="contradicted"))
    page = findings.page([COMP_SUM])
    assert "1 experiment, 0 stale, 0 without evidence yet." in page
    assert "Claims of the publications: 0 shown, 0 not shown, 1 contradicted; Expectations of ours: 0 shown, 1" in page
    assert "| [comp-sum](systems/comp-sum.md) | 0 of 1, ours 0 of 1 | top (ours) | gap |" in page
    keep(kept_evidence(fresh=False))
    page = findings.page([COMP_SUM])
    assert "1 experiment, 1 stale, 0 without evidence yet." in page
    assert "Claims of the publications: 0 shown, 0 not shown, 0 contradicted" in page
    assert "| [comp-sum](systems/comp-sum.md) | 1 of 1, ours 0 of 1 (stale) | top (ours) |" in page
    assert "**1 of 1 claims shown, ours 0 of 1** (stale: " in "\n".join(findings.section(COMP_SUM))


def test_tasks_page_lists_every_loss_and_metric(docs):
    page = docs("tables").tasks_page([find("comp-sum")])
    assert "[comp_sum](systems/comp-sum.md)" in page
    for name, (cls, rank) in known_objectives().items():
        word = f"**{name}**" if rank is not None else name
        assert page.count(f"| {word} |") + page.count(f"[{word}](") == len(cls.tasks), name
    for metric in [metric for known in METRICS.values() for metric in known.values()]:
        assert f"`{metric.name}`" in page


def test_benchmarks_page_lists_every_number(docs, tmp_path):
    page = docs("tables").benchmarks_page
    (tmp_path / "results").mkdir()
    assert "No results are kept." in page(tmp_path)
    kept = {"date": "2001-02-03", "fast": {"per_second": 12.34567}, "rows": [{"n": 1, "ms": 2.0}, {"n": 3}]}
    (tmp_path / "results" / "thing.json").write_text(json.dumps(kept), encoding="utf-8")
    (tmp_path / "thing.py").write_text('"""What it measures.\n\nMore."""\n', encoding="utf-8")
    text = page(tmp_path)
    assert "## thing\n\nWhat it measures.\n" in text
    for row in ("| date | 2001-02-03 |", "| fast, per second | 12.35 |", "| n | ms |", "| 1 | 2 |", "| 3 | – |"):
        assert row in text


def test_hand_written_pages(docs, tmp_path, monkeypatch):
    systems = docs("systems")
    monkeypatch.setattr(systems, "HERE", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "A.md").write_text("# A\n\n## One\n\n1. x\n\n   y\n\n## Two\n\nz\n", encoding="utf-8")
    file = tmp_path / "docs" / "b.md"
    file.write_text('# B\n\n<!-- include: A.md "One" -->\n\n![p](p.png)\n\nend\n', encoding="utf-8")
    assert systems.written(file) == "# B\n\n1. x\n\n    y\n\nend\n"
    (tmp_path / "docs" / "p.png").write_bytes(b"")
    assert "![p](p.png)\n\nend" in systems.written(file)


def test_what_the_pages_include_is_there(docs):
    systems = docs("systems")
    for file in DOCS.rglob("*.md"):
        assert re.search("<!-- (include|evidence)", systems.written(file)) is None
    assert "src/steepest/catalogue/" in systems.written(DOCS / "guides" / "add-a-system.md")


def test_rows_of_evidence_in_a_page(docs, tmp_path, keep):
    systems = docs("systems")
    file = tmp_path / "b.md"
    file.write_text('a\n\n<!-- evidence: comp-sum "arm" "tau, accuracy" -->\n', encoding="utf-8")
    keep(None)
    assert systems.written(file) == "a\n\nNo evidence of comp-sum yet.\n"
    rows = [Evidence([{"arm": "a|b", "tau": 1, "accuracy": value}, {"arm": "c", "tau": 2, "accuracy": 3.0}], {})
            for value in (90.0, 91.0)]  # fmt: skip
    keep(replace(kept_evidence(fresh=False), evidence=rows, seeds=[0, 1]))
    text = systems.written(file)
    assert "| arm | tau | accuracy |\n|---|---|---|\n| a\\|b | 1 | 90.5 |\n| c | 2 | 3 |\n" in text
    assert "Means over 2 seeds (stale: " in text


def test_arxiv_numbers_are_links_on_every_page(docs, monkeypatch, tmp_path):
    """On pages of systems, in docstrings and in tables; and nowhere is one left, but in code and in links."""
    systems, sources = docs("systems"), docs("sources")
    present = [COMP_SUM, find("ldr"), find("stablemax")]
    monkeypatch.setattr(systems, "there", lambda system: system in present)
    monkeypatch.setattr(systems, "TARGET", tmp_path / "out")
    systems.main()
    pages = {file.relative_to(tmp_path / "out").as_posix(): file for file in (tmp_path / "out").rglob("*.md")}
    assert {"index.md", "guides/parts.md", "systems/index.md", "systems/ldr.md", "gallery.md"} <= set(pages)
    texts = {name: file.read_text(encoding="utf-8") for name, file in pages.items()}
    for name, text in texts.items():
        assert not re.search(r"arXiv.?\d", sources.KEPT.sub("", text)), name
    for system in present:
        number = system.source.partition("arXiv:")[2].partition(";")[0]
        link = f"[arXiv:{number}](https://arxiv.org/abs/{number})"
        assert f"| source | {link}" in texts[f"systems/{system.slug}.md"]
        assert f"({system.year}), {link}" in texts["systems/index.md"]


def test_code_links_and_addresses_stay_as_they_are(docs):
    text = "![a arXiv:2006.14567](b) `arXiv:2006.14567` <arXiv:2006.14567> https://a.b/arXiv:2006.14567\n"
    text += "```\narXiv:2006.14567\n```\n[arXiv:2006.14567](c)\n"
    assert docs("sources").linked(text) == text
    assert docs("sources").linked("arXiv 1512.03385;") == "[arXiv 1512.03385](https://arxiv.org/abs/1512.03385);"
    assert docs("sources").linked("(arXiv:math/0601001v2).") == (
        "([arXiv:math/0601001v2](https://arxiv.org/abs/math/0601001v2))."
    )
