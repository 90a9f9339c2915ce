"""Every experiment runs at smoke scale with finite rows; the verdict logic; staleness and resuming of evidence."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from steepest.catalogue import find
from steepest.lab import gallery
from steepest.lab.experiment import Claim, Evidence, judge, overall

EXPERIMENTS = [pytest.param(system, id=system.slug) for system in gallery.experiments()]


@pytest.mark.parametrize("system", EXPERIMENTS)
def test_smoke(system):
    module = gallery.load(system)
    evidence, _ = gallery.run_seed(system.slug, "smoke", 0)
    assert evidence["rows"]
    assert {claim.effect for claim in module.CLAIMS} <= set(evidence["effects"])
    numbers = [v for row in [*evidence["rows"], evidence["effects"]] for v in row.values() if isinstance(v, float)]
    assert numbers
    assert all(map(math.isfinite, numbers))
    assert getattr(module, "SEEDS", gallery.MINIMUM_SEEDS) >= gallery.MINIMUM_SEEDS


@pytest.mark.parametrize("system", EXPERIMENTS)
def test_committed_evidence_is_fresh(system):
    found = gallery.read(system)
    assert found is not None, "run `steepest lab gallery`"
    assert not gallery.stale(system), "the code has changed: run `steepest lab gallery`"
    assert found["finished"], "these seeds could not have found the claimed size: more seeds"
    assert len(found["seeds"]) >= gallery.MINIMUM_SEEDS
    evidence = [Evidence(each["rows"], each["effects"]) for each in found["seeds"]]
    assert found["verdict"] == overall([judge(claim, evidence) for claim in gallery.load(system).CLAIMS])


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


def test_one_contradicted_claim_contradicts_the_system():
    good = judge(Claim("gain", "", size=1.0), evidence_of([1.0, 1.1, 0.9]))
    bad = judge(Claim("gain", "", size=1.0, greater=False), evidence_of([1.0, 1.1, 0.9]))
    assert overall([good]) == "shown"
    assert overall([good, bad]) == "contradicted"


def test_evidence_must_be_finite():
    with pytest.raises(ValueError, match="gain: expected a finite number"):
        Evidence([], {"gain": float("nan")})


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """Seeds that are done are not computed again, and changed code starts anew."""
    system = find("comp-sum")
    monkeypatch.setattr(gallery, "folder", lambda: tmp_path)
    calls = []

    def seed(slug, scale, number):
        if len(calls) == 3 and number == 3:
            calls.append(number)
            raise KeyboardInterrupt
        calls.append(number)
        effects = {claim.effect: float(number) for claim in gallery.load(system).CLAIMS}
        return {"seed": number, "rows": [{"arm": "a", "tau": 0.0, "accuracy": 1.0}], "effects": effects}, 0.1

    monkeypatch.setattr(gallery, "run_seed", seed)
    with pytest.raises(KeyboardInterrupt):
        gallery.run(system)
    assert not (tmp_path / f"{system.slug}.json").exists()
    found = gallery.run(system)
    assert calls == [0, 1, 2, 3, 3, 4]
    assert [each["seed"] for each in found["seeds"]] == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / f"{system.slug}.json").read_text())["verdict"] == found["verdict"]
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_too_few_seeds_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        gallery.run(gallery.experiments()[0], seeds=3)
