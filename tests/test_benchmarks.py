"""Each benchmark runs from end to end on little, and keeps nothing of it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(file.name for file in FOLDER.glob("*.py") if not file.name.startswith("_"))
SPAWNING = ("ranks.py", "stores.py")
"""Their processes import the script that was started, so that it must be one."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_quick_run_ends_and_keeps_nothing(name, monkeypatch, capfd):
    before = sorted((FOLDER / "results").iterdir())
    if name in SPAWNING:
        subprocess.run([sys.executable, str(FOLDER / name), "--quick"], env=os.environ, check=True)
    else:
        monkeypatch.syspath_prepend(str(FOLDER))
        monkeypatch.setattr(sys, "argv", [name, "--quick"])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    printed, _ = capfd.readouterr()
    assert printed.rstrip().endswith("a quick run: nothing is kept")
    assert sorted((FOLDER / "results").iterdir()) == before
