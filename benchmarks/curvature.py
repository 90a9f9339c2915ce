"""Products with Hessians, Lanczos's method and traces, by steepest, curvlinops and PyHessian on the same networks.

A product is one on a batch after the first, of a list of tensors in the shapes of the parameters. steepest and
PyHessian keep the graph of the gradient; curvlinops computes anew at each call. 40 steps of Lanczos's method are held
against 40 products, and 16 samples of a trace, each v'Hv by a forward sweep or through vmap, against 16. Milliseconds,
median and least of rounds that take turns; ratios are of medians, in brackets of the least. The peers are measured
where they are installed (curvlinops-for-pytorch==3.0.1, pyhessian==0.1), with attention in plain form around them, as
its fused form has no second derivative. Products of PyHessian are held against ours; those of curvlinops miss terms of
layer norm, by torch 2.13's forward mode of its gradient.

    python benchmarks/curvature.py [--rounds 15]
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor, nn

from steepest.core.curvature import GaussNewton, Hessian, spectral_density, trace
from steepest.core.frozen_pass import twice_differentiable

TARGETS = {"hvp / curvlinops": 0.6, "hvp / PyHessian": 1.0, "40 steps / 40 hvp": 1.1, "16 probes / 16 hvp": 0.7}
STEPS, PROBES = 40, 16


def mlp(inputs: int, width: int, depth: int) -> nn.Module:
    """Layers of one width with tanh, ten classes."""
    sizes = [inputs] + [width] * depth
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


def cnn() -> nn.Module:
    """Four convolutions over images of 32 x 32 pixels."""
    layers: list[nn.Module] = []
    for a, b, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
        layers += [nn.Conv2d(a, b, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Transformer(nn.Module):
    """Two layers over 32 vectors of 64 entries, whose mean is classified."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, 10]``."""
        logits: Tensor = self.head(self.layers(x).mean(1))
        return logits


SETTINGS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 64-32-32, batch 32": (lambda: mlp(64, 32, 2), (32, 64)),
    "MLP 64-64-64, batch 128": (lambda: mlp(64, 64, 2), (128, 64)),
    "MLP 784-256-256, batch 128": (lambda: mlp(784, 256, 2), (128, 784)),
    "CNN, 4 convolutions, batch 64": (cnn, (64, 3, 32, 32)),
    "transformer, 2 layers, batch 16": (Transformer, (16, 32, 64)),
}


def forms(build: Callable[[], nn.Module], shape: tuple[int, ...], peers: bool) -> dict[str, Callable[[], object]]:
    """What is timed, each over a network of its own with the same weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    y = torch.randint(10, (shape[0],), generator=generator)
    loss = nn.CrossEntropyLoss()

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build().eval()

    model = network()
    params = list(model.parameters())
    vector = [torch.randn(p.shape, generator=generator) for p in params]
    hessian, ggn = Hessian.of_model(model, loss, (x, y)), GaussNewton(model, loss, (x, y))
    own: dict[str, Callable[[], object]] = {
        "gradient": lambda: torch.autograd.grad(loss(model(x), y), params),
        "hvp": lambda: hessian @ vector,
        "ggn": lambda: ggn @ vector,
        "40 steps": lambda: spectral_density(hessian, 1, STEPS),
        "16 probes": lambda: trace(hessian, PROBES),
        "16 ggn probes": lambda: trace(ggn, PROBES),
    }
    if peers:
        from curvlinops import GGNLinearOperator, HessianLinearOperator  # type: ignore[import-not-found]
        from pyhessian.utils import get_params_grad, hessian_vector_product  # type: ignore[import-not-found]

        theirs = network()
        leaves = list(theirs.parameters())
        options = {"check_deterministic": False}
        anew = HessianLinearOperator(theirs, loss, leaves, [(x, y)], **options)
        anew_ggn = GGNLinearOperator(theirs, loss, leaves, [(x, y)], **options)
        third = network()
        with twice_differentiable():
            loss(third(x), y).backward(create_graph=True)
        weights, slopes = get_params_grad(third)

        def in_plain_form(product: Callable[[], object]) -> Callable[[], object]:
            def run() -> object:
                with twice_differentiable():
                    return product()

            return run

        own["curvlinops hvp"] = in_plain_form(lambda: anew @ vector)
        own["curvlinops ggn"] = in_plain_form(lambda: anew_ggn @ vector)
        own["PyHessian hvp"] = lambda: hessian_vector_product(slopes, weights, vector)
        for a, b in zip(hessian @ vector, hessian_vector_product(slopes, weights, vector)):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    return own


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, rounds=(15, 1))
    peers = not options.quick and all(importlib.util.find_spec(name) for name in ("curvlinops", "pyhessian"))
    settings = dict(list(SETTINGS.items())[:1]) if options.quick else SETTINGS
    rows = []
    for name, (build, shape) in settings.items():
        times = measure(forms(build, shape, peers), options.rounds, "cpu")
        row: dict[str, Any] = {"network": name, "parameters": sum(p.numel() for p in build().parameters())}
        for form, own in times.items():
            row[f"{form}, median ms"] = round(statistics.median(own), 3)
            row[f"{form}, least ms"] = round(min(own), 3)
        pairs = [("hvp", "gradient", 1), ("ggn", "hvp", 1), ("40 steps", "hvp", STEPS), ("16 probes", "hvp", PROBES)]
        pairs += [("16 ggn probes", "ggn", PROBES)]
        if peers:
            pairs += [("hvp", "curvlinops hvp", 1), ("ggn", "curvlinops ggn", 1), ("hvp", "PyHessian hvp", 1)]
        print(f"{name}: product {row['hvp, median ms']:.2f} ms")
        for above, below, count in pairs:
            median, least = (
                row[f"{above}, {kind} ms"] / (count * row[f"{below}, {kind} ms"]) for kind in ("median", "least")
            )
            label = f"{above} / {count} {below}" if count > 1 else f"{above} / {below.removesuffix(' hvp')}"
            row[label], row[f"{label}, least"] = round(median, 3), round(least, 3)
            print(
                f"    {label:<24}{median:6.2f} ({least:.2f})"
                + (f"  target {TARGETS[label]}" if label in TARGETS else "")
            )
        rows.append(row)
    versions = {p: importlib.metadata.version(p) for p in ("curvlinops-for-pytorch", "pyhessian")} if peers else {}
    facts = {"threads": torch.get_num_threads(), "targets": TARGETS, "peers": versions, "rows": rows}
    keep("curvature", facts, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
