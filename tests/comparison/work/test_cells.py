"""What is the same for all objectives, what is fitted where, and how a cell is tuned and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.objectives import (
    choose_objectives,
    find_objective,
    known_objectives,
    shortlist,
    why_not,
)
from steepest.comparison.design.settings import Settings
from steepest.comparison.design.trials import Trial, trials
from steepest.comparison.errors import InputError
from steepest.comparison.read import Table, table_from_arrays
from steepest.comparison.work.cells import best_trial, member_of, recipe_of, run_job
from steepest.comparison.work.stored import read_outcome
from steepest.comparison.work.training import _score, _scores, networks_of, train
from steepest.descent import ArrayBatches

Blobs = Callable[..., tuple[np.ndarray, np.ndarray]]


def context_of(table: Table, **changed: object) -> Context:
    regression = table.task == "regression"
    values: dict = {
        "objectives": ("squared_error",) if regression else ("cross_entropy", "comp_sum"),
        "baseline": "squared_error" if regression else "cross_entropy",
        "metric": "rmse" if regression else "accuracy",
        "repeats": 2,
        "folds": 2,
        "trials": 2,
        "epochs": 3,
        "patience": 3,
        "batch_size": 16,
    }
    return Context(table, Settings(**{**values, **changed}))


@pytest.fixture
def table(blobs: Blobs) -> Table:
    return table_from_arrays(*blobs(75, 3, spread=2.0))


@pytest.fixture
def numbers() -> Table:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(80, 3))
    return table_from_arrays(x, 1000.0 + 50.0 * (x @ [1.0, -2.0, 0.5]) + rng.normal(size=80), task="regression")


@pytest.mark.parametrize("pair", [(0, 0), (1, 1)])
def test_objectives_share_rows_backbone_bits_and_batch_order(table: Table, own: str, pair: tuple[int, int]) -> None:
    context = context_of(table)
    seen = []
    for name in ("cross_entropy", "comp_sum", f"{own}:Plain"):
        recipe = recipe_of(context, find_objective(name, trust=True))
        member = member_of(context, pair, 0, Trial(1e-3, 1e-4))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash(name) % 1000)  # whatever was drawn before
            network = networks_of(recipe, [member])[0]
        batch, steps = recipe.steps(len(member.split.inputs))
        batches = ArrayBatches(
            member.split.inputs, member.split.target, batch_size=batch, steps=steps, seed=member.seeds["order"]
        )
        order = torch.cat([b.index for e in (1, 2) for b in batches.epoch(e)])
        bits = torch.cat([p.detach().flatten() for p in network.backbone.parameters()])
        seen.append((bits, order, member.split.inputs, torch.as_tensor(member.split.other_target)))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other))


def test_repeats_and_folds_differ_in_backbone_order_and_rows(table: Table) -> None:
    context = context_of(table)
    members = [member_of(context, pair, 0, Trial(1e-3, 1e-4)) for pair in context.folds]
    for role in ("backbone", "head", "order", "objective"):
        assert len({m.seeds[role] for m in members}) == len(members)


def test_trials_of_a_fold_start_alike(table: Table) -> None:
    context = context_of(table)
    cls = find_objective("cross_entropy")
    members = [member_of(context, (0, 0), 0, t) for t in trials(cls, 2, 0)]
    first, second = networks_of(recipe_of(context, cls), members)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("part", [0, -1])
def test_held_out_rows_change_nothing_that_is_fitted(blobs: Blobs, part: int) -> None:
    x, y = blobs(75, 3)
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["colour"] = np.where(x[:, 0] > 0, "red", "blue")
    table = table_from_arrays(frame, y)
    context = context_of(table)
    rows, held = (context.folds[0, 0].train, context.folds[0, 0].test) if part < 0 else context.inner((0, 0))[part]
    changed = frame.copy()
    changed.loc[held, list("abcd")] = 1e6
    changed.loc[held, "colour"] = "green"
    other = context_of(replace(table, frame=changed))
    assert np.array_equal(context.folds[0, 0].train, other.folds[0, 0].train)
    before, after = context.split((0, 0), part), other.split((0, 0), part)
    assert torch.equal(before.inputs, after.inputs)
    assert not torch.equal(before.other_inputs, after.other_inputs)
    assert len(before.inputs) == len(rows)
    means = before.inputs[:, :4].mean(0)
    assert torch.allclose(means, torch.zeros(4), atol=1e-5)


def test_the_scale_of_a_regression_target_is_that_of_the_training_part(numbers: Table) -> None:
    context = context_of(numbers)
    fold = context.folds[0, 1]
    split = context.split((0, 1), -1)
    assert split.scale == pytest.approx((numbers.target[fold.train].mean(), numbers.target[fold.train].std()))
    assert float(split.target.mean()) == pytest.approx(0, abs=1e-5)
    assert split.other_target is not split.target
    assert np.array_equal(split.other_target, numbers.target[fold.test])


def test_regression_predicts_in_its_own_units(numbers: Table) -> None:
    context = context_of(numbers, epochs=40, patience=40)
    cell = run_job(context, Job("objective", "squared_error", ((0, 0),)))[0]
    y = numbers.target[context.folds[0, 0].test]
    assert cell.outcome.predicted.mean() == pytest.approx(y.mean(), abs=2 * y.std())
    assert cell.values["score"] == pytest.approx(np.sqrt(np.mean((cell.outcome.predicted - y) ** 2)))
    assert cell.values["score"] < y.std()  # learned something, in units of y
    assert cell.values["threshold"] is None
    assert cell.values["temperature"] is None


@pytest.mark.parametrize("classes", [2, 4])
def test_label_noise_is_in_training_rows_only_and_of_the_asked_share(classes: int) -> None:
    y = np.random.default_rng(0).integers(0, classes, 4000)
    table = table_from_arrays(np.random.default_rng(1).normal(size=(4000, 2)), y)
    context = context_of(table, noise=0.3)
    for pair, fold in context.folds.items():
        noisy = context.training_target(pair)
        assert np.array_equal(noisy[fold.test], table.target[fold.test])
        share = (noisy[fold.train] != table.target[fold.train]).mean()
        assert share == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / len(fold.train)))
        assert set(np.unique(noisy)) == set(range(classes))
        split = context.split(pair, -1)
        assert np.array_equal(split.target.numpy(), noisy[fold.train])
        assert np.array_equal(split.other_target, table.target[fold.test])
        for part, (fit, _) in enumerate(context.inner(pair)):
            assert np.array_equal(context.split(pair, part).target.numpy(), noisy[fit])
    again = context_of(table, noise=0.3, objectives=("cross_entropy",))
    assert np.array_equal(context.training_target((0, 0)), again.training_target((0, 0)))
    assert not np.array_equal(context.training_target((0, 0)), context.training_target((0, 1)))


def test_no_noise_leaves_the_target_alone(table: Table) -> None:
    context = context_of(table)
    assert context.training_target((0, 0)) is table.target


@pytest.mark.parametrize("name", ["cross_entropy", "comp_sum"])
def test_a_job_of_several_folds_gives_the_cells_of_one_job_a_fold(table: Table, name: str) -> None:
    context = context_of(table, trials=3)
    pairs = tuple(context.folds)
    together = run_job(context, Job("objective", name, pairs))
    for pair, cell in zip(pairs, together):
        alone = run_job(context, Job("objective", name, (pair,)))[0]
        assert (cell.repeat, cell.fold) == pair
        assert cell.values["trial"] == alone.values["trial"]
        assert cell.values["epochs"] == alone.values["epochs"]
        assert cell.values["inner"] == pytest.approx(alone.values["inner"], abs=1e-6)
        assert cell.values["score"] == pytest.approx(alone.values["score"], abs=1e-6)
        np.testing.assert_allclose(cell.outcome.probabilities, alone.outcome.probabilities, atol=1e-5)


def test_a_stack_gives_what_training_one_by_one_gives(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(table)
    job = Job("objective", "cross_entropy", ((0, 0),))
    stacked = run_job(context, job)[0]
    monkeypatch.setattr("steepest.comparison.work.training.stackable", lambda module: False)
    single = run_job(context, job)[0]
    assert single.values["inner"] == pytest.approx(stacked.values["inner"], abs=1e-6)
    np.testing.assert_allclose(single.outcome.probabilities, stacked.outcome.probabilities, atol=1e-5)


def test_a_cell_repeats_bit_for_bit_and_leaves_the_random_state_alone(table: Table) -> None:
    context = context_of(table)
    job = Job("objective", "comp_sum", ((1, 0),))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = run_job(context, job)[0]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    second = run_job(context, job)[0]
    assert first.values["inner"] == second.values["inner"]
    assert np.array_equal(first.outcome.probabilities, second.outcome.probabilities)


def test_the_metric_selects_and_not_the_objectives_own_value(table: Table, own: str) -> None:
    """An objective that claims -1e6 gets the score of the same gradients; one that goes uphill gets its bad score."""
    names = ("Plain", "Lying", "Backwards")
    context = context_of(table, epochs=6, patience=6, objectives=tuple(f"{own}:{n}" for n in names))
    cells = {n: run_job(context, Job("objective", f"{own}:{n}", ((0, 0),)))[0] for n in names}
    assert cells["Lying"].values["inner"] == cells["Plain"].values["inner"]
    assert cells["Lying"].values["trial"] == cells["Plain"].values["trial"]
    assert cells["Lying"].values["epochs"] == cells["Plain"].values["epochs"]
    assert cells["Backwards"].values["score"] < cells["Plain"].values["score"]
    assert max(cells["Backwards"].values["inner"]) < max(cells["Plain"].values["inner"])


def test_a_job_imports_no_code_that_the_settings_do_not_name(table: Table) -> None:
    with pytest.raises(InputError, match="'steepest_canary:Loss' is not built in"):
        run_job(context_of(table), Job("objective", "steepest_canary:Loss", ((0, 0),)))


def test_the_trial_and_epochs_come_from_inner_validation(table: Table) -> None:
    context = context_of(table, trials=3, epochs=4)
    cell = run_job(context, Job("objective", "cross_entropy", ((0, 0),)))[0]
    inner = cell.values["inner"]
    assert cell.values["trial"] == int(np.argmax(inner))
    members = [member_of(context, (0, 0), part, trials(find_objective("cross_entropy"), 3, 0)[cell.values["trial"]])
               for part in range(3)]  # fmt: skip
    train(recipe_of(context, find_objective("cross_entropy")), members)
    assert inner[cell.values["trial"]] == pytest.approx(np.mean([m.score for m in members]), abs=1e-6)
    assert cell.values["epochs"] == max(1, round(np.mean([m.epochs for m in members])))
    assert [m.score for m in members] == [max(m.curve) for m in members]


@pytest.mark.parametrize("metric", ["balanced_accuracy", "mcc", "nll"])
def test_a_stack_is_scored_like_its_members(table: Table, metric: str) -> None:
    """On held-out rows of their own number, filled up; a diverged model has the worst score."""
    context = context_of(table, metric=metric)
    objective = find_objective("cross_entropy")
    recipe = recipe_of(context, objective)
    members = [member_of(context, (0, 0), part, Trial(1e-2, 0.0)) for part in (0, 1, 0, -1)]
    for member in members:
        member.objective = objective()
    rows = [len(member.split.other_inputs) for member in members]
    outputs = torch.randn(4, max(rows) + 2, 3, generator=torch.Generator().manual_seed(0))
    outputs[2, 1, 0] = torch.nan
    alone = [_score(recipe, m, out[:n]) for m, n, out in zip(members, rows, outputs)]
    assert _scores(recipe, members, outputs) == alone
    assert alone[2] == recipe.metric.worst
    assert len(set(alone)) == 4


def test_several_members_predict_numbers_in_their_own_units(numbers: Table) -> None:
    context = context_of(numbers, model="tabm", epochs=8, patience=8)
    (cell,) = run_job(context, Job("objective", "squared_error", ((0, 0),)))
    split = context.split((0, 0), -1)
    assert cell.outcome.predicted.shape == split.other_target.shape
    assert cell.values["score"] < 0.9 * np.std(split.other_target)
    assert cell.values["diverged"] == 0


def test_several_members_keep_the_shares_of_classes(table: Table) -> None:
    context = context_of(table, model="tabm")
    (cell,) = run_job(context, Job("objective", "squentropy", ((0, 1),)))
    np.testing.assert_allclose(cell.outcome.probabilities.sum(1), 1.0, rtol=1e-6)
    assert (cell.outcome.predicted == cell.outcome.probabilities.argmax(1)).all()
    assert (cell.outcome.predicted == cell.outcome.decision.argmax(1)).all()


def test_smaller_is_better_takes_the_smallest() -> None:
    assert best_trial([3.0, 1.0, 2.0, 1.0], False) == 1
    assert best_trial([float("inf"), 5.0], False) == 1
    assert best_trial([float("nan"), float("-inf"), -5.0], True) == 2
    assert best_trial([float("nan"), float("nan")], True) == 0


@pytest.mark.parametrize("job_cells", [((0, 0),), ((0, 0), (0, 1))])
def test_a_diverging_objective_is_counted_and_does_not_stop_the_others(
    table: Table, own: str, job_cells: tuple[tuple[int, int], ...]
) -> None:
    context = context_of(table, objectives=("cross_entropy", f"{own}:Broken"))
    for cell in run_job(context, Job("objective", f"{own}:Broken", job_cells)):
        assert cell.values["score"] is None
        assert cell.values["inner"] == [None, None]
        assert cell.values["diverged"] == 2 * len(context.inner(job_cells[0])) + 1  # the refit too
        assert cell.values["metrics"]["nll"] is None
        assert read_outcome(cell.arrays(), "outcome").probabilities.shape == cell.outcome.probabilities.shape


def test_weights_reach_objectives_of_samples(blobs: Blobs) -> None:
    """Rows of weight 0 leave the fitted model as if they had other labels."""
    x, y = blobs(75, 3)
    weights = np.where(np.arange(75) % 5 == 0, 0.0, 1.0)
    table = replace(table_from_arrays(x, y), weights=weights)
    wrong = table.target.copy()
    wrong[weights == 0] = (wrong[weights == 0] + 1) % 3
    trial = Trial(1e-2, 0.0)
    found = []
    for each in (table, replace(table, target=wrong), replace(table, weights=None)):
        context = context_of(each)
        context._folds = context_of(table).folds
        member = member_of(context, (0, 0), -1, trial, length=3)
        train(recipe_of(context, find_objective("cross_entropy")), [member])
        found.append(member.outputs)
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


def test_a_weighted_binary_cell_tunes_with_its_weights(blobs: Blobs) -> None:
    x, y = blobs(80, 2, spread=2.5)
    frame = pd.DataFrame(x, columns=list("abcd")).assign(w=np.random.default_rng(0).uniform(0.1, 3, 80))
    context = context_of(table_from_arrays(frame, y, weight="w"), metric="macro_f1")
    cell = run_job(context, Job("objective", "cross_entropy", ((0, 0),)))[0]
    assert np.isfinite(cell.values["threshold"])
    assert 0.05 <= cell.values["temperature"] <= 20
    w, target = context.split((0, 0), -1).other_weight, context.split((0, 0), -1).other_target
    assert cell.values["metrics"]["accuracy"] == pytest.approx(np.average(cell.outcome.predicted == target, weights=w))


def test_a_shortlist_is_in_the_order_of_its_ranks_so_that_its_end_goes_first() -> None:
    for task, baseline in (("multiclass", "cross_entropy"), ("regression", "squared_error")):
        names, _ = choose_objectives("default", task)
        ranks = [known_objectives()[name][1] for name in names]
        assert names[0] == baseline
        assert ranks[1:] == sorted(ranks[1:])
    outside = set(known_objectives()) - set(shortlist())
    assert {known_objectives()[name][1] for name in outside} == {None}


def test_weights_refuse_a_loss_of_the_batch_by_name(own: str) -> None:
    with pytest.raises(InputError, match=r"'own_parts:OfBatch' does not fit.*takes no sample weights"):
        choose_objectives([f"{own}:OfBatch"], "multiclass", weighted=True)
    assert choose_objectives([f"{own}:OfBatch"], "multiclass")[0] == ["cross_entropy", f"{own}:OfBatch"]
    names, notes = choose_objectives("all", "multiclass", weighted=True)
    fitting = {name for name, (cls, _) in known_objectives().items() if not why_not(cls, "multiclass", True)}
    assert {name for name in names if ":" not in name} == fitting
    assert all(find_objective(n).unit == "sample" for n in names)
    assert any("takes no sample weights" in note for note in notes)


def test_a_classical_learner_sees_the_same_rows(table: Table) -> None:
    from steepest.comparison.baselines import classical_learners

    name = classical_learners("classification", 75)[0].name
    context = context_of(table, classical=(name,))
    cell = run_job(context, Job("classical", name, ((0, 1),)))[0]
    fold = context.folds[0, 1]
    assert len(cell.outcome.predicted) == len(fold.test)
    assert cell.values["score"] == pytest.approx(np.mean(cell.outcome.predicted == table.target[fold.test]))
    assert cell.values["inner"][0] is not None


def test_outcomes_survive_their_bytes(table: Table) -> None:
    cell = run_job(context_of(table), Job("objective", "cross_entropy", ((0, 0),)))[0]
    back = read_outcome(cell.arrays(), "outcome")
    assert np.array_equal(back.predicted, cell.outcome.predicted)
    np.testing.assert_allclose(back.probabilities, cell.outcome.probabilities, rtol=1e-6)
