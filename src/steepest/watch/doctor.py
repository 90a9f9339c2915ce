"""One pass over a model and its data that says in words what looks wrong, and which part of steepest to try."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.checks import check_number, refuse, refuse_type
from ..core.effective_rank import effective_rank
from ..core.hessian import Hessian
from ..core.jacobian import jacobian_rows
from ..core.lanczos import eigenpairs
from ..core.probe import Moment, call_arguments, inner_module, untouched
from ..core.reductions import widen
from ..core.stability import stability_of
from ..core.symmetric import Preconditioned, SymmetricOperator
from ..core.undisturbed import same_random_states
from .vital_signs import UnitActivity, classes_last, logits_of

Data = tuple[Any, Any] | Iterable[tuple[Any, Any]]


@dataclass(frozen=True)
class Threshold:
    """Where a number begins to look wrong.

    Args:
        value: of the number.
        source: where the value comes from.
        advice: which part of steepest to try.
    """

    value: float
    source: str
    advice: str


THRESHOLDS: dict[str, Threshold] = {
    "dead_units": Threshold(
        0.5,
        "half of a layer does nothing for any sample; a choice of this library",
        "optim.OneCycle or another schedule with warm-up, a lower rate, or an activation that is not flat below zero",
    ),
    "exploding_logits": Threshold(
        88.7,
        "ln of the largest float32: at this distance softmax is exactly one-hot, and its gradient is gone",
        "losses.ZLoss beside the objective, or weight decay of the last layer; watch.Guard acts where it grows fast",
    ),
    "edge_of_stability": Threshold(
        2.0,
        "twice the curvature at which steps diverge on a quadratic (arXiv:2110.04369 finds divergence from 2 to 10)",
        "steepest lr-find, a schedule with warm-up (optim.OneCycle), or optim.GhostStepController",
    ),
    "collapsed_rank": Threshold(
        0.2,
        "features of C classes need C - 1 directions (neural collapse, arXiv:2301.00437); a fifth of them is a choice "
        "of this library",
        "normalisation before the last layer, or another width; watch.Recorder shows when it happens",
    ),
    "miscalibration": Threshold(
        0.1,
        "the gap between confidence and accuracy, on average over the samples; a choice of this library",
        "post.TemperatureCalibrator on held-out logits, or losses.FocalLoss; steepest compare measures calibration",
    ),
    "gradient_conflict": Threshold(
        -0.3,
        "gradients of two losses point apart where their cosine is below 0 (PCGrad, arXiv:2001.06782); with room for "
        "noise, a choice of this library",
        "gradients.UPGrad or gradients.PCGrad in gradients.JacobianDescent; steepest compare --vary aggregator",
    ),
    "label_noise": Threshold(
        0.05,
        "the share of labels that the model's own probabilities do not explain; a choice of this library",
        "losses.CompSumLoss with tau above 1, which is generalised cross-entropy, and steepest compare for others",
    ),
    "untrained_tokens": Threshold(
        0.15,
        "the share of the vocabulary that never occurs in these data; a choice of this library",
        "a smaller vocabulary, or no weight decay on embeddings; such rows keep their first values",
    ),
}
"""Of each check; fixed on other seeds and another network than those of benchmarks/doctor.py."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        name: of the check.
        wrong: whether it looks wrong.
        number: that was measured; NaN where it could not be.
        threshold: that it was held to.
        sentence: what that means, in words.
        source: of the threshold.
        advice: which part of steepest to try.
    """

    name: str
    wrong: bool
    number: float
    threshold: float
    sentence: str
    source: str
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Args:
        findings: of all checks that could be made, those that look wrong first.
        left_out: checks that could not be made, with the reason.
    """

    findings: list[Finding]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def wrong(self) -> list[Finding]:
        """Those that look wrong."""
        return [finding for finding in self.findings if finding.wrong]

    def __str__(self) -> str:
        lines = [] if self.wrong else ["Nothing looks wrong."]
        for finding in self.findings:
            mark = "!" if finding.wrong else "ok"
            lines.append(f"{mark:>2}  {finding.name.replace('_', ' ')}: {finding.sentence}")
            if finding.wrong:
                lines.append(f"    threshold {finding.threshold:g}: {finding.source}")
                lines.append(f"    try: {finding.advice}")
        lines += [f" -  {name.replace('_', ' ')}: not looked at: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


class _LeftOut(Exception):
    """A check that cannot be made, and why."""


@dataclass
class _Case:
    """What is examined.

    Args:
        model: as it was given.
        module: inside it.
        objective: of outputs and targets.
        inputs, targets: of all samples.
        optimizer: that trains it, or None.
        samples: for what needs many passes.
    """

    model: nn.Module
    module: nn.Module
    objective: Callable[[Any, Any], Any]
    inputs: Any
    targets: Any
    optimizer: Optimizer | None
    samples: int

    def __post_init__(self) -> None:
        moment = Moment(1, "stepped", self.model, inputs=self.inputs, targets=self.targets)
        self.outputs = moment.outputs(graph=False)

    def logits(self, finite: bool = True) -> tuple[Tensor, Tensor]:
        """Logits ``[n, classes]`` and labels ``[n]`` of the samples or tokens that have one.

        Args:
            finite: without samples whose logits are not.

        Raises:
            _LeftOut: outputs or targets of another kind.
        """
        logits = logits_of(self.outputs)
        targets = self.targets
        if logits is None or not isinstance(targets, Tensor) or targets.is_floating_point() or logits.ndim < 2:
            raise _LeftOut("it takes logits and class indices")
        flat, labels = widen(classes_last(logits, targets)).flatten(0, -2), targets.flatten()
        if len(flat) != len(labels) or flat.shape[-1] < 2:
            raise _LeftOut("it takes a row of logits for each class index")
        if bool((labels >= flat.shape[-1]).any()):
            raise _LeftOut(f"{flat.shape[-1]} logits have no place for the label {int(labels.max())}")
        valid = (labels >= 0) & (flat.isfinite().all(-1) | (not finite))
        if not bool(valid.any()):
            raise _LeftOut("no sample has a label and finite logits")
        return flat[valid], labels[valid]

    def first(self) -> tuple[Any, Any]:
        """The first samples, for what needs many passes."""

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim:
                return value[: self.samples]
            if isinstance(value, Mapping):
                return {key: cut(inner) for key, inner in value.items()}
            if isinstance(value, (list, tuple)):
                items = list(map(cut, value))
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
            return value

        return cut(self.inputs), cut(self.targets)

    def losses(self, inputs: Any, targets: Any) -> Tensor:
        """One loss, or those of several tasks ``[m]``; of losses of samples their mean."""
        args, kwargs = call_arguments(inputs)
        given = self.objective(self.module(*args, **kwargs), targets)
        if isinstance(given, Mapping):
            given = list(given.values())
        loss = torch.stack([value.mean() for value in given]) if isinstance(given, (list, tuple)) else given
        if not isinstance(loss, Tensor):
            refuse_type("objective", "a function that gives a loss, or several", given)
        of_samples = {size for tensor in _tensors(targets)[:1] for size in (*tensor.shape[:1], tensor.numel())}
        single = not isinstance(given, (list, tuple)) and loss.ndim > 0 and len(loss) in of_samples
        mean: Tensor = loss.mean() if single else loss
        return mean


Measured = tuple[float, str]
"""The number, and the sentence."""


def _dead_units(case: _Case) -> Measured:
    probe = UnitActivity()
    try:
        probe.check(case.module, None)
    except ValueError:
        raise _LeftOut("the model has no activation of its own after which units can be dead") from None
    reading = probe.measure(Moment(1, "gradients", case.model, inputs=case.inputs))
    if "by_layer" not in reading.arrays:
        raise _LeftOut("no such activation was called")
    array = reading.arrays["by_layer"]
    if bool(array.values.isnan().any()):
        raise _LeftOut("there are no samples")
    worst = int(array.values.argmax())
    share = float(array.values[worst])
    layer = list(array.axes["layer"] or ())[worst]
    return share, f"{share:.0%} of the units of {layer!r} do nothing for any sample, the most of all layers."


def _exploding_logits(case: _Case) -> Measured:
    logits, _ = case.logits(finite=False)
    if broken := int((~logits.isfinite().all(-1)).sum()):
        return math.inf, f"logits of {broken} of {len(logits)} samples are not finite."
    spread = float((logits.amax(-1) - logits.amin(-1)).median())
    return spread, f"the largest and the smallest logit of a sample lie {spread:.1f} apart (median)."


def _edge_of_stability(case: _Case) -> Measured:
    if case.optimizer is None:
        raise _LeftOut("it takes the optimizer")
    params = [p for p in case.module.parameters() if p.requires_grad]
    if not params:
        raise _LeftOut("the model has no parameter that is trained")
    params = [p for p in params if case.optimizer.state.get(p)] or params  # without those that never had a gradient
    stable = stability_of(case.optimizer, params)
    if stable is None:
        raise _LeftOut(f"the limit of {type(case.optimizer).__name__} is not known, or it has not stepped")
    limit, diagonal = stable
    inputs, targets = case.first()
    operator: SymmetricOperator = Hessian(lambda: case.losses(inputs, targets).sum(), params)
    if diagonal is not None:
        operator = Preconditioned(operator, diagonal)
    largest = eigenpairs(operator, 1, "LA", tol=1e-2, steps=30)
    ratio = float(largest.eigenvalues[0]) / limit
    if math.isnan(ratio):
        raise _LeftOut("the curvature is not finite")
    words = "the largest curvature" + (" in Adam's scale" if diagonal is not None else "")
    return ratio, f"{words} is {ratio:.2g} of what steps of this rate stand ({limit:.3g})."


def _features(case: _Case) -> Tensor:
    """What the last layer with weights reads ``[n, d]``."""
    layers = [
        name
        for name, module in case.module.named_modules()
        if isinstance(module, nn.Linear) and not any(module.children())
    ]
    called = Moment(1, "stepped", case.model, inputs=case.inputs).activations(layers)
    if not called:
        raise _LeftOut("the model has no linear layer at its end")
    (features, *_), _ = called[list(called)[-1]]
    if not isinstance(features, Tensor) or features.ndim < 2:
        raise _LeftOut("the last linear layer reads no features")
    return widen(features.detach()).flatten(0, -2)


def _collapsed_rank(case: _Case) -> Measured:
    _, labels = case.logits()
    features = _features(case)
    features = features[features.isfinite().all(-1)]
    if len(features) < 2:
        raise _LeftOut("too few samples")
    features = features[:: max(1, len(features) // 4096)]
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    rank = float(effective_rank(values.square(), "entropy"))
    classes = len(labels.unique())
    needed = min(classes - 1, features.shape[-1], len(features) - 1)
    if needed < 4:
        raise _LeftOut("fewer than five classes")
    share = 0.0 if math.isnan(rank) else rank / needed
    return (
        share,
        f"features of {features.shape[-1]} numbers use {rank:.1f} directions; {classes} classes need {needed}.",
    )


def _miscalibration(case: _Case) -> Measured:
    logits, labels = case.logits()
    confidence, guess = logits.softmax(-1).max(-1)
    right = (guess == labels).to(confidence)
    bins = (confidence * 15).long().clamp(max=14)
    sums = torch.zeros(2, 15, dtype=torch.float64, device=bins.device)
    sums.index_add_(1, bins, torch.stack([confidence, right]).double())
    gap = float((sums[0] - sums[1]).abs().sum()) / len(labels)
    signed = float((confidence - right).mean())
    how = "surer than right" if signed > 0 else "less sure than right"
    words = f"confidence and accuracy differ by {gap:.3f} on average ({how})"
    return gap, words + "; on data that the model was trained on this says little."


def _gradient_conflict(case: _Case) -> Measured:
    inputs, targets = case.first()
    params = [p for p in case.module.parameters() if p.requires_grad]
    losses = case.losses(inputs, targets)
    if losses.ndim != 1 or not 2 <= len(losses) <= 64:
        raise _LeftOut("it takes an objective that gives the losses of several tasks")
    jacobian = jacobian_rows(losses, params).double()
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    pairs = list(itertools.combinations(range(len(losses)), 2))
    values = {pair: float(cosines[pair]) for pair in pairs if math.isfinite(float(cosines[pair]))}
    if not values:
        raise _LeftOut("a gradient is zero or not finite")
    a, b = min(values, key=values.__getitem__)
    least = values[a, b]
    return least, f"the gradients of losses {a} and {b} have a cosine of {least:.2f}, the least of all pairs."


RARE = 1e-3
"""Probability below which a label contradicts a model."""
LEARNED = 0.8
"""A model whose median loss is above this share of the labels' entropy says nothing about their noise."""


def _label_noise(case: _Case) -> Measured:
    """Labels that contradict the model more often than it expects, and what it gives even to unlikely classes."""
    logits, labels = case.logits()
    shares = labels.bincount(minlength=logits.shape[-1]).double() / len(labels)
    known = float(-torch.special.xlogy(shares, shares).sum())
    if float(logits.log_softmax(-1).gather(1, labels[:, None]).double().median().neg()) > LEARNED * known:
        raise _LeftOut("the model explains too little of the labels yet")
    p = logits.double().softmax(-1)
    rare = p < RARE
    contradicted = float(rare.gather(1, labels[:, None]).double().mean())
    expected = float((p * rare).sum(-1).mean())
    chance = float(rare.double().mean())  # that a label drawn at random contradicts
    memorised = (contradicted - expected) / (chance - expected) if chance - expected > 0.05 else 0.0
    learned = float(p.kthvalue(max(1, p.shape[-1] // 4), -1).values.mean()) * p.shape[-1]
    noise = max(memorised, learned, 0.0)
    return noise, f"about {noise:.1%} of the labels look as if drawn at random."


def _untrained_tokens(case: _Case) -> Measured:
    embeddings = [module for module in case.module.modules() if isinstance(module, nn.Embedding)]
    tokens = [value for value in _tensors(case.inputs) if not value.is_floating_point() and value.dtype != torch.bool]
    if not embeddings or not tokens:
        raise _LeftOut("the model embeds no tokens")
    size = max(module.num_embeddings for module in embeddings)
    ids = tokens[0].flatten().long()
    counts = ids[(ids >= 0) & (ids < size)].bincount(minlength=size)
    if len(ids) < 5 * size:
        raise _LeftOut(f"{len(ids)} tokens are too few for a vocabulary of {size}")
    missing, once, twice = (int((counts == times).sum()) for times in range(3))
    unseen = once * (once - 1) / (2 * (twice + 1))  # that more data would show, by Chao's estimate
    share = max(0.0, missing - unseen) / size
    more = f"; about {unseen:.0f} of them would in more data" if unseen >= 0.5 else ""
    return share, f"{missing} of {size} tokens never occur in these data{more}."


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in inner for tensor in _tensors(item)]


CHECKS: dict[str, Callable[[_Case], Measured]] = {
    "dead_units": _dead_units,
    "exploding_logits": _exploding_logits,
    "edge_of_stability": _edge_of_stability,
    "collapsed_rank": _collapsed_rank,
    "miscalibration": _miscalibration,
    "gradient_conflict": _gradient_conflict,
    "label_noise": _label_noise,
    "untrained_tokens": _untrained_tokens,
}
BELOW = ("collapsed_rank", "gradient_conflict")
"""Checks whose number looks wrong below its threshold."""


def diagnose(
    model: nn.Module,
    objective: Callable[[Any, Any], Any],
    data: Data,
    *,
    optimizer: Optimizer | None = None,
    checks: Sequence[str] | None = None,
    samples: int = 256,
) -> Diagnosis:
    """Look once at a model and its data, and say in words what looks wrong.

    Eight checks, each with its number, its threshold and where that comes from: dead units, exploding logits, the edge
    of stability, collapsed rank, miscalibration, gradient conflict, label noise, tokens that never train. The model
    runs in evaluation mode; weights, gradients, buffers, modes and random states are afterwards as before. Calibration
    and noise of labels say more on data that the model was not trained on.

    Args:
        model: trained, or half-way.
        objective: ``objective(outputs, targets)``, one loss, that of each sample, or those of several tasks.
        data: a pair of inputs and targets, or batches of them, of which up to 64 are read.
        optimizer: that trains the model, for the edge of stability.
        checks: names; None is all.
        samples: for the checks that take many passes, >= 1.

    Raises:
        TypeError: no module, an objective that is no function, data of another kind.
        ValueError: a check that is not there, no data.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with torch.no_grad():
        ...     _ = model[0].bias.fill_(-100.0)
        >>> data = torch.randn(60, 4), torch.arange(60) % 3
        >>> [finding.name for finding in diagnose(model, nn.CrossEntropyLoss(), data, checks=["dead_units"]).wrong]
        ['dead_units']
    """
    if not isinstance(model, nn.Module):
        refuse_type("model", "a module", model)
    if not callable(objective):
        refuse_type("objective", "a function of outputs and targets", objective)
    check_number("samples", samples, low=1, integer=True)
    unknown = sorted(set(checks or ()) - set(CHECKS))
    if unknown:
        refuse("checks", f"names of {', '.join(CHECKS)}", unknown[0])
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        refuse_type("optimizer", "an optimizer, or None", optimizer)
    with same_random_states(*_generators(data)):
        inputs, targets = _joined(data)
    findings: list[Finding] = []
    left_out: dict[str, str] = {}
    module = inner_module(model)
    own = [module, *([objective] if isinstance(objective, nn.Module) else [])]
    with untouched(*own):
        for module_or_loss in own:
            module_or_loss.eval()
        case = _Case(model, module, objective, inputs, targets, optimizer, samples)
        for name in CHECKS if checks is None else checks:
            try:
                number, words = CHECKS[name](case)
            except _LeftOut as reason:
                left_out[name] = str(reason)
                continue
            limit = THRESHOLDS[name]
            wrong = number < limit.value if name in BELOW else number > limit.value
            findings.append(Finding(name, wrong, number, limit.value, words, limit.source, limit.advice))
    findings.sort(key=lambda finding: not finding.wrong)
    return Diagnosis(findings, left_out)


def _generators(data: Any) -> list[torch.Generator]:
    """Those from which a loader, and what orders its samples, draw."""
    owners = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in generators if isinstance(generator, torch.Generator)]


def _joined(data: Data) -> tuple[Any, Any]:
    """Inputs and targets of all samples."""
    if isinstance(data, tuple) and len(data) == 2 and not all(isinstance(item, tuple) for item in data):
        return data
    if isinstance(data, (str, Tensor)) or not isinstance(data, Iterable):
        refuse_type("data", "a pair of inputs and targets, or batches of them", data)
    pairs = list(itertools.islice(data, 64))
    if not pairs:
        refuse("data", "at least one batch", "none")
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            refuse_type("data", "batches that are pairs of inputs and targets", pair)
    return _cat([pair[0] for pair in pairs]), _cat([pair[1] for pair in pairs])


def _cat(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        shapes = [tuple(value.shape[1:]) for value in values]
        if not all(value.ndim for value in values) or len(set(shapes)) > 1:
            refuse(
                "data", "batches whose tensors differ in their first dimension alone", [tuple(v.shape) for v in values]
            )
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {key: _cat([value[key] for value in values]) for key in first}
    if isinstance(first, (list, tuple)):
        return tuple(_cat(list(column)) for column in zip(*values))
    return first
