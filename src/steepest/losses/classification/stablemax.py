"""StableMax: cross-entropy whose probabilities cannot collapse in floating point, and monitors of that collapse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_index, check_logits, check_tensor, refuse
from ...core.logpartition import pick
from ...core.objective import Objective
from ...core.reductions import reduce, widen
from ...core.rowwise import rowwise
from ._stablemax import stablemax_rule
from ._targets import class_targets
from .cross_entropy import cross_entropy

DTYPES = (torch.float32, torch.float64)


def _log_s(x: Tensor) -> Tensor:
    """log s(x); each side is clamped to where it is taken, so that neither gives NaN, and the slope at 0 is 1."""
    return torch.where(x >= 0, torch.log1p(x.clamp_min(0.0)), -torch.log1p(-x.clamp_max(0.0)))


def log_stablemax(logits: F[Tensor, "*batch classes"]) -> F[Tensor, "*batch classes"]:
    r"""Log-probabilities of StableMax.

    .. math:: p_i = \frac{s(x_i)}{\sum_j s(x_j)}, \qquad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}

    s is positive, increasing and smooth to first order, with s(x) s(-x) = 1. Unlike softmax it sees a shift of all
    logits.

    Args:
        logits: ``[..., C]``.

    Returns:
        ``[..., C]`` in float32 or wider.

    Example:
        >>> log_stablemax(torch.tensor([2.0, 0.0, -1.0])).exp()
        tensor([0.6667, 0.2222, 0.1111])

    Source: Grokking at the Edge of Numerical Stability, arXiv:2501.04697.
    """
    check_tensor("logits", logits, floating=True)
    return _log_s(widen(logits)).log_softmax(-1)


def stablemax_cross_entropy(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"] | F[Tensor, "batch classes"],
    *,
    dtype: torch.dtype = torch.float64,
    ignore_index: int | None = -100,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of StableMax, :math:`-\log p_y`: that of softmax at the logits :math:`\log s(x)`.

    Args:
        logits: x ``[N, C]``, C >= 2.
        target: class indices ``[N]`` in 0..C-1 or ``ignore_index``; or probabilities ``[N, C]``.
        dtype: of the computation, ``torch.float64`` or ``torch.float32``; never narrower than the logits.
        ignore_index: samples with this index don't count; None for none.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32, or in float64 for float64 logits.

    Raises:
        ValueError: wrong shapes, a class out of range, another ``dtype``.

    Example:
        >>> stablemax_cross_entropy(torch.tensor([[1000.0, 0.0, -1000.0]]), torch.tensor([0]))
        tensor(0.0010)

    Source: Grokking at the Edge of Numerical Stability, arXiv:2501.04697.
    """
    check_choice("dtype", dtype, DTYPES)
    check_logits(logits)
    target, valid = class_targets(logits, target, ignore_index)
    z = widen(logits)
    wide = torch.promote_types(z.dtype, dtype)

    def plain(z: Tensor) -> Tensor:
        return cross_entropy(_log_s(z.to(wide)), target, ignore_index=None, reduction="none")

    losses = plain(z) if target.ndim == 2 else rowwise(z, plain, stablemax_rule(target.long(), wide))
    return reduce(losses, reduction, weight, valid).to(z.dtype)


class StableMaxCrossEntropy(Objective):
    """Cross-entropy of StableMax; see :func:`stablemax_cross_entropy`.

    The gradient on an easy sample falls polynomially in its margin and never rounds to 0; probabilities stay soft.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        dtype: of the computation; ``torch.float32`` where a device has no float64.
        ignore_index: samples with this index don't count.

    Example:
        >>> StableMaxCrossEntropy()(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([2]))
        tensor(2.1972)
    """

    name = "stablemax"
    tasks = ("binary", "multiclass")
    targets = ("index", "soft")

    def __init__(self, reduction: str = "mean", dtype: torch.dtype = torch.float64, ignore_index: int = -100) -> None:
        super().__init__(reduction)
        check_choice("dtype", dtype, DTYPES)
        self.dtype, self.ignore_index = dtype, ignore_index

    def forward(self, outputs: F[Tensor, "batch classes"], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of logits and class indices ``[N]`` or probabilities ``[N, C]``."""
        self.check_call(outputs, target, weight)
        return stablemax_cross_entropy(
            outputs,
            target,
            dtype=self.dtype,
            ignore_index=self.ignore_index,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """StableMax: the loss is proper in it, its minimiser is the conditional distribution."""
        return log_stablemax(outputs).exp()


@torch.no_grad()
def softmax_collapse_rate(logits: F[Tensor, "batch classes"], target: I[Tensor, " batch"]) -> F[Tensor, ""]:
    """Share of samples whose softmax cross-entropy is exactly 0 in the type of the logits.

    Such samples give no gradient. In float32 two classes collapse at a gap of 17 between their logits.

    Args:
        logits: ``[N, C]`` in the type that training uses.
        target: class indices ``[N]``.

    Returns:
        A scalar in [0, 1], float32; NaN for no samples.

    Raises:
        ValueError: wrong shapes, a class out of range.

    Example:
        >>> softmax_collapse_rate(torch.tensor([[16.0, 0.0], [17.0, 0.0]]), torch.tensor([0, 0]))
        tensor(0.5000)

    Source: Grokking at the Edge of Numerical Stability, arXiv:2501.04697.
    """
    check_logits(logits)
    check_index(target, logits)
    return (pick(logits.log_softmax(-1), target) == 0).float().mean()


@torch.no_grad()
def nlm_alignment(params: Iterable[Tensor]) -> F[Tensor, ""]:
    r"""How much a descent step only scales the weights: :math:`\cos(-g, w)` over all weights as one vector.

    Near 1, training makes logits larger without moving the decision (naive loss minimisation).

    Args:
        params: parameters with ``.grad``; those without a gradient are left out.

    Returns:
        A scalar in [-1, 1], float32 or wider; 0 where all weights or all gradients are 0.

    Raises:
        ValueError: no parameter has a gradient.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> w.grad = torch.tensor([-6.0, -8.0])
        >>> nlm_alignment([w])
        tensor(1.)

    Source: Grokking at the Edge of Numerical Stability, arXiv:2501.04697.
    """
    pairs = [(widen(p.detach()), widen(p.grad)) for p in params if p.grad is not None]
    if not pairs:
        refuse("params", "at least one parameter with a gradient", "none")
    weights = torch.cat([w.reshape(-1) for w, _ in pairs])
    slopes = torch.cat([g.reshape(-1) for _, g in pairs])
    # gradients may be so small that their squares vanish: scale first
    units = [v / v.abs().max().clamp_min(torch.finfo(v.dtype).tiny) for v in (weights, slopes)]
    lengths = [torch.linalg.vector_norm(v) for v in units]
    return -(units[0] @ units[1]) / (lengths[0] * lengths[1]).clamp_min(torch.finfo(units[0].dtype).tiny)
