"""The plain signs of a run that every recorder shows: gradients, updates, units that are dead, logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.checks import refuse
from ..core.probe import Array, Moment, Probe, Reading
from ..core.reductions import widen
from ..core.torch_private import AnyConvolution, foreach_norm, foreach_sub


def _trained(model: nn.Module) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        refuse("model", "a parameter that is trained", "none")


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """The length of each tensor ``[n]`` in float64; 0 of an empty one."""
    wide = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.stack(list(foreach_norm([widen(t) for t in wide], 2, torch.float64)))


class GradientNorms(Probe):
    """The length of the gradient, of all parameters as one vector and of each.

    Of unscaled gradients, as the step uses them before an optimizer's own hooks. ``nonfinite`` counts the parameters
    whose gradient holds NaN or infinities.

    Args:
        every: how many steps apart.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> GradientNorms().measure(Moment(1, "gradients", model)).numbers["norm"].item()
        5.0
    """

    name = "gradient_norms"
    phases = ("gradients",)
    cost = "one pass over the gradients"

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model of which nothing is trained."""
        _trained(model)

    def measure(self, moment: Moment) -> Reading:
        """``norm``, ``largest`` of a parameter, ``nonfinite``; ``by_parameter`` ``[parameters]``."""
        slopes = moment.gradients()
        if not slopes:
            return Reading({"norm": 0.0, "largest": 0.0, "nonfinite": 0.0})
        norms = _norms(list(slopes.values()))
        numbers = {"norm": torch.linalg.vector_norm(norms), "largest": norms.amax(), "nonfinite": _nonfinite(norms)}
        return Reading(numbers, {"by_parameter": Array(norms, {"parameter": list(slopes)})})


def _nonfinite(values: Tensor) -> Tensor:
    return (~values.isfinite()).sum().double()


class UpdateRatios(Probe):
    r"""How far a step moved the weights, beside how large they are.

    .. math:: \|w_{t+1} - w_t\| / \|w_t\|

    Args:
        every: how many steps apart; such a step copies the weights.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> before = {"weight": 2 * model.weight.detach()}
        >>> round(UpdateRatios().measure(Moment(1, "stepped", model, before=before)).numbers["ratio"].item(), 6)
        0.5
    """

    name = "update_ratios"
    phases = ("stepped",)
    needs = ("optimizer",)
    cost = "one copy of the weights and two passes over them"

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model of which nothing is trained."""
        _trained(model)

    def measure(self, moment: Moment) -> Reading:
        """``norm`` of the update, ``ratio`` over all, ``median_ratio``; ``by_parameter`` ``[parameters]``."""
        before = moment.before or {}
        own = {name: p.detach() for name, p in moment.parameters().items() if name in before}
        if not own:
            return Reading({"norm": 0.0, "ratio": 0.0, "median_ratio": 0.0})
        moves = _norms(foreach_sub(list(own.values()), [before[name] for name in own]))
        sizes = _norms([before[name] for name in own])
        ratios = torch.where(moves == 0, 0.0, moves / sizes)
        total = torch.linalg.vector_norm(moves)
        ratio = torch.where(total == 0, 0.0, total / torch.linalg.vector_norm(sizes))
        numbers = {"norm": total, "ratio": ratio, "median_ratio": ratios.nanmedian()}
        return Reading(numbers, {"by_parameter": Array(ratios, {"parameter": list(own)})})


RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Mish, nn.Hardswish)
"""Activations after which a unit can be dead."""


class UnitActivity(Probe):
    """Which units do nothing for a whole batch, and what size activations have.

    A unit is a channel of the output of a ReLU or one of its kin: the second dimension after a convolution, the last
    otherwise; it is dead where its largest output over the batch is at most ``threshold`` of the layer's largest.

    Args:
        every: how many steps apart; such a step runs the model forward once more.
        threshold: a share, in [0, 1).

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> UnitActivity().measure(Moment(1, "gradients", model, inputs=torch.ones(3, 1))).numbers["dead"].item()
        0.5
    """

    name = "unit_activity"
    phases = ("gradients",)
    needs = ("batch",)
    cost = "one pass forward"

    def __init__(self, every: int = 200, threshold: float = 1e-3) -> None:
        if not 0 <= threshold < 1:
            refuse("threshold", "a share in [0, 1)", threshold)
        self.every, self.threshold = every, threshold

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model without such activations."""
        if not any(isinstance(module, RECTIFIERS) for module in model.modules()):
            refuse("model", "an activation after which units can be dead, as a module", "none")

    def measure(self, moment: Moment) -> Reading:
        """``dead``, the share of all units; ``by_layer``, of each, and ``sizes``, mean |output|: ``[layers]``."""
        layers = [name for name, module in moment.module.named_modules() if isinstance(module, RECTIFIERS)]
        outputs = {
            name: widen(out)
            for name, (_, out) in moment.activations(layers).items()
            if isinstance(out, Tensor) and out.is_floating_point() and out.ndim > 1
        }
        if not outputs:
            return Reading({"dead": float("nan")})
        dead, units, sizes = [], [], []
        convolved = _after_convolutions(moment.module)
        for name, out in outputs.items():
            channel = 1 if out.ndim == 4 or (name in convolved and out.ndim > 2) else out.ndim - 1
            peaks = out.abs().movedim(channel, 0).flatten(1)
            if not peaks.numel():
                dead.append(torch.tensor(float("nan"), dtype=torch.float64, device=out.device))
            else:
                top = peaks.amax(1)
                dead.append((top <= self.threshold * top.amax()).sum().double())
            units.append(out.shape[channel])
            sizes.append(out.abs().mean().double())
        counts = torch.stack(dead)
        sums = torch.tensor(units, dtype=torch.float64).to(counts.device)
        shares = counts / sums
        arrays = {
            "by_layer": Array(shares, {"layer": list(outputs)}),
            "sizes": Array(torch.stack(sizes), {"layer": list(outputs)}),
        }
        return Reading({"dead": counts.nansum() / torch.where(counts.isnan(), 0.0, sums).sum()}, arrays)


