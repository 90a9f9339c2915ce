"""Jacobian descent: each sample an objective, UPGrad over the gradients of a batch, beside SGD on the mean loss.

Set-up of the claim: 1024 training images, a small CNN, SGD with batches of 32, 25 epochs, each aggregator at its own
rate; the rows of the Jacobian are the gradients of the batch's samples (instance-wise risk minimisation). MNIST at
14 x 14 pixels, one of the publication's data sets, takes the place of Fashion-MNIST. Arms: mean, MGDA, PCGrad (divided
by the number of rows, so that one grid of rates serves all) and UPGrad. After each epoch the loss on all training
images and on 2000 others.

UPGrad is that of its authors' library, with a ``reg_eps`` of 1e-4. Exact UPGrad is one more arm: there a sample that is
fitted, whose gradient is all but 0, binds the direction as much as any other, and training blows up from the rate on at
which the others learn. This was seen on the pilot seed; that exact UPGrad is behind the mean is a claim of ours. Its
ratio is taken as a logarithm since a first run of all seeds, where it was 7 to 9 on four seeds and 32 on one that blew
up.

"Faster" is the area under the training loss, its mean over the epochs; the card has no number for it, nor for
"lowest": a tenth of the mean's is taken for both. "Equal or better test loss" is a last test loss at most 5% above the
mean's; "slow" an area of MGDA of at least twice the mean's.

The baseline is fair: each arm has the rate with the least area under its training loss, the publication's criterion,
of one grid of six, on an initialisation and a sample of images that are not reported; the mean must reach a test
accuracy of 85%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from ....gradients.aggregation.jacobian_descent import UPGrad
from ....gradients.aggregation.mgda import MGDA
from ....gradients.aggregation.simple import Mean
from ....gradients.surgery.pcgrad import PCGrad
from ...data import digits, halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import best_setting, check_sane
from ...tuning import UNREPORTED

SEEDS, EPOCHS, BATCH = 5, 25, 32
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
CHOSEN = {"mean": 0.3, "MGDA": 0.1, "PCGrad": 0.01, "UPGrad": 0.3, "exact UPGrad": 0.01}
"""The rate of each arm: what :func:`choose_rates` gives."""
REGULARISATION = 1e-4
SANITY = 85.0
"""Test accuracy in percent that the mean must reach."""
CLAIMS = (
    Claim("faster", "the area under UPGrad's training loss is below the mean's (share of the mean's)", size=0.1),
    Claim(
        "lowest",
        "UPGrad's last training loss is below those of mean, MGDA and PCGrad (share of the lowest of them)",
        size=0.1,
    ),
    Claim(
        "test",
        "UPGrad's last test loss is at most 5% above the mean's (share of the mean's)",
        size=0.1,
        threshold=0.05,
        greater=False,
    ),
    Claim("MGDA", "the area under MGDA's training loss is more than twice the mean's", size=1.0, threshold=2.0),
    Claim(
        "exact",
        "so is that under exact UPGrad's (logarithm of the ratio above that of 2)",
        size=0.5,
        threshold=math.log(2),
        ours=True,
    ),
)
Part = tuple[Tensor, Tensor, Tensor, Tensor]
Curve = list[tuple[float, float, float]]
"""Training loss, test loss and test accuracy in percent after each epoch."""


def run(scale: str, seed: int) -> Evidence:
    """Training and test loss of each arm, epoch by epoch."""
    full = scale == "full"
    parts = parts_of(scale, seed)
    rows: list[dict[str, float | str]] = []
    curves: dict[str, Curve] = {}
    for arm, chosen in CHOSEN.items():
        rate = chosen if full else 0.01
        curves[arm] = trained(arm, rate, parts, EPOCHS if full else 1, seed)
        rows += [
            {"arm": arm, "rate": rate, "epoch": epoch, "training loss": a, "test loss": b, "test accuracy": c}
            for epoch, (a, b, c) in enumerate(curves[arm], start=1)
            if not full or epoch in (1, 2, 5, 10, 15, 20, EPOCHS)
        ]
    if full:
        check_sane("test accuracy of the mean", curves["mean"][-1][2], SANITY)
    last = {arm: curve[-1] for arm, curve in curves.items()}
    best = min(last[arm][0] for arm in ("mean", "MGDA", "PCGrad"))
    effects = {
        "faster": 1 - area(curves["UPGrad"]) / area(curves["mean"]),
        "lowest": 1 - last["UPGrad"][0] / best,
        "test": last["UPGrad"][1] / last["mean"][1] - 1,
        "MGDA": area(curves["MGDA"]) / area(curves["mean"]),
        "exact": math.log(area(curves["exact UPGrad"]) / area(curves["mean"])),
    }
    return Evidence(rows, effects)


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the least area under its training loss, on a sample that is not reported."""
    return {
        arm: best_setting(RATES, lambda rate, seed, arm=arm: -rate_score(arm, rate, seed), (UNREPORTED,))
        for arm in CHOSEN
    }


