import json
import os
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import several
import torch
from lightning import Trainer, seed_everything
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from kanoclip.backbone.attention import QQ, VV, Attention
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data import cache as cache_module
from kanoclip.data import digests
from kanoclip.data.cache import CacheError
from kanoclip.data.drawn import surfaces
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.sets.folder import Folder
from kanoclip.heads.losses import NoKD
from kanoclip.models.ablations import CLIPVV, CLIPVVKnPL
from kanoclip.models.baselines import LocalStats
from kanoclip.models.kanoclip import KAnoCLIP

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="module")
def backbone():
    return EmbeddedBackbone()


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(**quiet, enable_model_summary=False, **options)


def files(place):
    return sorted(place.rglob("*.safetensors"))


def fitted(backbone, cache):
    seed_everything(5, verbose=False)
    model, losses = KAnoCLIP(backbone=backbone), []
    step = model.training_step
    model.training_step = lambda batch: losses.append(step(batch)) or losses[-1]
    category = ["wood", "ring"]
    trainer(max_epochs=2).fit(model, SurfacesAuxiliary(category=category, images=6, num_workers=0, cache=cache))
    trainer().test(model, Surfaces(category=["pill", "grid"], images=8, num_workers=0, cache=cache), verbose=False)
    return [float(loss.detach()) for loss in losses], model.results


def test_a_fit_and_a_test_from_the_cache_give_the_numbers_of_those_without(backbone, place, monkeypatch) -> None:
    plain_losses, plain = fitted(backbone, cache=False)
    losses, first = fitted(backbone, cache=True)
    assert len(files(place)) == 2 * 6 + 2 * 8
    assert losses == pytest.approx(plain_losses, abs=2e-3)
    for category, found in plain.items():
        assert first[category] == pytest.approx(found, abs=2e-3)

    def never(*_):
        raise AssertionError("an image was read or encoded again")

    monkeypatch.setattr(surfaces, "draw", never)
    monkeypatch.setattr(EmbeddedBackbone, "forward", never)
    again, second = fitted(backbone, cache=True)
    assert again == losses
    assert second == first


def photos(folder, count=3):
    for name, label in (("good", 0), ("bad", 1)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([label, i]).integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return Folder(root=str(folder), normal="good", abnormal="bad", num_workers=0, cache=True)


def check(backbone, data, **options):
    model = CLIPVV(backbone=backbone, **options)
    trainer().test(model, data, verbose=False)
    return model


def test_a_file_holds_half_precision_features_the_resized_image_and_the_size_of_the_file(
    backbone, place, tmp_path
) -> None:
    check(backbone, photos(tmp_path / "photos"))
    found = load_file(files(place)[0])
    assert found["patches"].shape == (2, 256, 128)
    assert found["patches"].dtype == torch.float16
    assert found["pixels"].shape == (4, 128, 128)
    assert found["pixels"].dtype == torch.uint8
    assert found["numbers"].tolist() == [40, 60, 16, 16, 1]


def test_a_changed_picture_a_moved_folder_and_another_attention(backbone, place, tmp_path) -> None:
    data = photos(tmp_path / "photos")
    check(backbone, data)
    assert len(files(place)) == 6
    (tmp_path / "photos").rename(tmp_path / "moved")  # the same content elsewhere is the same image
    moved = Folder(root=str(tmp_path / "moved"), normal="good", abnormal="bad", num_workers=0, cache=True)
    check(backbone, moved)
    assert len(files(place)) == 6
    picture = tmp_path / "moved" / "good" / "1.png"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(picture)
    os.utime(picture, ns=(time.time_ns() + 10**9,) * 2)
    check(backbone, Folder(root=str(tmp_path / "moved"), normal="good", abnormal="bad", num_workers=0, cache=True))
    assert len(files(place)) == 7
    check(backbone, moved, attention=QQ())
    assert len(files(place)) == 13


def test_a_truncated_file_is_made_anew_and_a_pickle_in_its_place_is_not_opened(backbone, place, tmp_path) -> None:
    data = photos(tmp_path / "photos")
    data.batch_size = 1  # of a batch of another size, the last bits may differ
    check(backbone, data)
    whole = {file: file.read_bytes() for file in files(place)}
    truncated, pickled = files(place)[:2]
    truncated.write_bytes(whole[truncated][:-100])

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    pickled.write_bytes(pickle.dumps(Harm()))
    check(backbone, data)
    assert {file: file.read_bytes() for file in files(place)} == whole
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["patches", "cls", "pixels", "numbers"])
def test_a_file_that_does_not_fit_its_checksum_is_named(backbone, place, tmp_path, name) -> None:
    data = photos(tmp_path / "photos", count=1)
    check(backbone, data)
    file = files(place)[0]
    tensors = load_file(file)
    with safe_open(file, "pt") as content:
        checksum = content.metadata()
    for metadata, changed in ((None, tensors[name]), (checksum, tensors[name][..., :-1].contiguous())):
        file.write_bytes(save({**tensors, name: changed}, metadata))
        with pytest.raises(CacheError, match="its checksum is wrong"):
            check(backbone, data)


