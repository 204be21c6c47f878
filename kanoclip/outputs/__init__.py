"""Outputs: what a run leaves behind. Callbacks only look; nothing here changes a score."""

from importlib import import_module
from typing import Any

__all__ = [
    "ExampleMaps",
    "FitNote",
    "PredictionWriter",
    "ReportWriter",
    "ResultsWriter",
    "RunLog",
    "RunRecord",
    "ScoreNote",
    "WholeCheckpoints",
]

_WHERE = {
    "ExampleMaps": "tensorboard",
    "FitNote": "record",
    "PredictionWriter": "predictions",
    "ReportWriter": "report",
    "ResultsWriter": "results",
    "RunLog": "log",
    "RunRecord": "record",
    "ScoreNote": "record",
    "WholeCheckpoints": "record",
}


def __getattr__(name: str) -> Any:
    """Import a callback when it is first used: a table of words loads no torch."""
    if name in _WHERE:
        return getattr(import_module(f"kanoclip.outputs.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'kanoclip.outputs' has no attribute {name!r}")
