from __future__ import annotations

import logging
import pickle
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.faults import UnreadableImageError
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN

COUNTS = {("disc", NORMAL): 10, ("disc", ANOMALOUS): 30, ("ring", NORMAL): 7, ("ring", ANOMALOUS): 5}


class Drawn(AnomalyDataModule):
    """Images of one number each, without files."""

    name = "drawn"
    indexed = 0

    def samples(self) -> list[Sample]:
        self.indexed += 1
        test = [
            Sample(f"drawn://{category}/{label}/{i}", (), label, category)
            for (category, label), count in COUNTS.items()
            for i in range(count)
        ]
        return test + [Sample(f"drawn://disc/train/{i}", (), NORMAL, "disc", "good", "train") for i in range(9)]

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        level = sum(sample.image.encode()) % 256
        return np.full((8, 8, 3), level, np.uint8), np.full((8, 8), sample.label == ANOMALOUS, np.uint8)


class Files(AnomalyDataModule):
    """Whatever samples it is given."""

    name = "files"

    def __init__(self, *samples: Sample, **kwargs: Any) -> None:
        super().__init__(**{"image_size": 8, "num_workers": 0, **kwargs})
        self.given = list(samples)

    def samples(self) -> list[Sample]:
        return self.given


def drawn(**kwargs: Any) -> Drawn:
    return Drawn(**{"image_size": 8, "num_workers": 0, **kwargs})


def paths(samples: list[Sample]) -> set[str]:
    return {sample.image for sample in samples}


def test_fit_and_test_use_the_test_split_and_predict_uses_all():
    data = drawn()
    assert len(data.part("fit")) == len(data.part("test")) == sum(COUNTS.values())
    assert len(data.part("predict")) == sum(COUNTS.values()) + 9
    assert {sample.split for sample in data.part("fit")} == {"test"}


@pytest.mark.parametrize("category", [None, "all"])
def test_all_categories_are_used_by_default(category):
    assert drawn(category=category).categories == ["disc", "ring"]


@pytest.mark.parametrize("category", ["ring", ["ring"]])
def test_only_the_chosen_categories_are_used(category):
    data = drawn(category=category)
    assert data.categories == ["ring"]
    assert {sample.category for sample in data.part("predict")} == {"ring"}


def test_an_unknown_category_is_an_error_that_knows_better():
    expected = r"Unknown category 'rign' of drawn\. Did you mean 'ring'\? In data are: disc, ring\."
    with pytest.raises(ValueError, match=expected):
        drawn(category=["disc", "rign"]).setup("test")


@pytest.mark.parametrize("holdout", [0.1, 1 / 3, 0.5, 0.8])
def test_the_held_out_part_is_disjoint_exhaustive_and_stratified(holdout):
    data = drawn(holdout=holdout)
    fit, held_out = data.part("fit"), data.part("validate")
    assert paths(fit).isdisjoint(paths(held_out))
    assert paths(fit) | paths(held_out) == paths(drawn().part("fit"))
    assert data.part("test") == held_out
    counted = Counter((sample.category, sample.label) for sample in held_out)
    for stratum, count in COUNTS.items():
        assert abs(counted[stratum] - holdout * count) <= 0.5


def test_the_held_out_part_depends_on_the_seed_alone():
    held_out = paths(drawn(holdout=0.5).part("test"))
    assert paths(drawn(holdout=0.5).part("test")) == held_out
    assert paths(drawn(holdout=0.5, seed=112).part("test")) != held_out
    alone = paths(drawn(holdout=0.5, category="ring").part("test"))
    assert alone == {path for path in held_out if "ring" in path}


def test_a_limit_draws_by_seed_from_each_category_and_split():
    data = drawn(limit=4)
    assert Counter((s.category, s.split) for s in data.part("predict")) == {
        ("disc", "test"): 4,
        ("ring", "test"): 4,
        ("disc", "train"): 4,
    }
    assert Counter((s.category, s.label) for s in data.part("test")) == {
        ("disc", NORMAL): 2,
        ("disc", ANOMALOUS): 2,
        ("ring", NORMAL): 2,
        ("ring", ANOMALOUS): 2,
    }
    assert data.part("test") == drawn(limit=4).part("test")
    assert paths(data.part("test")) != paths(drawn(limit=4, seed=5).part("test"))


def test_the_index_is_read_once():
    data = drawn(holdout=0.5)
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    list(data.train_dataloader())
    assert data.indexed == 1


def test_loaders_match_their_stage():
    data = drawn(holdout=0.25, batch_size=5)
    data.setup("fit")
    counts = [sum(len(batch.path) for batch in loader) for loader in (data.train_dataloader(), data.val_dataloader())]
    assert counts == [len(data.part("fit")), len(data.part("validate"))]
    shuffled = [path for batch in data.train_dataloader() for path in batch.path]
    assert shuffled != [sample.image for sample in data.part("fit")]
    assert sorted(shuffled) == sorted(paths(data.part("fit")))
    assert drawn().val_dataloader() == []


def test_augmentation_is_for_fit_only():
    data = drawn(augment=True, holdout=0.5)
    size = {stage: len(data.dataset(stage).transform.pipeline) for stage in ("fit", "validate", "test", "predict")}
    assert size["fit"] > 1
    assert size["validate"] == size["test"] == size["predict"] == 1
    assert len(drawn().dataset("fit").transform.pipeline) == 1


