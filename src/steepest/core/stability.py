"""How much curvature an optimizer's steps stand: above the limit they grow along a direction instead of falling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from .checks import check_flag, check_number
from .symmetric import adam_diagonal
from .wrapper import Wrapper


def stability_threshold(lr: float, momentum: float = 0.0, ema: bool = False) -> float:
    r"""The largest eigenvalue of the Hessian at which steps of gradient descent do not diverge on a quadratic.

    .. math:: \frac{2}{\eta}, \qquad \text{heavy ball: } \frac{2 + 2\beta}{\eta}, \qquad
        \text{moving average: } \frac{2 + 2\beta}{(1 - \beta)\,\eta}

    Args:
        lr: :math:`\eta` > 0.
        momentum: :math:`\beta` in [0, 1).
        ema: whether momentum is a moving average of gradients, as Adam's, instead of their decayed sum, as SGD's.

    >>> [round(stability_threshold(0.1, *options), 6) for options in ((), (0.9,), (0.9, True))]
    [20.0, 38.0, 380.0]
    """
    check_number("lr", lr, low=0.0, open_low=True)
    check_number("momentum", momentum, low=0.0, high=1.0, open_high=True)
    check_flag("ema", ema)
    limit = (2.0 + 2.0 * momentum) / lr
    return limit / (1.0 - momentum) if ema else limit


def stability_of(optimizer: Optimizer, params: Sequence[Tensor]) -> tuple[float, list[Tensor] | None] | None:
    """The threshold of an optimizer at its present rate, and the diagonal by which it divides; None of another kind.

    The largest rate of all groups counts.

    Args:
        optimizer: SGD, with momentum or without, Adam or AdamW, or one with groups and state like theirs.
        params: those of which the diagonal is.
    """
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.base_optimizer
    group = max(optimizer.param_groups, key=lambda group: float(group["lr"]))
    rate = float(group["lr"])
    if rate <= 0:
        return None
    if "betas" in group and any("exp_avg_sq" in state for state in optimizer.state.values()):
        return stability_threshold(rate, float(group["betas"][0]), ema=True), list(adam_diagonal(optimizer, params))
    if "momentum" in group and "betas" not in group:
        damped = float(group["momentum"]) * (1.0 - float(group.get("dampening", 0.0)))
        return stability_threshold(rate, float(group["momentum"]) if damped else 0.0), None
    return None
