"""The source files that make a system, and one hash over their code: evidence is about this code and no other."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .derived import SOURCE as ROOT
from .derived import derive
from .local_names import number_local_names

if TYPE_CHECKING:
    from .catalogue import System

PACKAGE = __name__.rpartition(".")[0]
Read = tuple[str, list[list[str]], list[str]]
"""What a file's text says: its code in one form whatever its layout, what it imports, the C++ sources that it names."""

_CODE = f"code-{sys.version_info[0]}.{sys.version_info[1]}"
"""Names what :func:`_python` gives, with the Python that gave it: ``ast.unparse`` changes between versions."""

CPP = (".cpp", ".cc", ".cu", ".h", ".cuh")


def source_hash(system: System) -> str:
    """SHA-256 over the code of a system's own files (see :func:`own_files`): evidence is stale once it changes.

    Comments, docstrings, layout and the names of local variables don't count.
    """
    digest = hashlib.sha256()
    for file in own_files(system):
        digest.update(_read(file)[0].encode())
        digest.update(b"\0")
    return digest.hexdigest()


def own_files(system: System) -> tuple[Path, ...]:
    """The files that make a system: its module and its experiment, each with what it takes from its own folder.

    That is: modules with a leading underscore that it imports, directly or through one another, and the C++ sources
    that any of these names or includes.
    """
    files = {file: None for module in dict.fromkeys((system.module, system.experiment)) for file in _own(module)}
    return tuple(files)


def _own(module: str) -> list[Path]:
    files = source_files(module)
    if files:
        name = module.rpartition(".")[2]
        folder = ROOT.joinpath(*module.split(".")).parent
        for file in files:  # it grows
            files += [further for further in sorted(_taken(file, folder, name)) if further not in files]
    return files


def _taken(file: Path, folder: Path, name: str) -> set[Path]:
    """The files that one file of a module called ``name`` takes from the module's folder."""
    _, imports, sources = _read(file)
    taken = set()
    for start, *words in imports:
        target = Path(
            os.path.normpath(ROOT.joinpath(*words) if start == PACKAGE else file.parent.joinpath(start, *words))
        )
        if target.parent == folder and target.name.startswith("_") and not target.name.startswith("__"):
            taken |= {target.with_name(target.name + ".py")} | set(target.rglob("*.py"))
    for source in sources:
        taken |= {file.parent / source, folder / (name + source if source.startswith(".") else source)}
    return {candidate for candidate in taken if candidate.is_file()}


def _read(file: Path) -> Read:
    read: Read = derive(_CODE, file, _python) if file.suffix == ".py" else derive("cpp", file, _cpp)
    return read


def _python(text: str) -> Read:
    """Code, imports and C++ sources of a Python file; a relative import is a path, one of the package begins with it.

    >>> _python("from .._native import load  # where\\nfrom steepest.core import f\\nA = 'a.cpp'")[1:]
    ([['..', '_native'], ['..', '_native', 'load'], ['steepest', 'core'], ['steepest', 'core', 'f']], ['a.cpp'])
    """
    imports: list[list[str]] = []
    sources: list[str] = []
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            words = (node.module or "").split(".")
            if node.level:
                words = [*(["."] if node.level == 1 else [".."] * (node.level - 1)), *filter(None, words)]
            if node.level or words[0] == PACKAGE:
                imports += [words, *([*words, alias.name] for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(CPP):
            sources.append(node.value)
    return _code(tree), imports, sources


def _cpp(text: str) -> Read:
    return _cpp_code(text), [], re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)


def _code(tree: ast.Module) -> str:
    """Python source without comments, docstrings, layout and the names of local variables.

    >>> _code(ast.parse('def f():\\n    "Says so."\\n    one = 1  # one\\n    return one'))
    'def f():\\n    $0 = 1\\n    return $0'
    """
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    number_local_names(tree)
    return ast.unparse(tree)


def _cpp_code(text: str) -> str:
    """C++ source without comments and layout.

    >>> _cpp_code('int a; // one\\n\\n  char b[] = "//";  /* two */')
    'int a; char b[] = "//";'
    """
    bare = re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', lambda match: match[1] or " ", text, flags=re.DOTALL)
    return " ".join(bare.split())


def source_files(module: str) -> list[Path]:
    """The files of a module (all of them, sorted, where it is a package); none where it does not exist.

    >>> [file.name for file in source_files("cli")], source_files("no.such.module")
    (['cli.py'], [])
    """
    if not module:
        return []
    base = ROOT.joinpath(*module.split("."))
    if (file := base.with_name(base.name + ".py")).is_file():
        return [file]
    return sorted(base.rglob("*.py")) if (base / "__init__.py").is_file() else []
