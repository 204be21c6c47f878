"""The notebooks run from top to bottom on what ships, and the committed ones show their pictures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_to_its_end_and_is_committed_with_pictures(name, tmp_path, monkeypatch) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/jpeg" in output.get("data", {}) for output in shown)
    assert not [output for output in shown if output.output_type == "error"]
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 300_000
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()  # raises CellError


API = """
from lightning import Trainer
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.models.baselines import LocalStats
from kanoclip.outputs import PredictionWriter, ResultsWriter
data = Surfaces(images=2, num_workers=0)
Trainer(logger=False, callbacks=[ResultsWriter(0)]).test(LocalStats(32), data, verbose=False)
Trainer(logger=False, callbacks=[PredictionWriter()]).predict(LocalStats(32), data, return_predictions=False)
"""
VERBS = """
from kanoclip.__main__ import main
small = "--data surfaces --data.num_workers 0 --model local_stats --model.image_size 32 --data.images".split()
assert main(["test", *small, "2"]) == 0
assert main(["predict", *small, "2"]) == 0
assert main(["validate", *small, "6", "--data.holdout", "0.4"]) == 0
assert main(["data", "check", "surfaces", "--images", "2"]) == 0
"""


def test_callbacks_and_verbs_print_in_a_notebook_below_a_live_progress_bar(tmp_path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (API, VERBS)])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()  # raises CellError
    for cell in notebook.cells:
        said = "".join(one.get("text", "") or one.get("data", {}).get("text/plain", "") for one in cell.outputs)
        assert "mean of 7" in said
        assert "\x1b[" not in said
