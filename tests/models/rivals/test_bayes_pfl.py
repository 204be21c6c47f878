"""Parity with Bayes-PFL's own code: tests/golden/bayes_pfl.safetensors is made by benchmarks/parity/bayes_pfl.py."""

import json
from pathlib import Path

import pytest
import torch
from golden_clip import import_published
from safetensors import safe_open
from safetensors.torch import load_file

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.heads.bayesian_prompts import BayesianPrompts
from kanoclip.heads.level_fusion import LevelFusion
from kanoclip.heads.prompts import EnsemblePrompts
from kanoclip.heads.rca import RCA
from kanoclip.models.inference import batch_of
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.bayes_pfl import BayesPFL, balanced_focal_loss, whole_dice_loss
from kanoclip.registry import load_class
from kanoclip.types import Batch, KanoclipError

FILE = Path(__file__).parents[2] / "golden" / "bayes_pfl.safetensors"
SIZE = 84
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(FILE)


@pytest.fixture(scope="module")
def about() -> dict:
    with safe_open(FILE, "pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


@pytest.fixture(scope="module")
def tower(golden, make_clip, write_clip, tmp_path_factory) -> CLIPBackbone:
    vision = {"image_size": SIZE, "patch_size": 14, "width": 64, "layers": 12, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config, clip = make_clip(32, vision, text)
    weights = clip.state_dict()
    given = {name.removeprefix("clip."): one for name, one in golden.items() if name.startswith("clip.")}
    for name, one in list(given.items()):
        start, _, rest = name.partition("visual.transformer.resblocks.")
        if rest and not start:  # two blocks by turns
            number, _, name_in_block = rest.partition(".")
            for block in range(int(number), 12, 2):
                given[f"visual.transformer.resblocks.{block}.{name_in_block}"] = one
    table = torch.zeros_like(weights["token_embedding.weight"])
    table[golden["token_ids"]] = golden["token_rows"].float()
    weights |= {name: one.float() for name, one in given.items() if name in weights} | {"token_embedding.weight": table}
    folder = tmp_path_factory.mktemp("bayes")
    name = write_clip(folder, config, weights, MEAN, STD)
    (folder / "bpe.txt.gz").unlink()  # open_clip's own vocabulary, that of OpenAI
    return CLIPBackbone(name, None, SIZE, [3, 6, 9, 12], levels_at="block")


@pytest.fixture(scope="module")
def published(golden, about) -> dict:
    """Their checkpoint: what the file has, one module under several names, and decoders that nothing reads."""
    state = {name.removeprefix("model."): one.float() for name, one in golden.items() if name.startswith("model.")}
    state |= {name: torch.zeros(shape) for name, shape in about["unused"].items()}
    return {"MyModel": state | {name: state[other] for name, other in about["aliases"].items()}}


def build(tower, published, name="train_visa.pth", **given) -> BayesPFL:
    """A model with their weights, made as an import makes it."""
    options, heads = BayesPFL.from_published({name: published})
    assert options.pop("backbone")["init_args"] == {"activation": "gelu", "levels_at": "block"}
    parts = {key: load_class(one["class_path"])(**one.get("init_args", {})) for key, one in options.items()}
    model = BayesPFL(tower, **parts, **given)
    missing = model.load_state_dict(heads, strict=False).missing_keys
    assert all(key.startswith("backbone.") for key in missing)
    return model


@pytest.fixture
def model(tower, published, about) -> BayesPFL:
    return build(tower, published, top_k=round(about["top_k"] * (518 / SIZE) ** 2))


def batch(golden, about, images: slice = slice(None)) -> Batch:
    pixels = golden["image"][images].repeat_interleave(6, 2).repeat_interleave(6, 3).float() / 255
    made = batch_of(pixels, "object")._replace(category=about["categories"][images])
    if images.stop == len(golden["mask"]):
        known = torch.ones(len(pixels), dtype=torch.bool)
        made = made._replace(mask=golden["mask"], label=golden["label"], has_mask=known)
    return made


def fit_noise(golden, stage: int) -> tuple[torch.Tensor, torch.Tensor]:
    context, normal, abnormal = (golden[f"fit{stage}.noise.{number}"] for number in range(3))
    return context[:, None], torch.cat([normal, abnormal])[None]


def feed(model, monkeypatch, *noise) -> None:
    monkeypatch.setattr(model.prompts, "make_noise", lambda images: noise)


def their_name(ours: str) -> tuple[str, ...]:
    """What a parameter of ours is called there, one name for each part of it."""
    kind, _, rest = ours.partition(".")
    ending = rest.rpartition(".")[2]
    if ours in ("pixel_scale", "image_scale"):
        return (f"temperature_{kind.removesuffix('_scale')}",)
    if kind == "text_map":
        return (f"class_mapping.{ending}",)
    if kind == "adapter":
        layer = {"join": "fuse.fuse_modules", "weigh": "fuse.compress", "lift": "fuse.post_process"}
        return (f"{layer.get(rest.split('.')[0], 'image_mapping')}.{ending}",)
    if kind == "interaction":
        its = tuple(f"RCA.linear_proj.{level}.weight" for level in range(4))
        return its if rest == "weight" else (f"RCA.q_proj_pre.{ending}",)
    if "encoder" in rest:
        flow, _, part, number, ending = rest.split(".")
        whose = "context_encoder" if flow == "context_flow" else "state_encoder"
        return (f"{whose}.weight_{part}.module.{number}.{ending}",)
    if rest.startswith("context_flow"):
        return (f"PFL_context.amor_{rest.split('.')[1]}.{ending}",)
    if rest.startswith("state_flows"):
        its = "state" if ending == "state" else f"amor_{ending}"
        return tuple(f"PFL_{state}.{its}" for state in ("normal", "abnormal"))
    if rest == "context_vectors":
        return ("prompt_context",)
    return "prompt_state_normal", "prompt_state_abnormal"


def compare_gradients(model, golden, stage: int) -> dict[str, float]:
    """Largest difference of each gradient, relative to its largest entry."""
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or f"fit{stage}.grad.{their_name(name)[0]}" not in golden:
            continue
        theirs = [golden[f"fit{stage}.grad.{one}"] for one in their_name(name)]
        if name == "interaction.weight":
            expected = torch.stack([one.T for one in theirs])
        elif name == "prompts.state_vectors":
            expected = torch.stack(theirs, 1)
        else:
            expected = torch.cat([one.reshape(1, -1) for one in theirs]).view_as(parameter)
        found[name] = float((parameter.grad - expected).abs().max() / expected.abs().max())
    return found


def near(found: torch.Tensor, expected: torch.Tensor, most: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=most)


def test_the_backbone_gives_the_raw_levels_and_the_global_feature_of_its_code(model, golden, about) -> None:
    features = model.features(batch(golden, about))
    near(features.patches[:, :2], golden["levels"], 2e-5)
    near(model.backbone.unscaled(features), golden["seen"], 2e-5)


@torch.no_grad()
def test_states_maps_and_scores_are_those_of_its_code(model, golden, about, monkeypatch) -> None:
    feed(model, monkeypatch, golden["test.noise"], golden["test.state_noise"].transpose(0, 1))
    images = batch(golden, about)
    features = model.eval().features(images)
    states = model.prompts(images.category, model.backbone, features)
    near(states[:3].transpose(1, 2).flatten(1, 2), golden["test.states"], 1e-5)
    scores = model(images)
    near(scores.level_maps.mean(0)[:3], golden["test.map"], 1e-5)
    near(scores.anomaly_map[:3], golden["test.smooth"], 1e-5)
    near(scores.image_score, golden["test.score"], 1e-5)
    assert golden["test.score"].std() > 0.02  # or anything would pass


@torch.no_grad()
def test_the_command_imports_its_file(tower, published, golden, about, monkeypatch, tmp_path) -> None:
    top_k = round(about["top_k"] * (518 / SIZE) ** 2)
    files = {"train_visa.pth": published}
    model = import_published(BayesPFL, files, tower, tmp_path, "--model.top_k", f"{top_k}")
    feed(model, monkeypatch, golden["test.noise"], golden["test.state_noise"].transpose(0, 1))
    scores = model(batch(golden, about))
    near(scores.anomaly_map[:3], golden["test.smooth"], 1e-5)
    near(scores.image_score, golden["test.score"], 1e-5)


@torch.no_grad()
def test_a_checkpoint_of_the_first_stage_scores_without_what_the_second_adds(
    tower, published, golden, about, monkeypatch
) -> None:
    first = {name: one for name, one in published["MyModel"].items() if "fuse" not in name and "image_m" not in name}
    top_k = round(about["top_k"] * (518 / SIZE) ** 2)
    model = build(tower, {"MyModel": first}, "epoch_post_12_1.pth", top_k=top_k).eval()
    feed(model, monkeypatch, golden["test.noise"], golden["test.state_noise"].transpose(0, 1))
    near(model(batch(golden, about)).image_score, golden["test.score_of_first_stage"], 1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_losses_and_gradients_are_those_of_its_training_step(
    stage, tower, published, golden, about, monkeypatch
) -> None:
    model = build(tower, published)
    model.prompts.kl = "batch"
    model.running_stage = stage - 1
    feed(model, monkeypatch, *fit_noise(golden, stage))
    monkeypatch.setattr(torch, "randint", lambda *shape: torch.tensor(about["chosen"]))
    images = batch(golden, about, slice(0, 4))
    scores = model.train()(images)
    losses = model.losses(images, scores)
    weights = {"global": 1, "local": 1, "kl": 0.01, "ort": 1} if stage == 1 else {"global": 1}
    assert set(losses) == set(weights)
    for name, weight in weights.items():
        torch.testing.assert_close(losses[name], weight * golden[f"fit{stage}.{name}"], rtol=1e-5, atol=1e-5)
    if stage == 1:
        near(scores.level_maps[:, :2, ::3, ::3], golden["fit.maps"], 1e-5)
    sum(losses.values()).backward()
    gradients = compare_gradients(model, golden, stage)
    learned = {name for name, one in model.named_parameters() if one.requires_grad}
    fitted = model.stages[stage - 1].train
    assert set(gradients) == {name for name in learned if name.startswith(tuple(fitted))}
    assert max(gradients.values()) < 1e-4, gradients


def test_its_file_is_read_whole_and_what_is_wrong_with_it_is_told(published, about) -> None:
    options, heads = BayesPFL.from_published({"train_visa.pth": published})
    assert options["prompts"]["init_args"] == {"bank": 3, "context": 5, "state": 5, "flows": 4}
    read = {name for ours in heads for name in their_name(ours)}
    left = set(published["MyModel"]) - set(about["aliases"]) - set(about["unused"])
    assert left - read == {"fuse.compress.bias"}

    weights = published["MyModel"]
    for changed, told in (
        (
            {"RCA.q_proj_pre.bias": None},
            r"train.pth lacks the weight 'RCA.q_proj_pre.bias', of shape \(32\)",
        ),
        (
            {"class_mapping.weight": torch.zeros(32, 5)},
            r"'class_mapping.weight' has shape \(32, 5\), expected \(32, 32",
        ),
        ({"prompt_context": torch.zeros(3)}, r"'prompt_context' has shape \(3,\), expected \(any, any, any\)"),
        (
            {"PFL_normal.encoder.weight_mean.module.0.weight": torch.zeros(32, 32)},
            r"'PFL_normal.encoder.weight_mean.module.0.weight' differs from 'state_encoder.weight_mean",
        ),
    ):
        with pytest.raises(KanoclipError, match=told):
            BayesPFL.from_published({"train.pth": {"MyModel": weights | changed}})
    with pytest.raises(KanoclipError, match=r"train.pth has no 'MyModel', expected a mapping of weights"):
        BayesPFL.from_published({"train.pth": weights})
    with pytest.raises(KanoclipError, match=r"There are 2 files, expected one, such as train_visa.pth"):
        BayesPFL.from_published({"a.pth": published, "b.pth": published})


def test_a_defect_weighs_as_much_as_all_that_is_normal() -> None:
    maps, mask = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 8, 8)
    mask[0, 1, 2:5] = 1
    found = balanced_focal_loss(maps, mask)
    expected = 0.0
    for level in maps:
        for true, p in ((mask == 1, level), (mask == 0, 1 - level)):
            expected += (-((1 - p[true]) ** 2) * (p[true] + 1e-8).log()).mean()
    torch.testing.assert_close(found, expected)
    assert float(balanced_focal_loss(maps[:, :0], mask[:0]) + whole_dice_loss(maps[:, :0], mask[:0])) == 0  # no masks


def tiny(backbone, **options) -> BayesPFL:
    torch.manual_seed(0)
    return BayesPFL(backbone, prompts=BayesianPrompts(flows=2, samples=2), **options)


@torch.no_grad()
def test_top_k_is_scaled_to_the_image_and_reads_the_map_before_its_blur(tiny_clip, synthetic_batch) -> None:
    for top_k, pixels in ((1, 1), (2000, 8), (518**2, 32 * 32)):
        model = tiny(tiny_clip, top_k=top_k).eval()
        scores = model(synthetic_batch)
        top = scores.level_maps.mean(0).flatten(1).topk(pixels).values.mean(1)
        near(scores.image_score, (scores.logits.softmax(-1)[:, 1] + top) / 2, 1e-6)
    for wrong in (0, 518**2 + 1):
        with pytest.raises(KanoclipError, match=rf"top_k is {wrong}, expected 1 to 268324 pixels"):
            tiny(tiny_clip, top_k=wrong)


def test_the_stages_fit_in_turn_what_they_name_and_a_test_may_change_what_no_head_depends_on(
    tiny_clip, make_trainer, make_data, tmp_path
) -> None:
    model, trainer = tiny(tiny_clip), make_trainer(max_epochs=2)
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    step = model.training_step

    def spy(batch):
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        if spy.before:
            changed = {name for name, one in before.items() if not torch.equal(one, spy.before[1][name])}
            seen[spy.before[0]] |= changed
        spy.before = model.stage, before
        return step(batch)

    spy.before = None
    model.training_step = spy
    trainer.fit(model, make_data(category="ring", images=12))
    first = {name.split(".")[0] for name in seen[0]}
    assert first == {"prompts", "interaction", "text_map", "pixel_scale", "image_scale"}
    assert {name.split(".")[0] for name in seen[1]} == {"text_map", "adapter"}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    results = []
    for other in (model, tiny(tiny_clip), tiny(tiny_clip, top_k=20, sigma=0.0)):
        given = None if other is model else tmp_path / "last.ckpt"
        other.strict_options = True  # as on the command line
        make_trainer().test(other, make_data(Surfaces, category="pill"), ckpt_path=given, verbose=False)
        results.append(other.results)
    assert results[0] == results[1]
    assert results[0] != results[2]


@torch.no_grad()
def test_kanoclip_takes_its_prompts_its_interaction_and_its_adapter(make_model, synthetic_batch) -> None:
    parts = {"prompts": BayesianPrompts(samples=2), "interaction": RCA(), "adapter": LevelFusion()}
    model = make_model(KAnoCLIP, **parts, terms={"kl": 0.01})
    losses = model.losses(synthetic_batch, model.train()(synthetic_batch))
    assert {"kl", "ort", "global", "local"} <= set(losses)
    assert all(loss.isfinite() for loss in losses.values())
    scores = model.eval()(synthetic_batch)
    features = model.features(synthetic_batch)
    pairs = model.prompts(synthetic_batch.category, model.backbone, features).unbind(1)
    logits, maps = zip(*[model.compare(features, pair) for pair in pairs], strict=True)
    near(scores.level_maps, torch.stack(maps).mean(0), 1e-6)
    near(scores.logits.softmax(-1), torch.stack(logits).softmax(-1).mean(0), 1e-6)


def test_hand_written_prompts_take_the_place_of_drawn_ones(tiny_clip, synthetic_batch) -> None:
    model = BayesPFL(tiny_clip, prompts=EnsemblePrompts())
    scores = model.train()(synthetic_batch)
    model.running_stage = 0
    assert set(model.losses(synthetic_batch, scores)) == {"global", "local"}
