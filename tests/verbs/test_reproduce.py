"""A benchmark that tests given checkpoints and judges its rows; what is shared between rows; and the preflight."""

import csv
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.data.about import About
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.verbs import preflight, work
from kanoclip.verbs.configs import FOLDER
from kanoclip.verbs.hours import FirstSteps, Overall, ToDo, expected
from kanoclip.verbs.plan import read_plan
from kanoclip.verbs.table import main

SURFACES = {"class_path": "surfaces", "init_args": {"images": 12, "num_workers": 0, "category": "gear"}}
AUXILIARY = {"class_path": "surfaces_auxiliary", "init_args": {"images": 2, "num_workers": 0, "category": "wood"}}
CLIP = {"class_path": "clip", "init_args": {"backbone": "embedded"}}
PARTS = {"prompts": "ensemble", "interaction": "none", "kd_loss": "none"}  # what learns little is fast to fit


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))


def write(**changes) -> str:
    content = {"auxiliary": AUXILIARY, "data": [SURFACES], "seeds": [1], "trainer": {"max_epochs": 1}}
    Path("mine.yaml").write_text(yaml.safe_dump(content | changes))
    return "mine.yaml"


def run(*options: str, **changes) -> int:
    return main(["benchmark", "--config", write(**changes), "--output", "out", *options])


def verdicts() -> dict[str, str]:
    with open("out/verdicts.csv", newline="") as file:
        return {f"{row['data']} {row['metric']}": row["verdict"] for row in csv.DictReader(file)}


def results() -> dict:
    return json.loads(Path("out/results.json").read_text())


