"""Evidence is carried over to changed code where the smoke rows are the same, and nowhere else."""

from __future__ import annotations

import json

import pytest

from steepest.catalogue import checkout, find, source_hash
from steepest.core.errors import InputError
from steepest.lab import carry, gallery

SYSTEM = find("comp-sum")


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """A copy of the evidence in a folder of its own."""
    text = (gallery.folder() / f"{SYSTEM.slug}.json").read_text(encoding="utf-8")
    monkeypatch.setattr(gallery, "folder", lambda: tmp_path)
    file = tmp_path / f"{SYSTEM.slug}.json"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_same_code_gives_the_same_rows(evidence, monkeypatch):
    monkeypatch.setattr(carry, "SEEDS", (0,))
    before = json.loads(evidence.read_text(encoding="utf-8"))
    assert carry.carry_over(SYSTEM, checkout())
    after = json.loads(evidence.read_text(encoding="utf-8"))
    assert after.pop("carried_over") == "the smoke rows of 1 seeds are the same, bit for bit, before and after"
    assert after == before
    assert not gallery.stale(SYSTEM)


@pytest.mark.parametrize(("moved", "kept"), [(0.0, True), (1e-15, False)])
def test_rows_that_differ_leave_the_evidence_stale(evidence, monkeypatch, tmp_path, moved, kept):
    stored = json.loads(evidence.read_text(encoding="utf-8"))
    old = tmp_path / "before"

    def rows(slug, source):
        number = 0.5 if source == old / "src" else 0.5 + moved
        return {"source_hash": "old" if source == old / "src" else "new", "seeds": [{"rows": [{"a": number}]}]}

    monkeypatch.setattr(carry, "_smoke_rows", rows)
    evidence.write_text(json.dumps({**stored, "source_hash": "old"}), encoding="utf-8")
    assert carry.carry_over(SYSTEM, old) is kept
    assert (json.loads(evidence.read_text(encoding="utf-8"))["source_hash"] == source_hash(SYSTEM)) is kept


def test_other_code_than_that_of_the_evidence_is_refused(evidence, monkeypatch):
    stored = json.loads(evidence.read_text(encoding="utf-8"))
    evidence.write_text(json.dumps({**stored, "source_hash": "another"}), encoding="utf-8")
    monkeypatch.setattr(carry, "_smoke_rows", lambda slug, source: {"source_hash": "old", "seeds": []})
    with pytest.raises(InputError, match="is not that which made the evidence of comp-sum"):
        carry.carry_over(SYSTEM, checkout())


def test_without_evidence_there_is_nothing_to_carry(evidence):
    evidence.unlink()
    with pytest.raises(InputError, match="has no evidence yet"):
        carry.carry_over(SYSTEM, checkout())
