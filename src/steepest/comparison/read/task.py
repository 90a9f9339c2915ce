"""The target: what kind of task it makes, its classes, and what happens to rare ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.lazy import late
from ..errors import InputError, nearest
from .numbers import number, read_numbers
from .options import MISSING
from .raw import Column, Text, missing_cells
from .retrieval import RETRIEVAL, check_classes
from .types import exact_integers, first_code, labels, plain_integers
from .wording import count, listing, show

pd = late("pandas")

MERGED = "rare"
MAX_AUTO_CLASSES = 10
RARE_SHARE = 0.05
"""The largest share of rows that is left out unasked, because their classes are too rare for the folds."""


@dataclass
class Target:
    """A target made ready.

    Args:
        values: ``[kept rows]`` int64 class codes, or float64.
        keep: ``[rows]`` bool: which rows remain.
        task, classes: as in ``Table``.
        decisions, warnings: a line each.
        dtype: in which labels are given back.
    """

    values: np.ndarray
    keep: np.ndarray
    task: str
    classes: tuple[str, ...]
    decisions: list[str]
    warnings: list[str]
    dtype: str = "float64"


def read_target(
    column: Column,
    name: str,
    *,
    task: str = "auto",
    rare: str | None = None,
    folds: int = 5,
    comma: str = "no",
    missing: tuple[str, ...] = MISSING,
    positive: str | None = None,
    dtype: str | None = None,
) -> Target:
    """Decide the task, code the classes (or take the numbers), and drop or merge rare classes.

    Text, at most 10 distinct integers, or two distinct numbers are classification; other numbers are regression.

    Args:
        column: ``[rows]``, as read.
        name: of the column.
        task: one of ``TASKS``.
        rare: ``"drop"`` or ``"merge"`` for classes with fewer than ``max(4, folds)`` members; None drops them, with a
            warning, where they are at most a twentieth of the rows, and refuses them where they are more.
        folds: of the comparison.
        comma: whether ``1,5`` is a number, as of ``RawTable``.
        missing: words that are missing.
        positive: of two classes the one that is looked for; None: the later in order.
        dtype: in which the column came; None: by its cells.

    Raises:
        InputError: for missing or infinite targets, one class, rare classes, text where numbers are needed.
    """
    what = f"the target {show(name)}"
    numbers, warnings = target_numbers(column, what, comma, missing)
    text = column.without(missing) if isinstance(column, Text) and numbers is None else None
    advice = "drop them or choose another target"
    if text is not None and isinstance(column, Text) and text.missing.sum() > column.missing.sum():
        words = sorted({*column.words.to_pylist()} & {*missing})
        advice += f", or keep {listing(words)} as a class with --missing and other words (or none: --missing '')"
    check_present(text if text is not None else column if numbers is None else numbers, what, advice)
    if isinstance(column, np.ndarray) and column.dtype.kind == "M":
        raise InputError(f"{what} holds dates: expected classes or numbers")
    if numbers is not None and not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0]) + 1
        raise InputError(f"{what} is infinite in row {row}: expected finite numbers")
    is_flag = isinstance(column, np.ndarray) and column.dtype.kind == "b"
    distinct = 0 if numbers is None else len(pd.unique(numbers))
    integers = numbers is not None and bool((numbers == np.floor(numbers)).all())
    few = (integers and distinct <= MAX_AUTO_CLASSES) or distinct == 2
    why = ""
    if task == "auto":
        task = "classification" if numbers is None or few or is_flag else "regression"
        why = f" ({'true or false' if is_flag else _why(numbers is not None, integers, few, distinct)})"
    if task == RETRIEVAL:
        target = _of_retrieval(target_labels(column, numbers), what, folds)
        target.dtype = _label_dtype(target_labels(column, numbers), numbers, dtype)
    elif task == "regression":
        target = _regression(numbers, labels(column), what, folds, why, distinct)
    else:
        words = target_labels(column, numbers)
        target = _classes(words, what, task, rare, folds, why, positive)
        target.dtype = _label_dtype(words, numbers, dtype)
    if positive is not None and target.task != "binary":
        raise InputError(f"positive: {what} makes a task of {target.task}; a positive class is for two classes")
    target.warnings = warnings + target.warnings
    return target


def _label_dtype(words: Text, numbers: np.ndarray | None, dtype: str | None) -> str:
    """In which dtype labels are given back: as they came, else by their cells."""
    coded = numbers is None or first_code(words) is not None
    by_cells = "str" if coded else "int64" if plain_integers(words) else "float64"
    return dtype if dtype in LABEL_DTYPES else by_cells


def _of_retrieval(text: Text, what: str, folds: int) -> Target:
    """Every class is taken, however few rows it has."""
    names = text.words.to_pylist()
    classes = in_order(names)
    places = {label: i for i, label in enumerate(classes)}
    codes = np.array([places[label] for label in names], dtype=np.int64)[text.codes]
    line, warned = check_classes(np.bincount(codes, minlength=len(classes)).tolist(), folds, what)
    return Target(codes, np.ones(len(codes), dtype=bool), RETRIEVAL, tuple(classes), [line], warned)


def target_numbers(
    column: Column, what: str, comma: str, missing: tuple[str, ...]
) -> tuple[np.ndarray | None, list[str]]:
    """The target as numbers where all its filled cells are; a warning where nearly all are."""
    if not isinstance(column, Text):
        return (None, []) if column.dtype.kind == "M" else (column.astype(np.float64), [])
    if column.declared:
        return None, []
    numbers = read_numbers(column, comma)
    if numbers.cells and not numbers.others:
        return numbers.values, []
    if numbers.cells and numbers.others <= 0.1 * (numbers.cells + numbers.others):
        word = next(iter(numbers.words))
        words = f"{count(numbers.others, 'word')} among numbers (first: {show(word)}, row {column.first(word)})"
        return None, [f"the target is text: {words}"]
    return None, []


def target_labels(column: Column, numbers: np.ndarray | None) -> Text:
    """Labels as words: integers without a point and exact, other numbers in full, codes with leading zeros as they are.

    True and false in several spellings are two labels; other text is as it is.
    """
    if not isinstance(column, Text):
        return labels(column)
    if numbers is None:
        return flags_of_one_spelling(column) if len(column.words) > 2 else column
    if first_code(column) is not None:
        return column
    return labels(exact_integers(column)) if plain_integers(column) else labels(numbers)


_PLAIN_DTYPES = (
    *("str", "object", "bool", "boolean", "float16", "float32", "float64", "Float32", "Float64"),
    *(f"{kind}{bits}" for kind in ("int", "uint", "Int", "UInt") for bits in (8, 16, 32, 64)),
)
LABEL_DTYPES = (*_PLAIN_DTYPES, *(f"category:{dtype}" for dtype in _PLAIN_DTYPES))
"""In which labels are given back."""


def flags_of_one_spelling(text: Text) -> Text:
    """Words for true and false as ``True`` and ``False``; other text as it is."""
    words = [word.capitalize() for word in text.words.to_pylist()]
    return Text.from_codes(text.codes, words) if {*words} <= {"False", "True"} else text


def label_index(classes: tuple[str, ...] | list[str], dtype: str) -> pd.Index:
    """Class labels in the dtype in which they came; as text where that can't hold them.

    >>> label_index(("0", "1"), "int64").dtype, label_index(("no", "rare"), "int64").tolist()
    (dtype('int64'), ['no', 'rare'])
    """
    kind, _, inner = dtype.partition(":")
    words = pd.Index(list(classes), dtype=object)
    if kind == "category":
        return pd.CategoricalIndex(label_index(classes, inner or "object"), categories=label_index(classes, inner))
    try:
        if kind in ("bool", "boolean"):
            if set(classes) <= {"0", "1"}:
                return pd.Index([label == "1" for label in classes], dtype=kind)
            return pd.Index([{"False": False, "True": True}[label] for label in classes], dtype=kind)
        if kind.lower().lstrip("u").startswith("int"):
            return pd.Index([int(label) for label in classes], dtype=kind)
        if kind.lower().startswith("float"):
            return pd.Index([float(label) for label in classes], dtype=kind)
        return words.astype("str") if kind == "str" else words
    except (ValueError, KeyError, OverflowError, TypeError):
        return words


def in_order(labels: list[str]) -> list[str]:
    """Distinct labels in numeric order if all are numbers, else sorted.

    >>> in_order(["10", "9"]), in_order(["b", "10", "9"])
    (['9', '10'], ['10', '9', 'b'])
    """
    distinct = sorted(set(labels))
    if any(number(label) is None for label in distinct):
        return distinct
    return sorted(distinct, key=lambda label: (int(label) if label.lstrip("+-").isdigit() else float(label), label))


def check_present(column: Column, what: str, advice: str) -> None:
    """Refuse missing cells, with how many and where the first one is."""
    missing = np.flatnonzero(missing_cells(column))
    if missing.size:
        raise InputError(f"{what} is missing in {count(missing.size, 'row')} (first: row {missing[0] + 1}); {advice}")


def _why(numeric: bool, integers: bool, few: bool, distinct: int) -> str:
    if not numeric:
        return "text"
    if few:
        return "at most 10 distinct integers" if integers else "two distinct numbers"
    return f"{distinct} distinct {'integers' if integers else 'numbers'}"


def _regression(numbers: np.ndarray | None, words: Text, what: str, folds: int, why: str, distinct: int) -> Target:
    if numbers is None:
        row, word = next((i + 1, c) for i, c in enumerate(words.cells.to_pylist()) if number(c) is None)
        raise InputError(f"task regression needs numbers, but {what} has {show(word)} in row {row}")
    if distinct == 1:
        raise InputError(f"{what} has one value only ({numbers[0]:g}): expected at least 2")
    if len(numbers) < max(4, folds):
        raise InputError(f"expected at least {max(4, folds)} rows for {folds} folds, got {len(numbers)}")
    line = f"task: regression{why}, {numbers.min():g} to {numbers.max():g}"
    return Target(numbers, np.ones(len(numbers), dtype=bool), "regression", (), [line], [])


def _classes(text: Text, what: str, task: str, rare: str | None, folds: int, why: str, positive: str | None) -> Target:
    least = max(4, folds)
    warnings: list[str] = []
    names, codes = text.words.to_pylist(), text.codes.astype(np.int64)
    sizes = dict(zip(names, text.counts.tolist()))
    if len(sizes) == 1:
        raise InputError(f"{what} has one class only ({show(names[0])}): expected at least 2")
    keep = np.ones(len(codes), dtype=bool)
    few = in_order([label for label in names if sizes[label] < least])
    if few:
        members = listing([f"{label}: {sizes[label]}" for label in few], limit=5).replace("'", "")
        total = sum(sizes[label] for label in few)
        if rare is None and (total > RARE_SHARE * len(codes) or len(few) > len(sizes) - 2):
            raise InputError(
                f"{what} has {count(len(few), 'class', 'classes')} with fewer than {least} members ({members}); "
                "choose --rare drop or --rare merge"
            )
        is_rare = np.array([sizes[label] < least for label in names])[codes]
        taken = MERGED in sizes and MERGED not in few
        if rare == "merge" and (total >= least or taken):
            places = [MERGED if sizes[label] < least else label for label in names]
            names = list(dict.fromkeys(places))
            codes = np.array([names.index(label) for label in places], dtype=np.int64)[codes]
            warnings.append(f"{count(len(few), 'rare class', 'rare classes')} ({members}) merged into '{MERGED}'")
        else:
            keep = ~is_rare
            still = ", too few even together," if rare == "merge" else ""
            way = "" if rare else f": not enough for {folds} folds; --rare merge makes one class of rare ones"
            warnings.append(
                f"{count(len(few), 'rare class', 'rare classes')} ({members}){still} dropped with "
                f"{count(total, 'row')}{way}"
            )
    codes = codes if keep.all() else codes[keep]
    present = np.bincount(codes, minlength=len(names)) > 0
    classes = in_order([label for label, here in zip(names, present) if here])
    if len(classes) < 2:
        raise InputError(
            f"{what} has {'one class' if classes else 'no class'} with {least} members or more: expected at least 2"
        )
    if task == "binary" and len(classes) != 2:
        raise InputError(f"task binary needs 2 classes, but {what} has {len(classes)}: {listing(classes)}")
    if task == "classification":
        task = "binary" if len(classes) == 2 else "multiclass"
    if positive is not None and task == "binary":
        if positive not in classes:
            hint = nearest(positive, classes)
            raise InputError(f"positive: {what} has no class {show(positive)}: it has {listing(classes)}{hint}")
        classes.sort(key=lambda label: label == positive)
    places = {label: i for i, label in enumerate(classes)}
    codes = np.array([places.get(label, -1) for label in names], dtype=np.int64)[codes]
    shares = ", ".join(f"{label}: {n}" for label, n in zip(classes[:12], np.bincount(codes)))
    more = ", ..." if len(classes) > 12 else ""
    lines = [f"task: {task}{why}, {len(classes)} classes ({shares}{more})"]
    if len(classes) == 2:
        chosen = "as asked" if positive is not None else "the later in order; --positive names the other"
        lines.append(f"positive class: {show(classes[1])} ({chosen})")
    return Target(codes, keep, task, tuple(classes), lines, warnings)
