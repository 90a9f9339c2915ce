"""Conformance of losses of tokens, on what ``samples()`` gives: logits, labels, and what is aligned with them.

``check_token_loss(cls)`` runs all; ``token_loss_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``. All
that :mod:`~steepest.testing.loss` asks comes first; then what padding, masks, micro-batches, packed rows and heads must
not change.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.loss import Sample
from ..core.token_loss import TokenLoss
from ..core.token_reductions import MODES
from ._common import close, private, rebuilds
from ._suite import bound, run_all
from .loss import CHECKS as LOSS_CHECKS
from .loss import differentiable, loss_cases, of_copy

OUTSIDE = (math.nan, math.inf, 1e4)
"""What may stand where no token counts."""


def token_cases(cls: type[TokenLoss], dtype: torch.dtype = torch.float64) -> Iterator[tuple[TokenLoss, Sample]]:
    """Fresh instances with logits ``[B, T, V]`` and labels ``[B, T]``, B unlike T, some ignored."""
    for loss, (args, kwargs) in loss_cases(cls, dtype):
        assert isinstance(loss, TokenLoss), "not a TokenLoss"
        (rows, steps), ignored = args[1].shape, args[1] == loss.ignore_index
        assert rows != steps, "samples(): B and T differ"
        assert rows > 1, "samples(): two rows and more"
        assert ignored.any(), "samples(): a label is ignored"
        assert not ignored.all(1).any(), "samples(): each row has a token"
        yield loss, (args, kwargs)


def aligned(loss: TokenLoss, value: Any, labels: Tensor, change: Callable[[Tensor, str], Tensor]) -> Any:
    """``value`` changed where its first sizes are those of tokens, or it has one number a sequence."""
    if not isinstance(value, Tensor):
        return value
    if value.shape[:2] == labels.shape:
        return change(value, "labels" if value is labels else "tokens")
    return change(value, "sequences") if value.shape == labels.shape[:1] else value


def changed(loss: TokenLoss, sample: Sample, change: Callable[[Tensor, str], Tensor]) -> Sample:
    """A sample of which all that is aligned with the labels is changed."""
    (source, labels, *more), kwargs = sample
    positional = tuple(aligned(loss, value, labels, change) for value in (source, labels, *more))
    return positional, {name: aligned(loss, value, labels, change) for name, value in kwargs.items()}


def value_and_slopes(loss: TokenLoss, sample: Sample, **further: Any) -> tuple[Tensor, list[Tensor]]:
    """The value on a private copy, and the gradient in every differentiable argument."""
    args, kwargs = sample
    run, leaves = differentiable(loss, args, {**kwargs, **further}, call=of_copy)
    inputs = [leaf.requires_grad_() for leaf in leaves]
    value = run(*inputs)
    return value, list(torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True))


def check_padding(cls: type[TokenLoss]) -> None:
    """Four more columns that are ignored change neither value nor gradient, whatever stands there."""
    for loss, sample in token_cases(cls):
        wanted, slopes = value_and_slopes(loss, sample)
        steps = sample[0][1].shape[1]
        for content in OUTSIDE:

            def pad(value: Tensor, kind: str, content: float = content, loss: TokenLoss = loss) -> Tensor:
                if kind == "sequences":
                    return value
                outside = loss.ignore_index if kind == "labels" else content if value.is_floating_point() else 0
                more = value.new_full((value.shape[0], 4, *value.shape[2:]), outside)
                return torch.cat([value, more], 1)

            result, padded = value_and_slopes(loss, changed(loss, sample, pad))
            close(result, wanted, 1e-12, f"padding of {content}")
            for a, b in zip(padded, slopes):
                if a.shape != b.shape:
                    assert not a[:, steps:].any(), f"padding of {content} gets a gradient"
                    a = a[:, :steps]
                close(a, b, 1e-12, f"gradient beside padding of {content}")


def check_outside(cls: type[TokenLoss]) -> None:
    """NaN, inf and large numbers where labels are ignored leave the bits of the value and of all gradients."""
    for dtype in (torch.float32, torch.float64):
        for loss, sample in token_cases(cls, dtype):
            ignored = sample[0][1] == loss.ignore_index
            clean = changed(loss, sample, lambda v, kind, where=ignored: _filled(v, kind, where, 0.0))
            wanted, slopes = value_and_slopes(loss, clean)
            for content in OUTSIDE:
                dirty = changed(loss, sample, lambda v, kind, w=ignored, c=content: _filled(v, kind, w, c))
                result, own = value_and_slopes(loss, dirty)
                assert torch.equal(result, wanted), f"{content} under an ignored label: {result} is not {wanted}"
                assert all(map(torch.equal, own, slopes)), f"{content} under an ignored label: another gradient"


def _filled(value: Tensor, kind: str, where: Tensor, content: float) -> Tensor:
    if kind != "tokens" or not value.is_floating_point():
        return value
    return value.masked_fill(where.reshape(*where.shape, *[1] * (value.ndim - 2)), content)


def check_nothing(cls: type[TokenLoss]) -> None:
    """Where no token counts the loss is 0, with a graph, and gradients are 0; so is that of no rows at all."""
    for loss, sample in token_cases(cls):

        def ignore(value: Tensor, kind: str, loss: TokenLoss = loss) -> Tensor:
            return torch.full_like(value, loss.ignore_index) if kind == "labels" else value

        for few in (changed(loss, sample, ignore), changed(loss, sample, lambda v, _: v[:0])):
            for further in ({}, {"num_items": loss.count_items(few[0][1])}):
                value, slopes = value_and_slopes(loss, few, **further)
                assert value.requires_grad, "no graph"
                assert value == 0, f"{value} where nothing counts"
                assert not any(slope.any() for slope in slopes), "a gradient where nothing counts"


def check_micro_batches(cls: type[TokenLoss]) -> None:
    """By the count of the whole, losses of the rows one by one sum to the loss of the batch, and so do gradients."""
    for loss, sample in token_cases(cls):
        labels = sample[0][1]
        items = loss.count_items(labels)
        whole, slopes = value_and_slopes(loss, sample)
        numbers = [items, items.item()] if items.ndim == 0 else [items]
        for number in numbers:
            close(value_and_slopes(loss, sample, num_items=number)[0], whole, 1e-12, "num_items of the batch")
        rows = [changed(loss, sample, lambda v, _, i=i: v[i : i + 1]) for i in range(len(labels))]
        by_row = [value_and_slopes(loss, row, num_items=items) for row in rows]
        close(torch.stack([value for value, _ in by_row]).sum(), whole, 1e-12, "sum over micro-batches")
        for place, slope in enumerate(slopes):
            own = [gradients[place] for _, gradients in by_row]
            joined = torch.cat(own) if slope.shape[:1] == labels.shape[:1] else torch.stack(own).sum(0)
            close(joined, slope, 1e-12, "gradients of micro-batches")


def check_order(cls: type[TokenLoss]) -> None:
    """Rows in another order give the same."""
    for loss, sample in token_cases(cls):
        close(of_copy(loss, *changed(loss, sample, lambda v, _: v.flip(0))), of_copy(loss, *sample), 1e-12, "order")


def check_packed(cls: type[TokenLoss]) -> None:
    """Sequences that are packed into one row, told apart by ``segments``, give what they give in rows of their own."""
    for loss, sample in token_cases(cls):
        rows, steps = sample[0][1].shape
        if any(isinstance(v, Tensor) and v.shape == (rows,) for v in [*sample[0], *sample[1].values()]):
            continue  # one number a sequence has no place in a row of several
        packed = changed(loss, sample, lambda v, _: v.flatten(0, 1).unsqueeze(0))
        numbers = torch.arange(rows).repeat_interleave(steps).unsqueeze(0)
        result, _ = value_and_slopes(loss, packed, segments=numbers)
        close(result, of_copy(loss, *sample), 1e-12, "packed rows")


def check_single(cls: type[TokenLoss]) -> None:
    """Logits ``[T, V]`` with labels ``[T]`` are a batch of one."""
    for loss, sample in token_cases(cls):
        one = changed(loss, sample, lambda v, _: v[:1])
        alone = changed(loss, sample, lambda v, _: v[0])
        close(of_copy(loss, *alone), of_copy(loss, *one), 1e-12, "a single sequence")


def check_shift(cls: type[TokenLoss]) -> None:
    """Adding a constant to all logits of a token changes nothing; where the member says so, it does."""
    for loss, sample in token_cases(cls):
        args, kwargs = sample
        more = torch.linspace(-3, 3, args[1].numel(), dtype=args[0].dtype).reshape(*args[1].shape, 1)
        result, wanted = of_copy(loss, (args[0] + more, *args[1:]), kwargs), of_copy(loss, args, kwargs)
        if cls.shift_invariant:
            close(result, wanted, 1e-12, "a constant on all logits")
        else:
            assert (result - wanted).abs() > 1e-6, "shift_invariant: it is"


def check_head(cls: type[TokenLoss]) -> None:
    """Hidden states and a head give what their logits give, in value and in gradients of both."""
    for loss, (args, kwargs) in token_cases(cls):
        classes, width = args[0].shape[-1], 3
        generator = torch.Generator().manual_seed(3)
        hidden = torch.randn(*args[1].shape, width, generator=generator, dtype=args[0].dtype, requires_grad=True)
        head = torch.randn(classes, width, generator=generator, dtype=args[0].dtype, requires_grad=True)
        bias = torch.randn(classes, generator=generator, dtype=args[0].dtype, requires_grad=True)
        for softcap in (None, 2.0):
            logits = hidden @ head.T + bias
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            wanted = private(loss)(logits, *args[1:], **kwargs)
            result = private(loss)(hidden, args[1], head, *args[2:], bias=bias, softcap=softcap, **kwargs)
            close(result, wanted, 1e-10, f"a head, softcap {softcap}")
            leaves = (hidden, head, bias)
            for name, a, b in zip(
                ("hidden", "head", "bias"), torch.autograd.grad(result, leaves), torch.autograd.grad(wanted, leaves)
            ):
                close(a, b, 1e-10, f"gradient in {name}, softcap {softcap}")


def check_hyper_parameters(cls: type[TokenLoss]) -> None:
    """Every number, flag and word of ``__init__`` has another value in ``alternatives``, which changes the loss."""
    shared = set(inspect.signature(TokenLoss.__init__).parameters)
    own = inspect.signature(cls.__init__).parameters
    plain = {name for name, p in own.items() if isinstance(p.default, (bool, int, float, str))} - shared
    missing = plain - set(cls.alternatives)
    assert not missing, f"alternatives: no other value of {sorted(missing)}"
    samples = list(token_cases(cls))
    before = [value_and_slopes(loss, sample) for loss, sample in samples]
    for name, another in cls.alternatives.items():
        moved = False
        for (_, sample), again, (value, slopes) in zip(samples, rebuilds(cls, lambda: loss_cases(cls)), before):
            try:
                result, own_slopes = value_and_slopes(again(**{name: another}), sample)
            except ValueError:  # an option of another case
                continue
            moved |= not torch.equal(result, value) or not all(map(torch.equal, own_slopes, slopes))
        assert moved, f"{name}={another!r} changes neither the loss nor its gradient"


def check_large(cls: type[TokenLoss]) -> None:
    """Logits of a thousand, in float32, give a finite loss and finite gradients."""
    for loss, (args, kwargs) in token_cases(cls, torch.float32):
        value, slopes = value_and_slopes(loss, ((args[0].sign() * 1e3, *args[1:]), kwargs))
        assert value.isfinite(), f"{value} for logits of 1000"
        assert all(slope.isfinite().all() for slope in slopes), "a gradient for logits of 1000"


def check_narrowed(cls: type[TokenLoss]) -> None:
    """A module that is made half is the module that it was: its tables are not rounded."""
    for dtype in (torch.float16, torch.bfloat16):
        for loss, (args, kwargs) in token_cases(cls, torch.float32):
            narrow = private(loss).to(dtype)
            result, wanted = narrow(*args, **kwargs), of_copy(loss, args, kwargs)
            assert torch.equal(result, wanted), f"to({dtype}) rounds the tables of the loss: {result} is not {wanted}"


def check_compile(cls: type[TokenLoss]) -> None:
    """A stateless member compiles into one graph with the same numbers, from logits and from a head."""
    if cls.stateful:
        return
    loss, (args, kwargs) = next(token_cases(cls))
    generator = torch.Generator().manual_seed(3)
    hidden, head = (
        torch.randn(*shape, 3, generator=generator, dtype=args[0].dtype)
        for shape in (args[1].shape, args[0].shape[-1:])
    )
    for leaves in ((args[0],), (hidden, head)):
        results = []
        torch.compiler.reset()
        for run in (private(loss), torch.compile(private(loss), backend="aot_eager", fullgraph=True)):
            own = [leaf.clone().requires_grad_() for leaf in leaves]
            value = run(own[0], args[1], *own[1:], *args[2:], **kwargs)
            results.append([value, *torch.autograd.grad(value, own)])
        for result, wanted in zip(*results):
            close(wanted, result, 1e-10, "compiled loss")


def check_aggregation(cls: type[TokenLoss]) -> None:
    """Every way to aggregate is taken, or refused by a loss of sequences."""
    again = rebuilds(cls, lambda: loss_cases(cls))[0]
    _, (args, kwargs) = next(token_cases(cls))
    values = []
    for mode in MODES:
        options = {"aggregation": mode, **({"length": 8.0} if mode == "constant" else {})}
        if cls.unit == "sequence":
            try:
                again(**options)
            except TypeError:
                continue
            raise AssertionError(f"aggregation={mode!r} was taken by a loss of sequences")
        values.append(of_copy(again(**options), args, kwargs))
    assert len({float(value) for value in values}) == len(values), "two ways to aggregate give the same"


CHECKS: tuple[Callable[[type[TokenLoss]], None], ...] = (
    *LOSS_CHECKS, check_padding, check_outside, check_nothing, check_micro_batches, check_order, check_packed,
    check_single, check_shift, check_head, check_hyper_parameters, check_large, check_aggregation,
    check_narrowed, check_compile,
)  # fmt: skip


def token_loss_checks(cls: type[TokenLoss]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_token_loss(cls: type[TokenLoss]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(token_loss_checks(cls), cls)
