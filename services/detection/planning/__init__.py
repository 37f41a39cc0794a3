"""Plans over points: hulls, triangulations and tours, verified before they leave."""

from services.detection.planning.solver import InvalidPoints, Plan, Pointers, plan, plans

__all__ = ["InvalidPoints", "Plan", "Pointers", "plan", "plans"]
