"""LegendreTron: a link learned with the model beats multinomial logistic regression, more so under label noise.

Set-up of the claim: wine, digits, and digits with half of the training labels flipped; the same linear inner model;
Adam at 0.01, x0.95 every four epochs, 240 epochs, batches of 64, a ridge of 0.005 sum w^2 over all parameters, float64,
two blocks of two hidden units and four layers; five splits. Expected: parity on wine, +0.5 to +3 points on digits, more
with noise.

600 rows of digits and half of wine train. 120 epochs take the place of 240, and the rate falls every second one, so
that it ends where it did. Each seed is the mean of three splits, trained side by side. Logistic regression is the same
scores without the link, under the same optimizer and ridge. Parity has no number: 2 points are taken. Logistic
regression by scikit-learn with the best of seven ridges on a quarter of the training part is reported beside it: it
shows what of a gain is due to a ridge that weighs less once the link can scale the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ....core.objective import TaskInfo
from ....losses.classification.legendretron import LegendreTron, log_softmax_plus
from ...data import built_in, digits, flip_labels, split
from ...experiment import Claim, Evidence
from ...figures import bars_figure

SPLITS = 3
RIDGE = 0.005
EPOCHS = 120
LEARNED, PLAIN, TUNED = "LegendreTron", "logistic regression", "logistic regression, tuned ridge"
CLAIMS = (
    Claim("wine", "parity on wine: not below logistic regression by 2 points", size=2.0, threshold=-2.0),
    Claim("digits", "at least 0.5 points above it on digits (0.5 to 3 expected)", size=1.25, threshold=0.5),
    Claim("noisy", "at least 0.5 points above it on digits with half of the labels flipped", size=1.25, threshold=0.5),
    Claim("more", "the gain on digits is larger with flipped labels than without (points)", size=1.25),
)
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def run(scale: str, seed: int) -> Evidence:
    """Test accuracy of three models on three data sets."""
    full = scale == "full"
    epochs, splits = (EPOCHS, SPLITS) if full else (2, 2)
    numbers = [SPLITS * seed + part for part in range(splits)]
    wines = [built_in("wine", number, train=0.5) for number in numbers]
    clean = [digits(number, train=600 if full else 150) for number in numbers]
    flipped = [(x, flip_labels(y, 0.5, n)[0], *test) for n, (x, y, *test) in zip(numbers, clean)]
    found = {"wine": measure(wines, epochs, seed)}
    both = measure([*clean, *flipped], epochs, seed)  # type: ignore[list-item]
    found["digits"] = {label: values[:splits] for label, values in both.items()}
    found["digits, flipped"] = {label: values[splits:] for label, values in both.items()}
    rows = []
    accuracy: dict[tuple[str, str], float] = {}
    for name, models in found.items():
        for label, values in models.items():
            accuracy[label, name] = float(np.mean(values))
            rows.append({"arm": f"{label}, {name}", "model": label, "data": name, "accuracy": accuracy[label, name]})
    gain = {name: accuracy[LEARNED, name] - accuracy[PLAIN, name] for name in found}
    effects = {
        "wine": gain["wine"],
        "digits": gain["digits"],
        "noisy": gain["digits, flipped"],
        "more": gain["digits, flipped"] - gain["digits"],
    }
    return Evidence(rows, effects)


def measure(data: Sequence[Data], epochs: int, seed: int) -> dict[str, list[float]]:
    """Accuracy in percent of each model on each split; splits are of one size."""
    classes, width = int(data[0][1].max()) + 1, data[0][0].shape[1]
    objective = LegendreTron()
    info = TaskInfo("multiclass", len(data[0][0]), classes)
    torch.manual_seed(seed)
    learned = [objective.head(width, info).double() for _ in data]
    plain = [nn.Sequential(nn.Linear(width, classes - 1).double(), LogSoftmaxPlus()) for _ in data]
    for one, other in zip(plain, learned):  # the same scores at the start
        one.get_submodule("0").load_state_dict(other.get_submodule("0").state_dict())
    found = {}
    for label, models in ((PLAIN, plain), (LEARNED, learned)):
        outputs = fit(models, objective, data, epochs, seed)
        found[label] = [100 * float((out.argmax(-1) == y).mean()) for out, (*_, y) in zip(outputs, data)]
    found[TUNED] = [100 * float(tuned(x, y, seed).score(x_test, y_test)) for x, y, x_test, y_test in data]
    return found


class LogSoftmaxPlus(nn.Module):
    """Scores to log-probabilities, the last class the reference."""

    def forward(self, scores: Tensor) -> Tensor:
        """``[B, C - 1] -> [B, C]``."""
        return log_softmax_plus(scores)


def fit(
    models: Sequence[nn.Module], objective: LegendreTron, data: Sequence[Data], epochs: int, seed: int, batch: int = 64
) -> np.ndarray:
    """Adam with a falling rate on mean loss and ridge, all models side by side; outputs on test rows ``[M, N, C]``."""
    x, x_test = (torch.as_tensor(np.stack([each[part] for each in data])) for part in (0, 2))
    y = torch.as_tensor(np.stack([each[1] for each in data]))
    generator = torch.Generator().manual_seed(seed)
    for model, inputs in zip(models, x):
        model(inputs[torch.randperm(len(inputs), generator=generator)[:batch]])  # the norms take their scales from it
    params, buffers = stack_module_state(list(models))
    base = models[0]

    def outputs(p: dict[str, Tensor], b: dict[str, Tensor], rows: Tensor) -> Tensor:
        found: Tensor = functional_call(base, (p, b), (rows,))
        return found

    together = torch.vmap(outputs)
    optimizer = torch.optim.Adam(params.values(), lr=0.01, weight_decay=2 * RIDGE)
    for epoch in range(epochs):
        if epoch and epoch % 2 == 0:
            optimizer.param_groups[0]["lr"] *= 0.95
        for rows in torch.randperm(x.shape[1], generator=generator).split(batch):
            optimizer.zero_grad()
            log_p = together(params, buffers, x[:, rows])
            # the sum over models of their mean losses: each gets its own gradient
            (len(models) * objective(log_p.flatten(0, 1), y[:, rows].flatten())).backward()
            optimizer.step()
    with torch.no_grad():
        return together(params, buffers, x_test).numpy()


def tuned(x: np.ndarray, y: np.ndarray, seed: int) -> LogisticRegression:
    """Logistic regression with the ridge that predicts a quarter of the rows best, fitted to all of them."""
    own, own_y, held, held_y = split(x, y, seed, train=0.75)
    strengths = [10.0**power for power in range(-5, 2)]
    right = [LogisticRegression(C=c, max_iter=500).fit(own, own_y).score(held, held_y) for c in strengths]
    return LogisticRegression(C=strengths[int(np.argmax(right))], max_iter=500).fit(x, y)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy by model and data set."""
    return bars_figure(evidence, y="accuracy")
