"""Record what other packages' losses of preferences say: values and gradients of one batch, with version.

Run it where trl and openrlhf lie, and commit ``recorded_preference.json``:

    PYTHONPATH=FOLDER_OF_THE_PACKAGES python tests/peers/record_preference.py
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
BATCH = {
    "policy_chosen": [-3.0, -12.0, -5.5, -40.0],
    "policy_rejected": [-4.0, -9.0, -7.25, -22.0],
    "ref_chosen": [-3.5, -11.0, -6.0, -30.0],
    "ref_rejected": [-3.8, -10.5, -6.5, -31.0],
}
LENGTHS = {"chosen_length": [3, 2, 4, 5], "rejected_length": [2, 5, 4, 1]}
KL, UNDESIRABLE = 0.75, 1.5
SETTINGS = {"beta": 0.1, "label_smoothing": 0.1, "tau": 0.05, "gamma": 0.5}


def leaves(batch: dict[str, list[float]]) -> list[Tensor]:
    """The four tensors; the policy's ask for gradients."""
    return [torch.tensor(values, requires_grad=name.startswith("policy")) for name, values in batch.items()]


def said(loss: Tensor, own: list[Tensor]) -> dict[str, Any]:
    """Value and gradients; what is not finite is null."""
    slopes = torch.autograd.grad(loss, own, allow_unused=True)
    clean = [[v if math.isfinite(v) else None for v in slope.tolist()] for slope in slopes if slope is not None]
    return {"value": loss.item() if math.isfinite(loss.item()) else None, "gradients": clean}


