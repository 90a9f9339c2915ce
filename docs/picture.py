"""Take the picture of a report that the README shows: of the last run under steepest-runs, or of the page given."""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

from steepest.comparison.work.store import find_run

WIDTH, HEIGHT = 950, 1110
TARGET = Path(__file__).with_name("report.png")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run"


def picture(page: Path, target: Path) -> None:
    """The top of a page in the light theme, ``WIDTH`` x ``HEIGHT`` pixels in 256 colours, as PNG."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        window = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            window.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
            window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            window.get(page.resolve().as_uri())
            shot = base64.b64decode(window.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
        finally:
            window.quit()
    few = Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(target, format="png", optimize=True)


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else find_run("last", Path("steepest-runs")) / "report.html"
    picture(page, TARGET)
    print(f"{TARGET} shows {page}")
