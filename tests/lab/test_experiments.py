"""Every experiment runs at smoke scale and gives the rows of its evidence; verdicts; what is stale, due and resumed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from steepest.catalogue import System, find
from steepest.catalogue import evidence as of_catalogue
from steepest.cli import run
from steepest.lab import asked, claims, evidence, gallery
from steepest.lab.experiment import Claim, Evidence, judge
from steepest.lab.smoke import differences, loose_columns, smoke_rows
from steepest.sources import source_hash

EXPERIMENTS = [pytest.param(system, id=system.slug) for system in gallery.experiments()]


@pytest.mark.parametrize("system", EXPERIMENTS)
def test_smoke(system):
    """It runs, its rows are finite, and fresh evidence keeps the same ones."""
    module = gallery.load(system)
    measured, _ = gallery.run_seed(system.slug, "smoke", gallery.SMOKE_SEED)
    assert measured.rows
    assert {claim.effect for claim in module.CLAIMS} <= set(measured.effects)
    numbers = [v for row in [*measured.rows, measured.effects] for v in row.values() if isinstance(v, float)]
    assert numbers
    assert all(map(math.isfinite, numbers))
    record = evidence.read(system)
    if record is not None and not evidence.why_stale(system, record):
        moved = differences(record.smoke, smoke_rows(measured), loose_columns(system.slug))
        assert moved == [], f"code beneath has moved results: run the experiment, or `steepest lab check {system.slug}`"


@pytest.mark.parametrize("system", EXPERIMENTS)
def test_committed_evidence_is_whole_and_says_if_it_is_stale(system):
    record = evidence.read(system)
    assert record is not None, "run `steepest lab gallery`"
    assert record.stale or record.source_hash == source_hash(system), (
        f"own files have changed: run the experiment, or mark its evidence by `steepest lab check {system.slug}`"
    )
    assert record.finished, "these seeds could not have found the claimed size: more seeds"
    assert len(record.seeds) >= gallery.MINIMUM_SEEDS
    assert getattr(gallery.load(system), "SEEDS", gallery.MINIMUM_SEEDS) >= gallery.MINIMUM_SEEDS
    for finding in record.findings:
        assert judge(finding.claim, record.evidence).verdict == finding.verdict
    if not record.stale:
        declared = [claims.with_origin(system.slug, claim) for claim in gallery.load(system).CLAIMS]
        assert [(c.effect, c.text, c.greater, c.ours) for c in declared] == [
            (f.claim.effect, f.claim.text, f.claim.greater, f.claim.ours) for f in record.findings
        ]


def test_expectations_of_ours_are_claims_of_experiments():
    for slug, effects in claims.OURS.items():
        assert set(effects) <= {claim.effect for claim in gallery.load(find(slug)).CLAIMS}, slug


def evidence_of(values):
    return [Evidence([], {"gain": value}) for value in values]


@pytest.mark.parametrize(
    ("values", "greater", "verdict"),
    [
        ([1.0, 1.2, 0.9, 1.1, 1.05], True, "shown"),
        ([1.0, 1.2, 0.9, 1.1, 1.05], False, "contradicted"),
        ([1.0, -1.2, 0.9, -1.1, 0.05], True, "not shown"),
        ([-0.5, -0.6, -0.55, -0.5, -0.6], True, "contradicted"),
        ([0.5, 0.5, 0.5, 0.5, 0.5], True, "shown"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], True, "not shown"),
    ],
)
def test_verdicts(values, greater, verdict):
    found = judge(Claim("gain", "it gains", size=1.0, greater=greater), evidence_of(values))
    assert found.verdict == verdict
    wanted = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values)) if np.ptp(values) else None
    if wanted is not None:
        assert (found.low, found.high) == pytest.approx(wanted, rel=1e-12)


def test_an_experiment_that_could_not_have_found_its_size_is_not_finished():
    wide = evidence_of([3.0, -3.0, 2.0, -2.0, 0.5])
    assert not judge(Claim("gain", "it gains", size=0.1), wide).finished
    assert judge(Claim("gain", "it gains", size=100.0), wide).finished


def test_evidence_must_be_finite():
    with pytest.raises(ValueError, match="gain: expected a finite number"):
        Evidence([], {"gain": float("nan")})


def test_rows_hold_texts_and_numbers():
    with pytest.raises(TypeError, match="curve: expected a text or a number, got list"):
        Evidence([{"curve": [1.0]}], {})


def toy(slug):
    return System(slug, slug.upper(), 2000, "", "lab", "lab", "experiment", (), 0, None, f"lab.{slug}")


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Two experiments that take no time, 90 seconds by what they say; ``calls`` lists the seeds that ran."""
    toys = SimpleNamespace(calls=[], code={"first": "1", "second": "1"}, beneath=1.0, kill=None)
    systems = {slug: toy(slug) for slug in toys.code}
    module = SimpleNamespace(CLAIMS=(Claim("gain", "it gains", size=1.0),), __name__="toy")

    def seed(slug, scale, number):
        if (slug, scale, number) == toys.kill:
            raise KeyboardInterrupt
        toys.calls.append((slug, scale, number))
        return Evidence([{"arm": "a", "error": toys.beneath / 3}], {"gain": number + 1 / 3}), 90.0

    monkeypatch.setattr(asked, "experiments", lambda: systems)
    monkeypatch.setattr(gallery, "load", lambda system: module)
    monkeypatch.setattr(gallery, "run_seed", seed)
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    monkeypatch.setattr(of_catalogue, "evidence_folder", lambda: tmp_path)
    for place in (gallery, evidence, of_catalogue):
        monkeypatch.setattr(place, "source_hash", lambda system: toys.code[system.slug])
    return toys


