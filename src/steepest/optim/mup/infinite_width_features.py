"""Which scalings of width learn features: their classification, the limit of infinite width, networks of finite width.

The front door for a model of one's own, :func:`parametrize`, and its :func:`coordinate_check` are of this system too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.nn.functional import relu

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ._coordinates import CoordinateCheck as CoordinateCheck
from ._coordinates import coordinate_check as coordinate_check
from ._maximal_update import MaximalUpdate as MaximalUpdate
from ._maximal_update import parametrize as parametrize

SCALINGS = ("standard", "ntk", "maximal_update", "mean_field")
LOSSES = ("squared", "logistic")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"linear": nn.Identity(), "relu": relu, "tanh": torch.tanh}
_NEAR = 1e-9
"""Exponents that differ by less are equal."""


@dataclass(frozen=True)
class Parametrization:
    r"""Exponents of the width n in a network with L hidden layers, and what follows from them.

    .. math:: W^l = n^{-a_l} w^l, \qquad w^l \sim N(0, n^{-2 b_l}), \qquad \text{rate } \eta n^{-c}

    Args:
        a: of the multipliers of the layers, ``L + 1`` numbers.
        b: of the initial deviations, as many.
        c: of the rate.
        r: features move by about :math:`n^{-r}` in a step.
        stable: nothing grows without bound with n.
        nontrivial: the function moves at all as n grows.
        regime: "unstable", "trivial", "kernel" or "feature learning".
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    c: float
    r: float
    stable: bool
    nontrivial: bool
    regime: str

    @property
    def hidden(self) -> int:
        """L."""
        return len(self.a) - 1

    def shifted(self, t: float) -> Parametrization:
        """The same training in other words: a + t, b - t, c - 2t."""
        return classify_parametrization([x + t for x in self.a], [x - t for x in self.b], self.c - 2 * t)


def classify_parametrization(a: Sequence[float], b: Sequence[float], c: float) -> Parametrization:
    r"""What a scaling of width does as the width grows.

    .. math::
        r = \min(a_{L+1} + b_{L+1}, 2 a_{L+1} + c) + c - 1 + \min_{l \le L} (2 a_l + [l = 1])

    It is stable if :math:`a_1 + b_1 = 0`, :math:`a_l + b_l = 1/2` between, :math:`a_{L+1} + b_{L+1} \ge 1/2`,
    :math:`r \ge 0`, :math:`2 a_{L+1} + c \ge 1` and :math:`a_{L+1} + b_{L+1} + r \ge 1`; nontrivial if one of the last
    two is an equality; it learns features if r = 0, else it is a fixed kernel. Biases scale as input weights.

    Args:
        a: exponents of the multipliers, from the input layer to the output layer; two or more.
        b: exponents of the initial deviations, as many.
        c: exponent of the rate of SGD.

    Raises:
        ValueError: fewer than two layers, lists of different lengths, a number that is not finite.

    Example:
        >>> classify_parametrization((0, 0.5, 0.5), (0, 0, 0), 0).regime
        'kernel'
        >>> classify_parametrization((-0.5, 0, 0.5), (0.5, 0.5, 0.5), 0).regime
        'feature learning'

    Source: Feature Learning in Infinite-Width Neural Networks, arXiv:2011.14522.
    """
    a, b = tuple(a), tuple(b)
    if len(a) < 2:
        refuse("a", "exponents of two layers or more", a)
    if len(b) != len(a):
        refuse("b", f"{len(a)} exponents, as many as of a", b)
    for name, values in (("a", a), ("b", b), ("c", (c,))):
        for value in values:
            check_number(name, value, low=-math.inf, high=math.inf, open_low=True, open_high=True)
    first, last = a[0] + b[0], a[-1] + b[-1]
    update = 2 * a[-1] + c
    r = min(last, update) + c - 1 + min(2 * x + (place == 0) for place, x in enumerate(a[:-1]))
    between = all(_same(x + y, 0.5) for x, y in zip(a[1:-1], b[1:-1]))
    least = min(last - 0.5, r, update - 1, last + r - 1)
    stable = _same(first, 0.0) and between and least >= -_NEAR
    nontrivial = _same(update, 1.0) or _same(last + r, 1.0)
    if not stable:
        regime = "unstable"
    elif not nontrivial:
        regime = "trivial"
    else:
        regime = "feature learning" if _same(r, 0.0) else "kernel"
    return Parametrization(a, b, float(c), float(r), stable, nontrivial, regime)


