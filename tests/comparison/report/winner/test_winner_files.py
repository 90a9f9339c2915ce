"""A winner's folder from anywhere: whatever was changed in it is refused in one line, or predicts right."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import resource
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from steepest.comparison import InputError, Winner
from steepest.comparison.design.objectives import known_objectives
from steepest.comparison.read.images import load_images
from steepest.core.objective import TaskInfo
from steepest.nn.convnet import small_resnet

Command = Callable[..., tuple[int, str, str]]
Change = Callable[..., None]
Judge = Callable[..., str]
Saved = dict[str, tuple[Path, Any]]
CANARY = "steepest_canary"
"""A module that no test may import: a file names it."""


KINDS = ("binary", "multiclass", "regression", "multitask", "images", "index", "scores", "members")


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory, make_winner: Callable[..., Winner], table: Callable[[str], pd.DataFrame]
) -> Saved:
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
        names = {"regression": "huber", "multitask": "squared_error", "index": "ps_kd", "scores": "squared_error"}
        objective = names.get(kind, "comp_sum")
        target = ["goal", "other"] if kind == "multitask" else "goal"
        frame = table("binary" if kind == "members" else kind)
        make_winner(folder, frame, objective, target=target, model="tabm" if kind == "members" else "plain")
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
        if facts["model"] == "tabm":
            return said_by_members(facts, {k: t.double().numpy() for k, t in state.items()}, values)
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


def said_by_members(facts: dict[str, Any], state: dict[str, np.ndarray], values: np.ndarray) -> pd.DataFrame:
    """The prediction of TabM-mini with 16 members, column by column and member by member."""
    parts = []
    for place, (column, edges) in enumerate(zip(facts["bins"]["numeric"], facts["bins"]["edges"])):
        x = values[:, column : column + 1]
        parts.append(x * state["backbone.embed.weight"][place] + state["backbone.embed.bias"][place])
        for t, (low, high) in enumerate(pairwise(edges)):
            share = (x - low) / (high - low)
            share = share if t == 0 else np.maximum(share, 0.0)
            share = share if t == len(edges) - 2 else np.minimum(share, 1.0)
            parts[-1] = parts[-1] + share * state["backbone.embed.bends"][place, t]
    parts.append(np.delete(values, facts["bins"]["numeric"], 1))
    probabilities = []
    for m in range(16):
        h = np.concatenate(parts, 1) * state["backbone.scale"][m]
        for layer in range(2):
            prefix = f"backbone.layers.{layer}.0."
            h = np.maximum(h @ state[prefix + "weight"].T + state[prefix + "bias"], 0.0)
        scores = h @ state["head.weight"][m].T + state["head.bias"][m]
        probabilities.append(torch.as_tensor(scores).softmax(1))
    outputs = torch.stack(probabilities).mean(0).log()
    info = {**facts["info"], "class_counts": tuple(facts["info"]["class_counts"])}
    return said(facts, outputs, TaskInfo(**info))


def matrix(prepared: dict[str, Any], rows: pd.DataFrame) -> np.ndarray:
    columns = []
    for one in prepared["numeric"]:
        column = rows[one["column"]].to_numpy(dtype=float)
        columns.append((np.where(np.isnan(column), one["median"], column) - one["mean"]) / one["scale"])
    columns += [rows[one["column"]].isna().to_numpy() for one in prepared["numeric"] if one["indicator"]]
    for one in prepared["categories"]:
        column = rows[one["column"]].where(~rows[one["column"]].isin(prepared["missing"]))
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
    if facts["calibration"] is not None:
        slope, offset = facts["calibration"]["slope"][0], facts["calibration"]["offset"][0]
        positive = 1 / (1 + np.exp(-slope * objective.decision(outputs).double().numpy() - offset))
        for label, column in zip(facts["classes"], (1 - positive, positive)):
            found[f"p_{label}"] = column
    elif p is not None:
        logs = np.log(np.clip(p.double().numpy(), np.finfo(np.float32).tiny, None)) / (facts["temperature"] or 1.0)
        cooled = np.exp(logs - logs.max(1, keepdims=True))
        for label, column in zip(facts["classes"], (cooled / cooled.sum(1, keepdims=True)).T):
            found[f"p_{label}"] = column
    return found


# ---- changes


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
        facts["preprocessing"]["columns"] = [
            c for c in facts["preprocessing"]["columns"] if c["name"] != gone["column"]
        ]
        facts["numeric"].remove(gone["column"])
        facts["columns"].remove(gone["column"])
        facts["width"] -= 1
    elif kind == 5:
        facts["format"] = rng.choice([0, 4, 5, 99, "1", 1.0, None, True])
    elif kind == 6:
        facts["columns"].reverse()
    elif kind == 7 and facts["classes"]:
        facts["classes"].reverse()
    else:
        facts["model"] = rng.choice(["plain", "mlp", "residual", "resnet", f"{CANARY}:net", "mlp ", "no.such:thing"])


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


def change_winner(source: Path, folder: Path, rng: random.Random, change: Change) -> None:
    """A copy of a winner with one to three changes; the hash of the tensors mostly fits, so that more is tried."""
    facts, data = json.loads((source / "winner.json").read_text()), (source / "winner.safetensors").read_bytes()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        draw = rng.random()
        try:
            if draw < 0.25:
                data = change_tensors(data, rng)
                if rng.random() < 0.8:
                    facts["weights"] = hashlib.sha256(data).hexdigest()
            else:
                (change_together if draw < 0.45 else change)(facts, rng)
        except (AttributeError, LookupError, TypeError, ValueError, SafetensorError):  # an earlier change is in its way
            continue
    text = json.dumps(facts)
    if rng.random() < 0.05:
        text = rng.choice(
            [text[: rng.randrange(len(text))], "[" * 5000, "\x00" + text, '{"format": 1, "format": 1}', "[]"]
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "winner.json").write_text(text, encoding="utf-8")
    (folder / "winner.safetensors").write_bytes(data)


def counts_of_changes(
    saved: Saved, numbers: range, folder: Path, change: Change, right_or_refused: Judge
) -> dict[str, int]:
    said = []
    for number in numbers:
        source, rows = saved[KINDS[number % len(KINDS)]]
        change_winner(source, folder / "changed", random.Random(number), change)
        how = {"rtol": 1e-4, "atol": 1e-6, "obj": f"change {number}"}
        said.append(right_or_refused(folder / "changed", rows, expected, **how))
    assert CANARY not in sys.modules
    assert not Path(CANARY).exists()
    return {word: said.count(word) for word in ("refused", "right")}


def test_unchanged_winners_predict_what_their_files_say(saved: Saved) -> None:
    for source, rows in saved.values():
        found = Winner.load(source).predict(rows)
        pd.testing.assert_frame_equal(found, expected(source, rows), check_dtype=False, rtol=1e-4, atol=1e-6)


def test_changed_winners_are_refused_or_right(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, right_or_refused: Judge
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = counts_of_changes(saved, range(200), tmp_path, change, right_or_refused)
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
def test_two_thousand_changed_winners_are_refused_or_right(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, right_or_refused: Judge
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = counts_of_changes(saved, range(2000), tmp_path, change, right_or_refused)
    print(f"\n2,000 changed winners: {counts}")
    assert min(counts.values()) > 0, counts


# ---- single changes


def changed(saved: Saved, kind: str, folder: Path, **fields: Any) -> Path:
    """A copy of a winner with other fields."""
    shutil.copytree(saved[kind][0], folder)
    facts = json.loads((folder / "winner.json").read_text()) | fields
    (folder / "winner.json").write_text(json.dumps(facts))
    return folder


def test_winner_json_runs_no_shell_command(saved: Saved, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for number, (model, width) in enumerate([("os:system", f"touch {mark}"), ("os:system", 4), ("os:mkdir", 7)]):
        folder = changed(saved, "binary", tmp_path / f"w{number}", model=model, width=width)
        with pytest.raises(InputError):
            Winner.load(folder)
        with pytest.raises(InputError):
            Winner.load(folder, trust=True)
    assert not mark.exists()


def test_a_winner_without_columns_is_refused(saved: Saved, tmp_path: Path) -> None:
    folder = changed(saved, "binary", tmp_path / "w")
    facts = json.loads((folder / "winner.json").read_text())
    del facts["columns"]
    (folder / "winner.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"^winner.json: the field 'columns' is missing$"):
        Winner.load(folder)


@pytest.mark.parametrize("number", [99, 2, 1, 0, "3", 3.0, True, None])
def test_a_winner_of_another_format_is_refused(saved: Saved, tmp_path: Path, number: object) -> None:
    with pytest.raises(InputError, match=r"^winner.json: format: .* format 5, got .*; the same compare fits"):
        Winner.load(changed(saved, "binary", tmp_path / "w", format=number))


@pytest.mark.parametrize("scale", [None, 0.0, -1.0, "1.0", 1e300])
def test_a_winner_with_a_scale_that_is_none_is_refused(saved: Saved, tmp_path: Path, scale: object) -> None:
    folder = changed(saved, "binary", tmp_path / "w")
    facts = json.loads((folder / "winner.json").read_text())
    facts["preprocessing"]["numeric"][0]["scale"] = scale
    (folder / "winner.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"preprocessing.numeric\[0\].scale: expected a number above 0, got"):
        Winner.load(folder)


PART = {"name": "a", "task": "regression", "classes": [], "dtype": "float64"}
DISAGREE: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("binary", lambda f: f["columns"].append("more"), "columns: expected the columns of the preprocessing"),
    ("binary", lambda f: f["columns"].append("size"), "columns: expected the columns of the preprocessing"),
    ("binary", lambda f: f["numeric"].reverse(), "numeric: expected the numeric columns of the preprocessing"),
    ("binary", lambda f: f.update(width=99), "width: expected 6, as the preprocessing gives, got 99"),
    ("images", lambda f: f["columns"].append("a"), "columns: expected the columns of the preprocessing"),
    ("images", lambda f: f["preprocessing"]["std"].append(1.0), "expected a mean and a standard deviation a channel"),
    ("binary", lambda f: f["preprocessing"]["categories"][0]["categories"].reverse(), "a missing one last"),
    ("binary", lambda f: f["preprocessing"]["categories"][0].update(column="size"), "a place for each column of kind"),
    ("multiclass", lambda f: f.update(classes=["no", "no", "yes"]), "classes: expected each class once"),
    ("binary", lambda f: f["classes"].append("new"), "classes: expected 2 of them for a binary target"),
    ("multiclass", lambda f: f["classes"].append("new"), "info.num_classes: expected 4, as there are classes, got 3"),
    (
        "binary",
        lambda f: f["parts"].append({"name": "a", "task": "regression", "classes": [], "dtype": "float64"}),
        "parts: expected",
    ),
    ("multitask", lambda f: f["parts"].pop(), "parts: expected the targets of a multitask task"),
    ("multitask", lambda f: f["parts"][0]["classes"].clear(), "parts: expected the classes of a multiclass target"),
    ("multitask", lambda f: f["parts"][1].update(name="goal"), "parts: expected each name once"),
    ("binary", lambda f: f["info"]["class_counts"].append(1), "info.class_counts: expected 2 counts"),
    ("binary", lambda f: f["info"].update(class_counts=[1, 1]), "info.class_counts: expected counts of 48 rows"),
    ("binary", lambda f: f["info"].update(class_counts=[49, 1]), "info.class_counts: expected"),
    (
        "binary",
        lambda f: f["info"].update(steps_per_epoch=49),
        "info.steps_per_epoch: expected no more steps than rows",
    ),
    ("binary", lambda f: f.update(scale=[1.0, 2.0]), "scale: expected 0 and 1 for a binary target"),
    ("regression", lambda f: f.update(scale=[1.0, 0.0]), "scale[1]: expected a number above 0, got 0.0"),
    ("multitask", lambda f: f.update(scale=[0.0, 1.0]), "scale[0]: expected a list, got 0.0"),
    ("multitask", lambda f: f["scale"][1].append(1.0), "scale[1]: expected a list of 2 values"),
    ("multitask", lambda f: f["scale"][0].__setitem__(0, 3.0), "scale: expected 0 and 1 for classes"),
    ("multiclass", lambda f: f.update(threshold=0.5), "threshold: expected none for a multiclass target, got 0.5"),
    ("regression", lambda f: f.update(temperature=1.0), "temperature: expected none for a regression target"),
    ("scores", lambda f: f.update(temperature=1.0, calibration=None), "a calibration, or a reason why there are none"),
    ("binary", lambda f: f.update(no_probabilities="none"), "a calibration, or a reason why there are none"),
    ("scores", lambda f: f["calibration"].update(slope=[-1.0]), "slope[0]: expected a number of at least 1e-09"),
    ("scores", lambda f: f["calibration"].update(offset=[]), "calibration: expected the numbers of 1 scores"),
    ("regression", lambda f: f.update(calibration={"slope": [1.0], "offset": []}), "calibration: expected none for a"),
    ("binary", lambda f: f.update(kind="network"), "kind: expected one of 'objective', 'classical'"),
    ("binary", lambda f: f.update(temperature=0.01), "temperature: expected a number of at least 0.05 and at most 20"),
    (
        "binary",
        lambda f: f.update(hyper={"reduction": "sum"}),
        "hyper: expected the hyper-parameters of comp_sum (tau)",
    ),
    (
        "binary",
        lambda f: f.update(hyper={"tau": 99.0}),
        "hyper['tau']: expected a number of at least 0.5 and at most 2",
    ),
    ("binary", lambda f: f.update(objective="harmonic", hyper={"n": 2.0, "distance": "far"}), "expected one of"),
    ("binary", lambda f: f.update(objective="huber", hyper={}), "objective: expected one for a binary target"),
    ("binary", lambda f: f.update(model="resnet"), "model: expected a network for tables, got 'resnet'"),
    ("images", lambda f: f.update(pixels=[6, 6]), "pixels: expected height, width and 1 channels"),
    ("binary", lambda f: f.update(pixels=[6, 6, 1]), "pixels: expected none for a table"),
    ("images", lambda f: f.update(model="mlp"), "model: expected a network for images, got 'mlp'"),
    ("binary", lambda f: f.update(model="residual"), "winner.safetensors lacks the tensor"),
    ("binary", lambda f: f.update(bins={"numeric": [], "edges": []}), "bins: expected none for plain"),
    ("binary", lambda f: f.update(model="tabm"), "bins: expected those of tabm"),
    ("members", lambda f: f["bins"]["numeric"].append(99), "bins: expected distinct columns in 0.."),
    ("members", lambda f: f["bins"]["numeric"].append(f["bins"]["numeric"][0]), "bins: expected distinct columns"),
    ("members", lambda f: f["bins"]["edges"].pop(), "bins: expected at most 48 bins for each of"),
    ("members", lambda f: f["bins"]["edges"].__setitem__(0, list(range(99))), "bins: expected at most 48 bins"),
    ("members", lambda f: f["bins"]["edges"][0].reverse(), "bins: expected edges that rise"),
    ("members", lambda f: f["bins"]["edges"][0].__setitem__(0, "1.0"), "bins.edges[0][0]: expected a finite number"),
    ("members", lambda f: f.update(model="plain"), "bins: expected none for plain"),
    ("binary", lambda f: f["info"].update(feature_dim=64), "is float32 [2, 128], expected float32 [2, 64]"),
]


@pytest.mark.parametrize(("kind", "alter", "said"), DISAGREE)
def test_what_does_not_agree_is_refused(
    saved: Saved, tmp_path: Path, kind: str, alter: Callable[[dict[str, Any]], object], said: str
) -> None:
    folder = changed(saved, kind, tmp_path / "w")
    facts = json.loads((folder / "winner.json").read_text())
    alter(facts)
    (folder / "winner.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=re.escape(said)):
        Winner.load(folder)


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda t: t.half(), "is float16 [2, 128], expected float32 [2, 128]"),
        (lambda t: t.double(), "is float64 [2, 128], expected float32 [2, 128]"),
        (lambda t: t.T.contiguous(), "is float32 [128, 2], expected float32 [2, 128]"),
        (lambda t: t * math.nan, "'head.weight' holds values that are not finite"),
    ],
)
def test_tensors_of_another_kind_are_refused(
    saved: Saved, tmp_path: Path, alter: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    state = load((saved["binary"][0] / "winner.safetensors").read_bytes())
    data = save({**state, "head.weight": alter(state["head.weight"])})
    folder = changed(saved, "binary", tmp_path / "w", weights=hashlib.sha256(data).hexdigest())
    (folder / "winner.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=re.escape(said)):
        Winner.load(folder)


def test_sizes_in_a_file_take_no_memory(saved: Saved, tmp_path: Path) -> None:
    """An objective that remembers each of 2e9 rows would take 16 GB; no more than the tensors themselves is taken."""
    rows = 2 * 10**9
    info = json.loads((saved["index"][0] / "winner.json").read_text())["info"]
    info |= {"num_samples": rows, "class_counts": [rows // 2] * 2}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"is not whole: a tensor of .* elements, and there can be 1,000,000 at most"):
        Winner.load(changed(saved, "index", tmp_path / "rows", info=info))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < rows


def test_tensors_of_another_winner_are_refused(saved: Saved, tmp_path: Path) -> None:
    """As after a crash between the two files."""
    folder = changed(saved, "binary", tmp_path / "w")
    state = load((folder / "winner.safetensors").read_bytes())
    (folder / "winner.safetensors").write_bytes(save({name: 2 * tensor for name, tensor in state.items()}))
    with pytest.raises(InputError, match=r"winner.safetensors is not the file of its winner.json"):
        Winner.load(folder)


def test_a_row_without_a_finite_prediction_is_refused(saved: Saved) -> None:
    source, rows = saved["regression"]
    far = rows.copy()
    far.iloc[2, far.columns.get_loc("size")] = 1e100
    with pytest.raises(InputError, match=r"^row 3: the winner gives no finite number"):
        Winner.load(source).predict(far)


# ---- own parts, and folders elsewhere


@pytest.fixture(scope="module")
def own_winner(
    own: str,
    tmp_path_factory: pytest.TempPathFactory,
    make_winner: Callable[..., Winner],
    table: Callable[[str], pd.DataFrame],
) -> Path:
    """The folder of a run whose network is a user's own."""
    folder = tmp_path_factory.mktemp("own-winner")
    make_winner(folder, table("binary"), "comp_sum", target="goal", model=f"{own}:small")
    return folder / "run"


