"""``kanoclip benchmark``: its options, so that a mistyped one is answered before torch is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from kanoclip.verbs.say import complain


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip benchmark``; returns the exit code, see ``kanoclip.verbs.benchmark.run``."""
    try:
        options = _parser().parse_args([option.replace("--data.root", "--root") for option in argv[1:]])
    except argparse.ArgumentError as error:
        said = " ".join(str(error).split())
        return complain(f"{said}. Type: kanoclip benchmark --config configs/benchmarks/quickstart.yaml")
    from kanoclip.verbs.benchmark import run

    return run(options, argv)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="kanoclip benchmark",
        description="Fit what learns on an auxiliary set, test all models on the other sets, and print one table. What "
        "is done already is not done again, so the same command goes on after a stop; commands that are started at "
        "once, also on several machines with the same disk, share the work.",
        exit_on_error=False,
    )
    parser.add_argument("--config", required=True, help="YAML with auxiliary, data, models, seeds and trainer.")
    parser.add_argument("--output", default=None, help="Folder for runs and table; runs/benchmark/NAME by default.")
    parser.add_argument("--root", default=None, help="Folder that contains the data sets, for those that name none.")
    parser.add_argument(
        "--processes", type=PositiveInt, default=None, help="Runs at a time; one for each GPU, or 1, by default."
    )
    parser.add_argument(
        "--published", default=None, help="Published numbers beside ours: mvtec_to_all, visa_to_all or none."
    )
    parser.add_argument(
        "--dry_run", "--dry-run", type=bool, nargs="?", const=True, default=False, help="Print the plan and stop."
    )
    parser.add_argument("--worker", type=float, default=None, help=argparse.SUPPRESS)
    return parser
