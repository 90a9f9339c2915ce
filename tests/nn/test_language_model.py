"""The small language model: what it refuses."""

from __future__ import annotations

import pytest
import torch

from steepest.nn.language_model import LanguageModel, complete


def test_rows_beyond_the_context_are_refused():
    model = LanguageModel(5, 1, width=4, depth=1, heads=1)
    assert model(torch.zeros(2, 1, dtype=torch.int64)).shape == (2, 1, 5)
    with pytest.raises(ValueError, match="tokens: expected at most 1 in a row"):
        model(torch.zeros(2, 4, dtype=torch.int64))


def test_a_temperature_below_0_is_refused():
    model = LanguageModel(5, 4, width=4, depth=1, heads=1)
    with pytest.raises(ValueError, match="temperature: expected a number >= 0"):
        complete(model, torch.ones(1, 2, dtype=torch.int64), torch.tensor([2]), 2, temperature=-1.0)
