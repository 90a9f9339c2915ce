"""The fused operations: numbers of the card, loops in float64, peers, what is kept for the backward pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from steepest.kernels import fused_qk_rope, fused_rms_norm, fused_swiglu
from steepest.kernels.chronicals import _native, _pieces, rotary_table

HALVES = [torch.bfloat16, torch.float16]
EPS = torch.finfo(torch.float32).eps


def gradients(fn, *inputs, weight):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = fn(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    torch.autograd.backward(outs, [w.to(o.dtype) for w, o in zip(weight, outs)])
    return [o.detach() for o in outs], [leaf.grad for leaf in leaves]


def llama_norm(x, w, eps=1e-6):
    norm = LlamaRMSNorm(x.shape[-1], eps)
    norm.weight = torch.nn.Parameter(w)  # not a leaf of ours: only for the forward pass
    return norm(x)


def plain_norm(x, w):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w


def plain_swiglu(gate, up):
    return functional.silu(gate) * up


@pytest.fixture(params=["C++", "pieces"])
def small_pieces(request, monkeypatch):
    """Both CPU forms; pieces of a few rows, so that short tensors need many and the last is ragged."""
    monkeypatch.setattr(_pieces, "PIECE", 24)
    if request.param == "pieces":
        monkeypatch.setattr(_native, "runs", lambda *tensors: False)


def close(got, exact, plain, dtype):
    """Error against float64 within twice the plain form's, plus two roundings of the type."""
    exact = exact.double()
    own, theirs = (got.double() - exact).abs(), (plain.double() - exact).abs().max()
    assert bool((own <= 2 * theirs + 2 * torch.finfo(dtype).eps * exact.abs()).all())


# ------------------------------------------------------------------------------------------------------- the card's


@pytest.mark.holds("chronicals", 1)
def test_rms_norm_of_the_card():
    (y,), (dx, dw) = gradients(
        lambda x, w: fused_rms_norm(x, w, eps=0.0),
        torch.tensor([[1.0, 2.0, 2.0]]),
        torch.tensor([1.0, 1.0, 2.0]),
        weight=[torch.ones(1, 3)],
    )
    r = 1 / math.sqrt(3)  # the card's digits: 0.5774 1.1547 2.3094, 0.1283 -0.3208 0.2566, 0.5774 1.1547 1.1547
    assert y[0].tolist() == pytest.approx([r, 2 * r, 4 * r], rel=8 * EPS)
    assert dx[0].tolist() == pytest.approx([2 * r / 9, -5 * r / 9, 4 * r / 9], abs=8 * EPS)  # of terms up to 2 r
    assert dw.tolist() == pytest.approx([r, 2 * r, 2 * r], rel=8 * EPS)


@pytest.mark.holds("chronicals", 2)
def test_swiglu_of_the_card():
    (y,), (dg, du) = gradients(fused_swiglu, torch.tensor([1.0]), torch.tensor([3.0]), weight=[torch.ones(1)])
    assert y.item() == pytest.approx(2.193176, abs=1e-6)
    assert dg.item() == pytest.approx(2.783011, abs=1e-6)
    assert du.item() == pytest.approx(0.731059, abs=1e-6)


@pytest.mark.holds("chronicals", 3)
def test_rotation_keeps_norms_and_its_backward_undoes_it():
    q, k = torch.randn(2, 4, 7, 10, dtype=torch.float64), torch.randn(2, 2, 7, 10, dtype=torch.float64)
    positions = torch.randint(0, 5000, (2, 7))
    qs, ks = (t.clone().requires_grad_() for t in (q, k))
    turned = fused_qk_rope(qs, ks, positions=positions)
    for before, after in zip((q, k), turned):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-13, atol=0)
        assert not torch.allclose(before, after)
    torch.autograd.backward(turned, [t.detach() for t in turned])
    torch.testing.assert_close(qs.grad, q, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ks.grad, k, rtol=1e-12, atol=1e-12)


@pytest.mark.holds("chronicals", 3)
def test_scores_depend_on_the_difference_of_positions_only():
    q, k = torch.randn(1, 1, 1, 16, dtype=torch.float64), torch.randn(1, 1, 1, 16, dtype=torch.float64)

    def score(at, other):
        turned, _ = fused_qk_rope(q, k, positions=torch.tensor([at]))
        _, against = fused_qk_rope(q, k, positions=torch.tensor([other]))
        return float((turned * against).sum())

    assert score(3, 1) == pytest.approx(score(1002, 1000), rel=1e-12)
    assert score(3, 1) != pytest.approx(score(3, 2), rel=1e-3)


