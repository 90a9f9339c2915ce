"""NeuralNDCG: NDCG with a relaxed permutation in place of the sort."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_flag, check_number, check_tensor, option_of, refuse_type
from ...core.list_loss import ListLoss
from ...core.query_lists import check_lists, discounts_of, gains_of, ideal_dcg, reduce_lists
from ...core.reductions import widen
from ...core.search import Float
from ...core.sorting import balance, relaxed_permutation, times
from ...core.transforms import without_autocast

TOLERANCE = 1e-6
LEAST_SCORE = 1e-10


def neural_sort(
    scores: F[Tensor, "lists documents"], *, mask: Bool[Tensor, "lists documents"] | None = None, tau: float = 1.0
) -> F[Tensor, "lists ranks documents"]:
    r"""NeuralSort's relaxation of the matrix that sorts scores from the top.

    .. math:: P_{rj} = \mathrm{softmax}_j \frac{(n + 1 - 2r)\, s_j - \sum_k |s_j - s_k|}{\tau}, \qquad r = 1 \dots n

    The sums of absolute differences come from sorting; equal scores have equal columns.

    Args:
        scores: s ``[Q, n]``.
        mask: boolean ``[Q, n]``, True where there is a document; None: everywhere. The documents of a list take the
            first rows, whatever their columns.
        tau: temperature > 0; the matrix tends to a permutation as it falls.

    Returns:
        ``[Q, n, n]``, float32 or wider: rows sum to 1; rows and columns without a document are 0.

    Raises:
        ValueError: wrong shapes, ``tau`` not above 0.

    Example:
        >>> neural_sort(torch.tensor([[0.2, 1.0, 0.5]]))[0, 0]
        tensor([0.1331, 0.5396, 0.3273])

    Source: Stochastic Optimization of Sorting Networks via Continuous Relaxations, arXiv:1903.08850.
    """
    check_number("tau", tau, low=0.0, open_low=True, open_high=True)
    scores, _, mask = check_lists(scores, torch.zeros_like(scores), mask)
    return relaxed_permutation(scores, mask, tau)


def sinkhorn_scaling(
    matrix: F[Tensor, "lists ranks documents"],
    *,
    mask: Bool[Tensor, "lists documents"] | None = None,
    rounds: int = 50,
    tol: float = TOLERANCE,
) -> F[Tensor, "lists ranks documents"]:
    """Make rows and columns sum to 1 by turns: columns are divided by their sums, then rows.

    Each matrix stops by itself once its sums are within ``tol`` of 1. Sums below 1e-10 count as 1e-10.

    Args:
        matrix: entries >= 0, ``[Q, n, n]``.
        mask: boolean ``[Q, n]``, True where a column has a document, of which there are as many rows, the first ones;
            None: everywhere.
        rounds: at most so many, >= 0.
        tol: > 0.

    Returns:
        ``[Q, n, n]``, 0 where there is no document.

    Raises:
        ValueError: wrong shapes, numbers outside their ranges.

    Example:
        >>> sinkhorn_scaling(torch.tensor([[[3.0, 1.0], [1.0, 1.0]]])).sum(1)
        tensor([[1.0000, 1.0000]])

    Source: Sinkhorn, A Relationship Between Arbitrary Positive Matrices and Doubly Stochastic Matrices, 1964.
    """
    check_tensor("matrix", matrix, ndim=3, floating=True)
    check_number("rounds", rounds, low=0, integer=True)
    check_number("tol", tol, low=0.0, open_low=True)
    matrix = widen(matrix)
    check_tensor("matrix", matrix, shape=(None, matrix.shape[1], matrix.shape[1]))
    _, _, mask = check_lists(matrix[:, 0], torch.zeros_like(matrix[:, 0]), mask)
    rows = torch.arange(matrix.shape[1], device=matrix.device) < mask.sum(-1, keepdim=True)
    matrix = torch.where(rows.unsqueeze(-1) & mask.unsqueeze(-2), matrix, 0.0)
    u, v = balance(matrix, rows, mask, rounds, tol)
    return u.unsqueeze(-1) * matrix * v.unsqueeze(-2)


def neural_ndcg(
    scores: F[Tensor, "lists documents"],
    grades: F[Tensor, "lists documents"],
    *,
    mask: Bool[Tensor, "lists documents"] | None = None,
    tau: float = 1.0,
    k: int | None = None,
    powered: bool = True,
    transposed: bool = False,
    stochastic: bool = False,
    n_samples: int | None = None,
    beta: float | None = None,
    sinkhorn_iters: int = 50,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Minus NDCG@k of gains that a relaxed permutation sorts.

    .. math:: \ell = -\frac{1}{\mathrm{maxDCG}@k} \sum_{r \le k} \frac{(\hat P g)_r}{\log_2(r + 1)}, \qquad
        g = 2^y - 1

    P-hat is :func:`neural_sort` after :func:`sinkhorn_scaling`, of which only products with vectors are formed. As tau
    falls the loss tends to minus NDCG.

    Args:
        scores: s ``[Q, n]``.
        grades: y ``[Q, n]`` >= 0.
        mask: boolean ``[Q, n]``, True where there is a document; None: everywhere.
        tau: temperature > 0.
        k: ranks 1..k alone; None: all.
        powered: gains 2^y - 1; False: y.
        transposed: discounts are spread over documents in place of gains over ranks: the same sum in another order.
        stochastic: the mean over ``n_samples`` draws of scores log(s + \|min s\| + 1e-10) + beta Gumbel noise, the
            minimum being that of the list.
        n_samples: >= 1, of ``stochastic``; None: 32.
        beta: >= 0, of ``stochastic``; None: 0.1.
        sinkhorn_iters: at most so many rounds, >= 0.
        generator: of ``stochastic``; None: torch's own.
        reduction: ``"none"`` (one number a list), ``"mean"`` (over lists whose maxDCG is above 0) or ``"sum"``.

    Returns:
        The loss in float32 or wider; 0 for lists without a grade above 0.

    Raises:
        ValueError: wrong shapes, negative grades, numbers outside their ranges.

    Example:
        >>> neural_ndcg(torch.tensor([[0.2, 1.0, 0.5]]), torch.tensor([[2.0, 0.0, 1.0]]))
        tensor(-0.6906)

    Source: NeuralNDCG: Direct Optimisation of a Ranking Metric via Differentiable Relaxation of Sorting,
    arXiv:2102.07831.
    """
    _check(tau, k, powered, sinkhorn_iters)
    check_flag("transposed", transposed)
    check_flag("stochastic", stochastic)
    only = "stochastic=True"
    draws = int(option_of("n_samples", n_samples, 32, applies=stochastic, only=only, low=1, integer=True))
    beta = option_of("beta", beta, 0.1, applies=stochastic, only=only, low=0.0)
    if generator is not None and not stochastic:
        refuse_type("generator", "None without stochastic=True", generator)
    scores, grades, mask = check_lists(scores, grades, mask)
    if not scores.shape[1]:
        return reduce_lists(scores.sum(-1), mask.any(-1), reduction)
    gains = torch.where(mask, gains_of(grades, powered), 0.0)
    ideal = ideal_dcg(gains, k)
    if stochastic:
        scores = _perturbed(scores, mask, draws, beta, generator).flatten(0, 1)
        gains, mask = (t.expand(draws, *t.shape).flatten(0, 1) for t in (gains, mask))
    with without_autocast(scores):
        value = _expected_dcg(scores, gains, mask, tau, k, sinkhorn_iters, transposed)
    if stochastic:
        value = value.view(draws, *ideal.shape).mean(0)
    counts = ~(ideal <= 0)
    return reduce_lists(-value / torch.where(counts, ideal, 1.0), counts, reduction)


