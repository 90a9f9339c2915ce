"""Optimistic mirror descent between random and adversarial losses: the last gradient is the guess of the next one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import (
    check_choice,
    check_flag,
    check_number,
    check_simplex,
    check_tensor,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.mirror import Projection, entropy_step, euclidean_step
from ...core.optimizer import ListOptimizer, Share, real
from ...core.reductions import widen
from ...core.search import Float
from ...core.torch_private import foreach_add_, foreach_copy_, foreach_mul, foreach_sub
from ...core.wrapper import Params

MODES = ("convex", "strongly_convex", "exp_concave", "fixed")
MIRRORS = ("euclidean", "entropy")
KINDS = ("constant", "flip", "walk")
LARGEST = 4096
"""Entries of a parameter for which a matrix is kept, at most."""


def optimistic_omd_step(
    anchor: F[Tensor, "*shape"],
    grad: F[Tensor, "*shape"],
    eta: float | Tensor,
    *,
    hint: F[Tensor, "*shape"] | None = None,
    next_eta: float | Tensor | None = None,
    mirror: str = "euclidean",
    project: Projection | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The end of a round and the play of the next: the anchor moves along the gradient, the play along the hint.

    .. math:: \hat x_{t+1} = \arg\min_{x \in X} \eta_t \langle g_t, x \rangle + B(x, \hat x_t), \qquad
        x_{t+1} = \arg\min_{x \in X} \eta_{t+1} \langle M_{t+1}, x \rangle + B(x, \hat x_{t+1})

    with B half the squared distance, or the Kullback-Leibler divergence of rows of the simplex.

    Args:
        anchor: :math:`\hat x_t`, of any shape; for ``"entropy"`` rows of the simplex in the last dimension.
        grad: :math:`g_t`, taken at what was played, of its shape.
        eta: :math:`\eta_t` >= 0, a number or a tensor that fits the shape.
        hint: :math:`M_{t+1}`; the gradient itself by default. Zeros: plain mirror descent.
        next_eta: :math:`\eta_{t+1}`; eta by default.
        mirror: ``"euclidean"`` or ``"entropy"``.
        project: the nearest point of X, for ``"euclidean"``; None: no constraint.

    Returns:
        what is played next, and the next anchor.

    Raises:
        ValueError: another shape, another mirror, rows that are no probabilities, a projection with ``"entropy"``.

    Example:
        >>> optimistic_omd_step(torch.tensor([0.0]), torch.tensor([1.0]), 0.1)
        (tensor([-0.2000]), tensor([-0.1000]))

    Source: Optimistic Online Mirror Descent, arXiv:2302.04552.
    """
    check_tensor("anchor", anchor, floating=True)
    check_tensor("grad", grad, shape=tuple(anchor.shape))
    check_choice("mirror", mirror, MIRRORS)
    guess = grad if hint is None else hint
    check_tensor("hint", guess, shape=tuple(anchor.shape))
    following = eta if next_eta is None else next_eta
    for name, rate in (("eta", eta), ("next_eta", following)):
        if not isinstance(rate, Tensor):
            check_number(name, rate, low=0.0)
    if mirror == "entropy":
        _check_rows("anchor", anchor, project)
        log_p = entropy_step(anchor.log(), grad, eta)
        return entropy_step(log_p, guess, following).exp(), log_p.exp()
    moved = euclidean_step(anchor, grad, eta, project)
    return euclidean_step(moved, guess, following, project), moved


def _check_rows(argument: str, value: Tensor, project: object) -> None:
    if project is not None:
        refuse("project", "None with mirror 'entropy', which keeps the simplex by itself", project)
    check_simplex(argument, value)


