"""Differentiable sorting and top-k of rows, exact under ties: permutations that are relaxed, soft indicators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .transforms import by_hand, plain_gradients, without_autocast

LEAST_SUM = 1e-10
"""Sums of rows and columns below it count as this."""
PIECE = 1 << 20
"""Bytes of matrices that are balanced at a time on a CPU."""


def absolute_differences(values: Tensor, mask: Tensor) -> Tensor:
    r"""The sums b_j = sum_k |s_j - s_k| over the entries of a row, by sorting: n log n in place of n^2.

    An entry that is larger than L others and not smaller than M (itself included), with sums C_L and C_M of those, and
    T the sum of all n, has b = s (L + M - n) + T - C_L - C_M. Equal entries give each other neither value nor slope.

    Args:
        values: s ``[..., n]``.
        mask: of that shape; where it is False nothing counts, and b is 0.

    >>> absolute_differences(torch.tensor([1.0, 4.0, 2.0, 9.0]), torch.tensor([True, True, True, False]))
    tensor([4., 5., 3., 0.])
    """
    arranged, order = torch.where(mask, values, torch.inf).sort(-1)
    there = mask.gather(-1, order)
    arranged = torch.where(there, arranged, 0.0)
    place = torch.arange(values.shape[-1], device=values.device).expand(values.shape)
    step = torch.ones_like(there)
    step = torch.cat([step[..., :1], (arranged[..., 1:] != arranged[..., :-1]) | ~there[..., 1:]], -1)
    below = torch.where(step, place, 0).cummax(-1).values
    last = torch.cat([step[..., 1:], torch.ones_like(step[..., :1])], -1)
    upto = torch.where(last, place + 1, values.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    sums = torch.cat([torch.zeros_like(arranged[..., :1]), arranged.cumsum(-1)], -1)
    number = mask.sum(-1, keepdim=True)
    spread = (
        arranged * (below + upto - number).to(values.dtype)
        + arranged.sum(-1, keepdim=True)
        - sums.gather(-1, below)
        - sums.gather(-1, upto)
    )
    spread = torch.where(there, spread, 0.0)
    return torch.zeros_like(spread).scatter(-1, order, spread)


def relaxed_permutation(values: Tensor, mask: Tensor, tau: float) -> Tensor:
    r"""The matrix of NeuralSort: row r is a softmax that is largest at the entry of rank r, from the top.

    .. math:: P_{rj} = \mathrm{softmax}_j\big((n + 1 - 2r) s_j - \textstyle\sum_k |s_j - s_k|\big) / \tau

    Args:
        values: s ``[..., n]``.
        mask: of that shape: where a row has an entry; n is their number, and P is 0 in rows and columns without.
        tau: temperature > 0.

    Returns:
        ``[..., n, n]``.
    """
    size = values.shape[-1]
    number = mask.sum(-1, keepdim=True)
    centre = torch.where(mask, values, 0.0).sum(-1, keepdim=True) / number.clamp_min(1)
    values = torch.where(mask, values - centre.detach(), 0.0)  # a constant changes nothing, and costs digits
    spread = absolute_differences(values, mask)
    rank = torch.arange(1, size + 1, device=values.device)
    factor = (number + 1 - 2 * rank).to(values.dtype) / tau
    logits = factor.unsqueeze(-1) * values.unsqueeze(-2) - (spread / tau).unsqueeze(-2)
    logits = torch.where(mask.unsqueeze(-2), logits, torch.finfo(values.dtype).min)
    rows = (rank <= number).unsqueeze(-1)  # ranks 1..n come first, wherever the entries stand
    return torch.where(rows & mask.unsqueeze(-2), logits.softmax(-1), 0.0)


def balance(matrix: Tensor, rows: Tensor, columns: Tensor, rounds: int, tol: float) -> tuple[Tensor, Tensor]:
    r"""Factors u, v for which diag(u) M diag(v) is doubly stochastic, by Sinkhorn's alternation.

    A round divides columns by their sums and then rows. Each matrix stops by itself once its sums are within ``tol`` of
    1, so that it does not depend on the others of the batch. Only products of the matrix with vectors are formed, and
    the gradient of all rounds in M is one product of two matrices ``[n, 2 rounds]``.

    Args:
        matrix: M >= 0, ``[B, n, m]``.
        rows: which rows have an entry, ``[B, n]``.
        columns: which columns have, ``[B, m]``.
        rounds: at most so many.
        tol: see above.

    Returns:
        u ``[B, n]`` and v ``[B, m]``.
    """
    with without_autocast(matrix):
        if by_hand(matrix) and not torch.is_inference_mode_enabled():
            u, v = _Balance.apply(matrix, rows, columns, rounds, tol)
            return u, v
        return _balance(matrix, rows, columns, rounds, tol, None)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """M x for matrices ``[..., n, m]`` and vectors ``[..., m]``: as x' M', which torch's products of batches favour."""
    return (vector.unsqueeze(-2) @ matrix.transpose(-1, -2)).squeeze(-2)


