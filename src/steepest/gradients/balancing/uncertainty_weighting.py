"""Each task's loss divided by a noise that is learned with the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

from ...core.arguments import Arguments
from ...core.balancer import Balancer
from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse, refuse_type
from ...core.scalars import is_number

KINDS = {"regression": (0.5, 0.5), "classification": (1.0, 0.5), "laplace": (1.0, 1.0)}
"""By kind of loss, the factors of exp(-s) l and of s in the negative log-likelihood."""


class UncertaintyWeighting(Balancer):
    r"""The negative log-likelihood of all tasks, with a learned noise a task: units and scales take care of themselves.

    .. math::
        L = \sum_i a_i e^{-s_i} \ell_i + b_i s_i, \qquad
        (a, b) = (\tfrac12, \tfrac12), \; (1, \tfrac12), \; (1, 1)

    for squared errors, cross-entropies and absolute errors; s is log sigma squared, and log b of a Laplace
    distribution. At the best s the weights :math:`a_i e^{-s_i}` are 1/(2l), 1/(2l) and 1/l. The total may be negative.

    ``log_variance`` is learned with the network: give it to the optimizer in a group of its own, without weight decay
    and at about ten times the rate. Losses are means: a sum over pixels counts the noise as often as there are pixels.

    Args:
        kinds: of each loss ``"regression"`` (a mean squared error), ``"classification"`` (a cross-entropy) or
            ``"laplace"`` (a mean absolute error); a number m is m times ``"regression"``, the form that other
            libraries have for every kind.
        init: where s starts.

    Raises:
        ValueError: an unknown kind, or none.

    Example:
        >>> balancer = UncertaintyWeighting(["regression", "classification"])
        >>> balancer(torch.tensor([2.0, 0.5])).item()
        1.5
        >>> balancer.weights()
        tensor([0.5000, 1.0000])

    Source: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, arXiv:1705.07115.
    """

    name = "uncertainty_weighting"
    factor: Tensor
    penalty: Tensor

    def __init__(self, kinds: int | Sequence[str], init: float = 0.0) -> None:
        self_kinds = _kinds(kinds)
        super().__init__(len(self_kinds))
        check_number("init", init)
        self.kinds, self.init = self_kinds, init
        self.log_variance = nn.Parameter(torch.full((self.tasks,), float(init)))
        for number, name in enumerate(("factor", "penalty")):
            values = torch.tensor([KINDS[kind][number] for kind in self_kinds])
            self.register_buffer(name, values, persistent=False)

    @torch.no_grad()
    def weights(self) -> F[Tensor, " m"]:
        """What each loss is multiplied by, > 0."""
        return self.factor * (-self.log_variance).exp()

    @torch.no_grad()
    def reset(self) -> None:
        """Back to where s started."""
        self.log_variance.fill_(self.init)

    def _balance(self, losses: Tensor) -> Tensor:
        return _likelihood(losses, self.log_variance, self.factor, self.penalty).sum()

    @classmethod
    def instances(cls) -> list[UncertaintyWeighting]:
        return [cls(list(KINDS)), cls(3, init=-0.5)]


class HomoscedasticLoss(Arguments, nn.Module):
    r"""The term of one task, of outputs and targets: its negative log-likelihood under a noise that is learned.

    With ``exact`` a classification is :math:`-\log \mathrm{softmax}(f / \sigma^2)_c` itself. Else it is the published
    approximation, which takes :math:`\frac1\sigma \sum_c e^{f_c / \sigma^2}` for
    :math:`(\sum_c e^{f_c})^{1 / \sigma^2}`: exact at a variance of 1, and what :class:`UncertaintyWeighting` sums.

    Args:
        kind: ``"regression"``, ``"classification"`` or ``"laplace"``.
        init: where s, the log variance, starts.
        exact: of a classification.

    Raises:
        ValueError: an unknown kind; ``exact`` of a regression, which has no other form.

    Example:
        >>> loss = HomoscedasticLoss("classification", init=0.5)
        >>> round(loss(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])).item(), 4)
        0.4972

    Source: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, arXiv:1705.07115.
    """

    def __init__(self, kind: str = "regression", init: float = 0.0, exact: bool = False) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        check_number("init", init)
        check_flag("exact", exact)
        if exact and kind != "classification":
            refuse("exact", "False, as other kinds than a classification have one form", exact)
        self.kind, self.init, self.exact = kind, init, exact
        self.log_variance = nn.Parameter(torch.tensor(float(init)))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """A scalar.

        Args:
            outputs: ``[N, C]`` logits of a classification; else ``[N, ...]``.
            target: ``[N]`` class indices; else the shape of ``outputs``.
        """
        check_tensor("outputs", outputs, floating=True)
        wide = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
        if self.exact:
            return cross_entropy(wide * (-self.log_variance).exp(), target)
        if self.kind == "classification":
            value = cross_entropy(wide, target)
        else:
            check_tensor("target", target, shape=tuple(outputs.shape))
            value = (mse_loss if self.kind == "regression" else l1_loss)(wide, target.to(wide.dtype))
        return _likelihood(value, self.log_variance, *KINDS[self.kind])

    @torch.no_grad()
    def reset(self) -> None:
        """Back to where s started."""
        self.log_variance.fill_(self.init)


def _likelihood(losses: Tensor, log_variance: Tensor, factor: Tensor | float, penalty: Tensor | float) -> Tensor:
    """Negative log-likelihoods of tasks without constants, of the shape of ``losses``."""
    return factor * (-log_variance).exp() * losses + penalty * log_variance


def _kinds(kinds: int | Sequence[str]) -> tuple[str, ...]:
    if isinstance(kinds, int) and is_number(kinds, integer=True):
        check_number("kinds", kinds, low=1, integer=True)
        return ("regression",) * kinds
    if isinstance(kinds, str) or not isinstance(kinds, Sequence):
        refuse_type("kinds", "a list of kinds, or a number of losses", kinds)
    if not kinds:
        refuse("kinds", "at least one", kinds)
    for kind in kinds:
        check_choice("kinds", kind, KINDS)
    return tuple(kinds)
