from importlib import import_module

import pytest

from kanoclip.registry import NAMES

HEADS = [(kind, name) for kind in ("prompts", "interaction", "adapter") for name in NAMES[kind]]


@pytest.mark.parametrize(("kind", "name"), HEADS)
def test_a_component_says_whether_it_has_anything_to_train(kind, name, tiny_clip) -> None:
    module, _, cls = NAMES[kind][name].rpartition(".")
    component = getattr(import_module(module), cls)()
    component.build(tiny_clip)
    assert component.learns == any(parameter.requires_grad for parameter in component.parameters())
