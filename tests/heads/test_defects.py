import pytest
import torch
from torch.nn.functional import interpolate, normalize

from kanoclip.heads.defects import DefectPrompts, PeakScore, kind_maps, kinds_at_peak
from kanoclip.heads.prompts import EnsemblePrompts
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.types import KanoclipError


@torch.no_grad()
def test_each_kind_makes_a_pair_with_the_good_state_in_any_model(tiny_clip, synthetic_batch) -> None:
    prompts = DefectPrompts(["hole", "missing_cap"])
    assert prompts.names == ["hole", "missing cap"]
    pairs = prompts(["nut", "metal_plate"], tiny_clip)
    assert pairs.shape == (2, 2, 2, 16)
    assert torch.equal(pairs[:, 0, 0], pairs[:, 1, 0])  # the good state, once for each kind
    april_gan = EnsemblePrompts(wording="april_gan")
    torch.testing.assert_close(pairs[:, 0, 0], april_gan(["nut", "metal_plate"], tiny_clip)[:, 0])
    assert (pairs[:, 0, 1] - pairs[:, 1, 1]).abs().max() > 1e-3
    scores = KAnoCLIP(tiny_clip, prompts=prompts).eval()(synthetic_batch)
    assert scores.anomaly_map.shape == (4, 32, 32)
    assert scores.defects is None  # it knows two states


@torch.no_grad()
def test_texts_are_each_phrase_in_each_template_averaged(tiny_clip) -> None:
    prompts = DefectPrompts(["hole"], phrases=["{1} in {0}", "{0} has a {1}"], normal=["good {}"], wording="adaclip")
    states = prompts.describe(["metal_nut"], ["hole"], tiny_clip)[0]
    templates = [
        "a bad photo of a {}.", "a low resolution photo of the {}.", "a bad photo of the {}.",
        "a cropped photo of the {}.",
    ]  # fmt: skip
    for state, phrases in zip(states, (["good metal nut"], ["hole in metal nut", "metal nut has a hole"]), strict=True):
        texts = [template.format(phrase) for phrase in phrases for template in templates]
        expected = normalize(tiny_clip.encode_text(texts).mean(0), dim=-1)
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-6)
    assert torch.equal(prompts.describe(["metal_nut"], ["hole"], tiny_clip)[0], states)  # kept


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"phrases": ["{0} is bad"]}, r"prompts\.phrases has the phrase '\{0\} is bad', expected one with \{0\} and"),
        ({"phrases": ["{0} with {1} and {2}"]}, r"prompts\.phrases has the phrase"),
        ({"normal": ["fine"]}, r"prompts\.normal has the phrase 'fine', expected one with \{0\} in it"),
        ({"names": []}, r"prompts\.names is \[\], expected different names"),
        ({"names": "hole"}, r"prompts\.names is hole, expected different names"),
    ],
)
def test_a_phrase_without_its_places_and_names_that_are_none_are_refused(options, said) -> None:
    with pytest.raises(KanoclipError, match=said):
        DefectPrompts(**options)


@pytest.mark.parametrize("enlarge", ["probability", "logits"])
def test_pixels_are_in_one_of_the_listed_states(enlarge) -> None:
    torch.manual_seed(0)
    patches, states = normalize(torch.randn(2, 16, 8), dim=-1), normalize(torch.randn(2, 4, 8), dim=-1)
    listed = torch.tensor([[True, True, True, True], [True, False, True, False]])
    maps = kind_maps(patches, states, listed, (4, 4), 12, 0.1, enlarge)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 12, 12))
    assert (maps[1, [1, 3]] == 0).all()
    logits = (patches[0] @ states[0].mT / 0.1).mT.unflatten(1, (4, 4))[None]
    if enlarge == "logits":
        expected = interpolate(logits, size=(12, 12), mode="bilinear").softmax(1)
    else:
        expected = interpolate(logits.softmax(1), size=(12, 12), mode="bilinear")
    torch.testing.assert_close(maps[:1], expected)


def test_the_kind_and_the_score_of_an_image_are_those_of_its_highest_pixels() -> None:
    heat = torch.tensor([[[0.9, 0.8], [0.7, 0.1]]])
    kinds = torch.tensor([[[[0.9, 0.0], [0.4, 0.0]], [[0.0, 0.8], [0.3, 0.1]]]])  # (1, 2, 2, 2)
    torch.testing.assert_close(kinds_at_peak(kinds, heat), torch.tensor([[1.3, 1.1]]) / 2.4)
    torch.testing.assert_close(kinds_at_peak(kinds, heat, 1), torch.tensor([[1.0, 0.0]]))
    assert kinds_at_peak(0 * kinds, heat).isfinite().all()
    torch.testing.assert_close(PeakScore()(torch.zeros(1), heat), torch.tensor([0.8]))
    with pytest.raises(KanoclipError, match=r"score\.pixels is 0, expected 1 or more"):
        PeakScore(0)
