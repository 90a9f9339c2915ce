"""What ranks check of DTensors and of FSDP2's weights."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from conftest import gradients, materialised
from ranks_common import (
    CLASSES,
    WIDTH,
    expect,
    joined,
    problem,
    references,
    shares,
    summed,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn import functional

from steepest.kernels import linear_cross_entropy


def placed_tensors():
    """DTensors mean wholes: loss and gradients of one rank, in the placements of the tensors."""
    row, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    tall = init_device_mesh("cpu", (4, 1))
    r, rows, steps = Replicate(), Shard(0), Shard(1)
    layouts = [
        (row, [r], [rows]),
        (row, [rows], [rows]),
        (row, [steps], [rows]),
        (row, [rows], [r]),
        (row, [r], [r]),
        (row, [r], [Shard(1)]),
        (grid, [rows, r], [r, rows]),
        (grid, [rows, rows], [r, rows]),
        (grid, [rows, steps], [r, rows]),
        (grid, [rows, steps], [r, r]),
        (tall, [rows, r], [rows, rows]),
    ]
    for (mesh, of_hidden, of_weight), classes, reduction in itertools.product(layouts, (CLASSES, 5), ("mean", "none")):
        hidden, weight, bias, target = problem((4, 6), classes)
        upstream = torch.rand((4, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        upstream = upstream if reduction == "none" else torch.tensor(1.0)
        exact, _ = references([hidden, weight, bias], target, torch.float64, upstream, reduction=reduction, z_loss=0.1)
        of_bias = [rows if each.is_shard() and each.dim == 0 else r for each in of_weight]
        leaves = [
            distribute_tensor(each, mesh, places).requires_grad_()
            for each, places in ((hidden, of_hidden), (weight, of_weight), (bias, of_bias))
        ]
        y = distribute_tensor(target, mesh, of_hidden)
        loss = linear_cross_entropy(leaves[0], leaves[1], y, bias=leaves[2], reduction=reduction, z_loss=0.1)
        assert type(loss) is torch.Tensor
        if reduction == "none":
            local = distribute_tensor(upstream, mesh, of_hidden).to_local()
            (loss * local).sum().backward()
            torch.testing.assert_close(loss, distribute_tensor(exact[0], mesh, of_hidden).to_local())
        else:
            loss.backward()
            torch.testing.assert_close(loss.detach(), exact[0], rtol=1e-12, atol=0)
        for leaf, truth in zip(leaves, exact[1:]):
            assert leaf.grad.placements == leaf.placements
            torch.testing.assert_close(leaf.grad.full_tensor(), truth, rtol=1e-11, atol=1e-13)


def placed_weight_beside_plain_hidden():
    mesh = init_device_mesh("cpu", (4,))
    hidden, weight, bias, target = problem()
    exact, _ = references([hidden, weight, bias], target, torch.float64, torch.tensor(1.0))
    for group in (None, mesh.get_group()):  # gathered, or a part of the vocabulary: the same where tokens are
        leaf = hidden.clone().requires_grad_()
        w, b = (distribute_tensor(each, mesh, [Shard(0)]).requires_grad_() for each in (weight, bias))
        loss = linear_cross_entropy(leaf, w, target, bias=b, process_group=group)
        loss.backward()
        for got, truth in zip((loss.detach(), leaf.grad, w.grad.full_tensor(), b.grad.full_tensor()), exact):
            torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-13)
        assert w.grad.placements == w.placements
    share = hidden[dist.get_rank() % 3], target[dist.get_rank() % 3]
    (hidden, weight, _, target), mine = shares(dist.group.WORLD)
    exact, _ = references([hidden, weight], target, torch.float64, torch.tensor(1.0))
    w = distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
    for both in (False, True):
        w.grad, leaf = None, hidden[mine].clone().requires_grad_()
        group = mesh.get_group()
        linear_cross_entropy(leaf, w, target[mine], token_group=group, process_group=group if both else None).backward()
        found = w.grad.full_tensor() * (1 if both else 4)
        torch.testing.assert_close(found, exact[2], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(joined(leaf.grad, group), exact[1], rtol=1e-11, atol=1e-13)
    partial = DTensor.from_local(hidden, mesh, [Partial()])
    expect(ValueError, "hidden", partial, w, target)
    expect(ValueError, "hidden", distribute_tensor(hidden, mesh, [Shard(2)]), w, target)
    expect(ValueError, "shift", distribute_tensor(hidden, mesh, [Shard(1)]), w, target, shift=1)
    expect(ValueError, "token_group", distribute_tensor(hidden, mesh, [Shard(0)]), w, target, token_group=group)
    expect(TypeError, "target", *share[:1], w, distribute_tensor(share[1], mesh, [Replicate()]))
    other = distribute_tensor(weight, mesh, [Replicate()])
    expect(ValueError, "weight", hidden, other, target, process_group=group)


class Model(nn.Module):
    """Hidden states, and a head that may be the embedding."""

    def __init__(self, tied=False):
        super().__init__()
        self.table = nn.Embedding(CLASSES, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=not tied)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, words, logits=False):
        hidden = self.body(self.table(words)).tanh()
        return self.head(hidden) if logits else hidden


def fully_sharded_head():
    fully_sharded_heads(("resharded",), (False,))


def fully_sharded_heads(hows=("head", "root", "resharded"), ties=(False, True)):
    """The loss and gradients of FSDP2's own call of the head, wherever the weights are when the loss is formed."""
    meshes = [init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "part"))]
    words = torch.randint(CLASSES, (4, 2, 7), generator=torch.Generator().manual_seed(7))[dist.get_rank()]
    target = words.roll(-1, 1)
    for mesh, tied, how in itertools.product(meshes, ties, hows):
        if tied and how == "head":
            continue
        found = []
        for fused in (False, True):
            torch.manual_seed(11)
            model = Model(tied).double()
            if how == "head":
                fully_shard(model.head, mesh=mesh)
            fully_shard(model, mesh=mesh, reshard_after_forward=True if how == "resharded" else None)
            for _ in range(2):  # gradients add up
                if fused:
                    loss = linear_cross_entropy(model(words), model.head.weight, target, bias=model.head.bias)
                else:
                    loss = functional.cross_entropy(model(words, logits=True).flatten(0, 1), target.flatten())
                loss.backward()
            found.append([loss.detach(), *[each.grad.full_tensor() for each in model.parameters()]])
        for mine, theirs in zip(*found):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def averaged_by_data_parallel():
    """A loss over the tokens of all, times the ranks, under DDP and FSDP2: the gradient of one rank with all."""
    (_, _, _, target), mine = shares(dist.group.WORLD, uneven=False)
    words = target.clamp_min(0)
    torch.manual_seed(11)
    whole = Model().double()
    loss = materialised(whole(words), whole.head.weight, target, bias=whole.head.bias)
    loss.backward()
    for kind in ("ddp", "fsdp"):
        torch.manual_seed(11)
        model = Model().double()
        if kind == "ddp":
            head, wrapped = model.head, nn.parallel.DistributedDataParallel(LossInside(model))
            got = wrapped(words[mine], target[mine])
        else:
            fully_shard(model)
            head = model.head
            got = linear_cross_entropy(
                model(words[mine]), head.weight, target[mine], bias=head.bias, token_group=dist.group.WORLD
            )
        torch.testing.assert_close(got, loss, rtol=1e-12, atol=0)
        (got * dist.get_world_size()).backward()
        for mine_, theirs in zip(model.parameters(), whole.parameters()):
            grad = mine_.grad.full_tensor() if kind == "fsdp" else mine_.grad
            torch.testing.assert_close(grad, theirs.grad, rtol=1e-11, atol=1e-13)


