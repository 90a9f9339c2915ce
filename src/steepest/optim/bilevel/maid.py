"""Bilevel descent with certified inexact hyper-gradients, whose accuracies are found on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse, refuse_type

Lower = Callable[[Tensor, Tensor], Tensor]
Upper = Callable[[Tensor], Tensor]
Constant = float | Callable[[Tensor], float]
Solver = Callable[[Tensor, Tensor, float], tuple[Tensor, int]]
LONGEST = 100_000
"""Iterations after which the solver built in gives up."""


class Hypergradient(NamedTuple):
    """An inexact hyper-gradient and what is known of it."""

    z: Tensor
    """The direction, ``[d_theta]``."""
    omega: float
    """A bound of the distance from z to the gradient of F."""
    low: float
    """A lower bound of F."""
    high: float
    """An upper bound of F."""
    iterations: int
    """Of conjugate gradients: products with the Hessian."""


class Backtracking(NamedTuple):
    """The end of a line search."""

    accepted: bool
    theta: Tensor
    """The new one, or the old one where no step was accepted."""
    x: Tensor
    """The lower level's solution there, to the accuracy asked for."""
    step: float
    """The accepted step size, or 0."""
    iterations: int
    """Of the lower level's solver."""


class MAIDStep(NamedTuple):
    """An accepted step: accuracies with which it was taken, bounds of F after it, iterations so far."""

    theta: Tensor
    low: float
    high: float
    eps: float
    delta: float
    step: float
    omega: float
    norm: float
    """Of z."""
    lower_iterations: int
    adjoint_iterations: int


class MAIDResult(NamedTuple):
    """The last hyper-parameters, the lower level's solution there, and the accepted steps."""

    theta: Tensor
    x: Tensor
    history: list[MAIDStep]


def inexact_hypergradient(
    lower: Lower,
    upper: Upper,
    x: F[Tensor, " d_x"],
    theta: F[Tensor, " d_theta"],
    mu: float,
    L_g: float,
    eps: float,
    delta: float,
    *,
    L_J: float = 0.0,
    L_Ainv: float = 0.0,
    J_norm: float | None = None,
) -> Hypergradient:
    r"""The gradient through an inexact minimum by an inexact adjoint, and how far it is from the true one at most.

    With :math:`F(\theta) = g(x^*(\theta))`, :math:`A = h_{xx}`, :math:`J = h_{x\theta}` and
    :math:`\|x - x^*\| \le \epsilon`:

    .. math::
        \|A q - \nabla g\| \le \delta, \qquad z = -J^\top q, \qquad \|z - \nabla F\| \le \omega

    .. math::
        \omega = c \epsilon + \frac{\|J\|}\mu \delta + \frac{L_J L_g}\mu \epsilon^2, \qquad
        c = \frac{L_g \|J\|}\mu + \Bigl(L_{A^{-1}} \|J\| + \frac{L_J}\mu\Bigr) \|\nabla g\|

    all at x; and :math:`|F - g(x)| \le \|\nabla g\| \epsilon + L_g \epsilon^2 / 2`. q comes from conjugate gradients
    from zero.

    Args:
        lower: ``h(x, theta) -> scalar``, twice differentiable, strongly convex in x.
        upper: ``g(x) -> scalar``, smooth.
        x: near the minimum of h, to the distance ``eps``.
        theta: the hyper-parameters.
        mu: of the strong convexity of h at theta, > 0.
        L_g: Lipschitz constant of the gradient of g, >= 0.
        eps: >= 0.
        delta: tolerance of the adjoint's residual, > 0.
        L_J: Lipschitz constant in x of J, >= 0; 0 where h is quadratic in both.
        L_Ainv: Lipschitz constant in x of the inverse of A, >= 0; 0 where h is quadratic in x.
        J_norm: a bound of J's spectral norm; by default it is computed from the whole of J, ``[d_x, d_theta]``.

    Raises:
        ValueError: mu <= 0, other numbers outside their range, wrong shapes, a lower level that is not convex.

    Example:
        >>> lower = lambda x, theta: ((x - theta) ** 2 + 0.5 * x**2).sum()
        >>> x, theta = torch.tensor([1.9]).double(), torch.tensor([3.0]).double()
        >>> at = inexact_hypergradient(lower, lambda x: 0.5 * ((x - 1) ** 2).sum(), x, theta, 3.0, 1.0, 0.1, 1e-9)
        >>> print(f"{float(at.z):.4f} +- {at.omega:.4f}, F from {at.low:.2f} to {at.high:.2f}")
        0.6000 +- 0.0667, F from 0.31 to 0.50

    Source: An adaptively inexact first-order method for bilevel optimization, arXiv:2308.10098.
    """
    check_tensor("x", x, ndim=1, floating=True)
    check_tensor("theta", theta, ndim=1, floating=True)
    check_number("mu", mu, low=0.0, open_low=True)
    check_number("eps", eps, low=0.0)
    check_number("delta", delta, low=0.0, open_low=True)
    for name, number in (("L_g", L_g), ("L_J", L_J), ("L_Ainv", L_Ainv)):
        check_number(name, number, low=0.0)
    if J_norm is not None:
        check_number("J_norm", J_norm, low=0.0)
    value, slope = _value_and_slope(upper, x)
    with torch.enable_grad():
        x, theta = x.detach().requires_grad_(), theta.detach().requires_grad_()
        (h_x,) = torch.autograd.grad(lower(x, theta), x, create_graph=True)

    def hessian(v: Tensor) -> Tensor:
        return torch.autograd.grad(h_x, x, v, retain_graph=True)[0]

    q, residual, iterations = _conjugate_gradients(hessian, slope, delta)
    z = -torch.autograd.grad(h_x, theta, q, retain_graph=True)[0]
    if J_norm is None:
        units = torch.eye(len(x), dtype=x.dtype, device=x.device)
        (whole,) = torch.autograd.grad(h_x, theta, units, is_grads_batched=True)
        J_norm = float(torch.linalg.matrix_norm(whole, 2))
    size = float(slope.norm())
    c = L_g * J_norm / mu + (L_Ainv * J_norm + L_J / mu) * size
    omega = c * eps + J_norm / mu * max(delta, residual) + L_J * L_g / mu * eps**2
    return Hypergradient(z, omega, *_bounds(value, size, eps, L_g), iterations)


