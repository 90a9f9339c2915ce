"""Dual-head distillation: cross-entropy on one head, a loss of logits on another, and their gradients aligned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.loss import Loss, Sample
from ...core.reductions import REDUCTIONS, reduce, widen
from ...nn.dual_head import DualHead

__all__ = ["BinaryKLNormLoss", "DualHead", "binary_kl_norm", "gradient_align"]


def _log_cosh(x: Tensor) -> Tensor:
    """``log cosh x``: near 0 without the difference of nearly equal numbers, far off without an overflow."""
    near = (2 * torch.sinh(x.clamp(-1, 1) / 2).square()).log1p()
    size = x.abs()
    return torch.where(size < 1, near, size + (-2 * size).exp().log1p() - math.log(2))


def binary_kl_norm(
    student_logits: F[Tensor, "batch classes"],
    teacher_logits: F[Tensor, "batch classes"],
    temperature: float = 2.0,
    *,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Divergence of 1/2 from the sigmoid of the gaps between a student's logits u and a teacher's t.

    .. math:: \ell = T^2 \sum_c \Big[\tfrac12 \log \frac{1/2}{\delta_c} + \tfrac12 \log \frac{1/2}{1 - \delta_c}\Big]
        = T^2 \sum_c \log \cosh \frac{u_c - t_c}{2T}, \qquad \delta_c = \sigma\Big(\frac{u_c - t_c}{T}\Big)

    Zero if and only if u = t, so a constant added to all logits of one counts; about :math:`\sum_c (u_c - t_c)^2 / 8`
    for small gaps, linear for large ones. The gradient in u is :math:`\frac T2 \tanh \frac{u - t}{2T}`, at most T/2 a
    logit. It is a sum over classes: its factor beside a cross-entropy shrinks when C grows.

    Args:
        student_logits: u ``[B, C]``.
        teacher_logits: t ``[B, C]`` of the same classes; no gradient flows into them.
        temperature: T > 0.
        weight: sample weights ``[B]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over samples.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: shapes that differ, a temperature that is not above 0.

    Example:
        >>> binary_kl_norm(torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[2.0, 0.0, 1.0]]))
        tensor(0.3712)

    Source: Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head, arXiv:2411.08937.
    """
    check_tensor("student_logits", student_logits, ndim=2, floating=True)
    check_tensor("teacher_logits", teacher_logits, floating=True, shape=tuple(student_logits.shape))
    check_number("temperature", temperature, low=0.0, open_low=True)
    u = widen(student_logits)
    gaps = (u - teacher_logits.detach().to(u)) / (2 * temperature)
    return reduce(temperature**2 * _log_cosh(gaps).sum(-1), reduction, weight)


class BinaryKLNormLoss(Loss):
    """The loss of an auxiliary head's logits against a teacher's; see :func:`binary_kl_norm`.

    With a :class:`~steepest.nn.dual_head.DualHead` the whole is ``cross_entropy(z, y) + alpha * loss(u, t)`` of its
    main logits z and auxiliary logits u, with alpha of about 0.1 to 1.

    Args:
        temperature: T > 0.
        reduction: ``"mean"`` or ``"sum"`` over samples.

    Example:
        >>> BinaryKLNormLoss()(torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[2.0, 0.0, 1.0]]))
        tensor(0.3712)
    """

    name = "binary_kl_norm"

    def __init__(self, temperature: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_choice("reduction", reduction, REDUCTIONS[1:])
        self.temperature, self.reduction = temperature, reduction

    def forward(self, student_logits: F[Tensor, "batch classes"], teacher_logits: F[Tensor, "batch classes"]) -> Tensor:
        """The loss of the student's and the teacher's logits."""
        return binary_kl_norm(student_logits, teacher_logits, self.temperature, reduction=self.reduction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Small and large gaps, and another temperature."""
        cases: list[tuple[Self, Sample]] = []
        for loss, size in ((cls(), 1.0), (cls(0.7, "sum"), 5.0)):
            logits = [size * torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
            cases.append((loss, (tuple(z.to(device, dtype) for z in logits), {})))
        return cases


def gradient_align(loss_main: Tensor, loss_aux: Tensor, params: nn.Module | Iterable[Tensor]) -> None:
    r"""Write the sum of two gradients into ``.grad``, the second without what opposes the first.

    .. math:: g_2 \leftarrow g_2 - \frac{\min(g_1 \cdot g_2, 0)}{|g_1|^2}\, g_1, \qquad \texttt{.grad} = g_1 + g_2

    Dot product and norm are over the parameters that both losses reach; those that one alone reaches get its gradient
    (the published code takes norm and projection over all of the first). What ``.grad`` held before is replaced; a
    parameter that neither reaches gets None.

    Args:
        loss_main: g_1 is its gradient: cross-entropy, with its factor.
        loss_aux: g_2 is its gradient: the loss of logits, with its factor.
        params: a module, or parameters.

    Raises:
        ValueError: a loss that is no scalar, no parameters.

    Example:
        >>> p = torch.zeros(2, requires_grad=True)
        >>> gradient_align(p @ torch.tensor([1.0, 0.0]), p @ torch.tensor([-1.0, 1.0]), [p])
        >>> p.grad
        tensor([1., 1.])
    """
    owned = [p for p in (params.parameters() if isinstance(params, nn.Module) else params) if p.requires_grad]
    if not owned:
        refuse("params", "at least one that wants a gradient", "none")
    for name, loss in (("loss_main", loss_main), ("loss_aux", loss_aux)):
        check_tensor(name, loss, floating=True, shape=())
    first = torch.autograd.grad(loss_main, owned, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss_aux, owned, allow_unused=True)
    shared = [(a, b) for a, b in zip(first, second) if a is not None and b is not None]
    share: Tensor | float = 0.0
    if shared:
        wide = [(a.double().flatten(), b.double().flatten()) for a, b in shared]  # squares of small ones are there
        dot = torch.stack([torch.linalg.vecdot(a, b) for a, b in wide]).sum()
        length = torch.stack([a.square().sum() for a, _ in wide]).sum()
        share = torch.where(dot < 0, dot / length, 0.0)  # no host reads it
    for p, a, b in zip(owned, first, second):
        if a is not None and b is not None:
            p.grad = a + b - (share * a).to(a.dtype)
        else:
            alone = b if a is None else a
            # what autograd gives may be one number for all entries, or that of another parameter too
            p.grad = None if alone is None else alone.clone(memory_format=torch.contiguous_format)
