"""``kanoclip benchmark``: models x data sets x seeds -> one table."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from kanoclip.data.parsing import local_path
from kanoclip.types import counted
from kanoclip.verbs.arguments import UsageError
from kanoclip.verbs.configs import find
from kanoclip.verbs.say import complain, folded, note, quiet
from kanoclip.verbs.specs import PlanError, read_protocols

if TYPE_CHECKING:  # torch is imported late: a mistyped option or name is answered before
    from kanoclip.outputs.rows import Tested
    from kanoclip.verbs.jobs import Job
    from kanoclip.verbs.plan import Plan


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip benchmark``; returns the exit code.

    0; 1 if a run failed or a data set is damaged; 130 if interrupted, 143 by SIGTERM.

    Raises:
        KanoclipError: For a mistake in the options or the config.
    """
    options = _parse(argv)
    options.config = find(options.config, "benchmarks")
    output = local_path(options.output or f"runs/benchmark/{Path(options.config).stem}", "--output")
    read_protocols(options.config)  # names are answered at once
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from kanoclip.verbs.hours import Overall
    from kanoclip.verbs.plan import read_plan
    from kanoclip.verbs.sweep import check_values
    from kanoclip.verbs.work import end_with_parent, work, work_in_processes

    quiet()
    if options.worker:
        end_with_parent()
    read = partial(read_plan, options.config, output, options.root, options.published)
    plan = read()
    jobs, waits = plan.work, any(job.chosen is None for job in plan.jobs)
    if not options.worker:
        for one in plan.missing:
            note(f"left out {one.label}: {one.problem}")
        for label, path in plan.not_given.items():
            note(f"left out {label}: no checkpoint at {path}. Make it with: kanoclip import --output {path}")
        if options.dry_run or jobs:
            for one in plan.damaged:
                complain(one.problem)
    if options.preflight:
        from kanoclip.verbs.preflight import preflight, show

        return 0 if show(preflight(plan, options.config)) else 1
    if options.dry_run:
        _show(plan, output)
        return 0
    if not jobs:
        damaged = [one.problem for one in plan.damaged]
        damaged += [f"No checkpoint at {path}." for path in plan.not_given.values()]
        nothing = f"No data set of {options.config} is on disk. Give --root FOLDER_THAT_CONTAINS_THEM."
        raise PlanError(damaged[0] if damaged else nothing)
    if not options.worker:
        check_values(plan.sweeps, options.config)
    try:
        gpus = _gpus()
        processes = min(int(options.processes or max(1, len(gpus))), len(jobs))
        if processes > 1 and not options.worker:
            work_in_processes(processes, argv, gpus, Overall(jobs, (lambda: read().work) if waits else None))
        else:
            since, tell = options.worker or time.time(), not options.worker
            work(jobs, since, tell, processes, Overall(jobs, lines=not options.drawn))
            if waits:  # the rows whose options are chosen now
                jobs = read().work
                work(jobs, since, tell, processes, Overall(jobs, lines=not options.drawn))
        return 0 if options.worker else _report(read() if waits else plan, output)
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning answers Ctrl-C and SIGTERM by leaving
        terminated = isinstance(end, SIGTERMException)
        if not terminated and not any(isinstance(one, KeyboardInterrupt) for one in (end, end.__context__)):
            raise
        if not options.worker:
            how = "terminated" if terminated else "interrupted"
            note(f"{how}. What is done is in {output}; the same command goes on.")
        return 143 if terminated else 130


def _parse(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="kanoclip benchmark",
        description="Fit what learns on an auxiliary set, test all models on the other sets, and print one table. What "
        "is done already is not done again, so the same command goes on after a stop; commands that are started at "
        "once, also on several machines with the same disk, share the work.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add(
        "--config",
        required=True,
        help="YAML with auxiliary, data and models; its path, or the name of one that ships, such as quickstart.",
    )
    add("--output", default=None, help="Folder for runs and table; runs/benchmark/NAME by default.")
    add("--root", default=None, help="Folder that contains the data sets, for those that name none.")
    add("--processes", type=PositiveInt, default=None, help="Runs at a time; one for each GPU, or 1, by default.")
    add("--published", default=None, help="Published numbers beside ours: mvtec_to_all, visa_to_all or none.")
    add("--dry_run", "--dry-run", type=bool, nargs="?", const=True, default=False, help="Print the plan and stop.")
    add("--preflight", type=bool, nargs="?", const=True, default=False, help="Check weights, towers and data in a "
        "minute, and stop.")  # fmt: skip
    add("--worker", type=float, default=None, help=argparse.SUPPRESS)  # one of several processes that began then
    add("--drawn", action="store_true", help=argparse.SUPPRESS)  # by the process that started it: how far all is
    try:
        options = parser.parse_args([option.replace("--data.root", "--root") for option in argv[1:]])
        options.config = str(local_path(options.config, "--config"))
        return options
    except argparse.ArgumentError as error:
        said = " ".join(str(error).split())
        raise UsageError(f"{said}. Type: kanoclip benchmark --config quickstart") from error


