"""How long report.html of many images takes to write, to open in Chromium and to sort; and what it adds to a test.

    python benchmarks/report.py --images 5000

Needs chromium, chromedriver and selenium. Writes numbers to the screen alone.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from selenium import webdriver

from kanoclip.outputs.images import COLUMNS
from kanoclip.outputs.names import csv_text
from kanoclip.outputs.report import write_report
from kanoclip.outputs.thumbnails import thumbnail

ABOUT = {"model": "m", "data": "d", "auxiliary": None, "components": {}, "checkpoint": None, "precision": "32-true",
         "results": {}, "seconds_per_image": 0, "images": 0, "zero_shot": None}  # fmt: skip


def synthetic(folder: Path, images: int) -> None:
    """Write what a test of so many images leaves behind."""
    rng = np.random.default_rng(0)
    (folder / "results.json").write_text(json.dumps(ABOUT | {"images": images}))
    rows = []
    for number in range(images):
        path, label, score = f"/data/category {number % 15}/{number:06d}.png", number % 2, float(rng.random())
        rows.append((path, f"category {number % 15}", label, "scratch" * label, score, score, "", "", "", "", ""))
        for heat in (False, True):
            file = folder / "report" / thumbnail(path, heat)
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = cv2.resize(rng.integers(0, 255, (20, 20, 3), np.uint8), (160, 160), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(file), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    (folder / "images.csv").write_text(csv_text([COLUMNS, *rows]))


def timed(what: str, work) -> None:
    """Print what a piece of work takes."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    print(f"{what}: {time.perf_counter() - start:.2f} s, of which this process {time.process_time() - cpu:.2f} s")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic(folder, images)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        timed(f"write a report of {images} images", lambda: write_report(folder, {}))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"page {(folder / 'report.html').stat().st_size / 1e6:.1f} MB, memory grew by {grown / 1e3:.0f} MB")
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for option in ("--headless=new", "--no-sandbox", "--window-size=1300,1000"):
            options.add_argument(option)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        timed("open", lambda: driver.get((folder / "report.html").as_uri()))
        loaded = "return [...document.images].filter(one => one.naturalWidth).length"
        print("thumbnails loaded at once:", driver.execute_script(loaded))
        layout = "document.body.getBoundingClientRect().height"
        for button in ("name", "score", "category"):
            click = f"[...document.querySelectorAll('th button')].find(one => one.textContent === '{button}').click();"
            timed(f"sort by {button}", lambda click=click: driver.execute_script(click + layout))
        filtered = "find('text').value = '00042'; find('text').dispatchEvent(new Event('input'));" + layout
        timed("filter by text", lambda: driver.execute_script(filtered))
        driver.quit()


if __name__ == "__main__":
    main()
