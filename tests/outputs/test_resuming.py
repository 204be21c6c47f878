import csv
import os

import pytest

from kanoclip.data.files import append_text, write_json
from kanoclip.outputs import resuming
from kanoclip.outputs.names import csv_text, read_csv
from kanoclip.outputs.resuming import COLUMNS, Listing, Shard, rows_of
from kanoclip.types import KanoclipError

ABOUT, TASK = {"model": "m"}, {"scoring": {"weights": "a"}, "maps": True}
ODD = 'a\r\nb\nc,d".jpg'


def row(path, name="x"):
    return (path, "object", "0.500000", "0.600000", f"maps/{name}.png", "", "", "")


def paths_of(file):
    return [one["path"] for one in read_csv(file)]


def listed(folder, paths, given, **options):
    """Do a part of the work, as a process does; returns what was done before and what ``finish`` says."""
    listing = Listing(folder, resume=True, **options)
    done = listing.open()
    listing.begin(ABOUT, TASK)
    append_text(listing.file, csv_text(row(path) for path in given))
    shard = options.get("shard", Shard())
    mine = paths[shard.number - 1 :: shard.of]
    decisions, waiting = listing.finish(ABOUT, TASK, paths, len({*mine} - {*done, *given}))
    listing.close()
    return done, (decisions.total(), waiting)


def test_rows_of_two_parts_of_a_run_are_in_the_order_of_the_data(tmp_path) -> None:
    paths = ["c", "a", ODD, "b"]
    listed(tmp_path, paths, ["c", ODD])
    done, said = listed(tmp_path, paths, ["a", "b"])
    assert done == {"c": "x", ODD: "x"}
    assert said == (4, [])
    assert paths_of(tmp_path / "predictions.csv") == paths


@pytest.mark.parametrize("path", ["second", ODD, "ü\udcff"])
def test_a_row_that_is_cut_anywhere_is_dropped_and_those_before_it_are_kept(tmp_path, path) -> None:
    file = tmp_path / "predictions.csv"
    append_text(file, csv_text([COLUMNS, row("first")]))
    before = file.stat().st_size
    append_text(file, csv_text([row(path)]))
    whole = file.read_bytes()
    write_json(tmp_path / "predictions.json", {"task": TASK, "finished": [], "images": 0})
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        listing = Listing(tmp_path, resume=True)
        assert set(listing.open()) == ({"first"} if size >= before else set()), size
        listing.begin(ABOUT, TASK)
        listing.close()
        assert file.read_bytes() in (whole[:before], csv_text([COLUMNS]).encode())


def test_rows_stay_when_an_editor_has_changed_all_line_ends(tmp_path) -> None:
    listed(tmp_path, ["a", ODD, "b"], ["a", ODD])
    file = tmp_path / "predictions.csv"
    file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    done, said = listed(tmp_path, ["a", ODD.replace("\r", ""), "b"], ["b"])
    assert (len(done), said) == (2, (3, []))


def test_what_a_power_cut_leaves_of_a_batch_is_dropped(tmp_path) -> None:
    file = tmp_path / "predictions.csv"
    append_text(file, csv_text([COLUMNS, row("first")]) + "\0" * 500)
    assert [cells[0] for _, _, cells in rows_of(file)] == ["first"]


def test_a_row_in_two_files_counts_once_and_rows_of_images_that_are_gone_stay(tmp_path) -> None:
    listed(tmp_path, ["gone", "a"], ["gone", "a"])
    append_text(tmp_path / "predictions-1.csv", csv_text([COLUMNS, row("b"), row("a")]))  # killed before it was deleted
    done, said = listed(tmp_path, ["b", "a", "c"], ["c"])
    assert set(done) == {"gone", "a", "b"}
    assert said == (4, [])
    assert paths_of(tmp_path / "predictions.csv") == ["gone", "b", "a", "c"]
    assert not list(tmp_path.glob("predictions-*"))


def test_shards_become_one_csv_by_the_last_that_ends(tmp_path) -> None:
    paths = list("abcdefg")
    assert listed(tmp_path, paths, list("be"), shard=Shard(2, 3))[1] == (2, [1, 3])
    assert listed(tmp_path, paths, list("ad"), shard=Shard(1, 3))[1] == (2, [1, 3])  # "g" is left
    assert listed(tmp_path, paths, list("cf"), shard=Shard(3, 3))[1] == (2, [1])
    assert not (tmp_path / "predictions.csv").exists()
    done, said = listed(tmp_path, paths, ["g"], shard=Shard(1, 3))
    assert (set(done), said) == ({"a", "d"}, (7, []))
    assert paths_of(tmp_path / "predictions.csv") == paths
    assert [file.name for file in tmp_path.glob("*.csv")] == ["predictions.csv"]
    assert listed(tmp_path, paths, [], shard=Shard(2, 3)) == (dict.fromkeys(paths, "x"), (7, []))
    assert paths_of(tmp_path / "predictions.csv") == paths


def test_another_run_is_refused_with_the_difference(tmp_path) -> None:
    listed(tmp_path, ["a"], ["a"])
    listing = Listing(tmp_path, resume=True)
    listing.open()
    with pytest.raises(KanoclipError, match=r"weights \(sha256\) was a and is b\. Run it as before, or choose another"):
        listing.begin(ABOUT, {**TASK, "scoring": {"weights": "b"}})


def test_rows_without_a_record_and_files_of_others_are_refused(tmp_path) -> None:
    listed(tmp_path, ["a"], ["a"])
    (tmp_path / "predictions.json").unlink()
    listing = Listing(tmp_path, resume=True)
    listing.open()
    with pytest.raises(KanoclipError, match=r"no predictions\.json that says how they were made"):
        listing.begin(ABOUT, TASK)
    write_json(tmp_path / "predictions.json", {"task": TASK, "finished": None, "images": 0})
    with pytest.raises(KanoclipError, match=r"no predictions\.json that says how they were made"):
        listing.begin(ABOUT, TASK)
    listing.close()
    (tmp_path / "predictions.csv").write_text("path,score\r\na,1\r\n")
    with pytest.raises(KanoclipError, match=r"predictions\.csv is of another version of kanoclip"):
        Listing(tmp_path, resume=True).open()


def test_two_commands_do_not_write_into_one_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(resuming, "PATIENCE", 0.1)
    first, second = Listing(tmp_path, resume=True), Listing(tmp_path, resume=True)
    first.open()
    with pytest.raises(KanoclipError, match="Another command is predicting into"):
        second.open()
    Listing(tmp_path, Shard(1, 2), resume=True).open()  # another share of the work
    first.close()
    second.open()
    second.close()


def test_without_resume_a_folder_is_begun_anew(tmp_path) -> None:
    listed(tmp_path, ["a", "b"], ["a", "b"])
    listing = Listing(tmp_path)
    assert listing.open() == {}
    listing.begin(ABOUT, TASK)
    listing.close()
    with open(tmp_path / "predictions.csv", newline="") as file:
        assert list(csv.reader(file)) == [list(COLUMNS)]


@pytest.mark.skipif(os.name == "nt", reason="names of other systems")
def test_a_join_that_is_killed_loses_nothing(tmp_path, monkeypatch) -> None:
    listed(tmp_path, ["a", "b"], ["b"])
    append_text(tmp_path / "predictions-1.csv", csv_text([COLUMNS, row("a")]))

    def killed(path, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resuming, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            listed(tmp_path, ["a", "b"], [])
    done, said = listed(tmp_path, ["a", "b"], [])
    assert (set(done), said) == ({"a", "b"}, (2, []))
    assert paths_of(tmp_path / "predictions.csv") == ["a", "b"]
