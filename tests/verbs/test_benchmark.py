"""The benchmark: every run happens once, none stops the others, and the table says what was measured."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.data.sets.mvtec import BTAD
from kanoclip.models.baselines import LocalStats
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.verbs.jobs import Job
from kanoclip.verbs.plan import read_plan
from kanoclip.verbs.table import main
from kanoclip.verbs.work import work

ROOT = Path(__file__).parents[2]
SMALL = {"images": 2, "num_workers": 0, "category": "gear"}
STATS = {"class_path": "local_stats", "init_args": {"image_size": 32}}
SURFACES = {"class_path": "surfaces", "init_args": SMALL}


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


def fits() -> list[Path]:
    return list(Path("out").glob("**/run.json"))


def test_models_that_learn_are_fitted_once_per_seed_and_all_are_tested_on_all_data(tiny_model, capsys) -> None:
    data = [{"class_path": name, "init_args": SMALL} for name in ("surfaces", "surfaces_defects")]
    assert run(models=[STATS, tiny_model], data=data, seeds=[1, 2]) == 0
    found = {(row["data"], row["model"]): row for row in rows()}
    names = ("surfaces", "surfaces_defects", "mean of 2 drawn sets")
    assert list(found) == [(d, m) for d in names for m in ("local_stats", "kanoclip")]
    learned, free = found["surfaces", "kanoclip"], found["surfaces", "local_stats"]
    assert (learned["seeds"], learned["auxiliary"]) == ("2", "surfaces_auxiliary")
    assert (free["seeds"], free["auxiliary"], free["pixel_auroc_std"]) == ("1", "nothing", "")  # of any seed the same
    assert len(fits()) == 2
    said = capsys.readouterr()
    heads = [line for line in said.out.splitlines() if line.startswith("== ")]
    assert heads == ["== local_stats", "== kanoclip, seed 1", "== kanoclip, seed 2"]  # one seed of all, then the next
    assert "kanoclip: epoch 1 of 1 done, loss" in said.err  # without a terminal there is no progress bar
    assert list(Path("out").glob("kanoclip-*/test/**/overlays/*.png"))
    tests = json.loads(Path("out/results.json").read_text())["tests"]
    reports = [one["report"] for one in tests if (one["data"], one["model"]) == ("surfaces", "kanoclip")]
    assert [report["seed"] for report in reports] == [1, 2]
    mean = sum(report["results"]["mean"]["pixel_auroc"] for report in reports) / 2
    assert float(learned["pixel_auroc"]) == pytest.approx(mean)
    for file in ("table.txt", "table.md"):
        assert f"{mean:.3f} ±" in Path("out", file).read_text()
    assert rf"{mean:.3f} $\pm$" in Path("out/table.tex").read_text()


def test_what_is_done_is_not_done_again_and_what_changed_is(tiny_model, monkeypatch) -> None:
    assert run(models=[STATS, tiny_model]) == 0
    first = rows()
    with monkeypatch.context() as patch:
        patch.setattr("kanoclip.verbs.work.KanoclipCLI", lambda *_: pytest.fail("ran again"))
        assert run(models=[STATS, tiny_model]) == 0
    assert rows() == first
    count = len(fits())
    assert run(models=[tiny_model], data=[{"class_path": "surfaces", "init_args": SMALL | {"images": 4}}]) == 0
    assert len(fits()) == count  # other data: the same fit is tested
    assert run(models=[tiny_model], trainer={"max_epochs": 2}) == 0
    assert len(fits()) == count + 1


def test_the_same_data_with_other_options_is_another_row(capsys) -> None:
    data = [{"class_path": "surfaces", "init_args": SMALL | {"images": n}, "label": f"surfaces, {n}"} for n in (2, 4)]
    assert run(data=data) == 0
    assert [(row["data"], row["images"]) for row in rows()] == [
        ("surfaces, 2", "2"),
        ("surfaces, 4", "4"),
        ("mean of 2 drawn sets", ""),
    ]


def test_fits_that_differ_in_trainer_or_auxiliary_set_are_other_rows(tiny_model) -> None:
    options = {**SMALL, "category": "wood", "images": 4}
    more = {"class_path": "surfaces_auxiliary", "init_args": options, "label": "more surfaces"}
    protocols = [{}, {"trainer": {"max_epochs": 2}, "label": "2 epochs"}, {"auxiliary": more}]
    assert run(models=[STATS, tiny_model], protocols=protocols) == 0
    assert [(row["model"], row["auxiliary"], row["seeds"]) for row in rows()] == [
        ("local_stats", "nothing", "1"),
        ("kanoclip", "surfaces_auxiliary", "1"),
        ("kanoclip", "surfaces_auxiliary, 2 epochs", "1"),
        ("kanoclip", "more surfaces", "1"),
    ]
    tests = json.loads(Path("out/results.json").read_text())["tests"]
    for row, test in zip(rows()[1:], [one for one in tests if one["model"] == "kanoclip"], strict=True):
        assert row["auxiliary"] == test["auxiliary"]
        assert float(row["pixel_auroc"]) == test["report"]["results"]["mean"]["pixel_auroc"]


def test_an_auxiliary_set_of_ones_own_needs_no_seed(tiny_model, monkeypatch) -> None:
    lines = [
        "from kanoclip.data.drawn.surfaces import SurfacesAuxiliary",
        "class Seedless(SurfacesAuxiliary):",
        "    def __init__(self, images: int = 2) -> None:",
        "        super().__init__(images=images, num_workers=0, category='wood')",
    ]
    Path("seedless.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(Path.cwd())
    assert run(models=[tiny_model], auxiliary="seedless.Seedless") == 0
    assert [row["auxiliary"] for row in rows()] == ["Seedless"]


def test_the_version_is_that_of_the_measurements(capsys) -> None:
    assert run() == 0
    (place,) = Path("out").glob("local_stats-*/surfaces-*.json")
    report = json.loads(place.read_text())
    report["versions"]["kanoclip"] = "0.0.1"
    place.write_text(json.dumps(report))
    assert run() == 0
    assert "Measured with kanoclip 0.0.1." in Path("out/table.txt").read_text()


def test_a_run_that_fails_does_not_stop_the_others_and_is_told_at_the_end(monkeypatch, capsys) -> None:
    bad = {"class_path": "local_stats", "init_args": {"image_size": 4}, "label": "too_small"}
    assert run(models=[bad, STATS]) == 1
    assert [row["model"] for row in rows()] == ["local_stats"]
    said = capsys.readouterr().err
    message = "too_small failed. surfaces: image_size is 4, but windows of 1/16 need at least 16 pixels."
    assert f"{message} The whole story: out/local_stats-" in said
    assert "ValueError" in next(Path("out").glob("local_stats-*/error.txt")).read_text()
    assert f"Not done: {message}" in Path("out/table.txt").read_text()

    Path("out/table.txt").unlink()
    monkeypatch.setattr(LocalStats, "forward", lambda *_: {}["missing"])
    assert run(models=[{"class_path": "local_stats", "init_args": {"image_size": 64}, "label": "broken"}]) == 1
    assert "broken failed. surfaces: KeyError: 'missing'" in capsys.readouterr().err
    assert not Path("out/table.txt").exists()  # there is nothing to show
    monkeypatch.undo()


def test_a_data_set_that_fails_does_not_keep_a_model_from_the_others(capsys) -> None:
    Path("photos/normal").mkdir(parents=True)
    Path("photos/normal/a.png").write_bytes(b"no picture")
    broken = {"class_path": "folder", "init_args": {"root": "photos", "num_workers": 0}}
    assert run(data=[broken, {"class_path": "surfaces", "init_args": SMALL}]) == 1
    assert [row["data"] for row in rows()] == ["surfaces"]
    assert "local_stats failed. folder: " in (said := capsys.readouterr().err)
    assert "a.png" in said
    assert run(data=[{"class_path": "surfaces", "init_args": SMALL}]) == 0  # it is not asked for any more
    assert "failed" not in Path("out/table.txt").read_text()
    cv2.imwrite("photos/normal/a.png", np.full((20, 30, 3), 90, np.uint8))
    assert run(data=[broken, {"class_path": "surfaces", "init_args": SMALL}]) == 0  # mended: tried again
    assert [row["data"] for row in rows()] == ["folder", "surfaces"]


def test_a_set_that_fails_right_after_the_fit_is_named_and_the_next_one_is_tested(tiny_model, capsys) -> None:
    Path("photos/normal").mkdir(parents=True)
    Path("photos/normal/a.png").write_bytes(b"no picture")
    broken = {"class_path": "folder", "init_args": {"root": "photos", "num_workers": 0}}
    assert run(models=[tiny_model], seeds=[1], data=[broken, {"class_path": "surfaces", "init_args": SMALL}]) == 1
    assert "kanoclip failed. folder: " in capsys.readouterr().err
    assert [row["data"] for row in rows()] == ["surfaces"]


def test_a_fit_that_fails_is_tried_once_and_told_in_its_own_words(tiny_model, monkeypatch, capsys) -> None:
    calls = []
    monkeypatch.setattr(KAnoCLIP, "losses", lambda *_: calls.append(1) or {}["missing"])
    data = [{"class_path": name, "init_args": SMALL} for name in ("surfaces", "surfaces_defects")]
    assert run(models=[tiny_model], data=data) == 1
    assert "kanoclip failed. fit on surfaces_auxiliary: KeyError: 'missing'. The whole story" in capsys.readouterr().err
    assert len(calls) == 1


def test_a_full_disk_is_told_with_an_option_that_a_benchmark_has(monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.png")

    monkeypatch.setattr("kanoclip.verbs.work._verb", full)
    assert run() == 1
    assert (
        "Cannot write x.png: No space left on device. Free the disk or choose another place with --output."
        in capsys.readouterr().err
    )


def test_a_metric_that_is_not_defined_is_a_dash_and_never_zero(capsys) -> None:
    Path("photos/normal").mkdir(parents=True)
    cv2.imwrite("photos/normal/a.png", np.full((20, 30, 3), 90, np.uint8))
    assert run(data=[{"class_path": "folder", "init_args": {"root": "photos", "num_workers": 0}}]) == 0
    (row,) = rows()
    assert (row["image_auroc"], row["pixel_aupro"]) == ("", "")
    assert "folder: image_auroc —, pixel_auroc —" in capsys.readouterr().out
    assert "| — |" in Path("out/table.md").read_text()


@pytest.mark.parametrize(
    ("end", "code", "how"), [(KeyboardInterrupt, 130, "interrupted"), (SIGTERMException, 143, "terminated")]
)
def test_an_interrupted_benchmark_keeps_what_is_done_and_goes_on_from_the_last_epoch(
    end, code, how, tiny_model, monkeypatch, capsys
) -> None:
    losses, epochs = KAnoCLIP.losses, []

    def interrupted(self, *arguments):
        if self.current_epoch == 1:
            raise end
        return losses(self, *arguments)

    def counted(self, *arguments):
        epochs.append(self.current_epoch)
        return losses(self, *arguments)

    handler = signal.getsignal(signal.SIGINT)
    plan = {"models": [STATS, tiny_model], "trainer": {"max_epochs": 3}}
    with monkeypatch.context() as patch:
        patch.setattr(KAnoCLIP, "losses", interrupted)
        try:
            assert run(**plan) == code
        finally:
            signal.signal(signal.SIGINT, handler)
    assert f"{how}. What is done is in out; the same command goes on" in capsys.readouterr().err
    assert run("--dry_run", **plan) == 0
    assert "1 to do, 1 begun" in capsys.readouterr().out
    monkeypatch.setattr(KAnoCLIP, "losses", counted)
    assert run(**plan) == 0
    assert epochs == [1, 2]
    assert len(rows()) == 2


def test_a_plan_is_shown_and_nothing_is_run(tiny_model, monkeypatch, capsys) -> None:
    monkeypatch.setattr("kanoclip.verbs.work.KanoclipCLI", lambda *_: pytest.fail("ran"))
    plan = {
        "models": [STATS, tiny_model],
        "seeds": [1, 2],
        "data": [{"class_path": "surfaces", "init_args": SMALL}, "btad"],
    }
    assert run("--dry_run", **plan) == 0
    said = capsys.readouterr()
    assert "learns nothing" in said.out
    assert "2 to do" in said.out
    assert "1 of 2 on disk: surfaces" in said.out
    assert "2 fits and 3 tests to do. Runs and tables: out\nPublished numbers beside them: none." in said.out
    assert "kanoclip: left out btad: No BTAD at data/btad" in said.err
    assert not Path("out").exists()


@pytest.mark.parametrize("label", ["clip [ours]", "clip [/ours]", ":x: [bold]"])
def test_a_label_is_shown_as_it_is_written(label: str, capsys) -> None:
    assert run("--dry_run", models=[{**STATS, "label": label}]) == 0
    assert f" {label} " in capsys.readouterr().out
    assert run(models=[{**STATS, "label": label}]) == 0
    assert f" {label} " in capsys.readouterr().out
    assert f" {label} " in Path("out/table.txt").read_text()


def test_all_that_a_benchmark_prints_fits_80_columns_and_its_files_hold_all(tiny_model, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data = [SURFACES, {"class_path": "surfaces_defects", "init_args": SMALL}, "btad"]
    for options in (["--dry_run"], []):
        assert run(*options, models=[STATS, tiny_model], data=data, seeds=[1, 2]) == 0
        table = [line for line in capsys.readouterr().out.splitlines() if "==" not in line and "/table." not in line]
        assert len(table) > 6
        assert max(map(len, table)) <= 80
    text = Path("out/table.txt").read_text()
    assert max(map(len, text.splitlines())) > 120
    assert " ± " in text


def test_data_that_are_not_on_disk_are_told_and_left_out(tiny_model, capsys) -> None:
    here = [{"class_path": "surfaces", "init_args": SMALL}]
    protocols = [{"data": [*here, "btad", "visa"]}, {"auxiliary": "mvtec", "data": here}]
    assert run(protocols=protocols, data=None, models=[STATS, tiny_model]) == 0
    said = capsys.readouterr().err
    assert [line.split(":")[1] for line in said.splitlines() if "left out" in line] == [
        " left out btad",
        " left out visa",
        " left out mvtec",
    ]
    table = Path("out/table.txt").read_text()
    assert "Not on disk, so left out: btad, visa, mvtec." in table
    assert "Not fitted, as mvtec cannot be used: kanoclip." in table
    assert [(row["data"], row["model"], row["auxiliary"]) for row in rows()] == [
        ("surfaces", "local_stats", "nothing"),
        ("surfaces", "kanoclip", "surfaces_auxiliary"),
    ]


def test_what_two_protocols_name_is_done_and_counted_once() -> None:
    data = [{"class_path": "surfaces", "init_args": SMALL}]
    assert run(protocols=[{"data": data}, {"data": [*data, *data]}], data=None, seeds=[1, 1]) == 0
    assert [(row["data"], row["seeds"]) for row in rows()] == [("surfaces", "1")]


def test_without_any_data_on_disk_there_is_nothing_to_run(capsys) -> None:
    assert run(data=["btad"]) == 2
    assert "No data set of mine.yaml is on disk. Give --root FOLDER_THAT_CONTAINS_THEM." in capsys.readouterr().err


def test_published_numbers_stand_beside_a_set_with_as_many_images_as_were_published(monkeypatch, capsys) -> None:
    for place, grey in (("btad/01/test/ok", 90), ("btad/01/test/ko", 200), ("mvtec/a/test/good", 90)):
        Path("sets", place).mkdir(parents=True)
        cv2.imwrite(f"sets/{place}/000.png", np.full((20, 20, 3), grey, np.uint8))
    data = [{"class_path": name, "init_args": {"num_workers": 0}} for name in ("btad", "mvtec")]
    options = ("--root", "sets", "--published", "visa_to_all")
    assert run(*options, data=data) == 0
    assert "not beside btad, mvtec: perhaps not exactly the published images." in capsys.readouterr().out
    assert {row["source"] for row in rows()} == {"measured here"}
    monkeypatch.setattr(BTAD, "about", replace(BTAD.about, counts=(1, 1)))
    assert run(*options, data=data) == 0
    assert {row["data"] for row in rows() if row["source"] != "measured here"} == {"btad"}


def test_a_damaged_set_fails_its_rows_and_a_set_that_is_not_there_is_left_out(tiny_model, capsys) -> None:
    for place in ("btad/01/test/ok/1.png", "btad/01/ground_truth/ko/7.png"):
        Path("sets", place).parent.mkdir(parents=True)
        cv2.imwrite(f"sets/{place}", np.full((20, 20, 3), 90, np.uint8))
    here = {"class_path": "surfaces", "init_args": SMALL}
    assert run("--root", "sets", data=["btad", "visa", here], models=[STATS, tiny_model]) == 1
    said = capsys.readouterr()
    told = "kanoclip: error: mine.yaml, btad: No image for the mask sets/btad/01/ground_truth/ko/7.png"
    assert said.err.count(told) == 2  # before, and at the end
    assert "Not on disk, so left out: visa." in said.out
    assert "Not done: mine.yaml, btad: No image for the mask" in said.out
    assert [row["data"] for row in rows()] == ["surfaces", "surfaces"]
    assert run("--root", "sets", data=["visa", here], auxiliary="btad", models=[STATS, tiny_model]) == 1
    assert "Not fitted, as btad cannot be used: kanoclip." in capsys.readouterr().out
    assert run("--root", "sets", data=["visa", here]) == 0


def test_a_row_of_a_table_is_of_all_images_or_of_none(capsys) -> None:
    for name in ("ok/1.png", "ok/2.png", "ko/3.png"):
        Path("sets/btad/01/test", name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"sets/btad/01/test/{name}", np.full((20, 20, 3), 90, np.uint8))
    Path("sets/btad/01/test/ok/2.png").write_bytes(b"not a picture")
    assert run("--root", "sets", data=["btad"], models=[STATS]) == 1
    assert "Cannot use sets/btad/01/test/ok/2.png: it is not an image." in capsys.readouterr().err


def test_tested_images_that_were_fitted_are_seen_by_their_contents(tiny_model, capsys) -> None:
    for name in ("one", "two"):
        Path(name, "normal").mkdir(parents=True)
        cv2.imwrite(f"{name}/normal/{name}.png", np.full((20, 30, 3), 90, np.uint8))
    sets = [{"class_path": "folder", "init_args": {"root": name, "num_workers": 0}} for name in ("one", "two")]
    assert run(models=[STATS, tiny_model], auxiliary=sets[0], data=[sets[1], SURFACES]) == 0
    notes = Path("out/table.md").read_text()
    assert "NOT zero-shot, as tested images were fitted: kanoclip (folder) on folder." in notes
    assert "unknown" not in notes


def test_what_cannot_be_compared_is_not_called_zero_shot(tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(SurfacesAuxiliary, "image_digests", lambda *_: None)
    assert run(models=[STATS, tiny_model]) == 0
    said = "Zero-shot or not is unknown, as the contents of images were not compared: kanoclip (surfaces_auxiliary) on"
    assert said in Path("out/table.md").read_text()


def test_all_fits_are_tested_on_the_same_images_and_each_draws_its_own_to_fit(tiny_model) -> None:
    limited = {"images": 8, "num_workers": 0, "limit": 2}
    data = [{"class_path": "surfaces", "init_args": {**limited, "category": "gear"}}]
    auxiliary = {"class_path": "surfaces_auxiliary", "init_args": {**limited, "category": "wood"}}
    assert run(models=[tiny_model], data=data, auxiliary=auxiliary, seeds=[1, 2, 3]) == 0
    reports = [one["report"] for one in json.loads(Path("out/results.json").read_text())["tests"]]
    assert {report["data_seed"] for report in reports} == {111}
    assert len({report["samples"] for report in reports}) == 1
    assert len({json.loads(path.read_text())["samples"] for path in fits()}) > 1


@pytest.mark.parametrize("device", [{"devices": 2}, {"devices": -1}, {"num_nodes": 2}])
def test_a_run_has_one_device(device, capsys) -> None:
    assert run(trainer={"max_epochs": 1} | device) == 2
    assert "a benchmark gives each run one. Leave out trainer.devices and num_nodes, and use all devices with" in (
        capsys.readouterr().err
    )


def test_the_number_of_processes_is_one_or_more(capsys) -> None:
    assert run("--processes", "0") == 2
    assert '"processes": Not of type PositiveInt: 0 does not conform' in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


def test_a_benchmark_needs_a_config(capsys) -> None:
    assert main(["benchmark"]) == 2
    assert "arguments are required: config" in (said := capsys.readouterr().err)
    assert "Type: kanoclip benchmark --config quickstart" in said


def test_a_mistyped_name_in_the_config_is_answered_without_torch() -> None:
    source = "import sys; sys.modules['torch'] = None; from kanoclip.verbs.table import main; sys.exit(main())"
    command = [sys.executable, "-c", source, "benchmark", "--config", str(write(models=["kanoclipp"]))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "Unknown model 'kanoclipp' in mine.yaml. Did you mean 'kanoclip'?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_job_that_another_process_works_on_is_waited_for_and_not_done_twice(monkeypatch, capsys) -> None:
    models = [STATS, {"class_path": "local_stats", "init_args": {"image_size": 64}, "label": "other"}]
    jobs = read_plan(str(write(models=models)), Path("out")).jobs
    ran, finished = [], set()
    monkeypatch.setattr("kanoclip.verbs.work._run", lambda job, overall: ran.append(job.label))
    monkeypatch.setattr(Job, "finished", property(lambda job: job.label in finished))
    jobs[0].folder.mkdir(parents=True)
    locked, finish = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with FileLock(jobs[0].folder / ".lock"):
            locked.set()
            finish.wait(10)
            finished.add("local_stats")

    monkeypatch.setattr("kanoclip.verbs.work.time.sleep", lambda _: finish.set() or holder.join())
    holder = threading.Thread(target=elsewhere)
    holder.start()
    locked.wait(10)
    work(jobs, time.time())
    assert ran == ["other"]
    assert "waiting for another process, which is at local_stats" in capsys.readouterr().err


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path) -> None:
    program = (
        "import sys, time; from filelock import FileLock; FileLock(sys.argv[1]).acquire(); print(1, flush=True); "
        "time.sleep(60)"
    )
    file = str(tmp_path / ".lock")
    holder = subprocess.Popen([sys.executable, "-c", program, file], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    with FileLock(file, timeout=0):
        pass


def test_what_failed_since_the_start_is_not_tried_again_by_the_next_process(monkeypatch) -> None:
    (job,) = read_plan(str(write()), Path("out")).jobs
    tried = []
    monkeypatch.setattr("kanoclip.verbs.work._verb", lambda *_: tried.append(1) or {}["missing"])
    start = time.time() - 1
    work([job], start)
    work([job], start)
    assert len(tried) == 1
    work([job], time.time() + 1)
    assert len(tried) == 2


def test_seeds_of_a_model_that_shows_only_when_built_that_it_learns_nothing_count_once(monkeypatch) -> None:
    Path("own.py").write_text(
        "from kanoclip.models.baselines import LocalStats\n\n\nclass Mine(LocalStats):\n    pass\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    assert run(models=[{"class_path": "own.Mine", "init_args": {"image_size": 32}}], seeds=[1, 2]) == 0
    assert [(row["model"], row["seeds"]) for row in rows()] == [("Mine", "1")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts processes, not GPUs")
def test_several_processes_share_the_work(monkeypatch, capfd) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    models = [
        {"class_path": "local_stats", "init_args": {"image_size": 32 + 16 * n}, "label": f"stats{n}"} for n in range(3)
    ]
    models.append({"class_path": "local_stats", "init_args": {"image_size": 4}, "label": "too_small"})
    assert run("--processes", "2", models=models) == 1
    assert sorted(row["model"] for row in rows()) == ["stats0", "stats1", "stats2"]
    said = capfd.readouterr()
    assert said.out.count("== ") == 4  # each was done once
    assert "stats1 | surfaces: image_auroc" in said.out
    assert said.err.count("too_small failed. surfaces: image_size is 4") == 1
    shutil.rmtree("out")
