from pathlib import Path

import pytest
import torch
from golden_clip import import_published
from safetensors.torch import load_file

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.deep_tokens import DeepTokens
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.heads import hybrid
from kanoclip.heads.losses import dice_loss
from kanoclip.models.rivals.adaclip import AdaCLIP
from kanoclip.types import Batch, KanoclipError

ROOT = Path(__file__).parents[3]
NAMES = ["bottle", "metal-nut"]


@pytest.fixture(scope="module")
def golden() -> dict:
    return load_file(ROOT / "tests" / "golden" / "adaclip.safetensors")


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory) -> dict:
    """What the authors' code saves, read as the import reads it."""
    weights = {key.removeprefix("published."): value.float() for key, value in golden.items() if "published" in key}
    file = tmp_path_factory.mktemp("published") / "pretrained_all.pth"
    torch.save(weights, file)
    return {file.name: torch.load(file, weights_only=True)}


@pytest.fixture(scope="module")
def clip(golden, make_clip, write_clip, tmp_path_factory) -> str:
    """The towers of the golden file, with OpenAI's vocabulary, which open_clip takes where a folder has none."""
    weights = {key.removeprefix("clip."): value.float() for key, value in golden.items() if key.startswith("clip.")}
    about, _ = make_clip(24, {"layers": 4}, {"context_length": 77, "vocab_size": 49408, "layers": 5})
    table = torch.zeros(49408, 24)
    table[golden["tokens"]] = weights["token_embedding.weight"]
    folder = tmp_path_factory.mktemp("adaclip") / "clip"
    name = write_clip(folder, about, weights | {"token_embedding.weight": table}, (0, 0, 0), (1, 1, 1))
    (folder / "bpe.txt.gz").unlink()
    return name


@pytest.fixture
def make(clip, published):
    def make(round_tokens: bool = False, **options) -> AdaCLIP:
        given, weights = AdaCLIP.from_published(published)
        tokens = given["tuning"]["init_args"] | {"round_tokens": round_tokens}
        backbone = CLIPBackbone(
            clip, None, 48, [1, 2, 3, 4], "bicubic_no_antialias", levels_at="block", activation="gelu"
        )
        options = {"clusters": 2, "dice": "rows"} | options
        model = AdaCLIP(backbone, tuning=DeepTokens(**tokens), **options)
        frozen = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
        model.load_state_dict(weights | frozen)
        return model.eval()

    return make


@pytest.fixture
def clusters_as_theirs(golden, monkeypatch):
    """Give the patches the clusters that their k-means found, which draws from numbers of its own."""

    def follow(labels="labels"):
        def cluster(points, clusters):
            distance = torch.cdist(points[None], golden["points"].float())  # (images, mine, theirs)
            image = int(distance.amin(2).sum(1).argmin())
            assert distance[image].amin(1).max() < 5e-3  # the same patches were chosen
            return golden[labels][image][distance[image].argmin(1)]

        monkeypatch.setattr(hybrid, "cluster", cluster)

    return follow


def batch_of(golden, *numbers: int) -> Batch:
    index = torch.tensor(numbers)
    count = len(numbers)
    return Batch(
        golden["images"][index] / 255, golden["masks"][index], index % 2, torch.ones(count, dtype=torch.bool),
        torch.full((count, 2), 48), [NAMES[i % 2] for i in numbers], [""] * count, [f"{i}.png" for i in numbers],
    )  # fmt: skip


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


@torch.no_grad()
def test_features_are_those_of_its_own_code(make, golden) -> None:
    model, batch = make(), batch_of(golden, 0, 1)
    batch = model.with_plain(batch)
    features = model.features(batch)
    states = model.states(batch, features)
    patches, _ = model.interaction(features.patches, states)
    cls = model.adapter(model.backbone.unscaled(features), patches, features.grid)
    assert far(states, golden["states"]) < 2e-6
    assert far(patches, golden["patches"]) < 2e-6
    assert far(cls, golden["cls"]) < 2e-6


