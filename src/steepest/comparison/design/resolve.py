"""From data and a request to a context: every setting resolved, every bad one refused in one line."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ...core import each_member
from ..baselines import classical_learners
from ..defaults import MODEL
from ..errors import InputError
from ..metrics.tables import default_of, metric_of
from ..names import AUTO, check_varied, objective_words
from ..own_parts import imported
from ..read import Table
from ..read.images import Images
from ..read.inputs import Data, class_counts, shape_text
from ..read.lists import RANKING
from ..read.texts import Texts
from ..request import Request
from .arms import choose_arms
from .context import Context
from .folds import CLASSES
from .models import IMAGE_MODELS, MODELS, feature_width, find_model, members_of, model_of
from .networks import choose_network, training_of, with_network
from .objectives import choose_objectives
from .ranking import rows_of_batch
from .resolve_retrieval import resolve_retrieval
from .resolve_text import resolve_text
from .settings import Settings


def resolve(request: Request, table: Data, fixed: Data | None = None) -> tuple[Context, list[str]]:
    """The context of a comparison, and lines about what was left out or read otherwise.

    Args:
        request: what the user asked for.
        table: the data that it names.
        fixed: the test part that takes the place of outer folds.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    if isinstance(table, Texts):
        metric = None if request.metric is None else _spec(request.metric)
        _check_device(request.device)
        return resolve_text(request, table, _specs(request.objectives), metric)
    if request.of_retrieval:
        _check_device(request.device)
        objectives, model = _specs(request.objectives), MODEL if request.model is None else _spec(request.model)
        code = _code_hash([*objective_words(objectives), model])
        return resolve_retrieval(request, table, objectives, model, code)
    images, rows = isinstance(table, Images), len(table.target)
    counts = class_counts(table)
    if request.noise and table.task not in CLASSES:
        raise InputError(f"--noise: label noise is for classes, and this task is {table.task}")
    device = request.device
    _check_device(device)
    parts = getattr(table, "parts", ())
    kinds = [target.task for target in parts] if table.task == "multitask" else []
    vary = request.vary
    check_varied(vary, request.arms, _specs(request.objectives))
    if vary == "aggregator" and table.task != "multitask":
        raise InputError("--vary aggregator: it needs several targets that are not label sets, as in --target a,b,c")
    asked_objectives = _specs(request.objectives)
    one = vary != "objective" and asked_objectives in ("default", ["default"])
    chosen, notes = choose_objectives(
        [] if one else asked_objectives, table.task, weighted=table.weights is not None, kinds=kinds
    )
    objective = ""
    if vary != "objective":
        objective = chosen[-1]  # the baseline stands before what was asked for
        chosen, notes = choose_arms(vary, request.arms)
    asked_metric = default_of(table, counts or None).name if request.metric is None else _spec(request.metric)
    metric_spec = metric_of(asked_metric, table).name
    if metric_spec != asked_metric:
        notes.append(f"metric: {asked_metric} is {metric_spec} here")
    model_spec = model_of(MODEL if request.model is None else _spec(request.model))
    if is_open := model_spec == AUTO:
        members = table.task in each_member.TASKS and request.vary == "objective"  # else it trains without its stack
        model_spec = "resnet" if images else "tabm" if members else "plain"
    if (model_spec in IMAGE_MODELS) != images and model_spec in MODELS:
        fitting = [name for name in MODELS if (name in IMAGE_MODELS) == images]
        raise InputError(f"--model: {model_spec!r} does not take {shape_text(table)}; use {' or '.join(fitting)}")
    learners = request.classical and not images and table.task != "multitask"
    kind = {"multilabel": "classification", RANKING: "regression"}.get(table.task, table.task)
    counted = {
        "repeats": _repeats(table, rows, fixed),
        "folds": request.folds_for(images),
        "trials": 1 if images else 8,
    }

    defaults = {**counted, **vars(training_of(model_spec, rows))}
    if isinstance(table, Table) and table.queries is not None:
        defaults["batch_size"] = rows_of_batch(table.queries)
    asked = {name: getattr(request, name) for name in defaults}
    settings = Settings(
        objectives=tuple(chosen),
        baseline=chosen[0],
        metric=metric_spec,
        model=model_spec,
        classical=tuple(learner.name for learner in classical_learners(kind, rows)) if learners else (),
        noise=request.noise,
        seed=request.seed,
        test="" if fixed is None else fixed.sha256,
        device=device,
        augment=request.augment and images,
        fixed_length=images or vary == "schedule",
        code=_code_hash([*chosen, objective, model_spec, metric_spec]),
        vary=vary,
        objective=objective,
        **{name: default if asked[name] is None else asked[name] for name, default in defaults.items()},
    )
    context = Context(table, settings, fixed)
    if is_open and model_spec == "tabm":
        model_spec, why = choose_network(request, context)
        context = with_network(request, context, model_spec)
        context.choice = why
    backbone = find_model(model_spec, trust=True)
    shape = tuple(context.split(next(iter(context.folds)), 0).inputs.shape[1:])
    with torch.random.fork_rng(devices=[]):
        try:
            body = backbone(shape[0])
        except Exception as error:
            raise InputError(f"--model: the function failed for {shape_text(table)}: {error}") from error
        feature_width(body, shape)
    if members_of(body) is not None and table.task not in each_member.TASKS:
        raise InputError(
            f"--model: {model_spec!r} takes one target, or labels, and these are "
            f"{'lists' if table.task == RANKING else 'several targets'}; use plain"
        )
    return context, notes


def _check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(
            f"--device: {device!r} is not here; use cpu" + (" or cuda" if torch.cuda.is_available() else "")
        )


def _repeats(table: Data, rows: int, fixed: Data | None) -> int:
    """Rounds of folds; with a fixed test part seeds, three for images."""
    if isinstance(table, Images):
        return 3 if fixed is not None else 1
    return 1 if rows > 5_000 or table.times is not None or fixed is not None else 3


def _spec(thing: Any) -> str:
    """A name, or ``module:name`` for a class or function."""
    if isinstance(thing, str):
        return thing
    if not hasattr(thing, "__qualname__") or "<" in thing.__qualname__ or "." in thing.__qualname__:
        raise InputError(f"expected a name, or a class or function at the top of a module, got {thing!r}")
    if inspect.isclass(thing) and thing.__module__.startswith("steepest.losses"):
        return str(thing.name)  # type: ignore[attr-defined]
    return f"{thing.__module__}:{thing.__qualname__}"


def _specs(objectives: Any) -> Any:
    if isinstance(objectives, str):
        return objectives
    if inspect.isclass(objectives):
        return [_spec(objectives)]
    return [_spec(objective) for objective in objectives]


def _code_hash(specs: Sequence[str]) -> str:
    """A hash of the user's own modules, so that changed code is another run."""
    texts = []
    for spec in specs:
        if ":" in spec:
            module = inspect.getmodule(imported("own code", spec, trust=True))
            try:
                texts.append(inspect.getsource(module) if module is not None else spec)
            except (OSError, TypeError):
                texts.append(spec)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] if texts else ""
