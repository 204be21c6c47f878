"""``kanoclip data``: which data sets there are and which are here, whether they are whole, what they look like."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kanoclip.data.about import About
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.download import WORK, DownloadError, download
from kanoclip.data.files import write_image
from kanoclip.data.images import UnreadableImageError
from kanoclip.data.sets.tree import Tree
from kanoclip.outputs.sheet import contact_sheet, varied
from kanoclip.outputs.tables import print_table
from kanoclip.registry import NAMES, load_class, resolve
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError
from kanoclip.verbs.say import complain
from kanoclip.verbs.table import VERBS

NAMED = 5  # files named for each kind of trouble


class Finding(NamedTuple):
    """What was found on opening one sample; ``trouble`` is "" when all is well."""

    size: tuple[int, int] = (0, 0)
    area: float | None = None
    trouble: str = ""
    where: str = ""


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip data``; returns 0, 1 if a data set has faults, 2 for a mistake of the caller, 130 interrupted."""
    # the same options as elsewhere, with and without their prefix
    options = [option.replace("--data.", "--", 1) for option in argv[1:]]
    action, *rest = options
    try:
        if action == "list":
            return _list(_parse(_parser(action), rest).root)
        if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
            return complain(f"Which data set? Type: kanoclip data {action} NAME; names: {', '.join(NAMES['data'])}.")
        if rest[0] in ("-h", "--help"):
            print(f"kanoclip data {action} NAME: {VERBS['data'].actions[action]}")
            print(f"Options of one: kanoclip data {action} mvtec --help")
            return 0
        cls = load_class(resolve("data", rest[0]))
        parser = _parser(action, rest[0])
        parser.add_class_arguments(cls)
        chosen = _parse(parser, rest[1:])
        own = {key: chosen.pop(key) for key in ("output", "count", "accept_license") if key in chosen}
        data = cls(**chosen.as_dict())
        if action == "check":
            return _check(data)
        return _show(data, **own) if action == "show" else _download(data, **own)
    except (OSError, ValueError) as error:
        return complain(str(error))
    except KeyboardInterrupt:
        return 130


def _parser(action: str, name: str = "") -> ArgumentParser:
    parser = ArgumentParser(prog=f"kanoclip data {action} {name}".strip(), exit_on_error=False)
    parser.description = VERBS["data"].actions[action].split(":")[0]
    if action == "list":
        parser.add_argument("--root", default="data", help="Folder that contains all data sets.")
    if action == "show":
        parser.add_argument("--output", default=None, help="PNG to write; runs/data/NAME.png by default.")
        parser.add_argument("--count", type=PositiveInt, default=24, help="How many images.")
    if action == "download":
        parser.add_argument("--accept_license", "--accept-license", action="store_true", help="Accept the licence.")
    return parser


def _parse(parser: ArgumentParser, options: Sequence[str]) -> Namespace:
    try:
        chosen: Namespace = parser.parse_args(list(options))
    except argparse.ArgumentError as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise KanoclipError(f"{said}. Options: {parser.prog} --help") from error
    return chosen


def _list(root: str) -> int:
    table = Table("name", "domain", "normal / anomalous", "masks", "paper", "licence", "here", box=box.SIMPLE_HEAD)
    for name, path in NAMES["data"].items():
        kind = load_class(path)
        about: About | None = getattr(kind, "about", None)
        if about is None or not issubclass(kind, Tree):
            continue
        counts = "{} / {}".format(*about.counts or "??")
        counts = f"~{counts}" if about.counts and not about.confirmed else counts
        here = _here(kind(root=root))
        table.add_row(name, kind.domain, counts, "yes" if about.masks else "no", "yes" if about.paper else "",
                      about.licence, here)  # fmt: skip
    print_table(table)
    print(
        "normal / anomalous: published numbers of test images, ~ not confirmed by us. paper: named by KAnoCLIP's "
        "public pages. Your own images: --data folder, manifest or meta_json. Without files: surfaces, "
        "surfaces_auxiliary, surfaces_defects."
    )
    return 0


def _here(data: Tree) -> str:
    root = Path(data.root).expanduser()  # not the root itself: it holds all sets
    places = [folder for folder in data.places() if folder != root and folder.is_dir()]
    if not places:
        return "no"
    try:
        folder, files = data.find()
    except FileNotFoundError:
        return f"{_below(places[0], data)}: not its layout"
    size = sum(_bytes(folder / file) for file in files)
    return f"{_below(folder, data)} ({size / 1e9:.2f} GB)"


