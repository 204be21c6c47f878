"""AnomalyCLIP against its own code, with the weights in its own file format."""

from pathlib import Path

import pytest
import torch
from golden_clip import batch_of, golden_backbone, import_published, relative
from safetensors.torch import load_file

from kanoclip.backbone.attention import VV
from kanoclip.heads.losses import dice_loss, focal_loss, global_loss
from kanoclip.heads.prompts import ObjectAgnosticPrompts
from kanoclip.models.rivals.anomalyclip import AnomalyCLIP
from kanoclip.types import KanoclipError

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "anomalyclip.safetensors")
FILES = {"epoch_15.pth": {"prompt_learner": {k[10:]: v for k, v in GOLDEN.items() if k.startswith("published.")}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    options, weights = AnomalyCLIP.from_published(FILES)
    given = options["backbone"]["init_args"] | {"levels": [4]}
    backbone = golden_backbone(tmp_path_factory.mktemp("clip"), GOLDEN, heads=1, text_heads=1, quick_gelu=True, **given)
    prompts = ObjectAgnosticPrompts(**options["prompts"]["init_args"])
    model = AnomalyCLIP(backbone, attention=VV(first=2), prompts=prompts)
    own = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    model.load_state_dict({**weights, **own})
    return model.eval()


@torch.no_grad()
def test_features_and_states_are_those_of_its_code(model) -> None:
    features = model.backbone(batch_of(GOLDEN).image, model.attention)
    torch.testing.assert_close(features.patches[0], GOLDEN["patches"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.cls, GOLDEN["cls"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.prompts(["x"], model.backbone)[0], GOLDEN["states"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_maps_and_scores_of_imported_weights_are_those_of_its_code(model) -> None:
    scores = model(batch_of(GOLDEN))
    torch.testing.assert_close(scores.level_maps[0], GOLDEN["rough"], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.anomaly_map, GOLDEN["map"], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.image_score, GOLDEN["score"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_command_imports_its_file(model, tmp_path) -> None:
    options = ["--model.attention", "vv", "--model.attention.first", "2"]
    scores = import_published(AnomalyCLIP, FILES, model.backbone, tmp_path, *options)(batch_of(GOLDEN))
    torch.testing.assert_close(scores.anomaly_map, GOLDEN["map"], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.image_score, GOLDEN["score"], rtol=0, atol=1e-4)


def test_losses_and_their_gradients_are_those_of_its_code(model) -> None:
    batch = batch_of(GOLDEN)
    model.zero_grad()
    scores = model.train()(batch)
    focal, dice = (loss(scores.level_maps, batch.mask) for loss in (focal_loss, both_dice))
    torch.testing.assert_close(focal, GOLDEN["focal"], rtol=0, atol=1e-4)
    torch.testing.assert_close(dice, GOLDEN["dice"], rtol=0, atol=1e-4)
    torch.testing.assert_close(global_loss(scores.logits, batch.label), GOLDEN["image_loss"], rtol=0, atol=1e-4)
    sum(model.losses(batch, scores).values()).backward()
    model.eval()
    vectors, deep = model.prompts.vectors.grad, model.prompts.deep.grad
    assert relative(vectors[0], GOLDEN["gradient.ctx_pos"][0, 0]) < 1e-4
    assert relative(vectors[1], GOLDEN["gradient.ctx_neg"][0, 0]) < 1e-4
    for i, one in enumerate(deep):
        assert relative(one, GOLDEN[f"gradient.compound_prompts_text.{i}"]) < 1e-4


def both_dice(maps, mask):
    return dice_loss(maps, mask, "image", normal=True)


def published(**changed):
    return {"epoch_15.pth": {"prompt_learner": {**FILES["epoch_15.pth"]["prompt_learner"], **changed}}}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (published(ctx_neg=None), r"epoch_15\.pth lacks the weight 'ctx_neg', of shape \(1, 1, 12, 64\)"),
        (published(ctx_neg=torch.zeros(1, 1, 11, 64)), r"'ctx_neg' has shape \(1, 1, 11, 64\), expected \(1, 1, 12"),
        (published(ctx_pos=torch.zeros(1).expand(1, 1, 12, 64)), r"'ctx_pos' is no tensor of numbers"),
        (published(**{"compound_prompts_text.1": torch.zeros(4, 63)}), r"'compound_prompts_text\.1' has shape \(4, 63"),
        ({"a.pth": {"trainable_linearlayer": {}}}, r"a\.pth has no 'prompt_learner', .* It has: trainable_linearlayer"),
        ({"a.pth": torch.zeros(2)}, r"a\.pth has no 'prompt_learner', .* It has: Tensor"),
        ({"a.pth": {}, "b.pth": {}}, r"There are 2 files, expected one, such as epoch_15\.pth"),
    ],
)
def test_a_file_that_is_not_as_published_is_refused_by_the_key(files, said) -> None:
    with pytest.raises(KanoclipError, match=said):
        AnomalyCLIP.from_published(files)
