"""Train the members of a comparison: as stacks where the model allows it, one by one otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.each_member import EachMember
from ...core.objective import Objective, TaskInfo
from ...core.random import seed_all
from ...core.torch_private import foreach_lerp_
from ...data.sampling.per_class import per_class_batches
from ...descent import (
    ArrayBatches,
    Batches,
    Descent,
    EarlyStopping,
    Hook,
    Stack,
    StackedAdamW,
    StackedBatches,
    StackedObjective,
    StackedStep,
    architecture,
    drop,
    stackable,
)
from ...descent.augment import Augment
from ...descent.members import is_tabm
from ...gradients.joint import backward
from ...nn.networks import Network
from ..design.arms import PLAIN, Arm
from ..design.context import Split
from ..design.deadline import OutOfTime
from ..design.embeddings import PER_CLASS
from ..design.models import Backbone, build, feature_width, on_rows
from ..design.trials import PEAK, Trial
from ..metrics.metric import Metric
from ..read.lists import RANKING
from ..read.retrieval import RETRIEVAL
from ..scores.outcome import Outcome
from ..scores.retrieval import ranked
from .list_batches import batches_of_lists, scores_of

ASKED, SILENT = 50, 0.5
"""Steps, and seconds, at most from one question whether the time is over to the next."""


@dataclass
class Member:
    """One training: a split, a trial, seeds; ``length`` None is early stopping, else so many epochs.

    ``conflict`` is how far the gradients of several losses disagreed, where they are aggregated.
    ``outputs`` are those of ``split.other_inputs``, ``test_outputs`` those of ``split.test_inputs``; of texts what was
    scored of them, with a few ``samples``: prompt, how it goes on, and how the model goes on.
    """

    split: Split
    trial: Trial
    info: Any
    seeds: dict[str, int]
    length: int | None = None
    score: float = float("nan")
    epochs: int = 0
    curve: list[float] = field(default_factory=list)
    outputs: Tensor | Outcome | None = None
    test_outputs: Tensor | Outcome | None = None
    objective: Objective | None = None
    state: dict[str, Tensor] | None = None
    conflict: dict[str, Any] | None = None
    samples: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """What is the same for all members: objective class, model, epochs, how a metric is taken."""

    objective: type[Objective]
    backbone: Backbone
    epochs: int
    patience: int
    batch_size: int
    metric: Metric
    device: str = "cpu"
    augment: Augment | None = None
    fixed_length: bool = False
    over: Callable[[], bool] | None = None
    """Whether the time is over, asked after :data:`ASKED` steps or :data:`SILENT` seconds; then :class:`OutOfTime`."""
    arm: Arm = PLAIN
    """The optimizer, schedule and aggregator."""
    stacks: bool = True
    """Whether members may train as a stack: where objectives are compared; other arms all train one by one."""

    def steps(self, rows: int) -> tuple[int, int]:
        """``(batch size, steps an epoch)`` for so many rows."""
        batch = min(self.batch_size, rows)
        return batch, -(-rows // batch)


def outcome_of(objective: Objective, outputs: Tensor | Outcome, split: Split) -> Outcome:
    """What a model with these outputs says, in the units of the data."""
    if isinstance(outputs, Outcome):  # of texts, where logits are never there as a whole
        return outputs
    if split.task == RETRIEVAL:
        return Outcome(ranked(objective.predict(outputs), split.other_target))
    with torch.no_grad():
        predicted = objective.predict(outputs).cpu().numpy()
        if split.task == RANKING:
            return Outcome(scores_of(objective, predicted, split.scale))
        if split.task in ("regression", "multitask"):
            mean, deviation = split.scale
            return Outcome(predicted.astype(np.float64) * deviation + mean, None, None)
        probabilities = objective.probabilities(outputs)
        several = isinstance(objective, EachMember)
        decision = objective.decision(outputs) if split.task == "binary" or several else outputs
        return Outcome(
            predicted,
            None if probabilities is None else probabilities.double().cpu().numpy(),
            decision.double().cpu().numpy(),
        )


class _FixedLength(Hook):
    """Looks after each epoch of a training of fixed length; what counts is the last one."""

    def __init__(
        self,
        recipe: Recipe,
        member: Member,
        look: Callable[[Tensor], Tensor],
        weights: Callable[[], dict[str, Tensor]],
    ) -> None:
        self.recipe, self.member, self.look, self.weights = recipe, member, look, weights

    def on_epoch_end(self, descent: Descent) -> None:
        member, split = self.member, self.member.split
        if len(split.other_inputs):
            member.outputs = self.look(split.other_inputs)
            member.score, member.epochs = _score(self.recipe, member, member.outputs), descent.epoch
            member.curve.append(member.score)

    def on_end(self, descent: Descent) -> None:
        member = self.member
        member.state = self.weights()
        if member.split.test_inputs is not None:
            member.test_outputs = self.look(member.split.test_inputs)


class _Clock(Hook):
    """Ends a training whose time is over."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self.over, self.steps, self.asked = over, 0, time.monotonic()

    def on_step(self, descent: Descent, *_: Any) -> None:
        self.steps += 1
        now = time.monotonic()
        if self.steps % ASKED and now - self.asked < SILENT:
            return
        self.asked = now
        if self.over():
            raise OutOfTime


