"""The networks that a comparison trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ...core.objective import Objective, TaskInfo
from ...core.random import seed_all
from ...nn.convnet import small_resnet
from ...nn.networks import Network, mlp, residual_mlp
from ..errors import InputError
from ..names import unknown_model
from ..own_parts import Trust, imported

Backbone = Callable[[int], nn.Module]
MODELS: dict[str, Backbone] = {
    "mlp": partial(mlp, width=128, depth=2),
    "residual": partial(residual_mlp, width=128, depth=2),
    "resnet": small_resnet,
}
IMAGE_MODELS = ("resnet",)


def find_model(spec: str, *, trust: Trust = False) -> Backbone:
    """``in_features -> backbone`` for ``"mlp"``, ``"residual"``, ``"resnet"`` or a trusted ``module:function``.

    Raises:
        InputError: unknown name, own code that is not trusted, or something that cannot be called.
    """
    if spec in MODELS:
        return MODELS[spec]
    if ":" not in spec:
        raise unknown_model(spec, MODELS)
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
    what = f"{shape[0]} numbers" if len(shape) == 1 else " x ".join(map(str, shape))
    was = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(2, *shape))
    except Exception as error:
        raise InputError(f"--model: the backbone refused 2 rows of {what}: {error}") from error
    backbone.train(was)
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or features.shape[0] != 2:
        raise InputError("--model: expected features [rows, width] from the backbone")
    return int(features.shape[1])


def build(
    backbone: Backbone, in_features: int, objective: Objective, info: TaskInfo, *, backbone_seed: int, head_seed: int
) -> Network:
    """A network with the objective's own head; equal seeds give equal backbones whatever the objective."""
    with torch.random.fork_rng(devices=[]):
        seed_all(backbone_seed)
        body = backbone(in_features)
        seed_all(head_seed)
        head = objective.head(info.feature_dim, info)
    return Network(body, head)
