"""Networks trained without gradients: auxiliary variables for every layer, one block after another minimised
exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor, nn

from ...core.checks import check_index, check_number, check_tensor, refuse
from ...core.scalars import is_number


def relu_prox(a: F[Tensor, "*shape"], b: F[Tensor, "*shape"], g: float) -> F[Tensor, "*shape"]:
    r"""The minimiser of :math:`\frac12 (\max(u, 0) - a)^2 + \frac g2 (u - b)^2`, element by element.

    .. math::
        u = \begin{cases}
            \min(b, 0) & a + g b < 0 \\
            (a + g b) / (1 + g) & b \ge 0, \text{ or } a (g - \sqrt{g (g + 1)}) \le g b \\
            b & \text{otherwise}
        \end{cases}

    Where two points are equally good, it is the positive one.

    Args:
        a: what the activation is to be near.
        b: what u is to be near, of the same shape.
        g: weight of the second term, > 0.

    Returns:
        u, of the same shape.

    Raises:
        ValueError: shapes that differ, g not above 0.

    Example:
        >>> relu_prox(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, -0.2, -0.5]), 1.0)
        tensor([ 0.7500,  0.4000, -0.5000])

    Source: Global Convergence of Block Coordinate Descent in Deep Learning, arXiv:1803.00225.
    """
    check_tensor("a", a, floating=True)
    check_tensor("b", b, floating=True, shape=tuple(a.shape))
    check_number("g", g, low=0.0, open_low=True)
    positive = (a + g * b) / (1 + g)
    crossing = a * (g - math.sqrt(g * (g + 1))) <= g * b
    u = torch.where((b >= 0) | crossing, positive, b)
    return torch.where(positive < 0, b.clamp(max=0), u)


def three_splitting_objective(
    target: F[Tensor, "n k"],
    activations: Sequence[F[Tensor, "n _"]],
    preactivations: Sequence[F[Tensor, "n _"]],
    weights: Sequence[F[Tensor, "out inputs"]],
    biases: Sequence[F[Tensor, " out"]],
    gamma: float = 1.0,
    rho: float = 1.0,
) -> Tensor:
    r"""Squared error of the last activation, and what activations and layers miss each other by.

    .. math::
        \tfrac12 \|V_N - Y\|^2 + \sum_{i=1}^N \tfrac\gamma2 \|V_i - \sigma_i(U_i)\|^2
            + \tfrac\rho2 \|U_i - V_{i-1} W_i^T - b_i\|^2

    The activation is ReLU but for the last layer, which has none.

    Args:
        target: Y, one row a sample.
        activations: V_0 (the inputs) to V_N.
        preactivations: U_1 to U_N.
        weights: W_1 to W_N, ``[out, in]``.
        biases: b_1 to b_N.
        gamma, rho: weights of the two terms, > 0.

    Returns:
        a scalar.

    Raises:
        ValueError: lists of lengths that don't belong together, numbers outside their range.

    Example:
        >>> x, w = torch.ones(1, 1), torch.full((1, 1), 2.0)
        >>> three_splitting_objective(torch.zeros(1, 1), [x, 3 * x], [2.5 * x], [w], [torch.zeros(1)])
        tensor(4.7500)

    Source: Global Convergence of Block Coordinate Descent in Deep Learning, arXiv:1803.00225.
    """
    check_number("gamma", gamma, low=0.0, open_low=True)
    check_number("rho", rho, low=0.0, open_low=True)
    layers = len(weights)
    if not layers == len(biases) == len(preactivations) == len(activations) - 1:
        refuse("activations", "one more than layers", [len(activations), len(preactivations), layers, len(biases)])
    value = 0.5 * (activations[-1] - target).square().sum()
    for i, (w, b, u) in enumerate(zip(weights, biases, preactivations)):
        own = u if i == layers - 1 else u.relu()
        value = value + gamma / 2 * (activations[i + 1] - own).square().sum()
        value = value + rho / 2 * (u - activations[i] @ w.T - b).square().sum()
    return value


class BCDTrainer:
    r"""Block coordinate descent on the three-splitting objective of a ReLU network with squared error.

    A sweep goes backwards through the layers. With :math:`\Lambda = \alpha I + \rho V_{i-1}^T V_{i-1}` it sets

    .. math::
        V_N &= \frac{Y + \gamma U_N + \alpha V_N}{1 + \gamma + \alpha}, \qquad
        U_N = \frac{\gamma V_N + \rho (V_{N-1} W_N^T + b_N)}{\gamma + \rho} \\
        W_i &= (\alpha W_i + \rho (U_i - b_i)^T V_{i-1}) \Lambda^{-1}, \qquad
        b_i = \frac{\alpha b_i + \rho \sum_j (U_i - V_{i-1} W_i^T)_j}{\rho n + \alpha} \\
        V_i &= \bigl(\rho (U_{i+1} - b_{i+1}) W_{i+1} + \gamma \sigma(U_i)\bigr)
            (\rho W_{i+1}^T W_{i+1} + \gamma I)^{-1} \\
        U_i &= \operatorname{prox}\bigl(V_i, (\rho (V_{i-1} W_i^T + b_i) + \alpha U_i) / (\rho + \alpha),
            (\rho + \alpha) / \gamma\bigr)

    each the exact minimiser of its block (:func:`relu_prox` for U), some with a proximal term :math:`\frac\alpha2`
    times the squared change, so that the objective never rises. Biases use the weights just set; with the old ones, as
    some code has it, that is not so. The whole table is held: memory is n times the sum of all widths, twice.

    Args:
        sizes: width of inputs, hidden layers and outputs.
        gamma, rho: weights of the two penalties, > 0.
        alpha: of the proximal terms, >= 0.
        scale: standard deviation of the first weights.
        bias: where biases start.
        dtype: of all variables.
        generator: of the first weights; torch's own by default.

    Raises:
        ValueError: fewer than two sizes, numbers outside their range.

    Example:
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> trainer = BCDTrainer([1, 8, 2], generator=torch.Generator().manual_seed(0))
        >>> values = trainer.fit(x, (x[:, 0] > 0).long(), sweeps=30)
        >>> bool((values.diff() <= 0).all()), trainer.to_module()
        (True, Sequential(
          (0): Linear(in_features=1, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=2, bias=True)
        ))

    Source: Global Convergence of Block Coordinate Descent in Deep Learning, arXiv:1803.00225.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        gamma: float = 1.0,
        rho: float = 1.0,
        alpha: float = 5.0,
        *,
        scale: float = 0.01,
        bias: float = 0.1,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        self.sizes = list(sizes)
        if len(self.sizes) < 2 or not all(is_number(size, integer=True) and size > 0 for size in self.sizes):
            refuse("sizes", "at least two widths > 0", sizes)
        check_number("gamma", gamma, low=0.0, open_low=True)
        check_number("rho", rho, low=0.0, open_low=True)
        check_number("alpha", alpha, low=0.0)
        check_number("scale", scale, low=0.0)
        check_number("bias", bias)
        self.gamma, self.rho, self.alpha = gamma, rho, alpha
        pairs = list(zip(self.sizes, self.sizes[1:]))
        self.weights = [scale * torch.randn(b, a, generator=generator).to(dtype) for a, b in pairs]
        self.biases = [torch.full((b,), float(bias), dtype=dtype) for _, b in pairs]
        self.target = torch.zeros(0)
        self.activations: list[Tensor] = []
        self.preactivations: list[Tensor] = []

    @torch.no_grad()
    def fit(self, x: F[Tensor, "n d"], y: Tensor, sweeps: int) -> F[Tensor, " sweeps_and_1"]:
        """Begin with a forward pass of these samples, and sweep.

        Args:
            x: one row a sample.
            y: class indices ``[n]``, or targets ``[n, k]``.
            sweeps: passes over all blocks.

        Returns:
            The objective before the first sweep and after each, ``[sweeps + 1]``.

        Raises:
            ValueError: shapes that don't match the sizes.
        """
        check_number("sweeps", sweeps, low=0, integer=True)
        self.begin(x, y)
        values = [self.objective()]
        for _ in range(sweeps):
            self.sweep()
            values.append(self.objective())
        return torch.stack(values)

    @torch.no_grad()
    def begin(self, x: F[Tensor, "n d"], y: Int[Tensor, " n"] | F[Tensor, "n k"]) -> None:
        """Take samples, and the auxiliary variables of a forward pass: the penalties are 0."""
        check_tensor("x", x, floating=True, shape=(None, self.sizes[0]))
        if not len(x):
            refuse("x", "at least one row", x)
        own = self.weights[0]
        if not y.is_floating_point():
            check_index(y, x.new_zeros(len(x), self.sizes[-1]), argument="y")
            y = nn.functional.one_hot(y.long(), self.sizes[-1])
        check_tensor("y", y, shape=(len(x), self.sizes[-1]))
        self.weights = [w.to(x.device) for w in self.weights]
        self.biases = [b.to(x.device) for b in self.biases]
        self.target = y.detach().to(x.device, own.dtype)
        self.activations, self.preactivations = [x.detach().to(own.dtype)], []
        for w, b in zip(self.weights, self.biases):
            self.preactivations.append(self.activations[-1] @ w.T + b)
            self.activations.append(self.preactivations[-1].relu())
        self.activations[-1] = self.preactivations[-1].clone()
        self._gram = self.activations[0].T @ self.activations[0]

    def objective(self) -> Tensor:
        """The three-splitting objective of the present variables, a scalar."""
        self._begun()
        return three_splitting_objective(
            self.target, self.activations, self.preactivations, self.weights, self.biases, self.gamma, self.rho
        )

    def sweep(self) -> None:
        """Set every block once, backwards through the layers."""
        for _, update in self.blocks():
            update()

    def blocks(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """The block updates of a sweep in their order, each with its name, as ``V2`` or ``W1``."""
        self._begun()
        last = len(self.weights)
        yield f"V{last}", self._last_activation
        yield f"U{last}", self._last_preactivation
        for i in range(last, 0, -1):
            if i < last:
                yield f"V{i}", lambda i=i: self._activation(i)
                yield f"U{i}", lambda i=i: self._preactivation(i)
            yield f"W{i}", lambda i=i: self._weight(i)
            yield f"b{i}", lambda i=i: self._bias(i)

    @torch.no_grad()
    def predict(self, x: F[Tensor, "n d"]) -> F[Tensor, "n k"]:
        """Outputs of the network with the present weights."""
        check_tensor("x", x, floating=True, shape=(None, self.sizes[0]))
        outputs = x.to(self.weights[0].dtype)
        for i, (w, b) in enumerate(zip(self.weights, self.biases)):
            outputs = nn.functional.linear(outputs if i == 0 else outputs.relu(), w, b)
        return outputs

    def to_module(self) -> nn.Sequential:
        """The network with copies of the weights, ready for further training."""
        layers: list[nn.Module] = []
        for w, b in zip(self.weights, self.biases):
            layer = nn.utils.skip_init(nn.Linear, w.shape[1], w.shape[0], dtype=w.dtype, device=w.device)
            with torch.no_grad():
                layer.weight.copy_(w)
                layer.bias.copy_(b)
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _begun(self) -> None:
        if not self.activations:
            refuse("samples", "fit or begin before", "none")

    def _through(self, i: int) -> Tensor:
        """What layer i makes of the activations below it."""
        return torch.addmm(self.biases[i - 1], self.activations[i - 1], self.weights[i - 1].T)

    def _last_activation(self) -> None:
        aim = self.target + self.gamma * self.preactivations[-1] + self.alpha * self.activations[-1]
        self.activations[-1] = aim / (1 + self.gamma + self.alpha)

    def _last_preactivation(self) -> None:
        through = self._through(len(self.weights))
        self.preactivations[-1] = (self.gamma * self.activations[-1] + self.rho * through) / (self.gamma + self.rho)

    def _activation(self, i: int) -> None:
        w = self.weights[i]
        aim = self.rho * (self.preactivations[i] - self.biases[i]) @ w + self.gamma * self.preactivations[i - 1].relu()
        self.activations[i] = _solved(self.rho * w.T @ w, self.gamma, aim)

    def _preactivation(self, i: int) -> None:
        near = (self.rho * self._through(i) + self.alpha * self.preactivations[i - 1]) / (self.rho + self.alpha)
        self.preactivations[i - 1] = relu_prox(self.activations[i], near, (self.rho + self.alpha) / self.gamma)

    def _weight(self, i: int) -> None:
        below = self.activations[i - 1]
        gram = self._gram if i == 1 else below.T @ below
        aim = self.alpha * self.weights[i - 1] + self.rho * (self.preactivations[i - 1] - self.biases[i - 1]).T @ below
        self.weights[i - 1] = _solved(self.rho * gram, self.alpha, aim)

    def _bias(self, i: int) -> None:
        rest = (self.preactivations[i - 1] - self.activations[i - 1] @ self.weights[i - 1].T).sum(0)
        self.biases[i - 1] = (self.alpha * self.biases[i - 1] + self.rho * rest) / (
            self.rho * len(self.target) + self.alpha
        )


def _solved(matrix: Tensor, diagonal: float, right: Tensor) -> Tensor:
    """right (matrix + diagonal I)^-1 for a matrix that is symmetric and not negative."""
    matrix = matrix.clone()
    matrix.diagonal().add_(diagonal)
    return torch.cholesky_solve(right.T, torch.linalg.cholesky(matrix)).T
