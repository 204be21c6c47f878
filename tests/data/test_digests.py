import pytest
import torch
from torch import nn

from kanoclip.backbone.attention import QQ, VV
from kanoclip.data.digests import code_of, digest, is_plain, module_digest


class Own(VV):
    """An attention of one's own."""

    def __init__(self, **attributes) -> None:
        super().__init__()
        vars(self).update(attributes)


class Learned(VV):
    """An attention with weights, and a part that has a setting."""

    def __init__(self, drop=0.0) -> None:
        super().__init__()
        self.mixing = nn.Linear(2, 2)
        self.drop = nn.Dropout(drop)
        self.register_buffer("scale", torch.ones(1), persistent=False)


def test_a_module_is_known_by_its_class_and_attributes_private_ones_too():
    modules = [VV(), VV(first=2), QQ(), Own(), Own(power=2), Own(power=3), Own(_power=3), Own(powers=[2, {"a": 1}])]
    assert len({module_digest(module) for module in modules}) == len(modules)
    assert module_digest(Own(power=2)) == module_digest(Own(power=2))
    assert module_digest(VV().train()) == module_digest(VV().eval())
    assert module_digest(Own(power=2), leave_out=["power"]) == module_digest(Own())


def test_a_module_is_known_by_weights_buffers_and_settings_of_its_parts():
    torch.manual_seed(0)
    one, twin, other, dropping = Learned(), Learned(), Learned(), Learned(0.5)
    for module in (twin, dropping):
        module.load_state_dict(one.state_dict())
    assert module_digest(twin) == module_digest(one)
    assert len({module_digest(module) for module in (one, other, dropping)}) == 3
    twin.scale *= 2
    assert module_digest(twin) != module_digest(one)
    assert module_digest(one.half()) != module_digest(Learned().half())


@pytest.mark.parametrize("value", [object(), torch.ones(3000), lambda x: x, [object()], {"a": {1, 2}}])
def test_a_module_with_an_attribute_that_no_text_tells_whole_is_not_known(value):
    assert not is_plain(value)
    assert module_digest(Own(power=value)) is None
    assert module_digest(nn.Sequential(Own(power=value))) is None


def test_code_of_the_package_and_of_libraries_is_known_by_their_versions():
    assert code_of(VV) == code_of(nn.Linear) == []
    assert [name for name, _ in code_of(Own)] == ["Own"]


def test_a_class_of_a_notebook_is_known_by_methods_and_attributes(monkeypatch):
    monkeypatch.setattr("kanoclip.data.digests.inspect.getfile", lambda kind: [][kind])
    first = digest(code_of(Own))
    assert digest(code_of(Own)) == first
    monkeypatch.setattr(Own, "power", 2, raising=False)
    second = digest(code_of(Own))
    monkeypatch.setattr(Own, "forward", lambda self, q, k, v: v)
    assert len({first, second, digest(code_of(Own))}) == 3
