"""Embeddings that keep the shortcut of a pre-norm transformer large, small initial weights, and bounds of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor, nn

from ...core.checks import check_number, check_tensor, refuse, refuse_type
from ...core.probe import call_arguments, untouched
from ...core.reductions import widen
from ...core.singular import top_singular

OUTPUTS = ("out_proj", "o_proj", "c_proj", "dense_4h_to_h", "down_proj", "fc2", "linear2", "w2", "wo", "out", "down")
"""Last words of the names of projections whose output is added to the shortcut."""


def small_init_sd(d: int) -> float:
    """Standard deviation of small initial weights, the root of 2 / (5 d).

    >>> round(small_init_sd(512), 7)
    0.0279508
    """
    check_number("d", d, low=1, integer=True)
    return math.sqrt(2 / (5 * d))


class ScaledEmbedding(nn.Embedding):
    r"""An embedding whose outputs are multiplied by the root of their width.

    Weights are N(0, 2 / (5 d)), so that outputs have the standard deviation sqrt(2 / 5) = 0.632 for every d. The weight
    itself is not scaled: a head that shares it has small logits. Positions that are added need the same scale.

    Args:
        num_embeddings: size of the vocabulary, >= 1.
        embedding_dim: d >= 1.
        **options: of ``torch.nn.Embedding``.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> layer = ScaledEmbedding(10, 4)
        >>> bool((layer(torch.tensor(3)) == 2 * layer.weight[3]).all())
        True

    Source: Spike No More: Stabilizing the Pre-training of Large Language Models, arXiv:2312.16903.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, **options: Any) -> None:
        check_number("num_embeddings", num_embeddings, low=1, integer=True)
        check_number("embedding_dim", embedding_dim, low=1, integer=True)
        super().__init__(num_embeddings, embedding_dim, **options)

    def reset_parameters(self) -> None:
        """Draw small weights anew."""
        _draw_rows(self)

    def forward(self, input: Int[Tensor, "*any"]) -> F[Tensor, "*any d"]:
        """Vectors of the numbers of tokens."""
        return super().forward(input) * math.sqrt(self.embedding_dim)