def inexact_backtracking(
    upper: Upper,
    solver: Solver,
    theta: F[Tensor, " d_theta"],
    x: F[Tensor, " d_x"],
    z: F[Tensor, " d_theta"],
    eps: float,
    L_g: float,
    beta: float,
    *,
    eta: float = 1e-4,
    rho: float = 0.5,
    trials: int = 10,
) -> Backtracking:
    r"""The longest of the steps :math:`\beta \rho^i` along -z that lowers F for certain.

    .. math::
        \theta_i = \theta - \beta \rho^i z, \qquad
        \overline F(\theta_i) - \underline F(\theta) \le -\eta \beta \rho^i \|z\|^2, \qquad
        g(x) \pm \Bigl(\|\nabla g(x)\| \epsilon + \frac{L_g}2 \epsilon^2\Bigr)

    The right is the upper and lower bound of F at a solution x of the lower level to the distance
    :math:`\epsilon`. Since the upper bound falls below the lower one of before, F itself falls, whatever the errors
    are.

    Args:
        upper: ``g(x) -> scalar``.
        solver: ``(x, theta, eps) -> (solution, iterations)``, of the lower level from x.
        theta: where the search begins.
        x: the solution there, to the distance ``eps``.
        z: the direction, as of :func:`inexact_hypergradient`.
        eps: accuracy of the lower level, > 0.
        L_g: Lipschitz constant of the gradient of g, >= 0.
        beta: the first step size, > 0.
        eta: share of the descent that is asked for, in (0, 1).
        rho: the factor of step sizes, in (0, 1).
        trials: how many step sizes are tried, >= 1.

    Raises:
        ValueError: numbers outside their range, wrong shapes.

    Example:
        >>> solver = lambda x, theta, eps: (2 * theta / 3, 1)
        >>> at = torch.tensor([3.0]).double()
        >>> upper, slope = lambda x: 0.5 * ((x - 1) ** 2).sum(), torch.tensor([2 / 3]).double()
        >>> search = inexact_backtracking(upper, solver, at, 2 * at / 3, slope, 1e-6, 1.0, 8.0)
        >>> print(search.accepted, search.step, search.theta)
        True 4.0 tensor([0.3333], dtype=torch.float64)

    Source: An adaptively inexact first-order method for bilevel optimization, arXiv:2308.10098.
    """
    check_tensor("theta", theta, ndim=1, floating=True)
    check_tensor("x", x, ndim=1, floating=True)
    check_tensor("z", z, floating=True, shape=tuple(theta.shape))
    check_number("L_g", L_g, low=0.0)
    for name, number in (("eps", eps), ("beta", beta)):
        check_number(name, number, low=0.0, open_low=True)
    _check_search(eta, rho, trials)
    value, slope = _value_and_slope(upper, x)
    low, _ = _bounds(value, float(slope.norm()), eps, L_g)
    descent, iterations = float(z.square().sum()), 0
    for i in range(trials):
        step = beta * rho**i
        there = theta - step * z
        solution, taken = solver(x, there, eps)
        iterations += taken
        value, slope = _value_and_slope(upper, solution)
        _, high = _bounds(value, float(slope.norm()), eps, L_g)
        if high - low <= -eta * step * descent:
            return Backtracking(True, there, solution, step, iterations)
    return Backtracking(False, theta, x, 0.0, iterations)


