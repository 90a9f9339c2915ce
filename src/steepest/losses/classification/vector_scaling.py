"""The vector-scaling loss: cross-entropy of logits that are scaled and shifted by how frequent their classes are."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_index, check_logits, check_number, check_tensor, refuse
from ...core.logpartition import target_log_probability
from ...core.objective import Objective, TaskInfo
from ...core.reductions import reduce, widen
from ...core.rowwise import mix, rowwise, target_softmax
from ...core.search import Float
from .ldam import Counts


def vs_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    scales: F[Tensor, " classes"],
    offsets: F[Tensor, " classes"],
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of logits with a factor and an offset a class.

    .. math:: L = -\log \frac{e^{\Delta_y z_y + \iota_y}}{\sum_j e^{\Delta_j z_j + \iota_j}}

    Args:
        logits: z ``[N, C]``, C >= 2.
        target: class indices ``[N]`` in 0..C-1.
        scales: Delta ``[C]``.
        offsets: iota ``[C]``, in the unit of logits.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class out of range.

    Example:
        >>> z, ones = torch.tensor([[2.0, 1.0, 0.0]]), torch.ones(3)
        >>> vs_loss(z, torch.tensor([2]), scales=ones, offsets=torch.tensor([0.0, 0.0, 2.0]))
        tensor(0.8620)

    Source: Label-Imbalanced and Group-Sensitive Classification under Overparameterization, arXiv:2103.01550.
    """
    check_logits(logits, argument="logits")
    check_index(target, logits)
    classes = logits.shape[1]
    check_tensor("scales", scales, floating=True, shape=(classes,))
    check_tensor("offsets", offsets, floating=True, shape=(classes,))
    z, y = widen(logits), target.long()
    factor, shift = scales.to(z), offsets.to(z)

    def plain(z: Tensor) -> Tensor:
        return -target_log_probability(factor * z + shift, y)

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        softmax = target_softmax(torch.addcmul(shift, z, factor), g, y[rows])
        mix(g, target=y[rows], value=-softmax.away)
        g.mul_(factor)
        return -softmax.log_p.squeeze(1)

    return reduce(rowwise(z, plain, rule), reduction, weight)


class VSLoss(Objective):
    r"""The vector-scaling loss for imbalanced classes; see :func:`vs_loss`.

    .. math:: \Delta_c = (n_c / n_{max})^\gamma, \qquad \iota_c = \tau \ln \frac{n_c}{\sum_k n_k}

    Offsets act early in training and scales late, when data can be separated. Both belong to training: at test logits
    are taken as they are. Beside deferred re-weighting it stands inside ``DeferredReweighting``.

    Args:
        class_counts: C training counts n_c >= 1.
        gamma: >= 0; 0 scales nothing, published experiments have 0.05 to 0.3.
        tau: >= 0; 0 shifts nothing, 1 is logit adjustment by the training frequencies.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: fewer than two counts, one below 1, numbers outside their ranges.

    Example:
        >>> loss = VSLoss((100, 10, 1))
        >>> loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2]))
        tensor(6.6286)

    Source: Label-Imbalanced and Group-Sensitive Classification under Overparameterization, arXiv:2103.01550; defaults
    of Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data, arXiv:2212.13827.
    """

    name = "vector_scaling"
    tasks = ("binary", "multiclass")
    search = {"gamma": Float(0.0, 0.5), "tau": Float(0.0, 2.0)}

    scales: Tensor
    offsets: Tensor

    def __init__(self, class_counts: Counts, gamma: float = 0.3, tau: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("gamma", gamma, low=0.0)
        check_number("tau", tau, low=0.0)
        counts = torch.as_tensor(class_counts)
        check_tensor("class_counts", counts, ndim=1, floating=False)
        if len(counts) < 2 or bool((counts < 1).any()):
            refuse("class_counts", "at least two counts, all >= 1", counts.tolist())
        self.gamma, self.tau = gamma, tau
        shares = counts.cpu().double()
        self.register_buffer("scales", ((shares / shares.max()) ** gamma).float().to(counts.device))
        self.register_buffer("offsets", (tau * (shares / shares.sum()).log()).float().to(counts.device))

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the class counts of the training split."""
        return cls(info.class_counts, **hyper)

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits and class indices."""
        self.check_call(outputs, target, weight)
        return vs_loss(
            outputs, target, scales=self.scales, offsets=self.offsets, weight=weight, reduction=self.reduction
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax of the logits: scales and offsets belong to training, and classes count alike."""
        return widen(outputs).softmax(-1)
