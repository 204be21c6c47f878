import os
from pathlib import Path

import numpy as np
import pytest

from kanoclip.data import digests
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesDefects
from kanoclip.data.sets.folder import Folder
from kanoclip.data.sets.inspection import DeepPCB
from kanoclip.data.sets.manifest import Manifest
from kanoclip.types import ANOMALOUS, NORMAL


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))


class Listed(AnomalyDataModule):
    """Whatever samples it is given."""

    name = "listed"

    def __init__(self, *given, strength=1, **options) -> None:
        super().__init__(**options)
        self.given, self.strength = list(given), strength

    def samples(self):
        return self.given


class Squared(Listed):
    """Reads in its own way."""

    def read(self, sample):
        image, mask = super().read(sample)
        return (image.astype(int) ** 2 // 255).astype(np.uint8), mask


@pytest.fixture
def pair(write, picture, mask):
    return [
        Sample(write("a.png", picture), (), NORMAL, "disc", "good"),
        Sample(write("b.png", picture // 2), (write("m.png", mask),), ANOMALOUS, "disc", "hole"),
    ]


def moved(sample, name):
    """The same sample with its image under another name."""
    path = Path(sample.image).with_name(name)
    path.write_bytes(Path(sample.image).read_bytes())
    return Sample(str(path), sample.masks, sample.label, sample.category, sample.defect, sample.split)


def test_an_image_is_known_by_its_content_wherever_it_lies(pair, tmp_path):
    first, second = Listed(*pair).image_digests("test")
    assert first != second
    assert all(-(2**63) <= number < 2**63 for number in (first, second))
    assert Listed(moved(pair[0], "c.png"), pair[1]).image_digests("test") == [first, second]
    assert Listed(pair[1], pair[0]).image_digests("test") == [second, first]
    (tmp_path / "link").symlink_to(tmp_path)
    through_a_link = Sample(str(tmp_path / "link" / "a.png"), (), NORMAL)
    assert Listed(through_a_link).image_digests("fit") == [first]


def test_two_sets_that_share_images_are_seen_to_share_them(write, picture):
    for number in range(4):
        write(f"one/normal/{number}.png", picture + number)
        write(f"two/abnormal/{number}.png", picture + number + 2)
    write("two/normal/0.png", picture + 50)
    root = Path(write("x.png", 0)).parent
    one, two = (set(Folder(root=str(root / name)).image_digests("test")) for name in ("one", "two"))
    assert len(one & two) == 2
    whole = Folder(root=str(root), normal=["one/normal", "two/normal"], abnormal="two/abnormal")
    assert one | two == set(whole.image_digests("test"))


def test_images_whose_content_is_not_known_have_no_numbers(pair, tmp_path):
    assert Squared(*pair).image_digests("test") is None
    assert Squared(*pair).samples_digest("test") is None
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "gone.png", tmp_path / "folder"):
        assert Listed(Sample(str(path), (), NORMAL)).image_digests("test") is None


def test_a_set_of_the_package_that_reads_masks_in_its_own_way_is_known_by_its_files(pair, tmp_path):
    data = DeepPCB(root=str(tmp_path))
    data._samples = [pair[0]]
    assert data.image_digests("test") == Listed(pair[0]).image_digests("test")


def test_a_file_that_may_not_be_read_is_not_known(pair, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(digests, "sha256", denied)
    assert Listed(*pair).image_digests("test") is None


def test_a_drawn_image_is_known_by_its_name_and_the_version_of_the_drawings(monkeypatch):
    options = {"category": "gear", "images": 4}
    numbers = Surfaces(**options).image_digests("test")
    assert len(set(numbers)) == 4
    assert Surfaces(**options, image_size=64, batch_size=1).image_digests("test") == numbers
    assert not set(numbers) & set(Surfaces(**options, drawing_seed=1).image_digests("test"))
    assert not set(numbers) & set(SurfacesDefects(**options).image_digests("test"))
    digest = Surfaces(**options).samples_digest("test")
    monkeypatch.setattr(Surfaces, "drawing_version", "next")
    assert not set(numbers) & set(Surfaces(**options).image_digests("test"))
    assert Surfaces(**options).samples_digest("test") != digest


def test_a_version_does_not_speak_for_a_read_that_replaces_it():
    class Inverted(Surfaces):
        def read(self, sample):
            image, mask = super().read(sample)
            return 255 - image, mask

    class Named(Inverted):
        drawing_version = "inverted 1"

    assert Inverted(category="gear", images=2).image_digests("test") is None
    assert Named(category="gear", images=2).image_digests("test") is not None


def test_the_digest_of_samples_changes_with_all_that_changes_a_result(pair, write, mask):
    normal, anomalous = pair
    digest = Listed(normal, anomalous).samples_digest("predict")
    assert len(digest) == 16
    int(digest, 16)
    test = Listed(normal, anomalous).samples_digest("test")
    assert test != digest  # predict reads no masks
    other = write("n.png", 255 - mask)
    changed = [
        (anomalous, normal), (normal,), (normal, anomalous, normal),
        (normal, Sample(anomalous.image, (other,), ANOMALOUS, "disc")),
        (normal, Sample(anomalous.image, (), ANOMALOUS, "disc")),
        (normal, Sample(anomalous.image, anomalous.masks, ANOMALOUS, "ring")),
        (normal, Sample(anomalous.image, anomalous.masks, NORMAL, "disc")),
    ]  # fmt: skip
    found = [Listed(*samples).samples_digest("test") for samples in changed]
    assert len({test, *found}) == 1 + len(changed)
    gone = Sample(anomalous.image, ("/nowhere.png",), ANOMALOUS, "disc")
    assert Listed(normal, gone).samples_digest("test") is None
    assert Listed(normal, gone).image_digests("test") is not None


def test_the_digest_of_samples_does_not_change_with_names_and_how_they_are_read(pair):
    normal, anomalous = pair
    digest = Listed(normal, anomalous).samples_digest("test")
    renamed = Sample(anomalous.image, anomalous.masks, ANOMALOUS, "disc", "another name of the defect")
    assert Listed(moved(normal, "c.png"), renamed).samples_digest("test") == digest
    assert Listed(normal, anomalous, batch_size=3, num_workers=0, image_size=9).samples_digest("test") == digest


def test_a_changed_file_of_equal_size_and_time_is_another_image(pair):
    path, when = Path(pair[0].image), os.stat(pair[0].image)
    before = Listed(*pair).image_digests("test")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    after = Listed(*pair).image_digests("test")
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)


def test_options_that_change_pixels_are_the_ones_in_use(pair, tmp_path):
    plain = {"image_size": None, "mask_threshold": None, "mask_values": None, "tile": False}
    assert Folder(root="x").pixel_options() == plain
    data = Folder(root="y", image_size=24, mask_threshold=9, tile=True, batch_size=3, seed=4, holdout=0.5, limit=2)
    assert data.pixel_options() == {"image_size": 24, "mask_threshold": 9, "mask_values": None, "tile": True}
    assert DeepPCB().pixel_options() == {**plain, "mask_threshold": DeepPCB.usual_threshold}
    labels = Manifest(str(tmp_path / "list.csv"), mask_values=[2], mask_threshold=3)
    assert labels.pixel_options() == {**plain, "mask_values": [2]}  # a threshold is not used then
    assert Listed(*pair, strength=3, seed=5).pixel_options() == {**plain, "strength": 3}


def test_a_resumed_fit_must_agree_in_what_it_sees(tmp_path):
    options = Surfaces(category=["gear", "carpet"], images=6, image_size=64).fit_options()
    assert options == {
        "category": ["carpet", "gear"], "images": 6, "drawing_seed": 0, "image_size": 64, "mask_threshold": None,
        "mask_values": None, "tile": False, "augment": False, "seed": 111, "holdout": 0.0, "limit": None,
    }  # fmt: skip
    free = {"root": "elsewhere", "num_workers": 0, "batch_size": 2, "cache": True, "seed": 111}
    assert Surfaces(category=["carpet", "gear"], images=6, image_size=64, **free).fit_options() == options
    for other in ({"seed": 2}, {"augment": True}, {"limit": 3}, {"holdout": 0.1}, {"images": 8}, {"category": "gear"}):
        given = {"category": ["gear", "carpet"], "images": 6, "image_size": 64, **other}
        assert Surfaces(**given).fit_options() != options
    assert Surfaces(category="all").fit_options() == Surfaces().fit_options()
    here, there = Manifest(str(tmp_path / "a.csv")), Manifest(str(tmp_path / "b" / "a.csv"))
    assert here.fit_options() == there.fit_options()


def test_the_seed_is_that_of_the_run_unless_it_is_given():
    assert Surfaces().seed == Surfaces(seed=111).seed == 111
    assert Surfaces(seed=0).seed == 0
