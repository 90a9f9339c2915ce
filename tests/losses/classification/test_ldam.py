"""Label-distribution-aware margins, the head of cosines, deferred re-weighting."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from steepest.core.objective import TaskInfo
from steepest.losses.classification.comp_sum import CompSumLoss
from steepest.losses.classification.ldam import (
    DeferredReweighting,
    LDAMLoss,
    NormedLinear,
    effective_number_weights,
    ldam_loss,
    ldam_margins,
)
from steepest.losses.classification.orthogonal_projection import CrossEntropyWithOPL

COUNTS = (1000, 100, 10)
Z = torch.tensor([[0.8, 0.6, -0.2]], dtype=torch.float64)
ALL = torch.tensor([0, 1, 2])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def cosines(rows, classes, generator):
    return 2 * torch.rand(rows, classes, generator=generator, dtype=torch.float64) - 1


def naive(z, label, margins, scale, hinge=False):
    """One sample, as the equations have it."""
    own = z[label] - margins[label]
    others = [v for k, v in enumerate(z) if k != label]
    if hinge:
        return max(max(others) - own, 0.0)
    return -math.log(math.exp(scale * own) / (math.exp(scale * own) + sum(math.exp(scale * v) for v in others)))


@pytest.mark.holds("ldam", 1)
def test_margins():
    torch.testing.assert_close(ldam_margins(COUNTS), torch.tensor([0.1581, 0.2812, 0.5]), atol=5e-5, rtol=0)
    torch.testing.assert_close(ldam_margins(torch.tensor([16, 1, 81]), 0.6), torch.tensor([0.3, 0.6, 0.2]))
    assert torch.equal(LDAMLoss(COUNTS).margins, ldam_margins(COUNTS))


@pytest.mark.parametrize("counts", [(16, 1, 81), (1000, 100, 10), (5, 5, 6)])
def test_margins_minimise_the_bound(counts):
    """sum_j 1 / (gamma_j sqrt(n_j)) goes up when margin moves from one class to another."""
    best = ldam_margins(counts).double()
    root = torch.tensor(counts, dtype=torch.float64).sqrt()
    for a in range(3):
        for b in range(3):
            if a != b:
                moved = best.clone()
                moved[a] += 1e-3
                moved[b] -= 1e-3
                assert (1 / (moved * root)).sum() > (1 / (best * root)).sum()


@pytest.mark.holds("ldam", 2)
@pytest.mark.parametrize(
    ("scale", "wanted"), [(30.0, (0.250467, 14.435120, 45.002476)), (1.0, (0.871241, 1.167262, 2.213862))]
)
def test_card_values(scale, wanted):
    loss = LDAMLoss(COUNTS, scale=scale, reduction="none")
    # the margins are kept in float32
    torch.testing.assert_close(loss(Z.expand(3, 3), ALL), Z.new_tensor(wanted), atol=1e-5, rtol=0)


@pytest.mark.parametrize("hinge", [False, True])
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_naive_loop(scale, hinge, generator):
    z, y = cosines(12, 4, generator), torch.arange(12) % 4
    margins = torch.rand(4, generator=generator, dtype=torch.float64)
    class_weight = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
    weight = torch.rand(12, generator=generator, dtype=torch.float64)
    each = z.new_tensor([naive(row, k, margins.tolist(), scale, hinge) for row, k in zip(z.tolist(), y.tolist())])
    options = {"margins": margins, "scale": scale, "hinge": hinge}
    torch.testing.assert_close(ldam_loss(z, y, **options, reduction="none"), each)
    total = class_weight[y] * weight
    found = ldam_loss(z, y, **options, class_weight=class_weight, weight=weight)
    torch.testing.assert_close(found, (total * each).sum() / total.sum())
    found = ldam_loss(z, y, **options, class_weight=class_weight, reduction="sum")
    torch.testing.assert_close(found, (class_weight[y] * each).sum())


def test_weighted_mean_is_that_of_torch(generator):
    z, y = cosines(12, 4, generator), torch.arange(12) % 3
    weight = torch.tensor([0.5, 1.0, 2.0, 0.1])
    found = LDAMLoss((4, 3, 2, 9), max_margin=0.0, scale=5.0, weight=weight)(z, y)
    torch.testing.assert_close(found, nn.functional.cross_entropy(5 * z, y, weight=weight.double()))


@pytest.mark.holds("ldam", 3)
def test_deferred_weights():
    wanted = torch.tensor([0.0284, 0.2713, 2.7004])
    torch.testing.assert_close(effective_number_weights(COUNTS), wanted, atol=5e-5, rtol=0)
    for beta in (0.0, 0.9, 0.9999, 1 - 1e-12):
        weights = effective_number_weights(COUNTS, beta)
        exact = [1 / sum(beta**k for k in range(n)) for n in COUNTS]  # (1 - beta^n) / (1 - beta) as its series
        torch.testing.assert_close(weights, torch.tensor([3 * v / sum(exact) for v in exact]))
        assert weights.sum().item() == pytest.approx(3.0)
    for loss in (LDAMLoss(COUNTS), DeferredReweighting(CompSumLoss(), COUNTS)):
        assert torch.equal(loss.class_weight, torch.ones(3))
        for epoch in range(1, 201):
            loss.start_epoch(epoch, 200)
            expected = effective_number_weights(COUNTS) if epoch > 160 else torch.ones(3)
            assert torch.equal(loss.class_weight, expected), epoch
        loss.start_epoch(1, 200)
        assert torch.equal(loss.class_weight, torch.ones(3))


@pytest.mark.parametrize(("start", "epochs", "first"), [(0.29, 100, 30), (0.0, 5, 1), (1.0, 5, None), (0.5, 5, 3)])
def test_the_switch_falls_between_epochs(start, epochs, first):
    loss = DeferredReweighting(CompSumLoss(), COUNTS, start=start)
    on = []
    for epoch in range(1, epochs + 1):
        loss.start_epoch(epoch, epochs)
        if not torch.equal(loss.class_weight, torch.ones(3)):
            on.append(epoch)
    assert on == ([] if first is None else list(range(first, epochs + 1)))


def test_without_deferral_and_with_fixed_weights():
    loss = LDAMLoss(COUNTS, deferred=None)
    loss.start_epoch(9, 10)
    assert torch.equal(loss.class_weight, torch.ones(3))
    fixed = torch.tensor([1.0, 2.0, 3.0])
    loss = LDAMLoss(COUNTS, weight=fixed, beta=0.99)
    loss.start_epoch(9, 10)
    torch.testing.assert_close(loss.class_weight, fixed * effective_number_weights(COUNTS, 0.99))


@pytest.mark.holds("ldam", 4)
def test_special_cases(generator):
    z, y = cosines(9, 3, generator), torch.arange(9) % 3
    found = LDAMLoss(COUNTS, max_margin=0.0, scale=1.0)(z, y)
    torch.testing.assert_close(found, nn.functional.cross_entropy(z, y))
    assert torch.equal(ldam_margins((7, 7, 7, 7), 0.3), torch.full((4,), 0.3))
    torch.testing.assert_close(effective_number_weights((7, 7, 7, 7)), torch.ones(4))


@pytest.mark.holds("ldam", 5)
@pytest.mark.parametrize("hinge", [False, True])
def test_a_margin_acts_on_its_class_only(hinge, generator):
    z, y = 0.3 * cosines(12, 4, generator), torch.arange(12) % 4
    margins = torch.full((4,), 0.7, dtype=torch.float64)
    before = ldam_loss(z, y, margins=margins, hinge=hinge, reduction="none")
    for k in range(4):
        wider = margins.clone()
        wider[k] += 0.1
        change = ldam_loss(z, y, margins=wider, hinge=hinge, reduction="none") - before
        assert bool((change[y == k] > 0).all())
        assert bool((change[y != k] == 0).all())


@pytest.mark.holds("ldam", 6)
def test_refusals_and_the_warning():
    for bad in ((5, 0, 3), (5,), ((5, 3),)):
        for make in (LDAMLoss, effective_number_weights, ldam_margins):
            with pytest.raises(ValueError, match="class_counts: expected"):
                make(bad)
    with pytest.raises(TypeError, match="class_counts: expected"):
        LDAMLoss((5.0, 3.0))
    for options in ({"beta": 1.0}, {"max_margin": -0.1}, {"scale": 0.0}, {"deferred": 1.5}, {"weight": [1.0]}):
        with pytest.raises(ValueError, match=": expected "):
            LDAMLoss(COUNTS, **options)
    with pytest.warns(UserWarning, match=r"expected values in \[-1, 1\], got 1.5"):
        LDAMLoss(COUNTS)(torch.tensor([[1.5, 0.0, 0.0]]), ALL[:1])
    with pytest.warns(UserWarning, match=r"expected values in \[-1, 1\]"):
        LDAMLoss(COUNTS)(torch.tensor([[-1.001, 0.0, 0.0]]), ALL[:1])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_its_own_head_never_warns(dtype):
    head = NormedLinear(50, 3).to(dtype)
    aligned = head.weight.detach()  # cosines of exactly 1
    outputs = head(aligned)
    assert outputs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(outputs.diagonal(), torch.ones(3, dtype=outputs.dtype))
    LDAMLoss(COUNTS)(outputs, ALL)
    LDAMLoss(COUNTS)(outputs.to(dtype), ALL)
    vmap(LDAMLoss(COUNTS))(torch.full((2, 1, 3), 9.0), torch.zeros(2, 1, dtype=torch.long))


def test_head_is_the_cosine(generator):
    head = NormedLinear(6, 3)
    x = torch.randn(5, 6, generator=generator)
    wanted = nn.functional.cosine_similarity(x[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(x), wanted)
    torch.testing.assert_close(head(1000 * x), wanted)
    x[0] = 0.0
    x.requires_grad_()
    assert bool((head(x)[0] == 0).all())
    assert bool(torch.isfinite(torch.autograd.grad(head(x).sum(), x)[0]).all())
    info = TaskInfo("multiclass", 1110, 3, COUNTS, feature_dim=6)
    assert isinstance(LDAMLoss.from_task(info).head(6, info), NormedLinear)


def test_heads_and_losses_in_a_stack(generator):
    """Several heads as one, through the loss: values and gradients of each by itself."""
    heads = [NormedLinear(6, 3) for _ in range(4)]
    x, y = torch.randn(4, 5, 6, generator=generator), torch.randint(3, (4, 5), generator=generator)
    params, buffers = stack_module_state(heads)
    base = copy.deepcopy(heads[0]).to("meta")
    objective = LDAMLoss(COUNTS)
    objective.start_epoch(10, 10)

    def loss(p, b, features, target):
        return objective(functional_call(base, (p, b), (features,)), target)

    found = vmap(loss)(params, buffers, x, y)
    slopes = vmap(torch.func.grad(loss))(params, buffers, x, y)["weight"]
    for i, head in enumerate(heads):
        single = objective(head(x[i]), y[i])
        torch.testing.assert_close(found[i], single)
        torch.testing.assert_close(slopes[i], torch.autograd.grad(single, head.weight)[0])


def test_state_dict_carries_counts_and_the_switch(generator):
    z, y = cosines(9, 3, generator), torch.arange(9) % 3
    trained = LDAMLoss(COUNTS)
    trained.start_epoch(9, 10)
    fresh = LDAMLoss((4, 4, 4))
    fresh.load_state_dict(trained.state_dict())
    assert fresh.class_counts.tolist() == list(COUNTS)
    assert torch.equal(fresh(z, y), trained(z, y))
    fresh.start_epoch(10, 10)
    assert torch.equal(fresh(z, y), trained(z, y))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(trained(z, y), LDAMLoss(COUNTS)(z, y))


class Recorder(CompSumLoss):
    """A loss that notes what it was told."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def start_epoch(self, epoch, epochs):
        self.calls.append(("epoch", epoch, epochs))

    def after_step(self):
        self.calls.append("step")


