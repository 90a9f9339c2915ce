"""Features that give the target away on their own, and rows that occur twice."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Sequence

import numpy as np

from ...core.lazy import late
from ..parts import Part
from .threads import side_by_side
from .wording import count, show

pd = late("pandas")
stats = late("scipy.stats")
metrics = late("sklearn.metrics")
model_selection = late("sklearn.model_selection")
trees = late("sklearn.tree")

ROWS = 2000
LIMIT = 0.99
# Under this many rows a feature separates the classes by chance.
MIN_ROWS = 30
_BINS, _ROWS_A_BIN, _RARE = 64, 8, 30
_ROWS_AT_ONCE = 1 << 15
_TELLING, _LOOK = 3, 1000
_FEW_CLASSES = 8
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))
_MEASURE = {"binary": "AUROC", "multiclass": "balanced accuracy", "regression": "R2"}


def find_leaks_of(frame: pd.DataFrame, target: np.ndarray, task: str, parts: Sequence[Part]) -> list[str]:
    """A warning for each feature that gives a target away, or one of several."""
    if task == "retrieval":
        return []  # classes that are told apart are others than those that are learned
    if not parts:
        return find_leaks(frame, target, task)
    if task == "multilabel":
        return find_label_leaks(frame, target, [single_target.name for single_target in parts])
    warned = []
    for values, single_target in zip(target.T, parts):
        own = values if single_target.task == "regression" else values.astype(np.int64)
        warned += find_leaks(frame, own, single_target.task, f"the target {show(single_target.name)}")
    return warned


def find_label_leaks(frame: pd.DataFrame, target: np.ndarray, names: Sequence[str]) -> list[str]:
    """A warning for each feature that predicts one of ``L`` labels alone almost perfectly; ``target``: [N, L] of 0/1.

    The mean of each label in each category, or in each bin (of equally many rows, 64 bins at most), is cross-validated
    in 3 folds on at most 2000 rows, and up to 30 more of a label's rarer side; AUROC above 0.99 in the mean is warned
    of.
    """
    if len(target) < MIN_ROWS:
        return []
    rng = np.random.default_rng(0)
    order = rng.permutation(len(target))
    chosen = np.zeros(len(target), dtype=bool)
    chosen[order[:ROWS]] = True
    for label in target.T[:, order]:
        rare = np.flatnonzero(label == (label.mean() < 0.5))[:_RARE]
        chosen[order[rare]] = True
    rows = np.flatnonzero(chosen)
    y = target[rows]
    folds = list(model_selection.KFold(3, shuffle=True, random_state=0).split(y))
    warned = []
    for feature in frame.columns:
        codes = _codes(frame[feature].iloc[rows])
        scores = np.mean([_label_scores(codes[fit], y[fit], codes[test], y[test]) for fit, test in folds], axis=0)
        warned += [
            f"likely leak: {show(feature)} alone predicts the label {show(names[label])} (AUROC {scores[label]:.3f}); "
            "drop it if it is known only after the target"
            for label in np.flatnonzero(scores > LIMIT)
        ]
    return warned


def _codes(column: pd.Series) -> np.ndarray:
    """Categories as codes, numbers as bins of equally many rows; what is missing is one more of them."""
    values = _plain(column)
    if values.dtype.kind != "f" and not isinstance(column.dtype, pd.CategoricalDtype):
        values = np.where(column.isna(), np.nan, values.astype(np.float64))
    if values.dtype.kind != "f":
        return values + 1
    known = values[np.isfinite(values)]
    bins = int(np.clip(len(known) // _ROWS_A_BIN, 2, _BINS))
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1])) if len(known) else known
    return np.where(np.isnan(values), 0, 1 + np.searchsorted(edges, values, side="left"))


def _label_scores(fit_x: np.ndarray, fit_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``[L]`` AUROC of the mean label of a row's bin; 0 where a part has one value of the label only."""
    size = int(max(fit_x.max(), x.max())) + 1
    rows = np.bincount(fit_x, minlength=size)
    sums = np.stack([np.bincount(fit_x, label, minlength=size) for label in fit_y.T], 1)
    means = np.where(rows[:, None] > 0, sums / np.maximum(rows, 1)[:, None], fit_y.mean(0))[x]
    positive = y.sum(0)
    pairs = positive * (len(y) - positive)
    above = (stats.rankdata(means, axis=0) * y).sum(0) - positive * (positive + 1) / 2
    learned = np.ptp(fit_y, axis=0) > 0
    return np.divide(above, pairs, out=np.zeros(len(pairs)), where=(pairs > 0) & learned)


