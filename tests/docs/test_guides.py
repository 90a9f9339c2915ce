"""Every Python block of the documentation and the README runs, in order, one namespace a file."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^(?:<!-- no-run: (?P<why>[^\n]+) -->\n)?```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
SMALLER = {
    "README.md": (
        "load_breast_cancer(return_X_y=True, as_frame=True)",
        "(part[:80] for part in load_breast_cancer(return_X_y=True, as_frame=True))",
        "budget=10",
        "repeats=1, folds=2, trials=1, epochs=1, workers=1, classical=False",
    )
}
"""What is too long for a test: pairs of what stands there and what runs instead."""


def blocks(file):
    """``(code, reason not to run it or None)`` of each block, its lines where they stand in the file."""
    text = file.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert len(found) == text.count("```python"), "a block is not closed, or stands inside a list"
    return [("\n" * text.count("\n", 0, m.start("code")) + m["code"], m["why"]) for m in found]


def with_blocks():
    return [file for file in (ROOT / "README.md", *FILES) if "```python" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", with_blocks(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_blocks_run(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = types.ModuleType("__main__")  # classes that a guide hands over are looked up in the running script
    monkeypatch.setitem(sys.modules, "__main__", script)
    code = blocks(file)
    assert code
    known = list(SMALLER.get(file.name, ()))
    for text, why in code:
        for before, after in list(zip(known[::2], known[1::2])):
            if before in text:
                text = text.replace(before, after)
                known = [word for word in known if word not in (before, after)]
        compiled = compile(text, str(file), "exec")
        if why is None:
            exec(compiled, vars(script))
    assert known == [], "what is made smaller here no longer stands in the file"


def test_there_are_guides():
    names = {file.stem for file in FILES if file.parent.name == "guides"}
    assert names >= {"which-objective", "parts", "own-parts", "add-a-system", "read-a-report"}


def test_only_optional_packages_keep_a_block_from_running():
    reasons = {why for file in with_blocks() for _, why in blocks(file) if why is not None}
    assert reasons <= {"needs transformers", "needs lightning"}


def test_words_of_the_command_line_exist():
    """Every objective that a guide names is one, so that a renamed one doesn't stay behind."""
    from steepest.comparison.objectives import known_objectives

    text = (ROOT / "docs" / "guides" / "which-objective.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")][1:]
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert len(named) > 10
    assert named - set(known_objectives()) == set()
