"""NoiseFiT: fine-tuning with noise in a few hidden layers, under which predictions must agree."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse, refuse_type
from ...core.kl_estimators import kl_of_logits
from ...core.loss import Sample
from ...core.parameter_directions import evaluated
from ...core.reductions import widen
from ...core.search import Float
from ...core.token_loss import TokenLoss
from ...core.token_reductions import masked
from ...kernels.token_statistics import token_statistics

TINY = 1e-6
LARGEST_FACTOR = 5.0
"""Of the deviation, by the spread of a token's vector or the entropy of its prediction."""
STRATEGIES = ("Largest", "Lowest")


def noise_deviation(
    hidden: F[Tensor, "batch time width"],
    *,
    noise_std: float = 0.1,
    beta: float = 0.1,
    scale: float = 1.0,
    gate: float | Tensor = 1.0,
    logits: F[Tensor, "batch time classes"] | None = None,
    base_std: float | Tensor | None = None,
    squared: bool = False,
) -> F[Tensor, "batch time width"]:
    r"""The deviation of adaptive noise, by robust statistics of each token's vector.

    .. math:: \sigma = s_0\, \mathrm{scale} \cdot \mathrm{gate} \cdot \mathrm{MAD} \cdot f
        \, e^{-\beta |h - m| / (\mathrm{MAD} + 10^{-6})}

    with the lower median m of the vector, the lower median MAD of |h - m| (at least a millionth of its length),
    :math:`s_0` = noise_std times the deviation of all of h, and f at most 5: the exponential of the entropy of the
    token's prediction where ``logits`` are given, else of the variance of its vector over the mean of all tokens'.

    Args:
        hidden: h ``[B, T, H]``; no gradient flows through the deviation.
        noise_std: >= 0.
        beta: >= 0, by how much entries far from the median are spared.
        scale: >= 0.
        gate: a number or a tensor that broadcasts to ``hidden``, bounded to [0, 1].
        logits: ``[B, T, V]`` of the tokens, or None.
        base_std: :math:`s_0` itself, >= 0, in place of noise_std times the deviation.
        squared: multiply by ``noise_std`` once more, as the released code does.

    Returns:
        ``[B, T, H]`` in float32 or wider.

    Example:
        >>> noise_deviation(torch.tensor([[[1.0, 2.0, 3.0, 4.0, 10.0]]]))
        tensor([[[0.7868, 0.8696, 0.9611, 0.8696, 0.4772]]])

    Source: Noise Augmented Fine Tuning for Mitigating Hallucinations in Large Language Models, arXiv:2504.03302.
    """
    check_tensor("hidden", hidden, ndim=3, floating=True)
    for name, value in (("noise_std", noise_std), ("beta", beta), ("scale", scale)):
        check_number(name, value, low=0.0, open_high=True)
    check_flag("squared", squared)
    h = widen(hidden.detach())
    distance = (h - h.median(-1, keepdim=True).values).abs()
    mad = torch.maximum(distance.median(-1, keepdim=True).values, TINY * h.norm(dim=-1, keepdim=True))
    if logits is None:
        spread = h.var(-1, keepdim=True)
        factor = (spread / (spread.mean() + TINY)).exp()
    else:
        check_tensor("logits", logits, shape=(*hidden.shape[:2], None), floating=True)
        log_p = widen(logits.detach()).log_softmax(-1)
        factor = -(log_p.exp() * log_p).sum(-1, keepdim=True)
        factor = factor.exp().to(h)
    s = noise_std * h.std() if base_std is None else torch.as_tensor(base_std).to(h)
    s = s * (scale * noise_std if squared else scale)
    bounded = torch.as_tensor(gate).to(h).clamp(0.0, 1.0)
    return s * bounded * mad * torch.exp(-beta * distance / (mad + TINY)) * factor.clamp(max=LARGEST_FACTOR)


def adaptive_noise(
    hidden: F[Tensor, "batch time width"], *, generator: torch.Generator | None = None, **options: Any
) -> F[Tensor, "batch time width"]:
    """Hidden states with adaptive noise, in their own type; see :func:`noise_deviation`.

    Args:
        hidden: ``[B, T, H]``; the gradient passes as if the noise were a constant.
        generator: of the noise; None is torch's own.
        options: of :func:`noise_deviation`.

    Returns:
        ``[B, T, H]``; where the deviation is 0, the same bits.

    Example:
        >>> h = torch.randn(1, 2, 4)
        >>> torch.equal(adaptive_noise(h, gate=0.0), h), torch.equal(adaptive_noise(h), h)
        (True, False)
    """
    deviation = noise_deviation(hidden, **options)
    draws = torch.randn(deviation.shape, generator=generator, dtype=torch.float32, device=_of(generator, hidden))
    noise = (deviation * draws.to(deviation)).to(hidden.dtype)
    return torch.where(deviation > 0, hidden + noise, hidden)


def _of(generator: torch.Generator | None, like: Tensor) -> torch.device:
    return like.device if generator is None else generator.device


