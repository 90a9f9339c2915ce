"""A winner's folder from anywhere: whatever was changed in it is refused in one line, or predicts right."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from steepest.comparison import InputError, Winner
from steepest.comparison.cells import CellResult
from steepest.comparison.metrics import Outcome
from steepest.comparison.objectives import known_objectives
from steepest.comparison.preparing import prepare
from steepest.comparison.store import Store
from steepest.comparison.winner import fit_winner
from steepest.core.objective import TaskInfo
from steepest.nn.convnet import small_resnet

Command = Callable[..., tuple[int, str, str]]
CANARY = "steepest_canary"
"""A module that no test may import: a file names it."""


def make_winner(folder: Path, data: Any, objective: str, **options: Any) -> Winner:
    """A winner as a comparison saves it, trained for one epoch; inner validation is made up."""
    context, _ = prepare(
        data, objectives=objective, classical=False, repeats=1, folds=2, trials=1, epochs=1, batch_size=16, **options
    )
    store = Store(folder / "run")
    for pair in context.folds:
        values = {"inner": [0.5]}
        for name in context.settings.objectives:
            store.add([CellResult("objective", name, *pair, values | {"inner": [float(name == objective)]}, EMPTY)])
    winner = fit_winner(context, store)
    store.close()
    winner.save(folder / "run" / "winner")
    return winner


EMPTY = Outcome(np.zeros(1))


def table(kind: str) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(48, 2))
    frame = pd.DataFrame({"size": x[:, 0], "weight": x[:, 1], "colour": np.where(x[:, 0] > 0.3, "red", "blue")})
    frame.loc[[3, 9], "colour"] = None
    frame.loc[[5], "weight"] = np.nan
    code = np.arange(48) % (2 if kind in ("binary", "index") else 3)
    frame["goal"] = np.array(["no", "yes", "so"])[code] if kind != "regression" else 5 + 3 * x[:, 0]
    if kind == "multitask":
        frame["other"] = 100 * x[:, 1]
    return frame


KINDS = ("binary", "multiclass", "regression", "multitask", "images", "index")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """For each kind the folder of a winner and rows to predict."""
    home = tmp_path_factory.mktemp("winners")
    made: dict[str, tuple[Path, Any]] = {}
    for kind in KINDS:
        folder = home / kind
        if kind == "images":
            pixels = np.random.default_rng(1).integers(0, 256, (24, 6, 6, 1), dtype=np.uint8)
            folder.mkdir()
            np.savez(folder / "images.npz", x=pixels, y=np.arange(24) % 2)
            make_winner(folder, str(folder / "images.npz"), "squentropy", task="auto")
            made[kind] = folder / "run" / "winner", pixels[:8]
            continue
        objective = {"regression": "huber", "multitask": "squared_error", "index": "ps_kd"}.get(kind, "comp_sum")
        target = ["goal", "other"] if kind == "multitask" else "goal"
        frame = table(kind)
        make_winner(folder, frame, objective, target=target)
        made[kind] = folder / "run" / "winner", frame.iloc[:12]
    return made


# ---- what a winner must say, written anew from its files


def expected(folder: Path, rows: Any) -> pd.DataFrame:
    """The prediction, from ``winner.json`` and its tensors alone."""
    facts = json.loads((folder / "winner.json").read_text())
    state = load((folder / "winner.safetensors").read_bytes())
    prepared, info = facts["preprocessing"], facts["info"]
    if "std" in prepared:
        values = ((rows / 255 - np.array(prepared["mean"])) / np.array(prepared["std"])).transpose(0, 3, 1, 2)
        backbone: nn.Module = small_resnet(len(prepared["mean"]))
    else:
        values = matrix(prepared, rows)
        backbone = nn.Sequential(nn.Linear(values.shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    with torch.no_grad():
        features = backbone(torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32))
        outputs = [
            nn.functional.linear(features, state[name], state[name.removesuffix("weight") + "bias"])
            for name in sorted(state)
            if name.startswith("head.") and name.endswith("weight")
        ]
        return said(facts, torch.cat(outputs, 1), TaskInfo(**{**info, "class_counts": tuple(info["class_counts"])}))


def matrix(prepared: dict[str, Any], rows: pd.DataFrame) -> np.ndarray:
    columns = []
    for one in prepared["numeric"]:
        column = rows[one["column"]].to_numpy(dtype=float)
        columns.append((np.where(np.isnan(column), one["median"], column) - one["mean"]) / one["scale"])
    columns += [rows[one["column"]].isna().to_numpy() for one in prepared["numeric"] if one["indicator"]]
    for one in prepared["text"]:
        column = rows[one["column"]]
        columns += [(column.isna() if known is None else column == known).to_numpy() for known in one["categories"]]
    return np.stack(columns, 1).astype(float)


def said(facts: dict[str, Any], outputs: torch.Tensor, info: TaskInfo) -> pd.DataFrame:
    if facts["parts"]:
        first, second = facts["parts"]
        labels = np.array(first["classes"])[outputs[:, :3].argmax(1).numpy()]
        mean, deviation = (each[1] for each in facts["scale"])
        numbers = outputs[:, 3].numpy().astype(np.float64) * deviation + mean
        return pd.DataFrame({first["name"]: labels, second["name"]: numbers})
    if not facts["classes"]:
        mean, deviation = facts["scale"]
        return pd.DataFrame({"prediction": outputs[:, 0].numpy().astype(np.float64) * deviation + mean})
    objective = known_objectives()[facts["objective"]][0].from_task(info, **facts["hyper"]).eval()
    with torch.no_grad():
        codes, p = objective.predict(outputs).numpy(), objective.probabilities(outputs)
        if facts["threshold"] is not None:
            codes = (objective.decision(outputs).double().numpy() > facts["threshold"]).astype(int)
    found = pd.DataFrame({"prediction": np.array(facts["classes"])[codes]})
    if p is not None:
        logs = np.log(np.clip(p.double().numpy(), np.finfo(np.float32).tiny, None)) / (facts["temperature"] or 1.0)
        cooled = np.exp(logs - logs.max(1, keepdims=True))
        for label, column in zip(facts["classes"], (cooled / cooled.sum(1, keepdims=True)).T):
            found[f"p_{label}"] = column
    return found


# ---- changes

NASTY = [
    None, True, False, "", "x", "1", "0.5", -1, 0, 1, 2, 3, 99, 10**12, -(10**18), 10**400, 1e308, -1e-308, 1e-320,
    math.nan, math.inf, [], {}, [[]], ["a"], [0.0], {"a": 1}, "os:system", f"{CANARY}:net", "\ud800", "a\nb",
]  # fmt: skip


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree, as its holder and its key there."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from places(tree[key])


def change_facts(facts: dict[str, Any], rng: random.Random) -> None:
    """One change of a random kind at a random place."""
    holder, key = rng.choice(list(places(facts)))
    kind = rng.randrange(9)
    if kind == 0:
        del holder[key]
    elif kind <= 3:
        holder[key] = copy.deepcopy(rng.choice(NASTY))
    elif kind == 4 and isinstance(holder[key], (int, float)):
        holder[key] = rng.choice([holder[key] * 1.5, str(holder[key]), [holder[key]], -holder[key], holder[key] + 1])
    elif kind == 5:
        holder[key] = {"x": holder[key]}
    elif kind == 6 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 7 and isinstance(holder, dict):
        holder[rng.choice(["more", "Format", key + "_"])] = holder[key]
    else:
        other, place = rng.choice(list(places(facts)))
        other[place] = copy.deepcopy(holder[key])


def change_together(facts: dict[str, Any], rng: random.Random) -> None:
    """Several fields at once, so that each agrees with the next."""
    info = facts["info"]
    kind = rng.randrange(9)
    if kind == 0:
        facts["classes"].append("new")
        info["num_classes"] += 1
        info["class_counts"].append(1)
    elif kind == 1:
        facts.update(model="os:system", width=f"touch {CANARY}")
    elif kind == 2:
        facts["objective"], facts["hyper"] = rng.choice(sorted(known_objectives())), {}
    elif kind == 3:
        info["num_samples"] = 10**12
        if info["class_counts"]:
            info["class_counts"] = [10**12 // len(info["class_counts"]) + 1] * len(info["class_counts"])
    elif kind == 4 and "numeric" in facts["preprocessing"]:
        gone = facts["preprocessing"]["numeric"].pop(0)
        facts["numeric"].remove(gone["column"])
        facts["columns"].remove(gone["column"])
        facts["width"] -= 1
    elif kind == 5:
        facts["format"] = rng.choice([0, 2, 99, "1", 1.0, None, True])
    elif kind == 6:
        facts["columns"].reverse()
    elif kind == 7 and facts["classes"]:
        facts["classes"].reverse()
    else:
        facts["model"] = rng.choice(["mlp", "residual", "resnet", f"{CANARY}:net", "mlp ", "no.such:thing"])


def change_tensors(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(9)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        place = rng.randrange(min(len(data), 600))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 2:
        return bytes(rng.randrange(256) for _ in range(64))
    state = load(data)
    name = rng.choice(sorted(state))
    tensor = state[name]
    if kind == 3:
        del state[name]
    elif kind == 4:
        state["more"] = torch.zeros(3)
    elif kind == 5:
        state[name] = tensor.to(rng.choice([torch.float16, torch.float64, torch.int64]))
    elif kind == 6:
        state[name] = tensor.reshape(1, *tensor.shape) if rng.random() < 0.5 else tensor.flatten()[1:]
    elif kind == 7 and tensor.is_floating_point():
        flat = tensor.clone().reshape(-1)
        flat[rng.randrange(len(flat))] = rng.choice([math.nan, math.inf, -math.inf])
        state[name] = flat.reshape(tensor.shape)
    else:
        state[name] = tensor * 2 if tensor.is_floating_point() else tensor
    return save(state)


def change(source: Path, folder: Path, rng: random.Random) -> None:
    """A copy of a winner with one to three changes; the hash of the tensors mostly fits, so that more is tried."""
    facts, data = json.loads((source / "winner.json").read_text()), (source / "winner.safetensors").read_bytes()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        draw = rng.random()
        if draw < 0.25:
            data = change_tensors(data, rng)
            if rng.random() < 0.8:
                facts["weights"] = hashlib.sha256(data).hexdigest()
        elif not any(key not in facts for key in ("info", "preprocessing")):
            try:
                (change_together if draw < 0.45 else change_facts)(facts, rng)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # an earlier change is in its way
                continue
    text = json.dumps(facts)
    if rng.random() < 0.05:
        text = rng.choice([text[: rng.randrange(len(text))], "[" * 5000, "\x00" + text, '{"format": 1, "format": 1}', "[]"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "winner.json").write_text(text, encoding="utf-8")
    (folder / "winner.safetensors").write_bytes(data)


def outcome_of_change(saved: dict[str, tuple[Path, Any]], number: int, folder: Path) -> str:
    """``"refused"`` or ``"right"``; anything else fails."""
    source, rows = saved[KINDS[number % len(KINDS)]]
    change(source, folder, random.Random(number))
    try:
        found = Winner.load(folder).predict(rows)
    except InputError as error:
        assert "\n" not in str(error)
        return "refused"
    right = expected(folder, rows)
    assert found.columns.tolist() == right.columns.tolist(), number
    pd.testing.assert_frame_equal(found, right, check_dtype=False, rtol=1e-4, atol=1e-6, obj=f"change {number}")
    return "right"


def counts_of_changes(saved: dict[str, tuple[Path, Any]], numbers: range, folder: Path) -> dict[str, int]:
    said = [outcome_of_change(saved, number, folder / "changed") for number in numbers]
    assert CANARY not in sys.modules
    assert not Path(CANARY).exists()
    return {word: said.count(word) for word in ("refused", "right")}


def test_unchanged_winners_predict_what_their_files_say(saved: dict[str, tuple[Path, Any]]) -> None:
    for source, rows in saved.values():
        found = Winner.load(source).predict(rows)
        pd.testing.assert_frame_equal(found, expected(source, rows), check_dtype=False, rtol=1e-4, atol=1e-6)


def test_changed_winners_are_refused_or_right(
    saved: dict[str, tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = counts_of_changes(saved, range(200), tmp_path)
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
def test_two_thousand_changed_winners_are_refused_or_right(
    saved: dict[str, tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = counts_of_changes(saved, range(2000), tmp_path)
    print(f"\n2,000 changed winners: {counts}")
    assert min(counts.values()) > 0, counts
