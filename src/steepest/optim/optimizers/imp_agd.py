"""Alternating gradient descent over tasks that share an encoder, and a mixture of experts that choose their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.reductions import widen

ORDERS = ("sample", "round_robin")
Losses = Tensor | Sequence[Tensor]


class TaskSampler(Iterator[str]):
    r"""The order of tasks: drawn with the probabilities :math:`\pi_i`, or one after the other.

    .. math:: \Pr[i_t = i] = \pi_i = \frac{w_i}{\sum_j w_j}

    Args:
        tasks: names.
        weights: of each task, >= 0 and with a positive sum; None takes equal ones. The user's choice: for example the
            sizes of the data sets.
        order: ``"sample"``, or ``"round_robin"``, which passes over tasks of weight 0 and ignores the size of others.
        seed: of the draws, which are a function of it alone.

    Attributes:
        counts: how often each task was drawn.

    Raises:
        ValueError: no task, two of one name, weights of other tasks, negative or all zero.

    Example:
        >>> sampler = TaskSampler(["text", "image"], order="round_robin")
        >>> [next(sampler) for _ in range(3)]
        ['text', 'image', 'text']

    Source: Alternating Gradient Descent and Mixture-of-Experts for Integrated Multimodal Perception, arXiv:2305.06324.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        weights: Mapping[str, float] | None = None,
        order: str = "sample",
        seed: int = 0,
    ) -> None:
        self.tasks = list(tasks)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            refuse("tasks", "at least one, under different names", self.tasks)
        weights = dict.fromkeys(self.tasks, 1.0) if weights is None else dict(weights)
        if set(weights) != set(self.tasks):
            refuse("weights", f"one for each of {', '.join(self.tasks)}", sorted(weights))
        for name, weight in weights.items():
            check_number(f"weights[{name!r}]", weight, low=0.0)
        total = math.fsum(weights.values())
        if not 0 < total < math.inf:
            refuse("weights", "a positive sum", total)
        check_choice("order", order, ORDERS)
        check_number("seed", seed, low=0, integer=True)
        self.order = order
        self.probabilities = {name: weights[name] / total for name in self.tasks}
        self.counts = dict.fromkeys(self.tasks, 0)
        self._generator = torch.Generator().manual_seed(seed)
        self._steps = 0

    def __next__(self) -> str:
        """The next task; the order has no end."""
        if self.order == "round_robin":
            present = [name for name in self.tasks if self.probabilities[name] > 0]
            name = present[self._steps % len(present)]
        else:
            shares = torch.tensor([self.probabilities[task] for task in self.tasks], dtype=torch.float64)
            name = self.tasks[int(torch.multinomial(shares, 1, generator=self._generator))]
        self._steps += 1
        self.counts[name] += 1
        return name

    def state_dict(self) -> dict[str, Any]:
        """The generator, the number of steps and the counts."""
        return {"generator": self._generator.get_state(), "steps": self._steps, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave: the next tasks are those that would have come.

        Raises:
            ValueError: a state of other tasks.
        """
        if set(state["counts"]) != set(self.tasks):
            refuse("state", f"one of the tasks {', '.join(self.tasks)}", sorted(state["counts"]))
        self._generator.set_state(state["generator"].cpu())
        self._steps, self.counts = int(state["steps"]), dict(state["counts"])


class AlternatingGradientDescent:
    r"""Training of one model on several tasks, a task a step, with one optimizer.

    .. math:: i_t \sim \pi, \qquad \theta \leftarrow \text{step}\Bigl(\theta, \nabla_\theta L_{i_t}(\theta)\Bigr),
        \qquad L_i = \sum_j L_{ij}

    so that the expected gradient is that of :math:`\sum_i \pi_i L_i`. Tasks may have inputs, losses and resolutions of
    their own, without padding to a common shape. Gradients are None before each step: parameters that a task does not
    use (stems and heads of the others) are passed over by the optimizer, without decay or momentum, and Adam counts
    their steps alone. (A functional optimizer, as in the official code, sees gradients of zero there.)

    Args:
        optimizer: the one of all parameters; its ``step(closure)`` is called.
        tasks: by name, what draws a batch and gives its loss, a scalar, or several scalars of the same batch, which
            are summed. An optimizer that runs the closure twice asks for two losses: SAM and its like want a callable
            that gives the same batch again.
        weights, order, seed: as in :class:`TaskSampler`.

    Attributes:
        sampler: the :class:`TaskSampler`.

    Raises:
        TypeError: no optimizer, a task that cannot be called.
        ValueError: as in :class:`TaskSampler`.

    Example:
        >>> w = nn.Parameter(torch.zeros(()))
        >>> tasks = {"zero": lambda: w.square() / 2, "one": lambda: (w - 1).square() / 2}
        >>> descent = AlternatingGradientDescent(torch.optim.SGD([w], lr=0.5), tasks, order="round_robin")
        >>> descent.step()
        ('zero', 0.0)
        >>> descent.step(), w.item()
        (('one', 0.5), 0.5)

    Source: Alternating Gradient Descent and Mixture-of-Experts for Integrated Multimodal Perception, arXiv:2305.06324.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        tasks: Mapping[str, Callable[[], Losses]],
        weights: Mapping[str, float] | None = None,
        order: str = "sample",
        seed: int = 0,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            refuse_type("optimizer", "an optimizer", optimizer)
        for name, task in tasks.items():
            if not callable(task):
                refuse_type(f"tasks[{name!r}]", "a callable that gives a loss", task)
        self.optimizer, self.tasks = optimizer, dict(tasks)
        self.sampler = TaskSampler(list(self.tasks), weights, order, seed)

    def step(self) -> tuple[str, float]:
        """One step on one task.

        Returns:
            its name and its loss before the step.

        Raises:
            TypeError: a task gave something else than scalars.
        """
        name = next(self.sampler)

        def closure() -> Any:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                losses = self.tasks[name]()
                loss = losses if isinstance(losses, Tensor) else sum(losses[1:], start=losses[0])
            if not isinstance(loss, Tensor) or loss.ndim:
                refuse_type(f"tasks[{name!r}]", "a scalar or several of them", loss)
            loss.backward()
            return loss.detach()

        loss = self.optimizer.step(closure)
        return name, float(loss)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer and that of the sampler."""
        return {"optimizer": self.optimizer.state_dict(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave.

        Raises:
            ValueError: a state of other tasks.
        """
        self.sampler.load_state_dict(state["sampler"])
        self.optimizer.load_state_dict(state["optimizer"])


class ExpertChoiceMoE(nn.Module):
    r"""A sparse layer of feed-forward experts, each of which takes the tokens that it is most probable for.

    .. math::
        P = \operatorname{softmax}(X W_g), \qquad k = \lceil c\, n / E \rceil, \qquad
        S_e = \text{the } k \text{ tokens with the largest } P_{te}, \qquad
        y_t = \sum_{e :\, t \in S_e} P_{te}\, \text{FFN}_e(x_t)

    over groups of n tokens, into which the tokens of a batch are divided in order, as evenly as can be. A token that no
    expert takes gives 0: a residual connection carries it. Experts have equal loads, without a balancing loss; the
    router has no bias and no noise, and is computed in float32 at least. Of tokens with equal probabilities an expert
    takes the first ones.

    What a token gives depends on the others of its group: never use it where a token must not see the later ones.
    ``group`` equal to the length of a sequence keeps samples of a batch apart. (The publication rounds up; official
    code rounds c n / E to the nearest, and makes groups that divide the tokens.)

    Args:
        d: width of tokens, >= 1.
        hidden: width of the experts' inner layer, >= 1.
        experts: E >= 1.
        capacity: c > 0, how many experts a token has on average; from E on all experts take all tokens.
        group: largest number of tokens in a group, >= 1.
        activation: of the inner layer.

    Shapes:
        tokens ``[B, n, d]`` to ``[B, n, d]``, and which expert took which token, ``[B, n, E]``.

    Raises:
        ValueError: numbers outside their range; tokens of another shape, or none.

    Example:
        >>> layer = ExpertChoiceMoE(4, 8, experts=2)
        >>> y, taken = layer(torch.randn(3, 6, 4))
        >>> y.shape, taken.sum((0, 1))
        (torch.Size([3, 6, 4]), tensor([9, 9]))

    Source: Alternating Gradient Descent and Mixture-of-Experts for Integrated Multimodal Perception, arXiv:2305.06324.
    """

    def __init__(
        self,
        d: int,
        hidden: int,
        experts: int = 8,
        capacity: float = 1.0,
        group: int = 2048,
        *,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
    ) -> None:
        super().__init__()
        for name, value in (("d", d), ("hidden", hidden), ("experts", experts), ("group", group)):
            check_number(name, value, low=1, integer=True)
        check_number("capacity", capacity, low=0.0, open_low=True)
        self.d, self.hidden, self.experts, self.group = d, hidden, experts, group
        self.capacity, self.activation = float(capacity), activation
        self.router = nn.Parameter(torch.empty(experts, d))
        self.inner, self.inner_bias = (
            nn.Parameter(torch.empty(experts, d, hidden)),
            nn.Parameter(torch.empty(experts, 1, hidden)),
        )
        self.outer, self.outer_bias = (
            nn.Parameter(torch.empty(experts, hidden, d)),
            nn.Parameter(torch.empty(experts, 1, d)),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights: a normal one with deviation 0.02 for the router, experts as :class:`torch.nn.Linear`."""
        nn.init.normal_(self.router, std=0.02)
        for weight, width in (
            (self.inner, self.d),
            (self.inner_bias, self.d),
            (self.outer, self.hidden),
            (self.outer_bias, self.hidden),
        ):
            nn.init.uniform_(weight, -(width**-0.5), width**-0.5)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.d}, {self.hidden}, experts={self.experts}, capacity={self.capacity:g}, group={self.group}"

    def forward(self, tokens: F[Tensor, "B n d"]) -> tuple[F[Tensor, "B n d"], Bool[Tensor, "B n E"]]:
        """``[B, n, d]`` to the sum of the experts' outputs and the choices."""
        check_tensor("tokens", tokens, floating=True, shape=(None, None, self.d))
        rows = tokens.reshape(-1, self.d)
        if not len(rows):
            refuse("tokens", "at least one", tokens)
        groups = -(-len(rows) // self.group)
        size, longer = divmod(len(rows), groups)
        cut = longer * (size + 1)
        batches = [rows[:cut].view(longer, size + 1, self.d), rows[cut:].view(groups - longer, size, self.d)]
        results = [self._grouped(batch) for batch in batches if len(batch)]
        y = torch.cat([value.flatten(0, 1) for value, _ in results])
        taken = torch.cat([mask.flatten(0, 1) for _, mask in results])
        return y.view(tokens.shape), taken.view(*tokens.shape[:2], self.experts)

    def _grouped(self, x: F[Tensor, "G n d"]) -> tuple[F[Tensor, "G n d"], Bool[Tensor, "G n E"]]:
        n = x.shape[1]
        load = min(n, max(1, math.ceil(self.capacity * n / self.experts - 1e-9)))  # 1.1 * 100 / 10 is above 11
        with torch.autocast(x.device.type, enabled=False):
            wide = widen(x)
            probabilities = nn.functional.linear(wide, self.router.to(wide.dtype)).softmax(-1).transpose(1, 2)
        places = probabilities.argsort(dim=-1, descending=True, stable=True)[..., :load]
        own = x[torch.arange(len(x), device=x.device)[:, None, None], places]
        inner = self.activation(torch.einsum("geki,eih->gekh", own, self.inner) + self.inner_bias)
        outputs = torch.einsum("gekh,ehi->geki", inner, self.outer) + self.outer_bias
        weighted = probabilities.gather(-1, places)[..., None] * outputs
        flat = places.flatten(1)[..., None].expand(-1, -1, self.d)
        y = torch.zeros_like(x, dtype=weighted.dtype).scatter_add(1, flat, weighted.flatten(1, 2))
        taken = torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, places, True)
        return y.to(x.dtype), taken.transpose(1, 2)
