"""How good the answers of this service are, in the field's own measures: boxes, segments of time, gaze."""

from services.detection.metrics.boxes import box_average_precision, box_scores
from services.detection.metrics.gaze import behaviour, behaviour_delta, multimatch, nss, sequence_score, similarity
from services.detection.metrics.temporal import average_recall, temporal_average_precision

__all__ = [
    "average_recall",
    "behaviour",
    "behaviour_delta",
    "box_average_precision",
    "box_scores",
    "multimatch",
    "nss",
    "sequence_score",
    "similarity",
    "temporal_average_precision",
]
