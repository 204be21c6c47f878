"""A memory of good photos on the command line and in Python: the same scores, told as few-shot."""

import csv
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import kanoclip
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.heads.patch_memory import PatchMemory
from kanoclip.models.ablations import CLIPVV
from kanoclip.models.rivals.winclip import WinCLIP
from kanoclip.verbs.table import main

KINDS = {"winclip": WinCLIP, "clip_vv": CLIPVV}
SMALL = ["--model.backbone", "embedded", "--data", "folder", "--data.num_workers", "0", "--overlays", "false",
         "--report", "false"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``good``: photos of stripes; ``parts``: more of them, and some with a hole."""
    root, draw = tmp_path_factory.mktemp("few"), np.random.default_rng(2)
    for place, count in (("good", 3), ("parts/normal", 3), ("parts/abnormal", 3)):
        (root / place).mkdir(parents=True)
        for number in range(count):
            photo = np.kron(np.indices((16, 16))[1] % 2 * 90 + 60, np.ones((10, 10)))[..., None].repeat(3, 2)
            photo = photo + draw.integers(0, 20, photo.shape)
            if place.endswith("abnormal"):
                photo[40:100, 30:90] = (20, 30, 160)
            cv2.imwrite(str(root / place / f"{number}.png"), photo.astype(np.uint8))
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


def read_json(path: str) -> dict:
    return json.loads(Path(path).read_text())


def read_rows(path: str) -> list[dict]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def run(verb: str, output: str, *more: str, model: str = "winclip", root: str = "parts") -> str:
    options = [*SMALL, "--model", model, "--data.root", root, "--output", output, *more]
    if verb == "calibrate":
        options = [one for i, one in enumerate(options) if "overlays" not in one and "report" not in one
                   and options[i - 1] not in ("--overlays", "--report")]  # fmt: skip
    assert main([verb, *options]) == 0
    return output


MEMORY = ["--model.memory", "patches", "--model.memory.reference", "good"]


@pytest.mark.parametrize("model", KINDS)
def test_the_verbs_and_python_give_the_same_scores(folder, model, capsys) -> None:
    test = read_json(f"{run('test', f'{model}_test', *MEMORY, model=model)}/results.json")
    said = capsys.readouterr().out
    assert "few-shot (3 reference images), NOT zero-shot" in " ".join(said.split())
    assert (test["references"], test["zero_shot"], test["references_tested"]) == ("3 reference images", False, 0)
    assert test["components"]["memory"] == "PatchMemory"
    run("predict", f"{model}_predict", *MEMORY, "--maps", "false", model=model)
    rows = {row["path"]: row for row in read_rows(f"{model}_predict/predictions.csv")}
    inspect = kanoclip.Inspector(KINDS[model](EmbeddedBackbone(), memory=PatchMemory("good")))
    plain = kanoclip.Inspector(KINDS[model](EmbeddedBackbone()))
    moved = []
    for path, row in rows.items():
        found = inspect(path).score
        assert found == pytest.approx(float(row["image_score"]), abs=1e-5)
        moved.append(abs(found - plain(path).score))
    assert max(moved) > 0.01
    assert test["results"]["mean"]["image_auroc"] == 1.0 or model == "clip_vv"


def test_a_threshold_is_good_for_the_same_references_alone_wherever_they_lie(folder, capsys) -> None:
    run("calibrate", "threshold.json", *MEMORY, "--max_fpr", "0.5", root="parts/normal")
    shutil.copytree("good", "moved", dirs_exist_ok=True)
    run("predict", "decided", *MEMORY[:3], "moved", "--threshold", "threshold.json", "--maps", "false")
    kanoclip.Inspector(WinCLIP(EmbeddedBackbone(), memory=PatchMemory("moved")), threshold="threshold.json")
    for options in (["--model.memory.shots", "2"], ["--model.memory.subset", "greedy", "--model.memory.size", "9"]):
        assert main(["predict", *SMALL, "--model", "winclip", "--data.root", "parts", *MEMORY, *options,
                     "--threshold", "threshold.json", "--output", "refused"]) == 2  # fmt: skip
    assert "threshold" in capsys.readouterr().err


def test_the_identity_of_a_test_changes_with_the_references_and_not_with_their_place(folder) -> None:
    def identity(name, *options):
        return read_json(f"{run('test', name, *options)}/results.json")["identity"]

    shutil.copytree("good", "elsewhere/good", dirs_exist_ok=True)
    whole = identity("i1", *MEMORY)
    assert identity("i2", *MEMORY[:3], "elsewhere/good") == whole
    others = [identity("i3", *MEMORY, "--model.memory.shots", "1"), identity("i4")]
    assert len({whole, *others}) == 3


def test_references_that_are_tested_too_are_told(folder, capsys, caplog) -> None:
    report = read_json(f"{run('test', 'seen', *MEMORY[:3], 'parts/normal')}/results.json")
    assert report["references_tested"] == 3
    assert "3 of all are tested too" in " ".join(capsys.readouterr().out.split())
    assert "3 of those to score are references too" in caplog.text


def test_tiles_are_compared_with_tiles(folder) -> None:
    run("predict", "tiles", *MEMORY, "--data.tile", "128", "--maps", "false", root="good")
    rows = read_rows("tiles/predictions.csv")
    plain = WinCLIP(EmbeddedBackbone())
    for row in rows:  # what is remembered is at no distance, so half of the score is left
        score = kanoclip.Inspector(plain, tile=128)(row["path"]).score
        assert float(row["image_score"]) <= score / 2 + 1e-4


def test_a_category_without_references_is_one_line(folder, capsys) -> None:
    (folder / "each/nut").mkdir(parents=True)
    shutil.copy("good/0.png", "each/nut/0.png")
    options = ["--data.category_name", "bolt", "--model.memory", "patches", "--model.memory.reference", "each"]
    assert main(["test", *SMALL, "--model", "winclip", "--data.root", "parts", "--output", "bolt", *options]) == 2
    assert "no reference images of 'bolt', only of nut" in capsys.readouterr().err


def test_memory_is_free_when_a_checkpoint_is_tested(folder) -> None:
    fit = ["fit", "--data", "surfaces_auxiliary", "--data.images", "2", "--data.category", "wood", "--data.num_workers",
           "0", "--model", "april_gan", "--model.backbone", "embedded", "--trainer.max_epochs", "1"]  # fmt: skip
    assert main(fit) == 0
    checkpoint = next(Path("runs/fit").rglob("last.ckpt"))
    options = [*SMALL, "--data.root", "parts", "--ckpt_path", str(checkpoint), *MEMORY]
    assert main(["test", *options, "--output", "fitted"]) == 0
    report = read_json("fitted/results.json")
    assert report["references"] == "3 reference images"
    assert report["checkpoint"]
    assert main(["test", *options[:-4], "--output", "unlike"]) == 0
    first, second = ([row["image_score"] for row in read_rows(f"{one}/images.csv")] for one in ("fitted", "unlike"))
    assert sorted(first) != sorted(second)
    assert read_json("unlike/results.json")["zero_shot"] is True
