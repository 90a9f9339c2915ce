"""The classical learners of a saved winner, by skops: read back only where they are made of types from a closed list.

skops trusts many types by itself. Here a file is looked through before skops sees it: each of its members, sizes and
types. What is then made whole is compared with a fresh learner, and every number by which compiled code finds its way
in memory is checked (:mod:`~steepest.comparison.report.winner.models`).
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ....core.stored import parse_json
from ...baselines import Baseline, LightGBMBaseline
from ...errors import InputError
from ...scores.outcome import Outcome
from ...work.classical import NUMBERS, learner_of, moved_by, outcome_of_learners, restored
from ...work.stored import read_header
from .facts import WinnerFacts
from .files import read_whole, said_by, write_whole
from .models import check_model, expected_estimator, savable
from .trees import TREES, models_of_trees, text_of_trees

LEARNERS = "winner.skops"
SCHEMA = "schema.json"
LARGEST = 2**32
"""Bytes that the file may have; its members are not compressed, so that they hold no more."""

TYPES: dict[str, tuple[str, ...]] = {
    "DictNode": ("builtins.dict",),
    "ListNode": ("builtins.list",),
    "TupleNode": ("builtins.tuple",),
    "JsonNode": ("builtins.str",),
    "TypeNode": ("builtins.str",),
    "NdArrayNode": ("numpy.ndarray", "numpy.float64", "numpy.int64", "numpy.uint64"),
    "TreeNode": ("sklearn.tree._tree.Tree",),
    "LossNode": tuple(
        f"sklearn._loss._loss.CyHalf{name}" for name in ("BinomialLoss", "MultinomialLoss", "SquaredError")
    ),
    "ObjectNode": (
        "sklearn.dummy.DummyClassifier",
        "sklearn.dummy.DummyRegressor",
        "sklearn.neighbors._classification.KNeighborsClassifier",
        "sklearn.neighbors._regression.KNeighborsRegressor",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.linear_model._ridge.Ridge",
        "sklearn.linear_model._coordinate_descent.LassoCV",
        "sklearn.model_selection._split.KFold",
        "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
        "sklearn.kernel_ridge.KernelRidge",
        "sklearn.svm._classes.SVC",
        "sklearn.svm._classes.SVR",
        "sklearn.ensemble._forest.RandomForestClassifier",
        "sklearn.ensemble._forest.RandomForestRegressor",
        "sklearn.tree._classes.DecisionTreeClassifier",
        "sklearn.tree._classes.DecisionTreeRegressor",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingRegressor",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.preprocessing._label.LabelEncoder",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.link.MultinomialLogit",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfMultinomialLoss",
        "sklearn._loss.loss.HalfSquaredError",
    ),
}
"""All that learners are made of, by how skops loads it."""

_INFINITE = ("Infinity", "-Infinity")
"""Ends of open intervals, which JSON has no word for."""
_CONTENT = {"content"}
_FIELDS: dict[str, set[str]] = {
    "DictNode": {"content", "key_types"},
    "ListNode": _CONTENT,
    "TupleNode": _CONTENT,
    "JsonNode": {"content", "is_json"},
    "TypeNode": set(),
    "NdArrayNode": {"type", "file"},
    "TreeNode": {"content", "__reduce__"},
    "LossNode": {"content", "__reduce__"},
    "ObjectNode": _CONTENT,
}
_HEAD = {"__class__", "__module__", "__loader__"}


class FittedLearners:
    """A fitted classical learner; of label sets one a label.

    Args:
        learners: fitted, of one name.
        task: of the target.
    """

    def __init__(self, learners: Sequence[Baseline], task: str) -> None:
        self.learners, self.task = list(learners), task
        self.file = TREES if isinstance(self.learners[0], LightGBMBaseline) else LEARNERS

    def outcome(self, inputs: Tensor) -> Outcome:
        """What it says of prepared inputs, uncalibrated."""
        rows = inputs.numpy().astype(np.float64)
        if not len(rows):  # scikit-learn asks for one
            return outcome_of_learners(self.learners, self.task, np.zeros((1, rows.shape[1]))).rows(np.arange(0))
        return outcome_of_learners(self.learners, self.task, rows)

    @property
    def moved(self) -> dict[str, Any]:
        """What it does to numbers beside its estimators, for ``winner.json``."""
        return moved_by(self.learners[0])

    def write(self, folder: Path) -> str:
        """Write the list of estimators, LightGBM's as its text, and give the hash of its file."""
        import skops.io

        if self.file == TREES:
            text = text_of_trees([learner.model for learner in self.learners])
            return write_whole(folder / TREES, text.encode())
        return write_whole(
            folder / LEARNERS, _plain(skops.io.dumps([savable(learner.model) for learner in self.learners]))
        )

    @classmethod
    def read(cls, folder: Path, told: WinnerFacts) -> FittedLearners:
        """The learners that the facts describe, with the estimators that lie beside them.

        Raises:
            InputError: the file is another, not whole, names a type beyond :data:`TYPES`, or is not of this learner.
        """
        values = told.values
        by_lightgbm = values["learner"] == LightGBMBaseline.name
        file = TREES if by_lightgbm else LEARNERS
        data = read_whole(folder, file, values["weights"])
        count = len(values["classes"]) if told.task == "multilabel" else 1
        classes = 0 if told.task in NUMBERS else 2 if told.task == "multilabel" else len(values["classes"])
        learners: list[Baseline] = []
        models = models_of_trees(data, values["width"], classes) if by_lightgbm else estimators(data)
        if len(models) != count:
            raise InputError(f"{file}: expected {count} learners, got {len(models)}")
        for number, model in enumerate(models):
            rounds = values["rounds"][number] if values["rounds"] else None
            options: dict[str, Any] = {"hyper": values["hyper"], "rounds": rounds}
            learner = learner_of(values["learner"], told.task, values["rows"], values["seed"], **options)
            learner.rows, learner.columns = values["rows"], values["width"]
            if not by_lightgbm:
                check_model(model, expected_estimator(learner, model), values["width"], classes)
            learners.append(
                restored(learner, model, rows=values["rows"], width=values["width"], classes=classes, moved=values)
            )
        return cls(learners, told.task)


