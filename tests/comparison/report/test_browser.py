"""The page in a real browser: no error, no sideways scroll, sorting, themes."""

from __future__ import annotations

import base64
import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steepest.comparison.report import write_report

pytestmark = pytest.mark.browser
DOCS = Path(__file__).parents[3] / "docs"
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
    labels = chrome.execute_script(
        "return [...document.querySelectorAll('#recall tbody th')].map((h) => h.textContent)"
    )
    assert labels[0] == EVIL
    assert chrome.execute_script("return document.scripts.length") == 2
    assert (
        chrome.execute_script("return JSON.parse(document.getElementById('results').textContent).data.target") == EVIL
    )
    assert chrome.get_log("browser") == []


LONG = "a" * 90 + " \"b\" 'c' & <i>"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(chrome, make_results, tmp_path, scheme):
    """Whatever is named: long words without a space, quotes, markup."""
    results = make_results(objectives=4, classes=15)
    results["data"] |= {"name": LONG, "target": LONG, "columns": [LONG] * 3, "warnings": [LONG], "decisions": [LONG]}
    results["data"]["classes"][2] = results["recall"]["classes"][2] = results["confusion"]["classes"][2] = LONG
    results |= {"sentence": LONG, "command": LONG, "usage": LONG}
    results["rows"][1] |= {"title": LONG, "source": LONG}
    results["rows"][0]["settings"] = LONG
    show(chrome, write_report(results, tmp_path / "run")[0], 390, scheme)
    chrome.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert chrome.execute_script("return document.documentElement.scrollWidth") == 390
    outside = chrome.execute_script(
        "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, pre, svg')"
        " && e.getBoundingClientRect().right > 390.5).map((e) => e.outerHTML.slice(0, 200))"
    )
    assert outside == []
    assert chrome.execute_script("return document.querySelectorAll('main i:not(.track i), main script').length") == 0
    assert chrome.get_log("browser") == []


def edge(window, table):
    """Mean brightness of the last pixels of the frame of a table, where its first rows end."""
    box = window.execute_script(
        "const { right, top } = document.querySelector(arguments[0]).closest('.scroll').getBoundingClientRect();"
        "return [right, top];",
        table,
    )
    clip = {"x": box[0] - 9, "y": box[1] + 60, "width": 6, "height": 40, "scale": 1}
    shot = window.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("L"), dtype=float)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_wide_table_shows_that_it_scrolls(chrome, make_results, tmp_path, scheme):
    """A shadow lies at the edge behind which more is, and goes at the end."""
    show(chrome, write_report(make_results(objectives=4, classes=3), tmp_path / "run")[0], 390, scheme)
    chrome.execute_script(
        "document.querySelectorAll('.board td').forEach((cell) => { cell.textContent = ''; });"
        "document.querySelectorAll('main > section:not(#leaderboard)').forEach((section) => section.remove())"
    )
    shaded = np.median(edge(chrome, ".board"))
    chrome.execute_script("const box = document.querySelector('.board').closest('.scroll'); box.scrollLeft = 1e6;")
    clear = np.median(edge(chrome, ".board"))
    assert shaded < clear - 8
    frame = chrome.find_element("css selector", "#leaderboard .scroll")
    chrome.execute_script("arguments[0].scrollLeft = 0; arguments[0].focus()", frame)
    assert chrome.switch_to.active_element == frame


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 40])
def test_print_cuts_nothing_off(chrome, make_results, tmp_path, classes):
    """On landscape paper every table is whole, without a bar to scroll by; so is all else on upright paper."""
    results = make_results(objectives=20 if classes > 3 else 8, classes=classes)
    for row in results["rows"] if classes > 3 else []:  # as many metrics as there are, and some
        row["metrics"] |= {f"another {i}": row["metrics"]["ece"] for i in range(10)}
    page = write_report(results, tmp_path / "run")[0]
    show(chrome, page)
    chrome.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    for millimetres, within in ((277, ".broad"), (180, "section:not(.broad)")):
        width = int(millimetres / 25.4 * 96)
        chrome.execute_cdp_cmd(METRICS, {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False})
        wide = chrome.execute_script(
            "return [...document.querySelectorAll(`main ${arguments[0]} *`)].filter((e) => !e.closest('svg') &&"
            " e.getBoundingClientRect().right > arguments[1] + 1).map((e) => e.outerHTML.slice(0, 200))",
            within,
            width,
        )
        assert wide == []
    bars = chrome.execute_script(
        "return [...document.querySelectorAll('main *')].filter((e) => ['auto', 'scroll'].includes("
        "getComputedStyle(e).overflowX)).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert bars == []


@pytest.mark.slow
def test_the_picture_of_a_report_has_its_size(make_results, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    drawn = importlib.import_module("picture")
    page = write_report(make_results(objectives=8, classes=3), tmp_path / "run")[0]
    for name in ("a.png", "b.png"):
        drawn.picture(page, tmp_path / name)
    image = Image.open(tmp_path / "a.png")
    assert image.size == (drawn.WIDTH, drawn.HEIGHT) == Image.open(DOCS / "report.png").size
    assert len(image.convert("RGB").getcolors(100_000)) > 20
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


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
    line = '#curves path[style*="stroke:var(--better)"]'
    stroke = f"return getComputedStyle(document.querySelector('{line}')).stroke"
    before = chrome.execute_script(stroke)
    button.click()
    assert chrome.execute_script(ground) == dark
    assert chrome.execute_script(stroke) != before
    assert chrome.execute_script("return localStorage.getItem('steepest-theme')") == "dark"
    # When a page of a file sees what was stored differs between browsers: here it is stored before the page is read.
    chosen = {"source": "localStorage.setItem('steepest-theme', 'dark')"}
    script = chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", chosen)
    show(chrome, page)
    chrome.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert chrome.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert chrome.execute_script(ground) == dark
    assert chrome.get_log("browser") == []
