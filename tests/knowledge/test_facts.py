"""What the knowledge loss reads: of categories, of images, of both, and shuffled."""

import json
from collections import Counter

import pytest
import torch

from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.data.sets.joined import Joined
from kanoclip.knowledge.base import FOLDER, KnowledgeBase
from kanoclip.knowledge.facts import Facts, Known, shuffled
from kanoclip.knowledge.images import image_hashes, load_image_entries
from kanoclip.outputs.record import files_of
from kanoclip.types import ANOMALOUS


@pytest.fixture
def data():
    return SurfacesAuxiliary(images=4, category=["wood", "nut"])


def bad(data):
    return [sample for sample in data.part("fit") if sample.label == ANOMALOUS]


def test_the_file_that_ships_knows_every_damaged_image_of_the_miniature() -> None:
    data = SurfacesAuxiliary(images=144)
    entries = load_image_entries(FOLDER / "surfaces_auxiliary.jsonl")
    samples = bad(data)
    assert [entry["image"] for entry in entries] == image_hashes(samples, data)
    assert [entry["category"] for entry in entries] == [sample.category for sample in samples]
    assert all(len(set(entry["answers"])) == 2 and entry["state"] == "anomalous" for entry in entries)
    assert {entry["model"] for entry in entries} == {"the drawing's mask"}
    assert (FOLDER / "surfaces_auxiliary.jsonl").stat().st_size < 400_000


def test_general_image_and_both_are_what_they_say(data) -> None:
    base = KnowledgeBase.load("surfaces")
    general, image, both = (Known.of(data, *which) for which in (("auto", None), ("none", "auto"), ("auto", "auto")))
    assert general.categories == {name: base.facts([name]) for name in ("nut", "wood")}
    assert general.images == {}
    first = bad(data)[0]
    own = image.images[first.image]
    assert len(image.images) == len(bad(data)) == 4
    assert len(own) == 2
    assert both.images[first.image] == base.facts([first.category]) + own
    of_nuts = [text for sample in bad(data) if sample.category == "nut" for text in image.images[sample.image]]
    assert image.categories["nut"] == list(dict.fromkeys(of_nuts))  # serves images without texts of their own
    assert not set(image.categories["nut"]) & set(base.facts(["nut"]))
    assert list(general.files) == ["knowledge:surfaces"]
    assert list(image.files) == ["knowledge:surfaces_auxiliary.jsonl"]
    assert list(both.files) == ["knowledge:surfaces", "knowledge:surfaces_auxiliary.jsonl"]
    assert files_of(list(both.files)) == both.files  # so that a fit is done again when they change


def test_shuffled_texts_are_as_many_and_as_long_with_words_of_both_states(data) -> None:
    both, dealt = Known.of(data, "auto", "auto"), Known.of(data, "shuffled", "auto")
    assert dealt == Known.of(data, "shuffled", "auto")
    texts, others = (
        [t for ts in (*one.categories.values(), *one.images.values()) for t in ts] for one in (both, dealt)
    )
    assert [len(text.split()) for text in texts] == [len(text.split()) for text in others]
    assert not set(texts) & set(others)
    words = Counter(word for text in set(texts) for word in text.split())
    new = set(" ".join(others).split()) - set(words)
    normal = " ".join(KnowledgeBase.load("surfaces").facts(["wood", "nut"], "normal"))
    assert new
    assert new <= set(normal.split())
    assert shuffled(["a b", "c"], ["d"]).keys() == {"a b", "c"}


def test_features_of_an_image_are_those_of_its_texts(data, tiny_clip) -> None:
    known = Known.of(data, "auto", "auto")
    facts = Facts(tiny_clip, known)
    wood, nut = bad(data)[0], bad(data)[-1]
    for sample in (wood, nut):
        expected = tiny_clip.encode_text(known.images[sample.image])
        torch.testing.assert_close(facts(sample.category, sample.image), expected)
    torch.testing.assert_close(facts("nut", "elsewhere"), tiny_clip.encode_text(known.categories["nut"]))
    base = KnowledgeBase.load("surfaces")
    torch.testing.assert_close(facts.general, tiny_clip.encode_text(base.facts(["nut", "wood"])))


def test_joined_sets_are_known_each_by_its_own_base_and_file(data, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    from kanoclip.data.sets.visa import VisA

    other = SurfacesAuxiliary(images=2, category="wood", drawing_seed=5)
    joined = Joined([data, other])
    known = Known.of(joined, "auto", "auto")
    base = KnowledgeBase.load("surfaces")
    assert known.categories["wood (surfaces_auxiliary 2)"] == base.facts(["wood"])
    assert set(known.images) == {sample.image for sample in bad(data)}
    monkeypatch.setattr(other, "name", VisA.name)
    part = Known.of(joined, "auto", "auto")
    assert part.images == known.images
    assert part.files["runs/knowledge/visa.jsonl"] is None
    assert "--data visa " in caplog.text
    with pytest.raises(FileNotFoundError, match=r"runs/knowledge/visa\.jsonl.* --data visa .*image_knowledge null"):
        Known.of(joined, "none", "auto")


def test_auto_reads_what_build_wrote_and_goes_without_where_it_did_not(data, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SurfacesAuxiliary, "name", "mine")
    known, plain = Known.of(data, "surfaces", "auto"), Known.of(data, "surfaces", None)
    assert (known.categories, known.images) == (plain.categories, {})
    assert known.files == {**plain.files, "runs/knowledge/mine.jsonl": None}
    (said,) = caplog.messages
    assert said == (
        "Fitted without knowledge of images, which the paper uses: no runs/knowledge/mine.jsonl. Make it: "
        "kanoclip knowledge build --data mine --data.root FOLDER --vqa_model MODEL"
    )
    for needed in (("none", "auto"), ("surfaces", "runs/knowledge/mine.jsonl")):
        with pytest.raises(FileNotFoundError, match=r"runs/knowledge/mine\.jsonl\. Make it: .* --data mine "):
            Known.of(data, *needed)
    (image,) = image_hashes(bad(data)[:1], data)
    (tmp_path / "runs/knowledge").mkdir(parents=True)
    line = {"image": image, "category": "nut", "state": "anomalous", "answers": ["a bent nut"]}
    (tmp_path / "runs/knowledge/mine.jsonl").write_text(json.dumps(line) + "\n")
    known = Known.of(data, "none", "auto")
    assert list(known.images.values()) == [["a bent nut"]]
    assert known.files == files_of("runs/knowledge/mine.jsonl")


def test_a_loss_that_has_nothing_to_read_is_refused(data) -> None:
    with pytest.raises(ValueError, match=r"nothing to read.*--model\.kd_loss none"):
        Known.of(data, "none", None)
