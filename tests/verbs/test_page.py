"""What the page of the demo computes, and a page that is built, without a browser."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kanoclip import Inspector
from kanoclip.metrics.calibration import Threshold
from kanoclip.models.baselines import LocalStats
from kanoclip.outputs.names import true_text
from kanoclip.types import KanoclipError

pytest.importorskip("gradio")
from kanoclip.verbs import page as pages
from kanoclip.verbs.page import Photo, csv_of, look, page, picture, table

HALF = Threshold(0.5, 0.5)


def photo(name: str = "=part.png", score: float = 0.7) -> Photo:
    heat = np.zeros((40, 60), np.float32)
    heat[5:10, 5:10] = heat[30:35, 40:50] = 0.9
    return Photo(name, score, 0.9, np.full((40, 60, 3), 100, np.uint8), heat)


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector(LocalStats(), threshold=Threshold(0.25, 0.75, 0.01))


@pytest.fixture(scope="module")
def blocks(inspector, tmp_path_factory):
    return page(inspector, ["a <b>model</b>"], tmp_path_factory.mktemp("page"))


def call(blocks, name, *given):
    return next(one.fn for one in blocks.fns.values() if one.name == name)(*given)


@pytest.mark.parametrize("size", [(30, 20), (1600, 1000), (1, 3000)])
def test_a_photo_is_kept_at_one_size_with_the_scores_of_the_inspector(tmp_path, inspector, size):
    file = tmp_path / "stored.png"
    Image.effect_noise(size, 80).save(file)
    seen, found = look(inspector, str(file), "<b>.png"), inspector(file)
    assert (seen.name, seen.score, seen.map_max) == ("<b>.png", found.score, found.anomaly_map.max())
    assert max(seen.heat.shape) == pages.SHOWN
    assert seen.pixels.shape == (*seen.heat.shape, 3)
    assert not seen.problem


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_what_is_no_image_is_told_in_one_line_by_the_name_that_a_person_knows(tmp_path, inspector, content):
    (tmp_path / "stored.png").write_bytes(content)
    seen = look(inspector, f"{tmp_path}/stored.png", "my\nnotes.png")
    assert seen.problem.startswith(r"Cannot use my\nnotes.png: it is")
    assert "\n" not in seen.problem
    assert str(tmp_path) not in seen.problem


def test_the_table_follows_the_thresholds():
    bad = Photo("x", problem="Cannot use x.")
    assert table([photo(), bad], HALF) == [
        [1, "=part.png", 0.7, "defective", 0.2, 2],
        [2, "x", None, "not read", None, None],
    ]
    assert table([photo()], Threshold(0.7, 0.9))[0][3:] == ["good", 0.0, 0]
    assert table([photo()], Threshold(0.5, 0.5, min_area=50 / 2400))[0][5] == 1


def test_the_csv_has_all_photos_and_no_formulas():
    rows = list(csv.DictReader(io.StringIO(csv_of([photo(), Photo("x", problem="Cannot use x.")], HALF))))
    assert rows[0]["path"] == "'=part.png"
    assert true_text(rows[0]["path"]) == "=part.png"
    assert [float(rows[0][name]) for name in ("image_score", "map_max", "margin", "regions")] == [
        0.7,
        0.9,
        0.7 - 0.5,
        2,
    ]
    assert rows[0]["decision"] == "defective"
    assert (rows[1]["image_score"], rows[1]["not_read"]) == ("", "Cannot use x.")


def test_opacity_goes_from_the_photo_alone_to_the_overlay_of_predict():
    whole, none, half = (picture(photo(), HALF, opacity)[:40, :60].astype(int) for opacity in (1, 0, 0.5))
    assert (none == 100).all()
    assert (whole[7, 7] != 100).any()
    assert abs(half - (whole + 100) / 2).max() <= 1
    assert (picture(photo(), Threshold(0.5, 0.95), 1)[:40, :60] == 100).all()


def test_the_name_of_a_photo_is_text():
    name = '"><img src=x onerror=alert(1)>.png'
    for one in (photo(name), Photo(name, problem=f"Cannot use {name}.")):
        shown = pages.figure(one, HALF, 1)
        assert "&quot;&gt;&lt;img src=x onerror=alert(1)&gt;.png" in shown
        assert name not in shown


def test_sliders_begin_at_the_threshold_of_the_inspector(blocks, inspector, tmp_path):
    sliders = {
        one["props"]["label"]: one["props"]["value"] for one in blocks.config["components"] if one["type"] == "slider"
    }
    assert sliders == {
        "Defective: image score above": 0.25,
        "Coloured: pixel score above": 0.75,
        "Opacity of the map": 1,
    }
    text = str(blocks.config["components"])
    assert "a &lt;b&gt;model&lt;/b&gt;" in text
    assert "Uncalibrated" not in text
    assert "Uncalibrated" in str(page(Inspector(LocalStats()), [], tmp_path).config["components"])


def test_uploads_are_deleted_and_no_more_photos_kept_than_a_page_holds(blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PHOTOS", 3)
    told = []
    monkeypatch.setattr(pages.gr, "Warning", told.append)
    files = [(f"{tmp_path}/{i}.png", "same.png") for i in range(4)]
    for path, _ in files:
        Image.effect_noise((20, 20), 80).save(path)
    Path(files[0][0]).write_bytes(b"")
    dropped, photos, at, rows, image, download, problems = call(blocks, "drop", files, [], 0.5, 0.5, 1)
    assert dropped is None
    assert not list(tmp_path.glob("*.png"))
    assert [one.name for one in photos] == ["same.png"] * 3 == [row[1] for row in rows]
    assert at == 1  # the first that could be read
    assert image.startswith('<img alt="same.png: score ')
    assert problems["value"].startswith("Cannot use same.png")
    assert "left out" in told[0]
    assert "same.png" in Path(download["value"]).read_text()
    photos, at, rows, image, download, problems = call(blocks, "clear", 0.5, 0.5, 1)
    assert (photos, rows, image) == ([], [], "")


def test_nothing_is_public_and_no_font_is_fetched(blocks):
    assert {one.api_visibility for one in blocks.fns.values()} == {"private"}


def test_a_model_that_overflows_is_told_before_the_page_opens(tmp_path):
    model = LocalStats()
    model.forward = lambda batch: model.__class__.forward(model, batch)._replace(
        image_score=batch.image[:, 0, 0, 0] / 0
    )
    with pytest.raises(KanoclipError, match="NaN or infinite"):
        page(Inspector(model), [], tmp_path)
