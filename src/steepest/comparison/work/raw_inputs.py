"""What a retrieval does without any training: prepared inputs compared by their cosine."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...core.search import Space
from ..design.context import Split
from ..design.embeddings import RAW
from ..scores.outcome import Outcome
from ..scores.retrieval import ranked


class RawInputs:
    """Stands among classical learners; it learns nothing.

    >>> RawInputs().name
    'raw_inputs'
    """

    name = RAW
    search: ClassVar[dict[str, Space]] = {}

    def estimator(self) -> Any:
        """None."""
        return None


def ranked_inputs(split: Split) -> Outcome:
    """How the other rows of a split rank each other by their inputs."""
    return Outcome(ranked(split.other_inputs.flatten(1), np.asarray(split.other_target)))


def ranked_alike(inputs: np.ndarray | Tensor) -> Outcome:
    """The same of rows that are all of one class: what it takes."""
    rows = torch.as_tensor(inputs).flatten(1)
    return Outcome(ranked(rows, np.zeros(len(rows), dtype=np.int64)))
