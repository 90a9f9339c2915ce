"""A temperature for each sample, learned from how answers change under transformations: right is told from wrong.

The loss raises the confidence of right predictions and lowers that of wrong ones. It looks at correctness, not at the
probability of the true class: on a narrow error cross-entropy sharpens, this flattens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.calibrator import Calibrator
from ...core.checks import check_index, check_logits, check_number, check_range, check_tensor, refuse, refuse_type
from ...core.loss import Loss, Sample
from ...core.reductions import widen

Transform = Callable[[Tensor], Tensor]


def correctness_aware_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    pred: I[Tensor, " batch"] | None = None,
    balance: bool = True,
) -> Tensor:
    r"""The squared distance between confidence and correctness.

    .. math:: L = \frac{\sum_i w_i (m_i - c_i)^2}{\sum_i w_i}, \qquad
        m_i = \max_k \mathrm{softmax}(z_i)_k, \quad c_i = 1[\hat y_i = y_i]

    Args:
        logits: calibrated logits z, ``[N, C]``, N >= 1.
        target: class indices y ``[N]``.
        pred: predicted classes ``[N]``; None for the largest logits.
        balance: with a the share of right predictions, weigh right ones by 1 - a and wrong ones by a, so that both
            count alike. Where all are right, or all wrong, every weight is 1.

    Returns:
        A scalar in 0..1, float32 or wider. Correctness is constant; the gradient flows through the confidence.

    Raises:
        ValueError: no rows, wrong shapes, classes out of range.

    Example:
        >>> p = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.4, 0.3, 0.3]])
        >>> correctness_aware_loss(p.log(), torch.tensor([0, 1, 0]))
        tensor(0.2725)

    Source: Optimizing Calibration by Gaining Aware of Prediction Correctness, arXiv:2404.13016.
    """
    check_logits(logits, argument="logits")
    check_index(target, logits)
    if not len(logits):
        refuse("logits", "at least one row", logits)
    if pred is None:
        pred = logits.argmax(1)
    else:
        check_tensor("pred", pred, floating=False, shape=(len(logits),))
        check_range("pred", pred, 0, logits.shape[1] - 1)
    confidence = widen(logits).softmax(1).max(1).values
    right = (pred == target).to(confidence)
    error = (confidence - right).square()
    if not balance:
        return error.mean()
    share = right.mean()
    weight = torch.where(right > 0, 1 - share, share)
    weight = torch.where(weight.sum() > 0, weight, torch.ones_like(weight))
    return (weight * error).sum() / weight.sum()


class CorrectnessAwareLoss(Loss):
    """The squared distance between confidence and correctness as a module; see :func:`correctness_aware_loss`.

    Args:
        balance: whether right and wrong predictions count alike.

    Example:
        >>> loss = CorrectnessAwareLoss(balance=False)
        >>> loss(torch.tensor([[0.6, 0.4, 0.0]]).log(), torch.tensor([1]))
        tensor(0.3600)

    Source: Optimizing Calibration by Gaining Aware of Prediction Correctness, arXiv:2404.13016.
    """

    name = "correctness_aware"

    def __init__(self, balance: bool = True) -> None:
        super().__init__()
        if not isinstance(balance, bool):
            refuse_type("balance", "True or False", balance)
        self.balance = balance

    def forward(
        self,
        logits: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        pred: I[Tensor, " batch"] | None = None,
    ) -> Tensor:
        """The loss of calibrated logits and class indices."""
        return correctness_aware_loss(logits, target, pred=pred, balance=self.balance)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Right and wrong predictions, balanced and not; predictions of another temperature."""
        logits = torch.randn(9, 4, generator=generator).to(dtype).to(device)
        target = torch.randint(4, (9,), generator=generator).to(device)
        pred = torch.randint(4, (9,), generator=generator).to(device)
        return [(cls(), ((logits, target), {})), (cls(balance=False), ((logits, target), {"pred": pred}))]