def find_leaks(frame: pd.DataFrame, target: np.ndarray, task: str, what: str = "the target") -> list[str]:
    """A warning for each feature that predicts the target alone almost perfectly; ``what``: how it is named.

    A shallow tree on the feature (for text: the mean target of each category) is cross-validated in 3 folds on at most
    2000 rows; AUROC, balanced accuracy or R2 above 0.99 in the mean is warned of.
    """
    if len(target) < MIN_ROWS:
        return []
    rows = _subsample(target, task)
    y = target[rows]
    splitter = model_selection.KFold if task == "regression" else model_selection.StratifiedKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes thinner than the folds
        folds = list(splitter(3, shuffle=True, random_state=0).split(np.zeros(len(y)), y))
    warned = []
    for name in frame.columns:
        score = _alone(_values(frame[name].iloc[rows]), y, task, folds)
        if score > LIMIT:
            warned.append(
                f"likely leak: {show(name)} alone predicts {what} ({_MEASURE[task]} {score:.3f}); "
                "drop it if it is known only after the target"
            )
    return warned


def find_copies(frame: pd.DataFrame, target: np.ndarray) -> list[str]:
    """A warning with the number of rows that equal an earlier one, target included."""
    goals = np.atleast_2d(np.asarray(target).T)
    rows = _alike([*(_plain(frame[name]) for name in frame.columns), *goals])
    if not len(rows):
        return []
    both = frame.iloc[rows].set_axis(range(frame.shape[1]), axis=1)  # a few pairs may differ all the same
    for i, column in enumerate(goals):
        both[frame.shape[1] + i] = column[rows]
    copies = int(both.duplicated().sum())
    if not copies:
        return []
    verb = "repeats" if copies == 1 else "repeat"
    return [
        f"{count(copies, 'row')} {verb} an earlier one (features and target): copies may fall on both sides of a split"
    ]


def _alike(columns: list[np.ndarray]) -> np.ndarray:
    """Positions of rows that have the digest of another row; those that equal another row are among them.

    A few columns that tell rows apart best come first: often no two rows are alike in these, and the others need not be
    looked at.
    """
    columns = sorted(columns, key=lambda column: -len(np.unique(column[:_LOOK])))
    rows = np.arange(len(columns[0]))
    digest = np.zeros(len(rows), dtype=np.uint64)
    for some in (columns[:_TELLING], columns[_TELLING:]):
        _mix(digest, [column if len(rows) == len(column) else column[rows] for column in some])
        ordered = np.sort(digest)
        if not (ordered[1:] == ordered[:-1]).any():
            return rows[:0]
        alike = pd.Series(digest).duplicated(keep=False).to_numpy()
        rows, digest = rows[alike], digest[alike]
    return rows


def _mix(digest: np.ndarray, columns: Sequence[np.ndarray]) -> None:
    """Mix the cells of some columns into the digest of each row."""

    def mix(start: int) -> None:
        block = digest[start : start + _ROWS_AT_ONCE]
        for column in columns:
            cells = column[start : start + _ROWS_AT_ONCE] + column.dtype.type(0)  # one zero, not two
            block *= _MIX[0]
            block += cells.view(np.uint64) * _MIX[1]
            block ^= block >> np.uint64(29)

    deque(side_by_side(mix, range(0, len(digest), _ROWS_AT_ONCE)), 0)


