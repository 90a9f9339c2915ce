"""Any row function on a linear head, and divergences between two heads, against whole matrices of logits."""

from __future__ import annotations

import itertools

import pytest
import torch

from steepest.kernels import linear_distillation, linear_log_probability, linear_loss
from steepest.losses import CompSumLoss, FocalLoss, LDRLoss, SquentropyLoss, ZLoss

CLASSES = 37
MEMORY = {"keep": "auto", "chunk": 8 * CLASSES * 6}
ROWS = {
    "focal": FocalLoss(gamma=2.0, reduction="none"),
    "squentropy": SquentropyLoss(reduction="none"),
    "comp_sum": CompSumLoss(tau=1.5, reduction="none"),
    "ldr": LDRLoss(reduction="none"),
    "z": ZLoss(reduction="none"),
}


def problem():
    h, w = torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(CLASSES, 5, dtype=torch.float64)
    b, y = torch.randn(CLASSES, dtype=torch.float64), torch.randint(CLASSES, (3, 7))
    y[0, 1] = y[2, 6] = -100
    return h, w, b, y


def share_of(divergence):
    """The teacher's share of the mixture, where there is one."""
    return 0.3 if divergence == "jensen_shannon" else None


def alike(ours, theirs, tensors, upstream):
    found = []
    for loss in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in tensors]
        value = loss(*leaves)
        found.append([value, *torch.autograd.grad((value * upstream).sum(), leaves)])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.holds("linear-loss")
@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ROWS)
def test_objectives_ride_on_the_head(name, reduction, memory):
    *tensors, y = problem()
    objective, weight = ROWS[name], torch.rand(3, 7, dtype=torch.float64)
    shifted = y[:, 1:]
    valid = shifted >= 0
    upstream = torch.rand(3, 6, dtype=torch.float64) if reduction == "none" else torch.tensor(1.0)

    def ours(h, w, b):
        return linear_loss(
            h,
            w,
            y,
            objective.fused_row,
            bias=b,
            softcap=4.0,
            temperature=0.8,
            shift=1,
            token_weight=weight,
            reduction=reduction,
            memory=memory,
        )

    def theirs(h, w, b):
        z = 4 * torch.tanh((h @ w.T + b) / 4)[:, :-1] / 0.8
        rows = torch.zeros(3, 6, dtype=torch.float64)
        rows[valid] = objective(z[valid], shifted[valid]) * weight[:, 1:][valid]
        if reduction == "mean":
            return rows.sum() / (weight[:, 1:] * valid).sum()
        return rows.sum() if reduction == "sum" else rows

    alike(ours, theirs, tensors, upstream)
    assert objective.reduction == "none"


def test_num_items_nothing_valid_and_refusals():
    h, w, _, y = problem()
    row = ROWS["focal"].fused_row
    total = linear_loss(h, w, y, row, reduction="sum")
    assert linear_loss(h, w, y, row, num_items=8) == total / 8
    assert linear_loss(h, w, y, row, num_items=torch.tensor(8.0)) == total / 8
    assert linear_loss(h, w, torch.full_like(y, -100), row) == 0
    with pytest.raises(TypeError, match="fused_row"):
        linear_loss(h, w, y, None)
    with pytest.raises(ValueError, match="target"):
        linear_loss(h, w, torch.full_like(y, CLASSES), row)


def test_a_row_function_of_ones_own():
    h, w, _, y = problem()

    def squares(z, target):
        z = z - torch.nn.functional.one_hot(target, CLASSES)
        return z.square().sum(1) / 2, z

    def theirs(h, w):
        valid = y >= 0
        return (h @ w.T - torch.nn.functional.one_hot(y.clamp_min(0), CLASSES)).square().sum(-1)[valid].mean() / 2

    for memory in MEMORY.values():
        alike(lambda h, w: linear_loss(h, w, y, squares, memory=memory), theirs, [h, w], 1.0)  # noqa: B023


@pytest.mark.parametrize("memory", [*MEMORY.values(), 2000], ids=[*MEMORY, "slab"])
def test_log_probabilities(memory):
    h, w, b, y = problem()
    upstream = torch.rand(3, 7, dtype=torch.float64)

    def theirs(h, w, b):
        p = (h @ w.T + b).log_softmax(-1)
        return torch.where(y >= 0, p.gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1), 0.0)

    alike(lambda h, w, b: linear_log_probability(h, w, y, bias=b, memory=memory), theirs, [h, w, b], upstream)


