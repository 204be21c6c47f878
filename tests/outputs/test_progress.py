"""How far a run is, as a reader counts."""

import re

from kanoclip.verbs.table import main

SMALL = ["--data", "surfaces_auxiliary", "--data.images", "2", "--data.num_workers", "0", "--data.category", "wood"]
FIT = ["fit", *SMALL, "--data.batch_size", "1", "--model.backbone", "embedded"]


def test_the_bar_counts_epochs_from_1_ends_at_its_end_and_shows_the_loss(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*FIT, "--trainer.max_epochs", "2"]) == 0
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert re.match(r"Epoch 2 of 2 .* 2/2 .*train/loss: \d", last)
    assert "v_num" not in last


def test_a_fit_that_ends_by_its_steps_counts_steps(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]) == 0
    said = capsys.readouterr().err
    assert "kanoclip: step 1 of 1 done, loss" in said
    assert "of 15" not in said
