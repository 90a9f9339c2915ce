"""allRank's tests of losses of lists: steepest in the place of its functions, its own NDCG as their measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from steepest.core.query_lists import mask_from_padding
from steepest.losses.ranking import (
    approx_ndcg_loss,
    lambda_loss,
    listmle_loss,
    listnet_loss,
    neural_ndcg,
    ranknet_loss,
)

FOLDER = "allRank"
METRICS = "allrank/models/metrics.py"
FILES = tuple(
    f"tests/losses/test_{name}.py"
    for name in ("approxndcg", "lambdaloss", "listmle", "listnet", "neuralndcg", "ranknet")
)
SUPPORT = (METRICS, "tests/__init__.py", "tests/losses/__init__.py", "tests/losses/utils.py")
ON_CPU: tuple[tuple[str, str], ...] = ()
LEFT_OUT: dict[str, str] = {}
EXPLAINED = {
    r"test_listnet_stable_for_very_small_prediction": "they want log(p + 1e-10), which ends at 23; here the loss of a "
    "score of -1e30 is what it is",
}
NOT_RUN = {
    "tests/losses/test_binary_listnet.py": "no form of ListNet for grades of 0 and 1 alone here",
    "tests/losses/test_loss_ordinal.py": "a loss of ordinal heads, of which there is none here",
    "tests/losses/test_loss_pointwise.py": "torch's own losses of single documents",
    "tests/losses/test_mrr.py": "a metric, not a loss",
    "tests/losses/test_ndcg.py": "a metric, not a loss",
}
PADDING = -1
SCHEMES = {
    None: "ranknet",
    "rankNet_scheme": "ranknet",
    "ndcgLoss1_scheme": "ndcg_loss1",
    "ndcgLoss2PP_scheme": "ndcg_loss2++",
}


def _lambda(
    y_pred: Tensor, y_true: Tensor, weighing_scheme: str | None = None, reduction_log: str = "binary"
) -> Tensor:
    return lambda_loss(
        y_pred,
        y_true,
        mask=mask_from_padding(y_true, PADDING),
        scheme=SCHEMES[weighing_scheme],
        natural=reduction_log == "natural",
        reduction="sum",
    )


def _of(function: Any, **fixed: Any) -> Any:
    def loss(y_pred: Tensor, y_true: Tensor, eps: float = 0.0, **options: Any) -> Tensor:
        return function(y_pred, y_true, mask=mask_from_padding(y_true, PADDING), **fixed, **options)

    return loss


def _neural(transposed: bool) -> Any:
    def loss(
        y_pred: Tensor,
        y_true: Tensor,
        temperature: float,
        powered_relevancies: bool,
        k: int | None,
        stochastic: bool,
        n_samples: int,
        beta: float,
    ) -> Tensor:
        return neural_ndcg(
            y_pred,
            y_true,
            mask=mask_from_padding(y_true, PADDING),
            tau=temperature,
            powered=powered_relevancies,
            k=k,
            stochastic=stochastic,
            n_samples=n_samples if stochastic else None,
            beta=beta if stochastic else None,
            transposed=transposed,
        )

    return loss


def _ndcg(file: Path) -> Any:
    """Their NDCG, from their file without what it imports of theirs."""
    text = file.read_text(encoding="utf-8").replace("from allrank.data.dataset_loading import PADDED_Y_VALUE", "")
    names: dict[str, Any] = {"PADDED_Y_VALUE": PADDING}
    exec(compile(text, str(file), "exec"), names)
    return names["ndcg"]


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    return {
        "allrank.data.dataset_loading": {"PADDED_Y_VALUE": PADDING},
        "allrank.models.losses": {
            "DEFAULT_EPS": 1e-10,
            "listNet": _of(listnet_loss),
            "listMLE": _of(listmle_loss),
            "rankNet": _of(ranknet_loss),
            "rankNet_weightByGTDiff": _of(ranknet_loss, weighing="difference"),
            "rankNet_weightByGTDiff_pow": _of(ranknet_loss, weighing="squares"),
        },
        "allrank.models.losses.lambdaLoss": {"lambdaLoss": _lambda},
        "allrank.models.losses.approxNDCG": {"approxNDCGLoss": _of(approx_ndcg_loss)},
        "allrank.models.losses.neuralNDCG": {"neuralNDCG": _neural(False), "neuralNDCG_transposed": _neural(True)},
        "allrank.models.metrics": {"ndcg": _ndcg(root / METRICS)} if (root / METRICS).is_file() else {},
    }
