"""Cross-entropy of the next token: what language models are trained with, and what other losses are compared with."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from ...core.checks import check_number
from ...core.loss import Sample
from ...core.token_loss import TokenLoss
from ...kernels.token_statistics import token_statistics


class TokenCrossEntropyLoss(TokenLoss):
    r"""Negative log-likelihood of the labels, with a share of the entropy of the model's own prediction.

    .. math:: L = \frac1n \sum_t -\log p_t(y_t) - \beta H(p_t)

    Args:
        entropy_bonus: :math:`\beta` >= 0, 0 is cross-entropy.
        aggregation, length, ignore_index: see :class:`~steepest.core.token_loss.TokenLoss`.

    Example:
        >>> loss = TokenCrossEntropyLoss()
        >>> loss(torch.tensor([[[2.0, 1.0, 0.0], [9.0, 9.0, 9.0]]]), torch.tensor([[0, -100]]))
        tensor(0.4076)

    Source: of the entropy term: Regularizing Neural Networks by Penalizing Confident Output Distributions,
    arXiv:1701.06548.
    """

    name = "token_cross_entropy"
    alternatives = {"entropy_bonus": 0.2}

    def __init__(
        self,
        entropy_bonus: float = 0.0,
        *,
        aggregation: str | None = None,
        length: float | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(aggregation=aggregation, length=length, ignore_index=ignore_index)
        check_number("entropy_bonus", entropy_bonus, low=0.0)
        self.entropy_bonus = entropy_bonus

    def token_losses(
        self, source: Tensor, labels: Tensor, head: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        want = ("log_p", "entropy") if self.entropy_bonus else ("log_p",)
        of_tokens = token_statistics(source, labels, head, want=want, ignore_index=self.ignore_index, **options)
        assert of_tokens.log_p is not None
        losses = -of_tokens.log_p
        if of_tokens.entropy is not None:
            losses = losses - self.entropy_bonus * of_tokens.entropy
        return losses, of_tokens.valid

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Logits and labels of a few short sequences."""
        return [(cls(), (cls.sample_tokens(generator, dtype, device), {}))]
