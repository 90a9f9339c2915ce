"""Conformance of an optimizer: it converges, resumes, keeps state and types, and survives what a training gives it."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from ..core.unscaling import Unscaling
from ._constructor import seed_torch
from ._steps import (
    Builder,
    Closure,
    Member,
    averaged,
    copied,
    layered,
    member_of,
    no_warnings,
    on_one_rank,
    on_two_ranks,
    problem,
    same_bits,
    scaler,
    snapshot,
    steps,
    through_a_file,
    trained,
    without_decay,
)
from ._suite import Bound, bound, run_all

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
NEAR = 3e-2
"""How near to a minimum optax asks an optimizer to come."""
SWITCHES = ("foreach", "fused", "maximize", "capturable", "differentiable")
"""Options that torch's optimizers were given later; each is off, or left to the optimizer, by default."""
AVERAGED = 1e-9
"""Relative error allowed in float64 where two ranks average what one rank sums."""
LAID_OUT = 1e-9
"""The same where another layout of the weights adds up in another order."""


def check_declaration(member: Member) -> None:
    """A name, a docstring with an example, builders to check; parameters or groups come first."""
    cls: Any = member.cls
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    assert len(member.places()) > 0, "builders"
    assert issubclass(cls, Optimizer), "an optimizer of torch"


def parabola(p: Tensor) -> tuple[Tensor, Tensor]:
    """Optax's: value and gradient of |p - (1, -1, 1)|^2."""
    away = p - p.new_tensor([1.0, -1.0, 1.0])
    return away.square().sum(), 2 * away


def rosenbrock(p: Tensor) -> tuple[Tensor, Tensor]:
    """Optax's: value and gradient of (1 - x)^2 + 100 (y - x^2)^2."""
    x, y = p.tolist()
    curve = y - x * x
    return (
        p.new_tensor((1 - x) ** 2 + 100 * curve**2),
        p.new_tensor([-2 * (1 - x) - 400 * x * curve, 200 * curve]),
    )


TARGETS: tuple[tuple[Callable[[Tensor], tuple[Tensor, Tensor]], list[float], list[float]], ...] = (
    (parabola, [-1.0, 10.0, 1.0], [1.0, -1.0, 1.0]),
    (rosenbrock, [0.0, 0.0], [1.0, 1.0]),
)


def check_convergence(member: Member) -> None:
    """At one of two rates it takes optax's targets to a fifth of their value within 1,500 steps."""
    _converges(member, lambda p, value, start, minimum: value <= 0.2 * start, 1500)


def check_minimum(member: Member) -> None:
    """At one of three rates it comes within 0.03 of the minima of optax's targets in 20,000 steps, as optax asks."""
    _converges(
        member, lambda p, value, start, minimum: float((p - minimum).abs().max()) <= NEAR, 20_000, (1.0, 0.1, 0.01)
    )


Arrived = Callable[[Tensor, float, float, Tensor], bool]


def _converges(member: Member, arrived: Arrived, most: int, factors: Sequence[float] = (1.0, 0.1)) -> None:
    for target, start, minimum in TARGETS:
        for place in member.places():
            assert any(
                _arrives(member.over, place, target, start, torch.tensor(minimum).double(), factor, arrived, most)
                for factor in factors
            ), f"{target.__name__}, setting {place}: no rate arrives within {most} steps"


def _arrives(
    over: Callable[[int, Any], Optimizer],
    place: int,
    target: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: list[float],
    minimum: Tensor,
    factor: float,
    arrived: Arrived,
    most: int,
) -> bool:
    p = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = without_decay(over(place, [p]))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    first = float(target(p.detach())[0])

    def closure() -> Tensor:
        with torch.no_grad():
            value, p.grad = target(p)
        return value

    for number in range(most):
        try:
            value = float(optimizer.step(closure))  # type: ignore[arg-type]
        except OverflowError:
            return False
        if number % 20 == 0 and arrived(p.detach(), value, first, minimum):
            return True
        if not value < 1e6:
            return False
    return False


def check_closure(member: Member) -> None:
    """It is run once a pass, with gradients on, also inside ``no_grad``; the loss of the first pass comes back."""
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        wanted = float(closure.loss().detach())
        before = snapshot(model)
        with torch.no_grad():
            loss = optimizer.step(closure)
        assert float(loss) == wanted, "not the loss of the first pass"
        assert closure.runs == (2 if member.two_passes else 1), f"the closure ran {closure.runs} times"
        assert any(not torch.equal(a, b) for a, b in zip(before, snapshot(model))), "nothing moved"


