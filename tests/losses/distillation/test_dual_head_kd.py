"""Distillation by two heads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.losses.distillation.dual_head_kd import BinaryKLNormLoss, DualHead, binary_kl_norm, gradient_align

U = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))


def by_loop(u, t, temperature):
    """The definition by two divergences, one logit after the other."""
    rows = []
    for us, ts in zip(u.tolist(), t.tolist()):
        deltas = [1 / (1 + math.exp(-(a - b) / temperature)) for a, b in zip(us, ts)]
        terms = [0.5 * math.log(0.5 / d) + 0.5 * math.log(0.5 / (1 - d)) for d in deltas]
        rows.append(temperature**2 * sum(terms))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.holds("dual-head-kd", 1)
def test_known_value_and_gradient():
    u = U.clone().requires_grad_()
    loss = BinaryKLNormLoss(2.0)(u, TEACHER)
    assert loss.item() == pytest.approx(0.371158, abs=5e-7)
    (slope,) = torch.autograd.grad(loss, u)
    torch.testing.assert_close(slope, U.new_tensor([[-0.2449, -0.2449, 0.2449]]), atol=5e-5, rtol=0)


@pytest.mark.holds("dual-head-kd", 1)
@pytest.mark.parametrize("temperature", [0.5, 2.0, 6.0])
def test_gradient_is_a_bounded_tanh(pair, temperature):
    u, t = pair[0].requires_grad_(), 30 * pair[1]
    (slope,) = torch.autograd.grad(binary_kl_norm(u, t, temperature), u)
    torch.testing.assert_close(slope, temperature / 2 * torch.tanh((u - t) / (2 * temperature)).detach() / 7)
    assert float(slope.abs().max()) <= temperature / 2 / 7


@pytest.mark.holds("dual-head-kd", 2)
@pytest.mark.parametrize("temperature", [0.5, 2.0, 6.0])
def test_agrees_with_the_definition_and_is_symmetric(pair, temperature):
    u, t = pair
    rows = by_loop(u, t, temperature)
    torch.testing.assert_close(binary_kl_norm(u, t, temperature, reduction="none"), rows)
    torch.testing.assert_close(binary_kl_norm(u, t, temperature), rows.mean())
    cosh = temperature**2 * torch.cosh((u - t) / (2 * temperature)).log().sum() / 7
    assert binary_kl_norm(u.float(), t.float(), temperature).item() == pytest.approx(cosh.item(), rel=1e-6)
    assert torch.equal(binary_kl_norm(u, t, temperature), binary_kl_norm(t, u, temperature))
    weight = torch.linspace(0, 2, 7, dtype=torch.float64)
    weighted = binary_kl_norm(u, t, temperature, weight=weight)
    torch.testing.assert_close(weighted, (weight * rows).sum() / weight.sum())
    torch.testing.assert_close(BinaryKLNormLoss(temperature, "sum")(u, t), rows.sum())


@pytest.mark.holds("dual-head-kd", 2)
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-7])
def test_small_gaps_are_squares(gap):
    """To single precision, which |x| + log1p(exp(-2 |x|)) - log 2 would miss."""
    gaps = gap * torch.tensor([[1.0, -2.0, 0.5]])
    loss = binary_kl_norm(gaps, torch.zeros(1, 3))
    assert loss.item() == pytest.approx(float(gaps.double().square().sum() / 8), rel=1e-4)
    u = gaps.requires_grad_()
    (slope,) = torch.autograd.grad(binary_kl_norm(u, torch.zeros(1, 3)), u)
    torch.testing.assert_close(slope, gaps.detach() / 4, rtol=1e-4, atol=0)
    assert binary_kl_norm(u, u).item() == 0.0


@pytest.mark.holds("dual-head-kd", 3)
def test_a_constant_on_all_logits_counts():
    losses = binary_kl_norm(TEACHER + 1, TEACHER), binary_kl_norm(TEACHER - 1, TEACHER)
    assert losses[0].item() == pytest.approx(3 * 4 * math.log(math.cosh(0.25)))
    assert losses[0].item() == pytest.approx(losses[1].item())


@pytest.mark.holds("dual-head-kd", 4)
@pytest.mark.parametrize("aux", ["linear", "mlp"])
def test_each_head_has_its_loss_and_the_backbone_both(pair, aux):
    torch.manual_seed(0)
    backbone, head = nn.Linear(5, 6).double(), DualHead(6, 5, aux).double()
    z, u = head(backbone(pair[0]))
    losses = nn.functional.cross_entropy(z, torch.arange(7) % 5), BinaryKLNormLoss()(u, pair[1])
    for loss, own, other in zip(losses, (head.main, head.auxiliary), (head.auxiliary, head.main)):
        reached = [*backbone.parameters(), *own.parameters()]
        slopes = torch.autograd.grad(loss, [*reached, *other.parameters()], retain_graph=True, allow_unused=True)
        assert all(slope is not None for slope in slopes[: len(reached)])
        assert all(bool(slope.any()) for slope in slopes[:3])
        assert all(slope is None for slope in slopes[len(reached) :])


@pytest.mark.holds("dual-head-kd", 5)
def test_aligned_gradients_by_hand():
    p = torch.zeros(2, requires_grad=True)

    def aligned(first, second):
        gradient_align(p @ torch.tensor(first), p @ torch.tensor(second), [p])
        return p.grad.tolist()

    assert aligned([1.0, 0.0], [-1.0, 1.0]) == [1.0, 1.0]
    assert aligned([2.0, 0.0], [-1.0, 1.0]) == [2.0, 1.0]
    assert aligned([1.0, 0.0], [1.0, 1.0]) == [2.0, 1.0]
    assert aligned([0.0, 0.0], [-1.0, 1.0]) == [-1.0, 1.0]
    assert aligned([-1.0, 1.0], [1.0, 0.0]) == [-0.5, 1.5]


@pytest.mark.holds("dual-head-kd", 5)
def test_aligned_gradients_of_a_network(pair):
    """The part against the first gradient goes, over what both losses reach; each head keeps its own gradient."""
    torch.manual_seed(0)
    backbone, head = nn.Linear(5, 6).double(), DualHead(6, 5).double()
    features = backbone(pair[0])
    z, u = head(features)
    main = nn.functional.cross_entropy(z, torch.arange(7) % 5)
    opposed = 3 * binary_kl_norm(u, pair[1]) - 5 * nn.functional.cross_entropy(
        features @ head.main.weight.detach().T, torch.arange(7) % 5
    )
    own = list(backbone.parameters())
    g1, g2 = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, own, retain_graph=True)]) for loss in (main, opposed)
    )
    assert float(g1 @ g2) < 0
    heads = [*head.main.parameters(), *head.auxiliary.parameters()]
    of_heads = torch.autograd.grad(main + opposed, heads, retain_graph=True)
    unused = torch.zeros(2, requires_grad=True)
    unused.grad = torch.ones(2)
    gradient_align(main, opposed, [*own, *heads, unused])
    aligned = g2 - (g1 @ g2) / (g1 @ g1) * g1
    assert abs(float(aligned @ g1)) < 1e-12
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in own]), g1 + aligned)
    for p, g in zip(heads, of_heads):
        torch.testing.assert_close(p.grad, g)
    assert unused.grad is None


@pytest.mark.holds("dual-head-kd", 6)
def test_shapes_must_match_and_evaluation_has_one_head():
    with pytest.raises(ValueError, match=r"^teacher_logits: expected shape \(1, 3\), got .* shape \(1, 2\)$"):
        binary_kl_norm(U, TEACHER[:, :2])
    with pytest.raises(ValueError, match="student_logits: expected 2 dimensions"):
        binary_kl_norm(U[0], TEACHER[0])
    torch.manual_seed(0)
    dual, features = DualHead(4, 3), torch.randn(5, 4)
    single = nn.Linear(4, 3)
    single.load_state_dict(dual.main.state_dict())
    assert torch.equal(dual.eval()(features), single(features))


@pytest.mark.holds("dual-head-kd", 7)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_gaps_are_neither_capped_nor_infinite(sign):
    u = torch.tensor([[40.0 * sign]], requires_grad=True)
    loss = binary_kl_norm(u, torch.zeros(1, 1), 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(37.227411, abs=5e-6)
    (slope,) = torch.autograd.grad(loss, u)
    assert slope.item() == pytest.approx(sign, abs=1e-6)
    far = binary_kl_norm(u * 500, torch.zeros(1, 1), 2.0)
    assert far.item() == pytest.approx(4 * (5000 - math.log(2)), rel=1e-6)


def test_no_gradient_to_the_teacher_and_half_inputs():
    u, t = U.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    binary_kl_norm(u, t).backward()
    assert t.grad is None
    half = binary_kl_norm(U.bfloat16(), TEACHER.bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(0.371158, abs=1e-6)


def test_refusals():
    p = torch.zeros(2, requires_grad=True)
    for call, message in (
        (lambda: BinaryKLNormLoss(0.0), "temperature: expected a number > 0"),
        (lambda: binary_kl_norm(U, TEACHER, -1.0), "temperature: expected a number > 0"),
        (lambda: BinaryKLNormLoss(reduction="none"), "reduction: expected one of"),
        (lambda: gradient_align(p.sum(), p, [p]), r"loss_aux: expected shape \(\)"),
        (lambda: gradient_align(p.sum(), p.sum(), [p.detach()]), "params: expected at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_small_and_large_gradients_are_projected():
    for size in (1e-23, 1e-21, 1e20):
        p = torch.zeros(2, requires_grad=True)
        gradient_align(size * p[0], (p * torch.tensor([-1.0, 1.0])).sum(), [p])
        torch.testing.assert_close(p.grad, torch.tensor([size, 1.0]))


def test_gradients_of_one_loss_alone_are_their_own_memory():
    w, p, q = (torch.zeros(2, requires_grad=True) for _ in range(3))
    gradient_align((w - 1).square().sum(), (w + p + q + 1).square().sum(), [w, p, q])
    assert p.grad.data_ptr() != q.grad.data_ptr()
    torch.nn.utils.clip_grad_norm_([p, q], 1.0)
    torch.testing.assert_close(p.grad, torch.full((2,), 0.5))
    a, b = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    gradient_align(a.sum(), (a + b).sum(), [a, b])
    b.grad.mul_(2.0)
    assert b.grad.tolist() == [2, 2, 2]
