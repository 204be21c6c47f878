from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from kanoclip.data import loading
from kanoclip.data.faults import UnreadableImageError, remark
from kanoclip.data.loading import AnomalyDataset, AnomalyLoader, Item, RankSampler, Sample, collate, make_loader
from kanoclip.data.transforms import Transform
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN

SAMPLES = [Sample(f"{i}.png", (), i % 2, "disc" if i < 5 else "ring", "hole" if i % 2 else "good") for i in range(10)]


def read(sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw from the name; numbers above 90 cannot be read."""
    number = int(sample.image.removesuffix(".png"))
    if number > 90:
        raise UnreadableImageError(sample.image, "broken. Replace it.")
    image = np.random.default_rng(number).integers(0, 256, (12 + number, 16, 3)).astype(np.uint8)
    return image, (image[..., 0] > 200).astype(np.uint8) if sample.label == ANOMALOUS else None


def dataset(samples: list[Sample] | None = None, augment: bool = True, **kwargs) -> AnomalyDataset:
    return AnomalyDataset(SAMPLES if samples is None else samples, read, Transform(16, augment), **kwargs)


def epochs(loader: AnomalyLoader, count: int = 2) -> list:
    """All batches of some epochs, comparable."""
    batches = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        batches += [(batch.path, batch.image.numpy().tobytes(), batch.mask.numpy().tobytes()) for batch in loader]
    return batches


def test_a_batch_holds_what_its_samples_say():
    batch = collate([dataset(augment=False)[i] for i in (0, 1, 7)])
    assert batch.image.shape == (3, 3, 16, 16)
    assert (batch.image.dtype, batch.mask.dtype, batch.label.dtype) == (torch.float32, torch.uint8, torch.int64)
    assert batch.label.tolist() == [NORMAL, ANOMALOUS, ANOMALOUS]
    assert batch.size.tolist() == [[12, 16], [13, 16], [19, 16]]
    assert batch.category == ["disc", "disc", "ring"]
    assert batch.defect == ["good", "hole", "hole"]
    assert batch.path == ["0.png", "1.png", "7.png"]
    assert int(batch.mask[0].sum()) == 0
    assert 20 < int(batch.mask[1].sum()) < 100


@pytest.mark.parametrize(("label", "has_mask"), [(NORMAL, True), (ANOMALOUS, False), (UNKNOWN, False)])
def test_without_a_mask_only_a_normal_image_is_known_to_be_clean(label, has_mask):
    data = AnomalyDataset([Sample("1.png", label=label)], lambda sample: (read(sample)[0], None), Transform(16))
    batch = collate([data[0]])
    assert batch.has_mask.tolist() == [has_mask]
    assert int(batch.mask.sum()) == 0


def test_the_same_seed_gives_the_same_batches_with_and_without_workers():
    first = epochs(make_loader(dataset(seed=3), 4, 0, shuffle=True))
    assert epochs(make_loader(dataset(seed=3), 4, 0, shuffle=True)) == first
    assert epochs(make_loader(dataset(seed=3), 4, 2, shuffle=True, persistent=True)) == first
    assert epochs(make_loader(dataset(seed=4), 4, 0, shuffle=True)) != first
    assert [len(batch[0]) for batch in first] == [4, 4, 2, 4, 4, 2]


def test_each_epoch_has_all_samples_in_another_order_and_varied_anew():
    first, second = (epochs(make_loader(dataset(), 10, 0, shuffle=True), 2)[i] for i in (0, 1))
    assert first[0] != second[0]
    assert sorted(first[0]) == sorted(second[0]) == sorted(sample.image for sample in SAMPLES)
    data = dataset()
    varied = [data[epoch, 1].image for epoch in range(20)]
    assert len({image.numpy().tobytes() for image in varied}) > 10


def test_a_later_epoch_does_not_depend_on_earlier_ones():
    sampler, resumed = RankSampler(range(50), 4, seed=1), RankSampler(range(50), 4, seed=1)
    for _ in range(3):
        list(sampler)
    sampler.set_epoch(7)
    resumed.set_epoch(7)
    assert list(sampler) == list(resumed)
    assert len(sampler) == 50


def test_without_shuffling_the_order_is_that_of_the_samples():
    paths = [path for batch in make_loader(dataset(), 3, 0) for path in batch.path]
    assert paths == [sample.image for sample in SAMPLES]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_stops_the_loader_with_its_own_error(workers):
    data = dataset([SAMPLES[0], Sample("99.png")])
    with pytest.raises(UnreadableImageError, match=r"^Cannot use 99\.png: broken\. Replace it\.$"):
        list(make_loader(data, 2, workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_files_are_noted_and_left_out_when_asked(workers):
    noted: list[tuple[str, str]] = []
    data = dataset([Sample("91.png"), Sample("92.png"), Sample("93.png"), Sample("4.png")], unreadable=noted)
    batches = list(make_loader(data, 2, workers))
    assert [batch.path for batch in batches] == [["4.png"]]  # the first batch had nothing to show
    assert noted == [(f"{number}.png", "broken. Replace it.") for number in (91, 92, 93)]


def test_what_several_processes_could_not_read_is_told_by_the_first_in_the_order_of_the_data(monkeypatch):
    noted = {0: [("c", "why")], 1: [("a", "why"), ("d", "why")]}
    monkeypatch.setattr(loading, "gather", lambda _: [list(pairs) for pairs in noted.values()])
    for rank in (1, 0):
        monkeypatch.setattr(loading, "rank_of", lambda rank=rank: (rank, 2))
        mine = list(noted[rank])
        assert [path for path, _ in loading.gather_unreadable(mine, "abcd")] == ["a", "c", "d"]
        assert [path for path, _ in mine] == ([] if rank else ["a", "c", "d"])


def test_collate_raises_the_error_among_its_items():
    with pytest.raises(UnreadableImageError, match="99"):
        collate(dataset([SAMPLES[0], Sample("99.png")]).__getitems__([0, 1]))


def test_other_errors_are_not_taken_for_unreadable_files():
    def fail(sample: Sample) -> tuple[np.ndarray, None]:
        raise KeyError("a bug")

    data = AnomalyDataset(SAMPLES, fail, Transform(16), unreadable=[])
    with pytest.raises(KeyError, match="a bug"):
        list(make_loader(data, 2, 0))


def test_a_dataset_travels_to_workers():
    data = dataset()
    copy = pickle.loads(pickle.dumps(data))
    item: Item = copy[1, 3]
    assert torch.equal(item.image, data[1, 3].image)
    assert copy.samples == SAMPLES


@pytest.mark.parametrize("workers", [0, 2])
def test_how_files_were_understood_is_logged_once_for_a_data_set_also_from_workers(caplog, workers):
    def remarking(sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
        remark(sample.image, "it has several pages.")
        if sample.image == "7.png":
            remark(sample.image, "its mask is odd.")
        return read(sample)

    loader = make_loader(AnomalyDataset(SAMPLES, remarking, Transform(16)), 2, workers)
    for _ in range(2):
        assert len(list(loader)) == 5
    assert [one.getMessage().partition(" It may")[0] for one in caplog.records] == [
        "0.png: it has several pages.",
        "7.png: its mask is odd.",
    ]
