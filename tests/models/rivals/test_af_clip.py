"""AF-CLIP against what its own code computed with small random weights, see benchmarks/parity/af_clip.py."""

from pathlib import Path

import cv2
import pytest
import torch
import yaml
from golden_clip import import_published, small_backbone, some_of
from safetensors.torch import load_file
from torch import Tensor, nn

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.heads.alignment import patch_mask
from kanoclip.heads.patch_memory import PatchMemory
from kanoclip.heads.prefix import PrefixPrompts
from kanoclip.models.rivals.af_clip import AFCLIP, LAYERS
from kanoclip.registry import NAMES, load_class
from kanoclip.types import Batch
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[3]
GOLDEN = load_file(ROOT / "tests" / "golden" / "af_clip.safetensors")
CONFIG = yaml.safe_load((ROOT / "configs" / "rivals" / "af_clip.yaml").read_text(encoding="utf-8"))
ADAPTOR = {k.removeprefix("adaptor."): v.float() for k, v in GOLDEN.items() if k.startswith("adaptor.")}
PUBLISHED = {"mvtec_prompt.pt": nn.Parameter(GOLDEN["prompt"].float()), "mvtec_adaptor_tensors.pt": ADAPTOR}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> CLIPBackbone:
    given = CONFIG["model"]["init_args"]["backbone"]["init_args"]
    return small_backbone(tmp_path_factory.mktemp("af_clip"), GOLDEN, **given | {"levels": [1, 2]})


def imported(backbone: CLIPBackbone, **options) -> AFCLIP:
    """Our model with the weights of its two files."""
    given, state = AFCLIP.from_published(PUBLISHED)
    assert given.pop("backbone")["init_args"].items() <= CONFIG["model"]["init_args"]["backbone"]["init_args"].items()
    model = AFCLIP(backbone, prompts=PrefixPrompts(**given.pop("prompts")["init_args"]), **given | options)
    model.load_state_dict({f"backbone.{k}": v for k, v in backbone.state_dict().items()} | state)
    return model.eval()


def batch(count: int = 10, begin: int = 0) -> Batch:
    return some_of(GOLDEN, count, begin)


def references(folder: Path) -> None:
    """Write the two images that its code remembered."""
    folder.mkdir(exist_ok=True)
    for i, pixels in enumerate(GOLDEN["pixels"][10:]):
        cv2.imwrite(str(folder / f"{i}.png"), pixels.permute(1, 2, 0).flip(-1).numpy())


def close(ours: Tensor, theirs: Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=within)


@torch.no_grad()
def test_an_imported_checkpoint_reads_images_and_texts_and_scores_ten_images_as_its_own_code(backbone) -> None:
    model = imported(backbone, sigma=0.0)
    close(model.prompts(["bottle"], backbone)[0], GOLDEN["states"])
    sets = model.sets(model.features(batch(2)))
    tokens = torch.cat([sets.level_cls[5][:, None], sets.patches[5]], 1)  # level 2 in windows of 5
    close(tokens, GOLDEN["set"])
    close(backbone.joint(model.adapter(tokens)), GOLDEN["adapted"])
    scores = model(batch())
    close(scores.anomaly_map, GOLDEN["map"])
    close(scores.image_score, GOLDEN["score"])
    assert float(scores.image_score.std()) > 0.02


@pytest.mark.parametrize("which", ["meant", "as_run"])
def test_losses_and_gradients_are_those_of_its_own_script(backbone, which) -> None:
    model = imported(backbone, overwritten_masks=which == "as_run").train()
    losses = model.losses(batch(4), model(batch(4)))
    assert list(losses) == ["global", "local", "alignment"]
    for name, value in losses.items():
        close(value.detach(), GOLDEN[f"loss.{name}"])
    sum(losses.values()).backward()
    learned = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    named = {f"adapter.{ours}": f"adaptor.{theirs}" for theirs, ours in LAYERS.items()} | {"prompts.prefix": "prompt"}
    assert set(learned) == set(named)
    for ours, theirs in named.items():
        expected, largest = GOLDEN[f"{which}.{theirs}"], GOLDEN[f"{which}.largest.{theirs}"]
        found = learned[ours][::16] if expected.ndim == 2 else learned[ours].view_as(expected)
        close(found / largest, expected / largest, 1e-4)


