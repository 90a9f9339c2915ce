"""No file's content runs: what could make it so stands in few places, each of them known here."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for part in ("src", "docs", "benchmarks") for file in (ROOT / part).rglob("*.py"))
CODE_BY_NAME = {"__import__", "compile", "eval", "exec", "execfile", "run_path", "run_module", "literal_eval"}
TELLING = {"weights_only", "allow_pickle", "shell"}
"""Keywords that make a call dangerous, or safe."""
UNPICKLE = {"joblib", "marshal", "pickle", "shelve", "yaml"}
ALLOWED = {
    # the one place that imports what a user names; it refuses what is not trusted
    "src/steepest/comparison/own_parts.py": {"import_module"},
    # the one place that imports late; the names it is called with are written out like any other
    "src/steepest/core/lazy.py": {"import_module"},
    # a suite that makes a member again from what its class prints
    "src/steepest/testing/_constructor.py": {"eval"},
    # a suite that pickles an optimizer and takes it back, as processes do that hand one on
    "src/steepest/testing/optimizer.py": {"pickle"},
}

READS_SKOPS = ROOT / "src/steepest/comparison/report/winner/learner.py"
"""The one place that makes scikit-learn estimators from a file, after each type in it was found in a closed list."""


@cache
def nodes(file: Path) -> list[ast.AST]:
    return [
        node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Call, ast.Import, ast.ImportFrom))
    ]


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def dotted(function: ast.expr) -> str:
    """``a.b.c`` as it is written; of what is no name, the attributes alone."""
    if isinstance(function, ast.Attribute):
        return f"{dotted(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def written_out(argument: ast.expr) -> bool:
    """Whether a name to import is written out, or begins with this package's own."""
    if isinstance(argument, ast.Constant):
        return True
    if not isinstance(argument, ast.JoinedStr):
        return False
    first = argument.values[0]
    if isinstance(first, ast.Constant):
        return str(first.value).startswith(("steepest.", "."))
    return isinstance(first, ast.FormattedValue) and ast.unparse(first.value) in ("__name__", "PACKAGE", "package")


def dangers(file: Path) -> list[str]:
    allowed = ALLOWED.get(file.relative_to(ROOT).as_posix(), set())
    found = []
    for node in nodes(file):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name.partition(".")[0] in UNPICKLE - allowed]
        if not isinstance(node, ast.Call):
            continue
        name, keywords = called(node), {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg in TELLING}
        whole = dotted(node.func)
        if name in ("import_module", "late") and name not in allowed and not (node.args and written_out(node.args[0])):
            found.append(f"imports what is not written out: {ast.unparse(node)}")
        if (name in CODE_BY_NAME - allowed and isinstance(node.func, ast.Name)) or whole in ("os.system", "os.popen"):
            found.append(f"runs text: {ast.unparse(node)[:80]}")
        if whole == "torch.load" and keywords.get("weights_only") != "True":
            found.append(f"unpickles: {ast.unparse(node)}")
        if keywords.get("allow_pickle", "False") != "False" or keywords.get("shell", "False") != "False":
            found.append(f"unpickles or runs a shell: {ast.unparse(node)[:80]}")
        if whole in ("skops.io.load", "skops.io.loads") and file != READS_SKOPS:
            found.append(f"reads skops beside the closed list of types: {ast.unparse(node)}")
        if whole in ("np.load", "numpy.load") and "allow_pickle" not in keywords:
            found.append(f"does not say allow_pickle=False: {ast.unparse(node)}")
    return found


def test_nothing_runs_what_a_file_says() -> None:
    assert {str(file): found for file in FILES if (found := dangers(file))} == {}


def test_json_of_files_is_read_in_one_place() -> None:
    """So that NaN, twice the same key and endless nesting are refused everywhere; the catalogue lies below it."""
    readers = {
        file.relative_to(ROOT).as_posix()
        for file in FILES
        if file.is_relative_to(ROOT / "src")
        for node in nodes(file)
        if isinstance(node, ast.Call) and dotted(node.func) in ("json.loads", "json.load")
    }
    assert readers == {
        "src/steepest/core/stored.py",
        "src/steepest/catalogue/evidence.py",
        "src/steepest/derived.py",
        "src/steepest/comparison/design/settings.py",  # its own text, made a line before
    }


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("importlib.import_module(name)", "not written out"),
        ("import_module(f'{name}.x')", "not written out"),
        ("late(name)", "not written out"),
        ("torch.load(path)", "unpickles"),
        ("torch.load(path, weights_only=False)", "unpickles"),
        ("np.load(path)", "allow_pickle"),
        ("np.load(path, allow_pickle=True)", "unpickles"),
        ("subprocess.run(text, shell=True)", "shell"),
        ("eval(text)", "runs text"),
        ("os.system(text)", "runs text"),
        ("skops.io.loads(data, trusted=names)", "reads skops"),
        ("skops.io.load(path)", "reads skops"),
        ("import pickle", "imports pickle"),
        ("from yaml import load", "imports yaml"),
    ],
)
def test_what_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "x.py").write_text(code)
    assert said in dangers(tmp_path / "x.py")[0]
