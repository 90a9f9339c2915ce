"""From texts and a request to a context."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..metrics.tables import default_of, metric_of
from ..names import AUTO
from ..own_parts import imported
from ..read.texts import Texts
from ..request import Request
from .context import Context
from .settings import Settings
from .text_models import SMALL, find_text_model, hash_of_model
from .text_objectives import choose_text_objectives

REPEATS, TRIALS, EPOCHS = 1, 3, 10
SMALL_BATCH, LARGE_BATCH = 32, 8
"""Rows a step of the small model, and of one of a folder."""


def resolve_text(
    request: Request, texts: Texts, objectives: str | Sequence[str], metric: str | None
) -> tuple[Context, list[str]]:
    """The context of a comparison of texts, and lines about what was left out.

    Every training has the same length and one cycle of the learning rate; an eighth of each training part is held out
    to choose the setting, and the tuned model is scored as it is.

    Args:
        request: what the user asked for.
        texts: that it names.
        objectives, metric: of the request, as words.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    request.refuse_for_texts()
    asked = AUTO if request.model is None else request.model
    if not isinstance(asked, str):
        raise InputError("--model: for texts gpt, or the folder of a Transformers model")
    model = SMALL if asked == AUTO else asked
    find_text_model(model)
    name = default_of(texts, None).name if metric is None else metric_of(metric, texts).name
    defaults = {
        "repeats": REPEATS,
        "folds": request.folds_for(images=False),
        "trials": TRIALS,
        "epochs": EPOCHS,
        "patience": EPOCHS,
        "batch_size": SMALL_BATCH if model == SMALL else LARGE_BATCH,
    }
    counts: dict[str, Any] = {option: getattr(request, option) or default for option, default in defaults.items()}

    def context_of(chosen: Sequence[str]) -> Context:
        return Context(
            texts,
            Settings(
                objectives=tuple(chosen),
                baseline=chosen[0],
                metric=name,
                model=model,
                seed=request.seed,
                device=request.device,
                augment=False,
                fixed_length=True,
                code=_hash([*chosen, name], hash_of_model(model)),
                **counts,
            ),
        )

    begun = context_of(["token_cross_entropy"])
    chosen, notes = choose_text_objectives(objectives, begun.text_info(next(iter(begun.folds)), 0))
    context = context_of(chosen)
    words = context.split(next(iter(context.folds)), 0).texts
    assert words is not None
    notes.append(f"tokens: {len(words.vocabulary.words):,}, {'characters' if model == SMALL else 'of the model'}")
    return context, notes


def _hash(specs: Sequence[str], model: str) -> str:
    """Of the user's own modules and the weights of a given model, or empty."""
    texts = [model] if model else []
    for spec in specs:
        if ":" in spec:
            module = inspect.getmodule(imported("own code", spec, trust=True))
            try:
                texts.append(inspect.getsource(module) if module is not None else spec)
            except (OSError, TypeError):
                texts.append(spec)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] if texts else ""
