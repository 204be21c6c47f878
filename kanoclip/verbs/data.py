"""``kanoclip data``: which data sets there are and which are here, whether they are whole, what they look like."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.progress import track

from kanoclip.data.about import DamagedDataError
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.download import WORK, DownloadError, download
from kanoclip.data.faults import Remark, UnreadableImageError, hearing
from kanoclip.data.files import write_image
from kanoclip.data.parsing import local_path
from kanoclip.data.sets.tree import Tree
from kanoclip.outputs.sheet import contact_sheet, varied
from kanoclip.outputs.tables import print_table, word_table
from kanoclip.registry import NAMES, load_class, resolve
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError, MissingError, counted, printable
from kanoclip.verbs.say import folded
from kanoclip.verbs.table import VERBS

NAME = 60  # characters of a category in a table
NAMED = 5  # files named for each kind of trouble

Opened = tuple[tuple[int, int], float | None] | UnreadableImageError
"""What is found on opening a sample: height and width, and the share of anomalous pixels if there is a mask."""


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a data set's docstring as they are."""


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip data``; returns 0, or 1 if a data set has faults.

    Raises:
        KanoclipError: A mistake of the caller.
    """
    action, *rest = (option.replace("--data.", "--", 1) for option in argv[1:])  # as elsewhere, or without the prefix
    parser = ArgumentParser(prog=f"kanoclip data {action}", exit_on_error=False, formatter_class=_Help)
    parser.description, cls = VERBS["data"].actions[action], None
    if action == "list":
        parser.add_argument("--root", default="data", help="Folder that contains all data sets.")
    elif rest and not rest[0].startswith("-"):
        cls = load_class(resolve("data", rest[0]))
        parser.prog += f" {rest.pop(0)}"
        parser.description += "\n\n" + (inspect.getdoc(cls) or "").partition("\nArgs:")[0]  # which are listed below
        parser.add_class_arguments(cls)
    elif not {"-h", "--help"} & set(rest):
        raise KanoclipError(f"Which data set? Type: {parser.prog} NAME. All names: kanoclip list data.")
    if action == "show":
        parser.add_argument("--output", default=None, help="PNG to write; runs/data/NAME.png by default.")
        parser.add_argument("--count", type=PositiveInt, default=24, help="How many images.")
    if action == "download":
        parser.add_argument("--accept_license", "--accept-license", action="store_true", help="Accept the licence.")
    try:
        chosen = parser.parse_args(rest).as_dict()
    except argparse.ArgumentError as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise KanoclipError(f"{said}. Options: {parser.prog} --help") from error
    if cls is None:
        return _list(**chosen)
    own = {key: chosen.pop(key) for key in ("output", "count", "accept_license") if key in chosen}
    data = cls(**chosen)
    if action == "check":
        return _check(data)
    return _show(data, **own) if action == "show" else _download(data, **own)


def _list(root: str) -> int:
    headings, rows = ("name", "domain", "normal / anomalous", "masks", "paper", "licence", "here"), []
    for name, path in NAMES["data"].items():
        cls = load_class(path)
        if not issubclass(cls, Tree):
            continue
        about = cls.about
        counts = "{}{} / {}".format("" if about.confirmed or not about.counts else "~", *about.counts or "??")
        masks, paper = "yes" if about.masks else "no", "yes" if about.paper else ""
        rows.append((name, cls.domain, counts, masks, paper, about.licence, _where(cls(root=root))))
    print_table(word_table(headings, rows), word_table(headings, rows, ("domain", "masks", "paper")))
    legend = (
        "normal / anomalous: published numbers of test images, ~ not confirmed by us. In a wide terminal, paper: "
        "named by KAnoCLIP's public pages. Your own images: --data folder, manifest or meta_json. Without files: "
        "surfaces, surfaces_auxiliary, surfaces_defects."
    )
    print(folded(legend))
    return 0


def _where(data: Tree) -> str:
    """Return the data set's folder below the root and its size, or "no" if it is not there."""
    root = data.place
    places = [
        place for place in data.places() if place != root and os.path.isdir(place)
    ]  # the root holds all data sets
    if not places:
        return "no"
    try:
        folder, files = data.find()
    except MissingError:
        return f"{os.path.relpath(places[0], root)}: not its layout"
    except DamagedDataError:
        return f"{os.path.relpath(places[0], root)}: a part, its download was stopped"
    size = sum(_bytes(folder / file) for file in files)
    return f"{os.path.relpath(folder, root)} ({size / 1e9:.2f} GB)"


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere
        return 0


