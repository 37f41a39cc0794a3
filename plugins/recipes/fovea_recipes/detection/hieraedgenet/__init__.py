"""Recipes of HieraEdgeNet: pictures with boxes, and the training."""
