"""Gradient collision: a source task made hard to learn again, by gradients that cancel each other out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...core.checks import check_flag, check_number, check_tensor, refuse, refuse_type
from ...core.closed_form import with_gradient
from ...core.curvature_batches import ParameterFilter, chosen_parameters
from ...core.frozen_pass import twice_differentiable
from ...core.method import Method, Plain
from ...core.objective import Batch, Objective
from ...core.reductions import widen
from ...core.sample_gradients import count_samples, rows_of
from ...core.torch_private import AnyBatchNorm
from ...core.transforms import without_autocast

Split = tuple[Tensor, Tensor]


def gradient_collision_loss(
    losses: Sequence[Tensor], params: Sequence[Tensor], normalize: bool = True, *, eps: float = 1e-8
) -> Tensor:
    r"""The mean agreement of the gradients of several losses, to be made small.

    .. math:: L = \frac{2}{M (M - 1)} \sum_{i < j} \cos(g_i, g_j)
        = \frac{\bigl\| \sum_i g_i / \|g_i\| \bigr\|^2 - M'}{M (M - 1)}, \qquad g_i = \nabla_\theta L_i

    over all parameters at once; M' counts the gradients that aren't 0. It lies in [-1 / (M - 1), 1], and is least where
    the unit gradients sum to 0: a step against one loss then undoes one against another. Its gradient costs one product
    of a Hessian and a vector for each loss, in one backward pass; it has no second derivatives.

    Gradients of about one length cancel out at a stationary point of the mean loss as well, be it a minimum: from
    weights that know the task the nearest way down may lead there, and forgets nothing.

    The form (cosine or inner product, how many chunks) is read from the publication's description of the mechanism.

    Args:
        losses: M >= 2 scalars, each with a graph: the mean losses of chunks of a batch. Their graphs are kept.
        params: tensors with gradients that losses depend on; a loss that doesn't depend on one has there a gradient
            of 0.
        normalize: False takes inner products in place of cosines.
        eps: a gradient that is not longer counts as 0: its cosines are 0, and have no gradient. > 0.

    Returns:
        A scalar in float32 or wider. It has no graph where gradients don't depend on ``params``.

    Raises:
        ValueError: fewer than two losses, a loss that is no scalar or has no graph, no parameters, one without a
            gradient.
        TypeError: not tensors.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> gradient_collision_loss([row @ w for row in rows], [w])
        tensor(0.4714)
        >>> gradient_collision_loss([row @ w for row in rows], [w], normalize=False)
        tensor(1.)

    Source: Disposable Transfer Learning for Selective Source Task Unlearning, arXiv:2308.09971.
    """
    check_flag("normalize", normalize)
    check_number("eps", eps, low=0.0, open_low=True)
    losses, params = list(losses), list(params)
    if len(losses) < 2:
        refuse("losses", "two or more", len(losses))
    for loss in losses:
        check_tensor("losses", loss, ndim=0, floating=True)
        if not loss.requires_grad:
            refuse("losses", "scalars with a graph", loss)
    for p in params:
        check_tensor("params", p, floating=True)
    if not params or not all(p.requires_grad for p in params):
        refuse("params", "tensors that need gradients", [p.requires_grad for p in params])
    pieces = []
    with without_autocast(losses[0]):  # it is for passes forward
        for loss in losses:
            slopes = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True, materialize_grads=True)
            pieces += [widen(slope).flatten() for slope in slopes]
        return _agreement(torch.cat(pieces).view(len(losses), -1), bool(normalize), float(eps))


def _agreement(gradients: F[Tensor, "losses numbers"], normalize: bool, eps: float) -> Tensor:
    """The mean cosine or inner product of pairs of rows, by the square of a sum."""
    rows = gradients.detach()
    count = len(rows)
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if normalize:
        zero = lengths <= eps  # a comparison that NaN does not pass
        scales = torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, lengths))
        own = count - zero.sum()
    else:
        scales = torch.ones_like(lengths)
        own = lengths.square().sum()
    total = scales @ rows
    pairs = count * (count - 1)

    def slopes() -> tuple[Tensor]:
        if normalize:  # what of the sum is at right angles to each unit row, by its length
            along = -(rows @ total) * scales.pow(3)
        else:
            along = torch.full_like(scales, -1.0)
        slope = rows * (along * (2 / pairs)).unsqueeze(1)
        return (slope.addr_(scales * (2 / pairs), total),)

    return with_gradient((total.dot(total) - own) / pairs, (gradients,), slopes, "gradient collision")


class GradientCollisionLoss(Method):
    r"""Unlearn a source task by gradient collision over chunks of its batches; see :func:`gradient_collision_loss`.

    .. math:: L = \lambda L_{gc}(B_1, \dots, B_M) + L_{retain}

    A step takes a batch of the source task and cuts it into chunks, one after the other. The loss of a chunk is the
    objective at the model's outputs. Batch normalisation uses its running averages, so that chunks don't share
    statistics; attention runs in its plain form, which has second derivatives.

    Args:
        chunks: M >= 2; a batch has at least as many rows.
        lam: :math:`\lambda` > 0.
        normalize: False takes inner products in place of cosines.
        params: which parameters the gradients are in: a rule ``(name, tensor) -> bool``, names, or all that need
            gradients; for example those of the extractor that tasks share.
        retain: ``retain(model) -> scalar``, called once a step: the loss of the target task, which keeps what is to
            stay. None: collision alone, which keeps nothing.

    Example:
        >>> target = torch.tensor([0, 1, 2, 0])
        >>> model, batch = nn.Linear(2, 3), Batch(torch.ones(4, 2), target)
        >>> from steepest.losses import CrossEntropyLoss
        >>> GradientCollisionLoss(chunks=2, lam=0.5).loss(model, batch, CrossEntropyLoss()).shape
        torch.Size([])

    Source: Disposable Transfer Learning for Selective Source Task Unlearning, arXiv:2308.09971.
    """

    name = "gradient_collision"

    def __init__(
        self,
        chunks: int = 4,
        *,
        lam: float = 1.0,
        normalize: bool = True,
        params: ParameterFilter = None,
        retain: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_number("chunks", chunks, low=2, integer=True)
        check_number("lam", lam, low=0.0, open_low=True)
        check_flag("normalize", normalize)
        if retain is not None and not callable(retain):
            refuse_type("retain", "a function of the model", retain)
        self.chunks, self.lam, self.normalize = chunks, lam, normalize
        self.params, self.retain = params, retain
        self.terms: dict[str, Tensor] = {}

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """The loss to go down at a batch of the source task, a scalar; ``terms`` holds its two parts."""
        own = list(chosen_parameters(model, self.params).values())
        with twice_differentiable(), _running_averages(model):
            losses = [Plain().loss(model, chunk, objective) for chunk in _cut(batch, self.chunks)]
        total = collision = gradient_collision_loss(losses, own, self.normalize)
        if self.lam != 1.0:
            total = self.lam * collision
        self.terms = {"collision": collision.detach()}
        if self.retain is not None:
            retained = self.retain(model)
            self.terms["retain"] = retained.detach()
            total = total + retained
        return total

    @classmethod
    def instances(cls) -> list[GradientCollisionLoss]:
        return [
            cls(),
            cls(3, lam=0.5, normalize=False, retain=lambda model: next(model.parameters()).square().sum()),
            cls(2, params=lambda name, _: name.endswith("weight")),
        ]


def _cut(batch: Batch, chunks: int) -> list[Batch]:
    """A batch as chunks of as many rows, or one fewer, in order."""
    rows = count_samples(batch.inputs, batch.target)
    if rows < chunks:
        refuse("batch", f"at least {chunks} rows, one a chunk", rows)
    ends = [rows * number // chunks for number in range(chunks + 1)]
    return [
        Batch(
            rows_of(batch.inputs, place),
            batch.target[place],
            None if batch.index is None else batch.index[place],
            None if batch.weight is None else batch.weight[place],
            {name: rows_of(value, place) for name, value in batch.extra.items()},
        )
        for place in map(slice, ends, ends[1:])
    ]


@contextmanager
def _running_averages(model: nn.Module) -> Iterator[None]:
    """Inside the block batch normalisation is in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, AnyBatchNorm) and module.training]
    try:
        for norm in norms:
            norm.training = False
        yield
    finally:
        for norm in norms:
            norm.training = True


