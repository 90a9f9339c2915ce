"""The fourteen regression losses of the survey: card numbers, peers, optima, refusals."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from scipy.optimize import minimize_scalar
from sklearn import metrics

from steepest.losses.classification import loss_catalogue
from steepest.losses.regression import survey
from steepest.losses.regression.survey import (
    huber,
    log_cosh,
    mae,
    mape,
    mbe,
    mse,
    msle,
    nrmse,
    quantile_loss,
    rae,
    regression_loss_catalogue,
    rmse,
    rmsle,
    rrmse,
    rse,
)

Y = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64)
F = torch.tensor([1.5, 2.0, 3.0, 6.0], dtype=torch.float64)
_G = torch.Generator().manual_seed(8)
TARGET = torch.rand(50, generator=_G, dtype=torch.float64) * 4 + 0.5
OUTPUTS = TARGET + torch.randn(50, generator=_G, dtype=torch.float64) * 0.4
OUTPUTS = OUTPUTS.clamp_min(-0.5)
SAMPLES = [mae, mse, mbe, mape, msle, huber, log_cosh, quantile_loss]
BATCH = [rae, rse, rmse, rmsle, nrmse, rrmse]


@pytest.mark.holds("regression-losses-survey", 1)
@pytest.mark.parametrize(
    ("function", "params", "wanted"),
    [
        (mae, {}, 0.625),
        (mse, {}, 0.5625),
        (mbe, {}, -0.125),
        (rae, {}, 0.4167),
        (rse, {}, 0.225),
        (mape, {}, 23.75),
        (rmse, {}, 0.75),
        (msle, {}, 0.0308),
        (rmsle, {}, 0.1756),
        (nrmse, {"scale": "range"}, 0.1875),
        (nrmse, {"scale": "mean"}, 0.25),
        (rrmse, {}, 0.2095),
        (huber, {"delta": 0.5}, 0.2188),
        (log_cosh, {}, 0.2469),
        (quantile_loss, {"q": 0.5}, 0.3125),
        (quantile_loss, {"q": 0.9}, 0.2625),
    ],
)
def test_by_hand(function, params, wanted):
    assert function(F, Y, **params).item() == pytest.approx(wanted, abs=5.001e-5)


@pytest.mark.holds("regression-losses-survey", 1)
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_agree_with_peers(size):
    y, f = size * TARGET, size * OUTPUTS
    pairs = [
        (mae(f, y), metrics.mean_absolute_error(y, f)),
        (mse(f, y), metrics.mean_squared_error(y, f)),
        (rmse(f, y), metrics.root_mean_squared_error(y, f)),
        (mape(f, y), 100 * metrics.mean_absolute_percentage_error(y, f)),
        (huber(f, y, delta=0.3), nnf.huber_loss(f, y, delta=0.3).item()),
        (log_cosh(f / 9, y / 9), float(np.log(np.cosh((y - f).numpy() / 9)).mean())),
        (quantile_loss(f, y, q=0.2), metrics.mean_pinball_loss(y, f, alpha=0.2)),
    ]
    small = (OUTPUTS, TARGET)
    pairs += [
        (msle(*small), float(((TARGET + 1).log() - (OUTPUTS + 1).log()).square().mean())),
        (rmsle(*small), math.sqrt(float(((TARGET + 1).log() - (OUTPUTS + 1).log()).square().mean()))),
        (mbe(f, y), float(np.mean(y.numpy() - f.numpy()))),
        (rae(f, y), float((y - f).abs().sum() / (y - y.mean()).abs().sum())),
        (rrmse(f, y, by="target"), float(((y - f).square().sum() / y.square().sum()).sqrt())),
    ]
    for found, wanted in pairs:
        assert found.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.holds("regression-losses-survey", 2)
def test_identities():
    torch.testing.assert_close(quantile_loss(OUTPUTS, TARGET), mae(OUTPUTS, TARGET) / 2)
    assert rse(OUTPUTS, TARGET).item() == pytest.approx(1 - metrics.r2_score(TARGET, OUTPUTS))
    torch.testing.assert_close(nrmse(OUTPUTS, TARGET).square(), rse(OUTPUTS, TARGET))
    torch.testing.assert_close(huber(OUTPUTS, TARGET, delta=1e9), mse(OUTPUTS, TARGET) / 2)
    torch.testing.assert_close(huber(OUTPUTS, TARGET, delta=1e-9) / 1e-9, mae(OUTPUTS, TARGET))


@pytest.mark.holds("regression-losses-survey", 3)
def test_relative_errors_of_the_mean_are_one():
    constant = TARGET.mean().expand(50)
    for loss in (rae, rse, nrmse):
        assert loss(constant, TARGET).item() == pytest.approx(1.0)


@pytest.mark.holds("regression-losses-survey", 4)
@pytest.mark.parametrize(
    ("function", "params", "wanted"),
    [
        (mse, {}, TARGET[:49].mean().item()),
        (rmse, {}, TARGET[:49].mean().item()),
        (mae, {}, TARGET[:49].median().item()),
        (rae, {}, TARGET[:49].median().item()),
        (msle, {}, math.expm1(TARGET[:49].log1p().mean().item())),
        (rrmse, {}, (TARGET[:49].square().mean() / TARGET[:49].mean()).item()),
        *((quantile_loss, {"q": q}, np.quantile(TARGET[:49], q, method="inverted_cdf")) for q in (0.1, 0.25, 0.9)),
    ],
)
def test_best_constant(function, params, wanted):
    y = TARGET[:49]

    def risk(c: float) -> float:
        return function(torch.full_like(y, c), y, **params).item()

    found = minimize_scalar(risk, bounds=(0.0, 6.0), method="bounded", options={"xatol": 1e-9}).x
    assert found == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.holds("regression-losses-survey", 5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_cosh_is_finite_and_its_slope_is_tanh(dtype):
    error = torch.tensor([-1e4, -90.0, -3.0, -1e-3, 0.0, 0.5, 20.0, 1e4], dtype=dtype, requires_grad=True)
    loss = log_cosh(error, torch.zeros_like(error), reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), error)
    assert torch.isfinite(loss).all()
    assert loss[-1].item() == pytest.approx(1e4 - math.log(2))
    assert (slope.abs() <= 1).all()
    torch.testing.assert_close(slope, torch.tanh(error.detach()), atol=1e-6, rtol=1e-6)


@pytest.mark.holds("regression-losses-survey", 6)
@pytest.mark.parametrize("function", [msle, rmsle])
@pytest.mark.parametrize("bad", [-1.0, -3.0])
def test_logarithms_outside_their_domain_are_refused_or_held(function, bad):
    low = torch.tensor([0.5, bad])
    for f, y, argument in ((low, torch.ones(2), "outputs"), (torch.ones(2), low, "target")):
        with pytest.raises(ValueError, match=f"{argument}: expected values > -1"):
            function(f, y)
    held = msle(low, torch.ones(2), eps=0.1)
    assert held.item() == pytest.approx((math.log(1.5 / 2) ** 2 + math.log(0.1 / 2) ** 2) / 2)


@pytest.mark.holds("regression-losses-survey", 6)
def test_percentages_of_zero_are_refused_or_held():
    f, y = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -4.0])
    with pytest.raises(ValueError, match="target: expected values other than 0"):
        mape(f, y)
    assert mape(f, y, eps=0.5).item() == pytest.approx(100 * (1 / 0.5 + 6 / 4) / 2)


@pytest.mark.parametrize("function", BATCH)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_losses_of_the_batch_have_the_mean_only(function, reduction):
    with pytest.raises(ValueError, match="reduction: expected one of 'mean'"):
        function(OUTPUTS, TARGET, reduction=reduction)


@pytest.mark.parametrize("function", SAMPLES)
def test_losses_of_samples_reduce_and_weigh(function):
    none = function(OUTPUTS, TARGET, reduction="none")
    weight = torch.linspace(0, 2, 50, dtype=torch.float64)
    assert none.shape == (50,)
    torch.testing.assert_close(function(OUTPUTS, TARGET, reduction="sum"), none.sum())
    torch.testing.assert_close(function(OUTPUTS, TARGET, weight=weight), (weight * none).sum() / weight.sum())
    table = function(OUTPUTS.view(25, 2), TARGET.view(25, 2), reduction="none")
    torch.testing.assert_close(table, none.view(25, 2).mean(1))
    with pytest.raises(ValueError, match="reduction"):
        function(OUTPUTS, TARGET, reduction="median")


@pytest.mark.parametrize("function", [rmse, rmsle, nrmse, rrmse])
def test_slope_at_a_perfect_fit_is_zero(function):
    f = TARGET.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(f, TARGET), f)
    assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("function", [*SAMPLES, *BATCH])
def test_gradients(function):
    f = OUTPUTS[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, TARGET[:6]), f)


@pytest.mark.parametrize("function", [*SAMPLES, *BATCH])
def test_maps_over_models(function):
    f, y = OUTPUTS.view(2, 25), TARGET.view(2, 25)
    found = torch.func.vmap(torch.func.grad(function))(f, y)
    for i in range(2):
        torch.testing.assert_close(found[i], torch.func.grad(function)(f[i], y[i]))


@pytest.mark.parametrize("function", [rae, rse, nrmse])
def test_constant_targets_are_refused_or_held(function):
    f, y = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    with pytest.raises(ValueError, match="target: expected"):
        function(f, y)
    assert torch.isfinite(function(f, y, eps=1e-3))


@pytest.mark.parametrize("function", [rae, rse, nrmse])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, 1e4 / 3])
def test_the_rounding_of_a_mean_is_no_spread(function, dtype, value):
    y = torch.full((1001,), value, dtype=dtype)
    with pytest.raises(ValueError, match="target: expected"):
        function(y + 1, y)
    y[0] = 2 * y[0]
    assert function(y + 1, y).isfinite()


def test_the_rounding_of_a_sum_is_no_mean():
    half = torch.rand(500, generator=torch.Generator().manual_seed(1)) + 0.1
    y = torch.cat([half, -half.flip(0)])
    with pytest.raises(ValueError, match="target: expected a mean other than 0"):
        nrmse(y + 1, y, scale="mean")


def test_where_values_are_hidden_a_ratio_to_nothing_is_infinite():
    y = torch.full((2, 101), 0.1)
    for function in (rae, rse, nrmse):
        assert torch.func.vmap(function)(y + 1, y).tolist() == [math.inf] * 2


def test_two_surveys_share_one_function():
    other = loss_catalogue()
    names = {"mse": mse, "mae": mae, "huber": huber, "log_cosh": log_cosh, "mape": mape, "rmse": rmse}
    assert {name: other[name].fn for name in names} == names
    assert other["quantile"].fn is quantile_loss


@pytest.mark.parametrize("function", [*SAMPLES, *BATCH])
def test_shapes_and_types_are_checked_and_nothing_is_nan(function):
    with pytest.raises(ValueError, match="target: expected shape"):
        function(OUTPUTS, TARGET[:, None])
    with pytest.raises(TypeError, match="target: expected a floating tensor"):
        function(OUTPUTS, TARGET.long())
    empty = torch.zeros(0, dtype=torch.float64)
    assert function(empty, empty).isnan()
    assert function(OUTPUTS.bfloat16(), TARGET.bfloat16()).dtype == torch.float32


def test_several_quantiles_add_up():
    columns = torch.stack([OUTPUTS - 1, OUTPUTS, OUTPUTS + 1], -1)
    wanted = sum(quantile_loss(columns[:, i], TARGET, q=q) for i, q in enumerate((0.1, 0.5, 0.9)))
    torch.testing.assert_close(quantile_loss(columns, TARGET, q=(0.1, 0.5, 0.9)), wanted)
    for call in (
        lambda: quantile_loss(columns, TARGET, q=(0.1, 0.5)),
        lambda: quantile_loss(OUTPUTS, TARGET, q=1.0),
        lambda: quantile_loss(OUTPUTS, TARGET, q=()),
    ):
        with pytest.raises(ValueError, match=": expected "):
            call()


def test_catalogue_has_every_loss_with_a_true_card():
    cards = regression_loss_catalogue()
    assert [card.function for card in cards] == [getattr(survey, card.name) for card in cards]
    assert {card.function for card in cards} == {*SAMPLES, *BATCH}
    for card in cards:
        module = card.module()
        torch.testing.assert_close(module(F, Y), card.function(F, Y))
        assert card.name in repr(module)
        assert (card.over == "samples") == (card.function in SAMPLES)
        assert (card.range == "all reals") == (card.function(Y + 9, Y).item() < 0)
    assert cards[-1].module(q=0.9)(F, Y).item() == pytest.approx(0.2625)


@pytest.mark.parametrize(("function", "bound"), [(mae, 1.0), (log_cosh, 1.0), (huber, 1.0), (quantile_loss, 0.5)])
def test_gradient_bounds_of_the_cards(function, bound):
    f = (TARGET + torch.linspace(-1e3, 1e3, 50, dtype=torch.float64)).requires_grad_()
    (slope,) = torch.autograd.grad(function(f, TARGET, reduction="sum"), f)
    assert slope.abs().max().item() == pytest.approx(bound)
