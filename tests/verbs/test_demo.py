"""The command ``kanoclip demo``, and its page in a browser."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kanoclip.outputs.names import read_csv
from kanoclip.types import KanoclipError
from kanoclip.verbs import demo
from kanoclip.verbs.table import main

HOSTILE = "<img src=x onerror=alert(1)>.png"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prot", "3"], "Unknown option --prot. Did you mean '--port'?"),
        (["--port", "many"], "invalid int value: 'many'"),
        (["--port=70000"], "expected 1 to 65535"),
        (["--host", "nosuch.invalid"], "no address of this machine: try 127.0.0.1"),
        (["--ckpt_path", "x.ckpt", "--model.backbone", "embedded"], "a checkpoint tells its model"),
    ],
)
def test_a_mistake_is_told_in_one_line(words, said, capsys):
    assert main(["demo", "--port", f"{free_port()}", *words]) == 2
    assert said in (told := capsys.readouterr().err)
    assert told.count("\n") == 1


def test_a_port_in_use_is_told_with_what_to_type(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["demo", f"--port={port}"]) == 2
    other = port + 1 if port < 65535 else 7860
    assert f"--port {port} cannot be used (Address already in use). Try --port {other}." in capsys.readouterr().err


def test_help_imports_neither_gradio_nor_torch():
    code = "import sys; from kanoclip.verbs.table import main; main(['demo', '--help'])"
    code += "; sys.exit(bool({'gradio', 'torch'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"try:\n {code}\nexcept SystemExit as end: sys.exit(end.code or 0)"],
        capture_output=True,
        text=True,
    )
    assert "--threshold" in done.stdout, done.stderr
    assert done.returncode == 0


def test_a_missing_gradio_is_told_with_what_to_type(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "kanoclip.verbs.page", raising=False)
    assert main(["demo", "--port", f"{free_port()}"]) == 2
    assert 'pip install ".[demo]"' in capsys.readouterr().err


def test_without_a_fit_a_model_that_learns_nothing_looks_and_both_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, words = demo._parse(["--threshold", "0.3"])
    inspector, about = demo._inspector(options, words)
    assert about[0] == "Model: clip_vv, which was fitted on nothing."
    assert "drawings only" in about[1]
    assert inspector(np.full((20, 20, 3), 9, np.uint8)).threshold.image == 0.3
    options, words = demo._parse(["--model", "local_stats", "--data.tile", "64"])
    inspector, about = demo._inspector(options, words)
    assert (inspector.tile, about) == (64, ["Model: local_stats, which was fitted on nothing."])
    with pytest.raises(KanoclipError, match=r"--model.bacbone\. Did you mean --model.backbone"):
        demo._inspector(*demo._parse(["--model", "clip", "--model.bacbone", "embedded"]))


def test_the_newest_fit_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("kanoclip.outputs.record.newest_fit", lambda *given: seen.append(given) or "runs/a.ckpt")
    for words in ([], ["--model", "kanoclip", "--model.backbone", "embedded"]):
        with pytest.raises(KanoclipError, match="No checkpoint"):  # there is no such file
            demo._inspector(*demo._parse(words))
    assert [name for _, name in seen] == [None, "kanoclip"]


@pytest.fixture
def served(tmp_path):
    """The command in a process of its own; yields its address, and the folder of its temporary files."""
    pytest.importorskip("gradio")
    place = tmp_path / "temporary"
    place.mkdir()
    port = free_port()
    words = [sys.executable, "-m", "kanoclip", "demo", "--model", "local_stats", "--port", f"{port}"]
    root = Path(__file__).parents[2]
    # would serve files of this machine, or ask a proxy for the page, if the environment had a say
    told = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "HTTP_PROXY": "http://127.0.0.1:9"}
    environment = {**os.environ, **told, "TMPDIR": str(place), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert f"http://127.0.0.1:{port}" in process.stdout.readline()
            yield f"http://127.0.0.1:{port}", place
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
    assert not list(place.iterdir())


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1300,1000"):
        options.add_argument(f"--{word}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


def until(found, seconds=60):
    """Wait until a function returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.1)
    return result


