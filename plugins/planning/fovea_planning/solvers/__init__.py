"""Plans over points: hulls, triangulations and tours, verified before they leave."""

from fovea_planning.solvers.solver import InvalidPoints, Plan, Pointers, name_set, plan, plans

__all__ = ["InvalidPoints", "Plan", "Pointers", "name_set", "plan", "plans"]
