"""Losses of embeddings and faces, of language, and of rankings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ....core.checks import (
    check_binary,
    check_domain,
    check_index,
    check_logits,
    check_number,
    check_range,
    check_tensor,
    refuse,
    values_visible,
)
from ....core.logpartition import class_mask
from ....core.reductions import widen
from .cards import logits_and_bits, logits_and_index, loss, normal, pair

EMBEDDING, LANGUAGE, RANKING = "embedding", "language", "ranking"
_TOGETHER = "same together, others apart by the margin"


def _triple(g: torch.Generator) -> tuple[Any, ...]:
    return *normal(5, 3)(g), normal(5, 3)(g)[0]


@loss(EMBEDDING, "max(0, |a - p| - |a - n| + m)", ">= 0", _TOGETHER, False, _triple)
def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 1.0) -> Tensor:
    """Triplet loss of embeddings ``[N, D]``."""
    check_number("margin", margin, low=0.0)
    a, p = pair(anchor, positive)
    return nnf.triplet_margin_loss(a, p, pair(anchor, negative)[1], margin=margin)


def _pairs(g: torch.Generator) -> tuple[Any, ...]:
    return *normal(6, 3)(g), logits_and_bits(6)(g)[1]


@loss(EMBEDDING, "(s d^2 + (1 - s) max(0, m - d)^2) / 2", ">= 0", _TOGETHER, False, _pairs)
def contrastive(first: Tensor, second: Tensor, same: Tensor, *, margin: float = 1.0) -> Tensor:
    """Contrastive loss of pairs ``[N, D]``; ``same`` is 1 for pairs of one class."""
    check_number("margin", margin, low=0.0, open_low=True)
    check_tensor("first", first, ndim=2, floating=True)
    a, b = pair(first, second)
    check_binary(same, first[:, 0], argument="same")
    d = torch.linalg.vector_norm(a - b, dim=-1)
    return torch.where(same == 1, d.square(), nnf.relu(margin - d).square()).mean() / 2


def _signed(g: torch.Generator) -> tuple[Any, ...]:
    first, second, same = _pairs(g)
    return first, second, 2 * same - 1


@loss(EMBEDDING, "1 - cos for s = 1, max(0, cos - m) for s = -1", "[0, 2]", _TOGETHER, False, _signed)
def cosine_embedding(first: Tensor, second: Tensor, same: Tensor, *, margin: float = 0.0) -> Tensor:
    """Cosine embedding loss of pairs ``[N, D]``; ``same`` is 1 or -1."""
    check_number("margin", margin, low=-1.0, high=1.0)
    check_tensor("first", first, ndim=2, floating=True)
    check_tensor("same", same, shape=(first.shape[0],))
    if same.numel() and values_visible(same) and not bool(((same == 1) | (same == -1)).all()):
        refuse("same", "labels in {-1, 1}", torch.unique(same).tolist())
    return nnf.cosine_embedding_loss(*pair(first, second), same, margin=margin)


def _around(g: torch.Generator) -> tuple[Any, ...]:
    features, index = logits_and_index(5, 3)(g)
    return features, index, normal(3, 3)(g)[0]


@loss(EMBEDDING, "|f - c_y|^2 / 2", ">= 0", "the centre of the class", True, _around)
def center(outputs: Tensor, target: Tensor, centers: Tensor) -> Tensor:
    """Center loss of embeddings ``[N, D]`` and centres ``[C, D]``."""
    check_tensor("outputs", outputs, ndim=2, floating=True)
    check_tensor("centers", centers, floating=True, shape=(None, outputs.shape[1]))
    check_tensor("target", target, floating=False, shape=(outputs.shape[0],))
    check_range("target", target, 0, len(centers) - 1)
    return (widen(outputs) - widen(centers)[target.long()]).square().sum(-1).mean() / 2


def _cosines(g: torch.Generator) -> tuple[Any, ...]:
    logits, index = logits_and_index(5, 3)(g)
    return 0.8 * torch.tanh(logits), index


def _angle(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    check_logits(outputs)
    check_index(target, outputs)
    cosine = widen(outputs)
    check_domain("outputs", outputs, "cosine")
    # the slope of the angle is infinite at 1 and -1
    return cosine, cosine.clamp(-1 + 1e-7, 1 - 1e-7).acos()


def _with_margin(cosine: Tensor, own: Tensor, target: Tensor, scale: float) -> Tensor:
    check_number("scale", scale, low=0.0, open_low=True)
    mask = class_mask(target.long(), cosine.shape[1])
    return nnf.cross_entropy(scale * torch.where(mask, own, cosine), target.long())


_OWN = "the class's direction, other classes a margin away"


@loss(EMBEDDING, "cross-entropy with cos t_y replaced by (-1)^k cos(m t_y) - 2k on [k pi/m, (k + 1) pi/m]", ">= 0",
      _OWN, None, _cosines)  # fmt: skip
def sphereface(outputs: Tensor, target: Tensor, *, margin: int = 4, scale: float = 30.0) -> Tensor:
    """SphereFace: a multiplied angle of cosines ``[N, C]``; ``scale`` stands for the length of the feature."""
    check_number("margin", margin, low=1, integer=True)
    cosine, angle = _angle(outputs, target)
    k = (margin * angle.detach() / math.pi).floor().clamp_max(margin - 1)
    return _with_margin(cosine, (1 - 2 * (k % 2)) * (margin * angle).cos() - 2 * k, target, scale)


@loss(EMBEDDING, "cross-entropy with cos t_y replaced by cos t_y - m", ">= 0", _OWN, None, _cosines)
def cosface(outputs: Tensor, target: Tensor, *, margin: float = 0.35, scale: float = 64.0) -> Tensor:
    """CosFace: a margin on cosines ``[N, C]``."""
    check_number("margin", margin, low=0.0)
    cosine, _ = _angle(outputs, target)
    return _with_margin(cosine, cosine - margin, target, scale)


@loss(EMBEDDING, "cross-entropy with cos t_y replaced by cos(t_y + m)", ">= 0", _OWN, None, _cosines)
def arcface(outputs: Tensor, target: Tensor, *, margin: float = 0.5, scale: float = 64.0) -> Tensor:
    """ArcFace: a margin on the angles of cosines ``[N, C]``."""
    check_number("margin", margin, low=0.0)
    cosine, angle = _angle(outputs, target)
    return _with_margin(cosine, (angle + margin).cos(), target, scale)


def _tokens(g: torch.Generator) -> tuple[Any, ...]:
    logits, index = logits_and_index(8, 5)(g)
    return logits.view(2, 4, 5), index.view(2, 4)


@loss(LANGUAGE, "-log p_y of each token", ">= 0", "log P(next token), up to a constant", True, _tokens)
def token_cross_entropy(outputs: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Cross-entropy of logits ``[N, T, V]`` with tokens ``[N, T]``; its exponential is the perplexity."""
    check_tensor("outputs", outputs, ndim=3, floating=True)
    check_tensor("target", target, floating=False, shape=tuple(outputs.shape[:2]))
    check_range("target", target, 0, outputs.shape[2] - 1, ignore_index=ignore_index)
    return nnf.cross_entropy(widen(outputs).flatten(0, 1), target.flatten().long(), ignore_index=ignore_index)