class _Watch(Hook):
    """Ends trainings of fixed length, each at its own epoch; ``finished`` gets a model's number."""

    def __init__(self, lengths: Sequence[int], finished: Callable[[int, int], None]) -> None:
        self.lengths, self.finished = list(lengths), finished
        self.alive = list(range(len(self.lengths)))

    def on_epoch_end(self, descent: Descent) -> None:
        going = [descent.epoch < self.lengths[m] for m in self.alive]
        for position, (model, on) in enumerate(zip(self.alive, going)):
            if not on:
                self.finished(model, position)
        if not any(going):
            descent.stop = True
        elif not all(going):
            drop(descent, going)
            self.alive = [m for m, on in zip(self.alive, going) if on]


def train(recipe: Recipe, members: Sequence[Member]) -> dict[str, float]:
    """Train all members, in place; gives seconds, steps and epochs spent.

    Members of equal architecture, batch size and steps train as one stack; images, and models or objectives that
    cannot be stacked, one by one.
    """
    if members and members[0].split.task == "text":
        from .text_training import train_texts  # which takes members and recipes from here

        return train_texts(recipe, members)
    spent = {"seconds": 0.0, "epochs": 0.0}
    groups: dict[tuple[Any, ...], list[tuple[Member, Network]]] = {}
    for member, network in zip(members, networks_of(recipe, members)):
        rows = len(member.split.inputs)
        key = (architecture(network), *recipe.steps(rows), member.length is None)
        groups.setdefault(key, []).append((member, network))
    for pairs in groups.values():
        started = time.perf_counter()
        group, networks = [m for m, _ in pairs], [n for _, n in pairs]
        own = any(list(m.objective.parameters()) for m in group if m.objective)
        alike = stackable(networks[0]) and not own and group[0].split.inputs.ndim == 2
        alike = alike and group[0].split.query is None
        together = alike and recipe.stacks and recipe.augment is None and not recipe.fixed_length
        if is_tabm(networks[0]):  # which a stack trains by hand alone
            together = together and not any(m.objective.needs for m in group if m.objective)
        (_train_stack if together else _train_each)(recipe, group, networks)
        spent["seconds"] += time.perf_counter() - started
        spent["epochs"] += sum(len(m.curve) if m.length is None else m.length for m in group)
    return spent


