"""Circuits: path patching from the answer back, and the public measurements that it is made of."""

from fovea_circuits.comparison import overlap
from fovea_circuits.experiments.circuits.run import Circuits
from fovea_circuits.experiments.circuits.spec import CircuitsSpec
from fovea_circuits.patching import ablate, activation_patch, direct_logit_attribution, logit_difference, path_patch
from services.interpretability.attention.head_scores import head_patterns, top_heads

__all__ = [
    "Circuits", "CircuitsSpec", "ablate", "activation_patch", "direct_logit_attribution", "head_patterns",
    "logit_difference", "overlap", "path_patch", "top_heads",
]  # fmt: skip
