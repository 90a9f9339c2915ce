"""Losses of tokens in a comparison of texts: which there are, and what each is made of."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ...core.token_loss import TokenLoss
from ...losses.language.number_token_loss import number_token_values
from ..errors import InputError
from ..names import GROUPS, objective_words, text_homes, unknown_objective
from ..own_parts import Trust, imported
from ..read.texts.vocabulary import Vocabulary

NEAR = 2
"""Characters of this distance at most are neighbours."""


@dataclass(frozen=True)
class TextInfo:
    """What a loss of tokens may know: facts of the training split alone.

    Attributes:
        num_samples: rows of the training split; ``index`` runs over them.
        epochs, steps_per_epoch, seed: as in :class:`~steepest.core.objective.TaskInfo`.
        vocabulary: of the tokens.
        answers: whether rows are answers, and not windows of a text.
        tokens: ``[N, T]`` of the training split.
        model: that is trained, as it is before the first step.
        pretrained: whether it knows anything then.
    """

    num_samples: int
    epochs: int
    steps_per_epoch: int
    seed: int
    vocabulary: Vocabulary
    answers: bool
    tokens: Tensor
    pretrained: bool = False
    model: nn.Module | None = None
    task: str = "text"
    feature_dim: int = 1


def cost_embedding(info: TextInfo) -> Tensor:
    """A vector a token: the head's of a pretrained model, else which characters stand near it in the training part."""
    if info.pretrained and info.model is None:  # it is asked only whether there is a loss
        return torch.ones(1, 1).expand(len(info.vocabulary.words), 1)
    if info.model is not None and info.pretrained:
        weight: Tensor = info.model.head.weight  # type: ignore[union-attr, assignment]
        return weight.detach()
    return neighbours(info.tokens, len(info.vocabulary.words), info.vocabulary.end)


def neighbours(tokens: Tensor, size: int, end: int = -1) -> Tensor:
    """Positive pointwise mutual information of tokens ``[N, T]`` that stand near each other, ``[V, V]``.

    What follows the first end of a row fills it and does not count. A one in its own place is added to each row, so
    that none is zero.

    >>> neighbours(torch.tensor([[0, 1, 0, 1]]), 2).shape
    torch.Size([2, 2])
    """
    counts = torch.zeros(size, size, dtype=torch.float64)
    tokens = tokens.cpu()
    there = (tokens == end).cumsum(1) - (tokens == end).long() == 0
    for gap in range(1, NEAR + 1):
        first, second = tokens[:, :-gap][there[:, gap:]], tokens[:, gap:][there[:, gap:]]
        counts += torch.bincount(first * size + second, minlength=size * size).reshape(size, size)
    counts = counts + counts.T
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum().clamp_min(1.0)
    information = torch.where(counts > 0, torch.log(counts / expected.clamp_min(1e-300)), 0.0)
    return (information.clamp_min(0.0) + torch.eye(size)).float()


GIVEN: Mapping[str, Callable[[TextInfo], Any]] = MappingProxyType(
    {
        "num_samples": lambda info: info.num_samples,
        "values": lambda info: number_token_values(info.vocabulary.words),
        "cost_embedding": cost_embedding,
        "answer": lambda info: "sequence" if info.answers else "token",
    }
)
"""What a text can give the constructor of a loss, by the name of its argument."""
IN_STEPS = ("index",)
"""What it can give each step beside labels and head."""


def known_text_objectives() -> dict[str, type[TokenLoss]]:
    """Those of the catalogue by their words, the baseline first.

    >>> [name for name, cls in known_text_objectives().items() if cls.unit == "sequence"]
    ['direct_coverage', 'glow']
    """
    return {name: find_text_objective(name) for name in text_homes()}


def find_text_objective(name: str, *, trust: Trust = False) -> type[TokenLoss]:
    """The class of a word, or a user's own loss of tokens.

    Raises:
        InputError: unknown, own code that is not trusted, or no loss of tokens.
    """
    homes = text_homes()
    if name in homes:
        cls: type[TokenLoss] = getattr(importlib.import_module(f"steepest.{homes[name].module}"), homes[name].name)
        return cls
    if ":" not in name:
        raise unknown_objective(name, homes)
    own = imported("--objectives", name, trust=trust)
    if not (inspect.isclass(own) and issubclass(own, TokenLoss)):
        raise InputError(f"objective {name!r}: for texts expected a subclass of steepest.core.token_loss.TokenLoss")
    missing = [
        argument
        for argument, parameter in inspect.signature(own).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and argument not in GIVEN
    ]
    if missing:
        raise InputError(f"objective {name!r} needs {', '.join(missing)}; a text can give {', '.join(GIVEN)}")
    return own


def token_loss_of(cls: type[TokenLoss], info: TextInfo, hyper: Mapping[str, Any]) -> TokenLoss:
    """A loss for a training split, with these hyper-parameters."""
    names = inspect.signature(cls).parameters
    given = {name: of(info) for name, of in GIVEN.items() if name in names and name not in hyper}
    return cls(**given, **hyper)


def choose_text_objectives(
    asked: str | Sequence[str], info: TextInfo, *, trust: Trust = True
) -> tuple[list[str], list[str]]:
    """Words to run, the baseline first, and a line for each left out of a group word.

    Args:
        asked: "default", "all" (the same), or words; with commas or as a list.
        info: of the first training split: what cannot be made for it is left out.
        trust: whether own code may be imported.

    Raises:
        InputError: an unknown word, or one that cannot be used here.
    """
    known = text_homes()
    names, notes = [next(iter(known))], []
    for word in objective_words(asked):
        for name in known if word in GROUPS else [word]:
            cls = find_text_objective(name, trust=trust)
            try:
                token_loss_of(cls, info, {})
            except ValueError as error:
                if word not in GROUPS:
                    raise InputError(f"objective {name!r} cannot be used on this text: {error}") from error
                notes.append(f"left out {name}: {error}")
                continue
            names.append(name)
    return list(dict.fromkeys(names)), notes
