"""Products of curvature agree with those that curvlinops and PyHessian gave; ``record_curvature.py`` asked them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from steepest.core.curvature import GaussNewton, Hessian

HERE = Path(__file__).parent
ROWS = json.loads((HERE / "recorded_curvature.json").read_text(encoding="utf-8"))
BUILD = {"hessian": Hessian.of_model, "gauss_newton": GaussNewton}


@pytest.fixture(scope="module")
def recorder():
    spec = importlib.util.spec_from_file_location("peers_record_curvature", HERE / "record_curvature.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{r['peer']}, {r['loss']}, {r['what']}") for r in ROWS])
def test_products_agree_with_recorded_ones(row, recorder):
    batches, loss = recorder.batches(row["loss"]), recorder.LOSSES[row["loss"]]
    operator = BUILD[row["what"]](recorder.network(), loss, batches)
    expected = torch.tensor(row["values"], dtype=torch.float64)
    torch.testing.assert_close(operator @ recorder.vector(operator.size), expected, rtol=1e-10, atol=1e-12)


def test_both_peers_were_asked():
    assert {row["peer"].split()[0] for row in ROWS} == {"curvlinops-for-pytorch", "pyhessian"}
