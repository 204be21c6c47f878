"""What goes wrong in the world: processes killed, disks full, odd pictures, files made to do harm."""

import csv
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from several import full_disk, going_on, kill_in_write, run

from kanoclip.data.listing import list_tree
from kanoclip.verbs.table import main

KILLED = -9


@pytest.fixture(scope="module")
def model(tiny_name) -> list[str]:
    backbone = ["--model.backbone", "clip", "--model.backbone.name", tiny_name, "--model.backbone.image_size", "32"]
    return [*backbone, "--model.knowledge", "surfaces"]


def write_images(folder: Path, masks: dict[str, np.ndarray | None], side: int = 32) -> list[str]:
    """Write noise with these masks (None: a normal image) and a manifest of them; returns the options to read it."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, rows = np.random.default_rng(3), [["image", "mask", "label"]]
    for name, mask in masks.items():
        picture = numbers.integers(0, 120, (side, side, 3), np.uint8)
        if mask is not None:
            picture[mask > 0] += 120
            cv2.imwrite(str(folder / f"{name}_mask.png"), mask)
        cv2.imwrite(str(folder / f"{name}.png"), picture)
        rows.append([f"{name}.png", f"{name}_mask.png" if mask is not None else "", str(int(mask is not None))])
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return ["--data", "manifest", "--data.file", str(folder / "list.csv"), "--data.num_workers", "0"]


def square(top: int, height: int, side: int = 32) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + height, top : top + height] = 255
    return mask


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    return [
        *write_images(folder, {str(i): square(4 * i, 9) if i % 2 else None for i in range(6)}),
        "--data.batch_size",
        "3",
    ]


@pytest.fixture(scope="module")
def fitted(model, data, tmp_path_factory) -> Path:
    """The checkpoint of an unbroken fit of three epochs."""
    folder = tmp_path_factory.mktemp("fitted")
    codes, _, err = run(1, ["fit", *data, *model, "--trainer.max_epochs", "3"], folder)
    assert codes == [0], err
    return next(folder.glob("runs/fit/*/*/version_0/checkpoints/last.ckpt"))


def whole(folder: Path) -> int:
    """Check that every file that has its name has its content; returns how many there are."""
    found = [path for path in folder.rglob("*.*") if path.is_file() and not path.name.endswith(".tmp")]
    for path in found:
        if path.suffix == ".png":
            assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None, path
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            assert len({len(row) for row in csv.reader(path.open(newline=""))}) == 1, path
        elif path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
    return len(found)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_a_fit_that_is_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    model, data, fitted, tmp_path
) -> None:
    argv = ["fit", *data, *model, "--trainer.max_epochs", "3"]  # config.yaml, then a checkpoint an epoch
    assert run(1, argv, tmp_path, fault=partial(kill_in_write, 3))[0] == [KILLED]
    (first,) = tmp_path.glob("runs/fit/*/*/version_0/checkpoints/last.ckpt")
    assert torch.load(first, weights_only=True)["epoch"] == 0
    assert whole(tmp_path)
    codes, _, err = run(1, [*argv, "--ckpt_path", "last"], tmp_path)
    assert codes == [0], err
    (second,) = tmp_path.glob("runs/fit/*/*/version_1/checkpoints/last.ckpt")
    for name, weight in weights(fitted).items():
        assert torch.equal(weights(second)[name], weight), name


def test_a_fit_that_is_killed_before_its_record_is_whole_does_not_count_as_finished(model, data, tmp_path) -> None:
    argv = ["fit", *data, *model, "--trainer.max_epochs", "1"]  # config.yaml, last.ckpt, run.json
    assert run(1, argv, tmp_path, fault=partial(kill_in_write, 3))[0] == [KILLED]
    assert len(list(tmp_path.glob("runs/fit/*/*/version_0/checkpoints/last.ckpt"))) == 1
    assert not list(tmp_path.glob("runs/fit/*/*/version_0/run.json"))
    codes, _, err = run(1, ["test", "--data", "surfaces", "--data.images", "2", "--data.num_workers", "0"], tmp_path)
    assert codes == [2]
    assert "No finished fit of kanoclip" in err[0]


@pytest.mark.parametrize(("turn", "done"), [(2, 0), (5, 1)])
def test_a_test_that_is_killed_while_it_writes_leaves_nothing_broken(data, fitted, tmp_path, turn, done) -> None:
    argv = ["test", *data, *going_on(fitted), "--report", "false"]  # results.csv, results.json, six overlays
    assert run(1, argv, tmp_path, fault=partial(kill_in_write, turn))[0] == [KILLED]
    assert whole(tmp_path)
    assert len(list(tmp_path.rglob("results.json"))) == done
    assert run(1, argv, tmp_path)[0] == [0]
    report = sorted(tmp_path.rglob("results.json"))[-1]
    assert report.parent.name == "version_1"
    assert json.loads(report.read_text())["images"] == 6


def test_a_prediction_that_is_killed_while_it_writes_lists_what_is_there(data, fitted, tmp_path) -> None:
    # three images of a batch, a map and an overlay each
    argv = ["predict", *data, *going_on(fitted), "--report", "false"]
    assert run(1, argv, tmp_path, fault=partial(kill_in_write, 9))[0] == [KILLED]
    assert whole(tmp_path)
    (folder,) = tmp_path.glob("runs/predict/*/*/version_0")
    rows = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
    assert len(rows) == 3
    assert all((folder / row[kind]).is_file() for row in rows for kind in ("map", "overlay"))
    assert run(1, argv, tmp_path)[0] == [0]
    assert len(list(csv.DictReader((folder.parent / "version_1/predictions.csv").open(newline="")))) == 6


def test_a_benchmark_that_is_killed_again_and_again_ends_as_an_unbroken_one(model, data, tiny_name, tmp_path) -> None:
    backbone = {"class_path": "clip", "init_args": {"name": tiny_name, "image_size": 32}}
    small = {"images": 2, "num_workers": 0}
    plan = {
        "auxiliary": {"class_path": "surfaces_auxiliary", "init_args": {**small, "category": "wood"}},
        "data": [{"class_path": "surfaces", "init_args": {**small, "category": "gear"}}],
        "models": [{"class_path": "kanoclip", "init_args": {"backbone": backbone}}],
        "seeds": [1],
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    found = {}
    for name, turns in (("whole", ()), ("killed", (3, 4, 5))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
        argv = ["benchmark", "--config", "plan.yaml", "--output", "out"]
        for turn in turns:
            assert run(1, argv, folder, fault=partial(kill_in_write, turn))[0] == [KILLED]
            assert whole(folder)
        codes, _, err = run(1, argv, folder)
        assert codes == [0], err
        (row,) = csv.DictReader((folder / "out/results.csv").open(newline=""))
        measured = ("ms_per_image", "fit_bytes", "test_bytes")  # which no two runs have alike
        found[name] = {key: value for key, value in row.items() if key not in measured}
        assert whole(folder)
    assert found["killed"] == found["whole"]


def test_a_checkpoint_that_was_cut_is_told_with_the_remedy(data, fitted, tmp_path, capsys) -> None:
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(fitted.read_bytes()[:5000])
    assert main(["test", *data, "--ckpt_path", str(cut)]) == 2
    said = capsys.readouterr().err
    assert f"{cut} is damaged, or no checkpoint of kanoclip" in said
    assert "Give --ckpt_path another one from runs/fit, or fit anew." in said


@pytest.mark.parametrize(
    ("verb", "options", "size", "what"),
    [
        ("fit", ["--trainer.logger=false"], 60_000, "last.ckpt:"),
        ("fit", [], 60_000, "into the folder of the run"),  # TensorBoard
        ("test", [], 2_000, "results.json:"),
        ("predict", [], 1_000, "predictions.json"),
    ],
)
def test_a_full_disk_is_told_in_one_line(model, data, fitted, tmp_path, verb, options, size, what) -> None:
    more = [*model, *options, "--trainer.max_epochs", "1"] if verb == "fit" else going_on(fitted)
    codes, _, err = run(1, [verb, *data, *more], tmp_path, fault=partial(full_disk, size))
    assert codes == [2]
    (line,) = [line for line in err[0].splitlines() if "error" in line]
    assert line.startswith("kanoclip: error: Cannot write ")
    assert what in line
    assert line.endswith("Free the disk or choose another place with --trainer.default_root_dir.")
    assert "Traceback" not in err[0]
    assert not list(tmp_path.glob("runs/*/*/*/*"))  # a run that failed leaves no folder


@pytest.mark.parametrize(("verb", "size"), [("test", 30_000), ("predict", 40_000)])
def test_pictures_that_find_no_room_leave_the_numbers(fitted, tmp_path, verb, size) -> None:
    data = write_images(tmp_path / "in", {str(i): square(9, 90, 128) if i % 2 else None for i in range(4)}, 128)
    argv = [verb, *data, "--data.batch_size", "4", *going_on(fitted)]
    codes, out, err = run(1, argv, tmp_path, fault=partial(full_disk, size))
    assert codes == [1], err
    (line,) = [line for line in err[0].splitlines() if "could not be written" in line]
    assert line.startswith("kanoclip: 4 pictures could not be written; the ")
    assert "complete. The first: Cannot write " in line
    assert "Traceback" not in err[0]
    (folder,) = tmp_path.glob(f"runs/{verb}/*/*/*")
    if verb == "test":
        assert json.loads((folder / "results.json").read_text())["images"] == 4
        assert "image score" not in out[0]
        assert "normal" in out[0]
    else:
        rows = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
        assert [(row["map"], row["overlay"]) for row in rows] == [(f"maps/{i}.png", "") for i in range(4)]
        assert json.loads((folder / "predictions.json").read_text())["images"] == 4


def test_a_benchmark_on_a_full_disk_ends_in_one_line(tmp_path) -> None:
    plan = {
        "auxiliary": "surfaces_auxiliary",
        "data": [{"class_path": "surfaces", "init_args": {"images": 2, "category": "gear", "num_workers": 0}}],
        "models": ["local_stats"],
        "seeds": [1],
        "trainer": {"accelerator": "cpu"},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    codes, _, err = run(1, ["benchmark", "--config", "plan.yaml"], tmp_path, fault=partial(full_disk, 1000))
    assert codes == [2], err
    assert "kanoclip: error: Cannot write " in err[0]
    assert "Traceback" not in err[0]


def test_a_fit_whose_disk_is_full_at_the_second_checkpoint_keeps_the_first_and_goes_on(
    model, data, fitted, tmp_path
) -> None:
    argv = ["fit", *data, *model, "--trainer.max_epochs", "3"]
    codes, _, err = run(1, argv, tmp_path, fault=partial(full_at, 3))
    assert codes == [2]
    assert "last.ckpt: No space left on device. Free the disk or choose another place with --trainer" in err[0]
    assert "last.ckpt; to go on: the same command with --ckpt_path last" in err[0]
    codes, _, err = run(1, [*argv, "--ckpt_path", "last"], tmp_path)
    assert codes == [0], err
    (second,) = tmp_path.glob("runs/fit/*/*/version_1/checkpoints/last.ckpt")
    for name, weight in weights(fitted).items():
        assert torch.equal(weights(second)[name], weight), name


def full_at(turn: int) -> None:
    """Let the n-th file that must last find the disk full: config.yaml, then checkpoints."""
    from kanoclip.data import files

    sync, left = files.sync, [2 * turn - 1]  # of each file its content, then its folder

    def full(path: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        sync(path)

    files.sync = full


def test_two_predictions_at_once_have_a_folder_and_a_list_each(data, fitted, tmp_path) -> None:
    argv = ["predict", *data, *going_on(fitted), "--trainer.logger", "false"]
    argv += ["--trainer.default_root_dir", str(tmp_path / "runs")]
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda name: run(1, argv, tmp_path / name), ("a", "b")))
    assert [codes for codes, _, _ in ended] == [[0], [0]]
    lists = [
        list(csv.DictReader(path.open(newline=""))) for path in tmp_path.glob("runs/predict/*/*/*/predictions.csv")
    ]
    assert len(lists) == 2
    assert all(len({tuple(row.values()) for row in rows}) == len(rows) == 6 for rows in lists)


@pytest.mark.parametrize(
    "typed",
    [
        "data show surfaces --count 2 --output file/x.png",
        "data download visa --accept_license --root file/x",
        "predict --data surfaces --data.images 2 --model local_stats --trainer.default_root_dir file/x",
        "benchmark --config plan.yaml --output file/x",
    ],
)
def test_a_place_where_nothing_can_be_written_is_told_with_the_option_that_names_it(
    tmp_path, monkeypatch, capsys, typed
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    plan = {"auxiliary": "surfaces_auxiliary", "data": ["surfaces"], "models": ["local_stats"], "seeds": [1]}
    plan["trainer"] = {"accelerator": "cpu"}
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    *_, option, _ = typed.split()
    assert main(typed.split()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "file/x" in line
    assert "Not a directory" in line or "A file is where its folder should be" in line
    assert option in line


def test_a_csv_takes_all_of_a_batch_or_nothing_when_the_disk_is_full(tmp_path) -> None:
    codes, _, _ = run(1, ["--version"], tmp_path, fault=partial(fill, tmp_path / "x.csv"))
    assert codes == [0]
    assert (tmp_path / "x.csv").read_text() == "1234567890\n" * 9


def fill(file: Path) -> None:
    from kanoclip.data.files import append_text

    full_disk(105)
    for _ in range(9):
        append_text(file, "1234567890\n")
    with pytest.raises(OSError, match=r"Cannot write .*x.csv: "):
        append_text(file, "1234567890\n")


@pytest.fixture
def tested(fitted, tmp_path, monkeypatch):
    """Test images with the given masks; returns the results of all of them."""
    monkeypatch.chdir(tmp_path)

    def test(masks: dict[str, np.ndarray | None], side: int = 32) -> dict:
        options = write_images(tmp_path / "odd", masks, side)
        assert main(["test", *options, *going_on(fitted), "--trainer.accelerator", "cpu"]) == 0
        (report,) = tmp_path.rglob("results.json")
        return json.loads(report.read_text())["results"]["object"]

    return test


def test_a_mask_of_one_pixel_counts(tested) -> None:
    found = tested({"a": square(5, 1), "b": None, "c": None})
    assert (found["images"], found["anomalous"]) == (3, 1)
    assert 0 <= found["pixel_auroc"] <= 1
    assert 0 <= found["pixel_aupro"] <= 1


def test_a_mask_that_shrinks_to_nothing_leaves_pixel_metrics_undefined_and_the_image_anomalous(tested) -> None:
    mask = np.zeros((320, 320), np.uint8)
    mask[1, 1] = 255
    found = tested({"a": mask, "b": None}, side=320)
    assert found["image_auroc"] in (0, 0.5, 1)
    assert [found[name] for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")] == [None] * 4


@pytest.mark.parametrize(("mask", "anomalous"), [(None, 0), (square(3, 9), 2)])
def test_one_class_only_is_undefined_for_images(tested, capsys, mask, anomalous) -> None:
    found = tested({"a": mask, "b": mask})
    assert (found["image_auroc"], found["images"], found["anomalous"]) == (None, 2, anomalous)
    assert "—" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_scores_that_are_not_numbers_are_an_error(data, fitted, tmp_path, monkeypatch, capsys, verb) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(fitted, weights_only=True)
    for name, weight in content["state_dict"].items():
        content["state_dict"][name] = weight * 1e30
    torch.save(content, "big.ckpt")
    assert main([verb, *data, *going_on("big.ckpt"), "--trainer.accelerator", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "are NaN or infinite. The model overflowed: use --trainer.precision 32-true" in said


class Harm:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.fixture
def harmless(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not Path("harm").exists()


@pytest.mark.parametrize("place", ["state_dict", "kanoclip", "hyper_parameters", "extra"])
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_a_checkpoint_cannot_run_code(data, fitted, harmless, capsys, place, verb) -> None:
    content = torch.load(fitted, weights_only=True)
    content.setdefault(place, {})["harm"] = Harm()
    torch.save(content, "bad.ckpt")
    assert main([verb, *data, "--ckpt_path", "bad.ckpt"]) == 2
    assert "bad.ckpt is damaged, or no checkpoint of kanoclip (UnpicklingError)" in capsys.readouterr().err


@pytest.mark.parametrize("section", ["model", "backbone"])
def test_a_checkpoint_builds_only_what_is_a_model(data, fitted, harmless, capsys, section) -> None:
    content = torch.load(fitted, weights_only=True)
    stored = content["hyper_parameters"]
    harm = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "harm"]}}
    if section == "model":
        stored.clear()
        stored |= {"_class_path": harm["class_path"], **harm["init_args"]}
    else:
        stored["backbone"] = harm
    torch.save(content, "bad.ckpt")
    assert main(["test", *data, "--ckpt_path", "bad.ckpt"]) == 2
    assert "error" in capsys.readouterr().err


HARM = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [harm]]"


def test_a_config_cannot_run_code(harmless, capsys) -> None:
    Path("bad.yaml").write_text(f"seed_everything: {HARM}\ndata: surfaces\n")
    assert main(["fit", "--config", "bad.yaml"]) == 2
    assert "bad.yaml is not YAML: could not determine a constructor" in capsys.readouterr().err


def test_a_knowledge_base_cannot_run_code(model, data, harmless, capsys) -> None:
    Path("bad.yaml").write_text(f"general: {HARM}\n")
    assert main(["fit", *data, *model, "--model.knowledge", "bad.yaml", "--trainer.accelerator", "cpu"]) == 2
    assert "bad.yaml" in capsys.readouterr().err


def test_a_list_of_files_in_the_cache_is_never_unpickled(harmless, monkeypatch) -> None:
    monkeypatch.setenv("KANOCLIP_CACHE", str(harmless / "cache"))
    monkeypatch.setattr("kanoclip.data.listing.WORTH_CACHING", 1)
    monkeypatch.setattr("kanoclip.data.listing.SETTLED", 0)
    Path("tree").mkdir()
    Path("tree/a.png").touch()
    assert list_tree(Path("tree")) == ["a.png"]
    (cached,) = (harmless / "cache").rglob("*.json")
    cached.write_bytes(pickle.dumps({"folders": Harm(), "files": ["b.png"]}))
    assert list_tree(Path("tree")) == ["a.png"]
