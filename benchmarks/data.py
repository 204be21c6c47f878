"""Measure how fast a data set of Real-IAD's size is indexed, and how fast pictures are read.

    python benchmarks/data.py --output runs/benchmarks/data.md

The tree is drawn into a temporary folder: empty files for the index, noise with some structure for the pictures. Each
index is built in a process of its own, so that the memory is its own.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from jsonargparse import auto_cli
from side_by_side import machine, publish, table

CATEGORIES, NORMAL, ANOMALOUS = 30, 3324, 1711  # of Real-IAD: 99,720 and 51,330 images in all
RUNS = 5


def draw_index(root: Path, normal: int = NORMAL, anomalous: int = ANOMALOUS) -> int:
    """Make the empty files and the splits of a Real-IAD, so many a category; returns the number of images."""
    for c in range(CATEGORIES):
        name, rows = f"object{c:02d}", []
        for i in range(normal + anomalous):
            good = i < normal
            folder = f"{'OK' if good else 'NG/HS'}/S{i // 5:04d}"
            stem = f"{folder}/{name}_{i // 5:04d}_C{i % 5 + 1}_20231018"
            place = root / "real_iad/realiad_1024" / name / folder
            place.mkdir(parents=True, exist_ok=True)
            files = [f"{stem}.jpg", *([] if good else [f"{stem}_mask.png"])]
            for file in files:
                os.close(os.open(root / "real_iad/realiad_1024" / name / file, os.O_CREAT | os.O_WRONLY))
            rows.append(
                {"category": name, "anomaly_class": "OK" if good else "HS", "image_path": files[0],
                 "mask_path": None if good else files[1]}
            )  # fmt: skip
        split = {
            "meta": {"prefix": "", "normal_class": "OK"},
            "train": rows[: normal // 3],
            "test": rows[normal // 3 :],
        }
        place = root / "real_iad/realiad_jsons"
        place.mkdir(exist_ok=True)
        (place / f"{name}.json").write_text(json.dumps(split))
    return CATEGORIES * (normal + anomalous)


def index_once(name: str, root: str) -> None:
    """Build one index and print seconds and megabytes; runs in a process of its own."""
    from kanoclip.data.sets.mvtec import MVTecAD
    from kanoclip.data.sets.real_iad import RealIAD

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if name == "real_iad":
        samples = RealIAD(root=root).samples()
    else:  # the same tree by patterns alone, as most data sets are read
        patterns = {
            "images": r"(?P<category>[^/]+)/(?P<split>OK|NG/(?P<defect>[^/]+))/(?P<stem>.+)\.jpg",
            "masks": r"(?P<category>[^/]+)/NG/(?P<defect>[^/]+)/(?P<stem>.+)_mask\.png",
        }
        tree = type("Patterns", (MVTecAD,), patterns)(root=f"{root}/real_iad/realiad_1024")
        samples = tree.samples()
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, len(samples)]))


def measure_index(root: Path, cache: Path, name: str) -> tuple[float, float, int]:
    """Return the time (s) and memory (MB) of one index and the number of its samples."""
    done = subprocess.run(
        [sys.executable, __file__, "index", name, str(root)],
        env={**os.environ, "KANOCLIP_CACHE": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, memory, count = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory, count


def draw_pictures(folder: Path, height: int, width: int, suffix: str, count: int = 8) -> list[Path]:
    """Write pictures with some structure, so that their compression is that of photos."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image = cv2.add(image, rng.integers(0, 12, image.shape).astype(np.uint8))
        paths.append(folder / f"{height}x{width}_{i}{suffix}")
        cv2.imwrite(str(paths[-1]), image)
    return paths


def measure_reading(paths: list[Path], size: int) -> float:
    """Return pictures a second, read and brought to the model's size by one process."""
    from kanoclip.data.sets.folder import Folder

    data = Folder(root=str(paths[0].parent), image_size=size, num_workers=0)
    chosen = [sample for sample in data.samples() if Path(sample.image) in set(paths)]
    data._samples = chosen
    dataset, times = data.dataset("predict"), []
    for _ in range(RUNS):
        start = time.perf_counter()
        for i in range(len(dataset)):
            dataset[i]
        times.append(time.perf_counter() - start)
    return len(dataset) / statistics.median(times)


def main(output: Path = Path("runs/benchmarks/data.md"), size: int = 518) -> None:
    """Measure, print and write a table.

    Args:
        output: Markdown file to write.
        size: Side that pictures are resized to, pixels.
    """
    indexes, readings = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw_index(root / "data")
        time.sleep(2.5)  # folders that have just changed are not cached
        for name in ("real_iad", "patterns"):
            first = [measure_index(root / "data", root / f"cache{name}{i}", name) for i in range(RUNS)]
            again = [measure_index(root / "data", root / f"cache{name}{i}", name) for i in range(RUNS)]
            cold, warm = (statistics.median(run[0] for run in runs) for runs in (first, again))
            indexes.append([name, f"{first[0][2]:,}", cold, warm, max(run[1] for run in [*first, *again])])
        for height, width, suffix in (
            (512, 512, ".png"),
            (1024, 1024, ".png"),
            (1024, 1024, ".jpg"),
            (3000, 4000, ".jpg"),
        ):
            place = root / f"{height}{suffix[1:]}"
            place.mkdir()
            rate = measure_reading(draw_pictures(place, height, width, suffix), size)
            readings.append([f"{width} x {height} {suffix[1:].upper()}", rate])
    lines = [machine("numpy", "opencv-python-headless", "pillow"), "", f"Medians of {RUNS} runs.", ""]
    lines += table(["index of Real-IAD's size", "images", "first time, s", "again, s", "memory, MB"], indexes)
    lines += ["", *table([f"reading, to {size} px", "pictures a second, one process"], readings)]
    publish(lines, output)


if __name__ == "__main__":
    if sys.argv[1:2] == ["index"]:
        index_once(*sys.argv[2:])
    else:
        auto_cli(main, as_positional=False)
