"""torch's own tests of optimizers over those of steepest, on the CPU: which pass, and why the others don't.

torch installs its list of optimizers (``torch.testing._internal.common_optimizers``), but not the tests that go through
it. They run from a copy of ``test/test_optim.py`` of about the installed version, with the list replaced by ours: an
entry for each class in a row of the kind optimizer, with the settings that its ``builders`` give to the conformance
suite. Results are kept by optimizer: names of tests that passed; of those that failed, what the test said and why;
of those that torch skipped, the reason. Nothing of the copy is kept.

    pip install expecttest
    python benchmarks/torch_optim_tests.py --copy FILE [--origin "repository, commit, what the copy lacks"]

``--quick`` without a copy takes a step of each entry only.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import unittest
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from _options import read_options
from _record import keep

from steepest.catalogue import systems, there
from steepest.core.optimizer import LossAware

SIDE_FILES = ("optim.test_lrscheduler", "optim.test_optim", "optim.test_swa_utils")
"""Other files of tests that the copy imports: classes that have nothing to do with a list of optimizers."""
TENSOR_RATE = "Tensor lr must be 1-element"
LEFT_OUT = {
    "test_errors": f"its case {TENSOR_RATE!r}, but for AdamW: options are numbers here, which test_tensor_lr shows",
    "tests that name no optimizer": "they are about one class of torch",
}
UNEXPLAINED = "unexplained"
LOSS_AWARE = r"Momo|MomoAdam|PSPS\w*"
REASONS: tuple[tuple[str, str, str], ...] = (
    (
        "OptimisticAscentDescent",
        "test_(param_groups|tensor)_lr",
        "two players have two rates, lr_min and lr_max: no lr",
    ),
    (".*", "test_tensor_lr", "options are numbers: a rate in a tensor is refused by name"),
    ("AdamW", "test_errors", "arguments are refused in the words of steepest: name, what was expected, what came"),
    (
        "AdamW",
        "test_fused_matches_forloop float16",
        "torch's AdamW differs likewise: with an eps of 1e-6 its loop in half precision loses the average of squares",
    ),
    ("OptimisticAscentDescent|PSPS.*", "test_non_empty_state", "one of the settings keeps nothing between steps"),
    ("OptimisticOMD", "test_foreach_matches", "its count of rounds is a number: the test compares tensors only"),
    ("OptimisticOMD", "test_param_group_with", "by default its first steps are as long as the set of plays is wide"),
    (
        "Gravity",
        "test_(param_group|step_is_noop)",
        "it starts with a random velocity, which moves weights whatever gradient and rate are",
    ),
    (
        "Gravity|RandomScalingSGDM",
        "test_(complex|foreach_matches|state_dict_deterministic)",
        "it draws random numbers: both optimizers of the test share one generator",
    ),
    ("MuonAndAdamW", "test_complex", "a complex vector moves as a vector, the same numbers as pairs as a matrix"),
    (
        LOSS_AWARE,
        "test_(foreach_matches|param_groups_lr|param_groups_weight_decay)",
        "the loss is part of the step: the test calls step() without it",
    ),
    (
        LOSS_AWARE,
        "test_(complex|grads_are_never|load_nontensor|step_is_noop)",
        "the loss is a scalar: the test's is a tensor of shape [1]",
    ),
    (LOSS_AWARE, "test_second_order", "the test gives an option of L-BFGS, tolerance_grad"),
    (r"PSPS\w*", "test_can_load", "the loss is at least 0: the test's is 0 but for rounding, and below"),
)
"""Why a test asks for something else than a class promises: patterns of the name of the class and of the test."""

Settings = dict[str, Any]


def optimizers() -> list[Any]:
    """The classes of the rows of the kind optimizer, each once."""
    named = {}
    for row in systems():
        if row.kind == "optimizer" and there(row):
            module = importlib.import_module(f"steepest.{row.module}")
            for name in row.names:
                cls = getattr(module, name)
                if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer):
                    named[cls.__name__] = cls
    return list(named.values())


def settings(cls: Any) -> list[Settings]:
    """The options that each of its builders gives to the class."""
    given: list[Settings] = []
    build = cls.__init__

    def noting(self: Any, *values: Any, **options: Any) -> None:
        bound = inspect.signature(build).bind(self, *values, **options).arguments
        named = dict(list(bound.items())[2:])
        rest = named.pop("options", {})
        given.append({**named, **rest})
        build(self, *values, **options)

    with mock.patch.object(cls, "__init__", noting):
        for builder in cls.builders():
            builder([torch.nn.Parameter(torch.zeros(2))])
    return given


def step_of(cls: Any) -> None:
    """A step with each setting, as torch's tests take it."""
    for options in settings(cls):
        p = torch.nn.Parameter(torch.ones(2))
        optimizer = cls([p], **options)

        def closure(p: Any = p) -> Any:
            p.grad = None
            loss = p.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert not torch.equal(p.detach(), torch.ones(2)), f"{cls.__name__} stands still with {options}"


