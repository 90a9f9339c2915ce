"""Mutants of the package and the tests that kill them: ``python tests/mutants.py --seed COMMIT [--sample N]``.

cosmic-ray makes the mutants. Which ones follows from the seed alone: rooms take turns, in a room the places that can be
changed are alike. Equal code but for annotations and docstrings is no mutant. Each runs in a copy of the tree, in a
process forked from one that has imported what is slow to import, against the tests of its file (:func:`tests_of`).
``tests/mutants.json`` keeps a row a mutant; a row without an outcome is what a later call runs. Where the line of a
mutant is gone, another is drawn in the same file.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/steepest")
KEPT = ROOT / "tests" / "mutants.json"
WARM = (
    "torch", "torch._dynamo", "numpy", "scipy.stats", "scipy.optimize", "pandas", "sklearn.ensemble", "sklearn.svm",
    "sklearn.linear_model", "sklearn.model_selection", "matplotlib.figure", "hypothesis", "jaxtyping", "pytest",
    "typer", "rich", "jinja2", "pyarrow", "skops.io",
)  # fmt: skip
ALIKE = (
    "Add Sub Mul Div FloorDiv Mod Pow", "BitOr BitAnd BitXor LShift RShift", "Lt LtE Gt GtE Eq NotEq", "Is IsNot",
    "In NotIn", "UAdd USub Invert Not Delete",
)  # fmt: skip
"""Operators that take each other's place."""
SECONDS = 240
"""A mutant that runs longer is dead: it loops."""


class Mutant(NamedTuple):
    """One change: ``operator`` of cosmic-ray at its ``occurrence`` in a file; ``text`` is the line as it was."""

    path: str
    operator: str
    occurrence: int
    line: int
    text: str


class _Bare(ast.NodeTransformer):
    """Code without annotations and docstrings."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(0)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def bare(source: str) -> str:
    """What of a file is run, to be compared."""
    return ast.dump(_Bare().visit(ast.parse(source)))


def operators() -> dict[str, Any]:
    """cosmic-ray's operators that need no arguments, by name; what no operand of the old one takes proves nothing."""
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    kind = {word: place for place, words in enumerate(ALIKE) for word in words.split()}
    return {
        name: provider[name]()
        for name in provider
        if not provider[name].arguments() and len({kind.get(word) for word in name.split("_")[1:]}) <= 1
    }


def mutants_of(path: str, source: str) -> dict[tuple[int, int], list[Mutant]]:
    """All mutants of a file, by the place that they change."""
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes, lines = list(ast_nodes(get_ast(source))), source.splitlines()
    places = collections.defaultdict(list)
    for name, operator in operators().items():
        positions = [position for node in nodes for position in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            mutant = Mutant(path, name, occurrence, start[0], lines[start[0] - 1].strip())
            places[start].append(mutant)
    return dict(sorted(places.items()))


def mutated(mutant: Mutant, source: str) -> str | None:
    """The file with the change; None where it is no change of what runs."""
    from cosmic_ray.mutating import mutate_code

    code = mutate_code(source, operators()[mutant.operator], mutant.occurrence)
    with contextlib.suppress(SyntaxError):
        return code if code is not None and bare(code) != bare(source) else None
    return None


def one_of(path: str, source: str, rng: random.Random) -> Mutant | None:
    """A mutant of a file: first the place, then what becomes of it."""
    places = list(mutants_of(path, source).values())
    for _ in range(50 if places else 0):
        mutant = rng.choice(rng.choice(places))
        if mutated(mutant, source) is not None:
            return mutant
    return None


def rooms() -> dict[str, list[str]]:
    """The files of each folder of the package."""
    folders = collections.defaultdict(list)
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        inside = file.relative_to(ROOT / PACKAGE)
        if len(inside.parts) > 1:
            folders[inside.parts[0]].append((PACKAGE / inside).as_posix())
    return dict(folders)


def drawn(seed: str, number: int) -> Iterator[Mutant]:
    """So many mutants; a longer draw begins with a shorter one."""
    rng, folders = random.Random(seed), rooms()
    sizes = {path: len((ROOT / path).read_text(encoding="utf-8")) for files in folders.values() for path in files}
    seen: set[Mutant] = set()
    while len(seen) < number:
        for files in folders.values():
            path = rng.choices(files, [sizes[file] for file in files])[0]
            mutant = one_of(path, (ROOT / path).read_text(encoding="utf-8"), rng)
            if mutant is not None and mutant not in seen and len(seen) < number:
                seen.add(mutant)
                yield mutant


def found_again(mutant: Mutant, seed: str) -> Mutant | None:
    """The same change where its line stands today, or another of the same file; None where the file is gone."""
    if not (ROOT / mutant.path).is_file():
        return None
    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    candidates = [
        other for place in mutants_of(mutant.path, source).values() for other in place
        if (other.operator, other.text) == (mutant.operator, mutant.text)
    ]  # fmt: skip
    nearest = min(candidates, key=lambda other: abs(other.line - mutant.line), default=None)
    return nearest or one_of(mutant.path, source, random.Random(f"{seed} {mutant}"))


def names_in(path: Path) -> list[str]:
    """What the members that a file defines call themselves."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for line in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "name":
                found += [line.value.value] if isinstance(line.value, ast.Constant) and line.value.value else []
    return found


def slugs() -> dict[str, str]:
    """The system of each module that is an experiment; read from the rows, since nothing may import the package yet."""
    files = (ROOT / PACKAGE / "catalogue").glob("*.toml")
    rows = [row for file in files for row in tomllib.loads(file.read_text(encoding="utf-8"))["system"]]
    return {row["experiment"]: row["slug"] for row in rows}


def users_of(path: Path) -> set[str]:
    """The modules of the same folder that import a module, at first hand or through each other."""
    users, left = {path.stem}, [path.stem]
    while left:
        using = re.compile(rf"^from \.{re.escape(left.pop())} import |^from \. import .*\b{path.stem}\b", re.MULTILINE)
        further = {file.stem for file in path.parent.glob("*.py") if using.search(file.read_text(encoding="utf-8"))}
        left += further - users
        users |= further
    return users


def tests_of(path: str) -> list[list[str]]:
    """Calls of pytest, cheapest first: examples and tests of the file, then what its members promise."""
    inside = Path(path).relative_to(PACKAGE)
    if slug := slugs().get(".".join(inside.with_suffix("").parts)):
        return [["tests/lab/test_experiments.py", "-k", f"(test_smoke or test_committed_evidence) and {slug}"]]
    folder, stem = Path("tests") / inside.parent, inside.stem.strip("_")
    files = [folder / f"test_{stem}.py"]
    if not (ROOT / files[0]).is_file():
        beside = sorted((ROOT / folder).glob("test_*.py"))
        naming = re.compile(rf"\b{re.escape(inside.stem)}\b")
        naming_it = {file for file in beside if naming.search(file.read_text(encoding="utf-8"))}
        files = sorted(naming_it | {file for file in beside if file.stem[5:] in users_of(ROOT / path)}) or beside
        while not files:
            folder, above = folder.parent, folder.name
            own = ROOT / folder / f"test_{above}.py"
            files = [own] if own.is_file() else sorted((ROOT / folder).glob("test_*.py"))
    calls = [[path, *(os.path.relpath(ROOT / file, ROOT) for file in files)]]
    if names := names_in(ROOT / path):
        calls.append(["tests/test_conformance.py", "-k", " or ".join(names)])
    return calls


def copied(to: Path) -> Path:
    """What git tracks or would track, with bytecode that goes by content: a mutant may have the size and the second."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    compiled = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "src"]
    subprocess.run(compiled, cwd=to, check=True)
    return to


def outcome(tree: Path, path: str) -> str:
    """What the tests of a file say: survived, killed, timed out, or that there are none."""
    said = "no tests"
    for words in tests_of(path):
        child = os.fork()
        if not child:
            os.setsid()
            os.chdir(tree)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            import pytest

            code = 1
            with contextlib.suppress(BaseException):
                code = int(pytest.main([*words, "-x", "-q", "-m", "not slow and not browser", "-p", "no:xdist"]))
            os._exit(code)
        until = time.monotonic() + SECONDS
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.05)
        if ended[0] == 0:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timed out"
        code = os.waitstatus_to_exitcode(ended[1])
        if code not in (0, 5):
            return "killed"
        said = "survived" if code == 0 else said
    return said


