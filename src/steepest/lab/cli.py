"""The commands ``steepest lab list | run | carry | gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..catalogue import System

lab_app = typer.Typer(
    help="Run each system's central claim in front of you.\n\n"
    "Some experiments read image sets, a text or a table at full scale: files in the folder that STEEPEST_DATA names "
    "(without it: data). An image set that is not there is fetched from OpenML, once, by scikit-learn; for the others "
    "the error says where they come from.",
    no_args_is_help=True,
)


def _line(system: Any, found: dict[str, Any] | None, is_stale: bool) -> str:
    if found is None:
        return f"{system.slug:<28} no evidence yet"
    state = " (stale: the code has changed since)" if is_stale else ""
    return f"{system.slug:<28} {found['verdict']}{state}"


@lab_app.command("list")
def list_command() -> None:
    """List the experiments and what their evidence says.

    Example: `steepest lab list`.
    """
    from .gallery import experiments, read, stale

    for system in experiments():
        typer.echo(_line(system, read(system), stale(system)))


@lab_app.command("run")
def run_command(
    slug: Annotated[str, typer.Argument(help="A system's slug, for example comp-sum.")],
    scale: Annotated[str, typer.Option(help="smoke (about a second, nothing is kept) or full.")] = "full",
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds. Default: the experiment's own, at least 5.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Run one experiment and print its findings; full scale writes its evidence and figure.

    Example: `steepest lab run comp-sum --workers 2`.
    """
    from ..core.errors import InputError
    from .gallery import run

    try:
        found = run(_known(slug), scale=scale, seeds=seeds, workers=workers, report=typer.echo)
    except FileNotFoundError as error:  # its data
        raise InputError(str(error)) from error
    for line in summary(found):
        typer.echo(line)


@lab_app.command("gallery")
def gallery_command(
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="Run also what is fresh.")] = False,
) -> None:
    """Run every experiment whose evidence is stale or missing, then list all verdicts. A killed run goes on.

    Example: `steepest lab gallery --workers 2`.
    """
    from .gallery import experiments, read, run, stale

    for system in experiments():
        if every or stale(system):
            try:
                found = run(system, workers=workers, report=typer.echo)
            except FileNotFoundError as error:  # the others may have their data
                typer.echo(f"{system.slug}: {error}", err=True)
                continue
            for line in summary(found):
                typer.echo(line)
    for system in experiments():
        typer.echo(_line(system, read(system), stale(system)))


@lab_app.command("carry")
def carry_command(
    slug: Annotated[str, typer.Argument(help="A system whose evidence is stale.")],
    before: Annotated[Path, typer.Argument(help="A checkout with the code that made the evidence.")],
) -> None:
    """Keep evidence of a system whose code has changed, if both versions give the same smoke rows, bit for bit.

    For argument checks, guards and code that moved. What measures time has no such rows: run it again.

    Example: `steepest lab carry comp-sum ../before`.
    """
    from .carry import carry_over

    if not carry_over(_known(slug), before):
        typer.echo(f"{slug}: the smoke rows differ, its evidence stays stale: run `steepest lab run {slug}`", err=True)
        raise typer.Exit(1)
    typer.echo(f"{slug}: the same smoke rows, its evidence is kept")


def _known(slug: str) -> System:
    """The system of a slug whose experiment exists."""
    from ..core.errors import InputError, nearest
    from .gallery import experiments

    known = {system.slug: system for system in experiments()}
    if slug not in known:
        raise InputError(f"no experiment {slug!r}{nearest(slug, known) or '; see `steepest lab list`'}")
    return known[slug]


def summary(found: dict[str, Any]) -> list[str]:
    """What an experiment found, a line a claim.

    >>> summary({"slug": "x", "verdict": "shown", "seconds": 1.0, "scale": "full", "claims": []})
    ['x: shown (full, 1.0 s)']
    """
    lines = [f"{found['slug']}: {found['verdict']} ({found['scale']}, {found['seconds']} s)"]
    for claim in found["claims"]:
        side = ">" if claim["greater"] else "<"
        lines.append(
            f"  {claim['verdict']}: {claim['text']}: {claim['mean']:+.4g} [{claim['low']:+.4g}, {claim['high']:+.4g}], "
            f"claimed {side} {claim['threshold']:g}; could have found {claim['detectable']:.2g}"
        )
    return lines
