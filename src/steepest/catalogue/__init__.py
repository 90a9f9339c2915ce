"""The catalogue: every system of the package, where it lives and how far it has been proved.

The rows are data, a file for each room: ``losses.toml``, ``optim.toml``. What a row cannot say is derived here, from
the text of files and without importing any: whether a system is *there* (its module exports its names), *checked*
(tests cover every fact it must hold) and which of its claims its experiment has *shown*. A package that is installed
without tests and evidence has in ``status.json`` what they proved when it was built. Rooms take their public names from
the rows too, through :func:`lazy_room`, so that importing a room imports none of its systems.
"""

from __future__ import annotations

import difflib
import importlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from ..derived import checkout, code_version, entries_of, keep, shipped_row
from ..sources import source_files
from .evidence import VERDICTS, Judged, claims, evidence_file, evidence_folder, kept_claims, open_claims, shown_of
from .names import broken_imports, docstring, exports
from .proofs import NO_NUMBER, marks

__all__ = [
    "KINDS",
    "NO_NUMBER",
    "VERDICTS",
    "Judged",
    "Status",
    "System",
    "checked",
    "checkout",
    "claims",
    "docstring",
    "evidence_file",
    "evidence_folder",
    "exports",
    "families",
    "find",
    "keep",
    "kept_claims",
    "lazy_room",
    "marks",
    "missing",
    "open_claims",
    "owners",
    "shown_of",
    "statuses",
    "systems",
    "there",
    "write_status",
]

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
        default: rank in the shortlist that a comparison tries when no objective is named, 1 first; where time is short
            the last go. By what ``benchmarks/shortlist.py`` measured; None outside the shortlist.
        text: of a loss of tokens, its place among those that a comparison of texts tries, 1 the baseline; None where it
            needs more than tokens.
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
    default: int | None
    experiment: str
    text: int | None = None

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
def systems(room: str = "") -> tuple[System, ...]:
    """All rows, or those of a room and its families; outermost rooms by name, each in the order of its file.

    Only the files that are needed are read.

    >>> len({system.slug for system in systems()}) == len(systems())
    True
    >>> {system.room for system in systems("losses.ranking")}
    {'losses.ranking'}
    """
    if not room:
        return tuple(row for file in sorted(Path(__file__).parent.glob("*.toml")) for row in systems(file.stem))
    outermost = room.partition(".")[0]
    if room != outermost:
        return tuple(row for row in systems(outermost) if f"{row.room}.".startswith(f"{room}."))
    file = Path(__file__).with_name(f"{room}.toml")
    rows = tomllib.loads(file.read_text(encoding="utf-8"))["system"] if file.is_file() else []
    return tuple(System(**{"default": None, **row, "names": tuple(row["names"])}) for row in rows)


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
    inside = [system.room.removeprefix(room + ".") for system in systems(room) if system.room != room]
    return frozenset(rest.partition(".")[0] for rest in inside)


# ---------------------------------------------------------------------------------------------------------- status


def there(system: System) -> bool:
    """Whether its module exports all its names, and imports of this package only what exists."""
    if not source_files(system.module) or broken_imports(system.module):
        return False
    return all(exports(system.module, name) for name in system.names)


def checked(system: System) -> bool | None:
    """Whether tests marked ``holds(slug, ...)`` prove each of its facts; None where nothing can tell."""
    root = checkout()
    if root is None:
        proved = shipped_row(system.slug).get("checked")
        return proved if isinstance(proved, bool) else None
    return not missing(system, marks(root / "tests"))


def missing(system: System, proved: dict[str, frozenset[int]]) -> list[int]:
    """The facts of a system that no test in ``proved`` proves; a system without numbered facts needs one bare mark.

    >>> row = find("comp-sum")
    >>> missing(row, {"comp-sum": frozenset({1, 2, 3, 4})})
    [5, 6]
    >>> missing(find("focal"), {}), missing(find("focal"), {"focal": frozenset({0})})
    ([0], [])
    """
    needed = range(1, system.holds + 1) if system.holds else [NO_NUMBER]
    return [number for number in needed if number not in proved.get(system.slug, frozenset())]


@dataclass(frozen=True)
class Status:
    """How far a system is: :func:`there`, :func:`checked`, :func:`claims`."""

    there: bool
    checked: bool | None
    claims: tuple[Judged, ...] | None


def statuses(rows: Iterable[System]) -> dict[str, Status]:
    """The status of each of these systems by slug; what was newly read for it is kept for the next process.

    Raises:
        ValueError: the evidence of one is no evidence.
    """
    by_slug = {row.slug: Status(here := there(row), checked(row) if here else False, claims(row)) for row in rows}
    keep()
    return by_slug


def write_status(file: Path) -> None:
    """Write what tests and evidence prove in this checkout: the build ships it as ``status.json``.

    Raises:
        ValueError: this is no checkout, or some evidence is none.
    """
    if checkout() is None:
        raise ValueError("no checkout: the tests and the evidence are not here")
    by_slug = statuses(systems())
    proved = {slug: {"checked": of.checked, "fresh": of.claims is not None} for slug, of in by_slug.items()}
    values = {"proved": proved, "code": code_version(), "entries": entries_of(("names",))}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ rooms


class _Room(ModuleType):
    """A room some of whose modules are called like what they export: there the exported thing keeps the name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each imported submodule here; `from room import squentropy` must stay the function,
        # whichever was imported first. The module itself stays reachable as `from room.squentropy import ...`.
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("_names", ())):
            super().__setattr__(name, value)


class _Lacking(AttributeError):
    """Says what is nearest to the missing name once it is shown: who only probes for a name waits for no search."""

    def __str__(self) -> str:
        near = "" if self.name.startswith("__") else _nearest(self.name, dir(self.obj))
        return super().__str__() + near


def lazy_room(
    package: str, own: Mapping[str, str] = MappingProxyType({})
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a room package: its systems' names, each imported when first asked for.

    A room exports the names of every system in it and in its families, and its families themselves; ``from room import
    *`` takes all of them. A family wins over a name spelt like it.

    Args:
        package: the room's ``__name__``.
        own: names that are no system's, and the module of the room that has each.

    Returns:
        the two functions, to be bound at module level: ``__getattr__, __dir__ = lazy_room(__name__)``.
    """
    room = package.removeprefix(PACKAGE + ".")
    inside = systems(room)
    names = {name: system.module for system in inside for name in system.names if name not in families(room)}
    names |= {name: f"{room}.{place}" for name, place in own.items()}
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
        raise _Lacking(f"module {package!r} has no attribute {name!r}", name=name, obj=module)

    @cache  # whoever looks through all loaded modules for a name asks each room for what it lacks
    def present() -> tuple[str, ...]:
        exported = [name for name, path in names.items() if source_files(path)]
        exported += [family for family in families(room) if source_files(f"{room}.{family}")]
        return tuple(sorted(exported))

    def listing() -> list[str]:
        return list(present())

    return get, listing


def _nearest(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