def _pieces(matrix: Tensor) -> list[slice]:
    """Runs of matrices that stay in the cache over all rounds; on an accelerator all of them."""
    count = matrix.shape[0]
    size = count if matrix.device.type != "cpu" else PIECE // max(1, matrix[0].numel() * matrix.element_size())
    size = max(1, size)
    return [slice(start, start + size) for start in range(0, count, size)]


def _balance(
    matrix: Tensor, rows: Tensor, columns: Tensor, rounds: int, tol: float, trace: list[Any] | None
) -> tuple[Tensor, Tensor]:
    """The rounds; ``trace`` gets what the backward pass needs of each, and lets them end when all have stopped."""
    u, v = torch.ones_like(matrix[..., 0]), torch.ones_like(matrix[..., 0, :])
    going = torch.ones_like(rows[..., :1])
    across = matrix.transpose(-1, -2)
    for number in range(rounds + 1):
        sums = v * times(across, u)
        if number:
            # a difference that is not a number goes on
            off = torch.where(columns, (sums - 1).abs(), 0.0).amax(-1, keepdim=True)
            going = going & ~(off < tol)
            if trace is not None and matrix.device.type == "cpu" and not bool(going.any()):
                break
        if number == rounds:
            break
        small_v = (sums < LEAST_SUM) & columns
        new_v = v / torch.where(columns, sums.clamp_min(LEAST_SUM), 1.0)
        sums = u * times(matrix, new_v)
        small_u = (sums < LEAST_SUM) & rows
        new_u = u / torch.where(rows, sums.clamp_min(LEAST_SUM), 1.0)
        if trace is not None:
            trace.append((u, v, going, small_u, small_v))
        u, v = torch.where(going, new_u, u), torch.where(going, new_v, v)
    return u, v


class _Balance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, rows: Tensor, columns: Tensor, rounds: int, tol: float
    ) -> tuple[Tensor, Tensor]:
        ctx.rounds, ctx.tol, ctx.traces = rounds, tol, []
        u, v = torch.empty_like(matrix[..., 0]), torch.empty_like(matrix[..., 0, :])
        for piece in _pieces(matrix) if matrix.shape[0] else []:
            trace: list[Any] = []
            u[piece], v[piece] = _balance(matrix[piece].detach(), rows[piece], columns[piece], rounds, tol, trace)
            ctx.traces.append((piece, trace))
        ctx.save_for_backward(matrix, rows, columns, u, v)
        return u, v

    @staticmethod
    def backward(ctx: Any, slope_u: Tensor, slope_v: Tensor) -> tuple[Tensor | None, ...]:
        matrix, rows, columns, u, v = ctx.saved_tensors
        if torch.is_grad_enabled() or not by_hand(slope_u, slope_v):

            def both(m: Tensor) -> Tensor:
                return torch.cat(_balance(m, rows, columns, ctx.rounds, ctx.tol, None), -1)

            joined = torch.cat([slope_u, slope_v], -1)
            return plain_gradients(both, (matrix,), (True,), joined)[0], None, None, None, None
        gradient = torch.zeros_like(matrix)
        for piece, trace in ctx.traces:
            ends = (t[piece] for t in (u, v, rows, columns, slope_u, slope_v))
            if trace:
                torch.bmm(*_slopes(matrix[piece], trace, *ends), out=gradient[piece])
        return gradient, None, None, None, None


