"""Statistics of comparisons beside mlxtend: rows for `pairs.py`, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from steepest.comparison import statistics


def predictions(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Margins of three models, the first the best; a model is right on a row where its margin is above 0."""
    margins = torch.randn(30 + shape[0] * shape[1], 3, generator=generator, dtype=torch.float64)
    return (margins + torch.tensor([1.0, 0.2, 0.0]),)


def _labels(margins: Tensor, models: int) -> list[np.ndarray]:
    found = (margins > 0).long().numpy()
    return [np.ones(len(found), dtype=np.int64), *found.T[:models]]


def _mcnemar(margins: Tensor) -> tuple[float, float]:
    found = statistics.mcnemar_test(*_labels(margins, 2), exact=False)
    return found.statistic, found.pvalue


def _exact_mcnemar(margins: Tensor) -> float:
    return statistics.mcnemar_test(*_labels(margins, 2), exact=True).pvalue


def _peer_mcnemar(margins: Tensor) -> Any:
    from mlxtend.evaluate import mcnemar, mcnemar_table

    return mcnemar(mcnemar_table(*_labels(margins, 2)))


def _peer_exact_mcnemar(margins: Tensor) -> Any:
    from mlxtend.evaluate import mcnemar, mcnemar_table

    return mcnemar(mcnemar_table(*_labels(margins, 2)), exact=True)[1]


def _cochran(margins: Tensor) -> tuple[float, float]:
    found = statistics.cochran_q(*_labels(margins, 3))
    return found.statistic, found.pvalue


def _peer_cochran(margins: Tensor) -> Any:
    from mlxtend.evaluate import cochrans_q

    return cochrans_q(*_labels(margins, 3))


def differences(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Differences of scores in five replications of two folds."""
    return (torch.randn(5, 2, generator=generator, dtype=torch.float64) + 0.05 * shape[1],)


def _five_by_two(name: str) -> Callable[[Tensor], tuple[float, float]]:
    def function(given: Tensor) -> tuple[float, float]:
        found = getattr(statistics, name)(given.numpy())
        return found.statistic, found.pvalue

    return function


def _peer_five_by_two(name: str) -> Callable[[Tensor], Any]:
    def function(given: Tensor) -> Any:
        import mlxtend.evaluate
        from sklearn.dummy import DummyClassifier

        # the peer splits and fits by itself: only its scores are ours, those of the second model 0
        scores = iter(torch.stack([given, 0 * given], 2).flatten().tolist())
        first, second = DummyClassifier(), DummyClassifier()
        test = getattr(mlxtend.evaluate, name)
        return test(first, second, np.zeros((8, 1)), np.arange(8) % 2, lambda *_: next(scores), random_seed=1)

    return function


def two_classes(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Inputs, and labels that the first of them tells in part.

    One neighbour errs on rows that it did not draw only, and less than guessing: the rate of overfitting, which ours
    clips to [0, 1] and the peer doesn't, is inside.
    """
    x = torch.randn(80 + shape[0], 3, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] + 0.3 * torch.randn(len(x), generator=generator, dtype=torch.float64) > 0).long()


ROUNDS = 6
"""Of a bootstrap: both draw the same rows, so that each agrees by itself."""


def _bootstrap(name: str) -> Callable[[Tensor, Tensor], Any]:
    def function(x: Tensor, y: Tensor) -> Any:
        from mlxtend.evaluate import BootstrapOutOfBag
        from sklearn.neighbors import KNeighborsClassifier

        def splits(rows: int, count: int, seed: int) -> Iterator[Any]:
            found: Iterator[Any] = BootstrapOutOfBag(count, random_seed=seed).split(np.zeros(rows))
            return found

        with mock.patch("steepest.comparison.statistics.bootstrap.bootstrap_splits", splits):
            return getattr(statistics, name)(KNeighborsClassifier(1), x.numpy(), y.numpy(), ROUNDS, 1).error

    return function


def _peer_bootstrap(method: str) -> Callable[[Tensor, Tensor], Any]:
    def function(x: Tensor, y: Tensor) -> Any:
        from mlxtend.evaluate import bootstrap_point632_score
        from sklearn.neighbors import KNeighborsClassifier

        model = KNeighborsClassifier(1)
        found = bootstrap_point632_score(model, x.numpy(), y.numpy(), n_splits=ROUNDS, method=method, random_seed=1)
        return 1 - found.mean()

    return function


ROWS: tuple[tuple[Any, ...], ...] = tuple(
    (name, "mlxtend", ours, theirs, make, False)
    for name, ours, theirs, make in (
        ("mcnemar_test, statistic and p", _mcnemar, _peer_mcnemar, predictions),
        ("mcnemar_test, exact p", _exact_mcnemar, _peer_exact_mcnemar, predictions),
        ("cochran_q, statistic and p", _cochran, _peer_cochran, predictions),
        (
            "paired_t_5x2, statistic and p", _five_by_two("paired_t_5x2"), _peer_five_by_two("paired_ttest_5x2cv"),
            differences,
        ),
        (
            "combined_f_5x2, statistic and p", _five_by_two("combined_f_5x2"),
            _peer_five_by_two("combined_ftest_5x2cv"), differences,
        ),
        ("bootstrap_632", _bootstrap("bootstrap_632"), _peer_bootstrap(".632"), two_classes),
        ("bootstrap_632_plus", _bootstrap("bootstrap_632_plus"), _peer_bootstrap(".632+"), two_classes),
    )
)  # fmt: skip
"""Arguments of a pair, in order."""
