"""Betti matching against matrix reduction, gudhi, the published implementation's numbers, and sums by hand."""

from __future__ import annotations

import itertools

import gudhi
import numpy as np
import pytest
import torch
from monai.losses import DiceLoss as Peer

from steepest.losses.dense import _persistence
from steepest.losses.dense._persistence import Stack, betti_numbers, matchings
from steepest.losses.dense.betti_matching import (
    BettiMatchingLoss,
    DiceBettiMatchingLoss,
    betti_matching_error,
    betti_matching_loss,
    betti_number_error,
    cubical_persistence,
)

RING = torch.zeros(5, 5, dtype=torch.float64)
RING[1:4, 1:4] = 1
RING[2, 2] = 0
P = torch.full((5, 5), 0.1, dtype=torch.float64)
P[1:4, 1:4] = 0.9
P[1, 2], P[2, 2], P[4, 0] = 0.4, 0.2, 0.6
OPTIONS = list(itertools.product(("superlevel", "sublevel"), ("union", "intersection")))


def of_p(p, y, **options):
    return betti_matching_loss(p, y, from_logits=False, **options)


def pair(seed, height=5, width=4, *, ties=False):
    """A prediction and labels; with ties both have few values."""
    rng = np.random.default_rng(seed)
    p, y = rng.random((height, width)), (rng.random((height, width)) < 0.5).astype(float)
    return (np.round(p, 1), np.round(rng.random((height, width)), 1)) if ties else (p, y)


# -------- by reduction of boundary matrices


def cells(image):
    """Each cell (row and column doubled) with its place in the filtration and its value, bright first."""
    height, width = image.shape
    order = sorted(np.ndindex(image.shape), key=lambda v: (-image[v], -v[0], -v[1]))
    place = {v: n for n, v in enumerate(order)}
    found = {}
    for i, j in np.ndindex(2 * height - 1, 2 * width - 1):
        corners = [(r, c) for r in {i // 2, (i + 1) // 2} for c in {j // 2, (j + 1) // 2}]
        last = max(corners, key=place.get)
        # right, below, left, above of its last pixel; squares below right, below left, above right, above left
        side = (i - 2 * last[0], j - 2 * last[1])
        code = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)].index(side)
        found[i, j] = ((place[last], i % 2 + j % 2, code), image[last])
    return found


def boundary(cell):
    i, j = cell
    return ({(i - 1, j), (i + 1, j)} if i % 2 else set()) | ({(i, j - 1), (i, j + 1)} if j % 2 else set())


def pairs_of(rows, columns, dim):
    """Birth cell (by the order of rows) and death cell (by that of columns): reduction of the boundary matrix."""
    reduced = {}
    for cell in sorted((c for c in columns if c[0] % 2 + c[1] % 2 == dim + 1), key=lambda c: columns[c][0]):
        column = boundary(cell)
        while column and (pivot := max(column, key=lambda c: rows[c][0])) in reduced:
            column = column ^ reduced[pivot][0]
        if column:
            reduced[pivot] = column, cell
    return {(birth, death) for birth, (_, death) in reduced.items()}


def reduced_bars(image, dim):
    return {(b, d) for b, d in pairs_of(image, image, dim) if image[b][1] > image[d][1]}


def reduced_loss(p, g, filtration, comparison, dim):
    """The loss of one pair of maps in one dimension, and how many bars are matched."""
    sign = 1 if filtration == "superlevel" else -1
    p, g = sign * p, sign * g
    common = cells(np.maximum(p, g) if comparison == "union" else np.minimum(p, g))
    targets, partners = reduced_bars(common, dim), []
    images = [cells(p), cells(g)]
    for image in images:
        own, found = reduced_bars(image, dim), {}
        if comparison == "union":
            for birth, death in pairs_of(image, common, dim):
                found |= {t: b for b in own for t in targets if b[0] == birth and t[1] == death}
        else:
            for birth, death in pairs_of(common, image, dim):
                found |= {t: b for b in own for t in targets if t[0] == birth and b[1] == death}
        partners.append(found)
    both = partners[0].keys() & partners[1].keys()
    total = 2 * (p.max() - g.max()) ** 2 if dim == 0 else 0.0
    for image, found in zip(images, partners):
        matched = {found[t] for t in both}
        total += sum((image[b][1] - image[d][1]) ** 2 for b, d in reduced_bars(image, dim) - matched)
    for t in both:
        ends = [[image[c][1] for c in found[t]] for image, found in zip(images, partners)]
        total += 2 * ((ends[0][0] - ends[1][0]) ** 2 + (ends[0][1] - ends[1][1]) ** 2)
    return total, len(both)


