from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from layouts import HEIGHT, IMAGE, LAYOUTS, MASK, WIDTH, Layout, write

from kanoclip.data.about import DamagedDataError
from kanoclip.data.base import AnomalyDataModule
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.sets.tree import sets_named
from kanoclip.registry import NAMES, load_class
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, KanoclipError, MissingError

# tested in files of their own
OWN = {"folder", "manifest", "joined", "synthetic", "surfaces", "surfaces_auxiliary", "surfaces_defects"}
SETS = [name for name in NAMES["data"] if name not in OWN]
WITH_MASKS = [name for name in SETS if LAYOUTS[name].masks]


def make(name: str, root: Path, **options) -> AnomalyDataModule:
    module, _, cls = NAMES["data"][name].rpartition(".")
    return getattr(import_module(module), cls)(
        **{"root": str(root), "image_size": 24, "num_workers": 0, **LAYOUTS[name].options, **options}
    )


@pytest.fixture
def layout(request, tmp_path) -> Layout:
    write(tmp_path, LAYOUTS[request.param].files)
    return LAYOUTS[request.param]


def test_every_registered_set_has_a_layout_here():
    assert set(LAYOUTS) == set(SETS)


@pytest.mark.parametrize(("layout", "name"), [(n, n) for n in SETS], indirect=["layout"])
def test_images_labels_masks_categories_and_splits_are_read(layout, name, tmp_path):
    samples = make(name, tmp_path).samples()
    test = [s for s in samples if s.split == "test"]
    assert sum(s.label == NORMAL for s in test) == layout.normal
    assert sum(s.label == ANOMALOUS for s in test) == layout.anomalous
    assert sum(bool(s.masks) for s in test) == layout.masks
    assert sum(s.split == "train" for s in samples) == layout.train
    assert sum(s.label == UNKNOWN for s in samples) == layout.unlabelled
    assert sorted({s.category for s in samples}) == layout.categories
    assert len({s.image for s in samples}) == len(samples)
    assert all(s.defect == "good" and not s.masks for s in samples if s.label == NORMAL)
    assert all(s.defect not in ("", "good") for s in samples if s.label == ANOMALOUS)


@pytest.mark.parametrize(("layout", "name"), [(n, n) for n in SETS], indirect=["layout"])
def test_a_batch_has_the_drawn_masks(layout, name, tmp_path):
    data = make(name, tmp_path, batch_size=16, image_size=WIDTH)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.image.shape == (layout.normal + layout.anomalous, 3, WIDTH, WIDTH)
    assert batch.size.tolist() == [[HEIGHT, WIDTH]] * len(batch.image)
    painted = [path for path, content in LAYOUTS[name].files.items() if content in (MASK, "index") or ".txt" in path]
    for label, has_mask, mask in zip(batch.label, batch.has_mask, batch.mask, strict=True):
        if label == NORMAL:
            assert has_mask
            assert not mask.any()
        elif has_mask and mask.any():
            assert mask.sum() == 8 * 8  # 6 x 8 of 24 x 32 pixels, resized to 32 x 32
    assert bool(painted) == bool(batch.mask.any())


@pytest.mark.parametrize("name", SETS)
def test_a_missing_root_is_told_with_what_was_expected(name, tmp_path):
    with pytest.raises(MissingError) as caught:
        make(name, tmp_path).setup("test")
    assert str(tmp_path) in str(caught.value)
    assert "--data.root" in str(caught.value)


@pytest.mark.parametrize(("layout", "name"), [(n, n) for n in WITH_MASKS], indirect=["layout"])
def test_an_image_without_its_mask_stays_and_is_told_or_its_label_follows_from_the_mask(layout, name, tmp_path, caplog):
    masks = [s.masks for s in make(name, tmp_path).samples() if s.masks and s.split == "test"]
    for mask in masks[0]:
        Path(mask).unlink()
    if name in ("visa", "real_iad", "meta_json"):  # a list names the mask
        with pytest.raises(DamagedDataError, match=Path(masks[0][0]).name):
            make(name, tmp_path).setup("test")
        return
    data = make(name, tmp_path)
    if name == "crackforest":  # nothing says that the image is anomalous
        with pytest.raises(ValueError, match="No test images"):
            data.setup("test")
        return
    data.setup("test")
    samples = data.part("test")
    assert len(samples) == layout.normal + layout.anomalous
    if name in ("ksdd", "ksdd2", "dagm"):  # the mask alone says that the image is anomalous
        assert sum(s.label == ANOMALOUS for s in samples) == layout.anomalous - 1
    elif name != "deeppcb":
        assert sum(s.label == ANOMALOUS and not s.masks for s in samples) == layout.anomalous - layout.masks + 1
        assert "have no mask" in caplog.text


