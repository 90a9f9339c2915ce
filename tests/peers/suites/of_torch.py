"""torch's own sample inputs of ``linear_cross_entropy``, answered by steepest; this file holds the tests as well.

They come from ``torch.testing._internal``, which torch installs: the samples of its operator and of its module.
"""

from __future__ import annotations

import importlib.util
import unittest
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from steepest import kernels

FOLDER = ""
FILES = ("of_torch.py",)
SUPPORT: tuple[str, ...] = ()
ON_CPU: tuple[tuple[str, str], ...] = ()
LEFT_OUT: dict[str, str] = {}
EXPLAINED: dict[str, str] = {}
NOT_RUN: dict[str, str] = {}

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
VARIANTS = ("", "chunked", "chunked_none")


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Nothing to take the place of, but a base class that their tests of printed text want."""
    return {} if importlib.util.find_spec("expecttest") else {"expecttest": {"TestCase": unittest.TestCase}}


def operator(variant: str) -> Any:
    """torch's entry of the operator."""
    from torch.testing._internal.common_methods_invocations import op_db

    name = "nn.functional.linear_cross_entropy"
    return next(each for each in op_db if each.name == name and each.variant_test_name == variant)


def compare(arguments: tuple[Any, ...], options: dict[str, Any], what: str) -> None:
    """Value and gradients of ours beside torch's in the same type and in float64, with unequal weights of losses."""

    def run(function: Any, kind: torch.dtype | None, **given: Any) -> tuple[Any, list[Any]]:
        leaves, own = [], []
        for each in (*arguments, *given.values()):
            if isinstance(each, torch.Tensor) and each.is_floating_point():
                each = each.detach().to(kind or each.dtype).requires_grad_(each.requires_grad)
                leaves += [each] if each.requires_grad else []
            own.append(each)
        value = function(*own[: len(arguments)], **dict(zip(given, own[len(arguments) :])))
        slopes = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device).reshape(value.shape)
        return value.detach(), list(torch.autograd.grad(value, leaves, slopes, allow_unused=True)) if leaves else []

    plain = {key: value for key, value in options.items() if key != "options"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = run(kernels.torch_linear_cross_entropy, None, **options)
        theirs = run(functional.linear_cross_entropy, None, **plain)
        exact = run(functional.linear_cross_entropy, torch.float64, **plain)
    # a loss is log Z minus a logit, and carries their rounding
    with torch.no_grad():
        x, weight = (each.double() for each in arguments[:2])
        largest = float(functional.linear(x, weight.reshape(-1, weight.shape[-1])).abs().max())
    assert (ours[0].dtype, ours[0].shape) == (theirs[0].dtype, theirs[0].shape), what
    for mine, peer, true in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), (exact[0], *exact[1]), strict=True):
        assert (mine is None) == (peer is None), f"{what}: a gradient that one has and the other hasn't"
        if mine is None:
            continue
        size = max(float(true.abs().max()) if true.numel() else 0.0, largest if mine is ours[0] else 0.0)
        allowed = 2 * (peer.double() - true).abs().max() + 4 * torch.finfo(mine.dtype).eps * size
        far = (mine.double() - true).abs().max()
        assert far <= allowed or bool((mine.isnan() & true.isnan()).all()), f"{what}: {far} from float64, {allowed}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_operator(variant: str, dtype: torch.dtype) -> None:
    samples = list(operator(variant).sample_inputs(DEVICE, dtype, requires_grad=True))
    assert samples
    for number, sample in enumerate(samples):
        compare((sample.input, *sample.args), sample.kwargs, f"sample {number}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_module(dtype: torch.dtype) -> None:
    from torch.testing._internal.common_modules import module_db

    info = next(each for each in module_db if each.name == "nn.LinearCrossEntropyLoss")
    found = info.module_inputs_func(info, DEVICE, dtype, True, True)
    assert found
    for number, case in enumerate(found):
        made = case.constructor_input
        module = torch.nn.LinearCrossEntropyLoss(*made.args, **made.kwargs)
        x, target = case.forward_input.args
        weight = module.linear.weight.reshape(module.num_classes, *module.out_features, x.shape[-1])
        bias = module.linear.bias
        compare(
            (x, weight.detach().requires_grad_(), target),
            {
                "linear_bias": None if bias is None else bias.reshape(weight.shape[:-1]).detach().requires_grad_(),
                "weight": module.weight,
                "reduction": module.reduction,
                "ignore_index": module.ignore_index,
                "label_smoothing": module.label_smoothing,
                "options": module.options,
            },
            f"module input {number}",
        )


def test_errors() -> None:
    for number, case in enumerate(operator("").error_inputs(DEVICE)):
        sample = case.sample_input
        try:
            kernels.torch_linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)
        except (ValueError, TypeError, RuntimeError):
            continue
        raise AssertionError(f"error input {number} is taken: {case.error_regex}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: str) -> None:
    """Central differences in float64, as torch's own test of gradients."""
    for sample in operator(variant).sample_inputs(DEVICE, torch.float64, requires_grad=True):
        leaves = [t for t in (sample.input, *sample.args, *sample.kwargs.values()) if isinstance(t, torch.Tensor)]
        leaves = [t for t in leaves if t.requires_grad]

        def value(*_: Any, sample: Any = sample) -> Any:
            return kernels.torch_linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.autograd.gradcheck(value, tuple(leaves), fast_mode=True)
