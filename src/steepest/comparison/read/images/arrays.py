"""From the arrays of a file to bytes ``[N, H, W, C]`` and labels of text."""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from ..types import labels
from ..wording import count, show
from .raw import size_of

CHANNELS = (1, 3, 4)
_DEPTHS = (10, 12, 14, 16)
_ROUNDING = 1e-3  # resampled images may pass 1 by a rounding error


def to_nhwc(array: np.ndarray, what: str) -> tuple[np.ndarray, str]:
    """``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` as ``[N, H, W, C]``, and the name of what came.

    Raises:
        InputError: for other dimensions, other than 1, 3 or 4 channels, no image, no pixel.
    """
    if array.ndim == 3:
        array, order = array[..., None], "NHW"
    elif array.ndim == 4 and array.shape[3] in CHANNELS:
        order = "NHWC"
    elif array.ndim == 4 and array.shape[1] in CHANNELS:
        array, order = array.transpose(0, 2, 3, 1), "NCHW"
    else:
        raise InputError(
            f"{what}: expected images N x H x W, N x H x W x C or N x C x H x W with C 1, 3 or 4, got shape "
            f"{size_of(array.shape) or 'of one number'}"
        )
    if 0 in array.shape:
        raise InputError(f"{what}: expected at least one image of at least one pixel, got shape {size_of(array.shape)}")
    return array, order


def to_bytes(arrays: list[np.ndarray], what: str) -> tuple[list[np.ndarray], str | None]:
    """Pixels of all parts as uint8, by one rule for all, and the line that says which rule.

    Bytes stay as they are; integers above 255 are of 10, 12, 14 or 16 bits, as few as hold the largest, and scaled;
    booleans become 0 and 255; floats in [0, 1] are times 255, floats in [0, 255] are rounded.

    Raises:
        InputError: for text, complex numbers, NaN or infinity, and numbers out of range.
    """
    kinds = {a.dtype.kind for a in arrays}
    if not kinds <= set("buif"):
        bad = next(a.dtype for a in arrays if a.dtype.kind not in "buif")
        raise InputError(f"{what}: expected pixels as numbers, got {bad}")
    if all(a.dtype == np.uint8 for a in arrays):
        return [np.ascontiguousarray(a) for a in arrays], None
    if kinds == {"b"}:
        return [a.astype(np.uint8) * np.uint8(255) for a in arrays], "pixels: booleans, as 0 and 255"
    low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    if not (np.isfinite(low) and np.isfinite(high)):  # min and max hand NaN on
        raise InputError(f"{what}: expected finite pixels, got NaN or infinity")
    if "f" not in kinds and low >= 0 and 255 < high < 1 << _DEPTHS[-1]:
        bits = next(bits for bits in _DEPTHS if high < 1 << bits)
        return [scaled(a, bits) for a in arrays], f"pixels: {bits} bits ({low:g} to {high:g}), scaled to 0..255"
    unit = "f" in kinds and high <= 1 + _ROUNDING
    if low < (-_ROUNDING if unit else 0) or high > 255:
        wanted = "in [0, 1] or [0, 255]" if "f" in kinds else "in 0..255, or of up to 16 bits"
        raise InputError(f"{what}: expected pixels {wanted}, got {low:g} to {high:g}")
    if "f" not in kinds:
        return [a.astype(np.uint8, order="C") for a in arrays], f"pixels: integers in 0..255 ({low:g} to {high:g})"
    scale = 255.0 if unit else 1.0
    out = [np.rint(np.clip(a * scale, 0, 255)).astype(np.uint8, order="C") for a in arrays]
    return out, "pixels: floats in [0, 1], times 255, rounded" if unit else "pixels: floats in [0, 255], rounded"


def scaled(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Pixels of so many bits as uint8, rounded.

    >>> scaled(np.array([0, 2048, 4095]), 12).tolist()
    [0, 128, 255]
    """
    return np.rint(pixels * (255.0 / ((1 << bits) - 1))).astype(np.uint8, order="C")


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Images ``[..., 4]`` of red, green, blue and opacity, laid over white: ``[..., 3]``.

    >>> over_white(np.array([[0, 0, 0, 0], [10, 20, 30, 255]], dtype=np.uint8)).tolist()
    [[255, 255, 255], [10, 20, 30]]
    """
    opacity = pixels[..., 3:] / 255
    return np.rint(pixels[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


def to_labels(array: np.ndarray, images: int, what: str) -> np.ndarray:
    """``[N]`` or ``[N, 1]`` integers, whole floats, booleans or text as text ``[N]``.

    Raises:
        InputError: for other shapes or kinds, another number than ``images``, fractions, empty text.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{what}: expected one label an image, got shape {size_of(array.shape) or 'of one number'}")
    if len(array) != images:
        raise InputError(f"{what}: expected {count(images, 'label')}, one for each image, got {len(array)}")
    kind = array.dtype.kind
    if kind == "f":
        bad = np.flatnonzero(~np.isfinite(array) | (array != np.floor(array)))
        if bad.size:
            raise InputError(f"{what}: expected whole numbers or text, got {array[bad[0]]:g} at position {bad[0] + 1}")
        return labels(array.astype(np.float64)).objects()
    if kind == "S":
        try:
            array, kind = np.char.decode(array, "utf-8"), "U"
        except UnicodeDecodeError:
            raise InputError(f"{what}: expected labels in UTF-8") from None
    if kind not in "buiU":
        raise InputError(f"{what}: expected labels that are integers or text, got {array.dtype}")
    out = np.empty(len(array), dtype=object)
    out[:] = [str(v).strip() for v in array.tolist()]
    empty = np.flatnonzero(out == "")
    if empty.size:
        raise InputError(f"{what}: {count(empty.size, 'label')} empty (first: position {show(empty[0] + 1)})")
    return out
