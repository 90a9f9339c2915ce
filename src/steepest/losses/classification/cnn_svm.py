"""Support vector machines as the last layer of a network: one-versus-rest hinge losses, and the published net."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_binary, check_choice, check_index, check_logits, check_number, check_tensor
from ...core.logpartition import class_mask
from ...core.objective import Objective
from ...core.reductions import reduce, widen
from ...core.rowwise import at, rowwise
from ...core.search import Choice
from ...nn.networks import Network
from ._cells import reduce_cells


def squared_hinge_loss(
    logits: F[Tensor, "batch classes"] | F[Tensor, " batch"],
    target: I[Tensor, " batch"],
    *,
    p: int = 2,
    C: float = 1.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The hinge loss of one linear machine a class against the rest, plain or squared.

    .. math:: \ell_{ik} = C \max(0,\; 1 - t_{ik} z_{ik})^p, \qquad t_{ik} = 1 \text{ if } y_i = k \text{ else } -1

    It is not the Crammer-Singer form of ``torch.nn.MultiMarginLoss``, which compares the classes with each other.

    Args:
        logits: z ``[N, K]``, K >= 2, or the scores ``[N]`` of one machine for two classes.
        target: class indices ``[N]`` in 0..K-1; for scores in {0, 1}, encoded as -1 and 1 inside.
        p: 2 for the squared hinge (L2-SVM), 1 for the plain one (L1-SVM).
        C: factor >= 0 against the penalty of the last layer, which is not part of this function.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"mean"`` or ``"sum"`` over all N K cells, ``"none"`` for the shape of ``logits``.

    Returns:
        The loss in float32 or wider; exactly 0, with no gradient, in cells with t z >= 1.

    Raises:
        ValueError: another p, a negative C, a class out of range, wrong shapes.

    Example:
        >>> z = torch.tensor([[2.0, -0.5, 0.3], [-0.2, 0.1, 0.4]])
        >>> squared_hinge_loss(z, torch.tensor([0, 1]))
        tensor(0.8917)

    Source: An Architecture Combining Convolutional Neural Network (CNN) and Support Vector Machine (SVM) for Image
    Classification, arXiv:1712.03541; Deep Learning using Linear Support Vector Machines, arXiv:1306.0239.
    """
    check_choice("p", p, (1, 2))
    check_number("C", C, low=0.0)
    check_tensor("logits", logits, ndim=(1, 2), floating=True)
    if logits.ndim == 1:
        check_tensor("target", target, floating=False)
        check_binary(target, logits)
        own = (target != 0).unsqueeze(-1)
    else:
        check_logits(logits, argument="logits")
        check_index(target, logits)
        own = class_mask(target, logits.shape[1])
    z = widen(logits).reshape(own.shape)
    lack = torch.relu(1 - torch.where(own, z, -z))
    cells = C * (lack.square() if p == 2 else lack)
    loss = reduce_cells(cells, reduction, weight)
    return loss.reshape(logits.shape) if reduction == "none" else loss


