"""What the pages of the documentation need to run: their code blocks, and a folder with photos and a fitted model."""

from __future__ import annotations

import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUIET = "--data.num_workers 0 --trainer.enable_progress_bar false"


class Block(NamedTuple):
    """A code block: its language, its title and its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in its order."""
    found = re.findall(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(*one) for one in found]


def commands(text: str) -> list[str]:
    """The lines of a block that call kanoclip, without comments."""
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("kanoclip ")]


def smaller(line: str) -> list[str]:
    """The words of a command, with options that make it small: two drawn images, the backbone that ships."""
    words = shlex.split(line.partition(" > ")[0])[1:]
    verb, said = words[0], " ".join(words)
    if verb == "benchmark":
        return [*words, *(["--dry_run"] if "--dry_run" not in words else [])]
    if verb not in ("fit", "test", "predict", "calibrate"):
        return words
    more = QUIET.split()
    if "surfaces" in said or "quickstart" in said or "my.yaml" in said:
        more += ["--data.images", "2", "--data.category", "gear" if verb == "test" else "ring"]
    if "synthetic" in said:
        more += ["--data.images", "4"]
    if verb == "fit" and "--trainer.max_epochs" not in words:
        more += ["--trainer.max_epochs", "1"]
    real = "--model " in said or (verb == "fit" and "--config" not in said)  # its own backbone is ViT-L
    if real and "--model.backbone " not in said:
        more += ["--model.backbone", "embedded"]
    return [*words, *more]


def run(line: str) -> int:
    """Run a command as a page shows it, small; what stands behind > is the file that gets its output."""
    out = StringIO()
    with redirect_stdout(out):
        code = main(smaller(line))
    if " > " in line:
        Path(line.rpartition(" > ")[2]).write_text(out.getvalue(), encoding="utf-8")
    return code


def photos(folder: Path, count: int, first: int = 0, side: int = 96) -> None:
    """Write drawn gears, intact and damaged in turn, as PNG."""
    data = Surfaces(images=max(2, first + count), category=["gear"])
    folder.mkdir(parents=True, exist_ok=True)
    for i, sample in enumerate(data.index()[first : first + count]):
        Image.fromarray(data.read(sample)[0]).resize((side, side)).save(folder / f"{i:03}.png")


def make_world(root: Path) -> None:
    """Write the photos that the pages speak of, and fit a model on two drawn rings. To be called inside ``root``."""
    for name, count in (("good_parts", 12), ("my_photos", 2), ("good", 2), ("more_good", 2), ("good_photos", 2)):
        photos(root / name, count)
    photos(root / "new_parts", 2, first=2)
    for folder in ("parts", "labelled_photos"):
        for state in ("normal", "abnormal"):
            photos(root / folder / state, 2, first=2 * (state == "abnormal"))
    for name in ("photo.jpg", "part.jpg"):
        Image.open(root / "my_photos/000.png").save(root / name)
    for split, kind in (("train", "ok"), ("test", "ok"), ("test", "scratched")):
        photos(root / f"data/lids/round/{split}/{kind}", 1)
    mask = np.zeros((96, 96), np.uint8)
    mask[20:40, 20:40] = 255
    (root / "data/lids/round/masks").mkdir()
    Image.fromarray(mask).save(root / "data/lids/round/masks/000.png")
    assert run("kanoclip fit --config quickstart") == 0
    visa = root / "runs/fit/kanoclip/visa"
    visa.mkdir()
    (visa / "version_0").symlink_to("../surfaces_auxiliary/version_0")
    (root / "last.ckpt").symlink_to("runs/fit/kanoclip/visa/version_0/checkpoints/last.ckpt")
    assert run("kanoclip calibrate good_parts --max_fpr 0.1 --output threshold.json") == 0


def make_trouble(root: Path) -> None:
    """Write what the mistakes of docs/troubleshooting.md are made with."""
    for state in ("train/good", "test/good", "test/bad"):
        photos(root / "bottles/bottle" / state, 1)
    photos(root / "sick/abnormal", 2)
    photos(root / "sick/masks", 1)
    (root / "sick/masks/000.png").rename(root / "sick/masks/777.png")
    photos(root / "broken", 2)
    (root / "broken/000.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    photos(root / "from_phone", 1)
    (root / "from_phone/IMG_1.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    torch.save({"state_dict": {}, "where": Path("x")}, root / "theirs.ckpt")
    model = "{class_path: kanoclip, init_args: {backbone: embedded}}"
    (root / "mine.yaml").write_text(f"{{auxiliary: surfaces, data: [surfaces], models: [{model}]}}", encoding="utf-8")
    (root / "typo.yaml").write_text(
        "{auxilary: surfaces_auxiliary, data: [surfaces], models: [clip]}", encoding="utf-8"
    )
