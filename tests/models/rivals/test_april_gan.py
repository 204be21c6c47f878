"""APRIL-GAN against its own code, with the weights in its own file format."""

from pathlib import Path

import pytest
import torch
from golden_clip import batch_of, golden_backbone, relative
from safetensors.torch import load_file

from kanoclip.heads.losses import dice_loss, focal_loss
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.types import KanoclipError

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "april_gan.safetensors")
LAYERS = {key[10:]: value for key, value in GOLDEN.items() if key.startswith("published.")}
FILES = {"mvtec_pretrained.pth": {"trainable_linearlayer": LAYERS}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    options, weights = AprilGAN.from_published(FILES)
    given = options.pop("backbone")["init_args"]
    backbone = golden_backbone(tmp_path_factory.mktemp("clip"), GOLDEN, heads=2, text_heads=2, quick_gelu=True, **given)
    model = AprilGAN(backbone, **options)
    own = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    model.load_state_dict({**weights, **own})
    return model.eval()


@torch.no_grad()
def test_features_and_states_are_those_of_its_code(model) -> None:
    features = model.backbone(batch_of(GOLDEN).image[:2], model.attention)
    torch.testing.assert_close(features.patches, GOLDEN["blocks"][:, :, 1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(features.cls, GOLDEN["cls"][:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.prompts(["bottle"], model.backbone)[0], GOLDEN["states"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_maps_and_scores_of_imported_weights_are_those_of_its_code(model) -> None:
    scores = model(batch_of(GOLDEN))
    torch.testing.assert_close(4 * scores.anomaly_map, GOLDEN["map"], rtol=0, atol=1e-4)  # which sums the levels
    torch.testing.assert_close(scores.image_score, GOLDEN["score"], rtol=0, atol=1e-4)


def test_losses_and_their_gradients_are_those_of_its_code(model) -> None:
    batch = batch_of(GOLDEN)
    model.zero_grad()
    scores = model.train()(batch)
    torch.testing.assert_close(focal_loss(scores.level_maps, batch.mask), GOLDEN["focal"], rtol=0, atol=2e-4)
    dice = dice_loss(scores.level_maps, batch.mask, "image")
    torch.testing.assert_close(dice, GOLDEN["dice"], rtol=0, atol=1e-4)
    model.losses(batch, scores)["local"].backward()
    model.eval()
    for name, parameter in model.interaction.layers.named_parameters():
        assert relative(parameter.grad, GOLDEN[f"gradient.fc.{name}"]) < 2e-4, name  # its focal loss clamps by 1e-5


def published(**changed):
    return {"mvtec_pretrained.pth": {"trainable_linearlayer": {**LAYERS, **changed}}}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (published(**{"fc.2.bias": None}), r"mvtec_pretrained\.pth lacks the weight 'fc\.2\.bias', of shape \(16\)"),
        (
            published(**{"fc.3.weight": torch.zeros(16, 31)}),
            r"'fc\.3\.weight' has shape \(16, 31\), expected \(16, 32\)",
        ),
        (published(**{"fc.1.bias": torch.zeros(16).int()}), r"'fc\.1\.bias' is no tensor of numbers"),
        ({"a.pth": {"prompt_learner": {}}}, r"a\.pth has no 'trainable_linearlayer'"),
    ],
)
def test_a_file_that_is_not_as_published_is_refused_by_the_key(files, said) -> None:
    with pytest.raises(KanoclipError, match=said):
        AprilGAN.from_published(files)


def test_an_unknown_way_to_enlarge_is_refused(tiny_clip) -> None:
    with pytest.raises(
        KanoclipError, match=r"enlarge is 'maps', expected probability or logits\. Use --model\.enlarge"
    ):
        AprilGAN(tiny_clip, enlarge="maps")
