"""What models say, and what is kept of it."""

import pytest

from kanoclip.knowledge.answers import parse, usable, without_common

TWO = ["a crack in the rim", "a dent in the side"]


@pytest.mark.parametrize(
    "text",
    [
        '["a crack in the rim", "a dent in the side"]',
        'Sure! Here you go:\n```json\n["a crack in the rim",\n "a dent in the side"]\n```\nAnything else?',
        '{"phrases": ["a crack in the rim", "a dent in the side"]}',
        '[1] <- not it: ["a crack in the rim", "a dent in the side"]',
        "Here is a list:\n1. a crack in the rim\n2) a dent in the side",
        "- a crack in the rim\n* a dent in the side\nI hope this helps!",
        "a crack in the rim\n\na dent in the side\n",
        '<think>perhaps ["a wrong one here"]</think>["a crack in the rim", "a dent in the side"]',
    ],
)
def test_a_list_is_found_however_it_is_wrapped(text) -> None:
    assert parse(text) == TWO


def test_a_list_that_was_cut_off_is_read_line_by_line() -> None:
    assert usable(parse('[\n "a crack in the rim",\n "a dent in the side",\n "a sc'), 9) == TWO


@pytest.mark.parametrize("text", ["", "[]", "<think>endless", "[" * 5000])
def test_nothing_comes_of_nothing(text) -> None:
    assert usable(parse(text), 9) == []


def test_phrases_are_brought_to_one_form_and_kept_once() -> None:
    said = ["  A crack in the RIM. ", "“a crack in the rim”", "crack in a rim", "the nut’s rim – chipped off"]
    assert usable(said, 9) == ["a crack in the rim", "the nut's rim - chipped off"]


@pytest.mark.parametrize(
    "phrase",
    [
        "a crack",  # too short
        "a " + "very " * 15 + "long crack",
        " ".join(["crack"] * 200),
        "I'm sorry, but I can't help with that",
        "As an AI language model I see pixels",
        "the image is unclear and blurry",
        "no visible damage on the nut",
        "there are no marks on it",
        "一个有裂缝的瓶子 一个有裂缝的瓶子",
        "трещина на горлышке бутылки",
        "une bouteille avec une fissure",
        "eine Flasche mit einem Riss",
        "una botella con una grieta",
        "a défaut près du côté été",
        "a nut with a defect",
        "an unusual smell of the nut",
        "12 34 56 78",
        '{"text": "a crack", "visible": true}',
    ],
)
def test_refusals_other_languages_and_empty_words_are_dropped(phrase) -> None:
    assert usable([phrase], 9) == []


@pytest.mark.parametrize(
    "phrase",
    [
        "a 2 mm chip at the nut's rim",
        "copper strands where two edges met",
        "a van-shaped dark stain, off-center",
        "a surface without marks or residue",
    ],
)
def test_plain_english_is_kept(phrase) -> None:
    assert usable([phrase], 9) == [phrase]


def test_no_more_are_kept_than_asked_for() -> None:
    said = [f"a crack of {word} length" for word in ("short", "middling", "great", "endless")]
    assert usable(said, 3) == said[:3]


def test_what_is_said_of_both_states_is_dropped_from_both() -> None:
    normal, anomalous = ["a round rim of brass", "a nut on a table"], ["the nut on the table", "a crack in the rim"]
    assert without_common(normal, anomalous) == (["a round rim of brass"], ["a crack in the rim"])


def test_an_answer_of_brackets_is_read_at_once() -> None:
    text = "[" * 1_000_000 + '["a crack in the rim"]'
    assert parse(text) == [text]