class EmbedLayerNorm(nn.Module):
    r"""An embedding followed by a layer norm: mean 0 and standard deviation 1 for every token, at first.

    Args:
        num_embeddings: size of the vocabulary, >= 1.
        embedding_dim: d >= 2.
        positions: learnt vectors that are added before the norm, for so many positions; 0 for none.
        eps: of the norm, which stands under a root beside the variance of vectors, 2 / (5 d); > 0.
        padding_idx: as of ``torch.nn.Embedding``.

    Raises:
        ValueError: numbers outside their range; a sequence that is longer than the positions.

    Example:
        >>> out = EmbedLayerNorm(10, 64)(torch.arange(10))
        >>> bool((out.std(1, correction=0) - 1).abs().max() < 1e-2)
        True

    Source: Spike No More: Stabilizing the Pre-training of Large Language Models, arXiv:2312.16903.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        positions: int = 0,
        eps: float = 1e-8,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        check_number("num_embeddings", num_embeddings, low=1, integer=True)
        check_number("embedding_dim", embedding_dim, low=2, integer=True)
        check_number("positions", positions, low=0, integer=True)
        check_number("eps", eps, low=0.0, open_low=True)
        self.tokens = nn.Embedding(num_embeddings, embedding_dim, padding_idx)
        self.places = nn.Embedding(positions, embedding_dim) if positions else None
        self.norm = nn.LayerNorm(embedding_dim, eps)
        self.reset_parameters()

    @property
    def weight(self) -> nn.Parameter:
        """Of the vectors of tokens, which a head may share."""
        weight: nn.Parameter = self.tokens.weight  # type: ignore[assignment]
        return weight

    def reset_parameters(self) -> None:
        """Draw small weights anew; gains are 1 and offsets 0."""
        _draw_rows(self.tokens)
        if self.places is not None:
            _draw_rows(self.places)
        self.norm.reset_parameters()

    def forward(self, tokens: Int[Tensor, "*any"]) -> F[Tensor, "*any d"]:
        """Vectors of the numbers of tokens, ``[..., T]``."""
        vectors = self.tokens(tokens)
        if self.places is not None:
            if tokens.ndim == 0 or tokens.shape[-1] > self.places.num_embeddings:
                refuse("tokens", f"at most {self.places.num_embeddings} positions in the last dimension", tokens)
            vectors = vectors + self.places.weight[: tokens.shape[-1]]
        normal: Tensor = self.norm(vectors)
        return normal


def _draw_rows(embedding: nn.Embedding) -> None:
    nn.init.normal_(embedding.weight, std=small_init_sd(embedding.embedding_dim))
    if embedding.padding_idx is not None:
        with torch.no_grad():
            embedding.weight[embedding.padding_idx].zero_()


@torch.no_grad()
def small_init_(
    model: nn.Module,
    d: int,
    n_layers: int,
    *,
    outputs: Collection[str] | Callable[[str], bool] = OUTPUTS,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Draw small initial weights of a transformer, in place, by the role of modules.

    .. math:: W \sim N\bigl(0, \tfrac{2}{5 d}\bigr), \qquad
        W_{out} \sim N\bigl(0, \tfrac{2}{5 d} \cdot \tfrac{1}{2 N}\bigr)

    for all matrices, and those whose output is added to the shortcut. Biases of linear layers become 0; norms stay.
    A weight that several modules share is drawn once. torch's own attention is drawn as one matrix of queries, keys and
    values and an output.

    Args:
        model: changed in place.
        d: width of the shortcut, >= 1.
        n_layers: N >= 1 blocks, each with an attention and a perceptron.
        outputs: last words of the names of linear layers that write into the shortcut, or a function that says it of a
            whole name.
        generator: of the draws; torch's own by default.

    Returns:
        the model.

    Raises:
        ValueError: numbers outside their range; no linear layer is such an output.
        TypeError: no module.

    Example:
        >>> block = nn.ModuleDict({"up": nn.Linear(64, 256), "down": nn.Linear(256, 64)})
        >>> _ = small_init_(block, 64, n_layers=12)
        >>> round(float(block["up"].weight.std() / block["down"].weight.std() / 24**0.5), 1)
        1.0

    Source: Spike No More: Stabilizing the Pre-training of Large Language Models, arXiv:2312.16903.
    """
    if not isinstance(model, nn.Module):
        refuse_type("model", "a module", model)
    check_number("n_layers", n_layers, low=1, integer=True)
    sd = small_init_sd(d)
    writes = outputs if callable(outputs) else lambda name: name.rpartition(".")[2] in outputs
    drawn: set[int] = set()
    written = 0
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            weights = [module.weight]
        elif isinstance(module, nn.MultiheadAttention):
            weights = [
                weight
                for weight in (module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
                if weight is not None
            ]
            if module.in_proj_bias is not None:
                module.in_proj_bias.zero_()
        else:
            continue
        output = isinstance(module, nn.Linear) and writes(name)
        written += output
        for weight in weights:
            if id(weight) not in drawn:
                drawn.add(id(weight))
                weight.normal_(0.0, sd / math.sqrt(2 * n_layers) if output else sd, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
    if not written:
        refuse("outputs", "the last words of names of linear layers that write into the shortcut", outputs)
    return model


def feed_forward_constant(d: int, d_ffn: int) -> float:
    r"""The constant of the bound of a perceptron with normal weights, (sqrt d + sqrt d_ffn)^2.

    >>> feed_forward_constant(512, 2048)
    4608.0
    """
    check_number("d", d, low=1, integer=True)
    check_number("d_ffn", d_ffn, low=1, integer=True)
    return d + d_ffn + 2 * math.sqrt(d * d_ffn)


def feed_forward_bound(s_1: float, s_2: float, shortcut_sd: float, d: int, d_ffn: int) -> float:
    r"""What the gradient can grow by in y = x + W_2 relu(W_1 LN(x)), at initial weights.

    .. math:: \Bigl\lVert \frac{\partial y}{\partial x} \Bigr\rVert_2 \le
        1 + \frac{s_1 s_2}{\sigma_x} (\sqrt d + \sqrt{d_{ffn}})^2

    Args:
        s_1, s_2: standard deviations of the weights, >= 0.
        shortcut_sd: sigma_x > 0, of the input of the norm.
        d, d_ffn: widths, >= 1.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> s = small_init_sd(512)
        >>> round(feed_forward_bound(s, s, s, 512, 2048), 2), round(feed_forward_bound(s, s, 0.4**0.5, 512, 2048), 3)
        (129.8, 6.692)
    """
    for name, value in (("s_1", s_1), ("s_2", s_2)):
        check_number(name, value, low=0.0)
    check_number("shortcut_sd", shortcut_sd, low=0.0, open_low=True)
    return 1 + s_1 * s_2 / shortcut_sd * feed_forward_constant(d, d_ffn)


def shortcut_ratio(
    model: nn.Module,
    inputs: Any,
    blocks: Mapping[str, nn.Module] | Collection[str],
    loss: Callable[[Any], Tensor],
) -> dict[str, dict[str, float]]:
    r"""Shortcut and sub-layers of each block of a pre-norm transformer, and how gradients grow through it.

    Args:
        model: called once with the inputs; it is left as it was, also after an exception.
        inputs: of a batch: a tensor, a tuple of arguments or a mapping of them.
        blocks: names of the modules, from first to last, that take the shortcut ``[..., d]`` as their first argument
            and give it on (``["blocks.0", "blocks.1"]``).
        loss: of the outputs of the model.

    Returns:
        by block: ``"shortcut_sd"``, the standard deviation over the features of its input, averaged over tokens;
        ``"sublayer_norm"``, the largest product of spectral norms of a linear layer from d to another width and the
        next one back; ``"bound"`` 1 + that product over the standard deviation;
        ``"jacobian_ratio"``, the norm of the gradient at its input over that at the output of the last block. A block
        without such layers has a norm of 0 and the bound 1.

    Raises:
        ValueError: a name that no module has, a block that is not called or gives no tensor.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2))
        >>> _ = nn.init.eye_(model[0][0].weight), nn.init.zeros_(model[0][0].bias)
        >>> x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> round(shortcut_ratio(model, x, ["0"], lambda outputs: outputs.sum())["0"]["jacobian_ratio"], 4)
        1.0

    Source: Spike No More: Stabilizing the Pre-training of Large Language Models, arXiv:2312.16903. The bound is one at
    initial weights, and upwards.
    """
    modules = dict(model.named_modules())
    names = list(blocks)
    for name in names:
        if name not in modules:
            refuse("blocks", "names of modules of the model", name)
    entered: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}

    def enter(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> Any:
            x = args[0]
            if not isinstance(x, Tensor):
                refuse("blocks", "modules whose first argument is a tensor", name)
            entered[name] = x if x.requires_grad else x.detach().requires_grad_()
            return (entered[name], *args[1:])

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            out = output[0] if isinstance(output, (tuple, list)) else output
            check_tensor("blocks", out)
            left[name] = out

        return hook

    args, kwargs = call_arguments(inputs)
    with untouched(model), torch.enable_grad():
        handles = [modules[name].register_forward_pre_hook(enter(name)) for name in names]
        handles += [modules[name].register_forward_hook(leave(name)) for name in names]
        try:
            value = loss(model(*args, **kwargs))
        finally:
            for handle in handles:
                handle.remove()
        for name in names:
            if name not in entered:
                refuse("blocks", "modules that are called", name)
        ends = [entered[name] for name in names] + [left[names[-1]]]
        slopes = torch.autograd.grad(value, ends, allow_unused=True)
    norms = [math.nan if slope is None else float(torch.linalg.vector_norm(widen(slope))) for slope in slopes]
    result = {}
    for name, norm in zip(names, norms):
        sd = float(widen(entered[name].detach()).std(-1, correction=0).mean())
        largest = _sublayer_norm(modules[name], entered[name].shape[-1])
        result[name] = {
            "shortcut_sd": sd,
            "sublayer_norm": largest,
            "bound": 1 + largest / sd if sd else math.inf,
            "jacobian_ratio": norm / norms[-1] if norms[-1] else math.nan,
        }
    return result


def _sublayer_norm(block: nn.Module, d: int) -> float:
    """The largest product of the spectral norms of a linear layer from d to another width and the next one back."""
    largest, inner, inwards = 0.0, d, 0.0
    for module in block.modules():
        if not isinstance(module, nn.Linear):
            continue
        if module.in_features == d != module.out_features:
            inner, inwards = module.out_features, float(top_singular(module.weight)[0])
        elif module.out_features == d and module.in_features == inner != d:
            largest = max(largest, inwards * float(top_singular(module.weight)[0]))
    return largest