def _same(x: float, y: float) -> bool:
    return abs(x - y) < _NEAR


def abc_parametrization(name: str, hidden: int = 1, c: float | None = None) -> Parametrization:
    """The exponents of a scaling that has a name.

    Args:
        name: "standard" (the rate shrinks with the width: c = 1; with c = 0 it is unstable), "ntk", "maximal_update",
            or "mean_field", which is of one hidden layer.
        hidden: hidden layers L >= 1.
        c: exponent of the rate, in place of the usual one.

    Raises:
        ValueError: another name, no hidden layer, mean field of several.

    Example:
        >>> abc_parametrization("standard", 2).r, abc_parametrization("standard", 2, c=0).regime
        (0.5, 'unstable')

    Source: Feature Learning in Infinite-Width Neural Networks, arXiv:2011.14522, Table 1.
    """
    check_choice("name", name, SCALINGS)
    check_number("hidden", hidden, low=1, integer=True)
    between = hidden - 1
    half = (0.5,) * hidden
    if name == "standard":
        a, b, rate = (0.0,) * (hidden + 1), (0.0, *half), 1.0
    elif name == "ntk":
        a, b, rate = (0.0, *half), (0.0,) * (hidden + 1), 0.0
    elif name == "maximal_update":
        a, b, rate = (-0.5, *(0.0,) * between, 0.5), (0.5, *half), 0.0
    else:
        if hidden != 1:
            refuse("hidden", "1 for mean field", hidden)
        a, b, rate = (0.0, 1.0), (0.0, 0.0), -1.0
    return classify_parametrization(a, b, rate if c is None else c)


