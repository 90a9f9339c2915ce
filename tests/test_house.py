"""Rules of the house that no single module can keep alone."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from steepest.catalogue import NO_NUMBER, find, marks, missing, systems, there

ROOT = Path(__file__).parents[1]
PRESENT = [pytest.param(system, id=system.slug) for system in systems() if there(system)]


def text_files():
    """What git tracks or would track; without git, the folders that hold text of ours."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        files = [file for folder in ("src", "tests", "docs", "benchmarks") for file in (ROOT / folder).rglob("*")]
    kinds = {".py", ".toml", ".md", ".txt", ".yml", ".yaml", ".json", ".html", ".css", ".js", ".svg", ".csv", ""}
    return [file for file in files if file.is_file() and file.suffix in kinds]


def test_there_is_text_to_read():
    names = {file.relative_to(ROOT).as_posix() for file in text_files()}
    assert {"src/steepest/catalogue/losses.toml", "tests/test_house.py", "Makefile", ".ci/run"} <= names


SAYS_NOTHING = {"found", "each", "kept", "other", "part", "made"}
AT_MOST = {"comparison": 4, "kernels": 17, "lab": 8, "losses": 3}
"""Names of variables and parameters that say nothing, by room; 0 elsewhere. A bound is lowered, never raised."""


def test_names_say_what_the_thing_is():
    package = ROOT / "src" / "steepest"
    counts = Counter()
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            stored = isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
            name = node.id if stored else node.arg if isinstance(node, ast.arg) else None
            counts[room] += name in SAYS_NOTHING
    assert {room: count for room, count in counts.items() if count > AT_MOST.get(room, 0)} == {}


def test_no_machine_paths():
    """Nothing that only exists on the machine where it was written."""
    path = re.compile(r"(?<![\w.~}])/(?:home|work|root|Users|tmp)/\w")
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in text_files()
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if path.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("system", PRESENT)
def test_a_system_that_is_there_is_checked(system):
    """Tests prove each fact that its row counts."""
    assert missing(system, marks(ROOT / "tests")) == []


def test_marks_name_facts_that_exist():
    for slug, numbers in marks(ROOT / "tests").items():
        holds = find(slug).holds
        assert numbers <= (set(range(1, holds + 1)) if holds else {NO_NUMBER}), slug


