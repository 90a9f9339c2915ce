"""First stage of a comparison, from a source to a typed table.

Comes in: a file (text, packed or not, Parquet, Excel), a frame, an array or a built-in name, and the caller's choices.
Goes out: a :class:`Table` (features, target, groups, times, weights, decisions, warnings), and a :class:`Preprocessor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.lazy import lazily

if TYPE_CHECKING:
    from .builtin import BUILTIN
    from .new_rows import load_like
    from .options import read_options
    from .preprocessor import Preprocessor
    from .table import Table, load_table, table_from_arrays, table_from_frame

_HOMES = {
    "BUILTIN": "builtin",
    "Preprocessor": "preprocessor",
    "Table": "table",
    "load_like": "new_rows",
    "load_table": "table",
    "read_options": "options",
    "table_from_arrays": "table",
    "table_from_frame": "table",
}
"""Each is imported when it is first asked for: what a command refuses by its options needs no pandas."""

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

__getattr__, __dir__ = lazily(__name__, _HOMES)
