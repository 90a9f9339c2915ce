"""The row kernels in place of the logits: interpreted on CPU tensors, and on a GPU where there is one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is built for Linux only")

from steepest.kernels import _device, _head, _triton_rows, linear_cross_entropy  # noqa: E402
from steepest.kernels._cross_entropy_rows import CrossEntropyRows, Statistics  # noqa: E402
from steepest.kernels._engine import Head  # noqa: E402
from steepest.kernels._filter import GradientFilter  # noqa: E402
from steepest.kernels._memory import DEVICE_GRAIN, Plan, plan  # noqa: E402
from steepest.kernels._rows import Rows  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
V, N, D = 37, 2, 6
ALONE = ("softcap", "temperature", "smoothing", "class_weight", "log_partition", "statistics", "factor", "counts")
NEXT = [(first, second) for first, second in zip(ALONE, (*ALONE[1:], ALONE[0]))]
PAIRS = [(), *((name,) for name in ALONE), *NEXT, ALONE]
"""Each option alone, beside two others, beside all; the slow tests have every pair."""
OTHERS = [pair for pair in itertools.combinations(ALONE, 2) if pair not in NEXT and pair[::-1] not in NEXT]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks that don't divide the rows, and no way round the kernels."""
    torch.manual_seed(0)
    monkeypatch.setattr(_triton_rows, "BLOCK", 16)
    monkeypatch.setattr(_device, "_triton_on_cpu", not GPU)


def by_hand(x, y, options):
    """Losses, gradients and statistics of raw logits in float64, by autograd."""
    x = x.double().requires_grad_()
    z = x if "softcap" not in options else 2.0 * torch.tanh(x / 2.0)
    z = z / 0.7 if "temperature" in options else z
    c = options.get("class_weight")
    s = 0.1 if "smoothing" in options else 0.0
    losses = torch.nn.functional.cross_entropy(
        z, y, weight=None if c is None else c.double(), reduction="none", label_smoothing=s
    )
    lse = z.logsumexp(1)
    losses = losses + float(options.get("log_partition", 0.0)) * lse.square()
    keep = torch.ones(len(x)) if "counts" not in options else options["counts"] > 0
    losses = torch.where(keep > 0, losses, 0.0)
    factor = options.get("factor")
    (gradient,) = torch.autograd.grad((losses * (1.0 if factor is None else factor.double())).sum(), x)
    p = z.softmax(1)
    noted = [torch.where(keep > 0, each, empty) for each, empty in
             ((lse, 0), (-(p * z.log_softmax(1)).sum(1), 0), (z.argmax(1), -1))]  # fmt: skip
    return losses.detach(), gradient, [each.detach() for each in noted]


def drawn(names):
    known = {
        "class_weight": (torch.rand(2 * V) + 0.1)[::2],
        "log_partition": torch.tensor(0.03),
        "factor": torch.rand(N),
        "counts": torch.tensor([2.0, 0.0]),
    }
    return {name: known.get(name, True) for name in names}


def run(x, y, options, **more):
    """The kernel on a chunk in the middle of a padded buffer."""
    room = _device.logits_buffer(x.to(DEVICE), len(x), x.shape[1], x.dtype).copy_(x)
    on = {name: t.to(DEVICE) if isinstance(t, torch.Tensor) else t for name, t in options.items()}
    note = Statistics.empty(len(x), room, torch.float32) if "statistics" in on else None
    smoothing = 0.1 if "smoothing" in on else 0.0
    rule = CrossEntropyRows(
        y.to(DEVICE), None, on.get("class_weight"), smoothing, on.get("log_partition", 0.0), note, on.get("counts")
    )
    losses = torch.empty(len(x), device=DEVICE)
    cap = {"softcap": 2.0 if "softcap" in on else None, "temperature": 0.7 if "temperature" in on else 1.0}
    _triton_rows.rows_in_place(room, rule, slice(0, len(x)), losses, factor=on.get("factor"), **cap, **more)
    return losses.cpu(), room.cpu(), note