def test_wrapper_hands_everything_on(generator):
    inner = Recorder()
    loss = DeferredReweighting(inner, COUNTS, start=0.5)
    z, y = torch.randn(9, 3, generator=generator, dtype=torch.float64), torch.arange(9) % 3
    torch.testing.assert_close(loss(z, y), nn.functional.cross_entropy(z, y))
    loss.start_epoch(2, 2)
    loss.after_step()
    assert inner.calls == [("epoch", 2, 2), "step"]
    own = effective_number_weights(COUNTS).double()
    torch.testing.assert_close(loss(z, y), nn.functional.cross_entropy(z, y, weight=own))
    weight = torch.rand(9, generator=generator, dtype=torch.float64)
    each = nn.functional.cross_entropy(z, y, reduction="none")
    total = weight * own[y]
    torch.testing.assert_close(loss(z, y, weight=weight), (total * each).sum() / total.sum())
    loss.reduction = "sum"
    assert inner.reduction == "sum"
    torch.testing.assert_close(loss(z, y), (own[y] * each).sum())
    torch.testing.assert_close(loss.probabilities(z), z.softmax(-1))
    margins = DeferredReweighting(LDAMLoss(COUNTS, deferred=None), COUNTS)
    assert margins.domain == "cosine"
    assert isinstance(margins.head(4, TaskInfo("multiclass", 3, 3, COUNTS)), NormedLinear)


def test_wrapped_margin_loss_is_the_built_in_deferral(generator):
    z, y = cosines(9, 3, generator), torch.arange(9) % 3
    a, b = LDAMLoss(COUNTS), DeferredReweighting(LDAMLoss(COUNTS, deferred=None), COUNTS)
    for epoch in (1, 10):
        a.start_epoch(epoch, 10)
        b.start_epoch(epoch, 10)
        torch.testing.assert_close(a(z, y), b(z, y))


def test_wrapper_refusals():
    with pytest.raises(TypeError, match="loss: expected an objective of samples"):
        DeferredReweighting(CrossEntropyWithOPL(), COUNTS)
    with pytest.raises(ValueError, match="outputs: expected 3 classes"):
        DeferredReweighting(CompSumLoss(), COUNTS)(torch.zeros(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="start: expected"):
        DeferredReweighting(CompSumLoss(), COUNTS, start=-0.1)


def test_ignored_labels_stay_ignored():
    info = TaskInfo("multiclass", 1110, 3, COUNTS)
    loss = DeferredReweighting.from_task(info)
    loss.start_epoch(1, 1)
    z = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    torch.testing.assert_close(loss(z, torch.tensor([0, -100])), loss(z[:1], torch.tensor([0])))
