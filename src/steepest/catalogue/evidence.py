"""What the evidence of an experiment says of each claim, and whether it still counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..derived import SOURCE, checkout, shipped_row
from ..sources import source_hash

if TYPE_CHECKING:
    from . import System

VERDICTS = ("shown", "not shown", "contradicted")
OWN_FILES = "the code of module or experiment has changed since"


@dataclass(frozen=True)
class Judged:
    """One claim of an experiment with its verdict.

    Args:
        name: the key of its effect.
        text: the claim in words.
        verdict: one of ``VERDICTS``.
        ours: whether it is an expectation of ours that the publication does not state.
    """

    name: str
    text: str
    verdict: str
    ours: bool = False

    @property
    def label(self) -> str:
        """Its name, and whether it is ours."""
        return f"{self.name} (ours)" if self.ours else self.name


def shown_of(claims: Sequence[Judged], words: str = "") -> str:
    """How many of the publication's claims are shown, and how many expectations of ours beside them.

    >>> claims = [Judged("a", "", "shown"), Judged("b", "", "contradicted"), Judged("c", "", "shown", ours=True)]
    >>> shown_of(claims), shown_of(claims[:2], " claims shown")
    ('1 of 2, ours 1 of 1', '1 of 2 claims shown')
    """
    counts = []
    for ours in (False, True):
        verdicts = [claim.verdict for claim in claims if claim.ours is ours]
        if verdicts:
            count = f"{verdicts.count('shown')} of {len(verdicts)}"
            counts.append(f"ours {count}" if ours else count + words)
    return ", ".join(counts)


def open_claims(claims: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The claims that are not shown, by verdict: what a count leaves out."""
    rest = [claim for claim in claims if claim.verdict != "shown"]
    return {word: chosen for word in VERDICTS if (chosen := [claim for claim in rest if claim.verdict == word])}


def claims(system: System) -> tuple[Judged, ...] | None:
    """The claims of a system as fresh evidence judges them; None without evidence or where it is stale.

    Raises:
        ValueError: the file is no evidence.
    """
    judged = kept_claims(system)
    return judged[0] if judged is not None and not judged[1] else None


def kept_claims(system: System) -> tuple[tuple[Judged, ...], str] | None:
    """The claims of a system as its evidence judges them, and why that is stale (``""`` where it is fresh).

    Evidence is stale where its ``"source_hash"`` is not that of the code (see :func:`~steepest.sources.source_hash`),
    and where it says so under ``"stale"``.

    Raises:
        ValueError: the file is no evidence.
    """
    file = evidence_file(system)
    if not system.experiment or not file.is_file():
        return None
    try:
        evidence = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"evidence of {system.slug}: {file.name} is not valid JSON: {error}") from error
    try:
        judged = tuple(
            Judged(str(claim["effect"]), str(claim["text"]), str(claim["verdict"]), claim.get("ours") is True)
            for claim in evidence["claims"]
        )
        if not judged or not {claim.verdict for claim in judged} <= set(VERDICTS):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"evidence of {system.slug}: {file.name} has no claims with verdicts") from None
    if evidence.get("stale"):
        return judged, str(evidence["stale"])
    if file.parent == SHIPPED and isinstance(fresh := shipped_row(system.slug).get("fresh"), bool):
        return judged, "" if fresh else OWN_FILES
    return judged, "" if evidence.get("source_hash") == source_hash(system) else OWN_FILES


SHIPPED = SOURCE / "lab" / "evidence"
"""Where the evidence of a package is that was built with it."""


def evidence_folder() -> Path:
    """``evidence/`` at the root of the checkout, or of the current directory where the package is installed."""
    return (checkout() or Path.cwd()) / "evidence"


def evidence_file(system: System) -> Path:
    """The evidence of a system: in :func:`evidence_folder`, else as it came with an installed package."""
    file = evidence_folder() / f"{system.slug}.json"
    return file if checkout() is not None or file.is_file() else SHIPPED / file.name
