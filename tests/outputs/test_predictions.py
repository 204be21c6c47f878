import csv
import json
import os
import re
import signal
import time

import cv2
import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kanoclip.outputs import PredictionWriter
from kanoclip.outputs.names import read_csv

GREY = np.full((30, 40, 3), 90, np.uint8)


def rows(kit):
    return list(csv.DictReader((kit.folder / "predictions.csv").open()))


def files(kit, kind):
    return sorted(path.relative_to(kit.folder / kind).as_posix() for path in (kit.folder / kind).rglob("*.*"))


def predict(kit, data, writer=None, **model):
    kit.trainer(writer or PredictionWriter()).predict(kit.model(**model), data, return_predictions=False)


@pytest.fixture
def photos(kit, tmp_path):
    """Grey photos of 30 x 40 pixels in folders; the model sees white squares on black instead."""
    names = ["ring/good/1.png", "ring/hole/1.png", "nut/good/1.png"]
    for name in names:
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), GREY)
    return kit.data(kit.samples(*(str(tmp_path / "in" / name) for name in names)), size=(30, 40))


def test_maps_and_overlays_keep_folders_and_size(kit, photos):
    predict(kit, photos)
    assert files(kit, "maps") == files(kit, "overlays") == ["nut/good/1.png", "ring/good/1.png", "ring/hole/1.png"]
    heat = cv2.imread(str(kit.folder / "maps/ring/hole/1.png"), cv2.IMREAD_UNCHANGED)
    assert (heat.shape, heat.dtype, heat.max(), heat[0, 0]) == ((30, 40), np.uint16, 65535, 0)
    assert heat[11, 14] == 65535  # the centre of the square, 4:8 of 16, at the photo's scale


def test_a_photo_without_findings_is_its_own_overlay(kit, photos):
    predict(kit, photos)
    assert np.array_equal(cv2.imread(str(kit.folder / "overlays/ring/good/1.png"))[:30, :40], GREY)
    marked = cv2.imread(str(kit.folder / "overlays/ring/hole/1.png"))
    assert np.array_equal(marked[0, :40], GREY[0])
    assert not np.array_equal(marked[11, 14], GREY[11, 14])


def test_rows_say_where_everything_is(kit, photos, capsys):
    predict(kit, photos)
    normal, anomalous, _ = rows(kit)
    assert (normal["image_score"], anomalous["image_score"], anomalous["map_max"]) == (
        "0.000000",
        "1.000000",
        "1.000000",
    )
    assert (anomalous["map"], anomalous["overlay"]) == ("maps/ring/hole/1.png", "overlays/ring/hole/1.png")
    assert anomalous["path"] == photos.samples[1].image
    assert f"3 images: {kit.folder}/predictions.csv" in capsys.readouterr().out


def test_npy_maps_hold_the_scores_and_overlays_can_be_left_out(kit, photos):
    predict(kit, photos, PredictionWriter("npy", overlays=False))
    heat = np.load(kit.folder / "maps/ring/hole/1.npy")
    assert (heat.dtype, heat.shape, heat.max()) == (np.float32, (30, 40), 1)
    assert not (kit.folder / "overlays").exists()
    assert rows(kit)[0]["overlay"] == ""


def test_another_format_is_an_error():
    with pytest.raises(ValueError, match=r"map_format is 'tif', expected png or npy"):
        PredictionWriter("tif")


@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_what_was_finished_before_an_interruption_is_on_disk_and_listed(kit, monkeypatch, how, capsys):
    data = kit.data(kit.samples(*(f"d/ring/good/{i}.png" for i in range(8))))
    model = kit.model(stop_at=2)  # two a batch: four are done
    model.stop_with = how
    with pytest.raises((SystemExit, RuntimeError)):
        kit.trainer(PredictionWriter()).predict(model, data, return_predictions=False)
    assert [row["path"][-5] for row in rows(kit)] == list("0123")
    assert files(kit, "maps") == files(kit, "overlays") == [f"{i}.png" for i in range(4)]
    assert "Stopped; 4 images are done" in capsys.readouterr().out


def test_a_prediction_that_is_told_to_end_stops_between_batches(kit, monkeypatch, capsys):
    data = kit.data(kit.samples(*(f"d/ring/good/{i}.png" for i in range(8))))
    model = kit.model()
    step = model.predict_step
    monkeypatch.setattr(model, "predict_step", lambda *batch: os.kill(os.getpid(), signal.SIGTERM) or step(*batch))
    with pytest.raises(SIGTERMException):
        kit.trainer(PredictionWriter()).predict(model, data, return_predictions=False)
    assert [row["path"][-5] for row in rows(kit)] == list("01")
    assert "Stopped; 2 images are done" in capsys.readouterr().out


def test_files_that_fail_to_be_written_are_not_listed_but_those_before_are(kit, monkeypatch):
    from kanoclip.outputs import predictions

    write = predictions.write_image

    def full(path, image):
        if path.name == "2.png":
            raise OSError("Cannot write: disk full")
        write(path, image)

    monkeypatch.setattr(predictions, "write_image", full)
    with pytest.raises(OSError, match="disk full"):
        predict(kit, kit.data(kit.samples(*(f"d/ring/good/{i}.png" for i in range(1, 5)))))
    assert [row["map"] for row in rows(kit)] == ["maps/1.png"]


