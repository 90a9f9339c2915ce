"""Whole comparisons of embeddings: a table, images, own parts, the saved winner, the command."""

from __future__ import annotations

import io
import json
import shutil
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import steepest
from steepest.cli import app
from steepest.comparison import InputError, RetrievalWinner, Winner
from steepest.comparison.api import prepare
from steepest.comparison.asked import check_asked
from steepest.comparison.design.context import Context
from steepest.comparison.design.embeddings import OfClasses, OfEmbeddings, known_embedding_objectives
from steepest.comparison.design.jobs import Job
from steepest.comparison.joining import join
from steepest.comparison.report import report_html
from steepest.comparison.report.stored import check_results
from steepest.comparison.report.winner import retrieval as winners
from steepest.comparison.report.winner.fit import saved_winner
from steepest.comparison.report.winner.retrieval import raw_winner
from steepest.comparison.request import Request
from steepest.comparison.scores.retrieval import ranked
from steepest.comparison.work import training
from steepest.comparison.work.cells import member_of, recipe_of, run_job
from steepest.comparison.work.store import Store
from steepest.comparison.work.timing import time_learner
from steepest.comparison.work.training import several_of_a_class, train
from steepest.core.objective import TaskInfo
from steepest.losses import CrossEntropyLoss, SupConLoss

SMALL = {"task": "retrieval", "epochs": 2, "trials": 1, "repeats": 1, "folds": 2, "workers": 1, "quiet": True}
SMALL |= {"budget": 60, "embedding": 8}
EVIL = "<script>alert(1)</script>"


