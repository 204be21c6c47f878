"""The benchmark: every run happens once, none stops the others, and the table says what was measured."""

import csv
import json
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from kanoclip.benchmark import main
from kanoclip.models.baselines import LocalStats
from kanoclip.models.kanoclip import KAnoCLIP

SMALL = {"images": 2, "num_workers": 0, "category": "gear"}
STATS = {"class_path": "local_stats", "init_args": {"image_size": 32}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_model(tiny_name) -> dict:
    backbone = {"class_path": "clip", "init_args": {"name": tiny_name, "image_size": 32}}
    return {"class_path": "kanoclip", "init_args": {"backbone": backbone}}


def write(**changes) -> Path:
    content = {
        "auxiliary": {"class_path": "surfaces_auxiliary", "init_args": {**SMALL, "category": "wood"}},
        "data": [{"class_path": "surfaces", "init_args": SMALL}],
        "models": [STATS],
        "seeds": [1],
        "trainer": {"max_epochs": 1},
    }
    file = Path("mine.yaml")
    file.write_text(yaml.safe_dump({key: value for key, value in (content | changes).items() if value is not None}))
    return file


def run(*options: str, **changes) -> int:
    return main(["benchmark", "--config", str(write(**changes)), "--output", "out", *options])


def rows() -> list[dict[str, str]]:
    with open("out/results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_models_that_learn_are_fitted_once_per_seed_and_all_are_tested_on_all_data(tiny_model, capsys) -> None:
    data = [{"class_path": name, "init_args": SMALL} for name in ("surfaces", "surfaces_defects")]
    assert run(models=[STATS, tiny_model], data=data, seeds=[1, 2]) == 0
    found = {(row["data"], row["model"]): row for row in rows()}
    assert set(found) == {(d["class_path"], m) for d in data for m in ("local_stats", "kanoclip")}
    assert found["surfaces", "kanoclip"]["seeds"] == "2"
    assert found["surfaces", "local_stats"]["seeds"] == "1"  # every seed would give the same
    assert found["surfaces", "local_stats"]["pixel_auroc_std"] == ""
    assert len(list(Path("out").glob("**/run.json"))) == 2
    printed = capsys.readouterr().out
    assert "== kanoclip, seed 2 (2 of 2)" in printed
    assert "Fitted on surfaces_auxiliary, zero-shot on all others" in printed
    assert printed.count("surfaces_defects") >= 2
    assert list(Path("out").glob("kanoclip-*/test/**/overlays/*.png"))
    reports = json.loads(Path("out/results.json").read_text())["surfaces kanoclip"]
    assert [report["seed"] for report in reports] == [1, 2]
    mean = sum(report["results"]["mean"]["pixel_auroc"] for report in reports) / 2
    assert float(found["surfaces", "kanoclip"]["pixel_auroc"]) == pytest.approx(mean)
    assert f"{mean:.3f} ±" in Path("out/table.md").read_text()


def test_what_is_done_is_not_done_again_and_what_changed_is(tiny_model, monkeypatch) -> None:
    assert run(models=[STATS, tiny_model]) == 0
    first = rows()
    with monkeypatch.context() as patch:
        patch.setattr("kanoclip.benchmark.KanoclipCLI", lambda *_: pytest.fail("ran again"))
        assert run(models=[STATS, tiny_model]) == 0
    assert rows() == first
    fits = len(list(Path("out").glob("**/run.json")))
    assert run(models=[tiny_model], data=[{"class_path": "surfaces", "init_args": SMALL | {"images": 4}}]) == 0
    assert len(list(Path("out").glob("**/run.json"))) == fits  # other data: the same fit is tested
    assert run(models=[tiny_model], trainer={"max_epochs": 2}) == 0
    assert len(list(Path("out").glob("**/run.json"))) == fits + 1


def test_a_run_that_fails_does_not_stop_the_others_and_is_told_at_the_end(monkeypatch, capsys) -> None:
    bad = {"class_path": "local_stats", "init_args": {"image_size": 4}, "label": "too_small"}
    assert run(models=[bad, STATS]) == 1
    assert [row["model"] for row in rows()] == ["local_stats"]
    said = capsys.readouterr().err
    assert "too_small, seed 1 failed. image_size is 4, but windows of 1/16 need at least 16 pixels. The whole" in said
    assert "ValueError" in next(Path("out").glob("too_small-*/error.txt")).read_text()

    Path("out/table.txt").unlink()
    monkeypatch.setattr(LocalStats, "forward", lambda *_: {}["missing"])
    assert run(models=[STATS | {"label": "broken"}]) == 1
    assert "broken, seed 1 failed. KeyError: 'missing'" in capsys.readouterr().err
    assert not Path("out/table.txt").exists()  # there is nothing to show


def test_a_metric_that_is_not_defined_is_a_dash_and_never_zero(capsys) -> None:
    Path("photos/normal").mkdir(parents=True)
    cv2.imwrite("photos/normal/a.png", np.full((20, 30, 3), 90, np.uint8))
    assert run(data=[{"class_path": "folder", "init_args": {"root": "photos", "num_workers": 0}}]) == 0
    (row,) = rows()
    assert (row["image_auroc"], row["pixel_aupro"]) == ("", "")
    assert "—" in capsys.readouterr().out
    assert "| — |" in Path("out/table.md").read_text()


def test_an_interrupted_benchmark_keeps_what_is_done(tiny_model, monkeypatch, capsys) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(KAnoCLIP, "losses", interrupted)
        try:
            assert run(models=[STATS, tiny_model]) == 130
        finally:
            signal.signal(signal.SIGINT, handler)
    assert "interrupted. What is done is in out; the same command goes on" in capsys.readouterr().err
    assert run(models=[STATS, tiny_model]) == 0
    assert len(rows()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": None}, r"mine.yaml should have the keys auxiliary, data, models, seeds, trainer, with lists of"),
        ({"data": "surfaces"}, "with lists of data, models and seeds"),
        ({"data": ["surfacess"]}, "Unknown data 'surfacess' in mine.yaml. Did you mean 'surfaces'?"),
        ({"models": [{"init_args": {}}]}, "mine.yaml: a model should be a name or have a class_path"),
        (
            {"models": [{"class_path": "kanoclip", "init_args": {"adapter": "cnov"}}]},
            "Unknown adapter 'cnov' in mine.yaml. Did you mean 'conv'?",
        ),
    ],
)
def test_a_mistake_in_the_config_is_told_before_anything_runs(changes, message, capsys) -> None:
    assert run(**changes) == 2
    assert message in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_a_benchmark_needs_a_config(capsys) -> None:
    assert main(["benchmark"]) == 2
    assert "arguments are required: config" in (said := capsys.readouterr().err)
    assert "Type: kanoclip benchmark --config configs/benchmarks/quickstart.yaml" in said
