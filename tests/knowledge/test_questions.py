"""The template of questions."""

import pytest
import yaml

from kanoclip.knowledge.base import FOLDER
from kanoclip.knowledge.questions import Template

SHIPPED = yaml.safe_load((FOLDER / "questions.yaml").read_text())


def test_the_template_that_ships_asks_of_both_states_and_fills_every_gap() -> None:
    template = Template.load()
    assert template.version == "1"
    text = template.fill("general", template.general["anomalous"], "metal_nut", "industrial")
    assert "a damaged, diseased, contaminated or wrongly made metal nut may show" in text
    assert "JSON list of 12 short English phrases" in text
    assert "{" not in text
    assert "JSON list of 4 " in template.fill("image", template.image["anomalous"][0], "metal_nut", "industrial")
    assert "flawless object" in template.fill("general", template.general["normal"], "generic", "medical")


def test_braces_of_ones_own_stay(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SHIPPED | {"answer": 'Answer {"phrases": [...]}, {count} of them.'}))
    template = Template.load(str(path))
    assert template.fill("image", "What?", "nut", "") == 'What? Answer {"phrases": [...]}, 4 of them.'
    assert template.name == "mine.yaml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([1], "expected the keys version, count"),
        ({"version": None}, "version should be a number or a text"),
        ({"general": {"normal": "what?"}}, r"general\.anomalous is missing"),
        ({"general": {"normal": "", "anomalous": "b"}}, r"general\.normal should be a question"),
        ({"image": {"normal": "what?", "anomalous": []}}, r"image\.normal should be a list of questions"),
        ({"image": {"normal": [], "anomalous": [1]}}, r"image\.anomalous should be a list of questions"),
        ({"count": {"general": 0, "image": 1}}, r"count\.general should be a number"),
        ({"count": 3}, r"count\.general is missing"),
        ({"answer": 3}, "answer should be a text"),
        ({"generic": None}, "generic should be a text"),
    ],
)
def test_a_wrong_template_is_refused_by_file_and_key(tmp_path, change, message) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SHIPPED | change if isinstance(change, dict) else change))
    with pytest.raises(ValueError, match=message) as error:
        Template.load(str(path))
    assert str(path) in str(error.value)


def test_a_template_that_is_not_yaml_or_not_there_is_named(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(FileNotFoundError, match=r"No file of questions .*mine\.yaml"):
        Template.load(str(path))
    path.write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        Template.load(str(path))
