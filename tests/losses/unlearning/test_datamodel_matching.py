"""Datamodel matching: linear datamodels, exact removal from a ridge, fine-tuning to predicted outputs, KLoM."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.linear_model import Lasso, Ridge
from torch import nn

from steepest.losses.unlearning.datamodel_matching import (
    Datamodel,
    DatamodelMatching,
    OracleMatchingLoss,
    fit_datamodel,
    klom,
    log_odds_margin,
    oracle_matching_loss,
    ridge_removal,
)

X, Y = torch.tensor([[1.0], [2.0], [3.0]]).double(), torch.tensor([1.0, 2.0, 4.0]).double()
LAST = torch.tensor([2])


@pytest.fixture(scope="module", autouse=True)
def _first_step():
    """What torch and scikit-learn load for the first step and the first fit is paid once."""
    torch.optim.Adam([torch.ones(2, requires_grad=True)], lr=0.1).step()
    fit_datamodel(torch.eye(3), torch.ones(3, 1, 1))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ridge(x, y, penalty):
    """The equation of the normal equations in numpy."""
    x, y = x.numpy(), y.numpy()
    return torch.as_tensor(np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y))


def planted(samples=6, points=2, classes=3, seed=1):
    return Datamodel(normal(points, classes, seed=seed), normal(samples, points, classes, seed=seed + 1))


def subsets(models, samples, seed=4):
    return (torch.rand(models, samples, generator=torch.Generator().manual_seed(seed)) < 0.5).long()


@pytest.mark.holds("datamodel-matching", 1)
def test_card_values_of_a_ridge():
    none = torch.zeros(0, dtype=torch.long)
    assert ridge_removal(X, Y, none, 1.0).item() == pytest.approx(17 / 15, abs=1e-12)
    assert ridge_removal(X, Y, LAST, 1.0).item() == pytest.approx(5 / 6, abs=1e-12)
    assert ridge(X[:2], Y[:2], 1.0).item() == pytest.approx(5 / 6, abs=1e-12)
    assert ridge_removal(X, Y, LAST, 1.0, first_order=True).item() == pytest.approx(1.0133333, abs=1e-7)


@pytest.mark.parametrize("classes", [(), (2,)])
@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_removal_of_a_set_is_refitting(classes, penalty):
    x, y = normal(12, 3), normal(12, *classes, seed=1)
    gone = torch.tensor([7, 0, 3])
    left = [i for i in range(12) if i not in gone.tolist()]
    theta = ridge_removal(x, y, gone, penalty)
    assert theta.shape == (3, *classes)
    assert torch.allclose(theta, ridge(x[left], y[left], penalty), atol=1e-10)
    assert not torch.allclose(ridge_removal(x, y, gone, penalty, first_order=True), theta, atol=1e-2)


@pytest.mark.holds("datamodel-matching", 2)
def test_nothing_to_forget():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double()
    x = normal(5, 4)
    none = torch.zeros(0, dtype=torch.long)
    matching = DatamodelMatching(model, planted(points=5), x[:0], x, none)
    assert torch.equal(matching.targets, model.eval()(x).detach())
    assert matching.value().item() == 0.0
    before = [p.clone() for p in model.parameters()]
    assert matching.run(3, 0.1).tolist() == [0.0, 0.0, 0.0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.holds("datamodel-matching", 3)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_linear_model_comes_to_the_retrained_one(optimizer):
    x, y = normal(30, 3), normal(30, 2, seed=1)
    gone = torch.tensor([1, 4, 8])
    start, retrained = ridge(x, y, 0.5), ridge_removal(x, y, gone, 0.5)
    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start.T)
    points = torch.cat([x[gone], x[10:20]])
    exact = torch.zeros(30, 13, 2, dtype=torch.float64)
    exact[gone[0]] = points @ (start - retrained)  # of the set as a whole: b need only be right as a sum
    matching = DatamodelMatching(model, Datamodel(torch.zeros(13, 2).double(), exact), x[gone], x[10:20], gone)
    assert torch.allclose(matching.targets, points @ retrained, atol=1e-12)
    generator = torch.Generator().manual_seed(0)
    losses = matching.run(400, 0.2 if optimizer == "sgd" else 0.02, optimizer=optimizer, generator=generator)
    assert torch.allclose(model.weight.T, retrained, atol=1e-3 if optimizer == "adam" else 1e-9)
    assert losses[-1] < 1e-5 * losses[0]


def by_hand(a, b, bins, reverse=False):
    """The public metric in numpy and scipy, but for its right-open last bin."""
    a, b = np.clip(a, -100, 100), np.clip(b, -100, 100)
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    p, q = (np.histogram(values, edges)[0] / len(values) for values in (a, b))
    if reverse:
        p, q = q, p
    return entropy(p, np.where(p > 0, np.maximum(q, 1e-5), q))


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


@pytest.mark.holds("datamodel-matching", 4)
def test_card_values_of_klom():
    same = normal(30, 4)
    assert klom(same, same).tolist() == [0.0] * 4
    assert klom(same[:, :1] * 0 + 3, same[:, :1] * 0 + 3).item() == 0.0
    assert klom(column(0, 1, 2, 3), column(0, 1, 1, 3), 3).item() == pytest.approx(0.173287, abs=5e-7)
    a, b = column(0, 0, 4, 4), column(0, 0, 0, 4)
    assert klom(a, b, 4).item() == pytest.approx(0.143841, abs=5e-7)
    assert klom(a, b, 4, reverse=True).item() == pytest.approx(0.130812, abs=5e-7)
    assert klom(b, a, 4).item() == klom(a, b, 4, reverse=True).item()
    apart = klom(column(0, 0.1, 0.2), column(9, 9.1, 9.2))
    assert math.log(1e5) - 1e-4 < apart.item() <= math.log(1e5) + 1e-4
    assert log_odds_margin(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])).item() == pytest.approx(0.686738)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bins", [1, 7, 20])
def test_klom_is_that_of_numpy_and_scipy(bins, reverse):
    a, b = 40 * normal(25, 6), 60 * normal(31, 6, seed=1) + 20
    ours = klom(a, b, bins, reverse=reverse)
    wanted = [by_hand(a[:, i].numpy(), b[:, i].numpy(), bins, reverse) for i in range(6)]
    assert ours.tolist() == pytest.approx(wanted, abs=1e-12)


def test_klom_of_nan_and_inf_and_half():
    a, b = normal(8, 3), normal(8, 3, seed=1)
    a[2, 1], a[3, 2] = torch.nan, torch.inf
    ours = klom(a, b)
    assert ours.isnan().tolist() == [False, True, False]
    assert ours[2].item() == pytest.approx(by_hand(a[:, 2].numpy(), b[:, 2].numpy(), 20), abs=1e-12)
    assert klom(b.half(), b.half()).dtype == torch.float32


def test_margins_of_several_models():
    logits, target = normal(4, 5, 3), torch.tensor([0, 2, 1, 1, 0])
    margins = log_odds_margin(logits, target)
    p = logits.softmax(-1)
    right = p[:, torch.arange(5), target]
    assert torch.allclose(margins, (right / (1 - right)).log(), atol=1e-12)
    far = log_odds_margin(torch.tensor([[1e4, -1e4]]), torch.tensor([1]))
    assert far.item() == -2e4


@pytest.mark.holds("datamodel-matching", 5)
@pytest.mark.parametrize("penalty", [0.0, 1e-9])
def test_a_linear_datamodel_is_recovered(penalty):
    truth = planted()
    inclusion = subsets(40, 6)
    fitted = fit_datamodel(inclusion, truth.predict(inclusion), penalty)
    assert torch.allclose(fitted.weights, truth.weights, atol=1e-8)
    assert torch.allclose(fitted.intercept, truth.intercept, atol=1e-8)
    assert torch.allclose(fitted.predict(inclusion.bool()), truth.predict(inclusion), atol=1e-8)


def test_datamodels_are_regressions_of_scikit_learn():
    inclusion, outputs = subsets(15, 20), normal(15, 2, 3, seed=7)
    z, wanted = inclusion.double().numpy(), outputs.flatten(1).numpy()
    centred = z - z.mean(0)
    closed = np.linalg.solve(centred.T @ centred + 2.5 * np.eye(20), centred.T @ (wanted - wanted.mean(0)))
    fitted = fit_datamodel(inclusion, outputs, 2.5)
    assert torch.allclose(fitted.weights.flatten(1), torch.as_tensor(closed), atol=1e-10)
    sparse = fit_datamodel(inclusion, outputs, 0.1, kind="lasso")
    peer = Lasso(alpha=0.1).fit(z, wanted[:, 4])
    assert torch.allclose(sparse.weights[:, 1, 1], torch.as_tensor(peer.coef_), atol=1e-6)
    assert (sparse.weights == 0).double().mean() > 0.3
    assert fit_datamodel(inclusion, outputs.float(), 1.0).weights.dtype == torch.float32


def test_the_penalty_is_that_of_the_least_error_of_one_left_out():
    inclusion, outputs = subsets(15, 20), normal(15, 2, 3, seed=7)
    z, wanted = inclusion.double().numpy(), outputs.flatten(1).numpy()
    errors = {}
    for alpha in (0.1, 10.0, 1000.0):
        missed = []
        for i in range(15):
            rest = np.arange(15) != i
            peer = Ridge(alpha=alpha).fit(z[rest], wanted[rest])
            missed.append(((peer.predict(z[i : i + 1]) - wanted[i]) ** 2).mean())
        errors[alpha] = np.mean(missed)
    best = min(errors, key=errors.get)
    several = fit_datamodel(inclusion, outputs, tuple(errors))
    assert torch.allclose(several.weights, fit_datamodel(inclusion, outputs, best).weights, atol=1e-8)


def test_removal_subtracts_and_shrinks():
    datamodel = planted()
    base = normal(2, 3, seed=9)
    gone = torch.tensor([5, 0])
    effect = datamodel.weights[5] + datamodel.weights[0]
    assert torch.allclose(datamodel.remove(base, gone), base - effect, atol=1e-14)
    assert torch.allclose(datamodel.remove(base, gone, shrink=0.25), base - effect / 4, atol=1e-14)
    both = torch.stack([base, 2 * base], 1)
    assert torch.allclose(datamodel.remove(both, gone)[:, 1], 2 * base - effect, atol=1e-14)
    model = nn.Linear(1, 3).double()
    x = normal(2, 1)
    shrunk = DatamodelMatching(model, datamodel, x[:1], x[1:], gone, shrink=0.25)
    assert torch.allclose(shrunk.targets, model(x) - effect / 4, atol=1e-14)


@pytest.mark.holds("datamodel-matching", 6)
@pytest.mark.parametrize("bad", [[6], [-1], [0, 9]])
def test_indices_outside_the_training_set(bad):
    indices = torch.tensor(bad)
    with pytest.raises(ValueError, match=r"indices: expected values in 0\.\.5"):
        planted().remove(torch.zeros(2, 3), indices)
    with pytest.raises(ValueError, match=r"indices: expected values in 0\.\.5"):
        ridge_removal(normal(6, 2), normal(6), indices)
    with pytest.raises(ValueError, match=r"indices: expected values in 0\.\.5"):
        DatamodelMatching(nn.Linear(1, 3), planted(), torch.zeros(1, 1), torch.zeros(1, 1), indices)


def test_the_loss_and_its_stopped_target():
    outputs, targets = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    loss = OracleMatchingLoss()(outputs, targets)
    wanted = sum(0.5 * (a - b) ** 2 for a, b in zip(outputs.flatten().tolist(), targets.flatten().tolist())) / 4
    assert loss.item() == pytest.approx(wanted, abs=1e-12)
    loss.backward()
    assert targets.grad is None
    assert torch.allclose(outputs.grad, (outputs - targets).detach() / 4, atol=1e-14)
    several = oracle_matching_loss(torch.stack([outputs, outputs], 1), torch.stack([targets, targets], 1))
    assert several.item() == pytest.approx(2 * wanted, abs=1e-12)


class Counting(nn.Linear):
    """Remembers which rows it saw."""

    def forward(self, x):
        if torch.is_grad_enabled():
            self.rows.append(x[:, 0].tolist())
        return super().forward(x)


def test_half_of_each_batch_is_forgotten():
    model = Counting(1, 2)
    model.rows = []
    x = torch.arange(10.0).unsqueeze(1)
    matching = DatamodelMatching(model.train(), torch.zeros(10, 2), x[:4], x[4:])
    matching.run(6, 1e-3, batch_size=4, generator=torch.Generator().manual_seed(0))
    assert all(sum(v < 4 for v in rows) == 2 and len(rows) == 4 for rows in model.rows)
    assert sorted(v for rows in model.rows[:2] for v in rows if v < 4) == [0, 1, 2, 3]
    assert sorted(v for rows in model.rows[:3] for v in rows if v >= 4) == [4, 5, 6, 7, 8, 9]
    assert model.training
    model.rows = []
    DatamodelMatching(model, torch.zeros(4, 2), x[:4], x[:0]).run(1, 1e-3, batch_size=4)
    assert sorted(model.rows[0]) == [0, 1, 2, 3]


def test_dropout_is_off_and_modes_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9)).double().train()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    x = normal(6, 2)
    wanted = model[0](x).detach() + 1.0
    matching = DatamodelMatching(model, wanted, x[:3], x[3:])
    matching.run(300, 0.05, optimizer="sgd")
    assert matching.value().item() == pytest.approx(0.0, abs=1e-8)
    assert torch.equal(model[0].weight, frozen)
    assert model.training
    assert model[1].training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_datamodel(subsets(1, 3), normal(1, 2, 2)), "inclusion: expected at least 2 models"),
        (lambda: fit_datamodel(2 * subsets(9, 3), normal(9, 2, 2)), "inclusion: expected values 0 and 1"),
        (lambda: fit_datamodel(subsets(9, 3), normal(8, 2, 2)), r"outputs: expected shape \(9, \*, \*\)"),
        (lambda: fit_datamodel(subsets(9, 3), normal(9, 2, 2), -1.0), "penalty: expected a number >= 0"),
        (lambda: fit_datamodel(subsets(9, 3), normal(9, 2, 2), (0.0, 1.0)), "penalty: expected a number > 0"),
        (lambda: fit_datamodel(subsets(9, 3), normal(9, 2, 2), ()), "penalty: expected a number, or numbers for a"),
        (lambda: fit_datamodel(subsets(9, 3), normal(9, 2, 2), (1.0, 2.0), kind="lasso"), "penalty: expected a number"),
        (lambda: fit_datamodel(subsets(9, 3), normal(9, 2, 2), kind="net"), "kind: expected one of 'ridge', 'lasso'"),
        (lambda: Datamodel(normal(2, 3), normal(4, 3, 2)), r"weights: expected shape \(\*, 2, 3\)"),
        (lambda: planted().predict(subsets(2, 5)), r"inclusion: expected shape \(\*, 6\)"),
        (lambda: planted().remove(normal(3, 3), LAST), "base_outputs: expected outputs at 2 points of 3 classes"),
        (lambda: planted().remove(normal(2, 3), torch.tensor([1, 1])), "indices: expected each sample once"),
        (lambda: planted().remove(normal(2, 3), LAST, shrink=1.5), "shrink: expected a number >= 0 and <= 1"),
        (lambda: ridge_removal(X, Y[:2], LAST), "targets: expected 3 rows, as features"),
        (lambda: ridge_removal(X, Y, LAST, -0.5), "penalty: expected a number >= 0"),
        (lambda: klom(normal(4, 2), normal(4, 3)), r"margins_b: expected shape \(\*, 2\)"),
        (lambda: klom(normal(0, 2), normal(4, 2)), "margins_a: expected at least one model"),
        (lambda: klom(normal(4, 2), normal(4, 2), 0), "bins: expected an integer >= 1"),
        (lambda: log_odds_margin(normal(2, 1), LAST[[0, 0]] * 0), "logits: expected at least 2 classes"),
        (lambda: log_odds_margin(normal(1, 2), LAST), r"target: expected values in 0\.\.1"),
        (lambda: log_odds_margin(normal(0, 1, 2), LAST), "logits: expected at least one model"),
        (lambda: oracle_matching_loss(normal(4, 3), normal(4, 2)), r"targets: expected shape \(4, 3\)"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((planted(), normal(1, 1), normal(1, 1)), {}, ValueError, "indices: expected the training samples that go"),
        ((planted(), normal(2, 1), normal(1, 1), LAST), {}, ValueError, "datamodel: expected one of 3 points"),
        ((normal(2, 3), normal(1, 1), normal(1, 1), LAST), {}, ValueError, "indices: expected None with outputs"),
        ((normal(2, 2), normal(1, 1), normal(1, 1)), {}, ValueError, r"datamodel: expected shape \(2, 3\)"),
        ((normal(0, 3), normal(0, 1), normal(0, 1)), {}, ValueError, "forget, retain: expected at least one point"),
        ((normal(2, 3), normal(1, 1), normal(1, 2)), {}, ValueError, r"retain: expected shape \(\*, 1\)"),
        ((normal(2, 3), normal(1, 1), normal(1, 1)), {"steps": -1}, ValueError, "steps: expected an integer >= 0"),
        ((normal(2, 3), normal(1, 1), normal(1, 1)), {"lr": 0.0}, ValueError, "lr: expected a number > 0"),
        ((normal(2, 3), normal(1, 1), normal(1, 1)), {"batch_size": 1}, ValueError, "batch_size: expected an integer"),
        ((normal(2, 3), normal(1, 1), normal(1, 1)), {"optimizer": "lbfgs"}, ValueError, "optimizer: expected one of"),
    ],
)
def test_procedure_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        DatamodelMatching(nn.Linear(1, 3).double(), *arguments).run(**{"steps": 1, "lr": 0.1, **options})


def test_a_function_is_no_model():
    with pytest.raises(TypeError, match="model: expected a module"):
        DatamodelMatching(lambda x: x, normal(2, 3), normal(1, 1), normal(1, 1))
