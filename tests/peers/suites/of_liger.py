"""Liger-Kernel's fused linear losses, answered by steepest."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steepest import kernels

FOLDER = "Liger-Kernel"
SCALED = "src/liger_kernel/ops/fused_linear_scaled_cross_entropy.py"
FILES = (
    "test/transformers/test_fused_linear_cross_entropy.py",
    "test/transformers/test_fused_linear_jsd.py",
    "test/transformers/test_fused_linear_scaled_cross_entropy.py",
    "test/cutedsl/test_fused_scaled_cross_entropy_sm90.py",
    "test/chunked_loss/test_jsd_loss.py",
)
SUPPORT = (
    "test/__init__.py",
    "test/conftest.py",
    "test/utils.py",
    "test/cutedsl/__init__.py",
    "test/chunked_loss/__init__.py",
    "test/transformers/test_cross_entropy.py",
    "test/transformers/test_jsd.py",
    SCALED,
)
ON_CPU = (
    (r'device="cuda"', 'device="cpu"'),
    (r"not torch\.cuda\.is_available\(\) or torch\.cuda\.get_device_capability\(\) != \(9, 0\)", "False"),
)
INNER = "about their dispatch and their kernels' parts, of which there are none here"
LEFT_OUT = {
    r"^(?!.*::test_correctness\[.*-1\.0-dtype1-).*8-128-1024-4096": "the same with small odd sizes ran; in float32 the "
    "large ones too, the others take seconds each on a CPU",
    r"scaled_cross_entropy\.py::test_frontend_(uses|dispatches|is_exported)": INNER,
    r"sm90\.py::test_sm90_(backward_uses|m_tiles_values|long_sequence|rejects_scalar|frontend_and_backend)": INNER,
}
EXPLAINED = {
    r"sm90_rejects_bad_dtypes": "they refuse all but bfloat16 and int64; here every floating and integer type is taken",
}
NOT_RUN = {
    f"test/chunked_loss/test_{name}_loss.py": "not expressed yet: steepest has no such loss on a linear head"
    for name in ("cosine", "cpo", "dpo", "grpo", "kto", "orpo", "simpo")
} | {
    "test/cutedsl/test_fused_linear_cross_entropy.py": "compares two of their own kernels on an SM100 GPU",
}


@dataclass
class CrossEntropyOutput:
    """What their functional form gives where more than the loss is asked for."""

    loss: Tensor
    z_loss: Tensor | None = None
    token_accuracy: Tensor | None = None
    predicted_tokens: Tensor | None = None


def fused(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ce_weight: Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
) -> tuple[Any, ...]:
    """``linear_cross_entropy``; scaling by a token's own probability is a weight of tokens."""
    weights = items = None
    if use_token_scaling:
        with torch.no_grad():
            told = kernels.linear_log_probability(x, weight, target, bias=bias, ignore_index=ignore_index)
        weights, items = told.exp(), (target != ignore_index).sum() if reduction == "mean" else None
    loss, seen = kernels.linear_cross_entropy(
        x,
        weight,
        target,
        bias=bias,
        class_weight=ce_weight,
        ignore_index=ignore_index,
        z_loss=lse_square_scale,
        label_smoothing=label_smoothing,
        reduction=reduction,
        softcap=softcap,
        token_weight=weights,
        num_items=items,
        return_stats=True,
    )
    penalty = kernels.log_partition_penalty(seen.lse, token_weight=seen.valid.to(seen.lse.dtype), reduction=reduction)
    return (
        loss,
        lse_square_scale * penalty if return_z_loss else None,
        seen.accuracy if return_token_accuracy else None,
        seen.argmax if return_predicted_tokens else None,
    )


def functional(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Any) -> Any:
    """The loss, or all that was asked for."""
    found = fused(input, weight, target, bias, **options)
    asked = [options.get(f"return_{name}") for name in ("z_loss", "token_accuracy", "predicted_tokens")]
    return CrossEntropyOutput(*found) if any(asked) else found[0]


class Loss(nn.Module):
    """Its options, and the weight first."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, weight: Tensor, x: Tensor, target: Tensor, bias: Tensor | None = None) -> Any:
        """As :func:`functional`."""
        return functional(x, weight, target, bias, **self.options)


def entropy_row(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The entropy of the softmax and its gradient -p (log p + H), for ``linear_loss``."""
    log_p = z.log_softmax(1)
    p = log_p.exp()
    entropy = -torch.linalg.vecdot(p, log_p)
    return entropy, -p * (log_p + entropy.unsqueeze(1))


def scaled(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    ignore_index: int = -100,
    m_tiles_per_cluster: int = 1,
    return_entropy: bool = False,
) -> Any:
    """The loss of each token at a temperature, and the entropy with a gradient of its own."""
    loss = kernels.linear_cross_entropy(
        x, weight, target, ignore_index=ignore_index, temperature=temperature, reduction="none"
    )
    if not return_entropy:
        return loss
    entropy = kernels.linear_loss(
        x, weight, target, entropy_row, ignore_index=ignore_index, temperature=temperature, reduction="none"
    )
    return loss, entropy.to(x.dtype)


