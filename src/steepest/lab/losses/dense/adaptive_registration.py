"""Registration of digits: image terms alone, with a segmentation term, and with trainable weights of the terms.

Pairs of one class among the MNIST test digits, 28 x 28 padded to 32 x 32 (card: Fashion-MNIST or digits; the source:
abdominal CT), 8,000 images for training, test pairs from the other 2,000; scikit-learn's digits, enlarged, at smoke
scale. A small U-Net (width 8, three resolutions) sees moving and fixed image and gives the displacement in cells; the
mask of an image is where it exceeds 0.5, seen by the loss only. Arms, of the same start, pairs and number of steps:
N (NCC), NSD (NCC, SSIM, generalised Dice at fixed weights of 1/3), UW-NSD (the same, weights trained by the network's
optimizer). Every arm regularises with 5e-3 times the smoothness term, in UW-NSD where that weight starts: since weights
sum to 1 in each arm, neither the scale of the loss nor the share of the regulariser tells them apart. Adam at 2e-3, 300
steps of 16 pairs. Dice of the warped mask (linear, cut at 0.5) and the fixed one, mean over 300 test pairs, in points;
folding is the share of cells whose Jacobian determinant is 0 or less.

"+2 to +8" is taken as more than 2, "+0 to +1" as more than 0 with a middle of 0.5. The card's caution, that weight goes
to the easiest term, is a claim as well. "Inference unchanged" needs no test: the parameters at inference are counted
in each row. Eight seeds. Masks are thresholds of the images, so they tell the losses little that the images don't; in
the source they are organs drawn by hand. Without a bound on folding every arm folds an eighth of the cells or so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ....losses.dense.adaptive_registration import (
    AdaptiveLossWeights,
    folding_rate,
    generalized_dice_loss,
    ncc_loss,
    smoothness_loss,
    spatial_transform,
    ssim_loss,
)
from ....nn.unet import UNet
from ...data import mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure

SIDE = 32
SEEDS = 8
TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "NCC": ncc_loss,
    "SSIM": ssim_loss,
    "Dice": generalized_dice_loss,
}
ARMS = {"N": (("NCC",), False), "NSD": (tuple(TERMS), False), "UW-NSD": (tuple(TERMS), True)}
CLAIMS = (
    Claim("guided gain", "segmentation guidance (NSD) adds more than 2 points of Dice to N", size=2.0, threshold=2.0),
    Claim("adaptive gain", "trained weights (UW-NSD) add to NSD", size=0.5),
    Claim("drift", "the weight of the term that is smallest in the end has grown", size=0.05),
)


def run(scale: str, seed: int) -> Evidence:
    """Dice, folding and weights of each arm."""
    full = scale == "full"
    rng = np.random.default_rng([seed, 31])
    images, labels = _images(full)
    order = rng.permutation(len(images))
    train, rest = np.split(order, [8000 if full else 1400])
    steps, batch = (300, 16) if full else (4, 8)
    test = images[_pairs(rng, labels, rest, 300 if full else 40)]
    plan = _pairs(rng, labels, train, steps * batch).reshape(steps, batch, 2)
    rows, drift = [], 0.0
    for arm, (names, trained) in ARMS.items():
        net, weighting, last = _train(images, plan, names, trained, seed)
        weights = dict(zip(names, weighting.weights().tolist()))
        if trained:
            drift = weights[names[int(last.argmin())]] - 1 / len(names)
        rows.append(
            {
                "arm": arm,
                **_scores(net, test),
                **{f"weight of {name}": weights.get(name, 0.0) for name in TERMS},
                "weight of smoothness": float(weighting.reg_weights()),
                "parameters at inference": sum(p.numel() for p in net.parameters()),
            }
        )
    dice = {row["arm"]: row["Dice"] for row in rows}
    effects = {
        "guided gain": dice["NSD"] - dice["N"],
        "adaptive gain": dice["UW-NSD"] - dice["NSD"],
        "drift": drift,
    }
    return Evidence(rows, effects)


def _images(full: bool) -> tuple[Tensor, np.ndarray]:
    """Digits ``[N, 1, 32, 32]`` in [0, 1] and their labels."""
    if full:
        x, y = mnist_10k()
        return pad(torch.as_tensor(x, dtype=torch.float32).view(-1, 1, 28, 28), (2, 2, 2, 2)), y
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    small = torch.as_tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return interpolate(small, size=SIDE, mode="bilinear", align_corners=False), y


def _pairs(rng: np.random.Generator, labels: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """Positions of two different images of one class, ``[count, 2]``."""
    own = [among[labels[among] == label] for label in range(10)]
    kinds = labels[rng.choice(among, count)]
    return np.stack([rng.choice(own[kind], 2, replace=False) for kind in kinds])


def _train(
    images: Tensor, plan: np.ndarray, names: Sequence[str], trained: bool, seed: int
) -> tuple[nn.Module, AdaptiveLossWeights, Tensor]:
    """The network, the weights, and the mean of each term over the last fifth of the steps."""
    torch.manual_seed(seed)
    net = UNet(2, 2)
    weighting = AdaptiveLossWeights(len(names)).requires_grad_(trained)
    optimizer = torch.optim.Adam([*net.parameters(), *weighting.parameters()], lr=2e-3)
    seen = []
    for own in plan:
        moving, fixed = images[own].unbind(1)
        u = net(torch.cat([moving, fixed], 1))
        warped, mask = spatial_transform(torch.cat([moving, _mask(moving)], 1), u).split(1, 1)
        images_of = {"NCC": (warped, fixed), "SSIM": (warped, fixed), "Dice": (mask, _mask(fixed))}
        terms = [TERMS[name](*images_of[name]) for name in names]
        loss = weighting(terms, [smoothness_loss(u)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(torch.stack(terms).detach())
    return net, weighting, torch.stack(seen[-max(1, len(seen) // 5) :]).mean(0)


def _mask(image: Tensor) -> Tensor:
    return (image > 0.5).to(image.dtype)


@torch.no_grad()
def _scores(net: nn.Module, test: Tensor) -> dict[str, float]:
    """Dice before and after registration and folding, in percent, of pairs ``[P, 2, 1, 32, 32]``."""
    moving, fixed = test.unbind(1)
    u = net(torch.cat([moving, fixed], 1))
    warped = spatial_transform(_mask(moving), u)
    return {
        "Dice": _dice(warped, _mask(fixed)),
        "Dice before": _dice(_mask(moving), _mask(fixed)),
        "folding, %": 100 * float(folding_rate(u).mean()),
    }


def _dice(found: Tensor, wanted: Tensor) -> float:
    """Mean Dice of masks, in points."""
    one, other = (mask.flatten(1) > 0.5 for mask in (found, wanted))
    return 100 * float((2 * (one & other).sum(1) / (one.sum(1) + other.sum(1))).mean())


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Dice before and after registration by each arm, and folding."""
    rows = [{"arm": "unregistered", "Dice of test pairs, %": each.rows[0]["Dice before"]} for each in evidence]
    rows += [{"arm": row["arm"], "Dice of test pairs, %": row["Dice"]} for each in evidence for row in each.rows]
    rows += [
        {"arm": f"{row['arm']}, share of cells folded", "Dice of test pairs, %": row["folding, %"]}
        for each in evidence
        for row in each.rows
    ]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="Dice of test pairs, %")
    return drawn
