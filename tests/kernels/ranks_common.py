"""Problems of all ranks, and what one rank makes of them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from conftest import as_exact, gradients, materialised
from torch.nn import functional

from steepest.kernels import linear_cross_entropy

CLASSES, SHAPE, WIDTH = 101, (3, 13), 16
OPTIONS = {
    "label_smoothing": 0.1,
    "z_loss": 1e-2,
    "softcap": 3.0,
    "temperature": 0.7,
    "class_weight": torch.linspace(0.0, 2.0, CLASSES, dtype=torch.float64),
    "token_weight": torch.linspace(0.0, 1.5, 39, dtype=torch.float64).reshape(SHAPE),
    "shift": 2,
    "num_items": 17,
    "bias": True,
}
MEMORY = {"keep": "auto", "slab": 1500}
ALL = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 3.0, "temperature": 0.7}


def problem(shape=SHAPE, classes=CLASSES, *, seed=0, ignored=0.2):
    """Hidden states, weight, bias and targets in float64, the same on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < ignored] = -100
    return hidden, weight, bias, target


def groups():
    """The world, and this rank's pair of it."""
    pairs = [dist.new_group([first, first + 1]) for first in range(0, dist.get_world_size(), 2)]
    return [dist.group.WORLD, pairs[dist.get_rank() // 2]]


def cut(total, group, sizes=None):
    """This rank's part of ``total``: of given sizes, or the first ranks one more."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    sizes = sizes or [total // ranks + (each < total % ranks) for each in range(ranks)]
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def joined(part, group):
    """Parts of all ranks, one after another."""
    found = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, part.detach(), group=group)
    return torch.cat(found)


def summed(value, group):
    """Over the ranks, in float64."""
    found = value.detach().double().clone()
    dist.all_reduce(found, group=group)
    return found


def agree(got, exact, plain, dtype, luck=0.0):
    """To rounding in float64, by the criterion of the other tests in other types."""
    if dtype == torch.float64:
        for mine, truth in zip(got, exact):
            torch.testing.assert_close(mine.double(), truth, rtol=1e-11, atol=1e-13)
    else:
        as_exact(got, exact, plain, luck=luck)


def references(tensors, target, dtype, upstream, **options):
    """Value and gradients of one rank with everything: in float64, and plainly in ``dtype``."""
    key = [dtype, target.tolist(), *(t.double().sum().item() for t in (*tensors, upstream))]
    key += [(name, float(v.sum()) if isinstance(v, torch.Tensor) else v) for name, v in options.items()]

    def plain(kind):
        return lambda h, w, b=None: materialised(h, w, target, bias=b, dtype=kind, **options)

    if str(key) not in _KNOWN:
        exact = gradients(plain(torch.float64), [t.double() for t in tensors], upstream)
        _KNOWN[str(key)] = exact, exact if dtype == torch.float64 else gradients(plain(dtype), tensors, upstream)
    return _KNOWN[str(key)]


_KNOWN = {}


def luck(tensors, target, dtype, reduction="mean", **_):
    """Three standard deviations of a mean, or sum, of losses whose target's logit is rounded to a half type."""
    if dtype.itemsize > 2 or reduction == "none":
        return 0.0
    z = functional.linear(*[t.double() for t in tensors])
    count = int((target >= 0).sum())
    return torch.finfo(dtype).eps * z.square().mean().sqrt().item() / count**0.5 * (count if reduction == "sum" else 1)


def expect(kind, words, *args, **options):
    """The call is refused."""
    try:
        linear_cross_entropy(*args, **options)
    except kind as error:
        if words in str(error):
            return
        raise
    raise AssertionError(words)


def shares(group, uneven=True):
    """This rank's sequences among seven, or as many as ranks; one rank of the uneven ones has none."""
    ranks = dist.get_world_size(group)
    sizes = {2: [2, 5], 4: [2, 0, 4, 1]}[ranks] if uneven else [2] * ranks
    given = problem((sum(sizes), 13))
    given[3][0] = -100  # a part of the first rank's doesn't count
    return given, cut(sum(sizes), group, sizes)
