"""The verbs from end to end, with a tiny CLIP and a few drawn images."""

import ast
import inspect
import json
import os
import signal
import sys
import typing
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace
from several import going_on

import kanoclip
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.registry import NAMES, expand
from kanoclip.verbs.run import learns
from kanoclip.verbs.table import main

DATA = ["--data.images", "2", "--data.num_workers", "0", "--data.category"]
SEEN = ["--data", "surfaces_auxiliary", *DATA, "wood"]
UNSEEN = ["--data", "surfaces", *DATA, "gear"]
FIT = "runs/fit/kanoclip/surfaces_auxiliary"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_options(tiny_name) -> list[str]:
    return ["--model.backbone", "clip", "--model.backbone.name", tiny_name, "--model.backbone.image_size", "32"]


@pytest.fixture
def fit(tiny_options):
    """Fit the tiny model for an epoch; further options may follow."""

    def run(*options: str) -> None:
        assert main(["fit", *SEEN, *tiny_options, "--trainer.max_epochs", "1", *options]) == 0

    return run


def read(path: str) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def heads(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_fit_leaves_its_config_checkpoint_and_record_and_a_test_finds_them(fit, tiny_clip, capsys) -> None:
    fit("--model.adapter", "linear")
    record, config = read(f"{FIT}/version_0/run.json"), yaml.safe_load(Path(f"{FIT}/version_0/config.yaml").read_text())
    assert (record["model"], record["auxiliary"], record["categories"]) == ("kanoclip", "surfaces_auxiliary", ["wood"])
    assert (record["seed"], config["seed_everything"]) == (111, 111)
    assert config["model"]["init_args"]["adapter"]["class_path"] == "kanoclip.heads.adapter.LinearAdapter"
    assert config["data"]["init_args"]["image_size"] is None  # read from the model, not linked to it
    checkpoint = torch.load(f"{FIT}/version_0/{record['ckpt']}", weights_only=True)
    assert f"fitted: {FIT}/version_0/checkpoints/last.ckpt" in capsys.readouterr().err
    assert not [name for name in checkpoint["state_dict"] if name.startswith("backbone.")]

    assert main(["test", *UNSEEN]) == 0  # neither backbone nor adapter is said again
    printed = capsys.readouterr()
    assert f"checkpoint {FIT}/version_0/checkpoints/last.ckpt: kanoclip, fitted on surfaces_auxiliary" in printed.err
    assert "surfaces_auxiliary -> surfaces, zero-shot" in printed.out
    report = read("runs/test/kanoclip/surfaces/version_0/results.json")
    assert report["components"]["adapter"] == "LinearAdapter"
    assert report["results"]["gear"]["images"] == 2
    assert not Path("runs/test/kanoclip/surfaces/version_0/config.yaml").exists()
    loaded = KAnoCLIP.load_from_checkpoint(f"{FIT}/version_0/{record['ckpt']}", backbone=tiny_clip)
    assert loaded.adapter.reduction == 4  # from Python too


def test_the_newest_finished_fit_counts_and_a_fit_has_a_folder_of_its_own(fit, capsys) -> None:
    fit()
    fit()
    fit()
    Path(f"{FIT}/version_2/run.json").unlink()  # as if interrupted
    capsys.readouterr()
    assert main(["predict", *UNSEEN]) == 0
    assert f"checkpoint {FIT}/version_1/" in capsys.readouterr().err
    assert len(Path("runs/predict/kanoclip/surfaces/version_0/predictions.csv").read_text().splitlines()) == 3


def test_a_model_is_not_tested_on_its_own_auxiliary_set_unless_told_to(fit, capsys) -> None:
    fit()
    assert main(["test", *SEEN]) == 2
    assert (
        "No finished fit of kanoclip that has seen none of the images of surfaces_auxiliary" in capsys.readouterr().err
    )
    assert main(["test", *SEEN, *going_on(f"{FIT}/version_0/checkpoints/last.ckpt")]) == 0
    printed = capsys.readouterr()
    assert "this is NOT zero-shot: it was fitted on images that are tested, those of surfaces_auxiliary" in printed.err
    assert read("runs/test/kanoclip/surfaces_auxiliary/version_0/results.json")["zero_shot"] is False


def test_what_is_held_out_of_a_fit_is_validated_with_it_and_the_metrics_are_printed(fit, capsys) -> None:
    fit("--data.images", "4", "--data.holdout", "0.5")
    capsys.readouterr()
    assert main(["validate", *SEEN, "--data.images", "4", "--data.holdout", "0.5"]) == 0
    printed = capsys.readouterr()
    assert f"checkpoint {FIT}/version_0/checkpoints/last.ckpt" in printed.err
    (row,) = [line.split() for line in printed.out.splitlines() if line.strip().startswith("wood")]
    assert row[1:3] == ["1", "1"]  # normal and anomalous


def test_a_checkpoint_alone_says_which_model_it_is_of(tiny_options, capsys) -> None:
    assert main(["fit", *SEEN, "--model", "clip_vv_knpl", *tiny_options, "--trainer.max_epochs", "1"]) == 0
    checkpoint = "runs/fit/clip_vv_knpl/surfaces_auxiliary/version_0/checkpoints/last.ckpt"
    assert main(["test", *UNSEEN, *going_on(checkpoint)]) == 0
    assert "clip_vv_knpl: surfaces_auxiliary -> surfaces" in capsys.readouterr().out
    assert main(["test", *UNSEEN, *going_on(checkpoint), "--model", "kanoclip"]) == 2
    assert main(["test", *UNSEEN, *going_on(checkpoint), "--model.adapter", "linear"]) == 2
    assert "was fitted with model.adapter" in capsys.readouterr().err


def test_a_fit_does_not_go_on_from_one_on_other_data(fit, tiny_options, capsys) -> None:
    fit()
    checkpoint = f"{FIT}/version_0/checkpoints/last.ckpt"
    assert main(["fit", *UNSEEN, *tiny_options, *going_on(checkpoint)]) == 2
    assert "was fitted on surfaces_auxiliary; the images of surfaces are others" in capsys.readouterr().err


def test_without_a_fit_the_command_to_type_is_told_before_any_backbone_is_loaded(monkeypatch, capsys) -> None:
    monkeypatch.setattr("kanoclip.backbone.clip.CLIPBackbone.__init__", lambda *_: pytest.fail("loaded a backbone"))
    for verb in ("test", "predict", "validate"):
        assert main([verb, *UNSEEN]) == 2
        said = capsys.readouterr().err
        assert "under runs/fit. Fit one first, such as: kanoclip fit --data surfaces_auxiliary --model kanoclip" in said


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--data", "mvtec", "--data.root", "nowhere"], "error: No MVTec AD at nowhere/mvtec: expected files such as"),
        (["--data", "surfaces", "--data.category", "gaer"], "error: Unknown category 'gaer' of surfaces. Did you mean"),
    ],
)
def test_a_wrong_path_or_category_is_told_before_any_backbone_is_loaded(options, answer, monkeypatch, capsys) -> None:
    monkeypatch.setattr("kanoclip.backbone.clip.CLIPBackbone.__init__", lambda *_: pytest.fail("loaded a backbone"))
    for verb in ("fit", "test", "predict"):
        assert main([verb, *options]) == 2
        said = capsys.readouterr().err
        assert answer in said
        assert said.count("\n") == 1


