import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from kanoclip import __version__
from kanoclip.outputs import RunRecord, WholeCheckpoints
from kanoclip.outputs.record import claim_version, drop_if_empty, folder_name, newest_fit

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
    memory = record.pop("memory")
    assert memory["of"] in ("process", "device")
    assert memory["bytes"] > 2**20
    assert record == {
        "model": "brightness",
        "auxiliary": "elsewhere",
        "categories": ["nut", "ring"],
        "ckpt": "checkpoints/last.ckpt",
        "seed": None,  # nothing was seeded
        "images": 3,
        "samples": "3 samples",
        "files": {},
        "epochs": 2,
        "parameters": 1,  # of the brightness that learns one number
        "version": __version__,
    }


def test_without_a_logger_it_is_in_the_root_folder(kit, fit):
    fit()
    record = json.loads((kit.folder / "run.json").read_text())
    assert (kit.folder / record["ckpt"]).is_file()


def test_the_seed_of_everything_is_recorded(kit, fit, monkeypatch):
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
    with pytest.raises(OSError, match=r"Cannot write .*last.ckpt: No space left on device"):
        writer.save_checkpoint({"epoch": 2}, file)
    assert torch.load(file, weights_only=True) == {"epoch": 1}
    assert list(file.parent.iterdir()) == [file]


def fitted(root, version, age, model="kanoclip", auxiliary="mvtec", finished=True, images=None):
    run = root / "fit" / model / folder_name(auxiliary) / version
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = run / "checkpoints" / "last.ckpt"
    entry = {
        "version": "0.1.0",
        "model": model,
        "auxiliary": auxiliary,
        "images": images,
        "components": {},
        "backbone": {"description": "small", "fingerprint": "f0"},
        "random_state": torch.get_rng_state(),
    }
    torch.save({"kanoclip": entry, "state_dict": {}, "pytorch-lightning_version": "2.6.0"}, checkpoint)
    files = [checkpoint]
    if finished:
        files.append(run / "run.json")
        files[-1].write_text(json.dumps({"model": model, "auxiliary": auxiliary, "ckpt": "checkpoints/last.ckpt"}))
    for file in files:
        os.utime(file, (1e9 - age, 1e9 - age))
    return checkpoint


def test_a_test_takes_the_newest_finished_fit_of_its_model_that_has_seen_none_of_the_images(tmp_path):
    wanted = fitted(tmp_path, "version_0", age=2, images=torch.tensor([1, 2]))
    fitted(tmp_path, "version_1", age=3)
    unfinished = fitted(tmp_path, "version_2", age=1, finished=False)
    other = fitted(tmp_path, "version_0", age=0, auxiliary="visa", images=torch.tensor([2, 3]))
    other_model = fitted(tmp_path, "version_0", age=-1, model="clip_vv_knpl")
    assert newest_fit(tmp_path, None) == other_model
    assert newest_fit(tmp_path, "kanoclip") == other
    assert newest_fit(tmp_path, "kanoclip", tested=[3]) == wanted
    assert newest_fit(tmp_path, "kanoclip", tested=[4, 5]) == other
    assert newest_fit(tmp_path, "kanoclip", tested=None) == other
    assert newest_fit(tmp_path, "kanoclip", auxiliary="mvtec") == unfinished  # to resume
    assert newest_fit(tmp_path, "kanoclip", auxiliary="surfaces") is None
    assert newest_fit(tmp_path / "empty", "kanoclip", tested=[4]) is None


def test_a_fit_of_a_benchmark_is_taken_where_no_other_serves(tmp_path):
    row = fitted(tmp_path / "benchmark" / "quickstart" / "kanoclip-0f-seed111", "version_0", age=0)
    assert newest_fit(tmp_path, "kanoclip") == row
    own = fitted(tmp_path, "version_0", age=9, images=torch.tensor([1]))
    assert newest_fit(tmp_path, "kanoclip") == own
    assert newest_fit(tmp_path, "kanoclip", tested=[1]) == row


def test_a_fit_that_does_not_tell_its_images_is_no_worse_than_another(tmp_path):  # of version 0.1.0
    older = fitted(tmp_path, "version_0", age=0)
    assert newest_fit(tmp_path, "kanoclip", tested=[1]) == older


def test_a_fit_is_resumed_on_its_own_data_though_others_of_that_name_share_its_folder(tmp_path):
    wanted = fitted(tmp_path, "version_0", age=2, auxiliary="folder /a/images")
    fitted(tmp_path, "version_1", age=1, auxiliary="folder /b/images")
    assert newest_fit(tmp_path, "kanoclip", auxiliary="folder /a/images") == wanted
    assert newest_fit(tmp_path, "kanoclip", auxiliary="folder /c/images") is None


def test_a_fit_whose_checkpoint_was_deleted_is_passed_over(tmp_path):
    older = fitted(tmp_path, "version_0", age=2)
    fitted(tmp_path, "version_1", age=1).unlink()
    assert newest_fit(tmp_path, "kanoclip") == older


@pytest.mark.parametrize("name", ["run.json", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("content", [b"", bytes(500), b"{}"])
def test_a_fit_that_a_power_cut_has_emptied_is_passed_over_and_told(tmp_path, caplog, name, content):
    older = fitted(tmp_path, "version_0", age=2)
    damaged = fitted(tmp_path, "version_1", age=1).parents[1] / name
    damaged.write_bytes(content)
    assert newest_fit(tmp_path, "kanoclip") == older
    assert newest_fit(tmp_path, "kanoclip", tested=[1]) == older
    if name != "run.json":
        assert newest_fit(tmp_path, "kanoclip", auxiliary="mvtec") == older
    assert caplog.messages == [f"{damaged} is empty, damaged or of another version, so it counts as absent."]


def test_a_folder_of_runs_is_named_after_the_data():
    assert folder_name("mvtec") == "mvtec"
    assert folder_name("folder /home/me/my photos") == "folder-my photos"
    assert folder_name("manifest /data/list.csv") == "manifest-list"


def test_runs_that_start_at_once_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_version(tmp_path / "runs"), range(40)))
    assert sorted(path.name for path in claimed) == sorted(f"version_{number}" for number in range(40))
    (tmp_path / "runs" / "version_39").rename(tmp_path / "runs" / "version_80")
    assert claim_version(tmp_path / "runs").name == "version_81"  # never one that was there before


@pytest.mark.parametrize(
    ("file", "content", "kept"),
    [
        ("checkpoints/last.ckpt", "x", True),
        ("results.json", "{}", True),
        ("threshold.json", "{}", True),
        ("predictions.csv", "path\na.png\n", True),
        ("predictions.csv", "path\n", False),
        ("events.out.tfevents.1", "x", False),
        ("config.yaml", "x", False),
    ],
)
def test_the_folder_of_a_failed_run_goes_unless_it_has_something_of_worth(tmp_path, file, content, kept):
    folder = claim_version(tmp_path)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    drop_if_empty(folder)
    assert folder.exists() is kept
