"""The rows of the catalogue, and what is derived from them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import keyword
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from steepest import catalogue, cli, derived, local_names, sources
from steepest.catalogue import KINDS, find, owners, systems
from steepest.comparison.design.objectives import known_objectives
from steepest.sources import source_files

from . import count_facts

BUILT_IN = {
    "absolute-error",
    "approx-ndcg",
    "binary-cross-entropy",
    "clip",
    "cross-entropy",
    "cross-entropy-smoothed",
    "cross-entropy-weighted",
    "distillation",
    "focal",
    "group-policy",
    "huber",
    "joint-gradients",
    "lambda-loss",
    "linear-cross-entropy-stand-ins",
    "linear-distillation",
    "linear-loss",
    "listmle",
    "listnet",
    "log-cosh",
    "margin-softmax",
    "mean-gradient",
    "mgda",
    "multi-similarity",
    "multiple-negatives",
    "muon",
    "nt-xent",
    "pair-log-partition",
    "pcgrad",
    "per-class-batches",
    "perp-grad",
    "proxy-anchor",
    "quantile",
    "ranknet",
    "sample-gramian",
    "sig-lip",
    "squared-error",
    "sup-con",
    "token-cross-entropy",
    "token-statistics",
    "triplet",
    "vector-scaling",
}
ROOMS = {
    "kernels", "nn", "losses", "gradients", "optim", "data", "post", "continual", "federated", "boosting", "scaling",
    "watch", "comparison", "lab",
}  # fmt: skip
PRESENT = [pytest.param(system, id=system.slug) for system in systems() if source_files(system.module)]


def test_every_system_has_a_row():
    built_in = {system.slug for system in systems() if not system.holds}
    assert built_in == BUILT_IN
    assert len(systems()) - len(built_in) == 292
    assert {system.slug for system in systems() if not system.experiment} == BUILT_IN - {
        "group-policy",
        "linear-distillation",
    }


def test_rows_are_well_formed():
    for system in systems():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", system.slug)
        assert system.title
        assert system.source
        assert 1700 < system.year < 2100, system
        assert system.kind in KINDS, system
        assert system.room.partition(".")[0] in ROOMS, system
        assert f"{system.module}.".startswith(f"{system.room}."), system
        assert all(part.isidentifier() and not keyword.iskeyword(part) for part in system.module.split(".")), system
        assert system.names
        assert all(name.isidentifier() for name in system.names), system
        if system.experiment:
            assert system.experiment in (system.module, f"lab.{system.module}"), system


def test_slugs_modules_and_experiments_are_unique():
    assert max(Counter(system.slug for system in systems()).values()) == 1
    shared = [module for module, rows in Counter(system.module for system in systems()).items() if rows > 1]
    assert shared == ["losses.classification.cross_entropy"]
    assert max(Counter(system.experiment for system in systems() if system.experiment).values()) == 1


def test_names_have_one_owner():
    assert [name for name, rows in Counter(name for s in systems() for name in s.names).items() if rows > 1] == []
    assert sum(len(system.names) for system in systems()) == len(owners())
    assert owners()["SAM"].slug == "sam"


def test_shortlist():
    short = [system for system in systems() if system.default is not None]
    assert all(system.kind == "objective" for system in short)
    assert sorted(system.default for system in short) == list(range(1, len(short) + 1))
    assert not any(isinstance(system.default, bool) for system in short)
    labels = ["binary-cross-entropy", "asymmetric-loss"]  # for label sets; the others are for classes
    assert [s.slug for s in short if s.slug in labels] == labels
    classes = [s for s in short if s.room == "losses.classification" or s.slug == "squared-error"]
    assert len(classes) - len(labels) == 8
    assert [s.slug for s in short if s.room == "losses.regression"] == [
        "squared-error",
        "absolute-error",
        "huber",
        "log-cosh",
    ]


def test_ranks_of_the_shortlist_are_in_the_order_that_was_measured():
    """The baseline leads whatever it measures; what no table could measure has no place in the order."""
    newest = max((Path(__file__).parents[1] / "benchmarks" / "results").glob("shortlist-*.json"))
    ranks = {name: rank for name, (_, rank) in known_objectives().items() if rank is not None}
    for kind, baseline in (("classes", "cross_entropy"), ("numbers", "squared_error")):
        order = [row["name"] for row in json.loads(newest.read_text())["orders"][kind] if row["name"] != baseline]
        assert order == sorted(order, key=ranks.__getitem__)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_shortlist_of_a_task_is_short(task):
    """By what the classes themselves declare."""
    rows = [system for system in systems() if system.default is not None and source_files(system.module)]
    firsts = {row.slug: next(thing for thing in _things(row) if hasattr(thing, "tasks")) for row in rows}
    for_task = [slug for slug, thing in firsts.items() if task in thing.tasks]
    assert len(for_task) <= 8, for_task


def _things(system):
    module = importlib.import_module(f"steepest.{system.module}")
    return [getattr(module, name) for name in system.names]


@pytest.mark.parametrize("system", PRESENT)
def test_no_half_systems(system):
    """A module that exists exports all its names, and each room around it exports the same things."""
    module = importlib.import_module(f"steepest.{system.module}")
    absent = [name for name in system.names if not hasattr(module, name)]
    assert absent == []
    assert catalogue.there(system)
    for path in system.rooms:
        room = importlib.import_module(f"steepest.{path}")
        assert [name for name in system.names if getattr(room, name) is not getattr(module, name)] == [], path
        assert set(system.names) <= set(dir(room)), path


def test_find_suggests():
    assert find("ldr").module == "losses.classification.ldr"
    with pytest.raises(ValueError, match=r"no system 'ldrr'; did you mean 'ldr'\?"):
        find("ldrr")
    with pytest.raises(ValueError, match=r"^no system '#'$"):
        find("#")


ROW = """
[[system]]
slug = "{slug}"
title = "T"
year = 2000
source = "s"
room = "{room}"
module = "{module}"
kind = "objective"
names = {names}
holds = {holds}
experiment = "{experiment}"
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A checkout of its own with the real catalogue's code in it, so that every status can be produced at will."""
    package = tmp_path / "src" / "toy"
    for folder in ("room/family", "lab/room"):
        (package / folder).mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "evidence").mkdir()
    (tmp_path / "pyproject.toml").touch()
    (package / "catalogue").mkdir()
    for file in Path(catalogue.__file__).parent.glob("*.py"):
        shutil.copy(file, package / "catalogue")
    for file in (sources.__file__, derived.__file__, local_names.__file__):
        shutil.copy(file, package)
    rows = [
        ROW.format(slug="thing", room="room", module="room.thing", names='["thing", "Other"]', holds=2,
                   experiment="lab.room.thing"),
        ROW.format(slug="half", room="room.family", module="room.family.half", names='["a", "b"]', holds=0,
                   experiment=""),
        ROW.format(slug="absent", room="room", module="room.absent", names='["Gone"]', holds=1,
                   experiment="lab.absent"),
    ]  # fmt: skip
    (package / "catalogue" / "room.toml").write_text("".join(rows))
    (package / "__init__.py").touch()
    lazy = "from toy.catalogue import lazy_room\n__getattr__, __dir__ = lazy_room(__name__)\n"
    (package / "room" / "__init__.py").write_text(lazy)
    (package / "room" / "family" / "__init__.py").write_text(lazy)
    (package / "room" / "thing.py").write_text("def thing(): return 1\nclass Other: pass\n")
    (package / "room" / "family" / "half.py").write_text("a = 1\n")
    (package / "lab" / "room" / "thing.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    module = importlib.import_module("toy.catalogue")
    module.sources = importlib.import_module("toy.sources")
    yield module, tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


def test_there(toy):
    module, _ = toy
    assert [module.there(module.find(slug)) for slug in ("thing", "half", "absent")] == [True, False, False]


def test_a_room_imports_no_module_that_is_neither_family_nor_exported(toy):
    _, root = toy
    (root / "src/toy/room/helper.py").write_text("x = 1\n")
    room = importlib.import_module("toy.room")
    assert room.family.a == 1
    assert not hasattr(room, "helper")


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("from toy.room.family.half import a as thing, a as Other", True),
        ("from .family.half import a as thing\nif True:\n    Other: int = 1", True),
        ("try:\n    import json as thing\nexcept ImportError:\n    thing = None\nfrom os import path as Other", True),
        ("from .family.half import *\nthing = Other = a", True),
        ("__all__ = ['thing', 'Other']\ndef __getattr__(name): ...", True),
        ("from . import family as thing\nfrom .family import half as Other", True),
        ("import toy.nowhere\nthing = Other = 1", False),
        ("from .nowhere import thing\nOther = 1", False),
        ("from .family.half import gone as thing\nOther = 1", False),
        ("from .family.half import *\nthing = 1", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from os import thing\nOther = 1", False),
        ("def thing():\n    Other = 1", False),
        ("thing = 1\nOther: int", False),
        ("__all__ = ['thing', 'Other']", False),
    ],
)
def test_there_by_the_text_of_the_module(toy, text, here):
    module, root = toy
    (root / "src/toy/room/thing.py").write_text(text)
    assert module.there(module.find("thing")) is here


