"""Tools: what a request lets a model call, how the model is told, and how its calls are read out of its text."""
