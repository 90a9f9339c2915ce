"""Batches of at most one image of a cluster, so that views of alike images are not pushed apart."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_flag, check_number, check_range, check_tensor, refuse, refuse_type
from ...core.sampler import EpochSampler
from .nt_xent import NTXentLoss as NTXentLoss  # the loss of these batches, at a temperature of 0.1


class DenoisingAutoencoder(nn.Module):
    """The autoencoder whose code is clustered: three convolutions to 32, 64 and 128 channels, and their mirror image.

    Each is 3 x 3 with batch norm and ReLU; the first three are followed by 2 x 2 max-pooling, the mirrored ones by
    doubling the size. In training the input gets Gaussian noise. It is fitted by the mean squared error to the input
    without noise, which :meth:`forward` is compared with.

    Args:
        channels: of the images, >= 1.
        noise: standard deviation of the noise, >= 0.

    Example:
        >>> network = DenoisingAutoencoder(1)
        >>> images = torch.zeros(2, 1, 16, 16)
        >>> network(images).shape, network.code(images).shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 512]))

    Source: G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via Pseudo Labelling,
    arXiv:2009.12007.
    """

    def __init__(self, channels: int, noise: float = 0.01) -> None:
        super().__init__()
        check_number("channels", channels, low=1, integer=True)
        check_number("noise", noise, low=0.0)
        self.channels, self.noise = channels, noise
        widths = (channels, 32, 64, 128)
        down = [(*_block(a, b), nn.MaxPool2d(2)) for a, b in pairwise(widths)]
        up = [(nn.Upsample(scale_factor=2), *_block(b, a)) for a, b in reversed(list(pairwise(widths[1:])))]
        self.encoder = nn.Sequential(*(layer for block in down for layer in block))
        last = nn.Upsample(scale_factor=2), nn.Conv2d(32, channels, 3, padding=1)
        self.decoder = nn.Sequential(*(layer for block in up for layer in block), *last)

    def code(self, images: F[Tensor, "batch channels height width"]) -> F[Tensor, "batch code"]:
        """The flattened map of 128 channels, of images without noise."""
        self._check(images)
        code: Tensor = self.encoder(images).flatten(1)
        return code

    def forward(self, images: F[Tensor, "batch channels height width"]) -> F[Tensor, "batch channels height width"]:
        """Images again, of noisy ones in training. Height and width are multiples of 8."""
        self._check(images)
        noisy = images + self.noise * torch.randn_like(images) if self.training else images
        again: Tensor = self.decoder(self.encoder(noisy))
        return again

    def _check(self, images: Tensor) -> None:
        check_tensor("images", images, floating=True, shape=(None, self.channels, None, None))
        if images.shape[2] % 8 or images.shape[3] % 8:
            refuse("images", "a height and a width that are multiples of 8", images)


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


@torch.no_grad()
def cluster_labels(
    encoder: nn.Module, loader: Iterable[Tensor], k: int, generator: torch.Generator | None = None
) -> I[Tensor, " samples"]:
    """Clusters of images by k-means on what an encoder makes of them.

    Args:
        encoder: images to codes; a :class:`DenoisingAutoencoder` gives its ``code``. It runs in evaluation mode.
        loader: batches of images, in the order of the data set.
        k: clusters, from 1 to the number of images; the batch size in the publication.
        generator: of the starts of k-means; None is torch's own.

    Returns:
        Clusters ``[N]`` in 0..k - 1, int64, on the CPU.

    Raises:
        ValueError: more clusters than images, codes that are not finite.

    Example:
        >>> images = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> labels = cluster_labels(torch.nn.Identity(), [images[:2], images[2:]], 2)
        >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
        True

    Source: G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via Pseudo Labelling,
    arXiv:2009.12007.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    if not isinstance(encoder, nn.Module):
        refuse_type("encoder", "a module", encoder)
    check_number("k", k, low=1, integer=True)
    training = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        read = encoder.code if isinstance(encoder, DenoisingAutoencoder) else encoder
        codes = [read(images).flatten(1).double().cpu() for images in loader]
    finally:
        for module, mode in training.items():
            module.training = mode
    points = torch.cat(codes) if codes else torch.zeros(0, 1)
    if k > len(points):
        refuse("k", f"at most the {len(points)} images", k)
    if not bool(points.isfinite().all()):
        refuse("encoder", "finite codes", "others")
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    clusters = KMeans(k, n_init=3, random_state=seed).fit_predict(points.numpy())
    return torch.from_numpy(clusters).long()