class LossInside(nn.Module):
    """The loss as part of what DDP wraps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, words, target):
        head = self.model.head
        return linear_cross_entropy(
            self.model(words), head.weight, target, bias=head.bias, token_group=dist.group.WORLD
        )


def sharded_twice():
    """FSDP2 over one dimension of a mesh, parts of the vocabulary over the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
    (hidden, weight, _, target), mine = shares(mesh.get_group("data"), uneven=False)
    head = nn.Linear(WIDTH, CLASSES + 3, bias=False).double()
    weight = torch.cat([weight, weight[:3]])
    head.weight = nn.Parameter(distribute_tensor(weight, mesh["classes"], [Shard(0)]))
    fully_shard(head, mesh=mesh["data"])
    for placed in (False, True):
        head.weight.grad, leaf = None, hidden[mine].clone()
        leaf = distribute_tensor(leaf, mesh["classes"], [Replicate()]) if placed else leaf
        group = None if placed else mesh.get_group("classes")
        loss = linear_cross_entropy(leaf.requires_grad_(), head.weight, target[mine], process_group=group)
        # the mean over the data-parallel ranks of losses that are means over as many tokens would be another loss
        own = materialised(hidden[mine], weight, target[mine])
        torch.testing.assert_close(loss.detach(), own, rtol=1e-12, atol=0)
        loss.backward()
        slope = gradients(lambda h, w: materialised(h, w, target[mine]), [hidden[mine], weight], torch.tensor(1.0))
        mean = summed(slope[2], mesh.get_group("data")) / 2
        torch.testing.assert_close(head.weight.grad.full_tensor(), mean, rtol=1e-11, atol=1e-13)
        found = leaf.grad.full_tensor() if placed else leaf.grad
        torch.testing.assert_close(found, slope[1], rtol=1e-11, atol=1e-13)
