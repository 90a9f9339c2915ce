"""Losses of preferences agree with those of trl and openrlhf; ``record_preference.py`` asked them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from steepest.core.preference import PREFERENCE_FORMS, preference_loss
from steepest.losses.policy.discopop import discopop_loss

RECORD = json.loads((Path(__file__).parent / "recorded_preference.json").read_text(encoding="utf-8"))
SETTINGS = RECORD["settings"]
TRL, OPENRLHF = RECORD["peers"].values()
UNPAIRED = ("kto", "apo_zero_unpaired")
# trl's logistic losses of these names have no smoothing, whatever its configuration says
PLAIN = ("sigmoid", "sigmoid_norm")


def ours(name, *, smoothed=True, per_token=True):
    """Our loss of the recorded batch and the policy's tensors."""
    form = PREFERENCE_FORMS[name]
    tensors = [torch.tensor(v, dtype=torch.float64) for v in RECORD["batch"].values()]
    own = [t.requires_grad_() for t in tensors[:2]]
    options = {k: v for k, v in SETTINGS.items() if k == "beta" or k in form.options}
    if not smoothed:
        options.pop("label_smoothing")
    if form.per_token or (name == "ipo" and per_token):
        options |= {k: torch.tensor(v) for k, v in RECORD["lengths"].items()}
    args = tensors if form.reference else tensors[:2]
    if name in UNPAIRED:
        args = [tensors[0][:3], tensors[1][:1], tensors[2][:3], tensors[3][:1]]
        options |= {"undesirable_weight": RECORD["undesirable_weight"]}
        options |= {"kl": RECORD["kl"]} if name == "kto" else {}
    return preference_loss(*args, loss_type=name, **options), own, options


def agree(losses, own, record):
    value = losses.mean()
    # the peers computed in float32
    assert value.item() == pytest.approx(record["value"], rel=1e-6)
    for slope, theirs in zip(torch.autograd.grad(value, own), record["gradients"]):
        assert slope.tolist() == pytest.approx(theirs, rel=2e-5, abs=1e-8)


@pytest.mark.parametrize("name", [name for name in TRL if name not in ("orpo", "discopop, far")])
def test_trl(name):
    result, own, _ = ours(name, smoothed=name not in PLAIN)
    agree(result.losses, own, TRL[name])


def test_odds_ratio_of_trl():
    """Without the likelihood of the chosen answer, which its trainer adds elsewhere."""
    result, own, options = ours("orpo")
    agree(result.losses + own[0] / options["chosen_length"], own, TRL["orpo"])


@pytest.mark.parametrize("name", OPENRLHF)
def test_openrlhf(name):
    result, own, _ = ours(name, per_token=False)
    agree(result.losses, own, OPENRLHF[name])
    for rewards in ("chosen_rewards", "rejected_rewards"):
        assert getattr(result, rewards).tolist() == pytest.approx(OPENRLHF[name][rewards], rel=1e-6)


@pytest.mark.holds("discopop", 4)
def test_discopop_is_finite_where_trl_is_not():
    """exp(100) sigmoid(-2000) is inf times 0 there."""
    far = [torch.tensor(v) for v in RECORD["far"].values()]
    own = far[0].requires_grad_()
    losses = discopop_loss(own, *far[1:], beta=SETTINGS["beta"], tau=SETTINGS["tau"], reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), own)
    assert TRL["discopop, far"]["value"] is None
    assert TRL["discopop, far"]["gradients"][0][0] is None
    assert losses[0].item() == 100.0
    assert slope[0].item() == pytest.approx(-SETTINGS["beta"], rel=1e-7)
    near, policy, _ = ours("discopop")
    agree(near.losses, policy, TRL["discopop"])
