"""What the file of a run may hold besides its facts: plan, cells and outcomes, each checked as it is read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.stored import Anything, Listed, Maybe, Named, Number, Record, Row, Text, Whole, Word, parse_json
from ...core.stored import refuse_stored as refuse
from ..baselines import tuned_learners
from ..design.context import Context, Pair
from ..design.folds import CLASSES
from ..errors import InputError
from ..scores.outcome import Outcome
from .facts import CONFLICT, KINDS, SAMPLES

_VALUE = Maybe(Number())
CELL = Record(
    {},
    optional={
        "score": _VALUE,
        "metrics": Named(_VALUE),
        "inner": Listed(_VALUE, least=1),
        "recall": Listed(_VALUE),
        "threshold": _VALUE,
        "temperature": Maybe(Number(positive=True)),
        "trial": Whole(),
        "trial_text": Text(),
        "epochs": Whole(),
        "inner_epochs": Listed(Number(low=0.0)),
        "curve": Listed(_VALUE),
        "diverged": Whole(),
        "seconds": Number(low=0.0),
        "seconds_per_epoch": Number(low=0.0),
        "peak_memory_mb": Number(low=0.0),
        "capability": Text(),
        "failed": Text(),
        "conflict": CONFLICT,
        "samples": SAMPLES,
    },
)
"""The values of a cell."""

TRIAL = Record(
    {
        "scores": Listed(_VALUE, least=1),
        "epochs": Listed(Whole(), least=1),
        "curves": Listed(Listed(_VALUE), least=1),
        "seconds": Number(low=0.0),
    },
    {"point": Record({"threshold": _VALUE, "temperature": Maybe(Number(positive=True))})},
)
"""A trial on inner validation: a value for each inner split, and the operating point where it was the best."""

ALWAYS = (
    "score",
    "metrics",
    "inner",
    "threshold",
    "temperature",
    "trial_text",
    "diverged",
    "seconds",
    "peak_memory_mb",
)
NEEDED = {"classical": ALWAYS, "objective": (*ALWAYS, "trial", "curve", "seconds_per_epoch")}
"""What a finished cell of each kind has."""

ARRAYS = {"predicted": "if", "probabilities": "f", "decision": "f"}
"""The arrays of an outcome and the kinds of their numbers."""


def read_cell(row: Sequence[object], where: str) -> tuple[str, str, Pair, dict[str, Any]]:
    """``kind, name, (repeat, fold), values`` of a row of cells."""
    kind, name, repeat, fold, content = row
    Row((Word(KINDS), Text(), Whole(), Whole(), Text())).check(list(row), f"{where}: a cell")
    where = f"{where}: {name}, repeat {repeat}, fold {fold}"
    values = parse_json(str(content), where)
    CELL.check(values, where)
    return str(kind), str(name), (int(str(repeat)), int(str(fold))), values


def read_trial(row: Sequence[object], where: str) -> tuple[int, dict[str, Any]]:
    """Number and record of a row of trials."""
    Row((Whole(), Text())).check(list(row), f"{where}: a trial")
    number, where = int(str(row[0])), f"{where}, trial {row[0]}"
    record = parse_json(str(row[1]), where)
    TRIAL.check(record, where)
    parts = len(record["scores"])
    for key in ("epochs", "curves"):
        Listed(Anything(), parts, parts).check(record[key], f"{where}: {key}")
    return number, record


def read_outcome(data: object, where: str) -> Outcome:
    """The arrays of an outcome; their sizes are known before memory is taken, and nothing is unpickled."""
    if not isinstance(data, bytes):
        refuse(where, "arrays", data)
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name not in ARRAYS or name in arrays:
                    refuse(where, f"the arrays {', '.join(ARRAYS)}, each once", name)
                with archive.open(member) as file:
                    arrays[name] = _array(file, member.file_size, f"{where}: {name}")
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy have many
        raise InputError(f"{where}: damaged: {str(error)[:200]}") from error
    if "predicted" not in arrays:
        refuse(where, "the array predicted", sorted(arrays))
    if any(not array.shape for array in arrays.values()):
        refuse(where, "a number for each row", {name: array.shape for name, array in arrays.items()})
    rows = len(arrays["predicted"])
    for name, array in arrays.items():
        if len(array) != rows or array.dtype.kind not in ARRAYS[name] or array.ndim > 2:
            refuse(f"{where}: {name}", f"numbers of {rows} rows", f"{array.dtype} {array.shape}")
    try:
        return Outcome(**arrays)
    except (TypeError, ValueError) as error:  # it has checks of its own
        raise InputError(f"{where}: {error}") from error


def _array(file: Any, size: int, where: str) -> np.ndarray:
    """An array of the NPY format, if its header and the size of its file agree."""
    shape, fortran, dtype = read_header(file, size, where)
    values = np.frombuffer(bytearray(file.read()), dtype=dtype)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def read_header(file: Any, size: int, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and dtype of an array in the NPY format, without its values.

    Raises:
        InputError: it holds objects, has no dimension, or the file of ``size`` bytes is not as long as it says.
    """
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in reader:
        refuse(where, "version 1 or 2 of the NPY format", version)
    shape, fortran, dtype = reader[version](file)
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject or expected != size - file.tell():
        refuse(where, f"{expected:,} bytes of {dtype}", f"{size - file.tell():,}")
    return shape, fortran, dtype


def check_cells(cells: dict[str, dict[Pair, dict[str, Any]]], context: Context, where: str) -> None:
    """Refuse finished cells that these settings cannot have given."""
    settings = context.settings
    kinds = {**dict.fromkeys(settings.classical, "classical"), **dict.fromkeys(settings.objectives, "objective")}
    for name, by_pair in cells.items():
        for pair, values in by_pair.items():
            cell = f"{where}: {name}, repeat {pair[0]}, fold {pair[1]}"
            kind = kinds.get(name)
            if kind is None or kind != values["kind"] or pair not in context.folds:
                raise InputError(f"{cell}: no cell of these settings; move the folder away to begin anew")
            lacking = [key for key in NEEDED[kind] if key not in values]
            if lacking:
                raise InputError(f"{cell}: {lacking[0]!r} is missing; move the folder away to begin anew")
            trials = settings.trials if kind == "objective" or name in tuned_learners() else 1
            Listed(_VALUE, trials, trials).check(values["inner"], f"{cell}: inner")
            if context.table.task in CLASSES:
                Listed(_VALUE, context.classes, context.classes).check(values.get("recall"), f"{cell}: recall")
