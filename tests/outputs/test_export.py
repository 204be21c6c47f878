"""Exported models: the same numbers, whatever the batch; what they say of themselves; files that are none."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from kanoclip.metrics.calibration import Threshold
from kanoclip.models.ablations import CLIP
from kanoclip.models.baselines import LocalStats
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.anomalyclip import AnomalyCLIP
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.models.rivals.winclip import WinCLIP
from kanoclip.outputs.export import Frozen, describe, write_exported
from kanoclip.outputs.exported import ENTRY, SUFFIXES, load_exported
from kanoclip.types import KanoclipError, MissingError

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
KINDS = {"kanoclip": KAnoCLIP, "clip": CLIP, "winclip": WinCLIP, "april_gan": AprilGAN, "anomalyclip": AnomalyCLIP}


def make(kind, backbone):
    """A model whose heads are not what they start with."""
    torch.manual_seed(0)
    model = kind(backbone=backbone) if kind is not LocalStats else LocalStats(32)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def scores_of(model, images, category):
    """What the model itself says of images as a dataloader would bring them."""
    from kanoclip.types import Batch

    pixels, count = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, len(images)
    none = torch.zeros(count, dtype=torch.int64)
    with torch.no_grad():
        scores = model.eval()(Batch(pixels, none, none, none, none, [category] * count, [""] * count, [""] * count))
    return scores.anomaly_map.numpy(), scores.image_score.numpy()


def assert_close(found, expected, within):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == np.float32
        assert np.abs(one - other).max() <= within


@pytest.fixture(scope="module")
def model(tiny_clip):
    return make(KAnoCLIP, tiny_clip)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """An ONNX file with a threshold."""
    path = tmp_path_factory.mktemp("exported") / "nut.onnx"
    about = describe(model, None, "nut", half=False) | {"threshold": Threshold(0.5, 0.25, 0.01)._asdict()}
    write_exported(Frozen(model, "nut"), "onnx", path, about)
    return path


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_has_the_numbers_of_torch_for_any_batch(model, written, count) -> None:
    images = pictures(count)
    expected = scores_of(model, images, "nut")
    assert expected[0].std() > 1e-4  # or all would be equal whatever is exported
    assert_close(load_exported(written).run(images), expected, 1e-6)


@pytest.mark.parametrize("name", ["clip", "winclip", "april_gan", "anomalyclip", "local_stats"])
def test_every_model_has_a_graph_for_any_batch_with_its_numbers(name, tiny_clip) -> None:
    model = make(KINDS.get(name, LocalStats), tiny_clip)
    frozen = Frozen(model, "metal_nut")
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    graph = torch.export.export(frozen, (example,), dynamic_shapes=({0: batch},), strict=False).module()
    for count in (1, 3):
        images = pictures(count)
        found = [one.detach().numpy() for one in graph(torch.from_numpy(images))]
        assert_close(found, scores_of(model, images, "metal_nut"), 1e-6)


def test_prompts_are_those_of_the_category_and_the_text_encoder_is_left_out(tiny_clip) -> None:
    model, images = make(CLIP, tiny_clip), torch.from_numpy(pictures(1))
    nut, plate = Frozen(model, "nut"), Frozen(model, "plate")
    assert not torch.equal(nut(images)[0], plate(images)[0])
    assert not [name for name in nut._names if ".text." in name]
    assert model.backbone.text is not None  # the model itself is as it was


@needs_openvino
def test_openvino_has_the_numbers_of_torch_and_the_same_said_of_it(model, tmp_path) -> None:
    about = describe(model, None, "nut", half=False)
    write_exported(Frozen(model, "nut"), "openvino", tmp_path / "nut.xml", about)
    exported = load_exported(tmp_path / "nut.xml")
    assert exported.about == about
    assert exported.threshold is None
    for count in (1, 3):
        assert_close(exported.run(pictures(count)), scores_of(model, pictures(count), "nut"), 1e-6)
    assert sorted(os.listdir(tmp_path)) == ["nut.bin", "nut.xml"]
    assert sys.modules["openvino_telemetry"] is None  # or each import would be told to a server


def test_half_keeps_large_weights_in_half_and_is_near(model) -> None:
    whole, half, images = Frozen(model, "nut"), Frozen(model, "nut", half=True), torch.from_numpy(pictures(3))
    assert 0 < (half(images)[0] - whole(images)[0]).abs().max() < 5e-3
    assert half(images)[0].dtype == torch.float32
    assert not [one.shape for one in half.buffers() if one.dtype == torch.float32 and one.numel() > 1024]
    precision = [describe(model, None, "nut", one)["scoring"]["precision"] for one in (True, False)]
    assert precision[0] != precision[1] == "32-true"  # a threshold of one is not for the other


def test_torch_export_has_the_numbers_and_is_not_opened_by_kanoclip(model, tmp_path) -> None:
    path, about = tmp_path / "nut.pt2", describe(model, None, "nut", half=False)
    write_exported(Frozen(model, "nut"), "torch_export", path, about)
    extra = {ENTRY: ""}
    graph = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra[ENTRY]) == about
    found = [one.detach().numpy() for one in graph(torch.from_numpy(pictures(3)))]
    assert_close(found, scores_of(model, pictures(3), "nut"), 1e-6)
    with pytest.raises(KanoclipError, match=r"unpickles what is in a file.*Export to \.onnx or \.xml"):
        load_exported(path)


def test_it_says_what_it_is(written, model) -> None:
    exported = load_exported(written)
    assert (exported.size, exported.category, exported.threshold) == (32, "nut", Threshold(0.5, 0.25, 0.01))
    assert exported.about["model"] == "kanoclip"
    assert exported.scoring["pixels"] == {"image_size": 32, "tile": False}
    assert exported.scoring["weights"] == model.backbone.fingerprint
    assert "bicubic" in exported.about["resize"]


def test_it_runs_without_torch(written) -> None:
    code = f"""
