"""The rule of StableMax, for one objective and for several in one call."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int as I
from torch import Tensor

from ...core.rows import RowFunctions
from ...core.rowwise import Rule, at

_native = RowFunctions(Path(__file__).with_name("stablemax.cpp"), {"stablemax_rows": 5})


def stablemax_rule(target: I[Tensor, " batch"], dtype: torch.dtype) -> Rule:
    r"""Value and gradient of cross-entropy of StableMax of each row.

    .. math:: \ell = \log\Bigl(1 + \sum_{j \ne y} s(x_j) / s(x_y)\Bigr), \qquad
        \frac{\partial \ell}{\partial x_k} = \frac{p_k - 1[k = y]}{1 + |x_k|}

    Args:
        target: class indices y ``[N]``, int64.
        dtype: of the computation.
    """

    def rule(x: Tensor, g: Tensor, rows: slice) -> Tensor:
        y = target[rows]
        if dtype == torch.float64 and _native.runs(x, g, gain=256) and y.is_contiguous():
            others, own = x.new_empty(2, len(x), dtype=dtype).unbind()
            _native.call("stablemax_rows", (x, g, y, others, own))
            return others.div_(own).log1p_()
        column, wide = y.unsqueeze(1), x.to(dtype, copy=True)
        # s = max(x, 0) + 1 / (1 + max(-x, 0)); a choice by place would cost more
        s = wide.clamp_max(0.0).neg_().add_(1.0).reciprocal_().add_(wide.clamp_min(0.0))
        slope = wide.abs_().add_(1.0)  # one over that of log s
        mine = at(s, y)
        rest = s.scatter_(1, column, 0.0).sum(1, keepdim=True)  # p_y - 1 would round it away
        s.div_(mine + rest).scatter_(1, column, -rest / (mine + rest))
        g.copy_(s.div_(slope))
        return (rest / mine).log1p().squeeze(1)

    return rule
