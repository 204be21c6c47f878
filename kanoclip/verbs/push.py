"""``kanoclip push``: share a fit as data alone, with a card; and a shared fit in place of a checkpoint."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from kanoclip import __version__
from kanoclip.data.files import sha256, write_text
from kanoclip.data.parsing import local_path, read_json
from kanoclip.outputs.names import markdown
from kanoclip.outputs.pushed import BEGIN, END, split_card, with_additions
from kanoclip.outputs.tables import METRICS, results_rows
from kanoclip.types import KanoclipError, MissingError
from kanoclip.verbs.arguments import UsageError
from kanoclip.verbs.say import note, quiet
from kanoclip.verbs.table import VERBS

EXAMPLE = "kanoclip push last.ckpt hub:OWNER/NAME --license apache-2.0"


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip push``; returns the exit code.

    Raises:
        KanoclipError: A mistake of the caller.
    """
    chosen = _parse(argv[1:])
    quiet()
    from kanoclip.models.contents import leaves
    from kanoclip.outputs.hub import CARD, CONFIG, THRESHOLD, pack, place_of, upload

    checkpoint, place = local_path(chosen.checkpoint, "FILE"), place_of(chosen.to)
    if place.revision:
        raise UsageError(f"{chosen.to}: a push makes a new commit, so leave out @{place.revision}.")
    with TemporaryDirectory() as drafts:
        folder = place.folder or Path(drafts, "fit")
        results = [_results(one, checkpoint) for one in chosen.results]
        config = pack(checkpoint, folder, chosen.threshold)
        source = "file:FOLDER" if place.folder else place.name
        written = card(config, results, chosen.license, source, (folder / THRESHOLD).is_file())
        there = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
        write_text(folder / CARD, with_additions(written, there))
        files = sorted(folder.iterdir())
        size = sum(file.stat().st_size for file in files) / 1e6
        where = f"{place.folder}" if place.folder else upload(folder, place, chosen.private)
        licence = split_card((folder / CARD).read_text(encoding="utf-8", errors="replace"))[0].get("license")
    for key, value in leaves(config["model"], "model", ""):
        if isinstance(value, str) and (os.path.isabs(value) or value.startswith("local-dir:")):
            key = key.replace(".init_args", "")
            note(f"{CONFIG} names {value} of this machine: others have to name their own, --{key} PATH.")
    print(f"{where}: {config['kanoclip']['model']}, {size:.1f} MB: {', '.join(file.name for file in files)}")
    if not licence:
        print(
            f"no licence is named, so others may not use it: --license ID, or license: ID into the head of its {CARD}"
        )
    print(f"Next: kanoclip test --ckpt_path {place.name} --data NAME --data.root FOLDER_THAT_CONTAINS_IT")
    print(f'In Python: kanoclip.Inspector.from_hub("{place.name}")("photo.jpg")')
    return 0


def given_checkpoint(given: str, verb: str) -> Path:
    """Return the file that ``--ckpt_path`` means; a shared fit is fetched.

    Raises:
        KanoclipError: As ``fetch`` does; or if a fit is to go on with a shared one, which has no optimiser's state.
    """
    from kanoclip.outputs.hub import fetch, is_shared

    if not is_shared(given):
        return local_path(given, "--ckpt_path")
    if verb == "fit":
        raise UsageError(f"--ckpt_path {given}: a fit cannot go on with a shared one, which holds heads alone.")
    shared = fetch(given)
    if shared.threshold:
        note(f"{given} has a threshold of a decision; to use it: --threshold {shared.threshold}")
    return shared.checkpoint


