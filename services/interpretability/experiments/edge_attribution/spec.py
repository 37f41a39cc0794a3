"""Spec of edge attribution: the task, the integral, the sizes of circuits and their controls."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.interpretability.experiments.circuits.spec import TaskSpec


class EdgeAttributionSpec(TaskSpec):
    """Task, integral, sizes of circuits, and controls."""

    steps: int = Field(5, ge=1, le=100, description="Points of the integral; 1 is EAP, without integration.")
    metric: Literal["logit-difference", "kl"] = Field(
        "logit-difference", description="Metric by which edges are scored; kl: divergence from the model's own answer."
    )
    sizes: list[int] = Field(
        default_factory=list, max_length=50, description="Edges of the circuits that are measured; left out, ten sizes."
    )
    threshold: float = Field(0.85, gt=0, le=1, description="Faithfulness of the minimal circuit.")
    controls: int = Field(10, ge=1, le=100, description="Circuits per size from random scores.")
