"""Conformance of a probe: it measures any run that it says it can, and the run goes on as if nobody had looked."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.memory import SampleMemory
from ..core.probe import NEEDS, PHASES, Array, Moment, Probe, Reading
from ..watch.recorder import Recorder
from ._constructor import constructor_checks, seed_torch
from ._steps import on_two_ranks, same_bits, scaler, snapshot, through_a_file
from ._suite import Bound, bound, run_all

ROWS, CLASSES, TOKENS = 12, 3, 11


class _Classifier(nn.Module):
    """Batch norm, dropout, a memory of each sample, and noise of torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8))
        self.act = nn.ReLU()
        self.head = nn.Linear(8, CLASSES)
        self.memory = SampleMemory(ROWS, (8,))

    def forward(self, x: Tensor) -> Tensor:
        features = self.act(self.body(x))
        if self.training and len(x) <= ROWS:
            self.memory.write(torch.arange(len(x)), features.detach())
        outputs: Tensor = self.head(features + 0.01 * torch.rand(()))
        return outputs


class _Tokens(nn.Module):
    """A small language model: embeddings, a block of attention, a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 8)
        self.norm = nn.LayerNorm(8)
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.act, self.down = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.head = nn.Linear(8, TOKENS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).movedim(-3, 0).transpose(-2, -3)
        mixed = nn.functional.scaled_dot_product_attention(*heads, dropout_p=0.1 * self.training, is_causal=True)
        x = x + self.project(mixed.transpose(-2, -3).flatten(-2))
        outputs: Tensor = self.head(x + self.down(self.act(self.up(self.norm(x)))))
        return outputs


def _token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@dataclass
class Run:
    """A small training run.

    Args:
        model, objective, optimizer: its parts.
        batches: pairs of inputs and targets.
    """

    model: nn.Module
    objective: Callable[[Any, Any], Tensor]
    optimizer: Optimizer
    batches: list[tuple[Tensor, Tensor]]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Of a batch."""
        return self.objective(self.model(batch[0]), batch[1])


