"""The documentation: its code is run, its errors are provoked, what it names is there.

Of its code blocks ```bash, ```python and ```yaml are run: the commands of a page one after another, small, in a folder
with photos and a fitted model. ```sh and ```py are shown only: they need a network, a GPU, published data or weights of
hundreds of megabytes. A ```py block with the title of a file quotes that file.
"""

import os
import re
import shutil
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from documented import PAGES, QUIET, ROOT, blocks, commands, make_trouble, make_world, run

from kanoclip.data.formats import HAS_HEIF
from kanoclip.registry import NAMES, expand
from kanoclip.verbs import configs
from kanoclip.verbs.plan import read_plan
from kanoclip.verbs.table import VERBS, main

DOCS = ROOT / "docs"
RUN = {page: [one for one in blocks(page) if one.language in ("bash", "python", "yaml")] for page in PAGES}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the photos that the pages speak of and a fitted model."""
    folder, before = tmp_path_factory.mktemp("world"), Path.cwd()
    os.chdir(folder)
    try:
        make_world(folder)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of that folder, in which a test runs."""
    shutil.copytree(world, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "here")
    yield tmp_path / "here"
    for name in ("my_data", "my_adapter", "my_model", "my_rival"):
        sys.modules.pop(name, None)


# ------------------------------------------------------------------------------------------------------------- code


ALONE = [page for page in PAGES if RUN[page] and page.stem != "extend"]  # whose walks test_extend.py follows


@pytest.mark.parametrize("page", ALONE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, here) -> None:
    names = {
        "photo": np.zeros((40, 40, 3), np.uint8),
        "anomaly_map": np.zeros((40, 40), np.float32),
        "scores_of_good_parts": np.linspace(0, 1, 100),
    }
    for block in RUN[page]:
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        if block.language == "python" and not block.title:
            exec(small(block.text), names)
        elif block.language == "yaml":
            expand(yaml.safe_load(block.text))
        for line in commands(block.text) if block.language == "bash" else ():
            assert run(line) == 0, line


def small(code: str) -> str:
    """Make an example of Python small."""
    quiet = "max_epochs=1, enable_progress_bar=False, logger=False, accelerator='cpu', enable_checkpointing=False"
    return code.replace("images=16", "images=2, num_workers=0").replace("max_epochs=1", quiet)


def test_most_code_is_run_and_not_only_shown() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.language for block in found} <= {"bash", "python", "yaml", "sh", "py", "text", "math", "bibtex"}
    ran = [line for block in found if block.language == "bash" for line in commands(block.text)]
    shown = [line for block in found if block.language == "sh" for line in commands(block.text)]
    assert len(ran) >= 30
    assert len(shown) <= 45
    python = [
        block.language for block in found if block.language == "python" or (block.language == "py" and not block.title)
    ]
    assert python.count("python") >= 3 * python.count("py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_verbs_configs_and_names_in_commands_are_there(page, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    written = {block.title for block in blocks(page)} | {"test.yaml"}  # by the page itself
    for line in [line for block in blocks(page) if block.language in ("bash", "sh") for line in commands(block.text)]:
        verb = line.split()[1]
        assert verb in VERBS, line
        for config in re.findall(r"--(?:config|trainer) ([\w/.]+)", line):
            assert config in written or configs.find(config, "benchmarks" if verb == "benchmark" else "")
        for kind, name in re.findall(r"--(data|model) ([a-z_0-9]+)(?= |$)", line):
            assert name in NAMES[kind] or verb == "knowledge", line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_that_is_quoted_stands_in_its_file(page) -> None:
    for block in blocks(page):
        if block.language == "py" and block.title:
            source = [line.strip() for line in (ROOT / block.title).read_text(encoding="utf-8").splitlines()]
            at = 0
            for line in map(str.strip, block.text.strip().splitlines()):
                assert line in source[at:], f"{block.title} has no line, or not in this order: {line}"
                at = source.index(line, at)


def test_the_example_of_a_benchmark_is_one(here) -> None:
    text = next(block.text for block in blocks(DOCS / "benchmark.md") if "label: linear" in block.text)
    shutil.rmtree("data")
    Path("mine.yaml").write_text(text, encoding="utf-8")
    jobs = read_plan("mine.yaml", here / "out").jobs
    assert {job.label for job in jobs} == {"kanoclip", "linear"}
    assert [one.label for one in jobs[0].data] == ["mvtec", "btad"]
    assert len(jobs) == 6


# ------------------------------------------------------------------------------------------------- made by the build


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason='the site needs pip install ".[docs]"')
    pytest.importorskip("latex2mathml")
    spec = util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_registered_name_is_in_the_reference(hooks) -> None:
    page = hooks.names_page()
    for kind, names in NAMES.items():
        section = page.partition(f"## {kind}\n")[2].partition("\n## ")[0]
        for name in names:
            assert f"| [{name}]({kind}.md#{name}) |" in section, f"{kind} {name}"


