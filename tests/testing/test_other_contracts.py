"""The suites of losses, calibrators and methods find what breaks a promise, each by the check that is named for it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from steepest.core.aggregator import PROPERTIES, Aggregator, GramianAggregator
from steepest.core.balancer import Balancer
from steepest.core.calibrator import Calibrator
from steepest.core.checks import check_tensor
from steepest.core.loss import Loss
from steepest.core.method import Method
from steepest.core.reductions import widen
from steepest.core.terms import kept_terms
from steepest.testing import (
    aggregator_checks,
    balancer_checks,
    calibrator_checks,
    check_aggregator,
    check_balancer,
    check_calibrator,
    check_loss,
    check_method,
    loss_checks,
    method_checks,
)
from steepest.testing._transforms import derivatives_agree


class Apart(Loss):
    """Mean squared distance of pairs.

    Example: see the test.
    """

    name = "apart"
    differentiable = (0, 1)

    def forward(self, first, second):
        check_tensor("first", first, floating=True)
        check_tensor("second", second, floating=True)
        found = (widen(first) - widen(second)).square().mean()
        self.terms = kept_terms({"distance": found})
        return found

    @classmethod
    def samples(cls, generator, dtype=torch.float32, device="cpu"):
        pair = [torch.randn(4, 3, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(2)]
        return [(cls(), (tuple(pair), {}))]


class NoExample(Apart):
    """Nothing shown."""


class Vector(Apart):
    """Example."""

    def forward(self, first, second):
        return super().forward(first, second).repeat(2)


class Writes(Apart):
    """Example."""

    def forward(self, first, second):
        found = super().forward(first, second)
        with torch.no_grad():
            first.mul_(1.5)
        return found


class Stopped(Apart):
    """Example."""

    def forward(self, first, second):
        return super().forward(first, second.detach() if isinstance(second, torch.Tensor) else second)


class SwallowsNaN(Apart):
    """Example."""

    def forward(self, first, second):
        found = super().forward(first, second)
        return torch.where(found > 0, found, 0.0)


class Half(Apart):
    """Example."""

    def forward(self, first, second):
        return super().forward(first, second).to(first.dtype)


class Noisy(Apart):
    """Example."""

    calls = itertools.count(1)

    def forward(self, first, second):
        return super().forward(first, second) * next(self.calls)


class Counts(Apart):
    """Example."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, first, second):
        self.calls += 1
        return super().forward(first, second)


class Trusting(Apart):
    """Example."""

    def forward(self, first, second):
        return (torch.as_tensor(first).float() - torch.as_tensor(second)).square().mean()


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.buffer = torch.ones_like(x)
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.buffer.mul_(upstream)


class ByHand(Apart):
    """Example."""

    def forward(self, first, second):
        return super().forward(InPlace.apply(first), second)


class NumbersOfValues(Apart):
    """Example."""

    def forward(self, first, second):
        return super().forward(first, second) * (1 + 0 * second.sum().item())


class Temperature(Calibrator):
    """One temperature, by a grid.

    Example: see the test.
    """

    name = "grid_temperature"

    def __init__(self):
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0, dtype=torch.float64))

    def _fit(self, logits, target):
        grid = torch.logspace(-1, 1.5, 60, dtype=torch.float64)
        losses = torch.stack([nn.functional.cross_entropy(logits / t, target) for t in grid])
        self.temperature.copy_(grid[losses.argmin()])

    def _transform(self, logits):
        return (logits / self.temperature.to(logits.dtype)).softmax(1)


class CalledOtherwise(Temperature):
    """Example."""

    def forward(self, logits):
        return logits / self.temperature


class Unnormalised(Temperature):
    """Example."""

    def _transform(self, logits):
        return 0.9 * super()._transform(logits)


class Reversed(Temperature):
    """Example."""

    def _transform(self, logits):
        return super()._transform(-logits)


