"""The recorder: what it reads, when, at what cost in reads of the device, and that nothing stops the run."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steepest.core.errors import InputError
from steepest.core.probe import Array, Moment, Probe, Reading
from steepest.optim import SAM
from steepest.watch import GradientNorms, LogitSpread, Recorder, UnitActivity, UpdateRatios, logarithmic, read_run
from steepest.watch.journal import Journal


class Counting(Probe):
    """Tells which moments it was shown."""

    name = "counting"
    phases = ("forward", "gradients", "proposed", "stepped")
    cost = "nothing"

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.seen: list[tuple[int, str]] = []

    def measure(self, moment: Moment) -> Reading:
        """The step."""
        self.seen.append((moment.step, moment.phase))
        return Reading({"step": float(moment.step)}, {"row": Array(torch.tensor([1.0, 2.0]), {"place": None})})


class Broken(Probe):
    """Raises always."""

    name = "broken"
    cost = "nothing"
    every = 1

    def measure(self, moment: Moment) -> Reading:
        """Nothing."""
        raise ZeroDivisionError("no reading")


def line(rate: float = 0.5) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """One weight at 1, whose loss is (w x)^2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=rate)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder | None, x: float = 1.0) -> float:
    inputs = torch.tensor([[x]])
    loss = model(inputs).square().mean()
    if recorder is not None:
        recorder.observe(loss, inputs, torch.zeros(1, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder, number: int) -> None:
    for _ in range(number):
        step(model, optimizer, recorder)


def told(recorder: Recorder, number: int) -> None:
    for _ in range(number):
        recorder.observe(torch.tensor(1.0))


def test_all_phases_of_the_due_steps_in_order():
    model, optimizer = line(0.1)
    probe = Counting()
    with Recorder(model, None, optimizer, [probe], every=3) as recorder:
        for _ in range(5):
            step(model, optimizer, recorder)
    phases = ["forward", "gradients", "proposed", "stepped"]
    assert probe.seen == [(1, p) for p in phases] + [(4, p) for p in phases]
    assert recorder.step == 5
    step(model, optimizer, None)
    assert recorder.step == 5, "closed, it watches no more"


def test_values_are_those_of_the_step():
    """w = 1, x = 2: loss 4, gradient 2 w x^2 = 8; at rate 0.05 an update of 0.4, of a weight of 1."""
    model, optimizer = line(0.05)
    with Recorder(model, None, optimizer, [GradientNorms(), UpdateRatios()]) as recorder:
        step(model, optimizer, recorder, 2.0)
    row = recorder.frame().loc[1]
    assert row["loss"] == 4.0
    assert row["gradient_norms/norm"] == 8.0
    assert row["update_ratios/norm"] == pytest.approx(0.4, rel=1e-6)
    assert row["update_ratios/ratio"] == pytest.approx(0.4, rel=1e-6)
    assert recorder.arrays["gradient_norms/by_parameter"][1].values.tolist() == [8.0]


def test_losses_are_those_of_every_batch_and_read_together():
    """Fault of a log that keeps every tenth loss: here each, NaN too, and the device is read at due steps alone."""
    model, optimizer = line(0.1)
    events: list[tuple[str, Any]] = []
    with Recorder(model, None, optimizer, every=20, sinks=[lambda *event: events.append(event)]) as recorder:
        for number in range(1, 41):
            loss = torch.tensor(math.nan) if number == 7 else torch.tensor(float(number))
            recorder.observe(loss)
            model.weight.grad = torch.ones(1, 1)
            optimizer.step()
        assert recorder.host_reads == 2, "after step 1 and after step 21"
    losses = recorder.frame()["loss"]
    assert [losses[k] for k in (1, 6, 8, 40)] == [1.0, 6.0, 8.0, 40.0]
    assert math.isnan(losses[7])
    assert recorder.host_reads == 3
    assert [s for event, facts in events if event == "losses" for s in facts["steps"]] == list(range(1, 41))
    assert events[0][0] == "run_begin"
    assert events[-1] == ("run_end", {"steps": 40})


def test_losses_wait_no_longer_than_fifty():
    model, optimizer = line(0.1)
    recorder = Recorder(model, None, optimizer, [Counting()], every=1000)
    for _ in range(120):
        recorder.observe(1.0)
        optimizer.step()
    assert recorder.host_reads == 3, "after the first step, and then every fifty"


def test_a_loss_is_as_it_was_when_it_was_told():
    """Loops divide it in place for accumulation."""
    model, optimizer = line(0.1)
    loss = torch.tensor(8.0)
    recorder = Recorder(model, None, optimizer, [])
    recorder.observe(loss)
    loss /= 4
    optimizer.step()
    assert recorder.frame()["loss"].tolist() == [8.0]


class First(Probe):
    """Reads a weight and a row as they stand in the model."""

    name = "first"

    def measure(self, moment):
        weight = next(iter(moment.parameters().values()))
        return Reading({"one": weight[0, 0]}, {"row": Array(weight[0], {"place": None})})


def test_a_reading_is_as_it_was_though_the_step_writes_into_what_was_read():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    row = model.weight.detach()[0].tolist()
    with Recorder(model, None, optimizer, [First()], every=1) as recorder:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert recorder.frame()["first/one"].tolist() == row[:1]
    assert recorder.arrays["first/row"][1].values.tolist() == row


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_lengths_of_large_and_small_gradients_are_finite_and_right(size):
    model = nn.Linear(4, 4)
    for p in model.parameters():
        p.grad = torch.full_like(p, size)
    numbers = GradientNorms().measure(Moment(1, "gradients", model)).numbers
    assert float(numbers["norm"]) == pytest.approx(size * math.sqrt(20), rel=1e-6)
    assert float(numbers["nonfinite"]) == 0
    before = {name: torch.full_like(p, 2 * size) for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(size)
    ratio = UpdateRatios().measure(Moment(1, "stepped", model, before=before)).numbers["ratio"]
    assert float(ratio) == pytest.approx(0.5, rel=1e-6)


def test_no_unit_is_known_to_be_dead_in_an_empty_batch():
    moment = Moment(1, "gradients", nn.Sequential(nn.Linear(2, 3), nn.ReLU()), inputs=torch.zeros(0, 2))
    assert math.isnan(float(UnitActivity().measure(moment).numbers["dead"]))


def test_tokens_without_a_label_do_not_count_and_the_median_ratio_is_one():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    moment = Moment(1, "gradients", model, inputs=torch.eye(2), targets=torch.tensor([0, -100]))
    assert float(LogitSpread().measure(moment).numbers["accuracy"]) == 1.0
    three = nn.ParameterList([torch.full((1,), 1.0 + share) for share in (0.1, 0.2, 0.9)])
    before = {name: torch.ones(1) for name, _ in three.named_parameters()}
    median = UpdateRatios().measure(Moment(1, "stepped", three, before=before)).numbers["median_ratio"]
    assert float(median) == pytest.approx(0.2, rel=1e-5)


def test_micro_batches_are_one_step():
    model, optimizer = line(0.1)
    recorder = Recorder(model, None, optimizer, [GradientNorms()])
    for x in (1.0, 3.0):
        inputs = torch.tensor([[x]])
        loss = model(inputs).square().mean()
        recorder.observe(loss, inputs)
        (loss / 2).backward()
    optimizer.step()
    frame = recorder.frame()
    assert frame["loss"].to_dict() == {1: 5.0}, "the mean of 1 and 9"
    assert frame["gradient_norms/norm"].tolist() == [10.0]


def test_gradients_are_those_of_the_loss_whoever_scaled_it():
    """A scale of 65536 and a gradient of 1e-3 read 1e-3; an overflow that the scaler handles is no step."""
    for fused in (False, True):
        model, _ = line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        scaling = torch.amp.GradScaler("cpu", init_scale=65536.0)
        with Recorder(model, None, optimizer, [GradientNorms(every=1)]) as recorder:
            for slope in (1e-3, math.inf, 1e-3):
                optimizer.zero_grad()
                loss = model(torch.tensor([[1.0]])).sum()
                recorder.observe(loss)
                scaling.scale(loss).backward()
                model.weight.grad = torch.full((1, 1), slope) * scaling.get_scale()
                scaling.step(optimizer)
                scaling.update()
        norms = recorder.frame()["gradient_norms/norm"].dropna().tolist()
        assert norms[0] == pytest.approx(1e-3, rel=1e-6), f"fused {fused}"
        if not fused:
            assert recorder.step == 2
            assert norms[1] == pytest.approx(1e-3, rel=1e-6)


def test_steps_with_a_closure_and_two_passes_are_read():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.05)
    recorder = Recorder(model, None, optimizer, [GradientNorms(every=1), UpdateRatios(every=1)])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.tensor([[2.0]])).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    row = recorder.frame().loc[1]
    assert row["gradient_norms/norm"] == pytest.approx(8.8), "2 (w + rho) x^2, which the step uses"
    assert row["update_ratios/norm"] == pytest.approx(0.44)

    plain = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=1)
    recorder = Recorder(model, None, plain, [GradientNorms(every=1), UpdateRatios(every=1)])
    plain.step(closure)
    assert recorder.frame().loc[1].notna().all()


