"""What the multimodal competition is made of: a divergence, a contrastive loss, a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from ...core.checks import check_number, refuse
from ...core.cosine import unit_rows


class PredictionDecoder(nn.Module):
    """Guesses the features of all modalities from logits: two layers without biases, K -> d -> sum of the widths.

    Args:
        classes: K.
        widths: of the features, one a modality; d is the largest.

    Example:
        >>> PredictionDecoder(3, (4, 2))(torch.zeros(5, 3)).shape
        torch.Size([5, 6])
    """

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        for name, number in (("classes", classes), *(("widths", width) for width in widths)):
            check_number(name, number, low=1, integer=True)
        hidden = max(widths)
        self.inner = nn.Linear(classes, hidden, bias=False)
        self.outer = nn.Linear(hidden, sum(widths), bias=False)

    def forward(self, logits: F[Tensor, "batch classes"]) -> F[Tensor, "batch features"]:
        """``[N, K] -> [N, sum of the widths]``, in the precision of the logits."""
        hidden = linear(logits, self.inner.weight.to(logits.dtype)).relu()
        return linear(hidden, self.outer.weight.to(logits.dtype))


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """The mean over rows of JS of two softmaxes, from logits; exactly 0 where they are the same, nothing to clamp."""
    a, b = a.log_softmax(-1), b.log_softmax(-1)
    both = a.exp() * _log_half_sum(b - a) + b.exp() * _log_half_sum(a - b)
    return 0.0 - 0.5 * both.sum(-1).mean()  # not -0


def _log_half_sum(d: Tensor) -> Tensor:
    """``log((1 + e^d) / 2)``. At 0 autograd gives slope 0 for 1/2; both terms above then weigh it alike, and cancel."""
    return d.relu() + torch.log1p(torch.expm1(-d.abs()) / 2)


def nt_xent(features: Sequence[Tensor], target: Tensor, temperature: float) -> Tensor:
    r"""Supervised NT-Xent of the unit features of all modalities together: positives have one label.

    .. math:: \operatorname{mean}_{(i, j)\,\text{positive}} -\log \frac{e^{s_{ij} / T}}{e^{s_{ij} / T} +
        \sum_{k\,\text{negative of}\,i} e^{s_{ik} / T}}
    """
    flat = [z.flatten(1) for z in features]
    for m, z in enumerate(flat):
        if z.shape[1] != flat[0].shape[1]:
            refuse(f"features[{m}]", f"width {flat[0].shape[1]} as the first, because contrastive > 0", features[m])
    units = torch.cat([unit_rows(z) for z in flat])
    labels = target.repeat(len(flat))
    cosines = units @ units.T / temperature
    alike = labels.unsqueeze(1) == labels
    # a finite floor in place of -inf: an anchor without negatives costs 0 and has a gradient of 0
    negatives = cosines.masked_fill(alike, -1e30).logsumexp(1, keepdim=True)
    alike = alike & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return torch.where(alike, softplus(negatives - cosines), 0.0).sum() / alike.sum()