def people(seed=0, classes=10, rows=8):
    """Rows of classes whose names would end a page, were they not escaped; two columns tell classes apart."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(classes), rows)
    centres = rng.normal(size=(classes, 2)) * 3
    frame = pd.DataFrame(rng.normal(size=(len(codes), 6)), columns=list("abcdef"))
    frame[["a", "b"]] += centres[codes]
    frame["who"] = [f"{EVIL}{code}" for code in codes]
    return frame


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return steepest.compare(people(), target="who", out=tmp_path_factory.mktemp("runs"), objectives="sup_con", **SMALL)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(8), 6)
    x = (np.linspace(20, 220, 8)[y][:, None, None] + rng.normal(0, 8, (48, 8, 8))).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez(path, x_train=x[::2], y_train=y[::2], x_test=x[1::2], y_test=y[1::2])
    return str(path)


@pytest.fixture(scope="module")
def of_pictures(pictures, tmp_path_factory):
    return steepest.compare(pictures, out=tmp_path_factory.mktemp("runs"), objectives="arc_face", **SMALL)


def test_objectives_are_compared_on_classes_that_were_held_out(done):
    results = done.results
    assert {row["name"] for row in results["rows"]} == {
        "selected procedure",
        "cross_entropy",
        "sup_con",
        "raw_inputs",
    }
    assert results["metric"]["name"] == "map_at_r"
    assert results["headline"]["baseline"] == "cross_entropy"
    metrics = {"map_at_r", "r_precision", "recall_at_1", "recall_at_5", "recall_at_10"}
    assert all(set(row["metrics"]) == metrics for row in results["rows"] if row["kind"] != "procedure")
    assert results["protocol"]["outer design"] == "1 x 2 class-disjoint folds"
    assert results["protocol"]["inner validation"] == "2 class-disjoint folds"
    assert results["protocol"]["embedding"] == "8 numbers, compared by cosine"
    recall = results["recall_at"]
    for row in results["rows"]:
        if row["kind"] != "procedure":
            own = recall["rows"][row["name"]]["mean"]
            assert own == sorted(own)
            for k in (1, 5, 10):
                assert own[k - 1] == pytest.approx(row["metrics"][f"recall_at_{k}"]["mean"], abs=1e-6)


def test_the_page_shows_recall_and_nearest_rows(done):
    page = done.report.read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page
    assert 'id="depth"' in page
    assert 'id="nearest"' in page
    nearest = done.results["nearest"]
    assert nearest["images"] == {}
    assert len(nearest["queries"]) == 6
    codes = people()["who"].tolist()
    for query in nearest["queries"]:
        assert codes[query["row"]] == query["label"]
        for side in query["nearest"]:
            assert len({item["row"] for item in side} | {query["row"]}) == 6
            assert all(codes[item["row"]] == item["label"] for item in side)
            assert all(item["right"] == (item["label"] == query["label"]) for item in side)


def test_pictures_stand_in_the_page(of_pictures, pictures):
    results = of_pictures.results
    assert any("both parts joined" in line for line in results["data"]["decisions"])
    images = results["nearest"]["images"]
    assert images
    with np.load(pictures) as arrays:
        pixels = np.concatenate([arrays["x_train"], arrays["x_test"]])
    for row, text in images.items():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(b64decode(text)))), pixels[int(row)])
    page = of_pictures.report.read_text(encoding="utf-8")
    assert next(iter(images.values())) in page
    assert results["protocol"]["inner validation"] == "one holdout of whole classes"


@pytest.mark.parametrize("change", ["depth", "side", "image", "share"])
def test_results_that_do_not_fit_together_are_refused(of_pictures, change):
    results = json.loads(json.dumps(of_pictures.results))
    check_results(results)
    if change == "depth":
        results["recall_at"]["depth"].append(21)
    elif change == "side":
        results["nearest"]["sides"] = ["a"] * (3 - len(results["nearest"]["sides"]))
    elif change == "image":
        results["nearest"]["images"].popitem()
    else:
        next(iter(results["recall_at"]["rows"].values()))["mean"][0] = 1.5
    with pytest.raises(InputError):
        check_results(results)


def test_other_tasks_have_no_such_sections(done):
    results = {key: own for key, own in done.results.items() if key not in ("recall_at", "nearest")}
    page = report_html(results)
    assert 'id="depth"' not in page
    assert '"#nearest"' not in page


def test_the_same_call_computes_nothing(done, capsys):
    again = steepest.compare(
        people(), target="who", out=done.folder.parent, objectives="sup_con", **{**SMALL, "quiet": False}
    )
    assert "nothing is computed" in capsys.readouterr().out
    assert again.results["fold_scores"] == done.results["fold_scores"]


def test_another_width_is_another_run(tmp_path):
    frame = people()
    ids = {
        prepare(Request(frame, target="who", task="retrieval", folds=2, embedding=width))[0].settings.run_id("x", "1")
        for width in (8, 9, None, 64)
    }
    assert len(ids) == 3


def test_others_can_join(of_pictures):
    store = Store(of_pictures.folder)
    context = join(of_pictures.folder.name, store)
    store.close()
    assert context.settings.embedding == 8
    assert context.table.task == "retrieval"


def test_cells_are_the_same_bits_again_and_fit_what_networks_say():
    context, _ = prepare(Request(people(), target="who", **{**options(), "trials": 2}))
    job = Job("objective", "sup_con", ((0, 1),))
    first, second = (run_job(context, job)[0] for _ in range(2))
    assert np.array_equal(first.outcome.predicted, second.outcome.predicted)
    recipe = recipe_of(context, context.objective("sup_con"))
    trial = context.trials("sup_con")[first.values["trial"]]
    member = member_of(context, (0, 1), -1, trial, length=first.values["epochs"])
    train(recipe, [member])
    split = context.split((0, 1), -1)
    wanted = ranked(member.outputs, context.table.target[context.folds[0, 1].test])
    assert np.array_equal(wanted, first.outcome.predicted)
    assert split.target.unique().tolist() == list(range(5))


def options(**further):
    return {name: own for name, own in {**SMALL, **further}.items() if name not in ("quiet", "budget", "workers")}


def test_images_are_scored_on_classes_of_the_test_part(pictures):
    context, _ = prepare(Request(pictures, **options()))
    cell = run_job(context, Job("objective", "cross_entropy", ((0, 0),)))[0]
    assert len(cell.outcome.predicted) == len(context.folds[0, 0].test)
    assert (cell.outcome.predicted[:, 2] > 0).all()
    assert context.settings.fixed_length


def test_objectives_share_their_start_order_and_batches():
    context, _ = prepare(Request(people(), target="who", **options()))
    members = [member_of(context, (0, 0), 0, context.trials(name)[0]) for name in ("cross_entropy", "sup_con")]
    assert members[0].seeds == members[1].seeds
    labels = members[0].split.target
    batches = list(several_of_a_class(labels, 16, torch.Generator().manual_seed(0)))
    assert len(batches) == -(-len(labels) // 16)
    assert all(labels[rows].unique(return_counts=True)[1].min() >= 4 for rows in batches)


def test_every_objective_trains_on_such_batches():
    assert training._sampler(CrossEntropyLoss(), "retrieval") is several_of_a_class
    assert training._sampler(SupConLoss(), "retrieval") is several_of_a_class
    assert training._sampler(CrossEntropyLoss(), "multiclass") is None


@pytest.mark.parametrize("name", ["cross_entropy", "sup_con"])
def test_what_is_learned_holds_for_classes_that_were_not_trained_on(name):
    """Two of ten directions tell classes apart; the others are larger, and the same for all."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(40), 12)
    X = rng.normal(size=(len(codes), 10)) * 2
    X[:, :2] = rng.normal(size=(40, 2))[codes] * 3 + 0.3 * rng.normal(size=(len(codes), 2))
    X = X @ np.linalg.qr(rng.normal(size=(10, 10)))[0]
    context, _ = prepare(Request(X, codes, task="retrieval", epochs=12, trials=1, repeats=1, folds=2))
    learned = run_job(context, Job("objective", name, ((0, 0),)))[0].values["score"]
    raw = run_job(context, Job("classical", "raw_inputs", ((0, 0),)))[0].values["score"]
    assert learned > raw + 0.1


