"""Anomalies on photos of good parts: exact masks, the same every time, and not zero-shot for the photos themselves."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from kanoclip.data.drawn.anomalies import KINDS, SEEN, damage, part_of
from kanoclip.data.drawn.drawing import draw
from kanoclip.data.drawn.synthetic import Synthetic
from kanoclip.data.sets.folder import Folder
from kanoclip.data.sets.joined import Joined
from kanoclip.models.checkpoint import zero_shot
from kanoclip.types import ANOMALOUS, NORMAL

DRAWN = {  # kind -> pixels of the mask, mean of the image; raise Synthetic.drawing_version when they change
    "cut_paste": (1625, 89.7),
    "scar": (56, 92.41),
    "texture": (2091, 95.53),
    "colour": (1459, 95.96),
    "blend": (2904, 100.41),
    "scratch": (189, 92.0),
    "crack": (53, 92.24),
    "hole": (143, 91.92),
    "stain": (105, 92.77),
    "contamination": (90, 92.5),
    "discolouration": (181, 93.23),
    "chip": (82, 92.79),
    "wear": (142, 92.71),
    "thread": (62, 92.31),
    "dent": (193, 92.53),
    "burn": (103, 92.13),
    "bubble": (163, 92.46),
}


def photo(number: int, category: str = "fabric") -> np.ndarray:
    return draw(category, None, number).image


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Six photos of an intact surface."""
    folder = tmp_path_factory.mktemp("good")
    for number in range(6):
        Image.fromarray(photo(number)).save(folder / f"cloth {number}.png")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mask_has_changed_and_a_person_sees_it(kind, good) -> None:
    for sample in [s for s in Synthetic(str(good), 8, kinds=[kind]).samples() if s.label == ANOMALOUS]:
        data = Synthetic(str(good), 8, kinds=[kind])
        data.samples()
        image, mask = data.read(sample)
        intact = np.asarray(Image.open(data._plans[sample.image].photo))
        change = np.abs(image.astype(float) - intact).max(-1) / 255
        assert image.shape == intact.shape
        assert change[mask == 1].mean() > SEEN
        assert 0 < mask.mean() < 0.6
        far = np.abs(change[_eroded(mask == 0)])  # soft edges reach a few pixels beyond the mask
        assert far.mean() < 0.02


def _eroded(area: np.ndarray) -> np.ndarray:
    return cv2.erode(area.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)


