"""Gradients accumulated over micro-batches, whose worst conflicts are resolved pair by pair before they are summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.aggregator import CHUNK, Aggregator, combination, scaled_gramian
from ...core.arguments import Arguments
from ...core.checks import check_flag, check_number, check_tensor, refuse
from ...core.reductions import widen

DECAY = 0.95
"""Of the moving averages of lengths."""
LEAST = 1e-8
"""The squared length below which a gradient is in no conflict, and the least average of lengths."""
STABILITY, STRENGTH = 0.8, 0.2
"""Parts of the arbitrator's score."""
ROUNDING = 1e-12
"""Share of the rows that a gradient is a sum of, below which its length is rounding."""
TIE = 1e-6
"""Scores that differ by less, as rounding of gradients to float32 lets them, are equal."""
TRUST, MOST_TRUST = 1e-4, 100.0
"""Of steps by signs: their size, and the largest ratio of the lengths of a parameter and its momentum."""
DataProvider = Callable[[], tuple[Any, Any]]


class ConflictState(NamedTuple):
    """What the resolution of conflicts keeps between steps.

    Args:
        resolved: ``[K, D]`` in float32 or wider, the gradients of the step before as the resolution left them.
        norms: ``[K]`` in float64, moving averages of lengths, from 1.
        winners: int64, the rows that won the last conflicts, the youngest at the end; -1 where there was none yet.
    """

    resolved: Tensor
    norms: Tensor
    winners: Tensor


@torch.no_grad()
def gcond_resolve(
    gradients: F[Tensor, "K D"],
    state: ConflictState | None = None,
    *,
    thresholds: tuple[float, float, float] = (-0.8, -0.5, 0.0),
    smooth: bool = True,
    window: int = 3,
    norm_cap: float | None = None,
) -> tuple[F[Tensor, " D"], ConflictState]:
    """One step of :class:`GCond`, without a module and without momentum.

    Args:
        gradients: ``[K, D]``, the accumulated and weighted gradient of each loss.
        state: of the step before; None at the first. It is left as it is.
        thresholds, smooth, window, norm_cap: as in :class:`GCond`.

    Returns:
        The sum ``[D]`` of the resolved gradients, and the state after it.

    Raises:
        ValueError: not a matrix with rows, another shape than the state's, an argument out of its range.
        TypeError: no floating numbers.

    Example:
        >>> gcond_resolve(torch.tensor([[1.0, 0.0], [-0.25, 1.0]]), smooth=False)[0]
        tensor([0.9412, 1.2353])

    Source: GCond, code AlevLab-dev/GCond.
    """
    check_tensor("gradients", gradients, ndim=2, floating=True)
    if not len(gradients):
        refuse("gradients", "at least one row, a loss each", gradients)
    _check_settings(thresholds, smooth, window, norm_cap)
    rows = widen(gradients.detach())
    if state is None:
        ones = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        state = ConflictState(torch.zeros_like(rows), ones, torch.full((window,), -1, device=rows.device))
    if state.resolved.shape != rows.shape:
        refuse("gradients", f"shape {tuple(state.resolved.shape)} as in the calls before", gradients)
    top, gramian = scaled_gramian(rows)
    of_host = (gramian, _cosines_with(state.resolved, rows, top), torch.diag(top), torch.diag(state.norms))
    gram, before, tops, norms = torch.stack([small.double() for small in of_host]).cpu().numpy()
    conflicts = _Conflicts(gram, before, tops, norms, state.winners.tolist())
    if len(rows) > 1:
        conflicts.begin(norm_cap)
        conflicts.resolve(thresholds, smooth)
    weights = torch.from_numpy(conflicts.weights).to(rows.device)
    resolved = torch.stack([combination(row, rows, top) for row in weights]) if conflicts.changed else rows.clone()
    after = ConflictState(
        resolved.to(torch.promote_types(state.resolved.dtype, rows.dtype)),
        torch.from_numpy(conflicts.norms).to(state.norms),
        torch.tensor(conflicts.winners, device=rows.device, dtype=torch.int64),
    )
    return combination(weights.sum(0), rows, top).to(gradients.dtype), after