def _runs() -> Iterator[tuple[str, Run]]:
    """A classifier and a language model, built anew."""
    seed_torch(0)
    model: nn.Module = _Classifier()
    batches = [(torch.randn(ROWS, 5), torch.arange(ROWS) % CLASSES) for _ in range(4)]
    yield "a classifier", Run(model, nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=0.01), batches)
    seed_torch(0)
    model = _Tokens()
    ids = [torch.randint(TOKENS, (4, 7)) for _ in range(4)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    yield "a language model", Run(model, _token_loss, optimizer, [(i[:, :-1], i[:, 1:]) for i in ids])


def _measured(probe: Probe) -> Iterator[tuple[str, Run]]:
    """The runs that a probe does not refuse."""
    for what, run in _runs():
        try:
            probe.check(run.model, run.optimizer)
        except (TypeError, ValueError):
            continue
        yield what, run


def _fresh(cls: type[Probe], place: int) -> Probe:
    seed_torch(5)
    return cls.instances()[place]


def _train(run: Run, probe: Probe | None, steps: int = 4, **options: Any) -> Recorder | None:
    """Train with a shuffled loader, that is drawn anew each epoch, and the probe at every step."""
    recorder = None
    if probe is not None:
        recorder = Recorder(run.model, run.objective, run.optimizer, [probe], every=1, **options)
    run.model.train()
    for _ in range((steps + 3) // 4):
        for number in torch.utils.data.DataLoader(range(4), batch_size=None, shuffle=True):  # type: ignore[arg-type]
            batch = run.batches[int(number)]
            loss = run.loss(batch)
            if recorder is not None:
                recorder.observe(loss, *batch)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
    return recorder


def _moment(run: Run, phase: str, step: int = 1, **more: Any) -> Moment:
    batch = run.batches[0]
    return Moment(
        step, phase, run.model, optimizer=run.optimizer, objective=run.objective, inputs=batch[0], targets=batch[1],
        **more,
    )  # fmt: skip


def _moments(run: Run, probe: Probe, **more: Any) -> Iterator[Moment]:
    """The moments of a step that a probe measures, after backward of the first batch."""
    run.model.train()
    loss = run.loss(run.batches[0])
    run.optimizer.zero_grad()
    if "forward" in probe.phases:
        yield _moment(run, "forward", losses=loss.detach(), **more)
    loss.backward()
    if "gradients" in probe.phases:
        yield _moment(run, "gradients", losses=loss.detach(), **more)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.optimizer.step()
    for phase in ("proposed", "stepped"):
        if phase in probe.phases:
            yield _moment(run, phase, losses=loss.detach(), before=before, **more)


def check_declaration(cls: type[Probe]) -> None:
    """A name, phases, needs, what it costs, a docstring with an example, and a run that it can measure."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.phases and set(cls.phases) <= set(PHASES), f"phases: {cls.phases}"
    assert set(cls.needs) <= set(NEEDS), f"needs: {cls.needs}"
    assert cls.cost, "cost: what it computes, in words"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    for probe in cls.instances():
        assert isinstance(probe.every, int) and probe.every >= 1, "every: steps"
        assert any(True for _ in _measured(probe)), "it refuses every run of the suite"


def check_reading(cls: type[Probe]) -> None:
    """Readings are numbers by names, and arrays with their axes; some number is finite in a sound run."""
    for place in range(len(cls.instances())):
        for what, run in _measured(_fresh(cls, place)):
            probe, finite = _fresh(cls, place), False
            for _ in range(3):
                for moment in _moments(run, probe):
                    reading = probe.measure(moment)
                    assert isinstance(reading, Reading), f"{what}: not a reading"
                    for name, value in reading.numbers.items():
                        assert isinstance(name, str) and name, "a number without a name"
                        plain = isinstance(value, float) or (isinstance(value, Tensor) and value.ndim == 0)
                        assert plain, f"{name}: neither a float nor a tensor without dimension"
                        finite |= math.isfinite(float(value))
                    for name, array in reading.arrays.items():
                        assert isinstance(array, Array), f"{name}: not an Array"
                        finite |= bool(array.values.double().isfinite().any())
            assert finite, f"{what}: no number is finite"


def check_no_trace(cls: type[Probe]) -> None:
    """A run has the same bits with the probe at every step: weights, buffers, moments, gradients, modes, draws."""
    for place in range(len(cls.instances())):
        for what, run in _measured(_fresh(cls, place)):
            seed_torch(3)
            random.seed(3), np.random.seed(3)  # noqa: NPY002 - what data sets draw from
            _train(run, None)
            alone = _state(run)
            again = dict(_runs())[what]
            probe = _fresh(cls, place)
            seed_torch(3)
            random.seed(3), np.random.seed(3)  # noqa: NPY002
            recorder = _train(again, probe)
            assert recorder is not None
            assert not recorder.failures, f"{what}: it raised"
            recorder.close()
            beside = _state(again)
            for name, values in alone.items():
                if isinstance(values, list):
                    same_bits(values, beside[name], f"{what}, {name}")
                else:
                    assert values == beside[name], f"{what}: {name} changed"


def _state(run: Run) -> dict[str, Any]:
    modules = dict(run.model.named_modules())
    return {
        "weights and buffers": snapshot(run.model),
        "moments": snapshot(run.optimizer),
        "gradients": snapshot([p.grad for p in run.model.parameters()]),
        "draws": [torch.rand(2), torch.tensor(random.random()), torch.tensor(np.random.rand())],  # noqa: NPY002
        "modes": {name: module.training for name, module in modules.items()},
        "requires_grad": [bool(p.requires_grad) for p in run.model.parameters()] and
        {n: p.requires_grad for n, p in run.model.named_parameters()},
        "hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
                  for n, m in modules.items()},
        "attention": (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled(),
                      torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "gradient mode": torch.is_grad_enabled(),
    }  # fmt: skip


def check_repeat(cls: type[Probe]) -> None:
    """The same moment gives the same numbers, whatever has been drawn since."""
    for place in range(len(cls.instances())):
        readings = []
        for seed in (0, 0):
            numbers: list[Tensor] = []
            for _, run in _measured(_fresh(cls, place)):
                probe = _fresh(cls, place)
                seed_torch(seed)
                for moment in _moments(run, probe):
                    numbers += _values(probe.measure(moment))
            readings.append(numbers)
        same_bits(readings[0], readings[1], "a reading")


def _values(reading: Reading) -> list[Tensor]:
    return [torch.as_tensor(v, dtype=torch.float64).clone() for v in reading.numbers.values()] + [
        array.values.detach().double().clone() for array in reading.arrays.values()
    ]


def check_scale(cls: type[Probe]) -> None:
    """Gradients that a scaler has made 65536 times larger give the same reading."""
    if "gradients" not in cls.phases:
        return
    for place in range(len(cls.instances())):
        for what, run in _measured(_fresh(cls, place)):
            loss = run.loss(run.batches[0])
            loss.backward()
            values = []
            for scale in (None, torch.tensor(65536.0)):
                if scale is not None:
                    for p in run.model.parameters():
                        if p.grad is not None:
                            p.grad.mul_(scale)
                seed_torch(1)
                moment = _moment(run, "gradients", losses=loss.detach(), scale=scale)
                values.append(_values(_fresh(cls, place).measure(moment)))
            same_bits(values[0], values[1], f"{what}: multiplied by the scale")


def check_scaler(cls: type[Probe]) -> None:
    """Beside a gradient scaler it measures every step, and an overflow is none."""
    for place in range(len(cls.instances())):
        for what, run in _measured(_fresh(cls, place)):
            probe, scaling = _fresh(cls, place), scaler()
            with Recorder(run.model, run.objective, run.optimizer, [probe], every=1) as recorder:
                for number, batch in enumerate(run.batches):
                    loss = run.loss(batch)
                    recorder.observe(loss, *batch)
                    run.optimizer.zero_grad()
                    scaling.scale(loss).backward()
                    if number == 1:
                        next(p for p in run.model.parameters() if p.grad is not None).grad.fill_(math.inf)  # type: ignore[union-attr]
                    scaling.step(run.optimizer)
                    scaling.update()
            assert recorder.step == 3 and not recorder.failures, f"{what}: {recorder.step} steps, {recorder.failures}"


def check_accumulation(cls: type[Probe]) -> None:
    """Two micro-batches are one step."""
    for place in range(len(cls.instances())):
        for what, run in _measured(_fresh(cls, place)):
            probe = _fresh(cls, place)
            with Recorder(run.model, run.objective, run.optimizer, [probe], every=1) as recorder:
                for number, batch in enumerate(run.batches):
                    loss = run.loss(batch)
                    recorder.observe(loss, *batch)
                    (loss / 2).backward()
                    if number % 2:
                        run.optimizer.step()
                        run.optimizer.zero_grad()
            assert recorder.step == 2 and not recorder.failures, f"{what}: {recorder.step} steps, {recorder.failures}"


def check_degenerate(cls: type[Probe]) -> None:
    """NaN, infinities, zeros and no gradient at all give readings, and raise nothing."""
    for place in range(len(cls.instances())):
        for fill in (math.nan, math.inf, 0.0, 1.0, None):
            for what, run in _measured(_fresh(cls, place)):
                for where in ("gradients", "weights"):
                    probe = _fresh(cls, place)
                    for moment in list(_moments(run, probe)):
                        with torch.no_grad():
                            for p in run.model.parameters():
                                if where == "weights" and fill is not None:
                                    p.fill_(fill)
                                elif fill is None:
                                    p.grad = None
                                elif p.grad is not None:
                                    p.grad.fill_(fill)
                        try:
                            reading = probe.measure(moment)
                        except Exception as error:
                            text = f"{what}, {where} of {fill}, {moment.phase}: {type(error).__name__}: {error}"
                            raise AssertionError(text) from error
                        assert isinstance(reading, Reading)


def check_batches(cls: type[Probe]) -> None:
    """Batches of one row, of constants, and moments without a batch where none is needed raise nothing."""
    for place in range(len(cls.instances())):
        for what, run in _measured(_fresh(cls, place)):
            x, y = run.batches[0]
            for inputs, targets in ((x[:2], y[:2]), (x[:1].expand_as(x), y[:1].expand_as(y)), (x[:0], y[:0])):
                if len(inputs) == 0 and isinstance(run.model, _Classifier):
                    continue  # batch norm takes no empty batch
                probe = _fresh(cls, place)
                run.batches = [(inputs, targets)]
                for moment in _moments(run, probe):
                    try:
                        probe.measure(moment)
                    except Exception as error:
                        text = f"{what}, {len(inputs)} rows: {type(error).__name__}: {error}"
                        raise AssertionError(text) from error


def check_frozen(cls: type[Probe]) -> None:
    """A model of which a part is trained is measured; one of which nothing is, measured or refused."""
    for place in range(len(cls.instances())):
        for what, run in _measured(_fresh(cls, place)):
            parameters = list(run.model.parameters())
            for p in parameters[:2]:
                p.requires_grad_(False)
            probe = _fresh(cls, place)
            recorder = _train(run, probe)
            assert recorder is not None and not recorder.failures, f"{what}, partly frozen: it raised"
            recorder.close()
            assert [p.requires_grad for p in parameters[:3]] == [False, False, True], "requires_grad changed"
            for p in parameters:
                p.requires_grad_(False)
            try:
                probe.check(run.model, run.optimizer)
            except (TypeError, ValueError) as error:
                assert "expected " in str(error), f"not the uniform error but {error}"


def check_compiled(cls: type[Probe]) -> None:
    """A compiled model gives the reading of the plain one."""
    for place in range(len(cls.instances())):
        values = []
        for compiled in (False, True):
            numbers: list[Tensor] = []
            for _, run in _measured(_fresh(cls, place)):
                probe = _fresh(cls, place)
                loss = run.loss(run.batches[0])
                loss.backward()
                shell: Any = torch.compile(run.model, backend="eager") if compiled else run.model
                before = {name: 2 * p.detach() for name, p in run.model.named_parameters()}
                for phase in probe.phases:
                    seed_torch(1)
                    moment = _moment(run, phase, losses=loss.detach(), before=before)
                    moment = Moment(
                        1, phase, shell, optimizer=run.optimizer, objective=run.objective, inputs=moment.inputs,
                        targets=moment.targets, losses=moment.losses, before=before,
                    )  # fmt: skip
                    numbers += _values(probe.measure(moment))
            values.append(numbers)
        same_bits(values[0], values[1], "a compiled model")


def check_state(cls: type[Probe]) -> None:
    """State goes through a file; the readings after loading are those of an uninterrupted run."""
    for place in range(len(cls.instances())):
        for what, run in _measured(_fresh(cls, place)):
            probe = _fresh(cls, place)
            for moment in _moments(run, probe):
                probe.measure(moment)
            state = through_a_file(probe.state_dict())
            early = copy.deepcopy(state)
            twin = _fresh(cls, place)
            twin.load_state_dict(state)
            for moment in _moments(run, probe):
                seed_torch(2)
                a = _values(probe.measure(moment))
                moment = copy.copy(moment)
                moment._shared = {}
                seed_torch(2)
                same_bits(a, _values(twin.measure(moment)), f"{what}: after loading")
            same_bits(snapshot(early), snapshot(state), f"{what}: a state that goes on changing after it was given")


def check_ranks(cls: type[Probe]) -> None:
    """Two ranks train as without it, and the first one measures."""
    check_on_ranks([cls])


def check_on_ranks(classes: Sequence[type[Probe]]) -> None:
    """:func:`check_ranks` of several classes by one pair of processes."""
    for results in on_two_ranks(_on_rank, list(classes)):
        for name, (alone, watched, failures) in results.items():
            same_bits(alone, watched, f"{name}: on two ranks")
            assert failures == 0, f"{name}: it raised on two ranks"


def _on_rank(rank: int, classes: list[type[Probe]]) -> dict[str, tuple[list[Tensor], list[Tensor], int]]:
    """For each class that measures the language model: weights without it and with it, and how often it raised."""
    alone, _ = _halves(rank, None)
    results = {}
    for cls in classes:
        probe = _fresh(cls, 0)
        if any(what == "a language model" for what, _ in _measured(probe)):
            results[cls.name] = (alone, *_halves(rank, probe))
    return results


def _halves(rank: int, probe: Probe | None) -> tuple[list[Tensor], int]:
    """Weights of the language model trained by two ranks, each on its half of every batch."""
    run = dict(_runs())["a language model"]
    model = nn.parallel.DistributedDataParallel(run.model)
    recorder = None if probe is None else Recorder(model, run.objective, run.optimizer, [probe], every=1)
    seed_torch(rank)
    for x, y in run.batches:
        own = slice(2 * rank, 2 * rank + 2)
        loss = run.objective(model(x[own]), y[own])
        if recorder is not None:
            recorder.observe(loss, x[own], y[own])
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
    return snapshot(run.model), 0 if recorder is None else sum(recorder.failures.values())


QUICK = (
    *constructor_checks(lambda cls: cls.instances()),
    check_declaration, check_reading, check_no_trace, check_repeat, check_scale, check_scaler, check_accumulation,
    check_degenerate, check_batches, check_frozen, check_compiled, check_state,
)  # fmt: skip
ALL = (*QUICK, check_ranks)


def probe_checks(cls: type[Probe]) -> Bound:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(ALL, cls)


def check_probe(cls: type[Probe]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run_all(probe_checks(cls), cls)