ROWS = """return [...document.querySelectorAll('.photos [data-index]')].map(
    row => [...row.querySelectorAll('[role=gridcell]')].map(cell => cell.innerText.trim()))"""
SLIDE = """const slider = document.querySelector(`input[type=range][aria-label*="${arguments[0]}"]`);
    slider.value = arguments[1]; slider.dispatchEvent(new Event('input', {bubbles: true}))"""


def test_photos_are_dropped_in_judged_and_downloaded_and_nothing_leaves_the_machine(served, browser, tmp_path):
    address, place = served
    photos = tmp_path / "photos"
    photos.mkdir()
    grey = np.full((90, 120, 3), 128, np.uint8)
    Image.fromarray(grey).save(photos / HOSTILE)
    grey[40:50, 50:60] = 255
    Image.fromarray(grey).save(photos / "spot.png")
    (photos / "zero.png").touch()

    def rows():
        return {row[1]: row[2:] for row in browser.execute_script(ROWS)}

    def shown():
        """The photo as it is drawn, without its legend."""
        source = browser.execute_script("return document.querySelector('.picture img').src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))[:480]

    def colour():
        return np.ptp(shown(), axis=2).max()

    browser.get(address)
    dropped = until(lambda: browser.find_elements("css selector", "input[type=file]"))[0]
    dropped.send_keys("\n".join(f"{photos / name}" for name in ("zero.png", HOSTILE, "spot.png")))
    assert until(rows).keys() == {HOSTILE, "spot.png", "zero.png"}
    assert rows()["zero.png"][1] == "not read"
    assert "Cannot use zero.png" in browser.find_element("css selector", "textarea").get_property("value")
    assert not [file for file in place.rglob("*.png") if file.read_bytes() == (photos / "spot.png").read_bytes()]

    plain, spot = (float(rows()[name][0]) for name in (HOSTILE, "spot.png"))
    assert plain < spot
    for threshold, decision in ((spot + 0.01, "good"), ((plain + spot) / 2, "defective")):
        browser.execute_script(SLIDE, "Defective", threshold)
        until(lambda wanted=decision: rows()["spot.png"][1] == wanted)
    assert rows()[HOSTILE][1] == "good"

    header = browser.find_element("css selector", ".photos [role=columnheader][aria-colindex='3']")
    browser.execute_script("arguments[0].querySelector('[aria-haspopup=menu]').click()", header)  # shows on hover
    menu = until(
        lambda: [one for one in browser.find_elements("css selector", "button") if one.text == "Sort descending"]
    )
    menu[0].click()
    until(lambda: next(iter(rows())) == "spot.png")
    cells = browser.find_elements("css selector", ".photos [role=gridcell]")
    browser.execute_script(SLIDE, "Opacity", 0)
    until(lambda: np.ptp(shown()) == 0)
    next(one for one in cells if one.text == "spot.png").click()
    until(lambda: shown().max() == 255)
    browser.execute_script(SLIDE, "Coloured", 0.1)
    browser.execute_script(SLIDE, "Opacity", 1)
    full = until(lambda: (now := int(colour())) > 50 and now)
    browser.execute_script(SLIDE, "Opacity", 0.5)
    until(lambda: 0.25 * full < colour() < 0.75 * full)

    next(one for one in browser.find_elements("css selector", "button, a") if one.text == "Download csv").click()
    file = until(lambda: list((tmp_path / "downloads").glob("*.csv")))[0]
    assert file.name == "photos.csv"
    found = {row["path"]: row["decision"] for row in read_csv(file)}
    assert found == {"zero.png": "", HOSTILE: "good", "spot.png": "defective"}

    assert not [one for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    messages = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    assert asked
    assert not [url for url in asked if not url.startswith((address, "data:", f"blob:{address}"))]
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{address}/gradio_api/file={photos / 'spot.png'}")
