"""Which kind of winner a folder holds, told by its facts alone: nothing slow is imported."""

from __future__ import annotations

from pathlib import Path

from ....core.stored import parse_json
from ...errors import InputError

FILE, KIND = "winner.json", "text"


def is_text_winner(folder: str | Path) -> bool:
    """Whether a folder, or its folder ``winner``, holds a language model."""
    return kind_of_winner(folder) == KIND


def kind_of_winner(folder: str | Path) -> str:
    """The kind of the winner that a folder, or its folder ``winner``, holds: its own word for it, else empty."""
    for place in (Path(folder), Path(folder) / "winner"):
        try:
            facts = parse_json((place / FILE).read_bytes(), FILE)
        except (InputError, OSError, ValueError):
            continue
        return str(facts.get("kind", "")) if isinstance(facts, dict) else ""
    return ""
