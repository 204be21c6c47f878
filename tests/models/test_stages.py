import logging
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from kanoclip.heads.adapter import LinearAdapter
from kanoclip.heads.prompts import LearnedPrompts
from kanoclip.models.contents import CheckpointError
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.stages import Stage, read_stages, share
from kanoclip.types import KanoclipError
from kanoclip.verbs.table import main

DOCS = Path(__file__).parents[2] / "docs" / "stages.md"

TWO = [
    {"train": ["prompts"], "epochs": 2, "lr": 1e-2, "schedule": "cosine", "warmup": 0.25},
    {
        "train": ["adapter"],
        "epochs": 2,
        "lr": 1e-3,
        "schedule": "steps",
        "milestones": [3],
        "rates": {"adapter.up": 0.1},
    },
]


class Diary(Callback):
    """Write down, after each step, what learns, the rates, the weights and the stage."""

    def __init__(self) -> None:
        self.learning, self.rates, self.weights, self.stages = [], [], [], []

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        heads = {name: one for name, one in model.named_parameters() if not name.startswith("backbone.")}
        self.learning.append({name for name, one in heads.items() if one.requires_grad})
        self.rates.append(dict(zip(heads, (group["lr"] for group in trainer.optimizers[0].param_groups), strict=True)))
        self.weights.append({name: one.detach().clone() for name, one in heads.items()})
        self.stages.append(model.stage)


def staged(make_model, seed=0, stages=TWO, **options):
    parts = {"prompts": LearnedPrompts(context=2), "adapter": LinearAdapter()}
    return make_model(KAnoCLIP, seed=seed, stages=stages, **parts | options)


def fit(model, data, trainer, ckpt_path=None):
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_in_each_stage_its_parts_alone_learn_at_its_own_rates(make_model, make_data, make_trainer) -> None:
    model, diary = staged(make_model), Diary()
    fit(model, make_data(category="ring", images=8), make_trainer(max_epochs=4, callbacks=[diary]))
    assert len(diary.stages) == 8 == 4 * 2  # steps of two batches
    assert diary.stages == [0] * 4 + [1] * 4
    prompts = {name for name in diary.rates[0] if name.startswith("prompts.")}
    adapter = {name for name in diary.rates[0] if name.startswith("adapter.")}
    assert diary.learning == [prompts] * 4 + [adapter] * 4
    cosine = [0.0, *(0.01 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3))]
    assert [rates["prompts.vectors"] for rates in diary.rates[:4]] == pytest.approx(cosine)
    assert [rates["adapter.down.weight"] for rates in diary.rates[4:]] == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4])
    assert [rates["adapter.up.bias"] for rates in diary.rates[4:]] == pytest.approx([0.1, 0.1, 0.1, 0.05])
    for name in prompts:
        assert torch.equal(diary.weights[3][name], diary.weights[7][name])
    for name in adapter:
        assert torch.equal(diary.weights[0][name], diary.weights[3][name])
        assert not torch.equal(diary.weights[3][name], diary.weights[7][name])
    assert not torch.equal(diary.weights[0]["prompts.vectors"], diary.weights[3]["prompts.vectors"])


def test_after_a_fit_all_heads_may_learn_again_also_if_it_was_stopped(make_model, make_data, make_trainer) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, model) -> None:
            raise RuntimeError("stopped")

    for callbacks in ([], [Stop()]):
        model = staged(make_model)
        heads = [one for one in model.parameters() if one.requires_grad]
        trainer = make_trainer(max_epochs=4, callbacks=callbacks)
        if callbacks:
            with pytest.raises(RuntimeError, match="stopped"):
                fit(model, make_data(category="ring"), trainer)
        else:
            fit(model, make_data(category="ring"), trainer)
        assert all(one.requires_grad for one in heads)
        assert model.stage == 1  # the last one
    fit(model, make_data(category="ring"), make_trainer(max_epochs=4))  # again from the beginning


@pytest.mark.parametrize("epoch", [0, 1, 2])  # in the first stage, at its end, in the second
def test_a_fit_that_goes_on_in_any_stage_ends_as_one_that_was_never_stopped(
    epoch, make_model, make_data, make_trainer, tmp_path
) -> None:
    data = {"category": "ring", "images": 8}
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = fit(staged(make_model), make_data(**data), make_trainer(max_epochs=4, callbacks=[keep]))
    diary = Diary()
    trainer = make_trainer(max_epochs=4, callbacks=[diary])
    again = fit(staged(make_model, seed=9), make_data(**data), trainer, tmp_path / f"epoch={epoch}.ckpt")
    assert len(diary.stages) == 2 * (3 - epoch)
    assert same(again.state_dict(), whole.state_dict())


