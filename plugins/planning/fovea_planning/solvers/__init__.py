"""Plans over points: hulls, triangulations and tours, verified before they leave."""

from fovea_planning.solvers.solver import InvalidPoints, Plan, Pointers, plan, plans

__all__ = ["InvalidPoints", "Plan", "Pointers", "plan", "plans"]
