"""Gradient starvation: spectral decoupling against it, and the linearised model that shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from jaxtyping import Int as I
from scipy.optimize import minimize, root
from scipy.special import expit
from torch import Tensor

from ...core.checks import (
    check_binary,
    check_choice,
    check_index,
    check_logits,
    check_number,
    check_tensor,
    check_weight,
    refuse,
    values_visible,
)
from ...core.objective import Objective, Penalty, Sample
from ...core.reductions import REDUCTIONS, reduce, widen
from ...core.rowwise import at, mix, moments, rowwise, target_softmax
from ...core.search import Float
from ...core.terms import kept_terms
from .cross_entropy import cross_entropy

PerClass = float | Sequence[float]


def spectral_decoupling(
    outputs: F[Tensor, "batch classes"] | F[Tensor, " batch"],
    target: I[Tensor, " batch"] | None = None,
    *,
    lam: float | F[Tensor, " classes"] = 0.1,
    gamma: float | F[Tensor, " classes"] = 0.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Spectral decoupling: a quadratic penalty on the raw outputs, in place of weight decay.

    .. math:: \ell_i = \tfrac{\lambda}{2} \|h_i - \gamma\|_2^2

    With one lambda or gamma a class, those of the sample's class act. The factor 1/2 is part of lambda here; the
    published code multiplies the mean of h^2 itself, so its coefficient is lambda / 2. Two logits at their optimum are
    opposite, s/2 and -s/2: lambda on them acts as lambda / 2 on the score s. A bias of the head is penalised, and so is
    a shift of all logits that the softmax does not see.

    Args:
        outputs: h, logits ``[N, C]`` or scores ``[N]`` (C = 2), before any softmax or sigmoid.
        target: class indices ``[N]``; needed where lambda or gamma is one a class.
        lam: lambda >= 0, a number or ``[C]``.
        gamma: what outputs are pulled to, a number or ``[C]``; it is subtracted from every logit of the sample.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The penalty in float32 or wider.

    Raises:
        ValueError: a negative lambda, wrong shapes, values a class without a target.

    Example:
        >>> spectral_decoupling(torch.tensor([2.0, 1.0, -0.5]), lam=0.1)
        tensor(0.0875)

    Source: Gradient Starvation: A Learning Proclivity in Neural Networks, arXiv:2011.09468.
    """
    check_tensor("outputs", outputs, ndim=(1, 2), floating=True)
    check_choice("reduction", reduction, REDUCTIONS)
    check_weight(weight, outputs.shape[0])
    if target is not None:
        check_tensor("target", target, floating=False, shape=(outputs.shape[0],))
    h = widen(outputs)
    factor = _of_sample("lam", lam, outputs, target)
    pull = _of_sample("gamma", gamma, outputs, target)
    if outputs.ndim == 1:
        square = (h - pull).square()
    else:
        square = (h - (pull.unsqueeze(-1) if isinstance(pull, Tensor) else pull)).square().sum(-1)
    return reduce(0.5 * factor * square, reduction, weight)


def _of_sample(argument: str, value: float | Tensor, outputs: Tensor, target: Tensor | None) -> float | Tensor:
    low = 0.0 if argument == "lam" else -math.inf
    if not isinstance(value, Tensor):
        check_number(argument, value, low=low)
        return value
    classes = 2 if outputs.ndim == 1 else outputs.shape[1]
    check_tensor(argument, value, floating=True, shape=(classes,))
    if values_visible(value) and bool((value < low).any()):
        refuse(argument, "values >= 0", value.tolist())
    if target is None:
        refuse("target", f"class indices, because {argument} is one a class", target)
    check_index(target, outputs.new_empty(outputs.shape[0], classes))
    return value.to(widen(outputs).dtype)[target.long()]


def _value(value: PerClass) -> float | Tensor:
    """A number as it is, one a class as a tensor."""
    return torch.tensor(list(value), dtype=torch.float64) if isinstance(value, Sequence) else value


