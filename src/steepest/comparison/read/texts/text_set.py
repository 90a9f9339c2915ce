"""Texts ready for a comparison: rows, what may not be parted, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..wording import count, show
from .source import TEXTS_BUILT_IN, Pairs, is_json_lines, read_text, rows_of_lines, sums

WINDOW, LONG_WINDOW = 65, 512
"""Characters of a window of a text: for the small model, which reads characters, and for one with its own tokens."""
LONGEST = 512
"""Characters of a prompt with its answer that the small model reads."""
BLOCKS_A_FOLD = 10
"""A text is cut into so many blocks a fold; windows of a block stay together."""
PROMPT, ANSWER = "prompt", "answer"
"""Keys of JSON lines, unless others are named."""


@dataclass(frozen=True)
class Texts:
    """Rows of text and what was decided, as :class:`~steepest.comparison.read.Table` is for tables.

    Args:
        name: of the source.
        rows: ``(prompt, answer)`` of each; of a plain text ``("", window)``.
        answers: whether rows have prompts, and answers alone are scored.
        target: ``[N]`` float64: characters of the answer or window.
        target_name: what is scored.
        groups: ``[N]`` int64, rows that never straddle a split: equal prompts, or windows of a block of the text.
        longest: characters of the longest row, and of the longest answer.
        prompt: the key of prompts in JSON lines.
        decisions, warnings: a line each.
        sha256: of the bytes read.
    """

    name: str
    rows: tuple[tuple[str, str], ...]
    answers: bool
    target: np.ndarray
    target_name: str
    groups: np.ndarray
    longest: tuple[int, int]
    prompt: str
    decisions: tuple[str, ...]
    warnings: tuple[str, ...]
    sha256: str
    task: str = "text"
    classes: tuple[str, ...] = ()
    times: None = None
    weights: None = None


def load_texts(
    source: str | Path,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    encoding: str | None = None,
    folds: int = 3,
    tokens: bool = False,
) -> Texts:
    """Read a text, or prompts and answers.

    Args:
        source: a file of text; JSON lines (``.jsonl``, ``.ndjson``) with a prompt and an answer a line; or ``sums``.
        prompt, answer: keys of JSON lines; None is "prompt" and "answer". One that is named makes JSON lines of any
            file.
        encoding: of the file; None is UTF-8.
        folds: of the comparison.
        tokens: whether a model with a tokenizer of its own reads it: windows are longer, and rows may be.

    Raises:
        InputError: for whatever cannot be used, in one line; a bad line is named by its number.

    >>> texts = load_texts("sums")
    >>> len(texts.rows), texts.rows[0], texts.answers
    (3000, ('85+63=', '148'), True)
    """
    if str(source) in TEXTS_BUILT_IN:
        return _of_pairs(str(source), sums(), PROMPT, "built in: sums of two numbers below 100", folds, "", tokens)
    path = Path(source)
    text, digest = read_text(path, encoding)
    if not (is_json_lines(path) or prompt or answer):
        return _of_text(path.name, text, folds, digest, WINDOW if not tokens else LONG_WINDOW)
    keys = [prompt or PROMPT, answer or ANSWER]
    pairs = [(own[0], own[1]) for _, own in rows_of_lines(text, path.name, keys)]
    return _of_pairs(path.name, pairs, keys[0], f"JSON lines with {keys[0]} and {keys[1]}", folds, digest, tokens)


def _of_text(name: str, text: str, folds: int, digest: str, window: int) -> Texts:
    """Windows of equal length, none with a character of another, in blocks of neighbours."""
    number = len(text) // window
    least = 4 * folds
    if number < least:
        lines = count(text.count("\n") + (not text.endswith("\n")), "line")
        raise InputError(
            f"{show(name)} has {count(len(text), 'character')} in {lines}: expected {least * window} at least, {least} "
            f"windows of {window} for {folds} folds; a line a row, with prompt and answer, is a .jsonl file"
        )
    rows = tuple(("", text[i * window : (i + 1) * window]) for i in range(number))
    blocks = min(number, BLOCKS_A_FOLD * folds)
    decisions = [
        f"read: a text of {len(text):,} characters, {len(set(text))} of them different",
        f"rows: {number:,} windows of {window} characters, none of which share one; the end of {len(text) % window} is "
        "left out",
        f"splits: {blocks} blocks of neighbouring windows, each whole on one side",
    ]
    copied = number - len({window_text for _, window_text in rows})
    warned = [f"{count(copied, 'window')} repeat an earlier one: copies may fall on both sides of a split"]
    return Texts(
        name=name,
        rows=rows,
        answers=False,
        target=np.full(number, float(window)),
        target_name="the next symbol",
        groups=np.arange(number) * blocks // number,
        longest=(window, window),
        prompt=PROMPT,
        decisions=tuple(decisions),
        warnings=tuple(warned if copied else ()),
        sha256=digest,
    )


def _of_pairs(name: str, pairs: Pairs, prompt: str, what: str, folds: int, digest: str, tokens: bool) -> Texts:
    """Prompts and answers; equal prompts are one group."""
    warned = []
    if not tokens:
        short = [pair for pair in pairs if len(pair[0]) + len(pair[1]) <= LONGEST]
        if long := len(pairs) - len(short):
            warned.append(
                f"{count(long, 'row')} of over {LONGEST} characters left out: the small model reads no more; --model "
                "names a folder with a larger one"
            )
        pairs = short
    prompts = {text: place for place, text in enumerate(dict.fromkeys(text for text, _ in pairs))}
    least = 4 * folds
    if len(prompts) < least:
        raise InputError(
            f"{show(name)} has {count(len(prompts), 'different prompt')}: expected at least {least} for {folds} folds"
        )
    longest = max(len(text) + len(own) for text, own in pairs), max(len(own) for _, own in pairs)
    decisions = [
        f"read: {count(len(pairs), 'row')}, {what}",
        "loss: on answers alone, and on the end of each",
        f"splits: {count(len(prompts), 'different prompt')}; rows with the same prompt stay on one side",
    ]
    return Texts(
        name=name,
        rows=tuple(pairs),
        answers=True,
        target=np.array([len(own) + 1.0 for _, own in pairs]),
        target_name="the answer",
        groups=np.array([prompts[text] for text, _ in pairs], dtype=np.int64),
        longest=longest,
        prompt=prompt,
        decisions=tuple(decisions),
        warnings=tuple(warned),
        sha256=digest,
    )
