"""The scikit-learn estimators: scikit-learn's own conformance suite, weights, refusals, use, and the loop beneath."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from steepest.comparison.design.objectives import SUPPORTED_NEEDS, known_objectives
from steepest.core.objective import TaskInfo
from steepest.descent import ArrayBatches, Descent
from steepest.integrations.sklearn import ObjectiveClassifier, ObjectiveRegressor
from steepest.losses import CrossEntropyLoss
from steepest.nn.networks import Network, mlp

SMALL = {"width": 16, "epochs": 20, "lr": 0.01}
QUICK = {"width": 8, "epochs": 4, "batch_size": 32, "lr": 0.01, "random_state": 0}
ROUNDING = {
    "check_sample_weight_equivalence_on_dense_data": "repeated rows are added up in another order than weighted ones, "
    "and float32 shows it beyond the check's relative 1e-7; in float64 it passes"
}
BY_ROWS = {"check_sample_weight_equivalence_on_dense_data": "the margins come from the counts of rows, not of weights"}
UNWEIGHTED = dict.fromkeys(
    (
        "check_sample_weights_pandas_series",
        "check_sample_weights_not_an_array",
        "check_sample_weights_list",
        "check_sample_weights_shape",
        "check_sample_weights_not_overwritten",
        "check_sample_weight_equivalence_on_dense_data",
    ),
    "a loss of the batch takes no sample weights, and says so",
)
NOT_RUN = {"check_array_api_input": "skipped"}
"""Runs only where SCIPY_ARRAY_API is set before scipy loads, and for estimators that take other arrays."""


def classes(count, rows=90, **options):
    return make_classification(rows, 6, n_informative=4, n_classes=count, random_state=0, **options)


def numbers(rows=60):
    return make_regression(rows, 5, noise=1.0, random_state=0)


def names(task):
    """Of the objectives that a table can give what they need; the others are refused with a word of what is missing."""
    return [
        name for name, (cls, _) in known_objectives().items() if task in cls.tasks and set(cls.needs) <= SUPPORTED_NEEDS
    ]


def conforms(model, declared):
    """Run scikit-learn's checks; every one passes but those declared."""
    results = check_estimator(model, expected_failed_checks=declared, on_fail=None, on_skip=None)
    assert len(results) > 50
    failed = [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"]
    assert failed == []
    left = {r["check_name"]: r["status"] for r in results if r["status"] != "passed"}
    assert left.items() <= (NOT_RUN | dict.fromkeys(declared, "xfail")).items()


VARIANTS = {
    "classifier": (ObjectiveClassifier(), ROUNDING),
    "regressor": (ObjectiveRegressor(), ROUNDING),
    "classifier64": (ObjectiveClassifier(**SMALL, dtype="float64"), {}),
    "regressor64": (ObjectiveRegressor(**SMALL, dtype="float64"), {}),
    "ps_kd": (ObjectiveClassifier("ps_kd", **SMALL, dtype="float64"), {}),
    "squared_error": (ObjectiveClassifier("squared_error", **SMALL, dtype="float64"), {}),
    "huber": (ObjectiveRegressor("huber", model="residual", **SMALL, dtype="float64"), {}),
    "ldam": (ObjectiveClassifier("ldam", **{**SMALL, "epochs": 40}), BY_ROWS),
    "ensloss": (ObjectiveClassifier("ensloss", **SMALL), UNWEIGHTED),
    "orthogonal_projection": (ObjectiveClassifier("orthogonal_projection", **SMALL), UNWEIGHTED),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore")
def test_variants_conform(variant):
    conforms(*VARIANTS[variant])


@pytest.mark.parametrize("name", [*names("binary"), "z_loss"])
def test_every_classification_objective(name):
    """One story from predict, decision_function, predict_proba and a pickled copy, for each task it is for."""
    tasks = known_objectives()[name][0].tasks
    for count in [c for c, task in ((2, "binary"), (3, "multiclass")) if task in tasks]:
        x, y = classes(count)
        model = ObjectiveClassifier(name, **QUICK)
        promised = hasattr(model, "predict_proba")
        predicted, decision = model.fit(x, y).predict(x), model.decision_function(x)
        assert decision.shape == ((len(x),) if count == 2 else (len(x), count))
        np.testing.assert_array_equal(predicted, decision > 0 if count == 2 else decision.argmax(1))
        assert hasattr(model, "predict_proba") == promised
        if promised:
            p = model.predict_proba(x)
            assert p.shape == (len(x), count)
            assert p.dtype == np.float64
            np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-9)
            np.testing.assert_array_equal(p.argmax(1), predicted)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).decision_function(x), decision)