def _sequences(g: torch.Generator) -> tuple[Any, ...]:
    logits = torch.randn(6, 2, 4, generator=g, dtype=torch.float64)
    target = torch.randint(1, 4, (2, 2), generator=g)
    return logits.log_softmax(-1), target, torch.tensor([6, 6]), torch.tensor([2, 2])


@loss(LANGUAGE, "-log P(target), summed over all alignments", ">= 0", "certain alignments of the target", None,
      _sequences, gradient="surrogate")  # fmt: skip
def ctc(
    outputs: Tensor,
    target: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
) -> Tensor:
    """CTC loss of log-probabilities ``[T, N, C]``; the gradient is that of the logits beneath, as torch defines it."""
    check_tensor("outputs", outputs, ndim=3, floating=True)
    check_tensor("target", target, floating=False)
    check_domain("outputs", outputs, "log_probabilities")
    lengths = (input_lengths, target_lengths)
    return nnf.ctc_loss(widen(outputs), target, *lengths, blank=blank, zero_infinity=zero_infinity)


@loss(LANGUAGE, "sum_k q_k cost_k, q = softmax(a log P) over the candidates of a sequence", "that of the costs",
      "all mass on the cheapest candidate", False, normal(4, 5))  # fmt: skip
def minimum_risk(outputs: Tensor, target: Tensor, *, sharpness: float = 1.0) -> Tensor:
    """Sequence-level risk: log-probabilities ``[N, K]`` of candidates, up to a constant; costs such as 1 - BLEU."""
    check_number("sharpness", sharpness, low=0.0, open_low=True)
    check_tensor("outputs", outputs, ndim=2, floating=True)
    log_p, cost = pair(outputs, target)
    return ((sharpness * log_p).softmax(-1) * cost).sum(-1).mean()


def _lists(g: torch.Generator) -> tuple[Any, ...]:
    scores, relevance = normal(3, 5)(g)
    return scores, relevance.round().clamp_min(0)


@loss(RANKING, "softplus(s_j - s_i) over pairs with y_i > y_j", ">= 0", "the log-odds that i goes before j", True,
      _lists)  # fmt: skip
def pairwise_ranking(outputs: Tensor, target: Tensor) -> Tensor:
    """Pairwise logistic loss of lists: scores ``[N, L]``, relevances ``[N, L]``; a mean over pairs of all lists."""
    check_tensor("outputs", outputs, ndim=2, floating=True)
    s, y = pair(outputs, target)
    before = y[:, :, None] > y[:, None, :]
    losses = nnf.softplus(s[:, None, :] - s[:, :, None])
    return torch.where(before, losses, 0.0).sum() / before.sum()


@loss(RANKING, "-sum_i softmax(y)_i log softmax(s)_i", ">= 0", "y, up to a constant", True, _lists)
def listwise_ranking(outputs: Tensor, target: Tensor) -> Tensor:
    """ListNet's loss of lists: scores ``[N, L]``, relevances ``[N, L]``."""
    check_tensor("outputs", outputs, ndim=2, floating=True)
    s, y = pair(outputs, target)
    if s.shape[1] < 1:
        refuse("outputs", "lists of at least one item", outputs)
    return nnf.cross_entropy(s, y.softmax(-1))
