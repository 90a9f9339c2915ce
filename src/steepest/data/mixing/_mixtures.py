"""Plain mixing of a batch: partners by permutation, coefficients from a Beta law, the loss of a mixed label."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_number, check_tensor, refuse
from ...core.method import Method, needed
from ...core.objective import Batch, Objective
from ...core.random import RandomStream


def beta_draws(alpha: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws from Beta(alpha, alpha), on the CPU; the generator alone decides them."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, shape)).float()


def convex(lam: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``lam * first + (1 - lam) * second``, with ``lam`` ``[B]`` (or one row of 1) over the first dimension."""
    lam = lam.to(first).reshape(-1, *[1] * (first.ndim - 1))
    return lam * first + (1 - lam) * second


def draw_mixture(
    inputs: F[Tensor, "batch ..."], alpha: float, generator: torch.Generator, *, per_sample: bool = False
) -> tuple[Tensor, I[Tensor, " batch"], F[Tensor, " batch"]]:
    """Mix every row with a partner of the same batch.

    Args:
        inputs: ``[B, ...]``.
        alpha: of Beta(alpha, alpha), > 0.
        generator: on the CPU.
        per_sample: a coefficient for each row, in place of one for the batch.

    Returns:
        The mixtures ``[B, ...]``, the partners' rows ``[B]``, the coefficients of the rows themselves ``[B]``.
    """
    check_tensor("inputs", inputs, floating=True)
    rows = inputs.shape[0]
    partner = torch.randperm(rows, generator=generator).to(inputs.device)
    lam = beta_draws(alpha, (rows if per_sample else 1,), generator).expand(rows).to(inputs.device)
    return convex(lam, inputs, inputs[partner]), partner, lam


def row_losses(objective: Objective, outputs: Tensor, target: Tensor) -> Tensor:
    """The objective's loss of each row ``[B]``.

    Raises:
        ValueError: an objective of the batch, or one that needs more than outputs and target: it has no loss of a
            mixture's two labels.
    """
    if objective.unit != "sample" or objective.needs:
        refuse("objective", "a loss of samples that needs outputs and target only", objective.name)
    by_row = copy.copy(objective)  # shares parameters and buffers
    by_row.reduction = "none"
    losses: Tensor = by_row(outputs, target)
    return losses


def scored(model: nn.Module, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor]:
    """``(loss, outputs)`` of a plain step, with whatever the objective needs."""
    head: Any = getattr(model, "head", None)
    backbone: Any = getattr(model, "backbone", None)
    features = None
    if "features" in objective.needs and head is not None and backbone is not None:
        features = backbone(batch.inputs)
        outputs: Tensor = head(features)
    else:
        outputs = model(batch.inputs)
    return objective(outputs, batch.target, **needed(objective, batch, features, head)), outputs


class Mixup(Method):
    r"""Plain mixup: train on convex combinations of pairs with the same combination of their losses.

    .. math:: L = \lambda L(f(x_\lambda), y) + (1 - \lambda) L(f(x_\lambda), y'), \qquad
        x_\lambda = \lambda x + (1 - \lambda) x', \quad \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    Args:
        alpha: > 0.
        per_sample: a coefficient for each row, in place of one for the batch.
        seed: of partners and coefficients; None takes one from torch's generator.

    Example:
        >>> from steepest.losses import CrossEntropyLoss
        >>> batch = Batch(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))
        >>> Mixup(seed=0).loss(torch.nn.Linear(3, 2), batch, CrossEntropyLoss()).shape
        torch.Size([])

    Source: mixup: Beyond Empirical Risk Minimization, arXiv:1710.09412.
    """

    name = "mixup"

    def __init__(self, alpha: float = 1.0, *, per_sample: bool = False, seed: int | None = None) -> None:
        super().__init__()
        check_number("alpha", alpha, low=0.0, open_low=True)
        self.alpha, self.per_sample = alpha, per_sample
        self.stream = RandomStream(seed)

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """One step's loss."""
        stream = self.stream if self.training else copy.deepcopy(self.stream)
        mixed, partner, lam = draw_mixture(batch.inputs, self.alpha, stream.generator, per_sample=self.per_sample)
        outputs = model(mixed)
        parts = [(lam, batch.target, batch.weight), (1 - lam, batch.target[partner], None)]
        if batch.weight is not None:
            parts[1] = (1 - lam, batch.target[partner], batch.weight[partner])
        return mixed_mean(objective, outputs, parts)


def mixed_mean(objective: Objective, outputs: Tensor, parts: list[tuple[Tensor, Tensor, Tensor | None]]) -> Tensor:
    """The mean over rows of the sum of (coefficient, target, sample weight or None), weights averaged the same way."""
    total = sum(
        (convex_weight(lam, weight) * row_losses(objective, outputs, target) for lam, target, weight in parts),
        start=outputs.new_zeros(()),
    )
    count = sum((convex_weight(lam, weight).detach() for lam, _, weight in parts), start=outputs.new_zeros(()))
    return total.sum() / count.sum()


def convex_weight(lam: Tensor, weight: Tensor | None) -> Tensor:
    """The weight of a part: its coefficient times the weight of the sample that it comes from."""
    return lam if weight is None else lam * weight
