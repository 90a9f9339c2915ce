"""The coordinate check: how large activations are over widths after some steps, which tells a wrong scaling at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core.checks import check_flag, check_number, refuse
from ...core.undisturbed import same_random_states
from ._maximal_update import parametrize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CoordinateCheck:
    """Mean absolute values of the outputs of the layers.

    Args:
        widths: as they were asked for.
        layers: names of the modules.
        sizes: ``[widths, steps + 1, layers]``, before each step and after the last, means over seeds.
        changes: the same of the change since the start.
    """

    widths: tuple[int, ...]
    layers: tuple[str, ...]
    sizes: Tensor
    changes: Tensor

    def slopes(self, of: str = "sizes") -> dict[str, float]:
        """By layer the exponent of width in sizes (or "changes") after the last step; NaN where one is 0.

        In a right scaling none is above 0.
        """
        values = {"sizes": self.sizes, "changes": self.changes}[of][:, -1].double().log()
        place = torch.tensor(self.widths, dtype=torch.float64).log()
        place = place - place.mean()
        exponents = (place[:, None] * values).sum(0) / place.square().sum()
        return dict(zip(self.layers, exponents.tolist()))

    def figure(self) -> Figure:
        """A panel a step, a line a layer: size over width, both logarithmic."""
        from matplotlib.figure import Figure

        steps = self.sizes.shape[1]
        drawn = Figure(figsize=(2.1 * steps + 1.8, 2.8), layout="constrained")
        panels = drawn.subplots(1, steps, sharey=True, squeeze=False)[0]
        for step, axes in enumerate(panels):
            for number, layer in enumerate(self.layers):
                values = self.sizes[:, step, number].tolist()
                axes.plot(self.widths, values, marker="osD^vP*X"[number % 8], label=layer, linewidth=1.5, markersize=4)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_title(f"after {step} steps", fontsize=9)
            axes.set_xlabel("width")
            axes.spines[["right", "top"]].set_visible(False)
        panels[0].set_ylabel("mean absolute value")
        drawn.legend(*panels[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper")
        return drawn

    def write(self, path: str | Path) -> None:
        """The figure in a file, of the kind that its ending says.

        Raises:
            InputError: another ending than .svg, .png or .pdf, or no such folder.
        """
        from ...core.curves import check_figure

        check_figure(path)
        self.figure().savefig(path)


def coordinate_check(
    build: Callable[[int], nn.Module],
    widths: Sequence[int],
    inputs: Any,
    loss: Callable[[Any], Tensor],
    *,
    base: int | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 0.01,
    steps: int = 3,
    seeds: int = 3,
    maximal: bool = True,
) -> CoordinateCheck:
    """Sizes of activations over widths after some steps on one batch.

    In maximal update they stay about the same at every width; where a line rises with the width, a rate or a multiplier
    is wrong (sizes of the output layer fall at the start, where its weights are random, and level out). Random states
    come back as they were.

    Args:
        build: a fresh model of a width.
        widths: two or more, in rising order.
        inputs: of a model: a tensor, or a tuple of arguments.
        loss: of the model's outputs, a scalar.
        base: width of the base model; the first of the widths by default.
        optimizer: a class with a known rule, see :meth:`MaximalUpdate.optimizer`.
        lr: its rate at the base width.
        steps: of the optimizer.
        seeds: models a width.
        maximal: False checks the standard parametrization: the same rate for all.

    Raises:
        ValueError: fewer than two widths, fewer than one step or seed.

    Example:
        >>> def build(n): return nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 2))
        >>> x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        >>> check = coordinate_check(build, (32, 128, 512), x, lambda out: (out - 1).square().mean())
        >>> max(abs(slope) for slope in check.slopes("changes").values()) < 0.25
        True

    Source: Tensor Programs V, arXiv:2203.03466, Appendix D.1.
    """
    widths = tuple(widths)
    if len(widths) < 2 or sorted(set(widths)) != list(widths):
        refuse("widths", "two or more, in rising order", widths)
    check_number("steps", steps, low=1, integer=True)
    check_number("seeds", seeds, low=1, integer=True)
    check_flag("maximal", maximal)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    layers: tuple[str, ...] = ()
    sizes, changes = [], []
    with same_random_states():
        for width in widths:
            runs = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                model = build(width)
                if maximal:
                    stepper = parametrize(model, build(base or widths[0])).optimizer(optimizer, lr)
                else:
                    stepper = optimizer(model.parameters(), lr=lr)  # type: ignore[call-arg]
                layers, run = _run(model, stepper, arguments, loss, steps)
                runs.append(run)
            means = torch.tensor(runs, dtype=torch.float64).mean(0)
            sizes.append(means[0])
            changes.append(means[1])
    return CoordinateCheck(widths, layers, torch.stack(sizes), torch.stack(changes))


def _run(
    model: nn.Module,
    stepper: torch.optim.Optimizer,
    arguments: tuple[Any, ...],
    loss: Callable[[Any], Tensor],
    steps: int,
) -> tuple[tuple[str, ...], list[list[list[float]]]]:
    """Sizes and changes by step and layer."""
    now: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            if isinstance(first, Tensor) and first.is_floating_point():
                now[name] = first.detach().clone()

        return hook

    for name, module in model.named_modules():
        if not list(module.children()) and list(module.parameters(recurse=False)):
            module.register_forward_hook(keep(name or type(module).__name__))
    start: dict[str, Tensor] = {}
    sizes, changes = [], []
    for step in range(steps + 1):
        value = loss(model(*arguments))
        start = start or dict(now)
        sizes.append([float(now[name].abs().mean()) for name in start])
        changes.append([float((now[name] - start[name]).abs().mean()) for name in start])
        if not all(map(math.isfinite, sizes[-1])):
            refuse("lr", "a rate at which activations stay finite", stepper.param_groups[0]["lr"])
        if step < steps:
            stepper.zero_grad()
            value.backward()
            stepper.step()
    return tuple(start), [sizes, changes]
