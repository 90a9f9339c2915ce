"""Message passing on a graph of several node and edge types, done once before training and kept small at random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_choice, check_flag, check_number, check_range, check_tensor, refuse, refuse_type
from ...core.cosine import unit_rows
from ...core.graphs import check_edges, sparse_matrix
from ...core.reductions import widen

Relation = tuple[str, str, str]
"""Type of the sources, name, type of the destinations."""

ODD, EVEN = "odd", "even"
MERGES = ("concat", "mean")


def sparse_random_projection(
    rows: int,
    columns: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> F[Tensor, "rows columns"]:
    r"""A random matrix two thirds of which are zeros, and which keeps inner products in expectation.

    .. math:: R_{ij} = \pm\sqrt 3 \text{ with probability } \tfrac16 \text{ each, else } 0, \qquad
        \mathbb E[(xR) \cdot (yR)] = \text{columns} \cdot x \cdot y

    Args:
        rows: width of what is projected, >= 1.
        columns: width of the projection, >= 1.
        generator: of the draws; None for torch's own.
        dtype: of the entries.

    Returns:
        R ``[rows, columns]``, with mean 0 and variance 1.

    Raises:
        ValueError: a width below 1.

    Example:
        >>> r = sparse_random_projection(300, 200, generator=torch.Generator().manual_seed(0))
        >>> r.unique(), round(float((r == 0).float().mean()), 2)
        (tensor([-1.7321,  0.0000,  1.7321]), 0.67)

    Source: Efficient Heterogeneous Graph Learning via Random Projection, arXiv:2310.14481.
    """
    check_number("rows", rows, low=1, integer=True)
    check_number("columns", columns, low=1, integer=True)
    drawn = torch.randint(6, (rows, columns), generator=generator)
    return ((drawn == 0).to(dtype) - (drawn == 1).to(dtype)) * math.sqrt(3.0)


def reverse_relation(relation: Relation) -> Relation:
    """The relation in the other direction; one of a type to itself is its own reverse.

    >>> reverse_relation(("author", "writes", "paper")), reverse_relation(("paper", "rev_writes", "author"))
    (('paper', 'rev_writes', 'author'), ('author', 'writes', 'paper'))
    """
    source, name, destination = relation
    if source == destination:
        return relation
    return destination, name.removeprefix("rev_") if name.startswith("rev_") else f"rev_{name}", source


class RandomProjectionPropagator:
    r"""Features of one node type from a graph of several, by rounds of mean messages without weights.

    In each round and for each relation e from type u to v, with the matrix M of means over the sources of a node,

    .. math:: o_e = M_e x_u, \qquad s_e = M_{\text{rev } e}\, o_e

    are the odd message at v and the even one, back at u. Then each type squashes its messages to one vector of its own
    width, by :func:`sparse_random_projection` drawn anew,

    .. math:: x_v \leftarrow (1 - a) \sum_m \frac{m R_m}{\|m R_m\|} + a\, x_v^{(0)}

    so that what is kept grows linearly in the rounds. Relations between different types are taken in both directions
    (their reverses, ``rev_`` before the name, are added where they are not given); a relation of a type to itself is
    its own reverse: give both directions of its edges where it has none. A node without sources has the message 0.

    Args:
        rounds: K >= 1, usually 1 to 5.
        seed: of the projections, and of the features of types that have none.
        mix: a in [0, 1], the share of the first features after each round.
        use_input: whether even groups begin with the target's own features.
        width: of the N(0, 1 / width) features of types that come without.

    Example:
        >>> graph = {("author", "writes", "paper"): torch.tensor([[0, 1, 1], [0, 0, 1]])}
        >>> features = {"author": torch.tensor([[1.0], [3.0]]), "paper": torch.eye(2)}
        >>> propagator = RandomProjectionPropagator(rounds=1)
        >>> propagator.group_names(graph, "paper")
        [(('author', 'writes', 'paper'), 'odd'), (('paper', 'rev_writes', 'author'), 'even')]
        >>> propagator.collect(features, graph, "paper")[0]
        tensor([[[2.]],
                [[3.]]])

    Source: Efficient Heterogeneous Graph Learning via Random Projection, arXiv:2310.14481.
    """

    def __init__(
        self, rounds: int = 2, seed: int = 0, *, mix: float = 0.0, use_input: bool = True, width: int = 64
    ) -> None:
        check_number("rounds", rounds, low=1, integer=True)
        check_number("seed", seed, low=0, integer=True)
        check_number("mix", mix, low=0.0, high=1.0)
        check_flag("use_input", use_input)
        check_number("width", width, low=1, integer=True)
        self.rounds, self.seed, self.mix, self.use_input, self.width = rounds, seed, mix, use_input, width

    def group_names(self, edges: Mapping[Relation, Tensor], target: str) -> list[tuple[Relation, str]]:
        """Relation and parity of each tensor that :meth:`collect` gives."""
        names: list[tuple[Relation, str]] = []
        for relation in _both_directions(edges):
            names += [(relation, ODD)] if relation[2] == target else []
            names += [(relation, EVEN)] if relation[0] == target else []
        return names

    @torch.no_grad()
    def collect(
        self, features: Mapping[str, Tensor | int], edges: Mapping[Relation, I[Tensor, "2 edges"]], target: str
    ) -> list[F[Tensor, "nodes messages width"]]:
        """Run all rounds.

        Args:
            features: of each type, ``[N, d]``, or its number of nodes where it has none.
            edges: of each relation, sources above destinations ``[2, E]``.
            target: the type whose messages are kept.

        Returns:
            A tensor ``[N, K, d]`` for each relation and parity of :meth:`group_names`, a message a round; even ones
            ``[N, K + 1, d]`` with the input.

        Raises:
            ValueError: a type that has no features, nodes out of range, a target that no relation reaches.
        """
        generator = torch.Generator().manual_seed(self.seed)
        x = {name: self._features(name, given, generator) for name, given in features.items()}
        dtype = torch.float64 if any(rows.dtype == torch.float64 for rows in x.values()) else torch.float32
        x = {name: rows.to(dtype) for name, rows in x.items()}
        sizes = {name: len(rows) for name, rows in x.items()}
        names = self.group_names(edges, target)
        if not names:
            refuse("target", "a type that a relation reaches", target)
        means = {relation: _means(ends, relation, sizes, dtype) for relation, ends in _both_directions(edges).items()}
        first = dict(x)
        groups: dict[tuple[Relation, str], list[Tensor]] = {
            key: [x[target]] if key[1] == EVEN and self.use_input else [] for key in names
        }
        for _ in range(self.rounds):
            messages: dict[str, list[Tensor]] = {name: [] for name in x}
            for relation, mean in means.items():
                source, _, destination = relation
                odd = mean @ x[source]
                even = means[reverse_relation(relation)] @ odd
                messages[destination].append(odd)
                messages[source].append(even)
                if destination == target:
                    groups[relation, ODD].append(odd)
                if source == target:
                    groups[relation, EVEN].append(even)
            for name, arrived in messages.items():
                if arrived:
                    squashed = self._squashed(arrived, first[name].shape[1], generator)
                    x[name] = (1 - self.mix) * squashed + self.mix * first[name]
        return [torch.stack(groups[key], 1) for key in names]

    def _features(self, name: str, given: Tensor | int, generator: torch.Generator) -> Tensor:
        if isinstance(given, Tensor):
            check_tensor(f"features[{name!r}]", given, ndim=2, floating=True)
            return widen(given)
        check_number(f"features[{name!r}]", given, low=0, integer=True)
        return torch.randn(given, self.width, generator=generator) / math.sqrt(self.width)

    @staticmethod
    def _squashed(messages: Sequence[Tensor], width: int, generator: torch.Generator) -> Tensor:
        projected = [
            unit_rows(m @ sparse_random_projection(m.shape[1], width, generator=generator, dtype=m.dtype).to(m.device))
            for m in messages
        ]
        return torch.stack(projected).sum(0)

    @torch.no_grad()
    def collect_labels(
        self,
        labels: I[Tensor, " nodes"],
        known: Bool[Tensor, " nodes"],
        classes: int,
        sizes: Mapping[str, int],
        edges: Mapping[Relation, I[Tensor, "2 edges"]],
        target: str,
    ) -> list[F[Tensor, "nodes one classes"]]:
        r"""Labels of training nodes that reach the others, without what a node sends to itself.

        Of the even messages of one round, and the odd ones of relations of the target to itself, with Y the one-hot
        labels (rows of 1 / C where a label is not known),

        .. math:: \frac{(M Y)_i - M_{ii} Y_i}{1 - M_{ii}}, \qquad M = M_{\text{rev } e} M_e \text{ or } M_e

        A node that hears of nobody else has a row of 1 / C.

        Args:
            labels: ``[N]`` in 0..C-1; those that are not known may be anything.
            known: boolean ``[N]``, the training nodes.
            classes: C >= 2.
            sizes: number of nodes of each type.
            edges: as in :meth:`collect`.
            target: the type that the labels belong to.

        Returns:
            Tensors ``[N, 1, C]``.
        """
        check_number("classes", classes, low=2, integer=True)
        if target not in sizes:
            refuse("target", "one of " + ", ".join(sizes), target)
        check_tensor("labels", labels, floating=False, shape=(sizes[target],))
        check_tensor("known", known, shape=(sizes[target],))
        if known.dtype != torch.bool:
            refuse_type("known", "a boolean tensor", known)
        safe = torch.where(known, labels.long(), 0)
        check_range("labels", safe, 0, classes - 1)
        y = torch.where(known.unsqueeze(1), nn.functional.one_hot(safe, classes).float(), 1 / classes)
        both = _both_directions(edges)
        heard: list[Tensor] = []
        for relation, ends in both.items():
            if relation[0] != target:
                continue
            mean = _means(ends, relation, sizes, y.dtype)
            reverse = reverse_relation(relation)
            if reverse == relation:
                own = (mean * _identity(len(y), mean)).to_dense().diagonal()
                heard.append(_without_own(mean @ y, y, own))
                back = mean
            else:
                back = _means(both[reverse], reverse, sizes, y.dtype)
            own = torch.sparse.sum(back * mean.t().coalesce(), 1).to_dense()
            heard.append(_without_own(back @ (mean @ y), y, own))
        return [message.unsqueeze(1) for message in heard]


def _both_directions(edges: Mapping[Relation, Tensor]) -> dict[Relation, Tensor]:
    """The relations, each followed by its reverse where that is not given."""
    both: dict[Relation, Tensor] = {}
    for relation, ends in edges.items():
        if not (isinstance(relation, tuple) and len(relation) == 3):
            refuse("edges", "keys (source type, name, destination type)", relation)
        both[relation] = ends
        if reverse_relation(relation) not in edges:
            both[reverse_relation(relation)] = ends.flip(0)
    return both


def _means(ends: Tensor, relation: Relation, sizes: Mapping[str, int], dtype: torch.dtype) -> Tensor:
    """The sparse matrix ``[destinations, sources]`` of means over the sources of a node."""
    source, _, destination = relation
    for name in (source, destination):
        if name not in sizes:
            refuse("features", f"nodes of type {name!r}", list(sizes))
    check_edges(ends, (sizes[source], sizes[destination]), argument=f"edges[{relation!r}]")
    start, end = ends.long()
    counts = torch.zeros(sizes[destination], dtype=dtype, device=ends.device).index_add(
        0, end, torch.ones(len(end), dtype=dtype, device=ends.device)
    )
    return sparse_matrix(torch.stack([end, start]), 1 / counts[end], (sizes[destination], sizes[source]))


def _identity(nodes: int, like: Tensor) -> Tensor:
    rows = torch.arange(nodes, device=like.device)
    return sparse_matrix(
        torch.stack([rows, rows]), torch.ones(nodes, dtype=like.dtype, device=like.device), (nodes,) * 2
    )


def _without_own(message: Tensor, y: Tensor, own: Tensor) -> Tensor:
    """Messages ``[N, C]`` of rows that sum to 1, without a node's own share ``[N]``; uniform where nothing is left."""
    rest = message.sum(1) - own
    has = rest > 1e-6
    cleaned = (message - own.unsqueeze(1) * y).clamp_min(0) / torch.where(has, rest, 1.0).unsqueeze(1)
    return torch.where(has.unsqueeze(1), cleaned, 1 / y.shape[1])


