"""Streaming metrics of images and pixels: one pass, no map is kept, equal for any batch size and process count."""

from kanoclip.metrics.ranking import ImageMetrics, PixelMetrics

__all__ = ["ImageMetrics", "PixelMetrics"]
