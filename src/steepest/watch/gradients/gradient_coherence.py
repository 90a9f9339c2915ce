"""How far the gradients of samples point the same way, and means of them that few samples cannot move far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse, values_visible
from ...core.probe import Array, Moment, Probe, Reading, untouched
from ...core.reductions import widen
from ...core.sample_gradients import (
    chunks_of_gradients,
    count_samples,
    frozen_samples,
    loss_of_moment,
    rows_of,
    samples_of,
)


def m_coherence(per_example: F[Tensor, "m ..."]) -> F[Tensor, ""]:
    r"""The average number of samples, itself included, that a small step along one sample's gradient helps.

    .. math:: m \alpha = \frac{\|\sum_i g_i\|^2}{\sum_i \|g_i\|^2}

    m where all gradients are equal, 1 where they are orthogonal, below 1 where they cancel; in [0, m]. Any multiple of
    the gradients has the same.

    Args:
        per_example: gradients, ``[m, ...]``.

    Returns:
        A number in float32 or wider; NaN, with a warning, where all gradients are 0.

    Raises:
        ValueError: no gradients.

    Example:
        >>> m_coherence(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        tensor(2.)

    Source: On the Generalization Mystery in Deep Learning, arXiv:2203.10036.
    """
    gradients = _gradients(per_example)
    total, squares = _sums([{"": gradients}])
    _warn_of_zeros([squares[""]])
    return (_squared(total[""]) / squares[""]).to(gradients.dtype)


def gradient_coherence(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any = None,
    per: str = "model",
    unbiased: bool = False,
    *,
    chunk: int = 64,
) -> dict[str, Any]:
    r"""The coherence of the gradients of samples at the present weights, in memory for a few of them.

    .. math::
        \alpha = \frac{\|\frac1m \sum_i g_i\|^2}{\frac1m \sum_i \|g_i\|^2} \in [0, 1], \qquad
        \alpha_{\text{unbiased}} = \frac{\frac{1}{m(m-1)} \sum_{i \ne j} \langle g_i, g_j \rangle}
        {\frac1m \sum_i \|g_i\|^2} \in \Bigl[-\frac{1}{m-1}, 1\Bigr]

    Args:
        model: that treats samples one by one, in the mode in which it is: in evaluation mode, where it has batch
            normalisation or dropout.
        loss_fn: of outputs and targets of a batch of one; a scalar.
        x, y: ``[m, ...]``; x also a tuple or mapping of the model's arguments.
        per: ``"model"``: all parameters together; ``"layer"``: those of each module by themselves.
        unbiased: leave out the pairs of a sample with itself.
        chunk: samples whose gradients are held at once.

    Returns:
        ``alpha``, ``m_coherence`` (:func:`m_coherence`, whichever alpha it is) and ``m``; for ``"layer"`` these by the
        name of the module. NaN, with a warning, where all gradients are 0.

    Raises:
        ValueError: batch normalisation in training mode, no samples, one sample for the unbiased form, another ``per``.

    Example:
        >>> model, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> of_model = gradient_coherence(model, lambda outputs, _: outputs.sum(), x)
        >>> round(float(of_model["alpha"]), 4), round(float(of_model["m_coherence"]), 4), of_model["m"]
        (0.6667, 2.0, 3)

    Source: On the Generalization Mystery in Deep Learning, arXiv:2203.10036.
    """
    check_choice("per", per, ("model", "layer"))
    check_flag("unbiased", unbiased)
    with untouched(model):
        count = samples_of(model, x, y)
        if unbiased and count < 2:
            refuse("x", "at least two samples for the unbiased form", x)
        total, squares = _sums(chunks_of_gradients(model, loss_fn, x, y, chunk=chunk))
    numbers = {
        layer: _coherence([total[name] for name in names], [squares[name] for name in names], count, unbiased)
        for layer, names in _layers(total, per).items()
    }
    _warn_of_zeros([sum(squares[name] for name in names) for names in _layers(total, per).values()])
    return numbers[""] if per == "model" else numbers


def winsorized_gradient(per_example: F[Tensor, "m ..."], c: float = 8.0) -> F[Tensor, " ..."]:
    r"""The mean of gradients whose outermost values are pulled in, coordinate by coordinate.

    .. math:: \frac1m \sum_i \min(\max(g_{ik}, q_c(g_{\cdot k})), q_{100-c}(g_{\cdot k}))

    where :math:`q_c` is the percentile c, interpolated linearly. c = 0 is the mean, c = 50 the median. Parameters can
    be given one after the other.

    Args:
        per_example: gradients, ``[m, ...]``.
        c: percentile, in [0, 50].

    Returns:
        A gradient in float32 or wider; NaN where one is NaN.

    Raises:
        ValueError: no gradients, a c outside its range.

    Example:
        >>> winsorized_gradient(torch.tensor([[0.0], [1.0], [8.0]]), 25.0)
        tensor([2.])

    Source: On the Generalization Mystery in Deep Learning, arXiv:2203.10036.
    """
    gradients = _gradients(per_example)
    check_number("c", c, low=0.0, high=50.0)
    place = c / 100 * (len(gradients) - 1)
    below = int(place)
    # as rows, where values of a coordinate lie side by side
    values = gradients.flatten(1).T.sort(1).values
    near, further = (min(below + k, len(gradients) - 1) for k in (0, 1))
    low = torch.lerp(values[:, near], values[:, further], place - below)
    high = torch.lerp(values[:, -1 - near], values[:, -1 - further], place - below)
    mean = values.clamp(low[:, None], high[:, None]).mean(1)
    return mean.view(gradients.shape[1:])


def median_of_means_gradient(per_example: F[Tensor, "m ..."], parts: int = 3) -> F[Tensor, " ..."]:
    r"""The median of the mean gradients of equal parts of a batch, coordinate by coordinate.

    Means of the present and the last two batches, stacked as three rows, give the rolling form. For an even number of
    parts the median lies halfway between the inner two.

    Args:
        per_example: gradients, ``[m, ...]``; parts are neighbours, as many in one as in another or one more.
        parts: from 1 (the mean) to m (the median).

    Returns:
        A gradient in float32 or wider.

    Raises:
        ValueError: no gradients, more parts than gradients.

    Example:
        >>> median_of_means_gradient(torch.tensor([[0.0], [2.0], [1.0], [3.0], [90.0], [10.0]]))
        tensor([2.])

    Source: On the Generalization Mystery in Deep Learning, arXiv:2203.10036.
    """
    gradients = _gradients(per_example)
    check_number("parts", parts, low=1, high=len(gradients), integer=True)
    means = torch.stack([of_part.mean(0) for of_part in gradients.tensor_split(parts)])
    values = means.sort(0).values
    return (values[(parts - 1) // 2] + values[parts // 2]) / 2


class GradientCoherenceMonitor(Probe):
    r"""The coherence of the gradients of a batch's samples: see :func:`gradient_coherence`.

    In evaluation mode, so that samples are taken one by one. The objective must be one of samples. A reading has
    ``alpha``, ``m_coherence`` and ``samples``, NaN where all gradients are 0 or one is not finite, and the m-coherence
    by module.

    Args:
        samples: at most so many, the first of the batch, >= 2.
        unbiased: leave out the pairs of a sample with itself in ``alpha``.
        every: steps between readings, >= 1.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> from steepest.core.probe import Moment
        >>> model, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> moment = Moment(1, "gradients", model, objective=lambda out, _: out.mean(), inputs=x)
        >>> round(float(GradientCoherenceMonitor().measure(moment).numbers["m_coherence"]), 4)
        2.0

    Source: On the Generalization Mystery in Deep Learning, arXiv:2203.10036.
    """

    name: ClassVar[str] = "gradient_coherence"
    phases: ClassVar[tuple[str, ...]] = ("gradients",)
    needs: ClassVar[tuple[str, ...]] = ("objective", "batch")
    cost: ClassVar[str] = "the gradient of each of 64 samples"

    def __init__(self, samples: int = 64, unbiased: bool = False, *, every: int = 200) -> None:
        check_number("samples", samples, low=2, integer=True)
        check_flag("unbiased", unbiased)
        check_number("every", every, low=1, integer=True)
        self.samples, self.unbiased, self.every = samples, unbiased, every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        if not any(p.requires_grad for p in model.parameters()):
            refuse("model", "a parameter that is trained", type(model).__name__)

    def measure(self, moment: Moment) -> Reading:
        first = slice(0, self.samples)
        x, y = rows_of(moment.inputs, first), rows_of(moment.targets, first)
        count, layers = count_samples(x, y), _layers(moment.parameters(), "layer")
        if not count:
            return _reading(dict.fromkeys(("alpha", "m_coherence"), math.nan), 0, dict.fromkeys(layers, math.nan))
        with frozen_samples(moment) as model:
            total, squares = _sums(chunks_of_gradients(model, loss_of_moment(moment), x, y, chunk=16))
        numbers = _coherence(list(total.values()), list(squares.values()), count, self.unbiased and count > 1)
        by_module = {
            layer: _coherence([total[name] for name in names], [squares[name] for name in names], count, False)
            for layer, names in layers.items()
        }
        return _reading(numbers, count, {layer: value["m_coherence"] for layer, value in by_module.items()})


def _reading(numbers: Mapping[str, Any], count: int, by_module: Mapping[str, Any]) -> Reading:
    values = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in by_module.values()])
    return Reading(
        {"alpha": numbers["alpha"], "m_coherence": numbers["m_coherence"], "samples": float(count)},
        {"m_coherence by module": Array(values, {"module": list(by_module)})},
    )


def _gradients(per_example: Tensor) -> Tensor:
    check_tensor("per_example", per_example, floating=True)
    if per_example.ndim < 1 or not len(per_example):
        refuse("per_example", "gradients [m, ...], at least one", per_example)
    return widen(per_example)


def _sums(pieces: Iterable[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By parameter, the sum of gradients and the sum of their squared lengths, which is in float64."""
    total: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    for piece in pieces:
        for name, gradients in piece.items():
            rows = widen(gradients)
            total[name] = total.get(name, 0) + rows.sum(0)
            squares[name] = squares.get(name, 0) + _squared(rows)
    return total, squares


def _warn_of_zeros(squares: Iterable[Tensor | int]) -> None:
    if any(isinstance(value, Tensor) and values_visible(value) and float(value) == 0 for value in squares):
        warnings.warn("all gradients are 0: they have no coherence, which is NaN", stacklevel=3)


def _squared(values: Tensor) -> Tensor:
    """The squared length, in float64: squares of small gradients leave float32."""
    square: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64).square()
    return square


def _coherence(total: list[Tensor], squares: list[Tensor], count: int, unbiased: bool) -> dict[str, Any]:
    ratio = torch.stack([_squared(value) for value in total]).sum() / torch.stack(squares).sum()
    alpha = (ratio - 1) / (count - 1) if unbiased else ratio / count
    return {"alpha": alpha, "m_coherence": ratio, "m": count}


def _layers(names: Iterable[str], per: str) -> dict[str, list[str]]:
    """Names of parameters by the module that holds them, or all together."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] if per == "layer" else "", []).append(name)
    return layers
