"""What a run logs, read back from the event files, MLflow's local store and CSV."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from kanoclip.outputs.log import fit_of, steps_of
from kanoclip.verbs.table import main

DRAWN = ["--data.category", "wood", "--data.images", "4", "--data.num_workers", "0"]
MODEL = ["--model.backbone", "embedded", "--model.knowledge", "surfaces"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
FIT = ["fit", "--data", "surfaces_auxiliary", *DRAWN, "--data.holdout", "0.5", *MODEL, *QUIET]
FIT += ["--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"]
TEST = [
    "test",
    "--data",
    "surfaces",
    "--data.category",
    "gear",
    "--data.images",
    "4",
    "--data.num_workers",
    "0",
    *QUIET,
]


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()


def options_of(log: EventAccumulator) -> dict:
    content = log.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    found = metadata.parse_session_start_info_plugin_data(content).hparams.items()
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A fit of two epochs of one step, and a test of it."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FIT) == 0
        assert main(TEST) == 0
    return folder / "runs"


@pytest.fixture(scope="module")
def fit(runs) -> EventAccumulator:
    return read(runs / "fit/kanoclip/surfaces_auxiliary/version_0")


def test_a_fit_and_its_test_are_one_run(runs) -> None:
    assert {path.parent for path in runs.rglob("*tfevents*")} == {runs / "fit/kanoclip/surfaces_auxiliary/version_0"}


def test_losses_are_logged_by_name_and_per_level(fit) -> None:
    for step in (0, 1):
        found = {tag: fit.Scalars(tag)[step].value for tag in fit.Tags()["scalars"] if tag.startswith("train")}
        assert found["train/loss"] == pytest.approx(sum(found[f"train/{name}"] for name in ("kd", "global", "local")))
        assert found["train/local"] == pytest.approx(found["train/local_level_1"] + found["train/local_level_2"])


def test_gradient_norms_of_each_head_and_the_learning_rate_are_logged(fit) -> None:
    heads = [tag for tag in fit.Tags()["scalars"] if tag.startswith("gradient_norm")]
    assert sorted(heads) == [f"gradient_norm/{name}" for name in ("adapter", "interaction", "prompts")]
    assert all(event.value > 0 for tag in heads for event in fit.Scalars(tag))
    assert [event.value for event in fit.Scalars("lr")] == pytest.approx([0.001, 0.001])


def test_options_are_there_to_compare_runs_by(fit) -> None:
    found = options_of(fit)
    assert found["adapter"] == "ConvAdapter"
    assert found["fitted_on"] == "surfaces_auxiliary"
    assert (found["seed"], found["lr"], found["batch_size"]) == (111, 0.001, 8)


def test_a_test_has_numbers_at_the_step_of_its_checkpoint(fit, runs) -> None:
    rows = list(csv.DictReader((runs / "test/kanoclip/surfaces/version_0/results.csv").open()))
    expected = {
        f"test_surfaces/{name}": float(rows[1][name]) for name in rows[1] if name.startswith(("image_", "pixel"))
    }
    events = {tag: fit.Scalars(tag) for tag in fit.Tags()["scalars"] if tag.startswith("test")}
    assert {tag: event.value for tag, (event,) in events.items()} == pytest.approx(expected)
    assert {event.step for (event,) in events.values()} == {2}


def test_histograms_count_each_image_and_each_pixel(fit) -> None:
    counts = {tag: fit.Histograms(tag)[-1].histogram_value.num for tag in fit.Tags()["histograms"]}
    assert counts["test_surfaces/image_score_normal"] == counts["test_surfaces/image_score_anomalous"] == 2
    assert counts["test_surfaces/map_normal"] + counts["test_surfaces/map_anomalous"] == 4 * 128**2
    assert len(fit.Histograms("val/map_anomalous")) == 2  # one an epoch


def test_precision_and_recall_begin_with_all_images(fit) -> None:
    true, false, *others = curve(fit, "test_surfaces_image/gear")[:, 0]
    assert (true, false, others) == (2, 2, [0, 0, 0.5, 1])
    pixels = curve(fit, "test_surfaces_pixel/gear")
    assert pixels[:4].sum(0) == pytest.approx([4 * 128**2] * 127)
    assert (np.diff(pixels[5]) <= 0).all()


def curve(log: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = log.Tensors(tag)
    return make_ndarray(event.tensor_proto)


def test_pictures_and_texts_are_there(fit) -> None:
    images, texts = fit.Tags()["images"], fit.Tags()["tensors"]
    assert {"val/curves", "test_surfaces/curves", "examples/training/0"} <= set(images)
    assert len([tag for tag in images if tag.startswith("test_surfaces_images/")]) == 4
    assert [event.step for event in fit.Images("val/curves")] == [1]  # of the last epoch, as its histograms
    config = fit.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "\n      class_path: kanoclip.models.kanoclip.KAnoCLIP" in config.replace("    model:\n", "\n")
    assert "test_surfaces/results/text_summary" in texts


def test_a_checkpoint_that_was_moved_or_is_of_others_is_logged_with_the_test(fit, runs, tmp_path, monkeypatch) -> None:
    last = runs / "fit/kanoclip/surfaces_auxiliary/version_0/checkpoints/last.ckpt"
    assert fit_of(str(last)) == last.parents[1]
    assert fit_of("") is None
    moved = tmp_path / "heads" / "mine.ckpt"
    moved.parent.mkdir()
    shutil.copy(last, moved)
    monkeypatch.chdir(tmp_path)
    assert main([*TEST, "--ckpt_path", str(moved), "--output", "here"]) == 0
    log = read(tmp_path / "here")
    assert {path.parent for path in tmp_path.rglob("*tfevents*")} == {tmp_path / "here"}
    assert options_of(log)["fitted_on"] == "surfaces_auxiliary"
    assert log.Scalars("test_surfaces/image_auroc")


@pytest.mark.parametrize(("told", "steps"), [(3, 3), ("x", 0), (None, 0), ([1], 0), (-1, 0), (10**30, 0)])
def test_a_checkpoint_without_a_count_of_steps_is_logged_at_step_0(tmp_path, told, steps) -> None:
    torch.save({"global_step": told}, tmp_path / "any.ckpt")
    assert steps_of(str(tmp_path / "any.ckpt")) == steps


def test_events_that_cannot_be_written_leave_the_numbers(runs, tmp_path, monkeypatch, capsys) -> None:
    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(runs.parent)
    monkeypatch.setattr("kanoclip.outputs.log.send_text", full)
    assert main([*TEST, "--output", str(tmp_path)]) == 1
    assert "The test could not be logged to" in capsys.readouterr().err
    assert (tmp_path / "results.json").is_file()


def test_a_fit_is_the_same_with_and_without_a_log(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--trainer.logger", "false"]) == 0
    heads = [torch.load(next(where.rglob("last.ckpt")), weights_only=True)["state_dict"] for where in (runs, tmp_path)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_a_logger_of_numbers_alone_gets_those(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs"]) == 0
    (metrics,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(metrics.open()))
    assert {"lr", "gradient_norm/adapter", "train/local_level_1", "val/image_auroc"} <= set(rows[0])
    assert "adapter: ConvAdapter" in (metrics.parent / "hparams.yaml").read_text()


def test_mlflow_gets_options_numbers_pictures_and_texts(tmp_path, monkeypatch) -> None:
    tracking = pytest.importorskip("mlflow").tracking
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = ["--trainer.logger", "MLFlowLogger", "--trainer.logger.tracking_uri", f"file:{tmp_path}/mlruns"]
    assert main([*FIT, *logger]) == 0
    assert main([*TEST, *logger, "--ckpt_path", str(next(tmp_path.rglob("last.ckpt")))]) == 0
    client = tracking.MlflowClient(f"file:{tmp_path}/mlruns")
    (experiment,) = [one for one in client.search_experiments() if one.name == "lightning_logs"]
    test, fit = client.search_runs([experiment.experiment_id])
    assert fit.data.params["adapter"] == test.data.params["adapter"] == "ConvAdapter"
    assert {"train/local_level_2", "lr", "gradient_norm/prompts"} <= set(fit.data.metrics)
    assert "test_surfaces/pixel_aupro" in test.data.metrics
    files = {path.relative_to(tmp_path).parts[-2:] for path in tmp_path.rglob("artifacts/**/*.*")}
    assert {("config", "000000.txt"), ("curves", "000002.png"), ("results", "000002.txt"), ("0", "000001.png")} <= files


@pytest.mark.parametrize("folder", ["None", "'.'"])  # as MLflow's with a database, and as W&B's
def test_a_logger_without_a_folder_of_its_own_leaves_all_files_in_that_of_the_run(
    tmp_path, monkeypatch, folder
) -> None:
    monkeypatch.chdir(tmp_path)
    own = f"    name, version, save_dir = 'n', 1, {folder}\n    log_metrics = log_hyperparams = lambda *_, **__: None\n"
    Path("nowhere.py").write_text(f"from lightning.pytorch.loggers import Logger\n\nclass Nowhere(Logger):\n{own}")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("nowhere", None)
    assert main([*FIT, "--trainer.logger", "nowhere.Nowhere"]) == 0
    run = Path("runs/fit/kanoclip/surfaces_auxiliary/version_0")
    assert [*Path().rglob("config.yaml")] == [run / "config.yaml"]
    assert (run / "run.json").is_file()


def test_each_logger_of_several_gets_all(kit) -> None:
    from kanoclip.outputs import ExampleMaps, RunLog

    loggers = [CSVLogger(kit.folder, "csv", ""), *(TensorBoardLogger(kit.folder, name, "") for name in "ab")]
    data = kit.data(kit.samples("d/ring/good/1.png", "d/ring/hole/2.png"))
    kit.trainer(ExampleMaps(), RunLog(), logger=loggers, max_epochs=1, log_every_n_steps=1).fit(kit.model(), data)
    for name in "ab":
        log = read(kit.folder / name)
        assert log.Tags()["images"] == ["examples/training/0", "examples/training/1"]
        assert log.Scalars("gradient_norm/weight")
