"""Which facts of which systems the tests say they prove; the files are read, not imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ..derived import derive

NO_NUMBER = 0
"""What :func:`marks` records for a ``holds`` mark that names a system but no fact."""


@cache
def marks(tests: Path) -> dict[str, frozenset[int]]:
    """Which facts the tests under a folder say they prove: slug to numbers (``NO_NUMBER`` for a mark without any).

    The files are read, not imported. A mark counts on a test function, on a test class, in one of its parameters or in
    ``pytestmark``; it does not count on a helper, nor on a test that ``skip``, ``skipif`` or ``xfail`` may keep from
    deciding.
    """
    numbers_of: dict[str, set[int]] = {}
    for file in sorted(tests.rglob("test_*.py")):
        for slug, numbers in derive("marks", file, _marks_in):
            numbers_of.setdefault(slug, set()).update(numbers or [NO_NUMBER])
    return {slug: frozenset(numbers) for slug, numbers in numbers_of.items()}


def _marks_in(text: str) -> list[tuple[str, list[int]]]:
    return list(_marks_of(ast.parse(text))) if "holds" in text else []


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
