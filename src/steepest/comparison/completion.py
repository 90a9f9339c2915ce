"""What a shell completes on the command line, from names and files alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def complete_data(incomplete: str) -> list[str]:
    """Built-in names, and files and folders."""
    from .read.builtin import BUILTIN
    from .read.texts import TEXTS_BUILT_IN

    return [*_beginning((*BUILTIN, *TEXTS_BUILT_IN), incomplete), *complete_file(incomplete)]


def complete_file(incomplete: str) -> list[str]:
    """Files and folders; a folder ends with a slash."""
    folder, _, begun = incomplete.rpartition("/")
    lead = f"{folder}/" if "/" in incomplete else ""
    try:
        inside = sorted(Path(lead or ".").iterdir())
    except OSError:
        return []
    names = [path.name + ("/" if path.is_dir() else "") for path in inside if begun or not path.name.startswith(".")]
    return [lead + name for name in _beginning(names, begun)]


def complete_objectives(incomplete: str) -> list[str]:
    """The last of the names with commas between.

    >>> complete_objectives("focal,squ")
    ['focal,squared_error', 'focal,squentropy']
    """
    from .names import GROUPS, objective_names

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in _beginning((*GROUPS, *objective_names()), last)]


def complete_metric(incomplete: str) -> list[str]:
    """Metrics of any task."""
    from .names import metric_names

    return _beginning(metric_names(), incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Networks."""
    from .names import model_words

    return _beginning(model_words(), incomplete)


def complete_vary(incomplete: str) -> list[str]:
    """What may vary."""
    from .names import VARIED

    return _beginning(VARIED, incomplete)


def complete_task(incomplete: str) -> list[str]:
    """Tasks."""
    from .read.options import TASKS, TEXT

    return _beginning((*TASKS, TEXT), incomplete)


def complete_run(incomplete: str) -> list[str]:
    """Runs in the folder where they live by default."""
    from .work.store import runs

    return _beginning(["last", *(folder.name for folder in runs())], incomplete)


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
