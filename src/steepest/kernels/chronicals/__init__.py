"""Chronicals: what makes fine-tuning fast, part by part.

Fused RMSNorm, SwiGLU and query-key rotation (Triton on CUDA, C++ on the CPU), the two rates
of LoRA+, packing by best fit, and a guard that tells a fast run from one whose gradients are zero. The cross-entropy
over a large vocabulary without its logits is the system cut-cross-entropy.
"""

from __future__ import annotations

from .guard import ZeroGradientGuard
from .lora_plus import LoRAPlus, lora_plus_groups
from .packing import PackedSequences, best_fit_decreasing, pack_sequences
from .rms_norm import fused_rms_norm
from .rope import fused_qk_rope, rotary_table
from .swiglu import fused_swiglu

__all__ = [
    "LoRAPlus",
    "PackedSequences",
    "ZeroGradientGuard",
    "best_fit_decreasing",
    "fused_qk_rope",
    "fused_rms_norm",
    "fused_swiglu",
    "lora_plus_groups",
    "pack_sequences",
    "rotary_table",
]
