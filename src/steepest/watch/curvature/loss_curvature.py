"""The largest curvature of a loss beside what an optimizer's steps stand, and a probe that follows both in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_number, refuse
from ...core.displaced import length
from ...core.hessian import Hessian
from ...core.lanczos import eigenpairs
from ...core.probe import Moment, Probe, Reading, inner_module
from ...core.stability import stability_of, stability_threshold
from ...core.symmetric import Preconditioned, SymmetricOperator
from ...core.torch_private import tree_leaves

__all__ = [
    "CurvatureMonitor",
    "normalized_sharpness",
    "stability_threshold",
    "suggested_rate",
    "warmup_factor",
    "warmup_probe",
]


def normalized_sharpness(curvature: float, lr: float, momentum: float = 0.0, ema: bool = False) -> float:
    r"""The largest curvature as a share of what steps stand; above 1 they grow along its direction.

    .. math:: \rho = \frac{\lambda_1}{\lambda_{max}(\eta, \beta)}

    Multiplying the loss by c and dividing the rate by c leaves it as it is.

    Args:
        curvature: :math:`\lambda_1`, the largest eigenvalue of the Hessian; of :math:`P^{-1} H` where steps are divided
            by P, as Adam's are.
        lr, momentum, ema: as of :func:`stability_threshold`.

    Raises:
        TypeError, ValueError: no number, arguments outside their ranges.

    Example:
        >>> round(normalized_sharpness(19.0, lr=0.1, momentum=0.9), 6)
        0.5

    Source: A Loss Curvature Perspective on Training Instability in Deep Learning, arXiv:2110.04369.
    """
    check_number("curvature", curvature)
    return float(curvature) / stability_threshold(lr, momentum, ema)


def suggested_rate(curvature: float, momentum: float = 0.0, ema: bool = False, *, share: float = 1.0) -> float:
    """The rate at which a curvature is so large a share of what steps stand.

    Args:
        curvature: the largest eigenvalue of the Hessian, > 0.
        momentum, ema: as of :func:`stability_threshold`.
        share: the normalised sharpness that is wanted, > 0.

    Raises:
        TypeError, ValueError: no number, arguments outside their ranges.

    Example:
        >>> round(suggested_rate(38.0, momentum=0.9), 6)
        0.1

    Source: A Loss Curvature Perspective on Training Instability in Deep Learning, arXiv:2110.04369.
    """
    check_number("curvature", curvature, low=0.0, open_low=True)
    check_number("share", share, low=0.0, open_low=True)
    return share * stability_threshold(1.0, momentum, ema) / float(curvature)


def _sharpest(
    loss: Callable[[], Tensor],
    params: list[Tensor],
    diagonal: Iterable[Tensor] | None = None,
    *,
    steps: int = 40,
    tol: float = 1e-2,
    train_mode: str = "refuse",
) -> tuple[float, Tensor, list[Tensor]]:
    """The largest eigenvalue of the Hessian, or of what is left of it after division by a diagonal.

    Args:
        loss: gives the loss at the present weights.
        params: the weights.
        diagonal: by which steps are divided, in the shapes of the weights, > 0.
        steps: products at most.
        tol: the residual, as a share of the eigenvalue, at which the search ends.
        train_mode: as of :class:`~steepest.core.hessian.Hessian`.

    Returns:
        the eigenvalue, its vector ``[n]`` in the coordinates of the search, and the gradient.
    """
    hessian = Hessian(loss, params, train_mode=train_mode)
    operator: SymmetricOperator = hessian
    if diagonal is not None:
        operator = Preconditioned(hessian, list(diagonal))
    pairs = eigenpairs(operator, 1, "LA", tol=tol, steps=steps)
    return float(pairs.eigenvalues[0]), pairs.eigenvectors[0], list(hessian.gradient())


class CurvatureMonitor(Probe):
    r"""Follows the largest eigenvalue of the Hessian, and its share of what the optimizer's steps stand.

    .. math:: \rho_t = \frac{\lambda_1}{\lambda_{max}(\eta_t, \beta)}, \qquad
        \text{alignment} = \frac{g^\top H g}{\|g\|^2 \lambda_1}

    :math:`\lambda_1` is found by Lanczos's method on fixed samples, or on the batch, with the model in evaluation mode.
    For Adam it is that of :math:`P^{-1} H`, P the diagonal by which it divides. Early in training a share above 1 is
    unstable; from 2 to 10 on, where the loss finds no flatter ground, training diverges. Warm-up lets the curvature
    fall as the rate rises. Small batches are stable at shares well below 1 only.

    Readings: ``curvature``, ``share`` and ``rate`` (at which the share were 1), NaN where the optimizer's limit is not
    known; ``alignment`` (without a diagonal); ``alarm``, 1 where the share is above ``limit``.

    Args:
        data: fixed ``(inputs, targets)``; None is the batch of the moment.
        limit: the share from which on it is an alarm, > 0.
        precondition: ``"auto"`` divides as the optimizer does; False takes the Hessian as it is.
        steps: products with the Hessian at most, each of about two gradients; >= 1.
        tol: the residual, as a share of the eigenvalue, at which the search ends.
        every: how many steps apart.

    Raises:
        ValueError: arguments outside their ranges.

    Example:
        >>> w = nn.Linear(1, 1, bias=False)
        >>> sgd = torch.optim.SGD(w.parameters(), lr=0.1)
        >>> data = torch.ones(4, 1), torch.zeros(4, 1)
        >>> moment = Moment(1, "gradients", w, optimizer=sgd, objective=nn.MSELoss(), inputs=data[0], targets=data[1])
        >>> {name: round(float(value), 4) for name, value in CurvatureMonitor().measure(moment).numbers.items()}
        {'curvature': 2.0, 'share': 0.1, 'rate': 1.0, 'alignment': 1.0, 'alarm': 0.0}

    Source: A Loss Curvature Perspective on Training Instability in Deep Learning, arXiv:2110.04369.
    """

    name = "curvature"
    phases = ("gradients",)
    needs = ("optimizer", "batch")
    cost = "up to 40 products with the Hessian, each of about two gradients"

    def __init__(
        self,
        data: tuple[Any, Any] | None = None,
        *,
        limit: float = 2.0,
        precondition: str | bool = "auto",
        steps: int = 40,
        tol: float = 1e-2,
        every: int = 500,
    ) -> None:
        check_number("limit", limit, low=0.0, open_low=True)
        check_number("steps", steps, low=1, integer=True)
        check_number("tol", tol, low=0.0)
        check_number("every", every, low=1, integer=True)
        if precondition not in ("auto", False):
            refuse("precondition", "'auto' or False", precondition)
        self.data, self.limit, self.precondition = data, limit, precondition
        self.steps, self.tol, self.every = steps, tol, every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model of which nothing is trained."""
        if not any(p.requires_grad for p in inner_module(model).parameters()):
            refuse("model", "a parameter that is trained", "none")

    def measure(self, moment: Moment) -> Reading:
        """The numbers of the class."""
        if self.data is not None:
            moment = Moment(
                moment.step, moment.phase, moment.model, optimizer=moment.optimizer, objective=moment.objective,
                inputs=self.data[0], targets=self.data[1],
            )  # fmt: skip
        params = list(moment.parameters().values())
        nothing = dict.fromkeys(("curvature", "share", "rate", "alignment"), math.nan)
        assert moment.optimizer is not None
        stable = stability_of(moment.optimizer, params) if self._known(moment.optimizer, params) else None
        diagonal = stable[1] if stable is not None and self.precondition == "auto" else None
        empty = any(isinstance(v, Tensor) and not v.numel() for v in tree_leaves(moment.inputs))
        if empty or not all(bool(p.isfinite().all()) for p in params):
            return Reading({**nothing, "alarm": 0.0})
        with moment.untouched():
            moment.module.eval()
            largest, _, gradient = _sharpest(
                moment.loss, params, diagonal, steps=self.steps, tol=self.tol, train_mode="trust"
            )
            alignment = math.nan
            size = float(length(gradient))
            if diagonal is None and 0 < size < math.inf and math.isfinite(largest) and largest != 0:
                unit = torch.cat([g.flatten() for g in gradient]) / size
                image = Hessian(moment.loss, params, train_mode="trust") @ unit
                alignment = float(unit.double() @ image.double()) / largest
        share = math.nan if stable is None else largest / stable[0]
        rate = math.nan
        if stable is not None and largest > 0:
            rate = max(float(group["lr"]) for group in moment.optimizer.param_groups) / share
        alarm = float(share > self.limit)
        return Reading({"curvature": largest, "share": share, "rate": rate, "alignment": alignment, "alarm": alarm})

    @staticmethod
    def _known(optimizer: Optimizer, params: list[Tensor]) -> bool:
        """Whether Adam's moments, where it has any, are those of all parameters."""
        having = [("exp_avg_sq" in optimizer.state.get(p, {})) for p in params]
        return all(having) or not any(having)


