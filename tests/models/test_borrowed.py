"""KAnoCLIP with components of its rivals: a step of a fit, a test of its checkpoint; what does not fit together."""

import pytest
import torch

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.heads.fg_des import FGDes
from kanoclip.heads.interaction import BiCMCI, LevelProjection
from kanoclip.heads.mmci import MMCI
from kanoclip.heads.regional_prompts import RegionalPrompts
from kanoclip.heads.silu_adapter import SiLUAdapter
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.filo import FiLo
from kanoclip.outputs.export import Frozen
from kanoclip.types import KanoclipError

CHOICES = {
    "regional with bi_cmci": ("joint", {"prompts": RegionalPrompts, "interaction": BiCMCI}),
    "regional with mmci": ("joint", {"prompts": RegionalPrompts, "interaction": MMCI}),
    "fg_des with bi_cmci": ("joint", {"prompts": FGDes, "interaction": BiCMCI}),
    "fg_des with silu": ("joint", {"prompts": FGDes, "adapter": SiLUAdapter}),
    "mmci with conv": ("joint", {"interaction": lambda: MMCI(levels=1)}),
    "all of filo": ("block", {"prompts": FGDes, "interaction": MMCI, "adapter": SiLUAdapter}),
}


def made(levels_at: str, **parts) -> KAnoCLIP:
    torch.manual_seed(0)
    return KAnoCLIP(EmbeddedBackbone(levels_at=levels_at), **{kind: part() for kind, part in parts.items()})


@pytest.mark.parametrize(("levels_at", "parts"), CHOICES.values(), ids=CHOICES)
def test_it_learns_with_components_of_rivals_and_its_checkpoint_scores_the_same(
    levels_at, parts, make_data, make_trainer, tmp_path
) -> None:
    model, trainer = made(levels_at, **parts), make_trainer(limit_train_batches=1)
    before = {name: one.clone() for name, one in model.named_parameters() if one.requires_grad}
    trainer.fit(model, make_data(category="ring"))
    moved = {
        name.partition(".")[0]
        for name, one in model.named_parameters()
        if name in before and (one != before[name]).any()
    }
    assert moved >= set(parts)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    make_trainer().test(model, data := make_data(Surfaces, category="pill"), verbose=False)
    again = made(levels_at, **parts)
    make_trainer().test(again, data, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert again.results == model.results


@pytest.mark.parametrize(
    ("levels_at", "parts", "said"),
    [
        (
            "block",
            {"prompts": FGDes},
            r"interaction \w+ takes .* levels_at is 'block'\. Use --model\.backbone\.levels_at",
        ),
        ("block", {"interaction": MMCI}, r"adapter conv takes .* levels_at is 'block'.*--model\.adapter linear"),
        ("norm", {"interaction": LevelProjection}, r"adapter conv takes .* levels_at is 'norm'"),
        ("joint", {"interaction": lambda: MMCI(levels=3)}, r"levels is 3, but the backbone gives 2\. Use .*levels 2"),
        ("joint", {"adapter": lambda: SiLUAdapter(0)}, r"adapter\.reduction is 0, expected 1 or more"),
    ],
)
def test_what_does_not_fit_together_is_told_in_a_line(levels_at, parts, said) -> None:
    with pytest.raises(KanoclipError, match=said) as told:
        made(levels_at, **parts)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("prompts", [RegionalPrompts, FGDes])
def test_prompts_that_see_the_image_are_not_exported(prompts) -> None:
    with pytest.raises(KanoclipError, match=r"cannot be exported\. Use kanoclip predict\."):
        Frozen(made("joint", prompts=prompts), "pill")


@pytest.mark.parametrize("levels_at", ["joint", "norm"])
def test_levels_that_blocks_overwrite_are_those_of_blocks(levels_at) -> None:
    model = FiLo(EmbeddedBackbone(levels_at=levels_at), overwritten_levels=True)
    with pytest.raises(KanoclipError, match=r"Use --model\.backbone\.levels_at block, or --model\.overwritten_levels"):
        model(torch.rand(1, 3, 128, 128))
