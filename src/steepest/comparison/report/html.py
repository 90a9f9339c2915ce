"""The page of the report: one file that carries its style, script, figures and data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...core.pages import page_environment, page_parts
from ...core.pages.svg import NARROW, WIDE
from ..names import varied
from ..statistics.looks import percent
from . import cost, figures, multiples, views
from .advice import advice, expected, is_classical
from .lists import lists
from .numbers import chance, compact, duration, inline, interval, number, probability
from .paired import paired
from .recall import recall_figures
from .sources import cited
from .tables import confidence_of, difference_places, prepare, results_json, score, spread_places

HERE = Path(__file__).parent
TIERS = ("better", "not told apart", "worse")


def report_html(results: dict[str, Any]) -> str:
    """The whole page as one string without a reference to anything outside of it.

    Everything that users name is escaped; the page forbids itself the network and every script but its own.
    """
    results = prepare(results)
    told, score_to_expect = advice(results), expected(results)
    metric, head = results["metric"], results["headline"]
    metric["label"] = inline(metric["label"])
    greater, places = metric["greater_is_better"], difference_places(results)
    head_places = max(places, difference_places(results | {"rows": []}))
    sure = confidence_of(results)
    headline = [figures.headline(head, greater, head_places, width, f"h{width}", sure) for width in (NARROW, 640)]
    return environment().get_template("report.html").render(
        what=varied(results),
        r=results,
        head=head,
        advice=told,
        expected=score_to_expect,
        served="a classical learner" if is_classical(results) else "a network",
        data=results["data"],
        metric=metric,
        confidence=sure,
        level=percent(results["alpha"]),
        places=head_places,
        score_places=max(head_places, spread_places(results, metric["name"])),
        page=page_parts(),
        embedded=_embedded(results),
        headline_figures=[figure for figure in headline if figure],
        tiers=_tiers(results, greater, places),
        board=views.leaderboard(results, places),
        folds=views.fold_scores(results),
        paired=_paired(results),
        practical=views.practical(results),
        confusion=views.confusion(results),
        samples=views.samples(results),
        recall_at=recall_figures(results),
        nearest=results.get("nearest"),
        lists=lists(results),
        conflict=views.conflict(results),
        origins=views.origins(results),
        recall=views.recall(results),
        classes=views.class_counts(results["data"]),
        curves=_curves(results, greater),
        reliability=_reliability(results),
        cost=_cost(results, greater),
    )  # fmt: skip


def _embedded(results: dict[str, Any]) -> Markup:
    """The results, to six significant digits, as JSON that cannot end its script element."""
    text = results_json(_rounded(results), indent=None).strip()
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@cache
def environment() -> Any:
    environment = page_environment(HERE)
    environment.filters |= {
        "number": number,
        "compact": compact,
        "duration": duration,
        "probability": probability,
        "chance": chance,
        "linked": _linked,
    }
    environment.globals |= {"interval": interval}
    return environment


def _tiers(results: dict[str, Any], greater: bool, places: int) -> list[dict[str, Any]]:
    """The compared rows by tier with a forest plot in two widths, all on one axis; no tier is empty."""
    compared = [row for row in results["rows"] if row["tier"] in TIERS and row["kind"] == "objective"]
    reach, shown = figures.reach(compared), []
    for position, tier in enumerate(TIERS):
        rows = [row for row in compared if row["tier"] == tier]
        if not rows:
            continue
        drawings = [
            figures.forest(rows, tier, reach, greater, places, width, f"t{position}-{width}")
            for width in (NARROW, WIDE)
        ]
        shown.append({"name": tier, "tone": figures.TONES[tier], "rows": rows, "figures": drawings})
    return shown


def _paired(results: dict[str, Any]) -> dict[str, Any] | None:
    folds = views.paired_folds(results)
    if folds is None:
        return None
    label = results["metric"]["label"]
    drawings = [
        paired(folds["rows"], folds["baseline"], label, folds["places"], width, f"p{width}") for width in (NARROW, WIDE)
    ]
    return folds | {"figures": drawings}


def _linked(text: str) -> Markup:
    """Text whose arXiv numbers are links."""
    link = Markup('<a href="{}">{}</a>')
    return Markup("").join(link.format(address, words) if address else words for words, address in cited(text))


def _curves(results: dict[str, Any], greater: bool) -> list[dict[str, Any]]:
    known = results.get("curves") or {}
    limits = multiples.curve_limits(known, greater)
    baseline, label = results["headline"]["baseline"], results["metric"]["label"]
    return [
        {
            "name": name,
            "baseline": name == baseline,
            "figure": multiples.curve(
                name, known[name], None if name == baseline else known.get(baseline), limits, label, f"c{position}"
            ),
        }
        for position, name in enumerate(_order(results, known))
        if known[name].get("epoch")
    ]


def _reliability(results: dict[str, Any]) -> list[dict[str, Any]]:
    known = results.get("reliability") or {}
    return [
        {"name": name, "own": known[name], "figure": multiples.reliability(name, known[name], f"r{position}")}
        for position, name in enumerate(_order(results, known))
    ]


def _cost(results: dict[str, Any], greater: bool) -> list[Markup]:
    metric = results["metric"]
    rows = [
        row
        for row in results["rows"]
        if row["kind"] == "objective"
        and row["seconds_per_epoch"] is not None
        and score(row, metric["name"]) is not None
    ]
    return [
        cost.cost(rows, metric["name"], metric["label"], greater, width, f"s{width}")
        for width in (NARROW, WIDE)
        if rows
    ]


def _order(results: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Names in the order of the leaderboard, then any that it lacks."""
    names = [row["name"] for row in results["rows"] if row["name"] in known]
    return names + [name for name in known if name not in names]
