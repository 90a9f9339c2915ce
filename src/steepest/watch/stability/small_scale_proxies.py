"""How sensitive a small transformer is to its learning rate, queries and keys with a norm, and what larger ones do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core.checks import check_number, check_tensor, refuse
from ...core.random import seed_all
from ...core.reductions import widen

STEP = 0.01
"""By how much the steps of a grid of rates may differ, as a share of the whole grid."""


def lr_sensitivity(
    lrs: Sequence[float] | F[Tensor, " rates"], losses: F[Tensor, "*any rates"], init_loss: float | F[Tensor, "*any"]
) -> F[Tensor, "*any"]:
    r"""How much loss a rate costs on average that is not the best of a grid.

    .. math:: S = \operatorname{mean}_\eta \min(L_\eta, L_0) - \min_\eta \min(L_\eta, L_0)

    with the loss L_0 before training, which also stands for one that is NaN or infinite. It is 0 where all rates end
    alike. It depends on the grid, which belongs to the number.

    Args:
        lrs: > 0, growing by one factor (log-spaced, within a hundredth of the grid), at least 2.
        losses: at the end of training at each rate, ``[..., rates]``.
        init_loss: before training, a number or ``[...]``.

    Returns:
        ``[...]``.

    Raises:
        ValueError: rates that are not log-spaced, shapes that don't fit.

    Example:
        >>> lr_sensitivity([1e-3, 1e-2, 1e-1, 1.0], torch.tensor([3.2, 3.0, 3.1, 8.0]), 7.0)
        tensor(1.0750)

    Source: Small-scale proxies for large-scale Transformer training instabilities, arXiv:2309.14322.
    """
    rates = torch.as_tensor(lrs, dtype=torch.float64)
    if rates.ndim != 1 or len(rates) < 2 or not bool((rates > 0).all()):
        refuse("lrs", "at least 2 rates above 0", lrs)
    steps = rates.log().diff()
    if not bool((steps > 0).all()) or float(steps.max() - steps.min()) > STEP * float(steps.sum()):
        refuse("lrs", "rates that grow by one factor", rates.tolist())
    check_tensor("losses", losses, floating=True)
    check_tensor("losses", losses, shape=(*(None,) * (losses.ndim - 1), len(rates)))
    losses = widen(losses.detach())
    start = torch.as_tensor(init_loss).detach().to(losses)
    if start.ndim and start.shape != losses.shape[:-1]:
        refuse("init_loss", f"a number or shape {tuple(losses.shape[:-1])}", init_loss)
    start = start[..., None]
    counted = torch.where(losses.isfinite() & (losses < start), losses, start)
    return (counted - counted.amin(-1, keepdim=True)).mean(-1)


class QKNorm(nn.Module):
    r"""Layer norms of queries and keys, each over the features of a head, before their product.

    Then :math:`|\langle q, k \rangle| / \sqrt{d_h} \le \sqrt{d_h}` times the largest gains, whatever the projections
    grow to, and the scale of a query or key does not matter.

    Args:
        head_dim: d_h >= 2.
        gains: whether norms learn gains and offsets.
        eps: of the norms, > 0.

    Raises:
        ValueError: numbers outside their range; features that are not d_h.

    Example:
        >>> q, k = QKNorm(2, gains=False)(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
        >>> round(float(q @ k / 2**0.5), 6)
        -1.414208

    Source: Small-scale proxies for large-scale Transformer training instabilities, arXiv:2309.14322.
    """

    def __init__(self, head_dim: int, *, gains: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        check_number("head_dim", head_dim, low=2, integer=True)
        check_number("eps", eps, low=0.0, open_low=True)
        self.query = nn.LayerNorm(head_dim, eps, elementwise_affine=gains)
        self.key = nn.LayerNorm(head_dim, eps, elementwise_affine=gains)

    def forward(self, q: F[Tensor, "*any head"], k: F[Tensor, "*some head"]) -> tuple[Tensor, Tensor]:
        """Queries ``[..., d_h]`` and keys ``[..., d_h]``, normalised."""
        width = self.query.normalized_shape[0]
        for name, value in (("q", q), ("k", k)):
            check_tensor(name, value, floating=True)
            check_tensor(name, value, shape=(*(None,) * (value.ndim - 1), width))
        return self.query(q), self.key(k)


def predict_instability(
    sizes: Sequence[float], max_logits: Sequence[float] | F[Tensor, " sizes"], limit: float = 1e4
) -> float:
    r"""The size of model at which the largest attention logit passes a limit, by a power law through smaller ones.

    .. math:: \log z = a + b \log N

    by least squares; trained at one rate. Near 1e4 models without normalised queries and keys were seen to diverge.

    Args:
        sizes: parameters of each model (or its width), > 0, at least 2 that differ.
        max_logits: the largest attention logit of each, > 0.
        limit: > 0.

    Returns:
        the size; infinite where logits don't grow with size.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> round(predict_instability([1e6, 1e7, 1e8], [10.0, 100.0, 1000.0]))
        1000000000

    Source: Small-scale proxies for large-scale Transformer training instabilities, arXiv:2309.14322.
    """
    n = torch.as_tensor(sizes, dtype=torch.float64)
    z = torch.as_tensor(max_logits, dtype=torch.float64)
    if n.ndim != 1 or not bool((n > 0).all()) or len(n.unique()) < 2:
        refuse("sizes", "at least 2 different numbers above 0", sizes)
    if z.shape != n.shape or not bool((z > 0).all()):
        refuse("max_logits", f"{len(n)} numbers above 0", max_logits)
    check_number("limit", limit, low=0.0, open_low=True)
    x, y = n.log() - n.log().mean(), z.log() - z.log().mean()
    slope = float(x @ y / (x @ x))
    if slope <= 0:
        return math.inf
    power = float(n.log().mean()) + (math.log(limit) - float(z.log().mean())) / slope
    return math.exp(power) if power < math.log(torch.finfo(torch.float64).max) else math.inf


@dataclass(frozen=True)
class StabilityGrid:
    """What a sweep found.

    Args:
        lrs, widths: of the grid.
        losses: of training, ``[widths, rates, steps]``; NaN after a loss or gradient that was not finite.
        gradient_norms: before clipping, of the same shape.
        measured: by name, ``[widths, rates]``, after training.
        window: steps at the end whose mean loss counts.
    """

    lrs: tuple[float, ...]
    widths: tuple[int, ...]
    losses: Tensor
    gradient_norms: Tensor
    measured: Mapping[str, Tensor]
    window: int

    @property
    def init_loss(self) -> Tensor:
        """Before training, ``[widths]``."""
        return self.losses[:, 0, 0]

    @property
    def end_losses(self) -> Tensor:
        """``[widths, rates]``, a mean over the last steps."""
        return self.losses[..., -self.window :].mean(-1)

    @property
    def sensitivity(self) -> Tensor:
        """:func:`lr_sensitivity` of each width, ``[widths]``."""
        return lr_sensitivity(self.lrs, self.end_losses, self.init_loss)

    def spikes(self, height: float = 0.5) -> Tensor:
        """At how many steps the loss was so far above its least before, or not finite, ``[widths, rates]``."""
        least = self.losses.nan_to_num(math.inf).cummin(-1).values
        return (~(self.losses[..., 1:] <= least[..., :-1] + height)).sum(-1)


class StabilitySweep:
    r"""Trains a small model of each width at every rate of a grid, all rates of a width as one stack.

    All start from the same weights and see the same batches. AdamW with a warm-up that is linear and a cosine down to
    ``floor``, gradients of each model clipped by themselves, and a decay that the rate does not multiply,

    .. math:: w \leftarrow w - s_t (\eta r + \lambda w)

    with the schedule s in [0, 1], the peak rate eta and Adam's direction r. A model whose loss or gradient is not
    finite stays where it is.

    Args:
        make_model: of a width, a module without buffers that change.
        loss: ``loss(outputs_of, step)``, a scalar, where ``outputs_of`` is called like the model.
        lrs: peak rates, > 0, growing by one factor.
        widths: given to ``make_model``.
        steps: >= 1. warmup: steps of it, >= 0.
        betas, eps: of Adam. decay: lambda >= 0. clip: largest norm of a gradient, > 0, or None.
        floor: the rate at the end as a share of the peak, in [0, 1].
        measures: by name, functions of a trained model that give a number, such as its largest attention logit.
        window: steps at the end whose mean loss counts, >= 1.
        seed: of the initial weights.

    Raises:
        ValueError: numbers outside their range, rates that are not log-spaced.

    Example:
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> def loss(outputs_of, step):
        ...     return (outputs_of(x)[:, 0] - x.sum(1)).square().mean()
        >>> sweep = StabilitySweep(lambda width: nn.Linear(width, 1), loss, [1e-3, 1e-1, 10.0], [4], steps=30)
        >>> grid = sweep.run()
        >>> int(grid.end_losses.argmin()), bool(grid.sensitivity > 1)
        (1, True)

    Source: Small-scale proxies for large-scale Transformer training instabilities, arXiv:2309.14322.
    """

    def __init__(
        self,
        make_model: Callable[[int], nn.Module],
        loss: Callable[[Callable[..., Any], int], Tensor],
        lrs: Sequence[float],
        widths: Sequence[int],
        *,
        steps: int,
        warmup: int = 0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        decay: float = 0.0,
        clip: float | None = 1.0,
        floor: float = 0.0,
        measures: Mapping[str, Callable[[nn.Module], float]] | None = None,
        window: int = 1,
        seed: int = 0,
    ) -> None:
        lr_sensitivity(lrs, torch.zeros(len(lrs)), 0.0)
        if not widths:
            refuse("widths", "at least one", widths)
        check_number("steps", steps, low=1, integer=True)
        check_number("warmup", warmup, low=0, integer=True)
        for beta in betas:
            check_number("betas", beta, low=0.0, high=1.0, open_high=True)
        check_number("eps", eps, low=0.0, open_low=True)
        check_number("decay", decay, low=0.0)
        if clip is not None:
            check_number("clip", clip, low=0.0, open_low=True)
        check_number("floor", floor, low=0.0, high=1.0)
        check_number("window", window, low=1, high=steps, integer=True)
        self.make_model, self.loss, self.measures = make_model, loss, dict(measures or {})
        self.lrs, self.widths = tuple(float(rate) for rate in lrs), tuple(widths)
        self.steps, self.warmup, self.betas, self.eps = steps, warmup, betas, eps
        self.decay, self.clip, self.floor, self.window, self.seed = decay, clip, floor, window, seed

    def run(self) -> StabilityGrid:
        """Train all models; torch's own generator is seeded for each width."""
        losses, norms, measured = [], [], []
        for width in self.widths:
            seed_all(self.seed)
            model = self.make_model(width)
            of_width, norms_of_width, weights = self._train(model)
            losses.append(of_width)
            norms.append(norms_of_width)
            measured.append([self._measured(model, weights, place) for place in range(len(self.lrs))])
        by_name = {
            name: torch.tensor([[row[name] for row in rows] for rows in measured], dtype=torch.float64)
            for name in self.measures
        }
        return StabilityGrid(self.lrs, self.widths, torch.stack(losses), torch.stack(norms), by_name, self.window)

    def share(self, step: int) -> float:
        """The schedule at a step, in [0, 1]."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        along = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * along))

    def _train(self, model: nn.Module) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        count = len(self.lrs)
        own = {name: p.detach() for name, p in model.named_parameters()}
        weights = {name: p.expand(count, *p.shape).clone() for name, p in own.items()}
        means = {name: torch.zeros_like(w) for name, w in weights.items()}
        squares = {name: torch.zeros_like(w) for name, w in weights.items()}
        first = next(iter(weights.values()))
        rates = torch.tensor(self.lrs, dtype=first.dtype, device=first.device)
        going = torch.ones(count, dtype=torch.bool, device=first.device)
        losses, norms = [], []
        for step in range(self.steps):

            def of_one(parameters: dict[str, Tensor], step: int = step) -> Tensor:
                return self.loss(lambda *args, **kwargs: functional_call(model, parameters, args, kwargs), step)

            with sdpa_kernel(SDPBackend.MATH):
                slopes, values = vmap(grad_and_value(of_one), randomness="same")(weights)
            flat = torch.stack([slope.flatten(1).norm(dim=1) for slope in slopes.values()])
            norm = flat.norm(dim=0)
            going = going & values.isfinite() & norm.isfinite()
            losses.append(torch.where(going, values, torch.nan))
            norms.append(torch.where(going, norm, torch.nan))
            clipped = torch.ones_like(norm) if self.clip is None else (self.clip / norm).clamp(max=1.0)
            share = self.share(step)
            for name, w in weights.items():
                shape = (count, *(1,) * (w.ndim - 1))
                g = torch.where(going.view(shape), slopes[name] * clipped.view(shape), 0.0)
                means[name].lerp_(g, 1 - self.betas[0])
                squares[name].lerp_(g.square(), 1 - self.betas[1])
                root = (squares[name] / (1 - self.betas[1] ** (step + 1))).sqrt_().add_(self.eps)
                r = means[name] / (1 - self.betas[0] ** (step + 1)) / root
                move = share * (rates.view(shape) * r + self.decay * w)
                w.sub_(torch.where(going.view(shape), move, 0.0))
        return torch.stack(losses, 1), torch.stack(norms, 1), weights

    def _measured(self, model: nn.Module, weights: dict[str, Tensor], place: int) -> dict[str, float]:
        if not self.measures:
            return {}
        trained = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in trained.named_parameters():
                p.copy_(weights[name][place])
            return {name: float(measure(trained)) for name, measure in self.measures.items()}