class Overflows(Temperature):
    """Example."""

    def _transform(self, logits):
        e = (logits / self.temperature.to(logits.dtype)).float().exp().to(logits.dtype)
        return e / e.sum(1, keepdim=True)


class Useless(Temperature):
    """Example."""

    def _fit(self, logits, target):
        self.temperature.fill_(0.5)


class Forgets(Temperature):
    """Example."""

    def __init__(self):
        super().__init__()
        del self.temperature
        self.temperature = torch.tensor(1.0, dtype=torch.float64)


class Unchecked(Temperature):
    """Example."""

    def transform(self, logits):
        return self._transform(widen(logits))


class Doubled(Method):
    """The loss of the batch, twice.

    Example: see the test.
    """

    name = "doubled"

    def loss(self, model, batch, objective):
        return 2 * objective(model(batch.inputs), batch.target)


class Zero(Doubled):
    """Example."""

    def loss(self, model, batch, objective):
        return 0 * super().loss(model, batch, objective)


class Own(Doubled):
    """Example."""

    def loss(self, model, batch, objective):
        return super().loss(model, batch, objective) * torch.rand((), generator=torch.Generator().manual_seed(id(self)))


class Memory(Doubled):
    """Example."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def loss(self, model, batch, objective):
        self.calls += 1
        return super().loss(model, batch, objective) * self.calls


class Rows(Aggregator):
    """Example."""

    name = "rows"
    properties = frozenset({"linear_under_scaling", "homogeneous", "permutation_invariant", "in_span"})

    def _aggregate(self, jacobian):
        return jacobian.sum(0)


class EachProperty(Rows):
    """Example."""

    properties = frozenset(PROPERTIES)


class First(EachProperty):
    """Example."""

    def _aggregate(self, jacobian):
        return jacobian[0]


class Squares(EachProperty):
    """Example."""

    def _aggregate(self, jacobian):
        return jacobian.square().sum(0).clamp_max(1e30)


class Unit(EachProperty):
    """Example."""

    def _aggregate(self, jacobian):
        return jacobian.sum(0) / jacobian.sum(0).norm().clamp_min(1e-30)


class Divides(Rows):
    """Example."""

    def _aggregate(self, jacobian):
        return (jacobian / jacobian.norm(dim=1, keepdim=True)).sum(0)


COUNT = itertools.count(1)


class TimesCalls(Rows):
    """Example."""

    def _aggregate(self, jacobian):
        return jacobian.sum(0) * next(COUNT)


class WritesRows(Rows):
    """Example."""

    def _aggregate(self, jacobian):
        return jacobian.mul_(2.0).sum(0)


class Low(Rows):
    """Example."""

    def _aggregate(self, jacobian):
        total = torch.zeros_like(jacobian[0])
        for row in jacobian:
            total += row
        return total


class Fills(Rows):
    """Example."""

    def _aggregate(self, jacobian):
        return jacobian.nan_to_num().sum(0)


class Remembers(Rows):
    """Example."""

    def _aggregate(self, jacobian):
        self.last = jacobian.sum(0) + getattr(self, "last", 0.0)
        return self.last


class ByJacobian(GramianAggregator):
    """Example."""

    name = "by_jacobian"

    def _weigh_cosines(self, cosines, lengths):
        return lengths * (1 + lengths.max())

    def weights(self, gramian, /):
        return torch.ones(len(gramian), dtype=gramian.dtype)


class Added(Balancer):
    """Example."""

    name = "added"

    def _balance(self, losses):
        return losses.sum()


class Cut(Added):
    """Example."""

    def _balance(self, losses):
        return losses[0] + losses[1:].detach().sum()


class Counted(Added):
    """Example."""

    def _balance(self, losses):
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls * losses.sum()


class Wide(Added):
    """Example."""

    def _balance(self, losses):
        return losses.double().sum()


class AnyNumber(Added):
    """Example."""

    def forward(self, losses):
        return sum(losses)


def test_good_members_pass():
    check_aggregator(Rows)
    check_balancer(Added)
    check_loss(Apart)
    check_calibrator(Temperature)
    check_method(Doubled)


SOUND = [
    (loss_checks, Apart),
    (calibrator_checks, Temperature),
    (method_checks, Doubled),
    (aggregator_checks, Rows),
    (balancer_checks, Added),
]
BROKEN = [
    (loss_checks, NoExample, "declaration"),
    *(
        (suite, type(base.__name__, (base,), {"__doc__": "Example.", "name": "Loud"}), "declaration")
        for suite, base in SOUND
    ),
    (loss_checks, Vector, "output"),
    (loss_checks, Writes, "output"),
    (loss_checks, Stopped, "gradient"),
    (loss_checks, SwallowsNaN, "nan"),
    (loss_checks, Half, "precision"),
    (loss_checks, Noisy, "seed"),
    (loss_checks, Counts, "state"),
    (loss_checks, Trusting, "bad_input"),
    (loss_checks, ByHand, "transforms"),
    (loss_checks, NumbersOfValues, "shapes"),
    (calibrator_checks, Unnormalised, "probabilities"),
    (calibrator_checks, CalledOtherwise, "call"),
    (calibrator_checks, Reversed, "decision"),
    (calibrator_checks, Overflows, "extremes"),
    (calibrator_checks, Useless, "helps"),
    (calibrator_checks, Forgets, "state_dict"),
    (calibrator_checks, Unchecked, "bad_input"),
    (method_checks, Zero, "loss"),
    (method_checks, Own, "seed"),
    (method_checks, Memory, "resume"),
    (aggregator_checks, EachProperty, "non_conflicting"),
    (aggregator_checks, EachProperty, "stationary"),
    (aggregator_checks, First, "permutation_invariant"),
    (aggregator_checks, Squares, "in_span"),
    (aggregator_checks, Squares, "homogeneous"),
    (aggregator_checks, Unit, "linear_under_scaling"),
    (aggregator_checks, Divides, "structure"),
    (aggregator_checks, Divides, "nothing_to_do"),
    (aggregator_checks, TimesCalls, "seed"),
    (aggregator_checks, WritesRows, "structure"),
    (aggregator_checks, Low, "halves"),
    (aggregator_checks, Fills, "bad_input"),
    (aggregator_checks, Remembers, "state"),
    (aggregator_checks, ByJacobian, "gramian"),
    (balancer_checks, Cut, "gradient"),
    (balancer_checks, Counted, "state"),
    (balancer_checks, Wide, "value"),
    (balancer_checks, AnyNumber, "bad_input"),
]


@pytest.mark.parametrize(("suite", "cls", "check"), BROKEN, ids=[cls.__name__ for _, cls, _ in BROKEN])
def test_a_broken_member_fails_the_check_named_for_it(suite, cls, check):
    with pytest.raises((AssertionError, RuntimeError)):
        dict(suite(cls))[check]()


@pytest.mark.parametrize("base", [Apart, Temperature, Doubled])
def test_an_exemption_from_no_check_is_refused(base):
    suite = {Apart: loss_checks, Temperature: calibrator_checks, Doubled: method_checks}[base]
    with pytest.raises(ValueError, match="names of checks"):
        suite(type("Odd", (base,), {"exempt": {"nothing": "because"}}))
    names = [name for name, _ in suite(type("Fine", (base,), {"exempt": {"declaration": "because"}}))]
    assert "declaration" not in names


class Square(torch.autograd.Function):
    """A square by hand without a tangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return 2 * x * upstream


def test_a_tangent_may_be_missing_where_torch_lacks_it():
    def run(x):
        return Square.apply(x).sum()

    inputs = [torch.tensor([1.0, -3.0], dtype=torch.float64)]
    derivatives_agree(run, inputs, lacks=lambda error: "jvp" in str(error))
    for lacks in ({}, {"lacks": lambda error: False}):
        with pytest.raises(RuntimeError, match="jvp"):
            derivatives_agree(run, inputs, **lacks)