def test_the_head_of_an_objective_of_classes_is_trained_beside_the_embedding():
    info = TaskInfo("retrieval", 20, 5, (4,) * 5, feature_dim=3)
    objective = OfEmbeddings(CrossEntropyLoss).from_task(info)
    assert isinstance(objective, OfClasses)
    head, target = objective.head(3, info), torch.tensor([0, 4, 2, 1])
    embedding = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    outputs = head(embedding)
    assert torch.equal(objective.predict(outputs), embedding)
    wanted = torch.nn.functional.cross_entropy(head.head(embedding), target)
    assert torch.allclose(objective(outputs, target), wanted)
    assert isinstance(OfEmbeddings(SupConLoss).from_task(info, temperature=0.5), SupConLoss)


def test_all_that_fit_are_listed_and_train():
    context, _ = prepare(Request(people(), target="who", **options()))
    names = known_embedding_objectives()
    assert names[0] == "cross_entropy"
    assert names.index("sup_con") < names.index("arc_face")
    assert context.settings.objectives == tuple(names)
    assert {"cross_entropy", "arc_face", "cos_face", "sup_con"} <= set(names)
    for name in names:
        cell = run_job(context, Job("objective", name, ((0, 0),)))[0]
        assert "failed" not in cell.values, name
        assert 0 < cell.values["score"] <= 1


def test_the_winner_gives_embeddings_and_nearest_rows(done, tmp_path):
    winner, frame = done.winner, people()
    assert isinstance(winner, RetrievalWinner)
    told = done.predict(frame.set_axis(frame.index + 100))
    assert told.index[0] == 100
    nearest = [f"{what}_{place}" for place in range(1, 6) for what in ("index", "label", "cosine")]
    assert told.columns.tolist() == [*nearest, *(f"e_{number}" for number in range(1, 9))]
    assert told["index_1"].tolist() == list(range(len(frame)))
    assert told["label_1"].tolist() == frame["who"].tolist()
    assert np.allclose(told["cosine_1"], 1, atol=1e-5)
    unit = told.filter(like="e_").to_numpy(np.float64)
    unit = unit[:, [column.startswith("e_") for column in told.filter(like="e_").columns]]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    products = unit @ unit.T
    second = np.sort(products - 2 * np.eye(len(unit)), 1)[:, -1]
    assert np.allclose(told["cosine_2"], second, atol=1e-5)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert winner.predict_file(tmp_path / "rows.csv")["index_2"].tolist() == told["index_2"].tolist()
    with pytest.raises(InputError, match=r"RetrievalWinner.load"):
        Winner.load(done.folder)
    with pytest.raises(InputError, match="no probabilities"):
        done.predict_proba(frame)
    with pytest.raises(InputError, match="row 1: the winner gives no finite number"):
        winner.predict(frame.head(1).assign(**dict.fromkeys("abcdef", 1e140)))


def test_the_winner_is_trained_as_long_as_held_out_classes_say(monkeypatch):
    context, _ = prepare(Request(people(), target="who", **options(epochs=4)))
    asked = []

    def noted(recipe, members):
        spent = train(recipe, members)
        for place, own in enumerate(members):
            asked.append(own.length)
            own.epochs = 2 * place + 1 if own.length is None else own.length
        return spent

    monkeypatch.setattr(winners, "train", noted)
    winner = winners.fit_retrieval_winner(context, "sup_con", 0)
    assert asked == [None, None, None, 3]  # 1, 3 and 5 on average
    assert winner.facts["epochs"] == 3
    assert len(winner.trained) == len(context.table.target)


