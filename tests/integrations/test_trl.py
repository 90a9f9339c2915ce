"""Trainers of TRL with a loss of this package do what TRL's own do with the same loss, and form no logits."""

from __future__ import annotations

import copy
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from steepest.core.errors import InputError
from steepest.core.group_policy import GroupPolicyLoss
from steepest.core.preference import PreferenceLoss, preference_loss
from steepest.losses import (
    DeltaLNormalization,
    DirectCoverageLoss,
    DiscoPOPLoss,
    DistillationLoss,
    GLOWLoss,
    GroupREINFORCE,
    INPOLoss,
    NumberTokenLoss,
    PLDLoss,
    PSKDLoss,
    RPGLoss,
    TokenCrossEntropyLoss,
    number_token_values,
)

KINDS = ("SFT", "DPO", "GRPO", "Distillation")
SAME = {
    "SFT": (TokenCrossEntropyLoss(), {}),
    "DPO": (PreferenceLoss("sigmoid", 0.1), {}),
    "GRPO": (GroupPolicyLoss("dapo"), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "Distillation": ("reverse_kl", {}),
}
"""A loss that TRL has too, and what TRL calls it."""
EXPERTS = {"num_local_experts": 3, "output_router_logits": True, "experts_implementation": "eager"}
NAMES = ("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
         "apo_zero", "apo_down", "discopop", "sigmoid_norm")  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    """Imported where these tests run, not where they are collected: TRL takes seconds."""
    pytest.importorskip("trl")
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module("trl_parts")
    finally:
        sys.path.pop(0)


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps one state a process."""
    state = pytest.importorskip("accelerate.state").AcceleratorState
    state._reset_state(reset_partial_state=True)
    yield
    state._reset_state(reset_partial_state=True)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def trained(trainer):
    """Before the next one is made: each begins with a seed."""
    trainer.train()
    return trainer


def same_weights(first, second, atol=5e-6):
    """To rounding in float32, of a few steps of Adam at a rate of .01."""
    for (name, value), wanted in zip(first.state_dict().items(), second.state_dict().values()):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=atol, msg=name)


def same_run(parts, folder, kind, loss, options, own_options=None, also=(), **more):
    """Ours and TRL's trainer with one loss, trained: weights, losses and whatever else both log."""
    first = trained(parts.trainer(kind, folder, copy.deepcopy(loss), options=own_options, **more))
    second = trained(parts.trainer(kind, folder, mine=False, options=options, **more))
    same_weights(first.model, second.model)
    entries = zip(first.state.log_history, second.state.log_history)
    for own, wanted in entries:
        assert own.keys() == wanted.keys()
        for name in own:
            if not name.endswith(("time", "per_second")):
                assert own[name] == pytest.approx(wanted[name], rel=2e-4, abs=1e-5), name
    for name in ("loss", *also):
        assert len(set(logged(first, name))) > 1, name
    return first, second


class Widest(TorchDispatchMode):
    """The most rows of a tensor with a column a word."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.rows = classes, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.ndim and value.shape[-1] == self.classes:
                self.rows = max(self.rows, value.numel() // self.classes)
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_trl(parts, tmp_path, kind):
    """Two micro-batches a step, three steps, and losses and metrics outside training."""
    loss, options = SAME[kind]
    more = {"eval_dataset": parts.data(kind, 8)}
    both = {"eval_strategy": "steps", "eval_steps": 2}
    same_run(parts, tmp_path, kind, loss, {**options, **both}, both, also=("eval_loss",)[: kind == "DPO"],
             accumulation=2, **more)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_preferences_by_name_are_those_of_trl(parts, tmp_path, name, accumulation):
    """The name takes beta and smoothing from the configuration; the reference has other weights."""
    smoothing = {"label_smoothing": 0.1} if name in ("robust", "exo_pair", "aot", "aot_unpaired") else {}
    options = {"beta": 0.2, "optim": "sgd", "learning_rate": 0.02, "max_grad_norm": 1.0, **smoothing}
    first, second = same_run(parts, tmp_path, "DPO", name, {**options, "loss_type": name}, options,
                             accumulation=accumulation, ref_model=parts.model(3))  # fmt: skip
    assert isinstance(first.loss, PreferenceLoss)
    assert logged(first, "rewards/margins") == pytest.approx(logged(second, "rewards/margins"), rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (GroupPolicyLoss("grpo", epsilon=0.02), {"loss_type": "grpo", "epsilon": 0.02}),
        (GroupPolicyLoss("bnpo", epsilon=0.02), {"loss_type": "bnpo", "epsilon": 0.02}),
        (GroupPolicyLoss("dapo", epsilon=0.02, epsilon_high=0.03), {"epsilon": 0.02, "epsilon_high": 0.03}),
        (GroupPolicyLoss("dr_grpo", epsilon=0.02, length=6.0), {"loss_type": "dr_grpo", "epsilon": 0.02}),
        (GroupPolicyLoss("gspo", epsilon=0.02),
         {"loss_type": "grpo", "epsilon": 0.02, "importance_sampling_level": "sequence"}),
        (GroupPolicyLoss("cispo", epsilon=1.0, epsilon_high=0.05), {"loss_type": "cispo", "epsilon_high": 1.05}),
        (GroupPolicyLoss("dapo", epsilon=0.02, epsilon_high=0.03, delta=1.05),
         {"epsilon": 0.02, "epsilon_high": 0.03, "delta": 1.05}),
    ],
    ids=["grpo", "bnpo", "dapo", "dr_grpo", "gspo", "cispo", "delta"],
)  # fmt: skip
def test_group_losses_off_policy_are_those_of_trl(parts, tmp_path, loss, options, accumulation):
    """Each batch is used twice, so that ratios leave their bounds."""
    same_run(parts, tmp_path, "GRPO", loss, {**options, "num_iterations": 2}, {"num_iterations": 2}, steps=4,
             accumulation=accumulation, rows=24)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dapo", "grpo"])
def test_a_generation_of_two_steps_is_that_of_trl(parts, tmp_path, form):
    """Items are counted over what was generated; a step has half of them."""
    options = {"steps_per_generation": 4}
    of_trl = {"loss_type": form, "epsilon_high": 0.28 if form == "dapo" else None, **options}
    same_run(parts, tmp_path, "GRPO", GroupPolicyLoss(form), of_trl, options, steps=4, accumulation=2, rows=24)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_a_divergence_from_the_reference_is_that_of_trl(parts, tmp_path, weighted):
    """The loss's beta lets TRL load the reference."""
    parts.model(5).save_pretrained(tmp_path / "reference")
    own = [parts.model(), parts.model()]
    for one in own:
        one.config._name_or_path = str(tmp_path / "reference")
    loss = GroupPolicyLoss("grpo", beta=0.3, weighted_kl=weighted)
    options = {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": weighted, "num_iterations": 2}
    first = trained(parts.trainer("GRPO", tmp_path, loss, own=own[0], options={"num_iterations": 2}, steps=4))
    second = trained(parts.trainer("GRPO", tmp_path, own=own[1], mine=False, options=options, steps=4))
    same_weights(first.model, second.model)
    assert logged(first, "kl") == pytest.approx(logged(second, "kl"), rel=1e-3)
    assert min(logged(first, "kl")) > 0.1


@pytest.mark.slow
def test_masks_of_trl_reach_the_loss(parts, tmp_path):
    """High entropy alone, and sequences that are off policy."""
    options = {"top_entropy_quantile": 0.5, "off_policy_mask_threshold": 1e-4, "num_iterations": 2}
    of_trl = {**options, "epsilon_high": 0.28}
    same_run(parts, tmp_path, "GRPO", GroupPolicyLoss("dapo"), of_trl, options, steps=4, accumulation=2)
    plain = trained(parts.trainer("GRPO", tmp_path, GroupPolicyLoss("dapo"), steps=4, options={"num_iterations": 2}))
    masked = trained(parts.trainer("GRPO", tmp_path, GroupPolicyLoss("dapo"), steps=4, options=options))
    assert not torch.equal(plain.model.lm_head.weight, masked.model.lm_head.weight)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("loss", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jensen_shannon", 0.3)])
def test_divergences_are_those_of_trl(parts, tmp_path, loss, beta, accumulation):
    own = {"beta": beta} if loss == "jensen_shannon" else {}
    same_run(parts, tmp_path, "Distillation", loss, {"beta": beta}, own, accumulation=accumulation)


TRAINS = {
    "SFT": NumberTokenLoss,
    "DPO": PreferenceLoss("hinge", 0.5),
    "GRPO": RPGLoss("urkl"),
    "Distillation": "forward_kl",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains(parts, tmp_path, kind):
    """The loss falls, or the reward rises."""
    loss = NumberTokenLoss(number_token_values(parts.WORDS)) if kind == "SFT" else copy.deepcopy(TRAINS[kind])
    trainer = parts.trainer(kind, tmp_path, loss, steps=30)
    trainer.train()
    values = logged(trainer, "reward" if kind == "GRPO" else "loss")
    early, late = sum(values[:5]) / 5, sum(values[-5:]) / 5
    if kind == "GRPO":
        assert late > early + 0.1
        assert not any("clip_ratio" in name for entry in trainer.state.log_history for name in entry)
    else:
        assert late < 0.8 * early


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_never_formed(parts, tmp_path, kind, monkeypatch):
    """No loss calls an output layer; with room for a few rows no tensor has a row for each token, as TRL's have."""
    monkeypatch.setattr("steepest.kernels._memory.CPU_CHUNK", 1)
    monkeypatch.setattr("steepest.kernels._memory.FEWEST", 2)
    called, linear, rows = set(), torch.nn.Linear.forward, []

    def note(layer, x):
        called.add(layer.out_features)
        return linear(layer, x)

    for mine in (True, False):
        trainer = parts.trainer(kind, tmp_path, SAME[kind][0], steps=1, mine=mine, own=parts.model(hidden_size=8))
        trainer.current_gradient_accumulation_steps = 1
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        with monkeypatch.context() as patch, Widest(len(parts.WORDS)) as widest:
            if mine:
                patch.setattr(torch.nn.Linear, "forward", note)
            trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(20.0)).backward()
        rows.append(widest.rows)
    assert 8 in called
    assert len(parts.WORDS) not in called
    assert rows[0] <= 16  # the teacher's width: the transposed weight of the output layer
    assert rows[1] > 16


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_loss_it_is_that_of_trl(parts, tmp_path, kind):
    ends = []
    for mine in (True, False):
        trainer = parts.trainer(kind, tmp_path, steps=1, mine=mine)
        trainer.train()
        ends.append(trainer.model)
    for value, wanted in zip(ends[0].state_dict().values(), ends[1].state_dict().values()):
        assert torch.equal(value, wanted)


REFUSED = [
    ("SFT", lambda: PreferenceLoss(), {}, TypeError, "loss: expected a loss of tokens"),
    ("SFT", lambda: "token_cross_entropy", {}, TypeError, "loss: expected a loss of tokens"),
    ("SFT", lambda: TokenCrossEntropyLoss(ignore_index=-1), {}, ValueError, "ignore_index=-100, got"),
    ("SFT", lambda: TokenCrossEntropyLoss(), {"loss_type": "dft"}, ValueError, "args.loss_type: expected 'nll'"),
    ("SFT", lambda: TokenCrossEntropyLoss(), {"label_smoothing_factor": 0.1}, ValueError, "label_smoothing_factor"),
    ("DPO", lambda: TokenCrossEntropyLoss(), {}, TypeError, "loss: expected a loss of pairs"),
    ("DPO", lambda: INPOLoss(0.5, 0.2), {}, TypeError, "loss: expected a loss of pairs"),
    ("DPO", lambda: PreferenceLoss("kto"), {}, TypeError, "loss: expected a loss of pairs"),
    ("DPO", lambda: PreferenceLoss(reduction="sum"), {}, ValueError, 'reduction="mean"'),
    ("DPO", lambda: "sigmund", {}, ValueError, "loss_type: expected one of"),
    ("DPO", lambda: "sigmoid", {"loss_type": "hinge"}, ValueError, "args.loss_type"),
    ("DPO", lambda: PreferenceLoss(beta=0.2), {"beta": 0.3}, ValueError, "args.beta: expected 0.1"),
    ("DPO", lambda: PreferenceLoss(), {"label_smoothing": 0.1}, ValueError, "args.label_smoothing"),
    ("DPO", lambda: "hinge", {"use_weighting": True}, ValueError, "args.use_weighting"),
    ("DPO", lambda: "simpo", {"precompute_ref_log_probs": True}, ValueError, "args.precompute_ref_log_probs"),
    ("GRPO", lambda: TokenCrossEntropyLoss(), {}, TypeError, "loss: expected a loss of sampled tokens"),
    ("GRPO", lambda: GroupREINFORCE(), {}, TypeError, "loss: expected a loss of sampled tokens"),
    ("GRPO", lambda: "ppo", {}, ValueError, "form: expected"),
    ("GRPO", lambda: GroupPolicyLoss(), {"epsilon": 0.1}, ValueError, "args.epsilon"),
    ("GRPO", lambda: GroupPolicyLoss(beta=0.2), {"beta": 0.1}, ValueError, "args.beta"),
    ("GRPO", lambda: GroupPolicyLoss(), {"entropy_coef": 0.1}, ValueError, "args.entropy_coef"),
    ("GRPO", lambda: DeltaLNormalization(6.0), {"beta": 0.1}, ValueError, "args.beta: expected 0"),
    ("Distillation", lambda: "backward_kl", {}, ValueError, "loss: expected one of forward_kl"),
    ("Distillation", lambda: GLOWLoss(4), {}, TypeError, "loss: expected a divergence by name"),
    ("Distillation", lambda: PSKDLoss(4, 3, 2), {}, TypeError, "loss: expected a divergence by name"),
    ("Distillation", lambda: "forward_kl", {"beta": 0.5}, ValueError, "args.beta"),
    ("Distillation", lambda: "jensen_shannon", {}, ValueError, "args.beta"),
]


@pytest.mark.parametrize(("kind", "loss", "options", "error", "text"), REFUSED)
def test_what_does_not_fit_is_refused(parts, tmp_path, kind, loss, options, error, text):
    """Before TRL loads or prepares anything."""
    with pytest.raises(error, match=text):
        parts.trainer(kind, tmp_path, loss(), options=options)


def test_a_loss_function_beside_the_loss_is_refused(parts, tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func: expected None"):
        parts.trainer("SFT", tmp_path, TokenCrossEntropyLoss(), compute_loss_func=max)


def test_a_loss_with_parameters_is_refused(parts, tmp_path):
    loss = TokenCrossEntropyLoss()
    loss.weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="loss: expected one without parameters"):
        parts.trainer("SFT", tmp_path, loss)


def test_what_trl_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "steepest.integrations.trl", raising=False)
    with pytest.raises(InputError, match=re.escape("pip install 'steepest[trl]'")):
        importlib.import_module("steepest.integrations.trl")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", [DirectCoverageLoss(4.0), TokenCrossEntropyLoss(0.1, aggregation="sequence_mean_token_mean")],
    ids=["sequences", "means"],
)  # fmt: skip
def test_items_are_counted_over_a_step(parts, tmp_path, loss):
    """One batch of eight, or two of four whose rows have other numbers of tokens."""
    ends = []
    for size, accumulation in ((8, 1), (4, 2)):
        own = {"per_device_train_batch_size": size}
        trainer = parts.trainer("SFT", tmp_path, loss, accumulation=accumulation, options=own, rows=24)
        trainer.train()
        ends.append(trainer)
    same_weights(ends[0].model, ends[1].model)
    assert logged(ends[0], "loss") == pytest.approx(logged(ends[1], "loss"), rel=1e-4)


@pytest.mark.slow
def test_a_step_of_several_generations_counts_its_own(parts, tmp_path):
    """Answers weighted by their lengths, in one micro-batch of eight or in two."""
    ends = []
    for size, accumulation in ((8, 1), (4, 2)):
        own = {"per_device_train_batch_size": size}
        loss = DeltaLNormalization(6.0)
        trainer = parts.trainer("GRPO", tmp_path, loss, accumulation=accumulation, options=own, rows=24)
        trainer.train()
        ends.append(trainer)
    same_weights(ends[0].model, ends[1].model)


@pytest.mark.slow
def test_rows_without_padding_have_segments(parts, tmp_path):
    """Answers in one long row, or one a row: the coverage of each."""
    ends = []
    for free in (False, True):
        trainer = parts.trainer(
            "SFT", tmp_path, DirectCoverageLoss(4.0), options={"padding_free": free, "max_length": None}, steps=2
        )
        trainer.train()
        ends.append(trainer)
    assert logged(ends[0], "loss") == pytest.approx(logged(ends[1], "loss"), rel=1e-4)
    same_weights(ends[0].model, ends[1].model)


def test_a_loss_of_examples_knows_them(parts, tmp_path):
    """Its column reaches it, epochs begin, and its memory is in the checkpoint: resumed, bit for bit."""
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        loss = GLOWLoss(12, beta=30.0)
        own = {"save_strategy": "steps", "save_steps": 4}
        rows = parts.data("SFT").add_column("index", list(range(12)))
        trainer = parts.trainer("SFT", tmp_path, loss, steps=6, options=own, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        ends.append(trainer)
    assert bool(ends[0].loss.weighting.memory.seen.all())
    assert not bool(ends[0].loss.weighting.first)
    for place in (lambda trainer: trainer.model, lambda trainer: trainer.loss):
        for value, wanted in zip(place(ends[0]).state_dict().values(), place(ends[1]).state_dict().values()):
            assert torch.equal(value, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_it_resumes(parts, tmp_path, kind):
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        own = {"save_strategy": "steps", "save_steps": 2}
        reference = {"ref_model": parts.model()} if kind == "DPO" else {}
        trainer = parts.trainer(kind, tmp_path, SAME[kind][0], steps=4, options=own, **reference)
        trainer.train(resume_from_checkpoint=resume)
        ends.append(trainer)
    if kind == "DPO":
        same_weights(ends[0].model, ends[1].model, atol=0.0)
    assert ends[1].state.global_step == 4
    assert len(logged(ends[1], "loss")) == 4


@pytest.mark.parametrize("name", ["simpo", "orpo", "cpo"])
def test_no_reference_is_loaded_where_none_is_needed(parts, tmp_path, name):
    """The loss of a step is that of log-probabilities of the model's own logits."""
    trainer = parts.trainer("DPO", tmp_path, name, steps=1)
    assert trainer.ref_model is None
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        value = trainer.compute_loss(trainer.model, batch)
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    log_p = log_softmax(logits.double(), -1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    counts = batch["completion_mask"][:, 1:]
    chosen, rejected = (log_p * counts).sum(1).chunk(2)
    lengths = dict(zip(("chosen_length", "rejected_length"), counts.sum(1).chunk(2))) if name != "cpo" else {}
    wanted = preference_loss(chosen, rejected, loss_type=name, beta=0.1, **lengths)
    assert float(value) == pytest.approx(float(wanted.losses.mean()), rel=1e-5)
    mode = "train" if trainer.model.training else "eval"
    assert trainer._metrics[mode]["rewards/chosen"] == pytest.approx([float(wanted.chosen_rewards.mean())], rel=1e-5)
    trainer.train()


@pytest.mark.slow
def test_a_reference_that_was_asked_before(parts, tmp_path):
    asked = {"precompute_ref_log_probs": True}
    of_trl = {"loss_type": "discopop", "beta": 0.3, "discopop_tau": 0.5, **asked}
    same_run(parts, tmp_path, "DPO", DiscoPOPLoss(0.3, 0.5), of_trl, asked, ref_model=parts.model(3))


@pytest.mark.parametrize("loss", [DistillationLoss(3.0, 0.7), PLDLoss(2.0)], ids=["softened", "ranks"])
def test_an_objective_that_needs_a_teacher(parts, tmp_path, loss, monkeypatch):
    """Loss and gradient of a batch are those of all logits at once; of several pieces."""
    monkeypatch.setattr(parts.ours, "_ROWS", 4 * 3 * len(parts.WORDS))
    trainer = parts.trainer("Distillation", tmp_path, loss, steps=1)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.compute_loss(trainer.model, batch).backward()
    own = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    trainer.model.zero_grad()
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width, counts = batch["completion_ids"].shape[1], batch["completion_mask"].bool()
    logits = [
        model(input_ids=tokens, attention_mask=mask).logits[:, -width - 1 : -1][counts]
        for model in (trainer.model, trainer.teacher_model)
    ]
    loss(logits[0], batch["completion_ids"][counts], teacher=logits[1]).backward()
    for (name, parameter), gradient in zip(trainer.model.named_parameters(), own):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("SFT", TokenCrossEntropyLoss()), ("SFT", DirectCoverageLoss()), ("Distillation", "forward_kl"),
     ("Distillation", PLDLoss()), ("GRPO", GroupPolicyLoss("grpo"))],
    ids=["tokens", "sequences", "divergence", "objective", "rewards"],
)  # fmt: skip
def test_a_batch_of_nothing_is_zero_with_a_graph(parts, tmp_path, kind, loss):
    trainer = parts.trainer(kind, tmp_path, loss)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    for name, value in {"labels": -100, "completion_mask": 0, "num_items_in_batch": 0, "items": 0}.items():
        if name in batch:
            batch[name] = torch.full_like(batch[name], value)
    value = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(0))
    value.backward()
    assert float(value.detach()) == 0.0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO"])
def test_adapters_are_those_of_trl(parts, tmp_path, kind):
    peft = pytest.importorskip("peft")
    ends = []
    for mine in (True, False):
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        options = {} if mine else SAME[kind][1]
        more = {"ref_model": None} if kind == "DPO" else {}
        trainer = parts.trainer(kind, tmp_path, SAME[kind][0], options=options, mine=mine, peft_config=config, **more)
        trainer.train()
        ends.append(trainer)
    same_weights(ends[0].model, ends[1].model)
    assert logged(ends[0], "loss") == pytest.approx(logged(ends[1], "loss"), rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=["half", "checkpoints"])
def test_half_precision_and_checkpoints(parts, tmp_path, kind, options):
    """Products in bfloat16 round differently in the two: some thousandths of a loss."""
    first = trained(parts.trainer(kind, tmp_path, SAME[kind][0], options=options, steps=1))
    second = trained(parts.trainer(kind, tmp_path, mine=False, options={**SAME[kind][1], **options}, steps=1))
    for name in ("loss", "grad_norm"):
        assert logged(first, name) == pytest.approx(logged(second, name), rel=2e-2, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "more"),
    [("Gemma2", {"final_logit_softcapping": 2.0}), ("Granite", {"logits_scaling": 3.0}),
     ("Cohere", {"logit_scale": 0.25}), ("Phi", {"bias": 0.5}), ("GPT2", {})],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["SFT", "GRPO", "Distillation"])
