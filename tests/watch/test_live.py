"""The terminal's view and the page of a run: what they say, that what users typed is escaped, and the command."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from steepest.cli import run as command
from steepest.core.errors import InputError
from steepest.watch import Guard, Recorder, read_run
from steepest.watch.journal import RunRecord
from steepest.watch.live import follow, run_text
from steepest.watch.page import compact, heat_map, run_page, running_median, sentence, thinned, write_page

EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty steps, one of them on a batch that is skipped, named as nobody should."""
    file = tmp_path_factory.mktemp("runs") / "run.jsonl"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer, objective = torch.optim.AdamW(model.parameters(), lr=0.01), nn.CrossEntropyLoss()
    recorder = Recorder(model, objective, optimizer, every=5, sinks=[file], name=EVIL)
    with recorder, Guard(model, optimizer, objective, log=file):
        for step in range(40):
            x, y = torch.randn(8, 4), torch.arange(8) % 3
            loss = objective(model(x), y) * (math.nan if step == 30 else 1.0)
            recorder.observe(loss, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with file.open("a") as stream:
        stream.write(json.dumps({"event": "warning", "step": 33, "text": EVIL}) + "\n")
    return file


def test_the_guard_and_the_recorder_write_one_record(tmp_path):
    file = tmp_path / "run.jsonl"
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, None, optimizer, [], sinks=[file]) as recorder, Guard(model, optimizer, log=file) as guard:
        for step in range(3):
            loss = model(torch.ones(1, 2)).square().mean() * (math.inf if step == 1 else 1.0)
            recorder.observe(loss)
            guard.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    record = read_run(file)
    assert record.losses[0] == [1, 2, 3]
    assert [(note["kind"], note["step"], note["action"]) for note in record.notes] == [("action", 2, "skip")]


def test_the_text_says_what_happened(run):
    text = run_text(read_run(run), width=80)
    assert "loss, running median" in text
    assert "1 loss not finite, first at step 31." in text
    assert "The guard acted: skip 1." in text
    assert "step 31: skip: non_finite" in text
    assert re.search(r"gradient_norms/norm +36 ", text)
    assert all(len(line) <= 80 for line in text.splitlines() if "gradient_norms" in line)


def test_the_page_escapes_and_asks_nothing_of_the_network(run):
    page = run_page(read_run(run))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert page.count("<svg") >= 2 + 12
    for word in ("gradient norms", "unit activity", "Alarms and actions", "non_finite", "by_parameter"):
        assert word in page


def test_signs_that_steer_a_terminal_are_not_shown(tmp_path):
    file = tmp_path / "run.jsonl"
    name = "a\x1b[2Jb\x00\ud800"
    reading = {"event": "reading", "step": 1, "probe": "p", "numbers": {name: 1.0}}
    reading["arrays"] = {name: {"values": [1.0, 2.0], "axes": {"x": [name, "\x9b1m"]}}}
    events = [reading, {"event": "warning", "step": 1, "text": name}]
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    record = read_run(file)
    for shown in (run_text(record), run_page(record)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
        assert "a\ufffd[2Jb\ufffd" in shown
        assert shown.encode()


def test_a_page_of_nothing_and_of_little():
    for record in (
        RunRecord("a"),
        RunRecord("b", losses=([1], [math.nan])),
        RunRecord("c", losses=([3], [2.0]), series={"x": ([3], [math.inf])}),
        RunRecord("d", arrays={"p/plane": [{"step": 1, "values": [[1.0, 2.0]], "axes": {"a": None, "b": [0.0, 0.5]}}]}),
        RunRecord("h", losses=([1, 2], [1e308, -1e308]), series={"x": ([1, 2], [1e308, -1e308])}),
        RunRecord("e", arrays={"p/empty": [{"step": 1, "values": [], "axes": {"a": []}}]}),
        RunRecord(
            "f", arrays={"p/cube": [{"step": 1, "values": [[[1.0]]], "axes": {"a": None, "b": None, "c": None}}]}
        ),
    ):
        assert "</html>" in run_page(record)
        assert run_text(record)


def test_a_large_table_is_drawn_with_some_of_its_rows_and_columns(monkeypatch):
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "steepest.watch.page.heat_map", lambda name, grid, labels, across, *_: sizes.append((len(labels), len(across)))
    )
    values = [[float(i * j) for j in range(400)] for i in range(300)]
    run_page(RunRecord("a", arrays={"p/table": [{"step": 1, "values": values, "axes": {"a": None, "b": None}}]}))
    assert sizes == [(48, 134)] * 2