class SpectralDecoupling(Penalty):
    """Spectral decoupling as a penalty on the outputs; see :func:`spectral_decoupling`.

    Args:
        lam: lambda >= 0, a number or one a class.
        gamma: what outputs are pulled to, a number or one a class.

    Example:
        >>> SpectralDecoupling(lam=1.0)(torch.tensor([[3.0, -4.0]]), torch.tensor([0]))
        tensor(12.5000)
    """

    name = "spectral_decoupling"
    wants = ("outputs", "target")
    lam: float | Tensor
    gamma: float | Tensor

    def __init__(self, lam: PerClass = 0.1, gamma: PerClass = 0.0) -> None:
        super().__init__()
        for argument, given, low in (("lam", lam, 0.0), ("gamma", gamma, -math.inf)):
            for number in given if isinstance(given, Sequence) else (given,):
                check_number(argument, number, low=low)
            value = _value(given)
            if isinstance(value, Tensor):
                self.register_buffer(argument, value)
            else:
                setattr(self, argument, value)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The penalty of raw outputs, a scalar."""
        return spectral_decoupling(outputs, target, lam=self.lam, gamma=self.gamma)


class SpectralDecouplingLoss(Objective):
    r"""Cross-entropy of logits, or the logistic loss of scores, plus spectral decoupling.

    .. math:: \ell = -\log \mathrm{softmax}(h)_y + \tfrac{\lambda}{2} \|h - \gamma\|_2^2

    Strictly convex in h for lambda > 0, with one minimum even where the classes are separable. It stands in place of
    weight decay; set that of the optimizer to 0. Early in training a large lambda slows the start.

    Args:
        lam: lambda >= 0, a number or one a class; see :func:`spectral_decoupling` for its factor 1/2.
        gamma: what outputs are pulled to, a number or one a class.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: a negative lambda, wrong shapes, a class out of range.

    Example:
        >>> SpectralDecouplingLoss(lam=0.1)(torch.tensor([2.0, 1.0, -0.5]), torch.tensor([1, 0, 1]))
        tensor(0.8923)

    Source: Gradient Starvation: A Learning Proclivity in Neural Networks, arXiv:2011.09468.
    """

    name = "spectral_decoupling"
    tasks = ("binary", "multiclass")
    search = {"lam": Float(1e-3, 1.0, log=True)}

    def __init__(self, lam: PerClass = 0.1, gamma: PerClass = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.penalty = SpectralDecoupling(lam, gamma)

    def forward(
        self,
        outputs: F[Tensor, "batch classes"] | F[Tensor, " batch"],
        target: I[Tensor, " batch"],
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits ``[N, C]`` and class indices, or of scores ``[N]`` and labels in {0, 1}."""
        self.check_call(outputs, target, weight)
        check_tensor("target", target, floating=False)
        if outputs.ndim == 1:
            check_binary(target, outputs)
            h = widen(outputs)
            entropy = nnf.softplus((1 - 2 * target.to(h.dtype)) * h)
            decoupling = self._decoupling(outputs, target)
            self.terms = kept_terms({"cross_entropy": entropy.mean(), "spectral_decoupling": decoupling.mean()})
            return reduce(entropy + decoupling, self.reduction, weight)
        check_logits(outputs)
        check_index(target, outputs)
        y = target.long()
        factor = _of_sample("lam", self.penalty.lam, outputs, y)
        pull = _of_sample("gamma", self.penalty.gamma, outputs, y)

        def plain(h: Tensor) -> Tensor:
            return cross_entropy(h, y, ignore_index=None, reduction="none") + self._decoupling(h, y)

        def rule(h: Tensor, g: Tensor, rows: slice) -> Tensor:
            lam, gamma = (v[rows].unsqueeze(1) if isinstance(v, Tensor) else v for v in (factor, pull))
            softmax = target_softmax(h, g, y[rows])
            entropy = -softmax.log_p
            _, squares = moments(h, centre=gamma)
            own = lam * (at(h, y[rows]) - gamma) - softmax.away
            mix(g, z=h, slope=lam, centre=gamma, target=y[rows], value=own)
            penalties = 0.5 * lam * squares
            parts.append((entropy.sum(), penalties.sum()))
            return (entropy + penalties).squeeze(1)

        parts: list[tuple[Tensor, Tensor]] = []
        losses = rowwise(widen(outputs), plain, rule)
        if not parts:  # the plain form ran
            decoupling = self._decoupling(outputs.detach(), y)
            parts.append(((losses - decoupling).sum(), decoupling.sum()))
        sums = [torch.stack(column).sum() / max(1, len(y)) for column in zip(*parts)]
        self.terms = kept_terms(dict(zip(("cross_entropy", "spectral_decoupling"), sums)))
        return reduce(losses, self.reduction, weight)

    def _decoupling(self, outputs: Tensor, target: Tensor) -> Tensor:
        return spectral_decoupling(outputs, target, lam=self.penalty.lam, gamma=self.penalty.gamma, reduction="none")

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: for gamma = 0 the minimiser is shrunk towards even probabilities, with the argmax of q."""
        if outputs.ndim == 1:
            return torch.stack([torch.sigmoid(-outputs), torch.sigmoid(outputs)], dim=-1)
        return outputs.softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[SpectralDecouplingLoss, Sample]]:
        """The default ones, and one with values a class."""
        cases = super().samples(generator, dtype, device)
        classes = range(cases[-1][1][0][0].shape[1])
        varied = cls([0.1 + 0.2 * k for k in classes], [0.5 * k - 1.0 for k in classes]).to(device)
        return [*cases, (varied, cases[-1][1])]


def feature_responses(
    features: F[Tensor, "samples features"], outputs: F[Tensor, " samples"], y: Tensor
) -> F[Tensor, " modes"]:
    r"""The response of each mode of the data to the outputs of a two-class model.

    .. math:: z = U^\top Y h, \qquad Y \Phi = U S V^\top

    Modes come in order of falling strength s. Each column of U has the sign that makes its sum positive, so the
    response to margins that are all equal is never negative. Where strengths tie the modes of the tie are not unique.

    Args:
        features: Phi ``[n, d]``, of the last layer or of the tangent kernel.
        outputs: scores h ``[n]``.
        y: labels ``[n]`` in {-1, 1}.

    Returns:
        z ``[min(n, d)]`` in float32 or wider.

    Raises:
        ValueError: wrong shapes, labels outside {-1, 1}.

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
        >>> feature_responses(features, torch.tensor([2.0, -0.5]), torch.tensor([1, -1]))
        tensor([2.0000, 0.5000])

    Source: Gradient Starvation: A Learning Proclivity in Neural Networks, arXiv:2011.09468.
    """
    check_tensor("features", features, ndim=2, floating=True)
    check_tensor("outputs", outputs, floating=True, shape=(features.shape[0],))
    check_tensor("y", y, shape=(features.shape[0],))
    if y.numel() and values_visible(y) and not bool((y.abs() == 1).all()):
        refuse("y", "labels in {-1, 1}", torch.unique(y).tolist())
    features, outputs = widen(features), widen(outputs)
    u = torch.linalg.svd(y.to(features.dtype).unsqueeze(-1) * features, full_matrices=False).U
    u = u * torch.where(u.sum(0) < 0, -1.0, 1.0).to(u.dtype)
    return u.mT @ (y * outputs).to(u.dtype)


def gradient_starvation_experiment(
    s1: float, delta: float = 0.5, lam: float = 0.1, penalty: str = "weight_decay"
) -> F[Tensor, " modes"]:
    r"""Where training ends in the linearised model of two samples and two features, strength s1 against 1.

    .. math:: Y h = U z, \quad U = \begin{pmatrix} c & -\delta \\ \delta & c \end{pmatrix}, \quad
        c = \sqrt{1 - \delta^2}, \quad S = \mathrm{diag}(s_1, 1)

    Weight decay minimises :math:`\sum_i \log(1 + e^{-(U z)_i}) + \frac{\lambda}{2} \|S^{-1} z\|^2`: a stronger first
    feature starves the second one. Spectral decoupling has :math:`\frac{\lambda}{2} \|z\|^2` there and ends at
    U'(r, r) with 1/(1 + e^r) = lambda r, whatever the strengths. Losses are summed over the samples; with their mean
    take n lambda here.

    Args:
        s1: strength of the first feature, > 0.
        delta: how much the features share samples, in [0, 1).
        lam: lambda > 0.
        penalty: ``"weight_decay"`` or ``"decoupling"``.

    Returns:
        The responses (z1, z2) at rest, in float64.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> gradient_starvation_experiment(1.0), gradient_starvation_experiment(8.0)
        (tensor([2.2314, 0.5979], dtype=torch.float64), tensor([7.4571, 0.1678], dtype=torch.float64))
        >>> gradient_starvation_experiment(8.0, penalty="decoupling")
        tensor([2.2314, 0.5979], dtype=torch.float64)

    Source: Gradient Starvation: A Learning Proclivity in Neural Networks, arXiv:2011.09468.
    """
    check_number("s1", s1, low=0.0, open_low=True)
    check_number("delta", delta, low=0.0, high=1.0, open_high=True)
    check_number("lam", lam, low=0.0, open_low=True)
    check_choice("penalty", penalty, ("weight_decay", "decoupling"))
    c = math.sqrt(1 - delta * delta)
    strength = np.array([s1, 1.0] if penalty == "weight_decay" else [1.0, 1.0])
    # in the parameters w = z / strength, where the penalty is round
    mix = np.array([[c, -delta], [delta, c]]) * strength

    def value(w: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -mix @ w).sum() + 0.5 * lam * w @ w)

    def slope(w: np.ndarray) -> np.ndarray:
        return lam * w - mix.T @ expit(-mix @ w)

    def curvature(w: np.ndarray) -> np.ndarray:
        p = expit(mix @ w)
        return lam * np.eye(2) + mix.T @ ((p * (1 - p))[:, None] * mix)

    near = minimize(value, np.zeros(2), jac=slope, hess=curvature, method="trust-exact").x
    # differences of the value say no more below its square-root rounding; the slope still does
    return torch.from_numpy(strength * root(slope, near, jac=curvature, tol=1e-14).x)
