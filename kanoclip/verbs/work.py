"""Do the jobs of a benchmark: each is the very fit or test that the command line would run."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.files import write_json, write_text
from kanoclip.models.contents import CheckpointError
from kanoclip.outputs.record import files_of, read_record
from kanoclip.outputs.tables import METRICS
from kanoclip.types import KanoclipError
from kanoclip.verbs.arguments import prepare
from kanoclip.verbs.hours import FirstSteps, Overall, is_watched, left
from kanoclip.verbs.jobs import DATA_SEED, Data, Job
from kanoclip.verbs.run import KanoclipCLI, NoFitError
from kanoclip.verbs.say import mistake, note
from kanoclip.verbs.specs import Spec


def work(
    jobs: Sequence[Job], since: float, tell: bool = True, processes: int = 1, overall: Overall | None = None
) -> None:
    """Do the jobs that are not done, with other processes that may do the same: each takes what is not taken.

    A job is locked while it is worked on. The lock is the kernel's, so that of a process that died is free. A job that
    fails says why in its ``error.txt`` and does not stop the others.

    Args:
        jobs: In the order of work.
        since: Time of the start, in seconds: what has failed since is not tried again.
        tell: Whether to say that it waits for others.
        processes: How many share the work.
        overall: Says how far all is; None for one of its own.
    """
    pending, timed = list(jobs), _timed(jobs, processes)
    with overall or Overall(jobs) as overall:
        while pending:
            busy = [job for job in pending if not _attempt(job, since, timed, overall)]
            if len(busy) == len(pending):
                if tell:
                    note(f"waiting for another process, which is at {busy[0].name}")
                tell = False
                time.sleep(1)
                overall.look()
            pending = busy


def _timed(jobs: Sequence[Job], processes: int) -> dict[str, Any]:
    """Return the fit folder of the first fit to do, or else of the first test, and the callback that times it."""
    to_do = [job for job in jobs if job.possible and not job.finished]
    first = next((job for job in to_do if job.learns and not job.fitted), None) or next(iter(to_do), None)
    if first is None:
        return {}
    numbers = left(jobs)._asdict() | {"processes": processes}
    callback = {"class_path": f"{FirstSteps.__module__}.{FirstSteps.__name__}", "init_args": numbers}
    return {"folder": first.fit_folder, "verb": "fit" if numbers["fits"] else "test", "callback": callback}


def _attempt(job: Job, since: float, timed: dict[str, Any], overall: Overall) -> bool:
    """Do a job, unless it is done or has failed already; returns False if another process is at it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    job.fit_folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.fit_folder / ".lock", timeout=0):
            # A date in the future is some clock's mistake, and would hold for every call until then.
            failed = job.error.is_file() and since <= job.error.stat().st_mtime <= time.time()
            if not failed and not job.finished:
                overall.begin(job.name)
                _run(job if timed.get("folder") != job.fit_folder else replace(job, timed=timed), overall)
    except Timeout:
        return False
    return True


def _run(job: Job, overall: Overall) -> None:
    """Fit if the model learns and is not fitted, then test on what is not tested."""
    job.error.unlink(missing_ok=True)
    failures: dict[str, list[str]] = {}
    details = []
    for data in job.available:
        if job.done(data):
            continue
        step = data.label
        try:
            report = _test(job, data)
            if report is None:
                step = f"fit on {job.auxiliary.label}"
                _fit(job)
                overall.look()
                step = data.label
                report = _test(job, data)
            if report is None:
                raise NoFitError(
                    "The fit has no checkpoint, or its files changed meanwhile. The same command fits anew."
                )
        except Exception as error:
            said = mistake(error, "--output") or f"{type(error).__name__}: {error}"
            failures.setdefault(said, []).append(step)
            details.append(traceback.format_exc())
            if step != data.label:
                break  # it would fail again
        else:
            write_json(job.report_path(data), report)
            mean = report["results"]["mean"]
            means = (f"{name} {METRICS[name].show(mean.get(name))}" for name in ("image_auroc", "pixel_auroc"))
            print(f"{job.name} | {data.label}: {', '.join(means)}", flush=True)
            overall.look()
    if failures:
        lines = [f"{', '.join(labels)}: {said}" for said, labels in failures.items()]
        write_text(job.error, "\n".join([*lines, "", *details]))


