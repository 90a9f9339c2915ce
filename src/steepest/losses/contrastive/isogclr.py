"""Contrastive learning with a temperature of each sample's own, the dual variable of a robust objective."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_flag, check_number, check_range, check_tensor, refuse, values_visible
from ...core.cosine import unit_rows
from ...core.loss import Sample
from ...core.objective import TaskInfo
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.reductions import widen
from ...core.search import Float
from ...core.terms import kept_terms
from ...kernels.pair_log_partition import pair_log_partition

CLIP = 3.0
"""Largest size of the gradient in a temperature."""


def robust_contrastive_loss(
    negatives: F[Tensor, "anchors negatives"],
    positive: F[Tensor, " anchors"],
    temperature: float | F[Tensor, " anchors"],
    rho: float = 0.3,
) -> F[Tensor, ""]:
    r"""The robust contrastive objective of similarities: the worst mean over negatives in a ball of KL radius rho.

    .. math:: \frac{1}{A} \sum_i \tau_i \left[ \log \frac{1}{K} \sum_z e^{(s_{iz} - s_i^+) / \tau_i} + \rho \right]

    Its minimum over tau is the largest mean of s - s+ under a distribution within rho of the uniform one.

    Args:
        negatives: s ``[A, K]``, K >= 1.
        positive: s+ ``[A]``.
        temperature: tau > 0, a number or ``[A]``.
        rho: >= 0.

    Returns:
        The mean in float32 or wider; 0 where there is no anchor.

    Raises:
        ValueError: other shapes, a number out of range.

    Example:
        >>> robust_contrastive_loss(torch.tensor([[0.5, 0.2, -0.1]]), torch.tensor([0.8]), 0.2)
        tensor(-0.4115)

    Source: Not All Semantics are Created Equal, arXiv:2305.11965.
    """
    check_tensor("negatives", negatives, ndim=2, floating=True)
    if not negatives.shape[1]:
        refuse("negatives", "one and more", negatives)
    check_tensor("positive", positive, floating=True, shape=tuple(negatives.shape[:1]))
    check_number("rho", rho, low=0.0)
    if isinstance(temperature, Tensor):
        check_tensor("temperature", temperature, floating=True, shape=tuple(positive.shape))
        if values_visible(temperature) and bool((temperature <= 0).any()):
            refuse("temperature", "numbers > 0", float(temperature.min()))
    else:
        check_number("temperature", temperature, low=0.0, open_low=True)
    s = widen(negatives)
    tau = torch.as_tensor(temperature, dtype=s.dtype, device=s.device)
    log_g = (s / tau.unsqueeze(-1)).logsumexp(1) - math.log(s.shape[1])
    losses = tau * (log_g + rho) - widen(positive)
    return mean_of_counted(losses, torch.ones_like(losses, dtype=torch.bool))


class IndividualTemperature(nn.Module):
    r"""Temperature, running mean and momentum of each sample, all in ``state_dict``.

    .. math:: s_i \leftarrow (1 - \gamma) s_i + \gamma g_i, \quad u_i \leftarrow (1 - \beta) u_i + \beta G_i, \quad
        \tau_i \leftarrow \mathrm{clip}(\tau_i - \eta u_i)

    s is kept as its logarithm, which float32 holds at any temperature. On the first visit of a sample s is g.

    Args:
        num_samples: N >= 1.
        gamma, beta: shares of the new value, in (0, 1].
        eta: step of the temperature, >= 0.
        tau_init: first temperature, within the limits.
        tau_min, tau_max: limits, > 0.

    Example:
        >>> memory = IndividualTemperature(3, tau_init=0.2)
        >>> memory.write(torch.tensor([1]), torch.tensor([0.5]), torch.tensor([-0.177028]), torch.tensor([True]))
        >>> memory.tau
        tensor([0.2000, 0.2016, 0.2000])
    """

    log_s: Tensor
    u: Tensor
    tau: Tensor
    seen: Tensor

    def __init__(
        self,
        num_samples: int,
        gamma: float = 0.8,
        beta: float = 0.9,
        eta: float = 0.01,
        tau_init: float = 0.1,
        tau_min: float = 0.05,
        tau_max: float = 0.7,
    ) -> None:
        super().__init__()
        check_number("num_samples", num_samples, low=1, integer=True)
        check_number("gamma", gamma, low=0.0, high=1.0, open_low=True)
        check_number("beta", beta, low=0.0, high=1.0, open_low=True)
        check_number("eta", eta, low=0.0)
        check_number("tau_min", tau_min, low=0.0, open_low=True)
        check_number("tau_max", tau_max, low=tau_min)
        check_number("tau_init", tau_init, low=tau_min, high=tau_max)
        self.gamma, self.beta, self.eta, self.tau_min, self.tau_max = gamma, beta, eta, tau_min, tau_max
        self.register_buffer("log_s", torch.zeros(num_samples))
        self.register_buffer("u", torch.zeros(num_samples))
        self.register_buffer("tau", torch.full((num_samples,), tau_init))
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))

    def check(self, index: Tensor, rows: int) -> None:
        """Check positions ``[rows]``."""
        check_tensor("index", index, floating=False, shape=(rows,))
        if index.dtype == torch.bool:
            refuse("index", "integer positions", index)
        check_range("index", index, 0, len(self.tau) - 1)

    def averaged(self, index: Tensor, log_g: Tensor) -> Tensor:
        """log s of samples ``[B]`` (of further views ``[..., B]``) with g taken in; nothing is written."""
        stored = self.log_s[index].to(log_g.dtype)
        fresh = log_g + math.log(self.gamma)
        mixed = fresh if self.gamma == 1.0 else torch.logaddexp(stored + math.log1p(-self.gamma), fresh)
        return torch.where(self.seen[index], mixed, log_g)

    @torch.no_grad()
    def write(self, index: Tensor, log_s: Tensor, slope: Tensor, counts: Tensor) -> None:
        """Store log s and move u and tau by the gradient in tau, where a sample counts; of repeated ones the mean.

        Args:
            index: positions ``[B]``.
            log_s: new logarithms ``[B]``.
            slope: G ``[B]``, clipped here.
            counts: boolean ``[B]``.
        """
        u = (1 - self.beta) * self.u[index] + self.beta * slope.to(self.u).clamp(-CLIP, CLIP)
        tau = (self.tau[index] - self.eta * u).clamp(self.tau_min, self.tau_max)
        counts = counts & log_s.isfinite() & slope.isfinite()  # a step that overflowed leaves no trace
        same = (index.unsqueeze(1) == index) & counts
        number = same.sum(1)

        def mean(values: Tensor) -> Tensor:
            return torch.where(same, values, 0.0).sum(1) / number.clamp_min(1)

        joint = (
            torch.where(same, log_s.to(self.log_s.dtype), -torch.inf).logsumexp(1)
            - number.clamp_min(1).to(self.log_s.dtype).log()
        )
        has = number > 0
        self.log_s[index] = torch.where(has, joint, self.log_s[index])
        self.u[index] = torch.where(has, mean(u), self.u[index])
        self.tau[index] = torch.where(has, mean(tau).clamp(self.tau_min, self.tau_max), self.tau[index])
        self.seen[index] |= has


class ISogCLRLoss(PairLoss):
    r"""Stochastic optimisation of :func:`robust_contrastive_loss`, each sample with its own temperature.

    Each view is an anchor; its negatives are the embeddings of the other samples of the batch. With g the mean of
    e^(s/tau) over them, s its running mean and p = e^(s/tau) / s the weights of negatives, both constants,

    .. math:: L = \frac{1}{B} \sum_i \sum_{\text{views}} \left( \frac{1}{K} \sum_z p_z s_{iz} - s_i^+ \right)

    has the gradient of the objective where g is s. The VALUE is not that of the objective, which ``terms`` has beside
    the mean temperature. In training the running means and temperatures move (see :class:`IndividualTemperature`) by
    G = log s + rho - (1/K) sum_z p_z s_z / tau, the mean of both views, cut to [-3, 3]. A sample that occurs twice in a
    batch is no negative of itself. With rho = 0 temperatures go to ``tau_max``.

    Args:
        num_samples: N, rows of the training split.
        rho: radius of the ball, >= 0.
        gamma, beta, eta, tau_init, tau_min, tau_max: see :class:`IndividualTemperature`.
        bimodal: whether the views are two towers (images, texts), of which an anchor meets the other tower's rows alone
            and each tower has temperatures of its own. Usual are then rho 6 and temperatures in [0.005, 0.05].

    Example:
        >>> loss = ISogCLRLoss(num_samples=4)
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss(torch.stack([z, z]), torch.tensor([0, 1]), index=torch.tensor([2, 3]))
        tensor(-2.)
    """

    name = "isogclr"
    form = "views"
    views = 2
    needs = ("index",)
    gradient = "surrogate"
    stateful = True
    search = {"rho": Float(0.1, 1.0), "eta": Float(1e-3, 3e-2, log=True), "tau_init": Float(0.1, 0.7)}
    alternatives = {
        "rho": 0.6, "gamma": 0.3, "beta": 0.3, "eta": 0.02, "tau_init": 0.3, "tau_min": 0.099, "tau_max": 0.101,
        "bimodal": True,
    }  # fmt: skip

    def __init__(
        self,
        num_samples: int,
        rho: float = 0.3,
        gamma: float = 0.8,
        beta: float = 0.9,
        eta: float = 0.01,
        tau_init: float = 0.1,
        tau_min: float = 0.05,
        tau_max: float = 0.7,
        bimodal: bool = False,
    ) -> None:
        super().__init__()
        check_number("rho", rho, low=0.0)
        check_flag("bimodal", bimodal)
        self.num_samples, self.rho, self.bimodal = num_samples, rho, bimodal
        self.gamma, self.beta, self.eta = gamma, beta, eta
        self.tau_init, self.tau_min, self.tau_max = tau_init, tau_min, tau_max
        self.memories = nn.ModuleList(
            IndividualTemperature(num_samples, gamma, beta, eta, tau_init, tau_min, tau_max)
            for _ in range(2 if bimodal else 1)
        )

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the size of the training split."""
        return cls(info.num_samples, **hyper)

    def _memory(self, view: int) -> IndividualTemperature:
        memory = self.memories[view if self.bimodal else 0]
        assert isinstance(memory, IndividualTemperature)
        return memory

    def batch_loss(self, outputs: Tensor, target: Tensor, *, index: I[Tensor, " batch"]) -> Tensor:  # type: ignore[override]
        """The surrogate loss of two views and positions in the training split."""
        rows, items = unit_rows(outputs), len(target)
        self._memory(0).check(index, items)
        tau = torch.stack([self._memory(view).tau[index] for view in (0, 1)]).to(rows.dtype)
        places = torch.arange(items, device=rows.device)
        options: dict[str, Any] = {"include_positive": False, "mean": True}
        if self.bimodal:
            of_views = [
                pair_log_partition(rows[v], rows[1 - v], scale=1 / tau[v].unsqueeze(1), ids=index, **options)
                for v in (0, 1)
            ]
            log_z, positive, mean = (
                torch.stack([getattr(p, k) for p in of_views]) for k in ("log_z", "positive", "mean")
            )
            count = of_views[0].count
        else:
            pairs = pair_log_partition(
                rows.flatten(0, 1),
                rows.flatten(0, 1),
                scale=1 / tau.flatten().unsqueeze(1),
                positive=torch.cat([places + items, places]),
                ids=index.repeat(2),
                **options,
            )
            log_z, positive, mean = (
                t.unflatten(0, (2, items)) for t in (pairs.log_z, pairs.positive, pairs.mean) if t is not None
            )
            count = pairs.count[:items]
        counts = count > 0
        log_z = torch.where(counts, log_z, 0.0)
        log_g = log_z.detach() - count.clamp_min(1).to(log_z.dtype).log()
        log_s = torch.stack([self._memory(view).averaged(index, log_g[view]) for view in (0, 1)])
        share = (log_g - log_s).exp()  # the sum of p over the negatives, over their number
        weighted = share * mean  # (1/K) sum p s / tau
        losses = tau * (weighted + share * (log_z - log_z.detach()) - positive)
        with torch.no_grad():
            objective = (tau * (log_g + self.rho - positive)).sum(0)
            self.terms = kept_terms(
                {"objective": mean_of_counted(objective, counts), "temperature": mean_of_counted(tau.mean(0), counts)}
            )
            if self.training:
                self._move(index, log_s, weighted, counts)
        return mean_of_counted(losses.sum(0), counts)

    def _move(self, index: Tensor, log_s: Tensor, weighted: Tensor, counts: Tensor) -> None:
        """Store the running means, and move the temperatures."""
        slope = log_s + self.rho - weighted
        if self.bimodal:
            for view in (0, 1):
                self._memory(view).write(index, log_s[view], slope[view], counts)
        else:
            both = torch.logaddexp(log_s[0], log_s[1]) - math.log(2)
            self._memory(0).write(index, both, slope.mean(0), counts)

    def reference_gradient(self, outputs: Tensor, target: Tensor, *, index: Tensor) -> Tensor:
        """The gradient of the surrogate by its definition, a matrix of all pairs."""
        leaf = outputs.detach().clone().requires_grad_()
        rows, items = unit_rows(leaf), len(target)
        total = rows.new_zeros(())
        apart = index.unsqueeze(1) != index
        for view in (0, 1):
            tau = self._memory(view).tau[index].to(rows.dtype).unsqueeze(1)
            negative = apart if self.bimodal else torch.cat([apart, apart], 1)
            columns = rows[1 - view] if self.bimodal else rows.flatten(0, 1)
            s = rows[view] @ columns.T
            number = negative.sum(1).to(s.dtype)
            log_g = (s / tau).masked_fill(~negative, -torch.inf).logsumexp(1) - number.log()
            log_s = self._memory(view).averaged(index, log_g)
            p = torch.where(negative, (s / tau - log_s.unsqueeze(1)).exp(), 0.0).detach()
            total = total + ((p * s).sum(1) / number - (rows[0] * rows[1]).sum(1)).sum()
        return torch.autograd.grad(total / items, leaf)[0]

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The defaults at a first visit; a wide ball, later; two towers, later."""
        cases = super().samples(generator, dtype, device)
        (outputs, target), kwargs = sample = cases[0][1]
        for loss in (cls(21, rho=4.0), cls(21, tau_init=0.2, bimodal=True)):
            earlier = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(device, torch.float32)
            loss.to(device)(earlier, target, **kwargs)
            cases.append((loss, sample))
        return cases
