"""Colours of the report: each has a name and a value for the light and the dark theme.

Figures are drawn in the light values and then refer to the names, so that one drawing serves both themes. Blue,
vermilion and grey stay apart under every common colour-vision deficiency; marks and words repeat what the colours say.
"""

from __future__ import annotations

COLOURS: dict[str, tuple[str, str]] = {
    "page": ("#fbfaf7", "#14171a"),
    "surface": ("#ffffff", "#1b1f23"),
    "ink": ("#1d2126", "#e8e6e1"),
    "muted": ("#5a616a", "#a5acb4"),
    "line": ("#dbd8d0", "#373d43"),
    "better": ("#0b5c94", "#7fc1f2"),
    "neutral": ("#565b62", "#b6bbc1"),
    "worse": ("#9c3f06", "#f2a86c"),
    "better-wash": ("#e6eff6", "#1a2a37"),
    "neutral-wash": ("#f0eeea", "#262a2f"),
    "worse-wash": ("#f8ebe0", "#36271b"),
    "shade": ("#c9c4b8", "#05070a"),
    "heat": ("#e08a3c", "#a05717"),
}
LIGHT = {name: pair[0] for name, pair in COLOURS.items()}


def declarations(theme: int) -> str:
    """CSS custom properties of one theme (0 light, 1 dark).

    >>> declarations(0).split(";")[0]
    '--page: #fbfaf7'
    """
    return "; ".join(f"--{name}: {pair[theme]}" for name, pair in COLOURS.items()) + ";"


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` as WCAG 2 defines it, in [0, 1].

    >>> luminance("#ffffff")
    1.0
    """
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, from 1 to 21; AA asks for 4.5 for text and 3 for graphics.

    >>> round(contrast("#000000", "#ffffff"), 3)
    21.0
    """
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)