@pytest.mark.holds("chronicals", 6)
@pytest.mark.usefixtures("small_pieces")
def test_gradcheck():
    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(fused_rms_norm, (leaf(7, 5), leaf(5)))
    assert torch.autograd.gradcheck(fused_swiglu, (leaf(5, 7), leaf(5, 7)))
    positions = torch.arange(3)
    assert torch.autograd.gradcheck(
        lambda q, k: fused_qk_rope(q, k, positions=positions), (leaf(1, 2, 3, 4), leaf(1, 1, 3, 4))
    )


# ------------------------------------------------------------------------------------- loops in float64 and peers


@pytest.mark.usefixtures("small_pieces")
def test_rms_norm_by_a_loop():
    x, w, dy = torch.randn(7, 11), torch.randn(11), torch.randn(7, 11)
    (y,), (dx, dw) = gradients(fused_rms_norm, x, w, weight=[dy])
    total = [0.0] * 11
    for row in range(7):
        xs, ws, ds = x[row].tolist(), w.tolist(), dy[row].tolist()
        r = 1 / math.sqrt(sum(v * v for v in xs) / 11 + 1e-6)
        pull = sum(v * a * d for v, a, d in zip(xs, ws, ds)) / 11
        assert y[row].tolist() == pytest.approx([v * r * a for v, a in zip(xs, ws)], rel=1e-6, abs=1e-7)
        wanted = [r * (a * d - v * r * r * pull) for v, a, d in zip(xs, ws, ds)]
        assert dx[row].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        total = [t + d * v * r for t, d, v in zip(total, ds, xs)]
    assert dw.tolist() == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_rotation_by_a_loop():
    q = torch.randn(1, 2, 3, 6)
    turned, _ = fused_qk_rope(q, q[:, :1], positions=torch.tensor([0, 5, 17]))
    for head in range(2):
        for t, position in enumerate((0, 5, 17)):
            for i in range(3):
                z = complex(q[0, head, t, i], q[0, head, t, i + 3])
                angle = position * 10000.0 ** (-2 * i / 6)
                z *= complex(math.cos(angle), math.sin(angle))
                assert turned[0, head, t, i].item() == pytest.approx(z.real, abs=1e-6)
                assert turned[0, head, t, i + 3].item() == pytest.approx(z.imag, abs=1e-6)


