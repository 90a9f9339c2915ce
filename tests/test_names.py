"""Names lead where the documentation says: rooms without an import, honest listings, references that resolve."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import steepest
from steepest import catalogue
from steepest.catalogue import families, owners, systems, there

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "steepest"
ROOMS = sorted(
    file.parent.relative_to(SOURCE).as_posix().replace("/", ".")
    for file in SOURCE.rglob("__init__.py")
    if file.parent != SOURCE and "= lazy_room(__name__)\n" in file.read_text(encoding="utf-8")
)
PRESENT = [row for row in systems() if there(row)]
INTERNAL = {
    "region": "a step of AdaMixUp, of a name too general for a room",
    "coefficients": "a step of AdaMixUp, of a name too general for a room",
    "failed_test": "what discover_objective asks of a candidate, of a name too general for a room",
    "check_rates": "the check of INPO's eta and tau, of a name too general for a room",
}


def run(code):
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_rooms_are_there_after_one_import():
    found = run(
        "import steepest, sys\n"
        "print('torch' in sys.modules, steepest.losses.classification.__name__, 'torch' in sys.modules)\n"
        "print(steepest.losses.LDRLoss.__name__, steepest.comparison.statistics.mcnemar_test.__name__)\n"
        "print(steepest.optim.PerpGrad.__name__, steepest.post.calibration.ece.__name__)"
    )
    assert found == [
        "False", "steepest.losses.classification", "False", "LDRLoss", "mcnemar_test", "PerpGrad", "ece",
    ]  # fmt: skip


def test_the_top_level_lists_what_is_there():
    folders = {file.parent.name for file in SOURCE.glob("*/__init__.py")}
    assert set(steepest.__all__) == {*folders, "catalogue", "compare", "checks", "Preprocessor", "Winner"}
    assert set(dir(steepest)) >= set(steepest.__all__)
    assert [name for name in dir(steepest) if not hasattr(steepest, name)] == []
    space = {}
    exec("from steepest import *", space)
    assert set(steepest.__all__) <= set(space)
    with pytest.raises(AttributeError, match=r"no attribute 'LDRLoss'; it is in steepest\.losses$"):
        _ = steepest.LDRLoss
    with pytest.raises(AttributeError, match="no attribute 'loses'; did you mean 'losses'"):
        _ = steepest.loses


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_list_what_they_have(room):
    module = importlib.import_module(f"steepest.{room}")
    space = {}
    exec(f"from steepest.{room} import *", space)
    names = {name for row in PRESENT if room in row.rooms for name in row.names}
    assert names <= set(space)
    assert names <= set(dir(module))
    # a row with a name that is a family's has its others there too
    inside = {name for row in PRESENT if f"{row.room}.".startswith(f"{room}.") for name in row.names}
    assert set(dir(module)) - names <= families(room) | inside
    assert {name for name in space if name != "__builtins__"} == set(dir(module))


def test_a_room_looks_for_its_files_once(monkeypatch):
    """Whoever looks through all modules for a name asks each room for what it lacks."""
    wanted = dir(steepest.losses)
    monkeypatch.setattr(catalogue, "source_files", None)
    assert dir(steepest.losses) == wanted
    assert not hasattr(steepest.losses, "ldr_los")


def defined_in(module):
    """The public functions and classes that a system's module defines."""
    for name, thing in vars(module).items():
        kind = inspect.isclass(thing) or inspect.isfunction(thing)
        if kind and not name.startswith("_") and f"{thing.__module__}.".startswith(f"{module.__name__}."):
            yield name


@pytest.mark.parametrize("row", PRESENT, ids=lambda row: row.slug)
def test_what_a_system_defines_its_room_exports(row):
    module = importlib.import_module(f"steepest.{row.module}")
    room = importlib.import_module(f"steepest.{row.room}")
    assert [name for name in defined_in(module) if name not in INTERNAL and not hasattr(room, name)] == []


def test_internal_names_exist():
    assert set(INTERNAL) <= {
        n for row in PRESENT for n in defined_in(importlib.import_module(f"steepest.{row.module}"))
    }
    assert not set(INTERNAL) & set(owners())


REFERENCE = re.compile(r":(?:func|class|meth|data|attr|exc|mod):`~?([\w.]+)`")
DOTTED = re.compile(r"(?<![\w/.-])steepest(?:\.[A-Za-z_]\w*)+")
FILES = sorted(SOURCE.rglob("*.py"))


def follow(start, path):
    """Whether attributes, submodules and declared fields lead along a dotted path."""
    thing = start
    for name in path.split("."):
        if isinstance(thing, ModuleType) and not hasattr(thing, name):
            try:
                importlib.import_module(f"{thing.__name__}.{name}")
            except ModuleNotFoundError:
                return False
        if not hasattr(thing, name):
            return name in getattr(thing, "__annotations__", {})
        thing = getattr(thing, name)
    return True


def module_of(file):
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def leads(module, path):
    """From the module itself, from a class in it, or from a room around it."""
    path = path.lstrip(".")
    if path.startswith("steepest."):
        return follow(steepest, path.removeprefix("steepest."))
    classes = [thing for _, thing in inspect.getmembers(module, inspect.isclass)]
    around = [
        importlib.import_module(module.__name__.rsplit(".", cut)[0]) for cut in range(1, module.__name__.count("."))
    ]
    return any(follow(start, path) for start in (module, *around, *classes))


@pytest.mark.parametrize("room", sorted({module_of(file).split(".")[1] for file in FILES if file.parent != SOURCE}))
def test_references_resolve(room):
    """``see :func:`` of a system's module leads to what its room exports; of any other, at least to what is there."""
    lost = []
    exports = {row.module: row.room for row in PRESENT}
    for file in FILES:
        name = module_of(file)
        if name.split(".")[1:2] != [room] or name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        for path in sorted({*REFERENCE.findall(file.read_text(encoding="utf-8"))}):
            head = path.partition(".")[0]
            own = getattr(getattr(module, head, None), "__module__", None) == name
            home = exports.get(name.removeprefix("steepest."))
            exported = not own or home is None or hasattr(importlib.import_module(f"steepest.{home}"), head)
            if not leads(module, path) or not exported:
                lost.append(f"{file.relative_to(SOURCE)}: {path}")
    assert lost == []


@pytest.mark.parametrize(
    "file",
    sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]),
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_dotted_names_of_the_documentation_resolve(file):
    text = file.read_text(encoding="utf-8")
    paths = {path.removeprefix("steepest.") for path in DOTTED.findall(text)}
    assert [path for path in sorted(paths) if not follow(steepest, path)] == []
    imports = re.findall(r"^from (steepest[\w.]*) import ([\w, ]+)$", text, re.MULTILINE)
    gone = [(home, n) for home, names in imports for n in names.replace(" ", "").split(",")
            if not follow(importlib.import_module(home), n)]  # fmt: skip
    assert gone == []
