"""The commands ``runs``, ``report`` and ``predict``: what is done with runs that are there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import Encoding, Header, Separator
from .completion import complete_file, complete_run
from .defaults import OUT


def runs_command(
    run: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs to show side by side, or to delete: IDs, the start of one, last.", autocompletion=complete_run
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete these runs, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    out: Annotated[Path, typer.Option(help="Where run folders live.")] = Path(OUT),
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="postgresql://user@host/database: list those that it keeps.")
    ] = None,
) -> None:
    """List the runs, newest first: how far each is, and what it found. Of named runs: side by side.

    Examples: `steepest runs`, `steepest runs 3f2a c060`, `steepest runs 3f2a --delete`.
    """
    from ..core.terminal import print_table, screen_width
    from .errors import InputError
    from .request import without_password
    from .work.store import find_run, runs

    names = run or []
    if store is not None and (names or delete or yes):
        raise InputError("--store: lists the runs of a database; runs to show or to delete are those of folders")
    if delete:
        if not names:
            raise InputError("--delete: name the runs; `steepest runs` lists them")
        _delete([find_run(name, out) for name in names], out, yes=yes)
        return
    if yes:
        raise InputError("--yes: goes with --delete")
    if names:
        _side_by_side([find_run(name, out) for name in dict.fromkeys(names)])
        return
    if store is None:
        folders = runs(out)
    else:
        from .work.postgres import latest_runs

        folders = [out / name for name in latest_runs(store)]
    if not folders:
        where = repr(str(out)) if store is None else without_password(store)
        typer.echo(f"no runs under {where}; `steepest compare digits` makes one")
    rows = []
    for folder in folders:
        try:
            state = _progress(folder, store)
        except InputError as error:
            state = ("", "", "", "", "", f"cannot be read: {error}")
        rows.append([_on_one_line(text) for text in (folder.name, *state)])
    if screen_width() is not None:
        print_table(("run", "data", "metric", "done", "level", "when", "what it found"), rows)
        return
    for row in rows:
        typer.echo("  ".join(filter(None, row)))


def _progress(folder: Path, url: str | None) -> tuple[str, str, str, str, str, str]:
    """The data of a run, its metric, how far it is, the level of its report and when it was made, what it found."""
    from .work.store import open_store

    store = open_store(folder, url)
    try:
        done, total = store.done, store.fact("cells")
        if total is None:
            return "", "", "", "", "", "nothing was computed yet"
        state = store.fact("sentence") or f"goes on with: {store.fact('command')}"
        metric = (store.fact("settings") or {}).get("metric", "")
        results = store.fact("results")
        level, when = ("", "") if not isinstance(results, dict) else (_level(results), _when(results))
        return store.fact("data"), str(metric), f"{done}/{total} cells", level, when, state
    finally:
        store.close()


def _level(results: dict[str, Any]) -> str:
    """What a report rests on; "" where it is not kept.

    >>> _level({"basis": {"rows": 1200, "epochs": 60, "trials": 8, "folds": 5}})
    '8 trials, 60 epochs, 1,200 rows, 5 folds'
    """
    basis = results.get("basis")
    counts = [basis.get(key) for key in ("trials", "epochs", "rows", "folds")] if isinstance(basis, dict) else [None]
    if not all(isinstance(count, int) for count in counts):
        return ""
    words = ("trial", "epoch", "row", "fold")
    return ", ".join(f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in zip(counts, words))


def _when(results: dict[str, Any]) -> str:
    """The day and minute of a report.

    >>> _when({"created": "2026-11-24T10:00:59+00:00"})
    '2026-11-24 10:00'
    """
    return str(results.get("created", ""))[:16].replace("T", " ")


def _delete(folders: list[Path], out: Path, *, yes: bool) -> None:
    """Delete the folders of runs that live under ``out``, and nothing else."""
    import shutil
    import sys

    from .errors import InputError
    from .work.store import Store, runs

    known = {path.resolve() for path in runs(out)}
    folders = list(dict.fromkeys(folders))
    for folder in folders:
        if folder.resolve() not in known or folder.is_symlink():
            raise InputError(f"--delete: {str(folder)!r} is no run under {str(out)!r}")
    listed = ", ".join(folder.name for folder in folders)
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(f"--delete asks on a terminal; --yes deletes {listed} without asking")
        if not typer.confirm(f"Delete {listed} with report, winner and all finished cells?"):
            typer.echo("nothing is deleted")
            return
    for folder in folders:
        try:
            store = Store(folder)
        except InputError:  # what cannot be read can be deleted
            shutil.rmtree(folder)
        else:
            with store.locked():
                store.close()
                shutil.rmtree(folder)
        typer.echo(f"deleted {folder}")


def _side_by_side(folders: list[Path]) -> None:
    """The answers of finished runs, a column a run, and the settings in which they differ."""
    from ..core.terminal import print_table
    from .report.numbers import number
    from .report.tables import prepare, three_probabilities

    results = [prepare(_results_of(folder)) for folder in folders]
    rows = [
        ("data", *(r["data"]["name"] for r in results)),
        ("metric", *(r["metric"]["label"] for r in results)),
        ("level", *map(_level, results)),
        ("when", *map(_when, results)),
        ("answer", *(r["headline"]["verdict"] for r in results)),
        ("difference", *(number(r["headline"]["difference"], 4, True) for r in results)),
        ("p", *("" if r["headline"]["p"] is None else f"{r['headline']['p']:.3g}" for r in results)),
        ("P better, same, worse", *(three_probabilities(r["headline"]) for r in results)),
        ("to do", *(str(r.get("advice", "")) for r in results)),
    ]
    known = [{row["name"]: row for row in r["rows"]} for r in results]
    for name in dict.fromkeys(row["name"] for r in results for row in r["rows"]):
        cells = []
        for r, own in zip(results, known):
            mean = (own[name]["metrics"].get(r["metric"]["name"]) or {}).get("mean") if name in own else None
            tier = own[name]["tier"] if name in own else ""
            cells.append("" if mean is None else f"{mean:.4f}{', ' if tier else ''}{tier}")
        rows.append((name, *cells))
    protocols = [{key: str(value) for key, value in r["protocol"].items()} for r in results]
    for key in dict.fromkeys(key for protocol in protocols for key in protocol):
        values = [protocol.get(key, "") for protocol in protocols]
        if len(set(values)) > 1:
            rows.append((key, *values))
    print_table(("", *(folder.name for folder in folders)), [[_on_one_line(text) for text in row] for row in rows])
    if len({(r["data"]["sha256"], r["metric"]["name"]) for r in results}) > 1:
        typer.echo("these runs have other data or another metric: their scores are not comparable")
    elif len(folders) > 1:
        typer.echo("runs are not tested against each other")


def _results_of(folder: Path) -> dict[str, Any]:
    """The results of a finished run, from its file or what it keeps.

    Raises:
        InputError: it is not finished.
    """
    from .errors import InputError
    from .report.stored import FILE, kept_results, read_results
    from .work.store import Store

    if (folder / FILE).exists():
        return read_results(folder)
    store = Store(folder)
    results, done, total, command = kept_results(store), store.done, store.fact("cells"), store.fact("command")
    store.close()
    if results is None:
        raise InputError(_on_one_line(f"run {folder.name} has {done} of {total} cells; this goes on: {command}"))
    return results


def _on_one_line(text: str) -> str:
    """Text of a file as a terminal may show it: on one line, without control signs."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def report_command(
    run: Annotated[
        list[str] | None,
        typer.Argument(
            help="A run's ID, the start of one, its folder, or last (the default); of several, a page over all.",
            autocompletion=complete_run,
        ),
    ] = None,
    export: Annotated[
        str | None, typer.Option(help="bencheval writes the scores in the form that this package takes, as CSV.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run folders live.")] = Path(OUT),
) -> None:
    """Write the report of a finished run again, or one over several runs, and print where it is.

    Examples: `steepest report last`, `steepest report 3f2a c060 91bb`.
    """
    from .request import check_export
    from .work.store import find_run

    check_export(export)
    folders = list(dict.fromkeys(find_run(name, out) for name in run or ["last"]))

    from .report import write_report

    results = [_results_of(folder) for folder in folders]
    if len(folders) == 1:
        for path in write_report(results[0], folders[0]):
            typer.echo(str(path))
    else:
        from .report.across import write_across
        from .verdict.across import compare_across

        data = [r["data"]["sha256"] for r in results]
        if len(set(data)) < len(data):
            typer.echo("warning: some of these runs are on the same data; the tests take them for several", err=True)
        across = compare_across(results)
        for folder, own in zip(folders, results):
            write_report(own, folder, missing=True)  # the page leads there
        for line in across["lines"]:
            typer.echo(_on_one_line(line))
        typer.echo(str(write_across(results, across, folders)))
    if export:
        from .report.export import write_export

        typer.echo(str(write_export(results, folders)))


