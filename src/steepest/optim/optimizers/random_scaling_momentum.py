"""Momentum whose every update is multiplied by a random number of mean 1, so that the loss falls as it is predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse
from ...core.optimizer import ListOptimizer, Share, momentum_step
from ...core.search import Float
from ...core.torch_private import foreach_copy_, foreach_lerp_
from ...core.wrapper import Params

SCALINGS = ("exponential", "uniform", "constant")


def exponential_scaling(generator: torch.Generator | None = None) -> float:
    r"""One draw of Exp(1): mean 1, variance 1, above 0.

    For s of this distribution and any locally Lipschitz F,
    :math:`E[F(x + s D) - F(x)] = E[\langle \nabla F(x + s D), D \rangle]`.

    Args:
        generator: of the CPU; None draws from torch's own.

    Example:
        >>> s = exponential_scaling(torch.Generator().manual_seed(0))
        >>> 0.0 < s < 40.0
        True

    Source: Random Scaling and Momentum for Non-smooth Non-convex Optimization, arXiv:2405.09742.
    """
    return _drawn("exponential", generator)


def _drawn(scaling: str, generator: torch.Generator | None) -> float:
    if scaling == "constant":
        return 1.0
    u = torch.rand((), generator=generator, dtype=torch.float64)
    if scaling == "uniform":
        return 2.0 * float(u)
    return float(-torch.log1p(-u).clamp(max=-torch.finfo(torch.float64).tiny))


class RandomScalingSGDM(ListOptimizer):
    r"""SGD with momentum whose update is multiplied by s ~ Exp(1), one number a step for all parameters.

    .. math:: m \leftarrow \beta' m + g, \quad x \leftarrow x - s\, \alpha\, m, \qquad
        \beta' = \frac{\beta}{1 + \mu}

    It is the online learner of :class:`ExponentiatedO2NC` with :math:`D = -\alpha m`; with constant scaling it is
    torch's SGD with momentum. Draws double the variance of updates: tune the rate anew. Ranks of one training draw the
    same numbers if their generators (or torch's own) have one seed. :meth:`averaged_parameters` gives the publication's
    output.

    Args:
        params: parameters or groups.
        lr: alpha >= 0.
        momentum: beta in [0, 1).
        mu: quadratic regulariser, eta mu of the publication, >= 0: it lowers the momentum.
        scaling: ``"exponential"``; for ablations ``"uniform"`` in [0, 2] and ``"constant"`` 1.
        averaging: keep the average of the iterates, one more number a parameter.
        maximize: climb.
        foreach: lists of tensors (True, and None), or one tensor after the other.
        generator: of the CPU, part of the state; None draws from torch's own.

    Raises:
        ValueError: a value outside its range.
        TypeError: a sparse gradient.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = RandomScalingSGDM([x], lr=0.1, scaling="constant")
        >>> x.grad = torch.tensor([2.0])
        >>> optimizer.step()
        >>> x.data
        tensor([0.8000])

    Source: Random Scaling and Momentum for Non-smooth Non-convex Optimization, arXiv:2405.09742.
    """

    name = "random_scaling_sgdm"
    search = {"momentum": Float(0.8, 0.99)}
    ranges = {
        "lr": {"low": 0.0},
        "momentum": {"low": 0.0, "high": 1.0, "open_high": True},
        "mu": {"low": 0.0},
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        momentum: float = 0.99,
        mu: float = 0.0,
        scaling: str = "exponential",
        generator: torch.Generator | None = None,
        *,
        averaging: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        check_choice("scaling", scaling, SCALINGS)
        check_flag("averaging", averaging)
        self.scaling, self.averaging = scaling, averaging
        self.scale = 1.0
        """The number of the last step."""
        options = {"lr": lr, "momentum": momentum, "mu": mu, "maximize": maximize}
        super().__init__(params, options, foreach=foreach, generator=generator)

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}
        if self.averaging:
            state |= {"average": torch.zeros_like(parameter, memory_format=torch.preserve_format), "steps": 0}
        return state

    def _advance(self) -> None:
        self.scale = _drawn(self.scaling, self.generator)
        super()._advance()

    def _move(self, share: Share) -> None:
        group = share.group
        momenta = share.state("momentum_buffer")
        factor = group["momentum"] / (1 + group["mu"])
        momentum_step(share.weights, share.slopes, momenta, self.scale * group["lr"], factor)
        if self.averaging:
            foreach_lerp_(share.state("average"), share.weights, 1 - group["momentum"])
            for state in share.states:
                state["steps"] += 1

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        r"""Inside the block parameters are averages of the iterates; afterwards what they were, to the last bit.

        .. math:: \bar x_t = \frac{1 - \beta}{1 - \beta^t} \sum_{k = 1}^t \beta^{t - k} x_k

        Raises:
            ValueError: the optimizer was built without ``averaging``.
        """
        if not self.averaging:
            refuse("averaging", "True, where averages are asked for", False)
        pairs = [(group, p) for group in self.param_groups for p in group["params"] if self.state.get(p)]
        before = [p.detach().clone() for _, p in pairs]
        with torch.no_grad():
            for group, p in pairs:
                state = self.state[p]
                p.copy_(state["average"] / (1 - group["momentum"] ** state["steps"]))
        try:
            yield
        finally:
            with torch.no_grad():
                if pairs:
                    foreach_copy_([p for _, p in pairs], before)

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Random and constant scaling, a regulariser, averages."""
        return [
            lambda params: cls(params, lr=0.005, momentum=0.9, generator=torch.Generator().manual_seed(0)),
            lambda params: cls(params, lr=0.005, momentum=0.9, mu=0.1, scaling="constant", averaging=True),
        ]


class ExponentiatedO2NC:
    r"""Online to non-convex: an online learner picks each displacement, which is scaled by s ~ Exp(1).

    .. math:: x_t = x_{t-1} + s_t D_t, \qquad D_{t+1} = \frac{\beta}{1 + \eta \mu} (D_t - \eta\, g_t), \quad D_1 = 0

    with g_t a gradient at x_t. :class:`RandomScalingSGDM` is this with rate eta beta' (beta' the factor above) and its
    steps shifted by one: there the gradient comes before the displacement that it changes.

    Args:
        x: the first point, a tensor or several; copied.
        eta: rate of the learner, above 0.
        beta: its factor, in (0, 1].
        mu: its quadratic regulariser >= 0.
        generator: of the CPU; None draws from torch's own.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> o2nc = ExponentiatedO2NC(torch.tensor([1.0]), eta=0.1, beta=0.9)
        >>> o2nc.advance(scale=1.0)[0], o2nc.feed([torch.tensor([1.0])])[0]
        (tensor([1.]), tensor([-0.0900]))

    Source: Random Scaling and Momentum for Non-smooth Non-convex Optimization, arXiv:2405.09742.
    """

    def __init__(
        self,
        x: Tensor | Sequence[Tensor],
        eta: float,
        beta: float = 0.99,
        mu: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        points = [x] if isinstance(x, Tensor) else list(x)
        for point in points:
            check_tensor("x", point, floating=True)
        check_number("eta", eta, low=0.0, open_low=True)
        check_number("beta", beta, low=0.0, high=1.0, open_low=True)
        check_number("mu", mu, low=0.0)
        self.x = [point.detach().clone() for point in points]
        self.displacement = [torch.zeros_like(point) for point in self.x]
        self.eta, self.beta, self.mu, self.generator = eta, beta, mu, generator

    @torch.no_grad()
    def advance(self, scale: float | None = None) -> list[Tensor]:
        """The next point: displaced by s_t D_t.

        Args:
            scale: s_t in place of a draw.
        """
        s = exponential_scaling(self.generator) if scale is None else scale
        self.x = [point + s * d for point, d in zip(self.x, self.displacement)]
        return self.x

    @torch.no_grad()
    def feed(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The learner's next displacement, from the gradient at the point of :meth:`advance`."""
        factor = self.beta / (1 + self.eta * self.mu)
        self.displacement = [factor * (d - self.eta * g) for d, g in zip(self.displacement, gradients)]
        return self.displacement
