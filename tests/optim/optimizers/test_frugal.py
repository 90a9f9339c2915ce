"""FRUGAL: the facts of its card, the published update in a naive loop of float64, choices, groups of a model."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.optim.optimizers import FRUGAL, FrugalAdamW, GradientSplitter, frugal_param_groups

PROJECTIONS = ("block", "columns", "randk", "svd")


def parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def slopes(params, step):
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def train(params, optimizer, steps, first=0):
    for step in range(first, first + steps):
        for p, slope in zip(params, slopes(params, step)):
            p.grad = slope
        optimizer.step()


def weights(params):
    return [p.detach().clone() for p in params]


def close(a, b, tolerance=1e-12):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(
            torch.as_tensor(x), torch.as_tensor(y, dtype=torch.float64), rtol=tolerance, atol=tolerance
        )


def split(params, **options):
    return FRUGAL([{"params": params, "project": True}], **options)


@pytest.mark.holds("frugal", 1)
@pytest.mark.parametrize("projection", ["block", "columns", "randk"])
def test_all_on_is_adamw_that_begins_anew(projection):
    options = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    for gap in (math.inf, 3):
        ours, theirs = parameters((3, 4), (5,)), parameters((3, 4), (5,))
        optimizer = split(ours, projection=projection, density=1.0, update_gap=gap, **options)
        train(ours, optimizer, 8)
        for first in range(0, 8, 8 if gap == math.inf else 3):
            train(theirs, torch.optim.AdamW(theirs, **options), min(8 if gap == math.inf else 3, 8 - first), first)
        close(weights(ours), weights(theirs))


@pytest.mark.holds("frugal", 1)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_nothing_on_moves_by_signs(projection):
    params = parameters((3, 4), (5,))
    before = weights(params)
    optimizer = split(params, lr=0.1, projection=projection, density=0.0, state_free_scale=0.5, update_gap=2)
    train(params, optimizer, 3)
    wanted = [w - 0.05 * sum(torch.sign(slopes(params, t)[i]) for t in range(3)) for i, w in enumerate(before)]
    close(weights(params), wanted)
    assert not any("exp_avg" in state for state in optimizer.state.values())


def with_column(column, count, **options):
    """Over ones, with a seed whose first choice is this column."""
    for seed in range(100):
        pair = []
        for _ in range(2):
            w = nn.Parameter(torch.ones(2, count, dtype=torch.float64))
            w.grad = torch.zeros_like(w)
            generator = torch.Generator().manual_seed(seed)
            pair.append((w, split([w], projection="columns", generator=generator, **options)))
        w, first = pair[0]
        first.step()
        if first.state[w]["choice"].tolist() == [column]:
            return pair[1]
    raise AssertionError("no seed")


@pytest.mark.holds("frugal", 2)
def test_two_steps_with_one_column_on():
    w, optimizer = with_column(1, 4, lr=0.1)
    w.grad = torch.tensor([[0.3, -0.4, 0.1, 0.2], [0.5, 0.6, -0.7, 0.0]], dtype=torch.float64)
    optimizer.step()
    close([w.detach()], [[[0.9, 1.1, 0.9, 0.9], [0.9, 0.9, 1.1, 1.0]]], 1e-7)  # eps is 1e-8 beside gradients of 0.4
    w.grad = torch.tensor([[0.1, 0.2, 0.1, -0.2], [-0.5, 0.3, 0.7, 1.0]], dtype=torch.float64)
    optimizer.step()
    close([w.detach()], [[[0.8, 1.126634, 0.8, 1.0], [1.0, 0.806782, 1.0, 0.9]]], 1e-6)


@pytest.mark.holds("frugal", 3)
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("density", [0.0, 0.25, 0.5, 1.0])
def test_both_parts_are_orthogonal_and_sum_to_the_gradient(projection, density):
    gradients = [p.detach() for p in parameters((3, 7), (7, 3), (4,), (2, 3, 2, 2), ())]
    splitter = GradientSplitter(projection, density)
    on, off = splitter.split(gradients, generator=torch.Generator().manual_seed(3))
    for g, a, b in zip(gradients, on, off, strict=True):
        assert a.shape == b.shape == g.shape
        close([a + b], [g])
        assert abs(float((a * b).sum())) <= 1e-14 * float(g.square().sum())
    flat = torch.cat([a.flatten() for a in on])
    assert bool((flat == 0).all()) == (density == 0.0)
    if density == 1.0:
        assert all(not bool(b.any()) for b in off)


def test_the_subspace_is_that_of_the_largest_singular_values():
    for shape in ((3, 7), (7, 3)):
        (g,) = (p.detach() for p in parameters(shape))
        on, off = GradientSplitter("svd", 2 / 3).split([g])
        u, s, v = np.linalg.svd(g.numpy())
        close(on, [(u[:, :2] * s[:2]) @ v[:2]])
        close(off, [s[2] * np.outer(u[:, 2], v[2])])
    (square,) = (p.detach() for p in parameters((4, 4)))
    (choice,) = GradientSplitter("svd", 0.25).choose(square).mT
    close([choice.abs()], [np.abs(np.linalg.svd(square.numpy())[2][0])])  # right vectors, as it is not wider than high


def test_what_a_projection_leaves_by_rounding_has_no_sign():
    """The gradient of one sample has rank 1: all of it is on."""
    generator = torch.Generator().manual_seed(0)
    g = torch.outer(torch.randn(40, generator=generator), torch.randn(60, generator=generator))
    _, off = GradientSplitter("svd", 1 / 40).split([g])
    assert not bool(off[0].any())
    g[3, 5] *= 1.001  # and what is more than rounding stays
    _, off = GradientSplitter("svd", 1 / 40).split([g])
    assert bool(off[0].any())


def published(w, gradients, gap, choices, *, free="sign", lr=0.1, scale=0.5, decay=0.2, beta=(0.9, 0.999)):
    """The update of the published code for one matrix, in numpy; a choice is columns, or a basis of right vectors."""
    w = w.copy()
    for t, g in enumerate(gradients):
        if t % gap == 0:
            choice, m, v, count = choices[t // gap], 0.0, 0.0, 0
        w *= 1 - lr * decay
        count += 1
        down = g @ choice
        m = beta[0] * m + (1 - beta[0]) * down
        v = beta[1] * v + (1 - beta[1]) * down**2
        step = lr / (1 - beta[0] ** count) * m / (np.sqrt(v) / np.sqrt(1 - beta[1] ** count) + 1e-8)
        w -= step @ choice.T
        rest = g - down @ choice.T
        if free != "none":
            w -= lr * scale * (np.sign(rest) if free == "sign" else rest)
    return w


@pytest.mark.parametrize("free", ["sign", "sgd", "none"])
@pytest.mark.parametrize("projection", ["columns", "svd"])
def test_the_published_update_in_a_naive_loop(projection, free):
    (w,) = parameters((6, 4))
    start, gap, steps = w.detach().numpy().copy(), 3, 8
    optimizer = split(
        [w], lr=0.1, weight_decay=0.2, density=0.5, update_gap=gap, projection=projection, state_free=free,
        state_free_scale=0.5,
    )  # fmt: skip
    choices, gradients = [], [slopes([w], t)[0] for t in range(steps)]
    for t, g in enumerate(gradients):
        w.grad = g.clone()
        optimizer.step()
        if t % gap == 0:
            choice = optimizer.state[w]["choice"]
            choices.append(np.eye(4)[:, choice.numpy()] if projection == "columns" else choice.numpy().copy())
    close([w.detach()], [published(start, [g.numpy() for g in gradients], gap, choices, free=free)], 1e-10)
    assert len({tuple(np.round(c, 9).flatten()) for c in choices}) > 1, "never chosen anew"


@pytest.mark.holds("frugal", 4)
def test_without_a_step_off_the_choice_it_is_galore_or_badam():
    (w,) = parameters((6, 4))
    before = w.detach().clone()
    optimizer = split([w], lr=0.1, projection="svd", density=0.25, state_free="none", update_gap=4)
    train([w], optimizer, 4)
    basis = optimizer.state[w]["choice"]
    moved = w.detach() - before
    assert basis.shape == (4, 1)
    assert int(torch.linalg.matrix_rank(moved)) == 1
    close([moved @ basis @ basis.T], [moved])
    reduced = nn.Parameter(torch.zeros(6, 1, dtype=torch.float64))  # GaLore: Adam on the projected gradients
    adam = torch.optim.Adam([reduced], lr=0.1)
    for t in range(4):
        reduced.grad = slopes([w], t)[0] @ basis
        adam.step()
    close([moved], [reduced.detach() @ basis.T])
    params = parameters(*[(2, 2)] * 8)
    before = weights(params)
    optimizer = split(params, lr=0.1, density=0.25, state_free="none", update_gap=4)
    train(params, optimizer, 4)
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(params))]
    assert sum(moved) == 2
    twins = [nn.Parameter(w) for w in before]  # BAdam: Adam on these blocks alone
    adam = torch.optim.Adam([twin for twin, flag in zip(twins, moved) if flag], lr=0.1)
    train(twins, adam, 4)
    close(weights(params), weights(twins))


@pytest.mark.holds("frugal", 5)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_bytes_of_state(projection):
    shapes = [(64, 32), (32, 64), (16, 128), (128, 16)]
    params = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    other = nn.Parameter(torch.zeros(100))
    groups = [{"params": params, "project": True}, {"params": [other]}]
    optimizer = FRUGAL(groups, projection=projection, update_gap=2)
    for step in range(5):
        for p in (*params, other):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        averages = [
            state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
            if name in state
        ]  # fmt: skip
        assert sum(averages) == 4 * 2 * (sum(p.numel() for p in params) // 4 + 100)
        choices = sum(state["choice"].numel() for state in optimizer.state.values() if "choice" in state)
        bases = 2 * 8 * 32 + 2 * 4 * 16
        wanted = {"block": 0, "columns": (32 + 64 + 128 + 16) // 4, "randk": 4 * 2048 // 4, "svd": bases}
        assert choices == wanted[projection]


@pytest.mark.holds("frugal", 6)
def test_what_it_refuses():
    for density in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="density: expected a number >= 0 and <= 1"):
            split(parameters((2, 2)), density=density)
        with pytest.raises(ValueError, match="density: expected"):
            GradientSplitter("svd", density)
    for wrong in (
        {"projection": "rows"}, {"state_free": "lion"}, {"order": "mirror"}, {"update_gap": 0}, {"lr": -1.0},
        {"state_free_scale": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1e-8}, {"weight_decay": -0.1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            split(parameters((2, 2)), **wrong)
    for wrong in ({"update_gap": 2.5}, {"betas": 0.9}, {"generator": 3}, {"foreach": 2}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))}: expected"):
            split(parameters((2, 2)), **wrong)
    with pytest.raises(TypeError, match="project: expected True or False"):
        FRUGAL([{"params": parameters((2, 2)), "project": 1.0}])


@pytest.mark.holds("frugal", 7)
def test_how_many_are_on():
    splitter = GradientSplitter("columns", 0.25)
    assert [splitter.choose(torch.zeros(2, n)).numel() for n in (1, 3, 6, 10)] == [1, 1, 2, 3]
    assert [len(GradientSplitter("block", 0.25).blocks(n)) for n in (1, 2, 6, 0)] == [1, 1, 2, 0]
    assert GradientSplitter("svd", 0.25).choose(torch.eye(3, 5)).shape == (3, 1)
    assert GradientSplitter("randk", 0.25).choose(torch.zeros(2, 3)).numel() == 2
    assert [GradientSplitter("columns", 0.0).share(n) for n in (0, 1, 1000)] == [0, 0, 0]


@pytest.mark.holds("frugal", 7)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_parameter_without_gradient_changes_nothing_of_the_others(projection):
    results = []
    for absent in (False, True):
        params = parameters((4, 6), (4, 6), (5, 4), (6, 4))
        options = {"projection": projection, "density": 0.5, "update_gap": 2, "lr": 0.1, "weight_decay": 0.1}
        optimizer = split(params, **options)
        for step in range(7):
            for p, slope in zip(params, slopes(params, step)):
                p.grad = slope
            if absent and step in (0, 2, 3):  # the first step of all, a whole round
                params[0].grad = None
                before = copy.deepcopy((params[0].detach(), optimizer.state.get(params[0])))
            optimizer.step()
            if absent and step in (0, 2, 3):
                assert torch.equal(before[0], params[0])
                assert str(before[1]) == str(optimizer.state.get(params[0]))
            if step >= 1 and step not in (2, 3):
                assert optimizer.state[params[0]]["round"] == step // 2
        results.append(weights(params))
    close(results[0][1:], results[1][1:], 0.0)
    assert not torch.equal(results[0][0], results[1][0])


def test_each_block_has_its_turn():
    orders = {
        "ascending": [[0, 1], [2, 3], [0, 4], [1, 2], [3, 4]],
        "descending": [[3, 4], [1, 2], [0, 4], [2, 3], [0, 1]],
    }
    for order, wanted in orders.items():
        splitter = GradientSplitter("block", 0.4, order)
        assert [splitter.blocks(5, turn) for turn in range(5)] == wanted
        params = parameters(*[(2,)] * 5)
        optimizer = split(params, density=0.4, order=order, update_gap=2)
        for turn in wanted:
            train(params, optimizer, 2)
            assert [i for i, p in enumerate(params) if "exp_avg" in optimizer.state[p]] == turn


def test_choices_come_from_the_seed_alone():
    """So ranks that draw other numbers for their data choose alike."""
    ends = []
    for seed in (None, None, 1):
        torch.manual_seed(len(ends))
        params = parameters((4, 8), (8, 4))
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        optimizer = split(params, projection="columns", update_gap=1, lr=0.1, generator=generator)
        train(params, optimizer, 6)
        ends.append(weights(params))
    close(ends[0], ends[1], 0.0)
    assert not torch.equal(ends[0][0], ends[2][0])


def test_other_layouts_in_memory_take_the_same_steps():
    for projection in PROJECTIONS:
        ends = []
        for layout in (torch.contiguous_format, torch.channels_last):
            (w,) = parameters((3, 4, 2, 2))
            w = nn.Parameter(w.detach().contiguous(memory_format=layout))
            train([w], split([w], projection=projection, density=0.5, update_gap=2, lr=0.1), 5)
            ends.append(w.detach().contiguous())
        close(ends[:1], ends[1:], 0.0)


def test_frugal_adamw_is_frugal_with_decay_and_signs():
    ours, theirs = parameters((4, 6), (3, 3)), parameters((4, 6), (3, 3))
    train(ours, FrugalAdamW([{"params": ours, "project": True}], 0.1, projection="columns", update_gap=2), 5)
    train(theirs, split(theirs, lr=0.1, weight_decay=0.01, projection="columns", update_gap=2), 5)
    close(weights(ours), weights(theirs), 0.0)
    with pytest.raises(TypeError):
        FrugalAdamW(ours, state_free="sgd")


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.symbols = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 5, bias=False)


def test_groups_of_a_model():
    model = Language()
    rest, inside = (group["params"] for group in frugal_param_groups(model))
    names = {id(p): name for name, p in model.named_parameters()}
    wanted = [f"blocks.{i}.{name}.weight" for i in range(2) for name in ("linear1", "linear2", "self_attn.out_proj")]
    wanted += [f"blocks.{i}.self_attn.in_proj_weight" for i in range(2)]
    assert {names[id(p)] for p in inside} == set(wanted)
    assert {id(p) for p in (*rest, *inside)} == set(names)
    assert len(rest) + len(inside) == len(names)
    model.blocks[0].requires_grad_(False)
    assert len(frugal_param_groups(model)[1]["params"]) == 4
    assert [names[id(p)] for p in frugal_param_groups(model, [model.head])[1]["params"]] == ["head.weight"]
    with pytest.raises(ValueError, match="blocks: expected modules with linear layers that train"):
        frugal_param_groups(nn.Sequential(nn.Linear(2, 2)))
