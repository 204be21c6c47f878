"""The page of ``kanoclip demo``: photos are scored once, and what sliders change is computed from what was kept."""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import cv2
import gradio as gr
import numpy as np
from numpy.typing import NDArray

from kanoclip.data.files import write_bytes
from kanoclip.inspector import Inspector
from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.names import csv_text
from kanoclip.outputs.overlay import LIKELIER, marked, verdict
from kanoclip.outputs.regions import find_regions
from kanoclip.types import KanoclipError, printable

PHOTOS, SESSIONS, UPLOAD = 64, 8, "100mb"
"""Most photos on a page, pages that are remembered, and size of a file: at most 64 * 8 * 3 MB are kept."""
SHOWN = 640
"""Longer side of a photo and its map as they are kept and shown, pixels."""
HEADINGS: dict[str, Any] = {
    "#": "number",
    "photo": "str",
    "score": "number",
    "decision": "str",
    "margin": "number",
    "regions": "number",
}
COLUMNS = ["path", "image_score", "map_max", "decision", "margin", "regions", "not_read"]
SYSTEM = ("system-ui", "sans-serif")
STYLE = """
.picture { min-height: 540px } .picture img { display: block; margin: auto; max-width: 100%; max-height: 540px }
.photos [role=gridcell] { cursor: pointer } .selection-button, footer { display: none !important }
"""


class Photo(NamedTuple):
    """What is kept of a photo that was dropped in.

    Attributes:
        name: Of its file, as the browser tells it: text from a stranger.
        score: Image score in [0, 1].
        map_max: Highest score of its map.
        pixels: ``(H, W, 3)`` RGB, 0-255, its longer side 640 pixels.
        heat: ``(H, W)`` anomaly map.
        problem: Why it was not read, in one line; then there is nothing else.
    """

    name: str
    score: float = 0.0
    map_max: float = 0.0
    pixels: NDArray[np.uint8] = np.zeros((1, 1, 3), np.uint8)
    heat: NDArray[np.float32] = np.zeros((1, 1), np.float32)
    problem: str = ""


def look(inspector: Inspector, path: str, name: str) -> Photo:
    """Score a photo; one that cannot be read becomes one with a problem."""
    try:
        found = inspector(path)
        pixels = found.image
    except KanoclipError as error:
        return Photo(name, problem=printable(str(error).replace(path, name)))
    height, width = found.anomaly_map.shape
    factor = SHOWN / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    small: Any = cv2.resize(pixels, size, interpolation=how)
    heat: Any = cv2.resize(found.anomaly_map, size, interpolation=how)
    return Photo(name, found.score, float(found.anomaly_map.max()), small, heat)


def judge(photo: Photo, threshold: Threshold) -> tuple[str, float, int]:
    """Return decision, margin and the number of regions."""
    regions = find_regions(photo.heat, threshold.pixel or 0.0, threshold.min_area)
    return threshold.decide(photo.score), threshold.margin(photo.score), len(regions)


def table(photos: list[Photo], threshold: Threshold) -> list[list[Any]]:
    """Return a row of the page's table for each photo."""
    rows: list[list[Any]] = []
    for number, photo in enumerate(photos, 1):
        decision, margin, regions = judge(photo, threshold)
        judged = [round(photo.score, 4), decision, round(margin, 4), regions]
        rows.append([number, photo.name, *([None, "not read", None, None] if photo.problem else judged)])
    return rows


def csv_of(photos: list[Photo], threshold: Threshold) -> str:
    """Return the csv that is downloaded: all photos, also those that were not read."""
    rows: list[list[Any]] = [COLUMNS]
    for photo in photos:
        judged = photo.score, photo.map_max, *judge(photo, threshold)
        rows.append([photo.name, *([""] * 5 if photo.problem else judged), photo.problem])
    return csv_text(rows)


def picture(photo: Photo, threshold: Threshold, opacity: float) -> NDArray[np.uint8]:
    """Draw a photo as ``predict`` does, its map as opaque as is asked for: 0 is the photo alone, 1 all of it."""
    drawn = marked(photo.pixels, photo.heat, photo.name, photo.score, threshold)
    height, width = photo.heat.shape
    above = drawn[:height, :width]
    above[:] = cv2.addWeighted(above, opacity, photo.pixels, 1 - opacity, 0)
    return drawn


