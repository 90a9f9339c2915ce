"""The contrastive loss of two towers: each row of one is to find its partner among the rows of the other."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_flag, check_number, check_scalar, check_tensor, option_of
from ...core.cosine import unit_rows
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.search import Float
from ...kernels.pair_log_partition import pair_log_partition


def clip_loss(
    first: F[Tensor, "batch width"],
    second: F[Tensor, "batch width"],
    *,
    scale: float | F[Tensor, ""] = 1 / 0.07,
    ids: I[Tensor, " batch"] | None = None,
) -> F[Tensor, ""]:
    r"""Cross-entropy of each pair among the columns and among the rows of scaled cosines, half each.

    .. math:: L = -\frac{1}{2B} \sum_i \left[ \log \frac{e^{\kappa s_{ii}}}{\sum_j e^{\kappa s_{ij}}} +
        \log \frac{e^{\kappa s_{ii}}}{\sum_j e^{\kappa s_{ji}}} \right]

    Args:
        first, second: ``[B, d]``, of any length; row i of one belongs to row i of the other.
        scale: kappa, one over the temperature; a tensor gets a gradient.
        ids: ``[B]``; pairs of one id are no negatives of each other.

    Returns:
        The loss in float32 or wider; 0 where there is no pair.

    Raises:
        ValueError: other shapes.

    Example:
        >>> z = torch.eye(2)
        >>> clip_loss(z, z, scale=1.0)
        tensor(0.3133)

    Source: Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.
    """
    check_tensor("first", first, ndim=2, floating=True)
    check_tensor("second", second, floating=True, shape=tuple(first.shape))
    check_scalar("scale", scale)
    pairs = pair_log_partition(unit_rows(first), unit_rows(second), scale=scale, ids=ids, sides="both")
    assert pairs.log_p is not None
    assert pairs.column_log_p is not None
    return mean_of_counted(-0.5 * (pairs.log_p + pairs.column_log_p), pairs.count > 0)


class CLIPLoss(PairLoss):
    """See :func:`clip_loss`. Outputs are the two towers, ``[2, B, d]``; labels are not read.

    Args:
        temperature: one over the (first) scale, > 0.
        learnable: whether the logarithm of the scale is a parameter.
        max_scale: what a learned scale is cut to after each step, > 0; None: 100.

    Example:
        >>> z = torch.eye(2)
        >>> CLIPLoss(temperature=1.0)(torch.stack([z, z]), torch.tensor([0, 1]))
        tensor(0.3133, grad_fn=...)
    """

    name = "clip"
    form = "views"
    views = 2
    needs = ("ids",)
    search = {"temperature": Float(0.01, 1.0, log=True)}
    alternatives = {"temperature": 0.5, "learnable": False, "max_scale": 2.0}

    def __init__(self, temperature: float = 0.07, learnable: bool = True, max_scale: float | None = None) -> None:
        super().__init__()
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_flag("learnable", learnable)
        self.max_scale = option_of(
            "max_scale", max_scale, 100.0, applies=learnable, only="learnable=True", low=0.0, open_low=True
        )
        self.temperature, self.learnable = temperature, learnable
        log_scale = torch.tensor(-math.log(temperature))
        if learnable:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @torch.no_grad()
    def after_step(self) -> None:
        """Cut a scale that grew too large."""
        if self.learnable:
            self.log_scale.clamp_(max=math.log(self.max_scale))

    def batch_loss(self, outputs: Tensor, target: Tensor, *, ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of both towers."""
        return clip_loss(outputs[0], outputs[1], scale=self.log_scale.exp(), ids=ids)
