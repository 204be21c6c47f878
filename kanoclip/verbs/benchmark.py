"""Models x data sets x seeds -> one table. Each cell is the very fit or test that the command line would run."""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich import box
from rich.table import Table

from kanoclip.data.files import write_json, write_text
from kanoclip.outputs.comparison import Comparison, Tested
from kanoclip.outputs.published import published
from kanoclip.outputs.tables import UNDEFINED, print_table, table_text
from kanoclip.verbs.arguments import prepare
from kanoclip.verbs.plan import Data, Job, Plan, read_plan, read_report
from kanoclip.verbs.processes import leave_with_parent, run_in_processes
from kanoclip.verbs.run import KanoclipCLI, NoFitError
from kanoclip.verbs.say import complain, mistake, quiet
from kanoclip.verbs.specs import Spec, parse_spec

REMEDY = ("--trainer.default_root_dir", "--output")  # a benchmark's runs are below its own folder


def run(options: Namespace, argv: Sequence[str]) -> int:
    """Run ``kanoclip benchmark``; returns the exit code.

    0; 1 if a run failed; 2 for a mistake in the config; 130 if interrupted, 143 by SIGTERM.
    """
    quiet()
    output = Path(options.output or f"runs/benchmark/{Path(options.config).stem}")
    try:
        plan = read_plan(options.config, output, options.root, options.published)
    except ValueError as error:
        return complain(str(error))
    jobs = [job for job in plan.jobs if job.possible]
    if options.worker is None:
        for one in plan.missing:
            print(f"kanoclip: left out {one.label}: {one.missing}", file=sys.stderr)
    if options.dry_run:
        _show(plan, output)
        return 0
    if not jobs:
        return complain(f"No data set of {options.config} is on disk. Give --root FOLDER_THAT_CONTAINS_THEM.")
    try:
        if options.worker is not None:
            leave_with_parent()
            work(jobs, options.worker, tell=False)
            return 0
        gpus = _gpus()
        processes = min(options.processes or max(1, len(gpus)), len(jobs))
        if processes > 1:
            run_in_processes(processes, [*argv, f"--worker={time.time()}"], gpus)
        else:
            work(jobs, time.time())
        return _report(plan, output)
    except OSError as error:  # of the benchmark's own files; what goes wrong in a job is told in its error.txt
        return complain((mistake(error) or str(error)).replace(*REMEDY))
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning answers Ctrl-C and SIGTERM by leaving
        terminated = isinstance(end, SIGTERMException)
        if not terminated and not any(isinstance(one, KeyboardInterrupt) for one in (end, end.__context__)):
            raise
        if options.worker is None:
            how = "terminated" if terminated else "interrupted"
            print(f"kanoclip: {how}. What is done is in {output}; the same command goes on.", file=sys.stderr)
        return 143 if terminated else 130


def work(jobs: Sequence[Job], since: float, tell: bool = True) -> None:
    """Do the jobs that nobody has done, with others that may do the same: each takes what is not taken.

    A job is locked while it is worked on. The lock is the kernel's, so that of a process that died is free. What is
    done already is not done again; what failed is told in its ``error.txt`` and does not stop the others.

    Args:
        jobs: In the order of work.
        since: Time of the start, in seconds: what failed since then is not tried again.
        tell: Whether to say that it waits for others.
    """
    pending = list(jobs)
    while pending:
        busy = [job for job in pending if not _attempt(job, since)]
        if len(busy) == len(pending):
            if tell:
                print(f"kanoclip: waiting for another process, which is at {busy[0].name}", file=sys.stderr)
            tell = False
            time.sleep(1)
        pending = busy


