"""One comparison on a Slurm cluster: members as jobs, by submitit; the command itself where this script runs.

    python slurm.py --store postgresql://me@database/runs --members 8 --minutes 60 -- data.csv --target y --budget 50m

What stands behind `--` goes to `steepest compare`. Members that have no place yet come when they have one; those that
are ended, or whose node is lost, lose nothing but the cell that they were at. `--cluster local` runs all of it here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from submitit import AutoExecutor
from submitit.helpers import CommandFunction

STEEPEST = [sys.executable, "-m", "steepest"]


def main() -> int:
    """Submit members, compare, and cancel what is left of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True, help="postgresql://user@host/database, as all nodes reach it")
    parser.add_argument("--members", type=int, default=4, help="jobs")
    parser.add_argument("--cores", type=int, default=1, help="of each job")
    parser.add_argument("--minutes", type=int, default=60, help="of each job")
    parser.add_argument("--partition", help="of the cluster")
    parser.add_argument("--cluster", default="slurm", help="slurm, or local for processes of this machine")
    parser.add_argument("--folder", default="steepest-jobs", help="for the logs of the jobs, on a shared disk")
    parser.add_argument("words", nargs="+", help="of steepest compare")
    options = parser.parse_args()

    executor = AutoExecutor(folder=options.folder, cluster=options.cluster)
    executor.update_parameters(
        name="steepest", timeout_min=options.minutes, cpus_per_task=options.cores, tasks_per_node=1, nodes=1
    )
    if options.partition:
        executor.update_parameters(slurm_partition=options.partition)
    member = [
        "work",
        "last",
        "--store",
        options.store,
        "--workers",
        str(options.cores),
        "--wait",
        f"{options.minutes}m",
    ]
    with executor.batch():
        jobs = [executor.submit(CommandFunction([*STEEPEST, *member], verbose=False)) for _ in range(options.members)]
    try:
        command = ["compare", *options.words, "--store", options.store, "--workers", "1"]
        done = subprocess.run([*STEEPEST, *command], check=False).returncode
        if done == 0:
            for job in jobs:
                if job.state == "RUNNING" or options.cluster == "local":
                    print(job.result().strip().splitlines()[-1])
        return done
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


if __name__ == "__main__":
    sys.exit(main())
