"""The command ``steepest schedules``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .core.schedule import Schedule


def _known() -> dict[str, Any]:
    """The schedules that are there, by slug."""
    from .catalogue import systems, there

    return {row.slug: row for row in systems("optim.schedules") if row.kind == "schedule" and there(row)}


def _complete(incomplete: str) -> list[str]:
    return [slug for slug in _known() if slug.startswith(incomplete)]


def schedules_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Schedules, for example one-cycle. Default: all.", autocompletion=_complete),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the run.")] = 1000,
    lr: Annotated[float, typer.Option(help="The optimizer's learning rate.")] = 1.0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=VALUE", help="An argument of the schedule; the option again for more."),
    ] = None,
    at: Annotated[str, typer.Option(help="Print the rates at these steps, commas between.")] = "",
    figure: Annotated[Path | None, typer.Option(help="Draw them into this file too: .svg, .png or .pdf.")] = None,
) -> None:
    """Draw how each schedule moves the learning rate over a run, and the momentum where it does.

    A schedule is a function of the step alone: rebuilt at any step it goes on. Without --with the settings are those of
    the publication. With one name, --with changes any argument that its class takes; `steepest show NAME` says where
    that class is. In Python: `WSD(optimizer, warmup=100, stable=700, cooldown=200, shape="sqrt")`, then
    `schedule.step()` after each `optimizer.step()`.

    Examples:

    steepest schedules

    steepest schedules one-cycle --steps 500 --lr 0.3 --at 0,225,450,500

    steepest schedules wsd-cooldown --with shape=lowered_linear --with final=0.1

    steepest schedules wsd-s wsd-cooldown --figure schedules.svg
    """
    from .core.curves import check_figure, plot_lines, write_figure
    from .core.errors import InputError, nearest

    known = _known()
    for name in names or ():
        if name not in known:
            hint = nearest(name, sorted(known)) or f"; there are {', '.join(known)}"
            raise InputError(f"no schedule {name!r}{hint}")
    if not 1 <= steps <= 10_000_000:
        raise InputError(f"--steps: expected an integer in 1..10000000, got {steps}")
    if not 0 < lr < float("inf"):
        raise InputError(f"--lr: expected a rate above 0, got {lr}")
    given = dict(_setting(word) for word in settings or ())
    if given and len(names or ()) != 1:
        raise InputError("--with: expected one schedule by name, whose argument it is")
    asked = [_step(word, steps) for word in at.split(",") if word.strip()]
    if figure is not None:
        check_figure(figure)

    curves = {}
    for slug in names or known:
        schedule = _built(known[slug], steps, lr, given)
        places = sorted({round(k * steps / 400) for k in range(401)})
        rates = [lr * schedule.factor(step) for step in places]
        curves[slug] = (places, rates)
        typer.echo(f"{slug}: {schedule!r}")
        typer.echo("\n".join(plot_lines(places, rates)))
        if (first := schedule.momentum(0)) is not None:
            momenta = [first, *(float(schedule.momentum(step) or 0.0) for step in places[1:])]
            typer.echo("momentum")
            typer.echo("\n".join(plot_lines(places, momenta, height=3)))
        for step in asked:
            typer.echo(f"  step {step}: {lr * schedule.factor(step):.6g}")
        typer.echo("")
    if figure is not None:
        write_figure(figure, curves, x_label="step", y_label="learning rate")
        typer.echo(f"figure: {figure}")


def _setting(word: str) -> tuple[str, Any]:
    """``NAME=VALUE`` with the value as Python would read it, or as text."""
    import ast

    from .core.errors import InputError

    name, equals, text = word.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--with: expected NAME=VALUE, got {word!r}")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text


def _step(word: str, steps: int) -> int:
    from .core.errors import InputError

    if not word.strip().isdigit():
        raise InputError(f"--at: expected steps >= 0 with commas between, got {word.strip()!r}")
    return int(word)


def _built(row: Any, steps: int, lr: float, given: dict[str, Any]) -> Schedule:
    """The schedule of a system for a run, on an optimizer of its own."""
    import ast
    import importlib

    import torch

    from .core.errors import InputError
    from .core.schedule import Schedule

    module = importlib.import_module(f"steepest.{row.module}")
    classes = [getattr(module, name) for name in row.names]
    cls = next(c for c in classes if isinstance(c, type) and issubclass(c, Schedule))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    try:
        schedule = cls.spanning(optimizer, steps)
        if given:
            call = ast.parse(repr(schedule), mode="eval").body
            assert isinstance(call, ast.Call)
            own = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            schedule = cls(optimizer, **own | given)
        return schedule
    except (TypeError, ValueError) as error:
        raise InputError(f"{row.slug}: {error}") from error