def read() -> dict[str, Any]:
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {"seed": None, "mutants": []}
    return kept | {"mutants": [(Mutant(*row[:-1]), row[-1]) for row in kept["mutants"]]}


def write(seed: str, rows: list[tuple[Mutant, str | None]]) -> None:
    lines = ",\n".join(json.dumps([*mutant, said], ensure_ascii=False) for mutant, said in rows)
    beside = KEPT.with_suffix(".part")
    beside.write_text(f'{{"seed": {json.dumps(seed)}, "mutants": [\n{lines}\n]}}\n', encoding="utf-8")
    beside.replace(KEPT)


def main() -> None:
    """Draw, or find again what was drawn; run what has no outcome; keep each outcome as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", required=True, help="hash of a commit")
    parser.add_argument("--sample", type=int, default=300, help="how many")
    parser.add_argument("--again", action="store_true", help="run those with an outcome, too")
    asked = parser.parse_args()
    kept = read()
    rows: list[tuple[Mutant, str | None]] = kept["mutants"] if kept["seed"] == asked.seed else []
    for mutant in list(drawn(asked.seed, asked.sample))[len(rows) :] if len(rows) < asked.sample else ():
        rows.append((mutant, None))
    write(asked.seed, rows)
    os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in WARM:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        sys.path[:] = [str(tree / "src"), *(entry for entry in sys.path if Path(entry).resolve() != ROOT / "src")]
        os.environ["PYTHONPATH"] = str(tree / "src")
        for place, (mutant, said) in enumerate(rows[: asked.sample]):
            if said is not None and not asked.again:
                continue
            today = found_again(mutant, asked.seed)
            if today is None:
                rows[place] = (mutant, "its file is gone")
                continue
            source = (ROOT / today.path).read_text(encoding="utf-8")
            if (today.operator, today.text) != (mutant.operator, mutant.text):
                print(f"redrawn in {today.path}: {mutant.text!r} is gone, now {today.text!r}")
            try:
                (tree / today.path).write_text(mutated(today, source) or source, encoding="utf-8")
                rows[place] = (today, outcome(tree, today.path))
            finally:
                (tree / today.path).write_text(source, encoding="utf-8")
            write(asked.seed, rows)
            print(
                f"{place + 1}: {rows[place][1]}  {today.path}:{today.line} {today.operator}  {today.text}", flush=True
            )
    said_of = collections.Counter(said for _, said in rows[: asked.sample])
    print(", ".join(f"{number} {said}" for said, number in said_of.most_common()))


if __name__ == "__main__":
    main()