def _plan(sizes: np.ndarray, batch_size: int, min_size: int, fill: bool) -> list[np.ndarray]:
    """Of each batch its clusters, one entry an image: those with most images left, ties by number."""
    left = sizes.copy()
    batches: list[np.ndarray] = []
    while True:
        order = np.argsort(-left, kind="stable")
        clusters = order[: min(batch_size, int((left > 0).sum()))]
        left[clusters] -= 1
        while fill and len(clusters) < batch_size and left.any():
            further = int(left.argmax())
            clusters = np.append(clusters, further)
            left[further] -= 1
        if len(clusters) < min_size or not len(clusters):
            return batches
        batches.append(clusters)


def _check_clusters(cluster_ids: Tensor, batch_size: int, min_size: int, shuffle: bool, fill: bool) -> Tensor:
    check_tensor("cluster_ids", cluster_ids, ndim=1, floating=False)
    if cluster_ids.dtype == torch.bool:
        refuse_type("cluster_ids", "clusters of an integer type", cluster_ids)
    check_number("min_size", min_size, low=1, high=batch_size, integer=True)
    check_flag("shuffle", shuffle)
    check_flag("fill", fill)
    ids = cluster_ids.detach().cpu().long()
    check_range("cluster_ids", ids, 0, max(len(ids) - 1, 0))
    return ids


def _rows(ids: Tensor, plan: list[np.ndarray], generator: torch.Generator | None, shuffle: bool) -> list[Tensor]:
    """Row numbers of a plan: the images of a cluster one after the other, or in an order that is drawn."""
    drawn = torch.randperm(len(ids), generator=generator) if shuffle else torch.arange(len(ids))
    by_cluster = drawn[ids[drawn].argsort(stable=True)]
    sizes = torch.bincount(ids)
    first = (sizes.cumsum(0) - sizes).numpy()
    taken = np.zeros(len(sizes), dtype=np.int64)
    batches = []
    for clusters in plan:
        places = np.empty(len(clusters), dtype=np.int64)
        for number, cluster in enumerate(clusters):  # a cluster may come again where batches are filled
            places[number] = first[cluster] + taken[cluster]
            taken[cluster] += 1
        batches.append(by_cluster[torch.from_numpy(places)])
    return batches


def guided_batches(
    cluster_ids: I[Tensor, " samples"],
    batch_size: int,
    *,
    min_size: int = 2,
    shuffle: bool = True,
    fill: bool = False,
    generator: torch.Generator | None = None,
) -> list[I[Tensor, " batch"]]:
    """Batches of an epoch, each with at most one row of a cluster.

    With as many clusters as a batch has rows the first batch has the first row of every cluster, the next one the
    second row of every cluster that has two, and so on. With more clusters a batch takes those of which most rows are
    left. Batches so get smaller; one with fewer than ``min_size`` rows ends the epoch, so that rows of large clusters
    are left out.

    Args:
        cluster_ids: cluster of each row ``[N]``, in 0..N - 1; numbers may be missing.
        batch_size: B >= 1.
        min_size: of a batch, from 1 to B.
        shuffle: draw the order of rows inside clusters; else it is that of the data.
        fill: fill small batches from the clusters with most rows left, which breaks the rule and uses every row.
        generator: None is torch's own.

    Returns:
        Row numbers of each batch. No row comes twice.

    Raises:
        ValueError: a cluster out of range, sizes out of range.

    Example:
        >>> clusters = torch.tensor([0, 0, 0, 1, 1, 2])
        >>> guided_batches(clusters, 3, shuffle=False)
        [tensor([0, 3, 5]), tensor([1, 4])]

    Source: G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via Pseudo Labelling,
    arXiv:2009.12007.
    """
    check_number("batch_size", batch_size, low=1, integer=True)
    ids = _check_clusters(cluster_ids, batch_size, min_size, shuffle, fill)
    if not len(ids):
        return []
    return _rows(ids, _plan(torch.bincount(ids).numpy(), batch_size, min_size, fill), generator, shuffle)


