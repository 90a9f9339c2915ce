"""Images ready for a comparison: pixels, classes, the split, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ....core.lazy import late
from ...errors import InputError
from ..retrieval import RETRIEVAL, check_classes
from ..task import in_order
from ..wording import count, listing, show
from .files import read_idx, read_npz
from .folder import read_folder
from .raw import RawImages, RawPart, copies, size_of
from .source import check_image_options, idx_pair

pd = late("pandas")


@dataclass(frozen=True)
class Images:
    """Pixels, target and what was decided, as :class:`~steepest.comparison.read.Table` is for tables.

    Args:
        name: of the source.
        pixels: ``[N, H, W, C]`` uint8, C 1 or 3.
        target: ``[N]`` int64 class codes ``0..C-1``.
        target_name: always ``"label"``.
        task: ``"binary"`` or ``"multiclass"``.
        classes: labels in code order.
        groups, times, weights: always None.
        decisions: what was decided, a line each.
        warnings: what to beware of, a line each.
        sha256: of the bytes read; for a folder, of its sorted relative names and contents.
    """

    name: str
    pixels: np.ndarray
    target: np.ndarray
    target_name: str
    task: str
    classes: tuple[str, ...]
    groups: None
    times: None
    weights: None
    decisions: tuple[str, ...]
    warnings: tuple[str, ...]
    sha256: str


def load_images(
    source: str | Path, *, split: str = "auto", size: int | None = None, folds: int = 5, task: str = "auto"
) -> tuple[Images, Images | None]:
    """Read images and decide what they ask.

    Args:
        source: an NPZ file with arrays ``x``, ``y`` or ``x_train``, ``y_train``, ``x_test``, ``y_test``; two IDX files
            as ``images:labels``; or a folder with a sub-folder a class, or ``train/`` and ``test/`` with these.
        split: ``"auto"``: the source's own test part is kept apart where there is one; ``"file"``: and there must be
            one; ``"pool"``: both parts are joined.
        size: height and width to resize to, >= 4; None keeps the size, and asks for one size in a folder.
        folds: of the comparison; each class has at least ``max(4, folds)`` members.
        task: ``"auto"``, or ``"retrieval"``: classes may be small, and both parts are joined.

    Returns:
        The images, and the source's own test part with the same classes, or None.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    check_image_options(split, size, folds)
    raw = _read(str(source), size)
    split = "pool" if task == RETRIEVAL and split == "auto" else split
    if split == "file" and raw.test is None:
        raise InputError(f"split: {show(raw.name)} has no test part of its own; choose --split auto or pool")
    if split == "pool" and raw.test is not None:
        raw.decisions.append(f"split: folds of both parts joined ({len(raw.train.pixels)} + {len(raw.test.pixels)})")
        pixels, labels = (
            np.concatenate([getattr(raw_part, key) for raw_part in (raw.train, raw.test)])
            for key in ("pixels", "labels")
        )
        raw.train, raw.test = RawPart(pixels, labels), None
    elif raw.test is not None:
        raw.decisions.append(f"split: the file's own test part of {len(raw.test.pixels)}")
    return _build(raw, int(folds), task)


def load_pixels(source: str | Path, *, size: int | None = None) -> np.ndarray:
    """Images ``[N, H, W, C]`` uint8 whatever their classes, of both parts where there are two.

    Args:
        source, size: as of :func:`load_images`.

    Raises:
        InputError: for whatever cannot be read, in one line.
    """
    raw = _read(str(source), size)
    return np.concatenate([raw_part.pixels for raw_part in (raw.train, raw.test) if raw_part is not None])


