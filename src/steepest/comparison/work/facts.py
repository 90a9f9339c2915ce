"""The facts of a run (its plan, settings, data, sentence), each checked as it is read; listing runs needs no more."""

from __future__ import annotations

from typing import Any

from ...core.stored import Anything, Flag, Listed, Named, Number, Record, Shape, Text, Whole, parse_json

KINDS = ("objective", "classical")
LOOK = Record({"number": Whole(low=1), "cells": Whole()})
"""The last look at a run: which it was, and the finished cells that it rested on."""
FACTS: dict[str, Shape] = {
    "levels": Listed(Text(), least=1),
    "course": Record(
        {
            "level": Text(),
            "objectives": Listed(Text(), least=1),
            "repeats": Whole(),
            "last": Listed(Text()),
            "learners": Listed(Text()),
            "budget": Number(low=0.0),
            "fixed": Flag(),
        }
    ),
    "ends_at": Number(),
    "answered": Number(low=0.0),
    "needed": Number(low=0.0),
    "late": Named(Number(low=0.0)),
    "left_out": Named(Record({"seconds": Number(low=0.0), "stopped": Flag()})),
    "winner_rows": Whole(),
    "settings": Named(Anything()),
    "data": Text(),
    "cells": Whole(),
    "command": Text(),
    "asked": Named(Anything()),
    "begun": Number(),
    "ended": Number(),
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


SAMPLES = Listed(Listed(Text(), least=3, most=3))
"""Rows of text: a prompt, how it goes on, and how the model goes on."""
CONFLICT = Record({"cosine": Listed(Listed(Number(-1.0, 1.0)), least=2), "share": Number(0.0, 1.0)})
"""Mean cosines between the gradients of the losses of several targets, and the share of steps with one below 0."""
