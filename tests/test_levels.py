"""Numbers at every instruction level that the processor has, and by two threads.

The tests run at the machine's own level with one thread. Here those files run again whose numbers depend on how vectors
are cut and how sums are shared out: of the kernels, and of each room a file that computes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steepest.core import native

FILES = (
    "test_levels.py",
    "kernels/test_two_pass_softmax.py",
    "kernels/test_chronicals_fused.py",
    "kernels/test_linear_loss.py",
    "core/test_distances.py",
    "core/test_rows.py",
    "nn/test_networks.py",
    "losses/classification/test_ldr.py",
    "optim/optimizers/test_perp_grad.py",
    "data/mixing/test_mixtures.py",
    "descent/test_stack.py",
    "post/ood/test_mahalanobis_ood.py",
    "comparison/metrics/test_metrics.py",
)
HERE = (native.level(), int(os.environ.get("STEEPEST_TEST_THREADS", "1")))
ELSEWHERE = [(level, HERE[1]) for level in native.levels() if level != HERE[0]] + [(HERE[0], 1 if HERE[1] == 2 else 2)]
# interpreted Triton is no code of this processor, and graphs take long to compile
SELECTED = ("-m", "not slow", "-k", "not triton and not compile")


def test_torch_runs_at_the_level_and_with_the_threads_of_this_run():
    torchs = torch.backends.cpu.get_cpu_capability().lower()
    assert (torchs if torchs in native.LEVELS else "default", torch.get_num_threads()) == HERE


@pytest.mark.slow
@pytest.mark.parametrize(("level", "threads"), ELSEWHERE)
def test_numbers_hold(level, threads):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *SELECTED, *(str(here / file) for file in FILES)],
        cwd=here.parent,
        env=os.environ
        | {"ATEN_CPU_CAPABILITY": level, "STEEPEST_TEST_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
