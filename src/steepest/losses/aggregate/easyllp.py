"""EasyLLP: instance-level risk from the label proportions of random bags."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...core.bags import bag_means, bag_sizes, check_bag_index, check_share
from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type, values_visible
from ...core.loss import Loss, Sample
from ...core.reductions import widen

LOSSES = ("logistic", "squared")
CORRECTIONS = ("none", "abs")
InstanceLosses = Callable[[Tensor], Tensor]
Prior = float | F[Tensor, " classes"]


def pseudo_labels(
    bag_index: I[Tensor, " rows"], proportions: F[Tensor, bags * classes], prior: Prior
) -> F[Tensor, rows * classes]:
    r"""The debiased label of every row, from the share of its bag alone.

    .. math:: \tilde y = k (\alpha_b - p) + p

    Args:
        bag_index: bags 0..M-1 of the rows, ``[N]``; k is the number of rows of a bag.
        proportions: share of positives :math:`\alpha` of each bag ``[M]``, or of each class ``[M, C]``, in [0, 1].
        prior: p, the population's share in (0, 1); a tensor ``[C]`` for classes.

    Returns:
        ``[N]`` or ``[N, C]``; values may leave [0, 1].

    Raises:
        ValueError: shares outside [0, 1] or not summing to 1, a prior outside (0, 1), an empty bag.

    Example:
        >>> pseudo_labels(torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0.5]), 0.5)
        tensor([1.5000, 1.5000, 0.5000, 0.5000])

    Source: Easy Learning from Label Proportions, arXiv:2302.03115.
    """
    check_tensor("bag_index", bag_index, ndim=1, floating=False)
    proportions, p = _checked(bag_index, proportions, prior, bag_index.shape[0])
    return _bag_labels(bag_index, proportions, p)[bag_index]


def debiased_bag_loss(
    losses: F[Tensor, "rows classes"],
    bag_index: I[Tensor, " rows"],
    proportions: F[Tensor, bags * classes],
    prior: Prior,
) -> F[Tensor, " bags"]:
    r"""The unbiased estimate of the instance-level risk that each bag gives, for any loss.

    .. math:: \ell_b = \frac1k \sum_{i \in b} \sum_c \tilde y_{bc}\, \ell(f(x_i), c),
        \qquad \tilde y_{bc} = k (\alpha_{bc} - p_c) + p_c

    Over bags drawn at random its expectation is the expected loss of one instance. One bag makes an unbiased step.

    Args:
        losses: loss of every row under every label, ``[N, C]``; for binary labels column 0 is that of a negative.
        bag_index: bags 0..M-1 of the rows, ``[N]``; sizes may differ, each bag has its own k.
        proportions: share of positives of each bag ``[M]`` (C = 2), or of each class ``[M, C]``, in [0, 1].
        prior: the population's share in (0, 1); a tensor ``[C]`` for classes.

    Returns:
        ``[M]`` in float32 or wider, possibly negative.

    Raises:
        ValueError: wrong shapes, shares outside [0, 1] or not summing to 1, a prior outside (0, 1), an empty bag.

    Example:
        >>> losses = torch.tensor([[2.0, 0.5], [1.0, 3.0]])
        >>> debiased_bag_loss(losses, torch.tensor([0, 0]), torch.tensor([0.5]), 0.5)
        tensor([1.6250])

    Source: Easy Learning from Label Proportions, arXiv:2302.03115.
    """
    return _partial_risks(losses, bag_index, proportions, prior).sum(-1)


def easyllp_loss(
    logits: F[Tensor, rows * classes],
    bag_index: I[Tensor, " rows"],
    proportions: F[Tensor, bags * classes],
    prior: Prior,
    loss: str | InstanceLosses = "logistic",
    *,
    correction: str = "none",
) -> Tensor:
    r"""The mean over bags of :func:`debiased_bag_loss`: a supervised risk learnt from label proportions.

    .. math:: L = \frac1M \sum_b \frac1{k_b} \sum_{i \in b}
        \bigl[\tilde y_b\, \ell(f(x_i), 1) + (1 - \tilde y_b)\, \ell(f(x_i), 0)\bigr]

    It is valid for bags formed at random only. Labels outside [0, 1] make it unbounded below for the logistic loss:
    flexible models then need the squared loss, ``correction="abs"`` or early stopping.

    Args:
        logits: scores of the positive class ``[N]``, or of C classes ``[N, C]``.
        bag_index: bags 0..M-1 of the rows, ``[N]``.
        proportions: share of positives of each bag ``[M]``, or of each class ``[M, C]``, in [0, 1].
        prior: the population's share in (0, 1); a tensor ``[C]`` for classes. Unknown: the mean of the proportions of
            all training bags.
        loss: ``"logistic"`` (cross-entropy for classes), ``"squared"`` (of probabilities, bounded), or a function of
            the logits that gives the loss under every label, ``[N, C]`` (``[N, 2]`` for binary logits).
        correction: ``"none"``, or ``"abs"``: the absolute value of each label's part of the risk, which cannot be
            negative in expectation.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: wrong shapes, shares outside [0, 1] or not summing to 1, a prior outside (0, 1), an empty bag.

    Example:
        >>> logits = torch.tensor([2.0, -1.0, 0.5, -0.5])
        >>> easyllp_loss(logits, torch.tensor([0, 0, 1, 1]), torch.tensor([0.5, 1.0]), 0.6)
        tensor(0.8721)

    Source: Easy Learning from Label Proportions, arXiv:2302.03115.
    """
    check_tensor("logits", logits, ndim=(1, 2), floating=True)
    check_choice("correction", correction, CORRECTIONS)
    losses = _losses(widen(logits), loss)
    if losses.shape != (logits.shape[0], 2 if logits.ndim == 1 else logits.shape[1]):
        refuse("loss", "the loss of each row under each label", losses)
    check_tensor("proportions", proportions, ndim=logits.ndim, floating=True)
    risks = _partial_risks(losses, bag_index, proportions, prior).mean(0)
    return (risks.abs() if correction == "abs" else risks).sum()


def proportion_matching_loss(
    logits: F[Tensor, rows * classes], bag_index: I[Tensor, " rows"], proportions: F[Tensor, bags * classes]
) -> Tensor:
    r"""Cross-entropy between the proportions of a bag and its mean prediction, the usual baseline.

    .. math:: L = -\frac1M \sum_b \sum_c \alpha_{bc} \log \frac1{k_b} \sum_{i \in b} f_c(x_i)

    Args:
        logits: scores of the positive class ``[N]``, or of C classes ``[N, C]``.
        bag_index: bags 0..M-1 of the rows, ``[N]``.
        proportions: share of positives of each bag ``[M]``, or of each class ``[M, C]``, in [0, 1].

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: wrong shapes, shares outside [0, 1] or not summing to 1, an empty bag.

    Example:
        >>> proportion_matching_loss(torch.tensor([2.0, -2.0]), torch.tensor([0, 0]), torch.tensor([0.5]))
        tensor(0.6931)

    Source: Easy Learning from Label Proportions, arXiv:2302.03115.
    """
    check_tensor("logits", logits, ndim=(1, 2), floating=True)
    check_tensor("proportions", proportions, ndim=logits.ndim, floating=True)
    shares, _ = _checked(bag_index, proportions, None, logits.shape[0])
    log_p = -_losses(widen(logits), "logistic")
    if shares.ndim == 1:
        shares = torch.stack([1 - shares, shares], -1)
    elif shares.shape[1] != logits.shape[1]:
        refuse("proportions", f"shape (*, {logits.shape[1]})", proportions)
    shares = shares.to(log_p.dtype)
    bags = shares.shape[0]
    # the log of a mean of probabilities, from the largest of each bag: no probability underflows to log 0
    index = bag_index[:, None].expand_as(log_p)
    top = torch.full_like(shares, -torch.inf).scatter_reduce(0, index, log_p.detach(), "amax")
    mean = bag_means((log_p - top[bag_index]).exp(), bag_index, bags).log() + top
    return -(shares * mean).sum(-1).mean()


class EasyLLPLoss(Loss):
    """EasyLLP as a module; see :func:`easyllp_loss`.

    Args:
        prior: the population's share of positives in (0, 1), or of each class ``[C]``.
        loss: ``"logistic"``, ``"squared"`` or a function of the logits.
        correction: ``"none"`` or ``"abs"``.

    Example:
        >>> loss = EasyLLPLoss(prior=0.4)
        >>> loss(torch.tensor([1.0, -1.0]), torch.tensor([0, 0]), torch.tensor([0.5]))
        tensor(0.8133)
    """

    name = "easyllp"

    def __init__(self, prior: Prior, loss: str | InstanceLosses = "logistic", correction: str = "none") -> None:
        super().__init__()
        if not callable(loss):
            check_choice("loss", loss, LOSSES)
        check_choice("correction", correction, CORRECTIONS)
        self.register_buffer("prior", _prior(prior).clone())
        self.loss, self.correction = loss, correction

    @classmethod
    def from_proportions(
        cls, proportions: F[Tensor, bags * classes], loss: str | InstanceLosses = "logistic", correction: str = "none"
    ) -> EasyLLPLoss:
        """With the mean of the proportions of all training bags as the prior.

        >>> EasyLLPLoss.from_proportions(torch.tensor([0.25, 0.75, 0.5])).prior
        tensor(0.5000)
        """
        check_tensor("proportions", proportions, ndim=(1, 2), floating=True)
        return cls(widen(proportions).mean(0), loss, correction)

    def forward(
        self, logits: F[Tensor, rows * classes], bag_index: I[Tensor, " rows"], proportions: F[Tensor, bags * classes]
    ) -> Tensor:
        """The loss of logits, the bag of each row, and the proportions of each bag."""
        return easyllp_loss(logits, bag_index, proportions, self.prior, self.loss, correction=self.correction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[EasyLLPLoss, Sample]]:
        binary, classes = _samples(generator, dtype, device)
        cases: list[tuple[EasyLLPLoss, Sample]] = [
            (cls(0.4, loss, c), (binary, {})) for loss in LOSSES for c in CORRECTIONS
        ]
        prior = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64, device=device)
        return [*cases, (cls(prior), (classes, {}))]


class ProportionMatchingLoss(Loss):
    """Proportion matching as a module; see :func:`proportion_matching_loss`.

    Example:
        >>> loss = ProportionMatchingLoss()
        >>> loss(torch.tensor([1.0, -1.0]), torch.tensor([0, 0]), torch.tensor([0.5]))
        tensor(0.6931)
    """

    name = "proportion_matching"

    def forward(
        self, logits: F[Tensor, rows * classes], bag_index: I[Tensor, " rows"], proportions: F[Tensor, bags * classes]
    ) -> Tensor:
        """The loss of logits, the bag of each row, and the proportions of each bag."""
        return proportion_matching_loss(logits, bag_index, proportions)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[ProportionMatchingLoss, Sample]]:
        return [(cls(), (args, {})) for args in _samples(generator, dtype, device)]


def _samples(
    generator: torch.Generator, dtype: torch.dtype, device: str | torch.device
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    index = torch.tensor([0, 1, 1, 0, 2, 1], device=device)
    scores = torch.randn(6, 4, generator=generator).to(device, dtype)
    shares = torch.tensor([0.5, 0.75, 1.0], device=device, dtype=dtype)
    per_class = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]], device=device, dtype=dtype)
    return (scores[:, 0], index, shares), (scores[:, 1:], index, per_class)


def _losses(logits: Tensor, loss: str | InstanceLosses) -> Tensor:
    """The loss of every row under every label, ``[N, C]``."""
    if callable(loss):
        return loss(logits)
    check_choice("loss", loss, LOSSES)
    if logits.ndim == 1:
        log_p = torch.stack([logsigmoid(-logits), logsigmoid(logits)], -1)
        return -log_p if loss == "logistic" else (1 - log_p.exp()).square()
    if loss == "logistic":
        return -logits.log_softmax(-1)
    p = logits.softmax(-1)
    return p.square().sum(-1, keepdim=True) - 2 * p + 1  # |p - e_c|^2


def _partial_risks(losses: Tensor, bag_index: Tensor, proportions: Tensor, prior: Prior) -> Tensor:
    """Each label's part of each bag's estimate, ``[M, C]``."""
    check_tensor("losses", losses, ndim=2, floating=True)
    losses = widen(losses)
    proportions, p = _checked(bag_index, proportions, prior, losses.shape[0])
    if losses.shape[1] != (2 if proportions.ndim == 1 else proportions.shape[1]):
        refuse("proportions", f"shares of {losses.shape[1]} labels", proportions)
    labels = _bag_labels(bag_index, proportions, p).to(losses.dtype)
    if labels.ndim == 1:
        labels = torch.stack([1 - labels, labels], -1)
    return labels * bag_means(losses, bag_index, labels.shape[0])


def _bag_labels(bag_index: Tensor, proportions: Tensor, prior: Tensor) -> Tensor:
    sizes = bag_sizes(bag_index, proportions.shape[0], proportions.dtype)
    return sizes.reshape(-1, *[1] * (proportions.ndim - 1)) * (proportions - prior) + prior


def _checked(bag_index: Tensor, proportions: Tensor, prior: Prior | None, rows: int) -> tuple[Tensor, Tensor]:
    check_tensor("proportions", proportions, ndim=(1, 2), floating=True)
    check_bag_index(bag_index, rows, proportions.shape[0])
    check_share("proportions", proportions)
    if proportions.ndim == 2 and values_visible(proportions):
        error = float((proportions.double().sum(1) - 1).abs().max())
        if error > max(1e-4, proportions.shape[1] * torch.finfo(proportions.dtype).eps):
            refuse("proportions", "rows that sum to 1", 1 + error)
    wide = widen(proportions)
    if prior is None:
        return wide, wide
    p = _prior(prior)
    if p.shape not in ((), proportions.shape[1:]) or p.ndim > proportions.ndim - 1:
        refuse("prior", f"a share for each of {proportions.shape[1:].numel()} labels", p)
    if proportions.ndim == 2 and p.ndim == 0:
        refuse("prior", "a tensor with a share for each class", prior)
    return wide, p.to(wide)


def _prior(prior: Prior) -> Tensor:
    if not isinstance(prior, Tensor):
        check_number("prior", prior, low=0.0, high=1.0, open_low=True, open_high=True)
        return torch.tensor(float(prior), dtype=torch.float64)
    if not prior.is_floating_point():
        refuse_type("prior", "a number, or a floating tensor", prior)
    if prior.ndim > 1:
        refuse("prior", "a number, or shares [C]", prior)
    if values_visible(prior) and not bool(((prior > 0) & (prior < 1)).all()):
        refuse("prior", "values > 0 and < 1", prior.tolist())
    return prior.detach()
