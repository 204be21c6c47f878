"""A card keeps what its owner has written, however a person or an editor has written it."""

import pytest

from kanoclip.outputs.pushed import BEGIN, END, split_card, with_additions

QUOTED = f"The mark `{BEGIN}` stays."


def card(text: str) -> str:
    return f"---\nlibrary_name: kanoclip\n---\n\n{BEGIN}\n\n{text}\n\n{END}\n"


@pytest.mark.parametrize(
    ("before", "above", "below"),
    [
        (f"{QUOTED}\n\n{BEGIN}\nold\n{END}\n", QUOTED, ""),
        (f"{BEGIN}\nold\n{END}\nOne.\n\n{BEGIN}\nolder\n{END}\nTwo.", "", "One.\n\nTwo."),
        ("    code\n    more", "", "    code\n    more"),
        (f"{BEGIN}\nold\n{END}", "", ""),
    ],
)
def test_what_is_not_ours_is_kept_and_what_is_ours_stands_once(before: str, above: str, below: str) -> None:
    made = with_additions(card("new"), before)
    parts = [above, f"{BEGIN}\n\nnew\n\n{END}", below]
    assert split_card(made)[1].strip("\n") == "\n\n".join(filter(None, parts))
    assert with_additions(card("new"), made) == made


@pytest.mark.parametrize("head", ["\ufeff---\nlicense: mit\n---\n", "--- \nlicense: mit\n---\t\n"])
def test_a_head_is_one_with_a_byte_order_mark_and_with_spaces_behind_its_rules(head: str) -> None:
    assert split_card(f"{head}Mine.") == ({"license": "mit"}, "Mine.")
