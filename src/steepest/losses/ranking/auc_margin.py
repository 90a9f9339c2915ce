"""AUC maximisation with a margin as a min-max problem of three scalars, and the optimizer that goes with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any, Self

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import (
    check_binary,
    check_choice,
    check_flag,
    check_number,
    check_scalar,
    check_tensor,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.loss import Sample
from ...core.objective import Objective
from ...core.optimizer import ListOptimizer, Share
from ...core.reductions import widen
from ...core.search import Float
from ...core.wrapper import Params

VERSIONS = ("v1", "v2")


def auc_margin_loss(
    scores: F[Tensor, " batch"],
    target: Tensor,
    a: float | F[Tensor, ""],
    b: float | F[Tensor, ""],
    alpha: float | F[Tensor, ""],
    *,
    margin: float = 1.0,
    prior: float | None = None,
    version: str = "v1",
) -> Tensor:
    r"""The AUC margin loss of bounded scores h at given a, b and alpha.

    With the share p of positives, and means E+ and E- over the two classes,

    .. math:: F_2 = E_+(h-a)^2 + E_-(h-b)^2 + 2\alpha\,(m + E_-h - E_+h) - \alpha^2

    is ``"v2"``, and ``"v1"`` is its form of a mean over the batch, with p in place of the classes' own numbers,

    .. math:: F_1 = \tfrac1N\!\sum_i (1-p)(h_i-a)^2 1_{y_i=1} + p\,(h_i-b)^2 1_{y_i=0}
        + 2\alpha\big(p(1-p)m + p\,h_i 1_{y_i=0} - (1-p)\,h_i 1_{y_i=1}\big) - p(1-p)\alpha^2 .

    At the best a, b and alpha >= 0 the second is the sum of both variances and max(0, m + E- h - E+ h)^2.

    Args:
        scores: h ``[N]``, in [0, 1] as a sigmoid gives them.
        target: labels ``[N]`` in {0, 1}.
        a, b: the centres of positives and negatives.
        alpha: the dual variable, >= 0.
        margin: m > 0.
        prior: p in (0, 1), of ``"v1"``; None: the share of the batch.
        version: ``"v1"`` or ``"v2"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, labels that are not 0 or 1, a batch of one class in ``"v2"``.
        UserWarning: a batch of one class in ``"v1"`` (a warning).

    Example:
        >>> h, y = torch.tensor([0.8, 0.4, 0.3, 0.1, 0.6]), torch.tensor([1, 1, 0, 0, 0])
        >>> auc_margin_loss(h, y, 0.5, 0.2, 0.3, version="v2")
        tensor(0.4600)

    Source: Large-scale Robust Deep AUC Maximization, arXiv:2012.03173.
    """
    _check(margin, prior, version)
    check_tensor("scores", scores, ndim=1, floating=True)
    check_binary(target, scores)
    check_scalar("a", a)
    check_scalar("b", b)
    check_scalar("alpha", alpha, low=0.0)
    h = widen(scores)
    positive = target == 1
    _warn_of_one_class(positive, version)
    pull, push = (h - a).square(), (h - b).square()
    if version == "v2":
        high, low = (_mean_where(h, where) for where in (positive, ~positive))
        spread = _mean_where(pull, positive) + _mean_where(push, ~positive)
        return spread + 2 * alpha * (margin + low - high) - alpha**2
    p = positive.to(h.dtype).mean() if prior is None else prior
    both = p * (1 - p)
    cells = torch.where(positive, (1 - p) * (pull - 2 * alpha * h), p * (push + 2 * alpha * h))
    return cells.mean() + both * (2 * alpha * margin - alpha**2)


def _check(margin: float, prior: float | None, version: str) -> None:
    check_number("margin", margin, low=0.0, open_low=True, open_high=True)
    check_choice("version", version, VERSIONS)
    if prior is not None:
        check_number("prior", prior, low=0.0, high=1.0, open_low=True, open_high=True)
        if version == "v2":
            refuse_type("prior", 'None with version="v2", which has no share of positives', prior)


def _warn_of_one_class(positive: Tensor, version: str) -> None:
    if not positive.numel() or not values_visible(positive) or 0 < int(positive.sum()) < positive.numel():
        return
    if version == "v2":
        refuse("target", "both classes in the batch", positive)
    warnings.warn("a batch of one class says nothing of AUC; sample both", UserWarning, stacklevel=3)


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values, 0.0).sum() / where.sum()


class AUCMarginLoss(Objective):
    r"""The AUC margin loss as a module; see :func:`auc_margin_loss`.

    a and b are parameters, which an optimizer minimises with the model's. alpha is a buffer that no optimizer sees:
    :meth:`after_step` moves it up the slope of the problem of a and b,
    alpha <- max(0, alpha + eta (2 (m + b - a) - 2 alpha)), eta being ``dual_lr``. All three start at 0.
    Of several ranks each has the means of its own batch.

    Args:
        margin: m > 0; the hinge needs m < 1 where scores are in [0, 1].
        prior: share of positives of ``"v1"``; None: that of each batch.
        version: ``"v1"`` or ``"v2"``.
        dual_lr: eta > 0.
        sigmoid: whether scores are squashed here; False: they are in [0, 1] already.

    Example:
        >>> loss = AUCMarginLoss(sigmoid=False)
        >>> loss(torch.tensor([0.8, 0.4, 0.3, 0.1, 0.6]), torch.tensor([1, 1, 0, 0, 0]))
        tensor(0.1328, grad_fn=<AddBackward0>)
        >>> loss.after_step()
        >>> loss.alpha
        tensor(0.2000)
    """

    name = "auc_margin"
    tasks = ("binary",)
    domain = "score"
    targets = ("index",)
    unit = "batch"
    search = {"margin": Float(0.1, 1.0)}
    alpha: Tensor

    def __init__(
        self,
        margin: float = 1.0,
        prior: float | None = None,
        version: str = "v1",
        dual_lr: float = 0.1,
        sigmoid: bool = True,
    ) -> None:
        super().__init__("mean")
        _check(margin, prior, version)
        check_number("dual_lr", dual_lr, low=0.0, open_low=True, open_high=True)
        check_flag("sigmoid", sigmoid)
        self.margin, self.prior, self.version, self.dual_lr = margin, prior, version, dual_lr
        self.sigmoid = sigmoid
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.register_buffer("alpha", torch.zeros(()))

    def forward(  # type: ignore[override]
        self, outputs: Tensor, target: Tensor, *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of scores ``[N]`` and labels ``[N]`` in {0, 1}."""
        self.check_call(outputs, target, weight)
        check_tensor("outputs", outputs, ndim=1)
        h = torch.sigmoid(widen(outputs)) if self.sigmoid else outputs
        return auc_margin_loss(
            h,
            target,
            self.a,
            self.b,
            self.alpha.clone(),  # after_step moves it before some backward pass
            margin=self.margin,
            prior=self.prior,
            version=self.version,
        )

    def predict(self, outputs: Tensor) -> Tensor:
        """Class 1 above the middle of the scores: 0, or 1/2 where they are in [0, 1]."""
        return super().predict(self.decision(outputs))

    def decision(self, outputs: Tensor) -> Tensor:
        """Scores ``[N]`` less the middle."""
        return outputs if self.sigmoid else outputs - 0.5

    @torch.no_grad()
    def after_step(self) -> None:
        """Move alpha."""
        slope = 2 * (self.margin + self.b - self.a) - 2 * self.alpha
        self.alpha.add_(self.dual_lr * slope).clamp_(min=0.0)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Both versions, in the middle of a training."""
        outputs = torch.randn(7, generator=generator, dtype=torch.float64).to(device, dtype)
        sample: Sample = (outputs, torch.tensor([1, 0, 0, 1, 0, 0, 1], device=device)), {}
        cases = [cls(), cls(0.3, 0.25), cls(0.5, version="v2")]
        for case in cases:
            with torch.no_grad():
                case.a.fill_(0.75), case.b.fill_(0.25), case.alpha.fill_(0.5)
        return [(case.to(device), sample) for case in cases]


class PESG(ListOptimizer):
    r"""The optimizer of the AUC margin loss: momentum on clipped gradients, drawn to the mean of the last stage.

    .. math:: g \leftarrow \mathrm{clip}(g, \pm c) + \lambda_0 (v - v_{ref}) + \lambda v, \qquad
        u \leftarrow (1 - \mu)\, u + \mu\, g, \qquad v \leftarrow v - \eta u

    u starts at the first g; mu weighs the *new* gradient. v is made of the weights and of a and b of the loss, whose
    alpha moves in its own ``after_step``, at the rate of the first group. The reference starts at the weights that the
    first step meets; :meth:`update_regularizer` ends a stage.

    Args:
        params: the model's parameters or groups.
        loss_fn: an :class:`AUCMarginLoss`; None: a and b are among ``params``, or there are none.
        lr: eta >= 0.
        momentum: mu in (0, 1].
        clip_value: c > 0, for each entry.
        weight_decay: lambda >= 0.
        epoch_decay: lambda_0 >= 0.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: an option outside its range.

    Example:
        >>> loss = AUCMarginLoss()
        >>> w = nn.Parameter(torch.zeros(2))
        >>> optimizer = PESG([w], loss)
        >>> loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]) @ w, torch.tensor([1, 0])).backward()
        >>> optimizer.step()
        >>> loss.after_step()
        >>> loss.a
        Parameter containing:
        tensor(0.0250, requires_grad=True)

    Source: Large-scale Robust Deep AUC Maximization, arXiv:2012.03173.
    """

    name = "pesg"
    search = {"momentum": Float(0.1, 1.0), "epoch_decay": Float(1e-4, 1e-1, log=True)}
    ranges = {
        "lr": {"low": 0.0},
        "momentum": {"low": 0.0, "high": 1.0, "open_low": True},
        "clip_value": {"low": 0.0, "open_low": True},
        "weight_decay": {"low": 0.0},
        "epoch_decay": {"low": 0.0},
    }

    def __init__(
        self,
        params: Params,
        loss_fn: AUCMarginLoss | None = None,
        lr: float = 0.1,
        momentum: float = 0.9,
        clip_value: float = 1.0,
        weight_decay: float = 1e-5,
        epoch_decay: float = 2e-3,
        *,
        foreach: bool | None = None,
    ) -> None:
        if loss_fn is not None and not isinstance(loss_fn, AUCMarginLoss):
            refuse_type("loss_fn", "an AUCMarginLoss", loss_fn)
        self.loss_fn = loss_fn
        options = {
            "lr": lr, "momentum": momentum, "clip_value": clip_value, "weight_decay": weight_decay,
            "epoch_decay": epoch_decay,
        }  # fmt: skip
        super().__init__(params, options, foreach=foreach)
        if loss_fn is not None:
            self.add_param_group({"params": [loss_fn.a, loss_fn.b]})

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        return {
            "reference": parameter.detach().clone(),
            "total": torch.zeros_like(parameter),
            "steps": 0,
            "momentum": torch.zeros_like(parameter),
            "begun": False,
        }

    def _advance(self) -> None:
        super()._advance()
        if self.loss_fn is not None:
            self.loss_fn.dual_lr = float(self.param_groups[0]["lr"])

    def _move(self, share: Share) -> None:
        group = share.group
        clip, decay, pull = group["clip_value"], group["weight_decay"], group["epoch_decay"]
        names = ("reference", "total", "momentum")
        states = zip(share.weights, share.slopes, share.states, *(share.state(name) for name in names))
        for weight, slope, state, reference, total, momentum in states:
            g = slope.clamp(-clip, clip).add_(weight - reference, alpha=pull).add_(weight, alpha=decay)
            if state["begun"]:
                momentum.mul_(1 - group["momentum"]).add_(g, alpha=group["momentum"])
            else:
                momentum.copy_(g)
            weight.sub_(momentum, alpha=group["lr"])
            total.add_(weight)
            state["steps"] += 1
            state["begun"] = True

    @torch.no_grad()
    def update_regularizer(self, decay_factor: float = 10.0) -> None:
        """End a stage: divide the rate, and let the reference be the mean of the weights since the last one.

        Args:
            decay_factor: of the rate, > 0.
        """
        check_number("decay_factor", decay_factor, low=0.0, open_low=True, open_high=True)
        for group in self.param_groups:
            group["lr"] = group["lr"] / decay_factor
        for parameter in chain.from_iterable(group["params"] for group in self.param_groups):
            state = self.state.get(parameter)
            if state and state["steps"]:
                state["reference"].copy_(state["total"] / state["steps"])
                state["total"].zero_()
                state["steps"] = 0
        if self.loss_fn is not None:
            self.loss_fn.dual_lr = float(self.param_groups[0]["lr"])

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Without a loss: the defaults, and a strong pull to the reference."""
        return [
            lambda params: cls(params),
            lambda params: cls(params, lr=0.05, momentum=0.5, clip_value=0.5, weight_decay=0.0, epoch_decay=1e-3),
        ]
