"""pytorch-metric-learning's tests of losses: steepest in their place, with its kernel for references and distances.

Where a test wants another distance than the cosine, or a set of references, the scores of a loss of pairs go into
``pair_log_partition`` as its bias. Types are float32 and float64: with ``TEST_DTYPES=float16`` losses agree, and logits
are wanted with the bits of half, where numbers here are float32.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from steepest.core.cosine import unit_rows
from steepest.core.embedding_queue import EmbeddingQueue
from steepest.core.heads import NormedLinear
from steepest.kernels.pair_log_partition import pair_log_partition
from steepest.losses.contrastive import (
    arc_face_loss,
    cos_face_loss,
    multi_similarity_loss,
    proxy_anchor_loss,
    sup_con_loss,
    triplet_loss,
)

FOLDER = "pytorch-metric-learning"
FILES = tuple(
    f"tests/losses/test_{name}.py"
    for name in (
        "ntxent_loss", "arcface_loss", "cosface_loss", "multi_similarity_loss", "proxy_anchor_loss",
        "triplet_margin_loss", "cross_batch_memory",
    )
)  # fmt: skip
SUPPORT = (
    "tests/__init__.py",
    "tests/losses/__init__.py",
    "tests/losses/utils.py",
    "tests/zzz_testing_utils/__init__.py",
    "tests/zzz_testing_utils/testing_utils.py",
)
ON_CPU = ((r"torch\.cuda\.amp\.autocast\(\)", 'torch.autocast("cpu", dtype=torch.bfloat16)'),)
OF_MINERS = "the memory under losses and miners that are not here; the queue alone is"
LEFT_OUT = {
    r"test_remove_self|test_sanity|test_with_distance|test_ref_mining|test_input": OF_MINERS,
    r"CrossBatchMemory::test_(all_)?loss": OF_MINERS,
}
EXPLAINED = {
    r"multi_similarity_loss_with_ref|triplet_margin_loss_with_ref": "a set of references, which is not here",
    r"test_triplet_margin_loss$|TripletMarginLoss::test_backward": "soft hinges of all triplets; here of mined ones",
}
NOT_RUN = {
    "tests/losses/test_normalized_softmax_loss.py": "directions of classes and rows of any length, which is not here",
    "tests/utils/test_distributed.py": "their wrapper of losses; ours gather themselves and are tested on two ranks",
}


class LpDistance:
    """Distances of rows of length 1."""


class CosineSimilarity:
    """Cosines."""


class PerAnchorReducer:
    """The mean over anchors of the mean over each one's pairs."""

    def __init__(self, inner: Any = None) -> None:
        del inner


class _Pairs(nn.Module):
    """Their call of a loss of pairs; ``ref_emb`` are other rows to compare with."""

    def __init__(self, temperature: float = 0.07, distance: Any = None, reducer: Any = None) -> None:
        super().__init__()
        self.temperature, self.distance, self.reducer = temperature, distance, reducer

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Tensor:
        """The loss, in the type of the embeddings."""
        alone = ref_emb is None
        columns, theirs = (embeddings, labels) if ref_emb is None or ref_labels is None else (ref_emb, ref_labels)
        own = labels.unsqueeze(1) == theirs
        others = ~own
        if alone:
            own = own & ~torch.eye(len(labels), dtype=torch.bool)
        return self.of(embeddings, labels, columns, own, others, alone).to(embeddings.dtype)

    def scores(self, rows: Tensor, columns: Tensor) -> dict[str, Any]:
        """Two factors, or nothing and a bias."""
        a, b = unit_rows(rows), unit_rows(columns)
        if not isinstance(self.distance, LpDistance):
            return {"a": a, "b": b, "scale": 1 / self.temperature}
        bias = -(a.unsqueeze(1) - b).square().sum(-1).clamp_min(1e-16).sqrt() / self.temperature
        return {"a": torch.zeros_like(a), "b": torch.zeros_like(b), "bias": bias}


class NTXentLoss(_Pairs):
    """Each positive among the negatives of its row."""

    def of(
        self, embeddings: Tensor, labels: Tensor, columns: Tensor, own: Tensor, others: Tensor, alone: bool
    ) -> Tensor:
        """The mean over positives, or over rows of the mean over their positives."""
        row, positive = own.nonzero(as_tuple=True)
        if not len(row) or not others.any():
            return 0 * embeddings.sum()
        mask = others[row].scatter(1, positive.unsqueeze(1), True)
        losses = pair_log_partition(**self.scores(embeddings[row], columns), positive=positive, mask=mask).log_p
        assert losses is not None
        if isinstance(self.reducer, PerAnchorReducer):
            counts = own.sum(1)[row]
            return -(losses / counts).sum() / own.any(1).sum()
        return -losses.mean()


class SupConLoss(_Pairs):
    """The mean over positives of each one among all others."""

    def of(
        self, embeddings: Tensor, labels: Tensor, columns: Tensor, own: Tensor, others: Tensor, alone: bool
    ) -> Tensor:
        """The mean over rows that have a positive."""
        if not others.any():
            return 0 * embeddings.sum()
        if alone and self.distance is None:
            return sup_con_loss(embeddings, labels, temperature=self.temperature)
        row, positive = own.nonzero(as_tuple=True)
        if not len(row):
            return 0 * embeddings.sum()
        mask = (own | others)[row]
        losses = pair_log_partition(**self.scores(embeddings[row], columns), positive=positive, mask=mask).log_p
        assert losses is not None
        return -(losses / own.sum(1)[row]).sum() / own.any(1).sum()


