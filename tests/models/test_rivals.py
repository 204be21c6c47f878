from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import interpolate, normalize

from kanoclip.backbone.attention import QKV, VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.windows import encode_windows
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.heads.losses import dice_loss, focal_loss
from kanoclip.heads.prompts import EnsemblePrompts, LearnedPrompts
from kanoclip.heads.scoring import GlobalScore, MapMaxScore, harmonic_mean, window_map
from kanoclip.models.ablations import CLIP
from kanoclip.models.checkpoint import plain
from kanoclip.models.contents import CheckpointError
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.aa_clip import AACLIP
from kanoclip.models.rivals.adaclip import AdaCLIP
from kanoclip.models.rivals.af_clip import AFCLIP
from kanoclip.models.rivals.anomalyclip import AnomalyCLIP
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.models.rivals.bayes_pfl import BayesPFL
from kanoclip.models.rivals.mrad import MRADTF
from kanoclip.models.rivals.vcp_clip import VCPCLIP
from kanoclip.models.rivals.winclip import WinCLIP
from kanoclip.models.stages import read_stages
from kanoclip.outputs.identity import about_model, scoring
from kanoclip.registry import NAMES
from kanoclip.types import Batch
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[2]
RIVALS = {
    "winclip": WinCLIP,
    "april_gan": AprilGAN,
    "anomalyclip": AnomalyCLIP,
    "adaclip": AdaCLIP,
    "bayes_pfl": BayesPFL,
    "vcp_clip": VCPCLIP,
}


def config(name: str) -> dict:
    return yaml.safe_load((ROOT / "configs" / "rivals" / f"{name}.yaml").read_text(encoding="utf-8"))


def part(batch: Batch, i: int) -> Batch:
    return Batch(*(value[i : i + 1] for value in batch[:-1]))