class MAID:
    r"""MAID, the method of adaptively inexact descent: hyper-gradient steps that are certified to lower the upper loss.

    .. math::
        \min_\theta F(\theta) = g(x^*(\theta)), \qquad x^*(\theta) = \arg\min_x h(x, \theta)

    The lower level is solved to :math:`\|h_x\| / \mu \le \epsilon`, the adjoint to the residual :math:`\delta`
    (:func:`inexact_hypergradient`). Where the error's bound exceeds :math:`(1 - \eta) \|z\|`, both accuracies are
    halved; else -z is a direction of descent, and the step size is searched for by :func:`inexact_backtracking`. After
    an accepted step its size grows by 10/9, and :math:`\epsilon, \delta` by :math:`\nu`; where no step is
    accepted, the accuracies are halved, and the search may try one more step size. The lower level begins at the last
    solution. All in float64.

    The paper's own code differs: it leaves out :math:`L_g` in the error's bound, takes random estimates for
    :math:`L_J` and :math:`L_{A^{-1}}`, stops the lower level at :math:`2 \mu \epsilon`, and has
    :math:`\eta^2` in the search.

    Args:
        lower: ``h(x, theta) -> scalar``, twice differentiable, strongly convex in x.
        upper: ``g(x) -> scalar``, smooth.
        mu: of the strong convexity of h, > 0; a number, or a function of theta.
        L_g: Lipschitz constant of the gradient of g, >= 0.
        solver: ``(x, theta, eps) -> (solution, iterations)`` of the lower level to the distance eps; by default
            accelerated gradient descent, which finds its step size by doubling a Lipschitz constant.
        eps0: first accuracy of the lower level, > 0.
        delta0: first tolerance of the adjoint's residual, > 0.
        beta0: first step size, > 0.
        L_J: Lipschitz constant in x of :math:`h_{x\theta}`, >= 0; a number, or a function of theta.
        L_Ainv: Lipschitz constant in x of the inverse of :math:`h_{xx}`, >= 0; a number, or a function of theta.
        J_norm: a bound of the spectral norm of :math:`h_{x\theta}`; by default it is computed.
        eta: slack of both tests, in (0, 1).
        rho: the factor of step sizes, in (0, 1); the paper has 0.5 to 0.9.
        nu: growth of the accuracies after a success, >= 1.
        trials: step sizes that a search tries before it asks for a higher accuracy.
        least: a run ends where eps or delta would have to fall below it.

    Raises:
        ValueError: mu <= 0, other numbers outside their range.

    Example:
        >>> lower = lambda x, theta: ((x - theta) ** 2 + 0.5 * x**2).sum()
        >>> method = MAID(lower, lambda x: 0.5 * ((x - 1) ** 2).sum(), mu=3.0, L_g=1.0)
        >>> theta, x, history = method.run(torch.tensor([3.0]), torch.tensor([0.0]), 40)
        >>> print(theta, x)
        tensor([1.5000], dtype=torch.float64) tensor([1.0000], dtype=torch.float64)

    Source: An adaptively inexact first-order method for bilevel optimization with application to hyperparameter
    learning, arXiv:2308.10098.
    """

    def __init__(
        self,
        lower: Lower,
        upper: Upper,
        mu: Constant,
        L_g: float,
        *,
        solver: Solver | None = None,
        eps0: float = 0.1,
        delta0: float = 0.1,
        beta0: float = 0.1,
        L_J: Constant = 0.0,
        L_Ainv: Constant = 0.0,
        J_norm: float | None = None,
        eta: float = 1e-4,
        rho: float = 0.5,
        nu: float = 1.05,
        trials: int = 10,
        least: float = 1e-12,
    ) -> None:
        for name, call in (("lower", lower), ("upper", upper), ("solver", solver or lower)):
            if not callable(call):
                refuse_type(name, "a function", call)
        for name, constant in (("L_J", L_J), ("L_Ainv", L_Ainv)):
            if not callable(constant):
                check_number(name, constant, low=0.0)
        if not callable(mu):
            check_number("mu", mu, low=0.0, open_low=True)
        check_number("L_g", L_g, low=0.0)
        for name, number in (("eps0", eps0), ("delta0", delta0), ("beta0", beta0), ("least", least)):
            check_number(name, number, low=0.0, open_low=True)
        check_number("nu", nu, low=1.0)
        _check_search(eta, rho, trials)
        self.lower, self.upper, self.mu, self.L_g = lower, upper, mu, L_g
        self.eps0, self.delta0, self.beta0 = eps0, delta0, beta0
        self.L_J, self.L_Ainv, self.J_norm = L_J, L_Ainv, J_norm
        self.eta, self.rho, self.nu, self.trials, self.least = eta, rho, nu, trials, least
        self.solver = solver or self._accelerated

    def run(
        self, theta0: F[Tensor, " d_theta"], x0: F[Tensor, " d_x"], steps: int, *, budget: float = math.inf
    ) -> MAIDResult:
        """So many accepted steps, or fewer where the accuracies reach their floor or the budget is spent.

        Args:
            theta0: the first hyper-parameters.
            x0: where the lower level begins.
            steps: accepted steps, >= 0.
            budget: iterations of the lower level and of the adjoint together, after which no further search begins.

        Raises:
            ValueError: wrong shapes, a function for mu that gives a number <= 0, a gradient that is not finite.
            RuntimeError: the lower level's solver built in does not reach its accuracy.
        """
        check_tensor("theta0", theta0, ndim=1, floating=True)
        check_tensor("x0", x0, ndim=1, floating=True)
        check_number("steps", steps, low=0, integer=True)
        check_number("budget", budget, low=0.0)
        theta, x = theta0.detach().double().clone(), x0.detach().double().clone()
        eps, delta, beta, trials = self.eps0, self.delta0, self.beta0, self.trials
        history: list[MAIDStep] = []
        solved = adjoint = 0
        while len(history) < steps and min(eps, delta) >= self.least and solved + adjoint < budget:
            x, taken = self.solver(x, theta, eps)
            solved += taken
            at = self.hypergradient(theta, x, eps, delta)
            adjoint += at.iterations
            norm = float(at.z.norm())
            if not at.omega <= (1 - self.eta) * norm:
                eps, delta = eps / 2, delta / 2
                continue
            search = inexact_backtracking(
                self.upper, self.solver, theta, x, at.z, eps, self.L_g, beta,
                eta=self.eta, rho=self.rho, trials=trials,
            )  # fmt: skip
            solved += search.iterations
            if not search.accepted:
                eps, delta, trials = eps / 2, delta / 2, trials + 1
                continue
            theta, x, beta, trials = search.theta, search.x, search.step * 10 / 9, self.trials
            value, slope = _value_and_slope(self.upper, x)
            low, high = _bounds(value, float(slope.norm()), eps, self.L_g)
            history.append(MAIDStep(theta, low, high, eps, delta, search.step, at.omega, norm, solved, adjoint))
            eps, delta = eps * self.nu, delta * self.nu
        return MAIDResult(theta, x, history)

    def hypergradient(self, theta: Tensor, x: Tensor, eps: float, delta: float) -> Hypergradient:
        """:func:`inexact_hypergradient` with the constants at theta, for x to the distance eps."""
        mu, L_J, L_Ainv = (_at(constant, theta) for constant in (self.mu, self.L_J, self.L_Ainv))
        return inexact_hypergradient(
            self.lower, self.upper, x, theta, mu, self.L_g, eps, delta, L_J=L_J, L_Ainv=L_Ainv, J_norm=self.J_norm
        )

    def _accelerated(self, x: Tensor, theta: Tensor, eps: float) -> tuple[Tensor, int]:
        mu = _at(self.mu, theta)
        check_number("mu", mu, low=0.0, open_low=True)
        return _accelerated(lambda x: self.lower(x, theta), x, mu, eps)