def test_the_index_is_read_once_by_a_command(monkeypatch) -> None:
    read, samples = [], Surfaces.samples
    monkeypatch.setattr(Surfaces, "samples", lambda self: read.append(self) or samples(self))
    assert main(["test", *UNSEEN, "--model", "local_stats", "--model.image_size", "32"]) == 0
    assert len(read) == 1


def test_a_users_model_with_a_name_of_its_own_is_tested_after_its_fit(folder, tiny_options, monkeypatch) -> None:
    source = 'from kanoclip.models.kanoclip import KAnoCLIP\n\n\nclass Named(KAnoCLIP):\n    name = "mine"\n'
    (folder / "own_model.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    own = ["--model", "own_model.Named", *tiny_options]
    assert main(["fit", *SEEN, *own, "--trainer.max_epochs", "1"]) == 0
    assert main(["test", *UNSEEN, *own]) == 0
    assert list(Path("runs/test/mine").glob("surfaces/version_*/results.json"))


def test_a_precision_that_would_round_the_scores_is_refused(capsys) -> None:
    assert main(["test", *UNSEEN, "--trainer.precision", "bf16-true"]) == 2
    assert "precision bf16-true would round the scores too. Use bf16-mixed" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take UTF-8 names alone")
def test_a_folder_and_photos_whose_names_are_not_utf_8_are_tested_and_predicted_by_a_link(tmp_path, capsys) -> None:
    odd = os.fsencode(tmp_path) + b"/t\xfcr"
    for label in (b"normal", b"abnormal"):
        os.makedirs(odd + b"/" + label)
        with open(odd + b"/" + label + b"/n\xfcss.png", "wb") as file:
            file.write(cv2.imencode(".png", np.random.default_rng(len(label)).integers(0, 255, (32, 32, 3)))[1])
    (tmp_path / "photos").symlink_to(os.fsdecode(odd))
    own = ["--data", "folder", "--data.root", str(tmp_path / "photos"), "--data.num_workers", "0"]
    for verb in ("test", "predict"):
        for _ in range(2):  # the second time with what the first one cached
            assert main([verb, *own, "--model", "local_stats", "--model.image_size", "32"]) == 0
    assert len(list(Path("runs").glob("*/local_stats/folder-t?r/version_1"))) == 2
    assert "2 images" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["precision", "64-true"], ["strategy", "ddp_spawn"]])
