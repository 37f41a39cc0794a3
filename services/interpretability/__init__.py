"""interpretability: heads, circuits and what they do."""
