"""Towers of timm, as open_clip's SigLIP, EVA and MobileCLIP-B have them: small, with random weights."""

import sys

import open_clip
import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from kanoclip.backbone import loading
from kanoclip.backbone.attention import QKV, VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.windows import encode_patches, encode_windows
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.aa_clip import AACLIP
from kanoclip.models.rivals.winclip import WinCLIP
from kanoclip.types import KanoclipError

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 6, "num_heads": 2}


def small(kind, **own):
    """Return a constructor as timm registers them; timm hands it more than the class takes."""

    def make(pretrained=False, num_classes=0, global_pool="token", **others):
        return kind(**SHAPE, **own, num_classes=num_classes, global_pool=global_pool)

    return make


EVA02 = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True,
         "scale_attn_inner": True}  # fmt: skip
MODELS = {
    "siglip": ("vit_small", small(VisionTransformer, class_token=False), "map", "none"),
    "mobileclip": ("vit_small", small(VisionTransformer, init_values=0.5, no_embed_class=True), "token", None),
    "eva02": ("eva_small", small(Eva, **EVA02), "token", None),
    "eva01": ("eva_small", small(Eva, init_values=0.5), "token", None),
    "eva02_e": ("eva_small", small(Eva, use_post_norm=True), "token", None),
    "pe": ("vit_small", small(Eva, **EVA02), "map", None),
}


@pytest.fixture(params=MODELS)
def timm_clip(request, make_clip, write_clip, tmp_path, monkeypatch):
    name, make, pool, proj = MODELS[request.param]
    monkeypatch.setitem(timm.models._registry._model_entrypoints, name, make)
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 32}
    config, model = make_clip(32, vision, {"context_length": 48}, custom_text=True)
    return model, write_clip(tmp_path / "timm", config, model.state_dict())


