"""What a run shows and keeps of itself: progress lines, metrics, TensorBoard, a picture, profiles."""

from training.reports.metrics import Meter, Recorder
from training.reports.nodes import NodeProbe
from training.reports.profile import Profiler

__all__ = ["Meter", "NodeProbe", "Profiler", "Recorder"]
