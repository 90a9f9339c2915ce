"""Training a learned optimizer: tasks as stacks of particles, persistent evolution strategies, the meta-optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor, nn

from ...core.checks import check_flag, check_number, check_tensor, refuse, refuse_type
from ._network import SIZE, accumulated, change, initial, network, seen, started

LOWEST, HIGHEST = 1e-6, 1e3
"""Between which a training loss counts; what is not finite counts as the highest."""


class Task(Protocol):
    """A small training of which many run at once, each with its own parameters and batches."""

    def begin(self, number: int, generator: torch.Generator | None) -> list[Tensor]:
        """Initial parameters ``[number, *shape]``."""

    def batch(self, number: int, generator: torch.Generator | None) -> Tensor:
        """What makes a batch of each, ``[number, ...]``."""

    def loss(self, parameters: Sequence[Tensor], batch: Tensor) -> Tensor:
        """The training loss of each, ``[number]``."""


class MLPTask:
    """Classification by a network with one hidden layer of rectified units, and cross-entropy.

    Args:
        x: features, ``[N, d]``.
        y: classes, ``[N]``.
        width: hidden units, >= 1.
        rows: of a batch, >= 1.

    Raises:
        ValueError: wrong shapes, numbers outside their range.

    Example:
        >>> task = MLPTask(torch.eye(4), torch.arange(4), width=3, rows=2)
        >>> [tuple(p.shape) for p in task.begin(5, torch.Generator().manual_seed(0))]
        [(5, 4, 3), (5, 3), (5, 3, 4), (5, 4)]
    """

    def __init__(self, x: F[Tensor, "rows features"], y: Int[Tensor, " rows"], width: int, rows: int = 32) -> None:
        check_tensor("x", x, ndim=2, floating=True)
        check_tensor("y", y, floating=False, shape=(len(x),))
        check_number("width", width, low=1, integer=True)
        check_number("rows", rows, low=1, integer=True)
        self.x, self.y, self.width, self.rows, self.classes = x, y, width, rows, int(y.max()) + 1

    def begin(self, number: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Uniform weights and biases within one over the root of the fan-in, as of ``torch.nn.Linear``."""
        wide = self.x.shape[1]
        parameters = []
        for fan_in, shape in (
            (wide, (wide, self.width)),
            (wide, (self.width,)),
            (self.width, (self.width, self.classes)),
            (self.width, (self.classes,)),
        ):
            uniform = torch.rand(number, *shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
            parameters.append((2 * uniform - 1) / fan_in**0.5)
        return parameters

    def batch(self, number: int, generator: torch.Generator | None = None) -> Tensor:
        """Rows that are drawn with replacement, ``[number, rows]``."""
        return torch.randint(len(self.x), (number, self.rows), generator=generator, device=self.x.device)

    def loss(self, parameters: Sequence[Tensor], batch: Tensor) -> Tensor:
        """Mean cross-entropy of each on its rows."""
        first, first_bias, second, second_bias = parameters
        hidden = torch.baddbmm(first_bias[:, None], self.x[batch], first).relu()
        logits = torch.baddbmm(second_bias[:, None], hidden, second)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), self.y[batch].flatten(), reduction="none")
        return loss.reshape(batch.shape).mean(1)


class Unroll:
    """Trainings of a stack of particles by learned optimizers, each with its own meta-parameters.

    Args:
        task: what is trained.
        number: particles with batches and initial parameters of their own.
        copies: of each, which differ in nothing but the meta-parameters.
        generator: of initial parameters and batches.
    """

    def __init__(self, task: Task, number: int, copies: int = 1, generator: torch.Generator | None = None) -> None:
        self.task, self.number, self.copies, self.generator = task, number, copies, generator
        self.parameters = [torch.cat([p] * copies) for p in task.begin(number, generator)]
        self.states = [started(p) for p in self.parameters]
        self.t = 0

    def train(self, theta: Tensor, steps: int) -> Tensor:
        """Losses ``[steps, copies * number]`` before each step, with meta-parameters ``[copies * number, 197]``."""
        net, losses = network(theta.to(self.parameters[0].dtype)), []
        for _ in range(steps):
            batch = torch.cat([self.task.batch(self.number, self.generator)] * self.copies)
            with torch.enable_grad():
                parameters = [p.detach().requires_grad_() for p in self.parameters]
                loss = self.task.loss(parameters, batch)
                slopes = torch.autograd.grad(loss.sum(), parameters)
            losses.append(loss.detach())
            with torch.no_grad():
                self.states = [accumulated(net, state, g) for state, g in zip(self.states, slopes)]
                self.parameters = [
                    p - change(net, seen(g, p, state), self.t).reshape(p.shape)
                    for p, g, state in zip(self.parameters, slopes, self.states)
                ]
            self.t += 1
        return torch.stack(losses)


