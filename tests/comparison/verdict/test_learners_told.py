"""Settings, results and report say which boosting ran, how often learners were tuned, and by which version."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

from steepest.comparison.design.context import Context
from steepest.comparison.design.settings import Settings
from steepest.comparison.read import table_from_arrays
from steepest.comparison.verdict.results import _versions, protocol


def told(*learners: str, trials: int = 4) -> dict[str, str]:
    table = table_from_arrays(np.arange(120.0).reshape(60, 2), np.arange(60) % 2)
    options = {"trials": trials, "repeats": 1, "folds": 2, "classical": learners}
    return protocol(Context(table, Settings(("cross_entropy",), "cross_entropy", "accuracy", **options)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lightgbm", "LightGBM; at most 1,000 rounds"),
        ("boosting", "scikit-learn's, for LightGBM is not there; at"),
    ],
)
def test_which_boosting_ran(name: str, said: str) -> None:
    words = told("knn", "forest", name)
    assert words["classical learners"] == f"knn, forest, {name}"
    assert words["trials a learner"] == f"4 of forest and {name}: defaults, then a Sobol design"
    assert words["gradient boosting"].startswith(said)
    assert told(name, trials=1)["trials a learner"] == f"1: defaults of {name}"
    assert ("lightgbm" in _versions([name])) == (name == "lightgbm")


def test_what_did_not_run_is_not_told() -> None:
    for words in (told(), told("knn", "lda")):
        assert not {"trials a learner", "gradient boosting"} & set(words)
    assert "gradient boosting" not in told("forest")
    assert _versions(["lightgbm"])["lightgbm"] == importlib.metadata.version("lightgbm")
