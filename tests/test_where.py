"""The table "Where do I add ...?" of docs/extend.md, followed literally in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (
    (ROOT / "docs" / "extend.md")
    .read_text(encoding="utf-8")
    .partition("## Where do I add ...?")[2]
    .partition("\n\nAn image")[0]
)

DATA = '''"""A data set of two colours."""

import numpy as np

from kanoclip.data.base import AnomalyDataModule, Sample


class Colours(AnomalyDataModule):
    """Two colours, one of them with a spot."""

    name = "colours"
    domain = "drawn"

    def samples(self):
        return [Sample(f"colours://{i}", (), i % 2, "colour", "spot" if i % 2 else "good") for i in range(4)]

    def read(self, sample):
        image, mask = np.full((40, 40, 3), 90, np.uint8), np.zeros((40, 40), np.uint8)
        if sample.label:
            image[5:9, 5:9], mask[5:9, 5:9] = 250, 1
        return image, mask
'''
COMPONENT = '''

class Halved(Adapter):
    """Halve the global feature, which changes nothing of its direction."""

    learns = False

    def forward(self, cls, patches, grid):
        return cls / 2
'''
MODEL = '''"""A model of components."""

from kanoclip.heads.adapter import Halved
from kanoclip.models.ablations import CLIPVV


class HalvedCLIP(CLIPVV):
    """CLIP with v-v attention and a halved global feature."""

    name = "halved_clip"
    own_adapter = Halved
'''
VERB = '''"""A verb that greets."""


def main(argv):
    print("hello", *argv[1:])
    return 0
'''


def where(what: str) -> list[str]:
    """The paths that the table's row names, in the order of its columns."""
    (row,) = [line for line in TABLE.splitlines() if line.startswith(f"| {what}")]
    return re.findall(r"`(kanoclip/[\w/.]*)`", row)


def put(file: Path, before: str, line: str) -> None:
    """Add one line behind the line that begins with a text."""
    lines = file.read_text(encoding="utf-8").splitlines()
    (at,) = [number for number, text in enumerate(lines) if text.startswith(before)]
    file.write_text("\n".join([*lines[: at + 1], line, *lines[at + 1 :]]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with a copy of the package to which four things were added as the table says."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "kanoclip", folder / "kanoclip", ignore=shutil.ignore_patterns("__pycache__"))
    place, names = where("a data set")
    (folder / place / "colours.py").write_text(DATA, encoding="utf-8")
    put(folder / names, '    "data": {', '        "colours": "kanoclip.data.sets.colours.Colours",')
    place, _, names = where("a component")
    with open(folder / place / "adapter.py", "a", encoding="utf-8") as file:
        file.write(COMPONENT)
    put(folder / names, '    "adapter": {', '        "halved": "kanoclip.heads.adapter.Halved",')
    place, names = where("a model")
    (folder / place / "halved.py").write_text(MODEL, encoding="utf-8")
    put(folder / names, '    "model": {', '        "halved_clip": "kanoclip.models.halved.HalvedCLIP",')
    place, names = where("a verb")
    (folder / place / "hello.py").write_text(VERB, encoding="utf-8")
    put(folder / names, "VERBS = {", '    "hello": Verb("greet", "hello"),')
    return folder


def run(folder: Path, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kanoclip", *argv], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_was_added_is_listed_and_helps_itself(extended) -> None:
    said = run(extended, "list")
    assert "colours              Two colours, one of them with a spot." in said
    assert "halved               Halve the global feature" in said
    assert "halved_clip          CLIP with v-v attention and a halved" in said
    assert re.search("hello +greet", run(extended, "--help"))


def test_what_was_added_runs(extended, tiny_name) -> None:
    assert run(extended, "hello", "there") == "hello there\n"
    model = (
        f"--model halved_clip --model.backbone clip --model.backbone.name {tiny_name} --model.backbone.image_size 32"
    )
    said = run(extended, *f"test --data colours --data.num_workers 0 {model}".split())
    assert "halved_clip: nothing fitted -> colours" in said


@pytest.mark.parametrize("what", ["a data set", "a component", "a model", "a metric", "a verb", "an output"])
def test_every_place_that_the_table_names_is_there(what) -> None:
    assert where(what)
    assert all((ROOT / path).exists() for path in where(what))


def test_the_names_of_lists_that_the_table_names_are_there() -> None:
    for name, file in re.findall(r"`([A-Z]+)` (?:of|in) `(kanoclip/[\w/.]+)`", TABLE):
        assert re.search(rf"^{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.M), (name, file)
