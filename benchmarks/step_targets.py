"""Targets of speed for gradients and steps, and what was measured for each: from the newest results of the benchmarks.

A target that has several settings is met where all of them meet it. What misses says where its time goes.

    python benchmarks/step_targets.py
"""

from __future__ import annotations

import json
from typing import Any

from _options import read_options
from _record import RESULTS, keep

PROFILES = {
    "SAM": "beside its passes 8 words a weight move: length 1, move 4, back 2, length of the second gradient 1 (a plain"
    " form: 9); with AdamW as a base, whose own step is longer, that is within the bound",
    "GradientRegularization": "words a weight beside the gradients: moves 2, copy 2, sum 3, copy of the first gradient"
    " 2, back 2, joined gradient 5, two lengths; and some operations in Python for each tensor",
    "IGNITE": "words a weight beside the gradients: three lengths, moves 2, copy 2, sum 3, back 2, difference 3, added"
    " 3; and some operations in Python for each tensor",
    "MESA": "operations in Python for each tensor and module: the averaged model runs by names, modes are set"
    " and restored, the average moves tensor by tensor",
    "SmallFCLOpt": "11 ns a weight at 1e5: 28 features with 10 inverse roots are computed twice, then 136 products; 7"
    " words of state are read twice and written once, outside the cache; at 1e3 the bound is met",
    "UPGrad": "calls of 2 to 4 rows take 22 microseconds when repeated (6 to 8 times as fast as TorchJD), 47 with other"
    " code between: checks and conversions, not the solution",
    "GhostStepController": "copies of the weights, the update and its length beside the product: 8 words a weight",
    "SGDW": "torch's one pass over the list is most of it; the list of shares is made first, in Python",
    "RandomScalingSGDM": "torch's one pass over the list is most of it; the list of shares is made first, in Python",
}
"""Where the time of a target that is missed goes: words are counted from the code."""


def newest(name: str) -> dict[str, Any]:
    """The last result of a benchmark."""
    files = sorted(RESULTS.glob(f"{name}-20*.json"))
    facts: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))
    return {**facts, "file": files[-1].name}


def main() -> None:
    """Print the table and keep it."""
    options = read_options(__doc__)
    optimizers, steps, aggregators = newest("optimizers"), newest("steps"), newest("aggregators")
    passes, joint = newest("passes"), newest("joint_backward")
    table: list[dict[str, Any]] = []

    def add(target: str, bound: float, values: dict[str, float], source: str, *, least: bool = False) -> None:
        met = all(value >= bound if least else value <= bound for value in values.values())
        number = sum(value >= bound if least else value <= bound for value in values.values())
        row = {"target": target, "bound": f"{'>=' if least else '<='} {bound:g}", "measured": values, "met": met}
        row["settings_met"] = f"{number} of {len(values)}"
        if not met:
            row["profile"] = next((text for name, text in PROFILES.items() if target.startswith(name)), "not profiled")
        table.append({**row, "from": source})

    of = {(row["optimizer"], row["tensors"]): row for row in optimizers["rows"]}
    sizes = list(dict.fromkeys(row["tensors"] for row in optimizers["rows"]))
    file = optimizers["file"]
    add("AdamW over torch's fused", 1.05, {size: of["AdamW", size]["torch_ratio"] for size in sizes}, file)
    for name in dict.fromkeys(row["optimizer"] for row in optimizers["rows"] if "loop_ratio" in row):
        speed = {sizes[0]: round(1 / of[name, sizes[0]]["loop_ratio"], 2)}
        add(f"{name} over a loop, times as fast", 1.5, speed, file, least=True)
    for name, base in (("Momo", "SGD with momentum"), ("MomoAdam", "Adam")):
        add(f"{name} over {base}", 1.2, {size: of[name, size]["torch_ratio"] for size in sizes}, file)
    add("SmallFCLOpt over AdamW", 12.0, {size: of["SmallFCLOpt", size]["torch_ratio"] for size in sizes}, file)
    ratios = {f"{row['network']}, {row['base']}": row["SAM_ratio"] for row in steps["rows"]}
    add("SAM over a base step", steps["target"], ratios, steps["file"])
    file = aggregators["file"]
    rows = [row for row in aggregators["rows"] if row["aggregator"] == "UPGrad"]
    for bound, fits in ((4.0, [r for r in rows if r["rows"] <= 32]), (20.0, [r for r in rows if r["rows"] == 128])):
        values = {f"m = {row['rows']}, conflict {row['conflict']}": row["ratio"] for row in fits}
        which = "m <= 32" if bound == 4 else "m = 128"
        add(f"UPGrad over TorchJD, times as fast, {which}", bound, values, file, least=True)
    missed = {f"m = {row['rows']}, conflict {row['conflict']}": row["ours_missed"] for row in rows}
    add("UPGrad, conditions of optimality missed by", 1e-9, missed, file)
    for row in joint["surgery"]:
        if row["rows"] == 8:
            speed = {"m = 8, 1e6 columns": row["times_as_fast"]}
            add("PCGrad over LibMTL's form, times as fast", 2.0, speed, joint["file"], least=True)
    peaks = {f"m = {row['tasks']}": round(row["steepest"] / row["TorchJD"], 3) for row in joint["memory"]}
    add("m-task backward, peak memory over TorchJD's", 1.0, peaks, joint["file"])
    for name in dict.fromkeys(row["method"] for row in passes["rows"]):
        values = {row["network"]: row["ratio"] for row in passes["rows"] if row["method"] == name}
        add(f"{name} over its count", passes["target"], values, passes["file"])
    add("temporaries of optimizers, MiB", 64.0, optimizers["temporaries_MiB"], optimizers["file"])
    unmet = [row["target"] for row in table if not row["met"]]
    for row in table:
        low, high = min(row["measured"].values()), max(row["measured"].values())
        verdict = "met" if row["met"] else "missed"
        span = f"{low:g} to {high:g}, {row['settings_met']}"
        print(f"{verdict:<7}{row['target']:<52}{row['bound']:>9}   {span}")
    counts = [tuple(map(int, row["settings_met"].split(" of "))) for row in table]
    settings = sum(total for _, total in counts)
    lacking = settings - sum(number for number, _ in counts)
    print(f"{len(unmet)} of {len(table)} targets missed in a setting or more; {lacking} of {settings} settings")
    facts = {"targets": len(table), "missed": unmet, "settings": settings, "settings_missed": lacking, "table": table}
    keep("step_targets", facts, options)


if __name__ == "__main__":
    main()