def _gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _show(plan: Plan, output: Path) -> None:
    """Print what would be done, and what is done already."""
    from kanoclip.outputs.tables import print_table, word_table

    rows: dict[tuple[str, tuple[str, ...], str], list[Job]] = {}
    for job in plan.jobs:
        rows.setdefault((job.fitted_on, tuple(one.label for one in job.data), job.label), []).append(job)
    headings, lines = ("fitted on", "model", "seeds", "fits", "tests", "tested on"), []
    fits, tests, before = set[Path](), set[Path](), None
    for (auxiliary, data, label), jobs in rows.items():
        first, available = before != (auxiliary, data), [one.label for one in jobs[0].available]
        before = (auxiliary, data)
        to_do = [job for job in jobs if job.possible and not job.finished]
        to_fit = [job for job in to_do if not job.fitted and job.fit_folder not in fits]
        to_test = {job.report_path(one) for job in to_do for one in job.available if not job.done(one)}
        fits |= {job.fit_folder for job in to_fit}
        tests |= to_test
        seeds = ", ".join(str(job.seed) for job in jobs if job.learns is not False)
        left = f"{len(to_test)} to do" if to_test else "done" if jobs[0].possible else _not_yet(jobs[0])
        on_disk = f"{len(available)} of {len(data)} on disk{': ' * bool(available)}{', '.join(available)}"
        lines.append((auxiliary * first, label, seeds, _fits(jobs, to_fit), left, on_disk * first))
    print_table(word_table(headings, lines), word_table(headings, lines, ("seeds", "tested on")))
    for one in (one for one in plan.sweeps if one.folds):
        to_do = [job for job in one.jobs if not job.finished and job.report_path(job.data[0]) not in tests]
        to_fit = [job for job in to_do if not job.fitted and job.fit_folder not in fits]
        fits |= {job.fit_folder for job in to_fit}
        tests |= {job.report_path(job.data[0]) for job in to_do}
        needs = f"{counted(len(to_fit), 'fit')} and {counted(len(to_do), 'test')} to choose from"
        tried = f"{counted(len(one.candidates), 'candidate')} on {counted(len(one.folds), 'fold')} of {one.fitted_on}"
        print(folded(one.note or f"{one.label}: {needs} {tried}, before its own."))
    used = {one.label: not one.problem for job in plan.jobs for one in job.data}
    here = [label for label, there in used.items() if there]
    print(folded(f"To test on: {len(here)} of {len(used)} on disk{': ' * bool(here)}{', '.join(here)}."))
    print(f"{counted(len(fits), 'fit')} and {counted(len(tests), 'test')} to do. Runs and tables: {output}")
    print(f"Published numbers beside them: {plan.family or 'none'}.")


def _fits(jobs: Sequence[Job], to_do: Sequence[Job]) -> str:
    if jobs[0].given:
        return f"checkpoint {jobs[0].given.name}"
    if jobs[0].learns is False:
        return "learns nothing"
    if not to_do:
        done = all(job.fitted for job in jobs)
        return "done" if done else "those of another row" if jobs[0].possible else _not_yet(jobs[0])
    begun = sum(job.unfinished is not None for job in to_do)
    return f"{len(to_do)} to do" + f", {begun} begun" * bool(begun) + " if it learns" * (jobs[0].learns is None)


def _not_yet(job: Job) -> str:
    return "after the choice" if job.chosen is None and not job.auxiliary.problem else "not possible"