def estimators(data: bytes) -> list[Any]:
    """The list of estimators in the bytes of a file.

    Raises:
        InputError: it is damaged, holds anything but what :meth:`FittedLearners.write` writes, or was written by
            another scikit-learn.
    """
    import skops.io
    from sklearn.exceptions import InconsistentVersionWarning

    try:
        _check_file(data)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            models = skops.io.loads(data, trusted=[name for names in TYPES.values() for name in names])
    except InputError:
        raise
    except Exception as error:  # zipfile, NumPy, skops and scikit-learn have many
        raise InputError(f"{LEARNERS}: damaged: {said_by(error)}") from error
    for warning in (record.message for record in said):
        if isinstance(warning, InconsistentVersionWarning):
            was, now = warning.original_sklearn_version, warning.current_sklearn_version
            if str(was).split(".")[:2] != str(now).split(".")[:2]:
                raise InputError(
                    f"{LEARNERS}: fitted with scikit-learn {str(was)[:20]}, and this is {now}; "
                    "the same compare fits the winner again"
                )
    return list(models)


def _plain(data: bytes) -> bytes:
    """What skops wrote, without what differs from call to call: addresses in memory, names by them, the time."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        schema = parse_json(archive.read(SCHEMA), SCHEMA)
        names: dict[bytes, str] = {}
        _rename(schema, archive, names)
    members = {name: content for content, name in names.items()}
    return packed({**members, SCHEMA: json.dumps(schema).encode()})


def packed(members: Mapping[str, bytes]) -> bytes:
    """An archive of members, uncompressed; equal ones give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _rename(node: Any, archive: zipfile.ZipFile, names: dict[bytes, str]) -> None:
    """Drop the identities of objects, and number the contents of files in the order in which they are met."""
    if isinstance(node, list):
        for value in node:
            _rename(value, archive, names)
    elif isinstance(node, dict):
        node.pop("__id__", None)
        if node.get("__loader__") == "NdArrayNode":
            node["file"] = names.setdefault(_cleaned(archive.read(node["file"])), f"{len(names)}.npy")
        for value in node.values():
            _rename(value, archive, names)


def _cleaned(data: bytes) -> bytes:
    """The bytes of an array, without what chance left between the fields of its records."""
    values = np.load(io.BytesIO(data), allow_pickle=False)
    if values.dtype.names is None:
        return data
    records = np.zeros(values.shape, values.dtype)
    for name in values.dtype.names:
        records[name] = values[name]
    buffer = io.BytesIO()
    np.save(buffer, records)
    return buffer.getvalue()


