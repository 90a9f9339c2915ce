"""Feature norm and direction: a student's features point along the teacher's class means and are large."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_range, check_tensor, refuse, values_visible
from ...core.loss import Sample
from ...core.objective import Penalty
from ...core.reductions import reduce, widen
from ...core.teacher_cache import mean_features

FORMS = ("norm_and_direction", "direction", "norm")


def class_means(
    model: nn.Module, loader: Tensor | Iterable[Any], num_classes: int, *, head: str | None = "head"
) -> F[Tensor, "classes features"]:
    r"""The mean feature of each class, of a teacher in evaluation mode without gradients.

    .. math:: m_c = \frac1{n_c} \sum_{i:\, y_i = c} t_i

    The model, its modes and all random states are left as they were.

    Args:
        model: the teacher, from a batch of inputs to outputs.
        loader: batches that begin with inputs and class labels, the same at each pass.
        num_classes: C.
        head: name of the submodule that the features go into (its inputs, flattened, are the features); None: the
            model's own outputs are.

    Returns:
        ``[C, d]`` in float32.

    Raises:
        ValueError: a class without rows, labels outside 0..C-1, a head with another number of classes, no such
            submodule.

    Example:
        >>> inputs, labels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1])
        >>> class_means(nn.Identity(), [(inputs, labels)], 2, head=None)
        tensor([[2., 0.],
                [0., 2.]])
    """
    return mean_features(model, loader, num_classes, head=head)


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1; those of length 0 become NaN."""
    rows = rows / rows.abs().amax(-1, keepdim=True)  # so that no square is 0 or infinite
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return unit


def _refuse_absent(means: Tensor) -> None:
    """Refuse a mean of length 0, which a class without rows has."""
    if means.numel() and values_visible(means) and bool((means == 0).all(-1).any()):
        absent = torch.nonzero((means == 0).all(-1)).flatten().tolist()
        refuse("class_means", "a mean other than zero for every class", f"zeros in rows {absent}")