@pytest.mark.holds("linear-distillation")
@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_divergences_between_heads(divergence, reduction, scale):
    h, w, b, _ = problem()
    th, tw, tb = torch.randn(3, 7, 9).double(), scale * torch.randn(CLASSES, 9).double(), torch.randn(CLASSES).double()
    token = torch.rand(3, 7, dtype=torch.float64)
    token[1, 2] = 0
    upstream = torch.rand(3, 7, dtype=torch.float64) if reduction == "none" else torch.tensor(1.0)

    def theirs(h, w, b):
        log_s = (2 * torch.tanh((h @ w.T + b) / 2) / 1.5).log_softmax(-1)
        log_t = ((th @ tw.T + tb) / 1.5).log_softmax(-1)

        def kl(p, q):
            return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)

        log_m = torch.log(0.3 * log_t.exp() + 0.7 * log_s.exp())
        rows = {
            "forward_kl": lambda: kl(log_t, log_s),
            "reverse_kl": lambda: kl(log_s, log_t),
            "jensen_shannon": lambda: 0.3 * kl(log_t, log_m) + 0.7 * kl(log_s, log_m),
        }[divergence]()
        rows = rows * token
        return rows if reduction == "none" else rows.sum() / (token.sum() if reduction == "mean" else 1)

    for memory in MEMORY.values():
        alike(
            lambda h, w, b: linear_distillation(
                h,
                w,
                th,
                tw,
                bias=b,
                teacher_bias=tb,
                softcap=2.0,
                temperature=1.5,
                divergence=divergence,
                beta=share_of(divergence),
                token_weight=token,
                reduction=reduction,
                memory=memory,  # noqa: B023
            ),
            theirs,
            [h, w, b],
            upstream,
        )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_gradients_of_both_sides(divergence, reduction):
    """Against torch's own of whole matrices, and against differences of values."""
    h, w, b, _ = problem()
    teacher = [torch.randn(3, 7, 9).double(), torch.randn(CLASSES, 9).double(), torch.randn(CLASSES).double()]
    token = torch.rand(3, 7, dtype=torch.float64)
    token[1, 2] = 0
    upstream = torch.rand(3, 7, dtype=torch.float64) if reduction == "none" else torch.tensor(1.0)

    def theirs(h, w, b, th, tw, tb):
        log_s = (2 * torch.tanh((h @ w.T + b) / 2) / 1.5).log_softmax(-1)
        log_t = (3 * torch.tanh((th @ tw.T + tb) / 3) / 1.5).log_softmax(-1)
        s, t = log_s.exp(), log_t.exp()
        log_m = torch.log(0.3 * t + 0.7 * s)
        rows = {
            "forward_kl": t * (log_t - log_s),
            "reverse_kl": s * (log_s - log_t),
            "jensen_shannon": 0.3 * t * (log_t - log_m) + 0.7 * s * (log_s - log_m),
        }[divergence].sum(-1) * token
        return rows if reduction == "none" else rows.sum() / token.sum()

    def ours(h, w, b, th, tw, tb, memory="auto", **further):
        options = {
            "softcap": 2.0,
            "teacher_softcap": 3.0,
            "temperature": 1.5,
            "beta": share_of(divergence),
            "token_weight": token,
        }
        options |= {"divergence": divergence, "reduction": reduction, "memory": memory, "stop_teacher": False}
        return linear_distillation(h, w, th, tw, bias=b, teacher_bias=tb, **options, **further)

    tensors = [h, w, b, *teacher]
    for memory in MEMORY.values():
        alike(lambda *own: ours(*own, memory=memory), theirs, tensors, upstream)  # noqa: B023
    alike(lambda *own: ours(h, w, b, *own), lambda *own: theirs(h, w, b, *own), teacher, upstream)
    few = [t[:1, :2] if t.ndim == 3 else t[:4] for t in tensors]
    leaves = [t.clone().requires_grad_() for t in few]
    told = {"divergence": divergence, "beta": share_of(divergence), "reduction": reduction, "stop_teacher": False}
    assert torch.autograd.gradcheck(
        lambda h, w, b, th, tw, tb: linear_distillation(h, w, th, tw, bias=b, teacher_bias=tb, **told), leaves
    )


