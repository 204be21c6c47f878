"""Children end with their parent, and leave its signals to it."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kanoclip.data.processes import PARENT, end_when_told

HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def start(code: str) -> tuple[subprocess.Popen, int, int]:
    """Start a process that starts another one with ``code``, which prints when it is ready.

    Returns the first, the id of the second, and a pipe that ends when both have.
    """
    end, held = os.pipe()
    outer = (
        "import os, subprocess, sys, time\n"
        f"os.environ[{PARENT!r}] = str(os.getpid())\n"
        f"command = [sys.executable, '-c', {code!r}]\n"
        f"child = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[{held}])\n"
        "print(child.stdout.readline() and child.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    command = [sys.executable, "-c", outer]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=HERE, pass_fds=[held])
    os.close(held)
    assert parent.stdout
    return parent, int(parent.stdout.readline()), end


def gone(end: int, seconds: float = 20) -> bool:
    """Wait until both are gone."""
    return bool(select.select([end], [], [], seconds)[0])


ENDS = "import os, time\nfrom kanoclip.data.processes import end_with\nend_with(os.getppid())\nprint(1, flush=True)\n"


@pytest.mark.parametrize("waits", ["time.sleep(100)", "os.read(os.pipe()[0], 1)"])
def test_a_child_ends_with_a_parent_that_is_killed_whatever_it_waits_for(waits) -> None:
    parent, _, end = start(ENDS + waits)
    parent.kill()
    parent.wait()
    assert gone(end)


def test_a_child_whose_parent_is_gone_before_it_looks_ends_too() -> None:
    late = f"import os\nprint(1, flush=True)\nwhile os.getppid() == int(os.environ[{PARENT!r}]): pass\n"
    late += f"import time\nfrom kanoclip.data.processes import end_with\nend_with(int(os.environ[{PARENT!r}]))\n"
    parent, _, end = start(late + "time.sleep(100)")
    parent.kill()
    parent.wait()
    assert gone(end)


def test_a_worker_ignores_what_its_group_is_sent() -> None:
    code = "import time\nfrom kanoclip.data.processes import leave_signals_to_parent\nleave_signals_to_parent()\n"
    parent, pid, end = start(code + "print(1, flush=True)\ntime.sleep(100)")
    for told in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, told)
    assert not gone(end, 0.5)
    parent.kill()
    parent.wait()
    assert gone(end)


def test_sigterm_raises_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        end_when_told()
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGTERM)
        assert end.value.code == 143
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_main_thread_that_cannot_hear_sigterm_is_ended() -> None:
    code = (
        "import ctypes\nfrom kanoclip.data.processes import end_when_told\nend_when_told()\n"
        "lock = ctypes.create_string_buffer(256)\nlibc = ctypes.CDLL(None)\nlibc.pthread_mutex_init(lock, None)\n"
        "print(1, flush=True)\n"
        "libc.pthread_mutex_lock(lock)\n"
        "libc.pthread_mutex_lock(lock)\n"  # a second time: waits for good, and no signal ends that
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=HERE)
    assert child.stdout
    child.stdout.readline()
    time.sleep(0.5)  # until it waits
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 143
    assert child.stderr
    assert child.stderr.read() == b"kanoclip: stopped by SIGTERM.\n"


def test_sigterm_that_another_hears_ends_nothing_that_begins_after_it() -> None:
    code = (
        "import signal, time\nfrom kanoclip.data.processes import end_when_told\nend_when_told()\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\nsignal.raise_signal(signal.SIGTERM)\n"
        "time.sleep(0.2)\nend_when_told()\ntime.sleep(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], env=HERE).returncode == 0


def test_sigterm_of_a_forked_child_does_not_end_its_parent() -> None:
    code = (
        "import multiprocessing, time\nfrom kanoclip.data.processes import end_when_told\nend_when_told()\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n    pool.map(abs, [-1])\n"  # its end is a SIGTERM
        "time.sleep(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=HERE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
