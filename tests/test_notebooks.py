"""The notebooks run from top to bottom on what ships, and the committed ones show their pictures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kanoclip.verbs.table import main

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TINY = """
auxiliary: {class_path: surfaces_auxiliary, init_args: {images: 2, num_workers: 0}}
data: [{class_path: surfaces, init_args: {images: 2, num_workers: 0}}]
models:
  - {class_path: clip, init_args: {backbone: embedded}}
  - {class_path: kanoclip, init_args: {backbone: embedded}}
  - {class_path: kanoclip_no_bicmci, init_args: {backbone: embedded}}
seeds: [1, 2]
trainer: {max_epochs: 1}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny.yaml").write_text(TINY)
    assert main(["benchmark", "--config", str(folder / "tiny.yaml"), "--output", str(folder)]) == 0
    return folder / "results.csv"


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_to_its_end_and_is_committed_with_pictures(name, tmp_path, monkeypatch, request) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/jpeg" in output.get("data", {}) for output in shown)
    assert not [output for output in shown if output.output_type == "error"]
    if name == "ablation":
        monkeypatch.setenv("RESULTS", str(request.getfixturevalue("results")))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()  # raises CellError
