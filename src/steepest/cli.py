"""The command ``steepest``: one line of input, one clear answer, an exit code that a script can trust."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_schedules import schedules_command
from .cli_watch import doctor_command, watch_command
from .comparison.cli import register as register_comparison
from .comparison.cli_data import data_app
from .core.terminal import paragraphs
from .lab.cli import lab_app

if TYPE_CHECKING:
    from .catalogue import System

EPILOG = "Exit codes: 0 done; 1 failed while running; 2 bad input or over budget; 130 interrupted."

app = typer.Typer(
    name="steepest",
    help="Which objective to use on your data, how much better it is, how sure that is, and at what cost.",
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from . import __version__

        typer.echo(f"steepest {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def _complete_room(incomplete: str) -> list[str]:
    from .catalogue import systems

    rooms = {name for row in systems() for name in (row.room, row.room.partition(".")[0])}
    return sorted(room for room in rooms if room.startswith(incomplete))


def _complete_slug(incomplete: str) -> list[str]:
    from .catalogue import systems

    return [row.slug for row in systems() if row.slug.startswith(incomplete)]


register_comparison(app)
app.add_typer(lab_app, name="lab")


@app.command("systems")
def systems_command(
    room: Annotated[
        str,
        typer.Option(help="Only this room, for example losses or losses.ranking.", autocompletion=_complete_room),
    ] = "",
    missing: Annotated[bool, typer.Option("--missing", help="Only systems that are not there yet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array instead of a table.")] = False,
) -> None:
    """List every system, and how far each one is.

    there: its names import. checked: tests prove every fact it must hold. shown: how many claims of the publication
    its own experiment has shown, and how many expectations of ours.

    Examples: `steepest systems --room losses.classification`, `steepest systems --missing`, `steepest systems --json`.
    """
    from .catalogue import shown_of, systems
    from .core.terminal import print_table, say

    chosen = systems(room.rstrip("."))
    if not chosen:
        raise _refused("room", room, {name for row in systems() for name in (row.room, row.room.partition(".")[0])})
    rows = _with_status(chosen)
    shown = [(row, status) for row, status in rows if not (missing and status["there"])]
    if as_json:
        import json
        from dataclasses import asdict

        for _, status in shown:
            status["claims"] = [asdict(claim) for claim in status["claims"]] if status["claims"] else None
        typer.echo(json.dumps([{"slug": row.slug, "room": row.room, "kind": row.kind, **s} for row, s in shown]))
        return
    table = [
        (row.slug, row.room, row.kind, _word(s["there"]), _word(s["checked"]), shown_of(s["claims"] or ()) or "-")
        for row, s in shown
    ]
    print_table(("slug", "room", "kind", "there", "checked", "shown"), table)
    count = {key: sum(bool(status[key]) for _, status in rows) for key in ("there", "checked", "claims")}
    known = f"{count['checked']} checked, {count['claims']} with fresh evidence"
    if all(status["checked"] is None for _, status in rows if status["there"]):
        known = "checked and shown are not known here: this package was built without its tests and evidence"
    say(f"{len(chosen)} systems: {count['there']} there, {known}")


@app.command("show")
def show_command(
    slug: Annotated[str, typer.Argument(help="A system's slug, for example comp-sum.", autocompletion=_complete_slug)],
) -> None:
    """Show one system: what it is, where it comes from, how to import it, how far it is.

    Example: `steepest show comp-sum`.
    """
    from .catalogue import docstring, find, open_claims, shown_of, systems
    from .core.terminal import screen_width, wrapped

    if slug not in {row.slug for row in systems()}:
        raise _refused("system", slug, {row.slug for row in systems()})
    row = find(slug)
    status = _with_status([row])[0][1]
    claims = status["claims"] or ()
    lines = {
        "what": docstring(row.module).partition("\n")[0] if status["there"] else "",
        "title": row.title,
        "year": row.year,
        "source": row.source,
        "room": row.room,
        "module": f"steepest.{row.module}",
        "kind": row.kind,
        "names": ", ".join(row.names),
        "facts": row.holds,
        "default": "no" if row.default is None else f"rank {row.default}",
        "experiment": f"steepest.{row.experiment}" if row.experiment else "",
        "there": _word(status["there"]),
        "checked": _word(status["checked"]),
        "claims": shown_of(claims, " claims shown") or "-",
        **{
            verdict: "; ".join(f"{claim.text}{' (ours)' if claim.ours else ''}" for claim in some)
            for verdict, some in open_claims(claims).items()
        },
        "import": row.import_line if status["there"] else "",
    }
    typer.echo(row.slug)
    width, margin = screen_width(), " " * 15
    for key, value in lines.items():
        if value != "":
            first, *more = wrapped(str(value), None if width is None else width - len(margin))
            typer.echo("\n".join([f"  {key:<12} {first}", *(margin + line for line in more)]))


app.command("schedules")(schedules_command)
app.command("watch")(watch_command)
app.command("doctor")(doctor_command)


def _with_status(rows: Sequence[System]) -> list[tuple[System, dict[str, Any]]]:
    from .catalogue import statuses

    try:
        by_slug = statuses(rows)
    except ValueError as error:
        from .core.errors import InputError

        raise InputError(str(error)) from error
    return [(row, vars(by_slug[row.slug]).copy()) for row in rows]


def _word(value: bool | str | None) -> str:
    return value if isinstance(value, str) else {True: "yes", False: "no", None: "-"}[value]


def _refused(what: str, word: str, known: set[str]) -> Exception:
    from .core.errors import InputError, nearest

    return InputError(f"no {what} {word!r}{nearest(word, sorted(known)) or '; see `steepest systems`'}")


for group in (app, lab_app, data_app):
    for command in group.registered_commands:
        command.help = paragraphs(getattr(command.callback, "__doc__", None) or "")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what the user did wrong is one line on stderr.

    >>> run(["--version"])
    steepest ...
    0
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=given or ["--help"], prog_name="steepest", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # The reader has gone (`steepest systems | head`): keep the interpreter's own last flush quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = _users_fault(error)
        if message is None:
            raise
        print("steepest: error:", " ".join(message.split()), file=sys.stderr)
        return 2
    if not given:
        return 2
    return code if isinstance(code, int) else 0


def _users_fault(error: Exception) -> str | None:
    """What to tell the user where the command line or its input was wrong; None for any other failure."""
    # typer.BadParameter's bases, up to Exception, are all that its parser raises, whichever parser typer carries.
    parser = tuple(base for base in typer.BadParameter.__mro__ if base not in (Exception, BaseException, object))
    if isinstance(error, parser):
        return getattr(error, "format_message", lambda: str(error))()
    from .core.errors import InputError

    return str(error) if isinstance(error, InputError) else None


def main() -> None:
    """The entry point of the console script."""
    sys.exit(run())
