"""Record policy losses, aggregations, advantages and divergence estimates as verl, TRL, OpenRLHF and Liger give them.

Run it where they lie (without what they need for training alone) and commit ``recorded_policy.json``:

    PYTHONPATH=FOLDER_OF_THE_PACKAGES python tests/peers/record_policy.py

OpenRLHF's losses are read from their own two files, which need none of its other packages; TRL's loss is a method of
its trainer, which runs here on what it reads of one.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).parent / "recorded_policy.json"
VOCABULARY = 7
MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
LENGTH = 9


def inputs() -> dict[str, Tensor]:
    """Three answers of 5, 3 and 4 tokens; log-ratios on both sides of usual bounds, two of them far away."""
    place = torch.arange(15, dtype=torch.float64).view(3, 5)
    logp = -0.9 - 0.6 * torch.sin(1.7 * place)
    old = logp + 0.5 * torch.sin(2.9 * place + 1)
    old[0, 1], old[2, 0] = logp[0, 1] + 3, logp[2, 0] - 3
    return {
        "logp": logp,
        "old": old,
        "ref": logp + 0.4 * torch.cos(1.3 * place),
        "advantages": torch.tensor([0.8, -1.1, -0.3], dtype=torch.float64),
        "mask": torch.arange(5) < torch.tensor([5, 3, 4])[:, None],
        "logits": 1.5 * torch.sin(0.37 * torch.arange(15 * VOCABULARY, dtype=torch.float64)).view(3, 5, VOCABULARY),
        "tokens": torch.arange(15).view(3, 5) * 3 % VOCABULARY,
        "rewards": torch.tensor([1.0, 0.0, 0.25, 2.0, -1.0, 0.5, 0.75], dtype=torch.float64),
        "groups": torch.tensor([0, 0, 0, 1, 1, 2, 2]),
    }


def files_of(package: str, *names: str) -> ModuleType:
    """Files of one folder of a package as a package of their own; the last of them."""
    top, *folders = package.split(".")
    root = next(Path(p, top, *folders) for p in sys.path if Path(p, top, *folders, f"{names[-1]}.py").is_file())
    parent: Any = ModuleType("files_of")
    parent.__path__ = [str(root)]
    for absent in ("deepspeed", "flash_attn"):  # named at their top, of no use to losses
        sys.modules.setdefault(absent, ModuleType(absent))
    sys.modules["files_of"] = parent
    for name in names:
        spec = importlib.util.spec_from_file_location(f"files_of.{name}", root / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"files_of.{name}"] = module
        spec.loader.exec_module(module)
    return module


def answer(function: Callable[[Tensor], Any], leaf: Tensor) -> dict[str, Any]:
    """Value and gradient."""
    leaf = leaf.clone().requires_grad_()
    value = function(leaf)
    value = value[0] if isinstance(value, tuple) else value
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return {"value": value.sum().item(), "gradient": gradient.flatten().tolist()}


def of_verl(given: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Aggregations, losses, estimates, advantages."""
    from verl.trainer.ppo import core_algos as verl
    from verl.workers.config import ActorConfig

    logp, old, ref, mask = (given[k] for k in ("logp", "old", "ref", "mask"))
    wide, counts = given["advantages"][:, None].expand_as(logp), mask.to(logp.dtype)
    rows: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        own = {"loss_scale_factor": LENGTH} if mode.endswith("norm") else {}
        rows[f"aggregate {mode}"] = answer(lambda t, m=mode, o=own: verl.agg_loss(t, counts, m, **o), logp)
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio=0.2, clip_ratio_low=0.2,
        clip_ratio_high=0.28, clip_ratio_c=3.0,
    )  # fmt: skip
    for name in ("vanilla", "gspo", "cispo"):
        loss, mode = (
            getattr(verl, f"compute_policy_loss_{name}"),
            "seq-mean-token-mean" if name == "gspo" else "token-mean",
        )
        rows[f"loss {name}"] = answer(
            lambda t, f=loss, m=mode: f(old, t, wide, counts, loss_agg_mode=m, config=config), logp
        )
    for kind in ("k1", "kl", "k2", "mse", "k3", "low_var_kl", "abs", "k3+", "k1+"):
        rows[f"estimate {kind}"] = answer(lambda t, k=kind: verl.kl_penalty(t, ref, k), logp)
    rewards, ones, index = given["rewards"][:, None], torch.ones(7, 1, dtype=torch.float64), given["groups"].numpy()
    grpo, _ = verl.compute_grpo_outcome_advantage(rewards, ones, index, norm_adv_by_std_in_grpo=False)
    rloo, _ = verl.compute_rloo_outcome_advantage(rewards, ones, np.asarray(index))
    rows["advantages grpo"] = {"value": grpo[:, 0].tolist()}
    rows["advantages leave-one-out"] = {"value": rloo[:, 0].tolist()}
    return rows