@pytest.mark.holds("betti-matching", 1, 2)
@pytest.mark.parametrize(("filtration", "comparison"), OPTIONS)
def test_against_matrix_reduction(filtration, comparison):
    matched = [0, 0]
    images = [pair(seed, *shape) for seed, shape in enumerate([(5, 4), (4, 5), (2, 3), (5, 6), (6, 5)] * 2)]
    images += [pair(seed, 5, 5, ties=True) for seed in range(4)] + [(P.numpy(), RING.numpy())]
    for p, g in images:
        for dim in (0, 1):
            wanted, count = reduced_loss(p, g, filtration, comparison, dim)
            options = {"filtration": filtration, "comparison": comparison, "dims": (dim,)}
            assert of_p(torch.tensor(p), torch.tensor(g), **options).item() == pytest.approx(wanted, abs=1e-12)
            matched[dim] += count
    assert min(matched) > 0


# -------- the card


@pytest.mark.holds("betti-matching", 1)
def test_card_value():
    # components: 2 (0.1)^2 for the oldest, (0.6 - 0.1)^2 for the blob; the hole: 2 (0.6^2 + 0.2^2)
    assert of_p(P, RING).item() == pytest.approx(1.07, abs=1e-12)
    assert of_p(P, RING, dims=(0,)).item() == pytest.approx(0.02 + 0.25, abs=1e-12)
    assert of_p(P, RING, dims=(1,)).item() == pytest.approx(2 * (0.36 + 0.04), abs=1e-12)


@pytest.mark.holds("betti-matching", 2)
def test_card_values_of_other_predictions():
    without = P.clone()
    without[4, 0] = 0.1
    assert of_p(without, RING).item() == pytest.approx(0.82, abs=1e-12)
    assert of_p(RING, RING).item() == 0
    assert of_p(1 - RING, RING).item() == 3
    shifted = RING.roll(1, 1)
    assert of_p(shifted, RING).item() == betti_matching_error(shifted, RING).item() == 2
    assert betti_number_error(shifted, RING).item() == 0


@pytest.mark.holds("betti-matching", 3)
@pytest.mark.parametrize(("filtration", "comparison"), OPTIONS)
def test_symmetric(filtration, comparison):
    for seed in range(6):
        p, g = map(torch.tensor, pair(seed, 9, 8, ties=bool(seed % 2)))
        options = {"filtration": filtration, "comparison": comparison}
        assert of_p(p, g, **options).item() == pytest.approx(of_p(g, p, **options).item(), abs=1e-12)


@pytest.mark.holds("betti-matching", 3)
def test_gradient_only_where_bars_begin_and_end():
    for seed in range(4):
        p, g = map(torch.tensor, pair(seed, 12, 9))
        leaf = p.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(of_p(leaf, g), leaf)
        bars = cubical_persistence(p)
        touched = set(gradient.reshape(-1).nonzero().squeeze(1).tolist())
        assert 0 < len(touched) <= 2 * len(bars.dim)
        assert touched <= set(bars.birth_pixel.tolist()) | set(bars.death_pixel.tolist())


def test_gradient_of_the_card_example():
    leaf = P.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of_p(leaf, RING), leaf)
    wanted = torch.zeros_like(P)
    wanted[4, 0], wanted[1, 2], wanted[2, 2] = 2 * 0.5, 4 * (0.4 - 1), 4 * 0.2
    moved = (gradient - wanted).abs() > 1e-12
    # what is left: the oldest pixel of the ring, and the background pixel where the blob dies
    assert gradient[moved].sort().values.tolist() == pytest.approx([-2 * 0.5, 4 * (0.9 - 1)])


@pytest.mark.holds("betti-matching", 4)
@pytest.mark.parametrize("remap", [np.square, np.sqrt, lambda x: 0.2 + 0.1 * np.expm1(x)])
def test_increasing_remap_keeps_the_matching(remap):
    changed = 0
    for seed in range(6):
        p, g = (each[None] for each in pair(seed, 9, 11, ties=bool(seed % 2)))
        for union in (True, False):
            before, after = (matchings(*own, union=union, dims=(0, 1)) for own in ((p, g), (remap(p), remap(g))))
            for a, b in zip(before, after):
                for x, y in zip((*a.matched, *a.unmatched), (*b.matched, *b.unmatched)):
                    np.testing.assert_array_equal(x, y)
        values = [of_p(*map(torch.tensor, own)).item() for own in ((p, g), (remap(p), remap(g)))]
        changed += abs(values[0] - values[1]) > 1e-3
    assert changed == 6