class OneVsRestHingeLoss(Objective):
    """The one-versus-rest hinge loss as a module; see :func:`squared_hinge_loss`.

    A sample's loss is the mean over its classes; two classes have one machine with scores ``[N]`` (``[N, 2]`` is taken
    too). The penalty on the last layer is left to the optimizer's weight decay; :class:`SVMHead` has it. ``C`` only
    scales the loss here.

    Args:
        p: 2 for the squared hinge, 1 for the plain one.
        C: factor, >= 0.
        reduction: ``"none"`` for ``[N]``, ``"mean"`` or ``"sum"`` over samples.

    Example:
        >>> z = torch.tensor([[2.0, -0.5, 0.3], [-0.2, 0.1, 0.4]])
        >>> OneVsRestHingeLoss(p=1)(z, torch.tensor([0, 1]))
        tensor(0.8167)
    """

    name = "one_vs_rest_hinge"
    tasks = ("binary", "multiclass")
    domain = "score"
    search = {"p": Choice((1, 2))}

    def __init__(self, p: int = 2, C: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_choice("p", p, (1, 2))
        check_number("C", C, low=0.0)
        self.p, self.C = p, C

    def forward(
        self,
        outputs: F[Tensor, "batch classes"] | F[Tensor, " batch"],
        target: I[Tensor, " batch"],
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of scores and class indices."""
        self.check_call(outputs, target, weight)
        if outputs.ndim != 2:
            return reduce(
                squared_hinge_loss(outputs, target, p=self.p, C=self.C, reduction="none"), self.reduction, weight
            )
        check_logits(outputs)
        check_index(target, outputs)
        y = target.long()

        def plain(z: Tensor) -> Tensor:
            return squared_hinge_loss(z, y, p=self.p, C=self.C, reduction="none").mean(-1)

        def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
            own, column = at(z, y[rows]), y[rows].unsqueeze(1)
            torch.add(z, 1.0, out=g)
            g.scatter_(1, column, 1.0 - own)
            g.clamp_min_(0.0)
            factor = self.C / z.shape[1]
            if self.p == 2:
                loss = factor * g.square().sum(1)
                g.mul_(2.0 * factor)
            else:
                loss = factor * g.sum(1)
                g.sign_().mul_(factor)
            g.scatter_(1, column, -at(g, y[rows]))
            return loss

        return reduce(rowwise(widen(outputs), plain, rule), self.reduction, weight)


class SVMHead(nn.Linear):
    r"""One linear support vector machine a class over the features of a network.

    .. math:: z = W h + b, \qquad L = C \cdot \mathrm{mean}_{ik} \max(0, 1 - t_{ik} z_{ik})^p + \tfrac12 \|W\|_F^2

    The penalty comes in once a step and the bias is free of it. With C = 1 and the mean it outweighs the hinge and the
    layer is strongly shrunk; C is to be tuned, or ``reduction="sum"`` taken, as in the machines of textbooks.

    Args:
        in_features: width d of the features.
        classes: K >= 2.
        C: factor of the hinge, >= 0.
        p: 2 for the squared hinge, 1 for the plain one.
        reduction: ``"mean"`` or ``"sum"`` over the cells of the hinge.

    Example:
        >>> head = SVMHead(4, 3)
        >>> logits = head(torch.zeros(2, 4))
        >>> head.loss(logits, torch.tensor([0, 1])).shape
        torch.Size([])

    Source: An Architecture Combining Convolutional Neural Network (CNN) and Support Vector Machine (SVM) for Image
    Classification, arXiv:1712.03541.
    """

    def __init__(self, in_features: int, classes: int, C: float = 1.0, p: int = 2, reduction: str = "mean") -> None:
        check_number("in_features", in_features, low=1, integer=True)
        check_number("classes", classes, low=2, integer=True)
        check_number("C", C, low=0.0)
        check_choice("p", p, (1, 2))
        check_choice("reduction", reduction, ("mean", "sum"))
        super().__init__(in_features, classes)
        self.C, self.p, self.reduction = C, p, reduction

    def penalty(self) -> Tensor:
        """Half the squared Frobenius norm of the weight."""
        return 0.5 * widen(self.weight).square().sum()

    def loss(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """Hinge of this head's logits ``[N, K]`` and class indices ``[N]``, plus the penalty."""
        hinge = squared_hinge_loss(logits, target, p=self.p, C=self.C, weight=weight, reduction=self.reduction)
        return hinge + self.penalty()


class CNNSVM(Network):
    """The published net: two convolutions, one hidden layer, and support vector machines on top.

    Convolutions 5 x 5 of 32 and 64 maps (same padding), each with ReLU and a 2 x 2 maximum; 1024 ReLU units with half
    of them dropped in training; an :class:`SVMHead`. The control with softmax is the same net under cross-entropy. It
    was trained by Adam at a rate of 1e-3 with batches of 128.

    Args:
        num_classes: K >= 2.
        channels: of the images.
        image_size: height and width, >= 4.
        C: factor of the hinge, >= 0.
        p: 2 for the squared hinge, 1 for the plain one.

    Example:
        >>> net = CNNSVM()
        >>> logits = net(torch.zeros(2, 1, 28, 28))
        >>> logits.shape, net.loss(logits, torch.tensor([3, 7])).shape
        (torch.Size([2, 10]), torch.Size([]))

    Source: An Architecture Combining Convolutional Neural Network (CNN) and Support Vector Machine (SVM) for Image
    Classification, arXiv:1712.03541.
    """

    head: SVMHead

    def __init__(
        self, num_classes: int = 10, channels: int = 1, image_size: int = 28, C: float = 1.0, p: int = 2
    ) -> None:
        check_number("channels", channels, low=1, integer=True)
        check_number("image_size", image_size, low=4, integer=True)
        backbone = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Flatten(),
            nn.Linear(64 * (image_size // 4) ** 2, 1024),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        super().__init__(backbone, SVMHead(1024, num_classes, C, p))

    def loss(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of the head, with its penalty."""
        return self.head.loss(logits, target, weight=weight)
