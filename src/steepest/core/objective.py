"""The contract of an objective: a loss of outputs and targets that a comparison can use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .checks import check_choice, check_domain, check_number, check_tensor, check_weight, refuse, refuse_type
from .heads import ScalarHead
from .loss import Loss, Sample
from .reductions import REDUCTIONS
from .scalars import plain
from .search import Space
from .terms import kept_terms
from .transforms import transformed

TASKS = ("binary", "multiclass", "multilabel", "regression", "multitask", "retrieval", "ranking", "text")
DOMAINS = ("logits", "score", "cosine", "probabilities", "log_probabilities", "real", "embedding")
TARGETS = ("index", "soft", "multi_hot", "real")
NEEDS = ("index", "features", "inputs", "head", "attributes", "teacher", "teacher_features", "mask", "ids", "query")
CONSTANT_NEEDS = ("attributes", "teacher", "teacher_features", "mask", "ids", "query")
"""Those that come with the data: no gradient flows into them."""


@dataclass(frozen=True)
class TaskInfo:
    """What an objective may know of its task: facts of the *training split*, nothing of validation or test.

    Args:
        task: ``"binary"``, ``"multiclass"``, ``"multilabel"``, ``"regression"``, ``"retrieval"``
            (``num_classes`` counts the labels of the training split), ``"ranking"`` or ``"text"``.
        num_samples: rows of the training split; ``index`` runs over ``0..num_samples - 1``.
        num_classes: number of classes C (1 for regression).
        class_counts: C training counts (empty for regression); a class without rows counts 1, so that margins and
            weights made of its inverse stay finite.
        feature_dim: width of the features that reach the head.
        epochs: planned epochs.
        steps_per_epoch: steps in one epoch.
        seed: seed of whatever the objective draws.
    """

    task: str
    num_samples: int
    num_classes: int = 1
    class_counts: tuple[int, ...] = ()
    feature_dim: int = 0
    epochs: int = 1
    steps_per_epoch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        for own in fields(self):
            object.__setattr__(self, own.name, plain(getattr(self, own.name)))
        object.__setattr__(self, "class_counts", tuple(n or 1 for n in self.class_counts))


class Objective(Loss):
    """A loss of outputs and targets. Members declare what they take; nothing is guessed.

    Class attributes:
        name: the command line's word, snake_case, unique.
        tasks, domain, targets: what it can be used for, what its outputs are, which targets it takes.
        unit: ``"sample"`` (reductions none / mean / sum, ``weight=`` [N]) or ``"batch"`` (mean only).
        ranks: of unit ``"batch"`` where several ranks train one model: ``"local"`` (each rank has the loss of its own
            batch, and gradients are averaged, which the docstring says) or ``"gather"`` (value and averaged gradient
            are those of one process with the joined batch).
        gradient: ``"exact"``, or ``"surrogate"`` with ``reference_gradient`` for the conformance suite.
        needs: keyword arguments of ``forward`` beyond outputs and target, from a closed list; ``ids`` are equal for
            items that occur twice in a batch, ``query`` for flat scores of one list.
        views: how many views of each input one step takes.
        stateful: whether ``forward`` or the epoch calls write state (per-sample memory, random streams).
        search: hyper-parameters a comparison tunes; defaults are those of ``__init__``.
        exempt: names of conformance checks that don't apply, each with its reason.
    """

    name: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ()
    domain: ClassVar[str] = "logits"
    targets: ClassVar[tuple[str, ...]] = ("index",)
    unit: ClassVar[str] = "sample"
    ranks: ClassVar[str] = "local"
    needs: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[int] = 1
    search: ClassVar[dict[str, Space]] = {}

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS if self.unit == "sample" else ("mean",))
        self.reduction = reduction

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """The objective for a task, with hyper-parameters by name."""
        return cls(**hyper)

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """The output layer this objective wants over ``feature_dim`` features; it belongs to the model."""
        if info.task == "regression" or (self.domain == "score" and info.task == "binary"):
            return ScalarHead(feature_dim)
        return nn.Linear(feature_dim, info.num_classes)

    def forward(self, outputs: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """The loss; see the class for shapes."""
        raise NotImplementedError

    def fused_row(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``[r]`` of some rows and the gradient ``[r, C]`` of each in its own logits, both detached.

        The way onto a head whose logits never exist as a whole: :func:`steepest.kernels.linear_loss`. This default
        differentiates ``forward``.
        """
        if self.unit != "sample" or self.needs:
            refuse_type("objective", "one of single samples that needs nothing but outputs and target", self.name)
        reduction, self.reduction = self.reduction, "none"
        try:
            if transformed():
                losses, pull = torch.func.vjp(lambda z: self(z, target), logits.detach())
                (gradient,) = pull(torch.ones_like(losses))
                return losses.detach(), gradient.detach()
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_()
                losses = self(leaf, target)
            (gradient,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses))
        finally:
            self.reduction = reduction
        return losses.detach(), gradient

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Class probabilities ``[N, C]``, or None where the method gives none."""
        return None

    def predict(self, outputs: Tensor) -> Tensor:
        """Class indices ``[N]`` (from scores ``[N]``: positive is class 1), or real predictions ``[N]``."""
        if self.tasks == ("regression",):
            return outputs
        return (outputs > 0).long() if outputs.ndim == 1 else outputs.argmax(-1)

    def decision(self, outputs: Tensor) -> Tensor:
        """What ranks rows: ``[N]`` for two classes, above 0 for class 1; ``[N, C]`` for more, the largest is predicted.

        The outputs themselves, or the log-probabilities of an objective whose most probable class need not have the
        largest output.
        """
        if outputs.ndim == 1:
            return outputs
        if type(self).predict is not Objective.predict:
            p = self.probabilities(outputs)
            if p is not None:
                outputs = p.double().clamp_min(torch.finfo(torch.float64).tiny).log()
        return outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs

    def sampler(self, labels: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor] | None:
        """Index batches of one epoch, or None for plain shuffling."""
        return None

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Instances with valid ``(args, kwargs)`` for each task: what the conformance suite runs on.

        The default covers every member that ``from_task`` can build; others override it.
        """
        cases: list[tuple[Self, Sample]] = []
        for task in cls.tasks:
            rows, classes = 7, {"binary": 2, "regression": 1}.get(task, 5)
            counts = torch.bincount(torch.arange(3 * rows) % classes, minlength=classes).tolist()
            info = TaskInfo(
                task,
                num_samples=3 * rows,
                num_classes=classes,
                class_counts=tuple(counts) if task != "regression" else (),
                feature_dim=6,
                epochs=10,
                steps_per_epoch=3,
                seed=1,
            )
            scalar = task == "regression" or (cls.domain == "score" and task == "binary")
            shape = (rows,) if scalar else (rows, classes)
            outputs = torch.randn(shape, generator=generator, dtype=torch.float64)
            if cls.domain == "cosine":
                outputs = torch.tanh(outputs)
            if task == "regression":
                target = torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype)
            else:
                target = torch.randint(classes, (rows,), generator=generator)
                target[:classes] = torch.arange(min(classes, rows))
            kwargs: dict[str, Any] = {}
            for need in cls.needs:
                if need == "index":
                    kwargs[need] = torch.randperm(3 * rows, generator=generator)[:rows].to(device)
                elif need == "features":
                    kwargs[need] = torch.randn(rows, 6, generator=generator, dtype=torch.float64).to(device, dtype)
                elif need == "teacher":
                    kwargs[need] = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
                else:
                    refuse("needs", "samples() of its own for " + need, cls.__name__)
            objective = cls.from_task(info).to(device)
            cases.append((objective, ((outputs.to(device, dtype), target.to(device)), kwargs)))
        return cases

    def check_call(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """The checks that all members share: outputs of the domain, tensors of one length, weights where allowed."""
        check_tensor("outputs", outputs, floating=True)
        if self.domain != "cosine":  # a margin loss says itself what it does with more than 1
            check_domain("outputs", outputs, self.domain)
        check_tensor("target", target)
        if target.shape[:1] != outputs.shape[:1]:
            refuse("target", f"{outputs.shape[0]} rows, as outputs", target)
        if weight is not None and self.unit != "sample":
            refuse_type("weight", f"None ({self.name} is a loss of the batch, not of samples)", weight)
        check_weight(weight, *outputs.shape[:1])

    @classmethod
    def fits(cls, task: str) -> bool:
        """Whether it can be used for ``task``."""
        return task in cls.tasks


@dataclass
class Batch:
    """One step's data, as the loop hands it to a method.

    Args:
        inputs: ``[B, ...]``.
        target: ``[B, ...]``.
        index: positions in the training split, ``[B]``.
        weight: sample weights ``[B]`` or None.
        extra: further tensors by the names of ``needs`` (attributes, teacher, teacher_features, mask, ids,
            query).
    """

    inputs: Any
    target: Tensor
    index: Tensor | None = None
    weight: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


class Penalty(Loss):
    """A term of named tensors (``features``, ``target``, ``outputs`` ...) that is added to an objective.

    ``wants`` names the arguments of ``forward``, from ``outputs``, ``target`` and an objective's ``needs``.
    """

    wants: ClassVar[tuple[str, ...]] = ("features", "target")
    differentiable = ("features", "outputs")

    def forward(self, **tensors: Tensor) -> Tensor:
        """The penalty, a scalar."""
        raise NotImplementedError

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The defaults on features, outputs and class labels; penalties that want other tensors override it."""
        rows, classes = 9, 3
        have = {
            "features": torch.randn(rows, 6, generator=generator, dtype=torch.float64).to(device, dtype),
            "outputs": torch.randn(rows, classes, generator=generator, dtype=torch.float64).to(device, dtype),
            "target": (torch.arange(rows) % classes).to(device),
        }
        return [(cls().to(device), ((), {name: have[name] for name in cls.wants}))]


class WithPenalty(Objective):
    """``objective + weight * penalty``: how a penalty enters a comparison or a loop.

    Args:
        objective: any objective with ``reduction="mean"``.
        penalty: the added term.
        weight: its factor, >= 0.

    The sum is a loss of the batch, because a penalty is; of several ranks each has that of its own batch.
    """

    unit = "batch"

    def __init__(self, objective: Objective, penalty: Penalty, weight: float = 1.0) -> None:
        super().__init__("mean")
        check_number("weight", weight, low=0.0)
        if objective.reduction != "mean":
            refuse("objective", "reduction 'mean'", objective.reduction)
        self.objective, self.penalty, self.penalty_weight = objective, penalty, float(weight)
        self.name = f"{objective.name}+{penalty.name}"
        self.tasks, self.domain, self.targets = objective.tasks, objective.domain, objective.targets
        self.stateful = objective.stateful
        wanted = [n for n in penalty.wants if n not in ("outputs", "target")]
        self.needs = tuple(dict.fromkeys([*objective.needs, *wanted]))

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        return self.objective.head(feature_dim, info)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        return self.objective.probabilities(outputs)

    def predict(self, outputs: Tensor) -> Tensor:
        return self.objective.predict(outputs)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.objective.start_epoch(epoch, epochs)

    def after_step(self) -> None:
        self.objective.after_step()

    def forward(self, outputs: Tensor, target: Tensor, *, weight: Tensor | None = None, **named: Any) -> Tensor:
        self.check_call(outputs, target, weight)
        own = {name: named[name] for name in self.objective.needs}
        loss = self.objective(outputs, target, **own)
        tensors = {"outputs": outputs, "target": target, **named}
        term = self.penalty(**{name: tensors[name] for name in self.penalty.wants})
        self.terms = kept_terms({self.objective.name: loss, self.penalty.name: term})
        total: Tensor = loss + self.penalty_weight * term
        return total
