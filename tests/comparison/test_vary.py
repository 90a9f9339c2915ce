"""Comparisons of optimizers, schedules and aggregators: the same protocol as for objectives."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from steepest import compare
from steepest.catalogue import systems, there
from steepest.comparison import api
from steepest.comparison.api import prepare
from steepest.comparison.asked import check_asked
from steepest.comparison.design import arms
from steepest.comparison.design import resolve as resolved
from steepest.comparison.design.arms import ARMS, NO_ARMS, PLAIN, choose_arms, find_arm
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.networks import round_of_tabm, tabm_level, tabm_slowness, with_network
from steepest.comparison.design.trials import Trial
from steepest.comparison.errors import InputError
from steepest.comparison.names import VARIED, arm_names
from steepest.comparison.report.stored import check_results
from steepest.comparison.report.winner.winner import Winner
from steepest.comparison.request import Request
from steepest.comparison.work.cells import member_of, recipe_of, run_job
from steepest.comparison.work.run import Run
from steepest.comparison.work.training import _at_rest, _Average, _Joint, train
from steepest.descent import ArrayBatches, Descent
from steepest.gradients import Mean
from steepest.losses import CrossEntropyLoss
from steepest.nn.networks import Network, mlp

OPTIMIZERS, SCHEDULES, AGGREGATORS = ARMS.values()
SMALL = {"trials": 2, "repeats": 1, "folds": 2, "epochs": 3, "classical": False, "strict": True, "budget": "1h"}


def table(rows: int = 80) -> pd.DataFrame:
    """Numbers, and one of two classes."""
    rng = np.random.default_rng(0)
    numbers = pd.DataFrame(rng.normal(size=(rows, 3)), columns=["a", "b", "c"])
    return numbers.assign(label=np.where(numbers["a"] + 0.5 * numbers["b"] > 0, "yes", "no"))


def several(rows: int = 80) -> pd.DataFrame:
    """Numbers, a class and two targets of numbers."""
    data = table(rows)
    return data.assign(goal=2 * data["a"] - data["c"], height=data["b"] - data["a"])


# ---- what is asked for ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vary": "optimiser"}, "--vary: expected objective, optimizer, schedule, aggregator, got 'optimiser'"),
        ({"vary": "optimizer", "arms": "adamw,sgdd"}, "unknown optimizer 'sgdd'; did you mean 'sgd'"),
        ({"vary": "schedule", "arms": "sgd"}, "unknown schedule 'sgd'"),
        ({"vary": "schedule", "arms": ","}, "--arms: expected default, all, or names"),
        ({"arms": "adamw"}, "--arms: objectives are named by --objectives"),
        ({"vary": "optimizer", "objectives": "focal,ldr"}, "--objectives: expected one name"),
        ({"vary": "optimizer", "objectives": "all"}, "one name where the optimizer varies"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        check_asked(Request("wine", **options))
    assert said in str(error.value)
    with pytest.raises(InputError) as error:
        prepare(Request(table(), **options))
    assert said in str(error.value)


def test_words_of_the_command_are_those_of_the_tables() -> None:
    assert {vary: list(arm_names(vary)) for vary in ARMS} == {vary: list(own) for vary, own in ARMS.items()}
    assert ("objective", *ARMS) == VARIED


def test_aggregators_need_several_targets() -> None:
    with pytest.raises(InputError, match="several targets"):
        prepare(Request(table(), vary="aggregator"))


def test_every_optimizer_of_the_catalogue_is_an_arm_or_said_to_be_none() -> None:
    classes = {
        value.name
        for row in systems()
        if row.kind in ("optimizer", "wrapper") and there(row)
        for name in row.names
        if isinstance(value := getattr(importlib.import_module(f"steepest.{row.module}"), name), type)
        and issubclass(value, torch.optim.Optimizer)
    }
    assert not set(NO_ARMS) & set(OPTIMIZERS) - {"adamw"}
    assert classes - set(OPTIMIZERS) == set(NO_ARMS) - {"adamw"}


def test_default_leaves_out_what_is_to_be_asked_for() -> None:
    default, everything = (choose_arms("optimizer", word)[0] for word in ("default", "all"))
    assert everything == list(OPTIMIZERS)
    assert [name for name in everything if name not in default] == [n for n, arm in OPTIMIZERS.items() if arm.asked]


def test_the_baseline_comes_first() -> None:
    assert choose_arms("schedule", "default") == (list(SCHEDULES), [])
    assert choose_arms("schedule", "wsd,cosine")[0] == ["constant", "wsd", "cosine"]
    assert choose_arms("optimizer", ["sgd", "adamw"])[0] == ["adamw", "sgd"]


def test_an_arm_whose_package_is_missing_is_left_out_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "schedulefree" else find(name))
    names, notes = choose_arms("optimizer", "default")
    assert "schedule_free" not in names
    assert "lion" in names
    assert notes == ["left out schedule_free: it needs the package schedulefree: pip install 'steepest[optimizers]'"]
    with pytest.raises(InputError, match="it needs the package schedulefree"):
        choose_arms("optimizer", "schedule_free")


def test_muon_needs_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match="PyTorch 2"):
        find_arm("optimizer", "muon")


def test_one_objective_trains_all() -> None:
    context, _ = prepare(Request(table(), vary="optimizer", arms="sgd", objectives="focal"))
    assert context.settings.objectives == ("adamw", "sgd")
    assert context.settings.objective == "focal"
    assert context.objective("sgd").name == "focal"
    assert context.settings.baseline == "adamw"
    assert prepare(Request(table(), vary="optimizer"))[0].settings.objective == "cross_entropy"
    regression = table().assign(label=np.arange(80.0))
    assert prepare(Request(regression, vary="schedule"))[0].settings.objective == "squared_error"


# ---- trials ----


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize(("vary", "name"), [(vary, name) for vary, own in ARMS.items() for name in own])
def test_every_arm_has_as_many_trials_its_defaults_first(vary: str, name: str, count: int) -> None:
    arm = ARMS[vary][name]
    drawn = arm.trials(count, 0)
    assert len(drawn) == count
    assert [t.lr for t in drawn[:3]] == list(arm.rates.first)[:count]
    assert all(not t.options and t.weight_decay == 1e-4 for t in drawn[:3])
    for trial in drawn[3:]:
        assert arm.rates.low <= trial.lr <= arm.rates.high
        assert set(trial.options) == set(arm.search)
    assert drawn == arm.trials(count, 0)
    assert not any(t.hyper for t in drawn)


def test_schedules_share_their_rates() -> None:
    assert len({arm.rates for arm in SCHEDULES.values()}) == 1


# ---- optimizers ----


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_goes_down(name: str) -> None:
    torch.manual_seed(0)
    w, b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2))
    ends = [p.detach().flip(0) for p in (w, b)]  # as long as the starts: perp_grad changes no length
    optimizer = OPTIMIZERS[name].build([w, b], Trial(max(0.02, OPTIMIZERS[name].rates.first[0]), 0.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.2 * sum(((p - end).square().sum() for p, end in zip((w, b), ends)), torch.zeros(()))
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(300):
        optimizer.step(closure)
    assert closure().item() < 0.5 * first


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"momentum": 0.5}),
        ("sam", {"rho": 0.3}),
        ("ema", {"average": 0.1}),
        ("muon", {"momentum": 0.8}),
        ("momo", {"beta": 0.8}),
        ("psps", {"preconditioner": "adam", "lam": 1.0}),
        ("gradient_regularization", {"gamma": 0.2, "eps": 0.2}),
    ],
)
def test_a_trial_s_own_options_are_taken(name: str, options: dict[str, float]) -> None:
    assert set(options) == set(OPTIMIZERS[name].search)
    own = [_trained(name, Trial(0.01, 1e-4, options=given)) for given in ({}, options)]
    assert not torch.equal(own[0], own[1])


def _cells() -> dict[str, Any]:
    return {key: SMALL[key] for key in ("trials", "repeats", "folds", "epochs", "classical")}


def _trained(name: str, trial: Trial) -> Tensor:
    """Outputs of a network after a few steps of an arm."""
    context, _ = prepare(Request(table(), vary="optimizer", arms=name, model="plain", batch_size=8, **_cells()))
    recipe = recipe_of(context, context.objective(name), arm=context.arm(name))
    member = member_of(context, (0, 0), 0, trial)
    train(recipe, [member])
    assert member.outputs is not None
    return member.outputs


def test_averaged_weights_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    network = Network(mlp(3, width=4, depth=1), nn.Linear(4, 2))
    hook, wanted = _Average(network, 0.5), None
    x, y = torch.randn(24, 3), torch.randint(2, (24,))
    run = Descent(network, CrossEntropyLoss(), ArrayBatches(x, y, batch_size=4), hooks=[hook])
    seen: list[Tensor] = []
    hook_step = hook.on_step
    hook.on_step = lambda *a: (hook_step(*a), seen.append(network.head.weight.detach().clone()))  # type: ignore[assignment]
    run.fit(1)
    for number, weight in enumerate(seen):
        decay = min(0.5, (1 + number) / (10 + number))
        wanted = weight if wanted is None else wanted + (1 - decay) * (weight - wanted)
    assert len(seen) == 6
    torch.testing.assert_close(hook.network.head.weight, wanted)


def test_schedule_free_is_scored_by_its_averaged_weights() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS["schedule_free"].build([p], Trial(0.1, 0.0))
    for _ in range(5):
        p.grad = p.detach().clone()
        optimizer.step()
    trained = p.detach().clone()
    with _at_rest(optimizer):
        assert not torch.equal(p, trained)
    torch.testing.assert_close(p.detach(), trained)


def test_adamw_trains_as_where_objectives_are_compared() -> None:
    """Its trials at a constant rate find the scores of the stack, up to rounding."""
    options = {**_cells(), "model": "plain"}
    varied, _ = prepare(Request(table(), vary="optimizer", arms="sgd", **options))
    plain, _ = prepare(Request(table(), objectives="cross_entropy", **options))
    own = run_job(varied, Job("objective", "adamw", ((0, 0),)))[0].values
    theirs = run_job(plain, Job("objective", "cross_entropy", ((0, 0),)))[0].values
    assert own["inner"] == pytest.approx(theirs["inner"], abs=1e-6)
    assert own["score"] == pytest.approx(theirs["score"])


# ---- whole comparisons ----


def test_optimizers_are_compared(tmp_path: Path) -> None:
    done = compare(
        table(), vary="optimizer", arms="sgd,ema", model="plain", out=tmp_path, quiet=True, workers=1, **SMALL
    )
    results = done.results
    assert results["vary"] == "optimizer"
    assert results["question"] == "Does choosing the optimizer help?"
    assert "Choosing the optimizer" in done.sentence
    assert "for tuned adamw" in done.sentence
    rows = {row["name"]: row for row in results["rows"] if row["kind"] == "objective"}
    assert list(rows) == ["adamw", "sgd", "ema"]
    assert rows["adamw"]["tier"] == "baseline"
    assert "momentum" in rows["sgd"]["title"].lower()
    assert results["protocol"]["optimizers"] == "adamw, sgd, ema"
    assert results["protocol"]["objective"] == "cross_entropy"
    assert "optimizer" not in results["protocol"]
    saved = results["winner"]
    assert saved["objective"] in rows
    assert saved["settings"].startswith("lr ")
    page = done.report.read_text(encoding="utf-8")
    assert "Each optimizer against" in page
    assert "Where the optimizers come from" in page
    winner = Winner.load(done.folder / "winner")
    assert winner.facts["objective"] == "cross_entropy"
    assert winner.facts["settings"].startswith(saved["objective"])
    assert len(winner.predict(table().drop(columns="label"))) == 80
    again = compare(
        table(), vary="optimizer", arms="sgd,ema", model="plain", out=tmp_path, quiet=True, workers=1, **SMALL
    )
    assert again.folder == done.folder
    assert again.results["winner"] == saved


@pytest.mark.parametrize("name", ["constant", "wsd"])
def test_a_schedule_runs_over_all_epochs_and_nothing_is_fitted_again(name: str) -> None:
    context, _ = prepare(Request(table(), vary="schedule", arms="wsd", **_cells()))
    (cell,) = run_job(context, Job("objective", name, ((0, 0),)))
    assert context.settings.fixed_length
    assert cell.values["epochs"] == 3
    assert len(cell.values["curve"]) == 3
    assert cell.values["score"] is not None


def test_a_schedule_moves_the_rate_over_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def falling(optimizer: Any, steps: int) -> Any:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        step = scheduler.step

        def recorded(*args: Any) -> None:
            step(*args)
            rates.append(optimizer.param_groups[0]["lr"])

        scheduler.step = recorded  # type: ignore[method-assign]
        return scheduler

    monkeypatch.setitem(arms.SCHEDULES, "linear", arms.Arm("falling", schedule=falling))
    context, _ = prepare(Request(table(), vary="schedule", arms="linear", **{**_cells(), "trials": 1}))
    run_job(context, Job("objective", "linear", ((0, 0),)))
    assert math.isclose(rates[-1], 0.0, abs_tol=1e-12)
    assert len(rates) % 3 == 0
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_aggregators_train_several_targets(name: str) -> None:
    request = Request(several(), target=["label", "goal", "height"], vary="aggregator", **{**_cells(), "trials": 1})
    context, _ = prepare(request)
    (cell,) = run_job(context, Job("objective", name, ((0, 0),)))
    assert cell.values["score"] is not None
    assert "failed" not in cell.values


def test_the_conflict_of_gradients_is_what_the_losses_say() -> None:
    """Of the backbone alone: a head's own gradient, however long, takes no part, and is the plain one."""
    backbone, heads = nn.Linear(2, 1, bias=False), nn.Parameter(torch.ones(3))
    weight = backbone.weight
    network = Network(backbone, nn.Identity())
    joint = _Joint(Mean(), network)
    jacobians = torch.tensor([[[3.0, 4.0], [-3.0, -4.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 1.0], [0.0, 5.0]]])
    for jacobian in jacobians:
        weight.grad = heads.grad = None
        features = network(jacobian).squeeze(-1)
        joint.fill(features * heads, network)
        torch.testing.assert_close(weight.grad, jacobian.mean(0, keepdim=True))
        torch.testing.assert_close(heads.grad, features.detach())
    root = 0.5**0.5
    wanted = [[1.0, (-1 + root) / 2, 0.0], [(-1 + root) / 2, 1.0, root / 2], [0.0, root / 2, 0.5]]
    conflict = joint.conflict()
    assert conflict is not None
    torch.testing.assert_close(torch.tensor(conflict["cosine"]), torch.tensor(wanted))
    assert conflict["share"] == 0.5
    assert _Joint(Mean(), network).conflict() is None


