"""Registration terms and their weights against the card, loops, SciPy, MONAI and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.losses import GeneralizedDiceLoss as PeerDice
from monai.losses import LocalNormalizedCrossCorrelationLoss as PeerNCC
from scipy.ndimage import convolve, generate_binary_structure, median_filter
from torchmetrics.functional.image import structural_similarity_index_measure

from steepest.losses.dense.adaptive_registration import (
    AdaptiveLossWeights,
    GeneralizedDiceLoss,
    HausdorffErosionLoss,
    NCCLoss,
    RegistrationAugmentation,
    SpatialTransformer,
    SSIMLoss,
    folding_rate,
    generalized_dice_loss,
    hausdorff_erosion_loss,
    ncc_loss,
    smoothness_loss,
    spatial_transform,
    ssim_loss,
    thin_plate_spline,
)

FLAT, SOLID = (9, 8), (6, 7, 8)


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scalars(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def labels(*shape, seed=0):
    return (draw(*shape, seed=seed) < 0.4).double()


# weights of the terms


@pytest.mark.holds("adaptive-registration", 1)
def test_card_value_of_the_weights():
    weighting = AdaptiveLossWeights(3, prior=[1, 1, 2])
    assert weighting.v.tolist() == pytest.approx([0.0, 0.0, math.log(2)])
    assert weighting.weights().tolist() == pytest.approx([0.25, 0.25, 0.5])
    loss = weighting(scalars(0.5, 0.2, 0.1), scalars(0.3))
    assert loss.item() == pytest.approx(0.225 + 0.005 * 0.3, abs=1e-8)
    alone = AdaptiveLossWeights(3, 0, prior=[1, 1, 2])
    assert alone(scalars(0.5, 0.2, 0.1)).item() == pytest.approx(0.225, abs=1e-8)


@pytest.mark.holds("adaptive-registration", 2)
def test_weight_moves_to_the_smallest_term():
    weighting = AdaptiveLossWeights(3, prior=[1, 1, 2])
    terms, regs = scalars(0.5, 0.2, 0.1), scalars(0.3)
    loss = weighting(terms, regs)
    slope, of_reg = torch.autograd.grad(loss, [weighting.v, weighting.r])
    assert slope.tolist() == pytest.approx([0.06875, -0.00625, -0.0625], abs=1e-7)
    assert of_reg.item() == pytest.approx(0.005 * 0.3, abs=1e-8)
    for i in range(3):
        ends = []
        for step in (1e-4, -1e-4):
            moved = AdaptiveLossWeights(3, prior=[1, 1, 2]).double()
            with torch.no_grad():
                moved.v[i] += step
            ends.append(moved(terms, regs).item())
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(slope[i].item(), abs=1e-7)
    optimizer = torch.optim.SGD(weighting.parameters(), lr=5.0)
    for _ in range(300):
        optimizer.zero_grad()
        weighting(terms, regs).backward()
        optimizer.step()
    assert weighting.weights()[2] > 0.95
    assert weighting.reg_weights().item() < 0.005


@pytest.mark.holds("adaptive-registration", 3)
@pytest.mark.parametrize("regularisers", [0, 1, 3])
def test_weights_are_a_distribution_without_the_regularisers(regularisers):
    generator = torch.Generator().manual_seed(regularisers)
    weighting = AdaptiveLossWeights(4, regularisers)
    with torch.no_grad():
        weighting.v.copy_(5 * torch.randn(4, generator=generator))
    before = weighting.weights()
    assert (before > 0).all()
    assert before.sum().item() == pytest.approx(1.0, abs=1e-6)
    with torch.no_grad():
        weighting.r.add_(3.0)
    assert torch.equal(weighting.weights(), before)
    terms = torch.rand(4, generator=generator)
    slopes = [
        torch.autograd.grad(weighting(terms, size * torch.ones(regularisers)), weighting.v)[0] for size in (0.0, 9.0)
    ]
    assert torch.equal(*slopes)


def test_several_regularisers_share_a_weight_of_one():
    weighting = AdaptiveLossWeights(1, 4, prior_reg=0.1)
    assert weighting.reg_weights().tolist() == pytest.approx([0.25] * 4)
    assert weighting(scalars(2.0), scalars(1.0, 2.0, 3.0, 6.0)).item() == pytest.approx(5.0)
    assert AdaptiveLossWeights(1, 1, prior_reg=0.1).reg_weights().item() == pytest.approx(0.1)


def test_a_floor_holds_the_drift():
    weighting = AdaptiveLossWeights(3, 0, floor=0.2)
    assert weighting.weights().tolist() == pytest.approx([1 / 3] * 3)
    with torch.no_grad():
        weighting.v.copy_(torch.tensor([0.0, 0.0, 100.0]))
    assert weighting.weights().tolist() == pytest.approx([0.2, 0.2, 0.6])


def test_terms_are_divided_by_their_means_of_the_last_epoch():
    weighting = AdaptiveLossWeights(3, 0, rolling=True, reference=1)
    weighting.start_epoch(1, 3)
    assert weighting(scalars(3.0, 4.0, 5.0)).item() == pytest.approx(4.0)
    weighting(scalars(1.0, 2.0, 0.0))
    weighting.start_epoch(2, 3)
    for _ in range(2):
        assert weighting(scalars(1.0, 1.0, 1.0)).item() == pytest.approx((1 / 2 + 1 + 1 / 2.5) / 3)
    assert weighting.terms["term_0"].item() == pytest.approx(0.5)
    # the means are those of the terms as they came, not as they were scaled
    weighting.start_epoch(3, 3)
    assert weighting.scale.tolist() == pytest.approx([1.0] * 3)
    weighting.eval()
    weighting(scalars(9.0, 9.0, 9.0))
    weighting.start_epoch(4, 4)
    assert int(weighting.count) == 0
    assert weighting.scale.tolist() == pytest.approx([1.0] * 3)
    plain = AdaptiveLossWeights(2, 0)
    plain(scalars(1.0, 3.0))
    plain.start_epoch(2, 3)
    assert plain(scalars(1.0, 3.0)).item() == pytest.approx(2.0)


def test_terms_and_weights_are_logged():
    weighting = AdaptiveLossWeights(2, prior=[1, 3])
    weighting(scalars(0.5, 0.25), scalars(2.0))
    kept = {name: round(value.item(), 6) for name, value in weighting.terms.items()}
    assert kept == {
        "term_0": 0.5, "term_1": 0.25, "weight_0": 0.25, "weight_1": 0.75, "reg_0": 2.0, "reg_weight_0": 0.005,
    }  # fmt: skip


# similarity


@pytest.mark.holds("adaptive-registration", 4)
def test_card_value_of_the_correlation():
    fixed, warped = (torch.tensor(v).double().view(1, 1, 2, 2) for v in ([1, 2, 3, 5], [2, 2, 4, 7]))
    assert 1 - ncc_loss(warped, fixed).item() == pytest.approx(0.970569, abs=1e-6)
    assert NCCLoss()(5 * warped - 3, fixed).item() == pytest.approx(ncc_loss(warped, 0.1 * fixed + 7).item(), abs=1e-12)
    assert NCCLoss()(-warped, fixed).item() == pytest.approx(1.970569, abs=1e-6)
    for size in (FLAT, SOLID):
        image = draw(2, 3, *size)
        assert SSIMLoss()(image, image).item() == 0.0
        assert ssim_loss(image.float(), image.float()).item() == 0.0


@pytest.mark.parametrize("size", [FLAT, SOLID])
def test_correlation_against_numpy(size):
    warped, fixed = draw(3, 2, *size), draw(3, 2, *size, seed=1)
    wanted = np.mean([1 - np.corrcoef(w.ravel(), f.ravel())[0, 1] for w, f in zip(warped.numpy(), fixed.numpy())])
    assert ncc_loss(warped, fixed).item() == pytest.approx(wanted, abs=1e-12)


def test_correlation_in_one_window_of_the_peer():
    """MONAI's correlation is local and squared; in the cell whose window is the whole image it is ours, squared."""
    warped, fixed = draw(1, 1, 5, 5), draw(1, 1, 5, 5, seed=1)
    peer = PeerNCC(spatial_dims=2, kernel_size=9, reduction="none", smooth_nr=0.0, smooth_dr=0.0)
    # padded by the means, no window sees more than the image
    padded = [torch.nn.functional.pad(v - v.mean(), (2, 2, 2, 2)) for v in (warped, fixed)]
    local = peer(*padded)[0, 0, 4, 4].item()
    assert -local == pytest.approx((1 - ncc_loss(warped, fixed).item()) ** 2, abs=1e-6)


