"""Datamodel matching: predict what a model would give had some samples never been there, and train it to give that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import (
    check_choice,
    check_flag,
    check_index,
    check_logits,
    check_number,
    check_range,
    check_tensor,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.loss import Loss, Sample
from ...core.reductions import widen

KINDS = ("ridge", "lasso")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
FLOOR = 1e-5
"""Least probability of a bin of the second sample in which the first has some: that of the public metric."""
CLIP = 100.0
"""Margins beyond are taken to be here: the public metric's."""


@dataclass(frozen=True)
class Datamodel:
    r"""Outputs at some points as a linear function of which training samples a model was trained on.

    .. math:: E f(x; \theta(S)) \approx b_0(x) + \sum_{i \in S} b_i(x)

    Args:
        intercept: :math:`b_0`, of P points, ``[P, C]``.
        weights: :math:`b_i`, of n training samples, ``[n, P, C]``.

    Raises:
        ValueError: other shapes.

    Example:
        >>> Datamodel(torch.zeros(1, 2), torch.ones(3, 1, 2)).predict(torch.tensor([[True, False, True]]))
        tensor([[[2., 2.]]])
    """

    intercept: F[Tensor, "points classes"]
    weights: F[Tensor, "samples points classes"]

    def __post_init__(self) -> None:
        check_tensor("intercept", self.intercept, ndim=2, floating=True)
        check_tensor("weights", self.weights, floating=True, shape=(None, *self.intercept.shape))

    def predict(self, inclusion: Tensor) -> F[Tensor, "models points classes"]:
        """Outputs of models trained on the samples that are 1 (or True) in ``inclusion``, ``[M, n]``."""
        check_tensor("inclusion", inclusion, shape=(None, len(self.weights)))
        effects: Tensor = torch.tensordot(inclusion.to(self.weights), self.weights, 1)
        return self.intercept + effects

    def remove(self, base_outputs: Tensor, indices: I[Tensor, " removed"], *, shrink: float = 1.0) -> Tensor:
        r"""What a model would give at the points had it been trained without some samples.

        .. math:: f_o(x) = f(x; \theta_0) - s \sum_{i \in F} b_i(x)

        Args:
            base_outputs: those of the model that was trained on all, ``[P, C]``; or of several, ``[P, K, C]``.
            indices: the samples F, integers in 0..n-1, each once; empty gives the outputs themselves.
            shrink: s in [0, 1]: below 1 against the noise of the weights, which adds up over F.

        Returns:
            In the shape of ``base_outputs``, float32 or wider, without a graph.

        Raises:
            ValueError: indices outside the training set, or one that comes twice; outputs at other points.

        >>> Datamodel(torch.zeros(1, 2), torch.ones(3, 1, 2)).remove(torch.tensor([[5.0, 4.0]]), torch.tensor([0, 2]))
        tensor([[3., 2.]])
        """
        check_tensor("base_outputs", base_outputs, ndim=(2, 3), floating=True)
        points, classes = self.intercept.shape
        if (base_outputs.shape[0], base_outputs.shape[-1]) != (points, classes):
            refuse("base_outputs", f"outputs at {points} points of {classes} classes", base_outputs)
        _check_samples("indices", indices, len(self.weights))
        check_number("shrink", shrink, low=0.0, high=1.0)
        outputs = widen(base_outputs.detach())
        effect = shrink * self.weights[indices.to(self.weights.device)].sum(0).to(outputs)
        return outputs - (effect if outputs.ndim == 2 else effect.unsqueeze(1))


