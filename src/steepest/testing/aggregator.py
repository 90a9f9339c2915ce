"""Conformance of an aggregator: its declared properties over typical, scaled, conflicting and degenerate Jacobians."""

from __future__ import annotations

import copy
import functools
import io
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.aggregator import PROPERTIES, Aggregator, GramianAggregator
from ._common import refused
from ._constructor import constructor_checks, seed_torch
from ._suite import bound, run_all

SHAPES = ((1, 1), (1, 6), (2, 2), (2, 9), (3, 7), (5, 3), (9, 11), (20, 60))
SCALES = (1e-30, 1e-10, 1e4, 1e15)
ROUNDING = 1e-4
"""Relative error allowed where float32 rounds rows of up to 60 numbers and their products."""
CANCELLED = 16 * torch.finfo(torch.float32).eps
"""The same where rows cancel, of their size."""


@functools.cache
def jacobians() -> dict[str, Tensor]:
    """Jacobians in float32 by name: the grid of every check."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    grid = {f"typical {m}x{n}": randn(m, n) for m, n in SHAPES}
    grid |= {f"scaled by {scale:g}": scale * randn(4, 10) for scale in SCALES}
    grid["rows of many lengths"] = randn(5, 9) * torch.tensor([1e-30, 1e-8, 1.0, 1e4, 1e8]).unsqueeze(1)
    grid["conflicting"] = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    grid["agreeing"] = randn(4, 8).abs()
    grid["far from agreeing"] = (rows := randn(6, 12)) - 0.9 * rows.mean(0) * 2
    grid["rank 2"] = randn(6, 2) @ randn(2, 8)
    grid["more losses than parameters"] = randn(12, 4)
    grid["two alike"] = randn(1, 5).repeat(2, 1)
    grid["one row of zeros"] = torch.cat([randn(2, 5), torch.zeros(1, 5)])
    return grid


def stationary() -> dict[str, Tensor]:
    """Jacobians of which a combination with positive weights is 0: no direction descends any loss without another."""
    generator = torch.Generator().manual_seed(1)
    grid = {"opposite": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}
    for m, n in ((3, 5), (5, 5), (8, 4)):
        rows = torch.randn(m - 1, n, generator=generator)
        weights = torch.rand(m - 1, generator=generator) + 0.1
        grid[f"{m}x{n}"] = torch.cat([rows, -(weights @ rows).unsqueeze(0)])
    return grid


def once(aggregator: Aggregator, jacobian: Tensor, seed: int = 0) -> Tensor:
    """The direction of a fresh copy, with the same random numbers each time."""
    seed_torch(seed)
    direction: Tensor = copy.deepcopy(aggregator)(jacobian)
    return direction


def _pairs(cls: type[Aggregator], needs: str | None = None) -> list[tuple[Aggregator, str, Tensor]]:
    if needs is not None and needs not in cls.properties:
        return []
    return [(own, name, jacobian) for own in cls.instances() for name, jacobian in jacobians().items()]


def _alike(direction: Tensor, wanted: Tensor, size: float, what: str) -> None:
    error = float((direction.double() - wanted.double()).abs().max()) if wanted.numel() else 0.0
    assert error <= ROUNDING * size, f"{what}: differs by {error:.3g} where {size:.3g} is the size"


def _size(jacobian: Tensor, *directions: Tensor) -> float:
    """What rounding is measured by: the longest of a direction's and the mean row's length."""
    return max(float(v.double().norm()) for v in (*directions, jacobian.double().mean(0), directions[0]))


def check_declaration(cls: type[Aggregator]) -> None:
    """A name, a docstring with an example, properties that there are, instances to check."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    assert set(cls.properties) <= set(PROPERTIES), f"properties: {sorted(set(cls.properties) - set(PROPERTIES))}"
    assert cls.instances(), "instances"