def test_there_follows_names_through_files_that_change(toy):
    """Nothing that was derived from a file outlives its content, within a process and between two."""
    module, root = toy
    (root / "src/toy/room/thing.py").write_text("from .family.half import a as thing, b as Other")
    assert not module.there(module.find("thing"))
    (root / "src/toy/room/family/half.py").write_text("a = b = 1\n")
    assert module.statuses([module.find("thing")])["thing"].there
    assert (root / "build" / "derived.json").is_file()
    (root / "src/toy/room/family/half.py").write_text("b = 1\n")
    assert not module.there(module.find("thing"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]
    again = importlib.import_module("toy.catalogue")
    assert not again.there(again.find("thing"))
    assert again.there(again.find("half")) is False


@pytest.mark.parametrize("text", ["", "[]", "no", "[" * 100_000, '{"code": 1}', '{"entries": {}}'])
def test_damaged_derivations_are_made_anew(toy, text):
    module, root = toy
    (root / "build").mkdir()
    (root / "build" / "derived.json").write_text(text)
    assert module.statuses(module.systems())["thing"] == module.Status(True, False, None)


def test_what_was_derived_is_read_again_by_the_same_code_alone(toy):
    module, root = toy
    module.statuses(module.systems())
    file = root / "build" / "derived.json"
    kept = json.loads(file.read_text())
    entry = kept["entries"]["names src/toy/room/thing.py"]
    entry[1]["defined"] = []
    file.write_text(json.dumps(kept))
    for code, here in ((kept["code"], False), ("another", True)):
        file.write_text(json.dumps({**kept, "code": code}))
        for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
            del sys.modules[name]
        module = importlib.import_module("toy.catalogue")
        assert module.there(module.find("thing")) is here


def test_checked(toy):
    module, root = toy
    thing, half = module.find("thing"), module.find("half")
    assert module.checked(thing) is False
    test = root / "tests" / "test_a.py"
    test.write_text('import pytest\n@pytest.mark.holds("thing", 1)\ndef test_a(): pass\n')
    module.marks.cache_clear()
    assert module.checked(thing) is False
    (root / "tests" / "test_b.py").write_text('import pytest\npytestmark = [pytest.mark.holds("thing", 2)]\n')
    module.marks.cache_clear()
    assert module.checked(thing) is True
    assert module.checked(half) is False
    test.write_text('import pytest\n@pytest.mark.holds("half")\nclass TestIt:\n    pass\n')
    module.marks.cache_clear()
    assert module.checked(half) is True
    assert module.missing(thing, module.marks(root / "tests")) == [1]


def test_checked_is_unknown_without_tests(toy):
    module, root = toy
    shutil.rmtree(root / "tests")
    assert module.checked(module.find("thing")) is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('@pytest.mark.holds("s", 1, 3)\nasync def test_a(): pass', {1, 3}),
        ('class TestA:\n    @pytest.mark.holds("s", 2)\n    def test_a(self): pass', {2}),
        ('@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.holds("s", 4))])\ndef test_a(x): pass', {4}),
        ('@pytest.mark.holds("s", 1)\ndef helper(): pass', None),
        ('@pytest.mark.holds("s", 1)\n@pytest.mark.xfail\ndef test_a(): pass', None),
        ('@pytest.mark.skipif(True, reason="r")\n@pytest.mark.holds("s", 1)\ndef test_a(): pass', None),
        ('def test_a():\n    """pytest.mark.holds("s", 1)"""', None),
    ],
)
def test_where_a_mark_counts(tmp_path, text, numbers):
    (tmp_path / "test_x.py").write_text(text)
    assert catalogue.marks(tmp_path) == ({} if numbers is None else {"s": frozenset(numbers)})


