"""From rows of the data to tensors of a network: tables by their preprocessor, images by their scaler."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...core.stored import refuse_stored
from .images import Images, ImageScaler
from .preprocessor import Preprocessor
from .table import Table
from .texts import Texts

Data = Table | Images | Texts


def class_counts(data: Data) -> list[int]:
    """Rows of each class, positives of each label; empty for numbers."""
    if data.task == "multilabel":
        return [int(n) for n in data.target.sum(0)]
    return (
        np.bincount(data.target, minlength=len(data.classes)).tolist() if data.task in ("binary", "multiclass") else []
    )


def shape_text(data: Data) -> str:
    """What one row is, for people.

    >>> from steepest.comparison.read import load_table
    >>> shape_text(load_table("iris"))
    '4 features'
    """
    if isinstance(data, Texts):
        return "prompts and answers" if data.answers else f"windows of {data.longest[0]} characters"
    if isinstance(data, Images):
        return " x ".join(map(str, data.pixels.shape[1:])) + " pixels"
    return f"{data.frame.shape[1]} features"


def fit_inputs(data: Data, rows: np.ndarray) -> Preprocessor | ImageScaler:
    """The preparation of inputs, learnt on ``rows`` alone."""
    if isinstance(data, Images):
        return ImageScaler().fit(data.pixels[rows])
    assert isinstance(data, Table)
    return Preprocessor(data.types, missing=data.options.missing).fit(data.frame.iloc[rows])


def transform(prepared: Preprocessor | ImageScaler, data: Data, rows: np.ndarray | None = None) -> Tensor:
    """Float32 inputs of ``rows`` (None: all): ``[N, features]`` or ``[N, C, H, W]``."""
    if isinstance(prepared, ImageScaler):
        assert isinstance(data, Images)
        pixels = data.pixels if rows is None else data.pixels[rows]
        return torch.from_numpy(np.ascontiguousarray(prepared.transform(pixels)))
    assert isinstance(data, Table)
    frame = data.frame if rows is None else data.frame.iloc[rows]
    return torch.as_tensor(prepared.transform(frame), dtype=torch.float32)


def restore(values: object, where: str = "preprocessing") -> Preprocessor | ImageScaler:
    """What ``to_json`` of either gave; ``where`` it stood, for errors.

    Raises:
        InputError: neither gave it.
    """
    if not isinstance(values, dict):
        refuse_stored(where, "fields numeric, text or mean, std", values)
    return ImageScaler.from_json(values, where) if "std" in values else Preprocessor.from_json(values, where)
