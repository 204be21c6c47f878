"""Distances from reference images, and what they depend on."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kanoclip.data.sets.folder import Folder
from kanoclip.heads import patch_memory
from kanoclip.heads.memory import NoMemory
from kanoclip.heads.patch_memory import PatchMemory, greedy, nearest
from kanoclip.types import Features, KanoclipError, MissingError


@pytest.fixture
def good(tmp_path):
    for number in range(4):
        for category in ("bottle", "nut"):
            path = tmp_path / f"good/{category}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 8, 3), 40 * number + len(category), np.uint8))
    return tmp_path / "good"


def encode(batches):
    """Two sets: of 4 and of 1 vector an image, that depend on its grey level."""
    level = torch.cat([batch.image.mean((1, 2, 3)) for batch in batches])
    first = torch.stack([torch.cos(level * (k + 1)) for k in range(12)], 1).view(-1, 3)
    return [first, torch.stack([level, 1 - level], 1)]


def filled(*args, seed=None, **options):
    memory = PatchMemory(*args, **options)
    memory.choose(None, seed)
    memory.fill(encode, 8)
    return memory


def rows(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_a_category_without_references_is_refused_before_anything_is_encoded(good) -> None:
    memory, data = PatchMemory(str(good)), Folder(str(good), category_name="screw")
    with pytest.raises(KanoclipError, match=r"no reference images of 'screw', only of bottle, nut\. Add a folder"):
        memory.choose(data, None)
    PatchMemory(str(good / "nut")).choose(data, None)  # for all categories


@pytest.mark.parametrize("at_once", [1, 7, 1 << 24])
def test_the_distance_is_half_of_one_minus_the_highest_cosine(monkeypatch, at_once) -> None:
    monkeypatch.setattr(patch_memory, "AT_ONCE", at_once)  # a bank in pieces gives the same
    vectors, bank = 3 * rows(2, 5, 8), rows(23, 8, seed=1)
    expected = torch.stack([(1 - F.cosine_similarity(one[:, None], bank, dim=-1)).amin(1) / 2 for one in vectors])
    torch.testing.assert_close(nearest(vectors, bank), expected, rtol=0, atol=1e-6)
    assert float(nearest(bank[None], bank).max()) < 1e-6  # what is remembered is at no distance


def test_autocast_does_not_round_distances() -> None:
    vectors, bank = rows(2, 5, 64), rows(9, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = nearest(bank[None] + 1e-3 * rows(1, 9, 64, seed=3), bank)
    assert float(rounded.max()) < 1e-6
    assert nearest(vectors, bank).dtype == torch.float32


def test_each_image_is_compared_with_its_own_category(good) -> None:
    memory = filled(f"{good}")
    vectors = [rows(3, 4, 3), rows(3, 2, 2)]
    together = memory.distances(vectors, ["nut", "bottle", "nut"])
    assert [one.shape for one in together] == [(3, 4), (3, 2)]
    for i, name in enumerate(("nut", "bottle", "nut")):
        alone = memory.distances([one[i : i + 1] for one in vectors], [name])
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[i : i + 1], part, rtol=0, atol=0)
    other = memory.distances(vectors, ["bottle"] * 3)
    assert not torch.equal(other[0][0], together[0][0])


def test_a_category_without_references_is_an_error_that_names_those_with(good) -> None:
    memory = filled(f"{good}")
    with pytest.raises(KanoclipError, match=r"no reference images of 'cable', only of bottle, nut"):
        memory.distances([rows(1, 4, 3)], ["cable"])
    flat = filled(f"{good}/nut")
    assert flat.distances([rows(1, 4, 3), rows(1, 1, 2)], ["cable"])[0].shape == (1, 4)
    empty = PatchMemory(f"{good}")
    with pytest.raises(KanoclipError, match=r"memory is empty: call model\.remember"):
        empty.distances([rows(1, 4, 3)], ["nut"])


def test_the_map_is_the_mean_over_levels(good) -> None:
    memory = filled(f"{good}/nut")
    memory._banks[""] = [rows(5, 6, seed=2), rows(7, 6, seed=3)]
    patches = rows(2, 3, 4, 6)
    heat = memory(Features(patches, rows(3, 6), (2, 2)), ["nut"] * 3)
    first, second = (nearest(one, bank) for one, bank in zip(patches, memory._banks[""], strict=True))
    torch.testing.assert_close(heat.flatten(1), (first + second) / 2)
    assert NoMemory()(Features(patches, rows(3, 6), (2, 2)), ["nut"] * 3) is None


def test_greedy_takes_what_lies_farthest_from_all_that_is_taken() -> None:
    angles = torch.tensor([0.0, 0.01, 0.02, 1.0, 1.01, 2.5])
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    assert sorted(greedy(circle, 3).tolist())[1:] != [1, 2]
    kept = circle[greedy(circle, 3)]
    assert float(nearest(circle[None], kept).max()) < 1e-3  # every cluster has one
    assert float(nearest(circle[None], circle[[0, 1, 2]]).max()) > 0.1


@pytest.mark.parametrize("subset", ["random", "greedy"])
def test_a_subset_has_the_size_that_is_asked_for_and_is_the_same_again(good, subset) -> None:
    first, again = (filled(f"{good}", subset=subset, size=5) for _ in range(2))
    assert [len(bank) for bank in first._banks["nut"]] == [5, 4]  # the second set has no more
    assert torch.equal(first._banks["nut"][0], again._banks["nut"][0])


def test_the_identity_changes_with_what_is_remembered_and_not_with_its_place(good, tmp_path) -> None:
    def of(folder, run=None, **options):
        memory = PatchMemory(f"{folder}", **options)
        memory.choose(None, run)
        return memory.references

    whole = of(good)
    assert len(whole) == 16
    shutil.copytree(good, tmp_path / "moved")
    assert of(tmp_path / "moved") == whole
    assert of(good, run=5) == whole  # nothing is drawn
    assert of(good, shots=4) == whole  # all there are
    (good / "nut/0.png").rename(good / "nut/renamed.png")
    assert of(good) == whole
    drawn = {of(good, shots=2, run=run) for run in range(6)}
    assert len(drawn) > 1
    assert whole not in drawn
    subsets = [of(good, subset="greedy", size=5), of(good, subset="greedy", size=6), of(good, subset="random", size=5)]
    seeds = [of(good, subset="random", size=5, seed=7), of(good, subset="random", size=5, seed=8)]
    assert len({whole, *subsets, *seeds}) == 6
    assert seeds[0] == of(good, 1, subset="random", size=5, seed=7)  # its own seed goes before that of the run
    (good / "nut/0.png").write_bytes((good / "bottle/1.png").read_bytes())
    assert of(good) != whole


def test_a_memory_that_would_fill_the_machine_is_refused(good, monkeypatch) -> None:
    monkeypatch.setattr(patch_memory, "LARGEST", 40)
    with pytest.raises(KanoclipError, match=r"memory of 4 reference images per category takes .*subset random"):
        filled(f"{good}")
    filled(f"{good}", subset="random", size=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shots": 0}, r"memory\.shots is 0, expected 1 or more"),
        ({"with_replacement": True}, "with_replacement draws images"),
        ({"subset": "best", "size": 3}, "expected none, random or greedy"),
        ({"subset": "greedy"}, "a subset keeps 1 vector or more"),
        ({"size": 3}, "a subset keeps 1 vector or more"),
        ({"subset": "greedy", "size": 0}, "a subset keeps 1 vector or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, said) -> None:
    with pytest.raises(KanoclipError, match=said):
        PatchMemory(**options)


def test_a_folder_that_is_not_there_is_told_before_anything_is_loaded(tmp_path) -> None:
    with pytest.raises(MissingError, match=r"No folder .*none\. Set --model\.memory\.reference"):
        PatchMemory(f"{tmp_path}/none")