def test_a_row_whose_expectation_is_known_is_judged_right_and_wrong(capsys) -> None:
    assert run(models=[CLIP]) == 0
    found = results()["tests"][0]["report"]["results"]["mean"]
    numbers = {
        "image_auroc": round(100 * found["image_auroc"], 1),
        "pixel_auroc": round(100 * found["pixel_auroc"] - 3, 1),
        "tolerance": 0.5,
        "source": "measured before",
    }
    rows = {"surfaces": numbers, "btad": {"image_auroc": 90, "tolerance": 1, "source": "a paper"}}
    capsys.readouterr()
    assert run(models=[CLIP | {"expected": rows}], data=[SURFACES, "btad"]) == 0  # it ran, whatever it found
    wanted = {"surfaces image_auroc": "reproduced", "surfaces pixel_auroc": "NOT reproduced"}
    assert verdicts() == wanted | {"btad image_auroc": "not measured"}
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "pixel_auroc" in line and "NOT" in line)
    assert f"{numbers['pixel_auroc']:g}" in line
    assert f"{100 * found['pixel_auroc']:.1f} [" in line  # with its interval
    assert "measured before" in Path("out/table.txt").read_text()
    assert [one["verdict"] for one in results()["verdicts"]] == list(verdicts().values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (90, "expected should be such as expected: {mvtec:"),
        ({"surface": {"image_auroc": 90, "tolerance": 1, "source": "s"}}, "Did you mean 'surfaces'?"),
        ({"surfaces": {"image_aurok": 90, "tolerance": 1, "source": "s"}}, "Did you mean 'image_auroc'?"),
        ({"surfaces": {"image_auroc": 90, "source": "s"}}, "a tolerance in percent points and a source"),
        ({"surfaces": {"image_auroc": 90, "tolerance": 1}}, "a tolerance in percent points and a source"),
        ({"surfaces": {"image_auroc": 900, "tolerance": 1, "source": "s"}}, "needs percents"),
        ({"surfaces": {"tolerance": 1, "source": "s"}}, "needs percents"),
    ],
)
def test_a_wrong_expectation_is_told_before_anything_runs(given, said, capsys) -> None:
    assert run("--dry_run", models=[CLIP | {"expected": given}]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.fixture
def checkpoint() -> str:
    """A checkpoint of a small fit, as a file that is found nowhere near its fit."""
    assert run(models=[{"class_path": "kanoclip", "init_args": {"backbone": "embedded", **PARTS}}]) == 0
    (path,) = Path("out").glob("**/last.ckpt")
    shutil.copy(path, "heads.ckpt")
    shutil.rmtree("out")
    return "heads.ckpt"


def test_a_given_checkpoint_is_tested_without_a_fit_and_known_by_its_content(checkpoint, monkeypatch, capsys) -> None:
    row = {"label": "given", "class_path": "kanoclip", "checkpoint": checkpoint}
    maximum = {
        "label": "maximum",
        "class_path": "kanoclip",
        "init_args": {"score": "map_max"},
        "checkpoint": checkpoint,
    }
    assert run("--dry_run", models=[row, maximum]) == 0
    assert "checkpoint heads.ckpt" in (said := capsys.readouterr().out)
    assert "0 fits and 2 tests to do" in said
    with monkeypatch.context() as patch:
        patch.setattr(work, "_fit", lambda *_: pytest.fail("fitted"))
        assert run(models=[row, maximum], seeds=[1, 2]) == 0
        first, second = results()["tests"]
        assert first["auxiliary"] == "surfaces_auxiliary"
        assert first["report"]["options"]["model"]["prompts"] != "learned"  # its own options
        assert first["report"]["parameters"] > 0
        scores = [one["report"]["results"]["mean"]["image_auroc"] for one in (first, second)]
        assert scores[0] != scores[1]
        patch.setattr(work, "KanoclipCLI", lambda *_: pytest.fail("ran again"))
        Path("heads.ckpt").rename("moved.ckpt")
        moved = [one | {"checkpoint": "moved.ckpt"} for one in (row, maximum)]
        assert run(models=moved) == 0  # the same content
    with open("moved.ckpt", "ab") as file:
        file.write(b" ")
    (job, _) = read_plan(write(models=moved), Path("out")).jobs
    assert not job.finished


def test_a_checkpoint_that_is_not_there_is_told_and_its_row_is_not_measured(capsys) -> None:
    numbers = {"surfaces": {"image_auroc": 90, "tolerance": 1, "source": "s"}}
    row = {"label": "given", "class_path": "kanoclip", "checkpoint": "nowhere.ckpt", "expected": numbers}
    assert run(models=[CLIP, row]) == 0
    assert "left out given: no checkpoint at nowhere.ckpt. Make it with: kanoclip import" in capsys.readouterr().err
    assert verdicts() == {"surfaces image_auroc": "not measured"}
    assert run(models=[row]) == 2
    assert "No checkpoint at nowhere.ckpt." in capsys.readouterr().err


def test_a_checkpoint_of_another_model_fails_its_row(checkpoint, capsys) -> None:
    row = {"label": "given", "class_path": "clip_vv_knpl", "checkpoint": checkpoint}
    assert run(models=[row]) == 1
    assert "given failed. surfaces: The checkpoint was fitted with model kanoclip" in capsys.readouterr().err
    assert run("--preflight", models=[row]) == 1


def test_rows_that_differ_in_score_and_smoothing_share_a_fit_and_those_that_differ_in_heads_read_features_once(
    monkeypatch,
) -> None:
    cached = {**AUXILIARY["init_args"], "cache": True}
    options = {"backbone": "embedded", **PARTS}
    rows = {
        "mean": options,
        "maximum": options | {"score": "map_max"},
        "smooth": options | {"sigma": 6.0},
        "linear": options | {"adapter": "linear"},
    }
    models = [{"label": label, "class_path": "kanoclip", "init_args": one} for label, one in rows.items()]
    seen, tuned = [], CLIPBackbone.tuned

    def counted(self, image, *arguments):
        seen.append(len(image))
        return tuned(self, image, *arguments)

    monkeypatch.setattr(CLIPBackbone, "tuned", counted)
    auxiliary = AUXILIARY | {"init_args": cached}
    data = [SURFACES | {"init_args": SURFACES["init_args"] | {"cache": True}}]
    assert run(models=models, auxiliary=auxiliary, data=data) == 0
    assert len(list(Path("out").glob("**/run.json"))) == 2  # of four rows
    found = {one["model"]: one["report"]["results"]["mean"] for one in results()["tests"]}
    assert list(found) == list(rows)
    assert found["mean"]["image_auroc"] != found["maximum"]["image_auroc"]
    assert found["mean"]["pixel_auroc"] == found["maximum"]["pixel_auroc"] != found["smooth"]["pixel_auroc"]
    checkpoints = {one["model"]: one["report"]["checkpoint"]["sha256"] for one in results()["tests"]}
    assert checkpoints["mean"] == checkpoints["maximum"] == checkpoints["smooth"] != checkpoints["linear"]
    assert sum(seen) == 2 + 12  # each image went through the backbone once, for two fits and four tests


def test_trained_parameters_and_peak_memory_are_columns() -> None:
    models = [CLIP, {"class_path": "kanoclip", "init_args": {"backbone": "embedded", **PARTS}}]
    assert run(models=models) == 0
    with open("out/results.csv", newline="") as file:
        free, learned = csv.DictReader(file)
    assert (free["trained_parameters"], free["fit_bytes"]) == ("0", "")
    fit = json.loads(next(Path("out").glob("**/run.json")).read_text())
    assert int(learned["trained_parameters"]) == fit["parameters"] > 0
    assert int(learned["fit_bytes"]) == fit["memory"]["bytes"] > 2**26
    assert int(free["test_bytes"]) > 2**26
    said = Path("out/table.txt").read_text()
    assert f"{fit['parameters']:,}" in said
    assert "MiB: the most that the process held, with Python and libraries." in said


def test_the_reference_is_a_row(capsys) -> None:
    assert run("--dry_run", models=[CLIP], reference="clipp") == 2
    assert "reference is 'clipp', expected a row's label. Did you mean 'clip'?" in capsys.readouterr().err


def test_the_preflight_finds_nothing_wrong_with_the_embedded_backbone_and_runs_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(work, "KanoclipCLI", lambda *_: pytest.fail("ran"))
    assert run("--preflight", models=[CLIP, CLIP | {"label": "again"}]) == 0
    said = capsys.readouterr().out
    assert said.count("weights of kanoclip embedded, 128 px") == 1
    assert "digest 769c08370fb8, activation GELU(" in said
    assert "6 of 6" in said
    assert "12 normal" not in said
    assert not Path("out").exists()


def test_the_preflight_sees_weights_that_are_not_trained_or_not_as_known(tiny_name, monkeypatch, capsys) -> None:
    backbone = {"class_path": "clip", "init_args": {"name": tiny_name, "image_size": 32}}
    assert run("--preflight", models=[{"class_path": "clip", "init_args": {"backbone": backbone}}]) == 1
    assert "WRONG" in capsys.readouterr().out
    key, state = next(iter(preflight.STATES.items()))
    monkeypatch.setitem(preflight.STATES, key, (state[0] + 0.01, *state[1:]))
    assert run("--preflight", models=[CLIP]) == 1
    assert "1 check of" in (said := capsys.readouterr().out)
    assert "expected image" in said
    gone = {"class_path": "clip", "init_args": {"name": "local-dir:nowhere"}}
    assert run("--preflight", models=[{"class_path": "clip", "init_args": {"backbone": gone}}]) == 1


def test_the_preflight_compares_the_weights_behind_a_checkpoint(checkpoint, monkeypatch, capsys) -> None:
    row = {"label": "given", "class_path": "kanoclip", "checkpoint": checkpoint}
    assert run("--preflight", models=[row]) == 0
    assert "kanoclip, fitted on surfaces_auxiliary" in (said := capsys.readouterr().out)
    assert "weights that given was fitted with" in said
    monkeypatch.setattr(CLIPBackbone, "fingerprint", "0" * 64)
    assert run("--preflight", models=[row]) == 1


def test_the_preflight_compares_the_images_with_the_published_counts(monkeypatch, capsys) -> None:
    about = About("t", "r", "l", "h", counts=(6, 6))
    monkeypatch.setattr(Surfaces, "about", about, raising=False)
    assert run("--preflight", models=[CLIP]) == 0
    monkeypatch.setattr(Surfaces, "about", replace(about, counts=(7, 6)))
    assert run("--preflight", models=[CLIP]) == 1
    assert "6 normal, 6 anomalous; published are 7 and 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", sorted((FOLDER / "benchmarks" / "reproduce").glob("*.yaml")), ids=lambda path: path.stem
)
def test_reproductions_that_ship_can_be_read(path) -> None:
    plan = read_plan(str(path), Path("out"))
    assert plan.expected
    assert all(one.source and one.tolerance for one in plan.expected)
    assert list(plan.not_given) == [job.label for job in plan.jobs]


