"""Hard patches mining: an averaged copy of the model says which patches are hard, and these are masked."""

from __future__ import annotations

import copy
from typing import cast

import torch
from jaxtyping import Bool as B
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.nn.functional import softplus

from ...core.arguments import Arguments
from ...core.checks import check_number, check_tensor, refuse_type
from ...core.reductions import widen


def relative_loss_prediction(
    pred: F[Tensor, "images patches"], target_loss: F[Tensor, "images patches"]
) -> F[Tensor, ""]:
    r"""Whether predictions have the order of losses: the logistic loss of all pairs of patches of an image.

    .. math:: \frac{1}{|P|} \sum_{(i, j) \in P} \log\big(1 + e^{-(p_j - p_i)}\big), \qquad
        P = \{(i, j) : l_j > l_i \text{ in one image}\}

    over the pairs of all images; the order of losses alone counts, and they get no gradient. Equal losses are no pair.

    Args:
        pred: predicted hardness p ``[N, M]``.
        target_loss: reconstruction losses l ``[N, M]`` of the same masked patches.

    Returns:
        A scalar in float32 or wider; 0 with a graph where no two losses differ.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> relative_loss_prediction(torch.tensor([[0.1, 0.3, 0.4]]), torch.tensor([[0.5, 0.2, 0.9]]))
        tensor(0.6656)

    Source: Bootstrap Masked Visual Modeling via Hard Patches Mining, arXiv:2312.13714.
    """
    check_tensor("pred", pred, ndim=2, floating=True)
    check_tensor("target_loss", target_loss, floating=True, shape=tuple(pred.shape))
    p, losses = widen(pred), target_loss.detach()
    harder = losses.unsqueeze(1) > losses.unsqueeze(2)  # [N, i, j]: j is harder than i
    cost = softplus(p.unsqueeze(2) - p.unsqueeze(1))
    return torch.where(harder, cost, 0.0).sum() / harder.sum().clamp_min(1)


def absolute_loss_prediction(
    pred: F[Tensor, "images patches"], target_loss: F[Tensor, "images patches"]
) -> F[Tensor, ""]:
    """The squared error of predictions against losses that are standardised over each image's patches.

    The variance has M - 1 in the divisor, and 1e-6 added. An image of one patch has the target 0.

    Args:
        pred: ``[N, M]``.
        target_loss: ``[N, M]``; it gets no gradient.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> absolute_loss_prediction(torch.tensor([[0.1, 0.3, 0.4]]), torch.tensor([[0.5, 0.2, 0.9]]))
        tensor(0.6711)
    """
    check_tensor("pred", pred, ndim=2, floating=True)
    check_tensor("target_loss", target_loss, floating=True, shape=tuple(pred.shape))
    p = widen(pred)
    if not p.numel():
        return p.sum()
    return (p - _standardized(target_loss.detach())).square().mean()


def _standardized(values: F[Tensor, "*batch width"]) -> F[Tensor, "*batch width"]:
    """Values less their mean over their deviation, along the last dimension; the variance has 1e-6 added.

    >>> _standardized(torch.tensor([1.0, 2.0, 3.0]))
    tensor([-1.0000,  0.0000,  1.0000])
    """
    rows = widen(values)
    centred = rows - rows.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / max(rows.shape[-1] - 1, 1)
    return centred * (variance + 1e-6).rsqrt()


def easy_to_hard_mask(
    scores: F[Tensor, "images patches"],
    mask_ratio: float = 0.75,
    epoch: int = 0,
    total_epochs: int = 1,
    max_hard: float = 0.5,
    generator: torch.Generator | None = None,
) -> B[Tensor, "images patches"]:
    r"""Which patches are masked: some of the hardest, more of them from epoch to epoch, the rest at random.

    Of L patches :math:`M = L - \lfloor L (1 - \text{ratio}) \rfloor` are masked in each image, of these the
    :math:`k = \lfloor M \, h \, (e + 1) / E \rfloor` of the largest scores.

    Args:
        scores: predicted hardness ``[N, L]``.
        mask_ratio: in (0, 1).
        epoch: e, 0-based, below ``total_epochs``.
        total_epochs: E >= 1.
        max_hard: h, share of hard patches in the last epoch, in [0, 1].
        generator: on the CPU; None is torch's own.

    Returns:
        Boolean ``[N, L]``, true where masked.

    Raises:
        ValueError: another shape, numbers out of range.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9, 0.2, 0.8]])
        >>> easy_to_hard_mask(scores, 0.5, epoch=0, total_epochs=1, max_hard=1.0)
        tensor([[False,  True, False,  True]])

    Source: Bootstrap Masked Visual Modeling via Hard Patches Mining, arXiv:2312.13714.
    """
    check_tensor("scores", scores, ndim=2, floating=True)
    check_number("mask_ratio", mask_ratio, low=0.0, high=1.0, open_low=True, open_high=True)
    check_number("total_epochs", total_epochs, low=1, integer=True)
    check_number("epoch", epoch, low=0, high=total_epochs - 1, integer=True)
    check_number("max_hard", max_hard, low=0.0, high=1.0)
    images, patches = scores.shape
    masked = patches - int(patches * (1 - mask_ratio))
    hard = int(masked * max_hard * (epoch + 1) / total_epochs)
    keys = torch.rand(images, patches, generator=generator).to(scores.device)
    keys = keys.scatter(1, scores.detach().topk(hard, 1).indices, 2.0)  # above all that is drawn
    return torch.zeros_like(keys, dtype=torch.bool).scatter(1, keys.topk(masked, 1).indices, True)


