"""The commands ``steepest watch`` and ``steepest doctor``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def watch_command(
    run: Annotated[
        Path,
        typer.Argument(
            help="A file that a Recorder wrote (.jsonl), Transformers' trainer_state.json, Lightning's metrics.csv, "
            "or a folder that holds one.",
            show_default=False,
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Draw again until the run ends.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two drawings.")] = 2.0,
    page: Annotated[
        Path | None, typer.Option(help="Write the page of the run here. Default: beside the file, run.html.")
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Write no page.")] = False,
) -> None:
    """Show how a run is going: its loss, what probes read, alarms and what the guard did; here and as a page.

    A run is recorded by two lines in a training loop:

    recorder = steepest.watch.Recorder(model, objective, optimizer, sinks=["run.jsonl"])

    recorder.observe(loss, inputs, targets)

    the second after each forward pass. RecorderCallback in steepest.integrations.transformers and .lightning does the
    same beside a Trainer.

    Examples:

    steepest watch run.jsonl

    steepest watch run.jsonl --follow

    steepest watch outputs/checkpoint-500 --page run.html
    """
    from .core.errors import InputError
    from .watch.journal import NAMES, read_run
    from .watch.live import follow as follow_run
    from .watch.live import run_text
    from .watch.page import write_page

    if not every > 0:
        raise InputError(f"--every: expected seconds above 0, got {every}")
    if follow:
        record = follow_run(run, seconds=every, draw=_draw)
    else:
        from .core.terminal import screen_width

        record = read_run(run)
        typer.echo(run_text(record, screen_width() or 100))
    if no_page:
        return
    if page is None:
        folder = run if run.is_dir() else run.parent
        page = folder / ("run.html" if run.is_dir() or run.name in NAMES else f"{run.stem}.html")
    try:
        write_page(record, page)
    except OSError as error:
        raise InputError(f"--page: cannot write {str(page)!r}: {error.strerror}") from error
    typer.echo(f"\npage: {page}")


def _draw(text: str) -> None:
    if sys.stdout.isatty():
        typer.echo("\x1b[H\x1b[2J" + text)
    else:
        typer.echo(text + "\n")