def _plain(column: pd.Series) -> np.ndarray:
    """A column as numbers of 64 bits, equal where the cells are."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy().astype(np.int64)
    values = column.to_numpy()
    return values.astype("M8[us]").view(np.int64) if values.dtype.kind == "M" else values


def _values(column: pd.Series) -> np.ndarray:
    """Numbers (dates too), or objects with None for missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = column.astype(object)
        return values.where(values.notna(), None).to_numpy()
    if column.dtype.kind == "M":
        return np.where(column.isna(), np.nan, column.to_numpy().astype("M8[us]").astype(np.float64))
    return column.to_numpy()


def _subsample(target: np.ndarray, task: str) -> np.ndarray:
    rows = np.arange(len(target))
    if len(rows) <= ROWS:
        return rows
    rng = np.random.default_rng(0)
    if task == "regression":
        return np.sort(rng.choice(rows, ROWS, replace=False))
    sizes = np.bincount(target)
    quota = np.where(sizes > 0, np.maximum(np.round(ROWS * sizes / len(rows)), np.minimum(sizes, 2)), 0).astype(int)
    members = _members(target, sizes)
    parts = [own[rng.choice(len(own), q, replace=False)] for own, q in zip(members, quota) if q]
    return np.sort(np.concatenate(parts))


def _members(target: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """The rows of each class, in order."""
    if len(sizes) <= _FEW_CLASSES:  # several searches take less time than one sort
        return [np.flatnonzero(target == code) for code in range(len(sizes))]
    return np.split(np.argsort(target.astype(np.int32), kind="stable"), np.cumsum(sizes)[:-1])


def _alone(values: np.ndarray, y: np.ndarray, task: str, folds: list[tuple[np.ndarray, np.ndarray]]) -> float:
    scores: list[float] = []
    for fit, test in folds:
        scores.append(_score(values[fit], y[fit], values[test], y[test], task))
        # Two perfect folds more would not lift the mean above the limit.
        if sum(scores) + (len(folds) - len(scores)) < LIMIT * len(folds):
            return 0.0
    return float(np.mean(scores))


def _auroc(y: np.ndarray, scores: np.ndarray) -> float:
    """The Mann-Whitney share of pairs in order, ties for a half."""
    positive = int(y.sum())
    above = stats.rankdata(scores)[y == 1].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(y) - positive)))


def _score(fit_x: np.ndarray, fit_y: np.ndarray, x: np.ndarray, y: np.ndarray, task: str) -> float:
    if task != "regression" and (len(np.unique(y)) < 2 or len(np.unique(fit_y)) < 2):
        return 0.0
    if fit_x.dtype != object:
        fit_x, x = (np.asarray(v, dtype=np.float64)[:, None] for v in (fit_x, x))
        big = np.abs(np.nan_to_num(np.concatenate([fit_x, x]))).max()
        if big > 1e30:  # trees compute in float32
            fit_x, x = fit_x / big, x / big
        if task == "regression":
            tree = trees.DecisionTreeRegressor(max_depth=8, min_samples_leaf=2, random_state=0).fit(fit_x, fit_y)
            return float(metrics.r2_score(y, tree.predict(x)))
        depth = 2 + math.ceil(math.log2(len(np.unique(fit_y))))
        tree = trees.DecisionTreeClassifier(max_depth=depth, random_state=0).fit(fit_x, fit_y)
        scores = tree.predict_proba(x)
    else:
        wide = (
            fit_y.astype(float)[:, None] if task == "regression" else np.eye(int(max(fit_y.max(), y.max())) + 1)[fit_y]
        )
        keys = pd.Series(fit_x, dtype=object).fillna("").to_numpy()
        means = pd.DataFrame(wide).groupby(keys).mean()
        scores = means.reindex(pd.Series(x, dtype=object).fillna("")).to_numpy()
        scores = np.where(np.isnan(scores), wide.mean(0), scores)
        if task == "regression":
            return float(metrics.r2_score(y, scores[:, 0]))
        tree = None
    if task == "binary":
        return _auroc(y, scores[:, -1])
    labels = tree.classes_ if tree is not None else np.arange(scores.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class met in one part only
        return float(metrics.balanced_accuracy_score(y, labels[scores.argmax(1)]))
