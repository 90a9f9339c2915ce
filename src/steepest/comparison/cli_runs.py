"""The commands ``runs``, ``report`` and ``predict``: what is done with runs that are there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Encoding, Header, Separator
from .completion import complete_file, complete_run
from .defaults import OUT


def runs_command(out: Annotated[Path, typer.Option(help="Where run folders live.")] = Path(OUT)) -> None:
    """List the runs, newest first: how far each is, and what it found.

    Example: `steepest runs`.
    """
    from ..core.terminal import print_table, screen_width
    from .errors import InputError
    from .work.store import runs

    folders = runs(out)
    if not folders:
        typer.echo(f"no runs under {str(out)!r}; `steepest compare digits` makes one")
    rows = []
    for folder in folders:
        try:
            state = _progress(folder)
        except InputError as error:
            state = ("", "", f"cannot be read: {error}")
        rows.append([_on_one_line(text) for text in (folder.name, *state)])
    if screen_width() is not None:
        print_table(("run", "data", "done", "what it found"), rows)
        return
    for row in rows:
        typer.echo("  ".join(filter(None, row)))


def _progress(folder: Path) -> tuple[str, str, str]:
    """The data of a run, how far it is, and what it found."""
    from .work.store import Store

    store = Store(folder)
    try:
        done, total = store.done, store.fact("cells")
        if total is None:
            return "", "", "nothing was computed yet"
        state = store.fact("sentence") or f"goes on with: {store.fact('command')}"
        return store.fact("data"), f"{done}/{total} cells", state
    finally:
        store.close()


def _on_one_line(text: str) -> str:
    """Text of a file as a terminal may show it: on one line, without control signs."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def report_command(
    run: Annotated[
        str,
        typer.Argument(help="A run's ID, the start of one, its folder, or last.", autocompletion=complete_run),
    ] = "last",
    out: Annotated[Path, typer.Option(help="Where run folders live.")] = Path(OUT),
) -> None:
    """Write the report of a finished run again, and print where it is.

    Example: `steepest report last`.
    """
    from .errors import InputError
    from .work.store import Store, find_run

    folder = find_run(run, out)

    from .report import write_report
    from .report.stored import FILE, kept_results, read_results

    if (folder / FILE).exists():
        results = read_results(folder)
    else:
        store = Store(folder)
        results_kept, done, total, command = (
            kept_results(store),
            store.done,
            store.fact("cells"),
            store.fact("command"),
        )
        store.close()
        if results_kept is None:
            raise InputError(_on_one_line(f"run {folder.name} has {done} of {total} cells; this goes on: {command}"))
        results = results_kept
    for path in write_report(results, folder):
        typer.echo(str(path))


def predict_command(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's ID, the start of one, last; or the folder of a run or winner, anywhere.",
            autocompletion=complete_run,
        ),
    ],
    rows: Annotated[
        Path, typer.Argument(help="A file with the columns of the training data.", autocompletion=complete_file)
    ],
    to: Annotated[
        Path | None, typer.Option(help="Write the predictions to this CSV file instead of standard output.")
    ] = None,
    encoding: Encoding = None,
    separator: Separator = None,
    header: Header = "auto",
    probabilities: Annotated[
        bool | None,
        typer.Option(
            help="With a calibrated probability of each class, or without. Default: where the winner gives them."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run folders live.")] = Path(OUT),
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Import the own network or objective (module:name) that the winner names."),
    ] = False,
) -> None:
    """Predict new rows with a run's winner, network or classical learner: tuned threshold, calibrated probabilities.

    Example: `steepest predict last new-rows.csv --to predictions.csv`.
    """
    from .asked import open_source
    from .errors import InputError
    from .read.options import read_options
    from .work.store import find_winner

    folder = find_winner(run, out)
    read_options(encoding=encoding, separator=separator, header=header)
    open_source(str(rows))
    if to is not None and not to.parent.is_dir():
        raise InputError(f"--to: cannot write {str(to)!r}: no folder {str(to.parent)!r}")

    from .report.files import write_atomically
    from .report.winner.winner import Winner

    winner = Winner.load(folder, trust=trust)
    if probabilities and winner.no_probabilities:
        raise InputError(f"--probabilities: {winner.name} gives none: {winner.no_probabilities}")
    frame = winner.predict_file(rows, encoding=encoding, separator=separator, header=header)
    if probabilities is False:
        frame = frame[winner.predicted_columns]
    elif winner.no_probabilities:
        typer.echo(f"warning: {winner.name} gives no probabilities: {winner.no_probabilities}", err=True)
    for line in winner.warnings:
        typer.echo(f"warning: {line}", err=True)
    text = frame.to_csv(index=False)
    if to is None:
        typer.echo(text, nl=False)
        return
    try:
        write_atomically(to, text)
    except OSError as error:
        raise InputError(f"--to: cannot write {str(to)!r}: {error.strerror}") from error
    typer.echo(f"{len(frame)} predictions in {shlex.quote(str(to))}", err=True)
