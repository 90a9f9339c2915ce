"""Command lines of the benchmarks: each option has a value that measures and a small one, under ``--quick``."""

from __future__ import annotations

import argparse
from typing import TypeVar

Value = TypeVar("Value", str, int, float, bool)


def read_options(doc: str, **choices: tuple[Value, Value]) -> argparse.Namespace:
    """The options of a benchmark, each ``name=(measuring, quick)``; an option that is given counts in both.

    Args:
        doc: the module's docstring, whose first line is the help.
        choices: numbers, texts, or flags (False).
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, (measuring, quick) in choices.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(measuring, bool):
            parser.add_argument(flag, action="store_true", default=None, help="always with --quick" if quick else None)
        else:
            shown = f"default {measuring}, with --quick {quick}".replace("%", "%%")
            parser.add_argument(flag, type=type(measuring), help=shown)
    parser.add_argument("--quick", action="store_true", help="seconds, on little; nothing is kept: does it run?")
    options = parser.parse_args()
    for name, (measuring, quick) in choices.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else measuring)
    return options
