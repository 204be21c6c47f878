"""Command lines and configs: short names out, one-line errors in."""

from __future__ import annotations

import errno
import json
import re
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

from kanoclip.registry import NAMES, arguments_of, did_you_mean, expand, expand_argv
from kanoclip.types import KanoclipError

DEFAULT_MODEL = NAMES["model"]["kanoclip"]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of the disk, the user's share, a file; read-only
DENIED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)  # the last two: a file where a folder should be
CONFIG = ("--config", "-c")
SECTIONS = ("data", "model", "trainer", "config", "ckpt_path", "seed_everything", "print_config", "help")
RARE = ("verbose", "weights_only", "return_predictions")  # options of Lightning that no message need mention


class UsageError(KanoclipError):
    """A command line or config that does not parse."""


def prepare(argv: Sequence[str]) -> list[str]:
    """Expand short names, bring the options into order and put the default model first.

    Configs come first and a class comes before its own settings, in whatever order they were typed, so that what is
    typed always wins over what is in a file. The default model is a token on the command line, not a default of the
    parser: that would lend its settings to any other model. And a class chosen on the command line is cleared first,
    as it would inherit the settings of the class in the config that happen to have the same names.

    Raises:
        UnknownNameError: For a name that is not registered; tells the file if it is in one.
        UsageError: For a config that cannot be read.
    """
    verb, options = argv[0], _pairs(expand_argv(argv[1:]))
    loader = get_loader("yaml")
    set_loader("kanoclip", lambda text: expand(loader(text)))
    set_dumper("kanoclip", lambda data: yaml.safe_dump(data, sort_keys=False))
    configs = [read_config(value) for key, value in options if key in CONFIG and value]
    options = [(key, _expand_value(key, value)) for key, value in options]
    prepared = [] if _names_model(options, configs) else [f"--model={DEFAULT_MODEL}"]
    for key, value in sorted(options, key=lambda option: _rank(option[0])):
        if configs and _parts(key) in (["model"], ["data"]):
            prepared.append(f"--{_parts(key)[0]}=null")
        prepared.append(key if value is None else f"{key}={value}")
    return [verb, *prepared]


def names_model(argv: Sequence[str]) -> bool:
    """Whether a command line or one of its configs says which model."""
    return _names_model(_pairs(argv[1:]), _configs(argv[1:]))


def _names_model(options: Sequence[tuple[str, str | None]], configs: Sequence[dict[str, Any]]) -> bool:
    named = [config["model"] for config in configs if config.get("model")]
    return any(_parts(key) == ["model"] for key, _ in options) or any(
        isinstance(model, str) or "class_path" in model for model in named
    )


def check(argv: Sequence[str]) -> None:
    """Find the mistakes that can be found without torch: names, options, configs and a data set that is not given.

    Raises:
        UnknownNameError: For a name that is not registered.
        UsageError: For an option that does not exist, a config that cannot be read, or no data set.
    """
    options = prepare(argv)[1:]
    pairs, configs = _pairs(options), _configs(options)
    for key, value in pairs:
        if not key.startswith("-"):
            raise UsageError(_stray(key))
        _check_option(key, options, configs)
        if value is None and not re.search(r"^-h$|help$|^--print_config$", key):
            raise UsageError(f"{key} needs a value: {key} VALUE.")
    for path, config in zip(filter(None, _values(options, *CONFIG)), configs, strict=True):
        _check_config(path, config)
    given = any(_parts(key) == ["data"] for key, _ in pairs) or any(config.get("data") for config in configs)
    if not given and not any(key in ("-h", "--help") or key.endswith((".help", "print_config")) for key, _ in pairs):
        raise UsageError(f"{argv[0]} needs a data set: add --data NAME, one of {', '.join(NAMES['data'])}.")


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
    option, text = ".".join(keys), "; ".join(dict.fromkeys(said)).replace(":; ", ": ")
    text = re.sub(r"an? <class '(\w+)'>", r"\1", text)
    kind = option.rpartition(".")[2]
    if match := re.search(r"Expected a dot import path string: (\S+)", text):
        hint = did_you_mean(match[1].lower(), NAMES.get(kind, {}))
        return f"--{option}: {match[1]!r} is no name and no import path like my_lab.X.{hint}"
    if "is abstract" in text:
        names = ", ".join(NAMES.get(kind, {}))
        return f"Options of {option} are given but not which {kind}. Put --{option} NAME before them: {names}."
    if match := re.search(r"the following arguments are required: ([\w.]+)", text):
        needed = f"--{option}.{match[1]}" if option else f"--{match[1]}"
        return f"{needed} is missing: add {needed} VALUE."
    if match := re.search(r"Option '([\w.]+)' is not accepted", text):
        return _unknown(f"{option}.", match[1], _accepted(option, argv, _configs(argv)))
    if match := re.search(r"Group '(trainer)' does not accept option '([\w.]+)'", text):
        return _unknown("trainer.", match[2], _accepted("trainer", argv, []))
    if match := re.match(r"(?i)unrecognized arguments: (--)?([\w.]+)", text):
        return _unknown("", match[2], SECTIONS) if match[1] else _stray(match[2])
    return f"--{option}: {text}" if option else text


