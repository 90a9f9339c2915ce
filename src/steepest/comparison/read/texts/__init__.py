"""Texts of a comparison: from a file of text or of prompts and answers to rows, groups and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....core.lazy import lazily

if TYPE_CHECKING:
    from .source import TEXTS_BUILT_IN
    from .text_set import Texts, load_texts

_HOMES = {"TEXTS_BUILT_IN": "source", "Texts": "text_set", "load_texts": "text_set"}
__all__ = ["TEXTS_BUILT_IN", "Texts", "load_texts"]

__getattr__, __dir__ = lazily(__name__, _HOMES)
