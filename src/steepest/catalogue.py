"""The catalogue: every system of the package, where it lives and how far it has been proved.

The rows are data, in ``catalogue.toml``. What a row cannot say is derived here: whether a system is *there* (its names
import), *checked* (tests cover every fact it must hold) and which of its claims its experiment has *shown*. Rooms take
their public names from the rows too, through :func:`lazy_room`, so that importing a room imports none of its systems.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from .sources import source_files, source_hash

PACKAGE = __name__.rpartition(".")[0]
KINDS = (
    "objective",
    "loss",
    "penalty",
    "method",
    "aggregator",
    "balancer",
    "optimizer",
    "wrapper",
    "schedule",
    "probe",
    "calibrator",
    "adapter",
    "law",
    "procedure",
    "layer",
    "kernel",
    "experiment",
    "data",
    "statistics",
    "baseline",
)
VERDICTS = ("shown", "not shown", "contradicted")
NO_NUMBER = 0
"""What :func:`marks` records for a ``holds`` mark that names a system but no fact."""


@dataclass(frozen=True)
class System:
    """One row of the catalogue.

    Args:
        slug: unique word for the command line and the documentation.
        title, year, source: the publication.
        room: the package that holds it, without the leading package name.
        module: the file that holds it, likewise.
        kind: the contract it keeps, one of ``KINDS``.
        names: what its module exports.
        holds: number of facts that tests must prove.
        default: whether a comparison tries it when no objective is named.
        experiment: the module that runs its central claim, or ``""``.
    """

    slug: str
    title: str
    year: int
    source: str
    room: str
    module: str
    kind: str
    names: tuple[str, ...]
    holds: int
    default: bool
    experiment: str

    @property
    def import_line(self) -> str:
        """The statement that brings its names in, from the outermost room that exports them.

        >>> find("ps-kd").import_line
        'from steepest.losses import PSKDLoss, ps_kd_loss, PastPredictions'
        """
        return f"from {PACKAGE}.{self.rooms[0]} import {', '.join(self.names)}"

    @property
    def rooms(self) -> tuple[str, ...]:
        """The packages that export its names, outermost first.

        A system that is a package of its own exports them there only, and a room keeps a family's name for the family.

        >>> find("ps-kd").rooms, find("sam").rooms, find("model-evaluation").rooms
        (('losses', 'losses.distillation'), ('optim.sharpness',), ('comparison.statistics',))
        """
        parts = self.room.split(".")
        around = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        own = self.module == self.room
        return tuple(room for room in around if room == self.room or not (own or families(room) & set(self.names)))


@cache
def systems() -> tuple[System, ...]:
    """All rows, in the order of ``catalogue.toml``.

    >>> len({system.slug for system in systems()}) == len(systems())
    True
    """
    rows = tomllib.loads((Path(__file__).with_name("catalogue.toml")).read_text(encoding="utf-8"))["system"]
    return tuple(System(**{**row, "names": tuple(row["names"])}) for row in rows)


def find(slug: str) -> System:
    """The system with this slug.

    Raises:
        ValueError: no such system; the message names the nearest.

    >>> find("squentropy").kind
    'objective'
    >>> find("squentropi")
    Traceback (most recent call last):
    ValueError: no system 'squentropi'; did you mean 'squentropy'?
    """
    for system in systems():
        if system.slug == slug:
            return system
    raise ValueError(f"no system {slug!r}{_nearest(slug, [system.slug for system in systems()])}")


@cache
def owners() -> MappingProxyType[str, System]:
    """Each public name with the one system that owns it.

    >>> owners()["SquentropyLoss"].slug
    'squentropy'
    """
    return MappingProxyType({name: system for system in systems() for name in system.names})


@cache
def families(room: str) -> frozenset[str]:
    """The packages directly inside a room.

    >>> "ranking" in families("losses"), families("scaling")
    (True, frozenset())
    """
    inside = [system.room.removeprefix(room + ".") for system in systems() if system.room.startswith(room + ".")]
    return frozenset(rest.partition(".")[0] for rest in inside)


# ---------------------------------------------------------------------------------------------------------- status


def there(system: System) -> bool:
    """Whether all its names import from its module."""
    if not source_files(system.module):
        return False
    try:
        module = importlib.import_module(f"{PACKAGE}.{system.module}")
    except ImportError:
        return False
    return all(hasattr(module, name) for name in system.names)


def checked(system: System) -> bool | None:
    """Whether tests marked ``holds(slug, ...)`` prove each of its facts; None where there is no test tree to read."""
    root = checkout()
    if root is None:
        return None
    return not missing(system, marks(root / "tests"))


def missing(system: System, found: dict[str, frozenset[int]]) -> list[int]:
    """The facts of a system that no test in ``found`` proves; a system without numbered facts needs one bare mark.

    >>> row = find("comp-sum")
    >>> missing(row, {"comp-sum": frozenset({1, 2, 3, 4})})
    [5, 6]
    >>> missing(find("focal"), {}), missing(find("focal"), {"focal": frozenset({0})})
    ([0], [])
    """
    needed = range(1, system.holds + 1) if system.holds else [NO_NUMBER]
    return [number for number in needed if number not in found.get(system.slug, frozenset())]


@dataclass(frozen=True)
class Judged:
    """One claim of an experiment with its verdict.

    Args:
        name: the key of its effect.
        text: the claim in words.
        verdict: one of ``VERDICTS``.
        ours: whether it is an expectation of ours that the publication does not state.
    """

    name: str
    text: str
    verdict: str
    ours: bool = False

    @property
    def label(self) -> str:
        """Its name, and whether it is ours."""
        return f"{self.name} (ours)" if self.ours else self.name


def shown_of(claims: Sequence[Judged], words: str = "") -> str:
    """How many of the publication's claims are shown, and how many expectations of ours beside them.

    >>> claims = [Judged("a", "", "shown"), Judged("b", "", "contradicted"), Judged("c", "", "shown", ours=True)]
    >>> shown_of(claims), shown_of(claims[:2], " claims shown")
    ('1 of 2, ours 1 of 1', '1 of 2 claims shown')
    """
    counts = []
    for ours in (False, True):
        verdicts = [claim.verdict for claim in claims if claim.ours is ours]
        if verdicts:
            count = f"{verdicts.count('shown')} of {len(verdicts)}"
            counts.append(f"ours {count}" if ours else count + words)
    return ", ".join(counts)


def open_claims(claims: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The claims that are not shown, by verdict: what a count leaves out."""
    rest = [claim for claim in claims if claim.verdict != "shown"]
    return {word: chosen for word in VERDICTS if (chosen := [claim for claim in rest if claim.verdict == word])}


