"""What the suites share: binding checks to a class without its exemptions, and running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Bound = list[tuple[str, Callable[[], None]]]


def bound(checks: Sequence[Callable[[Any], None]], cls: Any) -> Bound:
    """``(name, check)`` for every check that ``cls`` is not exempt from.

    Raises:
        ValueError: an exemption from a check that doesn't exist.
    """
    names = {check.__name__.removeprefix("check_") for check in checks}
    unknown = set(cls.exempt) - names
    if unknown:
        raise ValueError(f"exempt: expected names of checks, got {sorted(unknown)}")

    def bind(check: Callable[[Any], None]) -> Callable[[], None]:
        return lambda: check(cls)

    return [
        (name, bind(check)) for check in checks if (name := check.__name__.removeprefix("check_")) not in cls.exempt
    ]


def run_all(checks: Bound, cls: Any) -> None:
    """Run bound checks; the first failure names the class and the check."""
    for name, check in checks:
        try:
            check()
        except Exception as error:
            raise AssertionError(f"{cls.__name__}, {name}: {error}") from error
