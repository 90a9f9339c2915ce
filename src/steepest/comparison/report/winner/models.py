"""Fitted scikit-learn estimators from a file: each is what a fresh one becomes by fitting.

Parameters are those of a fresh estimator. Compiled code follows indices without asking whether they lie inside: those
of trees, neighbours and support vectors are checked here, before the first prediction.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from ...baselines import Baseline
from ...baselines.base import ConstantBaseline
from ...errors import InputError


def savable(model: Any) -> Any:
    """The fitted estimator without what only speed or further fitting needs, and no check could follow."""
    kind = type(model).__name__
    if kind.startswith("KNeighbors"):  # its search tree
        target = model.classes_[model._y] if kind.endswith("Classifier") else model._y
        return copy.copy(model).set_params(algorithm="brute").fit(model._fit_X, target)
    if kind.startswith("HistGradientBoosting"):
        plain = copy.copy(model)
        plain._feature_subsample_rng = None
        return plain
    return model


def expected_estimator(learner: Baseline, model: Any) -> Any:
    """What a learner's saved estimator was before it was fitted; a constant one where training had one class alone."""
    if type(model).__name__.startswith("Dummy"):
        learner = ConstantBaseline(learner.task, learner.seed)
    fresh = learner.estimator()
    return fresh.set_params(algorithm="brute") if type(fresh).__name__.startswith("KNeighbors") else fresh


def check_model(model: Any, fresh: Any, width: int, classes: int) -> None:
    """Refuse an estimator that ``fresh`` could not have become.

    Args:
        model: from a file.
        fresh: the same, not fitted.
        width: columns of the inputs.
        classes: C, 0 in regression.

    Raises:
        InputError: another type, other parameters, or numbers that don't fit together.
    """
    kind = type(fresh).__name__
    if type(model) is not type(fresh):
        _refuse(f"a {kind}, got {type(model).__name__}")
    _check_parameters(model, fresh)
    if classes:
        met = _array(model, "classes_", 1, "i")
        _demand(len(met) > 0 and met.min() >= 0 and met.max() < classes, f"classes below {classes}")
        _demand(bool((np.diff(met) > 0).all()), "classes in order")
    if not kind.startswith("Dummy"):
        _demand(_whole(model, "n_features_in_") == width, f"{width} features")
    for start, check in CHECKS.items():
        if kind.startswith(start):
            check(model, width)


def _check_parameters(model: Any, fresh: Any) -> None:
    expected = fresh.get_params(deep=False)
    for name, value in expected.items():
        own = getattr(model, name, None)
        same = type(own) is type(value)
        if same and type(value).__module__.startswith("sklearn."):
            same = vars(own) == vars(value)
        elif same:
            same = own == value
        _demand(same, f"the parameter {name} of a fresh one")


def _check_neighbours(model: Any, width: int) -> None:
    rows = _array(model, "_fit_X", 2, "f", np.float64)
    own = _array(model, "_y", 1, "fi")
    _demand(rows.shape[1] == width and rows.flags.c_contiguous and bool(np.isfinite(rows).all()), "finite rows")
    count = _whole(model, "n_samples_fit_")
    _demand(count == len(rows) == len(own) and model.n_neighbors <= count, "as many targets as rows")
    if hasattr(model, "classes_"):
        _demand(own.dtype.kind == "i" and own.min() >= 0 and own.max() < len(model.classes_), "codes of classes")
        _demand(getattr(model, "outputs_2d_", None) is False, "one target")
    known = {"_fit_method": "brute", "effective_metric_": "euclidean", "effective_metric_params_": {}, "_tree": None}
    for name, value in known.items():
        _demand(getattr(model, name, "") == value, f"{name} {value!r}")


