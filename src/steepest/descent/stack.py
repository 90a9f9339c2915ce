"""Many as one: models of one architecture over folds and trials, trained as one stack.

Parameters lie in one matrix ``[models, numbers]``; linear layers run as batched products, other layers through
``torch.func``. Each model has its own data, order and hyper-parameters, and gets the same numbers as alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from ..core.checks import refuse
from ..core.distances import cdist
from ..core.each_member import EachMember
from ..core.heads import ScalarHead
from ..core.objective import Batch, Objective
from ..core.reductions import widen
from ..core.torch_private import AnyDropout
from ..nn.networks import Network, Residual
from .batches import Sampler, epoch_order, seeded
from .by_hand import Affine, Chain, CosinePower, Differentiated, Last, Layer, Rectified, Run, affine
from .joined import Joined, form_of
from .members import is_tabm, layers_of_tabm

if TYPE_CHECKING:
    from ..losses.classification.harmonic import DistanceHead

ROWS = 256
"""Rows at a time that networks of several members see where nothing is trained."""
GATHERED = 1 << 21
"""Bytes of batches that are gathered at once: as much as a processor's second cache holds."""
_NORMS = {"euclidean": 2.0, "manhattan": 1.0}
"""Distances that torch takes of many models at once, by the exponent of their norm."""
_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.LeakyReLU, nn.Identity)


class _Linear(torch.autograd.Function):
    """``x W^T + b`` of each model, whose weights get their gradient in their own layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        below = torch.bmm(upstream, weight) if ctx.needs_input_grad[0] else None
        return below, torch.bmm(upstream.mT, x), upstream.sum(1)


def batched(module: nn.Module, prefix: str = "") -> Run:
    """How ``module`` runs for a stack: ``run(parameters, x)`` with a leading dimension of models everywhere."""
    if type(module) is nn.Sequential:
        parts = [batched(child, f"{prefix}{name}.") for name, child in module.named_children()]

        def sequential(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
            for layer in parts:
                x = layer(parameters, x)
            return x

        return sequential
    if type(module) is Network:
        backbone, head = batched(module.backbone, prefix + "backbone."), batched(module.head, prefix + "head.")
        return lambda parameters, x: head(parameters, backbone(parameters, x))
    if type(module) is ScalarHead:
        linear = batched(module.linear, prefix + "linear.")
        return lambda parameters, x: linear(parameters, x).squeeze(-1)
    if type(module) is Residual:
        inner = batched(module.inner, prefix + "inner.")
        return lambda parameters, x: x + inner(parameters, x)
    if type(module) is nn.Linear:
        weight, bias = prefix + "weight", prefix + "bias"
        if module.bias is None:
            return lambda parameters, x: torch.bmm(x, parameters[weight].mT)

        def affine(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
            outputs: Tensor = _Linear.apply(x, parameters[weight], parameters[bias])
            return outputs

        return affine
    if type(module) in _ELEMENTWISE:
        return lambda parameters, x: module(x)
    if _is_distance_head(module) and module.distance in _NORMS:
        weight, n, eps, p = prefix + "weight", module.n, module.eps, _NORMS[module.distance]
        return lambda parameters, x: -n * torch.log(cdist(widen(x), widen(parameters[weight]), p) + eps)
    if not stackable(module):
        refuse("model", "layers without buffers and dropout in a stack", type(module).__name__)
    names = [name for name, _ in module.named_parameters()]

    def call(own: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(module, own, (x,))
        return outputs

    mapped = torch.func.vmap(call)
    return lambda parameters, x: mapped({name: parameters[prefix + name] for name in names}, x)


def _is_distance_head(module: nn.Module) -> TypeGuard[DistanceHead]:
    harmonic = sys.modules.get("steepest.losses.classification.harmonic")  # not imported: there is no such head
    return harmonic is not None and type(module) is harmonic.DistanceHead


def layers_of(module: nn.Module, prefix: str = "") -> list[Layer]:
    """The layers of ``module``, one after the other, each with its gradient."""
    if type(module) is nn.Sequential:
        layers: list[Layer] = []
        for name, child in module.named_children():
            over = bool(layers) and isinstance(layers[-1], Affine)  # which doesn't read its outputs again
            layers += [Rectified(over)] if type(child) is nn.ReLU else layers_of(child, f"{prefix}{name}.")
        return layers
    if type(module) is Network:
        return [*layers_of(module.backbone, prefix + "backbone."), *layers_of(module.head, prefix + "head.")]
    if type(module) is ScalarHead:
        return [*layers_of(module.linear, prefix + "linear."), Last()]
    if type(module) is nn.Linear and module.bias is not None:
        return [Affine(prefix)]
    if (
        _is_distance_head(module)
        and module.distance == "cosine"
        and module.weight.dtype in (torch.float32, torch.float64)
    ):
        return [CosinePower(prefix, module.n, module.eps)]
    return [Differentiated(batched(module, prefix), [prefix + name for name, _ in module.named_parameters()])]


def stackable(module: nn.Module) -> bool:
    """Whether models of this kind can train as a stack: no buffers (running averages), nothing random; or a TabM."""
    if is_tabm(module):
        return True
    noisy = any(isinstance(layer, AnyDropout) for layer in module.modules())
    return not noisy and next(module.buffers(), None) is None


def _settings(module: nn.Module) -> str:
    """A module's own plain attributes, as text."""
    mine = {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in ("terms", "training")}
    return repr([(k, v.tolist() if isinstance(v, Tensor) else v) for k, v in sorted(mine.items())])


