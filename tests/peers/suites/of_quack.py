"""QuACK's linear cross-entropy, answered by steepest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from steepest import kernels

ours = kernels.linear_cross_entropy

FOLDER = "quack"
FILES = ("tests/test_linear_cross_entropy.py",)
SUPPORT: tuple[str, ...] = ()
ON_CPU = ((r'device = "cuda"', 'device = "cpu"'),)
LEFT_OUT = {
    r"test_chunked_linear_cross_entropy\[.*-(50264|128256)-": "heads of 40 to 130 million numbers, three copies in "
    "float32 each: minutes on a CPU",
}
EXPLAINED = {
    "torch_compile_dispatch": "the sum is the same bit by bit; a mean is divided elsewhere under torch.compile, and "
    "elements near 0 round otherwise. Both are as near to float64, 0.0024 of the norm, and torch's own 0.0034",
}
NOT_RUN: dict[str, str] = {}


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean", **more: Any
) -> Any:
    """Chunks, tuning and the scaled exponential are ways there; here ``memory`` is the only one."""
    return ours(x, weight, target, ignore_index=ignore_index, reduction=reduction)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Torch's, on whole logits."""
    logits = functional.linear(x, weight, bias)
    return functional.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    return {
        "quack.linear_cross_entropy": {
            "chunked_linear_cross_entropy": linear_cross_entropy,
            "scaled_exp_linear_cross_entropy": linear_cross_entropy,
            "scaled_exp_lce_supported": lambda *_: True,
            "linear_cross_entropy_func_ref": reference,
        }
    }
