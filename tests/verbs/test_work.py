"""Processes that share work: which GPU they see, what is printed, and that they end with the one that started them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from kanoclip.verbs import work
from kanoclip.verbs.work import work_in_processes

ROOT = Path(__file__).parents[2]


class Fake:
    """A process that prints a line and ends, or hangs until it is killed."""

    started: ClassVar[list] = []
    hangs = False

    def __init__(self, command, env, stdin, stdout, **options) -> None:
        Fake.started.append((command, env))
        self.stdin = open("/dev/null", "w")  # noqa: SIM115
        self.killed = False
        os.write(stdout, f"job {len(Fake.started)}\n".encode())

    def wait(self, timeout=None) -> int:
        if Fake.hangs and not self.killed:
            raise subprocess.TimeoutExpired("job", timeout)
        return 0

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def fake(monkeypatch) -> type[Fake]:
    monkeypatch.setattr(Fake, "started", [])
    monkeypatch.setattr(Fake, "hangs", False)
    monkeypatch.setattr(work.subprocess, "Popen", Fake)
    return Fake


def test_every_process_has_one_gpu_and_its_share_of_the_cores(fake, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(work.os, "cpu_count", lambda: 8)
    work_in_processes(3, ["benchmark", "--config", "a.yaml"], gpus=["4", "6"])
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in fake.started] == ["4", "6", "4"]
    assert {env["OMP_NUM_THREADS"] for _, env in fake.started} == {"2"}
    assert fake.started[0][0][:-1] == [sys.executable, "-m", "kanoclip", "benchmark", "--config", "a.yaml"]


def test_a_choice_of_threads_is_kept_and_no_gpu_is_made_up(fake, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    work_in_processes(2, [])
    assert [(env["OMP_NUM_THREADS"], "CUDA_VISIBLE_DEVICES" in env) for _, env in fake.started] == [("1", False)] * 2


def test_what_they_print_is_printed(fake, capsys) -> None:
    work_in_processes(2, [])
    assert capsys.readouterr().out.splitlines() == ["job 1", "job 2"]


def test_an_interrupted_parent_ends_its_processes_even_those_that_hang(fake, monkeypatch) -> None:
    def interrupted(*_: object, **options: object) -> None:
        raise KeyboardInterrupt

    fake.hangs = True
    killed = []
    monkeypatch.setattr(fake, "kill", lambda self: killed.append(self))
    monkeypatch.setattr(work, "print", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        work_in_processes(2, [])
    assert len(killed) == 2


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