@pytest.mark.holds("betti-matching", 5)
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
def test_barcodes_of_gudhi(filtration):
    sign = 1 if filtration == "superlevel" else -1
    images = [pair(seed, *shape, ties=ties)[0] for seed, (shape, ties) in enumerate(
        itertools.product([(1, 1), (1, 7), (6, 1), (2, 2), (13, 9), (40, 48)], [False, True])
    )]  # fmt: skip
    images += [np.zeros((4, 5)), np.indices((7, 7)).sum(0) % 2.0]
    for image in images:
        bars = cubical_persistence(torch.tensor(image), filtration=filtration)
        values = torch.tensor(image).reshape(-1)
        assert torch.equal(values[bars.birth_pixel], bars.birth)
        assert torch.equal(values[bars.death_pixel[1:]], bars.death[1:])
        assert (bars.death_pixel[0], bars.death[0]) == (-1, 0.0 if sign > 0 else 1.0)
        peer = gudhi.CubicalComplex(vertices=-sign * image)
        found = sorted((d, -sign * b, -sign * e) for d, (b, e) in peer.persistence(min_persistence=0))
        ours = [(d, b, e) for d, b, e in zip(*(part.tolist() for part in bars[:3]))]
        ours[0] = (0, ours[0][1], -sign * np.inf)
        assert sorted(ours) == found


# -------- the published implementation (nstucki/Betti-matching, commit 09e6f5b)

IMAGE = """
10 5 6 0 1 9 1
1 9 6 4 5 7 3
1 8 7 5 8 5 10
2 6 5 4 6 2 8
9 1 5 3 1 9 4
1 7 2 0 2 0 2
"""
LABELS = "0011000 1010011 0000010 0100110 1000010 1000110"
PUBLISHED = {
    ("superlevel", "union", False): (2.88, 0, 5),
    ("superlevel", "union", True): (1.43, 1.44, 5),
    ("superlevel", "intersection", False): (3.63, 0, 5),
    ("superlevel", "intersection", True): (1.08, 1.44, 5),
    ("sublevel", "union", False): (2.84, 0.02, 7),
    ("sublevel", "union", True): (0.33, 2.3, 5),
    ("sublevel", "intersection", False): (2.84, 0.02, 7),
    ("sublevel", "intersection", True): (0.33, 2.3, 5),
}


@pytest.mark.parametrize("options", PUBLISHED)
def test_published_values(options):
    p = torch.tensor([[int(v) / 10 for v in row.split()] for row in IMAGE.split("\n") if row], dtype=torch.float64)
    y = torch.tensor([[int(v) for v in row] for row in LABELS.split()])
    named = dict(zip(("filtration", "comparison", "relative"), options))
    parts = [of_p(p, y, dims=(dim,), **named).item() for dim in (0, 1)]
    assert parts == pytest.approx(PUBLISHED[options][:2], abs=1e-9)
    assert betti_matching_error((p >= 0.5).long(), y, **named).item() == PUBLISHED[options][2]
    assert betti_number_error(p, y).item() == 1


# -------- the classes, batches, edges


def batch(seed=0, shape=(5, 1, 12, 10)):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return z, torch.rand(shape, generator=generator) < 0.4


@pytest.mark.parametrize("chunk", [1, 800, 10**6])
def test_a_batch_is_the_mean_of_its_maps(monkeypatch, chunk):
    monkeypatch.setattr(_persistence, "CHUNK", chunk)
    z, y = batch()
    for filtration in ("superlevel", "sublevel", "bothlevel"):
        single = [betti_matching_loss(a, b, filtration=filtration).item() for a, b in zip(z[:, 0], y[:, 0])]
        found = betti_matching_loss(z, y, filtration=filtration).item()
        assert found == pytest.approx(sum(single) / len(single), abs=1e-12)
    masks = (z > 0).long()
    errors = [betti_matching_error(a, b).item() for a, b in zip(masks[:, 0], y[:, 0])]
    assert betti_matching_error(masks, y).squeeze(1).tolist() == errors


def test_both_levels_are_the_sum_and_a_frame_is_a_frame():
    z, y = batch()
    parts = [betti_matching_loss(z, y, filtration=level).item() for level in ("superlevel", "sublevel", "bothlevel")]
    assert parts[0] + parts[1] == pytest.approx(parts[2], abs=1e-12)
    framed = [torch.nn.functional.pad(each, (1, 1, 1, 1), value=1.0) for each in (z.sigmoid(), y.double())]
    assert of_p(*framed).item() == pytest.approx(betti_matching_loss(z, y, relative=True).item(), abs=1e-12)


