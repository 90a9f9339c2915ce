"""Cosines of a layer's inputs with its top singular direction: one sign alone comes before a loss that explodes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_number, check_tensor, refuse
from ...core.probe import Array, Moment, Probe, Reading, inner_module
from ...core.reductions import widen
from ...core.singular import top_singular

BINS = 20
"""Of the histogram of cosines."""


def spectral_alignment(
    h: F[Tensor, "*rows inputs"],
    W: F[Tensor, "outputs inputs"],
    v: F[Tensor, " inputs"] | None = None,
    *,
    iters: int = 3,
) -> tuple[F[Tensor, "*rows"], F[Tensor, " inputs"]]:
    r"""Cosine of each input of a linear layer with the layer's top singular vector on the side of its inputs.

    .. math:: SA_i = \frac{\langle h_i, v_1 \rangle}{\lVert h_i \rVert}, \qquad
        W = \sum_r s_r u_r v_r^T \text{ for } y = W h

    In a step of gradient descent s_1 changes by -eta sum_i <u_1, dL/dy_i> <h_i, v_1>: cosines of both signs cancel, and
    of one sign move it steadily.

    Args:
        h: inputs, ``[..., n]``: tokens or examples.
        W: the layer's weight as torch holds it, ``[outputs, inputs]``.
        v: the vector of an earlier call, which ``iters`` power iterations bring up to date with its sign; None: it is
            computed from the beginning, up to a sign.
        iters: power iterations from v, >= 0.

    Returns:
        cosines, ``[...]``, 0 of an input of zeros; and the vector for the next call, ``[inputs]``.

    Raises:
        ValueError: shapes that don't fit.

    Example:
        >>> sa, v = spectral_alignment(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.diag(torch.tensor([3.0, 1.0])))
        >>> sa.abs().round(decimals=4)
        tensor([1., 0.])

    Source: Spectral Alignment as Predictor of Loss Explosion in Neural Network Training, arXiv:2510.04202.
    """
    check_tensor("W", W, ndim=2, floating=True)
    check_tensor("h", h, floating=True)
    check_tensor("h", h, shape=(*(None,) * (h.ndim - 1), W.shape[1]))
    if v is not None:
        check_tensor("v", v, floating=True, shape=(W.shape[1],))
    check_number("iters", iters, low=0, integer=True)
    _, _, v = top_singular(W, v, iters)
    h = widen(h.detach())
    size = h.abs().amax(-1, keepdim=True) if h.numel() else h[..., :1]
    h = h / torch.where(size == 0, 1.0, size)  # so that no square leaves the type
    length = torch.linalg.vector_norm(h, dim=-1)
    return (h @ v.to(h)) / torch.where(length == 0, 1.0, length), v


def sign_diversity(sa: F[Tensor, "*rows"]) -> dict[str, Tensor]:
    r"""How evenly cosines are split over both signs; which sign is which doesn't matter.

    .. math:: p = \frac{\#\{SA_i > 0\}}{\#\{SA_i \neq 0\}}, \quad q = \max(p, 1 - p), \quad
        H = -p \log_2 p - (1 - p) \log_2 (1 - p)

    Args:
        sa: cosines of any shape; those that are exactly 0 are not counted.

    Returns:
        numbers without dimension: ``"majority"`` q in [0.5, 1] (1: one sign alone), ``"entropy"`` H in bits,
        ``"mean"`` and ``"sd"`` of the cosines that count, and ``"count"``, how many these are. All but the count are
        NaN where nothing counts, or a cosine is NaN.

    Raises:
        TypeError: no floating tensor.

    Example:
        >>> {name: round(float(x), 4) for name, x in sign_diversity(torch.tensor([1.0, -0.7071, 0.0, 0.6])).items()}
        {'majority': 0.6667, 'entropy': 0.9183, 'mean': 0.2976, 'sd': 0.729, 'count': 3.0}

    Source: Spectral Alignment as Predictor of Loss Explosion in Neural Network Training, arXiv:2510.04202.
    """
    check_tensor("sa", sa, floating=True)
    sa = widen(sa.detach()).flatten()
    counted = sa != 0
    count = counted.sum()
    mean = sa.sum() / count
    p, n = (torch.where(sa.isnan(), sa, sign.to(sa)).sum() / count for sign in (sa > 0, sa < 0))
    return {
        "majority": torch.maximum(p, n),
        "entropy": -(torch.xlogy(p, p) + torch.xlogy(n, n)) / math.log(2),
        "mean": mean,
        "sd": (torch.where(counted, sa - mean, 0.0).square().sum() / count).sqrt(),
        "count": count,
    }


def layers_by_type(model: nn.Module) -> dict[str, list[str]]:
    """Names of the linear layers of a model; together those of one shape whose names differ in numbers alone.

    >>> block = lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> layers_by_type(nn.Sequential(block(), block()))
    {'*.* (2 to 4)': ['0.0', '1.0'], '*.* (4 to 2)': ['0.2', '1.2']}
    """
    types: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            of_type = f"{re.sub(r'[0-9]+', '*', name)} ({module.in_features} to {module.out_features})".lstrip()
            types.setdefault(of_type, []).append(name)
    return types


class SpectralAlignmentMonitor(Probe):
    r"""Watches the signs of cosines between each linear layer's inputs and its top singular direction.

    In sound training both signs occur; where nearly all tokens of a batch have one, weights grow along that direction
    and representations collapse. What counts is the mean of the majority (:func:`sign_diversity`) over the layers of
    one type: a single layer above 0.95 is common in sound runs, and all layers of a type may touch 1 in the first tenth
    of a run.

    Readings: arrays by layer ``"majority"``, ``"entropy"``, ``"mean"``, ``"singular_value"`` and ``"cosines"`` (shares
    of tokens in 20 bins), by type ``"majority_of_type"``; numbers ``"largest_majority"`` of a type, and ``"alarm"``:
    how many types have been above the threshold for ``reports`` readings in a row. Layers whose modules are not called
    (the output projection of torch's own attention) are not read; where nothing is, numbers are NaN and the alarm is 0.

    Args:
        layers: names of linear layers by type; None: all, by shape and name (:func:`layers_by_type`), and types of a
            single layer raise no alarm.
        threshold: of the mean majority of a type, in [0.5, 1].
        reports: readings in a row, >= 1.
        after: the step up to which no reading counts for the alarm, >= 0: a tenth of the run.
        tokens: read of a batch at most, evenly spaced, >= 1.
        iters: power iterations a reading with which the direction is followed, >= 1.
        every: how many steps apart.

    Raises:
        ValueError: numbers outside their range; to be attached to a model without such layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> reading = SpectralAlignmentMonitor().measure(Moment(1, "gradients", model, inputs=torch.ones(9, 4)))
        >>> reading.arrays["majority"].values
        tensor([1., 1.])

    Source: Spectral Alignment as Predictor of Loss Explosion in Neural Network Training, arXiv:2510.04202. The rule of
    the alarm is this library's.
    """

    name: ClassVar[str] = "spectral_alignment"
    phases: ClassVar[tuple[str, ...]] = ("gradients",)
    needs: ClassVar[tuple[str, ...]] = ("batch",)
    cost: ClassVar[str] = "a forward pass, and products of each weight with iters + 1 pairs of vectors and the tokens"

    def __init__(
        self,
        layers: Mapping[str, Sequence[str]] | None = None,
        *,
        threshold: float = 0.97,
        reports: int = 5,
        after: int = 0,
        tokens: int = 1024,
        iters: int = 3,
        every: int = 20,
    ) -> None:
        check_number("threshold", threshold, low=0.5, high=1.0)
        check_number("reports", reports, low=1, integer=True)
        check_number("after", after, low=0, integer=True)
        check_number("tokens", tokens, low=1, integer=True)
        check_number("iters", iters, low=1, integer=True)
        self.layers, self.threshold, self.reports = layers, threshold, reports
        self.after, self.tokens, self.iters = after, tokens, iters
        self.every = every
        self._directions: dict[str, Tensor] = {}
        self._in_a_row: dict[str, Tensor] = {}

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model that has no linear layer, or lacks one that was named."""
        inner = inner_module(model)
        modules = dict(inner.named_modules())
        wanted = [name for names in self._types(inner).values() for name in names]
        if not wanted:
            refuse("model", "linear layers", type(inner).__name__)
        for name in wanted:
            if not isinstance(modules.get(name), nn.Linear):
                refuse("layers", "names of linear layers of the model", name)

    def _types(self, model: nn.Module) -> dict[str, list[str]]:
        if self.layers is None:
            return layers_by_type(model)
        return {of_type: list(names) for of_type, names in self.layers.items()}

    def measure(self, moment: Moment) -> Reading:
        """The cosines of the tokens of this batch, with directions that follow those of the reading before."""
        types = self._types(moment.module)
        modules = dict(moment.module.named_modules())
        values = moment.activations([name for names in types.values() for name in names])
        by_layer: dict[str, dict[str, Tensor]] = {}
        with moment.untouched(), torch.no_grad():
            for name, (inputs, _) in values.items():
                weight = modules[name].weight
                h = inputs[0] if inputs else None
                if not (isinstance(h, Tensor) and isinstance(weight, Tensor) and h.is_floating_point()):
                    continue
                rows = h.flatten(0, -2) if h.ndim > 1 else h[None]
                by_layer[name] = self._of_layer(name, rows[:: max(1, math.ceil(len(rows) / self.tokens))], weight)
        if not by_layer:
            return Reading({"largest_majority": math.nan, "alarm": 0.0})
        device = next(iter(by_layer.values()))["majority"].device  # of a model on several, the first
        columns = {
            key: torch.stack([row[key].to(device, torch.float32) for row in by_layer.values()])
            for key in ("majority", "entropy", "mean", "singular_value", "cosines")
        }
        place = {name: number for number, name in enumerate(by_layer)}
        read = {of_type: [place[name] for name in names if name in place] for of_type, names in types.items()}
        read = {of_type: places for of_type, places in read.items() if places}
        of_types = torch.stack([columns["majority"][places].mean() for places in read.values()])
        counted = [of_type for of_type, places in read.items() if len(places) > 1 or self.layers is not None]
        alarm = torch.zeros((), device=device)
        if moment.step > self.after:
            above = dict(zip(read, of_types > self.threshold))
            nothing = torch.zeros((), dtype=torch.long, device=device)
            self._in_a_row = {
                of_type: torch.where(above[of_type], self._in_a_row.get(of_type, nothing).to(device) + 1, 0)
                for of_type in counted
            }
            alarm = sum(((count >= self.reports).float() for count in self._in_a_row.values()), alarm)
        layer = {"layer": list(by_layer)}
        edges = [(2 * number + 1) / BINS - 1 for number in range(BINS)]
        arrays = {
            key: Array(column, layer | ({"cosine": edges} if key == "cosines" else {}))
            for key, column in columns.items()
        }
        arrays["majority_of_type"] = Array(of_types, {"type": list(read)})
        return Reading({"largest_majority": of_types.amax(), "alarm": alarm}, arrays)

    def _of_layer(self, name: str, rows: Tensor, weight: Tensor) -> dict[str, Tensor]:
        v = self._directions.get(name)
        v = None if v is None or v.shape != weight.shape[1:] else v.to(weight.device)
        sa, v = spectral_alignment(rows, weight, v, iters=self.iters)
        self._directions[name] = v
        value = torch.linalg.vector_norm(widen(weight.detach()) @ v)
        bins = torch.histc(sa.float(), BINS, -1.0, 1.0) / max(1, sa.numel())
        return {**sign_diversity(sa), "singular_value": value, "cosines": bins}

    def state_dict(self) -> dict[str, Any]:
        """Directions by layer, and readings in a row by type."""
        return {
            "directions": {name: v.detach().cpu().clone() for name, v in self._directions.items()},
            "in_a_row": {of_type: int(count) for of_type, count in self._in_a_row.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these."""
        self._directions = {name: v.clone() for name, v in state["directions"].items()}
        self._in_a_row = {of_type: torch.tensor(count) for of_type, count in state["in_a_row"].items()}

    def reset(self) -> None:
        """Forget directions and counts."""
        self._directions, self._in_a_row = {}, {}
