"""The words that a comparison takes for objectives, metrics and models, read from the text that defines them.

Nothing is imported, so a word that is none is refused, and completed in a shell, before PyTorch has been loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..catalogue import keep, systems, there
from ..catalogue.names import ancestry, attribute, facts_of, resolve
from .errors import InputError, nearest

_OBJECTIVE = "core.objective:Objective"
_WITH_METRICS = tuple(f"comparison.metrics.{name}" for name in ("tables", "several", "texts", "retrieval", "ranking"))
_METRIC_WORDS = "comparison.metrics.words"
"""Where other libraries' words for metrics are, if there are any."""

GROUPS = ("default", "all")
"""Words for several objectives."""
VARIED = ("objective", "optimizer", "schedule", "aggregator")
"""What a comparison may vary."""
_ARMS = {"optimizer": "OPTIMIZERS", "schedule": "SCHEDULES", "aggregator": "AGGREGATORS"}
ROW_SCORES = ("loss", "el2n", "forgetting", "influence")
"""By what rows may be ranked as suspicious."""
OF_NUMBERS = ("loss", "influence")
"""Those of them that there are where the target holds numbers."""
AUTO = "auto"
"""The word for a network that is chosen by what there is time for."""


class Home(NamedTuple):
    """Where the objective of a word is defined, and its rank in the shortlist."""

    module: str
    name: str
    rank: int | None


@cache
def objective_homes() -> MappingProxyType[str, Home]:
    """Where each objective of the catalogue that is there is defined, by its word, in order.

    >>> objective_homes()["focal"]
    Home(module='losses.classification.focal', name='FocalLoss', rank=8)
    """
    homes: dict[str, Home] = {}
    for row in systems("losses"):
        if not there(row):
            continue
        classes = sorted(facts_of(row.module)["classes"])
        offered = [name for name in classes if name in row.names or attribute(row.module, name, "tasks")]
        first = [name for name in row.names if resolve(row.module, name) and _is_objective(row.module, name)][:1]
        for name in (name for name in offered if _is_objective(row.module, name)):
            if word := attribute(row.module, name, "name"):
                homes.setdefault(word, Home(row.module, name, None))
        for name in first:
            if word := attribute(row.module, name, "name"):
                homes[word] = Home(row.module, name, row.default)
    keep()
    return MappingProxyType(dict(sorted(homes.items())))


def objective_names() -> tuple[str, ...]:
    """The words of all objectives, in order.

    >>> "ldr" in objective_names(), "nothing" in objective_names()
    (True, False)
    """
    return tuple(objective_homes())


@cache
def text_homes() -> MappingProxyType[str, Home]:
    """Where each loss of tokens that a comparison of texts can use is defined, by its word, the baseline first.

    >>> list(text_homes())[:2]
    ['token_cross_entropy', 'direct_coverage']
    """
    rows = sorted(
        (row for row in systems("losses") if row.text is not None and there(row)), key=lambda row: row.text or 0
    )
    homes = {str(word): Home(row.module, name, row.text) for row in rows for name in row.names[:1]
             if (word := attribute(row.module, name, "name"))}  # fmt: skip
    keep()
    return MappingProxyType(homes)


def _is_objective(module: str, name: str) -> bool:
    return any(place == _OBJECTIVE for place, _ in ancestry(module, name))


@cache
def metric_names() -> tuple[str, ...]:
    """The words of all metrics, whatever their task.

    >>> "accuracy" in metric_names(), "rmse" in metric_names()
    (True, True)
    """
    words = [word for module in _WITH_METRICS for word in facts_of(module)["calls"].get("Metric", [])]
    keep()
    return tuple(dict.fromkeys(words))


@cache
def model_names() -> tuple[str, ...]:
    """The names of all networks.

    >>> model_names()
    ('plain', 'tabm', 'tabm-4', 'tabm-1', 'residual', 'resnet')
    """
    return tuple(facts_of("comparison.design.models")["values"]["MODELS"])


@cache
def model_words() -> tuple[str, ...]:
    """The words of ``--model``: names of networks, one that has a choice made, and synonyms.

    >>> model_words()
    ('auto', 'plain', 'tabm', 'tabm-4', 'tabm-1', 'residual', 'resnet', 'mlp')
    """
    values = facts_of("comparison.design.models")["values"]
    return (AUTO, *model_names(), *values["SYNONYMS"])


def objective_words(asked: str | Iterable[str]) -> list[str]:
    """What was asked for, word by word.

    Raises:
        InputError: there is none.

    >>> objective_words("ldr, all")
    ['ldr', 'all']
    """
    words = [w.strip() for w in asked.split(",") if w.strip()] if isinstance(asked, str) else list(asked)
    if not words:
        raise InputError("--objectives: expected default, all, or names")
    return words


