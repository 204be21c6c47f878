"""Which base serves which data set."""

from importlib import import_module

import pytest
from layouts import LAYOUTS

from kanoclip.data.sets.tree import Tree
from kanoclip.knowledge.base import FOLDER, QUESTIONS, KnowledgeBase, shipped
from kanoclip.registry import NAMES

OWN = {"folder", "manifest", "meta_json", "joined", "synthetic"}  # data sets whose categories are the user's


def data_class(name):
    module, _, cls = NAMES["data"][name].rpartition(".")
    return getattr(import_module(module), cls)


@pytest.mark.parametrize("name", sorted(set(NAMES["data"]) - OWN))
def test_every_data_set_with_categories_of_its_own_has_a_base_that_knows_them(name) -> None:
    base = KnowledgeBase.for_data(name)
    assert name in base.data_sets
    kind = data_class(name)
    if not issubclass(kind, Tree):
        assert set(kind.drawn_categories) <= set(base.categories)
    elif kind.subject != "object":
        assert kind.subject in base.categories
    else:  # the small trees have other categories, unless the layout fixes them
        found = set(LAYOUTS[name].categories) - {"cat", "dog", "object"}
        assert found <= set(base.categories)


def test_no_data_set_has_two_bases_and_no_base_names_one_that_is_not_registered() -> None:
    named = [data for name in shipped() for data in KnowledgeBase.load(name).data_sets]
    assert sorted(named) == sorted(set(NAMES["data"]) - OWN)


@pytest.mark.parametrize("name", [*sorted(OWN), "nobody's"])
def test_a_strange_data_set_gets_generic_entries_alone(name) -> None:
    base = KnowledgeBase.for_data(name)
    assert base.facts(["bottle"]) == base.generic["anomalous"] == KnowledgeBase.load("mvtec").generic["anomalous"]
    assert base.data_sets == ()


def test_auto_is_the_base_of_the_data_set_and_a_name_is_a_name() -> None:
    assert KnowledgeBase.choose("auto", "ksdd2").path.stem == "kolektor"
    assert KnowledgeBase.choose("visa", "ksdd2").path.stem == "visa"


def test_the_questions_are_no_base() -> None:
    assert (FOLDER / f"{QUESTIONS}.yaml").is_file()
    assert QUESTIONS not in shipped()
    with pytest.raises(FileNotFoundError, match=r"Use --model\.knowledge auto"):
        KnowledgeBase.load(QUESTIONS)


@pytest.mark.parametrize("wrong", ["mvtec", "[1]", "{a: b}"])
def test_data_sets_that_are_no_list_of_names_are_refused(tmp_path, wrong) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"data_sets: {wrong}\ngeneric: {{normal: [a thing], anomalous: [a broken thing]}}\n")
    with pytest.raises(ValueError, match="data_sets should be a list of names"):
        KnowledgeBase.load(str(path))


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="Did you mean 'kolektor'"):
        KnowledgeBase.load("kolector")
