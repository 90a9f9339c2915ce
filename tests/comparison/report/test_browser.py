"""The page in a real browser: no error, no sideways scroll, sorting, themes."""

from __future__ import annotations

import time

import pytest

from steepest.comparison.report import write_report

pytestmark = pytest.mark.browser
EVIL = "<script>alert(1)</script>"
METRICS = "Emulation.setDeviceMetricsOverride"


def show(window, path, width=1280, scheme="light"):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    window.execute_cdp_cmd(METRICS, {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False})
    window.get(path.as_uri())


def column(window, table, heading):
    """Values of a column in the order shown, None where missing, and the state of its heading."""
    return window.execute_script(
        """
        const table = document.querySelector(arguments[0]);
        const heads = [...table.tHead.rows[0].cells];
        const at = heads.findIndex((head) => head.textContent === arguments[1]);
        return [[...table.tBodies[0].rows].map((row) => row.cells[at].dataset.value || null),
                heads[at].getAttribute("aria-sort")];
        """,
        table,
        heading,
    )


def click(window, table, heading):
    window.execute_script(
        "[...document.querySelectorAll(arguments[0] + ' thead button')]"
        ".find((button) => button.textContent === arguments[1]).click()",
        table,
        heading,
    )


def test_page_in_a_browser(chrome, make_results, tmp_path):
    page = write_report(make_results(objectives=20, classes=40, evil=True), tmp_path / "run")[0]
    for width in (360, 1280):
        show(chrome, page, width)
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
        shown = chrome.execute_script(
            "return [...document.querySelectorAll('#tiers svg, #cost svg, #answer svg')]"
            ".filter((drawing) => drawing.getClientRects().length).map((drawing) => drawing.classList[1])"
        )
        assert set(shown) == {"narrow" if width == 360 else "wide"}
    sticky = chrome.execute_script(
        "const box = document.querySelector('#leaderboard .scroll'); box.scrollLeft = 400;"
        "return [box.scrollLeft, box.querySelector('tbody th').getBoundingClientRect().left"
        " - box.getBoundingClientRect().left]"
    )
    assert sticky[0] == 400
    assert 0 <= sticky[1] < 3
    labels = chrome.execute_script("return [...document.querySelectorAll('.heat tbody th')].map((h) => h.textContent)")
    assert labels[0] == EVIL
    assert chrome.execute_script("return document.scripts.length") == 2
    assert (
        chrome.execute_script("return JSON.parse(document.getElementById('results').textContent).data.target") == EVIL
    )
    assert chrome.get_log("browser") == []


def test_sorting_both_ways_and_by_keyboard(chrome, make_results, tmp_path):
    page = write_report(make_results(objectives=8, classes=3), tmp_path / "run")[0]
    show(chrome, page)
    for heading, first in (("log loss", "ascending"), ("balanced accuracy", "descending")):
        click(chrome, ".board", heading)
        values, state = column(chrome, ".board", heading)
        assert state == first
        assert [float(v) for v in values] == sorted(map(float, values), reverse=first == "descending")
        click(chrome, ".board", heading)
        values, state = column(chrome, ".board", heading)
        assert state != first
        assert [float(v) for v in values] == sorted(map(float, values), reverse=first == "ascending")
    for _ in range(2):
        click(chrome, ".board", "p, Holm")
        values, _ = column(chrome, ".board", "p, Holm")
        assert values[-2:] == [None, None]
        assert None not in values[:-2]
    assert column(chrome, ".board", "log loss")[1] == "none"
    chrome.find_element("css selector", ".board thead button").send_keys("\ue007")
    names, state = column(chrome, ".board", "name")
    assert (names, state) == (sorted(names), "ascending")
    assert chrome.get_log("browser") == []


def test_theme_follows_the_system_and_the_button(chrome, make_results, tmp_path):
    page = write_report(make_results(objectives=3, classes=3), tmp_path / "run")[0]
    ground = "return getComputedStyle(document.body).backgroundColor"
    show(chrome, page)
    light = chrome.execute_script(ground)
    show(chrome, page, scheme="dark")
    dark = chrome.execute_script(ground)
    assert light != dark
    button = chrome.find_element("id", "theme")
    assert button.text == "Light theme"
    button.click()
    assert chrome.execute_script(ground) == light
    stroke = "return getComputedStyle(document.querySelector('#curves path[style*=better]')).stroke"
    before = chrome.execute_script(stroke)
    button.click()
    assert chrome.execute_script(ground) == dark
    assert chrome.execute_script(stroke) != before
    assert chrome.execute_script("return localStorage.getItem('steepest-theme')") == "dark"
    for _ in range(20):  # the browser hands what was stored to a new page with some delay
        chrome.refresh()
        if (kept := chrome.execute_script("return document.documentElement.dataset.theme")) == "dark":
            break
        time.sleep(0.2)
    assert kept == "dark"
    assert chrome.get_log("browser") == []
