"""How far cross-entropy can be trusted along an update: the nearest complex zero of the softmax partition function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from ...core.checks import check_flag, check_number, check_tensor, refuse, refuse_type
from ...core.displaced import length, random_numbers, same_random_numbers, unrecorded
from ...core.reductions import widen
from ...core.search import Float
from ...core.torch_private import foreach_sub
from ...core.wrapper import Params, Wrapper

Reduce = str | float
"""``"max"``, ``"none"``, or a quantile in (0, 1)."""


def logit_spread_radius(
    change: F[Tensor, "*samples classes"], *, reduce: Reduce = "max", dim: int = -1
) -> F[Tensor, "*samples"]:
    r"""The least distance of a complex zero of the partition function, from the change of logits along a direction.

    .. math:: \rho = \frac{\pi}{\Delta}, \qquad \Delta = \max_x \left(\max_k a_k(x) - \min_k a_k(x)\right)

    Every root t of :math:`\sum_k e^{z_k + t a_k}` has :math:`|t| \ge \rho`, whatever the logits z are. (The spread of
    the logits themselves, which some code takes for a, says something else.)

    Args:
        change: a, the derivatives of the logits along the direction.
        reduce: ``"max"`` over samples; ``"none"``, the radius of each; or q in (0, 1), that of the q quantile of the
            spreads, which a few outliers don't decide and which is no bound.
        dim: of the classes.

    Returns:
        The radius, in units of the direction's length; inf where nothing changes.

    Raises:
        ValueError: less than 2 classes, another ``reduce``.

    Example:
        >>> logit_spread_radius(torch.tensor([[1.0, -1.0, 0.5], [0.1, 0.1, 0.3]]))
        tensor(1.5708)

    Source: Ghosts of Softmax, arXiv:2603.13552.
    """
    check_tensor("change", change, floating=True)
    _check_reduce(reduce)
    return math.pi / _spread(change, reduce, dim)


def _check_reduce(reduce: Reduce) -> None:
    if isinstance(reduce, float) and 0.0 < reduce < 1.0:
        return
    if reduce not in ("max", "none"):
        refuse("reduce", "'max', 'none' or a number in (0, 1)", reduce)


def _spread(change: Tensor, reduce: Reduce, dim: int) -> Tensor:
    if change.ndim == 0 or not -change.ndim <= dim < change.ndim or change.shape[dim] < 2:
        refuse("model", f"logits of at least 2 classes in dimension {dim}", change)
    change = widen(change)
    spread = change.amax(dim) - change.amin(dim)
    if reduce == "none":
        return spread
    return spread.amax() if reduce == "max" else spread.flatten().quantile(float(reduce))


def binary_ghost_radius(delta: Tensor, spread: Tensor) -> Tensor:
    r"""The exact distance of the nearest zero for one sample of two classes.

    .. math:: \rho^* = \frac{\sqrt{\delta^2 + \pi^2}}{\Delta}, \qquad \delta = z_1 - z_0, \; \Delta = |a_1 - a_0|

    Args:
        delta: difference of the logits.
        spread: absolute difference of their derivatives along the direction, >= 0.

    Returns:
        of the shape of both together; inf where the spread is 0.

    Raises:
        TypeError: no floating tensors.

    Example:
        >>> binary_ghost_radius(torch.tensor([1.0, 0.0]), torch.tensor(2.0))
        tensor([1.6485, 1.5708])

    Source: Ghosts of Softmax, arXiv:2603.13552.
    """
    check_tensor("delta", delta, floating=True)
    check_tensor("spread", spread, floating=True)
    delta = widen(delta)
    return torch.hypot(delta, torch.full_like(delta, math.pi)) / widen(spread)


class GhostRadius:
    r"""Measures updates p of a model: the radius :math:`\rho` along one, and its normalised step :math:`\|p\| / \rho`.

    One Jacobian-vector product in evaluation mode, at about the time of two forward passes. It leaves no trace: modes,
    buffers, random numbers and gradients are what they were. Attention runs by its plain formula, because fused kernels
    have no forward derivative.

    Args:
        model: gives logits, or an output with ``logits``. Of one that is compiled or distributed the module inside is
            used.
        reduce, dim: as in :func:`logit_spread_radius`.

    Raises:
        TypeError: no module.
        ValueError: another ``reduce``.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> measure = GhostRadius(model)
        >>> update = [torch.tensor([[2.0, 0.0], [0.0, 0.0]])]
        >>> measure.radius(list(model.parameters()), update, torch.ones(1, 2))
        tensor(1.5708)

    Source: Ghosts of Softmax, arXiv:2603.13552.
    """

    def __init__(self, model: nn.Module, *, reduce: Reduce = "max", dim: int = -1) -> None:
        if not isinstance(model, nn.Module):
            refuse_type("model", "a module", model)
        _check_reduce(reduce)
        self.model, self.reduce, self.dim = model, reduce, dim

    def spread(
        self, params: Sequence[Tensor], direction: Sequence[Tensor], inputs: Any, *, at: Sequence[Tensor] | None = None
    ) -> Tensor:
        r"""The spread of the logits' change along a direction, in float32 or wider: pi over the radius.

        Args:
            params: parameters; those that are no part of the model don't change its logits.
            direction: a tensor for each, of any length; zeros give 0.
            inputs: the sample set: a tensor, a tuple of arguments or a mapping of them.
            at: values of the parameters where the derivative is taken; None for the present ones.
        """
        if len(direction) != len(params):
            refuse("direction", f"{len(params)} tensors, one for each parameter", len(direction))
        for p, d in zip(params, direction):
            check_tensor("direction", d, shape=tuple(p.shape))
        model = _inner(self.model)
        names = {id(p): name for name, p in model.named_parameters()}
        size = _power_of_two(length(direction))
        values: dict[str, Tensor] = {}
        tangents: dict[str, Tensor] = {}
        for p, d, value in zip(params, direction, params if at is None else at):
            if id(p) in names:
                values[names[id(p)]] = value.detach()
                tangents[names[id(p)]] = (d.detach() / size.to(d.device)).to(value.dtype)
        if not values:
            return torch.zeros(())

        args, kwargs = _arguments(inputs)
        with _measured(model), forward_ad.dual_level():
            own = {name: forward_ad.make_dual(value, tangents[name]) for name, value in values.items()}
            outputs = torch.func.functional_call(model, own, args, kwargs)
            logits, change = forward_ad.unpack_dual(getattr(outputs, "logits", outputs))
        change = torch.zeros_like(logits) if change is None else change
        spread = _spread(change, self.reduce, self.dim)
        return spread * size.to(spread.device, spread.dtype)

    def radius(
        self, params: Sequence[Tensor], direction: Sequence[Tensor], inputs: Any, *, at: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The radius, in units of the direction's length. Arguments as in :meth:`spread`."""
        return math.pi / self.spread(params, direction, inputs, at=at)

    def ratio(
        self, params: Sequence[Tensor], update: Sequence[Tensor], inputs: Any, *, at: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The normalised step r of an update: its length over the radius. Arguments as in :meth:`spread`."""
        return self.spread(params, update, inputs, at=at) / math.pi

    def check_own(self, params: Iterable[Tensor]) -> None:
        """Refuse parameters of which none is the model's.

        Raises:
            ValueError: there is none.
        """
        own = {id(p) for p in self.model.parameters()}
        if not any(id(p) in own for p in params):
            refuse("params", "parameters of the model", "none of them")


def _power_of_two(norm: Tensor) -> Tensor:
    """Near a length, so that a direction divided by it has the same digits; 1 of 0."""
    exponent = torch.frexp(norm).exponent.clamp(-100, 100)
    return torch.ldexp(torch.ones_like(norm), exponent)


def _inner(model: nn.Module) -> nn.Module:
    while True:
        inside = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        inside = getattr(model, "_orig_mod", inside)
        if not isinstance(inside, nn.Module):
            return model
        model = inside


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


@contextmanager
def _measured(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, on kernels with forward derivatives; afterwards all is as before."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), plain, unrecorded([model]), same_random_numbers(random_numbers()):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


def ghost_radius(
    model: nn.Module,
    params: Iterable[Tensor],
    direction: Iterable[Tensor],
    inputs: Any,
    *,
    reduce: Reduce = "max",
    dim: int = -1,
) -> Tensor:
    r"""The radius within which cross-entropy is analytic along a direction, from one Jacobian-vector product.

    .. math:: \rho = \frac{\pi}{\max_x (\max_k a_k - \min_k a_k)}, \qquad a(x) = J_z(x)\, v

    A lower bound of the distance of the nearest singularity, for logits that are taken as linear in the step: the
    curvature of the network is ignored. Along c v it is 1 / c of that along v.

    Args:
        model, reduce, dim: as in :class:`GhostRadius`.
        params: parameters of the model.
        direction: v, a tensor for each parameter.
        inputs: the sample set. The training set gives the safest radius, a batch a larger one.

    Returns:
        In units of the length of the direction; inf where no logit changes.

    Raises:
        ValueError: a direction of zeros, parameters of another model, less than 2 classes, other shapes.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> ghost_radius(model, model.parameters(), [torch.tensor([[1.0, 0.0], [0.0, 0.0]])], torch.ones(1, 2))
        tensor(3.1416)

    Source: Ghosts of Softmax, arXiv:2603.13552.
    """
    along, parameters = list(direction), list(params)
    measure = GhostRadius(model, reduce=reduce, dim=dim)
    measure.check_own(parameters)
    if not along or float(length(along)) == 0:
        refuse("direction", "a length above 0", 0.0 if along else "nothing")
    return measure.radius(parameters, along, inputs)


class GhostStepController(Wrapper):
    r"""An optimizer whose update is made shorter where it leaves the radius of cross-entropy along it.

    .. math:: w \leftarrow w + s\, p, \qquad s = \min(1, r_{max} / r), \qquad r = \|p\| / \rho

    p is what the optimizer proposes, momentum and decay included; its state moves as without a controller. Where r is
    at most ``r_max`` the update keeps its bits. After a step ``r`` is that of the proposal and ``scale`` is s. An
    update that is not finite is left as it is. Each step waits once for the device. Over several ranks the largest r
    of all counts, so that all take one step.

    The sample set of a step is ``step(inputs=...)``, else ``samples``, else the inputs of the closure's batch, which
    :class:`steepest.descent.Descent` gives.

    Args:
        optimizer: what proposes.
        model: gives logits; see :class:`GhostRadius`.
        r_max: the largest r that is applied, > 0; above 1 nothing is bounded.
        samples: a fixed sample set. The training set, or a large part of it, is safest.
        reduce: ``"max"`` over samples, or q in (0, 1): the q quantile of the spreads, without a bound.
        dim: of the classes.
        cap: False makes r equal to ``r_max`` in every step, so that updates grow too: the radius sets the rate.

    Raises:
        TypeError: no optimizer, no module, no sample set.
        ValueError: ``r_max`` not above 0, another ``reduce``, an optimizer of another model, less than 2 classes.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = nn.Linear(2, 3), torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
        >>> optimizer = GhostStepController(torch.optim.SGD(model.parameters(), lr=1e4), model)
        >>> nn.functional.cross_entropy(model(x), y).backward()
        >>> optimizer.step(inputs=x)
        >>> round(float(optimizer.r) * optimizer.scale, 6)
        1.0

    Source: Ghosts of Softmax, arXiv:2603.13552.
    """

    name = "ghost_radius"
    search = {"r_max": Float(0.1, 1.0, log=True)}

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        r_max: float = 1.0,
        *,
        samples: Any = None,
        reduce: Reduce = "max",
        dim: int = -1,
        cap: bool = True,
    ) -> None:
        check_number("r_max", r_max, low=0.0, open_low=True)
        check_flag("cap", cap)
        if reduce == "none":
            refuse("reduce", "'max' or a number in (0, 1)", reduce)
        self.measure = GhostRadius(model, reduce=reduce, dim=dim)
        self.r_max, self.samples, self.cap = float(r_max), samples, cap
        self.r = torch.zeros(())
        self.scale = 1.0
        self._inputs: Any = None
        super().__init__(optimizer)
        self.measure.check_own(p for group in self.param_groups for p in group["params"])

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        inputs: Any = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Any:
        """One step.

        Args:
            closure: zeroes, runs forward and backward and returns the loss; None where that was done.
            inputs: the sample set of this step.
            scaler: the gradient scaler that the closure's backward uses.

        Raises:
            TypeError: no sample set.
        """
        if inputs is None:
            inputs = self.samples
        if inputs is None:
            batch = getattr(closure, "inputs", None)
            inputs = getattr(batch, "inputs", batch)
        if inputs is None:
            refuse_type("inputs", "a sample set, here, as samples or as inputs of the closure", None)
        self._inputs = inputs
        try:
            return super().step(closure, scaler=scaler)
        finally:
            self._inputs = None

    @torch.no_grad()
    def _advance(self, closure: Callable[[], Any] | None) -> None:
        parameters = self._with_gradients()
        before = [p.detach().clone() for p in parameters]
        self.base_optimizer.step()
        self.scale = 1.0
        if not parameters:
            self.r = torch.zeros(())
            return
        update = list(foreach_sub(parameters, before))
        self.r = _over_ranks(self.measure.ratio(parameters, update, self._inputs, at=before))
        r = float(self.r)
        if r > self.r_max or (not self.cap and r > 0):
            self.scale = self.r_max / r
            for p, value, move in zip(parameters, before, update):
                p.copy_(widen(value) + self.scale * widen(move))

    @classmethod
    def builders(cls) -> list[Callable[[Params], GhostStepController]]:
        """With room, and at the cap in most steps."""
        return [
            lambda params: _controlled(cls, params, 0.1, torch.optim.SGD, lr=0.01, momentum=0.9),
            lambda params: _controlled(cls, params, 30.0, torch.optim.AdamW, lr=0.05, eps=1e-6),
        ]


def _over_ranks(r: Tensor) -> Tensor:
    ranks = torch.distributed
    if ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1:
        ranks.all_reduce(r, ranks.ReduceOp.MAX)
    return r


class _Sum(nn.Module):
    """A model for the conformance suite, of one given parameter: logits are its sum times the input, and 0."""

    def __init__(self, parameter: Tensor) -> None:
        super().__init__()
        self.own = nn.ParameterList([parameter])

    def forward(self, x: Tensor) -> Tensor:
        own = self.own[0]
        total = (torch.view_as_real(own) if own.is_complex() else own).double().sum()
        return torch.stack([x * total, 0 * x], -1)


def _controlled(
    cls: type[GhostStepController], params: Params, size: float, base: type[Optimizer], **arguments: Any
) -> GhostStepController:
    optimizer = base(params, **arguments)
    model = _Sum(optimizer.param_groups[0]["params"][0])
    return cls(optimizer, model, samples=torch.full((1,), size, dtype=torch.float64))