def test_an_even_image_correlates_with_nothing():
    for even in (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1)):
        leaf = even.clone().requires_grad_()
        loss = ncc_loss(leaf, draw(1, 1, 4, 4).float())
        loss.backward()
        assert loss.item() == 1.0
        assert leaf.grad.abs().max().item() == 0.0


def test_correlation_of_nan_is_nan():
    image = draw(1, 1, 4, 4)
    assert ncc_loss(torch.full_like(image, torch.nan), image).isnan()


def naive_ssim(w, f, window, span, k1, k2):
    c1, c2 = (k1 * span) ** 2, (k2 * span) ** 2
    values = []
    for place in np.ndindex(*[n - window + 1 for n in w.shape[2:]]):
        cut = (slice(None), slice(None), *[slice(p, p + window) for p in place])
        for a, b in zip(w[cut].reshape(-1, window ** (w.ndim - 2)), f[cut].reshape(-1, window ** (w.ndim - 2))):
            covariance = np.mean((a - a.mean()) * (b - b.mean()))
            above = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
            values.append(above / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var() + b.var() + c2)))
    return (1 - np.mean(values)) / 2


@pytest.mark.parametrize("size", [FLAT, SOLID])
@pytest.mark.parametrize("options", [{}, {"window": 3, "data_range": 4.0, "k1": 0.1, "k2": 0.2}])
def test_ssim_against_a_loop_and_torchmetrics(size, options):
    warped, fixed = draw(2, 2, *size), draw(2, 2, *size, seed=1) + 1
    window, span = options.get("window", 5), options.get("data_range", 1.0)
    k1, k2 = options.get("k1", 0.01), options.get("k2", 0.03)
    found = ssim_loss(warped, fixed, **options).item()
    assert found == pytest.approx(naive_ssim(warped.numpy(), fixed.numpy(), window, span, k1, k2), abs=1e-12)
    _, full = structural_similarity_index_measure(
        warped, fixed, gaussian_kernel=False, kernel_size=window, data_range=span, k1=k1, k2=k2,
        return_full_image=True,
    )  # fmt: skip
    edge = window // 2
    inner = full[(..., *[slice(edge, n - edge) for n in size])]
    assert found == pytest.approx((1 - inner.mean().item()) / 2, abs=1e-9)


