"""What modules of this package export, read from their text: nothing is imported.

A module's top level is what its import runs: assignments, definitions and imports, also inside ``if``, ``try``,
``with`` and loops, but not under ``if TYPE_CHECKING``. Names that are imported from another module of the package are
followed there; what other packages export is taken on trust.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..derived import SOURCE, derive

Facts = dict[str, Any]


def module_file(module: str) -> Path | None:
    """The file that the import of a module runs; None where there is no such module.

    >>> module_file("core.errors").name, module_file("losses").name, module_file("no.such")
    ('errors.py', '__init__.py', None)
    """
    base = SOURCE.joinpath(*module.split(".")) if module else SOURCE
    for file in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def exports(module: str, name: str) -> bool:
    """Whether a module of this package has a name once it is imported.

    >>> exports("losses.classification.ldr", "LDRLoss"), exports("losses.classification.ldr", "Nothing")
    (True, False)
    >>> exports("comparison.statistics", "holm")
    True
    """
    return _exports(module, name, set())


def _exports(module: str, name: str, seen: set[tuple[str, str]]) -> bool:
    if (module, name) in seen or not (facts := facts_of(module)):
        return False
    seen.add((module, name))
    if name in facts["defined"] or (facts["lazy"] and name in facts["all"]):
        return True
    if name in facts["imported"]:
        home, original = facts["imported"][name]
        if home is None or not original:
            return True
        return _exports(home, original, seen) or module_file(f"{home}.{original}") is not None
    return any(home is None or _exports(home, name, seen) for home in facts["stars"])


def broken_imports(module: str) -> list[str]:
    """The modules of this package that a module imports when it is imported, and that do not exist."""
    return [needed for needed in facts_of(module)["needs"] if not _exists(needed)]


def _exists(module: str) -> bool:
    return module_file(module) is not None or SOURCE.joinpath(*module.split(".")).is_dir()


def docstring(module: str) -> str:
    """The docstring of a module, or an empty text."""
    return str(facts_of(module).get("doc", ""))


def facts_of(module: str) -> Facts:
    """What the text of a module says of its top level; empty where there is no such module."""
    file = module_file(module)
    if file is None:
        return {}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    facts: Facts = derive("names", file, lambda text: _facts(text, package))
    return facts


def resolve(module: str, name: str) -> tuple[str, str, Facts] | None:
    """The class that a name of a module stands for, where it is one of this package: its module, name and facts."""
    for _ in range(20):
        facts = facts_of(module)
        if not facts:
            return None
        if name in facts["classes"]:
            return module, name, facts["classes"][name]
        home, name = facts["imported"].get(name, (None, ""))
        if home is None or not name:
            return None
        module = home
    return None


def _facts(text: str, package: str) -> Facts:
    tree = ast.parse(text)
    facts: Facts = {
        "doc": ast.get_docstring(tree) or "",
        "defined": [],
        "imported": {},
        "stars": [],
        "all": [],
        "lazy": False,
        "needs": [],
        "classes": {},
        "values": {},
        "calls": {},
    }
    for node in _run_at_import(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            facts["defined"].append(node.name)
            facts["lazy"] |= node.name == "__getattr__"
            if isinstance(node, ast.ClassDef):
                facts["classes"][node.name] = _class_facts(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if isinstance(node, ast.AnnAssign) and node.value is None:
                continue
            names = [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
            facts["defined"] += names
            facts["values"] |= {name: value for name in names if (value := _written_out(node.value)) is not None}
            if "__all__" in names:
                facts["all"] += [c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant)]
            facts["lazy"] |= "__getattr__" in names
        elif isinstance(node, ast.Import):
            for alias in node.names:
                facts["imported"][alias.asname or alias.name.partition(".")[0]] = (None, "")
                home = _inside(alias.name)
                facts["needs"] += [home] if home else []
        elif isinstance(node, ast.ImportFrom):
            home = _home(node, package)
            for alias in node.names:
                if alias.name == "*":
                    facts["stars"].append(home)
                else:
                    facts["imported"][alias.asname or alias.name] = (home, alias.name)
            facts["needs"] += [home] if home else []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
        if isinstance(call.func, ast.Name) and isinstance(text := _written_out(call.args[0]), str):
            facts["calls"].setdefault(call.func.id, []).append(text)
    facts["imported"] = {name: list(source) for name, source in facts["imported"].items()}
    return facts


def _run_at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _run_at_import(node.orelse)
        elif isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):
            for branch in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(node, branch, []):
                    yield from _run_at_import(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _inside(module: str) -> str | None:
    """The name of a module without the package's; None for other packages' modules.

    >>> _inside("steepest.core.errors"), _inside("torch.nn")
    ('core.errors', None)
    """
    first, _, rest = module.partition(".")
    return rest if first == SOURCE.name else None


def _home(node: ast.ImportFrom, package: str) -> str | None:
    if not node.level:
        return _inside(node.module or "")
    around = package.split(".") if package else []
    return ".".join([*around[: len(around) - (node.level - 1)], *filter(None, [node.module])])


def _class_facts(node: ast.ClassDef) -> Facts:
    """Bases by name, and the class attributes whose values are written out."""
    values = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            values |= {target.id: _written_out(statement.value) for target in targets if isinstance(target, ast.Name)}
    return {"bases": [ast.unparse(base) for base in node.bases], "values": values}


def _written_out(node: ast.expr) -> Any:
    """A text, number, flag, a list of them, or the keys of a dictionary; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        return [_written_out(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        return [_written_out(key) for key in node.keys if key is not None]
    return None


def attribute(module: str, name: str, attr: str) -> Any:
    """A class attribute as it is written out in the class or the nearest of its bases; None where it is not.

    >>> attribute("losses.classification.ldr", "LDRLoss", "name")
    'ldr'
    """
    return next((facts["values"][attr] for _, facts in ancestry(module, name) if attr in facts["values"]), None)


def ancestry(module: str, name: str) -> Iterator[tuple[str, Facts]]:
    """A class and the bases of it that this package defines, the nearest first: ``module:name`` and their facts."""
    place = resolve(module, name)
    if place is not None:
        home, original, facts = place
        yield f"{home}:{original}", facts
        for base in facts["bases"]:
            yield from ancestry(home, base)
