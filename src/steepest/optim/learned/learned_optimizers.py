"""A learned optimizer of 197 numbers: a tiny network that sees 39 features of each entry and says where it goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_tensor, refuse
from ...core.optimizer import ListOptimizer, Share, real
from ...core.reductions import widen
from ...core.stored import read_json
from ...core.wrapper import Params
from ._default_theta import THETA
from ._meta import MetaTrainer, MLPTask, PersistentES, Task, Unroll
from ._network import (
    FEATURES,
    HIDDEN,
    LAYERS,
    SIZE,
    Network,
    accumulated,
    change,
    crossed,
    factored_dims,
    network,
    normaliser,
    seen,
    started,
)
from ._step import Steps, runs

__all__ = ["AdafacMLPLOpt", "MLPTask", "MetaTrainer", "Network", "PersistentES", "SmallFCLOpt", "Task", "Unroll"]

_LARGEST = 1e6
"""Of a meta-parameter in a file."""


class SmallFCLOpt(ListOptimizer):
    r"""A learned optimizer: momenta, second moments and Adafactor's features into a network of 197 numbers.

    For each tensor, with learned decays :math:`\beta = 1 - e^{10 (\log(1 - \beta_0) / 10 + o)}` and without correction
    of bias:

    - :math:`m`: averages of g, from :math:`\beta_0` = 0.9, 0.99, 0.999; :math:`v`: of :math:`g^2`, 0.999;
    - r and c: averages of the mean of :math:`g^2 + 10^{-30}` over the largest and over the second largest
      dimension, 0.9, 0.99, 0.999; with :math:`\rho = (r / \overline r)^{-1/2}` and :math:`\kappa = c^{-1/2}`.

    The 28 features of an entry are g, p, m, v, :math:`m / \sqrt v`, :math:`1 / \sqrt v`, :math:`g \rho \kappa`, r, c,
    :math:`1 / \sqrt r`, :math:`1 / \sqrt c` and :math:`m \rho \kappa`; in vectors and scalars the average s of
    :math:`g^2` itself stands for r and c, and :math:`1 / \sqrt s` for :math:`\rho \kappa`. Each is divided by its root
    mean square over the tensor. Eleven of time follow, :math:`\tanh(t / s - 1)` with s from 1 to 100,000, t = 0 in the
    first step. A network of layers 39, 4, 4, 2 with rectified units gives a and b, and

    .. math:: p \leftarrow p - \alpha\, 0.001\, a\, e^{0.001\, b}

    The default network was trained by :class:`MetaTrainer` on small networks for digits, for 200 steps of their
    training, and only briefly: the experiment shows Adam at its best rate ending lower there, and much lower on other
    pictures and after 1,000 steps. It looks at weights and time too, so that
    also an entry whose gradient is 0 may move.

    Args:
        params: parameters or groups.
        theta: the 197 meta-parameters: weights and biases of each layer, then offsets of the decays of m, v, and r
            and c.
        lr: alpha >= 0; 1 is what was learned.
        maximize: whether the objective goes up.
        foreach: both ways take one tensor after the other.

    Raises:
        ValueError: a theta of another shape, or not finite; a rate below 0.
        TypeError: a sparse gradient.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2, 3))
        >>> optimizer = SmallFCLOpt([w])
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> optimizer.features(w).shape
        torch.Size([28, 2, 3])

    Source: Practical tradeoffs between memory, compute, and performance in learned optimizers, arXiv:2203.11860.
    """

    name = "small_fc_lopt"
    exempt: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        params: Params,
        theta: F[Tensor, " size"] | None = None,
        lr: float = 1.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        self.theta = _checked(torch.tensor(THETA, dtype=torch.float64) if theta is None else theta)
        super().__init__(params, {"lr": lr, "maximize": maximize}, foreach=foreach)

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        return {"step": 0, **{name: x[0] for name, x in started(_one(real(parameter))).items()}}

    def _move(self, share: Share) -> None:
        places = [i for i, p in enumerate(share.weights) if p.numel()]
        quick = [i for i in places if runs(share.weights[i], share.slopes[i], share.states[i])]
        if quick:
            self._move_in_place(share.of(quick))
        for i in sorted({*places} - {*quick}):
            p, state = share.weights[i], share.states[i]
            net, after, features = self._look(p, share.slopes[i], state)
            step = change(net, features, state["step"]).reshape(p.shape)
            p.copy_(widen(p) - share.group["lr"] * step)
            state.update({name: x[0] for name, x in after.items()})
        for i in places:
            share.states[i]["step"] += 1

    def _move_in_place(self, share: Share) -> None:
        """Tensors of float32 on the CPU, each as alone."""
        net = self._net(torch.float32)
        steps = Steps(net, share.group["lr"])
        for p, g, state in zip(share.weights, share.slopes, share.states):
            if (dims := factored_dims(p.shape)) is not None:
                stacked = {name: x[None] for name, x in state.items() if name in ("row", "col")}
                after = crossed(net, stacked, g.square()[None] + 1e-30, dims)
                state.update({name: x[0] for name, x in after.items()})
                steps.matrix(p, g, state)
        vectors = share.of([i for i, p in enumerate(share.weights) if p.ndim < 2])
        if vectors.weights:
            steps.vectors(vectors.weights, vectors.slopes, vectors.states)

    def _net(self, dtype: torch.dtype, device: torch.device | None = None) -> Network:
        return network(self.theta.to(device, dtype)[None])

    def _look(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> tuple[Network, dict[str, Tensor], Tensor]:
        weights, slopes = _one(p), widen(g)[None]
        net = self._net(weights.dtype, weights.device)
        after = accumulated(net, {name: x[None] for name, x in state.items() if name != "step"}, slopes)
        return net, after, seen(slopes, weights, after)

    @torch.no_grad()
    def features(self, p: Tensor) -> Tensor:
        """The 28 features of a parameter with its present gradient, ``[28, *shape]``, as the next step sees them.

        Raises:
            ValueError: a tensor that this optimizer does not move, or one without a gradient.
        """
        for share in self._shares():
            for own, weights, g, state in zip(share.parameters, share.weights, share.slopes, share.states):
                if own is p:
                    raw = self._look(weights, g, state)[2]
                    return (raw * normaliser(raw)[..., None]).reshape(FEATURES, *weights.shape)
        refuse("p", "a parameter of this optimizer that has a gradient", p)

    def own_state(self) -> dict[str, Any]:
        """The meta-parameters."""
        return {**super().own_state(), "theta": self.theta}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave."""
        super().load_own_state(state)
        self.theta = _checked(state["theta"])

    @staticmethod
    def save(theta: F[Tensor, " size"], path: str | Path) -> None:
        """Write meta-parameters as JSON.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        Path(path).write_text(json.dumps(_checked(theta).tolist()) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Tensor:
        """Meta-parameters of a file, ``[197]`` in float64.

        Raises:
            InputError: the file is not there, or no JSON.
            ValueError: it holds anything but 197 numbers.
        """
        values = read_json(Path(path), "theta")
        fits = isinstance(values, list) and len(values) == SIZE
        if not fits or not all(type(value) in (int, float) and abs(value) <= _LARGEST for value in values):
            refuse("theta", f"{SIZE} numbers up to {_LARGEST:g}", values)
        return torch.tensor(values, dtype=torch.float64)

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """With a network that passes on the shortest momentum, in steps that shrink: no opinion of weights."""
        return [lambda params: cls(params, _momentum(100.0, 2000.0))]


AdafacMLPLOpt = SmallFCLOpt


def _one(p: Tensor) -> Tensor:
    """A stack of one, in float32 or wider."""
    return widen(p)[None]


def _checked(theta: Tensor) -> Tensor:
    check_tensor("theta", theta, floating=True, shape=(SIZE,))
    if not bool(theta.isfinite().all()):
        refuse("theta", "finite numbers", theta)
    return theta.detach().clone()


def _momentum(size: float, slowing: float) -> Tensor:
    """Meta-parameters of a network with the outputs a = size m and b = -slowing (1 + tanh(t / 300 - 1)).

    m is the normalised momentum of decay 0.9: feature 2. The scale of 300 is the sixth of time.
    """
    theta = torch.zeros(SIZE, dtype=torch.float64)
    first, second, third = (
        theta[start : start + wide * out].view(wide, out) for start, (wide, out) in zip((0, 160, 180), LAYERS)
    )
    first[2, 0], first[2, 1], first[FEATURES + 5, 2] = 1.0, -1.0, 1.0
    theta[LAYERS[0][0] * HIDDEN + 2] = 1.0
    second.fill_diagonal_(1.0)
    third[0, 0], third[1, 0], third[2, 1] = size, -size, -slowing
    return theta