class Model(nn.Module):
    """Log-probabilities that are given, spread over the tokens of each answer."""

    def __init__(self, sums: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.sums, self.mask = sums, mask

    def forward(self, **inputs: Any) -> Any:
        """What the trainer reads from its fused head."""
        tokens = self.sums[:, None] * self.mask / self.mask.sum(1, keepdim=True)
        zeros = torch.zeros_like(tokens)
        return types.SimpleNamespace(log_probs=tokens, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def of_trainer(loss_type: str, batch: dict[str, list[float]], beta: float) -> dict[str, Any]:
    """trl's DPO trainer on given log-probabilities."""
    from trl.trainer.dpo_trainer import DPOTrainer

    chosen, rejected, ref_chosen, ref_rejected = leaves(batch)
    counts = torch.tensor(LENGTHS["chosen_length"] + LENGTHS["rejected_length"])
    mask = (torch.arange(7) < counts[:, None] + 1) & (torch.arange(7) > 0)
    trainer: Any = object.__new__(DPOTrainer)
    trainer.accelerator = types.SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    trainer.aux_loss_enabled, trainer.use_weighting, trainer.precompute_ref_logps = False, False, True
    trainer.ld_alpha, trainer.f_divergence_type = None, "reverse_kl"
    trainer.beta, trainer.label_smoothing = beta, SETTINGS["label_smoothing"]
    trainer.args = types.SimpleNamespace(discopop_tau=SETTINGS["tau"])
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = defaultdict(lambda: defaultdict(list)), 0, 1
    trainer.loss_types, trainer.loss_weights = [loss_type], [1.0]
    trainer.model = Model(torch.cat([chosen, rejected]), mask[:, 1:])
    inputs = {
        "input_ids": torch.zeros(8, 7, dtype=torch.long),
        "completion_mask": mask.long(),
        "attention_mask": torch.ones(8, 7),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return said(trainer._compute_loss(trainer.model, inputs, False), [chosen, rejected])


def without_reference() -> dict[str, Any]:
    """trl's ORPO (its odds ratio alone) and SimPO, on log-probabilities per token."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    found = {}
    for name, kind in (("orpo", ORPOTrainer), ("simpo", CPOTrainer)):
        chosen, rejected = leaves(BATCH)[:2]
        trainer: Any = object.__new__(kind)
        trainer.accelerator = types.SimpleNamespace(device=torch.device("cpu"))
        trainer.beta, trainer.label_smoothing, trainer.alpha = SETTINGS["beta"], SETTINGS["label_smoothing"], 0.0
        trainer.loss_type, trainer.simpo_gamma = "simpo", SETTINGS["gamma"]
        call: Callable[..., Any] = trainer.odds_ratio_loss if name == "orpo" else trainer.cpo_loss
        tokens = [torch.tensor(LENGTHS[f"{side}_length"]) for side in ("chosen", "rejected")]
        losses = call(chosen / tokens[0], rejected / tokens[1])[0]
        found[name] = said((-losses if name == "orpo" else losses).mean(), [chosen, rejected])
    return found


def unpaired() -> dict[str, Any]:
    """trl's KTO trainer: three desirable answers, one undesirable, and the divergence that it is told."""
    from trl.trainer.kto_trainer import KTOTrainer

    found = {}
    for name in ("kto", "apo_zero_unpaired"):
        chosen, rejected, ref_chosen, ref_rejected = leaves(BATCH)
        sums = torch.cat([chosen[:3], rejected[:1]])
        mask = (torch.arange(7) > 0).expand(4, 7)
        trainer: Any = object.__new__(KTOTrainer)
        trainer.accelerator = types.SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
        )
        trainer.aux_loss_enabled, trainer.precompute_ref_logps = False, True
        trainer.loss_type, trainer.calculate_KL, trainer.beta = name, name == "kto", SETTINGS["beta"]
        trainer.desirable_weight, trainer.undesirable_weight = 1.0, UNDESIRABLE
        trainer._metrics, trainer._total_train_tokens, trainer._tp_size = defaultdict(lambda: defaultdict(list)), 0, 1
        trainer._compute_kl_logps = lambda model, batch: torch.full((4,), KL)
        trainer.model = Model(sums, mask[:, 1:])
        inputs = {
            "input_ids": torch.zeros(4, 7, dtype=torch.long),
            "completion_mask": mask.long(),
            "attention_mask": torch.ones(4, 7),
            "label": torch.tensor([True, True, True, False]),
            "ref_logps": torch.cat([ref_chosen[:3], ref_rejected[:1]]),
            "ref_KL_logps": torch.zeros(4),
        }
        found[name] = said(trainer._compute_loss(trainer.model, inputs, False), [chosen, rejected])
    return found


def of_openrlhf() -> dict[str, Any]:
    """openrlhf's module, without what the package imports beside it."""
    path = next(p for root in sys.path if (p := Path(root) / "openrlhf" / "models" / "loss.py").is_file())
    package = types.ModuleType("openrlhf_models")
    package.__path__ = [str(path.parent)]  # type: ignore[attr-defined]
    sys.modules["openrlhf_models"] = package
    beside: Any = types.ModuleType("openrlhf_models.utils")  # the real one imports deepspeed
    beside.masked_mean = None
    sys.modules["openrlhf_models.utils"] = beside
    spec = importlib.util.spec_from_file_location("openrlhf_models.loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {}
    for name, options in (("sigmoid", {"label_smoothing": SETTINGS["label_smoothing"]}), ("ipo", {"ipo": True})):
        own = leaves(BATCH)
        loss, chosen, rejected = module.DPOLoss(SETTINGS["beta"], **options)(*own)
        rewards = {"chosen_rewards": chosen.tolist(), "rejected_rewards": rejected.tolist()}
        found[name] = said(loss, own[:2]) | rewards
    return found


def main() -> None:
    """Run every peer on the same inputs and write the file."""
    far = {name: [0.0] * 4 for name in BATCH} | {"policy_chosen": [-1000.0, 0.0, 0.0, 0.0]}
    peers = {
        f"trl {importlib.metadata.version('trl')}": {
            **{name: of_trainer(name, BATCH, SETTINGS["beta"]) for name in TYPES},
            **without_reference(),
            **unpaired(),
            "discopop, far": of_trainer("discopop", far, SETTINGS["beta"]),
        },
        f"openrlhf {importlib.metadata.version('openrlhf')}": of_openrlhf(),
    }
    record = {
        "batch": BATCH,
        "lengths": LENGTHS,
        "settings": SETTINGS,
        "kl": KL,
        "undesirable_weight": UNDESIRABLE,
        "far": far,
        "peers": peers,
    }
    (HERE / "recorded_preference.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