def test_the_map_of_winclip_is_the_harmonic_mean_of_the_windows_over_each_patch(make_model, synthetic_batch) -> None:
    model = make_model(WinCLIP, windows=(2, 3))
    states = model.prompts(synthetic_batch.category, model.backbone)
    features = encode_windows(model.backbone, synthetic_batch.image, [2, 3, 4])
    two, three, image = ((f @ states.mT / 0.07).softmax(-1)[..., 1] for f in features)
    expected = torch.zeros(4, 4, 4)
    for row in range(4):
        for column in range(4):
            scales = []
            for size, scores in ((2, two), (3, three)):
                side = 5 - size
                over = [
                    1 / scores[:, i * side + j]
                    for i in range(side)
                    for j in range(side)
                    if i <= row < i + size and j <= column < j + size
                ]
                scales.append(sum(over) / len(over))  # one over the harmonic mean
            expected[:, row, column] = 3 / (scales[0] + scales[1] + 1 / image[:, 0])
    scores = model(synthetic_batch)
    heat = interpolate(expected[:, None], size=(32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(scores.anomaly_map, heat, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.image_score, image[:, 0], rtol=0, atol=1e-6)


def test_the_image_score_of_winclip_is_that_of_clip_with_the_same_prompts(make_model, synthetic_batch) -> None:
    plain = make_model(CLIP, prompts=EnsemblePrompts(wording="winclip"), score=GlobalScore()).eval()
    with torch.no_grad():
        expected = plain(synthetic_batch).image_score
    torch.testing.assert_close(make_model(WinCLIP)(synthetic_batch).image_score, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_autocast_does_not_round_the_windows_of_winclip(make_model, synthetic_batch) -> None:
    model = make_model(WinCLIP)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(synthetic_batch)
        states = model.prompts(synthetic_batch.category, model.backbone)
        image, two, three = encode_windows(model.backbone, synthetic_batch.image, [4, 2, 3])
    image, two, three = ((one @ states.mT / 0.07).softmax(-1)[..., 1] for one in (image, two, three))
    maps = [window_map(one, (4, 4), size) for one, size in ((image, 4), (two, 2), (three, 3))]
    heat = interpolate(harmonic_mean(torch.stack(maps))[:, None], size=(32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(scores.image_score, image[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.anomaly_map, heat, rtol=0, atol=1e-6)


@pytest.mark.parametrize("windows", [(), (0,), (2, 4)])
def test_a_window_that_is_not_smaller_than_the_grid_is_refused(make_model, windows) -> None:
    with pytest.raises(ValueError, match=r"the image has 4 x 4 patches: expected sides from 1 to 3\. Use --model.wind"):
        make_model(WinCLIP, windows=windows)


def test_winclip_learns_nothing_and_says_how_to_use_it(make_model) -> None:
    model = make_model(WinCLIP, score=MapMaxScore())
    assert not model.needs_training
    assert model.describe_components().keys() == {"backbone", "prompts", "score"}
    with pytest.raises(ValueError, match="winclip learns nothing, so it cannot be fitted"):
        model.configure_optimizers()


@pytest.mark.parametrize("kind", RIVALS.values())
def test_a_batch_of_four_is_four_batches_of_one(make_model, synthetic_batch, kind) -> None:
    model = make_model(kind).eval()
    with torch.no_grad():
        together = model(synthetic_batch)
        for i in range(4):
            alone = model(part(synthetic_batch, i))
            torch.testing.assert_close(together.anomaly_map[i : i + 1], alone.anomaly_map, rtol=0, atol=1e-5)
            torch.testing.assert_close(together.image_score[i : i + 1], alone.image_score, rtol=0, atol=1e-5)
    assert 0 <= float(together.anomaly_map.min()) <= float(together.anomaly_map.max()) <= 1


def test_april_gan_learns_its_linear_layers_alone_by_focal_and_one_dice(make_model, synthetic_batch) -> None:
    model = make_model(AprilGAN)
    scores = model.train()(synthetic_batch)
    losses = model.losses(synthetic_batch, scores)
    known, mask = synthetic_batch.has_mask, synthetic_batch.mask[synthetic_batch.has_mask]
    maps = scores.level_maps[:, known]
    expected = sum(focal_loss(m, mask) + dice_loss(m, mask, over="image") for m in maps[:, None])
    assert set(losses) == {"local"}
    torch.testing.assert_close(losses["local"], expected)
    losses["local"].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["interaction.weight"]
    assert model.interaction.weight.grad.abs().sum((1, 2)).gt(0).all()  # every level


def test_april_gan_starts_as_clip_at_a_logit_scale_of_100_and_is_never_blurred(make_model, synthetic_batch) -> None:
    model = make_model(AprilGAN)
    with torch.no_grad():
        rough, calm = model.train()(synthetic_batch), model.eval()(synthetic_batch)
        features = model.backbone(synthetic_batch.image, QKV())
        states = model.prompts(synthetic_batch.category, model.backbone)
        expected = (100 * features.cls[:, None] @ states.mT)[:, 0].softmax(-1)[:, 1]
    torch.testing.assert_close(rough.anomaly_map, calm.anomaly_map, rtol=0, atol=0)
    torch.testing.assert_close(calm.image_score, expected, rtol=0, atol=1e-5)


def test_april_gan_learns_nothing_from_a_batch_without_masks_and_goes_on(make_model, synthetic_batch) -> None:
    model = make_model(AprilGAN)
    without = synthetic_batch._replace(has_mask=torch.zeros(4, dtype=torch.bool))
    loss = model.losses(without, model(without))["local"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(model.interaction.weight.grad.abs().sum()) == 0


def test_anomalyclip_weighs_its_local_loss_by_four(make_model, synthetic_batch) -> None:
    own, one = make_model(AnomalyCLIP), make_model(AnomalyCLIP, gamma=1.0)
    first, second = (model.losses(synthetic_batch, model.train()(synthetic_batch)) for model in (own, one))
    assert set(first) == {"global", "local"}
    torch.testing.assert_close(first["local"], 4 * second["local"])
    torch.testing.assert_close(first["global"], second["global"])


def test_anomalyclip_learns_its_context_and_all_deep_tokens_alone(make_model, synthetic_batch) -> None:
    model = make_model(AnomalyCLIP)
    sum(model.losses(synthetic_batch, model.train()(synthetic_batch)).values()).backward()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(learned) == {"prompts.vectors", "prompts.deep"}
    assert learned["prompts.deep"].shape[:2] == (2, 4)  # this text encoder has 3 blocks
    assert all(p.grad.abs().sum(-1).gt(0).all() for p in learned.values())
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_config_of_anomalyclip_reads_images_as_its_own_code_does(make_clip, write_clip, tmp_path) -> None:
    golden = load_file(ROOT / "tests" / "golden" / "vv_attention.safetensors")  # 6 blocks, the last 3 with two paths
    vision = {"image_size": 64, "patch_size": 16, "width": 128, "layers": 6, "head_width": 64}
    text = {"context_length": 48}
    about, clip = make_clip(64, vision, text, quick_gelu=True)
    weights = {f"visual.{k.removeprefix('weights.')}": v for k, v in golden.items() if k.startswith("weights.")}
    name = write_clip(tmp_path / "golden", about, clip.state_dict() | weights, mean=(0, 0, 0), std=(1, 1, 1))

    given = config("anomalyclip")["model"]["init_args"]
    shipped = given["backbone"]["init_args"]
    assert (shipped["levels"], given["attention"]["init_args"]) == ([24], {"first": 6})  # of 24 blocks
    backbone = CLIPBackbone(**shipped | {"name": name, "pretrained": None, "image_size": 96, "levels": [6]})
    model = AnomalyCLIP(backbone, attention=VV(first=4))
    features = model.backbone(golden["x96"], model.attention)
    torch.testing.assert_close(features.patches[0], normalize(golden["x96.layer6"][:, 1:], dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.cls, normalize(golden["x96.global"], dim=-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RIVALS)
def test_the_numbers_of_a_rivals_config_are_its_models_own_defaults(name, make_model) -> None:
    model, given = make_model(RIVALS[name]), config(name)["model"]["init_args"]
    assert config(name)["model"]["class_path"] == name
    for key, value in given.items():
        if key == "stages":
            assert plain([asdict(stage) for stage in model.stages]) == plain([asdict(s) for s in read_stages(value)])
        elif not isinstance(value, (str, dict)):
            ours = model.weights[{"beta": "global", "gamma": "local"}[key]] if key in ("beta", "gamma") else None
            ours = getattr(model, key) if ours is None else ours
            factor = model.image_size / 518 if key == "sigma" else 1  # blurs are scaled to the image
            assert ours == (tuple(value) if key == "windows" else pytest.approx(value * factor)), key


@pytest.mark.parametrize("kind", [AprilGAN, AnomalyCLIP])
def test_a_checkpoint_of_a_rival_gives_the_same_scores_in_a_new_model_and_none_in_another(
    kind, make_model, make_trainer, make_data, tmp_path
) -> None:
    model, trainer = make_model(kind), make_trainer()
    trainer.fit(model, make_data(category="ring"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    results = []
    for tested, given in ((model, None), (make_model(kind, seed=9), tmp_path / "last.ckpt")):
        make_trainer().test(tested, make_data(Surfaces, category="pill"), ckpt_path=given, verbose=False)
        results.append(tested.results)
    assert results[0] == results[1]
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(content["state_dict"]) <= {"interaction.weight", "prompts.vectors", "prompts.deep"}
    for other in (make_model(KAnoCLIP), make_model(kind, prompts=LearnedPrompts())):
        with pytest.raises(CheckpointError, match=r"was fitted with model\.\w+ \w+, but \w+ is asked for"):
            make_trainer().test(other, make_data(Surfaces, category="pill"), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("name", RIVALS)
def test_a_rivals_config_runs_from_fit_to_test_on_the_embedded_backbone(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    whole = config(name)
    whole["data"] = {"class_path": "surfaces_auxiliary", "init_args": {"images": 2, "num_workers": 0}}
    whole["data"]["init_args"]["category"] = "ring"
    whole["model"]["init_args"]["backbone"] = {"class_path": "embedded", "init_args": {"image_size": 32}}
    whole["model"]["init_args"].pop("attention", None)  # blocks of a larger tower
    if "max_epochs" in whole["trainer"]:
        whole["trainer"]["max_epochs"] = len(whole["model"]["init_args"].get("stages", [0]))
    Path("rival.yaml").write_text(yaml.safe_dump(whole))
    fitted = main(["fit", "--config", "rival.yaml"])
    assert fitted == (2 if name == "winclip" else 0)  # which learns nothing
    other = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]
    assert main(["test", "--config", "rival.yaml", *other]) == 0
    capsys.readouterr()
    contradiction = ["--model.prompts", "learned"]
    assert main(["test", "--config", "rival.yaml", *other, *contradiction]) == 2
    told = capsys.readouterr().err
    assert ("not correspond to a subclass of EnsemblePrompts" if name == "winclip" else "was fitted with") in told


def test_a_rival_is_registered_under_its_name() -> None:
    for name, kind in RIVALS.items():
        module, _, cls = NAMES["model"][name].rpartition(".")
        assert getattr(import_module(module), cls) is kind


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AprilGAN, {"enlarge": "logits"}),
        (AACLIP, {"blur": 0.0}),
        (AdaCLIP, {"clusters": 2}),
        (AdaCLIP, {"share": 0.5}),
        (AFCLIP, {"text_weight": 0.5}),
        (MRADTF, {"alpha": 0.0}),
        (BayesPFL, {"top_k": 5}),
    ],
)
def test_what_only_the_score_of_a_rival_depends_on_is_part_of_its_identity(kind, options, tiny_name) -> None:
    backbone = CLIPBackbone(tiny_name, image_size=32, levels_at="block" if kind is AFCLIP else "joint")

    def identity(**given) -> dict:
        return scoring(about_model(kind(backbone, **given), None, "32-true") | {"pixels": None})

    assert identity(**options) != identity() == identity(lr=0.5)