def _test(job: Job, data: Data) -> dict[str, Any] | None:
    """Return the report of a test; None if the model learns, and has no fit of the samples and files as they are."""
    checkpoint = job.checkpoint
    if checkpoint is None and (job.learns or any(job.fit_folder.glob("fit/**/last.ckpt"))):
        return None
    options = [f"--ckpt_path={checkpoint}"] if checkpoint else []
    try:
        folder = _verb("test", job, job.folder, job.model, data.seeded(DATA_SEED), *options)
    except NoFitError:
        return None
    except CheckpointError as error:
        if checkpoint is None or job.given:
            raise
        note(f"{job.name} is fitted anew: {error}")
        return None
    report: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for path, why in report.get("unreadable", ()):
        raise UnreadableImageError(path, why)  # a row of a table is of all images
    fit = read_record(checkpoint.parents[1] / "run.json") if checkpoint and not job.given else None
    return report | {
        "files": files_of(report["options"]["model"]),
        "folder": os.path.relpath(folder, job.output),
        "fit": fit and {name: fit.get(name) for name in ("parameters", "memory", "seconds")},
    }


def _fit(job: Job) -> None:
    """Fit, from the last epoch of a fit that was stopped if there is one."""
    folder, model, data = job.fit_folder, job.heads, job.auxiliary.spec
    if last := job.unfinished:
        try:
            _verb("fit", job, folder, model, data, f"--ckpt_path={last}")
        except CheckpointError as error:
            note(f"{job.name} is fitted anew, not from its last epoch: {error}")
        else:
            return
    _verb("fit", job, folder, model, data)


def _verb(verb: str, job: Job, folder: Path, model: Spec, data: Spec, *options: str) -> Path:
    """Run a verb as the command line would; returns where it has written.

    Where nobody watches, or one of several processes works, what it prints goes to the folder's log.txt.
    """
    watched = is_watched()
    gc.collect()  # or the last run's backbone may still fill the memory
    trainer = {"devices": 1, "enable_progress_bar": watched, **job.trainer, "default_root_dir": str(folder)}
    if callback := job.timed.pop("callback", None) if job.timed.get("verb") == verb else None:
        given = trainer.get("callbacks") or []
        trainer["callbacks"] = [*(given if isinstance(given, list) else [given]), callback]
    content = {"seed_everything": job.seed, "data": data, "model": model, "trainer": trainer}
    config = folder / f"{verb}.yaml"
    write_text(config, yaml.safe_dump(content, sort_keys=False))
    with ExitStack() as stack:
        if not watched:
            log = stack.enter_context(open(folder / "log.txt", "a", encoding="utf-8", errors="replace"))
            stack.enter_context(redirect_stdout(log))
        cli = KanoclipCLI(prepare([verb, f"--config={config}", *options]))
    return Path(str(cli.trainer.log_dir))


def work_in_processes(
    count: int, argv: Sequence[str], gpus: Sequence[str] = (), overall: Overall | None = None
) -> None:
    """Start the same command several times and wait for all; they end with this process.

    Args:
        count: How many.
        argv: Verb and options; such a process calls ``end_with_parent`` first of all.
        gpus: Devices to share out, one to a process, as in ``CUDA_VISIBLE_DEVICES``.
        overall: Drawn on a terminal, below what they print; elsewhere each of them says how far all is.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    command = [sys.executable, "-m", "kanoclip", *argv, f"--processes={count}", f"--worker={time.time()}"]
    drawn = overall is not None and is_watched()
    command += ["--drawn"] if drawn else []

    def end(*_: object) -> NoReturn:
        raise SIGTERMException  # which closes their inputs

    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, end))
        output = stack.enter_context(_printed_above(overall)) if overall and drawn else None
        more: Any = {} if output is None else {"stdout": output, "stderr": output}
        workers = []
        for number in range(count):
            env = threads | os.environ | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
            # The end of its input interrupts it, also when this process is killed; Ctrl-C reaches this process alone.
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, env=env, start_new_session=True, **more)
            workers.append(stack.enter_context(worker))
        for worker in workers:
            worker.wait()


@contextmanager
def _printed_above(overall: Overall) -> Iterator[int]:
    """Draw how far a benchmark is; yields a pipe whose lines are printed above it, and at each of which it looks."""
    read, write = os.pipe()

    def tell() -> None:
        with open(read, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                sys.stdout.write(line)
                with suppress(KanoclipError):  # told at the end, where all read the plan
                    overall.look()

    thread = threading.Thread(target=tell, daemon=True)
    with overall:
        thread.start()
        try:
            yield write
        finally:
            os.close(write)
            thread.join(5)  # what a process that was killed has started may keep the pipe open


def end_with_parent() -> None:
    """Interrupt this process as soon as the one that started it closes its standard input, or is gone."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is put into the background without
    threading.Thread(target=wait, daemon=True).start()