def _check_search(eta: float, rho: float, trials: int) -> None:
    for name, number in (("eta", eta), ("rho", rho)):
        check_number(name, number, low=0.0, high=1.0, open_low=True, open_high=True)
    check_number("trials", trials, low=1, integer=True)


def _at(constant: Constant, theta: Tensor) -> float:
    return float(constant(theta)) if callable(constant) else constant


def _bounds(value: float, size: float, eps: float, L_g: float) -> tuple[float, float]:
    """Of F, from g and the norm of its gradient at a solution to the distance eps."""
    away = size * eps + L_g * eps**2 / 2
    return value - away, value + away


def _value_and_slope(function: Upper, x: Tensor) -> tuple[float, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        if value.ndim:
            refuse("upper and lower", "functions that return a scalar", value)
        return float(value.detach()), torch.autograd.grad(value, x)[0]


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, tolerance: float
) -> tuple[Tensor, float, int]:
    """From zero to a residual of this norm, at most ten times the dimension's iterations; and its norm."""
    solution, residual = torch.zeros_like(right), right.clone()
    direction, square, iterations = residual, float(right.square().sum()), 0
    while math.sqrt(square) > tolerance and iterations < 10 * len(right):
        image = product(direction)
        curvature = float(direction @ image)
        if not curvature > 0:
            refuse("lower", "a function that is strongly convex in x", curvature)
        rate = square / curvature
        solution, residual = solution + rate * direction, residual - rate * image
        before, square = square, float(residual.square().sum())
        direction = residual + square / before * direction
        iterations += 1
    return solution, math.sqrt(square), iterations


def _accelerated(function: Upper, x: Tensor, mu: float, eps: float) -> tuple[Tensor, int]:
    """Nesterov's method for strong convexity mu, until the gradient's norm is at most mu eps."""
    smooth, old, at = mu, x, x
    for iterations in range(LONGEST):
        value, slope = _value_and_slope(function, at)
        square = float(slope.square().sum())
        if not math.isfinite(square):
            refuse("lower", "a finite gradient", slope)
        if math.sqrt(square) <= mu * eps:
            return at, iterations
        rounding = 8 * torch.finfo(x.dtype).eps * abs(value)
        with torch.no_grad():
            new = at - slope / smooth
            while float(function(new)) > value - square / (2 * smooth) + rounding:
                smooth *= 2
                new = at - slope / smooth
            momentum = (math.sqrt(smooth) - math.sqrt(mu)) / (math.sqrt(smooth) + math.sqrt(mu))
            old, at = new, new + momentum * (new - old)
    raise RuntimeError(
        f"lower: its gradient's norm is {math.sqrt(square):.3g} after {LONGEST} iterations, not {mu * eps:.3g}"
    )
