"""Comp-sum losses: sum-exponential, logistic, generalised cross-entropy and mean absolute error in one family."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.attack import linf_ascent
from ...core.checks import check_index, check_logits, check_number, refuse, values_visible
from ...core.logpartition import margins_to_target, target_log_probability
from ...core.method import Method
from ...core.objective import Batch, Objective
from ...core.random import RandomStream
from ...core.reductions import reduce, widen
from ...core.rowwise import log_probability_rule, rowwise
from ...core.search import Float
from ...core.terms import kept_terms

_LOWEST = -30.0
"""Floor of log p_y for tau < 1, where 1/p_y^(1 - tau) would overflow: the loss saturates there."""


def comp_sum_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    tau: float = 1.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The comp-sum loss with :math:`u = \sum_{y' \ne y} e^{h_{y'} - h_y} = 1/p_y - 1`.

    .. math:: \Phi_\tau(u) = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau}, \qquad \Phi_1(u) = \log(1 + u)

    Args:
        logits: ``[N, C]``, C >= 2.
        target: class indices ``[N]`` in 0..C-1.
        tau: >= 0. 0 is sum-exponential, 1, the default, cross-entropy, 1 + q generalised cross-entropy with exponent q,
            2 mean absolute error.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider. For ``tau < 1`` log p_y is held at -30 or above: beyond it the loss is constant.

    Raises:
        ValueError: a negative ``tau``, a class outside the range, wrong shapes.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> comp_sum_loss(logits, torch.tensor([0]), tau=1.5)
        tensor(0.3688)

    Source: Cross-Entropy Loss Functions: Theoretical Analysis and Applications, arXiv:2304.07288.
    """
    check_number("tau", tau, low=0.0)
    check_logits(logits)
    check_index(target, logits)
    q = tau - 1.0

    def value(log_p: Tensor) -> Tensor:
        # Phi = (1 - p^q) / q = -expm1(q log p) / q, whose limit at q = 0 is -log p
        log_p = log_p.clamp_min(_LOWEST) if tau < 1.0 else log_p
        return -log_p if abs(q) < 1e-12 else -torch.expm1(q * log_p) / q

    def phi(log_p: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        slope = -torch.exp(q * log_p)
        return value(log_p), torch.where(log_p < _LOWEST, 0.0, slope) if tau < 1.0 else slope

    rule = log_probability_rule(target.long(), phi)
    losses = rowwise(widen(logits), lambda z: value(target_log_probability(z, target)), rule)
    return reduce(losses, reduction, weight)


class CompSumLoss(Objective):
    """The comp-sum family as a module; see :func:`comp_sum_loss`.

    The default, ``tau = 1``, is cross-entropy.

    Args:
        tau: >= 0, the member of the family.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = CompSumLoss(tau=2.0)
        >>> loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(0.3348)
    """

    name = "comp_sum"
    tasks = ("binary", "multiclass")
    search = {"tau": Float(0.5, 2.0)}

    def __init__(self, tau: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("tau", tau, low=0.0)
        self.tau = tau

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits and class indices."""
        self.check_call(outputs, target, weight)
        return comp_sum_loss(outputs, target, tau=self.tau, weight=weight, reduction=self.reduction)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: for tau < 2 the minimiser is proportional to q^(1/(2 - tau)), whose argmax is that of q."""
        return outputs.softmax(-1)


def h_consistency_bound(excess: Tensor | float, tau: float, n: int) -> Tensor:
    r"""The zero-one excess risk that an excess comp-sum risk allows, over a complete symmetric hypothesis set.

    .. math:: \Gamma_\tau(t) = \begin{cases} \sqrt{2^\tau (2 - \tau)\, t} & 0 \le \tau < 1 \\
        \sqrt{2 n^{\tau - 1} t} & 1 \le \tau < 2 \\ (\tau - 1)\, n^{\tau - 1} t & \tau \ge 2 \end{cases}

    It bounds :math:`E_{01} - E^*_{01} + M_{01} \le \Gamma_\tau(E_\tau - E^*_\tau + M_\tau)`, where M is a
    minimizability gap, 0 for a rich hypothesis set. This is the closed upper bound, not the tight inverse.

    Args:
        excess: t = excess surrogate risk plus its gap, >= 0, any shape.
        tau: >= 0, the member of the family.
        n: number of classes, >= 2.

    Returns:
        The bound, of the shape of ``excess``. Above 1 it says nothing.

    Raises:
        ValueError: a negative ``excess`` or ``tau``, fewer than two classes.

    Example:
        >>> h_consistency_bound(0.02, tau=1.0, n=10)
        tensor(0.2000)

    Source: Cross-Entropy Loss Functions: Theoretical Analysis and Applications, arXiv:2304.07288, theorem 3.1.
    """
    check_number("tau", tau, low=0.0)
    check_number("n", n, low=2, integer=True)
    t = torch.as_tensor(excess)
    if t.numel() and values_visible(t) and bool((t < 0).any()):
        refuse("excess", "values >= 0", float(t.min()))
    if tau >= 2.0:
        return (tau - 1.0) * float(n) ** (tau - 1.0) * t
    return torch.sqrt((2.0**tau * (2.0 - tau) if tau < 1.0 else 2.0 * float(n) ** (tau - 1.0)) * t)


class SmoothAdversarialCompSumLoss(Method):
    r"""The smooth adversarial comp-sum loss: the clean loss plus the worst local movement of the margin vector.

    .. math:: L = \Phi_\tau\Bigl(\sum_{y' \ne y} e^{-(h_y - h_{y'})/\rho}\Bigr)
        + \nu \max_{\|x' - x\|_\infty \le \gamma} \|D(x', y) - D(x, y)\|_2,
        \qquad D(x, y) = (h_y - h_{y'})_{y' \ne y}

    The inner maximum is approached by projected gradient ascent, in the model's current mode: in training mode batch
    normalisation sees the attacked batches too. No gradient flows into the attack, and the attack leaves the gradients
    of parameters untouched.

    Args:
        tau: >= 0, the member of the family.
        rho: temperature of the margins, > 0.
        nu: factor of the movement, > 0.
        gamma: radius of the attack in units of the input, >= 0.
        step_size: of the ascent, > 0.
        steps: of the ascent, >= 0.
        bounds: range of valid inputs, such as ``(0, 1)`` for images, or None.
        seed: of the random starts; None takes one from torch's generator.

    Example:
        >>> method = SmoothAdversarialCompSumLoss(nu=0.5, gamma=0.1, step_size=0.05, seed=0)
        >>> method(torch.nn.Linear(3, 4), torch.zeros(2, 3), torch.tensor([0, 3])).shape
        torch.Size([])

    Source: Cross-Entropy Loss Functions: Theoretical Analysis and Applications, arXiv:2304.07288, section 5.
    """

    name = "smooth_adversarial_comp_sum"

    def __init__(
        self,
        tau: float = 1.0,
        rho: float = 1.0,
        nu: float = 1.0,
        *,
        gamma: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
        bounds: tuple[float, float] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_number("tau", tau, low=0.0)
        check_number("rho", rho, low=0.0, open_low=True)
        check_number("nu", nu, low=0.0, open_low=True)
        check_number("gamma", gamma, low=0.0)
        check_number("step_size", step_size, low=0.0, open_low=True)
        check_number("steps", steps, low=0, integer=True)
        self.tau, self.rho, self.nu = tau, rho, nu
        self.gamma, self.step_size, self.steps, self.bounds = gamma, step_size, steps, bounds
        self.stream = RandomStream(seed)
        self.terms: dict[str, Tensor] = {}

    def forward(
        self, model: torch.nn.Module, inputs: Tensor, target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The mean loss of ``model`` (inputs ``[B, ...]`` to logits ``[B, C]``)."""
        logits = model(inputs)
        clean = comp_sum_loss(logits / self.rho, target, tau=self.tau, weight=weight)
        # the coordinate of the target is 0 in both margin vectors, so the norm over all classes is that over y' != y
        margins = margins_to_target(logits, target)
        anchor = margins.detach()

        def movement(moved: Tensor, origin: Tensor) -> Tensor:
            return torch.linalg.vector_norm(margins_to_target(model(moved), target) - origin, dim=-1)

        stream = self.stream if self.training else copy.deepcopy(self.stream)
        attacked = linf_ascent(
            inputs,
            lambda moved: movement(moved, anchor),
            radius=self.gamma,
            step_size=self.step_size,
            steps=self.steps,
            generator=stream.generator,
            bounds=self.bounds,
        )
        moved = reduce(movement(attacked, margins), "mean", weight)
        self.terms = kept_terms({"clean": clean, "movement": moved})
        return clean + self.nu * moved

    def loss(self, model: torch.nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """One step's loss. It brings its own surrogate, so ``objective`` is not asked."""
        return self(model, batch.inputs, batch.target, weight=batch.weight)
