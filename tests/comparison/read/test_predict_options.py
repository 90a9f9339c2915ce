"""How a file is read, as its user said, reaches the rows that are predicted: from the winner, or with the command."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from steepest import Preprocessor
from steepest.comparison import Winner

Command = Callable[..., tuple[int, str, str]]
FILE = ("--encoding", "cp437", "--separator", "^", "--header", "yes")
MEANING = ("--missing", "none,-9", "--dayfirst", "--types", "types.txt", "--positive", "ab")
FAST = ("--objectives", "comp_sum", "--no-classical", "--repeats", 1, "--folds", 2, "--trials", 1, "--epochs", 2)

NUMBERS = np.random.default_rng(0).normal(size=60).round(3)
DATES = [f"{1 + i % 12:02d}/{1 + i * 7 % 12:02d}/2024" for i in range(60)]
WORDS = ["größe", "süd", "none", "-9", "NA"] * 12
CODES = [str(i * 5 % 7) for i in range(60)]
Y = np.where(NUMBERS + np.arange(60) % 12 / 6 > 1, "ab", "zu")
NAMES = ["1.5", "2.5", "3.5", "4.5", "5.5"]
"""A header of numbers is taken for a row unless its user says that it is none."""


def test_predicted_rows_are_read_as_the_training_rows_were(command: Command, tmp_path: Path) -> None:
    lines = ["^".join(row) for row in (NAMES, *zip(map(str, NUMBERS), DATES, WORDS, CODES, Y))]
    Path(tmp_path, "data.txt").write_bytes(("\n".join(lines) + "\n").encode("cp437"))
    Path(tmp_path, "types.txt").write_text("4.5: category\n")
    code, _, err = command("compare", "data.txt", *FILE, *MEANING, *FAST, "--workers", 1)
    assert (code, err) == (0, "")
    (folder,) = Path(tmp_path, "steepest-runs").iterdir()
    winner = Winner.load(folder / "winner")
    assert winner.facts["classes"] == ["zu", "ab"]
    said = shlex.split(json.loads((folder / "results.json").read_text())["winner"]["command"])
    assert said[3:] == ["data.txt", *FILE]

    def frame(day_first: bool) -> pd.DataFrame:
        dates = pd.to_datetime(DATES, format="%d/%m/%Y" if day_first else "%m/%d/%Y")
        words = [None if word in ("none", "-9") else word for word in WORDS]
        return pd.DataFrame(dict(zip(NAMES, (NUMBERS, dates, words, CODES))))

    code, out, err = command("predict", "last", "data.txt", *FILE)
    assert (code, err) == (0, "")
    predicted = pd.read_csv(io.StringIO(out))
    pd.testing.assert_frame_equal(predicted, winner.predict(frame(True)), check_dtype=False)
    assert not np.allclose(predicted["p_ab"], winner.predict(frame(False))["p_ab"])
    assert command("predict", "last", "data.txt", *FILE[:2], *FILE[4:])[0] == 2  # no separator: one column
    assert command("predict", "last", "data.txt", *FILE[:4])[1].count("\n") == 1 + 61  # the header is taken for a row
    assert "is not UTF-8" in command("predict", "last", "data.txt", *FILE[2:])[2]


def test_day_first_is_kept_where_no_training_date_needed_it() -> None:
    learnt = pd.DataFrame({"when": ["2024-01-05", "2024-03-20", "2024-07-01", "2024-11-30"] * 5})
    new = pd.DataFrame({"when": ["03/04/2024"] * 20})
    day, month = pd.DataFrame({"when": ["2024-04-03"] * 20}), pd.DataFrame({"when": ["2024-03-04"] * 20})
    for dayfirst, wanted in ((True, day), (False, month), (None, month)):
        fitted = Preprocessor(dayfirst=dayfirst).fit(learnt)
        again = Preprocessor.from_json(json.loads(json.dumps(fitted.to_json())))
        for preprocessor in (fitted, again):
            np.testing.assert_array_equal(preprocessor.transform(new), preprocessor.transform(wanted))
