"""Whether a fit or test is done: of what has changed since it is not, of all else it is."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from kanoclip.data.files import sha256
from kanoclip.data.sets.folder import Folder
from kanoclip.knowledge.base import FOLDER, KnowledgeBase
from kanoclip.models.checkpoint import read_checkpoint
from kanoclip.outputs.record import files_of
from kanoclip.verbs import jobs, work
from kanoclip.verbs.plan import read_plan
from kanoclip.verbs.table import main

BACKBONE = {"class_path": "clip", "init_args": {"name": "local-dir:clip", "image_size": 32}}
MODELS = {"kanoclip": {"backbone": BACKBONE, "knowledge": "base.yaml"}, "clip_vv": {"backbone": BACKBONE}}
BENCHMARK = ["benchmark", "--config", "mine.yaml", "--output", "out"]


def write_images(folder: str, count: int) -> None:
    numbers = np.random.default_rng(count)
    for place in ("normal", "abnormal", "masks"):
        Path(folder, place).mkdir(parents=True)
    for number in range(count):
        image, mask = numbers.integers(0, 200, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        cv2.imwrite(f"{folder}/normal/{number}.png", image)
        image[8:16, 8:16], mask[8:16, 8:16] = 255, 255
        cv2.imwrite(f"{folder}/abnormal/{number}.png", image)
        cv2.imwrite(f"{folder}/masks/{number}.png", mask)


def write_plan(**changes) -> None:
    content = {
        "auxiliary": {"class_path": "folder", "init_args": {"root": "auxiliary", "num_workers": 0}},
        "data": [{"class_path": "folder", "init_args": {"root": "tested", "num_workers": 0}}],
        "models": [{"class_path": name, "init_args": options} for name, options in MODELS.items()],
        "seeds": [1],
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(content | changes))


@pytest.fixture(scope="module")
def finished(tiny_name, tmp_path_factory) -> Path:
    """A folder with two sets of images, weights, a knowledge base and a benchmark on them that is done."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_images("auxiliary", 2)
        write_images("tested", 3)
        shutil.copytree(tiny_name.removeprefix("local-dir:"), "clip")
        shutil.copy(FOLDER / "surfaces.yaml", "base.yaml")
        write_plan()
        assert main(BENCHMARK) == 0
    return folder


@pytest.fixture(autouse=True)
def folder(finished, tmp_path, monkeypatch) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def done() -> set[str]:
    """What is done: the fit of the model that learns, its test, the test of the other one."""
    learned, free = read_plan("mine.yaml", Path("out")).jobs
    (data,) = learned.data
    found = {"fit": learned.fitted, "test": learned.done(data), "free": free.done(data)}
    return {name for name, is_done in found.items() if is_done}


def add(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b" ")


def new_checkpoint() -> None:
    (path,) = Path("out").glob("**/last.ckpt")
    add(str(path))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda: add("auxiliary/abnormal/0.png"), {"free"}),
        (lambda: add("auxiliary/masks/0.png"), {"free"}),
        (lambda: add("base.yaml"), {"free"}),
        (lambda: add("clip/open_clip_config.json"), set()),
        (new_checkpoint, {"fit", "free"}),
        (lambda: add("tested/normal/0.png"), {"fit"}),
        (lambda: add("tested/masks/0.png"), {"fit"}),
        (lambda: shutil.copy("tested/normal/0.png", "tested/normal/9.png"), {"fit"}),
    ],
)
def test_what_depends_on_a_changed_file_is_stale_and_nothing_else(change, left) -> None:
    assert done() == {"fit", "test", "free"}
    change()
    assert done() == left
    assert main(BENCHMARK) == 0  # in the same folders
    assert done() == {"fit", "test", "free"}
    assert len(list(Path("out").glob("*-*"))) == 2
    assert len(list(Path("out").glob("**/run.json"))) == (1 if "fit" in left else 2)


def test_tests_are_stale_when_the_code_gives_other_numbers_or_reads_other_pixels(monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "RESULTS_VERSION", jobs.RESULTS_VERSION + 1)
        assert done() == {"fit"}
    monkeypatch.setattr(Folder, "usual_threshold", 3)
    assert done() == {"fit"}