class GuidedBatchSampler(EpochSampler):
    r"""Batches of at most one row of a cluster, epoch after epoch; see :func:`guided_batches`.

    A row of a cluster of n comes with probability m / n in an epoch, m being the batches in which the cluster has a
    row; reshuffling gives every row its turn over epochs. Over several ranks the rule is that of their joint batch.

    Args:
        cluster_ids: cluster of each row ``[N]``, for example of :func:`cluster_labels`.
        batch_size: rows of a step on one rank.
        shuffle, min_size, fill: as of :func:`guided_batches`; ``min_size`` counts the rows of all ranks.
        **options: ``seed``, ``drop_last``, ``num_replicas``, ``rank``; see
            :class:`~steepest.core.sampler.EpochSampler`.

    Example:
        >>> sampler = GuidedBatchSampler(torch.tensor([0, 0, 0, 1, 1, 2]), 3)
        >>> len(sampler), [len(batch) for batch in sampler]
        (2, [3, 2])

    Source: G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via Pseudo Labelling,
    arXiv:2009.12007.
    """

    name = "guided"
    exact = False

    def __init__(
        self,
        cluster_ids: I[Tensor, " samples"],
        batch_size: int,
        shuffle: bool = True,
        min_size: int = 2,
        fill: bool = False,
        **options: Any,
    ) -> None:
        check_tensor("cluster_ids", cluster_ids, ndim=1, floating=False)
        super().__init__(len(cluster_ids), batch_size, **options)
        ids = _check_clusters(cluster_ids, self.joint_size, min_size, shuffle, fill)
        self.shuffle, self.min_size, self.fill = shuffle, min_size, fill
        self._ids = ids
        self._clusters = _plan(torch.bincount(ids).numpy(), self.joint_size, min_size, fill)

    def order(self, epoch: int, generator: torch.Generator) -> list[Tensor]:
        """Rows of the clusters of each batch."""
        return _rows(self._ids, self._clusters, generator, self.shuffle)

    def times(self, epoch: int) -> Tensor:
        """Expected counts of an epoch ``[N]``: 0 or 1 where the order is that of the data."""
        least = self.joint_size if self.drop_last else self.num_replicas
        batches = [clusters for clusters in self._clusters if len(clusters) >= least]
        if not self.shuffle:
            rows = _rows(self._ids, batches, None, False)
            return torch.bincount(torch.cat(rows) if rows else self._ids[:0], minlength=self.num_samples).double()
        sizes = torch.bincount(self._ids)
        clusters = np.concatenate(batches) if batches else np.zeros(0, dtype=np.int64)
        taken = torch.bincount(torch.from_numpy(clusters), minlength=len(sizes)).double()
        return (taken / sizes.clamp_min(1))[self._ids]

    @classmethod
    def samples(cls, **options: Any) -> list[Self]:
        """Clusters of sizes that differ: as many as a batch has rows, more, and filled batches."""
        few, many = torch.tensor([0] * 5 + [1] * 9 + [3] * 7 + [2] * 9), torch.arange(23) % 9
        return [cls(few, 4, **options), cls(many, 4, min_size=1, **options), cls(few, 4, fill=True, **options)]
