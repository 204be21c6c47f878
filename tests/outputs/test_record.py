import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from kanoclip import __version__
from kanoclip.outputs import RunRecord, WholeCheckpoints

PATHS = ["d/ring/good/1.png", "d/ring/hole/2.png", "d/nut/good/3.png"]


@pytest.fixture
def fit(kit):
    def run(model=None, **options):
        options = {"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": True} | options
        callbacks = [RunRecord(), ModelCheckpoint(filename="last", enable_version_counter=False)]
        trainer = kit.trainer(*callbacks, **options)
        trainer.fit(model or kit.model(), kit.data(kit.samples(*PATHS)))

    return run


@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_a_finished_fit_is_recorded_beside_its_checkpoint(kit, fit, logger):
    fit(logger=logger(kit.folder, name="here"))
    folder = kit.folder / "here" / "version_0"
    record = json.loads((folder / "run.json").read_text())
    assert (folder / record["ckpt"]).is_file()
    assert record.pop("seconds") >= 0
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "model": "brightness",
        "auxiliary": "elsewhere",
        "categories": ["nut", "ring"],
        "ckpt": "checkpoints/last.ckpt",
        "seed": 5,
        "images": 3,
        "epochs": 2,
        "version": __version__,
    }


def test_without_a_logger_it_is_in_the_root_folder(kit, fit):
    fit()
    record = json.loads((kit.folder / "run.json").read_text())
    assert (kit.folder / record["ckpt"]).is_file()


def test_the_seed_of_everything_comes_before_the_data_s(kit, fit, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    fit()
    assert json.loads((kit.folder / "run.json").read_text())["seed"] == 7


@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_a_fit_that_was_stopped_is_not_recorded(kit, fit, how):
    model = kit.model()

    def stop(batch, batch_idx):
        if model.current_epoch == 1:
            raise how
        return (model.weight**2).sum()

    model.training_step = stop
    with pytest.raises((SystemExit, RuntimeError)):
        fit(model)
    assert list(kit.folder.rglob("last.ckpt"))
    assert not list(kit.folder.rglob("run.json"))


def test_a_fit_without_a_checkpoint_is_not_recorded(kit):
    kit.trainer(RunRecord(), max_epochs=1).fit(kit.model(), kit.data(kit.samples(*PATHS)))
    assert not list(kit.folder.rglob("run.json"))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    file, writer = tmp_path / "deep" / "last.ckpt", WholeCheckpoints()
    writer.save_checkpoint({"epoch": 1}, file)
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"Cannot write .*last.ckpt: No space left on device. Free the disk"):
        writer.save_checkpoint({"epoch": 2}, file)
    assert torch.load(file, weights_only=True) == {"epoch": 1}
    assert list(file.parent.iterdir()) == [file]
