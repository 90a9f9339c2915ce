"""Contrastive learning of items from their features: two views that mask complementary features must embed close."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.arguments import Arguments
from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.cosine import unit_rows
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.search import Float
from ...kernels.pair_log_partition import pair_log_partition

DRAWS = ("item", "batch")


def feature_mutual_information(codes: I[Tensor, "items features"]) -> F[Tensor, "features features"]:
    r"""Mutual information of each two categorical features, in nats.

    .. math:: I_{ij} = \sum_{v, w} P(v, w) \log \frac{P(v, w)}{P_i(v) P_j(w)}

    with the frequencies over all items. The diagonal has the entropies. Continuous features are to be binned before.

    Args:
        codes: value of each feature of each item ``[N, k]``, N >= 1, any integers.

    Returns:
        ``[k, k]``, float64, symmetric and >= 0.

    Raises:
        ValueError: another shape, no item.

    Example:
        >>> feature_mutual_information(torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1], [2, 1]]))
        tensor([[1.0549, 0.6730],
                [0.6730, 0.6730]], dtype=torch.float64)

    Source: Self-supervised Learning for Large-scale Item Recommendations, arXiv:2007.12865.
    """
    check_tensor("codes", codes, ndim=2, floating=False)
    if not len(codes):
        refuse("codes", "one item and more", codes)
    places = [column.unique(return_inverse=True)[1] for column in codes.long().unbind(1)]
    information = torch.zeros(codes.shape[1], codes.shape[1], dtype=torch.float64, device=codes.device)
    entropies = [_entropy(place) for place in places]
    for i, place in enumerate(places):
        information[i, i] = entropies[i]
        for j in range(i):
            joint = _entropy(place * (int(places[j].max()) + 1) + places[j])
            information[i, j] = information[j, i] = (entropies[i] + entropies[j] - joint).clamp_min(0.0)
    return information


def _entropy(values: Tensor) -> Tensor:
    share = values.unique(return_counts=True)[1].double() / len(values)
    entropy: Tensor = -(share * share.log()).sum()
    return entropy


class _Masking(Arguments):
    """Which features each of two views hides."""

    features: int
    per: str

    def _ranks(self, rows: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """For each draw the rank of each feature, in the order in which features are hidden ``[rows, k]``."""
        raise NotImplementedError

    def __call__(
        self, codes: I[Tensor, "batch features"], generator: torch.Generator | None = None
    ) -> tuple[Bool[Tensor, "batch features"], Bool[Tensor, "batch features"]]:
        """Masks of two views, true where a feature is hidden: half of them (rounded down) in the first, the rest in
        the second.

        Args:
            codes: features of items ``[B, k]``; their values are not read.
            generator: None is torch's own.
        """
        check_tensor("codes", codes, shape=(None, self.features))
        rows = len(codes) if self.per == "item" else 1
        first = self._ranks(rows, generator, codes.device) < self.features // 2
        first = first.expand(len(codes), -1)
        return first, ~first


def _check_features(argument: str, features: int, per: str, shown: object) -> None:
    if features < 2:
        refuse(argument, "two features and more", shown)
    check_choice("per", per, DRAWS)


class RandomFeatureMasking(_Masking):
    """A random half of the features is hidden in one view, the others in the other view.

    Args:
        features: k >= 2.
        per: "item" (each draws its own half) or "batch".

    Example:
        >>> first, second = RandomFeatureMasking(5)(torch.zeros(3, 5, dtype=torch.int64))
        >>> first.sum(1).tolist(), second.sum(1).tolist()
        ([2, 2, 2], [3, 3, 3])

    Source: Self-supervised Learning for Large-scale Item Recommendations, arXiv:2007.12865.
    """

    def __init__(self, features: int, per: str = "item") -> None:
        check_number("features", features, integer=True)
        _check_features("features", features, per, features)
        self.features, self.per = features, per

    def _ranks(self, rows: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return torch.rand(rows, self.features, generator=generator).argsort(1).to(device)


class CorrelatedFeatureMasking(_Masking):
    """A feature that is drawn uniformly, and those of the highest mutual information with it, are hidden in one view.

    The other view hides the others. Of equal information the feature with the lower number comes first.

    Args:
        information: mutual information ``[k, k]``, k >= 2, of :func:`feature_mutual_information`; its diagonal is not
            read.
        per: "item" (each draws its own feature) or "batch".

    Example:
        >>> pairs = torch.tensor([[0.0, 0.9, 0.0, 0.1], [0.9, 0.0, 0.1, 0.0], [0.0, 0.1, 0.0, 0.8], [0.1, 0.0, 0.8, 0]])
        >>> first, second = CorrelatedFeatureMasking(pairs)(torch.zeros(1, 4, dtype=torch.int64))
        >>> first[0].tolist() in ([True, True, False, False], [False, False, True, True])
        True

    Source: Self-supervised Learning for Large-scale Item Recommendations, arXiv:2007.12865.
    """

    def __init__(self, information: F[Tensor, "features features"], per: str = "item") -> None:
        check_tensor("information", information, ndim=2, floating=True)
        features = information.shape[0]
        check_tensor("information", information, shape=(features, features))
        _check_features("information", features, per, information)
        if not bool(information.isfinite().all()):
            refuse("information", "finite numbers", "others")
        self.features, self.per = features, per
        own = torch.eye(features, dtype=torch.bool, device=information.device)
        order = information.detach().masked_fill(own, torch.inf).argsort(dim=1, descending=True, stable=True)
        self._places: Tensor = order.argsort(dim=1)

    def _ranks(self, rows: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        seeds = torch.randint(self.features, (rows,), generator=generator)
        return self._places.to(device)[seeds.to(device)]


def mask_features(
    embedded: F[Tensor, "batch features width"],
    default: F[Tensor, "features width"],
    mask: Bool[Tensor, "batch features"],
) -> F[Tensor, "batch features width"]:
    """Embeddings of features with the learned default in place of those that are hidden.

    A hidden feature has its gradient in the default alone.

    Args:
        embedded: ``[B, k, d]``.
        default: of each feature ``[k, d]``, a parameter of the tower.
        mask: true where a feature is hidden ``[B, k]``.

    Returns:
        ``[B, k, d]``.

    Raises:
        ValueError: shapes that differ.
        TypeError: a mask that is not boolean.

    Example:
        >>> mask_features(torch.ones(1, 2, 1), torch.zeros(2, 1), torch.tensor([[True, False]]))[0].flatten()
        tensor([0., 1.])

    Source: Self-supervised Learning for Large-scale Item Recommendations, arXiv:2007.12865.
    """
    check_tensor("embedded", embedded, ndim=3, floating=True)
    check_tensor("default", default, floating=True, shape=tuple(embedded.shape[1:]))
    _check_boolean("mask", mask, tuple(embedded.shape[:2]))
    return torch.where(mask.unsqueeze(-1), default, embedded)


def drop_values(
    present: Bool[Tensor, "*shape"], p: float = 0.2, generator: torch.Generator | None = None
) -> Bool[Tensor, "*shape"]:
    """Which values of features with several values stay, each dropped with probability p.

    Args:
        present: true where a value is ``[..., values]``.
        p: in [0, 1); 0.1 to 0.3 in the publication.
        generator: None is torch's own.

    Returns:
        A boolean tensor of that shape, true in part of what was.

    Raises:
        ValueError: a probability out of range.
        TypeError: a tensor that is not boolean.

    Example:
        >>> drop_values(torch.tensor([True, False, True]), 0.0)
        tensor([ True, False,  True])

    Source: Self-supervised Learning for Large-scale Item Recommendations, arXiv:2007.12865.
    """
    _check_boolean("present", present, None)
    check_number("p", p, low=0.0, high=1.0, open_high=True)
    draws = torch.rand(present.shape, generator=generator).to(present.device)
    return present & (draws >= p)


def _check_boolean(argument: str, value: Tensor, shape: tuple[int, ...] | None) -> None:
    check_tensor(argument, value, shape=shape)
    if value.dtype != torch.bool:
        refuse_type(argument, "a boolean tensor", value)


class ItemContrastiveLoss(PairLoss):
    r"""Two masked views of items: the first finds its own second among those of the batch.

    .. math:: L = -\frac{1}{N} \sum_i \log \frac{e^{s(z_i, z'_i) / \tau}}{\sum_j e^{s(z_i, z'_j) / \tau}}

    with cosines s. It is not symmetric: only first views are anchors. Labels are not read; ``ids`` marks items that
    occur twice, which are no negatives of each other. Items are to be drawn uniformly from the catalogue, not from
    clicks, and the loss is added to that of the two towers with a weight of 0.1 to 1.

    Args:
        temperature: tau > 0.

    Example:
        >>> z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]]])
        >>> ItemContrastiveLoss(temperature=1.0)(z, torch.arange(2))
        tensor(0.4791)

    Source: Self-supervised Learning for Large-scale Item Recommendations, arXiv:2007.12865.
    """

    name = "item_contrastive"
    form = "views"
    views = 2
    needs = ("ids",)
    search = {"temperature": Float(0.05, 1.0, log=True)}
    alternatives = {"temperature": 0.7}

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        check_number("temperature", temperature, low=0.0, open_low=True)
        self.temperature = temperature

    def batch_loss(self, outputs: Tensor, target: Tensor, *, ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of two views."""
        first, second = unit_rows(outputs)
        names = torch.arange(len(target), device=outputs.device) if ids is None else ids
        pairs = pair_log_partition(first, second, scale=1 / self.temperature, ids=names)
        assert pairs.log_p is not None
        return mean_of_counted(-pairs.log_p, torch.ones_like(target, dtype=torch.bool))
