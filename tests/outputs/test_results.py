import csv
import json
from hashlib import sha256

import numpy as np
import pytest

from kanoclip import __version__
from kanoclip.data.base import Sample
from kanoclip.outputs import ResultsWriter
from kanoclip.outputs.identity import identity
from kanoclip.outputs.results import headline
from kanoclip.outputs.sheet import choose

PATHS = ["d/ring/good/1.png", "d/ring/hole/2.png", "d/nut/good/3.png", "d/nut/dent/4.png", "d/nut/dent/5.png"]


@pytest.fixture
def tested(kit):
    kit.trainer(ResultsWriter(overlays=4)).test(kit.model(), kit.data(kit.samples(*PATHS)), verbose=False)
    return json.loads((kit.folder / "results.json").read_text())


def test_results_say_how_to_get_them_again(tested, kit):
    assert tested["results"]["ring"] == {
        "image_auroc": 1.0,
        "pixel_auroc": None,
        "pixel_aupro": None,
        "images": 4,
        "anomalous": 2,
    }
    assert (tested["model"], tested["auxiliary"], tested["data"]) == ("brightness", "elsewhere", "samples")
    assert tested["zero_shot"] is True
    assert tested["checkpoint"] is None
    assert tested["images"] == 5
    assert tested["components"] == {"backbone": "none at all"}
    assert tested["options"]["model"] == {"stop_at": None}
    assert tested["options"]["data"]["size"] == [16, 16]
    assert tested["versions"]["kanoclip"] == __version__
    assert {"torch", "lightning", "open_clip_torch", "python"} <= set(tested["versions"])
    ring = next(csv.DictReader((kit.folder / "results.csv").open()))
    assert (ring["category"], ring["image_auroc"], ring["pixel_auroc"]) == ("ring", "1.0", "")


def test_overlays_are_named_by_what_they_show(tested, kit):
    names = sorted(path.name for path in (kit.folder / "overlays").iterdir())
    assert names == [
        "00_nut_dent_1.000.png",
        "01_ring_good_0.000.png",
        "02_nut_good_0.000.png",
        "03_ring_hole_1.000.png",
    ]


def test_a_picture_that_cannot_be_written_is_told_after_the_numbers(kit, monkeypatch, capsys):
    from kanoclip.outputs import results

    def full(path, image):
        assert (kit.folder / "results.json").is_file()
        raise OSError(f"Cannot write {path.name}: disk full")

    monkeypatch.setattr(results, "write_image", full)
    writer = ResultsWriter(overlays=4)
    kit.trainer(writer).test(kit.model(), kit.data(kit.samples(*PATHS)), verbose=False)
    said = capsys.readouterr()
    assert "ring" in said.out
    assert "4 pictures could not be written; the numbers are complete. The first: Cannot write 0" in said.err
    assert len(writer.unwritten) == 4


@pytest.mark.parametrize("category", ["x" * 300, "缺" * 200, "a/../b:*?<", "\ud800"])
def test_a_category_of_any_letters_has_its_picture(kit, category):
    samples = [Sample("d/1.png", (), 1, category, category), Sample("d/2.png", (), 0, category, "good")]
    kit.trainer(ResultsWriter()).test(kit.model(), kit.data(samples), verbose=False)
    names = [path.name for path in (kit.folder / "overlays").iterdir()]
    assert len(names) == 2
    assert all(len(name.encode()) <= 255 and name.endswith("0.png") for name in names)


def test_the_table_is_printed_below_the_protocol(tested, kit, capsys):
    kit.trainer(ResultsWriter(overlays=0)).test(kit.model(), kit.data(kit.samples(*PATHS)), verbose=False)
    printed = capsys.readouterr().out
    assert (
        "brightness: elsewhere -> samples, zero-shot\nbackbone none at all; no checkpoint; precision 32-true\n5 images"
        in printed
    )
    assert printed.index("zero-shot") < printed.index("pixel") < printed.index("ring ")
    assert "mean" not in printed  # of one category
    assert "overlays/" not in printed


@pytest.mark.parametrize(
    ("auxiliary", "seen", "line"),
    [
        (None, None, "nothing fitted -> samples"),
        ("elsewhere", (100, 4), "elsewhere -> samples, NOT zero-shot"),  # one image of it is tested
        ("samples", (100, 101), "samples -> samples, zero-shot"),  # a name is no evidence
        ("samples", None, "samples -> samples, zero-shot or not is unknown: which images it was fitted on"),
    ],
)
def test_the_protocol_is_told_by_what_the_images_show(kit, auxiliary, seen, line, capsys):
    model = kit.model()
    model.auxiliary, model.fitted_images = auxiliary, seen
    kit.trainer(ResultsWriter(overlays=0)).test(model, kit.data(kit.samples(*PATHS)), verbose=False)
    assert f"brightness: {line}" in capsys.readouterr().out