@pytest.mark.parametrize(("layout", "name"), [(n, n) for n in SETS], indirect=["layout"])
def test_a_broken_image_is_named(layout, name, tmp_path):
    data = make(name, tmp_path, batch_size=16)
    data.setup("test")
    broken = data.part("test")[0].image
    Path(broken).write_bytes(Path(broken).read_bytes()[:40])
    scored = [path for batch in data.test_dataloader() for path in batch.path]
    assert [path for path, _ in data.unreadable] == [broken]
    assert sorted([*scored, broken]) == sorted(sample.image for sample in data.part("test"))
    with pytest.raises(UnreadableImageError) as caught:  # a fit is of all its images or of none
        list(data.train_dataloader())
    assert caught.value.path == broken


@pytest.mark.parametrize("name", [n for n in SETS if n not in ("visa", "real_iad", "meta_json", "elpv", "headct")])
def test_a_stray_mask_is_an_error_or_is_no_mask(name, tmp_path):
    files = LAYOUTS[name].files
    mask = next((path for path, content in files.items() if content in (MASK, "index")), None)
    if mask is None:
        return
    if name == "mvtec_loco":
        stray = str(Path(mask).parent.parent / "777" / Path(mask).name)
    else:
        stray = re.sub(r"\d(?=\D*$)", "7", mask)  # the last digit of the path
    write(tmp_path, files | {stray: MASK})
    with pytest.raises(DamagedDataError, match="No image for the mask"):
        make(name, tmp_path).samples()


@pytest.mark.parametrize("name", [n for n in SETS if n != "meta_json"])
def test_the_root_may_be_the_sets_own_folder(name, tmp_path):
    write(tmp_path, LAYOUTS[name].files)
    everything = make(name, tmp_path).samples()
    assert make(name, tmp_path / name).samples() == everything


@pytest.mark.parametrize("name", [n for n in SETS if n not in ("meta_json", "mvtec")])
def test_no_set_takes_the_files_of_another_for_its_own(name, tmp_path):
    for other, layout in LAYOUTS.items():
        if other not in (name, "meta_json"):
            write(tmp_path, layout.files)
    with pytest.raises(MissingError):
        make(name, tmp_path).samples()


def test_meta_json_refuses_pairs_that_a_stray_file_has_shifted(tmp_path):
    files = LAYOUTS["meta_json"].files
    shifted = files["meta.json"].replace("bad/000_mask.png", "bad/001_mask.png")
    write(tmp_path, files | {"meta.json": shifted, "bottle/ground_truth/bad/001_mask.png": MASK})
    with pytest.raises(
        DamagedDataError, match=r"test, bottle, entry 2: the mask 001_mask\.png is not that of 000\.png"
    ):
        make("meta_json", tmp_path).samples()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"train": [{"img_path": "1.png", "anomaly": 0}]}', "train: expected a list of entries for each category"),
        (b'{"test": {"bottle": {"img_path": "1.png"}}}', "test: expected a list of entries for each category"),
        (b'{"test": {"caf\xe9": []}}', "is not UTF-8 text"),
        (b'{"test": ', "line 1: Expecting value"),
    ],
)
def test_a_meta_json_of_another_form_is_told_in_a_line(content, told, tmp_path):
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(DamagedDataError, match=rf"^\S+meta\.json,? {told}[^\n]*$"):
        make("meta_json", tmp_path).samples()


def test_visa_is_read_as_its_publishers_script_prepares_it(tmp_path):
    base = "VisA_pytorch/1cls/candle"
    write(
        tmp_path,
        {
            f"{base}/train/good/0000.JPG": IMAGE,
            f"{base}/test/good/0001.JPG": IMAGE,
            f"{base}/test/bad/000.JPG": IMAGE,
            f"{base}/ground_truth/bad/000.png": MASK,
            "VisA_pytorch/2cls_fewshot/candle/test/good/0001.JPG": IMAGE,
        },
    )
    samples = make("visa", tmp_path).samples()
    assert [(s.split, s.label, len(s.masks)) for s in samples] == [
        ("test", ANOMALOUS, 1), ("test", NORMAL, 0), ("train", NORMAL, 0),
    ]  # fmt: skip
    assert len(make("visa", tmp_path, protocol="2cls_fewshot").samples()) == 1