@pytest.mark.parametrize("arguments", ["*range(3)", "SLUG, 1", '"s", N', ""])
def test_marks_are_written_out(tmp_path, arguments):
    (tmp_path / "test_x.py").write_text(f"@pytest.mark.holds({arguments})\ndef test_a(): pass\n")
    with pytest.raises(ValueError, match="written out"):
        catalogue.marks(tmp_path)


def evidence_of(digest, *verdicts, **more):
    claims = [{"effect": str(number), "text": "t", "verdict": word} for number, word in enumerate(verdicts)]
    return json.dumps({"claims": claims, "source_hash": digest} | more)


def test_claims_count_while_the_source_is_the_same(toy):
    module, root = toy
    thing = module.find("thing")
    assert module.claims(thing) is None
    files = [root / "src/toy/room/thing.py", root / "src/toy/lab/room/thing.py"]
    digest = module.sources.source_hash(thing)
    evidence = root / "evidence" / "thing.json"
    evidence.write_text(evidence_of(digest, "not shown", "shown", "contradicted"))
    judged = module.claims(thing)
    assert module.shown_of(judged) == "1 of 3"
    assert [(word, [c.name for c in some]) for word, some in module.open_claims(judged).items()] == [
        ("not shown", ["0"]),
        ("contradicted", ["2"]),
    ]
    for text in ('{"claims": [{"effect": "a", "text": "b", "verdict": "probably"}]}', '{"claims": 1}', '{"claims": []}',
                 "[]", "{}", '{"claims": [1]}', "no", "[" * 100_000):  # fmt: skip
        evidence.write_text(text)
        with pytest.raises(ValueError, match=r"^evidence of thing: thing.json (is not valid JSON|has no claims with)"):
            module.claims(thing)
    evidence.write_text(evidence_of(digest, "shown", stale="because"))
    assert module.claims(thing) is None
    files[0].write_text("# a comment\n" + files[0].read_text() + "\n\n# another\n")
    assert module.sources.source_hash(thing) == digest
    for file in files:
        evidence.write_text(evidence_of(module.sources.source_hash(thing), "shown"))
        assert module.shown_of(module.claims(thing)) == "1 of 1"
        file.write_text(file.read_text() + "changed = 1\n")
        assert module.claims(thing) is None


