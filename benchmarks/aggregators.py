"""Weights of conflicting gradients from their Gramian, by steepest and by TorchJD, and the errors of both.

Gramians of m random rows that conflict in part (independent ones) and throughout (each against the mean of the others).
The error is how far the conditions of optimality are missed, the largest of: a slope below 0, and a slope times what a
weight has more than its bound, with rows at length 1. Milliseconds of processor time, least and median of rounds that
take turns.

    python benchmarks/aggregators.py [--sizes 2,4,8,32,128] [--rounds 15]
"""

from __future__ import annotations

import statistics
import time

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor
from torchjd.aggregation import MGDAWeighting, PCGradWeighting, UPGradWeighting

from steepest.gradients import MGDA, PCGrad, UPGrad

PAIRS = {
    "UPGrad": (UPGrad(), UPGradWeighting()),
    "MGDA": (MGDA(), MGDAWeighting()),
    "PCGrad": (PCGrad(), PCGradWeighting()),
}


def gramian(rows: int, against: bool) -> Tensor:
    """Of unit rows."""
    jacobian = torch.randn(rows, 10 * rows, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    if against:
        jacobian -= 0.95 * jacobian.sum(0) / rows + 0.3 * jacobian[:1]
    jacobian /= jacobian.norm(dim=1, keepdim=True)
    return jacobian @ jacobian.T


def miss(gram: Tensor, projections: Tensor) -> float:
    """How far rows are from the least v'Gv with v >= e_k."""
    slope, more = projections @ gram, projections - torch.eye(len(gram), dtype=gram.dtype)
    return max(float(-slope.min()), float((slope * more).abs().max()), float(-more.min()), 0.0)


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, sizes=("2,4,8,32,128", "2,4"), rounds=(15, 1))
    rows = []
    for size in map(int, options.sizes.split(",")):
        for against in (False, True):
            gram = gramian(size, against)
            bounds = torch.eye(size, dtype=torch.float64)
            missed = {
                "ours": miss(gram, torch.stack([UPGrad(bound).weights(gram) for bound in bounds])),
                "torchjd": miss(gram, torch.stack([UPGradWeighting(bound)(gram) for bound in bounds[:8]]))
                if size <= 8
                else None,
            }
            for name, (ours, theirs) in PAIRS.items():
                if name == "MGDA" and size > 32:
                    continue
                times = measure(
                    {"ours": lambda: ours.weights(gram), "torchjd": lambda: theirs(gram)},  # noqa: B023
                    options.rounds,
                    "cpu",
                    time.process_time,
                )
                row = {
                    "rows": size,
                    "conflict": "throughout" if against else "in part",
                    "aggregator": name,
                    **{f"{form}_min_ms": round(min(own), 4) for form, own in times.items()},
                    **{f"{form}_median_ms": round(statistics.median(own), 4) for form, own in times.items()},
                }
                row["ratio"] = round(row["torchjd_median_ms"] / row["ours_median_ms"], 2)
                if name == "UPGrad":
                    row |= {
                        f"{form}_missed": float(f"{value:.1e}") for form, value in missed.items() if value is not None
                    }
                rows.append(row)
                print(
                    f"m = {size:<4} {row['conflict']:<11} {name:<7} ours {row['ours_median_ms']:9.3f} ms"
                    f" TorchJD {row['torchjd_median_ms']:9.3f} ms {row['ratio']:7.1f}x"
                    + (f"  missed by {row['ours_missed']:.0e}" if name == "UPGrad" else "")
                    + (f", TorchJD {row['torchjd_missed']:.0e}" if "torchjd_missed" in row else "")
                )
    keep("aggregators", {"threads": torch.get_num_threads(), "rows": rows}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