@pytest.mark.parametrize("splits", ["realiad_jsons", "realiad_jsons_sv"])
@pytest.mark.parametrize("above", ["realiad_jsons/", ""])
def test_real_iads_splits_are_read_as_published_and_moved_up(above, splits, tmp_path):
    files = LAYOUTS["real_iad"].files
    write(tmp_path, {name.replace("realiad_jsons/realiad_jsons", above + splits): files[name] for name in files})
    assert len(make("real_iad", tmp_path, splits=splits).samples()) == 3
    other = "realiad_jsons_fuiad_0.1"
    with pytest.raises(DamagedDataError, match=rf"expected realiad_1024/ and realiad_jsons/{other}/\*\.json"):
        make("real_iad", tmp_path, splits=other).samples()


def test_a_split_of_real_iad_that_is_no_text_is_an_error(tmp_path):
    write(tmp_path, LAYOUTS["real_iad"].files)
    (tmp_path / "real_iad/realiad_jsons/realiad_jsons/audiojack.json").write_bytes(b'{"meta": "\xe9"}')
    with pytest.raises(DamagedDataError, match=r"audiojack\.json is not UTF-8 text"):
        make("real_iad", tmp_path).samples()


def test_mvtec_ad2_predicts_its_private_images(tmp_path):
    write(tmp_path, LAYOUTS["mvtec_ad2"].files)
    data = make("mvtec_ad2", tmp_path)
    assert sorted(Path(s.image).parent.name for s in data.part("predict")) == ["test_private", "test_private_mixed"]


def test_several_masks_of_an_image_are_merged(tmp_path):
    write(tmp_path, LAYOUTS["mvtec_loco"].files)
    sample = next(s for s in make("mvtec_loco", tmp_path).samples() if s.defect == "logical_anomalies")
    assert [Path(mask).name for mask in sample.masks] == ["000.png", "001.png"]


COLLECTION = {
    f"TestDataset/{name}/{kind}/{number}.png": IMAGE if kind == "images" else MASK
    for number, name in enumerate(("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir"))
    for kind in ("images", "masks")
}


def test_colondb_is_read_as_its_publisher_packs_it(tmp_path):
    files = {f"CVC-ColonDB/{number}.{'tif' if number == 3 else 'tiff'}": IMAGE for number in range(1, 7)}
    files |= {f"CVC-ColonDB/{kind}{number}.tiff": MASK for number in range(1, 7) for kind in ("p", "cp")}
    write(tmp_path, files)
    for root in (tmp_path, tmp_path / "CVC-ColonDB"):
        samples = make("cvc_colondb", root).samples()
        pairs = {(Path(s.image).stem, *(Path(mask).stem for mask in s.masks)) for s in samples}
        assert pairs == {(str(number), f"p{number}") for number in range(1, 7)}
        assert all(sample.label == ANOMALOUS for sample in samples)


@pytest.mark.parametrize(("name", "folder"), [("cvc_colondb", 2), ("cvc_clinicdb", 1), ("kvasir", 4)])
@pytest.mark.parametrize("below", ["", "TestDataset"])
def test_polyp_sets_are_found_in_the_collection_that_many_have(name, folder, below, tmp_path):
    write(tmp_path, COLLECTION)
    (sample,) = make(name, tmp_path / below).samples()
    assert [Path(path).stem for path in (sample.image, *sample.masks)] == [str(folder)] * 2


