"""Models x data sets x seeds -> one table. Each cell is the very fit or test that the command line would run."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import statistics
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich import box
from rich.table import Table

from kanoclip.__main__ import complain
from kanoclip.arguments import mistake, read_config
from kanoclip.cli import KanoclipCLI, model_name, quiet
from kanoclip.outputs.files import write_json, write_text
from kanoclip.outputs.tables import METRICS, UNDEFINED, table_text
from kanoclip.registry import expand, name_of
from kanoclip.runs import NoFitError

Spec = dict[str, Any]
Reports = dict[tuple[str, str], list[dict[str, Any]]]


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip benchmark``; returns 0, 1 if a run failed, 2 for a mistake in the config, 130 if interrupted."""
    about = "Fit what learns on one auxiliary set, test all models on the other sets, and print one table."
    parser = ArgumentParser(prog="kanoclip benchmark", description=about, exit_on_error=False)
    parser.add_argument("--config", required=True, help="YAML with auxiliary, data, models, seeds and trainer.")
    parser.add_argument("--output", default=None, help="Folder for the runs and the table.")
    quiet()
    try:
        options = parser.parse_args(list(argv[1:]))
        config = read_config(options.config)
        expected = {"auxiliary", "data", "models", "seeds", "trainer"}
        if set(config) != expected or not all(isinstance(config[key], list) for key in ("data", "models", "seeds")):
            raise ValueError(
                f"{options.config} should have the keys {', '.join(sorted(expected))}, with lists of data, models and "
                f"seeds, got {', '.join(config)}."
            )
        plan = {kind: [_spec(kind, one, options.config) for one in config[key]] for kind, key in _LISTS}
        auxiliary = _spec("data", config["auxiliary"], options.config)
    except argparse.ArgumentError as error:
        return complain(f"{error}. Type: kanoclip benchmark --config configs/benchmarks/quickstart.yaml")
    except ValueError as error:
        return complain(str(error))
    output = Path(options.output or f"runs/benchmark/{Path(options.config).stem}")
    try:
        return run(auxiliary, plan["data"], plan["model"], config["seeds"], config["trainer"], output)
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning answers Ctrl-C by leaving
        if not isinstance(end, KeyboardInterrupt) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        print(f"kanoclip: interrupted. What is done is in {output}; the same command goes on.", file=sys.stderr)
        return 130


def run(
    auxiliary: Spec, data: list[Spec], models: list[Spec], seeds: list[int], trainer: dict[str, Any], output: Path
) -> int:
    """Fit what learns on one auxiliary set, test all models on the other sets, and print one table.

    What is done already is not done again. A run that fails does not stop the others; it is told at the end.

    Args:
        auxiliary: Data set to fit on.
        data: Data sets to test on.
        models: Models; a ``label`` beside ``class_path`` names a row.
        seeds: A model that learns is fitted and tested once per seed.
        trainer: Options of the trainer.
        output: Folder for the runs, table.txt, table.md, results.csv and results.json.
    """
    reports: Reports = {}
    failed: list[str] = []
    for model in models:
        label = model.get("label") or model_name(model["class_path"])
        for number, seed in enumerate(seeds, 1):
            print(f"\n== {label}, seed {seed} ({number} of {len(seeds)})", flush=True)
            folder = output / f"{label}-{_key(model, auxiliary, trainer)}-seed{seed}"
            try:
                found = [_test(folder, model, one, auxiliary, seed, trainer) for one in data]
            except Exception as error:
                write_text(folder / "error.txt", traceback.format_exc())
                said = mistake(error, ()) or f"{type(error).__name__}: {error}"
                failed.append(f"{label}, seed {seed} failed. {said} The whole story: {folder}/error.txt")
                continue
            for report in found:
                reports.setdefault((report["data"], label), []).append(report)
            if all(report["checkpoint"] is None for report in found):
                break  # nothing was learned: every seed gives the same
    if reports:
        _write(output, reports)
    for failure in failed:
        complain(failure)
    return 1 if failed else 0


_LISTS = (("data", "data"), ("model", "models"))


def _spec(kind: str, given: Any, file: str) -> Spec:
    """Bring a name or mapping into the form ``{class_path, init_args}``, names expanded."""
    spec = expand({"class_path": given} if isinstance(given, str) else given, f" in {file}", kind)
    if not isinstance(spec, dict) or "class_path" not in spec:
        raise ValueError(f"{file}: a {kind} should be a name or have a class_path, got {given!r}.")
    return spec


