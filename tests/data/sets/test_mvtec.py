from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kanoclip.data.about import DamagedDataError
from kanoclip.data.sets.mvtec import MVTecAD
from kanoclip.types import ANOMALOUS, NORMAL, MissingError


@pytest.fixture
def tree(write, mask, picture, tmp_path) -> Path:
    """Two categories in mvtec/: numbers repeat in every folder, one defect has no mask, suffixes differ in case."""
    for category in ("bottle", "cable"):
        for split in ("train", "test"):
            for number in range(3):
                write(f"mvtec/{category}/{split}/good/{number:03d}.png", picture)
    for number in range(2):
        write(f"mvtec/bottle/test/broken/{number:03d}.png", picture)
        write(f"mvtec/bottle/ground_truth/broken/{number:03d}_mask.png", mask)
    write("mvtec/bottle/test/dirty/000.PNG", picture)
    write("mvtec/cable/test/bent/000.jpg", picture)
    write("mvtec/cable/ground_truth/bent/000.png", mask)
    (tmp_path / "mvtec" / "license.txt").touch()
    (tmp_path / "mvtec" / "bottle" / "readme.txt").touch()
    return tmp_path


def module(root: Path, **kwargs) -> MVTecAD:
    return MVTecAD(root=str(root), **{"image_size": 24, "num_workers": 0, **kwargs})


def test_everything_is_indexed_by_its_folder(tree):
    counts = Counter((s.category, s.split, s.label, s.defect, len(s.masks)) for s in module(tree).samples())
    assert counts == {
        ("bottle", "train", NORMAL, "good", 0): 3,
        ("bottle", "test", NORMAL, "good", 0): 3,
        ("bottle", "test", ANOMALOUS, "broken", 1): 2,
        ("bottle", "test", ANOMALOUS, "dirty", 0): 1,
        ("cable", "train", NORMAL, "good", 0): 3,
        ("cable", "test", NORMAL, "good", 0): 3,
        ("cable", "test", ANOMALOUS, "bent", 1): 1,
    }


def test_masks_belong_to_the_same_defect_and_number(tree):
    for sample in module(tree).samples():
        for mask in sample.masks:
            assert Path(mask).parent.name == Path(sample.image).parent.name
            assert Path(mask).stem.removesuffix("_mask") == Path(sample.image).stem


def test_a_batch_of_the_test_split_has_the_drawn_masks(tree):
    data = module(tree, category="cable", batch_size=4)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.defect == ["bent", "good", "good", "good"]
    assert batch.mask.sum((1, 2)).tolist() == [6 * 6, 0, 0, 0]  # 6 x 8 of 24 x 32 pixels, resized to 24 x 24
    assert batch.has_mask.tolist() == [True] * 4
    assert batch.size.tolist() == [[24, 32]] * 4


@pytest.mark.parametrize("below", ["", "mvtec"])
def test_the_root_may_be_the_parent_or_the_data_set(tree, below):
    assert module(tree / below).categories == ["bottle", "cable"]


def test_the_root_may_be_a_single_category(tree, monkeypatch):
    assert module(tree / "mvtec" / "cable").categories == ["cable"]
    monkeypatch.chdir(tree / "mvtec" / "cable")
    assert module(Path(".")).categories == ["cable"]


def test_another_folder_called_test_is_not_in_the_way(tree, write):
    (tree / "mvtec").rename(tree / "mvtec_anomaly_detection")
    write("test/scratch/1.png")
    assert {sample.category for sample in module(tree).samples()} == {"bottle", "cable"}


def test_an_unknown_category_is_an_error(tree):
    with pytest.raises(ValueError, match=r"Unknown category 'botle' of mvtec\. Did you mean 'bottle'\?"):
        module(tree, category="botle").setup("test")


def test_a_missing_root_is_an_error_with_two_remedies(tmp_path):
    expected = (
        rf"No MVTec AD at {tmp_path}/mvtec: expected files such as bottle/test/good/000\.png\. Set --data\.root to the "
        r"folder that contains mvtec/, or get it: kanoclip data download mvtec"
    )
    with pytest.raises(MissingError, match=expected):
        module(tmp_path).setup("test")
    (tmp_path / "mvtec").mkdir()
    with pytest.raises(MissingError, match=expected):
        module(tmp_path).setup("test")


def test_a_mask_without_an_image_is_an_error(tree, write, mask):
    write("mvtec/bottle/ground_truth/broken/009_mask.png", mask)
    with pytest.raises(
        DamagedDataError, match=r"No image for the mask .*009_mask\.png: expected one named bottle/broken/009"
    ):
        module(tree).setup("test")


def test_a_mask_of_a_good_image_is_ignored(tree, write, mask):
    write("mvtec/bottle/ground_truth/good/000_mask.png", mask)
    assert all(not s.masks for s in module(tree).samples() if s.label == NORMAL)


def test_an_empty_test_split_is_an_error(tree):
    for image in (tree / "mvtec" / "cable" / "test").rglob("*.*"):
        image.unlink()
    for mask in (tree / "mvtec" / "cable" / "ground_truth").rglob("*.*"):
        mask.unlink()
    with pytest.raises(ValueError, match=r"No test images of cable in .*: test uses the test split"):
        module(tree, category="cable").setup("test")


def test_the_identity_is_the_name(tree):
    assert MVTecAD().identity == "mvtec"
    assert module(tree).identity == "mvtec"
    assert module(tree / "mvtec" / "cable").identity == "mvtec"


def test_another_set_in_this_layout_has_an_identity_of_its_own(tree, write):
    write("mvtec/my_bolt/test/good/000.png")
    assert module(tree).identity == "mvtec"  # with a category more it is still the publisher's
    for category in ("screw", "gasket", "hinge"):
        write(f"my_parts/{category}/test/good/000.png")
    data = module(tree / "my_parts")
    assert data.identity == f"mvtec {(tree / 'my_parts').resolve()}"
    assert module(tree / "my_parts", category="screw").identity == data.identity
    assert module(tree / "my_parts" / "hinge").identity == data.identity
