"""The language models that a comparison trains: a small one from the start, or one that lies in a folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.random import seed_all
from ...nn.language_model import LanguageModel
from ..errors import InputError
from ..names import TEXT_MODELS, check_model_folder
from ..read.texts import Texts
from ..read.texts.vocabulary import Characters, ModelTokens, Vocabulary

SMALL = TEXT_MODELS[1]
LONGEST = 512
"""Tokens of a row that a model of a folder reads at most."""
CLOSE = 1e-3
"""How far logits may be from hidden states times the head, of their largest."""


class TextModel:
    """The small model of characters: two blocks of width 64, trained from the start."""

    name = SMALL

    def vocabulary(self, rows: Sequence[tuple[str, str]]) -> Vocabulary:
        """What a training part teaches of the tokens."""
        return Characters.of([prompt + answer for prompt, answer in rows])

    def most(self, texts: Texts) -> int:
        """Tokens of a row at most."""
        if not texts.answers:
            return texts.longest[0] - 1
        return max(len(prompt) for prompt, _ in texts.rows) + texts.longest[1] + 1  # an answer to the longest prompt

    def answer(self, texts: Texts) -> int:
        """Tokens that an answer may have, with its end."""
        return texts.longest[1] + 1 if texts.answers else texts.longest[0] - texts.longest[0] // 2

    def build(self, vocabulary: Vocabulary, most: int, seed: int) -> nn.Module:
        """An untrained model."""
        with torch.random.fork_rng(devices=[]):
            seed_all(seed)
            return LanguageModel(len(vocabulary.words), most)


class PretrainedTextModel(TextModel):
    """A Transformers model in a folder, with its own tokens, trained on from where it is.

    Nothing is loaded from elsewhere, no code of the folder runs, and weights are safetensors.

    Args:
        folder: of configuration, weights and tokenizer.
    """

    def __init__(self, folder: str) -> None:
        check_model_folder(folder)
        self.name, self._tokens = folder, ModelTokens(folder)
        self._model: PretrainedModel | None = None

    def vocabulary(self, rows: Sequence[tuple[str, str]]) -> Vocabulary:
        return self._tokens

    def most(self, texts: Texts) -> int:
        from transformers import AutoConfig

        configuration = AutoConfig.from_pretrained(self.name, local_files_only=True, trust_remote_code=False)
        places = getattr(configuration, "max_position_embeddings", None) or getattr(configuration, "n_positions", None)
        return min(LONGEST, places or LONGEST)

    def answer(self, texts: Texts) -> int:
        ends = [text if texts.answers else text[len(text) // 2 :] for _, text in texts.rows]
        longest = max(ends, key=len)
        return min(len(self._tokens.tokens(longest)) + 4, LONGEST // 2)

    def build(self, vocabulary: Vocabulary, most: int, seed: int) -> nn.Module:
        if self._model is None:
            self._model = pretrained(self.name)
        return copy.deepcopy(self._model)


class PretrainedModel(nn.Module):
    """A Transformers model as hidden states and a head, so that logits need never be there as a whole.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.softcap: float | None = getattr(model.config, "final_logit_softcapping", None)

    @property
    def head(self) -> nn.Linear:
        """From hidden states to logits."""
        head: nn.Linear = self.model.get_output_embeddings()
        return head

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads, ``[B, T, D]``."""
        states: Tensor = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return states

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[B, T, V]``."""
        logits: Tensor = self.head(self.hidden(tokens))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the progress bars of transformers."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


def pretrained(folder: str | Path) -> PretrainedModel:
    """The model of a folder, in float32.

    Raises:
        InputError: transformers is not there, the folder holds no such model, or its logits are more than hidden states
            times a head.
    """
    name = repr(str(folder))
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError(f"--model {name}: needs transformers; pip install 'steepest[transformers]'") from error
    try:
        with no_bars():
            loaded = AutoModelForCausalLM.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
    except Exception as error:  # whatever lies there
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--model {name}: no causal language model that can be read: {reason}") from error
    model = PretrainedModel(loaded).eval()
    tokens = torch.arange(4).unsqueeze(0) % loaded.config.vocab_size
    with torch.no_grad():
        own, ours = loaded(input_ids=tokens).logits, model(tokens)
    if own.shape != ours.shape or float((own - ours).abs().max()) > CLOSE * max(1.0, float(own.abs().max())):
        raise InputError(
            f"--model {name}: its logits are no product of hidden states and a head, which losses here need"
        )
    return model


def find_text_model(spec: str) -> TextModel:
    """The model of a word or folder.

    Raises:
        InputError: there is none.
    """
    if spec in TEXT_MODELS:
        return TextModel()
    check_model_folder(spec)
    return _of_folder(spec, str(Path(spec).resolve()), hash_of_model(spec))


@cache
def _of_folder(spec: str, place: str, content: str) -> TextModel:
    """Read once, as long as the same lies in the same place."""
    return PretrainedTextModel(spec)


def hash_of_model(spec: str) -> str:
    """A hash of what lies in the folder of a model, so that other weights are another run; "" for a word."""
    if spec in TEXT_MODELS:
        return ""
    digest = hashlib.sha256()
    for file in sorted(
        path for path in Path(spec).iterdir() if path.suffix in (".json", ".safetensors", ".txt", ".model")
    ):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]
