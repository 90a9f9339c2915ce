"""Write what a benchmark measured beside when and on what."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine_kind(device: str = "cpu") -> str:
    """The name of the processor, or of the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def keep(name: str, numbers: dict[str, Any], options: argparse.Namespace) -> None:
    """Write ``results/NAME-DATE-KIND.json`` and print its name; nothing after a quick run."""
    if options.quick:
        print("a quick run: nothing is kept")
        return
    device = getattr(options, "device", "cpu")
    kind, date = machine_kind(device), datetime.date.today().isoformat()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{date}-{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}.json"
    facts = {"benchmark": name, "date": date, "machine": kind, "device": device, "torch": torch.__version__}
    facts["capability"] = torch.backends.cpu.get_cpu_capability()
    path.write_text(json.dumps({**facts, **numbers}, indent=2) + "\n", encoding="utf-8")
    print(path.name)
