"""Recipes of PATNet and FasterNet: pictures with one class each, and the training."""
