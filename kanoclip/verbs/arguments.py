"""Command lines and configs: short names out, in order, and a parser's report in one line. Nothing here needs torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_dumper, set_loader

from kanoclip.data.parsing import NAMED, UnreadableTextError, read_yaml
from kanoclip.registry import LISTS, NAMES, WHICH_DATA, did_you_mean, expand, load_class
from kanoclip.verbs.configs import find
from kanoclip.verbs.options import names
from kanoclip.verbs.words import Pair, UsageError, expand_argv, pairs_of, paths_as_folder

DEFAULT_MODEL = NAMES["model"]["kanoclip"]
CONFIG = ("--config", "-c")
SECTIONS = ("data", "model", "trainer", "optimizer", "lr_scheduler", "config", "ckpt_path", "seed_everything",
            "print_config", "help")  # fmt: skip
CALIBRATION = ("max_fpr", "min_area", "holdout", "output")
RARE = ("verbose", "weights_only", "return_predictions")  # options of Lightning that no message need mention
Config = dict[str, Any]


@dataclass(frozen=True)
class CommandLine:
    """What was typed, split and put into order once.

    Attributes:
        verb: fit, validate, test or predict.
        options: Each in one word with its value, names expanded, in the order in which a parser must read them.
        configs: Path of each config -> its content, names expanded.
        model: Import path of the model that is asked for; None: none is.
        checkpoint: The ``--ckpt_path``, typed or else of a config. The parser never sees it: LightningCLI would let it
            overrule the options without a word.
        print_config: The option ``--print_config`` with its flags; None if it was not typed.
    """

    verb: str
    options: list[str]
    configs: dict[str, Config] = field(default_factory=dict)
    model: str | None = None
    checkpoint: str | None = None
    print_config: str | None = None

    def words(self, fitted: Config | None = None) -> list[str]:
        """Return the words to parse.

        Args:
            fitted: The model of a checkpoint, ``{"class_path": ..., "init_args": ...}``. It stands in for the default
                model, and for the class that is asked for if that is the same, so that options which were not typed
                are those of the checkpoint.
        """
        standing = f"--model={json.dumps(fitted or {'class_path': DEFAULT_MODEL})}"
        path = (fitted or {}).get("class_path", "")
        typed, same = f"--model={self.model}", bool(path) and self.model in (path, path.rpartition(".")[2])
        if same and typed in self.options:
            return [self.verb, *(standing if word == typed else word for word in self.options)]
        return [self.verb, *([standing] if same or self.model is None else []), *self.options]


def prepare(argv: Sequence[str]) -> CommandLine:
    """Expand short names, read the configs, bring the options into order.

    Configs come first and a class comes before its own settings, in whatever order they were typed, so that what is
    typed always wins over what is in a file. The default model is a word on the command line, not a default of the
    parser: that would lend its settings to any other model. And a class chosen on the command line is cleared first,
    as it would inherit the settings of the class in the config that happen to have the same names: its levels and
    image size do not fit another backbone. Where the levels are read is the method's, so that stays.

    Raises:
        UnknownNameError: For a name that is not registered; tells the file if it is in one.
        UsageError: For a config that cannot be read, an option that surely does not exist or has no value, a stray
            word, or no data set.
    """
    verb, pairs = argv[0], pairs_of(expand_argv(paths_as_folder(argv[1:])))
    set_loader("kanoclip", lambda text: expand(read_yaml(text, "it")), (UnreadableTextError,))
    set_dumper("kanoclip", lambda data: yaml.safe_dump(data, sort_keys=False))
    asks = any(key in ("-h", "--help") or key.endswith(".help") for key, _ in pairs)
    sections = (*SECTIONS, *names(verb), *(CALIBRATION if verb == "calibrate" else ()))
    for key, value in pairs:
        _check_option(key, value, sections)
    pairs = [(key, find(value) if key in CONFIG and value else value) for key, value in pairs]
    configs = {path: _checked(path, read_config(path), sections) for key, path in pairs if key in CONFIG and path}
    typed = [(key.removesuffix(".class_path"), _expand_value(key, value)) for key, value in pairs]
    typed = [pair for pair in typed if pair != ("--model", "null")]  # none is asked for
    printed = next((_word(pair) for pair in typed if pair[0] == "--print_config"), None)
    given = any(config.get("data") for config in configs.values()) or any(_parts(key) == ["data"] for key, _ in typed)
    if not given and not asks and printed is None:
        raise UsageError(f"{verb} needs a data set: add --data NAME. {WHICH_DATA}")
    options: list[str] = []
    for pair in sorted(typed, key=lambda pair: _rank(pair[0])):
        other = _other_backbone(pair, configs) if "--model" not in dict(typed) else {}
        if configs and (pair[0] in ("--model", "--data") or other):
            options.append(f"{pair[0]}=null")
        if pair[0] not in ("--ckpt_path", "--print_config"):
            options.append(_word(pair))
        if pair[1] in NAMES["backbone"].values() and "levels_at" in other:
            options.append(f"{pair[0]}.levels_at={other['levels_at']}")
    if any("ckpt_path" in config for config in configs.values()):
        options.append("--ckpt_path=null")
    models = [_class_path(one) for one in _given("model", configs, typed)]
    checkpoints = [str(one) for one in _given("ckpt_path", configs, typed) if one not in (None, "null")]
    model = next((one for one in reversed(models) if one), None)
    return CommandLine(verb, options, configs, model, checkpoints[-1] if checkpoints else None, printed)


def _given(key: str, configs: Mapping[str, Config], typed: Sequence[Pair]) -> list[Any]:
    """Return the values of a key in configs, then those that were typed: the last one counts."""
    return [*(one.get(key) for one in configs.values()), *(value for name, value in typed if name == f"--{key}")]


def _other_backbone(pair: Pair, configs: Mapping[str, Config]) -> Config:
    """Return the backbone of a config if one of another class was typed; else nothing."""
    given = [_inside(one, "model.backbone") for one in configs.values() if _parts(pair[0]) == ["model", "backbone"]]
    found = [one for one in given if isinstance(one, dict) and _class_path(one) not in (None, _class_path(pair[1]))]
    return {**found[-1], **(found[-1].get("init_args") or {})} if found else {}


def _class_path(model: Any) -> str | None:
    """Return which class a model's section or the value of ``--model`` names, if it names one."""
    if isinstance(model, str) and model.lstrip().startswith("{"):
        model = json.loads(model)
    found = model.get("class_path") if isinstance(model, dict) else model
    return found if isinstance(found, str) and found != "null" else None


