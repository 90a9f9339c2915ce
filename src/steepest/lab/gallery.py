"""Run experiments, keep their evidence, and know which are due."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from ..catalogue import System, find
from ..core.stored import Anything, Listed, Named, Number, Record, Text, Whole, read_json
from ..sources import source_hash
from . import asked
from . import evidence as store
from .claims import with_origin
from .evidence import StoredRun
from .experiment import SCALES, Evidence, judge
from .smoke import differences, loose_columns, smoke_rows

MINIMUM_SEEDS = 5
SMOKE_SEED = 0

_SEED = Record({"seed": Whole(), "rows": Listed(Named(Anything())), "effects": Named(Number())})
UNDER_WAY = Record({"source_hash": Text(), "seconds": Number(low=0.0), "seeds": Listed(_SEED)})
"""The finished seeds of a run under way."""


def experiments() -> list[System]:
    """The systems whose experiment exists."""
    return list(asked.experiments().values())


def load(system: System) -> ModuleType:
    """The experiment's module."""
    return importlib.import_module(f"steepest.{system.experiment}")


def run_seed(slug: str, scale: str, seed: int) -> tuple[Evidence, float]:
    """One seed of one experiment, in this process, and its seconds of processor time, processes it started included."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    module = load(find(slug))
    before = sum(os.times()[:4])
    evidence: Evidence = module.run(scale, seed)
    return evidence, sum(os.times()[:4]) - before


def run(
    system: System,
    *,
    scale: str = "full",
    seeds: int | None = None,
    workers: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> StoredRun:
    """All seeds of an experiment, judged. Finished seeds are kept beside the evidence, so that a killed run goes on.

    Args:
        system: one of :func:`experiments`.
        scale: ``"smoke"`` (about a second, nothing is written) or ``"full"``.
        seeds: default the experiment's own, at least 5 at full scale.
        workers: processes.
        report: gets a line for each finished seed.

    Returns:
        The evidence, as ``evidence/SLUG.json`` holds it.

    Raises:
        ValueError: an unknown scale, or too few seeds.
    """
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    module = load(system)
    count = getattr(module, "SEEDS", MINIMUM_SEEDS) if seeds is None else seeds
    least = MINIMUM_SEEDS if scale == "full" else 2
    if count < least:
        raise ValueError(f"seeds: expected at least {least}, got {count}")
    fingerprint = source_hash(system)
    under_way = file_under_way(system.slug)
    done: dict[int, Evidence] = {}
    seconds = 0.0
    if scale == "full":
        done, seconds = _finished_seeds(system, fingerprint)
    missing = [seed for seed in range(count) if seed not in done]
    for seed, evidence, took in _evaluate(system.slug, scale, missing, workers):
        done[seed] = evidence
        seconds += took
        if scale == "full":
            seeds_done = [{"seed": number, **asdict(of_seed)} for number, of_seed in done.items()]
            values = {"source_hash": fingerprint, "seconds": seconds, "seeds": seeds_done}
            store.write_text(under_way, store.text_of(values))
        report(f"{system.slug}: seed {seed} ({len(done)} of {count}, {took:.1f} s)")
    by_seed = [store.rounded(done[seed]) for seed in range(count)]
    smoke = done[SMOKE_SEED] if scale == "smoke" else run_seed(system.slug, "smoke", SMOKE_SEED)[0]
    record = StoredRun(
        slug=system.slug,
        title=system.title,
        scale=scale,
        date=datetime.now(UTC).date().isoformat(),
        machine=_machine(),
        seconds=round(seconds, 1),
        source_hash=fingerprint,
        findings=[judge(with_origin(system.slug, claim), by_seed) for claim in module.CLAIMS],
        seeds=list(range(count)),
        evidence=by_seed,
        smoke=smoke_rows(smoke),
        smoke_seed=SMOKE_SEED,
    )
    if scale == "full":
        store.write(record)
        under_way.unlink(missing_ok=True)
    return record


def file_under_way(slug: str) -> Path:
    """Where the finished seeds of a run under way stand."""
    return store.folder() / f".{slug}.part.json"


def _finished_seeds(system: System, fingerprint: str) -> tuple[dict[int, Evidence], float]:
    """The seeds that a killed run of this code has finished, and their seconds."""
    file = file_under_way(system.slug)
    if not file.is_file():
        return {}, 0.0
    values = read_json(file, f"seeds of {system.slug}")
    UNDER_WAY.check(values, file.name)
    if values["source_hash"] != fingerprint:
        return {}, 0.0
    return {s["seed"]: Evidence(s["rows"], s["effects"]) for s in values["seeds"]}, values["seconds"]


def _evaluate(slug: str, scale: str, seeds: Sequence[int], workers: int) -> Iterator[tuple[int, Evidence, float]]:
    if workers == 1 or len(seeds) < 2:
        for seed in seeds:
            yield seed, *run_seed(slug, scale, seed)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_seed, slug, scale, seed): seed for seed in seeds}
        for future in as_completed(futures):
            yield futures[future], *future.result()


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def due(*, every: bool = False) -> list[System]:
    """The experiments whose evidence is stale or missing, or all of them."""
    return [system for system in experiments() if every or store.stale(system)]


def forecast(due_systems: Sequence[System], workers: int) -> str:
    """What a run of experiments will cost, from the seconds that the evidence says, less what is finished already."""
    seconds, unknown = 0.0, 0
    for system in due_systems:
        record = store.read(system)
        if record is None:
            unknown += 1
        else:
            seconds += max(0.0, record.seconds - _finished_seeds(system, source_hash(system))[1])
    count = f"{len(due_systems)} experiment{'' if len(due_systems) == 1 else 's'}"
    shared = f" with {workers} workers" if workers > 1 else ""
    line = f"{count} to run, about {duration(seconds / workers)}{shared}, as they took before"
    return line + (f"; {unknown} of them never ran" if unknown else "")


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42.4), duration(1500), duration(29586)
    ('42 s', '25 min', '8 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def recheck(system: System, record: StoredRun) -> tuple[StoredRun, list[str]]:
    """Evidence with what its code says today: fresh, or stale and why. It is written if that has changed.

    Own files that have changed make it stale. Otherwise the smoke scale is run, and rows that differ from the smoke
    rows of the evidence (code deeper in what it imports has changed) do.

    Returns:
        The evidence, and where its smoke rows differ.
    """
    moved: list[str] = []
    if record.source_hash != source_hash(system):
        reason = store.OWN_FILES
    else:
        now, _ = run_seed(system.slug, "smoke", record.smoke_seed)
        moved = differences(record.smoke, smoke_rows(now), loose_columns(system.slug))
        reason = store.SMOKE_ROWS if moved else ""
    if reason != record.stale:
        record = replace(record, stale=reason)
        store.write(record)
    return record, moved
