"""torchtune's losses, answered by steepest; those of plain logits by a head that is the identity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steepest import kernels
from steepest.core.preference import preference_loss

FOLDER = "torchtune"
FILES = tuple(
    f"tests/torchtune/{name}.py"
    for name in (
        "modules/loss/test_cross_entropy_loss",
        "modules/loss/test_ce_chunked_output_loss",
        "modules/loss/test_kd_losses",
        "rlhf/loss/test_dpo_loss",
    )
)
SUPPORT: tuple[str, ...] = ()
ON_CPU: tuple[tuple[str, str], ...] = ()
LEFT_OUT: dict[str, str] = {}
EXPLAINED: dict[str, str] = {}
NOT_RUN: dict[str, str] = {}


def _identity(logits: Tensor) -> Tensor:
    return torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)


def _whole(logits: Tensor | Sequence[Tensor]) -> Tensor:
    return logits if isinstance(logits, Tensor) else torch.cat(list(logits), dim=1)


class ChosenRejectedOutputs(NamedTuple):
    """What their models give of both answers."""

    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_logits: Tensor
    rejected_logits: Tensor


class LinearCrossEntropyLoss(nn.Module):
    """The head is the model's ``output``, with its bias as there."""

    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100, **more: Any) -> None:
        super().__init__()
        self.num_output_chunks, self.ignore_index = num_output_chunks, ignore_index
        self.head: nn.Linear | None = None

    def set_model_output(self, model: Any) -> None:
        """Take the head of the model."""
        self.head = model.output

    def forward(self, outputs: Tensor, targets: Tensor) -> Any:
        """The mean over targets that count."""
        assert self.head is not None
        return kernels.linear_cross_entropy(
            outputs, self.head.weight, targets, bias=self.head.bias, ignore_index=self.ignore_index
        )


class _OfLogits(nn.Module):
    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100, sym_kd_ratio: float = 0.5) -> None:
        super().__init__()
        self.num_output_chunks, self.ignore_index, self.sym_kd_ratio = num_output_chunks, ignore_index, sym_kd_ratio


class CEWithChunkedOutputLoss(_OfLogits):
    """Cross-entropy of logits in chunks."""

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Any:
        """The mean over labels that count."""
        whole = _whole(logits)
        return kernels.linear_cross_entropy(whole, _identity(whole), labels, ignore_index=self.ignore_index)


class ForwardKLLoss(_OfLogits):
    """-sum t log s, without the teacher's entropy, as there: a cross-entropy with probabilities."""

    def forward(self, student: Any, teacher: Any, labels: Tensor) -> Any:
        """The mean over labels that count."""
        s, t = _whole(student), _whole(teacher)
        counts = (labels != self.ignore_index).float()
        return kernels.linear_cross_entropy(s, _identity(s), t.float().softmax(-1), token_weight=counts)


class ReverseKLLoss(_OfLogits):
    """KL(s || t)."""

    def forward(self, student: Any, teacher: Any, labels: Tensor) -> Any:
        """The mean over labels that count."""
        s, t = _whole(student), _whole(teacher)
        counts = (labels != self.ignore_index).float()
        return kernels.linear_distillation(
            s, _identity(s), t, _identity(t), divergence="reverse_kl", token_weight=counts
        )


class SymmetricKLLoss(_OfLogits):
    """Both, by ``sym_kd_ratio``."""

    def forward(self, student: Any, teacher: Any, labels: Tensor) -> Any:
        """The mean over labels that count."""
        forward, reverse = (kind(ignore_index=self.ignore_index) for kind in (ForwardKLLoss, ReverseKLLoss))
        ratio = self.sym_kd_ratio
        return ratio * forward(student, teacher, labels) + (1 - ratio) * reverse(student, teacher, labels)


class DPOLoss(nn.Module):
    """The logistic loss of preferences."""

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.options = {"beta": beta, "label_smoothing": label_smoothing}
        self.loss_type = "sigmoid"

    def forward(self, policy: ChosenRejectedOutputs, reference: ChosenRejectedOutputs) -> Any:
        """Losses and rewards."""
        logps = (policy.chosen_logps, policy.rejected_logps, reference.chosen_logps, reference.rejected_logps)
        return preference_loss(*logps, self.loss_type, **self.options)


class RSOLoss(DPOLoss):
    """The hinge loss of preferences."""

    def __init__(self, gamma: float = 0.1) -> None:
        super().__init__(gamma)
        self.loss_type = "hinge"


def assert_expected(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-8, **more: Any) -> None:
    """Their helper of this name."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_device=True, **more)


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    kinds = {"ForwardKL": ForwardKLLoss, "ReverseKL": ReverseKLLoss, "SymmetricKL": SymmetricKLLoss}
    return {
        "torchtune.modules.loss": {
            "LinearCrossEntropyLoss": LinearCrossEntropyLoss,
            "CEWithChunkedOutputLoss": CEWithChunkedOutputLoss,
            **{f"{name}Loss": kind for name, kind in kinds.items()},
            **{f"{name}WithChunkedOutputLoss": kind for name, kind in kinds.items()},
        },
        "torchtune.rlhf._types": {"ChosenRejectedOutputs": ChosenRejectedOutputs},
        "torchtune.rlhf.loss": {"DPOLoss": DPOLoss, "RSOLoss": RSOLoss},
        "torchtune.training.seed": {"set_seed": torch.manual_seed},
        "tests.test_utils": {"assert_expected": assert_expected},
    }
