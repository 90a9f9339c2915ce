"""Rows and output layer of a model for losses of tokens, within its forward pass, as TRL's trainers ask for them."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from ..core.transforms import autocast_dtype
from ..kernels.token_statistics import token_statistics
from ._lazy_logits import LazyLogits, Use, headed_rows
from ._output_layer import inner_model, is_plain, output_layer, standing_in

TELLS = {"entropy": "entropy", "is_top1": "largest", "mean_logits": "mean"}
"""Fields of TRL's output beside log-probabilities, and the statistic each is taken from."""


@dataclass(frozen=True)
class TokenRows:
    """What a loss of tokens takes: hidden states and output layer, or logits where no layer stands for them.

    Args:
        source: hidden states ``[B, T, D]``, or logits ``[B, T, V]``.
        head: ``[V, D]``, or None with logits.
        bias: ``[V]`` or None.
        softcap: of the head, or None.
    """

    source: Tensor
    head: Tensor | None
    bias: Tensor | None
    softcap: float | None

    def at(self, *index: Any) -> TokenRows:
        """Some of the rows."""
        return replace(self, source=self.source[index])

    def options(self) -> dict[str, Any]:
        """Bias and softcap by name."""
        return {"bias": self.bias, "softcap": self.softcap}


def token_rows(logits: Tensor, temperature: float = 1.0) -> TokenRows:
    """Rows whose softmax is that of a model's logits over a temperature."""
    headed = headed_rows(logits)
    if headed is None:
        formed = logits.formed("a loss of tokens") if isinstance(logits, LazyLogits) else logits
        return TokenRows(formed if temperature == 1.0 else formed / temperature, None, None, None)
    hidden, weight, bias, softcap, own = headed
    if hidden.dtype != weight.dtype and autocast_dtype(hidden) is None:
        hidden = hidden.to(weight.dtype)
    factor = 1.0 / (own * temperature)
    if factor != 1.0:  # softcap(h W' + b) f is the same with f at h, at b and at the cap
        hidden = hidden * factor
        bias = None if bias is None else bias * factor
        softcap = None if softcap is None else softcap * factor
    return TokenRows(hidden, weight, bias, softcap)


def logits_stand_in(model: Any, call: Callable[[], Any]) -> Any:
    """The outputs of a call of the model whose logits are not formed, where its output layer allows that."""
    with standing_in(model, Use({}), functools.partial(warnings.warn, stacklevel=4)):
        return call()


def give_rows(model: Any, temperature: float = 1.0, tells: tuple[str, ...] = ()) -> None:
    """Let a model take its log-probabilities, and a loss of tokens, from rows and output layer.

    TRL's trainers call ``model(..., labels=labels, fused_lm_head=True)`` and get ``FusedCausalLMOutput``. They get the
    same here, from :func:`~steepest.kernels.token_statistics`. With ``token_loss``, a function of :class:`TokenRows`
    and aligned labels, ``outputs.loss`` is its value, and the rest has no gradient. Where the output layer is not a
    plain one TRL's own pass answers, or the loss gets logits.

    Args:
        model: whose forward pass TRL has replaced.
        temperature: of the log-probabilities.
        tells: further fields, of ``TELLS``.
    """
    inner = inner_model(model)
    of_trl = inner.forward

    @functools.wraps(type(inner).forward)
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        token_loss: Callable[[TokenRows, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        given = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
        given = {name: value for name, value in given.items() if value is not None}
        if not fused_lm_head:
            return of_trl(*args, **kwargs, **given)
        if token_loss is None and not is_plain(output_layer(self)):
            return of_trl(*args, fused_lm_head=True, **kwargs, **given)
        kwargs["use_cache"] = False
        if getattr(self.config.get_text_config(), "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        outputs = logits_stand_in(self, lambda: of_trl(*args, **kwargs))
        rows = token_rows(outputs.logits, temperature)
        if shift_labels is None:
            assert labels is not None
            rows, aligned = rows.at(slice(None), slice(-1)), labels[:, 1:]
        else:
            aligned = shift_labels
        aligned = aligned.to(rows.source.device)
        loss = None if token_loss is None else token_loss(rows, aligned)
        with torch.set_grad_enabled(torch.is_grad_enabled() and token_loss is None):
            fields = _told(rows, aligned, tells)
        if loss is None:
            count = fields["label_mask"].sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = -fields["log_probs"].sum() / count
        return FusedCausalLMOutput(loss=loss, aux_loss=getattr(outputs, "aux_loss", None), **fields)

    inner.forward = types.MethodType(forward, inner)


def _told(rows: TokenRows, labels: Tensor, tells: tuple[str, ...]) -> dict[str, Any]:
    """TRL's fields by name, 0 where a token is ignored."""
    want = ("log_p", "label", *(TELLS[name] for name in tells))
    of_tokens = token_statistics(rows.source, labels, rows.head, want=want, **rows.options())
    fields: dict[str, Any] = {"log_probs": of_tokens.log_p, "label_mask": of_tokens.valid}
    for name in tells:
        value = getattr(of_tokens, TELLS[name])
        fields[name] = of_tokens.valid & (of_tokens.label >= value) if name == "is_top1" else value
    return fields