def test_peers_in_float32():
    x, w = torch.randn(5, 3, 64), torch.randn(64)
    torch.testing.assert_close(fused_rms_norm(x, w), functional.rms_norm(x, (64,), w, 1e-6), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused_rms_norm(x, w), llama_norm(x, w).detach(), rtol=1e-5, atol=1e-6)
    q, k = torch.randn(2, 5, 4, 8).transpose(1, 2), torch.randn(2, 5, 2, 8).transpose(1, 2)
    cos, sin = (torch.cat((t, t), -1) for t in rotary_table(torch.randint(0, 99, (2, 5)), 8))
    for ours, theirs in zip(fused_qk_rope(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    straight = [t.transpose(1, 2).contiguous() for t in (q, k)]
    ours, theirs = fused_qk_rope(*straight, cos, sin, unsqueeze_dim=2), apply_rotary_pos_emb(*straight, cos, sin, 2)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("fn", "plain"), [(fused_rms_norm, plain_norm), (fused_swiglu, plain_swiglu)])
def test_errors_against_float64(fn, plain, dtype):
    """Half inputs: one rounding of the float32 result, never more than the plain form's several."""
    x = torch.randn(9, 33).to(dtype)
    other = (torch.randn(33) if fn is fused_rms_norm else torch.randn(9, 33)).to(dtype)
    dy = [torch.randn(9, 33).to(dtype)]
    got = gradients(fn, x, other, weight=dy)
    exact = gradients(plain, x.double(), other.double(), weight=dy)
    rough = gradients(plain, x, other, weight=dy)
    for mine, wanted, theirs in zip(got[0] + got[1], exact[0] + exact[1], rough[0] + rough[1]):
        assert mine.dtype == dtype
        close(mine, wanted, theirs, dtype)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("width", [8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_rotation_against_float64(dtype, width):
    q, k = torch.randn(2, 3, 9, width).to(dtype), torch.randn(2, 9, 2, width).to(dtype).transpose(1, 2)
    weight = [torch.randn_like(t) for t in (q, k)]
    exact = gradients(
        lambda q, k: fused_qk_rope(q, k, positions=torch.arange(9)), q.double(), k.double(), weight=weight
    )
    got = gradients(lambda q, k: fused_qk_rope(q, k, positions=torch.arange(9)), q, k, weight=weight)
    for mine, wanted in zip(got[0] + got[1], exact[0] + exact[1]):
        assert mine.dtype == dtype
        assert bool(((mine - wanted).abs() <= torch.finfo(dtype).eps * wanted.abs() + 1e-6).all())


def test_angles_at_far_positions():
    cos, _ = rotary_table(torch.tensor([1_000_003]), 4)
    assert cos[0].tolist() == pytest.approx([math.cos(1_000_003), math.cos(10_000.03)], abs=1e-7)


# ------------------------------------------------------------------------------------------------------- memory, modes


def kept(fn, *leaves):
    """What autograd keeps beside the leaves themselves: shapes."""
    found, own = [], {t.untyped_storage().data_ptr() for t in leaves}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            found.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fn(*leaves)
    return found


def test_what_is_kept():
    x, w = torch.randn(6, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    assert kept(fused_rms_norm, x, w) == [(6, 1)]
    assert kept(fused_swiglu, x, torch.randn(6, 5, requires_grad=True)) == []
    q, k = torch.randn(1, 2, 3, 4, requires_grad=True), torch.randn(1, 1, 3, 4, requires_grad=True)
    cos, sin = rotary_table(torch.arange(3), 4)
    assert {shape[-2:] for shape in kept(lambda q, k: fused_qk_rope(q, k, cos, sin), q, k)} == {(3, 2)}  # the table
    assert kept(plain_norm, x, w) != [(6, 1)]  # the check can tell


class TestModes:
    """Compiled in one graph, under torch.func, autocast, with frozen inputs; no second derivative."""

    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 1, 5, 4)
    calls = [
        pytest.param(fused_rms_norm, (torch.randn(4, 6), torch.randn(6)), id="rms_norm"),
        pytest.param(fused_swiglu, (torch.randn(4, 6), torch.randn(4, 6)), id="swiglu"),
        pytest.param(lambda q, k: fused_qk_rope(q, k, positions=torch.arange(5)), (q, k), id="rope"),
    ]

    @pytest.mark.parametrize(("fn", "inputs"), calls)
    def test_compile(self, fn, inputs):
        weight = [torch.randn_like(t) for t in inputs] if fn not in (fused_rms_norm,) else [torch.randn(4, 6)]
        eager = gradients(fn, *inputs, weight=weight)
        compiled = gradients(torch.compile(fn, fullgraph=True, backend="aot_eager"), *inputs, weight=weight)
        for a, b in zip(eager[0] + eager[1], compiled[0] + compiled[1]):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("fn", "inputs"), calls)
    def test_functional_gradient(self, fn, inputs):
        def total(*inputs):
            out = fn(*inputs)
            return sum(o.sin().sum() for o in (out if isinstance(out, tuple) else (out,)))

        first = torch.func.grad(total)(*inputs)
        leaf = inputs[0].clone().requires_grad_()
        total(leaf, *inputs[1:]).backward()
        torch.testing.assert_close(first, leaf.grad, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("fn", "inputs"), calls)
    def test_second_derivative_is_refused(self, fn, inputs):
        leaf = inputs[0].clone().requires_grad_()
        out = fn(leaf, *inputs[1:])
        (first,) = torch.autograd.grad(
            (out[0] if isinstance(out, tuple) else out).square().sum(), leaf, create_graph=True
        )
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()

    @pytest.mark.parametrize(("fn", "inputs"), calls)
    @pytest.mark.parametrize("frozen", [0, 1])
    def test_frozen_input(self, fn, inputs, frozen):
        leaves = [t.clone().requires_grad_(i != frozen) for i, t in enumerate(inputs)]
        out = fn(*leaves)
        sum(o.sin().sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
        both = [t.clone().requires_grad_() for t in inputs]
        out = fn(*both)
        sum(o.sin().sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
        assert leaves[frozen].grad is None
        assert torch.equal(leaves[1 - frozen].grad, both[1 - frozen].grad)

    @pytest.mark.usefixtures("small_pieces")
    def test_autocast_leaves_the_backward_wide(self):
        x, w = torch.randn(40, 30), torch.randn(30)
        outside = gradients(fused_rms_norm, x, w, weight=[x])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = gradients(fused_rms_norm, x, w, weight=[x])
        assert all(torch.equal(a, b) for a, b in zip(outside[0] + outside[1], inside[0] + inside[1]))

    def test_narrow_input_with_wide_weight(self):
        (y,), (dx, dw) = gradients(
            fused_rms_norm, torch.randn(4, 6).bfloat16(), torch.randn(6), weight=[torch.ones(4, 6)]
        )
        assert (y.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@pytest.mark.usefixtures("small_pieces")
def test_strides():
    """Halves of one tensor, transposed tensors, an expanded gradient: the same numbers."""
    both = torch.randn(6, 10)
    gate, up = both.chunk(2, -1)
    assert torch.equal(fused_swiglu(gate, up), fused_swiglu(gate.contiguous(), up.contiguous()))
    x = torch.randn(5, 6).T
    assert torch.equal(fused_rms_norm(x, torch.ones(5)), fused_rms_norm(x.contiguous(), torch.ones(5)))
    leaf = x.clone().requires_grad_()
    fused_rms_norm(leaf, torch.ones(5)).sum().backward()  # the gradient that comes has no memory of its own
    wanted = x.clone().requires_grad_()
    plain_norm(wanted, torch.ones(5)).sum().backward()
    torch.testing.assert_close(leaf.grad, wanted.grad, rtol=1e-5, atol=1e-6)


def test_one_of_two_gradients():
    q, k = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(2))
    fused_qk_rope(q, k, positions=torch.arange(3))[1].sum().backward()
    assert q.grad is None
    assert k.grad is not None


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (4,)])
def test_empty_and_single(shape):
    x = torch.randn(shape, requires_grad=True)
    w = torch.ones(4, requires_grad=True)
    y = fused_swiglu(fused_rms_norm(x, w), x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert bool(w.grad.isfinite().all())
    q = torch.randn(2, 3, 0, 4)
    assert fused_qk_rope(q, q[:, :1], positions=torch.arange(0))[0].shape == q.shape


def test_large_gates_and_rows():
    gate = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4], requires_grad=True)
    fused_swiglu(gate, torch.full((5,), 2.0)).sum().backward()
    assert gate.grad.tolist() == [0.0, 0.0, 1.0, 2.0, 2.0]
    x = torch.tensor([[1e4, -1e4], [1e-12, 0.0]])
    assert torch.equal(fused_rms_norm(x, torch.ones(2))[0], torch.tensor([1.0, -1.0]))
    assert bool(fused_rms_norm(x, torch.ones(2)).isfinite().all())
    assert fused_rms_norm(torch.tensor([[math.nan, 1.0]]), torch.ones(2)).isnan().all()


def test_same_bits_twice():
    """Also with another number of threads."""
    x, w, dy = torch.randn(300, 700), torch.randn(700), torch.randn(300, 700)
    found = []
    for threads in (1, 1, 2) if _native.runs(x) else (1, 1):
        torch.set_num_threads(threads)
        found.append(gradients(fused_rms_norm, x, w, weight=[dy]))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][0] + found[0][1], other[0] + other[1]))