def mistake(error: BaseException, argv: Sequence[str]) -> str | None:
    """Put a mistake of the caller into words; None for a fault of the program.

    The parser wraps what a constructor raises, so causes are looked through, outermost first.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return shorten(str(cause), argv)
        if isinstance(cause, OSError) and cause.errno in FULL:
            where = cause.filename or "into the folder of the run"
            return f"Cannot write {where}: {cause.strerror}. Free the disk or choose --trainer.default_root_dir."
        if isinstance(cause, OSError) and cause.errno in DENIED and cause.filename:
            place = "Allow it, or choose another place; runs are written to --trainer.default_root_dir"
            return f"Cannot use {cause.filename}: {cause.strerror}. {place}."
        frames = traceback.extract_tb(cause.__traceback__)
        raiser = Path(frames[-1].filename) if frames else Path()
        if raiser.is_relative_to(Path(__file__).parent) and isinstance(cause, (ValueError, OSError, RuntimeError)):
            return str(cause)
        refused = re.search(r"lightning.*/connector", raiser.as_posix())  # where Lightning looks at what it was given
        if refused or type(cause).__name__ == "MisconfigurationException":
            return f"--trainer: {' '.join(str(cause).split())}"
        cause = cause.__cause__ or cause.__context__
    return None


def _check_option(key: str, argv: Sequence[str], configs: Sequence[dict[str, Any]]) -> None:
    """Raise if an option surely does not exist; what is not sure is left to the parser."""
    if not key.startswith("--"):
        return
    parts = [part.removesuffix("+") for part in _parts(key)]
    if parts[0] not in (*SECTIONS, *RARE):
        raise UsageError(_unknown("", ".".join(parts), SECTIONS))
    for depth in range(1, len(parts)):
        group = ".".join(parts[:depth])
        accepted = _accepted(group, argv, configs)
        if accepted and parts[depth] not in (*accepted, "help", "dict_kwargs"):
            raise UsageError(_unknown(f"{group}.", parts[depth], accepted))


def _check_config(path: str, config: dict[str, Any]) -> None:
    """Raise if a config has a key that surely does not exist, and tell the file."""
    for key in _keys(config):
        try:
            _check_option(f"--{key}", [], [config])
        except UsageError as error:
            raise UsageError(f"{path}: {str(error).replace('option --', 'key ').replace('--', '')}") from error
    for group in ("data", "model"):
        section: Any = config.get(group)
        beside = set(section) - {"class_path", "init_args", "dict_kwargs"} if isinstance(section, dict) else set()
        if beside and "class_path" in section:
            raise UsageError(f"{path}: {group}.{min(beside)} stands beside class_path. Put it under {group}.init_args.")


def _keys(config: Any, group: str = "") -> list[str]:
    """List the keys of a config with their settings, dotted as on a command line; of the trainer the first level."""
    keys: list[str] = []
    for key, value in config.items():
        inside = value.get("init_args", {} if "class_path" in value else value) if isinstance(value, dict) else None
        keys.append(f"{group}{key}")
        if isinstance(inside, dict) and not group.startswith("trainer."):
            keys += _keys(inside, f"{group}{key}.")
    return keys


def _stray(word: str) -> str:
    hint = f" Did you mean --data {word}?" if word in NAMES["data"] else ""
    return f"{word!r} is not an option. Options begin with --.{hint}"


def _unknown(group: str, name: str, accepted: Sequence[str]) -> str:
    close = get_close_matches(name.partition(".")[0], accepted, 1)
    hint = f" Did you mean --{group}{close[0]}?" if close else ""
    return f"Unknown option --{group}{name}.{hint} Accepted: {', '.join(accepted) or 'see --help'}."


def _accepted(option: str, argv: Sequence[str], configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the options of the class that was chosen for ``model``, ``data`` or one of their components."""
    if option == "trainer":
        return arguments_of("lightning.pytorch.trainer.trainer.Trainer")
    paths = [path for path in _values(argv, f"--{option}") if "." in path]
    for config in configs:
        section: Any = config
        for key in option.split("."):
            section = section.get("init_args", section).get(key, {}) if isinstance(section, dict) else {}
        path = section.get("class_path") if isinstance(section, dict) else section
        paths.insert(0, path if isinstance(path, str) else "")
    if option == "model":
        paths.insert(0, DEFAULT_MODEL)
    if not paths or not paths[-1]:
        return []
    return arguments_of(paths[-1])