def test_of_shipped_evidence_the_build_has_said_whether_it_is_fresh(toy, monkeypatch):
    """An installed package lacks what the hash is of: experiments that were left out, C++ sources."""
    module, root = toy
    monkeypatch.setattr(module.evidence, "SHIPPED", root / "evidence")
    (root / "evidence" / "thing.json").write_text(evidence_of("another", "shown"))
    for row, reason in (
        ({"fresh": True}, ""),
        ({"fresh": False}, module.evidence.OWN_FILES),
        ({}, module.evidence.OWN_FILES),
    ):
        monkeypatch.setattr(module.evidence, "shipped_row", lambda slug, row=row: row)
        assert module.kept_claims(module.find("thing"))[1] == reason


def test_own_files_are_the_private_modules_and_sources_of_the_same_folder(toy):
    module, root = toy
    thing = module.find("thing")
    package = root / "src" / "toy"
    written = {
        "room/thing.py": "from ._near import f\nfrom .public import g\nfrom .family._far import h\nA = 'room.cpp'\n",
        "room/_near.py": "def f():\n    from toy.room._further import x\n    from . import _package\n    return x\n",
        "room/_further.py": "x = 1\n",
        "room/_package/__init__.py": "",
        "room/_package/inner.py": "y = 1\n",
        "room/public.py": "from ._unseen import g\n",
        "room/_unseen.py": "g = 1\n",
        "room/family/_far.py": "h = 1\n",
        "room/room.cpp": '#include "vectors.h"\nint a; // one\n',
        "room/vectors.h": "/* two */ int b;\n",
        "room/thing.cpp": "int unnamed;\n",
        "lab/room/thing.py": "from ..helper import z\nfrom ._mine import w\n",
        "lab/room/_mine.py": "w = 1\n",
        "lab/helper.py": "z = 1\n",
    }
    for name, text in written.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)
    own = {str(file.relative_to(package)) for file in module.sources.own_files(thing)}
    assert own == {
        *("room/thing.py", "room/_near.py", "room/_further.py", "room/_package/__init__.py", "room/_package/inner.py"),
        *("room/room.cpp", "room/vectors.h", "lab/room/thing.py", "lab/room/_mine.py"),
    }
    for name in written:
        digest = module.sources.source_hash(thing)
        file = package / name
        file.write_text(("// a remark\n" if name.endswith((".cpp", ".h")) else "# a remark\n") + file.read_text())
        assert module.sources.source_hash(thing) == digest, name
        file.write_text(file.read_text() + ("int more;\n" if name.endswith((".cpp", ".h")) else "more = 1\n"))
        assert (module.sources.source_hash(thing) != digest) is (name in own), name


