"""What steps stand, beside the largest curvature: limits on quadratics, eigenvalues by numpy, a probe, warm-ups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.probe import Moment
from steepest.watch.curvature import (
    CurvatureMonitor,
    normalized_sharpness,
    stability_threshold,
    suggested_rate,
    warmup_factor,
    warmup_probe,
)

KINDS = ((0.0, False), (0.9, False), (0.9, True))


@pytest.mark.holds("loss-curvature", 1)
def test_limits_at_a_rate_of_a_tenth():
    limits = [stability_threshold(0.1, beta, ema) for beta, ema in KINDS]
    assert limits == pytest.approx([20.0, 38.0, 380.0])


@pytest.mark.holds("loss-curvature", 2)
@pytest.mark.parametrize(("beta", "ema"), KINDS)
def test_quadratics_converge_below_the_limit_and_diverge_above(beta, ema):
    """By torch's SGD; the moving average is heavy ball with gradients times 1 - beta."""
    for share in (0.99, 1.01):
        h = share * stability_threshold(0.1, beta, ema)
        w = nn.Parameter(torch.ones((), dtype=torch.float64))
        sgd = torch.optim.SGD([w], lr=0.1, momentum=beta)
        for _ in range(3000):
            w.grad = (1 - beta if ema else 1.0) * h * w.detach()
            sgd.step()
            if not 1e-12 < abs(float(w.detach())) < 1e12:
                break
        assert (abs(float(w.detach())) < 1) == (share < 1), (share, float(w))


def linear(scale: float = 1.0, dtype: torch.dtype = torch.float64):
    """A linear layer with squared error: its Hessian is 2 X'X / N for each output, of mean over outputs a half each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator, dtype=dtype)
    model = nn.Linear(3, 1, bias=False).to(dtype)
    objective = lambda outputs, target: scale * nn.functional.mse_loss(outputs, target)  # noqa: E731
    wanted = scale * np.linalg.eigvalsh(2 * x.numpy().T @ x.numpy() / 50)
    return model, objective, x, torch.zeros(50, 1, dtype=dtype), wanted


def measured(model, objective, x, y, optimizer, **options):
    moment = Moment(1, "gradients", model, optimizer=optimizer, objective=objective, inputs=x, targets=y)
    return {k: float(v) for k, v in CurvatureMonitor(tol=1e-9, **options).measure(moment).numbers.items()}


@pytest.mark.holds("loss-curvature", 3)
def test_the_share_of_sgd_is_that_of_the_eigenvalue_and_of_no_scale():
    shares = []
    for c in (1.0, 1e-6, 1e6):
        model, objective, x, y, wanted = linear(c)
        sgd = torch.optim.SGD(model.parameters(), lr=0.3 / c, momentum=0.5)
        numbers = measured(model, objective, x, y, sgd)
        assert numbers["curvature"] == pytest.approx(wanted[-1], rel=1e-8)
        assert numbers["rate"] == pytest.approx(3.0 / wanted[-1], rel=1e-8), "(2 + 2 beta) / lambda"
        shares.append(numbers["share"])
        assert shares[-1] == pytest.approx(normalized_sharpness(wanted[-1], 0.3 / c, 0.5), rel=1e-8)
    assert shares == pytest.approx([shares[0]] * 3, rel=1e-8)


@pytest.mark.holds("loss-curvature", 4)
def test_linear_warm_up():
    assert [0.1 * warmup_factor(step, 5) for step in range(6)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert warmup_factor(0, 0) == 1.0


@pytest.mark.holds("loss-curvature", 5)
def test_adams_share_is_that_of_the_divided_hessian():
    """With P = p I it is lambda / p over Adam's limit; with any P that of numpy's eigenvalues of P^-1/2 H P^-1/2."""
    for squares in ([4.0, 4.0, 4.0], [1.0, 9.0, 0.25]):
        model, objective, x, y, _ = linear()
        adam = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.999), eps=0.0)
        p = model.weight
        root = np.sqrt(squares)
        adam.state[p] = {
            "step": torch.tensor(1e9),  # averages without their correction
            "exp_avg": torch.zeros(1, 3, dtype=torch.float64),
            "exp_avg_sq": torch.tensor([squares], dtype=torch.float64),
        }
        hessian = 2 * x.numpy().T @ x.numpy() / 50
        wanted = np.linalg.eigvalsh(hessian / np.sqrt(np.outer(root, root)))[-1]
        numbers = measured(model, objective, x, y, adam)
        assert numbers["curvature"] == pytest.approx(wanted, rel=1e-7)
        assert numbers["share"] == pytest.approx(wanted / 380.0, rel=1e-7)
        if len(set(squares)) == 1:
            assert numbers["share"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1] / 2 / 380.0, rel=1e-7)
        plain = measured(model, objective, x, y, adam, precondition=False)
        assert plain["curvature"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-7)


def test_alignment_alarm_and_fixed_samples():
    model, objective, x, y, wanted = linear()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    numbers = measured(model, objective, x, y, sgd, limit=0.01)
    hessian = 2 * x.numpy().T @ x.numpy() / 50
    g = hessian @ model.weight.detach().numpy()[0]
    assert numbers["alignment"] == pytest.approx(g @ hessian @ g / (g @ g) / wanted[-1], rel=1e-7)
    assert numbers["alarm"] == 1.0
    fixed = measured(model, objective, x[:5], y[:5], sgd, data=(x, y))
    assert fixed["curvature"] == pytest.approx(wanted[-1], rel=1e-8)
    assert fixed["alarm"] == 0.0
    unknown = measured(model, objective, x, y, torch.optim.Rprop(model.parameters()))
    assert math.isnan(unknown["share"])
    assert unknown["curvature"] == pytest.approx(wanted[-1], rel=1e-8)


def test_suggested_rates():
    for beta, ema in KINDS:
        rate = suggested_rate(7.0, beta, ema, share=0.5)
        assert normalized_sharpness(7.0, rate, beta, ema) == pytest.approx(0.5)


def test_warm_ups_of_a_network_whose_curvature_falls():
    """At first the share is far above 1; a run with the warm-up goes on, its series rises with the rate."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 6)
    data = inputs, inputs[:, :3].argmax(1)

    def network() -> nn.Module:
        layers = [nn.Linear(6, 32), nn.ReLU(), *(m for _ in range(6) for m in (nn.Linear(32, 32), nn.ReLU()))]
        model = nn.Sequential(*layers, nn.Linear(32, 3))
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, 2.8)
        return model

    rows = warmup_probe(
        network, nn.CrossEntropyLoss(), data, lr=0.02, warmups=(0, 60), steps=120, batch=50, every=20, samples=100
    )
    assert rows[0]["share"] == rows[1]["share"] > 2
    assert not rows[0]["loss"] < 1.0
    assert rows[1]["loss"] < 1.0
    assert [step for step, _ in rows[1]["series"]] == [0, 20, 40, 60, 80, 100]
    assert rows[1]["series"][0][1] == pytest.approx(rows[1]["share"] / 60, rel=1e-4)


