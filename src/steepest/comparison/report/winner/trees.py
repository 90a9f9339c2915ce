"""LightGBM's trees as the text that LightGBM itself reads, of which each number is checked before it sees it.

Its library follows the numbers of a text without asking whether they lie inside. So a text is taken only where it is,
sign for sign, what would be written of the trees that were read from it, and where these lead from node to node within
the columns that there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...baselines.lightgbm_trees import LightGBMClassifierTrees, LightGBMRegressorTrees, lightgbm
from ...errors import InputError

TREES = "winner.lightgbm.txt"
LARGEST = 2**32
"""Bytes that the file may have."""
MOST_DIGITS = 25
"""Signs of a number."""
VERSION = "v4"
"""Of LightGBM's text."""
END = "end of trees\n\n"
_START = "tree\n"
_ARRAYS = ("split_feature", "threshold", "decision_type", "left_child", "right_child", "leaf_value")
_WRITTEN = ("num_leaves", "num_cat", *_ARRAYS, "is_linear", "shrinkage")
"""Fields of a tree that a prediction needs, in LightGBM's order."""
_PLAIN = {0, 2}
"""Types of a decision: a number against a threshold, what is missing goes right or left."""


@dataclass(frozen=True)
class _Ensemble:
    """What a text says."""

    objective: str
    width: int
    outputs: int
    trees: list[dict[str, str]]
    classes: list[int]

    @property
    def text(self) -> str:
        """As it is written."""
        if not self.outputs:
            return f"{_START}{END}{self._ending}"
        blocks = [_block(place, fields) for place, fields in enumerate(self.trees)]
        head = {
            "version": VERSION,
            "num_class": self.outputs,
            "num_tree_per_iteration": self.outputs,
            "label_index": 0,
            "max_feature_idx": self.width - 1,
            "objective": self.objective,
            "feature_names": " ".join(f"Column_{i}" for i in range(self.width)),
            "feature_infos": " ".join(["none"] * self.width),
            "tree_sizes": " ".join(str(len(block)) for block in blocks),
        }
        lines = "".join(f"{key}={value}\n" for key, value in head.items())
        return f"{_START}{lines}\n{''.join(blocks)}{END}{self._ending}"

    @property
    def _ending(self) -> str:
        return f"classes: {' '.join(map(str, self.classes)) or 'none'}\n\n"


def _block(place: int, fields: dict[str, str]) -> str:
    return f"Tree={place}\n" + "".join(f"{key}={fields[key]}\n" for key in _WRITTEN) + "\n\n"


def text_of_trees(models: Sequence[LightGBMRegressorTrees]) -> str:
    """The text of fitted models, one after the other; each is such as LightGBM reads by itself.

    Under a model stand the classes that its outputs are of; one that met a single class has no trees.
    """
    texts = []
    for model in models:
        classes = [int(code) for code in getattr(model, "classes_", ())]
        if model.booster is None:
            texts.append(_Ensemble("", 0, 0, [], classes).text)
            continue
        head, trees = _parts(model.booster.model_to_string(num_iteration=model.rounds))
        if head["version"] != VERSION:
            raise InputError(f"this LightGBM writes trees of version {head['version']}, expected {VERSION}")
        outputs = int(head["num_tree_per_iteration"])
        own = _Ensemble(head["objective"], int(head["max_feature_idx"]) + 1, outputs, trees, classes)
        texts.append(own.text)
    return "".join(texts)


