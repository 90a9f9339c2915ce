"""Polyak steps in a norm that follows the curvature: preconditioned SPS, with slack where no model fits the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse_type
from ...core.moments import Moments, runs
from ...core.optimizer import LossAware, Share, check_loss, flat, inner, over_ranks
from ...core.reductions import widen
from ...core.scalars import Scalar, chosen, clamped, like, quotient, readable
from ...core.search import Choice, Float
from ...core.torch_private import (
    foreach_add_,
    foreach_addcmul_,
    foreach_div,
    foreach_div_,
    foreach_mul,
    foreach_mul_,
    foreach_sqrt,
    foreach_sub_,
)
from ...core.wrapper import Params

PRECONDITIONERS = ("none", "hutchinson", "adagrad", "adam")
SLACKS = (None, "L1", "L2")
_FLAT = 1e-13
"""A squared norm of the gradient below which no step is taken."""


class HutchinsonPreconditioner:
    r"""An estimate of the Hessian's diagonal from products with random signs.

    .. math:: v = z \odot (H z), \quad z \in \{-1, 1\}^n, \qquad D_0 = \text{mean of some } v, \quad
        D \leftarrow \beta D + (1 - \beta) v, \qquad \text{used: } \max(|D|, floor)

    The mean of v over z is the diagonal. It keeps nothing: estimates are the caller's.

    Args:
        beta: of the average, in [0, 1].
        floor: the least that is used, above 0.
        init_samples: products of the first estimate >= 1.
        generator: of the signs, on the parameters' device; None draws from torch's own.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> loss = 0.5 * (3 * w[0] ** 2 + 2 * w[1] ** 2)
        >>> slopes = torch.autograd.grad(loss, [w], create_graph=True)
        >>> HutchinsonPreconditioner().sample(slopes, [w])
        [tensor([3., 2.])]

    Source: Stochastic Gradient Descent with Preconditioned Polyak Step-size, arXiv:2310.02093.
    """

    def __init__(
        self,
        beta: float = 0.999,
        floor: float = 0.1,
        init_samples: int = 100,
        generator: torch.Generator | None = None,
    ) -> None:
        check_number("beta", beta, low=0.0, high=1.0)
        check_number("floor", floor, low=0.0, open_low=True)
        check_number("init_samples", init_samples, low=1, integer=True)
        self.beta, self.floor, self.init_samples, self.generator = beta, floor, init_samples, generator

    def sample(self, slopes: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """One z * (H z) for each parameter.

        Args:
            slopes: gradients of the parameters, with their graph.
            parameters: where the Hessian is taken.
        """
        signs = [torch.randint(0, 2, p.shape, generator=self.generator, device=p.device) * 2 - 1 for p in parameters]
        signs = [z.to(p.dtype) for z, p in zip(signs, parameters)]
        curved = [(slope, z) for slope, z in zip(slopes, signs) if slope.requires_grad]
        if not curved:  # the loss is linear
            return [torch.zeros_like(p) for p in parameters]
        products = torch.autograd.grad(
            [slope for slope, _ in curved],
            list(parameters),
            [z for _, z in curved],
            retain_graph=True,
            allow_unused=True,
        )
        return [torch.zeros_like(p) if hz is None else z * hz for p, hz, z in zip(parameters, products, signs)]

    def first(self, slopes: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """The estimate of the first batch: the mean of ``init_samples`` products."""
        mean = [torch.zeros_like(p) for p in parameters]
        for _ in range(self.init_samples):
            foreach_add_(mean, self.sample(slopes, parameters), alpha=1 / self.init_samples)
        return mean

    @torch.no_grad()
    def used(self, estimates: Sequence[Tensor]) -> list[Tensor]:
        """The positive diagonal that an estimate stands for."""
        return [widen(value).abs().clamp(min=self.floor) for value in estimates]


class PSPS(LossAware):
    r"""The stochastic Polyak step in the norm of a diagonal D: to the nearest point where the linear model is zero.

    .. math:: q = \sum g^2 / D, \qquad w \leftarrow w - s\, D^{-1} g, \qquad s = f / q, \\
        L1: \; t = \frac{\max(0, f - \xi + \lambda)}{1 + q}, \; s = \min(t, f / q), \;
        \xi \leftarrow \max(0, \xi - \lambda + t), \qquad
        L2: \; c = \frac{1}{1 + \lambda}, \; s = \frac{\max(0, f - c\, \xi)}{q + c}, \; \xi \leftarrow c\, (\xi + s)

    The loss f must be >= 0 (keep weight decay out of it). q runs over all parameters. D is 1, the Hessian's diagonal
    (:class:`HutchinsonPreconditioner`), or that of AdaGrad or Adam. Where q is below 1e-13 nothing moves. Without
    slack, and where the model cannot fit the data, f / q grows without bound near the minimum: use slack or ``cap``.

    With ``"hutchinson"`` the closure runs forward only and returns the loss with its graph (``closure.loss``, where
    there is one, is taken instead), or ``loss=`` is such a loss; second derivatives are taken here, and gradients and
    curvature are averaged over ranks, which must draw the same signs. On an accelerator a
    loss that is negative or not finite moves nothing; elsewhere it is refused.

    Args:
        params: parameters or groups.
        preconditioner: ``"none"`` (SPS), ``"hutchinson"``, ``"adagrad"``, ``"adam"``.
        slack: None, ``"L1"``, ``"L2"``.
        lam: lambda >= 0 of the slack.
        beta: of averages in ``"hutchinson"`` and ``"adam"``, in [0, 1).
        floor: the least curvature used, above 0.
        init_samples: products of the first estimate of the Hessian >= 1.
        lr: what multiplies the step of a group >= 0; 1 is the publication's.
        cap: the largest s, above 0.
        eps: added below the line in ``"adagrad"`` and ``"adam"``, above 0.
        foreach: lists of tensors (True, and None), or one tensor after the other.
        generator: of the signs, part of the state; None draws from torch's own.

    Raises:
        ValueError: a value outside its range; a loss that is negative or not finite.
        TypeError: a step without closure and loss, or with both; no graph where one is needed; a sparse gradient.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = PSPS([w])
        >>> loss = w.square().sum()
        >>> loss.backward()
        >>> optimizer.step(loss=loss.detach()).item()
        25.0
        >>> w.data
        tensor([1.5000, 2.0000])

    Source: Stochastic Gradient Descent with Preconditioned Polyak Step-size, arXiv:2310.02093.
    """

    name = "psps"
    search = {"preconditioner": Choice(("none", "adagrad", "adam")), "lam": Float(1e-3, 1.0, log=True)}

    def __init__(
        self,
        params: Params,
        preconditioner: str = "none",
        slack: str | None = None,
        lam: float = 0.01,
        beta: float = 0.999,
        floor: float = 0.1,
        init_samples: int = 100,
        *,
        lr: float = 1.0,
        cap: float = math.inf,
        eps: float = 1e-8,
        foreach: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_choice("preconditioner", preconditioner, PRECONDITIONERS)
        check_choice("slack", slack, SLACKS)
        check_number("lam", lam, low=0.0)
        check_number("beta", beta, low=0.0, high=1.0, open_high=True)
        check_number("cap", cap, low=0.0, open_low=True)
        check_number("eps", eps, low=0.0, open_low=True)
        self.preconditioner, self.slack_kind, self.lam, self.beta = preconditioner, slack, lam, beta
        self.cap, self.eps = cap, eps
        self.curvature = HutchinsonPreconditioner(beta, floor, init_samples)
        self.slack: Scalar | None = None
        super().__init__(params, {"lr": lr}, foreach=foreach, generator=generator)

    def own_state(self) -> dict[str, Any]:
        """The slack, and the generator."""
        return {**super().own_state(), **({} if self.slack is None else {"slack": self.slack})}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave."""
        super().load_own_state(state)
        slack = state.get("slack")
        self.slack = slack.clone() if isinstance(slack, Tensor) else slack

    def step(self, closure: Callable[[], Any] | None = None, loss: Tensor | float | None = None) -> Any:
        """One step; see the class for what the closure does.

        Returns:
            The loss.
        """
        if self.preconditioner != "hutchinson" or (closure is None) == (loss is None):
            return super().step(closure, loss)
        with torch.enable_grad():
            value = getattr(closure, "loss", closure)() if closure is not None else loss
            if not isinstance(value, Tensor) or not value.requires_grad:
                refuse_type("closure", "a forward pass alone, that gives the loss with its graph", value)
            check_tensor("closure", value, ndim=0, floating=True)
            moving = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            slopes = torch.autograd.grad(value, moving, create_graph=True, allow_unused=True)
            pairs = [(p, slope) for p, slope in zip(moving, slopes) if slope is not None]
            check_loss(value, 0.0)
            for p, slope in zip(moving, slopes):
                p.grad = None if slope is None else over_ranks(slope.detach())
            if not pairs or not bool(self._finite()):
                return value.detach()
            self._estimate([p for p, _ in pairs], [slope for _, slope in pairs])
        with torch.no_grad():
            self._advance_with(over_ranks(value.detach()), self._shares())
        return value.detach()

    def _estimate(self, parameters: list[Tensor], slopes: list[Tensor]) -> None:
        self.curvature.generator = self.generator
        new = [p for p in parameters if "curvature" not in self.state[p]]
        first = dict(zip(map(id, parameters), self._of_all(self.curvature.first(slopes, parameters)))) if new else {}
        sampled = self._of_all(self.curvature.sample(slopes, parameters)) if len(new) < len(parameters) else parameters
        for p, sample in zip(parameters, sampled):
            known = self.state[p].get("curvature")
            if known is None:
                self.state[p]["curvature"] = first[id(p)]
            else:
                known.lerp_(sample.detach(), 1 - self.beta)

    def _of_all(self, estimates: list[Tensor]) -> list[Tensor]:
        """Over ranks, which draw the same signs."""
        return [over_ranks(estimate) for estimate in estimates]

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        if self.preconditioner in ("none", "hutchinson"):
            return {}
        squares = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return {"squares": squares, "steps": 0} if self.preconditioner == "adam" else {"squares": squares}

    def _directions(self, share: Share) -> list[Tensor]:
        """Gradients over the diagonal, whose averages are brought up to date."""
        if self.preconditioner == "none":
            return share.slopes
        if self.preconditioner == "hutchinson":
            return list(foreach_div(share.slopes, self.curvature.used(share.state("curvature"))))
        squares = share.state("squares")
        if self.preconditioner == "adam":
            foreach_mul_(squares, self.beta)
            foreach_addcmul_(squares, share.slopes, share.slopes, value=1 - self.beta)
            for state in share.states:
                state["steps"] += 1
        else:
            foreach_addcmul_(squares, share.slopes, share.slopes)
        metric = foreach_sqrt([widen(value) for value in squares])  # half types have no 1e-8
        if self.preconditioner == "adam":
            foreach_div_(metric, self._roots(share))
        foreach_add_(metric, self.eps)
        return list(foreach_div(share.slopes, metric))

    def _advance_with(self, loss: Tensor, shares: list[Share]) -> None:
        check_loss(loss, 0.0)
        members = [[share for share in shares if share.group is group] for group in self.param_groups]
        joined = [Share.joined(own) for own in members if own]  # a sum in the order of tensors, however they are taken
        names = ["squares"] if self.preconditioner in ("adagrad", "adam") else []
        lists = [(share.weights, share.slopes, *map(share.state, names)) for share in joined]
        if self.preconditioner != "hutchinson" and all(runs(*own) for own in lists):
            self._in_one_pass(loss, joined)
            return
        ways = [self._directions(share) for share in shares]
        q = inner(flat(g for share in shares for g in share.slopes), flat(way for own in ways for way in own))
        length = self._length(loss, readable(q))
        for share, own in zip(shares, ways):
            factor = length * share.group["lr"]
            if isinstance(factor, float):
                foreach_add_(share.weights, own, alpha=-factor)
            else:  # the host does not wait for it
                foreach_sub_(share.weights, foreach_mul(own, factor.to(own[0].dtype)))

    def _in_one_pass(self, loss: Tensor, shares: list[Share]) -> None:
        """The step over float32 on the CPU: each tensor is passed through once for its sum and once for its move."""
        moments = [self._moments(share) for share in shares]
        decays = (self.beta, 1 - self.beta) if self.preconditioner == "adam" else (1.0, 1.0)
        length = float(self._length(loss, sum(own.products(0.0, 1.0, *decays)[2] for own in moments)))
        for share, own in zip(shares, moments):
            own.move(length * share.group["lr"])

    def _moments(self, share: Share) -> Moments:
        """A share and one gradient more, for one pass: float32 on the CPU."""
        if self.preconditioner == "none":
            return Moments(share.weights, share.slopes)
        shares: list[float] = []
        if self.preconditioner == "adam":
            for state in share.states:
                state["steps"] += 1
            shares = [1 / root for root in self._roots(share)]
        return Moments(share.weights, share.slopes, (), share.state("squares"), shares, self.eps)

    def _roots(self, share: Share) -> list[float]:
        counts = [state["steps"] for state in share.states]
        roots = {count: math.sqrt(1 - self.beta**count) for count in set(counts)}
        return [roots[count] for count in counts]

    def _length(self, loss: Tensor, q: Scalar) -> Scalar:
        f = like(loss, q)
        slack = like(0.0 if self.slack is None else self.slack, q)
        plain = quotient(f, q)
        if self.slack_kind == "L1":
            t = clamped(f - slack + self.lam, low=0.0) / (1 + q)
            length, after = chosen(t < plain, t, plain), clamped(slack - self.lam + t, low=0.0)
        elif self.slack_kind == "L2":
            c = 1 / (1 + self.lam)
            length = clamped(f - c * slack, low=0.0) / (q + c)
            after = c * (slack + length)
        else:
            length, after = plain, slack
        fine = (f >= 0) & (f < math.inf) & (q >= _FLAT)  # also where the host may not look: q of NaN
        if self.slack_kind is not None:
            self.slack = chosen(fine, after, slack)
        return chosen(fine, clamped(length, high=self.cap), like(0.0, q))

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Diagonals from gradients alone."""
        return [
            lambda params: cls(params, lr=0.5, cap=0.5),
            lambda params: cls(params, "adam", lr=0.5, cap=0.5),
            lambda params: cls(params, "adagrad", lr=0.5),
        ]


class PSPSL1(PSPS):
    """:class:`PSPS` with the slack L1: for data that no model fits exactly.

    Args:
        params: parameters or groups.
        preconditioner: as there.
        lam: price of the slack >= 0.
        **options: those of :class:`PSPS`.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> w.grad = torch.tensor([6.0, 8.0])
        >>> _ = PSPSL1([w]).step(loss=25.0)
        >>> w.data
        tensor([1.5143, 2.0190])

    Source: Stochastic Gradient Descent with Preconditioned Polyak Step-size, arXiv:2310.02093.
    """

    name = "psps_l1"
    _kind = "L1"

    def __init__(self, params: Params, preconditioner: str = "none", lam: float = 0.01, **options: Any) -> None:
        super().__init__(params, preconditioner, self._kind, lam, **options)

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Diagonals from gradients alone, and slack that is dear: cheap slack takes up the loss of far starts."""
        return [
            lambda params: cls(params, lam=1.0, lr=0.5, cap=0.5),
            lambda params: cls(params, "adam", 1.0, lr=0.5, cap=0.5),
            lambda params: cls(params, "adagrad", 1.0, lr=0.5),
        ]


class PSPSL2(PSPSL1):
    """:class:`PSPS` with the slack L2: for data that no model fits exactly.

    Args:
        params: parameters or groups.
        preconditioner: as there.
        lam: price of the slack >= 0.
        **options: those of :class:`PSPS`.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> w.grad = torch.tensor([6.0, 8.0])
        >>> _ = PSPSL2([w]).step(loss=25.0)
        >>> w.data
        tensor([1.5147, 2.0196])

    Source: Stochastic Gradient Descent with Preconditioned Polyak Step-size, arXiv:2310.02093.
    """

    name = "psps_l2"
    exempt = {"minimum": "with this slack steps shrink with the loss: a minimum is approached as 1 / sqrt(steps)"}
    _kind = "L2"
