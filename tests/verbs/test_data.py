from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
from layouts import IMAGE, LAYOUTS, MASK, write
from PIL import Image

from kanoclip.data.about import About, Archive
from kanoclip.data.sets.head import Br35H
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
    assert "has 1 normal and 2 anomalous test images, but " in told
    assert "has 952 and 392" in told
    assert "published: " not in told  # said once
    assert told.endswith("found: no fault in the files; see the notes above.\n")


def test_check_says_that_the_counts_are_as_published_and_nothing_is_wrong(tmp_path, capsys, monkeypatch):
    write(tmp_path, LAYOUTS["br35h"].files)
    monkeypatch.setattr(Br35H, "about", replace(Br35H.about, counts=(1, 1)))
    assert main(["data", "check", "br35h", "--root", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "test images, normal / anomalous: 1 / 1 (as published, as far as we know).\n" in told
    assert told.endswith("found: nothing wrong.\n")


def test_check_prints_one_row_for_a_category_however_it_is_named(tmp_path, capsys):
    write(tmp_path, {"a.png": IMAGE, "l.csv": f"image,category\na.png,one\u2028two\na.png,{'x' * 300}\n"})
    assert main(["data", "check", "manifest", "--file", str(tmp_path / "l.csv")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " test " in line]
    assert len(rows) == 2
    assert r"one\u2028two" in rows[0]
    assert all(len(row) < 150 for row in rows)


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


def test_check_speaks_of_one_image_and_tells_what_is_left_out(tmp_path, capsys):
    write(tmp_path, {"normal/1.png": IMAGE, "normal/2.psd": "8BPS", "more/3.png": IMAGE})
    assert main(["data", "check", "folder", "--root", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "\n1 image, 32 to 32 wide" in told
    assert f"note: left out {tmp_path}/normal/2.psd: it is a project of a paint program" in told
    assert f"note: left out {tmp_path}/more: in no folder named normal or abnormal (1 image)" in told
    (tmp_path / "normal/4.png").symlink_to("nowhere.png")
    assert main(["data", "check", "folder", "--root", str(tmp_path)]) == 1
    assert "found: 1 fault.\n" in capsys.readouterr().out


def test_check_compares_only_a_published_set_with_published_counts(tmp_path, capsys):
    write(tmp_path, {"mine/bolt/test/good/1.png": IMAGE})
    assert main(["data", "check", "mvtec", "--root", str(tmp_path / "mine")]) == 0
    assert "published" not in capsys.readouterr().out
    write(tmp_path, LAYOUTS["brainmri"].files)
    assert main(["data", "check", "br35h", "--root", str(tmp_path / "brainmri")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/brainmri is brainmri, by its name. Read it with --data brainmri" in error
    assert main(["data", "check", "brainmri", "--root", str(tmp_path)]) == 0
    assert "is it all of that, and nothing else?" in capsys.readouterr().out


def test_a_set_without_a_direct_link_is_not_promised_to_be_downloaded(tmp_path, capsys):
    for name, where in (("kvasir", "https://datasets.simula.no/kvasir-seg"), ("btad", "kanoclip data download btad")):
        assert main(["data", "check", name, "--root", str(tmp_path)]) == 2
        assert f"or get it: {where}\n" in capsys.readouterr().err


def test_a_path_in_place_of_a_name_is_a_folder_of_photos(tmp_path, capsys) -> None:
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "1.png")
    for typed in (tmp_path, tmp_path / "1.png"):
        assert main(["data", "check", str(typed)]) == 0
        assert "1 image, 50 to 50 wide, 40 to 40 high." in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "none")]) == 2
    assert "There is no photo or folder at" in capsys.readouterr().err
