"""A gradient for each class, each brought to length 1: the minority's loss falls from the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor, nn

from ...core.aggregator import GramianAggregator
from ...core.balancer import as_losses
from ...core.checks import check_choice, check_number, check_range, check_tensor, refuse
from ...core.jacobian import add_to_gradients, jacobian_rows, leaves_of

CORRECTIONS = (None, "projection")


class PCNGD(GramianAggregator):
    r"""The sum of the classes' gradients at length 1, of all data; a gradient of zero adds nothing.

    .. math:: d = \sum_l \frac{g_l}{\|g_l\|}

    Of two classes no loss rises: :math:`g_0 \cdot d = \|g_0\| (1 + \cos) \ge 0`. A weight on a class changes nothing.
    Steps do not shrink as gradients do: let the rate fall.

    Example:
        >>> PCNGD()(torch.tensor([[9.0, 0.0], [-0.6, 0.8]]))
        tensor([0.4000, 0.8000])

    Source: A Theoretical Analysis of the Learning Dynamics under Class Imbalance, arXiv:2207.00391.
    """

    name = "pcngd"
    properties = frozenset({"in_span", "permutation_invariant"})

    def _weigh_cosines(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        return cosines.diagonal()  # 1, and 0 for a row of zeros


class PCNSGD(PCNGD):
    r"""The same of mini-batches, with a correction for classes whose direction is noisy.

    .. math::
        d = \sum_l \frac{g_l}{p_l \|g_l\|}, \qquad p_l = \frac{g_l}{\|g_l\|} \cdot \frac{\bar g_l}{\|\bar g_l\|}

    where g is a class's gradient in the batch and :math:`\bar g` that in all data, given by :meth:`set_reference`. A
    class with few samples in the batch has the smaller p. Without a correction p is 1.

    Args:
        correction: None or ``"projection"``.
        floor: what p is at least, in (0, 1]: where batch and data point apart, it may be 0 or less.

    Raises:
        ValueError: another correction; at a call, a projection without a reference.

    Example:
        >>> aggregator = PCNSGD("projection")
        >>> aggregator.set_reference(torch.tensor([[1.0, 1.0]]))
        >>> aggregator(torch.tensor([[2.0, 0.0]]))
        tensor([1.4142, 0.0000])

    Source: A Theoretical Analysis of the Learning Dynamics under Class Imbalance, arXiv:2207.00391.
    """

    name = "pcnsgd"
    reference: Tensor

    def __init__(self, correction: str | None = None, floor: float = 0.1) -> None:
        super().__init__()
        check_choice("correction", correction, CORRECTIONS)
        check_number("floor", floor, low=0.0, high=1.0, open_low=True)
        self.correction, self.floor = correction, floor
        self.register_buffer("reference", torch.zeros(0, 0))

    def set_reference(self, jacobian: F[Tensor, "classes n"]) -> None:
        """The classes' gradients in all data, for the calls that follow; only their directions count."""
        check_tensor("jacobian", jacobian, ndim=2, floating=True)
        self.reference = jacobian.detach().clone()

    def projections(self, jacobian: F[Tensor, "classes n"]) -> F[Tensor, " classes"]:
        """p of each class in float64, not below the floor; 1 where the batch or the data have no gradient."""
        if self.reference.shape != jacobian.shape:
            refuse("jacobian", f"the shape of the reference, {tuple(self.reference.shape)}", jacobian)
        own, whole = _at_length_1(jacobian), _at_length_1(self.reference)
        there = own.any(1) & whole.any(1)
        return torch.where(there, (own * whole).sum(1).clamp_min(self.floor), 1.0)

    def reset(self) -> None:
        """Without a reference again."""
        self.reference = self.reference.new_zeros(0, 0)

    def _aggregate(self, jacobian: Tensor) -> Tensor:
        if self.correction is None:
            return super()._aggregate(jacobian)
        if not self.reference.numel():
            refuse("correction", "a reference for the projection, by set_reference", None)
        return ((1 / self.projections(jacobian)) @ _at_length_1(jacobian)).to(jacobian.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (saved := state_dict.get(f"{prefix}reference")) is not None:
            self.reference = self.reference.new_zeros(saved.shape, dtype=saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


class PerClassNormalized:
    """An optimizer whose step goes along the classes' gradients at length 1.

    One forward pass and a backward pass for each class. Where classes meet in batch normalisation, their gradients are
    not the classes' alone.

    Args:
        optimizer: any torch optimizer over the parameters; its groups are this one's.
        num_classes: C.
        correction: None or ``"projection"``, as of :class:`PCNSGD`; the latter needs :meth:`set_reference`.
        floor: what a projection is at least.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> normalized = PerClassNormalized(torch.optim.SGD([w], lr=0.5), num_classes=2)
        >>> normalized.step(w @ torch.tensor([[9.0, 9.0, -0.6], [0.0, 0.0, 0.8]]), torch.tensor([0, 0, 1]))
        >>> w.data
        tensor([0.8000, 0.6000])

    Source: A Theoretical Analysis of the Learning Dynamics under Class Imbalance, arXiv:2207.00391.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        num_classes: int,
        correction: str | None = None,
        floor: float = 0.1,
    ) -> None:
        check_number("num_classes", num_classes, low=1, integer=True)
        self.optimizer, self.num_classes = optimizer, num_classes
        self.aggregator = PCNSGD(correction, floor)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.optimizer.param_groups

    def step(self, losses: F[Tensor, " samples"], target: Int[Tensor, " samples"]) -> None:
        """Zero the gradients, run backward for each class, take one step.

        Args:
            losses: of each sample (``reduction="none"``), with their graph.
            target: class of each.
        """
        self.optimizer.zero_grad(set_to_none=True)
        by_class, parameters = _class_losses(losses, target, self.num_classes), self._parameters()
        used = {id(leaf) for leaf in leaves_of([by_class])}
        direction = self.aggregator(jacobian_rows(by_class, parameters))
        pieces = direction.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces):
            if id(parameter) in used:  # others have no gradient, as after any backward
                add_to_gradients(piece, [parameter])
        self.optimizer.step()

    def set_reference(self, losses: F[Tensor, " all"], target: Int[Tensor, " all"]) -> None:
        """Take the gradients in all data at the present parameters, for the projection."""
        self.aggregator.set_reference(
            jacobian_rows(_class_losses(losses, target, self.num_classes), self._parameters())
        )

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer and of the aggregator."""
        return {"optimizer": self.optimizer.state_dict(), "aggregator": dict(self.aggregator.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.aggregator.load_state_dict(state_dict["aggregator"])

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]


def per_class_gradients(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Int[Tensor, " samples"],
    num_classes: int,
) -> F[Tensor, "classes n"]:
    r"""The gradient of each class's share of the mean loss, :math:`\frac1n \sum_{i: y_i = l} \ell_i`; they sum to that.

    One forward pass and a backward pass for each class. ``.grad`` stays as it is.

    Args:
        model: from inputs to outputs.
        loss_fn: of outputs and ``y`` the loss of each sample, ``[n]``.
        x: inputs.
        y: class of each sample, ``0 .. num_classes - 1``.
        num_classes: C.

    Returns:
        ``[C, D]``, D numbers of all parameters that require a gradient, in their order; 0 for a class without samples.

    Raises:
        ValueError: a class outside, losses that are not one a sample.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 1])
        >>> per_class_gradients(model, lambda outputs, y: outputs.squeeze(1), x, y, num_classes=3)
        tensor([[0.3333],
                [1.6667],
                [0.0000]])

    Source: A Theoretical Analysis of the Learning Dynamics under Class Imbalance, arXiv:2207.00391.
    """
    check_number("num_classes", num_classes, low=1, integer=True)
    parameters: Sequence[Tensor] = [p for p in model.parameters() if p.requires_grad]
    return jacobian_rows(_class_losses(loss_fn(model(x), y), y, num_classes), parameters)


def _class_losses(losses: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The share of each class in the mean loss, ``[C]``."""
    wide = as_losses(losses)
    check_tensor("target", target, floating=False, shape=tuple(wide.shape))
    check_range("target", target, 0, num_classes - 1)
    return wide.new_zeros(num_classes).index_add(0, target, wide) / len(wide)


def _at_length_1(jacobian: Tensor) -> Tensor:
    """Rows at length 1 in float64; rows of zeros stay."""
    wide = jacobian.double()
    top = wide.abs().amax(1, keepdim=True) if wide.shape[1] else wide.new_zeros(len(wide), 1)
    scaled = wide / torch.where(top == 0, 1.0, top)
    lengths = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(lengths == 0, 1.0, lengths)
