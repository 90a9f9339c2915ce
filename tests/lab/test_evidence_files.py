"""Evidence from anywhere: refused in one line, or read as it is."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from steepest.catalogue import find
from steepest.cli import run
from steepest.core.errors import InputError
from steepest.lab import gallery

SYSTEM = find("anyloss")
Change = Callable[..., None]


def outcomes(numbers: range, folder: Path, change: Change) -> dict[str, int]:
    whole = json.loads((gallery.folder() / f"{SYSTEM.slug}.json").read_text())
    whole["seeds"] = whole["seeds"][:2]
    counts = {"refused": 0, "read": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "folder", lambda: folder)
        for number in numbers:
            rng, found = random.Random(number), copy.deepcopy(whole)
            change(found, rng)
            text = json.dumps(found)
            (folder / f"{SYSTEM.slug}.json").write_text(text[: rng.randrange(len(text))] if number % 20 == 0 else text)
            read, refusal = None, ""
            try:
                read = gallery.read(SYSTEM)
            except InputError as error:
                refusal = str(error)
            assert "\n" not in refusal
            assert read is None or read == found
            counts["refused" if read is None else "read"] += 1
    return counts


def test_changed_evidence_is_refused_or_read_as_it_is(tmp_path: Path, change: Change) -> None:
    counts = outcomes(range(200), tmp_path, change)
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
def test_two_thousand_changed_pieces_of_evidence(tmp_path: Path, change: Change) -> None:
    print(f"\n2,000 changed pieces of evidence: {outcomes(range(2000), tmp_path, change)}")


def test_evidence_of_another_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (gallery.folder() / "comp-sum.json").read_text()
    monkeypatch.setattr(gallery, "folder", lambda: tmp_path)
    (tmp_path / f"{SYSTEM.slug}.json").write_text(text)
    with pytest.raises(InputError, match=r"anyloss.json: slug: expected 'anyloss', got 'comp-sum'"):
        gallery.read(SYSTEM)


def test_seeds_that_are_no_seeds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "folder", lambda: tmp_path)
    for text in ("no", "[]", '{"source_hash": "x", "seconds": 1, "seeds": [{}]}'):
        (tmp_path / f".{SYSTEM.slug}.part.json").write_text(text)
        with pytest.raises(InputError, match="anyloss"):
            gallery.run(SYSTEM)


def test_the_commands_say_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gallery, "folder", lambda: tmp_path)
    monkeypatch.setattr("steepest.catalogue.checkout", lambda: tmp_path)
    (tmp_path / "evidence").mkdir()
    for folder in (tmp_path, tmp_path / "evidence"):
        (folder / f"{SYSTEM.slug}.json").write_text('{"verdict": "splendid"}')
    for words in (["lab", "list"], ["show", SYSTEM.slug]):
        assert run(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("steepest: error: ")
        assert SYSTEM.slug in err
        assert err.count("\n") == 1
