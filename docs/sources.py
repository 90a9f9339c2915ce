"""Sources that a page names, as links."""

from __future__ import annotations

import re

from steepest.comparison.report.sources import cited

KEPT = re.compile(r"^```.*?^```$|`[^`\n]+`|!?\[[^\]]*\]\([^)]*\)|<[^>\n]+>|https?://\S+", re.DOTALL | re.MULTILINE)
"""Code, links and pictures."""


def linked(text: str) -> str:
    """A page in Markdown whose arXiv numbers are links; code and links stay as they are.

    >>> linked("arXiv:2006.14567, `arXiv:2006.14567`")
    '[arXiv:2006.14567](https://arxiv.org/abs/2006.14567), `arXiv:2006.14567`'
    """
    pieces: list[str] = []
    end = 0
    for verbatim in KEPT.finditer(text):
        pieces += [_links(text[end : verbatim.start()]), verbatim[0]]
        end = verbatim.end()
    return "".join([*pieces, _links(text[end:])])


def _links(text: str) -> str:
    return "".join(f"[{words}]({address})" if address else words for words, address in cited(text))
