"""Every public function with weights or a reduction refuses what its class refuses, and gives the same numbers."""

from __future__ import annotations

import importlib

import pytest
import torch

from steepest import losses
from steepest.catalogue import systems, there
from steepest.comparison.design.objectives import known_objectives
from steepest.testing import check_reduced, function_checks, is_loss_function

# functions that are spelt otherwise than their class
CLASS_OF = {
    "mae": "AbsoluteErrorLoss",
    "huber": "HuberLoss",
    "log_cosh": "LogCoshLoss",
    "ldr_kl_loss": "LDRLoss",
    "squared_hinge_loss": "OneVsRestHingeLoss",
}
# functions without a class, and a class whose samples they take
TAKES_SAMPLES_OF = {
    "madl": "GMADLLoss",
    **dict.fromkeys(("mse", "mbe", "rae", "rse", "rmse", "nrmse", "rrmse", "mape"), "AbsoluteErrorLoss"),
}
ROWS = torch.linspace(-1.0, 1.0, 12).view(4, 3)
ONE = torch.tensor([0.2, 0.5, -0.3, 0.9])
PLACES = torch.tensor([0, 2, 1, 1])
SHARES = ROWS.softmax(1)
HEAD = torch.linspace(-1.0, 1.0, 15).view(5, 3)
# functions with other arguments, and one valid call of each
CALLS = {
    "linear_cross_entropy": ((ROWS, HEAD, PLACES), {}),
    "linear_loss": ((ROWS, HEAD, PLACES, losses.CompSumLoss().fused_row), {}),
    "linear_distillation": ((ROWS, HEAD, ROWS, HEAD), {}),
    "log_partition_penalty": ((ONE,), {}),
    "spectral_decoupling": ((ROWS,), {}),
    "binary_kl_norm": ((ROWS, ROWS.flip(0)), {}),
    "distillation_divergence": ((ROWS, ROWS.flip(0)), {}),
    "nd_loss": ((ROWS, ROWS.flip(0), SHARES[:3], PLACES), {}),
    "ps_kd_loss": ((ROWS, PLACES), {"past_probs": SHARES, "alpha": 0.5}),
    "score_distribution_loss": ((ROWS, SHARES), {}),
    "thurstone_fidelity": ((ONE, ONE + 1, ONE, ONE, ONE.exp(), ONE.exp()), {}),
    "profit_regret": ((ONE, ONE), {}),
    "spo_plus": ((ONE, ONE), {}),
    "smooth_profit_regret": ((ONE.sigmoid(), (ONE > 0).long(), 100 * ONE.exp()), {"slope": 1.0}),
    "mixup_ranking_term": ((ROWS, ROWS, SHARES), {}),
    "mndcg_term": ((ROWS, ROWS[None], SHARES[None]), {}),
    "msle": ((ONE, ONE), {}),
    "discopop_loss": ((ONE, ONE, ONE, ONE), {}),
    "inpo_loss": ((ONE,) * 6, {"eta": 0.5, "tau": 0.2}),
    "trajectory_kl": ((ROWS, ROWS.flip(0)), {"tau": 1.0}),
    "rmsle": ((ONE, ONE), {}),
    "dco_loss": ((-ONE.exp(), 4.0), {}),
    "emo_loss": ((ROWS, PLACES, torch.eye(3)), {}),
    "npo_loss": ((ONE, ONE.flip(0)), {}),
    "gradient_ascent_loss": ((ONE,), {}),
    "shiq_loss": ((ROWS[None], ROWS[None].flip(1), PLACES[None], ONE[None], PLACES[None] >= 0), {}),
    "itakura_saito_loss": ((ONE, ONE.flip(0), 0.5), {}),
    "robust_bellman_step": ((ONE, ONE.flip(0), ONE, ONE.sigmoid(), ONE), {}),
    **dict.fromkeys(
        ("listnet_loss", "listmle_loss", "ranknet_loss", "lambda_loss", "approx_ndcg_loss", "neural_ndcg"),
        ((ROWS, ROWS.abs()), {}),
    ),
    "ranking_loss": ((ROWS, ROWS.abs()), {}),
    "decoupled_softmax_loss": ((ROWS, (ROWS > 0.2).long()), {}),
    "soft_topk_loss": ((ROWS, (ROWS > 0.2).long()), {"k": 1}),
    "pairwise_softmax_loss": ((ONE, ROWS), {}),
    "softmax_loss_at_k": ((ONE, ROWS, ONE), {}),
    "unpg_loss": ((ROWS, ROWS, PLACES), {}),
    "emse_loss": ((ONE, ONE.flip(0), 0.5), {}),
}
# functions whose `weight` or `reduction` is another thing
OTHER_MEANING = {
    "torch_linear_cross_entropy": "torch's own signature: weight is one a class, and the tests of stand-ins have it",
    "rankme": "its weight counts samples in a rank, which is no loss, and there is no reduction",
    "pair_log_partition": "its weight is one of each pair's term, and there is no reduction",
    "reg_cls_loss": "its weight is a number, the factor of the regression term, and there is no reduction",
}


