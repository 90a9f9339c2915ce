"""What a run tells those who join it: what was asked for and what the data are; nothing of it is imported unasked.

A member makes the comparison anew from there, by the way of any other call, and computes only where data, settings,
version and the user's own modules give the very ID of the run.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..core.lazy import late
from ..core.scalars import plain
from ..core.stored import Anything, Named
from .design.context import Context
from .design.resolve import resolve
from .errors import InputError
from .read.builtin import BUILTIN
from .read.given import read_data
from .read.images.source import idx_pair
from .read.options import read_options
from .read.texts import TEXTS_BUILT_IN
from .request import READING, Request
from .work.run import Run
from .work.store import Store

pd = late("pandas")

LARGEST_KEPT = 512 * 2**20
"""Bytes of a file that a database keeps; of a larger one each member needs a copy."""
SETTINGS = (
    "repeats",
    "folds",
    "trials",
    "epochs",
    "patience",
    "batch_size",
    "noise",
    "seed",
    "device",
    "metric",
    "model",
    "vary",
)
"""Fields of a request that are told as they were resolved."""
TOLD = (
    "target",
    "task",
    "group",
    "time",
    "weight",
    "query",
    "rare",
    "positive",
    "split",
    "size",
    "name",
    "augment",
    "prompt",
    "answer",
    "embedding",
)
"""Fields that are told as they were asked for."""
SOURCES = ("data", "y", "groups", "times", "sample_weight", "queries", "test")
"""Fields that may hold data."""


def tell(run: Run, store: Store, request: Request) -> None:
    """Write what others need to join: a database keeps the data too.

    Raises:
        InputError: data that were given as objects cannot be kept.
    """
    settings = run.context.settings
    held = request.store is not None
    if held and store.fact("asked") is not None:
        return
    asked: dict[str, Any] = {name: getattr(settings, name) for name in SETTINGS}
    asked |= {name: plain(getattr(request, name)) for name in TOLD}
    reading = {name: getattr(request, name) for name in READING}
    reading["types"] = dict(read_options(types=request.types).types) if request.types else None
    reading["missing"] = request.missing if isinstance(request.missing, str) else list(request.missing or ()) or None
    asked |= reading
    target, drop = request.target, request.drop
    asked["target"] = list(target) if isinstance(target, (list, tuple)) else plain(target)
    asked["drop"] = drop if isinstance(drop, str) else list(drop)
    asked["objectives"] = [settings.objective] if settings.objective else list(settings.objectives)
    asked["arms"] = list(settings.objectives) if settings.objective else "default"
    asked["classical"] = bool(settings.classical)
    paths: dict[str, str] = {}
    rows: list[tuple[str, str, str, bytes]] = []
    for field in SOURCES:
        value = getattr(request, field)
        if value is None:
            continue
        if not isinstance(value, (str, Path)):
            if held:
                rows.append((field, *_packed(field, value)))
            continue
        if str(value) in (*BUILTIN, *TEXTS_BUILT_IN):
            paths[field] = str(value)
            continue
        files = [Path(path) for path in idx_pair(str(value)) or (str(value),)]
        paths[field] = ":".join(str(path.resolve()) for path in files)
        if held and all(path.is_file() and path.stat().st_size <= LARGEST_KEPT for path in files):
            rows += [(f"{field}/{place}", "file", path.name, path.read_bytes()) for place, path in enumerate(files)]
    asked["paths"] = paths
    if rows:
        store.keep_data(rows)
    store.set_fact("asked", asked)
    if any(kind != "file" for _, kind, *_ in rows):
        try:
            join(run.folder.name, store, trust=True)
        except Exception as error:
            raise InputError(
                f"--store: these data do not come back from a database as they were ({error}); write them to a file"
            ) from error


def join(run: str, store: Store, *, trust: bool = False, data: str | Path | None = None) -> Context:
    """The comparison of a run, made from what its store says.

    Args:
        run: its ID.
        store: of it.
        trust: whether the user's own objectives, model and metric that it names may be imported.
        data: where the data are on this machine; None is where they were, or what the store keeps.

    Raises:
        InputError: nothing was begun, own parts are not trusted, or these are not the data, settings or version of it.
    """
    where = f"run {run}"
    asked = store.fact("asked")
    if asked is None:
        raise InputError(f"{where} was not begun by `steepest compare`")
    Named(Anything()).check(asked, where)
    names = asked.get("objectives")
    specs = [*(names if isinstance(names, list) else [names]), asked.get("metric"), asked.get("model")]
    own = sorted({str(spec) for spec in specs if ":" in str(spec)})
    if own and not trust:
        raise InputError(
            f"{where} names {own[0]!r}, which is not built in: its module would be imported, which runs it; if you "
            f"trust who began the run, say --trust"
        )
    values = {key: value for key, value in asked.items() if key != "paths"}
    if set(values) - {*SETTINGS, *TOLD, *READING, "drop", "objectives", "arms", "classical"}:
        raise InputError(f"{where}: what was asked for has fields that no request has")
    paths = asked.get("paths")
    sources: dict[str, Any] = dict(paths) if isinstance(paths, dict) else {}
    if set(sources) - set(SOURCES) or not all(isinstance(path, str) for path in sources.values()):
        raise InputError(f"{where}: {'paths'!r}: expected paths of {', '.join(SOURCES)}")
    with TemporaryDirectory(prefix="steepest-") as folder:
        sources |= _unpacked(store, Path(folder), where)
        if data is not None:
            sources["data"] = str(data)
        if "data" not in sources:
            raise InputError(f"{where}: its data were no file; keep such a run in a database (--store)")
        try:
            request = Request(**sources, **values)
            context, _ = resolve(request, *read_data(request))
        except TypeError as error:
            raise InputError(f"{where}: {error}") from error
    if Run(context, Path()).folder.name != run:
        raise InputError(
            f"{where} has other data, settings, own code, learners (the extra trees) or another version of steepest "
            "than are here: nothing is done"
        )
    return context


def _packed(field: str, value: Any) -> tuple[str, str, bytes]:
    """Kind, label and bytes of data that were given as objects."""
    buffer = io.BytesIO()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        np.save(buffer, value, allow_pickle=False)
        return "array", "", buffer.getvalue()
    if isinstance(value, pd.Series):
        label = "" if value.name is None else str(value.name)
        pd.DataFrame({"values": value}).to_parquet(buffer)
        return "series", label, buffer.getvalue()
    if isinstance(value, pd.DataFrame) and all(isinstance(column, str) for column in value.columns):
        value.to_parquet(buffer)
        return "frame", "", buffer.getvalue()
    raise InputError(
        f"--store: {field}: expected a file, a frame with names, or an array of numbers, got {type(value)}"
    )


def _read(kind: str, label: str, content: bytes) -> Any:
    """What :func:`_packed` packed."""
    if kind == "array":
        return np.load(io.BytesIO(content), allow_pickle=False)
    frame = pd.read_parquet(io.BytesIO(content))
    return frame if kind == "frame" else frame["values"].rename(label or None)


def _unpacked(store: Store, folder: Path, where: str) -> Mapping[str, Any]:
    """The data that a store keeps, by field; files are written into a folder."""
    sources: dict[str, Any] = {}
    files: dict[str, list[str]] = {}
    for key, kind, label, content in store.kept_data():
        field, _, place = key.partition("/")
        if field not in SOURCES:
            raise InputError(f"{where}: data of {field!r:.80}")
        if kind == "file":
            if label != Path(label).name or label in ("", ".", "..") or place not in ("0", "1"):
                raise InputError(f"{where}: {label!r:.80} is no name of a file")
            home = folder / field / place
            home.mkdir(parents=True, exist_ok=True)
            (home / label).write_bytes(content)
            files.setdefault(field, []).append(str(home / label))
        elif kind in ("array", "series", "frame"):
            try:
                sources[field] = _read(kind, label, content)
            except Exception as error:  # NumPy and Arrow have many
                raise InputError(f"{where}: {field}: damaged: {str(error)[:200]}") from error
        else:
            raise InputError(f"{where}: data of the kind {kind!r:.80}")
    return sources | {field: ":".join(paths) for field, paths in files.items()}