@pytest.mark.parametrize("name", names("regression"))
def test_regression_predicts_in_the_target_s_own_units(name):
    x, y = numbers()
    model = ObjectiveRegressor(name, **QUICK, dtype="float64")
    plain, moved = model.fit(x, y).predict(x), clone(model).fit(x, 1e6 + 7 * y).predict(x)
    np.testing.assert_allclose(moved, 1e6 + 7 * plain, rtol=1e-9)


def test_probabilities_only_where_the_objective_gives_them():
    for name, gives in {
        "cross_entropy": True,
        "anyloss": True,
        "orthogonal_projection": True,
        "ensloss": False,
    }.items():
        assert hasattr(ObjectiveClassifier(name), "predict_proba") is gives
    for name in ("z_loss", "squared_error", "one_vs_rest_hinge"):
        assert not hasattr(ObjectiveClassifier(name), "predict_proba")
    assert not hasattr(ObjectiveClassifier(objective_params={"gama": 1}), "predict_proba")


def test_the_numbers_are_those_of_a_direct_run():
    x, y = classes(3)
    w = np.random.default_rng(0).uniform(0.5, 2.0, len(x))
    model = ObjectiveClassifier(**QUICK).fit(x, y, sample_weight=w)

    mean, deviation = np.average(x, axis=0, weights=w), np.sqrt(np.average((x - np.average(x, 0, w)) ** 2, 0, w))
    inputs = torch.tensor((x - mean) / deviation, dtype=torch.float32)
    _, backbone, head, _, order = map(int, np.random.RandomState(0).randint(2**31 - 1, size=5))
    torch.manual_seed(backbone)
    body = mlp(6, width=8, depth=2)
    torch.manual_seed(head)
    network = Network(body, torch.nn.Linear(8, 3))
    batches = ArrayBatches(
        inputs, torch.tensor(y), batch_size=32, seed=order, weight=torch.tensor(w, dtype=torch.float32)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=1e-4)
    run = Descent(network, CrossEntropyLoss(), batches, optimizer=optimizer).fit(4)

    for name, value in network.state_dict().items():
        torch.testing.assert_close(model.network_.state_dict()[name], value.double(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.loss_curve_, [epoch["loss"] for epoch in run.history], rtol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(model.predict_proba(x), network(inputs).softmax(-1).numpy(), atol=1e-4)
    assert (model.n_iter_, model.best_epoch_, model.validation_curve_) == (4, 4, None)


class Watching(CrossEntropyLoss):
    """Cross-entropy that notes the task and which row stands where."""

    name = "watching"
    needs = ("index",)

    @classmethod
    def from_task(cls, info, **hyper):
        found = cls(**hyper)
        found.info, found.seen = info, {}
        return found

    def forward(self, outputs, target, *, index, weight=None):
        self.seen.update(zip(index.tolist(), target.tolist()))
        return super().forward(outputs, target, weight=weight)


def test_an_objective_knows_the_training_rows_and_their_positions():
    x, y = classes(3, weights=[0.5, 0.3, 0.2])
    model = ObjectiveClassifier(Watching, **QUICK).fit(x, y)
    assert model.objective_.seen == dict(enumerate(y.tolist()))
    counts = tuple(np.bincount(y).tolist())
    assert vars(model.objective_.info) | {"seed": 0} == vars(TaskInfo("multiclass", 90, 3, counts, 8, 4, 3))
    kept = clone(model).set_params(validation_fraction=0.2).fit(x, y)
    assert sorted(kept.objective_.seen) == list(range(72))
    assert sum(kept.objective_.info.class_counts) == 72
    np.testing.assert_allclose(kept.objective_.info.class_counts, 0.8 * np.bincount(y), atol=1)


@pytest.mark.parametrize("patience", [3, None])
def test_early_stopping_keeps_the_best_epoch(patience):
    x, y = classes(3, flip_y=0.3)
    options = {**QUICK, "epochs": 25, "lr": 0.03, "validation_fraction": 0.3}
    model = ObjectiveClassifier(**options, patience=patience, metric="nll").fit(x, y)
    curve = model.validation_curve_
    assert len(curve) == model.n_iter_
    assert model.best_epoch_ == int(np.argmin(curve)) + 1
    assert model.n_iter_ == (25 if patience is None else min(25, model.best_epoch_ + patience))
    assert model.best_epoch_ < 22, "the data no longer overfit"
    there = clone(model).set_params(epochs=model.best_epoch_).fit(x, y)
    np.testing.assert_array_equal(there.predict_proba(x), model.predict_proba(x))


def test_what_is_kept_for_validation_is_not_standardised_with():
    x, y = numbers()
    model = ObjectiveRegressor(**QUICK, validation_fraction=0.2).fit(x, y)
    assert abs(model.preprocessor_.numbers[0].mean - x[:, 0].mean()) > 1e-6
    assert abs(model.target_mean_ - y.mean()) > 1e-6
    assert ObjectiveRegressor(**QUICK).fit(x, y).target_mean_ == pytest.approx(y.mean())


def test_rows_of_weight_zero_are_not_there():
    x, y = classes(3)
    w = np.random.default_rng(0).integers(0, 3, len(x)).astype(float)
    model, kept = ObjectiveClassifier(**QUICK), w > 0
    whole = model.fit(x, y, sample_weight=w).predict_proba(x)
    part = clone(model).fit(x[kept], y[kept], sample_weight=w[kept]).predict_proba(x)
    np.testing.assert_array_equal(whole, part)


@pytest.mark.parametrize(
    ("cls", "data", "method"),
    [(ObjectiveClassifier, classes(3, 40), "predict_proba"), (ObjectiveRegressor, numbers(40), "predict")],
)
def test_weights_are_repetitions(cls, data, method):
    x, y = data
    w = np.random.default_rng(0).integers(0, 4, len(x))
    model = cls(**{**QUICK, "batch_size": 1000, "epochs": 20}, dtype="float64")
    weighted = getattr(model.fit(x, y, sample_weight=w), method)(x)
    repeated = getattr(clone(model).fit(x.repeat(w, 0), y.repeat(w)), method)(x)
    unweighted = getattr(clone(model).fit(x, y), method)(x)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-7, atol=1e-9)
    assert np.abs(weighted - unweighted).max() > 1e-3


@pytest.mark.parametrize(
    ("model", "count", "weighted", "words"),
    [
        (ObjectiveClassifier("ensloss"), 3, False, "objective 'ensloss' does not fit a multiclass target"),
        (ObjectiveClassifier("anyloss"), 3, False, "objective 'anyloss' does not fit a multiclass target"),
        (ObjectiveClassifier("z_loss"), 2, False, "objective 'z_loss' does not fit a binary target"),
        (ObjectiveClassifier("huber"), 2, False, "'huber'.*it is for regression targets"),
        (ObjectiveRegressor("cross_entropy"), 2, False, "'cross_entropy' does not fit a regression target"),
        (ObjectiveClassifier("anyloss"), 2, True, r"'anyloss'.*takes no sample weights[^.]*$"),
        (ObjectiveClassifier("orthogonal_projection"), 3, True, "'orthogonal_projection'.*takes no sample weights"),
        (ObjectiveClassifier("cross_entropi"), 2, False, "did you mean 'cross_entropy"),
        (ObjectiveClassifier("focal", objective_params={"reduction": "none"}), 2, False, "objective_params"),
        (ObjectiveClassifier(model="resnet"), 2, False, "model: expected one for rows of numbers"),
        (ObjectiveClassifier(model="mpl"), 2, False, "did you mean 'mlp'"),
        (ObjectiveClassifier(epochs=0), 2, False, "epochs == 0, must be >= 1"),
        (ObjectiveClassifier(lr=0.0), 2, False, "lr == 0.0, must be > 0"),
        (ObjectiveClassifier(weight_decay=-1.0), 2, False, "weight_decay == -1.0"),
        (ObjectiveClassifier(validation_fraction=1.0), 2, False, "validation_fraction == 1.0"),
        (ObjectiveClassifier(patience=0), 2, False, "patience == 0"),
        (ObjectiveClassifier(dtype="float16"), 2, False, "dtype: expected one of 'float32', 'float64'"),
        (
            ObjectiveClassifier(validation_fraction=0.2, metric="rmse"),
            2,
            False,
            "'rmse' is for regression, not for binary",
        ),
        (ObjectiveRegressor(lr=1e30), 2, False, "'squared_error' diverged"),
    ],
    ids=str,
)
def test_refusals(model, count, weighted, words):
    x, y = classes(count)
    with pytest.raises(ValueError, match=words):
        clone(model).fit(x, y, sample_weight=np.ones(len(x)) if weighted else None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": CrossEntropyLoss()}, "objective: expected a name or a subclass"),
        ({"objective": "focal", "objective_params": {"gama": 2.0}}, "objective_params of focal: .*'gama'"),
        ({"model": 3}, "model: expected a name or a function"),
        ({"epochs": 2.5}, "epochs must be an instance of int"),
    ],
)
def test_wrong_types(options, words):
    with pytest.raises(TypeError, match=words):
        ObjectiveClassifier(**options).fit(*classes(2))


