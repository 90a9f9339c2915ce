"""The contract of a loss of pairs: embeddings of a batch, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .checks import check_choice, check_flag, check_tensor, refuse, refuse_type
from .gather import Shares
from .loss import Sample
from .objective import Objective, TaskInfo

FORMS = ("labels", "views")


@dataclass
class _Group:
    """The ranks of a loss, which a copy of it shares."""

    group: Any

    def __deepcopy__(self, memo: Any) -> _Group:
        return self


class PairLoss(Objective):
    r"""A loss of a batch of embeddings, whose terms are pairs (triplets, lists) of its rows.

    Members give :meth:`batch_loss`. Embeddings come as they leave the model: who compares cosines normalises. A batch
    in which nothing is to be compared (no positive, one row, no row) gives 0 with a graph, not NaN.

    Of several ranks that train one model each sees its own batch, unless :meth:`over_ranks` joins them.

    Class attributes:
        form: "labels" (outputs ``[B, d]``, labels ``[B]``: rows of one label belong together) or "views" (outputs
            ``[views, B, d]``: the views of a row belong together, labels ``[B]`` are what the member makes of them).
        ranks: "gather" (over ranks value and averaged gradient are those of one process with the joined batch) or
            "local" (each rank its own batch, which the docstring says).
        needs: with "ids" the member takes ``ids=`` ``[B]``, equal for items that occur twice in a batch and are no
            negatives of each other; None is told from no ids.
        alternatives: by name of a hyper-parameter, another value of it that changes the loss or its gradient.
    """

    domain = "embedding"
    unit = "batch"
    tasks = ("retrieval",)
    form: ClassVar[str] = "labels"
    ranks = "gather"
    alternatives: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__("mean")
        check_choice("form", self.form, FORMS)
        self._group: _Group | None = None

    def over_ranks(self, group: Any = None, *, on: bool = True) -> Self:
        """Join the batches of the ranks of a group (None: of all) from now on; every rank calls the loss together.

        Gradients are made for ``DistributedDataParallel``, which averages them. Batches may have different sizes.

        Raises:
            TypeError: a loss whose ranks each have their own batch.
        """
        check_flag("on", on)
        if self.ranks != "gather":
            refuse_type("over_ranks", f"a loss of a joined batch ({self.name} is one of each rank's own)", self.ranks)
        self._group = _Group(group) if on else None
        return self

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """The features themselves."""
        return nn.Identity()

    def predict(self, outputs: Tensor) -> Tensor:
        """The embeddings themselves, which a retrieval compares."""
        return outputs

    def check_call(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Check embeddings of the member's form and integer labels of as many rows."""
        ndim = 2 if self.form == "labels" else 3
        check_tensor("outputs", outputs, ndim=ndim, floating=True)
        if ndim == 3 and outputs.shape[0] != self.views:
            refuse("outputs", f"shape ({self.views}, *, *), a row a view", outputs)
        check_tensor("target", target, floating=False, shape=(outputs.shape[ndim - 2],))
        if weight is not None:
            refuse_type("weight", f"None ({self.name} is a loss of the batch, not of samples)", weight)

    def batch_loss(self, outputs: Tensor, target: Tensor, **needs: Any) -> Tensor:
        """The loss of checked embeddings and labels, a scalar."""
        raise NotImplementedError

    def forward(self, outputs: Tensor, target: Tensor, *, weight: None = None, **needs: Any) -> Tensor:
        """The loss, a scalar in float32 or wider.

        Args:
            outputs: embeddings ``[B, d]``, or ``[views, B, d]``.
            target: labels ``[B]``.
            weight: None.
            needs: what the member's ``needs`` names, each ``[B, ...]``.
        """
        self.check_call(outputs, target, weight)
        for name, value in needs.items():
            if name not in self.needs:
                refuse_type("forward", ", ".join(self.needs) or "nothing beside outputs and target", name)
            if value is not None:
                check_tensor(name, value)
        if needs.get("ids") is not None:
            check_tensor("ids", needs["ids"], floating=False, shape=tuple(target.shape))
        if self._group is not None:
            outputs, target, needs = self._joined(outputs, target, needs)
        return self.batch_loss(outputs, target, **needs)

    def _joined(self, outputs: Tensor, target: Tensor, needs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The same of all ranks."""
        assert self._group is not None
        shares = Shares.of(len(target), self._group.group)
        views = self.form == "views"
        rows = shares.gather(outputs.transpose(0, 1) if views else outputs)
        joined = {
            name: shares.gather(t) if t is not None and t.shape[:1] == target.shape else t for name, t in needs.items()
        }
        return rows.transpose(0, 1) if views else rows, shares.joined(target), joined

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The defaults on a few rows, one of which has no positive, and two with one id where ids are taken."""
        info = TaskInfo("retrieval", num_samples=21, num_classes=3, class_counts=(9, 8, 4), feature_dim=6)
        target = torch.tensor([0, 1, 0, 1, 0, 2, 1] if cls.form == "labels" else [0, 1, 0, 1, 2])
        rows = len(target)
        shape = (rows, 6) if cls.form == "labels" else (cls.views, rows, 6)
        outputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        kwargs: dict[str, Any] = {}
        for need in cls.needs:
            if need == "ids":
                kwargs[need] = torch.tensor([*range(rows - 1), 0]).to(device)
            elif need == "index":
                kwargs[need] = torch.randperm(21, generator=generator)[:rows].to(device)
            else:
                refuse("needs", "samples() of its own for " + need, cls.__name__)
        return [(cls.from_task(info).to(device), ((outputs, target.to(device)), kwargs))]


def mean_of_counted(losses: Tensor, counts: Tensor) -> Tensor:
    """The mean of the losses that count; 0 with a graph where none does.

    Args:
        losses: ``[N]``; those that don't count may be anything that has a finite gradient where it is asked for 0.
        counts: boolean ``[N]``.

    >>> mean_of_counted(torch.tensor([1.0, float("inf")]), torch.tensor([True, False]))
    tensor(1.)
    """
    total = torch.where(counts, losses, 0.0).sum()
    return total / counts.sum().clamp_min(1)
