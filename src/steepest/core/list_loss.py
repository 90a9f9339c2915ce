"""The contract of a loss of ranked lists: flat scores, their grades, and the query that each belongs to."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .checks import check_tensor
from .heads import ScalarHead
from .loss import Sample
from .objective import Objective, TaskInfo
from .query_lists import check_lists, has_order, lists_of, reduce_lists
from .search import Space


class ListLoss(Objective):
    r"""A loss of the scores of a query's documents, and its mean over the lists that count.

    A batch is flat: scores ``[N]``, grades ``[N]`` and ``query`` ``[N]``, equal for the documents of one list; lists
    are padded once, here. The function of a member takes padded lists ``[Q, n]`` and a mask. A list in which no two
    grades differ orders nothing: it is 0 and does not count, unless the member says ``uses_ties``. Where no list
    counts the loss is 0, with a graph. Of several ranks each has the mean over the lists of its own batch.

    Members give :meth:`list_losses`.

    Class attributes:
        uses_ties: whether a list of equal grades has a loss.
        shift_invariant: whether a constant added to all scores of a list changes nothing.
        alternatives: by name of a hyper-parameter, another value of it that changes the loss or its gradient.
    """

    tasks = ("ranking",)
    domain = "score"
    targets = ("real",)
    unit = "batch"
    needs = ("query",)
    uses_ties: ClassVar[bool] = False
    shift_invariant: ClassVar[bool] = True
    alternatives: ClassVar[dict[str, Any]] = {}
    search: ClassVar[dict[str, Space]] = {}

    def __init__(self) -> None:
        super().__init__("mean")

    def list_losses(self, scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
        """Losses ``[Q]`` of padded lists ``[Q, n]``: the member's function with ``reduction="none"``."""
        raise NotImplementedError

    def counts(self, grades: Tensor, mask: Tensor) -> Tensor:
        """Which lists ``[Q]`` the mean is over."""
        return mask.any(-1) if self.uses_ties else has_order(grades, mask)

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """One score a document."""
        return ScalarHead(feature_dim)

    def forward(  # type: ignore[override]
        self, outputs: Tensor, target: Tensor, *, query: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of scores ``[N]``, grades ``[N]`` >= 0 and queries ``[N]``."""
        self.check_call(outputs, target, weight)
        check_tensor("outputs", outputs, ndim=1)
        check_tensor("target", target, ndim=1)
        check_tensor("query", query, shape=tuple(outputs.shape), floating=False)
        lists = lists_of(query)
        scores, grades, mask = check_lists(lists.pad(outputs), lists.pad(target), lists.mask)
        return reduce_lists(self.list_losses(scores, grades, mask), self.counts(grades, mask))

    def predict(self, outputs: Tensor) -> Tensor:
        """The scores, by which documents are ranked."""
        return outputs

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """Hyper-parameters of further instances for the conformance suite."""
        return []

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Lists of four, two and three documents that are mixed in the batch, with all values of hyper-parameters."""
        query = torch.tensor([5, 2, 5, 9, 2, 5, 9, 9, 5])
        grades = torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, 1.0, 2.0, 1.0, 0.0])
        scores = torch.randn(len(query), generator=generator, dtype=torch.float64)
        sample = (scores.to(device, dtype), grades.to(device, dtype)), {"query": query.to(device)}
        return [(cls(**hyper), sample) for hyper in ({}, *cls.variants())]