def test_classes():
    z, y = batch()
    loss = BettiMatchingLoss()
    assert loss(z, y).item() == betti_matching_loss(z, y).item() == sum(loss.terms.values()).item()
    both = DiceBettiMatchingLoss(alpha=0.3)
    found = both(z, y).item()
    peer = Peer(sigmoid=True)(z, y.double()).item()
    assert both.terms["dice"].item() == pytest.approx(peer, abs=1e-12)
    assert found == pytest.approx(peer + 0.3 * loss(z, y).item(), abs=1e-12)
    assert both.terms.keys() == {"dice", "betti_matching", "dim_0", "dim_1"}
    assert DiceBettiMatchingLoss(alpha=0.0)(z, y).item() == pytest.approx(peer, abs=1e-12)


def test_gradient_reaches_a_soft_target():
    z, y = batch()
    soft = (0.8 * y.double() + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(of_p(z.sigmoid(), soft), soft)
    other = soft.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(of_p(other, z.sigmoid()), other)
    torch.testing.assert_close(gradient, wanted)


def test_errors_where_a_mask_is_empty():
    masks = torch.stack([RING, 0 * RING, 0 * RING + 1]).long()
    assert betti_matching_error(masks, masks[[1, 1, 0]]).tolist() == [3, 0, 1]
    assert betti_matching_error(masks, masks[[1, 1, 0]], dims=(0,)).tolist() == [2, 0, 0]
    assert betti_number_error(masks, masks[[1, 1, 0]]).tolist() == [2, 0, 1]


def test_betti_numbers_by_euler_and_by_bars():
    generator = np.random.default_rng(0)
    masks = generator.random((20, 9, 11)) < generator.uniform(0.2, 0.9, (20, 1, 1))
    found = betti_numbers(masks)
    down, right = masks[:, 1:] & masks[:, :-1], masks[:, :, 1:] & masks[:, :, :-1]
    squares = down[:, :, 1:] & down[:, :, :-1]
    euler = masks.sum((1, 2)) - down.sum((1, 2)) - right.sum((1, 2)) + squares.sum((1, 2))
    np.testing.assert_array_equal(found[0] - found[1], euler)
    stack = Stack(masks.astype(float))
    for dim in (0, 1):
        count = np.bincount(stack.bars(dim).image, minlength=20) + (dim == 0) * masks.any((1, 2))
        np.testing.assert_array_equal(found[dim], count)


def test_threshold_takes_its_own_value_in():
    ring = 0.5 * RING
    assert betti_number_error(ring, RING).item() == 0
    assert betti_number_error(ring, RING, threshold=0.51).item() == 2


def test_nothing_and_nan():
    assert betti_matching_loss(torch.zeros(0, 1, 3, 3), torch.zeros(0, 1, 3, 3)).isnan()
    assert betti_matching_error(torch.zeros(0, 1, 3, 3), torch.zeros(0, 1, 3, 3)).shape == (0, 1)
    assert betti_number_error(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3)).shape == (0,)
    z = torch.zeros(1, 3, 3)
    z[0, 1, 1] = torch.nan
    assert betti_matching_loss(z, torch.zeros(1, 3, 3)).isnan()


def test_extreme_logits():
    z, y = batch()
    leaf = (1e4 * z.float()).requires_grad_()
    value = DiceBettiMatchingLoss()(leaf, y)
    value.backward()
    assert value.isfinite()
    assert leaf.grad.isfinite().all()
    assert value.item() == pytest.approx(DiceBettiMatchingLoss(from_logits=False)((z > 0).float(), y).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_p(2 * RING, RING), r"outputs: expected values in \[0, 1\], got \[0.0, 2.0\]"),
        (lambda: of_p(RING, -RING), r"target: expected values in \[0, 1\]"),
        (lambda: of_p(RING, RING[1:]), r"target: expected shape \(5, 5\)"),
        (lambda: of_p(RING[0], RING[0]), r"outputs: expected maps \[..., H, W\]"),
        (lambda: of_p(RING[:0], RING[:0]), r"outputs: expected maps \[..., H, W\]"),
        (lambda: of_p(RING, RING, dims=()), "dims: expected 0, 1 or both"),
        (lambda: of_p(RING, RING, dims=(1, 1)), "dims: expected 0, 1 or both"),
        (lambda: of_p(RING, RING, filtration="up"), "filtration: expected one of"),
        (lambda: BettiMatchingLoss(comparison="sum"), "comparison: expected one of"),
        (lambda: DiceBettiMatchingLoss(alpha=-1.0), "alpha: expected a number >= 0"),
        (lambda: betti_matching_error(P, RING), r"pred_mask: expected labels in \{0, 1\}"),
        (lambda: betti_number_error(P, RING[1:]), r"target: expected shape \(5, 5\)"),
        (lambda: cubical_persistence(RING[0]), "img: expected 2 dimensions"),
        (lambda: cubical_persistence(RING[:0]), "img: expected at least one pixel"),
        (lambda: cubical_persistence(RING, filtration="bothlevel"), "filtration: expected one of"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