def card(
    config: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    licence: str | None,
    source: str,
    threshold: bool,
) -> str:
    """Write the card of a shared fit in Markdown, with what is known and nothing else.

    Args:
        config: As ``pack`` returns it.
        results: Of ``kanoclip test``.
        licence: Its name on the hub; None: none is given.
        source: What loads it.
        threshold: Whether one is shared.
    """
    from kanoclip.outputs.identity import done_without

    entry = config["kanoclip"]
    head = {"library_name": "kanoclip", "tags": ["anomaly-detection", "zero-shot", "kanoclip"]}
    head |= {"license": licence} if licence else {}
    backbone = entry["backbone"]
    fitted = f"{entry['auxiliary']}"
    if 0 < len(categories := entry.get("categories") or []) <= 40:
        fitted += f" ({', '.join(map(str, categories))})"
    facts = {
        **{kind: f"{name}" for kind, name in entry["components"].items() if kind != "backbone"},
        "backbone": f"{backbone['description']}, fingerprint {backbone['fingerprint']}; it is not in these files",
        "fitted on": fitted + (", by its authors; imported" if entry.get("imported") else ""),
        **({"knowledge of images": f"none: there was no {', '.join(bare)}"} if (bare := done_without(entry)) else {}),
        "seed": f"{entry.get('seed')}",
        "version": f"kanoclip {entry['version']}, shared by {__version__}",
        "licence": licence
        or "as the head of this card names it; if it names none, ask who shared it before you use it",
    }
    lines = [f"| {name} | {markdown(value)} |" for name, value in facts.items()]
    decides = " `threshold.json` says where good ends; `Inspector.from_hub` takes it.\n" if threshold else "\n"
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"{BEGIN}\n\n# {markdown(entry['model'])}, fitted on {markdown(str(entry['auxiliary']))}\n\n"
        f"Heads for visual anomaly detection with [kanoclip](https://pypi.org/project/kanoclip).{decides}\n"
        f"```bash\nkanoclip test --ckpt_path {source} --data mvtec --data.root FOLDER_THAT_CONTAINS_IT\n```\n\n"
        f'```python\nfrom kanoclip import Inspector\n\nInspector.from_hub("{source}")("photo.jpg")\n```\n\n'
        + "\n".join(["| | |", "| --- | --- |", *lines])
        + f"\n\n## Results\n\n{_measured(results)}\n\n{END}\n"
    )


def _measured(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "None were given by who shared it."
    headings = ["tested on", "zero-shot", "images", *(f"{one.level} {one.heading}" for one in METRICS.values())]
    lines = [headings, ["---"] * 2 + ["--:"] * (len(headings) - 2)]
    for one in results:
        mean = results_rows(one["results"])[-1]
        known = {True: "yes", False: "NO", None: "not known"}[one.get("zero_shot")]
        shown = [metric.show(mean[name]) for name, metric in METRICS.items()]
        lines.append([markdown(f"{one['data']}"), known, f"{mean['images']}", *shown])
    told = "Means over categories, as `kanoclip test` wrote them of this fit; measured by who shared it."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{told}"


def _results(file: str, checkpoint: Path) -> dict[str, Any]:
    """Read a results.json, which must be of the checkpoint."""
    path, such = local_path(file, "--results"), "Give one that kanoclip test has written"
    try:
        content = read_json(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingError(
            f"--results {file}: there is no such file. Give one that kanoclip test has written."
        ) from error
    except ValueError as error:
        raise KanoclipError(f"--results {file} is not JSON. {such}.") from error
    if not isinstance(content, dict) or not {"results", "data", "checkpoint"} <= set(content):
        raise KanoclipError(f"--results {file} is no results.json of a test. {such}.")
    if (content["checkpoint"] or {}).get("sha256") != sha256(checkpoint):
        raise KanoclipError(
            f"--results {file} is not of {checkpoint}. Test it: kanoclip test --ckpt_path {checkpoint}."
        )
    return content


def _parse(options: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kanoclip push",
        description=f"{VERBS['push'].about}: heads, options and a card, no code. hub:OWNER/NAME is a repository of the "
        f"Hugging Face Hub, which is made if there is none; file:FOLDER a folder of this machine.",
        epilog=f"Example: {EXAMPLE}",
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("checkpoint", metavar="FILE", nargs="?", help="a checkpoint of a fit, such as runs/fit/.../last.ckpt")
    add("to", metavar="PLACE", nargs="?", help="hub:OWNER/NAME or file:FOLDER")
    add("--threshold", help="threshold.json of kanoclip calibrate for this checkpoint")
    add("--results", nargs="+", default=[], help="results.json of kanoclip test with this checkpoint, for the card")
    add("--license", help="under which others may use it, as the hub names it, such as apache-2.0")
    add("--private", action="store_true", help="a repository that is made is private")
    try:
        chosen, more = parser.parse_known_args(list(options))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}. Type: {EXAMPLE}") from error
    if not chosen.to:
        raise UsageError(f"push needs the checkpoint of a fit and where to: a FILE and a PLACE. Type: {EXAMPLE}")
    if more:
        raise UsageError(f"push has no option {more[0]}. Type: {EXAMPLE}")
    return chosen
