"""Pathways through a mixture of experts: which ones each sample uses, how far samples differ, how smooth they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.arguments import Arguments
from ...core.checks import check_flag, check_number, check_tensor, refuse
from ...core.probe import Array, Moment, Probe, Reading, inner_module
from ...core.reductions import widen
from ...core.sample_gradients import count_samples, frozen_samples, rows_of

NOTHING = -1
"""Stands behind the last symbol of a pathway that is shorter than the longest."""
ROUTERS = ("router", "gate")
"""Last parts of the names of modules that are routers by default."""


def pathway_tokens(
    routing: F[Tensor, "n layers experts"],
    k: int | None = 2,
    *,
    threshold: float | None = None,
    by_layer: bool = True,
) -> Int[Tensor, "n length"]:
    """The pathway of each sample: the experts that it uses, layer after layer, those of a layer by falling weight.

    Args:
        routing: probabilities of the routers, ``[n, L, E]``; of sequences their mean over tokens.
        k: experts a layer, in 1..E; None where a threshold is given.
        threshold: takes the experts with a weight above it instead, >= 0.
        by_layer: whether a symbol carries its layer (number of layer times E + number of expert), so that only experts
            of one layer are ever the same; False takes the number of the expert.

    Returns:
        Symbols ``[n, L k]``; with a threshold as many columns as the longest pathway has, and -1 behind shorter ones.

    Raises:
        ValueError: another shape, k outside 1..E, both or neither of k and threshold.

    Example:
        >>> pathway_tokens(torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.1, 0.4]]]))
        tensor([[1, 2, 3, 5]])
        >>> pathway_tokens(torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.1, 0.4]]]), None, threshold=0.35)
        tensor([[1, 3, 5]])

    Source: Where to find Grokking in LLM Pretraining? Monitor Memorization-to-Generalization without Test,
    arXiv:2506.21551.
    """
    check_flag("by_layer", by_layer)
    order, used, _ = _chosen(routing, k, threshold)
    layers, experts = routing.shape[1:]
    if by_layer:
        order = order + experts * torch.arange(layers, device=order.device)[:, None]
    symbols = torch.where(used, order, NOTHING).flatten(1)
    if threshold is None:
        return symbols
    to_front = (symbols == NOTHING).to(torch.uint8).sort(dim=1, stable=True).indices
    return symbols.gather(1, to_front)[:, : int((symbols != NOTHING).sum(1).max()) if len(symbols) else 0]


def pathway_distance(
    tokens_a: Int[Tensor, "*pairs a"], tokens_b: Int[Tensor, "*pairs b"], normalized: bool = True
) -> F[Tensor, " *pairs"]:
    r"""Levenshtein distances of pairs of pathways: the fewest insertions, deletions and replacements of a symbol.

    Args:
        tokens_a, tokens_b: symbols >= 0, ``[..., a]`` and ``[..., b]``, whose leading dimensions are broadcast;
            negative ones behind the last symbol of a pathway don't count.
        normalized: whether it is divided by the length of the longer one, to lie in [0, 1]; 0 of two empty ones.

    Returns:
        One number a pair, float32. Without ``normalized`` it is a metric.

    Raises:
        TypeError: no integers.
        ValueError: no dimension, leading dimensions that don't fit.

    Example:
        >>> float(pathway_distance(torch.tensor([3, 1, 4, 1]), torch.tensor([1, 4, 1, 5])))
        0.5

    Source: Where to find Grokking in LLM Pretraining? Monitor Memorization-to-Generalization without Test,
    arXiv:2506.21551.
    """
    for argument, tokens in (("tokens_a", tokens_a), ("tokens_b", tokens_b)):
        check_tensor(argument, tokens, floating=False)
        if tokens.ndim == 0:
            refuse(argument, "at least one dimension", tokens)
    check_flag("normalized", normalized)
    try:
        pairs = torch.broadcast_shapes(tokens_a.shape[:-1], tokens_b.shape[:-1])
    except RuntimeError:
        refuse("tokens_b", f"leading dimensions that fit {tuple(tokens_a.shape[:-1])}", tokens_b)
    a, b = (tokens.expand(*pairs, -1).reshape(math.prod(pairs), tokens.shape[-1]) for tokens in (tokens_a, tokens_b))
    length_a, length_b = ((tokens >= 0).sum(1) for tokens in (a, b))
    # row i holds the distances of the first i symbols of a from each beginning of b; what an insertion adds along a row
    # is a running minimum of the row less its place
    places = torch.arange(b.shape[1] + 1, device=b.device)
    row = places.expand(len(b), -1)
    last = torch.where((length_a == 0)[:, None], row, 0)
    for i in range(1, a.shape[1] + 1):
        replaced = row[:, :-1] + (a[:, i - 1 : i] != b)
        begun = torch.full_like(row[:, :1], i)
        row = torch.cat([begun, torch.minimum(replaced, row[:, 1:] + 1)], 1)
        row = (row - places).cummin(1).values + places
        last = torch.where((length_a == i)[:, None], row, last)
    distance = last.gather(1, length_b[:, None])[:, 0].float()
    if normalized:
        distance = distance / torch.maximum(length_a, length_b).clamp(min=1)
    return distance.reshape(pairs)


def pathway_consistency(
    routing: F[Tensor, "n layers experts"],
    expert_vectors: F[Tensor, "layers experts d"] | F[Tensor, "experts d"],
    k: int | None = 2,
    *,
    threshold: float | None = None,
) -> F[Tensor, " n"]:
    r"""How smooth the pathway of each sample is: the mean cosine of what successive layers choose.

    .. math:: C_i = \frac{1}{L - 1} \sum_{l=1}^{L-1} \cos(z^l, z^{l+1}), \qquad z^l = \sum_{e \text{ chosen}} w_e V^l_e

    with the weights of the chosen experts divided by their sum. It means something where the vectors of all layers live
    in one space: rows of routers that read the same residual stream do.

    Args:
        routing: probabilities of the routers, ``[n, L, E]``, L >= 2.
        expert_vectors: of each expert, ``[L, E, d]``, or ``[E, d]`` for all layers alike.
        k, threshold: which experts are chosen, as for :func:`pathway_tokens`.

    Returns:
        A number in [-1, 1] for each sample, in float32 or wider; NaN where a layer has no expert or a vector of 0.

    Raises:
        ValueError: other shapes, fewer than two layers, a choice that is none.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])[:, None]
        >>> round(float(pathway_consistency(torch.ones(1, 4, 1), vectors, k=1)), 6)
        0.471405

    Source: Where to find Grokking in LLM Pretraining? Monitor Memorization-to-Generalization without Test,
    arXiv:2506.21551. That rows of the router are an expert's vector is this library's choice.
    """
    order, used, weights = _chosen(routing, k, threshold)
    layers, experts = routing.shape[1:]
    check_tensor("expert_vectors", expert_vectors, ndim=(2, 3), floating=True)
    shape = (experts, None) if expert_vectors.ndim == 2 else (layers, experts, None)
    check_tensor("expert_vectors", expert_vectors, shape=shape)
    if layers < 2:
        refuse("routing", "at least 2 layers", routing)
    weights = torch.where(used, weights, 0.0)
    shares = weights.new_zeros(routing.shape).scatter(2, order, weights / weights.sum(2, keepdim=True))
    vectors = widen(expert_vectors.detach()).expand(layers, experts, -1).to(shares)
    z = torch.einsum("nle,led->nld", shares, vectors)
    z = z / torch.linalg.vector_norm(z, dim=2, keepdim=True)
    consistency: Tensor = (z[:, :-1] * z[:, 1:]).sum(2).mean(1)
    return consistency


def _chosen(routing: Tensor, k: int | None, threshold: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Experts by falling weight, ``[n, L, k or E]``, which of them are used, and their weights in this order."""
    check_tensor("routing", routing, ndim=3, floating=True)
    if (k is None) == (threshold is None):
        refuse("k", "k or a threshold, and not both", (k, threshold))
    if k is not None:
        check_number("k", k, low=1, high=routing.shape[2], integer=True)
    if threshold is not None:
        check_number("threshold", threshold, low=0.0)
    weights, order = widen(routing.detach()).sort(dim=2, descending=True, stable=True)
    if threshold is not None:
        return order, weights > threshold, weights
    weights, order = weights[..., :k], order[..., :k]
    return order, torch.ones_like(order, dtype=torch.bool), weights


