"""What a user of a command did wrong, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A file, column or option that cannot be used; the command prints it as one line and exits with 2.

    >>> print(InputError("a file\\n  that is none"))
    a file that is none
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))  # others' errors have many lines


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known word nearest to ``word``, or an empty string.

    >>> nearest("qualty", ["quality", "alcohol"])
    "; did you mean 'quality'?"
    >>> nearest("zzz", ["quality"])
    ''
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
