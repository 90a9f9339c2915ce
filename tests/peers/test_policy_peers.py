"""Losses of policies agree with what verl, TRL, OpenRLHF and Liger gave; ``record_policy.py`` asked them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from steepest.core.group_advantages import group_advantages
from steepest.core.group_policy import clipped_policy_loss
from steepest.core.kl_estimators import kl_of_samples
from steepest.core.token_reductions import aggregate_tokens

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "recorded_policy.json").read_text(encoding="utf-8"))
CASES = [(peer, name) for peer, row in RECORDED.items() for name in row["answers"]]
LENGTH = 9.0
BOTH = {"epsilon": 0.2, "epsilon_high": 0.28}
OURS = {
    "verl": {
        "loss vanilla": ("dapo", {**BOTH, "delta": 3.0}),
        "loss gspo": ("gspo", BOTH),
        "loss cispo": ("cispo", BOTH),
    },
    "trl": {
        "loss grpo": ("grpo", BOTH),
        "loss bnpo": ("bnpo", BOTH),
        "loss dapo": ("dapo", BOTH),
        "loss dr_grpo": ("dr_grpo", {**BOTH, "length": LENGTH}),
        "loss cispo": ("cispo", {"epsilon": 1.0, "epsilon_high": 0.28}),  # bounded above alone, by the bound itself
        "loss gspo": ("gspo", BOTH),
        "loss grpo, delta": ("grpo", {**BOTH, "delta": 3.0}),
        "loss dapo, beta": ("dapo", {**BOTH, "beta": 0.3}),
        "loss dapo, beta and ratio": ("dapo", {**BOTH, "beta": 0.3, "weighted_kl": True}),
    },
    "openrlhf": {
        "loss tokens": ("dapo", BOTH),
        "loss sequences": ("grpo", BOTH),
        "loss tokens, dual": ("dapo", {**BOTH, "delta": 3.0}),
        "loss gspo": ("gspo", BOTH),
    },
    "liger-kernel": {
        "loss grpo": ("grpo", BOTH),
        "loss bnpo": ("bnpo", BOTH),
        "loss dr_grpo": ("dr_grpo", {**BOTH, "length": LENGTH}),
        "loss bnpo, beta": ("bnpo", {**BOTH, "beta": 0.3}),
        "loss bnpo, beta and ratio": ("bnpo", {**BOTH, "beta": 0.3, "weighted_kl": True}),
    },
}
MODES = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant",
}


@pytest.fixture(scope="module")
def given():
    spec = importlib.util.spec_from_file_location("peers_record_policy", HERE / "record_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.inputs()


def ours(peer, name, given, leaf):
    what, _, rest = name.partition(" ")
    if what == "aggregate":
        return aggregate_tokens(leaf, given["mask"], MODES[rest], length=LENGTH if rest.endswith("norm") else None)
    if what == "estimate":
        return kl_of_samples(leaf, given["ref"], rest).sum()
    form, options = OURS[peer][name]
    if peer == "liger-kernel":
        leaf = leaf.log_softmax(-1).gather(-1, given["tokens"][..., None]).squeeze(-1)
    return clipped_policy_loss(
        leaf, given["old"], given["advantages"], given["mask"], form, ref_logp=given["ref"], **options
    )


@pytest.mark.parametrize(("peer", "name"), [c for c in CASES if not c[1].startswith("advantages")])
def test_value_and_gradient(peer, name, given):
    answer = RECORDED[peer]["answers"][name]
    leaf = given["logits" if peer == "liger-kernel" else "logp"].clone().requires_grad_()
    value = ours(peer, name, given, leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    single = peer == "liger-kernel"  # which computes in float32
    torch.testing.assert_close(value.item(), answer["value"], rtol=2e-6 if single else 1e-8, atol=1e-12)
    expected = torch.tensor(answer["gradient"], dtype=torch.float64)
    torch.testing.assert_close(
        gradient.flatten(), expected, rtol=1e-5 if single else 1e-8, atol=2e-7 if single else 1e-12
    )


def test_advantages(given):
    answers = RECORDED["verl"]["answers"]
    for name, options in (("advantages grpo", {}), ("advantages leave-one-out", {"leave_one_out": True})):
        own = group_advantages(given["rewards"], given["groups"], **options)
        assert own.tolist() == pytest.approx(answers[name]["value"], abs=1e-6)  # they go through float32


def test_every_peer_was_asked():
    assert set(RECORDED) == set(OURS)
    assert {name for peer, name in CASES if name.startswith("loss")} == {n for row in OURS.values() for n in row}
