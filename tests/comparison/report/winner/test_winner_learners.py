"""Saved classical learners: the same bits again, and a changed archive is refused in one line, or predicts right."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from scipy.special import expit, softmax

from steepest.comparison import InputError, Winner
from steepest.comparison.baselines import BoostingBaseline, ForestBaseline
from steepest.comparison.report.winner import learner as winner_learner
from steepest.comparison.report.winner.learner import LEARNERS, SCHEMA, TYPES, packed
from steepest.comparison.work.classical import learners_of

Change = Callable[..., None]
Judge = Callable[..., str]
Make = Callable[..., Winner]
Saved = dict[str, tuple[Path, pd.DataFrame]]
CANARY = "steepest_canary"
TASKS = ("binary", "multiclass", "regression", "multilabel")
SAVED = [
    *((task, name) for task in ("binary", "regression") for name in learners_of(task, 48) if name != "lightgbm"),
    *(("multiclass", name) for name in ("svm", "forest", "boosting", "lda")),
    *(("multilabel", name) for name in ("svm", "knn")),
]
TYPICAL = ["binary svm", "regression knn", "multiclass forest", "multiclass boosting", "multilabel svm", "binary lda"]


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Three trees in place of hundreds; saved ones must have as many as a fresh learner."""
    with pytest.MonkeyPatch.context() as patch:
        for cls, parameter in ((ForestBaseline, "n_estimators"), (BoostingBaseline, "max_iter")):
            patch.setattr(cls, "estimator", _with(cls.estimator, parameter))
        yield


def _with(estimator: Callable[[Any], Any], parameter: str) -> Callable[[Any], Any]:
    return lambda self: estimator(self).set_params(**{parameter: 3})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, make_winner: Make, table: Callable[[str], pd.DataFrame]) -> Saved:
    """For each task and learner the folder of a winner, and rows to predict."""
    home, found = tmp_path_factory.mktemp("learners"), {}
    for task, name in SAVED:
        frame = table(task)
        target = ["l1", "l2"] if task == "multilabel" else "goal"
        folder = home / f"{task} {name}"
        make_winner(folder, frame, name, "classical", target=target)
        found[f"{task} {name}"] = folder / "run" / "winner", frame.iloc[:12]
    return found


# ---- what a winner must say, from its files by skops and scikit-learn alone