def rate_score(arm: str, rate: float, seed: int) -> float:
    """The area under the training loss; infinite where it is not finite."""
    value = area(trained(arm, rate, parts_of("full", seed), EPOCHS, seed))
    return value if math.isfinite(value) else math.inf


def area(curve: Curve) -> float:
    """The mean training loss over the epochs."""
    return sum(loss for loss, _, _ in curve) / len(curve)


def parts_of(scale: str, seed: int) -> Part:
    """Images and labels for training and testing; pixels standardised all alike."""
    if scale == "full":
        images, labels = mnist_10k()
        order = np.random.default_rng(seed).permutation(len(labels))[: 1024 + 2000]
        pixels, y, train = torch.as_tensor(halved(images)[order]), torch.as_tensor(labels[order]), 1024
    else:
        pixels, y, _, _ = (torch.as_tensor(array[:96]) for array in digits(seed, train=96))
        train = 64
    x = ((pixels - pixels[:train].mean()) / pixels[:train].std()).float()
    return x[:train], y[:train], x[train:], y[train:]


def small_cnn(side: int) -> nn.Module:
    """Two strided convolutions and a layer: ``[B, side ** 2] -> [B, 10]``."""
    quarter = -(-side // 4)
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ELU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(16 * quarter**2, 10),
    )


def per_sample_jacobian(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    """From parameters and a batch to the gradients of its samples, ``[B, n]``."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, parameters, (x.unsqueeze(0),)), y.unsqueeze(0))

    rows = vmap(grad(loss), (None, 0, 0))
    return lambda parameters, x, y: torch.cat([g.flatten(1) for g in rows(parameters, x, y).values()], 1)


def mean_gradient(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    """The mean of those rows, by one backward pass: ``[1, n]``."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, parameters, (x,)), y)

    return lambda parameters, x, y: torch.cat([g.flatten() for g in grad(loss)(parameters, x, y).values()])[None]


def trained(arm: str, rate: float, parts: Part, epochs: int, seed: int) -> Curve:
    """The curve of one arm."""
    x, y, x_test, y_test = parts
    torch.manual_seed(seed)
    model = small_cnn(math.isqrt(x.shape[1]))
    order = torch.Generator().manual_seed(seed)
    aggregators: dict[str, nn.Module] = {
        "mean": Mean(),
        "MGDA": MGDA(),
        "PCGrad": PCGrad("mean", generator=torch.Generator().manual_seed(seed)),
        "UPGrad": UPGrad(reg_eps=REGULARISATION),
        "exact UPGrad": UPGrad(),
    }
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = mean_gradient(model) if arm == "mean" else per_sample_jacobian(model)
    flat = nn.utils.parameters_to_vector(parameters.values())
    curve: Curve = []
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            flat -= rate * aggregators[arm](jacobian(parameters, x[batch], y[batch]))
            nn.utils.vector_to_parameters(flat, model.parameters())
            parameters = {name: p.detach() for name, p in model.named_parameters()}
        with torch.no_grad():
            outputs = model(x_test)
            right = 100 * float((outputs.argmax(1) == y_test).double().mean())
            curve.append((float(cross_entropy(model(x), y)), float(cross_entropy(outputs, y_test)), right))
            if not math.isfinite(curve[-1][0]):
                return curve
    return curve


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Training loss by epoch."""
    drawn: Figure = arms_figure(evidence, x="epoch", y="training loss")
    drawn.axes[0].set_yscale("log")
    return drawn