def _check_file(data: bytes) -> None:
    """Refuse an archive whose members, sizes or types are not those that are written here; nothing of it is made."""
    if len(data) > LARGEST:
        raise InputError(f"{LEARNERS}: {len(data):,} bytes, more than {LARGEST:,}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        known = all(name == SCHEMA or re.fullmatch(r"[0-9]{1,9}\.npy", name) for name in names)
        if SCHEMA not in names or len(set(names)) < len(names) or not known:
            raise InputError(f"{LEARNERS}: expected {SCHEMA} and numbered arrays, each once, got {len(names)} members")
        sizes = [member.file_size for member in members]
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
            raise InputError(f"{LEARNERS}: expected members that are not compressed")
        if sum(sizes) > len(data):
            raise InputError(f"{LEARNERS}: members of {sum(sizes):,} bytes in a file of {len(data):,}")
        arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for member in members:
            if member.filename != SCHEMA:
                with archive.open(member) as file:
                    shape, _, dtype = read_header(file, member.file_size, f"{LEARNERS}: {member.filename}")
                arrays[member.filename] = shape, dtype
        schema = parse_json(archive.read(SCHEMA), f"{LEARNERS}: {SCHEMA}")
    _check_schema(schema, arrays)


def _check_schema(schema: Any, arrays: Mapping[str, Any]) -> None:
    from skops.io._protocol import PROTOCOL

    if not isinstance(schema, dict):
        raise InputError(f"{LEARNERS}: {SCHEMA}: expected fields")
    protocol = schema.pop("protocol", None)
    if type(protocol) is not int or protocol != PROTOCOL:
        raise InputError(f"{LEARNERS}: protocol: expected {PROTOCOL} of this skops, got {str(protocol)[:20]!r}")
    if not isinstance(schema.pop("_skops_version", None), str) or schema.get("__loader__") != "ListNode":
        raise InputError(f"{LEARNERS}: expected a list of learners, saved by skops")
    _check_node(schema, arrays)


def _check_node(node: Any, arrays: Mapping[str, Any]) -> None:
    """Refuse a node, or one inside of it, that no learner has."""
    if not isinstance(node, dict) or not all(isinstance(node.get(key), str) for key in _HEAD):
        raise InputError(f"{LEARNERS}: {SCHEMA}: expected a type with its module and loader")
    loader, name = node["__loader__"], f"{node['__module__']}.{node['__class__']}"
    if name not in TYPES.get(loader, ()):
        raise InputError(f"{LEARNERS}: names {name[:80]!r} ({loader[:40]}), a type that no learner is made of")
    if set(node) - _HEAD - _FIELDS[loader] or (_FIELDS[loader] - {"is_json"}) - set(node):
        raise InputError(f"{LEARNERS}: {name}: expected the fields {', '.join(sorted(_FIELDS[loader])) or 'none'}")
    content = node.get("content")
    if loader in ("ListNode", "TupleNode", "DictNode"):
        if not isinstance(content, dict if loader == "DictNode" else list):
            raise InputError(f"{LEARNERS}: {name}: expected what it holds")
        for inner in content.values() if isinstance(content, dict) else content or ():
            _check_node(inner, arrays)
        if isinstance(content, dict):
            _check_node(node["key_types"], arrays)
            if len(node["key_types"]["content"]) != len(content):
                raise InputError(f"{LEARNERS}: {name}: expected a type for each key")
    elif loader == "JsonNode":
        plain = isinstance(content, str) and content not in _INFINITE
        value = parse_json(content, f"{LEARNERS}: a value") if plain else None
        if not isinstance(content, str) or isinstance(value, (list, dict)):
            raise InputError(f"{LEARNERS}: expected one number, text, flag or null as a value")
    elif loader == "NdArrayNode":
        if node["type"] != "numpy" or not isinstance(node["file"], str) or node["file"] not in arrays:
            raise InputError(f"{LEARNERS}: {name}: expected a numbered array of the file")
        if name != "numpy.ndarray" and arrays[node["file"]][0] != ():
            raise InputError(f"{LEARNERS}: {name}: expected one number")
    elif loader != "TypeNode":
        _check_node(content, arrays)
        if "__reduce__" in node:
            _check_made(node, name, arrays)


def _check_made(node: dict[str, Any], name: str, arrays: Mapping[str, Any]) -> None:
    """The arguments with which skops makes a tree or a loss, before any is made."""
    reduced = node["__reduce__"]
    arguments = reduced.get("args") if isinstance(reduced, dict) and set(reduced) == {"args"} else None
    _check_node(arguments, arrays)
    assert isinstance(arguments, dict)
    given = arguments["content"] if arguments["__loader__"] == "TupleNode" else [None]
    if node["__loader__"] == "LossNode":
        fits = not given and not node["content"].get("content")
    else:
        loaders = [argument["__loader__"] for argument in given if argument]
        fits = loaders == ["JsonNode", "NdArrayNode", "JsonNode"] and given[2]["content"] == "1"
        fits = fits and re.fullmatch(r"[0-9]{1,9}", given[0]["content"]) is not None
        fits = fits and arrays[given[1]["file"]] == ((1,), np.dtype(np.int64))
    if not fits:
        raise InputError(f"{LEARNERS}: {name}: expected the arguments of one that was fitted here")
