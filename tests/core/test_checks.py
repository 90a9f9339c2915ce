"""Uniform errors; values inside tensors are looked at only where that costs nothing."""

from __future__ import annotations

import math
import re

import pytest
import torch

import steepest
from steepest.core import checks


def refused(kind, message, call, *args, **kwargs):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call(*args, **kwargs)


@pytest.mark.parametrize(
    ("value", "range_", "message"),
    [
        (-1, {"low": 0}, "a number >= 0, got -1"),
        (0, {"low": 0, "open_low": True}, "a number > 0, got 0"),
        (1.0, {"low": 0, "high": 1, "open_high": True}, "a number >= 0 and < 1, got 1.0"),
        (2, {"high": 1.5}, "a number <= 1.5, got 2"),
        (math.nan, {}, "a number, got nan"),
        (math.nan, {"low": 0}, "a number >= 0, got nan"),
        (0, {"low": 1, "integer": True}, "an integer >= 1, got 0"),
    ],
)
def test_numbers_out_of_range(value, range_, message):
    refused(ValueError, f"x: expected {message}", checks.check_number, "x", value, **range_)


@pytest.mark.parametrize(("value", "kind"), [(True, "bool"), ("1", "str"), (None, "NoneType"), (1.0, "float")])
def test_numbers_of_another_type(value, kind):
    refused(TypeError, f"x: expected an integer, got {value!r} ({kind})", checks.check_number, "x", value, integer=True)


def test_numbers_in_range():
    for value, range_ in ((0, {"low": 0}), (1, {"high": 1}), (math.inf, {}), (0.5, {"low": 0, "high": 1})):
        checks.check_number("x", value, **range_)


def test_choices():
    checks.check_choice("x", "a", ("a", "b"))
    refused(ValueError, "x: expected one of 'a', 'b', got 'c'", checks.check_choice, "x", "c", ("a", "b"))
    refused(ValueError, "x: expected one of 'a', got ['a']", checks.check_choice, "x", ["a"], {"a"})


def test_what_came_is_described():
    assert checks.describe(torch.zeros(2, 3, dtype=torch.bfloat16)) == "a bfloat16 tensor of shape (2, 3)"
    assert checks.describe("x" * 200) == "'" + "x" * 76 + "..."
    assert checks.describe([1]) == "[1]"


def test_tensors():
    z = torch.zeros(2, 3)
    checks.check_tensor("z", z, ndim=(1, 2), floating=True, shape=(None, 3))
    got = "got a float32 tensor of shape (2, 3)"
    refused(TypeError, "z: expected a tensor, got [1] (list)", checks.check_tensor, "z", [1])
    refused(TypeError, f"z: expected an integer tensor, {got} (Tensor)", checks.check_tensor, "z", z, floating=False)
    refused(TypeError, "z: expected a floating tensor, got a int64 tensor of shape (2, 3) (Tensor)",
            checks.check_tensor, "z", z.long(), floating=True)  # fmt: skip
    refused(ValueError, f"z: expected 1 dimensions, {got}", checks.check_tensor, "z", z, ndim=1)
    refused(ValueError, f"z: expected 1 or 3 dimensions, {got}", checks.check_tensor, "z", z, ndim=(1, 3))
    refused(ValueError, f"z: expected shape (*, 4), {got}", checks.check_tensor, "z", z, shape=(None, 4))
    refused(ValueError, f"z: expected shape (2), {got}", checks.check_tensor, "z", z, shape=(2,))
    refused(
        ValueError, f"outputs: expected at least 4 classes in dimension 1, {got}", checks.check_logits, z, classes=4
    )


def test_values():
    z = torch.zeros(3, 4)
    checks.check_index(torch.tensor([0, 3, -1]), z, ignore_index=-1)
    refused(ValueError, "target: expected values in 0..3, got [0, 4]", checks.check_index, torch.tensor([0, 4, 1]), z)
    refused(ValueError, "target: expected values in 0..3 or -1, got [-2, 0]",
            checks.check_index, torch.tensor([0, -2, -1]), z, ignore_index=-1)  # fmt: skip
    with pytest.raises(TypeError, match="target: expected class indices of an integer type"):
        checks.check_index(torch.zeros(3, dtype=torch.bool), z)
    checks.check_range("i", torch.empty(0, dtype=torch.long), 0, 1)
    checks.check_range("i", torch.tensor([9, 9]), 0, 1, ignore_index=9)
    for good in (torch.tensor([0, 1, 1]), torch.tensor([True, False, True]), torch.tensor([0.0, 1.0, 1.0])):
        checks.check_binary(good, z[:, 0])
    with pytest.raises(ValueError, match=r"target: expected labels in \{0, 1\}, got \[0.5, 1.0\]"):
        checks.check_binary(torch.tensor([0.5, 1.0, 1.0]), z[:, 0])
    checks.check_weight(None, 3)
    checks.check_weight(torch.zeros(3), 3)
    refused(ValueError, "weight: expected values >= 0, got -1.0", checks.check_weight, torch.tensor([1.0, -1.0]), 2)
    with pytest.raises(TypeError, match="weight: expected a floating tensor"):
        checks.check_weight(torch.ones(2, dtype=torch.long), 2)


