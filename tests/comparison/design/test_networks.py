"""Which network ``auto`` is, how long networks train, and how much work they are."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from steepest.comparison import api
from steepest.comparison.api import prepare
from steepest.comparison.design.context import Context
from steepest.comparison.design.effort import SPEED, STEP, cell_seconds, multiply_adds, work_of
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.levels import Level
from steepest.comparison.design.models import TABMS, find_model, members_of, on_rows
from steepest.comparison.design.networks import (
    BATCHES,
    TABM_REACHED,
    choose_network,
    round_of_tabm,
    share_of_one,
    training_of,
    with_network,
)
from steepest.comparison.errors import InputError
from steepest.comparison.request import Request
from steepest.comparison.verdict.results import protocol
from steepest.comparison.work import timing
from steepest.comparison.work.cells import recipe_of
from steepest.nn.networks import mlp
from steepest.nn.tabm import TabM


def frame(rows: int = 120, columns: int = 4) -> pd.DataFrame:
    """Numbers, and one of two classes."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(rows, columns)), columns=[f"x{i}" for i in range(columns)])
    return table.assign(label=np.where(table["x0"] > 0, "yes", "no"))


def prepared(**options: Any) -> tuple[Context, list[str]]:
    """A comparison of one objective on these rows."""
    given = {"data": frame(), "objectives": "cross_entropy", "classical": False, "workers": 1, **options}
    return prepare(Request(**given))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on which all that is timed takes no time: the estimate alone decides."""
    monkeypatch.setattr(api, "time_trials", lambda *_: 0.0)


def test_auto_is_tabm_where_a_round_of_it_takes_half_of_the_budget() -> None:
    context, notes = prepared(budget="1h")
    assert context.settings.model == "tabm"
    (why,) = [note for note in notes if note.startswith("network: tabm (auto")]
    assert "of 1h" in why
    assert context.choice in why
    assert protocol(context)["model"] == f"tabm ({context.choice})"


def test_auto_is_plain_where_it_does_not_fit() -> None:
    context, notes = prepared(budget="1s")
    assert context.settings.model == "plain"
    assert any(note.startswith("network: plain (auto") for note in notes)
    settings, _ = prepared(model="plain")
    assert context.settings == settings.settings  # the same run, however the network was chosen


def test_the_round_may_take_half_of_the_budget_and_no_more() -> None:
    seconds = _seconds_said(1)
    data = frame(2000, 20)
    chosen = {part: prepared(data=data, budget=f"{part * seconds:.0f}s")[0].settings.model for part in (1.8, 2.3)}
    assert chosen == {1.8: "tabm-4", 2.3: "tabm"}


def test_members_are_the_most_whose_round_takes_half_of_the_budget() -> None:
    request = Request(frame(2000, 20), objectives="cross_entropy", classical=False, workers=1)
    context = prepare(replace(request, model="plain"))[0]
    rounds = {model: round_of_tabm(request, with_network(request, context, model)) for model in TABMS}
    assert list(rounds) == ["tabm", "tabm-4", "tabm-1"]
    assert rounds["tabm"] > 1.5 * rounds["tabm-4"] > 2.25 * rounds["tabm-1"]
    for model, fewer in pairwise((*TABMS, "plain")):
        for share, expected in ((1.01, model), (0.99, fewer)):
            chosen, why = choose_network(replace(request, budget=f"{share * 2 * rounds[model]}s"), context)
            assert chosen == expected
            assert why.count(" about ") == min(3, (*TABMS, "plain").index(expected) + 1)  # all that were asked about


@pytest.mark.parametrize(("objectives", "least"), [("default", 4), ("cross_entropy,focal,ldr,harmonic", 3)])
def test_of_one_member_half_of_the_objectives_have_to_fit(objectives: str, least: int) -> None:
    request = Request(frame(2000, 20), objectives=objectives, classical=False, workers=1)
    context = prepare(replace(request, model="plain"))[0]
    count = len(context.settings.objectives)
    assert count == {4: 8, 3: 4}[least]
    needed = round_of_tabm(request, with_network(request, context, "tabm-1")) * least / count
    for share, expected in ((1.01, "tabm-1"), (0.99, "plain")):
        chosen, why = choose_network(replace(request, budget=f"{share * 2 * needed}s"), context)
        assert chosen == expected
        assert why.endswith(f" with {least} of {count} objectives")


def test_networks_share_splits_and_are_trained_as_if_asked_for() -> None:
    request = Request(frame(), objectives="cross_entropy", classical=False, workers=1, patience=5)
    context = prepare(replace(request, model="tabm"))[0]
    for model in (*TABMS, "plain"):
        another = with_network(request, context, model)
        assert another.settings == prepare(replace(request, model=model))[0].settings
        assert another.split((0, 0), 0) is context.split((0, 0), 0)
        assert another.at(another.level).settings.model == model
        assert another.at(Level(30, 8, 1)).settings.model == model
    assert context.at(Level(30, 8, 1)).settings.model == "tabm"


@pytest.mark.parametrize(("model", "members"), [("tabm", 16), ("tabm-4", 4), ("tabm-1", 1)])
def test_names_say_how_many_members_there_are(model: str, members: int) -> None:
    context = prepared(model=model)[0]
    backbone, _ = on_rows(find_model(model), context.split((0, 0), 0).inputs)
    assert members_of(backbone(4)) == members_of(find_model(model)(4)) == members
    assert training_of(model, 7000) == training_of("tabm", 7000)
    assert context.trials("cross_entropy") == prepared(model="tabm")[0].trials("cross_entropy")


def _seconds_said(workers: int, **options: Any) -> float:
    """What the note says that a round takes."""
    context, _ = prepared(workers=workers, data=frame(2000, 20), budget="1000h", **options)
    words = context.choice.split(" about ")[1].split(" of ")[0]
    said = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", words)
    assert said is not None
    return 60.0 * int(said[1] or 0) + int(said[2] or 0)


def test_more_processes_and_fewer_objectives_make_the_round_shorter() -> None:
    alone = _seconds_said(1)
    assert _seconds_said(2) == pytest.approx(alone / 2, abs=1.0)
    assert _seconds_said(1, objectives="cross_entropy,focal") == pytest.approx(2 * alone, abs=1.5)
    assert _seconds_said(1, folds=10) > 1.9 * alone
    assert _seconds_said(1, repeats=9) == alone  # it is one round that counts
    assert _seconds_said(1, trials=32) == alone  # with four trials


@pytest.mark.parametrize("model", ["plain", "tabm", "tabm-1"])
def test_the_training_on_all_rows_is_told_by_the_work_of_one_network(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = prepared(data=frame(2000, 20), model=model, trials=4)[0]
    level, work, epochs = context.level, work_of(context), context.settings.epochs
    speed = TABM_REACHED if model in TABMS else SPEED
    cell = partial(cell_seconds, context, level, work=work, inner=1, full=True, speed=speed)
    steps = math.ceil(level.rows / context.settings.batch_size)
    alone = (cell() - cell(refit=False)) / (epochs * steps)  # a step of one network
    share = alone / (4 * alone - 3 * STEP)
    assert share_of_one(context, 4) == pytest.approx(share)
    assert 1 / 4 < share < 1 == share_of_one(context, 1)
    job = Job("objective", "cross_entropy", ((0, 0),))
    recipe = recipe_of(context, context.objective("cross_entropy"))
    monkeypatch.setattr(timing, "_time_epoch", lambda *_: (2.0, 5, recipe))  # five steps of all trials take so long
    trials = timing.time_trials(context, job, 5)
    assert trials == pytest.approx(epochs * recipe.steps(1200)[1] / 5 * 2.0)
    assert timing.time_job(context, job) == pytest.approx(trials + epochs * steps / 5 * 2.0 * share)


def test_an_explicit_network_is_taken_whatever_the_budget() -> None:
    context, notes = prepared(model="tabm", budget="1s")
    assert context.settings.model == "tabm"
    assert not any("auto" in note for note in notes)
    assert context.choice == ""
    assert protocol(context)["model"] == "tabm"


def test_mlp_is_plain() -> None:
    assert prepared(model="mlp")[0].settings == prepared(model="plain")[0].settings
    assert find_model("mlp") is find_model("plain")


def test_auto_is_plain_for_several_targets() -> None:
    table = frame().assign(goal=frame()["x1"] * 2, other=frame()["x2"])
    given = {"target": ["label", "goal", "other"], "objectives": "default", "budget": "10h"}
    assert prepared(data=table, **given)[0].settings.model == "plain"
    with pytest.raises(InputError, match="use plain"):
        prepared(data=table, model="tabm", **given)


def test_a_part_of_the_rows_keeps_the_choice() -> None:
    context, _ = prepared(budget="1h")
    assert context.at(Level(30, 8, 1)).choice == context.choice != ""


def test_batches_of_tabm_grow_with_the_rows() -> None:
    least = [rows for rows, _ in BATCHES]
    sizes = [training_of("tabm", rows).batch_size for rows in [*sorted(least), 10**7]]
    assert sizes == [32, 64, 128, 256, 512, 1024, 1024]
    assert [training_of("tabm", rows - 1).batch_size for rows in sorted(least)[1:]] == [32, 64, 128, 256, 512]


@pytest.mark.parametrize("name", ["epochs", "patience", "batch_size"])
@pytest.mark.parametrize("model", ["plain", "tabm"])
def test_what_is_asked_for_goes_before_a_network_s_own_training(name: str, model: str) -> None:
    own, asked = prepared(model=model)[0].settings, prepared(model=model, **{name: 7})[0].settings
    assert getattr(own, name) == getattr(training_of(model, 120), name)
    assert getattr(asked, name) == 7


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("numeric", [0, 4])
@pytest.mark.parametrize("body", ["plain", "tabm"])
def test_multiply_adds_are_those_that_torch_counts(body: str, numeric: int, outputs: int) -> None:
    edges = [torch.linspace(0, 1, 49)] * numeric
    model = mlp(6) if body == "plain" else TabM(6, numeric=range(numeric), edges=edges)
    counter = FlopCounterMode(display=False)
    with counter:
        features = model(torch.zeros(5, 6))
        features @ torch.zeros(128, outputs)  # the head of each member
    counted = counter.get_total_flops() / 2 / 5  # a multiply and an add, of each of five rows
    own = multiply_adds(model, outputs)
    elementwise = 16 * (17 * numeric + 6) if body == "tabm" else 0  # scales and slopes are no products of matrices
    assert counted <= own <= counted + elementwise


def test_cells_grow_with_rows_epochs_trials_and_work() -> None:
    context, _ = prepared(data=frame(2000), model="tabm")
    work, level = work_of(context), Level(1000, 60, 4)
    base = cell_seconds(context, level, work=work, inner=1)
    for more in (Level(1200, 60, 4), Level(1000, 70, 4), Level(1000, 60, 5)):
        assert cell_seconds(context, more, work=work, inner=1) > base
    assert cell_seconds(context, level, work=2 * work, inner=1) > base
    assert cell_seconds(context, level, work=work, inner=3) > base
    assert cell_seconds(context, level, work=work, inner=1, full=True) > base
    assert cell_seconds(context, level, work=work, inner=1, speed=1e12) < base
