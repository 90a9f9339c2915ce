"""What a call asks of a comparison: one object, checked once, from which each stage takes what is its own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..core.scalars import is_number
from .budget import seconds_of
from .defaults import BUDGET, OUT
from .errors import InputError

RUNS = Path(OUT)
"""Where run folders live by default."""

SERVED = ("best", "network")
"""Which winner a comparison saves."""

LIMITS = {
    "repeats": (1, 100),
    "folds": (2, 50),
    "trials": (1, 1024),
    "epochs": (1, 100_000),
    "patience": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "seed": (0, 2**31 - 1),
}
"""The least and the most of each count."""


def check_numbers(*, noise: float = 0.0, **counts: int | None) -> None:
    """Refuse counts outside their limits and a noise that is no share; None is a default that depends on the data.

    Raises:
        InputError: the first that is wrong, by its option.

    >>> check_numbers(folds=None, trials=0)
    Traceback (most recent call last):
    steepest.core.errors.InputError: --trials: expected an integer in 1..1024, got 0
    """
    for name, value in counts.items():
        low, high = LIMITS[name]
        if value is not None and (not is_number(value, integer=True) or not low <= value <= high):
            option = "batch" if name == "batch_size" else name
            raise InputError(f"--{option}: expected an integer in {low}..{high}, got {value!r}")
    if not 0 <= noise < 1:
        raise InputError(f"--noise: expected a share in [0, 1), got {noise!r}")


EXPORTS = ("bencheval",)
"""In whose form scores can be written."""


def check_export(export: str | None) -> None:
    """Refuse a word that is no form of export; None is none."""
    if export is not None and export not in EXPORTS:
        raise InputError(f"--export: expected {' or '.join(EXPORTS)}, got {export!r:.80}")


def check_rope(rope: float | None) -> None:
    """Refuse a region of practical equivalence that is none; None is the default of the metric."""
    if rope is not None and not (is_number(rope) and 0 <= rope < math.inf):
        raise InputError(f"--rope: expected a difference of the metric, 0 or above, got {rope!r:.80}")


def check_effort(budget: float | str, workers: int | None) -> None:
    """Refuse a budget that is no time and a number of processes that is none; None is a default."""
    seconds_of(budget)
    if workers is not None and (not is_number(workers, integer=True) or not 1 <= workers <= 256):
        raise InputError(f"--workers: expected an integer in 1..256, got {workers!r}")


def without_password(text: str) -> str:
    """Text in which addresses of databases have no password: it stands in reports.

    >>> without_password("steepest compare wine --store postgresql://me:secret@host:5432/runs --trials 2")
    'steepest compare wine --store postgresql://me@host:5432/runs --trials 2'
    """
    return re.sub(r"(postgres(?:ql)?://[^\s:@/]*):[^\s@/]*@", r"\1@", text)


READING = ("encoding", "separator", "header", "missing", "dayfirst", "types")
"""Options that say how a file is read."""

LISTS = "lists"
"""The built-in table of lists."""

FOR_TABLES = ("drop", "group", "time", "weight", "rare", "positive", "query", *READING, "target", "test")
"""Options that mean nothing for images."""


@dataclass(frozen=True)
class Request:
    """What the user asks for; None is a default that depends on the data.

    The command and :func:`steepest.compare` make it, and each stage of a comparison gets it once.

    Raises:
        InputError: a number that is out of range whatever the data say.
    """

    data: Any
    """A file, a built-in name, a frame with its target, or features ``[rows, columns]`` that go with ``y``."""
    y: Any = None
    target: str | int | Sequence[str] | None = None
    task: str = "auto"
    drop: str | Sequence[str] = ()
    group: str | None = None
    time: str | None = None
    weight: str | None = None
    groups: Any = None
    """This, ``times`` and ``sample_weight`` are arrays ``[rows]`` for the columns that group, time and weight name."""
    times: Any = None
    sample_weight: Any = None
    query: str | None = None
    """The column that says which list a row belongs to, where the task is ranking; ``queries`` is an array of it."""
    queries: Any = None
    rare: str | None = None
    positive: str | None = None
    encoding: str | None = None
    separator: str | None = None
    header: str | bool | None = None
    missing: str | Sequence[str] | None = None
    dayfirst: bool | None = None
    types: str | Path | Mapping[str, str] | None = None
    test: str | Path | None = None
    split: str = "auto"
    size: int | None = None
    name: str = "data"
    prompt: str | None = None
    """This and ``answer`` are keys of JSON lines, where the task is text."""
    answer: str | None = None
    embedding: int | None = None
    """Numbers of an embedding, where the task is retrieval."""

    objectives: Any = "default"
    vary: str = "objective"
    """What is compared: objectives, or with one objective the optimizer, schedule or aggregator."""
    arms: Any = "default"
    """Names of those, where it is not objectives."""
    metric: Any = None
    model: Any = None
    classical: bool = True
    repeats: int | None = None
    folds: int | None = None
    trials: int | None = None
    epochs: int | None = None
    patience: int | None = None
    batch_size: int | None = None
    noise: float = 0.0
    seed: int = 0
    device: str = "cpu"
    augment: bool = True
    rope: float | None = None
    """Differences of the metric up to here are practically none; it says how cells are judged, not what they hold."""

    budget: float | str = BUDGET
    """The time that the comparison may take: words (``"90s"``, ``"1h30m"``), or a number of minutes."""
    strict: bool = False
    """Whether the whole design is computed, or refused where it takes longer than the budget."""
    workers: int | None = None
    out: str | Path = RUNS
    store: str | None = None
    """``postgresql://...``: a database that keeps the run; None is a file in its folder."""
    executor: str | None = None
    """``ray`` or ``ray://ADDRESS``: what computes; None is processes of this machine, and whoever joins the run."""
    track: Any = None
    """What is told how it goes: ``mlflow``, ``tensorboard``, ``module:function``, or a callable."""
    dry_run: bool = False

    winner: str = SERVED[0]
    """Which winner is saved: "best", or "network" also where a classical learner wins."""
    command: tuple[str, ...] = ()
    """The command line, for the report."""

    def __post_init__(self) -> None:
        check_numbers(**{name: getattr(self, name) for name in (*LIMITS, "noise")})
        check_effort(self.budget, self.workers)
        if self.store is not None and not re.match("postgres(ql)?://", self.store):
            raise InputError(
                f"--store: expected postgresql://user@host:port/database, got {without_password(self.store)!r:.80}"
            )
        if self.executor is not None and not re.fullmatch(r"local|ray(://[^\s/]+)?", str(self.executor)):
            raise InputError(f"--executor: expected local, ray or ray://ADDRESS, got {self.executor!r:.80}")
        check_rope(self.rope)
        self._check_embedding()
        if self.winner not in SERVED:
            raise InputError(f"--winner: expected {' or '.join(SERVED)}, got {self.winner!r:.80}")

    def _check_embedding(self) -> None:
        if self.embedding is None:
            return
        if not self.of_retrieval:
            raise InputError("--embedding is for --task retrieval")
        if not is_number(self.embedding, integer=True) or not 2 <= self.embedding <= 4096:
            raise InputError(f"--embedding: expected an integer in 2..4096, got {self.embedding!r:.80}")

    @property
    def budget_seconds(self) -> float:
        """The budget in seconds."""
        return seconds_of(self.budget)

    @property
    def typed(self) -> tuple[str, ...]:
        """What of the design was asked for by name: it is cut last."""
        counts = [name for name in ("repeats", "trials", "epochs") if getattr(self, name) is not None]
        names = self.objectives if self.vary == "objective" else self.arms
        groups = isinstance(names, str) and names in ("default", "all")
        return (*counts, *(() if groups else ("objectives",)))

    @property
    def source(self) -> str | None:
        """The file or built-in name that the data are read from."""
        return str(self.data) if self.y is None and isinstance(self.data, (str, Path)) else None

    @property
    def of_text(self) -> bool:
        """Whether texts are compared on."""
        return self.task == "text"

    @property
    def of_retrieval(self) -> bool:
        """Whether rows are compared by their embeddings."""
        return self.task == "retrieval"

    def folds_for(self, images: bool) -> int:
        """Outer folds: what was asked for, else 5 of a table or text and 3 of images."""
        return (3 if images else 5) if self.folds is None else self.folds

    def refuse_for_texts(self) -> None:
        """Refuse what means nothing for texts."""
        options = [name for name in FOR_TABLES if name != "encoding"]
        wrong = next((name for name in options if getattr(self, name)), None)
        if wrong is not None:
            raise InputError(f"--{wrong} is for tables, and --task text reads a text")
        if self.split != "auto" or self.size is not None:
            raise InputError(f"--{'size' if self.split == 'auto' else 'split'} is for images")
        if self.noise:
            raise InputError("--noise: label noise is for classes, and this task is text")
        if self.vary != "objective":
            raise InputError(f"--vary {self.vary} is for tables and images: texts compare objectives")
        if self.source is None:
            raise InputError("--task text: expected a text file, JSON lines or a built-in name (sums)")

    def refuse_for_retrieval(self) -> None:
        """Refuse what means nothing where whole classes are held out."""
        arrays = {"groups": "group", "times": "time", "sample_weight": "weight"}
        for name in ("group", "time", "weight", "rare", "positive", "test", *arrays):
            if getattr(self, name) is not None:
                raise InputError(f"--{arrays.get(name, name)}: --task retrieval holds whole classes out and takes none")
        if self.split == "file":
            raise InputError("--split file: --task retrieval holds whole classes out, and joins both parts for that")
        if self.noise:
            raise InputError("--noise: label noise is for classes, and this task is retrieval")
        if self.vary != "objective":
            raise InputError(f"--vary {self.vary} is for classes and numbers: retrieval compares objectives")
        if self.metric is not None and (not isinstance(self.metric, str) or ":" in self.metric):
            raise InputError("--metric: --task retrieval takes its own metrics, as map_at_r and recall_at_1")

    @property
    def of_ranking(self) -> bool:
        """Whether lists are ranked."""
        return self.task == "ranking"

    def refuse_for_ranking(self) -> None:
        """Refuse what means nothing for lists, and lists of which nobody says where they are."""
        for name in ("weight", "rare", "positive", "test"):
            if getattr(self, name) is not None:
                raise InputError(f"--{name} does not go with --task ranking, whose losses are of whole lists")
        if self.sample_weight is not None:
            raise InputError("sample_weight does not go with --task ranking, whose losses are of whole lists")
        if self.noise:
            raise InputError("--noise: label noise is for classes, and this task is ranking")
        if self.query is None and self.queries is None and self.source != LISTS:
            raise InputError("--task ranking: expected --query COLUMN, which says to which list a row belongs")

    def refuse_for_images(self) -> None:
        """Refuse options of tables for a source of images."""
        if self.of_ranking:
            raise InputError(f"--task ranking reads a table, and {self.source!r} holds images")
        wrong = [name for name in (*FOR_TABLES, "prompt", "answer") if getattr(self, name)]
        if wrong:
            raise InputError(f"--{wrong[0]} is for tables, and {self.source!r} holds images")

    def refuse_for_tables(self) -> None:
        """Refuse options of images and texts for a table."""
        for name in ("prompt", "answer"):
            if getattr(self, name) is not None:
                raise InputError(f"--{name} is for JSON lines, with --task text")
        if self.split != "auto":
            raise InputError("--split and --pool are for images that carry their own test part")
        if self.of_ranking:
            self.refuse_for_ranking()
        elif self.query is not None or self.queries is not None:
            raise InputError("--query is for --task ranking, whose target is a grade in a list")
        elif self.source == LISTS:
            raise InputError(f"{LISTS} holds lists with grades: add --task ranking")


OPTIONS = tuple(field.name for field in fields(Request) if field.name not in ("data", "y", "dry_run", "command"))
"""What may be asked for in Python besides data and target."""
