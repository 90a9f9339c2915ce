"""LightGBM's winners: the same bits again from their text; a changed text is refused in one line, or predicts right."""

from __future__ import annotations

import builtins
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import torch

from steepest.comparison import InputError, Winner
from steepest.comparison.baselines.lightgbm_trees import LightGBMClassifierTrees, LightGBMRegressorTrees
from steepest.comparison.report.winner.learner import LEARNERS
from steepest.comparison.report.winner.trees import TREES, models_of_trees, text_of_trees

Saved = dict[str, tuple[Path, pd.DataFrame, Winner]]
TASKS = ("binary", "multiclass", "regression", "multilabel")


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory, make_winner: Callable[..., Winner], table: Callable[[str], pd.DataFrame]
) -> Saved:
    """For each task the folder of a winner, rows to predict, and the winner before it was saved."""
    home, winners = tmp_path_factory.mktemp("trees"), {}
    for task in TASKS:
        frame = table(task)
        target = ["l1", "l2"] if task == "multilabel" else "goal"
        winner = make_winner(home / task, frame, "lightgbm", "classical", target=target)
        winners[task] = home / task / "run" / "winner", frame.iloc[:12], winner
    return winners


def text_of(folder: Path) -> str:
    return (folder / TREES).read_text(encoding="ascii")


