"""What the scikit-learn estimators share: their parameters, checked, and one training through the loop."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags, _safe_indexing, check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    _check_y,
    check_consistent_length,
    check_is_fitted,
    check_scalar,
    validate_data,
)
from torch import Tensor, nn

from ..comparison.design.context import Split
from ..comparison.design.models import (
    IMAGE_MODELS,
    MODELS,
    Backbone,
    OnRows,
    build,
    feature_width,
    find_model,
    model_of,
)
from ..comparison.design.objectives import find_objective, why_not
from ..comparison.metrics.tables import default_metric, find_metric
from ..comparison.read import Preprocessor
from ..comparison.work.training import outcome_of
from ..core.checks import check_choice, refuse, refuse_type
from ..core.objective import Objective, TaskInfo
from ..descent import ArrayBatches, Descent, EarlyStopping

ROLES = ("split", "backbone", "head", "objective", "order")


def _made(cls: type[Objective], info: TaskInfo, hyper: dict[str, Any]) -> Objective:
    """The objective for a task."""
    try:
        objective = cls.from_task(info, **hyper)
    except TypeError as error:
        raise TypeError(f"objective_params of {cls.name or cls.__name__}: {error}") from error
    if objective.reduction == "none":
        refuse("objective_params", "a reduction to one number", "none")
    return objective


class ObjectiveEstimator(BaseEstimator):
    """Parameters and training of :class:`~steepest.integrations.sklearn.ObjectiveClassifier` and of its regressor."""

    usual_objective: str
    """What ``objective=None`` stands for."""

    def __init__(
        self,
        objective: str | type[Objective] | None = None,
        *,
        objective_params: Mapping[str, Any] | None = None,
        model: str | Backbone = "plain",
        width: int = 128,
        depth: int = 2,
        epochs: int = 60,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        validation_fraction: float | None = None,
        patience: int | None = 10,
        metric: str | None = None,
        standardise: bool = True,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.objective = objective
        self.objective_params = objective_params
        self.model = model
        self.width = width
        self.depth = depth
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.metric = metric
        self.standardise = standardise
        self.random_state = random_state
        self.device = device
        self.dtype = dtype

    def _check_parameters(self) -> None:
        for name, low in (("width", 1), ("depth", 1), ("epochs", 1), ("batch_size", 1)):
            check_scalar(getattr(self, name), name, Integral, min_val=low)
        check_scalar(self.lr, "lr", Real, min_val=0, include_boundaries="neither")
        check_scalar(self.weight_decay, "weight_decay", Real, min_val=0)
        if self.validation_fraction is not None:
            name = "validation_fraction"
            check_scalar(self.validation_fraction, name, Real, min_val=0, max_val=1, include_boundaries="neither")
        if self.patience is not None:
            check_scalar(self.patience, "patience", Integral, min_val=1)
        check_choice("dtype", self.dtype, ("float32", "float64"))

    def _objective_class(self) -> type[Objective]:
        objective = self.usual_objective if self.objective is None else self.objective
        if isinstance(objective, str):
            return find_objective(objective, trust=True)
        if not inspect.isclass(objective) or not issubclass(objective, Objective):
            refuse_type("objective", "a name or a subclass of Objective", objective)
        return objective

    def _objective_for(self, info: TaskInfo) -> Objective:
        return _made(self._objective_class(), info, dict(self.objective_params or {}))

    def _backbone(self) -> Backbone:
        if not isinstance(self.model, str):
            if not callable(self.model):
                refuse_type("model", "a name or a function of the number of features", self.model)
            return self.model
        if self.model in IMAGE_MODELS:
            refuse("model", "one for rows of numbers", self.model)
        named: Callable[..., nn.Module] = find_model(self.model, trust=True)
        if isinstance(named, OnRows):
            refuse(
                "model", "one that does not depend on the training rows (those are for steepest compare)", self.model
            )
        return partial(named, width=int(self.width), depth=int(self.depth)) if model_of(self.model) in MODELS else named

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "objective_" in state:  # it may hold functions, which pickle refuses; its state_dict is complete
            state["objective_"] = state["objective_"].state_dict()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        saved = state.pop("objective_", None)
        super().__setstate__(state)
        if saved is not None:
            with torch.random.fork_rng(devices=[]):
                self.objective_ = _made(*self._recipe).eval()
            self.objective_.load_state_dict(saved)

    def _check_fits(self, task: str, weighted: bool) -> None:
        cls = self._objective_class()
        if reason := why_not(cls, task, weighted):
            name = cls.name or cls.__name__
            target = f"a {task} target" + (" with sample weights" if weighted else "")
            only = task == "multiclass" and "binary" in cls.tasks and "multiclass" not in cls.tasks
            more = f". Only binary classification is supported. The type of the target is {task}." if only else ""
            raise ValueError(f"objective {name!r} does not fit {target}: {reason}{more}")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = True
        return tags

    def _positive(self, X: Any, y: np.ndarray, sample_weight: Any) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Rows, target and weights without the rows of weight zero."""
        weight = self._weights(X, sample_weight)
        if weight is None or weight.all():
            return X, y, weight
        positive = np.flatnonzero(weight)
        return _safe_indexing(X, positive), y[positive], weight[positive]

    def _weights(self, X: Any, sample_weight: Any) -> np.ndarray | None:
        if sample_weight is None:
            return None
        weight: np.ndarray = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weight.any():
            raise ValueError("sample_weight: every sample has weight zero")
        return weight

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """Rows: a frame with words, categories or dates as it is; anything else as float64 ``[N, features]``."""
        if isinstance(X, pd.DataFrame) and not all(map(pd.api.types.is_numeric_dtype, X.dtypes)):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if reset and not len(X):
                raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
            return X
        return validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")

    def _checked_with_target(self, X: Any, y: Any, *, numeric: bool = False) -> tuple[Any, np.ndarray]:
        """Rows and their target, of one length."""
        X, y = self._checked(X, reset=True), _check_y(y, y_numeric=numeric, estimator=self)
        check_consistent_length(X, y)
        return X, y

    def _rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.preprocessor_.transform(self._checked(X, reset=False))

    def _outputs(self, X: Any) -> Tensor:
        """Outputs of the network in float64, where a row's result doesn't depend on the rows beside it."""
        rows = torch.from_numpy(self._rows(X))
        with torch.no_grad():
            return torch.cat([self.network_(chunk) for chunk in rows.split(4096)])

    def _train(self, X: Any, y: np.ndarray, weight: np.ndarray | None, task: str, classes: int) -> None:
        """Set the fitted attributes from rows of positive weight."""
        seeds = dict(zip(ROLES, map(int, check_random_state(self.random_state).randint(2**31 - 1, size=len(ROLES)))))
        split = self._split(X, y, weight, task, seeds["split"])
        device = torch.device(self.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self._descend(split, classes, seeds, device)
        self._calibrate(split)

    def _calibrate(self, split: Split) -> None:
        """Fit on validation rows what makes probabilities of outputs, where a classifier needs that."""

    def _split(self, X: Any, y: np.ndarray, weight: np.ndarray | None, task: str, seed: int) -> Split:
        own, held_out = np.arange(len(y)), np.arange(0)
        if self.validation_fraction is not None:
            labels = None if task == "regression" else y
            own, held_out = train_test_split(
                own, test_size=self.validation_fraction, stratify=labels, random_state=seed
            )
        w = None if weight is None else weight[own]
        self.preprocessor_ = Preprocessor(standardise=self.standardise).fit(_safe_indexing(X, own), sample_weight=w)
        rows = self.preprocessor_.transform(X)
        target, scale = y, (0.0, 1.0)
        number = getattr(torch, self.dtype)
        if task == "regression":
            mean = float(np.average(y[own], weights=w))
            deviation = math.sqrt(np.average((y[own] - mean) ** 2, weights=w))
            scale = (mean, deviation if deviation > 0 else 1.0)
            target = (y - mean) / scale[1]
        self.target_mean_, self.target_scale_ = scale
        return Split(
            torch.as_tensor(rows[own], dtype=number),
            torch.as_tensor(target[own], dtype=number if task == "regression" else torch.long),
            None if w is None else torch.as_tensor(w, dtype=number),
            torch.as_tensor(rows[held_out], dtype=number),
            y[held_out],
            None if weight is None else weight[held_out],
            scale,
            task,
        )

    def _descend(self, split: Split, classes: int, seeds: dict[str, int], device: torch.device) -> None:
        rows, features = split.inputs.shape
        batch = min(int(self.batch_size), rows)
        backbone = self._backbone()
        counts = () if split.task == "regression" else tuple(torch.bincount(split.target, minlength=classes).tolist())
        info = TaskInfo(
            split.task,
            num_samples=rows,
            num_classes=classes,
            class_counts=counts,
            feature_dim=feature_width(backbone(features), (features,)),
            epochs=int(self.epochs),
            steps_per_epoch=-(-rows // batch),
            seed=seeds["objective"],
        )
        torch.manual_seed(seeds["objective"])
        self._recipe = (self._objective_class(), info, dict(self.objective_params or {}))
        objective = _made(*self._recipe).to(device)
        network, objective = build(
            backbone, features, objective, info, backbone_seed=seeds["backbone"], head_seed=seeds["head"]
        )
        network = network.to(device, split.inputs.dtype)
        batches = ArrayBatches(
            split.inputs.to(device),
            split.target.to(device),
            batch_size=batch,
            seed=seeds["order"],
            weight=None if split.weight is None else split.weight.to(device),
            sampler=objective.sampler,
        )
        parameters = [*network.parameters(), *objective.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=float(self.lr), weight_decay=float(self.weight_decay))
        stopping = self._stopping(network, objective, split, counts, device)
        hooks = [] if stopping is None else [stopping]
        torch.manual_seed(seeds["objective"])
        run = Descent(network, objective, batches, optimizer=optimizer, hooks=hooks, device=device)
        run.fit(int(self.epochs))
        self.loss_curve_ = [epoch["loss"] for epoch in run.history]
        self.validation_curve_ = None if stopping is None else stopping.curves[0]
        self.n_iter_ = run.epoch
        self.best_epoch_ = run.epoch if stopping is None else stopping.best_epoch[0]
        self.objective_ = objective.cpu().eval()
        self.network_ = network.cpu().double().eval()
        if not all(bool(p.isfinite().all()) for p in self.network_.parameters()):
            raise ValueError(f"training with objective {objective.name!r} diverged: try a smaller lr than {self.lr:g}")

    def _stopping(
        self, network: nn.Module, objective: Objective, split: Split, counts: tuple[int, ...], device: torch.device
    ) -> EarlyStopping | None:
        if self.validation_fraction is None:
            return None
        task = split.task
        metric = (
            default_metric(task, counts or None) if self.metric is None else find_metric(self.metric, task, trust=True)
        )
        held_out = split.other_inputs.to(device)

        def evaluate(_: Descent) -> float:
            network.eval(), objective.eval()
            with torch.no_grad():
                outputs = torch.cat([network(chunk) for chunk in held_out.split(4096)])
            return metric(split.other_target, outcome_of(objective, outputs, split), split.other_weight)

        better, patience = metric.greater_is_better, None if self.patience is None else int(self.patience)
        return EarlyStopping(evaluate, patience=patience, greater_is_better=better, keep_best=True)
