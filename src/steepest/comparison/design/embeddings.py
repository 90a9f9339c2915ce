"""Objectives of a retrieval: which there are, and how each trains a network that ends in an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.objective import Objective, TaskInfo
from ...core.pair_loss import PairLoss
from ..errors import InputError
from ..names import GROUPS, objective_homes, objective_words
from ..own_parts import Trust
from ..read.retrieval import RETRIEVAL
from .models import Backbone, feature_width
from .objectives import baseline_of, find_objective

BASELINE = baseline_of(RETRIEVAL)
"""Cross-entropy of the training classes, whose features are compared."""
RAW = "raw_inputs"
"""Stands beside the objectives: inputs compared as they are."""
DIM, PER_CLASS = 64, 4
"""Numbers of an embedding, and least rows of a class in a batch."""


class Embedder:
    """A backbone with a linear layer on top, whose outputs are the embedding.

    Args:
        backbone: ``in_features -> module``.
        dim: numbers of the embedding.
        size: height and width of images; empty for tables.
    """

    def __init__(self, backbone: Backbone, dim: int, size: tuple[int, ...] = ()) -> None:
        self.backbone, self.dim, self.size = backbone, dim, size

    def __call__(self, in_features: int) -> nn.Module:
        body = self.backbone(in_features)
        return nn.Sequential(body, nn.Linear(feature_width(body, (in_features, *self.size)), self.dim))


class BesideHead(nn.Module):
    """An embedding beside what a head makes of it: ``[B, d] -> [B, d + C]``.

    Args:
        head: ``[B, d] -> [B, C]``.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, embedding: Tensor) -> Tensor:
        """Both, in the type of the embedding."""
        return torch.cat([embedding, self.head(embedding).to(embedding.dtype)], -1)


class OfClasses(Objective):
    """An objective of training classes over an embedding: it trains the head, and predicts the embedding.

    Args:
        objective: of outputs ``[B, C]`` and class codes.
        dim: numbers of the embedding, the first of the outputs.
    """

    tasks = (RETRIEVAL,)
    domain = "embedding"
    unit = "batch"

    def __init__(self, objective: Objective, dim: int) -> None:
        super().__init__()
        self.objective, self.dim = objective, dim
        self.name, self.stateful = objective.name, objective.stateful

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """The objective's own, beside the embedding."""
        return BesideHead(self.objective.head(feature_dim, info))

    def predict(self, outputs: Tensor) -> Tensor:
        """The embedding."""
        return outputs[..., : self.dim]

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.objective.start_epoch(epoch, epochs)

    def after_step(self) -> None:
        self.objective.after_step()

    def forward(self, outputs: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """The loss of the head's outputs."""
        loss: Tensor = self.objective(outputs[..., self.dim :], target, **kwargs)
        return loss


class OfEmbeddings:
    """Makes the objective of a training, as the class itself would.

    Args:
        cls: of pairs or of classes.
    """

    def __init__(self, cls: type[Objective]) -> None:
        self.cls, self.search, self.needs = cls, cls.search, cls.needs
        self.predict = cls.predict

    def from_task(self, info: TaskInfo, **hyper: Any) -> Objective:
        """The objective for outputs of a network that ends in an embedding of ``info.feature_dim`` numbers."""
        objective = self.cls.from_task(info, **hyper)
        return objective if isinstance(objective, PairLoss) else OfClasses(objective, info.feature_dim)


def why_no_retrieval(cls: type[Objective]) -> str:
    """Why an objective cannot train embeddings of labelled rows here, or an empty string."""
    if cls.name == BASELINE:
        return ""
    if not cls.fits(RETRIEVAL):
        return f"it is for {' and '.join(cls.tasks)} targets"
    if issubclass(cls, PairLoss):
        if cls.form != "labels":
            return "it needs two views of each row, and these come with labels"
    elif cls.domain == "score" or cls.unit != "sample":
        return "it scores pairs of a query and a row, and these have labels"
    missing = set(cls.needs) - {"index"}
    return f"it needs {', '.join(sorted(missing))}, which these data do not have" if missing else ""


def known_embedding_objectives() -> list[str]:
    """Names of all that can be compared: the baseline, losses of pairs, losses of classes. It is cut from the end.

    >>> known_embedding_objectives()[0], "sup_con" in known_embedding_objectives()
    ('cross_entropy', True)
    """
    fitting = {name: cls for name in objective_homes() if not why_no_retrieval(cls := find_objective(name))}
    return sorted(fitting, key=lambda name: (name != BASELINE, not issubclass(fitting[name], PairLoss), name))


def find_embedding_objective(name: str, *, trust: Trust = False) -> OfEmbeddings:
    """By name, or a trusted ``module:Class``."""
    return OfEmbeddings(find_objective(name, trust=trust))


def choose_embedding_objectives(asked: str | Sequence[str]) -> list[str]:
    """Names to run, the baseline first; both ``default`` and ``all`` are all that fit.

    Raises:
        InputError: an unknown name, or one that does not fit.

    >>> choose_embedding_objectives("arc_face")
    ['cross_entropy', 'arc_face']
    """
    names = [BASELINE]
    for word in objective_words(asked):
        if word in GROUPS:
            names += known_embedding_objectives()
            continue
        if reason := why_no_retrieval(find_objective(word, trust=True)):
            raise InputError(
                f"objective {word!r} does not fit a retrieval: {reason}. Those that fit: "
                f"{', '.join(known_embedding_objectives())}"
            )
        names.append(word)
    return list(dict.fromkeys(names))
