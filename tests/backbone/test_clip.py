import copy
import hashlib
from functools import partial
from pathlib import Path

import pytest
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import load_file
from torch.nn.functional import normalize

from kanoclip.backbone import clip
from kanoclip.backbone.attention import CSA, KK, QKV, QQ, VV
from kanoclip.backbone.clip import CLIPBackbone, embed_patches, run_blocks
from kanoclip.backbone.compiling import CompiledBackbone

GOLDEN = Path(__file__).parents[1] / "golden" / "vv_attention.safetensors"


@pytest.fixture(scope="module")
def golden(tmp_path_factory, make_clip, write_clip):
    tensors = load_file(GOLDEN)
    vision = {"image_size": 64, "patch_size": 16, "width": 128, "layers": 6, "head_width": 64}
    config, model = make_clip(64, vision, quick_gelu=True)
    weights = {f"visual.{k.removeprefix('weights.')}": v for k, v in tensors.items() if k.startswith("weights.")}
    folder = tmp_path_factory.mktemp("golden")
    return tensors, write_clip(folder, config, model.state_dict() | weights, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize("size", [64, 96])
def test_the_dual_path_equals_anomalyclip(golden, size):
    tensors, name = golden
    backbone = CLIPBackbone(name, image_size=size, levels=[2, 4, 6], position="bilinear", cls_norm=False)
    visual, image = backbone.visual, tensors[f"x{size}"]
    tokens, levels = run_blocks(visual, embed_patches(visual, image, backbone.position), VV(first=4), [2, 4, 6])
    torch.testing.assert_close(tokens[:, 0] @ visual.proj, tensors[f"x{size}.global"], atol=1e-5, rtol=0)
    for level, number in zip(levels, (2, 4, 6), strict=True):
        expected = tensors[f"x{size}.layer{number}"]
        torch.testing.assert_close(visual.ln_post(level) @ visual.proj, expected, atol=1e-5, rtol=0)

    patches, cls, grid, _ = backbone(image, VV(first=4))
    assert grid == (size // 16, size // 16)
    torch.testing.assert_close(cls, normalize(tensors[f"x{size}.global"], dim=-1), atol=1e-5, rtol=0)
    expected = torch.stack([tensors[f"x{size}.layer{n}"][:, 1:] for n in (2, 4, 6)])
    torch.testing.assert_close(patches, normalize(expected, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"quick_gelu": True},
        {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.3}},
        {"vision": {"no_ln_pre": True, "final_ln_after_pool": True, "head_width": 8}},
        {"vision": {"patch_dropout": 0.5}},
    ],
    ids=["plain", "quick_gelu", "layer_scale", "no_ln_pre", "patch_dropout"],
)
def test_without_a_second_path_the_features_are_open_clips(tmp_path, images, variant, make_clip, write_clip):
    config, model = make_clip(**variant)
    name = write_clip(tmp_path, config, model.state_dict(), mean=(0, 0, 0), std=(1, 1, 1))
    features = CLIPBackbone(name, image_size=32, levels=[1, 4, 6])(images, QKV())
    with torch.no_grad():
        theirs = model.visual.forward_intermediates(images, [0, 3, 5], normalize_intermediates=True, output_fmt="NLC")
        expected = torch.stack(theirs["image_intermediates"]) @ model.visual.proj
        torch.testing.assert_close(features.cls, model.encode_image(images, normalize=True), atol=1e-6, rtol=0)
    torch.testing.assert_close(features.patches, normalize(expected, dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention", [VV(), QQ(), KK(), CSA()])
def test_the_second_path_changes_patches_from_its_first_block_on_and_never_the_global_feature(
    backbone, images, attention
):
    attention.first = 4
    plain, dual = backbone(images, QKV()), backbone(images, attention)
    same = [torch.equal(a, b) for a, b in zip(plain.patches, dual.patches, strict=True)]
    assert backbone.levels == [2, 3, 5, 6]
    assert same == [True, True, False, False]
    assert torch.equal(plain.cls, dual.cls)


def test_levels_differ_and_are_not_one_shared_tensor(backbone, images):
    patches = backbone(images, VV()).patches
    assert len({level.data_ptr() for level in patches}) == 4
    for i in range(4):
        for j in range(i):
            assert (patches[i] - patches[j]).abs().max() > 0.01
    patches[3].zero_()
    assert torch.equal(patches[:3], backbone(images, VV()).patches[:3])


@pytest.mark.parametrize("attention", [QKV(), VV(), CSA()])
def test_a_batch_of_two_is_two_batches_of_one(backbone, images, attention):
    both = backbone(images, attention)
    each = [backbone(image[None], attention) for image in images]
    torch.testing.assert_close(both.patches, torch.cat([one.patches for one in each], dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(both.cls, torch.cat([one.cls for one in each]), atol=1e-6, rtol=0)


def test_features_are_unit_length_and_row_major(backbone, images):
    patches, cls, grid, _ = backbone(images, VV())
    assert (patches.shape, cls.shape, grid) == ((4, 2, 16, 20), (2, 20), (4, 4))
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(4, 2, 16))
    torch.testing.assert_close(cls.norm(dim=-1), torch.ones(2))
    changed = images.clone()
    changed[:, :, 8:16, 24:32] += 0.5  # row 1, column 3
    moved = (backbone.visual.conv1(changed) - backbone.visual.conv1(images)).abs().sum(1).flatten(1)  # (B, N)
    assert moved.argmax(1).tolist() == [7, 7]


def test_only_the_blocks_that_are_needed_run_the_second_path(tiny, images, monkeypatch):
    seen = []

    class Counting(VV):
        def forward(self, q, k, v):
            seen.append(1)
            return super().forward(q, k, v)

    CLIPBackbone(tiny[1], image_size=32, levels=[1, 4])(images, Counting(first=3))
    assert len(seen) == 2  # blocks 3 and 4 of 6
    CLIPBackbone(tiny[1], image_size=32, levels=[1, 2])(images, Counting(first=3))
    assert len(seen) == 2  # none is read


def test_the_global_feature_passes_all_blocks_whatever_the_levels(tiny, images):
    low, high = (CLIPBackbone(tiny[1], image_size=32, levels=levels)(images, VV()).cls for levels in ([1], [6]))
    assert torch.equal(low, high)


def test_mean_and_std_are_the_models_own(backbone, tiny, images):
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        expected = tiny[0].encode_image((images - mean) / std, normalize=True)
    torch.testing.assert_close(backbone(images, VV()).cls, expected, atol=1e-6, rtol=0)


def test_leaving_out_the_last_norm_changes_the_global_feature_alone(tiny, backbone, images):
    without = CLIPBackbone(tiny[1], image_size=32, cls_norm=False)(images, VV())
    features = backbone(images, VV())
    assert torch.equal(without.patches, features.patches)
    assert (without.cls - features.cls).abs().max() > 0.01


def test_bicubic_positions_are_open_clips(tiny, make_clip):
    model, name = tiny
    backbone = CLIPBackbone(name, image_size=56)
    larger = make_clip(vision={"image_size": 56})[1]
    weights = {"visual.positional_embedding": model.visual.positional_embedding.detach()}
    resize_pos_embed(weights, larger)
    torch.testing.assert_close(backbone.position, weights["visual.positional_embedding"])
    assert backbone.visual.positional_embedding.shape == (17, 32)  # the weights stay as they are


def test_the_class_tokens_position_is_never_resized(tiny):
    model, name = tiny
    bilinear = CLIPBackbone(name, image_size=16, position="bilinear").position
    assert torch.equal(bilinear[0], model.visual.positional_embedding[0])
    grid = model.visual.positional_embedding[1:].view(2, 2, 2, 2, 32)  # halved without antialias: means of 2 x 2
    torch.testing.assert_close(bilinear[1:].view(2, 2, 32), grid.mean(dim=(1, 3)))


def test_the_backbone_stays_frozen_in_eval_mode_and_out_of_the_graph(backbone, images):
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone(images.requires_grad_(), VV()).patches.requires_grad


def test_a_compiled_backbone_is_one_graph_with_the_same_features_and_weights(tiny, images, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))  # no C++ compiler
    plain, model = CLIPBackbone(tiny[1], image_size=32), torch.nn.Module()
    model.backbone = CLIPBackbone(tiny[1], image_size=32)
    names = list(model.state_dict())
    CompiledBackbone().setup(None, model, "test")
    CompiledBackbone().setup(None, torch.nn.Module(), "test")  # a model without a backbone
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for batch in (images, images[:1]):  # the last batch may be smaller
        features, expected = model.backbone(batch, VV()), plain(batch, VV())
        torch.testing.assert_close(features.patches, expected.patches, atol=1e-6, rtol=0)
        torch.testing.assert_close(features.cls, expected.cls, atol=1e-6, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert list(model.state_dict()) == names


def test_run_blocks_is_differentiable_for_those_who_train_a_clip(tiny, images, make_clip):
    visual = make_clip()[1].visual
    tokens, levels = run_blocks(visual, embed_patches(visual, images, visual.positional_embedding), VV(), [3, 6])
    (tokens.sum() + sum(level.square().sum() for level in levels)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in visual.transformer.resblocks[3].parameters())


def test_the_state_holds_weights_but_not_sizes_or_colours(backbone):
    assert not {"mean", "std", "position"} & set(backbone.state_dict())


def test_open_clips_classes_are_left_alone(tiny, images):
    with torch.no_grad():
        before = tiny[0].encode_image(images)
        CLIPBackbone(tiny[1], image_size=32)(images, VV())
        assert torch.equal(tiny[0].encode_image(images), before)


def test_the_fingerprint_is_of_the_weights_alone(tiny, tmp_path, make_clip, write_clip):
    one = CLIPBackbone(tiny[1], image_size=32)
    other_size = CLIPBackbone(tiny[1], image_size=64, levels=[6])
    assert len(one.fingerprint) == len(hashlib.sha256().hexdigest())
    assert other_size.fingerprint == one.fingerprint
    config, model = make_clip()
    model.transformer.resblocks[2].ln_1.bias.data[5] += 1e-6
    changed = CLIPBackbone(write_clip(tmp_path, config, model.state_dict()), image_size=32)
    assert changed.fingerprint != one.fingerprint


USUAL = {"vision": {"head_width": 32}, "text": {"width": 32, "heads": 1}}  # heads of small towers


@pytest.mark.parametrize(
    ("tower", "other"),
    [("vision", {"head_width": 16}), ("text", {"heads": 4}), ("vision", {"norm_kwargs": {"eps": 1e-6}}),
     ("text", {"norm_kwargs": {"eps": 1e-3}})],
)  # fmt: skip
def test_other_heads_or_norms_of_the_same_weights_are_another_fingerprint(
    tower, other, tmp_path, make_clip, write_clip, images
):
    config, model = make_clip(**USUAL)
    changed = config | {f"{tower}_cfg": config[f"{tower}_cfg"] | other}
    names = [write_clip(tmp_path / str(i), one, model.state_dict()) for i, one in enumerate((config, config, changed))]
    one, same, another = (CLIPBackbone(name, image_size=32) for name in names)
    assert one.fingerprint == same.fingerprint != another.fingerprint
    seen = [(b(images, VV()).cls, b.encode_text(["a tile"])) for b in (one, another)]
    assert not torch.equal(seen[0][tower == "text"], seen[1][tower == "text"])  # or it would not matter


def test_another_activation_is_another_fingerprint_and_gelu_that_of_the_weights(tmp_path, make_clip, write_clip):
    found = []
    for quick_gelu in (False, True):
        config, model = make_clip(vision=USUAL["vision"], text=USUAL["text"], quick_gelu=quick_gelu)
        name = write_clip(tmp_path / str(quick_gelu), config, model.state_dict())
        found.append(CLIPBackbone(name, image_size=32))
    gelu, quick = found
    assert quick.fingerprint != gelu.fingerprint
    digest = hashlib.sha256()
    for name, weight in sorted(gelu.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + weight.numpy().tobytes())
    assert gelu.fingerprint == digest.hexdigest()


def test_a_copy_of_the_backbone_is_another_one(backbone, images):
    before, copied = backbone(images, VV()).patches, copy.deepcopy(backbone)
    assert copied.fingerprint == backbone.fingerprint
    assert torch.equal(copied(images, VV()).patches, before)
    copied.to(torch.bfloat16)
    assert torch.equal(backbone(images, VV()).patches, before)
    with clip.uncopied():
        assert copy.deepcopy([backbone])[0] is backbone


def test_the_fingerprint_is_computed_once(backbone, monkeypatch):
    first = backbone.fingerprint
    monkeypatch.setattr(clip, "fingerprint", None)
    assert backbone.fingerprint == first


def test_what_heads_read_off_the_backbone(backbone, tiny):
    assert (backbone.dim, backbone.depth, backbone.patch_size, backbone.image_size) == (20, 6, 8, 32)
    assert (backbone.text_width, backbone.context_length) == (24, 16)
    assert backbone.description == tiny[1]


@pytest.mark.parametrize(("depth", "levels"), [(24, [6, 12, 18, 24]), (12, [3, 6, 9, 12]), (6, [2, 3, 5, 6]), (1, [1])])
def test_levels_default_to_the_quarters_of_the_depth(depth, levels):
    assert clip._check_levels(None, depth, "x") == levels


@pytest.mark.parametrize("levels", [[], [0, 3], [3, 7], [3, 3], [6, 3]])
def test_levels_that_do_not_fit_are_refused_with_ones_that_do(tiny, levels):
    with pytest.raises(ValueError, match=r"from 1 to 6, each once. Use --model.backbone.levels '\[2, 3, 5, 6\]'"):
        CLIPBackbone(tiny[1], image_size=32, levels=levels)


@pytest.mark.parametrize(("size", "remedy"), [(500, "Use 496 or 504,"), (5, "Use 8,"), (-8, "Use 8,")])
def test_an_image_size_off_the_patch_grid_is_refused_with_the_nearest_ones(tiny, size, remedy):
    with pytest.raises(ValueError, match=rf"image_size {size} is not a multiple of the patch size 8 .*{remedy}"):
        CLIPBackbone(tiny[1], image_size=size)


def test_an_unknown_way_of_resizing_positions_is_refused(tiny):
    with pytest.raises(ValueError, match=r"position is 'nearest', expected bicubic, bicubic_no_antialias or bilinear"):
        CLIPBackbone(tiny[1], image_size=32, position="nearest")


def test_images_of_another_size_are_refused(backbone):
    with pytest.raises(ValueError, match=r"40 x 32 pixels .* built for 32 x 32. Use --model.backbone.image_size 40"):
        backbone(torch.rand(1, 3, 32, 40), VV())


@pytest.mark.parametrize("trained", [False, True])
def test_the_activation_can_be_another_than_that_of_the_training(trained, tmp_path, make_clip, write_clip, images):
    other = {True: "gelu", False: "quick_gelu"}[trained]
    (config, model), (swapped, _) = make_clip(quick_gelu=trained), make_clip(quick_gelu=not trained)
    one = CLIPBackbone(write_clip(tmp_path / "a", config, model.state_dict()), image_size=32, activation=other)
    two = CLIPBackbone(write_clip(tmp_path / "b", swapped, model.state_dict()), image_size=32)
    assert one.fingerprint == two.fingerprint
    torch.testing.assert_close(one(images, VV()).patches, two(images, VV()).patches, atol=0, rtol=0)
    torch.testing.assert_close(one.encode_text(["a tile"]), two.encode_text(["a tile"]), atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"activation is 'relu', expected gelu or quick_gelu"):
        CLIPBackbone(write_clip(tmp_path / "c", config, model.state_dict()), image_size=32, activation="relu")
