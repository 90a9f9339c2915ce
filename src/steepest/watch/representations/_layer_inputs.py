"""What a layer reads, for the probes of this family: rows of features, and the layer that is meant without a name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ...core.checks import refuse
from ...core.probe import Moment


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Those that a model calls as modules; the output projection of torch's own attention is none of them."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }


def layer_name(model: nn.Module, layer: str | None) -> str:
    """The layer, or the last linear one: the unembedding of a language model, the classifier of another.

    Raises:
        ValueError: the model has no such layer.
    """
    modules, linear = dict(model.named_modules()), list(linear_layers(model))
    if layer is None and not linear:
        refuse("layer", "the name of a module, because the model has no linear layer", None)
    if layer is not None and layer not in modules:
        refuse("layer", "the name of a module of the model", layer)
    return linear[-1] if layer is None else layer


def read_by(moment: Moment, name: str) -> Tensor:
    """What a module reads in a pass.

    Raises:
        ValueError: the model does not call it.
    """
    called = moment.activations([name])
    if name not in called:
        refuse("layer", "the name of a module that the model calls", name)
    features: Tensor = called[name][0][0]
    return features


def layer_inputs(moment: Moment, layer: str | None, data: Any, tokens: str) -> Tensor:
    """Rows of features that the layer reads, of the batch or of fixed inputs; of sequences the last token, or all."""
    name = layer_name(moment.module, layer)
    if data is not None:
        moment = Moment(moment.step, moment.phase, moment.module, inputs=data)
    features = read_by(moment, name)
    if features.ndim == 3 and tokens == "last":
        features = features[:, -1]
    return features.flatten(0, -2)
