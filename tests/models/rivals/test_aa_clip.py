"""AA-CLIP against what its own code made of a tiny random CLIP, see benchmarks/parity/aa_clip.py."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch.nn.functional import normalize

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.heads.projections import PatchMean, ProjectedPrompts
from kanoclip.heads.scoring import MapMaxScore
from kanoclip.models.inference import batch_of
from kanoclip.models.rivals.aa_clip import AACLIP, blurred
from kanoclip.types import KanoclipError
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[3]
SIZE = 70
NAMES = {"pcb2": "integrated circuits board"}  # what its code calls it
CLASSES = ["pcb2", "candle", "pcb2"]
MINE = {  # its name of a weight -> ours
    **{f"text_adapter.{n}.fc.0.weight": f"tuning.textual.{n}.weight" for n in range(3)},
    "text_adapter.3.fc.0.weight": "prompts.projection.weight",
    **{f"image_adapter.layer_adapters.{n}.fc.0.weight": f"tuning.visual.{n}.weight" for n in range(6)},
    **{f"image_adapter.seg_proj.{n}.fc.weight": f"interaction.layers.{n}.weight" for n in range(4)},
    "image_adapter.det_proj.fc.weight": "adapter.projection.weight",
}


@pytest.fixture(scope="module")
def golden():
    return load_file(ROOT / "tests" / "golden" / "aa_clip.safetensors")


@pytest.fixture(scope="module")
def theirs(golden, write_clip, tmp_path_factory):
    """The CLIP of the golden file, with OpenAI's vocabulary."""
    weights = {k.removeprefix("clip."): v.float() for k, v in golden.items() if k.startswith("clip.")}
    table = torch.zeros(49408, 16)
    table[golden["tokens"].long()] = golden["token_rows"].float()
    vision = {"image_size": SIZE, "patch_size": 14, "width": 16, "layers": 24, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 12}
    about = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    folder = tmp_path_factory.mktemp("aa_clip")
    weights["token_embedding.weight"] = table
    name = write_clip(folder, about, weights, mean=(0, 0, 0), std=(1, 1, 1))
    (folder / "bpe.txt.gz").unlink()
    return CLIPBackbone(name, None, SIZE, activation="gelu")


@pytest.fixture
def files(golden):
    """The folder that its code writes, as torch reads it."""

    def part(name):
        return {k.removeprefix(f"{name}."): v.float() for k, v in golden.items() if k.startswith(f"{name}.")}

    return {
        "text_adapter.pth": {"epoch": 5, "text_adapter": part("text_adapter"), "text_optimizer": {}},
        "image_adapter_20.pth": {"epoch": 20, "image_adapter": part("image_adapter"), "image_optimizer": {}},
        "image_adapter_1.pth": {"epoch": 1, "image_adapter": {}, "image_optimizer": {}},
    }


@pytest.fixture
def model(theirs, files):
    def make(**options):
        built = AACLIP(theirs, prompts=ProjectedPrompts(NAMES), **options)
        _, weights = AACLIP.from_published(files)
        built.load_state_dict(weights | {k: v for k, v in built.state_dict().items() if k.startswith("backbone.")})
        return built

    return make


def batch(golden, count=3, classes=None):
    image = (golden["pixels"][:count] / 255).repeat_interleave(7, 2).repeat_interleave(7, 3)
    made = batch_of(image, "pcb2")._replace(category=classes or CLASSES[:count])
    if count > 3:
        return made
    known = torch.ones(count, dtype=torch.bool)
    return made._replace(mask=golden["mask"][:count], label=golden["label"][:count], has_mask=known)


def near(ours, theirs, most=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=most)


def gradients_match(model, golden, stage, part):
    found = {name: weight for name, weight in model.named_parameters() if not name.startswith("backbone.")}
    for name, mine in MINE.items():
        expected = golden.get(f"{stage}.gradient.{name}")
        assert (expected is not None) == name.startswith(part)
        if expected is not None:
            near(found[mine].grad / expected.abs().max(), expected / expected.abs().max(), 1e-4)


@pytest.mark.parametrize(("count", "attention"), [(1, "value"), (1, "batch"), (3, "batch")])
def test_stage_1_is_that_of_its_own_code(count, attention, golden, model) -> None:
    ours, given = model(stage1_attention=attention).train(), batch(golden, count)
    ours.running_stage = 0
    key = f"stage1.{count}"
    features = ours.frozen(given)
    near(ours.frozen_patches(given, features)[-1], golden[f"{key}.patches"])
    scores = ours(given)
    near(scores.states, golden[f"{key}.states"].mT)
    near(scores.level_maps[:, :, ::5, ::5][-1], golden[f"{key}.maps"], 1e-4)
    losses = ours.losses(given, scores)
    assert set(losses) == {"local", "orthogonal"}
    near(sum(losses.values()) / golden[f"{key}.loss"], torch.tensor(1.0), 1e-4)
    for name, weight in ours.named_parameters():
        weight.requires_grad_(name.startswith(ours.stages[0].train))
    sum(ours.losses(given, ours(given)).values()).backward()
    gradients_match(ours, golden, key, "text_adapter")


