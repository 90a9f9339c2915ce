"""Evidence of a system whose code has changed in ways that move no number: it is kept if the smoke rows say so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..catalogue import System, source_hash
from ..core.errors import InputError
from ..core.stored import parse_json
from . import gallery

SEEDS = (0, 1, 2)
_ROWS = """
import json, sys
from steepest.catalogue import find, source_hash
from steepest.lab import gallery
slug, *seeds = sys.argv[1:]
rows = [gallery.run_seed(slug, "smoke", int(seed))[0] for seed in seeds]
print(json.dumps({"source_hash": source_hash(find(slug)), "seeds": rows}))
"""


def carry_over(system: System, before: Path) -> bool:
    """Keep the evidence of a system for its present code, if the code that made it gives the same smoke rows.

    Equal means bit for bit, over three seeds. The evidence then says so under ``"carried_over"``; else it is left as
    it is. It is for argument checks, guards and moved code: what acts at full scale alone is not seen.

    Args:
        system: its evidence is stale.
        before: root of a checkout with the code that made the evidence.

    Returns:
        Whether the rows are the same.

    Raises:
        InputError: there is no evidence, or ``before`` is not the code that made it.
    """
    evidence = gallery.read(system)
    if evidence is None:
        raise InputError(f"{system.slug} has no evidence yet: run `steepest lab run {system.slug}`")
    old = _smoke_rows(system.slug, before / "src")
    if old["source_hash"] != evidence["source_hash"]:
        raise InputError(f"the code in {str(before)!r} is not that which made the evidence of {system.slug}")
    if old["seeds"] != _smoke_rows(system.slug, Path(__file__).parents[2])["seeds"]:
        return False
    evidence["source_hash"] = source_hash(system)
    evidence["carried_over"] = f"the smoke rows of {len(SEEDS)} seeds are the same, bit for bit, before and after"
    gallery.write(gallery.folder() / f"{system.slug}.json", evidence)
    return True


def _smoke_rows(slug: str, source: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", _ROWS, slug, *map(str, SEEDS)]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{slug} does not run in {str(source)!r}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = parse_json(done.stdout.splitlines()[-1], f"smoke rows of {slug}")
    return found
