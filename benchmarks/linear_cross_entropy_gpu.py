"""Loss and both gradients of a linear head under cross-entropy on a GPU: ours, its peers, the matrix products alone.

Per shape: our gradients of a slice of tokens are checked against float64; then interleaved rounds time every way to do
it beside the three matrix products that nobody can leave out. Prints the smallest and the median time, the ratio to
those products, the peak of memory beyond the gradients, and what is aimed at. ``--tune`` times the row kernel alone by
columns a step and warps. ``--quick`` runs all of it on a few tokens, on the CPU.

    python benchmarks/linear_cross_entropy_gpu.py [--heads 2304x256000,4096x128256] [--tokens 8192,1024,131072]
        [--rounds 20] [--tune] [--device cuda] [--quick]
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _options import read_options
from _record import keep
from torch import Tensor
from torch.nn import functional

from steepest.kernels import GradientFilter, linear_cross_entropy
from steepest.kernels import _head as planning

GB = 1e9
LIVE = 0.2
BOUND = 3.0
PRODUCTS = "three products"
PLAIN = "plain"
AIMS = {"ours, chunks": (1.12, 3, 1.05), "ours, slabs": (1.10, 4, 0.35)}
"""By name: at most so many times so many products, within so many GB (chunks: beside the float32 sum of the weight)."""

Loss = Callable[..., Tensor]


class Case:
    """Tokens, a head and targets, all bfloat16, on a device."""

    def __init__(self, tokens: int, width: int, classes: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)
        options = {"generator": generator, "device": device}
        self.tokens, self.width, self.classes, self.device = tokens, width, classes, device
        self.hidden = torch.randn(tokens, width, **options).bfloat16().requires_grad_()
        self.weight = (torch.randn(classes, width, **options) * (2 / width**0.5)).bfloat16().requires_grad_()
        self.target = torch.randint(classes, (tokens,), **options)
        alive = torch.arange(classes, device=device) < LIVE * classes
        self.few = torch.where(alive, 0.0, -60.0).bfloat16()
        self.lively = self.target % max(1, int(LIVE * classes))

    @property
    def name(self) -> str:
        return f"{self.tokens}x{self.width}x{self.classes}"

    def step(self, loss: Loss) -> Callable[[], None]:
        """One forward and backward pass; the gradients are thrown away by the next."""

        def run() -> None:
            self.hidden.grad = self.weight.grad = None
            loss(self.hidden, self.weight, self.target).backward()

        return run

    def budgets(self) -> dict[str, int]:
        """Bytes that lead to each of our ways."""
        total = 4 * self.classes * self.width
        if self.device == "cpu":
            row = 8 * self.classes
            return {"keep": 4 * self.tokens * row, "chunks": self.tokens * row + 4 * total, "slabs": 99 * row}
        keep = 2 * self.tokens * (self.classes + 64) + (1 << 20)
        return {"keep": keep, "chunks": int(1.05 * GB) + total, "slabs": int(0.35 * GB * max(1, self.tokens / 8192))}

    def products(self) -> Callable[[], None]:
        """The three matrix products of a step, over at most 8192 tokens."""
        rows = min(self.tokens, 8192)
        h, w = self.hidden.detach()[:rows], self.weight.detach()
        z = h.new_empty(rows, self.classes)
        dh, dw = torch.empty_like(h), torch.empty_like(w)

        def run() -> None:
            torch.mm(h, w.t(), out=z)
            torch.mm(z, w, out=dh)
            torch.mm(z.t(), h, out=dw)

        return run


def ours(case: Case, **options: Any) -> Iterator[tuple[str, Loss]]:
    """Our ways by name, with further options."""
    for name, memory in {"auto": "auto", **case.budgets()}.items():
        if name != "keep" or case.tokens <= 8192:
            yield (
                f"ours, {name}",
                lambda h, w, y, memory=memory: linear_cross_entropy(h, w, y, memory=memory, **options),
            )


def filtered(case: Case) -> Iterator[tuple[str, Loss]]:
    """With a fifth of the classes alive: dense, and with the others left out."""

    def way(**options: Any) -> Loss:
        return lambda h, w, y: linear_cross_entropy(h, w, case.lively, bias=case.few, **options)

    yield "ours, a fifth alive", way()
    yield "ours, filtered", lambda h, w, y: way(filter=GradientFilter())(h, w, y)
    yield "ours, filtered, no tail", lambda h, w, y: way(filter=GradientFilter(tail=False))(h, w, y)


def plain(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(h, w).float(), y)


def peers(quick: bool) -> Iterator[tuple[str, Loss | None]]:
    """Others by name; None where they are not here."""
    yield PLAIN, plain
    yield "plain, compiled", torch.compile(plain, backend="eager" if quick else "inductor")
    fused = getattr(functional, "linear_cross_entropy", None)
    settings = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    for size in (None, 8) if quick else (None, 1024, 2048, 4096):
        if fused is None or settings is None:
            yield "torch", None
            break
        chosen = settings() if size is None else settings(batch_chunk_size=size)
        name = "torch" if size is None else f"torch, {size} rows"
        yield name, lambda h, w, y, chosen=chosen: fused(h, w, y, options=chosen)
    for name, find in (("cut-cross-entropy", _cut), ("liger-kernel", _liger), ("quack", _quack)):
        try:
            yield from find()
        except Exception as missing:  # whatever keeps a peer from loading here, the others run
            print(f"{name}: not here ({type(missing).__name__})")
            yield name, None


def _cut() -> list[tuple[str, Loss]]:
    from cut_cross_entropy import linear_cross_entropy as cut

    return [
        (f"cut-cross-entropy, {kind}", lambda h, w, y, kind=kind: cut(h, w, y, impl=kind))
        for kind in ("cce", "cce_exact")
    ]


def _liger() -> list[tuple[str, Loss]]:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

    return [
        ("liger-kernel", lambda h, w, y: liger(h, w, y)),
        ("liger-kernel, float32 sums", lambda h, w, y: liger(h, w, y, accum_dtype=torch.float32)),
    ]


def _quack() -> list[tuple[str, Loss]]:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy as quack

    return [("quack", lambda h, w, y: quack(h, w, y, chunk_size=4096))]


def check(case: Case) -> dict[str, float]:
    """Errors of our gradients against float64, in units of plain bfloat16's; a slice of the tokens has weight 1."""
    places = torch.arange(0, case.tokens, max(1, case.tokens // 64), device=case.device)
    weight = torch.zeros(case.tokens, device=case.device).index_fill_(0, places, 1.0)
    columns = torch.arange(0, case.classes, max(1, case.classes // 512), device=case.device)

    def truth(kind: torch.dtype) -> list[Tensor]:
        h, w = case.hidden.detach()[places].to(kind), case.weight.detach().to(kind)
        z = (h @ w.T).to(torch.promote_types(kind, torch.float32))
        y = case.target[places]
        g = z.softmax(1)
        g[torch.arange(len(y), device=case.device), y] -= 1.0
        g = (g / len(y)).to(kind)
        return [functional.cross_entropy(z, y), g @ w, g[:, columns].T @ h]

    def off(gradients: list[Tensor]) -> list[float]:
        return [float((a.double() - b).abs().max()) for a, b in zip(gradients, exact)]

    exact = truth(torch.float64)
    theirs, errors = off(truth(torch.bfloat16)), {}
    for name, loss in ours(case, token_weight=weight):
        case.hidden.grad = case.weight.grad = None
        value = loss(case.hidden, case.weight, case.target)
        value.backward()
        assert case.hidden.grad is not None
        assert case.weight.grad is not None
        mine = off([value.detach(), case.hidden.grad[places], case.weight.grad[columns]])
        rounding = [4 * torch.finfo(torch.bfloat16).eps * float(gradient.abs().max()) for gradient in exact]
        rounding[0] = 3e-3 * float(exact[0])  # one number, whose error in plain bfloat16 may be small by chance
        errors[name] = max(a / (b + c / 3) for a, b, c in zip(mine, theirs, rounding))
        print(f"{case.name:>20}  {name:<26} error {errors[name]:.2f} times that of plain bfloat16 (at most {BOUND:g})")
    case.hidden.grad = case.weight.grad = None
    return errors


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def clock(step: Callable[[], None], device: str) -> float:
    """Milliseconds of one run."""
    wait(device)
    begin = time.perf_counter()
    step()
    wait(device)
    return 1e3 * (time.perf_counter() - begin)


def peak(case: Case, step: Callable[[], None]) -> float | None:
    """GB at most beyond what was there and the two gradients."""
    case.hidden.grad = case.weight.grad = None
    if case.device == "cpu":
        step()
        return None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    gradients = 2 * (case.hidden.numel() + case.weight.numel())
    return (torch.cuda.max_memory_allocated() - before - gradients) / GB


def plan_of(step: Callable[[], None]) -> str:
    """The way that a step of ours takes."""
    seen, original = [], planning.plan

    def spy(*values: Any, **named: Any) -> Any:
        seen.append(original(*values, **named))
        return seen[-1]

    planning.plan = spy
    try:
        step()
    finally:
        planning.plan = original
    return f"{seen[0].mode}, {seen[0].rows} rows, {seen[0].columns} columns"


def measure(case: Case, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """A row of numbers for everybody who runs here."""
    torch.compiler.reset()
    steps: dict[str, Callable[[], None]] = {}
    extra: dict[str, Any] = {}
    for name, loss in itertools.chain(ours(case), filtered(case), peers(quick)):
        if loss is None:
            continue
        step = case.step(loss)
        try:
            step()
            extra[name] = {"extra_gb": peak(case, step)}
            if name.startswith("ours"):
                extra[name]["plan"] = plan_of(step)
        except Exception as failure:  # out of memory, or a peer that doesn't run here
            print(
                f"{case.name:>20}  {name:<26} {type(failure).__name__}: {(str(failure).splitlines() or [''])[0][:60]}"
            )
            failure.__traceback__ = None
            case.hidden.grad = case.weight.grad = None
            gc.collect()
            if case.device != "cpu":
                torch.cuda.empty_cache()
            continue
        steps[name] = step
    steps[PRODUCTS] = case.products()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            spent = clock(step, case.device)
            if number >= 2:
                times[name].append(spent)
    scale = case.tokens / min(case.tokens, 8192)
    times[PRODUCTS] = [seconds * scale for seconds in times[PRODUCTS]]
    floor = min(times[PRODUCTS])
    rate = 6 * case.tokens * case.width * case.classes / floor / 1e9
    print(f"{case.name:>20}  {PRODUCTS}: {floor:.2f} ms, {rate:.0f} TFLOP/s")
    rows = []
    for name, own in sorted(times.items(), key=lambda pair: min(pair[1])):
        row = {"shape": case.name, "way": name, "min_ms": round(min(own), 3)}
        row |= {"median_ms": round(statistics.median(own), 3), "ratio": round(min(own) / floor, 3)}
        row |= extra.get(name, {})
        rows.append(row)
        memory = row.get("extra_gb")
        print(
            f"{case.name:>20}  {name:<26} {row['min_ms']:>9.2f} ms  {row['median_ms']:>9.2f} ms  {row['ratio']:>6.2f}x"
            f"  {'' if memory is None else f'{memory:.2f} GB':>9}  {row.get('plan', '')}"
        )
    judge(case, {row["way"]: row for row in rows})
    return rows


def judge(case: Case, rows: dict[str, dict[str, Any]]) -> None:
    """Print what is aimed at beside what was found."""

    def say(aim: str, met: bool, measured: str) -> None:
        print(f"{case.name:>20}  aim: {aim}: {'met' if met else 'MISSED'} ({measured})")

    floor = rows[PRODUCTS]["min_ms"]
    for name, (times, products, room) in AIMS.items():
        if name not in rows or case.tokens > 8192:
            continue
        ratio, used = rows[name]["min_ms"] / (floor * products / 3), rows[name]["extra_gb"]
        say(f"{name} at most {times} times {products} products", ratio <= times, f"{ratio:.3f}")
        if used is not None:
            room += 4 * case.classes * case.width / GB if name == "ours, chunks" else 0.0
            say(f"{name} within {room:.2f} GB", used <= room, f"{used:.2f} GB")
    for name in ("ours, filtered", "ours, filtered, no tail"):
        if name in rows and "ours, a fifth alive" in rows:
            gain = rows["ours, a fifth alive"]["min_ms"] / rows[name]["min_ms"]
            say(f"{name} at {LIVE:.0%} at least 1.7 times faster than dense", gain >= 1.7, f"{gain:.2f}")
    mine = [row["min_ms"] for name, row in rows.items() if name in ("ours, auto", "ours, keep", "ours, chunks")]
    for name, row in rows.items():
        if not name.startswith("ours") and name != PRODUCTS and mine:
            say(f"faster than {name}", min(mine) <= row["min_ms"], f"{row['min_ms'] / min(mine):.2f} times")


def tune(classes: int, device: str, quick: bool) -> list[dict[str, Any]]:
    """The row kernel alone, by columns a step and warps a program; twice the logits is what it must move."""
    from steepest.kernels import _triton_rows as kernels
    from steepest.kernels._cross_entropy_rows import CrossEntropyRows
    from steepest.kernels._device import logits_buffer

    rows = 2 if quick else 2048
    z = logits_buffer(torch.empty(0, device=device), rows, classes, torch.bfloat16).normal_()
    y, losses, timings = torch.zeros(rows, dtype=torch.int64, device=device), torch.empty(rows, device=device), []
    grid = [(512, 1)] if quick else itertools.product((2048, 4096, 8192, 16384), (4, 8, 16, 32))
    before = kernels.BLOCK, kernels.WARPS
    for kernels.BLOCK, kernels.WARPS in grid:
        step = lambda: kernels.rows_in_place(z, CrossEntropyRows(y), slice(0, rows), losses)  # noqa: E731
        best = min(clock(step, device) for _ in range(2 if quick else 10))
        rate = 2 * z.element_size() * rows * classes / best / 1e6
        timings.append({"classes": classes, "block": kernels.BLOCK, "warps": kernels.WARPS, "gb_s": round(rate)})
        print(f"row kernel, {classes} classes: {kernels.BLOCK:>6} columns {kernels.WARPS:>3} warps {rate:>7.0f} GB/s")
    kernels.BLOCK, kernels.WARPS = before
    return timings


def main() -> None:
    """Check, measure, print and keep the numbers."""
    options = read_options(
        __doc__,
        heads=("2304x256000,4096x128256", "16x1001"),
        tokens=("8192,1024,131072", "320"),
        rounds=(20, 2),
        device=("cuda", "cpu"),
        tune=(False, True),
    )
    rows, errors, tuned = [], {}, []
    for tokens, head in itertools.product(options.tokens.split(","), options.heads.split(",")):
        width, classes = map(int, head.split("x"))
        case = Case(int(tokens), width, classes, options.device)
        errors[case.name] = check(case)
        rows += measure(case, max(5, options.rounds * 8192 // max(int(tokens), 8192)), options.quick)
        del case
    if options.tune:
        for head in options.heads.split(","):
            tuned += tune(int(head.split("x")[1]), options.device, options.quick)
    keep("linear_cross_entropy_gpu", {"rows": rows, "errors": errors, "row_kernel": tuned}, options)
    wrong = [
        f"{shape} {name}" for shape, of_shape in errors.items() for name, off in of_shape.items() if not off <= BOUND
    ]
    if wrong:
        raise SystemExit("gradients are off: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
