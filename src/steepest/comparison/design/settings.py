"""A comparison's settings, resolved: what decides its numbers, and so its identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...core.scalars import plain
from ..request import LIMITS, check_numbers


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a comparison, besides the data.

    Attributes:
        objectives: names, in order; the baseline among them.
        baseline: the objective that the others are compared with.
        metric: name, or ``module:function``.
        model: ``"plain"``, ``"tabm"``, ``"tabm-4"``, ``"tabm-1"``, ``"residual"``, ``"resnet"`` or ``module:function``;
            of texts ``"gpt"`` or a folder.
        repeats, folds: of the outer cross-validation.
        trials: settings each objective may try.
        epochs, patience: of a training.
        batch_size: rows a step.
        classical: names of classical learners run beside the objectives.
        noise: share of training labels replaced by another class.
        seed: of everything.
        test: hash of the fixed test set that takes the place of the outer folds, or empty.
        device: where networks train.
        augment: whether images are augmented in training.
        fixed_length: whether a training runs all its epochs and is scored as it is, instead of stopping early and
            being fitted again on the whole training part; images then have a one-cycle learning rate.
        vary: what the arms are: objectives, or ``"optimizer"``, ``"schedule"``, ``"aggregator"``. Their names stand in
            ``objectives`` all the same.
        objective: the one that all arms train with where something else varies, else empty.
        code: hash of the user's own modules among objectives, model and metric, or empty.
        embedding: numbers of the embedding that a network ends in; 0 where the task is no retrieval.
    """

    objectives: tuple[str, ...]
    baseline: str
    metric: str
    model: str = "plain"
    repeats: int = 3
    folds: int = 5
    trials: int = 8
    epochs: int = 60
    patience: int = 10
    batch_size: int = 64
    classical: tuple[str, ...] = ()
    noise: float = 0.0
    seed: int = 0
    test: str = ""
    device: str = "cpu"
    augment: bool = True
    fixed_length: bool = False
    vary: str = "objective"
    objective: str = ""
    code: str = ""
    embedding: int = 0

    def __post_init__(self) -> None:
        check_numbers(**{name: getattr(self, name) for name in (*LIMITS, "noise")})
        for field in fields(self):  # numbers of numpy would not go to JSON
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))

    def to_json(self) -> dict[str, Any]:
        """Plain values, JSON's own types."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values if self.embedding else {name: own for name, own in values.items() if name != "embedding"}

    @property
    def own_parts(self) -> frozenset[str]:
        """The user's own objectives, model and metric: settings are those of the present call, so it may import them.

        Settings are never read back from a file.

        >>> Settings(("cross_entropy",), "cross_entropy", "accuracy", model="my_nets:small").own_parts
        frozenset({'my_nets:small'})
        """
        return frozenset(name for name in (*self.objectives, self.objective, self.metric, self.model) if ":" in name)

    def run_id(self, data_hash: str, version: str) -> str:
        """The identity of a run: a hash of data, settings and version."""
        text = json.dumps([data_hash, self.to_json(), version], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
