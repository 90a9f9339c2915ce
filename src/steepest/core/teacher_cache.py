"""What a frozen teacher says of each row of a data set, computed once and read back by position."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .checks import check_choice, check_number, check_range, check_tensor, refuse, refuse_type
from .errors import InputError
from .parameter_directions import evaluated
from .reductions import widen
from .undisturbed import same_random_states

KINDS = ("logits", "features", "class_means")
"""What can be kept of a teacher."""
RESTS = ("spread", "renormalise")
"""What the classes beyond the largest ones get."""
_FORM = "1"
_UNFINISHED = ".unfinished-"
_DAY = 86_400

Data = Tensor | Iterable[Any]


class TeacherCache:
    """Logits and features of a teacher for each row of a data set, and the mean feature of each class.

    :func:`teacher_cache` makes one. Rows are read by their position in the data set, in float32.

    Args:
        arrays: by name, as they lie in memory or in files.
        num_classes: C, the width of the logits, or 0 where none are kept.
        digest: of data, teacher and what was asked for.
        fresh: whether the teacher ran for it in this process.
    """

    def __init__(self, arrays: dict[str, np.ndarray], num_classes: int, digest: str, fresh: bool) -> None:
        self._arrays, self.num_classes, self.digest, self.fresh = arrays, num_classes, digest, fresh
        self.top_k = arrays["classes"].shape[1] if "classes" in arrays else None

    def logits(self, index: Tensor | None = None, *, rest: str = "spread") -> Tensor:
        r"""Logits ``[B, C]`` of the rows at these positions, or of all.

        Where only the k largest are kept, these are exact and the others are filled in:

        - "spread": each gets :math:`\log \frac1{C-k} \sum_{c \notin \text{top}} e^{t_c}`. The softmax at temperature 1
          is then exact for the largest and even over the others, and the logits keep their height;
        - "renormalise": each is minus infinity, so that the softmax is that of the largest alone. A loss of logits that
          are not made to probabilities has no use for it.

        At another temperature the softmax is that of these filled-in logits.

        Args:
            index: positions ``[B]`` in 0..N-1.
            rest: one of these two; without ``top_k`` it says nothing.
        """
        check_choice("rest", rest, RESTS)
        values = self._rows("logits", index)
        if self.top_k is None:
            return values
        others = self._rows("rest", index) if rest == "spread" else torch.full_like(values[:, :1], -math.inf)
        return others.repeat(1, self.num_classes).scatter(1, self._rows("classes", index).long(), values)

    def features(self, index: Tensor | None = None) -> Tensor:
        """Features ``[B, d]`` of the rows at these positions, or of all."""
        return self._rows("features", index)

    def class_means(self) -> Tensor:
        """The mean feature of each class, ``[C, d]``."""
        return self._rows("class_means", None)

    def _rows(self, name: str, index: Tensor | None) -> Tensor:
        if name not in self._arrays:
            refuse("keep", f"{name!r} among what is kept", sorted(set(self._arrays) & set(KINDS)))
        array = self._arrays[name]
        if index is None:
            rows = np.array(array)
        else:
            check_tensor("index", index, ndim=1, floating=False)
            check_range("index", index, 0, len(array) - 1)
            rows = np.asarray(array[index.detach().cpu().numpy()])
        return widen(torch.from_numpy(rows))


def teacher_cache(
    teacher: nn.Module,
    data: Data,
    folder: str | os.PathLike[str] | None = None,
    *,
    keep: Sequence[str] = ("logits",),
    num_classes: int | None = None,
    head: str | None = "head",
    top_k: int | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
) -> TeacherCache:
    """Run a teacher once over a data set, in evaluation mode and without gradients, and keep what it says.

    With a folder the result lies there under a hash of the data, of the teacher's parameters, buffers and printed
    form, and of what is asked for: the same call reads it, another teacher or other data are computed anew. It appears
    whole or not at all, and nothing in it is unpickled. The teacher, its modes and all random states are left as they
    were.

    Args:
        teacher: a module from a batch of inputs to logits ``[B, C]``.
        data: inputs ``[N, ...]``, or a loader that gives the same batches in the same order at each pass (neither
            shuffled nor augmented): inputs, or tuples that begin with inputs and class labels.
        folder: where it is kept, made if it is not there; None keeps it in memory.
        keep: of "logits", "features" and "class_means"; the last needs labels.
        num_classes: C that a student has; a teacher of another number is refused. "class_means" without "logits" need
            it.
        head: name of the submodule that the features go into, for example "head", "fc" or "classifier"; None: what the
            teacher gives are the features.
        top_k: keep only the k largest logits of a row and the mass of the others (:meth:`TeacherCache.logits`); None,
            or k >= C, keeps all.
        dtype: of kept logits and features, float32 or float16.
        batch_size: of inputs that come as one tensor.

    Returns:
        The cache.

    Raises:
        ValueError: a teacher with another number of classes, a class without rows, data that change between two
            passes, no such submodule.
        TypeError: a teacher that is no module, data of another kind.
        InputError: files of that name that are not such a cache.

    Example:
        >>> teacher, inputs = nn.Linear(3, 4), torch.ones(5, 3)
        >>> cache = teacher_cache(teacher, inputs)
        >>> torch.equal(cache.logits(torch.tensor([4, 0])), teacher(inputs[[4, 0]]))
        True
    """
    if not isinstance(teacher, nn.Module):
        refuse_type("teacher", "a module", teacher)
    if not isinstance(data, Tensor) and (isinstance(data, Iterator) or not isinstance(data, Iterable)):
        refuse_type("data", "a tensor, or a loader that can be read twice", data)
    if not keep:
        refuse("keep", f"some of {', '.join(KINDS)}", keep)
    for kind in keep:
        check_choice("keep", kind, KINDS)
    check_choice("dtype", dtype, (torch.float32, torch.float16))
    for name, value in (("num_classes", num_classes), ("top_k", top_k)):
        if value is not None:
            check_number(name, value, low=1, integer=True)
    check_number("batch_size", batch_size, low=1, integer=True)
    if "logits" not in keep and num_classes is None and "class_means" in keep:
        refuse("num_classes", "a number, for class means without logits", None)
    if head is None and "logits" in keep:
        refuse("head", "the name of a submodule, to keep logits", None)
    if head is not None and set(keep) != {"logits"} and head not in dict(teacher.named_modules()):
        refuse("head", f"one of {', '.join(name for name, _ in teacher.named_children())}", head)
    reader = _Reader(data, batch_size)
    with same_random_states():
        source = reader.fingerprint()
        asked = (sorted(set(keep)), num_classes, head, top_k, dtype)
        digest = _digest(_FORM, *map(str, asked), source, _fingerprint(teacher))
        place = None if folder is None else Path(folder) / digest
        if place is not None and place.is_dir():
            return _read(place, digest, reader.rows, num_classes)
        plan = _Plan(frozenset(keep), num_classes, head, top_k, dtype, reader.rows)
        with _unfinished(place) as unfinished:
            arrays, classes = _compute(teacher, reader, plan, unfinished)
            if reader.last != source:
                refuse("data", "the same rows in the same order at each pass", "others at the second pass")
            if place is None or unfinished is None:
                return TeacherCache(arrays, classes, digest, fresh=True)
            _finish(arrays, classes, unfinished, place)
    cache = _read(place, digest, reader.rows, num_classes)
    cache.fresh = True
    return cache


def mean_features(
    teacher: nn.Module, data: Iterable[Any], num_classes: int, *, head: str | None = "head", batch_size: int = 256
) -> Tensor:
    """The mean feature ``[C, d]`` of each class of a labelled data set; see :func:`teacher_cache`."""
    cache = teacher_cache(
        teacher, data, keep=("class_means",), num_classes=num_classes, head=head, batch_size=batch_size
    )
    return cache.class_means()


class _Plan(NamedTuple):
    keep: frozenset[str]
    num_classes: int | None
    head: str | None
    top_k: int | None
    dtype: torch.dtype
    rows: int


class _Reader:
    """Batches of inputs and labels of one data set, and a hash of them that no size of batches changes.

    Attributes:
        rows: N, known after the first pass.
        last: the hash of the last whole pass.
    """

    def __init__(self, data: Data, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size
        self.rows, self.last = 0, ""

    def fingerprint(self) -> str:
        """The hash, by a pass without the teacher."""
        for _ in self:
            pass
        return self.last

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        streams, rows = [hashlib.sha256(), hashlib.sha256()], 0
        batches = self.data.split(self.batch_size) if isinstance(self.data, Tensor) else self.data
        for batch in batches:
            inputs, labels = _parts(batch)
            for stream, tensor in zip(streams, (inputs, labels)):
                if tensor is not None:
                    if not rows:
                        stream.update(f"{tensor.dtype} {tuple(tensor.shape[1:])}".encode())
                    stream.update(_bytes(tensor))
            rows += len(inputs)
            yield inputs, labels
        if not rows:
            refuse("data", "at least one row", "none")
        self.rows, self.last = rows, _digest(str(rows), *(stream.hexdigest() for stream in streams))


def _parts(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Inputs and labels of a batch."""
    if isinstance(batch, (tuple, list)) and batch:
        inputs, labels = batch[0], batch[1] if len(batch) > 1 else None
    else:
        inputs, labels = batch, None
    if not isinstance(inputs, Tensor) or not inputs.ndim:
        refuse_type("data", "batches of tensors [B, ...], or of tuples that begin with them", inputs)
    if labels is not None:
        check_tensor("labels", labels)
        if len(labels) != len(inputs):
            refuse("labels", f"{len(inputs)} rows, as inputs", labels)
    return inputs, labels


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def _fingerprint(teacher: nn.Module) -> str:
    """A hash of parameters, buffers and the printed form, which tells activations and strides."""
    stream = hashlib.sha256(f"{type(teacher).__module__}.{type(teacher).__qualname__}\n{teacher!r}".encode())
    for name, tensor in (*teacher.named_parameters(), *teacher.named_buffers()):
        stream.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        stream.update(_bytes(tensor))
    return stream.hexdigest()