def check_structure(cls: type[Aggregator]) -> None:
    """A finite direction of the Jacobian's width, type and device, without a graph; the Jacobian is left as it was."""
    for aggregator, name, jacobian in _pairs(cls):
        given = jacobian.clone().requires_grad_()
        direction = once(aggregator, given)
        assert direction.shape == jacobian.shape[1:], f"{name}: shape {tuple(direction.shape)}"
        assert direction.dtype == jacobian.dtype, f"{name}: {direction.dtype}"
        assert not direction.requires_grad, f"{name}: a graph"
        assert bool(direction.isfinite().all()), f"{name}: not finite"
        assert torch.equal(given, jacobian), f"{name}: the Jacobian was changed"
        wide = once(aggregator, jacobian.double())
        assert wide.dtype == torch.float64, f"{name}: {wide.dtype} of float64"


def check_nothing_to_do(cls: type[Aggregator]) -> None:
    """Zeros give zeros, in every type; so do no columns."""
    for aggregator in cls.instances():
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            direction = once(aggregator, torch.zeros(3, 4, dtype=dtype))
            assert torch.equal(direction, torch.zeros(4, dtype=dtype)), f"zeros in {dtype} give {direction}"
        assert once(aggregator, torch.zeros(3, 0)).shape == (0,), "no columns"


def check_halves(cls: type[Aggregator]) -> None:
    """A direction in bfloat16 is that of the same numbers in float64, rounded; also of 300 equal rows."""
    for aggregator in cls.instances():
        for rows in (jacobians()["typical 3x7"], torch.ones(300, 2)):
            half = rows.bfloat16()
            wanted = once(aggregator, half.double())
            error = float((once(aggregator, half).double() - wanted).abs().max() / wanted.abs().max())
            assert error <= 3 * 2.0**-8, f"differs by {error:.3g} of the size"


def check_seed(cls: type[Aggregator]) -> None:
    """The same seed gives the same bits."""
    for aggregator, name, jacobian in _pairs(cls):
        assert torch.equal(once(aggregator, jacobian), once(aggregator, jacobian)), f"{name}: other bits"


def check_non_conflicting(cls: type[Aggregator]) -> None:
    """Where it is declared: no row has a negative product with the direction."""
    for aggregator, name, jacobian in _pairs(cls, "non_conflicting"):
        direction = once(aggregator, jacobian).double()
        rows = jacobian.double()
        lost = CANCELLED * _size(jacobian, direction)  # where the direction is what is left of rows that cancel
        allowed = rows.norm(dim=1) * (ROUNDING * direction.norm() + lost)
        assert bool((rows @ direction >= -allowed).all()), f"{name}: conflicts with a row"


def check_linear_under_scaling(cls: type[Aggregator]) -> None:
    """Where it is declared: linear in positive factors on the rows."""
    generator = torch.Generator().manual_seed(2)
    for aggregator, name, jacobian in _pairs(cls, "linear_under_scaling"):
        first, second = (0.1 + torch.rand(len(jacobian), 1, generator=generator) for _ in range(2))
        one, two = (once(aggregator, factors * jacobian) for factors in (first, second))
        both = once(aggregator, (2 * first + second) * jacobian)
        _alike(both, 2 * one + two, _size(jacobian, both, one, two), name)


def check_homogeneous(cls: type[Aggregator]) -> None:
    """Where it is declared: a factor on all rows is a factor on the direction."""
    for aggregator, name, jacobian in _pairs(cls, "homogeneous"):
        direction, scaled = once(aggregator, jacobian), once(aggregator, 4.0 * jacobian)
        _alike(scaled, 4.0 * direction, 4.0 * _size(jacobian, direction), name)


def check_permutation_invariant(cls: type[Aggregator]) -> None:
    """Where it is declared: the order of rows does not matter."""
    generator = torch.Generator().manual_seed(3)
    for aggregator, name, jacobian in _pairs(cls, "permutation_invariant"):
        direction = once(aggregator, jacobian)
        order = torch.randperm(len(jacobian), generator=generator)
        _alike(once(aggregator, jacobian[order]), direction, _size(jacobian, direction), name)


