"""Count the facts of the cards, where they are at hand, and set ``holds`` in the catalogue to their number.

    python tests/count_facts.py FOLDER

The folder holds a card a system, ``SLUG.md``, with a fact an item under "Must hold". A system without a card keeps its
row. What differed is printed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

CATALOGUE = Path(__file__).parents[1] / "src" / "steepest" / "catalogue"


def facts(card: str) -> int:
    """How many items a card has under "Must hold".

    >>> facts("## Must hold\\n- one\\n- two,\\n  on two lines\\n## Claim\\n- no fact\\n")
    2
    """
    section = re.search(r"^## Must hold$(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    return len(re.findall(r"^- ", section[1], re.MULTILINE)) if section else 0


def with_counts(rows: str, counts: Mapping[str, int]) -> tuple[str, list[str]]:
    """The text of a file of the catalogue with these counts, and a line for each row that had another."""
    changes = []

    def count(row: re.Match) -> str:
        slug, before = row["slug"], int(row["holds"])
        after = counts.get(slug, before)
        if after != before:
            changes.append(f"{slug}: {before} -> {after}")
        return f"{row['head']}{after}"

    pattern = r'(?P<head>^slug = "(?P<slug>[^"]+)"$(?:\n(?!\[\[).*)*?\nholds = )(?P<holds>\d+)$'
    return re.sub(pattern, count, rows, flags=re.MULTILINE), changes


def main(folder: Path) -> None:
    counts = {card.stem: facts(card.read_text(encoding="utf-8")) for card in sorted(folder.glob("*.md"))}
    for file in sorted(CATALOGUE.glob("*.toml")):
        text, changes = with_counts(file.read_text(encoding="utf-8"), counts)
        if changes:
            file.write_text(text, encoding="utf-8")
            print(*changes, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
