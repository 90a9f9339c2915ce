"""Knowledge distillation: cross-entropy, and the divergence of a student's softened classes from a teacher's."""

from __future__ import annotations

from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_index, check_logits, check_number, check_tensor
from ...core.kl_estimators import kl_of_logits
from ...core.logpartition import target_log_probability
from ...core.objective import Objective
from ...core.reductions import reduce, widen
from ...core.search import Float


def _divergences(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher || student)`` of each row, in float32 or wider."""
    z = widen(logits)
    return temperature**2 * kl_of_logits(z / temperature, teacher.detach().to(z) / temperature, "forward")


def distillation_divergence(
    logits: F[Tensor, "batch classes"],
    teacher: F[Tensor, "batch classes"],
    *,
    temperature: float = 4.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Divergence of a student's classes from a teacher's, both softened by one temperature.

    .. math:: \ell = T^2 \sum_c p^t_c \log \frac{p^t_c}{p^s_c}, \qquad
        p^t = \mathrm{softmax}(t / T), \quad p^s = \mathrm{softmax}(z / T)

    Summed over classes, averaged over rows. The gradient in z is T (p^s - p^t); the factor T^2 keeps its size when T
    grows, and for large T it is (z - t) / C, each centred.

    Args:
        logits: z of the student ``[N, C]``, C >= 2.
        teacher: logits t ``[N, C]`` of the same classes; no gradient flows into them.
        temperature: T > 0.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The divergence in float32 or wider, >= 0.

    Raises:
        ValueError: shapes that differ, a temperature that is not above 0.

    Example:
        >>> import torch
        >>> z, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
        >>> distillation_divergence(z, t)
        tensor(0.3309)

    Source: Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    check_logits(logits)
    check_tensor("teacher", teacher, floating=True, shape=tuple(logits.shape))
    check_number("temperature", temperature, low=0.0, open_low=True)
    return reduce(_divergences(logits, teacher, temperature), reduction, weight)


def distillation_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    teacher: F[Tensor, "batch classes"],
    temperature: float = 4.0,
    alpha: float = 0.9,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy with the labels, and the divergence from a teacher; see :func:`distillation_divergence`.

    .. math:: \ell = -(1 - \alpha) \log \mathrm{softmax}(z)_y
        + \alpha\, T^2\, \mathrm{KL}\big(\mathrm{softmax}(t / T)\,\|\,\mathrm{softmax}(z / T)\big)

    Args:
        logits: z of the student ``[N, C]``, C >= 2.
        target: class indices ``[N]`` in 0..C-1.
        teacher: logits t ``[N, C]`` of the same classes; no gradient flows into them.
        temperature: T > 0.
        alpha: share of the teacher, in [0, 1]; 0 is cross-entropy.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: shapes that differ, a class out of range, a number out of range.

    Example:
        >>> import torch
        >>> z, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
        >>> distillation_loss(z, torch.tensor([0]), teacher=t, alpha=0.5)
        tensor(0.4412)

    Source: Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    check_logits(logits)
    check_index(target, logits)
    check_tensor("teacher", teacher, floating=True, shape=tuple(logits.shape))
    check_number("temperature", temperature, low=0.0, open_low=True)
    check_number("alpha", alpha, low=0.0, high=1.0)
    of_labels = -target_log_probability(logits, target)
    if alpha == 0:
        return reduce(of_labels, reduction, weight)
    of_teacher = _divergences(logits, teacher, temperature)
    return reduce((1 - alpha) * of_labels + alpha * of_teacher, reduction, weight)


class DistillationLoss(Objective):
    """Knowledge distillation from a teacher's logits; see :func:`distillation_loss`.

    Args:
        temperature: T > 0 of both softmaxes.
        alpha: share of the teacher, in [0, 1].
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> import torch
        >>> z, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
        >>> DistillationLoss(alpha=0.5)(z, torch.tensor([0]), teacher=t)
        tensor(0.4412)
    """

    name = "distillation"
    tasks = ("binary", "multiclass")
    needs = ("teacher",)
    search = {"temperature": Float(1.0, 10.0, log=True), "alpha": Float(0.1, 0.95)}

    def __init__(self, temperature: float = 4.0, alpha: float = 0.9, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_number("alpha", alpha, low=0.0, high=1.0)
        self.temperature, self.alpha = temperature, alpha

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        teacher: F[Tensor, "batch classes"],
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits, class indices and the teacher's logits."""
        self.check_call(outputs, target, weight)
        return distillation_loss(
            outputs,
            target,
            teacher=teacher,
            temperature=self.temperature,
            alpha=self.alpha,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax at temperature 1."""
        return outputs.softmax(-1)
