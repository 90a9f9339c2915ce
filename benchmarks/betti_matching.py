"""Betti matching beside gudhi's barcodes and, where it lies on the disk, the published implementation; one thread.

Labels are drawn networks and rings, predictions noisy and smooth maps around them. Ours is the matching (both maps,
their maximum, both dimensions: six barcodes) and the whole loss forward and backward; gudhi gives the three barcodes of
the same images and no matching; the published implementation gives its loss, forward only. Rounds are interleaved.
Prints the smallest and the median milliseconds of processor time a pair, and the ratio of the smallest to ours (below
1: the peer is faster). Values are compared first: barcodes with gudhi, losses with the published implementation.

    python benchmarks/betti_matching.py [--sizes 48,128,256] [--batch 8] [--rounds 9] [--published FOLDER]

Without gudhi (it comes with the extra ``test``) its rows are left out. FOLDER holds ``BettiMatching.py`` of
https://github.com/nstucki/Betti-matching; it needs neither ``panel`` nor a GPU.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from _options import read_options
from _record import keep
from scipy.ndimage import gaussian_filter

from steepest.lab.data.shapes import shapes
from steepest.losses.dense._persistence import Stack, matchings
from steepest.losses.dense.betti_matching import betti_matching_loss

try:
    import gudhi
except ImportError:  # it comes with the extra "test"
    gudhi = None

OURS = "steepest, matching"


def published(folder: str) -> Any:
    """The class of the published implementation, with stand-ins for what it only plots with."""
    numpy: Any = np
    numpy.infty = np.inf
    panel: Any = ModuleType("panel")
    panel.extension, panel.widgets, panel.interact = (lambda *names, **options: None), None, ModuleType("interact")
    panel.interact.interact = panel.interact.fixed = None
    wasserstein: Any = ModuleType("gudhi.wasserstein")
    sys.modules |= {"panel": panel, "panel.interact": panel.interact, "gudhi.wasserstein": wasserstein}
    sys.path.insert(0, str(Path(folder).resolve()))
    return importlib.import_module("BettiMatching").BettiMatching


def maps(size: int, count: int, smooth: bool) -> tuple[np.ndarray, np.ndarray]:
    """Predictions in [0, 1] and labels, ``[count, size, size]``."""
    labels = shapes(count, 0, size=size)[1][:, 0].astype(np.float64)
    noise = np.random.default_rng(0).standard_normal(labels.shape)
    if smooth:
        noise = np.stack([gaussian_filter(image, 1.5) for image in noise])
        labels_seen = np.stack([gaussian_filter(image, 0.7) for image in labels])
    else:
        labels_seen = labels
    return 1 / (1 + np.exp(-(5 * (labels_seen - 0.5) + noise / noise.std()))), labels


def gudhi_bars(images: np.ndarray) -> list[list[tuple[int, float, float]]]:
    """Bars of each image, bright first, without those that never die."""
    bars_of_images = []
    for image in images:
        bars = gudhi.CubicalComplex(vertices=-image).persistence(min_persistence=0)
        bars_of_images.append([(dim, -birth, -death) for dim, (birth, death) in bars if death < np.inf])
    return bars_of_images


def check_bars(images: np.ndarray) -> int:
    """How many bars agree with gudhi's.

    Raises:
        AssertionError: one does not.
    """
    stack, total = Stack(images), 0
    ours: list[list[tuple[int, float, float]]] = [[] for _ in images]
    for dim in (0, 1):
        bars = stack.bars(dim)
        for image, birth, death in zip(bars.image, bars.birth, bars.death):
            ours[image].append((dim, stack.values[image, birth], stack.values[image, death]))
    for own, theirs in zip(ours, gudhi_bars(images), strict=True):
        assert sorted(own) == sorted(theirs), "barcodes differ"
        total += len(own)
    return total


def steps(p: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What is timed on one batch."""
    leaf, target = torch.tensor(p, requires_grad=True), torch.tensor(y)
    common = np.maximum(p, y)

    def whole() -> None:
        leaf.grad = None
        betti_matching_loss(leaf, target, from_logits=False).backward()

    by_name: dict[str, Callable[[], Any]] = {
        OURS: lambda: matchings(p, y, union=True, dims=(0, 1)),
        "steepest, loss and gradient": whole,
    }
    if gudhi is not None:
        by_name["gudhi, three barcodes"] = lambda: [gudhi_bars(images) for images in (p, y, common)]
    return by_name


def main() -> None:
    """Check, measure, print and keep the numbers."""
    options = read_options(__doc__, sizes=("48,128,256", "24"), batch=(8, 2), rounds=(9, 1), published=("", ""))
    peer = published(options.published) if options.published else None
    rows = []
    for size in map(int, options.sizes.split(",")):
        for smooth in (True, False):
            p, y = maps(size, options.batch, smooth)
            bars = 0 if gudhi is None else check_bars(np.concatenate([p, y, np.maximum(p, y)]))
            by_name = steps(p, y)
            pairs = dict.fromkeys(by_name, options.batch)
            if peer is not None and size <= 64:  # it takes minutes for larger ones
                name = "published implementation, loss"
                by_name[name] = lambda p=p, y=y: peer(p[0], y[0], filtration="superlevel").loss()
                pairs[name] = 1
                wanted = peer(p[0], y[0], filtration="superlevel").loss()
                ours = betti_matching_loss(torch.tensor(p[:1]), torch.tensor(y[:1]), from_logits=False)
                assert abs(wanted - ours.item()) <= 1e-9 * max(1.0, wanted), "losses differ"
            times: dict[str, list[float]] = {name: [] for name in by_name}
            for number in range(options.rounds + 1):
                for name, step in by_name.items():
                    if number > 2 and name.startswith("published"):
                        continue
                    begin = time.process_time()
                    step()
                    if number:
                        times[name].append(1e3 * (time.process_time() - begin) / pairs[name])
            for name, own in times.items():
                row = {"size": size, "maps": "smooth" if smooth else "noisy", "what": name, "bars": bars}
                row |= {"min_ms": round(min(own), 3), "median_ms": round(statistics.median(own), 3)}
                row["ratio"] = round(min(own) / min(times[OURS]), 2)
                rows.append(row)
                print(
                    f"{size:>4}  {row['maps']:<7} {name:<32} {row['min_ms']:>9.2f} ms  {row['median_ms']:>9.2f} ms"
                    f"  {row['ratio']:>7.2f}x"
                )
    numbers = {
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "gudhi": getattr(gudhi, "__version__", "not installed"),
        "rows": rows,
    }
    keep("betti_matching", numbers, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