def test_weights_that_leave_nothing():
    x, y = classes(2)
    with pytest.raises(ValueError, match="1 class"):
        ObjectiveClassifier(**QUICK).fit(x, y, sample_weight=y)
    with pytest.raises(ValueError, match="zero"):
        ObjectiveRegressor(**QUICK).fit(x, y, sample_weight=np.zeros(len(x)))
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        ObjectiveRegressor(**QUICK).fit(x, y, sample_weight=-np.ones(len(x)))


def test_random_states():
    x, y = classes(2)
    torch.manual_seed(5)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = ObjectiveClassifier("ensloss", **QUICK, validation_fraction=0.2)
    first = model.fit(x, y).decision_function(x)
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    torch.manual_seed(6)
    np.testing.assert_array_equal(clone(model).fit(x, y).decision_function(x), first)
    assert (clone(model).set_params(random_state=1).fit(x, y).decision_function(x) != first).any()
    hasattr(ObjectiveClassifier("legendretron"), "predict_proba")
    pickle.loads(pickle.dumps(model))
    torch_now = torch.get_rng_state()
    torch.manual_seed(6)
    assert torch.equal(torch_now, torch.get_rng_state())


def test_a_pickle_is_of_the_objective_that_was_fitted():
    x, y = classes(2)
    model = ObjectiveClassifier("f_beta", objective_params={"beta": 2.0}, **QUICK).fit(x, y)
    p = model.predict_proba(x)
    model.set_params(objective="cross_entropy", objective_params=None)
    again = pickle.loads(pickle.dumps(model))
    assert again.objective_.name == "f_beta"
    np.testing.assert_array_equal(again.predict_proba(x), p)


