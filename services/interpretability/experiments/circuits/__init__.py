"""Circuits: path patching from the answer back, and the public measurements that it is made of."""

from services.interpretability.attention.head_scores import head_patterns, overlap, top_heads
from services.interpretability.causal.patching import (
    ablate,
    activation_patch,
    direct_logit_attribution,
    logit_difference,
    path_patch,
)
from services.interpretability.experiments.circuits.run import Circuits
from services.interpretability.experiments.circuits.spec import CircuitsSpec

__all__ = [
    "Circuits",
    "CircuitsSpec",
    "ablate",
    "activation_patch",
    "direct_logit_attribution",
    "head_patterns",
    "logit_difference",
    "overlap",
    "path_patch",
    "top_heads",
]
