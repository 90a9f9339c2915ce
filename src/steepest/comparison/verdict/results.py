"""From finished cells to tables and the sentence on top."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ...catalogue import owners
from ..baselines import BoostingBaseline, LightGBMBaseline, tuned_learners
from ..baselines.boosting import MOST_ROUNDS, PATIENCE
from ..design.arms import find_arm
from ..design.context import Context
from ..design.embeddings import PER_CLASS
from ..design.folds import CLASSES
from ..design.objectives import find_objective
from ..design.settings import Settings
from ..design.text_objectives import find_text_objective
from ..metrics.metric import Metric
from ..metrics.tables import confusion, metrics_of
from ..names import varied
from ..read import Table
from ..read.images import Images
from ..read.inputs import class_counts, shape_text
from ..read.lists import RANKING
from ..read.retrieval import RETRIEVAL
from ..scores.operating_point import apply_temperature, reliability_bins
from ..statistics import BETTER, LEAST_FOR_INTERVAL, SAME, WORSE, Look, PairedResult, holm
from ..statistics.looks import confidence
from ..work.store import Store
from .basis import Basis, basis_facts
from .judge import Judge
from .lists import list_facts
from .practical import probabilities, rope_of, rope_words
from .retrieval import of_retrieval

MOST_CONFUSED = 50
"""With more classes than these no confusion matrix is kept."""
RANKED = {
    "lists": "whole on one side of every split and in every batch; those of equal grades are not counted",
    "rows of equal score": "the expected value over their orders",
    "losses of numbers": "pointwise: each row by itself, on standardised grades",
}
"""How lists are treated, in words."""


def assemble(
    context: Context,
    store: Store,
    *,
    command: str,
    version: str,
    look: Look | None = None,
    basis: Basis | None = None,
    rope: float | None = None,
) -> dict[str, Any]:
    """The results of a run, as the report takes them.

    Args:
        context: of the comparison, at the level that was asked for.
        store: of its cells.
        command: the command line.
        version: of this package.
        look: tests and intervals are at its level; None is the whole level.
        basis: what the report rests on; None is all folds, of the level that was asked for.
        rope: half the region of practical equivalence, as asked; None is the metric's default.
    """
    asked = context
    if basis is not None:
        context = context.at(basis.level)
    judge = Judge(context, store, look, None if basis is None else basis.pairs)
    settings, metric, table = context.settings, context.metric, context.table
    names = judge.names("objective") if basis is None else list(basis.names)
    baseline = settings.baseline
    picked = judge.procedure(names)
    plain = [baseline] * len(picked)
    head = judge.compare(picked, plain)
    verdict = judge.tier(head, head.pvalue)
    others = [n for n in names if n != baseline]
    tested = {n: judge.compare([n] * len(picked), plain) for n in others}
    testable = all(_p(test) is not None for test in tested.values())
    adjusted = dict(zip(others, holm([tested[n].pvalue for n in others]))) if testable else {}
    region = rope_of(metric, _mean(judge.scores(baseline)), rope)
    words = rope_words(metric, region, rope)
    rows = [_row(judge, n, "objective", tested.get(n), adjusted.get(n), region) for n in names]
    classical_names = judge.names("classical")
    rows += [_row(judge, n, "classical", None, None, region) for n in classical_names]
    means = judge.picked_scores(picked), judge.scores(baseline)
    headline = {
        "verdict": verdict,
        **_numbers(head),
        "p": _p(head),
        **probabilities(head, region, metric.greater_is_better),
        "test": judge.test_name(),
        "baseline": baseline,
        "selected": dict(Counter(picked).most_common()),
        "procedure_mean": _mean(means[0]),
        "baseline_mean": _mean(means[1]),
    }
    classical = _classical(judge, picked, classical_names)
    winning = judge.procedure(classical_names) if classical is not None and classical["wins"] else picked
    procedure_row = {
        "name": "selected procedure",
        "title": f"{settings.vary} and settings picked by inner validation in each fold",
        "source": "",
        "kind": "procedure",
        "tier": "",
        **_numbers(head),
        "p": _p(head),
        "p_holm": None,
        **probabilities(head, region, metric.greater_is_better),
        "metrics": {metric.name: _interval(means[0], judge, metric.bounds)},
        "seconds": sum(c["seconds"] for n in names for c in judge.cells[n].values()),
        "seconds_per_epoch": None,
        "peak_memory_mb": None,
        "diverged": 0,
        "settings": ", ".join(f"{k} in {v}" for k, v in headline["selected"].items()),
    }
    results: dict[str, Any] = {
        "version": version,
        "id": store.folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": 0.0,
        "peak_memory_mb": max(
            (c["peak_memory_mb"] for own in judge.cells.values() for c in own.values()), default=None
        ),
        "machine": {
            "python": platform.python_version(),
            "platform": platform.system() + " " + platform.machine(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "device": settings.device,
        },
        "versions": _versions(settings.classical),
        "data": {
            "name": table.name,
            "sha256": table.sha256,
            "rows": len(table.target),
            "features": int(np.prod(context.split(judge.pairs[0], -1).inputs.shape[1:])),
            "columns": [str(c) for c in table.frame.columns] if isinstance(table, Table) else [],
            "target": table.target_name,
            "task": table.task,
            "classes": list(table.classes),
            "class_counts": class_counts(table),
            "decisions": list(table.decisions),
            "warnings": list(table.warnings),
        },
        "protocol": protocol(context) | {"practically the same": words},
        "metric": {
            "name": metric.name,
            "label": metric.label,
            "greater_is_better": metric.greater_is_better,
            "best": _known(metric.bounds[1 if metric.greater_is_better else 0]),
        },
        "question": f"Does choosing the {settings.vary} help?",
        "vary": settings.vary,
        "alpha": judge.alpha,
        "look": None if look is None else look.fact,
        "rope": {"value": region, "asked": rope is not None, "words": words},
        "headline": headline,
        "classical": classical,
        "rows": [procedure_row, *rows],
        "expected": {"by_fold": winning, **_interval(judge.picked_scores(winning), judge, metric.bounds)},
        "folds": [list(pair) for pair in judge.pairs],
        "fold_seconds": {
            n: [judge.cells[n][pair]["seconds"] for pair in judge.pairs] for n in [*names, *classical_names]
        },
        "fold_scores": {n: [_rounded(v) for v in judge.scores(n)] for n in [*names, *classical_names]},
        "curves": {n: _curve([judge.cells[n][p]["curve"] for p in judge.pairs]) for n in names},
    }
    if basis is not None:
        results["basis"] = basis_facts(asked, store, basis)
        if results["basis"]["cut"]:
            results["protocol"]["cut to fit the budget"] = ", ".join(results["basis"]["cut"])
        results["data"]["warnings"] += _warnings(judge, results["basis"], names)
    if table.task == RETRIEVAL:
        results |= of_retrieval(judge, [*names, *classical_names], picked, _interval)
    if table.task == "text":
        results["samples"] = _samples(judge, picked)
    if table.task == RANKING:
        results["lists"] = list_facts(judge, names, lambda values: _interval(values, judge, metric.bounds))
    if conflict := _conflict(judge, names):
        results["conflict"] = {"targets": [target.name for target in context.parts], "arms": conflict}
    results["sentence"] = sentence(results, tuned=judge.settings.trials > 1)
    if names == [baseline] and len(settings.objectives) > 1:
        results["sentence"] = _too_little(judge, results)
    if table.task in CLASSES:
        results["reliability"] = {n: r for n in names if (r := _reliability(judge, n)) is not None}
        results["recall"] = {
            "classes": list(table.classes),
            "rows": {n: _recall(judge, n) for n in [*names, *classical_names]},
        }
        if len(table.classes) <= MOST_CONFUSED:
            results["confusion"] = {
                "classes": list(table.classes),
                "winner": _confusion(judge, winning),
                "baseline": _confusion(judge, plain),
            }
    return results


def _warnings(judge: Judge, facts: dict[str, Any], names: Sequence[str]) -> list[str]:
    """What was cut and what would undo it, what had no time, and what raised."""
    warnings = []
    if facts["cut"]:
        undo = f"; {facts['undo']} would undo that" if facts["undo"] else ""
        warnings.append(f"cut to fit the budget: {', '.join(facts['cut'])}{undo}")
    warnings += [f"{name} was put last and left out: it needs {time} more" for name, time in facts["late"].items()]
    warnings += [
        f"the classical learner {name} {why}; all of them have a quarter of the budget"
        for name, why in facts["left_out"].items()
    ]
    for name in names:
        failed = [text for pair in judge.pairs if (text := judge.cells[name][pair].get("failed"))]
        if failed:
            warnings.append(f"{name} failed in {len(failed)} of {len(judge.pairs)} folds: {failed[0]}")
    kinds = sorted({c["capability"] for own in judge.cells.values() for c in own.values() if "capability" in c})
    if len(kinds) > 1:
        warnings.append(f"processors with {' and '.join(kinds)} computed it: the last bits of a number depend on that")
    return warnings


def _too_little(judge: Judge, results: dict[str, Any]) -> str:
    """The sentence where the time was enough for the baseline alone."""
    pair, baseline = judge.pairs[0], judge.settings.baseline
    label, undo = _inline(judge.metric.label), results["basis"]["undo"]
    blind = judge.blind(pair)
    beside = f", a constant prediction {blind:.4f}" if np.isfinite(blind) else ""
    more = f" {undo} would be enough for all of it." if undo else ""
    return (
        f"Too little time to compare {judge.settings.vary}s: in the first fold {baseline} reaches {label} "
        f"{judge.score(baseline, pair):.4f}{beside}{_resting(results)}.{more}"
    )


def _resting(results: dict[str, Any]) -> str:
    """What a sentence adds where it rests on less than was asked for."""
    facts = results.get("basis")
    if not facts or not facts["cut"]:
        return ""
    untuned = "untuned, " if facts["trials"] == 1 and any("trial" in text for text in facts["cut"]) else ""
    return f" ({untuned}{', '.join(facts['cut'])})"


def sentence(results: dict[str, Any], *, tuned: bool) -> str:
    """The sentence on top: the classical learners first where they win, then the declared question.

    Args:
        results: of the comparison.
        tuned: whether objectives had more than their default trial.
    """
    head, metric, what = results["headline"], results["metric"], varied(results)
    label = _inline(metric["label"])
    gap = _gap(head["difference"], head["low"], head["high"], head["p"], results["alpha"])
    baseline = f"{'tuned ' if tuned else ''}{head['baseline']}"
    pair = f"{label} {head['procedure_mean']:.4f} against {head['baseline_mean']:.4f} for {baseline} ({gap})"
    if head["verdict"] == BETTER:
        text = f"Choosing the {what} helps{_resting(results)}: {pair}."
    elif head["verdict"] == WORSE:
        text = f"Choosing the {what} hurts here{_resting(results)}: {pair}."
    elif head["p"] is None:
        folds = len(results["folds"])
        too_few = "one fold" if folds == 1 else f"{folds} folds"
        text = f"Choosing the {what} was not tested{_resting(results)}, for {too_few} cannot: {pair}."
    else:
        detectable = (
            f"; this design would have found a difference of {head['detectable']:.4f}" if head["detectable"] else ""
        )
        text = f"Choosing the {what} was not shown to help{_resting(results)}: {pair}{detectable}."
    classical = results["classical"]
    if classical is not None and classical["wins"]:
        return f"A classical learner wins: {classical['sentence']} {text}"
    return text


def _gap(difference: float, low: float | None, high: float | None, p: float | None, alpha: float) -> str:
    spread = "" if low is None or high is None else f", {confidence(alpha)} interval {low:+.4f} to {high:+.4f}"
    return f"difference {difference:+.4f}{spread}" + ("" if p is None else f", p = {p:.3g}")


def _inline(label: str) -> str:
    """A metric's label inside a sentence: abbreviations stay as they are."""
    return label[0].lower() + label[1:] if label[1:2].islower() else label


