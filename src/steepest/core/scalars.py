"""Python's numbers from numpy's: what a state or a file keeps is a plain ``int``, ``float`` or ``bool``."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """A numpy scalar as the Python number that it is, inside tuples, lists and dicts too; anything else as it came.

    >>> plain(np.float32(2)), plain((np.int64(4), np.bool_(True))), plain({"a": [np.float64(0.5)]})
    (2.0, (4, True), {'a': [0.5]})
    """
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if type(value) is dict:
        return {name: plain(item) for name, item in value.items()}
    return value


def is_number(value: object, *, integer: bool = False) -> bool:
    """Whether ``value`` is a number of Python or numpy (``integer``: a whole one); a bool is none.

    >>> is_number(np.int64(4), integer=True), is_number(np.float32(4), integer=True), is_number(True)
    (True, False, False)
    """
    if isinstance(value, int if integer else (int, float)):
        return not isinstance(value, bool)
    return isinstance(value, np.integer if integer else (np.integer, np.floating))


def is_flag(value: object) -> bool:
    """Whether ``value`` is True or False, Python's or numpy's.

    >>> is_flag(np.bool_(False)), is_flag(0)
    (True, False)
    """
    return isinstance(value, (bool, np.bool_))