def test_the_checkpoint_is_named_with_its_hash(kit, tmp_path, capsys):
    file = tmp_path / "x.ckpt"
    trainer = kit.trainer(ResultsWriter())
    trainer.strategy.connect(kit.model())
    trainer.save_checkpoint(file)
    data = kit.data(kit.samples(*PATHS))
    kit.trainer(ResultsWriter()).test(kit.model(), data, ckpt_path=file, verbose=False)
    digest = sha256(file.read_bytes()).hexdigest()
    read = json.loads((kit.folder / "results.json").read_text())
    assert read["checkpoint"] == {"path": str(file), "sha256": digest}
    assert f"checkpoint {file} (sha256 {digest[:12]}), fitted with an unknown seed" in capsys.readouterr().out


def test_the_header_does_not_need_to_know_the_backbone():
    report = {"model": "m", "auxiliary": None, "data": "d", "components": {}, "checkpoint": None, "seed": None}
    report |= {"precision": "32-true"}
    report |= {"images": 1, "seconds_per_image": 0.5}
    assert "backbone unknown" in headline(report)
    assert headline(report).endswith("\n1 image, 500.0 ms an image")
    told = "1 image (limit 20, normal and anomalous in turn: AP and F1-max are not those of all), 500.0 ms an image"
    assert headline(report | {"options": {"data": {"limit": 20}}}).endswith(told)


def test_images_of_data_without_an_index_are_the_first_ones(kit, monkeypatch):
    monkeypatch.delattr(kit.data, "part")
    kit.trainer(ResultsWriter(overlays=2)).test(kit.model(), kit.data(kit.samples(*PATHS)), verbose=False)
    assert sorted(path.name[:7] for path in (kit.folder / "overlays").iterdir()) == ["00_ring", "01_ring"]


def test_only_images_that_the_test_reaches_are_chosen(kit):
    trainer = kit.trainer(ResultsWriter(overlays=2), limit_test_batches=1)
    trainer.test(kit.model(), kit.data(kit.samples(*PATHS)), verbose=False)
    assert len(list((kit.folder / "overlays").iterdir())) == 2


def test_any_first_few_of_the_order_are_balanced_and_all_are_in_it():
    samples = [
        Sample(f"{category}/{defect}/{i}", (), int(defect != "good"), category, defect)
        for category in "abcd"
        for defect in ("good", "dent", "hole", "crack")
        for i in range(3)
    ]
    order = choose(samples)
    assert sorted(order) == sorted(sample.image for sample in samples)
    first = [path.split("/") for path in order[:8]]
    assert [category for category, _, _ in first] == list("abcdabcd")
    assert sum(defect == "good" for _, defect, _ in first) == 4
    assert len({defect for _, defect, _ in first}) == 4
    assert choose(samples[::-1])[:8] == [path[:-1] + "2" for path in order[:8]]  # the same but for the first of a kind


def test_a_second_test_of_one_trainer_begins_anew(kit):
    writer = ResultsWriter()
    trainer = kit.trainer(writer)
    for _ in range(2):
        trainer.test(kit.model(), kit.data(kit.samples(*PATHS)), verbose=False)
    assert json.loads((kit.folder / "results.json").read_text())["images"] == 5
    assert np.isfinite(writer._seconds)


SAME = {
    "model": "m", "checkpoint": {"path": "a.ckpt", "sha256": "1"}, "backbone": "f", "components": {"adapter": "Conv"},
    "settings": {"adapter": "Conv", "score.share": 0.1, "sigma": 4, "lr": 0.1}, "precision": "32-true", "images": 5,
    "samples": "s", "pixels": {"image_size": 518}, "results_version": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"checkpoint": {"path": "a.ckpt", "sha256": "2"}},
        {"checkpoint": None},
        {"settings": SAME["settings"] | {"sigma": 8}},
        {"settings": SAME["settings"] | {"score.share": 0.2}},
        {"precision": "bf16-mixed"},
        {"images": 4},
        {"samples": "other"},
        {"pixels": {"image_size": 224}},
        {"results_version": 2},
    ],
)
def test_whatever_moves_numbers_makes_another_test(change):
    assert identity(SAME | change) != identity(SAME)


def test_without_a_checkpoint_the_weights_of_the_backbone_make_another_test():
    free = SAME | {"checkpoint": None}
    assert identity(free | {"backbone": "g"}) != identity(free)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": {"path": "elsewhere/b.ckpt", "sha256": "1"}},
        {"seconds": 9},
        {"options": {"data": {"num_workers": 7, "root": "elsewhere"}}},
        {"settings": SAME["settings"] | {"lr": 0.2}},  # the checkpoint tells what it made of the heads
        {"versions": {"torch": "99"}},
    ],
)
def test_what_moves_no_number_does_not(change):
    assert identity(SAME | change) == identity(SAME)