def test_words_for_numbers():
    assert [compact(v) for v in (0.0, -0.0, 1e-9, 123456.0, math.inf, -math.inf)] == [
        "0", "0", "1e−9", "1.235e5", "∞", "−∞",
    ]  # fmt: skip
    fell = RunRecord("a", losses=(list(range(100)), [2.0] * 50 + [1.0] * 50))
    assert sentence(fell) == "The loss fell from 2 to 1 in 99 steps."
    soon = RunRecord("a", losses=(list(range(100)), [4.0] * 5 + [1.0] * 95))
    assert sentence(soon) == "The loss fell from 4 to 1 in 99 steps."
    assert sentence(RunRecord("a", losses=([1, 2], [1.0, 1.0]))) == "The loss stayed near 1 in 2 steps."
    assert sentence(RunRecord("a")) == "No loss was told yet."


def test_thinned_curves_keep_their_spikes():
    values = [1.0] * 100_000
    values[54_321] = 9.0
    steps, few = thinned(range(100_000), values)
    assert len(steps) <= 1200
    assert max(few) == 9.0
    assert steps[few.index(9.0)] == 54_321
    assert running_median([1.0, 9.0, math.nan, 2.0], 3) == [1.0, 5.0, 5.0, 2.0]


def test_equal_and_wild_numbers_have_shades():
    for grid in ([[1.0, 1.0]], [[1e-9, 1e9], [math.nan, 0.5]], [[-1.0, math.inf]]):
        assert "<svg" in str(heat_map("x", grid, ["a"] * len(grid), ["1", "2"], 320, "h"))


def test_following_ends_with_the_run(run):
    shown: list[str] = []
    record = follow(run, seconds=0.0, draw=shown.append, until=lambda: len(shown) > 2)
    assert not record.ended, "a warning came after its end"
    assert len(shown) == 3
    finished = run.with_name("finished.jsonl")
    finished.write_text(run.read_text().splitlines()[0] + '\n{"event":"run_end"}\n')
    assert follow(finished, draw=shown.append).ended


def test_the_commands(run, tmp_path, capsys):
    def steepest(*words: object) -> tuple[int, str, str]:
        code = command(list(map(str, words)))
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, err = steepest("watch", run, "--page", tmp_path / "page.html")
    assert code == 0, err
    assert "page: " in out
    assert "</html>" in (tmp_path / "page.html").read_text()
    code, _, err = steepest("watch", tmp_path / "nothing.jsonl")
    assert code == 2
    assert err.startswith("steepest: error: no run")
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\nmodel = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6))\n"
        "model[0].bias.data.fill_(-99.0)\ncriterion = torch.nn.CrossEntropyLoss()\n"
        "loader = [(torch.randn(30, 2), torch.arange(30) % 6)]\n"
    )
    code, out, err = steepest("doctor", script, "--strict")
    assert code == 1, err
    assert "!  dead units: 100% of the units of '1'" in out
    script.write_text(
        "import sys\nfrom torch import nn, optim\nfrom torch.utils import data\nassert sys.argv[1:] == []\n"
        "net = nn.Linear(2, 3)\nopt = optim.SGD(net.parameters(), lr=0.1)\nloss_fn = nn.CrossEntropyLoss()\n"
        "train_loader = data.DataLoader(data.TensorDataset(nn.init.eye_(net.weight.new_empty(9, 2)),\n"
        "    net.weight.new_tensor([0, 1, 2] * 3).long()))\n"
    )
    code, out, err = steepest("doctor", script)
    assert code == 0, err
    assert "edge of stability: the largest curvature" in out
    script.write_text("import sys\nsys.exit(0)\n")
    code, _, err = steepest("doctor", script)
    assert code == 2
    assert "expected a script that runs to its end" in err
    script.write_text(
        "import torch\nmodel, criterion = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss()\n"
        "data = [(torch.ones(4, 5), torch.zeros(4).long())]\n"
    )
    code, _, err = steepest("doctor", script)
    assert code == 2
    assert "RuntimeError: mat1 and mat2" in err
    for folder in (tmp_path, "."):
        code, _, err = steepest("watch", run, "--page", folder)
        assert code == 2
        assert "--page: cannot write" in err
        assert "Is a directory" in err
    for wrong, said in ((tmp_path / "x.py", "no script"), ("words", "expected a script"), ("math:pi", "a function")):
        code, _, err = steepest("doctor", wrong)
        assert code == 2
        assert said in err


def test_a_page_that_cannot_be_written_leaves_the_old_one(run, tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_page(read_run(run), tmp_path / "missing" / "page.html")
    with pytest.raises(InputError, match="no run"):
        read_run(tmp_path / "nothing.jsonl")
