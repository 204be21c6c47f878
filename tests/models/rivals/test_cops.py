"""CoPS against what its own code computed with small random weights, see benchmarks/parity/cops.py."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kanoclip.backbone.attention import VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.heads.adapter import NoAdapter
from kanoclip.heads.synthesized_prompts import SynthesizedPrompts
from kanoclip.models.inference import batch_of
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.cops import CoPS
from kanoclip.registry import NAMES, load_class
from kanoclip.types import Batch, KanoclipError
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[3]
GOLDEN = load_file(ROOT / "tests" / "golden" / "cops.safetensors")
CONFIG = yaml.safe_load((ROOT / "configs" / "rivals" / "cops.yaml").read_text(encoding="utf-8"))
PUBLISHED = {key.removeprefix("published."): one.float() for key, one in GOLDEN.items() if key.startswith("published.")}
NAMED = {  # ours -> theirs; of both states where there are two
    "vectors": ("ctx_pos", "ctx_neg"),
    "deep": ("compound_prompts_text.0", "compound_prompts_text.1"),
    "prototypes.queries": ("t_n", "t_a"),
    "prototypes.attention": ("extractor.attn",),
    "prototypes.first_norm": ("extractor.ln_1",),
    "prototypes.second_norm": ("extractor.ln_2",),
    "prototypes.widen": ("extractor.mlp.c_fc",),
    "prototypes.narrow": ("extractor.mlp.c_proj",),
    "latent.inner": ("vae_encoder.net.0",),
    "latent.mean": ("vae_encoder.mean",),
    "latent.log_variance": ("vae_encoder.log_var",),
    "latent.decode.0": ("vae_decoder.net.0",),
    "latent.decode.2": ("vae_decoder.net.2",),
}


@pytest.fixture(scope="module")
def tower(make_clip, write_clip, tmp_path_factory) -> CLIPBackbone:
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 3}
    about, clip = make_clip(48, vision, text, quick_gelu=True)
    weights = {k.removeprefix("clip."): v.float() for k, v in GOLDEN.items() if k.startswith("clip.")}
    table = torch.zeros(49408, 48)
    table[GOLDEN["tokens"]] = GOLDEN["table"].float()
    weights = clip.state_dict() | weights | {"token_embedding.weight": table}
    name = write_clip(tmp_path_factory.mktemp("cops") / "clip", about, weights, mean=(0, 0, 0), std=(1, 1, 1))
    Path(name.removeprefix("local-dir:"), "bpe.txt.gz").unlink()  # the vocabulary is OpenAI's
    given = CONFIG["model"]["init_args"]["backbone"]["init_args"]
    return CLIPBackbone(**given | {"name": name, "pretrained": None, "image_size": 48, "levels": [3]})


@pytest.fixture
def model(tower, tmp_path) -> CoPS:
    """A model with a published checkpoint, read back from a file without running what is in it."""
    torch.save({"prompt_learner": PUBLISHED}, tmp_path / "epoch_10.pth")
    content = torch.load(tmp_path / "epoch_10.pth", weights_only=True)
    options, heads = CoPS.from_published({"epoch_10.pth": content})
    assert options["backbone"]["init_args"].items() <= CONFIG["model"]["init_args"]["backbone"]["init_args"].items()
    prompts = SynthesizedPrompts(**options["prompts"]["init_args"], heads=12, samples=len(GOLDEN["latents"]))
    made = CoPS(tower, VV(first=1), prompts)
    made.load_state_dict({f"backbone.{key}": one for key, one in tower.state_dict().items()} | heads)
    prompts.latents = GOLDEN["latents"]
    return made.eval()


def batch(count: int = 10, begin: int = 0) -> Batch:
    made = batch_of(GOLDEN["pixels"][begin : begin + count].float() / 255, "object")
    if (begin, count) != (0, 4):
        return made
    mask = GOLDEN["mask"]
    return made._replace(mask=mask, label=mask.flatten(1).amax(1).long(), has_mask=torch.ones(4, dtype=torch.bool))


def close(ours: torch.Tensor, theirs: torch.Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=within)


@torch.no_grad()
def test_an_imported_checkpoint_reads_images_and_texts_and_scores_ten_images_as_its_own_code(model) -> None:
    features = model.features(batch())
    close(features.cls, GOLDEN["seen"])
    one = features._replace(patches=features.patches[:, :2])
    model.prompts.pool = 1
    close(model.prompts.local(one, model.backbone), GOLDEN["levels"])
    model.prompts.pool = 5
    scores = model(batch())
    close(scores.states, GOLDEN["test.states"])
    close(scores.level_maps[0], GOLDEN["test.map"])
    close(scores.anomaly_map, GOLDEN["test.smooth"])
    close(scores.image_score, GOLDEN["test.score"])
    assert GOLDEN["test.score"].std() > 0.02  # or anything would pass


@torch.no_grad()
def test_the_global_feature_keeps_its_length_and_a_cache_knows(tiny_name, images) -> None:
    torch.manual_seed(0)
    unit, own = (CLIPBackbone(tiny_name, image_size=32, levels_at="norm", unit_cls=which) for which in (True, False))
    lengths = own(images, VV()).cls.norm(dim=-1)
    assert float((lengths - 1).abs().min()) > 0.05
    close(own(images, VV()).cls / lengths[:, None], unit(images, VV()).cls, 1e-6)
    assert CoPS(unit).features_key != CoPS(own).features_key
    assert "unit_cls" not in unit.settings
    assert own.settings["unit_cls"] is False


def test_losses_and_gradients_are_those_of_its_own_script(model, monkeypatch) -> None:
    encoder = {key.removeprefix("encoder."): one.float() for key, one in GOLDEN.items() if key.startswith("encoder.")}
    for ours, theirs in (("inner", "net.0"), ("mean", "mean"), ("log_variance", "log_var")):
        for kind in ("weight", "bias"):  # which no checkpoint has
            getattr(getattr(model.prompts.latent, ours), kind).data = encoder[f"{theirs}.{kind}"]
    monkeypatch.setattr(model.prompts, "draw", lambda cls: GOLDEN["fit.noise"])
    scores = model.train()(batch(4))
    close(scores.states.detach(), GOLDEN["fit.states"])
    close(scores.anomaly_map.detach(), GOLDEN["fit.map"])
    losses = model.losses(batch(4), scores)
    assert list(losses) == ["global", "local", "normal", "anomalous", "kl", "recon"]
    for name, value in losses.items():
        torch.testing.assert_close(value.detach(), GOLDEN[f"fit.{name}"], rtol=2e-5, atol=1e-5)
    sum(losses.values()).backward()
    for name, weight in model.prompts.named_parameters():
        part = name.rpartition(".")[0]
        if name in NAMED:
            theirs = torch.stack([GOLDEN[f"grad.{one}"] for one in NAMED[name]])
        else:
            start = next(one for one in NAMED if f"{name}.".startswith(f"{one}.") or part.startswith(one))
            theirs = GOLDEN[f"grad.{NAMED[start][0]}{name.removeprefix(start)}"]
        theirs = theirs.reshape(weight.shape)
        assert float(theirs.abs().max()) > 1e-6, name
        # tokens that are rounded to half precision have gradients that are, summed in another order
        close(weight.grad / theirs.abs().max(), theirs / theirs.abs().max(), 5e-4 if name == "deep" else 1e-4)


def test_what_its_code_does_otherwise_than_the_paper_is_off_by_default(model) -> None:
    own = SynthesizedPrompts()
    assert (own.swapped_prototypes, own.recon, own.round_tokens) == (False, "image", False)
    published = CONFIG["model"]["init_args"]["prompts"]["init_args"]
    assert (published["swapped_prototypes"], published["recon"], published["round_tokens"]) == (True, "pairs", True)
    with torch.no_grad():
        swapped = model(batch()).states
        model.prompts.swapped_prototypes = False
        assert float((model(batch()).states - swapped).abs().max()) > 0.01


@torch.no_grad()
def test_a_batch_of_four_is_four_batches_of_one_and_a_second_run_is_the_first(model) -> None:
    together, again = model(batch(4)), model(batch(4))
    assert torch.equal(together.anomaly_map, again.anomaly_map)
    for i in range(4):
        alone = model(batch(1, i))
        close(together.anomaly_map[i : i + 1], alone.anomaly_map)
        close(together.image_score[i : i + 1], alone.image_score)


def test_the_command_imports_its_file(tower, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"prompt_learner": PUBLISHED}, "epoch_10.pth")
    options = {"backbone.name": tower.description, "backbone.image_size": "48", "backbone.levels": "[3]"}
    given = [word for key, value in {**options, "prompts.heads": "12"}.items() for word in (f"--model.{key}", value)]
    command = ["import", "--from", "cops", "epoch_10.pth", "--fitted_on", "visa", "--output", "heads.ckpt"]
    assert main([*command, "--model.backbone.pretrained", "null", *given]) == 0
    weights = torch.load("heads.ckpt", weights_only=True)["state_dict"]
    close(weights["prompts.prototypes.queries"], torch.stack([PUBLISHED["t_n"], PUBLISHED["t_a"]]), 0)


def test_its_file_is_read_whole_and_what_is_wrong_with_it_is_told() -> None:
    options, heads = CoPS.from_published({"x.pth": {"prompt_learner": PUBLISHED}})
    assert options["prompts"]["init_args"] == {
        "context": 6,
        "prototypes": 6,
        "swapped_prototypes": True,
        "recon": "pairs",
        "deep_tokens": 4,
        "round_tokens": True,
        "deep_depth": 2,
    }
    assert not heads["prompts.latent.log_variance.bias"].any()  # N(0, 1)
    for content, told in (
        ({"state_dict": {}}, r"x\.pth has no 'prompt_learner', expected a mapping of weights"),
        ({"prompt_learner": {**PUBLISHED, "t_a": None}}, r"x\.pth lacks the weight 't_a', of shape \(6, 48\)"),
        (
            {"prompt_learner": PUBLISHED | {"vae_decoder.net.2.bias": torch.zeros(5)}},
            r"'vae_decoder\.net\.2\.bias' has shape \(5,\), expected \(48\)",
        ),
    ):
        with pytest.raises(KanoclipError, match=told):
            CoPS.from_published({"x.pth": content})
    with pytest.raises(KanoclipError, match=r"There are 0 files, expected one, such as epoch_10\.pth"):
        CoPS.from_published({})


@torch.no_grad()
def test_distances_are_stretched_within_an_image_and_flat_ones_stay_finite(tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    model = CoPS(tiny_clip.reading("norm"), alpha=1.0, beta=0.0, sigma=0.0).eval()
    plain = synthetic_batch._replace(image=torch.full_like(synthetic_batch.image, 0.5))
    assert model(plain).anomaly_map.isfinite().all()
    scores = model(synthetic_batch)
    assert 0 <= float(scores.anomaly_map.min()) <= float(scores.anomaly_map.max()) <= 1
    close(scores.image_score, scores.anomaly_map.flatten(1).amax(1))  # beta 0: the highest patch
    assert not scores.anomaly_map.flatten(1).amin(1).any()  # alpha 1: the patch nearest to a normal prototype


def test_images_without_a_mask_have_no_distances_in_the_loss(tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    model = CoPS(tiny_clip.reading("norm")).train()
    without = synthetic_batch._replace(has_mask=torch.zeros(4, dtype=torch.bool))
    losses = model.losses(without, model(without))
    assert [float(losses[name].detach()) for name in ("local", "normal", "anomalous")] == [0, 0, 0]
    assert all(float(losses[name].detach()) > 0 for name in ("global", "kl", "recon"))


@pytest.mark.parametrize("levels_at", ["joint", "norm", "block"])
def test_its_prompts_work_in_kanoclip_wherever_patches_are_read(tiny_clip, synthetic_batch, levels_at) -> None:
    torch.manual_seed(0)
    interaction = load_class(NAMES["interaction"]["level_projection"])()
    backbone = tiny_clip.reading(levels_at)
    model = KAnoCLIP(backbone, prompts=SynthesizedPrompts(), interaction=interaction, adapter=NoAdapter()).train()
    losses = model.losses(synthetic_batch, model(synthetic_batch))
    assert {"kl", "recon"} <= set(losses)
    sum(losses.values()).backward()
    assert all(one.grad is not None for one in model.prompts.parameters())


def test_prototypes_learn_by_their_distances_alone(tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    model = CoPS(tiny_clip.reading("norm")).train()
    losses = model.losses(synthetic_batch, model(synthetic_batch))
    prototypes = list(model.prompts.prototypes.parameters())
    (losses["global"] + losses["local"]).backward(retain_graph=True)
    assert all(one.grad is None for one in prototypes)
    (losses["normal"] + losses["anomalous"]).backward()
    assert all(one.grad is not None for one in prototypes)


def test_a_number_out_of_range_is_refused(tiny_clip) -> None:
    for wrong, told in (({"alpha": 2}, "alpha is 2"), ({"beta": -1}, "beta is -1"), ({"sigma": -1}, "sigma is -1")):
        with pytest.raises(KanoclipError, match=told):
            CoPS(tiny_clip.reading("norm"), **wrong)
    for wrong, told in (
        ({"pool": 4}, r"prompts\.pool is 4, expected an odd number of 1 or more"),
        ({"samples": 0}, r"prompts\.samples is 0, expected 1 or more"),
        ({"recon": "all"}, r"prompts\.recon is 'all', expected image or pairs"),
    ):
        with pytest.raises(KanoclipError, match=told):
            SynthesizedPrompts(**wrong)
    for wrong, told in (({"heads": 5}, r"prompts\.heads is 5"), ({"context": 60}, r"68 learned vectors takes 71")):
        with pytest.raises(KanoclipError, match=told):
            SynthesizedPrompts(**wrong).build(tiny_clip)


def test_the_config_has_its_published_settings_and_runs_from_fit_to_test(tmp_path, monkeypatch) -> None:
    given = CONFIG["model"]["init_args"]
    model = CoPS(EmbeddedBackbone(levels_at="norm"))
    assert model.sigma == given["sigma"] * model.image_size / 518
    assert [getattr(model, key) for key in ("alpha", "beta", "temperature", "lr")] == [0.26, 0.9, 0.07, 1e-3]
    assert [given[key] for key in ("alpha", "beta", "temperature", "lr")] == [0.26, 0.9, 0.07, 1e-3]
    assert load_class(NAMES["model"]["cops"]) is CoPS

    monkeypatch.chdir(tmp_path)
    init = {"images": 2, "num_workers": 0, "category": "ring", "batch_size": 4}
    given = given | {"backbone": {"class_path": "embedded", "init_args": {"levels_at": "norm"}}}
    whole = CONFIG | {"data": {"class_path": "surfaces_auxiliary", "init_args": init}}
    whole["model"] = CONFIG["model"] | {"init_args": given}
    whole["trainer"] = CONFIG["trainer"] | {"max_epochs": 1}
    Path("rival.yaml").write_text(yaml.safe_dump(whole))
    assert main(["fit", "--config", "rival.yaml"]) == 0
    other = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]
    assert main(["test", "--config", "rival.yaml", *other]) == 0
    assert main(["test", "--config", "rival.yaml", *other, "--model.prompts.pool", "3"]) == 2
