"""Command lines and configs: short names out, one-line errors in."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

from kanoclip.registry import NAMES, expand, expand_argv

DEFAULT_MODEL = NAMES["model"]["kanoclip"]


class UsageError(ValueError):
    """A command line or config that does not parse."""


def prepare(argv: Sequence[str]) -> list[str]:
    """Expand short names and put the default model first.

    The default model is a token on the command line, not a default of the parser: that would lend its settings to any
    other model. And a class chosen on the command line is cleared first, as it would inherit the settings of the class
    in the config that happen to have the same names.
    """
    verb, options = argv[0], expand_argv(argv[1:])
    loader = get_loader("yaml")
    set_loader("kanoclip", lambda text: expand(loader(text)))
    set_dumper("kanoclip", lambda data: yaml.safe_dump(data, sort_keys=False))
    configs = [read_config(path) for path in _values(options, "--config", "-c")]
    named = [config["model"] for config in configs if config.get("model")]
    chosen = _values(options, "--model", "--model.class_path") or [
        model for model in named if isinstance(model, str) or "class_path" in model
    ]
    prepared = [verb] if chosen else [verb, f"--model={DEFAULT_MODEL}"]
    for option in options:
        key = option.partition("=")[0]
        if configs and key in ("--model", "--data"):
            prepared.append(f"{key}=null")
        prepared.append(option)
    return prepared


def shorten(message: str, argv: Sequence[str]) -> str:
    """Turn a parser's report into one line: which option, what is wrong with it, and what there is instead.

    Args:
        message: The report, many lines with every type that was tried.
        argv: What was parsed, to name the options of the class at hand.
    """
    tried = r"^(Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but)"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    keys = [match[1] for line in lines if (match := re.match(r'Parser key "(.+)":', line))]
    said = [line for line in lines if line and not line.startswith("Parser key") and not re.match(tried, line)]
    option, text = ".".join(keys), "; ".join(dict.fromkeys(said))
    if "is abstract" in text:
        kind = option.rpartition(".")[2]
        names = ", ".join(NAMES.get(kind, {}))
        return f"Options of {option} are given but not which {kind}. Put --{option} NAME before them: {names}."
    if match := re.search(r"Option '([\w.]+)' is not accepted", text):
        accepted = _accepted(option, argv)
        close = get_close_matches(match[1], accepted, 1)
        hint = f" Did you mean --{option}.{close[0]}?" if close else ""
        return f"Unknown option --{option}.{match[1]}.{hint} Accepted: {', '.join(accepted) or 'see --help'}."
    if match := re.match(r"(?i)unrecognized arguments: (.+)", text):
        return f"Unknown option {match[1]}. Options begin with --data, --model or --trainer; see kanoclip fit --help."
    return f"--{option}: {text}" if option else text


def mistake(error: BaseException, argv: Sequence[str]) -> str | None:
    """Put a mistake of the caller into words; None for a fault of the program.

    The parser wraps what a constructor raises, so causes are looked through, outermost first.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return shorten(str(cause), argv)
        frames = traceback.extract_tb(cause.__traceback__)
        ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
        if ours and isinstance(cause, (ValueError, OSError, RuntimeError)):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _accepted(option: str, argv: Sequence[str]) -> list[str]:
    """Return the options of the class that was chosen for ``model``, ``data`` or one of their components."""
    paths = [path for path in _values(argv, f"--{option}") if "." in path]
    for config in map(read_config, _values(argv, "--config", "-c")):
        section: Any = config
        for key in option.split("."):
            section = section.get("init_args", section).get(key, {}) if isinstance(section, dict) else {}
        paths.insert(0, section.get("class_path", "") if isinstance(section, dict) else section)
    if option == "model":
        paths.insert(0, DEFAULT_MODEL)
    if not paths or not paths[-1]:
        return []
    module, _, name = paths[-1].rpartition(".")
    chosen = getattr(import_module(module), name)
    names = [
        key for cls in chosen.__mro__ if "__init__" in vars(cls) for key in inspect.signature(cls.__init__).parameters
    ]
    return [key for key in dict.fromkeys(names) if key not in ("self", "args", "kwargs")]


def read_config(path: str) -> dict[str, Any]:
    """Read a config with names expanded, so that a wrong name is told with its file."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"No config at {path} ({error.strerror}). Configs that ship are in configs/.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return expand(content, f" in {path}") or {}


def _values(options: Sequence[str], *names: str) -> list[str]:
    """Return the values of an option, whether given as ``--x value`` or ``--x=value``."""
    pairs = [(option.partition("=")) for option in options]
    after = [*options[1:], ""]
    return [v if equals else after[i] for i, (name, equals, v) in enumerate(pairs) if name in names]


def take_checkpoint(argv: list[str]) -> tuple[list[str], Any]:
    """Split ``--ckpt_path`` off: LightningCLI would let a checkpoint overrule the options without a word."""
    given = _values(argv, "--ckpt_path")
    left, skip = [], False
    for option in argv:
        if skip:
            skip = False
        elif option.partition("=")[0] == "--ckpt_path":
            skip = "=" not in option
        else:
            left.append(option)
    return left, given[-1] if given else None