def check_in_span(cls: type[Aggregator]) -> None:
    """Where it is declared: the direction lies in the span of the rows."""
    for aggregator, name, jacobian in _pairs(cls, "in_span"):
        direction = once(aggregator, jacobian).double()
        lengths = jacobian.double().norm(dim=1, keepdim=True)
        unit = jacobian.double() / torch.where(lengths > 0, lengths, 1.0)
        inside = torch.linalg.lstsq(unit.T, direction.unsqueeze(1), driver="gelsd").solution
        size = float(direction.norm()) + CANCELLED / ROUNDING * _size(jacobian, direction)
        _alike((unit.T @ inside).squeeze(1), direction, size, name)


def check_stationary(cls: type[Aggregator]) -> None:
    """Where it is declared: 0 where a combination of the rows with positive weights is 0."""
    if "stationary" in cls.properties:
        for aggregator in cls.instances():
            for name, jacobian in stationary().items():
                length = float(once(aggregator, jacobian).norm())
                assert length <= ROUNDING * float(jacobian.norm()), f"{name}: length {length:.3g}"


def check_gramian(cls: type[Aggregator]) -> None:
    """Where weights follow from the Gramian: they give the same direction as the Jacobian."""
    if issubclass(cls, GramianAggregator):
        for aggregator, name, jacobian in _pairs(cls):
            rows = jacobian.double()
            seed_torch(0)
            twin = copy.deepcopy(aggregator)
            assert isinstance(twin, GramianAggregator)
            weights = twin.weights(rows @ rows.T)
            assert weights.shape == (len(rows),), f"{name}: weights {tuple(weights.shape)}"
            direction = once(aggregator, rows)
            _alike(weights @ rows, direction, _size(jacobian, direction), name)


def check_state(cls: type[Aggregator]) -> None:
    """What is kept between calls goes through ``state_dict``, bit for bit; ``reset`` forgets it."""
    generator = torch.Generator().manual_seed(4)
    calls = [torch.randn(3, 5, generator=generator) for _ in range(4)]
    for place in range(len(cls.instances())):
        whole, again, fresh = (cls.instances()[place] for _ in range(3))
        seed_torch(0)
        first = [whole(jacobian) for jacobian in calls[:2]]
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        for jacobian in calls[:1]:
            fresh(jacobian)  # buffers have their shapes
        state = torch.load(file, weights_only=True)
        for twin in (again, fresh):
            twin.load_state_dict(state)
        for jacobian in calls[2:]:
            directions = []
            for twin in (whole, again, fresh):
                seed_torch(1)
                directions.append(twin(jacobian))
            assert all(torch.equal(d, directions[0]) for d in directions), "loaded, other bits"
        whole.reset()
        seed_torch(0)
        assert all(torch.equal(whole(j), d) for j, d in zip(calls[:2], first)), "reset, other bits"


def check_bad_input(cls: type[Aggregator]) -> None:
    """Vectors, integers, lists and matrices without rows are refused; NaN stays visible."""
    for aggregator in cls.instances():
        rows = jacobians()["typical 3x7"]
        refused("a vector", aggregator, rows[0])
        refused("three dimensions", aggregator, rows.unsqueeze(0))
        refused("integers", aggregator, rows.long())
        refused("a list", aggregator, rows.tolist())
        refused("no rows", aggregator, rows[:0])
        broken = rows.clone()
        broken[1, 2] = math.nan
        assert bool(once(aggregator, broken).isnan().any()), "NaN is gone"


CHECKS: tuple[Callable[[type[Aggregator]], None], ...] = (
    check_declaration, check_structure, check_nothing_to_do, check_halves, check_seed, check_non_conflicting,
    check_linear_under_scaling, check_homogeneous, check_permutation_invariant, check_in_span, check_stationary,
    check_gramian, check_state, check_bad_input,
    *constructor_checks(lambda cls: cls.instances()),
)  # fmt: skip


def aggregator_checks(cls: type[Aggregator]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_aggregator(cls: type[Aggregator]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(aggregator_checks(cls), cls)