@torch.no_grad()
def test_maps_and_scores_are_those_of_its_own_code(make, golden, clusters_as_theirs) -> None:
    clusters_as_theirs()
    scores = make(sigma=0)(batch_of(golden, *range(10)))
    assert far(scores.anomaly_map, golden["maps"]) < 1e-5
    assert far(scores.image_score, golden["scores"]) < 1e-5
    blurred = make(sigma=4 * 518 / 48)(batch_of(golden, 0, 1)).anomaly_map  # theirs are pixels of any image
    assert far(blurred, golden["blurred"]) < 1e-5


@torch.no_grad()
def test_published_weights_give_the_scores_of_its_own_code_which_rounds_tokens(make, golden, clusters_as_theirs):
    clusters_as_theirs("half.labels")
    scores = make(True, sigma=0)(batch_of(golden, *range(10)))
    assert far(scores.anomaly_map[:2], golden["half.maps"]) < 1e-5
    assert far(scores.image_score, golden["half.scores"]) < 1e-5
    assert far(scores.image_score, golden["scores"]) > 1e-5


@torch.no_grad()
def test_the_command_imports_its_file(clip, published, golden, clusters_as_theirs, tmp_path) -> None:
    clusters_as_theirs("half.labels")
    backbone = CLIPBackbone(clip, None, 48, [1, 2, 3, 4], "bicubic_no_antialias", levels_at="block", activation="gelu")
    options = ["--model.clusters", "2", "--model.sigma", "0"]
    scores = import_published(AdaCLIP, published, backbone, tmp_path, *options)(batch_of(golden, *range(10)))
    assert far(scores.anomaly_map[:2], golden["half.maps"]) < 1e-5
    assert far(scores.image_score, golden["half.scores"]) < 1e-5


def test_loss_and_gradients_are_those_of_its_own_code(make, golden, clusters_as_theirs) -> None:
    clusters_as_theirs()
    model, batch = make().train(), batch_of(golden, 1)
    losses = model.losses(batch, model(batch))
    for name in ("global", "local"):
        assert far(losses[name], golden[f"loss.{name}"]) < 1e-4
    sum(losses.values()).backward()
    theirs = {key.removeprefix("gradient."): value for key, value in golden.items() if key.startswith("gradient.")}
    unused = "clip_model.text_prompter.static_prompts.0"  # nothing reads it: it has no gradient
    whole = theirs | {unused: torch.zeros_like(golden[f"published.{unused}"])}
    _, expected = AdaCLIP.from_published({"gradients": whole})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            relative = far(parameter.grad, expected[name]) / float(expected[name].abs().max())
            assert relative < 1e-4, name
    assert len(expected) == sum(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_a_score_does_not_depend_on_the_images_beside_or_before_it(make, golden) -> None:
    model = make()
    together = model(batch_of(golden, *range(10)))
    backwards = [model(batch_of(golden, i)) for i in reversed(range(10))][::-1]
    assert far(together.image_score, torch.cat([one.image_score for one in backwards])) < 1e-5
    assert far(together.anomaly_map, torch.cat([one.anomaly_map for one in backwards])) < 1e-5


@torch.no_grad()
def test_without_clusters_the_score_is_that_of_the_projected_global_feature(make, golden) -> None:
    found = make(clusters=0)(batch_of(golden, 0, 1)).image_score
    expected = (100 * golden["cls"][:, None] @ golden["states"].mT)[:, 0].softmax(-1)[:, 1]
    assert far(found, expected) < 1e-5


def test_it_is_optimised_as_published(make) -> None:
    model = make()
    group = model.configure_optimizers().param_groups[0]
    assert isinstance(model.configure_optimizers(), torch.optim.AdamW)
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.5, 0.999), 0.01)
    learned = [one for one in model.parameters() if one.requires_grad]
    assert [id(one) for one in group["params"]] == [id(one) for one in learned]


