"""The record of a run in a file, a JSON object a line; and records that other libraries wrote of theirs."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.stored import parse_json

FORMAT = 1
LARGEST_STEP = 2**53
"""Up to which a float tells steps apart."""
WORDS = 200
"""Of an error about a file that holds a long text, letters that are said."""
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Journal:
    """Writes what a recorder and a guard tell, a line an event, and keeps the lines of a run that goes on.

    Args:
        path: of the file; its folder is made. A file that is there is written on, so that several parts of one run are
            one record.

    Example:
        >>> journal = Journal(getfixture("tmp_path") / "run.jsonl")
        >>> journal("run_begin", {"id": "a"}), journal("losses", {"steps": [1], "values": [0.5]}), journal.close()
        (None, None, None)
        >>> read_run(journal.path).losses
        ([1], [0.5])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: Any = None
        self._begun = time.time()

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write an event; one that goes on from a step takes later lines back first."""
        if event == "run_resume":
            self._take_back(int(facts["step"]))
        if self._file is None:
            ends = _ends_whole(self.path)
            self._file = self.path.open("a", encoding="utf-8")
            if not ends:
                self._file.write("\n")
        line = {"event": event, "format": FORMAT} if event == "run_begin" else {"event": event}
        seconds = {"at": round(time.time(), 3)}
        self._file.write(json.dumps(_written({**line, **facts, **seconds}), separators=(",", ":")) + "\n")
        self._file.flush()
        if event == "run_end":
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take_back(self, step: int) -> None:
        """Lines of later steps, which a run that was loaded from a checkpoint makes anew."""
        self.close()
        if not self.path.is_file():
            return
        lines: list[str] = []
        for facts in _lines(self.path):
            if facts.get("event") == "losses":
                rows = [(s, v) for s, v in zip(facts["steps"], facts["values"]) if s <= step]
                facts |= {"steps": [s for s, _ in rows], "values": [v for _, v in rows]}
            elif isinstance(facts.get("step"), int) and facts["step"] > step:
                continue
            lines.append(json.dumps(_written(facts), separators=(",", ":")))
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        new.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        os.replace(new, self.path)


def _ends_whole(path: Path) -> bool:
    """Whether the last line is a whole one, or there is none: a killed process may leave half of one."""
    if not path.is_file() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _written(value: Any) -> Any:
    """As JSON takes it: numbers that are none by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return next(name for name, special in _SPECIAL.items() if special == value or value != value)
    if isinstance(value, Mapping):
        return {str(key): _written(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(inner) for inner in value]
    return value


_UNPRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Signs that steer a terminal, or that neither UTF-8 nor XML can hold."""


def _text(text: str) -> str:
    """A text that can be shown, whoever wrote it."""
    return _UNPRINTED.sub("\ufffd", text)


def _read(value: Any) -> Any:
    if isinstance(value, str):
        return _SPECIAL.get(value, _text(value))
    if isinstance(value, dict):
        return {_text(key): _read(inner) for key, inner in value.items()}
    return [_read(inner) for inner in value] if isinstance(value, list) else value


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file; lines that a killed process left unfinished are left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                facts = parse_json(line, path.name)
            except InputError:
                if line.startswith("{") or not line.strip():
                    continue
                facts = None
            if not isinstance(facts, dict) or not isinstance(facts.get("event"), str):
                raise InputError(f"{path.name}, line {number}: expected an event of a recorder, got {line[:60]!r}")
            yield _read(facts)


@dataclass
class RunRecord:
    """What is known of a run.

    Args:
        name: of the run.
        facts: of its beginning: model, parameters, probes.
        losses: steps and values, one for each batch that was told.
        series: steps and values of each number, by ``probe/number``.
        arrays: step, values and axes of each array that was measured, by ``probe/array``.
        notes: alarms, actions and warnings, in order.
        ended: whether the run said that it is over.
        last: when the last event was written, in seconds since 1970.
    """

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    losses: tuple[list[int], list[float]] = field(default_factory=lambda: ([], []))
    series: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    arrays: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    last: float = math.nan

    def add(self, step: int, name: str, value: float) -> None:
        """A number at a step."""
        steps, values = self.series.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)


def read_run(path: str | Path) -> RunRecord:
    """The record of a run: a recorder's, Transformers' ``trainer_state.json`` or Lightning's ``metrics.csv``.

    Args:
        path: the file, or a folder that holds one of them.

    Raises:
        InputError: there is none, or it is something else.
    """
    file = _file_of(Path(path))
    try:
        if file.suffix == ".csv":
            return _of_lightning(file)
        if file.suffix == ".json":
            return _of_transformers(file)
        return _of_recorder(file)
    except InputError:  # names the file and the line
        raise
    except _UNREADABLE as error:
        words = f"no {error}" if isinstance(error, KeyError) else str(error)
        words = words if len(words) <= WORDS else f"{words[:WORDS]} ..."
        raise InputError(f"{file.name}: cannot be read as the record of a run: {words}") from error


_UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, csv.Error,
)  # fmt: skip

NAMES = ("run.jsonl", "trainer_state.json", "metrics.csv")
"""Files in a folder that hold a record, in the order in which they are looked for."""


def _file_of(path: Path) -> Path:
    if path.is_dir():
        inside = [path / name for name in NAMES if (path / name).is_file()]
        below = sorted(path.rglob("*.jsonl"), key=lambda file: file.stat().st_mtime, reverse=True)
        if not inside and not below:
            raise InputError(f"{str(path)!r}: expected one of {', '.join(NAMES)} inside, got none of them")
        return (inside or below)[0]
    if not path.is_file():
        raise InputError(f"no run {str(path)!r}: expected a file that a recorder wrote, or its folder")
    return path


def _of_recorder(file: Path) -> RunRecord:
    record = RunRecord(file.parent.name if file.name == NAMES[0] else file.stem)
    take: dict[str, Callable[[dict[str, Any]], None]] = {
        "run_begin": lambda facts: record.facts.update(facts),
        "losses": lambda facts: _add_losses(record, facts),
        "reading": lambda facts: _add_reading(record, facts),
    }
    for facts in _lines(file):
        event = facts.pop("event")
        record.last = float(facts.get("at", math.nan))
        record.ended = event == "run_end"
        if event in take:
            take[event](facts)
        elif event not in ("run_end", "run_resume"):
            if isinstance(facts.get("step"), int):
                _step(facts["step"])
            record.notes.append({**facts, "kind": event})
    return record


def _add_losses(record: RunRecord, facts: dict[str, Any]) -> None:
    steps, values = list(map(_step, facts["steps"])), list(map(float, facts["values"]))
    if len(steps) != len(values):
        raise ValueError(f"{len(steps)} steps have {len(values)} losses")
    record.losses[0].extend(steps)
    record.losses[1].extend(values)


def _step(value: Any) -> int:
    """The number of a step: one that a float holds, so that it can be drawn."""
    step = int(value)
    if abs(step) > LARGEST_STEP:
        raise ValueError(f"a step is at most {LARGEST_STEP}")
    return step


def _checked(name: str, array: Mapping[str, Any]) -> Mapping[str, Any]:
    """An array of a reading, if it holds numbers in the shape that its axes say."""
    rows: list[Any] = [array["values"]]
    for ticks in array["axes"].values():
        sizes = {len(row) if isinstance(row, list) else None for row in rows}
        if None in sizes or len(sizes) > 1 or (ticks is not None and {len(ticks)} | sizes != {len(ticks)}):
            raise ValueError(f"the array {name!r} has another shape than its axes")
        rows = [inner for row in rows for inner in row]
    if not all(isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST_STEP) for value in rows):
        raise ValueError(f"the array {name!r} holds something else than numbers")
    return array


def _add_reading(record: RunRecord, facts: dict[str, Any]) -> None:
    step, probe = _step(facts["step"]), str(facts["probe"])
    for name, value in facts.get("numbers", {}).items():
        record.add(step, f"{probe}/{name}", float(value))
    for name, array in facts.get("arrays", {}).items():
        record.arrays.setdefault(f"{probe}/{name}", []).append({**_checked(name, array), "step": step})


def _of_transformers(file: Path) -> RunRecord:
    state = _read(parse_json(file.read_bytes(), file.name, finite=False))
    record = RunRecord(file.parent.name, {"by": "transformers", "max_steps": state.get("max_steps")}, ended=True)
    for row in state["log_history"]:
        step = _step(row["step"])
        for name, value in row.items():
            if name in ("step", "epoch") or not isinstance(value, (int, float)):
                continue
            if name == "loss":
                _add_losses(record, {"steps": [step], "values": [value]})
            else:
                record.add(step, name, float(value))
    return record


def _of_lightning(file: Path) -> RunRecord:
    record = RunRecord(file.parent.name, {"by": "lightning"}, ended=True)
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            step = _step(row["step"])
            for name, text in row.items():
                if name in ("step", "epoch", None) or not text:
                    continue
                if name in ("loss", "train_loss", "train_loss_step", "train/loss"):
                    _add_losses(record, {"steps": [step], "values": [float(text)]})
                else:
                    record.add(step, _text(name), float(text))
    return record
