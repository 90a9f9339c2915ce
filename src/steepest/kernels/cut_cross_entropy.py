"""Cross-entropy of a linear head whose logits never exist as a whole, with everything a language model asks of it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ..core.checks import check_choice, check_number, check_range, check_tensor, refuse
from ..core.reductions import reduce, widen
from ..core.rowwise import softmax_into
from ..core.transforms import transformed
from ._call import HeadStatistics, Options, prepare
from ._compiled import compiled
from ._filter import GradientFilter, gradient_filter
from ._head import Job, check_cap, check_head
from ._placements import Placed, distributed, localise
from ._ranks import VocabularyShard, parts
from ._rows import Rows

__all__ = [
    "GradientFilter",
    "HeadStatistics",
    "LinearCrossEntropy",
    "VocabularyShard",
    "gradient_filter",
    "indexed_dot",
    "linear_cross_entropy",
    "linear_logsumexp",
    "log_partition_penalty",
]


def linear_cross_entropy(
    hidden: F[Tensor, "*batch width"],
    weight: F[Tensor, "classes width"],
    target: Tensor | tuple[Tensor, Tensor],
    *,
    bias: F[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_weight: F[Tensor, " classes"] | None = None,
    token_weight: F[Tensor, "*batch"] | None = None,
    shift: int = 0,
    num_items: float | Tensor | None = None,
    memory: str | int | float = "auto",
    accumulate: str = "fp32",
    compute_dtype: torch.dtype | None = None,
    filter: str | float | GradientFilter | None = None,
    return_stats: bool = False,
    process_group: Any = None,
    token_group: Any = None,
    valid_rows: int | None = None,
    empty: str = "zero",
) -> Tensor | tuple[Tensor, HeadStatistics]:
    r"""Cross-entropy of softcap(h W' + b) / temperature without a matrix of tokens by classes.

    .. math:: L = \frac{\sum_i w_i c_{y_i} l_i}{\sum_i w_i c_{y_i}} + \lambda \frac{\sum_i w_i \log^2 Z_i}{\sum_i w_i},
        \qquad l_i = \log Z_i - z_{i y_i}

    Tokens that are ignored or have weight 0 are dropped before the matrix products. The logits of one chunk exist at a
    time; their gradient takes their place, so that three matrix products do (four where the weights of losses are only
    known in the backward pass and the logits don't fit ``memory``).

    DTensors need no group. Where ``hidden`` is one, all is meant as a whole, as DTensors are: over a dimension of its
    mesh, ``Shard(0)`` of ``weight`` is a part of the vocabulary, ``Shard`` of a dimension of tokens a share of one
    batch; the loss is that of one rank, a plain tensor, and gradients have the placements of their tensors. Where
    ``hidden`` is a plain tensor it is the rank's own data, as under FSDP2: a sharded ``weight`` is gathered, and its
    gradient is the mean over the ranks, scattered, as FSDP2 does it; this is right for hidden states that are alike
    on all ranks too. A ``process_group`` says that over its ranks the weight is a part of the vocabulary.

    Under transforms of ``torch.func``, with tangents, and on meta or fake tensors all logits are formed by torch's own
    operations, which ``memory``, ``filter`` and ``valid_rows`` don't change; so they are in a backward pass of several
    gradients at once (``is_grads_batched=True``) of single losses whose logits weren't kept.

    Args:
        hidden: h ``[..., D]``, of any floating type.
        weight: W ``[V, D]`` of the same type; this rank's part with ``process_group``.
        target: class indices ``[...]`` in 0..V-1 or ``ignore_index``; probabilities ``[..., V]``; or a pair of class
            indices ``[..., k]`` and their probabilities ``[..., k]``.
        bias: b ``[V]``.
        ignore_index: targets that don't count.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. With probabilities the mean is over tokens, as in torch.
        label_smoothing: s in [0, 1]; the target becomes (1 - s) q + s / V, class weights included as in torch.
        z_loss: lambda >= 0 of the penalty on log Z; see :func:`log_partition_penalty`.
        softcap: s > 0 of s tanh(z / s), or None.
        temperature: > 0.
        class_weight: c ``[V]`` >= 0.
        token_weight: w ``[...]`` >= 0, shaped as the targets.
        shift: k >= 0: ``hidden[..., :-k, :]`` predicts ``target[..., k:]``. Losses then have the shape of
            ``target[..., k:]``; weights of tokens go with their targets.
        num_items: what the mean divides both sums by, in place of their own weights: the tokens of all micro-batches.
        memory: for logits and what is made of them: ``"auto"``, bytes, or the share of free memory in (0, 1].
            ``"auto"``: 64 MiB on the CPU, up to 256 for half matrices; on an accelerator 1 GiB or a sixteenth of what
            is free.
        accumulate: ``"fp32"`` sums the gradient of a half weight over chunks in float32, ``"input"`` in its own type.
        compute_dtype: the type of the matrix products where it isn't that of ``weight``: ``torch.bfloat16`` halves
            their time where the processor has it; logits then carry its rounding, sums and results don't.
        filter: a :class:`GradientFilter`, ``"auto"`` or its threshold: classes that hardly anybody in a chunk gives
            probability are left out of the two products of the gradient. None, the default, leaves out nothing.
        return_stats: give :class:`HeadStatistics` as well.
        process_group: ranks that each hold a part of the vocabulary, in their order, and the same tokens. The ranks
            tell each other their sizes in each call; a :class:`~steepest.kernels.VocabularyShard` saves that. The
            gradient of ``hidden`` is the whole one on each rank.
        token_group: ranks that each hold other tokens and the same weight: loss and mean are over the tokens of all,
            the same number on each rank; gradients are those of the rank's own tokens, whose sum over the ranks is
            the gradient of one rank with all tokens. What averages gradients (DDP, FSDP2) needs the loss times the
            number of ranks. With ``"none"`` losses are the rank's own. Where the ranks are those of ``process_group``
            tokens go to all ranks and their gradients back: each rank's gradients are whole, and nothing is left to
            sum. A shift stays within a rank: sequences that are cut across ranks have their targets shifted first.
        valid_rows: how many tokens count at most, known without asking the device. On the CPU nobody needs it; on an
            accelerator the dropped tokens save time only with it, since counting them would wait for the device.
        empty: ``"zero"`` gives 0 where no token counts, ``"nan"`` what torch gives.

    Returns:
        The loss in float32 or wider, and with ``return_stats`` the statistics.

    Raises:
        ValueError: shapes that don't belong together, a class out of range, an option out of range; groups or DTensors
            under ``torch.compile`` or ``torch.func``.
        TypeError: no tensors, or of another kind.
        RuntimeError: the gradient is differentiated again.

    Example:
        >>> h, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> linear_cross_entropy(h, w, torch.tensor([2]))
        tensor(0.4076)

    Source: Cut Your Losses in Large-Vocabulary Language Models, arXiv:2411.09009.
    """
    shard: VocabularyShard | None = None
    totals: tuple[Any, ...] = ()
    placed = distributed(hidden, weight, bias, target, class_weight, token_weight)
    if torch.compiler.is_compiling():
        if placed or process_group is not None or token_group is not None or filter is not None:
            raise ValueError("process_group, token_group, filter and DTensors: call the loss outside torch.compile")
    elif transformed() and (placed or process_group is not None or token_group is not None):
        raise ValueError("process_group, token_group and DTensors: call the loss outside transforms of torch.func")
    elif placed:
        given = Placed(hidden, weight, bias, target, class_weight, token_weight)
        given = localise(given, process_group, token_group, shift)
        hidden, weight, bias, target = given.hidden, given.weight, given.bias, given.target
        class_weight, token_weight = given.class_weight, given.token_weight
        process_group, totals = given.shard, given.totals
    check_head(hidden, weight, bias, compute_dtype)
    check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
    check_number("z_loss", z_loss, low=0.0)
    check_cap(softcap, temperature)
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    check_choice("accumulate", accumulate, ("fp32", "input"))
    check_choice("empty", empty, ("zero", "nan"))
    if process_group is not None or token_group is not None:
        shard, further = parts(process_group, token_group, weight.shape[0], hidden.shape[:-1].numel())
        totals = (*totals, *further)
    if class_weight is not None:
        classes = weight.shape[0] if shard is None else shard.total
        check_tensor("class_weight", class_weight, floating=True, shape=(classes,))
    options = Options(
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
        shift=shift,
        memory=memory,
        wide_sums=accumulate == "fp32",
        compute_dtype=compute_dtype,
        valid_rows=valid_rows,
        empty=empty,
    )
    if torch.compiler.is_compiling():
        return compiled(hidden, weight, bias, target, class_weight, token_weight, num_items, options, return_stats)
    call = prepare(
        hidden,
        weight,
        bias,
        target,
        class_weight,
        token_weight,
        num_items,
        options,
        shard=shard,
        filter=GradientFilter.of(filter),
        statistics=return_stats,
        totals=totals,
    )
    loss = call.loss(call.job.losses())
    return (loss, call.statistics()) if return_stats else loss


def linear_logsumexp(
    hidden: F[Tensor, "*batch width"],
    weight: F[Tensor, "classes width"],
    *,
    bias: F[Tensor, " classes"] | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    memory: str | int | float = "auto",
) -> F[Tensor, "*batch"]:
    """log sum_v exp z_v of each token, differentiable, without a matrix of tokens by classes.

    Args:
        hidden: ``[..., D]``.
        weight: ``[V, D]``.
        bias: ``[V]``.
        softcap: s > 0 of s tanh(z / s), or None.
        temperature: > 0.
        memory: as of :func:`linear_cross_entropy`. Half hidden states give logits rounded to their type.

    Raises:
        ValueError: shapes that don't belong together.

    Example:
        >>> linear_logsumexp(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        tensor([3.4076])
    """
    check_head(hidden, weight, bias)
    check_cap(softcap, temperature)
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows = Rows(flat, flat.new_zeros(len(flat), dtype=torch.int64), None, None, None, hidden.shape[:-1])

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        return softmax_into(z, g).squeeze(1)

    def dense(z: Tensor) -> Tensor:
        return z.logsumexp(1)

    job = Job(rows, weight, bias, rule, dense, False, softcap=softcap, temperature=temperature, memory=memory)
    return rows.spread(job.losses())


def indexed_dot(
    hidden: F[Tensor, "*batch width"],
    weight: F[Tensor, "classes width"],
    target: I[Tensor, "*batch"],
    *,
    bias: F[Tensor, " classes"] | None = None,
) -> F[Tensor, "*batch"]:
    """The logit of each token's target alone, h_i W_y + b_y, in float32 or wider.

    Args:
        hidden: ``[..., D]``.
        weight: ``[V, D]``.
        target: ``[...]`` in 0..V-1.
        bias: ``[V]``.

    Raises:
        ValueError: shapes that don't belong together, a class out of range.

    Example:
        >>> indexed_dot(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1]))
        tensor([2.])
    """
    check_head(hidden, weight, bias)
    check_tensor("target", target, floating=False, shape=tuple(hidden.shape[:-1]))
    check_range("target", target, 0, weight.shape[0] - 1)
    y = target.long()
    logits = torch.linalg.vecdot(widen(hidden), widen(weight[y]))
    return logits if bias is None else logits + bias[y]


def log_partition_penalty(
    lse: F[Tensor, "*batch"], *, token_weight: F[Tensor, "*batch"] | None = None, reduction: str = "mean"
) -> Tensor:
    """The mean of log^2 Z over tokens: what keeps the log-partition of a language model near 0.

    Args:
        lse: log Z ``[...]``, from :func:`linear_logsumexp`.
        token_weight: ``[...]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> log_partition_penalty(torch.tensor([1.0, 3.0]))
        tensor(5.)

    Source: PaLM: Scaling Language Modeling with Pathways, arXiv:2204.02311.
    """
    check_tensor("lse", lse, floating=True)
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    if token_weight is not None:
        check_tensor("token_weight", token_weight, shape=tuple(lse.shape))
    square = widen(lse).square()
    if reduction == "none":
        return square if token_weight is None else square * token_weight
    return reduce(square.reshape(-1), reduction, None if token_weight is None else token_weight.reshape(-1))


class LinearCrossEntropy(nn.Module):
    """:func:`linear_cross_entropy` with its options kept, for a head whose weight comes with the call.

    Args:
        options: keyword arguments of :func:`linear_cross_entropy`, but for tensors of the batch.

    Example:
        >>> loss = LinearCrossEntropy(shift=1, z_loss=1e-4)
        >>> loss(torch.zeros(2, 5, 4), torch.zeros(7, 4), torch.ones(2, 5, dtype=torch.long))
        tensor(1.9463)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        unknown = set(options) - set(_OPTIONS)
        if unknown:
            refuse("options", "options of linear_cross_entropy: " + ", ".join(_OPTIONS), sorted(unknown)[0])
        self.options = options

    def forward(self, hidden: Tensor, weight: Tensor, target: Any, **tensors: Any) -> Any:
        """The loss; ``bias``, ``token_weight``, ``num_items`` and the like by name."""
        return linear_cross_entropy(hidden, weight, target, **{**self.options, **tensors})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if not isinstance(value, Tensor))


_OPTIONS = tuple(inspect.signature(linear_cross_entropy).parameters)[3:]
