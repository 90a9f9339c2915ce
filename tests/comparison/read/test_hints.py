"""Hints at --group and --time, and features that give one of several targets away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from steepest.comparison.read import load_table, table_from_arrays, table_from_frame
from steepest.comparison.read.builtin import BUILTIN

ROWS = 120
RNG = np.random.default_rng(0)
X = pd.DataFrame(RNG.normal(size=(ROWS, 2)), columns=["u", "v"])
Y = np.where(X["u"] + RNG.normal(size=ROWS) > 0, "yes", "no")


def hints(frame: pd.DataFrame, **options: Any) -> list[str]:
    """Warnings that name an option."""
    return [line for line in table_from_arrays(frame, Y, **options).warnings if " --" in line]


THREES = np.arange(ROWS) // 3


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("patient", THREES),
        ("PatientID", THREES + 10**9),
        ("user_id", RNG.permutation(THREES).astype(float)),
        ("subject", np.array([f"s{i}" for i in THREES])),
        ("sessionid", pd.Categorical(THREES.astype(str))),
        ("Customer No", THREES),
        ("id", [f"{i}.5x" for i in THREES]),
    ],
)
def test_ids_that_repeat_are_a_hint_at_group(name: str, values: Any) -> None:
    frame = X.assign(**{name: values})
    quoted = f"'{name}'" if " " in name else name
    said = (
        f"'{name}' has 40 values in 120 rows: if the rows of one belong together, --group {quoted} keeps them on one "
        "side of every split"
    )
    assert hints(frame) == hints(frame, drop=[name]) == [said]
    assert hints(frame, group=name) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("patient", np.arange(ROWS)),  # a row each
        ("user_id", np.arange(ROWS) % 6),  # an ordinary category
        ("customer_age", THREES),
        ("session_type", THREES),
        ("userdata", THREES),
        ("grid", THREES),
        ("zip", THREES),
        ("subject", np.round(THREES * 0.37, 2)),  # a measurement
        ("id", np.r_[np.arange(100), np.arange(20)]),  # nearly all differ
    ],
)
def test_other_columns_are_none(name: str, values: Any) -> None:
    assert hints(X.assign(**{name: values})) == []


def test_of_nested_ids_the_coarsest_is_named() -> None:
    frame = X.assign(session_id=np.arange(ROWS) // 2, patient=np.arange(ROWS) // 8)
    (line,) = hints(frame)
    assert line.startswith("'patient' has 15 values in 120 rows:")


def test_dates_are_a_hint_at_time() -> None:
    days = pd.date_range("2020-01-05", periods=ROWS, freq="D")
    frame = X.assign(**{"date of birth": RNG.permutation(days), "seen on": days, "left": days + pd.Timedelta(days=1)})
    assert hints(frame) == [
        "'seen on' holds dates (2020-01-05 to 2020-05-03): if later rows are to be predicted from earlier ones, "
        "--time 'seen on' makes the folds go forward in time"
    ]
    assert hints(frame, time="seen on") == hints(frame[["u", "date of birth"]]) == []


def test_a_feature_that_gives_one_label_away_is_warned_of() -> None:
    labels = pd.DataFrame({f"l{i}": RNG.integers(0, 2, ROWS) for i in range(3)})
    labels["rare"] = (np.arange(ROWS) % 15 == 0).astype(int)
    frame = X.assign(
        of_l1=np.where(labels["l1"] == 1, 5.0, 2.0) + RNG.normal(0, 0.1, ROWS),
        of_l2=np.where(labels["l2"] == 1, "sick", "well"),
        of_rare=np.where(labels["rare"] == 1, 3.0, np.nan),
        when=pd.Timestamp("2020-01-01") + pd.to_timedelta(RNG.permutation(ROWS), unit="D"),
        none=np.nan,
    )
    table = table_from_frame(pd.concat([frame, labels], axis=1), list(labels))
    leaks = [line for line in table.warnings if line.startswith("likely leak")]
    assert [line.partition(" (AUROC")[0] for line in leaks] == [
        "likely leak: 'of_l1' alone predicts the label 'l1'",
        "likely leak: 'of_l2' alone predicts the label 'l2'",
        "likely leak: 'of_rare' alone predicts the label 'rare'",
    ]


def test_a_label_that_is_rare_in_many_rows_is_looked_at_too() -> None:
    rows = 6000
    rare = np.isin(np.arange(rows), RNG.choice(rows, 12, replace=False)).astype(int)
    frame = pd.DataFrame({"x": RNG.normal(size=rows), "after": rare * 2.0 + RNG.normal(0, 0.1, rows)})
    frame = frame.assign(a=RNG.integers(0, 2, rows), b=rare)
    leaks = [line for line in table_from_frame(frame, ["a", "b"]).warnings if line.startswith("likely leak")]
    assert [line.partition(" (AUROC")[0] for line in leaks] == ["likely leak: 'after' alone predicts the label 'b'"]


def test_a_feature_that_gives_one_target_of_a_mix_away_is_warned_of() -> None:
    frame = X.assign(
        of_kind=np.repeat([1.0, 2.0, 3.0], 40) + RNG.normal(0, 0.01, ROWS),
        kind=np.repeat(["a", "b", "c"], 40), price=RNG.normal(size=ROWS),
    )  # fmt: skip
    frame["of_price"] = 2 * frame["price"] + 1
    table = table_from_frame(frame, ["kind", "price"])
    leaks = [line.partition(" (")[0] for line in table.warnings if line.startswith("likely leak")]
    assert leaks == [
        "likely leak: 'of_kind' alone predicts the target 'kind'",
        "likely leak: 'of_price' alone predicts the target 'price'",
    ]


def test_label_sets_without_a_leak_have_no_warning_of_one() -> None:
    x = RNG.normal(size=(400, 6))
    labels = (x[:, :3] + 0.6 * RNG.normal(size=(400, 3)) > 0).astype(int)
    frame = pd.DataFrame(x).add_prefix("x").assign(a=labels[:, 0], b=labels[:, 1], c=labels[:, 2])
    assert table_from_frame(frame, ["a", "b", "c"]).warnings == ()


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_the_built_in_tables_give_no_hint(name: str) -> None:
    assert not [line for line in load_table(name).warnings if " --" in line]