def figure(photo: Photo, threshold: Threshold, opacity: float) -> str:
    """Return the picture as HTML: in the page itself, so that no file is left behind."""
    if photo.problem:
        return f"<p>{html.escape(photo.problem)}</p>"
    content = cv2.imencode(".png", picture(photo, threshold, opacity)[..., ::-1])[1].tobytes()
    text = html.escape(f"{printable(photo.name)}: {verdict(photo.score, threshold)}")
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def page(inspector: Inspector, about: list[str], folder: Path) -> gr.Blocks:
    """Build the page.

    Args:
        inspector: Scores the photos.
        about: What a person must know about the model, line by line.
        folder: For what is downloaded; whoever serves the page deletes it.
    """
    first = inspector(np.full((32, 32, 3), 128, np.uint8))  # a model that overflows is told now
    start = first.threshold or Threshold(LIKELIER[0])
    pixel = LIKELIER[0] if start.pixel is None else start.pixel
    if first.threshold is None:
        calibrate = "That is told by kanoclip calibrate, and here by --threshold threshold.json."
        about = [*about, f"Uncalibrated: the sliders begin at {pixel}, which is not where good parts end. {calibrate}"]

    def shown(photos: list[Photo], at: int, *sliders: float) -> str:
        whole, single, opacity = sliders
        return figure(photos[at], Threshold(whole, single, start.min_area), opacity) if photos else ""

    def judged(photos: list[Photo], at: int, *sliders: float) -> list[Any]:
        threshold = Threshold(sliders[0], sliders[1], start.min_area)
        file = folder / uuid4().hex / "photos.csv"
        text = csv_of(photos, threshold).encode("utf-8", "replace")
        write_bytes(file, text, durable=False)
        problems = "\n".join(photo.problem for photo in photos if photo.problem)
        return [
            table(photos, threshold),
            shown(photos, at, *sliders),
            gr.update(value=str(file), interactive=bool(photos)),
            gr.update(value=problems, visible=bool(problems)),
        ]

    def drop(
        files: list[tuple[str, str]],
        photos: list[Photo],
        *sliders: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        room = PHOTOS - len(photos)
        if len(files) > room:
            gr.Warning(f"A page holds {PHOTOS} photos: the last {len(files) - room} are left out.")
        new = [look(inspector, *file) for file in progress.tqdm(files[:room], desc="scoring")]
        for path, _ in files:
            Path(path).unlink(missing_ok=True)  # also one that was dropped twice
        at = next((i for i, one in enumerate(new) if not one.problem), 0) + len(photos) if new else len(photos) - 1
        photos = [*photos, *new]
        return [None, photos, at, *judged(photos, at, *sliders)]

    def choose(photos: list[Photo], whole: float, single: float, opacity: float, event: gr.SelectData) -> list[Any]:
        at = int(event.row_value[0]) - 1  # the rows may be sorted
        return [at, shown(photos, at, whole, single, opacity)]

    def clear(*sliders: float) -> list[Any]:
        return [[], 0, *judged([], 0, *sliders)]

    with gr.Blocks(title="kanoclip", delete_cache=(3600, 86400)) as blocks:
        photos, at = gr.State([]), gr.State(0)
        lines = "<br>".join(html.escape(printable(line)) for line in about)
        gr.HTML(f"<h1>kanoclip</h1><p>{lines}</p>")
        with gr.Row():
            with gr.Column():
                files: Any = gr.File(label="Photos", file_count="multiple", height=140)
                problems = gr.Textbox(label="Not read", visible=False, interactive=False)
                rows = gr.Dataframe(
                    headers=list(HEADINGS),
                    datatype=list(HEADINGS.values()),
                    column_widths=["7%", "34%", "14%", "17%", "14%", "14%"],
                    label="Click a row to see that photo",
                    interactive=False,
                    elem_classes="photos",
                    wrap=True,
                    buttons=[],
                )
                with gr.Row():
                    download = gr.DownloadButton("Download csv", interactive=False)
                    empty = gr.Button("Clear")
            with gr.Column():
                image = gr.HTML(elem_classes="picture")
                whole = gr.Slider(0, 1, start.image, step=0.001, label="Defective: image score above")
                single = gr.Slider(0, 1, pixel, step=0.001, label="Coloured: pixel score above")
                opacity = gr.Slider(0, 1, 1, step=0.05, label="Opacity of the map")
        # gradio would hand on the name of its copy, which lacks all that is no letter, digit or dot
        files.preprocess = lambda given: [(one.path, one.orig_name or os.path.basename(one.path)) for one in given]
        sliders, results = [whole, single, opacity], [rows, image, download, problems]
        private: Any = {"api_visibility": "private"}
        live: Any = {**private, "trigger_mode": "always_last", "show_progress": "hidden"}
        files.upload(drop, [files, photos, *sliders], [files, photos, at, *results], show_progress_on=image, **private)
        gr.on([whole.change, single.change], judged, [photos, at, *sliders], results, **live)
        opacity.change(shown, [photos, at, *sliders], image, **live)
        rows.select(choose, [photos, *sliders], [at, image], **live)
        empty.click(clear, sliders, [photos, at, *results], **private)
    return blocks


def serve(blocks: gr.Blocks, host: str, port: int) -> None:
    """Serve a page to this machine alone, or by ``host`` to others, in a thread; with no share link and no telemetry.

    Also without fonts from a network, lists of interfaces and of past runs, and files of this machine.
    """
    os.environ["NO_PROXY"] = "*"  # it looks whether it can be reached
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        inline=False,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        allowed_paths=[],
        max_file_size=UPLOAD,
        state_session_capacity=SESSIONS,
        theme=gr.themes.Default(font=SYSTEM, font_mono=SYSTEM),
        css=STYLE,
    )