class GCond(Aggregator):
    r"""The worst conflict is resolved, one pair of gradients after the other; then they are summed, with momentum.

    At most 2K times the pair with the smallest cosine c is taken, until that is at least :math:`t_{weak}`. An
    arbitrator names a winner w and a loser l: the winner has the higher

    .. math:: 0.8 \max(0, \cos(g_k, g_k^{t-1})) + 0.2 \frac{s_k}{s_i + s_j}, \qquad s_k = \|g_k\| / e_k, \qquad
        e_k \leftarrow 0.95 e_k + 0.05 \|g_k\|, \; e_k^0 = 1,

    is the first of the pair where these are equal, and the other one where the same one has won as often in a row as
    ``window`` says. With ``smooth`` both give up more the worse the conflict is, and at its worst the loser alone:

    .. math:: w \leftarrow w - \sin(\alpha) \frac{\langle w, l\rangle}{\|l\|^2} l, \qquad
        l \leftarrow l - \sin(\min(\alpha, \tfrac{\pi}{2})) \frac{\langle w, l\rangle}{\|w\|^2} w

    with :math:`\alpha` 0 at :math:`t_{weak}`, :math:`\pi/2` at :math:`t_{main}` and :math:`\pi` from
    :math:`t_{crit}` on, linear in c before :math:`t_{main}` and by the square of the way after it. Without, there are
    zones: below :math:`t_{crit}` the loser is 0, below :math:`t_{main}` it loses its part along the winner, below
    :math:`t_{weak}` each loses its part along the other. The sum g of what is left gives
    :math:`m \leftarrow \beta m + (1 - \beta) g`, and :math:`m / (1 - \beta^t)` is the direction: an optimizer behind
    it needs no momentum of its own.

    :math:`g_k^{t-1}` is the resolved gradient of the step before, as in the authors' code. A gradient whose square is
    below 1e-8 is in no conflict. Pairs are resolved on the coefficients of the rows, on the host: the gradients are
    read a few times, however many conflicts there are.

    Args:
        thresholds: :math:`t_{crit} \le t_{main} \le t_{weak}`, cosines.
        smooth: True is what the authors' code does now, False the zones that are published.
        momentum: :math:`\beta` in [0, 1).
        window: how many wins in a row make the other one win; 0 is never.
        norm_cap: > 0, to which longer gradients are shortened before; None is no cap.

    Raises:
        ValueError: an argument out of its range; a Jacobian of another shape than that of the calls before.

    Example:
        >>> GCond()(torch.tensor([[1.0, 0.0], [-0.25, 1.0]]))
        tensor([0.8820, 1.1624])

    Source: GCond, code AlevLab-dev/GCond.
    """

    name = "gcond"
    properties = frozenset({"in_span"})
    resolved: Tensor
    norms: Tensor
    winners: Tensor
    average: Tensor
    steps: Tensor

    def __init__(
        self,
        thresholds: tuple[float, float, float] = (-0.8, -0.5, 0.0),
        smooth: bool = True,
        momentum: float = 0.85,
        window: int = 3,
        norm_cap: float | None = None,
    ) -> None:
        super().__init__()
        _check_settings(thresholds, smooth, window, norm_cap)
        check_number("momentum", momentum, low=0.0, high=1.0, open_high=True)
        self.thresholds, self.smooth, self.momentum = thresholds, smooth, momentum
        self.window, self.norm_cap = window, norm_cap
        self.register_buffer("resolved", torch.zeros(0, 0))
        self.register_buffer("norms", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("winners", torch.full((window,), -1))
        self.register_buffer("average", torch.zeros(0))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _aggregate(self, jacobian: Tensor) -> Tensor:
        state = ConflictState(self.resolved, self.norms, self.winners) if len(self.norms) else None
        total, after = gcond_resolve(
            widen(jacobian), state, thresholds=self.thresholds, smooth=self.smooth, window=self.window,
            norm_cap=self.norm_cap,
        )  # fmt: skip
        average = self.average if state is not None else torch.zeros_like(total)
        self.resolved, self.norms, self.winners = after
        kind = torch.promote_types(average.dtype, total.dtype)
        self.average = average.to(kind).lerp(total.to(kind), 1 - self.momentum)
        self.steps = self.steps + 1
        return (self.average / (1 - self.momentum ** self.steps.double())).to(jacobian.dtype)

    def reset(self) -> None:
        """Forget gradients, lengths, winners and momentum."""
        self.resolved, self.norms = self.resolved.new_zeros(0, 0), self.norms.new_zeros(0)
        self.winners, self.average = torch.full_like(self.winners, -1), self.average.new_zeros(0)
        self.steps = torch.zeros_like(self.steps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("resolved", "norms", "average"):
            if (value := cast(Tensor | None, state_dict.get(f"{prefix}{name}"))) is not None:
                setattr(self, name, torch.empty_like(value, device=self.resolved.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def instances(cls) -> list[GCond]:
        """Both ways to resolve, and a cap."""
        return [cls(), cls(smooth=False, momentum=0.0), cls(thresholds=(-0.5, -0.5, 0.5), window=0, norm_cap=2.0)]


class GradientConductor(Arguments):
    r"""Gradients of several losses, each accumulated over micro-batches, resolved by :class:`GCond`, into ``.grad``.

    .. math:: G_k = \frac{\lambda_k}{A} \sum_{a=1}^A \nabla L_k(b_a) \qquad \text{or, stochastic: the mean over } A/K
        \text{ batches of its own}

    A stochastic step runs forward and backward A times, another one forward A and backward A K times. Meanwhile modules
    with running statistics (batch norm) use these and leave them as they are. ``.grad`` is written, not added to, of
    the parameters that any loss has reached so far; that of others stays as it is. Gradients are accumulated in float32
    or wider. Each rank of several resolves its own: average ``.grad`` afterwards.

    Args:
        model: called with what the data provider gives: a tensor, a tuple of arguments or a dict of named ones.
        loss_fns: by name, from the model's output and the provider's target to a scalar.
        lambdas: by the same names, their weights.
        accumulation_steps: A, micro-batches a step; a multiple of K where they are stochastic.
        thresholds, smooth, momentum, norm_cap, window: as in :class:`GCond`.
        stochastic: whether a micro-batch serves one loss alone.
        freeze_norms: False lets running statistics move with each pass.
        lion: steps of equal size in a tensor: the sign of the momentum times
            :math:`10^{-4} \min(\|p\| / \|m\|, 100)`, for plain SGD at a rate of 1.

    Raises:
        ValueError: no loss, other names of weights, thresholds that fall, A that is no multiple of K.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> losses = {"square": lambda out, y: (out - y).square().mean(), "size": lambda out, y: out.abs().mean()}
        >>> conductor = GradientConductor(model, losses, {"square": 1.0, "size": 0.1}, accumulation_steps=4)
        >>> sorted(conductor.step(lambda: (torch.ones(5, 3), torch.ones(5, 1))))
        ['length', 'loss/size', 'loss/square']
        >>> model.weight.grad.shape
        torch.Size([1, 3])

    Source: GCond, code AlevLab-dev/GCond.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fns: Mapping[str, Callable[[Any, Any], Tensor]],
        lambdas: Mapping[str, float],
        accumulation_steps: int,
        thresholds: tuple[float, float, float] = (-0.8, -0.5, 0.0),
        smooth: bool = True,
        stochastic: bool = True,
        momentum: float = 0.85,
        *,
        norm_cap: float | None = None,
        window: int = 3,
        freeze_norms: bool = True,
        lion: bool = False,
    ) -> None:
        if not loss_fns or set(loss_fns) != set(lambdas):
            refuse("lambdas", f"a weight for each of {', '.join(loss_fns) or 'at least one loss'}", list(lambdas))
        for weight in lambdas.values():
            check_number("lambdas", weight)
        check_number("accumulation_steps", accumulation_steps, low=1, integer=True)
        for argument, flag in (("stochastic", stochastic), ("freeze_norms", freeze_norms), ("lion", lion)):
            check_flag(argument, flag)
        if stochastic and accumulation_steps % len(loss_fns):
            refuse("accumulation_steps", f"a multiple of {len(loss_fns)}, the number of losses", accumulation_steps)
        self.model, self.loss_fns, self.lambdas = model, dict(loss_fns), dict(lambdas)
        self.accumulation_steps, self.stochastic = accumulation_steps, stochastic
        self.freeze_norms, self.lion = freeze_norms, lion
        self.trained = [p for p in model.parameters() if p.requires_grad]
        if not self.trained:
            refuse("model", "a module with a parameter that requires a gradient", model)
        self.aggregator = GCond(thresholds, smooth, momentum, window, norm_cap)
        self.aggregator.to(self.trained[0].device)
        self.reached = torch.zeros(len(self.trained), dtype=torch.bool)

    def step(self, data_provider: DataProvider) -> dict[str, float]:
        """Accumulate over A micro-batches, resolve, and write ``.grad``.

        Args:
            data_provider: gives the inputs and the target of a micro-batch.

        Returns:
            The mean of each loss without its weight, ``loss/NAME``, and the ``length`` of the direction.

        Raises:
            ValueError: a loss that is no scalar, or that depends on no parameter.
        """
        kind = torch.promote_types(
            max((p.dtype for p in self.trained), key=lambda d: torch.finfo(d).bits), torch.float32
        )
        width, device = sum(p.numel() for p in self.trained), self.trained[0].device
        jacobian = torch.zeros(len(self.loss_fns), width, dtype=kind, device=device)
        totals = [torch.zeros((), device=device) for _ in self.loss_fns]
        own = self.accumulation_steps // (len(self.loss_fns) if self.stochastic else 1)
        with torch.enable_grad(), _frozen_norms(self.model if self.freeze_norms else nn.Identity()):
            for number in range(self.accumulation_steps):
                of_batch = [number // own] if self.stochastic else list(range(len(self.loss_fns)))
                self._accumulate(data_provider(), of_batch, jacobian, totals)
        weights = torch.tensor([self.lambdas[name] / own for name in self.loss_fns], dtype=kind, device=device)
        direction = self.aggregator(jacobian.mul_(weights.unsqueeze(1)))
        with torch.no_grad():
            for parameter, reached, piece in zip(self.trained, self.reached.tolist(), self._pieces(direction)):
                if reached:
                    moved = _by_signs(piece, parameter) if self.lion else piece
                    parameter.grad = moved.to(parameter.dtype, copy=True)
        values = torch.stack([total.float() / own for total in totals] + [direction.float().norm()]).tolist()
        return dict(zip([*(f"loss/{name}" for name in self.loss_fns), "length"], values))

    def _accumulate(self, batch: tuple[Any, Any], of_batch: list[int], jacobian: Tensor, totals: list[Tensor]) -> None:
        inputs, target = batch
        if isinstance(inputs, Mapping):
            output = self.model(**inputs)
        else:
            output = self.model(*inputs) if isinstance(inputs, (tuple, list)) else self.model(inputs)
        names = list(self.loss_fns)
        for number in of_batch:
            loss = self.loss_fns[names[number]](output, target)
            check_tensor(f"loss_fns, {names[number]}", loss, ndim=0, floating=True)
            if not loss.requires_grad:
                refuse("loss_fns", f"a loss {names[number]} that depends on the model's parameters", loss)
            keep = number != of_batch[-1]
            gradients = torch.autograd.grad(loss, self.trained, retain_graph=keep, allow_unused=True)
            for place, (gradient, piece) in enumerate(zip(gradients, self._pieces(jacobian[number]))):
                if gradient is not None:
                    self.reached[place] = True
                    piece += gradient
            totals[number] += loss.detach()

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.trained]
        return [piece.view_as(p) for piece, p in zip(vector.split(sizes), self.trained)]

    def state_dict(self) -> dict[str, Any]:
        """What is kept between steps: tensors alone."""
        return {"aggregator": dict(self.aggregator.state_dict()), "reached": self.reached.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.aggregator.load_state_dict(state_dict["aggregator"])
        self.reached = state_dict["reached"].clone()


class _Conflicts:
    """Small matrices on the host: coefficients of the resolved gradients on the rows at length 1, in float64.

    Args:
        gramian, before: products of the rows over their largest entries, among each other and with the resolved
            gradients of the step before at length 1.
        top, norms: largest entries and moving averages of lengths, each on a diagonal.
        winners: the last ones.
    """

    def __init__(
        self, gramian: np.ndarray, before: np.ndarray, top: np.ndarray, norms: np.ndarray, winners: list[int]
    ) -> None:
        self.top, self.norms, self.winners = top.diagonal(), norms.diagonal().copy(), winners
        lengths = np.sqrt(gramian.diagonal())
        self.inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        self.lengths = lengths * self.top
        largest = self.lengths.max()
        self.unit = largest if np.isfinite(largest) and largest > 0 else 1.0  # squares neither overflow nor vanish
        self.rows = np.diag(self.lengths / self.unit)
        self.cosines, self.before = self.inverse[:, None] * gramian * self.inverse, self.inverse[:, None] * before
        self.moved = np.zeros(len(lengths), dtype=bool)

    @property
    def changed(self) -> bool:
        """Whether any gradient is another one than it was."""
        return bool(self.moved.any())

    @property
    def weights(self) -> np.ndarray:
        """Coefficients on the rows over their largest entries."""
        return np.where(self.moved[:, None], self.rows * (self.unit * self.inverse), np.diag(self.top))

    def begin(self, norm_cap: float | None) -> None:
        """Take the lengths into their averages, and shorten what is too long."""
        self.norms = np.maximum(DECAY * self.norms + (1 - DECAY) * self.lengths, LEAST)
        if norm_cap is not None:
            for place in np.flatnonzero(self.lengths > norm_cap).tolist():
                self._set(place, self.rows[place] * (norm_cap / self.lengths[place]))

    def resolve(self, thresholds: tuple[float, float, float], smooth: bool) -> None:
        """At most 2K times, the worst pair."""
        count = len(self.rows)
        products = self.rows @ self.cosines @ self.rows.T
        for _ in range(2 * count):
            squares = products.diagonal().clip(0.0)
            size = np.abs(self.rows).sum(1)
            there = (np.sqrt(squares) * self.unit >= math.sqrt(LEAST)) & (squares > (ROUNDING * size) ** 2)
            inverse = np.divide(1.0, np.sqrt(squares), out=np.zeros(count), where=there)
            cosines = np.where(np.outer(there, there), inverse[:, None] * products * inverse, 1.0)
            cosines[np.tril_indices(count)] = 1.0
            i, j = divmod(int(np.nanargmin(cosines)), count)
            if not cosines[i, j] < thresholds[2] - ROUNDING:
                return
            for place in self._resolved(i, j, float(cosines[i, j]), products, thresholds, smooth):
                products[place] = products[:, place] = self.rows[place] @ self.cosines @ self.rows.T

    def _resolved(
        self, i: int, j: int, cosine: float, products: np.ndarray, thresholds: tuple[float, float, float], smooth: bool
    ) -> tuple[int, int]:
        critical, main, weak = thresholds
        if smooth or cosine < main:
            winner = self._arbitrate(i, j, products)
            if self.winners:
                self.winners = [*self.winners[1:], winner]
        else:
            winner = i
        loser = j if winner == i else i
        if smooth:
            give, take = _shares(cosine, critical, main, weak)
        else:
            give, take = (0.0, 1.0) if cosine < main else (1.0, 1.0)
        first, second = self.rows[winner].copy(), self.rows[loser].copy()
        dot = products[winner, loser]
        self._set(winner, first - give * dot / products[loser, loser] * second)
        zero = not smooth and cosine < critical
        self._set(loser, 0.0 * second if zero else second - take * dot / products[winner, winner] * first)
        return winner, loser

    def _arbitrate(self, i: int, j: int, products: np.ndarray) -> int:
        if self.winners and self.winners.count(i) == len(self.winners):
            return j
        if self.winners and self.winners.count(j) == len(self.winners):
            return i
        lengths = {k: math.sqrt(products[k, k]) for k in (i, j)}
        strength = {k: lengths[k] * self.unit / self.norms[k] for k in (i, j)}
        score = {}
        for k in (i, j):
            stability = max(0.0, float(self.rows[k] @ self.before[:, k]) / lengths[k])
            score[k] = STABILITY * stability + STRENGTH * strength[k] / (strength[i] + strength[j])
        return j if score[j] > score[i] + TIE else i

    def _set(self, place: int, row: np.ndarray) -> None:
        self.moved[place] |= not np.array_equal(row, self.rows[place])
        self.rows[place] = row


def _shares(cosine: float, critical: float, main: float, weak: float) -> tuple[float, float]:
    """What share of its part along the other the winner, and the loser, gives up."""
    if cosine <= critical:
        return 0.0, 1.0
    if cosine >= main:
        share = math.sin(math.pi / 2 * (1 - min(1.0, (cosine - main) / (weak - main))))
        return share, share
    return math.sin(math.pi / 2 * (1 + ((cosine - main) / (critical - main)) ** 2)), 1.0


def _cosines_with(before: Tensor, rows: Tensor, top: Tensor) -> Tensor:
    """Products ``[K, K]`` of rows over their largest entries with those of before at length 1, in float64."""
    largest = before.abs().amax(1).double() if before.shape[1] else top
    inverse, inverse_before = (torch.where(t > 0, 1 / t, 0.0).unsqueeze(1) for t in (top, largest))
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    squares = torch.zeros_like(top)
    size = max(1, CHUNK // len(rows))
    for own, others in zip(rows.split(size, 1), before.split(size, 1)):
        unit = others.double() * inverse_before
        products.addmm_(own.double() * inverse, unit.T)
        squares += unit.square().sum(1)
    return products * torch.where(squares > 0, squares.rsqrt(), 0.0)


@contextmanager
def _frozen_norms(model: nn.Module) -> Iterator[None]:
    """Modules with running statistics in evaluation mode; afterwards each is in the mode that it was in."""
    modes = [(m, m.training) for m in model.modules() if getattr(m, "running_mean", None) is not None]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def _by_signs(momentum: Tensor, parameter: Tensor) -> Tensor:
    lengths = [torch.linalg.vector_norm(v, dtype=torch.float64) for v in (parameter, momentum)]
    there = (lengths[0] >= LEAST) & (lengths[1] >= LEAST)
    ratio = torch.where(there, lengths[0] / torch.where(there, lengths[1], 1.0), 1.0).clamp_max(MOST_TRUST)
    return momentum.sign() * (TRUST * ratio).to(momentum.dtype)


def _check_settings(thresholds: Any, smooth: Any, window: Any, norm_cap: Any) -> None:
    if len(thresholds) != 3:
        refuse("thresholds", "three cosines, t_crit <= t_main <= t_weak", thresholds)
    for cosine in thresholds:
        check_number("thresholds", cosine, low=-1.0, high=1.0)
    if not thresholds[0] <= thresholds[1] <= thresholds[2]:
        refuse("thresholds", "t_crit <= t_main <= t_weak", thresholds)
    check_flag("smooth", smooth)
    check_number("window", window, low=0, integer=True)
    if norm_cap is not None:
        check_number("norm_cap", norm_cap, low=0.0, open_low=True)