def test_what_would_end_in_a_traceback_of_torch_is_refused_with_what_works(options, capsys) -> None:
    assert main(["test", *UNSEEN, f"--trainer.{options[0]}", options[1]]) == 2
    said = capsys.readouterr().err
    assert f"--trainer.{options[0]} {options[1]}" in said
    assert said.endswith((" Use 32-true.\n", " Use ddp.\n"))
    assert said.count("\n") == 1


def test_a_model_that_learns_nothing_needs_no_fit(fit, tiny_options, capsys) -> None:
    assert main(["test", *UNSEEN, "--model", "clip", *tiny_options]) == 0
    assert main(["test", *UNSEEN, "--model", "local_stats", "--model.image_size", "32"]) == 0
    bare = ["--model.prompts", "ensemble", "--model.interaction", "none", "--model.adapter", "none"]
    assert main(["test", *UNSEEN, *tiny_options, *bare]) == 0
    assert read("runs/test/clip/surfaces/version_0/results.json")["checkpoint"] is None
    capsys.readouterr()
    assert main(["fit", *SEEN, "--model", "clip", *tiny_options]) == 2
    assert "clip learns nothing, so it cannot be fitted. Run: kanoclip test --model clip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (["--model.adapter", "linear"], ("model.adapter ConvAdapter", "LinearAdapter is asked for")),
        (["--model.adapter.pool", "max"], ("model.adapter.pool mean", "max is asked for")),  # left at its default
        (["--model.prompts.context", "16"], ("model.prompts.context 12", "16 is asked for")),
        (["--model.temperature", "2"], ("model.temperature 0.07", "2.0 is asked for")),
        (["--model.lr", "2"], ("model.lr 0.001", "2.0 is asked for")),
        (["--model.knowledge", "mvtec"], ("model.knowledge auto", "mvtec is asked for")),
        (["--model.backbone", "embedded"], ("model.backbone local-dir", "kanoclip embedded (")),
    ],
)
def test_a_checkpoint_and_options_that_contradict_each_other_stop_the_run(fit, options, values, capsys) -> None:  # T4
    fit()
    capsys.readouterr()
    kind = options[0].split(".")[1]
    given = ["--ckpt_path", "last"] if kind == "backbone" else going_on(f"{FIT}/version_0/checkpoints/last.ckpt")
    if options[0].count(".") == 2:  # settings stand behind the class
        options = [f"--model.{kind}", {"adapter": "conv", "prompts": "learned"}[kind], *options]
    for argv in (["test", *UNSEEN, *options], ["test", *UNSEEN, *given, *options], ["fit", *SEEN, *given, *options]):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert all(value in said for value in values)
        assert f"Leave out {options[-2]}" in said
        assert "or fit anew" in said
    assert main(["test", *UNSEEN, "--model.temperature", "0.07", "--model.adapter", "conv"]) == 0  # they agree
    assert not list(Path("runs/test").glob("*/*/version_1"))  # what was refused left no folder


def test_score_and_blur_are_free_as_no_head_depends_on_them(fit) -> None:
    fit()
    assert main(["test", *UNSEEN]) == 0
    assert main(["test", *UNSEEN, "--model.score", "map_max", "--model.sigma", "8"]) == 0
    first, second = (read(f"runs/test/kanoclip/surfaces/version_{number}/results.json") for number in (0, 1))
    assert second["components"]["score"] == "MapMaxScore"
    assert second["checkpoint"]["sha256"] == first["checkpoint"]["sha256"]
    assert second["identity"] != first["identity"]


def test_the_checkpoint_of_a_model_built_in_python_must_fit_what_is_built(fit, tiny_options, capsys) -> None:
    fit("--model.adapter", "linear")
    path = Path(f"{FIT}/version_0/checkpoints/last.ckpt")
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] = {}
    torch.save(content, path)
    capsys.readouterr()
    assert main(["test", *UNSEEN, *tiny_options]) == 2
    assert "was fitted with model.adapter LinearAdapter, but ConvAdapter is asked for" in capsys.readouterr().err
    assert main(["test", *UNSEEN, *tiny_options, "--model.adapter", "linear"]) == 0