def test_the_winner_of_images(of_pictures, pictures, tmp_path):
    told = of_pictures.winner.predict_file(pictures)
    assert len(told) == 48
    assert (told["index_1"] == np.arange(48)).mean() > 0.9  # the same image is its own nearest, if none is as near
    one = tmp_path / "one.npz"
    np.savez(one, x=np.zeros((2, 8, 8), dtype=np.uint8), y=[5, 5])  # new images of one class, and few
    assert len(of_pictures.winner.predict_file(one)) == 2
    with pytest.raises(InputError, match="expected images of 8 x 8"):
        of_pictures.winner.predict(np.zeros((2, 9, 9, 1), dtype=np.uint8))


def test_inputs_as_they_are_stand_beside_the_objectives(pictures):
    for data, further in ((people(), {"target": "who"}), (pictures, {})):
        context, _ = prepare(Request(data, **options(**further)))
        assert context.settings.classical == ("raw_inputs",)
        cell = run_job(context, Job("classical", "raw_inputs", ((0, 0),)))[0]
        split = context.split((0, 0), -1)
        inputs = split.other_inputs.flatten(1)
        assert np.array_equal(cell.outcome.predicted, ranked(inputs, split.other_target))
        assert time_learner(context, Job("classical", "raw_inputs", ((0, 0),))) > 0
    context, _ = prepare(Request(people(), target="who", classical=False, **options()))
    assert context.settings.classical == ()


@pytest.mark.parametrize("images", [False, True])
def test_inputs_as_they_are_can_be_the_winner(pictures, tmp_path, images):
    request = Request(pictures, **options()) if images else Request(people(), target="who", **options())
    context, _ = prepare(request)
    raw_winner(context).save(tmp_path)
    winner = saved_winner(tmp_path, context, "classical")
    assert winner.name == "raw_inputs"
    assert saved_winner(tmp_path, context) is None
    split = context.at(context.level).split((0, 0), -1)
    assert winner.trained.shape == (len(context.table.target), split.inputs[0].numel())
    told = winner.predict(context.table.pixels if images else people())
    assert told["index_1"].tolist() == list(range(len(told)))
    facts = json.loads((tmp_path / "winner.json").read_text())
    (tmp_path / "winner.json").write_text(json.dumps({**facts, "embedding": facts["embedding"] + 1}))
    with pytest.raises(InputError, match="not whole"):
        RetrievalWinner.load(tmp_path)


def test_the_command_predicts(done, tmp_path):
    people().head(3).to_csv(tmp_path / "rows.csv", index=False)
    ran = CliRunner().invoke(app, ["predict", str(done.folder), str(tmp_path / "rows.csv")])
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("index_1,label_1,cosine_1,")
    assert lines[0].endswith(",e_8")
    ran = CliRunner().invoke(app, ["predict", str(done.folder), str(tmp_path / "rows.csv"), "--no-probabilities"])
    assert ran.stdout.splitlines()[0].endswith(",index_5,label_5,cosine_5")
    code = done.results["usage"]
    assert code.startswith("from steepest.comparison import RetrievalWinner")