def _read(source: str, size: int | None) -> RawImages:
    pair = idx_pair(source)
    if not source.lower().endswith(".npz") and pair is None:
        path = Path(source)
        if path.is_file():
            raise InputError(f"{show(path.name)} holds no images: expected an NPZ file, IDX files as images:labels")
        return read_folder(path, size)
    raw = read_npz(Path(source)) if pair is None else read_idx(Path(pair[0]), Path(pair[1]))
    if size is not None and raw.train.pixels.shape[1:3] != (size, size):
        raw.decisions.append(f"resized from {size_of(raw.train.pixels.shape[1:3])} to {size} x {size}")
        for raw_part in (raw.train, raw.test):
            if raw_part is not None:
                raw_part.pixels = _resize(raw_part.pixels, size)
    return raw


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    out = np.empty((len(pixels), size, size, pixels.shape[3]), dtype=np.uint8)
    for row, image in zip(out, pixels):
        small = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        row[:] = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR)).reshape(row.shape)
    return out


def _build(raw: RawImages, folds: int, task: str) -> tuple[Images, Images | None]:
    pixels, labels = raw.train.pixels, raw.train.labels
    of_retrieval = task == RETRIEVAL
    classes = _check_classes(labels, raw.label, 1 if of_retrieval else max(4, folds))
    target = _codes(labels, classes)
    if of_retrieval:
        line, warned = check_classes(np.bincount(target).tolist(), folds, raw.label)
        raw.warnings += warned
    else:
        task = "binary" if len(classes) == 2 else "multiclass"
        line = f"task: {task}, {len(classes)} classes ({_shares(classes, target)})"
    decisions = [f"read: {count(len(pixels), 'image')} {size_of(pixels.shape[1:])}", line, *raw.decisions]
    repeated = copies(pixels)
    if repeated:
        verb = "repeats" if repeated == 1 else "repeat"
        raw.warnings.append(
            f"{count(repeated, 'image')} {verb} an earlier one: copies may fall on both sides of a split"
        )
    train = Images(
        name=raw.name,
        pixels=pixels,
        target=target,
        target_name="label",
        task=task,
        classes=classes,
        groups=None,
        times=None,
        weights=None,
        decisions=tuple(decisions),
        warnings=tuple(raw.warnings),
        sha256=raw.sha256,
    )
    return train, None if raw.test is None else _test_part(train, raw.test, raw.label)


def _test_part(train: Images, test: RawPart, label: str) -> Images:
    unknown = in_order([text for text in set(test.labels) if text not in train.classes])
    if unknown:
        known = listing(list(train.classes))
        raise InputError(f"{label}: the test part has an unknown class {show(unknown[0])}; expected one of {known}")
    target = _codes(test.labels, train.classes)
    read = f"read: {count(len(target), 'image')} {size_of(test.pixels.shape[1:])}, the test part"
    warned = []
    shared = copies(test.pixels, train.pixels)
    if shared:
        verb = "is" if shared == 1 else "are"
        warned.append(f"{shared} of {count(len(target), 'test image')} {verb} also in the training part")
    absent = [name for name, n in zip(train.classes, np.bincount(target, minlength=len(train.classes))) if n == 0]
    if absent:
        warned.append(f"the test part has no image of {count(len(absent), 'class', 'classes')}: {listing(absent)}")
    decisions = (read, f"classes as in the training part ({_shares(train.classes, target)})")
    return replace(train, pixels=test.pixels, target=target, decisions=decisions, warnings=tuple(warned))


def _check_classes(labels: np.ndarray, where: str, least: int) -> tuple[str, ...]:
    sizes = pd.Series(labels).value_counts()
    classes = in_order(list(sizes.index))
    if len(classes) == 1:
        raise InputError(f"{where}: one class only ({show(classes[0])}); expected at least 2")
    few = [f"{name}: {sizes[name]}" for name in classes if sizes[name] < least]
    if few:
        members = listing(few, limit=5).replace("'", "")
        raise InputError(f"{where}: {count(len(few), 'class', 'classes')} with fewer than {least} members ({members})")
    return tuple(classes)


def _codes(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    return pd.Categorical(labels, categories=list(classes)).codes.astype(np.int64)


def _shares(classes: tuple[str, ...], target: np.ndarray) -> str:
    shares = [f"{name}: {n}" for name, n in zip(classes, np.bincount(target, minlength=len(classes)))]
    return ", ".join(shares[:12]) + (", ..." if len(classes) > 12 else "")
