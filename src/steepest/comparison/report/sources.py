"""Addresses of publications that a text names."""

from __future__ import annotations

import re

ARXIV = re.compile(r"\barXiv(?:: ?| )((?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?)(?![\w.]*\w)")


def cited(text: str) -> list[tuple[str, str]]:
    """The text in pieces, each with the address that it names; "" where it names none.

    >>> cited("arXiv:2006.14567; code a/b")
    [('arXiv:2006.14567', 'https://arxiv.org/abs/2006.14567'), ('; code a/b', '')]
    """
    pieces: list[tuple[str, str]] = []
    end = 0
    for number in ARXIV.finditer(text):
        pieces += [(text[end : number.start()], ""), (number[0], f"https://arxiv.org/abs/{number[1]}")]
        end = number.end()
    return [(words, address) for words, address in [*pieces, (text[end:], "")] if words]
