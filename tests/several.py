"""Runs a verb in several processes that work together, as torchrun would start them, but forked from one that has
imported everything: a second instead of ten."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

PRELOAD = ["kanoclip.verbs.run", "kanoclip.models.kanoclip", "kanoclip.models.ablations", "kanoclip.backbone.embedded"]
PRELOAD += ["kanoclip.data.drawn.surfaces", "kanoclip.data.transforms", "kanoclip.data.sets.folder", "several"]
SECONDS = 120
GLOO = re.compile(r"^\[Gloo\] Rank \d+ is connected to .*\n", re.M)  # torch 2.10 says it, later ones do not
CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def run(
    count: int,
    argv: list[str],
    folder: Path,
    nodes: int = 1,
    slurm: bool = False,
    fault: Callable[[], object] | None = None,
    more: dict[str, str] | None = None,
) -> tuple[list[int | None], list[str], list[str]]:
    """Run ``kanoclip`` with ``argv`` in ``folder``.

    Args:
        count: Number of processes.
        argv: Verb and options; of verbs that have a trainer, what is said here of it comes behind.
        folder: Where to run, and to keep what is printed.
        nodes: As if they were on so many machines.
        slurm: As if SLURM had started them, not torchrun.
        fault: Called in each process before all else; one of those below.
        more: Environment variables of the processes.

    Returns:
        Exit code, standard output and standard error of each process, without Gloo's own line; a code of None if it
        had to be stopped.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    each = count // nodes
    several = ["--trainer.strategy=ddp", f"--trainer.devices={each}", f"--trainer.num_nodes={nodes}"]
    if argv[0] in ("fit", "validate", "test", "predict"):
        argv = [*argv, *CPU, *(several if count > 1 else [])]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = []
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank % each, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": each}
        place |= {"GROUP_RANK": rank // each, "TORCHELASTIC_RUN_ID": "test"}
        if slurm:
            place = {"PROCID": rank, "LOCALID": rank % each, "NODEID": rank // each, "NTASKS": count, "NNODES": nodes}
            place = {f"SLURM_{name}": n for name, n in place.items()} | {"SLURM_NTASKS_PER_NODE": each}
        variables = {name: str(value) for name, value in (where | place).items()} if count > 1 else {}
        variables |= more or {}
        workers.append(context.Process(target=work, args=(rank, variables, argv, folder, fault)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    said = [[GLOO.sub("", (folder / f"{kind}-{rank}").read_text()) for rank in range(count)] for kind in ("out", "err")]
    return codes, said[0], said[1]


def start(count: int, argv: list[str], folder: Path) -> tuple[list[int], list[str], list[str]]:
    """Run the command in ``folder`` as a user does; Lightning starts the other processes. Returns as ``run``."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    argv = [*argv, *CPU, "--trainer.strategy", "ddp", "--trainer.devices", str(count)]
    done = subprocess.run(
        [sys.executable, "-m", "kanoclip", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return [done.returncode], [done.stdout], [done.stderr]


def work(
    rank: int, variables: dict[str, str], argv: list[str], folder: Path, fault: Callable[[], object] | None
) -> None:
    """What one process does."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only as fabric_rank
    from lightning.pytorch.utilities import rank_zero_only

    from kanoclip.verbs.table import main

    os.chdir(folder)
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{kind}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(variables)
    rank_zero_only.rank = fabric_rank.rank = rank  # what importing Lightning finds in the environment
    if fault is not None:
        fault()
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def kill_in_write(turn: int) -> None:
    """Have this process killed by the system in the middle of writing its n-th file, counted from 1."""
    write, left = Path.write_bytes, [turn]

    def half(path: Path, data: bytes) -> int:
        left[0] -= 1
        if left[0]:
            return write(path, data)
        write(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    Path.write_bytes = half  # type: ignore[method-assign, assignment]


def full_disk(size: int) -> None:
    """Let no file grow beyond ``size`` bytes, as if the disk were full then."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def going_on(checkpoint: Path | str) -> list[str]:
    """Options that name a checkpoint, and the folder of its backbone as nobody opens what a checkpoint alone names."""
    options = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    return ["--ckpt_path", str(checkpoint), "--model.backbone.name", options["backbone"]["init_args"]["name"]]


def talkative() -> None:
    """Say how far a test is after each batch."""
    from kanoclip.outputs import record

    record.SAID = 0.0
