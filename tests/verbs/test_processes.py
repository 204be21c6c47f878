"""Processes that share work: what they print, which GPU they see, and that they end with the one that started them."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from kanoclip.verbs import processes
from kanoclip.verbs.processes import run_in_processes

ROOT = Path(__file__).parents[2]


class Fake:
    """A process that prints two lines and ends, or is interrupted."""

    started: ClassVar[list] = []
    interrupted = False

    def __init__(self, command, env, stdin, stdout, **options) -> None:
        Fake.started.append((command, env))
        self.stdin = open("/dev/null", "w")  # noqa: SIM115
        self.stdout = iter(["before\n", f"== job {len(Fake.started)}\n", "\n", "epoch 1\n"])
        self.killed = False

    def wait(self, timeout=None) -> int:
        if Fake.interrupted and timeout is None:
            raise KeyboardInterrupt
        if Fake.interrupted and not self.killed and timeout:
            raise subprocess.TimeoutExpired("job", timeout)
        return 0

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def fake(monkeypatch) -> type[Fake]:
    monkeypatch.setattr(Fake, "started", [])
    monkeypatch.setattr(Fake, "interrupted", False)
    monkeypatch.setattr(processes.subprocess, "Popen", Fake)
    return Fake


def test_every_process_has_one_gpu_and_its_share_of_the_cores(fake, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 8)
    run_in_processes(3, ["benchmark", "--config", "a.yaml"], gpus=["4", "6"])
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in fake.started] == ["4", "6", "4"]
    assert {env["OMP_NUM_THREADS"] for _, env in fake.started} == {"2"}
    assert fake.started[0][0] == [sys.executable, "-m", "kanoclip", "benchmark", "--config", "a.yaml"]


def test_a_choice_of_threads_is_kept_and_no_gpu_is_made_up(fake, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run_in_processes(2, [])
    assert [(env["OMP_NUM_THREADS"], "CUDA_VISIBLE_DEVICES" in env) for _, env in fake.started] == [("1", False)] * 2


def test_lines_are_marked_with_what_a_process_is_at(fake, capsys) -> None:
    run_in_processes(1, [])
    assert capsys.readouterr().out.splitlines() == ["before", "== job 1", "job 1 | epoch 1"]


def test_an_interrupted_parent_ends_its_processes_even_those_that_hang(fake) -> None:
    fake.interrupted = True
    killed = []
    fake.kill = lambda self: killed.append(self)
    with pytest.raises(KeyboardInterrupt):
        run_in_processes(2, [])
    assert len(killed) == 2


def test_a_process_is_interrupted_when_its_parent_is_gone() -> None:
    program = (
        "import time\nfrom kanoclip.verbs.processes import leave_with_parent\nleave_with_parent()\n"
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