def _classical(judge: Judge, picked: Sequence[str], names: Sequence[str]) -> dict[str, Any] | None:
    if not names:
        return None
    chosen = judge.procedure(names)
    tested = judge.compare(chosen, picked)
    tier = judge.tier(tested, tested.pvalue)
    counts = Counter(chosen).most_common()
    own = _mean(judge.picked_scores(chosen))
    ours = _mean(judge.picked_scores(picked))
    who = (
        counts[0][0]
        if len(counts) == 1
        else f"the classical learner that inner validation picks (mostly {counts[0][0]})"
    )
    gap = _gap(tested.mean, _known(tested.low), _known(tested.high), _p(tested), judge.alpha)
    label = _inline(judge.metric.label)
    numbers = f"{label} {own:.4f} against {ours:.4f} for the selected network ({gap})"
    start = {BETTER: "reaches", SAME: "is not told apart from the networks:", WORSE: "does worse than the networks:"}
    text = f"{who} {start[tier]} {numbers}."
    return {
        "sentence": text[0].upper() + text[1:] if tier != BETTER else text,
        "best": counts[0][0],
        "wins": tier == BETTER,
        "mean": own,
        **_numbers(tested),
        "p": _p(tested),
    }


def _row(
    judge: Judge, name: str, kind: str, result: PairedResult | None, p_holm: float | None, rope: float
) -> dict[str, Any]:
    cells = [judge.cells[name][p] for p in judge.pairs]
    known = metrics_of(judge.context.table)
    keys = [*known, *(k for k in cells[0]["metrics"] if k not in known)]
    metrics = {k: _interval([c["metrics"].get(k) for c in cells], judge, _bounds(known, k)) for k in keys}
    if judge.metric.name not in metrics or any(c["score"] is None for c in cells):  # a diverged fold counts, as worst
        metrics[judge.metric.name] = _interval(judge.scores(name), judge, judge.metric.bounds)
    tier = ""
    if kind == "objective":
        tier = "baseline" if result is None else judge.tier(result, float(p_holm if p_holm is not None else 1.0))
    typical = Counter(c["trial_text"] for c in cells).most_common(1)[0]
    speeds = [c["seconds_per_epoch"] for c in cells if c.get("seconds_per_epoch") is not None]
    title, source = (
        _origin(name, judge.settings, judge.context.table.task) if kind == "objective" else ("classical learner", "")
    )
    return {
        "name": name,
        "title": title,
        "source": source,
        "kind": kind,
        "tier": tier,
        **(_numbers(result) if result is not None else dict.fromkeys(("difference", "low", "high", "detectable"))),
        "p": None if result is None else _p(result),
        "p_holm": None if p_holm is None else float(p_holm),
        **probabilities(result, rope, judge.metric.greater_is_better),
        "metrics": metrics,
        "seconds": sum(c["seconds"] for c in cells),
        "seconds_per_epoch": float(np.mean(speeds)) if speeds else None,
        "peak_memory_mb": max(c["peak_memory_mb"] for c in cells),
        "diverged": int(sum(c["diverged"] for c in cells)),
        "settings": f"{typical[0]} (in {typical[1]} of {len(cells)} folds)" if typical[0] else "",
    }


