import json
import re
import shutil
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from kanoclip.outputs import PredictionWriter, ReportWriter, ResultsWriter
from kanoclip.outputs.names import csv_text
from kanoclip.outputs.report import write_report
from kanoclip.outputs.thumbnails import thumbnail

HOSTILE = "<img src=x onerror=\"document.title='taken'\">.jpg"
NAMES = [HOSTILE, "#1?a=b&c %20'\".png", "caf\udce9.png", "\u202egnp.exe", "line\nbreak\x1b[2J.png"]
PATHS = [
    *(f"d/<i>ring/good/{name}" for name in NAMES),
    *(f"d/<i>ring/hole/{name}" for name in NAMES),
    "d/nut/good/10.png",
    "d/nut/good/9.png",
    "d/nut/dent/2.png",
]


def report_of(kit, paths=PATHS):
    writer = ReportWriter()
    kit.trainer(ResultsWriter(overlays=0), writer).test(kit.model(), kit.data(kit.samples(*paths)), verbose=False)
    return writer


def predicted(kit, paths, **options):
    writer = ReportWriter(**options)
    kit.trainer(PredictionWriter(), writer).predict(
        kit.model(), kit.data(kit.samples(*paths)), return_predictions=False
    )
    return writer


def page_of(kit):
    return (kit.folder / "report.html").read_text()


def names_in(page):
    return [name.strip() for name in re.findall(r'class="name" title="([^"]*)"', page)]


def test_a_test_has_its_numbers_and_images_in_one_file(kit, capsys):
    report_of(kit)
    page = page_of(kit)
    assert "brightness on samples" in page
    assert json.loads((kit.folder / "results.json").read_text())["identity"] in page
    assert "1.000" in page  # the AUROC of rings
    assert page.count("data:image/jpeg") == 2 * len(PATHS)
    assert page.count("<svg") == 1
    assert "report.html" in capsys.readouterr().out


def test_texts_of_strangers_are_shown_as_texts(kit):
    report_of(kit)
    page = page_of(kit)
    assert "<img src=x" not in page
    assert "<i>ring" not in page
    assert "&lt;img src=x" in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert r"caf\udce9.png" in page


def test_a_prediction_has_no_labels(kit):
    predicted(kit, PATHS)
    page = page_of(kit)
    assert 'id="label"' not in page
    assert 'id="category"' in page
    assert "unlabelled" in page
    assert not (kit.folder / "curves.json").exists()
    assert page.count('href="overlays/') == len(PATHS)


def test_decisions_are_shown_counted_and_drawn(tmp_path):
    about = {"model": "m", "data": "d", "auxiliary": None, "components": {}, "checkpoint": None, "precision": "32-true"}
    about |= {"decisions": {"all": {"false_alarms": {"hits": 1, "images": 4}, "detected": None}}}
    (tmp_path / "predictions.json").write_text(json.dumps(about))
    (tmp_path / "regions.jsonl").touch()
    columns = ("path", "category", "image_score", "map_max", "map", "overlay", "decision", "margin")
    rows = [
        (f"{n}.png", "", f"{n / 10}", "", "", "", ("good", "defective")[n > 6], f"{n / 10 - 0.65}") for n in range(9)
    ]
    (tmp_path / "predictions.csv").write_text(csv_text([columns, *rows]))
    write_report(tmp_path, {})
    page = (tmp_path / "report.html").read_text()
    assert "2 defective, 7 good" in page
    assert "Of 4 normal images, 1 is called defective: 25 %" in page
    assert 'href="regions.jsonl"' in page
    assert "threshold 0.65" in page
    assert page.count('<span class="defective">') == 2
    assert 'id="decision"' in page
    assert "<img" not in page  # there are no thumbnails


def test_of_many_images_those_with_the_highest_scores_are_listed(kit):
    paths = [f"d/nut/{'dent' if n in (3, 8) else 'good'}/{n}.png" for n in range(12)]
    predicted(kit, paths, images=2)
    page = page_of(kit)
    assert sorted(names_in(page)) == ["3.png", "8.png"]
    assert "The 2 with the highest scores, of 12 images." in page
    kept = {str(path.relative_to(kit.folder / "report")) for path in (kit.folder / "report").glob("*/*.jpg")}
    assert kept == {thumbnail(f"d/nut/dent/{n}.png", heat) for n in (3, 8) for heat in (False, True)}


def test_thumbnails_of_many_images_are_beside_the_page(kit, monkeypatch):
    monkeypatch.setattr("kanoclip.outputs.report.INLINE", 2)
    predicted(kit, PATHS)
    found = re.findall(r'<img [^>]*src="([^"]*)"[^>]*loading="lazy"', page_of(kit))
    assert len(found) == 2 * len(PATHS)
    assert all(re.fullmatch(r"report/\w\w/\w{16}(-heat)?\.jpg", name) for name in found)
    assert all((kit.folder / name).is_file() for name in found)