def test_values_are_not_looked_at_under_transforms():
    bad, z = torch.tensor([[0, 9]]), torch.zeros(1, 2, 4)

    def run(target, outputs):
        checks.check_index(target, outputs)
        return target + 1

    steepest.checks(True)
    try:
        assert torch.func.vmap(run)(bad, z).tolist() == [[1, 10]]
        compiled = torch.compile(run, backend="eager", fullgraph=True)
        assert compiled(bad[0], z[0]).tolist() == [1, 10]
    finally:
        steepest.checks(False)
    with pytest.raises(ValueError, match=r"values in 0\.\.3"):
        run(bad[0], z[0])


def test_the_switch_decides_on_other_devices():
    class There(torch.Tensor):
        device = torch.device("cuda")

    there = torch.zeros(2).as_subclass(There)
    assert checks.values_visible(torch.zeros(2))
    assert not checks.values_visible(torch.zeros(2), there)
    steepest.checks(True)
    try:
        assert checks.values_visible(torch.zeros(2), there)
    finally:
        steepest.checks(False)
    assert not checks.values_visible(there)


def test_intervals():
    inside = torch.tensor([-1e-7, 0.0, 1.0, 1 + 9e-7, math.nan])
    checks.check_interval("p", inside, 0.0, 1.0)  # eight units of rounding; NaN propagates
    for value, shown in ((-1e-5, "-9.99"), (1.00001, "1.0000")):
        with pytest.raises(ValueError, match=rf"p: expected shares in \[0, 1\], got {shown}"):
            checks.check_interval("p", torch.tensor([0.5, value, math.nan]), 0.0, 1.0, what="shares")
    with pytest.raises(ValueError, match=r"p: expected values >= 0, got -1e-08"):
        checks.check_interval("p", torch.tensor([-1e-8], dtype=torch.float64), 0.0, rounding=0.0)
    checks.check_interval("p", torch.tensor([-0.4]), 0.0, rounding=0.5)
    checks.check_interval("p", torch.tensor([0, 1]), 0.0, 1.0)
    with pytest.raises(ValueError, match="p: expected values <= 1, got 2"):
        checks.check_interval("p", torch.tensor([0, 2]), high=1.0)
    torch.func.vmap(lambda t: checks.check_interval("p", t, 0.0, 1.0) or t)(torch.full((2, 3), 7.0))


@pytest.mark.parametrize(
    ("domain", "fine", "bad", "said"),
    [
        ("probabilities", [0.0, 1.0], [0.5, 1.5], r"probabilities in \[0, 1\], got 1.5"),
        ("log_probabilities", [-math.inf, 0.0], [-1.0, 0.5], "log-probabilities <= 0, got 0.5"),
        ("cosine", [-1.0, 1.0], [0.0, 3.0], r"cosines in \[-1, 1\], got 3"),
    ],
)
def test_domains(domain, fine, bad, said):
    checks.check_domain("x", torch.tensor(fine), domain)
    with pytest.raises(ValueError, match=f"x: expected {said}"):
        checks.check_domain("x", torch.tensor(bad), domain)
    checks.check_domain("x", torch.tensor(bad), "logits")


def test_rows_of_a_simplex():
    checks.check_simplex("x", torch.tensor([[0.2, 0.8], [0.0, 1.005]]).clamp(max=1))
    checks.check_simplex("x", torch.tensor([[0.2, math.nan]]))
    with pytest.raises(ValueError, match="x: expected rows of probabilities that sum to 1"):
        checks.check_simplex("x", torch.tensor([[0.2, 0.7]]))
    with pytest.raises(ValueError, match=r"x: expected probabilities in \[0, 1\]"):
        checks.check_simplex("x", torch.tensor([[-0.2, 1.2]]))


def test_an_option_that_some_forms_read():
    assert checks.option_of("mu", None, 10.0, applies=False, only='scheme="a"') == 10.0
    assert checks.option_of("mu", 2.0, 10.0, applies=True, only='scheme="a"', low=0.0) == 2.0
    with pytest.raises(ValueError, match='mu: expected None unless scheme="a", got 2'):
        checks.option_of("mu", 2.0, 10.0, applies=False, only='scheme="a"')
    with pytest.raises(ValueError, match="mu: expected a number >= 0"):
        checks.option_of("mu", -1.0, 10.0, applies=True, only='scheme="a"', low=0.0)