class OptimisticOMD(ListOptimizer):
    r"""Optimistic online mirror descent: parameters are what is played, and its gradient is the hint of the next play.

    .. math:: \hat x_{t+1} = \Pi_X (\hat x_t - \eta_t g_t), \qquad x_{t+1} = \Pi_X (\hat x_{t+1} - \eta_{t+1} g_t),
        \qquad V_t = \sum_{s \le t} |g_s - g_{s-1}|^2, \quad g_0 = 0

    Steps by mode, each times ``lr``:

    - ``"convex"``: :math:`\eta_t = D / \sqrt{\delta + 4 G^2 + V_{t-1}}`: they stop shrinking where gradients stop
      changing;
    - ``"strongly_convex"``: :math:`\eta_t = 2 / (\lambda t)`;
    - ``"exp_concave"``: :math:`\eta_t = H_t^{-1}`,
      :math:`H_t = (1 + \beta G^2 / 2) I + \frac\beta2 \sum_{s<t} g_s g_s^T`,
      :math:`\beta = \frac12 \min(1 / (4 G D), \alpha)`, projected in the norm of :math:`H_t`;
    - ``"fixed"``: :math:`\eta_t = 1`, so that lr is the step.

    A group is one decision: V is summed over its parameters. H and the projection are those of each parameter. Noise of
    one gradient enters the play twice and V four times, so that the hint pays where means drift slowly and noise is
    low. With a fixed step and no set, a step is along twice the gradient less the one before.

    Args:
        params: parameters or groups: the first play, which the hint 0 leaves at the anchor.
        diameter: D > 0, of the set.
        grad_bound: G >= 0, the longest gradient; 0 leaves it out.
        mode: ``"convex"``, ``"strongly_convex"``, ``"exp_concave"`` or ``"fixed"``.
        project: the nearest point of the set of one parameter, a function of a tensor; ``"ball"``: the ball of diameter
            D around 0, the only set in mode ``"exp_concave"``; None: no constraint.
        lr: factor of each step, >= 0.
        delta: > 0; in theory 10 D^2 L^2 for gradients with Lipschitz constant L.
        curvature: lambda of strongly convex losses, alpha of exp-concave ones, > 0.
        hint: False plays the anchor: mirror descent, with V of squared gradients.
        mirror: ``"euclidean"``, or ``"entropy"`` for parameters whose rows are probabilities, which they stay.
        maximize: climb.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: a value outside its range, a set that mode or mirror doesn't have, rows that are no probabilities,
            a parameter of more than 4096 entries in mode ``"exp_concave"``.
        TypeError: a sparse gradient; complex parameters with ``"entropy"``.

    Example:
        >>> x = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = OptimisticOMD([x], diameter=2.0, grad_bound=1.0, project="ball")
        >>> for slope in (1.0, -1.0):
        ...     x.grad = torch.tensor([slope])
        ...     optimizer.step()
        ...     print(x.data)
        tensor([-1.])
        tensor([0.5545])

    Source: Optimistic Online Mirror Descent, arXiv:2302.04552.
    """

    name = "optimistic_omd"
    search = {"diameter": Float(0.01, 10.0, log=True)}
    ranges = {
        "lr": {"low": 0.0},
        "diameter": {"low": 0.0, "open_low": True},
        "grad_bound": {"low": 0.0, "high": math.inf, "open_high": True},
        "delta": {"low": 0.0, "open_low": True},
        "curvature": {"low": 0.0, "open_low": True},
    }

    def __init__(
        self,
        params: Params,
        diameter: float = 1.0,
        grad_bound: float = 0.0,
        mode: str = "convex",
        project: str | Projection | None = None,
        *,
        lr: float = 1.0,
        delta: float = 1.0,
        curvature: float = 1.0,
        hint: bool = True,
        mirror: str = "euclidean",
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        if isinstance(project, str):
            check_choice("project", project, ("ball",))
        elif project is not None and not callable(project):
            refuse_type("project", "a function of a tensor, 'ball' or None", project)
        self.project = project
        options = {
            "lr": lr, "diameter": diameter, "grad_bound": grad_bound, "mode": mode, "delta": delta,
            "curvature": curvature, "hint": hint, "mirror": mirror, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, options, foreach=foreach)

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse options of a group that are out of range, or don't go together."""
        super().check_options(options)
        check_choice("mode", options["mode"], MODES)
        check_flag("hint", options["hint"])
        check_choice("mirror", options["mirror"], MIRRORS)
        if options["mode"] == "exp_concave":
            if self.project not in (None, "ball"):
                refuse("project", "'ball' or None in mode 'exp_concave'", self.project)
            if options["mirror"] == "entropy":
                refuse("mirror", "'euclidean' in mode 'exp_concave'", "entropy")
        if options["mirror"] == "entropy" and self.project is not None:
            refuse("project", "None with mirror 'entropy', which keeps the simplex by itself", self.project)

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        play = parameter.detach()
        state: dict[str, Any] = {"rounds": 0, "gradient": torch.zeros_like(play)}
        if group["mirror"] == "entropy":
            if play.is_complex():
                refuse_type("params", "real rows of probabilities, no complex ones", parameter)
            check_simplex("params", play)
            if values_visible(play) and not bool((play > 0).all()):
                refuse("params", "probabilities > 0", float(play.min()))
            state["anchor"] = play.log()
        else:
            state["anchor"] = play.clone(memory_format=torch.preserve_format)
        if group["mode"] == "exp_concave":
            entries = real(play).numel()
            if entries > LARGEST:
                refuse("params", f"at most {LARGEST} entries in mode 'exp_concave'", parameter)
            state["outer"] = widen(real(play)).new_zeros((entries, entries))
        else:
            state["variation"] = torch.zeros((), dtype=torch.float64, device=play.device)
        return state

    def _advance(self) -> None:
        shares = self._shares()
        sums = {id(group): self._variation(group) for group in self.param_groups}
        for share in shares:
            if share.group["mode"] == "exp_concave":
                self._by_matrix(share)
                continue
            changes = share.slopes
            if share.group["hint"]:
                changes = list(foreach_sub(share.slopes, share.state("gradient")))
            for change, state in zip(changes, share.states):
                state["variation"] = state["variation"] + widen(change).double().square().sum()
                state["rounds"] += 1
        for share in shares:
            if share.group["mode"] != "exp_concave":
                self._play(share, sums[id(share.group)], self._variation(share.group))

    def _variation(self, group: dict[str, Any]) -> Tensor:
        """V of a group, as far as it is known."""
        values = [self.state[p]["variation"] for p in group["params"] if "variation" in self.state.get(p, {})]
        return torch.stack([value.to(values[0].device) for value in values]).sum() if values else torch.zeros(())

    def _play(self, share: Share, before: Tensor, after: Tensor) -> None:
        group, anchors, rounds = share.group, share.state("anchor"), [state["rounds"] for state in share.states]
        rates = [_rate(group, before, t) for t in rounds]
        following = [_rate(group, after, t + 1) for t in rounds]
        foreach_copy_(share.state("gradient"), share.slopes)
        if group["mirror"] == "entropy":
            for w, anchor, slope, rate, then in zip(share.weights, anchors, share.slopes, rates, following):
                anchor.copy_(entropy_step(anchor, slope, rate.to(anchor.dtype)))
                w.copy_(entropy_step(anchor, slope, then.to(anchor.dtype)).exp() if group["hint"] else anchor.exp())
            return
        foreach_add_(anchors, _times(share.slopes, rates), alpha=-1)
        self._inside(group, anchors)
        foreach_copy_(share.weights, anchors)
        if group["hint"]:
            foreach_add_(share.weights, _times(share.slopes, following), alpha=-1)
            self._inside(group, share.weights)

    def _inside(self, group: dict[str, Any], points: list[Tensor]) -> None:
        if self.project == "ball":
            for point in points:
                length = torch.linalg.vector_norm(widen(point))
                point.mul_((group["diameter"] / 2 / length).clamp(max=1.0).to(point.dtype))
        elif callable(self.project):
            for point in points:
                point.copy_(self.project(point))

    def _by_matrix(self, share: Share) -> None:
        group = share.group
        bound, diameter, radius = group["grad_bound"], group["diameter"], None
        beta = 0.5 * min(1 / (4 * bound * diameter) if bound else math.inf, group["curvature"])
        if self.project == "ball":
            radius = diameter / 2
        for w, slope, state in zip(share.weights, share.slopes, share.states):
            anchor, g = real(state["anchor"]), widen(slope).reshape(-1)
            outer, eye = state["outer"], torch.eye(g.numel(), dtype=g.dtype, device=g.device)
            rows = widen(anchor).reshape(-1)
            scale = 1 + beta * bound * bound / 2
            rows = _nearest(scale * eye + beta / 2 * outer, rows, group["lr"] * g, radius)
            anchor.copy_(rows.reshape(anchor.shape))
            outer.addr_(g, g)
            if group["hint"]:
                rows = _nearest(scale * eye + beta / 2 * outer, widen(anchor).reshape(-1), group["lr"] * g, radius)
            w.copy_(rows.reshape(w.shape))
            real(state["gradient"]).copy_(slope)
            state["rounds"] += 1

    @classmethod
    def builders(cls) -> list[Callable[[Params], OptimisticOMD]]:
        """Fixed steps, and steps by the change of gradients, without a set."""
        return [
            lambda params: cls(params, mode="fixed", lr=6e-4),
            lambda params: cls(params, diameter=0.02, grad_bound=5.0),
        ]


def _rate(group: dict[str, Any], variation: Tensor, t: int) -> Tensor:
    if group["mode"] == "convex":
        rate: Tensor = group["diameter"] / (group["delta"] + 4 * group["grad_bound"] ** 2 + variation).sqrt()
    else:
        rate = torch.ones_like(variation)
        if group["mode"] == "strongly_convex":
            rate = rate * (2 / (group["curvature"] * t))
    return rate * float(group["lr"])


def _times(slopes: list[Tensor], rates: list[Tensor]) -> list[Tensor]:
    if all(rate is rates[0] for rate in rates):
        return list(foreach_mul(slopes, rates[0]))
    return [slope * rate for slope, rate in zip(slopes, rates)]


def _nearest(matrix: Tensor, anchor: Tensor, slope: Tensor, radius: float | None) -> Tensor:
    """The point that minimises <slope, z> + |z - anchor|^2 / 2 in the norm of a matrix, in a ball around 0."""
    free: Tensor = anchor - torch.linalg.solve(matrix, slope)
    if radius is None or bool(torch.linalg.vector_norm(free) <= radius):
        return free
    values, vectors = torch.linalg.eigh(matrix)
    pull = values * (vectors.T @ free)  # the point is that of matrix + mu, where its length is the radius
    low, high = torch.zeros_like(values[0]), torch.linalg.vector_norm(pull) / radius
    for _ in range(100):
        middle = (low + high) / 2
        outside = torch.linalg.vector_norm(pull / (values + middle)) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    inside: Tensor = vectors @ (pull / (values + high))
    return inside


class SEAStream(NamedTuple):
    """Linear losses of so many rounds.

    Args:
        gradients: what a player sees, ``[T, d]``.
        means: their expectations, ``[T, d]``.
    """

    gradients: Tensor
    means: Tensor


def sea_stream(
    kind: str, sigma: float, drift: float, T: int, seed: int, *, dim: int = 1, start: F[Tensor, " d"] | None = None
) -> SEAStream:
    r"""Linear losses whose gradients are normal around slowly changing means: between i.i.d. and adversarial.

    .. math:: f_t(x) = \langle g_t, x \rangle, \qquad g_t = m_t + \sigma \xi_t, \quad \xi_t \sim N(0, I)

    - ``"constant"``: :math:`m_t = m_1`, i.i.d.; drift is 0;
    - ``"flip"``: :math:`m_t` changes its sign every 1 / drift rounds;
    - ``"walk"``: :math:`m_t` moves by a normal step of deviation drift, and is kept in [-1, 1].

    Args:
        kind: one of these.
        sigma: >= 0; 0 is the adversary of gradual variation.
        drift: in [0, 1].
        T: rounds >= 1.
        seed: of the noise and of the walk.
        dim: d >= 1.
        start: :math:`m_1`, ``[d]``; ones by default.

    Returns:
        gradients and means, in float64.

    Raises:
        ValueError: another kind, a value outside its range, a drift of a constant mean.

    Example:
        >>> sea_stream("flip", 0.0, 0.5, 5, 0).gradients[:, 0]
        tensor([ 1.,  1., -1., -1.,  1.], dtype=torch.float64)

    Source: Optimistic Online Mirror Descent, arXiv:2302.04552.
    """
    check_choice("kind", kind, KINDS)
    check_number("sigma", sigma, low=0.0, high=math.inf, open_high=True)
    check_number("drift", drift, low=0.0, high=1.0)
    check_number("T", T, low=1, integer=True)
    check_number("seed", seed, low=0, integer=True)
    check_number("dim", dim, low=1, integer=True)
    if kind == "constant" and drift:
        refuse("drift", "0 of a constant mean", drift)
    first = torch.ones(dim, dtype=torch.float64)
    if start is not None:
        check_tensor("start", start, floating=True, shape=(dim,))
        first = start.detach().double()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((T, dim), generator=generator, dtype=torch.float64)
    means = first.repeat(T, 1)
    if kind == "flip" and drift:
        turns = torch.arange(T) // round(1 / drift)
        means = means * (1 - 2 * (turns % 2))[:, None]
    elif kind == "walk":
        moves = drift * torch.randn((T, dim), generator=generator, dtype=torch.float64)
        for t in range(1, T):
            means[t] = (means[t - 1] + moves[t]).clamp(-1.0, 1.0)
    return SEAStream(means + sigma * noise, means)


class SEAQuantities(NamedTuple):
    """What bounds the regret.

    Args:
        noise: sum over rounds of the variance of the gradient where it is largest.
        drift: sum over rounds of the squared change of the mean gradient where it is largest.
        largest_noise, largest_drift: of one round.
    """

    noise: float
    drift: float
    largest_noise: float
    largest_drift: float


def sea_quantities(means: F[Tensor, "T points d"], variances: F[Tensor, "T points"]) -> SEAQuantities:
    r"""Cumulative stochastic variance and adversarial variation of a stream of losses.

    .. math:: \sigma^2_{1:T} = \sum_t \max_x E|\nabla f_t(x) - \nabla F_t(x)|^2, \qquad
        \Sigma^2_{1:T} = \sum_{t \ge 2} \max_x |\nabla F_t(x) - \nabla F_{t-1}(x)|^2

    The regret of :class:`OptimisticOMD` is of the order of the sum of their roots (convex), of their logarithm
    (strongly convex). No noise: gradual variation; no drift: i.i.d.

    Args:
        means: :math:`\nabla F_t(x)` at points x of the set; of linear losses one point, ``[T, 1, d]`` or ``[T, d]``.
        variances: :math:`E|\nabla f_t(x) - \nabla F_t(x)|^2`, ``[T, points]`` or ``[T]``, >= 0.

    Returns:
        both sums and both largest terms.

    Raises:
        ValueError: other shapes, variances below 0.

    Example:
        >>> stream = sea_stream("flip", 0.5, 0.5, 5, 0)
        >>> sea_quantities(stream.means, torch.full((5,), 0.25))
        SEAQuantities(noise=1.25, drift=8.0, largest_noise=0.25, largest_drift=4.0)

    Source: Optimistic Online Mirror Descent, arXiv:2302.04552.
    """
    check_tensor("means", means, ndim=(2, 3), floating=True)
    at_points = means.double() if means.ndim == 3 else means.double()[:, None]
    check_tensor("variances", variances, ndim=(1, 2), floating=True)
    spread = variances.double() if variances.ndim == 2 else variances.double()[:, None]
    check_tensor("variances", spread, shape=(at_points.shape[0], at_points.shape[1]))
    if values_visible(spread) and bool((spread < 0).any()):
        refuse("variances", "values >= 0", float(spread.min()))
    of_round = spread.amax(1)
    changes = at_points.diff(dim=0).square().sum(-1).amax(1)
    largest = float(changes.max()) if len(changes) else 0.0
    return SEAQuantities(float(of_round.sum()), float(changes.sum()), float(of_round.max()), largest)