def test_ssim_keeps_its_digits_far_from_zero():
    warped, fixed = draw(1, 1, 8, 8), draw(1, 1, 8, 8, seed=1)
    far = [(v + 1000).float() for v in (warped, fixed)]
    wanted = ssim_loss(*[v.double() for v in far])
    assert ssim_loss(*far).item() == pytest.approx(wanted.item(), rel=1e-3)


# overlap


@pytest.mark.holds("adaptive-registration", 5)
def test_card_value_of_the_overlap():
    y = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1]]).view(1, 2, 2, 2)
    p = torch.tensor([[0.9, 0.8, 0.7, 0.4], [0.1, 0.2, 0.3, 0.6]], dtype=torch.float64).view(1, 2, 2, 2)
    assert generalized_dice_loss(p, y, eps=0.0).item() == pytest.approx(0.390625, abs=1e-12)
    assert GeneralizedDiceLoss()(p, y).item() == pytest.approx(0.390625, abs=1e-6)


@pytest.mark.parametrize("size", [FLAT, SOLID])
def test_overlap_agrees_with_monai(size):
    p, y = draw(3, 4, *size), labels(3, 4, *size, seed=1)
    y[0, 2] = 0
    wanted = PeerDice(smooth_nr=0.0, smooth_dr=0.0)(p, y).item()
    assert generalized_dice_loss(p, y, eps=0.0).item() == pytest.approx(wanted, abs=1e-6)


def test_overlap_against_the_formula():
    p, y = draw(2, 3, *FLAT), labels(2, 3, *FLAT, seed=1)
    each = []
    for b in range(2):
        weight = [1 / y[b, k].sum().item() ** 2 for k in range(3)]
        both = math.fsum(w * (y[b, k] * p[b, k]).sum().item() for k, w in enumerate(weight))
        size = math.fsum(w * (y[b, k] + p[b, k]).sum().item() for k, w in enumerate(weight))
        each.append(1 - 2 * both / size)
    assert generalized_dice_loss(p, y, eps=0.0).item() == pytest.approx(sum(each) / 2, abs=1e-12)


