"""Whether the gradient of a network's answer in its input points at what tells classes apart: a test by retraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...core.checks import check_choice, check_index, check_logits, check_number, check_tensor, refuse
from ...core.parameter_directions import evaluated
from ...core.reductions import widen

Attribution = Callable[[nn.Module, Tensor, Tensor], Tensor]
Train = Callable[[Tensor, Tensor, int], nn.Module]
Data = tuple[Tensor, Tensor]
SIDES, POSITIONS = ("top", "bottom"), ("random", "top", "bottom")
ROUNDING = 1e-12
"""By what a share of coordinates may exceed a whole number and still count as that number."""


def input_gradient(
    model: nn.Module,
    x: F[Tensor, "batch ..."],
    y: I[Tensor, " batch"],
    *,
    of: str = "logit",
    batch_size: int = 256,
) -> F[Tensor, "batch ..."]:
    r"""The size of the gradient of an answer in each coordinate of the input.

    .. math:: A(x) = |\nabla_x h_y(x)| \quad\text{or}\quad |\nabla_x \ell(h(x), y)|, \; \ell \text{ cross-entropy}

    The model runs in evaluation mode, so that samples don't meet; its modes, gradients and flags, those of ``x`` and
    random states stay as they were.

    Args:
        model: inputs ``[B, ...]`` to logits ``[B, C]``, C >= 2.
        x: inputs.
        y: true classes.
        of: ``"logit"`` of the true class, or ``"loss"``.
        batch_size: inputs at a time, >= 1.

    Returns:
        the attributions, >= 0, of the shape of ``x``.

    Raises:
        ValueError: wrong shapes, a class out of range, another ``of``.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        >>> input_gradient(model, torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor([[1., 2.],
                [3., 0.]])

    Source: Do Input Gradients Highlight Discriminative Features?, arXiv:2102.12781.
    """
    check_choice("of", of, ("logit", "loss"))
    check_number("batch_size", batch_size, low=1, integer=True)
    check_tensor("x", x, floating=True)
    check_tensor("y", y, floating=False, shape=(len(x),))
    slopes = []
    with evaluated(model), torch.enable_grad():
        for inputs, target in zip(x.split(batch_size), y.long().split(batch_size)):
            moving = inputs.detach().clone().requires_grad_()
            outputs = model(moving)
            check_logits(outputs, argument="model(x)")
            check_index(target, outputs, argument="y")
            logits = widen(outputs)
            if of == "logit":
                answer = logits.gather(1, target[:, None]).sum()
            else:
                answer = nn.functional.cross_entropy(logits, target, reduction="sum")
            slopes.append(torch.autograd.grad(answer, moving)[0].abs())
    return torch.cat(slopes)


def attribution_mask(
    x: F[Tensor, "batch ..."],
    attr: F[Tensor, "batch ..."],
    keep: float = 0.1,
    side: str = "top",
    fill: float = 0.0,
) -> F[Tensor, "batch ..."]:
    r"""Inputs of which only the coordinates of largest, or of smallest, attribution stay.

    Of d coordinates (channels count as such) :math:`\lceil k d \rceil` stay, those first or last in the order of
    falling :math:`|A|`; of equal ones the earlier coordinate is first, so that top and bottom halves have none in
    common. Only the order within a sample counts, not the scale. NaN ranks above all.

    Args:
        x: inputs.
        attr: their attributions A, of the same shape.
        keep: the share k that stays, in (0, 1].
        side: ``"top"`` or ``"bottom"``.
        fill: what takes the place of the rest, in the unit of ``x``.

    Returns:
        the masked inputs.

    Raises:
        ValueError: ``keep`` outside (0, 1], shapes that differ, another side.

    Example:
        >>> x, attr = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.1, 0.4, 0.3, 0.2]])
        >>> attribution_mask(x, attr, 0.5), attribution_mask(x, attr, 0.5, "bottom")
        (tensor([[0., 2., 3., 0.]]), tensor([[1., 0., 0., 4.]]))

    Source: Do Input Gradients Highlight Discriminative Features?, arXiv:2102.12781.
    """
    check_tensor("x", x)
    check_tensor("attr", attr, floating=True, shape=tuple(x.shape))
    check_number("fill", fill)
    return torch.where(_ranked(attr, keep, side), x, torch.as_tensor(fill).to(x))


def _ranked(attr: Tensor, keep: float, side: str = "top") -> Tensor:
    """Which coordinates stay, of the shape of ``attr``."""
    check_number("keep", keep, low=0.0, high=1.0, open_low=True)
    check_choice("side", side, SIDES)
    if attr.ndim < 2:
        refuse("attr", "a dimension of samples and at least one of coordinates", attr)
    sizes = attr.detach().flatten(1).abs()
    d = sizes.shape[1]
    count = math.ceil(keep * d * (1 - ROUNDING))
    order = torch.sort(sizes, dim=1, descending=True, stable=True).indices
    chosen = order[:, :count] if side == "top" else order[:, d - count :]
    return torch.zeros_like(sizes, dtype=torch.bool).scatter_(1, chosen, True).view(attr.shape)


@dataclass(frozen=True)
class DiffROAR:
    """What retraining on masked inputs gave at one level.

    Args:
        keep: the share of coordinates that stayed.
        top, bottom: test accuracy for each seed, with those of largest and of smallest attribution, ``[seeds]``.
    """

    keep: float
    top: F[Tensor, " seeds"]
    bottom: F[Tensor, " seeds"]

    @property
    def by_seed(self) -> F[Tensor, " seeds"]:
        """The difference for each seed."""
        return self.top - self.bottom

    @property
    def value(self) -> float:
        """DiffROAR: the mean difference, in [-1, 1]; 0 is an attribution no better than a random one."""
        return float(self.by_seed.mean())


def diff_roar(
    train_fn: Train,
    model: nn.Module,
    train: Data,
    test: Data,
    keeps: Sequence[float] = (0.05, 0.1, 0.25, 0.5),
    attr: Attribution = input_gradient,
    *,
    fill: float = 0.0,
    seeds: Sequence[int] = (0,),
) -> dict[float, DiffROAR]:
    r"""How much better a model does when trained on the coordinates of largest rather than smallest attribution.

    .. math:: \mathrm{DiffROAR}(A, k) = \mathrm{PredPower}(A, k, \text{top}) - \mathrm{PredPower}(A, k, \text{bottom})

    PredPower is the test accuracy of a model trained anew on masked training inputs, over masked test inputs. All masks
    are those of one model that was trained on the inputs as they are, and are drawn with the true class. Above 0 large
    attributions point at what tells classes apart; below 0 they point away from it. The control is a random
    attribution, ``attr=lambda model, x, y: torch.rand_like(x)``.

    Args:
        train_fn: ``train_fn(x, y, seed)``, a model trained from the start that gives logits ``[B, C]``; a seed gives
            the same weights and orders on both sides.
        model: the one whose attributions are tested.
        train, test: inputs ``[N, ...]`` and classes ``[N]``.
        keeps: shares of coordinates that stay, in (0, 1].
        attr: ``attr(model, x, y)``, attributions of the shape of ``x``.
        fill: what takes the place of the rest.
        seeds: of training, at least one; their accuracies are averaged.

    Returns:
        for each share a :class:`DiffROAR`.

    Raises:
        ValueError: shares outside (0, 1], no share or seed, shapes that differ.

    Example:
        >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> def signs(inputs, target, seed):
        ...     return lambda rows: torch.stack([-rows.sum(1), rows.sum(1)], 1)
        >>> first = lambda model, inputs, target: torch.tensor([1.0, 0.0, 0.0]).expand_as(inputs)
        >>> roar = diff_roar(signs, nn.Identity(), (x, y), (x, y), keeps=[1 / 3], attr=first)[1 / 3]
        >>> float(roar.top.mean())
        1.0

    Source: Do Input Gradients Highlight Discriminative Features?, arXiv:2102.12781.
    """
    if not len(keeps):
        refuse("keeps", "at least one share", keeps)
    if not len(seeds):
        refuse("seeds", "at least one seed", seeds)
    for keep in keeps:
        check_number("keeps", keep, low=0.0, high=1.0, open_low=True)
    for name, (x, y) in (("train", train), ("test", test)):
        check_tensor(name, x, floating=True)
        check_tensor(name, y, floating=False, shape=(len(x),))
    maps = [attr(model, x, y).detach() for x, y in (train, test)]
    results = {}
    for keep in keeps:
        power = {}
        for side in SIDES:
            masked, tested = (attribution_mask(x, own, keep, side, fill) for (x, _), own in zip((train, test), maps))
            accuracy = [_accuracy(train_fn(masked, train[1], seed), tested, test[1]) for seed in seeds]
            power[side] = torch.tensor(accuracy, dtype=torch.float64)
        results[keep] = DiffROAR(keep, power["top"], power["bottom"])
    return results


def _accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    if isinstance(model, nn.Module):
        model.train(False)
    with torch.no_grad():
        logits = model(x)
    check_logits(logits, argument="train_fn(x, y, seed)(x)")
    return float((logits.argmax(1) == y).double().mean())


class BlockMNIST(Dataset[tuple[Tensor, Tensor]]):
    """Images of two blocks, one above the other, of which one tells the class; made by :func:`block_images`.

    Args:
        images: ``[N, ..., 2 h, w]``.
        labels: ``[N]``.
        signal_on_top: whether the block that tells the class is the upper one, ``[N]``.
    """

    def __init__(
        self, images: F[Tensor, "n ... height width"], labels: I[Tensor, " n"], signal_on_top: Bool[Tensor, " n"]
    ) -> None:
        check_tensor("images", images, floating=True)
        if images.ndim < 3 or images.shape[-2] % 2:
            refuse("images", "[N, ..., height, width] of even height", images)
        check_tensor("labels", labels, floating=False, shape=(len(images),))
        check_tensor("signal_on_top", signal_on_top, floating=False, shape=(len(images),))
        self.images, self.labels, self.signal_on_top = images, labels, signal_on_top.bool()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def signal_mask(self) -> Tensor:
        """Which coordinates lie in the block that tells the class, of the shape of ``images``."""
        height = self.images.shape[-2]
        upper = torch.arange(height, device=self.images.device) < height // 2
        own = upper == self.signal_on_top.to(upper.device)[:, None]
        shape = (len(self), *(1,) * (self.images.ndim - 3), height, 1)
        return own.view(shape).expand(self.images.shape)

    def null_share(self, attr: Tensor, keep: float = 1.0) -> F[Tensor, " n"]:
        """The share of attribution that lies in the block without information, of the coordinates of largest.

        Args:
            attr: attributions of the shape of ``images``; their absolute values count.
            keep: the share of coordinates that count, in (0, 1], as in :func:`attribution_mask`.

        Returns:
            a number in [0, 1] for each image; NaN where all attributions are 0.

        Raises:
            ValueError: shapes that differ, ``keep`` outside (0, 1].
        """
        check_tensor("attr", attr, floating=True, shape=tuple(self.images.shape))
        counted = torch.where(_ranked(attr, keep), widen(attr.detach()).abs(), 0.0)
        outside = torch.where(self.signal_mask, 0.0, counted)
        return outside.flatten(1).sum(1) / counted.flatten(1).sum(1)


def block_images(
    images: F[Tensor, "n ... h w"],
    labels: I[Tensor, " n"],
    null: str | F[Tensor, "h w"] = "square",
    position: str = "random",
    *,
    generator: torch.Generator | None = None,
) -> BlockMNIST:
    """Each image above or below a block that is the same for all, by a fair coin: BlockMNIST, of any images.

    Args:
        images: of the classes, ``[N, h, w]`` or ``[N, channels, h, w]``, h and w >= 4.
        labels: ``[N]``.
        null: the block without information: ``"square"``, the outline of one, half as wide as the block, as bright as
            the brightest pixel on the darkest; ``"blank"``, the darkest pixel everywhere; or values ``[h, w]``.
        position: of the image: ``"random"``, ``"top"`` (BlockMNIST-Top) or ``"bottom"``.
        generator: of the coins, on the CPU; None for torch's own.

    Returns:
        the data set, of images ``[N, 2 h, w]`` or ``[N, channels, 2 h, w]``.

    Raises:
        ValueError: wrong shapes, another block or position.

    Example:
        >>> data = block_images(torch.rand(6, 8, 8), torch.arange(6) % 2, position="top")
        >>> data.images.shape, bool(data.signal_mask[:, :8].all())
        (torch.Size([6, 16, 8]), True)

    Source: Do Input Gradients Highlight Discriminative Features?, arXiv:2102.12781.
    """
    check_tensor("images", images, ndim=(3, 4), floating=True)
    check_choice("position", position, POSITIONS)
    if len(images) < 1 or min(images.shape[-2:]) < 4:
        refuse("images", "at least one, of at least 4 x 4 pixels", images)
    h, w = images.shape[-2:]
    if isinstance(null, Tensor):
        check_tensor("null", null, floating=True, shape=(h, w))
        patch = null.to(images)
    else:
        check_choice("null", null, ("square", "blank"))
        patch = images.new_full((h, w), float(images.min()))
        if null == "square":
            rows, columns = slice(h // 4, h - h // 4), slice(w // 4, w - w // 4)
            patch[rows, columns] = images.max()
            patch[h // 4 + 1 : h - h // 4 - 1, w // 4 + 1 : w - w // 4 - 1] = images.min()
    if position == "random":
        on_top = torch.rand(len(images), generator=generator, dtype=torch.float64) < 0.5
    else:
        on_top = torch.full((len(images),), position == "top")
    on_top = on_top.to(images.device)
    blank = patch.expand_as(images)
    first = on_top.view(-1, *(1,) * (images.ndim - 1))
    blocks = torch.cat([torch.where(first, images, blank), torch.where(first, blank, images)], -2)
    return BlockMNIST(blocks, labels, on_top)
