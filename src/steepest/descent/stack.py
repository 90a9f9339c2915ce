"""Many as one: models of one architecture over folds and trials, trained as one stack.

Parameters lie in one matrix ``[models, numbers]``; linear layers run as batched products, other layers through
``torch.func``. Each model has its own data, order and hyper-parameters, and gets the same numbers as alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import refuse
from ..core.method import Method, needed
from ..core.objective import Batch, Objective
from ..nn.networks import Network, Residual
from .batches import Sampler, epoch_order, seeded

Run = Callable[[Mapping[str, Tensor], Tensor], Tensor]
_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.LeakyReLU, nn.Identity)


def batched(module: nn.Module, prefix: str = "") -> Run:
    """How ``module`` runs for a stack: ``run(parameters, x)`` with a leading dimension of models everywhere."""
    if isinstance(module, nn.Sequential):
        parts = [batched(child, f"{prefix}{name}.") for name, child in module.named_children()]

        def sequential(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
            for part in parts:
                x = part(parameters, x)
            return x

        return sequential
    if isinstance(module, Network):
        backbone, head = batched(module.backbone, prefix + "backbone."), batched(module.head, prefix + "head.")
        return lambda parameters, x: head(parameters, backbone(parameters, x))
    if isinstance(module, Residual):
        inner = batched(module.inner, prefix + "inner.")
        return lambda parameters, x: x + inner(parameters, x)
    if type(module) is nn.Linear:
        weight, bias = prefix + "weight", prefix + "bias"
        if module.bias is None:
            return lambda parameters, x: torch.bmm(x, parameters[weight].mT)
        return lambda parameters, x: torch.baddbmm(parameters[bias].unsqueeze(1), x, parameters[weight].mT)
    if type(module) in _ELEMENTWISE:
        return lambda parameters, x: module(x)
    if not stackable(module):
        refuse("model", "layers without buffers and dropout in a stack", type(module).__name__)
    names = [name for name, _ in module.named_parameters()]

    def call(own: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(module, own, (x,))
        return found

    mapped = torch.func.vmap(call)
    return lambda parameters, x: mapped({name: parameters[prefix + name] for name in names}, x)


def stackable(module: nn.Module) -> bool:
    """Whether models of this kind can train as a stack: no buffers (running averages), nothing random."""
    noisy = any(isinstance(part, nn.modules.dropout._DropoutNd) for part in module.modules())
    return not noisy and next(module.buffers(), None) is None


class Stack(nn.Module):
    """M models of one architecture as one module: inputs ``[M, B, ...]``, outputs ``[M, B, ...]``.

    Args:
        models: modules of equal architecture, with floating parameters and without buffers or dropout; a
            :class:`Network` gives features too.

    Raises:
        ValueError: architectures differ, or a layer cannot be stacked.

    Example:
        >>> stack = Stack([nn.Linear(3, 2) for _ in range(4)])
        >>> stack(torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """

    flat: Tensor

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        if not models:
            refuse("models", "at least one", models)
        shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in models]
        if any(shape != shapes[0] for shape in shapes):
            refuse("models", "one architecture", sorted({str(shape) for shape in shapes}))
        self.shapes = shapes[0]
        self._template = [models[0]]  # in a list: its own parameters are not this module's
        rows = [torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for model in models]
        self.views: dict[str, nn.Parameter] = {}
        self._build(torch.stack(rows))
        template = models[0]
        self._split = isinstance(template, Network)
        self._backbone = batched(template.backbone, "backbone.") if isinstance(template, Network) else None
        self._head = batched(template.head, "head.") if isinstance(template, Network) else None
        self._run = batched(template)

    def _build(self, flat: Tensor) -> None:
        """Take ``[M, numbers]`` and make each parameter a leaf that is a view of it."""
        self.flat = flat
        self.views = {}
        position = 0
        for number, (name, shape) in enumerate(self.shapes.items()):
            size = int(torch.Size(shape).numel())
            view = nn.Parameter(flat[:, position : position + size].view(-1, *shape))
            self.views[name] = view
            self.register_parameter(f"p{number}", view)
            position += size

    def __len__(self) -> int:
        return len(self.flat)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of every model on its own inputs."""
        return self._run(self.views, inputs)

    def features_and_outputs(self, inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        """``(features, outputs)``; features only if the models are networks of backbone and head."""
        if self._backbone is None or self._head is None:
            return None, self(inputs)
        features = self._backbone(self.views, inputs)
        return features, self._head(self.views, features)

    def member(self, model: int) -> dict[str, Tensor]:
        """The ``state_dict`` of one model, copied out."""
        return {name: view.detach()[model].clone() for name, view in self.views.items()}

    def keep(self, going: Sequence[bool]) -> None:
        """Drop the models that are done."""
        self._build(self.flat[torch.as_tensor(going, device=self.flat.device)].clone())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The matrix of all parameters."""
        return {"flat": self.flat.clone()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Take what :meth:`state_dict` gave."""
        with torch.no_grad():
            self.flat.copy_(state_dict["flat"])


def _key(objective: Objective) -> tuple[object, ...]:
    """Equal for two objectives that compute the same function."""
    hyper = {k: v for k, v in vars(objective).items() if not k.startswith("_") and k not in ("terms", "training")}
    buffers = tuple((name, str(b.dtype), b.detach().cpu().numpy().tobytes()) for name, b in objective.named_buffers())
    children = tuple((name, *_key_of_child(child)) for name, child in objective.named_children())
    return (type(objective), repr(sorted(hyper.items())), buffers, children)


def _key_of_child(child: nn.Module) -> tuple[object, ...]:
    return _key(child) if isinstance(child, Objective) else (type(child), repr(child), repr(sorted(vars(child).keys())))


class StackedObjective(Objective):
    """One objective a model: ``forward`` gives the sum of the models' losses; ``losses`` holds them, ``[M]``.

    Models with equal stateless objectives share one call: losses of unit "sample" on the joined rows, others under
    ``vmap``. Stateful objectives are called one by one.
    """

    name = "stacked"

    def __init__(self, members: Sequence[Objective]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.losses = torch.zeros(len(members))
        first = members[0]
        self.needs, self.unit = first.needs, first.unit
        self._group()

    def _group(self) -> None:
        groups: dict[object, list[int]] = {}
        for number, member in enumerate(self.members):
            assert isinstance(member, Objective)
            alone = member.stateful or next(member.parameters(), None) is not None
            groups.setdefault(number if alone else _key(member), []).append(number)
        self.groups = list(groups.values())
        self._all = len(self.groups) == 1 and len(self.members) > 1

    def start_epoch(self, epoch: int, epochs: int) -> None:
        for member in self.members:
            member.start_epoch(epoch, epochs)  # type: ignore[operator]

    def after_step(self) -> None:
        for member in self.members:
            member.after_step()  # type: ignore[operator]

    def keep(self, going: Sequence[bool]) -> None:
        """Drop the models that are done."""
        self.members = nn.ModuleList([m for m, on in zip(self.members, going) if on])
        self._group()

    def forward(self, outputs: Tensor, target: Tensor, **named: Tensor) -> Tensor:
        losses: list[Tensor] = [outputs.new_zeros(())] * len(self.members)
        for group in self.groups:
            member = self.members[group[0]]
            assert isinstance(member, Objective)
            if len(group) == 1:
                i = group[0]
                losses[i] = member(outputs[i], target[i], **{k: v[i] for k, v in named.items()})
                continue
            pick: Any = slice(None) if self._all else torch.as_tensor(group, device=outputs.device)
            found = self._joined(member, outputs[pick], target[pick], {k: v[pick] for k, v in named.items()})
            for i, loss in zip(group, found.unbind()):
                losses[i] = loss
            member.terms = {}
        stacked = torch.stack(losses)
        self.losses = stacked.detach()
        return stacked.sum()

    def _joined(self, member: Objective, outputs: Tensor, target: Tensor, named: dict[str, Tensor]) -> Tensor:
        models, rows = outputs.shape[:2]
        if member.unit == "sample":
            reduction, member.reduction = member.reduction, "none"
            try:
                flat = {k: v.flatten(0, 1) for k, v in named.items()}
                each: Tensor = member(outputs.flatten(0, 1), target.flatten(0, 1), **flat).view(models, rows)
            finally:
                member.reduction = reduction
            if reduction == "sum":
                return each.sum(1)
            weight = named.get("weight")
            return each.mean(1) if weight is None else each.sum(1) / weight.to(each.dtype).sum(1)
        names = list(named)

        def one(o: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
            loss: Tensor = member(o, t, **dict(zip(names, rest)))
            return loss

        mapped: Tensor = torch.func.vmap(one)(outputs, target, *(named[n] for n in names))
        return mapped


class StackedStep(Method):
    """The plain step for a :class:`Stack`."""

    name = "stacked"

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        assert isinstance(model, Stack)
        features, outputs = model.features_and_outputs(batch.inputs)
        loss: Tensor = objective(outputs, batch.target, **needed(objective, batch, features, None))
        return loss


class StackedBatches:
    """Batches for a stack: model m draws from data set ``which[m]`` in the order of ``seeds[m]``.

    Args:
        datasets: ``(inputs [N, ...], target [N, ...], weight [N] or None)`` each; sizes may differ.
        which: data set of each model.
        seeds: of each model's order; equal seeds on one data set give equal batches.
        batch_size: rows a step, at most the smallest N.
        steps: steps an epoch, the same for all models.
        samplers: each model's own sampler, or None.
    """

    def __init__(
        self,
        datasets: Sequence[tuple[Tensor, Tensor, Tensor | None]],
        which: Sequence[int],
        seeds: Sequence[int],
        *,
        batch_size: int,
        steps: int,
        samplers: Sequence[Sampler | None] | None = None,
    ) -> None:
        if min(len(inputs) for inputs, _, _ in datasets) < batch_size:
            refuse("batch_size", "at most the rows of the smallest data set", batch_size)
        self.rows = [len(inputs) for inputs, _, _ in datasets]
        self.inputs = torch.nn.utils.rnn.pad_sequence([d[0] for d in datasets], batch_first=True)
        self.target = torch.nn.utils.rnn.pad_sequence([d[1] for d in datasets], batch_first=True)
        weights = [d[2] for d in datasets]
        self.weight = (
            None
            if any(w is None for w in weights)
            else torch.nn.utils.rnn.pad_sequence([w for w in weights if w is not None], batch_first=True)
        )
        self.which, self.seeds = list(which), list(seeds)
        self.samplers: list[Sampler | None] = [None] * len(self.which) if samplers is None else list(samplers)
        self.batch_size, self.steps_per_epoch = batch_size, steps

    def keep(self, going: Sequence[bool]) -> None:
        """Drop the models that are done."""
        on = [i for i, g in enumerate(going) if g]
        self.which, self.seeds = [self.which[i] for i in on], [self.seeds[i] for i in on]
        self.samplers = [self.samplers[i] for i in on]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches with a leading dimension of models."""
        drawn: dict[tuple[int, int], Tensor] = {}
        orders = []
        for data, seed, sampler in zip(self.which, self.seeds, self.samplers):
            rows, key = self.rows[data], (data, seed)
            if sampler is not None or key not in drawn:
                labels = self.target[data, :rows]
                drawn[key] = epoch_order(
                    rows, self.batch_size, self.steps_per_epoch, seeded(seed, epoch), labels, sampler
                )
            orders.append(drawn[key])
        device = self.inputs.device
        index = torch.stack(orders, 1).to(device)  # [steps, M, B]
        models = torch.as_tensor(self.which, device=device).unsqueeze(1)
        for step in index:
            weight = None if self.weight is None else self.weight[models, step]
            yield Batch(self.inputs[models, step], self.target[models, step], step, weight)