def test_the_masks_that_its_script_overwrites_shape_its_gradients_and_are_off_by_default(tiny_name) -> None:
    meant, as_run = GOLDEN["meant.prompt"], GOLDEN["as_run.prompt"]
    assert float((meant - as_run).abs().max() / meant.abs().max()) > 0.003  # 30 times what the test above allows
    assert not AFCLIP(CLIPBackbone(tiny_name, image_size=32, levels_at="block")).overwritten_masks


def test_masks_become_patches_as_in_its_own_script() -> None:
    found = patch_mask(GOLDEN["mask"][:4], (6, 6))
    torch.testing.assert_close(found, GOLDEN["patch_mask"], rtol=0, atol=0)
    assert found.unique().tolist() == [0, 0.5, 1]


@torch.no_grad()
def test_with_reference_images_map_and_score_are_those_of_its_few_shot_code(backbone, tmp_path) -> None:
    references(tmp_path)
    model = imported(backbone, sigma=0.0, memory=PatchMemory(str(tmp_path)))
    model.remember()
    scores = model(batch())
    close(1.1 * scores.anomaly_map, GOLDEN["few.map"])
    close(1.1 * scores.image_score, GOLDEN["few.score"])
    assert float(scores.anomaly_map.max()) <= 1
    both = model.train()(batch(4)).image_score, imported(backbone).train()(batch(4)).image_score
    torch.testing.assert_close(*both)  # it plays no part in training


@torch.no_grad()
def test_the_command_imports_its_two_files(backbone, tmp_path) -> None:
    scores = import_published(AFCLIP, PUBLISHED, backbone, tmp_path, "--model.sigma", "0")(batch())
    close(scores.anomaly_map, GOLDEN["map"])
    close(scores.image_score, GOLDEN["score"])


@torch.no_grad()
def test_a_batch_of_four_is_four_batches_of_one(backbone) -> None:
    model = imported(backbone)
    together = model(batch(4))
    for i in range(4):
        alone = model(batch(1, i))
        close(together.anomaly_map[i : i + 1], alone.anomaly_map)
        close(together.image_score[i : i + 1], alone.image_score)


def test_images_without_a_mask_count_in_the_image_loss_alone(backbone) -> None:
    model = imported(backbone).train()
    four = batch(4)
    told = model.losses(four, model(four))
    hidden = four._replace(has_mask=torch.tensor([True, True, True, False]))
    losses = model.losses(hidden, model(hidden))
    torch.testing.assert_close(losses["global"], told["global"])
    first = Batch(*(value[:3] for value in four[:-1]))
    expected = model.losses(first, model(first))
    torch.testing.assert_close(losses["local"], expected["local"])
    torch.testing.assert_close(losses["alignment"], expected["alignment"])
    none = four._replace(has_mask=torch.zeros(4, dtype=torch.bool))
    assert float(model.losses(none, model(none))["local"].detach()) == 0


