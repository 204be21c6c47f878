"""Metrics of image scores and anomaly maps: one pass, no map is kept, the same for any batch size and rank count."""

from importlib import import_module
from typing import Any

__all__ = ["ImageMetrics", "PixelMetrics"]


def __getattr__(name: str) -> Any:
    """Import a metric when it is first used: thresholds load no torch."""
    if name in __all__:
        return getattr(import_module("kanoclip.metrics.ranking"), name)
    raise AttributeError(f"module 'kanoclip.metrics' has no attribute {name!r}")
