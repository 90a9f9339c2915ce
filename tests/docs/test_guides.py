"""Every block of code in the README and the documentation runs: in one folder, in the order of reading."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steepest.catalogue import systems, there
from steepest.cli import run
from steepest.comparison.work import timing

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:<!-- no-run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
SMALLER = {
    "load_breast_cancer(return_X_y=True, as_frame=True)": (
        "(part[:80] for part in load_breast_cancer(return_X_y=True, as_frame=True))"
    ),
    "budget=10": "repeats=1, folds=2, trials=1, epochs=1, workers=1, classical=False",
}
"""What is too long for a test, and what runs instead."""
DESIGN = {"--repeats": 1, "--folds": 2, "--trials": 1, "--epochs": 1, "--workers": 1, "--no-classical": None}
"""Options that make a comparison on the command line small, where it does not set them."""


@dataclass
class Block:
    """A block of code: of which file, of which kind, padded so that its lines stand where they do in the file."""

    file: Path
    kind: str
    code: str
    why: str | None


def in_order() -> list[Path]:
    """The README, then the pages in the order of the documentation's contents."""
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = [ROOT / "docs" / name for name in re.findall(r"[\w/-]+\.md", contents)]
    return [ROOT / "README.md", *(page for page in pages if page.is_file())]  # the others are made


def blocks(file: Path) -> list[Block]:
    """The blocks of a file, in order."""
    text = file.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert 2 * len(found) == len(re.findall("^ *```", text, re.MULTILINE)), f"{file}: a block stands in a list, or open"
    return [Block(file, m["kind"], "\n" * text.count("\n", 0, m.start("code")) + m["code"], m["why"]) for m in found]


def commands(code: str) -> list[list[str]]:
    """The commands of a console block, comments and output left out."""
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.startswith("$ ")]


def table_of_commands() -> list[list[str]]:
    """The commands in the README's table."""
    rows = re.findall(r"^\| (`steepest .+?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(command) for row in rows for command in re.findall(r"`(.+?)`", row)]


def call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command as it stands, a comparison on a small design."""
    assert words[0] == "steepest"
    if words[1] == "compare":
        for option, value in DESIGN.items():
            if option not in words:
                words = [*words, option] if value is None else [*words, option, str(value)]
    monkeypatch.setattr(sys, "argv", words)
    assert run(words[1:]) == 0, shlex.join(words)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README and the guides speak of."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    data = pd.DataFrame(rng.normal(size=(60, 3)), columns=["size", "age", "dose"])
    data["y"] = np.where(data["size"] + 0.5 * rng.normal(size=60) > 0, "yes", "no")
    for name in ("data", *"abcdef"):
        data.to_csv(f"{name}.csv", index=False)
    for name in ("new", "new-rows"):
        data.drop(columns="y").to_csv(f"{name}.csv", index=False)
    data.assign(quality=rng.integers(3, 9, 60)).drop(columns="y").to_csv("wine.csv", index=False)
    clinic = data.drop(columns="y").assign(patient=np.arange(60) // 2)
    for number, name in enumerate(("stroke", "asthma", "diabetes")):
        clinic[name] = (np.arange(60) + number) // 2 % (number + 2) == 0
    clinic = clinic.astype(dict.fromkeys(("stroke", "asthma", "diabetes"), int))
    clinic.assign(outcome=data["y"]).to_csv("clinic.csv", index=False)
    images, labels = rng.integers(0, 256, (24, 8, 8), np.uint8), np.arange(24) % 2
    np.savez("photos.npz", x=images, y=labels)
    for number, (pixels, label) in enumerate(zip(images, labels)):
        place = Path("photos") / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    Path("shakespeare.txt").write_text(" ".join(rng.choice(["to", "be", "or", "not"], 400)), encoding="utf-8")
    sums = [json.dumps({"prompt": f"{i}+{i}=", "answer": str(2 * i)}) for i in range(24)]
    Path("sums.jsonl").write_text("\n".join(sums), encoding="utf-8")
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    runpy.run_path("train.py")
    return tmp_path


SCRIPT = """
import torch
from steepest.watch import Recorder

model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
objective, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.randn(20, 2), torch.arange(20) % 2
with Recorder(model, objective, optimizer, sinks=["run.jsonl"]) as recorder:
    for _ in range(3):
        loss = objective(model(data[0]), data[1])
        recorder.observe(loss, *data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.mark.slow
def test_every_block_runs_in_one_folder_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time_job", lambda context, job: 0.0)
    monkeypatch.setattr(timing, "time_learner", lambda context, job: 0.0)
    smaller, ran = dict(SMALLER), 0
    for file in in_order():
        script = types.ModuleType("__main__")  # classes that a guide hands over are looked up in the running script
        monkeypatch.setitem(sys.modules, "__main__", script)
        for block in blocks(file):
            if block.why is not None or block.kind not in ("python", "console"):
                continue
            ran += 1
            if block.kind == "console":
                found = commands(block.code)
                assert found, f"{file}: a console block without a command"
                for words in found:
                    call(words, monkeypatch)
                continue
            for before in [known for known in smaller if known in block.code]:
                block.code = block.code.replace(before, smaller.pop(before))
            exec(compile(block.code, str(file), "exec"), vars(script))
    assert smaller == {}, "what is made smaller here stands nowhere any more"
    assert ran > 20


@pytest.mark.slow
def test_the_commands_of_the_readmes_table_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time_job", lambda context, job: 0.0)
    monkeypatch.setattr(timing, "time_learner", lambda context, job: 0.0)
    found = table_of_commands()
    full_scale = [words for words in found if words[1:2] == ["lab"] and words[2] != "show"]  # they write evidence
    assert [words[2] for words in full_scale] == ["run", "gallery"]
    assert len(found) > 12
    for words in found:
        if words not in full_scale:
            call(words, monkeypatch)


def test_every_page_is_in_the_contents() -> None:
    assert set((ROOT / "docs").rglob("*.md")) == set(in_order()[1:])
    assert {file.stem for file in in_order()} >= {
        "which-objective",
        "parts",
        "own-parts",
        "add-a-system",
        "read-a-report",
    }


@pytest.mark.parametrize("file", in_order(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_blocks_are_well_formed(file: Path) -> None:
    """What is quickly seen: kinds, syntax, commands of ours, a reason where something does not run."""
    for block in blocks(file):
        assert block.kind in ("python", "console", "text")
        if block.kind == "python":
            compile(block.code, str(file), "exec")
        if block.kind == "console" and block.why is None:
            assert all(words[0] == "steepest" for words in commands(block.code))
        assert block.why is None or block.why in ("needs lightning", "needs a cluster") or ".ci/run" in block.why


def test_the_readme_says_how_many_systems_there_are() -> None:
    """Numbers that are derived: they change with every system that is added, and the README with them."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    published = [system for system in systems() if system.holds]
    here, here_published = sum(map(there, systems())), sum(map(there, published))
    own = len(systems()) - len(published)
    assert (
        f"{len(systems())} systems: {len(published)} publications and {own} built-in parts. "
        f"{here} of them are there today, {here_published} of these publications"
    ) in text


def test_words_of_the_command_line_exist() -> None:
    """Every objective that a guide names is one, so that a renamed one doesn't stay behind."""
    from steepest.comparison.design.objectives import known_objectives

    text = (ROOT / "docs" / "guides" / "which-objective.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")][1:]
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert len(named) > 10
    assert named - set(known_objectives()) == set()