def test_the_same_photos_and_options_give_the_same_images(good) -> None:
    one, other = Synthetic(str(good), 20), Synthetic(str(good), 20)
    assert one.samples() == other.samples()
    assert one.samples_digest("fit") == other.samples_digest("fit")
    clone = pickle.loads(pickle.dumps(one))  # as a worker gets it
    for sample in one.samples():
        for mine, theirs in zip(one.read(sample), clone.read(sample), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("change", [{"drawing_seed": 1}, {"side": 64}, {"kinds": ["scar"]}, {"images": 22}])
def test_other_options_give_others(good, change) -> None:
    before, after = (Synthetic(str(good), **({"images": 20} | given)).samples_digest("fit") for given in ({}, change))
    assert before != after


def test_a_name_tells_the_content_of_the_photos(good, tmp_path) -> None:
    names = {sample.image for sample in Synthetic(str(good), 12).samples()}
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert {sample.image for sample in Synthetic(str(tmp_path), 12).samples()} == names  # moved
    Image.fromarray(photo(9)).save(tmp_path / "cloth 0.png")
    other = {sample.image for sample in Synthetic(str(tmp_path), 12).samples()}
    assert other & names
    assert len(other - names) >= 2


def test_share_and_kinds_are_as_asked(good) -> None:
    samples = Synthetic(str(good), 40, anomalous=0.75, kinds=["scar", "blend", "hole"]).samples()
    counts = Counter((sample.label, sample.defect) for sample in samples)
    assert counts == {(NORMAL, "good"): 10, (1, "scar"): 10, (1, "blend"): 10, (1, "hole"): 10}
    assert len({sample.image for sample in samples}) == 40
    photos = Counter(Path(sample.image).name for sample in samples if sample.label == ANOMALOUS)
    assert set(photos.values()) == {5}
    everything = Counter(sample.defect for sample in Synthetic(str(good), 400).samples())
    assert set(everything) == {"good", *KINDS}
    assert max(everything[kind] for kind in KINDS) - min(everything[kind] for kind in KINDS) <= 2


def test_a_test_on_the_photos_is_not_zero_shot_also_as_one_of_joined_sets(good, tmp_path) -> None:
    data = Synthetic(str(good), 12)
    fitted = data.image_digests("fit")
    photos = Folder(str(good)).image_digests("predict")
    assert zero_shot(fitted, photos[:1]) is False
    assert len(set(data.samples_digest("fit"))) > 1
    assert zero_shot(Joined([data, Synthetic(str(good), 4, drawing_seed=1)]).image_digests("fit"), photos) is False
    Image.fromarray(photo(50)).save(tmp_path / "other.png")
    assert zero_shot(fitted, Folder(str(tmp_path)).image_digests("predict")) is True


def test_only_good_parts_are_drawn_on(tmp_path) -> None:
    for folder in ("test/good", "test/crack", "ground_truth/crack"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(photo(len(folder))).save(tmp_path / folder / "0.png")
    data = Synthetic(str(tmp_path / "test"), 4)
    assert {plan.photo for sample in data.samples() for plan in [data._plans[sample.image]]} == {
        str(tmp_path / "test/good/0.png")
    }
    assert any("test/crack" in path for path, _ in data.left_out)
    (tmp_path / "bad/bad").mkdir(parents=True)
    Image.fromarray(photo(3)).save(tmp_path / "bad/bad/0.png")
    with pytest.raises(FileNotFoundError, match=r"No photos of good parts in .*bad"):
        Synthetic(str(tmp_path / "bad"), 4).samples()


def test_anomalies_lie_on_a_part_and_anywhere_on_a_surface() -> None:
    ground = np.full((128, 128, 3), (40, 60, 90), np.uint8)
    ground[40:90, 30:100] = photo(2)[40:90, 30:100]
    part = part_of(ground.astype(np.float32) / 255)
    assert part[50:80, 40:90].all()
    assert part[:30].sum() == part[:, :20].sum() == 0
    for kind in KINDS:
        changed, mask, _ = damage(np.random.default_rng(4), kind, ground, photo(3))
        assert mask.any()
        assert not mask[part == 0].any()
        np.testing.assert_array_equal(changed[part == 0], ground[part == 0])
    assert part_of(photo(1).astype(np.float32) / 255).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_anomaly_on_a_thin_part_is_never_missing(kind) -> None:
    photo = np.full((160, 160, 3), 255, np.uint8)
    cv2.line(photo, (20, 80), (140, 82), (0, 0, 0), 9)
    for seed in range(3):
        assert damage(np.random.default_rng((0, seed)), kind, photo, photo)[1].any()


def test_what_cannot_be_seen_on_a_photo_is_told_by_the_kind_that_was_drawn(tmp_path, caplog) -> None:
    even = np.full((160, 160, 3), 120, np.uint8)
    cv2.imwrite(str(tmp_path / "even.png"), even)
    assert damage(np.random.default_rng(0), "blend", even, even)[2] == "colour"  # a piece of it in itself
    data = Synthetic(str(tmp_path), 4, kinds=["blend"], image_size=32, num_workers=0)
    list(data.test_dataloader())
    assert "blend would hardly be seen on its photo, so it shows colour instead." in caplog.text


def test_grey_photos_stay_grey() -> None:
    grey = np.repeat(photo(1).mean(-1, keepdims=True).astype(np.uint8), 3, 2)
    for kind in KINDS:
        changed, mask, _ = damage(np.random.default_rng(1), kind, grey, grey)
        assert mask.any()
        assert (changed == changed[..., :1]).all()


def test_large_photos_are_reduced_and_thin_ones_refused(tmp_path) -> None:
    Image.fromarray(np.tile(photo(1), (3, 5, 1))).save(tmp_path / "wide.png")
    data = Synthetic(str(tmp_path), 2, side=200)
    image, mask = data.read(data.samples()[0])
    assert image.shape == (120, 200, 3)
    assert mask.shape == (120, 200)
    Image.fromarray(photo(1)[:8]).save(tmp_path / "wide.png")
    data = Synthetic(str(tmp_path), 2)
    with pytest.raises(ValueError, match=r"128 x 8 pixels, too thin to draw on"):
        data.read(data.samples()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 1}, "images is 1, expected 2 to 100,000"),
        ({"anomalous": 1.0}, r"anomalous is 1.0, expected a share in \(0, 1\)"),
        ({"kinds": ["scrach"]}, "Unknown kind 'scrach'. Did you mean 'scratch'"),
        ({"kinds": []}, "kinds is"),
        ({"side": 8}, "side is 8"),
        ({"drawing_seed": -1}, "drawing_seed is -1"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Synthetic("good", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawings_of_a_version_stay_the_same(kind) -> None:
    assert Synthetic.drawing_version == "1"
    image, mask, _ = damage(np.random.default_rng(7), kind, photo(1), photo(2, "wood"))
    pixels, mean = DRAWN[kind]
    assert int(mask.sum()) == pytest.approx(pixels, abs=3)
    assert float(image.mean()) == pytest.approx(mean, abs=0.05)
