"""Selective amnesia: forgetting in the layers that hold the facts; the rest weighs more as it suffers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_flag, check_number, check_tensor, refuse, refuse_type
from ...core.loss import Loss, Sample
from ...core.parameter_directions import evaluated
from ...core.reductions import widen
from ...core.terms import kept_terms
from ...core.token_reductions import aggregate_tokens
from ...kernels.token_statistics import token_statistics
from ._forget_retain import ForgetRetainLoss


def adaptive_retain_weight(
    excess: F[Tensor, ""] | float,
    *,
    a: float = 0.3,
    b: float = 6.0,
    c: float = 0.8,
    m_min: float = 1.2,
    m_max: float = 2.8,
) -> Tensor:
    r"""The weight of the rows to keep, by how far their loss lies above where it was.

    .. math:: m = \mathrm{clip}\big(\mathrm{round}_{0.1}(a\, b^D + c), m_{min}, m_{max}\big) \text{ for } D > 0,
        \qquad m = m_{min} \text{ for } D \le 0

    Rounded to one decimal it is constant in pieces; it has no gradient.

    Args:
        excess: D, the loss of rows to keep less its mean over the first epoch.
        a, b, c: a >= 0, b > 0.
        m_min, m_max: bounds, 0 <= m_min <= m_max; the released code has 2.3 for the upper one.

    Returns:
        A scalar in float32 or wider.

    Example:
        >>> [adaptive_retain_weight(d).item() for d in (-1.0, 0.5, 1.5)]
        [1.2000..., 1.5, 2.7999...]
    """
    _check_weights(a, b, c, m_min, m_max)
    d = widen(torch.as_tensor(excess)).detach()
    grown = torch.round(10 * (a * b**d + c)) / 10
    return torch.where(d > 0, grown, m_min).clamp(m_min, m_max)


def _check_weights(a: float, b: float, c: float, m_min: float, m_max: float) -> None:
    check_number("a", a, low=0.0, open_high=True)
    check_number("b", b, low=0.0, open_low=True, open_high=True)
    check_number("c", c, low=-torch.inf, open_low=True, open_high=True)
    check_number("m_min", m_min, low=0.0, open_high=True)
    check_number("m_max", m_max, low=m_min, open_high=True)


class SelectiveAmnesiaLoss(Loss):
    r"""Ascent on rows to forget and descent on rows to keep, whose weight grows when their loss rises.

    .. math:: L = -\mathrm{CE}_{forget} + m\, \mathrm{CE}_{retain}

    with means over tokens and the weight of :func:`adaptive_retain_weight`, against the mean loss of the rows to keep
    over the first epoch, in which the weight is ``m_min``. ``forward(forget, forget_labels, retain, retain_labels,
    head=None)`` takes logits ``[B, T, V]`` or hidden states of a head; labels are aligned. A kind of row that is
    missing contributes 0. Ascent has no bound: stop at a ceiling of the forgotten rows' loss.

    Args:
        a, b, c, m_min, m_max: see :func:`adaptive_retain_weight`.
        ignore_index: label of tokens that don't count.

    Example:
        >>> loss = SelectiveAmnesiaLoss()
        >>> z, y = torch.zeros(1, 2, 4), torch.tensor([[1, -100]])
        >>> loss(z, y, z, y)
        tensor(0.2773)
        >>> loss.end_epoch()
        >>> loss(z, y, 4 * torch.eye(4)[:1, None].expand(1, 2, 4), y).item(), loss.terms["weight"].item()
        (9.9634..., 2.7999...)

    Source: SHA256 at SemEval-2025 Task 4: Selective Amnesia, arXiv:2504.12996.
    """

    name = "selective_amnesia"
    stateful = True
    gradient = "surrogate"
    differentiable = (0, 2)

    reference_sum: Tensor
    reference_tokens: Tensor
    epoch: Tensor

    def __init__(
        self,
        a: float = 0.3,
        b: float = 6.0,
        c: float = 0.8,
        m_min: float = 1.2,
        m_max: float = 2.8,
        *,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        _check_weights(a, b, c, m_min, m_max)
        check_number("ignore_index", ignore_index, integer=True)
        self.a, self.b, self.c, self.m_min, self.m_max = a, b, c, m_min, m_max
        self.ignore_index = ignore_index
        self.register_buffer("reference_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reference_tokens", torch.zeros((), dtype=torch.float64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Begin an epoch, 1-based; the first gives the reference."""
        self.epoch.fill_(epoch - 1)

    def end_epoch(self) -> None:
        """End an epoch, for loops that don't call :meth:`start_epoch`."""
        self.epoch.add_(1)

    def forward(
        self,
        forget: Tensor,
        forget_labels: Tensor,
        retain: Tensor | None = None,
        retain_labels: Tensor | None = None,
        head: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar in float32 or wider."""
        of_forget, _ = self._cross_entropy("forget", forget, forget_labels, head)
        if (retain is None) != (retain_labels is None):
            refuse("retain and retain_labels", "both, or neither", retain)
        if retain is None or retain_labels is None:
            self.terms = kept_terms({"forget": of_forget})
            return -of_forget
        of_retain, tokens = self._cross_entropy("retain", retain, retain_labels, head)
        if self.training:
            with torch.no_grad():
                first = self.epoch == 0
                self.reference_tokens.add_(torch.where(first, tokens, 0))
                self.reference_sum.add_(torch.where(first, of_retain * tokens, 0))
        reference = self.reference_sum / self.reference_tokens.clamp_min(1)
        later = (self.epoch > 0) & (self.reference_tokens > 0)
        excess = torch.where(later, of_retain.detach() - reference, -1.0).to(of_retain)
        weight = adaptive_retain_weight(excess, a=self.a, b=self.b, c=self.c, m_min=self.m_min, m_max=self.m_max)
        self.terms = kept_terms({"forget": of_forget, "retain": of_retain, "weight": weight})
        return weight * of_retain - of_forget

    def _cross_entropy(self, name: str, source: Tensor, labels: Tensor, head: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean over tokens, and how many there are."""
        check_tensor(name, source, ndim=3, floating=True)
        check_tensor(f"{name}_labels", labels, shape=tuple(source.shape[:2]), floating=False)
        of_tokens = token_statistics(source, labels, head, want=("log_p",), ignore_index=self.ignore_index)
        assert of_tokens.log_p is not None
        return aggregate_tokens(-of_tokens.log_p, of_tokens.valid), of_tokens.valid.sum()

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """In the first epoch and in the second, and with rows to forget alone."""
        forget, retain = (ForgetRetainLoss.sample_rows(generator, dtype, device, *size) for size in ((3, 4), (2, 5)))
        later = cls().to(device)
        later(*forget, retain[0] * 0.5, retain[1])
        later.end_epoch()
        return [(cls().to(device), ((*forget, *retain), {})), (later, ((*forget, *retain), {})), (cls(), (forget, {}))]


def freeze_except(model: nn.Module, pattern: str) -> list[str]:
    """Freeze all parameters but those whose names hold a regular expression.

    Args:
        model: changed in place: ``requires_grad`` of each parameter; gradients of frozen ones are dropped.
        pattern: searched for in names, for example ``r"layers\\.[0-5]\\.mlp\\."``.

    Returns:
        The names of those that train, in the model's order.

    Raises:
        ValueError: no name holds it.

    Example:
        >>> freeze_except(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), r"^1\\.")
        ['1.weight', '1.bias']
    """
    if not isinstance(model, nn.Module):
        refuse_type("model", "a module", model)
    names = [name for name, _ in model.named_parameters()]
    trained = [name for name in names if re.search(pattern, name)]
    if not trained:
        refuse("pattern", f"one that some name holds, such as {names[:1]}", pattern)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        if name not in trained:
            parameter.grad = None
    return trained


@torch.no_grad()
def causal_trace(
    model: nn.Module,
    layers: Sequence[nn.Module],
    inputs: I[Tensor, " time"],
    subject_mask: Bool[Tensor, " time"],
    target: int,
    *,
    noise: float = 3.0,
    draws: int = 10,
    embedding: nn.Module | None = None,
    together: bool = False,
    generator: torch.Generator | None = None,
) -> F[Tensor, "layers time"]:
    r"""How much each state brings back of an answer that noise on its subject took away.

    .. math:: \mathrm{IE}(l, t) = p_{l,t} - p^*

    p* is the probability of the answer's token after the prompt when noise is added to the embeddings of the subject,
    and :math:`p_{l,t}` the same with the state of layer l at place t taken from the run without noise; means over
    draws.

    Args:
        model: from tokens ``[B, T]`` to logits ``[B, T, V]``, or to an object with ``logits``; run in evaluation mode
            without gradients, and left as it was.
        layers: modules whose outputs ``[B, T, H]`` (or tuples that begin with them) are traced: blocks, or their MLPs.
        inputs: a prompt ``[T]``.
        subject_mask: its subject ``[T]``, one token at least.
        target: the token of the answer.
        noise: deviations of the embedding's entries that the noise has, > 0.
        draws: of the noise, >= 1.
        embedding: the module that gives the embeddings; None asks ``model.get_input_embeddings()``, or takes the only
            ``nn.Embedding`` that reads the tokens first.
        together: patch all places of a layer at once: one number a layer, repeated.
        generator: of the noise.

    Returns:
        Effects ``[layers, T]`` in [-1, 1].

    Raises:
        ValueError: shapes that differ, an empty subject, a layer that the model does not run.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.block = nn.Embedding(5, 4), nn.Linear(4, 5)
        ...     def forward(self, tokens):
        ...         return self.block(self.embed(tokens))
        >>> model = Model()
        >>> effects = causal_trace(model, [model.block], torch.tensor([1, 2]), torch.tensor([False, True]), 3)
        >>> effects.shape, bool(effects[0, 0] == 0)
        (torch.Size([1, 2]), True)
    """
    check_tensor("inputs", inputs, ndim=1, floating=False)
    check_tensor("subject_mask", subject_mask, shape=tuple(inputs.shape), floating=False)
    check_number("noise", noise, low=0.0, open_low=True, open_high=True)
    check_number("draws", draws, low=1, integer=True)
    check_flag("together", together)
    subject = subject_mask.bool()
    if not bool(subject.any()):
        refuse("subject_mask", "a token of the subject", subject_mask)
    source = _embedding(model, embedding)
    steps = len(inputs)
    deviation = noise * next(source.parameters()).std()
    shown: dict[int, Tensor] = {}
    effects: list[Tensor] = []
    with evaluated(model):
        _hooked(model, inputs[None], target, [_note(layer, place, shown) for place, layer in enumerate(layers)])
        missing = [place for place in range(len(layers)) if place not in shown]
        if missing:
            refuse("layers", "modules that the model runs", f"number {missing[0]}, which it does not")
        rows = inputs.expand(1 if together else steps, steps)
        places = torch.eye(steps, dtype=torch.bool, device=inputs.device)
        places = torch.ones_like(places[:1]) if together else places
        for _ in range(draws):
            width = next(source.parameters()).shape[1]
            device = inputs.device if generator is None else generator.device
            drawn = deviation * torch.randn(steps, width, generator=generator, device=device).to(deviation)
            corrupt = _changed(source, lambda h, drawn=drawn: h + torch.where(subject[:, None], drawn, 0.0).to(h))
            without = _hooked(model, inputs[None], target, [corrupt])
            effects.append(
                torch.stack(
                    [
                        _hooked(
                            model,
                            rows,
                            target,
                            [
                                corrupt,
                                _changed(
                                    layer, lambda h, own=shown[place]: torch.where(places[:, :, None], own.to(h), h)
                                ),
                            ],
                        )
                        - without
                        for place, layer in enumerate(layers)
                    ]
                )
            )
    mean = torch.stack(effects).mean(0)
    return mean.expand(len(layers), steps).clone() if together else mean


Hook = tuple[nn.Module, Callable[[nn.Module, Any, Any], Any]]


def _hooked(model: nn.Module, tokens: Tensor, target: int, hooks: Sequence[Hook]) -> Tensor:
    """The probability of the target after each row ``[B]``, with hooks that go again."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        output = model(tokens)
    logits = output if isinstance(output, Tensor) else output.logits
    return widen(logits[:, -1]).softmax(-1)[:, target]


def _note(layer: nn.Module, place: int, shown: dict[int, Tensor]) -> Hook:
    def hook(module: nn.Module, given: Any, output: Any) -> None:
        shown[place] = (output[0] if isinstance(output, tuple) else output).clone()

    return layer, hook


def _changed(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Hook:
    def hook(module: nn.Module, given: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return layer, hook


def _embedding(model: nn.Module, embedding: nn.Module | None) -> nn.Module:
    """The module that embeds tokens."""
    if embedding is not None:
        return embedding
    if hasattr(model, "get_input_embeddings"):
        ask: Any = model.get_input_embeddings
        table: nn.Module = ask()
        return table
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if not tables:
        refuse("embedding", "the module that embeds tokens", None)
    return tables[0]
