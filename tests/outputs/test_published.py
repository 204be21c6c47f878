"""The file of published numbers: every number has its source, and two families never meet."""

import re
from collections import Counter

import pytest
import yaml

from kanoclip.outputs.published import FILE, FLAGS, families, published, usual_family
from kanoclip.outputs.tables import METRICS
from kanoclip.registry import NAMES

CONTENT = yaml.safe_load(FILE.read_text(encoding="utf-8"))
KEYS = {"method", "family", "post_processing", "source", "flag", "percent"}


def test_every_number_has_a_registered_data_set_a_metric_of_ours_and_its_source() -> None:
    count = 0
    for block in CONTENT["published"]:
        assert set(block) - {"auxiliary", "itself"} == KEYS
        assert block["family"] in CONTENT["families"]
        assert block["flag"] in FLAGS
        assert block["source"]
        for data, values in block["percent"].items():
            assert data in NAMES["data"]
            assert set(values) <= set(METRICS)
            assert all(0 < value < 100 for value in values.values())
            count += len(values)
    assert count > 600


def test_a_source_says_one_thing_of_a_method_on_a_data_set() -> None:
    said = Counter(
        (block["family"], block["method"], block["source"], data)
        for block in CONTENT["published"]
        for data in block["percent"]
    )
    assert max(said.values()) == 1
    assert "pixel_auroc: 94.3" in FILE.read_text(encoding="utf-8")  # no key is written twice, which YAML would swallow
    for line in FILE.read_text(encoding="utf-8").splitlines():
        keys = re.findall(r"(\w+): [\d.]+", line)
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("family", list(families()))
def test_numbers_of_two_families_are_never_given_together(family: str) -> None:
    found = published(family, NAMES["data"])
    assert {one.family for one in found} == {family}
    assert len(found) > 50


def test_a_number_knows_what_it_was_fitted_on() -> None:
    def auxiliary(family: str, method: str, data: str) -> str | None:
        return next(one.auxiliary for one in published(family, [data]) if one.method == method)

    assert auxiliary("mvtec_to_all", "AnomalyCLIP", "visa") == "mvtec"
    assert auxiliary("mvtec_to_all", "AnomalyCLIP", "mvtec") == "visa"
    assert auxiliary("visa_to_all", "AnomalyCLIP", "mvtec") == "visa"
    assert auxiliary("visa_to_all", "AnomalyCLIP", "visa") == "mvtec"
    assert auxiliary("mvtec_to_all", "AdaCLIP", "mvtec") == "visa + cvc_clinicdb"
    assert auxiliary("mvtec_to_all", "WinCLIP", "mvtec") is None
    assert auxiliary("mvtec_to_all", "KAnoCLIP", "btad") == "not stated"


def test_values_are_shares_and_unverified_ones_are_marked() -> None:
    (one,) = (one for one in published("mvtec_to_all", ["bmad_liver"]) if one.method == "KAnoCLIP")
    assert one.values == {"image_auroc": 0.782}
    assert FLAGS[one.flag] == ", not verified"


def test_an_unknown_family_is_told() -> None:
    with pytest.raises(ValueError, match=r"called 'mvtec'\. Use mvtec_to_all, visa_to_all or none"):
        published("mvtec", ["visa"])


def test_the_usual_family_is_that_of_most_auxiliary_sets() -> None:
    assert usual_family(["visa", "mvtec", "mvtec"]) == "mvtec_to_all"
    assert usual_family(["visa"]) == "visa_to_all"
    assert usual_family(["surfaces_auxiliary"]) is None