def expected(folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    facts = json.loads((folder / "winner.json").read_text())
    data = (folder / LEARNERS).read_bytes()
    models = skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    columns = []
    for one in facts["preprocessing"]["numeric"]:
        column = rows[one["column"]].to_numpy(dtype=float)
        columns.append((np.where(np.isnan(column), one["median"], column) - one["mean"]) / one["scale"])
    columns += [rows[o["column"]].isna() for o in facts["preprocessing"]["numeric"] if o["indicator"]]
    for one in facts["preprocessing"]["categories"]:
        column = rows[one["column"]]
        columns += [(column.isna() if known is None else column == known) for known in one["categories"]]
    x = np.stack(columns, 1).astype(np.float32).astype(float)
    if facts["task"] == "regression":
        centre, scale = facts["scale"]
        return pd.DataFrame({"prediction": models[0].predict(x - (facts["middle"] or 0.0)) * scale + centre})
    if facts["task"] == "multilabel":
        found = {part["name"]: model.predict(x) for part, model in zip(facts["parts"], models)}
        own = facts["calibration"]
        for number, (part, model) in enumerate(zip(facts["parts"], models)):
            if own is None:
                p = model.predict_proba(x)[:, list(model.classes_).index(1)]
            else:
                p = expit(own["slope"][number] * model.decision_function(x) + own["offset"][number])
            found[f"p_{part['name']}"] = p
        return pd.DataFrame(found)
    (model,) = models
    codes, p = model.predict(x), None
    if facts["threshold"] is not None:
        own = getattr(model, "decision_function", None)
        decision = own(x) if own else model.predict_proba(x) @ [-1, 1]
        codes = (decision > facts["threshold"]).astype(int)
    found = pd.DataFrame({"prediction": np.array(facts["classes"])[codes]})
    if facts["calibration"] is None and hasattr(model, "predict_proba"):
        logs = np.log(np.clip(model.predict_proba(x), np.finfo(np.float32).tiny, None))
        p = softmax(logs / (facts["temperature"] or 1.0), axis=1)
    elif facts["calibration"] is not None:
        slope, scores = facts["calibration"]["slope"][0], model.decision_function(x)
        positive = expit(slope * scores + (facts["calibration"]["offset"] or [0.0])[0])
        p = softmax(slope * scores, axis=1) if scores.ndim == 2 else np.stack([1 - positive, positive], 1)
    if p is not None:
        found[[f"p_{label}" for label in facts["classes"]]] = p
    return found


def test_every_learner_predicts_what_its_files_say(saved: Saved, tmp_path: Path) -> None:
    for kind, (folder, rows) in saved.items():
        winner = Winner.load(folder)
        assert winner.facts["kind"] == "classical"
        found = winner.predict(rows)
        pd.testing.assert_frame_equal(found, expected(folder, rows), check_dtype=False, rtol=1e-9, obj=kind)
        winner.save(tmp_path / kind)
        assert (tmp_path / kind / LEARNERS).read_bytes() == (folder / LEARNERS).read_bytes(), kind


def test_probabilities_are_there_for_classes_in_order_and_sum_to_one(saved: Saved) -> None:
    for kind, (folder, rows) in saved.items():
        winner = Winner.load(folder)
        if kind.startswith("regression"):
            with pytest.raises(InputError, match=r"^no probabilities: the target holds numbers$"):
                winner.predict_proba(rows)
            continue
        rows = rows.set_axis([f"row {i}" for i in range(len(rows))])
        p = winner.predict_proba(rows)
        assert p.columns.tolist() == winner.facts["classes"], kind
        assert p.index.equals(rows.index)
        beside = winner.predict(rows)[[f"p_{label}" for label in winner.facts["classes"]]]
        np.testing.assert_array_equal(p, beside)
        if not kind.startswith("multilabel"):
            np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


def test_no_rows_and_rows_too_far_out(saved: Saved) -> None:
    folder, rows = saved["binary svm"]
    winner = Winner.load(folder)
    assert winner.predict(rows.iloc[:0]).empty
    far = rows.copy()
    far.iloc[2, far.columns.get_loc("size")] = 1e100
    with pytest.raises(InputError, match=r"^row 3: the winner gives no finite number"):
        winner.predict(far)


# ---- changed archives


def contents(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Schema and arrays of an archive."""
    with zipfile.ZipFile(folder / LEARNERS) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(members.pop(SCHEMA))
    return schema, {name: np.load(io.BytesIO(data)) for name, data in members.items()}


def archive_of(schema: Any, arrays: dict[str, np.ndarray], **more: bytes) -> bytes:
    members = {}
    for name, values in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, values)
        members[name] = buffer.getvalue()
    return packed({**members, SCHEMA: json.dumps(schema).encode(), **more})


def put(source: Path, folder: Path, data: bytes, **fields: Any) -> Path:
    """A copy of a winner with another archive, whose hash fits."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    (folder / LEARNERS).write_bytes(data)
    facts = json.loads((folder / "winner.json").read_text())
    facts |= {"weights": hashlib.sha256(data).hexdigest(), **fields}
    (folder / "winner.json").write_text(json.dumps(facts))
    return folder


NAMES = [
    "os", "system", "builtins", "eval", "numpy", "int64", "ndarray", "sklearn.svm._classes", "SVC", "FunctionNode",
    CANARY, "ObjectNode", "ListNode", "JsonNode", "MethodNode", "PartialNode", "CachedNode", "0.npy", "../0.npy", "1",
    "-1", "[]", '"x"', "NaN", "Infinity", "true", 5, None, True, [], {}, 1e308,
]  # fmt: skip


def change_array(values: np.ndarray, rng: random.Random) -> np.ndarray:
    kind = rng.randrange(7)
    if kind == 0:
        return values.reshape(-1)[: rng.randrange(values.size + 1)]
    if kind == 1:
        return values[None]
    if kind == 2 and values.dtype.names is None:
        return values.astype(rng.choice(["int32", "int64", "float32", "float64", "complex64", "U3"]))
    flat = values.copy().reshape(-1)
    place = rng.randrange(max(1, flat.size))
    if not flat.size:
        return np.zeros(3)
    if flat.dtype.names is not None:
        name = rng.choice(flat.dtype.names)
        flat[name][place] = rng.choice([0, 1, 7, 120] if flat.dtype[name].kind == "u" else [-1, 0, 9, 10**6])
    else:
        numbers = [0, 1, -1, 5, 10**6] if flat.dtype.kind in "ib" else [0.0, -1.0, 1e300, np.nan, np.inf]
        flat[place] = rng.choice([0, 7] if flat.dtype.kind == "u" else numbers)
    return flat.reshape(values.shape)


def change_archive(folder: Path, rng: random.Random, change: Change) -> bytes:
    data = (folder / LEARNERS).read_bytes()
    kind = rng.randrange(10)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    schema, arrays = contents(folder)
    if kind == 2:
        arrays.pop(rng.choice(sorted(arrays)), None) if arrays else schema.pop("protocol")
    elif kind < 6 and arrays:
        name = rng.choice(sorted(arrays))
        arrays[name] = change_array(arrays[name], rng)
    else:
        for _ in range(rng.choice([1, 1, 2])):
            change(schema, rng, NAMES)
    return archive_of(schema, arrays)


def outcome_of_change(saved: Saved, number: int, folder: Path, change: Change, right_or_refused: Judge) -> str:
    """``"refused"`` or ``"right"``; anything else fails."""
    source, rows = saved[TYPICAL[number % len(TYPICAL)]]
    rng = random.Random(number)
    put(source, folder, change_archive(source, rng, change))
    if rng.random() < 0.3:
        facts = json.loads((folder / "winner.json").read_text())
        change(facts, rng)
        (folder / "winner.json").write_text(json.dumps(facts))
    return right_or_refused(folder, rows, expected, rtol=1e-6, obj=f"change {number}")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_changed_archives_are_refused_or_right(
    saved: Saved, tmp_path: Path, change: Change, right_or_refused: Judge
) -> None:
    folder = tmp_path / "changed"
    said = [outcome_of_change(saved, number, folder, change, right_or_refused) for number in range(120)]
    assert CANARY not in sys.modules
    assert min(said.count("refused"), said.count("right")) > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_two_thousand_changed_archives_are_refused_or_right(
    saved: Saved, tmp_path: Path, change: Change, right_or_refused: Judge
) -> None:
    folder = tmp_path / "changed"
    said = [outcome_of_change(saved, number, folder, change, right_or_refused) for number in range(2000)]
    print(f"\n2,000 changed archives: {said.count('refused')} refused, {said.count('right')} right")
    assert CANARY not in sys.modules


def nodes(tree: Any, loader: str) -> list[dict[str, Any]]:
    """All nodes of a loader, in order."""
    found = [tree] if isinstance(tree, dict) and tree.get("__loader__") == loader else []
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [*found, *(node for each in inside for node in nodes(each, loader))]


def attribute(schema: Any, arrays: dict[str, np.ndarray], name: str, values: Any) -> None:
    """Another array for the first attribute of this name."""
    holders = [node["content"] for node in nodes(schema, "DictNode") if name in node["content"]]
    file = holders[0][name]["file"]
    arrays[file] = np.asarray(values(arrays[file]), dtype=arrays[file].dtype)


def field(name: str, value: int, place: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[name][place] = value
        return values

    return change


INDICES = [
    ("multiclass forest", "nodes", field("left_child", 10**6), "nodes that lead to later ones"),
    ("multiclass forest", "nodes", field("right_child", 0), "nodes that lead to later ones"),
    ("multiclass forest", "nodes", field("feature", 99), "nodes that ask for one of 6 columns"),
    ("multiclass forest", "nodes", field("feature", -5), "nodes that ask for one of 6 columns"),
    ("multiclass boosting", "nodes", field("is_leaf", 0, -1), "nodes that lead to later ones"),
    ("multiclass boosting", "nodes", field("is_categorical", 1), "finite numbers"),
    ("multiclass svm", "_n_support", lambda v: v * 1000, "as many support vectors as it says"),
    ("multiclass svm", "_n_support", lambda v: v - [100, -100, 0], "as many support vectors as it says"),
    ("multiclass svm", "_intercept_", lambda v: v[:1], "_intercept_ of shape (3,)"),
    ("multiclass svm", "_dual_coef_", lambda v: v[:, :2], "_dual_coef_ of shape"),
    ("regression svm", "support_", lambda v: v[:1], "support_ of shape"),
    ("binary svm", "support_vectors_", lambda v: v[:, :2], "support vectors of 6 numbers"),
    ("binary knn", "_y", lambda v: v + 10**6, "codes of classes"),
    ("regression knn", "_fit_X", lambda v: v[:3], "as many targets as rows"),
    ("binary lda", "classes_", lambda v: v + 1, "classes below 2"),
    ("binary constant", "classes_", lambda v: v[::-1], "classes in order"),
]


@pytest.mark.parametrize(("kind", "name", "values", "said"), INDICES)
def test_numbers_that_lead_outside_are_refused(
    saved: Saved, tmp_path: Path, kind: str, name: str, values: Callable[[np.ndarray], Any], said: str
) -> None:
    schema, arrays = contents(saved[kind][0])
    attribute(schema, arrays, name, values)
    with pytest.raises(InputError, match=re.escape(said)):
        Winner.load(put(saved[kind][0], tmp_path / "w", archive_of(schema, arrays)))


def _typed(schema: Any, loader: str, place: int, **fields: Any) -> None:
    nodes(schema, loader)[place].update(fields)


SCHEMAS: list[tuple[str, Callable[[Any], object], str]] = [
    (
        "binary lda",
        lambda s: _typed(s, "ObjectNode", 0, __module__="os", __class__="system"),
        "names 'os.system' (ObjectNode)",
    ),
    (
        "binary lda",
        lambda s: _typed(s, "ObjectNode", 0, __module__="sklearn.svm._classes", __class__="LinearSVC"),
        "names 'sklearn.svm._classes.LinearSVC'",
    ),
    ("binary lda", lambda s: _typed(s, "TypeNode", 0, __module__=CANARY), f"names '{CANARY}.str' (TypeNode)"),
    ("binary lda", lambda s: _typed(s, "JsonNode", 0, __loader__="FunctionNode"), "(FunctionNode), a type that no"),
    ("binary lda", lambda s: _typed(s, "JsonNode", 0, __id__=3), "expected the fields content, is_json"),
    ("binary lda", lambda s: _typed(s, "NdArrayNode", 0, file="9.npy"), "expected a numbered array of the file"),
    ("binary lda", lambda s: s.update(protocol=0), "protocol: expected"),
    ("binary lda", lambda s: s["content"].append(s["content"][0]), "expected 1 learners, got 2"),
    ("multilabel svm", lambda s: s["content"].pop(), "expected 2 learners, got 1"),
    (
        "multiclass forest",
        lambda s: nodes(s, "TreeNode")[0]["__reduce__"]["args"]["content"].pop(),
        "the arguments of one",
    ),
    (
        "multiclass forest",
        lambda s: _typed(nodes(s, "TreeNode")[0]["__reduce__"], "JsonNode", 1, content="1000000"),
        "the arguments of one",
    ),
    (
        "binary svm",
        lambda s: next(n for n in nodes(s, "DictNode") if "C" in n["content"])["content"]["C"].update(content="9.0"),
        "the parameter C of a fresh one",
    ),
]


@pytest.mark.parametrize(("kind", "alter", "said"), SCHEMAS)
def test_types_and_values_that_no_learner_has_are_refused(
    saved: Saved, tmp_path: Path, kind: str, alter: Callable[[Any], object], said: str
) -> None:
    schema, arrays = contents(saved[kind][0])
    alter(schema)
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        Winner.load(put(saved[kind][0], tmp_path / "w", archive_of(schema, arrays)))
    assert "\n" not in str(refused.value)
    assert CANARY not in sys.modules


def test_members_are_known_uncompressed_and_no_larger_than_the_file(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = saved["binary lda"]
    schema, arrays = contents(source)

    def refusal(data: bytes) -> str:
        with pytest.raises(InputError) as refused:
            Winner.load(put(source, tmp_path / "w", data))
        return str(refused.value)

    assert "numbered arrays, each once" in refusal(archive_of(schema, arrays, **{"more.pkl": b"x"}))
    assert "numbered arrays, each once" in refusal(archive_of(schema, arrays, **{"../1.npy": b"x"}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(SCHEMA, " " * 10**6)
    assert "not compressed" in refusal(buffer.getvalue())
    objects = archive_of(schema, arrays | {"0.npy": np.array([{}], dtype=object)})
    assert "bytes of object" in refusal(objects)
    monkeypatch.setattr(winner_learner, "LARGEST", 1000)
    assert "more than 1,000" in refusal((source / LEARNERS).read_bytes())


def test_another_version_of_scikit_learn_is_refused(saved: Saved, tmp_path: Path) -> None:
    schema, arrays = contents(saved["binary lda"][0])
    holders = [node["content"] for node in nodes(schema, "DictNode") if "_sklearn_version" in node["content"]]
    now = json.loads(holders[0]["_sklearn_version"]["content"])
    holders[0]["_sklearn_version"]["content"] = '"0.9.1"'
    said = f"fitted with scikit-learn 0.9.1, and this is {now}; the same compare fits the winner again"
    with pytest.raises(InputError, match=re.escape(said)):
        Winner.load(put(saved["binary lda"][0], tmp_path / "w", archive_of(schema, arrays)))
    holders[0]["_sklearn_version"]["content"] = json.dumps(f"{now}.post1")
    Winner.load(put(saved["binary lda"][0], tmp_path / "w", archive_of(schema, arrays)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"learner": "boost"},
            "learner: expected one of constant, knn, logistic, lda, svm, forest, boosting, lightgbm, got 'boost'",
        ),
        ({"learner": "svm", "rows": 20_000}, "learner: expected one of constant, knn, logistic, lda, forest, boosting"),
        ({"hyper": {"rate": 0.1}}, "the hyper-parameters of lda (none), or none"),
        ({"rounds": [5]}, "rounds: expected 0 of them"),
        ({"learner": "forest"}, "expected a RandomForestClassifier, got LinearDiscriminantAnalysis"),
        ({"middle": [1.0]}, "middle: expected 0 numbers"),
        ({"task": "regression"}, "classes: expected"),
        ({"kind": "objective"}, "the field 'objective' is missing"),
    ],
)
def test_facts_that_do_not_fit_the_learner_are_refused(
    saved: Saved, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    source, _ = saved["binary lda"]
    with pytest.raises(InputError, match=re.escape(said)):
        Winner.load(put(source, tmp_path / "w", (source / LEARNERS).read_bytes(), **fields))


def test_learners_need_no_type_beyond_the_list(saved: Saved) -> None:
    """Each type of the list is there because a learner is made of it."""
    used = set()
    for folder, _ in saved.values():
        schema, _ = contents(folder)
        used |= {
            (loader, f"{node['__module__']}.{node['__class__']}") for loader in TYPES for node in nodes(schema, loader)
        }
    assert used == {(loader, name) for loader, names in TYPES.items() for name in names}


def test_the_fit_leaves_random_states_alone(saved: Saved, make_winner: Make, tmp_path: Path, table: Any) -> None:
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    winner = make_winner(tmp_path, table("binary"), "svm", "classical", target="goal")
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    again = (saved["binary svm"][0] / LEARNERS).read_bytes()
    assert (tmp_path / "run" / "winner" / LEARNERS).read_bytes() == again
    assert winner.facts["rows"] == 48
