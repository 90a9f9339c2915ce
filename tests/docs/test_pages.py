"""The generated pages say what the evidence, the kept results and the catalogue say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from steepest.catalogue import find, source_hash
from steepest.comparison.metrics import CLASSIFICATION, REGRESSION
from steepest.comparison.objectives import known_objectives
from steepest.lab import gallery

DOCS = Path(__file__).parents[2] / "docs"
COMP_SUM = find("comp-sum")


@pytest.fixture
def docs(monkeypatch):
    """Imports a module of the documentation's generator."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module


def evidence(folder, *, fresh=True, verdict="shown", figure=True):
    """Evidence of comp-sum under ``folder``."""
    claim = {
        "effect": "gain",
        "size": 1.0,
        "values": [0.92],
        "text": "a | b",
        "mean": 0.92,
        "low": 0.5,
        "high": 1.3456789,
        "threshold": 0.5,
        "greater": False,
        "verdict": verdict,
        "detectable": 0.53,
    }
    found = {
        "slug": "comp-sum",
        "title": "Comp-sum losses",
        "scale": "full",
        "verdict": verdict,
        "finished": True,
        "claims": [claim],
        "date": "2001-02-03",
        "machine": "a machine",
        "seconds": 65.25,
        "source_hash": source_hash(COMP_SUM) if fresh else "old",
        "seeds": [{"seed": 0, "rows": [], "effects": {"gain": 0.92}}] * 7,
    }
    (folder / "comp-sum.json").write_text(json.dumps(found), encoding="utf-8")
    if figure:
        (folder / "comp-sum.svg").write_text("<svg/>", encoding="utf-8")


def test_evidence_section(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "folder", lambda: tmp_path)
    section = docs("findings").section
    assert section(COMP_SUM, tmp_path / "out") == []
    evidence(tmp_path)
    text = "\n".join(section(COMP_SUM, tmp_path / "out"))
    assert "**shown**\n" in text
    assert "| a \\| b | 0.92 | 0.5 to 1.346 | < 0.5 | shown | 0.53 |" in text
    assert "7 seeds, 2001-02-03, a machine, 65.25 s" in text
    assert "](../evidence/comp-sum.svg)" in text
    assert "stale" not in text
    assert (tmp_path / "out" / "evidence" / "comp-sum.svg").read_text() == "<svg/>"


def test_stale_evidence_is_marked_and_counts_as_no_verdict(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "folder", lambda: tmp_path)
    monkeypatch.setattr(gallery, "experiments", lambda: [COMP_SUM])
    findings = docs("findings")
    assert findings.counts([COMP_SUM])["no evidence yet"] == 1
    evidence(tmp_path, verdict="contradicted")
    assert findings.counts([COMP_SUM])["contradicted"] == 1
    evidence(tmp_path, fresh=False, figure=False)
    assert {k: v for k, v in findings.counts([COMP_SUM]).items() if v} == {"stale": 1}
    assert "**shown** (stale" in "\n".join(findings.section(COMP_SUM, tmp_path / "out"))
    page = findings.page([COMP_SUM], tmp_path / "out")
    assert "1 experiment: 0 shown, 0 not shown, 0 contradicted, 1 stale, 0 no evidence yet." in page
    assert "| [comp-sum](systems/comp-sum.md) | shown (stale) |" in page


def test_tasks_page_lists_every_loss_and_metric(docs):
    page = docs("tables").tasks_page([find("comp-sum")])
    assert "[comp_sum](systems/comp-sum.md)" in page
    for name, (cls, default) in known_objectives().items():
        word = f"**{name}**" if default else name
        assert page.count(f"| {word} |") + page.count(f"[{word}](") == len(cls.tasks), name
    for metric in (*CLASSIFICATION.values(), *REGRESSION.values()):
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
        assert "<!-- include" not in systems.written(file)
    assert "src/steepest/catalogue.toml" in systems.written(DOCS / "guides" / "add-a-system.md")
