"""The trainings of a comparison on digits: by steepest, in a hand-written loop, and by skorch, in core-seconds.

A cell is one objective in one outer fold: its trials on each inner split, networks 64 -> 128 -> 128 -> 10 with
cross-entropy and AdamW, accuracy on the validation rows after every epoch, early stopping. The hand-written loop
starts from the same parameters and takes the same rows in the same order, so it must find the same scores; skorch
shuffles by itself. The three take turns within one process, on one thread, and processor time is counted: what else
runs on the machine stretches it far less than the clock.

    python benchmarks/compare.py [--cells 3] [--trials 8] [--epochs 60]
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from _options import read_options
from _record import keep
from skorch import NeuralNetClassifier
from skorch.callbacks import EarlyStopping
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn

from steepest.comparison.api import prepare
from steepest.comparison.design.context import Context
from steepest.comparison.design.models import build, feature_width
from steepest.comparison.design.trials import trials
from steepest.comparison.request import Request
from steepest.comparison.work.cells import member_of, recipe_of
from steepest.comparison.work.training import Member, Recipe, train
from steepest.core.objective import TaskInfo
from steepest.descent.batches import epoch_order, seeded
from steepest.losses import CrossEntropyLoss

Results = list[tuple[float, int]]
"""The best score and the epochs of each training."""


def by_steepest(recipe: Recipe, members: Sequence[Member]) -> Results:
    """As a comparison runs them."""
    train(recipe, members)
    return [(m.score, len(m.curve)) for m in members]


def network(recipe: Recipe, member: Member) -> nn.Module:
    """The network that the member's seeds give."""
    width = feature_width(recipe.backbone(member.split.inputs.shape[1]), tuple(member.split.inputs.shape[1:]))
    info = TaskInfo(**{**vars(member.info), "feature_dim": width})
    seeds = {"backbone_seed": member.seeds["backbone"], "head_seed": member.seeds["head"]}
    return build(recipe.backbone, member.split.inputs.shape[1], CrossEntropyLoss(), info, **seeds)[0]


def by_hand(recipe: Recipe, members: Sequence[Member]) -> Results:
    """One after the other, in plain torch."""
    results = []
    for member in members:
        split, model = member.split, network(recipe, member)
        optimizer = torch.optim.AdamW(model.parameters(), lr=member.trial.lr, weight_decay=member.trial.weight_decay)
        target = torch.as_tensor(split.other_target)
        batch, steps = recipe.steps(len(split.inputs))
        best, best_epoch, outputs = -np.inf, 0, None
        for epoch in range(1, recipe.epochs + 1):
            order = epoch_order(len(split.inputs), batch, steps, seeded(member.seeds["order"], epoch), split.target)
            for index in order:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(split.inputs[index]), split.target[index]).backward()
                optimizer.step()
            with torch.no_grad():
                said = model(split.other_inputs)
                score = float((said.argmax(1) == target).double().mean())
            if score > best:
                best, best_epoch, outputs = score, epoch, said
            if epoch - best_epoch >= recipe.patience:
                break
        assert outputs is not None
        results.append((best, epoch))
    return results


def by_skorch(recipe: Recipe, members: Sequence[Member]) -> Results:
    """One after the other, as skorch's classifier."""
    results = []
    for member in members:
        split, model = member.split, network(recipe, member)
        torch.manual_seed(member.seeds["order"])
        stopping = EarlyStopping("valid_acc", patience=recipe.patience, lower_is_better=False, threshold=0)
        net = NeuralNetClassifier(
            copy.deepcopy(model),
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=member.trial.weight_decay,
            lr=member.trial.lr,
            batch_size=recipe.batch_size,
            max_epochs=recipe.epochs,
            iterator_train__shuffle=True,
            iterator_valid__batch_size=1024,
            train_split=predefined_split(Dataset(split.other_inputs, torch.as_tensor(split.other_target))),
            callbacks=[stopping],
            verbose=0,
        ).fit(split.inputs, split.target)
        scores = net.history[:, "valid_acc"]
        results.append((max(scores), len(scores)))
    return results


WAYS: dict[str, Callable[[Recipe, Sequence[Member]], Results]] = {
    "steepest": by_steepest,
    "by_hand": by_hand,
    "skorch": by_skorch,
}


def members_of(context: Context, pair: tuple[int, int]) -> list[Member]:
    """The trainings of one cell, as a comparison tunes it."""
    settings = trials(CrossEntropyLoss, context.settings.trials, context.settings.seed)
    return [member_of(context, pair, part, trial) for trial in settings for part in range(len(context.inner(pair)))]


def main() -> None:
    """Cells in turn, each by all three."""
    options = read_options(__doc__, cells=(3, 1), trials=(8, 1), epochs=(60, 2))
    sizes = {"trials": options.trials, "epochs": options.epochs}
    request = Request("digits", objectives="cross_entropy", metric="accuracy", model="plain", classical=False, **sizes)
    context, _ = prepare(request)
    recipe = recipe_of(context, CrossEntropyLoss)
    pairs = list(context.folds)[: options.cells]
    for train_once in WAYS.values():  # imports and first calls
        train_once(Recipe(**{**vars(recipe), "epochs": 1}), members_of(context, pairs[0])[:2])
    seconds, epochs = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
    scores: dict[str, list[float]] = {name: [] for name in WAYS}
    for pair in pairs:
        for name, train_all in WAYS.items():
            members = members_of(context, pair)
            started = time.process_time()
            results = train_all(recipe, members)
            seconds[name] += time.process_time() - started
            scores[name] += [score for score, _ in results]
            epochs[name] += sum(count for _, count in results)
    difference = max(abs(a - b) for a, b in zip(scores["steepest"], scores["by_hand"]))
    per_epoch = {name: 1e3 * seconds[name] / epochs[name] for name in WAYS}
    ratios = {name: round(per_epoch[name] / per_epoch["steepest"], 2) for name in ("by_hand", "skorch")}
    print(f"{len(scores['steepest'])} trainings: core-seconds, epochs, core-milliseconds an epoch, mean best accuracy")
    for name in WAYS:
        print(f"  {name:10} {seconds[name]:7.2f} {epochs[name]:6} {per_epoch[name]:7.2f} {np.mean(scores[name]):.4f}")
    print(f"  an epoch costs {ratios['by_hand']}x by hand and {ratios['skorch']}x by skorch")
    print(f"  best accuracies by hand differ by {difference:.4f} at most")
    numbers = {
        "trainings": len(scores["steepest"]),
        "core_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "epochs": epochs,
        "core_ms_per_epoch": {name: round(value, 3) for name, value in per_epoch.items()},
        "over_steepest": ratios,
        "largest_difference_of_scores_by_hand": round(difference, 4),
        "mean_best_accuracy": {name: round(float(np.mean(value)), 4) for name, value in scores.items()},
    }
    keep("compare", numbers, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
