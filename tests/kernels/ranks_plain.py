"""What ranks check of groups: parts of the vocabulary, shares of the tokens."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from conftest import gradients, materialised
from ranks_common import (
    ALL,
    CLASSES,
    MEMORY,
    OPTIONS,
    SHAPE,
    WIDTH,
    agree,
    cut,
    expect,
    groups,
    joined,
    luck,
    problem,
    references,
    shares,
    summed,
)
from torch.distributed.device_mesh import init_device_mesh

from steepest.core.gather import Shares
from steepest.kernels import VocabularyShard, linear_cross_entropy, pair_log_partition


def vocabulary(group, dtype=torch.float32, memory="auto", sizes=None, given=None, **options):
    """Parts of the vocabulary against one rank."""
    hidden, weight, bias, target = given or problem()
    use = options.pop("bias", False)
    tensors = [t.to(dtype) for t in ((hidden, weight, bias) if use else (hidden, weight))]
    lead = target[..., options.get("shift", 0) :].shape
    generator = torch.Generator().manual_seed(1)
    upstream = torch.rand(lead, generator=generator) if options.get("reduction") == "none" else torch.tensor(1.7)
    exact, plain = references(tensors, target, dtype, upstream, **options)
    own = cut(len(weight), group, sizes)
    parts = [tensors[0], *[t[own] for t in tensors[1:]]]

    def ours(h, w, b=None):
        return linear_cross_entropy(h, w, target, bias=b, process_group=group, memory=memory, **options)

    value, of_hidden, *rest = gradients(ours, parts, upstream)
    agree(
        [value, of_hidden, *[joined(each, group) for each in rest]],
        exact,
        plain,
        dtype,
        luck(tensors, target, dtype, **options),
    )


def every_option_alone():
    """A slab of the vocabulary at a time with two reductions; the third is the mean without its divisor."""
    ways = [
        *itertools.product([MEMORY["keep"]], ("mean", "sum", "none")),
        (MEMORY["slab"], "mean"),
        (MEMORY["slab"], "none"),
    ]
    for group, (memory, reduction) in itertools.product(groups(), ways):
        first = group is dist.group.WORLD and memory == "auto" and reduction == "mean"
        for name in (None, *OPTIONS) if first else (None,):
            options = {name: OPTIONS[name]} if name else {}
            vocabulary(group, torch.float64, memory, reduction=reduction, **options)
        vocabulary(group, torch.float32, memory, reduction=reduction, **OPTIONS)


def every_pair_of_options():
    """Each with every reduction, and with both ways through memory."""
    for group, (place, pair) in itertools.product(groups(), enumerate(itertools.combinations(OPTIONS, 2))):
        for number, reduction in enumerate(("mean", "sum", "none")):
            memory = tuple(MEMORY.values())[(place + number) % 2]
            vocabulary(group, torch.float64, memory, reduction=reduction, **{name: OPTIONS[name] for name in pair})


def half_types():
    for group, dtype, memory in itertools.product(groups(), (torch.bfloat16, torch.float16), MEMORY.values()):
        for reduction, name in itertools.product(("mean", "none"), (None, "softcap", "bias", "label_smoothing")):
            vocabulary(group, dtype, memory, reduction=reduction, **({name: OPTIONS[name]} if name else {}))


def parts_of_any_size():
    for group, memory in itertools.product(groups(), MEMORY.values()):
        reduction = "mean" if memory == "auto" else "none"
        ranks = dist.get_world_size(group)
        for sizes in ([CLASSES] + [0] * (ranks - 1), [0] * (ranks - 1) + [CLASSES], [1] * (ranks - 1) + [0]):
            sizes[sizes.index(max(sizes))] += CLASSES - sum(sizes)
            for dtype in (torch.float64, torch.bfloat16) if sizes[-1] > 1 else (torch.float64,):
                vocabulary(group, dtype, memory, sizes, reduction=reduction, label_smoothing=0.1, bias=True)
        vocabulary(group, torch.float64, memory, given=problem((7,), 3), reduction=reduction)


def statistics_with_ties():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randint(-2, 3, (*SHAPE, WIDTH), generator=generator).double()
    weight = torch.randint(-2, 3, (7, WIDTH), generator=generator).double().repeat(15, 1)[:CLASSES]
    target = problem()[3]
    target[0, 0] = (hidden[0, 0] @ weight.T).argmax()
    valid = target >= 0
    for group, memory, cap in itertools.product(groups(), MEMORY.values(), (None, 20.0)):
        z = hidden @ weight.T / 2.0 if cap is None else cap * torch.tanh(hidden @ weight.T / cap) / 2.0
        part = weight[cut(CLASSES, group)]
        _, found = linear_cross_entropy(
            hidden, part, target, process_group=group, memory=memory, softcap=cap, temperature=2.0, return_stats=True
        )
        best = torch.where(z == z.amax(-1, keepdim=True), torch.arange(CLASSES), CLASSES).amin(-1)
        torch.testing.assert_close(found.lse, z.logsumexp(-1) * valid)
        torch.testing.assert_close(found.entropy, torch.distributions.Categorical(logits=z).entropy() * valid)
        assert torch.equal(found.argmax, torch.where(valid, best, -1))
        assert torch.equal(found.correct, (best == target) & valid)
        assert found.correct[0, 0]


def nothing_counts():
    hidden, weight, bias, target = (t.float() if t.is_floating_point() else t for t in problem())
    for group, reduction, both in itertools.product(groups(), ("mean", "none"), (False, True)):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight[cut(CLASSES, group)], bias[cut(CLASSES, group)])]
        loss = linear_cross_entropy(
            *leaves[:2],
            torch.full_like(target, -100),
            bias=leaves[2],
            process_group=group,
            token_group=group if both else None,
            reduction=reduction,
        )
        loss.sum().backward()
        assert (loss == 0).all()
        assert all((leaf.grad == 0).all() for leaf in leaves)


def nothing_is_remembered():
    world, ranks = dist.group.WORLD, dist.get_world_size()
    for last in (CLASSES, CLASSES - 3, CLASSES + 5, CLASSES):  # one rank's size alone changes
        hidden, weight, _, target = problem(classes=last)
        target = target.clamp_max(CLASSES - 4)
        sizes = [20] * (ranks - 1) + [last - 20 * (ranks - 1)]
        vocabulary(world, torch.float64, sizes=sizes, given=(hidden, weight, None, target))
    for _ in range(3):  # a group of another order of sizes where one was destroyed
        group = dist.new_group(list(range(ranks)))
        vocabulary(group, torch.float64, sizes=[CLASSES - ranks + 1] + [1] * (ranks - 1))
        vocabulary(group, torch.float64, sizes=[1] * (ranks - 1) + [CLASSES - ranks + 1])
        dist.barrier(group)
        dist.destroy_process_group(group)


def a_shard_saves_the_asking():
    hidden, weight, _, target = problem()
    for group in groups():
        own = cut(CLASSES, group)
        shard = VocabularyShard.of(group, own.stop - own.start)
        assert shard == VocabularyShard(group, own.start, CLASSES)
        got = linear_cross_entropy(hidden, weight[own], target, process_group=shard)
        torch.testing.assert_close(got, materialised(hidden, weight, target), rtol=1e-12, atol=0)


def refusals_come_to_all_ranks():
    hidden, weight, _, target = problem()
    rank, world = dist.get_rank(), dist.group.WORLD
    part = weight[cut(CLASSES, world)]
    expect(ValueError, "same tokens", hidden[: 3 - (rank == 1)], part, target[: 3 - (rank == 1)], process_group=world)
    expect(ValueError, "target", hidden, part, target + CLASSES, process_group=world)
    expect(ValueError, "class indices", hidden, part, torch.rand(*SHAPE, CLASSES), process_group=world)
    expect(ValueError, "filter", hidden, part, target, process_group=world, filter="auto")
    expect(ValueError, "start", hidden, part, target, process_group=VocabularyShard(world, 90, CLASSES))
    expect(ValueError, "process_group", hidden, part, target, process_group="world")
    expect(ValueError, "token_group", hidden, weight, target, token_group=3)


def tokens(group, dtype, both, uneven, memory, **options):
    """Shares of the tokens, and with ``both`` parts of the vocabulary over the same ranks, against one rank."""
    (hidden, weight, bias, target), mine = shares(group, uneven)
    tensors = [t.to(dtype) for t in (hidden, weight, bias)]
    weights = torch.rand(target.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    reduction = options.get("reduction", "mean")
    lead = target[..., options.get("shift", 0) :].shape
    upstream = (
        torch.rand(lead, generator=torch.Generator().manual_seed(1)) if reduction == "none" else torch.tensor(1.7)
    )
    exact, plain = references(tensors, target, dtype, upstream, token_weight=weights, **options)
    own = cut(CLASSES, group) if both else slice(None)

    def ours(h, w, b):
        return linear_cross_entropy(
            h,
            w,
            target[mine],
            bias=b,
            token_weight=weights[mine],
            token_group=group,
            process_group=group if both else None,
            memory=memory,
            **options,
        )

    parts = [tensors[0][mine], *[t[own] for t in tensors[1:]]]
    value, of_hidden, *rest = gradients(ours, parts, upstream[mine] if reduction == "none" else upstream)
    value = joined(value, group) if reduction == "none" else value
    rest = [joined(each, group) if both else summed(each, group).to(each.dtype) for each in rest]
    agree([value, joined(of_hidden, group), *rest], exact, plain, dtype, luck(tensors, target, dtype, **options))


def shares_of_the_tokens(both=False):
    """Class weights in every reduction; without them, and in float32, the mean, whose divisor they change."""
    c = OPTIONS["class_weight"]
    ways = [(torch.float64, reduction, c) for reduction in ("mean", "sum", "none")]
    ways += [(torch.float64, "mean", None), (torch.float32, "mean", c)]
    for group, (dtype, reduction, weights) in itertools.product(groups(), ways):
        tokens(group, dtype, both, True, "auto", reduction=reduction, class_weight=weights, z_loss=0.1)


def shares_with_every_option():
    every_share(False)
    every_share(True)


def every_share(both):
    dtypes = (torch.float64, torch.float32, torch.bfloat16) if both else (torch.float64, torch.float32)
    for group, reduction, uneven in itertools.product(groups(), ("mean", "sum", "none"), (True, False)):
        for dtype in dtypes:
            tokens(group, dtype, both, uneven, "auto", reduction=reduction)
        for memory in MEMORY.values():
            c = OPTIONS["class_weight"]
            tokens(group, torch.float64, both, uneven, memory, reduction=reduction, shift=1, class_weight=c, **ALL)
        tokens(group, torch.float64, both, uneven, "auto", reduction=reduction, num_items=17)


def shares_of_tokens_and_vocabulary():
    shares_of_the_tokens(both=True)
    tokens(dist.group.WORLD, torch.bfloat16, True, True, "auto")
    for group in groups():
        (hidden, weight, _, target), mine = shares(group)
        _, noted = linear_cross_entropy(
            hidden[mine],
            weight[cut(CLASSES, group)],
            target[mine],
            process_group=group,
            token_group=group,
            return_stats=True,
        )
        _, whole = linear_cross_entropy(hidden, weight, target, return_stats=True)
        for name in ("lse", "entropy", "argmax", "correct", "valid"):
            torch.testing.assert_close(getattr(noted, name), getattr(whole, name)[mine], rtol=1e-12, atol=1e-13)


def tokens_over_one_dimension_vocabulary_over_the_other():
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "classes"))
    data, classes = mesh.get_group("data"), mesh.get_group("classes")
    (hidden, weight, _, target), mine = shares(data)
    upstream, options = torch.tensor(1.7), {"z_loss": 0.1, "class_weight": OPTIONS["class_weight"]}
    exact, plain = references([hidden, weight], target, torch.float64, upstream, **options)

    def ours(h, w):
        return linear_cross_entropy(h, w, target[mine], process_group=classes, token_group=data, **options)

    own = cut(CLASSES, classes)
    value, of_hidden, of_weight = gradients(ours, [hidden[mine], weight[own]], upstream)
    got = [value, joined(of_hidden, data), joined(summed(of_weight, data), classes)]
    agree(got, exact, plain, torch.float64)


def same_bits():
    hidden, weight, _, target = (t.float() if t.is_floating_point() else t for t in problem())
    for group in groups():
        found = []
        for _ in range(2):
            leaves = [t.clone().requires_grad_() for t in (hidden, weight[cut(CLASSES, group)])]
            loss = linear_cross_entropy(*leaves, target, process_group=group)
            found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*found))
        ranks = [torch.empty_like(found[0][1]) for _ in range(dist.get_world_size(group))]
        dist.all_gather(ranks, found[0][1].contiguous(), group=group)
        assert all(torch.equal(each, ranks[0]) for each in ranks)


def pairs_of_all_ranks():
    """Rows and columns of unequal shares, one of them empty, against one rank with everything."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = torch.tensor([0, 1, 2, 0, 4, 5, 1, 7, 8])
    for group in groups():
        own = cut(9, group, {2: [4, 5], 4: [3, 0, 5, 1]}[dist.get_world_size(group)])
        for include in (True, False):
            options = {"scale": 2.0, "sides": "both", "include_positive": include}

            def ours(c, d, o=options, group=group, own=own):
                pairs = pair_log_partition(c, d, ids=ids[own], ranks=group, **o)
                shares = Shares.of(len(c), group)
                return shares.mean(-pairs.log_p - pairs.column_log_p, torch.ones(len(c)))

            def whole(c, d, o=options):
                pairs = pair_log_partition(c, d, ids=ids, **o)
                return -(pairs.log_p + pairs.column_log_p).mean()

            value, *slopes = gradients(ours, [a[own], b[own]], torch.tensor(1.0))
            exact = gradients(whole, [a, b], torch.tensor(1.0))
            averaged = [joined(slope, group) / dist.get_world_size(group) for slope in slopes]
            agree([value, *averaged], exact, exact, torch.float64)
