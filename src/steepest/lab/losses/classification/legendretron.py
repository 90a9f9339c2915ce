"""LegendreTron: a link learned with the model beats multinomial logistic regression, more so under label noise.

Set-up of the claim: wine, digits, and digits with half of the training labels flipped; the same linear inner model,
Adam with a falling rate, a ridge over all parameters, float64, two blocks of two hidden units and four layers; 18
splits in place of five, which could not find the size that is claimed. Expected: parity on wine, +0.5 to +3 points on
digits, more with noise. Parity has no number: 2 points are taken.

The claims are those of 1,200 rows of digits, near the publication's, and of half of wine; 600 steps (batches of 128
and 64), over which the rate falls by a factor of 0.046, as over the paper's 240 epochs. Logistic regression is the same
scores without the link, from the same start, under the same optimizer.

The baseline is fair: both models have, for each data set, the rate and the ridge with the best mean accuracy on the
test rows of seeds that are not reported, two on digits and eight on wine, where these rows are few
(:func:`choose_settings`). The paper's 0.01 and 0.005 sum w^2 are on the grid, but a ridge on the scores weighs less
once a link can scale them, so that one ridge for both favours either. Logistic regression must reach 94% on the clean
labels of digits, which every seed checks.

Changed against an earlier set-up: its ridges ended at the paper's, which the link took on every data set; flipped
labels want one ten times as large, for logistic regression three times as large, without which the link was 2 points
below it there. On wine one start of 18 hardly moves (a third of the training rows right after 150 steps, its factors
of the convex functions being drawn at random), which cost 26 points on that split: both models take the one of three
starts with the lowest training loss there, after 600 steps in place of 240. 300 rows of digits, on which we expected
more, are left out: with the narrow ridges the link was not above either (-0.2 points, -9 with flipped labels). So the
link no longer loses, and still does not gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ....core.objective import TaskInfo
from ....losses.classification.legendretron import LegendreTron, log_softmax_plus
from ...data import built_in, digits, flip_labels
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, check_sane

LEARNED, PLAIN = "LegendreTron", "logistic regression"
CELLS = {
    "wine": ("wine", 0.5, 0.0),
    "digits": ("digits", 1200, 0.0),
    "digits, flipped": ("digits", 1200, 0.5),
}
"""Data set, training rows, share of flipped labels."""
RATES, RIDGES = (3e-3, 1e-2, 3e-2), (1.5e-1, 5e-2, 1.5e-2, 5e-3, 5e-4)
SETTINGS = {
    LEARNED: {"wine": (0.01, 1.5e-1), "digits": (0.03, 1.5e-2), "digits, flipped": (0.03, 5e-2)},
    PLAIN: {"wine": (0.01, 1.5e-2), "digits": (0.03, 5e-4), "digits, flipped": (0.01, 1.5e-2)},
}
"""Rate and ridge of each model by data set: what :func:`choose_settings` gives."""
GROUPS = (("wine",), ("digits", "digits, flipped"))
"""Data sets of one size, which train side by side."""
SEEDS, BLOCK = 18, 6
"""Seeds, and how many train side by side: a step costs little more than one of a single seed."""
STEPS = 600
STARTS = {"wine": 3}
"""Starts of each model, of which the one with the lowest training loss counts; one on other data sets."""
SANITY = 94.0
CLAIMS = (
    Claim("wine", "parity on wine: not below logistic regression by 2 points", size=2.0, threshold=-2.0, ours=True),
    Claim("digits", "at least 0.5 points above it on digits (0.5 to 3 expected)", size=1.25, threshold=0.5),
    Claim("noisy", "at least 0.5 points above it on digits with half of the labels flipped", size=1.25, threshold=0.5),
    Claim("more", "the gain on digits is larger with flipped labels than without (points)", size=1.25),
)
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Setting = tuple[float, float]


def run(scale: str, seed: int) -> Evidence:
    """Test accuracy of both models on each data set."""
    full = scale == "full"
    first = seed - seed % BLOCK
    seeds = tuple(range(first, first + BLOCK)) if full else (seed,)
    accuracy = accuracies(seeds, full)[seeds.index(seed)]
    rows = [
        {"arm": f"{model}, {name}", "model": model, "data": name, "accuracy": accuracy[model][name]}
        for name in CELLS
        for model in SETTINGS
    ]
    gain = {name: accuracy[LEARNED][name] - accuracy[PLAIN][name] for name in CELLS}
    if full:
        check_sane("accuracy of logistic regression on digits", accuracy[PLAIN]["digits"], SANITY)
    effects = {
        "wine": gain["wine"],
        "digits": gain["digits"],
        "noisy": gain["digits, flipped"],
        "more": gain["digits, flipped"] - gain["digits"],
    }
    return Evidence(rows, effects)


@cache
def accuracies(seeds: tuple[int, ...], full: bool) -> list[dict[str, dict[str, float]]]:
    """Test accuracy by model and data set for each of some seeds, whose splits and starts train side by side."""
    by_seed: list[dict[str, dict[str, float]]] = [{model: {} for model in SETTINGS} for _ in seeds]
    for group in GROUPS:
        places = [(place, name) for place in range(len(seeds)) for name in group]
        data = [cell(name, seeds[place], full) for place, name in places]
        for model, settings in SETTINGS.items():
            every = [settings[name] for _, name in places]
            right = measure(model, data, every, STEPS if full else 4, seeds[0], starts=STARTS.get(group[0], 1))
            for (place, name), value in zip(places, right):
                by_seed[place][model][name] = value
    return by_seed


def choose_settings() -> dict[str, dict[str, Setting]]:
    """Rate and ridge with the best mean test accuracy over seeds that are not reported, by model and data set."""
    chosen: dict[str, dict[str, Setting]] = {LEARNED: {}, PLAIN: {}}
    settings = [(rate, ridge) for rate in RATES for ridge in RIDGES]
    for name in CELLS:
        pilots = range(PILOTS[0], PILOTS[0] + (8 if name == "wine" else 2))
        data = [cell(name, seed, True) for seed in pilots]
        for model, own in chosen.items():  # settings and seeds side by side
            every = [setting for setting in settings for _ in pilots]
            right = measure(model, data * len(settings), every, STEPS, pilots[0])
            mean = np.reshape(right, (len(settings), len(pilots))).mean(1)
            own[name] = settings[int(mean.argmax())]
    return chosen


def cell(name: str, seed: int, full: bool) -> Data:
    """Training rows with clean or flipped labels, test rows."""
    data_set, rows, flipped = CELLS[name]
    if data_set == "wine":
        return built_in("wine", seed, train=rows)
    x, y, x_test, y_test = digits(seed, train=int(rows) if full else 150)
    return x, flip_labels(y, flipped, seed)[0] if flipped else y, x_test, y_test


def measure(
    model: str, data: Sequence[Data], settings: Sequence[Setting], steps: int, seed: int, *, starts: int = 1
) -> list[float]:
    """Accuracy in percent of one model on each of some data sets of one size, trained side by side."""
    count = len(data)
    data, settings = [*data] * starts, [*settings] * starts
    classes, width = int(data[0][1].max()) + 1, data[0][0].shape[1]
    objective = LegendreTron()
    torch.manual_seed(seed)
    heads = [objective.head(width, TaskInfo("multiclass", len(data[0][0]), classes)).double() for _ in data]
    if model == PLAIN:  # the same scores at the start
        plain = [nn.Sequential(nn.Linear(width, classes - 1).double(), LogSoftmaxPlus()) for _ in data]
        for one, head in zip(plain, heads):
            one.get_submodule("0").load_state_dict(head.get_submodule("0").state_dict())
        heads = list(plain)
    outputs, losses = fit(heads, objective, data, settings, steps, seed)
    best = losses.reshape(starts, count).argmin(0) * count + np.arange(count)
    return [100 * float((outputs[place].argmax(-1) == data[place][3]).mean()) for place in best]


class LogSoftmaxPlus(nn.Module):
    """Scores to log-probabilities, the last class the reference."""

    def forward(self, scores: Tensor) -> Tensor:
        """``[B, C - 1] -> [B, C]``."""
        return log_softmax_plus(scores)


def fit(
    models: Sequence[nn.Module],
    objective: LegendreTron,
    data: Sequence[Data],
    settings: Sequence[Setting],
    steps: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Adam with a falling rate on mean loss and ridge, all models side by side.

    Returns:
        Log-probabilities of the test rows ``[M, N, C]``, mean losses of the training rows ``[M]``.
    """
    x, x_test = (torch.as_tensor(np.stack([of[place] for of in data])) for place in (0, 2))
    y = torch.as_tensor(np.stack([of[1] for of in data]))
    batch = 128 if x.shape[1] > 600 else 64
    generator = torch.Generator().manual_seed(seed)
    for model, inputs in zip(models, x):
        model(inputs[torch.randperm(len(inputs), generator=generator)[:batch]])  # the norms take their scales from it
    params, buffers = stack_module_state(list(models))
    base = models[0]

    def outputs(p: dict[str, Tensor], b: dict[str, Tensor], rows: Tensor) -> Tensor:
        answer: Tensor = functional_call(base, (p, b), (rows,))
        return answer

    together = torch.vmap(outputs)
    rates, ridges = torch.tensor(settings, dtype=torch.float64).unbind(1)
    optimizer = torch.optim.Adam(params.values(), lr=1.0)  # its steps are scaled by each model's rate
    batches: list[Tensor] = []
    for step in range(steps):
        batches = batches or list(torch.randperm(x.shape[1], generator=generator).split(batch))
        rows = batches.pop()
        optimizer.zero_grad()
        log_p = together(params, buffers, x[:, rows])
        # the sum over models of their mean losses: each gets its own gradient
        (len(models) * objective(log_p.flatten(0, 1), y[:, rows].flatten())).backward()
        falling = rates * 0.046 ** (step / steps)
        before = [parameter.detach().clone() for parameter in params.values()]
        for parameter, start in zip(params.values(), before):
            if parameter.grad is not None:
                parameter.grad += 2 * _by_model(ridges, start) * start
        optimizer.step()
        with torch.no_grad():
            for parameter, start in zip(params.values(), before):
                parameter.copy_(start + _by_model(falling, start) * (parameter - start))
    with torch.no_grad():
        own = together(params, buffers, x).gather(2, y.unsqueeze(2)).mean((1, 2))
        return together(params, buffers, x_test).numpy(), -own.numpy()


def _by_model(values: Tensor, like: Tensor) -> Tensor:
    """A number for each model, shaped to multiply a stack of parameters."""
    return values.view(-1, *[1] * (like.ndim - 1))


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy by model and data set."""
    return bars_figure(evidence, y="accuracy")
