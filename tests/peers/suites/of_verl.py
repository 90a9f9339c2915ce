"""verl's advantages of groups: its loops, read from its file, beside steepest in the place of its vectorised forms."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.group_advantages import group_advantages

FOLDER = "verl"
SOURCE = "verl/trainer/ppo/core_algos.py"
FILES = ("tests/trainer/ppo/test_core_algos_on_cpu.py",)
SUPPORT = (SOURCE,)
ON_CPU: tuple[tuple[str, str], ...] = ()
LEFT_OUT = {
    r"TestRegisterAdvEst": "about their registry of names",
    r"multi_turn_compute_gae": "advantages of a value model, of which there are none here",
}
EXPLAINED: dict[str, str] = {}
NOT_RUN: dict[str, str] = {}
LOOPS = ("compute_grpo_outcome_advantage", "compute_rloo_outcome_advantage")


def _of_answers(rewards: Tensor, mask: Tensor, index: Any, scale: str, **options: Any) -> tuple[Tensor, Tensor]:
    ids = torch.as_tensor(np.unique(np.asarray(index), return_inverse=True)[1])
    advantages = group_advantages(rewards.sum(-1), ids, scale, **options)[:, None] * mask
    return advantages, advantages


def grpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool = True,
    config: Any = None,
) -> tuple[Tensor, Tensor]:
    """Rewards less the mean of their group, over its deviation."""
    scale = "group" if norm_adv_by_std_in_grpo else "none"
    return _of_answers(token_level_rewards, response_mask, index, scale, eps=epsilon)


def rloo(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, epsilon: float = 1e-6, config: Any = None
) -> tuple[Tensor, Tensor]:
    """Rewards less the mean of the other answers."""
    return _of_answers(token_level_rewards, response_mask, index, "none", leave_one_out=True)


def loops(file: Path) -> dict[str, Any]:
    """Two functions of theirs, without what their file imports, and without the names they are registered under."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in LOOPS]
    names: dict[str, Any] = {"torch": torch, "np": np, "defaultdict": defaultdict}
    for node in own:
        node.decorator_list = []
        node.returns = None
        for argument in (*node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
        exec(compile(ast.Module([node], []), str(file), "exec"), names)
    return {name: names[name] for name in LOOPS}


def modules(root: Path) -> dict[str, dict[str, Any]]:
    """Names to import and what they hold."""
    absent = dict.fromkeys(("compute_gae_advantage_return", "get_adv_estimator_fn", "register_adv_est"))
    return {
        "verl.trainer.ppo.core_algos": {
            **(loops(root / SOURCE) if (root / SOURCE).is_file() else {}),
            "compute_grpo_vectorized_outcome_advantage": grpo,
            "compute_rloo_vectorized_outcome_advantage": rloo,
            "ADV_ESTIMATOR_REGISTRY": {},
            **absent,
        }
    }
