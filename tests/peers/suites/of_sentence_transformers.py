"""Sentence Transformers' tests of losses of lists: steepest over scores of a small encoder that stands for theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steepest.losses.ranking import lambda_loss, listmle_loss, listnet_loss, ranknet_loss

FOLDER = "sentence-transformers"
FILES = ("tests/cross_encoder/losses/test_misc.py",)
SUPPORT: tuple[str, ...] = ()
ON_CPU: tuple[tuple[str, str], ...] = ()
LEFT_OUT = {
    r"PListMLELoss": "the position-aware ListMLE, which is not here",
    r"ADRMSELoss": "ADR-MSE, which is not here",
}
EXPLAINED = {r"test_listwise_loss_is_padding_invariant\[True": "the order in which documents come: here grades say it"}
NOT_RUN = {
    "tests/sentence_transformer/losses/test_cmnrl.py": "gradient caching of their own models, which is not here",
    "tests/sentence_transformer/losses/test_gradcache.py": "gradient caching of their own models, which is not here",
    "tests/base/samplers/test_no_duplicates_batch_sampler.py": "columns of texts without duplicates, which is not here",
    "tests/base/samplers/test_group_by_label_batch_sampler.py": "batches of texts of few labels, which is not here",
    "tests/base/samplers/test_round_robin_batch_sampler.py": "turns of several data sets, which is not here",
}
CONFTEST = """
import pytest
from sentence_transformers.cross_encoder import CrossEncoder


@pytest.fixture
def reranker_bert_tiny_model_v54():
    return CrossEncoder()
"""


def after(to: Path) -> None:
    """A fixture for the model that theirs downloads."""
    (to / "conftest.py").write_text(CONFTEST, encoding="utf-8")


class CrossEncoder(nn.Module):
    """Scores of pairs of texts, from counts of their characters."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(256, 8), nn.Tanh(), nn.Linear(8, 1))
        self.device = torch.device("cpu")

    def scores(self, query: str, documents: list[str]) -> Tensor:
        """``[n]`` for the documents of a query."""
        counts = torch.stack(
            [torch.bincount(torch.tensor(list((query + text).encode())), minlength=256) for text in documents]
        )
        return self.model(counts.to(next(self.model.parameters()).dtype)).squeeze(-1)


def _over_lists(function: Any, **fixed: Any) -> Any:
    class OverLists(nn.Module):
        """Their call: queries with documents, and labels by query."""

        def __init__(self, model: CrossEncoder, respect_input_order: bool = False) -> None:
            super().__init__()
            if respect_input_order:
                raise NotImplementedError("the order in which documents come")
            self.model = model

        def forward(self, inputs: tuple[list[str], list[list[str]]], labels: list[Tensor]) -> Tensor:
            """The mean over lists."""
            rows = [self.model.scores(query, documents) for query, documents in zip(*inputs, strict=True)]
            mask = nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True) > 0
            scores, grades = (nn.utils.rnn.pad_sequence(list(lists), batch_first=True) for lists in (rows, labels))
            return function(scores, grades, mask=mask, **fixed)

    OverLists.__name__ = function.__name__
    return OverLists


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""

    class PListMLELoss:
        """Not here."""

    class ADRMSELoss:
        """Not here."""

    return {
        "sentence_transformers.cross_encoder": {"CrossEncoder": CrossEncoder},
        "sentence_transformers.cross_encoder.losses": {
            "ListNetLoss": _named("ListNetLoss", _over_lists(listnet_loss)),
            "ListMLELoss": _named("ListMLELoss", _over_lists(listmle_loss)),
            "LambdaLoss": _named("LambdaLoss", _over_lists(lambda_loss)),
            "RankNetLoss": _named("RankNetLoss", _over_lists(ranknet_loss)),
            "PListMLELoss": PListMLELoss,
            "ADRMSELoss": ADRMSELoss,
        },
    }


def _named(name: str, cls: Any) -> Any:
    cls.__name__ = name
    return cls
