"""Linear cross-entropy against the loss of a whole matrix of logits in float64: shapes, options, types, memory."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from steepest.kernels import linear_cross_entropy

CLASSES = 101
OPTIONS = {
    "label_smoothing": 0.1,
    "z_loss": 1e-2,
    "softcap": 3.0,
    "temperature": 0.7,
    "class_weight": torch.linspace(0.0, 2.0, CLASSES, dtype=torch.float64),
    "token_weight": torch.linspace(0.0, 1.5, 39, dtype=torch.float64).reshape(3, 13),
    "shift": 2,
    "num_items": 17,
    "bias": True,
}
REDUCTIONS = ("mean", "sum", "none")
MODES = {"keep": "auto", "chunk": 8 * CLASSES * 9, "slab": 1500}
HALVES = (torch.bfloat16, torch.float16)


def problem(shape, width, classes, *, seed=0, scale=1.0, ignored=0.2):
    """Hidden states, weight, bias and targets in float64."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, width, generator=generator, dtype=torch.float64)
    weight = scale * torch.randn(classes, width, generator=generator, dtype=torch.float64) / width**0.5
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < ignored] = -100
    return hidden, weight, bias, target


def compare(truth, given, dtype, *, memory="auto", constant=3.0, seed=1, **options):
    """Value and gradients of all tensors, with weights of the losses that differ."""
    hidden, weight, bias, target = given
    use = options.pop("bias", False)
    tensors = [t.to(dtype) for t in ((hidden, weight, bias) if use else (hidden, weight))]
    lead = target[..., options.get("shift", 0) :].shape
    generator = torch.Generator().manual_seed(seed)
    upstream = torch.rand(lead, generator=generator) if options.get("reduction") == "none" else torch.tensor(1.7)

    def ours(h, w, b=None):
        return linear_cross_entropy(h, w, target, bias=b, memory=memory, **options)

    def plain(kind):
        return lambda h, w, b=None: truth.materialised(h, w, target, bias=b, dtype=kind, **options)

    got = truth.gradients(ours, tensors, upstream)
    exact = truth.gradients(plain(torch.float64), [t.double() for t in tensors], upstream)
    # a logit's rounding is up to eps / 2 of it; that of a mean over n tokens is less by sqrt(n)
    luck = torch.finfo(dtype).eps / 4 / len(target.reshape(-1)) ** 0.5 if dtype in HALVES else 0.0
    luck *= target.numel() if options.get("reduction") == "sum" else 1
    truth.as_exact(got, exact, truth.gradients(plain(dtype), tensors, upstream), constant=constant, luck=luck)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", [None, *OPTIONS], ids=str)
def test_every_option_alone(truth, option, mode, reduction):
    options = {option: OPTIONS[option]} if option else {}
    compare(truth, problem((3, 13), 16, CLASSES), torch.float32, memory=MODES[mode], reduction=reduction, **options)


@pytest.mark.parametrize(("place", "pair"), list(enumerate(itertools.combinations(OPTIONS, 2))), ids=str)
def test_options_in_pairs(truth, place, pair):
    """Each pair meets each mode and each reduction once; neighbouring pairs, other modes with them."""
    options = {name: OPTIONS[name] for name in pair}
    for number, mode in enumerate(MODES):
        reduction = REDUCTIONS[(number + place) % 3]
        compare(truth, problem((3, 13), 16, CLASSES), torch.float32, memory=MODES[mode], reduction=reduction, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("option", [None, *OPTIONS], ids=str)
def test_half_types(truth, option, dtype, mode, reduction):
    options = {option: OPTIONS[option]} if option else {}
    compare(truth, problem((3, 13), 16, CLASSES), dtype, memory=MODES[mode], reduction=reduction, **options)


@pytest.mark.parametrize("memory", ["auto", 1 << 17, 1 << 12])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("shape", [(1, 16, 10), (7, 33, 1001), (63, 17, 2), (65, 64, 2049), (1000, 16, 53)], ids=str)
def test_shapes_flat_and_peaked(truth, shape, scale, memory):
    rows, width, classes = shape
    for reduction in ("mean", "none"):
        given = problem((rows,), width, classes, scale=scale, ignored=0.2 if rows > 1 else 0)
        compare(truth, given, torch.float32, memory=memory, reduction=reduction)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(5000, 16, 400), (2001, 1024, 997), (301, 96, 6999), (65, 128, 70001), (9, 32, 256000)], ids=str
)
def test_large_shapes(truth, shape, dtype):
    rows, width, classes = shape
    for memory, reduction in itertools.product(("auto", 8 << 20, 1 << 20), ("mean", "none")):
        compare(truth, problem((rows,), width, classes), dtype, memory=memory, reduction=reduction, bias=True)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "pair"), list(enumerate(itertools.combinations(OPTIONS, 2))), ids=str)