def test_stage_2_is_that_of_its_own_code(golden, model) -> None:
    ours, given = model().train(), batch(golden)
    for name, weight in ours.named_parameters():
        weight.requires_grad_(name.startswith(ours.stages[1].train))
    features = ours.features(given)
    near(ours.interaction(features.patches, torch.zeros(3, 2, 16))[0], golden["stage2.patches"])
    near(ours.adapter(features.cls, features.patches, features.grid), golden["stage2.global"])
    scores = ours(given)
    near(scores.level_maps[..., ::5, ::5], golden["stage2.maps"], 1e-4)
    losses = ours.losses(given, scores)
    assert set(losses) == {"local", "global"}
    near(sum(losses.values()) / golden["stage2.loss"], torch.tensor(1.0), 1e-4)
    sum(losses.values()).backward()
    gradients_match(ours, golden, "stage2", "image_adapter")


@pytest.mark.parametrize(
    ("domain", "options"), [("industrial", {}), ("medical", {"blur": 1.5, "score": MapMaxScore()})]
)
def test_ten_images_score_as_in_its_own_code_with_the_weights_that_it_writes(domain, options, golden, model) -> None:
    with torch.no_grad():
        ours = model(**options).eval()
        scores = ours(batch(golden, 10, ["pcb2"] * 10))
    text = (scores.logits[:, 1] + 1) / 2
    near(text, golden[f"test.{domain}.text"])
    highest = scores.anomaly_map.flatten(1).amax(1)
    near(scores.image_score, (text + highest) / 2 if domain == "industrial" else highest)

    def summed(maps):  # its map is the sum over levels of (100 cos_a + 1 - 100 cos_n) / 2
        return 4 * (200 * maps - 99.5)

    near(summed(scores.anomaly_map[:, ::5, ::5]), golden[f"test.{domain}.map"], 2e-3)  # of about 10, where 1e-4 is 2e-7
    near(scores.anomaly_map[:, ::5, ::5], (golden[f"test.{domain}.map"] / 4 + 99.5) / 200, 1e-6)
    low, high = scores.anomaly_map.min(), scores.anomaly_map.max()  # its scores: over the whole test set
    expected = (highest - low) / (high - low)
    if domain == "industrial":
        expected = (expected + (text - text.min()) / (text.max() - text.min())) / 2
    near(expected, golden[f"test.{domain}.score"], 1e-4)


def test_a_batch_of_ten_is_ten_batches_of_one_also_in_stage_1(golden, model) -> None:
    given = batch(golden, 10, ["pcb2", "candle"] * 5)
    for running in (None, 0):
        ours = model().eval()
        ours.running_stage = running
        with torch.no_grad():
            together = ours(given)
            for i in range(10):
                alone = ours(type(given)(*(value[i : i + 1] for value in given[:-1])))
                near(alone.anomaly_map, together.anomaly_map[i : i + 1])
                near(alone.image_score, together.image_score[i : i + 1])


def test_patches_of_stage_1_attend_inside_the_image_where_that_is_asked_for(golden, model) -> None:
    given, found = batch(golden), {}
    for attention in ("value", "batch", "patches"):
        ours = model(stage1_attention=attention)
        found[attention] = ours.frozen_patches(given, ours.frozen(given))
    assert found["value"].shape == (1, 3, 25, 16)
    for first, second in (("value", "batch"), ("value", "patches"), ("batch", "patches")):
        assert (found[first] - found[second]).abs().max() > 0.01
    ours = model(stage1_levels="all")
    levels = ours.frozen_patches(given, ours.frozen(given))
    assert levels.shape == (4, 3, 25, 16)
    near(levels[-1:], found["value"])


def test_its_weights_after_relu_are_recognised_and_what_is_missing_is_named(files) -> None:
    image = files["image_adapter_20.pth"]["image_adapter"]
    options, _ = AACLIP.from_published(files)
    assert options["tuning"]["init_args"] == {"image_blocks": 6, "text_blocks": 3}
    assert options["adapter"]["init_args"] == {"relu": False}
    active = {k.replace("proj.fc", "proj.fc.0") if "det" in k else k.replace(".fc.weight", ".fc.0.weight"): v
              for k, v in image.items()}  # fmt: skip
    options, weights = AACLIP.from_published({**files, "image_adapter_20.pth": {"epoch": 20, "image_adapter": active}})
    assert (options["adapter"]["init_args"], len(weights)) == ({"relu": True}, 15)
    with pytest.raises(KanoclipError, match=r"None of text_adapter\.pth has 'image_adapter'.*give that folder"):
        AACLIP.from_published({"text_adapter.pth": files["text_adapter.pth"]})
    broken = {k: v for k, v in image.items() if k != "det_proj.fc.weight"}
    with pytest.raises(KanoclipError, match=r"image_adapter_20\.pth lacks the weight 'det_proj\.fc\.weight'"):
        AACLIP.from_published({**files, "image_adapter_20.pth": {"epoch": 20, "image_adapter": broken}})