class AdaptiveNoise:
    """Adaptive noise in what some layers give, inside a ``with`` block.

    Layers get it while they train; in evaluation mode only where ``enabled`` is True. What a layer gives is a tensor
    ``[B, T, H]``, or a tuple that begins with one. The hooks go with the block.

    Args:
        layers: modules, such as blocks of a transformer.
        noise_std, beta, squared: see :func:`noise_deviation`.
        generator: of the noise.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> h = torch.randn(1, 2, 4)
        >>> with AdaptiveNoise([layer]):
        ...     torch.equal(layer(h), layer(h))
        False
        >>> torch.equal(layer(h), layer(h))
        True
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        noise_std: float = 0.1,
        beta: float = 0.1,
        *,
        squared: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.layers = list(layers)
        if not self.layers or not all(isinstance(layer, nn.Module) for layer in self.layers):
            refuse_type("layers", "a sequence of modules, at least one", layers)
        check_number("noise_std", noise_std, low=0.0, open_high=True)
        check_number("beta", beta, low=0.0, open_high=True)
        check_flag("squared", squared)
        self.noise_std, self.beta, self.squared, self.generator = noise_std, beta, squared, generator
        self.enabled = False
        self._hooks: ExitStack | None = None

    def __enter__(self) -> Self:
        if self._hooks is not None:
            refuse("AdaptiveNoise", "one block at a time", "another inside")
        self._hooks = ExitStack()
        for layer in self.layers:
            self._hooks.callback(layer.register_forward_hook(self._noisy).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    def _noisy(self, layer: nn.Module, inputs: Any, output: Any) -> Any:
        if not (layer.training or self.enabled):
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        noisy = adaptive_noise(
            hidden, noise_std=self.noise_std, beta=self.beta, squared=self.squared, generator=self.generator
        )
        return (noisy, *output[1:]) if isinstance(output, tuple) else noisy


@torch.no_grad()
def select_layers_by_snr(
    model: nn.Module,
    layers: Sequence[nn.Module],
    inputs: Any,
    *,
    k: int = 3,
    strategy: str = "Largest",
    noise_std: float = 0.1,
    beta: float = 0.1,
    draws: int = 10,
    generator: torch.Generator | None = None,
) -> list[int]:
    r"""The layers whose signal stands most, or least, above adaptive noise: once before training.

    .. math:: \mathrm{SNR}_l = \frac{\mathrm{mean}\,|h_l|}{\mathrm{mean}\,|h'_l - h_l| + 10^{-6}}

    Args:
        model: run once on ``inputs`` in evaluation mode; its modes are left as they were.
        layers: candidates among its modules.
        inputs: what the model takes: a tensor, a tuple of arguments or a dict of keywords.
        k: how many, in 1..len(layers).
        strategy: "Largest" or "Lowest".
        noise_std, beta: of the noise.
        draws: over which its mean is taken, >= 1.
        generator: of the noise.

    Returns:
        Positions in ``layers``, in order.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> select_layers_by_snr(model, list(model), torch.randn(1, 3, 4), k=2)
        [0, 1]
    """
    check_number("k", k, low=1, high=len(layers), integer=True)
    check_number("draws", draws, low=1, integer=True)
    check_choice("strategy", strategy, STRATEGIES)
    given: dict[int, Tensor] = {}
    with evaluated(model), ExitStack() as hooks:
        for place, layer in enumerate(layers):

            def note(_: nn.Module, __: Any, output: Any, place: int = place) -> None:
                given[place] = output[0] if isinstance(output, tuple) else output

            hooks.callback(layer.register_forward_hook(note).remove)
        model(**inputs) if isinstance(inputs, dict) else model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    ratios = []
    for place in range(len(layers)):
        if place not in given:
            refuse("layers", "modules that the model runs", f"number {place}, which it does not")
        h = given[place]
        moved = torch.stack(
            [
                (adaptive_noise(h, noise_std=noise_std, beta=beta, generator=generator) - h).abs().mean()
                for _ in range(draws)
            ]
        ).mean()
        ratios.append(h.abs().mean() / (moved + TINY))
    return sorted(torch.stack(ratios).topk(k, largest=strategy == "Largest").indices.tolist())


def noisefit_loss(
    clean: F[Tensor, "batch time classes"],
    noisy1: F[Tensor, "batch time classes"],
    noisy2: F[Tensor, "batch time classes"],
    labels: I[Tensor, "batch time"],
    *,
    alpha: float = 0.5,
    lam: float = 0.1,
    temperature: float = 1.0,
    ignore_index: int = -100,
    detach_targets: bool = False,
) -> Tensor:
    """The loss of :class:`NoiseFiTLoss` as a function.

    Args:
        clean, noisy1, noisy2: logits ``[B, T, V]`` of the same input, without noise and with two draws of it.
        labels: ``[B, T]``, aligned with them.
        alpha, lam, temperature, ignore_index, detach_targets: see the class.

    Example:
        >>> z, z1, z2 = [[2.0, 0, -1]], [[1.5, 0.2, -1]], [[2.2, -0.1, -0.8]]
        >>> noisefit_loss(*(torch.tensor([z]) for z in (z, z1, z2)), torch.tensor([[0]]))
        tensor(0.0996)
    """
    loss = NoiseFiTLoss(alpha, lam, temperature, detach_targets, ignore_index=ignore_index)
    value: Tensor = loss(clean, labels, noisy1=noisy1, noisy2=noisy2)
    return value


class NoiseFiTLoss(TokenLoss):
    r"""Cross-entropy of clean logits, and how far two noisy predictions lie from the clean one and from each other.

    .. math:: L = \alpha\, \ell + \frac{1 - \alpha}{2} \sum_{k = 1, 2} \mathrm{KL}\big(\mathrm{softmax}(z / T)\,\|\,
        \mathrm{softmax}(z_k)\big) + \lambda\, \mathrm{KL}\big(\mathrm{softmax}(z_2)\,\|\,\mathrm{softmax}(z_1)\big)

    of each token that counts, all terms over the same tokens. ``forward`` takes ``noisy1=`` and ``noisy2=``, logits
    ``[B, T, V]``, or hidden states of ``noisy_head=`` ``[V, D]``; the divergences form logits of all tokens.

    Args:
        alpha: share of cross-entropy, in [0, 1].
        lam: :math:`\lambda` >= 0.
        temperature: T > 0 of the clean prediction.
        detach_targets: stop the gradient in the clean prediction of the divergences; the released code does not.
        aggregation, length, ignore_index: see :class:`~steepest.core.token_loss.TokenLoss`.

    Example:
        >>> z = torch.tensor([[[2.0, 0.0, -1.0]]])
        >>> NoiseFiTLoss()(z, torch.tensor([[0]]), noisy1=z, noisy2=z)
        tensor(0.0849)

    Source: Noise Augmented Fine Tuning for Mitigating Hallucinations in Large Language Models, arXiv:2504.03302.
    """

    name = "noisefit"
    further = ("noisy1", "noisy2", "noisy_head")
    alternatives = {"alpha": 0.3, "lam": 0.7, "temperature": 2.0, "detach_targets": True}
    search = {"alpha": Float(0.1, 0.9), "lam": Float(0.01, 1.0, log=True)}

    def __init__(
        self,
        alpha: float = 0.5,
        lam: float = 0.1,
        temperature: float = 1.0,
        detach_targets: bool = False,
        *,
        aggregation: str | None = None,
        length: float | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(aggregation=aggregation, length=length, ignore_index=ignore_index)
        check_number("alpha", alpha, low=0.0, high=1.0)
        check_number("lam", lam, low=0.0, open_high=True)
        check_number("temperature", temperature, low=0.0, open_low=True, open_high=True)
        check_flag("detach_targets", detach_targets)
        self.alpha, self.lam, self.temperature, self.detach_targets = alpha, lam, temperature, detach_targets

    def token_losses(
        self,
        source: Tensor,
        labels: Tensor,
        head: Tensor | None,
        *,
        noisy1: Tensor | None = None,
        noisy2: Tensor | None = None,
        noisy_head: Tensor | None = None,
        bias: Tensor | None = None,
        softcap: float | None = None,
        **further: Any,
    ) -> tuple[Tensor, Tensor]:
        of_tokens = token_statistics(
            source, labels, head, want=("log_p",), bias=bias, softcap=softcap, ignore_index=self.ignore_index
        )
        assert of_tokens.log_p is not None
        valid = of_tokens.valid
        clean = _logits(masked(source, valid.unsqueeze(-1)), head, bias, softcap)
        noisy = []
        for name, states in (("noisy1", noisy1), ("noisy2", noisy2)):
            check_tensor(name, states, shape=(*labels.shape, None), floating=True)
            assert states is not None
            logits = _logits(masked(states, valid.unsqueeze(-1)), noisy_head, bias if noisy_head is not None else None,
                             softcap if noisy_head is not None else None)  # fmt: skip
            check_tensor(name, logits, shape=tuple(clean.shape))
            noisy.append(logits)
        soft = sum(
            kl_of_logits(one, clean / self.temperature, "forward", stop_reference=self.detach_targets) for one in noisy
        )
        between = kl_of_logits(noisy[0], noisy[1], "forward", stop_reference=False)
        losses = -self.alpha * of_tokens.log_p + (1 - self.alpha) / 2 * soft + self.lam * between
        return losses, valid

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Clean logits, and two with noise."""
        logits, labels = cls.sample_tokens(generator, dtype, device)
        noisy1, noisy2 = (
            logits + 0.3 * torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
            for _ in range(2)
        )
        return [(cls(), ((logits, labels), {"noisy1": noisy1, "noisy2": noisy2}))]


def _logits(states: Tensor, head: Tensor | None, bias: Tensor | None, softcap: float | None) -> Tensor:
    """In float32 or wider, of logits or of hidden states and a head."""
    if head is None:
        return widen(states)
    logits = widen(nn.functional.linear(states, head, bias))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