def test_what_fills_a_memory_are_the_images_of_fit_in_their_order_and_not_augmented():
    data, plain = drawn(augment=True, holdout=0.5), drawn(holdout=0.5)
    found = list(data.fitted_dataloader())
    assert [path for batch in found for path in batch.path] == [one.image for one in data.part("fit")]
    expected = torch.stack([plain.dataset("fit")[i].image for i in range(len(data.part("fit")))])
    torch.testing.assert_close(torch.cat([batch.image for batch in found]), expected, rtol=0, atol=0)


def test_the_image_size_is_the_models_when_none_is_set():
    data = drawn(image_size=None)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(image_size=12))  # type: ignore[assignment]
    data.setup("test")
    assert data.dataset("test")[0].image.shape == (3, 12, 12)


def test_no_image_size_and_no_model_is_an_error():
    with pytest.raises(ValueError, match=r"image_size of drawn is null.*Set --data\.image_size"):
        drawn(image_size=None).setup("test")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 0),
        ("batch_size", 0),
        ("num_workers", -1),
        ("mask_threshold", 255),
        ("mask_threshold", -1),
        ("holdout", 1.0),
        ("holdout", -0.1),
        ("seed", -1),
        ("limit", 0),
    ],
)
def test_a_setting_out_of_range_is_an_error(name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}, expected .*Set --data\.{name}\."):
        drawn(**{name: value})


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match=r"No images in /nowhere\. Check --data\.root\."):
        Files(root="/nowhere").setup("predict")


def test_no_test_images_is_an_error_for_fit_and_test_but_not_for_predict():
    data = Files(Sample("a.png", (), NORMAL, "disc", "good", "train"))
    for stage in ("fit", "test"):
        with pytest.raises(ValueError, match=rf"No test images of disc in data: {stage} uses the test split.*predict"):
            data.setup(stage)
    data.setup("predict")


@pytest.mark.parametrize(("holdout", "stage"), [(0.1, "validate"), (0.9, "fit")])
def test_a_holdout_that_leaves_nothing_is_an_error(holdout, stage):
    data = Files(Sample("a.png", (), NORMAL, "disc"), Sample("b.png", (), ANOMALOUS, "disc"), holdout=holdout)
    with pytest.raises(ValueError, match=rf"Nothing is left for {stage} .* with holdout {holdout}\. Set another"):
        data.setup("fit")


def test_validate_without_a_held_out_part_is_an_error():
    with pytest.raises(ValueError, match=r"holdout is 0\. Set --data\.holdout 0\.2, or run test"):
        drawn().setup("validate")


def test_images_without_labels_are_an_error_except_for_predict():
    data = Files(Sample("a.png", (), UNKNOWN, "disc"))
    with pytest.raises(ValueError, match=r"test needs labels, and a\.png has none\. Run predict"):
        data.setup("test")
    data.setup("predict")


def test_anomalous_images_without_masks_are_counted_and_told_once(caplog):
    data = Files(
        Sample("a.png", (), ANOMALOUS, "disc"),
        Sample("b.png", ("m.png",), ANOMALOUS, "disc"),
        Sample("c.png", (), NORMAL, "disc"),
    )
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
        data.setup("test")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "1 of 2 anomalous images of files have no mask"
    ]
    caplog.clear()
    drawn().setup("test")
    assert caplog.records == []


def test_image_and_mask_are_read_as_one_pair(write, picture, mask):
    data = Files(mask_threshold=100)
    image, target = data.read(Sample(write("a.png", picture), (write("m.png", mask),), ANOMALOUS))
    np.testing.assert_array_equal(image, picture)
    np.testing.assert_array_equal(target, mask // 255)
    assert data.read(Sample(write("a.png", picture)))[1] is None


def test_the_threshold_of_the_masks_is_used(write, picture):
    sample = Sample(write("a.png", picture), (write("m.png", 50),), ANOMALOUS)
    assert Files(mask_threshold=49).read(sample)[1].all()
    assert not Files(mask_threshold=50).read(sample)[1].any()


def test_a_mask_of_another_size_is_an_error_with_both_files(write, picture):
    sample = Sample(write("a.png", picture), (write("m.png", picture[:10, :9, 0]),), ANOMALOUS)
    expected = r"m\.png: this mask is 9x10 pixels, but its image .*a\.png is 32x24\. Export the mask"
    with pytest.raises(UnreadableImageError, match=expected):
        Files().read(sample)


def test_predict_needs_no_masks_and_notes_what_it_cannot_read(write, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    data = Files(
        Sample(write("a.png", 5), (str(tmp_path / "missing.png"),), ANOMALOUS),
        Sample(str(tmp_path / "bad.png")),
        batch_size=1,
    )
    for _ in range(2):  # a second run starts a new list
        loader = data.predict_dataloader()
        assert [batch.path for batch in loader] == [[str(tmp_path / "a.png")]]
        assert data.unreadable == [(str(tmp_path / "bad.png"), "it is not an image. Replace the file or remove it.")]


def test_workers_do_not_take_the_trainer_along():
    data = drawn()
    data.trainer = SimpleNamespace(unpicklable=lambda: None)  # type: ignore[assignment]
    copy = pickle.loads(pickle.dumps(data.dataset("test")))
    assert torch.equal(copy[3].image, data.dataset("test")[3].image)
    assert data.trainer is not None