def test_files_are_hashed_once_even_where_fit_and_validate_share_a_folder(
    backbone, place, tmp_path, monkeypatch
) -> None:
    photos(tmp_path / "photos")
    hashed = []
    plain = digests._file_hash
    monkeypatch.setattr(digests, "_file_hash", lambda path: hashed.append(path) or plain(path))
    for start in range(2):
        data = Folder(
            root=str(tmp_path / "photos"), normal="good", abnormal="bad", num_workers=0, cache=True, holdout=0.34
        )
        trainer(max_epochs=1).fit(CLIPVVKnPL(backbone=backbone, kd_loss=NoKD()), data)
        assert len(hashed) == 6, f"start {start}"


def flip(content):
    content[len(content) // 2] ^= 4


def zero_a_page(content):
    content[4096:8192] = bytes(4096)


def flip_in_the_header(content):
    where = content.index(b'"F16"')
    content[where : where + 5] = b'"I16"'


def flip_the_first_number(content):
    content[8 + int.from_bytes(content[:8], "little")] ^= 1


@pytest.mark.parametrize("harm", [flip, zero_a_page, flip_in_the_header, flip_the_first_number])
def test_a_damaged_file_is_an_error_that_names_it_not_a_wrong_score(backbone, place, tmp_path, harm) -> None:
    data = photos(tmp_path / "photos", count=1)
    before = check(backbone, data).results
    file = files(place)[0]
    whole = file.read_bytes()
    content = bytearray(whole)
    harm(content)
    file.write_bytes(content)
    with pytest.raises(CacheError, match=rf"features in {file} were damaged .*Run the command again"):
        check(backbone, data)
    assert not file.exists()
    assert check(backbone, data).results == before
    assert file.read_bytes() == whole


def test_a_file_that_disappears_during_a_run_is_told(backbone, place, tmp_path) -> None:
    data, one = photos(tmp_path / "photos", count=1), trainer()
    model = CLIPVV(backbone=backbone)
    model.on_test_start = lambda: files(place)[0].unlink()
    with pytest.raises(CacheError, match="damaged or are gone"):
        one.test(model, data, verbose=False)


@pytest.mark.parametrize("size", [*range(1, 18), 4099])
def test_a_checksum_sees_a_changed_byte_of_tensors_of_any_length(size) -> None:
    odd = torch.from_numpy(np.random.default_rng(size).integers(0, 256, size, np.uint8))
    tensors = {"odd": odd, "numbers": torch.arange(5)}
    before = cache_module._checksum(tensors)
    odd[size // 2] ^= 1
    assert cache_module._checksum(tensors) != before
    odd[size // 2] ^= 1
    assert cache_module._checksum(tensors) == before
    assert cache_module._checksum({"odd": odd.view(torch.int8), "numbers": tensors["numbers"]}) != before


class Twice(Attention):
    def forward(self, q, k, v):
        return 2 * v


def test_an_attention_of_ones_own_is_known_by_its_code(backbone, tmp_path, monkeypatch) -> None:
    def key():
        return CLIPVV(backbone=backbone, attention=Twice()).features_key

    first = key()
    assert key() == first
    (tmp_path / "edited.py").write_text("class Twice: ...")
    with monkeypatch.context() as patch:
        patch.setattr(digests.inspect, "getfile", lambda _: str(tmp_path / "edited.py"))
        assert key() != first
    with monkeypatch.context() as patch:  # in a notebook there is no file
        patch.setattr(digests.inspect, "getfile", lambda kind: [][kind])
        inside = key()
        patch.setattr(Twice, "forward", lambda self, q, k, v: 3 * v)
        assert key() != inside


def test_another_level_size_or_norm_is_another_key(backbone) -> None:
    others = [
        EmbeddedBackbone(), EmbeddedBackbone(levels=[2, 5]), EmbeddedBackbone(image_size=120),
        EmbeddedBackbone(position="bilinear", image_size=120), EmbeddedBackbone(), EmbeddedBackbone(),
        EmbeddedBackbone().double(),
    ]  # fmt: skip
    others[4].cls_norm = False
    others[5].mean += 0.1
    keys = [CLIPVV(backbone=one).features_key for one in (backbone, *others)]
    assert keys[0] == keys[1]
    assert len({*keys, None}) == 8
    assert CLIPVV(backbone=backbone, attention=VV(first=3)).features_key not in keys
    assert CLIPVVKnPL(backbone=backbone).features_key == keys[0]  # the heads change nothing


class Brighter(EmbeddedBackbone):
    """A backbone of one's own."""

    def __init__(self, gain, **options) -> None:
        super().__init__(**options)
        self.gain = gain

    def forward(self, image, attention):
        return super().forward((image * self.gain).clamp(0, 1), attention)


def test_a_backbone_of_ones_own_is_known_by_its_code_and_options(backbone) -> None:
    keys = [CLIPVV(backbone=one).features_key for one in (backbone, Brighter(1), Brighter(2))]
    assert len({*keys, None}) == 4
    assert CLIPVV(backbone=Brighter(2)).features_key == keys[2]
    assert CLIPVV(backbone=Brighter(torch.ones(()))).features_key is None  # an attribute that may be anything


class Doubled(CLIPVV):
    """Makes features in its own way."""

    def features(self, batch):
        found = super().features(batch)
        return found._replace(cls=-found.cls)


def test_a_model_that_makes_features_in_its_own_way_does_not_read_those_of_its_parent(
    backbone, place, tmp_path, caplog
) -> None:
    data = photos(tmp_path / "photos")
    check(backbone, data)
    assert Doubled(backbone=backbone).features_key is None
    trainer().test(own := Doubled(backbone=backbone), data, verbose=False)
    assert "Doubled keeps no frozen features" in caplog.text
    data.cache = False
    trainer().test(plain := Doubled(backbone=backbone), data, verbose=False)
    assert own.results == plain.results
    assert len(files(place)) == 6


class OwnRead(Folder):
    """Reads files in its own way."""

    def __init__(self, gain=1, **options) -> None:
        super().__init__(**options)
        self.gain = gain

    def read(self, sample):
        image, mask = super().read(sample)
        return (image // self.gain).astype(np.uint8), mask


def test_what_is_read_in_another_way_is_kept_apart_and_what_is_read_in_the_same_way_is_shared(
    backbone, place, tmp_path
) -> None:
    photos(tmp_path / "photos", count=1)
    options = {"root": str(tmp_path / "photos"), "normal": "good", "abnormal": "bad", "num_workers": 0, "cache": True}
    counts = []
    for data in (
        Folder(**options), Folder(**options, batch_size=1, seed=3, category_name="nut"),
        Folder(**options, mask_threshold=9),
        OwnRead(**options), OwnRead(**options, batch_size=1, seed=3), OwnRead(2, **options),
    ):  # fmt: skip
        check(backbone, data)
        counts.append(len(files(place)) // 2)
    assert counts == [1, 1, 2, 3, 3, 4]


def test_another_version_of_reading_drawing_or_features_is_another_file(backbone, place, monkeypatch) -> None:
    def drawn():
        return Surfaces(category="gear", images=2, num_workers=0, cache=True)

    check(backbone, drawn())
    check(backbone, drawn())
    assert len(files(place)) == 2
    monkeypatch.setattr(Surfaces, "drawing_version", "next")
    check(backbone, drawn())
    assert len(files(place)) == 4
    monkeypatch.setattr(cache_module, "READING_VERSION", 0)
    check(backbone, drawn())
    assert len(files(place)) == 6
    monkeypatch.setattr("kanoclip.models.clip_module.FEATURES_VERSION", 0)
    check(backbone, drawn())
    assert len(files(place)) == 8


class Slices(Surfaces):
    """Reads something that is neither a file nor drawn."""

    def samples(self):
        return [replace(sample, image=f"volume.npy#{i}") for i, sample in enumerate(super().samples())]

    def read(self, sample):
        return np.full((16, 16, 3), len(sample.image), np.uint8), np.zeros((16, 16), np.uint8)


def test_what_is_read_from_no_file_of_its_own_is_not_cached(backbone, place, caplog) -> None:
    check(backbone, Slices(category="gear", images=2, num_workers=0, cache=True))
    assert files(place) == []
    assert "Slices reads what is no file" in caplog.text


def test_no_room_on_the_disk_is_told_before_it_is_filled(backbone, place, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(CacheError, match=r"features of 6 images need 1 MB .*KANOCLIP_CACHE"):
        check(backbone, photos(tmp_path / "photos"))
    assert files(place) == []


def test_a_folder_that_cannot_be_written_is_told(backbone, place, tmp_path, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CacheError, match=r"No space left on device.*KANOCLIP_CACHE"):
        check(backbone, photos(tmp_path / "photos"))


def test_a_cache_folder_that_cannot_be_made_is_told(backbone, place, tmp_path) -> None:
    data = photos(tmp_path / "photos")
    place.parent.write_text("a file where a folder should be")
    with pytest.raises(CacheError, match=r"Cannot write features to \S+/cache/features/.*KANOCLIP_CACHE to another"):
        check(backbone, data)


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"no picture"), Path.unlink])
def test_an_unreadable_file_is_what_it_is_without_a_cache(backbone, place, tmp_path, harm) -> None:
    noted, errors = [], []
    for cached in ("with", "without"):
        data = photos(tmp_path / cached)
        data.cache, data.batch_size = cached == "with", 2
        data.index()
        harm(tmp_path / cached / "good" / "1.png")
        model = check(backbone, data)  # a test leaves it out
        assert model.results["object"]["images"] == 5
        noted.append([(path.replace(f"/{cached}/", "/"), why) for path, why in data.unreadable])
        with pytest.raises(UnreadableImageError, match=r"good/1\.png") as caught:  # and a fit does not
            trainer(max_epochs=1).fit(KAnoCLIP(backbone=backbone), data)
        errors.append(str(caught.value).replace(f"/{cached}/", "/"))
    assert noted[0] == noted[1]
    assert [Path(path).name for path, _ in noted[0]] == ["1.png"]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("other", ["augment", "tile"])
def test_pictures_that_change_are_not_cached(other) -> None:
    with pytest.raises(ValueError, match=f"cache and {other} are both true.*--data.{other} false"):
        Folder(root=".", cache=True, **{other: True})


def test_a_model_without_frozen_features_does_without(place, tmp_path, caplog) -> None:
    trainer().test(LocalStats(), photos(tmp_path / "photos"), verbose=False)
    assert "LocalStats keeps no frozen features" in caplog.text
    assert files(place) == []


def test_a_loader_without_a_trainer_reads_the_images(tmp_path, caplog) -> None:
    photos(tmp_path / "photos")
    data = Folder(
        root=str(tmp_path / "photos"), normal="good", abnormal="bad", num_workers=0, cache=True, image_size=32
    )
    batch = next(iter(data.test_dataloader()))
    assert batch.features is None
    assert batch.image.shape == (6, 3, 32, 32)
    assert "a loader without a trainer keeps no frozen features" in caplog.text


def test_prediction_is_not_cached(backbone, place, tmp_path) -> None:
    data = photos(tmp_path / "photos")
    scores = trainer().predict(CLIPVV(backbone=backbone), data)
    assert sum(len(batch.image_score) for batch in scores) == 6
    assert files(place) == []


def command(place, folder, count=1, images=6, fault=None, options=()):
    """Test `clip_vv` on drawn images from the command line; returns exit codes, what was printed, and the report."""
    data = ["--data", "surfaces", "--data.category", "grid", "--data.images", str(images), "--data.cache", "true"]
    argv = ["test", *data, "--data.num_workers", "0", "--data.batch_size", "2", "--model", "clip_vv"]
    argv += ["--model.backbone", "embedded", *options]
    codes, out, err = several.run(count, argv, folder, fault=fault, more={"KANOCLIP_CACHE": str(place.parent)})
    reports = [json.loads(path.read_text()) for path in sorted(folder.rglob("results.json"))]
    return codes, out, err, reports


def test_a_build_that_was_killed_goes_on(place, tmp_path) -> None:
    codes, *_ = command(place, tmp_path, fault=partial(several.kill_in_write, 4))
    assert codes == [-signal.SIGKILL]
    done = {file: file.stat().st_mtime_ns for file in files(place)}
    assert len(done) == 3
    codes, out, err, _ = command(place, tmp_path)
    assert codes == [0], err
    assert "features of 3 images" in out[0]
    assert len(files(place)) == 6
    assert all(file.stat().st_mtime_ns == when for file, when in done.items())


def test_two_runs_that_build_at_once_do_not_disturb_each_other(place, tmp_path) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda number: command(place, tmp_path / str(number)), range(2)))
    assert [codes for codes, *_ in runs] == [[0], [0]], runs
    assert runs[0][3][0]["results"] == runs[1][3][0]["results"]
    assert len(files(place)) == 6
    assert list(place.rglob("*.tmp")) == []


def test_the_processes_of_one_run_share_the_work(place, tmp_path) -> None:
    codes, out, err, (shared,) = command(place, tmp_path / "two", count=2, images=7)
    assert codes == [0, 0], err
    assert out[0].count("features of 7 images") == 1
    assert not out[1] + err[1]
    assert len(files(place)) == 7
    when = [file.stat().st_mtime_ns for file in files(place)]
    _, _, _, (alone,) = command(place, tmp_path / "one", images=7)
    assert [file.stat().st_mtime_ns for file in files(place)] == when
    assert shared["results"] == alone["results"]


def test_the_command_line_fits_and_tests_from_the_cache(place, tmp_path) -> None:
    small = ["--data.images", "2", "--data.num_workers", "0", "--data.cache", "true", "--data.category"]
    fit = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), *small, "ring", "--trainer.max_epochs", "1"]
    for argv, count in ((fit, 2), (["test", "--data", "surfaces", *small, "gear"], 4)):
        codes, _, err = several.run(1, argv, tmp_path, more={"KANOCLIP_CACHE": str(place.parent)})
        assert codes == [0], err
        assert len(files(place)) == count
