"""Negative preference optimization: forgetting as a preference without a preferred answer, and its relatives."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import softplus

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.loss import Loss, Sample
from ...core.preference import preference_loss
from ...core.reductions import reduce, widen
from ...core.token_reductions import masked, mean_of_sequences
from ._forget_retain import ForgetRetainLoss, sequence_log_probabilities

FORGET = ("npo", "ga", "simnpo", "dpo")


def sequence_logp(
    logits: F[Tensor, "batch time classes"], labels: I[Tensor, "batch time"], ignore_index: int = -100
) -> F[Tensor, " batch"]:
    """Log-probability of the labels of each row, in float32 or wider.

    Args:
        logits: ``[B, T, V]``.
        labels: ``[B, T]``, aligned with them.
        ignore_index: labels that don't count.

    Example:
        >>> sequence_logp(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))
        tensor([-1.3863])
    """
    return sequence_log_probabilities(logits, labels, ignore_index=ignore_index)[0]


def npo_loss(
    logp: F[Tensor, " batch"],
    ref_logp: F[Tensor, " batch"],
    *,
    beta: float = 0.1,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Negative preference optimization of answers to be forgotten.

    .. math:: L = -\frac2\beta \log \sigma(-\beta u) = \frac2\beta \log(1 + e^{\beta u}), \qquad
        u = \log \pi(y) - \log \pi_0(y), \qquad \frac{\partial L}{\partial u} = 2 \sigma(\beta u)

    The slope is 1 at the reference, that of gradient ascent, and fades as the answer becomes unlikely.

    Args:
        logp: log-probabilities of whole answers ``[B]``: sums over their tokens.
        ref_logp: under the reference ``[B]``; no gradient flows into them.
        beta: > 0; with means over tokens it must be larger.
        weight: of answers ``[B]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider, >= 0; the mean of no answers is 0, with a graph.

    Raises:
        ValueError: shapes that differ, beta not above 0.

    Example:
        >>> npo_loss(torch.tensor([-3.0, -5.0]), torch.tensor([-2.0, -2.0]))
        tensor(11.9875)

    Source: Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning, arXiv:2404.05868.
    """
    check_number("beta", beta, low=0.0, open_low=True, open_high=True)
    check_tensor("logp", logp, ndim=1, floating=True)
    check_tensor("ref_logp", ref_logp, shape=tuple(logp.shape), floating=True)
    wide = widen(logp)
    return reduce(2 / beta * softplus(beta * (wide - ref_logp.detach().to(wide))), reduction, weight, empty="zero")


def gradient_ascent_loss(
    logp: F[Tensor, " batch"], *, weight: F[Tensor, " batch"] | None = None, reduction: str = "mean"
) -> Tensor:
    """The log-probability of answers to be forgotten, which has no lower bound.

    Args:
        logp: ``[B]``.
        weight: of answers ``[B]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> gradient_ascent_loss(torch.tensor([-3.0, -5.0]))
        tensor(-4.)
    """
    check_tensor("logp", logp, ndim=1, floating=True)
    return reduce(widen(logp), reduction, weight, empty="zero")


