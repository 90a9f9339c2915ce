"""From texts to tokens and back: the characters of a training part, or the tokens of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from ....core.stored import Listed, Record, Text, refuse_stored
from ...errors import InputError
from .text_set import Texts

IGNORED = -100
"""The label of tokens that are not scored."""
MOST_CHARACTERS, FEWEST = 1000, 2
"""Characters that a vocabulary holds, the commonest, and how often each occurs in the training part at least."""
UNKNOWN = "\ufffd"
STORED = Record({"characters": Listed(Text(), least=1, most=MOST_CHARACTERS)})
"""What :meth:`Characters.to_json` gives."""


class Vocabulary(Protocol):
    """Tokens by number."""

    end: int
    """The token that ends an answer and fills rows."""
    unknown: int | None
    """The token of whatever is in no vocabulary, where one stands for all of it."""

    @property
    def words(self) -> Sequence[str]:
        """What each token stands for."""

    def tokens(self, text: str) -> list[int]:
        """Of a text."""

    def text(self, tokens: Sequence[int]) -> str:
        """Of tokens, up to the first end."""


class Characters:
    """Characters as tokens: 0 ends an answer and fills rows, 1 is any character that is not among them.

    >>> words = Characters.of(["abab", "b!"])
    >>> words.words, words.tokens("ab!"), words.text([2, 3, 0, 2])
    (('', '\ufffd', 'a', 'b'), [2, 3, 1], 'ab')
    """

    end = 0
    unknown = 1

    def __init__(self, characters: Sequence[str]) -> None:
        self.words = ("", UNKNOWN, *characters)
        self._number = {word: place for place, word in enumerate(self.words) if place > 1}

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Those of a training part that occur twice at least; the others are what the model knows of unknown ones."""
        counts = Counter(character for text in texts for character in text)
        common = [character for character, times in counts.most_common(MOST_CHARACTERS) if times >= FEWEST]
        if not common:
            common = sorted(counts)[:MOST_CHARACTERS]
        return cls(sorted(common))

    def tokens(self, text: str) -> list[int]:
        """Of each character."""
        return [self._number.get(character, 1) for character in text]

    def text(self, tokens: Sequence[int]) -> str:
        """Up to the first end."""
        row = [*tokens]
        return "".join(self.words[token] for token in (row[: row.index(0)] if 0 in row else row))

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``json.dumps``."""
        return {"characters": list(self.words[2:])}

    @classmethod
    def from_json(cls, values: object, where: str) -> Self:
        """What :meth:`to_json` gave.

        Raises:
            InputError: it is something else; in one line that says where.
        """
        STORED.check(values, where)
        assert isinstance(values, dict)
        characters = values["characters"]
        if len(set(characters)) < len(characters) or any(len(character) != 1 for character in characters):
            refuse_stored(f"{where}.characters", "characters, each once", characters)
        return cls(characters)


class ModelTokens:
    """The tokens of a Transformers model, by the tokenizer that lies in its folder.

    Args:
        folder: of the model.
    """

    unknown = None

    def __init__(self, folder: str | Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise InputError(
                f"--model {str(folder)!r}: needs transformers; pip install 'steepest[transformers]'"
            ) from error
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever lies there
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"--model {str(folder)!r}: no tokenizer that can be read: {reason}") from error
        if self.tokenizer.eos_token_id is None:
            raise InputError(f"--model {str(folder)!r}: its tokenizer has no token that ends a text (eos_token)")
        self.end = int(self.tokenizer.eos_token_id)
        self._words: tuple[str, ...] | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """As the tokenizer writes them."""
        if self._words is None:
            self._words = tuple(map(str, self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))))
        return self._words

    def tokens(self, text: str) -> list[int]:
        """Without marks of begin and end."""
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def text(self, tokens: Sequence[int]) -> str:
        """Up to the first end."""
        row = [int(token) for token in tokens]
        row = row[: row.index(self.end)] if self.end in row else row
        return str(self.tokenizer.decode(row))


def encoded(
    vocabulary: Vocabulary, rows: Sequence[tuple[str, str]], *, answers: bool, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and aligned labels ``[N, T]`` of rows, filled up at the right.

    Args:
        vocabulary: of the tokens.
        rows: ``(prompt, answer)``, or ``("", window)``.
        answers: whether labels are those of answers and the end of each alone; else all of a window.
        most: tokens of a row: of a longer prompt the start goes, of a longer answer the end.

    >>> words = Characters("12+=")
    >>> encoded(words, [("1+1=", "2")], answers=True, most=8)[1].tolist()
    [[-100, -100, -100, 3, 0]]
    """
    tokens, labels = [], []
    for prompt, answer in rows:
        own = vocabulary.tokens(answer)
        if not answers:
            own = own[: most + 1]
            tokens.append(own[:-1])
            labels.append(own[1:])
            continue
        own = own[: most - 1]
        first = vocabulary.tokens(prompt)[-(most - len(own)) :] or [vocabulary.end]
        tokens.append(first + own)
        labels.append([IGNORED] * (len(first) - 1) + own + [vocabulary.end])
    longest = max([*map(len, tokens), 1])
    shape = len(rows), longest
    inputs, targets = np.full(shape, vocabulary.end, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    for place, (row, own) in enumerate(zip(tokens, labels)):
        inputs[place, : len(row)], targets[place, : len(own)] = row, own
    return inputs, targets


def prompts_of(texts: Texts, positions: np.ndarray) -> list[tuple[str, str]]:
    """What a model goes on from, and how the text goes on: prompt and answer, or the halves of a window."""
    rows = [texts.rows[place] for place in positions]
    return rows if texts.answers else [(text[: len(text) // 2], text[len(text) // 2 :]) for _, text in rows]
