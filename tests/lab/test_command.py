"""What `steepest lab run` says before and after an experiment."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from steepest import cli
from steepest.lab import gallery
from steepest.lab.asked import last_time
from steepest.lab.evidence import file_of


@pytest.fixture
def instead(monkeypatch, capsys):
    """Takes the place of the run; gives what was on screen by then."""
    before = []

    def run(system, *, scale, **options):
        before.append(capsys.readouterr().out)
        return SimpleNamespace(slug=system.slug, seconds=1.5, shown="2 of 2", scale=scale, seeds=[0, 1], findings=[])

    monkeypatch.setattr(gallery, "run", run)
    return before


def test_a_smoke_run_has_no_verdict(instead, capsys):
    assert cli.run(["lab", "run", "comp-sum", "--scale", "smoke"]) == 0
    assert instead == [""]
    out = capsys.readouterr().out
    assert out == "comp-sum: it runs (1.5 s); a smoke run proves nothing, so there is no verdict\n"


def test_a_full_run_says_first_how_long_the_last_one_took(instead, capsys):
    stored = json.loads(file_of("comp-sum").read_text(encoding="utf-8"))
    assert cli.run(["lab", "run", "comp-sum"]) == 0
    minutes = f"{stored['seconds'] / 60:.1f} min of one core ({stored['date']})"
    assert instead == [f"comp-sum: the last full run took {minutes}\n"]
    assert "2 of 2" in capsys.readouterr().out


def test_without_evidence_nobody_knows_how_long_it_takes(monkeypatch, tmp_path):
    monkeypatch.setattr("steepest.catalogue.evidence.evidence_folder", lambda: tmp_path)
    from steepest.catalogue import find

    assert last_time(find("comp-sum")) == "comp-sum: no full run is on record, so nobody knows how long it takes"