def test_texts_are_encoded_once_while_they_do_not_learn(golden, model, monkeypatch) -> None:
    ours, calls, given = model(), [], batch(golden)
    encode = ProjectedPrompts._encode
    monkeypatch.setattr(ProjectedPrompts, "_encode", lambda *args: calls.append(1) or encode(*args))
    ours.prompts.requires_grad_(False)
    ours.tuning.textual.requires_grad_(False)
    first, second = ours(given).states, ours(given).states
    assert len(calls) == 2  # of two categories
    near(first, second, 0)
    with torch.no_grad():
        ours.tuning.textual[0].weight[0].mul_(-2)
    assert (ours(given).states - first).abs().max() > 1e-3
    ours.requires_grad_(True)
    assert ours(given).states.requires_grad


def test_a_blur_of_one_point_is_the_kernel_and_its_border_a_mirror() -> None:
    point = torch.zeros(1, 9, 9)
    point[0, 4, 4] = 1
    line = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / 2)
    line = line / line.sum()
    near(blurred(point, 1.0)[0, 1:8, 1:8], line[:, None] * line, 1e-7)
    near(blurred(torch.ones(1, 4, 4), 1.5), torch.ones(1, 4, 4), 1e-6)  # a kernel wider than the grid is cut
    assert blurred(point, 0.0) is point


def test_the_two_stages_fit_and_go_on(make_model, make_trainer, make_data, tmp_path) -> None:
    def fit(seed=0, ckpt_path=None):
        torch.manual_seed(seed)
        fitted = make_model(AACLIP, seed=seed)
        trainer = make_trainer(max_epochs=4, callbacks=[] if ckpt_path else [keep])
        trainer.fit(fitted, make_data(SurfacesAuxiliary, category="ring"), ckpt_path=ckpt_path)
        return fitted

    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = fit()
    for epoch in (0, 1):  # at the end of stage 1, and within stage 2
        again = fit(seed=9, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name]), name
    first, last = (torch.load(tmp_path / f"epoch={n}.ckpt", weights_only=True)["state_dict"] for n in (0, 3))
    for name, weight in first.items():
        assert torch.equal(weight, last[name]) == name.startswith(("prompts.", "tuning.textual.")), name


def test_the_numbers_of_its_config_are_its_own_defaults(make_model) -> None:
    given = yaml.safe_load((ROOT / "configs" / "rivals" / "aa_clip.yaml").read_text(encoding="utf-8"))
    options, ours = given["model"]["init_args"], make_model(AACLIP)
    assert (options["orthogonal"], options["blur"]) == (ours.orthogonal, ours.blur)
    for told, own in zip(options["stages"], ours.stages, strict=True):
        for key, value in told.items():
            if key != "accumulate":  # of the batches of this config alone
                assert (tuple(value) if isinstance(value, list) else value) == getattr(own, key), key
    assert given["trainer"]["max_epochs"] == sum(stage.epochs for stage in ours.stages)
    tuning = {k: v for k, v in options["tuning"]["init_args"].items() if k.endswith("_weight")}
    assert tuning == {k: getattr(ours.tuning, k) for k in tuning}


def test_its_config_runs_from_fit_to_test_on_the_embedded_backbone(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = yaml.safe_load((ROOT / "configs" / "rivals" / "aa_clip.yaml").read_text(encoding="utf-8"))
    images = {"images": 2, "num_workers": 0, "category": "ring"}
    whole["data"] = {"class_path": "surfaces_auxiliary", "init_args": images}
    whole["model"]["init_args"]["backbone"] = {"class_path": "embedded", "init_args": {"image_size": 32}}
    whole["model"]["init_args"]["tuning"]["init_args"] = {"image_blocks": 3, "text_blocks": 1}
    whole["trainer"]["max_epochs"] = 2
    Path("rival.yaml").write_text(yaml.safe_dump(whole))
    assert main(["fit", "--config", "rival.yaml"]) == 0
    other = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]
    assert main(["test", "--config", "rival.yaml", *other]) == 0
    assert main(["test", "--config", "rival.yaml", *other, "--model.tuning", "none"]) == 2


def test_projections_read_levels_of_the_towers_width(make_model, synthetic_batch) -> None:
    ours = make_model(AACLIP)
    assert ours.backbone.patch_dim == 32 != ours.backbone.dim
    assert make_model(AACLIP).backbone.visual is ours.backbone.visual  # one copy of the weights
    patches = torch.randn(len(ours.backbone.levels), 2, 5, 32)
    mean = PatchMean(relu=True)
    mean.build(ours.backbone)
    last = torch.nn.functional.leaky_relu(patches[-1] @ mean.projection.weight.T)
    near(mean(torch.zeros(2, 16), patches, (1, 5)), normalize(last, dim=-1).mean(1))


def test_surfaces_it_has_not_seen_can_be_named_in_words(make_model, make_trainer, make_data) -> None:
    found = [make_model(AACLIP, prompts=ProjectedPrompts(names)) for names in (None, {"pill": "round white pill"})]
    trainer, data = make_trainer(), make_data(Surfaces, category="pill")
    for one in found:
        trainer.test(one, data, verbose=False)
    states = [one.prompts(["pill"], one.backbone) for one in found]
    assert (states[0] - states[1]).abs().max() > 1e-4