class HardPatchMiner(Arguments, nn.Module):
    r"""Masked image modelling whose averaged copy, the teacher, chooses what the student must reconstruct.

    The model takes patches ``[N, L, D]`` and a mask ``[N, L]`` (true: hidden) and gives a reconstruction ``[N, L, D]``
    and a hardness ``[N, L]``; with nothing hidden the teacher's hardness says what is hard. The loss is the mean
    squared error of masked patches, each standardised over its own pixels, and :func:`relative_loss_prediction` of the
    hardness of the same patches against these errors,

    .. math:: L = L_{rec} + \lambda L_{pred}

    A step of training: ``mask``, ``forward``, the optimizer's step, ``after_step``.

    Args:
        model: the student, an ``nn.Module``; it is trained, its copy is not.
        ema: decay of the teacher's average at first, in [0, 1].
        ema_end: decay after ``ema_epochs``, in [ema, 1]; between it rises linearly.
        ema_epochs: >= 0.
        prediction: :math:`\lambda` >= 0; 0 leaves the reconstruction alone.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.pixels, self.hardness = nn.Linear(4, 4), nn.Linear(4, 1)
        ...     def forward(self, patches, mask):
        ...         x = patches * ~mask.unsqueeze(-1)
        ...         return self.pixels(x), self.hardness(x).squeeze(-1)
        >>> miner, patches = HardPatchMiner(Model()), torch.randn(2, 8, 4)
        >>> mask = miner.mask(patches, epoch=0, total_epochs=10)
        >>> mask.sum(1).tolist(), miner(patches, mask).shape
        ([6, 6], torch.Size([]))

    Source: Bootstrap Masked Visual Modeling via Hard Patches Mining, arXiv:2312.13714.
    """

    def __init__(
        self,
        model: nn.Module,
        ema: float = 0.999,
        *,
        ema_end: float = 0.9999,
        ema_epochs: int = 100,
        prediction: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            refuse_type("model", "a module", model)
        check_number("ema", ema, low=0.0, high=1.0)
        check_number("ema_end", ema_end, low=ema, high=1.0)
        check_number("ema_epochs", ema_epochs, low=0, integer=True)
        check_number("prediction", prediction, low=0.0)
        self.ema, self.ema_end, self.ema_epochs, self.prediction = ema, ema_end, ema_epochs, prediction
        self.model = model
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        self.terms: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> HardPatchMiner:
        """The student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def scores(self, patches: F[Tensor, "images patches pixels"]) -> F[Tensor, "images patches"]:
        """The teacher's hardness of every patch, from whole images."""
        check_tensor("patches", patches, ndim=3, floating=True)
        nothing = torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
        _, hardness = self.teacher(patches, nothing)
        return cast(Tensor, hardness)

    def mask(
        self,
        patches: F[Tensor, "images patches pixels"],
        epoch: int,
        total_epochs: int,
        *,
        mask_ratio: float = 0.75,
        max_hard: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> B[Tensor, "images patches"]:
        """:func:`easy_to_hard_mask` by the teacher's hardness."""
        return easy_to_hard_mask(self.scores(patches), mask_ratio, epoch, total_epochs, max_hard, generator)

    def forward(self, patches: F[Tensor, "images patches pixels"], mask: B[Tensor, "images patches"]) -> F[Tensor, ""]:
        """The loss of the student, a scalar; every image has as many masked patches."""
        check_tensor("patches", patches, ndim=3, floating=True)
        check_tensor("mask", mask, floating=False, shape=tuple(patches.shape[:2]))
        reconstruction, hardness = self.model(patches, mask)
        errors = (widen(reconstruction) - _standardized(patches)).square().mean(-1)
        masked = errors[mask].unflatten(0, (len(patches), -1))
        rebuilt = masked.mean()
        order = relative_loss_prediction(hardness[mask].unflatten(0, (len(patches), -1)), masked)
        self.terms = {"reconstruction": rebuilt.detach(), "prediction": order.detach()}
        return rebuilt + self.prediction * order

    def decay(self, epoch: float) -> float:
        """The decay of the teacher's average at an epoch, 0-based; parts of an epoch count."""
        check_number("epoch", epoch, low=0.0)
        share = min(epoch / self.ema_epochs, 1.0) if self.ema_epochs else 1.0
        return self.ema + share * (self.ema_end - self.ema)

    @torch.no_grad()
    def after_step(self, epoch: float) -> None:
        """Move the teacher's parameters towards the student's; its buffers are the student's."""
        decay = self.decay(epoch)
        for slow, fast in zip(self.teacher.parameters(), self.model.parameters()):
            slow.lerp_(fast.to(slow), 1 - decay)
        for slow, fast in zip(self.teacher.buffers(), self.model.buffers()):
            slow.copy_(fast)
