"""What ends a run early: signals to all of its processes, a first process that is killed, options Lightning refuses."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from kanoclip.verbs.table import main

HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
DRAWN = "--data surfaces_auxiliary --data.category wood --data.images 2 --data.batch_size 2"


@pytest.fixture
def model(tiny_name) -> list[str]:
    backbone = f"--model.backbone clip --model.backbone.name {tiny_name} --model.backbone.image_size 32"
    return [*backbone.split(), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


class Command:
    """The command in a session of its own, in a folder."""

    def __init__(self, argv: list[str], folder: Path) -> None:
        self.said = folder / "said.txt"
        # a child inherits an ignored Ctrl-C, as of a shell's background job or left behind by Lightning
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.said.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kanoclip", *argv],
                cwd=folder,
                env=HERE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        signal.signal(signal.SIGINT, before)

    def tell_all(self, told: int, once) -> tuple[int, str]:
        """Send a signal to all processes once something is there; returns the exit code and what was said."""
        deadline = time.monotonic() + 300
        while not once() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            os.killpg(self.process.pid, told)
            return self.process.wait(60), self.said.read_text()
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


@pytest.mark.parametrize(("told", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_fit_whose_processes_are_all_told_to_end_keeps_its_checkpoint_and_goes_on(
    model, tmp_path, told, code, devices
) -> None:
    several = ["--trainer.devices", str(devices), *(["--trainer.strategy", "ddp"] if devices > 1 else [])]
    argv = ["fit", *DRAWN.split(), "--data.num_workers", "2", *model, *several, "--trainer.max_epochs"]
    found = Command([*argv, "100000"], tmp_path).tell_all(told, lambda: list(tmp_path.glob("runs/**/last.ckpt")))
    assert found[0] == code, found[1]
    assert "Traceback" not in found[1]
    assert "killed by signal" not in found[1]
    assert re.search(r"interrupted\. Finished epochs: .*last\.ckpt; to go on: .*--ckpt_path last", found[1], re.S)
    if told == signal.SIGTERM:
        assert "kanoclip: stopped by SIGTERM." in found[1]
    if devices == 1 and told == signal.SIGTERM:
        (last,) = tmp_path.glob("runs/**/last.ckpt")
        import torch

        epochs = torch.load(last, weights_only=True)["epoch"] + 2
        again = subprocess.run(
            [sys.executable, "-m", "kanoclip", *argv, str(epochs), "--ckpt_path", "last"],
            cwd=tmp_path,
            env=HERE,
            check=False,
            capture_output=True,
            text=True,
        )
        assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(("told", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_prediction_whose_processes_are_all_told_to_end_keeps_its_rows(model, tmp_path, told, code) -> None:
    (tmp_path / "in").mkdir()
    for i in range(300):
        cv2.imwrite(str(tmp_path / f"in/{i:03d}.png"), np.full((200, 200, 3), i % 200, np.uint8))
    argv = ["predict", "--data", "folder", "--data.root", "in", "--data.batch_size", "2", "--data.num_workers", "2"]
    begun = lambda: len(list(tmp_path.glob("runs/**/maps/*.png"))) > 4
    found = Command([*argv, *model, "--model", "clip"], tmp_path).tell_all(told, begun)
    assert found[0] == code, found[1]
    assert "Traceback" not in found[1]
    (folder,) = tmp_path.glob("runs/predict/*/*/*")
    rows = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
    assert 0 < len(rows) < 300
    assert f"Stopped; {len(rows)} images are done" in found[1]
    assert len(rows) == len(list((folder / "maps").iterdir()))
    assert all((folder / row["overlay"]).is_file() for row in rows)


def test_sigterm_before_anything_has_begun_is_one_line(model, tmp_path) -> None:
    begin = time.monotonic()
    command = Command(["fit", *DRAWN.split(), *model], tmp_path)
    code, said = command.tell_all(signal.SIGTERM, lambda: time.monotonic() > begin + 0.7)
    assert (code, said) == (143, "kanoclip: stopped by SIGTERM.\n")


@pytest.mark.parametrize(
    ("option", "value", "answer"),
    [
        ("barebones", "true", "--trainer.barebones switches off all that a run leaves behind."),
        ("accelerator", "tpu", "--trainer: Requirement 'torch_xla"),
        ("logger", "WandbLogger", "--trainer: Requirement 'wandb"),
    ],
)
def test_options_of_the_trainer_that_cannot_be_are_one_line(
    model, tmp_path, monkeypatch, capsys, option, value, answer
):
    monkeypatch.chdir(tmp_path)
    code = main(["fit", *DRAWN.split(), "--data.num_workers", "0", *model, f"--trainer.{option}", value])
    said = capsys.readouterr().err
    if code == 0:
        pytest.skip("the package is installed")
    assert code == 2
    assert f"kanoclip: error: {answer}" in said


def fit(model, *options: str) -> int:
    return main(["fit", *DRAWN.split(), "--data.num_workers", "0", *model, "--trainer.max_epochs", "1", *options])


def test_a_metric_that_is_not_logged_is_one_line(model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(model, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/nope") == 2
    assert "--trainer: Early stopping conditioned on metric `val/nope` which is not" in capsys.readouterr().err


def test_a_fit_without_checkpoints_says_so(model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(model, "--trainer.enable_checkpointing", "false") == 0
    assert "--trainer.enable_checkpointing false, so there is no checkpoint" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_trial_run_leaves_nothing(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(model, "--trainer.fast_dev_run", "true") == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.name.startswith("version")]


def test_a_profiler_is_heard(model, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(model, "--trainer.profiler", "simple") == 0
    assert "run_training_epoch" in caplog.text


def test_a_fit_of_few_steps_is_logged(model, tmp_path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    assert fit(model) == 0
    (folder,) = tmp_path.glob("runs/fit/*/*/version_0")
    assert EventAccumulator(str(folder)).Reload().Scalars("train/loss")