class PersistentES:
    r"""The gradient of the loss of a long unrolled computation, from short pieces of it, by evolution strategies.

    A computation of K pieces has particles in pairs, which share all randomness and are perturbed by
    :math:`\pm \xi_k` in piece k:

    .. math:: \hat g_k = \frac1{2 \sigma^2 N} \sum_{i=1}^N (L_{i,k}^+ - L_{i,k}^-) \sum_{j \le k} \xi_{i,j}, \qquad
        \xi_{i,j} \sim \mathcal N(0, \sigma^2)

    Because the perturbations of all pieces so far are summed up, the sum over the K pieces has no truncation bias:
    plain evolution strategies would miss what earlier pieces do to later ones. After the last piece the particles
    begin anew.

    Args:
        begin: gives the state of 2 N particles; N of them, and then their twins.
        piece: ``(theta [2 N, d], state) -> (loss [2 N], state)``.
        pieces: K >= 1.
        pairs: N >= 1.
        sigma: > 0.
        generator: of perturbations.
        first: pieces of the first computation, K by default: estimates of several ones then begin at different times.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> def piece(theta, x):  # x grows by theta in each piece, and its loss is x^2 / 2
        ...     x = x + theta[:, 0]
        ...     return x.square() / 2, x
        >>> g = torch.Generator().manual_seed(0)
        >>> es = PersistentES(lambda: torch.zeros(200_000), piece, pieces=2, pairs=100_000, generator=g)
        >>> print([round(float(es.gradient(torch.ones(1))[0]), 1) for _ in range(2)])  # of theta^2 / 2, 4 theta^2 / 2
        [1.0, 4.0]

    Source: Unbiased gradient estimation in unrolled computation graphs with persistent evolution strategies,
    arXiv:2112.13835, as used in arXiv:2203.11860.
    """

    def __init__(
        self,
        begin: Callable[[], Any],
        piece: Callable[[Tensor, Any], tuple[Tensor, Any]],
        *,
        pieces: int,
        pairs: int,
        sigma: float = 0.01,
        generator: torch.Generator | None = None,
        first: int | None = None,
    ) -> None:
        first = pieces if first is None else first
        for name, number in (("pieces", pieces), ("pairs", pairs), ("first", first)):
            check_number(name, number, low=1, integer=True)
        check_number("sigma", sigma, low=0.0, open_low=True)
        self.begin, self.piece, self.pieces, self.pairs = begin, piece, pieces, pairs
        self.sigma, self.generator = sigma, generator
        self.left, self.next, self.state, self.summed = 0, first, None, torch.zeros(())

    @torch.no_grad()
    def gradient(self, theta: F[Tensor, " d"]) -> tuple[Tensor, float]:
        """The share ``[d]`` of the next piece, and its mean loss."""
        check_tensor("theta", theta, ndim=1, floating=True)
        if not self.left:
            self.left, self.next = self.next, self.pieces
            self.state, self.summed = self.begin(), theta.new_zeros(self.pairs, len(theta))
        shift = self.sigma * torch.randn(
            self.pairs, len(theta), generator=self.generator, dtype=theta.dtype, device=theta.device
        )
        loss, self.state = self.piece(theta + torch.cat([shift, -shift]), self.state)
        self.summed = self.summed + shift
        self.left -= 1
        plus, minus = loss.to(theta.dtype).chunk(2)
        return (plus - minus) @ self.summed / (2 * self.sigma**2 * self.pairs), float(loss.mean())


