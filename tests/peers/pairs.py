"""Ours beside a peer: the same inputs, values and gradients compared. Run as a script it keeps the largest differences.

python tests/peers/pairs.py
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from steepest import losses
from steepest.post.calibration import ece

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "peers.json"
ABOUT = "Largest relative difference to other packages; tests/peers checks each pair."
SHAPES = ((1, 2), (5, 3), (64, 10), (33, 101))


@dataclass(frozen=True)
class Pair:
    """Two functions of a leaf tensor and constants; ``make(generator, shape)`` gives leaf and constants.

    Args:
        name: what is compared.
        package: the peer's distribution.
        ours, theirs: ``(leaf, *constants) -> scalar``; several numbers where there is no gradient.
        make: inputs for one shape ``(rows, columns)``.
        gradient: False where the peer gives none.
        tolerance: of the relative difference, in float64 unless the peer narrows.
    """

    name: str
    package: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    make: Callable[[torch.Generator, tuple[int, int]], tuple[Tensor, ...]]
    gradient: bool = True
    tolerance: float = 1e-10

    def differences(self) -> Iterator[float]:
        """The largest relative difference of value and gradient, input by input: four shapes, two scales each."""
        for number, shape in enumerate(SHAPES):
            for scale in (1.0, 12.0):
                leaf, *constants = self.make(torch.Generator().manual_seed(number), shape)
                found = []
                for function in (self.ours, self.theirs):
                    own = (scale * leaf.detach()).requires_grad_(self.gradient)
                    value = torch.as_tensor(function(own, *constants), dtype=torch.float64)
                    parts = [value.detach().reshape(-1)]
                    if self.gradient:
                        parts.append(torch.autograd.grad(value, own)[0].double().reshape(-1))
                    found.append(parts)
                yield max(
                    float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in zip(*found, strict=True)
                )


def classes(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Logits and class indices."""
    rows, columns = shape
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits, torch.randint(columns, (rows,), generator=generator)


