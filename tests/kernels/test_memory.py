"""Memory of the fused head beyond inputs and gradients, counted operation by operation, against ``memory=``."""

from __future__ import annotations

import pytest
import torch

from steepest.core.allocations import peak_bytes
from steepest.kernels import linear_cross_entropy, linear_distillation, linear_loss
from steepest.kernels._memory import CPU_CHUNK, budget, plan
from steepest.losses import FocalLoss


def extra(loss, leaves) -> int:
    """Bytes beyond the gradients at the worst moment of a forward and backward pass."""
    most = peak_bytes(lambda: loss(*leaves).sum().backward())
    return most - sum(leaf.grad.nbytes for leaf in leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "label_smoothing": 0.1, "return_stats": True}], ids=str)
def test_temporaries_stay_within_memory(options, reduction, dtype):
    rows, width, classes = 150, 8, 5003
    target = torch.randint(classes, (rows,))
    for memory in (1 << 18, 1 << 19, 5 << 18, 15 << 19):
        leaves = [torch.randn(n, width).to(dtype).requires_grad_() for n in (rows, classes)]

        def loss(h, w, memory=memory):
            found = linear_cross_entropy(h, w, target, memory=memory, reduction=reduction, **options)
            return found[0] if isinstance(found, tuple) else found

        # single numbers a row and a class come on top
        assert extra(loss, leaves) <= memory + 100 * rows + 16 * classes


def test_the_whole_matrix_takes_more():
    """The count sees what the plain loss holds."""
    rows, width, classes = 600, 8, 5003
    leaves = [torch.randn(n, width, requires_grad=True) for n in (rows, classes)]
    target = torch.randint(classes, (rows,))
    used = extra(lambda h, w: torch.nn.functional.cross_entropy(h @ w.T, target), leaves)
    assert used > 2 * 4 * rows * classes


@pytest.mark.parametrize("memory", [1 << 19, 3 << 19])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", ["focal", "forward_kl", "reverse_kl", "jensen_shannon"])
def test_other_row_functions_stay_within_memory(kind, reduction, memory):
    rows, width, classes = 150, 8, 5003
    target = torch.randint(classes, (rows,))
    teacher = torch.randn(rows, 12), torch.randn(classes, 12)
    leaves = [torch.randn(n, width, requires_grad=True) for n in (rows, classes)]
    told = {"memory": memory, "reduction": reduction}

    def loss(h, w):
        if kind == "focal":
            return linear_loss(h, w, target, FocalLoss(gamma=2.0).fused_row, **told)
        return linear_distillation(h, w, *teacher, divergence=kind, **told)

    assert extra(loss, leaves) <= memory + 100 * rows


def test_rows_of_a_chunk_follow_from_bytes():
    for classes in (1000, 32000, 64000, 256000):
        for rows in (64, 512, 4096, 100_000):
            for limit in (1 << 20, 64 << 20, 1 << 30):
                found = plan(rows, classes, 4, limit, scalar=True, pieces=2)
                if found.mode == "slab":
                    held = 4 * rows * found.columns
                else:
                    held = 4 * classes * min(found.rows, rows)
                assert found.rows >= 1
                assert found.columns >= 1
                assert held + 2 * found.piece <= limit or 1 in (found.rows, found.columns)
                # nothing about the width of hidden states: as many rows as fit, in steps of 64
                if found.mode == "chunk" and found.rows >= 128:
                    assert held > 0.6 * (limit - 2 * found.piece)


def test_budgets():
    cpu = torch.device("cpu")
    assert budget("auto", cpu) == CPU_CHUNK
    assert budget(12345, cpu) == 12345
    assert budget(0.5, cpu) > 1 << 20
    assert budget(2.0, cpu) == 2
    for wrong in (0, -1, 0.0, "all"):
        with pytest.raises(ValueError, match="memory"):
            budget(wrong, cpu)
    with pytest.raises(TypeError, match="memory"):
        budget(None, cpu)
