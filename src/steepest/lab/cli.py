"""The commands ``steepest lab list | show | run | check | gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..catalogue import System
    from .evidence import Kept

lab_app = typer.Typer(
    help="Run each system's claims in front of you.\n\n"
    "Some experiments read image sets, a text or a table at full scale: files in the folder that STEEPEST_DATA names "
    "(without it: data). An image set that is not there is fetched from OpenML, once, by scikit-learn; for the others "
    "the error says where they come from.",
    no_args_is_help=True,
)


def line(system: System) -> str:
    """A system with how many of its claims are shown, and the others by name."""
    from ..catalogue import open_claims
    from .evidence import read, why_stale

    kept = read(system)
    if kept is None:
        return f"{system.slug:<32} no evidence yet"
    rest = "".join(
        f" ({verdict}: {'; '.join(claim.label for claim in claims)})"
        for verdict, claims in open_claims(kept.judged).items()
    )
    reason = why_stale(system, kept)
    return f"{system.slug:<32} {kept.shown}{rest}{f' (stale: {reason})' if reason else ''}"


@lab_app.command("list")
def list_command() -> None:
    """List the experiments: how many of their claims are shown, and the others by name.

    Example: `steepest lab list`.
    """
    from .gallery import experiments

    for system in experiments():
        typer.echo(line(system))


@lab_app.command("show")
def show_command(
    slug: Annotated[str, typer.Argument(help="A system's slug, for example comp-sum.")],
    figure: Annotated[Path | None, typer.Option(help="Where to write the figure. Default: SLUG.svg, here.")] = None,
) -> None:
    """Print what the evidence of a system says, and draw its figure.

    Example: `steepest lab show comp-sum`.
    """
    from ..core.errors import InputError
    from .evidence import read, why_stale, write_text
    from .figures import draw
    from .gallery import load

    system = _known(slug)
    kept = read(system)
    if kept is None:
        raise InputError(f"{slug} has no evidence yet: run `steepest lab run {slug}`")
    for text in summary(kept):
        typer.echo(text)
    if reason := why_stale(system, kept):
        typer.echo(f"stale: {reason}")
    path = figure or Path(f"{slug}.svg")
    drawn = draw(load(system), kept.evidence, kept.findings)
    try:
        write_text(path, drawn)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    typer.echo(f"figure: {path}")


@lab_app.command("run")
def run_command(
    slug: Annotated[str, typer.Argument(help="A system's slug, for example comp-sum.")],
    scale: Annotated[str, typer.Option(help="smoke (about a second, nothing is kept) or full.")] = "full",
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds. Default: the experiment's own, at least 5.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Run one experiment and print its findings; full scale writes its evidence.

    Example: `steepest lab run comp-sum --workers 2`.
    """
    from ..core.errors import InputError
    from .gallery import run

    try:
        kept = run(_known(slug), scale=scale, seeds=seeds, workers=workers, report=typer.echo)
    except FileNotFoundError as error:  # its data
        raise InputError(str(error)) from error
    for text in summary(kept):
        typer.echo(text)


@lab_app.command("check")
def check_command(
    slugs: Annotated[list[str] | None, typer.Argument(help="Systems. Default: all that have evidence.")] = None,
) -> None:
    """Say whether evidence still stands, and mark what is stale in it.

    Evidence is stale when the system's own files have changed. Where only code beneath them has, the smoke scale is
    run, and the evidence is stale if its rows have changed. About a second a system.

    Example: `steepest lab check comp-sum`.
    """
    from .evidence import read, why_stale
    from .gallery import experiments, recheck

    for system in [_known(slug) for slug in slugs] if slugs else experiments():
        kept = read(system)
        if kept is None:
            typer.echo(f"{system.slug}: no evidence yet")
            continue
        kept, moved = recheck(system, kept)
        reason = why_stale(system, kept)
        typer.echo(f"{system.slug}: {f'stale: {reason}' if reason else 'fresh'}")
        for text in moved[:3]:
            typer.echo(f"  {text}")
        if len(moved) > 3:
            typer.echo(f"  and {len(moved) - 3} more")


@lab_app.command("gallery")
def gallery_command(
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="Run also what is fresh.")] = False,
) -> None:
    """Run every experiment whose evidence is stale or missing, then list all. It says first how long that takes.

    A killed run goes on where it was: finished seeds are not run again.

    Example: `steepest lab gallery --workers 2`.
    """
    from .gallery import due, experiments, forecast, run

    chosen = due(every=every)
    if chosen:
        typer.echo(forecast(chosen, workers))
    for system in chosen:
        try:
            kept = run(system, workers=workers, report=typer.echo)
        except FileNotFoundError as error:  # the others may have their data
            typer.echo(f"{system.slug}: {error}", err=True)
            continue
        for text in summary(kept):
            typer.echo(text)
    for system in experiments():
        typer.echo(line(system))


def _known(slug: str) -> System:
    """The system of a slug whose experiment exists."""
    from ..core.errors import InputError, nearest
    from .gallery import experiments

    known = {system.slug: system for system in experiments()}
    if slug not in known:
        raise InputError(f"no experiment {slug!r}{nearest(slug, known) or '; see `steepest lab list`'}")
    return known[slug]


def summary(kept: Kept) -> list[str]:
    """What an experiment says, a line a claim."""
    lines = [f"{kept.slug}: {kept.shown} ({kept.scale}, {len(kept.seeds)} seeds, {kept.seconds} s)"]
    for finding in kept.findings:
        claim = finding.claim
        side = ">" if claim.greater else "<"
        lines.append(
            f"  {finding.verdict}: {claim.text}{' (expectation of ours)' if claim.ours else ''}: {finding.mean:+.4g} "
            f"[{finding.low:+.4g}, {finding.high:+.4g}], claimed {side} {claim.threshold:g}; could have found "
            f"{finding.detectable:.2g}"
        )
    return lines
