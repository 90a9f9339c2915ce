"""Clusters against classes: the one-to-one matching under which they agree best, and the share that agrees."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from .checks import check_tensor, refuse


def matched_clusters(clusters: I[Tensor, " rows"], classes: I[Tensor, " rows"]) -> I[Tensor, " rows"]:
    """Clusters renamed after the classes that they match best, one to one, by the Hungarian method.

    Args:
        clusters: ``[N]``, any integers.
        classes: ``[N]``, any integers.

    Returns:
        ``[N]``: of each row the class that its cluster is matched with, one below the smallest class where there are
        more clusters than classes and its own is left over.

    Raises:
        ValueError: shapes that differ.
        TypeError: no integers.

    >>> matched_clusters(torch.tensor([4, 4, 0, 0, 7]), torch.tensor([1, 1, 2, 2, 2]))
    tensor([1, 1, 2, 2, 0])
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    check_tensor("clusters", clusters, ndim=1, floating=False)
    check_tensor("classes", classes, floating=False, shape=tuple(clusters.shape))
    if not len(clusters):
        return classes.clone()
    _, cluster = np.unique(clusters.detach().cpu().numpy(), return_inverse=True)
    names, label = np.unique(classes.detach().cpu().numpy(), return_inverse=True)
    counts = np.zeros((cluster.max() + 1, len(names)), dtype=np.int64)
    np.add.at(counts, (cluster, label), 1)
    rows, columns = linear_sum_assignment(-counts)
    name_of = np.full(len(counts), names[0] - 1)
    name_of[rows] = names[columns]
    return torch.from_numpy(name_of[cluster]).to(classes)


def hungarian_accuracy(clusters: I[Tensor, " rows"], classes: I[Tensor, " rows"]) -> float:
    """The share of rows whose cluster is matched with their class; see :func:`matched_clusters`.

    Raises:
        ValueError: shapes that differ, no row.

    >>> hungarian_accuracy(torch.tensor([4, 4, 0, 0, 7]), torch.tensor([1, 1, 2, 2, 2]))
    0.8
    """
    if isinstance(clusters, Tensor) and not clusters.numel():
        refuse("clusters", "one row and more", clusters)
    return float((matched_clusters(clusters, classes) == classes).double().mean())


def class_means(x: F[Tensor, "rows width"], labels: I[Tensor, " rows"], classes: int) -> F[Tensor, "classes width"]:
    """The mean row of each class 0..classes-1 that has rows.

    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([[2.],
            [5.]])
    """
    sums = x.new_zeros(classes, x.shape[1]).index_add(0, labels, x)
    return sums / torch.bincount(labels, minlength=classes).unsqueeze(1)
