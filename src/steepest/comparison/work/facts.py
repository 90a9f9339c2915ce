"""The facts of a run (its plan, settings, data, sentence), each checked as it is read; listing runs needs no more."""

from __future__ import annotations

from typing import Any

from ...core.stored import Anything, Listed, Named, Number, Record, Row, Shape, Text, Whole, Word, parse_json

KINDS = ("objective", "classical")
_PAIR = Row((Whole(), Whole()))
LOOK = Record({"number": Whole(low=1), "cells": Whole()})
"""The last look at a run: which it was, and the finished cells that it rested on."""
FACTS: dict[str, Shape] = {
    "plan": Listed(Row((Word(KINDS), Text(), Listed(_PAIR, least=1)))),
    "settings": Named(Anything()),
    "data": Text(),
    "cells": Whole(),
    "command": Text(),
    "seconds": Number(low=0.0),
    "sentence": Text(),
    "looks": LOOK,
}
"""Facts by key; others are any JSON."""


def read_fact(text: object, key: str, where: str) -> Any:
    """The value of a fact."""
    where = f"{where}: the fact {key!r}"
    Text().check(text, where)
    value = parse_json(str(text), where)
    FACTS.get(key, Anything()).check(value, where)
    return value