import sys, numpy
from kanoclip.outputs.exported import load_exported
maps, scores = load_exported({str(written)!r}).run(numpy.zeros((2, 32, 32, 3), numpy.uint8))
assert maps.shape == (2, 32, 32) and scores.shape == (2,)
assert "torch" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd())


@pytest.mark.parametrize("images", [np.zeros((32, 32, 3), np.uint8), np.zeros((1, 16, 16, 3), np.uint8),
                                    np.zeros((1, 32, 32, 3), np.float32)])  # fmt: skip
def test_images_of_another_kind_are_refused(written, images) -> None:
    with pytest.raises(KanoclipError, match=r"takes images \(B, 32, 32, 3\) of uint8, got"):
        load_exported(written).run(images)


@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".xml", marks=needs_openvino)])
def test_a_damaged_file_is_told_in_one_line(written, tmp_path, suffix) -> None:
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(written.read_bytes()[:20_000])
    with pytest.raises(KanoclipError, match=r"cut.* is damaged, or no model that .* runs") as error:
        load_exported(path)
    assert "\n" not in str(error.value)


def test_a_model_of_others_and_a_later_or_damaged_entry_are_told(written, tmp_path) -> None:
    path = tmp_path / "other.onnx"

    def with_entry(change) -> None:
        model = onnx.load(written)
        entry = next(one for one in model.metadata_props if one.key == ENTRY)
        entry.value = change(json.loads(entry.value))
        onnx.save(model, path)

    for change, said in (
        (lambda about: "", "not written by kanoclip export"),
        (lambda about: "[" * 100_000, "not written by kanoclip export"),
        (lambda about: json.dumps(about | {"format": 99}), "format 99 of exported models"),
        (lambda about: json.dumps(about | {"size": "big"}), "damaged"),
        (lambda about: json.dumps(about | {"threshold": {"image": "low"}}), "damaged"),
        (lambda about: json.dumps(about | {"threshold": {"image": math.nan, "pixel": 0.5, "min_area": 0}}), "damaged"),
        (lambda about: json.dumps(about | {"threshold": {"image": None, "pixel": 0.5, "min_area": 0}}), "damaged"),
        (lambda about: json.dumps(about | {"threshold": {"image": 0.5, "pixel": -1, "min_area": 0}}), "damaged"),
        (lambda about: json.dumps(about | {"threshold": {}}), "damaged"),
        (lambda about: json.dumps(about | {"size": 33}), "damaged"),
    ):
        with_entry(change)
        with pytest.raises(KanoclipError, match=said):
            load_exported(path)


def test_a_missing_file_package_and_suffix_are_told_with_what_to_type(written, tmp_path, monkeypatch) -> None:
    with pytest.raises(MissingError, match=r"No exported model at .*kanoclip export --ckpt_path"):
        load_exported(tmp_path / "none.onnx")
    (tmp_path / "model.tflite").touch()
    with pytest.raises(KanoclipError, match=r"expected a name that ends in \.onnx or \.xml"):
        load_exported(tmp_path / "model.tflite")
    monkeypatch.setattr("kanoclip.outputs.exported.find_spec", lambda name: None)
    with pytest.raises(KanoclipError, match=r"onnxruntime is not installed. Type: pip install 'kanoclip\[export\]'"):
        load_exported(written)
    assert set(SUFFIXES) == {"onnx", "openvino", "torch_export"}