def piggyback_accuracy(
    extractor: nn.Module,
    make_head: Callable[[], nn.Module],
    train: Split,
    test: Split,
    steps: int = 60,
    lr: float = 0.05,
) -> float:
    """How well a task is learned from little, on top of an extractor: the accuracy of piggyback learning.

    A copy of the extractor and a fresh head are trained by gradient descent on the cross-entropy of all of ``train`` at
    once. Low is good for an extractor that was to forget; random weights give the reference. The extractor itself,
    its modes and its gradients stay as they are.

    Args:
        extractor: inputs ``[N, ...]`` to features ``[N, D]``; all parameters of the copy are trained, frozen ones too.
        make_head: gives a new head ``[N, D] -> [N, C]``; its random numbers are torch's.
        train: inputs and class indices ``[N]``: a small share of the source task's data, or of a new task's.
        test: inputs and class indices.
        steps: >= 1.
        lr: > 0.

    Returns:
        The share of right answers on ``test``, in evaluation mode.

    Raises:
        ValueError: numbers outside their ranges, labels of another number than inputs, no rows.

    Example:
        >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> piggyback_accuracy(nn.Identity(), lambda: nn.Linear(1, 2), (x, y), (2 * x, y))
        1.0

    Source: Disposable Transfer Learning for Selective Source Task Unlearning, arXiv:2308.09971.
    """
    check_number("steps", steps, low=1, integer=True)
    check_number("lr", lr, low=0.0, open_low=True)
    for name, (inputs, labels) in (("train", train), ("test", test)):
        check_tensor(name, inputs)
        check_tensor(name, labels, ndim=1, floating=False)
        if len(inputs) != len(labels) or not len(labels):
            refuse(name, "inputs and labels of equally many rows, at least one", (len(inputs), len(labels)))
    model = nn.Sequential(copy.deepcopy(extractor), make_head()).train().requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(model(train[0]), train[1]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(test[0]).argmax(-1) == test[1]
    return float(right.double().mean())