def test_what_models_do_to_their_logits(parts, tmp_path, kind, family, more):
    """Softcaps and scales, a bias; and tied weights."""
    own = [parts.family(family, **more) for _ in range(2)]
    teacher = {"teacher_model": parts.family(family, 7, **more)} if kind == "Distillation" else {}
    steps = {"optim": "sgd", "learning_rate": 0.1}  # Adam would make steps of gradients that are rounding alone
    first = trained(parts.trainer(kind, tmp_path, SAME[kind][0], own=own[0], options=steps, **teacher))
    options = {**SAME[kind][1], **steps}
    second = trained(parts.trainer(kind, tmp_path, own=own[1], mine=False, options=options, **teacher))
    same_weights(first.model, second.model)
    assert logged(first, "loss") == pytest.approx(logged(second, "loss"), rel=1e-5, abs=1e-6)


def test_the_correction_of_a_sampler_reaches_the_loss(parts, tmp_path):
    """Ratios to what drew the tokens, as TRL hands them on where something else than the model generates."""
    values = []
    for mine in (True, False):
        options = {} if mine else SAME["GRPO"][1]
        trainer = parts.trainer("GRPO", tmp_path, SAME["GRPO"][0], options=options, mine=mine)
        trainer.current_gradient_accumulation_steps = 1
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        inputs["advantages"] = torch.tensor([1.0, -1.0, 0.5, 2.0])
        inputs["importance_sampling_ratio"] = torch.linspace(0.5, 2.0, inputs["completion_ids"].numel()).view(4, -1)
        trainer.use_vllm = True
        values.append(float(trainer.compute_loss(trainer.model, inputs).detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_tokens_of_tools_do_not_count(parts, tmp_path):
    values = []
    for mine in (True, False):
        for kind in ("GRPO", "Distillation"):
            options = {} if mine else SAME[kind][1]
            trainer = parts.trainer(kind, tmp_path, SAME[kind][0], options=options, mine=mine)
            trainer.current_gradient_accumulation_steps = 1
            inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
            inputs["tool_mask"] = torch.ones_like(inputs["completion_mask"])
            inputs["tool_mask"][:, 1] = 0
            inputs["advantages"] = torch.tensor([1.0, -1.0, 0.5, 2.0])
            values.append(float(trainer.compute_loss(trainer.model, inputs).detach()))
    assert values[:2] == pytest.approx(values[2:], rel=1e-5)


def test_columns_of_tokens_are_aligned_as_labels_are(parts, tmp_path):
    """Steps of an answer, from a collator of one's own; and packed rows."""
    loss = DirectCoverageLoss(2.0)
    trainer = parts.trainer("SFT", tmp_path, loss)
    batch = next(iter(trainer.get_train_dataloader()))
    tokens, labels = batch["input_ids"], batch["labels"]
    steps = torch.arange(tokens.shape[1]).expand_as(tokens) // 2
    with torch.no_grad():
        value = trainer.compute_loss(trainer.model, {**batch, "steps": steps})
        logits = trainer.model(input_ids=tokens, attention_mask=batch["attention_mask"]).logits
        wanted = loss(logits[:, :-1], labels[:, 1:], steps=steps[:, 1:])
        plain = loss(logits[:, :-1], labels[:, 1:])
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    assert float(value) != pytest.approx(float(plain), rel=1e-3)


@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_an_output_layer_that_is_watched_gives_logits(parts, tmp_path, kind):
    """A hook on it sees them, or TRL's own pass goes around it; the loss is the same."""
    trainer = parts.trainer(kind, tmp_path, SAME[kind][0])
    batch, seen = next(iter(trainer.get_train_dataloader())), []
    with torch.no_grad():
        value = float(trainer.compute_loss(trainer.model, dict(batch)))
        trainer.model.lm_head.register_forward_hook(lambda *given: seen.append(given[2].shape))
        again = float(trainer.compute_loss(trainer.model, dict(batch)))
    assert again == pytest.approx(value, rel=1e-5)
    assert len(seen) == (kind == "SFT")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_experts_are_balanced_as_by_trl(parts, tmp_path, kind):
    """The share of the auxiliary loss, over two micro-batches."""
    ends = []
    for mine in (True, False):
        options = {"router_aux_loss_coef": 0.5, "optim": "sgd", "learning_rate": 0.1}
        options |= {} if mine else SAME[kind][1]
        own = parts.family("Mixtral", **EXPERTS)
        trainer = parts.trainer(kind, tmp_path, SAME[kind][0], own=own, options=options, mine=mine, accumulation=2)
        ends.append(trained(trainer))
    same_weights(ends[0].model, ends[1].model)
    assert logged(ends[0], "loss") == pytest.approx(logged(ends[1], "loss"), rel=1e-4, abs=1e-6)
    assert logged(ends[0], "aux_loss") == pytest.approx(logged(ends[1], "aux_loss"), rel=1e-4)


@pytest.mark.slow
def test_experts_are_balanced_beside_rewards(parts, tmp_path):
    """Of one of two micro-batches, on tokens that are given: Transformers does not generate with routers' outputs."""
    values = []
    for mine in (True, False):
        options = {"router_aux_loss_coef": 0.5, **({} if mine else SAME["GRPO"][1])}
        own = parts.family("Mixtral", **EXPERTS)
        trainer = parts.trainer("GRPO", tmp_path, SAME["GRPO"][0], own=own, options=options, mine=mine, accumulation=2)
        trainer.current_gradient_accumulation_steps = 2
        tokens = torch.randint(3, len(parts.WORDS), (4, 8), generator=torch.Generator().manual_seed(0))
        ones = torch.ones_like(tokens)
        loss = trainer.compute_loss(trainer.model.train(), {
            "prompt_ids": tokens[:, :3], "prompt_mask": ones[:, :3], "completion_ids": tokens[:, 3:],
            "completion_mask": ones[:, 3:], "advantages": torch.tensor([1.0, -1.0, 0.5, 2.0]),
            "num_items_in_batch": torch.tensor(40), "items": torch.tensor(40.0),
        })  # fmt: skip
        loss.backward()
        values.append([float(loss.detach()), *(float(own.grad.norm()) for own in trainer.model.parameters())])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.slow
def test_an_output_layer_in_float32_is_trls_own(parts, tmp_path):
    """TRL replaces its forward pass: no plain linear layer any more."""
    options = {"cast_lm_head_to_fp32": True, "num_iterations": 2}
    same_run(parts, tmp_path, "GRPO", GroupPolicyLoss("dapo"), {**options, "epsilon_high": 0.28}, options, steps=4)


@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_metrics_of_logits_get_them(parts, tmp_path, kind):
    """An extra pass, as TRL's, without a gradient; the loss stays ours."""
    shapes = []

    def measure(predictions):
        shapes.append(predictions.predictions.shape)
        return {"width": float(predictions.predictions.shape[-1])}

    more = {"eval_dataset": parts.data(kind, 4), "compute_metrics": measure}
    loss = TokenCrossEntropyLoss(0.1) if kind == "SFT" else "hinge"
    named = parts.trainer(kind, tmp_path, loss, **more).evaluate()
    del more["compute_metrics"]
    trainer = parts.trainer(kind, tmp_path, loss, **more)
    plain = trainer.evaluate()
    assert not trainer.loss.training
    assert named["eval_width"] == len(parts.WORDS)
    assert named["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)


@pytest.mark.slow
def test_two_ranks_are_those_of_trl(parts, tmp_path):
    """Answers of other lengths on each; a step counts those of both, as one process does."""
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    run = subprocess.run(
        [sys.executable, str(here / "trl_ranks.py"), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-4000:]
    for kind in KINDS:
        own, wanted = (torch.load(tmp_path / f"{kind}.{who}.pt") for who in ("ours", "trl"))
        for name, value in own.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=5e-6, msg=f"{kind} {name}")
    alone = trained(parts.trainer("SFT", tmp_path, DirectCoverageLoss(4.0), accumulation=2, rows=24))
    sequences = torch.load(tmp_path / "sequences.pt")
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(value, sequences[name], rtol=1e-5, atol=5e-6, msg=name)