def _slopes(
    matrix: Tensor,
    trace: list[Any],
    u: Tensor,
    v: Tensor,
    rows: Tensor,
    columns: Tensor,
    slope_u: Tensor,
    slope_v: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient in the matrix as a product ``[B, n, 2 rounds]`` by ``[B, 2 rounds, m]``, of rounds run backwards."""
    left, right = [], []
    across = matrix.transpose(-1, -2)
    for before_u, before_v, going, small_u, small_v in reversed(trace):
        # u = 1 / (M v), or u before / LEAST_SUM where the sum is below it
        at_rows = torch.where(going & rows & ~small_u, -slope_u * u.square(), 0.0)
        earlier_u = torch.where(going & rows, torch.where(small_u, slope_u / LEAST_SUM, 0.0), slope_u)
        slope_v = slope_v + times(across, at_rows)
        at_columns = torch.where(going & columns & ~small_v, -slope_v * v.square(), 0.0)
        slope_v = torch.where(going & columns, torch.where(small_v, slope_v / LEAST_SUM, 0.0), slope_v)
        left += [at_rows, before_u]
        right += [v, at_columns]
        slope_u = earlier_u + times(matrix, at_columns)
        u, v = before_u, before_v
    return torch.stack(left, -1), torch.stack(right, -2)


def soft_top_k(values: Tensor, k: Tensor, alpha: float, steps: int = 60) -> Tensor:
    r"""The shift t at which sum_j sigmoid(alpha (s_j + t)) = k, of each row: bracketed, then by Newton's rule.

    .. math:: \partial t / \partial s_j = -w_j / \textstyle\sum_l w_l, \quad w = q (1 - q)

    The gradient is that of the equation, and not of the steps that solve it.

    Args:
        values: s ``[..., n]``; entries of -inf have no share.
        k: numbers in (0, n) ``[..., 1]``.
        alpha: > 0, how steep.
        steps: at most so many.

    Returns:
        t ``[..., 1]``.

    >>> soft_top_k(torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.tensor([2.0]), 1.0)
    tensor([-0.5000])
    """
    with torch.no_grad():
        s = values.detach() * alpha
        there = s > -torch.inf
        number = there.sum(-1, keepdim=True).to(s.dtype)
        level = torch.logit((k / number).to(s.dtype), eps=torch.finfo(s.dtype).tiny)
        low = level - s.amax(-1, keepdim=True)  # all entries as large as the largest: more than k with any shift above
        high = level - torch.where(there, s, torch.inf).amin(-1, keepdim=True)
        t = 0.5 * (low + high)
        looks = values.device.type == "cpu" and by_hand(values)
        whole = k.round().to(s.dtype)
        top = s.argsort(-1, descending=True).argsort(-1) < whole  # near 1, of which what is missing keeps its digits
        for _ in range(steps):
            u = s + t
            excess = torch.where(top, -torch.sigmoid(-u), torch.sigmoid(u)).sum(-1, keepdim=True) + (whole - k)
            low, high = torch.where(excess <= 0, t, low), torch.where(excess >= 0, t, high)
            newton = t - excess / (torch.sigmoid(u) * torch.sigmoid(-u)).sum(-1, keepdim=True)
            inside = (newton > low) & (newton < high)
            moved = torch.where(excess == 0, t, torch.where(inside, newton, 0.5 * (low + high)))
            if looks and torch.equal(moved, t):
                break
            t = moved
    # the slope of the equation, put onto a value that is solved for
    weight = torch.sigmoid(s + t) * torch.sigmoid(-s - t)
    share = weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    moved = (share * torch.where(there, values - values.detach(), 0.0)).sum(-1, keepdim=True)
    return t / alpha - moved


def squared_hinge_pairs(positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    r"""The mean over all pairs of max(0, m - (p - n))^2, in (P + M) log P by prefix sums.

    For a negative n the c positives below n + m give c (n + m)^2 - 2 (n + m) sum p + sum p^2.

    Args:
        positives: p ``[P]``, P >= 1.
        negatives: n ``[M]``, M >= 1.
        margin: m.

    >>> squared_hinge_pairs(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.0]), 1.0)
    tensor(0.6250)
    """
    dtype = positives.dtype
    positives, negatives = positives.double(), negatives.double()  # differences of large sums
    centre = torch.cat([positives, negatives]).detach().mean()
    p, reach = (positives - centre).sort().values, negatives - centre + margin
    count = torch.searchsorted(p.detach(), reach.detach())
    zero = torch.zeros_like(p[:1])
    sums, squares = torch.cat([zero, p.cumsum(0)]), torch.cat([zero, p.square().cumsum(0)])
    terms = count.to(p.dtype) * reach.square() - 2 * reach * sums[count] + squares[count]
    return (terms.clamp_min(0.0).sum() / (positives.shape[0] * negatives.shape[0])).to(dtype)
