"""LoRA+: a larger learning rate for the adapter that starts at zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...core.checks import check_number, refuse, refuse_type


def lora_plus_groups(
    model: nn.Module, lr: float, ratio: float = 16.0, *, weight_decay: float = 0.0, lr_embedding: float | None = None
) -> list[dict[str, Any]]:
    r"""Parameter groups with the rates of LoRA+ for :math:`W = W_0 + (\alpha/r) B A`.

    .. math:: \eta_A = \eta, \qquad \eta_B = \mathrm{ratio} \cdot \eta

    A and B are told by the names that PEFT gives: a part of the dotted name that is ``lora_A`` or ``lora_B``. They
    don't decay; other weights that are trained get the rate of A and ``weight_decay``. Adapters of embeddings
    (``lora_embedding_A``, ``lora_embedding_B``), of which A starts at zero, have a rate of their own.

    Args:
        model: with LoRA adapters, PEFT's or any whose parameters bear those names. Frozen parameters are left out.
        lr: the rate of A, > 0.
        ratio: of the rates of B and A, >= 1; 16 is for optimizers of the Adam type.
        weight_decay: of the other weights, >= 0.
        lr_embedding: of adapters of embeddings; None for ``lr``. PEFT takes 1e-6.

    Returns:
        Groups for any optimizer of torch, each with a ``name``: ``lora_A``, ``lora_embedding``, ``lora_B``, ``other``;
        none is empty.

    Raises:
        ValueError: no parameter that is trained is an adapter's; a number is out of range.
        TypeError: ``model`` is no module.

    Example:
        >>> layer = nn.ModuleDict({"lora_A": nn.Linear(8, 2, bias=False), "lora_B": nn.Linear(2, 8, bias=False)})
        >>> [(group["name"], group["lr"]) for group in lora_plus_groups(layer, 1e-4)]
        [('lora_A', 0.0001), ('lora_B', 0.0016)]

    Source: LoRA+: Efficient Low Rank Adaptation of Large Models, arXiv:2402.12354.
    """
    if not isinstance(model, nn.Module):
        refuse_type("model", "a module", model)
    check_number("lr", lr, low=0.0, open_low=True)
    check_number("ratio", ratio, low=1.0)
    check_number("weight_decay", weight_decay, low=0.0)
    if lr_embedding is not None:
        check_number("lr_embedding", lr_embedding, low=0.0)
    rates = {"lora_A": lr, "lora_embedding": lr if lr_embedding is None else lr_embedding, "lora_B": lr * ratio}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in (*rates, "other")}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[_kind(name)].append(parameter)
    if not any(members[name] for name in rates):
        refuse("model", "trained parameters named lora_A and lora_B", f"{len(members['other'])} trained, none so named")
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates.get(name, lr),
            "weight_decay": weight_decay if name == "other" else 0.0,
        }
        for name, parameters in members.items()
        if parameters
    ]


def _kind(name: str) -> str:
    parts = set(name.split("."))
    if parts & {"lora_embedding_A", "lora_embedding_B"}:
        return "lora_embedding"
    return "lora_A" if "lora_A" in parts else "lora_B" if "lora_B" in parts else "other"


class LoRAPlus(torch.optim.AdamW):
    """AdamW over the groups of :func:`lora_plus_groups`.

    Args:
        model, lr, ratio, weight_decay, lr_embedding: see :func:`lora_plus_groups`.
        adamw: what else ``torch.optim.AdamW`` takes: ``betas``, ``eps``, ``fused`` ...

    Raises:
        ValueError, TypeError: as :func:`lora_plus_groups`.

    Example:
        >>> layer = nn.ModuleDict({"lora_A": nn.Linear(8, 2, bias=False), "lora_B": nn.Linear(2, 8, bias=False)})
        >>> optimizer = LoRAPlus(layer, 1e-4, ratio=8)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.0001, 0.0008]

    Source: LoRA+: Efficient Low Rank Adaptation of Large Models, arXiv:2402.12354.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        ratio: float = 16.0,
        *,
        weight_decay: float = 0.0,
        lr_embedding: float | None = None,
        **adamw: Any,
    ) -> None:
        groups = lora_plus_groups(model, lr, ratio, weight_decay=weight_decay, lr_embedding=lr_embedding)
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **adamw)
