"""Evidence files: what is written is read back, small and in one form; from anywhere, refused in one line or read."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from steepest.catalogue import find
from steepest.cli import run
from steepest.core.errors import InputError
from steepest.lab import evidence, gallery
from steepest.lab.evidence import StoredRun, packed, rounded, text_of
from steepest.lab.experiment import Claim, Evidence, judge

SYSTEM = find("anyloss")
LARGEST = 40_000
Change = Callable[..., None]


def outcomes(numbers: range, folder: Path, change: Change) -> dict[str, int]:
    whole = json.loads(evidence.file_of(SYSTEM.slug).read_text())
    counts = {"refused": 0, "read": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "folder", lambda: folder)
        for number in numbers:
            rng, changed = random.Random(number), copy.deepcopy(whole)
            change(changed, rng)
            text = json.dumps(changed)
            evidence.file_of(SYSTEM.slug).write_text(text[: rng.randrange(len(text))] if number % 20 == 0 else text)
            read, refusal = None, ""
            try:
                read = evidence.read(SYSTEM)
            except InputError as error:
                refusal = str(error)
            assert "\n" not in refusal
            if read is not None:
                again = packed(read)
                assert [again[name] for name in ("slug", "machine")] == [changed[name] for name in ("slug", "machine")]
                assert packed(evidence.unpacked(again, "again")) == again
            counts["refused" if read is None else "read"] += 1
    return counts


def test_changed_evidence_is_refused_or_read_as_it_is(tmp_path: Path, change: Change) -> None:
    counts = outcomes(range(200), tmp_path, change)
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
def test_two_thousand_changed_pieces_of_evidence(tmp_path: Path, change: Change) -> None:
    print(f"\n2,000 changed pieces of evidence: {outcomes(range(2000), tmp_path, change)}")


def record_of(by_seed: list[Evidence], smoke: Evidence) -> StoredRun:
    claim = Claim("gain", "it gains", size=1.0, ours=True)
    return StoredRun(
        slug=SYSTEM.slug,
        title="T",
        scale="full",
        date="2001-02-03",
        machine="a machine",
        seconds=1.5,
        source_hash="x",
        findings=[judge(claim, by_seed)],
        seeds=list(range(len(by_seed))),
        evidence=by_seed,
        smoke=smoke,
    )


def test_what_is_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that some seeds lack, columns that some rows lack, and numbers that all seeds share."""
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    by_seed = [
        Evidence(
            [{"arm": "a", "tau": 0.5, "steps": 3}, {"arm": "b", "error": number / 3}, {"steps": 2**40}][: 3 - number],
            {"gain": 1.0 + number / 7},
        )
        for number in range(3)
    ]
    record = record_of([rounded(of_seed) for of_seed in by_seed], by_seed[0])
    evidence.write(record)
    read = evidence.read(SYSTEM)
    assert read is not None
    assert read.evidence == record.evidence
    assert [list(row) for row in read.evidence[0].rows] == [["arm", "tau", "steps"], ["arm", "error"], ["steps"]]
    assert read.smoke == rounded(by_seed[0])
    assert read.judged == record.judged
    assert read.findings[0].values == [1.0, 1.14286, 1.28571]
    assert read.shown == "ours 1 of 1"
    lines = evidence.file_of(SYSTEM.slug).read_text().splitlines()
    assert [line.rstrip(",") for line in lines if line.startswith("[")] == [
        '["a",0.5,3,null]',
        '[["b","b",null],null,null,[0.0,0.333333,null]]',
        "[null,null,[1099511627776,null,null],null]",
        '["a",0.5,3,null]',  # the smoke rows
        '["b",null,null,0.0]',
        "[null,null,1099511627776,null]",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values["rows"].append([1]), r"rows\[8\]: expected 6 cells"),
        (lambda values: values["rows"][0].__setitem__(0, [1, 2]), r"rows\[0\]: expected a value for each of 10 seeds"),
        (lambda values: values["effects"]["f1"].pop(), r"effects.f1: expected a number for each of 10 seeds"),
        (lambda values: values["claims"][0].update(effect="f2"), r"claims\[0\].effect: expected one of the effects"),
        (lambda values: values["rows"][0].__setitem__(0, {}), "rows"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict], None], said: str
) -> None:
    values = json.loads(evidence.file_of(SYSTEM.slug).read_text())
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    change(values)
    evidence.file_of(SYSTEM.slug).write_text(json.dumps(values))
    with pytest.raises(InputError, match=said):
        evidence.read(SYSTEM)


def test_committed_files_are_small_and_in_one_form() -> None:
    """A row a line and six digits, as :func:`text_of` writes it; figures are drawn, not committed."""
    files = sorted(evidence.folder().iterdir())
    assert {file.suffix for file in files if not file.name.startswith(".")} == {".json"}
    stored = {system.slug: evidence.read(system) for system in gallery.experiments()}
    assert {file.stem for file in files if not file.name.startswith(".")} == {s for s, of in stored.items() if of}
    for slug, of in stored.items():
        text = evidence.file_of(slug).read_text(encoding="utf-8")
        assert text == text_of(packed(of)), slug
        assert len(text.encode()) <= LARGEST, f"{slug}: {len(text)} bytes: fewer rows, or thinner curves"


def test_evidence_of_another_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = evidence.file_of("comp-sum").read_text()
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    (tmp_path / f"{SYSTEM.slug}.json").write_text(text)
    with pytest.raises(InputError, match=r"anyloss.json: slug: expected 'anyloss', got 'comp-sum'"):
        evidence.read(SYSTEM)


def test_seeds_that_are_no_seeds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    for text in ("no", "[]", '{"source_hash": "x", "seconds": 1, "seeds": [{}]}'):
        gallery.file_under_way(SYSTEM.slug).write_text(text)
        with pytest.raises(InputError, match="anyloss"):
            gallery.run(SYSTEM)


def test_the_commands_say_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    monkeypatch.setattr("steepest.catalogue.evidence.evidence_folder", lambda: tmp_path)
    (tmp_path / f"{SYSTEM.slug}.json").write_text('{"verdict": "splendid"}')
    for words in (["lab", "list"], ["lab", "show", SYSTEM.slug], ["lab", "check", SYSTEM.slug], ["show", SYSTEM.slug]):
        assert run(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("steepest: error: ")
        assert SYSTEM.slug in err
        assert err.count("\n") == 1


def test_show_prints_every_claim_and_draws_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = evidence.read(SYSTEM)
    assert record is not None
    record = replace(record, stale="for a reason")
    monkeypatch.setattr(evidence, "read", lambda system: record if system == SYSTEM else None)
    monkeypatch.chdir(tmp_path)
    assert run(["lab", "show", SYSTEM.slug]) == 0
    out = capsys.readouterr().out
    assert all(finding.claim.text in out for finding in record.findings)
    assert out.count("(expectation of ours)") == 2
    assert "stale: for a reason\nfigure: anyloss.svg\n" in out
    assert (tmp_path / "anyloss.svg").read_text().startswith("<?xml")
    assert run(["lab", "show", "comp-sum"]) == 2
    assert "has no evidence yet: run `steepest lab run comp-sum`" in capsys.readouterr().err
    assert run(["lab", "show", SYSTEM.slug, "--figure", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("steepest: error: cannot write ")