def architecture(model: nn.Module) -> str:
    """Equal for models that differ in nothing but the values of their parameters: those that one stack can hold.

    >>> architecture(nn.Linear(3, 2)) == architecture(nn.Linear(3, 2)), architecture(nn.ReLU()) == "Tanh"
    (True, False)
    """
    lines = []
    for name, layer in model.named_modules():
        shapes = {k: tuple(p.shape) for k, p in layer.named_parameters(recurse=False)}
        lines.append(f"{name} {type(layer).__name__} {shapes} {_settings(layer)}")
    return "\n".join(lines)


class Stack(nn.Module):
    """M models of one architecture as one module: inputs ``[M, B, ...]``, outputs ``[M, B, ...]``.

    Args:
        models: modules of equal architecture, with floating parameters and without buffers or dropout; a
            :class:`Network` gives features too. TabMs have outputs ``[M, B, members, ...]`` and train by hand alone.
        seeds: of each model, for units that it leaves out in training.

    Raises:
        ValueError: architectures differ, or a layer cannot be stacked.

    Example:
        >>> stack = Stack([nn.Linear(3, 2) for _ in range(4)])
        >>> stack(torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """

    flat: Tensor

    def __init__(self, models: Sequence[nn.Module], seeds: Sequence[int] | None = None) -> None:
        super().__init__()
        if not models:
            refuse("models", "at least one", models)
        different = next((m for m in models if architecture(m) != architecture(models[0])), None)
        if different is not None:
            first, second = architecture(models[0]).split("\n"), architecture(different).split("\n")
            line = next((b for a, b in zip(first, second) if a != b), f"{len(second)} layers instead of {len(first)}")
            refuse("models", "one architecture", line)
        self.shapes = {name: tuple(p.shape) for name, p in models[0].named_parameters()}
        self._template = [models[0]]  # in a list: its own parameters are not this module's
        rows = [torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for model in models]
        self.views: dict[str, nn.Parameter] = {}
        template = models[0]
        self.steps = 0
        """Training passes by hand, which units that are left out depend on."""
        self._members = is_tabm(template)
        if self._members:
            layers = layers_of_tabm(models, range(len(models)) if seeds is None else seeds)
        else:
            layers = layers_of(template)
        self._chain = Chain(layers)
        self._build(torch.stack(rows))
        self._backbone = self._head = None
        if isinstance(template, Network) and not self._members:
            self._backbone, self._head = batched(template.backbone, "backbone."), batched(template.head, "head.")
        self._run = self._in_pieces if self._members else batched(template)

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
        self._chain.hold(self.views)

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

    def outputs_by_hand(self, inputs: Tensor) -> Tensor:
        """Outputs in training, under ``torch.no_grad()``; then :meth:`gradients_by_hand` has what it needs."""
        self._chain.leave_out(self.steps)
        self.steps += 1
        return self._chain.forward(inputs)

    def _in_pieces(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs of networks of several members on many rows, few at a time: they are many times as many numbers."""
        if torch.is_grad_enabled():
            refuse("model", "torch.no_grad(), or training by hand, for networks of several members", "a graph")
        self._chain.leave_out(None)
        outputs = [self._chain.forward(piece) for piece in inputs.split(ROWS, 1)]
        self._chain.forget()
        return torch.cat(outputs, 1)

    def gradients_by_hand(self, upstream: Tensor) -> list[Tensor]:
        """The gradients of all parameters, in their order, from that of the outputs; under ``torch.no_grad()``."""
        gradients = self._chain.backward(upstream)
        return [gradients[name] for name in self.views]

    def member(self, model: int) -> dict[str, Tensor]:
        """The ``state_dict`` of one model, copied out."""
        return {name: view.detach()[model].clone() for name, view in self.views.items()}

    def keep(self, going: Sequence[bool]) -> None:
        """Drop the models that are done."""
        on = torch.as_tensor(going, device=self.flat.device)
        self._chain.keep(on)
        self._build(self.flat[on].clone())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The matrix of all parameters, and how many training passes there were."""
        return {"flat": self.flat.clone(), "steps": self.steps}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Take what :meth:`state_dict` gave."""
        if state_dict["flat"].shape != self.flat.shape:
            refuse("flat", f"{len(self)} models of {self.flat.shape[1]} numbers, as now", state_dict["flat"])
        self.steps = int(state_dict.get("steps", 0))
        with torch.no_grad():
            self.flat.copy_(state_dict["flat"])


def _key(objective: nn.Module) -> tuple[object, ...]:
    """Equal for two objectives that compute the same function."""
    buffers = tuple((name, str(b.dtype), b.detach().cpu().numpy().tobytes()) for name, b in objective.named_buffers())
    parts = tuple((name, type(module), _settings(module)) for name, module in objective.named_modules())
    return (buffers, parts)


def _weighs_classes(objective: nn.Module) -> bool:
    """Whether its mean may divide by weights of its own, which losses of rows don't tell."""
    return any(name.rpartition(".")[2] == "class_weight" for name, _ in objective.named_buffers())


class StackedObjective(Objective):
    """One objective a model: ``forward`` gives the sum of the models' losses; ``losses`` holds them, ``[M]``.

    Models with equal stateless objectives share one call: losses of unit "sample" on the joined rows, others under
    ``vmap``. Stateful objectives, and those that weigh classes, are called one by one.

    Args:
        members: the objectives.
        labels: the least and the greatest of all labels, where they are known: no batch's are then looked at.
    """

    name = "stacked"

    def __init__(self, members: Sequence[Objective], labels: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.labels = labels
        self.losses = torch.zeros(len(members))
        first = members[0]
        self.needs, self.unit = first.needs, first.unit
        self._group()

    def _group(self) -> None:
        groups: dict[object, list[int]] = {}
        for number, member in enumerate(self.members):
            assert isinstance(member, Objective)
            alone = member.stateful or next(member.parameters(), None) is not None or _weighs_classes(member)
            groups.setdefault(number if alone else _key(member), []).append(number)
        self.groups = list(groups.values())
        order = torch.tensor([number for group in self.groups for number in group])
        self._in_order = bool((order == torch.arange(len(order))).all())
        self._order, self._back = order, order.argsort()
        members = [member for member in self.members if isinstance(member, Objective)]
        own = any(next(member.parameters(), None) is not None for member in members)
        self.of_outputs = not self.needs and not own
        """Whether :meth:`rows` has the losses: they depend on the outputs and on nothing else that is trained."""
        self._moving = [member for member in members if type(member).after_step is not Objective.after_step]
        self._each = self._members_of_models(members)
        plain = [m.objective if isinstance(m, EachMember) else m for m in members]
        alike = len({type(member) for member in plain}) == 1 and all(m.reduction == "mean" for m in plain)
        self._form = Joined(plain, self.labels) if self.of_outputs and alike and all(map(form_of, plain)) else None

    @staticmethod
    def _members_of_models(objectives: Sequence[Objective]) -> int:
        """How many members each model has whose losses are those of so many rows; 0 where they are single networks."""
        several = [o for o in objectives if isinstance(o, EachMember)]
        counts = {o.members for o in several} if len(several) == len(objectives) else set()
        return counts.pop() if len(counts) == 1 and all(o.unit == "sample" for o in several) else 0

    def start_epoch(self, epoch: int, epochs: int) -> None:
        for member in self.members:
            member.start_epoch(epoch, epochs)  # type: ignore[operator]

    def after_step(self) -> None:
        for member in self._moving:
            member.after_step()

    def keep(self, going: Sequence[bool]) -> None:
        """Drop the models that are done."""
        self.members = nn.ModuleList([m for m, on in zip(self.members, going) if on])
        self._group()

    def forward(self, outputs: Tensor, target: Tensor, **named: Tensor) -> Tensor:
        if len(self.groups) == 1:
            losses = self._losses(self.groups[0], outputs, target, named)
        else:  # cut into groups all at once, so that their gradients come together all at once
            sizes = [len(group) for group in self.groups]
            outputs_of, target_of = self._cut(outputs, sizes), self._cut(target, sizes)
            named_of = {name: self._cut(value, sizes) for name, value in named.items()}
            losses = torch.cat(
                [
                    self._losses(
                        group, outputs_of[i], target_of[i], {name: values[i] for name, values in named_of.items()}
                    )
                    for i, group in enumerate(self.groups)
                ]
            )
            if not self._in_order:
                losses = losses.index_select(0, self._back.to(losses.device))
        self.losses = losses.detach()
        return losses.sum()

    def rows(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sum of the models' losses, and its gradient in the outputs, both without a graph;
        where ``of_outputs``.

        Models whose objectives have a form of :mod:`~steepest.descent.joined` share one call.
        """
        if self._each and self._form is not None:  # a row for each member of a model, with the target of its row
            flat, own = outputs.flatten(1, 2), target.repeat_interleave(self._each, 1)
            if self._form.takes(flat, own):
                weights = None if weight is None else weight.repeat_interleave(self._each, 1)
                total, gradient = self._of_rows(flat, own, weights)
                return total, gradient.view_as(outputs)
        if self._form is None or self._each or not self._form.takes(outputs, target):
            with torch.enable_grad():
                leaf = outputs.detach().requires_grad_()
                total = self(leaf, target, **({} if weight is None else {"weight": weight}))
            (gradient,) = torch.autograd.grad(total, leaf)
            return total.detach(), gradient
        return self._of_rows(outputs, target, weight)

    def _of_rows(self, outputs: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same by the form that all models share."""
        assert self._form is not None
        gradient = torch.empty_like(outputs)
        losses = self._form.rows(outputs, target, gradient)
        if weight is None:
            self.losses = losses.mean(1)
            return self.losses.sum(), gradient.mul_(1.0 / losses.shape[1])
        weight = weight.to(losses.dtype)
        whole = weight.sum(1)
        self.losses = (losses * weight).sum(1) / whole
        return self.losses.sum(), gradient.mul_((weight / whole.unsqueeze(1)).unsqueeze(2))

    def _cut(self, values: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        """``[M, ...]`` of the models, group by group."""
        ordered = values if self._in_order else values.index_select(0, self._order.to(values.device))
        pieces: tuple[Tensor, ...] = ordered.split(sizes)
        return pieces

    def _losses(self, group: list[int], outputs: Tensor, target: Tensor, named: dict[str, Tensor]) -> Tensor:
        """Losses of the models of a group, from what is theirs."""
        member = self.members[group[0]]
        assert isinstance(member, Objective)
        if len(group) == 1:
            loss: Tensor = member(outputs[0], target[0], **{name: value[0] for name, value in named.items()})
            return loss.unsqueeze(0)
        losses = self._joined(member, outputs, target, named)
        member.terms = {}
        return losses

    def _joined(self, member: Objective, outputs: Tensor, target: Tensor, named: dict[str, Tensor]) -> Tensor:
        models, rows = outputs.shape[:2]
        if member.unit == "sample":
            reduction, member.reduction = member.reduction, "none"
            try:
                flat = {k: v.flatten(0, 1) for k, v in named.items()}
                losses: Tensor = member(outputs.flatten(0, 1), target.flatten(0, 1), **flat)
            finally:
                member.reduction = reduction
            losses = losses.view(models, rows, -1)  # several numbers a sample for several labels
            total = losses.sum((1, 2))
            if reduction == "sum":
                return total
            counted = losses.new_ones(models, rows) if (w := named.get("weight")) is None else w.to(losses.dtype)
            ignored = getattr(member, "ignore_index", None)
            if ignored is not None and target.shape == counted.shape and not target.is_floating_point():
                counted = counted * (target != ignored)
            return total / (counted.sum(1) * losses.shape[2])
        names = list(named)

        def one(o: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
            loss: Tensor = member(o, t, **dict(zip(names, rest)))
            return loss

        mapped: Tensor = torch.func.vmap(one)(outputs, target, *(named[n] for n in names))
        return mapped


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
        if 0 < sum(w is None for w in weights) < len(weights):
            refuse("datasets", "weights for all or for none", [w is not None for w in weights])
        self.weight = (
            None
            if any(w is None for w in weights)
            else torch.nn.utils.rnn.pad_sequence([w for w in weights if w is not None], batch_first=True)
        )
        whole = self.target.dtype == torch.int64 and self.target.ndim == 2
        self.labels = (int(self.target.min()), int(self.target.max())) if whole else None
        """The least and the greatest label, where the targets are classes."""
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
        first = torch.as_tensor(self.which, device=device).unsqueeze(1) * self.inputs.shape[1]
        values = [v for v in (self.inputs, self.target, self.weight) if v is not None]
        at_once = max(1, GATHERED // max(1, index[0].numel() * sum(v[0, 0].nbytes for v in values)))
        for steps, rows in zip(index.split(at_once), (index + first).split(at_once)):
            gathered = [v.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, *v.shape[2:]) for v in values]
            for batch in zip(steps.unbind(), *(v.unbind() for v in gathered)):
                step, inputs, target, *weight = batch
                yield Batch(inputs, target, step, weight[0] if weight else None)