def test_a_probe_that_raises_is_told_of_once_and_rests_after_three():
    model, optimizer = line(0.1)
    recorder = Recorder(model, None, optimizer, [Broken(), GradientNorms(every=1)])
    with pytest.warns(RuntimeWarning, match="broken failed at step 1: ZeroDivisionError") as seen:
        steps(model, optimizer, recorder, 6)
    assert len(seen) == 1
    assert recorder.failures == {"broken": 3}
    assert recorder.frame()["gradient_norms/norm"].count() == 6


class Alarming(Counting):
    """An alarm from the third step on."""

    name = "alarming"

    def measure(self, moment: Moment) -> Reading:
        """The alarm."""
        return Reading({"alarm": float(moment.step >= 3), "level": 2.5})


def test_an_alarm_of_a_probe_is_an_event_and_a_note(tmp_path):
    model, optimizer = line(0.1)
    probe = Alarming()
    probe.phases = ("gradients",)  # type: ignore[misc]
    with Recorder(model, None, optimizer, [probe], sinks=[tmp_path / "run.jsonl"]) as recorder:
        steps(model, optimizer, recorder, 4)
    notes = read_run(tmp_path).notes
    assert [(n["kind"], n["step"], n["cause"], n["readings"]) for n in notes] == [
        ("alarm", 3, ["alarming"], {"level": 2.5}), ("alarm", 4, ["alarming"], {"level": 2.5}),
    ]  # fmt: skip