def read_config(path: str, kind: str | None = None) -> Config:
    """Read a config, or the file of one component, with names expanded; a wrong name is told with its file.

    Raises:
        UnknownNameError: For a name that is not registered.
        UsageError: If the file is missing, is not YAML or is no mapping.
    """
    try:
        content = read_yaml(Path(path).read_bytes(), path) or {}
    except OSError as error:
        raise UsageError(f"No config at {path} ({error.strerror}). Those that ship: kanoclip list configs.") from error
    except UnreadableTextError as error:
        raise UsageError(str(error)) from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} should hold keys such as data, model and trainer, got {str(content)[:40]!r}.")
    return dict(expand(content, f" in {path}", kind))


def explain(report: str, command: CommandLine) -> str:
    """Turn a parser's report into one line: which option, what is wrong with it, and what there is instead.

    Args:
        report: Many lines, with every type that was tried.
        command: What was parsed, to tell a key's file and to name the options of the class at hand.
    """
    tried = r"^(Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but)"
    lines = [line.strip().removeprefix("- ") for line in report.splitlines()]
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
    for pattern in (
        r"Option '(?P<name>[\w.]+)' is not accepted",
        r"Group '(?P<group>\w+)' does not accept option '(?P<name>[\w.]+)'",
        r"Subcommand '\w+' does not accept option '(?P<group>\w+)\.(?P<name>[\w.]+)'",
        r"(?i)unrecognized arguments: --(?P<group>\w+)\.(?P<name>[\w.]+)",
    ):
        if match := re.search(pattern, text):
            group = match.groupdict().get("group") or option
            if group in ("optimizer", "lr_scheduler") and not _chosen(group, command):
                return (
                    f"Options of {group} are given but not which. Put --{group} NAME before them; Adam's is --model.lr."
                )
            return _unknown(group, match["name"], _accepted(group, command), command)
    return f"--{option}: {_shown(text, report)}" if option else text


def _shown(text: str, report: str) -> str:
    """Write the choices of an option as one list, and say what was given."""
    if choices := re.findall(r"Expected a typing\.Literal\[(.*?)\]", text):
        text = "Expected one of " + ", ".join(dict.fromkeys(", ".join(choices).replace("'", "").split(", ")))
    given = re.search(r"(?:Got|Given) value: (?!NestedArg)(.*)", report)
    return text if not given or "value: " in text or "import path" in text else f"{text}. Got value: {given[1]}"


def _unknown(group: str, name: str, accepted: Sequence[str], command: CommandLine | None = None) -> str:
    """Say that an option, or a key of a config, does not exist."""
    key = f"{group}.{name}" if group else name
    file = _file_of(key, command) if command else None
    if file and command and name == "class_path":
        beside = min(set(command.configs[file][group]) - {"class_path", "init_args", "dict_kwargs"})
        return f"{file}: {group}.{beside} stands beside class_path. Put it under {group}.init_args."
    dashes, what, start = ("", "key", f"{file}: ") if file else ("--", "option", "")
    close = get_close_matches(name.partition(".")[0], accepted, 1)
    hint = f" Did you mean {dashes}{group + '.' if group else ''}{close[0]}?" if close else ""
    return f"{start}Unknown {what} {dashes}{key}.{hint} Accepted: {', '.join(accepted) or 'see --help'}."