def test_own_code_is_imported_with_trust_alone(
    own_winner: Path, own: str, table: Callable[[str], pd.DataFrame]
) -> None:
    rows = table("binary").iloc[:9]
    for trust in (False, set(), {"os:system"}):
        with pytest.raises(InputError, match=rf"model '{own}:small' is not built in.*--trust \(in Python trust=True\)"):
            Winner.load(own_winner, trust=trust)
    first, second = (Winner.load(own_winner, trust=trust).predict(rows) for trust in (True, {f"{own}:small"}))
    pd.testing.assert_frame_equal(first, second)


def test_the_command_predicts_with_own_code_after_trust(
    own_winner: Path, own: str, command: Command, tmp_path: Path, table: Callable[[str], pd.DataFrame]
) -> None:
    table("binary").drop(columns="goal").to_csv(tmp_path / "new.csv", index=False)
    code, out, err = command("predict", own_winner, "new.csv")
    assert (code, out) == (2, "")
    assert err.startswith(f"steepest: error: model '{own}:small' is not built in")
    assert err.count("\n") == 1
    code, out, err = command("predict", own_winner, "new.csv", "--trust")
    assert (code, err) == (0, "")
    assert out.count("\n") == 49


def test_what_the_call_names_is_trusted_and_nothing_else(
    own: str, command: Command, tmp_path: Path, table: Callable[[str], pd.DataFrame]
) -> None:
    import steepest

    options = {"repeats": 1, "folds": 2, "trials": 1, "epochs": 1, "classical": False, "workers": 1, "quiet": True}
    frame = table("binary")
    for _ in range(2):  # the second time the same call goes on with what it finds
        found = steepest.compare(
            frame, target="goal", objectives=f"{own}:Plain", model=f"{own}:small", out=tmp_path / "runs", **options
        )
        assert len(found.predict(frame)) == 48
    assert "trust=True)" in found.results["usage"]
    assert found.report.is_file()
    assert command("report", found.folder)[0] == 0, "the report needs no import"
    facts = found.folder / "winner" / "winner.json"
    facts.write_text(facts.read_text().replace(f"{own}:small", f"{CANARY}:net"))
    with pytest.raises(InputError, match=f"model '{CANARY}:net' is not built in"):
        type(found)(found.results, found.folder, found.trust).predict(frame)
    again = steepest.compare(
        frame, target="goal", objectives=f"{own}:Plain", model=f"{own}:small", out=tmp_path / "runs", **options
    )
    assert again.winner.facts["model"] == f"{own}:small", "what cannot be this run's winner is fitted again"
    assert CANARY not in sys.modules


