"""Train the language models of a comparison of texts, score them, and let them go on from prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.method import Method
from ...core.objective import Batch
from ...core.random import seed_all
from ...core.token_loss import TokenLoss
from ...descent import ArrayBatches, Descent, Hook
from ...nn.language_model import complete
from ..design.context import TextSplit
from ..design.text_models import TextModel
from ..design.text_objectives import IN_STEPS, token_loss_of
from ..design.trials import PEAK
from ..metrics.texts import TextOutcome
from ..read.texts.vocabulary import IGNORED
from .training import Member, Recipe, clocks

ROWS, LOGITS = 64, 1 << 22
"""Rows that are scored at a time, and how many logits are there then."""
SAMPLES, SAMPLE = 3, 48
"""Rows of a test part that a report shows, and tokens of each at most."""


class TokenStep(Method):
    """A loss of tokens from hidden states and head, so that logits are never there as a whole."""

    name = "token_step"

    def loss(self, model: Any, batch: Batch, objective: Any) -> Tensor:
        """Of a batch of tokens and labels ``[B, T]``."""
        further = {name: batch.index for name in IN_STEPS if name in objective.further}
        loss: Tensor = objective(
            model.hidden(batch.inputs),
            batch.target,
            model.head.weight,
            bias=model.head.bias,
            softcap=getattr(model, "softcap", None),
            **further,
        )
        return loss


class _Looks(Hook):
    """Scores the other rows after each epoch, and the test part at the end; what counts is the last epoch."""

    def __init__(self, recipe: Recipe, member: Member, look: Callable[..., TextOutcome]) -> None:
        self.recipe, self.member, self.look = recipe, member, look

    def on_epoch_end(self, descent: Descent) -> None:
        member, split = self.member, self.member.split
        assert split.texts is not None
        member.outputs = self.look(split.other_inputs, split.texts.others)
        member.score, member.epochs = self.recipe.metric(split.other_target, member.outputs), descent.epoch
        member.curve.append(member.score)

    def on_end(self, descent: Descent) -> None:
        member, split = self.member, self.member.split
        model = descent.model
        member.state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        if split.test_inputs is None:
            return
        assert split.texts is not None
        member.test_outputs = self.look(split.test_inputs, split.texts.tests)
        own = split.texts.tests[:SAMPLES]
        words = replace(split.texts, answer=min(SAMPLE, split.texts.answer))
        answers = completions(model, words, [prompt for prompt, _ in own])
        member.samples = [[prompt, wanted, given] for (prompt, wanted), given in zip(own, answers)]


def train_texts(recipe: Recipe, members: Sequence[Member]) -> dict[str, float]:
    """Train all members, in place, one after another; gives seconds and epochs spent."""
    started = time.perf_counter()
    for member in members:
        _train(recipe, member)
    return {"seconds": time.perf_counter() - started, "epochs": float(sum(len(m.curve) for m in members))}


def _train(recipe: Recipe, member: Member) -> None:
    split, text_model = member.split, recipe.backbone
    assert isinstance(text_model, TextModel)
    assert split.texts is not None
    words = split.texts
    model = text_model.build(words.vocabulary, words.most, member.seeds["backbone"]).to(recipe.device)
    seed_all(member.seeds["objective"])
    cls: Any = recipe.objective
    loss: TokenLoss = token_loss_of(cls, replace(member.info, model=model), member.trial.hyper).to(recipe.device)
    batch, steps = recipe.steps(len(split.inputs))
    batches = ArrayBatches(
        split.inputs.to(recipe.device),
        split.target.to(recipe.device),
        batch_size=batch,
        steps=steps,
        seed=member.seeds["order"],
    )
    trained = [*model.parameters(), *loss.parameters()]
    optimizer = recipe.arm.build(trained, member.trial)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK * member.trial.lr, total_steps=steps * recipe.epochs, cycle_momentum=False
    )

    def look(rows: Tensor, texts: Sequence[tuple[str, str]]) -> TextOutcome:
        model.eval()
        outcome = scored(model, rows.to(recipe.device), words.vocabulary.unknown)
        if ":" in recipe.metric.name:  # a user's own, which reads texts
            given = completions(model, words, [prompt for prompt, _ in texts])
            outcome = replace(outcome, wanted=tuple(wanted for _, wanted in texts), given=tuple(given))
        model.train()
        return outcome

    member.objective = loss
    Descent(
        model,
        loss,
        batches,
        method=TokenStep(),
        optimizer=optimizer,
        schedule=schedule,
        hooks=[_Looks(recipe, member, look), *clocks(recipe)],
        device=recipe.device,
    ).fit(recipe.epochs)


@torch.no_grad()
def scored(model: Any, rows: Tensor, unknown: int | None = None) -> TextOutcome:
    """Log-likelihoods of rows of tokens and labels ``[M, 2, T]``, and how many tokens were the likeliest.

    Args:
        model: with ``hidden`` and ``head``.
        rows: tokens and aligned labels.
        unknown: the token that stands for all that are not in the vocabulary: nobody gets it right.
    """
    softcap = getattr(model, "softcap", None)
    sums = []
    for tokens, labels in (chunk.unbind(1) for chunk in rows.split(ROWS)):
        valid = labels != IGNORED
        hidden, own = model.hidden(tokens)[valid], labels[valid]
        at_a_time = max(1, LOGITS // model.head.weight.shape[0])
        log_p, right = [], []
        for states, targets in zip(hidden.split(at_a_time), own.split(at_a_time)):
            logits = model.head(states).float()
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            log_p.append(logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1).double())
            right.append(((logits.argmax(-1) == targets) & (targets != (-1 if unknown is None else unknown))).double())
        each_token = hidden.new_zeros((2, *labels.shape), dtype=torch.float64)
        if log_p:
            each_token[0][valid], each_token[1][valid] = torch.cat(log_p), torch.cat(right)
        sums.append(each_token.sum(-1).T)
    values = torch.cat(sums) if sums else torch.zeros(0, 2, dtype=torch.float64)
    return TextOutcome(values.cpu().numpy())


def completions(model: Any, words: TextSplit, prompts: Sequence[str]) -> list[str]:
    """How a model goes on from prompts, the likeliest token each time.

    Args:
        model: with ``hidden`` and ``head``.
        words: its vocabulary, tokens of a row and of an answer at most.
        prompts: of which the start goes where they are too long.
    """
    vocabulary, room = words.vocabulary, max(1, words.most - words.answer + 1)  # the last token is read by nobody
    device = next(iter(model.parameters())).device
    texts: list[str] = []
    was = model.training
    model.eval()
    for start in range(0, len(prompts), ROWS):
        rows = [vocabulary.tokens(prompt)[-room:] or [vocabulary.end] for prompt in prompts[start : start + ROWS]]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        filled = np.full((len(rows), int(max(map(len, rows)))), vocabulary.end, dtype=np.int64)
        for place, row in enumerate(rows):
            filled[place, : len(row)] = row
        steps = min(words.answer, max(1, words.most - filled.shape[1] + 1))
        answers = complete(model, torch.as_tensor(filled, device=device), lengths, steps, end=vocabulary.end)
        texts += [vocabulary.text(answer) for answer in answers.tolist()]
    model.train(was)
    return texts


def trained_model(recipe: Recipe, member: Member) -> nn.Module:
    """The model of a finished training, made anew with its weights."""
    assert isinstance(recipe.backbone, TextModel)
    assert member.split.texts is not None
    assert member.state is not None
    model = recipe.backbone.build(member.split.texts.vocabulary, member.split.texts.most, 0)
    model.load_state_dict(member.state)
    return model.eval()
