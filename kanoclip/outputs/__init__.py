"""Outputs: what a run leaves behind. Callbacks only look; nothing here changes a score."""

from kanoclip.outputs.predictions import PredictionWriter
from kanoclip.outputs.record import FitNote, RunRecord, WholeCheckpoints
from kanoclip.outputs.results import ResultsWriter
from kanoclip.outputs.tensorboard import ExampleMaps

__all__ = ["ExampleMaps", "FitNote", "PredictionWriter", "ResultsWriter", "RunRecord", "WholeCheckpoints"]
