"""Files of the kinds that users of other libraries reported are read as people read them, or something is said."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steepest.comparison.errors import InputError
from steepest.comparison.read import Table, load_table

X = [round(1.25 + 0.75 * i, 2) for i in range(40)]
K = [10 + 7 * i % 83 for i in range(40)]
Y = ["ab"[i % 3 == 0] for i in range(40)]


def read(folder: Path, head: str, cells: Iterable[Iterable[object]], separator: str = ",", **options: Any) -> Table:
    """The table of a file with a header and rows."""
    encoding, end = options.pop("written", "utf-8"), options.pop("end", "\n")
    lines = [*([head] if head else []), *(separator.join(map(str, row)) for row in cells)]
    path = folder / "data.csv"
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return load_table(path, **options)


def said(table: Table) -> str:
    return "\n".join((*table.decisions, *table.warnings))


def decimal(value: float) -> str:
    return str(value).replace(".", ",")


def thousands(value: float) -> str:
    return f"{value * 1000:,.2f}"


NUMBERS = {
    "N/A in one cell of twenty": (lambda i, x: "N/A" if i % 20 == 0 else x, ",", {}, "'N/A' (2 cells)"),
    "NULL in a third": (lambda i, x: "NULL" if i % 3 == 0 else x, ",", {}, "'NULL' (14 cells)"),
    "a word nobody knows": (lambda i, x: "broken" if i == 7 else x, ",", {}, "'broken' (1 cell)"),
    "thousands in quotes": (lambda i, x: f'"{thousands(x)}"', ",", {"scale": 1000}, "thousands set apart"),
    "thousands without decimals": (lambda i, x: f'"{int(x * 1000):,}"', ",", {"scale": 1000}, "thousands set apart"),
    "thousands set apart by blanks": (
        lambda i, x: f"{x * 1000:,.2f}".replace(",", "\u202f"),
        ",",
        {"scale": 1000},
        "thousands set apart",
    ),
    "dollars": (lambda i, x: f"${x}", ",", {}, "currency signs"),
    "euros behind": (lambda i, x: f"{x} €", ",", {}, "currency signs"),
    "a minus before dollars": (lambda i, x: f"-${x}", ",", {"scale": -1}, "currency signs"),
    "brackets for minus": (lambda i, x: f"({x})", ",", {"scale": -1}, "brackets for minus"),
    "per cent": (lambda i, x: f"{x}%", ",", {}, "per cent signs"),
    "decimal commas between tabs": (lambda i, x: decimal(x), "\t", {}, "decimal commas"),
    "decimal commas between semicolons": (lambda i, x: decimal(x), ";", {}, "decimal commas"),
    "decimal commas in quotes": (lambda i, x: f'"{decimal(x)}"', ",", {}, "decimal commas"),
    "1.234,56 between semicolons": (
        lambda i, x: thousands(x).replace(",", "_").replace(".", ",").replace("_", "."),
        ";",
        {"scale": 1000},
        "thousands set apart, decimal commas",
    ),
    "a true minus sign": (lambda i, x: f"\u2212{x}", ",", {"scale": -1}, "numeric"),
}


@pytest.mark.parametrize("way", NUMBERS)
def test_a_column_nearly_all_numbers_is_numeric_however_written(tmp_path: Path, way: str) -> None:
    write, separator, more, told = NUMBERS[way]
    table = read(tmp_path, separator.join("xky"), ((write(i, X[i]), K[i], Y[i]) for i in range(40)), separator)
    expected = np.array(X) * more.get("scale", 1)
    found = table.frame["x"].to_numpy()
    assert found.dtype == np.float64
    known = ~np.isnan(found)
    assert known.sum() >= 26
    assert np.array_equal(found[known], expected[known])
    assert told in said(table)


@pytest.mark.parametrize(
    "word", ["N/A", "n/a", "#N/A", "null", "NULL", "None", "<NA>", "-", ".", "?", "NA", "NaN", "nan"]
)
def test_words_for_missing_are_no_words_of_a_column_of_numbers(tmp_path: Path, word: str) -> None:
    incomes = [20_000 + 137 * i for i in range(100)]
    cells = [(word if i == 50 else income, K[i % 40], Y[i % 40]) for i, income in enumerate(incomes)]
    table = read(tmp_path, "income,k,y", cells)
    assert np.isnan(table.frame["income"][50])
    assert table.frame["income"].drop(50).tolist() == [*incomes[:50], *incomes[51:]]


def test_words_for_missing_are_words_among_words(tmp_path: Path) -> None:
    cells = [(x, ["-", "None", "low"][i % 3], y) for i, (x, y) in enumerate(zip(X, Y))]
    assert set(read(tmp_path, "x,level,y", cells).frame["level"]) == {"-", "None", "low"}
    held = read(tmp_path, "x,level,y", cells, missing="None,-").frame["level"]
    assert held.isna().sum() == 27


def test_a_class_called_na_can_be_kept(tmp_path: Path) -> None:
    cells = [(x, k, ["NA", "DE", "CH"][i % 3]) for i, (x, k) in enumerate(zip(X, K))]
    with pytest.raises(InputError, match="or keep 'NA' as a class with --missing"):
        read(tmp_path, "x,k,country", cells)
    assert read(tmp_path, "x,k,country", cells, missing="").classes == ("CH", "DE", "NA")


IDS = [str(1234567890123456700 + i % 8) for i in range(40)]


def test_ids_beyond_the_integers_of_float64_stay_apart(tmp_path: Path) -> None:
    cells = list(zip(X, IDS, Y))
    assert read(tmp_path, "x,id,y", cells, group="id").groups.tolist() == [i % 8 for i in range(40)]
    assert read(tmp_path, "x,id,y", cells, time="id").times.tolist() == [i % 8 for i in range(40)]
    longer = [(x, f"{i}{y}", c) for i, (x, y, c) in enumerate(zip(X, IDS, Y))]
    assert read(tmp_path, "x,id,y", longer, time="id").times.tolist() == list(range(40))


def test_ids_beyond_the_integers_of_float64_are_classes_of_their_own(tmp_path: Path) -> None:
    table = read(tmp_path, "x,k,id", zip(X, K, IDS), task="classification")
    assert table.classes == tuple(sorted(set(IDS)))
    assert [table.classes[code] for code in table.target] == IDS


HEADERS = {
    "region,2019,2020": ("region", "2019"),
    "2019,2020,sales": ("2019", "2020"),
    "0,1,2": ("0", "1"),
    ",x,y": ("Unnamed: 0", "x"),
    "x,2,y": ("x", "2"),
}


@pytest.mark.parametrize("head", HEADERS)
def test_headers_of_numbers_or_years_are_headers(tmp_path: Path, head: str) -> None:
    first = "abc"
    words = head.startswith("region")
    cells = [(first[i % 3] if words else X[i] + 0.001, K[i] + 0.5, X[i] * 2 + K[i]) for i in range(40)]
    table = read(tmp_path, head, cells)
    assert len(table.target) == 40
    assert tuple(table.frame.columns) == HEADERS[head]


def test_a_year_above_numbers_of_another_form_is_a_header(tmp_path: Path) -> None:
    cells = [("xz"[i % 2], f"{2000 + 7 * i:.1e}", "uv"[i % 2]) for i in range(40)]
    table = read(tmp_path, "word,2011,y", cells)
    assert (len(table.target), list(table.frame.columns)) == (40, ["word", "2011"])


@pytest.mark.parametrize("first", ["1.5,2,3", "7,7,7", "12,30,4", "x,2.5,y"])
def test_a_first_row_of_numbers_is_a_row(tmp_path: Path, first: str) -> None:
    words = first.startswith("x")
    cells = [("xz"[i % 2], K[i], "yw"[i % 2]) if words else (X[i], K[i], K[-i]) for i in range(40)]
    assert len(read(tmp_path, first, cells).target) == 41


def test_the_index_that_to_csv_writes_is_dropped_as_a_counter(tmp_path: Path) -> None:
    table = read(tmp_path, ",x,k,y", ((i, *row) for i, row in enumerate(zip(X, K, Y))))
    assert list(table.frame) == ["x", "k"]
    assert "dropped 'Unnamed: 0': it counts the rows" in table.decisions
    mixed = read(tmp_path, ",x,k,y", ((i * 7 % 41 + 3, *row) for i, row in enumerate(zip(X, K, Y))))
    assert list(mixed.frame) == ["x", "k"]
    assert any("is an index" in line for line in mixed.decisions)


SHAPES = {
    "comments": ("# made by a machine\n# on a day\nx,k,y", ",", "2 lines of comment"),
    "sep=;": ("sep=;\nx;k;y", ";", "sep=; names the separator"),
    "blank lines above": ("\n\nx,k,y", ",", "commas"),
    "pipes": ("x|k|y", "|", "pipes"),
    "tabs": ("x\tk\ty", "\t", "tabs"),
    "semicolons": ("x;k;y", ";", "semicolons"),
    "blanks": ("x  k   y", "   ", "blanks"),
    "a header behind a hash": ("#x,k,y", ",", "header"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_stands_around_the_table_is_no_part_of_it(tmp_path: Path, shape: str, end: str) -> None:
    head, separator, told = SHAPES[shape]
    table = read(tmp_path, head.replace("\n", end), zip(X, K, Y), separator, end=end)
    assert list(table.frame) == ["x", "k"]
    assert table.frame["x"].tolist() == X
    assert table.frame["k"].tolist() == K
    assert told in said(table)


def test_quotes_behind_backslashes_do_not_end_a_cell(tmp_path: Path) -> None:
    table = read(tmp_path, "x,t,y", ((x, f'"say \\"hi\\", ok {k % 3}"', y) for x, k, y in zip(X, K, Y)))
    assert set(table.frame["t"]) == {f'say "hi", ok {i}' for i in range(3)}


@pytest.mark.parametrize(
    ("written", "name"),
    [("cp1252", "x €"), ("latin-1", "größe"), ("utf-8-sig", "x €"), ("utf-16", "x €"), ("utf-16-le", "größe")],
)
def test_encodings_are_found(tmp_path: Path, written: str, name: str) -> None:
    table = read(tmp_path, f"{name},k,y", zip(X, K, Y), written=written)
    assert list(table.frame) == [name, "k"]
    assert table.frame[name].tolist() == X
    assert any("cp1252" in line for line in table.warnings) == (written in ("cp1252", "latin-1"))


AMBIGUOUS = [f"{1 + i % 12:02d}/{1 + i // 12:02d}/2024" for i in range(40)]


def test_days_and_months_that_could_be_swapped_are_warned_of_with_both_readings(tmp_path: Path) -> None:
    cells = list(zip(X, AMBIGUOUS, Y))
    table = read(tmp_path, "x,t,y", cells, time="t")
    both = "'02/01/2024' is 2024-02-01 with the month first and 2024-01-02 with the day first"
    assert any(both in line and "--dayfirst" in line for line in table.warnings)
    assert table.times.tolist() == [4 * (i % 12) + i // 12 - max(0, i % 12 - 4) for i in range(40)]
    day = read(tmp_path, "x,t,y", cells, time="t", dayfirst=True)
    assert day.times.tolist() == list(range(40))
    assert not any("first" in line for line in day.warnings)
    feature = read(tmp_path, "x,t,y", cells)
    assert feature.types["t"].kind == "date"
    assert any(both in line for line in feature.warnings)


def test_one_day_beyond_the_twelfth_decides_for_its_column(tmp_path: Path) -> None:
    dates = [*AMBIGUOUS[:39], "31/03/2024"]
    table = read(tmp_path, "x,t,y", zip(X, dates, Y))
    assert table.frame["t"][1] == np.datetime64("2024-01-02")
    assert not any("month" in line for line in table.warnings)


def test_times_with_and_without_fractions_are_one_column(tmp_path: Path) -> None:
    times = [f"2024-01-01 10:00:{i:02d}{'.5' if i % 2 else ''}" for i in range(40)]
    assert read(tmp_path, "x,t,y", zip(X, times, Y), time="t").times.tolist() == list(range(40))


def test_two_distinct_numbers_are_classes_and_the_task_may_be_named(tmp_path: Path) -> None:
    halves = [[0.1, 0.9][i % 2] for i in range(40)]
    table = read(tmp_path, "x,k,y", zip(X, K, halves))
    assert (table.task, table.classes) == ("binary", ("0.1", "0.9"))
    assert read(tmp_path, "x,k,y", zip(X, K, halves), task="regression").target.tolist() == halves
    assert read(tmp_path, "x,k,y", ((X[i], K[i], 1 + i % 5) for i in range(40))).task == "multiclass"


def test_the_positive_class_is_named_and_can_be_chosen(tmp_path: Path) -> None:
    cells = [(x, k, ["<=50K", ">50K"][i % 2]) for i, (x, k) in enumerate(zip(X, K))]
    table = read(tmp_path, "x,k,pay", cells)
    assert table.classes == ("<=50K", ">50K")
    assert "positive class: '>50K' (the later in order; --positive names the other)" in table.decisions
    other = read(tmp_path, "x,k,pay", cells, positive="<=50K")
    assert other.classes == (">50K", "<=50K")
    assert np.array_equal(other.target, 1 - table.target)
    with pytest.raises(InputError, match="positive: the target 'pay' has no class '<50K'"):
        read(tmp_path, "x,k,pay", cells, positive="<50K")


def test_a_class_that_lives_in_one_group_is_warned_of(tmp_path: Path) -> None:
    groups = ["only" if y == "b" else f"g{i % 4}" for i, y in enumerate(Y)]
    table = read(tmp_path, "x,g,y", zip(X, groups, Y), group="g")
    assert "the class 'b' lives in one group 'only': no fold can both learn and test it" in table.warnings
