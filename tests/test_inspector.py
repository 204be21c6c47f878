"""From a photo to a decision in Python, with the numbers of the command line."""

import doctest
import os
import re
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import kanoclip.inspector
from kanoclip import Inspector, KanoclipError
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.files import plain, unit_to_uint16
from kanoclip.data.images import read_image
from kanoclip.data.parsing import read_json
from kanoclip.metrics.calibration import Promise, Threshold
from kanoclip.models.ablations import CLIPVV
from kanoclip.models.baselines import LocalStats
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.outputs.identity import scoring
from kanoclip.outputs.names import read_csv
from kanoclip.outputs.thresholds import Calibration, Thresholds
from kanoclip.verbs.table import main

FIT = ["--data", "surfaces_auxiliary", "--data.images", "2", "--data.category", "wood", "--data.num_workers", "0",
       "--model.backbone", "embedded", "--trainer.max_epochs", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with a checkpoint, ``parts``: photos of several kinds, and the predictions of the command line."""
    root = tmp_path_factory.mktemp("inspect")
    draw = np.random.default_rng(4)
    pixels = [cv2.resize(draw.integers(0, 256, (7, 5, 3), dtype=np.uint8), size) for size in ((300, 90), (200, 210))]
    exif = Image.Exif()
    exif[274] = 6
    (root / "parts").mkdir()
    Image.fromarray(pixels[0]).save(root / "parts/camera.jpg", exif=exif)
    Image.fromarray(pixels[1]).save(root / "parts/square.png")
    Image.fromarray(pixels[1][..., 0].astype(np.uint16) * 16).save(root / "parts/deep.png")
    Image.fromarray(np.dstack([pixels[0], pixels[0][..., 1]])).save(root / "parts/cut_out.png")
    Image.fromarray(pixels[0][..., 2]).save(root / "parts/grey.png")
    before = Path.cwd()
    os.chdir(root)
    try:
        assert main(["fit", *FIT]) == 0
        for number, tile in enumerate(("false", "true", "native")):
            assert main(["predict", "parts", "--data.tile", tile, "--data.batch_size", "3"]) == 0
            (root / "runs/predict/kanoclip/folder-parts/version_0").rename(root / f"predicted_{number}")
    finally:
        os.chdir(before)
    return root


@pytest.fixture(scope="module")
def checkpoint(folder):
    return folder / "runs/fit/kanoclip/surfaces_auxiliary/version_0/checkpoints/last.ckpt"


@pytest.fixture
def photo(folder):
    return f"{folder}/parts/square.png"


def opened(path):
    image = Image.open(path)
    image.load()
    return image


FORMS = {
    "str": str,
    "path": Path,
    "pillow": opened,
    "array": read_image,
    "channels first": lambda path: torch.from_numpy(read_image(path)).permute(2, 0, 1).float() / 255,
    "channels last": lambda path: torch.from_numpy(read_image(path)).half() / 255,
}


TILES = [False, True, "native"]


@pytest.mark.parametrize("tile", TILES)
def test_every_form_of_a_photo_scores_as_predict_has_it(folder, checkpoint, tile):
    predicted = folder / f"predicted_{TILES.index(tile)}"
    rows = read_csv(predicted / "predictions.csv")
    paths = [folder / row["path"] for row in rows]
    inspector = Inspector(checkpoint, tile=tile, batch_size=3)
    assert read_json((predicted / "predictions.json").read_bytes())["precision"] == "32-true"
    for form, make in FORMS.items():
        found = inspector([make(path) for path in paths])
        assert len(found) == len(rows) == 5
        for one, row, path in zip(found, rows, paths, strict=True):
            assert f"{one.score:.6f}" == row["image_score"], (form, path)
            heat = cv2.imread(f"{predicted / row['map']}", cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(unit_to_uint16(one.anomaly_map), heat, f"{form} {path}")
            np.testing.assert_array_equal(one.image, read_image(path))
            assert one.path == (f"{path}" if form in ("str", "path") else "")


@pytest.mark.parametrize("tile", TILES)
def test_it_depends_on_what_predict_depends_on(folder, checkpoint, tile):
    about = read_json((folder / f"predicted_{TILES.index(tile)}/predictions.json").read_bytes())
    assert Thresholds(Calibration(Threshold(0.5)), scoring=scoring(about)).check(
        Inspector(checkpoint, tile=tile).scoring
    ) is None  # fmt: skip


def test_a_model_from_memory_scores_and_depends_as_its_checkpoint(checkpoint, photo):
    model = KAnoCLIP.load_from_checkpoint(checkpoint).train()
    one, other = Inspector(model), Inspector(f"{checkpoint}")
    assert one.scoring == other.scoring
    model.train()  # by a fit in between
    np.testing.assert_array_equal(one(photo).anomaly_map, other(photo).anomaly_map)


def test_mixed_lists_batches_and_tensors_of_several_keep_their_order(checkpoint, photo, folder):
    inspector = Inspector(checkpoint, batch_size=2)
    paths = sorted(map(str, (folder / "parts").iterdir()))
    mixed = [paths[0], opened(paths[1]), read_image(paths[2]), Path(paths[3]), FORMS["channels first"](paths[4])]
    assert [one.score for one in inspector(tuple(mixed))] == [one.score for one in inspector(paths)]
    pair = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(1))
    assert [one.score for one in inspector(pair)] == [one.score for one in inspector(list(pair))]
    assert [one.anomaly_map.shape for one in inspector(pair)] == [(40, 50)] * 2
    assert inspector([]) == []
    assert isinstance(inspector([photo]), list)


def test_eight_threads_find_what_one_finds(checkpoint, folder):
    inspector = Inspector(checkpoint)
    paths = sorted(map(str, (folder / "parts").iterdir()))
    alone = [inspector(path) for path in paths]
    fresh = Inspector(checkpoint)  # whose texts are not encoded yet
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(fresh, paths * 8)):
            expected = alone[number % len(paths)]
            assert found.score == expected.score
            np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)


def test_the_category_reaches_prompts_and_threshold(photo):
    model = CLIPVV(backbone=EmbeddedBackbone())
    kinds = {name: Calibration(Threshold(level)) for name, level in (("wood", 0.1), ("nut", 0.9))}
    inspector = Inspector(model, threshold=Thresholds(Calibration(Threshold(0.5)), kinds), category="wood")
    wood, nut, other = inspector(photo), inspector(photo, category="nut"), inspector([photo], "cable")[0]
    assert [one.category for one in (wood, nut, other)] == ["wood", "nut", "cable"]
    assert [one.threshold.image for one in (wood, nut, other)] == [0.1, 0.9, 0.5]
    assert len({wood.score, nut.score, other.score}) == 3
    assert Inspector(model)(photo).category == "object"


def test_a_threshold_is_a_number_a_file_or_an_object(photo, tmp_path):
    model = LocalStats()
    inspector = Inspector(model)
    calibrated = Calibration(Threshold(0.2, 0.3, 0.01), Promise(50, 50))
    Thresholds(calibrated, scoring=inspector.scoring).save(tmp_path / "threshold.json")
    given = [0.2, f"{tmp_path}/threshold.json", tmp_path / "threshold.json", Threshold(0.2, 0.3)]
    assert [Inspector(model, threshold=one)(photo).threshold.image for one in given] == [0.2] * 4
    assert inspector(photo).decision is None
    assert Inspector(model, threshold=0.999999)(photo).decision == "good"
    assert Inspector(model, threshold=0)(photo).decision == "defective"


def test_a_threshold_of_other_scores_or_another_category_is_refused(tmp_path):
    path = tmp_path / "threshold.json"
    calibrated = Calibration(Threshold(0.2, 0.3, 0.01), Promise(50, 50))
    Thresholds(calibrated, {"wood": calibrated}, scoring=Inspector(LocalStats()).scoring).save(path)
    for options in ({"tile": True}, {"source": LocalStats(64)}):
        with pytest.raises(KanoclipError, match=r"threshold\.json is for other scores: its (tile|image size|settings)"):
            Inspector(**({"source": LocalStats(), "threshold": path} | options))
    with pytest.raises(KanoclipError, match=r"threshold\.json is for wood, and this image shows nut"):
        Inspector(LocalStats(), threshold=path, category="nut")
    with pytest.raises(FileNotFoundError, match=r"threshold .*none\.json: there is no such file"):
        Inspector(LocalStats(), threshold=tmp_path / "none.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "none.ckpt"}, r"No checkpoint at none\.ckpt"),
        ({"source": "clip_vv"}, r"from kanoclip\.models\.ablations import CLIPVV; Inspector\(CLIPVV\(\.\.\.\)\)"),
        ({"source": "s3://a/last.ckpt"}, r"s3://a/last\.ckpt is an address"),
        ({"source": 5}, r"An Inspector cannot use a int: give it a checkpoint"),
        ({"device": "gpu"}, r"device 'gpu' cannot be used \(.*Give auto, cpu or cuda"),
        ({"device": "cuda:99"}, r"device 'cuda:99' cannot be used \("),
        ({"tile": "natve"}, r"tile is 'natve', expected True, False, 'native', or 16 pixels or more"),
        ({"batch_size": 0}, r"batch_size is 0, expected 1 or more"),
        ({"threshold": 7}, r"threshold 7: expected a score from 0 to 1"),
    ],
)
def test_what_does_not_do_is_told_before_a_photo_is_opened(options, message):
    with pytest.raises(KanoclipError, match=message) as told:
        Inspector(**({"source": LocalStats()} | options))
    assert "\n" not in f"{told.value}"


def test_a_model_without_a_fit_is_refused(tiny_clip):
    model = KAnoCLIP(backbone=tiny_clip)
    with pytest.raises(KanoclipError, match=r"This kanoclip was never fitted: .* model\.auxiliary = 'mvtec'"):
        Inspector(model)
    model.auxiliary = "mine"
    Inspector(model)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("none.jpg", r"Cannot use none\.jpg: there is no such file"),
        ("http://a/b.jpg", r"The image http://a/b\.jpg is an address"),
        (np.zeros((0, 3, 3)), r"images\[1\]: its shape is \(0, 3, 3\): it holds no pixels"),
        (torch.zeros(2, 5, 5), r"images\[1\]: its shape is \(2, 5, 5\)"),
        ({"path": "a.jpg"}, r"images\[1\]: it is of type dict"),
    ],
)
def test_a_bad_image_in_a_list_is_named_by_path_or_index(bad, message, photo):
    with pytest.raises(KanoclipError, match=message):
        Inspector(LocalStats())([photo, bad])


def test_a_broken_file_in_a_list_is_named(photo, tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(KanoclipError, match=r"empty\.jpg: it is not an image"):
        Inspector(LocalStats())([photo, tmp_path / "empty.jpg"])
    with pytest.raises(KanoclipError, match=r"Cannot use this image: its shape is \(3,\)"):
        Inspector(LocalStats())(np.zeros(3))


def test_scores_that_are_no_numbers_are_an_error_that_names_the_image(photo):
    class Overflowing(LocalStats):
        def forward(self, batch):
            scores = super().forward(batch)
            return scores._replace(anomaly_map=scores.anomaly_map / 0)

    overflowing = Inspector(Overflowing())
    with pytest.raises(KanoclipError, match=r"The scores of .*square\.png are NaN or infinite"):
        overflowing(photo)
    with pytest.raises(KanoclipError, match=r"The scores of images\[0\] are NaN or infinite"):
        overflowing([read_image(photo), photo])


@pytest.fixture
def exported(monkeypatch):
    """A model of bottles that scores brightness."""

    def run(images):
        assert (images.dtype, images.shape[1:]) == (np.uint8, (32, 32, 3))
        return images.mean(3).astype(np.float32) / 255, images.mean((1, 2, 3)).astype(np.float32) / 255

    model = types.SimpleNamespace(size=32, scoring={}, category="bottle", threshold=Threshold(0.5, 0.5), run=run)
    monkeypatch.setattr("kanoclip.inspector.load_exported", lambda path: model)


def test_an_exported_model_brings_its_threshold_and_category(exported):
    white = np.full((20, 40, 3), 255, np.uint8)
    found = Inspector("a.onnx")([white, white // 4])
    assert [(one.decision, one.category, len(one.regions)) for one in found] == [("defective", "bottle", 1),
                                                                                 ("good", "bottle", 0)]  # fmt: skip
    assert found[0].anomaly_map.shape == (20, 40)
    assert Inspector(Path("a.XML"), threshold=0.1, category="bottle")(white // 4).decision == "defective"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category": "nut"}, r"This model was exported for bottle\. Export one for nut\."),
        ({"tile": True}, r"leave out tile and device"),
        ({"device": "cuda"}, r"leave out tile and device"),
    ],
)
def test_what_an_exported_model_cannot_do_is_told(exported, options, message):
    with pytest.raises(KanoclipError, match=message):
        Inspector("a.onnx", **options)
    with pytest.raises(KanoclipError, match=r"exported for bottle"):
        Inspector("a.onnx")(np.zeros((9, 9)), category="nut")


def test_an_exported_model_finds_the_same_without_torch(checkpoint, folder, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    file, paths = f"{tmp_path}/model.onnx", sorted(map(str, (folder / "parts").iterdir()))
    from kanoclip.outputs.export import Frozen, describe, write_exported

    model = KAnoCLIP.load_from_checkpoint(checkpoint)
    write_exported(Frozen(model, "object", False), "onnx", Path(file), describe(model, checkpoint, "object", False))
    code = f"""
import sys
import numpy as np
from kanoclip import Inspector
found = Inspector({file!r}, threshold=0.5)({paths!r})
found[0]._repr_html_()
print([name for name in ("torch", "lightning", "albumentations", "torchmetrics") if name in sys.modules])
np.savez({f"{tmp_path}/found.npz"!r}, scores=[one.score for one in found], *[one.anomaly_map for one in found])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("[]\n", 0), ran.stderr
    with np.load(tmp_path / "found.npz") as found:
        for i, one in enumerate(Inspector(checkpoint)(paths)):
            assert found["scores"][i] == pytest.approx(one.score, abs=1e-4)
            np.testing.assert_allclose(found[f"arr_{i}"], one.anomaly_map, atol=1e-4)
    assert Inspector(file).scoring == plain(Inspector(checkpoint).scoring)  # one threshold.json is for both


def test_the_example_of_its_help_runs():
    assert doctest.testmod(kanoclip.inspector).failed == 0


def test_what_the_readme_shows_runs(checkpoint, photo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Inspector(" in block)
    code = re.sub(r'"runs/[^"]+"', repr(f"{checkpoint}"), code).replace("part.jpg", photo)
    found: dict = {}
    exec(code, found)
    assert found["found"].decision in ("good", "defective")
