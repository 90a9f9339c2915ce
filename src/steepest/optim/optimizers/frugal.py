"""Adam for a share of each gradient and signs for the rest: steps in all directions, with a share of the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ...core.checks import check_choice, check_flag, check_number, refuse, refuse_type
from ...core.optimizer import ListOptimizer, Share, real
from ...core.reductions import widen
from ...core.search import Float
from ...core.torch_private import foreach_add_, foreach_mul_, foreach_sign
from ...core.wrapper import Params

PROJECTIONS = ("block", "columns", "randk", "svd")
ORDERS = ("random", "ascending", "descending")
STATE_FREE = ("sign", "sgd", "none")
_ROUNDING = 8.0
"""Units of rounding of the length that was projected: what is less was left by rounding (2 were seen)."""


class GradientSplitter:
    r"""Splits gradients into two orthogonal parts that sum to them: one for steps with a state, and the rest.

    .. math:: G = G_{on} + G_{off}, \qquad \text{svd: } G_{on} = P P^\top G, \quad
        P \text{: the leading left singular vectors of } G

    With ``"block"`` whole tensors are on; of a matrix ``"columns"``, of any tensor ``"randk"`` entries, both drawn
    uniformly; with ``"svd"`` a subspace of the shorter side of a matrix (right singular vectors where it has at least
    as many rows as columns). Of n tensors, columns, entries or dimensions max(1, floor(density n + 1/2)) are on, none
    at density 0. A tensor of more dimensions is a matrix of its first one and the rest, a vector is a row. The splitter
    keeps nothing: choices are the caller's.

    Args:
        projection: ``"block"``, ``"columns"``, ``"randk"``, ``"svd"``.
        density: share that is on, in [0, 1].
        order: of blocks: ``"random"``, or in turn ``"ascending"`` or ``"descending"``.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> gradient = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> on, off = GradientSplitter("svd", 0.5).split([gradient])
        >>> on[0].abs().tolist(), off[0].abs().tolist()
        ([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])

    Source: FRUGAL: Memory-Efficient Optimization by Reducing State Overhead, arXiv:2411.07837.
    """

    def __init__(self, projection: str = "block", density: float = 0.25, order: str = "random") -> None:
        check_choice("projection", projection, PROJECTIONS)
        check_number("density", density, low=0.0, high=1.0)
        check_choice("order", order, ORDERS)
        self.projection, self.density, self.order = projection, density, order

    def share(self, count: int) -> int:
        """How many of so many are on."""
        return min(count, max(1, math.floor(self.density * count + 0.5))) if self.density else 0

    def blocks(self, count: int, turn: int = 0, generator: torch.Generator | None = None) -> list[int]:
        """Numbers of the tensors, of so many, that are on in a turn, which counts from 0."""
        chosen = self.share(count)
        if self.order == "random":
            return sorted(torch.randperm(count, generator=generator)[:chosen].tolist())
        places = [(turn * chosen + i) % count for i in range(chosen)]
        return sorted(places if self.order == "ascending" else [count - 1 - place for place in places])

    def choose(self, gradient: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What of one gradient is on: numbers of columns or entries, or a basis of the subspace, as columns.

        Args:
            gradient: of any shape.
            generator: on the CPU; None draws from torch's own.
        """
        matrix = _matrix(gradient)
        if self.projection == "svd":
            rank = self.share(min(matrix.shape))
            finite = widen(matrix).nan_to_num(0.0, 0.0, 0.0)
            left, _, right = torch.linalg.svd(finite, full_matrices=False)
            basis: Tensor = left[:, :rank] if _is_wide(matrix) else right[:rank].mT
            return basis.contiguous()
        count = matrix.shape[1] if self.projection == "columns" else matrix.numel()
        chosen = torch.randperm(count, generator=generator)[: self.share(count)].sort().values
        return chosen.to(gradient.device)

    def down(self, values: Tensor, choice: Tensor) -> Tensor:
        """What is on of a tensor, in coordinates: ``[rows, k]``, ``[1, k]``, or with ``"svd"`` ``[r, columns]``."""
        if self.projection == "svd":
            matrix = widen(_matrix(values))
            return choice.mT @ matrix if _is_wide(matrix) else matrix @ choice
        return self._places(values)[:, choice]

    def up(self, coordinates: Tensor, choice: Tensor, like: Tensor) -> Tensor:
        """A tensor of the shape of another one that is on alone, from its coordinates."""
        if self.projection == "svd":
            placed = choice @ coordinates if _is_wide(_matrix(like)) else coordinates @ choice.mT
        else:
            placed = torch.zeros_like(self._places(like), dtype=coordinates.dtype).index_copy_(1, choice, coordinates)
        return placed.reshape(like.shape)

    def rest(self, gradient: Tensor, choice: Tensor) -> Tensor:
        """What is off. What a projection leaves by rounding alone is 0, as its sign means nothing."""
        if self.projection != "svd":
            return self.put(gradient.clone(), self.down(gradient, choice).zero_(), choice)
        matrix = widen(_matrix(gradient))
        off = matrix - _matrix(self.up(self.down(gradient, choice), choice, gradient))
        lengths = matrix.norm(dim=0 if _is_wide(matrix) else 1, keepdim=True)
        unit = _ROUNDING * torch.finfo(matrix.dtype).eps
        off.masked_fill_(off.abs() <= unit * lengths, 0.0)
        return off.to(gradient.dtype).reshape(gradient.shape)

    def put(self, values: Tensor, coordinates: Tensor, choice: Tensor) -> Tensor:
        """Write columns or entries into a tensor, in place."""
        places = self._places(values)
        places.index_copy_(1, choice, coordinates)
        if places.data_ptr() != values.data_ptr():  # it lies otherwise in memory, and was copied
            values.copy_(places.reshape(values.shape))
        return values

    def _places(self, values: Tensor) -> Tensor:
        return _matrix(values) if self.projection == "columns" else values.reshape(1, -1)

    def split(
        self, gradients: Sequence[Tensor], turn: int = 0, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Both parts of several gradients, by a choice that is drawn now.

        Args:
            gradients: of any shapes.
            turn: of blocks in order.
            generator: on the CPU; None draws from torch's own.

        Returns:
            G_on and G_off of each.
        """
        if self.projection == "block":
            on = self.blocks(len(gradients), turn, generator)
            parts = [(g, torch.zeros_like(g)) if i in on else (torch.zeros_like(g), g) for i, g in enumerate(gradients)]
        else:
            rests = [self.rest(g, self.choose(g, generator)) for g in gradients]
            parts = [(g - off, off) for g, off in zip(gradients, rests)]
        return [on for on, _ in parts], [off for _, off in parts]


def frugal_param_groups(model: nn.Module, blocks: Iterable[nn.Module] | None = None) -> list[dict[str, Any]]:
    """Two groups of a model's parameters: weights of linear layers in its blocks, which are split, and all else.

    Embeddings, norms, biases and the output head always move by Adam.

    Args:
        model: whose parameters.
        blocks: the modules within which linear layers are split; None: those of every ``ModuleList`` and
            ``Sequential`` inside the model.

    Raises:
        ValueError: no linear layer there.

    Example:
        >>> body = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        >>> model = nn.ModuleDict({"body": body, "head": nn.Linear(3, 2)})
        >>> [(group["project"], len(group["params"])) for group in frugal_param_groups(model)]
        [(False, 4), (True, 2)]
    """
    if blocks is None:
        lists = (nn.ModuleList, nn.Sequential)
        blocks = [layer for layer in model.modules() if isinstance(layer, lists) and layer is not model]
    layers = [layer for block in blocks for layer in block.modules()]
    weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    weights += [
        layer.in_proj_weight
        for layer in layers
        if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None
    ]
    inside = {id(weight) for weight in weights}
    parameters = [p for p in model.parameters() if p.requires_grad]
    split = [p for p in parameters if id(p) in inside]
    if not split:
        refuse("blocks", "modules with linear layers that train", [type(block).__name__ for block in blocks])
    return [
        {"params": [p for p in parameters if id(p) not in inside], "project": False},
        {"params": split, "project": True},
    ]


class FRUGAL(ListOptimizer):
    r"""AdamW for a share of each gradient, and a step without a state for the rest: full rank, a share of the state.

    .. math:: W \leftarrow (1 - \eta \lambda)\, W - \eta\, P\, \mathrm{Adam}(P^\top G)
        - \eta\, s\, \mathrm{sign}(G - P P^\top G)

    Groups with ``project=True`` (see :func:`frugal_param_groups`) are split, by a :class:`GradientSplitter`; the others
    move by AdamW. Every ``update_gap`` steps what is on is chosen anew, and Adam's averages and its count of steps
    begin anew. State takes 2 density numbers for each of the split parameters and 2 for the others; the choice itself
    takes nothing with ``"block"``, an integer for each column or (``"randk"``) entry that is on, and with ``"svd"`` its
    basis.

    Choices follow from the step, the parameter's number and one seed alone: ranks that average gradients choose alike,
    and a parameter without a gradient changes no choice of another. Such a parameter stays as it is, and so does its
    state; it is chosen anew at its first gradient after. With ``"svd"`` signs are those of the residual in full space,
    so that both parts of the step are not orthogonal; at density 1 it is Adam in the basis of singular vectors.
    ``state_free="none"`` moves nothing off the choice: with ``"svd"`` like GaLore, with ``"block"`` like BAdam.

    Args:
        params: parameters or groups, with ``project`` in those that have another than the default.
        lr: eta >= 0.
        betas: Adam's, each in [0, 1).
        eps: Adam's, >= 0.
        weight_decay: lambda >= 0, decoupled, of both parts.
        density: share that is on, in [0, 1]: 0 is a step without a state, 1 AdamW that begins anew now and then.
        update_gap: steps between choices, >= 1 or ``math.inf``.
        projection: ``"block"``, ``"columns"``, ``"randk"``, ``"svd"``.
        state_free: ``"sign"``, ``"sgd"`` or ``"none"``.
        state_free_scale: s >= 0: 1 for training from scratch, 0.1 for fine-tuning.
        generator: of the seed, which is drawn once; 0 by default.
        order: of blocks: ``"random"``, ``"ascending"``, ``"descending"``.
        project: of groups that don't say.
        maximize: climb.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: a value outside its range.
        TypeError: a sparse gradient.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2, 4))
        >>> optimizer = FRUGAL([{"params": [w], "project": True}], lr=0.1, projection="columns")
        >>> w.grad = torch.tensor([[0.3, -0.4, 0.1, 0.2], [0.5, 0.6, -0.7, 0.0]])
        >>> optimizer.step()
        >>> w.data
        tensor([[0.9000, 1.1000, 0.9000, 0.9000],
                [0.9000, 0.9000, 1.1000, 1.0000]])
        >>> optimizer.state[w]["exp_avg"].shape
        torch.Size([2, 1])

    Source: FRUGAL: Memory-Efficient Optimization by Reducing State Overhead, arXiv:2411.07837.
    """

    name = "frugal"
    search = {"density": Float(0.0, 1.0), "state_free_scale": Float(0.1, 1.0, log=True)}
    ranges = {
        "lr": {"low": 0.0},
        "eps": {"low": 0.0},
        "weight_decay": {"low": 0.0},
        "density": {"low": 0.0, "high": 1.0},
        "state_free_scale": {"low": 0.0},
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        density: float = 0.25,
        update_gap: float = 200,
        projection: str = "block",
        state_free: str = "sign",
        state_free_scale: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        order: str = "random",
        project: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        check_choice("projection", projection, PROJECTIONS)
        check_choice("state_free", state_free, STATE_FREE)
        check_choice("order", order, ORDERS)
        if generator is not None and not isinstance(generator, torch.Generator):
            refuse_type("generator", "a torch.Generator", generator)
        self.projection, self.state_free, self.order = projection, state_free, order
        self.seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
        self.steps = 0
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "density": density}
        options |= {"update_gap": update_gap, "state_free_scale": state_free_scale, "project": project}
        super().__init__(params, {**options, "maximize": maximize}, foreach=foreach)

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse options of a group that are out of range."""
        super().check_options(options)
        check_flag("project", options["project"])
        check_number("update_gap", options["update_gap"], low=1, integer=options["update_gap"] != math.inf)

    def own_state(self) -> dict[str, Any]:
        """Steps so far, and the seed of the choices."""
        return {"steps": self.steps, "seed": self.seed}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave."""
        self.steps, self.seed = int(state["steps"]), int(state["seed"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(p.device)  # which torch leaves where it was saved

    def _advance(self) -> None:
        super()._advance()
        self.steps += 1

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        return {} if group["project"] else _averages(real(parameter))

    def _move(self, share: Share) -> None:
        group = share.group
        if group["project"]:
            self._choose(share)
        on = [i for i, state in enumerate(share.states) if "exp_avg" in state and "choice" not in state]
        split = [i for i, state in enumerate(share.states) if "choice" in state]
        off = [i for i, state in enumerate(share.states) if "exp_avg" not in state]
        if on:
            _adam(group, share.of(on).weights, share.of(on).slopes, share.of(on).states, group["weight_decay"])
        if off:
            self._without_state(group, share.of(off).weights, share.of(off).slopes)
        if split:
            self._move_split(share.of(split))

    def _move_split(self, share: Share) -> None:
        group, splitter = share.group, GradientSplitter(self.projection, share.group["density"])
        choices = share.state("choice")
        slopes = [splitter.down(slope, choice) for slope, choice in zip(share.slopes, choices)]
        if self.projection == "svd":
            ways = [torch.zeros_like(slope) for slope in slopes]
            _adam(group, ways, slopes, share.states, 0.0)
            rest = [splitter.rest(slope, choice) for slope, choice in zip(share.slopes, choices)]
            self._without_state(group, share.weights, rest)
            for w, way, choice in zip(share.weights, ways, choices):
                w.add_(splitter.up(way, choice, w).to(w.dtype))
            return
        weights = [splitter.down(w, choice) for w, choice in zip(share.weights, choices)]
        _adam(group, weights, slopes, share.states, group["weight_decay"])
        self._without_state(group, share.weights, share.slopes)
        for w, moved, choice in zip(share.weights, weights, choices):
            splitter.put(w, moved, choice)

    def _without_state(self, group: dict[str, Any], weights: list[Tensor], slopes: list[Tensor]) -> None:
        """Decay, and the step that needs no state."""
        if group["weight_decay"]:
            foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * group["state_free_scale"]
        if self.state_free != "none" and rate:
            foreach_add_(weights, foreach_sign(slopes) if self.state_free == "sign" else slopes, alpha=-rate)

    def _choose(self, share: Share) -> None:
        """Choose anew what is on, and begin its state anew, where the choice is of an earlier round."""
        group = share.group
        gap = group["update_gap"]
        round_number = 0 if gap == math.inf else self.steps // gap
        late = [i for i, state in enumerate(share.states) if state.get("round") != round_number]
        if not late:
            return
        splitter = GradientSplitter(self.projection, group["density"], self.order)
        place = next(i for i, candidate in enumerate(self.param_groups) if candidate is group)
        numbers = {id(p): number for number, p in enumerate(group["params"])}
        blocks: set[int] = set()
        if self.projection == "block":
            draws = self._generator(round_number, place)
            blocks = set(splitter.blocks(len(numbers), round_number, draws))
        for i in late:
            number, slope, state = numbers[id(share.parameters[i])], share.slopes[i], share.states[i]
            state.clear()
            state["round"] = round_number
            if self.projection == "block":
                if number in blocks:
                    state.update(_averages(slope))
            elif group["density"]:
                choice = splitter.choose(slope, self._generator(round_number, place, number))
                state.update(choice=choice, **_averages(splitter.down(slope, choice)))

    def _generator(self, *place: int) -> torch.Generator:
        seed = np.random.SeedSequence([self.seed, *place]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0]))

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Each projection and each step without a state; choices are made anew within the steps that a check takes."""
        return [
            lambda params: cls(params, 0.02, eps=1e-6, update_gap=5, density=0.5, project=True),
            lambda params: cls(params, 0.02, eps=1e-6, update_gap=5, projection="columns", project=True),
            lambda params: cls(
                params, 0.02, eps=1e-6, update_gap=5, projection="randk", weight_decay=1e-3, project=True
            ),
            lambda params: cls(params, 0.02, eps=1e-6, update_gap=5, projection="svd", project=True),
        ]