def _compute(
    teacher: nn.Module, reader: _Reader, plan: _Plan, folder: Path | None
) -> tuple[dict[str, np.ndarray], int]:
    """Arrays of a whole pass, in memory or in the files of a folder, and the number of classes."""
    device = next((t.device for t in (*teacher.parameters(), *teacher.buffers())), torch.device("cpu"))
    sink = _Sink(plan, folder)
    with evaluated(teacher), torch.no_grad(), _heard(teacher, plan.head) as heard:
        start = 0
        for inputs, labels in reader:
            if start + len(inputs) > plan.rows:
                refuse("data", f"{plan.rows} rows at each pass", "more at the second pass")
            outputs = teacher(inputs.to(device))
            if not isinstance(outputs, Tensor):
                refuse_type("teacher", "a module that gives a tensor", outputs)
            if outputs.shape[:1] != inputs.shape[:1]:
                refuse("teacher", f"outputs of {len(inputs)} rows, as inputs", outputs)
            features = None
            if plan.keep != {"logits"}:
                features = widen(outputs if plan.head is None else heard())
                if features.ndim < 2 or len(features) != len(inputs):
                    refuse("head", f"features [{len(inputs)}, ...], a row an input", features)
                features = features.flatten(1)
            sink.take(start, outputs, features, labels)
            start += len(inputs)
    return sink.arrays(), sink.classes


