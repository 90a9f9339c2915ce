"""Metagradients: exact gradients through a whole training run, by replaying it backwards from few stored states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse, values_visible
from ...core.torch_private import tree_flatten, tree_leaves, tree_map, tree_unflatten

State = Any
"""Tensors in nested dicts, lists and tuples; numbers and texts among them stay as they are."""
CHECKPOINTS = ("tree", "all")
RULES = ("counts", "sign", "adam")


class Replay:
    r"""The states of a training run from the last to the first, of which only few are stored at a time.

    The run's T steps are split into at most k segments of equal length (the last may be shorter), whose first states
    are stored; the last segment is split likewise, its states computed again from its first one, and so on. Then at
    most about :math:`1 + (k - 1) \lceil \log_k T \rceil` states are stored, and each step is taken at most
    :math:`1 + \lceil \log_k T \rceil` times.

    Args:
        step: ``(state, batch) -> state``, which must give the same state each time: batch order, dropout and
            augmentation follow from what is in the batch (a seed, the number of the step).
        state: the first one, tensors in nested dicts, lists and tuples. It is not changed.
        batches: one entry a step; ``range(T)`` hands each step its number.
        k: segments that each segment is split into, >= 2; None stores all states.

    Iterating gives pairs ``(t, state)`` for t = T, T - 1, ..., 0. Afterwards ``steps`` is the number of steps taken and
    ``peak`` the largest number of states held at a time: stored ones, the one just computed or given out, and the one
    given out before.

    Raises:
        ValueError: k below 2.

    Example:
        >>> run = Replay(lambda x, batch: x + batch, torch.tensor(0), [1, 2, 3, 4], k=2)
        >>> [(t, int(x)) for t, x in run]
        [(4, 10), (3, 6), (2, 3), (1, 1), (0, 0)]
        >>> run.steps, run.peak
        (6, 4)

    Source: Optimizing ML Training with Metagradient Descent, arXiv:2503.13751.
    """

    def __init__(
        self, step: Callable[[State, Any], State], state: State, batches: Sequence[Any], *, k: int | None = 4
    ) -> None:
        if k is not None:
            check_number("k", k, low=2, integer=True)
        self.step, self.state, self.batches, self.k = step, state, batches, k
        self.steps = self.peak = 0

    def __len__(self) -> int:
        return len(self.batches) + 1

    def __iter__(self) -> Iterator[tuple[int, State]]:
        self.steps = self.peak = 0
        end = len(self.batches)
        stored: list[tuple[int, State]] = []
        last = self._split(stored, 0, self.state, end, given=0) if end else self.state
        self.peak = max(self.peak, len(stored) + 1)
        yield end, last
        del last
        while stored:
            start, state = stored.pop()
            while end - start > 1:
                self._split(stored, start, state, end, given=1)
                start, state = stored.pop()
            self.peak = max(self.peak, len(stored) + 2)
            yield start, state
            end = start

    def _split(self, stored: list[tuple[int, State]], start: int, state: State, end: int, *, given: int) -> State:
        """Store the first states of the segments of ``start .. end``; gives the last state that was computed.

        ``given``: how many states are held outside meanwhile; while there is none yet, the run goes on to the end.
        """
        size = 1 if self.k is None else -(-(end - start) // self.k)
        last_segment = start + (end - start - 1) // size * size
        stored.append((start, state))
        for t in range(start + 1, (last_segment if given else end) + 1):
            state = self.step(state, self.batches[t - 1])
            self.steps += 1
            self.peak = max(self.peak, len(stored) + 1 + given)
            if t <= last_segment and (t - start) % size == 0:
                stored.append((t, state))
        return state


def metagradient(
    step: Callable[[State, State, Any], State],
    state: State,
    z: State,
    batches: Sequence[Any],
    objective: Callable[[State], Tensor],
    *,
    checkpoints: str = "tree",
    k: int = 4,
) -> tuple[Tensor, State]:
    r"""The gradient of what a trained model scores with respect to what its training depended on.

    .. math::
        s_{t+1} = h_t(s_t, z), \qquad f(z) = \varphi(s_T), \qquad A_T = \nabla\varphi(s_T), \qquad
        (A_t, g_t) = A_{t+1}^\top \frac{\partial h_t}{\partial (s_t, z)}, \qquad \nabla f(z) = \sum_t g_t

    Exact, not implicit: it holds for runs that have not converged, and for what no loss contains, as learning rates.
    Where training is chaotic it is exact and of no use: see :func:`metasmoothness` before. Training steps that are
    smooth (smooth activations, normalisation before them, average pooling, outputs scaled down, Adam's epsilon inside
    its root) help.

    Args:
        step: ``(state, z, batch) -> state``, a differentiable function without side effects, whose own gradients come
            from ``torch.func.grad`` or ``torch.autograd.grad(..., create_graph=True)``. Given the same it must return
            the same bits: randomness follows from the batch (a seed, the number of the step).
        state: parameters and state of the optimizer before training, tensors in nested dicts, lists and tuples.
        z: what training depends on, a tensor or nested tensors of a floating type.
        batches: one entry a step; ``range(T)`` hands each step its number.
        objective: of the last state, one number.
        checkpoints: ``"tree"`` replays from few stored states (:class:`Replay`), ``"all"`` stores all; both give the
            same bits.
        k: segments that each segment is split into, >= 2.

    Returns:
        the value of the objective, and its gradient in the form of z (zeros where nothing depends on it).

    Raises:
        ValueError: no floating z, an objective of another shape, another word, k below 2.
        RuntimeError: a step that gives another state when it is taken again (looked at where values may be).

    Example:
        >>> samples = torch.tensor([1.0, 3.0])
        >>> def step(theta, weights, batch):
        ...     return theta - 0.5 * (weights * (theta - samples)).mean()
        >>> metagradient(step, torch.tensor(0.0), torch.ones(2), range(2), lambda theta: 0.5 * (theta - 2) ** 2)
        (tensor(0.1250), tensor([-0.0625, -0.4375]))

    Source: Optimizing ML Training with Metagradient Descent, arXiv:2503.13751.
    """
    check_choice("checkpoints", checkpoints, CHECKPOINTS)
    check_number("k", k, low=2, integer=True)
    z_leaves, z_form = tree_flatten(z)
    if not z_leaves or not all(_is_floating(leaf) for leaf in z_leaves):
        refuse("z", "tensors of a floating type", z)

    def taken(state: State, z: State, batch: Any) -> tuple[State, State, State]:
        """One step on leaves that require gradients, replayed or not: the same operations, so the same bits."""
        own, wanted = tree_map(_leaf, state), tree_map(_leaf, z)
        with torch.enable_grad():
            return own, wanted, step(own, wanted, batch)

    def replayed(state: State, batch: Any) -> State:
        return tree_map(_detached, taken(state, z, batch)[2])

    gradient = [torch.zeros_like(leaf, requires_grad=False) for leaf in z_leaves]
    adjoint: list[Tensor] = []
    value = after = None
    run = Replay(replayed, tree_map(_detached, state), batches, k=k if checkpoints == "tree" else None)
    for t, reached in run:
        if t == len(batches):
            own = tree_map(_leaf, reached)
            with torch.enable_grad():
                value = objective(own)
            if not isinstance(value, Tensor) or value.ndim:
                refuse("objective", "a function that gives a tensor of one number", value)
            adjoint = _gradients([value], None, _floating(own))
        else:
            own, wanted, outcome = taken(reached, z, batches[t])
            _check_replay(t, after, outcome)
            slopes = _gradients(_floating(outcome), adjoint, [*_floating(own), *tree_leaves(wanted)])
            adjoint = slopes[: -len(z_leaves)]
            for total, term in zip(gradient, slopes[-len(z_leaves) :]):
                total += term
            del outcome, wanted, slopes
        after = reached
        del own
    assert value is not None
    return value.detach(), tree_unflatten(gradient, z_form)


def metasmoothness(
    train: Callable[[Tensor], State], z: F[Tensor, "*shape"], direction: F[Tensor, "*shape"], h: float
) -> Tensor:
    r"""How smooth a training run is in what it depends on: whether finite differences keep their signs.

    .. math::
        \Delta(z) = \frac{\theta(z + hv) - \theta(z)}{h}, \qquad d = |\theta(z + 2hv) - \theta(z)|, \qquad
        \hat S = \operatorname{sign}(\Delta(z))^\top \operatorname{diag}\Bigl(\frac{d}{\|d\|_1}\Bigr)
        \operatorname{sign}(\Delta(z + hv)) \in [-1, 1]

    Near 1 metagradients are of use; near 0 a step along them is one of luck. Three runs, no gradient.

    Args:
        train: ``z -> final parameters``, tensors in nested dicts, lists and tuples; deterministic.
        z: a tensor, of a floating type.
        direction: v, of the shape of z, usually normal.
        h: the step > 0 between runs, of the size of steps that are to be taken.

    Returns:
        one number; NaN if nothing moves.

    Raises:
        ValueError: another shape, an h that is not positive.

    Example:
        >>> finals = {0.0: [0.0, 0.0, 0.0], 1.0: [1.0, 0.5, -1.0], 2.0: [2.0, 0.2, -3.0]}
        >>> metasmoothness(lambda z: torch.tensor(finals[float(z)]), torch.tensor(0.0), torch.tensor(1.0), 1.0)
        tensor(0.9231)

    Source: Optimizing ML Training with Metagradient Descent, arXiv:2503.13751.
    """
    _check_direction(z, direction, h)
    before, middle, after = (_joined(train(z + times * h * direction)) for times in range(3))
    moved = (after - before).abs()
    return ((middle - before).sign() * (after - middle).sign() * moved).sum() / moved.sum()


def metacurvature(
    value: Callable[[Tensor], Tensor], z: F[Tensor, "*shape"], direction: F[Tensor, "*shape"], h: float
) -> Tensor:
    r"""The second difference of what a training run scores, :math:`|f(z + 2hv) - 2 f(z + hv) + f(z)| / h^2`.

    Args:
        value: f, from z to one number: trains, then scores.
        z, direction, h: as for :func:`metasmoothness`.

    Returns:
        one number >= 0; the smaller, the smoother.

    Raises:
        ValueError: another shape, an h that is not positive.

    Example:
        >>> metacurvature(lambda z: (z**2).sum(), torch.tensor([1.0]), torch.tensor([1.0]), 0.5)
        tensor(2.)

    Source: Optimizing ML Training with Metagradient Descent, arXiv:2503.13751.
    """
    _check_direction(z, direction, h)
    before, middle, after = (value(z + times * h * direction).detach() for times in range(3))
    return (after - 2 * middle + before).abs() / h**2


def knot_schedule(knots: F[Tensor, " k"], steps: int) -> F[Tensor, " steps"]:
    """A schedule through knots at equal distances from the first step to the last, linear between them.

    Args:
        knots: values at the knots, k >= 2 of them; gradients pass to them.
        steps: how many values, >= 1.

    Returns:
        one value a step.

    Raises:
        ValueError: fewer than two knots, no step.

    Example:
        >>> knot_schedule(torch.tensor([0.0, 1.0, 0.0]), 5)
        tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.0000])

    Source: Optimizing ML Training with Metagradient Descent, arXiv:2503.13751.
    """
    check_tensor("knots", knots, ndim=1, floating=True)
    check_number("steps", steps, low=1, integer=True)
    if len(knots) < 2:
        refuse("knots", "at least two", knots)
    places = torch.linspace(0, len(knots) - 1, steps, dtype=knots.dtype, device=knots.device)
    left = places.long().clamp(max=len(knots) - 2)
    return torch.lerp(knots[left], knots[left + 1], places - left)


class MetagradientDescent:
    r"""Descent on what training depends on, one training run and its metagradient a step.

    - ``"counts"``: how often each sample is used, :math:`c \leftarrow \max(c - m \operatorname{sign} g, 0)` with
      :math:`m \sim \text{Bernoulli}(p)` for each entry, so that samples are not all changed at once;
    - ``"sign"``: :math:`z \leftarrow \Pi(z - \eta\, m \operatorname{sign} g)`;
    - ``"adam"``: a step of Adam, then :math:`\Pi`.

    Args:
        metagrad: ``z -> (value, gradient)``, usually :func:`metagradient` with all but z given.
        z: where to begin, a tensor of a floating type; whole numbers >= 0 with ``"counts"``. It is not changed.
        rule: one of the three.
        lr: :math:`\eta` > 0 of ``"sign"`` and ``"adam"``; ``"counts"`` moves by 1.
        p: chance of an entry to move, in (0, 1], of ``"counts"`` (0.2 by default) and ``"sign"`` (1 by default).
        project: :math:`\Pi`, of ``"sign"`` and ``"adam"``; none by default.
        generator: of m; torch's own by default.

    Raises:
        ValueError: an argument that the rule has no use for, or one outside its range.
        FloatingPointError: in a step, if the metagradient is not a number somewhere.

    Example:
        >>> samples = torch.tensor([1.0, 2.0, 9.0])
        >>> def step(theta, counts, batch):
        ...     return theta - 0.5 * (counts * (theta - samples)).mean()
        >>> def metagrad(counts):
        ...     score = lambda theta: (theta - 1.5) ** 2
        ...     return metagradient(step, torch.tensor(0.0), counts, range(20), score)
        >>> descent = MetagradientDescent(metagrad, torch.ones(3), p=1.0)
        >>> descent.step()
        tensor(6.2500)
        >>> descent.z
        tensor([2., 2., 0.])

    Source: Optimizing ML Training with Metagradient Descent, arXiv:2503.13751.
    """

    def __init__(
        self,
        metagrad: Callable[[Tensor], tuple[Tensor, Tensor]],
        z: Tensor,
        *,
        rule: str = "counts",
        lr: float | None = None,
        p: float | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_tensor("z", z, floating=True)
        check_choice("rule", rule, RULES)
        if rule == "counts":
            for name, unused in (("lr", lr), ("project", project)):
                if unused is not None:
                    refuse(name, "None with rule 'counts', which moves by 1 and stays >= 0", unused)
            if values_visible(z) and not bool(((z >= 0) & (z == z.round())).all()):
                refuse("z", "whole numbers >= 0", z)
        else:
            check_number("lr", lr, low=0.0, open_low=True)
        if rule == "adam" and p is not None:
            refuse("p", "None with rule 'adam'", p)
        self.p = (0.2 if rule == "counts" else 1.0) if p is None else p
        check_number("p", self.p, low=0.0, high=1.0, open_low=True)
        self.metagrad, self.rule, self.lr, self.project, self.generator = metagrad, rule, lr, project, generator
        self.z = z.detach().clone()
        self._adam = torch.optim.Adam([self.z], lr=lr) if rule == "adam" and lr is not None else None

    def step(self) -> Tensor:
        """Trains once, moves z; gives the value before."""
        value, slope = self.metagrad(self.z.clone())
        if values_visible(slope) and bool(slope.isnan().any()):
            raise FloatingPointError("the metagradient is not a number: training is chaotic there (metasmoothness)")
        if self._adam is not None:
            self.z.grad = slope
            self._adam.step()
        else:
            moves = slope.sign() * (1.0 if self.lr is None else self.lr)
            if self.p < 1:
                chances = torch.full_like(self.z, self.p)
                moves = moves * torch.bernoulli(chances, generator=self.generator)
            self.z.sub_(moves)
        if self.rule == "counts":
            self.z.clamp_(min=0)
        elif self.project is not None:
            self.z.copy_(self.project(self.z))
        return value

    def run(self, rounds: int) -> F[Tensor, " rounds"]:
        """So many steps; gives the values before each."""
        check_number("rounds", rounds, low=0, integer=True)
        return torch.stack([self.step() for _ in range(rounds)]) if rounds else self.z.new_empty(0)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _floating(state: State) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(state) if _is_floating(leaf)]


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _leaf(leaf: Any) -> Any:
    return leaf.detach().requires_grad_() if _is_floating(leaf) else _detached(leaf)


def _gradients(outputs: list[Tensor], upstream: list[Tensor] | None, inputs: list[Tensor]) -> list[Tensor]:
    """Those of the outputs that depend on anything; zeros of inputs that nothing depends on."""
    places = [place for place, output in enumerate(outputs) if output.requires_grad]
    if not places:
        return [torch.zeros_like(one) for one in inputs]
    slopes = torch.autograd.grad(
        [outputs[place] for place in places],
        inputs,
        None if upstream is None else [upstream[place] for place in places],
        allow_unused=True,
    )
    return [torch.zeros_like(one) if slope is None else slope for one, slope in zip(inputs, slopes)]


def _check_replay(t: int, before: State, again: State) -> None:
    old, new = _floating(before), _floating(again)
    same = len(old) == len(new) and all(a.shape == b.shape for a, b in zip(old, new))
    if same and values_visible(*old, *new):
        same = all(torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(old, new))
    if not same:
        raise RuntimeError(
            f"step {t} gives another state when it is taken again: batch order, dropout and augmentation must follow "
            "from the batch"
        )


def _check_direction(z: Tensor, direction: Tensor, h: float) -> None:
    check_tensor("z", z, floating=True)
    check_tensor("direction", direction, floating=True, shape=tuple(z.shape))
    check_number("h", h, low=0.0, open_low=True)


def _joined(state: State) -> Tensor:
    return torch.cat([leaf.detach().flatten() for leaf in _floating(state)])
