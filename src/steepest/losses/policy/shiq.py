"""ShiQ: Q-learning of tokens on a language model's own logits, offline."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse
from ...core.loss import Sample
from ...core.search import Float
from ...core.token_loss import TokenLoss
from ...core.token_reductions import masked, mean_of_sequences, runs_of_tokens, sequence_sums, suffix_sums
from ...kernels.token_statistics import token_statistics


def shiq_loss(
    logits: F[Tensor, "batch time classes"],
    ref_logits: F[Tensor, "batch time classes"],
    actions: I[Tensor, "batch time"],
    rewards: F[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    beta: float = 0.1,
    gamma: float = 1.0,
    multi_step: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """The loss of :class:`ShiQLoss` as a function.

    Args:
        logits: l of the model ``[B, T, V]``.
        ref_logits: l0 of the reference, of the same shape; no gradient flows into them.
        actions: tokens that were taken ``[B, T]``; anything where the mask is false.
        rewards: r ``[B, T]``; one for a whole answer stands at its last token.
        mask: tokens of answers ``[B, T]``.
        beta, gamma, multi_step: see the class.
        reduction: of sequences: ``"none"`` ``[B]``, ``"mean"`` over those that have a token, or ``"sum"``.

    Returns:
        The loss in float32 or wider.
    """
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    check_tensor("actions", actions, ndim=2, floating=False)
    check_tensor("mask", mask, shape=tuple(actions.shape), floating=False)
    loss = ShiQLoss(beta, gamma, multi_step)
    labels = torch.where(mask.bool(), actions, loss.ignore_index)
    losses, counts = loss.sequence_losses(logits, labels, None, segments=None, rewards=rewards, reference=ref_logits)
    if reduction == "mean":
        return mean_of_sequences(losses, counts)
    return losses if reduction == "none" else losses.sum()


class ShiQLoss(TokenLoss):
    r"""Squared soft Bellman residuals of a model's logits, shifted by those of a reference.

    With logits l and l0, v and v0 their log-sum-exps, actions a, rewards r, and the state after the last token worth 0:

    .. math:: d_t = r_t + \gamma\beta\,(v - v_0)(s_{t+1}) - \beta\,(l - l_0)(s_t, a_t), \qquad
        D_t = \sum_{k \ge t} d_k

    L is the mean over sequences of :math:`\sum_t D_t^2` (of :math:`d_t^2` in one step). Gradients flow through every l
    and v. At its minimum softmax(l) is the policy that is best for the rewards less beta times the divergence from the
    reference. v is a value: a constant added to the logits of a token changes the loss.

    The state after a token is that of the next token of its sequence that counts; what is masked between them (answers
    of a tool) is passed over.

    Args:
        beta: weight of the divergence, > 0.
        gamma: discount in [0, 1]; only 1 with ``multi_step``.
        multi_step: D in place of d, which carries a reward at the end to the first tokens at once.
        over_beta: residuals over beta.
        per_token: the mean over the tokens of a sequence in place of the sum.
        ignore_index: label of tokens that don't count.

    ``forward`` takes ``rewards=`` ``[B, T]`` and the reference: ``reference=`` its logits ``[B, T, V]`` (or hidden
    states, with ``reference_head=`` ``[V, D]``, ``reference_bias=`` ``[V]`` and the softcap of the policy's head), or
    ``reference_label=`` and ``reference_log_z=`` ``[B, T]`` that were computed once.

    Raises:
        ValueError: beta not above 0, a discount with ``multi_step``, no reference or two.

    Example:
        >>> l, l0 = torch.tensor([[[1.0, 0, -1], [0.5, 0.5, 0]]]), torch.tensor([[[0.5, 0, 0], [0.0, 1, 0]]])
        >>> ShiQLoss(beta=0.5)(l, torch.tensor([[0, 1]]), rewards=torch.tensor([[0.0, 1.0]]), reference=l0)
        tensor(2.4713)

    Source: ShiQ: Bringing back Bellman to LLMs, arXiv:2505.11081.
    """

    name = "shiq"
    unit = "sequence"
    shift_invariant = False
    further = ("rewards", "reference", "reference_head", "reference_bias", "reference_label", "reference_log_z")
    alternatives = {"beta": 0.3, "gamma": 0.5, "multi_step": False, "over_beta": True, "per_token": True}
    search = {"beta": Float(0.01, 1.0, log=True)}

    def __init__(
        self,
        beta: float = 0.1,
        gamma: float = 1.0,
        multi_step: bool = True,
        over_beta: bool = False,
        per_token: bool = False,
        *,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(ignore_index=ignore_index)
        check_number("beta", beta, low=0.0, open_low=True, open_high=True)
        check_number("gamma", gamma, low=0.0, high=1.0)
        for name, flag in (("multi_step", multi_step), ("over_beta", over_beta), ("per_token", per_token)):
            check_flag(name, flag)
        if multi_step and gamma != 1:
            refuse("gamma", "1 with multi_step, whose residuals telescope without a discount", gamma)
        self.beta, self.gamma, self.multi_step = beta, gamma, multi_step
        self.over_beta, self.per_token = over_beta, per_token

    def sequence_losses(
        self,
        source: Tensor,
        labels: Tensor,
        head: Tensor | None,
        *,
        segments: Tensor | None,
        rewards: Tensor | None = None,
        reference: Tensor | None = None,
        reference_head: Tensor | None = None,
        reference_bias: Tensor | None = None,
        reference_label: Tensor | None = None,
        reference_log_z: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Of sequences; see the class."""
        check_tensor("rewards", rewards, shape=tuple(labels.shape), floating=True)
        assert rewards is not None
        own = token_statistics(source, labels, head, want=("label", "log_z"), ignore_index=self.ignore_index, **options)
        label, log_z, valid = own.label, own.log_z, own.valid
        assert label is not None
        assert log_z is not None
        label0, log_z0 = self._reference(
            labels,
            source.shape[-1] if head is None else head.shape[0],
            (reference, reference_head, reference_bias),
            (reference_label, reference_log_z),
            options,
        )
        advantage = label - masked(label0.to(label), valid)
        value = log_z - masked(log_z0.to(log_z), valid)
        runs = None if segments is None else runs_of_tokens(segments, valid)[0]
        residual = (
            masked(rewards.detach().to(label), valid)
            + self.gamma * self.beta * _next(value, valid, runs)
            - self.beta * advantage
        )
        residual = masked(residual, valid)
        if self.multi_step:
            residual = masked(suffix_sums(residual, runs), valid)
        if self.over_beta:
            residual = residual / self.beta
        sums, counts = sequence_sums(residual.square(), valid, segments)
        return sums / counts.clamp_min(1.0) if self.per_token else sums, counts

    def _reference(
        self,
        labels: Tensor,
        classes: int,
        model: tuple[Tensor | None, Tensor | None, Tensor | None],
        computed: tuple[Tensor | None, Tensor | None],
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Logits of the labels and log-partitions of the reference, without a gradient.

        By its logits, or hidden states, head and bias, with the softcap of the policy's head; or computed before.
        """
        reference, head, bias = model
        if (reference is None) == (computed[0] is None and computed[1] is None):
            refuse("reference", "logits of the reference, or reference_label and reference_log_z", reference)
        if reference is None:
            if head is not None or bias is not None:
                refuse("reference", "hidden states, beside reference_head and reference_bias", None)
            for name, value in zip(("reference_label", "reference_log_z"), computed):
                check_tensor(name, value, shape=tuple(labels.shape), floating=True)
            assert computed[0] is not None
            assert computed[1] is not None
            return computed[0].detach(), computed[1].detach()
        check_tensor("reference", reference, shape=(*labels.shape, classes if head is None else None), floating=True)
        if head is None:
            if bias is not None:
                refuse("reference_bias", "None without reference_head", bias)
            options = {}
        else:
            check_tensor("reference_head", head, floating=True, shape=(classes, None))
            options = {**options, "bias": None if bias is None else bias.detach()}
        with torch.no_grad():
            of_tokens = token_statistics(
                reference.detach(),
                labels,
                None if head is None else head.detach(),
                want=("label", "log_z"),
                ignore_index=self.ignore_index,
                **options,
            )
        assert of_tokens.label is not None
        assert of_tokens.log_z is not None
        return of_tokens.label, of_tokens.log_z

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Several steps and one, the reference by its logits and by numbers computed once."""
        logits, labels = cls.sample_tokens(generator, dtype, device)
        reference = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(device, dtype)
        rewards = torch.randn(labels.shape, generator=generator, dtype=torch.float64).to(device, dtype)
        once = {"reference_label": reference[..., 0], "reference_log_z": reference.logsumexp(-1)}
        return [
            (cls(0.2), ((logits, labels), {"rewards": rewards, "reference": reference})),
            (cls(0.5, 0.9, False), ((logits, labels), {"rewards": rewards, **once})),
        ]


def _next(values: Tensor, valid: Tensor, runs: Tensor | None) -> Tensor:
    """Of each token the value at the next valid one of its run, 0 after the last."""
    steps = values.shape[1]
    place = torch.arange(steps, device=values.device)
    ahead = torch.where(valid, place, steps).flip(1).cummin(1).values.flip(1)
    after = torch.cat([ahead[:, 1:], torch.full_like(ahead[:, :1], steps)], 1)
    there = after < steps
    after = after.clamp_max(steps - 1)
    if runs is not None:
        there = there & (runs.gather(1, after) == runs)
    return masked(values.gather(1, after), there)