def test_a_fit_that_is_resumed_ends_where_an_unbroken_one_ends(fit, tiny_options) -> None:
    fit("--trainer.max_epochs", "3")
    unbroken = heads(f"{FIT}/version_0/checkpoints/last.ckpt")
    Path(FIT).rename("elsewhere")
    fit("--trainer.max_epochs", "1")
    assert main(["fit", *SEEN, "--trainer.max_epochs", "3", "--ckpt_path", "last"]) == 0  # options: from the checkpoint
    newest = max(Path(FIT).glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    resumed = heads(str(newest))
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert torch.load(newest, weights_only=True)["epoch"] == 2


def test_a_fit_with_nothing_left_says_so_and_can_be_tested(fit, capsys) -> None:
    fit()
    capsys.readouterr()
    assert main(["fit", *SEEN, "--ckpt_path", "last", "--trainer.max_epochs", "1"]) == 0
    said = capsys.readouterr().err
    assert f"nothing was left to fit: {FIT}/version_0/checkpoints/last.ckpt has had all its epochs" in said
    assert "fitted: " not in said
    assert main(["test", *UNSEEN]) == 0


def test_there_is_nothing_to_resume_before_the_first_fit(capsys) -> None:
    assert main(["fit", *SEEN, "--ckpt_path", "last"]) == 2
    assert "No fit of kanoclip on surfaces_auxiliary in runs/fit to go on with" in capsys.readouterr().err


def test_an_interrupted_fit_says_what_is_done_and_how_to_go_on(tiny_options, monkeypatch, capsys) -> None:
    losses = KAnoCLIP.losses

    def interrupted(self, *arguments):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return losses(self, *arguments)

    monkeypatch.setattr(KAnoCLIP, "losses", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main(["fit", *SEEN, *tiny_options, "--trainer.max_epochs", "3"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning switches it off while it shuts down
    said = capsys.readouterr().err
    assert f"interrupted. Finished epochs: {FIT}/version_0/checkpoints/last.ckpt; to go on" in said
    assert not Path(f"{FIT}/version_0/run.json").exists()
    assert main(["test", *UNSEEN]) == 2  # not taken for a finished one


def test_the_checkpoint_of_a_config_counts_as_one_that_is_typed(fit, folder, tiny_options, capsys) -> None:
    fit()
    fit()
    older = f"{FIT}/version_0/checkpoints/last.ckpt"
    (folder / "c.yaml").write_text(f"ckpt_path: {older}", encoding="utf-8")
    capsys.readouterr()
    assert main(["test", *UNSEEN, *tiny_options, "--config", "c.yaml"]) == 0
    assert f"checkpoint {older}: kanoclip" in capsys.readouterr().err
    assert main(["test", *UNSEEN, "--config", "c.yaml", *going_on(f"{FIT}/version_1/checkpoints/last.ckpt")]) == 0
    assert f"checkpoint {FIT}/version_1/checkpoints/last.ckpt: kanoclip" in capsys.readouterr().err
    assert main(["fit", *UNSEEN, *tiny_options, "--config", "c.yaml"]) == 2
    assert "the images of surfaces are others" in capsys.readouterr().err


def test_a_checkpoint_below_the_home_folder_is_found_and_hashed(fit, folder, tiny_options, monkeypatch) -> None:
    fit()
    monkeypatch.setenv("HOME", str(folder))
    assert main(["test", *UNSEEN, f"--ckpt_path=~/{FIT}/version_0/checkpoints/last.ckpt", *tiny_options]) == 0
    checkpoint = read("runs/test/kanoclip/surfaces/version_0/results.json")["checkpoint"]
    assert checkpoint["path"] == str(folder / FIT / "version_0/checkpoints/last.ckpt")
    assert len(checkpoint["sha256"]) == 64


@pytest.mark.parametrize("holdout", ["0", "0.5"])
def test_the_last_epoch_is_kept_however_rarely_a_fit_validates(fit, holdout) -> None:
    often = ["--trainer.check_val_every_n_epoch", "2", "--trainer.max_epochs", "3"]
    fit("--data.images", "4", "--data.holdout", holdout, *often)
    assert torch.load(f"{FIT}/version_0/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


def test_without_a_logger_each_run_has_its_folder_and_a_fit_goes_on(fit, capsys) -> None:
    fit("--trainer.logger", "false")
    fit("--trainer.logger", "false", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert [read(f"{FIT}/version_{number}/run.json")["epochs"] for number in (0, 1)] == [1, 2]
    for _ in range(2):
        assert main(["test", *UNSEEN, "--trainer.logger", "false"]) == 0
    assert len(list(Path("runs/test/kanoclip/surfaces").glob("version_*/results.json"))) == 2


def test_a_writer_with_options_takes_the_place_of_the_usual_one(fit, capsys) -> None:
    fit()
    writer = ["--trainer.callbacks", "kanoclip.outputs.PredictionWriter", "--trainer.callbacks.map_format", "npy"]
    capsys.readouterr()
    assert main(["predict", *UNSEEN, *writer]) == 0
    assert capsys.readouterr().out.count("predictions.csv") == 1
    rows = Path("runs/predict/kanoclip/surfaces/version_0/predictions.csv").read_text().splitlines()
    assert len(rows) == 3
    assert all(".npy," in row for row in rows[1:])


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--data", "lightning.LightningDataModule"], "--data lightning.LightningDataModule: expected a subclass of"),
        (
            [*UNSEEN, "--model", "lightning.LightningModule"],
            "expected a subclass of kanoclip.models.base.AnomalyModule",
        ),
    ],
)
def test_lightning_s_own_classes_are_not_enough(options, answer, capsys) -> None:
    assert main(["test", *options]) == 2
    assert answer in capsys.readouterr().err


def test_what_learns_nothing_is_tested_though_there_is_a_fit_of_that_model(fit, tiny_options) -> None:
    fit()
    bare = ["--model.prompts", "ensemble", "--model.interaction", "none", "--model.adapter", "none"]
    assert main(["test", *UNSEEN, *tiny_options, *bare]) == 0
    assert read("runs/test/kanoclip/surfaces/version_0/results.json")["checkpoint"] is None


def test_the_fit_that_is_recommended_is_of_another_set(capsys) -> None:
    assert main(["test", *SEEN]) == 2
    assert "such as: kanoclip fit --data surfaces --model kanoclip" in capsys.readouterr().err
    assert main(["validate", *SEEN, "--data.holdout", "0.5"]) == 2
    assert "No finished fit of kanoclip under runs/fit." in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback(fit, monkeypatch) -> None:
    monkeypatch.setattr(KAnoCLIP, "losses", lambda *_: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        fit()


def test_predict_reports_unreadable_images_and_goes_on(folder, capsys) -> None:
    (folder / "photos").mkdir()
    cv2.imwrite("photos/good.png", np.full((20, 30, 3), 90, np.uint8))
    Path("photos/broken.png").write_bytes(b"not a picture")
    options = ["--model", "local_stats", "--model.image_size", "32", "--data.num_workers", "0"]
    assert main(["predict", "--data", "folder", "--data.root", "photos", *options]) == 1
    said = capsys.readouterr().err
    assert "broken.png" in said
    assert "1 file could not be read; all others are done" in said
    table = next(Path("runs/predict/local_stats").glob("*/version_0/predictions.csv")).read_text()
    assert "good.png" in table
    assert "broken.png" not in table


def test_a_test_skips_unreadable_images_as_predict_does_and_its_report_names_them(folder, capsys) -> None:
    for name in ("normal/0.png", "normal/1.png", "abnormal/2.png", "abnormal/3.png"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"photos/{name}", np.random.default_rng(0).integers(0, 256, (20, 30, 3)))
    Path("photos/abnormal/3.png").write_bytes(b"not a picture")
    Path("photos/normal/4.psd").touch()
    options = ["--model", "local_stats", "--model.image_size", "32", "--data.num_workers", "0"]
    assert main(["test", "--data", "folder", "--data.root", "photos", *options]) == 1
    said = capsys.readouterr()
    assert "kanoclip: 1 file could not be read; all others are done." in said.err
    assert "limit" not in said.out
    report = json.loads(next(Path("runs/test/local_stats").glob("*/version_0/results.json")).read_text())
    assert report["images"] == 3
    assert report["unreadable"] == [["photos/abnormal/3.png", "it is not an image. Replace the file or remove it."]]
    assert [path for path, _ in report["left_out"]] == ["photos/normal/4.psd"]
    assert "left_out" not in report["options"]["data"]


def test_the_embedded_backbone_says_what_it_is_for_except_on_drawings(folder, capsys) -> None:
    (folder / "photos").mkdir()
    cv2.imwrite("photos/good.png", np.full((20, 30, 3), 90, np.uint8))
    options = ["--model", "clip_vv", "--model.backbone", "embedded", "--data.num_workers", "0"]
    assert main(["predict", "--data", "folder", "--data.root", "photos", *options]) == 0
    assert "the embedded backbone is for demonstration" in (said := capsys.readouterr().err)
    assert "ViT-L-14-336" in said
    assert main(["predict", *UNSEEN, *options]) == 0
    assert "demonstration" not in capsys.readouterr().err


def test_the_help_of_a_verb_names_data_sets_and_models(capsys) -> None:  # T5
    assert main(["test", "--help", "all"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Data sets (--data): {', '.join(NAMES['data'])}." in said
    assert f"Models (--model): {', '.join(NAMES['model'])}; kanoclip without --model" in said
    assert main(["test", "--data.help", "mvtec"]) == 0
    assert "--data.holdout HOLDOUT Share of the test split" in " ".join(capsys.readouterr().out.split())


def test_no_private_name_of_a_dependency_is_imported_and_versions_are_bounded() -> None:  # T10
    package = Path(kanoclip.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("jsonargparse", "lightning")):
                private = [name for name in [*node.module.split("."), *(a.name for a in node.names)] if name[0] == "_"]
                assert private == [], path
    project = (package.parent / "pyproject.toml").read_text()
    assert '"lightning>=2.6,<2.7"' in project
    assert '"jsonargparse[signatures]>=4.51,<5"' in project


@pytest.mark.parametrize("path", [path for kind in NAMES.values() for path in kind.values()])
def test_the_annotations_of_a_constructor_resolve_when_it_is_parsed(path) -> None:  # T10
    module, _, name = path.rpartition(".")
    cls = getattr(import_module(module), name)
    assert set(typing.get_type_hints(cls.__init__)) >= set(inspect.signature(cls).parameters) - {"args", "kwargs"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("kanoclip", True),
        ("kanoclip_no_knpl", True),
        ("clip_vv", False),
        ("winclip", False),
        ("local_stats", False),
        (
            {"class_path": "kanoclip", "init_args": {"prompts": "ensemble", "interaction": "none", "adapter": "none"}},
            False,
        ),
        ({"class_path": "clip", "init_args": {"adapter": "kanoclip.models.base.AnomalyModule"}}, None),
        ({"class_path": "kanoclip", "init_args": {"adapter": "kanoclip.models.base.AnomalyModule"}}, True),
        ("lightning.pytorch.demos.boring_classes.BoringModel", None),
    ],
)
def test_the_names_of_heads_tell_whether_a_model_learns_or_that_only_building_it_will(model, expected) -> None:
    given = expand({"class_path": model} if isinstance(model, str) else model, kind="model")
    heads = {kind: Namespace(class_path=path) for kind, path in given.get("init_args", {}).items()}
    assert learns(Namespace(class_path=given["class_path"], init_args=Namespace(**heads))) is expected


def optimised(path: str = f"{FIT}/version_0/checkpoints/last.ckpt") -> tuple[dict, list]:
    content = torch.load(path, weights_only=True)
    return content["optimizer_states"][0]["param_groups"][0], content["lr_schedulers"]


def test_a_fit_takes_any_optimiser_and_schedule_by_their_usual_names(fit, folder) -> None:
    fit()
    assert (optimised()[0]["lr"], optimised()[0]["betas"], optimised()[1]) == (1e-3, (0.5, 0.999), [])
    fit("--optimizer", "SGD", "--optimizer.lr", "0.25", "--optimizer.momentum", "0.5")
    group, _ = optimised(f"{FIT}/version_1/checkpoints/last.ckpt")
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)
    config = yaml.safe_load(Path(f"{FIT}/version_1/config.yaml").read_text())
    assert config["optimizer"]["class_path"] == "torch.optim.SGD"
    text = "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.5}}\n"
    text += "lr_scheduler: {class_path: ExponentialLR, init_args: {gamma: 0.1}}\n"
    (folder / "o.yaml").write_text(text, encoding="utf-8")
    fit("--config", "o.yaml")
    group, (schedule,) = optimised(f"{FIT}/version_2/checkpoints/last.ckpt")
    assert (group["initial_lr"], group["lr"], schedule["gamma"]) == (0.5, pytest.approx(0.05), 0.1)


def test_a_schedule_alone_is_that_of_the_usual_optimiser(fit) -> None:
    fit("--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1", "--model.lr", "0.01")
    group, (schedule,) = optimised()
    assert (group["initial_lr"], group["lr"], group["betas"]) == (0.01, pytest.approx(0.001), (0.5, 0.999))
    assert schedule["step_size"] == 1


def test_a_mistyped_option_of_an_optimiser_is_told(capsys) -> None:
    assert main(["fit", *SEEN, "--optimizer", "Adam", "--optimizer.learning_rate", "1"]) == 2
    assert "Unknown option --optimizer.learning_rate." in capsys.readouterr().err
    assert main(["fit", *SEEN, "--optimiser", "Adam"]) == 2
    assert "Unknown option --optimiser. Did you mean --optimizer?" in capsys.readouterr().err


def printed(argv: list[str], file: Path, capsys) -> dict:
    capsys.readouterr()
    assert main([*argv, "--print_config"]) == 0
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def test_what_a_test_prints_as_its_config_replayed_is_the_same_test(fit, folder, capsys) -> None:
    fit("--model.adapter", "linear")
    fit()  # a newer one
    older, newer = (f"{FIT}/version_{number}/checkpoints/last.ckpt" for number in (0, 1))
    for number, (given, path) in enumerate([([], newer), (going_on(older), older)]):
        config = printed(["test", *UNSEEN, *given], folder / "p.yaml", capsys)
        assert config["ckpt_path"] == path
        Path(FIT, "version_1", "run.json").touch()
        assert main(["test", "--config", "p.yaml"]) == 0
        assert read(f"runs/test/kanoclip/surfaces/version_{number}/results.json")["checkpoint"]["path"] == path
    config = printed(["predict", *UNSEEN, *going_on(older)], folder / "p.yaml", capsys)
    assert config["model"]["init_args"]["adapter"]["class_path"] == "kanoclip.heads.adapter.LinearAdapter"
    assert main(["predict", "--config", "p.yaml"]) == 0


def test_what_a_fit_prints_as_its_config_replayed_is_the_same_fit(fit, tiny_options, folder, capsys) -> None:
    argv = ["fit", *SEEN, *tiny_options, "--trainer.max_epochs", "1", "--seed_everything", "5"]
    config = printed(argv, folder / "p.yaml", capsys)
    assert (config["ckpt_path"], config["seed_everything"], config["data"]["init_args"]["seed"]) == (None, 5, None)
    assert not Path("runs").exists()
    assert main(argv) == 0
    assert main(["fit", "--config", "p.yaml"]) == 0
    one, two = (heads(f"{FIT}/version_{number}/checkpoints/last.ckpt") for number in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    config = printed([*argv[:-4], "--seed_everything", "5", "--ckpt_path", "last"], folder / "p.yaml", capsys)
    assert config["ckpt_path"] == f"{FIT}/version_1/checkpoints/last.ckpt"


def test_one_seed_rules_heads_order_and_hold_out_and_a_test_names_that_of_its_fit(fit, capsys) -> None:
    fit("--seed_everything", "7")
    fit("--seed_everything", "7", "--data.seed", "3")
    entries = [torch.load(path, weights_only=True)["kanoclip"] for path in sorted(Path(FIT).glob("*/*/last.ckpt"))]
    assert [(entry["seed"], entry["data"]["seed"]) for entry in entries] == [(7, 7), (7, 3)]
    capsys.readouterr()
    assert main(["test", *UNSEEN, "--seed_everything", "9"]) == 0
    assert "fitted with seed 7" in capsys.readouterr().out
    report = read("runs/test/kanoclip/surfaces/version_0/results.json")
    assert (report["seed"], report["data_seed"]) == (7, 9)


def test_a_fit_without_a_seed_says_so(fit, capsys) -> None:
    fit("--seed_everything", "7")
    fit("--seed_everything", "false")
    assert read(f"{FIT}/version_1/run.json")["seed"] is None
    capsys.readouterr()
    assert main(["test", *UNSEEN]) == 0
    assert "fitted with an unknown seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--data.category", "ring"], "The checkpoint was fitted with data.category ['wood'], but ['ring']"),
        (["--data.images", "4"], "data.images 2, but 4 is asked for. Give --data.images 2"),
        (["--data.limit", "1"], "data.limit None, but 1 is asked for"),
        (["--data.augment", "true"], "data.augment False, but True is asked for"),
        (["--seed_everything", "5"], "data.seed 111, but 5 is asked for. Give --seed_everything 111"),
        (["--data.image_size", "16"], "data.image_size 32, but 16 is asked for"),
    ],
)
def test_a_fit_goes_on_with_the_samples_order_and_pixels_it_began_with(fit, options, answer, capsys) -> None:
    fit()
    assert main(["fit", *SEEN, "--ckpt_path", "last", "--trainer.max_epochs", "2", *options]) == 2
    assert answer in capsys.readouterr().err
    free = ["--data.root", "elsewhere", "--data.num_workers", "1", "--data.batch_size", "1"]
    assert main(["fit", *SEEN, *free, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert len(list(Path(FIT).iterdir())) == 2  # the refused one has left nothing behind


def photos(folder: Path, numbers: list[int]) -> Path:
    """Write photographs of noise, every other one with a spot, sorted into folders."""
    for number in numbers:
        image = np.random.default_rng(number).integers(0, 99, (32, 32, 3), np.uint8)
        image[:9, :9] += 120 * (number % 2)
        path = folder / ("abnormal" if number % 2 else "normal") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    return folder


@pytest.mark.parametrize(
    ("how", "zero_shot"),
    [("others", True), ("the same", False), ("renamed", False), ("links", False), ("one shared", False)],
)
def test_zero_shot_is_decided_by_what_the_images_show(folder, tiny_options, how, zero_shot, capsys) -> None:
    seen, tested = photos(folder / "seen", [1, 2, 3, 4]), folder / "tested"
    if how == "links":
        tested.symlink_to(seen)
    else:
        photos(tested, {"others": [5, 6], "one shared": [4, 5]}.get(how, [1, 2, 3, 4]))
    if how == "renamed":
        for path in list(tested.glob("*/*.png")):
            path.rename(path.with_name(f"x{path.name}"))
    own = ["--data", "folder", "--data.num_workers", "0"]
    assert main(["fit", *own, "--data.root", "seen", *tiny_options, "--trainer.max_epochs", "1"]) == 0
    checkpoint = next(Path("runs/fit").rglob("last.ckpt"))
    assert main(["test", *own, "--data.root", "tested", *going_on(checkpoint)]) == 0
    assert read(str(next(Path("runs/test").rglob("results.json"))))["zero_shot"] is zero_shot
    said = capsys.readouterr()
    assert ("this is NOT zero-shot" in said.err) is (not zero_shot)
    assert (", NOT zero-shot" in said.out) is (not zero_shot)


def test_a_category_called_mean_is_not_overwritten_by_the_mean(folder, capsys) -> None:
    rows = ["image,label,category"]
    for number, path in enumerate(sorted(photos(folder / "p", [1, 2, 3, 4]).glob("*/*.png"))):
        rows.append(f"{path},{int('abnormal' in str(path))},{('mean', 'nut')[number % 2]}")
    (folder / "m.csv").write_text("\n".join(rows))
    model = ["--model", "local_stats", "--model.image_size", "32", "--data.num_workers", "0"]
    assert main(["test", "--data", "manifest", "--data.file", "m.csv", *model]) == 0
    results = read(str(next(Path("runs/test").rglob("results.json"))))["results"]
    assert set(results) == {"mean (category)", "nut", "mean"}
    assert results["mean (category)"]["images"] == 2
    assert "mean (category)" in capsys.readouterr().out


def test_an_optimiser_gets_the_heads_alone_and_a_fit_goes_on_with_the_same_one(fit, capsys) -> None:
    sgd = ["--optimizer", "SGD", "--optimizer.lr", "0.1"]
    fit(*sgd)
    group, _ = optimised()
    assert len(group["params"]) == len(heads(f"{FIT}/version_0/checkpoints/last.ckpt"))
    on = ["fit", *SEEN, "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    for options, answer in (
        ([*sgd[:3], "0.5"], "with optimizer.lr 0.1, but 0.5 is asked for"),
        ([], "with optimizer torch.optim.SGD, but None is asked for"),
        ([*sgd, "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"], "with lr_scheduler None, but"),
    ):
        assert main([*on, *options]) == 2
        assert answer in capsys.readouterr().err
    assert main([*on, *sgd]) == 0


def test_a_fit_does_not_go_on_with_a_checkpoint_that_does_not_tell_its_samples(fit, capsys) -> None:
    fit()
    path = f"{FIT}/version_0/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    entry = content["kanoclip"]
    content["kanoclip"] = {k: v for k, v in entry.items() if k not in ("format", "data", "images", "samples", "seed")}
    content["kanoclip"]["version"] = "0.1.0"
    torch.save(content, path)
    assert main(["fit", *SEEN, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 2
    assert "is of kanoclip 0.1.0, which did not tell its samples" in capsys.readouterr().err
    assert main(["test", *UNSEEN]) == 0


def test_a_fit_goes_on_with_a_folder_that_was_moved(folder, tiny_options) -> None:
    photos(folder / "p", [1, 2, 3, 4])
    own = ["--data", "folder", "--data.num_workers", "0"]
    assert main(["fit", *own, "--data.root", "p", *tiny_options, "--trainer.max_epochs", "1"]) == 0
    Path("p").rename("q")
    last = str(next(Path("runs/fit").rglob("last.ckpt")))
    assert main(["fit", *own, "--data.root", "q", *going_on(last), "--trainer.max_epochs", "2"]) == 0


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--model.adapter", "{bad"], "--model.adapter is not YAML"),
        (["--trainer", "{max_epochs: 1"], "--trainer is not YAML"),
        (["--model.lr", "-1"], "lr is -1.0, expected 0 or more"),
        (["--optimizer", "SGD", "--optimizer.lr", "-1"], "--optimizer, --lr_scheduler: Invalid learning rate: -1"),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(options, answer, tiny_options, capsys) -> None:
    assert main(["fit", *SEEN, *tiny_options, *options]) == 2
    assert answer in capsys.readouterr().err
    assert not list(Path("runs").glob("**/version_*"))


def test_another_model_than_the_checkpoint_s_is_told_before_any_weights_are_loaded(fit, monkeypatch, capsys) -> None:
    fit()
    monkeypatch.setattr("kanoclip.backbone.clip.CLIPBackbone.__init__", lambda *_: pytest.fail("loaded a backbone"))
    given = [*going_on(f"{FIT}/version_0/checkpoints/last.ckpt"), "--model", "kanoclip_no_vv"]
    assert main(["test", *UNSEEN, *given]) == 2
    assert "with model kanoclip, but kanoclip_no_vv is asked for" in capsys.readouterr().err


def test_no_data_set_is_no_data_set_however_it_is_said(capsys) -> None:
    for argv in (["fit", "--data", "null"], ["test", "--print_config"]):
        assert main(argv) == 2
        assert f"{argv[0]} needs a data set: add --data NAME" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["KAnoCLIP", "kanoclip.KAnoCLIP", "null"])
def test_the_model_of_a_checkpoint_goes_by_any_of_its_names(fit, name) -> None:
    fit()
    assert main(["test", *UNSEEN, "--model", name]) == 0