def _file_of(key: str, command: CommandLine) -> str | None:
    """Return the config that has a key, unless it was typed."""
    if any(".".join(_parts(word.partition("=")[0])) == key for word in command.options):
        return None
    return next((path for path, config in command.configs.items() if _inside(config, key) is not None), None)


def _inside(config: Config, key: str) -> Any:
    """Return what a config has under a dotted key, whether it stands below ``init_args`` or not."""
    found: Any = config
    for part in key.split("."):
        found = {**found, **(found.get("init_args") or {})}.get(part) if isinstance(found, dict) else None
    return found


def _accepted(group: str, command: CommandLine) -> list[str]:
    """Return the options of the class that was chosen for ``model``, ``data`` or one of their components."""
    path = "lightning.pytorch.Trainer" if group == "trainer" else _chosen(group, command)
    if "." not in path:  # none, or a bare class name, which the parser alone can find
        return [] if group else [*SECTIONS, *names(command.verb)]
    parser = ArgumentParser()
    parser.add_class_arguments(load_class(path), fail_untyped=False)
    return list(parser.get_defaults(skip_validation=True).as_dict())


def _chosen(group: str, command: CommandLine) -> str:
    """Return which class was chosen for a group; "" for none."""
    typed = [v for k, _, v in (word.partition("=") for word in command.options) if ".".join(_parts(k)) == group]
    sections = [*(_inside(config, group) for config in command.configs.values()), *typed]
    default = DEFAULT_MODEL if group == "model" else ""
    return next((found for one in reversed(sections) if (found := _class_path(one))), default)


def _check_option(key: str, value: str | None, sections: Sequence[str]) -> None:
    """Raise if a word is no option, surely does not exist or has no value; the rest is left to the parser."""
    if not key.startswith("-"):
        hint = f" Did you mean --data {key}?" if key in NAMES["data"] else ""
        raise UsageError(f"{key!r} is not an option. Options begin with --.{hint}")
    section = _parts(key)[0].removesuffix("+")
    if key.startswith("--") and section not in (*sections, *RARE):
        raise UsageError(_unknown("", ".".join(_parts(key)), sections))
    if value is None and not re.search(r"^-h$|help$|^--print_config$", key):
        raise UsageError(f"{key} needs a value: {key} VALUE.")


def _checked(path: str, config: Config, sections: Sequence[str]) -> Config:
    """Return a config; raises if it has a section that does not exist, or a model that is none."""
    if config.get("model", "") is None:
        raise UsageError(f"{path}: model is null. Name one, such as kanoclip, or leave the key out.")
    for key in set(map(str, config)) - {*sections, *RARE}:
        raise UsageError(f"{path}: {_unknown('', key, sections).replace('option --', 'key ').replace('--', '')}")
    return config


def _word(pair: Pair) -> str:
    return pair[0] if pair[1] is None else f"{pair[0]}={pair[1]}"


def _parts(key: str) -> list[str]:
    """Return what an option sets: ``--model.init_args.adapter.class_path`` -> ``["model", "adapter"]``."""
    return [part for part in key.removeprefix("--").split(".") if part not in ("init_args", "class_path")]


def _rank(key: str) -> int:
    """Order options: configs, the trainer's file, data and model with their settings by depth, the rest as typed."""
    parts = _parts(key)
    if key in CONFIG or parts == ["trainer"]:
        return -1 if key in CONFIG else 0
    return len(parts) if key.startswith("--") and parts[0] in ("model", "data") and parts[-1] != "help" else 99


def _expand_value(key: str, value: str | None) -> str | None:
    """Expand names inside a component that is given as JSON or as the path of a file; read that of the trainer."""
    kind = _parts(key)[-1]
    if value and kind in NAMED and value.lstrip().startswith("["):
        return json.dumps(read_yaml(f"{kind}: {value}", key)[kind])
    if value and kind in LISTS and key.startswith("--"):
        return json.dumps(expand({kind: read_yaml(value, key)}, f" for {key}")[kind])
    if value is None or not key.startswith("--") or (kind not in NAMES and key != "--trainer"):
        return value
    if value.lstrip().startswith("{"):
        return json.dumps(expand(read_yaml(value, key), f" for {key}", kind if kind in NAMES else None))
    if key == "--trainer":
        return json.dumps(read_config(find(value, "trainer")))
    if key.endswith(".class_path") or not value.endswith((".yaml", ".yml", ".json")):
        return value
    return json.dumps(read_config(value, kind))