def test_overlap_where_labels_are_missing():
    nothing = torch.zeros(1, 2, 4, 4)
    assert generalized_dice_loss(nothing, nothing).item() == 0.0
    assert generalized_dice_loss(nothing + 0.1, nothing).item() == pytest.approx(1.0, abs=1e-5)
    p, y = draw(1, 2, 4, 4), labels(1, 2, 4, 4, seed=2)
    y[:, 1] = 0
    hit, size = (p * y).sum().item(), (p + y).sum().item()
    assert generalized_dice_loss(p, y, eps=0.0).item() == pytest.approx(1 - 2 * hit / size, abs=1e-12)


def test_labels_that_were_warped_may_round():
    p = torch.full((1, 1, 3, 3), 1 + 1e-6)
    assert abs(generalized_dice_loss(p, torch.ones(1, 1, 3, 3)).item()) < 1e-5


def missed_block(size):
    y = torch.zeros(2, 2, *size, dtype=torch.float64)
    y[(slice(None), slice(None), *[slice(1, n - 1) for n in size])] = 1
    return y


@pytest.mark.parametrize("size", [FLAT, SOLID])
@pytest.mark.parametrize("erosions", [1, 2, 10])
def test_erosion_of_hard_maps_against_scipy(size, erosions):
    """Convolution, threshold at 1/2, scaled to 1 again: the published erosion."""
    y = missed_block(size)
    p = torch.zeros_like(y)
    p[0] = 1  # all wrong outside the block, on its thin shell
    cross = generate_binary_structure(len(size), 1).astype(float)
    total = 0.0
    for own in (p - y).square().flatten(0, 1).numpy():
        cells = own
        for k in range(1, erosions + 1):
            cells = np.maximum(0.0, 2 * convolve(cells, cross / cross.sum(), mode="constant") - 1)
            total += k**2 * cells.sum() / cells.size
    found = HausdorffErosionLoss(erosions)(p, y).item()
    assert found > 0
    assert found == pytest.approx(total / 4, rel=1e-12)


def by_neighbours(d, erosions):
    """The erosions of one map as the docstring has them, a cell at a time."""
    cross = generate_binary_structure(d.ndim, 1)
    level = median_filter(d, footprint=cross, mode="constant")
    cells, total = d, 0.0
    for k in range(1, erosions + 1):
        padded, eroded = np.pad(cells, 1), np.zeros_like(cells)
        for place in np.ndindex(*d.shape):
            near = padded[tuple(slice(i, i + 3) for i in place)][cross]
            eroded[place] = max(0.0, 2 * np.minimum(near, level[place]).mean() - level[place])
        cells, total = eroded, total + k**2 * eroded.mean()
    return total


@pytest.mark.parametrize("size", [FLAT, SOLID])
def test_erosion_of_soft_maps_by_hand(size):
    p, y = draw(1, 2, *size), labels(1, 2, *size, seed=1)
    wanted = np.mean([by_neighbours(own, 3) for own in (p - y).square()[0].numpy()])
    assert wanted > 0
    assert hausdorff_erosion_loss(p, y, erosions=3).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_a_miss_costs_by_its_error_whatever_its_size(p):
    """A block that is missed softly: the hard loss times the squared error, here and with a wrong cell far off."""
    y = torch.zeros(1, 1, 14, 12, 12)
    y[:, :, 2:9, 2:9, 2:9] = 1
    hard = hausdorff_erosion_loss(torch.zeros_like(y), y).item()
    assert hausdorff_erosion_loss(p * y, y).item() == pytest.approx((1 - p) ** 2 * hard, rel=1e-4)
    speckled = p * y
    speckled[0, 0, 12, 10, 10] = 1
    assert hausdorff_erosion_loss(speckled, y).item() == pytest.approx((1 - p) ** 2 * hard, rel=1e-4)
    assert hausdorff_erosion_loss(torch.full_like(y, p), y).item() >= (1 - p) ** 2 * hard


