"""Which fit a test takes, and whether a checkpoint agrees with what is asked for."""

import json
import os
from pathlib import Path

import pytest
import torch

from kanoclip.models.checkpoint import ContradictionError, check_agreement, folder_name, newest_fit, read_checkpoint

CONV, LINEAR = "kanoclip.heads.adapter.ConvAdapter", "kanoclip.heads.adapter.LinearAdapter"


def fitted(root: Path, version: str, age: float, model="kanoclip", auxiliary="mvtec", finished=True) -> Path:
    run = root / "fit" / model / folder_name(auxiliary) / version
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = run / "checkpoints" / "last.ckpt"
    torch.save({"kanoclip": {"auxiliary": auxiliary}}, checkpoint)
    files = [checkpoint]
    if finished:
        files.append(run / "run.json")
        files[-1].write_text(json.dumps({"model": model, "auxiliary": auxiliary, "ckpt": "checkpoints/last.ckpt"}))
    for file in files:
        os.utime(file, (1e9 - age, 1e9 - age))
    return checkpoint


def test_a_test_takes_the_newest_finished_fit_of_its_model_on_another_set(tmp_path) -> None:
    wanted = fitted(tmp_path, "version_0", age=2)
    fitted(tmp_path, "version_1", age=3)
    unfinished = fitted(tmp_path, "version_2", age=1, finished=False)
    other = fitted(tmp_path, "version_0", age=0, auxiliary="visa")
    fitted(tmp_path, "version_0", age=0, model="clip_vv_knpl")
    assert newest_fit(tmp_path, "kanoclip", but_not="visa") == wanted
    assert newest_fit(tmp_path, "kanoclip", but_not="surfaces") == other
    assert newest_fit(tmp_path, "kanoclip", auxiliary="mvtec") == unfinished  # to resume
    assert newest_fit(tmp_path, "kanoclip", auxiliary="surfaces") is None
    assert newest_fit(tmp_path / "empty", "kanoclip", but_not="visa") is None


def test_pieces_of_the_same_images_are_not_another_set(tmp_path) -> None:
    fit = fitted(tmp_path, "version_0", age=0, auxiliary="ksdd_adaclip")
    assert newest_fit(tmp_path, "kanoclip", but_not="ksdd_anomalyclip") is None
    assert newest_fit(tmp_path, "kanoclip", but_not="ksdd") is None
    assert newest_fit(tmp_path, "kanoclip", but_not="ksdd2") == fit
    assert newest_fit(tmp_path, "kanoclip") == fit


def test_a_fit_is_resumed_on_its_own_data_though_others_of_that_name_share_its_folder(tmp_path) -> None:
    wanted = fitted(tmp_path, "version_0", age=2, auxiliary="folder /a/images")
    fitted(tmp_path, "version_1", age=1, auxiliary="folder /b/images")
    assert newest_fit(tmp_path, "kanoclip", auxiliary="folder /a/images") == wanted
    assert newest_fit(tmp_path, "kanoclip", auxiliary="folder /c/images") is None


def test_a_fit_whose_checkpoint_was_deleted_is_passed_over(tmp_path) -> None:
    older = fitted(tmp_path, "version_0", age=2)
    fitted(tmp_path, "version_1", age=1).unlink()
    assert newest_fit(tmp_path, "kanoclip", but_not="surfaces") == older


def test_a_folder_of_runs_is_named_after_the_data() -> None:
    assert folder_name("mvtec") == "mvtec"
    assert folder_name("folder /home/me/my photos") == "folder-my photos"
    assert folder_name("manifest /data/list.csv") == "manifest-list"


def test_what_is_no_checkpoint_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*none\.ckpt\. Give --ckpt_path a file such as"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt is damaged, or no checkpoint of kanoclip \(\w+Error\)"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is damaged, or no checkpoint of kanoclip \(KeyError\)"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_checkpoint_tells_its_model(tmp_path) -> None:
    given = {"_class_path": "my.Model", "_instantiator": "x", "lr": 0.1}
    torch.save({"kanoclip": {"model": "m"}, "hyper_parameters": given}, tmp_path / "a.ckpt")
    stored = {"class_path": "my.Model", "init_args": {"lr": 0.1}}
    assert read_checkpoint(tmp_path / "a.ckpt") == ({"model": "m"}, stored)
    torch.save({"kanoclip": {"model": "m"}, "hyper_parameters": {"lr": 0.1}}, tmp_path / "python.ckpt")
    assert read_checkpoint(tmp_path / "python.ckpt") == ({"model": "m"}, {})


def model(adapter=None, **options) -> dict:
    return {"class_path": "kanoclip.models.kanoclip.KAnoCLIP", "init_args": {"adapter": adapter, **options}}


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        (model(), model({"class_path": LINEAR, "init_args": {}})),  # nothing asked
        (model({"class_path": CONV}), model()),  # the model's own was one
        (model(CONV), model({"class_path": CONV, "init_args": {"reduction": 8}})),
        (model(lr=0.1), model(lr=0.1, sigma=3)),
        ({"init_args": {"sigma": 3}}, model(sigma=3)),
        (model(betas=(0.5, 0.999)), model(betas=[0.5, 0.999])),  # parsed as a tuple, stored as a list
    ],
)
def test_what_agrees_passes(asked, stored) -> None:
    check_agreement(asked, stored, {"adapter": "ConvAdapter"}, Path("a.ckpt"), "model")


@pytest.mark.parametrize(
    ("asked", "stored", "message"),
    [
        (model(LINEAR), model(), r"with model\.adapter ConvAdapter, but .*LinearAdapter is asked for\. Leave out --"),
        (model(LINEAR), model({"class_path": CONV}), r"model\.adapter kanoclip\.adapter\.ConvAdapter, but .*Linear"),
        (model(lr=0.1), model(lr=0.2), r"a\.ckpt was fitted with model\.lr 0\.2, but 0\.1 is asked for"),
        (
            model({"class_path": CONV, "init_args": {"reduction": 2}}),
            model({"class_path": CONV, "init_args": {"reduction": 4}}),
            r"model\.adapter\.reduction 4, but 2 is asked for\. Leave out --model\.adapter\.reduction",
        ),
        ({"class_path": "my.Model"}, model(), r"with model kanoclip.*KAnoCLIP, but my\.Model is asked for"),
    ],
)
def test_what_contradicts_is_told_with_both_values(asked, stored, message) -> None:
    with pytest.raises(ContradictionError, match=message):
        check_agreement(asked, stored, {"adapter": "ConvAdapter"}, Path("a.ckpt"), "model")
