"""Discovery of new classes in tables: three ways to cluster with the help of known classes, and how to tune them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool as B
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_flag, check_index, check_number, check_tensor, refuse
from ...core.clusterings import class_means, hungarian_accuracy
from ...core.logpartition import target_log_probability
from ...core.reductions import widen

FitPredict = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``(x of known classes, their labels, x of others, number of clusters) -> clusters of the others``."""
Setting = TypeVar("Setting")


def _check_table(argument: str, value: object, width: int | None = None) -> None:
    check_tensor(argument, value, floating=True, shape=(None, width))
    assert isinstance(value, Tensor)
    if not bool(value.isfinite().all()):
        refuse(argument, "finite numbers", "others")


def projection_ncd_loss(
    logits: F[Tensor, "rows classes"],
    reconstruction: F[Tensor, "rows features"],
    x: F[Tensor, "rows features"],
    labels: I[Tensor, " rows"],
    known: B[Tensor, " rows"],
    w: float = 0.8,
) -> F[Tensor, ""]:
    r"""Cross-entropy of the rows of known classes and squared error of the reconstruction of all rows.

    .. math:: w \frac{1}{|K|} \sum_{i \in K} \mathrm{CE}_i + (1 - w) \frac{1}{B} \sum_i \| x_i - \hat x_i \|^2

    Args:
        logits: ``[B, C]``.
        reconstruction: ``[B, D]``.
        x: ``[B, D]``.
        labels: ``[B]``, not read where ``known`` is false.
        known: boolean ``[B]``.
        w: in [0, 1].

    Returns:
        A scalar in float32 or wider; the first term is 0 where no row is known.

    Raises:
        ValueError: wrong shapes, w out of range.

    Example:
        >>> logits, x, back = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 2.5]])
        >>> projection_ncd_loss(logits, back, x, torch.tensor([0]), torch.tensor([True]))
        tensor(0.3506)
    """
    check_tensor("logits", logits, ndim=2, floating=True)
    check_tensor("reconstruction", reconstruction, floating=True, shape=(len(logits), None))
    check_tensor("x", x, floating=True, shape=tuple(reconstruction.shape))
    check_tensor("labels", labels, floating=False, shape=(len(logits),))
    check_tensor("known", known, floating=False, shape=(len(logits),))
    check_number("w", w, low=0.0, high=1.0)
    labels = torch.where(known, labels, 0)
    check_index(labels, logits, argument="labels")
    entropy = torch.where(known, -target_log_probability(logits, labels), 0.0).sum() / known.sum().clamp_min(1)
    error = (widen(x) - widen(reconstruction)).square().sum() / max(len(x), 1)
    return w * entropy + (1 - w) * error