def test_options_have_type_default_and_a_line(hooks) -> None:
    page = hooks.kind_page("adapter")
    assert "| `reduction` | int | `4` | Divisor of D for the width of the bottleneck. |" in page
    assert "| `trainer.max_epochs` |" in hooks.run_page()
    rows = [row for kind in ("data", "score", "memory") for row in re.findall(r"^\| `.*", hooks.kind_page(kind), re.M)]
    assert len(rows) > 40
    assert all(len(re.split(r"(?<!\\)\|", row)) == 6 and row.split("|")[-2].strip() for row in rows)


def test_types_read_as_a_person_says_them(hooks) -> None:
    for kind, text in {
        "int": int, "int or null": int | None, "str or list[str] or null": str | list[str] | None,
        "none or random": "typing.Literal['none', 'random']",
    }.items():  # fmt: skip
        assert hooks.type_name(text) == kind


def test_a_data_set_has_a_page_from_its_declaration(hooks) -> None:
    page = hooks.data_page("mvtec")
    for text in ("467 normal, 1258 anomalous", "CC BY-NC-SA 4.0", "├── train/", "000_mask.png   <- mask", "mvtec_ad"):
        assert text in page
    assert "It has no normal test images" in hooks.data_page("kvasir")
    assert "`protocol`" in hooks.data_page("visa")
    index = hooks.data_index()
    assert all(f"[{name}]({name}.md)" in index for name in NAMES["data"])


def test_a_formula_needs_no_script(hooks) -> None:
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in hooks.math(r"\frac{1}{2}")


def test_the_search_of_the_site_asks_no_network() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "  - offline" in settings
    (script,) = re.findall(r"polyfills: \[([^]]*)\]", settings)
    assert "iframe-worker" in script  # without one of this name the plugin adds one of a network
    assert (DOCS / script).exists()


# ----------------------------------------------------------------------------------------------------------- errors

TROUBLES = [block.text for block in blocks(DOCS / "troubleshooting.md")]


@pytest.fixture(scope="module")
def troubled(world, tmp_path_factory):
    """A copy of the folder with what the mistakes of the page are made with; no mistake leaves anything behind."""
    folder = tmp_path_factory.mktemp("trouble") / "here"
    shutil.copytree(world, folder, symlinks=True)
    make_trouble(folder)
    return folder


def test_there_are_more_than_twenty_and_each_shows_a_command() -> None:
    assert len(TROUBLES) > 20
    assert all(re.match(r"\$ kanoclip .+\n.*\S", text) for text in TROUBLES)


@pytest.mark.parametrize("text", TROUBLES, ids=lambda text: text.splitlines()[0][11:60])
def test_an_error_says_what_the_page_says(text, troubled, monkeypatch, capfd, caplog) -> None:
    command, *told = text.splitlines()
    words = command.removeprefix("$ kanoclip ").split()
    if "gpu" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "pillow-heif" in text and HAS_HEIF:
        pytest.skip("pillow-heif is installed")
    monkeypatch.chdir(troubled)
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if the extra were not installed
    monkeypatch.delitem(sys.modules, "kanoclip.verbs.page", raising=False)
    if words[0] in ("fit", "test", "predict"):
        words += QUIET.split()
    if "quickstart" in words:
        words += ["--data.images", "2", "--data.category", "ring", "--trainer.max_epochs", "2"]
    code = main(words)
    said = capfd.readouterr().err.replace(f"local-dir:{ROOT}", "local-dir:...").splitlines() + caplog.messages
    for line in told:
        assert line in said
    assert code == (2 if "kanoclip: error" in text else 1 if "skipped" in text else 0)