@pytest.mark.parametrize(
    ("name", "folder", "reader"),
    [
        ("kvasir", "CVC-ClinicDB", "--data cvc_clinicdb"),
        ("cvc_clinicdb", "Kvasir-SEG", "--data kvasir"),
        ("endo", "Kvasir", "--data kvasir"),
        ("kvasir", "CVC-300", "--data folder"),
        ("br35h", "brainmri", "--data brainmri"),
        ("brainmri", "Br35H", "--data br35h"),
        ("mpdd", "DTD-Synthetic/cat", "--data.root"),
        ("kvasir", "CVC-ClinicDB (1)", "--data cvc_clinicdb"),
        ("kvasir", "cvc_clinicdb_tif_sample", "--data cvc_clinicdb"),
        ("endo", "myKvasir-SEG copy", "--data kvasir"),
    ],
)
def test_a_folder_that_is_another_set_by_its_name_is_refused(name, folder, reader, tmp_path):
    inside = {"mpdd": "test/good", "br35h": "yes", "brainmri": "yes"}.get(name, "images")
    write(tmp_path, {f"{folder}/{inside}/1.png": IMAGE})
    with pytest.raises(MissingError, match=reader):
        make(name, tmp_path / folder).samples()
    if name != "mpdd":
        (tmp_path / folder).rename(tmp_path / "renamed")  # nothing else is wrong with it
        assert len(make(name, tmp_path / "renamed").samples()) == 1


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("mvtec_loco (1)", ["mvtec_loco", "mvtec"]),
        ("endoscopy", []),
        ("business", []),
        ("ISIC2018", []),
        ("brain_adults", []),
        ("Br35H_old", ["br35h"]),
        ("data", []),
        ("PNG", []),
    ],
)
def test_a_set_is_named_by_whole_words_of_its_folder(folder, names):
    assert sets_named(folder) == names


def test_the_own_name_counts_beside_another(tmp_path):
    write(tmp_path, {"Kvasir_and_CVC-ClinicDB/images/1.png": IMAGE})
    for name in ("kvasir", "cvc_clinicdb"):
        assert len(make(name, tmp_path / "Kvasir_and_CVC-ClinicDB").samples()) == 1


@pytest.mark.parametrize("name", ["magnetic_tile", "ksdd2", "mvtec", "meta_json"])
def test_a_root_may_be_relative(name, tmp_path, monkeypatch):
    write(tmp_path / "d", LAYOUTS[name].files)
    monkeypatch.chdir(tmp_path)
    whole, found = (make(name, root).samples() for root in (tmp_path / "d", Path("d")))
    assert [Path(sample.image).resolve() for sample in found] == [Path(sample.image) for sample in whole]
    assert [(sample.label, len(sample.masks)) for sample in found] == [(s.label, len(s.masks)) for s in whole]
    assert all(Path(mask).is_file() for sample in found for mask in sample.masks)


def test_the_home_of_nobody_is_told(monkeypatch):
    def nobody(given: str, option: str) -> Path:
        raise KanoclipError(f"{option} {given}: no such user.")

    for module in ("base", "sets.manifest"):
        monkeypatch.setattr(f"kanoclip.data.{module}.local_path", nobody)
    for name in ("kvasir", "mvtec", "visa", "real_iad", "folder", "meta_json"):
        with pytest.raises(KanoclipError, match=r"^--data\.root ~nobody/x: no such user"):
            load_class(NAMES["data"][name])(root="~nobody/x").samples()
    with pytest.raises(KanoclipError, match=r"^--data\.file ~nobody/l\.csv"):
        load_class(NAMES["data"]["manifest"])(file="~nobody/l.csv")


def test_counts_far_from_the_published_ones_are_told_for_each_stage(tmp_path, caplog):
    write(tmp_path, LAYOUTS["kvasir"].files)
    data = make("kvasir", tmp_path)
    for stage in ("test", "predict"):
        data.setup(stage)
    told = "0 normal and 3 anomalous test images, but Kvasir-SEG has 0 and 1000"
    assert caplog.text.count(told) == 1
    data.about = replace(data.about, counts=(0, 3))
    assert data.notes() == []
    assert make("kvasir", tmp_path, limit=1).notes() == []  # a part was asked for


def test_a_set_of_ones_own_in_a_published_layout_is_not_compared_with_published_counts(tmp_path):
    write(tmp_path, {"mine/bolt/test/good/1.png": IMAGE})
    assert make("mvtec", tmp_path / "mine").notes() == []


def test_pictures_that_cannot_be_read_are_told_in_a_published_layout_too(tmp_path):
    write(tmp_path, LAYOUTS["mvtec"].files)
    write(tmp_path, {"mvtec/cat/test/bad/002.gif": IMAGE, "mvtec/cat/test/bad/003.psd": "8BPS"})
    data = make("mvtec", tmp_path)
    assert sum(sample.label == ANOMALOUS for sample in data.samples()) == LAYOUTS["mvtec"].anomalous + 1
    assert [Path(path).name for path, _ in data.left_out] == ["003.psd"]