def _below(folder: Path, data: Tree) -> str:
    return folder.relative_to(Path(data.root).expanduser()).as_posix()


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _check(data: AnomalyDataModule) -> int:
    samples = data.index()
    found = _open_all(data, samples)
    counts = Counter((s.category, s.split, s.label) for s in samples)
    table = Table("category", "split", "normal", "anomalous", "unlabelled", box=box.SIMPLE_HEAD)
    for category, split in dict.fromkeys((s.category, s.split) for s in samples):
        table.add_row(category, split, *(str(counts[category, split, label]) for label in (NORMAL, ANOMALOUS, -1)))
    print_table(table)
    heights, widths = zip(*([f.size for f in found if not f.trouble] or [(0, 0)]), strict=True)
    print(f"{len(samples)} images, {min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high.")
    areas = [f.area for f in found if f.area]
    if areas:
        print(
            f"{len(areas)} masks cover {min(areas):.2%} to {max(areas):.2%} of their image, median "
            f"{float(np.median(areas)):.2%}."
        )
    notes, faults = _troubles(data, samples, found)
    for text in notes:
        print(f"note: {text}")
    trouble = Table("fault", "files", "such as", box=box.SIMPLE_HEAD)
    for kind, files in faults.items():
        trouble.add_row(kind, str(len(files)), "\n".join(files[:NAMED]))
    if faults:
        print_table(trouble)
    print("found: " + ("nothing wrong." if not faults else f"{sum(map(len, faults.values()))} faults."))
    return int(bool(faults))


def _open_all(data: AnomalyDataModule, samples: Sequence[Sample]) -> list[Finding]:
    def opened(sample: Sample) -> Finding:
        try:
            image, mask = data.read(sample)
        except UnreadableImageError as error:
            return Finding(trouble=error.why or "unreadable", where=error.path)
        return Finding(image.shape[:2], None if mask is None else float(mask.mean()))

    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:  # decoders let go of the interpreter's lock
        return list(track(pool.map(opened, samples), "opening", len(samples), console=console, transient=True))


def _troubles(
    data: AnomalyDataModule, samples: Sequence[Sample], found: Sequence[Finding]
) -> tuple[list[str], dict[str, list[str]]]:
    notes, faults = [], defaultdict[str, list[str]](list)
    test = [(s, f) for s, f in zip(samples, found, strict=True) if s.split == "test" and s.label == ANOMALOUS]
    empty = [s.image for s, f in test if s.masks and f.area == 0]
    without = [s.image for s, f in test if not s.masks]
    about: About | None = getattr(data, "about", None)
    if empty:
        notes.append(f"{len(empty)} anomalous images have an empty mask: {', '.join(empty[:NAMED])}")
    if without and (about is None or about.masks):
        notes.append(f"{len(without)} anomalous images have no mask: {', '.join(without[:NAMED])}")
    if about and about.counts and data.category in (None, "all") and data.limit is None:
        mine = tuple(sum(s.split == "test" and s.label == label for s in samples) for label in (NORMAL, ANOMALOUS))
        words = "as published" if mine == about.counts else f"published: {about.counts[0]} / {about.counts[1]}"
        words += "" if about.confirmed else ", as far as we know"
        notes.append(f"test images, normal / anomalous: {mine[0]} / {mine[1]} ({words})")
    for finding in found:
        if finding.trouble:
            faults[finding.trouble].append(finding.where)
    return notes, dict(faults)


def _show(data: AnomalyDataModule, output: str | None, count: int) -> int:
    path = Path(output or f"runs/data/{data.name}.png")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise KanoclipError(f"--output is {path}, expected a .png or .jpg file.")
    samples = data.index()
    chosen = varied(samples, count)
    sheet, skipped = contact_sheet(chosen, data.read)
    write_image(path, sheet)
    print(f"{len(chosen) - len(skipped)} of {len(samples)} images of {data.name}: {path}")
    for text in skipped:
        print(f"kanoclip: {text}", file=sys.stderr)
    return int(bool(skipped))


def _download(data: AnomalyDataModule, accept_license: bool) -> int:
    if not isinstance(data, Tree):
        raise DownloadError(f"{data.name} is not a published data set: there is nothing to download.")
    try:
        folder, _ = data.find()
    except FileNotFoundError:
        pass
    else:
        if not (folder / WORK).exists():  # somebody else's copy; our own may be half-done
            print(f"{data.about.title} is here already: {folder}. To check it: kanoclip data check {data.name}")
            return 0
    download(data.name, data.about, data.root, accept_license, _ask)
    print(f"To check it: kanoclip data check {data.name} --root {data.root}")
    return 0


def _ask(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