@pytest.mark.parametrize("blocked", ["report", "report.html"])
def test_a_report_that_cannot_be_written_is_told_after_the_numbers(kit, capsys, blocked):
    kit.folder.mkdir()
    if blocked == "report":
        (kit.folder / blocked).write_text("a file where the folder should be")
    else:
        (kit.folder / blocked / "full").mkdir(parents=True)
    writer = report_of(kit)
    assert (kit.folder / "results.json").is_file()
    assert len(writer.unwritten) == 1
    assert "The report is not complete; the numbers are. Cannot write" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def opened(kit, browser, monkeypatch):
    monkeypatch.setattr("kanoclip.outputs.report.INLINE", 2)  # thumbnails in files
    report_of(kit)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get((kit.folder / "report.html").as_uri())
    return browser


def shown(browser):
    """The texts of the cells of each image that is shown."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.images tbody tr')].filter(row => row.checkVisibility())"
        ".map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )


def scores(browser):
    return [float(cells[1]) for cells in shown(browser)]


def button(browser, name):
    return browser.find_element("xpath", f"//th/button[.='{name}']")


def pixels(element):
    return np.asarray(Image.open(BytesIO(element.screenshot_as_png)).convert("RGB"), int)


def wait_for(check):
    for _ in range(100):
        if check():
            return True
        time.sleep(0.05)
    return False


def test_it_opens_without_errors_and_without_a_network(opened):
    loaded = "return [...document.querySelectorAll('.picture img')].slice(0, 4).every(one => one.naturalWidth > 0)"
    assert wait_for(lambda: opened.execute_script(loaded))
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith("file:") for url in asked)
    assert opened.title == "kanoclip test: brightness on samples"
    assert f"<i>ring/hole/{HOSTILE}" in {cells[2] for cells in shown(opened)}


def test_sorting_changes_the_order_and_says_so(opened):
    assert scores(opened) == sorted(scores(opened), reverse=True)
    button(opened, "score").click()
    assert scores(opened) == sorted(scores(opened))
    assert button(opened, "score").find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    button(opened, "name").click()
    nuts = [cells[2] for cells in shown(opened) if cells[2].startswith("nut/")]
    assert nuts == ["nut/dent/2.png", "nut/good/9.png", "nut/good/10.png"]  # numbers in names count as numbers
    assert len(opened.find_elements("css selector", "[aria-sort]")) == 1


def test_filters_hide_images_and_the_count_is_told(opened):
    find = opened.find_element
    find("id", "label").send_keys("anom")
    assert scores(opened) == [1.0] * 6
    find("id", "category").send_keys("nut")
    assert len(shown(opened)) == 1
    assert find("id", "shown").text == "1 shown"
    opened.refresh()
    find("id", "text").send_keys("NUT/GOOD")
    assert len(shown(opened)) == 2
    find("id", "text").clear()
    find("id", "high").send_keys("0.5")
    assert scores(opened) == [0.0] * 7


def test_the_slider_changes_pixels(opened):
    picture = opened.find_element("css selector", ".images tbody .picture")
    loaded = "return [...arguments[0].querySelectorAll('img')].every(one => one.complete && one.naturalWidth)"
    assert wait_for(lambda: opened.execute_script(loaded, picture))
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    full = pixels(picture)
    opened.find_element("id", "heat").send_keys("\ue011")  # Home
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    none = pixels(picture)
    assert np.abs(full - none).max() > 100  # the white square was yellow
    assert np.ptp(none, axis=-1).max() < 12  # the photo is grey


def test_the_keyboard_is_enough(opened):
    reached = []
    for _ in range(30):
        opened.switch_to.active_element.send_keys("\ue004")  # Tab
        reached.append(opened.switch_to.active_element)
        if reached[-1].text.startswith("score"):
            break
    ids = [one.get_attribute("id") for one in reached]
    assert [one for one in ids if one] == ["heat", "text", "low", "high", "label", "category"]
    reached[-1].send_keys("\ue007")  # Enter
    assert scores(opened) == sorted(scores(opened))
    for one in opened.find_elements("css selector", "input, select, button"):
        assert one.accessible_name
    roles = opened.find_element("css selector", ".images tbody tr").aria_role
    assert roles == "row"


def test_print_leaves_out_the_controls_and_keeps_all_pictures(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not opened.find_element("class name", "tools").is_displayed()
    assert len(shown(opened)) == len(PATHS)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    opened.print_page()
    every = "return [...document.querySelectorAll('.picture img')].every(one => one.complete && one.naturalWidth > 0)"
    assert wait_for(lambda: opened.execute_script(every))
