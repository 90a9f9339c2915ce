"""Agreement with other packages, in value and gradient; a peer that is missing fails."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from steepest import losses

HERE = Path(__file__).parent


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"peers_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PAIRS = loaded("pairs").PAIRS
RECORDED = json.loads((HERE / "recorded.json").read_text(encoding="utf-8"))
OURS = {
    "asymmetric_loss, gammas 4 and 1, clip 0.05, sum": lambda z, y: losses.asymmetric_loss(
        z, y, gamma_neg=4, gamma_pos=1, clip=0.05, reduction="sum"
    ),
    "asymmetric_single_label, gammas 4 and 1, smoothing 0.1": losses.AsymmetricLossSingleLabel(4.0, 1.0, 0.1),
    "cross_entropy, smoothing 0.1": losses.SmoothedCrossEntropyLoss(0.1),
    # the peer's factor 1/2 is for both classes
    "focal of two classes, gamma 2": lambda z, y: 0.5 * losses.focal_loss(torch.stack([0 * z, z], 1), y.long()),
}


SLOW = {"dcor": pytest.mark.slow}
"""What its import costs more than all other pairs: it compiles."""


@pytest.mark.parametrize("pair", [pytest.param(pair, id=pair.name, marks=SLOW.get(pair.package, ())) for pair in PAIRS])
def test_pair(pair):
    assert max(pair.differences()) <= pair.tolerance


def test_every_pair_has_a_name_of_its_own():
    assert len({pair.name for pair in PAIRS}) == len(PAIRS)
    assert {pair.package for pair in PAIRS} >= {
        "torch",
        "torchmetrics",
        "pytorch-metric-learning",
        "scikit-learn",
        "POT",
        "dcor",
        "mlxtend",
    }


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name):
    kept = RECORDED[name]
    leaf = torch.tensor(kept["logits"]).requires_grad_()
    value = OURS[name](leaf, torch.tensor(kept["target"]))
    (gradient,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(value.item(), kept["value"], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(gradient, torch.tensor(kept["gradient"]), rtol=1e-5, atol=1e-6)


def test_a_pair_that_differs_is_seen():
    pair = PAIRS[0]
    wrong = type(pair)(**{**vars(pair), "ours": lambda z, y: losses.cross_entropy(z, y) * (1 + 1e-8)})
    assert max(wrong.differences()) > pair.tolerance