def soft_classes(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Logits and rows of probabilities."""
    logits, _ = classes(generator, shape)
    return logits, torch.randn(shape, generator=generator, dtype=torch.float64).softmax(1)


def labels(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Logits and label sets."""
    logits, _ = classes(generator, shape)
    return logits, torch.randint(2, shape, generator=generator)


def numbers(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Predictions and real targets."""
    rows = shape[0] * shape[1]
    first, second = (torch.randn(rows, generator=generator, dtype=torch.float64) for _ in range(2))
    return first, second


def positive(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """The same, above 0."""
    first, second = numbers(generator, shape)
    return first.exp(), second.exp()


def cosines(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Features, class indices, weights of a head of cosines."""
    rows, columns = shape
    features = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(columns, 6, generator=generator, dtype=torch.float64)
    return features, torch.randint(columns, (rows,), generator=generator), weight


def _cosface(features: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import CosFaceLoss

    peer = CosFaceLoss(num_classes=len(weight), embedding_size=weight.shape[1], margin=0.35, scale=20).double()
    peer.W.data = weight.mT.clone()
    found: Tensor = peer(features, target)
    return found


def _ldam(features: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    z = nnf.normalize(features) @ nnf.normalize(weight).mT
    return losses.ldam_loss(z.clamp(-1, 1), target, margins=torch.full((len(weight),), 0.35), scale=20)


def _metric(name: str, **options: Any) -> Callable[..., Any]:
    def function(outputs: Tensor, target: Tensor) -> Any:
        import torchmetrics.functional as tm

        return getattr(tm, name)(outputs, target, **options)

    return function


def _hinge(outputs: Tensor, target: Tensor) -> Any:
    from torchmetrics.functional.classification import multiclass_hinge_loss

    # the peer sums over classes and turns logits outside [0, 1] into probabilities, so it gets numbers inside
    count = outputs.shape[1]
    return multiclass_hinge_loss(outputs.sigmoid(), target, count, squared=True, multiclass_mode="one-vs-all").mean()


def _pinball(outputs: Tensor, target: Tensor) -> float:
    from sklearn.metrics import mean_pinball_loss

    return float(mean_pinball_loss(target.numpy(), outputs.detach().numpy(), alpha=0.3))


def _f_beta(outputs: Tensor, target: Tensor) -> Any:
    from torchmetrics.functional.classification import binary_fbeta_score

    return 1 - binary_fbeta_score((outputs > 0).long().reshape(-1), target.reshape(-1), beta=2.0)


def _saturated(outputs: Tensor, target: Tensor) -> Any:
    """Where every score is far from 0, soft counts are counts."""
    return losses.FBetaLoss(beta=2.0)(50.0 * outputs.sign().reshape(-1), target.reshape(-1))


def matrices(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Two factors of positive definite matrices."""
    size = min(max(shape), 12)
    first, second = (torch.randn(size, 2 * size, generator=generator, dtype=torch.float64) for _ in range(2))
    return first, second


def _bures(factor: Tensor, other: Tensor) -> Tensor:
    return losses.bures_wasserstein_distance(factor @ factor.mT, other @ other.mT)


def _pot_bures(factor: Tensor, other: Tensor) -> Tensor:
    import ot

    # the peer takes means too, and gives the distance
    zero = torch.zeros(len(factor), dtype=factor.dtype)
    found: Tensor = ot.gaussian.bures_wasserstein_distance(zero, zero, factor @ factor.mT, other @ other.mT)
    return found.square()


def images(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Two batches of images, at least 7 x 8 cells."""
    rows, columns = shape
    first, second = (
        torch.rand(2, 3, 6 + rows, 6 + columns, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return first, second


def label_maps(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Logits of maps of three labels, and which cells have them."""
    first, second = images(generator, shape)
    return 4 * first - 2, (second < 0.4).double()


def fields(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Displacements of cells, images, and a factor of each cell."""
    moving, factor = images(generator, shape)
    u = torch.rand(2, 2, *moving.shape[2:], generator=generator, dtype=torch.float64)
    return u - 0.5, moving, factor


def _pearson(warped: Tensor, fixed: Tensor) -> Any:
    from torchmetrics.functional import pearson_corrcoef

    return 1 - pearson_corrcoef(warped.flatten(1).mT, fixed.flatten(1).mT).mean()


def _ssim(warped: Tensor, fixed: Tensor) -> Any:
    from torchmetrics.functional.image import structural_similarity_index_measure

    options = {"gaussian_kernel": False, "kernel_size": 5, "data_range": 1.0}
    _, full = structural_similarity_index_measure(warped, fixed, return_full_image=True, **options)
    # windows over the edge see the peer's mirrored image
    return (1 - full[..., 2:-2, 2:-2].mean()) / 2


def _monai_dice(logits: Tensor, target: Tensor) -> Any:
    from monai.losses import GeneralizedDiceLoss

    return GeneralizedDiceLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)(logits, target)


def _monai_warp(displacement: Tensor, moving: Tensor, factor: Tensor) -> Any:
    from monai.networks.blocks import Warp

    return (factor * Warp("bilinear", "border")(moving, displacement)).sum()


def _calibration(outputs: Tensor, target: Tensor) -> Any:
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error(outputs.softmax(1), target, outputs.shape[1], n_bins=15, norm="l1")


def _beside(name: str) -> tuple[Pair, ...]:
    """The pairs of another file of this folder, which pytest doesn't put on the path."""
    spec = importlib.util.spec_from_file_location(f"peers{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(Pair(*row) for row in module.ROWS)


def height_map(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """One image of any values."""
    return (torch.randn(shape, generator=generator, dtype=torch.float64),)


def _bar_lengths(image: Tensor) -> Tensor:
    bars = losses.cubical_persistence(image.detach())
    return ((1 + bars.dim) * (bars.birth - bars.death).square())[bars.death_pixel >= 0].sum()


def _gudhi_lengths(image: Tensor) -> float:
    from gudhi import CubicalComplex

    bars = CubicalComplex(vertices=-image.detach().numpy()).persistence()
    return float(sum((1 + dim) * (birth - death) ** 2 for dim, (birth, death) in bars if death < np.inf))


PAIRS: tuple[Pair, ...] = (
    Pair("cross_entropy", "torch", losses.cross_entropy, nnf.cross_entropy, classes),
    Pair("cross_entropy, probabilities", "torch", losses.cross_entropy, nnf.cross_entropy, soft_classes),
    Pair(
        "cross_entropy, smoothed", "torch", lambda z, y: losses.cross_entropy(z, y, label_smoothing=0.2),
        lambda z, y: nnf.cross_entropy(z, y, label_smoothing=0.2), classes,
    ),
    Pair(
        "cross_entropy, class weights", "torch",
        lambda z, y: losses.cross_entropy(z, y, class_weight=torch.arange(1.0, z.shape[1] + 1), reduction="sum"),
        lambda z, y: nnf.cross_entropy(z, y, weight=torch.arange(1.0, z.shape[1] + 1).double(), reduction="sum"),
        classes,
    ),
    Pair("comp_sum_loss, tau 1", "torch", lambda z, y: losses.comp_sum_loss(z, y, tau=1.0), nnf.cross_entropy, classes),
    Pair(
        "comp_sum_loss, tau 2", "torch", lambda z, y: losses.comp_sum_loss(z, y, tau=2.0),
        lambda z, y: nnf.l1_loss(z.softmax(1), nnf.one_hot(y, z.shape[1]).double(), reduction="sum") / (2 * len(z)),
        classes,
    ),
    Pair("focal_loss, gamma 0", "torch", lambda z, y: losses.focal_loss(z, y, gamma=0.0), nnf.cross_entropy, classes),
    Pair(
        "ldr_kl_loss, lambda 1", "torch", lambda z, y: losses.ldr_kl_loss(z, y) + np.log(z.shape[1]),
        nnf.cross_entropy, classes, tolerance=1e-9,
    ),
    Pair(
        "squared_error, classes", "torch", losses.squared_error,
        lambda z, y: nnf.mse_loss(z, nnf.one_hot(y, z.shape[1]).double()), classes,
    ),
    Pair(
        "binary_cross_entropy", "torch", lambda z, y: losses.BinaryCrossEntropyLoss()(z, y),
        lambda z, y: nnf.binary_cross_entropy_with_logits(z, y.double()), labels,
    ),
    Pair(
        "asymmetric_loss, gammas 0, clip 0", "torch",
        lambda z, y: losses.asymmetric_loss(z, y, gamma_neg=0, gamma_pos=0, clip=0.0, reduction="mean"),
        lambda z, y: nnf.binary_cross_entropy_with_logits(z, y.double()), labels, tolerance=1e-6,
    ),
    Pair("mae", "torch", losses.mae, nnf.l1_loss, numbers),
    Pair("mse", "torch", losses.mse, nnf.mse_loss, numbers),
    Pair(
        "huber", "torch", lambda f, y: losses.huber(f, y, delta=0.7),
        lambda f, y: nnf.huber_loss(f, y, delta=0.7), numbers,
    ),
    Pair("ldam_loss, equal margins (CosFace)", "pytorch-metric-learning", _ldam, _cosface, cosines, tolerance=1e-6),
    Pair("log_cosh", "torchmetrics", losses.log_cosh, _metric("log_cosh_error"), numbers),
    Pair("msle", "torchmetrics", losses.msle, _metric("mean_squared_log_error"), positive),
    Pair(
        "mape", "torchmetrics", lambda f, y: losses.mape(f, y) / 100, _metric("mean_absolute_percentage_error"),
        positive, tolerance=1e-6,
    ),
    Pair("rmse", "torchmetrics", losses.rmse, _metric("mean_squared_error", squared=False), numbers),
    Pair(
        "rse", "torchmetrics", losses.rse, _metric("relative_squared_error"), numbers, tolerance=1e-6,
    ),
    Pair(
        "squared_hinge_loss, one against the rest", "torchmetrics",
        lambda z, y: losses.squared_hinge_loss(z.sigmoid(), y), _hinge, classes, tolerance=1e-6,
    ),
    Pair("FBetaLoss of saturated scores", "torchmetrics", _saturated, _f_beta, labels, gradient=False, tolerance=1e-6),
    Pair(
        "cubical_persistence, squared lengths", "gudhi", _bar_lengths, _gudhi_lengths, height_map, gradient=False,
    ),
    Pair("bures_wasserstein_distance", "POT", _bures, _pot_bures, matrices, tolerance=1e-9),
    Pair(
        "ece", "torchmetrics", lambda z, y: ece(z.detach().softmax(1), y, bins=15), _calibration, classes,
        gradient=False, tolerance=1e-6,
    ),
    Pair("ncc_loss", "torchmetrics", losses.ncc_loss, _pearson, images),
    Pair("ssim_loss", "torchmetrics", losses.ssim_loss, _ssim, images, tolerance=1e-8),
    Pair(
        "generalized_dice_loss", "monai",
        lambda z, y: losses.generalized_dice_loss(z.sigmoid(), y, eps=0.0), _monai_dice, label_maps, tolerance=1e-6,
    ),
    Pair(
        "spatial_transform", "monai", lambda u, m, f: (f * losses.spatial_transform(m, u)).sum(), _monai_warp, fields,
        tolerance=1e-9,
    ),
    Pair(
        "quantile_loss", "scikit-learn", lambda f, y: losses.quantile_loss(f, y, q=0.3), _pinball, numbers,
        gradient=False,
    ),
    *_beside("_dependence"),
    *_beside("_statistics"),
)  # fmt: skip


def main() -> None:
    """Print the largest difference of each pair and keep the table."""
    rows = []
    for pair in PAIRS:
        found = list(pair.differences())
        version = importlib.metadata.version(pair.package)
        what = "value and gradient" if pair.gradient else "value"
        rows.append(
            {
                "pair": pair.name,
                "peer": f"{pair.package} {version}",
                "compared": what,
                "inputs": len(found),
                "largest": max(found),
            }
        )
        print(f"{pair.name:<42} {rows[-1]['peer']:<34} {what:<20} {len(found):>3}  {max(found):.1e}")
    text = json.dumps({"what": ABOUT, "date": datetime.date.today().isoformat(), "rows": rows}, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
