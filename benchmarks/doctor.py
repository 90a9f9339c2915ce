"""What the doctor finds: eight planted faults in two language models of characters, and nothing in sound runs.

Two networks, a transformer and a convolutional one, are trained on tiny Shakespeare for a few hundred steps, each with
one fault, and looked at on text that they were not trained on. Sound runs are those two and a classifier of digits. The
thresholds of :mod:`steepest.watch.doctor` were fixed before, on seeds from 100 on, on a third language model and on
the classifier of digits (``--calibrate``). A row of the table is a planted fault, a column a check: in how many runs it
spoke. Faults have company: a temperature, for instance, is miscalibration too.

    python benchmarks/doctor.py [--seeds 3] [--sound 20] [--steps 250] [--calibrate]
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from _options import read_options
from _record import keep
from sklearn.datasets import load_digits
from torch import Tensor, nn

from steepest.lab.data import shakespeare
from steepest.watch import Diagnosis, diagnose
from steepest.watch.doctor import CHECKS, THRESHOLDS

WIDTH, CONTEXT, BATCH, HELD_OUT = 64, 48, 32, 160


class Block(nn.Module):
    """Attention and two layers beside the stream, each after its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.act, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.first(x)).unflatten(-1, (3, 4, WIDTH // 4)).movedim(-3, 0).transpose(-2, -3)
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.project(mixed.transpose(-2, -3).flatten(-2))
        stream: Tensor = x + self.down(self.act(self.up(self.second(x))))
        return stream


class Convolution(nn.Module):
    """A causal convolution beside the stream."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.norm, self.reach = nn.LayerNorm(WIDTH), reach
        self.up, self.act = nn.Conv1d(WIDTH, 4 * WIDTH, 3, dilation=reach), nn.ReLU()
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = nn.functional.pad(self.norm(x).transpose(1, 2), (2 * self.reach, 0))
        stream: Tensor = x + self.down(self.act(self.up(rows)).transpose(1, 2))
        return stream


class Tail(nn.Module):
    """The norm before the last layer; ``mask`` leaves few of its directions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("mask", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.mask


class Scaled(nn.Linear):
    """A last layer whose logits are multiplied."""

    factor: float = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class Window(nn.Module):
    """Two layers on the last four places, beside the stream; to fix thresholds on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.act, self.down = nn.Linear(4 * WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x)
        last = [nn.functional.pad(rows, (0, 0, back, 0))[:, : x.shape[1]] for back in range(4)]
        stream: Tensor = x + self.down(self.act(self.up(torch.cat(last, -1))))
        return stream


class Language(nn.Module):
    """Characters to logits of the next one."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(size, WIDTH), nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        blocks: dict[str, list[nn.Module]] = {
            "transformer": [Block(), Block()],
            "convolution": [Convolution(1), Convolution(3)],
            "window": [Window(), Window()],
        }
        self.blocks, self.tail, self.head = nn.Sequential(*blocks[kind]), Tail(), Scaled(WIDTH, size)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.tail(self.blocks(self.embedding(ids) + self.places[: ids.shape[1]])))
        return logits


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of all tokens."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def two_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Of the text, and of one with other characters in the places of all."""
    return torch.stack([token_loss(logits, targets), token_loss(logits, (targets + 7) % logits.shape[-1])])


FAULTS = (*CHECKS,)


def language_run(kind: str, fault: str | None, seed: int, steps: int, text: Tensor, size: int) -> Diagnosis:
    """Train with a fault and look."""
    torch.manual_seed(seed)
    vocabulary = math.ceil(1.3 * size) if fault == "untrained_tokens" else size
    model = Language(kind, vocabulary)
    if fault == "dead_units":
        layer: Any = model.blocks[1].up  # type: ignore[union-attr]
        with torch.no_grad():
            layer.bias[: int(0.7 * len(layer.bias))] = -20.0
    if fault == "collapsed_rank":
        model.tail.mask[6:] = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, final_div_factor=30.0)
    train, held_out = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]

    def batch(source: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(source) - CONTEXT - 1, (rows,))
        windows = source[starts[:, None] + torch.arange(CONTEXT + 1)]
        targets = windows[:, 1:].clone()
        if fault == "label_noise":
            drawn = torch.rand(targets.shape) < 0.2
            targets[drawn] = torch.randint(size, (int(drawn.sum()),))
        return windows[:, :-1], targets

    objective = two_losses if fault == "gradient_conflict" else token_loss
    for _ in range(steps):
        loss = objective(*(lambda x, y: (model(x), y))(*batch(train, BATCH)))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
    if fault == "exploding_logits":
        model.head.factor = 20.0
    if fault == "miscalibration":
        model.head.factor = 2.0
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 3e-3 * (100.0 if fault == "edge_of_stability" else 1.0 / 3.0)
    x, y = batch(held_out, HELD_OUT)
    diagnosis = diagnose(model, objective, (x, y), optimizer=optimizer, samples=16)
    optimizer.param_groups[0]["lr"] = rate
    return diagnosis


