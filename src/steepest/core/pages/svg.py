"""A matplotlib figure as a small SVG element that takes its colours and fonts from the page it stands in."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from ..lazy import late
from .palette import LIGHT

matplotlib, figures = late("matplotlib"), late("matplotlib.figure")

NARROW, WIDE = 320, 760
"""Widths of a drawing for a phone and for a desk, in CSS pixels."""
SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
NAMES = {colour: f"var(--{name})" for name, colour in reversed(LIGHT.items())} | {"#000000": "var(--ink)"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steepest",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False,
    "font.family": "DejaVu Sans",
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
}


def css_class(width: int) -> str:
    """The class that shows a drawing only where its width fits."""
    return "narrow" if width < 500 else "wide"


@contextmanager
def canvas(width: float, height: float, size: float) -> Iterator[Any]:
    """An empty transparent figure of ``width`` x ``height`` CSS pixels with text of ``size`` pixels."""
    with matplotlib.rc_context(STYLE | {"font.size": size, "xtick.labelsize": size, "ytick.labelsize": size}):
        figure = figures.Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        yield figure


def inline(figure: Any, ident: str, title: str, text: str, css: str = "") -> Markup:
    """The figure as an ``<svg>`` element to put into a page.

    Ids start with ``ident`` and exist only where something refers to them; colours of the palette become CSS variables;
    ``title`` and ``text`` are its accessible name and description. Call it inside the ``canvas`` that made the figure.

    >>> with canvas(100, 50, 9) as figure:
    ...     _ = figure.text(0.5, 0.5, "a < b")
    ...     str(inline(figure, "f", "A title", "What it shows"))[:45]
    '<svg viewBox="0 0 100 50" class="figure" role'
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    root = ElementTree.fromstring(stream.getvalue())
    _drop_foreign(root)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', stream.getvalue()))
    for element in root.iter():
        _simplify(element, ident, used)
    _unwrap(root)
    size = root.get("viewBox", "")
    root.attrib = {
        "viewBox": size,
        "class": f"figure {css}".strip(),
        "role": "img",
        "aria-labelledby": f"{ident}-title",
        "aria-describedby": f"{ident}-text",
    }
    for position, (tag, content) in enumerate((("title", title), ("desc", text))):
        element = ElementTree.Element(SVG + tag, {"id": f"{ident}-{'title' if tag == 'title' else 'text'}"})
        element.text = content
        root.insert(position, element)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.tail = None
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _drop_foreign(root: ElementTree.Element) -> None:
    """Remove metadata, and the style rule that would reach the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag not in {SVG + name for name in ("g", "path", "use", "text", "defs", "clipPath", "rect")}:
                parent.remove(child)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == SVG + "defs" and len(child) == 0:
                parent.remove(child)


def _simplify(element: ElementTree.Element, ident: str, used: set[str]) -> None:
    """Prefix the ids in use, drop the others, shorten numbers, and let the page choose colours and fonts."""
    name = element.attrib.pop("id", None)
    if name in used:
        element.set("id", f"{ident}-{name}")
    if target := element.attrib.pop(HREF, None):
        element.set("href", f"#{ident}-{target[1:]}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("url(#", f"url(#{ident}-"))
    for key in ("d", "x", "y", "width", "height"):
        if (value := element.get(key)) is not None:
            short = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
            element.set(key, re.sub(r"\s*([A-Za-z])\s*", r"\1", short).strip())
    if (element.get("transform") or "").startswith(("rotate(-0 ", "rotate(0 ")):
        del element.attrib["transform"]
    if style := element.get("style"):
        declarations = [declaration for declaration in style.split("; ") if not declaration.startswith("font-family")]
        coloured = [
            re.sub(r"#[0-9a-f]{6}", lambda match: NAMES.get(match[0], match[0]), declaration)
            for declaration in declarations
        ]
        element.set("style", ";".join(declaration.replace(": ", ":") for declaration in coloured))


def _unwrap(parent: ElementTree.Element) -> None:
    """Replace groups that carry nothing by their children."""
    children: list[ElementTree.Element] = []
    for child in parent:
        _unwrap(child)
        children.extend(list(child) if child.tag == SVG + "g" and not child.attrib else [child])
    parent[:] = children
