"""Take pictures of pages: of the last comparison under steepest-runs, which the README shows, or of the page given.

python docs/picture.py [PAGE TARGET WIDTH HEIGHT]
"""

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


def picture(page: Path, target: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """The top of a page in the light theme, in 256 colours, as PNG."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        window = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            window.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
            window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            window.get(page.resolve().as_uri())
            shot = base64.b64decode(window.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
        finally:
            window.quit()
    few = Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(target, format="png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        page, target, size = Path(sys.argv[1]), Path(sys.argv[2]), list(map(int, sys.argv[3:5]))
    else:
        page, target, size = find_run("last", Path("steepest-runs")) / "report.html", TARGET, [WIDTH, HEIGHT]
    picture(page, target, *size)
    print(f"{target} shows {page}")
