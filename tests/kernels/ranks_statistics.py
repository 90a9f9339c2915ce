"""What ranks check of statistics of tokens: parts of a head, shares of the tokens."""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
from ranks_common import CLASSES, cut, groups, joined, problem, shares, summed

from steepest.kernels import VocabularyShard, token_statistics
from steepest.kernels.token_statistics import CONSTANT
from steepest.kernels.token_statistics import WANTED as ALL

WANTED = tuple(name for name in ALL if name not in CONSTANT)
COLUMNS = torch.tensor([100, 0, 100, 57])


def costs_of(target, classes=CLASSES):
    generator = torch.Generator().manual_seed(3)
    table = torch.rand(3, classes, generator=generator, dtype=torch.float64)
    return table, torch.randint(3, target.shape, generator=generator)


def value_and_gradients(numbers, leaves, mine=slice(None)):
    """All numbers side by side, and the gradient of their sum, each with a weight of its own place and token."""
    own = [numbers.label, numbers.log_z, numbers.log_p, numbers.entropy, numbers.cost]
    own = [value.unsqueeze(-1) for value in own if value is not None]
    values = torch.cat(own if numbers.columns is None else [*own, numbers.columns], -1)
    generator = torch.Generator().manual_seed(4)
    upstream = torch.randn(20, *values.shape[1:], generator=generator, dtype=torch.float64)[: mine.stop or len(values)]
    upstream = upstream[mine].to(values.dtype)
    return values.detach(), torch.autograd.grad(values, leaves, upstream)


def compare(group, sizes=None, dtype=torch.float64, given=None, both=False, tolerance=1e-11, **options):
    """A part of the head (and of the tokens) on each rank against one rank with everything."""
    given, mine = shares(group) if both else (given or problem(), slice(None))
    hidden, weight, bias, target = given
    tensors = [t.to(dtype) for t in (hidden, weight, bias)]
    table, which = costs_of(target, len(weight))
    own = cut(len(weight), group, sizes)
    use = {name: options.pop(name) for name in ("columns", "costs") if name in options}
    further = {"columns": COLUMNS} if use.get("columns") else {}

    def told(part, tokens):
        return {**further, "costs": (table[:, part], which[tokens])} if use.get("costs") else further

    whole = [t.double().clone().requires_grad_() for t in tensors]
    plain = token_statistics(whole[0], target, whole[1], bias=whole[2], **told(slice(None), slice(None)), **options)
    wanted, slopes = value_and_gradients(plain, whole)
    leaves = [t.clone().requires_grad_() for t in (tensors[0][mine], tensors[1][own], tensors[2][own])]
    ours = token_statistics(
        leaves[0], target[mine], leaves[1], bias=leaves[2], **told(own, mine), **options, group=group,
        token_group=group if both else None,
    )  # fmt: skip
    values, own_slopes = value_and_gradients(ours, leaves, mine)
    assert torch.equal(ours.valid, target[mine] >= 0)
    got = [values, joined(own_slopes[0], group) if both else own_slopes[0], *(joined(s, group) for s in own_slopes[1:])]
    for a, b in zip(got, [wanted[mine], *slopes]):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def statistics_of_parts():
    every = {"want": WANTED, "columns": True, "costs": True}
    for group in groups():
        for memory, (softcap, temperature) in itertools.product(("auto", 1500), ((None, 1.0), (3.0, 0.7))):
            compare(group, softcap=softcap, temperature=temperature, memory=memory, **every)
        for want in (("label",), ("entropy",), ("log_p", "log_z")):
            compare(group, want=want)
        compare(group, want=("label",), columns=True)
        compare(group, want=(), costs=True)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
            compare(group, dtype=dtype, tolerance=tolerance, **every)


def statistics_of_any_parts():
    """Parts of any sizes, an empty one among them, asked for and told."""
    every = {"want": WANTED, "columns": True, "costs": True}
    for group in groups():
        ranks = dist.get_world_size(group)
        compare(group, sizes=[0] + [1] * (ranks - 2) + [CLASSES - ranks + 2], **every)
        compare(group, sizes=[CLASSES - ranks + 1] + [1] * (ranks - 1), **every)
        hidden, weight, _, target = problem()
        own = cut(CLASSES, group)
        shard = VocabularyShard.of(group, own.stop - own.start)
        told = token_statistics(hidden, target, weight[own], group=shard)
        torch.testing.assert_close(told.log_z, token_statistics(hidden, target, weight).log_z, rtol=1e-12, atol=0)


