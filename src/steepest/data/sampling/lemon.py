"""LEMON: negatives of knowledge graphs from the neighbourhood that a language model sees, in place of any entity."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool as B
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.arguments import Arguments
from ...core.checks import check_choice, check_number, check_range, check_tensor, refuse

MODES = ("cluster", "neighbours")
ROUNDS = 6
"""Draws of a negative before its candidates are listed."""


def semantic_clusters(
    vectors: F[Tensor, "entities width"], k: int | None = None, *, pca: int | None = None, seed: int = 0
) -> I[Tensor, " entities"]:
    """Clusters of entities whose texts are alike: unit vectors, fewer dimensions where asked, k-means.

    Args:
        vectors: embeddings of names and descriptions by a language model ``[E, d]``.
        k: clusters in 1..E; None for about sqrt(E / 2).
        pca: principal components that are kept before the vectors are normalised, in 1..min(E, d); None keeps all.
        seed: of k-means.

    Returns:
        ``[E]``, clusters 0..k-1. Mark entities without a text with -1 afterwards: they are replaced by any entity.

    Raises:
        ValueError: wrong shapes, numbers out of range, values that are not finite.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0], [0.1, 1.0]])
        >>> clusters = semantic_clusters(vectors, 2)
        >>> bool(clusters[0] == clusters[1]), bool(clusters[2] == clusters[3]), bool(clusters[0] == clusters[2])
        (True, True, False)

    Source: LEMON: LanguagE ModeL for Negative Sampling of Knowledge Graph Embeddings, arXiv:2203.04703.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from sklearn.decomposition import PCA  # type: ignore[import-untyped]

    check_tensor("vectors", vectors, ndim=2, floating=True)
    if not len(vectors) or not bool(vectors.isfinite().all()):
        refuse("vectors", "finite rows, one and more", vectors)
    k = max(1, round(math.sqrt(len(vectors) / 2))) if k is None else k
    check_number("k", k, low=1, high=len(vectors), integer=True)
    rows = vectors.detach().double().cpu().numpy()
    if pca is not None:
        check_number("pca", pca, low=1, high=min(rows.shape), integer=True)
        rows = PCA(pca, random_state=seed).fit_transform(rows)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length > 0, length, 1.0)
    clusters = KMeans(k, n_init=10, random_state=seed).fit_predict(rows)
    return torch.from_numpy(clusters).long().to(vectors.device)


