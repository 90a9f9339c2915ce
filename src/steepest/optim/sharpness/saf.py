"""Sharpness-aware training for free: outputs are held near those of some epochs ago, or of an averaged model."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...core.checks import check_index, check_logits, check_number, check_tensor, refuse
from ...core.loss import Sample
from ...core.memory import SampleMemory
from ...core.method import Method, Plain
from ...core.objective import Batch, Objective, TaskInfo
from ...core.reductions import reduce, widen
from ...core.search import Float


def trajectory_kl(
    past: F[Tensor, "batch classes"], current: F[Tensor, "batch classes"], tau: float = 5.0, *, reduction: str = "mean"
) -> Tensor:
    r"""How far today's tempered predictions are from earlier ones, at the scale of their logits.

    .. math:: \tau^2 \, KL\left(\mathrm{softmax}(h / \tau) \,\|\, \mathrm{softmax}(z / \tau)\right)

    The gradient in z is :math:`\tau (\mathrm{softmax}(z / \tau) - \mathrm{softmax}(h / \tau))`. For large tau it is
    half the mean square of the centred difference h - z.

    Args:
        past: h ``[N, C]``, logits; no gradient flows into them.
        current: z ``[N, C]``, logits.
        tau: temperature > 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        In float32 or wider.

    Raises:
        ValueError: other shapes, tau not above 0.

    Example:
        >>> trajectory_kl(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 1.0, 0.0]]), tau=1.0)
        tensor(0.3797)

    Source: Sharpness-Aware Training for Free, arXiv:2205.14083.
    """
    check_logits(current)
    check_tensor("past", past, floating=True, shape=tuple(current.shape))
    check_number("tau", tau, low=0.0, open_low=True)
    log_q = (widen(current) / tau).log_softmax(-1)
    log_p = (past.detach().to(log_q.dtype) / tau).log_softmax(-1)
    return reduce(tau * tau * (log_p.exp() * (log_p - log_q)).sum(-1), reduction)


class TrajectoryLoss(Objective):
    r"""Cross-entropy, and a term that holds each sample's outputs near its own of ``delay`` epochs ago (SAF).

    .. math:: L = CE(z, y) + \lambda \tau^2 \operatorname{mean}_i
        KL\left(\mathrm{softmax}(h_i / \tau) \,\|\, \mathrm{softmax}(z_i / \tau)\right)

    A loss that falls abruptly along the trajectory ends in a sharp minimum; so a step costs one pass, and the memory
    of logits takes the place of the second one. Logits are those of the training pass, with its augmentation, kept for
    ``delay + 1`` epochs in ``state_dict``. The term is there after epoch ``start``; a sample that was not visited
    ``delay`` epochs ago contributes none. A sample that is visited twice in an epoch meets the same past twice.

    Args:
        num_samples: N, rows of the training split.
        num_classes: C >= 2.
        lam: weight >= 0; the official script takes 0.16, its description 0.3.
        tau: temperature > 0.
        delay: epochs between a prediction and its use, >= 1.
        start: the last epoch without the term, >= 0.
        dtype: of the stored logits; half types are enough.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> loss = TrajectoryLoss(num_samples=4, num_classes=3, delay=1, start=1)
        >>> y, index = torch.tensor([0]), torch.tensor([2])
        >>> loss.start_epoch(1)
        >>> loss(torch.tensor([[2.0, 0.0, -1.0]]), y, index=index)
        tensor(0.1698)
        >>> loss.start_epoch(2)
        >>> loss(torch.tensor([[1.0, 1.0, 0.0]]), y, index=index)
        tensor(1.0077)

    Source: Sharpness-Aware Training for Free, arXiv:2205.14083.
    """

    name = "saf"
    tasks = ("binary", "multiclass")
    needs = ("index",)
    stateful = True
    search = {"lam": Float(0.05, 1.0, log=True)}
    epoch: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        lam: float = 0.3,
        tau: float = 5.0,
        delay: int = 3,
        start: int = 5,
        dtype: torch.dtype = torch.float16,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_number("num_classes", num_classes, low=2, integer=True)
        check_number("lam", lam, low=0.0)
        check_number("tau", tau, low=0.0, open_low=True)
        check_number("delay", delay, low=1, integer=True)
        check_number("start", start, low=0, integer=True)
        self.num_classes, self.lam, self.tau, self.delay, self.start = num_classes, lam, tau, delay, start
        self.logits = nn.ModuleList(SampleMemory(num_samples, (num_classes,), dtype=dtype) for _ in range(delay + 1))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.now = 0
        """The epoch, as a number: what ``epoch`` keeps for a saved state."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.now = int(self.epoch)

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the size of the training split and its classes."""
        return cls(info.num_samples, info.num_classes, **hyper)

    def start_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Begin an epoch, 1-based: what was recorded ``delay`` epochs ago is the past."""
        self.epoch.fill_(epoch)
        self.now = epoch
        self._slot(epoch).seen.zero_()

    def _slot(self, epoch: int) -> SampleMemory:
        slot: SampleMemory = self.logits[epoch % (self.delay + 1)]  # type: ignore[assignment]
        return slot

    def past(self, index: I[Tensor, " batch"]) -> tuple[F[Tensor, "batch classes"], Tensor]:
        """Logits ``[B, C]`` of ``delay`` epochs ago, and whether there are any."""
        slot = self._slot(self.now - self.delay)
        return slot.read(index), slot.seen[index]

    def forward(  # type: ignore[override]
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        index: I[Tensor, " batch"],
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits, class indices and positions in the training split."""
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        check_tensor("outputs", outputs, shape=(None, self.num_classes))
        self._slot(0).check(index, outputs.shape[0])
        active = self.lam > 0 and self.now > self.start
        if not active and weight is None:
            loss = cross_entropy(widen(outputs), target, reduction=self.reduction)
        else:
            losses = cross_entropy(widen(outputs), target, reduction="none")
            if active:
                past, seen = self.past(index)
                term = trajectory_kl(past, outputs, self.tau, reduction="none")
                losses = losses + self.lam * torch.where(seen, term, 0.0)
            loss = reduce(losses, self.reduction, weight)
        if self.training:
            self._record(index, outputs)
        return loss

    @torch.no_grad()
    def _record(self, index: Tensor, outputs: Tensor) -> None:
        """Keep this epoch's logits; of a sample that is there several times their mean."""
        slot = self._slot(self.now)
        bound = torch.finfo(slot.values.dtype).max
        places = torch.searchsorted(index.sort().values, index)  # one number for each that is equal
        logits = widen(outputs.detach())
        total = torch.zeros_like(logits).index_add_(0, places, logits)
        counts = logits.new_zeros(len(logits), 1).index_add_(0, places, torch.ones_like(logits[:, :1]))
        slot.write(index, (total[places] / counts[places]).clamp(-bound, bound))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax."""
        return outputs.softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The default cases, and one in mid-training."""
        cases = super().samples(generator, dtype, device)
        args, kwargs = sample = cases[-1][1]
        earlier = torch.randn(args[0].shape, generator=generator, dtype=torch.float64).to(device, torch.float32)
        objective = cls(21, args[0].shape[1], tau=2.0, delay=1, start=1).to(device)
        objective.start_epoch(1)
        objective(earlier, args[1], **kwargs)
        objective.start_epoch(2)
        return [*cases, (objective, sample)]


SAFLoss = TrajectoryLoss


class MESA(Method):
    r"""The objective, and a term that holds outputs near those of the averaged model on the same batch.

    .. math:: L + \lambda \tau^2 \operatorname{mean}_i
        KL\left(\mathrm{softmax}(h_i / \tau) \,\|\, \mathrm{softmax}(z_i / \tau)\right), \qquad
        \bar\theta \leftarrow d \bar\theta + (1 - d) \theta \text{ after each step}

    h are the logits of the averaged model in evaluation mode, without a gradient: one more forward pass, and no memory
    of samples. Buffers of the average are those of the model. The average begins as the model at its first batch.

    Args:
        model: the model, to begin the average with; None takes that of the first batch.
        decay: d in [0, 1).
        lam: weight >= 0.
        tau: temperature > 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> from steepest.core.objective import Batch
        >>> from steepest.losses import CrossEntropyLoss
        >>> model, batch = nn.Linear(3, 2), Batch(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
        >>> mesa = MESA(model, lam=0.8)
        >>> loss = mesa.loss(model, batch, CrossEntropyLoss())
        >>> loss.shape
        torch.Size([])
        >>> mesa.after_step()

    Source: Sharpness-Aware Training for Free, arXiv:2205.14083.
    """

    name = "mesa"

    def __init__(
        self, model: nn.Module | None = None, decay: float = 0.9995, lam: float = 0.8, tau: float = 5.0
    ) -> None:
        super().__init__()
        check_number("decay", decay, low=0.0, high=1.0, open_high=True)
        check_number("lam", lam, low=0.0)
        check_number("tau", tau, low=0.0, open_low=True)
        self.decay, self.lam, self.tau = decay, lam, tau
        self._model: list[nn.Module] = []
        """In a list: it is no part of the method."""
        if model is not None:
            self._begin(model)

    def _begin(self, model: nn.Module) -> None:
        self._model = [model]
        for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            key = self._key(name)
            if key not in self._buffers:
                self.register_buffer(key, value.detach().clone())
            elif self._buffers[key].shape != value.shape:  # type: ignore[union-attr]
                refuse("model", f"the one that is averaged: {name} of shape {tuple(value.shape)}", self._buffers[key])

    @staticmethod
    def _key(name: str) -> str:
        return "average " + name.replace(".", " ")

    def averaged(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Outputs of the averaged model, in evaluation mode and without a gradient; nothing is changed by it."""
        if not self._model:
            self._begin(model)
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        values = {name: self._buffers[self._key(name)] for name in names}
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                outputs: Tensor = torch.func.functional_call(model, values, (inputs,))  # type: ignore[arg-type]
        finally:
            for module, training in modes.items():
                module.training = training
        return outputs

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """The objective's loss and the term, a scalar."""
        seen: list[Tensor] = []
        hook = model.register_forward_hook(lambda _, inputs, outputs: seen.append(outputs))
        try:
            loss = Plain().loss(model, batch, objective)
        finally:
            hook.remove()
        past = self.averaged(model, batch.inputs)
        current = seen[0] if seen else model(batch.inputs)
        return loss + self.lam * trajectory_kl(past, current, self.tau)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average towards the model."""
        for model in self._model:
            for name, value in model.named_parameters():
                average = self._buffers[self._key(name)]
                assert average is not None
                average.lerp_(value.detach(), 1 - self.decay)
            for name, buffer in model.named_buffers():
                average = self._buffers[self._key(name)]
                assert average is not None
                average.copy_(buffer)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, value in state_dict.items():
            key = name.removeprefix(prefix)
            if name.startswith(prefix) and key.startswith("average ") and key not in self._buffers:
                self.register_buffer(key, torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)
