"""The networks that a comparison trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...core.each_member import EachMember
from ...core.objective import Objective, TaskInfo
from ...core.random import seed_all
from ...nn.convnet import small_resnet
from ...nn.networks import Network, mlp, residual_mlp
from ...nn.piecewise_linear import quantile_edges
from ...nn.tabm import TabM
from ..errors import InputError
from ..names import unknown_model
from ..own_parts import Trust, imported

Backbone = Callable[[int], nn.Module]


class OnRows:
    """A model whose backbone depends on the training rows."""

    def __call__(self, in_features: int) -> nn.Module:
        """A backbone without rows."""
        raise NotImplementedError

    def facts(self, inputs: Tensor) -> dict[str, Any]:
        """What it takes from the training rows ``[N, in_features]``, as plain values."""
        raise NotImplementedError

    def of(self, facts: dict[str, Any]) -> Backbone:
        """The backbone with what :meth:`facts` gave."""
        raise NotImplementedError


class TabMOnRows(OnRows):
    """TabM-mini with bins between the quantiles of the training rows.

    Columns of one bin, such as those of one-hot codes, go in as they are.

    Args:
        members: networks that share layers; one is an ordinary network over bins.
    """

    def __init__(self, members: int) -> None:
        self.members = members

    def __call__(self, in_features: int) -> nn.Module:
        return TabM(in_features, members=self.members)

    def facts(self, inputs: Tensor) -> dict[str, Any]:
        """``numeric`` columns and their ``edges``."""
        edges = quantile_edges(inputs, BINS)
        numeric = [column for column, own in enumerate(edges) if len(own) > 2]
        return {"numeric": numeric, "edges": [edges[column].tolist() for column in numeric]}

    def of(self, facts: dict[str, Any]) -> Backbone:
        edges = [torch.tensor(own, dtype=torch.float64) for own in facts["edges"]]
        return partial(TabM, numeric=facts["numeric"], edges=edges, members=self.members)


BINS = 48
"""Bins a column at most."""
MODELS: dict[str, Backbone] = {
    "plain": partial(mlp, width=128, depth=2),
    "tabm": TabMOnRows(16),
    "tabm-4": TabMOnRows(4),
    "tabm-1": TabMOnRows(1),
    "residual": partial(residual_mlp, width=128, depth=2),
    "resnet": small_resnet,
}
IMAGE_MODELS = ("resnet",)
TABMS = ("tabm", "tabm-4", "tabm-1")
"""Those that differ in their members alone, from the most."""
SYNONYMS = {"mlp": "plain"}


def model_of(word: str) -> str:
    """The name of :data:`MODELS` that a word stands for; other words as they are.

    >>> model_of("mlp"), model_of("my_nets:small")
    ('plain', 'my_nets:small')
    """
    return SYNONYMS.get(word, word)


def find_model(spec: str, *, trust: Trust = False) -> Backbone:
    """``in_features -> backbone`` for a name of :data:`MODELS` or a trusted ``module:function``.

    Raises:
        InputError: unknown name, own code that is not trusted, or something that cannot be called.
    """
    spec = model_of(spec)
    if spec in MODELS:
        return MODELS[spec]
    if ":" not in spec:
        raise unknown_model(spec, (*MODELS, *SYNONYMS))
    model = imported("--model", spec, trust=trust)
    if not callable(model):
        raise InputError(f"--model {spec!r}: expected a function of the number of features, got {type(model).__name__}")
    return model


def feature_width(backbone: nn.Module, shape: tuple[int, ...]) -> int:
    """The width of what a backbone gives for inputs of this shape: ``(features,)`` or ``(C, H, W)``.

    Raises:
        InputError: it doesn't map ``[rows, *shape]`` to ``[rows, width]``.
    """
    if not isinstance(backbone, nn.Module):
        raise InputError(f"--model: expected the function to give a torch.nn.Module, got {type(backbone).__name__}")
    several = members_of(backbone)
    what = f"{shape[0]} numbers" if len(shape) == 1 else " x ".join(map(str, shape))
    was = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(2, *shape))
    except Exception as error:
        raise InputError(f"--model: the backbone refused 2 rows of {what}: {error}") from error
    backbone.train(was)
    leading = (2,) if several is None else (2, several)
    if not isinstance(features, Tensor) or features.shape[:-1] != leading:
        raise InputError("--model: expected features [rows, width] from the backbone")
    return int(features.shape[-1])


def on_rows(backbone: Backbone, inputs: Tensor) -> tuple[Backbone, dict[str, Any]]:
    """The backbone for a training on these rows, and what it takes from them."""
    if not isinstance(backbone, OnRows):
        return backbone, {}
    facts = backbone.facts(inputs)
    return backbone.of(facts), facts


def build(
    backbone: Backbone, in_features: int, objective: Objective, info: TaskInfo, *, backbone_seed: int, head_seed: int
) -> tuple[Network, Objective]:
    """A network with the objective's own head, and the objective of its outputs.

    Equal seeds give equal backbones whatever the objective. For a backbone of several ``members``, which gives features
    ``[B, members, width]``, the objective is that of :class:`~steepest.core.each_member.EachMember`.
    """
    with torch.random.fork_rng(devices=[]):
        seed_all(backbone_seed)
        body = backbone(in_features)
        if (members := members_of(body)) is not None:
            objective = EachMember(objective, members, info.task)
        seed_all(head_seed)
        head = objective.head(info.feature_dim, info)
    return Network(body, head), objective


def members_of(backbone: nn.Module) -> int | None:
    """How many members a backbone has that train each by itself; None where it is one network."""
    members = getattr(backbone, "members", None)
    return members if isinstance(members, int) else None
