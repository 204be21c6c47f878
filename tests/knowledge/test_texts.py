"""The texts of the knowledge bases that ship: complete, specific, visible, varied, and each in its own category."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from kanoclip.knowledge.base import STATES, KnowledgeBase, shipped

# What each file must describe: the categories as the data sets name them.
CATEGORIES = {
    "mvtec": "bottle, cable, capsule, carpet, grid, hazelnut, leather, metal_nut, pill, screw, tile, toothbrush, "
    "transistor, wood, zipper",
    "visa": "candle, capsules, cashew, chewinggum, fryum, macaroni1, macaroni2, pcb1, pcb2, pcb3, pcb4, pipe_fryum",
    "btad": "01, 02, 03",
    "mpdd": "bracket_black, bracket_brown, bracket_white, connector, metal_plate, tubes",
    "kolektor": "electrical commutators, surface",
    "dagm": "Class1, Class2, Class3, Class4, Class5, Class6, Class7, Class8, Class9, Class10",
    "dtd_synthetic": "Blotchy_099, Fibrous_183, Marbled_078, Matted_069, Mesh_114, Perforated_037, Stratified_154, "
    "Woven_001, Woven_068, Woven_104, Woven_125, Woven_127",
    "mvtec_loco": "breakfast_box, juice_bottle, pushpins, screw_bag, splicing_connectors",
    "mvtec_ad2": "can, fabric, fruit_jelly, rice, sheet_metal, vial, wallplugs, walnuts",
    "real_iad": "audiojack, bottle_cap, button_battery, end_cap, eraser, fire_hood, mint, mounts, pcb, phone_battery, "
    "plastic_nut, plastic_plug, porcelain_doll, regulator, rolled_strip_base, sim_card_set, switch, tape, "
    "terminalblock, toothbrush, toy, toy_brick, transistor1, u_block, usb, usb_adaptor, vcpill, wooden_beads, "
    "woodstick, zipper",
    "medical": "brain, liver, retina, chest, histopathology, head, skin, colon, thyroid, breast",
    "inspection": "magnetic_tile, rail, road, pavement, solar_cell, pcb",
}
# surfaces is the base of the pictures that we draw: its texts are short and alike on purpose, see test_knowledge.py.
SHIPPED = [name for name in shipped() if name != "surfaces"]

# Say that something is amiss, not what is seen; or cannot be seen at all.
VAGUE = re.compile(
    r"\b(un)?(damag\w*|defect\w*|anomal\w*|abnormal\w*|fault\w*|flaw\w*|unusual|imperfect\w*|malfunction\w*|problem"
    r"|odou?r|smell\w*|sounds?|noises?|rattl\w*|temperature|warm|hot|weight|heavy|taste)\b"
)
# Names of a category that are also everyday words for a material or a part, and so may describe another object.
EVERYDAY = {"can", "grid", "head", "mesh", "screw", "skin", "surface", "tape", "tile", "wood", "breast", "chest"}
ALIKE = 0.03  # Share of the texts that may read almost the same once the object is left out.
FILLERS = frozenset(["a", "an", "the", "of", "in", "on", "with", "and", "at", "by", "to", "from", "it", "is", "one"])


def texts_of(name: str) -> list[tuple[str, str, str]]:
    """Return (category, state, text) of a file, the generic entries under "generic"."""
    base = KnowledgeBase.load(name)
    entries = {"generic": base.generic, **base.categories}
    return [(category, state, text) for category, entry in entries.items() for state in STATES for text in entry[state]]


def own_words(category: str) -> list[str]:
    return [word for word in re.split(r"[_ ]", category.lower()) if not word.isdigit()]


def stem(word: str) -> str:
    word = re.sub(r"(?<=[a-z])\d+$", "", word.lower())
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def words_of(text: str) -> list[str]:
    return [stem(word) for word in re.findall(r"[a-z0-9]+", text)]


def alike(texts: list[tuple[str, str, str]]) -> list[str]:
    """Return the texts that share three quarters of their words, the object's own left out, with another text."""
    bags = []
    for category, _, text in texts:
        own = {stem(word) for word in own_words(category)}
        bags.append(frozenset(words_of(text)) - own - FILLERS)
    found = set()
    for (first, one), (second, other) in combinations(enumerate(bags), 2):
        if 4 * len(one & other) >= 3 * len(one | other):
            found |= {first, second}
    return [texts[index][2] for index in sorted(found)]


