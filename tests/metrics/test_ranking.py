import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torchmetrics import MetricCollection

from kanoclip.metrics import ImageMetrics, PixelMetrics

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "pixel_metrics.json").read_text())
LABEL = torch.tensor([0, 1, 0, 1, 1])


def values(metric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def example(seed: int, images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(images, 12, 12, generator=generator) > 0.9
    maps = torch.rand(images, 12, 12, generator=generator) + 0.3 * mask
    return (maps * 20).round() / 20, mask.to(torch.uint8)  # many ties


@pytest.mark.parametrize("case", EXPECTED)
def test_pixel_metrics_match_the_rivals_own_code(case: str) -> None:
    data = np.load(GOLDEN / "pixel_metrics.npz")
    maps, masks = torch.from_numpy(data[case]), torch.from_numpy(data["masks"])
    metric = PixelMetrics()
    metric.update(maps, masks)
    found, expected = values(metric), EXPECTED[case]
    for name in ("auroc", "ap", "aupro"):
        assert found[name] == pytest.approx(expected[f"pixel_{name}"], abs=1e-4)
    assert found["f1_max"] == pytest.approx(expected["pixel_f1max"], abs=1e-4)
    image = ImageMetrics()
    image.update(maps.flatten(1).amax(1), masks.flatten(1).amax(1))
    assert values(image)["auroc"] == pytest.approx(expected["image_auroc_of_map_max"], abs=1e-4)
    assert values(image)["ap"] == pytest.approx(expected["image_ap_of_map_max"], abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 5), st.permutations(range(5)))
def test_any_batches_in_any_order_give_the_same_digits(seed: int, size: int, order: list[int]) -> None:
    maps, mask = example(seed)
    whole, split = PixelMetrics(), PixelMetrics()
    whole.update(maps, mask)
    for part in torch.tensor(order).split(size):
        split.update(maps[part], mask[part])
    assert str(values(whole)) == str(values(split))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([1.0, 1e-7, 1e6, -3.0]))