class ClusterNegativeSampler(Arguments):
    """Corrupts the head or the tail of true triples, by an entity that is like the one it replaces.

    Of each negative a coin says which side is replaced. With probability ``mix`` the new entity is any, else one of the
    same cluster (of the nearest entities, in the mode "neighbours"), uniformly among those that make no known triple.
    Where the cluster has none, any entity is taken, and ``fallbacks`` counts it; where a side has none at all, the
    other side is replaced. A negative is never a known triple and differs from its positive in exactly one place.

    Corruption within clusters alone (``mix=0``, as published) never sets clusters apart from each other, and hits
    truths that nobody wrote down: half of the negatives are uniform by default.

    Args:
        clusters: of entities ``[E]``, -1 for entities without one, which any entity replaces. In the mode "neighbours"
            vectors ``[E, d]``.
        known_triples: head, relation, tail ``[M, 3]``; those of validation and test may be among them.
        num_negatives: n >= 1, of each positive.
        mode: "cluster" or "neighbours".
        mix: share of uniform negatives, in [0, 1]; 1 is uniform filtered corruption.
        neighbours: q in 1..E-1, in the mode "neighbours".
        impossible: what becomes of a positive that has no negative at all: "raise" a ValueError, or "mask" its rows.
        generator: None is torch's own.

    Attributes:
        fallbacks: negatives since the start whose cluster offered nothing.

    Raises:
        ValueError: entities out of range, numbers out of range.

    Example:
        >>> clusters, known = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([[0, 0, 1], [0, 0, 2]])
        >>> sampler = ClusterNegativeSampler(clusters, known, mix=0.0, generator=torch.Generator().manual_seed(3))
        >>> negatives, mask = sampler.sample(known[:1])
        >>> negatives.shape, mask
        (torch.Size([1, 1, 3]), tensor([[True]]))

    Source: LEMON: LanguagE ModeL for Negative Sampling of Knowledge Graph Embeddings, arXiv:2203.04703.
    """

    def __init__(
        self,
        clusters: Tensor,
        known_triples: I[Tensor, "triples 3"],
        num_negatives: int = 1,
        mode: str = "cluster",
        mix: float = 0.5,
        *,
        neighbours: int = 10,
        impossible: str = "raise",
        generator: torch.Generator | None = None,
    ) -> None:
        check_choice("mode", mode, MODES)
        check_choice("impossible", impossible, ("raise", "mask"))
        check_number("num_negatives", num_negatives, low=1, integer=True)
        check_number("mix", mix, low=0.0, high=1.0)
        if mode == "cluster":
            check_tensor("clusters", clusters, ndim=1, floating=False)
        else:
            check_tensor("clusters", clusters, ndim=2, floating=True)
            check_number("neighbours", neighbours, low=1, high=len(clusters) - 1, integer=True)
        check_tensor("known_triples", known_triples, floating=False, shape=(None, 3))
        self.num_entities = len(clusters)
        self.num_negatives, self.mode, self.mix, self.neighbours = num_negatives, mode, mix, neighbours
        self.impossible, self.generator, self.fallbacks = impossible, generator, 0
        known = known_triples.detach().cpu().long()
        self._check(known, "known_triples")
        self.num_relations = int(known[:, 1].max()) + 1 if len(known) else 1
        if self.num_relations * self.num_entities**2 >= 2**63:
            refuse("known_triples", "keys below 2^63", self.num_relations * self.num_entities**2)
        self._known = self._keys(known).unique()
        self._pools = _same_cluster(clusters.detach().cpu()) if mode == "cluster" else _nearest(clusters, neighbours)
        everything = torch.arange(self.num_entities)
        none = torch.zeros_like(everything)
        self._all = everything, none, none + self.num_entities

    def _check(self, triples: Tensor, argument: str) -> None:
        check_range(argument, triples[:, [0, 2]], 0, self.num_entities - 1)
        check_range(argument, triples[:, 1], 0, 2**31 - 1)

    def _keys(self, triples: Tensor) -> Tensor:
        """One number a triple ``[...]``, -1 for a relation that no known triple has."""
        head, relation, tail = triples.unbind(-1)
        key = (relation * self.num_entities + head) * self.num_entities + tail
        return torch.where(relation < self.num_relations, key, -1)

    def _is_known(self, triples: Tensor) -> Tensor:
        keys = self._keys(triples)
        if not len(self._known):
            return torch.zeros_like(keys, dtype=torch.bool)
        known: Tensor = self._known[torch.searchsorted(self._known, keys).clamp_max(len(self._known) - 1)] == keys
        return known

    def _free(self, triples: Tensor, side: int) -> Tensor:
        """Whether another entity at a side (0 head, 2 tail) makes a triple that is not known ``[B]``."""
        known = torch.stack(
            [
                self._known // self.num_entities % self.num_entities,
                self._known // self.num_entities**2,
                self._known % self.num_entities,
            ],
            1,
        )
        fixed = 2 - side

        def group(rows: Tensor) -> Tensor:
            return rows[:, 1] * self.num_entities + rows[:, fixed]

        names, counts = group(known).unique(return_counts=True)
        own = group(triples)
        taken = torch.zeros(len(triples), dtype=torch.int64)
        if len(names):
            place = torch.searchsorted(names, own).clamp_max(len(names) - 1)
            taken = torch.where(names[place] == own, counts[place], 0)
        return taken + (~self._is_known(triples)).long() < self.num_entities

    @torch.no_grad()
    def sample(
        self, batch: I[Tensor, "batch 3"]
    ) -> tuple[I[Tensor, "batch negatives 3"], B[Tensor, "batch negatives"]]:
        """Negatives of positives ``[B, 3]``: triples ``[B, n, 3]``, and which of them are negatives ``[B, n]``.

        All are, but with ``impossible="mask"`` those of a positive that has none: there the positive is repeated.

        Raises:
            ValueError: before anything is drawn, if a positive has no negative at all; entities out of range.
        """
        check_tensor("batch", batch, floating=False, shape=(None, 3))
        triples = batch.detach().cpu().long()
        self._check(triples, "batch")
        free_head, free_tail = self._free(triples, 0), self._free(triples, 2)
        stuck = ~(free_head | free_tail)
        if self.impossible == "raise" and bool(stuck.any()):
            refuse("batch", "positives with an unknown triple beside them", triples[stuck][0].tolist())
        shape = len(triples), self.num_negatives
        tails = torch.rand(shape, generator=self.generator, dtype=torch.float64) < 0.5
        tails = (tails & free_tail.unsqueeze(1)) | ~free_head.unsqueeze(1)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64) < self.mix
        negatives = triples.repeat_interleave(self.num_negatives, 0)
        side = torch.where(tails.flatten(), 2, 0)
        old = negatives.gather(1, side.unsqueeze(1)).squeeze(1)
        uniform = uniform.flatten() | (self._pools[2][old] == 0)
        possible = ~stuck.repeat_interleave(self.num_negatives)
        own = (possible & ~uniform).nonzero().squeeze(1)
        entities = torch.full_like(old, -1)
        entities[own] = self._draw(negatives[own], side[own], self._pools)
        missing = (possible & (entities < 0)).nonzero().squeeze(1)
        self.fallbacks += int((entities[own] < 0).sum())
        entities[missing] = self._draw(negatives[missing], side[missing], self._all)
        entities = torch.where(possible, entities, old)
        negatives.scatter_(1, side.unsqueeze(1), entities.unsqueeze(1))
        return negatives.unflatten(0, shape).to(batch), possible.view(shape).to(batch.device)

    def _draw(self, triples: Tensor, side: Tensor, pools: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """An entity of the pool of each triple's side that makes no known triple, uniformly; -1 where there is none."""
        members, start, size = pools
        old = triples.gather(1, side.unsqueeze(1)).squeeze(1)
        drawn = torch.full_like(old, -1)
        open_rows = torch.arange(len(old))
        for _ in range(ROUNDS):
            if not len(open_rows):
                return drawn
            at = old[open_rows]
            share = torch.rand(len(at), generator=self.generator, dtype=torch.float64)
            entity = members[start[at] + (share * size[at]).long()]
            good = self._allowed(triples[open_rows], side[open_rows], entity)
            drawn[open_rows[good]] = entity[good]
            open_rows = open_rows[~good]
        # of the rest every candidate is looked at
        at = old[open_rows]
        row = torch.arange(len(at)).repeat_interleave(size[at])
        offset = torch.arange(len(row)) - (size[at].cumsum(0) - size[at])[row]
        entity = members[start[at][row] + offset]
        good = self._allowed(triples[open_rows][row], side[open_rows][row], entity)
        row, entity = row[good], entity[good]
        order = torch.randperm(len(row), generator=self.generator)
        winner = torch.full_like(at, -1).scatter_reduce(0, row[order], torch.arange(len(row)), "amax")
        has = winner >= 0
        drawn[open_rows[has]] = entity[order][winner[has]]
        return drawn

    def _allowed(self, triples: Tensor, side: Tensor, entity: Tensor) -> Tensor:
        old = triples.gather(1, side.unsqueeze(1)).squeeze(1)
        changed = triples.scatter(1, side.unsqueeze(1), entity.unsqueeze(1))
        return (entity != old) & ~self._is_known(changed)


def _same_cluster(clusters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entities by cluster, and of each entity where its cluster begins and how many it has (0 for cluster -1)."""
    if len(clusters) and int(clusters.min()) < -1:
        refuse("clusters", "values >= -1", int(clusters.min()))
    members = clusters.argsort(stable=True)
    _, group, counts = clusters.unique(return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    return members, starts[group], torch.where(clusters < 0, 0, counts[group])


def _nearest(vectors: Tensor, q: int) -> tuple[Tensor, Tensor, Tensor]:
    """The q nearest other entities of each, one after another."""
    rows = nn.functional.normalize(vectors.detach().double().cpu(), dim=1)
    members = []
    for block in torch.arange(len(rows)).split(1024):
        similarity = rows[block] @ rows.T
        similarity[torch.arange(len(block)), block] = -torch.inf
        members.append(similarity.topk(q, 1).indices)
    size = torch.full((len(rows),), q)
    return torch.cat(members).flatten(), size.cumsum(0) - size, size


class TransE(Arguments, nn.Module):
    r"""Entities as points and relations as translations between them.

    .. math:: f(h, r, t) = -\| e_h + w_r - e_t \|_p

    Entities lie on the unit sphere after :meth:`after_step`.

    Args:
        num_entities: E >= 1.
        num_relations: R >= 1.
        width: d >= 1.
        p: of the norm, >= 1.

    Example:
        >>> model = TransE(3, 1, 2)
        >>> with torch.no_grad():
        ...     model.entities.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        ...     model.relations.copy_(torch.tensor([[0.0, 1.0]]))
        Parameter containing:
        tensor([[1., 0.],
                [1., 1.],
                [0., 1.]], requires_grad=True)
        Parameter containing:
        tensor([[0., 1.]], requires_grad=True)
        >>> model(torch.tensor([[0, 0, 1], [0, 0, 2]])).tolist()
        [-0.0, -1.0]

    Source: Translating Embeddings for Modeling Multi-relational Data (NIPS 2013).
    """

    def __init__(self, num_entities: int, num_relations: int, width: int, p: float = 1.0) -> None:
        super().__init__()
        for name, value in (("num_entities", num_entities), ("num_relations", num_relations), ("width", width)):
            check_number(name, value, low=1, integer=True)
        check_number("p", p, low=1.0)
        self.p = p
        bound = 6 / math.sqrt(width)
        self.entities = nn.Parameter(torch.empty(num_entities, width).uniform_(-bound, bound))
        self.relations = nn.Parameter(torch.empty(num_relations, width).uniform_(-bound, bound))
        self.after_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the entities back on the unit sphere."""
        self.entities.copy_(nn.functional.normalize(self.entities, dim=1))

    def forward(self, triples: I[Tensor, "*batch 3"]) -> F[Tensor, "*batch"]:
        """Scores of triples, <= 0."""
        check_tensor("triples", triples, floating=False, shape=(*triples.shape[:-1], 3))
        head, relation, tail = triples.unbind(-1)
        moved = self.entities[head] + self.relations[relation] - self.entities[tail]
        scores: Tensor = -torch.linalg.vector_norm(moved, self.p, dim=-1)
        return scores

    @torch.no_grad()
    def candidates(self, triples: I[Tensor, "batch 3"], side: str = "tail") -> F[Tensor, "batch entities"]:
        """Scores of every entity in place of the head or the tail ``[B, E]``."""
        check_choice("side", side, ("head", "tail"))
        check_tensor("triples", triples, floating=False, shape=(None, 3))
        relation = self.relations[triples[:, 1]]
        aim = self.entities[triples[:, 0]] + relation if side == "tail" else self.entities[triples[:, 2]] - relation
        return -torch.cdist(aim, self.entities, p=self.p)


def margin_ranking_loss(
    positive: F[Tensor, " batch"], negative: F[Tensor, "batch negatives"], margin: float = 1.0
) -> F[Tensor, ""]:
    """The mean over positives of the sum over their negatives of max(0, margin - positive + negative).

    >>> margin_ranking_loss(torch.tensor([0.0]), torch.tensor([[-1.0]]), margin=2.0)
    tensor(1.)
    """
    check_tensor("positive", positive, ndim=1, floating=True)
    check_tensor("negative", negative, floating=True, shape=(len(positive), None))
    check_number("margin", margin, low=0.0)
    return (margin - positive.unsqueeze(1) + negative).relu().sum(1).sum() / max(len(positive), 1)


def filtered_ranks(
    scores: F[Tensor, "batch entities"],
    triples: I[Tensor, "batch 3"],
    known: I[Tensor, "triples 3"],
    side: str = "tail",
) -> F[Tensor, " batch"]:
    """The rank of the true entity among all entities that make no other known triple; of equal ones the mean rank.

    Args:
        scores: of every entity at the side ``[B, E]``, higher is better.
        triples: head, relation, tail ``[B, 3]``.
        known: all true triples ``[M, 3]``.
        side: "head" or "tail".

    Returns:
        ``[B]``, >= 1, float64. The mean reciprocal rank is that of ``1 / ranks``.

    Example:
        >>> scores, known = torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[0, 0, 1], [0, 0, 2]])
        >>> filtered_ranks(scores, known[1:], known)
        tensor([1.], dtype=torch.float64)
    """
    check_tensor("scores", scores, ndim=2, floating=True)
    check_tensor("triples", triples, floating=False, shape=(len(scores), 3))
    check_tensor("known", known, floating=False, shape=(None, 3))
    check_choice("side", side, ("head", "tail"))
    fixed, asked = ([0, 1], 2) if side == "tail" else ([1, 2], 0)
    truth = triples[:, asked].long()
    check_range("triples", truth, 0, scores.shape[1] - 1)
    same = (triples[:, None, fixed] == known[None, :, fixed]).all(-1)
    row, place = same.nonzero(as_tuple=True)
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    hidden[row, known[place, asked].long()] = True
    hidden[torch.arange(len(scores)), truth] = True
    own = scores.gather(1, truth.unsqueeze(1))
    above, equal = ((scores > own) & ~hidden).sum(1), ((scores == own) & ~hidden).sum(1)
    return 1 + above.double() + equal.double() / 2
