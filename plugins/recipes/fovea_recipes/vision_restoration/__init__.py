"""How the weights of this service are trained; never part of a serving image."""