def test_processes_that_tests_start_import_this_tree(tmp_path):
    import steepest

    done = subprocess.run(
        [sys.executable, "-c", "import steepest; print(steepest.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()) == Path(steepest.__file__).resolve()


def test_environments_of_processes_are_added_to_and_not_made_anew():
    """One that is made anew has lost the path to this tree."""
    found = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "subprocess" not in text:
            continue
        tree = ast.parse(text)
        made = {
            target.id: node.value
            for node in ast.walk(tree) if isinstance(node, ast.Assign)
            for target in node.targets if isinstance(target, ast.Name)
        }  # fmt: skip
        for node in ast.walk(tree):
            function = getattr(node, "func", None)
            if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "subprocess":
                for keyword in node.keywords:
                    if keyword.arg == "env":
                        value = made.get(getattr(keyword.value, "id", ""), keyword.value)
                        if "os.environ" not in ast.unparse(value):
                            found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def names_of_ours(tree):
    """What a test module imports from the package, by the name it has there; and the modules' own definitions."""
    ours, own = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "steepest":
            ours |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            ours |= {alias.asname or "steepest" for alias in node.names if alias.name.partition(".")[0] == "steepest"}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own[node.name] = node
        else:
            stored = (p for p in ast.walk(node) if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Store))
            own |= {part.id: node for part in stored}
    return ours, own


def reaches(node, ours, own, beside):
    """Whether a definition uses a name of ours, itself or through what it uses; ``beside``: from other test modules."""
    seen, left = set(), [node]
    while left:
        for part in ast.walk(left.pop()):
            name = part.id if isinstance(part, ast.Name) else part.arg if isinstance(part, ast.arg) else None
            if name in ours or name in beside:
                return True
            if name is not None and name in own and name not in seen:
                seen.add(name)
                left.append(own[name])
    return False


def test_tests_that_prove_a_fact_run_code_of_ours():
    """A mark on a test of numpy or of a peer alone proves nothing."""
    found = []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if "mark.holds" not in text:
            continue
        tree = ast.parse(text)
        ours, own = names_of_ours(tree)
        beside = {
            alias.asname or alias.name
            for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level
            for alias in node.names
        }  # fmt: skip
        for node in own.values():
            marks_of_node = [part for mark in getattr(node, "decorator_list", []) for part in ast.walk(mark)]
            marked = any(isinstance(part, ast.Attribute) and part.attr == "holds" for part in marks_of_node)
            if marked and not reaches(node, ours, own, beside):
                found.append(f"{file.relative_to(ROOT)}: {node.name}")
    assert found == []


QUICK, ALL = 2.0, 5.0
"""Seconds of processor time that one system's tests may take: among the quick ones, and in all."""
DEAR = {
    "absolute-error": "the first member that is traced pays for what torch loads, when it was measured",
    "adamw": "four settings, each to a minimum, compiled and by two ranks, among the slow tests",
    "asymmetric-loss": "three members, each traced and run through its contract",
    "chronicals": "several kernels, each interpreted where there is no GPU",
    "contrastive-behaviour": "three losses, each traced, among the slow tests",
    "ctc-peaky": "gradient descent of the publication until it is stuck: 4,000 steps",
    "distance-covariance-fairness": "dcor compiles as it is imported, among the slow tests",
    "dot": "each setting to a minimum, compiled and by two ranks, among the slow tests",
    "frugal": "five settings, each to a minimum, compiled and by two ranks, among the slow tests",
    "ghost-radius": "a forward derivative in each of the steps to a minimum, among the slow tests",
    "gradient-regularization": "two differences, each to a minimum, compiled and by two ranks, among the slow tests",
    "gravity": "each setting to a minimum, compiled and by two ranks, among the slow tests",
    "groco": "four instances of a sorting network, each traced, among the slow tests",
    "h-calibration": "two calibrators, fitted with gradients through windows of all rows",
    "ignite": "two members, each to a minimum, compiled and by two ranks, among the slow tests",
    "introduction-to-ml": "every baseline of the book in whole comparisons, among the slow tests",
    "ldr": "two members with a memory a sample, traced, resumed and solved against loops",
    "learned-optimizers": "to a minimum, compiled and by two ranks, among the slow tests",
    "lisa": "each setting to a minimum, compiled and by two ranks, among the slow tests",
    "loss-landscape-analysis": "a spectrum of forty products with the Hessian in each moment of a probe's contract",
    "momo": "each setting to a minimum, compiled and by two ranks, among the slow tests",
    "muon": "two settings, each to a minimum, compiled and by two ranks, among the slow tests",
    "neural-ndcg": "sorting and scaling of two settings, compiled, among the slow tests",
    "optimistic-mirror-descent": "each setting to a minimum, compiled and by two ranks, among the slow tests",
    "preconditioned-sps": "nine settings, each to a minimum, compiled and by two ranks, among the slow tests",
    "random-scaling-momentum": "each setting to a minimum, compiled and by two ranks, among the slow tests",
    "reload": "each setting to a minimum, compiled and by two ranks, among the slow tests",
    "sam": "three settings, each trained compiled and by processes of two ranks, among the slow tests",
    "sparse-ot": "dual ascent to convergence in both forms",
    "two-pass-softmax": "three implementations, one of them interpreted",
    "wasserstein-dependency": "critics are differentiated twice, and trained to an exact value",
    "z-loss": "many losses of one spherical family, each with a layer that must keep precision over many steps",
}
"""Systems that take more than twice their share, each with the reason."""


def test_no_system_takes_more_than_twice_its_share_of_the_tests():
    """As `make durations` measured it, so that nothing here depends on a clock; null was not measured yet."""
    seconds = json.loads((ROOT / "tests" / "durations.json").read_text(encoding="utf-8"))
    present = {system.slug for system in systems() if there(system)}
    assert present <= set(seconds), "make durations SYSTEMS=slug"
    above = {slug for slug in present if seconds[slug][0] > 2 * QUICK or (seconds[slug][1] or 0) > 2 * ALL}
    assert above <= set(DEAR)
    assert set(DEAR) <= present


@pytest.mark.parametrize(
    ("path", "calls"),
    [
        ("core/rows.py", [["tests/core/test_rows.py"]]),
        ("kernels/_memory.py", [["tests/kernels/test_memory.py"]]),
        ("catalogue/proofs.py", [["tests/test_catalogue.py"]]),
        (
            "losses/classification/squentropy.py",
            [["tests/losses/classification/test_squentropy.py"], ["tests/test_conformance.py", "-k", "squentropy"]],
        ),
        (
            "lab/losses/classification/comp_sum.py",
            [["tests/lab/test_experiments.py", "-k", "(test_smoke or test_committed_evidence) and comp-sum"]],
        ),
    ],
)
def test_a_mutant_meets_the_tests_of_its_file(path, calls):
    import importlib.util

    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tests" / "mutants.py")
    mutants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutants)
    own = f"src/steepest/{path}"
    assert [[word for word in call if word != own] for call in mutants.tests_of(own)] == calls
    assert mutants.bare("def f(a: int) -> str:\n 'says'\n x: int = a") == mutants.bare("def f(a):\n pass\n x: str = a")
    assert mutants.bare("a + 1") != mutants.bare("a - 1")


HEAVY = {"torch", "sklearn", "pandas", "matplotlib"}


def loaded(statement):
    """The modules loaded after a statement in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_loads_nothing_heavy():
    modules = loaded("import steepest")
    assert "steepest" in modules
    assert not modules & {*HEAVY, "numpy", "scipy", "typer", "rich"}


def test_rooms_load_lazily():
    assert not loaded("import steepest.losses, steepest.losses.classification") & {
        "torch",
        "sklearn",
        "pandas",
        "matplotlib",
    }


def test_the_command_starts_light():
    assert not loaded("from steepest.cli import run; run(['--version'])") & HEAVY


def test_the_catalogue_lies_below_every_room():
    modules = {name for name in loaded("import steepest.catalogue") if name.partition(".")[0] == "steepest"}
    own = {f"steepest.catalogue.{name}" for name in ("evidence", "names", "proofs")}
    assert modules == {
        "steepest",
        "steepest.catalogue",
        "steepest.derived",
        "steepest.local_names",
        "steepest.sources",
        *own,
    }


def test_the_top_level_is_lazy_and_honest():
    modules = loaded("import steepest; steepest.catalogue; assert 'compare' in dir(steepest)")
    assert "steepest.catalogue" in modules
    assert "torch" not in modules
    import steepest

    with pytest.raises(AttributeError, match="has no attribute 'comparee'"):
        _ = steepest.comparee


def test_checks_switch_is_at_the_top():
    import steepest
    from steepest.core.checks import checks

    assert steepest.checks is checks