class ProjectionBasedNCD:
    """A network whose latent space keeps what separates known classes and what describes all rows, then k-means.

    The encoder is a perceptron with dropout; a linear classifier reads known classes from the latent space, a mirrored
    decoder the row itself. AdamW minimises :func:`projection_ncd_loss` over batches of all rows.

    Args:
        hidden: widths of the encoder's hidden layers.
        latent: width of the latent space, >= 1.
        w: of the cross-entropy, in [0, 1]: 0 leaves an autoencoder, 1 a classifier.
        dropout: in [0, 1).
        batch_norm: whether each hidden layer is normalised.
        lr: learning rate, > 0.
        epochs: >= 0.
        batch_size: >= 2.
        seed: of weights, batches, dropout and k-means.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 4.0]]).repeat(6, 1)
        >>> x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        >>> place = torch.arange(24) % 4
        >>> model = ProjectionBasedNCD((16,), 2, epochs=40, lr=1e-2).fit(x[place < 2], place[place < 2], x[place >= 2])
        >>> hungarian_accuracy(model.predict(x[place >= 2], 2), place[place >= 2])
        1.0

    Source: A Practical Approach to Novel Class Discovery in Tabular Data, arXiv:2311.05440.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        latent: int = 16,
        w: float = 0.8,
        *,
        dropout: float = 0.1,
        batch_norm: bool = False,
        lr: float = 1e-3,
        epochs: int = 50,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        for width in hidden:
            check_number("hidden", width, low=1, integer=True)
        check_number("latent", latent, low=1, integer=True)
        check_number("w", w, low=0.0, high=1.0)
        check_number("dropout", dropout, low=0.0, high=1.0, open_high=True)
        check_flag("batch_norm", batch_norm)
        check_number("lr", lr, low=0.0, open_low=True)
        check_number("epochs", epochs, low=0, integer=True)
        check_number("batch_size", batch_size, low=2, integer=True)
        check_number("seed", seed, low=0, integer=True)
        self.hidden, self.latent, self.w, self.dropout = tuple(hidden), latent, w, dropout
        self.batch_norm, self.lr, self.epochs, self.batch_size, self.seed = batch_norm, lr, epochs, batch_size, seed
        self.encoder: nn.Module | None = None

    def fit(
        self, x_known: F[Tensor, "known features"], y_known: I[Tensor, " known"], x_novel: F[Tensor, "novel features"]
    ) -> Self:
        """Train on rows of known classes (any integers) and rows of others.

        Raises:
            ValueError: wrong shapes, values that are not finite.
        """
        _check_table("x_known", x_known)
        check_tensor("y_known", y_known, floating=False, shape=(len(x_known),))
        _check_table("x_novel", x_novel, x_known.shape[1])
        classes, labels = y_known.unique(return_inverse=True)
        x = torch.cat([x_known, x_novel.to(x_known)])
        labels = torch.cat([labels, labels.new_zeros(len(x_novel))])
        known = torch.arange(len(x), device=x.device) < len(x_known)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            widths = [x.shape[1], *self.hidden, self.latent]
            encoder, decoder = self._perceptron(widths).to(x), self._perceptron(widths[::-1]).to(x)
            classifier = nn.Linear(self.latent, max(len(classes), 1)).to(x)
            parameters = [*encoder.parameters(), *decoder.parameters(), *classifier.parameters()]
            optimizer = torch.optim.AdamW(parameters, lr=self.lr)
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).split(self.batch_size):
                    if len(rows) < 2 and self.batch_norm:  # one row has no variance
                        continue
                    z = encoder(x[rows])
                    loss = projection_ncd_loss(classifier(z), decoder(z), x[rows], labels[rows], known[rows], self.w)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        self.encoder = encoder.eval()
        return self

    def _perceptron(self, widths: Sequence[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths[:-1]):
            layers.append(nn.Linear(narrow, wide))
            if self.batch_norm:
                layers.append(nn.BatchNorm1d(wide))
            layers += [nn.ReLU(), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))

    @torch.no_grad()
    def transform(self, x: F[Tensor, "rows features"]) -> F[Tensor, "rows latent"]:
        """The latent space of rows.

        Raises:
            ValueError: before :meth:`fit`.
        """
        if self.encoder is None:
            refuse("transform", "a call of fit before", None)
        latent: Tensor = self.encoder(x)
        return latent

    def predict(self, x: F[Tensor, "rows features"], k: int) -> I[Tensor, " rows"]:
        """Clusters 0..k-1 of rows, by k-means in the latent space."""
        z = self.transform(x)
        return NCDKMeans(k, seed=self.seed).fit(z, z[:0]).labels


class NCDKMeans:
    """k-means of new classes that stay away from the means of known ones.

    The known means are fixed: of them only the seeding knows, by k-means++ with squared distances to the nearest of
    known and chosen centres. Lloyd's steps then move the new centres alone. The start of the smallest inertia wins.

    Args:
        k: new classes, >= 1.
        starts: >= 1.
        iterations: of Lloyd, >= 1; it ends where no row changes its centre.
        seed: of the starts.

    Attributes:
        centroids: ``[k, D]`` after :meth:`fit`, float64.
        labels: ``[N]``, clusters 0..k-1 of the rows of :meth:`fit`.
        inertia: sum of squared distances to the nearest new centre.

    Example:
        >>> x = torch.tensor([[0.0], [0.2], [5.0], [5.2]])
        >>> model = NCDKMeans(2).fit(x, torch.tensor([[10.0]]))
        >>> sorted(model.centroids.flatten().tolist())
        [0.10000000149011612, 5.099999904632568]

    Source: A Practical Approach to Novel Class Discovery in Tabular Data, arXiv:2311.05440.
    """

    def __init__(self, k: int, *, starts: int = 10, iterations: int = 300, seed: int = 0) -> None:
        check_number("k", k, low=1, integer=True)
        check_number("starts", starts, low=1, integer=True)
        check_number("iterations", iterations, low=1, integer=True)
        check_number("seed", seed, low=0, integer=True)
        self.k, self.starts, self.iterations, self.seed = k, starts, iterations, seed
        self.centroids: Tensor | None = None
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.inertia = math.nan

    def fit(self, x_novel: F[Tensor, "rows features"], known_centroids: F[Tensor, "known features"]) -> Self:
        """Cluster rows; ``known_centroids`` may have no row.

        Raises:
            ValueError: wrong shapes, fewer rows than clusters, values that are not finite.
        """
        _check_table("x_novel", x_novel)
        _check_table("known_centroids", known_centroids, x_novel.shape[1])
        if len(x_novel) < self.k:
            refuse("x_novel", f"at least {self.k} rows", x_novel)
        x = x_novel.detach().double()
        centres = self._seeded(x, known_centroids.detach().to(x))
        labels = _squared_distances(x, centres).argmin(-1)
        for _ in range(self.iterations):
            one_hot = nn.functional.one_hot(labels, self.k).to(x)  # [starts, N, k]
            sizes = one_hot.sum(1).unsqueeze(-1)
            centres = torch.where(sizes > 0, one_hot.mT @ x / sizes.clamp_min(1), centres)
            nearest = _squared_distances(x, centres).argmin(-1)
            if torch.equal(nearest, labels):
                break
            labels = nearest
        inertia = _squared_distances(x, centres).amin(-1).sum(-1)
        best = int(inertia.argmin())
        self.centroids, self.labels, self.inertia = centres[best], labels[best], float(inertia[best])
        return self

    def _seeded(self, x: Tensor, known: Tensor) -> Tensor:
        """Centres ``[starts, k, D]`` of k-means++."""
        generator = torch.Generator().manual_seed(self.seed)
        nearest = torch.full((self.starts, len(x)), math.inf).to(x)
        if len(known):
            nearest = _squared_distances(x, known).amin(-1).expand(self.starts, -1).clone()
        chosen = []
        for _ in range(self.k):
            share = torch.where(nearest.isinf() | (nearest.sum(1, keepdim=True) == 0), 1.0, nearest)
            ends = share.cumsum(1)
            draws = torch.rand(self.starts, 1, generator=generator, dtype=torch.float64).to(x) * ends[:, -1:]
            # the first row whose end lies above the draw: one of share 0 is never drawn
            rows = torch.searchsorted(ends, draws, right=True).squeeze(1).clamp_max(len(x) - 1)
            chosen.append(x[rows])
            nearest = torch.minimum(nearest, (x - x[rows].unsqueeze(1)).square().sum(-1))
        return torch.stack(chosen, 1)

    def predict(self, x: F[Tensor, "rows features"]) -> I[Tensor, " rows"]:
        """The nearest new centre of rows.

        Raises:
            ValueError: before :meth:`fit`.
        """
        if self.centroids is None:
            refuse("predict", "a call of fit before", None)
        return _squared_distances(x.double(), self.centroids).argmin(-1)


def _squared_distances(x: F[Tensor, "rows width"], centres: F[Tensor, "*starts centres width"]) -> Tensor:
    """``[..., N, K]``, by differences (products would lose the digits of near rows)."""
    return (
        torch.cdist(x.expand(*centres.shape[:-2], *x.shape), centres, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    )


def spanning_bandwidth(x: F[Tensor, "rows features"], min_dist: float = 0.6) -> float:
    r"""The width of a Gaussian affinity from the largest edge D of the minimum spanning tree of rows.

    .. math:: \sigma = \sqrt{-D^2 / \ln m}

    The affinity :math:`e^{-D^2 / 2 \sigma^2}` of that edge is then :math:`\sqrt m`.

    Args:
        x: ``[N, D]``, two rows and more, not all the same.
        min_dist: m in (0, 1).

    Raises:
        ValueError: rows that are all the same, m out of range.

    Example:
        >>> round(spanning_bandwidth(torch.tensor([[0.0], [1.0], [3.0], [10.0]])), 4)
        9.794
    """
    from scipy.sparse.csgraph import minimum_spanning_tree  # type: ignore[import-untyped]

    _check_table("x", x)
    check_number("min_dist", min_dist, low=0.0, high=1.0, open_low=True, open_high=True)
    rows = x.detach().double()
    tree = minimum_spanning_tree(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy())
    if not tree.nnz:
        refuse("x", "rows that differ", x)
    return float(tree.max()) / math.sqrt(-math.log(min_dist))


def normalized_laplacian(x: F[Tensor, "rows features"], bandwidth: float) -> F[Tensor, "rows rows"]:
    r""":math:`I - W^{-1/2} A W^{-1/2}` of the Gaussian affinity A of rows, whose diagonal is 0, and its row sums W.

    A row without any neighbour (all its affinities round to 0) keeps 1 on the diagonal.

    Args:
        x: ``[N, D]``.
        bandwidth: :math:`\sigma` > 0.

    Returns:
        ``[N, N]``, float64, symmetric.

    Example:
        >>> normalized_laplacian(torch.tensor([[0.0], [1.0]]), 1.0).round()
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """
    _check_table("x", x)
    check_number("bandwidth", bandwidth, low=0.0, open_low=True)
    rows = x.detach().double()
    affinity = (-_squared_distances(rows, rows) / (2 * bandwidth**2)).exp().fill_diagonal_(0.0)
    degree = affinity.sum(1)
    scale = torch.where(degree > 0, degree, torch.inf).rsqrt()
    return torch.eye(len(rows), dtype=rows.dtype, device=rows.device) - affinity * torch.outer(scale, scale)


class NCDSpectralClustering:
    """Spectral clustering of rows of known and new classes together, then :class:`NCDKMeans` in that space.

    The space has the eigenvectors 2 to k + known classes + 1 of the :func:`normalized_laplacian`, whose width is that
    of :func:`spanning_bandwidth`; known centres are the means of the known classes there. Time is of the order of the
    cube of the rows: take a sample of large tables.

    Args:
        k: new classes, >= 1.
        min_dist: in (0, 1).
        starts, seed: of k-means.

    Attributes:
        labels: clusters 0..k-1 of the new rows after :meth:`fit`.
        embedding: ``[known + new, k + known classes]``, float64.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.0, 0.1], [0.0, 5.0], [0.1, 5.0]])
        >>> model = NCDSpectralClustering(2).fit(x[2:], x[:2], torch.tensor([0, 0]))
        >>> hungarian_accuracy(model.labels, torch.tensor([1, 1, 2, 2]))
        1.0

    Source: A Practical Approach to Novel Class Discovery in Tabular Data, arXiv:2311.05440.
    """

    def __init__(self, k: int, min_dist: float = 0.6, *, starts: int = 10, seed: int = 0) -> None:
        check_number("min_dist", min_dist, low=0.0, high=1.0, open_low=True, open_high=True)
        self.k, self.min_dist = k, min_dist
        self.k_means = NCDKMeans(k, starts=starts, seed=seed)
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.embedding = torch.zeros(0, 0, dtype=torch.float64)

    def fit(
        self, x_novel: F[Tensor, "novel features"], x_known: F[Tensor, "known features"], y_known: I[Tensor, " known"]
    ) -> Self:
        """Cluster the new rows; there may be no known ones.

        Raises:
            ValueError: wrong shapes, too few rows for so many eigenvectors, rows that are all the same.
        """
        _check_table("x_novel", x_novel)
        _check_table("x_known", x_known, x_novel.shape[1])
        check_tensor("y_known", y_known, floating=False, shape=(len(x_known),))
        classes, labels = y_known.unique(return_inverse=True)
        x = torch.cat([x_known.double(), x_novel.double()])
        dimensions = self.k + len(classes)
        if len(x) < dimensions + 1:
            refuse("x_novel", f"at least {dimensions + 1} rows of both kinds", x_novel)
        laplacian = normalized_laplacian(x, spanning_bandwidth(x, self.min_dist))
        self.embedding = torch.linalg.eigh(laplacian).eigenvectors[:, 1 : dimensions + 1]
        known, novel = self.embedding.split([len(x_known), len(x_novel)])
        self.labels = self.k_means.fit(novel, class_means(known, labels, len(classes))).labels
        return self


class HiddenClassCV:
    """Tuning without labels of the new classes: known classes are hidden, and found or not found.

    In each fold ``n_hidden`` known classes are treated as new ones; a setting's score is the mean over folds of the
    accuracy of clusters on their rows, under the best matching. All folds together hide each class alike often, up to
    one.

    Args:
        n_hidden: about as many as there are new classes, >= 1.
        folds: >= 1.
        seed: of the order of classes.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> [hidden.tolist() for hidden in HiddenClassCV(2, folds=2).splits(labels)]
        [[0, 1], [2, 3]]

    Source: A Practical Approach to Novel Class Discovery in Tabular Data, arXiv:2311.05440.
    """

    def __init__(self, n_hidden: int, folds: int, *, seed: int = 0) -> None:
        check_number("n_hidden", n_hidden, low=1, integer=True)
        check_number("folds", folds, low=1, integer=True)
        check_number("seed", seed, low=0, integer=True)
        self.n_hidden, self.folds, self.seed = n_hidden, folds, seed

    def splits(self, y_known: I[Tensor, " rows"]) -> list[I[Tensor, " hidden"]]:
        """The classes that each fold hides, in order.

        Raises:
            ValueError: not more known classes than are hidden.
        """
        check_tensor("y_known", y_known, ndim=1, floating=False)
        classes = y_known.unique()
        if len(classes) <= self.n_hidden:
            refuse("y_known", f"more than {self.n_hidden} classes", len(classes))
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(self.seed))
        places = torch.arange(self.n_hidden * self.folds) % len(classes)
        return [classes[order[fold].to(classes.device)].sort().values for fold in places.split(self.n_hidden)]

    def score(self, fit_predict: FitPredict, x_known: F[Tensor, "rows width"], y_known: I[Tensor, " rows"]) -> float:
        """Mean accuracy on hidden classes of ``fit_predict(x, labels, x of hidden classes, n_hidden) -> clusters``."""
        check_tensor("x_known", x_known, floating=True, shape=(len(y_known), None))
        accuracies = []
        for classes in self.splits(y_known):
            hidden = torch.isin(y_known, classes)
            clusters = fit_predict(x_known[~hidden], y_known[~hidden], x_known[hidden], self.n_hidden)
            accuracies.append(hungarian_accuracy(clusters, y_known[hidden]))
        return float(np.mean(accuracies))

    def best(
        self,
        settings: Iterable[Setting],
        method: Callable[[Setting], FitPredict],
        x_known: F[Tensor, "rows width"],
        y_known: I[Tensor, " rows"],
    ) -> Setting:
        """The setting of the highest score, the first of equal ones; it is then fitted to everything."""
        return max(settings, key=lambda setting: self.score(method(setting), x_known, y_known))


def estimate_num_classes(z: F[Tensor, "rows width"], k_max: int, seed: int = 0) -> int:
    """The number of clusters in 2..k_max whose k-means has the highest silhouette.

    Args:
        z: ``[N, D]``, best the latent space of :class:`ProjectionBasedNCD`.
        k_max: >= 2, below N.
        seed: of k-means.

    Raises:
        ValueError: too few rows, values that are not finite.

    Example:
        >>> z = torch.tensor([[0.0], [0.1], [4.0], [4.1], [9.0], [9.1]])
        >>> estimate_num_classes(z, 5)
        3

    Source: A Practical Approach to Novel Class Discovery in Tabular Data, arXiv:2311.05440.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from sklearn.metrics import silhouette_score  # type: ignore[import-untyped]

    _check_table("z", z)
    check_number("k_max", k_max, low=2, integer=True)
    if len(z) <= k_max:
        refuse("z", f"more than {k_max} rows", z)
    rows = z.detach().double().cpu().numpy()

    def silhouette(k: int) -> float:
        clusters = KMeans(k, n_init=10, random_state=seed).fit_predict(rows)
        return float(silhouette_score(rows, clusters)) if len(np.unique(clusters)) > 1 else -1.0

    return max(range(2, k_max + 1), key=silhouette)
