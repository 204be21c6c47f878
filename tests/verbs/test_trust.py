"""Nothing hostile runs, hangs or steers the terminal on the command line, and what people type is understood."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.models.checkpoint import backbone_of, settings
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.verbs.arguments import prepare
from kanoclip.verbs.say import complain, note
from kanoclip.verbs.table import main

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{one}: &{one} [{', '.join(['*' + before] * 9)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)
FIT = ["fit", "--data", "surfaces_auxiliary", "--model.backbone", "embedded"]


def refused(argv, capsys) -> str:
    """Run a command that is refused; returns its one line."""
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="module")
def content(tiny_clip, tmp_path_factory):
    """What stands in a checkpoint."""
    trainer = Trainer(max_epochs=1, logger=False, accelerator="cpu", enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(KAnoCLIP(backbone=tiny_clip), SurfacesAuxiliary(images=2, category="ring", num_workers=0))
    path = tmp_path_factory.mktemp("kept") / "a.ckpt"
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"_class_path": "evilmod.X"}, "--model evilmod.X"),
        ({"adapter": {"class_path": "evilmod.X"}}, "--model.adapter evilmod.X"),
        ({"backbone": {"class_path": "kanoclip.backbone.clip.CLIPBackbone", "init_args": {"name": "hf-hub:a/b"}}},
         "--model.backbone.name hf-hub:a/b"),
        ({"backbone": {"class_path": "kanoclip.backbone.clip.CLIPBackbone", "init_args": {"name": "local-dir:/a"}}},
         "--model.backbone.name local-dir:/a"),
        ({"adapter": {"class_path": "evilmod." + "X" * 5000}}, "XXX (in Python"),
    ],
)  # fmt: skip
def test_a_strangers_checkpoint_is_refused_with_what_allows_it(
    content, tmp_path, monkeypatch, capsys, verb, options, option
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evilmod.py").write_text("from pathlib import Path; Path('ran').touch()\nclass X: pass")
    given = {"_class_path": "kanoclip.models.kanoclip.KAnoCLIP", **options}
    torch.save({**content, "hyper_parameters": given}, "a.ckpt")
    line = refused([verb, "--data", "surfaces", "--ckpt_path", "a.ckpt"], capsys)
    assert "a.ckpt names the " in line
    assert option in line
    assert len(line) < 800
    assert not Path("ran").exists()


def test_a_checkpoint_that_is_an_address_or_contradicts_itself_is_told(content, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["test", "--data", "surfaces", "--data.images", "2", "--ckpt_path"]
    assert "--ckpt_path s3://a/b.ckpt is an address" in refused([*argv, "s3://a/b.ckpt"], capsys)
    given = {"_class_path": "kanoclip.models.kanoclip.KAnoCLIP", "knowledge": "/etc/passwd"}
    backbone = {"class_path": "kanoclip.backbone.embedded.EmbeddedBackbone"}
    model = KAnoCLIP(backbone=EmbeddedBackbone())
    entry = content["kanoclip"] | {"backbone": backbone_of(model), "settings": settings(model)}
    torch.save({**content, "kanoclip": entry, "hyper_parameters": {**given, "backbone": backbone}}, "a.ckpt")
    assert main([*argv, "a.ckpt"]) == 2
    said = capsys.readouterr().err
    assert "with model.knowledge auto, but its own options say /etc/passwd. Give --ckpt_path another one" in said


@pytest.mark.parametrize(
    "argv",
    [
        ["fit", "--config", "bomb.yaml"],
        ["benchmark", "--config", "bomb.yaml"],
        ["knowledge", "show", "bomb.yaml"],
        ["fit", "--data", "surfaces", "--trainer", "bomb.yaml"],
        ["fit", "--data", "surfaces", "--model.adapter", f"{{x: {{{LAUGHS.replace(chr(10), ', ')}}}}}"],
    ],
    ids=str,
)
def test_a_few_bytes_that_stand_for_gigabytes_are_refused(argv, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bomb.yaml").write_text(LAUGHS)
    assert "stands for more than 10,000,000 characters" in refused(argv, capsys)


@pytest.mark.parametrize("text", ["[" * 100_000, "data: " + "9" * 5000, "data: " + "[" * 300 + "]" * 300])
@pytest.mark.parametrize("verb", [["fit", "--config"], ["benchmark", "--config"], ["knowledge", "show"]])
def test_deep_and_long_values_are_one_line(text, verb, tmp_path, capsys) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert "a.yaml is n" in refused([*verb, str(tmp_path / "a.yaml")], capsys)


def test_a_long_or_odd_value_is_shown_in_one_short_line(capsys) -> None:
    complain("\x1b[2J" + "x" * 1_000_000 + "\nend")
    note("\x1b]0;title\x07")
    first, second = capsys.readouterr().err.splitlines()
    assert len(first) < 4200
    assert first.startswith("kanoclip: error: \\x1b[2Jxxx")
    assert first.endswith("x\\nend")
    assert second == "kanoclip: \\x1b]0;title\\x07"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trainer.max_epochs", "abc"], "--trainer.max_epochs: Expected int. Got value: abc"),
        (["--trainer.precision", "7"], "--trainer.precision: Expected one of 64, 32, 16, "),
        (["--model.dice", "x"], "--model.dice: Expected one of batch, image. Got value: x"),
        (["--optimizer.lr", "0.1"], "Options of optimizer are given but not which. Put --optimizer NAME before them"),
        (["--lr_scheduler.T_max", "4"], "Options of lr_scheduler are given but not which. Put --lr_scheduler NAME"),
        (
            ["--model.adapter.pool", "x"],
            "Options of model.adapter are given but not which adapter. Put --model.adapter",
        ),
        (["--data.category", "[]"], "category is [], expected a name, a list of at least one, or null"),
        (["--data.root", "s3://b/x"], "root is s3://b/x, expected a folder of this machine"),
        (["--trainer.default_root_dir", "s3://b/x"], "--trainer.default_root_dir s3://b/x is an address"),
    ],
)
def test_a_mistake_is_told_with_what_to_type(more, said, capsys) -> None:
    assert said in refused([*FIT, *more], capsys)


def test_a_model_that_is_null_in_a_config_is_told(tmp_path, capsys) -> None:
    (tmp_path / "a.yaml").write_text("data: surfaces\nmodel: null")
    assert "a.yaml: model is null. Name one, such as kanoclip" in refused(
        ["fit", "--config", str(tmp_path / "a.yaml")], capsys
    )


@pytest.mark.parametrize("verb", ["benchmark", "knowledge"])
def test_an_output_that_is_an_address_is_refused(verb, tmp_path, capsys) -> None:
    config = ["--config", "configs/benchmarks/quickstart.yaml"]
    what = config if verb == "benchmark" else ["build", "--data", "surfaces", "--dry_run", "true"]
    assert "--output s3://b/x.yaml is an address" in refused([verb, *what, "--output", "s3://b/x.yaml"], capsys)


def test_the_home_folder_is_expanded_in_configs_and_behind_an_equals_sign(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text(
        "data: {class_path: folder, init_args: {root: ~/photos}}\ntrainer: {default_root_dir: ~/runs}"
    )
    command = prepare(["test", "--config=~/a.yaml", "--model.knowledge=~/k.yaml"])
    ((path, config),) = command.configs.items()
    assert path == f"{tmp_path}/a.yaml"
    assert config["data"]["init_args"]["root"] == f"{tmp_path}/photos"
    assert config["trainer"]["default_root_dir"] == f"{tmp_path}/runs"
    assert f"--model.knowledge={tmp_path}/k.yaml" in command.options


@pytest.mark.parametrize("name", ["01", "1e3", "no", "0x10"])
def test_a_category_in_a_config_or_a_list_is_a_name(name, tmp_path) -> None:
    (tmp_path / "a.yaml").write_text(f"data: {{class_path: btad, init_args: {{category: {name}}}}}")
    assert prepare(["test", f"--config={tmp_path}/a.yaml"]).configs[f"{tmp_path}/a.yaml"]["data"]["init_args"] == {
        "category": name
    }
    assert (
        f'--data.category=["{name}", "02"]'
        in prepare(["test", "--data", "btad", "--data.category", f"[{name}, 02]"]).options
    )


def test_seeds_that_are_no_list_are_named(tmp_path, capsys) -> None:
    (tmp_path / "a.yaml").write_text("{auxiliary: visa, data: [mvtec], models: [clip], seeds: many, trainer: {}}")
    assert "seeds should be " in refused(["benchmark", "--config", str(tmp_path / "a.yaml")], capsys)
