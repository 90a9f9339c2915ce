"""Gain-based loss weighting: examples whose loss no longer falls count more."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_flag, check_number, check_tensor, refuse
from ...core.loss import Sample
from ...core.memory import SampleMemory
from ...core.search import Float
from ...core.token_loss import TokenLoss
from ...core.token_reductions import sequence_sums
from ...kernels.token_statistics import token_statistics


def glow_weights(
    prev: F[Tensor, " batch"],
    curr: F[Tensor, " batch"],
    *,
    alpha: float = 2.0,
    beta: float = 10.0,
    min_w: float = 0.5,
    max_w: float = 5.0,
) -> F[Tensor, " batch"]:
    r"""Weights of examples by how much their loss fell since the last visit.

    .. math:: w = \min(\max(\alpha\, \sigma(-\beta (h - \ell)), w_{min}), w_{max})

    Args:
        prev: h, losses at the last visit ``[B]``.
        curr: :math:`\ell`, losses now ``[B]``.
        alpha: > 0; 2 makes the weight 1 where nothing changed.
        beta: >= 0; 0 gives all the same weight.
        min_w, max_w: 0 <= min_w <= max_w.

    Returns:
        Weights ``[B]``, without a gradient, in float32 or wider.

    Raises:
        ValueError: shapes that differ, a number out of range.

    Example:
        >>> glow_weights(torch.tensor([1.0, 1.1, 0.9]), torch.tensor([1.0, 1.0, 1.0]))
        tensor([1.0000, 0.5379, 1.4621])

    Source: Learning from Mistakes: Negative Reasoning Samples Enhance Out-of-Domain Generalization, arXiv:2601.04992.
    """
    check_tensor("prev", prev, ndim=1, floating=True)
    check_tensor("curr", curr, shape=tuple(prev.shape), floating=True)
    _check_range(alpha, beta, min_w, max_w)
    gain = prev.detach() - curr.detach()
    wide = gain.float() if gain.dtype.itemsize < 4 else gain
    return (alpha * torch.sigmoid(-beta * wide)).clamp(min_w, max_w)


def _check_range(alpha: float, beta: float, min_w: float, max_w: float) -> None:
    check_number("alpha", alpha, low=0.0, open_low=True, open_high=True)
    check_number("beta", beta, low=0.0, open_high=True)
    check_number("min_w", min_w, low=0.0, open_high=True)
    check_number("max_w", max_w, low=min_w)


class GainBasedLossWeighting(nn.Module):
    """Losses of examples to weighted ones, with a memory of what each loss was at its last visit.

    In the first epoch all weights are 1. An example that no earlier step has visited, or whose loss was not finite
    then, is compared with the mean of its batch. In evaluation mode losses stay as they are, and nothing is written. On
    several ranks each remembers what it saw; :meth:`start_epoch` joins the memories, so that the next epoch may give a
    rank other examples.

    Args:
        num_samples: rows of the training split.
        alpha, beta, min_w, max_w: see :func:`glow_weights`.
        normalize: divide the weights by their mean in the batch.

    Example:
        >>> weighting = GainBasedLossWeighting(4)
        >>> weighting.start_epoch(1)
        >>> weighting(torch.tensor([1.0, 2.0]), torch.tensor([0, 3]))
        tensor([1., 2.])
        >>> weighting.start_epoch(2)
        >>> weighting(torch.tensor([1.0, 1.9]), torch.tensor([0, 3]))
        tensor([1.0000, 1.0220])
    """

    first: Tensor
    visited: Tensor

    def __init__(
        self,
        num_samples: int,
        alpha: float = 2.0,
        beta: float = 10.0,
        min_w: float = 0.5,
        max_w: float = 5.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        _check_range(alpha, beta, min_w, max_w)
        check_flag("normalize", normalize)
        self.alpha, self.beta, self.min_w, self.max_w, self.normalize = alpha, beta, min_w, max_w, normalize
        self.memory = SampleMemory(num_samples)
        self.register_buffer("first", torch.ones((), dtype=torch.bool))
        self.register_buffer("visited", torch.zeros(num_samples, dtype=torch.bool))

    @torch.no_grad()
    def start_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Join what the ranks saw in the last epoch; epoch 1 is the first."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            counts = self.visited.to(self.memory.values.dtype)
            sums = torch.where(self.visited, self.memory.values, 0.0)
            for tensor in (counts, sums):
                dist.all_reduce(tensor)
            there = counts > 0
            self.memory.values.copy_(torch.where(there, sums / counts.clamp_min(1.0), self.memory.values))
            self.memory.seen.logical_or_(there)
        self.visited.zero_()
        self.first.fill_(epoch <= 1)

    def weights(self, losses: F[Tensor, " batch"], index: I[Tensor, " batch"]) -> F[Tensor, " batch"]:
        """The weights of a batch, 1 in the first epoch."""
        before = self.memory.read(index).to(losses)
        known = self.memory.seen[index] & before.isfinite()
        before = torch.where(known, before, losses.detach().mean() if losses.numel() else 0.0)
        own = glow_weights(before, losses, alpha=self.alpha, beta=self.beta, min_w=self.min_w, max_w=self.max_w)
        own = torch.where(self.first, torch.ones_like(own), own)
        if not self.normalize or not own.numel():
            return own
        mean = own.mean()
        return torch.where(mean == 0, torch.ones_like(own), own / mean)

    def forward(self, losses: F[Tensor, " batch"], index: I[Tensor, " batch"]) -> F[Tensor, " batch"]:
        """Losses ``[B]`` of the examples at these positions, weighted."""
        check_tensor("losses", losses, ndim=1, floating=True)
        self.memory.check(index, len(losses))
        if not self.training:
            return losses
        weighted = self.weights(losses, index) * losses
        self.memory.write(index, losses)
        self.visited[index] = True
        return weighted


class GLOWLoss(TokenLoss):
    r"""Cross-entropy of answers, each weighted by how little its loss fell since the last epoch.

    .. math:: L = \frac1B \sum_i w_i \ell_i, \qquad \ell_i = \frac{1}{|y_i|} \sum_t -\log p(y_{it})

    with the weights of :func:`glow_weights`, through which no gradient flows. ``forward`` takes ``index=`` ``[B]``, the
    position of each row in the training split; packed rows have no such position and are refused. Until
    :meth:`start_epoch` is called with a later epoch than the first, all weights are 1.

    Args:
        num_samples: rows of the training split.
        alpha, beta, min_w, max_w, normalize: see :class:`GainBasedLossWeighting`.
        ignore_index: label of tokens that don't count.

    Example:
        >>> loss = GLOWLoss(10)
        >>> loss.start_epoch(1, 3)
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[1, -100]]), index=torch.tensor([7]))
        tensor(1.3863)
    """

    name = "glow"
    unit = "sequence"
    stateful = True
    gradient = "surrogate"
    further = ("index",)
    alternatives = {
        "alpha": 1.0, "beta": 3.0, "min_w": 1.2, "max_w": 0.9, "normalize": True,
    }  # fmt: skip
    search = {"beta": Float(1.0, 30.0, log=True)}

    def __init__(
        self,
        num_samples: int,
        alpha: float = 2.0,
        beta: float = 10.0,
        min_w: float = 0.5,
        max_w: float = 5.0,
        normalize: bool = False,
        *,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(ignore_index=ignore_index)
        self.weighting = GainBasedLossWeighting(num_samples, alpha, beta, min_w, max_w, normalize)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Begin an epoch, 1-based."""
        self.weighting.start_epoch(epoch, epochs)

    def sequence_losses(
        self,
        source: Tensor,
        labels: Tensor,
        head: Tensor | None,
        *,
        segments: Tensor | None,
        index: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Of rows; ``index`` ``[B]`` are their positions in the training split."""
        if segments is not None:
            refuse("segments", "None: a row is one example", segments)
        if index is None:
            refuse("index", "positions [B] in the training split", index)
        of_tokens = token_statistics(source, labels, head, want=("log_p",), ignore_index=self.ignore_index, **options)
        assert of_tokens.log_p is not None
        sums, counts = sequence_sums(-of_tokens.log_p, of_tokens.valid)
        losses = sums / counts.clamp_min(1.0)
        index = index.reshape(1) if isinstance(index, Tensor) and not index.ndim else index
        self.weighting.memory.check(index, len(losses))
        there = (counts > 0).nonzero().squeeze(1)  # what has no token is no visit
        weighted = self.weighting(losses[there], index[there])
        return losses.new_zeros(losses.shape).index_copy(0, there, weighted), counts

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """In the first epoch, and in the second."""
        logits, labels = cls.sample_tokens(generator, dtype, device)
        index = torch.tensor([4, 1, 0], device=device)
        begun, later = cls(6).to(device), cls(6).to(device)
        later.start_epoch(1, 3)
        earlier = logits + 0.1 * torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
        later(earlier, labels, index=index)
        later.start_epoch(2, 3)
        return [(begun, ((logits, labels), {"index": index})), (later, ((logits, labels), {"index": index}))]
