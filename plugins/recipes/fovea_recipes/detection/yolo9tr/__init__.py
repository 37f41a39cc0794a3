"""Recipes of YOLO9tr: road surfaces with boxes of damage, and the training."""