@cache
def arm_names(vary: str) -> tuple[str, ...]:
    """The words of all optimizers, schedules or aggregators.

    >>> arm_names("schedule")[0]
    'constant'
    """
    return tuple(facts_of("comparison.design.arms")["values"][_ARMS[vary]])


def arm_words(asked: str | Iterable[str]) -> list[str]:
    """What was asked for, word by word.

    Raises:
        InputError: there is none.
    """
    words = [w.strip() for w in asked.split(",") if w.strip()] if isinstance(asked, str) else list(asked)
    if not words:
        raise InputError("--arms: expected default, all, or names")
    return words


def check_varied(vary: str, arms: str | Iterable[str], objectives: str | Iterable[str]) -> None:
    """Refuse what cannot be varied, arms that are none, and several objectives where something else varies.

    Raises:
        InputError: the first that is wrong.
    """
    if vary not in VARIED:
        raise InputError(f"--vary: expected {', '.join(VARIED)}, got {vary!r:.80}{nearest(str(vary), VARIED)}")
    words = arm_words(arms)
    if vary == "objective":
        if words != ["default"]:
            raise InputError("--arms: objectives are named by --objectives; it is for --vary optimizer and the like")
        return
    for word in words:
        if word not in ("default", "all") and word not in arm_names(vary):
            known = arm_names(vary)
            raise InputError(f"unknown {vary} {word!r}{nearest(word, known) or '.'} Known: {', '.join(known)}")
    objective = objective_words(objectives) if isinstance(objectives, (str, list, tuple)) else [objectives]
    if len(objective) > 1 or objective[0] == "all":
        raise InputError(f"--objectives: expected one name where the {vary} varies, got {', '.join(objective)}")


def varied(results: Mapping[str, Any]) -> str:
    """What varies among the arms of a comparison, in one word; results of earlier versions don't say it."""
    return str(results.get("vary", "objective"))


def unknown_objective(name: str, known: Iterable[str]) -> InputError:
    """The error for a word that is no objective."""
    known = list(known)
    return InputError(
        f"unknown objective {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}, or module:Class"
    )


def unknown_model(name: str, known: Iterable[str]) -> InputError:
    """The error for a word that is no network."""
    known = list(known)
    return InputError(
        f"unknown model {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}, or module:function"
    )


def check_text_names(objectives: str | Iterable[str], metric: str | None, model: str | None) -> None:
    """The same for a comparison of texts; a model is a word or a folder.

    Raises:
        InputError: an unknown word, no such folder.
    """
    for word in objective_words(objectives):
        if ":" not in word and word not in GROUPS and word not in text_homes():
            raise unknown_objective(word, text_homes())
    if metric is not None and ":" not in metric:
        words = facts_of("comparison.metrics.texts")["calls"].get("Metric", [])
        if re.sub(r"[\s-]+", "_", metric.strip().lower()) not in words:
            hint = nearest(metric, words) or "."
            raise InputError(f"unknown metric {metric!r}{hint} For text: {', '.join(words)}, or module:function")
    if model is not None and model not in TEXT_MODELS:
        check_model_folder(model)


TEXT_MODELS = (AUTO, "gpt")
"""Words for the model of texts; a folder is another one."""


def check_model_folder(model: str) -> None:
    """Refuse what is no folder of a Transformers model with its weights as safetensors.

    Raises:
        InputError: there is no such folder, or it lacks a file.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise InputError(
            f"--model: {model!r} is no folder; for texts gpt, or a folder with a Transformers model (nothing is loaded "
            "from elsewhere)"
        )
    for file, what in (("config.json", "its configuration"), ("*.safetensors", "weights as safetensors")):
        if not any(folder.glob(file)):
            raise InputError(f"--model: {model!r} has no {file}: expected {what}")


def check_names(objectives: str | Iterable[str], metric: str | None, model: str | None) -> None:
    """Refuse words that no data could make right; own parts (``module:name``) are imported later.

    Raises:
        InputError: an unknown word.
    """
    for word in objective_words(objectives):
        if ":" not in word and word not in GROUPS and word not in objective_names():
            raise unknown_objective(word, objective_names())
    if metric is not None and ":" not in metric and " of " not in metric:
        metric = re.sub(r"^(ndcg@)[1-9]\d{0,5}$", r"\g<1>10", metric.strip(), flags=re.IGNORECASE)
        words = (*metric_names(), *facts_of(_METRIC_WORDS).get("values", {}).get("ALIASES", ()))
        if metric not in words and re.sub(r"[\s-]+", "_", metric.strip().lower()) not in words:
            hint = nearest(metric, words) or "."
            raise InputError(f"unknown metric {metric!r}{hint} Known: {', '.join(metric_names())}, or module:function")
    if model is not None and ":" not in model and model not in model_words():
        raise unknown_model(model, model_words())
