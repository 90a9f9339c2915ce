"""The card of cut-cross-entropy, its filter, and the small functions beside the loss."""

from __future__ import annotations

import pytest
import torch

from steepest.kernels import (
    GradientFilter,
    LinearCrossEntropy,
    gradient_filter,
    indexed_dot,
    linear_cross_entropy,
    linear_logsumexp,
    log_partition_penalty,
)

H = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([2])


def value_and_slope(hidden, **options):
    hidden = hidden.clone().requires_grad_()
    loss, noted = linear_cross_entropy(hidden, W, Y, return_stats=True, **options)
    return loss.detach(), torch.autograd.grad(loss, hidden)[0], noted


@pytest.mark.holds("cut-cross-entropy", 1)
@pytest.mark.parametrize("memory", ["auto", 24, 40])
def test_the_worked_example(memory):
    loss, slope, noted = value_and_slope(H, memory=memory)
    expected = torch.tensor([[-0.244728, -0.090031]], dtype=torch.float64)
    torch.testing.assert_close(loss, torch.tensor(0.407606, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-6)
    assert abs(float(noted.lse) - 3.407606) < 1e-6
    assert abs(float(log_partition_penalty(noted.lse)) - 11.611778) < 1e-5
    loss, slope, _ = value_and_slope(H, softcap=2.0, memory=memory)
    assert abs(float(loss) - 0.771360) < 1e-6
    torch.testing.assert_close(slope, torch.tensor([[0.0528, 0.0486]], dtype=torch.float64), rtol=0, atol=5e-5)


@pytest.mark.holds("cut-cross-entropy", 2)
@pytest.mark.parametrize("memory", ["auto", 8 * 53 * 12, 8 * 53 * 60, 900])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_a_filter_it_is_cross_entropy(reduction, memory):
    given = [torch.randn(shape, dtype=torch.float64) for shape in ((31, 7), (53, 7), (53,))]
    target = torch.randint(53, (31,))
    target[::4] = -100
    upstream = torch.rand(31, dtype=torch.float64) if reduction == "none" else torch.tensor(1.0)
    found = []
    for fused in (True, False):
        h, w, b = (t.clone().requires_grad_() for t in given)
        if fused:
            loss = linear_cross_entropy(h, w, target, bias=b, reduction=reduction, memory=memory)
        else:
            loss = torch.nn.functional.cross_entropy(h @ w.T + b, target, reduction=reduction)
        found.append([loss, *torch.autograd.grad((loss * upstream).sum(), (h, w, b))])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.holds("cut-cross-entropy", 3)
@pytest.mark.parametrize("memory", ["auto", 3000, 700])
def test_weights_of_single_losses_are_honoured_exactly(memory):
    """Every row's gradient, one at a time, against a loop over classes."""
    h = torch.randn(5, 4, dtype=torch.float64)
    w = torch.randn(23, 4, dtype=torch.float64)
    y, upstream = torch.randint(23, (5,)), torch.tensor([0.0, 1.0, -2.0, 1e-3, 7.0], dtype=torch.float64)
    leaves = h.clone().requires_grad_(), w.clone().requires_grad_()
    loss = linear_cross_entropy(*leaves, y, reduction="none", memory=memory)
    dh, dw = torch.autograd.grad(loss, leaves, upstream)
    own_h, own_w = torch.zeros_like(h), torch.zeros_like(w)
    for i in range(5):
        z = [float(h[i] @ w[v]) for v in range(23)]
        total = sum(torch.tensor(z).double().exp().tolist())
        for v in range(23):
            slope = float(torch.tensor(z[v]).double().exp()) / total - (v == int(y[i]))
            own_h[i] += float(upstream[i]) * slope * w[v]
            own_w[v] += float(upstream[i]) * slope * h[i]
    torch.testing.assert_close(dh, own_h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dw, own_w, rtol=1e-5, atol=1e-6)


def slopes(filter, factor=None, memory="auto", reduction="sum"):
    """The gradient in the logits: the head is the identity, so that hidden states are logits."""
    generator = torch.Generator().manual_seed(3)
    z = 4 * torch.randn(40, 60, generator=generator, dtype=torch.float64) - torch.arange(60) / 4
    y = torch.randint(60, (40,), generator=generator)
    z.requires_grad_()
    loss = linear_cross_entropy(
        z,
        torch.eye(60, dtype=torch.float64),
        y,
        filter=filter,
        token_weight=factor,
        memory=memory,
        reduction=reduction,
    )
    total = loss.sum()
    return total.detach(), torch.autograd.grad(total, z)[0]


@pytest.mark.holds("cut-cross-entropy", 4)
@pytest.mark.parametrize("eps", [1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("memory", ["auto", 8 * 60 * 40])
def test_the_filter_changes_entries_by_less_than_its_threshold(eps, memory, reduction):
    factor = torch.linspace(0.5, 2.0, 40, dtype=torch.float64)
    exact = slopes(None, factor)
    chosen = GradientFilter(eps, tail=False)
    found = slopes(chosen, factor, memory, reduction)
    torch.testing.assert_close(found[0], exact[0], rtol=1e-12, atol=0)
    off = (found[1] - exact[1]).abs()
    assert (off < eps * factor.unsqueeze(1)).all()
    assert off.max() > 0
    assert 0 < chosen.kept < 1
    # what is left out is reported
    torch.testing.assert_close(chosen.dropped, ((exact[1] - found[1]) / factor.unsqueeze(1)).sum() / 40)


@pytest.mark.parametrize("memory", ["auto", 8 * 60 * 40])
def test_the_tail_keeps_row_sums_and_column_sums(memory):
    factor = torch.linspace(0.5, 2.0, 40, dtype=torch.float64)
    _, exact = slopes(None, factor)
    off = {}
    for tail in (True, False):
        _, found = slopes(GradientFilter(0.02, tail=tail), factor, memory)
        off[tail] = (found - exact).norm() / exact.norm()
        if tail:
            torch.testing.assert_close(found.sum(1), torch.zeros(40, dtype=torch.float64), rtol=0, atol=1e-12)
            torch.testing.assert_close(found.sum(0), exact.sum(0), rtol=1e-9, atol=1e-12)
        else:
            assert found.sum(1).abs().max() > 1e-3
    assert off[True] < off[False]


@pytest.mark.parametrize("memory", ["auto", 8 * 60 * 40])
def test_the_tail_keeps_what_the_weights_gradients_sum_to(memory):
    """Over the classes: of each row, its slopes times its hidden state."""
    h = torch.randn(40, 6, dtype=torch.float64)
    bias, y = -torch.arange(60, dtype=torch.float64) / 4, torch.arange(40) % 30

    def summed(filter):
        w = torch.linspace(-1, 1, 360, dtype=torch.float64).reshape(60, 6).requires_grad_()
        loss = linear_cross_entropy(h, w, y, bias=bias, filter=filter, memory=memory, reduction="sum")
        return torch.autograd.grad(loss, w)[0].sum(0)

    torch.testing.assert_close(summed(GradientFilter(0.02, tail=True)), summed(None), rtol=0, atol=1e-12)
    assert (summed(GradientFilter(0.02, tail=False)) - summed(None)).abs().max() > 1e-3


def test_dropped_mass_is_bounded_on_request():
    for bound in (0.3, 0.05, 1e-3):
        chosen = GradientFilter(0.5, max_dropped=bound)
        slopes(chosen)
        assert 0 < float(chosen.dropped) <= bound
    assert "eps" in repr(chosen)


def test_a_filter_of_nothing_is_exact():
    for exact, found in zip(slopes(None), slopes(1e-300)):
        torch.testing.assert_close(exact, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_threshold_follows_the_type(dtype):
    h = torch.randn(64, 8).to(dtype).requires_grad_()
    w = torch.cat([torch.randn(20, 8), torch.zeros(300, 8)]).to(dtype)
    bias = torch.cat([torch.zeros(20), torch.full((300,), -9.5)]).to(dtype)  # e^-9.5 / 20 is about 2^-18
    _, noted = linear_cross_entropy(h, w, torch.arange(64) % 20, bias=bias, filter="auto", return_stats=True)
    assert (float(noted.dropped) > 0) == (dtype != torch.float32)


def test_gradient_filter_looks_at_the_largest_entry_of_a_column():
    slope = torch.tensor([[0.5, -0.3, 1e-3, 0.0], [-0.5, 0.5, 0.0, -2e-2]])
    assert gradient_filter(slope, 1e-2).tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match="eps"):
        gradient_filter(slope, 0.0)
    with pytest.raises(ValueError, match="target"):
        linear_cross_entropy(H, W, torch.ones(1, 3, dtype=torch.float64), filter="auto")


@pytest.mark.holds("cut-cross-entropy", 5)
@pytest.mark.parametrize("shape", [(1, 1, 3), (13, 5, 7), (67, 3, 129)])
def test_ragged_sizes_and_a_bias_on_all_classes(shape):
    rows, width, classes = shape
    h = torch.randn(rows, width, dtype=torch.float64)
    w = torch.randn(classes, width, dtype=torch.float64)
    y = torch.randint(classes, (rows,))
    for memory in ("auto", 8 * classes * 7, 500):
        plain = linear_cross_entropy(h, w, y, memory=memory)
        torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(h @ w.T, y), rtol=1e-12, atol=1e-13)
        far = torch.full((classes,), 1000.0, dtype=torch.float64)
        torch.testing.assert_close(linear_cross_entropy(h, w, y, bias=far, memory=memory), plain, rtol=0, atol=1e-11)


@pytest.mark.holds("cut-cross-entropy", 6)
@pytest.mark.parametrize("memory", ["auto", 24])
def test_all_ignored_and_out_of_range(memory):
    h, w = H.clone().requires_grad_(), W.clone().requires_grad_()
    loss = linear_cross_entropy(h, w, torch.tensor([-100]), reduction="sum", memory=memory)
    loss.backward()
    assert loss == 0
    assert (h.grad == 0).all()
    assert (w.grad == 0).all()
    for bad in (3, -1, -7):
        with pytest.raises(ValueError, match="target"):
            linear_cross_entropy(H, W, torch.tensor([bad]), memory=memory)
    assert linear_cross_entropy(H, W, torch.tensor([-7]), ignore_index=-7, memory=memory) == 0


@pytest.mark.parametrize("memory", ["auto", 8 * 41 * 9])
def test_log_partition_and_indexed_logit(memory):
    h, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 9, 6), (41, 6), (41,)))
    y = torch.randint(41, (2, 9))
    z = h @ w.T + b
    capped = 3 * torch.tanh(z / 3) / 0.5
    for mine, theirs in (
        (linear_logsumexp(h, w, bias=b, memory=memory), z.logsumexp(-1)),
        (linear_logsumexp(h, w, bias=b, softcap=3.0, temperature=0.5, memory=memory), capped.logsumexp(-1)),
        (indexed_dot(h, w, y, bias=b), z.gather(-1, y.unsqueeze(-1)).squeeze(-1)),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        upstream = torch.rand(2, 9, dtype=torch.float64)
        for p, q in zip(
            torch.autograd.grad((mine * upstream).sum(), (h, w, b)),
            torch.autograd.grad((theirs * upstream).sum(), (h, w, b), retain_graph=True),
        ):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="target"):
        indexed_dot(h, w, torch.full((2, 9), 41))


def test_log_partition_penalty_reductions():
    lse, weight = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])
    assert log_partition_penalty(lse, reduction="none").tolist() == [1.0, 9.0]
    assert log_partition_penalty(lse, reduction="sum") == 10.0
    assert log_partition_penalty(lse, token_weight=weight) == 3.0
    assert log_partition_penalty(lse, token_weight=weight, reduction="none").tolist() == [3.0, 9.0]


def test_the_module_keeps_its_options():
    module = LinearCrossEntropy(shift=1, label_smoothing=0.1)
    h, w, y = torch.randn(2, 5, 4), torch.randn(7, 4), torch.randint(7, (2, 5))
    assert module(h, w, y) == linear_cross_entropy(h, w, y, shift=1, label_smoothing=0.1)
    assert module(h, w, y, reduction="sum") == linear_cross_entropy(
        h, w, y, shift=1, label_smoothing=0.1, reduction="sum"
    )
    assert "shift=1" in repr(module)
    with pytest.raises(ValueError, match="smoothing"):
        LinearCrossEntropy(smoothing=0.1)