def of_trl(given: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The losses of its trainer."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    mask = given["mask"].to(torch.float64)

    def loss(logp: Tensor, form: str, level: str, **changes: Any) -> Any:
        arguments = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1} | changes
        accelerator = SimpleNamespace(num_processes=1, gather=lambda t: t, reduce=lambda t, **_: t)
        trainer = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
            aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
            importance_sampling_level=level, beta=arguments.pop("beta", 0.0), loss_type=form, epsilon_low=0.2,
            epsilon_high=1.28 if form == "cispo" else 0.28, args=SimpleNamespace(**arguments),
            model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=LENGTH,
            accelerator=accelerator, _entropy_bonus_enabled=False, _metrics={"train": defaultdict(list)},
            use_adaptive_entropy=False,
        )  # fmt: skip
        batch = {
            "prompt_ids": torch.zeros(3, 1), "prompt_mask": torch.ones(3, 1), "completion_ids": torch.zeros(3, 5),
            "completion_mask": mask, "advantages": given["advantages"], "old_per_token_logps": given["old"],
            "ref_per_token_logps": given["ref"], "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        return GRPOTrainer._compute_loss(trainer, None, batch)

    runs: dict[str, tuple[str, str, dict[str, Any]]] = {
        "loss grpo": ("grpo", "token", {}),
        "loss bnpo": ("bnpo", "token", {}),
        "loss dapo": ("dapo", "token", {}),
        "loss dr_grpo": ("dr_grpo", "token", {}),
        "loss cispo": ("cispo", "token", {}),
        "loss gspo": ("grpo", "sequence", {}),
        "loss grpo, delta": ("grpo", "token", {"delta": 3.0}),
        "loss dapo, beta": ("dapo", "token", {"beta": 0.3}),
        "loss dapo, beta and ratio": ("dapo", "token", {"beta": 0.3, "use_bias_correction_kl": True}),
    }
    return {
        name: answer(lambda t, f=form, v=level, c=changes: loss(t, f, v, **c), given["logp"])
        for name, (form, level, changes) in runs.items()
    }


def of_openrlhf(given: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Its policy loss in both aggregations, with a dual clip, and of sequences."""
    loss = files_of("openrlhf.models", "utils", "loss").PolicyLoss
    wide, mask = given["advantages"][:, None].expand(3, 5), given["mask"].to(torch.float64)
    runs: dict[str, dict[str, Any]] = {
        "loss tokens": {},
        "loss sequences": {"token_level_loss": False},
        "loss tokens, dual": {"dual_clip": 3.0},
        "loss gspo": {"policy_loss_type": "gspo"},
    }
    return {
        name: answer(
            lambda t, o=own: loss(clip_eps_low=0.2, clip_eps_high=0.28, **o)(t, given["old"], wide, mask), given["logp"]
        )
        for name, own in runs.items()
    }


def of_liger(given: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Its chunked loss through a head that is the identity, so that the gradient is that of logits."""
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss

    def loss(logits: Tensor, **own: Any) -> Any:
        module = LigerFusedLinearGRPOLoss(
            epsilon_low=0.2, epsilon_high=0.28, compiled=False, max_completion_length=LENGTH, **own
        )
        return module(
            logits, torch.eye(VOCABULARY, dtype=torch.float64), given["tokens"], given["mask"].long(),
            given["advantages"], ref_per_token_logps=given["ref"], old_per_token_logps=given["old"],
        )  # fmt: skip

    runs: dict[str, dict[str, Any]] = {
        **{f"loss {form}": {"loss_type": form, "beta": 0.0} for form in ("grpo", "bnpo", "dr_grpo")},
        "loss bnpo, beta": {"loss_type": "bnpo", "beta": 0.3},
        "loss bnpo, beta and ratio": {"loss_type": "bnpo", "beta": 0.3, "use_bias_correction_kl": True},
    }
    return {name: answer(lambda t, o=own: loss(t, **o), given["logits"]) for name, own in runs.items()}


def main() -> None:
    """Ask all and write the file."""
    peers = {"verl": of_verl, "trl": of_trl, "openrlhf": of_openrlhf, "liger-kernel": of_liger}
    answers = {
        package: {"version": importlib.metadata.version(package), "answers": ask(inputs())}
        for package, ask in peers.items()
    }
    FILE.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
