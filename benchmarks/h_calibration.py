"""A step of the windowed calibration loss, streamed over the classes that are left out, against all passes at once.

The reference makes the ``[C, N C]`` matrix of all passes and leaves the gradient to autograd, as the definition is
read. Values are compared first with a loop over Python's floats, on few rows; then both forms with each other. Prints
milliseconds of processor time of value and gradient (least and median of rounds that take turns), the peak of memory
in MB, the ratios, and with ``--fit`` a fit of the temperature ensemble.

    python benchmarks/h_calibration.py [--sizes 4500x10,1000x100] [--rounds 5] [--fit]
"""

from __future__ import annotations

import itertools
import statistics
import time

import torch
from _options import read_options
from _record import keep
from torch import Tensor

from steepest.core.allocations import peak_bytes
from steepest.post.calibration import TemperatureEnsembleCalibrator, h_calibration_loss
from steepest.post.calibration._h_windows import error_and_slope

WINDOW, CLUSTERS, ROUNDS = 200, 15, 30


def problem(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Over-confident probabilities and labels."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, classes, generator=generator)
    return (3 * z).softmax(1), torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)


def at_once(p: Tensor, target: Tensor) -> Tensor:
    """The loss from one padded row for each class that is left out."""
    classes = p.shape[1]
    wide = p.double()
    order = wide.detach().flatten().argsort(stable=True)
    values = wide.detach().flatten()[order]
    residual = (wide - torch.nn.functional.one_hot(target, classes)).flatten()[order]
    keep = target[order // classes] != torch.arange(classes)[:, None]
    counts = keep.sum(1)
    row, column = keep.nonzero(as_tuple=True)
    place = (row, keep.cumsum(1)[row, column] - 1)
    shape = (classes, int(counts.max()))
    values = values.new_full(shape, torch.inf).index_put(place, values[column])
    residual = residual.new_zeros(shape).index_put(place, residual[column])

    def prefix(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x.cumsum(1), (1, 0))

    here, sums = torch.arange(shape[1]), prefix(residual)
    upper, lower = (here + WINDOW // 2 + 1).clamp_max(shape[1]), (here - WINDOW // 2).clamp_min(0)
    error = ((sums[:, upper] - sums[:, lower]) / (WINDOW + 1)).abs()
    error = torch.where(here < counts[:, None], error, 0.0)
    low, high = values[:, :1], values.gather(1, counts[:, None] - 1)
    centres = low + (high - low) * ((torch.arange(CLUSTERS) + 0.5) / CLUSTERS)
    total = prefix(torch.where(values.isinf(), 0.0, values))
    for _ in range(ROUNDS):
        inner = torch.searchsorted(values, ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous())
        edges = torch.cat([torch.zeros_like(counts)[:, None], inner, counts[:, None]], 1)
        sizes = edges.diff(dim=1)
        moved = torch.where(sizes > 0, total.gather(1, edges).diff(dim=1) / sizes.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    means = prefix(error).gather(1, edges).diff(dim=1) / sizes.clamp_min(1)
    return (1e5 * (means.sum(1) / (sizes > 0).sum(1)).mean()).to(p.dtype)


def looped(p: Tensor, target: Tensor) -> float:
    """The same by the definition, entry by entry."""
    errors = []
    for left_out in range(p.shape[1]):
        pairs = [
            (value, float(k == label))
            for row, label in zip(p.double().tolist(), target.tolist())
            if label != left_out
            for k, value in enumerate(row)
        ]
        pairs.sort()
        residual, half = [value - hit for value, hit in pairs], WINDOW // 2
        error = [
            abs(sum(residual[max(0, j - half) : j + half + 1])) / (WINDOW + 1) for j in range(len(residual))
        ]  # fmt: skip
        low, high = pairs[0][0], pairs[-1][0]
        centres = [low + (high - low) * (g + 0.5) / CLUSTERS for g in range(CLUSTERS)]
        for _ in range(ROUNDS):
            groups: list[list[int]] = [[] for _ in centres]
            cuts = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
            for j, (value, _) in enumerate(pairs):
                groups[sum(cut <= value for cut in cuts)].append(j)
            moved = [sum(pairs[j][0] for j in g) / len(g) if g else c for g, c in zip(groups, centres)]
            if moved == centres:
                break
            centres = moved
        inside = [sum(error[j] for j in g) / len(g) for g in groups if g]
        errors.append(sum(inside) / len(inside))
    return 1e5 * sum(errors) / len(errors)


def step(loss: object, p: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    leaf = p.detach().clone().requires_grad_()
    value = loss(leaf, target)  # type: ignore[operator]
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def main() -> None:
    """Check, measure, print and keep the numbers."""
    options = read_options(__doc__, sizes=("4500x10,1000x100", "200x5"), rounds=(5, 1), fit=(False, False))
    p, y = (tensor.double() if tensor.is_floating_point() else tensor for tensor in problem(150, 5))
    value, wanted = h_calibration_loss(p, y).item(), looped(p, y)
    print(f"against the loop: relative difference {abs(value / wanted - 1):.1e}")
    assert abs(value / wanted - 1) < 1e-9, "the loop gives another value"
    rows = []
    for size in options.sizes.split(","):
        count, classes = map(int, size.split("x"))
        p, y = problem(count, classes)
        forms = {"streamed": h_calibration_loss, "all passes at once": at_once}
        (ours, slope), (theirs, their_slope) = (step(form, p, y) for form in forms.values())
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(slope, their_slope)
        times: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(options.rounds):
            for name, form in forms.items():
                begin = time.process_time()
                step(form, p, y)
                times[name].append(1e3 * (time.process_time() - begin))
        wide = p.double()
        peaks = {
            "streamed": peak_bytes(lambda: error_and_slope(wide, y, WINDOW, 1e-20, CLUSTERS, "cluster", True)),  # noqa: B023
            "all passes at once": peak_bytes(lambda: step(at_once, p, y)),  # noqa: B023
        }
        for name, own in times.items():
            row = {"rows": count, "classes": classes, "form": name, "min_ms": round(min(own), 2)}
            row |= {"median_ms": round(statistics.median(own), 2), "peak_mb": round(peaks[name] / 1e6, 2)}
            row |= {"time_ratio": round(min(own) / min(times["streamed"]), 2)}
            row["memory_ratio"] = round(peaks[name] / peaks["streamed"], 2)
            rows.append(row)
            print(
                f"{count:>6} x {classes:<4} {name:<20} {row['min_ms']:>9.1f} ms {row['median_ms']:>9.1f} ms"
                f" {row['peak_mb']:>9.1f} MB {row['time_ratio']:>6.2f}x {row['memory_ratio']:>6.2f}x"
            )
    numbers: dict[str, object] = {"threads": torch.get_num_threads(), "rows": rows}
    if options.fit:
        p, y = problem(4500, 10)
        begin = time.process_time()
        TemperatureEnsembleCalibrator(lr=0.02, epochs=150).fit(p.log(), y)
        numbers["fit_seconds"] = round(time.process_time() - begin, 2)
        print(f"150 epochs of the temperature ensemble on 4500 x 10: {numbers['fit_seconds']} s")
    keep("h_calibration", numbers, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