def test_the_default_probes_of_an_adam(tmp_path):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    names = [p.name for p in Recorder(model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters())).probes]
    assert names == ["gradient_norms", "update_ratios", "unit_activity", "logit_spread", "adam_update"]
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    assert [p.name for p in Recorder(model, None, sgd).probes] == names[:4]


def test_a_sink_that_raises_is_told_no_more():
    model, optimizer = line(0.1)

    def sink(event: str, facts: Any) -> None:
        if event == "losses":
            raise OSError("disk full")

    recorder = Recorder(model, None, optimizer, [], sinks=[sink])
    recorder.observe(1.0)
    with pytest.warns(RuntimeWarning, match="disk full"):
        recorder.flush()
    recorder.observe(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder.flush()


def test_an_optimizer_that_never_steps_is_warned_of():
    """Hooks on another object than the one that steps read nothing: said, not silent."""
    model, optimizer = line(0.1)
    recorder = Recorder(model, None, optimizer, [GradientNorms()])
    with pytest.warns(RuntimeWarning, match="no step of the optimizer was seen"):
        told(recorder, 1000)


def test_a_model_compiled_before_and_after_is_read():
    for early in (False, True):
        model, optimizer = line(0.1)
        compiled: Any = torch.compile(model, backend="eager")
        if early:
            step(compiled, optimizer, None)
        with Recorder(compiled, None, optimizer, [GradientNorms(every=1)]) as recorder:
            step(compiled, optimizer, recorder)
        assert recorder.frame()["gradient_norms/norm"].count() == 1


def test_bad_arguments_are_named():
    model, optimizer = line()
    frozen = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(TypeError, match="model: expected a module"):
        Recorder(3, None, optimizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer: expected"):
        Recorder(model, None, model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 'default' or probes"):
        Recorder(model, None, optimizer, "all")
    with pytest.raises(ValueError, match="probes of different names"):
        Recorder(model, None, optimizer, [GradientNorms(), GradientNorms()])
    with pytest.raises(ValueError, match="expected steps >= 1"):
        Recorder(model, None, optimizer, every=0)
    with pytest.raises(ValueError, match="names of probes"):
        Recorder(model, None, optimizer, [GradientNorms()], every={"norms": 3})
    with pytest.raises(ValueError, match="a parameter that is trained"):
        Recorder(frozen, None, None, [GradientNorms()])
    with pytest.raises(InputError, match=r"ends in \.jsonl"):
        Recorder(model, None, optimizer, sinks=["run.txt"])
    assert [p.name for p in Recorder(frozen, None, None).probes] == ["logit_spread"], "those that fit"


def test_cadences():
    assert [s for s in range(1, 101) if logarithmic(0, 2, 3)(s)] == [1, 10, 100]
    model, optimizer = line(0.1)
    probe, other = Counting(), GradientNorms(every=2)
    with Recorder(model, None, optimizer, [probe, other], every={"counting": lambda s: s in (2, 5)}) as recorder:
        for _ in range(5):
            step(model, optimizer, recorder)
    assert sorted({s for s, _ in probe.seen}) == [2, 5]
    assert recorder.frame()["gradient_norms/norm"].dropna().index.tolist() == [1, 3, 5]


def test_the_journal_is_the_run_also_after_a_kill_and_a_resume(tmp_path):
    """Killed at step 5 with half a line written, resumed from step 3: the file is the run of 6 steps."""
    file = tmp_path / "runs" / "run.jsonl"

    def run(first: int, last: int, state: Any = None) -> Any:
        model, optimizer = line(0.1)
        recorder = Recorder(model, None, optimizer, [Counting()], sinks=[file], name="a")
        if state is not None:
            recorder.load_state_dict(state)
        kept = None
        for number in range(first, last + 1):
            recorder.observe(math.inf if number == 2 else float(number))
            optimizer.step()
            if number == 3:
                kept = recorder.state_dict()
        return kept, recorder

    state, killed = run(1, 5)
    killed.flush()
    with file.open("a") as stream:
        stream.write('{"event":"losses","ste')
    _, recorder = run(4, 6, json.loads(json.dumps(state)))
    recorder.close()
    record = read_run(tmp_path / "runs")
    assert record.losses == ([1, 2, 3, 4, 5, 6], [1.0, math.inf, 3.0, 4.0, 5.0, 6.0])
    assert record.series["counting/step"][0][::4] == [1, 2, 3, 4, 5, 6]
    assert record.ended
    assert record.arrays["counting/row"][0]["values"] == [1.0, 2.0]
    assert record.name == "runs"


def test_a_line_after_one_that_was_cut_is_whole(tmp_path):
    file = tmp_path / "run.jsonl"
    file.write_text('{"event":"losses","steps":[1],"values":[0.5]}\n{"event":"losses","ste')
    journal = Journal(file)
    journal("losses", {"steps": [2], "values": [0.25]})
    journal.close()
    assert read_run(file).losses == ([1, 2], [0.5, 0.25])


def test_state_of_other_probes_is_refused():
    model, optimizer = line()
    recorder = Recorder(model, None, optimizer, [GradientNorms()])
    with pytest.raises(ValueError, match="state: expected"):
        recorder.load_state_dict({"step": 1, "probes": {"counting": {}}})
    assert recorder.step == 0


def test_records_of_other_libraries_are_read(tmp_path):
    state = {"max_steps": 4, "log_history": [{"step": 2, "loss": 1.5, "grad_norm": 3.0}, {"step": 4, "eval_loss": 1.0}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    record = read_run(tmp_path)
    assert record.losses == ([2], [1.5])
    assert record.series == {"grad_norm": ([2], [3.0]), "eval_loss": ([4], [1.0])}
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 2, "loss": NaN, "grad_norm": -Infinity}]}')
    record = read_run(tmp_path)
    assert math.isnan(record.losses[1][0])
    assert record.series == {"grad_norm": ([2], [-math.inf])}
    table = tmp_path / "metrics.csv"
    table.write_text("epoch,step,train_loss,val_loss\n0,1,0.5,\n0,1,,0.75\n")
    record = read_run(table)
    assert record.losses == ([1], [0.5])
    assert record.series == {"val_loss": ([1], [0.75])}


BAD = ["no json\n", '["a"]\n', '{"event":"reading"}\n', '{"event":"losses","steps":3}\n']
BAD += ['{"event":"losses","steps":[1,2],"values":[1.0]}\n', '{"event":"alarm","step":1%s}\n' % ("0" * 400)]
BAD += [
    '{"event":"reading","probe":"p",' + facts + "}\n"
    for facts in (
        '"step":1,"numbers":[1]',
        '"step":"Infinity","numbers":{"a":1}',
        '"step":1%s,"numbers":{"a":1}' % ("0" * 400),
        '"step":1,"numbers":{"a":1%s}' % ("0" * 400),
        '"step":1,"arrays":{"a":{"values":[1.0]}}',
        '"step":1,"arrays":{"a":{"values":[1.0],"axes":["x"]}}',
        '"step":1,"arrays":{"a":{"values":"ab","axes":{"x":null}}}',
        '"step":1,"arrays":{"a":{"values":[[1.0]],"axes":{"x":null}}}',
        '"step":1,"arrays":{"a":{"values":[1.0,2.0],"axes":{"x":["one"]}}}',
        '"step":1,"arrays":{"a":{"values":[[1.0,2.0],[1.0]],"axes":{"x":null,"y":null}}}',
        '"step":1,"arrays":{"a":{"values":[1%s],"axes":{"x":null}}}' % ("0" * 400),
    )
]


@pytest.mark.parametrize("content", ["", *BAD])
def test_what_is_no_record_is_said(tmp_path, content):
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    if content:
        with pytest.raises(InputError, match=r"x\.jsonl"):
            read_run(file)
    else:
        assert read_run(file).losses == ([], [])
    with pytest.raises(InputError, match="no run"):
        read_run(tmp_path / "missing.jsonl")


def test_values_nested_deeper_than_can_be_read_are_said_or_left_out(tmp_path):
    file = tmp_path / "x.jsonl"
    for depth in range(100, 1000, 100):
        file.write_text('{"event":"note","deep":%s}\n' % ("[" * depth + "]" * depth))
        with contextlib.suppress(InputError):
            read_run(file)


def test_logs_of_others_that_are_none_are_said(tmp_path):
    for name, content in (
        ("trainer_state.json", "[]"),
        ("trainer_state.json", '{"log_history": [{"step": Infinity, "loss": 1}]}'),
        ("trainer_state.json", '{"log_history": [{"loss": 1}]}'),
        ("metrics.csv", "step,loss\n1," + "x" * 200_000 + "\n"),  # beyond csv's limit, where that stands
        ("metrics.csv", "step,loss\n1," + "x" * 20_000 + "\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=name) as error:
            read_run(tmp_path / name)
        assert len(str(error.value)) < 400