def check_without_closure(member: Member) -> None:
    """``step()`` after backward is ``step(closure)``, bit for bit; so are two passes around ``first_step``.

    Where the loss counts it is ``step(loss=loss)``: neither is refused, and both.
    """
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        twin, again, plain = copied(member, place)
        for _ in range(3):
            optimizer.step(closure)
            if member.two_passes or member.loss_aware:
                again()
                assert not _steps_alone(plain), "step() without a closure was not refused"
            if member.loss_aware:
                assert not _steps_alone(plain, closure=again, loss=torch.ones(())), "closure and loss were not refused"
            if member.two_passes:
                plain.first_step(zero_grad=True)
                again()
                plain.second_step(zero_grad=True)
            else:
                member.stepping(plain, again)
        same_bits(snapshot(model), snapshot(twin), "without a closure")


def _steps_alone(optimizer: Any, **arguments: Any) -> bool:
    try:
        optimizer.step(**arguments)
    except TypeError as error:
        assert "closure: expected " in str(error), f"not the uniform error but {error}"
        return False
    return True


def check_foreach(member: Member) -> None:
    """Operations on lists of tensors do what a loop does, bit for bit."""
    for place in member.places():
        results = []
        for foreach in (True, False):
            model, closure, optimizer = copied(member, place)
            if not all("foreach" in group for group in optimizer.param_groups):
                break
            for group in optimizer.param_groups:
                group["foreach"] = foreach
            seed_torch(2)
            steps(optimizer, closure, 4)
            results.append(snapshot(model, optimizer))
        if results:
            same_bits(results[0], results[1], "foreach and a loop")


def check_resume(member: Member) -> None:
    """Saved and loaded in a file in mid-run, or before the first step, it goes on with the same bits."""
    for place in member.places():
        for done in (0, 3):
            model, closure, optimizer = copied(member, place)
            seed_torch(3)
            steps(optimizer, closure, done)
            state = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            twin, again, fresh = copied(member, place)
            for group in fresh.param_groups:
                group["lr"] = 9.0
            twin.load_state_dict(state["model"])
            fresh.load_state_dict(state["optimizer"])
            results = []
            for own, run, network in ((optimizer, closure, model), (fresh, again, twin)):
                seed_torch(4)
                results.append((steps(own, run, 3), snapshot(network, own)))
            assert results[0][0] == results[1][0], f"loaded after {done} steps: other losses"
            same_bits(results[0][1], results[1][1], f"loaded after {done} steps")


def check_older_state(member: Member) -> None:
    """What was saved before switches of how a step is computed were there loads, and goes on with the same bits."""
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        seed_torch(3)
        steps(optimizer, closure, 2)
        state = copy.deepcopy(optimizer.state_dict())
        for group in state["param_groups"]:
            for switch in SWITCHES:
                group.pop(switch, None)
        twin, again, fresh = copied(member, place)
        twin.load_state_dict(model.state_dict())
        fresh.load_state_dict(state)
        for group, loaded in zip(optimizer.param_groups, fresh.param_groups):
            assert group.keys() == loaded.keys(), f"options {sorted(loaded)} after loading, {sorted(group)} before"
        for own, run in ((optimizer, closure), (fresh, again)):
            seed_torch(4)
            steps(own, run, 2)
        same_bits(snapshot(model, optimizer), snapshot(twin, fresh), "a state without switches")


def check_state(member: Member) -> None:
    """Each key of ``.state`` is a parameter, each value a dict of tensors and numbers, of types that stay."""
    for place in member.places():
        for dtype in DTYPES:
            model, forward = problem(dtype)
            optimizer = member.over(place, trained(model))
            closure = Closure(forward, trained(model))
            kinds = []
            for _ in range(2):
                steps(optimizer, closure, 2)
                known = {id(p) for group in optimizer.param_groups for p in group["params"]}
                for parameter, values in optimizer.state.items():
                    assert id(parameter) in known, "a key of .state is no parameter"
                    assert isinstance(values, dict), "a value of .state is no dict"
                    for name, value in values.items():
                        assert isinstance(name, str), f"state: {name!r}"
                        assert value is None or isinstance(value, (Tensor, int, float)), f"state: {name} is {value!r}"
                kinds.append([(t.dtype, t.shape) for t in snapshot(optimizer)])
            assert kinds[0] == kinds[1], f"state in {dtype} changes its types"