def statistics_of_shares():
    """Each rank its own tokens too."""
    for group in groups():
        compare(group, both=True, want=WANTED, columns=True, costs=True)
        compare(group, both=True, want=("log_p",), memory=1500)


def confident_rows_on_ranks():
    """Large logits and a label of probability nearly one keep their digits; masked classes count nothing."""
    for group in groups():
        own = cut(CLASSES, group)
        for best, label in itertools.product((0, CLASSES - 1), (0, CLASSES - 1)):
            z = torch.full((1, CLASSES), -torch.inf)
            z[0, best], z[0, CLASSES // 2], z[0, label] = 1e4, 1e4 - 12.0, 1e4 if best == label else 1e4 - 9.0
            bias, leaf = z[0, own].clone().requires_grad_(), z.double().requires_grad_()
            got = token_statistics(
                torch.zeros(1, 1), torch.tensor([label]), torch.zeros(len(bias), 1), bias=bias, want=WANTED, group=group
            )
            exact = token_statistics(leaf, torch.tensor([label]), want=WANTED)
            for name in ("log_p", "entropy", "label"):
                torch.testing.assert_close(getattr(got, name).double(), getattr(exact, name), rtol=1e-5, atol=0)
            for name in ("log_p", "entropy"):
                (slope,) = torch.autograd.grad(getattr(got, name).sum(), bias, retain_graph=True)
                (wanted,) = torch.autograd.grad(getattr(exact, name).sum(), leaf, retain_graph=True)
                torch.testing.assert_close(slope.double(), wanted[0, own], rtol=1e-4, atol=1e-6)


def nothing_to_count_on_ranks():
    hidden, weight, _, target = problem()
    for group, both in itertools.product(groups(), (False, True)):
        leaves = [hidden.clone().requires_grad_(), weight[cut(CLASSES, group)].clone().requires_grad_()]
        own = token_statistics(
            leaves[0], torch.full_like(target, -100), leaves[1], group=group, token_group=group if both else None
        )
        (own.log_z.sum() + own.entropy.sum()).backward()
        assert not own.log_z.any()
        assert not any(leaf.grad.any() for leaf in leaves)
        dirty = hidden.clone()
        dirty[target < 0] = torch.nan
        value = token_statistics(dirty, target, weight[cut(CLASSES, group)], group=group).log_z
        torch.testing.assert_close(value, token_statistics(hidden, target, weight).log_z)


def loss_of_statistics_on_ranks():
    """A policy's loss from a head that is cut: what one rank gives, in value and gradients."""
    from steepest.core.group_policy import GroupPolicyLoss

    hidden, weight, _, target = problem()
    generator = torch.Generator().manual_seed(5)
    old, advantages = -3 * torch.rand(target.shape, generator=generator).double(), torch.tensor([1.0, -1.0, 0.5])

    def loss(h, w, **ranks):
        own = token_statistics(h, target, w, want=("log_p",), **ranks)
        return GroupPolicyLoss("gspo")(own.log_p, old, advantages, own.valid)

    whole = [t.clone().requires_grad_() for t in (hidden, weight)]
    wanted = torch.autograd.grad(loss(*whole), whole)
    for group in groups():
        leaves = [hidden.clone().requires_grad_(), weight[cut(CLASSES, group)].clone().requires_grad_()]
        of_hidden, of_weight = torch.autograd.grad(loss(*leaves, group=group), leaves)
        torch.testing.assert_close(of_hidden, wanted[0], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(joined(of_weight, group), wanted[1], rtol=1e-11, atol=1e-13)
        assert torch.isfinite(summed(of_weight.sum(), group))


def statistics_refused_on_all_ranks():
    hidden, weight, _, target = problem()
    world, rank = dist.group.WORLD, dist.get_rank()
    part = weight[cut(CLASSES, world)]
    pair = groups()[1]
    fewer = 3 - (rank == 1)
    for words, arguments, options in (
        ("same tokens", (hidden[:fewer], target[:fewer], part), {"group": world}),
        ("target", (hidden, target + CLASSES, part), {"group": world}),
        ("columns", (hidden, target, part), {"group": world, "columns": torch.tensor([CLASSES])}),
        ("costs", (hidden, target, part), {"group": world, "costs": costs_of(target)}),
        ("group", (hidden @ weight.T, target), {"group": world}),
        ("group", (hidden, target, weight), {"token_group": world}),
        ("token_group", (hidden, target, part), {"group": world, "token_group": pair}),
        ("want", (hidden, target, part), {"group": world, "want": ("label", "mean")}),
    ):
        try:
            token_statistics(*arguments, **options)
        except ValueError as error:
            if words not in str(error):
                raise
        else:
            raise AssertionError(words)
