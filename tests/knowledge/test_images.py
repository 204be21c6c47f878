"""Image knowledge: how an image is recognised, and what the loss makes of it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.images import read_pair
from kanoclip.data.loading import Sample
from kanoclip.data.sets.folder import Folder
from kanoclip.heads.losses import MeanKD
from kanoclip.knowledge.base import KnowledgeBase
from kanoclip.knowledge.images import image_hash, load_image_knowledge
from kanoclip.models.kanoclip import KAnoCLIP

TEXTS = ["a pale line across the upper left"]


def test_an_image_with_a_name_that_is_too_long_is_told_and_no_crash():
    sample = Sample("a" * 300 + ".png")
    with pytest.raises(UnreadableImageError, match=r"File name too long"):
        image_hash(sample, lambda one: read_pair(one.image, (), None, None))


class Trained:
    """As much of a trainer as the start of a fit looks at."""

    ckpt_path = None

    def __init__(self, datamodule) -> None:
        self.datamodule = datamodule


def line(image, answers=TEXTS, state="anomalous"):
    return json.dumps({"image": image, "category": "nut", "state": state, "answers": answers}) + "\n"


@pytest.fixture
def data(tmp_path):
    """Two normal and two anomalous photos of one nut."""
    rng = np.random.default_rng(0)
    for state in ("normal", "abnormal"):
        (tmp_path / "nuts" / state).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "nuts" / state / f"{i}.png")
    return Folder(str(tmp_path / "nuts"), category_name="nut", image_size=32, num_workers=0, batch_size=4)


@pytest.fixture
def start(tiny_clip, data, monkeypatch):
    """Start a fit on the photos."""

    def begin(datamodule=data, **options):
        torch.manual_seed(0)
        model = KAnoCLIP(backbone=tiny_clip, **options)
        monkeypatch.setattr(KAnoCLIP, "trainer", Trained(datamodule))
        monkeypatch.setattr("kanoclip.models.base.AnomalyModule.on_fit_start", lambda self: None)
        model.on_fit_start()
        return model

    return begin


def test_a_file_is_known_by_its_bytes_and_a_drawing_by_its_pixels(data) -> None:
    sample = data.samples()[0]
    content = Path(sample.image).read_bytes()
    assert image_hash(sample, data.read) == hashlib.sha256(content).hexdigest()
    drawn = SurfacesAuxiliary(images=2)
    first, second = drawn.samples()[:2]
    assert image_hash(first, drawn.read) == hashlib.sha256(drawn.read(first)[0].tobytes()).hexdigest()
    assert image_hash(first, drawn.read) != image_hash(second, drawn.read)


def test_lines_of_one_image_and_one_state_are_put_together(tmp_path) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text(line("a") + line("a", ["another text"]) + line("a", ["a round nut"], "normal") + line("b"))
    assert load_image_knowledge(path) == {"a": [*TEXTS, "another text"], "b": TEXTS}
    assert load_image_knowledge(path, "normal") == {"a": ["a round nut"]}


@pytest.mark.parametrize("wrong", ["", "no json", "[]", '{"image": "a", "state": "normal"}', line(1), line("a", [1]),
                                   line("a", "text")])  # fmt: skip
def test_a_wrong_line_is_named(tmp_path, wrong) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text(line("a") + wrong.strip() + "\n")
    with pytest.raises(ValueError, match=r"known\.jsonl, line 2: expected an object with image"):
        load_image_knowledge(path)


def test_a_file_that_is_not_there_is_an_error_that_says_how_to_make_it(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="kanoclip knowledge build --vqa_model"):
        load_image_knowledge(tmp_path / "nowhere.jsonl")


def test_auto_reads_the_base_of_the_data_set_it_is_fitted_on(start, data, tiny_clip, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(KnowledgeBase, "for_data", lambda name: asked.append(name) or KnowledgeBase.load("visa"))
    model = start()
    assert asked == ["folder"]
    generic = KnowledgeBase.load("visa").generic["anomalous"]
    torch.testing.assert_close(model._facts, tiny_clip.encode_text(generic))


def test_a_fit_without_a_data_module_reads_generic_entries(start, tiny_clip) -> None:
    generic = KnowledgeBase.load("mvtec").generic["anomalous"]
    torch.testing.assert_close(start(None)._facts, tiny_clip.encode_text(generic))


def test_an_image_learns_from_its_category_and_itself(start, data, tmp_path, tiny_clip) -> None:
    path = tmp_path / "known.jsonl"
    bad = [sample for sample in data.part("fit") if sample.label == 1]
    path.write_text(line(image_hash(bad[0], data.read)))
    model = start(image_knowledge=str(path), kd_loss=MeanKD())
    general, own = model._facts, tiny_clip.encode_text(TEXTS)
    torch.testing.assert_close(model._facts_of("nut", bad[0].image), torch.cat([general, own]))
    torch.testing.assert_close(model._facts_of("nut", bad[1].image), general)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    loss = model.losses(batch, scores := model(batch))["kd"]
    with_own = model.kd_loss(scores.states[0], torch.cat([general, own]))
    expected = (with_own + 3 * model.kd_loss(scores.states[0], general)) / 4
    torch.testing.assert_close(loss, expected)
    assert abs(float(loss - model.kd_loss(scores.states[0], general))) > 1e-6


def test_knowledge_of_other_images_is_refused(start, tmp_path) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text(line("0" * 64))
    with pytest.raises(ValueError, match="knows none of the 4 images of folder"):
        start(image_knowledge=str(path))


def test_an_image_that_is_gone_is_left_to_the_loader(start, data, tmp_path) -> None:
    bad = [sample for sample in data.part("fit") if sample.label == 1]
    path = tmp_path / "known.jsonl"
    path.write_text(line(image_hash(bad[0], data.read)))
    data.part("fit")
    (tmp_path / "nuts/normal/0.png").unlink()
    assert start(image_knowledge=str(path))._facts_of is not None


def test_a_sample_is_hashed_without_its_mask(data) -> None:
    sample = data.samples()[0]
    assert image_hash(sample, data.read) == image_hash(Sample(sample.image), data.read)