def _check(tau: float, k: int | None, powered: bool, sinkhorn_iters: int) -> None:
    check_number("tau", tau, low=0.0, open_low=True, open_high=True)
    if k is not None:
        check_number("k", k, low=1, integer=True)
    check_flag("powered", powered)
    check_number("sinkhorn_iters", sinkhorn_iters, low=0, integer=True)


def _expected_dcg(
    scores: Tensor, gains: Tensor, mask: Tensor, tau: float, k: int | None, rounds: int, transposed: bool
) -> Tensor:
    """The discounted gain of each list ``[Q]`` under its relaxed permutation."""
    matrix = relaxed_permutation(scores, mask, tau)
    rows = torch.arange(scores.shape[-1], device=scores.device) < mask.sum(-1, keepdim=True)
    u, v = balance(matrix, rows, mask, rounds, TOLERANCE)
    discount = discounts_of(scores, k) * u
    if transposed:
        return (gains * v * times(matrix.transpose(-1, -2), discount)).sum(-1)
    return (discount * times(matrix, gains * v)).sum(-1)


def _perturbed(scores: Tensor, mask: Tensor, n_samples: int, beta: float, generator: torch.Generator | None) -> Tensor:
    """Logarithms of scores with noise, ``[n_samples, Q, n]``."""
    least = torch.where(mask, scores, torch.inf).amin(-1, keepdim=True).abs()
    above = torch.where(mask, scores + least, 0.0) + LEAST_SCORE
    uniform = torch.rand(n_samples, *scores.shape, generator=generator, dtype=scores.dtype, device=scores.device)
    noise = -torch.log(-torch.log(uniform.clamp(torch.finfo(scores.dtype).tiny, 1 - torch.finfo(scores.dtype).eps)))
    return above.log() + beta * noise


class NeuralNDCGLoss(ListLoss):
    """NeuralNDCG as a module over flat scores; see :func:`neural_ndcg`, which also has the form of random draws.

    Args:
        tau: temperature > 0.
        k: ranks 1..k alone; None: all.
        powered: gains 2^y - 1; False: y.
        sinkhorn_iters: at most so many rounds, >= 0.

    Example:
        >>> query = torch.tensor([0, 0, 0])
        >>> NeuralNDCGLoss()(torch.tensor([0.2, 1.0, 0.5]), torch.tensor([2.0, 0.0, 1.0]), query=query)
        tensor(-0.6906)
    """

    name = "neural_ndcg"
    uses_ties = True
    alternatives = {"tau": 0.3, "k": 1, "powered": False, "sinkhorn_iters": 1}
    search = {"tau": Float(0.1, 10.0, log=True)}

    def __init__(self, tau: float = 1.0, k: int | None = None, powered: bool = True, sinkhorn_iters: int = 50) -> None:
        super().__init__()
        _check(tau, k, powered, sinkhorn_iters)
        self.tau, self.k, self.powered, self.sinkhorn_iters = tau, k, powered, sinkhorn_iters

    def counts(self, grades: Tensor, mask: Tensor) -> Tensor:
        """Lists that have a grade above 0."""
        return ~(torch.where(mask, grades, 0.0) <= 0).all(-1)

    def list_losses(self, scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
        """Losses ``[Q]``."""
        return neural_ndcg(
            scores,
            grades,
            mask=mask,
            tau=self.tau,
            k=self.k,
            powered=self.powered,
            sinkhorn_iters=self.sinkhorn_iters,
            reduction="none",
        )

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        """The first two ranks of linear gains at a lower temperature, three rounds."""
        return [{"tau": 0.5, "k": 2, "powered": False, "sinkhorn_iters": 3}]