def networks_of(recipe: Recipe, members: Sequence[Member]) -> list[Network]:
    """The untrained network of each member, from the member's seeds; gives each its objective too."""
    networks = []
    backbones: dict[int, Backbone] = {}
    for member in members:
        shape = tuple(member.split.inputs.shape[1:])
        if id(member.split) not in backbones:
            backbones[id(member.split)], _ = on_rows(recipe.backbone, member.split.inputs)
        backbone = backbones[id(member.split)]
        if member.info.feature_dim == 0:
            with torch.random.fork_rng(devices=[]):
                features = feature_width(backbone(shape[0]), shape)
            member.info = TaskInfo(**{**vars(member.info), "feature_dim": features})
        seed_all(member.seeds["objective"])
        objective = recipe.objective.from_task(member.info, **member.trial.hyper).to(recipe.device)
        network, member.objective = build(
            backbone,
            shape[0],
            objective,
            member.info,
            backbone_seed=member.seeds["backbone"],
            head_seed=member.seeds["head"],
        )
        networks.append(network.to(recipe.device))
    return networks


def _score(recipe: Recipe, member: Member, outputs: Tensor) -> float:
    assert member.objective is not None
    split = member.split
    member.objective.eval()
    score = recipe.metric(split.other_target, outcome_of(member.objective, outputs, split), split.other_weight)
    member.objective.train()
    return score


def _scores(recipe: Recipe, members: Sequence[Member], outputs: Tensor) -> list[float]:
    """The metric of each model of a stack on its held-out rows, the first of ``[models, rows, ...]``.

    A metric of predicted classes is taken of the largest outputs, without probabilities that it would not read.
    """
    rows = [len(m.split.other_inputs) for m in members]
    metric = recipe.metric
    if not (metric.of_predictions and recipe.objective.predict is Objective.predict and outputs.ndim == 3):
        return [_score(recipe, m, out[:n]) for m, n, out in zip(members, rows, outputs)]
    finite = outputs.isfinite().flatten(1).all(1).tolist()
    return [
        metric(m.split.other_target, Outcome(predicted[:n]), m.split.other_weight) if good else metric.worst
        for m, n, predicted, good in zip(members, rows, outputs.argmax(-1).cpu().numpy(), finite)
    ]


def _train_stack(recipe: Recipe, members: Sequence[Member], networks: Sequence[Network]) -> None:
    splits = list({id(m.split): m.split for m in members}.values())
    number = {id(split): i for i, split in enumerate(splits)}
    which = [number[id(m.split)] for m in members]
    device = recipe.device
    held_out = torch.nn.utils.rnn.pad_sequence([s.other_inputs for s in splits], batch_first=True).to(device)
    batch, steps = recipe.steps(len(members[0].split.inputs))
    batches = StackedBatches(
        [(s.inputs.to(device), s.target.to(device), None if s.weight is None else s.weight.to(device)) for s in splits],
        which,
        [m.seeds["order"] for m in members],
        batch_size=batch,
        steps=steps,
        samplers=[_sampler(m.objective, m.split.task) for m in members],
    )
    stack = Stack(networks, [m.seeds["objective"] for m in members])
    objectives = [m.objective for m in members if m.objective is not None]
    optimizer = StackedAdamW(
        stack,
        lr=[m.trial.lr for m in members],
        weight_decay=[m.trial.weight_decay for m in members],
        one_pass=True,
    )

    shown: dict[tuple[int, ...], Tensor] = {}

    def look(alive: Sequence[int]) -> Tensor:
        sets = tuple(which[m] for m in alive)
        if sets not in shown:  # the same rows after each epoch, until a model leaves
            shown.clear()
            shown[sets] = held_out[torch.as_tensor(sets, device=device)]
        stack.eval()
        with torch.no_grad():
            outputs: Tensor = stack(shown[sets])
        stack.train()
        return outputs

    def keep_outputs(model: int, outputs: Tensor) -> None:
        members[model].outputs = outputs[: len(members[model].split.other_inputs)].clone()

    if members[0].length is None:
        latest: list[Tensor] = []

        def evaluate(_: Descent) -> list[float]:
            alive = stopping.alive or list(range(len(members)))
            latest[:] = [look(alive)]
            return _scores(recipe, [members[m] for m in alive], latest[0])

        def improved(model: int) -> None:
            keep_outputs(model, latest[0][stopping.alive.index(model)])

        stopping = EarlyStopping(
            evaluate,
            patience=recipe.patience,
            greater_is_better=recipe.metric.greater_is_better,
            improved=improved,
        )
        hook: Hook = stopping
    else:

        def finished(model: int, position: int) -> None:
            keep_outputs(model, look(watch.alive)[position])
            members[model].state = {k: v.cpu() for k, v in stack.member(position).items()}

        watch = _Watch([m.length or 1 for m in members], finished)
        hook = watch
    Descent(
        stack,
        StackedObjective(objectives, batches.labels),
        batches,
        method=StackedStep(by_hand=True),
        optimizer=optimizer,
        hooks=[hook, *clocks(recipe)],
        device=device,
    ).fit(recipe.epochs)
    if isinstance(hook, EarlyStopping):
        for m, member in enumerate(members):
            member.score, member.epochs, member.curve = hook.best[m], hook.best_epoch[m], hook.curves[m]