def test_the_gallery_forecasts_resumes_and_runs_what_is_stale_alone(toys, tmp_path, capsys):
    toys.kill = ("second", "full", 3)
    assert run(["lab", "gallery"]) == 130
    assert capsys.readouterr().out.startswith(
        "2 experiments to run, about 0 s, as they took before; 2 of them never ran"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".second.part.json", "first.json"]

    toys.kill, toys.calls = None, []
    assert run(["lab", "gallery"]) == 0
    assert toys.calls == [("second", "full", 3), ("second", "full", 4), ("second", "smoke", 0)]
    out = capsys.readouterr().out
    assert out.startswith("1 experiment to run")
    assert [line.split() for line in out.splitlines()[-2:]] == [
        [slug, "1", "of", "1", "claims", "shown"] for slug in ("first", "second")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "second.json"]
    assert evidence.read(toy("second")).seconds == 450.0

    toys.calls = []
    assert run(["lab", "gallery"]) == 0
    assert toys.calls == []
    assert "to run" not in capsys.readouterr().out

    toys.code["first"] = "2"
    assert gallery.forecast(gallery.due(), 1) == "1 experiment to run, about 8 min, as they took before"
    assert gallery.forecast(gallery.due(every=True), 2).startswith("2 experiments to run, about 8 min with 2 workers")
    toys.kill = ("first", "full", 4)
    assert run(["lab", "gallery"]) == 130
    assert gallery.forecast(gallery.due(), 1).startswith("1 experiment to run, about 90 s")
    toys.code["first"] = "3"  # finished seeds of other code count for nothing
    toys.kill, toys.calls = None, []
    assert run(["lab", "gallery"]) == 0
    assert [number for slug, scale, number in toys.calls if scale == "full"] == [0, 1, 2, 3, 4]


def test_evidence_is_stale_by_its_own_files_or_by_smoke_rows(toys, capsys):
    assert run(["lab", "check"]) == 0
    assert capsys.readouterr().out == "first: no evidence yet\nsecond: no evidence yet\n"
    assert run(["lab", "gallery"]) == 0

    def said():
        capsys.readouterr()
        assert run(["lab", "check"]) == 0
        return capsys.readouterr().out.splitlines(), [evidence.stale(system) for system in gallery.experiments()]

    assert said() == (["first: fresh", "second: fresh"], [False, False])
    toys.beneath = 1.00001  # rounding
    toys.code["second"] = "2"
    assert said() == (["first: fresh", f"second: stale: {evidence.OWN_FILES}"], [False, True])
    toys.beneath = 1.001
    lines, stale = said()
    assert lines[:2] == [f"first: stale: {evidence.SMOKE_ROWS}", "  row 0, error: 0.333333 was kept, now 0.333667"]
    assert stale == [True, True]
    assert run(["lab", "list"]) == 0
    assert f"1 of 1 claims shown (stale: {evidence.SMOKE_ROWS})" in capsys.readouterr().out
    toys.beneath, toys.code["second"] = 1.0, "1"  # all is as it was
    assert said() == (["first: fresh", "second: fresh"], [False, False])


def test_too_few_seeds_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        gallery.run(gallery.experiments()[0], seeds=3)