def test_one_head_of_both_sides():
    """A shared weight gets the gradient of its two uses, or of the student's alone; values are the same."""
    h, w, _, _ = problem()
    th = torch.randn(3, 7, 5, dtype=torch.float64)
    head, alone = w.clone().requires_grad_(), w.clone().requires_grad_()
    loss = linear_distillation(h, head, th, head, stop_teacher=False)
    loss.backward()
    pair = [w.clone().requires_grad_() for _ in range(2)]
    linear_distillation(h, pair[0], th, pair[1], stop_teacher=False).backward()
    torch.testing.assert_close(head.grad, pair[0].grad + pair[1].grad, rtol=1e-12, atol=1e-14)
    stopped = linear_distillation(h, alone, th, alone)
    stopped.backward()
    torch.testing.assert_close(alone.grad, pair[0].grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(stopped.detach(), loss.detach(), rtol=1e-12, atol=0)
    with pytest.raises(TypeError, match="stop_teacher"):
        linear_distillation(h, w, th, w, stop_teacher=1)


def test_a_teacher_under_transforms():
    h, w, _, _ = problem()
    th = torch.randn(3, 7, 5, dtype=torch.float64)

    def loss(own, stop=False):
        return linear_distillation(h, w, own, w, divergence="reverse_kl", stop_teacher=stop)

    leaf = th.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(th), wanted, rtol=1e-12, atol=1e-14)
    assert not torch.func.grad(lambda own: loss(own, True))(th).any()
    way = torch.randn_like(th)
    _, slope = torch.func.jvp(loss, (th,), (way,))
    torch.testing.assert_close(slope, (wanted * way).sum(), rtol=1e-12, atol=1e-14)


def test_a_student_like_its_teacher_has_no_loss():
    h, w, _, _ = problem()
    for divergence, memory in itertools.product(("forward_kl", "reverse_kl", "jensen_shannon"), MEMORY.values()):
        leaf = h.clone().requires_grad_()
        loss = linear_distillation(leaf, w, h, w, divergence=divergence, memory=memory)
        loss.backward()
        assert abs(float(loss.detach())) < 1e-14
        assert float(leaf.grad.abs().max()) < 1e-14
    with pytest.raises(ValueError, match="teacher_weight"):
        linear_distillation(h, w, h, w[:-1])
    with pytest.raises(ValueError, match="teacher_hidden"):
        linear_distillation(h, w, h[:, :-1], w)
    assert linear_distillation(h, w, 2 * h, w, token_weight=torch.zeros(3, 7)) == 0


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_a_divergence_is_never_below_zero(divergence):
    generator = torch.Generator().manual_seed(0)
    h, w = torch.randn(400, 8, generator=generator), torch.randn(CLASSES, 8, generator=generator)
    for memory in MEMORY.values():
        losses = linear_distillation(h * (1 + 1e-7), w, h, w, divergence=divergence, reduction="none", memory=memory)
        assert (losses >= 0).all()
    plain = torch.func.vmap(lambda own: linear_distillation(own, w, own, w, divergence=divergence, reduction="sum"))(
        h * (1 + 1e-7)
    )
    assert (plain >= 0).all()


def test_autocast_reaches_both_heads():
    h, w, _, _ = problem()
    th, tw = torch.randn(3, 7, 9), torch.randn(CLASSES, 9)
    leaves = [h.bfloat16().requires_grad_(), w.float().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_distillation(*leaves, th.bfloat16(), tw)
    loss.backward()
    exact = linear_distillation(h, w, th.double(), tw.double())
    assert loss.dtype == torch.float32
    assert abs(float(loss.detach()) - float(exact)) < 0.02 * float(exact)
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_classes_that_both_heads_rule_out_add_nothing(divergence):
    generator = torch.Generator().manual_seed(0)
    h, t = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    w, v = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    bias = torch.tensor([0.0, 0.0, 0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    wanted = linear_distillation(h, w[:3], t, v[:3], divergence=divergence)
    for functional in (False, True):
        own = h.clone().requires_grad_()

        def loss(x):
            return linear_distillation(x, w, t, v, divergence=divergence, bias=bias, teacher_bias=bias)

        torch.testing.assert_close(loss(own), wanted)
        slope = torch.func.grad(loss)(h) if functional else torch.autograd.grad(loss(own), own)[0]
        assert slope.isfinite().all()
    one = linear_distillation(1e3 * h, w, t, v, divergence=divergence)
    assert one.isfinite()
    assert torch.func.grad(lambda x: linear_distillation(1e3 * x, w, t, v, divergence=divergence))(h).isfinite().all()


def test_a_share_of_a_mixture_that_is_none_is_refused():
    h, w = torch.zeros(2, 3), torch.zeros(4, 3)
    for divergence in ("forward_kl", "reverse_kl"):
        with pytest.raises(ValueError, match="beta: expected None with divergence"):
            linear_distillation(h, w, h, w, divergence=divergence, beta=0.3)
