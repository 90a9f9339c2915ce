"""One of several targets, as every stage knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Part:
    """One of several targets: its column, its own task, its classes (empty for numbers) and their dtype."""

    name: str
    task: str
    classes: tuple[str, ...] = ()
    dtype: str = "str"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """A part from its fields, as ``dataclasses.asdict`` gives them."""
        return cls(values["name"], values["task"], tuple(values["classes"]), values["dtype"])

    @property
    def width(self) -> int:
        """How many outputs it takes: one for numbers, C for classes."""
        return max(1, len(self.classes))
