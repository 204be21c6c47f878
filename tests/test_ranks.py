"""A run in 2 and 3 processes gives what one process gives, and writes it once."""

import csv
import json
import os
import signal
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from several import going_on, run, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kanoclip.data.loading import RankSampler
from kanoclip.ranks import gather, mean, rank_of, total

KINDS = ["nut", "plate", "wood"]
EPOCHS = ["--data.holdout", "0.3", "--model.knowledge", "surfaces", "--trainer.log_every_n_steps", "1"]
CONFIGS = Path(__file__).parents[1] / "configs/trainer"
EPOCHS += ["--trainer.max_epochs"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """23 pictures of three categories, half of them with a bright square; every other square has a mask."""
    folder = tmp_path_factory.mktemp("images")
    numbers, rows = np.random.default_rng(5), []
    for i in range(23):
        picture, mask = numbers.integers(0, 90, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        if i % 2:
            top, left = numbers.integers(0, 22, 2)
            picture[top : top + 9, left : left + 9] += 120
            mask[top : top + 9, left : left + 9] = 255
        cv2.imwrite(str(folder / f"{i}.png"), picture)
        cv2.imwrite(str(folder / f"{i}_mask.png"), mask)
        category = "nut" if i in (7, 8) else KINDS[1 + i // 12]  # nuts are all in one batch
        rows.append([f"{i}.png", f"{i}_mask.png" if i % 4 == 1 or i == 7 else "", i % 2, category])
    for name, count in (("all.csv", 23), ("few.csv", 3)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows([["image", "mask", "label", "category"], *rows[:count]])
    return folder


@pytest.fixture(scope="module")
def options(images, tiny_name):
    """Options of a run with the tiny model."""
    model = ["--model.backbone", "clip", "--model.backbone.name", tiny_name, "--model.backbone.image_size", "32"]

    def of(verb: str, batch_size: int, *more: str, name: str = "all.csv") -> list[str]:
        data = ["--data", "manifest", "--data.file", str(images / name), "--data.num_workers", "0"]
        return [verb, *data, "--data.batch_size", str(batch_size), *(model if verb == "fit" else []), *more]

    return of


class Fits(dict):
    """Number of processes -> the folder of a fit of two epochs: 12 images a step, of the last one 4; 7 are held out.

    Lightning itself starts two processes; three begin as torchrun starts them.
    """

    def __init__(self, options, make_folder) -> None:
        self.options, self.make_folder = options, make_folder

    def __missing__(self, count: int) -> Path:
        self[count] = folder = self.make_folder("fit")
        argv = self.options("fit", 12 // count, *EPOCHS, "2")
        if count == 2:
            codes, out, err = start(count, [*argv, "--trainer", str(CONFIGS / "ddp.yaml")], folder)
        else:
            codes, out, err = run(count, argv, folder)
        assert codes == [0] * len(codes), err
        assert err[0].count("fitted: runs/fit") == 1
        assert not any(out[1:] + err[1:])  # the first one speaks for all
        return folder


@pytest.fixture(scope="module")
def fits(options, tmp_path_factory) -> Fits:
    return Fits(options, tmp_path_factory.mktemp)


def fitted(folder: Path) -> Path:
    """The only version there is: all processes write to the same."""
    (version,) = folder.glob("runs/fit/kanoclip/manifest-all/*")
    return version


def events(folder: Path) -> EventAccumulator:
    assert len(list(folder.glob("events*.0"))) == 1  # those of tests have names of their own
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


@pytest.mark.parametrize("count", [2, 3])
def test_a_fit_has_the_losses_of_one_process_with_a_larger_batch(fits, count) -> None:
    one, several = events(fitted(fits[1])), events(fitted(fits[count]))
    for name in ("train/loss", "train/global", "train/local", "train/kd"):
        expected, found = ([event.value for event in log.Scalars(name)] for log in (one, several))
        assert len(expected) == 4
        assert found == pytest.approx(expected, abs=1e-5)
    for name in ("val/image_auroc", "val/pixel_auroc"):
        assert several.Scalars(name)[1].value == pytest.approx(one.Scalars(name)[1].value, abs=0.02)
    heads = [torch.load(fitted(fits[n]) / "checkpoints/last.ckpt", weights_only=True) for n in (1, count)]
    weights = [torch.cat([weight.flatten() for weight in one["state_dict"].values()]) for one in heads]
    assert float((weights[1] - weights[0]).abs().mean()) < 1e-5  # Adam makes the most of a gradient of almost 0


@pytest.mark.parametrize("count", [2, 3])
def test_a_fit_writes_what_one_process_writes_and_once(fits, count) -> None:
    files = [sorted(path.name for path in fitted(fits[n]).rglob("*") if "events" not in path.name) for n in (1, count)]
    assert files[0] == files[1] == ["checkpoints", "config.yaml", "hparams.yaml", "last.ckpt", "run.json"]
    records = [json.loads((fitted(fits[n]) / "run.json").read_text()) for n in (1, count)]
    for record in records:
        del record["seconds"], record["time"], record["memory"]  # as measured
    assert records[0] == records[1]
    shown = [events(fitted(fits[n])) for n in (1, count)]
    tags = {kind: shown[0].Tags()[kind] for kind in ("images", "scalars", "histograms", "tensors")}
    assert tags == {kind: shown[1].Tags()[kind] for kind in tags}
    examples = [tag for tag in tags["images"] if tag.startswith("examples")]
    assert len(examples) == 8
    for tag in examples:
        pictures = [
            cv2.imdecode(np.frombuffer(log.Images(tag)[1].encoded_image_string, np.uint8), 1).astype(int)
            for log in shown
        ]
        assert abs(pictures[0] - pictures[1]).mean() < 0.5  # the same image


def test_a_test_is_equal_to_the_last_digit(fits, options, images, tmp_path) -> None:
    checkpoint = fitted(fits[1]) / "checkpoints/last.ckpt"
    found = {}
    for count in (1, 2, 3):
        argv = options("test", 2, *going_on(checkpoint))
        codes, out, err = run(count, argv, tmp_path / str(count))
        assert codes == [0] * count, err
        assert out[0].count("mean of 3") == 1
        assert not any(out[1:] + err[1:])
        (folder,) = (tmp_path / str(count)).glob("runs/test/kanoclip/manifest-all/*")
        report = json.loads((folder / "results.json").read_text())
        pictures = {path.name: path.read_bytes() for path in (folder / "overlays").iterdir()}
        found[count] = (report["images"], report["results"], (folder / "results.csv").read_text(), pictures)
        assert sorted(path.name for path in folder.iterdir() if "events" not in path.name) == [
            "curves.json", "images.csv", "overlays", "report", "report.html", "results.csv",
            "results.json",
        ]  # fmt: skip
    assert found[1][0] == 23
    assert {name: found[1][1][name]["images"] for name in KINDS} == {"nut": 2, "plate": 10, "wood": 11}
    assert len(found[1][3]) == 16
    assert found[2] == found[3] == found[1]


@pytest.mark.parametrize(("name", "memory"), [("mrad_tf", "labelled"), ("mrad_ft", "labelled_projected")])
def test_several_processes_fill_the_memory_that_one_fills(images, tmp_path, name, memory) -> None:
    argv = ["fit", "--data", "manifest", "--data.file", str(images / "all.csv"), "--data.num_workers", "0"]
    argv += ["--data.batch_size", "2", "--model", name, "--model.memory", memory, "--model.memory.size", "11"]
    argv += ["--model.backbone", "embedded", "--model.backbone.levels", "[5]", "--model.backbone.levels_at", "norm"]
    found = []
    for count in (1, 2):
        codes, _, err = run(count, argv, tmp_path / str(count))
        assert codes == [0] * count, err
        (checkpoint,) = (tmp_path / str(count)).glob("runs/fit/*/*/*/checkpoints/last.ckpt")
        weights = torch.load(checkpoint, weights_only=True)["state_dict"]
        found.append({key: value for key, value in weights.items() if key.endswith(("keys", "labels"))})
    one, two = found
    assert {key: len(value) for key, value in one.items()} == dict.fromkeys(two, 11)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_fit_on_two_machines_goes_on_by_slurm_on_one(fits, options, tmp_path) -> None:
    nodes = ["--trainer", str(CONFIGS / "nodes.yaml")]
    codes, _, err = run(2, [*options("fit", 6, *EPOCHS, "1"), *nodes], tmp_path, nodes=2)
    assert codes == [0, 0], err
    codes, _, err = run(3, options("fit", 4, *EPOCHS, "2", "--ckpt_path", "last"), tmp_path, slurm=True)
    assert codes == [0, 0, 0], err
    (folder,) = tmp_path.glob("runs/fit/kanoclip/manifest-all/version_1")
    whole, resumed = ([event.value for event in events(f).Scalars("train/loss")] for f in (fitted(fits[1]), folder))
    assert resumed == pytest.approx(whole[2:], abs=1e-5)


def test_bfloat16_and_four_batches_a_step_give_nearly_the_same(fits, options, tmp_path) -> None:
    codes, _, err = run(1, [*options("fit", 3, *EPOCHS, "2"), "--trainer", str(CONFIGS / "bf16.yaml")], tmp_path)
    assert codes == [0], err
    exact, rough = events(fitted(fits[1])), events(fitted(tmp_path))
    assert len(rough.Scalars("train/loss")) == 4  # of 12 batches
    for name in ("val/image_auroc", "val/pixel_auroc"):
        assert rough.Scalars(name)[1].value == pytest.approx(exact.Scalars(name)[1].value, abs=0.1)


def test_a_prediction_is_complete_and_in_the_order_of_the_data(fits, images, tmp_path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, name in enumerate(["a.jpg", "a.png", "b.png", "c.png", "d.png", "e.png", "f.png"]):
        cv2.imwrite(str(data / name), cv2.imread(str(images / f"{i}.png")))
    for name in ("b.png", "e.png"):
        (data / name).write_text("no image")
    argv = ["predict", "--data", "folder", "--data.root", str(data), "--data.batch_size", "1", "--data.num_workers"]
    argv += ["0", *going_on(fitted(fits[1]) / "checkpoints/last.ckpt")]
    found = {}
    for count in (1, 2, 3):
        codes, out, err = run(count, argv, tmp_path / str(count))
        assert codes == [1] + [0] * (count - 1), err
        assert "5 images: " in out[0]
        assert not any(out[1:] + err[1:])
        (folder,) = (tmp_path / str(count)).glob("runs/predict/kanoclip/folder-data/*")
        written = {str(path.relative_to(folder)): path for path in folder.rglob("*.*") if "events" not in path.name}
        skipped = [line for line in err[0].splitlines() if "skipped" in line or "could not be read" in line]
        assert [line.split(":")[1].split("/")[-1] for line in skipped[:2]] == ["b.png", "e.png"]
        found[count] = skipped, {name: path.read_bytes() for name, path in written.items()}
    rows = list(csv.DictReader(found[1][1]["predictions.csv"].decode().splitlines()))
    assert [row["map"] for row in rows] == [f"maps/{name}.png" for name in ("a", "a_png", "c", "d", "f")]
    assert found[2] == found[3] == found[1]


def test_a_process_without_images_takes_part(fits, options, tmp_path) -> None:
    found = {}
    argv = options("test", 2, *going_on(fitted(fits[1]) / "checkpoints/last.ckpt"), name="few.csv")
    for count in (1, 3):
        codes, _, err = run(count, argv, tmp_path / str(count))  # two batches
        assert codes == [0] * count, err
        (report,) = (tmp_path / str(count)).glob("runs/test/*/*/*/results.json")
        found[count] = json.loads(report.read_text())["results"]
    assert found[3] == found[1]


def test_an_error_of_one_process_ends_all_and_is_told(options, images, tmp_path) -> None:
    rows = (images / "all.csv").read_text().replace("3.png", "broken.png").replace("1broken.png", "13.png")
    (images / "broken.csv").write_text(rows)
    (images / "broken.png").write_text("no image")
    codes, _, err = run(2, options("fit", 4, *EPOCHS, "1", name="broken.csv"), tmp_path)
    assert codes == [2, 2], err
    assert sum("broken.png: it is not an image" in text for text in err) == 1
    assert sum("lost the connection to the other processes" in text for text in err) == 1
    assert "Traceback" not in "".join(err)


def kill_the_second() -> None:
    """Have the second process killed by the system in its first step."""
    from kanoclip.models.base import AnomalyModule

    if os.environ["RANK"] == "1":
        AnomalyModule.training_step = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]


def test_a_process_that_is_killed_ends_the_others_in_one_line(options, tmp_path) -> None:
    codes, _, err = run(2, options("fit", 4, *EPOCHS, "1"), tmp_path, fault=kill_the_second)
    assert codes == [2, -signal.SIGKILL]
    assert err[0].splitlines()[-1].startswith("kanoclip: error: lost the connection to the other processes; ")
    assert "Traceback" not in err[0]
    assert not list(tmp_path.rglob("run.json"))  # it does not count as finished


def shares(monkeypatch, size: int, batch_size: int, world: int, seed: int | None) -> list[list]:
    """What each process takes, batch by batch."""
    found = []
    for rank in range(world):
        monkeypatch.setattr("kanoclip.data.loading.rank_of", lambda rank=rank: (rank, world))
        sampler = RankSampler(range(size), batch_size, seed)
        taken = list(sampler)
        assert len(sampler) == len(taken)
        found.append([taken[i : i + batch_size] for i in range(0, len(taken), batch_size)])
    return found


@pytest.mark.parametrize("size", [1, 4, 12, 13, 23])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_in_order_the_batches_are_those_of_one_process(monkeypatch, size, world) -> None:
    (whole,) = shares(monkeypatch, size, 4, 1, None)
    found = shares(monkeypatch, size, 4, world, None)
    assert [found[i % world][i // world] for i in range(len(whole))] == whole
    assert sum(map(len, found)) == len(whole)


@pytest.mark.parametrize(("size", "left_out"), [(24, 0), (25, 1), (26, 2), (27, 0), (35, 0), (11, 0)])
def test_shuffled_a_step_has_the_images_of_one_large_batch(monkeypatch, size, left_out) -> None:
    (whole,) = shares(monkeypatch, size, 12, 1, 7)
    found = shares(monkeypatch, size, 4, 3, 7)
    steps = [sorted(chain(*step)) for step in zip(*found, strict=True)]  # as many in each process
    assert steps == [sorted(step) for step in (whole[:-1] if left_out else whole)]
    sizes = [len(share[-1]) for share in found]
    assert max(sizes) - min(sizes) <= 1
    assert size - sum(map(len, steps)) == left_out


def test_too_few_images_to_fit_on_are_told_with_the_remedy(monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"2 images cannot be divided among 3 processes. Set --trainer.devices 2"):
        shares(monkeypatch, 2, 4, 3, 7)


def test_alone_a_process_says_nothing_and_averages_what_it_has() -> None:
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    average = mean(values)
    average.backward()
    assert (float(average.detach()), values.grad.tolist()) == (3, pytest.approx([1 / 3] * 3))
    assert float(mean(values[:0]).detach()) == 0
    assert total(values) is values
    assert (rank_of(), gather("me")) == ((0, 1), ["me"])
