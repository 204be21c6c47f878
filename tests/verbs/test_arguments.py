"""What is typed, and what the parser makes of it: the traps of LightningCLI that this project stepped around."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
from jsonargparse import Namespace

from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.registry import UnknownNameError
from kanoclip.types import KanoclipError
from kanoclip.verbs.arguments import UsageError, prepare
from kanoclip.verbs.build import Parser
from kanoclip.verbs.run import KanoclipCLI
from kanoclip.verbs.say import mistake
from kanoclip.verbs.table import main

CONFIG = """
data: {class_path: mvtec, init_args: {root: /d, category: bottle, batch_size: 3}}
model:
  class_path: kanoclip
  init_args: {adapter: {class_path: conv, init_args: {reduction: 2}}, lr: 5e-1, temperature: 0.3}
"""


class Ablated(KAnoCLIP):
    """A model of one's own with other defaults."""

    name = "ablated"

    def __init__(self, lr: float = 5e-4, temperature: float = 0.5) -> None:
        super().__init__(lr=lr, temperature=temperature)


class ParseOnly(KanoclipCLI):
    """Parses as the command does, and builds nothing."""

    def before_instantiate_classes(self) -> None:
        """Look for no fit."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Ask the model nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def parse(*argv: str) -> Namespace:
    return ParseOnly(prepare(argv)).config[argv[0]]


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return str(tmp_path / "mine.yaml")


def test_the_default_model_lends_nothing_to_another_model() -> None:  # T1
    other = parse("fit", "--data", "surfaces", "--model", f"{__name__}.Ablated").model
    assert (other.init_args.lr, other.init_args.temperature) == (5e-4, 0.5)
    default = parse("fit", "--data", "surfaces", "--model.sigma", "2").model
    assert default.class_path == "kanoclip.models.kanoclip.KAnoCLIP"
    assert (default.init_args.lr, default.init_args.sigma) == (1e-3, 2)


@pytest.mark.parametrize("spelling", ["--data {}", "--data={}", "--data.class_path {}", "--data.class_path={}"])
def test_a_data_set_chosen_on_the_command_line_inherits_nothing_from_the_config(config, spelling) -> None:  # T2
    data = parse("fit", "--config", config, *spelling.format("surfaces").split()).data
    assert data.class_path == "kanoclip.data.drawn.surfaces.Surfaces"
    assert (data.init_args.root, data.init_args.category, data.init_args.batch_size) == ("data", None, 8)


def test_a_model_chosen_on_the_command_line_inherits_nothing_from_the_config(config) -> None:  # T2
    tree = parse("fit", "--config", config, "--model", "clip_vv")
    assert (tree.model.init_args.lr, tree.model.init_args.temperature) == (1e-3, 0.07)
    assert tree.data.init_args.root == "/d"  # not asked to change


def test_what_is_typed_wins_over_the_config_in_any_order(config) -> None:
    one = parse("fit", "--config", config, "--data", "surfaces", "--data.images", "5", "--model.lr", "1e-2")
    two = parse("fit", "--data.images=5", "--model.lr=1e-2", "--data", "surfaces", "-c", config)
    assert one.data == two.data
    assert one.model == two.model
    assert (one.data.init_args.images, one.model.init_args.lr, one.model.init_args.temperature) == (5, 1e-2, 0.3)


def test_a_component_keeps_settings_of_the_config_that_it_also_has(config) -> None:  # T2, nested: by design
    adapter = parse("fit", "--config", config, "--model.adapter", "linear").model.init_args.adapter
    assert adapter.class_path == "kanoclip.heads.adapter.LinearAdapter"
    assert adapter.init_args.reduction == 2


def test_another_backbone_has_its_own_levels_and_size_and_reads_where_the_method_does() -> None:
    for rival, levels_at in (("adaclip", "block"), ("cops", "norm"), ("aa_clip", "joint")):
        for given in ("embedded", "{class_path: embedded, init_args: {levels_at: norm}}"):
            backbone = parse("fit", "--config", f"rivals/{rival}", "--model.backbone", given).model.init_args.backbone
            assert (backbone.init_args.levels, backbone.init_args.image_size) == (None, 128)
            assert backbone.init_args.levels_at == (levels_at if given == "embedded" else "norm")
    typed = ["--model.backbone", "embedded", "--model.backbone.levels", "[5]"]
    backbone = parse("fit", *typed, "--config", "rivals/cops", "--model.backbone.levels_at", "joint").model.init_args
    assert (backbone.backbone.init_args.levels, backbone.backbone.init_args.levels_at) == ([5], "joint")
    model = parse("fit", "--config", "rivals/cops", "--model", "kanoclip", "--model.backbone", "embedded").model
    assert model.init_args.backbone.init_args.levels_at == "joint"  # another method
    same = parse("fit", "--config", "rivals/cops", "--model.backbone", "clip").model.init_args.backbone.init_args
    assert (same.levels, same.levels_at) == ([24], "norm")  # what is not changed stays


def test_all_spellings_of_a_component_are_equal(tmp_path) -> None:
    sub = tmp_path / "adapter.yaml"
    sub.write_text("class_path: conv\ninit_args: {reduction: 8}\n")
    whole = tmp_path / "whole.yaml"
    whole.write_text("data: surfaces\nmodel: {adapter: {class_path: conv, init_args: {reduction: 8}}}\n")
    path = "kanoclip.heads.adapter.ConvAdapter"
    start = ("fit", "--data", "surfaces")
    found = [
        parse(*start, "--model.adapter", "conv", "--model.adapter.reduction", "8"),
        parse(*start, "--model.adapter.reduction=8", f"--model.adapter={path}"),
        parse(*start, "--model.init_args.adapter.class_path=conv", "--model.init_args.adapter.init_args.reduction=8"),
        parse(*start, "--model.adapter", "{class_path: conv, init_args: {reduction: 8}}"),
        parse(*start, "--model.adapter", str(sub)),
        parse("fit", "--config", str(whole)),
    ]
    assert all(tree.model == found[0].model for tree in found)
    assert found[0].model.init_args.adapter == Namespace(
        class_path=path, init_args=Namespace(reduction=8, scale=1.0, pool="mean", class_token=True)
    )


@pytest.mark.parametrize("spelling", ["mvtec", "MVTecAD", "kanoclip.data.sets.mvtec.MVTecAD"])
def test_a_data_set_goes_by_its_name_its_class_and_its_path(spelling) -> None:
    import kanoclip.data.sets.mvtec  # noqa: F401  # class names are known to the parser once imported

    data = parse("test", "--data", spelling, "--data.category", "[bottle, cable]").data
    assert data.class_path == "kanoclip.data.sets.mvtec.MVTecAD"
    assert data.init_args.category == ["bottle", "cable"]


def test_a_printed_config_says_the_same_again(config, tmp_path, capsys) -> None:  # T8
    with pytest.raises(SystemExit):
        parse("fit", "--config", config, "--print_config")
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert "class_path: kanoclip.heads.adapter.ConvAdapter" in printed.read_text()  # paths outlive names
    one, two = parse("fit", "--config", config), parse("fit", "--config", str(printed))
    assert (one.data, one.model, one.trainer) == (two.data, two.model, two.trainer)


def test_each_option_becomes_one_word() -> None:
    prepared = prepare(["test", "--model.lr", "-1", "--data", "surfaces", "--print_config"])
    assert prepared.options == ["--data=kanoclip.data.drawn.surfaces.Surfaces", "--model.lr=-1"]
    assert prepared.print_config == "--print_config"


def test_the_checkpoint_is_kept_from_the_parser() -> None:  # T4
    command = prepare(["test", "--ckpt_path=a.ckpt", "--data=visa"])
    assert command.options == ["--data=kanoclip.data.sets.visa.VisA"]
    assert command.checkpoint == "a.ckpt"
    assert prepare(["test", "--data=visa"]).checkpoint is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {class_path: kanoclip, init_args: {adapter: cnov}}", r"Unknown adapter 'cnov' in .*mine\.yaml\. Did"),
        ("data: mvtecc", r"Unknown data 'mvtecc' in .*mine\.yaml\. Did you mean 'mvtec'\?"),
        ("data: [", r"mine\.yaml is not YAML: .*line 2"),
        ("surfaces", r"mine\.yaml should hold keys such as data, model and trainer, got 'surfaces'"),
        ("seed_everything: 3", r"fit needs a data set: add --data NAME. For photos of your own: --data folder"),
        ("", r"fit needs a data set: add --data NAME"),
        ("dta: mvtec", r"mine\.yaml: Unknown key dta\. Did you mean data\? Accepted: data, model, trainer"),
    ],
)
def test_a_mistake_in_a_config_is_found_before_torch_is_loaded(tmp_path, text, expected) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises((UsageError, UnknownNameError), match=expected):
        prepare(["fit", "--config", str(tmp_path / "mine.yaml")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "data: {class_path: surfaces, init_args: {imges: 4}}",
            r"mine\.yaml: Unknown key data\.imges\. Did you mean data\.images\? Accepted: root, images, drawing_seed",
        ),
        (
            "model: {class_path: clip, init_args: {adapter: {class_path: conv, init_args: {scales: 1}}}}",
            r"mine\.yaml: Unknown key model\.adapter\.scales\. Did you mean model\.adapter\.scale\?",
        ),
        ("{data: mvtec, trainer: {max_epoch: 4}}", r"mine\.yaml: Unknown key trainer\.max_epoch\. Did .*max_epochs\?"),
        ("data: {class_path: surfaces, images: 4}", r"mine\.yaml: data\.images stands beside .* under data\.init_args"),
    ],
)
def test_a_key_that_is_not_there_is_told_with_its_file(tmp_path, text, expected, capsys) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    more = [] if "{class_path: surfaces, im" in text or "imges" in text else ["--data", "surfaces"]
    assert main(["fit", "--config", str(tmp_path / "mine.yaml"), *more]) == 2
    said = capsys.readouterr().err
    assert re.search(expected, said), said
    assert said.count("\n") == 1


def test_a_config_that_is_not_utf_8_is_named(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_bytes("data: Tür".encode("cp1252"))
    with pytest.raises(UsageError, match=r"mine\.yaml is not UTF-8 text: .*Save it as UTF-8"):
        prepare(["fit", "--config", str(tmp_path / "mine.yaml")])


def test_a_config_that_is_not_there_is_named() -> None:
    with pytest.raises(KanoclipError, match=r"No config at nope\.yaml, and none of this name ships"):
        prepare(["fit", "--config=nope.yaml"])


@pytest.mark.parametrize("options", [["--data", "surfaces"], ["--help"], ["--data.help", "mvtec"], ["-h"]])
def test_nothing_is_missed_when_there_is_a_data_set_or_a_question(options) -> None:
    prepare(["test", *options])


S = "test --data surfaces "


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (
            "test --data.category bottle",
            "test needs a data set: add --data NAME. For photos of your own: --data folder",
        ),  # T5
        ("test --data mvtec --data.batch_size four", "--data.batch_size: Expected int. Got value: four"),
        (S + "--model.adaptor none", "--model.adaptor. Did you mean --model.adapter? Accepted: backbone, attention,"),
        (
            S + "--model.adapter conv --model.adapter.scales 1",
            "Did you mean --model.adapter.scale? Accepted: reduction",
        ),
        (
            S + "--model.adapter.scale 1",
            "not which adapter. Put --model.adapter NAME before them: none, linear, projection, conv",
        ),
        (S + "--data.categry x", "Unknown option --data.categry. Did you mean --data.category? Accepted: root, "),
        (S + "--modle clip", "Unknown option --modle. Did you mean --model? Accepted: data, model, trainer"),
        ("test --data surfaces --data.batchsize 3", "Did you mean --data.batch_size?"),
        (S + "--trainer.max_epchs 1", "Did you mean --trainer.max_epochs? Accepted: accelerator, strategy"),
        (S + "junk", "'junk' is not an option"),
        ("test surfaces", "'surfaces' is not an option. Options begin with --. Did you mean --data surfaces?"),
        ("test --data --model clip", "--data needs a value: --data VALUE"),
        ("test --data folder --data.root", "--data.root needs a value: --data.root VALUE"),
        ("test --data manifest", "--data.file is missing: add --data.file VALUE"),
        ("fit --config", "--config needs a value: --config VALUE"),
        ("test --data=surfaces,mvtec", "--data: 'surfaces,mvtec' is no name and no import path like my_lab.X"),
        ("test --data MVTec", "'MVTec' is no name and no import path like my_lab.X. Did you mean 'mvtec'?"),
        ("test --data my_lab.Mine", "--data: Problem with given class_path 'my_lab.Mine': No module named 'my_lab'"),
        ("test --data kanoclip.models.kanoclip.KAnoCLIP", "does not correspond to a subclass of LightningDataModule"),
    ],
)
def test_a_mistake_is_answered_in_one_line(typed, answer, capsys) -> None:
    assert main(typed.split()) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.startswith("kanoclip: error: ")
    assert said.count("\n") == 1


def test_options_of_a_class_in_a_config_are_listed_from_that_class(config, capsys) -> None:
    assert main(["fit", "--config", config, "--data.holdot", "1", "--data.seed", "3"]) == 2
    assert (
        "Unknown option --data.holdot. Did you mean --data.holdout? Accepted: root, category" in capsys.readouterr().err
    )


def test_only_our_own_errors_are_put_into_words() -> None:
    def caught(*, wrapped: bool, ours: bool) -> Exception:
        try:
            try:
                prepare(["fit"]) if ours else json.loads("{")
            except ValueError as error:
                if wrapped:
                    raise RuntimeError("wrapped") from error
                raise
        except Exception as error:
            return error
        raise AssertionError

    assert "fit needs a data set" in str(mistake(caught(wrapped=False, ours=True)))
    assert "fit needs a data set" in str(mistake(caught(wrapped=True, ours=True)))
    assert mistake(caught(wrapped=False, ours=False)) is None


def test_a_fault_in_a_file_of_ours_keeps_its_traceback(monkeypatch) -> None:
    def unpack(self):
        _one, _two = (1, 2, 3)

    monkeypatch.setattr("kanoclip.data.drawn.surfaces.Surfaces.samples", unpack)
    with pytest.raises(ValueError, match="too many values to unpack"):
        main(["test", "--data", "surfaces", "--model", "local_stats"])


def test_a_config_lends_no_mistake_to_what_is_chosen_instead(config) -> None:
    prepare(["fit", "--config", config, "--data", "surfaces", "--model", "clip_vv"])


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (errno.EACCES, "Cannot use /runs/fit: Permission denied. Allow it, or choose another place; what is"),
        (errno.ENOTDIR, "Cannot use /runs/fit: Not a directory. Allow it"),
        (errno.ENOENT, None),  # that is a fault of the program
    ],
)
def test_a_place_that_refuses_is_named_with_what_to_do(code, answer) -> None:
    said = mistake(OSError(code, os.strerror(code), "/runs/fit"))
    assert said is None if answer is None else str(said).startswith(answer)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ("--trainer.accelerator foo", "--trainer: You selected an invalid accelerator name: `accelerator='foo'`"),
        ("--trainer.accelerator cpu --trainer.precision 9", "--trainer.precision"),
        (
            "--trainer.accelerator cpu --trainer.max_epochs -5",
            "--trainer: `max_epochs` must be a non-negative integer",
        ),
    ],
)
def test_what_the_trainer_refuses_is_a_mistake_of_the_caller(options, answer, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = "test --data surfaces --data.images 2 --model local_stats --model.image_size 32 "
    assert main((command + options).split()) == 2
    assert f"kanoclip: error: {answer}" in capsys.readouterr().err
    assert not list(tmp_path.rglob("version_*"))


def test_a_list_where_one_class_belongs_is_told(tmp_path) -> None:
    (tmp_path / "b.yaml").write_text("auxiliary: surfaces_auxiliary\ndata: [surfaces]\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"b\.yaml: Unknown key auxiliary"):
        prepare(["fit", "--config", str(tmp_path / "b.yaml"), "--data.num_workers", "0"])


def test_the_parser_raises_instead_of_exiting() -> None:
    with pytest.raises(UsageError, match="no such thing"):
        Parser().error("no such thing")


FITTED = {"class_path": "kanoclip.models.kanoclip.KAnoCLIP", "init_args": {"temperature": 0.5, "adapter": None}}


@pytest.mark.parametrize(
    "typed", [[], ["--model", "kanoclip"], ["--model.class_path=kanoclip"], ["--model", FITTED["class_path"]]]
)
@pytest.mark.parametrize("text", [None, "model: clip_vv", "model: {class_path: kanoclip, init_args: {lr: 0.5}}"])
def test_the_model_of_a_checkpoint_stands_in_for_what_was_not_typed(typed, text, tmp_path) -> None:
    (tmp_path / "c.yaml").write_text(text or "")
    argv = ["test", "--data", "surfaces", *typed, "--model.sigma", "2"]
    command = prepare([*argv, *(["--config", f"{tmp_path}/c.yaml"] if text else [])])
    model = ParseOnly(command).parser.parse_args(command.words(FITTED)).test.model
    named = "KAnoCLIP" if typed or not text or "kanoclip" in text else "CLIPVV"
    assert model.class_path.endswith(named)
    assert model.init_args.sigma == 2
    assert model.init_args.temperature == (0.5 if named == "KAnoCLIP" else 0.07)
    assert model.init_args.lr == (0.5 if text and "lr" in text and not typed else 1e-3)


@pytest.mark.parametrize("typed", [["predict", "P"], ["predict", "--data", "P"], ["predict", "--data=P"]])
def test_a_path_is_a_folder_of_photos(typed: list[str], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (photos, tmp_path / "one.jpg"):
        (tmp_path / "one.jpg").touch()
        data = parse(*(word.replace("P", str(path)) if word != "predict" else word for word in typed)).data
        assert data.class_path == "kanoclip.data.sets.folder.Folder"
        assert data.init_args.root == str(path)


def test_a_set_goes_by_its_name_though_a_folder_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mvtec").mkdir()
    monkeypatch.chdir(tmp_path)
    data = parse("test", "--data", "mvtec", "--data.root", ".").data
    assert (data.class_path, data.init_args.root) == ("kanoclip.data.sets.mvtec.MVTecAD", ".")


def test_a_path_that_leads_nowhere_and_one_too_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").touch()
    assert main(["predict", "nowhere.jpg"]) == 2
    assert "no photo or folder at nowhere.jpg" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]) == 2
    assert "b.jpg is a second one" in capsys.readouterr().err