def _train_each(recipe: Recipe, members: Sequence[Member], networks: Sequence[Network]) -> None:
    for member, network in zip(members, networks):
        split, objective = member.split, member.objective
        assert objective is not None
        batch, steps = recipe.steps(len(split.inputs))
        if split.query is not None:
            batches: Batches = batches_of_lists(
                split, objective, batch_size=batch, steps=steps, seed=member.seeds["order"], device=recipe.device
            )
        else:
            batches = ArrayBatches(
                split.inputs.to(recipe.device),
                split.target.to(recipe.device),
                batch_size=batch,
                steps=steps,
                seed=member.seeds["order"],
                weight=None if split.weight is None else split.weight.to(recipe.device),
                sampler=_sampler(objective, split.task),
                augment=recipe.augment,
            )
        trained = [*network.parameters(), *objective.parameters()]
        optimizer = recipe.arm.build(trained, member.trial)
        average = _average(recipe.arm, member.trial, network)
        scored = network if average is None else average.network

        def look(inputs: Tensor = split.other_inputs, network: Network = scored, optimizer: Any = optimizer) -> Tensor:
            network.eval()
            with torch.no_grad(), _at_rest(optimizer):
                outputs = torch.cat([network(chunk.to(recipe.device)) for chunk in inputs.split(1024)])
            network.train()
            return outputs

        latest: list[Tensor] = []

        def evaluate(_: Descent, member: Member = member, latest: list[Tensor] = latest, look: Any = look) -> float:
            latest[:] = [look()]
            return _score(recipe, member, latest[0])

        def improved(_: int, member: Member = member, latest: list[Tensor] = latest) -> None:
            member.outputs = latest[0].clone()

        def kept_weights(network: Network = scored, optimizer: Any = optimizer) -> dict[str, Tensor]:
            with _at_rest(optimizer):
                return {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}

        def finished(_: int, __: int, member: Member = member, look: Any = look, weights: Any = kept_weights) -> None:
            member.outputs, member.state = look(), weights()

        schedule, hook = None, Hook()
        if recipe.fixed_length:
            hook = _FixedLength(recipe, member, look, kept_weights)
            total = steps * recipe.epochs
            if recipe.arm.schedule is not None:
                schedule = recipe.arm.schedule(optimizer, total)
            else:
                schedule = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, PEAK * member.trial.lr, total_steps=total, cycle_momentum=False
                )
        elif member.length is None:
            hook = EarlyStopping(
                evaluate,
                patience=recipe.patience,
                greater_is_better=recipe.metric.greater_is_better,
                improved=improved,
            )
        else:
            hook = _Watch([member.length], finished)
        seed_all(member.seeds["objective"])
        joint = None if recipe.arm.aggregator is None else _Joint(recipe.arm.aggregator(), network)
        Descent(
            network,
            objective,
            batches,
            optimizer=optimizer,
            schedule=schedule,
            gradients=None if joint is None else joint.fill,
            hooks=[*([] if average is None else [average]), hook, *clocks(recipe)],
            device=recipe.device,
        ).fit(recipe.epochs)
        if joint is not None:
            member.conflict = joint.conflict()
        if isinstance(hook, EarlyStopping):
            member.score, member.epochs, member.curve = hook.best[0], hook.best_epoch[0], hook.curves[0]


