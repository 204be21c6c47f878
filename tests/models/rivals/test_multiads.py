"""MultiADS against its own code, with the weights in its own file format; and what it names."""

from pathlib import Path

import pytest
import torch
import yaml
from golden_clip import batch_of, golden_backbone, relative
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.heads.defects import COMMON, DefectPrompts, kind_maps
from kanoclip.heads.losses import dice_loss, focal_loss
from kanoclip.models.checkpoint import settings
from kanoclip.models.rivals.multiads import MultiADS
from kanoclip.models.tiling import tiled
from kanoclip.outputs.names import read_csv
from kanoclip.types import KanoclipError
from kanoclip.verbs.table import main

CONFIG = Path(__file__).parents[3] / "configs" / "rivals" / "multiads.yaml"
GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "multiads.safetensors")
FILES = {"epoch_10.pth": {"trainable_linearlayer": {k[10:]: v for k, v in GOLDEN.items() if k[:10] == "published."}}}
KINDS = [
    "bent", "broken", "color", "combined", "contamination", "crack", "cut", "fabric", "faulty imprint", "glue", "hole",
    "missing", "poke", "rough", "scratch", "squeeze", "thread", "liquid", "misplaced", "damaged",
]  # fmt: skip
GOOD = ["{}", "flawless {}", "perfect {}", "unblemished {}"] + [
    f"{{}} {rest}" for rest in ("without flaw", "without defect", "without damage", "in ideal condition",
                                "with immaculate quality", "without any imperfections")
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    options, weights = MultiADS.from_published(FILES)
    given = options.pop("backbone")["init_args"]
    backbone = golden_backbone(tmp_path_factory.mktemp("clip"), GOLDEN, heads=2, text_heads=2, quick_gelu=True, **given)
    prompts = DefectPrompts(phrases=["{0} has a {1} defect"], normal=GOOD)
    model = MultiADS(backbone, prompts, auxiliary_defects={name: [] for name in KINDS}, dice_mask=5, **options)
    own = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    model.load_state_dict({**weights, **own})
    return model.eval()


def levels(model, batch, names=KINDS):
    features = model.features(batch)
    states = model.prompts.describe(batch.category, names, model.backbone)
    patches, states = model.interaction(features.patches, states)
    listed = torch.ones(states.shape[1:3], dtype=torch.bool)
    return [
        kind_maps(*pair, listed, features.grid, 48, 0.01, "logits", True) for pair in zip(patches, states, strict=True)
    ]


@torch.no_grad()
def test_texts_and_maps_of_each_kind_are_those_of_its_code(model) -> None:
    states = model.prompts.describe(["bottle"], KINDS, model.backbone)[0]
    torch.testing.assert_close(states, GOLDEN["states"], rtol=0, atol=1e-5)
    torch.testing.assert_close(levels(model, batch_of(GOLDEN))[0][0], GOLDEN["kinds"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_maps_and_scores_of_imported_weights_are_those_of_its_code(model) -> None:
    scores = model(batch_of(GOLDEN))
    torch.testing.assert_close(4 * scores.anomaly_map, GOLDEN["map"], rtol=0, atol=1e-4)  # which sums the levels
    torch.testing.assert_close(4 * scores.image_score, GOLDEN["highest"], rtol=0, atol=1e-4)
    features = model.features(batch_of(GOLDEN))
    logits = features.cls @ GOLDEN["states"].mT / 0.01
    torch.testing.assert_close(logits.softmax(-1)[:, 0], GOLDEN["good"], rtol=1e-3, atol=0)


@torch.no_grad()
def test_among_the_kinds_that_a_user_names_pixels_are_as_in_its_code(model) -> None:
    batch, names = batch_of(GOLDEN), ["broken", "contamination"]
    listed = MultiADS(model.backbone, model.prompts, {"bottle": names}, enlarge="logits")
    listed.interaction.load_state_dict(model.interaction.state_dict())
    few = sum(levels(model, batch, names))  # (B, 3, H, W)
    torch.testing.assert_close(few[:2], GOLDEN["few"], rtol=0, atol=1e-4)
    scores = listed.eval()(batch)
    torch.testing.assert_close(4 * scores.anomaly_map[:2], GOLDEN["few"][:, 1:].sum(1), rtol=0, atol=1e-4)
    top = scores.anomaly_map.flatten(1).topk(3).indices
    votes = few[:, 1:].flatten(2)[torch.arange(10)[:, None], :, top].sum(1)  # (B, 2)
    torch.testing.assert_close(scores.defects, votes / votes.sum(1, keepdim=True), rtol=0, atol=1e-5)


def test_losses_and_their_gradients_are_those_of_its_code(model) -> None:
    names = ["good", *KINDS]
    batch = batch_of(GOLDEN)._replace(defect=[names[int(i)] for i in GOLDEN["kind"]])
    model.zero_grad()
    scores = model.train()(batch)
    torch.testing.assert_close(scores.terms["kinds"], GOLDEN["focal"], rtol=1e-4, atol=0)
    dice = dice_loss(scores.level_maps, 5 * batch.mask, "image")
    torch.testing.assert_close(dice, GOLDEN["dice"], rtol=0, atol=1e-4)
    losses = model.losses(batch, scores)
    total = sum(losses.values())
    torch.testing.assert_close(total, (GOLDEN["focal"] + GOLDEN["dice"]) / 8, rtol=1e-4, atol=0)
    total.backward()
    model.eval()
    for name, parameter in model.interaction.layers.named_parameters():
        assert relative(parameter.grad, GOLDEN[f"gradient.fc.{name}"]) < 1e-4, name


def test_a_file_that_is_not_as_published_is_refused_by_the_key() -> None:
    layers = {**FILES["epoch_10.pth"]["trainable_linearlayer"], "fc.2.bias": None}
    with pytest.raises(KanoclipError, match=r"epoch_10\.pth lacks the weight 'fc\.2\.bias', of shape \(16\)"):
        MultiADS.from_published({"epoch_10.pth": {"trainable_linearlayer": layers}})


def test_an_image_of_unknown_kind_is_fitted_as_one_of_any(make_model, synthetic_batch) -> None:
    model, unknown = make_model(MultiADS).train(), synthetic_batch._replace(defect=["good", "", "good", "strange"])
    scores = model(unknown)
    seen = synthetic_batch.has_mask
    any_kind = focal_loss(scores.level_maps[:, seen], synthetic_batch.mask[seen], smooth=1e-5 / len(COMMON))
    torch.testing.assert_close(scores.terms["kinds"], any_kind)
    assert model(synthetic_batch).terms["kinds"] > any_kind  # a hole is less likely than any defect


@torch.no_grad()
def test_each_category_has_its_own_kinds_and_others_have_probability_0(make_model, synthetic_batch) -> None:
    model = make_model(MultiADS, defects={"nut": ["scratch", "hole"], "metal_plate": ["dent"]}).eval()
    scores = model(synthetic_batch)
    assert model.defect_names == ["scratch", "hole", "dent"]
    assert (scores.defects[:2, 2] == 0).all()
    assert (scores.defects[2:, :2] == 0).all()
    torch.testing.assert_close(scores.defects.sum(1), torch.ones(4))
    alone = make_model(MultiADS, defects=["scratch", "hole"]).eval()
    torch.testing.assert_close(alone(synthetic_batch).anomaly_map[:2], scores.anomaly_map[:2], rtol=0, atol=1e-6)
    with pytest.raises(KanoclipError, match=r"no kinds for 'pill', but for metal_plate, nut\. Add its own"):
        model(synthetic_batch._replace(category=["nut", "nut", "pill", "pill"]))


@torch.no_grad()
def test_a_batch_of_four_is_four_batches_of_one_in_what_it_names_too(make_model, synthetic_batch) -> None:
    model = make_model(MultiADS, defects={"nut": ["scratch", "hole"], "metal_plate": ["dent", "hole"]}).eval()
    together = model(synthetic_batch).defects
    for i in range(4):
        alone = model(type(synthetic_batch)(*(value[i : i + 1] for value in synthetic_batch[:-1])))
        torch.testing.assert_close(together[i : i + 1], alone.defects, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_labels_of_what_is_tested_are_never_read(make_model, synthetic_batch) -> None:
    model = make_model(MultiADS).eval()
    told, silent = model(synthetic_batch), model(synthetic_batch._replace(defect=["", "", "", ""]))
    assert torch.equal(told.defects, silent.defects)
    assert torch.equal(told.anomaly_map, silent.anomaly_map)


@torch.no_grad()
def test_the_kind_of_a_picture_in_tiles_is_that_of_its_highest_tile(make_model, synthetic_batch) -> None:
    model = make_model(MultiADS).eval()
    wide = torch.cat([synthetic_batch.image[:2], synthetic_batch.image[:2].flip(0)], 3)
    batch = synthetic_batch._replace(image=wide, mask=torch.zeros(2, 32, 64), **{
        name: getattr(synthetic_batch, name)[:2] for name in ("label", "has_mask", "size", "category", "defect", "path")
    })  # fmt: skip
    for at_once in (1, 8):
        found = tiled(model, batch, 32, at_once)
        tiles = [model(batch._replace(image=wide[..., left : left + 32])) for left in (0, 16, 32)]
        highest = torch.stack([one.image_score for one in tiles]).argmax(0)
        expected = torch.stack([one.defects for one in tiles])[highest, torch.arange(2)]
        torch.testing.assert_close(found.defects, expected, rtol=0, atol=1e-5)


def test_a_fit_learns_the_labels_of_its_data_and_the_checkpoint_has_them(
    make_model, make_trainer, make_data, tmp_path
) -> None:
    model, trainer = make_model(MultiADS), make_trainer()
    assert model.defect_names == list(COMMON)  # nobody has said any
    data = make_data(category="ring", images=20)
    trainer.fit(model, data)
    labels = sorted({one.defect for one in data.part("fit")} - {"good"})
    assert model.defect_names == labels
    assert len(labels) > 2
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["auxiliary_defects"] == {label: [label] for label in labels}
    assert set(content["state_dict"]) == {"interaction.weight"}
    again = make_model(MultiADS, seed=9)
    make_trainer().test(again, make_data(Surfaces, category="pill"), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert again.defect_names == labels
    loaded = MultiADS.load_from_checkpoint(tmp_path / "last.ckpt", backbone=model.backbone, defects=["hole", "burr"])
    assert loaded.defect_names == ["hole", "burr"]  # a test may say what it looks for


def test_labels_may_be_joined_into_kinds_and_one_that_is_not_is_told(make_model, make_trainer, make_data) -> None:
    data = make_data(category="ring", images=20)
    labels = sorted({one.defect for one in data.part("fit")} - {"good"})
    first, *others = labels
    joined = make_model(MultiADS, auxiliary_defects={"odd": others, first: []})
    make_trainer().fit(joined, data)
    assert joined.defect_names == ["odd", first]
    with pytest.raises(KanoclipError, match=rf"does not say what kind of defect {first} of surfaces_auxiliary.* is"):
        make_trainer().fit(make_model(MultiADS, auxiliary_defects={"odd": others}), data)


def test_data_that_name_no_defects_cannot_be_fitted(make_model, make_trainer, synthetic_batch) -> None:
    class Nameless(LightningDataModule):
        def train_dataloader(self):
            return DataLoader([synthetic_batch], batch_size=None)

    with pytest.raises(KanoclipError, match=r"unnamed data does not say which kinds of defect its images have"):
        make_trainer().fit(make_model(MultiADS), Nameless())


@pytest.mark.parametrize("bad", [[], ["hole", "hole"], [" "], {"nut": []}, ["missing_cap", "missing cap"]])
def test_names_that_are_none_are_refused(make_model, bad) -> None:
    with pytest.raises(KanoclipError, match=r"defects is \[.*expected different names of kinds of defect"):
        make_model(MultiADS, defects=bad)


def test_what_may_be_named_is_part_of_what_scores_depend_on_and_free_at_test(make_model) -> None:
    listed, each = make_model(MultiADS, defects=["hole"]), make_model(MultiADS, defects={"nut": ["hole"]})
    assert settings(listed, free=True)["defects"] == settings(each, free=True)["defects.nut"] == ["hole"]
    assert not any(name.startswith("defects") for one in (listed, each) for name in settings(one))


def test_the_config_runs_from_fit_to_a_prediction_with_kinds_of_the_users_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    few = {"images": 4, "num_workers": 0, "category": "ring"}
    whole["data"] = {"class_path": "surfaces_auxiliary", "init_args": few}
    options = whole["model"]["init_args"]
    assert (options["dice_mask"], options["terms"], options["temperature"]) == (5, {"kinds": 1}, 0.01)
    options["backbone"] = {"class_path": "embedded", "init_args": {"image_size": 32, "levels_at": "block"}}
    whole["trainer"]["max_epochs"] = 1
    Path("multiads.yaml").write_text(yaml.safe_dump(whole))
    assert main(["fit", "--config", "multiads.yaml"]) == 0
    other = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]
    where = ["--trainer.default_root_dir", "runs/rivals/multiads", "--output", "found"]
    kinds = ["--model.defects", "{pill: [burr, missing cap]}"]
    assert main(["test", "--model", "multiads", *other, *where]) == 0
    tested = read_csv("found/images.csv")
    fitted = {one.defect for one in SurfacesAuxiliary(**few).part("fit")} - {"good"}
    assert {row["found_defect"] for row in tested} <= fitted
    assert main(["predict", "--model", "multiads", *other, *where[:2], "--output", "named", *kinds]) == 0
    named = read_csv("named/predictions.csv")
    assert {row["defect"] for row in named} <= {"burr", "missing cap"}
    assert all(0.5 <= float(row["defect_probability"]) <= 1 for row in named)