def nd_loss(
    student_feat: F[Tensor, "batch features"],
    teacher_feat: F[Tensor, "batch teacher"],
    class_means: F[Tensor, "classes features"],
    labels: I[Tensor, " batch"],
    *,
    form: str = "norm_and_direction",
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Loss of a student's feature s against the teacher's feature t and the mean m of the teacher's class.

    .. math:: \ell = 1 - \frac{s \cdot e_y}{\max(|s|, |t|)}, \qquad e_c = m_c / |m_c|

    It lies in [0, 2]. While s is not longer than t it is linear in s: its gradient, -e_y / |t|, makes s longer and
    turns it to the class mean. Beyond, it is 1 - cos(s, e_y) and has no say in the length. Two forms alone: "direction"
    is 1 - cos(s, e_y), "norm" is max(|t| - |s|, 0) / |t|.

    Args:
        student_feat: s ``[B, d]``, what goes into the classifier, after a linear map if the teacher is wider.
        teacher_feat: t ``[B, e]``, of which only the length counts; no gradient flows into it.
        class_means: m ``[C, d]``, of :func:`class_means`, of any length above 0; no gradient flows into them.
        labels: y ``[B]`` in 0..C-1.
        form: "norm_and_direction", "direction" or "norm".
        weight: sample weights ``[B]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider; 1 where s and t are both zero.

    Raises:
        ValueError: wrong shapes, a label outside the classes, a class mean of zero.

    Example:
        >>> s, t, means = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
        >>> nd_loss(s, t, means, torch.tensor([0]))
        tensor(0.6000)

    Source: Improving Knowledge Distillation via Regularizing Feature Norm and Direction, arXiv:2305.17007.
    """
    check_tensor("student_feat", student_feat, ndim=2, floating=True)
    check_tensor("class_means", class_means, floating=True, shape=(None, student_feat.shape[1]))
    _check_rows({"teacher_feat": teacher_feat, "labels": labels}, len(student_feat), len(class_means))
    check_choice("form", form, FORMS)
    directions = None
    if form != "norm":
        means = class_means.detach()[labels.long()]
        _refuse_absent(means)
        directions = _unit(widen(means))
    return reduce(_losses(student_feat, teacher_feat, directions, form), reduction, weight)


def _check_rows(named: dict[str, Tensor], rows: int, classes: int) -> None:
    """Check features of a teacher and labels, under the names that they have for a caller."""
    (of_teacher, features), (of_labels, labels) = named.items()
    check_tensor(of_teacher, features, floating=True, shape=(rows, None))
    check_tensor(of_labels, labels, floating=False, shape=(rows,))
    check_range(of_labels, labels, 0, classes - 1)


def _losses(student_feat: Tensor, teacher_feat: Tensor, directions: Tensor | None, form: str) -> Tensor:
    """Losses ``[B]`` of features and directions ``[B, d]`` of length 1, which "norm" has no use for."""
    s = widen(student_feat)
    s_norm = torch.linalg.vector_norm(s, dim=-1)
    t_norm = s_norm if form == "direction" else torch.linalg.vector_norm(teacher_feat.detach().to(s), dim=-1)
    if directions is None:
        return torch.relu(t_norm - s_norm) / torch.where(t_norm == 0, 1.0, t_norm)
    length = s_norm if form == "direction" else torch.maximum(s_norm, t_norm)
    # nothing points anywhere: no loss of direction, and no slope
    losses: Tensor = 1 - torch.linalg.vecdot(s, directions.to(s)) / torch.where(length == 0, torch.inf, length)
    return losses


class NDLoss(Penalty):
    """Norm and direction of a student's features, as a term beside any distillation loss; see :func:`nd_loss`.

    With ``WithPenalty(DistillationLoss(), NDLoss(means), weight=2.0)`` the batch brings the teacher's logits as
    ``teacher`` and its features as ``teacher_features``.

    Args:
        class_means: of the teacher ``[C, d]``; see :func:`class_means`. Kept as directions, in a buffer.
        student_dim: width of the student's features. If it is not d, a linear map to d, learned with the student, comes
            before the loss; None is d.
        form: "norm_and_direction", "direction" or "norm".

    Example:
        >>> loss = NDLoss(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
        >>> loss(torch.tensor([[1.0, 2.0]]), torch.tensor([0]), teacher_features=torch.tensor([[3.0, 4.0]]))
        tensor(0.6000)
    """

    name = "nd_loss"
    wants = ("features", "target", "teacher_features")

    directions: Tensor

    def __init__(
        self,
        class_means: F[Tensor, "classes features"],
        student_dim: int | None = None,
        form: str = "norm_and_direction",
    ) -> None:
        super().__init__()
        check_tensor("class_means", class_means, ndim=2, floating=True)
        _refuse_absent(class_means.detach())
        check_choice("form", form, FORMS)
        width = class_means.shape[1]
        if student_dim is not None:
            check_number("student_dim", student_dim, low=1, integer=True)
        self.form = form
        own = student_dim is None or student_dim == width
        self.projection = nn.Identity() if own else nn.Linear(int(student_dim or 0), width)
        self.register_buffer("directions", _unit(widen(class_means.detach())))

    def forward(
        self,
        features: F[Tensor, "batch student"],
        target: I[Tensor, " batch"],
        teacher_features: F[Tensor, "batch teacher"],
    ) -> Tensor:
        """The loss of the student's features, class indices and the teacher's features."""
        check_tensor("features", features, ndim=2, floating=True)
        if isinstance(self.projection, nn.Linear):
            check_tensor("features", features, shape=(None, self.projection.in_features))
            features = self.projection(features.to(self.projection.weight.dtype))
        check_tensor("features", features, shape=(None, self.directions.shape[1]))
        _check_rows({"teacher_features": teacher_features, "target": target}, len(features), len(self.directions))
        directions = None if self.form == "norm" else self.directions.index_select(0, target.long())
        return _losses(features, teacher_features, directions, self.form).mean()

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Each form, on features of the teacher's width and on narrower ones; some shorter than the teacher's."""
        cases: list[tuple[Self, Sample]] = []
        for form in FORMS:
            for student_dim in (5, 3):
                draws = [torch.randn(size, 5, generator=generator, dtype=torch.float64) for size in (4, 7)]
                features = torch.randn(7, student_dim, generator=generator, dtype=torch.float64)
                wide = torch.float64 if dtype == torch.float64 else torch.float32
                loss = cls(draws[0], student_dim, form).to(device, wide)
                tensors = {
                    "features": features.to(device, dtype),
                    "target": (torch.arange(7) % 4).to(device),
                    "teacher_features": draws[1].to(device, dtype),
                }
                cases.append((loss, ((), tensors)))
        return cases