def _check_vectors(model: Any, width: int) -> None:
    """Sizes of what libsvm gets as bare pointers."""
    vectors = _array(model, "support_vectors_", 2, "f", np.float64)
    count = len(vectors)
    classes = len(model.classes_) if hasattr(model, "classes_") else 2
    _demand(vectors.shape[1] == width and vectors.flags.c_contiguous, f"support vectors of {width} numbers")
    own = _array(model, "_n_support", 1, "i", np.int32)
    _demand(len(own) == classes, "a number of support vectors for each class")
    if hasattr(model, "classes_"):  # in regression libsvm asks for none of them
        fits = own.min() >= 0 and own.sum(dtype=np.int64) == count
        _demand(bool(fits), "as many support vectors as it says")
    shapes = {
        "support_": (count,),
        "_dual_coef_": (classes - 1, count),
        "dual_coef_": (classes - 1, count),
        "_intercept_": (classes * (classes - 1) // 2,),
        "intercept_": (classes * (classes - 1) // 2,),
        "_probA": (0,),
        "_probB": (0,),
    }
    for name, shape in shapes.items():
        values = _array(model, name, len(shape), "fi", np.int32 if name == "support_" else np.float64)
        _demand(values.shape == shape and bool(np.isfinite(values).all()), f"{name} of shape {shape}")
    _demand(getattr(model, "_sparse", None) is False, "dense inputs")
    _demand(type(model._gamma) in (float, np.float64) and 0 < model._gamma < np.inf, "a kernel width above 0")


def _check_forest(model: Any, width: int) -> None:
    grown = getattr(model, "estimators_", None)
    _demand(isinstance(grown, list) and len(grown) == model.n_estimators, f"{model.n_estimators} trees")
    classes = len(model.classes_) if hasattr(model, "classes_") else 1
    kind = "DecisionTreeClassifier" if hasattr(model, "classes_") else "DecisionTreeRegressor"
    _demand(_whole(model, "n_outputs_") == 1, "one target")
    if hasattr(model, "classes_"):
        _demand(_whole(model, "n_classes_") == classes, f"{classes} classes")
    for one in grown or ():
        _demand(type(one).__name__ == kind and type(one.tree_).__name__ == "Tree", "trees of its own kind")
        _demand(_whole(one, "n_outputs_") == 1, "one target")
        if hasattr(model, "classes_"):
            _demand(_whole(one, "n_classes_") == classes, f"{classes} classes")
        _check_tree(one.tree_, width, classes, hasattr(model, "classes_"))


def _check_tree(tree: Any, width: int, classes: int, shares: bool) -> None:
    count = tree.node_count
    _demand(0 < count == tree.capacity and tree.n_features == width, "a tree of whole nodes")
    state = tree.__getstate__()
    nodes, values = state["nodes"], state["values"]
    _demand(values.shape == (count, 1, classes) and bool(np.isfinite(values).all()), "finite values of leaves")
    _demand(not shares or bool(((values >= 0) & (values <= 1 + 1e-9)).all()), "shares of classes in leaves")
    inner = nodes["left_child"] != -1
    _check_nodes(nodes[inner], np.flatnonzero(inner), count, ("left_child", "right_child", "feature"), width)


def _check_nodes(nodes: np.ndarray, places: np.ndarray, count: int, fields: tuple[str, str, str], width: int) -> None:
    """Inner nodes lead further down the list and no further than its end, and ask for a column that there is."""
    left, right, feature = (nodes[field].astype(np.int64) for field in fields)
    for child in (left, right):
        _demand(bool(((child > places) & (child < count)).all()), "nodes that lead to later ones")
    _demand(bool(((feature >= 0) & (feature < width)).all()), f"nodes that ask for one of {width} columns")


def _check_boosting(model: Any, width: int) -> None:
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE

    classes = len(model.classes_) if hasattr(model, "classes_") else 1
    wide = classes if classes > 2 else 1
    _demand(_whole(model, "n_trees_per_iteration_") == wide and _whole(model, "_n_features") == width, f"{wide} trees")
    _demand(_array(model, "_baseline_prediction", 2, "f", np.float64).shape == (1, wide), "a start for each of them")
    for name in ("is_categorical_", "_preprocessor", "_is_categorical_remapped"):
        _demand(getattr(model, name, 0) is None, f"{name} None")
    rounds = getattr(model, "_predictors", None)
    _demand(isinstance(rounds, list) and len(rounds) == model.max_iter, f"{model.max_iter} rounds")
    for grown in rounds or ():
        _demand(isinstance(grown, list) and len(grown) == wide, f"{wide} trees a round")
        for tree in grown:
            _demand(type(tree).__name__ == "TreePredictor", "trees of its own kind")
            nodes = getattr(tree, "nodes", None)
            fits = isinstance(nodes, np.ndarray) and nodes.dtype == PREDICTOR_RECORD_DTYPE and nodes.ndim == 1
            _demand(fits and len(nodes) > 0, "a tree of whole nodes")
            assert isinstance(nodes, np.ndarray)
            _demand(not nodes["is_categorical"].any() and bool(np.isfinite(nodes["value"]).all()), "finite numbers")
            inner = nodes["is_leaf"] == 0
            _check_nodes(nodes[inner], np.flatnonzero(inner), len(nodes), ("left", "right", "feature_idx"), width)


CHECKS: dict[str, Callable[[Any, int], None]] = {
    "KNeighbors": _check_neighbours,
    "SVC": _check_vectors,
    "SVR": _check_vectors,
    "RandomForest": _check_forest,
    "HistGradientBoosting": _check_boosting,
}
"""By how the names of estimators begin; what others do is NumPy's, which checks for itself."""


def _array(holder: Any, name: str, dimensions: int, kinds: str, dtype: Any = None) -> np.ndarray:
    values = getattr(holder, name, None)
    fits = type(values) is np.ndarray and values.ndim == dimensions and values.dtype.kind in kinds
    _demand(fits and (dtype is None or values.dtype == dtype), f"{name} of {dimensions} dimensions")
    assert isinstance(values, np.ndarray)
    return values


def _whole(holder: Any, name: str) -> int:
    value = getattr(holder, name, None)
    _demand(isinstance(value, (int, np.integer)) and not isinstance(value, bool), f"an integer {name}")
    return int(value)  # type: ignore[arg-type]


def _demand(fits: bool, expected: str) -> None:
    if not fits:
        _refuse(expected)


def _refuse(expected: str) -> None:
    raise InputError(f"the saved learner is not whole: expected {expected}")
