"""What every rank of a group does, run by test_ranks.py: ``python ranks_worker.py RANKS FOLDER CASE ...``.

One process imports everything and forks the ranks, which run all cases and write what went wrong, by case.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import ranks_placed
import ranks_plain
import ranks_statistics
import torch
import torch._dynamo  # DTensor imports it: once, not once a rank
import torch.distributed as dist
from ranks_common import CLASSES, cut, problem

from steepest.kernels import VocabularyShard, linear_cross_entropy


def one_rank_dies():
    """The last rank is gone after a step of all; the others raise in time."""
    signal_, where = (Path(sys.argv[2]) / "fate").read_text().split()
    group = dist.new_group(timeout=datetime.timedelta(seconds=5))
    hidden, weight, _, target = problem()
    own = cut(CLASSES, group)
    shard = VocabularyShard.of(group, own.stop - own.start)

    def step():
        if where == "asking":
            return linear_cross_entropy(hidden, weight[own], target, process_group=group)
        if where == "tokens":
            return linear_cross_entropy(hidden, weight, target, token_group=group)
        leaf = hidden.clone().requires_grad_()
        loss = linear_cross_entropy(leaf, weight[own], target, process_group=shard)
        die() if where == "backward" else None
        return loss.backward()

    def die():
        if armed and dist.get_rank() == dist.get_world_size() - 1:
            (Path(sys.argv[2]) / "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), int(signal_))

    armed = False
    step()
    armed = True
    if where != "backward":
        die()
    begin = time.monotonic()
    try:
        step()
    except RuntimeError:
        took = time.monotonic() - begin
        assert took < 5 + 10, took  # the rest is for a busy machine
    else:
        raise AssertionError("no error")


def run(rank, ranks, folder, cases):
    """All cases on one rank."""
    faulthandler.dump_traceback_later(570, exit=True)
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=120))
    for name in cases:
        try:
            cases_of = [vars(module).get(name) for module in (ranks_plain, ranks_placed, ranks_statistics)]
            (one_rank_dies if name == "one_rank_dies" else next(filter(None, cases_of)))()
            wrong = ""
        except Exception:
            wrong = traceback.format_exc()
        Path(folder, f"{name}.{rank}.json").write_text(json.dumps(wrong), encoding="utf-8")
    os._exit(0)  # not waiting for groups of ranks that stopped at an error


if __name__ == "__main__":
    ranks, folder, *cases = sys.argv[1:]
    running = torch.multiprocessing.start_processes(
        run, (int(ranks), folder, cases), int(ranks), join=False, start_method="fork"
    )
    for each in running.processes:  # the context's own join would end the others where one dies
        each.join()