TWO = torch.ones(2, 1), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: CurvatureMonitor(limit=0.0), lambda: CurvatureMonitor(precondition="adam"),
        lambda: CurvatureMonitor(steps=0), lambda: CurvatureMonitor(every=0), lambda: suggested_rate(0.0),
        lambda: suggested_rate(1.0, share=0.0), lambda: normalized_sharpness(1.0, 0.0),
        lambda: CurvatureMonitor(tol=-1.0), lambda: CurvatureMonitor().check(nn.Identity(), None),
        lambda: warmup_probe(lambda: nn.Linear(1, 2), nn.CrossEntropyLoss(), TWO, lr=-1.0),
        lambda: warmup_probe(lambda: nn.Linear(1, 2), nn.CrossEntropyLoss(), TWO, lr=1.0, warmups=[-1]),
    ],
)  # fmt: skip
def test_what_it_refuses(bad):
    with pytest.raises(ValueError, match="expected"):
        bad()


def test_adam_without_moments_of_all_weights_has_no_known_limit_and_one_with_them_no_alignment():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "spare": nn.Linear(2, 2)})
    used, x, y, objective = model["used"], torch.randn(9, 4), torch.arange(9) % 3, nn.CrossEntropyLoss()
    model.forward = lambda x: used(x)
    for module, known in ((model, False), (used, True)):
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        objective(used(x), y).backward()
        adam.step()
        used.zero_grad()
        moment = Moment(2, "gradients", module, optimizer=adam, objective=objective, inputs=x, targets=y)
        numbers = CurvatureMonitor().measure(moment).numbers
        assert math.isnan(numbers["share"]) != known
        assert math.isnan(numbers["alignment"]) == known
        assert math.isfinite(numbers["curvature"])
