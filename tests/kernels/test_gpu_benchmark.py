"""The benchmark for a GPU runs from end to end on a few tokens, peers that are not here left out."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "linear_cross_entropy_gpu.py"


def test_runs_on_a_few_tokens(monkeypatch, capsys):
    pytest.importorskip("triton", reason="triton is built for Linux only")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--quick"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    for way, plan in (("keep", "keep, 320 rows"), ("chunks", "chunk, "), ("slabs", "slab, ")):
        (row,) = [line for line in printed.splitlines() if f"ours, {way}" in line and " ms " in line]
        assert plan in row
    for name in ("plain", "plain, compiled", "ours, filtered", "three products"):
        assert f"  {name} " in printed
    assert printed.count("aim:") >= 4
    assert "row kernel, 1001 classes" in printed
