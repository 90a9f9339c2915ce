"""Trainings of TabM-mini as one stack, against the package tabm in its own loop; processor milliseconds a step of one.

16 members, two layers of 128 units, 48 piecewise-linear bins a column, embeddings of 16, dropout 0.1, batches of 32
as a comparison takes for 1,600 rows, AdamW, one thread. The package trains in a plain loop, as its example
does. The two take turns.

    python benchmarks/tabm_mini.py [--steps 40] [--rounds 5] [--models 8]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import rtdl_num_embeddings
import tabm
import torch
from _options import read_options
from _record import keep
from torch import Tensor, nn

from steepest.comparison.design.networks import training_of
from steepest.core.each_member import EachMember
from steepest.core.heads import heads_of_members
from steepest.descent import Descent, Stack, StackedAdamW, StackedBatches, StackedObjective, StackedStep
from steepest.losses import CrossEntropyLoss
from steepest.nn.networks import Network
from steepest.nn.piecewise_linear import quantile_edges
from steepest.nn.tabm import TabM

MEMBERS, WIDTH, ROWS, CLASSES, RATE, DECAY = 16, 128, 1600, 3, 2e-3, 3e-4
BATCH = training_of("tabm", ROWS).batch_size


def by_package(x: Tensor, y: Tensor, edges: list[Tensor], steps: int) -> Callable[[], object]:
    """One model, in its own loop."""
    embeddings = rtdl_num_embeddings.PiecewiseLinearEmbeddings(edges, 16, activation=False, version="B")
    model = tabm.TabM.make(
        n_num_features=x.shape[1],
        d_out=CLASSES,
        num_embeddings=embeddings,
        d_block=WIDTH,
        k=MEMBERS,
        arch_type="tabm-mini",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)

    def run() -> None:
        for index in torch.randint(ROWS, (steps, BATCH)):
            outputs = model(x[index])
            loss = nn.functional.cross_entropy(outputs.flatten(0, 1), y[index].repeat_interleave(MEMBERS))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def by_stack(x: Tensor, y: Tensor, edges: list[Tensor], steps: int, models: int) -> Callable[[], object]:
    """So many models as one, as a comparison trains its trials."""
    columns = range(x.shape[1])

    def network() -> Network:
        body = TabM(x.shape[1], numeric=columns, edges=edges, members=MEMBERS, width=WIDTH)
        return Network(body, heads_of_members([nn.Linear(WIDTH, CLASSES) for _ in range(MEMBERS)]))

    stack = Stack([network() for _ in range(models)], seeds=range(models))
    batches = StackedBatches([(x, y, None)], [0] * models, list(range(models)), batch_size=BATCH, steps=steps)
    objectives = [EachMember(CrossEntropyLoss(), MEMBERS, "multiclass") for _ in range(models)]
    optimizer = StackedAdamW(stack, lr=[RATE] * models, weight_decay=[DECAY] * models, one_pass=True)
    method = StackedStep(by_hand=True)
    run = Descent(stack, StackedObjective(objectives, batches.labels), batches, method=method, optimizer=optimizer)
    return lambda: run.fit(run.epoch + 1)


def main() -> None:
    """Medians over rounds, for tables of few and of many columns."""
    options = read_options(__doc__, steps=(40, 2), rounds=(5, 1), models=(8, 2))
    numbers = {}
    for columns in (5, 13, 30):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(ROWS, columns, generator=generator)
        y = torch.randint(CLASSES, (ROWS,), generator=generator)
        edges = [own.float() for own in quantile_edges(x, 48)]
        ways = {
            "package": (by_package(x, y, edges, options.steps), options.steps),
            "stack": (by_stack(x, y, edges, options.steps, options.models), options.steps * options.models),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name, (run, count) in ways.items():
                began = time.process_time()
                run()
                if number:  # the first warms up
                    times[name].append(1e3 * (time.process_time() - began) / count)
        milliseconds = {name: round(statistics.median(values), 2) for name, values in times.items()}
        ratio = round(milliseconds["package"] / milliseconds["stack"], 2)
        print(f"{columns} columns: package {milliseconds['package']} ms, stack {milliseconds['stack']} ms: {ratio}x")
        numbers[f"{columns} columns"] = {**milliseconds, "package_over_stack": ratio}
    keep("tabm_mini", {"models": options.models, "threads": torch.get_num_threads(), **numbers}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
