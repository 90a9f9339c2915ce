"""MDS-S2: relation knowledge of a graph composed into a context, and a representation held to the answer's."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward

from ...core.checks import (
    check_choice,
    check_flag,
    check_number,
    check_tensor,
    describe,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.cosine import unit_rows
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.transforms import without_autocast

Triple = tuple[Hashable, Hashable, Hashable]
DISTANCES = ("cosine", "mse", "kl")


def n_hop_walk(triples: Iterable[Sequence[Hashable]], seeds: Iterable[Hashable], hops: int = 2) -> list[Triple]:
    """The triples of a knowledge graph that a walk of so many hops from some entities meets, breadth first.

    A hop leads from the head of a triple to its tail. Triples stand in the order in which they are met: hop by hop,
    seeds in their order, triples of one head in theirs; none comes twice.

    Args:
        triples: ``(head, relation, tail)``, of anything hashable.
        seeds: entities that the walk starts from; one that heads no triple adds none.
        hops: depth of the walk, >= 0.

    Returns:
        The triples met, as tuples.

    Raises:
        ValueError: an item that has not three entries, a negative depth.
        TypeError: entities that cannot be hashed, seeds that are one text, a depth that is no integer.

    Example:
        >>> graph = [("inn", "near", "quay"), ("quay", "in", "port"), ("port", "in", "town")]
        >>> n_hop_walk(graph, ["inn"], 2)
        [('inn', 'near', 'quay'), ('quay', 'in', 'port')]

    Source: Dual Semantic Knowledge Composed Multimodal Dialog Systems, arXiv:2305.09990.
    """
    check_number("hops", hops, low=0, integer=True)
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        refuse_type("seeds", "several entities", seeds)
    of_head: dict[Hashable, list[Triple]] = {}
    for item in triples:
        triple = _hashable("triples", item)
        if len(triple) != 3:
            refuse("triples", "(head, relation, tail)", item)
        of_head.setdefault(triple[0], []).append(triple)
    frontier = dict.fromkeys(_hashable("seeds", seeds))
    visited, met = set(frontier), dict[Triple, None]()
    for _ in range(hops):
        leaving = [triple for entity in frontier for triple in of_head.get(entity, ())]
        met |= dict.fromkeys(leaving)
        frontier = {tail: None for _, _, tail in leaving if tail not in visited}
        visited |= frontier.keys()
    return list(met)


def latent_query_loss(
    composed: F[Tensor, "batch queries features"],
    target: F[Tensor, "batch queries features"],
    *,
    distance: str = "cosine",
    detach_target: bool = True,
) -> Tensor:
    r"""The distance between two readings of one set of latent queries, mean over samples and queries.

    .. math:: L = \frac1{BK} \sum_{b,k} \Bigl(1 - \frac{u_{bk}^\top v_{bk}}{\|u_{bk}\|\,\|v_{bk}\|}\Bigr)

    for ``"cosine"``, computed as half the squared distance of the unit vectors, which is exactly 0 where they agree;
    the mean of :math:`(u - v)^2` for ``"mse"``; for ``"kl"``
    :math:`\mathrm{KL}(\mathrm{softmax}(v) \,\|\, \mathrm{softmax}(u))` over the features.

    Args:
        composed: readings u ``[B, K, d]`` of the composed representation.
        target: readings v ``[B, K, d]`` of the true answer's representation.
        distance: ``"cosine"``, ``"mse"`` or ``"kl"``.
        detach_target: no gradient into v; without it both sides can agree on constants.

    Returns:
        A scalar in float32 or wider, >= 0; <= 2 for ``"cosine"``. No samples: NaN.

    Raises:
        ValueError: shapes that differ, another distance.
        TypeError: readings that are no floating tensors.

    Example:
        >>> u, v = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
        >>> latent_query_loss(u, v), latent_query_loss(u, v, distance="mse")
        (tensor(0.0400), tensor(1.))

    Source: Dual Semantic Knowledge Composed Multimodal Dialog Systems, arXiv:2305.09990.
    """
    check_tensor("composed", composed, ndim=3, floating=True)
    check_tensor("target", target, floating=True, shape=tuple(composed.shape))
    check_choice("distance", distance, DISTANCES)
    check_flag("detach_target", detach_target)
    u, v = widen(composed), widen(target.detach() if detach_target else target)
    if distance == "cosine":
        return (unit_rows(u) - unit_rows(v)).square().sum(-1).mean() / 2
    if distance == "mse":
        return (u - v).square().mean()
    log_v = v.log_softmax(-1)
    return (log_v.exp() * (log_v - u.log_softmax(-1))).sum(-1).mean()


class LatentQueryRegularizer(Loss):
    r"""Learnt queries read two sequences, and the readings must agree; see :func:`latent_query_loss`.

    .. math:: U(X) = \mathrm{LN}(\mathrm{MHA}(Q, X, X)), \qquad L = D\bigl(U(Z), U(Y)\bigr)

    with Z the representation that a decoder will use and Y that of the true answer, which only training has. Both are
    read by the same queries and attention. The layer norm has no factors of its own: they would let the readings
    shrink together. It says nothing of an answer without tokens and refuses one.

    Args:
        dim: width d of both sequences, a multiple of ``heads``.
        num_queries: K >= 1.
        heads: heads of the attention, >= 1.
        distance: ``"cosine"``, ``"mse"`` or ``"kl"``.
        detach_target: no gradient through the reading of Y; queries and attention learn through Z.

    Shapes of the call: ``composed`` ``[B, L, d]`` and its mask ``[B, L]``, ``target`` ``[B, M, d]`` and its mask
    ``[B, M]``. Masks are boolean, true where a token counts; what stands elsewhere, NaN included, has no effect.

    Raises:
        ValueError: wrong shapes, a row whose mask is false everywhere.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> regularizer = LatentQueryRegularizer(dim=8, num_queries=2, heads=2)
        >>> context, answer = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
        >>> mask = torch.tensor([[True, True, True, False]] * 3)
        >>> regularizer(context, torch.ones(3, 5, dtype=torch.bool), answer, mask)
        tensor(1.4256, grad_fn=<DivBackward0>)
        >>> regularizer(answer, mask, answer, mask)
        tensor(0., grad_fn=<DivBackward0>)

    Source: Dual Semantic Knowledge Composed Multimodal Dialog Systems, arXiv:2305.09990.
    """

    name = "latent_query"

    def __init__(
        self,
        dim: int,
        num_queries: int = 4,
        heads: int = 4,
        distance: str = "cosine",
        detach_target: bool = True,
    ) -> None:
        super().__init__()
        _check_width(dim, heads)
        check_number("num_queries", num_queries, low=1, integer=True)
        check_choice("distance", distance, DISTANCES)
        check_flag("detach_target", detach_target)
        self.distance, self.detach_target = distance, detach_target
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def read(
        self, states: F[Tensor, "batch length features"], mask: Bool[Tensor, "batch length"]
    ) -> F[Tensor, "batch queries features"]:
        """U(X): what the queries read from a sequence ``[B, L, d]`` where its mask is true."""
        return self._read("states", states, mask)

    def _read(self, argument: str, states: Tensor, mask: Tensor) -> Tensor:
        check_tensor(argument, states, floating=True, shape=(None, None, self.attention.embed_dim))
        _check_mask(f"{argument}_mask", mask, states)
        if values_visible(mask) and not bool(mask.any(1).all()):
            refuse(f"{argument}_mask", "a token that counts in each row", (~mask.any(1)).nonzero().flatten().tolist())
        queries = self.queries.expand(len(states), -1, -1)
        reading = _attend(self.attention, queries, states, mask)
        return torch.nn.functional.layer_norm(reading, reading.shape[-1:])

    def forward(
        self,
        composed: F[Tensor, "batch length features"],
        composed_mask: Bool[Tensor, "batch length"],
        target: F[Tensor, "batch length_target features"],
        target_mask: Bool[Tensor, "batch length_target"],
    ) -> Tensor:
        """The distance between the readings of the composed representation and of the true answer's."""
        readings = self._read("composed", composed, composed_mask), self._read("target", target, target_mask)
        return latent_query_loss(*readings, distance=self.distance, detach_target=self.detach_target)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[LatentQueryRegularizer, Sample]]:
        """Each distance, on sequences of two lengths with padding."""
        composed = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64).to(device, dtype)
        target = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64).to(device, dtype)
        masks = [torch.arange(n) < torch.tensor([[n], [n - 1], [1]]) for n in (4, 3)]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        call = (composed, masks[0].to(device), target, masks[1].to(device))
        return [
            (cls(4, queries, heads, distance).to(device, wide), (call, {}))
            for queries, heads, distance in ((2, 2, "cosine"), (1, 1, "mse"), (3, 4, "kl"))
        ]


