"""Whole comparisons of images: the file's own test part with seeds, joined parts in folds, the saved winner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import steepest
from steepest.comparison.api import prepare
from steepest.comparison.asked import expand
from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.models import build
from steepest.comparison.design.plan import make_plan
from steepest.comparison.design.trials import PEAK, trials
from steepest.comparison.errors import InputError
from steepest.comparison.read.inputs import fit_inputs, transform
from steepest.comparison.request import Request
from steepest.comparison.work import timing
from steepest.comparison.work.cells import member_of, recipe_of, run_job
from steepest.comparison.work.training import train

SMALL = {"epochs": 2, "workers": 1, "quiet": True, "budget": 60, "objectives": "squentropy"}


@pytest.fixture
def file(tmp_path):
    """Bright squares in three corners, separable by any network."""
    rng = np.random.default_rng(0)

    def part(rows):
        y = np.arange(rows) % 3
        x = rng.integers(0, 60, (rows, 8, 8, 1), dtype=np.uint8)
        for image, label in zip(x, y):
            row, column = [(0, 0), (0, 5), (5, 0)][label]
            image[row : row + 3, column : column + 3] = 250
        return x, y

    (x, y), (tx, ty) = part(60), part(30)
    path = tmp_path / "squares.npz"
    np.savez(path, x_train=x, y_train=y, x_test=tx, y_test=ty)
    return str(path)


def test_own_test_part_with_three_seeds(file, tmp_path):
    done = steepest.compare(file, out=tmp_path, augment=False, **SMALL)
    assert done.results["headline"]["test"] == "paired bootstrap on the fixed test set, 3 seeds"
    assert done.results["protocol"]["trials an objective"].startswith("1")
    assert [len(scores) for scores in done.results["fold_scores"].values()] == [3, 3]
    assert done.results["data"]["columns"] == []
    assert done.report.is_file()
    found = done.winner.predict_file(file)
    assert len(found) == 90
    assert set(found["prediction"]) <= {"0", "1", "2"}
    pixels = np.load(file)["x_test"]
    assert done.predict(pixels)["prediction"].tolist() == found["prediction"].tolist()[60:]


def test_seeds_differ_in_start_and_order_and_objectives_share_them(file):
    context, _ = prepare(Request(file, objectives="squentropy"))
    members = [member_of(context, (repeat, 0), -1, None) for repeat in range(3)]
    assert len({m.seeds["backbone"] for m in members}) == 3
    assert len({m.seeds["order"] for m in members}) == 3
    assert context.settings.augment
    assert recipe_of(context, None).augment is not None


def test_pool_joins_both_parts(file, tmp_path):
    done = steepest.compare(file, split="pool", folds=3, out=tmp_path, **SMALL)
    assert done.results["data"]["rows"] == 90
    assert done.results["headline"]["test"] == "none with 3 folds"


def test_scaling_sees_the_training_part_only(file):
    context, _ = prepare(Request(file, objectives="squentropy", augment=False))
    before = context.split((0, 0), -1).inputs.clone()
    context.test.pixels[:] = 255
    fresh = Context(context.table, context.settings, context.test)
    assert (fresh.split((0, 0), -1).inputs == before).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "y"}, "--target is for tables"),
        ({"weight": "w"}, "--weight is for tables"),
        ({"model": "plain"}, "--model: 'plain' does not take 8 x 8 x 1 pixels; use resnet"),
    ],
)
def test_what_is_for_tables_is_refused(file, options, message):
    with pytest.raises(InputError, match=message):
        prepare(Request(file, objectives="squentropy", **options))


def test_a_table_takes_no_image_model():
    with pytest.raises(InputError, match="use plain or tabm or tabm-4 or tabm-1 or residual"):
        prepare(Request("wine", model="resnet"))
    with pytest.raises(InputError, match="are for images"):
        prepare(Request("wine", split="pool"))


def test_a_folder_of_tables_is_its_files(tmp_path):
    for name in ("b.csv", "a.tsv", "note.txt"):
        (tmp_path / name).write_text("x,y\n1,2\n")
    assert [each.rpartition("/")[2] for each in expand(str(tmp_path))] == ["a.tsv", "b.csv"]


def test_parquet_is_read_like_csv(tmp_path):
    from sklearn.datasets import load_iris

    from steepest.comparison.read import load_table

    frame = load_iris(as_frame=True).frame
    frame.to_parquet(tmp_path / "iris.parquet")
    frame.to_csv(tmp_path / "iris.csv", index=False)
    parquet, csv = (load_table(tmp_path / f"iris.{kind}") for kind in ("parquet", "csv"))
    assert parquet.task == csv.task == "multiclass"
    assert (parquet.frame == csv.frame).all(axis=None)
    assert (parquet.target == csv.target).all()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a Parquet file"):
        load_table(tmp_path / "broken.parquet")


def test_images_train_once_over_a_whole_cycle_of_the_learning_rate(file):
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    context, _ = prepare(Request(file, objectives="cross_entropy", epochs=3, batch_size=16))
    assert context.settings.fixed_length
    pair = (0, 0)
    fit, valid = context.inner(pair)[0]
    assert (len(context.inner(pair)), len(fit), len(valid)) == (1, 52, 8)
    rates = []
    handle = register_optimizer_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    try:
        (cell,) = run_job(context, Job("objective", "cross_entropy", (pair,)))
    finally:
        handle.remove()
    # one training of 3 epochs of 4 steps, nothing refitted
    assert len(rates) == 12
    assert max(rates) == pytest.approx(PEAK * 1e-3, rel=0.05)
    assert rates[0] == pytest.approx(PEAK * 1e-3 / 25)
    assert rates[-1] < 1e-6
    assert cell.values["epochs"] == len(cell.values["curve"]) == 3
    assert len(cell.outcome.predicted) == 30  # of the file's own test part


def test_the_tuned_network_itself_is_scored(file):
    context, _ = prepare(Request(file, objectives="cross_entropy", split="pool", epochs=2))
    pair = next(iter(context.folds))
    split = context.split(pair, 0)
    scaler = fit_inputs(context.table, context.inner(pair)[0][0])
    own = transform(scaler, context.table, context.folds[pair].test)
    assert torch.equal(split.test_inputs, own)
    recipe = recipe_of(context, context.objective("cross_entropy"))
    member = member_of(context, pair, 0, trials(recipe.objective, 1, 0)[0])
    train(recipe, [member])
    network, _ = build(recipe.backbone, 1, member.objective, member.info, backbone_seed=0, head_seed=0)
    network.load_state_dict(member.state)
    with torch.no_grad():
        assert torch.allclose(network.eval()(own), member.test_outputs, atol=1e-5)
        assert torch.allclose(network(split.other_inputs), member.outputs, atol=1e-5)


def test_the_plan_counts_one_training_a_fold(file):
    context, _ = prepare(Request(file, objectives="cross_entropy", split="pool"))
    assert make_plan(context, 1, timing.measure).trainings == 3