def _after_convolutions(model: nn.Module) -> set[str]:
    """Names of the modules that stand behind a convolution, with no other layer of weights between."""
    names: set[str] = set()
    convolution = False
    for name, module in model.named_modules():
        if isinstance(module, (AnyConvolution, nn.Linear)):
            convolution = isinstance(module, AnyConvolution)
        elif convolution:
            names.add(name)
    return names


class LogitSpread(Probe):
    """How large logits are, how sure they make the model, and how often it is right.

    Args:
        every: how many steps apart; such a step runs the model forward once more.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        >>> moment = Moment(1, "gradients", model, inputs=torch.ones(1, 1), targets=torch.zeros(1, dtype=torch.long))
        >>> {name: round(float(value), 3) for name, value in LogitSpread().measure(moment).numbers.items()}
        {'largest': 2.0, 'spread': 3.0, 'confidence': 0.953, 'entropy': 0.191, 'accuracy': 1.0}
    """

    name = "logit_spread"
    phases = ("gradients",)
    needs = ("batch",)
    cost = "one pass forward"

    def __init__(self, every: int = 200) -> None:
        self.every = every

    def measure(self, moment: Moment) -> Reading:
        """``largest`` |z|, mean ``spread`` max - min, mean ``confidence`` and ``entropy`` (nats), ``accuracy``."""
        with moment.untouched():
            outputs = moment.shared("logits", lambda: logits_of(moment.outputs(graph=False)))
        if outputs is None or outputs.ndim < 2 or not outputs.numel():
            return Reading()
        z = widen(classes_last(outputs, moment.targets)).flatten(0, -2)
        if z.shape[-1] < 2:
            return Reading()
        log_p = z.log_softmax(-1)
        p = log_p.exp()
        numbers: dict[str, float | Tensor] = {
            "largest": z.abs().amax(),
            "spread": (z.amax(-1) - z.amin(-1)).mean(),
            "confidence": p.amax(-1).mean(),
            "entropy": -torch.where(p > 0, p * log_p, 0.0).sum(-1).mean(),
        }
        targets = moment.targets
        if isinstance(targets, Tensor) and not targets.is_floating_point() and targets.numel() == len(z):
            labels = targets.flatten()
            valid = labels >= 0
            right = ((z.argmax(-1) == labels) & valid).sum().double()
            numbers["accuracy"] = right / valid.sum().double()
        return Reading(numbers)


def logits_of(outputs: Any) -> Tensor | None:
    """The logits of what a model gives: a tensor, an output with ``logits``, the first of several, or None."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    elif not isinstance(outputs, Tensor):
        outputs = getattr(outputs, "logits", outputs[0] if isinstance(outputs, tuple) and outputs else None)
    return outputs.detach() if isinstance(outputs, Tensor) and outputs.is_floating_point() else None


def classes_last(logits: Tensor, targets: Any = None) -> Tensor:
    """Logits whose last dimension is that of the classes.

    It is the second one where targets have the shape without it, as :func:`torch.nn.functional.cross_entropy` takes
    them for the pixels of an image, and of four dimensions where the targets do not tell.

    >>> classes_last(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5)).shape
    torch.Size([2, 4, 5, 3])
    """
    shape = tuple(targets.shape) if isinstance(targets, Tensor) else None
    second, last = shape == (*logits.shape[:1], *logits.shape[2:]), shape == tuple(logits.shape[:-1])
    image = second if second != last else logits.ndim == 4
    return logits.movedim(1, -1) if logits.ndim > 2 and image else logits


DEFAULT: tuple[type[Probe], ...] = (GradientNorms, UpdateRatios, UnitActivity, LogitSpread)
"""Of a recorder for which nobody names probes: those of them that fit the model."""