class _OnClasses(nn.Module):
    """A loss of cosines with directions of classes, which are the loss's own ``W`` ``[d, C]``."""

    def __init__(self, num_classes: int, embedding_size: int, margin: float, scale: float) -> None:
        super().__init__()
        self.head = NormedLinear(embedding_size, num_classes)
        self.margin, self.scale = margin, scale

    @property
    def W(self) -> Tensor:
        """Directions as columns, in the type of the last embeddings."""
        return self.head.weight.to(self.seen).t()

    seen = torch.float32

    def cosines(self, embeddings: Tensor) -> Tensor:
        """``[N, C]``."""
        self.seen = embeddings.dtype
        self.head.to(embeddings.dtype)
        return self.head(embeddings)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Scaled cosines."""
        return (self.cosines(embeddings) * self.scale).to(embeddings.dtype)


class ArcFaceLoss(_OnClasses):
    """Margins in degrees, and the form that falls beyond pi less the margin."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        m = math.radians(self.margin)
        loss = arc_face_loss(self.cosines(embeddings), labels, margin=m, scale=self.scale, monotone=True)
        return loss.to(embeddings.dtype)


class CosFaceLoss(_OnClasses):
    """Margins of the cosine."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        loss = cos_face_loss(self.cosines(embeddings), labels, margin=self.margin, scale=self.scale)
        return loss.to(embeddings.dtype)


class MultiSimilarityLoss(nn.Module):
    """All pairs: mining is another object there."""

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5) -> None:
        super().__init__()
        self.options = {"alpha": alpha, "beta": beta, "base": base}

    def forward(self, embeddings: Tensor, labels: Tensor, ref_emb: Any = None, ref_labels: Any = None) -> Tensor:
        """The loss."""
        if ref_emb is not None:
            raise NotImplementedError("a set of references")
        return multi_similarity_loss(embeddings, labels, **self.options, epsilon=None).to(embeddings.dtype)


class ProxyAnchorLoss(nn.Module):
    """Proxies are the loss's own."""

    def __init__(self, num_classes: int, embedding_size: int, margin: float = 0.1, alpha: float = 32) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_size))
        self.options = {"margin": margin, "alpha": float(alpha)}

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Cosines with the proxies."""
        return nnf.linear(unit_rows(embeddings), unit_rows(self.proxies)).to(embeddings.dtype)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        cosines = nnf.linear(unit_rows(embeddings), unit_rows(self.proxies))
        return proxy_anchor_loss(cosines, labels, **self.options).to(embeddings.dtype)


class TripletMarginLoss(nn.Module):
    """All triplets; the mean is over those above 0 unless a reducer says otherwise."""

    def __init__(
        self, margin: float = 0.05, reducer: Any = None, distance: Any = None, smooth_loss: bool = False
    ) -> None:
        super().__init__()
        self.margin, self.reducer, self.distance, self.smooth = margin, reducer, distance, smooth_loss

    def forward(self, embeddings: Tensor, labels: Tensor, ref_emb: Any = None, ref_labels: Any = None) -> Tensor:
        """The loss."""
        if ref_emb is not None:
            raise NotImplementedError("a set of references")
        if self.smooth:
            raise NotImplementedError("a soft form of all triplets")
        rows, options = embeddings, {}
        if isinstance(self.distance, CosineSimilarity):  # half the squared distance of rows of length 1
            options = {"squared": True, "margin": 2 * self.margin}
        loss = triplet_loss(
            rows,
            labels,
            mining="all",
            average="violating" if self.reducer is None else "all",
            **{"margin": self.margin, **options},
        )
        return (loss / 2 if options else loss).to(embeddings.dtype)


class ContrastiveLoss(nn.Module):
    """Stands for any loss under a memory."""


class CrossBatchMemory(nn.Module):
    """The queue alone."""

    def __init__(self, loss: Any, embedding_size: int, memory_size: int) -> None:
        super().__init__()
        self.size, self.width = memory_size, embedding_size
        self.reset_queue()

    def reset_queue(self) -> None:
        """No row, and their labels of what holds none."""
        self.queue = EmbeddingQueue(self.size, self.width)

    @property
    def embedding_memory(self) -> Tensor:
        """``[size, width]``."""
        return self.queue.rows

    @property
    def label_memory(self) -> Tensor:
        """``[size]``."""
        return self.queue.labels.clamp_min(0)

    @property
    def queue_idx(self) -> int:
        """Where the next row goes."""
        return int(self.queue.cursor)

    def forward(self, embeddings: Tensor, labels: Tensor, enqueue_mask: Tensor | None = None) -> None:
        """Store the rows."""
        if enqueue_mask is not None:
            embeddings, labels = embeddings[enqueue_mask], labels[enqueue_mask]
        self.queue.to(embeddings.dtype)
        self.queue.put(embeddings, labels)


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    os.environ.setdefault("TEST_DTYPES", "float32,float64")
    os.environ.setdefault("TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    here = (NTXentLoss, SupConLoss, ArcFaceLoss, CosFaceLoss, MultiSimilarityLoss, ProxyAnchorLoss, TripletMarginLoss)
    miners = ("DistanceWeightedMiner", "MultiSimilarityMiner", "PairMarginMiner", "TripletMarginMiner")
    return {
        "pytorch_metric_learning": {"__version__": "steepest"},
        "pytorch_metric_learning.distances": {"LpDistance": LpDistance, "CosineSimilarity": CosineSimilarity},
        "pytorch_metric_learning.reducers": {
            "AvgNonZeroReducer": object,
            "MeanReducer": object,
            "PerAnchorReducer": PerAnchorReducer,
        },
        "pytorch_metric_learning.losses": {cls.__name__: cls for cls in (*here, ContrastiveLoss, CrossBatchMemory)},
        "pytorch_metric_learning.miners": dict.fromkeys(miners),
        "pytorch_metric_learning.utils.common_functions": {"COLLECT_STATS": False},
        "pytorch_metric_learning.utils.loss_and_miner_utils": {},
    }
