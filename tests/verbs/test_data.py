from __future__ import annotations

import hashlib
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
from layouts import LAYOUTS, MASK, write

from kanoclip.data.about import About, Archive
from kanoclip.data.sets.mvtec import MPDD
from kanoclip.verbs.table import main


def test_list_shows_published_counts_licences_and_what_is_here(tmp_path, capsys):
    write(tmp_path, LAYOUTS["magnetic_tile"].files)
    assert main(["data", "list", "--root", str(tmp_path)]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "952 / 392" in rows["magnetic_tile"]
    assert "magnetic_tile (0.00 GB)" in rows["magnetic_tile"]
    assert rows["visa"].split()[-4:] == ["CC", "BY", "4.0", "no"]
    assert set(LAYOUTS) - {"meta_json"} <= set(rows)


def test_check_counts_and_notes_empty_masks(tmp_path, capsys):
    write(tmp_path, LAYOUTS["magnetic_tile"].files)
    assert main(["data", "check", "magnetic_tile", "--root", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "3 images, 32 to 32 wide, 24 to 24 high." in told
    assert "1 anomalous image with an empty mask" in told
    assert "1 / 2 (published: 952 / 392)" in told
    assert "nothing wrong" in told


def test_check_names_each_fault_and_fails(tmp_path, capsys):
    write(tmp_path, LAYOUTS["mvtec"].files)
    broken = tmp_path / "mvtec/cat/test/bad/001.png"
    broken.write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "mvtec/cat/ground_truth/bad/000_mask.png"), np.zeros((5, 5), np.uint8))
    assert main(["data", "check", "mvtec", "--data.root", str(tmp_path)]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "2 faults" in told
    assert "it is not an image" in told
    assert "this mask is 5x5 pixels" in told


def test_show_writes_a_contact_sheet_with_outlined_masks(tmp_path, capsys):
    write(tmp_path, LAYOUTS["mvtec"].files)
    sheet = tmp_path / "sheet.png"
    assert main(["data", "show", "mvtec", "--root", str(tmp_path), "--output", str(sheet)]) == 0
    picture = cv2.imread(str(sheet))
    assert picture.shape == (192 + 22, 4 * 192, 3)  # two kinds of two images
    assert ((picture == (255, 255, 0)).all(-1)).any()  # cyan, BGR
    assert "4 of 5 images of mvtec" in capsys.readouterr().out


def test_show_goes_on_after_an_unreadable_file_and_says_so(tmp_path, capsys):
    write(tmp_path, LAYOUTS["mvtec"].files)
    (tmp_path / "mvtec/cat/test/bad/001.png").write_bytes(b"no image")
    assert main(["data", "show", "mvtec", "--root", str(tmp_path), "--output", str(tmp_path / "s.png")]) == 1
    assert "bad/001.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["chek"], "Unknown action 'chek'. Did you mean 'check'?"),
        (["check", "mvtek"], "Unknown data 'mvtek'. Did you mean 'mvtec'?"),
        (["check"], "Which data set?"),
        (
            ["check", "mvtec", "--rot", "x"],
            "arguments: --rot x. Options: kanoclip data check mvtec --help",
        ),
        (["check", "mvtec", "--root", "/nowhere"], "No MVTec AD at /nowhere/mvtec"),
        (["check", "no_such_module.Mine"], "Cannot import no_such_module.Mine: No module named 'no_such_module'."),
        (["show", "surfaces", "--count", "0"], "count"),
        (["show", "surfaces", "--count", "2", "--output", "sheet.gif"], "sheet.gif, expected a .png or .jpg file"),
        (["show", "surfaces", "--count", "2", "--output", "/proc/sheet.png"], "Cannot write /proc/sheet.png"),
        (["download", "mpdd"], "https://github.com/stepanje/MPDD"),
        (["download", "surfaces"], "nothing to download"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv, told, capsys):
    assert main(["data", *argv]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_download_asks_for_the_licence_fetches_and_is_then_here(tmp_path, capsys, monkeypatch):
    write(tmp_path / "made", LAYOUTS["mpdd"].files)
    served = tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "mpdd.zip", "w") as archive:
        for path in sorted((tmp_path / "made/mpdd").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "made/mpdd"))
    digest = hashlib.sha256((served / "mpdd.zip").read_bytes()).hexdigest()
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    handler.func.log_message = lambda *arguments: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/mpdd.zip"
    about = About("MPDD", "-", "a licence", "https://example.org", archives=(Archive(url, digest),))
    monkeypatch.setattr(MPDD, "about", about)
    root = tmp_path / "data"
    command = ["data", "download", "mpdd", "--root", str(root)]
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(command) == 2
    assert not (root / "mpdd").exists()
    capsys.readouterr()
    assert main([*command, "--accept-license"]) == 0
    assert "MPDD is in" in capsys.readouterr().out
    assert main(["data", "check", "mpdd", "--root", str(root)]) == 0
    assert main([*command, "--accept-license"]) == 0  # nothing left to do
    server.shutdown()
    assert Path(root / "mpdd/cat/test/good/000.png").is_file()
    assert MASK in LAYOUTS["mpdd"].files.values()
