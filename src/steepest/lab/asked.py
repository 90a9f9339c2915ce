"""What a command asks of the lab: refused, where it is wrong, before anything slow is imported."""

from __future__ import annotations

from collections.abc import Mapping

from ..catalogue import System, evidence_file, systems
from ..catalogue.names import facts_of
from ..core.errors import InputError, nearest
from ..core.stored import read_json
from ..sources import source_files


def experiments() -> dict[str, System]:
    """The systems whose experiment exists, by slug."""
    return {s.slug: s for s in systems() if s.experiment and source_files(s.experiment)}


def find_experiment(slug: str) -> System:
    """The system of a slug whose experiment exists.

    Raises:
        InputError: there is none; the nearest is named.
    """
    known = experiments()
    if slug not in known:
        raise InputError(f"no experiment {slug!r}{nearest(slug, known) or '; see `steepest lab list`'}")
    return known[slug]


def check_run(scale: str, seeds: int | None, workers: int) -> None:
    """Refuse a scale that is none, and too few seeds or processes.

    Raises:
        InputError: the first that is wrong.

    >>> check_run("small", None, 1)
    Traceback (most recent call last):
    steepest.core.errors.InputError: --scale: expected one of smoke, full, got 'small'
    """
    scales = facts_of("lab.experiment")["values"]["SCALES"]
    if scale not in scales:
        raise InputError(f"--scale: expected one of {', '.join(scales)}, got {scale!r}{nearest(scale, scales)}")
    check_workers(workers)
    least = facts_of("lab.gallery")["values"]["MINIMUM_SEEDS"] if scale == "full" else 2
    if seeds is not None and seeds < least:
        raise InputError(f"--seeds: expected at least {least} at {scale} scale, got {seeds}")


def check_workers(workers: int) -> None:
    """Refuse a number of processes that is none."""
    if not 1 <= workers <= 256:
        raise InputError(f"--workers: expected an integer in 1..256, got {workers}")


def last_time(system: System) -> str:
    """How long the last full run of an experiment took, by its evidence."""
    file = evidence_file(system)
    evidence = read_json(file, f"evidence of {system.slug}") if file.is_file() else {}
    seconds = evidence.get("seconds") if isinstance(evidence, Mapping) else None
    if not isinstance(seconds, int | float):
        return f"{system.slug}: no full run is on record, so nobody knows how long it takes"
    return f"{system.slug}: the last full run took {seconds / 60:.1f} min of one core ({evidence.get('date')})"
