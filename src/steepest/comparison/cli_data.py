"""The command ``data score``: which rows are suspicious, and what leaving them out does."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import DayFirst, Encoding, Header, Missing, Positive, Separator, Types, dropped_columns
from .completion import complete_data, complete_metric, complete_task

data_app = typer.Typer(
    name="data",
    help="What rows are worth: which of them are suspicious.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Data = Annotated[
    str,
    typer.Argument(
        help="A CSV, TSV, Excel or Parquet file; digits, wine, iris, breast_cancer, diabetes; or images.",
        autocompletion=complete_data,
    ),
]
_Target = Annotated[
    str | None, typer.Option(help="Target column, by name or number. Default: the last.", rich_help_panel="Data")
]
_Task = Annotated[
    str,
    typer.Option(
        help="auto, classification, binary, multiclass or regression.",
        rich_help_panel="Data",
        autocompletion=complete_task,
    ),
]
_Drop = Annotated[
    list[str] | None,
    typer.Option(
        help="Columns not to use; commas, or the option again. @FILE reads one name a line.", rich_help_panel="Data"
    ),
]
_Group = Annotated[
    str | None, typer.Option(help="Column whose equal cells never straddle a split.", rich_help_panel="Data")
]
_Rare = Annotated[str | None, typer.Option(help="Classes with too few rows: drop or merge.", rich_help_panel="Data")]


def score_command(
    data: _Data,
    target: _Target = None,
    task: _Task = "auto",
    drop: _Drop = None,
    group: _Group = None,
    rare: _Rare = None,
    positive: Positive = None,
    types: Types = None,
    missing: Missing = None,
    dayfirst: DayFirst = None,
    encoding: Encoding = None,
    separator: Separator = None,
    header: Header = "auto",
    score: Annotated[
        str, typer.Option(help="By what rows are ranked: loss, el2n, forgetting or influence; the file has all.")
    ] = "loss",
    top: Annotated[int, typer.Option(help="Rows that the table shows.")] = 50,
    leave_out: Annotated[
        float, typer.Option(help="Share of the training rows whose leaving out is tried; 0 tries nothing.")
    ] = 0.05,
    metric: Annotated[
        str | None,
        typer.Option(help="Of held-out rows. Default: as `compare` chooses.", autocompletion=complete_metric),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Repeats of five folds, each with its own seeds.")] = 2,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a training. Default: by the number of rows.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    out: Annotated[Path, typer.Option(help="The CSV file of all rows with their scores.")] = Path("scores.csv"),
    page: Annotated[Path | None, typer.Option(help="Write the table and what was found to this HTML file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON instead.")] = False,
) -> None:
    """Which rows are suspicious: wrongly labelled, odd or hard; and what leaving them out does.

    Small networks are trained on four fifths of the rows, again and again. loss is out of fold: by networks that have
    not seen the row. el2n (how far the probabilities are off early in training), forgetting (how often a row that was
    right turns wrong, the number of epochs if it never was right) and influence (how far steps on the row alone move
    the last layer) are in training, by networks that have seen it. Rows count from 1, below the header.

    Then networks are trained with and without the most suspicious rows, chosen within each training part, and without
    as many at random; the difference on rows held out is told with its interval. A high score is a reason to look, not
    a proof: rare rows that are right have high scores too.

    Examples:

    steepest data score clinic.csv --target outcome

    steepest data score digits --score influence --top 20 --leave-out 0.1 --page digits.html
    """
    from .asked import what_is_read
    from .errors import InputError, nearest
    from .names import ROW_SCORES
    from .request import Request

    if score not in ROW_SCORES:
        hint = nearest(score, ROW_SCORES)
        raise InputError(f"--score: expected one of {', '.join(ROW_SCORES)}, got {score!r}{hint}")
    if not 1 <= top <= 10_000:
        raise InputError(f"--top: expected an integer in 1..10000, got {top}")
    if not 0 <= leave_out <= 0.5:
        raise InputError(f"--leave-out: expected a share in [0, 0.5], got {leave_out:g}")
    request = Request(
        data,
        target=target,
        task=task,
        drop=dropped_columns(drop),
        group=group,
        rare=rare,
        positive=positive,
        types=types,
        missing=missing,
        dayfirst=dayfirst,
        encoding=encoding,
        separator=separator,
        header=None if header == "auto" else header,
        metric=metric,
        repeats=repeats,
        epochs=epochs,
        folds=5,
        seed=seed,
    )
    _checked(request, "data score")
    for option, path in (("--out", out), ("--page", page)):
        _check_parent(option, path)
    _say(what_is_read([data]), quiet=as_json)

    from .metrics.tables import default_of, metric_of
    from .read.given import read_data
    from .read.inputs import class_counts
    from .report.rows import effect_lines, rows_csv, rows_page, rows_table, scored_rows
    from .work.executor import one_thread
    from .work.row_scores import RowSettings, check_rows, score_rows
    from .work.row_scores import leave_out as try_without

    table, _ = read_data(request)
    check_rows(table, score)
    name = default_of(table, class_counts(table) or None).name if metric is None else metric
    chosen = metric_of(name, table)
    for text in (*table.decisions, *(f"warning: {text}" for text in table.warnings)):
        _say(text, quiet=as_json)
    tell = partial(_say, quiet=as_json)
    settings = RowSettings(repeats=repeats, epochs=epochs, seed=seed)
    with one_thread():
        scores = score_rows(table, settings, tell)
        effect = try_without(table, settings, score, leave_out, chosen, tell) if leave_out else None
    rows = scored_rows(table, scores, score)
    _write("--out", out, rows_csv(rows))
    lines = [f"rows ranked by {score}, {_KINDS[score]}; {repeats} repeats of 5 folds, seed {seed}"]
    if effect is not None:
        lines += effect_lines(effect, len(table.target) - len(table.target) // 5)
    if page is not None:
        _write("--page", page, rows_page(f"Suspicious rows of {table.name}", lines, rows, top))
    if as_json:
        typer.echo(json.dumps(_facts(effect) | {"score": score, "out": str(out), "rows": rows[:top]}, allow_nan=False))
        return
    from ..core.terminal import print_table

    head, cells = rows_table(rows, top)
    print_table(head, cells)
    for line in lines:
        _say(line)
    _say(f"all {len(rows)} rows: {shlex.quote(str(out))}")
    if page is not None:
        _say(f"page: {shlex.quote(str(page))}")


_KINDS = {
    "loss": "out of fold",
    "el2n": "in training, early",
    "forgetting": "in training, equal counts by loss",
    "influence": "in training",
}


def _facts(effect: Any) -> dict[str, Any]:
    """What leaving out did, for JSON."""
    if effect is None:
        return {"effect": None}
    gains = {"without": effect.gain, "at_random": effect.gain_at_random}
    return {
        "effect": {
            "metric": effect.metric.name,
            "count": effect.count,
            **{name: getattr(effect, name).tolist() for name in ("everything", "without", "at_random")},
            "gain": {name: {"mean": g.mean, "low": g.low, "high": g.high} for name, g in gains.items()},
        }
    }


def _checked(request: Any, command: str) -> None:
    """Refuse texts, and what is wrong whatever the data say."""
    from .asked import check_asked
    from .errors import InputError

    if request.of_text:
        raise InputError(f"{command}: for tables and images, not for texts")
    check_asked(request)


def _check_parent(option: str, path: Path | None) -> None:
    from .errors import InputError

    if path is not None and not path.parent.is_dir():
        raise InputError(f"{option}: cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")


def _write(option: str, path: Path, text: str) -> None:
    from .errors import InputError
    from .report.files import write_atomically

    try:
        write_atomically(path, text)
    except OSError as error:
        raise InputError(f"{option}: cannot write {str(path)!r}: {error.strerror}") from error


def _say(line: str, *, quiet: bool = False) -> None:
    from ..core.terminal import say

    if not quiet:
        say(line)
        sys.stdout.flush()


data_app.command("score")(score_command)