@torch.no_grad()
def test_the_plain_path_is_open_clips_own(timm_clip, images):
    model, name = timm_clip
    backbone = CLIPBackbone(name, image_size=32)
    expected = model.encode_image((images - backbone.mean) / backbone.std, normalize=True)
    features = backbone(images, QKV())
    torch.testing.assert_close(features.cls, expected, rtol=0, atol=1e-6)
    assert features.patches.shape == (4, 2, 16, 32)
    torch.testing.assert_close(features.patches.norm(dim=-1), torch.ones(4, 2, 16))
    torch.testing.assert_close(backbone(images, VV()).cls, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_second_path_attends_values_to_values_and_moves_the_patches(timm_clip, images):
    backbone = CLIPBackbone(timm_clip[1], image_size=32)
    plain, second = (backbone(images, one).patches for one in (QKV(), VV(first=4)))
    assert torch.equal(plain[0], second[0])  # level 2 lies before the second path
    assert (plain[-1] - second[-1]).abs().max() > 1e-2


@torch.no_grad()
def test_images_of_another_size_get_resized_positions(timm_clip):
    backbone = CLIPBackbone(timm_clip[1], image_size=48)
    image = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    features = backbone(image, VV())
    assert features.patches.shape == (4, 1, 36, 32)
    assert features.patches.isfinite().all()
    assert backbone.fingerprint == CLIPBackbone(timm_clip[1], image_size=32).fingerprint  # the weights are the same


def test_kanoclip_learns_on_it(timm_clip, synthetic_batch):
    model = KAnoCLIP(CLIPBackbone(timm_clip[1], image_size=32))
    scores = model(synthetic_batch)
    sum(model.losses(synthetic_batch, scores).values()).backward()
    assert all(p.grad is not None for p in model.prompts.parameters())
    assert model.features_key is not None


def test_weights_change_the_fingerprint_and_so_does_what_blocks_compute(timm_clip):
    one, two, three, four, five = (CLIPBackbone(timm_clip[1], image_size=32) for _ in range(5))
    next(two.visual.parameters()).data.view(-1)[0] += 1e-3
    three.visual.trunk.norm.eps = 1e-3
    four.visual.trunk.blocks[1].attn.num_heads = 4
    five.visual.trunk.blocks[1].mlp.act = torch.nn.ReLU()
    assert len({backbone.fingerprint for backbone in (one, two, three, four, five)}) == 5


@torch.no_grad()
def test_windows_of_the_whole_grid_are_the_image_where_positions_are_added(timm_clip, images):
    backbone = CLIPBackbone(timm_clip[1], image_size=32)
    if backbone.rotary:
        with pytest.raises(KanoclipError, match=r"windows .* rotary positions"):
            WinCLIP(backbone)
    else:
        whole = encode_windows(backbone, images, [4])[0][:, 0]
        torch.testing.assert_close(whole, backbone(images, QKV()).cls, rtol=0, atol=1e-6)


def test_levels_inside_the_tower_need_a_class_token(timm_clip):
    backbone = CLIPBackbone(timm_clip[1], image_size=32)
    if backbone.prefix:
        assert CLIPBackbone(timm_clip[1], image_size=32, levels_at="block").patch_dim == 32
        assert backbone.reading("norm").patch_dim == 32
    else:
        with pytest.raises(KanoclipError, match=r"levels_at .* class token"):
            CLIPBackbone(timm_clip[1], image_size=32, levels_at="block")
        with pytest.raises(KanoclipError, match=r"levels_at .* class token"):
            AACLIP(backbone)


@torch.no_grad()
def test_patches_behind_the_norm_and_the_global_feature_before_its_unit_length_are_the_towers(timm_clip, images):
    model, name = timm_clip
    plain = CLIPBackbone(name, image_size=32)
    normed = model.visual.trunk.forward_features((images - plain.mean) / plain.std)
    torch.testing.assert_close(encode_patches(plain, images), normed[:, plain.prefix :], rtol=0, atol=1e-5)
    for levels_at in ("norm", "block") if plain.prefix else ():
        backbone = CLIPBackbone(name, image_size=32, levels=[6], levels_at=levels_at)
        features = backbone(images, QKV())
        if levels_at == "norm":
            torch.testing.assert_close(features.patches[0], normed[:, 1:], rtol=0, atol=1e-5)
        if model.visual.trunk.attn_pool is None:
            whole = model.encode_image((images - plain.mean) / plain.std)
            torch.testing.assert_close(backbone.unscaled(features), whole, rtol=0, atol=1e-5)
        torch.testing.assert_close(F.normalize(backbone.unscaled(features), dim=-1), features.cls, rtol=0, atol=1e-6)


def test_an_activation_cannot_be_asked_of_a_tower_of_timm(timm_clip):
    with pytest.raises(KanoclipError, match=r"activation .* timm"):
        CLIPBackbone(timm_clip[1], image_size=32, activation="quick_gelu")


WORKING = [
    "ViT-B-16", "ViT-L-14-336", "ViT-H-14-378", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP2-378", "EVA02-L-14-336",
    "EVA01-g-14", "MobileCLIP-B", "MobileCLIP2-L-14", "PE-Core-L-14-336",
]  # fmt: skip
REFUSED = {
    "RN50": "ResNet",
    "convnext_base": "no plain vision transformer",
    "ViTamin-L": "no plain vision transformer",
    "MobileCLIP-S1": "no plain vision transformer",
    "swin_base_patch4_window7_224": "no plain vision transformer",
    "vit_relpos_medium_patch16_cls_224": "no plain vision transformer",
    "coca_ViT-B-32": "CoCa",
    "ViT-H-14-CLIPA": "not the class token",
    "nllb-clip-base-siglip": "Hugging Face",
}


@pytest.mark.parametrize("name", [*WORKING, *REFUSED])
def test_what_open_clip_knows_is_taken_or_refused_in_one_line_before_anything_is_built(name):
    config = open_clip.get_model_config(name)
    if name in WORKING:
        loading._check_supported(name, config)
    else:
        with pytest.raises(KanoclipError, match=f"^{name} cannot be the backbone: .*{REFUSED[name]}"):
            loading._check_supported(name, config)


def test_a_tokenizer_that_needs_another_package_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(KanoclipError, match=r"ViT-B-16-SigLIP needs a package .*transformers.*kanoclip\[siglip\]"):
        loading._tokenizer("ViT-B-16-SigLIP", open_clip.get_model_config("ViT-B-16-SigLIP"))
