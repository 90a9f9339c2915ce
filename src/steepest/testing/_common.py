"""What the checks of an objective share: its own samples, values on private copies, comparisons."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.objective import Objective
from ._constructor import given_arguments, seed_torch

Args = tuple[Tensor, ...]
Case = tuple[Objective, tuple[Args, dict[str, Any]]]
HALF_ROUNDING = 1e-5
"""Relative error allowed to float32 arithmetic on inputs that were rounded beforehand."""
EACH_DIRECTION = 40
"""Up to so many values a gradient is checked in each direction by itself."""


def private(member: Any) -> Any:
    """A copy whose forward pass moves no state of the original; what holds no state shares its tensors."""
    return copy.deepcopy(member) if member.stateful else copy.copy(member)


def cases(cls: type[Objective], dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu") -> list[Case]:
    """Fresh instances with the inputs that the member itself supplies; the same for the same seed."""
    seed_torch(seed)
    samples: list[Case] = list(cls.samples(torch.Generator().manual_seed(seed), dtype, device))
    assert samples, f"{cls.__name__}.samples() gave nothing"
    return samples


def value(objective: Objective, args: Args, kwargs: dict[str, Any]) -> Tensor:
    """The loss on a private copy, so that no state moves."""
    loss: Tensor = private(objective)(*args, **kwargs)
    return loss


def gradient(objective: Objective, args: Args, kwargs: dict[str, Any]) -> Tensor:
    """The gradient of the (summed) loss in the outputs, on a private copy."""
    outputs = args[0].detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(objective, (outputs, *args[1:]), kwargs).sum(), outputs)
    return slope


def with_reduction(objective: Objective, reduction: str) -> Objective:
    """A copy that reduces otherwise."""
    twin = copy.deepcopy(objective)
    twin.reduction = reduction
    return twin


def gradients_hold(run: Callable[..., Tensor], inputs: tuple[Tensor, ...], **tolerances: Any) -> None:
    """Gradients agree with finite differences: in each direction of few values, in random ones of many."""
    many = sum(t.numel() for t in inputs) > EACH_DIRECTION
    assert torch.autograd.gradcheck(run, inputs, fast_mode=many, **tolerances), "gradcheck"


def close(result: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Assert agreement relative to the size of what was wanted."""
    result, wanted = result.detach().double(), wanted.detach().double()
    error = (result - wanted).abs().max().item() if result.numel() else 0.0
    size = max(1.0, wanted.abs().max().item() if wanted.numel() else 0.0)
    assert error <= tolerance * size, f"{what}: differs by {error:.3g} where {size:.3g} is the size"


def keeps_nan(run: Callable[[Tensor], Tensor], values: Tensor, slope: Tensor) -> None:
    """Assert that NaN in place of the value of the largest slope gives NaN, or is refused."""
    changed = values.detach().clone()
    changed.view(-1)[slope.abs().argmax()] = math.nan
    try:
        result = run(changed)
    except (ValueError, RuntimeError):  # a LinAlgError is a RuntimeError
        return
    assert result.isnan().any(), f"NaN gives {result.detach()}"


def by_rows(cls: type[Objective], args: Args, kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> Any:
    """The arguments with all that has a row for each sample changed; views of embeddings have them second."""
    rows = args[1].shape[0]
    views = cls.domain == "embedding" and args[0].ndim == 3
    outputs = change(args[0].transpose(0, 1)).transpose(0, 1) if views else change(args[0])
    named = {k: change(t) if isinstance(t, Tensor) and t.ndim and t.shape[0] == rows else t for k, t in kwargs.items()}
    return (outputs, *map(change, args[1:])), named


def rebuilds(cls: Any, make: Callable[[], object] | None = None) -> list[Callable[..., Any]]:
    """How each instance of ``samples()``, or of ``make()``, was constructed, to be repeated with some changes."""

    def again(given: dict[str, Any]) -> Callable[..., Any]:
        return lambda **changes: cls(**{**given, **changes})

    return [again(given) for given in given_arguments(cls, make or (lambda: cases(cls)))]


def refused(what: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Assert that a call raises the uniform error."""
    try:
        call(*args, **kwargs)
    except (ValueError, TypeError) as error:
        assert ": expected " in str(error), f"{what}: not the uniform error but {error}"
    else:
        raise AssertionError(f"{what} was not refused")


def wrong_arguments(cls: type[Objective], args: Args) -> list[tuple[str, tuple[Any, ...]]]:
    """Outputs and targets that no loss may take, made from a valid pair."""
    outputs, target = args[0], args[1]
    wrong: list[tuple[str, tuple[Any, ...]]] = [
        ("a list for outputs", (outputs.tolist(), target)),
        ("a list for target", (outputs, target.tolist())),
        ("integer outputs", (outputs.long(), target)),
        ("a target too short", (outputs, target[:-1])),
        ("outputs with one more dimension", (outputs.unsqueeze(0), target)),
    ]
    classes = "index" in cls.targets and cls.domain != "embedding"
    if classes and not target.is_floating_point() and outputs.device.type == "cpu":
        out_of_range = target.clone()
        out_of_range[0] = 99
        wrong.append(("a label out of range", (outputs, out_of_range)))
        if outputs.ndim == 2:
            wrong.append(("one class", (outputs[:, :1], torch.zeros_like(target))))
    if cls.domain in ("probabilities", "log_probabilities"):
        wrong.append(("outputs outside their domain", (outputs.abs() + 2, target)))
    return wrong


def wrong_weights(rows: int) -> list[tuple[str, Any]]:
    """Sample weights that no loss may take."""
    right = torch.ones(rows)
    negative = right.clone()
    negative[0] = -1.0
    return [
        ("weight [N, 1]", right.unsqueeze(1)),
        ("weight [1, N]", right.unsqueeze(0)),
        ("a weight too short", right[:-1]),
        ("one weight for all", torch.tensor(2.0)),
        ("a number for weight", 2.0),
        ("a list for weight", right.tolist()),
        ("integer weights", right.long()),
        ("a negative weight", negative),
    ]