def digits_run(seed: int, steps: int) -> Diagnosis:
    """A sound classifier of digits."""
    torch.manual_seed(seed)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, held_out = order[:1200], order[1200:]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(steps):
        rows = train[torch.randint(len(train), (64,))]
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return diagnose(model, nn.CrossEntropyLoss(), (x[held_out], y[held_out]), optimizer=optimizer)


def characters(quick: bool) -> tuple[Tensor, int]:
    """The text as numbers; a made one in a quick run."""
    if quick:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(30, (4000,), generator=generator), 30
    text = shakespeare()
    known = {sign: number for number, sign in enumerate(sorted(set(text)))}
    return torch.tensor([known[sign] for sign in text]), len(known)


def main() -> None:
    """Plant, look, print and keep the table."""
    options = read_options(__doc__, seeds=(3, 1), sound=(20, 2), steps=(250, 3), calibrate=(False, False))
    text, size = characters(options.quick)
    first = 100 if options.calibrate else 0
    begin = time.perf_counter()
    rows: list[dict[str, Any]] = []

    def look(fault: str | None, network: str, seed: int) -> None:
        if network == "digits":
            diagnosis = digits_run(seed, options.steps)
        else:
            diagnosis = language_run(network, fault, seed, options.steps, text, size)
        numbers = {finding.name: finding.number for finding in diagnosis.findings}
        found = [finding.name for finding in diagnosis.wrong]
        rows.append({"fault": fault, "network": network, "seed": seed, "found": found, "numbers": numbers})
        shown = ", ".join(f"{name} {number:.3g}" for name, number in numbers.items())
        print(
            f"{fault or 'sound':<18} {network:<12} seed {seed}: {', '.join(found) or 'nothing'}   [{shown}]", flush=True
        )

    networks = ("window",) if options.calibrate else ("transformer", "convolution")
    for fault in FAULTS:
        for network in networks:
            for seed in range(options.seeds):
                look(fault, network, first + seed)
    for number in range(options.sound):
        look(None, (*networks, "digits")[number % (len(networks) + 1)], first + 50 + number)

    table = {
        fault or "sound": {
            check: sum(check in row["found"] for row in rows if row["fault"] == fault) for check in CHECKS
        }
        for fault in (*FAULTS, None)
    }
    counts = {fault: sum(row["fault"] == (None if fault == "sound" else fault) for row in rows) for fault in table}
    width = max(map(len, CHECKS))
    print(f"\n{'planted':<{width}}  runs  " + "  ".join(f"{check:>{width}}" for check in CHECKS))
    for fault, found in table.items():
        print(f"{fault:<{width}}  {counts[fault]:>4}  " + "  ".join(f"{found[check]:>{width}}" for check in CHECKS))
    hits = sum(table[fault][fault] for fault in FAULTS)
    alarms = sum(bool(row["found"]) for row in rows if row["fault"] is None)
    planted = sum(counts[fault] for fault in FAULTS)
    print(f"\n{hits} of {planted} planted faults found, {alarms} of {counts['sound']} sound runs alarmed")
    facts = {
        "thresholds": {name: limit.value for name, limit in THRESHOLDS.items()}, "runs": counts, "table": table,
        "hits": hits, "false_alarms": alarms, "seconds": round(time.perf_counter() - begin, 1), "rows": rows,
    }  # fmt: skip
    keep(
        "doctor-thresholds" if options.calibrate else "doctor",
        {"seeds": options.seeds, "steps": options.steps, **facts},
        options,
    )


if __name__ == "__main__":
    main()