@contextmanager
def _heard(teacher: nn.Module, head: str | None) -> Iterator[Callable[[], Tensor]]:
    """What goes into a submodule in the present pass."""
    latest: list[Tensor] = []

    def hear(module: nn.Module, args: tuple[Any, ...]) -> None:
        latest[:] = args[:1]

    def get() -> Tensor:
        if not latest:
            refuse("head", "a submodule that the teacher calls with features", head)
        return latest.pop()

    named = dict(teacher.named_modules())
    handle = named[head].register_forward_pre_hook(hear) if head in named else None
    try:
        yield get
    finally:
        if handle is not None:
            handle.remove()


class _Sink:
    """Takes batches of what a teacher says and writes them where they belong."""

    def __init__(self, plan: _Plan, folder: Path | None) -> None:
        self.plan, self.folder = plan, folder
        self.classes = plan.num_classes or 0
        self._arrays: dict[str, np.ndarray] = {}
        self._sums: Tensor | None = None
        self._counts = torch.zeros(self.classes, dtype=torch.int64)

    def take(self, start: int, outputs: Tensor, features: Tensor | None, labels: Tensor | None) -> None:
        """The rows of a batch from ``start`` on."""
        if self.plan.head is not None and ("logits" in self.plan.keep or self.plan.num_classes is not None):
            self._check_classes(outputs)
        if "logits" in self.plan.keep:
            self._take_logits(start, widen(outputs).cpu())
        if features is not None and "features" in self.plan.keep:
            self._put("features", start, features.cpu())
        if features is not None and "class_means" in self.plan.keep:
            self._take_means(features.cpu(), labels)

    def _check_classes(self, outputs: Tensor) -> None:
        check_tensor("teacher", outputs, ndim=2, floating=True)
        if self.classes and outputs.shape[1] != self.classes:
            refuse("teacher", f"logits of {self.classes} classes, as the student has", outputs)
        self.classes = outputs.shape[1]

    def _take_logits(self, start: int, logits: Tensor) -> None:
        k = self.plan.top_k
        if k is None or k >= self.classes:
            self._put("logits", start, logits)
            return
        values, places = logits.topk(k, dim=1)
        others = logits.scatter(1, places, -math.inf)
        self._put("logits", start, values)
        self._put("classes", start, places.to(torch.int32), np.int32)
        self._put("rest", start, others.logsumexp(1, keepdim=True) - math.log(self.classes - k))

    def _take_means(self, features: Tensor, labels: Tensor | None) -> None:
        if labels is None:
            refuse("data", "batches of inputs and labels, for class means", "inputs alone")
        check_tensor("labels", labels, ndim=1, floating=False)
        check_range("labels", labels.cpu(), 0, self.classes - 1)
        if self._sums is None:
            self._sums = torch.zeros(self.classes, features.shape[1], dtype=torch.float64)
            self._counts = torch.zeros(self.classes, dtype=torch.int64)
        self._sums.index_add_(0, labels.cpu().long(), features.double())
        self._counts += torch.bincount(labels.cpu().long(), minlength=self.classes)

    def _put(self, name: str, start: int, rows: Tensor, kind: Any = None) -> None:
        if kind is None:
            kind = np.float16 if self.plan.dtype == torch.float16 else np.float32
        if name not in self._arrays:
            shape = (self.plan.rows, *rows.shape[1:])
            if self.folder is None:
                self._arrays[name] = np.empty(shape, kind)
            else:
                file = self.folder / f"{name}.npy"
                self._arrays[name] = np.lib.format.open_memmap(file, "w+", kind, shape)
        values = rows.numpy()
        with np.errstate(over="ignore"):
            stored = values.astype(kind)
        if kind is np.float16 and bool((np.isinf(stored) & np.isfinite(values)).any()):
            refuse("dtype", f"torch.float32, for {name} beyond 65504", self.plan.dtype)
        self._arrays[name][start : start + len(stored)] = stored

    def arrays(self) -> dict[str, np.ndarray]:
        """All of them, whole."""
        if self._sums is not None:
            absent = torch.nonzero(self._counts == 0).flatten().tolist()
            if absent:
                refuse("labels", f"rows of each of {self.classes} classes", f"none of {absent}")
            means = (self._sums / self._counts.unsqueeze(1)).float().numpy()
            self._arrays["class_means"] = means
            if self.folder is not None:
                np.save(self.folder / "class_means.npy", means, allow_pickle=False)
        return self._arrays


