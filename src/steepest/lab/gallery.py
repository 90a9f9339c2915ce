"""Run experiments, keep their evidence, and know what is stale."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from ..catalogue import VERDICTS, System, checkout, source_files, source_hash, systems
from ..core.stored import (
    Anything,
    Flag,
    Listed,
    Named,
    Number,
    Record,
    Text,
    Whole,
    Word,
    inside,
    read_json,
    refuse_stored,
)
from .experiment import SCALES, Evidence, Finding, judge, overall

MINIMUM_SEEDS = 5

_SEED = Record({"seed": Whole(), "rows": Listed(Named(Anything())), "effects": Named(Number())})
_CLAIM = Record(
    {
        "effect": Text(),
        "text": Text(),
        "greater": Flag(),
        "verdict": Word(VERDICTS),
        **dict.fromkeys(("size", "threshold", "mean", "low", "high", "detectable"), Number()),
        "values": Listed(Number()),
    }
)
PART = Record({"source_hash": Text(), "seconds": Number(low=0.0), "seeds": Listed(_SEED)})
"""The finished seeds of a run under way."""
STORED = Record(
    {
        **PART.fields,
        **dict.fromkeys(("slug", "title", "date", "machine"), Text()),
        "verdict": Word(VERDICTS),
        "finished": Flag(),
        "claims": Listed(_CLAIM),
        "scale": Word(SCALES),
    },
    {"carried_over": Text()},
)
"""What ``evidence/SLUG.json`` holds."""


def experiments() -> list[System]:
    """The systems whose experiment exists."""
    return [s for s in systems() if s.experiment and source_files(s.experiment)]


def load(system: System) -> ModuleType:
    """The experiment's module."""
    return importlib.import_module(f"steepest.{system.experiment}")


def folder() -> Path:
    """``evidence/`` at the root of the checkout, or of the current directory where the package is installed."""
    return (checkout() or Path.cwd()) / "evidence"


def read(system: System) -> dict[str, Any] | None:
    """Committed evidence of a system, or None.

    Raises:
        InputError: its file is no evidence of this system.
    """
    file = folder() / f"{system.slug}.json"
    if not file.is_file():
        return None
    found: dict[str, Any] = read_json(file, f"evidence of {system.slug}")
    STORED.check(found, file.name)
    if found["slug"] != system.slug:
        refuse_stored(inside(file.name, "slug"), repr(system.slug), found["slug"])
    return found


def stale(system: System) -> bool:
    """Whether there is no evidence, or the code of system or experiment has changed since."""
    found = read(system)
    return found is None or found["source_hash"] != source_hash(system)


def run_seed(slug: str, scale: str, seed: int) -> tuple[dict[str, Any], float]:
    """One seed of one experiment, in this process: evidence as plain values, and its seconds."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    system = next(s for s in systems() if s.slug == slug)
    started = time.perf_counter()
    evidence = load(system).run(scale, seed)
    return {"seed": seed, **asdict(evidence)}, time.perf_counter() - started


def run(
    system: System,
    *,
    scale: str = "full",
    seeds: int | None = None,
    workers: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """All seeds of an experiment, judged. Finished seeds are kept beside the evidence, so that a killed run goes on.

    Args:
        system: one of :func:`experiments`.
        scale: ``"smoke"`` (about a second, nothing is kept) or ``"full"``.
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
    part = folder() / f".{system.slug}.part.json"
    done: dict[int, dict[str, Any]] = {}
    seconds = 0.0
    if scale == "full" and part.is_file():
        kept = read_json(part, f"seeds of {system.slug}")
        PART.check(kept, part.name)
        if kept["source_hash"] == fingerprint:
            done = {each["seed"]: each for each in kept["seeds"]}
            seconds = kept["seconds"]
    missing = [seed for seed in range(count) if seed not in done]
    for evidence, took in _evaluate(system.slug, scale, missing, workers):
        done[evidence["seed"]] = evidence
        seconds += took
        if scale == "full":
            write(part, {"source_hash": fingerprint, "seconds": seconds, "seeds": list(done.values())})
        report(f"{system.slug}: seed {evidence['seed']} ({len(done)} of {count}, {took:.1f} s)")
    ordered = [done[seed] for seed in range(count)]
    evidence_list = [Evidence(each["rows"], each["effects"]) for each in ordered]
    findings = [judge(claim, evidence_list) for claim in module.CLAIMS]
    found = {
        "slug": system.slug,
        "title": system.title,
        "verdict": overall(findings),
        "finished": all(finding.finished for finding in findings),
        "claims": [_plain(finding) for finding in findings],
        "scale": scale,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "seconds": round(seconds, 1),
        "source_hash": fingerprint,
        "seeds": ordered,
    }
    if scale == "full":
        from .figures import draw

        _write_text(folder() / f"{system.slug}.svg", draw(module, evidence_list, findings))
        write(folder() / f"{system.slug}.json", found)
        part.unlink(missing_ok=True)
    return found


def _evaluate(slug: str, scale: str, seeds: Sequence[int], workers: int) -> Iterator[tuple[dict[str, Any], float]]:
    if workers == 1 or len(seeds) < 2:
        for seed in seeds:
            yield run_seed(slug, scale, seed)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_seed, slug, scale, seed) for seed in seeds]):
            yield future.result()


def _plain(finding: Finding) -> dict[str, Any]:
    values = asdict(finding)
    claim = values.pop("claim")
    return {**claim, **values}


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def write(path: Path, values: dict[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    _write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