def _parts(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The fields of the head, and of each tree; of a field that stands twice the last."""
    head, *trees = re.split(r"^(?=Tree=)", text.partition("end of trees")[0], flags=re.MULTILINE)
    fields = [dict(line.partition("=")[::2] for line in block.split("\n") if "=" in line) for block in (head, *trees)]
    return fields[0], fields[1:]


def models_of_trees(data: bytes, width: int, classes: int) -> list[LightGBMRegressorTrees]:
    """The models of the bytes of a file.

    Args:
        data: as :func:`text_of_trees` wrote.
        width: columns of the inputs.
        classes: C, 0 in regression.

    Raises:
        InputError: LightGBM is not installed, or the text is damaged, or is not of such a learner.
    """
    try:
        package = lightgbm()
    except ImportError as error:
        raise InputError(f"this saved winner is LightGBM's: {error}") from error
    if len(data) > LARGEST:
        raise InputError(f"{TREES}: {len(data):,} bytes, more than {LARGEST:,}")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise InputError(f"{TREES}: damaged: expected plain text") from error
    models: list[LightGBMRegressorTrees] = []
    for own in re.split(r"^(?=tree$)", text, flags=re.MULTILINE)[1:] if text.startswith(_START) else [text]:
        ensemble = _checked(own, width, classes)
        kind = LightGBMClassifierTrees if classes else LightGBMRegressorTrees
        model: Any = kind({}, max(1, len(ensemble.trees) // max(1, ensemble.outputs)))
        if classes:
            model.classes_ = np.array(ensemble.classes, dtype=np.int64)
        if ensemble.trees:
            model.booster = package.Booster(model_str=own)
        models.append(model)
    return models


def _checked(text: str, width: int, classes: int) -> _Ensemble:
    """What one model's text says, if it is what would be written of it."""
    _, trees = _parts(text)
    ending = text.rpartition(END)[2]
    form = re.fullmatch(r"classes: (none|\d{1,9}(?: \d{1,9})*)\n\n", ending, re.ASCII)
    _demand(form is not None, "the classes under each model")
    assert form is not None
    met = [] if form[1] == "none" else [int(code) for code in form[1].split(" ")]
    if classes:
        _demand(len(met) > 0 and met[-1] < classes, f"classes below {classes}")
        _demand(all(a < b for a, b in pairwise(met)), "classes in order")
    else:
        _demand(not met, "no classes")
    outputs = len(met) if len(met) > 2 else 1 if len(met) != 1 else 0
    objective = {0: "regression", 2: "binary sigmoid:1"}.get(len(met), f"multiclass num_class:{len(met)}")
    for tree in trees:
        _demand(set(_WRITTEN) <= set(tree), f"the fields {', '.join(_WRITTEN)} of a tree")
        _check_tree(tree, width)
    _demand(bool(trees) == bool(outputs) and len(trees) % max(1, outputs) == 0, f"{outputs} trees a round")
    ensemble = _Ensemble(objective, width, outputs, trees, met)
    _demand(ensemble.text == text, f"the trees of {outputs} outputs on {width} columns, as they are written here")
    return ensemble


def _check_tree(tree: dict[str, str], width: int) -> None:
    """The numbers of a tree lead from its root to each node and leaf once."""
    leaves = _integers(tree["num_leaves"], 1)
    count = int(leaves[0])
    _demand(1 <= count <= 2**20, "a number of leaves")
    _demand(tree["num_cat"] == "0" and tree["is_linear"] == "0", "cuts of numbers and constant leaves")
    _numbers(tree["shrinkage"], 1)
    _numbers(tree["leaf_value"], count)
    columns, left, right, kinds = (
        _integers(tree[name], count - 1) for name in ("split_feature", "left_child", "right_child", "decision_type")
    )
    _numbers(tree["threshold"], count - 1)
    _demand(bool(((columns >= 0) & (columns < width)).all()), f"nodes that ask for one of {width} columns")
    _demand(set(kinds.tolist()) <= _PLAIN, "cuts of numbers")
    children = np.concatenate([left, right])
    nodes, ends = children[children >= 0], ~children[children < 0]
    places = np.concatenate([np.arange(count - 1)] * 2)[children >= 0]
    later = bool((nodes > places).all())
    once = np.array_equal(np.sort(nodes), np.arange(1, max(1, count - 1)))
    whole = np.array_equal(np.sort(ends), np.arange(count)) if count > 1 else not len(children)
    _demand(later and once and whole, "nodes that lead to later ones, and to each leaf once")


def _words(text: str, count: int, form: str) -> list[str]:
    words = text.split(" ") if text else []
    short = len(words) == count and all(len(word) <= MOST_DIGITS for word in words)
    _demand(short and all(re.fullmatch(form, word, re.ASCII) for word in words), f"{count} numbers")
    return words


def _integers(text: str, count: int) -> np.ndarray:
    return np.array([int(word) for word in _words(text, count, r"-?\d{1,9}")], dtype=np.int64)


def _numbers(text: str, count: int) -> None:
    words = _words(text, count, r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")
    _demand(bool(np.isfinite(np.array([float(word) for word in words])).all()), "finite numbers")


def _demand(fits: bool, expected: str) -> None:
    if not fits:
        raise InputError(f"{TREES}: the saved learner is not whole: expected {expected}")
