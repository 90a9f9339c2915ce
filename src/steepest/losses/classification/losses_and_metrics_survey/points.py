"""Losses of single predictions: regression, binary and multi-class classification."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ....core.checks import (
    check_binary,
    check_domain,
    check_index,
    check_interval,
    check_logits,
    check_number,
    check_simplex,
    check_tensor,
    refuse,
    values_visible,
)
from ....core.logpartition import target_log_probability
from ....core.reductions import widen
from ....core.residuals import huber, log_cosh, mae, mape, mse, quantile_loss, rmse
from .cards import logits_and_bits, logits_and_index, loss, normal, pair, positive

REGRESSION, BINARY, MULTICLASS = "regression", "binary", "multiclass"
_MEAN = "the mean of y"
_MEDIAN = "the median of y"
_LOGIT = "the log-odds of y"
_SIGN = "the sign of P(y = 1) - 1/2"
_LOG = "log P(y), up to a constant"


loss(REGRESSION, "(y - f)^2", ">= 0", _MEAN, True, normal(6))(mse)
loss(REGRESSION, "|y - f|", ">= 0", _MEDIAN, True, normal(6), outliers=True)(mae)
loss(REGRESSION, "e^2/2 for |e| <= delta, else delta (|e| - delta/2)", ">= 0", "between mean and median", True,
     normal(6), outliers=True)(huber)  # fmt: skip
loss(REGRESSION, "log cosh(y - f)", ">= 0", "between mean and median", True, normal(6), outliers=True)(log_cosh)
loss(REGRESSION, "max(q e, (q - 1) e), e = y - f", ">= 0", "the q-quantile of y", True, normal(6), outliers=True,
     name="quantile")(quantile_loss)  # fmt: skip


@loss(REGRESSION, "p - y log p", "any real", _MEAN, True, positive(6))
def poisson(outputs: Tensor, target: Tensor) -> Tensor:
    """Poisson loss of rates p > 0 (not of their logarithms)."""
    outputs, target = pair(outputs, target)
    if outputs.numel() and values_visible(outputs) and bool((outputs <= 0).any()):
        refuse("outputs", "rates > 0", float(outputs.min()))
    check_interval("target", target, 0.0, what="counts", rounding=0.0)
    return (outputs - torch.xlogy(target, outputs)).mean()


loss(REGRESSION, "100 |y - f| / |y|", ">= 0 percent", "the median of y weighted by 1/|y|", True, positive(6))(mape)


@loss(REGRESSION, "200 |y - f| / (|y| + |f|)", "[0, 200] percent", "no closed form", False, positive(6), outliers=True)
def smape(outputs: Tensor, target: Tensor) -> Tensor:
    """Symmetric mean absolute percentage error, in percent; 0 where y = f = 0."""
    outputs, target = pair(outputs, target)
    size = target.abs() + outputs.abs()
    return 200 * ((target - outputs).abs() / torch.where(size > 0, size, 1.0)).mean()


loss(REGRESSION, "sqrt(mean (y - f)^2)", ">= 0", _MEAN, True, normal(6))(rmse)


def _binary(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    check_tensor("outputs", outputs, floating=True)
    check_binary(target, outputs)
    wide = widen(outputs)
    return wide, target.to(wide.dtype)


@loss(BINARY, "-y log p - (1 - y) log(1 - p), p = sigmoid(f)", ">= 0", _LOGIT, True, logits_and_bits(6))
def bce(outputs: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of logits."""
    return nnf.binary_cross_entropy_with_logits(*_binary(outputs, target))


@loss(BINARY, "-w y log p - (1 - y) log(1 - p)", ">= 0", "the log-odds of y, plus log w", True, logits_and_bits(6),
      imbalance=True)  # fmt: skip
def weighted_bce(outputs: Tensor, target: Tensor, *, pos_weight: float = 2.0) -> Tensor:
    """Binary cross-entropy with positives weighted, usually by negatives over positives."""
    check_number("pos_weight", pos_weight, low=0.0, open_low=True)
    f, y = _binary(outputs, target)
    return nnf.binary_cross_entropy_with_logits(f, y, pos_weight=f.new_tensor(pos_weight))


@loss(BINARY, "max(0, 1 - s f), s = 2y - 1", ">= 0", _SIGN, True, logits_and_bits(6))
def hinge(outputs: Tensor, target: Tensor) -> Tensor:
    """Hinge loss of scores."""
    f, y = _binary(outputs, target)
    return (1 - (2 * y - 1) * f).clamp_min(0).mean()


@loss(BINARY, "max(0, 1 - s f)^2, s = 2y - 1", ">= 0", "2 P(y = 1) - 1", True, logits_and_bits(6))
def squared_hinge(outputs: Tensor, target: Tensor) -> Tensor:
    """Squared hinge loss of scores."""
    f, y = _binary(outputs, target)
    return (1 - (2 * y - 1) * f).clamp_min(0).square().mean()


