"""The commands ``steepest watch`` and ``steepest doctor``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

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


def doctor_command(
    what: Annotated[
        str,
        typer.Argument(
            help="module:function, which gives (model, objective, data) or (model, objective, data, optimizer); or a "
            "script, which is run, and whose model, objective (or criterion, loss_fn), data (or loader) and optimizer "
            "are looked at.",
            show_default=False,
        ),
    ],
    checks: Annotated[list[str] | None, typer.Option("--check", help="A check; again for more. Default: all.")] = None,
    samples: Annotated[int, typer.Option(help="Samples of the checks that take many passes.")] = 256,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where something looks wrong.")] = False,
) -> None:
    """Look once at a model and its data, and say in words what looks wrong and which part of steepest to try.

    Dead units, exploding logits, the edge of stability, collapsed rank, miscalibration, gradient conflict, label noise,
    tokens that never train: each with the number, the threshold, and where that comes from. Nothing is trained or
    changed. In Python: steepest.watch.diagnose(model, objective, data, optimizer=optimizer).

    Examples:

    steepest doctor my_package.training:parts

    steepest doctor train.py

    steepest doctor train.py --check label_noise --check miscalibration
    """
    from .core.errors import InputError
    from .core.terminal import say
    from .watch.doctor import diagnose

    model, objective, data, optimizer = _parts(what)
    try:
        diagnosis = diagnose(model, objective, data, optimizer=optimizer, checks=checks, samples=samples)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: {error}") from error
    except Exception as error:  # of the model, the objective or the data
        raise InputError(f"{what}: {type(error).__name__}: {error}") from error
    for line in str(diagnosis).splitlines():
        say(line)
    if strict and diagnosis.wrong:
        raise typer.Exit(1)


NAMES = {
    "model": ("model", "net", "network"),
    "objective": ("objective", "criterion", "loss_fn", "loss_function"),
    "data": ("data", "loader", "valid_loader", "val_loader", "test_loader", "train_loader"),
    "optimizer": ("optimizer", "optim", "opt"),
}
"""Names in a script, in the order in which they are looked for."""


def _parts(what: str) -> tuple[Any, Any, Any, Any]:
    """Model, objective, data and optimizer (or None) that a function gives or a script leaves.

    Raises:
        InputError: it cannot be run, or something is missing.
    """
    import runpy

    from .comparison.own_parts import imported
    from .core.errors import InputError

    if Path(what).suffix == ".py":
        if not Path(what).is_file():
            raise InputError(f"no script {what!r}")
        sys.path.insert(0, str(Path(what).parent))
        words, sys.argv = sys.argv, [what]  # the words after it are those of this command
        try:
            values = runpy.run_path(what, run_name="__main__")
        except SystemExit as error:
            raise InputError(
                f"{what}: expected a script that runs to its end, got sys.exit({error.code!r}): name module:function"
            ) from error
        except Exception as error:
            raise InputError(f"{what}: {type(error).__name__}: {error}") from error
        finally:
            sys.argv = words
            sys.path.pop(0)
        values = {name: value for name, value in values.items() if not isinstance(value, (ModuleType, type))}
        chosen = {kind: next((values[n] for n in names if n in values), None) for kind, names in NAMES.items()}
    else:
        if ":" not in what:
            raise InputError(f"expected a script that ends in .py, or module:function, got {what!r}")
        function = imported("doctor", what, trust=True)  # the present call names it
        if not callable(function):
            raise InputError(f"{what}: expected a function, got {function!r:.80}")
        try:
            given = function()
        except Exception as error:
            raise InputError(f"{what}: {type(error).__name__}: {error}") from error
        if not isinstance(given, tuple) or len(given) not in (3, 4):
            raise InputError(f"{what}: expected (model, objective, data) or with an optimizer, got {given!r:.80}")
        chosen = dict(zip(NAMES, (*given, None)))
    missing = [kind for kind in ("model", "objective", "data") if chosen[kind] is None]
    if missing:
        raise InputError(f"{what}: expected a variable {' or '.join(NAMES[missing[0]])}, found none")
    return chosen["model"], chosen["objective"], chosen["data"], chosen["optimizer"]


def _draw(text: str) -> None:
    if sys.stdout.isatty():
        typer.echo("\x1b[H\x1b[2J" + text)
    else:
        typer.echo(text + "\n")