def warmup_probe(
    make_model: Callable[[], nn.Module],
    objective: Callable[[Any, Any], Tensor],
    data: tuple[Tensor, Tensor],
    *,
    lr: float,
    warmups: Iterable[int] = (0, 200),
    steps: int = 600,
    batch: int = 128,
    momentum: float = 0.9,
    seed: int = 0,
    every: int = 0,
    samples: int = 512,
) -> list[dict[str, Any]]:
    r"""Trains a network at one rate with warm-ups of several lengths, beside its sharpness.

    .. math:: \eta_t = \eta \min(1, (t + 1) / T_w)

    Args:
        make_model: gives the network, the same one for each warm-up after torch's generator is seeded.
        objective: ``objective(outputs, targets)``, a mean.
        data: inputs and targets ``[N, ...]``.
        lr: the rate, > 0.
        warmups: steps of each warm-up, >= 0.
        steps, batch: of the training by SGD with this momentum in [0, 1).
        seed: of the weights and of the order of the samples.
        every: steps between two looks at the sharpness; 0 looks at the beginning alone.
        samples: at which the sharpness is measured.

    Returns:
        a row a warm-up: ``warmup``, ``share`` at the beginning for the full rate, ``loss`` at the end over all samples
        (inf where it diverged), ``series``, pairs of step and share for the present rate.

    Raises:
        TypeError, ValueError: arguments outside their ranges.

    Example:
        >>> data = torch.randn(64, 4), torch.arange(64) % 2
        >>> rows = warmup_probe(lambda: nn.Linear(4, 2), nn.CrossEntropyLoss(), data, lr=0.1, steps=10, batch=16)
        >>> [row["warmup"] for row in rows], all(row["loss"] < 2 for row in rows)
        ([0, 200], True)

    Source: A Loss Curvature Perspective on Training Instability in Deep Learning, arXiv:2110.04369.
    """
    check_number("lr", lr, low=0.0, open_low=True)
    for name, value in (("steps", steps), ("batch", batch), ("samples", samples)):
        check_number(name, value, low=1, integer=True)
    check_number("every", every, low=0, integer=True)
    inputs, targets = data
    rows = []
    for warmup in warmups:
        check_number("warmups", warmup, low=0, integer=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = make_model()
        rows.append(
            _trained(model, objective, inputs, targets, lr, warmup, steps, batch, momentum, seed, every, samples)
        )
    return rows


def warmup_factor(step: int, warmup: int) -> float:
    """The factor of the rate at a step, counted from 0; 1 without a warm-up.

    >>> [round(0.1 * warmup_factor(step, 5), 2) for step in range(6)]
    [0.02, 0.04, 0.06, 0.08, 0.1, 0.1]
    """
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _trained(
    model: nn.Module,
    objective: Callable[[Any, Any], Tensor],
    inputs: Tensor,
    targets: Tensor,
    lr: float,
    warmup: int,
    steps: int,
    batch: int,
    momentum: float,
    seed: int,
    every: int,
    samples: int,
) -> dict[str, Any]:
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=lr, momentum=momentum)
    order = torch.Generator().manual_seed(seed)

    def share(rate: float) -> float:
        largest, *_ = _sharpest(lambda: objective(model(inputs[:samples]), targets[:samples]), params)
        return normalized_sharpness(largest, rate, momentum) if math.isfinite(largest) else math.inf

    first = share(lr)
    series: list[tuple[int, float]] = []
    for step in range(steps):
        rate = lr * warmup_factor(step, warmup)
        optimizer.param_groups[0]["lr"] = rate
        if every and step % every == 0:
            series.append((step, share(rate)))
        rows = torch.randint(len(inputs), (batch,), generator=order)
        loss = objective(model(inputs[rows]), targets[rows])
        if not bool(loss.isfinite()):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        end = float(objective(model(inputs), targets))
    return {"warmup": warmup, "share": first, "loss": end if math.isfinite(end) else math.inf, "series": series}
