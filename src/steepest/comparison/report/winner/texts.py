"""The saved winner of a comparison of texts: a language model that goes on from prompts."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from ....core.lazy import late
from ....core.stored import Anything, Flag, Maybe, Named, Record, Text, Whole, Word, inside, read_json
from ...design.context import Context, TextSplit
from ...design.folds import Fold
from ...design.levels import prefix
from ...design.text_models import PretrainedModel, TextModel, no_bars, pretrained
from ...design.trials import seed_of
from ...errors import InputError
from ...own_parts import Trust
from ...read.texts import TEXTS_BUILT_IN
from ...read.texts.source import is_json_lines, open_text, read_text, rows_of_lines, sums
from ...read.texts.text_set import PROMPT, Texts
from ...read.texts.vocabulary import Characters, ModelTokens
from ...work.cells import member_of, recipe_of
from ...work.text_training import completions, trained_model
from ...work.training import train
from .bounded import Bounded
from .facts import FILE
from .files import SMALL, TENSORS, read_whole, said_by, winner_folder, write_whole

pd = late("pandas")

FORMAT = 1
KIND = "text"
MODEL = "model"
"""The folder of a Transformers model beside its facts."""
_COUNT = Whole(1, 1 << 20)
FACTS = Record(
    {
        "format": Word((FORMAT,)),
        "kind": Word((KIND,)),
        "objective": Text(),
        "hyper": Named(Anything()),
        "settings": Text(),
        "model": Text(),
        "answers": Flag(),
        "prompt": Text(),
        "most": _COUNT,
        "answer": _COUNT,
        "epochs": Whole(1, 100_000),
        "vocabulary": Maybe(Anything()),
        "weights": Text(),
    }
)
"""``winner.json`` of a language model."""


class TextWinner:
    """What a comparison of texts found best, trained on all rows.

    Load with :meth:`load`; ``predict(prompts)`` gives a frame with ``prompt`` and ``completion``.

    Args:
        facts: as in ``winner.json``, but the hash of the weights.
        model: with ``hidden`` and ``head``.
        words: its vocabulary, tokens of a row and of an answer at most.
    """

    predicted_columns = ("prompt", "completion")
    no_probabilities = "it goes on from texts"

    def __init__(self, facts: dict[str, Any], model: nn.Module, words: TextSplit) -> None:
        self.facts, self.model, self.words = facts, model.eval(), words
        self.warnings: list[str] = []

    @property
    def name(self) -> str:
        """Of the objective."""
        return str(self.facts["objective"])

    def save(self, folder: str | Path) -> None:
        """Write the weights, then ``winner.json`` with their hash, each in one step."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.model, PretrainedModel):
            shutil.rmtree(folder / MODEL, ignore_errors=True)
            with no_bars():
                self.model.model.save_pretrained(folder / MODEL)
            assert isinstance(self.words.vocabulary, ModelTokens)
            self.words.vocabulary.tokenizer.save_pretrained(folder / MODEL)
            digest = ""
        else:
            state = {name: tensor.detach().clone().contiguous() for name, tensor in self.model.state_dict().items()}
            digest = write_whole(folder / TENSORS, save(state))
        text = json.dumps({**self.facts, "weights": digest}, indent=1, allow_nan=False)
        write_whole(folder / FILE, text.encode())

    @classmethod
    def load(cls, folder: str | Path, *, trust: Trust = False) -> Self:
        """Read a winner's folder; nothing in it is taken unchecked, and no code of it runs.

        Args:
            folder: of the winner, or of the run that holds it.
            trust: as of :meth:`~steepest.comparison.Winner.load`; a language model needs none of anybody's code.

        Raises:
            InputError: there is none, or it is not whole.
        """
        folder = winner_folder(folder)
        facts = read_json(folder / FILE, "no saved winner")
        FACTS.check(facts, FILE)
        try:
            model, vocabulary = _pretrained(folder) if facts["vocabulary"] is None else _small(folder, facts)
        except Exception as error:  # whatever a file makes a model or a tokenizer raise
            raise InputError(f"the saved winner in {str(folder)!r} is not whole: {said_by(error)}") from error
        words = TextSplit(vocabulary, facts["most"], facts["answer"], facts["answers"], ())
        return cls(facts, model, words)

    def predict(self, prompts: Sequence[str] | Any) -> Any:
        """A frame with each prompt and how the model goes on from it, the likeliest token each time.

        Args:
            prompts: texts; or a frame with a column of them, named as in the data or ``prompt``.
        """
        index = None
        if isinstance(prompts, pd.DataFrame):
            names = [name for name in (self.facts["prompt"], PROMPT) if name in prompts.columns]
            if not names:
                raise InputError(f"the rows have no column {self.facts['prompt']!r}")
            index, prompts = prompts.index, prompts[names[0]].tolist()
        if isinstance(prompts, str):
            raise InputError("expected a list of prompts, got one text")
        if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
            raise InputError(f"expected a list of texts, got {wrong[0]!r:.80} among them")
        given = completions(self.model, self.words, list(prompts))
        return pd.DataFrame({"prompt": list(prompts), "completion": given}, index=index)

    def predict_file(self, path: str | Path, **reading: Any) -> Any:
        """:meth:`predict` for a file: JSON lines with prompts, or a text with a prompt a line.

        Args:
            path: of the file.
            **reading: encoding, where it is not UTF-8.
        """
        if str(path) in TEXTS_BUILT_IN:
            return self.predict([prompt for prompt, _ in sums()])
        open_text(Path(path))
        text, _ = read_text(Path(path), reading.get("encoding"))
        if is_json_lines(path):
            key = self.facts["prompt"]
            return self.predict([own for _, (own,) in rows_of_lines(text, Path(path).name, [key])])
        return self.predict([line for line in text.split("\n") if line])