def test_pairs_of_options_on_two_million_logits(truth, place, pair):
    rows, classes = 411, 4801
    dtype = (torch.float32, torch.bfloat16)[place % 2]
    large = {
        "class_weight": torch.linspace(0.0, 2.0, classes, dtype=torch.float64),
        "token_weight": torch.linspace(0.0, 1.5, rows, dtype=torch.float64),
    }
    options = {name: large.get(name, OPTIONS[name]) for name in pair}
    given = problem((rows,), 33, classes)
    for memory, reduction in (("auto", "mean"), (3 << 20, "mean"), (1 << 18, "none")):
        compare(truth, given, dtype, memory=memory, reduction=reduction, **options)


@pytest.mark.parametrize("memory", MODES.values(), ids=MODES)
@pytest.mark.parametrize("size", [1e4, 1e2])
def test_logits_to_ten_thousand(truth, size, memory):
    hidden, weight, bias, target = problem((39,), 16, CLASSES)
    scale = size / (hidden @ weight.T).abs().max()
    for reduction in ("mean", "none"):
        compare(truth, (hidden * scale, weight, bias, target), torch.float32, memory=memory, reduction=reduction)


@pytest.mark.parametrize("memory", MODES.values(), ids=MODES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_valid(reduction, memory):
    hidden, weight, bias, target = (t.float() if t.is_floating_point() else t for t in problem((3, 13), 16, CLASSES))
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    none = torch.full_like(target, -100)
    for weights in (None, torch.zeros(3, 13)):
        for leaf in leaves:
            leaf.grad = None
        loss = linear_cross_entropy(
            hidden,
            weight,
            none if weights is None else target,
            bias=bias,
            token_weight=weights,
            reduction=reduction,
            memory=memory,
        )
        assert (loss == 0).all()
        loss.sum().backward()
        for leaf in leaves:
            assert leaf.grad.shape == leaf.shape
            assert (leaf.grad == 0).all()
    assert linear_cross_entropy(hidden, weight, none, empty="nan").isnan()


def test_frozen_tensors_get_no_gradient():
    given = [t.float() if t.is_floating_point() else t for t in problem((3, 13), 16, CLASSES)]
    for memory, reduction in itertools.product(MODES.values(), ("mean", "none")):
        for needs in itertools.product((True, False), repeat=3):
            leaves = [t.clone().requires_grad_(need) for t, need in zip(given[:3], needs)]
            loss = linear_cross_entropy(
                leaves[0], leaves[1], given[3], bias=leaves[2], memory=memory, reduction=reduction
            ).sum()
            assert loss.requires_grad == any(needs)
            if any(needs):
                loss.backward()
            assert [leaf.grad is not None for leaf in leaves] == list(needs)


def test_tied_and_non_contiguous(truth):
    hidden, weight, _, target = problem((3, 13), 16, CLASSES)
    strided = hidden.transpose(0, 1).contiguous().transpose(0, 1), weight.t().contiguous().t()
    assert not strided[0].is_contiguous()
    assert not strided[1].is_contiguous()
    compare(truth, (*strided, torch.zeros(CLASSES, dtype=torch.float64), target), torch.float32)
    table = weight.clone().requires_grad_()
    tokens = torch.arange(39).reshape(3, 13)

    def tied(loss):
        (found,) = torch.autograd.grad(loss(table[tokens], table, target), table)
        return found

    torch.testing.assert_close(tied(linear_cross_entropy), tied(truth.materialised), rtol=1e-12, atol=1e-14)


def test_same_input_same_bits():
    hidden, weight, bias, target = (t.float() if t.is_floating_point() else t for t in problem((301,), 32, 999))
    for memory, reduction in itertools.product(("auto", 1 << 16, 1 << 13), ("mean", "none")):
        found = []
        for _ in range(2):
            leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
            loss = linear_cross_entropy(*leaves[:2], target, bias=leaves[2], memory=memory, reduction=reduction)
            found.append([loss, *torch.autograd.grad(loss.sum(), leaves)])
        for a, b in zip(*found):
            assert torch.equal(a, b)


@pytest.mark.parametrize("memory", MODES.values(), ids=MODES)
def test_two_backward_passes_and_none_of_the_second_order(memory):
    hidden, weight, _, target = (t.float() if t.is_floating_point() else t for t in problem((39,), 16, CLASSES))
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss = linear_cross_entropy(*leaves, target, memory=memory)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    first = [each.clone() for each in first]
    for a, b in zip(first, torch.autograd.grad(loss, leaves, retain_graph=True)):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="differentiated again"):
        torch.autograd.grad(loss, leaves, create_graph=True)


