"""Record what packages say that cannot be installed beside the tests: values and gradients, with version and input.

Run it where they lie (``timm`` needs no torchvision for its single files), and commit ``recorded.json``:

    PYTHONPATH=FOLDER_OF_THE_PACKAGES python tests/peers/record.py
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

HERE = Path(__file__).parent


def single_file(package: str, path: str) -> ModuleType:
    """One file of a package, without what the package imports beside it."""
    root = next(Path(p) / package for p in sys.path if (Path(p) / package / path).is_file())
    spec = importlib.util.spec_from_file_location(Path(path).stem, root / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run every peer on the same inputs and write the file."""
    from libauc.losses import FocalLoss

    asymmetric = single_file("timm", "loss/asymmetric_loss.py")
    smoothing = single_file("timm", "loss/cross_entropy.py")
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(6, 4, generator=generator)).round(decimals=3)
    target, labels = torch.tensor([0, 1, 2, 3, 0, 2]), torch.randint(2, (6, 4), generator=generator)
    many = asymmetric.AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05, reduction="sum")
    runs = {
        "asymmetric_loss, gammas 4 and 1, clip 0.05, sum": ("timm", many, labels),
        "asymmetric_single_label, gammas 4 and 1, smoothing 0.1": (
            "timm", asymmetric.AsymmetricLossSingleLabel(gamma_pos=1, gamma_neg=4, eps=0.1), target,
        ),
        "cross_entropy, smoothing 0.1": ("timm", smoothing.LabelSmoothingCrossEntropy(0.1), target),
        "focal of two classes, gamma 2": ("libauc", FocalLoss(alpha=0.5, gamma=2), labels[:, 0].float()),
    }  # fmt: skip
    found = {}
    for name, (package, peer, own) in runs.items():
        inputs = logits[:, 0] if own.dtype == torch.float32 else logits
        leaf = inputs.clone().requires_grad_()
        value: Tensor = peer(leaf, own)
        (gradient,) = torch.autograd.grad(value, leaf)
        found[name] = {
            "peer": f"{package} {importlib.metadata.version(package)}",
            "logits": inputs.tolist(),
            "target": own.tolist(),
            "value": value.item(),
            "gradient": gradient.tolist(),
        }
    (HERE / "recorded.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
