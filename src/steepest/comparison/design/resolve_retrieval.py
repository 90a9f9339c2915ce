"""From data whose classes are to be near each other, and a request, to a context."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import InputError
from ..metrics.tables import default_of, metric_of
from ..names import AUTO
from ..read import Table
from ..read.images import Images
from ..read.inputs import shape_text
from ..request import Request
from .context import Context
from .embeddings import DIM, PER_CLASS, RAW, choose_embedding_objectives
from .models import IMAGE_MODELS, MODELS, TABMS, feature_width, find_model, members_of, model_of
from .networks import training_of
from .settings import Settings


def resolve_retrieval(
    request: Request, data: Table | Images, objectives: str | Sequence[str], model: str, code: str
) -> tuple[Context, list[str]]:
    """The context of a comparison of embeddings, and lines about what was left out.

    Args:
        request: what the user asked for.
        data: that it names.
        objectives, model: of the request, as words.
        code: hash of the user's own modules.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    request.refuse_for_retrieval()
    images, rows = isinstance(data, Images), len(data.target)
    model = model_of(model)
    if model == AUTO:
        model = "resnet" if images else "plain"
    fitting = [name for name in MODELS if (name in IMAGE_MODELS) == images and name not in TABMS]
    if model in MODELS and model not in fitting:
        why = "gives no single embedding" if model in TABMS else f"does not take {shape_text(data)}"
        raise InputError(f"--model: {model!r} {why}; use {' or '.join(fitting)}")
    metric = default_of(data, None) if request.metric is None else metric_of(request.metric, data)
    chosen = choose_embedding_objectives(objectives)
    defaults = {
        "repeats": 1 if images or rows > 5_000 else 3,
        "folds": request.folds_for(images),
        "trials": 1 if images else 8,
        **vars(training_of(model, rows)),
    }
    asked = {name: getattr(request, name) for name in defaults}
    if asked["batch_size"] is not None and asked["batch_size"] < 2 * PER_CLASS:
        raise InputError(
            f"--batch: a batch of retrieval holds {PER_CLASS} rows of 2 classes or more: expected at least "
            f"{2 * PER_CLASS}, got {asked['batch_size']}"
        )
    settings = Settings(
        objectives=tuple(chosen),
        baseline=chosen[0],
        metric=metric.name,
        classical=(RAW,) if request.classical else (),
        model=model,
        seed=request.seed,
        device=request.device,
        augment=request.augment and images,
        fixed_length=images,
        code=code,
        embedding=DIM if request.embedding is None else request.embedding,
        **{name: default if asked[name] is None else asked[name] for name, default in defaults.items()},
    )
    context = Context(data, settings)
    shape = tuple(context.split(next(iter(context.folds)), 0).inputs.shape[1:])
    with torch.random.fork_rng(devices=[]):
        try:
            body = find_model(model, trust=True)(shape[0])
        except Exception as error:
            raise InputError(f"--model: the function failed for {shape_text(data)}: {error}") from error
        feature_width(body, shape)
    if members_of(body) is not None:
        raise InputError(f"--model: {model!r} gives no single embedding; use {' or '.join(fitting)}")
    return context, []
