"""Recipes of the planner's pointer networks."""