def spelt(name):
    return name.replace("_", "").lower().removesuffix("loss")


CLASSES = {cls.__name__: cls for cls, _ in known_objectives().values()}
SPELT = {spelt(name): name for name in CLASSES}
FUNCTIONS = {
    name: function
    for row in systems()
    if there(row)
    for name in row.names
    if is_loss_function(function := getattr(importlib.import_module(f"steepest.{row.module}"), name))
}
DRIVEN = {
    name: function_checks(function, CLASSES[cls], same=name not in TAKES_SAMPLES_OF)
    for name, function in FUNCTIONS.items()
    if (cls := TAKES_SAMPLES_OF.get(name) or CLASS_OF.get(name) or SPELT.get(spelt(name))) and name not in CALLS
}
PARAMS = [pytest.param(check, id=f"{name}-{title}") for name, checks in DRIVEN.items() for title, check in checks]


@pytest.mark.parametrize("check", PARAMS)
def test_function(check):
    check()


@pytest.mark.parametrize("name", CALLS)
def test_weights_and_reductions(name):
    check_reduced(FUNCTIONS[name], *CALLS[name])


def test_every_function_is_driven():
    """From samples of a class, by a call above, or excused above with a reason; no entry stands for nothing."""
    parts = DRIVEN.keys(), CALLS.keys(), OTHER_MEANING.keys()
    assert sorted(FUNCTIONS) == sorted(name for part in parts for name in part)
    assert {*TAKES_SAMPLES_OF, *CLASS_OF, "focal_loss", "comp_sum_loss", "cross_entropy"} <= DRIVEN.keys()


def test_the_same_weight_for_all_does_not_broadcast():
    """Weights [N, 1] would weigh every loss with every weight."""
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0, 1])
    weight = torch.tensor([[1.0], [2.0], [3.0]])
    with pytest.raises(ValueError, match=r"^weight: expected shape \(3\), got a float32 tensor of shape \(3, 1\)$"):
        losses.comp_sum_loss(logits, target, weight=weight)
    right = losses.comp_sum_loss(logits, target, weight=weight.squeeze(1))
    each = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(right, (each * weight.squeeze(1)).sum() / 6)
    assert abs(float(right) - 0.483) < 5e-4


@pytest.mark.parametrize("lets_pass", ["weight", "reduction"])
def test_a_function_that_takes_what_it_should_refuse_is_caught(lets_pass):
    def tolerant(outputs, target, *, weight=None, reduction="mean"):
        wrong = {"weight": weight, "reduction": reduction}
        right = wrong | ({"weight": None} if lets_pass == "weight" else {"reduction": "mean"})
        return losses.comp_sum_loss(outputs, target, **right)

    with pytest.raises(AssertionError, match=lets_pass):
        check_reduced(tolerant, (torch.randn(4, 3), torch.tensor([0, 1, 2, 0])), {})