@pytest.mark.parametrize("memory", MODES.values(), ids=MODES)
def test_statistics(memory):
    hidden, weight, bias, target = problem((3, 13), 16, CLASSES)
    options = {"softcap": 5.0, "temperature": 0.8, "label_smoothing": 0.1}
    _, found = linear_cross_entropy(hidden, weight, target, bias=bias, memory=memory, return_stats=True, **options)
    z = 5.0 * torch.tanh((hidden @ weight.T + bias) / 5.0) / 0.8
    valid = target >= 0
    assert torch.equal(found.valid, valid)
    torch.testing.assert_close(found.lse, z.logsumexp(-1) * valid)
    torch.testing.assert_close(found.entropy, torch.distributions.Categorical(logits=z).entropy() * valid)
    assert torch.equal(found.argmax, torch.where(valid, z.argmax(-1), -1))
    assert torch.equal(found.correct, (z.argmax(-1) == target) & valid)
    assert found.accuracy == found.correct.sum() / valid.sum()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("memory", [MODES["keep"], MODES["chunk"]], ids=["keep", "chunk"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_and_top_k_targets(reduction, memory, smoothing):
    hidden, weight, _, _ = problem((3, 13), 16, CLASSES)
    q = torch.rand(3, 13, CLASSES, dtype=torch.float64).softmax(-1)
    c = torch.rand(CLASSES, dtype=torch.float64)
    upstream = torch.rand(3, 13) if reduction == "none" else torch.tensor(1.0)

    def value(target, h, w):
        options = {"class_weight": c, "label_smoothing": smoothing, "reduction": reduction}
        return linear_cross_entropy(h, w, target, memory=memory, **options)

    def plain(target, h, w):
        found = torch.nn.functional.cross_entropy(
            (h @ w.T).flatten(0, 1), target.flatten(0, 1), weight=c, label_smoothing=smoothing, reduction=reduction
        )
        return found.reshape(3, 13) if reduction == "none" else found

    share, index = q.topk(5, -1)
    thin = torch.zeros_like(q).scatter(-1, index, share)
    for ours, theirs in ((q, q), ((index, share), thin)):
        results = []
        for loss, target in ((value, ours), (plain, theirs)):
            leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
            found = loss(target, *leaves)
            results.append([found, *torch.autograd.grad((found * upstream).sum(), leaves)])
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("mode", "reduction"), [("keep", "none"), ("chunk", "mean"), ("slab", "none")])
def test_one_opaque_operation_under_compile(reduction, mode):
    hidden, weight, bias, target = problem((3, 13), 16, CLASSES)
    tokens = torch.rand(3, 13, dtype=torch.float64)

    def loss(h, w, b):
        return linear_cross_entropy(
            h,
            w,
            target,
            bias=b,
            reduction=reduction,
            shift=1,
            z_loss=0.1,
            softcap=4.0,
            token_weight=tokens,
            memory=MODES[mode],
            return_stats=True,
        )

    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        value, noted = run(*leaves)
        upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
        results.append([value, noted.entropy, noted.correct, *torch.autograd.grad((value * upstream).sum(), leaves)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_autocast_and_compute_dtype(truth):
    hidden, weight, _, target = (t.float() if t.is_floating_point() else t for t in problem((301,), 32, 999))
    exact = truth.gradients(
        lambda h, w: truth.materialised(h, w, target), [hidden.double(), weight.double()], torch.tensor(1.0)
    )

    def under(loss):
        def run(h, w):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return loss(h, w)

        return truth.gradients(run, [hidden, weight], torch.tensor(1.0))

    plain = under(lambda h, w: torch.nn.functional.cross_entropy(torch.nn.functional.linear(h, w).float(), target))
    for memory in ("auto", 1 << 17, 1 << 13):
        loss = functools.partial(linear_cross_entropy, target=target, memory=memory)
        half = functools.partial(loss, compute_dtype=torch.bfloat16)
        for found in (under(loss), truth.gradients(half, [hidden, weight], torch.tensor(1.0))):
            assert {each.dtype for each in found} == {torch.float32}
            truth.as_exact(found, exact, plain, luck=1e-4)


def test_sums_of_half_gradients_are_wide(truth):
    """Thousands of chunks: a half accumulator loses what float32 keeps."""
    hidden, weight, _, target = problem((4000,), 16, 11, ignored=0)
    tensors = [hidden.abs().to(torch.bfloat16), weight.to(torch.bfloat16)]
    exact = truth.gradients(
        lambda h, w: truth.materialised(h, w, target), [t.double() for t in tensors], torch.tensor(1.0)
    )
    off = {}
    for accumulate in ("fp32", "input"):
        memory = 11 * 8 * 16 + 6 * weight.numel()
        loss = functools.partial(linear_cross_entropy, target=target, memory=memory, accumulate=accumulate)
        found = truth.gradients(loss, tensors, torch.tensor(1.0))
        off[accumulate] = (found[2].double() - exact[2]).abs().max() / exact[2].abs().max()
    assert off["fp32"] < 2e-2
    assert off["fp32"] < off["input"] / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "max"}, "reduction"),
        ({"softcap": 0.0}, "softcap"),
        ({"temperature": -1.0}, "temperature"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"z_loss": -1.0}, "z_loss"),
        ({"memory": 0}, "memory"),
        ({"memory": "much"}, "memory"),
        ({"shift": 13}, "shift"),
        ({"num_items": 0}, "num_items"),
        ({"class_weight": torch.ones(3)}, "class_weight"),
        ({"token_weight": torch.ones(3)}, "token_weight"),
        ({"token_weight": -torch.ones(3, 13)}, "token_weight"),
        ({"bias": torch.ones(3)}, "bias"),
        ({"filter": 0.0}, "eps"),
        ({"target": torch.full((3, 13), CLASSES)}, "target"),
        ({"target": torch.zeros(3, 12, dtype=torch.long)}, r"target: expected the leading shape \(3, 13\)"),
        ({"target": torch.zeros(4, 13, dtype=torch.long)}, r"target: expected the leading shape \(3, 13\)"),
        ({"target": torch.zeros(3, 13, 7)}, "target"),
        ({"hidden": torch.zeros(3, 13, 5)}, "hidden"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refusals_name_the_argument(change, message):
    hidden, weight, _, target = (t.float() if t.is_floating_point() else t for t in problem((3, 13), 16, CLASSES))
    given = {"hidden": hidden, "weight": weight, "target": target} | change
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**given)


def test_mixed_types_are_refused_without_autocast():
    with pytest.raises(TypeError, match="hidden"):
        linear_cross_entropy(torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(5, 4), torch.zeros(2, dtype=int))


@pytest.mark.parametrize("memory", ["auto", 60, 200])
def test_confident_tokens_keep_their_loss(memory):
    """log Z - z_y of logits 300 and 290 has lost half the digits of 4.54e-5 in float32."""
    hidden, weight = torch.tensor([[10.0]]), torch.tensor([[30.0], [29.0], *[[0.0]] * 40])
    found = linear_cross_entropy(hidden, weight, torch.tensor([0]), memory=memory)
    exact = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, torch.tensor([0]))
    assert abs(float(found) / float(exact) - 1) < 3e-3


def test_targets_and_weights_that_want_a_gradient_are_refused():
    hidden, weight = torch.zeros(2, 4), torch.zeros(5, 4)
    for given in (
        {"target": torch.full((2, 5), 0.2, requires_grad=True)},
        {"target": torch.zeros(2, dtype=torch.long), "token_weight": torch.ones(2, requires_grad=True)},
    ):
        with pytest.raises(ValueError, match="without a gradient"):
            linear_cross_entropy(hidden, weight, **given)