def _report(plan: Plan, output: Path) -> int:
    """Print and write the table of what is done, and tell what is not; returns the exit code."""
    from kanoclip.data.files import write_json, write_text
    from kanoclip.outputs.comparison import Comparison
    from kanoclip.outputs.intervals import read_draws
    from kanoclip.outputs.report import write_comparison
    from kanoclip.outputs.rows import Tested
    from kanoclip.outputs.tables import print_table, table_text
    from kanoclip.outputs.verdicts import judge, verdict_csv, verdict_table
    from kanoclip.verbs import sweep
    from kanoclip.verbs.jobs import read_report

    tested: dict[tuple[Path, str, str], Tested] = {}  # a protocol may name what another one does, too
    chosen: dict[tuple[str, str], str] = {}
    failures = [one.problem for one in plan.damaged]
    for job in plan.jobs:
        for data in job.available:
            name, path = data.name if data.whole else "", job.report_path(data)
            if job.chosen is not None and job.done(data) and (report := read_report(path)):
                fitted_on = job.fitted_on if report["auxiliary"] or job.given or job.chosen else "nothing"
                key = path, job.label, data.label
                draws = read_draws(output / report.get("folder", ""))
                tested[key] = Tested(data.label, name, data.domain, job.label, fitted_on, report, draws)
                chosen[job.label, fitted_on] = job.chosen
    for job in (*plan.jobs, *(job for one in plan.sweeps for job in one.jobs)):
        if job.error.is_file() and not job.finished:  # it may be of a set that is not asked for any more
            said = job.error.read_text(encoding="utf-8").split("\n\n")[0].replace("\n", " ")
            failures.append(f"{job.name} failed. {said.rstrip('.')}. The whole story: {job.error}")
        elif job.possible and not job.finished:
            failures.append(f"{job.name} is not done: its process came to an end. The same command goes on.")
    if tested:
        order = list(dict.fromkeys(one.label for job in plan.jobs for one in job.data))
        found = sorted(tested.values(), key=lambda one: order.index(one.data))
        told = [f"Not done: {failure.partition(' The whole')[0]}" for failure in failures]
        comparison = Comparison(found, plan.family, [*_notes(plan, found), *told], plan.reference, chosen)
        text = table_text(comparison.table()) + "\n" + "\n".join(comparison.notes) + "\n"
        if differences := comparison.differences_table():
            text += "\n" + table_text(differences) + "\n"
        print_table(comparison.table(), comparison.table(1, intervals=False), comparison.narrow_table())
        print("\n".join(map(folded, comparison.notes)))
        if tried := sweep.rows(plan.sweeps):
            print_table(sweep.table(plan.sweeps))
            text += "\n" + table_text(sweep.table(plan.sweeps)) + "\n"
            write_text(output / "chosen.csv", sweep.to_csv(plan.sweeps))
        verdicts = judge(plan.expected, [row for section in comparison.sections for row in section])
        if verdicts:
            print_table(verdict_table(verdicts), verdict_table(verdicts, ("source", "tolerance")))
            text += "\n" + table_text(verdict_table(verdicts)) + "\n"
            write_text(output / "verdicts.csv", verdict_csv(verdicts))
        files = "table.md, table.tex, results.csv, differences.csv, results.json"
        print(f"{output}/table.txt (all columns, ± over seeds, intervals), {files}")
        write_text(output / "table.txt", text)
        write_text(output / "table.md", comparison.markdown() + ("\n" + sweep.to_markdown(plan.sweeps)) * bool(tried))
        write_text(output / "table.tex", comparison.latex())
        write_text(output / "results.csv", comparison.csv())
        write_text(output / "differences.csv", comparison.differences_csv())
        tests = [
            {"data": one.data, "model": one.model, "auxiliary": one.auxiliary, "report": one.report} for one in found
        ]
        judged = [one.expected._asdict() | {"measured": one.measured, "verdict": one.says} for one in verdicts]
        tries = {"chosen": [one.to_json() for one in plan.sweeps]} if plan.sweeps else {}
        write_json(output / "results.json", {"tests": tests, "verdicts": judged, **tries})
        try:
            links = {_name(one): one.report.get("folder") for one in found}
            write_comparison(output, comparison, links, (sweep.HEADINGS, [tried], 4) if tried else None)
            print(f"{output}/report.html")
        except OSError as error:  # all numbers are written
            failures.append(str(error))
    for failure in failures:
        complain(failure)
    return 1 if failures else 0


def _name(test: Tested) -> str:
    seed = "" if test.report["seed"] is None else f", seed {test.report['seed']}"
    return f"{test.model} ({test.auxiliary}{seed}) on {test.data}"


def _notes(plan: Plan, found: Sequence[Tested]) -> list[str]:
    """Say what a reader of the table must know of its rows."""
    from kanoclip.outputs.identity import done_without
    from kanoclip.outputs.published import published
    from kanoclip.verbs import sweep

    versions = ", ".join(sorted({one.report["versions"]["kanoclip"] for one in found}))
    notes = [f"Zero-shot: fitted on other images than tested on. Measured with kanoclip {versions}."]
    notes += sweep.notes(plan.sweeps)
    for zero_shot, said in (
        (False, "NOT zero-shot, as tested images were fitted"),
        (None, "Zero-shot or not is unknown, as the contents of images were not compared"),
    ):
        these = [one for one in found if one.report["zero_shot"] is zero_shot and not one.report.get("references")]
        rows = [f"{one.model} ({one.auxiliary}) on {one.data}" for one in these]
        notes += [f"{said}: {', '.join(dict.fromkeys(rows))}."] * bool(rows)
    bare = {f"{o.model} ({o.auxiliary})": ", ".join(files) for o in found if (files := done_without(o.report))}
    notes += [f"Fitted without knowledge of images, as there was no {files}: {row}." for row, files in bare.items()]
    few = [f"{o.model} on {o.data} ({o.report['references']})" for o in found if o.report.get("references")]
    notes += [f"Few-shot, NOT zero-shot: {', '.join(dict.fromkeys(few))}."] * bool(few)
    if plan.missing:
        notes.append(f"Not on disk, so left out: {', '.join(one.label for one in plan.missing)}.")
    used = {one.label: one for job in plan.jobs for one in job.available}
    partly = [
        label for label, one in used.items() if not one.whole and plan.family and published(plan.family, [one.name])
    ]
    if partly:
        notes.append(f"Published numbers are not beside {', '.join(partly)}: perhaps not exactly the published images.")
    return notes + [f"Not fitted, as {name} cannot be used: {', '.join(m)}." for name, m in plan.unfitted.items()]
