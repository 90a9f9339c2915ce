"""Images from one file of arrays (NPZ) or two files of bytes (IDX)."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ...errors import InputError, nearest
from ..wording import count, listing, show
from .arrays import over_white, to_bytes, to_labels, to_nhwc
from .raw import RawImages, RawPart, size_of
from .source import read_bytes

POOLED = ("x", "y")
SPLIT = ("x_train", "y_train", "x_test", "y_test")
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_npz(path: Path) -> RawImages:
    """Arrays ``x``, ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test`` of an NPZ file; never unpickles.

    Raises:
        InputError: for a broken file, absent arrays, arrays of objects, pixels or labels that cannot be used.
    """
    data, name = read_bytes(path), show(path.name)
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        archive = None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{name} is not an NPZ file, or broken: expected what numpy.savez writes")
    with archive:
        there = {key.lower(): key for key in archive.files}
        wanted = SPLIT if not set(SPLIT).isdisjoint(there) and not set(POOLED) <= set(there) else POOLED
        if set(SPLIT) <= set(there):
            wanted = SPLIT
        absent = [key for key in wanted if key not in there]
        if absent:
            hint = nearest(absent[0], [k for k in archive.files if k.lower() not in wanted]) if len(absent) == 1 else ""
            raise InputError(
                f"{name} lacks {listing(absent)}: expected arrays x, y or x_train, y_train, x_test, y_test; "
                f"there are {listing(archive.files) or 'none'}{hint}"
            )
        arrays = {key: _array(archive, there[key], name) for key in wanted}
        spare = [key for key in archive.files if key.lower() not in wanted]
    images, orders = zip(*(to_nhwc(arrays[key], f"{name}, {key}") for key in wanted[::2]))
    if len({i.shape[1:] for i in images}) > 1:
        first, second = (size_of(i.shape[1:]) for i in images)
        raise InputError(f"{name}: expected images of one size, got {first} in x_train and {second} in x_test")
    pixels, line = to_bytes(list(images), f"{name}, {' and '.join(wanted[::2])}")
    clear = pixels[0].shape[3] == 4
    pixels = [over_white(p) for p in pixels] if clear else pixels
    parts = [RawPart(p, to_labels(arrays[key], len(p), f"{name}, {key}")) for p, key in zip(pixels, wanted[1::2])]
    decisions = [line] if line else []
    if clear:
        decisions.append("transparency: laid over white")
    if "NCHW" in orders:
        decisions.append("axes: channels came second, moved last")
    warnings = [f"{count(len(spare), 'further array')} not used: {listing(spare)}"] if spare else []
    test = parts[1] if len(parts) == 2 else None
    label = f"{name}, {wanted[1]}"
    return RawImages(path.name, parts[0], test, hashlib.sha256(data).hexdigest(), label, decisions, warnings)


def _array(archive: np.lib.npyio.NpzFile, key: str, name: str) -> np.ndarray:
    try:
        value = archive[key]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{name}, {key}: an array of Python objects; expected numbers or text (objects could run code)"
            ) from None
        raise InputError(f"{name}, {key}: broken or truncated") from None
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name}, {key}: not an array")
    return value


def read_idx(images: Path, labels: Path) -> RawImages:
    """A file of images and a file of labels in the IDX format, plain or gzipped.

    Raises:
        InputError: for files that are no IDX files or broken, wrong dimensions, different lengths.
    """
    bodies = [read_bytes(path) for path in (images, labels)]
    x, y = (_parse(body, path) for body, path in zip(bodies, (images, labels)))
    named = show(images.name)
    if x.ndim == 1 and y.ndim > 1:
        raise InputError(f"{named} holds labels and {show(labels.name)} images: expected images first, then labels")
    x, _ = to_nhwc(x, named)
    (pixels,), line = to_bytes([x], named)
    clear = pixels.shape[3] == 4
    labelled = RawPart(over_white(pixels) if clear else pixels, to_labels(y, len(pixels), show(labels.name)))
    sha256 = hashlib.sha256(b"".join(bodies)).hexdigest()
    decisions = [*([line] if line else []), *(["transparency: laid over white"] if clear else [])]
    return RawImages(images.name, labelled, None, sha256, show(labels.name), decisions)


def _parse(body: bytes, path: Path) -> np.ndarray:
    """Two zero bytes, a type, the number of dimensions; each as a big-endian uint32; then the numbers."""
    name = show(path.name)
    if body[:2] == b"\x1f\x8b":
        try:
            body = gzip.decompress(body)
        except (OSError, EOFError, zlib.error):
            raise InputError(f"{name} is a broken gzip file") from None
    if len(body) < 4 or body[:2] != b"\0\0" or body[2] not in IDX_TYPES or body[3] == 0:
        raise InputError(f"{name} is not an IDX file: its first bytes are {body[:4].hex(' ') or 'absent'}")
    dtype, start = np.dtype(IDX_TYPES[body[2]]), 4 + 4 * body[3]
    if len(body) < start:
        raise InputError(f"{name} is truncated inside its header")
    shape = tuple(int(n) for n in np.frombuffer(body, ">u4", body[3], 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(body) != expected:
        raise InputError(f"{name} says {size_of(shape)} numbers, which needs {expected} bytes: it has {len(body)}")
    array = np.frombuffer(body, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))