def test_images_of_another_size_are_resized_from_files_and_refused_as_arrays(
    make_winner: Callable[..., Winner], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 6, 6, 1), dtype=np.uint8)
    file = str(tmp_path / "images.npz")
    np.savez(file, x=pixels, y=np.arange(24) % 2)
    winner = make_winner(tmp_path, file, "squentropy", size=5)
    small = load_images(file, split="pool", size=5)[0].pixels
    pd.testing.assert_frame_equal(winner.predict_file(file), winner.predict(small))
    with pytest.raises(InputError, match=r"^expected images of 5 x 5 x 1, as they were compared, got 6 x 6 x 1$"):
        Winner.load(tmp_path / "run").predict(pixels)


def test_folders_work_wherever_they_are_copied(saved: Saved, command: Command, tmp_path: Path) -> None:
    source, rows = saved["binary"]
    rows.drop(columns="goal").to_csv(tmp_path / "new.csv", index=False)
    shutil.copytree(source, tmp_path / "alone")
    (tmp_path / "a b").mkdir()
    shutil.copytree(source.parent, tmp_path / "a b" / "whole run")
    (tmp_path / "part" / "run").mkdir(parents=True)
    shutil.copytree(source, tmp_path / "part" / "run" / "winner")
    expected_text = Winner.load(source).predict_file(tmp_path / "new.csv").to_csv(index=False)
    for folder in ("alone", "a b/whole run", "a b/whole run/winner", "part/run", source, source.parent):
        code, out, err = command("predict", folder, "new.csv")
        assert (code, out, err) == (0, expected_text, "")
        assert Winner.load(tmp_path / folder).predict_file(tmp_path / "new.csv").to_csv(index=False) == expected_text


def test_garbage_is_refused_in_one_line(saved: Saved, command: Command, tmp_path: Path) -> None:
    saved["binary"][1].to_csv(tmp_path / "new.csv", index=False)
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "winner.json").write_bytes(bytes(range(256)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_text("x")
    changed(saved, "binary", tmp_path / "model", model="os:system")
    for name in ("garbage", "empty", "a-file", "model", "nowhere", "../.."):
        code, out, err = command("predict", name, "new.csv")
        assert (code, out) == (2, "")
        assert err.startswith("steepest: error: ")
        assert err.count("\n") == 1
    for name in ("garbage", "empty", "a-file"):
        with pytest.raises(InputError, match=r"no saved winner"):
            Winner.load(tmp_path / name)
