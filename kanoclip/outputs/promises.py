"""What a calibration promises, in sentences."""

from __future__ import annotations

from kanoclip.metrics.calibration import Share, images_for
from kanoclip.outputs.thresholds import UNNAMED, Calibration, Thresholds
from kanoclip.types import counted

BREAKS = (
    "These promises hold for new images of the same parts, camera and light. Near-duplicates break them: frames of one "
    "video, or one part photographed twice, count as one image but are counted as two; only exact copies are found."
)


def told(thresholds: Thresholds, what: str) -> str:
    """Say for each category and all together where the thresholds are, and what they promise.

    Args:
        thresholds: As ``calibrator.calibrate`` returns them.
        what: Which model on which data, the first line.
    """
    about, pooled = thresholds.about, thresholds.pooled
    lines = [f"{what}: thresholds for a false-alarm rate of {percent(about['max_fpr'])}"]
    if about["all_taken_for_good"]:
        lines.append("The images have no labels: all are taken for good ones.")
    elif about["unlabelled"]:
        lines.append(f"{counted(about['unlabelled'], 'image')} without a label left out.")
    if about["copies"]:
        lines.append(f"{counted(about['copies'], 'exact copy', 'exact copies')} counted once.")
    several = len(thresholds.categories) > 1
    if several:
        for category, one in thresholds.categories.items():
            images = about["good_images"][category]
            lines += _category(category, one) if one else [too_few(category, images, about["max_fpr"])]
    name = "all together" if several else "".join(one for one in thresholds.categories if one not in UNNAMED)
    lines += _category(name or "all images", pooled)
    if pooled.promise and not pooled.promise.kept:
        images = pooled.promise.images
        rate = about["max_fpr"]
        lines.append(
            f"  With {counted(images, 'good image')} no rate below {percent(pooled.promise.average)} can be promised; "
            f"{percent(rate)} takes {images_for(rate)}. The threshold is the highest score among them."
        )
    if several:
        lines.append(
            "  It is for categories without a threshold of their own, and promises nothing for each single one."
        )
    highest = ", ".join(f"{path} ({score:.6f})" for path, score in about["highest"])
    return "\n".join([*lines, BREAKS, f"Highest scores of good images, the first to look at for a bad part: {highest}"])


def too_few(category: str, images: int, max_fpr: float) -> str:
    """Say why a category has no threshold of its own."""
    takes = f"{percent(max_fpr)} takes {images_for(max_fpr)}"
    return f"{category}: {counted(images, 'good image')}, and {takes}; the threshold of all together is used."


def _category(name: str, one: Calibration) -> list[str]:
    promise = one.promise
    assert promise is not None  # for the type checker: a number is never calibrated
    lines = [
        f"{name}: {counted(promise.images, 'good image')}; defective above an image score of "
        f"{one.threshold.image:.6f}; regions: pixels above {one.threshold.pixel:.6f}, "
        f"{percent(one.threshold.min_area)} of the picture or more.",
        f"  False alarms: at most {percent(promise.average)} on average over all choices of {promise.images} images; "
        f"with these, at most {percent(promise.confident)} with 95 % confidence. The same holds for the share "
        f"of good images that show a region.",
    ]
    if one.alarms:
        lines.append(f"  Of {counted(one.alarms.images, 'good image')} held out, {share_text(one.alarms)}.")
    if one.detected:
        lines.append(
            f"  Of {counted(one.detected.images, 'bad image')}, {share_text(one.detected)}. F1-max, at the threshold "
            f"that is best for these images: {one.f1_max:.3f}."
        )
    if one.separates is False:
        lines.append(
            "  This model does not separate these parts: it may be right about bad ones no more often than it is wrong "
            "about good ones. Use another model or backbone, or more bad images to tell."
        )
    return lines


def percent(rate: float) -> str:
    """Write a rate as a percentage of three digits."""
    return f"{100 * rate:.3g} %"


def share_text(share: Share) -> str:
    """Say how many images are called defective, as a rate with its interval."""
    low, high = share.interval
    return (
        f"{counted(share.hits, 'is', 'are')} called defective: {percent(share.rate)} (95 % interval {percent(low)} to "
        f"{percent(high)})"
    )
