"""What one rank suspects, all skip, on every path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("guard_worker.py")


def test_nan_on_one_rank_is_skipped_on_both_and_both_go_back_together(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "GLOO_SOCKET_IFNAME": "lo"}
    commands = [[sys.executable, str(WORKER), str(rank), str(tmp_path)] for rank in range(2)]
    processes = [
        subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    output = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["actions"] == [[5, "skip"], [26, "skip"], [27, "skip"], [28, "skip"], [28, "roll_back"]]
    assert first["causes"][:2] == [["non_finite"], ["loss_spike"]]
    assert [step for step, moved in enumerate(first["moved"], 1) if not moved] == [5, 26, 27]