def test_aggregators_are_compared(tmp_path: Path) -> None:
    options = {"target": ["label", "goal", "height"], "vary": "aggregator", "arms": "upgrad", "out": tmp_path}
    done = compare(several(), quiet=True, workers=1, **options, **{**SMALL, "trials": 1})
    conflict = done.results["conflict"]
    assert conflict["targets"] == ["label", "goal", "height"]
    assert list(conflict["arms"]) == ["mean", "upgrad"]
    for own in conflict["arms"].values():
        cosines = torch.tensor(own["cosine"])
        assert cosines.shape == (3, 3)
        torch.testing.assert_close(cosines.diag(), torch.ones(3))
        torch.testing.assert_close(cosines, cosines.mT)
    page = done.report.read_text(encoding="utf-8")
    assert "How far the targets pull apart" in page
    assert f"{conflict['arms']['mean']['cosine'][0][1]:+.2f}".replace("-", "\u2212") in page
    check_results(done.results)
    broken = {**done.results, "conflict": {**conflict, "targets": ["label", "goal"]}}
    with pytest.raises(InputError, match="2 rows of 2 cosines"):
        check_results(broken)


def test_the_mean_is_the_sum_at_another_scale() -> None:
    """Gradients of the mean of the losses: what an ordinary training sees, divided by the number of targets."""
    context, _ = prepare(Request(several(), target=["label", "goal"], vary="aggregator", **_cells()))
    info = context.info((0, 0), 0)
    apart = context.objective("mean").from_task(info)
    together = prepare(Request(several(), target=["label", "goal"], **_cells()))[0].objective("cross_entropy")
    split = context.split((0, 0), 0)
    outputs = torch.randn(len(split.inputs), 3, generator=torch.Generator().manual_seed(0))
    losses = apart(outputs, split.target)
    assert losses.shape == (2,)
    torch.testing.assert_close(losses.sum(), together.from_task(info)(outputs, split.target))


