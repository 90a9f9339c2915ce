"""The words that users type for metrics."""

from __future__ import annotations

import re
from collections.abc import Collection

ALIASES: dict[str, tuple[str, ...]] = {
    "acc": ("accuracy",),
    "accuracy_score": ("accuracy",),
    "subset_accuracy": ("exact_match",),
    "balanced_accuracy_score": ("balanced_accuracy",),
    "f1": ("macro_f1",),
    "f1_score": ("f1", "macro_f1"),
    "f1_macro": ("macro_f1",),
    "precision_score": ("precision",),
    "recall_score": ("recall",),
    "sensitivity": ("recall",),
    "gmean": ("g_mean",),
    "geometric_mean": ("g_mean",),
    "geometric_mean_score": ("g_mean",),
    "matthews": ("mcc",),
    "matthews_corrcoef": ("mcc",),
    "auc": ("auroc",),
    "roc_auc": ("auroc",),
    "roc_auc_score": ("auroc",),
    "ap": ("average_precision",),
    "average_precision_score": ("average_precision",),
    "log_loss": ("nll",),
    "logloss": ("nll",),
    "neg_log_loss": ("nll",),
    "brier_score": ("brier",),
    "brier_score_loss": ("brier",),
    "neg_brier_score": ("brier",),
    "root_mean_squared_error": ("rmse",),
    "neg_root_mean_squared_error": ("rmse",),
    "mean_absolute_error": ("mae",),
    "neg_mean_absolute_error": ("mae",),
    "r2_score": ("r2",),
    "map@r": ("map_at_r",),
    "precision_at_1": ("recall_at_1",),
    "recall@1": ("recall_at_1",),
    "recall@5": ("recall_at_5",),
    "recall@10": ("recall_at_10",),
    "r_squared": ("r2",),
}
"""Other libraries' words; the first that the task has is meant."""


def known_as(spec: str, known: Collection[str]) -> str:
    """The name in ``known`` that a word stands for, in any case, with ``-`` for ``_``; the word itself where none is.

    >>> known_as("Balanced-Accuracy", ["balanced_accuracy"]), known_as("f1_score", ["macro_f1"]), known_as("f2", ["f1"])
    ('balanced_accuracy', 'macro_f1', 'f2')
    """
    if spec in known or ":" in spec:
        return spec
    word = re.sub(r"[\s-]+", "_", spec.strip().lower())
    return next((name for name in (word, *ALIASES.get(word, ())) if name in known), spec)
