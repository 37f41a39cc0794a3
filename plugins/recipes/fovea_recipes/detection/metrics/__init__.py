"""How good the answers of detectors are, in the field's own measures: boxes and segments of time."""

from fovea_recipes.detection.metrics.boxes import box_average_precision, box_scores
from fovea_recipes.detection.metrics.temporal import average_recall, temporal_average_precision

__all__ = ["average_recall", "box_average_precision", "box_scores", "temporal_average_precision"]
