"""Jacobian descent: nothing that a step does conflicts with any of the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core import dual_cone
from ...core.aggregator import Aggregator, GramianAggregator
from ...core.balancer import as_losses
from ...core.checks import check_number, check_tensor, refuse
from ..joint import backward


class UPGrad(GramianAggregator):
    r"""Each row projected onto the dual cone of all rows, and the projections averaged: the result conflicts with none.

    .. math:: \mathrm{UPGrad}(J) = \sum_i p_i \, \mathrm{proj}_C(g_i), \qquad C = \{x : J x \ge 0\}, \qquad p_i = 1/m

    The projection of row i is J'w with the w that is least in w' J J' w among w >= e_i. Rows are brought to length 1
    before, so that lengths from 1e-30 to 1e30 beside each other cost no digits, and the programs are solved to the last
    ones. So a row near 0 binds as hard as any other. Where that is not meant, as for samples that are fitted,
    ``reg_eps`` lets rows go that are short beside the longest, and the properties above hold up to about it.

    Args:
        pref_vector: preferences p ``[m]`` >= 0; None is 1/m each.
        reg_eps: >= 0, added to the diagonal of J J' over its trace; TorchJD's is 1e-4.

    Example:
        >>> UPGrad()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.2500, 0.7500])
        >>> UPGrad().weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([1.0000, 0.7500])

    Source: Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232.
    """

    name = "upgrad"
    properties = frozenset(
        {"non_conflicting", "linear_under_scaling", "homogeneous", "permutation_invariant", "in_span", "stationary"}
    )

    pref_vector: Tensor | None

    def __init__(self, pref_vector: Tensor | None = None, reg_eps: float = 0.0) -> None:
        super().__init__()
        check_number("reg_eps", reg_eps, low=0.0)
        self.reg_eps = reg_eps
        if pref_vector is not None:
            check_tensor("pref_vector", pref_vector, ndim=1, floating=True)
            if not bool((pref_vector >= 0).all()):
                refuse("pref_vector", "numbers >= 0", pref_vector)
        self.register_buffer("pref_vector", pref_vector)

    def _weigh(self, gramian: Tensor, scale: Tensor | None) -> Tensor:
        preference = self.pref_vector
        if preference is not None and len(preference) != len(gramian):
            refuse("jacobian", f"{len(preference)} rows, as pref_vector", gramian)
        if self.reg_eps:
            return self._regularised(gramian, scale, preference)
        if scale is not None:
            preference = scale / len(scale) if preference is None else preference.to(scale) * scale
        return dual_cone.weights(gramian, preference)

    def _regularised(self, gramian: Tensor, scale: Tensor | None, preference: Tensor | None) -> Tensor:
        factor = torch.ones_like(gramian[0]) if scale is None else scale / scale.amax().clamp_min(1e-300)
        whole = factor.unsqueeze(1) * gramian * factor
        trace = whole.trace()
        eye = torch.eye(len(whole), dtype=whole.dtype, device=whole.device)
        whole = whole / torch.where(trace == 0, 1.0, trace) + self.reg_eps * eye
        weights = dual_cone.weights(whole, preference)
        return weights if scale is None else weights * scale


def project_dual_cone(jacobian: F[Tensor, "m n"]) -> F[Tensor, "m n"]:
    """Each row of a Jacobian projected onto the cone of all x with J x >= 0.

    Args:
        jacobian: ``[m, n]``, row i the gradient of loss i.

    Returns:
        ``[m, n]``; UPGrad is its mean.

    Raises:
        ValueError: not a matrix.

    Example:
        >>> project_dual_cone(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])

    Source: Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232.
    """
    check_tensor("jacobian", jacobian, ndim=2, floating=True)
    rows = [UPGrad(preference)(jacobian) for preference in torch.eye(len(jacobian), dtype=torch.float64)]
    return torch.stack(rows) if rows else jacobian.clone()


class JacobianDescent:
    """An optimizer whose step takes several losses and goes along their aggregated gradient.

    Args:
        optimizer: any torch optimizer over the parameters; its groups are this one's.
        aggregator: from a Jacobian ``[m, n]`` to a direction ``[n]``; UPGrad by default.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> descent = JacobianDescent(torch.optim.SGD([w], lr=1.0))
        >>> descent.step([w[0] * 1.0, w[1] - w[0]])
        >>> w.data
        tensor([0.7500, 1.2500])

    Source: Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, aggregator: Aggregator | Any | None = None) -> None:
        self.optimizer = optimizer
        self.aggregator = UPGrad() if aggregator is None else aggregator

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.optimizer.param_groups

    def step(self, losses: Tensor | Sequence[Tensor], *, features: Tensor | Sequence[Tensor] | None = None) -> None:
        """Zero the gradients, run backward, take one step.

        Args:
            losses: ``[m]``, or m scalars.
            features: as in :func:`~steepest.gradients.backward`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        shared = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        backward(losses, shared, aggregator=self.aggregator, features=features)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer and of the aggregator."""
        state = self.aggregator.state_dict() if isinstance(self.aggregator, nn.Module) else {}
        return {"optimizer": self.optimizer.state_dict(), "aggregator": dict(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if isinstance(self.aggregator, nn.Module):
            self.aggregator.load_state_dict(state_dict["aggregator"])


def iwrm(
    losses: F[Tensor, " samples"],
    parameters: Iterable[Tensor] | None = None,
    *,
    aggregator: Aggregator | Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Instance-wise risk minimisation: each sample's loss is an objective; adds the aggregated gradient to ``.grad``.

    Args:
        losses: ``[B]``, a loss a sample (``reduction="none"``).
        parameters: by default all that the losses depend on.
        aggregator: by default UPGrad with ``reg_eps=1e-4``: fitted samples, with gradients near 0, do not bind.

    Raises:
        ValueError: losses of another shape, or that depend on no parameter.

    Example:
        >>> w = torch.tensor([0.0, 0.0], requires_grad=True)
        >>> iwrm(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]) @ w)
        >>> w.grad
        tensor([0.2499, 0.7500])

    Source: Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232.
    """
    backward(as_losses(losses), parameters, aggregator=UPGrad(reg_eps=1e-4) if aggregator is None else aggregator)
