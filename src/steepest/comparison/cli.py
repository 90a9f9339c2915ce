"""The command ``compare``, and the registration of this room's commands."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_data import data_app
from .cli_learning_rate import lr_find_command
from .cli_options import DayFirst, Encoding, Header, Missing, Positive, Separator, Types, dropped_columns
from .cli_runs import predict_command, report_command, runs_command
from .cli_work import work_command
from .completion import (
    complete_data,
    complete_file,
    complete_metric,
    complete_model,
    complete_objectives,
    complete_task,
    complete_vary,
)
from .defaults import BUDGET, MODEL, OUT


def compare_command(
    data: Annotated[
        list[str],
        typer.Argument(
            help="A CSV, TSV, Excel or Parquet file; digits, wine, iris, breast_cancer, diabetes; lists; images "
            "as .npz, as IDX images.gz:labels.gz or as a folder of class folders; with --task text a text, JSON lines "
            "with prompt and answer, or sums; several of them, or a folder of CSV files, compare across data sets.",
            autocompletion=complete_data,
        ),
    ],
    target: Annotated[
        str | None, typer.Option(help="Target column, by name or number. Default: the last.", rich_help_panel="Data")
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="auto, classification, binary, multiclass, regression, retrieval (embeddings in which rows of a class "
            "are near, tested on held-out classes), ranking (lists with grades, with --query), or text (losses of "
            "language models).",
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
    group: Annotated[
        str | None, typer.Option(help="Column whose equal cells never straddle a split.", rich_help_panel="Data")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Column of times: folds go forward in time.", rich_help_panel="Data")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            help="With --task ranking the column that says to which list a row belongs; the target is its grade there.",
            rich_help_panel="Data",
        ),
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Column of sample weights.", rich_help_panel="Data")] = None,
    rare: Annotated[
        str | None,
        typer.Option(
            help="drop or merge classes with too few rows. Default: dropped where they are a twentieth of all or less.",
            rich_help_panel="Data",
        ),
    ] = None,
    positive: Positive = None,
    types: Types = None,
    missing: Missing = None,
    dayfirst: DayFirst = None,
    encoding: Encoding = None,
    separator: Separator = None,
    header: Header = "auto",
    test: Annotated[
        str | None,
        typer.Option(
            help="A file that is the test set, instead of outer folds.",
            rich_help_panel="Data",
            autocompletion=complete_file,
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Images that carry a test part: file keeps it and repeats seeds, pool joins both for folds.",
            rich_help_panel="Data",
        ),
    ] = "auto",
    pool: Annotated[bool, typer.Option("--pool", help="The same as --split pool.", rich_help_panel="Data")] = False,
    size: Annotated[
        int | None, typer.Option(help="Resize images to this many pixels a side.", rich_help_panel="Data")
    ] = None,
    augment: Annotated[bool, typer.Option(help="Shift (and flip) images in training.", rich_help_panel="Data")] = True,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="With --task text the key of prompts in JSON lines. Default: prompt.", rich_help_panel="Data"
        ),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            help="The key of answers, which alone are learnt and scored. Default: answer.", rich_help_panel="Data"
        ),
    ] = None,
    embedding: Annotated[
        int | None,
        typer.Option(help="With --task retrieval the numbers of an embedding. Default: 64.", rich_help_panel="Data"),
    ] = None,
    noise: Annotated[
        float, typer.Option(help="Share of training labels replaced by another class.", rich_help_panel="Data")
    ] = 0.0,
    objectives: Annotated[
        str,
        typer.Option(
            help="default, all, names with commas, or module:Class.",
            rich_help_panel="What is compared",
            autocompletion=complete_objectives,
        ),
    ] = "default",
    vary: Annotated[
        str,
        typer.Option(
            help="objective, or with one objective: optimizer, schedule (fixed length, nothing stops early), or "
            "aggregator (of several targets' gradients).",
            rich_help_panel="What is compared",
            autocompletion=complete_vary,
        ),
    ] = "objective",
    arms: Annotated[
        str,
        typer.Option(
            help="Names of optimizers, schedules or aggregators, commas between, where one of these varies. "
            "default: those that most people know; all: every one.",
            rich_help_panel="What is compared",
        ),
    ] = "default",
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric that selects and compares: accuracy, balanced_accuracy, f1, macro_f1, mcc, auroc, nll, rmse, "
            "mae, r2 ..., or module:function. Default: AUROC for two classes, accuracy for more (balanced where one is "
            "rare), RMSE for numbers; map_at_r of a retrieval, or recall_at_1, recall_at_5, recall_at_10, "
            "r_precision; cross_entropy (nats a token) of a text, exact_match of answers; of texts also "
            "perplexity, token_accuracy. Of lists ndcg@10 (ndcg@K), map, mrr, kendall, spearman.",
            rich_help_panel="What is compared",
            autocompletion=complete_metric,
        ),
    ] = None,
    rope: Annotated[
        float | None,
        typer.Option(
            help="Differences of the metric up to here are practically none. Default: 0.01 of metrics that end at 1, "
            "1% of the baseline's value of others.",
            rich_help_panel="What is compared",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="auto, plain (two layers), tabm (16 networks that share layers: stronger, and slower), tabm-4, "
            "tabm-1 (of fewer), residual, resnet (images), or module:function from width to backbone. auto is the first"
            " tabm of which a round of folds takes half of the budget at most, else plain; resnet for images. "
            "For texts gpt (small, of characters, the default), or a folder with a Transformers model and tokenizer.",
            rich_help_panel="What is compared",
            autocompletion=complete_model,
        ),
    ] = MODEL,
    classical: Annotated[
        bool,
        typer.Option(
            help="Run classical learners beside the objectives, forest and boosting with as many trials (LightGBM's "
            "where it is installed: the extra trees).",
            rich_help_panel="What is compared",
        ),
    ] = True,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Rounds of outer folds. Default: 3 up to 5,000 rows, else 1. 5 with --folds 2: combined 5x2cv F test.",
            rich_help_panel="Design",
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Outer folds. Default: 5, or 3 for images.", rich_help_panel="Design")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            help="Settings an objective may try. Default: 8, or 1 for images, 3 for texts.", rich_help_panel="Design"
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Most epochs of a training. Default: 60; above 5,000 rows 150 (of tabm 60), above 10,000 rows 30; for "
            "images 20, for texts 10, all of them.",
            rich_help_panel="Design",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Epochs without improvement until a training stops (not images). Default: 10; above 5,000 rows 20; of "
            "tabm 16; above 10,000 rows 10.",
            rich_help_panel="Design",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Rows a step. Default: 64, or 256 above 10,000 rows; of tabm 32 to 1,024; of texts 32, or 8 with a "
            "model of a folder; of lists those of eight, about, for a list stays whole.",
            rich_help_panel="Design",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.", rich_help_panel="Design")] = 0,
    budget: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Time that it may take: 90s, 10m, 2h, 1h30m; a plain number is minutes. What does not fit is cut, "
            "what was asked for by name last, and the report says so. More budget later goes on from there.",
            rich_help_panel="Running",
        ),
    ] = BUDGET,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Compute the whole design, or refuse it where it takes longer than the budget.",
            rich_help_panel="Running",
        ),
    ] = False,
    cut: Annotated[bool, typer.Option("--cut", hidden=True)] = False,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes, each with a job at a time. Default: one a core.", rich_help_panel="Running"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel="Running")] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop.", rich_help_panel="Running")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where run folders live.", rich_help_panel="Running")] = Path(OUT),
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="postgresql://user@host/database keeps the run there, and `steepest work` on other machines joins it.",
            rich_help_panel="Running",
        ),
    ] = None,
    executor: Annotated[
        str,
        typer.Option(
            help="local, or ray for a Ray cluster of this machine, or ray://HOST:PORT for one that is there.",
            rich_help_panel="Running",
        ),
    ] = "local",
    track: Annotated[
        str | None,
        typer.Option(
            help="mlflow or tensorboard, each with :PLACE or not, or module:function: told of each cell and the end.",
            rich_help_panel="Running",
        ),
    ] = None,
    winner: Annotated[
        str,
        typer.Option(
            help="best saves what won, a classical learner too; network always the best network.",
            rich_help_panel="Running",
        ),
    ] = "best",
    export: Annotated[
        str | None,
        typer.Option(
            help="bencheval writes the scores in the form that this package takes, as CSV.", rich_help_panel="Running"
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the results as JSON; messages go to standard error.", rich_help_panel="Running"
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print the sentence and the report's path only.", rich_help_panel="Running"),
    ] = False,
) -> None:
    """Which objective to use on your data: all tuned alike, tested in the same nested folds.

    It answers within its budget: a full round of folds at the largest size that fits comes first, more with the time
    that is left.

    One question is declared beforehand and tested alone: does choosing the objective help? The answer is one sentence
    with its interval; below it each objective against cross-entropy (squared error for numbers) in three tiers. The
    same command goes on where it stopped, and a larger budget buys the difference.

    Training: one network fitted once, a trial on an inner split or a refit on a whole training part. Cell: one
    objective or classical learner in one outer fold at one level, with all its trainings; a finished cell is kept.
    Level: how large a cell is: training rows, epochs and trials at most. A report rests on cells of one level. Round:
    all outer folds of one repeat. Look: a report on more cells than the last one; each is tested at half the level of
    the one before.

    Examples:

    steepest compare digits

    steepest compare wine.csv --target quality --task regression

    steepest compare digits --vary optimizer --arms adamw,sgd,lion

    steepest compare clinic.csv --group patient --metric balanced_accuracy --objectives all --budget 2h

    steepest compare a.csv b.csv c.csv d.csv e.csv f.csv

    steepest compare clinic.csv --target diabetes,stroke,asthma

    steepest compare export.csv --separator ';' --encoding cp1252 --missing 'none,-9' --dayfirst

    steepest compare adult.csv --types kinds.txt --positive '<=50K'

    steepest compare cifar10.npz --repeats 3

    steepest compare images.gz:labels.gz --folds 5 --objectives squentropy,ldr

    steepest compare products/ --task retrieval --metric recall_at_1

    steepest compare results.csv --task ranking --query search --target grade

    steepest compare shakespeare.txt --task text

    steepest compare sums.jsonl --task text --model ./my-local-model

    steepest compare data.csv --objectives ldr,my_losses:MyLoss --model my_nets:backbone --dry-run
    """
    import sqlite3
    from concurrent.futures import BrokenExecutor
    from time import time as clock

    from .asked import check_asked, check_folder, expand, what_is_read
    from .errors import InputError
    from .request import Request, check_export

    check_export(export)
    if cut:
        raise InputError("--cut: what does not fit the budget is always cut by now; --strict refuses it instead")

    requests = [
        Request(
            source,
            target=target,
            task=task,
            drop=dropped_columns(drop),
            group=group,
            time=time,
            query=query,
            weight=weight,
            rare=rare,
            positive=positive,
            types=types,
            missing=missing,
            dayfirst=dayfirst,
            encoding=encoding,
            separator=separator,
            header=None if header == "auto" else header,
            test=test,
            split="pool" if pool else split,
            size=size,
            augment=augment,
            prompt=prompt,
            answer=answer,
            embedding=embedding,
            noise=noise,
            objectives=objectives,
            vary=vary,
            arms=arms,
            metric=metric,
            rope=rope,
            model=model,
            classical=classical,
            repeats=repeats,
            folds=folds,
            trials=trials,
            epochs=epochs,
            patience=patience,
            batch_size=batch,
            seed=seed,
            device=device,
            budget=budget,
            strict=strict,
            workers=workers,
            out=out,
            store=store,
            executor=executor,
            track=track,
            dry_run=dry_run,
            winner=winner,
        )
        for given in data
        for source in expand(given)
    ]
    sources = [request.data for request in requests]
    for request in requests:
        check_asked(request)
    if not dry_run:
        check_folder(out)
    if not (quiet or as_json):
        typer.echo(what_is_read(sources))
        sys.stdout.flush()

    before = clock()
    from .api import OverBudget, execute, import_all, prepare
    from .report.terminal import Terminal

    import_all()
    began = clock()

    prepared = [prepare(request) for request in requests]  # every file is read before the first training
    terminal = Terminal(quiet=quiet, to_stderr=as_json)
    if began - before >= 0.1:
        terminal.line(f"imports took {began - before:.1f} s, which no budget counts")
    comparisons = []
    for request, (context, notes) in zip(requests, prepared):
        others = {source for source in sources if source != request.data}
        command = ("steepest", *(word for word in sys.argv[1:] if word not in others))
        if len(requests) > 1:
            terminal.line(f"== {request.data}", "bold")
        try:
            done = execute(replace(request, command=command), context, notes, terminal, began)
        except OverBudget as error:
            typer.echo(f"steepest: error: {error}", err=True)
            for line in error.commands:
                typer.echo(f"  {line}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("steepest: interrupted; what is finished is kept, and the same command goes on", err=True)
            raise typer.Exit(130) from None
        except (OSError, sqlite3.Error, BrokenExecutor) as error:
            typer.echo(f"steepest: failed: {' '.join(str(error).split())}; the same command goes on", err=True)
            raise typer.Exit(1) from None
        began = clock()
        if done is not None:
            comparisons.append(done)
    across = None
    if len(comparisons) > 1:
        from .report.across import write_across
        from .verdict.across import compare_across

        across = compare_across([c.results for c in comparisons])
        for line in across["lines"]:
            terminal.line(line)
        page = write_across([c.results for c in comparisons], across, [c.folder for c in comparisons])
        terminal.line(f"report over all: {page}")
    if export and comparisons:
        from .report.export import write_export

        try:
            exported = write_export([c.results for c in comparisons], [c.folder for c in comparisons])
            terminal.line(f"exported: {exported} (time_infer_s is empty: it is not measured)")
        except InputError as error:
            terminal.line(f"warning: {error}", "yellow")
    if as_json and comparisons:
        results: Any = (
            comparisons[0].results
            if len(comparisons) == 1
            else {"data_sets": [c.results for c in comparisons], "across": across}
        )
        typer.echo(json.dumps(results, allow_nan=False))
    elif quiet:
        for comparison in comparisons:
            typer.echo(comparison.sentence)
            typer.echo(str(comparison.report))


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("compare")(compare_command)
    app.command("runs")(runs_command)
    app.command("work")(work_command)
    app.command("report")(report_command)
    app.command("predict")(predict_command)
    app.command("lr-find")(lr_find_command)
    app.add_typer(data_app, name="data")
