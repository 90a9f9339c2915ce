"""First stage of a comparison, from a source to a typed table.

Comes in: a file (text, packed or not, Parquet, Excel), a frame, an array or a built-in name, and the caller's choices.
Goes out: a :class:`Table` (features, target, groups, times, weights, decisions, warnings), and a :class:`Preprocessor`.
"""

from .builtin import BUILTIN
from .new_rows import load_like
from .options import read_options
from .preprocessor import Preprocessor
from .table import Table, load_table, table_from_arrays, table_from_frame

__all__ = [
    "BUILTIN",
    "Preprocessor",
    "Table",
    "load_like",
    "load_table",
    "read_options",
    "table_from_arrays",
    "table_from_frame",
]
