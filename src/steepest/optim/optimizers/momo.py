"""Learning rates from averages of losses: momentum and Adam with a Polyak step on a model of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor

from ...core.checks import check_flag, check_number, refuse_type
from ...core.moments import Moments, runs
from ...core.optimizer import LossAware, Share, flat, inner, momentum_step, total
from ...core.reductions import widen
from ...core.scalars import Scalar, chosen, clamped, like, quotient, readable
from ...core.search import Float
from ...core.torch_private import (
    foreach_add_,
    foreach_addcmul_,
    foreach_copy_,
    foreach_div,
    foreach_div_,
    foreach_mul,
    foreach_mul_,
    foreach_sqrt,
    foreach_sub_,
)
from ...core.wrapper import Params

_KEPT = 2**22
"""Numbers up to which preconditioned averages are kept for the step; those of larger models are made again."""


Sums = Sequence[Sequence[Scalar]]
r"""Of each group :math:`\langle g, x \rangle`, :math:`\langle d, x \rangle`, :math:`\sum d^2 / D`."""


class _Momo(LossAware):
    """What both have in common: averages, the model of the loss, its proximal step."""

    zero_start = False
    tensors: tuple[str, ...] = ("average",)
    """Of a state."""

    def __init__(
        self,
        params: Params,
        options: dict[str, Any],
        lb: float,
        use_fstar: bool,
        divide: bool,
        foreach: bool | None,
    ) -> None:
        if isinstance(lb, bool) or not isinstance(lb, (int, float)):
            refuse_type("lb", "a number, or -inf", lb)
        check_number("lb", lb, high=math.inf, open_high=True)
        check_flag("use_fstar", use_fstar)
        check_flag("divide", divide)
        self.lowest, self.use_fstar, self.divide = float(lb), use_fstar, divide
        self.steps = 0
        self.averages: dict[str, Scalar] = {}
        self.factor: Scalar | None = None
        super().__init__(params, options, foreach=foreach)

    def own_state(self) -> dict[str, Any]:
        """Steps, the averages of losses and of inner products, the bound."""
        return {"steps": self.steps, **self.averages}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave."""
        self.steps = int(state["steps"])
        self.averages = {
            name: value.clone() if isinstance(value, Tensor) else float(value)
            for name, value in state.items()
            if name != "steps"
        }

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        return {"average": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def _beta(self, group: dict[str, Any]) -> float:
        raise NotImplementedError

    def _averaged(self, share: Share, beta: float) -> None:
        """The new gradient, into the averages of a share."""
        if self.steps or self.zero_start:
            momentum_step(share.weights, share.slopes, share.state("average"), 0.0, beta, gain=1 - beta)
        else:
            foreach_copy_(share.state("average"), share.slopes)

    def _directions(self, share: Share) -> list[Tensor]:
        """The averages of a share over their metric."""
        return share.state("average")

    def _advance_with(self, loss: Tensor, shares: list[Share]) -> None:
        beta = self._beta(self.param_groups[0])
        groups = [[share for share in shares if share.group is group] for group in self.param_groups]
        groups = [members for members in groups if members]
        joined = list(map(Share.joined, groups))
        if all(runs(share.weights, share.slopes, *(share.state(name) for name in self.tensors)) for share in joined):
            sums, move = self._in_one_pass(joined, beta)
        else:
            sums, move = self._by_lists(groups, beta)
        product = sum(own for own, _, _ in sums)
        value, zero = like(loss, product), like(0.0, product)
        past = {name: like(average, product) for name, average in self.averages.items()} or {
            "loss": zero if self.zero_start else value,
            "product": zero if self.zero_start else product,
            "bound": zero + self.lowest,
        }
        self.steps += 1
        rho = 1 - beta**self.steps if self.zero_start else 1.0
        f = past["loss"] + (1 - beta) * (value - past["loss"])
        gam, bound = past["product"] + (1 - beta) * (product - past["product"]), past["bound"]
        plain, along, squares, lengths = zero, zero, zero, zero
        for share, (_, dot, square) in zip(joined, sums):
            lr, c = share.group["lr"], self._shrink(share.group)
            plain, along = plain + dot, along + dot / c
            squares, lengths = squares + square * (lr / c), lengths + square * lr
        reach = f - gam + along
        if self.use_fstar:
            bound = chosen(reach < rho * bound, clamped(reach / (2 * rho), low=self.lowest), bound)
        u = clamped(quotient(clamped(reach - rho * bound, low=0.0), squares), high=1 / rho)
        if self.use_fstar:
            bound = clamped((f + plain - gam - 0.5 * u * lengths) / rho, low=self.lowest)
        self.averages = {"loss": f, "product": gam, "bound": bound}
        self.factor = u
        move(u)

    def _in_one_pass(self, groups: list[Share], beta: float) -> tuple[Sums, Callable[[Scalar], None]]:
        """Averages take in the gradients; sums of each group, and what moves so many rates along the directions.

        Each tensor is passed through once for its sums and once for its move: float32 on the CPU.
        """
        moments = [self._moments(share) for share in groups]
        sums = [own.products(*self._decays(share.group, beta)) for share, own in zip(groups, moments)]

        def move(factor: Scalar) -> None:
            for share, own in zip(groups, moments):
                with self._decayed(share):
                    own.move(float(factor) * share.group["lr"])

        return sums, move

    def _by_lists(self, groups: list[list[Share]], beta: float) -> tuple[Sums, Callable[[Scalar], None]]:
        """The same by operations on lists of tensors."""
        flats = [flat(p for share in members for p in share.weights) for members in groups]
        products = [
            inner(flat(slope for share in members for slope in share.slopes), own)
            for members, own in zip(groups, flats)
        ]
        for share in chain.from_iterable(groups):
            self._averaged(share, beta)
        small = sum(vector.numel() for own in flats for vector in own) <= _KEPT
        ways: dict[int, list[Tensor]] = {}
        sums = []
        for members, weights, product in zip(groups, flats, products):
            own = flat(average for share in members for average in share.state("average"))
            if small:
                ways |= {id(share): self._directions(share) for share in members}
                square = inner(own, self._flat_directions(own, [way for share in members for way in ways[id(share)]]))
            else:
                square = total(self._square(share) for share in members)
            sums.append(tuple(map(readable, (product, inner(own, weights), square))))

        def move(factor: Scalar) -> None:
            for share in chain.from_iterable(groups):
                with self._decayed(share):
                    directions = ways[id(share)] if small else self._directions(share)
                    self._apply(share, directions, factor * share.group["lr"])

        return sums, move

    def _decays(self, group: dict[str, Any], beta: float) -> tuple[float, ...]:
        """By what averages are multiplied, and what a new gradient counts; the same of squares."""
        return (beta, 1 - beta) if self.steps or self.zero_start else (0.0, 1.0)

    def _moments(self, share: Share) -> Moments:
        """A share and one gradient more, for one pass."""
        return Moments(share.weights, share.slopes, share.state("average"))

    def _square(self, share: Share) -> Tensor:
        """One product a tensor, so that it is the same however a step takes them together."""
        return total(inner(flat([a]), flat([d])) for a, d in zip(share.state("average"), self._directions(share)))

    def _flat_directions(self, averages: list[Tensor], ways: list[Tensor]) -> list[Tensor]:
        """Directions as vectors; without a metric they are the averages."""
        return averages

    def _apply(self, share: Share, ways: list[Tensor], factor: Scalar) -> None:
        if isinstance(factor, float):
            momentum_step(share.weights, ways, [], factor, 0.0)
        else:  # the host does not wait for it
            foreach_sub_(share.weights, foreach_mul(ways, factor.to(ways[0].dtype)))

    @contextmanager
    def _decayed(self, share: Share) -> Iterator[None]:
        """What decay does before and after a move."""
        decay = share.group["lr"] * share.group["weight_decay"]
        if decay and not self.divide:
            foreach_mul_(share.weights, 1 - decay)
        yield
        if decay and self.divide:
            foreach_div_(share.weights, 1 + decay)

    def _shrink(self, group: dict[str, Any]) -> float:
        return 1.0 + group["lr"] * group["weight_decay"] if self.divide else 1.0


class Momo(_Momo):
    r"""SGD with momentum whose rate is a Polyak step on a model of the loss, with the user's rate as its cap.

    .. math:: \bar f \leftarrow \beta \bar f + (1 - \beta) f, \quad d \leftarrow \beta d + (1 - \beta) g, \quad
        \gamma \leftarrow \beta \gamma + (1 - \beta) \langle g, x \rangle \\
        \tau = \min\Big(\frac{\alpha}{\rho}, \frac{\max(0, (1 + \alpha \lambda)(\bar f - \rho f_* - \gamma)
        + \langle d, x \rangle)}{\|d\|^2}\Big), \qquad x \leftarrow \frac{x - \tau d}{1 + \alpha \lambda}

    The averages of losses, gradients and their linearisations are a model of the loss that is cut at a lower bound; the
    step is its proximal point. Several groups, each with its rate and decay, solve one such problem together
    (``momo-opt`` takes each group by itself against the sums of all). On several ranks the loss is the mean of theirs
    (``momo-opt`` takes that of its own rank). ``factor`` is tau / alpha of the last step.

    Args:
        params: parameters or groups.
        lr: alpha >= 0, the cap of the rate; 1 suits many problems.
        weight_decay: lambda >= 0, proximal: the weights are divided.
        beta: of the averages, in [0, 1).
        lb: lower bound of the loss; -inf is SGD with momentum at rate alpha.
        bias_correction: averages start at 0, and rho = 1 - beta^k; else with the first sample, and rho = 1.
        use_fstar: estimate the bound along the run, from ``lb`` upwards; after steps of nearly no length it is the loss
            itself, and nothing moves: don't warm up from 0.
        divide: False multiplies the weights by 1 - alpha lambda before the step, and leaves decay out of the model.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: a value outside its range.
        TypeError: a step without closure and loss, or with both; a sparse gradient.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = Momo([x])
        >>> loss = 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
        >>> loss.backward()
        >>> optimizer.step(loss=loss.detach()).item()
        2.5
        >>> x.data
        tensor([0.8529, 0.4118])

    Source: MoMo: Momentum Models for Adaptive Learning Rates, arXiv:2305.07583.
    """

    name = "momo"
    search = {"beta": Float(0.8, 0.99)}
    ranges = {
        "lr": {"low": 0.0},
        "weight_decay": {"low": 0.0},
        "beta": {"low": 0.0, "high": 1.0, "open_high": True},
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        beta: float = 0.9,
        lb: float = 0.0,
        bias_correction: bool = False,
        use_fstar: bool = False,
        *,
        divide: bool = True,
        foreach: bool | None = None,
    ) -> None:
        check_flag("bias_correction", bias_correction)
        self.zero_start = bool(bias_correction)
        options = {"lr": lr, "weight_decay": weight_decay, "beta": beta}
        super().__init__(params, options, lb, use_fstar, divide, foreach)

    def _beta(self, group: dict[str, Any]) -> float:
        return float(group["beta"])

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Both starts, both forms of decay."""
        return [
            lambda params: cls(params, lr=0.01, weight_decay=0.01),
            lambda params: cls(params, lr=0.02, weight_decay=0.01, bias_correction=True, divide=False),
        ]


class MomoAdam(_Momo):
    r"""Adam whose rate is a Polyak step on a model of the loss, with the user's rate as its cap.

    .. math:: v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad D = \sqrt{v / (1 - \beta_2^k)} + \epsilon, \quad
        \rho = 1 - \beta_1^k, \qquad x \leftarrow \frac{x - \tau D^{-1} d}{1 + \alpha \lambda}

    with the model and tau of :class:`Momo`, where averages start at 0 and :math:`\|d\|^2` is :math:`\sum d^2 / D`.

    Args:
        params: parameters or groups.
        lr: alpha >= 0, the cap of the rate.
        betas: of averages and squares, in [0, 1); the first of the first group counts for all.
        eps: added below the line, > 0.
        weight_decay: lambda >= 0, proximal: the weights are divided.
        lb: lower bound of the loss; -inf is Adam at rate alpha.
        divide: False multiplies the weights by 1 - alpha lambda before the step, and leaves decay out of the model.
        use_fstar: estimate the bound along the run, from ``lb`` upwards; after steps of nearly no length it is the loss
            itself, and nothing moves: don't warm up from 0.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: a value outside its range.
        TypeError: a step without closure and loss, or with both; a sparse gradient.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = MomoAdam([x], lr=10.0)
        >>> loss = 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
        >>> loss.backward()
        >>> _ = optimizer.step(loss=loss.detach())
        >>> x.data
        tensor([0.5000, 0.5000])

    Source: MoMo: Momentum Models for Adaptive Learning Rates, arXiv:2305.07583.
    """

    name = "momo_adam"
    tensors = ("average", "squares")
    ranges = {"lr": {"low": 0.0}, "weight_decay": {"low": 0.0}, "eps": {"low": 0.0, "open_low": True}}
    zero_start = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lb: float = 0.0,
        divide: bool = True,
        use_fstar: bool = False,
        *,
        foreach: bool | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, lb, use_fstar, divide, foreach)

    def _beta(self, group: dict[str, Any]) -> float:
        return float(group["betas"][0])

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        squares = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return {**super()._start(group, parameter), "squares": squares, "steps": 0}

    def _averaged(self, share: Share, beta: float) -> None:
        super()._averaged(share, beta)
        decay = share.group["betas"][1]
        squares = share.state("squares")
        foreach_mul_(squares, decay)
        foreach_addcmul_(squares, share.slopes, share.slopes, value=1 - decay)
        for state in share.states:
            state["steps"] += 1

    def _decays(self, group: dict[str, Any], beta: float) -> tuple[float, ...]:
        return (*super()._decays(group, beta), group["betas"][1], 1 - group["betas"][1])

    def _moments(self, share: Share) -> Moments:
        for state in share.states:
            state["steps"] += 1
        roots = self._roots(share)
        averages, squares = share.state("average"), share.state("squares")
        shares = [1 / root for root in roots]
        return Moments(share.weights, share.slopes, averages, squares, shares, share.group["eps"])

    def _roots(self, share: Share) -> list[float]:
        counts = [state["steps"] for state in share.states]
        roots = {count: math.sqrt(1 - share.group["betas"][1] ** count) for count in set(counts)}
        return [roots[count] for count in counts]

    def _directions(self, share: Share) -> list[Tensor]:
        metric = foreach_sqrt([widen(value) for value in share.state("squares")])  # half types have no 1e-8
        roots = self._roots(share)
        foreach_div_(metric, roots[0] if len(set(roots)) == 1 else roots)
        foreach_add_(metric, share.group["eps"])
        return list(foreach_div(share.state("average"), metric))

    def _flat_directions(self, averages: list[Tensor], ways: list[Tensor]) -> list[Tensor]:
        return flat(ways)

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Both forms of decay."""
        return [
            lambda params: cls(params, lr=0.02, eps=1e-6, weight_decay=0.01),
            lambda params: cls(params, lr=0.02, eps=1e-6, weight_decay=0.01, divide=False),
        ]