def _check(data: AnomalyDataModule) -> int:
    samples = data.index()
    found, remarks = _open_all(data, samples)
    counts = Counter((s.category, s.split, s.label) for s in samples)
    rows = [
        (
            printable(category, NAME),
            split,
            *(str(counts[category, split, label]) for label in (NORMAL, ANOMALOUS, -1)),
        )
        for category, split in dict.fromkeys((s.category, s.split) for s in samples)
    ]
    print_table(word_table(("category", "split", "normal", "anomalous", "unlabelled"), rows))
    opened = [one for one in found if not isinstance(one, UnreadableImageError)]
    heights, widths = zip(*([size for size, _ in opened] or [(0, 0)]), strict=True)
    print(
        f"{counted(len(samples), 'image')}, {min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high."
    )
    if areas := [area for _, area in opened if area]:
        print(
            f"{counted(len(areas), 'mask')} with {min(areas):.2%} to {max(areas):.2%} of the image, median "
            f"{float(np.median(areas)):.2%}."
        )
    said = Counter(one.what for one in remarks)
    such = {one.what: one.path for one in reversed(remarks)}
    notes = _notes(data, samples, found)
    notes += [f"{counted(n, 'file')} such as {such[what]}: {what}" for what, n in said.items()]
    print(_counts(data, samples), end="")
    for text in notes:
        print(f"note: {text}")
    faults = defaultdict[str, list[str]](list)
    for one in found:
        if isinstance(one, UnreadableImageError):
            faults[one.why].append(one.path)
    if faults:
        trouble = [(kind, str(len(files)), "\n".join(files[:NAMED])) for kind, files in faults.items()]
        print_table(word_table(("fault", "files", "such as"), trouble))
    least = "no fault in the files; see the notes above" if notes else "nothing wrong"
    print(f"found: {counted(sum(map(len, faults.values())), 'fault') if faults else least}.")
    return int(bool(faults))


def _open_all(data: AnomalyDataModule, samples: Sequence[Sample]) -> tuple[list[Opened], list[Remark]]:
    remarks: list[Remark] = []

    def opened(sample: Sample) -> Opened:
        try:
            with hearing() as heard:
                image, mask = data.read(sample)
        except UnreadableImageError as error:
            return error
        remarks.extend(heard)
        return image.shape[:2], None if mask is None else float(mask.mean())

    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:  # decoders let go of the interpreter's lock
        found = list(track(pool.map(opened, samples), "opening", len(samples), console=console, transient=True))
    return found, remarks


def _notes(data: AnomalyDataModule, samples: Sequence[Sample], found: Sequence[Opened]) -> list[str]:
    """Say what may be right but is worth a look."""
    notes = data.notes()
    about = data.about if isinstance(data, Tree) else None
    test = [(s, f) for s, f in zip(samples, found, strict=True) if s.split == "test"]
    anomalous = [(s, f) for s, f in test if s.label == ANOMALOUS]
    if empty := [s.image for s, f in anomalous if s.masks and not isinstance(f, UnreadableImageError) and f[1] == 0]:
        notes.append(f"{counted(len(empty), 'anomalous image')} with an empty mask: {', '.join(empty[:NAMED])}")
    without = [s.image for s, _ in anomalous if not s.masks]
    if without and (about is None or about.masks):
        notes.append(f"{counted(len(without), 'anomalous image')} without a mask: {', '.join(without[:NAMED])}")
    return notes


def _counts(data: AnomalyDataModule, samples: Sequence[Sample]) -> str:
    """Return a line on the published counts; "" where there are none, or where the notes tell how far off they are."""
    if not isinstance(data, Tree) or not data.is_whole or data.about.counts is None:
        return ""
    labels = [sample.label for sample in samples if sample.split == "test"]
    mine = labels.count(NORMAL), labels.count(ANOMALOUS)
    if data.far_from_published(*mine):
        return ""
    words = "as published" if data.about.whole(*mine) else "published: {} / {}".format(*data.about.counts)
    words += "" if data.about.confirmed else ", as far as we know"
    return f"test images, normal / anomalous: {mine[0]} / {mine[1]} ({words}).\n"


def _show(data: AnomalyDataModule, output: str | None, count: int) -> int:
    path = local_path(output or f"runs/data/{data.name}.png", "--output")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise KanoclipError(f"--output is {path}, expected a .png or .jpg file.")
    samples = data.index()
    chosen = varied(samples, count)
    sheet, skipped = contact_sheet(chosen, data.read)
    write_image(path, sheet)
    print(f"{len(chosen) - len(skipped)} of {counted(len(samples), 'image')} of {data.name}: {path}")
    for text in skipped:
        print(f"kanoclip: {text}", file=sys.stderr)
    return int(bool(skipped))


def _download(data: AnomalyDataModule, accept_license: bool) -> int:
    if not isinstance(data, Tree):
        raise DownloadError(f"{data.name} is not a published data set: there is nothing to download.")
    try:
        folder, _ = data.find()
    except (MissingError, DamagedDataError):  # not there, or stopped in between
        pass
    else:
        if not (data.place / data.name / WORK).exists():  # somebody else's copy
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