def test_objectives_train_as_before() -> None:
    context, _ = prepare(Request(table(), objectives="focal", **_cells()))
    assert context.arm("focal") is PLAIN
    assert context.settings.vary == "objective"
    assert context.settings.objective == ""
    assert context.trials("focal")[0].options == {}


# ---- the network that auto chooses ----


def test_a_larger_budget_goes_on_with_the_network_of_its_run(tmp_path: Path) -> None:
    options = {"objectives": "cross_entropy", "classical": False, "workers": 1, "out": tmp_path}
    small = Request(table(), budget="1s", **options)
    large = Request(table(), budget="1h", **options)
    assert prepare(small)[0].settings.model == "plain"
    assert prepare(large)[0].settings.model == "tabm"
    compare(table(), budget="1s", quiet=True, **options)
    context, notes = prepare(large)
    assert context.settings.model == "plain"
    assert "network: plain (auto: as this run began; --model tabm would now be chosen)" in notes
    (folder,) = tmp_path.iterdir()
    shutil.copytree(folder, Run(prepare(Request(table(), model="tabm", **options))[0], tmp_path).folder)
    assert prepare(large)[0].settings.model == "tabm"  # both are there: as the budget says


def test_a_run_goes_on_with_as_many_members_as_it_began_with(tmp_path: Path) -> None:
    options = {"objectives": "cross_entropy", "classical": False, "workers": 1, "out": tmp_path}
    done = compare(table(), budget="1s", quiet=True, model="tabm-4", **options)
    assert done.results["protocol"]["model"] == "tabm-4"
    for budget, usual in (("1s", "plain"), ("1h", "tabm")):
        context, notes = prepare(Request(table(), budget=budget, **options))
        assert context.settings.model == "tabm-4"
        assert f"network: tabm-4 (auto: as this run began; --model {usual} would now be chosen)" in notes


