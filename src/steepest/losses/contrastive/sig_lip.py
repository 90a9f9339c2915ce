"""The sigmoid loss of two towers: every pair is judged by itself, matching or not."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ...core.checks import check_flag, check_number, check_scalar, check_tensor
from ...core.cosine import unit_rows
from ...core.pair_loss import PairLoss
from ...core.search import Float
from ...core.transforms import without_autocast


def sig_lip_loss(
    first: F[Tensor, "batch width"],
    second: F[Tensor, "batch width"],
    *,
    scale: float | F[Tensor, ""] = 10.0,
    bias: float | F[Tensor, ""] = -10.0,
    ids: I[Tensor, " batch"] | None = None,
) -> F[Tensor, ""]:
    r"""Binary cross-entropy of all pairs, summed over a row and averaged over rows.

    .. math:: L = -\frac{1}{B} \sum_{i, j} \log \sigma\bigl(y_{ij} (\kappa s_{ij} + b)\bigr), \qquad
        y_{ij} = 1 \text{ if } i = j \text{ else } -1

    Args:
        first, second: ``[B, d]``, of any length; row i of one belongs to row i of the other.
        scale, bias: kappa and b; tensors get a gradient.
        ids: ``[B]``; pairs of one id that are not matched are left out.

    Returns:
        The loss in float32 or wider; 0 where there is no pair.

    Raises:
        ValueError: other shapes.

    Example:
        >>> z = torch.eye(2)
        >>> sig_lip_loss(z, z, scale=1.0, bias=0.0)
        tensor(1.0064)

    Source: Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343.
    """
    check_tensor("first", first, ndim=2, floating=True)
    check_tensor("second", second, floating=True, shape=tuple(first.shape))
    check_scalar("scale", scale)
    check_scalar("bias", bias)
    with without_autocast(first):
        z = scale * (unit_rows(first) @ unit_rows(second).t()) + bias
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    terms = logsigmoid(torch.where(own, z, -z))
    if ids is not None:
        check_tensor("ids", ids, floating=False, shape=tuple(first.shape[:1]))
        terms = terms.masked_fill((ids.unsqueeze(1) == ids) & ~own, 0.0)
    return -terms.sum() / max(len(z), 1)


class SigLIPLoss(PairLoss):
    """See :func:`sig_lip_loss`. Outputs are the two towers, ``[2, B, d]``; labels are not read.

    Args:
        scale: (first) scale, > 0.
        bias: (first) bias.
        learnable: whether the logarithm of the scale and the bias are parameters.

    Example:
        >>> z = torch.eye(2)
        >>> SigLIPLoss(scale=1.0, bias=0.0)(torch.stack([z, z]), torch.tensor([0, 1]))
        tensor(1.0064, grad_fn=...)
    """

    log_scale: Tensor
    bias: Tensor

    name = "sig_lip"
    form = "views"
    views = 2
    needs = ("ids",)
    search = {"scale": Float(1.0, 100.0, log=True), "bias": Float(-20.0, 0.0)}
    alternatives = {"scale": 3.0, "bias": -2.0, "learnable": False}

    def __init__(self, scale: float = 10.0, bias: float = -10.0, learnable: bool = True) -> None:
        super().__init__()
        check_number("scale", scale, low=0.0, open_low=True)
        check_number("bias", bias)
        check_flag("learnable", learnable)
        self.scale, self.learnable = scale, learnable
        for name, value in (("log_scale", math.log(scale)), ("bias", bias)):
            number = torch.tensor(float(value))
            if learnable:
                self.register_parameter(name, nn.Parameter(number))
            else:
                self.register_buffer(name, number)

    def batch_loss(self, outputs: Tensor, target: Tensor, *, ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of both towers."""
        return sig_lip_loss(outputs[0], outputs[1], scale=self.log_scale.exp(), bias=self.bias, ids=ids)