def _attempt(job: Job, since: float) -> bool:
    """Do a job, unless it is done; returns False if another process is at it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.folder / ".lock", timeout=0):
            failed = job.error.is_file() and job.error.stat().st_mtime >= since
            if not failed and not job.finished:
                _run(job)
    except Timeout:
        return False
    return True


def _run(job: Job) -> None:
    """Fit if the model learns and is not fitted, then test on what is not tested."""
    print(f"\n== {job.name}", flush=True)
    job.error.unlink(missing_ok=True)
    failures: dict[str, list[str]] = {}
    details = []
    for data in job.here:
        if job.place(data).is_file():
            continue
        try:
            report = _test(job, data)
        except Exception as error:
            said = (mistake(error) or f"{type(error).__name__}: {error}").replace(*REMEDY)
            details.append(traceback.format_exc())
            if (job.folder / "fit").is_dir() and not job.fitted:
                failures.setdefault(said, []).append(f"fit on {job.auxiliary.label}")
                break  # it would fail again
            failures.setdefault(said, []).append(data.label)
        else:
            write_json(job.place(data), report)
            found = {metric: report["results"]["mean"].get(metric) for metric in ("image_auroc", "pixel_auroc")}
            told = (f"{metric} {UNDEFINED if value is None else f'{value:.3f}'}" for metric, value in found.items())
            print(f"{data.label}: {', '.join(told)}", flush=True)
    if failures:
        lines = [f"{', '.join(labels)}: {said}" for said, labels in failures.items()]
        write_text(job.error, "\n".join([*lines, "", *details]))


def _test(job: Job, data: Data) -> dict[str, Any]:
    """Return the report of one test; fit first if the model learns and is not fitted."""
    try:
        return _verb("test", job, data.spec)
    except NoFitError:
        pass  # what fails from here on has not failed because of this
    auxiliary = job.auxiliary.spec
    if "seed" in parse_spec("data", auxiliary, "").get("init_args", {}):  # a class of one's own may take none
        auxiliary = {**auxiliary, "init_args": {**auxiliary.get("init_args", {}), "seed": job.seed}}
    _verb("fit", job, auxiliary, *(["--ckpt_path=last"] if job.begun else []))
    return _verb("test", job, data.spec)


def _verb(verb: str, job: Job, data: Spec, *options: str) -> dict[str, Any]:
    """Run a verb as the command line would; returns the report of a test.

    Off a terminal, what it prints goes to the job's log.txt.
    """
    gc.collect()  # or the last run's backbone may still fill the memory
    trainer = {"devices": 1, "enable_progress_bar": sys.stdout.isatty(), **job.trainer}
    trainer["default_root_dir"] = str(job.folder)
    config = job.folder / f"{verb}.yaml"
    content = {"seed_everything": job.seed, "data": data, "model": job.model, "trainer": trainer}
    write_text(config, yaml.safe_dump(content, sort_keys=False))
    with ExitStack() as stack:
        if not sys.stdout.isatty():
            log = stack.enter_context(open(job.folder / "log.txt", "a", encoding="utf-8"))
            stack.enter_context(redirect_stdout(log))
        cli = KanoclipCLI(prepare([verb, f"--config={config}", *options]))
    return read_report(Path(str(cli.trainer.log_dir)) / "results.json") if verb == "test" else {}


def _show(plan: Plan, output: Path) -> None:
    """Print what would be done, and what is done already."""
    rows: dict[tuple[str, tuple[str, ...], str], list[Job]] = {}
    for job in plan.jobs:
        rows.setdefault((job.fitted_on, tuple(one.label for one in job.data), job.label), []).append(job)
    table = Table("fitted on", "model", "seeds", "fits", "tests", "tested on", box=box.SIMPLE_HEAD)
    fits, tests, before = 0, 0, None
    for (auxiliary, data, label), jobs in rows.items():
        first, here = before != (auxiliary, data), [one.label for one in jobs[0].here]
        if first and before:
            table.add_section()
        before = (auxiliary, data)
        to_do = [job for job in jobs if job.possible and not job.finished]
        to_fit = [job for job in to_do if not job.fitted and job.learns is not False]
        to_test = sum(not job.place(one).is_file() for job in to_do for one in job.here)
        fits, tests = fits + len(to_fit), tests + to_test
        table.add_row(
            auxiliary if first else "",
            label,
            ", ".join(str(job.seed) for job in jobs if job.learns is not False),
            _fits(jobs, to_fit),
            f"{to_test} to do" if to_test else "done" if jobs[0].possible else "not possible",
            f"{len(here)} of {len(data)} sets on disk{': ' * bool(here)}{', '.join(here)}" if first else "",
        )
    print_table(table)
    print(f"{fits} fits and {tests} tests to do. Runs and tables: {output}")
    print(f"Published numbers beside them: {plan.family or 'none'}.")


def _fits(jobs: Sequence[Job], to_do: Sequence[Job]) -> str:
    if jobs[0].learns is False:
        return "none: learns nothing"
    if not to_do:
        return "done" if jobs[0].possible else "not possible"
    begun = sum(job.begun for job in to_do)
    return f"{len(to_do)} to do" + f", {begun} begun" * bool(begun) + " if it learns" * (jobs[0].learns is None)


def _report(plan: Plan, output: Path) -> int:
    """Print and write the table of what is done, and tell what is not; returns the exit code."""
    tested: dict[Path, Tested] = {}  # by file: a protocol may name what another one does, too
    failures = []
    for job in plan.jobs:
        for data in job.here:
            if (place := job.place(data)).is_file():
                name = data.name if data.whole else ""
                report = read_report(place)
                fitted_on = job.fitted_on if report["auxiliary"] else "nothing"
                tested[place] = Tested(data.label, name, data.domain, job.label, fitted_on, report)
        if job.error.is_file() and not job.finished:  # it may be of a set that is not asked for any more
            said = job.error.read_text(encoding="utf-8").split("\n\n")[0].replace("\n", " ")
            failures.append(f"{job.name} failed. {said.rstrip('.')}. The whole story: {job.error}")
        elif job.possible and not job.finished:
            failures.append(f"{job.name} is not done: its process came to an end. The same command goes on.")
    if tested:
        order = list(dict.fromkeys(one.label for job in plan.jobs for one in job.data))
        found = sorted(tested.values(), key=lambda one: order.index(one.data))
        versions = ", ".join(sorted({one.report["versions"]["kanoclip"] for one in found}))
        notes = [f"Zero-shot: fitted on another set than tested on. Measured with kanoclip {versions}."]
        if plan.missing:
            notes.append(f"Not on disk, so left out: {', '.join(one.label for one in plan.missing)}.")
        partly = dict.fromkeys(
            one.label for job in plan.jobs for one in job.here if not one.whole and _known(plan, one)
        )
        if partly:
            notes.append(f"Published numbers are not beside {', '.join(partly)}: not exactly the published images.")
        notes += [f"Not fitted, as {name} is not on disk: {', '.join(m)}." for name, m in plan.unfitted.items()]
        notes += [f"Not done: {failure.partition(' The whole')[0]}" for failure in failures]
        comparison = Comparison(found, plan.family, notes)
        text = table_text(comparison.table()) + "\n" + "\n".join(comparison.notes) + "\n"
        print(f"\n{text}{output}/table.txt, table.md, table.tex, results.csv, results.json")
        write_text(output / "table.txt", text)
        write_text(output / "table.md", comparison.markdown())
        write_text(output / "table.tex", comparison.latex())
        write_text(output / "results.csv", comparison.csv())
        tests = [
            {"data": one.data, "model": one.model, "auxiliary": one.auxiliary, "report": one.report} for one in found
        ]
        write_json(output / "results.json", {"tests": tests})
    for failure in failures:
        complain(failure)
    return 1 if failures else 0


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _known(plan: Plan, data: Data) -> bool:
    return plan.family is not None and bool(published(plan.family, [data.name]))
