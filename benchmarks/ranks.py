"""The vocabulary-parallel linear cross-entropy at 1, 2 and 4 gloo ranks: time, and bytes that the ranks exchange.

Strong scaling cuts one vocabulary among the ranks; weak scaling gives each rank as much as one rank had. Ranks are
processes of one machine with one thread each; the note in the result says how many processors they share. Rounds are
interleaved: each runs every number of ranks once. The bytes are those of the tensors given to each collective, and by
the count of a ring what each rank sends: 2 (R - 1) / R of an all-reduced tensor, R - 1 times its part in a gather.

    python benchmarks/ranks.py [--shape TOKENSxWIDTHxCLASSES] [--rounds 7] [--weak-classes CLASSES-OF-A-RANK]
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from _options import read_options
from _record import keep

from steepest.kernels import VocabularyShard, linear_cross_entropy

RANKS = (1, 2, 4)


class Counted:
    """Counts bytes given to collectives while it is entered."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.kept: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Counted:
        for name, place in (("all_reduce", 0), ("all_gather_into_tensor", 1), ("reduce_scatter_tensor", 1)):
            self.kept[name] = getattr(dist, name)
            setattr(dist, name, self.counting(name, place))
        return self

    def counting(self, name: str, place: int) -> Callable[..., Any]:
        """The collective, counted by its argument ``place``."""

        def call(*args: Any, **named: Any) -> Any:
            self.bytes[name] += args[place].numel() * args[place].element_size()
            return self.kept[name](*args, **named)

        return call

    def __exit__(self, *_: object) -> None:
        for name, original in self.kept.items():
            setattr(dist, name, original)

    def sent(self, ranks: int) -> int:
        """Bytes that a rank sends, by the count of a ring."""
        shares = {"all_reduce": 2 * (ranks - 1) / ranks, "all_gather_into_tensor": ranks - 1}
        shares["reduce_scatter_tensor"] = (ranks - 1) / ranks
        return round(sum(shares[name] * number for name, number in self.bytes.items()))


def step(mode: str, tokens: int, width: int, classes: int) -> Callable[[], None]:
    """A forward and backward pass on this rank; ``mode`` is ``"vocabulary"`` or ``"sequence"``."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    target = torch.randint(classes, (tokens,), generator=generator)
    shard = VocabularyShard.even(dist.group.WORLD, classes)
    own = min(classes, (rank + 1) * -(-classes // ranks)) - shard.start
    weight = (torch.randn(own, width, generator=generator.manual_seed(1 + rank)) / width**0.5).requires_grad_()
    if mode == "sequence":
        hidden, target = hidden.chunk(ranks)[rank].clone(), target.chunk(ranks)[rank]
    hidden.requires_grad_()
    group = dist.group.WORLD if mode == "sequence" else None

    def run() -> None:
        hidden.grad = weight.grad = None
        linear_cross_entropy(hidden, weight, target, process_group=shard, token_group=group).backward()

    return run


def worker(rank: int, ranks: int, folder: str, jobs: list[tuple[str, int, int, int]], pipes: list[Connection]) -> None:
    """Run the job that the pipe names, as often as it does; the first time counted."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{ranks}", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=300))
    steps = [step(*job) for job in jobs]
    while (number := pipes[rank].recv()) is not None:
        with Counted() as counted:
            dist.barrier()
            begin = time.perf_counter()
            steps[number]()
            dist.barrier()
            took = 1e3 * (time.perf_counter() - begin)
        pipes[rank].send((took, dict(counted.bytes), counted.sent(ranks)))
    dist.destroy_process_group()


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, shape=("512x256x32000", "16x8x64"), weak_classes=(8000, 16), rounds=(7, 1))
    tokens, width, classes = map(int, options.shape.split("x"))
    numbers = RANKS[:2] if options.quick else RANKS
    context, folder = torch.multiprocessing.get_context("spawn"), tempfile.mkdtemp()
    names = ["strong", "weak", "strong, tokens cut as well"]
    running, ends = [], {}
    for ranks in numbers:
        jobs = [("vocabulary", tokens, width, classes), ("vocabulary", tokens, width, ranks * options.weak_classes)]
        jobs.append(("sequence", tokens, width, classes))
        pairs = [context.Pipe() for _ in range(ranks)]
        ends[ranks] = [ours for ours, _ in pairs]
        arguments = (ranks, folder, jobs, [theirs for _, theirs in pairs])
        running.append(torch.multiprocessing.start_processes(worker, arguments, ranks, join=False))
    times: dict[tuple[int, int], list[float]] = {(job, ranks): [] for job in range(3) for ranks in numbers}
    counted = {}
    for number in range(options.rounds + 1):
        for job, ranks in times:
            for end in ends[ranks]:
                end.send(job)
            told = [end.recv() for end in ends[ranks]]
            if number:
                times[job, ranks].append(max(took for took, _, _ in told))
            counted[job, ranks] = told[0][1:]
    for end in (process for every in ends.values() for process in every):
        end.send(None)
    for process in running:
        process.join()
    rows = []
    for (job, ranks), own in times.items():
        base = min(times[job, 1])
        # one rank's time shared by all, or kept where the work grows with the ranks
        ideal = base if job == 1 else base / ranks
        row = {"scaling": names[job], "ranks": ranks, "min_ms": round(min(own), 2)}
        row |= {"median_ms": round(statistics.median(own), 2), "efficiency": round(ideal / min(own), 3)}
        row |= {"bytes_given": counted[job, ranks][0], "bytes_sent_by_a_rank": counted[job, ranks][1]}
        rows.append(row)
        print(
            f"{names[job]:<28} {ranks} ranks  {row['min_ms']:>9.2f} ms  {row['median_ms']:>9.2f} ms"
            f"  {row['efficiency']:>6.2f} of ideal  {row['bytes_sent_by_a_rank'] / 2**20:>8.2f} MiB sent"
        )
    cores = len(os.sched_getaffinity(0))
    note = (
        f"{cores} processors for all ranks: beyond {cores} ranks time cannot fall, and other jobs may have run beside"
    )
    facts = {"threads": 1, "tokens": tokens, "width": width, "classes": classes, "weak_classes": options.weak_classes}
    keep("ranks", {**facts, "processors": cores, "note": note, "rows": rows}, options)


if __name__ == "__main__":
    main()
