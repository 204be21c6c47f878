"""Processes that share work: which GPU they see, what is printed, and that they end with the one that started them."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kanoclip.verbs import work
from kanoclip.verbs.work import work_in_processes

ROOT = Path(__file__).parents[2]


class Fake:
    """A process that ends at once."""

    started: ClassVar[list] = []

    def __init__(self, command, env, **options) -> None:
        Fake.started.append((command, env))

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> int:
        return 0


@pytest.fixture
def fake(monkeypatch) -> type[Fake]:
    monkeypatch.setattr(Fake, "started", [])
    monkeypatch.setattr(work.subprocess, "Popen", Fake)
    return Fake


def test_every_process_has_one_gpu_and_its_share_of_the_cores(fake, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(work.os, "cpu_count", lambda: 8)
    work_in_processes(3, ["benchmark", "--config", "a.yaml"], gpus=["4", "6"])
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in fake.started] == ["4", "6", "4"]
    assert {env["OMP_NUM_THREADS"] for _, env in fake.started} == {"2"}
    told = [sys.executable, "-m", "kanoclip", "benchmark", "--config", "a.yaml", "--processes=3"]
    assert fake.started[0][0][:-1] == told


def test_a_choice_of_threads_is_kept_and_no_gpu_is_made_up(fake, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    work_in_processes(2, [])
    assert [(env["OMP_NUM_THREADS"], "CUDA_VISIBLE_DEVICES" in env) for _, env in fake.started] == [("1", False)] * 2


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
def test_they_are_interrupted_when_this_process_is(tmp_path, monkeypatch, how) -> None:
    program = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # as a shell starts a background job
        "from kanoclip.verbs.work import end_with_parent\nend_with_parent()\n"
        "try:\n    open('begun', 'w')\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    open('left', 'w')"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started = subprocess.Popen

    def start(command, **options):
        return started([sys.executable, "-c", program], **options)

    def interrupted(self, *_: object, **options: object) -> int:
        while not Path("begun").exists():
            time.sleep(0.01)
        monkeypatch.setattr(started, "wait", waits)
        if how == "sigterm":
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    waits = started.wait
    monkeypatch.setattr(started, "wait", interrupted)
    monkeypatch.setattr(work.subprocess, "Popen", start)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt if how == "ctrl-c" else SIGTERMException):
        work_in_processes(1, [])
    assert Path("left").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_is_interrupted_when_its_parent_is_gone() -> None:
    program = (
        "import time\nfrom kanoclip.verbs.work import end_with_parent\nend_with_parent()\n"
        "try:\n    print(1, flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('left', flush=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    child.stdout.readline()
    child.stdin.close()
    assert child.stdout.read() == "left\n"
    assert child.wait(10) == 0
