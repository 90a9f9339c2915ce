"""Fused operations under every transform of torch, in batched backward passes, and on shapes alone."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from steepest import kernels
from steepest.kernels import (
    fused_qk_rope,
    fused_rms_norm,
    fused_swiglu,
    indexed_dot,
    linear_cross_entropy,
    linear_distillation,
    linear_log_probability,
    linear_logsumexp,
    linear_loss,
    log_partition_penalty,
    two_pass_softmax,
)
from steepest.kernels.stand_ins import cce_linear_cross_entropy, torch_linear_cross_entropy
from steepest.losses import FocalLoss

N, D, V = 6, 5, 9
EPS = torch.finfo(torch.float32).eps


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    h, w = torch.randn(N, D, generator=g), torch.randn(V, D, generator=g)
    return h, w, torch.randn(V, generator=g), torch.tensor([0, 3, -100, 8, 2, 2])


H, W, B, Y = tensors()
ALL = Y.clamp_min(0)
SOFT = torch.randn(N, V, generator=torch.Generator().manual_seed(1)).softmax(1)
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 3.0])
C = torch.linspace(0.5, 2, V)
SMALL = 2 * V * 4
"""Bytes for two rows of logits: several chunks, or slabs."""


def dense(h, w, b=None, cap=None, t=1.0):
    z = functional.linear(h, w, b)
    return (z if cap is None else cap * torch.tanh(z / cap)) / t


def mean(loss, weight):
    return (loss * weight).sum() / weight.sum()


def kl(a, b):
    return functional.kl_div(b, a, log_target=True, reduction="none").sum(1)


def smoothed_mixture(h, w):
    s, t = dense(h, w).log_softmax(1), dense(H, 2 * W).log_softmax(1)
    m = (0.3 * t.exp() + 0.7 * s.exp()).log()
    return 0.3 * kl(t, m) + 0.7 * kl(s, m)


CASES = {
    "cross_entropy": (
        lambda h, w: linear_cross_entropy(h, w, Y, bias=B, softcap=3.0, temperature=0.7, label_smoothing=0.1),
        lambda h, w: functional.cross_entropy(dense(h, w, B, 3.0, 0.7), Y, label_smoothing=0.1),
    ),
    "cross_entropy_sum_weighted": (
        lambda h, w: linear_cross_entropy(h, w, ALL, token_weight=WEIGHT, class_weight=C, reduction="sum"),
        lambda h, w: (functional.cross_entropy(dense(h, w), ALL, C, reduction="none") * WEIGHT).sum(),
    ),
    "cross_entropy_none": (
        lambda h, w: linear_cross_entropy(h, w, Y, reduction="none"),
        lambda h, w: functional.cross_entropy(dense(h, w), Y, reduction="none"),
    ),
    "cross_entropy_of_probabilities": (
        lambda h, w: linear_cross_entropy(h, w, SOFT, class_weight=C, label_smoothing=0.2),
        lambda h, w: functional.cross_entropy(dense(h, w), SOFT, C, label_smoothing=0.2),
    ),
    "cross_entropy_of_some_probabilities": (
        lambda h, w: linear_cross_entropy(h, w, SOFT.topk(3)[::-1], class_weight=C, label_smoothing=0.2),
        lambda h, w: functional.cross_entropy(
            dense(h, w), torch.zeros(N, V).scatter(1, SOFT.topk(3)[1], SOFT.topk(3)[0]), C, label_smoothing=0.2
        ),
    ),
    "cross_entropy_shift_penalty_filter": (
        lambda h, w: linear_cross_entropy(h, w, Y, shift=1, z_loss=0.1, filter=1e-30, num_items=3),
        lambda h, w: (
            (
                functional.cross_entropy(dense(h, w)[:-1], Y[1:], reduction="sum")
                + 0.1 * (dense(h, w)[:-1].logsumexp(1).square() * (Y[1:] >= 0)).sum()
            )
            / 3
        ),
    ),
    "loss": (
        lambda h, w: linear_loss(h, w, ALL, FocalLoss().fused_row, token_weight=WEIGHT),
        lambda h, w: mean(kernel_free_focal(dense(h, w)), WEIGHT),
    ),
    "loss_none": (
        lambda h, w: linear_loss(h, w, ALL, FocalLoss().fused_row, reduction="none"),
        lambda h, w: kernel_free_focal(dense(h, w)),
    ),
    "log_probability": (
        lambda h, w: linear_log_probability(h, w, Y),
        lambda h, w: -functional.cross_entropy(dense(h, w), Y, reduction="none"),
    ),
    "forward_kl": (
        lambda h, w: linear_distillation(h, w, H, 2 * W, token_weight=WEIGHT),
        lambda h, w: mean(kl(dense(H, 2 * W).log_softmax(1), dense(h, w).log_softmax(1)), WEIGHT),
    ),
    "reverse_kl": (
        lambda h, w: linear_distillation(h, w, H, 2 * W, divergence="reverse_kl", reduction="none"),
        lambda h, w: kl(dense(h, w).log_softmax(1), dense(H, 2 * W).log_softmax(1)),
    ),
    "jensen_shannon": (
        lambda h, w: linear_distillation(h, w, H, 2 * W, divergence="jensen_shannon", beta=0.3, reduction="sum"),
        lambda h, w: smoothed_mixture(h, w).sum(),
    ),
    "logsumexp": (lambda h, w: linear_logsumexp(h, w, softcap=2.0), lambda h, w: dense(h, w, None, 2.0).logsumexp(1)),
    "log_partition_penalty": (
        lambda h, w: log_partition_penalty(linear_logsumexp(h, w), token_weight=WEIGHT),
        lambda h, w: mean(dense(h, w).logsumexp(1).square(), WEIGHT),
    ),
    "indexed_dot": (lambda h, w: indexed_dot(h, w, ALL, bias=B), lambda h, w: dense(h, w, B)[torch.arange(N), ALL]),
    "torch's": (
        lambda h, w: torch_linear_cross_entropy(h, w, Y, weight=C),
        lambda h, w: functional.cross_entropy(dense(h, w), Y, C),
    ),
    "cce": (
        lambda h, w: sum(map(torch.mean, cce_linear_cross_entropy(h, w, Y, return_lse=True))),
        lambda h, w: functional.cross_entropy(dense(h, w), Y) + (dense(h, w).logsumexp(1) * (Y >= 0)).mean(),
    ),
    "rms_norm": (lambda h, w: fused_rms_norm(h, w[0]), lambda h, w: functional.rms_norm(h, (D,), w[0], 1e-6)),
    "swiglu": (lambda h, w: fused_swiglu(h, w[:N]), lambda h, w: functional.silu(h) * w[:N]),
    "rope": (lambda h, w: rotated(h, w, fused_qk_rope), lambda h, w: rotated(h, w, by_complex_numbers)),
    "softmax": (lambda h, w: two_pass_softmax(h @ w.T), lambda h, w: (h @ w.T).softmax(1)),
    "log_softmax": (lambda h, w: kernels.log_softmax(h @ w.T), lambda h, w: (h @ w.T).log_softmax(1)),
    "ext_logsumexp": (lambda h, w: kernels.ext_logsumexp(h @ w.T), lambda h, w: (h @ w.T).logsumexp(1)),
}


def kernel_free_focal(z):
    log_p = z.log_softmax(1)[torch.arange(N), ALL]
    return -((1 - log_p.exp()) ** 2) * log_p


def rotated(h, w, form):
    q, k = h[:, :4].reshape(1, 1, N, 4), w[:N, :4].reshape(1, 1, N, 4)
    return torch.cat([each.reshape(-1) for each in form(q, k, positions=torch.arange(N))])


def by_complex_numbers(*tensors, positions):
    angle = positions[:, None] * 10000.0 ** (-torch.arange(0, 4, 2) / 4)
    turned = [torch.complex(*t.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle) for t in tensors]
    return [torch.cat([t.real, t.imag], -1) for t in turned]


def same(found, wanted):
    """To the rounding of float32 sums of products of a few numbers of size 10."""
    torch.testing.assert_close(found, wanted, rtol=64 * EPS, atol=64 * EPS, check_dtype=False)


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


def total(form):
    """One number of all that a form gives, each entry with another slope."""

    def run(h, w):
        found = form(h, w)
        return (found * torch.linspace(-1, 2, found.numel()).reshape(found.shape)).sum() if found.ndim else found

    return run


def test_transforms_of_functions(case):
    form, plain = map(total, case)
    h, w = 0.5 * H + 0.1, 0.5 * W
    value, slopes = torch.func.grad_and_value(form, argnums=(0, 1))(h, w)[::-1]
    wanted = torch.func.grad(plain, argnums=(0, 1))(h, w)
    same(value, plain(h, w))
    same(slopes, wanted)
    tangents = torch.cos(h), torch.sin(w)
    same(torch.func.jvp(form, (h, w), tangents)[1], torch.func.jvp(plain, (h, w), tangents)[1])
    many = torch.stack([h, 2 * h, h - 1])
    found = torch.func.vmap(torch.func.grad(form, argnums=(0, 1)), in_dims=(0, None))(many, w)
    same(found, torch.func.vmap(torch.func.grad(plain, argnums=(0, 1)), in_dims=(0, None))(many, w))


def test_many_gradients_in_one_backward_pass(case):
    form, plain = case
    h, w = (t.clone().requires_grad_() for t in (H, W))
    loss, wanted = form(h, w), plain(h, w)
    upstream = torch.randn(3, *loss.shape, generator=torch.Generator().manual_seed(2))
    slopes = torch.autograd.grad(wanted, (h, w), upstream, is_grads_batched=True, retain_graph=True)
    same(torch.autograd.grad(loss, (h, w), upstream, is_grads_batched=True, retain_graph=True), slopes)
    # a pass before and one after, and torch.func's vmap over passes
    same(torch.autograd.grad(loss, (h, w), upstream[0], retain_graph=True), tuple(s[0] for s in slopes))
    one_by_one = torch.func.vmap(lambda u: torch.autograd.grad(loss, (h, w), u, retain_graph=True))
    same(one_by_one(upstream), slopes)
    jacobian = torch.autograd.functional.jacobian(form, (h, w), vectorize=True)
    same(jacobian, torch.autograd.functional.jacobian(plain, (h, w)))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("memory", ["auto", SMALL, 1], ids=["kept", "chunks", "one row"])
def test_many_gradients_whatever_the_memory(reduction, memory):
    h, w, b = (t.clone().requires_grad_() for t in (H, W, B))
    loss = linear_cross_entropy(h, w, Y, bias=b, reduction=reduction, memory=memory)
    plain = functional.cross_entropy(dense(h, w, b), Y, reduction=reduction)
    upstream = torch.randn(3, *loss.shape, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        found, wanted = (
            torch.autograd.grad(each, (h, w, b), upstream, is_grads_batched=True, retain_graph=True)
            for each in (loss, plain)
        )
        same(found, wanted)


def test_weights_that_the_hidden_states_come_from():
    w = W.clone().requires_grad_()
    forms = [lambda w: linear_cross_entropy(H @ (w.T @ w), w, Y, reduction="none"),
             lambda w: functional.cross_entropy(H @ (w.T @ w) @ w.T, Y, reduction="none")]  # fmt: skip
    same(*(torch.autograd.functional.jacobian(form, w, vectorize=form is forms[0]) for form in forms))


def test_fake_and_meta_tensors_give_shapes(case):
    form, _ = case
    h, w = (t.clone().requires_grad_() for t in (H, W))
    wanted = form(h, w)
    for kind in ("fake", "meta"):
        found, slopes = shapes(form, kind)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert [s.shape for s in slopes] == [h.shape, w.shape]


def shapes(form, kind):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if kind == "fake":
        with mode:
            h, w = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
            found = form(h, w)
            return found, torch.autograd.grad(found.sum(), (h, w))
    names = ("H", "W", "B", "Y", "ALL", "SOFT", "WEIGHT", "C")
    before = {name: globals()[name] for name in names}
    try:
        globals().update({name: value.to("meta") for name, value in before.items()})
        h, w = H.clone().requires_grad_(), W.clone().requires_grad_()
        with torch.device("meta"):
            found = form(h, w)
        return found, torch.autograd.grad(found.sum(), (h, w))
    finally:
        globals().update(before)


def test_a_gradient_that_was_given_has_none():
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.func.hessian(CASES["loss"][0])(H, W)


def test_what_is_told_of_the_head_under_a_transform():
    names = ("lse", "entropy", "argmax", "correct", "valid")

    def loss(h):
        found, told = linear_cross_entropy(h, W, Y, return_stats=True)
        return found, tuple(getattr(told, name) for name in names)

    same(torch.func.grad(loss, has_aux=True)(H)[1], loss(H)[1])


def test_ranks_are_refused():
    shard = kernels.VocabularyShard(None, 0, V)
    with pytest.raises(ValueError, match=r"process_group.*outside transforms"):
        torch.func.grad(lambda h: linear_cross_entropy(h, W, Y, process_group=shard))(H)


def test_hidden_states_that_do_not_count_may_be_infinite():
    h = H.clone()
    h[2] = torch.inf
    found = torch.func.grad(lambda h: linear_cross_entropy(h, W, Y))(h)
    same(found, torch.func.grad(lambda h: linear_cross_entropy(h, W, Y))(H))