def _key(model: Spec, auxiliary: Spec, trainer: dict[str, Any]) -> str:
    settings = json.dumps([model, auxiliary, trainer], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:8]


def _test(folder: Path, model: Spec, data: Spec, auxiliary: Spec, seed: int, trainer: dict[str, Any]) -> dict[str, Any]:
    """Return the report of one test, from disk if it is there; fit first if the model learns and is not fitted."""
    name = name_of("data", data["class_path"])
    about = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]
    place = folder / f"{name.rpartition('.')[2]}-{about}.json"
    if not place.is_file():
        try:
            cli = _verb("test", folder, model, data, seed, trainer)
        except NoFitError:
            _verb("fit", folder, model, _seeded(auxiliary, seed), seed, trainer)
            cli = _verb("test", folder, model, data, seed, trainer)
        report = json.loads((Path(str(cli.trainer.log_dir)) / "results.json").read_text(encoding="utf-8"))
        write_json(place, report)
    return json.loads(place.read_text(encoding="utf-8"))


def _verb(verb: str, folder: Path, model: Spec, data: Spec, seed: int, trainer: dict[str, Any]) -> KanoclipCLI:
    """Run a verb as the command line would."""
    about = {key: value for key, value in model.items() if key != "label"}
    options = {**trainer, "default_root_dir": str(folder)}
    config = folder / f"{verb}.yaml"
    write_text(config, yaml.safe_dump({"seed_everything": seed, "data": data, "model": about, "trainer": options}))
    return KanoclipCLI([verb, f"--config={config}"])


def _seeded(data: Spec, seed: int) -> Spec:
    return {**data, "init_args": {**data.get("init_args", {}), "seed": seed}}


def _write(output: Path, reports: Reports) -> None:
    """Print the table and write it as text, Markdown, csv and JSON."""
    rows = []
    for (data, label), found in sorted(reports.items(), key=lambda item: item[0][0]):
        values: dict[str, list[float]] = {}
        for metric in METRICS:
            given = [report["results"]["mean"].get(metric) for report in found]
            values[metric] = [value for value in given if value is not None]
        milliseconds = 1000 * statistics.median(report["seconds_per_image"] for report in found)
        rows.append((data, label, found, values, milliseconds))
    table = Table(box=box.SIMPLE_HEAD)
    headings = ["data", "model", *METRICS, "ms/image", "images", "seeds"]
    for heading in headings:
        table.add_column(heading.replace("_", "\n", 1), justify="left" if heading in ("data", "model") else "right")
    plain = io.StringIO()
    writer = csv.writer(plain)
    deviations = [f"{metric}_std" for metric in METRICS]
    writer.writerow(["data", "model", *METRICS, *deviations, "ms_per_image", "images", "seeds"])
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    before = None
    for data, label, found, values, milliseconds in rows:
        if before not in (None, data):
            table.add_section()
        before = data
        images, cells = found[0]["images"], [_cell(values[metric]) for metric in METRICS]
        shown = [data, label, *cells, f"{milliseconds:.1f}", str(images), str(len(found))]
        table.add_row(*shown)
        lines.append("| " + " | ".join(shown) + " |")
        means = [statistics.fmean(v) if v else "" for v in values.values()]
        spreads = [statistics.stdev(v) if len(v) > 1 else "" for v in values.values()]
        writer.writerow([data, label, *means, *spreads, milliseconds, images, len(found)])
    first = next(iter(reports.values()), [{}])[0]
    note = (
        f"Means over categories; ± is the standard deviation over seeds; {UNDEFINED} is not defined. "
        f"Fitted on {next((r['auxiliary'] for f in reports.values() for r in f if r['auxiliary']), 'nothing')}, "
        f"zero-shot on all others; kanoclip {first.get('versions', {}).get('kanoclip', '')}."
    )
    print("\n" + table_text(table) + "\n" + note + f"\n{output}/table.txt, table.md, results.csv, results.json")
    write_text(output / "table.txt", table_text(table) + "\n" + note + "\n")
    write_text(output / "table.md", "\n".join(lines) + "\n\n" + note + "\n")
    write_text(output / "results.csv", plain.getvalue())
    write_json(output / "results.json", {f"{data} {label}": found for (data, label), found in reports.items()})


def _cell(values: list[float]) -> str:
    if not values:
        return UNDEFINED
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
