"""FAPrompt against what its own code computed with small random weights, see benchmarks/parity/faprompt.py."""

from pathlib import Path

import pytest
import torch
import yaml
from golden_clip import import_published, small_backbone, some_of
from safetensors.torch import load_file
from torch.nn.functional import normalize

from kanoclip.backbone.attention import VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.heads.fine_grained import FineGrainedPrompts
from kanoclip.models.rivals.faprompt import FAPrompt
from kanoclip.registry import NAMES, load_class
from kanoclip.types import Batch
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[3]
GOLDEN = load_file(ROOT / "tests" / "golden" / "faprompt.safetensors")
CONFIG = yaml.safe_load((ROOT / "configs" / "rivals" / "faprompt.yaml").read_text(encoding="utf-8"))
PUBLISHED = {
    name.removeprefix("learner."): value.float() for name, value in GOLDEN.items() if name.startswith("learner.")
}
NAMED = {  # ours -> theirs, and how theirs is read
    "prompts.shared": ("ctx_pos", lambda w: w[0, 0]),
    "prompts.own": ("ctx_neg", lambda w: w[0]),
    "prompts.to_prior.0.weight": ("patch_meta_net.linear1.weight", lambda w: w),
    "prompts.to_prior.0.bias": ("patch_meta_net.linear1.bias", lambda w: w),
    "prompts.to_prior.2.weight": ("patch_meta_net.linear2.weight", lambda w: w),
    "prompts.to_prior.2.bias": ("patch_meta_net.linear2.bias", lambda w: w),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> CLIPBackbone:
    given = CONFIG["model"]["init_args"]["backbone"]["init_args"]
    return small_backbone(tmp_path_factory.mktemp("faprompt"), GOLDEN, **given | {"levels": [3]})


def imported(backbone: CLIPBackbone, which: str = "first", **options) -> FAPrompt:
    """Our model with the weights of a checkpoint as its own script saves it."""
    given, state = FAPrompt.from_published({"epoch_7.pth": {"prompt_learner": PUBLISHED}})
    assert given.pop("backbone")["init_args"].items() <= CONFIG["model"]["init_args"]["backbone"]["init_args"].items()
    prompts = FineGrainedPrompts(**given.pop("prompts")["init_args"] | {"prior_patches": which})
    model = FAPrompt(backbone, VV(first=2), prompts, **given | options)
    model.load_state_dict({f"backbone.{k}": v for k, v in backbone.state_dict().items()} | state)
    return model.eval()


def batch(count: int = 10, begin: int = 0) -> Batch:
    return some_of(GOLDEN, count, begin)


def close(ours: torch.Tensor, theirs: torch.Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=within)


@torch.no_grad()
@pytest.mark.parametrize("which", ["first", "top"])
def test_an_imported_checkpoint_reads_images_and_texts_and_scores_ten_images_as_its_own_code(backbone, which) -> None:
    model = imported(backbone, which, sigma=0.0)
    features = model.features(batch(4))
    close(features.patches[-1], GOLDEN["patches"])
    static = model.prompts.static(backbone)
    prior = model.prompts.prior(features, static)
    close(static, GOLDEN[f"{which}.static"])
    close(prior, GOLDEN[f"{which}.bias"])
    close(model.prompts.informed(prior, backbone), GOLDEN[f"{which}.informed"])
    scores = model(batch())
    close(scores.anomaly_map, GOLDEN[f"{which}.map"])
    close(scores.image_score, GOLDEN[f"{which}.score"])
    assert float(scores.image_score.std()) > 0.02


@pytest.mark.parametrize("which", ["first", "top"])
def test_losses_and_gradients_are_those_of_its_own_script(backbone, which) -> None:
    model = imported(backbone, which).train()
    losses = model.losses(batch(4), model(batch(4)))
    assert list(losses) == ["local", "global", "score", "prior", "orthogonality"]
    for name, value in losses.items():
        theirs = GOLDEN[f"{which}.loss.{name}"] * (0.1 if name == "orthogonality" else 1)
        torch.testing.assert_close(value.detach(), theirs, rtol=3e-5, atol=1e-5)
    total = sum(losses.values())
    torch.testing.assert_close(total.detach(), GOLDEN[f"{which}.loss"], rtol=2e-5, atol=0)
    total.backward()
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(learned) == {*NAMED, "prompts.deep"}
    for name, (theirs, read) in NAMED.items():
        expected = read(GOLDEN[f"{which}.gradient.{theirs}"])
        close(learned[name].grad / expected.abs().max(), expected / expected.abs().max(), 1e-4)
    deep = torch.stack([GOLDEN[f"{which}.gradient.compound_prompts_text.{i}"] for i in range(2)])
    # Its gradient is rounded to half precision for each prompt, before their sum.
    close(learned["prompts.deep"].grad / deep.abs().max(), deep / deep.abs().max(), 5e-4)


def test_what_its_code_does_otherwise_than_the_paper_is_off_by_default(backbone) -> None:
    assert (FineGrainedPrompts().prior_patches, FineGrainedPrompts().round_tokens) == ("top", False)
    plain, asked = imported(backbone, score_loss="probability").train(), imported(backbone).train()
    ours, theirs = (model.losses(batch(4), model(batch(4)))["score"] for model in (plain, asked))
    assert abs(float(ours - theirs)) > 0.01
    learned = plain.prompts.deep.detach() + 1e-4
    found = {}
    for round_tokens, tokens in ((True, learned), (False, learned), (False, learned.half().float())):
        plain.prompts.round_tokens, plain.prompts.deep.data = round_tokens, tokens
        found[round_tokens, tokens is learned] = plain.prompts.static(backbone).detach()
    close(found[True, True], found[False, False], 1e-6)
    assert float((found[True, True] - found[False, True]).abs().max()) > 1e-5


@torch.no_grad()
def test_a_batch_of_four_is_four_batches_of_one(backbone) -> None:
    model = imported(backbone, "top")
    together = model(batch(4))
    for i in range(4):
        alone = model(batch(1, i))
        close(together.anomaly_map[i : i + 1], alone.anomaly_map)
        close(together.image_score[i : i + 1], alone.image_score)
    assert model.train().losses(batch(1), model(batch(1)))["local"].isfinite()  # where its own code fails


def test_the_prior_of_normal_images_alone_is_a_loss(backbone) -> None:
    model = imported(backbone).train()
    anomalous = batch(4)._replace(label=torch.ones(4, dtype=torch.long))
    assert float(model(anomalous).terms["prior"]) == 0
    normal = batch(4)._replace(label=torch.zeros(4, dtype=torch.long))
    twice = Batch(*(torch.cat([v, v]) if isinstance(v, torch.Tensor) else 2 * v for v in normal[:-1]))
    torch.testing.assert_close(model(twice).terms["prior"], 2 * model(normal).terms["prior"])  # a sum, not a mean
    assert model.eval()(normal).terms is None


@torch.no_grad()
def test_the_command_imports_its_file(backbone, tmp_path) -> None:
    options = ["--model.attention", "vv", "--model.attention.first", "2", "--model.sigma", "0"]
    files = {"epoch_7.pth": {"prompt_learner": PUBLISHED}}
    scores = import_published(FAPrompt, files, backbone, tmp_path, *options)(batch())
    close(scores.anomaly_map, GOLDEN["first.map"])
    close(scores.image_score, GOLDEN["first.score"])


def test_a_file_that_is_no_checkpoint_of_faprompt_is_refused_by_the_key() -> None:
    def refused(files: dict, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            FAPrompt.from_published(files)

    def without(key: str, **other) -> dict:
        return {"x.pth": {"prompt_learner": {k: v for k, v in PUBLISHED.items() if k != key} | other}}

    refused({}, r"There are 0 files, expected one, such as epoch_7\.pth")
    refused({"x.pth": {"state_dict": {}}}, r"x\.pth has no 'prompt_learner', expected a mapping of weights")
    refused(without("ctx_neg"), r"x\.pth lacks the weight 'ctx_neg', of shape \(1, any, any, 32\)")
    refused(without("", ctx_pos=torch.zeros(5, 32)), r"x\.pth: 'ctx_pos' has shape \(5, 32\), expected \(1, 1, ")
    refused(without("compound_prompts_text.0"), r"lacks the weight 'compound_prompts_text\.0'")
    refused(without("", **{"patch_meta_net.linear2.bias": torch.zeros(7)}), r"'patch_meta_net\.linear2\.bias' has sh")


def test_the_config_has_its_published_settings_and_runs_from_fit_to_test(tmp_path, monkeypatch) -> None:
    given = CONFIG["model"]["init_args"]
    model = FAPrompt(EmbeddedBackbone())
    assert (model.temperature, model.sigma) == (given["temperature"], given["sigma"] * model.image_size / 518)
    assert (
        given["prompts"]["init_args"]
        == FAPrompt.from_published(
            {"x": {"prompt_learner": PUBLISHED | {f"compound_prompts_text.{i}": torch.zeros(4, 32) for i in range(8)}}}
        )[0]["prompts"]["init_args"]
    )
    assert load_class(NAMES["model"]["faprompt"]) is FAPrompt
    assert load_class(NAMES["prompts"]["fine_grained"]) is FineGrainedPrompts

    monkeypatch.chdir(tmp_path)
    init = {"images": 2, "num_workers": 0, "category": "ring", "batch_size": 4}
    given = given | {"backbone": {"class_path": "embedded", "init_args": {"image_size": 32}}, "attention": "vv"}
    whole = CONFIG | {"data": {"class_path": "surfaces_auxiliary", "init_args": init}}
    whole["model"] = CONFIG["model"] | {"init_args": given}
    whole["trainer"] = CONFIG["trainer"] | {"max_epochs": 1}
    Path("rival.yaml").write_text(yaml.safe_dump(whole))
    assert main(["fit", "--config", "rival.yaml"]) == 0
    other = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]
    assert main(["test", "--config", "rival.yaml", *other]) == 0
    assert main(["test", "--config", "rival.yaml", *other, "--model.prompts.prior_patches", "top"]) == 2


def test_a_checkpoint_of_it_gives_the_same_scores_in_a_new_model(make_model, make_trainer, make_data, tmp_path) -> None:
    model, trainer = make_model(FAPrompt), make_trainer()
    trainer.fit(model, make_data(category="ring"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    results = []
    for tested, given in ((model, None), (make_model(FAPrompt, seed=9), tmp_path / "last.ckpt")):
        make_trainer().test(tested, make_data(category="ring"), ckpt_path=given, verbose=False)
        results.append(tested.results)
    assert results[0] == results[1]
    assert set(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]) == {*NAMED, "prompts.deep"}


def test_unit_states_of_images_differ(backbone) -> None:
    with torch.no_grad():
        informed = imported(backbone)(batch(4)).states
    assert float((informed[0, 1] - informed[1, 1]).abs().max()) > 1e-3
    torch.testing.assert_close(informed, normalize(informed, dim=-1))
    torch.testing.assert_close(informed[0, 0], informed[1, 0])  # the normal state is that of all images


def test_a_loss_of_another_kind_is_refused(make_model) -> None:
    with pytest.raises(ValueError, match=r"score_loss is 'sum', expected probability or logits"):
        make_model(FAPrompt, score_loss="sum")
