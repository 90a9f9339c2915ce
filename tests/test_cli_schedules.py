"""``steepest schedules``: every schedule is drawn with its rates, and takes the arguments of its class."""

from __future__ import annotations

import pytest

from steepest.cli import run
from steepest.optim.schedules import cooldown_shape, one_cycle_rate


def test_every_schedule_is_drawn(capsys):
    assert run(["schedules", "--steps", "100"]) == 0
    said = capsys.readouterr().out
    for text in (
        "one-cycle: OneCycle(",
        "wsd-cooldown: WSD(",
        "wsd-s: WSDS(",
        "shift-schedules: ShiftAware",
        "momentum",
    ):
        assert text in said
    assert said.count("⠀") > 1000


def test_rates_at_steps_are_those_of_the_schedule(capsys):
    assert run(["schedules", "one-cycle", "--steps", "100", "--lr", "0.3", "--at", "0,45,95,100,1000"]) == 0
    said = capsys.readouterr().out
    for step in (0, 45, 95, 100, 1000):
        assert f"  step {step}: {one_cycle_rate(step, 100, 0.3)[0]:.6g}\n" in said


def test_arguments_and_a_figure(capsys, tmp_path):
    words = [
        "--with",
        "shape=lowered_linear",
        "--with",
        "final=0.1",
        "--at",
        "850",
        "--figure",
        str(tmp_path / "a.svg"),
    ]
    assert run(["schedules", "wsd-cooldown", *words]) == 0
    said = capsys.readouterr().out
    assert "shape='lowered_linear', final=0.1" in said
    assert f"step 850: {cooldown_shape('lowered_linear', 0.25, final=0.1):.6g}\n" in said
    assert "wsd-cooldown" in (tmp_path / "a.svg").read_text(encoding="utf-8") or (tmp_path / "a.svg").stat().st_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wsd-cooldown", "--with", "shape=sine"], "wsd-cooldown: shape: expected one of"),
        (["one-cycle", "--with", "dvi=3"], "unexpected keyword argument 'dvi'; did you mean 'div'?"),
        (["wsd-s", "--with", "budgets=[3, 2]"], "wsd-s: budgets: expected numbers of steps that grow"),
    ],
)
def test_what_a_schedule_refuses_is_one_line(capsys, words, message):
    assert run(["schedules", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
