"""FiLo against what its own code computed with small random weights, see benchmarks/parity/filo.py."""

from pathlib import Path

import pytest
import torch
import yaml
from golden_clip import batch_of, golden_backbone, import_published, relative
from safetensors.torch import load_file

from kanoclip.heads.fg_des import FGDes
from kanoclip.models.rivals.filo import FiLo
from kanoclip.types import Batch, KanoclipError
from kanoclip.verbs.table import main

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "filo.safetensors")
DESCRIBED = {"bottle": ["a cracked rim", "a dark stain"], "metal_nut": ["scratches"]}
SHAPES = ("11", "33", "55", "77", "15", "51")
NAMED = {  # ours -> theirs
    **{
        f"prompts.shift.{state}.{number}": f"{which}_prompt_learner.meta_net.linear{layer}"
        for state, which in enumerate(("normal", "abnormal"))
        for number, layer in ((0, 1), (2, 2))
    },
    **{f"projection.layers.{level}": f"decoder_linear.fc.{level}" for level in range(4)},
    **{
        f"interaction.convolutions.{level}.{i}": f"decoder_cov.fc_{shape}.{level}"
        for level in range(3)
        for i, shape in enumerate(SHAPES)
    },
    "adapter.down": "adapter.fc.0",
    "adapter.up": "adapter.fc.2",
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filo")
    return golden_backbone(folder, GOLDEN, 2, 2, quick_gelu=False, levels=[6, 7, 8, 9], levels_at="block")


def published() -> dict:
    """A checkpoint as its own script saves it, with the frozen CLIP."""
    heads = {key.removeprefix("published."): one for key, one in GOLDEN.items() if key.startswith("published.")}
    return {"filo_train_on_visa.pth": {"filo": {**heads, "clip_model.logit_scale": torch.ones(())}}}


@pytest.fixture
def model(backbone) -> FiLo:
    options, heads = FiLo.from_published(published())
    assert options.pop("backbone")["init_args"] == {"activation": "gelu", "levels_at": "block"}
    prompts = FGDes(**options.pop("prompts")["init_args"], descriptions=DESCRIBED)
    assert options.pop("adapter")["init_args"] == {"reduction": 2}
    made = FiLo(backbone, prompts=prompts, **options)
    missing, unexpected = made.load_state_dict(heads, strict=False)
    assert not unexpected
    assert all(key.startswith("backbone.") for key in missing)
    return made.eval()


def batch(first: int = 0, last: int = 10) -> Batch:
    whole = batch_of(GOLDEN)._replace(category=["bottle", "metal_nut"] * 5)
    return Batch(*(value[first:last] for value in whole[:-1]))


def close(ours: torch.Tensor, theirs: torch.Tensor, within: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=within)


@torch.no_grad()
def test_an_imported_checkpoint_scores_ten_images_as_its_own_code(model) -> None:
    scores = model(batch())
    close(scores.level_maps[:, :2, ::4, ::4].transpose(0, 1), GOLDEN["test.levels"])
    close(scores.anomaly_map[:, ::4, ::4], GOLDEN["test.map"])
    close(scores.image_score, GOLDEN["test.score"])
    for slip in ("joint_text_norm", "overwritten_levels"):  # each shows
        setattr(model, slip, False)
        assert float((model(batch()).anomaly_map[:, ::4, ::4] - GOLDEN["test.map"]).abs().max()) > 0.01
        setattr(model, slip, True)


def test_losses_and_gradients_of_both_stages_are_those_of_its_code(model) -> None:
    model.train()
    for stage, term in enumerate(("local", "global")):
        model.running_stage = stage
        losses = model.losses(batch(0, 2), model(batch(0, 2)))
        assert list(losses) == [term]
        torch.testing.assert_close(losses[term].detach(), GOLDEN[f"fit.{term}"], rtol=3e-5, atol=0)
        losses[term].backward()
    for state, which in enumerate(("normal", "abnormal")):
        assert relative(model.prompts.vectors.grad[state], GOLDEN[f"gradient.{which}_prompt_learner.ctx"]) < 1e-4
    compared = 2
    for ours, theirs in NAMED.items():
        for kind, weight in model.get_submodule(ours).named_parameters():
            if f"gradient.{theirs}.{kind}" in GOLDEN:
                assert relative(weight.grad, GOLDEN[f"gradient.{theirs}.{kind}"]) < 1e-4, ours
                compared += 1
    assert compared == sum(key.startswith("gradient.") for key in GOLDEN)


@torch.no_grad()
def test_the_command_imports_its_file(backbone, tmp_path, model) -> None:
    made = import_published(FiLo, published(), backbone, tmp_path)
    assert made.joint_text_norm
    assert made.overwritten_levels
    made.prompts.descriptions = DESCRIBED  # which are no weights
    close(made(batch()).image_score, GOLDEN["test.score"])


@torch.no_grad()
def test_a_batch_of_ten_is_ten_batches_of_one(model) -> None:
    together = model(batch())
    for i in (0, 1, 9):
        alone = model(batch(i, i + 1))
        close(together.anomaly_map[i : i + 1], alone.anomaly_map, 1e-5)
        close(together.image_score[i : i + 1], alone.image_score, 1e-5)


def test_texts_say_what_may_be_wrong_and_where_and_an_unknown_category_has_the_common_ones() -> None:
    prompts = FGDes(descriptions=DESCRIBED, names={"pcb1": "pcb"}, positions=["top", "left"])
    normal, anomalous = prompts.texts("bottle")
    assert normal[:2] == ["bottle.", "flawless bottle."]
    assert anomalous[:2] == [
        "abnormal bottle with a cracked rim at top.",
        "abnormal bottle with a cracked rim at left.",
    ]
    assert len(anomalous) == (2 + 5) * 2
    assert prompts.texts("pcb1")[1][0] == "damaged pcb at top."
    assert FGDes(positions=[]).texts("pcb1")[1] == [
        f"{one}." for one in ("damaged pcb1", "pcb1 with flaw", "pcb1 with defect", "pcb1 with damage", "broken pcb1")
    ]


def test_the_config_runs_from_fit_to_test_on_the_embedded_backbone(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parents[3] / "configs" / "rivals" / "filo.yaml"
    whole = yaml.safe_load(config.read_text(encoding="utf-8"))
    options = {"images": 2, "num_workers": 0, "category": "ring"}
    whole["data"] = {"class_path": "surfaces_auxiliary", "init_args": options}
    given = whole["model"]["init_args"]
    given["backbone"] = {"class_path": "embedded", "init_args": {"image_size": 32, "levels_at": "block"}}
    given["interaction"]["init_args"]["levels"] = 1
    whole["trainer"]["max_epochs"] = 2
    Path("rival.yaml").write_text(yaml.safe_dump(whole))
    assert main(["fit", "--config", "rival.yaml"]) == 0
    other = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]
    assert main(["test", "--config", "rival.yaml", *other]) == 0


def test_what_is_wrong_with_its_file_is_told() -> None:
    files = published()
    files["filo_train_on_visa.pth"]["filo"].pop("decoder_cov.fc_15.1.weight")
    with pytest.raises(
        KanoclipError, match=r"lacks the weight 'decoder_cov\.fc_15\.1\.weight', of shape \(32, 32, 1, 5\)"
    ):
        FiLo.from_published(files)