class MetaTrainer:
    """Meta-training of the 197 numbers of a learned optimizer on a family of tasks.

    Each meta-step takes the tasks in turn, estimates the gradient of the mean training loss (or of its logarithm) over
    the next piece of their trainings (:class:`PersistentES`), cuts its entries at ``clip`` and takes a step of Adam,
    whose rate falls along a cosine. Trainings of different tasks begin at different times.

    Args:
        tasks: such as :class:`MLPTask`; their widths and data sets make the family.
        sigma: deviation of the perturbations, > 0.
        truncation: training steps of a piece, >= 1.
        total: training steps of a whole training, a multiple of ``truncation``.
        pairs: of particles for each task, >= 1.
        lr: first rate of Adam, > 0; the last is a tenth.
        clip: > 0.
        log: whether the logarithm of the training loss counts.
        theta: where meta-training begins, ``[197]``; by default random weights.
        generator: of all random numbers.

    Raises:
        ValueError: no tasks, numbers outside their range.

    Example:
        >>> task = MLPTask(torch.eye(4), torch.arange(4), width=3, rows=2)
        >>> trainer = MetaTrainer([task], truncation=2, total=4, pairs=2, generator=torch.Generator().manual_seed(0))
        >>> trainer.fit(3).shape, len(trainer.losses)
        (torch.Size([197]), 3)

    Source: Practical tradeoffs between memory, compute, and performance in learned optimizers, arXiv:2203.11860.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        sigma: float = 0.01,
        truncation: int = 50,
        total: int = 1000,
        *,
        pairs: int = 8,
        lr: float = 1e-3,
        clip: float = 3.0,
        log: bool = True,
        theta: F[Tensor, " size"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(tasks, MLPTask):
            refuse_type("tasks", "a list of tasks", tasks)
        if not tasks:
            refuse("tasks", "at least one task", tasks)
        for name, number in (("truncation", truncation), ("total", total)):
            check_number(name, number, low=1, integer=True)
        if total % truncation:
            refuse("total", f"a multiple of truncation, {truncation}", total)
        for name, value in (("lr", lr), ("clip", clip)):
            check_number(name, value, low=0.0, open_low=True)
        check_flag("log", log)
        if theta is None:
            theta = initial(generator)
        check_tensor("theta", theta, floating=True, shape=(SIZE,))
        self.theta, self.truncation, self.log, self.lr, self.clip = theta.detach().clone(), truncation, log, lr, clip
        self.losses: list[float] = []
        pieces = total // truncation
        self.estimators = [
            PersistentES(
                lambda task=task: Unroll(task, pairs, 2, generator), self._piece,
                pieces=pieces, pairs=pairs, sigma=sigma, generator=generator, first=number % pieces + 1,
            )
            for number, task in enumerate(tasks)
        ]  # fmt: skip

    def _piece(self, theta: Tensor, unroll: Unroll) -> tuple[Tensor, Unroll]:
        losses = unroll.train(theta, self.truncation)
        losses = losses.nan_to_num(HIGHEST, HIGHEST).clamp(LOWEST, HIGHEST)
        return (losses.log() if self.log else losses).mean(0), unroll

    def fit(self, steps: int) -> Tensor:
        """So many meta-steps; ``losses`` gets the mean loss of each.

        Raises:
            ValueError: a number of steps below 0.
        """
        check_number("steps", steps, low=0, integer=True)
        theta = nn.Parameter(self.theta)
        adam = torch.optim.Adam([theta], lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps), eta_min=self.lr / 10)
        for _ in range(steps):
            estimator = self.estimators[len(self.losses) % len(self.estimators)]
            gradient, loss = estimator.gradient(theta.detach())
            theta.grad = gradient.clamp(-self.clip, self.clip)
            adam.step()
            schedule.step()
            self.losses.append(loss)
        self.theta = theta.detach().clone()
        return self.theta