class _Average(Hook):
    """An exponential moving average of a network's weights, beside it; what is no weight is copied."""

    def __init__(self, network: Network, decay: float) -> None:
        def average(averaged: Any, current: Any, number: Any) -> None:
            """The first steps count for little: what they begin with is random."""
            foreach_lerp_(averaged, current, 1 - min(decay, (1 + float(number)) / (10 + float(number))))

        self.averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=average)

    @property
    def network(self) -> Network:
        """With averaged weights."""
        network: Network = self.averaged.module
        return network

    def on_step(self, descent: Descent, *_: Any) -> None:
        self.averaged.update_parameters(descent.model)


def _average(arm: Arm, trial: Trial, network: Network) -> _Average | None:
    return None if arm.average is None else _Average(network, trial.options.get("average", arm.average))


@contextmanager
def _at_rest(optimizer: Any) -> Iterator[None]:
    """An optimizer that scores other weights than it trains, such as Schedule-Free, holds those that are scored."""
    if not hasattr(optimizer, "eval"):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


class _Joint:
    """Fills the gradients from the losses of several targets, and notes how far their gradients disagree.

    The aggregator sees those of the backbone, which the targets share; heads get their own.
    """

    def __init__(self, aggregator: Callable[[Tensor], Tensor], network: Network) -> None:
        self.aggregator = aggregator
        self.features: Tensor | None = None
        network.backbone.register_forward_hook(self._kept_features)
        self.cosines: Tensor | float = 0.0
        self.below, self.steps = torch.zeros((), dtype=torch.int64), 0

    def _kept_features(self, _: torch.nn.Module, __: Any, features: Tensor) -> None:
        self.features = features if features.requires_grad else None

    def fill(self, losses: Tensor, _: torch.nn.Module) -> None:
        """The aggregated gradient of the losses ``[T]`` of the last forward pass."""
        backward(losses, features=self.features, aggregator=self._aggregated)
        self.features = None

    def _aggregated(self, jacobian: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(jacobian, dim=1, keepdim=True)
        directions = jacobian / torch.where(lengths > 0, lengths, 1.0)
        cosines = (directions @ directions.mT).double().cpu()
        self.cosines = self.cosines + cosines
        self.below += (cosines < 0).any()
        self.steps += 1
        return self.aggregator(jacobian)

    def conflict(self) -> dict[str, Any] | None:
        """Mean cosines ``[T, T]`` over all steps, and the share of steps with one below 0; None if one is no number."""
        if not isinstance(self.cosines, Tensor) or not bool(self.cosines.isfinite().all()):
            return None
        mean = (self.cosines / self.steps).clamp(-1.0, 1.0)
        return {"cosine": mean.tolist(), "share": float(self.below) / self.steps}


def clocks(recipe: Recipe) -> list[Hook]:
    """What ends trainings whose time is over, where it can be."""
    return [] if recipe.over is None else [_Clock(recipe.over)]


def _sampler(objective: Objective | None, task: str) -> Any:
    own = objective is not None and type(objective).sampler is not Objective.sampler
    if own and objective is not None:
        return objective.sampler
    return several_of_a_class if task == RETRIEVAL else None


def several_of_a_class(labels: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of one epoch in which rows have others of their class beside them."""
    steps = -(-len(labels) // batch_size)
    return iter(per_class_batches(labels, batch_size, steps, generator, min(PER_CLASS, batch_size)))
