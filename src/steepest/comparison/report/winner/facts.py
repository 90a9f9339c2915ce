"""What ``winner.json`` may say: every field has a shape, and the fields agree with each other.

The file may come from anywhere. What it says is taken only if :func:`~steepest.comparison.report.winner.fit.fit_winner`
could have written it: sizes agree with each other and with what was fitted, hyper-parameters lie in the objective's own
search space, and the names of network and objective are built in or trusted by the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ....core.objective import TaskInfo
from ....core.search import Choice, Float, Space
from ....core.stored import (
    Anything,
    Listed,
    Maybe,
    Named,
    Number,
    Record,
    Row,
    Shape,
    Text,
    Whole,
    Word,
    inside,
    read_json,
)
from ....core.stored import refuse_stored as refuse
from ...baselines.boosting import MOST_ROUNDS, RoundsBaseline
from ...design.models import BINS, IMAGE_MODELS, MODELS, Backbone, OnRows, find_model, model_of
from ...design.objectives import find_objective, why_not
from ...design.several import objective_for
from ...errors import InputError
from ...own_parts import Trust
from ...parts import Part
from ...read import Preprocessor
from ...read.images import ImageScaler
from ...read.inputs import restore
from ...read.lists import RANKING
from ...read.task import LABEL_DTYPES
from ...scores.calibration import SLOPES, Calibration
from ...scores.operating_point import TEMPERATURES
from ...work.classical import learners_of

FORMAT = 5
FILE = "winner.json"
KINDS = ("objective", "classical")
"""A network that goes down an objective, or a classical learner."""
CLASSES = ("binary", "multiclass")
TASKS = (*CLASSES, "regression", "multilabel", "multitask", RANKING)
_COUNT = Whole(low=1)
_SCALE = (Number(), Number(positive=True))
_SEED = Whole(0, 2**31 - 1)

_SHARED: dict[str, Shape] = {
    "format": Word((FORMAT,)),
    "kind": Word(KINDS),
    "settings": Text(),
    "width": _COUNT,
    "classes": Listed(Text()),
    "label_dtype": Word(LABEL_DTYPES),
    "target": Text(),
    "parts": Listed(
        Record({"name": Text(), "task": Word(TASKS[:3]), "classes": Listed(Text()), "dtype": Word(LABEL_DTYPES)})
    ),
    "columns": Listed(Text()),
    "numeric": Listed(Text()),
    "preprocessing": Anything(),
    "pixels": Listed(Whole(1, 65_536), most=3),
    "scale": Listed(Anything(), least=2, most=2),
    "threshold": Maybe(Number()),
    "temperature": Maybe(Number(*TEMPERATURES)),
    "calibration": Maybe(
        Record({"slope": Listed(Number(*SLOPES), least=1), "offset": Listed(Number(-SLOPES[1], SLOPES[1]))})
    ),
    "no_probabilities": Text(),
    "weights": Text(),
}
_OF_LISTS: dict[str, Shape] = {"query": Text()}
FACTS = {
    "objective": Record(
        {
            **_SHARED,
            "objective": Text(),
            "hyper": Named(Anything()),
            "model": Text(),
            "bins": Maybe(Record({"numeric": Listed(Whole(low=0)), "edges": Listed(Listed(Number(), least=3))})),
            "info": Record(
                {
                    "task": Word(TASKS),
                    "num_samples": _COUNT,
                    "num_classes": _COUNT,
                    "class_counts": Listed(_COUNT),
                    "feature_dim": _COUNT,
                    "epochs": Whole(1, 100_000),
                    "steps_per_epoch": _COUNT,
                    "seed": _SEED,
                }
            ),
            "epochs": Whole(1, 100_000),
        },
        _OF_LISTS,
    ),
    "classical": Record(
        {
            **_SHARED,
            "learner": Text(),
            "hyper": Named(Anything()),
            "rounds": Listed(Whole(1, MOST_ROUNDS)),
            "task": Word((*TASKS[:4], RANKING)),
            "rows": _COUNT,
            "seed": _SEED,
            "middle": Listed(Number()),
        },
        _OF_LISTS,
    ),
}
"""Fields by kind."""


@dataclass(frozen=True)
class NetworkFacts:
    """What a winner that is a network names.

    Attributes:
        info: its task.
        objective: class, or what stands for it with a mix of targets.
        backbone: of its ``model``.
        own: whether objective or network are a user's own code.
    """

    info: TaskInfo
    objective: Any
    backbone: Backbone
    own: bool


@dataclass(frozen=True)
class WinnerFacts:
    """The checked content of ``winner.json``.

    Attributes:
        values: as in the file.
        prepared: of its ``preprocessing``.
        parts: its several targets.
        task: of its target.
        network: what it names, where it is a network; None for a classical learner.
    """

    values: dict[str, Any]
    prepared: Preprocessor | ImageScaler
    parts: list[Part]
    task: str
    network: NetworkFacts | None

    @property
    def calibration(self) -> Calibration | None:
        """What makes probabilities of its scores."""
        stored = self.values["calibration"]
        return None if stored is None else Calibration(tuple(stored["slope"]), tuple(stored["offset"]))


def read_facts(folder: Path, trust: Trust) -> WinnerFacts:
    """``winner.json`` of a folder, checked.

    Args:
        folder: of the winner.
        trust: which own parts may be imported.

    Raises:
        InputError: it is not there, not a winner's, of another format, contradicts itself, or names code that is not
            trusted.
    """
    return checked(read_json(folder / FILE, "no saved winner"), trust)


def checked(values: Any, trust: Trust) -> WinnerFacts:
    """The facts of a winner, each of its shape and all in agreement; see :func:`read_facts`."""
    known = values.get("format") if isinstance(values, dict) else None
    if isinstance(values, dict) and (type(known) is not int or known != FORMAT):
        raise InputError(
            f"{FILE}: format: this version reads the winner's format {FORMAT}, got {str(known)[:40]!r}; "
            "the same compare fits the winner again"
        )
    kind = values.get("kind") if isinstance(values, dict) else None
    if isinstance(values, dict):
        Word(KINDS).check(kind, inside(FILE, "kind"))
    FACTS[kind if isinstance(kind, str) else KINDS[0]].check(values, FILE)
    task = values["info"]["task"] if kind == "objective" else values["task"]
    if ("query" in values) != (task == RANKING):
        refuse(inside(FILE, "query"), "the column of lists, of a ranking alone", values.get("query"))
    parts = [Part.from_json(fields) for fields in values["parts"]]
    outputs = _check_targets(values, task, parts)
    if kind == "objective":
        info = TaskInfo(**{**values["info"], "class_counts": tuple(values["info"]["class_counts"])})
        if info.num_classes != outputs:
            refuse(inside(FILE, "info.num_classes"), f"{outputs}, as there are classes", info.num_classes)
        _check_rows(info, parts)
    prepared = restore(values["preprocessing"], inside(FILE, "preprocessing"))
    check_inputs(values, prepared)
    _check_outputs(values, task, parts)
    images = isinstance(prepared, ImageScaler)
    if kind == "classical":
        _check_learner(values, task, images)
        return WinnerFacts(values, prepared, parts, task, None)
    objective = _objective(values, info, parts, trust)
    own = any(":" in values[key] for key in ("objective", "model"))
    backbone = find_model(values["model"], trust=trust)
    if isinstance(backbone, OnRows):
        _check_bins(values)
        backbone = backbone.of(values["bins"])
    elif values["bins"] is not None:
        refuse(inside(FILE, "bins"), f"none for {values['model']}", values["bins"])
    if (name := model_of(values["model"])) in MODELS and (name in IMAGE_MODELS) != images:
        refuse(inside(FILE, "model"), "a network for " + ("images" if images else "tables"), values["model"])
    return WinnerFacts(values, prepared, parts, task, NetworkFacts(info, objective, backbone, own))


def _check_bins(values: dict[str, Any]) -> None:
    """Some of the inputs have bins, each its own, between edges that rise."""
    bins, where = values["bins"], inside(FILE, "bins")
    if bins is None:
        refuse(where, f"those of {values['model']}", bins)
    columns, edges = bins["numeric"], bins["edges"]
    if len(set(columns)) != len(columns) or max(columns, default=-1) >= values["width"]:
        refuse(where, f"distinct columns in 0..{values['width'] - 1}", columns)
    if len(edges) != len(columns) or max(map(len, edges), default=0) > BINS + 1:
        refuse(where, f"at most {BINS} bins for each of {len(columns)} columns", [len(own) - 1 for own in edges])
    if any(b <= a for own in edges for a, b in pairwise(own)):
        refuse(where, "edges that rise", next(own for own in edges if any(b <= a for a, b in pairwise(own))))


def _check_learner(values: dict[str, Any], task: str, images: bool) -> None:
    """The learner is one that a comparison runs on such rows, and inputs are moved as it does."""
    known = learners_of(task, values["rows"])
    if images or values["learner"] not in known:
        expected = "no learner for images" if images else f"one of {', '.join(known)}"
        refuse(inside(FILE, "learner"), expected, values["learner"])
    learner = known[values["learner"]]
    width = values["width"] if hasattr(learner, "_middle") else 0
    if len(values["middle"]) != width:
        refuse(inside(FILE, "middle"), f"{width} numbers", values["middle"])
    if not learner.scales_target and values["scale"] != [0, 1]:
        refuse(inside(FILE, "scale"), f"0 and 1 for {values['learner']}", values["scale"])
    count = len(values["classes"]) if task == "multilabel" else 1
    count = count if isinstance(learner, RoundsBaseline) else 0
    if len(values["rounds"]) != count:
        refuse(inside(FILE, "rounds"), f"{count} of them", values["rounds"])
    _check_hypers(values["learner"], learner.search, values["hyper"])


def _check_targets(values: dict[str, Any], task: str, parts: list[Part]) -> int:
    """Classes and parts are those of the task; gives the number of outputs."""
    classes = values["classes"]
    if len(set(classes)) < len(classes):
        refuse(inside(FILE, "classes"), "each class once", classes)
    counts = {"binary": (2, 2), "multiclass": (2, None), "multilabel": (1, None)}
    least, most = counts.get(task, (0, 0))
    if len(classes) < least or (most is not None and len(classes) > most):
        refuse(inside(FILE, "classes"), f"{most or f'{least} or more'} of them for a {task} target", classes)
    for target in parts:
        fits = {"binary": len(target.classes) == 2, "multiclass": len(target.classes) > 1}
        if len(set(target.classes)) < len(target.classes) or not fits.get(target.task, not target.classes):
            refuse(inside(FILE, "parts"), f"the classes of a {target.task} target, each once", list(target.classes))
    names = [target.name for target in parts]
    if len(set(names)) < len(names):
        refuse(inside(FILE, "parts"), "each name once", names)
    labels = task == "multilabel" and names == classes and all(target.task == "binary" for target in parts)
    mix = task == "multitask" and len(parts) > 1
    if not (labels or mix or (not parts and task not in ("multilabel", "multitask"))):
        refuse(inside(FILE, "parts"), f"the targets of a {task} task", names)
    return sum(target.width for target in parts) if task == "multitask" else max(1, len(classes))


def _check_rows(info: TaskInfo, parts: list[Part]) -> None:
    """Class counts are of these classes and these rows; a count is at least 1, also where no row has the class."""
    where = inside(FILE, "info.class_counts")
    groups = [info.num_classes] if info.task in CLASSES else []
    if info.task == "multitask":
        groups = [len(target.classes) for target in parts if target.classes]
    expected = info.num_classes if info.task == "multilabel" else sum(groups)
    if len(info.class_counts) != expected:
        refuse(where, f"{expected} counts", list(info.class_counts))
    place = 0
    for size in groups:
        total = sum(info.class_counts[place : place + size])
        place += size
        if not info.num_samples <= total < info.num_samples + size:
            refuse(where, f"counts of {info.num_samples} rows", list(info.class_counts))
    if max(info.class_counts, default=1) > info.num_samples:
        refuse(where, f"at most {info.num_samples}, the number of rows", list(info.class_counts))
    if info.steps_per_epoch > info.num_samples:
        refuse(inside(FILE, "info.steps_per_epoch"), "no more steps than rows", info.steps_per_epoch)


def check_inputs(values: dict[str, Any], prepared: Preprocessor | ImageScaler) -> None:
    """Columns, width and preprocessing speak of the same inputs."""
    if isinstance(prepared, ImageScaler):
        width, columns, numeric = len(prepared.mean), [], []
    else:
        width, columns, numeric = prepared.width, prepared.columns, prepared.numeric
    sizes = values["pixels"]
    if sizes and not isinstance(prepared, ImageScaler):
        refuse(inside(FILE, "pixels"), "none for a table", sizes)
    if isinstance(prepared, ImageScaler) and (len(sizes) != 3 or sizes[2] != width):
        refuse(inside(FILE, "pixels"), f"height, width and {width} channels", sizes)
    if values["columns"] != columns:
        refuse(inside(FILE, "columns"), "the columns of the preprocessing, each once", values["columns"])
    if values["numeric"] != numeric:
        refuse(inside(FILE, "numeric"), "the numeric columns of the preprocessing", values["numeric"])
    if values["width"] != width:
        refuse(inside(FILE, "width"), f"{width}, as the preprocessing gives", values["width"])


def _check_outputs(values: dict[str, Any], task: str, parts: list[Part]) -> None:
    """The scale is that of the target; threshold, temperature, calibration are there only where they mean something."""
    where = inside(FILE, "scale")
    if task == "multitask":
        several = (len(parts), len(parts))
        Row(tuple(Listed(shape, *several) for shape in _SCALE)).check(values["scale"], where)
        pairs = list(zip(parts, *values["scale"]))
        if any(target.classes and (mean, deviation) != (0, 1) for target, mean, deviation in pairs):
            refuse(where, "0 and 1 for classes", values["scale"])
    else:
        Row(_SCALE).check(values["scale"], where)
        if task not in ("regression", RANKING) and values["scale"] != [0, 1]:
            refuse(where, f"0 and 1 for a {task} target", values["scale"])
    labels = len(values["classes"]) if task == "multilabel" else 1
    for name, tasks in (
        ("threshold", ("binary",)),
        ("temperature", CLASSES),
        ("calibration", (*CLASSES, "multilabel")),
    ):
        if values[name] is not None and task not in tasks:
            refuse(inside(FILE, name), f"none for a {task} target", values[name])
    if values["calibration"] is not None:
        sizes = [len(values["calibration"][key]) for key in ("slope", "offset")]
        if sizes != [labels, 0 if task == "multiclass" else labels]:
            refuse(inside(FILE, "calibration"), f"the numbers of {labels} scores", values["calibration"])


def _objective(values: dict[str, Any], info: TaskInfo, parts: list[Part], trust: Trust) -> Any:
    """The objective's class, which fits the task and has these hyper-parameters."""
    name, hyper = values["objective"], values["hyper"]
    cls = find_objective(name, trust=trust)
    reason = why_not(cls, info.task, False, [target.task for target in parts] if info.task == "multitask" else ())
    if reason:
        refuse(inside(FILE, "objective"), f"one for a {info.task} target", f"{name}: {reason}")
    _check_hypers(name, cls.search, hyper)
    return objective_for(name, info.task, parts, trust=trust)


def _check_hypers(name: str, search: Mapping[str, Space], hyper: Mapping[str, object]) -> None:
    """All of a search space, each within its own, or none."""
    if hyper and set(hyper) != set(search):
        expected = ", ".join(search) or "none"
        refuse(inside(FILE, "hyper"), f"the hyper-parameters of {name} ({expected}), or none", sorted(hyper))
    for key, value in hyper.items():
        _check_hyper(search[key], key, value)


def _check_hyper(space: Space, key: str, value: object) -> None:
    where = f"{inside(FILE, 'hyper')}[{key!r}]"
    if isinstance(space, Choice):
        if not any(type(value) is type(option) and value == option for option in space.options):
            refuse(where, "one of " + ", ".join(map(repr, space.options)), value)
    elif isinstance(space, Float):
        Number(space.low, space.high).check(value, where)
    else:
        Whole(space.low, space.high).check(value, where)