@contextmanager
def _unfinished(place: Path | None) -> Iterator[Path | None]:
    """A folder beside the place that is gone afterwards; what killed runs left a day ago is cleared away."""
    if place is None:
        yield None
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f"{_UNFINISHED}*"):
        with suppress(FileNotFoundError):  # another process may clear it away
            if time.time() - left.stat().st_mtime > _DAY:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=place.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _finish(arrays: dict[str, np.ndarray], classes: int, unfinished: Path, place: Path) -> None:
    """Bring whole files to their place, unless another process was first."""
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    np.save(unfinished / "num_classes.npy", np.array(classes), allow_pickle=False)
    try:
        os.rename(unfinished, place)
    except OSError:
        if not place.is_dir():
            raise


def _read(place: Path, digest: str, rows: int, num_classes: int | None) -> TeacherCache:
    """What lies in a folder, mapped into memory."""
    arrays: dict[str, np.ndarray] = {}
    try:
        classes = int(np.load(place / "num_classes.npy", allow_pickle=False))
        for file in sorted(place.glob("*.npy")):
            if file.stem != "num_classes":
                arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise InputError(f"teacher cache {str(place)!r}: cannot be read: {error}") from error
    if num_classes is not None and classes != num_classes:
        raise InputError(f"teacher cache {str(place)!r}: expected {num_classes} classes, got {classes}")
    for name, array in arrays.items():
        wanted = classes if name == "class_means" else rows
        if array.ndim != 2 or len(array) != wanted or array.dtype.kind != ("i" if name == "classes" else "f"):
            raise InputError(f"teacher cache {str(place)!r}: expected {wanted} rows of {name}, got {array.shape}")
    return TeacherCache(arrays, classes, digest, fresh=False)
