"""The Z-loss and its kin: the card's numbers, invariances, and the factored layer against the dense one."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import zscore
from torch.nn.functional import linear, mse_loss, one_hot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from steepest.losses.classification._factored import FactoredMatrix
from steepest.losses.classification.z_loss import (
    SphericalLoss,
    SphericalOutputLayer,
    TaylorSoftmaxLoss,
    ZLoss,
    z_loss,
)

HAND = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
LOGITS = 2 * torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3
TARGET = torch.arange(9) % 5
OPTIONS = [(1.0, 1.0), (0.1, 10.0), (4.0, -0.5)]
FAMILY = [
    ZLoss(),
    ZLoss(a=2.0, b=0.5),
    TaylorSoftmaxLoss(),
    SphericalLoss(e=0.1),
    SphericalLoss("squared_error"),
]


def slope(logits, target, **options):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(z_loss(logits, target, **options), logits)[0]


@pytest.mark.holds("z-loss", 1)
@pytest.mark.parametrize(
    ("target", "a", "b", "wanted"), [(0, 1.0, 1.0, 0.5368), (0, 0.1, 10.0, 12.1699), (2, 1.0, 1.0, 1.6585)]
)
def test_values_by_hand(target, a, b, wanted):
    assert z_loss(HAND, torch.tensor([target]), a=a, b=b).item() == pytest.approx(wanted, abs=5e-5)
    assert ZLoss(a, b)(HAND, torch.tensor([target])).item() == pytest.approx(wanted, abs=5e-5)


@pytest.mark.holds("z-loss", 1)
@pytest.mark.parametrize(("a", "b"), OPTIONS)
def test_equals_scipys_standard_scores(a, b):
    assert zscore(HAND.numpy(), axis=1)[0, 0] == pytest.approx(1.341641, abs=1e-6)
    z = zscore(LOGITS.numpy(), axis=1)
    wanted = [math.log1p(math.exp(a * (b - z[i, y]))) / a for i, y in enumerate(TARGET.tolist())]
    np.testing.assert_allclose(z_loss(LOGITS, TARGET, a=a, b=b, reduction="none"), wanted, rtol=1e-10)


@pytest.mark.holds("z-loss", 2)
@pytest.mark.parametrize(("a", "b"), OPTIONS)
def test_shift_and_positive_scale_change_nothing(a, b):
    value = z_loss(LOGITS, TARGET, a=a, b=b)
    torch.testing.assert_close(z_loss(3 * LOGITS + 7, TARGET, a=a, b=b), value, rtol=1e-10, atol=0)
    far = z_loss((LOGITS + 3000).float(), TARGET, a=a, b=b)
    torch.testing.assert_close(far.double(), value, rtol=1e-3, atol=0)
    assert (z_loss(-LOGITS, TARGET, a=a, b=b) - value).abs() > 1e-3


@pytest.mark.holds("z-loss", 2)
@pytest.mark.parametrize(("a", "b"), OPTIONS)
def test_gradient_sums_to_zero_and_is_orthogonal_to_the_outputs(a, b):
    g = slope(LOGITS, TARGET, a=a, b=b)
    assert g.abs().max() > 1e-3
    assert g.sum(-1).abs().max() < 1e-12
    assert (g * LOGITS).sum(-1).abs().max() < 1e-11


@pytest.mark.holds("z-loss", 3)
def test_gradient_by_hand():
    g = slope(HAND, torch.tensor([0]))
    torch.testing.assert_close(g, g.new_tensor([[-0.1115, 0.1486, 0.0372, -0.0743]]), atol=5e-5, rtol=0)


@pytest.mark.holds("z-loss", 3)
@pytest.mark.parametrize(("a", "b"), OPTIONS)
def test_gradient_equals_its_closed_form(a, b):
    z, s = zscore(LOGITS.numpy(), axis=1), LOGITS.numpy().std(1)
    for i, y in enumerate(TARGET.tolist()):
        sig = 1 / (1 + math.exp(-a * (b - z[i, y])))
        wanted = [sig * (1 + z[i, j] * z[i, y]) / (5 * s[i]) for j in range(5)]
        wanted[y] = -sig * (5 - 1 - z[i, y] ** 2) / (5 * s[i])
        np.testing.assert_allclose(slope(LOGITS[i : i + 1], TARGET[i : i + 1], a=a, b=b)[0], wanted, atol=1e-10)


@pytest.mark.holds("z-loss", 4)
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_bounded_below_and_the_bound_is_reached(classes):
    top = math.sqrt(classes - 1)
    for a, b in OPTIONS:
        floor = math.log1p(math.exp(a * (b - top))) / a
        wild = 10 * torch.randn(50, classes, dtype=torch.float64)
        assert (z_loss(wild, torch.arange(50) % classes, a=a, b=b, reduction="none") >= floor - 1e-12).all()
        alone = 5.0 * one_hot(torch.tensor([1]), classes).double()
        assert z_loss(alone, torch.tensor([1]), a=a, b=b).item() == pytest.approx(floor, rel=1e-9)


@pytest.mark.holds("z-loss", 4)
def test_two_classes_leave_no_gradient():
    logits = torch.randn(20, 2, dtype=torch.float64)
    target = torch.arange(20) % 2
    assert slope(logits, target).abs().max() < 1e-9
    assert not ZLoss.fits("binary")


@pytest.mark.holds("z-loss", 6)
@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_logits_are_finite_with_a_gradient(value, dtype):
    logits = torch.full((2, 4), value, dtype=dtype)
    loss = z_loss(logits, torch.tensor([0, 3]), a=2.0, b=1.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(3.0)) / 2)
    g = slope(logits, torch.tensor([0, 3]))
    assert torch.isfinite(g).all()
    assert (g.gather(1, torch.tensor([[0], [3]])) < 0).all()


@pytest.mark.holds("z-loss", 6)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [3, 1001])
@pytest.mark.parametrize("value", [0.0, 0.1, 3e4])
def test_equal_outputs_have_the_slope_of_deviation_one(dtype, classes, value):
    """A head that starts at 0; and equal outputs elsewhere, whose mean rounding moves."""
    logits = torch.full((2, classes), value, dtype=dtype, requires_grad=True)
    target = torch.tensor([0, 2])
    loss = ZLoss(reduction="sum")(logits, target)
    assert loss.item() == pytest.approx(2 * math.log1p(math.e), rel=1e-5)
    (slope,) = torch.autograd.grad(loss, logits)
    step = 1 / (1 + math.exp(-1.0))
    wanted = step * (1 / classes - one_hot(target, classes).double())
    torch.testing.assert_close(slope.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=1e-4 / classes)


@pytest.mark.holds("z-loss", 2)
@pytest.mark.parametrize("size", [5e-4, 1e-2, 1e4])
def test_above_the_floor_scale_changes_nothing(size):
    """Nothing is added to the variance; gradients of the smallest deviation fit into half precision."""
    torch.testing.assert_close(z_loss(size * LOGITS, TARGET), z_loss(LOGITS, TARGET), rtol=1e-12, atol=0)
    half = (size * (LOGITS - 3)).half().clamp(-6e4, 6e4).requires_grad_()
    ZLoss(reduction="sum")(half, TARGET).backward()
    assert half.grad.isfinite().all()


def test_both_forms_agree_at_equal_outputs_and_near_them():
    """What torch differentiates, and the rule that writes the gradient itself."""
    rows = torch.cat([torch.full((1, 5), 0.3), 1e-5 * LOGITS[:3], LOGITS[4:]])
    first = slope(rows, TARGET)
    second = torch.func.vmap(torch.func.grad(lambda o, y: z_loss(o[None], y[None]) / len(rows)))(rows, TARGET)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


@pytest.mark.holds("z-loss", 6)
def test_refused():
    calls = [
        lambda: z_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)),
        lambda: z_loss(HAND, torch.tensor([4])),
        lambda: z_loss(HAND, torch.tensor([0]), a=0.0),
        lambda: ZLoss(eps=0.0),
        lambda: SphericalLoss("cube"),
        lambda: SphericalOutputLayer(4, 1),
        lambda: SphericalOutputLayer(4, 9, "cube"),
        lambda: SphericalOutputLayer(4, 9)(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)),
        lambda: SphericalOutputLayer(4, 9)(torch.zeros(2, 4), torch.tensor([0, 9])),
        lambda: SphericalOutputLayer(4, 9).step(0.0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=": expected "):
            call()
    with pytest.raises(TypeError, match="loss: expected"):
        SphericalOutputLayer(4, 9, ZLoss(reduction="sum"))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_kin_equal_a_loop(sign):
    outputs = sign * LOGITS
    taylor = [[1 + o + o * o / 2 for o in row] for row in outputs.tolist()]
    square = [[o * o + 0.1 for o in row] for row in outputs.tolist()]
    for loss, rows in ((TaylorSoftmaxLoss(), taylor), (SphericalLoss(e=0.1), square)):
        p = np.array([[t / sum(row) for t in row] for row in rows])
        np.testing.assert_allclose(loss.probabilities(outputs), p, rtol=1e-10)
        np.testing.assert_allclose(loss(outputs, TARGET), -np.log(p[range(9), TARGET]).mean(), rtol=1e-10)
        assert loss.predict(outputs).tolist() == p.argmax(1).tolist()
    wanted = mse_loss(outputs, one_hot(TARGET, 5).double())
    torch.testing.assert_close(SphericalLoss("squared_error")(outputs, TARGET), wanted)


@pytest.mark.parametrize("loss", FAMILY, ids=lambda loss: loss.name)
def test_sums_alone_give_every_member(loss):
    own = LOGITS[range(9), TARGET]
    rows = loss.rows(LOGITS.sum(1), LOGITS.square().sum(1), own, 5)
    torch.testing.assert_close(rows.mean(), loss(LOGITS, TARGET))


def train(layer, loss, steps, batch, rate, seed=2):
    """Values, gradients in h and the final weights of a layer, or (loss given) of a plain matrix."""
    generator = torch.Generator().manual_seed(seed)
    dtype = layer.dtype if loss is not None else layer.weight.dtype
    width, classes = layer.shape[::-1] if loss is not None else (layer.d, layer.D)
    values, slopes = [], []
    for _ in range(steps):
        h = torch.randn(batch, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        target = torch.randint(min(classes, 6), (batch,), generator=generator)
        value = layer(h, target) if loss is None else loss(linear(h, layer), target)
        value.backward()
        if loss is None:
            layer.step(rate)
        else:
            layer = (layer - rate * layer.grad).detach().requires_grad_()
        values.append(value.detach())
        slopes.append(h.grad)
    return torch.stack(values), torch.stack(slopes), (layer.weight if loss is None else layer).detach()


@pytest.mark.holds("z-loss", 5)
@pytest.mark.parametrize("batch", [1, 5, 12])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("loss", FAMILY, ids=lambda loss: f"{loss.name}")
def test_layer_equals_a_plain_matrix(loss, factored, batch):
    """Ten steps of plain gradient descent; batches smaller and larger than the width, with targets that repeat."""
    layer = SphericalOutputLayer(7, 40, loss, factored=factored).double()
    start = torch.randn(40, 7, dtype=torch.float64)
    layer.assign(start)
    found = train(layer, None, 10, batch, 0.5)
    wanted = train(start.clone().requires_grad_(), loss, 10, batch, 0.5)
    for f, w in zip(found, wanted):
        torch.testing.assert_close(f, w, rtol=1e-8, atol=1e-10)
    assert (wanted[2] - start).abs().max() > 1e-3
    h = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(layer.outputs(h), linear(h, wanted[2]), rtol=1e-8, atol=1e-10)


@pytest.mark.holds("z-loss", 5)
@pytest.mark.parametrize("loss", ["z", "taylor", SphericalLoss(e=1.0), "squared_error"])
def test_layer_keeps_single_precision_over_many_steps(loss):
    dense = SphericalOutputLayer(8, 300, loss, factored=False)
    factored = SphericalOutputLayer(8, 300, loss, rebuild_every=16)
    factored.assign(dense.weight)
    found, wanted = (train(layer, None, 50, 16, 0.2) for layer in (factored, dense))
    for f, w in zip(found, wanted):
        torch.testing.assert_close(f, w, rtol=1e-3, atol=1e-5)
    sums = (factored.weight.sum(0), factored.weight.mT @ factored.weight)
    for state, fresh in zip((factored.factors.sums, factored.factors.gram), sums):
        torch.testing.assert_close(state, fresh.double(), rtol=1e-4, atol=1e-3)


@pytest.mark.holds("z-loss", 5)
def test_layer_in_single_precision_after_ten_steps():
    dense = SphericalOutputLayer(7, 40, factored=False)
    factored = SphericalOutputLayer(7, 40)
    factored.assign(dense.weight)
    for f, w in zip(train(factored, None, 10, 5, 0.1), train(dense, None, 10, 5, 0.1)):
        torch.testing.assert_close(f, w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rebuild_every", [None, 1, 3])
def test_rebuilding_changes_no_number(rebuild_every):
    start = torch.randn(30, 4, dtype=torch.float64)
    layer = SphericalOutputLayer(4, 30, "taylor", rebuild_every=rebuild_every).double()
    layer.assign(start)
    wanted = train(start.clone().requires_grad_(), TaylorSoftmaxLoss(), 7, 3, 0.3)
    for f, w in zip(train(layer, None, 7, 3, 0.3), wanted):
        torch.testing.assert_close(f, w, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("batch", [2, 4, 5])
@pytest.mark.parametrize("near", [0.0, 1e-9])
def test_an_update_that_makes_the_factor_singular(near, batch):
    """c |h|^2 = 1 wipes a direction out of W; the rows named are then still moved in that direction."""
    matrix = FactoredMatrix(20, 4).double()
    w = torch.randn(20, 4, dtype=torch.float64)
    matrix.assign(w)
    h = torch.zeros(batch, 4, dtype=torch.float64)
    h[0, 0] = 2.0
    h[1, 1] = 1.0
    c = torch.full((batch,), 0.25 + near, dtype=torch.float64)
    f, s = torch.randn(2, batch, dtype=torch.float64)
    k = torch.tensor([3, 3, 7, 7, 1])[:batch]
    for _ in range(2):
        w = w - sum(torch.outer(c[i] * w @ h[i] + f[i] + s[i] * one_hot(k[i], 20), h[i]) for i in range(batch))
        matrix.update(h, c, f, k, s)
        torch.testing.assert_close(matrix.dense(), w)
        torch.testing.assert_close(matrix.gram, w.mT @ w)
        torch.testing.assert_close(matrix.sums, w.sum(0))
        c = c / 2


def test_backward_is_noted_with_its_factor_and_only_while_training():
    start = torch.randn(30, 4, dtype=torch.float64)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    layer = SphericalOutputLayer(4, 30).double()
    layer.assign(start)
    (3 * layer(x[:2], y[:2])).backward()
    layer(x[2:], y[2:]).backward()
    layer.eval()
    h = x.clone().requires_grad_()
    layer(h, y).backward()
    layer(x, y)
    layer.train()
    layer(x, y)  # never sent back
    with torch.no_grad():
        assert not layer(x, y).requires_grad
    layer.step(0.5)
    w = start.clone().requires_grad_()
    (3 * z_loss(x[:2] @ w.mT, y[:2]) + z_loss(x[2:] @ w.mT, y[2:])).backward()
    torch.testing.assert_close(layer.weight, (w - 0.5 * w.grad).detach())
    layer.step(0.5)
    torch.testing.assert_close(layer.weight, (w - 0.5 * w.grad).detach())


def test_two_backward_passes_through_one_loss_add_up():
    layer, twin = SphericalOutputLayer(4, 30).double(), SphericalOutputLayer(4, 30).double()
    twin.assign(layer.weight)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    loss = layer(x, y)
    loss.backward(retain_graph=True)
    loss.backward()
    (2 * twin(x, y)).backward()
    layer.step(0.5)
    twin.step(0.5)
    torch.testing.assert_close(layer.weight, twin.weight)


def test_near_singular_factors_do_not_cost_precision():
    """Kept in factors, the row named would be a million times longer in one direction, and lose all others to it."""
    matrix = FactoredMatrix(20, 4)
    w = torch.randn(20, 4)
    matrix.assign(w)
    h, one = torch.ones(1, 4), torch.ones(1)
    matrix.update(h, 0.25 * (1 - 1e-6) * one, 0 * one, torch.tensor([3]), one)
    w = w.double()
    w -= 0.25 * (1 - 1e-6) * w.sum(1, keepdim=True)
    w[3] -= 1.0
    torch.testing.assert_close(matrix.dense().double(), w, rtol=1e-5, atol=1e-6)


def test_state_dict_carries_on_with_the_same_bits():
    first, second = SphericalOutputLayer(5, 50), SphericalOutputLayer(5, 50)
    train(first, None, 4, 3, 0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert next(first.parameters(), None) is None
    for a, b in zip(train(first, None, 4, 3, 0.1, seed=3), train(second, None, 4, 3, 0.1, seed=3)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_vectors(dtype):
    layer = SphericalOutputLayer(5, 50)
    h = torch.randn(3, 5).to(dtype).requires_grad_()
    loss = layer(h, torch.tensor([0, 1, 49]))
    assert loss.dtype == torch.float32
    loss.backward()
    assert h.grad.dtype == dtype
    layer.step(0.1)
    assert layer.outputs(h).shape == (3, 50)


class Allocated(TorchDispatchMode):
    """Counts operations, and the numbers in all storages that they make."""

    def __init__(self):
        super().__init__()
        self.calls = self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}

        def storages(values):
            tensors = [v for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, torch.Tensor)]
            return {t.untyped_storage()._cdata: t for t in tensors}

        out = func(*args, **kwargs)
        old = storages((args, kwargs))
        self.calls += 1
        self.numbers += sum(t.untyped_storage().nbytes() for key, t in storages(out).items() if key not in old)
        return out


def one_step_cost(classes, factored):
    """Operations, bytes made and multiplications of one step, the second one."""
    torch.manual_seed(0)
    layer = SphericalOutputLayer(8, classes, factored=factored)
    x, y = torch.randn(4, 8), torch.tensor([0, 5, 900, 5])

    def step():
        layer(x, y).backward()
        layer.step(0.1)

    step()
    with Allocated() as made:
        step()
    with FlopCounterMode(display=False) as flops:
        step()
    assert int(layer.factors.updates if factored else 3) == 3
    return made.calls, made.numbers, flops.get_total_flops()


@pytest.mark.slow
@pytest.mark.holds("z-loss", 5)
def test_cost_of_a_step_is_the_same_for_a_thousand_and_a_million_classes():
    small = one_step_cost(1_000, True)
    assert small == one_step_cost(1_000_000, True)
    assert small[1] < 100_000
    dense_small, dense_large = one_step_cost(1_000, False), one_step_cost(1_000_000, False)
    assert dense_large[1] > 900 * dense_small[1]
    assert dense_large[2] > 900 * dense_small[2] > 0


@pytest.mark.slow
@pytest.mark.holds("z-loss", 5)
def test_a_million_classes_are_trained_exactly():
    torch.manual_seed(0)
    factored, dense = SphericalOutputLayer(8, 1_000_000), SphericalOutputLayer(8, 1_000_000, factored=False)
    factored.assign(dense.weight)
    for f, w in zip(train(factored, None, 3, 4, 10.0), train(dense, None, 3, 4, 10.0)):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-6)