def put(source: Path, folder: Path, text: str | bytes, **fields: Any) -> Path:
    """A copy of a winner with another text, whose hash fits."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    data = text if isinstance(text, bytes) else text.encode()
    (folder / TREES).write_bytes(data)
    facts = json.loads((folder / "winner.json").read_text())
    facts |= {"weights": hashlib.sha256(data).hexdigest(), **fields}
    (folder / "winner.json").write_text(json.dumps(facts))
    return folder


def expected(folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """What a winner of two classes says, from its files by LightGBM alone."""
    facts = json.loads((folder / "winner.json").read_text())
    columns = []
    for one in facts["preprocessing"]["numeric"]:
        column = rows[one["column"]].to_numpy(dtype=float)
        columns.append((np.where(np.isnan(column), one["median"], column) - one["mean"]) / one["scale"])
    columns += [rows[o["column"]].isna() for o in facts["preprocessing"]["numeric"] if o["indicator"]]
    for one in facts["preprocessing"]["categories"]:
        column = rows[one["column"]]
        columns += [(column.isna() if known is None else column == known) for known in one["categories"]]
    x = np.stack(columns, 1).astype(np.float32).astype(float)
    p = lightgbm.Booster(model_file=str(folder / TREES)).predict(x)
    p = np.stack([1 - p, p], 1)
    codes = (p[:, 1] - p[:, 0] > facts["threshold"]).astype(int)
    logs = np.log(np.clip(p, np.finfo(np.float32).tiny, None)) / (facts["temperature"] or 1.0)
    p = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    frame = pd.DataFrame({"prediction": np.array(facts["classes"])[codes]})
    frame[[f"p_{label}" for label in facts["classes"]]] = p
    return frame


def test_a_loaded_winner_predicts_the_same_bits(saved: Saved, tmp_path: Path) -> None:
    for task, (folder, rows, before) in saved.items():
        assert not (folder / LEARNERS).exists()
        winner = Winner.load(folder)
        assert (winner.facts["kind"], winner.facts["learner"]) == ("classical", "lightgbm")
        pd.testing.assert_frame_equal(winner.predict(rows), before.predict(rows), check_exact=True, obj=task)
        inputs = torch.randn(500, winner.facts["width"], generator=torch.Generator().manual_seed(0)) * 2
        first, second = winner.fitted.outcome(inputs), before.fitted.outcome(inputs)
        for name in ("predicted", "probabilities", "decision"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=f"{task} {name}")
        winner.save(tmp_path / task)
        assert text_of(tmp_path / task) == text_of(folder)


def test_lightgbm_itself_reads_the_file(saved: Saved) -> None:
    folder, rows, _ = saved["binary"]
    pd.testing.assert_frame_equal(Winner.load(folder).predict(rows), expected(folder, rows), rtol=1e-9)


def test_names_with_any_signs(tmp_path: Path, make_winner: Callable[..., Winner]) -> None:
    """LightGBM refuses such names of features, and splits its text at spaces and lines."""
    generator = np.random.default_rng(0)
    names = ['{"a": [1], "b": 2}', "tree=\nend of trees", "Größe, in µm"]
    frame = pd.DataFrame(generator.normal(size=(90, 3)), columns=names)
    labels = np.array(['["x":', "classes: 0 1", "naïve"])
    frame["goal"] = labels[np.digitize(frame[names[0]], [-0.4, 0.4])]
    before = make_winner(tmp_path, frame, "lightgbm", "classical", target="goal")
    after = Winner.load(tmp_path / "run" / "winner")
    pd.testing.assert_frame_equal(after.predict(frame), before.predict(frame), check_exact=True)
    assert (after.predict(frame)["prediction"] == frame["goal"]).mean() > 0.8
    assert set(after.predict_proba(frame).columns) == set(labels)
    assert all(name not in text_of(tmp_path / "run" / "winner") for name in names)


def test_trees_are_more_than_one_leaf(saved: Saved) -> None:
    """Else nothing above would tell a tree from a constant."""
    for folder, *_ in saved.values():
        assert max(int(count) for count in re.findall(r"num_leaves=(\d+)", text_of(folder))) > 2


@pytest.mark.parametrize("classes", [0, 1, 2, 3])
def test_texts_of_models_that_met_few_classes(classes: int) -> None:
    generator = np.random.default_rng(classes)
    x = generator.normal(size=(80, 3))
    models: list[Any] = []
    for _ in range(2):
        y = np.digitize(x[:, 0] + 0.1 * generator.normal(size=80), [-0.4, 0.4]) % max(1, classes)
        parameters = {"min_data_in_leaf": 2, "num_leaves": 6}
        if classes:
            models.append(LightGBMClassifierTrees(parameters, 7).fit(x, 2 * y))  # odd ones were never met
        else:
            models.append(LightGBMRegressorTrees(parameters, 7).fit(x, x[:, 0] - x[:, 1] ** 2))
    text = text_of_trees(models)
    again = models_of_trees(text.encode(), 3, 2 * classes)
    assert text_of_trees(again) == text
    for before, after in zip(models, again, strict=True):
        np.testing.assert_array_equal(after.predict(x), before.predict(x))
        if classes:
            assert after.classes_.tolist() == list(range(0, 2 * classes, 2))
            np.testing.assert_array_equal(after.predict_proba(x), before.predict_proba(x))


# ---- changed texts


def replaced(field: str, change: Callable[[list[str]], list[str]], place: int = 0) -> Callable[[str], str]:
    """Another line ``field=...``, the place-th of them; sizes of trees are put right."""

    def make(text: str) -> str:
        lines = text.split("\n")
        at = [i for i, line in enumerate(lines) if line.startswith(f"{field}=")][place]
        lines[at] = f"{field}=" + " ".join(change(lines[at].partition("=")[2].split(" ")))
        return sized("\n".join(lines))

    return make


def sized(text: str) -> str:
    blocks = re.findall(r"Tree=.*?\n\n\n", text, flags=re.DOTALL)
    return re.sub("tree_sizes=.*", "tree_sizes=" + " ".join(str(len(block)) for block in blocks), text)


def first(value: str) -> Callable[[list[str]], list[str]]:
    return lambda words: [value, *words[1:]]


CHANGES = {
    "a column that is not there": (replaced("split_feature", first("99")), "nodes that ask for one of"),
    "a column below 0": (replaced("split_feature", first("-1")), "nodes that ask for one of"),
    "a node beyond the last": (replaced("left_child", first("70000")), "nodes that lead to later ones"),
    "a node that leads to itself": (replaced("left_child", first("0")), "nodes that lead to later ones"),
    "a leaf beyond the last": (replaced("right_child", first("-70000")), "nodes that lead to later ones"),
    "leaves that are not there": (replaced("num_leaves", first("900000")), "numbers"),
    "fewer values": (replaced("leaf_value", lambda words: words[1:]), "numbers"),
    "no number": (replaced("leaf_value", first("nan")), "numbers"),
    "no finite number": (replaced("threshold", first("1e+999")), "finite numbers"),
    "a cut of categories": (replaced("decision_type", first("1")), "cuts of numbers"),
    "categories": (replaced("num_cat", first("1")), "cuts of numbers"),
    "linear leaves": (replaced("is_linear", first("1")), "constant leaves"),
    "another objective": (replaced("objective", lambda _: ["poisson"]), "as they are written here"),
    "another size": (lambda text: text.replace("tree_sizes=", "tree_sizes=1"), "as they are written here"),
    "more columns": (replaced("max_feature_idx", first("9")), "as they are written here"),
    "a further field": (
        lambda text: text.replace("shrinkage=", "cat_boundaries=0\nshrinkage=", 1),
        "as they are written",
    ),
    "a field twice": (lambda text: text.replace("num_cat=0", "num_cat=7\nnum_cat=0", 1), "as they are written here"),
    "a missing field": (lambda text: text.replace("num_cat=0\n", "", 1), "the fields"),
    "a class beyond the last": (lambda text: text.replace("classes: 0 1", "classes: 0 7"), "classes below 2"),
    "classes in another order": (lambda text: text.replace("classes: 0 1", "classes: 1 0"), "classes in order"),
    "no classes": (lambda text: text.replace("classes: 0 1", "classes: none"), "classes below 2"),
    "no end": (lambda text: text.partition("end of trees")[0], "the classes under each model"),
    "nothing": (lambda text: "", "the classes under each model"),
    "two models": (lambda text: text * 2, "expected 1 learners, got 2"),
    "signs of no alphabet": (lambda text: text + "\u00e9", "damaged: expected plain text"),
    "something behind": (lambda text: text + "parameters:\n", "the classes under each model"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_text_that_leads_astray_is_refused(saved: Saved, tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    folder = saved["binary"][0]
    text = change(text_of(folder))
    assert text != text_of(folder)
    with pytest.raises(InputError, match=said) as caught:
        Winner.load(put(folder, tmp_path / "changed", text))
    assert "\n" not in str(caught.value)


def test_trees_that_lead_right_are_taken(saved: Saved, tmp_path: Path) -> None:
    """The changes above are refused for what they change, not for being changes."""
    folder, rows, before = saved["binary"]
    text = replaced("leaf_value", first("0.25"))(text_of(folder))
    winner = Winner.load(put(folder, tmp_path / "changed", text))
    assert not winner.predict(rows).equals(before.predict(rows))


FACTS: list[tuple[dict[str, Any], str]] = [
    ({"rounds": []}, "rounds"),
    ({"rounds": [0]}, "rounds"),
    ({"rounds": [3, 3]}, "rounds"),
    ({"hyper": {"rate": 0.05}}, "hyper"),
    ({"learner": "boosting"}, "winner.skops"),
    ({"learner": "os"}, "learner"),
]


@pytest.mark.parametrize(("fields", "said"), FACTS)
def test_facts_that_do_not_fit_are_refused(saved: Saved, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    folder = saved["binary"][0]
    with pytest.raises(InputError, match=re.escape(said)):
        Winner.load(put(folder, tmp_path / "changed", text_of(folder), **fields))


def test_random_changes_are_refused_or_right(
    saved: Saved, tmp_path: Path, right_or_refused: Callable[..., str]
) -> None:
    folder, rows, _ = saved["binary"]
    text, said = text_of(folder), []
    for number in range(90):
        rng = random.Random(number)
        if number % 3 == 0:
            place = rng.randrange(len(text))
            changed = text[:place] + rng.choice("0123456789-.e =\nT") + text[place + 1 :]
        elif number % 3 == 1:
            lines = text.split("\n")
            a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[a], lines[b] = lines[b], lines[a]
            changed = "\n".join(lines)
        else:
            field = rng.choice(["threshold", "leaf_value", "left_child", "right_child", "split_feature"])
            value = rng.choice(["0", "1", "-1", "0.5", "1e300", "nan", "3", "-3", "1e5", ""])
            place = rng.randrange(text.count(f"\n{field}="))
            changed = replaced(field, first(value), place)(text)
        said.append(
            right_or_refused(put(folder, tmp_path / "changed", changed), rows, expected, obj=f"change {number}")
        )
    assert min(said.count("refused"), said.count("right")) > 10


def test_without_lightgbm_the_error_names_the_extra(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **options: Any) -> Any:
        if name == "lightgbm":
            raise ImportError("No module named 'lightgbm'")
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        InputError, match=r"^this saved winner is LightGBM's: .* extra trees: pip install 'steepest\[trees\]'$"
    ):
        Winner.load(saved["binary"][0])