@pytest.mark.parametrize("value", [1.1, 0.7, 3.3])
def test_sums_of_many_equal_values(value, level):
    """As a plain sum of equal values grows, each addition rounds to the same side: the error would grow with it."""
    half = EPS / 2
    squares = (1 + 14) * half  # a product; 7 additions in a lane, 2 to join and total, at most 4 across, 1 for hi + lo
    scale = squares / 2 + 4 * half  # under a root; mean, eps, root and inverse
    x = torch.full((2, 2**15), value)
    (y,), (dx, _) = gradients(lambda v, w: fused_rms_norm(v, w, eps=0.0), x, torch.ones(2**15), weight=[x])
    torch.testing.assert_close(y, torch.ones_like(y), rtol=0, atol=scale + 2 * half)
    # v r^2 sum(v dy) / D is dy: nothing is left but the errors of the sum, of r^2 and of five products
    torch.testing.assert_close(dx, torch.zeros_like(dx), rtol=0, atol=squares + 2 * scale + 5 * half)
    x = torch.full((2**14, 8), value)
    _, (_, dw) = gradients(lambda v, w: fused_rms_norm(v, w, eps=0.0), x, torch.ones(8), weight=[x])
    # a term r v dy; 15 additions in a group of rows, 1 for the total, 31 of the chunks
    error = scale + (2 + 15 + 1 + 31) * half
    torch.testing.assert_close(dw, torch.full_like(dw, 2**14 * x[0, 0]), rtol=error, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_level_agrees_with_float64(dtype, level):
    x, dy = torch.randn(300, 77).to(dtype), [torch.randn(300, 77).to(dtype)]
    for fn, plain, other in (
        (fused_rms_norm, plain_norm, torch.randn(77).to(dtype)),
        (fused_swiglu, plain_swiglu, torch.randn(300, 77).to(dtype)),
    ):
        got = gradients(fn, x, other, weight=dy)
        exact = gradients(plain, x.double(), other.double(), weight=dy)
        rough = gradients(plain, x, other, weight=dy)
        for mine, wanted, theirs in zip(got[0] + got[1], exact[0] + exact[1], rough[0] + rough[1]):
            close(mine, wanted, theirs, dtype)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sigmoid_everywhere(dtype):
    sigmoid_everywhere(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sigmoid_at_each_level(dtype, level):
    sigmoid_everywhere(dtype)


def sigmoid_everywhere(dtype):
    """The gate alone, relative to float64; beyond float32's range it is 0."""
    gate = torch.cat((torch.linspace(-87, 87, 4001), torch.logspace(-8, 4, 200), -torch.logspace(-8, 1, 200))).to(dtype)
    (y,), (slope, flow) = gradients(fused_swiglu, gate, torch.ones_like(gate), weight=[torch.ones_like(gate)])
    g = gate.double()
    s = g.sigmoid()
    # the sigmoid is off by 2 eps, also where 1 - s is formed of it, each operation by eps / 2; then the type rounds
    last = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    for got, wanted, size in (
        (y, g * s, 3 * (g * s).abs()),
        (flow, g * s, 3 * (g * s).abs()),
        (slope, s * (1 + g * (1 - s)), s * (6 * (1 + g.abs() * (1 - s)) + 2 * g.abs() * s)),
    ):
        assert bool(((got.double() - wanted).abs() <= EPS * size + last * wanted.abs()).all())
    edge = torch.tensor([-math.inf, -1e5, -90.0, math.inf, math.nan]).to(dtype)
    got = fused_swiglu(edge, torch.ones_like(edge))
    torch.testing.assert_close(got[:1], functional.silu(edge)[:1], equal_nan=True)
    assert got[1:3].abs().max() < 1e-35
    assert got[3] == math.inf
    assert got[4].isnan()


Q, K = torch.randn(2, 4, 3, 6), torch.randn(2, 2, 3, 6)
COS, SIN = rotary_table(torch.arange(3), 6)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fused_rms_norm(torch.ones(2, 3), torch.ones(2)), ValueError, r"w: expected shape \(3\)"),
        (lambda: fused_rms_norm(torch.ones(2, 3), torch.ones(3), -1.0), ValueError, "eps: expected a number >= 0"),
        (lambda: fused_rms_norm(torch.ones(2, 3).long(), torch.ones(3)), TypeError, "x: expected a floating"),
        (lambda: fused_rms_norm(torch.tensor(1.0), torch.ones(1)), ValueError, "x: expected"),
        (lambda: fused_swiglu(torch.ones(2, 3), torch.ones(2, 1)), ValueError, r"up: expected shape \(2, 3\)"),
        (lambda: fused_swiglu(torch.ones(2), torch.ones(2).half()), TypeError, "up: expected the type of gate"),
        (lambda: fused_qk_rope(Q, K), ValueError, "either positions or both cos and sin"),
        (lambda: fused_qk_rope(Q, K, COS), ValueError, "either positions or both cos and sin"),
        (lambda: fused_qk_rope(Q, K, COS, SIN, positions=torch.arange(3)), ValueError, "either positions"),
        (lambda: fused_qk_rope(Q, K[:1], COS, SIN), ValueError, "k: expected shape"),
        (lambda: fused_qk_rope(Q, K.double(), COS, SIN), TypeError, "k: expected the type of q"),
        (lambda: fused_qk_rope(Q[..., :5], K[..., :5], COS, SIN), ValueError, "q: expected heads of even width"),
        (lambda: fused_qk_rope(Q, K, COS[:2], SIN), ValueError, r"cos: expected shape \(\[2 or 1,\] 3, 3 or 6\)"),
        (lambda: fused_qk_rope(Q, K, COS, SIN.clone().requires_grad_()), ValueError, "sin: expected a table without"),
        (lambda: fused_qk_rope(Q, K, positions=torch.arange(2)), ValueError, "positions: expected shape"),
        (lambda: fused_qk_rope(Q, K, positions=torch.ones(3)), TypeError, "positions: expected an integer"),
        (lambda: fused_qk_rope(Q, K, COS, SIN, unsqueeze_dim=3), ValueError, "unsqueeze_dim: expected one of 1, 2"),
        (lambda: rotary_table(torch.arange(3), 5), ValueError, "width: expected an even number"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