@pytest.mark.parametrize(
    "names", [*PAIRS, *(pytest.param(pair, marks=pytest.mark.slow) for pair in OTHERS)], ids="+".join
)
def test_losses_gradients_and_statistics(names):
    x, y, options = 3 * torch.randn(N, V), torch.randint(V, (N,)), drawn(names)
    losses, gradient, noted = by_hand(x, y, options)
    own, g, note = run(x, y, options)
    torch.testing.assert_close(own.double(), losses, rtol=4e-6, atol=1e-5)
    torch.testing.assert_close(g.double(), gradient, rtol=1e-5, atol=2e-7)
    if note is not None:
        for mine, wanted in zip((note.lse, note.entropy, note.argmax), noted):
            torch.testing.assert_close(mine.cpu().double(), wanted.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_round_once(dtype):
    x, y, options = (3 * torch.randn(N, V)).to(dtype), torch.randint(V, (N,)), drawn(ALONE[:7])
    losses, gradient, _ = by_hand(x, y, options)
    own, g, _ = run(x, y, options)
    torch.testing.assert_close(own.double(), losses, rtol=4e-6, atol=1e-5)
    assert g.dtype == dtype
    # the interpreter cuts bfloat16 off where a GPU rounds
    nearest = 0.51 if GPU or dtype == torch.float16 else 1.01
    torch.testing.assert_close(g.double(), gradient, rtol=nearest * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("columns", [1, 16, 17, 48])
def test_ragged_rows(columns):
    x, y = torch.randn(2, columns), torch.tensor([0, columns - 1])
    losses, gradient, _ = by_hand(x, y, {})
    own, g, _ = run(x, y, {})
    torch.testing.assert_close(own.double(), losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(g.double(), gradient, rtol=1e-5, atol=2e-7)


def test_extremes():
    """Logits of 1e4, classes that are ruled out (a whole block of them), and what torch calls NaN."""
    x, y = torch.randn(4, V), torch.tensor([20, 30, 36, 5])
    x[0, 20], x[1, 30] = 1e4, -1e4
    x[2, :32] = -torch.inf
    x[3, 9] = torch.nan
    losses, gradient, _ = by_hand(x, y, {})
    own, g, _ = run(x, y, {})
    torch.testing.assert_close(own.double(), losses, rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(g.double(), gradient, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert own[:3].isfinite().all()
    assert g[2, :32].eq(0).all()
    assert own[3].isnan()


def test_a_class_out_of_range_is_nan_and_reads_nothing_else():
    own, g, _ = run(torch.randn(2, V), torch.tensor([V, 3]), {"smoothing": True})
    assert own[0].isnan()
    assert own[1].isfinite()
    assert g[1].isfinite().all()


def test_without_a_gradient_the_logits_stay():
    x = torch.randn(2, V)
    _, z, _ = run(x, torch.tensor([1, 2]), {}, gradient=False)
    assert torch.equal(z, x)


def test_same_bits_again():
    x, y, options = torch.randn(N, V), torch.randint(V, (N,)), drawn(ALONE)
    first, second = run(x, y, options), run(x, y, options)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_sums_of_rows_and_columns():
    x, y, options = torch.randn(N, V), torch.randint(V, (N,)), drawn(("factor", "log_partition", "smoothing"))
    sums = torch.empty(N, device=DEVICE)
    _, g, _ = run(x, y, options, sums=sums)
    torch.testing.assert_close(sums.cpu(), g.sum(1), rtol=1e-5, atol=1e-6)
    scale = torch.tensor([-2.0, 0.5])
    total, top, mass = _triton_rows.column_sums(g.to(DEVICE), weight=scale.to(DEVICE), scale=scale.to(DEVICE))
    scaled = g * scale[:, None]
    for mine, wanted in ((total, scaled.sum(0)), (mass, scaled.sum(0)), (top, scaled.abs().amax(0))):
        torch.testing.assert_close(mine.cpu(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(_triton_rows.column_sums(g.to(DEVICE))[0].cpu(), g.sum(0), rtol=1e-6, atol=1e-6)


MODES = {
    "keep": Plan("keep", 7, V),
    "chunk": Plan("chunk", 3, V),
    "recompute": Plan("recompute", 3, V),
    "slab": Plan("slab", 3, 17),
}


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize(
    ("mode", "reduction"),
    [("keep", "none"), ("recompute", "none"), ("slab", "none"), ("keep", "mean"), ("chunk", "mean"), ("slab", "sum")],
)
@pytest.mark.parametrize("many", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "all"])
def test_the_whole_head(monkeypatch, truth, mode, reduction, dtype, many):
    monkeypatch.setattr(_head.Job, "plan", lambda self: MODES[mode])
    h, w, b = (torch.randn(*shape).to(dtype) for shape in ((7, D), (V, D), (V,)))
    y = torch.randint(V, (7,))
    y[2] = -100
    options = {"reduction": reduction}
    if many:
        options |= {"softcap": 2.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.03}
        options |= {"class_weight": (torch.rand(2 * V) + 0.1)[::2], "token_weight": torch.rand(7)}
    upstream = torch.rand(7) if reduction == "none" else torch.tensor(1.7)
    on = {name: t.to(DEVICE) if isinstance(t, torch.Tensor) else t for name, t in options.items()}
    calls = []
    for name in ("rows_in_place", "see_slab", "turn_slab"):
        kernel = getattr(_triton_rows, name)
        monkeypatch.setattr(
            _triton_rows, name, lambda *a, kernel=kernel, name=name, **k: (calls.append(name), kernel(*a, **k))
        )
    tensors = [h, w, b]
    mine = truth.gradients(
        lambda h, w, b: linear_cross_entropy(h, w, y.to(DEVICE), bias=b, **on),
        [t.to(DEVICE) for t in tensors], upstream.to(DEVICE),
    )  # fmt: skip
    assert set(calls) == ({"see_slab", "turn_slab"} if mode == "slab" else {"rows_in_place"})
    plain, exact = (
        truth.gradients(lambda h, w, b, kind=kind: truth.materialised(h, w, y, bias=b, dtype=kind, **options),
                        [t.to(kind) for t in tensors], upstream)
        for kind in (dtype, torch.float64)
    )  # fmt: skip
    plain = [plain[0], *(each.to(dtype) for each in plain[1:])]
    luck = 4 * torch.finfo(dtype).eps * float(exact[0].abs().max())
    truth.as_exact([each.cpu() for each in mine], exact, plain, luck=luck)


@pytest.mark.parametrize("mode", ["keep", "slab"])
def test_statistics_of_the_whole_head(monkeypatch, mode):
    monkeypatch.setattr(_head.Job, "plan", lambda self: MODES[mode])
    h, w, y = torch.randn(7, D), torch.randn(V, D), torch.randint(V, (7,))
    h, w, y = h.to(DEVICE), w.to(DEVICE), y.to(DEVICE)
    _, noted = linear_cross_entropy(h, w, y, softcap=2.0, return_stats=True)
    z = 2 * torch.tanh(h.double() @ w.double().T / 2)
    torch.testing.assert_close(noted.lse.double(), z.logsumexp(1), rtol=1e-5, atol=1e-6)
    entropy = torch.distributions.Categorical(logits=z).entropy()
    torch.testing.assert_close(noted.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(noted.argmax, z.argmax(1))
    assert torch.equal(noted.correct, z.argmax(1) == y)


@pytest.mark.parametrize("mode", ["keep", "chunk", "slab"])
def test_rows_of_weight_0_count_for_nothing(monkeypatch, mode):
    """On a GPU ignored tokens stay among the rows, since leaving them out would wait for it."""
    monkeypatch.setattr(_head.Job, "plan", lambda self: MODES[mode])
    h, w, y = torch.randn(7, D, device=DEVICE), torch.randn(V, D, device=DEVICE), torch.randint(V, (7,), device=DEVICE)
    factor = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5, 1.0, 0.0], device=DEVICE)
    found = []
    for keep in (slice(None), factor > 0):
        rows = Rows(h[keep].requires_grad_(), y[keep], None, factor[keep], None, torch.Size((len(h[keep]),)))
        weight = w.clone().requires_grad_()
        rule = CrossEntropyRows(rows.target, counts=rows.factor)
        job = _head.Job(rows, weight, None, rule, rule.dense, True)
        loss = job.losses()
        found.append((loss, *torch.autograd.grad(loss, (rows.hidden, weight))))
    masked, dropped = found
    torch.testing.assert_close(masked[0], dropped[0])
    torch.testing.assert_close(masked[1][factor > 0], dropped[1])
    assert masked[1][factor == 0].eq(0).all()
    torch.testing.assert_close(masked[2], dropped[2])


@pytest.mark.parametrize("chosen", [{}, {"tail": False}, {"max_dropped": 0.05}])
def test_filter(monkeypatch, chosen):
    """The kernels leave out the same classes as torch's operations on the rows that count."""
    monkeypatch.setattr(_head.Job, "plan", lambda self: Plan("chunk", 4, V))
    h, w, b = torch.randn(7, D), 2 * torch.randn(V, D), torch.randn(V)
    y, weight = torch.randint(V, (7,)), torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 3.0, 1.0])
    found = []
    for kernels in (True, False):
        filtered = GradientFilter(0.05, **chosen)
        monkeypatch.setattr(_device, "_triton_on_cpu", kernels and not GPU)
        device = DEVICE if kernels else "cpu"
        leaves = [t.to(device).requires_grad_() for t in (h.clone(), w.clone(), b.clone())]
        loss = linear_cross_entropy(
            *leaves[:2], y.to(device), bias=leaves[2], token_weight=weight.to(device), temperature=0.8, z_loss=0.01,
            filter=filtered,
        )  # fmt: skip
        found.append([loss, *torch.autograd.grad(loss, leaves), filtered.dropped])
    for mine, wanted in zip(*found):
        torch.testing.assert_close(mine.cpu(), wanted, rtol=1e-4, atol=1e-6)
    assert filtered.kept < 1


def test_who_is_served():
    rule, device = CrossEntropyRows(torch.zeros(2, dtype=torch.int64)), torch.device(DEVICE)
    head = Head(torch.zeros(2, 3), torch.zeros(5, 3))
    assert _device.row_kernels(device, torch.bfloat16, rule) is _triton_rows
    for kind, other, more in (
        (torch.float64, rule, {}),
        (torch.float32, lambda z, g, rows: z, {}),
        (torch.float32, CrossEntropyRows(torch.zeros(2, 5)), {}),
        (torch.float32, rule, {"others": (head,)}),
        (torch.float32, rule, {"softcap": 2.0, "collect": GradientFilter()}),
    ):
        assert _device.row_kernels(device, kind, other, **more) is None


@pytest.mark.parametrize(
    ("rows", "shape", "limit", "accumulator", "expected"),
    [
        (8192, (2304, 256000), 5 << 30, 0, ("keep", 8192, 256000)),
        (8192, (2304, 256000), 1_050_000_000 + 4 * 2304 * 256000, 4 * 2304 * 256000, ("chunk", 2048, 256000)),
        (8192, (4096, 128256), 1_050_000_000 + 4 * 4096 * 128256, 4 * 4096 * 128256, ("keep", 8192, 128256)),
        (16384, (4096, 128256), 1_050_000_000 + 4 * 4096 * 128256, 4 * 4096 * 128256, ("chunk", 3840, 128256)),
        (8192, (2304, 256000), 520_000_000 + 4 * 2304 * 256000, 4 * 2304 * 256000, ("slab", None, 16384)),
        (8192, (2304, 256000), 350_000_000, 4 * 2304 * 256000, ("slab", None, 16384)),
        (8192, (4096, 128256), 350_000_000, 4 * 4096 * 128256, ("slab", None, 13120)),
    ],
)
def test_plans_of_an_accelerator(rows, shape, limit, accumulator, expected):
    found = plan(
        rows, shape[1], 2, limit, scalar=True, accumulator=accumulator, pieces=0, aside=4 * rows * shape[0],
        **DEVICE_GRAIN,
    )  # fmt: skip
    assert (found.mode, None if found.mode == "slab" else found.rows, found.columns) == expected
    if found.mode == "slab":
        assert 2 * rows * found.columns + 4 * rows * shape[0] <= limit


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from steepest.kernels import _triton_row_kernels as rows
wide = dict.fromkeys("target argmaxes indices".split(), "*i64")
scalars = dict.fromkeys("keep even inner outer over".split(), "fp32")
scalars |= dict.fromkeys("stride columns width start rows".split(), "i32")
for kernel in (rows.rows_kernel, rows.see_kernel, rows.turn_kernel, rows.columns_kernel):
    for logits in ("*bf16", "*fp32"):
        names = kernel.arg_names
        fixed = {"CAP": logits == "*fp32", "SMOOTH": True, "GRADIENT": True, "NOTE": True, "ROWS": 16}
        fixed = {name: value for name, value in fixed.items() if name in names}
        fixed["BLOCK"] = 128 if kernel is rows.columns_kernel else 8192
        types = {name: wide.get(name) or scalars.get(name) or "*fp32" for name in names}
        types |= {names[0]: logits} | dict.fromkeys(fixed, "constexpr")
        source = ASTSource(kernel, types, {(names.index(name),): value for name, value in fixed.items()})
        assert compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 16}).asm["cubin"]
print("compiled")
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_here():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.endswith("compiled\n"), done.stderr


@needs_gpu
@pytest.mark.parametrize(("rows", "memory"), [(512, "auto"), (4096, 1 << 29), (4096, 1 << 26)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_large_vocabulary_without_waiting(monkeypatch, truth, rows, memory, reduction):
    """Errors against float64 within three times those of bfloat16 logits; the host never waits; same bits twice."""
    monkeypatch.setattr(_triton_rows, "BLOCK", 8192)
    width, classes = 128, 50257
    h, w = (torch.randn(*shape, device="cuda").bfloat16() for shape in ((rows, width), (classes, width)))
    y = torch.randint(classes, (rows,), device="cuda")
    y[::3] = -100
    upstream = torch.rand(rows, device="cuda") if reduction == "none" else torch.ones((), device="cuda")

    def mine(h, w):
        return linear_cross_entropy(h, w, y, reduction=reduction, memory=memory, z_loss=1e-4)

    def whole(kind):
        def loss(h, w):
            z = (h.to(kind) @ w.to(kind).T).to(torch.promote_types(kind, torch.float32))
            each = torch.nn.functional.cross_entropy(z, y, reduction="none")
            each = torch.where(y >= 0, each + 1e-4 * z.logsumexp(1).square(), 0.0)
            return each if reduction == "none" else each.sum() / (y >= 0).sum()

        return truth.gradients(loss, [h, w], upstream)

    first = truth.gradients(mine, [h, w], upstream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = truth.gradients(mine, [h, w], upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    truth.as_exact(first, whole(torch.float64), whole(torch.bfloat16), luck=1e-3)


@needs_gpu
def test_statistics_of_ignored_tokens():
    h, w, y = torch.randn(5, D, device="cuda"), torch.randn(V, D, device="cuda"), torch.tensor([1, -100, 3, -100, 0])
    _, noted = linear_cross_entropy(h, w, y.cuda(), return_stats=True)
    assert noted.argmax[y.cuda() < 0].eq(-1).all()
    assert noted.lse[y.cuda() < 0].eq(0).all()
    assert int(noted.valid.sum()) == 3
