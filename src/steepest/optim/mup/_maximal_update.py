"""Maximal update for any model that has a smaller sibling: initial weights, the output's multiplier, rates by group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import check_choice, check_flag, check_number, refuse, refuse_type
from ...core.torch_private import AnyConvolution, AnyTransposedConvolution

RULES = ("sgd", "adam")
INITS = ("fan_in", "constant")
ROLES = ("fixed", "vector", "hidden", "output")
_SGD_LIKE: tuple[type, ...] = (torch.optim.SGD, torch.optim.ASGD)
_ADAM_LIKE: tuple[type, ...] = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)
_SIZED = "head_dim"
"""What attention modules call the size of a head."""


@dataclass(frozen=True)
class Role:
    """How a parameter depends on the width.

    Args:
        name: of the parameter in the model.
        role: "fixed" (no side grows), "vector" (one side: input weights, embeddings, biases, gains), "hidden" (both
            sides), "output" (only what comes in).
        fan_in, fan_out: how many times as large the sides are as in the base; 1 where a side does not grow.
    """

    name: str
    role: str
    fan_in: float
    fan_out: float

    def rate(self, rule: str) -> float:
        """What the base's rate is multiplied by."""
        if rule == "adam":
            return 1 / self.fan_in if self.role == "hidden" else 1.0
        return {
            "fixed": 1.0,
            "vector": self.fan_out,
            "hidden": self.fan_out / self.fan_in,
            "output": self.fan_in,
        }[self.role]


