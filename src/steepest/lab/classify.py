"""Train small networks for an experiment: several arms over one data set, as a stack where they allow it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.objective import Objective, TaskInfo
from ..descent import (
    ArrayBatches,
    Descent,
    Hook,
    Stack,
    StackedAdamW,
    StackedBatches,
    StackedObjective,
    StackedStep,
    stackable,
)
from ..nn.networks import Network, mlp


def small_cnn(in_features: int) -> nn.Module:
    """A backbone for :func:`train`, two strided convolutions and 64 rectified units: ``[B, side ** 2] -> [B, 64]``.

    >>> small_cnn(196)(torch.zeros(3, 196)).shape
    torch.Size([3, 64])
    """
    side = math.isqrt(in_features)
    last = -(-side // 4)
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * last * last, 64),
        nn.ReLU(),
    )


@dataclass
class Arm:
    """One training: an objective class with hyper-parameters, a learning rate; after :func:`train`, what it gives.

    Attributes:
        label: name in rows and figures.
        seed: of its backbone, head, order and objective; None for that of the call.
        outputs: ``[N_test, ...]`` of the last epoch.
        train_outputs: ``[N, ...]`` of the last epoch.
        features: ``[N_test, D]`` of the last epoch.
        history: test outputs after every epoch that was asked for.
    """

    label: str
    objective: type[Objective]
    hyper: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3
    weight_decay: float = 1e-4
    target: np.ndarray | None = None
    seed: int | None = None
    outputs: Tensor = field(default_factory=lambda: torch.zeros(0))
    train_outputs: Tensor = field(default_factory=lambda: torch.zeros(0))
    features: Tensor = field(default_factory=lambda: torch.zeros(0))
    history: list[Tensor] = field(default_factory=list)
    trained: Objective | None = None
    network: nn.Module | None = None

    def accuracy(self, y: np.ndarray) -> float:
        """Share of the test rows that are right."""
        assert self.trained is not None
        return float((self.trained.predict(self.outputs).numpy() == y).mean())

    def probabilities(self) -> np.ndarray:
        """Test probabilities, ``[N, C]``."""
        assert self.trained is not None
        probabilities = self.trained.probabilities(self.outputs)
        assert probabilities is not None
        return probabilities.double().numpy()


class _History(Hook):
    def __init__(self, arms: Sequence[Arm], x: Tensor, epochs: Sequence[int]) -> None:
        self.arms, self.x, self.epochs = arms, x, set(epochs)

    def on_epoch_end(self, descent: Descent) -> None:
        if descent.epoch in self.epochs:
            with torch.no_grad():
                if isinstance(descent.model, Stack):
                    outputs = list(descent.model(self.x.expand(len(self.arms), *self.x.shape)))
                else:
                    outputs = [descent.model(self.x)]
            for arm, out in zip(self.arms, outputs):
                arm.history.append(out.clone())


def train(
    arms: Sequence[Arm],
    data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    *,
    epochs: int,
    seed: int,
    batch_size: int = 64,
    width: int = 128,
    depth: int = 2,
    backbone: Callable[[int], nn.Module] | None = None,
    dtype: torch.dtype = torch.float32,
    keep: Sequence[int] = (),
    alone: bool = False,
) -> None:
    """Train every arm on the same batches from the same initial backbone, unless it has its own seed, in place.

    Args:
        arms: their objectives are built from the training split.
        data: ``(x, y, x_test, y_test)``; an arm's own ``target`` takes the place of ``y`` (noisy labels).
        epochs: of each.
        seed: of backbone, heads, order and objectives.
        batch_size, width, depth: of the training and its MLP.
        backbone: another one, ``in_features -> module`` giving ``[B, width]``.
        dtype: of inputs and parameters.
        keep: epochs after which test outputs are kept in ``history``.
        alone: one arm after the other in place of a stack: faster for convolutions.
    """
    x, y, x_test, _ = data
    inputs, test_inputs = torch.as_tensor(x, dtype=dtype), torch.as_tensor(x_test, dtype=dtype)
    regression = y.dtype.kind == "f"
    classes = 1 if regression else int(y.max()) + 1
    batch = min(batch_size, len(x))
    steps = -(-len(x) // batch)
    networks: list[Network] = []
    seeds = [seed if arm.seed is None else arm.seed for arm in arms]
    for arm, seed in zip(arms, seeds):
        target = y if arm.target is None else arm.target
        counts = () if regression else tuple(np.bincount(target, minlength=classes).clip(1).tolist())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            body = mlp(x.shape[1], width=width, depth=depth) if backbone is None else backbone(x.shape[1])
            with torch.no_grad():
                feature_dim = int(body(inputs[:2].float()).shape[1])
            info = TaskInfo(
                "regression" if regression else "binary" if classes == 2 else "multiclass",
                len(x), classes, counts, feature_dim, epochs, steps, seed,
            )  # fmt: skip
            arm.trained = arm.objective.from_task(info, **arm.hyper)
            torch.manual_seed(seed + 1)
            networks.append(Network(body, arm.trained.head(feature_dim, info)).to(dtype))
    targets = [torch.as_tensor(y if a.target is None else a.target, dtype=dtype if regression else None) for a in arms]
    own = any(list(a.trained.parameters()) for a in arms if a.trained)
    together = not alone and not own and all(stackable(n) for n in networks)
    for group in _alike(arms, networks) if together else []:
        _stack(
            [arms[i] for i in group],
            [networks[i] for i in group],
            inputs,
            [targets[i] for i in group],
            [seeds[i] for i in group],
            test_inputs,
            batch,
            steps,
            epochs,
            keep,
        )
    if not together:
        for arm, network, target, seed in zip(arms, networks, targets, seeds):
            assert arm.trained is not None
            batches = ArrayBatches(inputs, target, batch_size=batch, steps=steps, seed=seed)
            optimizer = torch.optim.AdamW(
                [*network.parameters(), *arm.trained.parameters()], lr=arm.lr, weight_decay=arm.weight_decay
            )
            hook = _History([arm], test_inputs, keep)
            Descent(network, arm.trained, batches, optimizer=optimizer, hooks=[hook]).fit(epochs)
            _look(arm, network, inputs, test_inputs)


def _alike(arms: Sequence[Arm], networks: Sequence[Network]) -> list[list[int]]:
    """Arms whose networks have one architecture and whose objectives one contract can train as one stack."""
    groups: dict[Any, list[int]] = {}
    for i, (arm, network) in enumerate(zip(arms, networks)):
        shapes = tuple((name, tuple(p.shape)) for name, p in network.named_parameters())
        assert arm.trained is not None
        groups.setdefault((shapes, repr(network), arm.trained.needs, arm.trained.unit), []).append(i)
    return list(groups.values())


def _stack(
    arms: Sequence[Arm],
    networks: Sequence[Network],
    inputs: Tensor,
    targets: Sequence[Tensor],
    seeds: Sequence[int],
    test_inputs: Tensor,
    batch: int,
    steps: int,
    epochs: int,
    keep: Sequence[int],
) -> None:
    distinct = list({id(t): t for t in targets}.values())
    which = [next(i for i, t in enumerate(distinct) if t is target) for target in targets]
    batches = StackedBatches(
        [(inputs, target, None) for target in distinct], which, seeds, batch_size=batch, steps=steps
    )
    stack = Stack(networks)
    optimizer = StackedAdamW(stack, lr=[a.lr for a in arms], weight_decay=[a.weight_decay for a in arms])
    objective = StackedObjective([a.trained for a in arms if a.trained is not None])
    hook = _History(arms, test_inputs, keep)
    Descent(stack, objective, batches, method=StackedStep(), optimizer=optimizer, hooks=[hook]).fit(epochs)
    for i, (arm, network) in enumerate(zip(arms, networks)):
        network.load_state_dict(stack.member(i))
        _look(arm, network, inputs, test_inputs)


@torch.no_grad()
def _look(arm: Arm, network: Network, inputs: Tensor, test_inputs: Tensor) -> None:
    network.eval()
    if arm.trained is not None:
        arm.trained.eval()
    arm.network = network
    arm.features = network.backbone(test_inputs)
    arm.outputs = network.head(arm.features)
    arm.train_outputs = network(inputs)
