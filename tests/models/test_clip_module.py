"""Prompts that see the image, several pairs of states, and loss terms of heads."""

import copy
import math

import pytest
import torch
from torch.nn.functional import normalize

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.bayesian_prompts import BayesianPrompts
from kanoclip.heads.fine_grained import FineGrainedPrompts
from kanoclip.heads.interaction import LevelProjection
from kanoclip.heads.prompts import EnsemblePrompts, LearnedPrompts
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.aa_clip import AACLIP
from kanoclip.models.rivals.adaclip import AdaCLIP
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.models.rivals.bayes_pfl import BayesPFL
from kanoclip.types import KanoclipError


class SeesImage(LearnedPrompts):
    """Moves its states by the image, and asks to be small."""

    def forward(self, category, backbone, features=None, hooks=None):
        states = super().forward(category, backbone, features, hooks)
        if self.training:
            self.terms = {"size": self.vectors.square().sum()}
        return normalize(states + features.cls[:, None], dim=-1)


class Pairs(EnsemblePrompts):
    """Three pairs of states: those of the parent, and two that are random."""

    def forward(self, category, backbone, features=None, hooks=None):
        one = super().forward(category, backbone)
        torch.manual_seed(1)
        others = normalize(one[:, None] + torch.randn(1, 2, 2, one.shape[-1]), dim=-1)
        return torch.cat([one[:, None], others], 1)  # (B, 3, 2, D)


def test_terms_of_a_head_are_weighed_by_name_and_taken_once(tiny_clip, synthetic_batch):
    model = KAnoCLIP(tiny_clip, prompts=SeesImage(), terms={"size": 0.5}).train()
    scores = model(synthetic_batch)
    losses = model.losses(synthetic_batch, scores)
    torch.testing.assert_close(losses["size"], 0.5 * model.prompts.vectors.square().sum())
    assert set(losses) == {"global", "local", "size"}
    assert model.prompts.terms == {}
    model(synthetic_batch)
    copy.deepcopy(model)  # a graph that nobody took stands in no one's way
    assert model.eval()(synthetic_batch).terms is None


@torch.no_grad()
def test_prompts_see_the_features_of_the_image(tiny_clip, synthetic_batch):
    model = KAnoCLIP(tiny_clip, prompts=SeesImage()).eval()
    states = model(synthetic_batch).states
    assert (states[0] - states[1]).abs().max() > 1e-3  # two images of one category


@torch.no_grad()
def test_probabilities_are_averaged_over_pairs_of_states(tiny_clip, synthetic_batch):
    torch.manual_seed(0)
    prompts = Pairs()
    model = KAnoCLIP(tiny_clip, prompts=prompts, sigma=0).eval()
    scores = model(synthetic_batch)
    features = model.features(synthetic_batch)
    pairs = prompts(synthetic_batch.category, tiny_clip, features)
    single = [model.compare(features, pairs[:, i]) for i in range(3)]
    expected = sum(maps.mean(0) for _, maps in single) / 3
    torch.testing.assert_close(scores.anomaly_map, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.logits.softmax(-1), sum(one.softmax(-1) for one, _ in single) / 3)
    assert (single[0][1] - single[1][1]).abs().max() > 1e-3


def test_a_weight_by_name_counts_before_that_of_an_option_and_april_gan_weighs_terms_of_heads_too(
    tiny_clip, synthetic_batch
):
    model = KAnoCLIP(tiny_clip, terms={"global": 0.0}, beta=3.0).train()
    losses = model.losses(synthetic_batch, model(synthetic_batch))
    assert float(losses["global"].detach()) == 0 < float(losses["local"].detach())
    other = AprilGAN(tiny_clip, prompts=SeesImage(), terms={"size": 0.5}).train()
    scores = other(synthetic_batch)
    assert other.losses(synthetic_batch, scores)["size"] == 0.5 * scores.terms["size"]


@pytest.mark.parametrize(
    ("kind", "published"), [(BayesianPrompts, {"kl": 0.01, "ort": 1}), (FineGrainedPrompts, {"orthogonality": 0.1})]
)
def test_terms_of_a_head_have_its_published_weights_unless_they_are_named(tiny_clip, synthetic_batch, kind, published):
    torch.manual_seed(0)
    model = KAnoCLIP(tiny_clip, prompts=kind()).train()
    scores = model(synthetic_batch)
    losses = model.losses(synthetic_batch, scores)
    for name, weight in published.items():
        torch.testing.assert_close(losses[name], weight * scores.terms[name])
    model.weigh({}, dict.fromkeys(published, 3.0))
    losses = model.losses(synthetic_batch, scores)
    for name in published:
        torch.testing.assert_close(losses[name], 3 * scores.terms[name])


@pytest.mark.parametrize("options", [{"alpha": math.nan}, {"alpha": None}, {"terms": {"kd": -math.inf}}])
def test_a_weight_that_is_no_finite_number_is_refused(tiny_clip, options) -> None:
    with pytest.raises(KanoclipError, match=r"weight of the loss term kd is (nan|None|-inf), expected a finite number"):
        KAnoCLIP(tiny_clip, **options)


def test_a_weight_of_no_loss_term_is_an_error_in_the_first_training_step(tiny_clip, synthetic_batch):
    model = KAnoCLIP(tiny_clip, prompts=FineGrainedPrompts(), terms={"ortogonality": 1.0}).train()
    with pytest.raises(
        KanoclipError,
        match=r"called 'ortogonality'. Did you mean 'orthogonality'\? Terms: global, kd, local, orthogonality. Set",
    ):
        model.training_step(synthetic_batch)
    # a term of another stage than the running one is known
    model = BayesPFL(tiny_clip.reading("block"), terms={"kl": 1.0, "local": 2.0}).train()
    assert model.stage == 1
    assert set(model.losses(synthetic_batch, model(synthetic_batch))) == {"global"}


class Others(LevelProjection):
    """An interaction that takes no options."""

    def __init__(self) -> None:
        super().__init__(bias=False)


@pytest.mark.parametrize("kind", [AACLIP, AdaCLIP, AprilGAN])
def test_a_subclass_may_choose_its_own_parts(tiny_name, kind):
    block = CLIPBackbone(tiny_name, image_size=32, levels_at="norm" if kind is AACLIP else "block")
    model = type("Mine", (kind,), {"own_prompts": LearnedPrompts, "own_interaction": Others})(block)
    found = model.describe_components()
    assert (found["prompts"], found["interaction"]) == ("LearnedPrompts", "Others")
