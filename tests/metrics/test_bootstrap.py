"""Intervals over images: the same draws for every model, and none rather than a wrong one."""

import cv2
import numpy as np
import pytest
import torch

from kanoclip.metrics import ImageMetrics, PixelMetrics
from kanoclip.metrics import bootstrap as b

SIDE = 48


def pictures(count, seed=0, squeeze=1.0):
    """Labels, masks, smooth maps and image scores: defects score more than the rest on average."""
    numbers = np.random.default_rng(seed)
    label = np.arange(count) % 2
    masks, maps = np.zeros((count, SIDE, SIDE), np.uint8), []
    for at in range(count):
        noise = numbers.normal(size=(SIDE, SIDE)) + 0.3 * numbers.normal()
        if label[at]:
            for y, x in numbers.integers(0, SIDE - 12, (2, 2)):
                masks[at, y : y + 9, x : x + 9] = 1
            noise += masks[at] * numbers.normal(1.5, 1)
        maps.append(0.5 + squeeze * np.tanh(cv2.GaussianBlur(noise, (0, 0), 2)) / 2)
    maps = np.array(maps, np.float32)
    return label, masks, maps, maps.max((1, 2))


def images_of(label, masks, maps, score, category="nut"):
    rows = zip(label, masks, maps, score, strict=True)
    return [b.Tested(category, int(one), float(s), b.summary(m, k)) for one, k, m, s in rows]


def exact(label, masks, maps, score):
    image, pixel = ImageMetrics(), PixelMetrics()
    image.update(torch.tensor(score), torch.tensor(label))
    pixel.update(torch.tensor(maps), torch.tensor(masks))
    found = {f"image_{name}": float(value) for name, value in image.compute().items()}
    return found | {f"pixel_{name}": float(value) for name, value in pixel.compute().items()}


@pytest.mark.parametrize("squeeze", [1, 1e-3])
def test_the_images_themselves_have_their_metrics(squeeze) -> None:
    made = pictures(40, squeeze=squeeze)
    found, expected = b._category(images_of(*made), np.random.default_rng(0)), exact(*made)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.shape == (1 + b.DRAWS,)
        assert values[0] == pytest.approx(expected[name], abs=1e-6 if name.startswith("image") else 4e-3), name
        assert values.std() > 1e-3


def test_each_draw_has_the_metrics_of_the_drawn_images() -> None:
    made = pictures(24)
    label = made[0]
    found = b._category(images_of(*made), np.random.default_rng(3))
    times = b._draws(label, 1 + b.DRAWS, np.random.default_rng(3)).astype(int)
    for at in (1, 500):
        assert [times[at, label == one].sum() for one in (0, 1)] == [12, 12]  # each class keeps its size
        again = np.repeat(np.arange(24), times[at])
        expected = exact(*(part[again] for part in made))
        for name, values in found.items():
            assert values[at] == pytest.approx(expected[name], abs=1e-6 if name.startswith("image") else 6e-3), name


def test_scores_that_tie_count_half() -> None:
    made = pictures(20)
    score = np.round(made[3], 1)
    found = b._category(images_of(*made[:3], score), np.random.default_rng(0))
    expected = exact(*made[:3], score)
    assert [found[f"image_{one}"][0] for one in ("auroc", "ap", "f1_max")] == pytest.approx(
        [expected[f"image_{one}"] for one in ("auroc", "ap", "f1_max")]
    )


def test_an_interval_holds_what_other_images_give_about_as_often_as_it_says() -> None:
    numbers, truth, inside = np.random.default_rng(0), 0.7602, 0  # AUROC of N(0, 1) and N(1, 1)
    label = np.repeat([0, 1], 60)
    for _ in range(60):
        score = numbers.normal(label)
        images = [b.Tested("nut", int(one), float(s), None) for one, s in zip(label, score, strict=True)]
        low, high = b.interval(b._category(images, np.random.default_rng(1))["image_auroc"][1:])
        inside += low <= truth <= high
    assert inside >= 52


def test_draws_of_two_models_are_of_the_same_images_and_of_other_images_others() -> None:
    label, masks, maps, score = pictures(40)
    results = {"nut": exact(label, masks, maps, score)}
    _, one = b.draw(images_of(label, masks, maps, score), results, "these")
    better = score + 0.02 * label
    _, two = b.draw(images_of(label, masks, maps, better), {"nut": exact(label, masks, maps, better)}, "these")
    _, other = b.draw(images_of(label, masks, maps, score), results, "others")
    name = "image_auroc"
    assert (two[name] - one[name]).min() >= -1e-6  # in no draw is what is always better worse
    assert (two[name] - one[name]).std() < one[name].std() / 2
    assert abs(np.corrcoef(one[name], other[name])[0, 1]) < 0.2
    assert np.array_equal(b.draw(images_of(label, masks, maps, score), results, "these")[1][name], one[name])


def test_the_mean_is_over_categories_and_narrower() -> None:
    made = {name: pictures(40, seed) for seed, name in enumerate(("nut", "ring", "mean"))}
    images = [one for name, parts in made.items() for one in images_of(*parts, category=name)]
    called = {"nut": "nut", "ring": "ring", "mean": "mean (category)"}  # which is no mean
    results = {called[name]: exact(*parts) for name, parts in made.items()} | {"mean": {}}
    intervals, means = b.draw(images, results, "")
    assert set(intervals) == {"nut", "ring", "mean (category)", "mean"}
    expected = np.mean([one["pixel_auroc"] for name, one in results.items() if name != "mean"])
    assert means["pixel_auroc"].mean() == pytest.approx(expected, abs=0.02)
    width = {name: ends["image_auroc"][1] - ends["image_auroc"][0] for name, ends in intervals.items()}
    assert width["mean"] < min(width[name] for name in called.values())


def test_of_few_images_or_where_quantiles_do_not_do_there_is_none() -> None:
    made = pictures(2 * (b.LEAST - 1))
    assert b.draw(images_of(*made), {"nut": exact(*made)}, "") == ({}, {})
    made = pictures(40)
    results = {"nut": exact(*made)}
    results["nut"]["pixel_ap"] += 2 * b.TOLERANCE
    intervals, means = b.draw(images_of(*made), results, "")
    assert "pixel_ap" not in means
    assert "pixel_auroc" in intervals["mean"]
    few = pictures(4)
    results["ring"] = exact(*few)
    intervals, means = b.draw([*images_of(*made), *images_of(*few, category="ring")], results, "")
    assert (list(intervals), means) == (["nut"], {})  # the mean is over both


def test_pixels_have_intervals_without_normal_images_and_image_scores_have_none() -> None:
    label, masks, maps, score = (part[1::2] for part in pictures(40))
    results = {
        "nut": {name: None if name[:5] == "image" else v for name, v in exact(label, masks, maps, score).items()}
    }
    assert set(b.draw(images_of(label, masks, maps, score), results, "")[1]) == {
        "pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro",
    }  # fmt: skip
