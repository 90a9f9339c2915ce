"""The row function of cross-entropy, with all that changes its target, its weights and its log-partition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..core.rowwise import add_at, at, softmax_parts


@dataclass
class Statistics:
    """What a row function notes on the way, each ``[n]``."""

    lse: Tensor
    entropy: Tensor
    argmax: Tensor

    @classmethod
    def empty(cls, rows: int, like: Tensor, dtype: torch.dtype) -> Statistics:
        """Room for ``rows``."""
        return cls(
            like.new_empty(rows, dtype=dtype),
            like.new_empty(rows, dtype=dtype),
            like.new_empty(rows, dtype=torch.int64),
        )


@dataclass
class CrossEntropyRows:
    r"""Cross-entropy of a row of logits against its target, plus a penalty on the log-partition.

    .. math:: l = -\sum_v c_v q_v \log p_v + \lambda \log^2 Z, \qquad
        g_v = \Bigl(\sum_u c_u q_u + 2 \lambda \log Z\Bigr) p_v - c_v q_v

    with the target q smoothed: (1 - s) q + s / V.

    Args:
        target: class indices ``[n]``, probabilities ``[n, V]``, or the indices ``[n, k]`` of ``share``.
        share: probabilities ``[n, k]`` of a top-k target, or None.
        class_weight: c ``[V]``, or None for ones.
        smoothing: s in [0, 1].
        log_partition: lambda, a number or a tensor ``[]``; 0 for none.
        statistics: filled where given.
        counts: ``[n]``; a kernel may leave out rows where it is 0, whose losses and gradients nobody uses.
    """

    target: Tensor
    share: Tensor | None = None
    class_weight: Tensor | None = None
    smoothing: float = 0.0
    log_partition: float | Tensor = 0.0
    statistics: Statistics | None = None
    counts: Tensor | None = None

    def __call__(self, z: Tensor, g: Tensor, rows: slice) -> Tensor:
        if self.statistics is not None:
            z.clamp_(min=torch.finfo(z.dtype).min)  # 0 times -inf is no entropy
        top, above = softmax_parts(z, g)
        lse = top + above
        if self.statistics is not None:
            note = self.statistics
            note.lse[rows] = lse.squeeze(1)
            note.entropy[rows] = lse.squeeze(1) - torch.linalg.vecdot(g, z)
            note.argmax[rows] = z.argmax(1)
        y, c, keep = self.target[rows], self.class_weight, 1 - self.smoothing
        if self.share is not None:
            t = keep * self.share[rows].to(z.dtype)
            t = t if c is None else t * c[y]
            mass, gap = t.sum(1, keepdim=True), torch.linalg.vecdot(t, top - z.gather(1, y)).unsqueeze(1)
        elif y.ndim == 2:
            t = keep * y.to(z.dtype)
            t = t if c is None else t * c
            mass = t.sum(1, keepdim=True)
            gap = mass * top - torch.linalg.vecdot(t, z).unsqueeze(1)
        else:
            t = z.new_full((len(z), 1), keep) if c is None else keep * c[y].unsqueeze(1)
            mass, gap = t, t * (top - at(z, y))
        loss = mass * above + gap  # log Z - z_y would round the outputs' size
        if self.smoothing:
            even = self.smoothing / z.shape[1]
            total = z.shape[1] if c is None else c.sum()
            loss = loss + even * (total * lse - (z.sum(1, keepdim=True) if c is None else (z @ c).unsqueeze(1)))
            mass = mass + even * total
        if not isinstance(self.log_partition, float) or self.log_partition:
            loss = loss + self.log_partition * lse.square()
            mass = mass + 2 * self.log_partition * lse
        g.mul_(mass)
        if self.share is not None:
            g.scatter_add_(1, y, -t)
        elif y.ndim == 2:
            g.sub_(t)
        else:
            add_at(g, y, -t)
        if self.smoothing:
            g.sub_(even if c is None else even * c)
        return loss.squeeze(1)

    def dense(self, z: Tensor) -> Tensor:
        """The losses of all rows, as torch differentiates them."""
        if self.statistics is not None:
            note, finite = self.statistics, z.detach().clamp(min=torch.finfo(z.dtype).min)
            note.lse, note.argmax = finite.logsumexp(1), finite.argmax(1)
            note.entropy = note.lse - torch.linalg.vecdot(finite.softmax(1), finite)
        y, c = self.target, self.class_weight
        if self.share is None:
            y = y if y.ndim == 1 else y.to(z.dtype)
            loss = functional.cross_entropy(z, y, c, reduction="none", label_smoothing=self.smoothing)
        else:
            costs = -z.log_softmax(1) if c is None else -c * z.log_softmax(1)
            loss = (1 - self.smoothing) * torch.linalg.vecdot(self.share.to(z.dtype), costs.gather(1, y))
            loss = loss + self.smoothing * costs.mean(1) if self.smoothing else loss
        if not isinstance(self.log_partition, float) or self.log_partition:
            loss = loss + self.log_partition * z.logsumexp(1).square()
        return loss