def test_a_fit_that_was_stopped_within_an_epoch_goes_on_in_its_stage_at_its_rate(
    make_model, make_data, make_trainer, tmp_path
) -> None:
    data, diaries = {"category": "ring", "images": 12}, [Diary(), Diary()]
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    fit(staged(make_model), make_data(**data), make_trainer(max_epochs=4, callbacks=[keep, diaries[0]]))
    trainer = make_trainer(max_epochs=4, callbacks=[diaries[1]])
    fit(staged(make_model, seed=9), make_data(**data), trainer, tmp_path / "step=8.ckpt")  # of 12
    assert diaries[1].stages == [1] * 4
    assert diaries[1].rates == diaries[0].rates[8:]


def test_accumulated_batches_are_one_step_of_the_schedule(make_model, make_data, make_trainer) -> None:
    diary = Diary()
    trainer = make_trainer(max_epochs=4, callbacks=[diary], accumulate_grad_batches=2)
    fit(staged(make_model), make_data(category="ring", images=16), trainer)  # 4 batches, 2 steps an epoch
    rates = [one["prompts.vectors"] for one in diary.rates[:8]]
    assert rates[::2] == rates[1::2]
    assert rates[::2] == pytest.approx([0.0, *(0.01 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3))])


def test_a_stage_may_take_more_batches_to_a_step_than_another(make_model, make_data, make_trainer) -> None:
    trainer, diary = make_trainer(max_epochs=4), Diary()
    trainer.callbacks.append(diary)
    model = staged(make_model, stages=[TWO[0] | {"accumulate": 2}, TWO[1]])
    fit(model, make_data(category="ring", images=16), trainer)  # 4 batches an epoch
    assert trainer.global_step == 2 * 2 + 2 * 4
    assert trainer.accumulate_grad_batches == 1
    vectors = [weights["prompts.vectors"] for weights in diary.weights[:8]]
    changed = [not torch.equal(first, second) for first, second in pairwise(vectors)]
    assert changed == [False, False, True, False, True, False, True]  # the first step has a rate of 0
    assert [one["adapter.down.weight"] for one in diary.rates[8:]] == pytest.approx([1e-3] * 3 + [5e-4] * 5)


def test_epochs_are_shared_in_proportion_and_none_goes_without() -> None:
    def stages(*epochs):
        return [Stage(["a"], number, 1.0) for number in epochs]

    assert share(stages(5, 20), 25) == [5, 20]
    assert share(stages(5, 20), 4) == [1, 3]
    assert share(stages(5, 20), 50) == [10, 40]
    assert share(stages(1, 1, 100), 3) == [1, 1, 1]
    assert share(stages(100, 1, 1), 4) == [2, 1, 1]
    with pytest.raises(KanoclipError, match=r"is 1, but the fit has 2 stages .* Use --trainer.max_epochs 25 \(5 \+ 20"):
        share(stages(5, 20), 1)


