"""Similarity-aware momentum surgery: gradients of unlike lengths are brought to one, others are weighed by momenta."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.aggregator import Aggregator, combination
from ...core.checks import check_flag, check_number, check_tensor, refuse, values_visible


class SurgeryState(NamedTuple):
    """What the surgery keeps between steps.

    Args:
        momenta: ``[T, D]``, the moving average of each task's gradient, in float32 or wider.
        variance: scalar in float64, the moving average of the squared dissimilarity.
        steps: scalar int64, calls so far.
    """

    momenta: Tensor
    variance: Tensor
    steps: Tensor


def gradient_magnitude_similarity(gradients: F[Tensor, "T D"]) -> F[Tensor, "T T"]:
    r"""How alike the lengths of gradients are, pair by pair, in [0, 1].

    .. math:: S_{ij} = \frac{2 \|g_i\| \|g_j\|}{\|g_i\|^2 + \|g_j\|^2}

    Args:
        gradients: ``[T, D]``, row i of task i.

    Returns:
        ``[T, T]`` in float32 or wider; 1 on the diagonal and for two gradients of zeros.

    Raises:
        ValueError: not a matrix.
        TypeError: no floating numbers.

    Example:
        >>> gradient_magnitude_similarity(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[1.0000, 0.3846],
                [0.3846, 1.0000]])

    Source: Gradient Similarity Surgery in Multi-Task Deep Learning, arXiv:2506.06130.
    """
    check_tensor("gradients", gradients, ndim=2, floating=True)
    return (1 - _dissimilarity(_lengths(gradients.detach())[1])).to(_wide(gradients))


@torch.no_grad()
def similarity_aware_momentum_surgery(
    gradients: F[Tensor, "T D"],
    state: SurgeryState | None = None,
    *,
    gamma: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    any_pair: bool = False,
) -> tuple[F[Tensor, " D"], SurgeryState]:
    """One step of :class:`SAMGS`, without a module.

    Args:
        gradients: ``[T, D]``, row i of task i.
        state: of the step before; None at the first. It is left as it is.
        gamma, betas, eps, any_pair: as in :class:`SAMGS`.

    Returns:
        The direction ``[D]`` and the state after it.

    Raises:
        ValueError: not a matrix with rows, or of another shape than the state's.
        TypeError: no floating numbers.

    Example:
        >>> direction, state = similarity_aware_momentum_surgery(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), gamma=0.5)
        >>> direction, state.steps
        (tensor([1.8000, 5.4000]), tensor(1))

    Source: Gradient Similarity Surgery in Multi-Task Deep Learning, arXiv:2506.06130.
    """
    check_tensor("gradients", gradients, ndim=2, floating=True)
    if not len(gradients):
        refuse("gradients", "at least one row, a task each", gradients)
    gradients = gradients.detach()
    device, wide = gradients.device, _wide(gradients)
    if state is None:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        state = SurgeryState(torch.zeros_like(gradients, dtype=wide), zero, torch.zeros_like(zero, dtype=torch.int64))
    if state.momenta.shape != gradients.shape:
        refuse("gradients", f"shape {tuple(state.momenta.shape)} as in the calls before", gradients)
    first, second = betas
    kind = torch.promote_types(state.momenta.dtype, wide)
    momenta = state.momenta.to(kind).lerp(gradients.to(kind), 1 - first)
    top, lengths = _lengths(gradients)
    apart = _dissimilarity(lengths)
    upper = torch.triu_indices(len(gradients), len(gradients), offset=1, device=device)
    pairs = apart[upper[0], upper[1]]
    mean = pairs.mean() if len(pairs) else torch.zeros((), dtype=torch.float64, device=device)
    variance = second * state.variance + (1 - second) * mean.square() + eps
    steps = state.steps + 1
    after = SurgeryState(momenta, variance, steps)
    if not len(pairs):
        return gradients[0].clone(), after
    power = steps.double()
    scale = (variance / (1 - second**power)).rsqrt() / (1 - first**power)
    conflict = (pairs.max() if any_pair else mean) > 1 - gamma
    if values_visible(conflict):  # a look at the branch would wait for an accelerator
        return (_equalised(gradients, top, lengths) if conflict else _modulated(gradients, momenta, scale)), after
    return torch.where(conflict, _equalised(gradients, top, lengths), _modulated(gradients, momenta, scale)), after


class SAMGS(Aggregator):
    r"""Gradients whose lengths differ much are brought to one length; others are multiplied by their momenta.

    .. math::
        S = \operatorname{mean}_{i<j} S_{ij}, \quad m_i \leftarrow \beta_1 m_i + (1 - \beta_1) g_i, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2)(1 - S)^2 + \epsilon, \\
        d = \bar n \sum_i g_i / \|g_i\| \text{ if } S < \gamma, \quad \bar n = \operatorname{mean}_i \|g_i\|, \qquad
        d = \sum_i g_i \odot |\hat m_i| / \sqrt{\hat v} \text{ else},

    with S_ij of :func:`gradient_magnitude_similarity`, and with :math:`\hat m_i, \hat v` divided by
    :math:`1 - \beta^t` as in Adam. Gradients of zeros are left out of the sum and of the mean; a single gradient stays
    as it is. The second case is of degree 2 in the gradients and divides by nearly nothing where lengths are alike:
    give the direction to Adam, or clip it.

    Args:
        gamma: similarity below which lengths are in conflict, in [0, 1].
        betas: decay of the momenta and of the dissimilarity, each in [0, 1).
        eps: > 0, added to v at every step.
        any_pair: one pair below gamma is a conflict, as in the publication's code for reinforcement learning.

    Raises:
        ValueError: an argument out of its range; a Jacobian of another shape than that of the calls before.

    Example:
        >>> jacobian = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> SAMGS()(jacobian)
        tensor([14.6250, 27.6250])
        >>> SAMGS(gamma=0.5)(jacobian)
        tensor([1.8000, 5.4000])

    Source: Gradient Similarity Surgery in Multi-Task Deep Learning, arXiv:2506.06130.
    """

    name = "sam_gs"
    properties = frozenset({"permutation_invariant"})
    momenta: Tensor
    variance: Tensor
    steps: Tensor

    def __init__(
        self,
        gamma: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        any_pair: bool = False,
    ) -> None:
        super().__init__()
        check_number("gamma", gamma, low=0.0, high=1.0)
        for beta in betas:
            check_number("betas", beta, low=0.0, high=1.0, open_high=True)
        check_number("eps", eps, low=0.0, open_low=True)
        check_flag("any_pair", any_pair)
        self.gamma, self.betas, self.eps, self.any_pair = gamma, (betas[0], betas[1]), eps, any_pair
        self.register_buffer("momenta", torch.zeros(0, 0))
        self.register_buffer("variance", torch.zeros((), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _aggregate(self, jacobian: Tensor) -> Tensor:
        state = None
        if self.momenta.numel():
            state = SurgeryState(self.momenta, self.variance, self.steps)
        direction, (self.momenta, self.variance, self.steps) = similarity_aware_momentum_surgery(
            jacobian, state, gamma=self.gamma, betas=self.betas, eps=self.eps, any_pair=self.any_pair
        )
        return direction

    def reset(self) -> None:
        """Forget momenta, dissimilarity and steps."""
        self.momenta = self.momenta.new_zeros(0, 0)
        self.variance, self.steps = torch.zeros_like(self.variance), torch.zeros_like(self.steps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (momenta := cast(Tensor | None, state_dict.get(f"{prefix}momenta"))) is not None:
            self.momenta = torch.empty_like(momenta, device=self.momenta.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def instances(cls) -> list[SAMGS]:
        """Both sides of the threshold."""
        return [cls(), cls(gamma=1.0), cls(gamma=0.9, betas=(0.5, 0.9), any_pair=True)]


def _equalised(gradients: Tensor, top: Tensor, lengths: Tensor) -> Tensor:
    there = lengths != 0
    mean = lengths.sum() / there.sum().clamp_min(1)
    weights = torch.where(there, mean * top / lengths, 0.0)
    if values_visible(gradients):
        return combination(weights, gradients, top)
    return (torch.where(there, weights / top, 0.0) @ gradients.double()).to(gradients.dtype)


def _modulated(gradients: Tensor, momenta: Tensor, scale: Tensor) -> Tensor:
    total = torch.zeros_like(momenta[0])
    for gradient, momentum in zip(gradients, momenta):
        total += gradient * momentum.abs()
    return (total * scale).to(gradients.dtype)


def _lengths(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry of each row and its length, in float64; no square of a tiny or a huge number is formed."""
    rows, width = gradients.shape
    if not width:
        zeros = gradients.new_zeros(rows, dtype=torch.float64)
        return zeros, zeros
    top = gradients.abs().amax(1).double()
    if gradients.dtype != torch.float64:
        return top, torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64)
    return top, top * torch.linalg.vector_norm(gradients / torch.where(top == 0, 1.0, top).unsqueeze(1), dim=1)


def _dissimilarity(lengths: Tensor) -> Tensor:
    """1 - S, by the ratio of the shorter to the longer of each pair: exact where they are nearly alike."""
    longer, shorter = torch.maximum(lengths, lengths.unsqueeze(1)), torch.minimum(lengths, lengths.unsqueeze(1))
    ratio = torch.where(longer == 0, 1.0, shorter / longer)
    return (1 - ratio).square() / (1 + ratio.square())


def _wide(gradients: Tensor) -> torch.dtype:
    return torch.promote_types(gradients.dtype, torch.float32)