@pytest.mark.parametrize(
    "change",
    [
        lambda: shutil.rmtree("auxiliary"),
        lambda: Path("tested/normal/0.png").touch(),
        lambda: write_plan(models=[{"class_path": n, "init_args": o, "label": n[:3]} for n, o in MODELS.items()]),
        lambda: write_plan(
            auxiliary={"class_path": "folder", "init_args": {"root": "auxiliary", "num_workers": 1}},
            data=[{"class_path": "folder", "init_args": {"root": "tested", "batch_size": 1}, "label": "photos"}],
            trainer={"max_epochs": 1, "enable_progress_bar": False},
        ),
    ],
)
def test_what_moves_no_number_leaves_all_done(change, monkeypatch) -> None:
    change()
    assert done() == {"fit", "test", "free"}
    monkeypatch.setattr(work, "KanoclipCLI", lambda *_: pytest.fail("ran again"))
    assert main(BENCHMARK) == 0


def test_a_plan_of_which_nothing_is_done_hashes_nothing(monkeypatch, capsys) -> None:
    for name in ("image_digests", "samples_digest"):
        monkeypatch.setattr(Folder, name, lambda *_: pytest.fail("hashed"))
    monkeypatch.setattr(jobs, "file_hashes", lambda *_: pytest.fail("hashed"))
    monkeypatch.setattr(jobs, "files_of", lambda *_: pytest.fail("hashed"))
    assert main([*BENCHMARK[:-1], "elsewhere", "--dry_run"]) == 0
    assert "1 fit and 2 tests to do" in capsys.readouterr().out


