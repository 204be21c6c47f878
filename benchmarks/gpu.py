"""Check and measure kanoclip on one GPU: tests, forward pass, a step of fit, and the test loop from files.

    python benchmarks/gpu.py --output benchmarks/reports/gpu.md      # on one H100, in 5.5 minutes at most
    python benchmarks/gpu.py --device cpu --small                    # tries every line of it on a CPU

The report is written anew after each row, so a run that is cut leaves what it has. Nothing is downloaded: the weights
of ViT-L-14-336 are random, the pictures drawn. ``--small`` takes the embedded backbone and fewer of everything.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from roofline import PRECISIONS, Card, Work, precision
from side_by_side import machine, table
from training import step

from kanoclip.backbone.attention import VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.data.sets.folder import Folder
from kanoclip.knowledge.base import KnowledgeBase
from kanoclip.models.epoch import EpochMetrics
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.outputs import ResultsWriter
from kanoclip.registry import NAMES, load_class
from kanoclip.types import ANOMALOUS, Batch, Features, Scores

ROOT = Path(__file__).resolve().parents[1]
SIDE = 900  # pixels of a drawn photograph, as many of MVTec AD's have
FLOORS = ["floor by operations, ms", "floor by bytes, ms", "x the higher floor"]


class Cut(Exception):
    """A part has used up its time."""


class Report:
    """A Markdown file that is written anew with each row."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.blocks: list[tuple[Sequence[str], list[Sequence[object]]]] = []  # texts, and heads of tables with rows
        output.parent.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """Add a paragraph or a heading."""
        print(text, flush=True)
        self.blocks.append(([text], []))
        self._write()

    def table(self, *head: str) -> Callable[..., None]:
        """Begin a table; returns what adds a row."""
        rows: list[Sequence[object]] = []
        self.blocks.append((head, rows))

        def add(*row: object) -> None:
            rows.append(row)
            print(table(head, [row])[-1], flush=True)
            self._write()

        return add

    def _write(self) -> None:
        texts = [head[0] if len(head) == 1 else "\n".join(table(head, rows)) for head, rows in self.blocks]
        self.output.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