class NPOLoss(Loss):
    """Negative preference optimization of log-probabilities; see :func:`npo_loss`.

    Args:
        beta: > 0.
        reduction: ``"mean"`` or ``"sum"``.

    Example:
        >>> NPOLoss()(torch.tensor([-2.0]), torch.tensor([-2.0]))
        tensor(13.8629)
    """

    name = "npo"

    def __init__(self, beta: float = 0.1, reduction: str = "mean") -> None:
        super().__init__()
        check_number("beta", beta, low=0.0, open_low=True, open_high=True)
        check_choice("reduction", reduction, ("mean", "sum"))
        self.beta, self.reduction = beta, reduction

    def forward(self, logp: F[Tensor, " batch"], ref_logp: F[Tensor, " batch"]) -> Tensor:
        """The loss of log-probabilities of answers under the model and under the reference."""
        return npo_loss(logp, ref_logp, beta=self.beta, reduction=self.reduction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Log-probabilities of a few answers."""
        logp, ref_logp = -5 * torch.rand(2, 4, generator=generator, dtype=torch.float64)
        return [(cls(beta), ((logp.to(device, dtype), ref_logp.to(device, dtype)), {})) for beta in (0.1, 2.0)]


class UnlearningObjective(ForgetRetainLoss):
    r"""Rows to forget and rows to keep in one loss; under their usual names.

    - "npo": :func:`npo_loss` with ``forget_ref_logp`` ``[B]``, the reference's log-probabilities of the answers;
    - "ga": :func:`gradient_ascent_loss`, without a bound; with ``retain="ce"`` it is called gradient difference;
    - "simnpo": :math:`\frac2\beta \log(1 + e^{\beta \log\pi(y) / |y| + \gamma})`, without a reference;
    - "dpo": the preference of another answer ("I don't know") over the one to be forgotten: its logits and labels are
      ``alternative`` ``[B, T', V]`` and ``alternative_labels``, its log-probability under the reference
      ``alternative_ref_logp``.

    A constant added to all logits of a token changes nothing.

    Args:
        forget: one of these names.
        retain: None, "ce" (cross-entropy) or "kl" (KL(reference || model) of each token).
        weight: of the rows that are kept, >= 0.
        beta: of "npo", "simnpo" and "dpo", > 0; None is .1.
        gamma: of "simnpo".
        ignore_index: label of tokens that don't count.

    Raises:
        ValueError: what a name needs and did not get.

    Example:
        >>> loss = UnlearningObjective("ga", "ce")
        >>> z, y = torch.zeros(1, 2, 4), torch.tensor([[1, -100]])
        >>> loss(z, y, z, y)
        tensor(0.)
    """

    name = "unlearning"
    forget_arguments = ("forget_ref_logp", "alternative", "alternative_labels", "alternative_ref_logp")

    def __init__(
        self,
        forget: str = "npo",
        retain: str | None = None,
        weight: float = 1.0,
        *,
        beta: float | None = None,
        gamma: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(retain, weight, ignore_index=ignore_index)
        check_choice("forget", forget, FORGET)
        if forget == "ga" and beta is not None:
            refuse("beta", 'None with forget="ga"', beta)
        beta = 0.1 if beta is None else beta
        check_number("beta", beta, low=0.0, open_low=True, open_high=True)
        check_number("gamma", gamma, low=-math.inf, open_low=True, open_high=True)
        if gamma != 0 and forget != "simnpo":
            refuse("gamma", '0 but with forget="simnpo"', gamma)
        self.forget, self.beta, self.gamma = forget, beta, gamma

    def forget_loss(
        self,
        source: Tensor,
        labels: Tensor,
        head: Tensor | None,
        num_items: float | Tensor | None,
        *,
        forget_ref_logp: Tensor | None = None,
        alternative: Tensor | None = None,
        alternative_labels: Tensor | None = None,
        alternative_ref_logp: Tensor | None = None,
        **further: Any,
    ) -> Tensor:
        logp, counts = sequence_log_probabilities(source, labels, head, ignore_index=self.ignore_index)
        needs_reference, needs_answer = self.forget in ("npo", "dpo"), self.forget == "dpo"
        given = {
            "forget_ref_logp": (forget_ref_logp, needs_reference), "alternative": (alternative, needs_answer),
            "alternative_labels": (alternative_labels, needs_answer),
            "alternative_ref_logp": (alternative_ref_logp, needs_answer),
        }  # fmt: skip
        for name, (value, needed) in given.items():
            if needed and value is None:
                refuse(name, f'a tensor, for forget="{self.forget}"', None)
            if value is not None and not needed:
                refuse(name, f'None with forget="{self.forget}"', value)
        if self.forget == "ga":
            return mean_of_sequences(logp, counts, num_items=num_items)
        if self.forget == "simnpo":
            losses = 2 / self.beta * softplus(self.beta * logp / counts.clamp_min(1.0) + self.gamma)
            return mean_of_sequences(losses, counts, num_items=num_items)
        assert forget_ref_logp is not None
        check_tensor("forget_ref_logp", forget_ref_logp, shape=tuple(logp.shape), floating=True)
        reference = masked(forget_ref_logp, counts > 0)
        if self.forget == "npo":
            losses = npo_loss(logp, reference, beta=self.beta, reduction="none")
            return mean_of_sequences(losses, counts, num_items=num_items)
        assert alternative is not None
        assert alternative_labels is not None
        assert alternative_ref_logp is not None
        check_tensor("alternative_ref_logp", alternative_ref_logp, shape=tuple(logp.shape), floating=True)
        preferred, instead = sequence_log_probabilities(
            alternative, alternative_labels, head, ignore_index=self.ignore_index
        )
        pairs = torch.minimum(counts, instead)  # a pair has tokens in both
        of_preferred = masked(alternative_ref_logp, pairs > 0)
        losses = preference_loss(preferred, logp, of_preferred, reference, beta=self.beta).losses
        return mean_of_sequences(losses, pairs, num_items=num_items)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Each way to forget, with nothing kept and with both ways to keep."""
        forget, retain, instead = (
            cls.sample_rows(generator, dtype, device, *size) for size in ((3, 4), (2, 5), (3, 2))
        )
        reference = torch.randn(retain[0].shape, generator=generator, dtype=torch.float64).to(device, dtype)
        ref = {"forget_ref_logp": torch.tensor([-4.0, -6.0, -5.0], device=device, dtype=dtype)}
        preferred = {
            "alternative": instead[0],
            "alternative_labels": instead[1],
            "alternative_ref_logp": ref["forget_ref_logp"] / 2,
        }
        of_reference = {"retain_reference": reference}
        return [
            (cls("npo"), (forget, ref)),
            (cls("npo", "kl", 0.5), ((*forget, *retain), ref | of_reference)),
            (cls("ga", "ce"), ((*forget, *retain), {})),
            (cls("simnpo", gamma=0.3), (forget, {})),
            (cls("dpo", "ce"), ((*forget, *retain), ref | preferred)),
        ]


def unlearning_objective(name: str, **options: Any) -> UnlearningObjective:
    """An objective by the name under which comparisons print it, such as "ga", "npo+rt" and "npo+kl".

    Args:
        name: a way to forget, alone or with "+rt" (cross-entropy on rows to keep) or "+kl"; "graddiff" is "ga+rt".
        options: of :class:`UnlearningObjective`.

    Example:
        >>> unlearning_objective("NPO+KL", beta=0.2)
        UnlearningObjective(forget='npo', retain='kl', beta=0.2)
    """
    names = [way + also for way in FORGET for also in ("", "+rt", "+kl")] + ["graddiff"]
    check_choice("name", name.lower() if isinstance(name, str) else name, names)
    forget, _, way = {"graddiff": "ga+rt"}.get(name.lower(), name.lower()).partition("+")
    retain = {"": None, "rt": "ce", "kl": "kl"}[way]
    return UnlearningObjective(forget, retain, **options)
