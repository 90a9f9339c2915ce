"""The commands ``steepest lab list | show | run | check | gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.terminal import say

if TYPE_CHECKING:
    from .evidence import StoredRun


def _complete_slug(incomplete: str) -> list[str]:
    from .asked import experiments

    return [slug for slug in experiments() if slug.startswith(incomplete)]


Slug = Annotated[
    str, typer.Argument(help="A system with an experiment, for example comp-sum.", autocompletion=_complete_slug)
]

lab_app = typer.Typer(
    help="Run each system's claims in front of you.\n\n"
    "Some experiments read image sets, a text or a table at full scale: files in the folder that STEEPEST_DATA names "
    "(without it: data). An image set that is not there is fetched from OpenML, once, by scikit-learn; for the others "
    "the error says where they come from.",
    no_args_is_help=True,
)


def print_list() -> None:
    """Each experiment with how many of its claims are shown, and the others by name; by files alone."""
    from ..catalogue import keep, kept_claims, open_claims, shown_of
    from ..core.errors import InputError
    from ..core.terminal import print_table
    from .asked import experiments

    rows = []
    for slug, system in experiments().items():
        try:
            judged = kept_claims(system)
        except ValueError as error:
            raise InputError(str(error)) from error
        said = "no evidence yet"
        if judged is not None:
            claims, reason = judged
            rest = [
                f" ({word}: {'; '.join(claim.label for claim in some)})" for word, some in open_claims(claims).items()
            ]
            said = "".join([shown_of(claims, " claims shown"), *rest, f" (stale: {reason})" if reason else ""])
        rows.append((slug, said))
    keep()
    print_table(("", ""), rows)


@lab_app.command("list")
def list_command() -> None:
    """List the experiments: how many of their claims are shown, and the others by name.

    Example: `steepest lab list`.
    """
    print_list()


@lab_app.command("show")
def show_command(
    slug: Slug,
    figure: Annotated[Path | None, typer.Option(help="Where to write the figure. Default: SLUG.svg, here.")] = None,
) -> None:
    """Print what the evidence of a system says, and draw its figure.

    Example: `steepest lab show comp-sum`.
    """
    from ..core.errors import InputError
    from .asked import find_experiment

    system = find_experiment(slug)

    from .evidence import read, why_stale, write_text
    from .figures import draw
    from .gallery import load

    record = read(system)
    if record is None:
        raise InputError(f"{slug} has no evidence yet: run `steepest lab run {slug}`")
    for text in summary(record):
        say(text)
    if reason := why_stale(system, record):
        say(f"stale: {reason}")
    path = figure or Path(f"{slug}.svg")
    drawn = draw(load(system), record.evidence, record.findings)
    try:
        write_text(path, drawn)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    typer.echo(f"figure: {path}")


@lab_app.command("run")
def run_command(
    slug: Slug,
    scale: Annotated[
        str, typer.Option(help="full, or smoke: about a second, to see that it runs; nothing is kept.")
    ] = "full",
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds. Default: the experiment's own, at least 5.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes, each with a seed at a time.")] = 1,
) -> None:
    """Run one experiment and print its findings; full scale writes its evidence.

    Example: `steepest lab run comp-sum --workers 2`.
    """
    from ..core.errors import InputError
    from .asked import check_run, find_experiment, last_time

    system = find_experiment(slug)
    check_run(scale, seeds, workers)
    if scale == "full":
        say(last_time(system))

    from .gallery import run

    try:
        record = run(system, scale=scale, seeds=seeds, workers=workers, report=typer.echo)
    except FileNotFoundError as error:  # its data
        raise InputError(str(error)) from error
    if scale == "smoke":
        say(f"{slug}: it runs ({record.seconds} s); a smoke run proves nothing, so there is no verdict")
        return
    for text in summary(record):
        say(text)


@lab_app.command("check")
def check_command(
    slugs: Annotated[
        list[str] | None,
        typer.Argument(help="Systems. Default: all that have evidence.", autocompletion=_complete_slug),
    ] = None,
) -> None:
    """Say whether evidence still stands, and mark what is stale in it.

    Evidence is stale when the system's own files have changed. Where only code beneath them has, the smoke scale is
    run, and the evidence is stale if its rows have changed. About a second a system.

    Example: `steepest lab check comp-sum`.
    """
    from .asked import experiments, find_experiment

    chosen = [find_experiment(slug) for slug in slugs] if slugs else list(experiments().values())

    from .evidence import read, why_stale
    from .gallery import recheck

    for system in chosen:
        record = read(system)
        if record is None:
            typer.echo(f"{system.slug}: no evidence yet")
            continue
        record, moved = recheck(system, record)
        reason = why_stale(system, record)
        typer.echo(f"{system.slug}: {f'stale: {reason}' if reason else 'fresh'}")
        for text in moved[:3]:
            typer.echo(f"  {text}")
        if len(moved) > 3:
            typer.echo(f"  and {len(moved) - 3} more")


@lab_app.command("gallery")
def gallery_command(
    workers: Annotated[int, typer.Option(help="Processes, each with a seed at a time.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="Run also what is fresh.")] = False,
) -> None:
    """Run every experiment whose evidence is stale or missing, then list all. It says first how long that takes.

    A killed run goes on where it was: finished seeds are not run again.

    Example: `steepest lab gallery --workers 2`.
    """
    from .asked import check_workers

    check_workers(workers)

    from .gallery import due, forecast, run

    chosen = due(every=every)
    if chosen:
        say(forecast(chosen, workers))
    for system in chosen:
        try:
            record = run(system, workers=workers, report=typer.echo)
        except FileNotFoundError as error:  # the others may have their data
            typer.echo(f"{system.slug}: {error}", err=True)
            continue
        for text in summary(record):
            say(text)
    print_list()


def summary(record: StoredRun) -> list[str]:
    """What an experiment says, a line a claim."""
    lines = [f"{record.slug}: {record.shown} ({record.scale}, {len(record.seeds)} seeds, {record.seconds} s)"]
    for finding in record.findings:
        claim = finding.claim
        side = ">" if claim.greater else "<"
        lines.append(
            f"  {finding.verdict}: {claim.text}{' (expectation of ours)' if claim.ours else ''}: {finding.mean:+.4g} "
            f"[{finding.low:+.4g}, {finding.high:+.4g}], claimed {side} {claim.threshold:g}; could have found "
            f"{finding.detectable:.2g}"
        )
    return lines
