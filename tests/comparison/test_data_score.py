"""``steepest data score``: planted wrong labels are found, rows keep their numbers, intervals are told."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from steepest.cli import run

ROWS, WRONG = 200, 20


def planted(path, seed=0):
    """A table of two classes far apart, a tenth of whose labels are wrong; which rows those are, from 1 on."""
    rng = np.random.default_rng(seed)
    y = np.arange(ROWS) % 2
    x = rng.normal(size=(ROWS, 4))
    x[:, 0] += 3.0 * (2 * y - 1)
    hit = rng.permutation(ROWS)[:WRONG]
    y[hit] = 1 - y[hit]
    lines = [",".join([*(f"{v:.5f}" for v in row), "yes" if label else "no"]) for row, label in zip(x, y)]
    path.write_text("\n".join(["a,b,c,d,sick", *lines]) + "\n")
    return set((hit + 1).tolist())


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The planted rows, the file, what JSON says, the page."""
    folder = tmp_path_factory.mktemp("score")
    wrong = planted(folder / "data.csv")
    words = ["data", "score", str(folder / "data.csv"), "--repeats", "1", "--leave-out", "0.1", "--epochs", "8"]
    out, page = folder / "scores.csv", folder / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        import contextlib
        import io

        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert run([*words, "--metric", "accuracy", "--json", "--top", "20", "--page", str(page)]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    return wrong, rows, json.loads(said.getvalue()), page.read_text()


@pytest.mark.parametrize("score", ["loss", "el2n", "forgetting", "influence"])
def test_planted_labels_are_found(scored, score):
    wrong, rows, _, _ = scored
    ranked = sorted(rows, key=lambda row: (-float(row[score]), -float(row["loss"])))
    precision = np.mean([int(row["row"]) in wrong for row in ranked[:WRONG]])
    assert precision > 0.8  # a tenth by chance


def test_the_file_has_every_row_in_order(scored):
    wrong, rows, said, _ = scored
    assert list(rows[0]) == ["row", "label", "predicted", "loss", "el2n", "forgetting", "influence", "rank"]
    assert [int(row["row"]) for row in rows] == list(range(1, ROWS + 1))
    assert sorted(int(row["rank"]) for row in rows) == list(range(1, ROWS + 1))
    by_rank = sorted(rows, key=lambda row: int(row["rank"]))
    assert [int(row["row"]) for row in by_rank[:20]] == [row["row"] for row in said["rows"]]
    losses = [float(row["loss"]) for row in by_rank]
    assert losses == sorted(losses, reverse=True)
    assert np.mean([row["label"] != row["predicted"] for row in rows if int(row["row"]) in wrong]) > 0.8


def test_leaving_out_is_told_with_its_interval(scored):
    _, _, said, page = scored
    effect = said["effect"]
    assert (effect["metric"], effect["count"], len(effect["everything"])) == ("accuracy", 16, 5)
    for name in ("without", "at_random"):
        gain = effect["gain"][name]
        assert gain["low"] <= gain["mean"] <= gain["high"]
        assert gain["mean"] == pytest.approx(np.mean(effect[name]) - np.mean(effect["everything"]))
    assert effect["gain"]["without"]["mean"] > effect["gain"]["at_random"]["mean"]
    assert "leaving out as many at random" in page
    assert "http" not in page.replace("http-equiv", "")


def test_rows_keep_their_numbers_where_others_are_left_out(tmp_path, capsys):
    path = tmp_path / "data.csv"
    planted(path)
    head, *lines = path.read_text().splitlines()
    lines.insert(0, "1,2,3,4,<b>rare</b>")  # one row of a class too rare for folds
    lines.insert(5, ",,,,")
    path.write_text("\n".join([head, *lines]) + "\n")
    out = tmp_path / "own.csv"
    words = ["--leave-out", "0", "--repeats", "1", "--epochs", "1", "--out", str(out), "--rare", "drop"]
    assert run(["data", "score", str(path), *words]) == 0
    with out.open() as file:
        numbers = [int(row["row"]) for row in csv.DictReader(file)]
    assert numbers == [n for n in range(2, ROWS + 3) if n != 6]
    assert "leaving out" not in capsys.readouterr().out


def test_numbers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2))
    y = 50 + 10 * x[:, 0]
    y[:5] += 200
    lines = [f"{a:.4f},{b:.4f},{c:.4f}" for (a, b), c in zip(x, y)]
    path, out = tmp_path / "n.csv", tmp_path / "s.csv"
    path.write_text("\n".join(["a,b,y", *lines]) + "\n")
    assert run(["data", "score", str(path), "--repeats", "1", "--leave-out", "0", "--out", str(out)]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "label", "predicted", "loss", "influence", "rank"]
    assert {int(row["row"]) for row in rows if int(row["rank"]) <= 5} == {1, 2, 3, 4, 5}
    usual = np.median([abs(float(row["label"]) - float(row["predicted"])) for row in rows[5:]])
    assert usual < 20  # in the units of the data
    capsys.readouterr()
    assert run(["data", "score", str(path), "--score", "el2n"]) == 2
    assert "--score: el2n is for classes; of numbers there are loss and influence" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--target", "c,d"], ["--task", "text"]])
def test_other_tasks_are_refused(tmp_path, capsys, words):
    path = tmp_path / "n.csv"
    path.write_text("\n".join(["a,b,c,d", *(f"{i},{i % 7},{i % 2},{(i // 2) % 2}" for i in range(60))]) + "\n")
    assert run(["data", "score", str(path), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
