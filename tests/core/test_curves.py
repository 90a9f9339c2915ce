"""Curves as text: which signs stand where; figures of each kind."""

from __future__ import annotations

import math

import pytest

from steepest.core.curves import check_figure, plot_lines, write_figure
from steepest.core.errors import InputError


def dots(lines, margin):
    """Places of dots, counted from the upper left."""
    places = set()
    for row, line in enumerate(lines):
        for column, sign in enumerate(line[margin:]):
            bits = ord(sign) - 0x2800
            for bit, (r, c) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]):
                if bits >> bit & 1:
                    places.add((4 * row + r, 2 * column + c))
    return places


def test_a_straight_line_is_a_diagonal():
    lines = plot_lines(range(8), range(8), width=4, height=2)
    assert [line[:2] for line in lines] == ["7 ", "0 ", "  "]
    assert lines[2] == "  0  7"
    assert dots(lines[:2], 2) == {(7 - k, k) for k in range(8)}


def test_a_logarithmic_axis_and_a_constant():
    assert dots(plot_lines([1, 10, 100], [0, 1, 2], width=4, height=2, log_x=True)[:2], 2) >= {(7, 0), (0, 7)}
    middle = dots(plot_lines([1, 10, 100], [0, 1, 0], width=4, height=2, log_x=True)[:2], 2)
    assert {column for row, column in middle if row == 0} <= {3, 4}
    assert {row for row, _ in dots(plot_lines([0, 1], [5, 5], width=4, height=1)[:1], 2)} == {3}
    assert plot_lines([0], [5], width=4, height=1)[0].startswith("5 ")


def test_what_is_no_number_is_left_out():
    whole, holed = [0.0, 1.0, 2.0, 3.0], [0.0, math.nan, math.inf, 3.0]
    assert plot_lines(whole, holed, width=4) == plot_lines([0.0, 3.0], [0.0, 3.0], width=4)
    assert plot_lines([1.0], [math.nan]) == ["(nothing to draw)"]


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_figure_is_of_the_kind_of_its_ending(tmp_path, ending, begins):
    path = tmp_path / f"a.{ending}"
    check_figure(path)
    write_figure(path, {"a": ([1, 10], [0, 1])}, x_label="x", y_label="y", log_x=True, marks={"here": 3.0})
    assert path.read_bytes().startswith(begins)


def test_files_that_cannot_be():
    for path, match in (("a.txt", "ends in .svg, .png, .pdf"), ("no/where.svg", "there is no folder 'no'")):
        with pytest.raises(InputError, match=match):
            check_figure(path)
    with pytest.raises(InputError, match="cannot write"):
        write_figure("no/where.svg", {"a": ([0], [0])}, x_label="x", y_label="y")