def check_dtypes(member: Member) -> None:
    """Parameters keep their type, stay finite and go down, in three types; a half step is the exact one, rounded."""
    for place in member.places():
        for dtype in DTYPES:
            model, forward = problem(dtype)
            optimizer = member.over(place, trained(model))
            losses = steps(optimizer, Closure(forward, trained(model)), 30)
            assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in model.parameters()), f"{dtype}"
            assert losses[-1] < losses[0], f"{dtype}: the loss does not go down"
        half, exact = (_first_step(member, place, dtype) for dtype in (torch.bfloat16, torch.float64))
        for p, q, before in zip(half, exact, _numbers()):
            allowed = ROUNDED * torch.finfo(torch.bfloat16).eps * (before.abs() + (q - before).abs())
            assert bool(((p.double() - q).abs() <= allowed).all()), "a step in bfloat16 is not the exact one, rounded"


ROUNDED = 8
"""Roundings that a step in half precision may add up."""


def _numbers(seed: int = 0) -> list[Tensor]:
    """Two vectors that are exact in half precision; one longer than what a processor takes at once."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).bfloat16().double() for size in (100, 3)]


def _first_step(member: Member, place: int, dtype: torch.dtype) -> list[Tensor]:
    """Vectors after a step along slopes that are the same in each type."""
    params: list[Tensor] = [nn.Parameter(own.to(dtype)) for own in _numbers()]
    pairs = list(zip(params, _numbers(1)))
    optimizer: Any = member.over(place, params)
    seed_torch(3)
    optimizer.step(Closure(lambda: 1_000 + torch.stack([(p.double() * g).sum() for p, g in pairs]).sum(), params))
    return [p.detach() for p in params]


def check_layouts(member: Member) -> None:
    """Weights with gaps between their numbers, turned or in another order than their gradient step as others do.

    Numbers in the gaps stay as they are: whoever owns a view owns no more. A loop takes them bit for bit as lists do.
    """
    for place in member.places():
        kinds = [_layouts(gaps=False), _layouts(gaps=True), _layouts(gaps=True)]
        model, twin, third = (trained(own) for own, _, _ in kinds)
        assert not all(p.is_contiguous() for p in twin)
        for params, (_, forward, gaps), foreach in zip((model, twin, third), kinds, (True, True, False)):
            optimizer = member.over(place, params)
            for group in optimizer.param_groups:
                if "foreach" in group:
                    group["foreach"] = foreach
            seed_torch(2)
            steps(optimizer, Closure(forward, params), 4)
            assert bool((gaps == 7.0).all()), "numbers between those of a weight were written over"
        for a, p, q in zip(model, twin, third):
            torch.testing.assert_close(p.detach(), a.detach(), rtol=LAID_OUT, atol=LAID_OUT)
            assert torch.equal(p, q), "foreach and a loop differ where weights lie otherwise in memory"


def _layouts(gaps: bool) -> tuple[nn.Module, Callable[[], Tensor], Tensor]:
    """A small network in float64 and the loss of a batch; with gaps in its weights, also what lies in them."""
    seed_torch(0)
    convolution, linear, last = nn.Conv2d(2, 3, 2), nn.Linear(12, 4), nn.Linear(4, 2)
    model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), linear, nn.Tanh(), last).double()
    x, y = torch.randn(6, 2, 3, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    store = torch.full((4, 12, 2), 7.0, dtype=torch.float64)
    if gaps:
        store[..., 0] = linear.weight.detach()
        linear.weight = nn.Parameter(store[..., 0])
        last.weight = nn.Parameter(last.weight.detach().t().contiguous().t())
        convolution.weight = nn.Parameter(convolution.weight.detach().contiguous(memory_format=torch.channels_last))

    def forward() -> Tensor:
        return nn.functional.mse_loss(model(x), y)

    return model, forward, store[..., 1]


def check_groups(member: Member) -> None:
    """Each group has its own rate and decay; a rate of 0 moves nothing; a group can be added."""
    for place in member.places():
        model, closure, optimizer = copied(member, place, [{"lr": 0.0}, {}])
        without_decay(optimizer)
        assert optimizer.param_groups[0]["lr"] == 0.0, "the rate of a group is lost"
        before = snapshot(trained(model))
        optimizer.step(closure)
        for i, (a, p) in enumerate(zip(before, trained(model))):
            assert torch.equal(a, p) == (i % 2 == 0), "a group with a rate of 0 moved, or the other did not"
        if all("weight_decay" in group for group in optimizer.param_groups):
            ends = []
            for decay in (0.0, 0.3):
                model, closure, optimizer = copied(member, place, [{}, {}])
                without_decay(optimizer).param_groups[1]["weight_decay"] = decay
                optimizer.step(closure)
                ends.append(snapshot(trained(model)))
            for i, (a, b) in enumerate(zip(*ends)):
                assert torch.equal(a, b) == (i % 2 == 0), "decay of one group reaches another, or none"
        model, closure, optimizer = copied(member, place)
        added = nn.Parameter(torch.ones(3))
        optimizer.add_param_group({"params": [added]})
        assert len(optimizer.param_groups) == 2, "no group was added"
        forward, closure.parameters = closure.forward, [*closure.parameters, added]
        closure.forward = lambda forward=forward, added=added: (
            forward() + (added - added.new_tensor([3.0, -1.0, 0.5])).square().sum()
        )
        steps(optimizer, closure, 2)
        assert not torch.equal(added.detach(), torch.ones(3)), "the added group does not move"


def check_schedule(member: Member) -> None:
    """What a schedule sets is the rate of the next step, also after its state was loaded."""
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        without_decay(optimizer)
        rate = optimizer.param_groups[0]["lr"]
        schedule = LinearLR(optimizer, start_factor=1e-8, end_factor=1.0, total_iters=2)
        before = snapshot(model)
        optimizer.step(closure)
        first = max(float((a - b).abs().max()) for a, b in zip(before, snapshot(model)))
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        schedule.step()
        schedule.step()
        before = snapshot(model)
        optimizer.step(closure)
        later = max(float((a - b).abs().max()) for a, b in zip(before, snapshot(model)))
        assert abs(optimizer.param_groups[0]["lr"] - rate) <= 1e-6 * rate, "the schedule does not reach the groups"
        assert later > 100 * first, "the step does not use the rate that the schedule set"


def check_no_gradient(member: Member) -> None:
    """Parameters without a gradient stay as they are; so do all of them where the loss reaches none."""
    for place in member.places():
        model, forward = problem()
        alone = nn.Parameter(torch.ones(2))
        parameters = [alone, *trained(model)]
        optimizer = member.over(place, parameters)
        steps(optimizer, Closure(forward, parameters), 2)
        assert torch.equal(alone.detach(), torch.ones(2)), "a parameter without a gradient moved"
        unreached = nn.Parameter(torch.ones(2))
        optimizer = member.over(place, [unreached])
        closure: Any = Closure(lambda: torch.ones((), requires_grad=True) * 2, [unreached])
        optimizer.step(closure)
        assert torch.equal(unreached.detach(), torch.ones(2)), "nothing had a gradient, and something moved"


def check_zero_gradient(member: Member) -> None:
    """A gradient of zeros moves nothing, in every type, from the first step on; no NaN."""
    for place in member.places():
        for dtype in (*DTYPES, torch.float16):
            p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype))
            optimizer: Any = without_decay(member.over(place, [p]))
            for _ in range(3):
                optimizer.step(Closure(lambda p=p: (p * p * 0).sum(), [p]))
                assert not getattr(optimizer, "skipped", 0), f"{dtype}: a step along 0 counts as an overflow"
            assert torch.equal(p.detach(), torch.tensor([1.0, -2.0], dtype=dtype)), f"{dtype}: moved to {p.tolist()}"


def _handled_or_refused(member: Member, what: str, make: Callable[[], tuple[list[Tensor], Closure]]) -> None:
    for place in member.places():
        parameters, closure = make()
        optimizer = member.over(place, parameters)
        before = [p.detach().clone() for p in parameters]
        try:
            optimizer.step(closure)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError) as error:
            assert what in str(error) or "dense" in str(error), f"{what} gradients: {error}"
            assert all(torch.equal(a, p) for a, p in zip(before, parameters)), f"{what}: refused, and something moved"
            continue
        assert any(not torch.equal(a, p) for a, p in zip(before, parameters)), f"{what}: taken, and nothing moved"
        assert all(bool(torch.view_as_real(p).isfinite().all()) for p in parameters if p.is_complex()), f"{what}: NaN"


def check_sparse(member: Member) -> None:
    """Sparse gradients are handled, or refused by name."""

    def table() -> tuple[list[Tensor], Closure]:
        seed_torch(0)
        rows = nn.Embedding(6, 3, sparse=True)
        return trained(rows), Closure(lambda: rows(torch.tensor([1, 1, 4])).square().sum(), trained(rows))

    _handled_or_refused(member, "sparse", table)


def check_complex(member: Member) -> None:
    """Complex parameters are handled, or refused by name."""

    def numbers() -> tuple[list[Tensor], Closure]:
        seed_torch(0)
        w = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        return [w], Closure(lambda: (w - 1).abs().square().sum(), [w])

    _handled_or_refused(member, "complex", numbers)


def check_maximize(member: Member) -> None:
    """Going up is going down the negative, bit for bit."""
    for place in member.places():
        results = []
        for up in (True, False):
            model, closure, optimizer = copied(member, place)
            if not all("maximize" in group for group in optimizer.param_groups):
                break
            for group in optimizer.param_groups:
                group["maximize"] = up
            forward = closure.forward
            closure.forward = forward if up else lambda forward=forward: -forward()
            seed_torch(2)
            steps(optimizer, closure, 3)
            results.append(snapshot(model))
        if results:
            same_bits(results[0], results[1], "maximize")


def check_scaler(member: Member) -> None:
    """Steps of a gradient scaler are those without; after an overflow nothing has changed, and the scale falls."""
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        twin, again, plain = copied(member, place)
        scaling = scaler()
        again.scale = 1024.0
        for _ in range(3):
            seed_torch(2)
            optimizer.step(closure)
            seed_torch(2)
            if member.two_passes:
                plain.step(again, scaler=scaling)
            else:
                member.stepping(plain, again, scaling)
            scaling.update()
        same_bits(snapshot(model), snapshot(twin), "a scaled step")
        for run in (1, 2) if member.two_passes else (1,):
            again.runs, again.broken = 0, run
            before = snapshot(twin, plain)
            if member.two_passes:
                plain.step(again, scaler=scaling)
            else:
                member.stepping(plain, again, scaling)
            same_bits(before, snapshot(twin, plain), f"an overflow in pass {run}")
            scale = scaling.get_scale()
            scaling.update()
            assert scaling.get_scale() == scale / 2, "the scaler does not learn of an overflow"
            again.scale = scaling.get_scale()


def check_scaled_closure(member: Member) -> None:
    """``scaler.step(optimizer, closure)``: gradients are divided by the scale in every pass."""
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        twin, again, scaled = copied(member, place)
        scaling = scaler()
        again.scale = 1024.0
        for _ in range(2):
            seed_torch(2)
            optimizer.step(closure)
            again()
            seed_torch(2)
            scaling.step(scaled, again)
            scaling.update()
        same_bits(snapshot(model), snapshot(twin), "a scaled closure")
        for run in (1, 2) if member.two_passes else (1,):
            again()
            again.runs, again.broken = 0, run
            before = snapshot(twin, scaled)
            scaling.step(scaled, again)
            same_bits(before, snapshot(twin, scaled), f"an overflow in run {run}")
            scaling.update()
            again.broken, again.scale = 0, scaling.get_scale()
        again()
        scaling.unscale_(scaled)
        before = snapshot(twin, scaled)
        try:
            scaling.step(scaled, again)
        except ValueError as error:
            assert "closure: expected " in str(error), f"not the uniform error but {error}"
        else:
            raise AssertionError("a closure after unscale_, which would make scaled gradients anew, was not refused")
        same_bits(before, snapshot(twin, scaled), "refused")


def check_accumulation(member: Member) -> None:
    """Gradients that are accumulated over the halves of a batch make the step of the whole, up to rounding."""
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        twin, again, halved = copied(member, place)
        forward = again.forward
        again.forward = lambda forward=forward: sum(forward() / 2 for _ in range(2))
        optimizer.step(closure)
        halved.step(again)
        for a, b in zip(snapshot(model), snapshot(twin)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def check_exception(member: Member) -> None:
    """Whatever run of the closure raises: weights, state and buffers are then what they were before that pass."""
    for place in member.places():
        for run in (1, 2) if member.two_passes else (1,):
            model, forward = layered()
            optimizer: Any = member.over(place, trained(model))
            steps(optimizer, Closure(forward, trained(model)), 1)
            before = snapshot(trained(model), optimizer)
            try:
                optimizer.step(Closure(forward, trained(model), fails=run))
            except RuntimeError as error:
                assert "the closure fails" in str(error), f"another error: {error}"
            else:
                raise AssertionError("the closure's exception is lost")
            same_bits(before, snapshot(trained(model), optimizer), f"an exception in pass {run}")
            steps(optimizer, Closure(forward, trained(model)), 1)


def check_copies(member: Member) -> None:
    """A copy and an unpickled one have the state and the groups."""
    for place in member.places():
        _, closure, optimizer = copied(member, place)
        steps(optimizer, closure, 2)
        for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            same_bits(snapshot(optimizer), snapshot(twin), "a copy")
            assert len(twin.param_groups) == len(optimizer.param_groups)
            assert twin.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def check_bad_input(member: Member) -> None:
    """No parameters are refused; so is a rate below 0, where the constructor takes one."""
    for place in member.places():
        try:
            member.over(place, [])
        except (ValueError, TypeError):
            continue
        raise AssertionError("no parameters were not refused")
    if "lr" in inspect.signature(member.cls.__init__).parameters:
        try:
            build: Any = member.cls
            build([nn.Parameter(torch.ones(2))], lr=-0.1)
        except ValueError:
            return
        raise AssertionError("a rate below 0 was not refused")


def check_compile(member: Member) -> None:
    """A compiled model trains as the model does."""
    for place in member.places():
        ends = []
        for compiled in (False, True):
            torch.compiler.reset()
            model, _ = problem(torch.float64)
            run: Any = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
            x, y = torch.randn(12, 4).double(), torch.randn(12, 2).double()
            optimizer = member.over(place, trained(model))
            forward = lambda run=run, x=x, y=y: nn.functional.mse_loss(run(x), y)  # noqa: E731
            seed_torch(2)
            with no_warnings():
                steps(optimizer, Closure(forward, trained(model)), 3)
            ends.append(snapshot(model))
        for a, b in zip(*ends):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def check_ranks(member: Member) -> None:
    """Two ranks of gloo that average gradients end where one rank ends with the whole batch, compiled or not."""
    first, second = on_two_ranks(averaged, member.cls)
    wanted = [on_one_rank(member, place) for place in member.places() for _ in range(1 if place else 2)]
    for one, two, alone in zip(first, second, wanted):
        same_bits(one, two, "two ranks")
        for a, b in zip(one, alone):
            torch.testing.assert_close(a, b, rtol=AVERAGED, atol=AVERAGED)


COMMON: tuple[Callable[[Member], None], ...] = (
    check_declaration, check_convergence, check_closure, check_without_closure, check_foreach, check_resume,
    check_older_state, check_state, check_dtypes, check_layouts, check_groups, check_schedule, check_no_gradient,
    check_zero_gradient, check_sparse, check_complex, check_maximize, check_scaler, check_accumulation,
    check_exception, check_copies, check_bad_input, check_minimum, check_compile, check_ranks,
)  # fmt: skip
OURS = (*COMMON, check_scaled_closure)
"""Of an optimizer that divides gradients by the scale of who scaled them; torch's own steps by scaled ones."""
SLOW = ("minimum", "compile", "ranks")
"""Checks whose time is that of many steps, of tracing and of processes."""


def optimizer_checks(
    cls: type[Optimizer], builders: Sequence[Builder] | None = None, exempt: dict[str, str] | None = None
) -> Bound:
    """``(name, check)`` for every check that ``cls`` is not exempt from.

    Args:
        cls: a class of optimizer.
        builders: each builds one of a setting over parameters or groups; by default the class's own.
        exempt: names of checks that don't apply, each with its reason; by default the class's own.
    """
    return bound(OURS if issubclass(cls, Unscaling) else COMMON, member_of(cls, builders, exempt))


def check_optimizer(
    cls: type[Optimizer], builders: Sequence[Builder] | None = None, exempt: dict[str, str] | None = None
) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(optimizer_checks(cls, builders, exempt), cls)