class Bench:
    """What the parts share.

    Args:
        options: What was typed.
        place: Folder for files.
    """

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self.device, self.small, self.seed, self.place = options.device, options.small, options.seed, place
        self.minutes, self.end = options.minutes, time.monotonic() + 60 * options.minutes
        self.report = Report(options.output)
        self.workers = 2 if self.small else min(16, os.cpu_count() or 1)
        self.card = Card(self.device, 1 if self.small else 3)
        self.backbone: CLIPBackbone
        self.speeds: dict[str, float] = {}  # precision -> images per second of the backbone at the batch size of fit

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def prepare(self) -> None:
        """Build the backbone and draw the pictures, while the tests run."""
        if hasattr(self, "backbone"):
            return
        torch.manual_seed(self.seed)
        draw_photos(self.place / "photos", *((24, 1) if self.small else (256, 4)))
        self.backbone = EmbeddedBackbone() if self.small else CLIPBackbone("ViT-L-14-336", None)

    def model(self) -> KAnoCLIP:
        """KAnoCLIP on the device, with new heads."""
        torch.manual_seed(self.seed)
        return KAnoCLIP(backbone=self.backbone).to(self.device)

    def row(self, run: Callable[[], object], name: str) -> tuple[float, float, Work]:
        """Seconds and peak memory (GB) of a run in a precision, and its work."""
        with precision(name, self.device), Work() as work:
            run()
        with precision(name, self.device):
            seconds = self.card.seconds(run)
            return seconds, self.card.peak(run), work


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise ``Cut`` in the main thread after a time."""

    def stop(*_: object) -> None:
        raise Cut

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def as_the_command() -> Iterator[None]:
    """Choose algorithms as ``kanoclip fit`` and ``test`` do: ``--trainer.deterministic warn``."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def draw_photos(folder: Path, different: int, copies: int) -> None:
    """Write pictures with noise as a camera's, masks and links to them, in the layout of ``folder``."""
    data = Surfaces(images=-(-different // 7 // 2) * 2)

    def write(number: int) -> None:
        sample = samples[number]
        image, mask = data.read(sample)
        noise = np.random.default_rng(number).normal(0, 3, (SIDE, SIDE, 3))
        big = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        files = {
            ("abnormal" if sample.label == ANOMALOUS else "normal"): np.clip(big + noise, 0, 255).astype(np.uint8),
            **({"masks": cv2.resize(mask * 255, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)} if mask.any() else {}),
        }
        for name, pixels in files.items():
            first = folder / name / f"{number:05d}.png"
            cv2.imwrite(str(first), pixels)
            for copy in range(1, copies):
                os.link(first, first.with_name(f"{number + copy * different:05d}.png"))

    samples = data.samples()[:different]
    for name in ("normal", "abnormal", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(len(samples))))


def run_tests(device: str, notes: Path) -> int:
    """Run the tests marked gpu, and note each outcome as a line of JSON; what a process of its own does."""
    import pytest

    class Outcomes:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                why = report.longreprtext.strip().splitlines()[-12:] if report.outcome == "failed" else []
                name = report.nodeid.rpartition("/")[2]
                with notes.open("a") as file:
                    file.write(json.dumps([name, report.outcome, report.duration, [line[:240] for line in why]]) + "\n")

    os.chdir(ROOT)
    files = ["tests/test_gpu.py", "tests/heads/test_scoring.py"]  # to collect the others would take as long
    return pytest.main([*files, "-m", "gpu", "--device", device, "-p", "no:cacheprovider"], [Outcomes()])


def correctness(bench: Bench) -> None:
    """Run the tests marked gpu in a process of its own, and prepare the rest meanwhile."""
    notes = bench.place / "tests.jsonl"
    words = [sys.executable, __file__, "--device", bench.device, "--tests", str(notes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with (bench.place / "tests.log").open("w") as log:
        start, code = time.monotonic(), "stopped"
        run = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        bench.prepare()
        code = str(run.wait())
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)  # it and its workers
        outcomes = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        counts = {kind: sum(one[1] == kind for one in outcomes) for kind in ("passed", "failed", "skipped")}
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        bench.report.say(f"pytest -m gpu: {told}; exit code {code}; {time.monotonic() - start:.0f} s.")
        row = bench.report.table("test", "outcome", "s")
        for name, outcome, seconds, _ in outcomes:
            row(name, outcome, seconds)
        for name, _, _, why in outcomes:
            if why:
                bench.report.say("\n".join([f"{name}:", "", "```", *why, "```"]))
        if not outcomes or code not in ("0", "1"):
            last = (bench.place / "tests.log").read_text().splitlines()[-15:]
            bench.report.say("\n".join(["The end of its output:", "", "```", *last, "```"]))


def measure_card(bench: Bench) -> None:
    """Measure what the floors are made of."""
    card = bench.card
    card.measure(256 if bench.small else 8192)
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in card.rates.items())
    bench.report.say(
        f"{card.description}. Measured: TFLOP/s of a matrix product: {rates}; a copy reads and writes "
        f"{card.bandwidth / 1e9:.3g} GB/s."
    )


def against(times: float, floors: tuple[float, float]) -> list[float]:
    """Cells of ``FLOORS``."""
    return [*(1000 * floor for floor in floors), times / max(*floors, 1e-12)]


def forward(bench: Bench, compiled: bool = False) -> None:
    """Time the image tower: CLIP's path and the v-v path in one pass, and open_clip's own ``encode_image``."""
    card, backbone, vv = bench.card, bench.backbone.to(bench.device), VV()
    # open_clip's own tower shares the weights; its positions are brought to the size of the image, once, as ours are
    backbone.visual.positional_embedding = torch.nn.Parameter(backbone.position, requires_grad=False)
    bench.report.say(
        "encode_image is open_clip's plain tower with CLIP's own path alone. Operations and bytes are those of matrix "
        "products, convolutions and attention; share: operations per second over the card's rate in that precision."
    )
    row = bench.report.table(
        "batch", "precision", "", "images/s", "ms a batch", "peak memory, GB", "share of the rate", *FLOORS
    )
    torch.backends.mha.set_fastpath_enabled(True)
    for batch in (8,) if compiled else (1, 2) if bench.small else (1, 8, 32):
        image = torch.rand(batch, 3, backbone.image_size, backbone.image_size, device=bench.device)
        normal = (image - backbone.mean) / backbone.std
        fast = torch.compile(backbone) if compiled else backbone
        runs = {
            f"kanoclip{', torch.compile' if compiled else ''}": lambda image=image, fast=fast: fast(image, vv),
            "encode_image": lambda normal=normal: backbone.visual(normal),
        }
        for name in ("bf16",) if compiled else PRECISIONS:
            for who, run in list(runs.items())[: 1 if compiled else 2]:
                counted = (lambda image=image: backbone(image, vv)) if who.startswith("kanoclip") else run
                torch.backends.mha.set_fastpath_enabled(False)  # or attention would be one operation that none counts
                with torch.no_grad(), precision(name, bench.device), Work() as work:
                    counted()
                torch.backends.mha.set_fastpath_enabled(True)
                with torch.inference_mode(), precision(name, bench.device):
                    seconds, peak = card.seconds(run), card.peak(run)
                share = f"{work.operations / seconds / card.rates[name]:.0%}"
                floors = card.floors(work.operations, work.bytes, name)
                row(batch, name, who, batch / seconds, 1000 * seconds, peak, share, *against(seconds, floors))
                if batch == (2 if bench.small else 8) and who == "kanoclip":
                    bench.speeds[name] = batch / seconds


def settings() -> tuple[int, int, str, int]:
    """Batch size, epochs, data set and its published number of images, of ``configs/kanoclip.yaml``."""
    config = yaml.safe_load((ROOT / "configs/kanoclip.yaml").read_text())
    name = config["data"]["class_path"]
    images = sum(load_class(NAMES["data"][name]).about.counts)
    return config["data"]["init_args"]["batch_size"], config["trainer"]["max_epochs"], name, images


def fit_step(bench: Bench) -> None:
    """Time a step of fit, whole and by component, with and without cached features."""
    size, epochs, name, images = settings()
    size = 2 if bench.small else size
    model = bench.model().train()
    side, base = model.image_size, KnowledgeBase.choose("auto", name)
    mask = torch.zeros(size, side, side, dtype=torch.uint8, device=bench.device)
    mask[1::2, side // 4 : side // 2, side // 3 : side // 2] = 1
    label, known = mask.flatten(1).amax(1).long(), torch.ones(size, dtype=torch.bool, device=bench.device)
    words = [["object"] * size, [""] * size, [""] * size]
    image = torch.rand(size, 3, side, side, device=bench.device)
    batch = Batch(image, mask, label, known, torch.full((size, 2), side, device=bench.device), *words)
    model._facts = model.backbone.encode_text(base.facts(sorted(base.categories)))
    found = model.features(batch)
    cached = batch._replace(features=Features(found.patches.half(), found.cls.half(), found.grid))
    optimizer = model.configure_optimizers()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adam = 28 * trained  # bytes: it reads weights, gradients and two moments, and writes all but the gradients

    def whole(batch: Batch) -> None:
        losses = model.losses(batch, model(batch))
        total = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(total)  # as training_step does; it waits for the device
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    bench.report.say(
        f"Batch {size}, {trained / 1e6:.1f} M parameters, {len(model._facts)} facts; the published protocol: {epochs} "
        f"epochs over {images} images of {name}, with a cache after one pass to make it. Algorithms as the command "
        f"chooses them (deterministic: warn), and freely; without loading images."
    )
    row = bench.report.table(
        "precision", "algorithms", "cached", "images/s", "ms a step", "peak memory, GB", *FLOORS, "hours"
    )
    for kind in ("TF32",) if bench.small else ("bf16", "TF32", "fp32"):
        for chosen in (True, False):
            for use in (False, True):
                if kind == "fp32" and not chosen:
                    continue
                run = partial(whole, cached if use else batch)
                with as_the_command() if chosen else contextlib.nullcontext():
                    seconds, peak, work = bench.row(run, kind)
                floors = bench.card.floors(work.operations, work.bytes + adam, kind)
                passes = images / bench.speeds[kind] if use and kind in bench.speeds else 0
                hours = (epochs * images * seconds / size + passes) / 3600
                case = "deterministic" if chosen else "any", "yes" if use else "no"
                row(kind, *case, size / seconds, 1000 * seconds, peak, *against(seconds, floors), hours)
    components(bench, model, batch, optimizer, adam)


def components(bench: Bench, model: KAnoCLIP, batch: Batch, optimizer: torch.optim.Optimizer, adam: int) -> None:
    """Time a step of fit by component, as the command runs it."""
    work: dict[str, Work] = {}
    seen: dict[str, list[float]] = {}

    @contextmanager
    def count(name: str, own: frozenset[int] = frozenset()) -> Iterator[None]:
        with Work() as work[name]:
            yield

    @contextmanager
    def watch(name: str, own: frozenset[int] = frozenset()) -> Iterator[None]:
        bench.card.wait()  # so that each is alone; a step that is not taken apart is faster
        start = time.perf_counter()
        yield
        bench.card.wait()
        seen.setdefault(name, []).append(time.perf_counter() - start)

    levels = len(model.backbone.levels)
    maps = levels * batch.mask.numel() * 4  # bytes
    patches = levels * len(batch.image) * model.backbone.position.shape[0] * model.backbone.dim * 4
    other = {"scoring": maps + patches, "losses": maps, "optimiser": adam}
    bench.report.say("By component, waiting for the device after each:")
    row = bench.report.table("precision", "component", "ms", "share", *FLOORS)
    for kind in ("TF32",) if bench.small else ("bf16", "TF32"):
        seen.clear()
        with as_the_command(), precision(kind, bench.device):
            step(model, batch, optimizer, count)
            for _ in range(3 if bench.small else 7):
                step(model, batch, optimizer, watch)
        times = {name: statistics.median(found[1:]) for name, found in seen.items()}
        for name, seconds in times.items():
            floors = bench.card.floors(work[name].operations, max(work[name].bytes, other.get(name, 0)), kind)
            row(kind, name, 1000 * seconds, f"{seconds / sum(times.values()):.0%}", *against(seconds, floors))


class Clock(Callback):
    """Seconds from the first batch of a test until its metrics are computed."""

    def on_test_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int, *_: int) -> None:
        """Start."""
        if batch_idx == 0:
            self.start = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.start


def loop(bench: Bench) -> None:
    """Test PNG files from disk, and what it is made of, each alone: model, loader, metrics."""
    size, say = settings()[0], bench.report
    model = bench.model().eval()
    data = Folder(
        root=str(bench.place / "photos"), batch_size=size, num_workers=bench.workers, image_size=model.image_size
    )
    images = len(data.part("test"))
    say.say(f"{images} PNG files of {SIDE} x {SIDE} pixels, batches of {size}, {bench.workers} workers.")
    row = say.table("precision", "", "images/s", "of the bare forward pass")
    batches, begun = [], 0.0
    for number, batch in enumerate(data.test_dataloader()):
        begun = begun or time.perf_counter()  # workers have started
        if number < 8:
            batches.append(batch)
    row("", "loader alone", (images - size) / (time.perf_counter() - begun), "")
    with torch.inference_mode():
        scores = model(move_data_to_device(batches[0], torch.device(bench.device)))
        metrics = EpochMetrics(torch.device(bench.device))
        start = time.perf_counter()
        for _ in range(10):
            metrics.update(batches[0], Scores(scores.anomaly_map.cpu(), scores.image_score.cpu()))
        metrics.compute()
    row("", "metrics alone, on the CPU", 10 * size / (time.perf_counter() - start), "")
    bare: dict[tuple[str, bool], float] = {}
    held = [move_data_to_device(batch, torch.device(bench.device)) for batch in batches]

    def passes() -> None:
        for batch in held:
            model(batch)

    for kind in ("bf16", "TF32"):
        for chosen in (False, True):
            choice = as_the_command() if chosen else contextlib.nullcontext()
            with choice, torch.inference_mode(), precision(kind, bench.device):
                speed = bare[kind, chosen] = size * len(held) / bench.card.seconds(passes, 1.0)
            what = "deterministic as the command" if chosen else "any algorithms"
            row(kind, f"bare forward pass, heads included, {what}", speed, f"{speed / bare[kind, False]:.0%}")
    for kind in ("bf16", "TF32"):
        clock, profiler = Clock(), SimpleProfiler()
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(
            accelerator="gpu" if bench.device == "cuda" else bench.device, devices=1, deterministic="warn",
            precision="bf16-mixed" if kind == "bf16" else "32-true", callbacks=[clock, ResultsWriter()],
            profiler=profiler, default_root_dir=bench.place / kind, **quiet,
        )  # fmt: skip
        said = io.StringIO()
        torch.set_float32_matmul_precision("high" if kind == "TF32" else "highest")
        start = time.perf_counter()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            trainer.test(model, data, verbose=False)
        wall = time.perf_counter() - start
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)
        for what, seconds in (("test loop, first batch to metrics", clock.seconds), ("with start and files", wall)):
            row(kind, what, images / seconds, f"{images / seconds / bare[kind, False]:.0%}")
        spent = {name: sum(found) for name, found in profiler.recorded_durations.items()}
        parts = sorted(((n, s) for n, s in spent.items() if s > 0.005 * clock.seconds), key=lambda one: -one[1])
        told = "; ".join(f"{name.split('{')[0]} {1000 * seconds * size / images:.2f}" for name, seconds in parts[:12])
        alone = 1000 * size / bare[kind, False]
        say.say(f"{kind}, ms a batch (the bare pass takes {alone:.2f}), by Lightning's profiler: {told}.")