def test_the_sources_of_kernels_are_their_own():
    own = {file.name for file in sources.own_files(catalogue.find("two-pass-softmax"))}
    assert {"softmax.cpp", "vectors.h", "three_pass.cpp", "_native_softmax.py"} <= own
    assert "chronicals.cpp" in {file.name for file in sources.own_files(catalogue.find("chronicals"))}
    assert "_robust.py" in {file.name for file in sources.own_files(catalogue.find("ldr"))}


def test_source_of_a_package_is_all_of_it(toy):
    module, root = toy
    assert [file.name for file in module.sources.source_files("room")] == [
        "__init__.py",
        "__init__.py",
        "half.py",
        "thing.py",
    ]
    before = module.sources.source_hash(module.System("x", "", 0, "", "room", "room", "", (), 0, None, ""))
    (root / "src/toy/room/family/half.py").write_text("a = 2\n")
    assert module.sources.source_hash(module.System("x", "", 0, "", "room", "room", "", (), 0, None, "")) != before


def test_a_room_loads_what_is_asked_for(toy):
    room = importlib.import_module("toy.room")
    assert dir(room) == ["Other", "a", "b", "family", "thing"]
    assert "toy.room.thing" not in sys.modules
    assert room.Other.__module__ == "toy.room.thing"
    assert "toy.room.family.half" not in sys.modules
    assert room.family.a == room.a == 1
    with pytest.raises(AttributeError, match=r"module 'toy.room' has no attribute 'Othr'; did you mean 'Other'\?"):
        _ = room.Othr
    with pytest.raises(AttributeError, match=r"has no attribute 'Gone'"):
        _ = room.Gone
    with pytest.raises(AttributeError, match=r"has no attribute '__path_x__'$"):
        _ = room.__path_x__


