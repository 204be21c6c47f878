"""Several data sets as one: each keeps its own reading, and a test on any of them is known not to be zero-shot."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.about import same_images
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.data.sets.folder import Folder
from kanoclip.data.sets.joined import Joined
from kanoclip.data.sets.mvtec import BTAD, MVTecAD
from kanoclip.data.transforms import Transform
from kanoclip.models.checkpoint import zero_shot
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.registry import UnknownNameError
from kanoclip.types import ANOMALOUS, KanoclipError
from kanoclip.verbs.arguments import prepare
from kanoclip.verbs.plan import read_plan
from kanoclip.verbs.specs import PlanError


@pytest.fixture
def photos(write, picture, tmp_path):
    """A folder of three normal and two anomalous photos of its own pixels, with grey masks; returns its path."""

    def make(name: str, first: int = 0) -> str:
        for i in range(first, first + 3):
            write(f"{name}/normal/{i}.png", np.roll(picture, i, 1))
        for i in range(first, first + 2):
            write(f"{name}/abnormal/{i}.png", np.roll(picture, i, 0))
            mask = np.zeros(picture.shape[:2], np.uint8)
            mask[:6, :8], mask[:6, 8:16] = 200, 90
            write(f"{name}/masks/{i}.png", mask)
        return str(tmp_path / name)

    return make


@pytest.fixture
def sets(photos):
    return lambda: [
        Folder(photos("one"), mask_threshold=150),
        SurfacesAuxiliary(images=4, category=["wood", "nut"]),
        Folder(photos("two", 3), mask_threshold=50),
    ]


def test_all_samples_are_there_and_shared_categories_are_told_apart(sets) -> None:
    data = Joined(sets())
    counts = Counter(sample.category for sample in data.part("fit"))
    assert counts == {"object (folder 1)": 5, "wood": 4, "nut": 4, "object (folder 2)": 5}
    assert [name for _, name in data.origins.values()] == ["object", "wood", "nut", "object"]
    assert Joined(sets(), category="wood").part("fit") == [one for one in data.part("fit") if one.category == "wood"]


def test_each_image_is_read_as_its_own_set_reads_it(sets) -> None:
    data = Joined(sets())
    marked = {s.category: int(data.read(s)[1].sum()) for s in data.part("fit") if s.masks}
    assert marked == {"object (folder 1)": 48, "object (folder 2)": 96}  # 200 alone, and 90 too
    drawn = [sample for sample in data.part("fit") if sample.category in ("wood", "nut")]
    for here, own in zip(drawn, SurfacesAuxiliary(images=4, category=["wood", "nut"]).part("fit"), strict=True):
        for mine, theirs in zip(data.read(here), sets()[1].read(own), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_balanced_fit_sees_every_image_and_each_set_equally_often(sets) -> None:
    uneven = [Folder(sets()[0].root), SurfacesAuxiliary(images=12, category="wood")]
    plain, balanced = Joined(uneven), Joined(uneven, balance=True)
    counts = Counter(sample.image for sample in balanced.part("fit"))
    folder = [counts[sample.image] for sample in uneven[0].part("fit")]
    assert (sum(folder), set(folder), len(balanced.part("fit"))) == (12, {2, 3}, 24)
    assert len(plain.part("fit")) == len(balanced.part("test")) == 17
    assert balanced.part("fit") == Joined(uneven, balance=True).part("fit")
    assert balanced.part("fit") != Joined(uneven, balance=True, seed=5).part("fit")
    assert balanced.samples_digest("fit") != plain.samples_digest("fit")


def test_the_identity_is_that_of_all_sets_and_of_the_balance(sets) -> None:
    one, two, three = sets()
    names = [Joined(given, balance=b).identity for given in ([one, two], [one, three], [two, one]) for b in (0, 1)]
    assert len(set(names)) == 6
    assert all(one.identity in name for name in names[:2])
    digests = [Joined(given).samples_digest("fit") for given in ([one, two], [one, three], [two, one])]
    assert len(set(digests)) == 3
    assert None not in digests


def test_options_of_a_set_are_part_of_a_fit_and_of_how_pixels_are_read(sets) -> None:
    one, two, three = sets()
    here, there = Joined([one, two]), Joined([Folder(one.root, mask_threshold=60), two])
    assert here.pixel_options()["sets"] != there.pixel_options()["sets"]
    assert here.fit_options() != there.fit_options()
    assert Joined([one, three]).fit_options() != Joined([one, three], balance=True).fit_options()


def test_images_are_known_by_what_each_set_knows_them_by(sets) -> None:
    parts = sets()
    joined = Joined(parts).image_digests("fit")
    assert joined == [number for one in parts for number in one.image_digests("fit")]
    for one in parts:
        assert zero_shot(joined, one.image_digests("test")) is False
    assert zero_shot(joined, Surfaces(images=2).image_digests("test")) is True


def test_a_set_whose_images_nobody_knows_makes_the_whole_unknown(sets) -> None:
    class Own(Folder):
        def read(self, sample):
            return super().read(sample)

    Own.read.__module__ = Own.__module__ = "my_lab"
    one, two, _ = sets()
    assert Joined([Own(one.root), two]).image_digests("fit") is None


def test_a_set_takes_the_root_of_the_whole_unless_it_has_its_own(tmp_path) -> None:
    data = Joined([MVTecAD(), BTAD(root="elsewhere")], root=str(tmp_path))
    assert [one.root for one in data.sets] == [str(tmp_path), "elsewhere"]


@pytest.mark.parametrize(
    "option", [{"holdout": 0.2}, {"augment": True}, {"tile": True}, {"cache": True}, {"image_size": 98}]
)
def test_an_option_of_the_whole_is_refused_of_a_set(option) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=rf"{name} of btad is .*--data\.{name} instead"):
        Joined([BTAD(**option), MVTecAD()])


@pytest.mark.parametrize("sets", [[], [BTAD()], ["btad", "visa"]])
def test_fewer_than_two_sets_are_refused(sets) -> None:
    with pytest.raises(ValueError, match=r"list two data sets or more.*--data\.sets"):
        Joined(sets)


def test_what_the_sets_have_to_say_is_told_of_each(sets, tmp_path, caplog) -> None:
    parts = sets()
    (tmp_path / "two/masks/3.png").unlink()
    data = Joined(parts, image_size=32)
    data.setup("fit")
    assert f"1 of 2 anomalous images of folder {tmp_path / 'two'} have no mask" in caplog.text
    (tmp_path / "two/notes").mkdir()
    (tmp_path / "two/notes/x.png").write_bytes((tmp_path / "two/normal/3.png").read_bytes())
    data.index_anew()
    assert [path for path, _ in data.left_out] == [str(tmp_path / "two/notes")]


def test_images_can_be_held_out_of_all_sets(sets) -> None:
    data = Joined(sets(), holdout=0.5)
    fit, kept = set(data.part("fit")), set(data.part("validate"))
    assert not fit & kept
    assert {sample.category for sample in kept} == {sample.category for sample in fit}


def test_cached_features_are_those_of_each_set_alone(sets, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))
    one, two, _ = sets()
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    told = []
    for data in (Folder(one.root, mask_threshold=150, cache=True), Joined([one, two], balance=True, cache=True)):
        Trainer(max_epochs=1, default_root_dir=tmp_path, **options).fit(KAnoCLIP(EmbeddedBackbone()), data)
        told += re.findall(r"features of (\d+) images", capsys.readouterr().out)
    assert told == ["5", "8"]  # those of the folder are there already
    batch = next(iter(data.train_dataloader()))
    assert batch.features is not None
    pixels, _ = data.read(next(sample for sample in data.part("fit") if sample.image == batch.path[0]))
    resized = Transform(128, False, False, False)(pixels, None, 0)[0]
    assert float((batch.image[0] - resized).abs().max()) < 0.01


def test_sets_are_given_by_name_on_the_command_line_and_in_a_config(tmp_path) -> None:
    typed = ["--data.sets=[btad, {class_path: surfaces, init_args: {images: 4}}]", "--data", "joined"]
    file = tmp_path / "mine.yaml"
    file.write_text("data: {class_path: joined, init_args: {sets: [btad, visa], balance: true}}\n")
    options = prepare(["fit", *typed]).options
    assert options[0] == "--data=kanoclip.data.sets.joined.Joined"
    given = json.loads(options[1].partition("=")[2])
    assert given[0] == "kanoclip.data.sets.mvtec.BTAD"
    assert given[1]["class_path"] == "kanoclip.data.drawn.surfaces.Surfaces"
    read = prepare(["fit", "--config", str(file)]).configs[str(file)]["data"]["init_args"]["sets"]
    assert read == ["kanoclip.data.sets.mvtec.BTAD", "kanoclip.data.sets.visa.VisA"]
    with pytest.raises(UnknownNameError, match=r"Unknown data 'btda' for --data\.sets\. Did you mean 'btad'"):
        prepare(["fit", "--data", "joined", "--data.sets", "[btda]"])


def benchmark(tmp_path: Path, auxiliary: object, data: list) -> Path:
    file = tmp_path / "mine.yaml"
    clip = {"class_path": "kanoclip", "init_args": {"backbone": "embedded"}}
    file.write_text(yaml.safe_dump({"auxiliary": auxiliary, "data": data, "models": [clip]}))
    return file


def test_a_benchmark_fits_on_joined_sets_and_refuses_a_test_on_any_of_them(photos, tmp_path) -> None:
    one = {"class_path": "folder", "init_args": {"root": photos("one"), "limit": 3}}
    names = ["surfaces_auxiliary", one]
    joined = {"class_path": "joined", "init_args": {"sets": names, "balance": True}}
    plan = read_plan(str(benchmark(tmp_path, joined, ["surfaces"])), tmp_path)
    auxiliary = plan.jobs[0].auxiliary
    assert [part.name for part in auxiliary.module.sets] == ["surfaces_auxiliary", "folder"]
    assert sum(part.label == ANOMALOUS for part in auxiliary.module.part("fit")) > 100
    other = {**joined, "init_args": {"sets": names}}
    folders = {
        read_plan(str(benchmark(tmp_path, given, ["surfaces"])), tmp_path).jobs[0].folder for given in (joined, other)
    }
    assert len(folders) == 2
    for tested in ("surfaces_auxiliary", {**one, "init_args": {**one["init_args"], "limit": 4}}):
        with pytest.raises(PlanError, match=r"fits on joined and tests on \w+, which is not zero-shot"):
            read_plan(str(benchmark(tmp_path, joined, ["surfaces", tested])), tmp_path)


def test_a_benchmark_tells_which_joined_set_is_not_on_disk(tmp_path) -> None:
    joined = {"class_path": "joined", "init_args": {"sets": ["surfaces_auxiliary", "btad"]}}
    plan = read_plan(str(benchmark(tmp_path, joined, ["surfaces"])), tmp_path, root=str(tmp_path))
    (missing,) = plan.missing
    assert re.search(rf"BTAD.*{re.escape(str(tmp_path))}", missing.problem)


def test_pieces_of_the_same_images_are_known_inside_joined_sets() -> None:
    assert same_images("joined mvtec + ksdd (balanced)", "ksdd_adaclip")
    assert same_images("ksdd2", "joined ksdd2 + mvtec")
    assert not same_images("joined mvtec + ksdd", "visa")


def test_the_same_images_twice_are_refused_and_other_categories_of_a_set_are_not() -> None:
    twice = Joined(
        [SurfacesAuxiliary(images=2, category="nut"), SurfacesAuxiliary(images=2, category=["nut", "wood"])],
        image_size=32,
    )
    with pytest.raises(
        KanoclipError, match=r"surfaces_auxiliary 1 and surfaces_auxiliary 2 both have \S+, and an image"
    ):
        twice.setup("fit")
    apart = Joined([SurfacesAuxiliary(images=2, category="nut"), SurfacesAuxiliary(images=2, category="wood")])
    assert apart.categories == ["nut", "wood"]


def test_sets_without_masks_and_of_other_sizes_are_read_together_and_limited(photos, write, tmp_path) -> None:
    for number in range(4):
        for state in ("normal", "abnormal"):
            write(f"bare/{state}/{number}.png", np.full((30 + number, 50, 3), 20 * number + len(state), np.uint8))
    sets = [Folder(photos("one")), Folder(str(tmp_path / "bare"))]
    data = Joined(sets, limit=3, image_size=24, num_workers=0, batch_size=8)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert Counter(batch.category) == {"object (folder 1)": 3, "object (folder 2)": 3}
    bare = torch.tensor([name == "object (folder 2)" for name in batch.category])
    assert (batch.has_mask == (~bare | (batch.label == 0))).all()
    assert len({tuple(size) for size in batch.size.tolist()}) > 1
    held = Joined(sets, holdout=0.5)
    fitted, apart = ({one.image for one in held.part(stage)} for stage in ("fit", "validate"))
    assert fitted.isdisjoint(apart)
    assert {one.category for one in held.part("validate")} == set(held.categories)
