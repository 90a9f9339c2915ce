"""Tables of a comparison: from files, arrays and built-in data to features, a target and what was decided."""

from .again import load_like, read_features
from .builtin import BUILTIN
from .preprocess import Preprocessor
from .table import Table, load_table, table_from_arrays, table_from_frame

__all__ = [
    "BUILTIN",
    "Preprocessor",
    "Table",
    "load_like",
    "load_table",
    "read_features",
    "table_from_arrays",
    "table_from_frame",
]
