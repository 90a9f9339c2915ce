"""What a layer reads, for the probes of this family: rows of features, and the layer that is meant without a name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...core.checks import refuse
from ...core.probe import Moment


def layer_name(model: nn.Module, layer: str | None) -> str:
    """The layer, or the last linear one: the unembedding of a language model, the classifier of another.

    Raises:
        ValueError: the model has no such layer.
    """
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if layer is None and not linear:
        refuse("layer", "the name of a module, because the model has no linear layer", None)
    if layer is not None and layer not in modules:
        refuse("layer", "the name of a module of the model", layer)
    return linear[-1] if layer is None else layer


def layer_inputs(moment: Moment, layer: str | None, data: Any, tokens: str) -> Tensor:
    """Rows of features that the layer reads, of the batch or of fixed inputs; of sequences the last token, or all."""
    name = layer_name(moment.module, layer)
    if data is not None:
        moment = Moment(moment.step, moment.phase, moment.module, inputs=data)
    features: Tensor = moment.activations([name])[name][0][0]
    if features.ndim == 3 and tokens == "last":
        features = features[:, -1]
    return features.flatten(0, -2)
