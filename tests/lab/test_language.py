"""The small language model of experiments: what it reads, learns and writes."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from steepest.lab.language import Vocabulary, batches, by_loss, characters, complete, fresh, sums, train, windows
from steepest.losses.language import TokenCrossEntropyLoss


def test_a_token_sees_none_after_it():
    model = fresh(0, 7, 6, width=8, smoke=True)
    tokens = torch.randint(7, (2, 6))
    changed = tokens.clone()
    changed[:, 3:] = 1 - (changed[:, 3:] > 0).long()
    assert torch.equal(model(tokens)[:, :3], model(changed)[:, :3])
    assert not torch.equal(model(tokens)[:, 3:], model(changed)[:, 3:])


def test_it_learns_an_answer_and_writes_it():
    words = Vocabulary("0123456789+=")
    pairs = [("1+2=", "3"), ("19+9=", "28"), ("7+7=", "14")]
    tokens, labels = words.rows(pairs)
    model = fresh(1, len(words), 9, width=16)
    step = by_loss(TokenCrossEntropyLoss())
    loss = step(model, tokens, labels)
    torch.testing.assert_close(loss, cross_entropy(model(tokens).flatten(0, 1), labels.flatten()))
    seen = []
    rows = batches(tokens, labels, 3, torch.Generator().manual_seed(0))
    train(model, rows, step, rate=1e-2, steps=60, watch=seen.append)
    assert seen == list(range(1, 61))
    answers = complete(model, *words.prompts([prompt for prompt, _ in pairs]), 3)
    assert [words.text(row) for row in answers.tolist()] == ["3", "28", "14"]


def test_draws_follow_the_temperature():
    model = fresh(2, 5, 8, width=8)
    prompts, lengths = torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    again = [
        complete(model, prompts, lengths, 4, temperature=1.0, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(again[0], again[1])
    alone = complete(model, prompts[1:, :1], lengths[1:], 4)
    assert torch.equal(complete(model, prompts, lengths, 4)[1:], alone), "what fills a row is not read"


def test_data():
    pairs = sums(5, np.random.default_rng(0))
    assert all(eval(prompt[:-1]) == int(answer) for prompt, answer in pairs)
    text, count = characters(smoke=True)
    assert count == 65
    tokens, labels = windows(text, 3, 4, torch.Generator().manual_seed(0))
    assert torch.equal(tokens[:, 1:], labels[:, :-1])
    whole, all_labels = Vocabulary("ab").rows([("a", "bb")], prompt_counts=True)
    assert (whole.tolist(), all_labels.tolist()) == ([[1, 2, 2]], [[2, 2, 0]])
