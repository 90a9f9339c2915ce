"""Whether two networks have learned the same: units that have a counterpart, are a few others' sum, or span a space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.reductions import widen

MATCHINGS = ("bipartite", "semi")
ALPHAS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
ROWS = 2**16
"""Samples whose float64 copies are in memory together."""
ROUNDING = 1e-12
"""By how much a sum of shares may fall short."""


def unit_correlation(
    x: F[Tensor, "samples units"] | Iterable[tuple[Tensor, Tensor]], z: F[Tensor, "samples others"] | None = None
) -> F[Tensor, "units others"]:
    r"""Pearson's correlation of each unit of one network with each of another, on the same inputs.

    .. math::
        C_{ij} = \frac{\sum_s (x_{si} - \mu_i)(z_{sj} - \nu_j)}
        {\sqrt{\sum_s (x_{si} - \mu_i)^2 \sum_s (z_{sj} - \nu_j)^2}}

    A positive factor or an offset of a unit changes nothing, a negative factor flips the signs of its row. Means and
    sums of products are merged over slabs of samples in float64, without a sum of squares that cancels: large means
    cost no digits.

    Args:
        x: activations ``[n, u]``, a sample a row; or of a convolution ``[n, u, height, width]``, where each position is
            a sample and each channel a unit. Or an iterable of pairs ``(x, z)`` of such batches, for activations that
            don't fit in memory.
        z: of the other network on the same inputs, ``[n, v]`` or ``[n, v, height, width]``; None for the correlations
            within one network, and with an iterable.

    Returns:
        ``[u, v]`` in float32 or wider. The row or column of a unit that never varies is NaN.

    Raises:
        ValueError: no sample, shapes that don't fit, a ``z`` beside an iterable.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
        >>> unit_correlation(x, torch.tensor([[10.0, 5.0], [20.0, 4.0], [30.0, 3.0]]))
        tensor([[ 1., -1.],
                [nan, nan]])

    Source: Convergent Learning: Do different neural networks learn the same representations?, arXiv:1511.07543.
    """
    if isinstance(x, Tensor):
        pairs: Iterable[tuple[Tensor, Tensor]] = [(x, x if z is None else z)]
    else:
        pairs = x
        if z is not None:
            refuse("z", "None, where x is an iterable of pairs", z)
    moments: _Moments | None = None
    dtype = torch.float32
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            refuse("x", "pairs of activations of both networks", pair)
        rows, others = _samples("x", pair[0]), _samples("z", pair[1])
        if len(rows) != len(others):
            refuse("z", f"{len(rows)} samples, as x", pair[1])
        dtype = torch.promote_types(dtype, torch.promote_types(rows.dtype, others.dtype))
        if moments is None:
            moments = _Moments(rows, others)
        else:
            check_tensor("x", rows, shape=(None, moments.mean_x.numel()))
            check_tensor("z", others, shape=(None, moments.mean_z.numel()))
        for slab, of_others in zip(rows.split(ROWS), others.split(ROWS)):
            moments.add(slab, of_others)
    if moments is None or not moments.count:
        refuse("x", "at least one sample", "none" if moments is None else x)
    return moments.correlation().to(dtype)


class _Moments:
    """Means and centred sums of products, merged exactly; all relative to a first sample, so that a constant is 0."""

    def __init__(self, x: Tensor, z: Tensor) -> None:
        self.count = 0
        self.first_x, self.first_z = x[:1].double(), z[:1].double()
        self.mean_x, self.mean_z = x.new_zeros(x.shape[1]).double(), z.new_zeros(z.shape[1]).double()
        self.squares_x, self.squares_z = torch.zeros_like(self.mean_x), torch.zeros_like(self.mean_z)
        self.products = self.squares_x[:, None] * self.squares_z

    def add(self, x: Tensor, z: Tensor) -> None:
        count = len(x)
        if not count:
            return
        if not self.count:
            self.first_x, self.first_z = x[:1].double(), z[:1].double()
        x, z = x.double() - self.first_x, z.double() - self.first_z
        mean_x, mean_z = x.mean(0), z.mean(0)
        x, z = x - mean_x, z - mean_z
        apart_x, apart_z = mean_x - self.mean_x, mean_z - self.mean_z
        total = self.count + count
        between = self.count * count / total
        self.products += x.T @ z + between * apart_x[:, None] * apart_z
        self.squares_x += x.square().sum(0) + between * apart_x.square()
        self.squares_z += z.square().sum(0) + between * apart_z.square()
        self.mean_x += apart_x * (count / total)
        self.mean_z += apart_z * (count / total)
        self.count = total

    def correlation(self) -> Tensor:
        roots = self.squares_x.sqrt()[:, None] * self.squares_z.sqrt()
        return (self.products / roots).clamp(-1, 1)  # 0 / 0 is NaN, and stays NaN


def _samples(argument: str, activations: Tensor) -> Tensor:
    """A sample a row: of images each position is one."""
    check_tensor(argument, activations, ndim=(2, 4), floating=True)
    rows = activations.detach()
    return widen(rows if rows.ndim == 2 else rows.movedim(1, -1).flatten(0, 2))


def match_units(
    correlation: F[Tensor, "units others"], how: str = "bipartite"
) -> tuple[Int[Tensor, " units"], F[Tensor, " units"]]:
    r"""For each unit of one network its counterpart in the other.

    ``"bipartite"``: the one-to-one assignment :math:`\pi` of the largest :math:`\sum_i C_{i \pi(i)}` (SciPy's
    ``linear_sum_assignment``). ``"semi"``: the best partner :math:`\arg\max_j C_{ij}`, who may be that of several.
    Where the second scores clearly higher than the first, a unit has no counterpart of its own. Signs count: a unit
    that is another's negative is no counterpart.

    Units that never vary are dropped: they are those of index -1, as are units of the larger network that are left
    over in an assignment.

    Args:
        correlation: of :func:`unit_correlation`, ``[u, v]``, or another similarity, such as mutual information.
        how: ``"bipartite"`` or ``"semi"``.

    Returns:
        indices ``[u]`` of units of the other network, -1 for none; scores ``[u]``, NaN for none.

    Raises:
        ValueError: an unknown matching, values that are not finite but for whole rows or columns of NaN.

    Example:
        >>> c = torch.tensor([[0.9, 0.8, 0.1], [0.85, 0.3, 0.2], [0.2, 0.1, 0.4]])
        >>> match_units(c)
        (tensor([1, 0, 2]), tensor([0.8000, 0.8500, 0.4000]))
        >>> match_units(c, "semi")
        (tensor([0, 0, 2]), tensor([0.9000, 0.8500, 0.4000]))

    Source: Convergent Learning: Do different neural networks learn the same representations?, arXiv:1511.07543.
    """
    from scipy.optimize import linear_sum_assignment

    check_tensor("correlation", correlation, ndim=2, floating=True)
    check_choice("how", how, MATCHINGS)
    scores = widen(correlation.detach())
    rows = (~scores.isnan().all(1)).nonzero()[:, 0]
    columns = (~scores.isnan().all(0)).nonzero()[:, 0]
    live = scores[rows][:, columns]
    if not bool(live.isfinite().all()):
        refuse("correlation", "finite values, and whole rows or columns of NaN", correlation)
    index = torch.full((len(scores),), -1, dtype=torch.long, device=scores.device)
    score = scores.new_full((len(scores),), torch.nan)
    if live.numel():
        if how == "semi":
            places, partners = torch.arange(len(live), device=live.device), live.argmax(1)
        else:
            assigned = linear_sum_assignment(live.double().cpu().numpy(), maximize=True)
            places, partners = (torch.as_tensor(side, device=live.device) for side in assigned)
        index[rows[places]] = columns[partners]
        score[rows[places]] = live[places, partners]
    return index, score


def sparse_unit_prediction(
    x: F[Tensor, "samples units"],
    z: F[Tensor, "samples targets"],
    alphas: Sequence[float] = ALPHAS,
    *,
    test: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""How well few units of one network predict each unit of another.

    .. math:: \min_w \frac{1}{2n} \|z_j - X w\|^2 + \alpha \|w\|_1

    for each unit j of the second network (scikit-learn's Lasso; least squares for :math:`\alpha = 0`), all units
    standardised by the mean and deviation of the rows that it is fitted to. The smaller :math:`R^2` at a few weights
    beside that at many, the less a unit of one network is one or a few of the other.

    Args:
        x: activations that predict, ``[n, u]`` or ``[n, u, height, width]`` (a position a sample).
        z: activations that are predicted, ``[n, v]`` or ``[n, v, height, width]``.
        alphas: penalties >= 0, in any order.
        test: activations ``(x, z)`` on other inputs, on which :math:`R^2` is measured; by default on the same ones.

    Returns:
        ``r2`` ``[alphas, v]``, relative to the mean of the measured rows, NaN for targets that don't vary; ``nnz``, how
        many weights are not 0, ``[alphas, v]``; ``weights`` ``[alphas, u, v]``, of standardised units, 0 for units that
        never vary; ``dropped`` ``[2]``, how many units of x and z never vary. In float32 or wider.

    Raises:
        ValueError: shapes that don't fit, no sample, a penalty below 0, values that are not finite.

    Example:
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> fit = sparse_unit_prediction(x, x[:, :1] + 0.1 * x[:, 1:2], alphas=(0.0, 0.3))
        >>> fit["nnz"][1], fit["r2"].round(decimals=2)[:, 0]
        (tensor([1]), tensor([1.0000, 0.8900]))

    Source: Convergent Learning: Do different neural networks learn the same representations?, arXiv:1511.07543.
    """
    from sklearn.linear_model import lasso_path

    if not len(alphas):
        refuse("alphas", "at least one penalty", alphas)
    for alpha in alphas:
        check_number("alphas", alpha, low=0.0)
    dtype, pair = _pair(x, z)
    pairs = [pair]
    if test is not None:
        if not (isinstance(test, list | tuple) and len(test) == 2):
            refuse("test", "a pair of activations (x, z)", test)
        pairs.append(_pair(*test, of="test")[1])
        if [side.shape[1] for side in pairs[1]] != [side.shape[1] for side in pair]:
            refuse("test", f"{pair[0].shape[1]} and {pair[1].shape[1]} units, as x and z", [*map(np.shape, pairs[1])])
    live = [np.flatnonzero((side != side[0]).any(0)) for side in pair]
    xs, zs = (_standardised(rows, side, own) for rows, side, own in zip(pair, pair, live))
    by_alpha: dict[float, np.ndarray] = {}
    if 0 in alphas:
        by_alpha[0.0] = np.linalg.lstsq(xs, zs, rcond=None)[0]
    penalties = sorted({float(alpha) for alpha in alphas if alpha > 0}, reverse=True)
    if penalties and xs.size:
        gram, products = xs.T @ xs, xs.T @ zs
        for target in range(zs.shape[1]):
            _, path, _ = lasso_path(
                xs, zs[:, target], alphas=np.array(penalties), precompute=gram, Xy=products[:, target],
                max_iter=10_000,
            )  # fmt: skip
            for alpha, column in zip(penalties, path.T):
                by_alpha.setdefault(alpha, np.zeros((xs.shape[1], zs.shape[1])))[:, target] = column
    nothing = np.zeros((xs.shape[1], zs.shape[1]))
    weights = np.stack([by_alpha.get(float(alpha), nothing) for alpha in alphas])
    x_new, z_new = (_standardised(rows, side, own) for rows, side, own in zip(pairs[-1], pair, live))
    total = np.where((z_new != z_new[0]).any(0), np.square(z_new - z_new.mean(0)).sum(0), 0.0)
    left = np.square(z_new - x_new @ weights).sum(1)
    shape = (len(alphas), pair[0].shape[1], pair[1].shape[1])
    full_weights, r2 = np.zeros(shape), np.full((shape[0], shape[2]), np.nan)
    full_weights[np.ix_(np.arange(shape[0]), *live)] = weights
    r2[:, live[1]] = 1 - np.divide(left, total, out=np.full_like(left, np.nan), where=total > 0)

    def tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=x.device)

    return {
        "r2": tensor(r2, dtype),
        "nnz": tensor((full_weights != 0).sum(1), torch.long),
        "weights": tensor(full_weights, dtype),
        "dropped": tensor(np.array([shape[1] - len(live[0]), shape[2] - len(live[1])]), torch.long),
    }


