"""How each family of models answers a text request: one adapter per family."""