def test_a_row_that_is_added_leaves_the_others_done(capsys) -> None:
    rows = [{"class_path": name, "init_args": options} for name, options in MODELS.items()]
    write_plan(models=[rows[0] | {"init_args": MODELS["kanoclip"] | {"lr": 0.1}, "label": "fast"}, *rows])
    assert main([*BENCHMARK, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "1 fit and 1 test to do" in said
    assert [line.split()[-2:] for line in said.splitlines() if " kanoclip " in line] == [["done", "done"]]
    write_plan(models=[rows[0] | {"init_args": MODELS["kanoclip"] | {"score": "map_max"}, "label": "max"}, *rows])
    assert main([*BENCHMARK, "--dry_run"]) == 0
    assert "0 fits and 1 test to do" in capsys.readouterr().out  # no head depends on the score
    assert main(BENCHMARK) == 0
    assert len(list(Path("out").glob("**/run.json"))) == 1


def test_a_fit_that_was_stopped_before_its_images_changed_is_not_gone_on_with(capsys) -> None:
    (record,) = Path("out").glob("**/run.json")
    record.unlink()  # so that it looks unfinished
    add("auxiliary/abnormal/0.png")
    assert main(BENCHMARK) == 0
    assert "kanoclip is fitted anew, not from its last epoch: The checkpoint was fitted on" in capsys.readouterr().err
    assert done() == {"fit", "test", "free"}


def write_knowledge(answer: str) -> str:
    """Write what ``auto`` stands for, of one of the images; returns how its content is told."""
    image = sha256("auxiliary/abnormal/0.png")
    line = {"image": image, "category": "object", "state": "anomalous", "answers": [answer]}
    Path("runs/knowledge").mkdir(parents=True, exist_ok=True)
    Path("runs/knowledge/folder.jsonl").write_text(json.dumps(line) + "\n")
    return files_of("runs/knowledge/folder.jsonl")["runs/knowledge/folder.jsonl"]


def test_a_fit_without_knowledge_of_images_is_labelled_and_done_again_when_the_file_is_made(capsys) -> None:
    write_plan(models=[{"class_path": "kanoclip", "init_args": MODELS["kanoclip"] | {"image_knowledge": "auto"}}])
    label = "Fitted without knowledge of images, as there was no runs/knowledge/folder.jsonl: kanoclip ("
    seen = set()

    def row() -> dict:
        """Do what is to be done; returns the report of the row, whose fit is told alike by record and checkpoint."""
        (job,) = read_plan("mine.yaml", Path("out")).jobs
        assert not job.fitted
        assert main(BENCHMARK) == 0
        (job,) = read_plan("mine.yaml", Path("out")).jobs
        assert job.finished
        report = json.loads(job.report_path(job.data[0]).read_text())
        assert read_checkpoint(job.checkpoint)[0]["knowledge"] == report["knowledge"]
        record = json.loads((job.checkpoint.parents[1] / "run.json").read_text())
        assert record["files"].items() >= report["knowledge"].items()
        assert report["identity"] not in seen
        seen.add(report["identity"])
        return report["knowledge"]

    base = files_of("base.yaml")
    assert row() == {**base, "runs/knowledge/folder.jsonl": None}
    assert label in capsys.readouterr().out
    for answer in ("a pale line", "a dark line"):
        content = write_knowledge(answer)
        assert row() == {**base, "runs/knowledge/folder.jsonl": content}
        assert label not in capsys.readouterr().out
    Path("runs/knowledge/folder.jsonl").unlink()
    (job,) = read_plan("mine.yaml", Path("out")).jobs
    assert not job.fitted


def test_a_fit_that_began_without_knowledge_does_not_go_on_with_it(capsys) -> None:
    write_plan(models=[{"class_path": "kanoclip", "init_args": MODELS["kanoclip"] | {"image_knowledge": "auto"}}])
    assert main(BENCHMARK) == 0
    (job,) = read_plan("mine.yaml", Path("out")).jobs
    (job.checkpoint.parents[1] / "run.json").unlink()  # so that it looks unfinished
    write_knowledge("a pale line")
    assert main(BENCHMARK) == 0
    said = capsys.readouterr().err
    assert "anew, not from its last epoch: This fit began without runs/knowledge/folder.jsonl. Leave out" in said
    (job,) = read_plan("mine.yaml", Path("out")).jobs
    assert job.finished


@pytest.mark.parametrize("name", ["run.json", "folder-*.json", "last.ckpt"])
@pytest.mark.parametrize("content", [b"", bytes(99), b"[]"])
def test_what_a_power_cut_has_emptied_is_done_again(name, content, capsys) -> None:
    for path in Path("out").glob(f"**/{name}"):
        path.write_bytes(content)
    assert main(BENCHMARK) == 0
    assert done() == {"fit", "test", "free"}


def test_a_fit_whose_last_epoch_was_emptied_is_begun_anew(capsys) -> None:
    (record,) = Path("out").glob("**/run.json")
    record.unlink()
    next(Path("out").glob("**/last.ckpt")).write_bytes(b"")
    assert main(BENCHMARK) == 0
    assert done() == {"fit", "test", "free"}


def test_a_failure_that_is_dated_in_the_future_is_tried_again() -> None:
    learned, _ = read_plan("mine.yaml", Path("out")).jobs
    learned.report_path(learned.data[0]).unlink()
    learned.error.write_text("failed")
    os.utime(learned.error, (4e9, 4e9))
    assert main(BENCHMARK) == 0
    assert done() == {"fit", "test", "free"}
    assert not learned.error.exists()


def test_files_are_those_that_options_name() -> None:
    Path("weights.pt").write_bytes(b"1")
    embedded = "kanoclip.backbone.embedded.EmbeddedBackbone"
    options = {
        "backbone": {"class_path": embedded, "init_args": {"levels": [3, 5]}},
        "knowledge": "base.yaml",
        "lr": 0.1,
    }
    found = files_of(options | {"more": ["weights.pt", "local-dir:clip", "auto", "tested", None, "local-dir:nowhere"]})
    assert list(found) == [embedded, "base.yaml", "weights.pt", "local-dir:clip"]
    assert files_of(list(found)) == found
    Path("weights.pt").write_bytes(b"2")
    add("clip/open_clip_config.json")
    changed = files_of(list(found))
    assert {name for name in found if changed[name] != found[name]} == {"weights.pt", "local-dir:clip"}


def test_a_base_that_ships_is_known_by_its_name_and_content(monkeypatch, tmp_path) -> None:
    name = KnowledgeBase.choose("auto", "surfaces_auxiliary").reference
    assert name == "knowledge:surfaces"  # wherever the package is
    before = files_of([name])
    (tmp_path / "surfaces.yaml").write_text("other: texts")
    monkeypatch.setattr("kanoclip.outputs.record.KNOWLEDGE", tmp_path)
    assert files_of([name]).keys() == before.keys()
    assert files_of([name]) != before


def test_the_record_of_a_fit_names_its_samples_and_files() -> None:
    (path,) = Path("out").glob("**/run.json")
    record = json.loads(path.read_text())
    assert set(record["files"]) == {"local-dir:clip", "base.yaml"}
    assert len(record["samples"]) == 16


def test_a_test_is_stale_when_its_reference_images_are_others_whatever_they_are_called() -> None:
    write_images("good", 2)
    memory = {"class_path": "patches", "init_args": {"reference": "good/normal"}}
    write_plan(models=[{"class_path": "clip_vv", "init_args": {"backbone": BACKBONE, "memory": memory}}])

    def is_done() -> bool:
        (job,) = read_plan("mine.yaml", Path("out")).jobs
        return job.done(job.data[0])

    assert main(BENCHMARK) == 0
    assert is_done()
    shutil.move("good/normal/0.png", "good/normal/renamed.png")
    assert is_done()
    shutil.copy("tested/normal/0.png", "good/normal/1.png")
    assert not is_done()
    assert main(BENCHMARK) == 0
    assert is_done()
    shutil.rmtree("good")
    assert not is_done()