def _configs(argv: Sequence[str]) -> list[dict[str, Any]]:
    return [read_config(path) for path in _values(argv, *CONFIG) if path]


def read_config(path: str, kind: str | None = None) -> dict[str, Any]:
    """Read a config, or the file of one component, with names expanded; a wrong name is told with its file.

    Raises:
        UnknownNameError: For a name that is not registered.
        UsageError: If the file is missing, is not YAML or is no mapping.
    """
    try:
        content = get_loader("yaml")(Path(path).read_text(encoding="utf-8")) or {}  # 1e-3 is a number, as when parsed
    except OSError as error:
        raise UsageError(f"No config at {path} ({error.strerror}). Configs that ship are in configs/.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} should hold keys such as data, model and trainer, got {str(content)[:40]!r}.")
    return dict(expand(content, f" in {path}", kind))


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Split a command line into options and values; None for an option without a value or a stray word."""
    pairs: list[tuple[str, str | None]] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.startswith("-") and equals:
            pairs.append((key, value))
        elif pairs and pairs[-1][0].startswith("-") and pairs[-1][1] is None and not _is_option(argument):
            pairs[-1] = (pairs[-1][0], argument)
        else:
            pairs.append((argument, None))
    return pairs


def _is_option(argument: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", argument))


def _parts(key: str) -> list[str]:
    """Return what an option sets: ``--model.init_args.adapter.class_path`` -> ``["model", "adapter"]``."""
    return [part for part in key.removeprefix("--").split(".") if part not in ("init_args", "class_path")]


def _rank(key: str) -> int:
    """Order options: configs, the trainer's file, data and model with their settings by depth, the rest as typed."""
    if key in CONFIG:
        return 0
    parts = _parts(key)
    if parts == ["trainer"]:
        return 1
    return len(parts) if key.startswith("--") and parts[0] in ("model", "data") and parts[-1] != "help" else 99


def _expand_value(key: str, value: str | None) -> str | None:
    """Expand names inside a component that is given as JSON or as the path of a file; read that of the trainer."""
    kind = _parts(key)[-1] if _parts(key) else ""
    if key == "--trainer" and value and not value.lstrip().startswith("{"):
        return json.dumps(read_config(value))
    if value is None or not key.startswith("--") or kind not in NAMES or key.endswith(".class_path"):
        return value
    if value.lstrip().startswith("{"):
        return json.dumps(expand(get_loader("yaml")(value), f" for {key}", kind))
    return json.dumps(read_config(value, kind)) if value.endswith((".yaml", ".yml", ".json")) else value


def _values(options: Sequence[str], *names: str) -> list[str]:
    """Return the values of an option, whether given as ``--x value`` or ``--x=value``."""
    return [value for key, value in _pairs(options) if key in names and value is not None]


def take_checkpoint(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Take the checkpoint out, also a config's: LightningCLI would let it overrule the options without a word.

    Args:
        argv: As ``prepare`` returns it: each option in one word with its value.
    """
    inside = [str(path) for config in _configs(argv) if (path := config.get("ckpt_path"))]
    rest = [word for word in argv if word.partition("=")[0] != "--ckpt_path"]
    return [*rest, *(["--ckpt_path=null"] if inside else [])], [None, *inside, *_values(argv, "--ckpt_path")][-1]