def test_the_gradient_of_the_erosion_never_points_away_from_the_labels():
    """It is that of the loss at fixed levels: the slope of the value itself has both signs."""
    p, y = draw(2, 2, *FLAT).requires_grad_(), labels(2, 2, *FLAT, seed=1)
    (slope,) = torch.autograd.grad(hausdorff_erosion_loss(p, y), p)
    towards = slope * (2 * y - 1)
    assert towards.max() <= 0
    assert (towards < 0).double().mean() > 0.5


def test_erosion_sees_thickness_and_gives_a_gradient():
    """As many wrong cells: a block counts, a line of one cell's width hardly does."""
    block, line, nothing = torch.zeros(3, 1, 1, 16, 16)
    block[..., 4:8, 4:8] = 1
    line[..., 3, :16] = 1
    assert hausdorff_erosion_loss(block, nothing) > 5 * hausdorff_erosion_loss(line, nothing)
    p = (0.9 * block).requires_grad_()
    hausdorff_erosion_loss(p, nothing).backward()
    assert p.grad[..., 5:7, 5:7].min() > 0


IMAGE = torch.rand(1, 1, 6, 6)
WEIGHTING = AdaptiveLossWeights(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ncc_loss(IMAGE, IMAGE[..., :5]), "fixed: expected shape"),
        (lambda: ncc_loss(IMAGE[0], IMAGE[0]), "warped: expected 4 or 5 dimensions"),
        (lambda: ssim_loss(IMAGE, IMAGE, window=7), "warped: expected at least 7 cells along each axis"),
        (lambda: SSIMLoss(data_range=0.0), "data_range: expected a number > 0"),
        (lambda: generalized_dice_loss(IMAGE + 0.5, torch.ones_like(IMAGE)), r"outputs: expected values in \[0, 1\]"),
        (lambda: generalized_dice_loss(IMAGE, IMAGE), r"target: expected labels in \{0, 1\}"),
        (lambda: HausdorffErosionLoss(0), "erosions: expected an integer >= 1"),
        (lambda: smoothness_loss(IMAGE), "displacement: expected 2 components in dimension 1"),
        (lambda: smoothness_loss(torch.zeros(1, 2, 1, 4)), "displacement: expected at least 2 cells"),
        (lambda: folding_rate(torch.zeros(1, 2, 1, 4)), "displacement: expected at least 2 cells"),
        (lambda: spatial_transform(IMAGE, torch.zeros(1, 2, 5, 6)), r"displacement: expected a field over \(6, 6\)"),
        (lambda: SpatialTransformer("cubic"), "mode: expected one of 'linear', 'nearest'"),
        (lambda: SpatialTransformer(padding="reflect"), "padding: expected one of 'border', 'zeros'"),
        (lambda: RegistrationAugmentation(grid=1), "grid: expected an integer >= 2"),
        (lambda: RegistrationAugmentation(padding="reflect"), "padding: expected one of"),
        (lambda: RegistrationAugmentation(points=37)(IMAGE), "image: expected at least 37 cells"),
        (lambda: RegistrationAugmentation()(IMAGE, IMAGE[..., :5]), "labels: expected shape"),
        (lambda: thin_plate_spline(IMAGE[0], IMAGE[0], IMAGE[0]), "control: expected 2 or 3 coordinates"),
        (lambda: WEIGHTING(scalars(1.0), scalars(1.0)), "terms: expected 2 scalar tensors"),
        (lambda: WEIGHTING(scalars(1.0, 2.0)), "regs: expected 1 scalar tensors"),
        (lambda: WEIGHTING(torch.ones(3), scalars(1.0)), r"terms: expected shape \(2\)"),
        (lambda: WEIGHTING([IMAGE, IMAGE], scalars(1.0)), r"terms: expected shape \(\)"),
        (lambda: AdaptiveLossWeights(2, prior=[1.0]), "prior: expected 2 numbers"),
        (lambda: AdaptiveLossWeights(2, prior=[1.0, 0.0]), "prior: expected a number > 0"),
        (lambda: AdaptiveLossWeights(2, floor=0.5), "floor: expected a number >= 0 and < 0.5"),
        (lambda: AdaptiveLossWeights(2, reference=2), "reference: expected an integer >= 0 and <= 1"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
