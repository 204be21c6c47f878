"""threshold.json: where "good" ends for each category, what that promises, and of which scores it speaks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kanoclip.data.files import plain, write_json
from kanoclip.data.parsing import local_path, read_json
from kanoclip.metrics.calibration import Promise, Share, Threshold
from kanoclip.outputs.difference import difference
from kanoclip.types import KanoclipError, MissingError

FORMAT = 1
UNNAMED = ("", "object")
"""Categories of images that nobody has named: the second is what ``folder`` calls its own."""


@dataclass(frozen=True)
class Calibration:
    """A threshold, the images that chose it, and how it did on others.

    Attributes:
        threshold: For decisions and regions.
        promise: For image scores, and the same for the share of good images with any region; None: a number was given.
        samples: Digest of the contents of the good images that chose it; "" where contents are not known.
        alarms: False alarms among good images that were held out; None: none were.
        detected: Bad images called defective; None: there were none.
        f1_max: Best F1 of any threshold on the good and bad images; None without bad ones.
    """

    threshold: Threshold
    promise: Promise | None = None
    samples: str = ""
    alarms: Share | None = None
    detected: Share | None = None
    f1_max: float | None = None

    @property
    def separates(self) -> bool | None:
        """Whether bad images are surely called defective more often than good ones; None: there were none."""
        if self.detected is None or self.promise is None:
            return None
        return self.detected.interval[0] > self.promise.average

    def to_json(self) -> dict[str, Any]:
        """Return plain values, rates and intervals written out for a reader."""
        return {
            "image": self.threshold.image,
            "pixel": self.threshold.pixel,
            "min_area": self.threshold.min_area,
            "good_images": self.promise and self.promise.images,
            "rank": self.promise and self.promise.rank,
            "kept": self.promise and self.promise.kept,
            "false_alarms_on_average": self.promise and self.promise.average,
            "false_alarms_with_95_percent_confidence": self.promise and self.promise.confident,
            "samples": self.samples,
            "false_alarms_held_out": _share_to_json(self.alarms),
            "detected": _share_to_json(self.detected),
            "separates": self.separates,
            "f1_max": self.f1_max,
        }

    @classmethod
    def from_json(cls, content: Any) -> Calibration:
        """Read what ``to_json`` has written.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: If something is missing, or no number of its range.
        """
        threshold = Threshold(*(_unit(content[name]) for name in ("image", "pixel", "min_area")))
        promise = Promise(int(content["rank"]), int(content["good_images"]), bool(content["kept"]))
        if not 1 <= promise.rank <= promise.images:
            raise ValueError("rank")
        alarms, detected = (_share_from_json(content[name]) for name in ("false_alarms_held_out", "detected"))
        return cls(
            threshold,
            promise,
            str(content["samples"]),
            alarms,
            detected,
            content["f1_max"] and _unit(content["f1_max"]),
        )


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of one model, by category.

    Attributes:
        pooled: Of all good images together: for categories without a threshold of their own.
        categories: Each category that was calibrated; None: it has too few good images for the rate that was asked for.
        scoring: What the scores depend on, see ``outputs.identity.scoring``; None: bound to nothing.
        about: What else a reader may want to know, such as ``max_fpr`` and ``data``.
        source: Where it is from, for messages.
    """

    pooled: Calibration
    categories: Mapping[str, Calibration | None] = field(default_factory=dict)
    scoring: Mapping[str, Any] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    source: str = "The threshold"

    @classmethod
    def load(cls, source: str | Path | float, option: str = "--threshold") -> Thresholds:
        """Read a threshold.json, or take a number as the threshold of images and pixels of any model.

        Args:
            source: Path or number.
            option: Of what, for the message.

        Raises:
            MissingError: If there is no such file.
            KanoclipError: If it is damaged, of a newer version or lacks something, or the number is no score.
        """
        try:
            number = float(source)  # type: ignore[arg-type]  # a path is no number, and says so
        except (TypeError, ValueError):
            return cls._read(local_path(str(source), option), option)
        if not 0 <= number <= 1:
            raise KanoclipError(
                f"{option} {source}: expected a score from 0 to 1, or a file that calibrate has written."
            )
        return cls(Calibration(Threshold(number, number)), source=f"{option} {number:g}")

    @classmethod
    def _read(cls, path: Path, option: str) -> Thresholds:
        anew = f"Make it with kanoclip calibrate, or give {option} a number."
        try:
            content = read_json(path.read_bytes())
        except FileNotFoundError as error:
            raise MissingError(f"{option} {path}: there is no such file. {anew}") from error
        except OSError as error:
            raise KanoclipError(f"{option} {path} cannot be read: {error.strerror}. {anew}") from error
        except ValueError as error:  # no JSON, no UTF-8
            raise KanoclipError(f"{option} {path} is damaged: it is not JSON ({error}). {anew}") from error
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise KanoclipError(f"{option} {path} is not a threshold.json: it has no format. {anew}")
        if content["format"] > FORMAT:
            raise KanoclipError(
                f"{option} {path} has format {content['format']}, and this version reads {FORMAT}. {anew}"
            )
        at = "scoring"
        try:
            scoring, about = dict(content[at]), dict(content[at := "about"])
            pooled = Calibration.from_json(content[at := "pooled"])
            categories: dict[str, Calibration | None] = {}
            given = dict(content[at := "categories"])
            for at, one in given.items():
                categories[at] = None if one is None else Calibration.from_json(one)
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # the last: 1e999
            raise KanoclipError(f"{option} {path} is damaged at {at}: {error} is missing or wrong. {anew}") from error
        return cls(pooled, categories, scoring, about, str(path))

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            CannotWriteError: If it cannot be written; names it.
        """
        categories = {name: one and one.to_json() for name, one in sorted(self.categories.items())}
        pooled = {"pooled": self.pooled.to_json(), "categories": categories}
        write_json(path, {"format": FORMAT, "about": self.about, **pooled, "scoring": self.scoring})

    def check(self, scoring: Mapping[str, Any]) -> None:
        """Compare with what the scores at hand depend on; a number is good for any.

        Raises:
            KanoclipError: If they differ; names the first difference.
        """
        if self.scoring is None:
            return
        if found := difference(self.scoring, plain(scoring)):
            raise KanoclipError(
                f"{self.source} is for other scores: its {found.name} is {found.before}, and here it is {found.now}. "
                f"Run kanoclip calibrate with the options of this run, or this with those of the threshold."
            )

    def entry(self, category: str) -> Threshold:
        """Return the threshold of a category: its own, or else the pooled one.

        Raises:
            KanoclipError: If the file is for one category and the image shows another: both are named, or the model's
                prompts name what an image shows, so that its score depends on it.
        """
        if category in self.categories:
            return (self.categories[category] or self.pooled).threshold
        shown = category or "object"
        named = self.scoring is not None and self.scoring.get("settings", {}).get("prompts.class_name")
        for known in self.categories if len(self.categories) == 1 else ():
            if known != shown and named:
                raise KanoclipError(
                    f"{self.source} is for {known}, and this image shows {shown}. This model's prompts name what it "
                    f"shows, so the scores differ. Name both alike (--data.category_name of a folder, --category of "
                    f"export, category= in Python), or calibrate {shown} too."
                )
            if known not in UNNAMED and shown not in UNNAMED:
                raise KanoclipError(
                    f"{self.source} is for {known}, and this image shows {shown}. Calibrate {shown} too: kanoclip "
                    f"calibrate with good images of it."
                )
        return self.pooled.threshold


def _unit(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and 0 <= number <= 1):
        raise ValueError(value)
    return number


def _share_to_json(share: Share | None) -> dict[str, Any] | None:
    return share and {**share._asdict(), "rate": share.rate, "interval": share.interval}


def _share_from_json(content: Any) -> Share | None:
    if content is None:
        return None
    share = Share(int(content["hits"]), int(content["images"]))
    if not 0 <= share.hits <= share.images != 0:
        raise ValueError(share)
    return share
