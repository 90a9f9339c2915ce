"""The search of the documentation in a real browser, where its pages are opened as files."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pages, built as the documentation is."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    pages = tmp_path / "pages"
    (pages / "systems").mkdir(parents=True)
    for file in (ROOT / "docs").glob("*.js"):
        shutil.copy(file, pages)
    (pages / "index.md").write_text("# Start\n\nNothing of it here.\n", encoding="utf-8")
    (pages / "systems" / "thing.md").write_text("# Thing\n\nA quokka hops.\n", encoding="utf-8")
    with (ROOT / "mkdocs.yml").open("rb") as file:
        config = load_config(file, docs_dir=str(pages), site_dir=str(tmp_path / "site"), nav=None)
    build(config)
    return tmp_path / "site"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("page", ["index.html", "systems/thing.html"])
def test_search_finds_a_word_from_a_file(site: Path, chrome: Any, page: str) -> None:
    chrome.set_window_size(1400, 900)  # narrower, the field is behind a button
    chrome.get((site / page).as_uri())
    field = chrome.find_element("css selector", "[data-md-component=search-query]")
    field.click()
    field.send_keys("quokka")
    for _ in range(100):
        links = chrome.execute_script(
            "return [...document.querySelectorAll('.md-search-result__link')].map((a) => a.href)"
        )
        if links:
            break
        time.sleep(0.1)
    assert [link.partition("?")[0] for link in links] == [(site / "systems" / "thing.html").as_uri()]
