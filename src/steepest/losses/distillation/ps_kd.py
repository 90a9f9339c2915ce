"""Progressive self-knowledge distillation: the model of the last epoch softens this epoch's labels."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_index, check_logits, check_number, check_tensor
from ...core.logpartition import pick
from ...core.memory import SampleMemory, means_of_repeats
from ...core.objective import Objective, Sample, TaskInfo
from ...core.reductions import reduce, widen
from ...core.search import Float


def ps_kd_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    past_probs: F[Tensor, "batch classes"],
    alpha: float | F[Tensor, ""],
    seen: Bool[Tensor, " batch"] | None = None,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy against labels mixed with the model's own past prediction.

    .. math:: \tilde y = (1 - \alpha)\,\mathrm{onehot}(y) + \alpha P_{t-1}(x), \qquad
        L = -\sum_i \tilde y_i \log \mathrm{softmax}(z)_i

    The gradient in z is p - y~: that of cross-entropy times 1 - alpha (1 - P_y) / (1 - p_y) in the target's entry.

    Args:
        logits: z ``[N, C]``.
        target: class indices ``[N]`` in 0..C-1.
        past_probs: P ``[N, C]``, rows of a simplex; no gradient flows into them.
        alpha: in [0, 1].
        seen: boolean ``[N]``; samples that are False keep their one-hot target. None: all were seen.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a class outside the range, a number ``alpha`` outside [0, 1].

    Example:
        >>> z, past = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.6, 0.3, 0.1]])
        >>> ps_kd_loss(z, torch.tensor([0]), past_probs=past, alpha=0.24)
        tensor(0.5276)

    Source: Self-Knowledge Distillation with Progressive Refinement of Targets, arXiv:2006.12000.
    """
    check_logits(logits)
    check_index(target, logits)
    check_tensor("past_probs", past_probs, floating=True, shape=tuple(logits.shape))
    if not isinstance(alpha, Tensor):
        check_number("alpha", alpha, low=0.0, high=1.0)
    log_p = widen(logits).log_softmax(-1)
    share = torch.as_tensor(alpha, dtype=log_p.dtype, device=log_p.device)
    if seen is not None:
        check_tensor("seen", seen, shape=(logits.shape[0],))
        share = torch.where(seen, share, torch.zeros_like(share))
    soft = -(past_probs.detach().to(log_p) * log_p).sum(-1)
    return reduce((1 - share) * -pick(log_p, target) + share * soft, reduction, weight)