def fit_datamodel(
    inclusion: Tensor,
    outputs: F[Tensor, "models points classes"],
    penalty: float | Sequence[float] = 1.0,
    *,
    kind: str = "ridge",
) -> Datamodel:
    r"""Estimate a datamodel from models that were trained on random subsets.

    .. math:: \min_{b_0, b} \; \sum_m \Bigl\| f_m - b_0 - \sum_i z_{mi} b_i \Bigr\|^2 + \alpha \sum_i \|b_i\|^2
        \qquad \text{or} \qquad \frac{1}{2 M} \sum_m \| \cdot \|^2 + \alpha \sum_i \|b_i\|_1

    The intercept is not penalised.

    Args:
        inclusion: z: which of n samples each of M models was trained on, ``[M, n]``, 0 and 1 or bool.
        outputs: f: of each model at P points, ``[M, P, C]``.
        penalty: :math:`\alpha` >= 0; 0 gives least squares of least norm. Several for a ridge: the one with the least
            error of leaving one model out, over all outputs together.
        kind: ``"ridge"``, or ``"lasso"``: sparse, one fit for each of the P C outputs.

    Returns:
        In the type of ``outputs``, float32 or wider, on their device; computed in float64.

    Raises:
        ValueError: other shapes, fewer than two models, values other than 0 and 1, a penalty below 0.
        TypeError: not tensors.

    Example:
        >>> inclusion = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
        >>> outputs = (inclusion * torch.tensor([2.0, -1.0])).sum(1).view(4, 1, 1)
        >>> fit_datamodel(inclusion, outputs, penalty=0.0).weights.flatten()
        tensor([ 2., -1.])

    Source: Attribute-to-Delete: Machine Unlearning via Datamodel Matching, arXiv:2410.23232.
    """
    check_tensor("inclusion", inclusion, ndim=2)
    check_tensor("outputs", outputs, floating=True, shape=(len(inclusion), None, None))
    check_choice("kind", kind, KINDS)
    if len(inclusion) < 2:
        refuse("inclusion", "at least 2 models", inclusion)
    if values_visible(inclusion) and not bool(((inclusion == 0) | (inclusion == 1)).all()):
        refuse("inclusion", "values 0 and 1", inclusion.unique().tolist())
    several = isinstance(penalty, (list, tuple))
    if several and (kind == "lasso" or not penalty):
        refuse("penalty", "a number, or numbers for a ridge", penalty)
    penalties: list[Any] = list(penalty) if isinstance(penalty, (list, tuple)) else [penalty]
    for number in penalties:
        check_number("penalty", number, low=0.0, open_low=several)
    z = inclusion.detach().cpu().numpy().astype(np.float64)
    wanted = outputs.detach().cpu().double().flatten(1).numpy()
    coefficients, intercept = _regress(z, wanted, [float(number) for number in penalties], kind)
    shape, like = outputs.shape[1:], widen(outputs)
    weights = torch.as_tensor(coefficients.T.reshape(-1, *shape)).to(like)
    return Datamodel(torch.as_tensor(intercept.reshape(shape)).to(like), weights)


