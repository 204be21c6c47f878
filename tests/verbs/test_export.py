"""``kanoclip export`` from what is typed to the file, and mistakes in one line."""

from importlib.util import find_spec

import pytest

from kanoclip.data.files import sha256
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.outputs.export import Frozen, describe, largest_difference
from kanoclip.outputs.exported import load_exported
from kanoclip.verbs.table import main

ZERO_SHOT = ["--model", "clip_vv", "--model.backbone", "embedded", "--model.backbone.image_size", "32"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def needs_export():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


def test_a_fit_is_exported_with_its_heads_and_a_threshold(needs_export, tiny_name, tiny_clip, capsys) -> None:
    fit = ["--data", "surfaces_auxiliary", "--data.images", "2", "--data.num_workers", "0", "--data.category", "wood"]
    tiny = ["--model.backbone", "clip", "--model.backbone.name", tiny_name, "--model.backbone.image_size", "32"]
    assert main(["fit", *fit, *tiny, "--model.lr", "0.01", "--trainer.max_epochs", "1"]) == 0
    checkpoint = "runs/fit/kanoclip/surfaces_auxiliary/version_0/checkpoints/last.ckpt"
    command = ["export", "--ckpt_path", checkpoint, "--model.backbone.name", tiny_name, "--category", "nut"]
    if find_spec("kanoclip.outputs.thresholds"):
        command += ["--threshold", "0.4"]
    capsys.readouterr()
    assert main([*command, "--output", "nut.onnx"]) == 0
    printed = capsys.readouterr()
    assert "nut.onnx: kanoclip for nut" in printed.out
    assert "largest difference to torch on noise: " in printed.out
    said = [line for line in printed.err.splitlines() if line != "kanoclip: exporting ..."]  # if it takes long
    assert said == [f"kanoclip: checkpoint {checkpoint}: kanoclip, fitted on surfaces_auxiliary."]
    exported = load_exported("nut.onnx")
    assert exported.category == "nut"
    assert exported.scoring["weights"] == sha256(checkpoint)
    assert ("--threshold" in command) == (exported.threshold is not None and exported.threshold.image == 0.4)
    model = KAnoCLIP.load_from_checkpoint(checkpoint, backbone=tiny_clip)
    assert largest_difference(Frozen(model, "nut"), exported) < 1e-6
    assert describe(model, checkpoint, "nut", half=False)["scoring"] == exported.scoring  # built in two ways


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--format", "onx"], "--format onx: the formats are onnx (.onnx), openvino (.xml), torch_export (.pt2). Did"),
        (["--output", "bottle.pb"], "--output bottle.pb: the formats are"),
        (["--output", "bottle.onnx", "--format", "openvino"], "a file of the format openvino ends in .xml"),
        (["--half", "maybe"], "--half maybe: expected true or false"),
        (["--ckpt_path", "none.ckpt"], "No checkpoint at none.ckpt"),
        (["--model", "klip"], "Unknown model 'klip'"),
        (["--model.backbone", "embedded"], "kanoclip has to be fitted: give the checkpoint of a fit with --ckpt_path"),
        ([*ZERO_SHOT, "--model.sigmo", "3"], "--model.sigmo"),
        ([*ZERO_SHOT, "--catgory", "nut"], "--catgory"),
        ([*ZERO_SHOT, "--output", "file/nut.onnx"], "Cannot write file/nut.onnx"),
    ],
)
def test_mistakes_are_told_in_one_line(needs_export, typed, said, capsys, folder) -> None:
    (folder / "file").touch()
    assert main(["export", *typed]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_a_missing_package_is_told_before_anything_is_built(monkeypatch, capsys) -> None:
    monkeypatch.setattr("kanoclip.outputs.exported.find_spec", lambda name: None)
    assert main(["export", "--model.backbone.pretrained", "nowhere"]) == 2
    assert "onnx is not installed. Type: pip install 'kanoclip[export]'" in capsys.readouterr().err
