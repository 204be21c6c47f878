"""VCP-CLIP against what its own code computed with small random weights, see benchmarks/parity/vcp_clip.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import NoAdapter
from kanoclip.heads.post_vcp import PostVCP
from kanoclip.heads.pre_vcp import PreVCP
from kanoclip.models.inference import batch_of
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.vcp_clip import VCPCLIP
from kanoclip.types import Batch, KanoclipError
from kanoclip.verbs.table import main

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "vcp_clip.safetensors")
SIZE, TOP_K = 84, 200
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PARTS = ("New_Lan_Embed", "Zero_try", "trainable_linearlayer")
NAMED = {  # ours -> theirs
    "plain_scale": "New_Lan_Embed.prompt_temp",
    "seen_scale": "Zero_try.prompt_temp_l1",
    "prompts.query": "New_Lan_Embed.prompt_query",
    "prompts.convolve": "New_Lan_Embed.prompt_linear1.fc",
    "prompts.map_deep": "prompt_proj",
    "prompts.norm": "prompt_norm",
    "interaction.query": "Zero_try.q_proj_pre",
    "interaction.key": "Zero_try.k_proj_pre_1",
    "interaction.value": "Zero_try.v_proj_pre_1",
    "interaction.out": "Zero_try.proj_post_t",
    **{f"projection.layers.{level}": f"trainable_linearlayer.fc.{level}" for level in range(4)},
}


@pytest.fixture(scope="module")
def tower(make_clip, write_clip, tmp_path_factory) -> CLIPBackbone:
    vision = {"image_size": SIZE, "patch_size": 14, "width": 64, "layers": 12, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
    config, clip = make_clip(32, vision, text)
    weights = clip.state_dict()
    given = {name.removeprefix("clip."): one.float() for name, one in GOLDEN.items() if name.startswith("clip.")}
    for name, one in list(given.items()):
        start, _, rest = name.partition(".resblocks.")
        if start == "visual.transformer":  # two blocks by turns
            number, _, within = rest.partition(".")
            given |= {f"{start}.resblocks.{block}.{within}": one.clone() for block in range(int(number), 12, 2)}
    table = torch.zeros_like(weights["token_embedding.weight"])
    table[GOLDEN["token_ids"]] = GOLDEN["token_rows"].float()
    folder = tmp_path_factory.mktemp("vcp_clip")
    name = write_clip(folder, config, weights | given | {"token_embedding.weight": table}, MEAN, STD)
    (folder / "bpe.txt.gz").unlink()  # the vocabulary is OpenAI's
    return CLIPBackbone(name, None, SIZE, [3, 6, 9, 12], levels_at="block")


def published() -> dict:
    """A checkpoint as its own script saves it: parameters of the text tower beside the parts."""
    content = {"prompt_text_projection": torch.nn.Parameter(torch.zeros(32, 32))}
    for name, weight in GOLDEN.items():
        if name.startswith("published."):
            part, _, key = name.removeprefix("published.").partition(".")
            if part in PARTS:
                content.setdefault(part, {})[key] = weight.float()
            else:
                content[name.removeprefix("published.")] = torch.nn.Parameter(weight.float())
    return content


@pytest.fixture
def model(tower, tmp_path) -> VCPCLIP:
    """A model with a published checkpoint, read back from a file without running what is in it."""
    torch.save(published(), tmp_path / "train_visa.pth")
    content = torch.load(tmp_path / "train_visa.pth", weights_only=True)
    options, heads = VCPCLIP.from_published({"train_visa.pth": content})
    assert options.pop("backbone")["init_args"] == {"activation": "gelu", "levels_at": "block"}
    prompts = PreVCP(**options.pop("prompts")["init_args"], dropout=0.0)
    assert not options
    made = VCPCLIP(tower, prompts=prompts, top_k=round(TOP_K * (518 / SIZE) ** 2))
    missing, unexpected = made.load_state_dict(heads, strict=False)
    assert not unexpected
    assert all(key.startswith("backbone.") for key in missing)
    return made.eval()


def batch(count: int = 10, begin: int = 0) -> Batch:
    where = slice(begin, begin + count)
    pixels = GOLDEN["image"][where].repeat_interleave(6, 2).repeat_interleave(6, 3).float() / 255
    made = batch_of(pixels, "object")
    if (begin, count) != (0, 4):
        return made
    mask = GOLDEN["mask"]
    return made._replace(mask=mask, label=mask.flatten(1).amax(1).long(), has_mask=torch.ones(4, dtype=torch.bool))


def close(ours: torch.Tensor, theirs: torch.Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=within)


@torch.no_grad()
def test_an_imported_checkpoint_reads_images_and_texts_and_scores_ten_images_as_its_own_code(model) -> None:
    features = model.features(batch())
    close(features.patches[:, :1], GOLDEN["levels"])
    close(model.backbone.unscaled(features), GOLDEN["seen"])
    close(model.states(batch(), features), GOLDEN["test.states"])
    scores = model(batch())
    close(scores.level_maps[:4, :, ::4, ::4].mean(0), GOLDEN["test.by_texts"])
    close(scores.level_maps[4:, :, ::4, ::4].mean(0), GOLDEN["test.by_patches"])
    close(scores.anomaly_map[:, ::4, ::4], GOLDEN["test.smooth"])
    close(2 * scores.image_score, GOLDEN["test.score"])
    model.sigma = 0.0
    close(model(batch()).anomaly_map[:, ::4, ::4], GOLDEN["test.map"])
    assert GOLDEN["test.score"].std() > 0.02  # or anything would pass


def test_loss_and_gradients_are_those_of_its_own_script(model) -> None:
    losses = model.train().losses(batch(4), model(batch(4)))
    assert list(losses) == ["local"]
    torch.testing.assert_close(losses["local"].detach(), GOLDEN["fit.loss"], rtol=2e-5, atol=0)
    losses["local"].backward()
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    deep = torch.cat([GOLDEN["grad.prompt_embeddings"], GOLDEN["grad.deep_prompt_embeddings"]])
    for name, weight in learned.items():
        part, _, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        theirs = deep if name == "prompts.deep" else GOLDEN[f"grad.{NAMED[part]}{'.' if kind else ''}{kind}"]
        theirs = theirs.reshape(weight.shape)
        if name == "prompts.convolve.bias":  # adds the same to all values of a token, which layer norms take away
            assert max(float(theirs.abs().max()), float(weight.grad.abs().max())) < 1e-5
            continue
        assert float(theirs.abs().max()) > 1e-4
        close(weight.grad / theirs.abs().max(), theirs / theirs.abs().max(), 1e-4)
    heads = {key for key in GOLDEN if key.startswith("grad.")}
    assert len(learned) == len(heads) - 1  # tokens of the first and of the other blocks are one of ours


def test_the_command_imports_its_file(tower, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(published(), "train_visa.pth")
    options = {"name": tower.description, "pretrained": "null", "image_size": "84", "levels": "[3, 6, 9, 12]"}
    given = [word for key, value in options.items() for word in (f"--model.backbone.{key}", value)]
    command = ["import", "--from", "vcp_clip", "train_visa.pth", "--fitted_on", "visa", "--output", "heads.ckpt"]
    assert main([*command, *given]) == 0
    weights = torch.load("heads.ckpt", weights_only=True)["state_dict"]
    close(weights["seen_scale"], published()["Zero_try"]["prompt_temp_l1"], 0)


def test_its_file_is_read_whole_and_what_is_wrong_with_it_is_told() -> None:
    content = published()
    for change, told in (
        ({"prompt_embeddings": None}, r"x\.pth lacks the weight 'prompt_embeddings', of shape \(1, any, 32\)"),
        ({"Zero_try": None}, r"x\.pth has no 'Zero_try', expected a mapping of weights"),
        (
            {"New_Lan_Embed": content["New_Lan_Embed"] | {"prompt_linear1.fc.weight": torch.zeros(3, 1, 3)}},
            r"'prompt_linear1\.fc\.weight' has shape \(3, 1, 3\), expected \(2, 1, 3\)",
        ),
        (
            {"trainable_linearlayer": {k: v for k, v in content["trainable_linearlayer"].items() if "2" not in k}},
            r"lacks the weight 'fc\.2\.weight', of shape \(32, 64\)",
        ),
    ):
        with pytest.raises(KanoclipError, match=told):
            VCPCLIP.from_published({"x.pth": content | change})
    with pytest.raises(KanoclipError, match=r"There are 2 files, expected one, such as train_visa\.pth"):
        VCPCLIP.from_published({"a.pth": content, "b.pth": content})


def make(backbone: CLIPBackbone, **options) -> VCPCLIP:
    torch.manual_seed(0)
    return VCPCLIP(backbone, **options)


def test_what_learns_is_what_its_stage_names_and_the_temperatures_have_their_own_rate(tiny_clip) -> None:
    model = make(tiny_clip)
    learned = [name for name, one in model.named_parameters() if one.requires_grad]
    (stage,) = model.stages
    assert all(name.startswith(tuple(stage.train)) for name in learned)
    rates = {name: stage.rate(name, 0, 10) for name in learned}
    assert {name for name, rate in rates.items() if rate == 0.01} == {"plain_scale", "seen_scale"}
    assert set(rates.values()) == {0.01, 4e-5}


@torch.no_grad()
def test_share_weighs_the_two_kinds_of_map_and_top_k_is_scaled_to_the_image(tiny_clip, synthetic_batch) -> None:
    for share in (0.0, 0.2, 1.0):
        model = make(tiny_clip, share=share, sigma=0.0).eval()
        scores = model(synthetic_batch)
        by_texts, by_patches = scores.level_maps.unflatten(0, (2, -1)).mean(1)
        close(scores.anomaly_map, share * by_texts + (1 - share) * by_patches, 1e-6)
        top = [maps.flatten(1).topk(8).values.mean(1) for maps in (by_texts, by_patches)]  # 2000 of 518 x 518
        close(scores.image_score, (top[0] + top[1]) / 2, 1e-6)


def test_a_number_out_of_range_is_refused(tiny_clip) -> None:
    for wrong, told in (({"share": 1.5}, "share is 1.5"), ({"top_k": 0}, "top_k is 0"), ({"sigma": -1}, "sigma is -1")):
        with pytest.raises(KanoclipError, match=told):
            make(tiny_clip, **wrong)


@torch.no_grad()
def test_images_without_a_mask_have_no_loss(tiny_clip, synthetic_batch) -> None:
    model = make(tiny_clip).train()
    without = synthetic_batch._replace(has_mask=torch.zeros(4, dtype=torch.bool))
    assert float(model.losses(without, model(without))["local"]) == 0


def test_its_components_work_in_kanoclip(tiny_clip, synthetic_batch) -> None:
    for levels_at in ("joint", "block"):
        torch.manual_seed(0)
        model = KAnoCLIP(tiny_clip.reading(levels_at), prompts=PreVCP(), interaction=PostVCP(), adapter=NoAdapter())
        scores = model.train()(synthetic_batch)
        sum(model.losses(synthetic_batch, scores).values()).backward()
        assert all(one.grad is not None for one in model.prompts.parameters())
        assert all(one.grad is not None for one in model.interaction.parameters())
