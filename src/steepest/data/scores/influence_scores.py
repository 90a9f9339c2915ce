"""Scores of training samples from what a training leaves behind: errors, checkpoints, gradients; pruning by them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from jaxtyping import Bool as B
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import (
    check_choice,
    check_flag,
    check_index,
    check_interval,
    check_logits,
    check_number,
    check_range,
    check_tensor,
    refuse,
    refuse_type,
)
from ...core.probe import call_arguments
from ...core.reductions import widen
from ...core.sample_gradients import chunks_of_gradients, rows_of, samples_of
from ...core.sampler import EpochSampler

LossFn = Callable[[Tensor, Tensor], Tensor]
State = Mapping[str, Tensor]
MODES = ("hard", "easy", "middle", "random")


def el2n(
    logits: F[Tensor, "seeds samples classes"] | F[Tensor, "samples classes"], labels: I[Tensor, " samples"]
) -> F[Tensor, " samples"]:
    r"""EL2N: the length of the error of the predicted probabilities, a mean over trainings.

    .. math:: s_i = \frac1S \sum_{s=1}^S \lVert \mathrm{softmax}(z_{si}) - e_{y_i} \rVert_2 \in [0, \sqrt2]

    The error of the label is summed from the probabilities of the others, so that a sample that is nearly certain keeps
    its digits.

    Args:
        logits: ``[S, N, C]`` of S trainings, taken early in them; or ``[N, C]`` of one. One training is a noisy guide.
        labels: ``[N]``, 0..C-1.

    Returns:
        ``[N]``, float32 or wider; large is hard, or wrongly labelled.

    Raises:
        ValueError: wrong shapes, no training, labels out of range.

    Example:
        >>> el2n(torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).log(), torch.tensor([0, 1]))
        tensor([0.3742, 1.0677])

    Source: Deep Learning on a Data Diet, arXiv:2107.07075; Influence Scores at Scale for Efficient Language Data
    Sampling, arXiv:2311.16298.
    """
    check_tensor("logits", logits, ndim=(2, 3), floating=True)
    trainings = logits if logits.ndim == 3 else logits[None]
    if not len(trainings):
        refuse("logits", "at least one training", logits)
    check_logits(trainings[0], argument="logits")
    check_index(labels, trainings[0], argument="labels")
    residual = _residual(trainings, labels.expand(len(trainings), -1))
    lengths: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return lengths.mean(0)


def _residual(logits: Tensor, labels: Tensor) -> Tensor:
    """softmax(z) - e_y over the last dimension, without the cancellation at the label."""
    p = widen(logits).softmax(-1)
    place = labels.long().unsqueeze(-1)
    others = p.scatter(-1, place, 0.0)
    return others.scatter(-1, place, -others.sum(-1, keepdim=True))


def variance_of_gradients(
    model: nn.Module,
    inputs: Any,
    labels: I[Tensor, " samples"],
    checkpoints: Sequence[State],
    normalize: str | None = "class",
    *,
    embedding: str | None = None,
    batch_size: int = 256,
) -> F[Tensor, " samples"]:
    r"""VoG: how much the slope of the label's logit in the input changes from checkpoint to checkpoint.

    .. math:: S_t = \partial z_{y}^{(t)} / \partial x, \qquad
        s = \frac1D \sum_{d=1}^D \sqrt{\frac1T \sum_t \Big(S_{td} - \frac1T \sum_{t'} S_{t'd}\Big)^2}

    The model runs in evaluation mode, on a copy; each checkpoint costs a forward and a backward pass.

    Args:
        model: ``model(inputs) -> logits [N, C]``; it must not join samples.
        inputs: floating ``[N, ...]``; with ``embedding`` whatever the model takes: a tensor, a tuple or a mapping.
        labels: ``[N]``, 0..C-1.
        checkpoints: state dicts of the model, T >= 1.
        normalize: "class" subtracts the mean of the sample's class and divides by its standard deviation (of the
            population; a class of equal scores gets 0), None leaves the scores as they are, >= 0.
        embedding: the name of a submodule in whose output the slope is taken, over all positions, in place of the
            input: the embedding of words.
        batch_size: samples of a pass, >= 1.

    Returns:
        ``[N]``, float32 or wider.

    Raises:
        ValueError: wrong shapes, labels out of range, no checkpoint or one that does not fit, a model that joins
            samples, an ``embedding`` that the model lacks or does not run once.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> rows = ([1.0, 2.0], [3.0, 2.0], [2.0, 5.0])
        >>> states = [{"weight": torch.tensor([row, [0.0, 0.0]])} for row in rows]
        >>> variance_of_gradients(model, torch.ones(1, 2), torch.tensor([0]), states, normalize=None)
        tensor([1.1154])

    Source: Estimating Example Difficulty using Variance of Gradients, arXiv:2008.11600; Influence Scores at Scale for
    Efficient Language Data Sampling, arXiv:2311.16298.
    """
    check_choice("normalize", normalize, ("class", None))
    check_number("batch_size", batch_size, low=1, integer=True)
    twin = _twin(model, checkpoints)
    check_tensor("labels", labels, ndim=1, floating=False)
    count = samples_of(twin, inputs, labels)
    if embedding is None:
        check_tensor("inputs", inputs, floating=True)
    mean: list[Tensor] = []
    squares: list[Tensor] = []  # running sums of squared distances from the running mean
    for step, state in enumerate(checkpoints, 1):
        twin.load_state_dict(state)
        for place, start in enumerate(range(0, count, batch_size)):
            rows = slice(start, start + batch_size)
            slope = _label_slopes(twin, rows_of(inputs, rows), labels[rows], embedding)
            if step == 1:
                mean.append(slope)
                squares.append(torch.zeros_like(slope))
                continue
            gap = slope - mean[place]
            mean[place] = mean[place] + gap / step
            squares[place] = squares[place] + gap * (slope - mean[place])
    scores = torch.cat([(total / len(checkpoints)).sqrt().flatten(1).mean(1) for total in squares])
    return _by_class(scores, labels.to(scores.device)) if normalize == "class" else scores


def _label_slopes(model: nn.Module, inputs: Any, labels: Tensor, embedding: str | None) -> Tensor:
    """d z_y / d x of each sample, in float32 or wider; with ``embedding`` in the output of that submodule."""
    args, kwargs = call_arguments(inputs)
    with torch.enable_grad():
        if embedding is None:
            leaf = args[0].detach().requires_grad_()
            logits = model(leaf)
        else:
            with _outputs_as_leaves(model, embedding) as leaves:
                logits = model(*args, **kwargs)
            if len(leaves) != 1:
                refuse("embedding", "a submodule that runs once", f"{embedding!r}, which ran {len(leaves)} times")
            (leaf,) = leaves
        check_logits(logits, argument="outputs of the model")
        check_index(labels, logits, argument="labels")
        total = logits.gather(1, labels.long()[:, None]).sum()
        (slope,) = torch.autograd.grad(total, leaf)
    return widen(slope)


@contextmanager
def _outputs_as_leaves(model: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """What a submodule gives, cut from what lies before it, each time it runs."""
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = _submodule(model, name, "embedding").register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()


def _by_class(scores: Tensor, labels: Tensor) -> Tensor:
    """(score - mean of the class) / standard deviation of the class; 0 where all of a class are equal."""
    _, group = labels.unique(return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 0
    count = torch.bincount(group, minlength=groups).to(scores)
    mean = scores.new_zeros(groups).index_add(0, group, scores) / count
    gap = scores - mean[group]
    deviation = (scores.new_zeros(groups).index_add(0, group, gap.square()) / count).sqrt()[group]
    equal = deviation <= 1e-6 * mean[group].abs()  # rounding of a mean of equal numbers
    return torch.where(equal, 0.0, gap / torch.where(equal, 1.0, deviation))


def forgetting_counts(correct: B[Tensor, "checks samples"]) -> I[Tensor, " samples"]:
    r"""Forgetting events: how often a sample was right at one check and wrong at the next.

    .. math:: s_i = \#\{t < T : c_{ti} = 1,\ c_{t+1,i} = 0\}, \qquad s_i = T \text{ if it was never right}

    Args:
        correct: whether the sample was right, at T checks in their order ``[T, N]``: booleans, or integers 0 and 1.

    Returns:
        ``[N]``, int64, 0..T; T stands for infinitely many.

    Raises:
        ValueError: wrong shapes, no check, other values.

    Example:
        >>> forgetting_counts(torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1], [0] * 8]).T)
        tensor([2, 8])

    Source: An Empirical Study of Example Forgetting during Deep Neural Network Learning, arXiv:1812.05159; Influence
    Scores at Scale for Efficient Language Data Sampling, arXiv:2311.16298.
    """
    check_tensor("correct", correct, ndim=2, floating=False)
    if not len(correct):
        refuse("correct", "at least one check", correct)
    if correct.dtype != torch.bool:
        check_range("correct", correct, 0, 1)
    right = correct.bool()
    events = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), events, len(right))


def pointwise_v_information(logp: F[Tensor, " samples"], logp_null: F[Tensor, " samples"]) -> F[Tensor, " samples"]:
    r"""PVI: how many bits the input gives about the label to this family of models.

    .. math:: s_i = \log_2 q(y_i \mid x_i) - \log_2 q_0(y_i)

    Low, and below 0, is hard or wrongly labelled: prune with ``ScoreSampler(..., hard="low")``.

    Args:
        logp: natural logarithms of the probability of each label by the model ``[N]``, <= 0.
        logp_null: the same by a model that was trained on the labels with empty inputs ``[N]``, <= 0.

    Returns:
        ``[N]`` in bits, float32 or wider.

    Raises:
        ValueError: different shapes, logarithms above 0.

    Example:
        >>> pointwise_v_information(torch.tensor([0.8, 0.1]).log(), torch.tensor([0.25, 0.25]).log())
        tensor([ 1.6781, -1.3219])

    Source: Understanding Dataset Difficulty with V-Usable Information, arXiv:2110.08420; Influence Scores at Scale for
    Efficient Language Data Sampling, arXiv:2311.16298.
    """
    check_tensor("logp", logp, ndim=1, floating=True)
    check_tensor("logp_null", logp_null, floating=True, shape=tuple(logp.shape))
    for name, value in (("logp", logp), ("logp_null", logp_null)):
        check_interval(name, value, high=0.0, what="logarithms of probabilities")
    return (widen(logp) - widen(logp_null)) / math.log(2.0)


def last_layer_self_influence(
    features: F[Tensor, "samples width"],
    logits: F[Tensor, "samples classes"],
    labels: I[Tensor, " samples"],
    bias: bool = True,
) -> F[Tensor, " samples"]:
    r"""The squared length of the gradient of each sample's cross-entropy in a linear last layer, in closed form.

    .. math:: \lVert \nabla_{W, b}\, \ell_i \rVert^2
        = \lVert \mathrm{softmax}(z_i) - e_{y_i} \rVert^2 (\lVert h_i \rVert^2 + 1)

    It costs a forward pass: no gradient is formed. It is that of the sample's own loss: the mean over a batch would
    divide it by the square of the batch size.

    Args:
        features: what the last layer takes, h ``[N, D]``.
        logits: what it gives ``[N, C]``.
        labels: ``[N]``, 0..C-1.
        bias: whether the layer has one; False leaves out the + 1.

    Returns:
        ``[N]``, float32 or wider.

    Raises:
        ValueError: wrong shapes, labels out of range.

    Example:
        >>> last_layer_self_influence(torch.tensor([[2.0]]), torch.zeros(1, 2), torch.tensor([0]))
        tensor([2.5000])

    Source: Estimating Training Data Influence by Tracing Gradient Descent, arXiv:2002.08484.
    """
    check_flag("bias", bias)
    check_logits(logits, argument="logits")
    check_index(labels, logits, argument="labels")
    check_tensor("features", features, floating=True, shape=(len(logits), None))
    return _squared(_residual(logits, labels)) * (_squared(widen(features)) + float(bias))


def _squared(values: Tensor) -> Tensor:
    return values.square().sum(1)


def tracin_self_influence(
    model: nn.Module,
    data: tuple[Any, Tensor],
    checkpoints: Sequence[State],
    lrs: Sequence[float],
    *,
    head: str | None = None,
    loss_fn: LossFn | None = None,
    batch_size: int = 256,
) -> F[Tensor, " samples"]:
    r"""TracIn self-influence: how far steps on a sample alone would have lowered its own loss.

    .. math:: s_i = \sum_t \eta_t \lVert \nabla_\theta\, \ell(x_i, y_i; \theta_t) \rVert^2

    The gradient is that of each sample's own loss, over all parameters, or with ``head`` over those of a linear last
    layer alone: in closed form, for the price of a forward pass a checkpoint. The model runs in evaluation mode, on a
    copy.

    Args:
        model: gives outputs; it must not join samples.
        data: ``(inputs, targets)``, each ``[N, ...]``; inputs may be a tuple or mapping of what the model takes.
        checkpoints: state dicts of the model, T >= 1.
        lrs: learning rates :math:`\eta_t > 0` at the checkpoints, T.
        head: name of the ``nn.Linear`` that gives the outputs, from features ``[N, D]``.
        loss_fn: of the outputs and targets of a batch of one, a scalar; None is cross-entropy.
        batch_size: samples of a pass, >= 1.

    Returns:
        ``[N]``, float32 or wider; large is influential on itself: rare, hard, or wrongly labelled.

    Raises:
        ValueError: wrong shapes, no checkpoint or one that does not fit, another number of rates, a model that joins
            samples, a ``head`` that is not a linear layer that runs once on ``[N, D]``, or is not the last one.

    Example:
        >>> model, x, y = nn.Linear(1, 2), torch.tensor([[2.0], [0.0]]), torch.tensor([0, 1])
        >>> states = [{"weight": torch.zeros(2, 1), "bias": torch.zeros(2)}] * 2
        >>> tracin_self_influence(model, (x, y), states, (0.1, 0.3))
        tensor([1.0000, 0.2000])

    Source: Estimating Training Data Influence by Tracing Gradient Descent, arXiv:2002.08484; Influence Scores at Scale
    for Efficient Language Data Sampling, arXiv:2311.16298.
    """
    check_number("batch_size", batch_size, low=1, integer=True)
    if loss_fn is not None and not callable(loss_fn):
        refuse_type("loss_fn", "a function of outputs and targets", loss_fn)
    twin = _twin(model, checkpoints)
    if len(lrs) != len(checkpoints):
        refuse("lrs", f"{len(checkpoints)} rates, one a checkpoint", list(lrs))
    for rate in lrs:
        check_number("lrs", rate, low=0.0, open_low=True, high=math.inf, open_high=True)
    inputs, targets = data
    count = samples_of(twin, inputs, targets)
    if loss_fn is None:
        check_tensor("targets", targets, ndim=1, floating=False)
    total: Tensor | None = None
    for state, rate in zip(checkpoints, lrs):
        twin.load_state_dict(state)
        if head is None:
            gradients = chunks_of_gradients(twin, loss_fn or _cross_entropy, inputs, targets, chunk=batch_size)
            norms = [
                torch.stack([_squared(widen(g).reshape(len(g), -1)) for g in chunk.values()]).sum(0)
                for chunk in gradients
            ]
        else:
            norms = []
            for start in range(0, count, batch_size):
                rows = slice(start, start + batch_size)
                norms.append(_head_norms(twin, head, loss_fn, rows_of(inputs, rows), targets[rows]))
        own = rate * torch.cat(norms)
        total = own if total is None else total + own
    assert total is not None
    return total


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    check_logits(outputs, argument="outputs of the model")
    return nn.functional.cross_entropy(widen(outputs), targets.long())


@torch.no_grad()
def _head_norms(model: nn.Module, name: str, loss_fn: LossFn | None, inputs: Any, targets: Tensor) -> Tensor:
    """Squared gradients in the last layer: that of the outputs times the squared features and one for the bias."""
    head = _submodule(model, name, "head")
    if not isinstance(head, nn.Linear):
        refuse("head", "the name of a linear layer", f"{name!r}, a {type(head).__name__}")
    seen: list[tuple[Tensor, Tensor]] = []
    handle = head.register_forward_hook(lambda _, given, output: seen.append((given[0], output)))
    args, kwargs = call_arguments(inputs)
    try:
        outputs = model(*args, **kwargs)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0][1].ndim != 2 or seen[0][1] is not outputs:
        refuse("head", "a linear layer that runs once, on [N, D], and gives the outputs", repr(name))
    features, bias = seen[0][0], head.bias is not None
    if loss_fn is None:
        return last_layer_self_influence(features, outputs, targets, bias)
    own = loss_fn

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return own(output[None], target[None])

    slope = torch.func.vmap(torch.func.grad(loss))(outputs, targets)
    return _squared(widen(slope)) * (_squared(widen(features)) + float(bias))


def _submodule(model: nn.Module, name: str, argument: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules:
        refuse(argument, "the name of a submodule", name)
    module: nn.Module = modules[name]
    return module


def _twin(model: nn.Module, checkpoints: Sequence[State]) -> nn.Module:
    """A copy in evaluation mode, into which the checkpoints fit."""
    if not isinstance(model, nn.Module):
        refuse_type("model", "a module", model)
    if not len(checkpoints):
        refuse("checkpoints", "at least one state dict", list(checkpoints))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for state in checkpoints:
        if not isinstance(state, Mapping) or {k: tuple(v.shape) for k, v in state.items()} != shapes:
            refuse("checkpoints", "state dicts of the model", sorted(state) if isinstance(state, Mapping) else state)
    return copy.deepcopy(model).eval()


class ScoreSampler(EpochSampler):
    """Batches of the samples that remain when the others are pruned by a score, in an order drawn each epoch.

    Of N samples ``round(keep * N)`` remain, at least one, the same in every epoch: the hardest, the easiest, those in
    the middle, or as many at random, which is the baseline. Equal scores are taken in the order of their rows. Compare
    trainings by their steps: an epoch of a half has half of them.

    Which side to prune is a question to the data: with clean labels and enough of them the easy ones; with wrong
    labels the hardest are the wrong ones.

    Args:
        scores: ``[N]``, floating or integer, none of them NaN.
        labels: classes ``[N]``, any integers; ``per_class`` needs them.
        keep: share that remains, in (0, 1]; 1 prunes nothing.
        mode: "hard", "easy", "middle" or "random", which looks at no score.
        per_class: take the share of each class.
        hard: "high" where a high score is hard (EL2N, forgetting, influence), "low" where a low one is (PVI).
        batch_size: rows of a step on one rank.
        **options: ``seed`` (which also draws what "random" keeps), ``drop_last``, ``num_replicas``, ``rank``; see
            :class:`~steepest.core.sampler.EpochSampler`. With rows left out at the end of an epoch the counts of
            :meth:`times` are expectations.

    Attributes:
        rows: those that remain, ascending, int64.

    Raises:
        ValueError: wrong shapes, NaN, numbers out of range, no labels with ``per_class``.

    Example:
        >>> sampler = ScoreSampler(torch.tensor([0.1, 0.9, 0.5, 0.2]), keep=0.5, mode="hard", batch_size=2)
        >>> sampler.rows, len(sampler)
        (tensor([1, 2]), 1)

    Source: Influence Scores at Scale for Efficient Language Data Sampling, arXiv:2311.16298.
    """

    name = "score"

    def __init__(
        self,
        scores: Tensor,
        labels: I[Tensor, " samples"] | None = None,
        keep: float = 0.5,
        mode: str = "hard",
        *,
        per_class: bool = False,
        hard: str = "high",
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        check_tensor("scores", scores, ndim=1)
        check_number("keep", keep, low=0.0, open_low=True, high=1.0)
        check_choice("mode", mode, MODES)
        check_flag("per_class", per_class)
        check_choice("hard", hard, ("high", "low"))
        super().__init__(len(scores), batch_size, **options)
        values = scores.detach().cpu().double()
        if bool(values.isnan().any()):
            refuse("scores", "numbers", "NaN among them")
        if labels is not None:
            check_tensor("labels", labels, floating=False, shape=tuple(scores.shape))
        elif per_class:
            refuse("labels", "the classes, with per_class=True", None)
        self.keep, self.mode, self.per_class, self.hard = keep, mode, per_class, hard
        if mode == "random":
            values = torch.rand(len(values), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        elif (mode == "easy") != (hard == "low"):
            values = -values
        groups = labels.detach().cpu() if per_class and labels is not None else torch.zeros(len(values)).long()
        chosen = [_highest(values, (groups == label).nonzero()[:, 0], keep, mode) for label in groups.unique()]
        self.rows: Tensor = torch.cat(chosen).sort().values

    def order(self, epoch: int, generator: torch.Generator) -> list[Tensor]:
        """The rows that remain, in a drawn order."""
        shuffled = self.rows[torch.randperm(len(self.rows), generator=generator)]
        return list(shuffled.split(self.joint_size))

    def times(self, epoch: int) -> Tensor:
        """Once each row that remains, or its chance to come where the end of an epoch is left out ``[N]``."""
        last = len(self.rows) % self.joint_size
        left_out = last if last < self.num_replicas or self.drop_last else 0
        counts = torch.zeros(self.num_samples, dtype=torch.float64)
        counts[self.rows] = 1.0 - left_out / len(self.rows)
        return counts

    @classmethod
    def samples(cls, **options: Any) -> list[Self]:
        """Each mode, by class and over all."""
        scores = torch.arange(40.0).mul(7).remainder(40)
        labels = torch.arange(40) % 3
        return [
            cls(scores, labels, 0.6, mode, per_class=per_class, batch_size=4, **options)
            for mode, per_class in zip(MODES, (False, True, False, True))
        ]


def _highest(values: Tensor, rows: Tensor, keep: float, mode: str) -> Tensor:
    """Of some rows the share with the highest values, or that in the middle."""
    count = max(1, math.floor(keep * len(rows) + 0.5))
    ranked = rows[values[rows].argsort(descending=True, stable=True)]
    start = (len(rows) - count) // 2 if mode == "middle" else 0
    return ranked[start : start + count]