class KnowledgeComposer(nn.Module):
    r"""Attention from a context onto relation knowledge, let in through a gate.

    .. math:: H = \mathrm{LN}\bigl(H_0 + \mathrm{MHA}(H_0, R, R)\bigr), \qquad
        g = \sigma(W [H_0; H]), \qquad Z = g H + (1 - g) H_0

    H_0 is the encoder's output for context and attributes, one sequence, R that for the triples of
    :func:`n_hop_walk`; a decoder attends to Z. A sample without a triple has Z = H_0.

    Args:
        dim: width d, a multiple of ``heads``.
        heads: heads of the attention, >= 1.

    Example:
        >>> composer = KnowledgeComposer(dim=8, heads=2)
        >>> context, relations = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
        >>> has_triples = torch.tensor([[True] * 7, [False] * 7])
        >>> composed = composer(context, relations, has_triples)
        >>> composed.shape, torch.equal(composed[1], context[1])
        (torch.Size([2, 5, 8]), True)

    Source: Dual Semantic Knowledge Composed Multimodal Dialog Systems, arXiv:2305.09990.
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        _check_width(dim, heads)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(2 * dim, dim)

    def forward(
        self,
        context: F[Tensor, "batch length features"],
        relations: F[Tensor, "batch triples features"],
        relation_mask: Bool[Tensor, "batch triples"] | None = None,
    ) -> F[Tensor, "batch length features"]:
        """Z ``[B, L, d]`` of H_0 ``[B, L, d]`` and R ``[B, M, d]``; the mask ``[B, M]`` is true where a state counts.

        Raises:
            ValueError: wrong shapes.
        """
        check_tensor("context", context, floating=True, shape=(None, None, self.attention.embed_dim))
        check_tensor("relations", relations, floating=True, shape=(len(context), None, self.attention.embed_dim))
        if relation_mask is None:
            relation_mask = torch.ones(relations.shape[:2], dtype=torch.bool, device=relations.device)
        _check_mask("relation_mask", relation_mask, relations)
        known = relation_mask.any(1)[:, None]
        states = torch.where(relation_mask[..., None], relations, 0.0)
        # a row without triples attends to zeros, so that no softmax is over nothing; what comes of it is not taken
        attended = _attend(self.attention, context, states, relation_mask | ~known).to(context.dtype)
        composed = self.norm(context + attended)
        gate = self.gate(torch.cat([context, composed], -1)).sigmoid()
        return torch.where(known[..., None], gate * composed + (1 - gate) * context, context)


def _attend(attention: nn.MultiheadAttention, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Multi-head attention of ``[B, Q, d]`` on ``[B, L, d]`` where a mask is true, in float32 or wider."""
    states = widen(torch.where(mask[..., None], states, 0.0))
    weights = [attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias]
    dtype = torch.promote_types(states.dtype, widen(weights[0]).dtype)
    in_weight, in_bias, out_weight, out_bias = (w.to(dtype) for w in weights)
    states = states.to(dtype).transpose(0, 1)
    with without_autocast(states):
        attended, _ = multi_head_attention_forward(
            queries.to(dtype).transpose(0, 1),
            states,
            states,
            attention.embed_dim,
            attention.num_heads,
            in_weight,
            in_bias,
            None,
            None,
            False,
            0.0,
            out_weight,
            out_bias,
            training=attention.training,
            key_padding_mask=~mask,
            need_weights=True,  # without them torch takes a fused form that has no second derivative
        )
    return attended.transpose(0, 1)


def _check_width(dim: int, heads: int) -> None:
    check_number("heads", heads, low=1, integer=True)
    check_number("dim", dim, low=1, integer=True)
    if dim % heads:
        refuse("dim", f"a multiple of {heads} heads", dim)


def _check_mask(argument: str, mask: Tensor, states: Tensor) -> None:
    check_tensor(argument, mask, shape=tuple(states.shape[:2]))
    if mask.dtype != torch.bool:
        refuse_type(argument, "a boolean tensor", mask)


def _hashable(argument: str, items: Iterable[Hashable]) -> tuple[Hashable, ...]:
    try:
        values = tuple(items)
        hash(values)
    except TypeError:
        raise TypeError(f"{argument}: expected entries that can be hashed, got {describe(items)}") from None
    return values