def predict_command(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's ID, the start of one, last; or the folder of a run or winner, anywhere.",
            autocompletion=complete_run,
        ),
    ],
    rows: Annotated[
        Path,
        typer.Argument(
            help="A file with the columns of the training data; for a language model JSON lines with "
            "prompts, or a text with one a line.",
            autocompletion=complete_file,
        ),
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

    The winner of a comparison of texts goes on from prompts; that of a retrieval gives of each row the five nearest
    training rows (index from 0 on, label, cosine) and its embedding, which --no-probabilities leaves out; that of a
    ranking gives each row a score, and its rank in its list.

    Example: `steepest predict last new-rows.csv --to predictions.csv`.
    """
    from .asked import open_source
    from .errors import InputError
    from .read.options import read_options
    from .work.store import find_winner

    folder = find_winner(run, out)
    read_options(encoding=encoding, separator=separator, header=header)
    from .report.winner.loading import kind_of_winner

    kind = kind_of_winner(folder)
    of_text, of_rows = kind == "text", kind == "retrieval"
    if not of_text:
        open_source(str(rows))
    if to is not None and not to.parent.is_dir():
        raise InputError(f"--to: cannot write {str(to)!r}: no folder {str(to.parent)!r}")

    from .report.files import write_atomically
    from .report.winner.retrieval import RetrievalWinner
    from .report.winner.texts import TextWinner
    from .report.winner.winner import Winner

    winner = (TextWinner if of_text else RetrievalWinner if of_rows else Winner).load(folder, trust=trust)
    if probabilities and winner.no_probabilities:
        raise InputError(f"--probabilities: {winner.name} gives none: {winner.no_probabilities}")
    frame = winner.predict_file(rows, encoding=encoding, separator=separator, header=header)
    if probabilities is False:
        frame = frame[list(winner.predicted_columns)]
    elif not (of_text or of_rows) and winner.no_probabilities and "query" not in winner.facts:
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
