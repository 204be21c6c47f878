"""A stranger's checkpoint runs nothing and fetches nothing, and a damaged one is told in one line."""

import sys

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from kanoclip.heads.interaction import NoInteraction
from kanoclip.models.ablations import CLIP
from kanoclip.models.base import AnomalyModule
from kanoclip.models.contents import CheckpointError, check_trust
from kanoclip.models.kanoclip import KAnoCLIP


@pytest.fixture
def model(make_model):
    return make_model(interaction=NoInteraction())


@pytest.fixture
def kept(model, make_trainer, make_data, tmp_path):
    """Path of a checkpoint, and what stands in it."""
    trainer = make_trainer()
    trainer.fit(model, make_data(category="ring"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", torch.load(tmp_path / "last.ckpt", weights_only=True)


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module in the folder where the command runs, which tells that it was imported."""
    (tmp_path / "evilmod.py").write_text(
        "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\nclass X: pass"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "ran"
    assert "evilmod" not in sys.modules


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"_class_path": "evilmod.X"}, "--model evilmod.X"),
        ({"_class_path": "kanoclip.models.kanoclip.KAnoCLIP", "adapter": "evilmod.X"}, r"--model\.adapter evilmod\.X"),
        ({"adapter": {"class_path": "evilmod.X"}}, r"--model\.adapter evilmod\.X"),
        ({"adapter": "evil.yaml"}, r"--model\.adapter evil\.yaml"),
        ({"alpha": [{"class_path": "evilmod.X"}]}, r"evilmod\.X"),
        (
            {"backbone": {"class_path": "clip", "init_args": {"name": "hf-hub:a/b"}}},
            r"--model\.backbone\.name hf-hub:a/b",
        ),
    ],
)
def test_what_a_checkpoint_names_is_neither_imported_nor_fetched(kept, evil, options, option) -> None:
    path, content = kept
    instantiator = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
    torch.save({**content, "hyper_parameters": options | instantiator}, path)
    with pytest.raises(CheckpointError, match=rf"last\.ckpt names the .*If you trust it, name it yourself: .*{option}"):
        AnomalyModule.load_from_checkpoint(path)
    assert not evil.exists()


def test_what_the_user_names_too_is_trusted() -> None:
    options = {"class_path": "my_lab.X", "init_args": {"backbone": {"init_args": {"name": "hf-hub:a/b"}}}}
    with pytest.raises(CheckpointError, match=r"the class my_lab\.X"):
        check_trust(options, {"hf-hub:a/b"}, "a.ckpt")
    with pytest.raises(CheckpointError, match="the model hf-hub:a/b"):
        check_trust(options, {"my_lab.X"}, "a.ckpt")
    check_trust(options, {"my_lab.X", "hf-hub:a/b"}, "a.ckpt")
    check_trust({"class_path": f"{__name__}.Own"}, (), "a.ckpt")  # its module is imported already


class Own(KAnoCLIP):
    """A model of one's own."""


def test_a_function_that_is_imported_already_is_not_trusted() -> None:
    with pytest.raises(CheckpointError, match=r"the class os\.system"):
        check_trust({"adapter": {"class_path": "os.system"}}, (), "a.ckpt")


def test_a_checkpoint_of_another_class_is_refused(kept, tiny_clip) -> None:
    path, content = kept
    given = {"_class_path": "kanoclip.models.rivals.winclip.WinCLIP"}
    torch.save({**content, "hyper_parameters": given}, path)
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt is of kanoclip\.models\.rivals\.winclip\.WinCLIP, .* no CLIP"
    ):
        CLIP.load_from_checkpoint(path, backbone=tiny_clip)


def changed(content, key, value):
    """A copy of a checkpoint's content with another value under a dotted key; None: without it."""
    head, _, rest = key.partition(".")
    head = int(head) if head.isdigit() else head
    copy = list(content) if isinstance(content, list) else dict(content)
    if rest:
        copy[head] = changed(content[head], rest, value)
    elif value is None:
        del copy[head]
    else:
        copy[head] = value
    return copy


DAMAGED = {
    "kanoclip.model": None, "kanoclip.backbone": {}, "kanoclip.components": 3, "kanoclip.auxiliary": None,
    "kanoclip.random_state": torch.zeros(3, dtype=torch.uint8), "kanoclip.settings": None, "kanoclip.data": [],
    "kanoclip.images": torch.zeros(1, dtype=torch.int64).expand(10**12), "kanoclip.optimiser": "x",
    "kanoclip.format": "2", "kanoclip.knowledge": {"a.jsonl": torch.zeros(1)}, "state_dict": None,
    "hyper_parameters": [1],
    "pytorch-lightning_version": "0.5",
}  # fmt: skip
GOING_ON = {
    "epoch": None, "global_step": "3", "loops": {}, "loops.fit_loop.epoch_progress": None, "lr_schedulers": None,
    "loops.fit_loop.epoch_progress.total": 7, "optimizer_states": [], "optimizer_states.0.param_groups": None,
    "optimizer_states.0.state": [], "optimizer_states.0.state.0.exp_avg": torch.zeros(2, 2, 2),
    "optimizer_states.0.state.99": {}, "callbacks": 1,
}  # fmt: skip


@pytest.mark.parametrize("key", DAMAGED)
def test_a_checkpoint_with_a_part_missing_or_wrong_is_told_in_one_line(kept, tiny_clip, key) -> None:
    path, content = kept
    torch.save(changed(content, key, DAMAGED[key]), path)
    with pytest.raises(CheckpointError, match=rf"last\.ckpt is damaged: {key}.* is missing or not what it should be"):
        KAnoCLIP.load_from_checkpoint(path, backbone=tiny_clip)


@pytest.mark.parametrize("key", GOING_ON)
def test_a_fit_does_not_go_on_with_half_a_checkpoint(kept, make_model, make_trainer, make_data, key) -> None:
    path, content = kept
    torch.save(changed(content, key, GOING_ON[key]), path)
    shown = key.replace("states.0", "states").removesuffix(".exp_avg")
    with pytest.raises(CheckpointError, match=rf"is damaged: {shown}.* is missing or not what it should be"):
        make_trainer(max_epochs=2).fit(
            make_model(interaction=NoInteraction()), make_data(category="ring"), ckpt_path=path
        )


def test_a_whole_checkpoint_loads_and_goes_on(kept, model, make_model, make_trainer, make_data, tiny_clip) -> None:
    path, content = kept
    loaded = KAnoCLIP.load_from_checkpoint(path, backbone=tiny_clip, interaction=NoInteraction())
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in content["state_dict"].items())
    trainer = make_trainer(max_epochs=2)
    trainer.fit(make_model(interaction=NoInteraction()), make_data(category="ring"), ckpt_path=path)
    assert trainer.current_epoch == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, "nothing in it"),
        (lambda w: torch.zeros(7, 7), r"\(7, 7\) in it"),
        (lambda w: w.long(), r"\(.*\) of torch\.int64 in it"),
        (lambda w: w.cfloat(), r"\(.*\) of torch\.complex64 in it"),
    ],
)
def test_weights_that_do_not_fit_are_told_in_one_line(kept, tiny_clip, change, told) -> None:
    path, content = kept
    name = next(iter(content["state_dict"]))
    state = dict(content["state_dict"])
    if change is None:
        del state[name]
    else:
        state[name] = change(state[name])
    torch.save({**content, "state_dict": state}, path)
    with pytest.raises(CheckpointError, match=rf"does not fit the model: {name} is {told}, expected \(") as caught:
        KAnoCLIP.load_from_checkpoint(path, backbone=tiny_clip, interaction=NoInteraction())
    assert "\n" not in str(caught.value)


