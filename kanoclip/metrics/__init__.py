"""Metrics of image scores and anomaly maps: one pass, no map is kept, the same for any batch size and rank count."""

from kanoclip.metrics.ranking import ImageMetrics, PixelMetrics

__all__ = ["ImageMetrics", "PixelMetrics"]
