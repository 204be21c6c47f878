"""The short help: on one screen, true to the parser, with an example that runs as typed."""

import inspect
import re
from contextlib import suppress

import pytest

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.data.base import AnomalyDataModule
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.registry import NAMES
from kanoclip.verbs.arguments import DEFAULT_MODEL, prepare
from kanoclip.verbs.calibrate import CalibrateCLI
from kanoclip.verbs.help import GROUPS, RUNS
from kanoclip.verbs.run import KanoclipCLI
from kanoclip.verbs.table import VERBS, main

ACTIONS = [f"{name} {action}" for name, verb in VERBS.items() for action in verb.actions]


def say(capsys, *typed: str) -> str:
    with suppress(SystemExit):  # by which argparse's own help ends
        assert main(typed) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("typed", [*VERBS, *ACTIONS])
def test_the_help_of_each_verb_fits_a_screen(typed: str, capsys) -> None:
    said = say(capsys, *typed.split(), "--help")
    lines = said.splitlines()
    assert 0 < len(lines) <= 60
    assert max(map(len, lines)) <= 100
    assert (VERBS[typed].example if typed in VERBS else "") in said


def test_help_all_is_what_the_parser_knows(capsys) -> None:
    short, whole = say(capsys, "fit", "--help"), say(capsys, "fit", "--help", "all")
    assert whole.startswith("usage: kanoclip [options] fit ")  # not as which file Python runs it
    assert "--trainer.gradient_clip_val" not in short
    assert "--trainer.gradient_clip_val" in whole
    assert "--trainer.max_epochs N" in short
    assert "--processes" in say(capsys, "benchmark", "--help", "all")


def test_the_whole_help_is_kanoclips_however_it_was_started(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/kanoclip/__main__.py"])
    for verb in RUNS:
        said = say(capsys, verb, "--help", "all")
        assert f"usage: kanoclip [options] {verb} " in said
        assert "__main__" not in said


def test_the_help_of_benchmark_is_short_and_names_all_its_options(capsys) -> None:
    short, whole = say(capsys, "benchmark", "--help"), say(capsys, "benchmark", "--help", "all")
    assert "usage:" not in short
    assert "  --root PATH  " in short
    shown, known = (set(re.findall(r"--(\w+)", said)) for said in (short, whole.partition("options:")[2]))
    assert shown == known - {"help", "dry"}  # --dry-run is another spelling


def test_test_and_predict_say_of_each_option_what_it_does_there(capsys) -> None:
    test, predict = (" ".join(say(capsys, verb, "--help").split()) for verb in ("test", "predict"))
    assert "--output FOLDER folder to write into, instead of a new one below --trainer.default_root_dir --" in test
    assert "--trainer.default_root_dir; into that of one that was stopped it goes on --" in predict
    for said in (test, predict):
        assert "--model.memory NAME none, patches, labelled" in said
        assert "--model.sigma X" in said


class Built(Exception):
    """The parser is built."""


@pytest.mark.parametrize("verb", RUNS)
def test_options_and_defaults_are_the_parsers(verb: str, monkeypatch) -> None:
    def stop(self, parser, args):
        raise Built

    built, add = [], KanoclipCLI.add_arguments_to_parser
    kind = CalibrateCLI if verb == "calibrate" else KanoclipCLI
    monkeypatch.setattr(KanoclipCLI, "parse_arguments", stop)
    monkeypatch.setattr(
        KanoclipCLI, "add_arguments_to_parser", lambda self, parser: (built.append(parser), add(self, parser))
    )
    with pytest.raises(Built):
        kind(prepare([verb, "--help"]))
    defaults = built[0].get_defaults()
    shown = {one.option: one.default for group in GROUPS.values() for one in group if verb in one.verbs}
    for option in shown.keys() - {"config", "print_config", "model"}:
        if option.split(".")[0] not in ("data", "model"):
            assert option in defaults
            assert defaults[option] == shown[option], option
    rare = {"trainer", "weights_only", "verbose", "return_predictions", "optimizer", "lr_scheduler"}
    assert {name for name in defaults.keys() if "." not in name} - rare <= shown.keys()  # noqa: SIM118  # is no dict


def test_options_and_defaults_are_those_of_the_classes() -> None:
    shown = {one.option: one.default for group in GROUPS.values() for one in group}
    assert NAMES["model"][shown.pop("model")] == DEFAULT_MODEL
    assert shown.pop("model.backbone") == "clip"
    given = {
        "data": inspect.signature(AnomalyDataModule).parameters,
        "model.backbone": inspect.signature(CLIPBackbone).parameters,
        "model": inspect.signature(KAnoCLIP).parameters,
    }
    assert isinstance(None, type(given["model"]["backbone"].default))  # null: CLIPBackbone, as KAnoCLIP has it
    for option, default in shown.items():
        section, _, name = option.rpartition(".")
        if section not in given:
            continue
        if own := getattr(KAnoCLIP, f"own_{name}", None):
            assert NAMES[name][default] == f"{own.__module__}.{own.__qualname__}"
        else:
            assert given[section][name].default == default, option


def test_the_examples_run_as_typed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in ("fit", "validate", "test", "predict"):
        assert main(VERBS[verb].example.split()[1:]) == 0, verb
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["fit", "predict", "test", "validate"]
