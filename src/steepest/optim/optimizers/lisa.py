"""Full fine-tuning of a few layers at a time: the middle layers that train are drawn anew every few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_flag, check_number, refuse, refuse_type
from ...core.search import Int
from ...core.wrapper import Params, Wrapper

Layer = nn.Module | Iterable[Tensor]


class LayerSampler:
    """Draws so many of a number of layers, uniformly and without repetition, from a generator of its own.

    The same seed gives the same sequence; ranks that are given equal generators draw alike. Its state is a tensor, it
    can be copied and pickled.

    Args:
        layers: how many there are, >= 0.
        active: how many are drawn, 0 .. layers.
        generator: on the CPU; one with seed 0 by default.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> sampler = LayerSampler(32, 2)
        >>> sampler.probability, len(sampler.draw()), sampler.expected_updates(1000)
        (0.0625, 2, 62.5)

    Source: LISA: Layerwise Importance Sampling for Memory-Efficient LLM Fine-Tuning, arXiv:2403.17919.
    """

    def __init__(self, layers: int, active: int = 2, generator: torch.Generator | None = None) -> None:
        check_number("layers", layers, low=0, integer=True)
        check_number("active", active, low=0, high=layers, integer=True)
        self.layers, self.active = layers, active
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    @property
    def probability(self) -> float:
        """That a layer is drawn."""
        return self.active / self.layers if self.layers else 0.0

    def expected_updates(self, steps: int) -> float:
        """Of a layer, in so many steps."""
        return steps * self.probability

    def draw(self) -> list[int]:
        """Numbers of the drawn layers, in rising order."""
        chosen = torch.randperm(self.layers, generator=self.generator)[: self.active]
        return sorted(chosen.tolist())

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "active": self.active, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.layers, self.active = state["layers"], state["active"]
        self.generator = torch.Generator()
        self.generator.set_state(state["generator"])


class LISA(Wrapper):
    """Layerwise importance sampling: of the middle layers only a few train, drawn anew every so many steps.

    What is in ``always`` (embeddings, final norm, head), and whatever is in no block, trains in every step. At the
    beginning and after every ``interval`` steps all blocks are frozen (``requires_grad`` False, no gradient) and
    ``active`` of them, drawn by a :class:`LayerSampler`, are unfrozen; also blocks that were frozen when the optimizer
    was built. Frozen weights keep their bits, weight decay too leaves them alone. A block that is frozen loses its
    optimizer state, which is the memory that is saved: about ``active`` blocks' share of it is left; drawn again, it
    begins with fresh averages and a fresh count of steps. A block that is drawn twice in a row goes on.

    With gradient accumulation blocks are drawn at optimizer steps only, and a step that a gradient scaler skips does
    not count. ``DistributedDataParallel`` comes before this wrapper, as it never averages gradients of what was frozen
    when it was built, and with ``find_unused_parameters=True``; ranks draw alike. The last draw stays: who goes on
    without this wrapper unfreezes the blocks. A compiled model is compiled anew when other blocks are drawn.
    Checkpointed activations need inputs that require a gradient. ``zero_grad``, groups, schedules and scalers are those
    of the optimizer that steps.

    Args:
        optimizer: what steps; it has the parameters of all blocks, and of ``always``.
        blocks: the middle layers, as ``ModuleList``, or each as a module or its parameters.
        always: modules (or parameters), or one, that are never frozen, also where a block shares them; they are
            unfrozen where they were frozen before.
        active: blocks that train at a time, 0 .. number of blocks; all of them is the optimizer alone.
        interval: steps between draws, >= 1.
        keep_state: keep the state of frozen blocks.
        generator: of the draws; one with seed 0 by default.

    Raises:
        ValueError: numbers outside their range, a parameter that the optimizer does not have.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6)))
        >>> adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
        >>> optimizer = LISA(adamw, model[1:-1], [model[0], model[-1]], active=1, interval=5)
        >>> [block[0].requires_grad for block in map(list, map(nn.Module.parameters, model))]
        [True, True, False, False, False, True]
        >>> optimizer.active_indices
        [0]

    Source: LISA: Layerwise Importance Sampling for Memory-Efficient LLM Fine-Tuning, arXiv:2403.17919.
    """

    name = "lisa"
    search = {"active": Int(1, 8), "interval": Int(5, 50)}

    def __init__(
        self,
        optimizer: Optimizer,
        blocks: Sequence[Layer] | nn.Module,
        always: Layer | Iterable[Layer] = (),
        active: int = 2,
        interval: int = 20,
        keep_state: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(optimizer)
        check_number("interval", interval, low=1, integer=True)
        check_flag("keep_state", keep_state)
        if not isinstance(blocks, Iterable) or isinstance(blocks, Tensor):
            refuse_type("blocks", "modules, or parameters of each block", blocks)
        lasting = [always] if isinstance(always, (nn.Module, Tensor)) else always
        on = [p for layer in lasting for p in _parameters("always", layer)]
        never = {id(p) for p in on}
        given: Any = blocks
        self.blocks = [[p for p in _parameters("blocks", block) if id(p) not in never] for block in given]
        known = {id(p) for group in self.param_groups for p in group["params"]}
        strangers = [number for number, block in enumerate(self.blocks) if any(id(p) not in known for p in block)]
        if strangers:
            refuse("blocks", "parameters of the optimizer alone", f"others in blocks {strangers}")
        if not never <= known:
            refuse("always", "parameters of the optimizer alone", f"{len(never - known)} others")
        self.sampler = LayerSampler(len(self.blocks), active, generator)
        self.interval, self.keep_state = interval, keep_state
        self.steps = 0
        self.active_indices: list[int] = []
        for p in on:
            p.requires_grad_(True)
        self.draw()

    def draw(self) -> None:
        """Freeze all blocks, and unfreeze those that are drawn now; done by :meth:`step` when it is time."""
        self._activate(self.sampler.draw())

    def _activate(self, numbers: Sequence[int]) -> None:
        self.active_indices = list(numbers)
        training = {id(p) for number in numbers for p in self.blocks[number]}
        for p in (p for block in self.blocks for p in block):
            if id(p) in training:
                p.requires_grad_(True)
            else:
                p.requires_grad_(False)
                p.grad = None
                if not self.keep_state:
                    self.state.pop(p, None)

    def _advance(self, closure: Callable[[], Any] | None) -> None:
        super()._advance(closure)
        self.steps += 1
        if self.steps % self.interval == 0 and self.sampler.active < self.sampler.layers:
            self.draw()

    def own_state(self) -> dict[str, Any]:
        """Steps so far, the blocks that train, the state of the generator."""
        return {
            "steps": self.steps,
            "active": list(self.active_indices),
            "generator": self.sampler.generator.get_state(),
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave, and freeze blocks as it says."""
        numbers = [int(number) for number in state["active"]]
        if (
            len(numbers) != self.sampler.active
            or not set(numbers) <= set(range(len(self.blocks)))
            or (len(set(numbers)) < len(numbers))
        ):
            refuse("state", f"{self.sampler.active} of {len(self.blocks)} blocks", numbers)
        self.steps = int(state["steps"])
        self.sampler.generator.set_state(state["generator"].cpu())
        self._activate(numbers)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` gave, or the state of an optimizer that ran alone until now, but for frozen blocks.

        Raises:
            ValueError: another number of active blocks, or of blocks.
        """
        super().load_state_dict(state_dict)
        self._activate(self.active_indices)

    @classmethod
    def builders(cls) -> list[Callable[[Params], LISA]]:
        """Every parameter a block, all of them active, over optimizers with and without second moments."""

        def over(optimizer: Optimizer, **options: Any) -> LISA:
            blocks = [[p] for group in optimizer.param_groups for p in group["params"]]
            return cls(optimizer, blocks, active=len(blocks), interval=2, **options)

        return [
            lambda params: over(torch.optim.AdamW(params, lr=0.02, eps=1e-6)),
            lambda params: over(torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=0.1), keep_state=True),
        ]


def _parameters(argument: str, layer: Layer) -> list[Tensor]:
    values = (
        list(layer.parameters()) if isinstance(layer, nn.Module) else [layer] if isinstance(layer, Tensor) else layer
    )
    values = list(values)
    for value in values:
        if not isinstance(value, Tensor):
            refuse_type(argument, "modules or parameters", value)
    return values
