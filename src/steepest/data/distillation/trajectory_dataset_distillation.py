"""Dataset distillation by matching the paths of experts that were trained smoothly."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse
from ...core.reductions import widen

_log = logging.getLogger(__name__)


def trajectory_match_loss(
    student_path: F[Tensor, "points parameters"], expert_path: F[Tensor, "points parameters"]
) -> F[Tensor, ""]:
    r"""How far a student ends from an expert, at each matched point, in squared distances that were to be covered.

    .. math:: \sum_{k=1}^{K} \frac{\|\phi_k - \theta_k\|^2}{\|\phi_0 - \theta_k\|^2}

    A student that is at every target has 0; one that never moves has 1 for each point.

    Args:
        student_path: ``[K + 1, P]``, the start and the student's parameters at the matched points.
        expert_path: ``[K + 1, P]``, the expert's parameters at its start and at the same points; no gradient reaches
            them. The first row is not read: distances count from the student's start, which may be perturbed.

    Returns:
        A scalar in float32 or wider. A point at which the target is the start has no distance to cover: it adds 0.

    Raises:
        ValueError: shapes that differ, or a path of no point but the start.

    Example:
        >>> expert = torch.tensor([[0.0, 0.0], [0.5, 0.6], [1.0, 1.0]])
        >>> trajectory_match_loss(torch.tensor([[0.0, 0.0], [0.4, 0.4], [0.8, 0.9]]), expert)
        tensor(0.1070)

    Source: Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories,
    arXiv:2310.10541.
    """
    check_tensor("student_path", student_path, ndim=2, floating=True)
    check_tensor("expert_path", expert_path, floating=True, shape=tuple(student_path.shape))
    if len(student_path) < 2:
        refuse("student_path", "a start and one point or more", student_path)
    student, target = widen(student_path), widen(expert_path).detach()[1:]
    distance = (student[0].detach() - target).square().sum(1)
    missed = (student[1:] - target).square().sum(1)
    moved = distance > 0
    return torch.where(moved, missed / torch.where(moved, distance, 1.0), 0.0 * missed).sum()


class SmoothExpert:
    r"""An expert whose path is smooth: its first losses are scaled down, and its input gradients held near length 1.

    .. math:: s_e\,\mathrm{CE} + \lambda\,\operatorname{mean}\big(\|\partial \textstyle\sum_c z_c / \partial x\|_2
        - 1\big)^2, \qquad s_e = \min\big(1, \tfrac12 + \tfrac{e}{2E_c}\big), \; e = 0, 1, \dots

    by stochastic gradient descent. The norm is over dimension 1: the channels at each pixel, or the columns of a row.

    Args:
        model_fn: makes a network with new weights.
        epochs: of the training, 1 or more.
        gp: weight of the penalty, >= 0.
        clip_epochs: epochs E_c over which the loss is scaled down, >= 0.
        lr, momentum, weight_decay: of the descent.
        augment: of inputs, for the cross-entropy alone.

    Source: arXiv:2310.10541.
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        epochs: int = 50,
        gp: float = 2.0,
        clip_epochs: int = 10,
        *,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_number("epochs", epochs, low=1, integer=True)
        check_number("gp", gp, low=0)
        check_number("clip_epochs", clip_epochs, low=0, integer=True)
        check_number("lr", lr, low=0, open_low=True)
        check_number("momentum", momentum, low=0, high=1, open_high=True)
        check_number("weight_decay", weight_decay, low=0)
        self.model_fn, self.epochs, self.gp, self.clip_epochs = model_fn, epochs, gp, clip_epochs
        self.lr, self.momentum, self.weight_decay, self.augment = lr, momentum, weight_decay, augment

    def loss_scale(self, epoch: int) -> float:
        """The factor of the cross-entropy in an epoch, counted from 0."""
        return 1.0 if epoch >= self.clip_epochs else 0.5 + 0.5 * epoch / self.clip_epochs

    def penalty(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The weighted gradient penalty of a network at inputs ``[B, d, ...]``, with a graph."""
        leaf = inputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
        length: Tensor = torch.linalg.vector_norm(gradient, dim=1)
        return self.gp * (length - 1).square().mean()

    def train(self, loader: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Train a new network; its parameters before the first epoch and after each, ``epochs + 1`` vectors ``[P]``."""
        model = self.model_fn().train()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        path = [parameters_to_vector(model.parameters()).detach().clone()]
        for epoch in range(self.epochs):
            for inputs, labels in loader:
                optimizer.zero_grad()
                seen = inputs if self.augment is None else self.augment(inputs)
                loss = self.loss_scale(epoch) * cross_entropy(model(seen), labels)
                if self.gp:
                    loss = loss + self.penalty(model, inputs)
                loss.backward()
                optimizer.step()
            path.append(parameters_to_vector(model.parameters()).detach().clone())
        return path


class TrajectoryMatcher:
    r"""Few samples a class, made so that steps on them move a network as epochs on real data moved experts.

    From a start :math:`\theta_t` of an expert's path, S steps of momentum descent on the made samples give a student,
    compared by :func:`trajectory_match_loss` with the expert M epochs later and, at every floor(S / M)-th step, with
    the epochs between. Samples and the logarithm of the student's learning rate descend on that loss, so that the rate
    is positive always. An update that is not finite is rejected, logged and counted in ``rejected``.

    The gradient is exact through all S steps. With ``checkpoint=True`` each step is computed again on the way back:
    the graph of one step is held at a time, and the student's parameters and momenta of all.

    Args:
        model_fn: makes the experts' network.
        ipc: samples a class, 1 or more.
        syn_steps: S, at least ``expert_epochs``.
        expert_epochs: M, 1 or more.
        max_start: starts are drawn from 0..max_start - 1.
        iterations: updates of the samples.
        input_lr, input_momentum: of the descent of the samples.
        rate_lr: of the descent of the logarithm of the student's rate; 0 keeps it. At a rate of 0.01, 0.1 moves as the
            published 1e-5 on the rate itself does.
        student_lr, student_momentum: the student's rate at first, and its momentum.
        batch_size: samples a student step, drawn anew each; None takes all.
        middle: whether the epochs between are matched.
        balance: whether the student's loss is scaled by :meth:`start_balance`.
        perturb: whether weights of four dimensions (convolution kernels) start perturbed by a random direction of
            length 1, entry by entry in proportion to the weight. Nothing changes in a network without any.
        init: "kmeans": of each class, the rows nearest the centres of ``ipc`` clusters of an expert's logits; or
            "random" rows.
        checkpoint: whether steps are computed again rather than held.
        augment: of the samples in each student step, differentiable; draws from torch's own random state.
        seed: of everything that is drawn here.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(40, 2), torch.arange(40) % 2
        >>> model_fn = lambda: nn.Linear(2, 2)
        >>> path = SmoothExpert(model_fn, epochs=4).train([(x, y)])
        >>> matcher = TrajectoryMatcher(model_fn, 1, syn_steps=3, max_start=2, iterations=2, input_lr=0.1)
        >>> images, labels, lr = matcher.fit([path], (x, y))
        >>> images.shape, labels, lr > 0
        (torch.Size([2, 2]), tensor([0, 1]), True)

    Source: arXiv:2310.10541, after Dataset Distillation by Matching Training Trajectories, arXiv:2203.11932.
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        ipc: int,
        syn_steps: int = 20,
        expert_epochs: int = 3,
        *,
        max_start: int = 20,
        iterations: int = 300,
        input_lr: float = 1000.0,
        input_momentum: float = 0.5,
        rate_lr: float = 0.1,
        student_lr: float = 0.01,
        student_momentum: float = 0.9,
        batch_size: int | None = None,
        middle: bool = True,
        balance: bool = True,
        perturb: bool = True,
        init: str = "kmeans",
        checkpoint: bool = True,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        check_number("ipc", ipc, low=1, integer=True)
        check_number("expert_epochs", expert_epochs, low=1, integer=True)
        check_number("syn_steps", syn_steps, low=expert_epochs, integer=True)
        check_number("max_start", max_start, low=1, integer=True)
        check_number("iterations", iterations, low=0, integer=True)
        check_number("input_lr", input_lr, low=0)
        check_number("input_momentum", input_momentum, low=0, high=1, open_high=True)
        check_number("rate_lr", rate_lr, low=0)
        check_number("student_lr", student_lr, low=0, open_low=True)
        check_number("student_momentum", student_momentum, low=0, high=1, open_high=True)
        if batch_size is not None:
            check_number("batch_size", batch_size, low=1, integer=True)
        for name, flag in (("middle", middle), ("balance", balance), ("perturb", perturb), ("checkpoint", checkpoint)):
            check_flag(name, flag)
        check_choice("init", init, ("kmeans", "random"))
        check_number("seed", seed, low=0, integer=True)
        self.model_fn, self.ipc, self.syn_steps, self.expert_epochs = model_fn, ipc, syn_steps, expert_epochs
        self.max_start, self.iterations = max_start, iterations
        self.input_lr, self.input_momentum, self.rate_lr = input_lr, input_momentum, rate_lr
        self.student_lr, self.student_momentum, self.batch_size = student_lr, student_momentum, batch_size
        self.middle, self.balance, self.perturb, self.init = middle, balance, perturb, init
        self.checkpoint, self.augment, self.seed = checkpoint, augment, seed
        self.rejected = 0
        self.losses: list[float] = []
        self._model = model_fn().train()

    def start_balance(self, start: int) -> float:
        r"""The factor of the student's loss: early starts, with large gradients, count less.

        With m = ``max_start`` / 2, :math:`\log_5(t - m + 8)` from m on and :math:`1 / \log_5(m - t + 8)` before it.
        """
        away = start - self.max_start / 2
        size = math.log(abs(away) + 8, 5)
        return size if away >= 0 else 1 / size

    def matching_gradient(
        self, images: Tensor, labels: Tensor, log_lr: Tensor, start: Tensor, targets: Tensor, scale: float, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a student from ``start`` ``[P]`` and its gradients, of the samples and of the logarithmic rate.

        Args:
            images: ``[n, ...]``.
            labels: ``[n]``.
            log_lr: a scalar.
            start: the student's parameters ``[P]`` at first.
            targets: ``[M, P]``, the expert's after each epoch.
            scale: of the student's loss.
            seed: of batches, augmentation and whatever the network draws.
        """
        images, log_lr = images.detach().requires_grad_(), log_lr.detach().requires_grad_()
        stride = self.syn_steps // self.expert_epochs
        points = [k * stride for k in range(1, self.expert_epochs)] if self.middle else []
        expert = torch.stack([start, *(targets[: self.expert_epochs - 1] if self.middle else ()), targets[-1]])
        points.append(self.syn_steps)

        def step(weights: Tensor, velocity: Tensor, number: int) -> tuple[Tensor, Tensor]:
            gradient = self._student_gradient(images, labels, weights, scale, seed + number)
            velocity = self.student_momentum * velocity + gradient
            return weights - log_lr.exp() * velocity, velocity

        weights, velocity = start.detach().requires_grad_(), torch.zeros_like(start).requires_grad_()
        path = [(weights, velocity)]
        for number in range(self.syn_steps):
            weights, velocity = step(weights, velocity, number)
            if self.checkpoint:
                weights, velocity = weights.detach().requires_grad_(), velocity.detach().requires_grad_()
            path.append((weights, velocity))
        matched = [path[point][0] for point in points]
        loss = trajectory_match_loss(torch.stack([path[0][0].detach(), *matched]), expert)
        if not self.checkpoint:
            to_images, to_rate = torch.autograd.grad(loss, (images, log_lr))
            return loss.detach(), to_images, to_rate
        of_point = dict(zip(points, torch.autograd.grad(loss, matched)))
        of_images, of_rate = torch.zeros_like(images), torch.zeros_like(log_lr)
        back = (torch.zeros_like(start), torch.zeros_like(start))
        for number in reversed(range(self.syn_steps)):
            back = (back[0] + of_point.get(number + 1, 0.0), back[1])
            ins = (*path[number], images, log_lr)
            *back_pair, to_images, to_rate = torch.autograd.grad(step(*path[number], number), ins, back)
            back = (back_pair[0], back_pair[1])
            of_images += to_images
            of_rate += to_rate
        return loss.detach(), of_images, of_rate

    def fit(
        self, trajectories: Sequence[Sequence[Tensor]], data: tuple[F[Tensor, "rows ..."], I[Tensor, " rows"]]
    ) -> tuple[Tensor, Tensor, float]:
        """Make the samples.

        Args:
            trajectories: of each expert its parameters ``[P]`` before the first epoch and after each.
            data: real inputs ``[N, ...]`` and labels ``[N]`` in 0..C - 1, from which the samples start.

        Returns:
            Inputs ``[C * ipc, ...]`` in the order of classes, labels, and the student's learning rate.

        Raises:
            ValueError: paths too short or of another network, values that are not finite, a class of fewer than
                ``ipc`` rows.
        """
        generator = torch.Generator().manual_seed(self.seed)
        paths = self._paths(trajectories)
        images, labels = self._first(paths[0][-1], *data, generator=generator)
        log_lr = torch.tensor(math.log(self.student_lr), dtype=torch.float64).to(images)
        speed = torch.zeros_like(images)
        self.rejected, self.losses = 0, []
        for iteration in range(self.iterations):
            which, t, seed = (
                int(torch.randint(high, (), generator=generator)) for high in (len(paths), self.max_start, 2**40)
            )
            start = self._perturbed(paths[which][t], generator) if self.perturb else paths[which][t]
            scale = self.start_balance(t) if self.balance else 1.0
            targets = paths[which][t + 1 : t + 1 + self.expert_epochs]
            loss, to_images, to_rate = self.matching_gradient(images, labels, log_lr, start, targets, scale, seed)
            next_speed = self.input_momentum * speed + to_images
            proposed = (images - self.input_lr * next_speed, log_lr - self.rate_lr * to_rate)
            rate = proposed[1].exp()
            if not all(bool(values.isfinite().all()) for values in (loss, *proposed, rate)) or not rate > 0:
                self.rejected += 1
                _log.warning("iteration %d: an update that is not finite was rejected (loss %g)", iteration, loss)
                continue
            (images, log_lr), speed = proposed, next_speed
            self.losses.append(float(loss))
        return images.detach(), labels, float(log_lr.exp())

    def _student_gradient(self, images: Tensor, labels: Tensor, weights: Tensor, scale: float, seed: int) -> Tensor:
        """The gradient ``[P]`` of the student's loss, with a graph; the same seed, the same draws."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self.batch_size is not None and self.batch_size < len(labels):
                rows = torch.randperm(len(labels))[: self.batch_size].to(labels.device)
                images, labels = images[rows], labels[rows]
            seen = images if self.augment is None else self.augment(images)
            loss = scale * cross_entropy(self._outputs(weights, seen), labels)
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        return gradient

    def _outputs(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """The network with these parameters; its buffers stay as they are."""
        named = dict(self._model.named_parameters())
        parts = weights.split([p.numel() for p in named.values()])
        state = {name: values.view_as(p) for (name, p), values in zip(named.items(), parts)}
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        outputs: Tensor = functional_call(self._model, {**state, **buffers}, (inputs,))
        return outputs

    def _perturbed(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Weights of four dimensions moved by a direction of length 1, in proportion to themselves."""
        moved = []
        shapes = [p.shape for p in self._model.parameters()]
        for shape, values in zip(shapes, weights.split([shape.numel() for shape in shapes])):
            if len(shape) != 4:
                moved.append(values)
                continue
            direction = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)
            moved.append(values + direction / direction.norm() * values)
        return torch.cat(moved)

    def _paths(self, trajectories: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Each path as ``[epochs + 1, P]``, checked."""
        size, needed = sum(p.numel() for p in self._model.parameters()), self.max_start + self.expert_epochs
        if not len(trajectories):
            refuse("trajectories", "one path or more", trajectories)
        paths = [torch.stack(tuple(path)).detach() for path in trajectories]
        for path in paths:
            check_tensor("trajectories", path, floating=True, shape=(None, size))
            if len(path) < needed:
                refuse("trajectories", f"max_start + expert_epochs = {needed} vectors a path or more", len(path))
            if not bool(path.isfinite().all()):
                refuse("trajectories", "finite parameters", "NaN or inf")
        return paths

    def _first(
        self, weights: Tensor, inputs: Tensor, labels: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Real rows of each class from which the samples start."""
        check_tensor("data", inputs, floating=True)
        check_tensor("data", labels, floating=False, shape=(len(inputs),))
        if not len(inputs) or not bool(inputs.isfinite().all()):
            refuse("data", "finite inputs of one row or more", inputs)
        chosen = []
        for label in range(int(labels.max()) + 1):
            rows = (labels == label).nonzero()[:, 0]
            if len(rows) < self.ipc:
                refuse("ipc", f"at most the {len(rows)} rows of class {label}", self.ipc)
            if self.init == "random":
                chosen.append(rows[torch.randperm(len(rows), generator=generator)[: self.ipc].to(rows.device)])
                continue
            from sklearn.cluster import KMeans  # type: ignore[import-untyped]

            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(self.seed)
                logits = self._outputs(weights, inputs[rows]).double().cpu()
            centres = KMeans(self.ipc, n_init=4, random_state=self.seed % 2**32).fit(logits.numpy()).cluster_centers_
            distances = torch.cdist(torch.from_numpy(centres).to(logits), logits)
            nearest: list[int] = []
            for row in distances:  # two centres may have the same nearest row: the second takes its next
                nearest.append(next(place for place in row.argsort().tolist() if place not in nearest))
            chosen.append(rows[torch.tensor(nearest, device=rows.device)])
        places = torch.cat(chosen)
        return inputs[places].detach().clone(), labels[places].long()