def test_names_that_differ_only_in_suffix_or_case_do_not_overwrite_each_other(kit):
    names = ("a.jpg", "a.png", "A.bmp", "a.b.png", "a_png.png")
    predict(kit, kit.data(kit.samples(*(f"d/ring/good/{name}" for name in names))))
    assert len(rows(kit)) == len({row["map"].casefold() for row in rows(kit)}) == len(files(kit, "maps")) == 5
    assert [row["map"] for row in rows(kit)][:2] == ["maps/a.png", "maps/a_png.png"]


def test_names_of_any_length_and_letters_are_written(kit):
    names = ("缺" * 80 + "1.jpg", "缺" * 84 + "1.j", "缺" * 84 + "2.j", "x" * 253 + ".j", "x" * 253 + ".k")
    predict(kit, kit.data(kit.samples(*(f"d/ring/good/{name}" for name in names))))
    found = [row["map"].removeprefix("maps/") for row in rows(kit)]
    assert len({name.casefold() for name in found}) == len(files(kit, "maps")) == len(files(kit, "overlays")) == 5
    assert max(len(name.encode()) for name in found) <= 255


def test_a_name_that_a_spreadsheet_would_run_is_harmless_and_comes_back(kit):
    names = ["=cmd|' -C calc'!A0.jpg", "@SUM(1).jpg", "'quoted.jpg", "-1\tx.jpg", 'a\rb\nc,d".jpg', "\udcff.jpg"]
    paths = [f"{name}/ring/good/{name}" for name in names]
    predict(kit, kit.data(kit.samples(*paths)))
    assert [row["path"] for row in read_csv(kit.folder / "predictions.csv")] == paths
    raw = (kit.folder / "predictions.csv").read_bytes().decode("utf-8", "surrogateescape")
    assert not re.search(r"(^|[\n,]\"?)[=@]", raw)


def test_an_overlay_that_cannot_be_written_is_told_and_left_out_of_its_row(kit, monkeypatch, capsys):
    from kanoclip.outputs import predictions

    write = predictions.write_image

    def full(path, image):
        if path.parent.name == "overlays" and path.name == "2.png":
            raise OSError("Cannot write 2.png: disk full")
        write(path, image)

    monkeypatch.setattr(predictions, "write_image", full)
    writer = PredictionWriter()
    predict(kit, kit.data(kit.samples(*(f"d/ring/good/{i}.png" for i in range(1, 4)))), writer)
    assert [row["overlay"] for row in rows(kit)] == ["overlays/1.png", "", "overlays/3.png"]
    assert [row["map"] for row in rows(kit)] == [f"maps/{i}.png" for i in range(1, 4)]
    said = "kanoclip: 1 picture could not be written; the scores and maps are complete. The first: Cannot write 2.png"
    assert said in capsys.readouterr().err
    assert [name for name, _ in writer.unwritten] == ["overlays/2.png"]


def test_large_pictures_are_written_one_at_a_time(kit, photos, monkeypatch):
    from kanoclip.outputs import predictions

    monkeypatch.setattr(predictions, "AT_ONCE", 30 * 40 * 2)
    running, most = [], []

    def watched(*arguments):
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return original(*arguments)

    original = predictions.marked
    monkeypatch.setattr(predictions, "marked", watched)
    big = kit.data(photos.samples, size=(30, 81))
    predict(kit, big)
    assert max(most) == 1
    assert len(rows(kit)) == 3


def test_a_record_says_of_what_run_the_scores_are(kit, photos):
    predict(kit, photos)
    record = json.loads((kit.folder / "predictions.json").read_text())
    assert (record["model"], record["images"], record["precision"]) == ("brightness", 3, "32-true")
    assert record["options"]["data"]["size"] == [30, 40]
    assert {"checkpoint", "components", "settings", "versions"} <= set(record)


def test_drawn_images_have_folders_too(kit):
    predict(kit, kit.data(kit.samples("surfaces://ring/good/1.png", "surfaces://nut/hole/2.png")))
    assert files(kit, "maps") == ["nut/hole/2.png", "ring/good/1.png"]
    assert [row["path"] for row in rows(kit)] == ["surfaces://ring/good/1.png", "surfaces://nut/hole/2.png"]


def test_paths_outside_of_the_working_folder_stay_inside_of_the_run(kit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict(kit, kit.data(kit.samples("../x/ring/good/1.png", "/y/nut/good/1.png", "z/nut/good/1.png")))
    assert len(files(kit, "maps")) == 3


def test_folders_are_kept_for_data_without_an_index(kit, monkeypatch):
    monkeypatch.delattr(kit.data, "part")
    predict(kit, kit.data(kit.samples("/in/ring/good/1.png", "/in/nut/good/1.png")))
    assert files(kit, "maps") == ["in/nut/good/1.png", "in/ring/good/1.png"]


def test_it_is_told_when_no_overlay_has_colour(kit, photos, capsys):
    predict(kit, photos)
    assert "No overlay" not in capsys.readouterr().out
    predict(kit, kit.data(photos.samples[:1], size=(30, 40)))
    assert "No overlay is coloured: colour begins at 0.5 and no map reaches it." in capsys.readouterr().out
