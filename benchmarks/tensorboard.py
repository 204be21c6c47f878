"""Looks at a folder of runs with TensorBoard in a browser: each tab has what the log should have, and takes a picture.

    kanoclip fit --data surfaces_auxiliary --model.backbone embedded --data.holdout 0.25
    kanoclip test --data surfaces
    python benchmarks/tensorboard.py runs docs/tensorboard.png

Needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

PORT = 6931
TEXT = """const all = node => [...node.querySelectorAll('*')].map(one => (one.shadowRoot ? all(one.shadowRoot) : '')
    + [...one.childNodes].filter(part => part.nodeType === 3).map(part => part.data.trim()).join(' ')).join(' ');
    return all(document)"""
TABS = {
    "scalars": ("gradient_norm", "lr", "test_", "train", "val"),
    "histograms": ("image_score_normal", "map_anomalous"),
    "text": ("config", "results"),
    "pr_curves": ("_image/", "_pixel/"),
    "hparams": ("adapter", "ConvAdapter"),
    "images": ("examples/training/0",),
    "timeseries": ("gradient_norm", "/surfaces_auxiliary/version_0"),
}
"""What each tab has to show; the picture is of the last one."""


def main(runs: str, picture: str) -> None:
    """Look at each tab, raise if something is missing, and write the picture."""
    command = ["tensorboard", "--logdir", runs, "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        wait(PORT)
        for tab, words in TABS.items():
            print(f"{tab}: {', '.join(look(driver, tab, words))}")
        shown = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
        shown.quantize(128).save(picture, optimize=True)
        print(f"{picture}: {Path(picture).stat().st_size / 1000:.0f} kB")
    finally:
        driver.quit()
        server.terminate()


def wait(port: int, seconds: float = 60) -> None:
    """Wait until somebody answers at a port."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("localhost", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def look(driver: Any, tab: str, words: tuple[str, ...], seconds: float = 60) -> tuple[str, ...]:
    """Open a tab and wait until it shows all words; returns them."""
    end = time.monotonic() + seconds
    tags = "train|gradient|auroc" if tab == "timeseries" else ""
    while True:
        driver.get("about:blank")  # or another tab of the same page would keep its state
        driver.get(f"http://localhost:{PORT}/?tagFilter={tags}#{tab}")
        time.sleep(8)
        shown = driver.execute_script(TEXT)
        missing = [word for word in words if word not in shown]
        if not missing:
            return words
        if time.monotonic() > end:
            raise SystemExit(f"The tab {tab} does not show {', '.join(missing)}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
