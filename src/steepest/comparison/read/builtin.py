"""Tables that come with scikit-learn, by name, and one of lists that is generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

from ..request import LISTS

BUILTIN = ("breast_cancer", "diabetes", "digits", "iris", LISTS, "wine")


def load_builtin(name: str) -> pd.DataFrame:
    """A built-in table as a frame whose last column, ``target``, holds class names or numbers.

    >>> load_builtin("iris").shape
    (150, 5)
    """
    if name == LISTS:
        from .lists import generated_lists

        lists: pd.DataFrame = generated_lists()
        return lists
    import numpy as np
    from sklearn import datasets  # slow to import

    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    frame: pd.DataFrame = bunch.data.copy()
    target = bunch.target.to_numpy()
    labels = bunch.get("target_names")
    if labels is not None and not np.issubdtype(np.asarray(labels).dtype, np.number):
        target = np.asarray(labels).astype(object)[target]
    frame["target"] = target
    return frame