def _origin(name: str, settings: Settings, task: str) -> tuple[str, str]:
    """Title and source of an arm: of an objective's publication, or its own first line where it has none."""
    if settings.vary != "objective":
        return find_arm(settings.vary, name).title, ""
    find: Any = find_text_objective if task == "text" else find_objective
    cls = find(name, trust=settings.own_parts)
    row = owners().get(cls.__name__)
    if row is not None and cls.__module__ == f"steepest.{row.module}":
        return row.title, row.source
    return (cls.__doc__ or name).strip().splitlines()[0].rstrip("."), ""


def _numbers(result: PairedResult) -> dict[str, float | None]:
    return {
        "difference": result.mean,
        "low": _known(result.low),
        "high": _known(result.high),
        "detectable": _known(result.detectable or float("nan")),
    }


def _p(result: PairedResult) -> float | None:
    """The p value; None where there are too few folds for a test."""
    return _known(result.pvalue)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _bounds(known: Mapping[str, Metric], name: str) -> tuple[float, float]:
    """Of a metric, or of its tuned or calibrated form."""
    metric = known.get(name, known.get(name.rpartition("_")[0]))
    return (-np.inf, np.inf) if metric is None else metric.bounds


def _interval(
    values: Sequence[float | None] | np.ndarray, judge: Judge, bounds: tuple[float, float]
) -> dict[str, float | None]:
    """Mean over folds with its interval at the judge's level, cut at the metric's bounds.

    Args:
        values: the metric in each fold.
        judge: knows the overlap of training parts, and the level.
        bounds: of the metric.
    """
    finite = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    if not len(finite):
        return {"mean": None, "low": None, "high": None}
    mean = float(finite.mean())
    if len(finite) < LEAST_FOR_INTERVAL or judge.ratio <= 0:
        return {"mean": mean, "low": None, "high": None}
    tested = judge.resampled(finite)
    return {"mean": mean, "low": max(tested.low, bounds[0]), "high": min(tested.high, bounds[1])}