def _regress(z: np.ndarray, wanted: np.ndarray, penalties: list[float], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients ``[outputs, n]`` and intercepts of a linear regression."""
    from sklearn.linear_model import Lasso, LinearRegression, Ridge, RidgeCV

    if penalties == [0.0]:
        model = LinearRegression()
    elif kind == "lasso":
        model = Lasso(alpha=penalties[0], max_iter=10_000)
    elif len(penalties) == 1:
        model = Ridge(alpha=penalties[0])
    else:
        model = RidgeCV(alphas=penalties)
    model.fit(z, wanted)
    return np.asarray(model.coef_).reshape(wanted.shape[1], -1), np.asarray(model.intercept_).reshape(-1)


def ridge_removal(
    features: F[Tensor, "samples numbers"],
    targets: Tensor,
    indices: I[Tensor, " removed"],
    penalty: float = 0.0,
    *,
    first_order: bool = False,
) -> Tensor:
    r"""The weights of a ridge regression without some samples, from those with all: exactly, without refitting.

    .. math:: \theta' = \theta - H^{-1} X_F^\top (I - H_F)^{-1} e_F, \qquad
        H = X^\top X + \alpha I, \quad H_F = X_F H^{-1} X_F^\top, \quad e_F = y_F - X_F \theta

    For one sample it is :math:`\theta - H^{-1} x e / (1 - h)`. There is no intercept.

    Args:
        features: X, ``[n, d]``.
        targets: y, ``[n]`` or ``[n, C]``.
        indices: the samples F that go, integers in 0..n-1, each once.
        penalty: :math:`\alpha` >= 0.
        first_order: True leaves out :math:`(I - H_F)^{-1}`: the first-order influence function, which removes too
            little.

    Returns:
        :math:`\theta'`, ``[d]`` or ``[d, C]``, in float32 or wider.

    Raises:
        ValueError: other shapes, indices outside the training set or twice, a penalty below 0.

    Example:
        >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 4.0])
        >>> ridge_removal(x, y, torch.tensor([2]), penalty=1.0)
        tensor([0.8333])
        >>> ridge_removal(x, y, torch.tensor([2]), penalty=1.0, first_order=True)
        tensor([1.0133])

    Source: Attribute-to-Delete: Machine Unlearning via Datamodel Matching, arXiv:2410.23232.
    """
    check_tensor("features", features, ndim=2, floating=True)
    check_tensor("targets", targets, ndim=(1, 2), floating=True)
    if len(targets) != len(features):
        refuse("targets", f"{len(features)} rows, as features", targets)
    _check_samples("indices", indices, len(features))
    check_number("penalty", penalty, low=0.0)
    check_flag("first_order", first_order)
    x = widen(features)
    y = widen(targets).to(x).reshape(len(x), -1)
    hessian = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    theta = torch.linalg.solve(hessian, x.T @ y)
    gone = x[indices]
    errors = y[indices] - gone @ theta
    moved = torch.linalg.solve(hessian, gone.T)
    if not first_order:
        leverage = gone @ moved
        errors = torch.linalg.solve(torch.eye(len(gone), dtype=x.dtype, device=x.device) - leverage, errors)
    weights: Tensor = (theta - moved @ errors).reshape(x.shape[1], *targets.shape[1:])
    return weights


def oracle_matching_loss(outputs: F[Tensor, "batch ..."], targets: F[Tensor, "batch ..."]) -> Tensor:
    r"""Half the squared distance of outputs from those that a retrained model is expected to give.

    .. math:: L = \frac1B \sum_x \tfrac12 \| f(x; \theta) - f_o(x) \|^2

    Args:
        outputs: logits ``[B, C]``; or ``[B, K, C]`` of several models, whose losses are added.
        targets: :math:`f_o`, in the shape of ``outputs``; no gradient flows into them.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: other shapes.
        TypeError: not floating tensors.

    Example:
        >>> oracle_matching_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(2.5000)

    Source: Attribute-to-Delete: Machine Unlearning via Datamodel Matching, arXiv:2410.23232.
    """
    check_tensor("outputs", outputs, ndim=(2, 3), floating=True)
    check_tensor("targets", targets, floating=True, shape=tuple(outputs.shape))
    difference = widen(outputs) - widen(targets).detach()
    return 0.5 * difference.square().flatten(1).sum(1).mean()


class OracleMatchingLoss(Loss):
    """Oracle matching as a module; see :func:`oracle_matching_loss`.

    Example:
        >>> OracleMatchingLoss()(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(2.5000)
    """

    name = "oracle_matching"

    def forward(self, outputs: F[Tensor, "batch ..."], targets: F[Tensor, "batch ..."]) -> Tensor:
        """The loss of outputs and predicted outputs."""
        return oracle_matching_loss(outputs, targets)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[OracleMatchingLoss, Sample]]:
        cases: list[tuple[OracleMatchingLoss, Sample]] = []
        for shape in ((5, 3), (4, 2, 3)):
            both = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(device, dtype)
            cases.append((cls(), ((both[0], both[1]), {})))
        return cases


class DatamodelMatching:
    r"""Unlearn samples by fine-tuning a model to the outputs that it would have without them.

    The outputs :math:`f_o(x) = f(x; \theta_0) - \sum_{i \in F} b_i(x)` at forget and retain points are fixed at the
    start, by the model as it is. Half of each batch comes from either. The model runs in evaluation mode throughout, so
    that its outputs now and at the start are of one function, and keeps its modes.

    Args:
        model: inputs ``[B, ...]`` to logits ``[B, C]``, or ``[B, K, C]`` of several models; trained in place.
        datamodel: with the forget points first and then the retain points as its P points; or the outputs to match
            themselves, ``[P, C]`` or ``[P, K, C]``: those of models that were retrained without the samples, or
            another prediction.
        forget: inputs of the forget points ``[F, ...]``, possibly none.
        retain: inputs of the retain points ``[R, ...]``, possibly none; a sample of the retained data is enough.
        indices: the training samples that go, in 0..n-1; needed with a datamodel, refused without.
        shrink: of the datamodel's weights, in [0, 1].

    Attributes:
        targets: :math:`f_o`, of the forget and then the retain points.

    Raises:
        ValueError: other shapes, indices outside the training set.

    Example:
        >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]])
        >>> matching = DatamodelMatching(model, torch.tensor([[3.0], [6.0]]), x[:1], x[1:])
        >>> losses = matching.run(steps=200, lr=0.1)
        >>> model(x).round(decimals=3).flatten().tolist()
        [3.0, 6.0]

    Source: Attribute-to-Delete: Machine Unlearning via Datamodel Matching, arXiv:2410.23232.
    """

    def __init__(
        self,
        model: nn.Module,
        datamodel: Datamodel | Tensor,
        forget: Tensor,
        retain: Tensor,
        indices: I[Tensor, " removed"] | None = None,
        *,
        shrink: float = 1.0,
    ) -> None:
        if not isinstance(model, nn.Module):
            refuse_type("model", "a module", model)
        check_tensor("forget", forget)
        check_tensor("retain", retain, shape=(None, *forget.shape[1:]))
        self.model, self.inputs, self.count = model, torch.cat([forget, retain]), len(forget)
        if not len(self.inputs):
            refuse("forget, retain", "at least one point", 0)
        self.loss = OracleMatchingLoss()
        outputs = self._outputs()
        if isinstance(datamodel, Datamodel):
            if indices is None:
                refuse("indices", "the training samples that go", indices)
            if len(datamodel.intercept) != len(self.inputs):
                refuse("datamodel", f"one of {len(self.inputs)} points, forget and retain", datamodel.intercept)
            self.targets = datamodel.remove(outputs, indices, shrink=shrink)
        else:
            if indices is not None:
                refuse("indices", "None with outputs to match", indices)
            check_tensor("datamodel", datamodel, floating=True, shape=tuple(outputs.shape))
            self.targets = widen(datamodel).detach().to(outputs.device)

    def _outputs(self) -> Tensor:
        with torch.no_grad():
            return widen(self._call(self.inputs))

    def _call(self, inputs: Tensor) -> Tensor:
        """Outputs in evaluation mode."""
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            self.model.eval()
            outputs: Tensor = self.model(inputs)
            return outputs
        finally:
            for module, mode in modes:
                module.training = mode

    def value(self) -> Tensor:
        """The loss over all points, without a graph."""
        loss: Tensor = self.loss(self._outputs(), self.targets)
        return loss

    def run(
        self,
        steps: int,
        lr: float,
        *,
        batch_size: int = 64,
        optimizer: str = "adam",
        generator: torch.Generator | None = None,
    ) -> F[Tensor, " steps"]:
        """Fine-tune the model, in place.

        Args:
            steps: >= 0.
            lr: > 0.
            batch_size: points of a step, half of them of either kind (all, where there are none of the other), each
                kind drawn without replacement until it is used up; at most as many as there are.
            optimizer: ``"adam"`` or ``"sgd"``.
            generator: of the order; torch's own by default.

        Returns:
            The loss of each step's batch before the step.
        """
        check_number("steps", steps, low=0, integer=True)
        check_number("lr", lr, low=0.0, open_low=True)
        check_number("batch_size", batch_size, low=2, integer=True)
        check_choice("optimizer", optimizer, tuple(OPTIMIZERS))
        steppers = OPTIMIZERS[optimizer]([p for p in self.model.parameters() if p.requires_grad], lr=lr)
        kinds = [range(self.count), range(self.count, len(self.inputs))]
        kinds = [places for places in kinds if len(places)]
        orders = [_Order(places, min(len(places), batch_size // len(kinds)), generator) for places in kinds]
        losses = torch.zeros(steps, dtype=self.targets.dtype, device=self.targets.device)
        for step in range(steps):
            rows = torch.cat([order.draw() for order in orders]).to(self.inputs.device)
            with torch.enable_grad():
                loss = self.loss(self._call(self.inputs[rows]), self.targets[rows])
            steppers.zero_grad()
            loss.backward()
            steppers.step()
            losses[step] = loss.detach()
        return losses


class _Order:
    """Draws places in random order, all before any comes again."""

    def __init__(self, places: range, size: int, generator: torch.Generator | None) -> None:
        self.places, self.size, self.generator = places, size, generator
        self.waiting = torch.zeros(0, dtype=torch.long)

    def draw(self) -> Tensor:
        while len(self.waiting) < self.size:
            device = None if self.generator is None else self.generator.device
            order = torch.randperm(len(self.places), generator=self.generator, device=device).cpu()
            self.waiting = torch.cat([self.waiting, order + self.places.start])
        drawn, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
        return drawn


def log_odds_margin(logits: F[Tensor, "... classes"], target: I[Tensor, ...]) -> F[Tensor, ...]:
    r"""The log-odds of the right class: its logit above the log-sum-exp of the others.

    .. math:: m = f_y - \log \sum_{c \ne y} e^{f_c}

    Args:
        logits: ``[P, C]``, or ``[N, P, C]`` of several models, C >= 2.
        target: class indices ``[P]``.

    Returns:
        ``[P]`` or ``[N, P]``, in float32 or wider.

    Raises:
        ValueError: other shapes, a label out of range.

    Example:
        >>> log_odds_margin(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0]))
        tensor([0.6867])

    Source: Attribute-to-Delete: Machine Unlearning via Datamodel Matching, arXiv:2410.23232.
    """
    check_tensor("logits", logits, ndim=(2, 3), floating=True)
    if logits.ndim == 3 and not len(logits):
        refuse("logits", "at least one model", logits)
    points = logits[0] if logits.ndim == 3 else logits
    check_logits(points, argument="logits")
    check_index(target, points)
    wide = widen(logits)
    places = target.long().unsqueeze(-1).expand(*wide.shape[:-1], 1)
    right = wide.gather(-1, places)
    others = wide.scatter(-1, places, -torch.inf)
    margins: Tensor = right.squeeze(-1) - others.logsumexp(-1)
    return margins


def klom(
    margins_a: F[Tensor, "unlearned points"],
    margins_b: F[Tensor, "retrained points"],
    bins: int = 20,
    *,
    reverse: bool = False,
) -> F[Tensor, " points"]:
    r"""KL divergence of margins: how far unlearned models are from retrained ones, point by point.

    .. math:: \mathrm{KLoM}(x) = \sum_k p_k \log \frac{p_k}{q_k}

    of histograms p of unlearned and q of retrained models' margins, in equal bins between the least and the greatest
    of both, the last bin closed. Margins beyond 100 count as 100. Where p > 0, q is at least 1e-5; then q is
    normalised. Disjoint samples have ln(1e5) = 11.5 at most.

    The public implementation leaves out the largest margin of both samples together, and is called with the retrained
    models first: ``reverse`` gives that order.

    Args:
        margins_a: of N unlearned models at P points, ``[N, P]``, as from :func:`log_odds_margin`.
        margins_b: of the retrained models, ``[N', P]``.
        bins: >= 1.
        reverse: True gives KL(q || p), with the floor on p.

    Returns:
        One number a point, >= 0, in float32 or wider, without a gradient. NaN where a margin is NaN.

    Raises:
        ValueError: other shapes, no models, bins below 1.

    Example:
        >>> a, b = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[0.0], [1.0], [1.0], [3.0]])
        >>> klom(a, b, bins=3)
        tensor([0.1733])

    Source: Attribute-to-Delete: Machine Unlearning via Datamodel Matching, arXiv:2410.23232.
    """
    check_tensor("margins_a", margins_a, ndim=2, floating=True)
    check_tensor("margins_b", margins_b, floating=True, shape=(None, margins_a.shape[1]))
    for name, margins in (("margins_a", margins_a), ("margins_b", margins_b)):
        if not len(margins):
            refuse(name, "at least one model", margins)
    check_number("bins", bins, low=1, integer=True)
    check_flag("reverse", reverse)
    a, b = (widen(t.detach()).clamp(-CLIP, CLIP) for t in (margins_a, margins_b))
    low = torch.minimum(a.amin(0), b.amin(0))
    span = torch.maximum(a.amax(0), b.amax(0)) - low
    width = torch.where(span == 0, 1.0, span)
    p, q = (_shares(t, low, width, bins) for t in (a, b))
    if reverse:
        p, q = q, p
    q = torch.where(p > 0, q.clamp_min(FLOOR), q)
    q = q / q.sum(0)
    divergence = torch.where(p > 0, p * (p / q).log(), 0.0).sum(0).clamp_min(0.0)
    return torch.where(span.isnan(), torch.nan, divergence)


def _shares(margins: Tensor, low: Tensor, width: Tensor, bins: int) -> Tensor:
    """The share of models in each bin, ``[bins, P]``."""
    places = ((margins - low) / width * bins).nan_to_num(0.0).long().clamp(0, bins - 1)
    shares = torch.zeros(bins, margins.shape[1], dtype=margins.dtype, device=margins.device)
    return shares.scatter_add_(0, places, torch.full_like(margins, 1 / len(margins)))


def _check_samples(argument: str, indices: object, count: int) -> None:
    """Check indices of training samples, each of which comes once."""
    check_tensor(argument, indices, ndim=1, floating=False)
    assert isinstance(indices, Tensor)
    if indices.dtype == torch.bool:
        refuse_type(argument, "indices of an integer type", indices)
    check_range(argument, indices, 0, count - 1)
    if values_visible(indices) and len(indices.unique()) != len(indices):
        refuse(argument, "each sample once", indices)