class _Multiplier:
    """A hook that scales what comes into an output layer."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] * self.factor, *inputs[1:])


class MaximalUpdate:
    """A model in the maximal-update parametrization: what :func:`parametrize` returns.

    Args:
        model: which is changed.
        base: its sibling; only its shapes are read.
        rescale: bring initial weights from the standard parametrization; False for a checkpoint.
        init: how the initial deviations of the model depend on width, see :func:`parametrize`.
        scaled_attention: heads that grow are scaled by their size already.

    Attributes:
        roles: by name of the parameter, see :class:`Role`.
        multipliers: by name of the output layer, the factor on its inputs.

    Example:
        >>> def network(n): return nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, n), nn.Linear(n, 2))
        >>> wide = MaximalUpdate(network(256), network(64))
        >>> [group["lr"] for group in wide.optimizer(torch.optim.AdamW, lr=0.01).param_groups]
        [0.01, 0.0025]
        >>> wide.multipliers, wide.roles["2.weight"].role
        ({'3': 0.25}, 'hidden')

    Source: Feature Learning in Infinite-Width Neural Networks, arXiv:2011.14522; rates of Adam: Tensor Programs V,
    arXiv:2203.03466, Table 8.
    """

    def __init__(
        self,
        model: nn.Module,
        base: nn.Module,
        *,
        rescale: bool = True,
        init: str = "fan_in",
        scaled_attention: bool = False,
    ) -> None:
        for name, value in (("model", model), ("base", base)):
            if not isinstance(value, nn.Module):
                refuse_type(name, "a module", value)
        check_flag("rescale", rescale)
        check_flag("scaled_attention", scaled_attention)
        check_choice("init", init, INITS)
        if getattr(model, "_has_maximal_update", False):
            refuse("model", "one that was not parametrized before", type(model).__name__)
        _refuse_heads(model, base, scaled_attention)
        self.model = model
        self.roles: dict[str, Role] = {}
        self.multipliers: dict[str, float] = {}
        shapes = {name: p.shape for name, p in base.named_parameters(remove_duplicate=False)}
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if names != set(shapes):
            refuse("base", "parameters of the same names", ", ".join(sorted(names ^ set(shapes))))
        owners = list(_owners(model, shapes))
        roles: dict[int, Role] = {}
        for owner in owners:
            told = roles.setdefault(id(owner.parameter), owner.role)
            tied = told.role != owner.role.role or (told.fan_in, told.fan_out) != (
                owner.role.fan_in,
                owner.role.fan_out,
            )
            if tied:
                if {told.role, owner.role.role} != {"vector", "output"}:
                    refuse("model", "tied weights of one role, or an embedding tied to the output", owner.role.name)
                vector = told if told.role == "vector" else owner.role
                roles[id(owner.parameter)] = Role(told.name, "vector", vector.fan_in, vector.fan_out)
        self._parameters = {id(owner.parameter): owner.parameter for owner in owners}
        self.roles = {role.name: role for role in roles.values()}
        self._of = roles
        outputs: set[int] = set()
        for owner in owners:
            if owner.role.role == "output":
                layer = owner.role.name.rpartition(".")[0]
                if id(owner.module) not in outputs:
                    owner.module.register_forward_pre_hook(_Multiplier(1 / owner.role.fan_in))
                outputs.add(id(owner.module))
                self.multipliers[layer] = 1 / owner.role.fan_in
        if rescale:
            self._rescale(owners, init)
        model._has_maximal_update = True  # type: ignore[assignment]

    @torch.no_grad()
    def _rescale(self, owners: list[_Owner], init: str) -> None:
        done: set[int] = set()
        for owner in owners:
            if id(owner.parameter) in done:
                continue
            done.add(id(owner.parameter))
            role = self._of[id(owner.parameter)]
            if init == "constant" and role.role == "hidden":
                owner.parameter.mul_(role.fan_in**-0.5)
            elif init == "fan_in" and (role.role == "output" or owner.bias_fan_in != 1.0):
                owner.parameter.mul_(math.sqrt(role.fan_in if role.role == "output" else owner.bias_fan_in))

    def groups(self, lr: float, rule: str = "adam", *, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups whose rates are scaled; one for each factor, in the order of the model.

        A schedule must multiply the rates of the groups, as those of torch and of this library do; one that writes the
        same rate into each undoes the parametrization. Decay is divided by the same factor, so that the share of a
        weight that goes in a step is that of the base.

        Args:
            lr: rate of the base model.
            rule: "sgd", steps along gradients, or "adam", steps whose entries don't depend on the gradient's size.
            weight_decay: of the base model, such that a step takes away lr * weight_decay of a weight.

        Raises:
            ValueError: a negative rate or decay, another rule.
        """
        check_number("lr", lr, low=0.0)
        check_number("weight_decay", weight_decay, low=0.0)
        check_choice("rule", rule, RULES)
        by_factor: dict[float, list[Tensor]] = {}
        for number, parameter in self._parameters.items():
            by_factor.setdefault(self._of[number].rate(rule), []).append(parameter)
        groups = [
            {"params": parameters, "lr": lr * factor, "weight_decay": weight_decay / factor, "width_factor": factor}
            for factor, parameters in by_factor.items()
        ]
        if not weight_decay:
            for group in groups:
                del group["weight_decay"]
        return groups

    def optimizer(
        self,
        cls: type[torch.optim.Optimizer],
        lr: float,
        *,
        rule: str | None = None,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> torch.optim.Optimizer:
        """An optimizer over :meth:`groups`.

        Args:
            cls: its class.
            lr: rate of the base model.
            rule: see :meth:`groups`; None where the class is one of torch's that is known to follow one of them.
            weight_decay: of the base model. Decay that is added to the gradient of Adam is refused: normalised, it
                cannot keep its share; AdamW's is right.
            **options: of the class.

        Raises:
            TypeError: a class whose rule is not known, without a rule.
            ValueError: decay that cannot be scaled; see :meth:`groups`.
        """
        if rule is None:
            if issubclass(cls, _ADAM_LIKE):
                rule = "adam"
            elif issubclass(cls, _SGD_LIKE):
                rule = "sgd"
            else:
                refuse_type("rule", f"'sgd' or 'adam' for {cls.__name__}, of which it is not known", rule)
        coupled = rule == "adam" and issubclass(cls, _ADAM_LIKE) and not issubclass(cls, torch.optim.AdamW)
        if weight_decay and coupled and not options.get("decoupled_weight_decay", False):
            refuse("weight_decay", "0, or an optimizer with decoupled decay such as AdamW", weight_decay)
        built: torch.optim.Optimizer = cls(self.groups(lr, rule, weight_decay=weight_decay), lr=lr, **options)  # type: ignore[call-arg]
        return built


def parametrize(
    model: nn.Module,
    base: nn.Module,
    *,
    rescale: bool = True,
    init: str = "fan_in",
    scaled_attention: bool = False,
) -> MaximalUpdate:
    r"""Bring a model into the maximal-update parametrization, so that the best rate of its small sibling is its own.

    A side of a weight that differs from the base's is a width, m times as large. At m = 1 nothing changes.

    ============== ================== ==================== ===================== ==========================
    weights        initial deviation  multiplier           rate of SGD           rate of Adam
    ============== ================== ==================== ===================== ==========================
    input, biases  as it is           1                    lr m_out              lr
    hidden         1 / sqrt(fan in)   1                    lr m_out / m_in       lr / m_in
    output         as in the base     1 / m_in on inputs   lr m_in               lr
    ============== ================== ==================== ===================== ==========================

    Output weights that are tied to an embedding keep the embedding's initial values and rate, and the multiplier of
    the output. Layers: ``nn.Linear``, convolutions, ``nn.Embedding``, ``nn.MultiheadAttention``, norms. A parameter of
    another module with one growing side counts as a vector, with two as a weight ``[out, in]``. Recurrent layers are
    refused. Attention must divide its products by the size of a head, not by its root, once that size grows: let the
    number of heads grow instead, or write the attention so and say ``scaled_attention=True``. Adam's eps should be
    small against gradients, which shrink with 1 / m.

    Args:
        model: changed in place; its initial weights must be fresh.
        base: the same class with smaller widths; only its shapes are read (it may lie on the meta device).
        rescale: False for weights that were parametrized before, as those of a checkpoint.
        init: "fan_in", initial deviations shrink with the root of the fan-in, as those of torch's layers; "constant",
            they don't depend on width, as with ``initializer_range`` in Transformers.
        scaled_attention: heads that grow are scaled by their size already.

    Returns:
        the parametrization: its ``optimizer(cls, lr)`` and ``groups(lr, rule)`` have the scaled rates.

    Raises:
        TypeError: no module.
        ValueError: names that differ, a model that was parametrized before, recurrent layers, heads that grow, weights
            with more than two growing sides, tied weights that have no common scaling.

    Example:
        >>> def network(n): return nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2))
        >>> optimizer = parametrize(network(512), network(64)).optimizer(torch.optim.SGD, lr=0.1)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.8, 0.1]

    Source: Feature Learning in Infinite-Width Neural Networks, arXiv:2011.14522; arXiv:2203.03466, Table 8.
    """
    return MaximalUpdate(model, base, rescale=rescale, init=init, scaled_attention=scaled_attention)


@dataclass(frozen=True)
class _Owner:
    """A place where a parameter is used, and its role there.

    ``bias_fan_in``: the growth of the inputs of the layer whose bias it is.
    """

    module: nn.Module
    parameter: Tensor
    role: Role
    bias_fan_in: float = 1.0


def _owners(model: nn.Module, shapes: dict[str, torch.Size]) -> Iterator[_Owner]:
    """Every place of every parameter, embeddings first."""
    modules = list(model.named_modules(remove_duplicate=False))
    for prefix, module in sorted(modules, key=lambda pair: not isinstance(pair[1], nn.Embedding)):
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            refuse("model", "no recurrent layers", prefix or type(module).__name__)
        inputs = 1.0
        for own, p in module.named_parameters(recurse=False):
            name = f"{prefix}.{own}" if prefix else own
            if p.dim() != len(shapes[name]):
                refuse("base", f"{p.dim()} dimensions of {name}", tuple(shapes[name]))
            growth = [now / then for now, then in zip(p.shape, shapes[name])]
            yield _Owner(module, p, _role(module, own, name, growth), inputs if own == "bias" else 1.0)
            if isinstance(module, nn.Linear | AnyConvolution) and own == "weight":
                inputs = growth[0 if isinstance(module, AnyTransposedConvolution) else 1]


def _role(module: nn.Module, own: str, name: str, growth: list[float]) -> Role:
    growing = [place for place, g in enumerate(growth) if g != 1.0]
    if not growing:
        return Role(name, "fixed", 1.0, 1.0)
    if len(growing) > 2 or growing[-1] > 1:
        refuse("model", f"at most two growing sides of {name}, the first two", tuple(growth))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        if growing != [1]:
            refuse("base", f"as many rows of {name} as in the model", tuple(growth))
        return Role(name, "vector", 1.0, growth[1])
    if len(growth) == 1:
        return Role(name, "vector", 1.0, growth[0])
    fan_out, fan_in = (growth[1], growth[0]) if isinstance(module, AnyTransposedConvolution) else (growth[0], growth[1])
    if len(growing) == 2:
        return Role(name, "hidden", fan_in, fan_out)
    if isinstance(module, nn.Linear | AnyConvolution) and own == "weight":
        return Role(name, "output", fan_in, 1.0) if fan_out == 1.0 else Role(name, "vector", 1.0, fan_out)
    return Role(name, "vector", 1.0, growth[growing[0]])


def _refuse_heads(model: nn.Module, base: nn.Module, scaled: bool) -> None:
    """Heads that grow, scaled by the root of their size."""
    if scaled:
        return
    siblings = dict(base.named_modules())
    for name, module in model.named_modules():
        size, small = getattr(module, _SIZED, None), getattr(siblings.get(name), _SIZED, None)
        if isinstance(size, int) and isinstance(small, int) and size != small:
            refuse("model", f"heads of {small} in {name}, more of them in a wider model (or scaled_attention)", size)
