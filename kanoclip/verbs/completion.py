"""``kanoclip completion SHELL``: a script by which a shell completes verbs, options and names, without Python."""

from __future__ import annotations

import io
import re
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

import jsonargparse
import shtab

from kanoclip.knowledge.base import shipped
from kanoclip.registry import NAMES, available, did_you_mean, load_class
from kanoclip.types import KanoclipError
from kanoclip.verbs import configs, table
from kanoclip.verbs.help import HELP_OPTIONS, RUNS, WIDTH
from kanoclip.verbs.say import folded
from kanoclip.verbs.words import kind_of

PLACES = {
    "bash": "~/.local/share/bash-completion/completions/kanoclip",
    "zsh": "~/.zfunc/_kanoclip",
    "fish": "~/.config/fish/completions/kanoclip.fish",
}
"""Where each shell looks for it; zsh with ``fpath+=~/.zfunc`` before ``compinit`` in its ~/.zshrc."""
PATHS = ("root", "output", "ckpt_path", "threshold", "default_root_dir", "pretrained", "questions")
"""Last words of options whose value is a path."""
TRAINER = {
    "--trainer.accelerator": ("auto", "cpu", "gpu", "mps"),
    "--trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
}
Values = Mapping[str, Sequence[str]]


def main(argv: Sequence[str]) -> int:
    """Print the script for a shell; returns the exit code.

    Raises:
        KanoclipError: If there is none for it.
    """
    if len(argv) == 1 or HELP_OPTIONS & set(argv):
        print(folded(f"usage: kanoclip completion SHELL\n\n{table.VERBS['completion'].about}; once:", most=WIDTH))
        print("\n".join(f"  kanoclip completion {shell} > {place}" for shell, place in PLACES.items()))
        return 0
    shell = " ".join(argv[1:])
    if shell not in PLACES:
        raise KanoclipError(f"Unknown shell {shell!r}.{did_you_mean(shell, PLACES)} There are {', '.join(PLACES)}.")
    print(shtab.complete(whole_parser(), shell))
    return 0


def whole_parser() -> ArgumentParser:
    """Return a parser of all that can be typed, for shtab: the options of a verb are those that its help prints."""
    root = ArgumentParser("kanoclip")
    verbs = root.add_subparsers()
    of_components = {**_of_components("data"), **_of_components("model")}
    for name, verb in table.VERBS.items():
        one = verbs.add_parser(name, help=verb.about)
        actions = one.add_subparsers() if verb.actions else None
        for action, about in verb.actions.items():
            inner = actions.add_parser(action, help=about)  # type: ignore[union-attr]  # there are actions
            of_set = name == "data" and action != "list"
            if names := available("data") if of_set else shipped() if action == "show" else []:
                inner.add_argument("name", choices=names)
            _add(inner, _printed(name, action, *["surfaces"] * of_set), "")
        if name == "list":
            one.add_argument("kind", choices=[*NAMES, "configs"], nargs="*")
        elif name == "completion":
            one.add_argument("shell", choices=list(PLACES))
        elif name in RUNS:
            one.add_argument("photos", nargs="?").complete = shtab.FILE  # type: ignore[attr-defined]  # is shtab's way
            _add(one, {**of_components, **_printed(name, "--help", "all"), **_printed(name)}, "")
        elif not verb.actions:
            _add(one, _printed(name), "benchmarks/" if name == "benchmark" else "")
    return root


def _printed(*words: str) -> Values:
    """Return the options that a help prints, and the values that it says they have."""
    with redirect_stdout(io.StringIO()) as said, suppress(SystemExit):
        table.main([*words, *([] if "--help" in words else ["--help"])])
    found = re.findall(
        r"^ {2,4}(?:-\w(?: \w+)?, )?(--[\w.]+)(?: \[?\{([\w,]+)\}| (true\|false))?", said.getvalue(), re.M
    )
    return {option: re.findall(r"\w+", braced or barred) for option, braced, barred in found if option != "--help"}


def _of_components(kind: str) -> Values:
    """Return the options of all data sets, or of all models, that ship."""
    found: dict[str, Sequence[str]] = {f"--{kind}": ()}
    for name in available(kind):
        parser = jsonargparse.ArgumentParser()
        parser.add_class_arguments(load_class(NAMES[kind][name]), fail_untyped=False)
        for option, default in parser.get_defaults(skip_validation=True).as_dict().items():
            found[f"--{kind}.{option}"] = ("true", "false") if isinstance(default, bool) else ()
    return found


def _add(parser: ArgumentParser, options: Values, folder: str) -> None:
    """Add options with what completes their values: names, of configs those in a folder, or paths."""
    for option, given in options.items():
        kind, values = kind_of(option), TRAINER.get(option, given)
        if option == "--config":
            values = [one.removeprefix(folder) for one in configs.names() if one.startswith(folder)]
        elif kind:
            values = available(kind)
        added: Any = parser.add_argument(option, choices=values or None)
        if option in ("--config", "--data"):
            added.complete = _names_and_files(parser.prog, option, values)
        elif option.rpartition(".")[2].removeprefix("--") in PATHS:
            added.complete = shtab.FILE


def _names_and_files(prog: str, option: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what shtab takes for a value that is a name or a path: a function of each shell."""
    function, words = re.sub(r"\W+", "_", f"_{prog}_file_{option}"), " ".join(names)
    return {
        "bash": function,
        "zsh": function,
        "fish": f"(string split ' ' '{words}'; __fish_complete_path (commandline -ct))",
        "preamble": {
            "bash": f'{function}() {{ compgen -W "{words}" -- "$1"; compgen -f -- "$1"; }}',
            "zsh": f'{function}() {{ _alternative "names:name:({words})" "paths:path:_files"; }}',
        },
    }