def entry(cls: Any, common: Any) -> Any:
    """The class as an entry of torch's list; a class of torch's that ours extends gives its own entry."""
    ours = settings(cls)

    def inputs(device: Any, dtype: Any = None) -> list[Any]:
        return [common.OptimizerInput(params=None, kwargs=copy.deepcopy(given), desc=str(given)) for given in ours]

    theirs = [info for info in common.optim_db if info.optim_cls in cls.__mro__]
    if theirs:
        info = copy.copy(theirs[0])
        info.optim_cls = cls
        info.optim_inputs_func = lambda device, dtype=None: [
            *theirs[0].optim_inputs_func(device, dtype),
            *inputs(device),
        ]
        return info

    def errors(device: Any, dtype: Any) -> list[Any]:
        cases = [
            case
            for case in common.get_error_inputs_for_all_optims(device, dtype)
            if case.optimizer_error_input.desc != TENSOR_RATE
        ]
        p = torch.nn.Parameter(torch.zeros(1, 1, device=device, dtype=dtype))
        for name in set(cls.ranges) & set(inspect.signature(cls.__init__).parameters):
            kwargs = {name: cls.ranges[name].get("low", 0.0) - 1.0}
            wrong = common.OptimizerInput(params=[p], kwargs=kwargs, desc=f"{name} out of range")
            cases.append(common.ErrorOptimizerInput(wrong, error_type=ValueError, error_regex=f"{name}: expected "))
        return cases

    group = cls([torch.nn.Parameter(torch.zeros(2))], **ours[0]).param_groups[0]
    flags = [name for name in ("foreach", "maximize") if name in group]
    return common.OptimizerInfo(
        cls,
        optim_inputs_func=inputs,
        optim_error_inputs_func=errors,
        supported_impls=tuple(flag for flag in flags if flag == "foreach"),
        not_og_supported_flags=tuple(flags),
        step_requires_closure=issubclass(cls, LossAware),
    )


class Outcomes(unittest.TestResult):
    """How each test ended, and what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: dict[str, tuple[str, str]] = {}

    def _note(self, test: Any, outcome: str, said: str = "") -> None:
        self.ended[test.id().rpartition(".")[2]] = (
            outcome,
            re.sub(r"\s+", " ", said.partition("\n\nTo execute")[0])[:160],
        )

    def addSuccess(self, test: Any) -> None:
        self._note(test, "passed")

    def addFailure(self, test: Any, err: Any) -> None:
        self._note(test, "failed", f"{err[0].__name__}: {err[1]}")

    addError = addFailure

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, "skipped", reason)


def tests_of(file: Path, entries: list[Any], common: Any) -> unittest.TestSuite:
    """The tests in a copy over a list of entries, on the CPU."""
    for name in ("optim", *SIDE_FILES):
        stand_in: Any = ModuleType(name)
        stand_in.__getattr__ = lambda attribute: type(attribute, (), {})
        sys.modules[name] = stand_in
    common.optim_db[:] = entries
    spec = importlib.util.spec_from_file_location("torch_test_optim", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return unittest.TestLoader().loadTestsFromTestCase(module.TestOptimRenewedCPU)


def explained(cls: str, test: str) -> str:
    """Why a test that failed asks for something else."""
    for classes, tests, reason in REASONS:
        if re.fullmatch(classes, cls) and re.match(tests, test):
            return reason
    return UNEXPLAINED


def by_optimizer(ended: dict[str, tuple[str, str]], names: list[str]) -> list[dict[str, Any]]:
    """A row an optimizer: its tests by how they ended."""
    rows = []
    for cls in names:
        row: dict[str, Any] = {"optimizer": cls, "passed": [], "failed": [], "skipped": []}
        for test, (outcome, said) in sorted(ended.items()):
            own = re.fullmatch(rf"(test_\w+)_{cls}_cpu_?(\w*)", test)
            if own is None:
                continue
            title = own[1] if own[2] in ("float32", "") else f"{own[1]} {own[2]}"
            if outcome == "passed":
                row["passed"].append(title)
            elif outcome == "skipped":
                row["skipped"].append({"test": title, "reason": said})
            else:
                row["failed"].append({"test": title, "reason": explained(cls, title), "said": said})
        rows.append(row)
    return rows


def load_common() -> Any:
    """torch's list and what builds it, or an error that says what is lacking."""
    os.environ["PYTORCH_TESTING_DEVICE_ONLY_FOR"] = "cpu"
    if importlib.util.find_spec("expecttest") is None:
        raise SystemExit("expecttest is lacking, which torch's tests import: pip install expecttest")
    with mock.patch.object(sys, "argv", sys.argv[:1]):
        return importlib.import_module("torch.testing._internal.common_optimizers")


def main() -> None:
    """Run, print and keep how the tests ended."""
    options = read_options(__doc__, copy=("", ""), origin=("unknown", "unknown"))
    classes = optimizers()
    if not options.copy:
        if not options.quick:
            raise SystemExit("a copy of torch's test/test_optim.py is lacking: --copy FILE")
        for cls in classes:
            step_of(cls)
        print(f"{len(classes)} optimizers step; a copy of torch's test/test_optim.py is lacking: --copy FILE")
        keep("torch_optim_tests", {}, options)
        return
    file = Path(options.copy)
    if not file.is_file():
        raise SystemExit(f"--copy: {file} is no file")
    common = load_common()
    tests = tests_of(file, [entry(cls, common) for cls in classes], common)
    outcomes = Outcomes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests.run(outcomes)
    rows = by_optimizer(outcomes.ended, [cls.__name__ for cls in classes])
    for row in rows:
        counts = "  ".join(f"{outcome} {len(row[outcome]):3}" for outcome in ("passed", "failed", "skipped"))
        print(f"{row['optimizer']:<26}{counts}")
        for failure in row["failed"]:
            print("   ", failure["test"], "|", failure["reason"], "|", failure["said"])
    content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    source = {"origin": options.origin, "sha256": content, "tests": len(outcomes.ended)}
    keep("torch_optim_tests", {"copy": source, "left_out": LEFT_OUT, "rows": rows}, options)


if __name__ == "__main__":
    main()