def test_images_without_a_mask_have_a_global_loss_alone(make, golden) -> None:
    model, batch = make().train(), batch_of(golden, 0, 1)
    without = batch._replace(has_mask=torch.zeros(2, dtype=torch.bool))
    losses = model.losses(without, model(without))
    assert float(losses["local"].detach()) == 0
    assert float(losses["global"].detach()) > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda kept: kept.pop("clip_model.cls_token_layer.head.0.bias"),
            r"lacks the weight '.*cls_token_layer.head.0.bias'",
        ),
        (
            lambda kept: kept.update({"clip_model.visual_prompter.static_prompts.1": torch.zeros(5, 8)}),
            r"static_prompts.1' has shape \(5, 8\), expected \(5, 32\)",
        ),
        (
            lambda kept: kept.pop("clip_model.dynamic_text_prompt_generator.head.4.weight"),
            r"lacks the weight .*head.4.weight', of shape \(24, 24\)",
        ),
        (
            lambda kept: kept.clear(),
            r"static_prompts.0', of shape \(any, any\). Give the file as its authors",
        ),
    ],
)
def test_a_file_that_is_not_the_published_one_is_refused_with_what_is_wrong(change, told, published) -> None:
    kept = dict(published["pretrained_all.pth"])
    change(kept)
    with pytest.raises(KanoclipError, match=rf"pretrained_all.pth.*{told}"):
        AdaCLIP.from_published({"pretrained_all.pth": kept})
    with pytest.raises(KanoclipError, match=r"pretrained_all.pth lacks the weight .* It has: list"):
        AdaCLIP.from_published({"pretrained_all.pth": [1, 2]})
    with pytest.raises(KanoclipError, match=r"There are 2 files, expected one, such as pretrained_mvtec_colondb.pth"):
        AdaCLIP.from_published({"a.pth": kept, "b.pth": kept})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dice": "row"}, r"dice is 'row', expected batch, image or rows. Use --model.dice image"),
        ({"clusters": -1}, r"clusters is -1, expected 0 or more. Use --model.clusters 20, or 0 for none"),
        ({"share": 1.5}, r"share is 1.5, expected a share in \[0, 1\]. Use --model.share 0.2"),
        ({"sigma": -1.0}, r"sigma is -1.0, expected 0 to 518 pixels"),
        ({"temperature": 0.0}, r"temperature is 0.0, expected a number above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, told, tiny_clip) -> None:
    with pytest.raises(KanoclipError, match=told):
        AdaCLIP(tiny_clip, **options)


def test_dice_over_rows_is_the_mean_over_each_row_of_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, mask = torch.rand(2, 3, 4, 5, generator=generator), torch.rand(3, 4, 5, generator=generator).round()
    rows = dice_loss(maps.reshape(2, 12, 1, 5), mask.reshape(12, 1, 5), over="image", normal=True)
    torch.testing.assert_close(dice_loss(maps, mask, over="rows", normal=True), rows)


def test_a_fit_is_kept_in_a_checkpoint_without_the_towers(tiny_clip, make_trainer, make_data, tmp_path, caplog) -> None:
    torch.manual_seed(0)
    model, trainer = AdaCLIP(tiny_clip), make_trainer()
    before = {name: one.clone() for name, one in model.named_parameters()}
    trainer.fit(model, make_data(category="ring", cache=True))
    assert "cache is true, but AdaCLIP with DeepTokens in its image tower keeps no frozen features" in caplog.text
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    after = dict(model.named_parameters())
    assert all(torch.equal(one, after[name]) != after[name].requires_grad for name, one in before.items())
    results = []
    for tested, given in ((model, None), (AdaCLIP(tiny_clip), tmp_path / "last.ckpt")):
        make_trainer().test(tested, make_data(Surfaces, category="pill"), ckpt_path=given, verbose=False)
        results.append(tested.results)
    assert results[0] == results[1]
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in kept} == {"tuning", "interaction", "adapter"}
