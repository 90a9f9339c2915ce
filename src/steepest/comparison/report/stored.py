"""What ``results.json`` may say: the shape of all that the report shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.stored import (
    Flag,
    Listed,
    Maybe,
    Named,
    Number,
    Record,
    Row,
    Shape,
    Text,
    Whole,
    Word,
    inside,
    read_json,
    refuse_stored,
)
from ..errors import InputError
from ..names import VARIED
from ..statistics.practical import PROBABILITIES
from ..work.facts import CONFLICT, LOOK

if TYPE_CHECKING:
    from ..work.store import Store

FILE = "results.json"


class _Plain(Shape):
    """A text, number or flag: a setting, or a fact of the machine."""

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, bool):
            (Text() if isinstance(value, str) else Number()).check(value, where)


CONFUSED = ("winner", "baseline")
KINDS = ("objective", "classical", "procedure")
TIERS = ("better", "not told apart", "worse", "baseline", "")
_DRAWN = Text(drawn=True)
"""Names that stand in figures."""
_VALUE, _COUNT = Maybe(Number()), Whole()
_SHARE = Maybe(Number(0.0, 1.0))
_AMOUNT = Maybe(Number(low=0.0))
_PROBABILITIES: dict[str, Shape] = dict.fromkeys(PROBABILITIES, _SHARE)
_GAP: dict[str, Shape] = {"difference": _VALUE, "low": _VALUE, "high": _VALUE, "p": _SHARE}
_SPREAD = Record({"mean": _VALUE, "low": _VALUE, "high": _VALUE})
_EXPECTED = Record({"by_fold": Listed(Text()), "mean": _VALUE, "low": _VALUE, "high": _VALUE})
_CURVE = Record({"epoch": Listed(Number(low=0.0)), **dict.fromkeys(("valid", "low", "high"), Listed(_VALUE))})
_DEPTHS = Record(dict.fromkeys(("mean", "low", "high"), Listed(_SHARE, least=1)))
_NEIGHBOUR = Record({"row": _COUNT, "label": Text(), "right": Flag()})
_QUERY = Record({"row": _COUNT, "label": Text(), "nearest": Listed(Listed(_NEIGHBOUR, most=5), least=1, most=2)})
_BINS = Record(
    {
        "confidence": Listed(_SHARE),
        "accuracy": Listed(_SHARE),
        "count": Listed(_COUNT),
        "ece": _VALUE,
        "ece_calibrated": _VALUE,
        "temperature": Number(positive=True),
    }
)
_ROW = Record(
    {
        "name": _DRAWN,
        "title": Text(),
        "kind": Word(KINDS),
        "tier": Word(TIERS),
        **_GAP,
        "p_holm": _SHARE,
        "detectable": _AMOUNT,
        "metrics": Named(_SPREAD, _DRAWN),
        "seconds_per_epoch": _AMOUNT,
        "peak_memory_mb": _AMOUNT,
        "diverged": _COUNT,
        "settings": Text(),
    },
    {"seconds": _AMOUNT, "source": Text(), **_PROBABILITIES},
)
_DATA = Record(
    {
        "name": Text(),
        "sha256": Text(),
        "rows": _COUNT,
        "features": _COUNT,
        "columns": Listed(Text()),
        "target": Text(),
        "task": Text(),
        "classes": Listed(Text()),
        "class_counts": Listed(_COUNT),
        "decisions": Listed(Text()),
        "warnings": Listed(Text()),
    }
)
_HEADLINE = Record(
    {
        "verdict": Word(TIERS[:3]),
        **_GAP,
        "detectable": _AMOUNT,
        "test": Text(),
        "baseline": _DRAWN,
        "selected": Named(_COUNT),
        "procedure_mean": _VALUE,
        "baseline_mean": _VALUE,
    },
    _PROBABILITIES,
)
_BASIS = Record(
    {
        **dict.fromkeys(("rows", "epochs", "trials", "folds", "planned_folds"), _COUNT),
        "whole": Flag(),
        "cut": Listed(Text()),
        "late": Named(Text()),
        "undo": Text(),
    },
    {"left_out": Named(Text())},
)
_CLASSICAL = Record(
    {"sentence": Text(), "best": Text(), "mean": _VALUE, **_GAP}, {"wins": Flag(), "detectable": _AMOUNT}
)
LISTS = Record(
    {
        "counted": _COUNT,
        "equal": _COUNT,
        "depth": Listed(Whole(1, 1000), least=1),
        "label": _DRAWN,
        "ndcg": Named(Record(dict.fromkeys(("mean", "low", "high"), Listed(_VALUE))), _DRAWN),
        "gains": Named(
            Record({"values": Listed(Number(), least=1), **dict.fromkeys(("better", "worse"), Number(0.0, 1.0))}),
            _DRAWN,
        ),
    }
)
"""Figures of rankings."""
RESULTS = Record(
    {
        "version": Text(),
        "id": Text(),
        "created": Text(),
        "command": Text(),
        "seconds": Number(low=0.0),
        "peak_memory_mb": _AMOUNT,
        "machine": Named(Maybe(_Plain())),
        "versions": Named(Text()),
        "data": _DATA,
        "protocol": Named(Maybe(_Plain())),
        "metric": Record({"name": _DRAWN, "label": _DRAWN, "greater_is_better": Flag()}, {"best": _VALUE}),
        "question": Text(),
        "sentence": Text(),
        "headline": _HEADLINE,
        "classical": Maybe(_CLASSICAL),
        "rows": Listed(_ROW, least=1),
        "fold_scores": Named(Listed(_VALUE)),
        "curves": Named(_CURVE, _DRAWN),
        "usage": Text(),
        "winner": Record({"objective": Text(), "settings": Text()}, {"kind": Word(KINDS[:2]), "command": Text()}),
    },
    {
        "advice": Text(),
        "vary": Word(VARIED),
        "samples": Record({"chosen": Text(), "rows": Listed(Listed(Text(), least=4, most=4))}),
        "recall_at": Record({"depth": Listed(Whole(low=1), least=1), "rows": Named(_DEPTHS, _DRAWN)}),
        "nearest": Record(
            {"sides": Listed(Text(), least=1, most=2), "queries": Listed(_QUERY), "images": Named(Text())}
        ),
        "lists": LISTS,
        "conflict": Record({"targets": Listed(_DRAWN, least=2), "arms": Named(CONFLICT)}),
        "alpha": Number(0.0, 1.0, positive=True),
        "look": Maybe(LOOK),
        "rope": Record({"value": Number(low=0.0), "asked": Flag(), "words": Text()}),
        "reliability": Maybe(Named(_BINS, _DRAWN)),
        "recall": Maybe(Record({"classes": Listed(Text()), "rows": Named(Listed(_SHARE))})),
        "basis": _BASIS,
        "expected": _EXPECTED,
        "fold_seconds": Named(Listed(_AMOUNT)),
        "folds": Listed(Row((Whole(), Whole()))),
        "confusion": Maybe(
            Record({"classes": Listed(Text()), **dict.fromkeys(CONFUSED, Listed(Listed(Number(0.0, 1.0))))})
        ),
    },
)


def read_results(folder: Path) -> dict[str, Any]:
    """``results.json`` of a run, checked.

    Raises:
        InputError: it cannot be read, or is not what a comparison writes.
    """
    results: dict[str, Any] = read_json(folder / FILE, f"the results of run {folder.name}")
    check_results(results)
    return results


def kept_results(store: Store) -> dict[str, Any] | None:
    """The results that a run keeps beside its cells since it finished; None where it does not, or they are damaged."""
    try:
        results: dict[str, Any] | None = store.fact("results")
        if results is not None:
            check_results(results)
    except InputError:
        return None
    return results


def check_results(results: Any) -> None:
    """Refuse results that are not of the shape, or whose lists do not fit together."""
    RESULTS.check(results, FILE)
    for name, curve in results["curves"].items():
        if len({len(values) for values in curve.values()}) > 1:
            refuse_stored(
                inside(FILE, f"curves[{name!r}]"), "lists of one length", {k: len(v) for k, v in curve.items()}
            )
    for name, bins in (results.get("reliability") or {}).items():
        if len({len(bins[key]) for key in ("confidence", "accuracy", "count")}) > 1:
            refuse_stored(inside(FILE, f"reliability[{name!r}]"), "lists of one length", bins)
    _check_retrieval(results)
    data, recall = results["data"], results.get("recall")
    if data["class_counts"] and len(data["class_counts"]) != len(data["classes"]):
        refuse_stored(inside(FILE, "data.class_counts"), f"{len(data['classes'])} counts", data["class_counts"])
    for name, values in (recall["rows"] if recall else {}).items():
        if len(values) != len(recall["classes"]):
            refuse_stored(inside(FILE, f"recall.rows[{name!r}]"), f"{len(recall['classes'])} values", values)
    confusion = results.get("confusion") or {}
    size = len(confusion.get("classes", ()))
    for name in CONFUSED if confusion else ():
        if [len(row) for row in confusion[name]] != [size] * size:
            refuse_stored(inside(FILE, f"confusion.{name}"), f"{size} rows of {size} shares", confusion[name])
    conflict = results.get("conflict") or {"targets": (), "arms": {}}
    size = len(conflict["targets"])
    for name, own in conflict["arms"].items():
        if [len(row) for row in own["cosine"]] != [size] * size:
            refuse_stored(inside(FILE, f"conflict.arms[{name!r}]"), f"{size} rows of {size} cosines", own["cosine"])
    ranked = results.get("lists") or {"ndcg": {}, "depth": ()}
    for name, own in ranked["ndcg"].items():
        if {len(values) for values in own.values()} != {len(ranked["depth"])}:
            refuse_stored(inside(FILE, f"lists.ndcg[{name!r}]"), f"{len(ranked['depth'])} values", own)
    by_fold = (results.get("expected") or {"by_fold": []})["by_fold"]
    for name in by_fold:
        if len(results["fold_scores"].get(name, ())) != len(by_fold):
            refuse_stored(inside(FILE, "expected.by_fold"), "names with a score in each fold", name)
    for values in results["fold_scores"].values() if results.get("folds") else ():
        if len(values) != len(results["folds"]):
            refuse_stored(inside(FILE, "folds"), f"{len(values)} folds, as there are scores", results["folds"])
    names = [row["name"] for row in results["rows"]]
    if len(set(names)) < len(names):
        refuse_stored(inside(FILE, "rows"), "each name once", names)
    for row in (results["headline"], *results["rows"]):
        if (row["low"] is None) != (row["high"] is None) or (row["low"] is not None and row["low"] > row["high"]):
            refuse_stored(inside(FILE, "rows"), "intervals with two ends in order", [row["low"], row["high"]])


def _check_retrieval(results: dict[str, Any]) -> None:
    """Recall has a value for each depth; each query has as many lists as there are sides, and pictures have numbers."""
    recall, nearest = results.get("recall_at"), results.get("nearest")
    for name, own in (recall["rows"] if recall else {}).items():
        if any(len(values) != len(recall["depth"]) for values in own.values()):
            refuse_stored(inside(FILE, f"recall_at.rows[{name!r}]"), f"{len(recall['depth'])} values each", own)
    if nearest is None:
        return
    rows = {row["row"] for query in nearest["queries"] for row in (query, *(n for s in query["nearest"] for n in s))}
    if any(len(query["nearest"]) != len(nearest["sides"]) for query in nearest["queries"]):
        refuse_stored(inside(FILE, "nearest.queries"), f"{len(nearest['sides'])} lists each", nearest["sides"])
    if nearest["images"] and {str(row) for row in rows} != set(nearest["images"]):
        refuse_stored(inside(FILE, "nearest.images"), "a picture of each row", sorted(nearest["images"])[:5])