def divergence(
    x: Tensor,
    weight: Tensor,
    teacher_x: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None = None,
    beta: float = 0.5,
    ignore_index: int = -100,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
) -> Any:
    """``linear_distillation``; their ends 0 and 1 of beta are the two KL divergences."""
    return kernels.linear_distillation(
        x,
        weight,
        teacher_x,
        teacher_weight,
        divergence={0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jensen_shannon"),
        beta=beta if 0 < beta < 1 else None,
        bias=bias,
        teacher_bias=teacher_bias,
        temperature=temperature,
        token_weight=None if target is None else (target != ignore_index).float(),
    )


def jsd(
    student_input: Tensor,
    student_weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    shift_labels: Tensor | None = None,
    jsd_beta: float = 0.5,
    ignore_index: int = -100,
    temperature: float = 1.0,
    accum_dtype: torch.dtype | None = None,
) -> Any:
    """Theirs of two heads alone."""
    heads = (student_input, student_weight, teacher_input, teacher_weight)
    return divergence(*heads, shift_labels, jsd_beta, ignore_index, temperature)


class JSD(nn.Module):
    """The same with its options kept."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, *tensors: Any) -> Any:
        """As :func:`jsd`."""
        return jsd(*tensors, **self.options)


def distilled(
    student_input: Tensor,
    student_weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    true_labels: Tensor,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    weight_hard_loss: float = 0.5,
    weight_soft_loss: float = 0.5,
    beta: float = 0.5,
    ignore_index: int = -100,
    temperature: float = 1.0,
    *more: Any,
) -> Any:
    """A cross-entropy and a divergence of the same head, weighted."""
    hard = kernels.linear_cross_entropy(
        student_input, student_weight, true_labels, bias=student_bias, ignore_index=ignore_index
    )
    heads = (student_input, student_weight, teacher_input, teacher_weight)
    soft = divergence(*heads, true_labels, beta, ignore_index, temperature, student_bias, teacher_bias)
    return weight_hard_loss * hard + weight_soft_loss * soft


class DistillationLoss(nn.Module):
    """The same with its options kept."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, *tensors: Any) -> Any:
        """As :func:`distilled`."""
        return distilled(*tensors, **self.options)


def applied(function: Any) -> type:
    """A function under the name ``apply``, as an autograd function has it."""
    return type(function.__name__, (), {"apply": staticmethod(function)})


class Absent:
    """A name that their files import beside those that are tested here."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError("not part of the linear cross-entropy")


def their_frontend(root: Path) -> dict[str, Any]:
    """Their file of the scaled loss, whose plain form is a reference, with ours in place of the fused one."""
    spec = importlib.util.spec_from_file_location("their_scaled", root / SCALED)
    if not (root / SCALED).is_file() or spec is None or spec.loader is None:
        return {"LigerFusedLinearScaledCrossEntropyFunction": applied(scaled)}
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {**vars(module), "LigerFusedLinearScaledCrossEntropyFunction": applied(scaled)}


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    names = {
        "LigerFusedLinearCrossEntropyFunction": applied(fused),
        "LigerFusedLinearScaledCrossEntropyFunction": applied(scaled),
        "LigerFusedLinearJSDFunction": applied(jsd),
        "LigerCrossEntropyFunction": Absent,
    }
    chunked = {"LigerFusedLinearJSDFunction": applied(distilled), "LigerFusedLinearJSDLoss": DistillationLoss}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "liger_kernel.utils": {"infer_device": lambda: device, "is_npu_available": lambda: False},
        "liger_kernel.ops": names,
        "liger_kernel.ops.cross_entropy": {"liger_cross_entropy_kernel": Absent},
        "liger_kernel.ops.utils": {"is_hip": lambda: False},
        "liger_kernel.ops.fused_linear_scaled_cross_entropy": their_frontend(root),
        "liger_kernel.ops.cutedsl.ops.fused_scaled_cross_entropy_sm90": {
            "LigerFusedScaledCrossEntropySM90Function": applied(scaled)
        },
        "liger_kernel.transformers.cross_entropy": {"LigerCrossEntropyLoss": Absent},
        "liger_kernel.transformers.fused_linear_cross_entropy": {"LigerFusedLinearCrossEntropyLoss": Loss},
        "liger_kernel.transformers.fused_linear_jsd": {"LigerFusedLinearJSD": JSD},
        "liger_kernel.transformers.jsd": {"LigerJSD": Absent, "LigerJSDFunction": Absent},
        "liger_kernel.transformers.functional": {
            "CrossEntropyOutput": CrossEntropyOutput,
            "liger_fused_linear_cross_entropy": functional,
            "liger_fused_linear_jsd": jsd,
            "liger_cross_entropy": Absent,
            "liger_jsd": Absent,
        },
        "liger_kernel.chunked_loss": chunked,
        "liger_kernel.chunked_loss.jsd_loss": chunked,
        "liger_kernel.chunked_loss.functional": {"liger_fused_linear_jsd": distilled},
    }


LAZY = """

class LigerFusedLinearScaledCrossEntropyFunction:
    @staticmethod
    def apply(*given):
        from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as answered
        return answered.apply(*given)
"""


def after(root: Path) -> None:
    """One file of theirs is loaded from its path: say there, at its end, whose function it is."""
    file = root / SCALED
    file.write_text(file.read_text(encoding="utf-8") + LAZY, encoding="utf-8")
