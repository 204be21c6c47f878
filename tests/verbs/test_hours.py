"""How far a benchmark is, drawn on a terminal below what its runs print, in one process and in several."""

import re
import subprocess
import sys
import time

import pytest
from rich import get_console
from rich.progress import Progress

from kanoclip.verbs import hours, work
from kanoclip.verbs.hours import Overall, ToDo

PATH = "runs/a-folder-whose-name-is-so-long-that-it-does-not-fit/into/one/line/of/the/terminal/last.ckpt"


@pytest.fixture
def states(monkeypatch) -> list[ToDo]:
    """A terminal of 80 columns, and what is left to do at each look: the last one holds."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich then takes what it prints to for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("rich._console", None)
    left = [ToDo(1, 600, 2, 400)]
    monkeypatch.setattr(hours, "left", lambda jobs: left[0])
    for module in (hours, work):
        monkeypatch.setattr(module, "is_watched", lambda: True)
    return left


def lines(text: str) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_on_a_terminal_one_bar_stays_below_all_that_is_printed(states, capsys) -> None:
    with Overall([]) as overall:
        overall.begin("kanoclip, seed 1")
        with Progress(console=get_console()) as own:  # a run draws its own below it
            own.add_task("Epoch 1", total=1, completed=1)
        print(PATH)
        overall._begin -= 60
        states[0] = ToDo(0, 0, 2, 400)
        overall.look()
        get_console()._live_stack[0].refresh()
        states[0] = ToDo(0, 0, 0, 0)
    drawn = lines(capsys.readouterr().out)
    until = [time.strftime("%H:%M", time.localtime(time.time() + 40 - ago)) for ago in (0, 20)]
    assert {"== kanoclip, seed 1", PATH} <= set(drawn)  # in one piece, to be copied
    assert re.fullmatch(r"━+ 0 of 3 runs done 0:00:00", drawn[0])
    assert any(
        re.fullmatch(rf"━.+ 1 of 3 runs done, the rest until about ({'|'.join(until)}) 0:00:\d\d", one) for one in drawn
    )
    assert any("Epoch 1" in one for one in drawn)
    assert re.fullmatch(r"━+ 3 of 3 runs done 0:00:\d\d", drawn[-1])
    assert not get_console().soft_wrap


def test_rows_that_wait_for_a_choice_are_counted_when_it_is_made(states) -> None:
    def then() -> list:
        states[0] = ToDo(1, 50, 1, 10)
        return []

    overall = Overall([], then)
    states[0] = ToDo(0, 0, 0, 0)
    assert "3 of 5 runs done, the rest until" in str(overall)
    states[0] = ToDo(0, 0, 0, 0)
    assert str(overall) == "━" * 20 + " 5 of 5 runs done"


def test_what_several_processes_print_stands_above_the_bar_of_the_one_that_started_them(
    states, monkeypatch, capsys
) -> None:
    started, told = subprocess.Popen, []

    def start(command, **options):
        told.append(command)
        return started([sys.executable, "-c", "import sys; print('== one'); print('two', file=sys.stderr)"], **options)

    monkeypatch.setattr(work.subprocess, "Popen", start)
    overall = Overall([])
    states[0] = ToDo(0, 0, 0, 0)
    work.work_in_processes(2, ["benchmark"], overall=overall)
    drawn = lines(capsys.readouterr().out)
    assert (drawn.count("== one"), drawn.count("two")) == (2, 2)
    assert re.fullmatch(r"━+ 3 of 3 runs done 0:00:\d\d", drawn[-1])
    assert all(command[-1] == "--drawn" for command in told)


@pytest.mark.parametrize("drawn", [True, False])
def test_one_of_several_processes_says_it_before_each_job_unless_it_is_drawn(
    states, monkeypatch, capsys, drawn
) -> None:
    monkeypatch.setattr(hours, "is_watched", lambda: False)
    with Overall([], lines=not drawn) as overall:
        overall.begin("clip")
    bar = [] if drawn else ["─" * 20 + " 0 of 3 runs done"]
    assert lines(capsys.readouterr().out) == [*bar, "== clip"]