def test_the_adaptor_as_its_authors_saved_it_is_refused_with_the_line_that_takes_its_tensors_out() -> None:
    def refused(files: dict, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            AFCLIP.from_published(files)

    prompt = {"mvtec_prompt.pt": PUBLISHED["mvtec_prompt.pt"]}
    line = (
        r"a pickled module.*python -c \"import torch; torch\.save\(torch\.load\('weight/mvtec_adaptor\.pt'.*state_dict"
    )
    refused(prompt | {"mvtec_adaptor.pt": nn.Linear(2, 2)}, line)
    refused(prompt, line)
    refused({}, "No file: expected two files of AF-CLIP")
    refused(PUBLISHED | {"visa_prompt.pt": torch.zeros(1, 12, 32)}, "expected two files of AF-CLIP")
    less = {k: v for k, v in ADAPTOR.items() if k != "attention.attn.to_v.weight"}
    refused(prompt | {"a.pt": less}, r"a\.pt lacks the weight 'attention\.attn\.to_v\.weight', of shape \(512, 64")
    other = ADAPTOR | {"attention.norm.bias": torch.zeros(3)}
    refused(prompt | {"a.pt": other}, r"a\.pt: 'attention\.norm\.bias' has shape \(3,\), expected \(64\)")
    refused({"p.pt": torch.zeros(12, 32), "a.pt": ADAPTOR}, r"p\.pt: 'prompt' has shape \(12, 32\)")


def test_a_backbone_or_window_that_cannot_be_is_refused_with_what_to_type(tiny_clip, backbone) -> None:
    with pytest.raises(ValueError, match=r"levels_at is 'joint'\. Use --model\.backbone\.levels_at block"):
        AFCLIP(tiny_clip)
    for windows in ((), (2,), (0,)):
        with pytest.raises(ValueError, match=r"expected odd numbers of patches\. Use --model\.windows '\[1, 3, 5\]'"):
            AFCLIP(backbone, windows=windows)


def test_the_config_has_its_published_settings_and_runs_from_fit_to_test(tmp_path, monkeypatch) -> None:
    given = CONFIG["model"]["init_args"]
    model = AFCLIP(EmbeddedBackbone(levels_at="block"))
    assert (model.temperature, model.sigma) == (given["temperature"], given["sigma"] * model.image_size / 518)
    assert (model.windows, model.lr) == (tuple(given["windows"]), given["lr"])
    assert given["prompts"]["init_args"] == {"context": model.prompts.context}
    assert load_class(NAMES["model"]["af_clip"]) is AFCLIP

    monkeypatch.chdir(tmp_path)
    init = {"images": 2, "num_workers": 0, "category": "ring", "batch_size": 4, "cache": True}
    given = given | {"backbone": {"class_path": "embedded", "init_args": {"image_size": 32, "levels_at": "block"}}}
    whole = CONFIG | {"data": {"class_path": "surfaces_auxiliary", "init_args": init}}
    whole["model"] = CONFIG["model"] | {"init_args": given}
    whole["trainer"] = CONFIG["trainer"] | {"max_epochs": 1}
    Path("rival.yaml").write_text(yaml.safe_dump(whole))
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))
    assert main(["fit", "--config", "rival.yaml"]) == 0
    assert list((tmp_path / "cache").rglob("*")), "levels with their class tokens can be kept"
    other = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]
    assert main(["test", "--config", "rival.yaml", *other]) == 0
    assert main(["test", "--config", "rival.yaml", *other, "--model.text_weight", "0.5"]) == 0  # acts at a test alone
    assert main(["test", "--config", "rival.yaml", *other, "--model.temperature", "0.5"]) == 2
    references(Path("good"))
    good = ["--model.memory", "patches", "--model.memory.reference", "good"]  # any test may take a memory
    assert main(["test", "--config", "rival.yaml", *other, *good]) == 0
    assert main(["test", "--config", "rival.yaml", *other, "--model.windows", "[1,3]"]) == 2


def test_a_checkpoint_of_it_gives_the_same_scores_in_a_new_model(backbone, make_trainer, make_data, tmp_path) -> None:
    model, trainer = AFCLIP(backbone), make_trainer()
    trainer.fit(model, make_data(category="ring"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    results = []
    for tested, given in ((model, None), (AFCLIP(backbone), tmp_path / "last.ckpt")):
        make_trainer().test(tested, make_data(category="ring"), ckpt_path=given, verbose=False)
        results.append(tested.results)
    assert results[0] == results[1]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {"prompts.prefix", *(f"adapter.{name}" for name in LAYERS.values())}