def test_they_equal_scikit_learn_with_ties_and_at_any_scale(seed: int, scale: float) -> None:
    maps, mask = example(seed)
    scores, labels = (scale * maps.double()).float().numpy().ravel(), mask.numpy().ravel()
    metric = PixelMetrics()
    metric.update(torch.from_numpy(scores).view_as(maps), mask)
    precision, recall, _ = precision_recall_curve(labels, scores)
    found = values(metric)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert found["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    assert found["f1_max"] == pytest.approx(best, abs=1e-9)


def test_they_equal_scikit_learn_where_a_model_saturates() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(8, 6, (1, 100, 100))  # a third of the scores are within 1e-4 of 1
    mask = (logits + rng.normal(0, 3, logits.shape) > 18).astype(np.uint8)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    scores[0, 0, 0] = 1e-30  # far below all others, so that bins are wide
    metric = PixelMetrics()
    metric.update(torch.from_numpy(scores), torch.from_numpy(mask))
    found = values(metric)
    assert found["auroc"] == pytest.approx(roc_auc_score(mask.ravel(), scores.ravel()), abs=1e-4)
    assert found["ap"] == pytest.approx(average_precision_score(mask.ravel(), scores.ravel()), abs=1e-4)


def spread(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a kind that fixed or evenly spaced bins get wrong, and a mask that they tell in part."""
    x, mask = rng.normal(size=shape), np.zeros(shape, bool)
    mask[:, 5:15, 5:15] = mask[:, 20:22, 20:21] = True
    x += mask
    kinds = {
        "normal": x,
        "30 decades": 10.0 ** (3.3 * x - 5),
        "one far outlier": np.where(np.arange(x.size).reshape(shape) == 0, -1e30, 0.5 + 1e-5 * x),
        "near 1": 1 / (1 + np.exp(-6 - 4 * x)),
        "around 0": 1e-3 * x,
    }
    return kinds[name].astype(np.float32), mask


@pytest.mark.parametrize(("images", "size", "error"), [(4, 40, 1e-9), (5, 200, 1e-4)])  # 200,000 are too many
@pytest.mark.parametrize("name", ["normal", "30 decades", "one far outlier", "near 1", "around 0"])
def test_they_equal_scikit_learn_wherever_the_scores_lie(name: str, images: int, size: int, error: float) -> None:
    scores, mask = spread(name, np.random.default_rng(3), (images, size, size))
    metric = PixelMetrics()
    for part in range(images):
        metric.update(torch.from_numpy(scores[part : part + 1]), torch.from_numpy(mask[part : part + 1]))
    found = values(metric)
    labels, flat_scores = mask.ravel(), scores.ravel()
    weights = np.zeros(mask.shape)
    weights[:, 5:15, 5:15], weights[:, 20:22, 20:21] = 1 / 100, 1 / 2
    weights[~mask] = 1
    rate, overlap, _ = roc_curve(labels, flat_scores, sample_weight=weights.ravel(), drop_intermediate=False)
    rates = np.append(rate[rate <= 0.3], 0.3)
    area = np.trapezoid(np.append(overlap[rate <= 0.3], np.interp(0.3, rate, overlap)), rates) / 0.3
    precision, recall, _ = precision_recall_curve(labels, flat_scores)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, flat_scores), abs=error)
    assert found["ap"] == pytest.approx(average_precision_score(labels, flat_scores), abs=error)
    assert found["f1_max"] == pytest.approx(np.max(2 * precision * recall / (precision + recall + 1e-30)), abs=error)
    assert found["aupro"] == pytest.approx(area, abs=error)


def test_image_scores_beside_one_far_outlier_do_not_tie() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    score = (0.5 + 1e-5 * np.clip(rng.normal(size=200) + label, -3, 3) / 3).astype(np.float32)
    score[0] = 0
    metric = ImageMetrics()
    metric.update(torch.from_numpy(score), torch.from_numpy(label))
    found = values(metric)
    assert found["auroc"] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert found["ap"] == pytest.approx(average_precision_score(label, score), abs=1e-12)


def test_float64_as_the_default_type_changes_no_metric() -> None:
    maps, mask = example(3)
    found = []
    for kind in (torch.float32, torch.float64):
        torch.set_default_dtype(kind)
        try:
            pixel, image = PixelMetrics(), ImageMetrics()
            pixel.update(maps.to(kind), mask)
            image.update(maps[:, 0, 0].to(kind), LABEL)
            found.append([values(pixel), values(image)])
        finally:
            torch.set_default_dtype(torch.float32)
    assert found[0] == found[1]


def test_aupro_stays_a_rate_with_more_regions_than_64_bits_can_weigh() -> None:
    metric, (maps, mask) = PixelMetrics(), example(4)
    metric.update(maps, mask)
    expected, many = values(metric), metric._mine
    for _ in range(24):
        many = many.merge(many)
    metric.seen, metric._computed = [many.pack()], None
    assert values(metric) == pytest.approx(expected, abs=1e-12)


def test_aupro_by_hand() -> None:
    mask = torch.zeros(1, 4, 5, dtype=torch.uint8)
    mask[0, 0, :4] = 1  # a region of 4 pixels
    mask[0, 3, 4] = 1  # a region of 1 pixel
    maps = torch.zeros(1, 4, 5)
    maps[0, 0, :2] = 0.9  # half of the large region first: overlap (0.5 + 0) / 2
    maps[0, 1, :3] = 0.8  # then 3 of 15 normal pixels: rate 0.2
    maps[0, 3, 4] = 0.7  # then the small region: overlap 0.75; the rest ties at 0 up to rate 1 and overlap 1
    metric = PixelMetrics()
    metric.update(maps, mask)
    at_limit = 0.75 + 0.25 * (0.3 - 0.2) / 0.8
    area = 0.2 * 0.25 + 0.1 * (0.75 + at_limit) / 2
    assert values(metric)["aupro"] == pytest.approx(area / 0.3, abs=1e-9)


def test_regions_touch_at_corners() -> None:
    apart, touching = torch.zeros(2, 1, 6, 6, dtype=torch.uint8)
    apart[0, 1, 1], apart[0, 3, 3], apart[0, 3, 4] = 1, 1, 1
    touching[0, 1, 1], touching[0, 2, 2], touching[0, 2, 3] = 1, 1, 1
    result = []
    for mask in (apart, touching):
        maps = torch.zeros(1, 6, 6)
        maps[0, 1, 1] = 1  # finds one whole region of two, or a third of the only one
        metric = PixelMetrics(max_fpr=1.0)
        metric.update(maps, mask)
        result.append(values(metric)["aupro"])
    assert result == pytest.approx([0.75, 2 / 3], abs=1e-9)


def test_a_better_map_scores_higher_and_a_perfect_one_1() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[0, 2:4, 2:5] = 1
    metric = PixelMetrics()
    metric.update(mask.float(), mask)
    assert values(metric) == {"auroc": 1, "ap": 1, "f1_max": 1, "aupro": pytest.approx(1)}
    metric.reset()
    metric.update(1 - mask.float(), mask)
    assert values(metric)["auroc"] == 0


def test_a_constant_map_is_a_coin_flip() -> None:
    mask = torch.zeros(1, 10, 10, dtype=torch.uint8)
    mask[0, 0, 0] = 1  # a mask of one pixel
    metric = PixelMetrics()
    metric.update(torch.full((1, 10, 10), 0.5), mask)
    found = values(metric)
    assert found["auroc"] == 0.5
    assert found["ap"] == pytest.approx(0.01)
    assert found["aupro"] == pytest.approx(0.15)


@pytest.mark.parametrize("fill", [0, 1])
def test_one_class_only_is_undefined_and_counted(fill: int) -> None:
    pixel, image = PixelMetrics(), ImageMetrics()
    pixel.update(torch.rand(2, 4, 4), torch.full((2, 4, 4), fill))
    image.update(torch.rand(2), torch.full((2,), fill))
    assert all(math.isnan(value) for value in [*values(pixel).values(), *values(image).values()])
    assert image.counts == ((2, 0) if fill == 0 else (0, 2))


def test_nothing_seen_is_undefined() -> None:
    assert all(math.isnan(value) for value in values(PixelMetrics()).values())


def test_scores_that_are_not_finite_are_refused_with_their_number() -> None:
    maps = torch.zeros(1, 3, 3)
    maps[0, 0, :2] = torch.tensor([math.nan, math.inf])
    with pytest.raises(ValueError, match="2 of 9 scores are NaN or infinite"):
        PixelMetrics().update(maps, torch.zeros(1, 3, 3))


def test_unequal_shapes_and_a_wrong_limit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Maps are \(1, 3, 3\) but masks \(1, 2, 3\)"):
        PixelMetrics().update(torch.zeros(1, 3, 3), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"max_fpr is 3, expected a rate"):
        PixelMetrics(max_fpr=3)


def flat(kind: type, maps: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a kind of metric takes."""
    return (maps, mask) if kind is PixelMetrics else (maps.flatten(), mask.flatten())


@pytest.mark.parametrize("kind", [ImageMetrics, PixelMetrics])
def test_calling_a_metric_returns_the_values_of_the_batch_and_forgets_no_other(kind) -> None:
    whole, called, (maps, mask) = kind(), kind(), example(2)
    whole.update(*flat(kind, maps, mask))
    for i in range(5):
        alone = kind()
        given = flat(kind, maps[i : i + 1], mask[i : i + 1])
        alone.update(*given)
        batch = called(*given)
        assert str({name: float(value) for name, value in batch.items()}) == str(values(alone))
        assert len(called.seen) == 1
    assert values(called) == values(whole)


@pytest.mark.parametrize("kind", [ImageMetrics, PixelMetrics])
def test_merged_metrics_are_one_and_each_can_go_on(kind) -> None:
    whole, total, (maps, mask) = kind(), kind(), example(2)
    whole.update(*flat(kind, maps, mask))
    parts = [kind(), kind()]
    for i, part in enumerate(parts):
        part.update(*flat(kind, maps[2 * i : 2 * i + 2], mask[2 * i : 2 * i + 2]))
    before = [values(part) for part in parts]
    for part in parts:
        total.merge_state(part)
    total.update(*flat(kind, maps[4:], mask[4:]))
    assert values(total) == values(whole)
    for part in parts:
        part._computed = None
    assert [values(part) for part in parts] == before


def test_metrics_of_a_collection_forget_nothing() -> None:
    maps, mask = example(2)
    pixel, low, image = PixelMetrics(), PixelMetrics(0.1), ImageMetrics()
    together = MetricCollection({"pixel": PixelMetrics(), "low": PixelMetrics(0.1), "image": ImageMetrics()})
    for i in range(5):
        batch = {"anomaly_map": maps[i : i + 1], "mask": mask[i : i + 1]}
        batch |= {"image_score": maps[i, :1, 0], "label": LABEL[i : i + 1]}
        together(**batch) if i == 3 else together.update(**batch)
        image.update(batch["image_score"], batch["label"])
    for metric in (pixel, low):
        metric.update(maps, mask)
    found = {name: float(value) for name, value in together.compute().items()}
    expected = {"pixel": values(pixel), "low": values(low), "image": values(image)}
    assert found == {f"{name}_{key}": value for name, of in expected.items() for key, value in of.items()}


def test_an_image_takes_eight_bytes() -> None:
    metric = ImageMetrics()
    for _ in range(10):
        metric.update(torch.rand(3), torch.tensor([0, 1, 0]))
    assert sum(part.nbytes for part in metric.seen) == 240
    with pytest.raises(ValueError, match="1 of 2 scores are NaN or infinite"):
        metric.update(torch.tensor([0.5, math.nan]), torch.tensor([0, 1]))


def test_no_map_is_kept() -> None:
    metric = PixelMetrics()
    maps, mask = example(0)
    for _ in range(3):
        metric.update(maps, mask)
        size = metric.seen[0].nbytes
    for _ in range(20):
        metric.update(maps, mask)
    assert metric.seen[0].nbytes < 2 * size  # larger numbers of as many scores


def _process(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    metric, unseen, image, nowhere = PixelMetrics(), PixelMetrics(), ImageMetrics(), ImageMetrics()
    maps, mask = example(4)
    mine = slice(0, 1) if rank == 0 else slice(1, 5)
    metric.update(maps[mine], mask[mine])
    image.update(maps[mine, 0, 0], LABEL[mine])
    if rank == 1:  # a category of which the other process saw nothing
        unseen.update(maps, mask)
    result = [values(metric), values(unseen), values(image)]
    assert all(map(math.isnan, values(nowhere).values()))
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def test_two_processes_with_unequal_shares_give_the_digits_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    one, image = PixelMetrics(), ImageMetrics()
    maps, mask = example(4)
    one.update(maps, mask)
    image.update(maps[:, 0, 0], LABEL)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [values(one), values(one), values(image)]


def test_the_overlap_curve_encloses_aupro_and_is_thinned() -> None:
    rng = np.random.default_rng(0)
    mask = torch.zeros(2, 64, 64)
    mask[0, 3:20, 5:9] = mask[1, 40:50, 40:60] = 1
    metric = PixelMetrics()
    metric.update(torch.from_numpy(rng.random((2, 64, 64), np.float32)) + mask / 2, mask)
    found = values(metric)
    rate, overlap = metric.overlap
    assert len(rate) <= 258
    assert (rate[0], overlap[0], rate[-1]) == (0, 0, 0.3)
    assert np.trapezoid(overlap, rate) / 0.3 == pytest.approx(found["aupro"], abs=1e-3)


def test_there_is_no_overlap_curve_without_a_region() -> None:
    metric = PixelMetrics()
    metric.update(torch.rand(1, 8, 8), torch.zeros(1, 8, 8))
    metric.compute()
    assert [len(part) for part in metric.overlap] == [0, 0]