def claims(system: System) -> tuple[Judged, ...] | None:
    """The claims of a system as fresh evidence judges them; None without evidence or where it is stale.

    Evidence is ``evidence/<slug>.json`` at the root of the checkout. It is stale where its ``"source_hash"`` is not
    that of the code (see :func:`source_hash`), and where it says so under ``"stale"``.

    Raises:
        ValueError: the file is no evidence.
    """
    root = checkout()
    if root is None or not system.experiment:
        return None
    file = root / "evidence" / f"{system.slug}.json"
    if not file.is_file():
        return None
    try:
        evidence = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"evidence of {system.slug}: {file.name} is not valid JSON: {error}") from error
    try:
        judged = tuple(
            Judged(str(claim["effect"]), str(claim["text"]), str(claim["verdict"]), claim.get("ours") is True)
            for claim in evidence["claims"]
        )
        if not judged or not {claim.verdict for claim in judged} <= set(VERDICTS):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"evidence of {system.slug}: {file.name} has no claims with verdicts") from None
    fresh = not evidence.get("stale") and evidence.get("source_hash") == source_hash(system)
    return judged if fresh else None


def checkout() -> Path | None:
    """The root of the source checkout that this package runs from, or None where it is installed without its tests."""
    root = Path(__file__).parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "tests").is_dir() else None


# ----------------------------------------------------------------------------------------------------- marks of tests


@cache
def marks(tests: Path) -> dict[str, frozenset[int]]:
    """Which facts the tests under a folder say they prove: slug to numbers (``NO_NUMBER`` for a mark without any).

    The files are read, not imported. A mark counts on a test function, on a test class, in one of its parameters or in
    ``pytestmark``; it does not count on a helper, nor on a test that ``skip``, ``skipif`` or ``xfail`` may keep from
    deciding.
    """
    found: dict[str, set[int]] = {}
    for file in sorted(tests.rglob("test_*.py")):
        for slug, numbers in _marks_of(ast.parse(file.read_text(encoding="utf-8"))):
            found.setdefault(slug, set()).update(numbers or [NO_NUMBER])
    return {slug: frozenset(numbers) for slug, numbers in found.items()}


def _marks_of(tree: ast.Module) -> Iterable[tuple[str, list[int]]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets):
            yield from _calls([node.value])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield from _calls(node.decorator_list)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _calls(node.decorator_list)
            yield from _marks_of(ast.Module(node.body, []))


def _calls(nodes: Iterable[ast.expr]) -> Iterable[tuple[str, list[int]]]:
    inner = [child for node in nodes for child in ast.walk(node)]
    if any(_is_mark(node, name) for node in inner for name in ("skip", "skipif", "xfail")):
        return
    for node in inner:
        if isinstance(node, ast.Call) and _is_mark(node.func, "holds"):
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if len(values) != len(node.args) or not values or not isinstance(values[0], str):
                raise ValueError(f"a holds mark takes a slug and numbers, written out: {ast.unparse(node)}")
            yield values[0], [number for number in values[1:] if isinstance(number, int)]


def _is_mark(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == name and ast.unparse(node.value) == "pytest.mark"


# ------------------------------------------------------------------------------------------------------------ rooms


class _Room(ModuleType):
    """A room some of whose modules are called like what they export: there the exported thing keeps the name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each imported submodule here; `from room import squentropy` must stay the function,
        # whichever was imported first. The module itself stays reachable as `from room.squentropy import ...`.
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("_names", ())):
            super().__setattr__(name, value)


def lazy_room(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a room package: its systems' names, each imported when first asked for.

    A room exports the names of every system in it and in its families, and its families themselves; ``from room import
    *`` takes all of them. A family wins over a name spelt like it.

    Args:
        package: the room's ``__name__``.

    Returns:
        the two functions, to be bound at module level: ``__getattr__, __dir__ = lazy_room(__name__)``.
    """
    room = package.removeprefix(PACKAGE + ".")
    inside = [system for system in systems() if system.room == room or system.room.startswith(room + ".")]
    names = {name: system.module for system in inside for name in system.names if name not in families(room)}
    module = sys.modules[package]
    vars(module)["_names"] = frozenset(names)
    module.__class__ = _Room

    def get(name: str) -> Any:
        if name in names and source_files(names[name]):
            value = getattr(importlib.import_module(f"{PACKAGE}.{names[name]}"), name)
            vars(module)[name] = value
            return value
        if name in families(room) and source_files(f"{room}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        if name == "__all__":
            return listing()
        near = "" if name.startswith("__") else _nearest(name, listing())
        raise AttributeError(f"module {package!r} has no attribute {name!r}{near}", name=name, obj=module)

    def listing() -> list[str]:
        present = [name for name, path in names.items() if source_files(path)]
        present += [family for family in families(room) if source_files(f"{room}.{family}")]
        return sorted(present)

    return get, listing


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
