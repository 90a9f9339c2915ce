"""Losses and metrics of deep learning by task: a catalogue of cards, and which loss for which task.

The formulas are fixed here once: what differs between texts (smoothing, signs, factors) is said on the card. Where
torch or scikit-learn have the function, it is theirs.
"""

from __future__ import annotations

from types import MappingProxyType

from . import generated, maps, metrics, points, spaces
from .cards import LOSSES, METRICS, LossCard, MetricCard
from .recommend import Recommendation, recommend_loss

__all__ = [
    "LossCard",
    "MetricCard",
    "Recommendation",
    "loss_catalogue",
    "metric_catalogue",
    "recommend_loss",
]
_MODULES = (points, maps, spaces, metrics, generated)  # they fill LOSSES and METRICS


def loss_catalogue() -> MappingProxyType[str, LossCard]:
    """The losses by name: function, task, formula, range, minimiser, convexity, what it answers to, defaults.

    Example:
        >>> card = loss_catalogue()["tversky"]
        >>> card.task, card.defaults
        ('segmentation', {'alpha': 0.3, 'beta': 0.7})
        >>> import torch
        >>> card.fn(torch.tensor([0.9, 0.2, 0.6, 0.4]), torch.tensor([1, 0, 1, 0]))
        tensor(0.2611)

    Source: Loss Functions and Metrics in Deep Learning, arXiv:2307.02694.
    """
    return MappingProxyType(LOSSES)


def metric_catalogue() -> MappingProxyType[str, MetricCard]:
    """The metrics by name: function, task, formula, range, whether more is better, defaults.

    Example:
        >>> import torch
        >>> card = metric_catalogue()["f_beta"]
        >>> card.higher, card.fn(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0]))
        (True, 0.5)

    Source: Loss Functions and Metrics in Deep Learning, arXiv:2307.02694.
    """
    return MappingProxyType(METRICS)
