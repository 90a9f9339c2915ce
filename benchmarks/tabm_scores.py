"""Scores of TabM-mini here and by the packages tabm and rtdl-num-embeddings, trained alike on ten tables.

Both train 30 epochs on the outer training parts of the same 2 x 3 folds: 16 members, two layers of 128 units, 48
piecewise-linear bins, embeddings of 16, dropout 0.1, AdamW at 4e-3, the batches that a comparison takes; and are scored
on the outer test parts by the metric that ``steepest compare`` takes (R2 for abalone). The package sees columns of two
values as categories and finds its own bins; each shuffles by itself.

    STEEPEST_DATA=FOLDER python benchmarks/tabm_scores.py [--tables sonar,ecoli] [--epochs 30] [--done FILE]
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import rtdl_num_embeddings
import tabm
import torch
from _options import read_options
from _record import keep
from _tables import TABLES, Rows
from networks import prepared
from torch import Tensor, nn

from steepest.comparison.design.context import Context, Pair
from steepest.comparison.design.trials import WEIGHT_DECAY, Trial
from steepest.comparison.work.cells import member_of, recipe_of
from steepest.comparison.work.training import Member, Recipe, outcome_of, train

RATE, MEMBERS = 4e-3, 16


def by_steepest(context: Context, recipe: Recipe, pair: Pair, epochs: int) -> tuple[float, Member]:
    """The score of ours, and what was trained."""
    member = member_of(context, pair, -1, Trial(RATE, WEIGHT_DECAY), epochs)
    train(recipe, [member])
    assert member.objective is not None
    assert member.outputs is not None
    return _score(context, member, member.outputs), member


def _score(context: Context, member: Member, outputs: Tensor) -> float:
    assert member.objective is not None
    split = member.split
    member.objective.eval()
    return context.metric(split.other_target, outcome_of(member.objective, outputs, split), split.other_weight)


class Package(nn.Module):
    """The package's model over columns as a comparison gives them."""

    def __init__(self, inputs: Tensor, outputs: int) -> None:
        super().__init__()
        numeric = [i for i, column in enumerate(inputs.T) if len(column.unique()) > 2]
        self.numeric, self.two = numeric, [i for i in range(inputs.shape[1]) if i not in set(numeric)]
        self.register_buffer("middle", (inputs.amin(0) + inputs.amax(0)) / 2)
        bins = rtdl_num_embeddings.compute_bins(inputs[:, numeric], n_bins=min(48, len(inputs) - 1))
        self.model = tabm.TabM.make(
            n_num_features=len(numeric),
            cat_cardinalities=[2] * len(self.two) or None,
            d_out=outputs,
            num_embeddings=rtdl_num_embeddings.PiecewiseLinearEmbeddings(bins, 16, activation=False, version="B"),
            d_block=128,
            k=MEMBERS,
            arch_type="tabm-mini",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[B, members, outputs]``."""
        two = (x > self.middle)[:, self.two].long() if self.two else None
        return self.model(x[:, self.numeric], two)


def by_package(context: Context, recipe: Recipe, pair: Pair, epochs: int, ours: Member) -> float:
    """The score of the package in a plain loop."""
    split, scalar = ours.split, ours.split.task in ("binary", "regression")
    torch.manual_seed(pair[0] * 100 + pair[1])
    model = Package(split.inputs, 1 if scalar else context.classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    batch, _ = recipe.steps(len(split.inputs))
    target = split.target.float() if scalar else split.target
    for _ in range(epochs):
        for index in torch.randperm(len(split.inputs)).split(batch):
            outputs, wanted = model(split.inputs[index]), target[index].repeat_interleave(MEMBERS)
            if split.task == "binary":
                loss = nn.functional.binary_cross_entropy_with_logits(outputs.flatten(), wanted)
            elif scalar:
                loss = nn.functional.mse_loss(outputs.flatten(), wanted)
            else:
                loss = nn.functional.cross_entropy(outputs.flatten(0, 1), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(rows) for rows in split.other_inputs.split(512)])
    if split.task == "binary" and ours.outputs is not None and ours.outputs.shape[-1] == 2:
        outputs = torch.cat([torch.zeros_like(outputs), outputs], -1)  # two logits say the same as one
    return _score(context, ours, outputs.squeeze(-1) if split.task == "regression" else outputs)


def measured(name: str, epochs: int) -> dict[str, Any]:
    """Mean scores of both, and their processor seconds."""
    context = prepared(name, model="tabm", classical=False)
    recipe = recipe_of(context, context.objective(context.settings.baseline))
    scores: dict[str, list[float]] = {"ours": [], "package": []}
    seconds = {"ours": 0.0, "package": 0.0}
    for pair in context.folds:
        began = time.process_time()
        score, member = by_steepest(context, recipe, pair, epochs)
        half = time.process_time()
        scores["ours"].append(score)
        scores["package"].append(by_package(context, recipe, pair, epochs, member))
        seconds["ours"] += half - began
        seconds["package"] += time.process_time() - half
    return {"table": name, "metric": context.metric.name, "scores": scores, "seconds": seconds}


def main() -> None:
    """Measure what is not done yet, print a table."""
    options = read_options(__doc__, tables=(",".join(TABLES), "wine"), epochs=(30, 2), done=("", ""))
    torch.set_num_threads(1)
    done = Rows(options.done)
    for name in options.tables.split(","):
        if not done.has(table=name):
            done.add(measured(name, options.epochs))
    differences = []
    for row in done:
        mean = {who: statistics.mean(own) for who, own in row["scores"].items()}
        differences.append(mean["ours"] - mean["package"])
        seconds = ", ".join(f"{who} {own:.0f} s" for who, own in row["seconds"].items())
        print(f"{row['table']}: {row['metric']} ours {mean['ours']:.4f}, package {mean['package']:.4f}; {seconds}")
    print(f"mean difference {statistics.mean(differences):+.4f}")
    keep("tabm_scores", {"rows": done, "mean_difference": statistics.mean(differences)}, options)


if __name__ == "__main__":
    main()