def _pretrained(folder: Path) -> tuple[nn.Module, ModelTokens]:
    return pretrained(folder / MODEL), ModelTokens(folder / MODEL)


def _small(folder: Path, facts: dict[str, Any]) -> tuple[nn.Module, Characters]:
    """The small model, built within the memory that its tensors take."""
    vocabulary = Characters.from_json(facts["vocabulary"], inside(FILE, "vocabulary"))
    state = load(read_whole(folder, TENSORS, facts["weights"]))
    largest = max((tensor.numel() for tensor in state.values()), default=0)
    with Bounded(max(SMALL, largest)):
        model = TextModel().build(vocabulary, facts["most"], 0)
    model.load_state_dict(state)
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise InputError(f"{TENSORS} holds values that are not finite: its training diverged")
    return model, vocabulary


def fit_text_winner(
    context: Context,
    name: str,
    number: int,
    *,
    rows: int | None = None,
    ends_at: float = math.inf,
) -> TextWinner:
    """Train what inner validation picks on all rows, as long as in the comparison.

    Args:
        context: of the comparison, at the level of the cells that choose.
        name, number: the objective and its trial.
        rows: that it is trained on at most; None is as in the comparison.
        ends_at: when it has to be trained, by the system's clock.

    Raises:
        OutOfTime: it is not by then.
    """
    texts = context.table
    assert isinstance(texts, Texts)
    whole = Context(texts, context.settings)
    pair = (context.settings.repeats + 1, 0)
    positions = np.arange(len(texts.target))
    if context.capped or rows is not None:
        most = context.most_rows if context.capped else len(positions)
        seed = seed_of(context.settings.seed, *pair, "prefix")
        positions = prefix(positions, texts.target, most if rows is None else min(most, rows), seed)
    whole._folds = {pair: Fold(*pair, positions, positions[:1])}
    trial = whole.trials(name)[number]
    over = None if math.isinf(ends_at) else lambda: time.time() >= ends_at
    recipe = recipe_of(whole, whole.objective(name), over)
    final = member_of(whole, pair, -1, trial)
    with torch.random.fork_rng(devices=[]):
        train(recipe, [final])
    words = final.split.texts
    assert words is not None
    vocabulary = words.vocabulary
    facts = {
        "format": FORMAT,
        "kind": KIND,
        "objective": name,
        "hyper": trial.hyper,
        "settings": trial.describe(),
        "model": whole.settings.model,
        "answers": texts.answers,
        "prompt": texts.prompt,
        "most": words.most,
        "answer": words.answer,
        "epochs": whole.settings.epochs,
        "vocabulary": vocabulary.to_json() if isinstance(vocabulary, Characters) else None,
    }
    return TextWinner(facts, trained_model(recipe, final), replace(words, others=(), tests=()))