def _curve(curves: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    """Mean metric by epoch while at least half of the folds are still training."""
    longest = max(map(len, curves))
    curve: dict[str, list[float | None]] = {"epoch": [], "valid": [], "low": [], "high": []}
    for epoch in range(longest):
        values = [v for c in curves if len(c) > epoch and (v := c[epoch]) is not None]
        if len(values) * 2 < len(curves) or not values:
            break
        low, high = np.percentile(values, [10, 90])
        for key, value in zip(curve, (float(epoch + 1), float(np.mean(values)), float(low), float(high))):
            curve[key].append(round(value, 6))
    return curve


def _reliability(judge: Judge, name: str) -> dict[str, Any] | None:
    """Reliability over all test rows; temperature is each fold's own."""
    probabilities, targets, cooled = [], [], []
    for pair in judge.pairs:
        outcome = judge.outcome(name, pair)
        if outcome.probabilities is None or not outcome.finite:
            return None
        probabilities.append(outcome.probabilities)
        targets.append(judge.context.split(pair, -1).other_target)
        temperature = judge.cells[name][pair]["temperature"]
        cooled.append(apply_temperature(outcome.probabilities, temperature or 1.0))
    y = np.concatenate(targets)
    cells = [judge.cells[name][p] for p in judge.pairs]
    bins = reliability_bins(np.concatenate(probabilities), y)
    ece = {k: [c["metrics"][k] for c in cells if c["metrics"][k] is not None] for k in ("ece", "ece_calibrated")}
    mean = {k: float(np.mean(values)) if values else None for k, values in ece.items()}
    return {**bins, **mean, "temperature": float(np.median([c["temperature"] or 1.0 for c in cells]))}


def _recall(judge: Judge, name: str) -> list[float | None]:
    values = np.array([judge.cells[name][p]["recall"] for p in judge.pairs], dtype=np.float64)
    with np.errstate(all="ignore"):
        counts = np.isfinite(values).sum(0)
        sums = np.nansum(values, 0)
    return [float(s / c) if c else None for s, c in zip(sums, counts)]


def _samples(judge: Judge, picked: Sequence[str]) -> dict[str, Any]:
    """Rows of the first test part where the choice is not the baseline, or of the first: a prompt, how it goes on, and
    how both models go on."""
    baseline = judge.settings.baseline
    place = next((i for i, name in enumerate(picked) if name != baseline), 0)
    cells = [judge.cells[name][judge.pairs[place]] for name in (picked[place], baseline)]
    own, plain = (cell.get("samples", []) for cell in cells)
    return {"chosen": picked[place], "rows": [[*row, beside[2]] for row, beside in zip(own, plain)]}


def _conflict(judge: Judge, names: Sequence[str]) -> dict[str, Any]:
    """How far the gradients of the targets disagreed, by arm, over all folds that know it."""
    means = {}
    for name in names:
        known = [own for pair in judge.pairs if (own := judge.cells[name][pair].get("conflict")) is not None]
        if known:
            means[name] = {
                key: np.mean([own[key] for own in known], 0).round(6).tolist() for key in ("cosine", "share")
            }
    return means


def _confusion(judge: Judge, by_fold: Sequence[str]) -> list[list[float]]:
    """The share of all test rows (by weight) that are of class i and were predicted as j, a name for every fold."""
    classes = judge.context.classes
    counts = np.zeros((classes, classes))
    for name, pair in zip(by_fold, judge.pairs):
        split = judge.context.split(pair, -1)
        counts += confusion(split.other_target, judge.outcome(name, pair), classes, split.other_weight)
    return [[round(float(share), 6) for share in row] for row in counts / counts.sum()]


def _versions(learners: Sequence[str]) -> dict[str, str]:
    """Of what computed."""
    names = ["steepest", "torch", "scikit-learn", "numpy", "scipy"]
    names += [LightGBMBaseline.name] if LightGBMBaseline.name in learners else []
    return {name: importlib.metadata.version(name) for name in names}


def _trials_of_learners(context: Context) -> dict[str, str]:
    """How learners were tuned and stopped, and whose boosting it was, in words."""
    tuned = [name for name in context.settings.classical if name in tuned_learners()]
    if not tuned:
        return {}
    count, which = context.settings.trials, " and ".join(tuned)
    words = {
        "trials a learner": f"1: defaults of {which}"
        if count == 1
        else f"{count} of {which}: defaults, then a Sobol design"
    }
    kinds = {LightGBMBaseline.name: "LightGBM", BoostingBaseline.name: "scikit-learn's, for LightGBM is not there"}
    for name in set(tuned) & set(kinds):
        words["gradient boosting"] = (
            f"{kinds[name]}; at most {MOST_ROUNDS:,} rounds, stopped after {PATIENCE} without a smaller loss on inner "
            "validation; then refitted on the whole training part"
        )
    return words


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def protocol(context: Context) -> dict[str, str]:
    """The protocol in words, for people."""
    s, table = context.settings, context.table
    pair = next(iter(context.folds))
    parts = len(context.inner(pair))
    kind = "forward chaining" if table.times is not None else "grouped" if table.groups is not None else "stratified"
    if table.task not in CLASSES and kind == "stratified":
        kind = "class-disjoint" if table.task == RETRIEVAL else "shuffled"
    inner = f"one {'12.5' if s.fixed_length else '25'}% holdout" if parts == 1 else f"{parts} folds"
    if table.task == RETRIEVAL:
        inner = "one holdout of whole classes" if parts == 1 else f"{parts} class-disjoint folds"
    ranked = isinstance(table, Table) and table.queries is not None
    seeds = "a fixed test set" + (f", {s.repeats} seeds" if s.repeats > 1 else "")
    design = seeds if s.test else f"{s.repeats} x {s.folds} {kind} folds"
    rate = "" if s.vary == "schedule" else ", one-cycle learning rate"
    return {
        "outer design": design,
        "inner validation": inner,
        f"{s.vary}s": ", ".join(s.objectives),
        "baseline": s.baseline,
        **({"objective": s.objective} if s.objective else {}),
        f"trials a{'' if s.vary == 'schedule' else 'n'} {s.vary}": "1: its defaults"
        if s.trials == 1
        else f"{s.trials}: defaults at three learning rates, then a Sobol design",
        "epochs": f"{s.epochs}{rate}; the tuned network is scored, no refit"
        if s.fixed_length
        else f"at most {s.epochs}, patience {s.patience}; then refitted on the whole training part",
        "metric": context.metric.name,
        "model": s.model + (f" ({context.choice})" if context.choice else ""),
        **({"embedding": f"{s.embedding} numbers, compared by cosine"} if s.embedding else {}),
        "batch size": str(s.batch_size) + (f", {PER_CLASS} rows of a class or more" if s.embedding else ""),
        **({} if s.vary == "optimizer" else {"optimizer": "AdamW"}),
        "inputs": shape_text(table) + (", augmented" if isinstance(table, Images) and s.augment else ""),
        "classical learners": ", ".join(s.classical) or "none",
        **_trials_of_learners(context),
        "label noise": f"{s.noise:.0%} of training labels" if s.noise else "none",
        "seed": str(s.seed),
        **(RANKED if ranked else {}),
    }
