"""Makes two pictures of the documentation: drawn surfaces with what a fit marks, and the page of the demo.

    kanoclip fit --config quickstart
    kanoclip calibrate --data surfaces --max_fpr 0.1 --output threshold.json
    python benchmarks/pictures.py runs/fit/.../checkpoints/last.ckpt threshold.json docs

Needs chromium, chromedriver, selenium and gradio.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from kanoclip import Inspector
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesDefects

SIDE, GAP, TEXT = 236, 8, 44  # pixels
MARKED = (("gear", "bubble"), ("leather", "dent"), ("grid", "burn"), ("pill", "bubble"), ("marble", "thread"),
          ("gear", "good"))  # fmt: skip
DROPPED = (("carpet", "crack"), ("carpet", "good"), ("gear", "good"), ("gear", "hole"), ("leather", "good"),
           ("leather", "scratch"), ("pill", "crack"), ("pill", "good"))  # fmt: skip
PORT = 7871


def drawn(data: Surfaces, category: str, defect: str) -> Image.Image:
    """Draw the most colourful test image of a category with a defect; what is found in it has no say."""
    images = [data.read(one)[0] for one in data.part("test") if (one.category, one.defect) == (category, defect)]
    return Image.fromarray(max(images, key=lambda image: np.ptp(image, axis=2).mean()))


def surfaces(checkpoint: str, threshold: str, picture: Path) -> None:
    """Write photos, and below each what is marked, with the decision."""
    inspector, data = Inspector(checkpoint, threshold=threshold), SurfacesDefects()
    sheet = Image.new("RGB", (len(MARKED) * (SIDE + GAP) - GAP, 2 * (SIDE + GAP) + TEXT - GAP), "white")
    write = ImageDraw.Draw(sheet)
    for column, (category, defect) in enumerate(MARKED):
        photo = drawn(data, category, defect).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        found = inspector(photo, category=category)
        left = column * (SIDE + GAP)
        sheet.paste(photo, (left, 0))
        sheet.paste(Image.fromarray(found.overlay()), (left, SIDE + GAP))
        said = f"{category}, {defect.replace('good', 'intact')}\nscore {found.score:.2f}: {found.decision}"
        write.text((left + 2, 2 * SIDE + GAP + 4), said, "black", ImageFont.load_default(15))
        print(said.replace("\n", ", "))
    sheet.save(picture, quality=88, optimize=True)


def demo(checkpoint: str, threshold: str, picture: Path) -> None:
    """Write the page of the demo, with eight photos dropped in and one of them looked at."""
    command = [sys.executable, "-m", "kanoclip", "demo", "--ckpt_path", checkpoint, "--threshold", threshold]
    server = subprocess.Popen([*command, "--port", str(PORT)], stdout=subprocess.PIPE, text=True)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", "window-size=1400,1200"):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        assert server.stdout
        server.stdout.readline()  # its address, once it is served
        driver.get(f"http://127.0.0.1:{PORT}")
        wait = WebDriverWait(driver, 120)
        with tempfile.TemporaryDirectory() as folder:
            for one in DROPPED:
                photo = drawn(Surfaces(), *one).resize((512, 512), Image.Resampling.BICUBIC)
                photo.save(f"{folder}/{'_'.join(one)}.png")
            dropped = wait.until(lambda _: driver.find_elements("css selector", "input[type=file]"))[0]
            dropped.send_keys("\n".join(map(str, sorted(Path(folder).iterdir()))))
            cells = wait.until(lambda _: driver.find_elements("css selector", ".photos [role=gridcell]"))
        next(cell for cell in cells if "scratch" in cell.text).click()
        time.sleep(5)  # the picture is drawn
        shown = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
        used = np.flatnonzero(np.ptp(np.asarray(shown), axis=(1, 2)))  # rows that are not blank
        shown.crop((0, 0, shown.width, min(used[-1] + 8, shown.height))).quantize(256, kmeans=2).save(picture)
    finally:
        driver.quit()
        server.terminate()


if __name__ == "__main__":
    surfaces(sys.argv[1], sys.argv[2], Path(sys.argv[3]) / "overlay.jpg")
    demo(sys.argv[1], sys.argv[2], Path(sys.argv[3]) / "demo.png")