def test_every_data_set_has_its_file() -> None:
    assert set(SHIPPED) == set(CATEGORIES)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_category_has_enough_to_say(name: str) -> None:
    base = KnowledgeBase.load(name)
    assert list(base.categories) == CATEGORIES[name].split(", ")
    for category, entry in {"generic": base.generic, **base.categories}.items():
        assert len(entry["anomalous"]) >= 8, category
        assert len(entry["normal"]) >= 4, category


@pytest.mark.parametrize("name", SHIPPED)
def test_provenance_says_who_when_from_what_question_and_that_all_is_visible(name: str) -> None:
    base = KnowledgeBase.load(name)
    assert {"author", "model", "date", "prompt", "note", "visible"} <= set(base.provenance)
    assert "{category}" in base.provenance["prompt"]
    assert base.provenance["visible"] is True
    content = yaml.safe_load(Path(base.path).read_text(encoding="utf-8"))
    entries = [content["generic"], *content["categories"].values()]
    assert all(isinstance(text, str) for entry in entries for state in STATES for text in entry[state])


@pytest.mark.parametrize("name", SHIPPED)
def test_texts_are_short_plain_phrases(name: str) -> None:
    for category, _, text in texts_of(name):
        assert 3 <= len(text.split()) <= 16, (category, text)
        assert re.fullmatch(r"[a-z0-9][a-z0-9' ,-]*[a-z0-9]", text), (category, text)
        assert "  " not in text, (category, text)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_text_is_vague_or_invisible(name: str) -> None:
    assert [(category, text) for category, _, text in texts_of(name) if VAGUE.search(text)] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_no_two_texts_of_a_file_are_equal(name: str) -> None:
    counts = Counter(" ".join(words_of(text)) for _, _, text in texts_of(name))
    assert [text for text, count in counts.items() if count > 1] == []


def test_texts_are_no_template_with_another_name_filled_in() -> None:
    found = alike([text for name in SHIPPED for text in texts_of(name)])
    total = sum(len(texts_of(name)) for name in SHIPPED)
    assert total > 1500
    assert len(found) <= ALIKE * total, found


def test_a_template_would_be_noticed() -> None:
    words = ["crack", "stain", "hole"]
    texts = [(thing, "anomalous", f"a {thing} with a dark {word}") for thing in ("nut", "road") for word in words]
    assert len(alike(texts)) == len(texts)
    drawn = texts_of("surfaces")
    assert len(alike(drawn)) > 10 * ALIKE * len(drawn)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_text_is_about_its_own_category(name: str) -> None:
    base = KnowledgeBase.load(name)
    names = {category: [stem(word) for word in own_words(category)] for category in base.categories}
    named = {category: words for category, words in names.items() if words and not words[0].startswith("class")}
    strangers = []
    for category, _, text in texts_of(name):
        found = " ".join(words_of(text))
        own = " ".join(names.get(category, []))
        for other, words in named.items():
            phrase = " ".join(words)
            if phrase in EVERYDAY or re.search(rf"\b{phrase}\b", own) or own == phrase or other == category:
                continue
            if re.search(rf"\b{phrase}\b", found):
                strangers.append((category, other, text))
    assert strangers == []


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("btad", "dagm")])
def test_a_category_names_its_object(name: str) -> None:
    # Any word of the name will do ("a commutator" for electrical commutators); half the texts may use a part's name.
    base = KnowledgeBase.load(name)
    for category, entry in base.categories.items():
        own = {stem(word) for word in own_words(category)}
        for state in STATES:
            named = [text for text in entry[state] if own & set(words_of(text))]
            assert len(named) >= len(entry[state]) / 2, (category, state)