@pytest.mark.parametrize("first", ["toy.room.thing", "toy.room"])
def test_a_name_wins_over_its_module(toy, first):
    """Whichever is imported first."""
    importlib.import_module(first)
    from toy.room import thing

    assert not isinstance(thing, ModuleType)
    assert thing() == 1
    module = importlib.import_module("toy.room.thing")
    assert isinstance(module, ModuleType)
    assert sys.modules["toy.room"].thing is thing is module.thing


def test_import_line_runs():
    for system in systems():
        if catalogue.there(system):
            exec(system.import_line, scope := {})
            assert set(system.names) <= set(scope)
    assert find("sam").import_line.startswith("from steepest.optim.sharpness import")
    assert find("ldr").import_line.startswith("from steepest.losses import")


def test_a_room_reads_its_own_file_alone(monkeypatch):
    catalogue.systems.cache_clear()
    read = []
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **how: read.append(self.name) or real(self, **how))
    assert {system.room for system in systems("losses.ranking")} == {"losses.ranking"}
    assert systems("losses.rank") == systems("nothing") == ()
    assert read == ["losses.toml"]
    monkeypatch.undo()
    catalogue.systems.cache_clear()
    files = {file.stem for file in Path(catalogue.__file__).parent.glob("*.toml")}
    assert files == {system.room.partition(".")[0] for system in systems()}
    assert all(row.room.partition(".")[0] == file for file in files for row in systems(file))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The package as a build makes it, beside nothing."""
    root = catalogue.checkout()
    assert root is not None
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "build_py", "--build-lib", folder]
    subprocess.run([str(word) for word in command], cwd=root, capture_output=True, check=True)
    return folder


def test_a_built_package_says_what_the_checkout_says(built, tmp_path, capsys):
    code = (
        "import dataclasses, json, steepest; from steepest.catalogue import *\n"
        "print(steepest.__file__, checkout())\n"
        "print(json.dumps({slug: dataclasses.asdict(s) for slug, s in statuses(systems()).items()}))\n"
        "from steepest.cli import run; run(['lab', 'list'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(built)},
    )  # fmt: skip
    where, said, *listed = done.stdout.splitlines()
    assert where == f"{built / 'steepest' / '__init__.py'} None"
    here = {slug: dataclasses.asdict(status) for slug, status in catalogue.statuses(systems()).items()}
    assert json.loads(said) == json.loads(json.dumps(here))
    assert any(status["claims"] for status in here.values())
    assert cli.run(["lab", "list"]) == 0
    assert listed == capsys.readouterr().out.splitlines()
    kept = {catalogue.evidence_file(system).name for system in systems() if catalogue.evidence_file(system).is_file()}
    assert {file.name for file in (built / "steepest" / "lab" / "evidence").iterdir()} == kept


def test_facts_are_counted_from_cards():
    facts = ("## What\n- no\n## Must hold\n- one,\n  on two lines\n- two\n## Claim\n- no\n", "## Must hold\n- one\n")
    counts = {slug: count_facts.facts(card) for slug, card in zip(("thing", "half"), facts)}
    assert counts == {"thing": 2, "half": 1}
    fields = {"room": "room", "module": "m", "names": "[]", "experiment": ""}
    rows = "".join(ROW.format(slug=slug, holds=1, **fields) for slug in ("thing", "half", "absent"))
    text, changes = count_facts.with_counts(rows, counts)
    assert text == rows.replace("holds = 1", "holds = 2", 1)
    assert changes == ["thing: 1 -> 2"]
