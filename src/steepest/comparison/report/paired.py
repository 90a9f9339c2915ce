"""Fold by fold: the score of the choice beside the baseline's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ...core.lazy import late
from ...core.pages.palette import LIGHT
from ...core.pages.svg import canvas, css_class, inline
from .numbers import number

ticker = late("matplotlib.ticker")


def paired(folds: Sequence[dict[str, Any]], baseline: str, label: str, places: int, width: int, ident: str) -> Markup:
    """The score of the choice and of the baseline in each fold, joined by a line; repeats stand apart.

    Args:
        folds: ``repeat``, ``first``, ``second``, ``tone`` each; a score may be None.
        baseline: its name.
        label: of the metric.
        places: decimals of the described scores.
        width: of the drawing, in CSS pixels.
        ident: prefix of ids, unique on the page.
    """
    slim = width < 500
    size, height = (11.0, 230.0) if slim else (12.5, 260.0)
    gaps = list(itertools.accumulate(int(a["repeat"] != b["repeat"]) for a, b in itertools.pairwise(folds)))
    at = [position + gap for position, gap in enumerate([0, *gaps])]
    left, right, low, high = (52 / width, 1 - 8 / width, 46 / height, 1 - 10 / height)
    mark = min(7.0, max(2.5, 0.5 * (right - left) * width / (at[-1] + 1)))
    with canvas(width, height, size) as figure:
        axes = figure.add_axes((left, low, right - left, high - low))
        for x, fold in zip(at, folds):
            tone = LIGHT[fold["tone"]]
            if None not in (fold["first"], fold["second"]):
                axes.plot([x, x], [fold["second"], fold["first"]], color=tone, linewidth=0.35 * mark, alpha=0.55)
            if fold["second"] is not None:
                axes.plot(
                    [x], [fold["second"]], "s", color=LIGHT["ink"], markersize=mark, markerfacecolor=LIGHT["surface"],
                    markeredgewidth=1.2,
                )  # fmt: skip
            if fold["first"] is not None:
                axes.plot([x], [fold["first"]], "D", color=tone, markersize=0.9 * mark)
        axes.set_xlim(-0.7, at[-1] + 0.7)
        axes.margins(y=0.08)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("-", "−"))
        axes.grid(axis="y", color=LIGHT["line"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", length=0)
        blocks = [list(block) for _, block in itertools.groupby(zip(at, folds), key=lambda pair: pair[1]["repeat"])]
        if len(blocks) > 1 and len(blocks) < len(folds):
            centres = [(block[0][0] + block[-1][0]) / 2 for block in blocks]
            short = "" if slim and len(blocks) > 3 else "repeat "
            axes.set_xticks(centres, [f"{short}{block[0][1]['repeat']}" for block in blocks])
            axes.set_xlabel("folds by repeat" if short else "repeat")
        else:
            step = max(1, -(-len(folds) // (8 if slim else 20)))
            axes.set_xticks(at[::step], [str(position + 1) for position in range(0, len(folds), step)])
            axes.set_xlabel("fold")
        text = "; ".join(
            f"fold {position + 1}: {number(fold['first'], places)} against {number(fold['second'], places)}"
            for position, fold in enumerate(folds)
        )
        title = f"{label[:1].upper()}{label[1:]} in each outer fold: the choice beside {baseline}"
        return inline(figure, ident, title, text, css_class(width))