class TransformTemperatureCalibrator(Calibrator):
    r"""A small network gives each sample its temperature from the classifier's answers to transformed copies.

    .. math:: T(g) = \mathrm{clamp}(w_2^\top \mathrm{relu}(W_1 g + b_1) + b_2,\ 0.1,\ 10)

    g holds, for each transformation, the probabilities of the copy at the k most probable classes of the original, in
    the original's order. The temperature is shared over classes, so the decision never changes.

    Calls take ``views``, the logits ``[M, N, C]`` of the copies, as :meth:`view_logits` makes them. Without
    transformations the logits themselves are the one view.

    Args:
        transforms: functions of a batch of inputs; :func:`rotate`, :func:`shift` and :func:`contrast` suit images.
        k: classes looked at, >= 1 and at most the number of classes.
        hidden: units of the network, >= 1.
        loss: of calibrated logits and class indices; None for :class:`CorrectnessAwareLoss`.
        lr, batch_size, epochs: of Adam. The defaults are the paper's, for tens of thousands of rows; with few rows the
            temperatures hardly move at this rate.
        low, high: range of the temperature, 0 < low < high.
        seed: of first weights and order.

    Example:
        >>> turn = [lambda x: x, lambda x: x.flip(1)]
        >>> model, x, y = torch.nn.Linear(5, 4), torch.randn(20, 5), torch.arange(20) % 4
        >>> calibrator = TransformTemperatureCalibrator(turn, lr=0.01, epochs=5).fit_model(model, x, y)
        >>> calibrator.transform(model(x), views=calibrator.view_logits(model, x)).shape
        torch.Size([20, 4])

    Source: Optimizing Calibration by Gaining Aware of Prediction Correctness, arXiv:2404.13016.
    """

    name = "transform_temperature"

    def __init__(
        self,
        transforms: Sequence[Transform] = (),
        *,
        k: int = 4,
        hidden: int = 5,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        lr: float = 1e-4,
        batch_size: int = 1000,
        epochs: int = 500,
        low: float = 0.1,
        high: float = 10.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("k", k), ("hidden", hidden), ("batch_size", batch_size), ("epochs", epochs)):
            check_number(name, value, low=1, integer=True)
        check_number("lr", lr, low=0.0, open_low=True)
        check_number("low", low, low=0.0, open_low=True)
        check_number("high", high, low=low, open_low=True)
        check_number("seed", seed, integer=True)
        self.transforms, self.k, self.seed = tuple(transforms), k, seed
        self.views = max(1, len(self.transforms))
        self.loss = CorrectnessAwareLoss() if loss is None else loss
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs
        self.low, self.high = low, high
        self.net = nn.Sequential(nn.Linear(self.views * k, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self._reset()
        self._given: Tensor | None = None

    def _reset(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for layer in (self.net[0], self.net[2]):
                layer.reset_parameters()
        # the network starts at about T = 1, not on the clamp, where no gradient flows
        nn.init.ones_(self.net[2].bias)

    def fit(self, logits: Tensor, target: Tensor, *, views: Tensor | None = None) -> Self:
        """Fit the network on held-out logits ``[N, C]``, class indices ``[N]`` and views ``[M, N, C]``."""
        with self._looking_at(views):
            return super().fit(logits, target)

    def transform(self, logits: Tensor, *, views: Tensor | None = None) -> Tensor:
        """Probabilities ``[N, C]`` of logits ``[N, C]`` and their views ``[M, N, C]``."""
        with self._looking_at(views):
            return super().transform(logits)

    def fit_model(self, model: Callable[[Tensor], Tensor], inputs: Tensor, target: Tensor) -> Self:
        """:meth:`fit` on the answers of a classifier to ``inputs`` and to their transformed copies."""
        with _frozen(model):
            logits = model(inputs)
        return self.fit(logits, target, views=self.view_logits(model, inputs))

    def view_logits(self, model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Logits ``[M, N, C]`` of the transformed copies, by the classifier in evaluation mode."""
        with _frozen(model):
            return torch.stack([model(transform(inputs)) for transform in self.transforms or (lambda x: x,)])

    def temperatures(self, logits: Tensor, views: Tensor | None = None) -> Tensor:
        """T of each sample, ``[N]``."""
        check_logits(logits, argument="logits")
        if self.k > logits.shape[1]:
            refuse("logits", f"at least k = {self.k} classes", logits)
        if views is None:
            if self.views > 1:
                refuse("views", f"logits of the {self.views} transformed copies", views)
            views = logits[None]
        check_tensor("views", views, floating=True, shape=(self.views, *logits.shape))
        order = logits.topk(self.k, dim=1).indices
        seen = widen(views).softmax(2).gather(2, order.expand(self.views, *order.shape))
        features = seen.transpose(0, 1).flatten(1).to(self.net[0].weight)
        temperatures: Tensor = self.net(features).squeeze(1).clamp(self.low, self.high)
        return temperatures

    def scaled(self, logits: Tensor, views: Tensor | None = None) -> Tensor:
        """Logits over their temperatures, ``[N, C]``, differentiable in the network."""
        wide = widen(logits)
        return wide / self.temperatures(wide, views).to(wide)[:, None]

    @contextmanager
    def _looking_at(self, views: Tensor | None) -> Iterator[None]:
        self._given = views
        try:
            yield
        finally:
            self._given = None

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        self._reset()
        views = logits[None] if self._given is None and self.views == 1 else self._given
        self.temperatures(logits, views)  # refuses before anything is trained
        assert views is not None
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.lr)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(logits), generator=generator).to(logits.device)
            for rows in order.split(self.batch_size):
                optimizer.zero_grad()
                self.loss(self.scaled(logits[rows], views[:, rows]), target[rows]).backward()
                optimizer.step()
        optimizer.zero_grad()

    def _transform(self, logits: Tensor) -> Tensor:
        return self.scaled(logits, self._given).softmax(1)

    @classmethod
    def instances(cls) -> list[Self]:
        """Without transformations, at a rate that suits a few hundred rows."""
        return [cls(lr=0.02, epochs=200), cls(k=2, hidden=3, loss=nn.CrossEntropyLoss(), lr=0.02, epochs=200)]


@contextmanager
def _frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """No gradients, and evaluation mode where the classifier knows modes."""
    module = model if isinstance(model, nn.Module) else None
    modes = [] if module is None else [(layer, layer.training) for layer in module.modules()]
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, training in modes:
            layer.training = training


def rotate(images: F[Tensor, "batch channels height width"], degrees: float) -> Tensor:
    """Images turned by ``degrees`` about their middle, bilinear, zeros beyond the border.

    >>> rotate(torch.eye(3)[None, None], 90.0).round().squeeze().tolist()
    [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    check_tensor("images", images, ndim=4, floating=True)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # the grid's unit is half an image, of the height in one direction and of the width in the other
    ratio = images.shape[2] / images.shape[3]
    matrix = images.new_tensor([[c, -s * ratio, 0.0], [s / ratio, c, 0.0]]).expand(len(images), 2, 3)
    grid = nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Images ``[..., H, W]`` moved by whole pixels, zeros coming in.

    >>> shift(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 1, 0).tolist()
    [[0.0, 0.0], [1.0, 2.0]]
    """
    return nn.functional.pad(images, (right, -right, down, -down))


def contrast(images: Tensor, factor: float) -> Tensor:
    """Images ``[..., H, W]`` with the distances to their mean multiplied by ``factor``.

    >>> contrast(torch.tensor([[0.0, 1.0]]), 0.5).tolist()
    [[0.25, 0.75]]
    """
    mean = images.mean((-2, -1), keepdim=True)
    return mean + factor * (images - mean)
