"""What a checkpoint says, and whether it agrees with the model and the data at hand."""

import pytest
import torch

from kanoclip.heads.adapter import ConvAdapter, LinearAdapter
from kanoclip.heads.scoring import MapMaxScore
from kanoclip.models.checkpoint import (
    FORMAT,
    CheckpointError,
    about,
    check_agreement,
    read_checkpoint,
    settings,
    zero_shot,
)
from kanoclip.models.kanoclip import KAnoCLIP

LIGHTNING = {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}


def test_what_is_no_checkpoint_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*none\.ckpt\. Give --ckpt_path a file such as"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt is damaged, or no checkpoint of kanoclip \(\w+Error\)"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt was not written by kanoclip\. Give one from runs/fit"):
        read_checkpoint(tmp_path / "other.ckpt")
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"empty\.ckpt is damaged, or no checkpoint of kanoclip \(\w+Error\)"):
        read_checkpoint(tmp_path / "empty.ckpt")


def test_a_checkpoint_tells_its_model(tmp_path, entry) -> None:
    given = {"_class_path": "my.Model", "_instantiator": "x", "lr": 0.1}
    torch.save({"kanoclip": entry, "hyper_parameters": given, **LIGHTNING}, tmp_path / "a.ckpt")
    stored = {"class_path": "my.Model", "init_args": {"lr": 0.1}}
    told, model = read_checkpoint(tmp_path / "a.ckpt")
    assert (told["model"], model) == ("kanoclip", stored)
    torch.save({"kanoclip": entry, "hyper_parameters": {"lr": 0.1}, **LIGHTNING}, tmp_path / "python.ckpt")
    assert read_checkpoint(tmp_path / "python.ckpt")[1] == {}


def test_a_checkpoint_of_a_newer_version_is_refused_in_one_line(tmp_path) -> None:
    torch.save({"kanoclip": {"format": FORMAT + 1, "version": "9.0"}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"has format 3 of .* reads up to 2\. .* pip install --upgrade"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_the_classes_of_a_checkpoint_of_version_0_1_0_are_found_where_they_are_now(tmp_path, entry) -> None:
    given = {
        "_class_path": "kanoclip.models.rivals.WinCLIP",
        "prompts": {"class_path": "kanoclip.prompts.LearnedPrompts"},
    }
    kept = ("model", "components", "auxiliary", "categories", "backbone", "random_state")
    old = {"version": "0.1.0"} | {key: entry[key] for key in kept}
    torch.save({"kanoclip": old, "hyper_parameters": given, **LIGHTNING}, tmp_path / "a.ckpt")
    stored = read_checkpoint(tmp_path / "a.ckpt")[1]
    assert stored["class_path"] == "kanoclip.models.rivals.winclip.WinCLIP"
    assert stored["init_args"] == {"prompts": {"class_path": "kanoclip.heads.prompts.LearnedPrompts"}}


class Photos:
    """Data as far as a checkpoint asks."""

    identity, categories = "photos", ("nut",)

    def __init__(self, samples="s", **options):
        self.samples, self.options = samples, {"category": None, "seed": 111, "augment": False, **options}

    def fit_options(self):
        return self.options

    def samples_digest(self, stage):
        return self.samples


@pytest.fixture
def entry(make_model):
    """What a checkpoint tells of a fit with a Conv-Adapter on photos."""
    model = make_model(adapter=ConvAdapter(reduction=2))
    model.auxiliary, model.fitted_images = "photos", [3, 1]
    return about(model, Photos(), 7)


def test_a_checkpoint_tells_what_it_was_fitted_on_and_how(entry) -> None:
    assert (entry["format"], entry["seed"], entry["samples"], entry["categories"]) == (FORMAT, 7, "s", ["nut"])
    assert entry["images"].tolist() == [1, 3]
    assert entry["settings"]["adapter.reduction"] == 2
    assert entry["settings"]["prompts.context"] == 12  # though nobody gave it
    assert "score" not in entry["settings"]
    assert "sigma" not in entry["settings"]


@pytest.mark.parametrize("options", [{"score": MapMaxScore()}, {"sigma": 9.0}, {"lr": 0.5}])
def test_what_no_head_depends_on_may_differ(entry, make_model, options) -> None:
    check_agreement(entry, {}, make_model(adapter=ConvAdapter(reduction=2), **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"adapter": LinearAdapter(reduction=2)},
            r"model\.adapter ConvAdapter, but LinearAdapter is asked for",
        ),
        ({"adapter": ConvAdapter(2, pool="max")}, r"model\.adapter\.pool mean, but max is asked for"),
        ({"adapter": ConvAdapter()}, r"model\.adapter\.reduction 2, but 4 is asked for"),
        ({"temperature": 0.5}, r"model\.temperature 0\.07, but 0\.5 is asked for"),
    ],
)
def test_what_heads_depend_on_must_be_as_fitted(entry, make_model, options, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_agreement(entry, {}, make_model(**({"adapter": ConvAdapter(2)} | options)))


@pytest.mark.parametrize("options", [{"lr": 0.5}, {"knowledge": "mvtec"}, {"alpha": 2.0}, {"dice": "image"}])
def test_on_the_command_line_all_that_was_typed_counts(entry, make_model, options) -> None:
    model = make_model(adapter=ConvAdapter(2), **options)
    check_agreement(entry, {}, model)
    model.strict_options = True
    ((name, value),) = options.items()
    with pytest.raises(CheckpointError, match=rf"model\.{name} .*, but {value} is asked for\. Leave out --model"):
        check_agreement(entry, {}, model)


def test_a_fit_goes_on_with_the_same_samples_in_the_same_order(entry, make_model) -> None:
    model = make_model(adapter=ConvAdapter(2))
    check_agreement(entry, {}, model, Photos())
    for data, message in (
        (Photos(seed=3), r"data\.seed 111, but 3 is asked for"),
        (Photos(category="nut"), r"data\.category None, but nut is asked for"),
        (Photos(augment=True), r"data\.augment False, but True is asked for"),
        (Photos(samples="t"), r"the images of photos are others than those were"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_agreement(entry, {}, model, data)


def test_zero_shot_is_decided_by_contents_alone() -> None:
    assert zero_shot([1, 2], [3, 4]) is True
    assert zero_shot(torch.tensor([1, 2]), [2, 4]) is False  # one is enough
    assert zero_shot(None, [1]) is None
    assert zero_shot([1], None) is None


def test_settings_tell_a_free_option_only_if_asked(make_model) -> None:
    model = make_model(KAnoCLIP)
    assert {"score", "sigma"} <= set(settings(model, free=True)) - set(settings(model))