class AbcMLP(nn.Module):
    r"""A network without biases whose layers are scaled by powers of the width: :math:`W^l = n^{-a_l} w^l`.

    Args:
        widths: of the inputs, of each hidden layer (all n), of the outputs.
        a, b: exponents of multipliers and initial deviations, one a layer.
        activation: "linear", "relu" or "tanh", after each hidden layer.
        generator: of the initial weights: one sequence of standard normal numbers for every a and b.
        dtype: of the weights.

    Attributes:
        weights: w, one matrix a layer.
        factors: :math:`n^{-a_l}`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        a: Sequence[float],
        b: Sequence[float],
        *,
        activation: str = "linear",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, list(ACTIVATIONS))
        for width in widths:
            check_number("widths", width, low=1, integer=True)
        if len(widths) < 3 or len(set(widths[1:-1])) != 1:
            refuse("widths", "inputs, one or more hidden layers of the same width, outputs", tuple(widths))
        if len(a) != len(widths) - 1 or len(b) != len(a):
            refuse("a", f"{len(widths) - 1} exponents, and as many of b", tuple(a))
        n = widths[1]
        self.activation = activation
        self.factors = tuple(float(n) ** -x for x in a)
        normal = [torch.randn(o, i, generator=generator, dtype=dtype) for i, o in pairwise(widths)]
        self.weights = nn.ParameterList(w * float(n) ** -y for w, y in zip(normal, b))

    def features(self, x: F[Tensor, "rows d"]) -> F[Tensor, "rows n"]:
        """The last hidden layer."""
        act = ACTIVATIONS[self.activation]
        for w, factor in zip(self.weights[:-1], self.factors):
            x = act(nn.functional.linear(x, w) * factor)
        return x

    def forward(self, x: F[Tensor, "rows d"]) -> F[Tensor, "rows out"]:
        """Outputs."""
        outputs: Tensor = nn.functional.linear(self.features(x), self.weights[-1]) * self.factors[-1]
        return outputs


def abc_mlp(
    widths: Sequence[int],
    a: Sequence[float],
    b: Sequence[float],
    c: float = 0.0,
    *,
    lr: float = 1.0,
    activation: str = "linear",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[AbcMLP, torch.optim.SGD]:
    """A network in a parametrization, and the SGD that belongs to it, whose rate is ``lr * n**-c``.

    Args:
        widths, a, b, activation, generator, dtype: see :class:`AbcMLP`.
        c: exponent of the rate.
        lr: rate at n = 1.

    Example:
        >>> model, optimizer = abc_mlp((3, 100, 1), (0, 0), (0, 0.5), 1.0, lr=0.5)
        >>> model(torch.ones(2, 3)).shape, optimizer.param_groups[0]["lr"]
        (torch.Size([2, 1]), 0.005)
    """
    model = AbcMLP(widths, a, b, activation=activation, generator=generator, dtype=dtype)
    return model, torch.optim.SGD(model.parameters(), lr=lr * float(widths[1]) ** -c)


@dataclass(frozen=True)
class WidthRun:
    """Full-batch gradient descent of a network, finite or not.

    Args:
        outputs: f on the inputs before each step and at the end, ``[steps + 1, rows]``.
        feature_change: of each time, mean over rows and units of the squared change of the last hidden layer since the
            start, ``[steps + 1]``.
        feature_size: the same mean of the squares themselves.
    """

    outputs: Tensor
    feature_change: Tensor
    feature_size: Tensor

    @property
    def relative_change(self) -> Tensor:
        """Root of the change over that of the size at the start, ``[steps + 1]``."""
        return (self.feature_change / self.feature_size[0]).sqrt()


def _slopes(loss: str, outputs: Tensor, y: Tensor) -> Tensor:
    """Derivatives of 0.5 (f - y)^2, or of log(1 + exp(-y f)), by f."""
    return outputs - y if loss == "squared" else -y * torch.sigmoid(-y * outputs)


def _check_problem(x: Tensor, y: Tensor, lr: float, steps: int, loss: str) -> None:
    check_tensor("x", x, ndim=2, floating=True)
    check_tensor("y", y, floating=True, shape=(len(x),))
    check_number("lr", lr, low=0.0)
    check_number("steps", steps, low=0, integer=True)
    check_choice("loss", loss, LOSSES)


def muP_linear_limit(
    x: F[Tensor, "rows d"], y: F[Tensor, " rows"], lr: float, steps: int, loss: str = "squared"
) -> WidthRun:
    r"""Training of a linear network with one hidden layer of infinite width under maximal update, exactly.

    Every unit is a combination of its own initial weights, so a few numbers are the whole network: with the start
    :math:`(\alpha, b, M, c) = (1, 0, I, 0)`, :math:`f = \alpha c^T x + b^T M x`, and

    .. math::
        \alpha \mathrel{-}= \eta \overline{\chi_i c^T x_i}, \quad b \mathrel{-}= \eta \overline{\chi_i M x_i}, \quad
        M \mathrel{-}= \eta \overline{\chi_i b x_i^T}, \quad c \mathrel{-}= \eta \overline{\chi_i \alpha x_i}

    all at once, where :math:`\chi_i` is the derivative of the loss of row i and a bar the mean over rows.

    Args:
        x: inputs.
        y: targets; -1 or 1 for the logistic loss.
        lr: eta.
        steps: of gradient descent on all rows.
        loss: "squared", 0.5 (f - y)^2, or "logistic", log(1 + exp(-y f)).

    Returns:
        Outputs and changes of features; :math:`\mathbb{E}|U_t x - U_0 x|^2 = |Mx - x|^2 + (c^T x)^2` a unit.

    Raises:
        ValueError: wrong shapes, a negative rate, another loss.

    Example:
        >>> muP_linear_limit(torch.ones(1, 1).double(), torch.ones(1).double(), 0.2, 3).outputs[:, 0]
        tensor([0.0000, 0.4000, 0.6554, 0.8171], dtype=torch.float64)

    Source: Feature Learning in Infinite-Width Neural Networks, arXiv:2011.14522.
    """
    _check_problem(x, y, lr, steps, loss)
    d = x.shape[1]
    alpha, b = x.new_ones(()), x.new_zeros(d)
    m, c = torch.eye(d, dtype=x.dtype, device=x.device), x.new_zeros(d)
    outputs, changes, sizes = [], [], []
    for step in range(steps + 1):
        along, mixed = x @ c, x @ m.T
        f = alpha * along + mixed @ b
        outputs.append(f)
        changes.append(((mixed - x).square().sum(1) + along.square()).mean())
        sizes.append((mixed.square().sum(1) + along.square()).mean())
        if step < steps:
            rate = lr * _slopes(loss, f, y) / len(x)
            of_x = rate @ x
            alpha, b, m, c = (
                alpha - rate @ along,
                b - rate @ mixed,
                m - torch.outer(b, of_x),
                c - alpha * of_x,
            )
    return WidthRun(torch.stack(outputs), torch.stack(changes), torch.stack(sizes))


def ntk_linear_limit(
    x: F[Tensor, "rows d"],
    y: F[Tensor, " rows"],
    lr: float,
    steps: int,
    loss: str = "squared",
    *,
    start: F[Tensor, " rows"] | None = None,
) -> WidthRun:
    r"""The same network under the NTK parametrization: gradient descent in a fixed kernel, features that stay.

    .. math:: f \mathrel{-}= \eta \overline{\chi_i K(\cdot, x_i)}, \qquad K(x, x') = 2 x^T x'

    Args:
        x, y, lr, steps, loss: see :func:`muP_linear_limit`.
        start: outputs at the start: those of a finite network are random; zeros by default.

    Example:
        >>> ntk_linear_limit(torch.ones(1, 1).double(), torch.ones(1).double(), 0.2, 2).outputs[:, 0]
        tensor([0.0000, 0.4000, 0.6400], dtype=torch.float64)

    Source: Feature Learning in Infinite-Width Neural Networks, arXiv:2011.14522.
    """
    _check_problem(x, y, lr, steps, loss)
    f = torch.zeros_like(y) if start is None else start
    check_tensor("start", f, floating=True, shape=(len(x),))
    kernel = 2 * x @ x.T
    outputs = [f]
    for _ in range(steps):
        f = f - lr / len(x) * kernel @ _slopes(loss, f, y)
        outputs.append(f)
    size = x.square().sum(1).mean().expand(steps + 1)
    return WidthRun(torch.stack(outputs), torch.zeros_like(size), size)


def finite_width_run(
    x: F[Tensor, "rows d"],
    y: F[Tensor, " rows"],
    width: int,
    parametrization: Parametrization,
    lr: float,
    steps: int,
    loss: str = "squared",
    *,
    activation: str = "linear",
    generator: torch.Generator | None = None,
) -> WidthRun:
    """Gradient descent on all rows of a network of this width.

    Args:
        x, y, lr, steps, loss: see :func:`muP_linear_limit`; the type of the numbers is that of ``x``.
        width: n >= 1.
        parametrization: which also says how many hidden layers there are.
        activation: "linear", "relu" or "tanh".
        generator: of the initial weights.

    Raises:
        ValueError: wrong shapes, a width below 1, a negative rate, another loss or activation.

    Example:
        >>> from steepest.optim.mup import abc_parametrization
        >>> ones, generator = torch.ones(1, 1), torch.Generator().manual_seed(0)
        >>> muP = abc_parametrization("maximal_update")
        >>> run = finite_width_run(ones, ones[0], 10**5, muP, 0.2, 1, generator=generator)
        >>> abs(run.outputs[1, 0].item() - 0.4) < 0.02
        True

    Source: Feature Learning in Infinite-Width Neural Networks, arXiv:2011.14522.
    """
    _check_problem(x, y, lr, steps, loss)
    check_number("width", width, low=1, integer=True)
    widths = (x.shape[1], *[width] * parametrization.hidden, 1)
    model, optimizer = abc_mlp(
        widths,
        parametrization.a,
        parametrization.b,
        parametrization.c,
        lr=lr,
        activation=activation,
        generator=generator,
        dtype=x.dtype,
    )
    outputs, changes, sizes = [], [], []
    start: Tensor | None = None
    for step in range(steps + 1):
        features = model.features(x)
        f = (nn.functional.linear(features, model.weights[-1]) * model.factors[-1])[:, 0]
        now = features.detach()
        start = now if start is None else start
        outputs.append(f.detach())
        changes.append((now - start).square().mean())
        sizes.append(now.square().mean())
        if step < steps:
            optimizer.zero_grad()
            f.backward(_slopes(loss, f.detach(), y) / len(x))
            optimizer.step()
    return WidthRun(torch.stack(outputs), torch.stack(changes), torch.stack(sizes))
