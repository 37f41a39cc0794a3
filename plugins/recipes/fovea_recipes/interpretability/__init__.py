"""Training of the tiny decoder; never part of a serving image."""