class PastPredictions(nn.Module):
    """The last prediction of an earlier epoch for each training sample.

    What is written waits until :meth:`turn`, at the start of the next epoch, so a sample that is visited twice in one
    epoch (by a sampler, or by an optimizer that evaluates the loss again) never meets its own prediction of that epoch.

    Args:
        num_samples: N >= 1.
        num_classes: C >= 2.
        topk: keep only the k largest probabilities of a sample and spread the rest evenly over the other classes; None,
            or k >= C, keeps all.
        dtype: of the stored probabilities, half types included.

    Example:
        >>> past = PastPredictions(5, 4, topk=1)
        >>> past.write(torch.tensor([2]), torch.tensor([[0.7, 0.2, 0.1, 0.0]]))
        >>> past.turn()
        >>> past.read(torch.tensor([2]))
        tensor([[0.7000, 0.1000, 0.1000, 0.1000]])
    """

    def __init__(
        self, num_samples: int, num_classes: int, topk: int | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        check_number("num_classes", num_classes, low=2, integer=True)
        if topk is not None:
            check_number("topk", topk, low=1, integer=True)
        self.num_classes = num_classes
        self.topk = None if topk is None or topk >= num_classes else topk
        width = (self.topk or num_classes,)
        self.past = SampleMemory(num_samples, width, dtype=dtype)
        self.fresh = SampleMemory(num_samples, width, dtype=dtype)
        if self.topk:
            self.past_classes = SampleMemory(num_samples, width, dtype=torch.int64)
            self.fresh_classes = SampleMemory(num_samples, width, dtype=torch.int64)

    def check(self, index: Tensor, rows: int) -> None:
        """Check positions ``[rows]``."""
        self.past.check(index, rows)

    def seen(self, index: I[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Whether an earlier epoch left a prediction."""
        return self.past.seen[index]

    def read(self, index: I[Tensor, " batch"]) -> F[Tensor, "batch classes"]:
        """Past probabilities ``[B, C]`` in float32 or wider, rows of sum 1; uniform for samples not seen."""
        stored = widen(self.past.read(index))
        if not self.topk:
            stored = torch.where(self.seen(index).unsqueeze(-1), stored, torch.ones_like(stored))
            return stored / stored.sum(-1, keepdim=True)
        others = self.num_classes - self.topk
        stored = torch.where(self.seen(index).unsqueeze(-1), stored, torch.full_like(stored, 1 / self.num_classes))
        stored = stored / stored.sum(-1, keepdim=True).clamp_min(1)  # rounding may have pushed the sum above 1
        rest = (1 - stored.sum(-1, keepdim=True)) / others
        unseen = torch.arange(self.topk, device=stored.device)
        classes = torch.where(self.seen(index).unsqueeze(-1), self.past_classes.read(index), unseen)
        return rest.repeat(1, self.num_classes).scatter(-1, classes, stored)

    def write(self, index: I[Tensor, " batch"], probs: F[Tensor, "batch classes"]) -> None:
        """Keep this epoch's probabilities, for the next."""
        if self.topk:  # of several rows of a sample the mean has one order of classes
            probs, classes = means_of_repeats(index, probs.detach()).topk(self.topk, dim=-1)
            self.fresh_classes.write(index, classes)
        self.fresh.write(index, probs)

    @torch.no_grad()
    def turn(self) -> None:
        """Start an epoch: what was written becomes the past. Samples that were not visited keep theirs."""
        self.past.values.copy_(self.fresh.values)
        self.past.seen.copy_(self.fresh.seen)
        if self.topk:
            self.past_classes.values.copy_(self.fresh_classes.values)


class PSKDLoss(Objective):
    r"""Self-distillation from the previous epoch; see :func:`ps_kd_loss`.

    In epoch t of T the share of the past is :math:`\alpha_t = \alpha t / T`. In the first epoch, which has no past, it
    is cross-entropy. Predictions are those of the training pass, kept in ``state_dict``: they come from slightly older
    weights, and from another view where inputs are augmented.

    Args:
        num_samples: N, rows of the training split.
        num_classes: C >= 2.
        total_epochs: T >= 1, for ``start_epoch`` without its second argument.
        alpha: share of the past in the last epoch, in [0, 1].
        topk: probabilities kept of each sample, or None for all; see :class:`PastPredictions`.
        dtype: of the stored probabilities; float16 halves the memory.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = PSKDLoss(num_samples=4, num_classes=3, total_epochs=10)
        >>> loss.start_epoch(1)
        >>> loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]), index=torch.tensor([2]))
        tensor(0.4076)
        >>> loss.start_epoch(2)
        >>> loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]), index=torch.tensor([2]))
        tensor(0.4756)
    """

    name = "ps_kd"
    tasks = ("binary", "multiclass")
    needs = ("index",)
    stateful = True
    search = {"alpha": Float(0.1, 0.95)}

    share: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        total_epochs: int,
        alpha: float = 0.8,
        topk: int | None = None,
        dtype: torch.dtype = torch.float32,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_number("total_epochs", total_epochs, low=1, integer=True)
        check_number("alpha", alpha, low=0.0, high=1.0)
        self.total_epochs, self.alpha = total_epochs, alpha
        self.memory = PastPredictions(num_samples, num_classes, topk, dtype)
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the size of the training split, its classes and the planned epochs."""
        return cls(info.num_samples, info.num_classes, info.epochs, **hyper)

    def start_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Set alpha_t and make the last epoch's predictions the past."""
        self.share.fill_(self.alpha * min(epoch / (epochs or self.total_epochs), 1.0))
        self.memory.turn()

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        index: I[Tensor, " batch"],
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits, class indices and positions in the training split."""
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        check_tensor("outputs", outputs, shape=(None, self.memory.num_classes))
        self.memory.check(index, outputs.shape[0])
        loss = ps_kd_loss(
            outputs,
            target,
            past_probs=self.memory.read(index),
            alpha=self.share,
            seen=self.memory.seen(index),
            weight=weight,
            reduction=self.reduction,
        )
        if self.training:
            self.memory.write(index, widen(outputs.detach()).softmax(-1))
        return loss

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax."""
        return outputs.softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The default cases, and two in mid-training: with whole past predictions and with their two largest."""
        cases = super().samples(generator, dtype, device)
        args, kwargs = sample = cases[-1][1]
        earlier = torch.randn(args[0].shape, generator=generator, dtype=torch.float64).to(device, torch.float32)
        for topk in (None, 2):
            objective = cls(21, args[0].shape[1], 10, topk=topk).to(device)
            objective.start_epoch(4, 10)
            objective(earlier, args[1], **kwargs)
            objective.start_epoch(5, 10)
            cases.append((objective, sample))
        return cases