def test_the_hours_are_told_once_from_the_first_steps(monkeypatch, capsys) -> None:
    monkeypatch.setattr("kanoclip.verbs.hours.TIMED", 1)
    monkeypatch.setattr("kanoclip.verbs.hours.UNTIMED", 1)
    auxiliary = AUXILIARY | {"init_args": AUXILIARY["init_args"] | {"batch_size": 1}}
    models = [CLIP, {"class_path": "kanoclip", "init_args": {"backbone": "embedded", **PARTS}}]
    assert run(models=models, auxiliary=auxiliary, seeds=[1, 2], trainer={"max_epochs": 2}) == 0
    said = capsys.readouterr().err
    assert said.count("expected: ") == 1
    assert re.search(r"expected: (\d+ minutes?|[\d.]+ hours) for 2 fits and 3 tests, at ", said)
    assert run(models=[*models, CLIP | {"label": "again"}], auxiliary=auxiliary, seeds=[1, 2]) == 0


def test_hours_are_those_of_all_images_shared_by_the_processes() -> None:
    to_do = ToDo(fits=2, fit_images=30_000, tests=4, test_images=6_000)
    assert expected(to_do, 0.4, 2) == (
        "expected: 2.0 hours for 2 fits and 4 tests in 2 processes, at 400 ms an image, as in the first steps."
    )
    assert "12 minutes for 4 tests," in expected(ToDo(0, 0, 4, 1800), 0.4, 1)
    assert FirstSteps(*to_do).to_do == to_do


def test_a_benchmark_says_how_far_it_is_and_when_it_will_end(monkeypatch) -> None:
    to_do, now = ToDo(fits=1, fit_images=600, tests=2, test_images=400), 1_000_000.0
    monkeypatch.setattr("kanoclip.verbs.hours.left", lambda jobs: to_do)
    monkeypatch.setattr("kanoclip.verbs.hours.time.time", lambda: now)
    overall = Overall([])
    assert str(overall) == "─" * 20 + " 0 of 3 runs done"
    to_do, now = ToDo(0, 0, 2, 400), now + 60
    until = time.strftime("%H:%M", time.localtime(now + 40))
    assert str(overall) == "━" * 12 + "─" * 8 + f" 1 of 3 runs done, the rest until about {until}"
    to_do = ToDo(0, 0, 0, 0)
    assert str(overall) == "━" * 20 + " 3 of 3 runs done"
