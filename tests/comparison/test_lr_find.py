"""``steepest lr-find``: the range test on a table, with the network and the batches of a comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from steepest.cli import run
from steepest.comparison.api import prepare
from steepest.comparison.request import Request
from steepest.comparison.work.learning_rate import range_test


def found(capsys, *words):
    assert run(["lr-find", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rates_rise_once_a_step_whatever_a_step_accumulates(capsys):
    one = found(capsys, "wine", "--steps", "12", "--start", "1e-5", "--end", "1e-3")
    four = found(capsys, "wine", "--steps", "3", "--start", "1e-5", "--end", "1e-3", "--accumulate", "4")
    assert one["lr"] == pytest.approx(np.geomspace(1e-5, 1e-3, 12).tolist())
    assert four["lr"] == pytest.approx([1e-5, 1e-4, 1e-3])
    assert len(four["loss"]) == 3
    assert one["loss"][0] != four["loss"][0]
    assert np.mean(one["loss"][:4]) == pytest.approx(four["loss"][0], rel=0.02)  # the same batches, nearly untrained
    assert found(capsys, "wine", "--steps", "12", "--start", "1e-5", "--end", "1e-3") == one


def test_the_first_loss_is_that_of_the_network_before_training_and_random_states_stay(capsys):
    context, _ = prepare(Request("wine", objectives="focal", classical=False))
    state, of_numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    test = range_test(context, "focal", start_lr=1e-9, end_lr=1e-8, steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == of_numpy  # noqa: NPY002
    again = range_test(context, "focal", start_lr=1e-9, end_lr=1e-8, steps=5, optimizer="sgd")
    assert test.losses[0] == again.losses[0]
    assert test.losses == pytest.approx(again.losses, rel=1e-3)  # nobody moves at these rates
    assert 0.0 < test.losses[0] < np.log(3) + 0.5


@pytest.mark.parametrize("words", [["diabetes"], ["wine", "--objective", "ldr"], ["digits", "--model", "residual"]])
def test_numbers_other_objectives_and_networks(capsys, words):
    result = found(capsys, *words, "--steps", "8", "--end", "0.1")
    assert 1e-7 <= result["suggestion"] <= 0.01
    assert result["objective"] == ("squared_error" if words == ["diabetes"] else words[-1] if "ldr" in words else
                                   "cross_entropy")  # fmt: skip
    assert all(map(np.isfinite, result["loss"]))


def test_what_is_said_and_drawn(capsys, tmp_path):
    figure = tmp_path / "lr.png"
    assert run(["lr-find", "wine", "--steps", "60", "--end", "100", "--figure", str(figure)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("reading wine, which is built in\n")
    assert "suggestion: " in said
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert run(["lr-find", "wine", "--steps", "5", "--start", "1e-4", "--end", "1e-3"]) == 0
    assert "a larger --end would find more" in capsys.readouterr().out


def test_a_loss_that_is_no_number_is_one_line(capsys, monkeypatch):
    linear = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: float("nan") * linear(self, x))
    assert run(["lr-find", "wine", "--steps", "3"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
