"""Pictures far from square: from the tiles of a tensor to the files that a run leaves."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import Tensor

from kanoclip.data.sets.folder import Folder
from kanoclip.models.ablations import CLIP
from kanoclip.models.base import AnomalyModule
from kanoclip.models.tiling import tile_starts, tiled
from kanoclip.outputs import PredictionWriter
from kanoclip.types import Batch, Scores
from kanoclip.verbs.table import main

SIDE = 16
STRIP = (1250, 55)  # as the rails of RSDDs
DEFECT = (slice(800, 840), slice(20, 35))


def pictures(height: int, width: int, count: int = 1) -> Batch:
    image = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))
    label = torch.zeros(count, dtype=torch.int64)
    return Batch(
        image=image,
        mask=(image[:, 0] > 0.9).byte(),
        label=label,
        has_mask=label == 0,
        size=torch.tensor([[height, width]] * count),
        category=[f"category {i}" for i in range(count)],
        defect=["good"] * count,
        path=[f"{i}.png" for i in range(count)],
    )


def grey(batch: Batch) -> Scores:
    """A model that sees each pixel by itself."""
    heat = batch.image.mean(1)
    return Scores(heat, heat.flatten(1).amax(1))


def constant(batch: Batch) -> Scores:
    return Scores(torch.full_like(batch.image[:, 0], 0.3), torch.full((len(batch.image),), 0.3))


@given(
    height=st.integers(SIDE, 6 * SIDE),
    width=st.integers(SIDE, 6 * SIDE),
    strip=st.booleans(),
    odd=st.sampled_from([0, 1]),
    count=st.integers(1, 3),
    at_once=st.integers(1, 9),
)
def test_what_is_scored_pixel_by_pixel_comes_back_to_the_last_bit(height, width, strip, odd, count, at_once) -> None:
    size = SIDE - odd
    batch = pictures(height, size if strip else width, count)
    scores = tiled(grey, batch, size, at_once)
    assert torch.equal(scores.anomaly_map, grey(batch).anomaly_map)
    assert torch.equal(scores.image_score, grey(batch).image_score)


@given(long=st.integers(SIDE + 1, 6 * SIDE), wide=st.integers(SIDE, 3 * SIDE))
def test_an_even_answer_gives_an_even_map(long, wide) -> None:
    scores = tiled(constant, pictures(long, wide), SIDE)
    assert scores.anomaly_map.unique().tolist() == [pytest.approx(0.3)]
    assert scores[2:] == (None,) * 5


@given(length=st.integers(SIDE, 20 * SIDE), size=st.sampled_from([SIDE, SIDE - 1, 2]))
def test_tiles_overlap_by_half_or_more_and_more_background_moves_none(length, size) -> None:
    starts = tile_starts(length, size)
    steps = np.diff(starts)
    assert (starts[0], starts[-1]) == (0, length - size)
    assert steps.size == 0 or 0 < steps.min() <= steps.max() <= size / 2
    assert set(starts[:-1]) <= set(tile_starts(length + 5, size))


def alternating(batch: Batch) -> Scores:
    """Tiles that disagree as much as they can: the first says 0, the next one 1, and so on."""
    alternating.told = 1 - alternating.told
    value = float(alternating.told)
    return Scores(torch.full_like(batch.image[:, 0], value), torch.tensor([value]))


@pytest.mark.parametrize("long", [18, 24, 32, 37, 100])
def test_tiles_that_disagree_fade_into_each_other(long) -> None:
    size = 64
    alternating.told = 1
    heat = tiled(alternating, pictures(long * 4, size), size, 1).anomaly_map[0]
    assert float(heat.diff(dim=1).abs().max()) == 0
    assert float(heat.min()) < 0.01
    assert float(heat.max()) > 0.9 or long == 18  # there the second tile is nowhere alone but at the end
    assert float(heat.diff(dim=0).abs().max()) < 2 * np.pi / size  # a cut from tile to tile would be 1


def test_what_goes_wrong_at_the_border_of_a_tile_is_not_seen_inside_the_picture() -> None:
    def framed(batch: Batch) -> Scores:
        heat = torch.ones_like(batch.image[:, 0])
        heat[:, 1:-1] = 0
        return Scores(heat, torch.ones(1))

    heat = tiled(framed, pictures(6 * 64, 64), 64, 1).anomaly_map[0]
    assert heat[[0, -1]].unique().tolist() == [1]  # no other tile knows better
    assert 0 < float(heat[1:-1].max()) < (np.pi / 2 / 64) ** 2 * 1.01


def test_the_image_score_is_that_of_the_worst_tile_and_each_picture_has_its_own() -> None:
    batch = pictures(SIDE, 5 * SIDE, 2)
    batch.image[:] = 0.1
    batch.image[1, :, 3, 70] = 0.8
    seen: list[Batch] = []

    def model(part: Batch) -> Scores:
        seen.append(part)
        return grey(part)

    scores = tiled(model, batch, SIDE, 4)
    assert scores.image_score.tolist() == pytest.approx([0.1, 0.8])
    assert [len(part.image) for part in seen] == [4, 4, 4, 4, 2]  # nine tiles of two pictures
    for part in seen:
        assert part.category == ["category 0", "category 1"] * (len(part.image) // 2)
        assert {len(field) for field in part[:-1]} == {len(part.image)}
    assert torch.equal(seen[1].mask[1], batch.mask[1, :, 16:32])  # a mask stays with its pixels
    assert torch.equal(tiled(grey, batch, SIDE, 1).anomaly_map, scores.anomaly_map)


@pytest.mark.parametrize(("shape", "at_once"), [((SIDE, SIDE), 8), ((SIDE // 2, SIDE), 8), ((2 * SIDE, 3 * SIDE), 0)])
def test_one_square_what_does_not_fit_and_what_is_not_to_be_cut_go_to_the_model_as_they_are(shape, at_once) -> None:
    batch, answer = pictures(*shape), constant(pictures(*shape))
    assert tiled(lambda given: answer if given is batch else None, batch, SIDE, at_once) is answer


def test_a_large_square_is_cut_both_ways_and_scores_like_its_worst_tile() -> None:
    seen: list[Batch] = []

    def spot(batch: Batch) -> Scores:
        seen.append(batch)
        return Scores(batch.image[:, 0], batch.image[:, 0].flatten(1).amax(1))

    batch = pictures(3 * SIDE, 2 * SIDE)
    scores = tiled(spot, batch, SIDE, 4)
    assert sum(len(part.image) for part in seen) == 5 * 3
    assert max(len(part.image) for part in seen) == 4
    assert scores.image_score.item() == batch.image[0, 0].max()


class Grey(AnomalyModule):
    """Scores brightness."""

    image_size = 32

    def forward(self, batch: Batch) -> Scores:
        return grey(batch)


@pytest.fixture
def rails(tmp_path) -> Path:
    """Dark strips of 1250 x 55 pixels, two with a bright defect, and one that lies on its side."""
    folder = tmp_path / "rails"
    for kind in ("normal", "abnormal", "masks"):
        (folder / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(2):
        rail = rng.integers(20, 60, STRIP).astype(np.uint8)
        cv2.imwrite(str(folder / f"normal/{number}.png"), rail)
        mask = np.zeros(STRIP, np.uint8)
        mask[DEFECT] = 255
        rail[DEFECT] = 255
        rail, mask = (one if number == 0 else np.rot90(one) for one in (rail, mask))
        cv2.imwrite(str(folder / f"abnormal/d{number}.png"), rail)
        cv2.imwrite(str(folder / f"masks/d{number}.png"), mask)
    return folder


def trainer(tmp_path: Path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    return Trainer(accelerator="cpu", default_root_dir=tmp_path / "run", **quiet | options)


def holds(overlay: np.ndarray, shape: tuple[int, int]) -> bool:
    """Whether a picture is a photo with a legend below it; one that is narrower than its legend has a margin."""
    height, width = overlay.shape[:2]
    return shape[0] < height < shape[0] + 200 and width in (shape[1], 320)


def data(rails: Path, **options) -> Folder:
    return Folder(**{"root": str(rails), "num_workers": 0, "tile": True} | options)


def test_a_defect_is_found_where_it_is_and_the_files_have_the_size_of_the_picture(rails, tmp_path) -> None:
    model = Grey()
    trainer(tmp_path, callbacks=[PredictionWriter("npy")]).predict(model, data(rails, batch_size=3))
    assert model.tiles_at_once == 3
    for name, shape in (("normal/0", STRIP), ("abnormal/d0", STRIP), ("abnormal/d1", STRIP[::-1])):
        heat = np.load(tmp_path / f"run/maps/{name}.npy")
        assert heat.shape == shape
        assert holds(cv2.imread(str(tmp_path / f"run/overlays/{name}.png")), shape)
    for name, turns in (("d0", 0), ("d1", -1)):
        heat = np.rot90(np.load(tmp_path / f"run/maps/abnormal/{name}.npy"), turns)
        mask = np.zeros(STRIP, bool)
        mask[DEFECT] = True
        found = heat > 0.5
        assert (found & mask).sum() / (found | mask).sum() > 0.85  # to the pixel, but for the edge


def test_pixel_metrics_are_of_the_stitched_map(rails, tmp_path) -> None:
    model = Grey()
    trainer(tmp_path).test(model, data(rails), verbose=False)
    found = model.results["mean"]
    assert found["image_auroc"] == 1
    assert found["pixel_f1_max"] > 0.95
    assert found["pixel_aupro"] > 0.99
    assert model.results["object"]["images"] == 4


def test_square_pictures_give_the_same_bits_with_and_without_tiles(tiny_clip, tmp_path) -> None:
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (60, 60 + number, 3))  # 62 is all but square
        cv2.imwrite(str(tmp_path / f"{number}.png"), noise)
    scores = []
    for tile in (False, True):
        loaded = Folder(root=str(tmp_path), batch_size=1, num_workers=0, tile=tile)
        scores.append(trainer(tmp_path).predict(CLIP(backbone=tiny_clip), loaded))
    for without, with_tiles in zip(*scores, strict=True):
        assert torch.equal(without.anomaly_map, with_tiles.anomaly_map)
        assert torch.equal(without.image_score, with_tiles.image_score)


def test_the_command_tests_and_predicts_strips_with_the_embedded_backbone(rails, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", "clip", "--model.backbone", "embedded", "--model.backbone.image_size", "32"]
    strips = ["--data", "folder", "--data.root", str(rails), "--data.tile", "true", "--data.num_workers", "0"]
    assert main(["test", *strips, *model, "--trainer.limit_test_batches", "3"]) == 0
    folder = next(Path("runs/test/clip").glob("*/version_0"))
    report = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert report["options"]["data"]["tile"] is True
    assert report["images"] == 3
    assert 0 <= report["results"]["mean"]["pixel_auroc"] <= 1
    assert len(list((folder / "overlays").iterdir())) == 3  # no more than the test has reached

    assert main(["predict", *strips, *model]) == 0
    folder = next(Path("runs/predict/clip").glob("*/version_0"))
    heat = cv2.imread(str(folder / "maps/abnormal/d1.png"), cv2.IMREAD_UNCHANGED)
    assert (heat.shape, heat.dtype) == (STRIP[::-1], np.uint16)
    assert heat.std(1).mean() > 0  # differs along the strip
    assert holds(cv2.imread(str(folder / "overlays/abnormal/d0.png")), STRIP)


def crops(loaded: Folder, epoch: int) -> list[tuple[Tensor, Tensor, int, str]]:
    items = [loaded.dataset("fit")[epoch, index] for index in range(4)]
    return [(item.image, item.mask, item.sample.label, item.sample.defect) for item in items]


def test_fit_sees_squares_that_are_anomalous_where_their_mask_is(rails) -> None:
    loaded = data(rails, image_size=32, augment=True)
    seen: set[tuple[int, int, str]] = set()
    for epoch in range(80):
        for index, (image, mask, label, defect) in enumerate(crops(loaded, epoch)):
            assert image.shape[1:] == mask.shape == (32, 32)
            assert label == int(mask.any())
            assert int(mask.sum()) == pytest.approx(int((image.mean(0) > 0.5).sum()), abs=40)
            seen.add((index // 2, label, defect))
    assert seen == {(0, 0, "good"), (1, 0, "good"), (1, 1, "abnormal")}
    again = crops(loaded, 79)
    assert all(torch.equal(first[0], second[0]) for first, second in zip(again, crops(loaded, 79), strict=True))
    assert not any(torch.equal(first[0], second[0]) for first, second in zip(again, crops(loaded, 78), strict=True))


def test_a_piece_of_an_anomalous_picture_without_a_mask_stays_anomalous(rails) -> None:
    loaded = data(rails, image_size=32, masks=None)
    assert {label for epoch in range(9) for _, _, label, _ in crops(loaded, epoch)[2:]} == {1}


def test_a_fit_on_strips_learns_from_whole_batches_of_squares_and_validates_whole_strips(
    rails, tiny_clip, tmp_path
) -> None:
    from kanoclip.models.kanoclip import KAnoCLIP

    model = KAnoCLIP(backbone=tiny_clip)
    run = trainer(tmp_path)
    run.fit(model, data(rails, batch_size=2, holdout=0.5))
    assert run.global_step == 1
    assert model.results["object"]["images"] == 2
    assert 0 <= model.results["object"]["pixel_auroc"] <= 1
