"""The command ``work``: join a run that somebody has begun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .completion import complete_file, complete_run
from .defaults import OUT


def work_command(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's ID, the start of one, its folder, or last: the one that began last and is not over.",
            autocompletion=complete_run,
        ),
    ] = "last",
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="postgresql://user@host/database, as the run was begun with.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with a job at a time. Default: one a core.")
    ] = None,
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="How long to wait for a run, and for its next job: 90s, 10m, 2h.")
    ] = "5m",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Where the data are on this machine, if neither there nor in the database.",
            autocompletion=complete_file,
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import the own objective, network or metric (module:name) that it names.")
    ] = False,
    lease: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="How long its jobs stay its own when nothing is heard of it; renewed meanwhile."
        ),
    ] = "1m",
    out: Annotated[Path, typer.Option(help="Where run folders live.")] = Path(OUT),
) -> None:
    """Join a run: compute jobs that `steepest compare` has no hands for, as long as there are any.

    It may run on any machine that reaches the database, or a second time on the machine of a run without one. The same
    data, settings and version are checked by the run's ID. Ctrl-C gives back what it holds.

    Examples: `steepest work last`, `steepest work --store postgresql://me@db/runs 3f2a`.
    """
    from .budget import seconds_of
    from .errors import InputError
    from .request import check_effort

    check_effort("1m", workers)
    if data is not None and not data.exists():
        raise InputError(f"--data: no file {str(data)!r}")
    times = {}
    for option, text in (("--wait", wait), ("--lease", lease)):
        try:
            times[option] = seconds_of(text)
        except InputError as error:
            raise InputError(str(error).replace("--budget", option)) from None
    seconds = times["--wait"]

    import sqlite3
    from concurrent.futures import BrokenExecutor

    from .design.effort import default_workers
    from .joining import join
    from .work.executor import one_thread
    from .work.team import help_out, wait_for

    with wait_for(run, store, out, seconds) as opened:
        name = opened.folder.name
        context = join(name, opened, trust=trust, data=data)
        count = default_workers(context.settings) if workers is None else workers
        typer.echo(f"run {name}: {count} {'process' if count == 1 else 'processes'} at work")
        try:
            with one_thread():
                done = help_out(context, opened, count, wait=seconds, lease=times["--lease"], say=typer.echo)
        except KeyboardInterrupt:
            typer.echo("steepest: interrupted; what it held is given back", err=True)
            raise typer.Exit(130) from None
        except (OSError, sqlite3.Error, BrokenExecutor) as error:
            typer.echo(f"steepest: failed: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None
        why = "it is over" if opened.over() else f"none was posted for {wait}"
        typer.echo(f"run {name}: {done} {'job' if done == 1 else 'jobs'} done; {why}")
