"""``kanoclip demo``: a page on this machine where photos are dropped in, scored and looked at."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kanoclip.registry import did_you_mean
from kanoclip.types import KanoclipError, MissingError
from kanoclip.verbs.say import note, quiet
from kanoclip.verbs.words import UsageError, pairs_of

if TYPE_CHECKING:  # torch is imported late: a mistyped option is answered before
    from kanoclip.inspector import Inspector

RUNS = Path("runs")
OPTIONS = ("--ckpt_path", "--model", "--threshold", "--category", "--data.tile", "--port", "--host", "--help")


def main(argv: Sequence[str]) -> int:
    """Serve the page until the process is told to end.

    Args:
        argv: As typed, such as ``["demo", "--port", "7861"]``.

    Raises:
        KanoclipError: For a mistake in the options, a port in use, or a missing gradio.
    """
    options, of_model = _parse(argv[1:])
    _check_place(options.host, options.port)
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # meant for another page: to share it, or files of this machine
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory(prefix="kanoclip-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            from kanoclip.verbs.page import page, serve
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise MissingError('The demo needs gradio, which is not installed: pip install ".[demo]"') from error
        quiet()
        inspector, about = _inspector(options, of_model)
        for line in about:
            note(line)
        serve(page(inspector, about, Path(folder)), options.host, options.port)
        if options.host not in ("127.0.0.1", "localhost"):
            note("without a password: all who reach this machine can send photos to it.")
        print(f"kanoclip: open http://{options.host}:{options.port} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    return 0


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the page, and those of the model."""
    parser = argparse.ArgumentParser(
        prog="kanoclip demo",
        description="Drop in photos on a page of this machine and see score, decision and overlay. Nothing leaves the "
        "machine.",
        epilog="--model NAME, --model.backbone NAME and so on build a model, as for kanoclip predict.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--ckpt_path", metavar="FILE", help="checkpoint or exported model; by default the newest fit under runs/")
    add("--threshold", metavar="FILE|NUMBER", help="where the sliders begin: of kanoclip calibrate, or a score")
    add("--category", metavar="NAME", default="", help="what the photos show, such as bottle")
    add("--data.tile", dest="tile", metavar="TILE", type=yaml.safe_load, default=False, help="as for predict")
    add("--port", metavar="N", type=int, default=7860, help="7860 by default")
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="0.0.0.0: other machines reach the page, too")
    try:
        options, rest = parser.parse_known_args([f"{k}={v}" if v is not None else k for k, v in pairs_of(words)])
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}. Options: kanoclip demo --help") from error
    if unknown := [word for word in rest if word.partition(".")[0].partition("=")[0] != "--model"]:
        name = unknown[0].partition("=")[0]
        hint = did_you_mean(name, OPTIONS)
        raise UsageError(f"Unknown option {name}.{hint} Accepted: {', '.join(OPTIONS)}.")
    if rest and options.ckpt_path:
        raise UsageError(f"{rest[0].partition('=')[0]}: a checkpoint tells its model. Leave it out, or --ckpt_path.")
    return options, rest


def _check_place(host: str, port: int) -> None:
    """Raise if the page cannot be served there: told before a model is loaded."""
    if not 1 <= port <= 65535:
        raise KanoclipError(f"--port {port}: expected 1 to 65535.")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise KanoclipError(f"--host {host} is no address of this machine: try 127.0.0.1 or 0.0.0.0.") from error
        other = port + 1 if 1024 <= port < 65535 else 7860
        raise KanoclipError(
            f"--port {port} cannot be used ({os.strerror(error.errno)}). Try --port {other}."
        ) from error


def _inspector(options: argparse.Namespace, of_model: list[str]) -> tuple[Inspector, list[str]]:
    """Return who looks at the photos, and what a person must know about that, line by line."""
    from kanoclip.inspector import Inspector
    from kanoclip.outputs.exported import SUFFIXES
    from kanoclip.outputs.thresholds import Thresholds

    threshold = None if options.threshold is None else Thresholds.load(options.threshold)
    path, source = options.ckpt_path, _model(of_model) if of_model else None
    if not path and (source is None or source.needs_training):
        from kanoclip.outputs.record import newest_fit

        path = newest_fit(RUNS, source and source.name)
    if not path or Path(path).suffix.lower() not in SUFFIXES.values():
        from kanoclip.models.inference import load_model

        source = load_model(path) if path else source or _model(["--model=clip_vv", "--model.backbone=embedded"])
    inspector = Inspector(source or path, threshold=threshold, category=options.category, tile=options.tile)
    about = [f"Model: {inspector.scoring['model']}, {path or 'which was fitted on nothing'}."]
    if inspector.scoring["components"].get("backbone") == "kanoclip embedded":
        about.append(
            "Its embedded backbone is for demonstration and knows drawings only; for real photos fit a model with "
            "--model.backbone clip."
        )
    return inspector, about


def _model(words: list[str]) -> Any:
    """Build the model that ``--model...`` asks for, as ``kanoclip predict`` does."""
    from kanoclip.models.base import AnomalyModule
    from kanoclip.verbs.arguments import explain, prepare
    from kanoclip.verbs.build import Parser

    command = prepare(["predict", "--data=folder", *words])
    parser = Parser(parser_mode="kanoclip")
    parser.add_subclass_arguments(AnomalyModule, "model", required=True)
    try:
        typed = parser.parse_args([word for word in command.words() if word.startswith("--model")])
    except UsageError as error:
        raise UsageError(explain(str(error), command)) from error
    return parser.instantiate_classes(typed).model
