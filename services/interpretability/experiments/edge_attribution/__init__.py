"""Edge attribution: the circuit of a task as edges, found by gradients, and how much of the task it does alone."""

from services.interpretability.experiments.edge_attribution.run import EdgeAttribution
from services.interpretability.experiments.edge_attribution.spec import EdgeAttributionSpec

__all__ = ["EdgeAttribution", "EdgeAttributionSpec"]
