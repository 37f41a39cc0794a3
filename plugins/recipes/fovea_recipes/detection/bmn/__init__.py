"""Recipes of BMN and BMN-CSA: synthetic features of videos, the loss, the training."""
