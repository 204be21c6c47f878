"""Raw answers survive stops, and are found again by their question alone."""

import errno
import json
import threading

import pytest

from kanoclip.knowledge.ledger import KeptAnswer, Ledger

KEY = ("model", "1", "what\nis it?", "nut")
TOLD = KeptAnswer("a crack\nin “the” nut", "host", "2026-01-02")


def test_an_answer_is_found_again_with_everything_that_was_told(tmp_path) -> None:
    path = tmp_path / "new/raw.jsonl"
    Ledger(path).add(KEY, TOLD, (3, 4))
    assert Ledger(path).get(KEY) == [TOLD]
    assert json.loads(path.read_text())["tokens"] == [3, 4]
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("place", range(4))
def test_each_part_of_the_key_counts(tmp_path, place) -> None:
    ledger = Ledger(tmp_path / "raw.jsonl")
    ledger.add(KEY, TOLD, None)
    assert ledger.get(tuple(part + "!" * (i == place) for i, part in enumerate(KEY))) == []


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_cut_off_line_is_as_if_it_were_not_there_and_spoils_no_other(tmp_path, cut) -> None:
    path = tmp_path / "raw.jsonl"
    ledger = Ledger(path)
    ledger.add(KEY, TOLD, None)
    ledger.add(KEY, KeptAnswer("second", "host", "2026-01-03"), None)
    path.write_bytes(path.read_bytes()[:-cut])
    again = Ledger(path)
    whole = (
        [TOLD] if cut > 1 else [TOLD, KeptAnswer("second", "host", "2026-01-03")]
    )  # only the end of the line was missing
    assert again.get(KEY) == whole
    again.add(KEY, KeptAnswer("third", "host", "2026-01-04"), None)
    assert [told.text for told in Ledger(path).get(KEY)] == [*(told.text for told in whole), "third"]


@pytest.mark.parametrize("line", ["", "null", "[]", "{}", "no json", '{"model": 1}', "\ufffd\x00", "[" * 200_000])
def test_lines_of_something_else_are_passed_over(tmp_path, line) -> None:
    path = tmp_path / "raw.jsonl"
    Ledger(path).add(KEY, TOLD, None)
    path.write_bytes(line.encode() + b"\n\xff\xfe\n" + path.read_bytes())
    assert Ledger(path).get(KEY) == [TOLD]


def test_lines_of_many_threads_are_whole(tmp_path) -> None:
    path = tmp_path / "raw.jsonl"
    ledger = Ledger(path)
    threads = [
        threading.Thread(target=ledger.add, args=((*KEY[:3], str(i)), KeptAnswer("x" * 5000, "h", "d"), None))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(Ledger(path).get((*KEY[:3], str(i)))) == 1 for i in range(20))


def test_a_file_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match=r"Cannot write .*taken/raw\.jsonl: "):
        Ledger(tmp_path / "taken/raw.jsonl").add(KEY, TOLD, None)


def test_an_answer_with_a_line_separator_is_one_line(tmp_path) -> None:
    path = tmp_path / "raw.jsonl"
    entry = dict(zip(("model", "version", "question", "subject"), KEY, strict=True))
    told = KeptAnswer("a crack\u2028in the\x85nut", "host", "2026-01-02")
    path.write_text(json.dumps(entry | {"answer": told.text, "host": told.host, "date": told.date}, ensure_ascii=False))
    assert Ledger(path).get(KEY) == [told]


def test_an_answer_that_is_not_on_disk_is_not_known(tmp_path, monkeypatch) -> None:
    ledger = Ledger(tmp_path / "raw.jsonl")
    ledger.add(KEY, TOLD, None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kanoclip.knowledge.ledger.append_text", full)
    with pytest.raises(OSError, match="No space"):
        ledger.add(KEY, KeptAnswer("second", "host", "2026-01-03"), None)
    assert ledger.get(KEY) == Ledger(tmp_path / "raw.jsonl").get(KEY) == [TOLD]