class MoEClassifier(Arguments, nn.Module):
    r"""A classifier of residual layers, each a mixture of experts of which a sample uses k.

    .. math:: h \leftarrow h + \sum_{e \in \text{top } k} w_e f_e(\bar h), \qquad
        p = \operatorname{softmax}(R \bar h), \quad w_e = \frac{p_e}{\sum_{\text{top } k} p}

    with the normalised stream :math:`\bar h`, a router R and experts of two matrices with rectified units between them.
    All experts are computed and those that are not chosen weigh 0: it is a small network to study, not a fast one.

    Args:
        inputs: features of a sample, >= 1.
        classes: outputs, >= 1.
        dim: width of the stream and of the experts, >= 1.
        experts: of each layer, >= 1.
        k: experts that a sample uses in each layer, in 1..experts.
        layers: >= 1.

    Raises:
        ValueError: numbers outside their range.

    Shapes: ``[n, inputs] -> [n, classes]``.

    Example:
        >>> model = MoEClassifier(5, 3, dim=8)
        >>> model(torch.ones(2, 5)).shape, model.routing(torch.ones(2, 5)).shape, model.expert_vectors().shape
        (torch.Size([2, 3]), torch.Size([2, 4, 8]), torch.Size([4, 8, 8]))

    Source: Where to find Grokking in LLM Pretraining? Monitor Memorization-to-Generalization without Test,
    arXiv:2506.21551. The network is this library's.
    """

    def __init__(
        self, inputs: int, classes: int, dim: int = 64, *, experts: int = 8, k: int = 2, layers: int = 4
    ) -> None:
        sizes = {"inputs": inputs, "classes": classes, "dim": dim, "experts": experts, "layers": layers}
        for name, size in sizes.items():
            check_number(name, size, low=1, integer=True)
        check_number("k", k, low=1, high=experts, integer=True)
        super().__init__()
        self.stem, self.head = nn.Linear(inputs, dim), nn.Linear(dim, classes)
        self.layers = nn.ModuleList(_Experts(dim, experts, k) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the head."""
        h = self.stem(x)
        for layer in self.layers:
            h = layer(h)
        outputs: Tensor = self.head(h)
        return outputs

    @torch.no_grad()
    def routing(self, x: F[Tensor, "n inputs"]) -> F[Tensor, "n layers experts"]:
        """Probabilities of the routers of all layers, without a graph."""
        h, probabilities = self.stem(x), []
        for layer in self.layers:
            probabilities.append(layer.router(layer.norm(h)).softmax(-1))  # type: ignore[operator]
            h = layer(h)
        return torch.stack(probabilities, 1)

    @torch.no_grad()
    def expert_vectors(self) -> F[Tensor, "layers experts dim"]:
        """The row of each expert in the router of its layer."""
        return torch.stack([layer.router.weight.clone() for layer in self.layers])  # type: ignore[operator, union-attr]


class _Experts(nn.Module):
    """A residual mixture of experts: ``[n, dim] -> [n, dim]``."""

    def __init__(self, dim: int, experts: int, k: int) -> None:
        super().__init__()
        self.k, self.norm = k, nn.LayerNorm(dim)
        self.router = nn.Linear(dim, experts, bias=False)
        bound = dim**-0.5
        self.up, self.down = (nn.Parameter(torch.empty(experts, dim, dim).uniform_(-bound, bound)) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        normal = self.norm(h)
        probabilities = self.router(normal).softmax(-1)
        top = probabilities.topk(self.k, -1)
        weights = torch.zeros_like(probabilities).scatter(
            -1, top.indices, top.values / top.values.sum(-1, keepdim=True)
        )
        hidden = torch.einsum("nd,edh->neh", normal, self.up).relu()
        return h + torch.einsum("neh,ehd->nd", weights[..., None] * hidden, self.down)


class PathwayMonitor(Probe):
    r"""Watches the pathways of samples through the experts of a model: see :func:`pathway_distance` and
    :func:`pathway_consistency`.

    After the training loss has converged, pathways that grow alike (the distance falls) and smooth (the consistency
    rises) go along with generalisation. They do so under weight decay without it, too: compare with samples that
    nothing can generalise to, for example of random labels.

    Numbers of its reading: ``distance``, the mean normalised distance of all pairs of samples of a group;
    ``consistency``, the mean over samples (NaN with fewer than two routers, or where their rows have different widths);
    ``samples``, how many have finite scores, which alone count. With groups, arrays of both numbers by group.

    Args:
        data: inputs to measure on, best some that were trained on; None takes the batch.
        routers: names of the modules that give the scores of experts, in the order of layers; None takes all whose last
            name is ``router`` or ``gate``. Of tokens, ``[n, T, E]`` or ``[n T, E]``, probabilities are averaged.
        k, threshold: which experts are chosen, as for :func:`pathway_tokens`.
        groups: group of each sample of ``data``, integers ``[n]``: pairs are those within a group.
        most: samples that are used, the first ones: pairs grow with the square. >= 2.
        every: steps between readings, >= 1.

    Raises:
        ValueError: numbers outside their range; groups without data; to be attached to a model without such modules, or
            whose routers have different numbers of experts, or fewer than k.

    Example:
        >>> model, x = MoEClassifier(5, 3, dim=8), torch.randn(6, 5)
        >>> numbers = PathwayMonitor().measure(Moment(1, "gradients", model, inputs=x)).numbers
        >>> 0 <= float(numbers["distance"]) <= 1, -1 <= float(numbers["consistency"]) <= 1, numbers["samples"]
        (True, True, 6.0)

    Source: Where to find Grokking in LLM Pretraining? Monitor Memorization-to-Generalization without Test,
    arXiv:2506.21551.
    """

    name: ClassVar[str] = "pathways"
    phases: ClassVar[tuple[str, ...]] = ("gradients",)
    needs: ClassVar[tuple[str, ...]] = ("batch",)
    cost: ClassVar[str] = "a forward pass without gradient, edit distances of all pairs of samples"

    def __init__(
        self,
        data: Any = None,
        routers: Sequence[str] | None = None,
        *,
        k: int | None = 2,
        threshold: float | None = None,
        groups: Tensor | None = None,
        most: int = 200,
        every: int = 50,
    ) -> None:
        if (k is None) == (threshold is None):
            refuse("k", "k or a threshold, and not both", (k, threshold))
        if k is not None:
            check_number("k", k, low=1, integer=True)
        if threshold is not None:
            check_number("threshold", threshold, low=0.0)
        if groups is not None:
            if data is None:
                refuse("groups", "None, because there are no fixed samples", groups)
            check_tensor("groups", groups, shape=(count_samples(data),), floating=False)
        check_number("most", most, low=2, integer=True)
        check_number("every", every, low=1, integer=True)
        self.data, self.routers, self.k, self.threshold = data, routers, k, threshold
        self.groups, self.most, self.every = groups, most, every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model without routers, or with such that cannot be compared."""
        self._names(inner_module(model))

    def _names(self, model: nn.Module) -> list[str]:
        modules = dict(model.named_modules())
        if self.routers is None:
            names = [name for name in modules if name.rpartition(".")[2] in ROUTERS]
        else:
            names = list(self.routers)
        missing = [name for name in names if name not in modules]
        if missing or not names:
            refuse("routers", "names of modules of the model, at least one", missing[0] if missing else None)
        experts = {size for name in names if (size := getattr(modules[name], "out_features", None)) is not None}
        if len(experts) > 1 or (experts and self.k is not None and min(experts) < self.k):
            refuse("routers", f"modules with one number of experts, at least {self.k or 1}", sorted(experts))
        return names

    def measure(self, moment: Moment) -> Reading:
        """Distances and consistency of the pathways of this batch, or of the fixed samples."""
        names = self._names(moment.module)
        inputs = rows_of(moment.inputs if self.data is None else self.data, slice(0, self.most))
        count = count_samples(inputs)
        numbers: dict[str, float | Tensor] = {"distance": math.nan, "consistency": math.nan, "samples": 0.0}
        if count == 0:
            return Reading(numbers)
        own = Moment(moment.step, moment.phase, moment.module, inputs=inputs)
        with frozen_samples(moment):
            outputs = own.activations(names)
        scores = [widen(outputs[name][1]).reshape(count, -1, outputs[name][1].shape[-1]) for name in names]
        routing = torch.stack([score.softmax(-1).mean(1) for score in scores], 1)
        finite = routing.isfinite().all(2).all(1)
        routing = routing[finite]
        numbers["samples"] = float(len(routing))
        groups = torch.zeros(count, dtype=torch.long) if self.groups is None else self.groups[: self.most]
        groups = groups.to(routing.device)[finite]
        consistency = self._consistency(moment.module, names, routing)
        if consistency is not None and len(routing):
            numbers["consistency"] = consistency.mean()
        i, j = torch.triu_indices(len(routing), len(routing), 1, device=routing.device)
        within = groups[i] == groups[j]
        i, j = i[within], j[within]
        tokens = pathway_tokens(routing, self.k, threshold=self.threshold)
        distances = pathway_distance(tokens[i], tokens[j])
        if len(distances):
            numbers["distance"] = distances.mean()
        if self.groups is None or not len(routing):
            return Reading(numbers)
        labels, of_sample = groups.unique(return_inverse=True)
        axes = {"group": [float(label) for label in labels]}
        of_samples = consistency if consistency is not None else routing.new_full((len(routing),), math.nan)
        return Reading(
            numbers,
            {
                "distance": Array(_means(distances, of_sample[i], len(labels)), axes),
                "consistency": Array(_means(of_samples, of_sample, len(labels)), axes),
            },
        )

    def _consistency(self, model: nn.Module, names: list[str], routing: Tensor) -> Tensor | None:
        """Of each sample; None where the rows of routers are no vectors of one space."""
        modules = dict(model.named_modules())
        weights = [getattr(modules[name], "weight", None) for name in names]
        rows = [weight for weight in weights if isinstance(weight, Tensor) and weight.ndim == 2]
        if len(names) < 2 or len(rows) < len(names) or len({tuple(weight.shape) for weight in rows}) > 1:
            return None
        return pathway_consistency(
            routing, torch.stack([row.detach() for row in rows]), self.k, threshold=self.threshold
        )

    @classmethod
    def instances(cls) -> list[PathwayMonitor]:
        """Of layers of the suite's networks, whose outputs stand for scores."""
        return [
            cls(routers=["body.0", "body.4"]),
            cls(routers=["project", "down"], k=None, threshold=0.1),
        ]


def _means(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Of values by place, ``[count]``; NaN where there is none."""
    sums = values.new_zeros(count).index_add(0, places, values)
    return sums / torch.bincount(places, minlength=count)
