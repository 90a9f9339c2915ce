"""The command ``lr-find``: a range test of the learning rate on one's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import DayFirst, Encoding, Header, Missing, Positive, Separator, Types, dropped_columns
from .completion import complete_data, complete_model, complete_objectives, complete_task

OPTIMIZERS = ("adamw", "sgd")


def lr_find_command(
    data: Annotated[
        str,
        typer.Argument(
            help="A CSV, TSV, Excel or Parquet file; digits, wine, iris, breast_cancer, diabetes; or images.",
            autocompletion=complete_data,
        ),
    ],
    target: Annotated[
        str | None, typer.Option(help="Target column, by name or number. Default: the last.", rich_help_panel="Data")
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="auto, classification, binary, multiclass or regression.",
            rich_help_panel="Data",
            autocompletion=complete_task,
        ),
    ] = "auto",
    drop: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns not to use; commas, or the option again. @FILE reads one name a line.", rich_help_panel="Data"
        ),
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Column of sample weights.", rich_help_panel="Data")] = None,
    positive: Positive = None,
    types: Types = None,
    missing: Missing = None,
    dayfirst: DayFirst = None,
    encoding: Encoding = None,
    separator: Separator = None,
    header: Header = "auto",
    objective: Annotated[
        str,
        typer.Option(
            help="One name, or module:Class. Default: cross-entropy, or squared error for numbers.",
            autocompletion=complete_objectives,
        ),
    ] = "default",
    model: Annotated[
        str | None,
        typer.Option(
            help="auto, plain, tabm, residual, resnet (images), or module:function. Default: as `compare` chooses.",
            autocompletion=complete_model,
        ),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, with which `compare` trains, or sgd with momentum.")] = "adamw",
    start: Annotated[float, typer.Option(help="First rate.")] = 1e-6,
    end: Annotated[float, typer.Option(help="Last rate.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = 200,
    batch: Annotated[int | None, typer.Option(help="Rows of a batch. Default: as `compare` takes.")] = None,
    accumulate: Annotated[int, typer.Option(help="Batches that one step takes; the rate rises once for all.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="Draw it into this file too: .svg, .png or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print rates and losses as JSON instead.")] = False,
) -> None:
    """Find a learning rate for your data: a short training with a rising rate.

    The network, the first training split, the scaling and the batches are those of `compare`. The rate is multiplied
    after each step; the loss is smoothed, and the test ends when it is four times its lowest. Two rates are told: where
    the loss falls fastest, and a tenth of where it is lowest, which is the peak to give to a schedule
    (`steepest schedules`). In Python: steepest.optim.schedules.lr_range_test(model, loss, loader), which leaves model,
    optimizer and random states as they were.

    Examples:

    steepest lr-find wine.csv --target quality

    steepest lr-find digits --optimizer sgd --end 10 --figure lr.svg

    steepest lr-find clinic.csv --objective focal --accumulate 4 --steps 100
    """
    from ..core.curves import check_figure, plot_lines, write_figure
    from .asked import check_asked, what_is_read
    from .errors import InputError, nearest
    from .request import Request

    if optimizer not in OPTIMIZERS:
        hint = nearest(optimizer, OPTIMIZERS)
        raise InputError(f"--optimizer: expected one of {', '.join(OPTIMIZERS)}, got {optimizer!r}{hint}")
    if not 0 < start < end < float("inf"):
        raise InputError(f"--start, --end: expected rates with 0 < start < end, got {start:g} and {end:g}")
    for option, value in (("--steps", steps), ("--accumulate", accumulate)):
        if not 1 <= value <= 100_000:
            raise InputError(f"{option}: expected an integer in 1..100000, got {value}")
    if "," in objective or objective == "all":
        raise InputError(f"--objective: expected one name, got {objective!r}")
    request = Request(
        data,
        target=target,
        task=task,
        drop=dropped_columns(drop),
        weight=weight,
        positive=positive,
        types=types,
        missing=missing,
        dayfirst=dayfirst,
        encoding=encoding,
        separator=separator,
        header=None if header == "auto" else header,
        objectives=objective,
        model=model,
        classical=False,
        batch_size=batch,
        seed=seed,
    )
    if request.of_text:
        raise InputError("lr-find: for tables and images; a comparison of texts tries several learning rates itself")
    if request.of_retrieval or request.of_ranking:
        kind = "retrieval" if request.of_retrieval else "rankings"
        raise InputError(
            f"lr-find: for classes and numbers; a comparison of {kind} tries several learning rates itself"
        )
    check_asked(request)
    if figure is not None:
        check_figure(figure)
    if not as_json:
        typer.echo(what_is_read([data]))

    from .api import prepare
    from .work.executor import one_thread
    from .work.learning_rate import range_test

    context, _ = prepare(request)
    chosen = context.settings.objectives[0 if objective == "default" else -1]  # the baseline always comes first
    try:
        with one_thread():
            test = range_test(
                context, chosen, start_lr=start, end_lr=end, steps=steps, accumulation=accumulate, optimizer=optimizer
            )
    except ValueError as error:
        raise InputError(f"{chosen}: {error}") from error
    if figure is not None:
        write_figure(
            figure,
            {"smoothed loss": (test.lrs, test.smoothed)},
            x_label="learning rate",
            y_label=chosen,
            log_x=True,
            marks={"suggestion": test.suggestion, "steepest": test.steepest},
        )
    if as_json:
        result = {
            "objective": chosen,
            "model": context.settings.model,
            "suggestion": test.suggestion,
            "steepest": test.steepest,
        }
        typer.echo(json.dumps(result | {"diverged": test.diverged, "lr": test.lrs, "loss": test.losses}))
        return
    network = context.settings.model
    typer.echo(f"{chosen} over the learning rate, smoothed; {network}, {len(test.lrs)} steps of {optimizer}")
    typer.echo("\n".join(plot_lines(test.lrs, test.smoothed, log_x=True)))
    end_of_test = f"it rose to four times that after {test.lrs[-1]:.3g}" if test.diverged else "it never diverged"
    typer.echo(f"lowest at {test.suggestion * 10:.3g}; {end_of_test}")
    if test.smoothed[-1] == min(test.smoothed):
        typer.echo("it was still falling at the last rate: a larger --end would find more")
    typer.echo(f"steepest fall at {test.steepest:.3g}")
    typer.echo(f"suggestion: {test.suggestion:.3g}")
    if figure is not None:
        typer.echo(f"figure: {figure}")
