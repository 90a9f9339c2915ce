"""Record products with Hessians and Gauss-Newton matrices, and eigenvalues, as curvlinops and PyHessian give them.

Run it where they lie, in an environment of their own, and commit ``recorded_curvature.json``:

    python tests/peers/record_curvature.py
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = Path(__file__).parent / "recorded_curvature.json"


def network() -> nn.Module:
    """Twelve tanh units between five inputs and three outputs, whose weights are sines."""
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.copy_(torch.sin(1.3 * torch.arange(p.numel(), dtype=torch.float64) + number).view_as(p))
    return model


def batches(kind: str) -> list[tuple[Tensor, Tensor]]:
    """Eleven samples in batches of 4 and 7; targets are classes or numbers."""
    x = torch.cos(0.7 * torch.arange(55, dtype=torch.float64)).view(11, 5)
    y = (
        torch.arange(11) % 3
        if kind == "cross-entropy"
        else torch.cos(torch.arange(33, dtype=torch.float64)).view(11, 3)
    )
    return list(zip(x.split([4, 7]), y.split([4, 7])))


def vector(size: int) -> Tensor:
    """What is multiplied."""
    return torch.cos(2.1 * torch.arange(size, dtype=torch.float64))


LOSSES = {"cross-entropy": nn.CrossEntropyLoss(), "squared error": nn.MSELoss()}


def main() -> None:
    """Ask the peers and write the file."""
    from curvlinops import GGNLinearOperator, HessianLinearOperator
    from pyhessian import hessian

    rows: list[dict[str, Any]] = []

    def add(package: str, loss: str, what: str, values: Any) -> None:
        peer = f"{package} {importlib.metadata.version(package)}"
        rows.append({"peer": peer, "loss": loss, "what": what, "values": values})

    for name, loss in LOSSES.items():
        model = network()
        params = list(model.parameters())
        v = vector(sum(p.numel() for p in params))
        for what, build in (("hessian", HessianLinearOperator), ("gauss_newton", GGNLinearOperator)):
            operator = build(model, loss, params, batches(name), check_deterministic=False)
            add("curvlinops-for-pytorch", name, what, (operator @ v).tolist())
        x, y = (torch.cat(tensors) for tensors in zip(*batches(name)))
        theirs = hessian(network(), loss, data=(x, y), cuda=False)
        pieces = [piece.view_as(p) for piece, p in zip(v.split([p.numel() for p in params]), params)]
        image = torch.autograd.grad(theirs.gradsH, theirs.params, pieces, retain_graph=True)
        add("pyhessian", name, "hessian", torch.cat([piece.flatten() for piece in image]).tolist())
    FILE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