class FrugalAdamW(FRUGAL):
    """:class:`FRUGAL` as it was published: AdamW with a decay of 0.01, and signs for all that is off.

    Args:
        params: as there; so are lr, betas, eps, density, update_gap, projection, state_free_scale and generator.
        weight_decay: lambda >= 0.
        **options: those of :class:`FRUGAL`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2, 2))
        >>> optimizer = FrugalAdamW([{"params": [w], "project": True}], lr=0.1, density=0.0)
        >>> w.grad = torch.tensor([[5.0, -0.1], [0.0, 2.0]])
        >>> optimizer.step()
        >>> w.data
        tensor([[0.8990, 1.0990],
                [0.9990, 0.8990]])

    Source: FRUGAL: Memory-Efficient Optimization by Reducing State Overhead, arXiv:2411.07837.
    """

    name = "frugal_adamw"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        density: float = 0.25,
        update_gap: float = 200,
        projection: str = "block",
        state_free_scale: float = 1.0,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        given = (lr, betas, eps, weight_decay, density, update_gap, projection, "sign", state_free_scale, generator)
        super().__init__(params, *given, **options)

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Blocks in turn."""
        return [lambda params: cls(params, 0.02, eps=1e-6, update_gap=5, order="descending", project=True)]


def _averages(like: Tensor) -> dict[str, Any]:
    first, second = (torch.zeros(like.shape, dtype=like.dtype, device=like.device) for _ in range(2))
    return {"step": torch.zeros((), dtype=torch.float32, device=like.device), "exp_avg": first, "exp_avg_sq": second}


def _adam(
    group: dict[str, Any], weights: list[Tensor], slopes: list[Tensor], states: list[dict[str, Any]], decay: float
) -> None:
    """AdamW's step in one pass, in place."""
    beta1, beta2 = group["betas"]
    dense = [w.contiguous() for w in weights]
    adamw(
        dense,
        [slope.to(w.dtype).contiguous() for slope, w in zip(slopes, dense)],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=decay,
        eps=group["eps"],
        maximize=False,
    )
    for w, moved in zip(weights, dense):
        if moved is not w:
            w.copy_(moved)


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] < matrix.shape[1]