def test_another_number_of_epochs_is_told_and_must_stay(make_model, make_data, make_trainer, tmp_path, caplog) -> None:
    trainer, data = make_trainer(max_epochs=6), make_data(category="ring")
    with caplog.at_level(logging.WARNING, "kanoclip"):
        fit(staged(make_model), data, trainer)
    assert "take 3 + 3 epochs instead of 2 + 2, as --trainer.max_epochs is 6" in caplog.text
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"fitted with trainer\.max_epochs 6, but 8 is asked for"):
        fit(staged(make_model), data, make_trainer(max_epochs=8), tmp_path / "last.ckpt")
    slower = [TWO[0] | {"lr": 1e-5}, TWO[1]]
    with pytest.raises(CheckpointError, match=r"fitted with model\.stages"):
        fit(staged(make_model, stages=slower), data, make_trainer(max_epochs=6), tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"trains": ["prompts"]}, r"stages\[0\] has 'trains'\. Did you mean 'train'\?"),
        ({"train": ["prompts"]}, r"stages\[0\] does not tell epochs and lr\. Write a stage as"),
        ({"train": "prompts", "epochs": 1, "lr": 1}, "train 'prompts', expected a list"),
        ({"train": ["prompts"], "epochs": 0, "lr": 1}, "epochs 0, expected 1 or more"),
        ({"train": ["prompts"], "epochs": "five", "lr": 1}, "epochs 'five', expected a whole number"),
        ({"train": ["prompts"], "epochs": 1, "lr": "high"}, "lr 'high', expected a number"),
        ({"train": ["prompts"], "epochs": 1, "lr": 1, "rates": {"prompts": "x"}}, "prompts 'x', expected a number"),
        ({"train": ["prompts"], "epochs": 1, "lr": -1}, "lr -1, expected 0 or more"),
        ({"train": ["prompts"], "epochs": 1, "lr": 1, "rates": {"a": -2}}, "lr {'a': -2}, expected 0 or more"),
        ({"train": ["prompts"], "epochs": 1, "lr": 1, "schedule": "sine"}, "schedule 'sine', expected constant"),
        ({"train": ["prompts"], "epochs": 1, "lr": 1, "warmup": 1}, "warmup 1, expected a share"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(stage, message) -> None:
    with pytest.raises(KanoclipError, match=message):
        read_stages([stage])


def test_stages_that_do_not_fit_the_model_or_the_trainer_are_refused(make_model, make_data, make_trainer) -> None:
    data = make_data(category="ring")
    wrong = [TWO[0] | {"train": ["adaptor"]}]
    with pytest.raises(KanoclipError, match=r"stages\[0\] names 'adaptor', but no parameter of kanoclip that learns"):
        fit(staged(make_model, stages=wrong), data, make_trainer())
    with pytest.raises(KanoclipError, match=r"needs its epochs: --trainer\.max_epochs 4"):
        fit(staged(make_model), data, make_trainer(max_epochs=-1))
    with pytest.raises(KanoclipError, match=r"Use --trainer\.max_epochs 4 \(2 \+ 2\)"):
        fit(staged(make_model), data, make_trainer(max_epochs=1))
    model = staged(make_model)
    model.optimiser = {"lr_scheduler": "torch.optim.lr_scheduler.StepLR"}
    with pytest.raises(KanoclipError, match="Leave out --lr_scheduler"):
        fit(model, data, make_trainer(max_epochs=4))


def test_a_trial_run_of_one_batch_runs_the_first_stage(make_model, make_data, make_trainer) -> None:
    diary = Diary()
    fit(staged(make_model), make_data(category="ring"), make_trainer(fast_dev_run=True, callbacks=[diary]))
    assert diary.stages == [0]


def test_a_model_without_stages_has_one_group_and_stage_0(make_model) -> None:
    model = make_model(KAnoCLIP)
    assert (model.stages, model.stage, len(model.configure_optimizers().param_groups)) == ([], 0, 1)
    assert model.configure_callbacks() == []


def test_the_config_of_the_docs_fits_in_its_stages(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = re.search(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1]
    stages = yaml.safe_load(config)["model"]["init_args"]["stages"]
    Path("mine.yaml").write_text(config)
    data = ["--data", "surfaces_auxiliary", "--data.images", "2", "--data.num_workers", "0", "--data.category", "ring"]
    assert main(["fit", "--config", "mine.yaml", *data, "--trainer.max_epochs", "4"]) == 0
    checkpoint = torch.load(next(tmp_path.glob("runs/fit/**/last.ckpt")), weights_only=True)
    assert [one["epochs"] for one in checkpoint["kanoclip"]["optimiser"]["model.stages"]] == [1, 3]
    assert checkpoint["hyper_parameters"]["stages"][0]["train"] == stages[0]["train"]
    again = ["--ckpt_path", "last", "--trainer.max_epochs", "5"]
    assert main(["fit", "--config", "mine.yaml", *data, *again]) == 2
    assert main(["fit", "--config", "mine.yaml", *data, "--lr_scheduler", "ConstantLR"]) == 2


def test_the_model_of_the_docs_reads_which_stage_runs(make_data, make_trainer, tiny_clip) -> None:
    written: dict = {}
    exec(re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1], written)
    model, terms = written["TwoSteps"](backbone=tiny_clip), []
    losses = model.losses
    model.losses = lambda batch, scores: terms.append(set(found := losses(batch, scores))) or found
    fit(model, make_data(category="ring"), make_trainer(max_epochs=3))
    assert terms[0] == {"local"}
    assert {"local", "global"} <= terms[1] == terms[2]
