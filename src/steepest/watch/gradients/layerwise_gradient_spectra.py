"""Singular values of the gradients of matrices, one by one: how large a pull is, and along how many directions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_number, check_tensor, refuse
from ...core.effective_rank import effective_rank as effective_rank
from ...core.probe import Array, Moment, Probe, Reading, untouched
from ...core.reductions import widen

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
Fused = Mapping[str, Mapping[str, int]]


def nuclear_norm(gradient: F[Tensor, "... rows columns"]) -> F[Tensor, " ..."]:
    r"""The sum of the singular values of matrices.

    .. math:: N = \sum_i s_i, \qquad \|G\|_F \le N \le \sqrt{r} \, \|G\|_F

    Args:
        gradient: one matrix or several; singular values are those in float32 or wider.

    Returns:
        One norm a matrix; NaN where an entry is not finite.

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> nuclear_norm(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor(4.)

    Source: How Instruction and Reasoning Data shape Post-Training, code MingLiiii/Gradient_Unified.
    """
    return _singular_values("gradient", gradient).sum(-1)


def gradient_spectrum(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    modules: Sequence[str] | None = ATTENTION,
    *,
    fused: Fused | None = None,
) -> dict[str, dict[str, Tensor]]:
    r"""The spectrum of the gradient of each chosen matrix, for one batch: often a single example.

    With :math:`G = U \operatorname{diag}(s) V^T`, :math:`p_i = s_i / \sum_j s_j`:

    .. math:: N = \sum_i s_i, \qquad R = \exp\Bigl(-\sum_i p_i \ln p_i\Bigr)

    R is at most the number of tokens whose loss counts, so that examples are compared at equal numbers of them. Half
    gradients have their small singular values in rounding: take the gradient in float32.

    Args:
        model: in the mode in which it is; its buffers, ``.grad`` and random states stay as they are.
        loss_fn: of the model and the batch, a scalar: for language the mean cross-entropy of the response.
        batch: what ``loss_fn`` takes.
        modules: last parts of the names of modules with a weight, or of parameters; None takes all that have two
            dimensions or more. A convolution's weight counts as a matrix of its output channels.
        fused: modules or parameters that hold several matrices, with the name and the size of each in order, for
            example ``{"qkv": {"q_proj": 64, "k_proj": 64, "v_proj": 64}}``: along the dimension of that sum.

    Returns:
        By the name of the matrix: ``nuclear``, ``effective_rank``, ``frobenius``, ``s`` (descending), and ``max``,
        ``min``, ``mean`` of the entries. A gradient of 0 has an effective rank of NaN, and so has one that is not
        finite.

    Raises:
        ValueError: no such matrix, one that is frozen, sizes that no dimension has, a loss that is no scalar.

    Example:
        >>> layer = nn.ModuleDict({"q_proj": nn.Linear(3, 3)})
        >>> token = torch.tensor([[1.0, 2.0, -1.0]])
        >>> spectrum = gradient_spectrum(layer, lambda m, x: m["q_proj"](x).square().sum(), token)["q_proj"]
        >>> round(float(spectrum["effective_rank"]), 4), spectrum["s"].shape
        (1.0, torch.Size([3]))

    Source: How Instruction and Reasoning Data shape Post-Training, code MingLiiii/Gradient_Unified.
    """
    chosen = _chosen(dict(model.named_parameters()), modules, fused)
    weights = {name: p for name, p in model.named_parameters() if name in {source for source, _, _ in chosen.values()}}
    for name, weight in weights.items():
        if not weight.requires_grad:
            refuse("model", f"a gradient for {name!r}", "a frozen parameter")
    slopes: list[Tensor | None] = [None] * len(weights)
    with untouched(model), torch.enable_grad():
        loss = loss_fn(model, batch)
        check_tensor("loss_fn(model, batch)", loss, ndim=0, floating=True)
        if loss.requires_grad:
            slopes = list(torch.autograd.grad(loss, list(weights.values()), allow_unused=True))
    gradients = {
        name: torch.zeros_like(weight) if slope is None else slope
        for (name, weight), slope in zip(weights.items(), slopes)
    }
    return {name: _spectrum(matrix) for name, matrix in _matrices(gradients, chosen).items()}


def gradient_similarity(
    grads: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]] | None = None
) -> dict[tuple[str, str], Tensor]:
    r"""Cosines of the gradients of pairs of matrices, as vectors.

    .. math:: \cos(\operatorname{vec} G_a, \operatorname{vec} G_b)

    Args:
        grads: gradients by the names of their matrices, or of their ``.weight``.
        pairs: of names; by default, among equal shapes, keys with values (``k_proj``, ``v_proj``) and queries with
            outputs (``q_proj``, ``o_proj``) of a layer, and each matrix with the same one of the next layer.

    Returns:
        By pair; NaN where one is 0 or not finite.

    Raises:
        ValueError: a name that is missing, a pair of different shapes.

    Example:
        >>> grads = {"0.k_proj": torch.ones(2, 2), "0.v_proj": torch.eye(2), "1.k_proj": -torch.ones(2, 2)}
        >>> {pair: round(float(cosine), 4) for pair, cosine in gradient_similarity(grads).items()}
        {('0.k_proj', '0.v_proj'): 0.7071, ('0.k_proj', '1.k_proj'): -1.0}

    Source: How Instruction and Reasoning Data shape Post-Training, code MingLiiii/Gradient_Unified.
    """
    cosines: dict[tuple[str, str], Tensor] = {}
    for pair in _pairs(grads) if pairs is None else pairs:
        for name in pair:
            if name not in grads:
                refuse("pairs", "names of gradients", name)
        a, b = (widen(grads[name]) for name in pair)
        if a.shape != b.shape:
            refuse("pairs", f"equal shapes, {tuple(a.shape)} for {pair[0]!r} and {pair[1]!r}", tuple(b.shape))
        # each divided by its largest entry first: squares of small gradients leave float32
        a, b = (g.flatten() / (g.abs().max() if g.numel() else 1.0) for g in (a, b))
        cosines[pair] = (a @ b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return cosines


class SpectrumMonitor(Probe):
    r"""Nuclear norms and effective ranks of the gradients in ``.grad``, matrix by matrix: see
    :func:`gradient_spectrum`.

    The gradient is that of all micro-batches that were accumulated, without a gradient scaler's factor. A reading has
    the means ``nuclear`` and ``effective_rank`` over matrices, the number of matrices ``without_rank`` (a gradient of
    0, or one that is not finite; the means leave them out), and arrays of the three norms by matrix.

    Args:
        modules: last parts of names, as for :func:`gradient_spectrum`; None takes every matrix.
        fused: modules that hold several matrices, likewise.
        every: steps between readings, >= 1.

    Raises:
        ValueError: when it is attached to a model that has no such matrix; an ``every`` below 1.

    Example:
        >>> from steepest.core.probe import Moment
        >>> model = nn.Linear(2, 2)
        >>> model(torch.tensor([[1.0, 2.0]])).sum().backward()
        >>> reading = SpectrumMonitor().measure(Moment(1, "gradients", model))
        >>> {name: round(float(value), 4) for name, value in reading.numbers.items()}
        {'nuclear': 3.1623, 'effective_rank': 1.0, 'without_rank': 0.0}

    Source: How Instruction and Reasoning Data shape Post-Training, code MingLiiii/Gradient_Unified.
    """

    name: ClassVar[str] = "gradient_spectrum"
    phases: ClassVar[tuple[str, ...]] = ("gradients",)
    cost: ClassVar[str] = "singular values of the gradient of each chosen matrix"

    def __init__(self, modules: Sequence[str] | None = None, *, fused: Fused | None = None, every: int = 50) -> None:
        check_number("every", every, low=1, integer=True)
        self.modules, self.fused, self.every = modules, fused, every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        _chosen({name: p for name, p in model.named_parameters() if p.requires_grad}, self.modules, self.fused)

    def measure(self, moment: Moment) -> Reading:
        gradients = moment.gradients()
        own = {name: p for name, p in moment.parameters().items() if name in gradients}
        chosen = _chosen(own, self.modules, self.fused, strict=False)
        spectra = {name: _spectrum(matrix) for name, matrix in _matrices(gradients, chosen).items()}
        names = ("nuclear", "effective_rank", "frobenius")
        values = {
            name: torch.stack([spectrum[name].double() for spectrum in spectra.values()])
            if spectra
            else torch.empty(0, dtype=torch.float64)
            for name in names
        }
        ranked = values["effective_rank"].isfinite()
        means = {name: torch.where(ranked, values[name], 0.0).sum() / ranked.sum() for name in names[:2]}
        arrays = {name: Array(value, {"matrix": list(spectra)}) for name, value in values.items()}
        return Reading({**means, "without_rank": (~ranked).sum().double()}, arrays)


def _singular_values(argument: str, matrix: Tensor) -> Tensor:
    """Descending, in float32 or wider; NaN for matrices with an entry that is not finite."""
    check_tensor(argument, matrix, floating=True)
    if matrix.ndim < 2:
        refuse(argument, "at least two dimensions", matrix)
    matrix = widen(matrix)
    finite = matrix.isfinite().all(-1).all(-1)
    s = torch.linalg.svdvals(torch.where(finite[..., None, None], matrix, 0.0))
    return torch.where(finite[..., None], s, torch.nan)


def _spectrum(matrix: Tensor) -> dict[str, Tensor]:
    matrix = widen(matrix.detach())
    nothing = matrix.new_tensor(torch.nan)
    s = _singular_values("gradient", matrix)
    return {
        "nuclear": s.sum(),
        "effective_rank": effective_rank(s) if len(s) else nothing,
        "frobenius": torch.linalg.vector_norm(s),
        "s": s,
        "max": matrix.max() if len(s) else nothing,
        "min": matrix.min() if len(s) else nothing,
        "mean": matrix.mean(),
    }


def _chosen(
    parameters: Mapping[str, Tensor], modules: Sequence[str] | None, fused: Fused | None, *, strict: bool = True
) -> dict[str, tuple[str, int, tuple[int, int] | None]]:
    """By the name of a matrix: its parameter, the dimension along which it lies in it, and from where to where."""
    fused = fused or {}
    chosen: dict[str, tuple[str, int, tuple[int, int] | None]] = {}
    for name, p in parameters.items():
        path = name.removesuffix(".weight")
        prefix, _, last = path.rpartition(".")
        if last in fused and p.ndim >= 2:
            total = sum(fused[last].values())
            along = next((k for k in (0, 1) if p.shape[k] == total), None)
            if along is None:
                refuse("fused", f"sizes whose sum is a dimension of {name!r}, {tuple(p.shape)}", dict(fused[last]))
            start = 0
            for inner, size in fused[last].items():
                if modules is None or inner in modules:
                    chosen[f"{prefix}.{inner}" if prefix else inner] = (name, along, (start, start + size))
                start += size
        elif p.ndim >= 2 and (modules is None or last in modules):
            chosen[path] = (name, 0, None)
    if strict and not chosen:
        refuse("modules", "last parts of names of trained matrices of the model", modules)
    return chosen


def _matrices(
    gradients: Mapping[str, Tensor], chosen: Mapping[str, tuple[str, int, tuple[int, int] | None]]
) -> dict[str, Tensor]:
    matrices = {}
    for name, (source, along, rows) in chosen.items():
        gradient = gradients[source]
        matrices[name] = (gradient if rows is None else gradient.narrow(along, rows[0], rows[1] - rows[0])).flatten(1)
    return matrices


def _pairs(grads: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Keys with values and queries with outputs of a layer, then each with its like in the next layer."""

    def like(name: str, one: str, another: str) -> str:
        path, weight = name.removesuffix(".weight"), ".weight" * name.endswith(".weight")
        return path.removesuffix(one) + another + weight if path.endswith(one) else ""

    candidates = [(name, like(name, a, b)) for a, b in (("k_proj", "v_proj"), ("q_proj", "o_proj")) for name in grads]
    layers: dict[str, list[tuple[int, str]]] = {}
    for name in grads:
        if number := re.search(r"(?<![^.])\d+(?![^.])", name):  # the first part that is a number counts layers
            layers.setdefault(f"{name[: number.start()]}*{name[number.end() :]}", []).append((int(number[0]), name))
    for of_layers in layers.values():
        names = [name for _, name in sorted(of_layers)]
        candidates += itertools.pairwise(names)
    return [(a, b) for a, b in candidates if b in grads and grads[a].shape == grads[b].shape]