def test_no_path_of_a_checkpoint_is_taken_over_by_a_fit(kept, make_model, make_data, tmp_path) -> None:
    path, content = kept
    (tmp_path / "victim").mkdir()
    folder = tmp_path / "kept"
    victim = f"{folder}/../victim"
    keeper = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    state = keeper.state_dict() | {
        "best_model_path": victim, "last_model_path": victim, "kth_best_model_path": victim, "dirpath": f"{folder}",
        "best_k_models": {victim: torch.tensor(0.0)},
    }  # fmt: skip
    torch.save({**content, "callbacks": {keeper.state_key: state}}, path)
    trainer = Trainer(max_epochs=2, logger=False, accelerator="cpu", enable_progress_bar=False,
                      enable_model_summary=False, callbacks=keeper)  # fmt: skip
    trainer.fit(make_model(interaction=NoInteraction()), make_data(category="ring"), ckpt_path=path)
    assert (tmp_path / "victim").is_dir()
    assert keeper.best_model_path == f"{folder}/last.ckpt"


@pytest.mark.parametrize("part", ["state_dict", "kanoclip"])
@pytest.mark.parametrize(
    "change", [torch.Tensor.to_sparse, lambda w: w.to("meta"), lambda w: 3], ids=["sparse", "meta", "number"]
)
def test_a_tensor_that_is_none_in_truth_is_told_in_one_line(kept, tiny_clip, part, change) -> None:
    path, content = kept
    name = "random_state" if part == "kanoclip" else next(iter(content[part]))
    torch.save({**content, part: content[part] | {name: change(content[part][name])}}, path)
    with pytest.raises(CheckpointError, match=rf"is damaged: {part}\.{name} is missing or not what it should be"):
        KAnoCLIP.load_from_checkpoint(path, backbone=tiny_clip, interaction=NoInteraction())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_told_in_one_line(kept, tiny_clip, value) -> None:
    path, content = kept
    name = next(iter(content["state_dict"]))
    content["state_dict"][name].view(-1)[0] = value
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"The checkpoint holds NaN or infinite weights: {name}\\."):
        KAnoCLIP.load_from_checkpoint(path, backbone=tiny_clip, interaction=NoInteraction())


@pytest.mark.parametrize("changes", [{"loops": {}}, {"callbacks": 1}])
def test_a_test_needs_nothing_of_what_a_fit_goes_on_with(kept, make_model, make_trainer, make_data, changes) -> None:
    path, content = kept
    torch.save(content | changes, path)
    model = make_model(interaction=NoInteraction())
    make_trainer().test(model, make_data(category="ring"), ckpt_path=path)
    assert model.results