@loss(BINARY, "-a_t (1 - p_t)^g log p_t", ">= 0", "no closed form; the sign is that of the weighted log-odds", False,
      logits_and_bits(6), imbalance=True)  # fmt: skip
def focal(outputs: Tensor, target: Tensor, *, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of logits; a_t is alpha for positives, 1 - alpha for negatives, 1 for both with None."""
    if alpha is not None:
        check_number("alpha", alpha, low=0.0, high=1.0)
    check_number("gamma", gamma, low=0.0)
    f, y = _binary(outputs, target)
    own = (2 * y - 1) * f
    losses = -torch.exp(gamma * nnf.logsigmoid(-own)) * nnf.logsigmoid(own)
    return (losses if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * losses).mean()


def _soft(g: torch.Generator) -> tuple[Any, ...]:
    first, second = normal(5, 3)(g)
    return first, second.softmax(-1)


@loss(MULTICLASS, "-sum_k y_k log p_k, p = softmax(f)", ">= 0", _LOG, True, _soft)
def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits with one-hot or soft rows."""
    check_logits(outputs)
    logits, rows = pair(outputs, target)
    check_simplex("target", rows)
    return nnf.cross_entropy(logits, rows)


def _indexed(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    check_logits(outputs)
    check_index(target, outputs)
    return widen(outputs), target.long()


@loss(MULTICLASS, "-log p_y", ">= 0", _LOG, True, logits_and_index(5, 3))
def sparse_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits with class indices."""
    return nnf.cross_entropy(*_indexed(outputs, target))


@loss(MULTICLASS, "-(1 - a) log p_y - a mean_k log p_k", "> 0", "log of the smoothed P(y)", True,
      logits_and_index(5, 3))  # fmt: skip
def smoothed_cross_entropy(outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with label smoothing."""
    check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
    return nnf.cross_entropy(*_indexed(outputs, target), label_smoothing=label_smoothing)


def _log_rows(g: torch.Generator) -> tuple[Any, ...]:
    logits, index = logits_and_index(5, 3)(g)
    return logits.log_softmax(-1), index


@loss(MULTICLASS, "-l_y", ">= 0 for log-probabilities", "log P(y)", True, _log_rows)
def nll(outputs: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of log-probabilities."""
    log_p, index = _indexed(outputs, target)
    check_domain("outputs", log_p, "log_probabilities")
    return nnf.nll_loss(log_p, index)


@loss(MULTICLASS, "-log p_y + e (1 - p_y)", ">= 0 for e >= -1", _LOG, False, logits_and_index(5, 3))
def poly(outputs: Tensor, target: Tensor, *, epsilon: float = 1.0) -> Tensor:
    """Poly-1 loss: cross-entropy with its first polynomial coefficient changed; e >= -1."""
    check_number("epsilon", epsilon, low=-1.0)
    log_p = target_log_probability(*_indexed(outputs, target))
    return (-log_p - epsilon * torch.expm1(log_p)).mean()


@loss(MULTICLASS, "(1 - p_y^q) / q", "[0, 1/q]", "proportional to P(y)^(1/(1 - q))", False, logits_and_index(5, 3),
      outliers=True)  # fmt: skip
def generalized_cross_entropy(outputs: Tensor, target: Tensor, *, q: float = 0.7) -> Tensor:
    """Generalised cross-entropy, between cross-entropy (q -> 0) and absolute error (q = 1)."""
    check_number("q", q, low=0.0, high=1.0, open_low=True)
    return (-torch.expm1(q * target_log_probability(*_indexed(outputs, target))) / q).mean()


@loss(MULTICLASS, "sum_k |y_k - p_k| = 2 (1 - p_y)", "[0, 2]", "the likeliest class alone", False,
      logits_and_index(5, 3), outliers=True)  # fmt: skip
def probability_mae(outputs: Tensor, target: Tensor) -> Tensor:
    """Absolute error of probabilities, the symmetric loss: over all labels it sums to a constant."""
    return (-2 * torch.expm1(target_log_probability(*_indexed(outputs, target)))).mean()


def _log_rows_and_soft(g: torch.Generator) -> tuple[Any, ...]:
    first, second = normal(5, 3)(g)
    return first.log_softmax(-1), second.softmax(-1)


@loss(MULTICLASS, "sum_k y_k (log y_k - l_k)", ">= 0 for log-probabilities", "log y", True, _log_rows_and_soft)
def kl(outputs: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of rows y from log-probabilities l."""
    check_tensor("outputs", outputs, ndim=2, floating=True)
    log_p, rows = pair(outputs, target)
    check_domain("outputs", log_p, "log_probabilities")
    check_simplex("target", rows)
    return nnf.kl_div(log_p, rows, reduction="batchmean")
