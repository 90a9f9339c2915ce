"""Every figure can be drawn from the committed evidence alone, the same bytes each time."""

from __future__ import annotations

import re
import warnings

import pytest

from steepest.catalogue import find
from steepest.lab import evidence, gallery
from steepest.lab.figures import draw


def drawn(slug: str) -> str:
    system = find(slug)
    record = evidence.read(system)
    assert record is not None
    return draw(gallery.load(system), record.evidence, record.findings)


@pytest.mark.slow
def test_every_figure_can_be_drawn() -> None:
    for system in gallery.experiments():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a mean of no rows is one
            text = drawn(system.slug)
        assert len(re.findall(r"<(path|use)", text)) > 20, system.slug


def test_a_figure_is_the_same_each_time() -> None:
    assert drawn("comp-sum") == drawn("comp-sum")
