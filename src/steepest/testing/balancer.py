"""Conformance of a balancer: losses of several tasks in, one loss with its graph out."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.balancer import Balancer
from ._common import refused
from ._constructor import constructor_checks, seed_torch
from ._suite import bound, run_all


def losses(call: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Three positive losses of different sizes, other ones at each call."""
    generator = torch.Generator().manual_seed(call)
    return ((0.2 + torch.rand(3, generator=generator)) * torch.tensor([1.0, 0.1, 20.0])).to(dtype)


def check_declaration(cls: type[Balancer]) -> None:
    """A name, a docstring with an example, instances of three tasks."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    assert cls.instances() and all(own.tasks == 3 for own in cls.instances()), "instances of three tasks"


def check_value(cls: type[Balancer]) -> None:
    """One finite number in float32 or wider, call after call; the losses are left as they were."""
    for balancer in cls.instances():
        seed_torch(0)
        for call in range(5):
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                given = losses(call, dtype)
                value = copy.deepcopy(balancer)(given)
                assert value.shape == () and bool(value.isfinite()), f"value {value}"
                assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), f"{value.dtype}"
                assert torch.equal(given, losses(call, dtype)), "the losses were changed"
            balancer(losses(call))


def check_gradient(cls: type[Balancer]) -> None:
    """Every loss and every parameter gets a finite gradient, a loss that is larger than 0 a positive one."""
    for balancer in cls.instances():
        for call in range(3):
            given = losses(call).requires_grad_()
            seed_torch(call)
            balancer(given).backward()
            assert given.grad is not None and bool((given.grad > 0).all()), f"gradients {given.grad}"
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in balancer.parameters()), (
                "parameters"
            )


def check_scalars(cls: type[Balancer]) -> None:
    """Several scalars do what one vector does."""
    for balancer in cls.instances():
        values = []
        for given in (losses(), list(losses())):
            seed_torch(0)
            values.append(copy.deepcopy(balancer)(given))
        assert torch.equal(*values), "scalars give another value"


def check_state(cls: type[Balancer]) -> None:
    """What is kept between calls goes through ``state_dict``, bit for bit; ``reset`` forgets it."""
    for place in range(len(cls.instances())):
        whole, again = (cls.instances()[place] for _ in range(2))
        seed_torch(0)
        first = [whole(losses(call)) for call in range(3)]
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
        for call in range(3, 6):
            values = []
            for twin in (whole, again):
                seed_torch(1)
                values.append(twin(losses(call)))
            assert torch.equal(*values), "loaded, another value"
        whole.reset()
        seed_torch(0)
        assert all(torch.equal(whole(losses(call)), value) for call, value in enumerate(first)), "reset, another value"


def check_bad_input(cls: type[Balancer]) -> None:
    """Another number of losses, other shapes, integers are refused; NaN stays visible."""
    for balancer in cls.instances():
        refused("two losses", balancer, losses()[:2])
        refused("no losses", balancer, [])
        refused("a matrix", balancer, losses().unsqueeze(0))
        refused("integers", balancer, losses().long())
        refused("numbers", balancer, losses().tolist())
        broken = losses()
        broken[1] = math.nan
        try:
            assert bool(copy.deepcopy(balancer)(broken).isnan()), "NaN is gone"
        except ValueError:
            continue


CHECKS: tuple[Callable[[type[Balancer]], None], ...] = (
    check_declaration, check_value, check_gradient, check_scalars, check_state, check_bad_input,
    *constructor_checks(lambda cls: cls.instances()),
)  # fmt: skip


def balancer_checks(cls: type[Balancer]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_balancer(cls: type[Balancer]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(balancer_checks(cls), cls)
