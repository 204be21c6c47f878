"""MRAD-TF, MRAD-FT and MRAD-CLIP against their own code, and from fit to test by the command."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import build, write_folder
from golden_clip import MEAN, STD, batch_of, import_published, relative
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file

from kanoclip.backbone.attention import VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.heads.labelled_memory import LabelledMemory, neighbourhoods
from kanoclip.heads.losses import dice_loss, focal_loss, global_loss
from kanoclip.heads.regional_prompts import RegionalPrompts
from kanoclip.models.checkpoint import read_checkpoint
from kanoclip.models.rivals.mrad import MRADFT, MRADTF
from kanoclip.models.rivals.mrad_clip import MRADCLIP
from kanoclip.types import Batch, KanoclipError
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[3]
GOLDEN = load_file(ROOT / "tests" / "golden" / "mrad.safetensors")
KINDS = {"tf": MRADTF, "ft": MRADFT}


def published() -> dict:
    """The files that its code writes."""
    banks = {
        f"cache_{stem}model_visa.pt": {key: GOLDEN[f"{kind}_{key}"] for key in ("keys", "values")}
        for kind, stem in (("image", ""), ("patch", "patch_"))
    }
    learned = {key[10:]: value for key, value in GOLDEN.items() if key.startswith("published.")}
    parts: dict = {
        part: {key.removeprefix(f"{part}."): value for key, value in learned.items() if key.startswith(part)}
        for part in ("image_proj", "patch_proj")
    }
    return {**banks, "mrad_ft_final.pth": parts}


def published_clip() -> dict:
    """Those of MRAD-CLIP, with fewer rows of regions: the maker says why."""
    files, kept = published(), GOLDEN["mc.rows"]
    patch = {key: value[kept] for key, value in files["cache_patch_model_visa.pt"].items()}
    parts = files.pop("mrad_ft_final.pth")
    for key, value in GOLDEN.items():
        if key.startswith("mc.published."):
            part, _, name = key.removeprefix("mc.published.").partition(".")
            parts.setdefault(part, {})[name] = value
    return {**files, "cache_patch_model_visa.pt": patch, "mrad_clip_final.pth": parts}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    vision = {"image_size": 148, "patch_size": 4, "width": 64, "layers": 24, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
    config, clip = build(32, vision, text, quick_gelu=True)
    golden = {key[5:]: value.float() for key, value in GOLDEN.items() if key.startswith(("clip.", "text."))}
    golden["token_embedding.weight"] = torch.zeros(49408, 32)
    golden["token_embedding.weight"][GOLDEN["tokens"]] = GOLDEN["token_rows"].float()
    for key in [
        key for key in golden if key.startswith("visual.transformer.resblocks.0.")
    ]:  # 24 blocks share the weights of one
        golden |= {key.replace(".0.", f".{i}.", 1): golden[key].clone() for i in range(24)}
    folder = tmp_path_factory.mktemp("clip")
    name = write_folder(folder, config, clip.state_dict() | golden, MEAN, STD)
    (folder / "bpe.txt.gz").unlink()  # the vocabulary is OpenAI's
    return CLIPBackbone(name, image_size=148, **MRADTF.from_published(published())[0]["backbone"]["init_args"])


@pytest.fixture(scope="module")
def batch(backbone):
    """The images of the golden file with their features, which take seconds."""
    batch = batch_of(GOLDEN)
    return batch._replace(features=backbone(batch.image, VV(first=2)))


def imported(kind, backbone):
    weights = kind.from_published(published())[1]
    model = kind(backbone=backbone, attention=VV(first=2))
    own = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    model.load_state_dict({**weights, **own})
    return model.eval()


@torch.no_grad()
def test_the_memory_is_filled_as_by_its_code(backbone, batch) -> None:
    model = MRADTF(backbone)
    model.memory.collect([batch], model.features, seed=0)
    for kind in ("image", "patch"):
        keys, labels = getattr(model.memory, f"{kind}_keys"), getattr(model.memory, f"{kind}_labels")
        order = torch.cdist(GOLDEN[f"{kind}_keys"], keys).argmin(1)
        assert sorted(order.tolist()) == list(range(len(keys)))
        torch.testing.assert_close(keys[order], GOLDEN[f"{kind}_keys"], rtol=0, atol=1e-5)
        torch.testing.assert_close(labels[order], GOLDEN[f"{kind}_values"][:, 1], rtol=0, atol=0)
    features = model.features(batch)
    query = torch.nn.functional.normalize(neighbourhoods(features)[:1, ::8], dim=-1)
    torch.testing.assert_close(query, GOLDEN["query"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.cls, GOLDEN["cls"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_maps_and_scores_of_an_imported_memory_are_those_of_its_code(name, backbone, batch) -> None:
    model = imported(KINDS[name], backbone)
    near = {"rtol": 0, "atol": 1e-6 if name == "tf" else 1e-4}  # at a temperature of 1 the former lie in 0.31 to 0.35
    image, patch = model.memory.read(model.features(batch))
    torch.testing.assert_close(patch, GOLDEN[f"{name}.patch"], **near)
    torch.testing.assert_close(image, GOLDEN[f"{name}.image"], **near)
    scores = model(batch)
    torch.testing.assert_close(scores.anomaly_map[:2], GOLDEN[f"{name}.map"], **near)
    torch.testing.assert_close(scores.image_score, GOLDEN[f"{name}.score"], **near)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_command_imports_its_files(name, backbone, batch, tmp_path) -> None:
    options = ["--model.attention", "vv", "--model.attention.first", "2"]
    model = import_published(KINDS[name], published(), backbone, tmp_path, *options)
    scores = model(batch)
    torch.testing.assert_close(scores.anomaly_map[:2], GOLDEN[f"{name}.map"], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.image_score, GOLDEN[f"{name}.score"], rtol=0, atol=1e-4)


def test_losses_and_their_gradients_are_those_of_its_code(backbone, batch) -> None:
    model = imported(MRADFT, backbone).train()
    scores = model(batch)
    near = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(focal_loss(scores.level_maps, batch.mask), GOLDEN["focal"], **near)
    torch.testing.assert_close(dice_loss(scores.level_maps, batch.mask, "image"), GOLDEN["dice"], **near)
    torch.testing.assert_close(global_loss(scores.logits, batch.label), GOLDEN["image_loss"], **near)
    sum(model.losses(batch, scores).values()).backward()
    theirs = {"image_query": "image_proj.mlp1", "image_key": "image_proj.mlp2"}
    theirs |= {"patch_query": "patch_proj.fc.0", "patch_key": "patch_proj.fc.1"}
    for ours, layer in theirs.items():
        for key in ("weight", "bias"):
            found = getattr(getattr(model.memory, ours), key).grad
            if (ours[-3:], key) == ("key", "bias"):  # it shifts all rows alike: no gradient but rounding
                assert float(found.abs().max()) < 1e-5
            else:
                assert relative(found, GOLDEN[f"gradient.{layer}.{key}"]) < 1e-4, (ours, key)


def imported_clip(backbone) -> MRADCLIP:
    options, weights = MRADCLIP.from_published(published_clip())
    assert options["prompts"]["class_path"] == "regional"
    prompts = RegionalPrompts(**options["prompts"]["init_args"])
    model = MRADCLIP(backbone=backbone, attention=VV(first=2), prompts=prompts)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    return model.eval()


@torch.no_grad()
def test_mrad_clip_shifts_its_prompts_by_regions_and_scores_as_its_code(backbone, batch) -> None:
    model, near = imported_clip(backbone), {"rtol": 0, "atol": 1e-4}
    features = model.features(batch)
    patches = backbone.joint(neighbourhoods(features), norm=False)
    anomalous = model.memory.read(features)[1] > 0.5
    states = model.prompts.shifted(patches, anomalous, backbone)
    torch.testing.assert_close(states, GOLDEN["mc.states"], **near)
    scores = model(batch)
    torch.testing.assert_close(scores.level_maps[0, :, ::4, ::4], GOLDEN["mc.rough"], **near)
    torch.testing.assert_close(scores.anomaly_map[:, ::4, ::4], GOLDEN["mc.map"], **near)
    torch.testing.assert_close(scores.image_score, GOLDEN["mc.score"], **near)
    assert 0.1 < float(anomalous.float().mean()) < 0.9


@torch.no_grad()
def test_the_command_imports_the_files_of_mrad_clip(backbone, batch, tmp_path) -> None:
    options = ["--model.attention", "vv", "--model.attention.first", "2"]
    model = import_published(MRADCLIP, published_clip(), backbone, tmp_path, *options)
    torch.testing.assert_close(model(batch).image_score, GOLDEN["mc.score"], rtol=0, atol=1e-4)


def test_the_second_stage_of_mrad_clip_has_the_loss_and_the_gradients_of_its_code(backbone, batch) -> None:
    model = imported_clip(backbone).train()
    losses = model.losses(batch, model(batch))
    assert list(losses) == ["local"]
    torch.testing.assert_close(losses["local"], GOLDEN["mc.loss"], rtol=0, atol=1e-4)
    losses["local"].backward()
    theirs = {key[12:]: value for key, value in GOLDEN.items() if key.startswith("mc.gradient.")}
    found = model.prompts.vectors.grad
    for state, name in enumerate(("ctx_pos", "ctx_neg")):
        assert relative(found[state], theirs[f"prompt_learner.{name}"][0, 0]) < 1e-4
        for key in ("weight", "bias"):
            layer = getattr(model.prompts.shift[state], key).grad
            assert relative(layer, theirs[f"prompt_proj.mlp{state + 1}.{key}"]) < 1e-4
    for i, deep in enumerate(model.prompts.deep.grad):
        assert relative(deep, theirs[f"prompt_learner.compound_prompts_text.{i}"]) < 3e-4  # theirs in half precision
    assert all(weight.grad is None for weight in model.memory.parameters())


def test_the_first_stage_of_mrad_clip_is_mrad_ft(make_model, synthetic_batch) -> None:
    model = make_model(MRADCLIP).train()
    model.memory.collect([synthetic_batch], model.features, seed=0)
    first, second = model.stages
    assert (first.train, first.epochs, second.train, second.epochs) == (("memory",), 1, ("prompts",), 5)
    model.running_stage = 0
    scores = model(synthetic_batch)
    ft = make_model(MRADFT).train()
    ft.load_state_dict({name: one for name, one in model.state_dict().items() if not name.startswith("prompts.")})
    expected = ft.losses(synthetic_batch, ft(synthetic_batch))
    torch.testing.assert_close(model.losses(synthetic_batch, scores), expected, rtol=0, atol=0)
    assert list(expected) == ["global", "local"]
    model.running_stage = 1
    assert list(model.losses(synthetic_batch, model(synthetic_batch))) == ["local"]


def part(batch: Batch, first: int, last: int) -> Batch:
    return Batch(*(value[first:last] for value in batch[:-1]))


@pytest.mark.parametrize("kind", [*KINDS.values(), MRADCLIP])
@torch.no_grad()
def test_a_batch_of_four_is_four_batches_of_one(kind, make_model, synthetic_batch) -> None:
    model = make_model(kind).eval()
    model.memory.collect([synthetic_batch], model.features, seed=0)
    together = model(synthetic_batch)
    for i in range(4):
        alone = model(part(synthetic_batch, i, i + 1))
        torch.testing.assert_close(together.anomaly_map[i : i + 1], alone.anomaly_map, rtol=0, atol=1e-6)
        torch.testing.assert_close(together.image_score[i : i + 1], alone.image_score, rtol=0, atol=1e-6)


def test_a_memory_that_was_never_filled_says_so(make_model, synthetic_batch) -> None:
    with pytest.raises(KanoclipError, match="The memory is empty: fit the model first, and test its checkpoint"):
        make_model(MRADTF)(synthetic_batch)


@pytest.mark.parametrize("name", ["mrad_tf", "mrad_ft", "mrad_clip"])
def test_a_fit_fills_the_memory_and_a_test_reads_it_from_the_checkpoint(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    whole = yaml.safe_load((ROOT / "configs" / "rivals" / f"{name}.yaml").read_text(encoding="utf-8"))
    whole["data"] = {"class_path": "surfaces_auxiliary", "init_args": {"images": 4, "num_workers": 0}}
    whole["data"]["init_args"]["category"] = "ring"
    whole["model"]["init_args"]["backbone"] = {"class_path": "embedded", "init_args": {"image_size": 128}}
    whole["trainer"].pop("max_epochs")  # of mrad_tf one pass, whatever the default says
    if name != "mrad_tf":
        whole["trainer"]["max_epochs"] = {"mrad_ft": 1, "mrad_clip": 2}[name]
    Path("rival.yaml").write_text(yaml.safe_dump(whole))
    other = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]
    assert main(["test", "--config", "rival.yaml", *other]) == 2
    assert f"No finished fit of {name}" in capsys.readouterr().err
    assert main(["fit", "--config", "rival.yaml"]) == 0
    checkpoint = next(Path("runs").rglob("last.ckpt"))
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert read_checkpoint(checkpoint)[0]["auxiliary"] == "surfaces_auxiliary"
    assert len(weights["memory.image_keys"]) == 4
    assert main(["test", "--config", "rival.yaml", *other]) == 0
    assert main(["fit", "--config", "rival.yaml", "--ckpt_path", "last"]) == 0
    capsys.readouterr()
    for option, fitted in (("size=2", "memory.size None"), ("temperature=0.5", "memory.temperature 1.0")):
        assert main(["test", "--config", "rival.yaml", *other, f"--model.memory.{option}"]) == 2
        assert f"The checkpoint was fitted with model.{fitted}" in capsys.readouterr().err


def test_a_memory_is_filled_without_augmentation_in_a_fit_of_one_epoch(make_data, make_trainer) -> None:
    clip = EmbeddedBackbone(image_size=128, levels=[5], levels_at="norm")
    model, expected, trainer = MRADTF(clip), MRADTF(clip), make_trainer(max_epochs=15)
    trainer.fit(model, make_data(category="ring", augment=True))
    assert (trainer.max_epochs, trainer.current_epoch) == (1, 1)
    plain = make_data(category="ring", image_size=128)
    expected.memory.collect(plain.test_dataloader(), expected.features, seed=0)
    torch.testing.assert_close(model.memory.image_keys, expected.memory.image_keys, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.memory.patch_keys, expected.memory.patch_keys, rtol=0, atol=1e-6)


def test_a_fit_that_gathers_gradients_of_batches_makes_its_one_step(make_data, make_trainer) -> None:
    clip, trainer = EmbeddedBackbone(levels=[5], levels_at="norm"), make_trainer(accumulate_grad_batches=2)
    trainer.fit(MRADTF(clip), make_data(category="ring", batch_size=1))
    assert trainer.global_step == 1  # without one Lightning keeps no checkpoint


def test_a_checkpoint_may_hold_any_number_of_rows_but_no_other_width(make_model, synthetic_batch) -> None:
    filled, blank = make_model(MRADTF), make_model(MRADTF)
    filled.memory.collect([synthetic_batch], filled.features, seed=0)
    blank.load_state_dict(filled.state_dict())
    torch.testing.assert_close(blank.memory.patch_keys, filled.memory.patch_keys, rtol=0, atol=0)
    wrong = {**filled.state_dict(), "memory.patch_keys": torch.zeros(3, 5)}
    with pytest.raises(KanoclipError, match=r"memory\.patch_keys is \(3, 5\) in it, expected \(3, 16\)"):
        make_model(MRADTF).load_state_dict(wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.pop("mrad_ft_final.pth"), r"Expected one file mrad_ft_\*"),
        (lambda files: files.pop("cache_model_visa.pt"), r"Expected one file cache_model_\*"),
        (lambda files: files["cache_model_visa.pt"].pop("values"), r"cache_model_visa\.pt lacks the weight 'values'"),
        (lambda files: files["mrad_ft_final.pth"].pop("image_proj"), r"mrad_ft_final\.pth has no 'image_proj'"),
        (
            lambda files: files["mrad_ft_final.pth"]["patch_proj"].update({"fc.1.weight": torch.zeros(32, 63)}),
            r"'fc\.1\.weight' has shape \(32, 63\), expected \(32, 64\)",
        ),
    ],
)
def test_files_that_are_not_as_written_are_refused_by_the_key(change, said) -> None:
    files = published()
    change(files)
    with pytest.raises(KanoclipError, match=said):
        MRADFT.from_published(files)


def test_of_the_models_that_a_trainer_fits_ddp_wraps_those_that_train(tiny_clip, monkeypatch) -> None:
    wrapped = []
    monkeypatch.setattr(DDPStrategy, "configure_ddp", lambda self: wrapped.append(type(self.lightning_module)))
    trainer = Trainer(accelerator="cpu", strategy="ddp", devices=1, logger=False)
    for kind in KINDS.values():
        model = kind(backbone=tiny_clip)
        model.trainer = trainer
        trainer.strategy.connect(model)
        model.setup("fit")
        trainer.strategy.configure_ddp()
    assert wrapped == [MRADFT]


def test_a_share_that_is_none_is_refused(tiny_clip) -> None:
    with pytest.raises(KanoclipError, match=r"alpha is 2, expected a share in \[0, 1\]\. Use --model\.alpha 0\.7"):
        MRADTF(tiny_clip, alpha=2)
    with pytest.raises(KanoclipError, match=r"memory\.size is 0, expected 1 row or more"):
        MRADTF(tiny_clip, memory=LabelledMemory(size=0))
