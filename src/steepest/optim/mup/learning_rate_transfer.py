"""Does the best learning rate of a narrow network suit a wide one? Sharpness over widths, and a study that shows it.

Networks in the maximal-update parametrization come from :func:`steepest.optim.mup.parametrize`, or, without biases and
for any scaling, from :func:`steepest.optim.mup.abc_mlp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_number, check_tensor, refuse, values_visible
from ...core.curvature import hessian_product, largest_eigenpair
from ...core.displaced import random_numbers, same_random_numbers, unrecorded
from ...core.reductions import widen
from ...core.undisturbed import same_random_states

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAIL = 0.1
"""The share of the steps, at the end, over which a training loss is averaged."""


def hessian_top_eigenvalue(
    loss_fn: Callable[[], Tensor],
    params: Sequence[Tensor],
    iters: int = 30,
    *,
    rates: Sequence[float] | None = None,
    tol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> tuple[float, list[Tensor]]:
    r"""The sharpness of a loss: the largest eigenvalue of its Hessian, and the direction in which it curves so.

    With rates it is that of :math:`R^{1/2} H R^{1/2}`, where R has the rate of each parameter: what gradient descent
    with those rates sees. It is stable along a direction as long as this is below 2. Rates relative to one base rate
    :math:`\eta_0` give the effective sharpness, which can be compared between widths; its threshold is
    :math:`2 / \eta_0`.

    It is found by Lanczos's method on products of Hessian and vector: of as many products as power iteration, and
    without a shift where the negative end of the spectrum is the larger one. ``iters`` vectors of the size of all
    parameters are kept, in float32 or wider. ``.grad`` and torch's random states stay as they are; running statistics
    that ``loss_fn`` writes don't.

    Args:
        loss_fn: the loss, a scalar, of a fixed batch; called once.
        params: tensors that need gradients.
        iters: products at most, >= 1.
        rates: one a parameter, >= 0; all 1 by default.
        tol: relative residual, >= 0, at which the search ends earlier; the error of the eigenvalue is about its square.
        generator: of the first direction, on the CPU; the same one every time by default.

    Returns:
        The eigenvalue, and its vector in the shapes of the parameters, of length 1 in all; NaN where the loss or its
        derivatives are not finite.

    Raises:
        TypeError: parameters that are not real numbers.
        ValueError: no parameters or frozen ones, more or fewer rates than parameters, a number outside its range, a
            loss that is no scalar.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> value, vector = hessian_top_eigenvalue(lambda: w[0] ** 2 - 5 * w[1] ** 2, [w])
        >>> round(value, 4), vector[0].abs()
        (2.0, tensor([1., 0.]))

    Source: Super Consistency of Neural Network Landscapes and Learning Rate Transfer, arXiv:2402.17457.
    """
    params = list(params)
    for p in params:
        check_tensor("params", p, floating=True)
    if not any(p.numel() for p in params):
        refuse("params", "one or more tensors with entries", params)
    if not all(p.requires_grad for p in params):
        refuse("params", "tensors that need gradients", [p.requires_grad for p in params])
    check_number("iters", iters, low=1, integer=True)
    check_number("tol", tol, low=0.0)
    if rates is not None and len(rates) != len(params):
        refuse("rates", f"{len(params)}, one a parameter", len(rates))
    for rate in rates or ():
        check_number("rates", rate, low=0.0)

    def checked() -> Tensor:
        value = loss_fn()
        check_tensor("loss_fn", value, ndim=0, floating=True)
        return value

    with same_random_numbers(random_numbers()):
        product = hessian_product(checked, params)
    first = generator or torch.Generator().manual_seed(0)
    start = torch.cat([torch.randn(p.shape, generator=first, dtype=torch.float64).flatten() for p in params])
    kind = torch.float32
    for p in params:
        kind = torch.promote_types(kind, p.dtype)
    start = start.to(params[0].device, kind)
    if rates is None:
        value, vector = largest_eigenpair(product, start, iters, tol)
    else:
        root = torch.cat([torch.full((p.numel(),), math.sqrt(r)) for p, r in zip(params, rates)]).to(start)
        value, vector = largest_eigenpair(lambda v: root * product(root * v), start, iters, tol)
    return value, [v.view_as(p).to(p) for v, p in zip(vector.split([p.numel() for p in params]), params)]


def sharpness_consistency(sharpness: F[Tensor, "widths ..."]) -> Tensor:
    r"""How far sharpness differs between widths: the standard deviation over widths of its logarithm, at each time.

    .. math:: s(t) = \operatorname{std}_{N} \log \lambda_N(t)

    0 where it is the same at every width: super consistency. 0.1 is about 10%.

    Args:
        sharpness: of each width, > 0, effective (see :func:`hessian_top_eigenvalue`), at one time or several.

    Raises:
        ValueError: fewer than two widths, a value that is not above 0.

    Example:
        >>> sharpness_consistency(torch.tensor([[2.0, 3.0], [2.0, 6.0]]))
        tensor([0.0000, 0.4901])

    Source: arXiv:2402.17457.
    """
    check_tensor("sharpness", sharpness, floating=True)
    if sharpness.dim() < 1 or len(sharpness) < 2:
        refuse("sharpness", "two or more widths", tuple(sharpness.shape))
    if values_visible(sharpness) and bool((sharpness <= 0).any()):
        refuse("sharpness", "values above 0", float(sharpness.min()))
    return widen(sharpness).log().std(0)


@dataclass(frozen=True)
class LearningRateTransfer:
    """What a study measured.

    Args:
        widths: rising.
        rates: base rates, rising.
        losses: mean over seeds, ``[widths, rates]``; inf where one of them became infinite.
        times: steps before which sharpness was measured.
        sharpness: effective, mean over seeds of its logarithm as a number again, ``[widths, rates, times]``; NaN after
            a loss became infinite.
    """

    widths: tuple[int, ...]
    rates: tuple[float, ...]
    losses: Tensor
    times: tuple[int, ...]
    sharpness: Tensor

    @property
    def best(self) -> tuple[float, ...]:
        """The best rate of each width: between those of the grid, where a parabola through the three losses around the
        least one has its own, by the logarithms of rates; at an end of the grid, or beside an infinite loss, of it. NaN
        where no loss is finite.
        """
        return tuple(_lowest(row, self.rates) for row in self.losses)

    @property
    def drift(self) -> float:
        """Of the best rate over widths: log2 of the largest over the smallest; NaN where a width has none."""
        best = self.best
        return math.nan if any(map(math.isnan, best)) else math.log2(max(best) / min(best))

    def regret(self, width: int) -> float:
        """How much more the loss is at this width with the best rate of the narrowest than with its own, of the grid;
        NaN where one of the two has none.

        Args:
            width: one of the widths.

        Raises:
            ValueError: another width.
        """
        if width not in self.widths:
            refuse("width", f"one of {', '.join(map(str, self.widths))}", width)
        row = self.losses[self.widths.index(width)]
        carried = self._best_place(0)
        return math.nan if carried is None else float(row[carried] - row.min())

    def _best_place(self, number: int) -> int | None:
        """That of the best rate of a width in the grid, if a loss is finite."""
        place = int(self.losses[number].argmin())
        return place if math.isfinite(float(self.losses[number, place])) else None

    @property
    def consistency(self) -> Tensor:
        """:func:`sharpness_consistency` at each rate and time, ``[rates, times]``; NaN where a width has no number."""
        whole = self.sharpness.isfinite().all(0) & (self.sharpness > 0).all(0)
        spread = sharpness_consistency(torch.where(whole, self.sharpness, 1.0))
        return torch.where(whole, spread, math.nan)

    def table(self) -> list[dict[str, Any]]:
        """A row a width and rate: the loss, whether this rate is the best of the grid, sharpness by time."""
        rows = []
        for i, width in enumerate(self.widths):
            for j, rate in enumerate(self.rates):
                row = {"width": width, "rate": rate, "loss": float(self.losses[i, j])}
                row["best"] = j == self._best_place(i)
                rows.append(row | {f"sharpness, step {t}": float(s) for t, s in zip(self.times, self.sharpness[i, j])})
        return rows

    def figure(self) -> Figure:
        """Loss over rate, a line a width, best rates dotted; sharpness over steps at the best rate of the narrowest."""
        from matplotlib.figure import Figure

        panels = 2 if self.times else 1
        drawn = Figure(figsize=(4.2 * panels + 0.8, 3.2), layout="constrained")
        axes = drawn.subplots(1, panels, squeeze=False)[0]
        column = self._best_place(0) or 0
        for number, width in enumerate(self.widths):
            colour, row = f"C{number}", self.losses[number]
            finite = row.isfinite().nonzero().flatten().tolist()
            rates = [self.rates[place] for place in finite]
            axes[0].plot(rates, row[finite].tolist(), color=colour, marker="osD^vP*X"[number % 8], label=str(width))
            axes[0].axvline(self.best[number], color=colour, linewidth=0.8, linestyle=":")
            if self.times:
                axes[1].plot(
                    self.times, self.sharpness[number, column].tolist(), color=colour, marker="o", markersize=4
                )
        axes[0].set_xlabel("base rate")
        axes[0].set_ylabel("loss")
        axes[0].set_xscale("log", base=2)
        axes[0].legend(title="width", fontsize=8, frameon=False)
        if self.times:
            axes[1].axhline(2 / self.rates[column], color="grey", linewidth=0.8, linestyle="--")
            axes[1].set_xlabel("step")
            axes[1].set_ylabel(f"effective sharpness at rate {self.rates[column]:g}")
            axes[1].set_yscale("log")
        for panel in axes:
            panel.spines[["right", "top"]].set_visible(False)
        return drawn


def _lowest(losses: Tensor, rates: Sequence[float]) -> float:
    place = int(losses.argmin())
    if not math.isfinite(float(losses[place])):
        return math.nan
    if not 0 < place < len(rates) - 1 or not bool(losses[place - 1 : place + 2].isfinite().all()):
        return rates[place]
    left, middle, right = (math.log(rate) for rate in rates[place - 1 : place + 2])
    low, least, high = losses[place - 1 : place + 2].tolist()
    up, down = (high - least) / (right - middle), (low - least) / (middle - left)
    curve = (up + down) / (right - left)
    if curve <= 0:
        return rates[place]
    slope = (up * (middle - left) - down * (right - middle)) / (right - left)
    return math.exp(min(max(middle - slope / (2 * curve), left), right))


class LearningRateTransferStudy:
    r"""Train networks of several widths at several rates; where is the best rate, and how sharp is the loss on the way?

    In maximal update the effective sharpness is almost the same at every width along training, so the best rate stays
    where it is. With the NTK parametrization the part of the Hessian that learns features shrinks with
    :math:`1 / \sqrt{N}`, so sharpness differs between widths. Every width starts at the same seeds. Random states come
    back as they were.

    Args:
        build: of a width and a base rate, a fresh network, drawn from torch's own generator, and its optimizer, whose
            groups have the scaled rates; one that runs the loss twice (SAM) does as well.
        loss: of a network and the number of a step, 0 first: the loss, a scalar, of that step's batch.
        widths: two or more, rising.
        rates: base rates > 0, one or more, rising.
        steps: of the optimizer, >= 1.
        score: what decides which rate is best, lower is better, of the trained network; by default the mean training
            loss of the last tenth of the steps.
        seeds: of torch's own generator, a network each.
        sharpness_at: steps before which effective sharpness is measured, 0 to ``steps``, without a trace in the
            training. It is that of gradient descent with the rates of the optimizer's groups; what momentum or Adam
            make of a gradient is not in it.
        probe: the loss whose sharpness is measured, of a network; by default that of step 0's batch.
        iters: of :func:`hessian_top_eigenvalue`.

    Raises:
        ValueError: widths or rates that don't rise, a number outside its range.

    Example:
        >>> from steepest.optim.mup import parametrize
        >>> def network(n): return nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n), nn.Linear(n, 1))
        >>> def build(n, lr):
        ...     model = network(n)
        ...     return model, parametrize(model, network(16)).optimizer(torch.optim.SGD, lr)
        >>> x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        >>> def loss(model, step): return (model(x)[:, 0] - x[:, 0] * x[:, 1]).square().mean()
        >>> measured = LearningRateTransferStudy(build, loss, (16, 64), (0.01, 0.1, 10.0), 20).run()
        >>> [row["rate"] for row in measured.table() if row["best"]]
        [0.1, 0.1]

    Source: Super Consistency of Neural Network Landscapes and Learning Rate Transfer, arXiv:2402.17457.
    """

    def __init__(
        self,
        build: Callable[[int, float], tuple[nn.Module, torch.optim.Optimizer]],
        loss: Callable[[nn.Module, int], Tensor],
        widths: Sequence[int],
        rates: Sequence[float],
        steps: int,
        *,
        score: Callable[[nn.Module], float] | None = None,
        seeds: Sequence[int] = (0,),
        sharpness_at: Sequence[int] = (),
        probe: Callable[[nn.Module], Tensor] | None = None,
        iters: int = 30,
    ) -> None:
        widths, rates, seeds = tuple(widths), tuple(rates), tuple(seeds)
        if len(widths) < 2 or sorted(set(widths)) != list(widths):
            refuse("widths", "two or more, in rising order", widths)
        if not rates or sorted(set(rates)) != list(rates):
            refuse("rates", "one or more, in rising order", rates)
        for rate in rates:
            check_number("rates", rate, low=0.0, open_low=True)
        for name, number in (("steps", steps), ("iters", iters)):
            check_number(name, number, low=1, integer=True)
        if not seeds:
            refuse("seeds", "one or more", seeds)
        for time in sharpness_at:
            check_number("sharpness_at", time, low=0, high=steps, integer=True)
        self.build, self.loss, self.score, self.probe = build, loss, score, probe
        self.widths, self.rates, self.steps, self.seeds = widths, rates, steps, seeds
        self.times, self.iters = tuple(sorted(set(sharpness_at))), iters

    def run(self) -> LearningRateTransfer:
        """Train them all, one after the other; one whose loss is no longer finite ends there."""
        shape = (len(self.widths), len(self.rates), len(self.seeds))
        losses = torch.full(shape, math.inf, dtype=torch.float64)
        sharpness = torch.full((*shape, len(self.times)), math.nan, dtype=torch.float64)
        with same_random_states():
            for i, width in enumerate(self.widths):
                for j, rate in enumerate(self.rates):
                    for k, seed in enumerate(self.seeds):
                        torch.manual_seed(seed)
                        value, curve = self._trained(width, rate)
                        losses[i, j, k] = value
                        sharpness[i, j, k, : len(curve)] = torch.tensor(curve, dtype=torch.float64)
        return LearningRateTransfer(self.widths, self.rates, losses.mean(-1), self.times, sharpness.log().mean(2).exp())

    def _trained(self, width: int, rate: float) -> tuple[float, list[float]]:
        model, optimizer = self.build(width, rate)
        values: list[float] = []
        curve: list[float] = []
        for step in range(self.steps + 1):
            if step in self.times:
                curve.append(self._sharpness(model, optimizer, rate))
            if step == self.steps:
                break
            values.append(float(optimizer.step(partial(self._backward, model, optimizer, step))))
            if not math.isfinite(values[-1]):
                return math.inf, curve
        if self.score is not None:
            value = float(self.score(model))
        else:
            last = values[-max(1, round(TAIL * self.steps)) :]
            value = sum(last) / len(last)
        return (value if math.isfinite(value) else math.inf), curve

    def _backward(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Any:
        """The loss of a step, and its gradients."""
        optimizer.zero_grad()
        loss = self.loss(model, step)
        loss.backward()
        return loss.detach()

    def _sharpness(self, model: nn.Module, optimizer: torch.optim.Optimizer, rate: float) -> float:
        trained = [(p, group) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        rates = [float(group["lr"]) / rate for _, group in trained]
        probe = self.probe

        def loss() -> Tensor:
            return self.loss(model, 0) if probe is None else probe(model)

        with unrecorded([model]):
            value, _ = hessian_top_eigenvalue(loss, [p for p, _ in trained], self.iters, rates=rates)
        return value
