"""How good answers about gaze are, in the field's own measures."""

from services.detection.metrics.gaze import behaviour, behaviour_delta, multimatch, nss, sequence_score, similarity

__all__ = ["behaviour", "behaviour_delta", "multimatch", "nss", "sequence_score", "similarity"]
