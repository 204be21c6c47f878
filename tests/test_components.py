"""What every registered component of a kind owes, whichever it is."""

from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kanoclip.backbone.attention import Attention
from kanoclip.heads.adapter import Adapter
from kanoclip.heads.interaction import Interaction
from kanoclip.heads.losses import KDLoss
from kanoclip.heads.prompts import Prompts
from kanoclip.heads.scoring import Score
from kanoclip.registry import NAMES
from kanoclip.types import Features

BASES = {
    "attention": Attention,
    "prompts": Prompts,
    "interaction": Interaction,
    "adapter": Adapter,
    "score": Score,
    "kd_loss": KDLoss,
}
GENERATOR = torch.Generator().manual_seed(5)
CLS = F.normalize(torch.randn(3, 16, generator=GENERATOR), dim=-1)
PATCHES = F.normalize(torch.randn(4, 3, 12, 16, generator=GENERATOR), dim=-1)
STATES = F.normalize(torch.randn(3, 2, 16, generator=GENERATOR), dim=-1)


def create(kind: str, name: str) -> nn.Module:
    module, _, cls = NAMES[kind][name].rpartition(".")
    return getattr(import_module(module), cls)()


def ready(kind: str, name: str, backbone, seed: int) -> nn.Module:
    """A component with weights that are not those it starts with."""
    torch.manual_seed(seed)
    component = create(kind, name)
    component.build(backbone)
    for parameter in component.parameters():
        nn.init.normal_(parameter, std=0.3)
    return component


def run(kind: str, component: nn.Module, backbone) -> tuple[torch.Tensor, ...]:
    """Everything a head returns, each unit length on its last axis."""
    if kind == "prompts":
        torch.manual_seed(6)  # some draw
        return (component(["nut", "metal_plate", "nut"], backbone, Features(PATCHES, CLS, (3, 4))),)
    if kind == "adapter":
        return (component(CLS, PATCHES, (3, 4)),)
    return component(PATCHES, STATES)


SHAPES = {"prompts": [(3, 2, 16)], "adapter": [(3, 16)], "interaction": [(4, 3, 12, 16), (4, 3, 2, 16)]}
HEADS = [(kind, name) for kind in SHAPES for name in NAMES[kind]]
SHAPES |= {"fine_grained": [(3, 2, 2, 16)], "bayesian": [(3, 3, 2, 16)], "defects": [(3, 7, 2, 16)]}  # pairs of states
SHORTER = "patch_mean"  # a mean of unit vectors: the less they agree, the shorter


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in BASES for name in NAMES[kind]])
def test_a_component_is_of_its_kind_documented_and_made_without_arguments(kind, name) -> None:
    component = create(kind, name)
    assert isinstance(component, BASES[kind])
    assert type(component).__doc__ and type(component).__doc__ != BASES[kind].__doc__  # noqa: PT018  # one claim
    assert not list(component.parameters())  # weights come with the backbone


@pytest.mark.parametrize(("kind", "name"), HEADS)
def test_a_head_returns_unit_vectors_of_the_shapes_of_its_kind(kind, name, tiny_clip) -> None:
    returned = run(kind, ready(kind, name, tiny_clip, seed=0), tiny_clip)
    assert [tuple(values.shape) for values in returned] == SHAPES.get(name, SHAPES[kind])
    for values in returned:
        if name == SHORTER:
            assert (values.norm(dim=-1) < 1).all()
        else:
            torch.testing.assert_close(values.norm(dim=-1), torch.ones(values.shape[:-1]))


@pytest.mark.parametrize(("kind", "name"), HEADS)
def test_every_weight_of_a_head_learns_and_none_of_the_backbone(kind, name, tiny_clip) -> None:
    head = ready(kind, name, tiny_clip, seed=0)
    weights = dict(head.named_parameters())
    total = sum((values @ torch.arange(16.0)).square().sum() for values in run(kind, head, tiny_clip))
    if weights:
        total.backward()
    assert [key for key, weight in weights.items() if weight.grad is None or not weight.grad.abs().sum()] == []
    assert all(weight.grad is None for weight in tiny_clip.parameters())


@pytest.mark.parametrize(("kind", "name"), HEADS)
def test_the_weights_of_a_head_carry_all_it_has_learned(kind, name, tiny_clip) -> None:
    taught, blank = ready(kind, name, tiny_clip, seed=0), ready(kind, name, tiny_clip, seed=1)
    blank.load_state_dict(taught.state_dict())
    assert not [key for key in taught.state_dict() if "backbone" in key]
    for theirs, ours in zip(run(kind, taught, tiny_clip), run(kind, blank, tiny_clip), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES["score"])
def test_a_score_is_in_range_and_each_image_has_its_own(name) -> None:
    generator = torch.Generator().manual_seed(2)
    probability, heat = torch.rand(3, generator=generator), torch.rand(3, 8, 8, generator=generator)
    score = create("score", name)
    together = score(probability, heat)
    assert together.shape == (3,)
    assert 0 <= float(together.min()) <= float(together.max()) <= 1
    torch.testing.assert_close(together, torch.cat([score(probability[i : i + 1], heat[i : i + 1]) for i in range(3)]))
    assert (score(probability * 0, heat * 0) <= together).all()  # higher = more anomalous


@pytest.mark.parametrize("name", NAMES["kd_loss"])
def test_a_knowledge_loss_is_a_finite_number_that_is_never_negative(name) -> None:
    states = STATES[0].clone().requires_grad_()
    value = create("kd_loss", name)(states, PATCHES[0, 0])
    assert value.shape == ()
    assert float(value.detach()) >= 0
