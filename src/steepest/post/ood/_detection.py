"""How well a score tells what is like the training data from what is not."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float as F
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from ...core.checks import check_tensor, refuse


def detection_metrics(scores_in: F[Tensor, " inside"], scores_out: F[Tensor, " outside"]) -> dict[str, float]:
    """How well a score tells inside from outside, higher = inside.

    Returns:
        ``auroc``; ``tnr at 95% tpr``; ``aupr in`` and ``aupr out`` (average precision with that side positive);
        ``detection accuracy``, the best over thresholds with both sides equally likely.

    Raises:
        ValueError: an empty side, wrong shapes.

    Example:
        >>> detection_metrics(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]))["auroc"]
        1.0
    """
    for name, value in (("scores_in", scores_in), ("scores_out", scores_out)):
        check_tensor(name, value, ndim=1, floating=True)
        if not len(value):
            refuse(name, "at least one score", value)
    scores = torch.cat([scores_in, scores_out]).detach().double().cpu().numpy()
    inside = np.arange(len(scores)) < len(scores_in)
    fpr, tpr, _ = roc_curve(inside, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(inside, scores)),
        "tnr at 95% tpr": float(1 - fpr[tpr >= 0.95].min()),
        "aupr in": float(average_precision_score(inside, scores)),
        "aupr out": float(average_precision_score(~inside, -scores)),
        "detection accuracy": float((0.5 * (tpr + 1 - fpr)).max()),
    }
