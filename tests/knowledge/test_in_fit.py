import pytest

from kanoclip.data.drawn.drawing import CATEGORIES
from kanoclip.knowledge.base import KnowledgeBase

GENERIC = "generic: {normal: [a thing], anomalous: [a broken thing]}\n"


def test_the_base_that_ships_describes_every_drawn_category() -> None:
    base = KnowledgeBase.load("surfaces")
    assert set(base.categories) == set(CATEGORIES)
    for category, entry in base.categories.items():
        assert len(set(entry["anomalous"])) >= 8, category
        assert len(set(entry["normal"])) >= 4, category
    assert base.provenance["author"]
    assert base.provenance["visible"] is True


def test_facts_are_those_of_the_categories_each_once_and_generic_ones_for_a_stranger(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        GENERIC + "categories:\n  nut:\n    normal: [a nut]\n    anomalous:\n"
        "      - a cracked nut\n      - {text: a rattling nut, visible: false}\n      - {text: a chipped nut}\n"
    )
    base = KnowledgeBase.load(str(path))
    assert base.facts(["nut"]) == ["a cracked nut", "a chipped nut"]
    assert base.facts(["nut", "stranger", "other stranger"]) == ["a cracked nut", "a chipped nut", "a broken thing"]
    assert base.facts(["nut"], "normal") == ["a nut"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "expected the keys provenance, generic and categories"),
        ("generic: {normal: [a thing]}", r"generic\.anomalous should be a list"),
        (GENERIC + "categories: {nut: {normal: [], anomalous: [x]}}", r"categories\.nut\.normal should be a list"),
        (GENERIC + "categories: {nut: {normal: [a], anomalous: [b, 3]}}", r"entry 2 of categories\.nut\.anomalous"),
        ("generic: {normal: [a], anomalous: [{text: b, visible: false}]}", r"no text of generic\.anomalous is visible"),
        (GENERIC + "provenance: me", "provenance should be a mapping, got 'me'"),
        (GENERIC + "provenance: {visible: false}", r"no text of generic\.normal is visible"),
        ("generic: {normal: [", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(tmp_path, text, message) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        KnowledgeBase.load(str(path))
    assert str(path) in str(error.value)


def test_an_unknown_name_lists_what_ships() -> None:
    with pytest.raises(FileNotFoundError, match=r"one of .*surfaces"):
        KnowledgeBase.load("nowhere")
