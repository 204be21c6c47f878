import pytest

from kanoclip.outputs import places
from kanoclip.outputs.places import Places

NAMES = ["/in/a.jpg", "/in/a.png", "/in/A.bmp", "/in/b/a.jpg", "/in/a_png.png"]


def test_folders_are_kept_and_no_two_images_share_a_name() -> None:
    found = Places(NAMES, ".png")
    assert [found[path] for path in NAMES] == ["a", "a_png", "A_bmp", "b/a", "a_png_png"]


@pytest.mark.parametrize("done", [[1], [4, 1], [2, 3]])
def test_images_get_the_names_of_an_unbroken_run_whichever_of_them_have_theirs(done, monkeypatch) -> None:
    monkeypatch.setattr(places, "FOLDER", 2)
    whole = Places(NAMES, ".png")
    rest = Places(NAMES, ".png", {NAMES[i]: whole[NAMES[i]] for i in done})
    assert [rest[path] for path in NAMES] == [whole[path] for path in NAMES]
    assert [whole[path].split("/")[0] for path in NAMES] == ["a", "a_png", "001", "001", "002"]


def test_a_new_image_takes_no_name_of_one_that_is_gone(monkeypatch) -> None:
    monkeypatch.setattr(places, "FOLDER", 2)
    rest = Places(["/in/a.png", "/in/c.png"], ".png", {"/in/a.jpg": "a"})
    assert (rest["/in/a.png"], rest["/in/c.png"]) == ("a_png", "001/c")


def test_no_folder_has_more_files_than_stated(monkeypatch) -> None:
    monkeypatch.setattr(places, "FOLDER", 10)
    paths = [f"/in/{number}.jpg" for number in range(35)]
    found = Places(paths, ".png")
    folders = [found[path].rpartition("/")[0] for path in paths]
    assert [folders.count(name) for name in ("", "001", "002", "003")] == [10, 10, 10, 5]


@pytest.mark.parametrize("path", ["surfaces://../../x.png", "../../x.png", "/a/../../x.png"])
def test_names_stay_inside(path) -> None:
    assert Places([path, "/b/c/y.png"], ".png")[path].count("..") == 0