class RpHGNNEncoder(nn.Module):
    """Classes from what :class:`RandomProjectionPropagator` collected: a mini-batch is rows of plain tensors.

    Each group's messages are mixed to a few by a convolution of width 1 over them and pass a perceptron; the groups
    are joined and pass another.

    Args:
        group_shapes: ``(K, d)`` or ``(N, K, d)`` of each group.
        hidden: width of the layers.
        classes: C, width of the output.
        filters: messages that those of a group are mixed to.
        merge: ``"concat"`` or ``"mean"`` of the groups.
        dropout: share of units that are left out in training, in [0, 1).

    Example:
        >>> encoder = RpHGNNEncoder([(3, 5), (2, 4)], hidden=8, classes=3)
        >>> encoder([torch.randn(6, 3, 5), torch.randn(6, 2, 4)]).shape
        torch.Size([6, 3])

    Source: Efficient Heterogeneous Graph Learning via Random Projection, arXiv:2310.14481.
    """

    def __init__(
        self,
        group_shapes: Sequence[Sequence[int]],
        hidden: int,
        classes: int,
        filters: int = 2,
        merge: str = "concat",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not group_shapes:
            refuse("group_shapes", "one group and more", group_shapes)
        check_number("hidden", hidden, low=1, integer=True)
        check_number("classes", classes, low=1, integer=True)
        check_number("filters", filters, low=1, integer=True)
        check_choice("merge", merge, MERGES)
        check_number("dropout", dropout, low=0.0, high=1.0, open_high=True)
        self.merge = merge
        self.group_shapes = [(int(shape[-2]), int(shape[-1])) for shape in group_shapes]
        self.convolutions = nn.ModuleList(nn.Linear(messages, filters) for messages, _ in self.group_shapes)
        self.group_layers = nn.ModuleList(
            nn.Sequential(*_layer(filters * width, hidden, dropout), *_layer(hidden, hidden, dropout))
            for _, width in self.group_shapes
        )
        joined = hidden * (len(self.group_shapes) if merge == "concat" else 1)
        self.layers = nn.Sequential(*_layer(joined, hidden, dropout), nn.Linear(hidden, classes))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, groups: Sequence[F[Tensor, "batch messages width"]]) -> F[Tensor, "batch classes"]:
        """Logits ``[B, C]`` of the same rows of every group.

        Raises:
            ValueError: another number of groups, or groups of other shapes.
        """
        if len(groups) != len(self.group_shapes):
            refuse("groups", f"{len(self.group_shapes)} tensors", len(groups))
        vectors = []
        for group, shape, convolution, layers in zip(groups, self.group_shapes, self.convolutions, self.group_layers):
            check_tensor("groups", group, floating=True, shape=(len(groups[0]), *shape))
            assert isinstance(convolution, nn.Linear)
            vectors.append(layers((convolution.weight @ group + convolution.bias.unsqueeze(1)).flatten(1)))
        merged = torch.cat(vectors, 1) if self.merge == "concat" else torch.stack(vectors).mean(0)
        logits: Tensor = self.layers(merged)
        return logits


def _layer(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.PReLU(), nn.Dropout(dropout)]