def test_tables_labels_and_pipelines():
    x, y = classes(3)
    frame = pd.DataFrame(x, columns=list("abcdef"))
    labels = np.array(["low", "mid", "high"])[y]
    model = ObjectiveClassifier("ldam", **{**QUICK, "epochs": 30})
    assert model.fit(frame, labels).feature_names_in_.tolist() == list("abcdef")
    assert model.classes_.tolist() == ["high", "low", "mid"]
    assert model.score(frame, labels) > 0.6
    pipe = make_pipeline(StandardScaler(), ObjectiveClassifier(**QUICK))
    pipe.fit(frame, labels, objectiveclassifier__sample_weight=np.ones(len(x)))
    assert pipe.predict_proba(frame).shape == (90, 3)
    assert cross_val_score(ObjectiveRegressor(**{**QUICK, "epochs": 60}), *numbers(), cv=3).mean() > 0.7


def test_grid_search_over_objectives_and_their_parameters():
    x, y = classes(2)
    grid = [
        {"objective": ["cross_entropy", "squentropy", "anyloss"]},
        {"objective": ["focal"], "objective_params": [{"gamma": 0.5}, {"gamma": 2.0}]},
    ]
    search = GridSearchCV(ObjectiveClassifier(**QUICK), grid, scoring="neg_log_loss", cv=2).fit(x, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) == 5
    assert search.predict_proba(x).shape == (90, 2)


def test_models():
    def noisy(features):
        return torch.nn.Sequential(torch.nn.Linear(features, 5), torch.nn.Dropout(0.5))

    x, y = classes(3)
    for model, width in (("residual", 8), (noisy, 5)):
        fitted = ObjectiveClassifier(model=model, **QUICK).fit(x, y)
        assert fitted.network_.head.in_features == width
        np.testing.assert_array_equal(fitted.predict_proba(x), fitted.predict_proba(x))


def test_inputs_are_taken_as_they_are_without_standardise():
    x, y = numbers()
    raw = ObjectiveRegressor(**QUICK, standardise=False)
    assert {(place.mean, place.scale) for place in raw.fit(x, y).preprocessor_.numbers} == {(0.0, 1.0)}
    moved = make_pipeline(StandardScaler(), clone(raw)).fit(x, y).predict(x)
    np.testing.assert_allclose(moved, ObjectiveRegressor(**QUICK).fit(x, y).predict(x), rtol=1e-9)
    assert np.abs(moved - raw.predict(x)).max() > 1e-3


def test_labels_and_targets_that_standardising_must_survive():
    x, y = numbers()
    far = ObjectiveRegressor(**{**QUICK, "epochs": 60}).fit(x, 1e9 + y / y.std())
    assert far.score(x, 1e9 + y / y.std()) > 0.9
    np.testing.assert_allclose(ObjectiveRegressor(**QUICK).fit(x, np.full(60, 3.0)).predict(x), 3.0, atol=0.5)


def test_classifier_and_regressor_differ_in_their_usual_objective_alone():
    models = ObjectiveClassifier(), ObjectiveRegressor()
    assert models[0].get_params() == models[1].get_params()
    assert [model._objective_class().name for model in models] == ["cross_entropy", "squared_error"]


def test_an_objective_with_a_teacher_is_refused():
    x, y = classes(2)
    with pytest.raises(ValueError, match="it needs teacher, which a table does not have"):
        ObjectiveClassifier("distillation", **QUICK).fit(x, y)