def _pair(x: Tensor, z: Tensor, of: str = "") -> tuple[torch.dtype, list[np.ndarray]]:
    """Activations of both networks in float64, a sample a row, and the type in which results are given."""
    sides = [_samples(of or name, side) for name, side in (("x", x), ("z", z))]
    if len(sides[0]) != len(sides[1]):
        refuse(of or "z", f"{len(sides[0])} samples, as x", z)
    if not len(sides[0]):
        refuse(of or "x", "at least one sample", x)
    for name, side in zip("xz", sides):
        if not bool(side.isfinite().all()):
            refuse(of or name, "finite values", side)
    return torch.promote_types(sides[0].dtype, sides[1].dtype), [side.double().cpu().numpy() for side in sides]


def _standardised(rows: np.ndarray, fitted: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Some units of these rows, by mean and deviation of the rows that are fitted."""
    own = fitted[:, units]
    standard: np.ndarray = (rows[:, units] - own.mean(0)) / own.std(0)
    return standard


def cluster_units(
    x: F[Tensor, "samples units"], z: F[Tensor, "samples others"], k: int, *, seed: int = 0
) -> Int[Tensor, " all"]:
    r"""Groups of units of two networks, by spectral clustering of the graph that joins all of them.

    The weight of an edge is the absolute correlation of two units, of one network or of both; a unit has none with
    itself. Clusters are those of k-means on the k leading eigenvectors of :math:`D^{-1/2} A D^{-1/2}` (scikit-learn's
    ``SpectralClustering``).

    Args:
        x: activations of one network, ``[n, u]`` or ``[n, u, height, width]`` (a position a sample).
        z: of the other on the same inputs, ``[n, v]`` or ``[n, v, height, width]``.
        k: clusters, >= 1 and fewer than the units that vary.
        seed: of k-means and of the eigenvectors' beginning.

    Returns:
        labels ``[u + v]``, those of x first, 0 to k - 1; -1 for units that never vary.

    Raises:
        ValueError: shapes that don't fit, no sample, values that are not finite, too many clusters.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> labels = cluster_units(x.repeat(1, 2), -x, 2)
        >>> labels[0] == labels[2] == labels[4], labels[1] == labels[3] == labels[5], labels[0] == labels[1]
        (tensor(True), tensor(True), tensor(False))

    Source: Convergent Learning: Do different neural networks learn the same representations?, arXiv:1511.07543.
    """
    from sklearn.cluster import SpectralClustering

    check_number("k", k, low=1, integer=True)
    check_number("seed", seed, low=0, integer=True)
    correlation = _joint(x, z)
    live = (~correlation.isnan().all(1)).nonzero()[:, 0]
    if k >= len(live):
        refuse("k", f"fewer clusters than the {len(live)} units that vary", k)
    graph = correlation[live][:, live].abs().fill_diagonal_(0)
    method = SpectralClustering(k, affinity="precomputed", random_state=seed)
    labels = torch.full((len(correlation),), -1, dtype=torch.long)
    labels[live.cpu()] = torch.as_tensor(method.fit(graph.cpu().numpy()).labels_, dtype=torch.long)
    return labels.to(x.device)


def cluster_spans(
    x: F[Tensor, "samples units"],
    z: F[Tensor, "samples others"],
    labels: Int[Tensor, " all"],
    *,
    variance: float = 0.95,
) -> dict[str, Tensor]:
    r"""Of each cluster of units how large a space its units of either network span, and how much of it they share.

    The space of a network's standardised units in a cluster is that of their leading principal components, as few as
    have the share ``variance`` of all; what two such spaces share are their canonical correlations. Where they are near
    1 while single units correlate less, a space recurs whose basis does not.

    Args:
        x, z: as for :func:`cluster_units`.
        labels: of all units, ``[u + v]``, those of x first; negative ones count to no cluster.
        variance: in (0, 1].

    Returns:
        ``units`` ``[k, 2]``, members of either network; ``dimensions`` ``[k, 2]``; ``canonical`` ``[k, most]``, falling
        along a row, NaN beyond the smaller of both dimensions; ``explained`` ``[k, 2]``, the share of the variance of
        x's standardised units that lies in z's space, and of z's in x's, NaN where a network has none. In float32 or
        wider; k is the largest label plus 1.

    Raises:
        ValueError: shapes that don't fit, no sample, values that are not finite, a share outside its range.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> turned = x @ torch.tensor([[0.6, -0.8], [0.8, 0.6]])
        >>> spans = cluster_spans(x, turned, torch.zeros(4, dtype=torch.long))
        >>> spans["dimensions"], spans["canonical"].round(decimals=4)
        (tensor([[2, 2]]), tensor([[1., 1.]]))

    Source: Convergent Learning: Do different neural networks learn the same representations?, arXiv:1511.07543.
    """
    check_number("variance", variance, low=0.0, high=1.0, open_low=True)
    correlation = _joint(x, z)
    check_tensor("labels", labels, floating=False, shape=(len(correlation),))
    varies = ~correlation.isnan().all(1)
    of_x = torch.arange(len(correlation), device=x.device) < x.shape[1]
    clusters = int(labels.max()) + 1 if len(labels) else 0
    units, dimensions, shared, explained = [], [], [], []
    for cluster in range(clusters):
        members = [((labels == cluster) & varies & side).nonzero()[:, 0] for side in (of_x, ~of_x)]
        bases = [_whitened(correlation[own][:, own], variance) for own in members]
        across = correlation[members[0]][:, members[1]]
        between = bases[0].T @ across @ bases[1]
        shares = torch.stack([(across @ bases[1]).square().sum(), (bases[0].T @ across).square().sum()])
        counts = shares.new_tensor([len(own) for own in members])
        explained.append(torch.where(counts.all(), shares / counts, torch.nan))
        units.append([len(own) for own in members])
        dimensions.append([basis.shape[1] for basis in bases])
        shared.append(torch.linalg.svdvals(between).clamp(max=1.0))
    canonical = correlation.new_full((clusters, max([0, *map(len, shared)])), torch.nan)
    for cluster, values in enumerate(shared):
        canonical[cluster, : len(values)] = values
    dtype = torch.promote_types(widen(x[:0]).dtype, widen(z[:0]).dtype)
    return {
        "units": torch.tensor(units, device=x.device).view(clusters, 2),
        "dimensions": torch.tensor(dimensions, device=x.device).view(clusters, 2),
        "canonical": canonical.to(dtype),
        "explained": torch.stack([canonical.new_zeros(2), *explained])[1:].to(dtype),
    }


def _joint(x: Tensor, z: Tensor) -> Tensor:
    """The correlations among the units of both networks in float64."""
    _, pair = _pair(x, z)
    return unit_correlation(torch.as_tensor(np.concatenate(pair, 1), device=x.device))


def _whitened(correlation: Tensor, variance: float) -> Tensor:
    """Combinations of units that are the leading principal components with deviation 1, a column each."""
    values, vectors = torch.linalg.eigh(correlation)
    values, vectors = values.flip(0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum()
    most = int((shares < variance - ROUNDING).sum()) + 1 if len(values) else 0
    combinations: Tensor = vectors[:, :most] / values[:most].sqrt()
    return combinations