def compiled(bench: Bench) -> None:
    """Time the compiled backbone; it takes a minute to compile."""
    forward(bench, compiled=True)


PARTS: dict[str, tuple[Callable[[Bench], None], float, float]] = {  # what, seconds at most, seconds it needs
    "correctness": (correctness, 120, 15),
    "card": (measure_card, 30, 5),
    "forward": (forward, 100, 15),
    "fit": (fit_step, 80, 15),
    "loop": (loop, 90, 20),
    "compile": (compiled, 100, 45),
}


def run(bench: Bench, parts: Sequence[str]) -> bool:
    """Run some of the parts; returns whether all of them ended."""
    report, whole = bench.report, True
    report.say(f"{machine('torch', 'lightning', 'open_clip_torch')}, seed {bench.seed}.")
    for title, (part, most, need) in PARTS.items():
        if title not in parts:
            continue
        report.say(f"## {title.capitalize()}")
        if bench.left < need:
            report.say(f"Left out: {bench.left:.0f} s were left, and it needs {need:.0f} or more.")
            continue
        start = time.monotonic()
        try:
            with within(min(most * bench.minutes / 5.5, bench.left)):
                if part is not correctness:
                    bench.prepare()  # unless the tests have
                part(bench)
        except Cut:
            report.say(f"Cut after {time.monotonic() - start:.0f} s.")
            whole = False
        except Exception:  # one part that fails must not take the others with it
            last = traceback.format_exc().splitlines()[-14:]
            report.say("\n".join(["Failed:", "", "```", *last, "```"]))
            whole = False
        report.say(f"{time.monotonic() - start:.0f} s.")
    return whole


def main() -> int:
    """Measure and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/gpu.md"), help="Markdown file to write")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="the embedded backbone, and fewer of everything")
    parser.add_argument("--minutes", type=float, help="5.5, or 1.8 of --small: what does not fit in is left out")
    parser.add_argument("--seed", type=int, default=111)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="some only; all, or all but compile with --small")
    parser.add_argument("--tests", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.minutes = options.minutes or (1.8 if options.small else 5.5)
    parts = options.parts or list(PARTS)[: -1 if options.small else None]
    if options.tests:
        return run_tests(options.device, options.tests)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "kanoclip"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as Lightning sets it for deterministic algorithms
    with tempfile.TemporaryDirectory() as place:
        os.environ["KANOCLIP_CACHE"] = f"{place}/cache"
        return 0 if run(Bench(options, Path(place)), parts) else 1


if __name__ == "__main__":
    sys.exit(main())