def test_the_members_that_auto_chose_are_stored_printed_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "choose_network", lambda *_, **__: pytest.fail("as the estimate says"))
    monkeypatch.setattr(resolved, "choose_network", lambda *_: ("tabm-1", "auto: of one member"))
    monkeypatch.setattr(api, "TABMS", ())  # nothing is timed
    options = {"objectives": "cross_entropy", "classical": False, "workers": 1, "out": tmp_path}
    done = compare(table(), budget="1s", **options)
    assert done.results["protocol"]["model"] == "tabm-1 (auto: of one member)"
    assert "network: tabm-1 (auto: of one member)" in capsys.readouterr().out
    (stored,) = tmp_path.glob("*/results.json")
    assert json.loads(stored.read_text())["protocol"]["model"] == "tabm-1 (auto: of one member)"
    assert done.winner.facts["model"] == "tabm-1"
    assert len(done.predict(table())) == len(table())


def test_fewer_members_and_plain_networks_are_chosen_where_this_machine_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the estimate TabM fits half of the budget; its first steps say how long a round takes here."""
    options = {"objectives": "cross_entropy", "classical": False, "workers": 1, "out": tmp_path, "patience": 60}
    request = Request(table(), budget="10m", **options)
    context, _ = prepare(replace(request, model="tabm"))
    assert tabm_level(context).trials == 4
    assert 0 < round_of_tabm(request, context) < 0.5 * 600
    usual_of = {
        model: 1 / tabm_slowness(with_network(request, context, model), 1.0) for model in ("tabm", "tabm-4", "tabm-1")
    }
    rounds = {model: round_of_tabm(request, with_network(request, context, model)) for model in usual_of}
    for model, fewer in pairwise((*usual_of, "plain")):
        for share, expected in ((1.01, fewer), (0.99, model)):
            slow = share * 0.6 * 600 / rounds[model]  # times as slow as usual, whatever the members
            monkeypatch.setattr(
                api, "time_trials", lambda context, *_, slow=slow: slow * usual_of[context.settings.model]
            )
            context, notes = prepare(request)
            assert context.settings.model == expected
            now = "network: " + expected + " (auto: a round of tabm would take about "
            (note,) = [note for note in notes if note.startswith(now)]
            assert (" of 10m on this machine as it is now, of tabm-4 about " in note) == (expected != "tabm")
            assert context.choice in note
    monkeypatch.setattr(api, "time_trials", lambda *_: 1e6)
    assert prepare(replace(request, model="tabm"))[0].settings.model == "tabm"  # as it was asked for
    compare(table(), budget="1s", quiet=True, model="tabm", **options)
    assert prepare(request)[0].settings.model == "tabm"  # as its run began
