"""Show that a large prediction goes on: killed again and again, and shared by several commands, it ends the same.

    python benchmarks/resume.py --output runs/benchmarks/resume.md

``count`` links to 50 small drawn images are predicted with local_stats, rows alone: in one go, killed three times
(SIGKILL), and by four shards of which each is killed once. The csv files must be equal byte for
byte. With ``many`` links the start, the memory and the last sorting are measured. Linux only.
"""

from __future__ import annotations

import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
from jsonargparse import auto_cli
from side_by_side import machine, publish, table

from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.data.files import append_text
from kanoclip.outputs.names import csv_text, read_csv

IMAGES, SIDE, SHARDS = 50, 64, 4
MODEL = ["--model", "local_stats", "--model.image_size", "32", "--data.num_workers", "1", "--data.batch_size", "64"]
ROWS = ["--maps", "false", "--overlays", "false", "--report", "false", "--trainer.enable_progress_bar", "false"]


class Ended(NamedTuple):
    """How a command went.

    Attributes:
        code: Exit code; -9: killed.
        start: Seconds from its start to its first new row; 0 without any.
        used: Seconds of the processor in that time, which do not depend on what else the machine does.
        seconds: From its start to its end.
        memory: Most memory of its first process, MB.
        done: Rows at its end.
    """

    code: int
    start: float
    used: float
    seconds: float
    memory: float
    done: int


def make_links(folder: Path, count: int) -> None:
    """Draw the images, and link to them from folders of a thousand."""
    data = Surfaces(images=IMAGES, category="wood", num_workers=0)
    files = []
    for number, sample in enumerate(data.samples()[:IMAGES]):
        files.append(folder.with_name(f"drawn-{number}.png"))
        image = cv2.resize(data.read(sample)[0], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(files[-1]), image)
    for number in range(count):
        place = folder / f"{number // 1000:04d}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"{number:07d}.png").symlink_to(files[number % IMAGES])


def predict(links: Path, output: Path, kill_at: int | None = None, *options: str) -> Ended:
    """Run the command; kill it when its csv has so many new rows."""
    start, first, memory, used = time.monotonic(), 0.0, 0.0, 0.0
    command = [
        sys.executable,
        "-m",
        "kanoclip",
        "predict",
        str(links),
        *MODEL,
        *ROWS,
        "--output",
        str(output),
        *options,
    ]
    before, size = done(output), bytes_of(output)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        time.sleep(0.2)
        memory = max(memory, peak(process.pid))
        if not first and bytes_of(output) > size + 200:  # more than a heading
            first, used = time.monotonic() - start, processor(process.pid)
        if kill_at and first and done(output) - before >= kill_at:
            process.send_signal(signal.SIGKILL)
    said = process.communicate()[1].decode()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(said)
    return Ended(process.returncode, first, used, time.monotonic() - start, memory, done(output))


def done(output: Path) -> int:
    """Count the rows of all csv files."""
    return sum(rows(file) for file in output.glob("predictions*.csv"))


def bytes_of(output: Path) -> int:
    """Sum the sizes of all csv files."""
    return sum(file.stat().st_size for file in output.glob("predictions*.csv"))


def processor(process: int) -> float:
    """Seconds of the processor that a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def nearly_done(links: Path, output: Path, left: int) -> None:
    """Add rows with made-up scores to a csv that was just begun, for all images but some, in no order."""
    there = {row["path"] for row in read_csv(output / "predictions.csv")}
    paths = [str(path) for path in sorted(links.glob("*/*.png")) if str(path) not in there][left:]
    random.Random(1).shuffle(paths)
    made_up = ((path, "object", "0.500000", "0.500000", "", "", "", "") for path in paths)
    append_text(output / "predictions.csv", csv_text(made_up))


def rows(file: Path) -> int:
    """Count the rows of a csv; 0 if it is gone since."""
    try:
        with open(file, "rb") as source:
            return max(0, sum(chunk.count(b"\n") for chunk in iter(lambda: source.read(1 << 20), b"")) - 1)
    except FileNotFoundError:
        return 0


def peak(process: int) -> float:
    """Most memory that a process has had so far, MB; 0 if it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024 if "VmHWM" in status else 0.0


def main(count: int = 20_000, many: int = 200_000, output: Path = Path("runs/benchmarks/resume.md")) -> None:
    """Predict in three ways, compare, and write a table.

    Args:
        count: Links to predict in three ways.
        many: Links of which the start, and the end with rows in no order, are measured; rows are made up for most.
        output: Markdown file to write.
    """
    with TemporaryDirectory() as place:
        folder = Path(place)
        os.environ.setdefault("KANOCLIP_CACHE", str(folder / "cache"))
        make_links(links := folder / "links", count)
        ended = {"unbroken": predict(links, folder / "once")}
        for turn in (1, 2, 3):
            ended[f"killed, {turn}"] = predict(links, folder / "killed", count // 4)
        ended["the same command again"] = predict(links, folder / "killed")
        ended["nothing left"] = predict(links, folder / "killed")
        for number in range(1, SHARDS + 1):
            shard = ["--shard", f"{number}/{SHARDS}"]
            ended[f"shard {number}, killed"] = predict(links, folder / "shards", count // 8, *shard)
            ended[f"shard {number} again"] = predict(links, folder / "shards", None, *shard)
        once = folder / "once/predictions.csv"
        same = {name: filecmp.cmp(once, folder / name / "predictions.csv", False) for name in ("killed", "shards")}
        left = [path.name for name in same for path in (folder / name).glob("predictions-*")]
        if not all(same.values()) or left:
            raise RuntimeError(f"equal to the unbroken csv: {same}; left over: {left}")
        found = rows(once)
        make_links(links := folder / "many", many)
        begun = f"{many:,} links, begun and killed"
        ended[begun] = predict(links, folder / "large", 1)
        ended[f"{many:,} links, begun a second time (list cached)"] = predict(links, folder / "again", 1)
        nearly_done(links, folder / "large", 640)
        ended[f"{many:,} links, 640 left, rows shuffled"] = predict(links, folder / "large")
        paths = [row["path"] for row in read_csv(folder / "large/predictions.csv")]
        if paths != sorted(map(str, links.glob("*/*.png"))):
            raise RuntimeError("rows of many links are lost, twice or in another order")
    lines = [machine("torch", "lightning"), "", f"{count:,} links to {IMAGES} images of {SIDE} pixels, local_stats."]
    lines += [f"Killed or shared, the csv of {found:,} rows is the unbroken one's, byte for byte.", ""]
    lines += table(
        [
            "command",
            "exit code",
            "first new row, s",
            "processor until then, s",
            "end, s",
            "peak memory, MB",
            "rows at its end",
        ],
        [[name, one.code, one.start, one.used, one.seconds, one.memory, one.done] for name, one in ended.items()],
    )
    publish(lines, output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