@pytest.mark.parametrize("change", ["cut", "label", "width", "classes", "nan", "unknown", "lacking"])
def test_a_damaged_winner_is_refused(done, tmp_path, change):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "winner"
    shutil.copytree(done.folder / "winner", folder)
    facts = json.loads((folder / "winner.json").read_text())
    if change == "cut":
        data = (folder / "winner.safetensors").read_bytes()
        (folder / "winner.safetensors").write_bytes(data[:-8])
    elif change == "width":
        facts["embedding"] = 9
    elif change == "classes":
        facts["classes"] = facts["classes"][:2]
    else:
        tensors = load_file(folder / "winner.safetensors")
        if change == "label":
            tensors["trained.labels"] = tensors["trained.labels"].float()
        elif change == "nan":
            tensors["trained.embeddings"][0, 0] = float("nan")
        elif change == "unknown":
            tensors["more"] = torch.zeros(1)
        else:
            del tensors["trained.labels"]
        save_file(tensors, folder / "winner.safetensors")
        import hashlib

        facts["weights"] = hashlib.sha256((folder / "winner.safetensors").read_bytes()).hexdigest()
    (folder / "winner.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="not whole"):
        RetrievalWinner.load(folder)


OWN = '''
import torch
from torch import nn
from steepest.core.pair_loss import PairLoss


class Near(PairLoss):
    """Squared distances within classes."""
    name = "near"

    def batch_loss(self, outputs, target):
        same = target[:, None] == target
        return (torch.cdist(outputs, outputs) * torch.where(same, 1.0, -0.1)).mean()


def narrow(in_features):
    return nn.Sequential(nn.Linear(in_features, 5), nn.Tanh())
'''


def test_own_objectives_and_networks(tmp_path, monkeypatch):
    (tmp_path / "own_embedding_parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    own = {"objectives": "own_embedding_parts:Near", "model": "own_embedding_parts:narrow"}
    done = steepest.compare(people(), target="who", out=tmp_path, **SMALL, **own)
    assert {row["name"] for row in done.results["rows"]} >= {"own_embedding_parts:Near", "cross_entropy"}
    assert done.winner.predict(people().head(2)).shape == (2, 23)
    with pytest.raises(InputError, match="trust"):
        RetrievalWinner.load(done.folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group": "a"}, "--group: --task retrieval holds whole classes out"),
        ({"time": "a"}, "--time: --task retrieval"),
        ({"weight": "a"}, "--weight: --task retrieval"),
        ({"positive": "a"}, "--positive: --task retrieval"),
        ({"rare": "drop"}, "--rare: --task retrieval"),
        ({"test": "a.csv"}, "--test: --task retrieval"),
        ({"split": "file"}, "--split file: --task retrieval"),
        ({"noise": 0.1}, "--noise: label noise is for classes"),
        ({"vary": "optimizer"}, "retrieval compares objectives"),
        ({"metric": "a:b"}, "--metric: --task retrieval takes its own metrics"),
        ({"target": "target,pixel_1_1"}, "target: --task retrieval takes one, got 'target', 'pixel_1_1'"),
        ({"metric": "recal_at_1"}, "did you mean 'recall_at_1'"),
        (
            {"metric": "accuracy"},
            "metric 'accuracy' is for binary, multiclass, not for retrieval. For .* recall_at_10$",
        ),
        ({"model": "tabm"}, "'tabm' gives no single embedding; use plain or residual"),
        ({"model": "resnet"}, "'resnet' does not take 61 features; use plain or residual"),
        ({"objectives": "ldr"}, "'ldr' does not fit a retrieval: it is for .* targets. Those that fit: cross_entropy"),
        ({"objectives": "nt_xent"}, "it needs two views of each row"),
        ({"objectives": "mann_whitney"}, "it scores pairs of a query and a row"),
        ({"batch_size": 7}, "--batch: .* expected at least 8, got 7"),
        ({"embedding": 1}, r"--embedding: expected an integer in 2\.\.4096, got 1"),
        ({"embedding": 8, "task": "auto"}, "--embedding is for --task retrieval"),
        ({"folds": 6}, "6 folds need at least 12 classes .* has 10; --folds 5 is possible"),
        ({"prompt": "p"}, "--prompt is for JSON lines"),
    ],
)
def test_what_is_refused(options, said):
    def asked():
        request = Request("digits", **{"task": "retrieval", **options})
        check_asked(request)
        prepare(request)

    with pytest.raises(InputError, match=said):
        asked()


def test_what_only_python_can_give_is_refused():
    frame = people()
    with pytest.raises(InputError, match="--metric: --task retrieval takes its own metrics"):
        prepare(Request(frame, target="who", task="retrieval", metric=np.mean))
    with pytest.raises(InputError, match="--group: --task retrieval"):
        prepare(Request(frame, target="who", task="retrieval", groups=np.arange(len(frame))))


@pytest.mark.parametrize(
    ("metric", "name"), [("recall@1", "recall_at_1"), ("precision_at_1", "recall_at_1"), ("MAP@R", "map_at_r")]
)
def test_words_for_metrics(metric, name):
    request = Request("digits", task="retrieval", metric=metric)
    check_asked(request)
    assert prepare(request)[0].metric.name == name


def test_the_command_refuses_in_one_line(tmp_path):
    ran = CliRunner().invoke(app, ["compare", "wine", "--task", "retrieval", "--out", str(tmp_path)])
    assert ran.exit_code == 2 or isinstance(ran.exception, InputError)
    ran = CliRunner().invoke(app, ["lr-find", "digits", "--task", "retrieval"])
    assert isinstance(ran.exception, InputError) or ran.exit_code == 2


def test_fewer_rows_keep_several_of_each_class():
    context, _ = prepare(Request("digits", task="retrieval", folds=5, epochs=1, trials=1, repeats=1))
    capped = context.at(replace(context.level, rows=200))
    assert isinstance(capped, Context)
    counts = np.unique(context.table.target[capped.folds[0, 0].train], return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() > 15
