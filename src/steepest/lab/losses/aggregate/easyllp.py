"""EasyLLP: instance accuracy from the proportions of random bags, as good as proportion matching or better.

Set-up of the claim: breast cancer and the parity of scikit-learn's digits (no binary split of Fashion-MNIST),
random bags of k in {1, 4, 16, 64} fixed before training, a linear model and a network of one layer of 64; the log loss
for all arms, the prior from the bags. Arms: EasyLLP, proportion matching, full supervision; the bounded squared loss in
EasyLLP runs beside them as a control and decides nothing. All arms take the same batches of 128 rows (whole bags), the
same start, AdamW and 20 epochs. "A few points" is taken as 3 points at k = 16; "matches" as not more than 1 point below
proportion matching over k in {4, 16, 64}, both as means over the four tasks; "equal at k = 1" as within 1 point. The
variance of the bag loss over random bags is taken at the supervised models, and its growth as the slope of its
logarithm over that of k, k in {4, 16, 64}, as the mean of the four tasks: claimed to be within 0.2 of 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....losses.aggregate.easyllp import EasyLLPLoss, debiased_bag_loss, proportion_matching_loss
from ...data import built_in, digits
from ...experiment import Claim, Evidence
from ...figures import arms_figure

SIZES = (1, 4, 16, 64)
ARMS = ("EasyLLP", "proportion matching", "supervised", "EasyLLP, squared loss")
CLAIMS = (
    Claim(
        "spread at one",
        "at k = 1 the three arms agree within 1 point of accuracy",
        size=1.0,
        threshold=1.0,
        greater=False,
    ),
    Claim(
        "over matching",
        "over k of 4, 16 and 64 EasyLLP is not more than 1 point below proportion matching",
        size=1.0,
        threshold=-1.0,
    ),
    Claim(
        "lost at 16",
        "at k = 16 EasyLLP is within 3 points of full supervision",
        size=3.0,
        threshold=3.0,
        greater=False,
    ),
    Claim(
        "slope error",
        "the variance of the bag loss grows linearly in k: the log-log slope is within 0.2 of 1",
        size=0.2,
        threshold=0.2,
        greater=False,
    ),
)


def run(scale: str, seed: int) -> Evidence:
    """Accuracy by size of bag and arm, and the variance of the bag loss."""
    full = scale == "full"
    accuracy: dict[tuple[str, int], list[float]] = {}
    slopes, variances = [], {k: [] for k in SIZES}
    for name in ("breast_cancer", "digits parity") if full else ("breast_cancer",):
        if name == "breast_cancer":
            x, y, x_test, y_test = built_in(name, seed, train=384)
        else:
            x, y, x_test, y_test = digits(seed, train=1216)
            y, y_test = y % 2, y_test % 2
        inputs, labels, others = (torch.as_tensor(t, dtype=torch.float32) for t in (x, y, x_test))
        for hidden in (0, 64) if full else (0,):
            for k in SIZES:
                rng = np.random.default_rng([seed, k, len(x)])
                order = torch.as_tensor(rng.permutation(len(x)))
                for arm in ARMS:
                    if arm == "supervised" and k > 1:  # bags are nothing to it
                        accuracy.setdefault((arm, k), []).append(accuracy[arm, 1][len(slopes) - 1])
                        continue
                    model = _train(arm, inputs[order], labels[order], k, hidden, 20 if full else 3, seed)
                    with torch.no_grad():
                        right = (model(others).squeeze(1) > 0).numpy() == (y_test == 1)
                    accuracy.setdefault((arm, k), []).append(100 * float(right.mean()))
                    if arm == "supervised":
                        own = bag_variances(model(inputs).squeeze(1).detach(), labels, seed, 20_000 if full else 500)
                        slopes.append(float(np.polyfit(np.log(SIZES[1:]), np.log(own[1:]), 1)[0]))
                        for size, value in zip(SIZES, own):
                            variances[size].append(value)
    rows = [
        {"arm": arm, "k": k, "accuracy": float(np.mean(accuracy[arm, k])), "bag variance": float(np.mean(variances[k]))}
        for arm in ARMS
        for k in SIZES
    ]
    easy, matching, supervised = ({k: np.array(accuracy[arm, k]) for k in SIZES} for arm in ARMS[:3])
    at_one = np.stack([easy[1], matching[1], supervised[1]])
    effects = {
        "spread at one": float(np.ptp(at_one, axis=0).max()),
        "over matching": float(np.mean([easy[k] - matching[k] for k in SIZES[1:]])),
        "lost at 16": float(np.mean(supervised[16] - easy[16])),
        "slope error": abs(float(np.mean(slopes)) - 1),
    }
    return Evidence(rows, effects)


def _train(arm: str, x: Tensor, y: Tensor, k: int, hidden: int, epochs: int, seed: int) -> nn.Module:
    """Bags are k consecutive rows; a batch is 128 rows."""
    torch.manual_seed(seed)
    width = x.shape[1]
    model = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)) if hidden else nn.Linear(width, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 if hidden else 1e-2, weight_decay=1e-4)
    bags = x.reshape(-1, k, width)
    shares = y.reshape(-1, k).mean(1)
    easy = EasyLLPLoss.from_proportions(shares, "squared" if "squared" in arm else "logistic")
    generator = torch.Generator().manual_seed(seed)
    batch = 128 // k
    index = torch.arange(batch).repeat_interleave(k)
    for _ in range(epochs):
        for chosen in torch.randperm(len(bags), generator=generator).split(batch):
            logits = model(bags[chosen].reshape(-1, width)).squeeze(1)
            own = index[: len(logits)]
            if arm == "supervised":
                loss = nn.functional.binary_cross_entropy_with_logits(logits, y.reshape(-1, k)[chosen].reshape(-1))
            elif arm == "proportion matching":
                loss = proportion_matching_loss(logits, own, shares[chosen])
            else:
                loss = easy(logits, own, shares[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def bag_variances(logits: Tensor, labels: Tensor, seed: int, draws: int) -> list[float]:
    """Variance of the EasyLLP log loss of one bag, over bags drawn with replacement, for each size."""
    generator = torch.Generator().manual_seed(seed)
    losses = nn.functional.softplus(torch.stack([logits, -logits], 1).double())
    prior = float(labels.mean())
    found = []
    for k in SIZES:
        rows = torch.randint(len(labels), (draws * k,), generator=generator)
        index = torch.arange(draws).repeat_interleave(k)
        shares = labels[rows].double().reshape(draws, k).mean(1)
        found.append(float(debiased_bag_loss(losses[rows], index, shares, prior).var()))
    return found


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy over the size of a bag."""
    drawn = arms_figure(evidence, x="k", y="accuracy")
    drawn.axes[0].set_xscale("log", base=2)
    drawn.axes[0].set_xlabel("rows of a bag, k")
    drawn.axes[0].set_ylabel("test accuracy, %")
    return drawn
